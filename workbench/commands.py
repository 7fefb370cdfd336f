"""The commands that work on finished models: `demo`, `generate`, `compare`, `report`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.errors import UserError
from workbench.logs import console
from workbench.sources import named_sources

Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value …", show_default=False)
]
MaxTokens = Annotated[int, typer.Option(min=1, help="longest answer in tokens")]
Seed = Annotated[int, typer.Option(min=0, help="seed of the sampling")]
Limit = Annotated[int | None, typer.Option(min=1, help="use only the first so many prompts")]


def demo(
    config: Annotated[str, typer.Option("--config", "-c", help="YAML file")] = "configs/demo.yaml",
    overrides: Overrides = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="a small loop in a few minutes (configs/demo-fast.yaml)")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="print the resulting config and stop")
    ] = False,
) -> None:
    """Run the whole loop on the embedded model: SFT, reward model, PPO, comparison, report.

    Example: `rlhf demo run.seed=1 run.name=demo-1`
    """
    from workbench import launch
    from workbench.config import load_config
    from workbench.demo import DemoConfig, run

    loaded = load_config(DemoConfig, "configs/demo-fast.yaml" if fast else config, overrides or [])
    if print_config:
        launch.print_config(loaded)
    else:
        run(loaded)


def generate(
    model: Annotated[
        str,
        typer.Argument(help="hub id, folder, smollm2-135m-instruct, or openai:URL#name: a server"),
    ],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="a prompt; may be repeated")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="file of prompts, or demo:prompts")] = None,
    split: Annotated[str | None, typer.Option(help="split of the prompts to read")] = None,
    limit: Limit = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 is greedy, 1 samples the model itself")
    ] = 0.0,
    max_new_tokens: MaxTokens = 256,
    samples: Annotated[int, typer.Option(min=1, help="answers per prompt")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts decoded together")] = 64,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="write JSONL here instead of printing")] = None,
) -> None:
    """Answer prompts with a model.

    Example: `rlhf generate runs/demo/ppo/model --prompt "Why is the sky blue?"`
    """
    from workbench.answering import answer_prompts
    from workbench.data import Kind, load
    from workbench.files import write_text
    from workbench.generation import SamplingSettings

    if bool(prompt) == bool(prompts):
        raise UserError("generate: give either --prompt TEXT or --prompts FILE")
    kinds: tuple[Kind, ...] = ("prompt_only", "prompt_completion", "preference", "ranking")
    rows: list[dict[str, Any]] = [{"prompt": text} for text in prompt or []]
    if prompts:
        rows = list(load(prompts, kinds, split=split, limit=limit).rows)
    found = answer_prompts(
        model,
        [row["prompt"] for row in rows],
        SamplingSettings(
            max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size
        ),
        samples=samples,
        seed=seed,
        desc="generate",
    )
    answers = [
        {
            "prompt": row["prompt"],
            "completion": answer.text,
            "finished": answer.finished,
            "tokens": answer.tokens,
        }
        for row, several in zip(rows, found, strict=True)
        for answer in several
    ]
    if out is not None:
        write_text(
            out, "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        )
        console.print(f"{len(answers)} answers in {out}", markup=False)
        return
    for answer in answers:
        if prompts or len(answers) > 1:
            sys.stdout.write(f"\n> {answer['prompt']}\n")
        sys.stdout.write(f"{answer['completion']}{'' if answer['finished'] else ' […]'}\n")


def compare(
    models: Annotated[list[str], typer.Argument(help="name=model …; the name may be left out")],
    prompts: Annotated[str, typer.Option(help="file of prompts, or demo:prompts")] = "demo:prompts",
    split: Annotated[
        str | None, typer.Option(help="split of the prompts to read; default: demo:prompts' test")
    ] = None,
    limit: Limit = None,
    reference: Annotated[
        str | None, typer.Option(help="name of the model KL is measured to; default: the first")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(help="picks the best of n answers of the reference")
    ] = None,
    best_of: Annotated[
        list[int] | None, typer.Option(min=1, help="n of best-of-n; may be repeated")
    ] = None,
    max_new_tokens: MaxTokens = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="prompts decoded together")] = 64,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="folder for comparison.json and report.html")] = Path(
        "runs/compare"
    ),
) -> None:
    """Compare models on the same prompts, greedy and sampled, with intervals and tests.

    Example: `rlhf compare base=smollm2-135m-instruct ppo=runs/demo/ppo/model`
    """
    from workbench import embedded
    from workbench.compare import Plan, print_table, write_comparison
    from workbench.compare import compare as run_comparison
    from workbench.data import Kind, load
    from workbench.generation import SamplingSettings
    from workbench.judge import GoldJudge
    from workbench.models import ModelSettings, load_policy, load_tokenizer
    from workbench.report import build_report

    named = named_sources(models, "compare")
    for name in named:
        if name.startswith("best_of_"):
            raise UserError(f"compare: '{name}' is kept for best-of-n; choose another name")
    if bool(best_of) != bool(reward_model):
        raise UserError("compare: best-of-n needs both --best-of N and --reward-model FOLDER")
    kinds: tuple[Kind, ...] = ("prompt_only", "prompt_completion", "preference", "ranking")
    held_out = "test" if prompts == "demo:prompts" else None
    rows = load(prompts, kinds, split=split or held_out, limit=limit).rows
    plan = Plan(
        models=named,
        reference=reference or next(iter(named)),
        reward_model=reward_model,
        best_of=tuple(best_of or ()),
        sampling=SamplingSettings(max_new_tokens=max_new_tokens, batch_size=batch_size),
        seed=seed,
    )
    judge = GoldJudge(load_policy(ModelSettings(name=embedded.NAME)), load_tokenizer(embedded.NAME))
    result = run_comparison(plan, rows, judge)
    write_comparison(result, out / "compare" / "comparison.json")
    report_path = build_report(out)
    print_table(result)
    console.print(f"open the report: {report_path.resolve().as_uri()}", markup=False)


def report(
    run: Annotated[Path, typer.Argument(help="run folder, e.g. runs/demo")] = Path("runs/demo"),
    out: Annotated[
        Path | None, typer.Option(help="where to write it; default: RUN/report.html")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="also save two figures as PNG in this folder")
    ] = None,
) -> None:
    """Draw the report of a run again from its files.

    Example: `rlhf report runs/demo --figures docs/img`
    """
    from workbench.report import build_report, save_figures

    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; see `rlhf runs list`")
    path = build_report(run, out)
    console.print(f"open the report: {path.resolve().as_uri()}", markup=False)
    if figures is not None:
        for figure in save_figures(run, figures):
            console.print(str(figure), markup=False)

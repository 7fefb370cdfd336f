"""Checks `rlhf plan` against measured memory: small runs in processes of their own.

`make bench-plan` runs it. Llamas of random weights do two optimiser steps of each stage; the peak
of the resident set, less what the process had after a run on a tiny model, is compared with the
plan. It writes `runs/bench/plan.json` and the table of `docs/scaling.md`.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OPENING, CLOSING = "<!-- measured: {} -->", "<!-- end -->"
MODELS = "docs/models"  # configs with the sizes of public architectures
RECIPES = {
    "1 × 24 GB": ("llama-1b.json --gpus 1x24GB --layout lora",),
    "8 × 80 GB": ("llama-8b.json --gpus 8x80GB --layout lora",),
    "Two machines of 8 × 80 GB": (
        "llama-8b.json --gpus 16x80GB --layout shared_trunk --top-layers 8 --sharding fsdp2",
    ),
}
NO_TOKEN = -1
GB = 10**9


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        stage: ppo, sft or reward.
        layout: see `rlhf plan`.
        top: layers trained, or None for all.
        hidden, layers: of the model.
        rows: of an update.
        micro: of a forward and backward pass.
        prompt, response: tokens.
    """

    stage: str
    layout: str
    top: int | None
    hidden: int
    layers: int
    rows: int = 8
    micro: int = 4
    prompt: int = 64
    response: int = 64


SMALL, MIDDLE, LARGE = (256, 8), (512, 10), (768, 10)
CASES = (
    Case("ppo", "separate", None, *MIDDLE),
    Case("ppo", "lora", None, *MIDDLE, micro=8),
    Case("ppo", "shared_trunk", 3, *MIDDLE),
    Case("sft", "separate", None, *MIDDLE, micro=8),
    Case("ppo", "lora", 3, *MIDDLE, micro=8),
    Case("ppo", "separate", None, *LARGE, rows=4),
    Case("ppo", "lora", None, *LARGE, micro=8),
    Case("ppo", "shared_trunk", 3, *LARGE, micro=8),
    Case("sft", "lora", None, *MIDDLE, micro=8),
    Case("reward", "separate", None, *MIDDLE),
    Case("ppo", "lora", None, *MIDDLE),
    Case("ppo", "separate", None, *SMALL),
    Case("ppo", "lora", None, *SMALL, micro=8),
)
TINY = {"hidden": 64, "layers": 4, "rows": 4, "micro": 2, "prompt": 8, "response": 8}


def main() -> None:
    """Measure all cases, or one as a child; write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table")
    parser.add_argument("--recipes", action="store_true", help="plan the page's recipes anew")
    parser.add_argument("--resume", action="store_true", help="keep what was measured already")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/plan.json"))
    parser.add_argument("--docs", type=Path, default=None, help="page whose table is written anew")
    given = parser.parse_args()
    if given.child is not None:
        case, folder = json.loads(given.child)
        sys.stdout.write(json.dumps({"peak": measured(Case(**case), Path(folder))}) + "\n")
        return
    if given.recipes:
        write_block(given.docs, "recipes", recipes())
        return
    found: dict[str, Any] = {"rows": []}
    if given.out.is_file() and (given.tables or given.resume):
        found = json.loads(given.out.read_text(encoding="utf-8"))
    if not given.tables:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        found["about"] = about()
        for case in CASES:
            if not any(row["case"] == asdict(case) for row in found["rows"]):
                found["rows"].append(compared(case))
                given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                print(found["rows"][-1], file=sys.stderr)
    if given.docs is not None:
        write_block(given.docs, "plan", table(found))
    print(table(found))


def compared(case: Case) -> dict[str, Any]:
    """Return a case with what was planned and what was measured, in bytes."""
    row: dict[str, Any] = {"case": asdict(case)} | planned(case)
    with tempfile.TemporaryDirectory(prefix="rlhf-plan-") as folder:
        write_models(case, Path(folder))
        write_models(replace(case, **TINY), Path(folder) / "tiny")
        words = json.dumps([asdict(case), folder])
        command = [sys.executable, "-m", "benchmarks.plan_check", "--child", words]
        env = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        env |= {"HF_HUB_OFFLINE": "1"}
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=900
        )
    if done.returncode:
        sys.exit(f"plan_check.py: error: {case}: {done.stderr.strip()[-2000:]}")
    line = [each for each in done.stdout.splitlines() if each.startswith('{"peak')][-1]
    return row | json.loads(line) | {"seconds": time.perf_counter() - began}


def planned(case: Case) -> dict[str, Any]:
    """Return parameters and the plan's peak, without the overhead and gaps that it adds."""
    import torch

    from workbench.launch import stage_memory
    from workbench.plan.memory import Request
    from workbench.plan.skeleton import counts

    config = llama(case)
    request = Request(
        config, counts(config), case.layout, case.top, 16, case.prompt, case.response,
        torch.bfloat16, cpu=True, devices=1, sharding="none",
    )  # fmt: skip
    memory = stage_memory(case.stage, request)
    phases = {
        phase: memory.work(phase, case.rows if phase == "rollout" else case.micro)
        for phase in memory.phases
    }
    held = sum(part.bytes for part in memory.parts)
    return {
        "parameters": request.counts.total,
        "held": held,
        "phases": phases,
        "planned": held + memory.kept(case.rows) + sum(phases.values()),
    }


def llama(case: Case) -> Any:
    """Return the config of a case's model."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=8192, hidden_size=case.hidden, intermediate_size=8 * case.hidden // 3 // 8 * 8,
        num_hidden_layers=case.layers, num_attention_heads=case.hidden // 64,
        num_key_value_heads=max(1, case.hidden // 192), max_position_embeddings=512,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip


def write_models(case: Case, folder: Path) -> None:
    """Write `policy` and `reward` of random weights, with a tokenizer of made-up words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from workbench.models import LoraSettings, ModelSettings, load_scorer, lora_config

    torch.manual_seed(0)
    words = {"<s>": 0, "</s>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, 8192)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    policy = str(folder / "policy")
    LlamaForCausalLM(llama(case)).to(torch.bfloat16).save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    scorer: Any = load_scorer(ModelSettings(name=policy), torch.bfloat16)
    if case.layout == "lora":
        from peft import get_peft_model

        scorer = get_peft_model(scorer, lora_config(LoraSettings(enabled=True), "SEQ_CLS"))
    scorer.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")


def measured(case: Case, folder: Path) -> int:
    """Run a case in this process; return the peak of its memory, less what it had at first."""
    from workbench.process import prepare

    prepare()
    from benchmarks.ppo_watch import GIB, Watch

    run = ppo_run if case.stage == "ppo" else stage_run
    # Once on a tiny model: libraries and kernels belong to what the process has at first.
    run(replace(case, **TINY), folder / "tiny")
    gc.collect()
    watch = Watch("cpu")  # gives back what is free
    base = resident()
    run(case, folder)
    return int(watch.peak_gib() * GIB) - base


def ppo_run(case: Case, folder: Path) -> None:
    """Do one update of PPO of two optimiser steps, as the engine does it."""
    import torch
    from accelerate import Accelerator

    from ppo.config import PPOModelSettings, PPOSettings
    from ppo.experience import make_experience
    from ppo.rewards import RunningMoments
    from ppo.roles import Roles
    from ppo.rollout import score_rollout
    from ppo.update import Optimisation
    from workbench.config import load_config
    from workbench.generation import SamplingSettings, generate

    top = [] if case.top is None else [f"train_top_layers={case.top}"]
    given = [f"name={folder / 'policy'}", f"layout={case.layout}", "precision=bf16", *top]
    settings = load_config(PPOModelSettings, None, given)
    roles = Roles(settings, str(folder / "reward"), torch.device("cpu"))
    args = replace(
        PPOSettings(), batch_size=case.rows, num_mini_batches=1, num_ppo_epochs=2,
        micro_batch_size=case.micro, total_episodes=case.rows,
    )  # fmt: skip
    optimisation = Optimisation(args, roles, Accelerator(cpu=True), 1)
    draw = torch.Generator().manual_seed(0)
    queries = torch.randint(3, 8192, (case.rows, case.prompt), generator=draw).tolist()
    sampling = SamplingSettings(max_new_tokens=case.response, batch_size=case.rows)
    with roles.sampling():
        answers = generate(roles.actor, queries, sampling, eos_token_id=NO_TOKEN)
    rollout = score_rollout(roles, queries, answers, 1.0, case.micro)
    experience = make_experience(rollout, args, kl_coef=0.05, moments=RunningMoments())
    optimisation(experience, 1.0, 0)


def stage_run(case: Case, folder: Path) -> None:
    """Run `rlhf sft` or `rlhf reward` for two steps, evaluation and saving included."""
    import importlib

    from workbench import launch

    rows = []
    for i in range(4 * case.rows):
        said = " ".join(f"w{3 + (7 * i + j) % 8000}" for j in range(case.prompt - 1))
        one, two = (
            " ".join(f"w{3 + (11 * i + 5 * j + k) % 8000}" for j in range(case.response - 1))
            for k in range(2)
        )
        pair = {"prompt": said, "chosen": one, "rejected": two}
        rows.append({"prompt": said, "completion": one} if case.stage == "sft" else pair)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = launch.stage_config(
        case.stage, None,
        [
            f"model.name={folder / 'policy'}", "model.precision=bf16", f"data.train={data}",
            f"run.root={folder / 'runs'}", f"{case.stage}.max_steps=2",
            f"{case.stage}.batch_size={case.micro}",
            f"model.lora.enabled={'true' if case.layout == 'lora' else 'false'}",
            *(["sft.sample_prompts=0"] if case.stage == "sft" else []),
        ],
    )  # fmt: skip
    importlib.import_module(f"{case.stage}.stage").run(config)


def resident() -> int:
    """Return the bytes of this process's resident set."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def about() -> dict[str, str]:
    """Return what the numbers depend on."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "trl")}
    from workbench.run import processor

    cores = f"{processor()}, {os.cpu_count()} cores"
    return {
        "processor": cores,
        "python": platform.python_version(),
        **versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def table(found: dict[str, Any]) -> str:
    """Return the table of all cases in Markdown."""
    said = ", ".join(f"{name} {value}" for name, value in found["about"].items())
    ratios = [row["peak"] / row["planned"] for row in found["rows"]]
    lines = [
        f"On a CPU, in bf16, prompts and answers of 64 tokens; {said}. Measured is the peak of the "
        "resident set less what the process had after a run on a tiny model; planned is what the "
        "plan counts, without the overhead and the tenth for gaps that it adds. Measured to "
        f"planned: {min(ratios):.2f} to {max(ratios):.2f}.",
        "",
        "| stage | layout | parameters | rows | micro-batch | planned | measured | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, ratio in zip(found["rows"], ratios, strict=True):
        case = row["case"]
        layout = f"`{case['layout']}`" + (f", top {case['top']}" if case["top"] else "")
        cells = (
            case["stage"], layout, f"{row['parameters'] / 1e6:.0f} M", str(case["rows"]),
            str(case["micro"]), f"{row['planned'] / GB:.2f} GB", f"{row['peak'] / GB:.2f} GB",
            f"{ratio:.2f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def recipes() -> str:
    """Return each recipe's commands with what they print."""
    said = []
    for title, plans in RECIPES.items():
        said.append(f"### {title}")
        for words in plans:
            command = f"rlhf plan --model {MODELS}/{words}"
            done = subprocess.run(
                [str(Path(sys.executable).with_name("rlhf")), *command.split()[1:]],
                cwd=ROOT, env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            lines = [line.rstrip() for line in done.stdout.splitlines()]
            said.append("\n".join(["```console", f"$ {command}", *lines, "```"]))
            print(said[-1], file=sys.stderr)
    return "\n\n".join(said)


def write_block(page: Path, name: str, text: str) -> None:
    """Put a text between its marks on a page."""
    mark = OPENING.format(name)
    old = page.read_text(encoding="utf-8")
    before, opening, rest = old.partition(mark)
    _, closing, after = rest.partition(CLOSING)
    if not opening or not closing:
        sys.exit(f"plan_check.py: error: {page}: no {mark} … {CLOSING}")
    page.write_text(f"{before}{opening}\n\n{text}\n\n{closing}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

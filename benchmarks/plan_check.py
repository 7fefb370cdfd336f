"""Checks `rlhf plan` against measured memory: small runs in processes of their own.

`make bench-plan` runs it. Llamas of random weights do two optimiser steps of each stage; the peak
of the resident set, less what the process had after a run on a tiny model, is compared with the
plan, and tokens a second of the second update with what the plan makes of this machine's rates.
Cases that `--out` holds already are kept with `--resume`. It writes `runs/bench/plan.json` and the
tables of `docs/scaling.md`.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.plan_tables import table

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
PASSES = 2
PHASES = ("rollout", "score", "update")


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
    parser.add_argument("--tiny", action="store_true", help="two tiny cases, to try this script")
    parser.add_argument("--recipes", action="store_true", help="plan the page's recipes anew")
    parser.add_argument("--resume", action="store_true", help="keep the cases in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/plan.json"))
    parser.add_argument("--docs", type=Path, default=None, help="page whose table is written anew")
    given = parser.parse_args()
    if given.child is not None:
        case, folder = json.loads(given.child)
        sys.stdout.write(json.dumps(measured(Case(**case), Path(folder))) + "\n")
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
        cases = tuple(replace(case, **TINY) for case in CASES[:4:3]) if given.tiny else CASES
        for case in cases:
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
    from workbench.plan.devices import measured_rates
    from workbench.plan.memory import Request
    from workbench.plan.skeleton import counts
    from workbench.plan.speed import ppo_speed, trainer_speed

    config = llama(case)
    request = Request(
        config, counts(config), case.layout, case.top, 16, case.prompt, case.response,
        torch.bfloat16, cpu=True, devices=1, sharding="none",
        reward="adapter" if case.layout == "lora" else "whole",
    )  # fmt: skip
    memory = stage_memory(case.stage, request)
    phases = {
        phase: memory.work(phase, case.rows if phase == "rollout" else case.micro)
        for phase in memory.phases
    }
    held = sum(part.bytes for part in memory.parts)
    rates = measured_rates(torch.bfloat16, "cpu")
    if case.stage == "ppo":
        weights = (request.counts.layers + request.counts.head) * request.dtype.itemsize
        speed = ppo_speed(request, rates, case.rows, case.rows, PASSES, weights)
    else:
        sequences = case.micro if case.stage == "sft" else 2 * case.micro
        speed = trainer_speed(request, rates, sequences, head=case.stage == "sft")
    return {
        "parameters": request.counts.total,
        "held": held,
        "phases": phases,
        "planned": held + memory.kept(case.rows) + sum(phases.values()),
        "tokens": speed.tokens,
        "estimated_seconds": speed.seconds,
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


def measured(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case in this process.

    Returns:
        `peak`: bytes of memory at most, up to the end of the first update (of both in sft and
            reward), less what there was at first.
        `measured_seconds`: of the second update, by phase.
    """
    from workbench.process import prepare

    prepare()
    from benchmarks.ppo_watch import GIB, Watch

    run = ppo_run if case.stage == "ppo" else stage_run
    # Once on a tiny model: libraries and kernels belong to what the process has at first.
    run(replace(case, **TINY), folder / "tiny", lambda: None)
    gc.collect()
    watch = Watch("cpu")  # gives back what is free
    base = resident()
    peaks: list[float] = []
    seconds = run(case, folder, lambda: peaks.append(watch.peak_gib()))
    return {"peak": int(peaks[0] * GIB) - base, "measured_seconds": seconds}


def ppo_run(case: Case, folder: Path, once: Callable[[], None]) -> dict[str, float]:
    """Do two updates of PPO of two optimiser steps each, as the engine does it.

    Args:
        case: the run.
        folder: of its models.
        once: called after the first update.

    Returns:
        Seconds of the second update's phases, taken as the engine takes `time/...`.
    """
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
        PPOSettings(), batch_size=case.rows, num_mini_batches=1, num_ppo_epochs=PASSES,
        micro_batch_size=case.micro, total_episodes=2 * case.rows,
    )  # fmt: skip
    optimisation = Optimisation(args, roles, Accelerator(cpu=True), 2)
    draw = torch.Generator().manual_seed(0)
    queries = torch.randint(3, 8192, (case.rows, case.prompt), generator=draw).tolist()
    sampling = SamplingSettings(max_new_tokens=case.response, batch_size=case.rows)
    for update in range(2):
        times = [time.perf_counter()]
        with roles.sampling():
            answers = generate(
                roles.actor, queries, sampling, eos_token_id=NO_TOKEN, keep_depth=roles.depth
            )
        times.append(time.perf_counter())
        rollout = score_rollout(roles, queries, answers, 1.0, case.micro)
        experience = make_experience(rollout, args, kl_coef=0.05, moments=RunningMoments())
        times.append(time.perf_counter())
        optimisation(experience, 1.0, 0)
        roles.sync_actor()
        times.append(time.perf_counter())
        if not update:
            once()
    return {phase: end - start for phase, start, end in zip(PHASES, times, times[1:], strict=False)}


def stage_run(case: Case, folder: Path, once: Callable[[], None]) -> dict[str, float]:
    """Run `rlhf sft` or `rlhf reward` for two steps, evaluation and saving included.

    Returns:
        Seconds from the end of the first optimiser step to that of the second.
    """
    import importlib

    from torch.optim.optimizer import register_optimizer_step_post_hook

    from workbench import launch

    ends: list[float] = []
    hook = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
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
    hook.remove()
    once()
    return {"step": ends[1] - ends[0]}


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

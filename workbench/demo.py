"""The whole loop in one command: SFT → rankings → reward model → PPO → comparison → report."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import embedded, launch
from workbench.compare import Plan, compare, print_table, write_comparison
from workbench.config import option, to_tree
from workbench.data import load
from workbench.errors import StageError, UserError
from workbench.files import damage, digest, sha256, sweep, write_json
from workbench.generation import SamplingSettings
from workbench.judge import RULES, GoldJudge
from workbench.labelling import RANKINGS, Labels, write_rankings
from workbench.locks import lock
from workbench.logs import console
from workbench.models import ModelSettings, load_policy, load_tokenizer
from workbench.report import build_report
from workbench.run import RunSettings, fingerprint, git_commit, versions


@dataclass
class LabelSettings:
    """The demo's preference labels."""

    prompts: int = option(400, "training prompts whose answers are ranked")
    answers_per_prompt: int = option(4, "answers ranked per prompt (InstructGPT §3.4: 4 to 9)")
    noise: float = option(0.05, "expected share of pairs the annotator orders wrongly")

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if self.prompts < 10:
            return "prompts", "must be at least 10"
        if self.answers_per_prompt < 2:
            return "answers_per_prompt", "must be at least 2"
        if not 0 <= self.noise < 0.5:
            return "noise", "must be in [0, 0.5)"
        return None


@dataclass
class CompareSettings:
    """The demo's comparison."""

    prompts: int = option(128, "held-out prompts")
    best_of: list[int] = option([4, 16], "n of best-of-n sampling from the SFT policy")

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if self.prompts < 2:
            return "prompts", "must be at least 2, for an interval"
        return None


@dataclass
class StageSettings:
    """How one stage of the demo is configured."""

    config: str = option("", "config file of the stage")
    overrides: list[str] = option([], "key=value texts on top of it")


@dataclass
class DemoConfig:
    """`rlhf demo`: the whole loop."""

    run: RunSettings = option(RunSettings, "where and how to run")
    sampling: SamplingSettings = option(SamplingSettings, "length of all answers")
    sft: StageSettings = option(StageSettings, "stage 1")
    labels: LabelSettings = option(LabelSettings, "rankings")
    reward: StageSettings = option(StageSettings, "stage 2")
    ppo: StageSettings = option(StageSettings, "stage 3")
    compare: CompareSettings = option(CompareSettings, "comparison")

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        for stage in ("sft", "reward", "ppo"):
            if not getattr(self, stage).config:
                return (
                    f"{stage}.config",
                    f"name the stage's config file, e.g. configs/{stage}/demo.yaml",
                )
        if len(self.compare.best_of) < 1 or min(self.compare.best_of) < 1:
            return "compare.best_of", "at least one n, each at least 1"
        return None


def run(config: DemoConfig) -> Path:
    """Run the loop, reusing every step whose inputs did not change, and return the run folder."""
    folder = Path(config.run.root) / config.run.name
    sweep(folder)
    seconds: dict[str, float] = {}
    step = _Stepper(seconds)
    base = embedded.NAME
    common = [
        f"run.root={config.run.root}",
        f"run.name={config.run.name}",
        f"run.seed={config.run.seed}",
        f"run.report_to={config.run.report_to}",
        "run.overwrite=true",  # its own folder: a step whose inputs changed replaces the old one
    ]
    overrides = {
        "sft": [*config.sft.overrides, *common, f"model.name={base}"],
        "reward": [
            *config.reward.overrides,
            *common,
            f"model.name={folder / 'sft' / 'model'}",
            f"data.train={folder / 'rankings' / RANKINGS}",
        ],
        "ppo": [
            *config.ppo.overrides,
            *common,
            f"model.name={folder / 'sft' / 'model'}",
            f"reward_model={folder / 'reward' / 'model'}",
        ],
    }
    files = {"sft": config.sft.config, "reward": config.reward.config, "ppo": config.ppo.config}
    for stage, texts in overrides.items():
        launch.stage_config(stage, files[stage], texts)  # a wrong key shows now, not in an hour
    held = lock(folder)  # until this function ends
    with step("prepare"):
        load_tokenizer(base)
    with step("sft"):
        sft = launch.start_stage("sft", files["sft"], overrides["sft"]) / "model"
    with step("rankings"):
        labels = _rankings(config, folder / "rankings", str(sft))
    with step("reward"):
        reward = launch.start_stage("reward", files["reward"], overrides["reward"])
    with step("ppo"):
        ppo = launch.start_stage("ppo", files["ppo"], overrides["ppo"])
    with step("compare"):
        models = {"base": base, "sft": str(sft), "ppo": str(ppo / "model")}
        result = _comparison(config, folder / "compare", models, str(reward / "model"))
    summary = _summary(config, folder, result, labels, seconds)
    write_json(folder / "summary.json", summary)
    report = build_report(folder)
    print_table(result)
    total = sum(summary["seconds"].values())
    console.print(
        f"\nthe loop took {total / 60:.1f} min of work; everything is in {folder}", markup=False
    )
    console.print(f"open the report: {report.resolve().as_uri()}", markup=False)
    held.release()
    return folder


def _rankings(config: DemoConfig, folder: Path, sft: str) -> Labels:
    settings = config.labels
    known = digest(
        to_tree(settings),
        to_tree(config.sampling),
        config.run.seed,
        fingerprint(sft),
        RULES,
        _data_fingerprint(),
    )
    done = _reusable(folder, known)
    if done is not None:
        return Labels(**done)
    rows = _prompts("train", settings.prompts)
    labels = write_rankings(
        folder,
        rows,
        load_policy(ModelSettings(name=sft)),
        load_tokenizer(sft),
        _judge(),
        answers_per_prompt=settings.answers_per_prompt,
        label_noise=settings.noise,
        sampling=config.sampling,
        seed=config.run.seed,
    )
    _mark(folder, known, vars(labels))
    console.print(
        f"rankings: {labels.pairs} pairs of {labels.prompts} prompts, "
        f"{labels.noise:.1%} of them ordered wrongly",
        markup=False,
    )
    return labels


def _comparison(
    config: DemoConfig, folder: Path, models: dict[str, str], reward: str
) -> dict[str, Any]:
    path = folder / "comparison.json"
    sources = {name: fingerprint(source) for name, source in {**models, "reward": reward}.items()}
    known = digest(
        to_tree(config.compare),
        to_tree(config.sampling),
        config.run.seed,
        sources,
        RULES,
        _data_fingerprint(),
    )
    done = _reusable(folder, known, path)
    if done is not None:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result
    rows = _prompts("test", config.compare.prompts)
    plan = Plan(
        models=models,
        reference="sft",
        reward_model=reward,
        best_of=tuple(config.compare.best_of),
        sampling=config.sampling,
        seed=config.run.seed,
    )
    result = compare(plan, rows, _judge())
    shutil.rmtree(folder, ignore_errors=True)
    write_comparison(result, path)
    _mark(folder, known, {"prompts": len(rows)}, path)
    return result


def _summary(
    config: DemoConfig,
    folder: Path,
    result: dict[str, Any],
    labels: Labels,
    seconds: dict[str, float],
) -> dict[str, Any]:
    stages = {
        stage: json.loads((folder / stage / "summary.json").read_text())
        for stage in ("sft", "reward", "ppo")
    }
    old = _old_seconds(folder)
    # A reused step says how long it took when it ran.
    spent = {
        name: old.get(name, value) if value < 1.0 else value for name, value in seconds.items()
    }
    spent |= {stage: stages[stage]["seconds"] for stage in stages}
    table = result["table"]["sampled"]

    def rates(decoding: str) -> dict[str, Any]:
        return {
            f"{row['a']}_vs_{row['b']}": {
                "rate": row["win_rate"],
                "ci95": row["win_rate_ci95"],
                "gold_difference": row["gold"],
                "gold_ci95": row["ci95"],
            }
            for row in result["differences"]
            if row["decoding"] == decoding
            and (row["a"], row["b"]) in {("ppo", "base"), ("ppo", "sft"), ("sft", "base")}
        }

    greedy = result["table"]["greedy"]
    return {
        "model": embedded.NAME,
        "seconds": {name: round(value, 1) for name, value in spent.items()},
        "labels": {"pairs": labels.pairs, "noise": labels.noise, "gold": labels.gold},
        "reward": {
            key: stages["reward"][key]
            for key in ("accuracy", "ci95", "length_only_accuracy", "ece", "pairs")
        },
        "ppo": {
            key: stages["ppo"][key] for key in ("episodes", "kl", "scores_first", "scores_last")
        },
        "held_out": {
            "n": len(result["prompts"]),
            "gold": {name: row["gold"] for name, row in table.items()},
            "win_rate": rates("sampled"),
            "missing_eos": {name: row["missing_eos"] for name, row in table.items()},
            "mean_tokens": {name: row["mean_tokens"] for name, row in table.items()},
            "distinct_2": {name: row["distinct_2"] for name, row in table.items()},
            "kl": {name: row["kl"] for name, row in table.items()},
        },
        "held_out_greedy": {
            "gold": {name: row["gold"] for name, row in greedy.items()},
            "win_rate": rates("greedy"),
            "missing_eos": {name: row["missing_eos"] for name, row in greedy.items()},
            "distinct_2": {name: row["distinct_2"] for name, row in greedy.items()},
        },
        "versions": versions(),
        "git_commit": git_commit(),
        "seed": config.run.seed,
    }


def _judge() -> GoldJudge:
    return GoldJudge(load_policy(ModelSettings(name=embedded.NAME)), load_tokenizer(embedded.NAME))


def _prompts(split: str, count: int) -> list[dict[str, Any]]:
    """Return a split's first prompts; categories take turns in the file, so any n cover them."""
    return list(load("demo:prompts", ("prompt_only",), split=split).rows[:count])


def _data_fingerprint() -> str:
    folder = Path(__file__).parent / "demo_data"
    return digest({path.name: sha256(path) for path in sorted(folder.glob("*.jsonl"))})


def _reusable(folder: Path, known: str, path: Path | None = None) -> dict[str, Any] | None:
    """Return what a finished step recorded, if its inputs are the same and its files are whole."""
    marker = folder.with_suffix(".done.json")
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
        if record["known"] != known:
            return None
        if path is not None:
            return record["result"] if sha256(path) == record["sha256"] else None
        result: dict[str, Any] | None = record["result"] if damage(folder) is None else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result


def _mark(folder: Path, known: str, result: dict[str, Any], path: Path | None = None) -> None:
    record = {"known": known, "result": result}
    if path is not None:
        record["sha256"] = sha256(path)
    write_json(folder.with_suffix(".done.json"), record)


def _old_seconds(folder: Path) -> dict[str, float]:
    try:
        seconds: dict[str, float] = json.loads(
            (folder / "summary.json").read_text(encoding="utf-8")
        )["seconds"]
    except (OSError, ValueError, KeyError):
        return {}
    return seconds


class _Stepper:
    """Times the steps of the demo and announces them."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.name, self.start = seconds, "", 0.0

    def __call__(self, name: str) -> "_Stepper":
        self.name = name
        return self

    def __enter__(self) -> None:
        console.print(f"── {self.name} ──", style="bold")
        self.start = time.perf_counter()

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.seconds[self.name] = time.perf_counter() - self.start
        if kind is None:
            return
        if kind is UserError or kind is StageError:
            console.print(
                f"the demo stopped in '{self.name}'; the same command continues from here",
                markup=False,
            )

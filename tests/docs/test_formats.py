import ast
import json
import re
from pathlib import Path

import pytest

from tests.docs import ROOT, blocks, code, generator, listed, read, section
from workbench.config import load_config
from workbench.data.formats import COLUMNS, KINDS, check_row, detect_kind
from workbench.data.loading import load
from workbench.judge import Parts
from workbench.report.training import CURVES
from workbench.run import read_metrics

generate = generator()
PAGE = read("formats.md")
STAGES = ("sft", "reward", "ppo")
# TRL logs the first for mixtures of experts only, the second not on a single CPU process.
RARE = {"aux_loss", "eval_aux_loss", "entropy", "eval_entropy"}
WORDS = ("tar", "rain", "rice", "gulls", "lift", "tea", "bread", "gate")


@pytest.fixture(scope="module")
def ran(tiny_llama, tmp_path_factory) -> dict[str, Path]:
    """The run folder of each stage, trained on a few rows for one update."""
    root = tmp_path_factory.mktemp("formats")
    rows = {
        "sft": [{"prompt": f"Why {w}?", "completion": f"The {w} hums."} for w in WORDS],
        "reward": [
            {"prompt": f"Why {w}?", "chosen": f"The {w} hums.", "rejected": w, "category": w[:1]}
            for w in WORDS
        ],
        "ppo": [{"prompt": f"Why {w}?"} for w in WORDS],
    }
    own = {
        "sft": ["sft.epochs=1", "sft.batch_size=4", "sampling.max_new_tokens=2"],
        "reward": ["reward.batch_size=4"],
        "ppo": [
            f"reward_model={root}/runs/a/reward/model", "ppo.total_episodes=4", "ppo.batch_size=4",
            "ppo.num_mini_batches=1", "ppo.num_ppo_epochs=1", "rollout.max_new_tokens=2",
            "rollout.overlap=true",  # which logs more
        ],
    }  # fmt: skip
    folders = {}
    for stage in STAGES:
        data = root / f"{stage}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[stage]))
        texts = [
            f"run.root={root}/runs", "run.name=a", f"model.name={tiny_llama}",
            "model.precision=fp32", f"data.train={data}", "data.test_fraction=0.5", *own[stage],
        ]  # fmt: skip
        config = load_config(generate.config_class(stage), None, texts)
        folders[stage] = generate.launch.run_stage(stage, config)
    return folders


def keys(path: str, *functions: str) -> set[str]:
    """Return the keys of all dictionaries that some functions of a module write down."""
    tree = ast.parse((ROOT / path).read_text())
    found = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {
        key.value
        for name in functions
        for node in ast.walk(found[name])
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_row_has_an_example_that_is_accepted(kind, tmp_path):
    lines = "".join(blocks(section(PAGE, f"### {kind}"), "jsonl")).splitlines()
    assert lines
    for number, line in enumerate(lines):
        row = json.loads(line)
        assert detect_kind(row) == kind
        assert check_row(row, kind)
        file = tmp_path / f"{number}.jsonl"
        file.write_text(line)
        assert load(str(file), (kind,)).skipped == ()


def test_the_columns_of_every_kind_are_listed():
    table = {
        cells[1].strip("` "): cells[2].replace("`", "").strip()
        for cells in (row.split("|") for row in PAGE.splitlines() if row.startswith("| `"))
        if cells[1].strip("` ") in KINDS
    }
    assert table == COLUMNS


def test_the_columns_of_a_ranking_are_those_the_demo_writes():
    text = section(PAGE, "### ranking")
    row = json.loads("".join(blocks(text, "jsonl")))
    assert set(row) == keys("workbench/labelling.py", "write_rankings")
    assert {"completions", "ranks", "finished", "category", "gold"} <= listed(text)


def test_flags_and_weights_of_pairs_are_those_the_reward_stage_reads():
    source = (ROOT / "reward/data.py").read_text()
    columns = {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"finished|\w+_finished|margin|weight", node.value)
    }
    documented = listed(section(PAGE, "### preference")) | listed(section(PAGE, "### ranking"))
    assert columns <= documented


@pytest.mark.parametrize("stage", STAGES)
def test_every_metric_is_documented(ran, stage):
    logged = {name for row in read_metrics(ran[stage] / "metrics.jsonl") for name in row}
    heading = "### ppo" if stage == "ppo" else "### sft and reward"
    assert logged - {"step"} <= listed(section(PAGE, heading))
    drawn = {name for _, _, *names in CURVES[stage] for name in names if name}
    assert drawn <= listed(section(PAGE, heading))


def test_no_metric_is_documented_that_is_not_logged(ran):
    logged = {
        stage: {name for row in read_metrics(ran[stage] / "metrics.jsonl") for name in row}
        for stage in STAGES
    }
    trained = listed(section(PAGE, "### sft and reward"))
    assert trained - RARE <= logged["sft"] | logged["reward"]
    # The judge needs the real base model; its metric is logged by the same module.
    assert '"eval/gold"' in (ROOT / "ppo/evaluation.py").read_text()
    assert listed(section(PAGE, "### ppo")) - {"eval/gold"} <= logged["ppo"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_result_of_a_stage_is_documented(ran, stage):
    written = set(json.loads((ran[stage] / "summary.json").read_text()))
    documented = listed(section(PAGE, f"### {stage} summary"))
    assert written - {"seconds"} == documented - {"eval/gold"}
    assert "`seconds`" in section(PAGE, "## Summaries")


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_of_a_stage_is_documented(ran, stage):
    text = section(PAGE, "## Files of a run")
    documented = {name.partition("/")[0] for name in listed(text)}
    assert {path.name for path in ran[stage].iterdir()} <= documented
    model = {path.name for path in (ran[stage] / "model").iterdir()}
    assert {"README.md", "manifest.json", "config.json"} <= model


def test_samples_have_the_documented_columns(ran):
    (row,) = (line for line in PAGE.splitlines() if line.startswith("| `samples/step_"))
    for stage in ("sft", "ppo"):
        table = sorted((ran[stage] / "samples").iterdir())[0]
        assert re.fullmatch(r"step_\d{6}\.jsonl", table.name)
        columns = set(json.loads(table.read_text().splitlines()[0]))
        assert columns <= code(row)


def test_the_environment_is_documented(ran):
    written = json.loads((ran["sft"] / "environment.json").read_text())
    text = section(PAGE, "### environment.json")
    assert set(written) == listed(text)
    assert set(written["identity"]) <= code(text)


@pytest.mark.parametrize("name", ["manifest.json", "done.json"])
def test_seals_look_as_shown(ran, name):
    (shown,) = blocks(section(PAGE, f"### {name}"), "json")
    path = ran["sft"] / ("model" if name == "manifest.json" else "") / name
    example, real = json.loads(shown), json.loads(path.read_text())
    assert set(example) == set(real)
    entry, found = (next(iter(value["files"].values())) for value in (example, real))
    assert type(entry) is type(found)
    if isinstance(found, dict):
        assert set(entry) == set(found)


def test_the_demo_s_summary_is_documented():
    written = keys("workbench/demo.py", "_summary")
    assert {"held_out", "win_rate", "distinct_2", "seed"} <= written
    # Stages by name, and the keys it takes from their summaries.
    assert written <= code(section(PAGE, "### The demo's summary"))
    assert keys("workbench/demo.py", "_mark") <= code(section(PAGE, "## Files of a run"))


def test_comparisons_are_documented():
    functions = ("_result", "_answer_rows", "_table_row", "_difference")
    written = keys("workbench/compare.py", *functions) | set(Parts.__dataclass_fields__)
    assert {"prompts", "differences", "p_sign", "relevance"} <= written
    assert written <= code(section(PAGE, "## Comparisons"))

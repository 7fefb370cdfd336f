import re

from tests.docs import blocks, generator, listed, read, section
from workbench import judge
from workbench.config import settings
from workbench.data import duplicates, load
from workbench.data.loading import _SPLIT_NAMES

generate = generator()
PAGE = read("data.md")


def test_the_demo_s_categories_and_counts():
    text = section(PAGE, "## The demo's data")
    prompts = load("demo:prompts", ("prompt_only",)).rows
    demonstrations = load("demo:demonstrations", ("prompt_completion",)).rows
    assert listed(text) == {row["category"] for row in prompts}
    counts = [sum(row["split"] == split for row in prompts) for split in ("train", "dev", "test")]
    assert sum(counts) == len(prompts)
    assert f"| all | {' | '.join(map(str, counts))} | {len(demonstrations)} |" in text


def test_the_judge_s_weights_and_limits():
    text = section(PAGE, "## The gold judge")
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (.*) \|$", text, re.MULTILINE)
    weights = {name: float(weight) for name, weight, _ in rows}
    assert weights == vars(judge.WEIGHTS)
    said = {name: re.sub("−", "-", meaning) for name, _, meaning in rows}
    for part, numbers in {
        "relevance": judge.RELEVANCE_RANGE,
        "brevity": (judge.MIN_WORDS, judge.MAX_WORDS, judge.MAX_SENTENCES),
        "fluency": judge.FLUENCY_RANGE,
    }.items():
        found = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", said[part])]
        assert set(map(float, numbers)) <= set(found), part


def test_the_page_says_that_the_labels_are_synthetic():
    assert "**Its labels are synthetic.**" in section(PAGE, "## The gold judge")


def test_every_stage_s_data_settings_are_named():
    text = section(PAGE, "## Your own data")
    rows = re.findall(r"^\| (\w+) \| `([\w.]+)` \|", text, re.MULTILINE)
    assert {stage for stage, _ in rows} == set(generate.launch.STAGES)
    for stage, key in rows:
        assert key in {setting.key for setting in settings(generate.config_class(stage))}


def test_split_names_and_threshold():
    assert {"train", "validation", "dev", "heldout", "test"} <= set(_SPLIT_NAMES)
    assert f"at least {duplicates.THRESHOLD} of their word pairs" in PAGE


def test_the_checks_shown_are_real():
    shown = [block.splitlines()[0] for block in blocks(PAGE, "console")]
    assert "$ rlhf data check demo:prompts" in shown
    assert any("--skip-bad-rows" in line for line in shown)

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from prompts import gate, pytest_plugin, runner, search_result
from prompts.assertions import KINDS, ItemAssertions
from prompts.baselines import _File
from prompts.comparison import LEAST_ITEMS, MOST_UNPARSED, MOST_UNSTABLE
from prompts.items import load_items
from prompts.library import Library
from prompts.metrics import METRICS
from prompts.results import Record, Row
from prompts.suite import SUITES, SuiteFile, load_suite
from prompts.summary import Summary
from prompts.template import Strategy, Template, load_template
from prompts.verdicts import VERDICTS, Outcome
from prompts.versions import Move
from tests.docs import ROOT, blocks, code, generator, listed, read, section

generate = generator()
PAGE, FORMATS = read("prompts.md"), read("formats.md")
FILES = dict(generate.EXAMPLE.findall(PAGE))


def dictionary_keys(path: str, *functions: str) -> set[str]:
    """Return the keys of all dictionaries that some functions of a module write down."""
    tree = ast.parse((ROOT / path).read_text())
    return {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in functions
        for inner in ast.walk(node)
        if isinstance(inner, ast.Dict)
        for key in inner.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }


def fields(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


@pytest.fixture
def example(tmp_path):
    """The page's example files in a folder."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_example_is_a_suite_that_can_be_run(example):
    template = load_template(example / "capital.yaml")
    suite = load_suite(example / "capitals.yaml", Library())
    assert [entry.template for entry in suite.entries] == [template]
    items = load_items(suite.data)
    assert [len(prompt) for prompt in runner.render_all(template, items).messages] == [2, 2, 2]
    (own,) = (item for item in items if "assert" in item.fields)
    assert ItemAssertions.model_validate({"assert": own.fields["assert"]}).assertions[0].negated


@pytest.mark.parametrize(("kind", "model"), [("template", Template), ("suite", SuiteFile)])
def test_every_key_of_the_files_is_documented_and_says_what_it_means(kind, model):
    schema = model.json_schema()
    text = section(PAGE, f"## The {kind} file")
    documented = listed(text)
    for part in (schema, *schema["$defs"].values()):
        assert set(part["properties"]) <= documented
        for name, value in part["properties"].items():
            tag = name == "type" and {"const", "enum"} & set(value)
            assert tag or value.get("description") or "$ref" in value, f"{part['title']}.{name}"


def test_strategies_metrics_assertions_and_verdicts_are_all_explained():
    assert set(get_args(Strategy)) <= listed(section(PAGE, "## The template file"))
    assert set(METRICS) | {"acc", "acc_norm"} == listed(section(PAGE, "### Metrics"))
    for name, metric in METRICS.items():
        assert f"| `{name}` | {metric.description} |" in PAGE
    assert set(KINDS) == listed(section(PAGE, "### Assertions"))
    assert set(VERDICTS) == listed(section(PAGE, "## How a comparison decides"))


def test_the_limits_of_the_comparison_are_those_of_the_code():
    text = section(PAGE, "## How a comparison decides")
    assert f"fewer than {LEAST_ITEMS} items" in text
    assert f"more than {100 * MOST_UNSTABLE:.0f} % of the items" in text
    assert MOST_UNPARSED == 0.5
    assert "more than half of its answers could not be read" in text
    assert gate.MOST_REPEATS >= 2


def test_the_options_of_the_pytest_plugin_are_documented(pytestconfig):
    source = Path(pytest_plugin.__file__).read_text()
    options = set(re.findall(r'"(--prompt-\w+)"', source))
    documented = {name.split()[0] for name in listed(section(PAGE, "### As a test suite"))}
    assert documented == options
    for block in blocks(section(PAGE, "### As a test suite"), "bash"):
        assert set(re.findall(r"--prompt-\w+", block)) <= options


def test_python_examples_run_as_shown(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(PAGE, "python"):
        exec(compile(block, "prompts.md", "exec"), {})
    assert "recall@3" in capsys.readouterr().out


def test_starter_suites_named_in_commands_exist():
    known = {path.stem for path in SUITES.glob("*.yaml")}
    for line in "\n".join([*blocks(PAGE, "bash"), *blocks(read("cli.md"), "bash")]).splitlines():
        if (match := re.match(r"rlhf prompts run (\S+)", line)) and "." not in match[1]:
            assert match[1] in known, line
        if match := re.search(r"--template (\S+)|prompts (?:render|search|diff) (\w+/\w+)", line):
            assert (match[1] or match[2]) in Library().names(), line


def test_the_keys_of_results_are_documented():
    text = section(FORMATS, "### results.jsonl")
    assert set(Row.model_fields) == listed(text)
    assert {"text", "logprob", "bytes"} <= set(re.findall(r"\w+", " ".join(code(text))))


def test_the_keys_of_run_json_are_documented():
    text = section(FORMATS, "### run.json")
    written = dictionary_keys("prompts/runner.py", "run_suite")
    inner = {"path", "sha256", "items", "version", "excluded_exemplars", "template", "model"}
    assert written - inner == listed(text)
    assert set(Record.model_fields) <= listed(text)
    assert dictionary_keys("prompts/runner.py", "_described") <= code(text)


def test_the_keys_of_summaries_comparisons_baselines_and_searches_are_documented():
    assert fields(Summary) == listed(section(FORMATS, "### summary.json"))
    text = section(FORMATS, "### Prompt comparisons")
    written = dictionary_keys("prompts/verdicts.py", "as_dict", "_cell_dict")
    assert written <= code(text)
    assert fields(Outcome) <= listed(text)
    assert set(_File.model_fields) == listed(section(FORMATS, "### Baseline files"))
    text = section(FORMATS, "### search.json")
    assert dictionary_keys(search_result.__file__, "as_dict") == listed(text)
    assert dictionary_keys(search_result.__file__, "_trial_dict") <= code(text)


def test_the_lines_of_the_history_are_documented():
    text = section(FORMATS, "### history.jsonl")
    assert listed(text) == {"event", "file", "version", "label"}
    assert fields(Move) <= code(text)


def test_the_files_of_a_run_are_documented():
    text = section(FORMATS, "### Files of a prompt run")
    names = {"results.jsonl", "run.json", "manifest.json", "summary.json", "report.md",
             "report.html", "junit.xml", "comparison.json"}  # fmt: skip
    assert listed(text) == names


def test_items_as_shown_can_be_loaded(tmp_path):
    (block,) = blocks(section(FORMATS, "### Items and pools"), "jsonl")
    (tmp_path / "items.jsonl").write_text(block)
    items = load_items(tmp_path / "items.jsonl")
    assert [item.id for item in items] == [json.loads(line)["id"] for line in block.splitlines()]


def test_yaml_examples_are_yaml():
    assert len(blocks(PAGE, "yaml")) == 3
    for block in blocks(PAGE, "yaml"):
        assert yaml.safe_load(block)

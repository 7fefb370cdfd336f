from pathlib import Path

import pytest

from prompts.items import Item
from prompts.library import Library
from prompts.suite import SUITES, Suite, SuiteFile, find_suite, load_suite, targets_of
from workbench.errors import UserError

TEMPLATE = """
name: {name}
strategy: zero_shot
template: "{{{{ question }}}}"
variables:
  question: string
{more}
"""
SUITE = """
suite: sums
templates:
  - sums/plain
  - sums/ranked
data: items.jsonl
"""


@pytest.fixture
def folder(tmp_path):
    """A library of three templates, and one row of data beside the suite file."""
    write_template(tmp_path, "sums/plain", "metrics: [f1, exact_match]")
    write_template(tmp_path, "sums/ranked", 'scoring: likelihood\nchoices: ["3", "4"]')
    write_template(tmp_path, "sums/rouge", "metrics: [rougeL]")
    (tmp_path / "items.jsonl").write_text('{"id": "a", "question": "1 + 2?", "answer": 3}\n')
    return tmp_path


def write_template(folder: Path, name: str, more: str = "") -> None:
    path = folder / "library" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE.format(name=name, more=more))


def load(folder: Path, text: str = SUITE, more: str = "") -> Suite:
    path = folder / "sums.yaml"
    path.write_text(text.lstrip() + more)
    return load_suite(path, Library(folder / "library"))


def test_a_suite_with_its_defaults(folder):
    suite = load(folder)
    settings = suite.settings
    assert suite.name == "sums"
    assert suite.data == folder / "items.jsonl"
    assert (settings.repeats, settings.seed, settings.limit) == (1, 0, None)
    assert (settings.target, settings.pass_at, settings.assertion_threshold) == ("answer", 1.0, 1.0)
    assert settings.assertions == []
    plain, ranked = suite.entries
    assert (plain.name, plain.template.name) == ("sums/plain", "sums/plain")
    assert (plain.metrics, plain.score) == (("f1", "exact_match"), "f1")
    assert (ranked.metrics, ranked.score) == (("acc", "acc_norm"), "acc_norm")
    assert suite.thresholds == {
        name: {"pass_rate": 0.0, "unparsed_rate": 1.0} for name in ("sums/plain", "sums/ranked")
    }


def test_metrics_and_the_primary_one_of_the_suite_go_before_those_of_the_templates(folder):
    plain, ranked = load(folder, more="metrics: [contains, bleu]\n").entries
    assert (plain.metrics, plain.score) == (("contains", "bleu"), "contains")
    assert (ranked.metrics, ranked.score) == (("acc", "acc_norm"), "acc_norm")
    plain, _ = load(folder, more="metrics: [contains, bleu]\nscore: bleu\n").entries
    assert plain.score == "bleu"
    plain, ranked = load(folder, more="metrics: [contains, acc]\nscore: acc\n").entries
    assert (plain.metrics, plain.score, ranked.score) == (("contains",), "contains", "acc")
    plain, _ = load(folder, more="score: bleu\n").entries  # templates keep their own beside it
    assert (plain.metrics, plain.score) == (("f1", "exact_match", "bleu"), "bleu")


def test_without_metrics_assertions_alone_decide(folder):
    more = "metrics: []\nassertions: [{type: finished, weight: 2.0}]\n"
    suite = load(folder, more=more)
    assert (suite.entries[0].metrics, suite.entries[0].score) == ((), None)
    assert suite.settings.assertions[0].weight == 2.0


def test_thresholds_of_a_template_go_before_those_of_all(folder):
    more = "thresholds: {pass_rate: 0.3, unparsed_rate: 0.2, sums/ranked: {pass_rate: 0.6}}\n"
    assert load(folder, more=more).thresholds == {
        "sums/plain": {"pass_rate": 0.3, "unparsed_rate": 0.2},
        "sums/ranked": {"pass_rate": 0.6, "unparsed_rate": 0.2},
    }


def test_templates_may_be_files_relative_to_the_suite(folder):
    suite = load(folder, SUITE.replace("sums/plain", "library/sums/rouge.yaml"))
    assert suite.entries[0].name == "sums/rouge"
    assert suite.entries[0].metrics == ("rougeL",)


def test_two_versions_of_a_template_stand_side_by_side_under_names_of_their_own(folder):
    library = Library(folder / "library")
    library.history.record(library.get("sums/plain"))
    write_template(folder, "sums/plain", "metrics: [bleu]")
    old, new = load(folder, SUITE.replace("sums/ranked", "sums/plain@latest")).entries[::-1]
    assert (old.name, old.template.name, old.score) == ("sums/plain@latest", "sums/plain", "f1")
    assert (new.name, new.score) == ("sums/plain", "bleu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SUITE.replace("suite: sums", "suite: a/b"), r"sums.yaml:1: suite: "),
        (SUITE.replace("suite: sums\n", ""), r"sums.yaml:1: suite: is missing"),
        (SUITE + "repeat: 3\n", r"sums.yaml:6: repeat: unknown key; did you mean 'repeats'"),
        (SUITE + "repeats: 0\n", r"sums.yaml:6: repeats: must be at least 1"),
        (SUITE + "repeats: '2'\n", r"sums.yaml:6: repeats: "),
        (SUITE + "limit: 0\n", r"sums.yaml:6: limit: must be at least 1"),
        (SUITE + "pass_at: 1.5\n", r"sums.yaml:6: pass_at: must be at most 1"),
        (SUITE + "metrics: [f2]\n", r"sums.yaml:6: metrics.0: unknown metric; did you mean 'f1'"),
        (SUITE + "metrics: [f1]\nscore: bleu\n", r"sums.yaml:7: score: is not among the metrics"),
        (SUITE + "score: blue\n", r"sums.yaml:6: score: unknown metric; did you mean 'bleu'"),
        (SUITE + "target: null\n", r"sums.yaml:6: target: is null, but f1 needs a target"),
        (SUITE.replace("sums/plain", "sums/plane"), r"sums.yaml:3: templates.0: .*'sums/plain'"),
        (
            SUITE.replace("sums/ranked", "sums/plain"),
            r"sums.yaml:4: templates.1: 'sums/plain' stan",
        ),
        (SUITE.replace("items.jsonl", "rows.jsonl"), r"sums.yaml:5: data: no such file: .*rows"),
        (SUITE + "thresholds: {pass_rat: 0.5}\n", r"sums.yaml:6: thresholds.pass_rat: unknown key"),
        (SUITE + "thresholds:\n  pass_rate: 2\n", r"sums.yaml:7: thresholds.pass_rate: "),
        (
            SUITE + "thresholds:\n  sums/plane: {pass_rate: 0.5}\n",
            r"sums.yaml:7: thresholds.sums/plane: no such template; did you mean 'sums/plain'",
        ),
        (
            SUITE + "assertions:\n  - {type: finished}\n  - {type: equal, value: x}\n",
            r"sums.yaml:8: assertions.1.type: unknown assertion 'equal'; did you mean 'equals'",
        ),
        (
            SUITE + "assertions:\n  - {type: judge, template: sums/judg, model: base}\n",
            r"sums.yaml:7: assertions.0.template: ",
        ),
        ("suite: sums\ntemplates: []\ndata: items.jsonl\n", r"sums.yaml:2: templates: "),
    ],
)
def test_a_wrong_suite_names_file_line_and_key(folder, text, message):
    with pytest.raises(UserError, match=message):
        load(folder, text)


def test_an_unknown_metric_of_a_template_is_found_when_the_suite_is_read(folder):
    write_template(folder, "sums/plain", "metrics: [rougel]")
    with pytest.raises(UserError, match=r"unknown metric 'rougel'; did you mean 'rougeL'"):
        load(folder)


def test_targets_are_texts_and_lists_mean_any(folder):
    suite = load(folder)
    values = ["x", 3, 2.5, True, ["a", 1]]
    items = [Item(str(n), {"answer": value}, n + 1) for n, value in enumerate(values)]
    assert targets_of(suite, items, suite.data) == [["x"], ["3"], ["2.5"], ["true"], ["a", "1"]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"anwser": "x"}, r"items.jsonl:9: item i has no field 'answer'.*did you mean 'anwser'"),
        ({"answer": None}, r"items.jsonl:9: answer is None"),
        ({"answer": []}, r"items.jsonl:9: answer is \[\]"),
        ({"answer": [{"a": 1}]}, r"items.jsonl:9: answer is "),
    ],
)
def test_a_missing_or_odd_target_names_file_and_line(folder, fields, message):
    suite = load(folder)
    with pytest.raises(UserError, match=message):
        targets_of(suite, [Item("i", fields, 9)], suite.data)


def test_a_suite_without_target_has_none(folder):
    suite = load(folder, more="target: null\nmetrics: [json_valid]\n")
    assert targets_of(suite, [Item("i", {}, 1)], suite.data) == [[]]


def test_a_suite_is_found_by_path_or_by_name(folder, monkeypatch):
    load(folder)
    monkeypatch.chdir(folder)  # not beside the project's own prompts/
    assert find_suite(folder / "sums.yaml") == folder / "sums.yaml"
    with pytest.raises(UserError, match="nowhere: no such suite file"):
        find_suite("nowhere")
    for path in SUITES.glob("*.yaml"):
        assert find_suite(path.stem) == find_suite(f"prompts/suites/{path.name}") == path


def test_the_schema_knows_the_limits_of_every_cell_and_of_one_template():
    schema = SuiteFile.json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"suite", "templates", "data"}
    thresholds = schema["properties"]["thresholds"]
    assert set(thresholds["properties"]) == {"pass_rate", "unparsed_rate"}
    assert thresholds["properties"]["pass_rate"]["type"] == "number"
    assert thresholds["additionalProperties"] == {"$ref": "#/$defs/Thresholds"}

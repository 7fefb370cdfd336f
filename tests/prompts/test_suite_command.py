import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from prompts.baselines import load_baseline
from tests.prompts.conftest import only_line
from tests.prompts.synthetic import row, write_run

ITEMS = 20


def answers(passed, *, template="arithmetic/few_shot", repeats=1, **changes):
    """Rows of twenty items, the first `passed` of which pass in all repeats."""
    return [
        row(f"a{k:02d}", k < passed, template=template, repeat=repeat, **changes)
        for k in range(ITEMS)
        for repeat in range(repeats)
    ]


def options(home, tiny, *more):
    """The options of a run on a tiny model with answers known to nobody else."""
    return (
        "--models", f"tiny={tiny}", "--library", home / "library", "--cache", home / "known.sqlite",
        "--precision", "fp32", "--out", home / "out", *more,
    )  # fmt: skip


def rows_of(folder: Path):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_run_prints_a_row_per_cell_and_writes_every_report(rlhf, home, tiny_llama):
    code, out, err = rlhf("prompts", "run", "gulls.yaml", *options(home, tiny_llama))
    assert code == 0
    head, *lines = [flat(line) for line in out.splitlines() if line]
    assert head == "items passed (95 %) strict/flex unparsed tok/s p50/p95 s"
    assert (lines[0], lines[2]) == ("gulls/greedy", "gulls/ranked")
    assert all(line.startswith("tiny 12 ") for line in (lines[1], lines[3]))
    assert lines[4] == "2 cells measured, and no threshold is missed."
    assert "48 answers generated, 0 from the cache, " in err  # 12 and 3 choices of 12
    assert err.endswith(f"results and report.html in {home / 'out'}\n")
    names = {"results.jsonl", "run.json", "summary.json", "report.md", "report.html", "junit.xml"}
    assert names <= {path.name for path in (home / "out").iterdir()}
    cells = json.loads((home / "out" / "summary.json").read_text())["cells"]
    assert [(cell["template"], cell["n"]) for cell in cells] == [
        ("gulls/greedy", 12), ("gulls/ranked", 12),
    ]  # fmt: skip
    assert f"{100 * cells[1]['pass_rate']['value']:.0f}\u00a0%" in out
    # Known answers are not generated again.
    _, _, err = rlhf("prompts", "run", "gulls.yaml", *options(home, tiny_llama))
    assert "0 answers generated, 48 from the cache, " in err


def test_the_options_of_run_reach_it(rlhf, home, tiny_llama):
    more = home / "more.jsonl"
    more.write_text((home / "items.jsonl").read_text().replace("gulls", "terns"))
    path = home / "gulls.yaml"
    path.write_text(path.read_text().replace("gulls/ranked", "gulls/sampled"))
    words = options(
        home, tiny_llama, "--template", "gulls/sampled", "--limit", "3", "--repeats", "2",
        "--seed", "5", "--data", more, "--batch-size", "2",
    )  # fmt: skip
    code, out, _ = rlhf("prompts", "run", path, *words)
    assert code == 0
    assert "3×2" in out
    rows = rows_of(home / "out")
    assert [(r["template"], r["item"], r["repeat"]) for r in rows] == [
        ("gulls/sampled", f"i{n}", repeat) for n in range(3) for repeat in range(2)
    ]
    record = json.loads((home / "out" / "run.json").read_text())
    assert (record["seed"], record["repeats"], record["batch_size"]) == (5, 2, 2)
    assert record["data"]["path"] == str(more)
    assert record["models"]["tiny"]["dtype"] == "float32"


def test_run_maps_foreign_data_and_takes_another_target(rlhf, home, tiny_llama):
    (home / "foreign.jsonl").write_text('{"prompt": [{"content": "How many?"}], "gold": "12"}\n')
    words = options(
        home, tiny_llama, "--data", "foreign.jsonl", "--field", "question=prompt[0].content",
        "--field", "options=[gold, 'none']", "--target", "gold",
    )  # fmt: skip
    code, _, _ = rlhf("prompts", "run", "gulls.yaml", *words)
    assert code == 0
    greedy, ranked = rows_of(home / "out")
    assert greedy["target"] == ranked["target"] == ["12"]
    assert [choice["text"] for choice in ranked["choices"]] == ["12", "none"]
    record = json.loads((home / "out" / "run.json").read_text())
    assert record["fields"]["options"] == "[gold, 'none']"
    code, _, err = rlhf("prompts", "run", "gulls.yaml", *words, "--field", "x=gold[")
    assert code == 2
    assert only_line(err).startswith("foreign.jsonl:1: field 'x=gold[': ")


def test_several_models_and_no_cache(rlhf, home, tiny_llama, tiny_gpt2):
    words = ["--models", f"a={tiny_llama},b={tiny_gpt2}", "--no-cache", "--limit", "1"]
    library = ["--library", home / "library", "--precision", "fp32", "--template", "gulls/greedy"]
    for _ in range(2):
        code, out, err = rlhf("prompts", "run", "gulls.yaml", *words, *library)
        assert code == 0
        assert "2 answers generated, 0 from the cache" in err
    assert [flat(line).split()[0] for line in out.splitlines()[1:4]] == ["gulls/greedy", "a", "b"]
    (folder, *_) = (home / "runs" / "prompts").iterdir()
    assert folder.name.startswith("gulls-20")


def test_a_missed_threshold_is_exit_code_1(rlhf, home, tiny_llama):
    path = home / "gulls.yaml"
    path.write_text(path.read_text() + "thresholds: {gulls/greedy: {pass_rate: 1.0}}\n")
    code, out, _ = rlhf("prompts", "run", path, *options(home, tiny_llama))
    assert code == 1
    assert "gulls/greedy with tiny: pass rate" in out
    assert "is below the threshold 100.0 %." in out
    assert "gulls/ranked with tiny:" not in out
    case, other = ET.fromstring((home / "out" / "junit.xml").read_text()).iter("testcase")
    assert case.find("failure") is not None
    assert other.find("failure") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gull.yaml"], "gull.yaml: no such suite file; "),
        (["gulls.yaml", "--template", "gulls/greed"],
         "--template gulls/greed: not in suite gulls; did you mean 'gulls/greedy'?"),
        (["gulls.yaml", "--models", "=x"], "--models: '=x' is not name=model, several joined"),
        (["gulls.yaml", "--models", "a=x,a=y"], "two models are called 'a'; write name=model"),
        (["gulls.yaml", "--models", "a=nowhere/model"], "nowhere/model"),
        (["gulls.yaml", "--cache", "x", "--no-cache"], "give either --cache FILE or --no-cache"),
        (["gulls.yaml", "--limit", "0"], "--limit"),
        (["gulls.yaml", "--precision", "fp8"], "--precision"),
        (["gulls.yaml", "--out", "gulls.yaml/run"], "gulls.yaml/run: cannot be written ("),
    ],
)  # fmt: skip
def test_mistakes_in_run_are_one_line(rlhf, home, words, message):
    code, out, err = rlhf("prompts", "run", *words, "--library", home / "library")
    assert (code, out) == (2, "")
    assert message in only_line(err)


def test_a_regression_is_found_named_and_exit_code_1(rlhf, home):
    write_run(home / "old", answers(18))
    write_run(home / "new", answers(5))
    assert rlhf("prompts", "bless", "old", "--by", "ann", "--note", "first")[0] == 0
    code, out, err = rlhf("prompts", "compare", "new")
    assert code == 1
    assert "▼ regression: arithmetic/few_shot with base, 20 items" in out
    assert "pass rate 90 % → 25 % −65.0 (" in flat(out)
    assert "arithmetic/few_shot with base, worse: a05, a06, a07, " in out
    assert " and 3 items more" in flat(out)
    assert "1 of 1 cell regressed" in out
    assert "The rate of false alarms was not measured" in out
    assert err == "report.html in new\n"
    found = json.loads((home / "new" / "comparison.json").read_text())
    assert found["regressed"] is True
    assert (found["cells"][0]["verdict"], found["cells"][0]["n"]) == ("regression", ITEMS)
    assert "failed" in (home / "new" / "report.md").read_text().splitlines()[0]


def test_equal_runs_pass_and_an_improvement_too(rlhf, home):
    write_run(home / "old", answers(5))
    write_run(home / "same", answers(5))
    write_run(home / "new", answers(18))
    code, out, _ = rlhf("prompts", "compare", "same", "--baseline", "old", "--out", "reports")
    assert code == 0
    assert "= no evidence" in out
    assert (home / "reports" / "junit.xml").is_file()
    assert not (home / "same" / "junit.xml").exists()
    code, out, _ = rlhf("prompts", "compare", "new", "--baseline", "old")
    assert code == 0
    assert "▲ improvement" in out
    assert "+65.0" in out


def test_a_threshold_fails_a_comparison_without_regression(rlhf, home):
    limits = {"arithmetic/few_shot": {"pass_rate": 0.5, "unparsed_rate": 1.0}}
    write_run(home / "old", answers(5))
    write_run(home / "new", answers(5), thresholds=limits)
    code, out, _ = rlhf("prompts", "compare", "new", "--baseline", "old")
    assert code == 1
    assert "pass rate 25.0 % is below the threshold 50.0 %" in out


def test_two_models_of_one_run_are_compared_with_each_other(rlhf, home):
    both = [*answers(18, model="base"), *answers(5, model="aligned")]
    write_run(home / "run", both)
    code, out, _ = rlhf("prompts", "compare", "run", "--against", "base")
    assert code == 1
    assert "arithmetic/few_shot with aligned (against base)" in out
    code, out, _ = rlhf("prompts", "compare", "run", "--against", "aligned", "--model", "base")
    assert code == 0
    assert "▲ improvement" in out


def test_alpha_decides(rlhf, home):
    write_run(home / "old", answers(12))
    write_run(home / "new", answers(6))  # six items lost, none gained: p = 2/64
    assert rlhf("prompts", "compare", "new", "--baseline", "old")[0] == 1
    assert rlhf("prompts", "compare", "new", "--baseline", "old", "--alpha", "0.01")[0] == 0


def test_false_alarms_are_measured_over_repeats_and_controls(rlhf, home):
    write_run(home / "old", answers(10, repeats=4))
    write_run(home / "new", answers(10, repeats=4))
    _, out, _ = rlhf("prompts", "compare", "new", "--baseline", "old")
    assert "this comparison found something in 0.0 % of cases" in flat(out)
    write_run(home / "other", answers(0), seed=1)
    write_run(home / "single", answers(20))
    words = ["single", "--baseline", "single", "--control", "other"]
    _, out, _ = rlhf("prompts", "compare", *words)
    assert "this comparison found something in 100.0 % of cases" in flat(out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["new"], "prompts/baselines/arithmetic/base.json: no such baseline; bless a run with "),
        (["new", "--baseline", "bas"], "prompts/baselines/arithmetic/bas.json: no such baseline"),
        (["new", "--baseline", "runs/x"], "runs/x: no such run; give the folder of a "),
        (["new", "--baselines", "mine"], "mine/arithmetic/base.json: no such baseline"),
        (["nowhere"], "nowhere: no such folder; give the folder of a `rlhf prompts run`"),
        (["library"], "library/run.json: not found; the run was not finished, or"),
        (["new", "--model", "x"], "new: no results of model 'x'; it has base"),
        (["new", "--against", "base"], "new: --against base sets one other model against it"),
        (["new", "--against", "base", "--baseline", "new"],
         "compare: give either --against MODEL or --baseline"),
        (["new", "--baseline", "new", "--control", "new"],
         "new: has seed 0, as new; make a control with another --seed"),
        (["new", "--baseline", "new", "--control", "trained"],
         "trained: model base is not the one of new"),
        (["new", "--baseline", "new", "--alpha", "2"], "alpha must lie between 0 and 1 (is 2)"),
    ],
)  # fmt: skip
def test_mistakes_in_compare_are_one_line(rlhf, home, words, message):
    write_run(home / "new", answers(10), models={"base": {"content_hash": "1"}})
    write_run(home / "trained", answers(10), models={"base": {"content_hash": "2"}}, seed=1)
    code, out, err = rlhf("prompts", "compare", *words)
    assert (code, out) == (2, "")
    assert message in only_line(err)


def test_bless_writes_the_baseline_of_a_model(rlhf, home, monkeypatch):
    write_run(home / "run", [*answers(3, model="a"), *answers(4, model="b")])
    code, _, err = rlhf("prompts", "bless", "run", "--by", "ann")
    assert (code, only_line(err)) == (2, "run: has the models a, b; name one with --model")
    code, _, err = rlhf("prompts", "bless", "run", "--model", "b")
    assert (code, only_line(err)) == (2, "bless: say who blesses the run, with --by NAME")
    monkeypatch.setenv("USER", "bea")
    words = ["--model", "b", "--baselines", "kept", "--note", "the release"]
    code, out, err = rlhf("prompts", "bless", "run", *words)
    assert (code, out, err) == (0, "", "blessed: kept/arithmetic/b.json\n")
    blessed = load_baseline(Path("kept"), "arithmetic", "b")
    assert (blessed.by, blessed.note) == ("bea", "the release")
    assert blessed.cells[0].passed.sum() == 4
    assert rlhf("prompts", "compare", "run", "--baselines", "kept")[0] == 0


def test_report_draws_again_what_run_has_drawn(rlhf, home):
    write_run(home / "run", answers(7))
    code, out, err = rlhf("prompts", "report", "run")
    assert (code, out, err) == (0, "", "report.html in run\n")
    drawn = {path.name for path in (home / "run").iterdir()}
    assert {"summary.json", "report.md", "report.html", "junit.xml"} <= drawn
    _, out, err = rlhf("prompts", "report", "run", "--markdown")
    assert (out, err) == ((home / "run" / "report.md").read_text(), "")
    assert rlhf("prompts", "report", "run", "--out", "elsewhere")[0] == 0
    assert (home / "elsewhere" / "report.md").read_text() == out
    code, _, err = rlhf("prompts", "report", "run", "--out", "x", "--markdown")
    assert (code, only_line(err)) == (2, "report: give either --out FOLDER or --markdown")
    code, _, err = rlhf("prompts", "report", "nowhere")
    assert (code, only_line(err).partition(":")[0]) == (2, "nowhere")

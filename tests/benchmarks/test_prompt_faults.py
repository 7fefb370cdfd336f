import json
import sys
from dataclasses import replace

import pytest

from benchmarks import prompt_faults
from benchmarks.prompt_faults import Found, cut, report
from prompts.library import Library
from prompts.suite import load_suite
from tests.prompts.synthetic import cell
from workbench.statistics import Estimate, Interval

TEMPLATE = """\
name: t/{name}
strategy: few_shot
system: "{system}"
template: "{{{{ question }}}}"
variables: {{question: string, answer: string}}
exemplars: {{pool: ../../pool.jsonl, k: 2}}
generation: {{max_new_tokens: 8}}
"""


@pytest.fixture
def home(tmp_path):
    """A suite of two templates, two exemplars and 24 items, of which any answer is right."""
    folder = tmp_path / "library" / "t"
    folder.mkdir(parents=True)
    for name, system in (("a", "Count. Be brief."), ("b", "Look.")):
        (folder / f"{name}.yaml").write_text(TEMPLATE.format(name=name, system=system))
    for file, count, word in (("items", 24, "gulls"), ("pool", 3, "wrens")):
        rows = [
            {"id": f"{file}{n}", "question": f"How many {word} sit on {n} gates?", "answer": str(n)}
            for n in range(count)
        ]
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "gulls.yaml").write_text(
        f"suite: gulls\ntemplates: [{folder}/a.yaml, {folder}/b.yaml]\ndata: items.jsonl\n"
        "metrics: [contains]\nassertions: [{type: not-contains, value: '####'}]\n"
    )
    return tmp_path


def run_main(monkeypatch, capsys, home, model, *more):
    out = home / "out"
    argv = ["prompt_faults.py", "--model", str(model), "--suites", str(home / "gulls.yaml"),
            "--out", str(out), *more]  # fmt: skip
    monkeypatch.setattr(sys, "argv", argv)
    prompt_faults.main()
    printed = capsys.readouterr().out
    assert (out / "faults.md").read_text() in printed
    return printed, json.loads((out / "faults.json").read_text())


def test_the_bench_runs_originals_and_faults_and_writes_its_tables(
    home, tiny_llama, monkeypatch, capsys
):
    faults = ["missing_system", "few_tokens", "wrong_pattern"]
    printed, numbers = run_main(
        monkeypatch, capsys, home, tiny_llama, "--faults", *faults, "--n", "12", "24", "60",
        "--seeds", "3",
    )  # fmt: skip
    found = numbers["faults"]
    # The suite has 24 items, so that nothing is said of 60.
    assert [(one["n"], one["template"], one["fault"]) for one in found] == [
        (n, f"t/{name}", fault) for n in (12, 24) for name in "ab" for fault in faults
    ]
    assert all(one["others"] == 0 for one in found)
    assert set(numbers["false_alarms"]["gulls"]) == {"12", "24"}
    assert numbers["false_alarms"]["gulls"]["24"]["n"] == 1  # three runs: one independent pair
    assert "| missing_system | Drop the system turn | " in printed
    assert "| t/b | wrong_pattern | " in printed
    assert "| gulls | 24 | " in printed
    rows = (home / "out" / "gulls" / "results.jsonl").read_text().splitlines()
    assert len(rows) == 24 * (2 + 6)


def test_templates_and_faults_may_be_chosen_and_must_be_known(
    home, tiny_llama, monkeypatch, capsys
):
    _, numbers = run_main(
        monkeypatch, capsys, home, tiny_llama, "--templates", "t/b", "--faults", "few_tokens",
        "--n", "10", "--seeds", "1",
    )  # fmt: skip
    assert [one["template"] for one in numbers["faults"]] == ["t/b"]
    assert numbers["false_alarms"] == {}
    for more, message in (
        (["--templates", "t/c"], r"gulls.yaml: lists none of t/c"),
        (["--faults", "fewer"], r"unknown fault among fewer; there are: missing_instruction, "),
    ):
        with pytest.raises(SystemExit, match=f"prompt_faults.py: error: .*{message}"):
            run_main(monkeypatch, capsys, home, tiny_llama, *more)


def test_a_likelihood_template_draws_nothing_and_has_no_false_alarms(home):
    library = Library()
    suite = load_suite(library.root.parent / "suites" / "commonsense.yaml", library)
    ranked = tuple(one for one in suite.entries if one.template.scoring == "likelihood")
    suite = replace(suite, entries=ranked)
    runs = prompt_faults.Runs("nowhere", home / "out", 1)
    assert prompt_faults.false_alarms(runs, suite, 3, 0.7, [20], 0.05) == {}


def test_a_cell_is_cut_to_its_first_items():
    whole = cell([1, 0, 1, 1], parsed=[1, 1, 0, 1])
    part = cut(whole, 3)
    assert part.items == whole.items[:3]
    assert part.passed.tolist() == [[True], [False], [True]]
    assert part.parsed.tolist() == [[True], [True], [False]]
    assert cut(whole, 9).items == whole.items


def test_the_report_counts_what_was_caught():
    def one(template, n, verdict, *, blind=False, p=0.2):
        return Found("s", template, "few_tokens", n, verdict, 0.5, 0.1, p, blind, 0)

    found = [
        one("s/a", 20, "no evidence"), one("s/b", 20, "no evidence", blind=True),
        one("s/c", 20, "insufficient data", p=None), one("s/d", 20, "improvement", p=0.0004),
        one("s/a", 40, "regression", p=0.01), one("s/b", 40, "regression", p=0.02),
        one("s/c", 40, "unreliable baseline"), one("s/d", 40, "improvement", p=0.0002),
    ]  # fmt: skip
    alarms = {"s": {20: Estimate(0.04, Interval(0.01, 0.12), 20)}}
    text = report(found, alarms, 0.05, 0.7).replace("\u00a0", " ")
    for line in (
        "| few_tokens | Allow an eighth of the new tokens | 0 of 4 (+1 better) "
        "| 2 of 4 (+1 better) |",
        "| all | found, worse or better | 1 of 4 | 3 of 4 |",
        "| s/a | few_tokens | 50 % → 10 % | no, 0.200 | **caught**, 0.010 |",
        "| s/b | few_tokens | 50 % → 10 % | blind | **caught**, 0.020 |",
        "| s/c | few_tokens | 50 % → 10 % | insufficient data | unreliable baseline |",
        "| s/d | few_tokens | 50 % → 10 % | seen (better), < 0.001 | seen (better), < 0.001 |",
        "| s | 20 | 4.0 % (1–12 %) |",
    ):
        assert line in text.splitlines()
    assert report(found, {}, 0.05, 0.7).endswith("False alarms were not measured.")

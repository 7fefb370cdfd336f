import json
from dataclasses import asdict

import pytest
from scipy import stats

from prompts.results import Cell, Row, read_record, read_results
from prompts.summary import SUMMARY, accuracies, summarise, summarise_run, wilson, write_summary
from tests.prompts.synthetic import full_cell, row, write_run


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (31, 40), (1, 1)])
def test_wilson_agrees_with_scipy(k, n):
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    found = wilson(k, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_hand():
    # Agresti & Coull's example of 0 in 25: z² / (25 + z²) = 3.8415 / 28.8415.
    assert wilson(0, 25).high == pytest.approx(3.8415 / 28.8415, abs=1e-5)
    assert wilson(2.5, 5).low == pytest.approx(1 - wilson(2.5, 5).high)


def test_a_cell_in_numbers():
    rows = [
        row(
            f"a{k:02d}",
            k < 6,
            parsed=k < 8,
            finished=k != 9,
            strict="12" if k < 4 else None,
            flexible=None if k >= 8 else "12" if k < 6 else "11",
            seconds=(k + 1) / 10,
            share=0.05,
            tokens=k,
            prompt_tokens=50,
        )
        for k in range(10)
    ]
    found = summarise(full_cell(rows))
    assert (found.n, found.repeats, found.passed) == (10, 1, 6)
    assert found.pass_rate.value == pytest.approx(0.6)
    assert found.pass_rate.ci95 == wilson(6, 10)
    assert found.score.value == pytest.approx(0.6)
    assert found.score.ci95.low < 0.6 < found.score.ci95.high
    assert (found.strict_accuracy, found.flexible_accuracy) == pytest.approx((0.4, 0.6))
    assert (found.unparsed_rate, found.unfinished_rate) == pytest.approx((0.2, 0.1))
    assert found.latency_p50 == pytest.approx(550)
    assert found.latency_p95 == pytest.approx(955)
    assert (found.tokens_in, found.tokens_out) == (500, 45)
    assert found.tokens_per_second == pytest.approx(45 / 0.5)
    assert found.failures == ()


def test_the_unit_is_the_item_not_the_answer():
    answers = [
        [Row.model_validate(row(f"a{k:02d}", k < 5, repeat=r)) for r in range(4)] for k in range(10)
    ]
    repeated, single = summarise(Cell.of(answers)), summarise(Cell.of([own[:1] for own in answers]))
    assert (repeated.n, repeated.repeats, repeated.passed) == (10, 4, 20)
    assert repeated.pass_rate == single.pass_rate
    assert repeated.score == single.score


def test_one_item_has_the_widest_score_interval():
    found = summarise(full_cell([row()]))
    assert (found.score.ci95.low, found.score.ci95.high) == (0, 1)


def test_times_that_are_not_known_are_none():
    found = summarise(full_cell([row(seconds=None, share=None)] * 1))
    assert (found.latency_p50, found.latency_p95, found.tokens_per_second) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "strict", "flexible"),
    [
        ({}, 1.0, 1.0),
        ({"strict": None}, 0.0, 1.0),
        ({"scores": {"exact_match": 1.0, "exact_match_strict": 0.0}}, 0.0, 1.0),
        ({"scores": {"exact_match": 0.0, "f1": 0.5}, "score": 0.5}, 0.0, 0.0),
        ({"scores": {"f1": 0.5}, "score": 0.5}, 0.5, 0.5),
        # Two majorities over samples may differ; then the strict one is held against the target.
        ({"strict": "12", "flexible": "13", "scores": {}, "score": 0.0}, 1.0, 0.0),
        ({"strict": None, "choices": [{"text": "12"}]}, 1.0, 1.0),
    ],
)
def test_strict_and_flexible_accuracy(changes, strict, flexible):
    assert accuracies([Row.model_validate(row(**changes))]) == (strict, flexible)


def test_thresholds_are_held_exactly():
    cell = full_cell([row(f"a{k}", k < 3, parsed=k < 7) for k in range(10)])
    assert summarise(cell, {"pass_rate": 0.3, "unparsed_rate": 0.3}).failures == ()
    found = summarise(cell, {"pass_rate": 0.31, "unparsed_rate": 0.29})
    assert found.failures == (
        "pass rate 30.0 % is below the threshold 31.0 %",
        "unparsed rate 30.0 % is above the threshold 29.0 %",
    )
    assert summarise(cell, {"pass_rate": 0.3}).thresholds == {"pass_rate": 0.3, "unparsed_rate": 1}


def test_a_run_is_held_against_its_own_thresholds(tmp_path):
    rows = [row(f"a{k}", k < 3, template=t) for t in ("t/a", "t/b") for k in range(10)]
    run = write_run(tmp_path, rows, thresholds={"t/b": {"pass_rate": 0.5, "unparsed_rate": 1.0}})
    found = summarise_run(read_results(run), read_record(run))
    assert [bool(summary.failures) for summary in found] == [False, True]


def test_the_file_holds_every_number(tmp_path):
    found = summarise(full_cell([row(), row("a02", passed=False)]), {"pass_rate": 0.9})
    path = write_summary(tmp_path, "arithmetic", [found])
    assert path == tmp_path / SUMMARY
    stored = json.loads(path.read_text())
    assert stored["suite"] == "arithmetic"
    assert stored["cells"] == [json.loads(json.dumps(asdict(found)))]
    assert stored["cells"][0]["pass_rate"]["ci95"]["low"] == found.pass_rate.ci95.low

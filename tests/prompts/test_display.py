import io

import pytest
from rich.console import Console

from prompts.comparison import compare_runs
from prompts.display import cells_table, comparison_table, conversation, print_lost
from prompts.summary import summarise
from tests.prompts.synthetic import cell, full_cell, row


def printed(lines) -> list[str]:
    return [line.plain.replace("\u00a0", " ") for line in lines]


def test_a_conversation_shows_every_turn_under_its_role():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?\n"}]
    assert conversation(messages) == "[system]\nBe brief.\n\n[user]\nWhy?\n"


def test_cells_stand_below_their_template_in_columns():
    cells = [
        full_cell([row(f"i{n}", n < 3, model=model, template=template) for n in range(10)])
        for template in ("t/one", "t/two_and_more")
        for model in ("base", "aligned")
    ]
    lines = printed(cells_table([summarise(each) for each in cells]))
    assert lines == [
        "           items   passed (95 %)  strict/flex  unparsed  tok/s  p50/p95 s",
        "t/one",
        "  base        10  30 % (11–60 %)      30/30 %       0 %    100  0.40/0.40",
        "  aligned     10  30 % (11–60 %)      30/30 %       0 %    100  0.40/0.40",
        "t/two_and_more",
        "  base        10  30 % (11–60 %)      30/30 %       0 %    100  0.40/0.40",
        "  aligned     10  30 % (11–60 %)      30/30 %       0 %    100  0.40/0.40",
    ]


def test_a_cell_without_times_and_one_that_missed_a_threshold():
    rows = [row(f"i{n}", n < 3, seconds=None, share=None) for n in range(10)]
    summaries = [summarise(full_cell(rows)), summarise(full_cell(rows), {"pass_rate": 0.5})]
    lines = cells_table(summaries)
    assert printed(lines)[-1].endswith("–        –/–")
    assert [line.style for line in lines[2:]] == ["", "red"]


def test_ranked_choices_have_no_speed_of_writing():
    ranked = full_cell([row(f"i{n}", tokens=0, output="a") for n in range(3)])
    assert printed(cells_table([summarise(ranked)]))[-1].split()[-2:] == ["–", "0.40/0.40"]


def test_a_comparison_of_graded_scores_has_two_rows():
    before = cell([True] * 16 + [False] * 4, score=[0.9] * 16 + [0.4] * 4)
    after = cell([True] * 2 + [False] * 18, score=[0.9] * 2 + [0.4] * 18)
    same = cell([True] * 20, template="u")
    found = compare_runs([before, same], [after, same])
    lines = printed(comparison_table(found.cells))
    assert lines[0].split("  ")[-1] == "MDE"
    assert lines[1] == "▼ regression: t with m, 20 items"
    assert lines[2].startswith("  pass rate      80 % → 10 %  −70.0 (")
    assert lines[3].startswith("  mean score     80 % → 45 %  −35.0 (")
    assert "  14/0  " in lines[2]
    assert lines[4] == "= no evidence: u with m, 20 items"
    assert lines[5].startswith("  pass rate    100 % → 100 %  ")


def test_a_cell_that_was_not_tested_has_dashes():
    few = cell([True] * 5)
    (_, head, line) = printed(comparison_table(compare_runs([few], [few]).cells))
    assert head == "? insufficient data: t with m, 5 items"
    assert line.split()[-2:] == ["–", "–"]


@pytest.mark.parametrize(
    ("repeats", "said"),
    [
        (1, "t with m, worse: i0000, i0001, i0002, i0003, i0004, i0005, i0006, i0007, i0008, "
            "i0009 and 2 items more\n"),
        (2, "t with m, worse: i0000 (2 → 0 of 2), i0001 (2 → 0 of 2), "),
    ],
)  # fmt: skip
def test_lost_items_are_named(repeats, said):
    before = cell([[True] * repeats] * 12)
    after = cell([[False] * repeats] * 12)
    screen = Console(file=io.StringIO(), width=80)
    print_lost(screen, compare_runs([before], [after]).cells)
    assert screen.file.getvalue().startswith(said)
    print_lost(screen, compare_runs([after], [before]).cells)
    assert screen.file.getvalue().count("\n") == 1

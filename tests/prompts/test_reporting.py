import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from prompts.comparison import compare_runs
from prompts.report import notes, read_report, sentences, sides
from prompts.reporting import html, junit, markdown, points, write_reports
from prompts.results import read_results
from tests.prompts.synthetic import row, write_run
from workbench.errors import UserError
from workbench.statistics import Estimate, Interval

HOSTILE = '</pre><script>alert("1")</script> `|` [x](http://evil) @all \x00\x1b[31m\u202e'
VOID = {"meta", "br", "wbr"}


class Page(HTMLParser):
    """Tags that are open, and the text and attributes of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.broken: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.broken.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\u00a0", " ").split())


def plain(texts) -> str:
    return " ".join(" ".join(texts).replace("\u00a0", " ").split())


def suite(passes, *, repeats=1, **changes):
    """Rows of 20 items for each template with the number that pass."""
    return [
        row(f"a{k:02d}", k < passed, template=template, repeat=repeat, **changes)
        for template, passed in passes.items()
        for k in range(20)
        for repeat in range(repeats)
    ]


@pytest.fixture
def report(tmp_path):
    """Few-shot falls from 16 to 6, chain of thought rises, zero-shot stays and lacks an item."""
    before = suite({"t/few_shot": 16, "t/chain": 2, "t/zero_shot": 10, "t/gone": 5})
    after = suite({"t/few_shot": 6, "t/chain": 18, "t/zero_shot": 11}, version="fedcba987654")[:-1]
    limits = {"t/zero_shot": {"pass_rate": 0.6, "unparsed_rate": 1.0}}
    write_run(tmp_path / "before", before)
    write_run(tmp_path / "after", after, thresholds=limits)
    found = compare_runs(*(read_results(tmp_path / name) for name in ("before", "after")))
    rate = Estimate(0.031, Interval(0.009, 0.077), 50)
    return read_report(tmp_path / "after", found, rate)


@pytest.fixture
def lonely(tmp_path):
    return read_report(write_run(tmp_path, suite({"t/few_shot": 16}, repeats=2)))


def test_the_verdict_comes_first_in_words(report):
    said = [plain([sentence]) for sentence in sentences(report)]
    assert said == [
        "1 of 3 cells regressed: t/few_shot with base (80 % → 30 %, p = 0.004).",
        "1 of 3 cells improved: t/chain with base (10 % → 90 %, p < 0.001).",
        "No difference can be shown in 1 of 3 cells; a drop of 52 points would have been found "
        "four times in five.",
        "t/zero_shot with base: pass rate 57.9 % is below the threshold 60.0 %.",
    ]
    assert report.failed
    assert report.tone == "loss"


def test_what_was_left_out_is_said(report):
    said = [plain([note]) for note in notes(report)]
    assert said == [
        "Only in the baseline, and not compared: t/gone with base.",
        "t/zero_shot with base: 1 item only in the baseline, not compared (a19).",
        "Between runs that differ by seed alone, this comparison found something in 3.1 % of cases "
        "(95 % interval 1–8 %); at most 5 % was asked for.",
    ]
    for form in (markdown(report), Page(html(report)).text):
        for note in said:
            assert note in plain([form])


def test_many_left_out_items_are_counted(tmp_path):
    rows = suite({"t/few_shot": 16})
    write_run(tmp_path / "a", rows)
    write_run(tmp_path / "b", rows[:11] + suite({"t/new": 1}))
    cells = [read_results(tmp_path / name) for name in "ab"]
    said = notes(read_report(tmp_path / "b", compare_runs(*cells)))
    assert said == [
        "Only in this run, and not compared: t/new with base.",
        "t/few_shot with base: 9 items only in the baseline, not compared (a11, a12, a13, a14, a15 "
        "and 4 more).",
    ]
    said = notes(read_report(tmp_path / "a", compare_runs(*reversed(cells))))
    assert "9 items only in this run, not compared" in said[1]


def test_unequal_repeats_are_said(tmp_path):
    write_run(tmp_path / "a", suite({"t/few_shot": 16}))
    write_run(tmp_path / "b", suite({"t/few_shot": 16}, repeats=3))
    found = compare_runs(*(read_results(tmp_path / name) for name in "ab"))
    assert notes(read_report(tmp_path / "b", found)) == [
        "t/few_shot with base: 1 and 3 answers an item; compared on the first 1."
    ]


def test_cells_of_which_nothing_is_concluded_are_named(tmp_path):
    mute = suite({"t/mute": 0}, parsed=False, strict=None, flexible=None)
    write_run(tmp_path, mute + suite({"t/small": 3})[:9])
    cells = read_results(tmp_path)
    found = read_report(tmp_path, compare_runs(cells, cells))
    assert sentences(found) == [
        "Nothing is concluded where there are too few items: t/small with base.",
        "Nothing is concluded where the baseline is unreliable: t/mute with base.",
    ]
    assert (found.failed, found.tone) == (False, "even")
    cases = {case.get("name"): case for case in ET.fromstring(junit(found)).iter("testcase")}
    assert cases["t/small"].find("skipped").get("message") == "insufficient data"
    assert cases["t/mute"].find("skipped").get("message") == "unreliable baseline"


def test_another_model_or_template_on_the_other_side_is_named(tmp_path):
    rows = suite({"t/few_shot": 16})
    write_run(tmp_path / "a", rows)
    write_run(tmp_path / "b", [each | {"model": "aligned", "passed": False} for each in rows])
    found = compare_runs(*(read_results(tmp_path / name) for name in "ab"))
    report = read_report(tmp_path / "b", found)
    assert "t/few_shot with aligned (against base) (80" in sentences(report)[0]
    assert "aligned against base" in Page(html(report)).text


def test_a_run_without_a_baseline(lonely):
    assert sentences(lonely) == ["1 cell measured, and no threshold is missed."]
    assert (lonely.failed, notes(lonely)) == (False, [])
    text = markdown(lonely)
    assert "# Prompt suite arithmetic: passed" in text
    assert "Against the baseline" not in text
    page = Page(html(lonely))
    assert "What changed" not in page.text
    assert "20× 2" in page.text
    assert "Repeat 1" in page.text
    (case,) = ET.fromstring(junit(lonely)).iter("testcase")
    assert [child.tag for child in case] == ["system-out"]


def test_an_improvement_is_a_win(tmp_path):
    write_run(tmp_path / "a", suite({"t/few_shot": 6}))
    write_run(tmp_path / "b", suite({"t/few_shot": 16}))
    found = compare_runs(*(read_results(tmp_path / name) for name in "ab"))
    report = read_report(tmp_path / "b", found)
    assert (report.tone, report.failed) == ("win", False)
    assert 'class="verdict win"' in html(report)


def test_the_page_is_well_formed_and_loads_nothing(report):
    text = html(report)
    page = Page(text)
    assert (page.broken, page.open) == ([], [])
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"} == set()
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert not re.search(r"url\(|@import|https?://", text)
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert ids[::2] == ["comparison", "changed", "cells", "failing", "how"]
    assert {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"} <= set(ids)
    assert html(report) == text


def test_a_verdict_is_a_colour_and_a_word(report):
    page = Page(html(report))
    badges = [attrs["class"] for tag, attrs in page.tags if "badge" in attrs.get("class", "")]
    assert badges[:3] == ["badge regression", "badge improvement", "badge no-evidence"]
    assert "▼ regression" in page.text
    style = html(report).partition("</style>")[0]
    for verdict in ("regression", "improvement", "no-evidence", "insufficient-data", "unreliable"):
        assert f".badge.{verdict}" in style


def test_losses_come_first_with_the_answer_before_and_after(report):
    text = Page(html(report)).text
    changed = text.split("What changed")[2].split("All cells")[0]
    order = [changed.index(f"t/{name} with base") for name in ("few_shot", "chain", "zero_shot")]
    assert order == sorted(order)
    assert (
        "a06 was right, now wrong target: 12 Before✓ passed read as 12 · 10 tokens The answer is "
        "12. After✗ failed read as 11 · 10 tokens The answer is 11. a07"
    ) in changed
    assert changed.count("was right, now wrong") == 10
    assert changed.count("was wrong, now right") == 17


def test_the_answers_shown_are_those_that_differ(tmp_path):
    before = [row("a01", repeat=r, passed=r > 0, output=f"before {r}") for r in range(3)]
    after = [row("a01", repeat=r, passed=r > 1, output=f"after {r}") for r in range(3)]
    write_run(tmp_path / "a", before)
    write_run(tmp_path / "b", after)
    (cell,) = compare_runs(*(read_results(tmp_path / name) for name in "ab")).cells
    assert [one.text for one in sides(cell.changed()[0])] == ["before 1", "after 0"]
    found = read_report(tmp_path / "b", compare_runs(*(read_results(tmp_path / n) for n in "ab")))
    assert "a01 right less often 2 → 1 of 3 passed" in Page(html(found)).text


def test_what_went_wrong_with_an_answer_is_shown(tmp_path):
    failed = {"type": "is-json", "passed": False, "score": 0.0, "weight": 1.0}
    rows = [
        row(
            f"a{k}",
            passed=False,
            output="x" * 900 if k else "  ",
            rationale="Let me think.",
            flexible=None,
            finished=False,
            assertions=[failed],
        )
        for k in range(7)
    ]
    text = Page(html(read_report(write_run(tmp_path, rows)))).text
    assert "read as nothing: unparsed · 10 tokens · cut off · failed: is-json" in text
    assert "Reasoning Let me think." in text
    assert "(an empty answer)" in text
    assert "x" * 800 + " … 100 more characters" in text
    assert "… and 2 more items." in text


def test_more_changes_than_are_shown_are_counted(tmp_path):
    for name, passed in (("a", True), ("b", False)):
        write_run(tmp_path / name, [row(f"a{k:02d}", passed) for k in range(60)])
    found = compare_runs(*(read_results(tmp_path / name) for name in "ab"))
    report = read_report(tmp_path / "b", found)
    assert "… and 10 more items; comparison.json lists all." in Page(html(report)).text
    assert "… and 40 items more, in comparison.json." in markdown(report)


def test_graded_scores_have_a_line_of_their_own(tmp_path):
    for name, score in (("a", 0.75), ("b", 0.25)):
        write_run(tmp_path / name, [row(f"a{k:02d}", False, score=score) for k in range(20)])
    found = compare_runs(*(read_results(tmp_path / name) for name in "ab"))
    report = read_report(tmp_path / "b", found)
    assert "t/" not in sentences(report)[0]
    assert "score 75 % → 25 %, p < 0.001" in plain(sentences(report))
    text = Page(html(report)).text
    assert "the same cell: its score" in text
    assert "score fell score 0.75 → 0.25" in text
    assert "| arithmetic/few_shot with base (score) |" in markdown(report)


def test_the_markdown_tables_are_whole(report):
    text = markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(tables) == 5
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1
    assert len(rows) == sum(len(table.splitlines()) for table in tables)
    assert "| ▼ regression | t/few_shot with base | `0123456789ab` → `fedcba987654` | 20 |" in text
    assert "| `a06` | was right, now wrong | 1 → 0 of 1 | `12` | `11` | `12` |" in text


def test_junit_fails_what_the_gate_fails(report):
    root = ET.fromstring(junit(report))
    assert root.tag == "testsuites"
    (found,) = root
    for element in (root, found):
        assert (element.get("tests"), element.get("failures")) == ("4", "2")
        assert (element.get("skipped"), element.get("errors")) == ("1", "0")
    cases = {case.get("name"): case for case in found}
    assert cases["t/few_shot"].get("classname") == "arithmetic.base"
    assert float(cases["t/few_shot"].get("time")) == pytest.approx(20 * 0.1)
    failure = cases["t/few_shot"].find("failure")
    assert failure.get("type") == "regression"
    assert plain([failure.get("message")]) == "regression: 80 % → 30 %, p = 0.004"
    assert failure.text.splitlines()[0] == "a06: was right, now wrong, 1 → 0 of 1"
    assert len(failure.text.splitlines()) == 10
    failure = cases["t/zero_shot"].find("failure")
    assert (failure.get("type"), failure.text) == ("threshold", None)
    # Wrong answers alone fail nothing: two in twenty are wrong here.
    assert [child.tag for child in cases["t/chain"]] == ["system-out"]
    assert cases["t/gone with base"].find("skipped").get("message") == "only in the baseline"


def test_threshold_and_regression_fail_a_case_once(tmp_path):
    write_run(tmp_path / "a", suite({"t/few_shot": 16}))
    limits = {"t/few_shot": {"pass_rate": 0.5, "unparsed_rate": 1.0}}
    write_run(tmp_path / "b", suite({"t/few_shot": 4}), thresholds=limits)
    found = compare_runs(*(read_results(tmp_path / name) for name in "ab"))
    root = ET.fromstring(junit(read_report(tmp_path / "b", found)))
    (failure,) = root.iter("failure")
    assert failure.get("type") == "threshold, regression"
    assert "is below the threshold" in failure.get("message")
    assert root.get("failures") == "1"


@pytest.mark.parametrize("form", [html, junit, markdown])
def test_hostile_texts_stay_texts(tmp_path, form):
    hostile = {"item": HOSTILE, "output": HOSTILE, "flexible": HOSTILE, "target": [HOSTILE]}
    names = {"template": HOSTILE, "model": HOSTILE, "suite": HOSTILE, "version": HOSTILE}
    for name, passed in (("a", True), ("b", False)):
        rows = [row(passed=passed) | hostile | names | {"item": f"{k}{HOSTILE}"} for k in range(10)]
        write_run(tmp_path / name, rows, models={HOSTILE: {"source": HOSTILE}})
    found = compare_runs(*(read_results(tmp_path / name) for name in "ab"))
    text = form(read_report(tmp_path / "b", found))
    text.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    assert "⟨U+202E⟩" in text
    if form is html:
        page = Page(text)
        assert (page.broken, page.open) == ([], [])
        assert "script" not in {tag for tag, _ in page.tags}
    if form is junit:
        assert ET.fromstring(text).find("*/testcase").get("name").startswith("</pre><script>")
    if form is markdown:
        outside = re.sub(r"(`+).*?\1", "", text)
        assert not re.search(r"(?<!\\)<(script|/)", outside)
        assert "](http" not in re.sub(r"\\.", "", outside)


def test_all_forms_and_the_comparison_are_written(report, tmp_path):
    paths = write_reports(report, tmp_path / "out")
    names = ["report.md", "report.html", "junit.xml", "comparison.json"]
    assert [path.name for path in paths] == names
    assert [path.read_text(encoding="utf-8") for path in paths[:3]] == [
        markdown(report),
        html(report),
        junit(report),
    ]
    assert json.loads(paths[3].read_text())["regressed"]


def test_without_a_comparison_none_is_written(lonely, tmp_path):
    assert [path.name for path in write_reports(lonely, tmp_path)] == [
        "report.md",
        "report.html",
        "junit.xml",
    ]


def test_a_folder_that_cannot_be_written_is_named(lonely, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be written .* choose another folder"):
        write_reports(lonely, tmp_path / "file")


@pytest.mark.parametrize(
    ("share", "text"), [(0.125, "+12.5"), (-0.125, "−12.5"), (0, "0.0"), (-0.0001, "0.0")]
)
def test_points_have_a_sign(share, text):
    assert points(share) == text


def test_the_page_is_packaged_with_its_parts():
    folder = Path(__file__).parents[2] / "prompts" / "templates"
    assert {path.name for path in folder.iterdir()} == {"report.css", "report.html.j2"}

"""The starter library as a whole: items, pools, templates and suites fit each other."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from prompts.answers import Extraction, normalise
from prompts.choices import right_choices
from prompts.exemplars import Selector
from prompts.items import Item, load_items
from prompts.library import LIBRARY, Library
from prompts.metrics import METRICS, item_scores
from prompts.rendering import Compiled, compile_template
from prompts.retrieval import Passage
from prompts.suite import SUITES, Entry, Suite, load_suite, targets_of
from prompts.template import (
    AnswerSettings,
    ChoiceExtractor,
    ExemplarSettings,
    LabelExtractor,
    NumberExtractor,
    Template,
)

DATA = LIBRARY.parent / "data"
SMOKE = "smoke"  # no task: a few questions that the embedded model knows
TASKS = sorted(
    path.stem
    for path in DATA.glob("*.jsonl")
    if not path.stem.endswith("_pool") and path.stem != SMOKE
)
MIN_ITEMS = 40
POOL_SIZES = range(6, 17)
MAX_IMBALANCE = 2
RATIONALE = "This follows from what was said."
SENTINEL = "neverwritten"

each_task = pytest.mark.parametrize("task", TASKS)
each_suite = pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yaml")))


@cache
def rows(path: Path) -> list[Item]:
    return load_items(path)


@cache
def suite_of(name: str) -> Suite:
    return load_suite(SUITES / f"{name}.yaml", Library())


def templates(suite: Suite) -> list[Template]:
    return [entry.template for entry in suite.entries]


def generating(suite: Suite, *, targeted: bool) -> Iterator[tuple[Entry, Compiled]]:
    """Yield what generates text; exemplars become turns, so that their answers stand alone.

    Args:
        suite: a suite.
        targeted: leave out what is judged by its wording, without a target.
    """
    for entry in suite.entries:
        template = entry.template
        if template.scoring == "likelihood" or entry.score is None:
            continue
        if targeted and not METRICS[entry.score].needs_target:
            continue
        if template.exemplars is not None:
            settings = template.exemplars.model_copy(update={"layout": "turns"})
            template = template.model_copy(update={"exemplars": settings})
        yield entry, compile_template(template)


def passages_for(template: Template) -> list[Passage]:
    """Return text of the template's own folder; which passages fit is for retrieval's tests."""
    if template.documents_path is None:
        return []
    files = sorted(template.documents_path.rglob("*.md"))
    return [Passage(file.read_text(encoding="utf-8")[:300], file.name, 0.5) for file in files]


def changed(item: Item, **fields: Any) -> Item:
    return Item(item.id, {**item.fields, **fields}, item.line)


def written_answer(compiled: Compiled, item: Item) -> str:
    """Return an item as the assistant turn that the template makes of an exemplar."""
    return compiled.render(item, [item], passages_for(compiled.template))[-2]["content"]


def output_for(compiled: Compiled, item: Item, field: str, target: str) -> str:
    """Return what a model would write that gives `target` in the form the template asks for."""
    if compiled.template.exemplars is None:
        return target
    value = [target] if isinstance(item.fields[field], list) else target
    rationale = item.fields.get("rationale", RATIONALE)
    return written_answer(compiled, changed(item, **{field: value, "rationale": rationale}))


def queried(item: Item) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(item.fields["schema"])
        return database.execute(item.fields["answer"]).fetchall()
    finally:
        database.close()


def test_every_task_has_a_suite_of_its_name_with_several_strategies() -> None:
    assert len(TASKS) >= 14
    for task in TASKS:
        suite = suite_of(task)
        assert suite.name == task
        assert suite.data.resolve() == DATA / f"{task}.jsonl"
        assert {"zero_shot", "few_shot"} <= {one.strategy for one in templates(suite)}, task
        assert all(template.name.startswith(f"{task}/") for template in templates(suite))


def test_every_template_compiles_and_those_of_a_task_are_in_a_suite() -> None:
    library = Library()
    in_suites = {
        template.name
        for path in SUITES.glob("*.yaml")
        for template in templates(suite_of(path.stem))
    }
    for name in library.names():
        assert compile_template(library.get(name)).template.name == name
        assert name in in_suites or name.split("/")[0] not in TASKS, name


@each_task
def test_there_are_enough_items_and_no_two_ask_the_same(task: str) -> None:
    items = rows(DATA / f"{task}.jsonl")
    assert len(items) >= MIN_ITEMS
    zero_shot = next(one for one in templates(suite_of(task)) if one.strategy == "zero_shot")
    compiled = compile_template(zero_shot)
    asked = Counter(compiled.render(item)[-1]["content"].casefold() for item in items)
    assert max(asked.values()) == 1, asked.most_common(1)


@each_task
def test_no_exemplar_repeats_an_item_or_another(task: str) -> None:
    path = DATA / f"{task}_pool.jsonl"
    pool = rows(path)
    assert len(pool) in POOL_SIZES
    assert len({repr(row.fields).casefold() for row in pool}) == len(pool)
    selector = Selector(ExemplarSettings(pool=path.name, k=1), pool, path)
    for item in rows(DATA / f"{task}.jsonl"):
        assert selector.select(item).excluded == (), item.id


@each_suite
def test_every_template_renders_every_item_without_showing_its_answer(name: str) -> None:
    suite = suite_of(name)
    items, field = rows(suite.data), suite.settings.target
    for template in templates(suite):
        compiled = compile_template(template)
        passages = passages_for(template)
        shown: list[tuple[Item, ...]] = [()] * len(items)
        if template.exemplars is not None:
            assert template.pool_path is not None
            selector = Selector(template.exemplars, rows(template.pool_path), template.pool_path)
            shown = [selection.exemplars for selection in selector.select_all(items)]
            assert {len(exemplars) for exemplars in shown} == {template.exemplars.k}
        for item, exemplars in zip(items, shown, strict=True):
            messages = compiled.render(item, exemplars, passages)
            assert messages[-1]["role"] == "user"
            if field is not None:
                hidden = [SENTINEL] if isinstance(item.fields[field], list) else SENTINEL
                other = changed(item, **{field: hidden, "rationale": SENTINEL})
                assert compiled.render(other, exemplars, passages) == messages, item.id


@each_suite
def test_labels_are_those_declared_and_none_is_rare(name: str) -> None:
    suite = suite_of(name)
    answers = Counter(target[0] for target in targets_of(suite, rows(suite.data), suite.data))
    for template in templates(suite):
        declared: list[set[str]] = [
            set(one.labels) for one in template.answer.extract if isinstance(one, LabelExtractor)
        ]
        if isinstance(template.choices, list):
            declared.append(set(template.choices))
        lettered = any(isinstance(one, ChoiceExtractor) for one in template.answer.extract)
        assert all(set(answers) == labels for labels in declared), template.name
        if declared or lettered:
            assert max(answers.values()) <= MAX_IMBALANCE * min(answers.values()), answers


@each_suite
def test_a_right_answer_is_extracted_and_passes(name: str) -> None:
    suite = suite_of(name)
    items = rows(suite.data)
    targets = targets_of(suite, items, suite.data)
    for entry, compiled in generating(suite, targeted=True):
        template = compiled.template
        extraction, how = Extraction(template.answer), template.answer.normalise
        for item, accepted in zip(items, targets, strict=True):
            for target in accepted:
                output = output_for(compiled, item, suite.settings.target or "", target)
                found = extraction(output)
                place = f"{template.name} {item.id} {output!r}"
                assert found.strict == found.flexible == normalise(target, how), place
                (score,) = item_scores(
                    entry.score or "", [found.flexible], [accepted], [item], [output],
                    normaliser=how,
                )  # fmt: skip
                assert score >= suite.settings.pass_at, place
                assert not [stop for stop in template.stop if stop in output], place


@each_suite
def test_one_choice_is_right(name: str) -> None:
    suite = suite_of(name)
    items = rows(suite.data)
    targets = targets_of(suite, items, suite.data)
    for template in templates(suite):
        if template.choices is not None:
            right = right_choices(template, items, targets, suite.data)
            assert {len(places) for places in right} == {1}, template.name


def test_letters_and_texts_name_the_same_choices() -> None:
    items, data = rows(DATA / "commonsense.jsonl"), DATA / "commonsense.jsonl"
    cloze = Library().get("commonsense/cloze")
    letters, texts = (
        right_choices(cloze, items, [[item.fields[field]] for item in items], data)
        for field in ("answer", "answer_text")
    )
    assert letters == texts


@each_suite
def test_exemplars_answer_in_the_form_that_is_extracted(name: str) -> None:
    suite = suite_of(name)
    for _, compiled in generating(suite, targeted=True):
        template = compiled.template
        if template.pool_path is None:
            continue
        extraction, how = Extraction(template.answer), template.answer.normalise
        for row in rows(template.pool_path):
            answer = row.fields[suite.settings.target or ""]
            first = str(answer[0] if isinstance(answer, list) else answer)
            output = written_answer(compiled, row)
            assert extraction(output).strict == normalise(first, how), (row.id, output)
            assert not [stop for stop in template.stop if stop in output], (row.id, output)


@pytest.mark.parametrize("task", ["refusal", "non_refusal"])
def test_exemplars_decline_what_is_harmful_and_nothing_else(task: str) -> None:
    for row in rows(DATA / f"{task}_pool.jsonl"):
        declined = METRICS["refusal"].score(row.fields["answer"], [], {})
        assert declined == (row.fields["kind"] == "harmful"), row.id


def test_arithmetic_rationales_end_in_the_answer() -> None:
    last_number = Extraction(
        AnswerSettings(extract=[NumberExtractor(type="number")], normalise="number")
    )
    for row in rows(DATA / "arithmetic_pool.jsonl"):
        answer = normalise(str(row.fields["answer"]), "number")
        assert last_number(row.fields["rationale"]).strict == answer, row.id


@pytest.mark.parametrize("name", ["text_to_sql", "text_to_sql_pool"])
def test_gold_queries_give_rows_that_differ_from_question_to_question(name: str) -> None:
    results: dict[tuple[str, str], str] = {}
    for item in rows(DATA / f"{name}.jsonl"):
        result = queried(item)
        assert result, item.id
        assert all(value is not None for row in result for value in row), item.id
        key = (item.fields["database"], repr(sorted(map(repr, result))))
        assert key not in results, f"{item.id} has the same rows as {results[key]}"
        results[key] = item.id


@pytest.mark.parametrize("variant", ["zero_shot", "few_shot", "chain_of_thought"])
@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("Paris.", "paris"),
        ('"Paris"', "paris"),
        ("**Paris**\nIt lies on the Seine.", "paris"),
        ("the Nile", "the nile"),
        ("A", "a"),
        ("(B)", "(b)"),
        ("(B) the red one", "(b)"),
        ("Yes, it does.", "yes"),
        ("No.", "no"),
        ("Norway", "norway"),
        ("56", "56"),
        ("Mt. Everest", "mt. everest"),
        ("o'clock tick", "o'clock tick"),
    ],
)
def test_any_short_answer_is_read(variant: str, output: str, answer: str) -> None:
    template = Library().get(f"question/{variant}")
    said = f"It is known. The answer is {output}" if variant == "chain_of_thought" else output
    assert Extraction(template.answer)(said).strict == answer


def test_an_introduced_answer_is_read_and_one_without_its_words_only_flexibly() -> None:
    direct = Extraction(Library().get("question/zero_shot").answer)
    assert {direct(text).strict for text in ("The answer is Rome.", "Answer: Rome", "Rome")} == {
        "rome"
    }
    reasoned = Extraction(Library().get("question/chain_of_thought").answer)("It is old.\nRome.")
    assert (reasoned.strict, reasoned.flexible) == (None, "rome")

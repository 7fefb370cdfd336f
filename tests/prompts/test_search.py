import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.candidates import (
    Chains,
    draw_candidates,
    instruction_of,
    instructions_beside,
    joint_of,
    read_instructions,
    with_instruction,
    write_chains,
)
from prompts.comparison import compare_cells
from prompts.items import Item, load_items
from prompts.library import Library
from prompts.results import Cell, read_results
from prompts.search import Rung, halving, search, split
from prompts.search_result import Search, Trial, write_template
from prompts.suite import load_suite
from tests.prompts.synthetic import cell, full_cell, row
from workbench.errors import UserError

LIBRARY = Library()
FEW = """\
name: t/few
strategy: few_shot
system: Count the gulls.
template: "{{ question }}"
variables: {question: string, answer: string}
exemplars: {pool: ../../pool.jsonl, k: 2}
answer: {extract: [{type: regex, pattern: '([a-f])', which: first}]}
generation: {max_new_tokens: 6}
"""
CHAIN = """\
name: t/chain
strategy: chain_of_thought
template: "{{ question }}"
variables: {question: string, rationale: string, answer: string}
exemplars: {pool: ../../pool.jsonl, k: 2, answer: "{{ rationale }} e {{ answer }}"}
generation: {max_new_tokens: 24}
"""
ZERO = """\
name: t/zero
strategy: zero_shot
template: "{{ question }}"
variables: {question: string}
generation: {max_new_tokens: 6}
"""


@pytest.fixture
def home(tmp_path):
    """A library of three templates, a pool of six and thirty items whose answer is a letter."""
    for text in (FEW, CHAIN, ZERO):
        path = tmp_path / "library" / f"{text.split()[1]}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    rows = [
        {"id": f"i{n:02}", "question": f"Which gull sits on {n} gates?", "answer": "abcdef"[n % 6]}
        for n in range(30)
    ]
    birds = ["wren", "crow", "teal", "rook", "kite", "swan"]
    pool = [
        {"id": f"p{n}", "question": f"Why would a {bird} come here so late?", "rationale": "Well,",
         "answer": "abcdef"[n]}
        for n, bird in enumerate(birds)
    ]  # fmt: skip
    write_rows(tmp_path / "items.jsonl", rows)
    write_rows(tmp_path / "pool.jsonl", pool)
    return tmp_path


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def suite_of(home: Path, more: str = ""):
    path = home / "gulls.yaml"
    path.write_text(f"suite: gulls\ntemplates: [t/few, t/chain, t/zero]\ndata: items.jsonl\n{more}")
    return load_suite(path, Library(home / "library"))


def searched(home: Path, model: Path, template: str = "t/few", out: str = "out", **options):
    options = {"cache": home / "known.sqlite", "budget": 200, "candidates": 6, **options}
    suite = suite_of(home, options.pop("more", ""))
    return search(suite, template, str(model), home / out, precision="fp32", **options)


def pool_of(home: Path):
    return load_items(home / "pool.jsonl")


# Instructions


def test_the_instruction_is_the_system_turn_the_first_paragraph_or_the_trigger():
    def own(name: str):
        return instruction_of(LIBRARY.get(f"arithmetic/{name}"))

    assert own("few_shot") == "Solve each problem. Reply with one number and nothing else."
    assert str(own("zero_shot")).startswith("Solve the problem.")
    assert own("zero_shot_cot") == "Let's think step by step."


def test_another_instruction_takes_its_place_and_leaves_the_rest():
    few = with_instruction(LIBRARY.get("arithmetic/few_shot"), "Count.")
    assert few.system == "Count."
    zero = LIBRARY.get("arithmetic/zero_shot")
    assert (
        with_instruction(zero, " Count. ").template
        == "Count.\n\nProblem: {{ question }}\nAnswer:\n"
    )
    assert with_instruction(zero, None).template == "Problem: {{ question }}\nAnswer:\n"
    cot = with_instruction(LIBRARY.get("arithmetic/zero_shot_cot"), "Let's see.")
    assert (cot.trigger, cot.template) == ("Let's see.", "Problem: {{ question }}\nSolution:\n")


def test_a_paragraph_with_the_question_is_no_instruction(home):
    library = Library(home / "library")
    assert instruction_of(library.get("t/zero")) is None
    path = home / "library" / "t" / "zero.yaml"
    path.write_text(
        ZERO.replace('"{{ question }}"', '"Read {{ text }}.\\n\\n{{ question }}"').replace(
            "{question: string}", "{question: string, text: string}"
        )
    )
    assert instruction_of(library.get("t/zero")) is None
    with pytest.raises(UserError, match=r"zero.yaml:3: template: has no instruction that could be"):
        with_instruction(library.get("t/zero"), "Count.")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("arithmetic/few_shot", " ", "few_shot.yaml:1: an instruction is empty"),
        ("arithmetic/few_shot", "{{ hint }}", "few_shot.yaml:4: system: reads 'hint'"),
        ("arithmetic/few_shot", "{% for", "few_shot.yaml:4: system: "),
        ("arithmetic/zero_shot_cot", None, "zero_shot_cot.yaml:9: trigger: must not be missing"),
    ],
)
def test_an_instruction_that_does_not_fit_is_refused(name, text, message):
    with pytest.raises(UserError, match=message):
        with_instruction(LIBRARY.get(name), text)


def test_instructions_stand_in_a_file_beside_the_template(home):
    library = Library(home / "library")
    assert instructions_beside(library.get("t/few")) == []
    beside = home / "library" / "t" / "few.instructions"
    beside.write_text("instructions:\n  - Count the birds.\n  - |\n    Look.\n    Count.\n")
    assert instructions_beside(library.get("t/few")) == ["Count the birds.", "Look.\nCount.\n"]
    assert library.names() == ["t/chain", "t/few", "t/zero"]  # it is no template
    beside.write_text("instructions: []\n")
    with pytest.raises(UserError, match=r"few.instructions:1: instructions: "):
        instructions_beside(library.get("t/few"))
    with pytest.raises(UserError, match=r"none.yaml: cannot be read"):
        read_instructions(home / "none.yaml")


# Candidates


def test_candidates_are_the_start_the_instructions_and_random_exemplars(home):
    start = Library(home / "library").get("t/few")
    drawn = draw_candidates(start, pool_of(home), ["One.", "Two."], None, 12, 3)
    assert [each.number for each in drawn] == list(range(12))
    assert drawn[0].template == start
    assert [each.template.system for each in drawn[:3]] == ["Count the gulls.", "One.", "Two."]
    assert all(each.ids == () for each in drawn[:3])
    assert len({(each.template.system, each.ids) for each in drawn}) == 12
    for each in drawn[3:]:
        settings = each.template.exemplars
        assert (settings.selector, settings.k, tuple(settings.ids)) == ("fixed", 2, each.ids)
        assert len(set(each.ids)) == 2
        assert each.template.system == (each.instruction or "Count the gulls.")
    assert len({each.template.system for each in drawn[3:]}) == 3
    again = draw_candidates(start, pool_of(home), ["One.", "Two."], None, 12, 3)
    assert [each.ids for each in again] == [each.ids for each in drawn]
    other = draw_candidates(start, pool_of(home), ["One.", "Two."], None, 12, 4)
    assert [each.ids for each in other] != [each.ids for each in drawn]


def test_there_are_no_more_candidates_than_there_are(home):
    library = Library(home / "library")
    # Two of six in order: 30 ways beside the start.
    assert len(draw_candidates(library.get("t/few"), pool_of(home), [], None, 200, 0)) == 31
    zero = LIBRARY.get("arithmetic/zero_shot")
    assert len(draw_candidates(zero, [], ["Count."], None, 9, 0)) == 2


def test_an_instruction_that_does_not_fit_is_named_by_its_number(home):
    start = Library(home / "library").get("t/few")
    with pytest.raises(UserError, match=r"instruction 2: .*few.yaml:3: system: reads 'x'"):
        draw_candidates(start, pool_of(home), ["Fine.", "{{ x }}"], None, 5, 0)


def test_half_of_the_candidates_show_rationales_of_the_model(home):
    start = Library(home / "library").get("t/chain")
    chains = Chains(home / "chains.jsonl", ("p1", "p4"))
    drawn = draw_candidates(start, pool_of(home), [], chains, 30, 0)
    with_chains = [each for each in drawn if each.bootstrapped]
    assert 6 < len(with_chains) < 24
    for each in drawn[1:]:
        pool = str(home / "chains.jsonl") if each.bootstrapped else "../../pool.jsonl"
        assert each.template.exemplars.pool == pool
        own = tuple(one for one in each.ids if one in chains.ids)
        assert each.bootstrapped in {own, ()}
    nothing = Chains(home / "chains.jsonl", ())
    assert not any(e.bootstrapped for e in draw_candidates(start, pool_of(home), [], nothing, 9, 0))


def test_the_joint_tells_where_the_answer_begins(home):
    assert joint_of(LIBRARY.get("arithmetic/chain_of_thought")) == "The answer is"
    assert joint_of(LIBRARY.get("text_to_sql/chain_of_thought")) == "SQL:"
    for name in ("arithmetic/few_shot", "arithmetic/zero_shot"):
        with pytest.raises(UserError, match=r"exemplars.answer: bootstrapped rationales need"):
            joint_of(LIBRARY.get(name))


def test_a_chain_is_used_when_it_ended_right_and_in_the_exemplars_form(tmp_path):
    outputs = {
        "right": ("So 3 + 4 = 7. The answer is 7. The answer is 7.", True),
        "wrong": ("So 3 + 4 = 8. The answer is 8.", False),
        "other form": ("7", True),
        "no chain": ("The answer is 7.", True),
    }
    rows = [row(item, passed, output=text) for item, (text, passed) in outputs.items()]
    pool = [Item(item, {"question": "?", "rationale": "mine"}, 1) for item in [*outputs, "new"]]
    chains = write_chains(full_cell(rows), pool, "The answer is", tmp_path / "chains.jsonl")
    assert chains.ids == ("right",)
    written = load_items(chains.pool)
    assert [each.fields["rationale"] for each in written] == [
        "So 3 + 4 = 7. The answer is 7.", "mine", "mine", "mine", "mine",
    ]  # fmt: skip
    assert [each.id for each in written] == [*outputs, "new"]


# Split and halving


def test_the_split_depends_on_id_and_seed_only():
    items = [Item(f"i{n}", {}, n) for n in range(40)]
    dev, held_out = split(items, 0.5, 0)
    assert len(dev) == len(held_out) == 20
    assert {item.id for item in dev} | {item.id for item in held_out} == {i.id for i in items}
    again = split(items[::-1], 0.5, 0)
    assert again == (dev, held_out)
    assert split(items, 0.5, 1) != (dev, held_out)
    fewer = [item.id for part in split(items[:39], 0.5, 0) for item in part]
    assert fewer == [item.id for item in [*dev, *held_out] if item.id != "i39"]
    assert [len(part) for part in split(items, 0.3, 0)] == [12, 28]
    with pytest.raises(UserError, match=r"3 items cannot be split into 2 .* and 1 to measure on"):
        split(items[:3], 0.5, 0)


def test_halving_in_closed_form():
    # 8 on 5, 4 on 10, 2 on 20: 40 + 20 + 20 answers.
    assert halving(8, 20, 80) == (Rung(8, 5), Rung(4, 10), Rung(2, 20))
    # One answer less pays for 4, 8 and 16 first: 64; what is left is for the last two.
    assert halving(8, 20, 79) == (Rung(8, 4), Rung(4, 8), Rung(2, 20))
    assert halving(8, 20, 64) == (Rung(8, 4), Rung(4, 8), Rung(2, 16))
    assert halving(8, 20, 63) == ()
    assert halving(8, 20, 10_000) == (Rung(8, 20), Rung(4, 20), Rung(2, 20))
    assert halving(2, 20, 25) == (Rung(2, 12),)
    assert halving(3, 2, 6) == (Rung(3, 2), Rung(2, 2))
    assert halving(5, 20, -3) == ()


@given(st.integers(2, 40), st.integers(2, 60), st.integers(0, 2000))
def test_halving_keeps_to_the_budget(count, items, evaluations):
    steps = halving(count, items, evaluations)
    if not steps:
        assert evaluations < 4 * count + 4 * count + 8 * count
        return
    spent, before = 0, 0
    for step in steps:
        assert step.items >= before
        spent += step.candidates * (step.items - before)
        before = step.items
    assert spent <= evaluations
    assert before <= items
    assert (steps[0].candidates, steps[-1].candidates) == (count, 2)
    # What is left would not pay for one more item, unless all were answered.
    assert before == items or evaluations - spent < 2


# The search


def test_a_search_keeps_to_its_budget_and_is_the_same_again(home, tiny_llama):
    found = searched(home, tiny_llama, budget=90, instructions=["Look at the gate."])
    assert found.answers <= found.budget == 90
    assert [len(found.dev), len(found.held_out)] == [15, 15]
    assert not set(found.dev) & set(found.held_out)
    assert {each.candidate.number for each in found.trials} == set(range(6))
    items = [each.items for each in found.trials]
    assert items == sorted(items, reverse=True)
    last = [each for each in found.trials if each.items == items[0]]
    assert found.trials[0].score == max(each.score for each in last)
    assert 0 in {each.candidate.number for each in last}, "the start stays to the end"
    saved = (home / "out" / "search.json").read_text()
    assert json.loads(saved)["answers"] == found.answers
    # Without the cache, with other batches and another place: the same search.
    searched(home, tiny_llama, out="again", budget=90, instructions=["Look at the gate."],
             cache=None, batch_size=8)  # fmt: skip
    assert (home / "again" / "search.json").read_text() == saved


def test_the_gain_is_that_of_a_run_on_the_held_out_items(home, tiny_llama):
    seeds = (searched(home, tiny_llama, seed=seed, candidates=4) for seed in range(10))
    found = next(found for found in seeds if found.best.number)
    start, best = read_results(found.path / "held_out")
    assert (start.template, best.template) == ("t/few", f"t/few#{found.best.number}")
    assert start.items == list(found.held_out)
    gain = found.gain
    assert gain.difference.value == pytest.approx(best.score.mean() - start.score.mean())
    assert gain.difference.ci95.low < gain.difference.value < gain.difference.ci95.high
    assert found.answers <= 200
    assert [item.id for item in load_items(found.path / "dev.jsonl")] == list(found.dev)


def test_rationales_are_bootstrapped_within_the_budget(home, tiny_llama):
    never = "metrics: []\nassertions: [{type: not-contains, value: zebra}]\n"
    found = searched(home, tiny_llama, "t/chain", more=never, bootstrap=True, budget=150)
    rows = load_items(found.path / "bootstrapped_pool.jsonl")
    assert [each.id for each in rows] == [each.id for each in pool_of(home)]
    own = [each for each in rows if each.fields["rationale"] != "Well,"]
    assert own, "a random model writes an e sooner or later"
    assert any(trial.candidate.bootstrapped for trial in found.trials)
    assert found.answers <= 150
    # All pass, so nothing is better than the start, and no answers go to the held-out items.
    assert found.best.number == 0
    assert found.comparison is None
    assert not (found.path / "held_out").exists()
    assert found.sentences()[1] == "None did better on them than t/chain as it is."
    with pytest.raises(UserError, match=r"t/chain: nothing did better"):
        write_template(found, Library(home / "library"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "t/fewer"}, r"gulls.yaml: lists no template 't/fewer'; did you mean 't/few'"),
        ({"template": "t/zero"}, r"zero.yaml: has no exemplars, and there is no other instruction"),
        ({"budget": 37}, r"budget=37: 2 candidates and the held-out items need 38 answers"),
        ({"candidates": 1}, r"candidates=1: .* ask for 2 at least"),
        ({"instructions": ["A.", "B."], "candidates": 2}, r"candidates=2: .* ask for 3 at least"),
        ({"dev_share": 1.0}, r"dev_share must lie between 0 and 1"),
        ({"alpha": 0.0}, r"alpha must lie between 0 and 1"),
        ({"bootstrap": True}, r"few.yaml:6: exemplars.answer: bootstrapped rationales need"),
        ({"more": "target: right\n"}, r"items.jsonl:1: item i00 has no field 'right'"),
        ({"more": "limit: 3\n"}, r"3 items cannot be split"),
        ({"out": "library"}, r"library: holds something else"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(home, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        searched(home, tmp_path / "nowhere", **options)
    assert not (home / "out").exists()


def test_the_least_budget_is_enough(home, tiny_llama):
    found = searched(home, tiny_llama, budget=38)
    assert len(found.trials) == 2
    assert found.asked == 6
    assert found.answers <= 38


def test_likelihood_and_samples_are_counted(home):
    from prompts.search import _price

    few = Library(home / "library").get("t/few")
    suite = suite_of(home, "repeats: 3\n")
    hot = few.generation.model_copy(update={"temperature": 0.7})
    assert _price(suite, few) == 1
    assert _price(suite, few.model_copy(update={"generation": hot})) == 3
    assert _price(suite, LIBRARY.get("commonsense/likelihood")) == 1
    assert _price(suite, LIBRARY.get("arithmetic/zero_shot_cot")) == 2
    assert _price(suite, LIBRARY.get("arithmetic/self_consistency")) == 15


# What is said, and what is written


def outcome(home: Path, before: list[int], after: list[int], number: int = 1) -> Search:
    start = Library(home / "library").get("t/few")
    drawn = draw_candidates(start, pool_of(home), ["Look."], None, 4, 0)
    trials = [Trial(drawn[place], 10, 0.5, 0.5) for place in (number, 0)]
    cells: list[Cell] = [cell(values) for values in (before, after)]
    return Search(
        path=home / "out", suite="gulls", model="tiny", start=start, trials=tuple(trials),
        asked=4, dev=("a",), held_out=tuple(cells[0].items),
        comparison=compare_cells(*cells), alpha=0.05, budget=99, answers=60, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "real", "said"),
    [
        ([0] * 20, [1] * 8 + [0] * 12, True, "The gain is real at alpha = 0.05."),
        ([0] * 20, [1] * 3 + [0] * 17, False, "not distinguishable from noise at alpha = 0.05"),
        ([1] * 20, [0] * 8 + [1] * 12, False, "worse than the start: keep the start."),
        ([0] * 8, [1] * 8, False, "8 items are too few to tell a gain from noise: use more."),
    ],
)
def test_a_gain_is_called_real_only_when_it_is_distinguishable(home, before, after, real, said):
    found = outcome(home, before, after)
    assert found.real is real
    sentences = found.sentences()
    assert said in sentences[-1]
    assert sentences[1] == 'The best has the instruction "Look.".'
    assert found.as_dict()["real"] is real
    json.dumps(found.as_dict(), allow_nan=False)


def test_the_gain_is_said_with_its_interval(home):
    said = outcome(home, [0] * 20, [1] * 3 + [0] * 17).sentences()[2]
    # Bonett and Price: (3 + 1) / 22 - 1 / 22 = 13.6 points, ± 1.96 · √((5/22 - (3/22)²) / 22).
    assert said == (
        "On 20 held-out items, which the choice did not see, its mean score is 15.0\u00a0% against "
        "0.0\u00a0%: a difference of 15.0 points (95 % interval −5.5 to 32.7, p = 0.250)."
    )


def test_the_best_replaces_the_template_and_both_versions_are_recorded(home):
    library = Library(home / "library")
    before = library.get("t/few")
    found = outcome(home, [0] * 20, [1] * 3 + [0] * 17, number=3)
    written = write_template(found, library)
    assert library.get("t/few") == written
    assert written.exemplars.selector == "fixed"
    assert tuple(written.exemplars.ids) == found.best.ids
    assert written.exemplars.pool == "../../pool.jsonl"
    old, new = library.history.versions("t/few")
    assert library.history.restore(old, home / "old").exemplars == before.exemplars.model_copy(
        update={"pool": "../../pool/pool.jsonl"}
    )
    assert "not distinguishable from noise" in new.note
    with pytest.raises(UserError, match=r"t/chain.yaml: exists already; choose another name"):
        write_template(found, library, "t/chain")
    elsewhere = write_template(found, library, "deeper/t/best")
    assert elsewhere.exemplars.pool == "../../../pool.jsonl"
    assert elsewhere.pool_path.resolve() == (home / "pool.jsonl").resolve()


def test_rationales_of_the_model_are_written_beside_the_template(home):
    library = Library(home / "library")
    start = library.get("t/chain")
    chains = Chains(home / "out" / "chains.jsonl", ("p1",))
    rows = [json.loads(line) for line in (home / "pool.jsonl").read_text().splitlines()]
    rows[1]["rationale"] = "Because it is late,"
    (home / "out").mkdir()
    write_rows(chains.pool, rows)
    drawn = draw_candidates(start, pool_of(home), [], chains, 9, 0)
    best = next(each for each in drawn if each.bootstrapped)
    found = outcome(home, [0] * 20, [1] * 3 + [0] * 17)
    found = Search(**{**vars(found), "start": start, "trials": (Trial(best, 10, 0.5, 0.5),)})
    assert found.sentences()[1].endswith("rationales of the model itself in p1.")
    written = write_template(found, library, "t/best")
    assert written.exemplars.pool == "best.pool.jsonl"
    assert load_items(written.pool_path)[1].fields["rationale"] == "Because it is late,"
    assert "t/best" in library.names()


def test_a_search_takes_the_instructions_beside_the_template(home, tmp_path):
    beside = home / "library" / "t" / "few.instructions"
    beside.write_text("instructions: [Count., Look.]\n")
    with pytest.raises(UserError, match=r"candidates=2: .* ask for 3 at least"):
        searched(home, tmp_path / "nowhere", candidates=2)
    with pytest.raises(UserError, match="nowhere"):  # none are asked for: on to the model
        searched(home, tmp_path / "nowhere", candidates=2, instructions=[])

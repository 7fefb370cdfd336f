from math import comb
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prompts.annotate import write_rows
from prompts.cache import Cache
from prompts.cached_model import CachedModel
from prompts.items import Item, load_items
from prompts.preferences import Preferences, Verdict, prefer, verdict
from prompts.rendering import compile_template, token_ids
from prompts.template import load_template
from reward.data import tokenize
from workbench.data import load
from workbench.errors import UserError
from workbench.models import ModelSettings, load_policy, load_tokenizer

PACKAGED = Path(__file__).parents[2] / "prompts" / "library"
PREFERENCE = load_template(PACKAGED / "annotate" / "preference.yaml", PACKAGED)
DATA = Path("answers.jsonl")
ANSWERS = (
    "Tar keeps the boats dry.",
    "Rain.",
    "Nobody could say who painted it.",
    "Put the kettle on, and count the gulls.",
    "So that it may rest.",
)
WORDS = ("tar", "rain", "rice", "gulls", "lift", "tea", "bread", "gate", "kettle", "ferry")
ITEMS = [
    Item(
        f"i{n}",
        {
            "prompt": f"Why does the {word} hum?",
            "completions": [ANSWERS[n % 5], ANSWERS[(n + 1 + n % 3) % 5]],
            "category": "sea" if n % 2 else "land",
        },
        n + 1,
    )
    for n, word in enumerate(WORDS)
]


def annotator(folder: Path) -> CachedModel:
    return CachedModel("judge", str(folder), Cache(None), precision="fp32")


@pytest.fixture(scope="module")
def judge(tiny_llama) -> CachedModel:
    """A random model: it favours the place A, but not for every pair."""
    return annotator(tiny_llama)


@pytest.fixture(scope="module")
def always_a(tiny_gpt2, tmp_path_factory) -> CachedModel:
    """A GPT-2 that is deaf: its next token is A rather than B, whatever was said."""
    folder = tmp_path_factory.mktemp("always-a")
    tokenizer = load_tokenizer(str(tiny_gpt2))
    model = load_policy(ModelSettings(name=str(tiny_gpt2)))
    (a,) = tokenizer("A", add_special_tokens=False)["input_ids"]
    norm = model.base_model.ln_f
    with torch.no_grad():
        row = model.get_input_embeddings().weight[a]
        norm.weight.zero_()
        norm.bias.copy_(5.0 * row / row.square().sum())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return annotator(folder)


def log_odds(tokenizer, model, prompt: str, answer_a: str, answer_b: str) -> float:
    """Ask one question by the model's own forward pass."""
    fields = {"prompt": prompt, "answer_a": answer_a, "answer_b": answer_b}
    ids = token_ids(tokenizer, compile_template(PREFERENCE).render(Item("q", fields, 1)))
    a, b = (tokenizer(x, add_special_tokens=False)["input_ids"][0] for x in "AB")
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    return float(logprobs[a] - logprobs[b])


# Two orders


@pytest.mark.parametrize(
    ("first", "swapped", "expected"),
    [
        (2.0, -1.0, Verdict(1.5, 1, 0)),
        (-2.0, 1.0, Verdict(-1.5, -1, 0)),
        (2.0, 1.0, Verdict(0.5, 0, 1)),  # A both times
        (-1.0, -3.0, Verdict(1.0, 0, -1)),  # B both times, less readily when it was the second
        (0.0, -1.0, Verdict(0.5, 0, 0)),
        (0.0, 0.0, Verdict(0.0, 0, 0)),
    ],
)
def test_a_favourite_is_one_that_both_orders_name(first, swapped, expected):
    assert verdict(first, swapped) == expected


odds = st.integers(-512, 512).map(lambda number: number / 64)  # exact in binary


@given(first=odds, swapped=odds, bias=odds)
def test_a_constant_favour_for_a_place_cancels_out_of_the_margin(first, swapped, bias):
    assert verdict(first + bias, swapped + bias).margin == verdict(first, swapped).margin


@given(first=odds, swapped=odds)
def test_answers_given_in_the_other_order_turn_the_verdict_round(first, swapped):
    one, other = verdict(first, swapped), verdict(swapped, first)
    assert (other.margin, other.favourite) == (-one.margin, -one.favourite)
    assert other.place == one.place


# Rows


def test_margin_and_order_are_those_of_plain_forward_passes(judge, tiny_llama):
    found = prefer(judge, PREFERENCE, ITEMS, DATA, disagreement="average")
    assert len(found.rows) == len(ITEMS)
    model = load_policy(ModelSettings(name=str(tiny_llama)), torch.float32).eval()
    asked = (load_tokenizer(str(tiny_llama)), model)
    for item, row in zip(ITEMS, found.rows, strict=True):
        prompt, (one, other) = item.fields["prompt"], item.fields["completions"]
        first = log_odds(*asked, prompt, one, other)
        swapped = log_odds(*asked, prompt, other, one)
        better, worse = (one, other) if first > swapped else (other, one)
        assert (row["prompt"], row["chosen"], row["rejected"]) == (prompt, better, worse)
        assert row["margin"] == pytest.approx(abs(first - swapped) / 2, abs=1e-4)
        assert row["orders_agree"] == ((first > 0) != (swapped > 0))
        assert row["position_bias"] == (not row["orders_agree"])
        assert (row["weight"], row["annotator"], row["tie"]) == (1.0, "judge", False)
        assert row["category"] == item.fields["category"]


def test_the_order_of_the_answers_changes_nothing(judge):
    turned = [
        Item(i.id, i.fields | {"completions": i.fields["completions"][::-1]}, i.line) for i in ITEMS
    ]
    one = prefer(judge, PREFERENCE, ITEMS, DATA, disagreement="average")
    other = prefer(judge, PREFERENCE, turned, DATA, disagreement="average")
    for a, b in zip(one.rows, other.rows, strict=True):
        assert (a["chosen"], a["margin"]) == (b["chosen"], pytest.approx(b["margin"], abs=1e-5))
    assert (one.agreed, one.first, one.second) == (other.agreed, other.first, other.second)


def test_pairs_whose_orders_disagree_are_left_out_and_counted(judge):
    everything = prefer(judge, PREFERENCE, ITEMS, DATA, disagreement="average")
    kept = prefer(judge, PREFERENCE, ITEMS, DATA)
    agreed = [row for row in everything.rows if row["orders_agree"]]
    assert 0 < len(agreed) < len(ITEMS)
    assert kept.rows == agreed
    assert kept.dropped["orders disagree"] == len(ITEMS) - len(agreed)
    assert (kept.asked, kept.agreed) == (len(ITEMS), len(agreed))
    assert kept.agreed + kept.first + kept.second == len(ITEMS)


def test_a_tie_is_half_a_win_for_each(judge):
    found = prefer(judge, PREFERENCE, ITEMS, DATA, disagreement="tie")
    ties = [row for row in found.rows if row["tie"]]
    assert len(found.rows) - len(ties) == found.agreed
    assert len(ties) == 2 * (len(ITEMS) - found.agreed)
    for one, other in zip(ties[::2], ties[1::2], strict=True):
        assert (one["chosen"], one["rejected"]) == (other["rejected"], other["chosen"])
        assert one["margin"] == other["margin"] == 0.0
        assert one["weight"] == other["weight"] == 0.5
        assert one["position_bias"]
        assert one["id"] != other["id"]
    assert sum(found.dropped.values()) == 0


def test_an_annotator_that_knows_only_the_place_labels_nothing(always_a):
    dropped = prefer(always_a, PREFERENCE, ITEMS, DATA)
    assert dropped.rows == []
    assert (dropped.agreed, dropped.first, dropped.second) == (0, len(ITEMS), 0)
    averaged = prefer(always_a, PREFERENCE, ITEMS, DATA, disagreement="average")
    assert averaged.rows == []
    assert averaged.dropped["no favourite"] == len(ITEMS)
    tied = prefer(always_a, PREFERENCE, ITEMS, DATA, disagreement="tie")
    assert len(tied.rows) == 2 * len(ITEMS)


def test_every_pair_of_several_answers_is_asked_and_the_prompt_counts_once(judge):
    completions = [*ANSWERS[:3], ANSWERS[0]]
    fields = {"prompt": "Why?", "completions": completions, "weight": 2.0}
    item = Item("k", fields | {"finished": [True, False, True, True], "gold": [0.1] * 4}, 1)
    found = prefer(judge, PREFERENCE, [item], DATA, disagreement="average")
    assert found.asked == comb(4, 2)
    assert found.dropped["same answers"] == 1
    assert len(found.rows) == 5
    for row in found.rows:
        assert row["weight"] == pytest.approx(2 / 6)
        assert row["chosen_finished"] == (row["chosen"] != ANSWERS[1])
        assert row["rejected_finished"] == (row["rejected"] != ANSWERS[1])
        assert not {"completions", "finished", "ranks", "gold"} & set(row)


def test_equal_answers_ask_nothing(judge):
    known = judge.generated + judge.cached
    item = Item("e", {"prompt": "Why?", "completions": ["So.", " So."]}, 1)
    found = prefer(judge, PREFERENCE, [item], DATA)
    assert (found.rows, found.asked, found.dropped["same answers"]) == ([], 1, 1)
    assert judge.generated + judge.cached == known


def test_conversations_keep_their_form_and_are_shown_with_roles(judge):
    turns = [{"role": "user", "content": "Why does the lift hum?"}]
    messages = [
        Item("m", {"prompt": turns, "completions": [answer(text) for text in ANSWERS[:2]]}, 1)
    ]
    texts = [Item("t", {"prompt": "Why does the lift hum?", "completions": list(ANSWERS[:2])}, 1)]
    (one,) = prefer(judge, PREFERENCE, messages, DATA, disagreement="average").rows
    (other,) = prefer(judge, PREFERENCE, texts, DATA, disagreement="average").rows
    assert one["prompt"] == turns
    assert one["chosen"] == answer(other["chosen"])
    assert one["margin"] == other["margin"]
    longer = [*turns, *answer("It is old."), {"role": "user", "content": "How old?"}]
    spoken = "User: Why does the lift hum?\nAssistant: It is old.\nUser: How old?"
    asked = [
        Item("l", messages[0].fields | {"prompt": longer}, 1),
        Item("s", texts[0].fields | {"prompt": spoken}, 2),
    ]
    one, other = prefer(judge, PREFERENCE, asked, DATA, disagreement="average").rows
    assert one["margin"] == other["margin"]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_the_file_is_what_the_reward_model_reads(judge, tmp_path, tiny_llama):
    found = prefer(judge, PREFERENCE, ITEMS, DATA, disagreement="tie")
    path = tmp_path / "pairs.jsonl"
    write_rows(found, path)
    loaded = load(str(path), ("preference",))
    assert loaded.rows == found.rows
    read = tokenize(loaded.rows, load_tokenizer(str(tiny_llama)), 512, "pairs", False)
    assert read.pairs == len(found.rows)
    assert sum(weight for row in read.rows for weight in row.weight) == pytest.approx(len(ITEMS))


def test_a_ranking_can_be_labelled_anew(judge, tmp_path):
    path = tmp_path / "rankings.jsonl"
    path.write_text('{"prompt": "Why?", "completions": ["So.", "Thus."], "ranks": [2, 1]}\n')
    found = prefer(judge, PREFERENCE, load_items(path), path, disagreement="average")
    (row,) = found.rows
    assert "ranks" not in row
    assert {row["chosen"], row["rejected"]} == {"So.", "Thus."}


def test_the_report_states_agreement_with_its_interval():
    # Clopper & Pearson: 8 of 10 is 44 % to 97 %.
    dropped = {"orders disagree": 2, "same answers": 1, "no favourite": 0}
    assert str(Preferences([], 11, dropped, 8, 2, 0)) == (
        "kept 8 of 11; left out: 2 orders disagree, 1 same answers; both orders agree on 8 of 10 "
        "pairs (80%, 95 % interval 44% to 97%), 2 times A was preferred in both, 0 times B"
    )
    nothing = {"orders disagree": 0, "same answers": 1, "no favourite": 0}
    assert str(Preferences([], 1, nothing, 0, 0, 0)) == "kept 0 of 1; left out: 1 same answers"


# What a user may get wrong


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "Why?"}, "answers.jsonl:7: completions is None; write"),
        ({"prompt": "Why?", "completions": "So."}, "answers.jsonl:7: completions is 'So.'"),
        ({"prompt": "Why?", "completions": ["So."]}, "answers.jsonl:7: .*at least two"),
        ({"prompt": "Why?", "completions": ["So.", " "]}, r"answers.jsonl:7: empty completions\[1"),
        ({"completions": ["So.", "Thus."]}, "answers.jsonl:7: missing key 'prompt'"),
        (
            {"prompt": "Why?", "completions": ["So.", "Thus."], "finished": [True]},
            "answers.jsonl:7: 'finished' is .* each of the 2 completions",
        ),
        (
            {"prompt": "Why?", "completions": ["So.", "Thus."], "finished": [True, 1]},
            "answers.jsonl:7: 'finished' is",
        ),
    ],
)
def test_a_wrong_row_is_named(judge, fields, message):
    with pytest.raises(UserError, match=message):
        prefer(judge, PREFERENCE, [Item("x", fields, 7)], DATA)


def test_a_template_that_does_not_rank_two_letters_is_refused(judge):
    label = load_template(PACKAGED / "annotate" / "label.yaml", PACKAGED)
    with pytest.raises(UserError, match=r"label\.yaml: a preference is read from two choices"):
        prefer(judge, label, ITEMS, DATA)


def test_an_unknown_way_to_settle_is_refused(judge):
    with pytest.raises(UserError, match="disagreement='keep': use one of drop, tie, average"):
        prefer(judge, PREFERENCE, ITEMS, DATA, disagreement="keep")

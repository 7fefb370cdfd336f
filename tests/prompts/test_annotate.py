import json
import math
from pathlib import Path

import pytest
import torch

from prompts.annotate import Annotation, judge_paraphrases, label, paraphrase, write_rows
from prompts.cache import Cache
from prompts.cached_model import CachedModel
from prompts.items import Item, load_items
from prompts.rendering import compile_template, token_ids
from prompts.template import Template, load_template
from workbench.data import load
from workbench.embedding import embed
from workbench.errors import UserError
from workbench.likelihood import answer_logprobs
from workbench.models import ModelSettings, load_policy, load_tokenizer

PACKAGED = Path(__file__).parents[2] / "prompts" / "library"
LABEL = load_template(PACKAGED / "annotate" / "label.yaml", PACKAGED)
PARAPHRASE = load_template(PACKAGED / "annotate" / "paraphrase.yaml", PACKAGED)
DATA = Path("texts.jsonl")
LABELS = ["praise", "complaint", "a question"]
ITEMS = [
    Item(f"t{n}", {"text": text, "source": "letters"}, n + 1)
    for n, text in enumerate(
        (
            "The lamp on the landing hums.",
            "Could you tell me how long the ferry takes?",
            "A spare button is worth more than a new coat.",
            "Nobody could say who had painted the gate.",
        )
    )
]
REWRITE = """
name: rewrite
strategy: zero_shot
template: "Other words: {{ text }}"
variables: {text: string}
stop: [STOPS]
generation: {max_new_tokens: 12, temperature: HEAT}
"""


@pytest.fixture(scope="module")
def model(tiny_qwen) -> CachedModel:
    return CachedModel("tiny", str(tiny_qwen), Cache(None), precision="fp32")


@pytest.fixture
def rewrite(tmp_path):
    """Make a short template that ends an answer at any of some letters."""

    def make(stop: str = "e, a, o, n, t", heat: float = 1.0) -> Template:
        path = tmp_path / "rewrite.yaml"
        path.write_text(REWRITE.replace("STOPS", stop).replace("HEAT", str(heat)))
        return load_template(path)

    return make


# Labels


def test_the_label_is_the_likeliest_and_its_confidence_a_softmax(model, tiny_qwen):
    found = label(model, LABEL, ITEMS, DATA, labels=LABELS)
    policy = load_policy(ModelSettings(name=str(tiny_qwen)), torch.float32).eval()
    tokenizer = load_tokenizer(str(tiny_qwen))
    tails = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in LABELS]
    assert (found.asked, found.dropped) == (len(ITEMS), {"unsure": 0})
    for item, row in zip(ITEMS, found.rows, strict=True):
        fields = item.fields | {"labels": LABELS}
        messages = compile_template(LABEL).render(Item(item.id, fields, 1))
        ids = token_ids(tokenizer, messages)
        sums = torch.tensor([math.fsum(r) for r in answer_logprobs(policy, [ids] * 3, tails)])
        best = int(sums.argmax())
        assert row["label"] == LABELS[best]
        assert row["confidence"] == pytest.approx(float(sums.softmax(0)[best]), abs=1e-4)
        assert row["prompt"] == messages
        assert row["completion"] == [{"role": "assistant", "content": LABELS[best]}]
        assert (row["id"], row["text"], row["source"]) == (item.id, item.fields["text"], "letters")
        assert row["annotator"] == "tiny"


def test_the_question_and_the_labels_are_shown(model):
    question = "What is the writer doing?"
    asked = label(model, LABEL, ITEMS[:1], DATA, labels=LABELS, question=question).rows[0]
    plain = label(model, LABEL, ITEMS[:1], DATA, labels=LABELS).rows[0]
    for row, first in ((asked, question), (plain, "Which label fits the text best?")):
        lines = row["prompt"][-1]["content"].splitlines()
        assert lines[:2] == [first, "Labels: praise, complaint, a question"]


def test_labels_below_the_confidence_are_left_out_and_counted(model):
    everything = label(model, LABEL, ITEMS, DATA, labels=LABELS).rows
    limit = sorted(row["confidence"] for row in everything)[1]
    found = label(model, LABEL, ITEMS, DATA, labels=LABELS, min_confidence=limit)
    assert found.rows == [row for row in everything if row["confidence"] >= limit]
    assert found.dropped == {"unsure": 1}
    assert str(found) == "kept 3 of 4; left out: 1 unsure"


def test_labelled_rows_are_training_data_whatever_they_were_before(model, tmp_path):
    before = {"prompt": "Why?", "chosen": "So.", "rejected": "Thus.", "messages": None}
    items = [Item(item.id, item.fields | before, item.line) for item in ITEMS]
    found = label(model, LABEL, items, DATA, labels=LABELS, field="chosen")
    path = tmp_path / "labelled.jsonl"
    write_rows(found, path)
    loaded = load(str(path), ("prompt_completion",))
    assert loaded.rows == found.rows
    assert [row["text"] for row in found.rows] == ["So."] * len(ITEMS)
    assert "rejected" not in found.rows[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["good"]}, r"labels \['good'\]: give at least two"),
        ({"labels": ["good", "bad", "good"]}, "all different"),
        ({"labels": ["good", " "]}, "none empty"),
        ({"labels": ["bad", "good", "good enough"]}, "label 'good' begins label 'good enough'"),
        ({"min_confidence": 1.5}, "min_confidence=1.5: must be between 0 and 1"),
        ({"field": "body"}, "texts.jsonl:1: 'body' is None; it must be a text"),
    ],
)
def test_wrong_labelling_is_explained(model, options, message):
    with pytest.raises(UserError, match=message):
        label(model, LABEL, ITEMS, DATA, **{"labels": LABELS} | options)


def test_a_template_that_does_not_rank_the_labels_is_refused(model):
    preference = load_template(PACKAGED / "annotate" / "preference.yaml", PACKAGED)
    with pytest.raises(UserError, match=r"preference\.yaml: a label is read from the choices"):
        label(model, preference, ITEMS, DATA, labels=LABELS)


# Paraphrases

CAT = "The cat slept on the red sofa all afternoon."
SAME = "All afternoon the cat was asleep on the red sofa."


def test_a_paraphrase_says_the_same_in_other_words():
    pairs = [
        (CAT, SAME),
        (CAT, "the cat slept on the red sofa, all afternoon"),
        (CAT, "Share prices fell sharply after the news."),
        (CAT, None),
        (CAT, " ... "),
        (CAT, SAME.upper()),
        ("All afternoon a cat slept.", SAME),  # of another text it is no repetition
    ]
    found = judge_paraphrases(pairs, 0.7)
    assert [reason for reason, _ in found] == [
        None, "unchanged", "another meaning", "unreadable", "unreadable", "repeated", None,
    ]  # fmt: skip
    source, same, far = embed([CAT, SAME, pairs[2][1]])
    assert found[0][1] == pytest.approx(float(source @ same), abs=1e-5)
    assert found[2][1] == pytest.approx(float(source @ far), abs=1e-5)
    assert found[1][1] is found[3][1] is found[5][1] is None
    assert found[0][1] > 0.9
    assert found[2][1] < 0.2
    assert judge_paraphrases(pairs[:1], 0.999) == [("another meaning", found[0][1])]
    assert judge_paraphrases([], 0.7) == []


def test_paraphrases_are_rows_of_their_own(model, rewrite):
    found = paraphrase(model, rewrite(), ITEMS, DATA, copies=6, min_similarity=-1.0)
    assert found.asked == 6 * len(ITEMS)
    assert len(found.rows) == found.asked - sum(found.dropped.values()) > 6
    texts = {item.id: item.fields["text"] for item in ITEMS}
    for row in found.rows:
        source = row["paraphrase_of"]
        assert row["id"] in {f"{source}-p{copy}" for copy in range(1, 7)}
        assert row["text"] != texts[source]
        a, b = embed([texts[source], row["text"]])
        assert row["similarity"] == pytest.approx(float(a @ b), abs=1e-5)
        assert (row["source"], row["annotator"]) == ("letters", "tiny")
    assert len({row["id"] for row in found.rows}) == len(found.rows)


def test_the_seed_decides(model, rewrite):
    def rows(seed: int) -> list[dict]:
        return paraphrase(model, rewrite(), ITEMS, DATA, min_similarity=-1.0, seed=seed).rows

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_what_is_far_or_unfinished_is_left_out_and_counted(model, rewrite):
    sampled = paraphrase(model, rewrite(), ITEMS, DATA, copies=6, min_similarity=-1.0)
    strict = paraphrase(model, rewrite(), ITEMS, DATA, copies=6, min_similarity=0.99)
    assert strict.rows == []  # a random model writes noise
    assert strict.dropped["another meaning"] == len(sampled.rows)
    assert strict.dropped["unfinished"] == sampled.dropped["unfinished"]
    cut = paraphrase(model, rewrite(stop="'never said'"), ITEMS, DATA, min_similarity=-1.0)
    assert (cut.rows, cut.dropped["unfinished"]) == ([], len(ITEMS))
    assert str(cut) == "kept 0 of 4; left out: 4 unfinished"


def test_another_field_can_be_rewritten(model, rewrite):
    items = [Item(i.id, {"prompt": i.fields["text"], "completion": "So."}, i.line) for i in ITEMS]
    options = {"copies": 3, "min_similarity": -1.0}
    found = paraphrase(model, rewrite(), items, DATA, field="prompt", **options)
    plain = paraphrase(model, rewrite(), ITEMS, DATA, **options)
    assert [row["prompt"] for row in found.rows] == [row["text"] for row in plain.rows]
    assert set(found.rows[0]) == {
        "id", "prompt", "completion", "paraphrase_of", "similarity", "annotator",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("heat", "options", "message"),
    [
        (0.0, {"copies": 2}, r"copies=2: .* template that samples .*rewrite\.yaml is 0\)"),
        (1.0, {"copies": 0}, "copies=0: ask for at least 1"),
        (1.0, {"min_similarity": 2.0}, "min_similarity=2.0: a cosine is between -1 and 1"),
        (1.0, {"field": "body"}, "texts.jsonl:1: 'body' is None; it must be a text"),
    ],
)
def test_wrong_paraphrasing_is_explained(model, rewrite, heat, options, message):
    with pytest.raises(UserError, match=message):
        paraphrase(model, rewrite(heat=heat), ITEMS, DATA, **options)


def test_a_template_that_writes_nothing_is_refused(model):
    with pytest.raises(UserError, match=r"label\.yaml: a paraphrase is written"):
        paraphrase(model, LABEL, ITEMS, DATA)


def test_the_starter_template_reads_one_line_without_quotes():
    from prompts.answers import Extraction

    extraction = Extraction(PARAPHRASE.answer)
    for text in (SAME, f'"{SAME}"', f"In other words: {SAME}", f"{SAME}\nI hope this helps."):
        assert extraction(text).strict == SAME


# Files


def test_rows_are_written_as_json_lines(tmp_path):
    rows = [{"id": "a", "text": "naïve\n"}, {"id": "b", "text": "x"}]
    path = tmp_path / "new" / "rows.jsonl"
    write_rows(Annotation(rows, 2, {}), path)
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == rows
    assert [item.id for item in load_items(path)] == ["a", "b"]


def test_no_rows_are_an_error_that_says_why(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(UserError, match="no row: kept 0 of 3; left out: 2 unsure, 1 unreadable"):
        write_rows(Annotation([], 3, {"unsure": 2, "unreadable": 1, "repeated": 0}), path)
    assert not path.exists()

import pytest
from sqlalchemy import select

from tests.ui.samples import pair_rows, ranking_rows
from ui.campaigns import create_campaign
from ui.rows import checked_row
from ui.schema import Answer, Item
from ui.settings import CampaignSettings
from workbench.errors import UserError

TWO = [{"model": "x", "text": "one"}, {"model": "y", "text": "two"}]


def test_a_row_gets_an_id_that_depends_on_its_prompt_only():
    first = checked_row("row 1", {"prompt": "Why?", "answers": TWO}, "pair")
    again = checked_row("row 2", {"prompt": "Why?", "answers": TWO[::-1]}, "pair")
    other = checked_row("row 3", {"prompt": "How?", "answers": TWO}, "pair")
    given = checked_row("row 4", {"prompt": "Why?", "answers": TWO, "prompt_id": "p7"}, "pair")
    assert first.prompt_id == again.prompt_id != other.prompt_id
    assert given.prompt_id == "p7"


@pytest.mark.parametrize(
    ("change", "mode", "message"),
    [
        ({"prompt": None}, "pair", "row 3: missing key 'prompt'"),
        ({"prompt": "  "}, "pair", "row 3: empty prompt"),
        ({"prompt": 7}, "pair", "row 3: 'prompt' is int"),
        ({"prompt": [{"role": "assistant", "content": "hi"}]}, "pair", "row 3: .*role"),
        ({"answers": TWO[:1]}, "pair", "row 3: 1 answers; in pair mode an item has 2"),
        ({"answers": TWO * 2}, "arena", "row 3: 4 answers; in arena mode an item has 2"),
        ({"answers": TWO}, "ranking", "row 3: 2 answers; in ranking mode an item has 4 to 9"),
        ({"answers": TWO * 5}, "ranking", "row 3: 10 answers; in ranking mode"),
        ({}, "chat", "row 3: a chat campaign takes no rows"),
        ({"answers": [{"model": "x"}, TWO[1]]}, "pair", "row 3: answers.0.text: Field required"),
        ({"answers": [TWO[0], {**TWO[1], "text": 5}]}, "pair", "answers.1.text: .*valid string"),
        ({"answers": [TWO[0], {**TWO[1], "model": ""}]}, "pair", "answers.1.model: .*at least 1"),
        ({"answers": [TWO[0], {**TWO[1], "tokens": -1}]}, "pair", "answers.1.tokens: "),
        ({"answers": [TWO[0], {**TWO[1], "tokens": 2.5}]}, "pair", "answers.1.tokens: "),
        ({"answers": [TWO[0], {**TWO[1], "done": True}]}, "pair", "answers.1.done: Extra"),
        ({"answers": "two"}, "pair", "row 3: answers: "),
        ({"prmpt_id": "p"}, "pair", "row 3: prmpt_id: Extra"),
        ({"prompt_id": "p" * 129}, "pair", "row 3: prompt_id: .*at most 128"),
        ({"category": 3}, "pair", "row 3: category: .*valid string"),
        ({"gold_best": "z"}, "pair", "row 3: gold_best='z' is not the model of one answer"),
        (
            {"gold_best": "x", "answers": [TWO[0], TWO[0]]},
            "pair",
            "gold_best='x' is not the model of one",
        ),
    ],
)
def test_a_bad_row_is_named_in_one_line(change, mode, message):
    row = {"prompt": "Why?", "answers": TWO, **change}
    with pytest.raises(UserError, match=message) as caught:
        checked_row("campaign test: row 3", row, mode)
    assert str(caught.value).startswith("campaign test: row 3: ")
    assert "\n" not in str(caught.value)


def test_a_row_that_is_no_row_is_named(store):
    with pytest.raises(UserError, match="campaign test: row 2: "):
        create_campaign(store, "test", [*pair_rows(1), "what?"])


def test_rows_come_back_as_they_were_given(store):
    rows = ranking_rows(3, answers=5)
    rows[1] |= {"gold_best": "model 4", "category": "logic", "prompt_id": "p1"}
    create_campaign(store, "test", rows, CampaignSettings(mode="ranking"))
    with store.reading() as session:
        items = session.scalars(select(Item).order_by(Item.position)).all()
        answers = [
            session.scalars(select(Answer).where(Answer.item_id == i.id).order_by(Answer.id)).all()
            for i in items
        ]
    assert [item.prompt for item in items] == [row["prompt"] for row in rows]
    assert [item.position for item in items] == [0, 1, 2]
    assert [item.kind for item in items] == ["normal", "gold", "normal"]
    assert [item.category for item in items] == [None, "logic", None]
    assert items[1].prompt_id == "p1"
    assert items[1].gold_best == answers[1][4].id
    assert [item.gold_best for item in (items[0], items[2])] == [None, None]
    for row, stored in zip(rows, answers, strict=True):
        assert [{"model": a.model, "text": a.text} for a in stored] == row["answers"]


def test_text_that_no_database_takes_is_mended(store):
    texts = [{"model": "x", "text": "a\0b\ud800"}, {"model": "y", "text": "👍" * 1000}]
    prompt = [{"role": "user", "content": "Why\0?"}]
    create_campaign(store, "test", [{"prompt": prompt, "answers": texts}])
    with store.reading() as session:
        stored = session.scalars(select(Answer.text).order_by(Answer.id)).all()
        assert stored == ["a\ufffdb?", "👍" * 1000]
        asked = session.scalars(select(Item.prompt)).one()
        assert asked == [{"role": "user", "content": "Why\ufffd?"}]


def test_answers_of_a_megabyte_are_kept(store):
    long = "word " * 200_000
    answers = [{"model": "x", "text": long}, {"model": "y", "text": ""}]
    create_campaign(store, "test", [{"prompt": "Why?", "answers": answers}])
    with store.reading() as session:
        assert set(session.scalars(select(Answer.text))) == {long, ""}

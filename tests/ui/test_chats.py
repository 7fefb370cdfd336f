import pytest
from sqlalchemy import select

from tests.ui.samples import NOON, PASSWORD, minutes
from ui.accounts import add_user
from ui.campaigns import close_campaign, create_campaign, find_campaign, pause_campaign
from ui.chats import (
    LONGEST_PROMPT,
    MOST_TURNS,
    Reply,
    checked_text,
    current_chat,
    draw_models,
    save_turn,
)
from ui.errors import Refused
from ui.schema import Answer, Assignment, Item, Turn
from ui.settings import CampaignSettings
from ui.votes import record_vote, undo_last

MODELS = {"base": "hub/zebra-9b", "aligned": "hub/okapi-9b"}


@pytest.fixture
def campaign(store):
    for name in ("ann", "bob"):
        add_user(store, name, PASSWORD)
    settings = CampaignSettings(mode="chat", lease_seconds=600)
    create_campaign(store, "chat", [], settings, models=MODELS)
    with store.reading() as session:
        return find_campaign(session, "chat")


def reply(text: str) -> Reply:
    return Reply(text, len(text.split()), finished=True)


def say(store, campaign, chat, text, left, right, user="ann", now=NOON):
    models = chat.models if chat else ("aligned", "base")
    return save_turn(store, campaign, user, chat, text, models, (reply(left), reply(right)), now)


def test_a_conversation_is_stored_turn_by_turn(store, campaign):
    assert current_chat(store, campaign, "ann", NOON) is None
    chat = say(store, campaign, None, "Hello", "Hi there", "Yes")
    chat = say(store, campaign, chat, "And now?", "Then", "Now", now=minutes(5))
    assert chat.models == ("aligned", "base")
    assert chat.turns == [("Hello", ("Hi there", "Yes")), ("And now?", ("Then", "Now"))]
    assert current_chat(store, campaign, "ann", minutes(14)) == chat
    assert current_chat(store, campaign, "bob", NOON) is None
    with store.reading() as session:
        item = session.scalars(select(Item)).one()
        answers = {answer.model: answer for answer in session.scalars(select(Answer))}
        turns = session.scalars(select(Turn).order_by(Turn.number)).all()
    assert (item.kind, item.prompt, item.position) == ("live", "Hello", 0)
    assert (answers["aligned"].text, answers["base"].text) == ("Then", "Now")
    assert [turn.text for turn in turns] == ["Hello", "And now?"]


def test_a_conversation_is_voted_on_and_undone_like_an_item(store, campaign):
    chat = say(store, campaign, None, "Hello", "Hi", "Yes")
    record_vote(store, "ann", chat.assignment_id, "a", seconds=9.0, now=NOON)
    assert current_chat(store, campaign, "ann", NOON) is None
    undo_last(store, "ann", "chat", minutes(1))
    assert current_chat(store, campaign, "ann", minutes(1)) == chat


def test_a_new_conversation_gives_up_the_open_one(store, campaign):
    first = say(store, campaign, None, "Hello", "Hi", "Yes")
    second = say(store, campaign, None, "Again", "Hi", "Yes")
    assert current_chat(store, campaign, "ann", NOON) == second
    with store.reading() as session:
        statuses = dict(session.execute(select(Assignment.id, Assignment.status)).all())
    assert statuses == {first.assignment_id: "expired", second.assignment_id: "leased"}
    with pytest.raises(Refused, match="this conversation is over"):
        say(store, campaign, first, "More", "a", "b")


def test_every_conversation_has_a_position_of_its_own(store, campaign):
    for user in ("ann", "bob", "ann"):
        say(store, campaign, None, "Hello", "Hi", "Yes", user=user)
    with store.reading() as session:
        assert list(session.scalars(select(Item.position).order_by(Item.id))) == [0, 1, 2]


def test_a_conversation_that_ran_out_is_over(store, campaign):
    chat = say(store, campaign, None, "Hello", "Hi", "Yes")
    assert current_chat(store, campaign, "ann", minutes(9.9)) is not None
    assert current_chat(store, campaign, "ann", minutes(10)) is None
    with pytest.raises(Refused) as error:
        say(store, campaign, chat, "More", "a", "b", now=minutes(11))
    assert error.value.reason == "expired"


def test_somebody_elses_conversation_is_not_gone_on_with(store, campaign):
    chat = say(store, campaign, None, "Hello", "Hi", "Yes")
    with pytest.raises(Refused) as error:
        say(store, campaign, chat, "More", "a", "b", user="bob")
    assert error.value.reason == "expired"


def test_a_leak_in_any_turn_is_marked(store, campaign):
    chat = say(store, campaign, None, "Who are you?", "I am okapi-9b.", "A friend")
    say(store, campaign, chat, "Sure?", "Yes", "As ChatGPT, I am sure")
    with store.reading() as session:
        leaks = {answer.model: answer.leak for answer in session.scalars(select(Answer))}
    assert "okapi" in leaks["aligned"]
    assert "ChatGPT" in leaks["base"]


def test_a_paused_campaign_begins_no_conversation_and_a_closed_one_goes_on_with_none(
    store, campaign
):
    chat = say(store, campaign, None, "Hello", "Hi", "Yes")
    pause_campaign(store, "chat")
    chat = say(store, campaign, chat, "More", "a", "b")
    with pytest.raises(Refused) as error:
        say(store, campaign, None, "Hello", "Hi", "Yes", user="bob")
    assert error.value.reason == "paused"
    close_campaign(store, "chat")
    with pytest.raises(Refused) as error:
        say(store, campaign, chat, "More", "a", "b")
    assert error.value.reason == "closed"


def test_a_conversation_does_not_go_on_for_ever(store, campaign):
    chat = None
    for number in range(MOST_TURNS):
        chat = say(store, campaign, chat, f"Turn {number}", "a", "b")
    with pytest.raises(Refused, match="turns are enough"):
        say(store, campaign, chat, "One more", "a", "b")


@pytest.mark.parametrize("text", ["", "  \n", "x" * (LONGEST_PROMPT + 1)])
def test_what_cannot_be_asked(text):
    with pytest.raises(Refused) as error:
        checked_text(text)
    assert error.value.reason == "invalid"


def test_what_can_be_asked():
    assert checked_text(" a\0b ") == "a\ufffdb"
    assert len(checked_text("x" * LONGEST_PROMPT)) == LONGEST_PROMPT


def test_sides_and_models_are_drawn_by_chance(campaign):
    drawn = [draw_models(campaign) for _ in range(400)]
    assert set(drawn) == {("aligned", "base"), ("base", "aligned")}
    assert 140 < drawn.count(("base", "aligned")) < 260  # six standard deviations
    three = replace_models(campaign, {**MODELS, "third": "x"})
    assert len({draw_models(three) for _ in range(400)}) == 6


def replace_models(campaign, models):
    campaign.models = models
    return campaign

"""The pages in a real browser: people rating, two at once, and researchers reading the results.

Chromium is Debian's, or the one named by $CHROMIUM. `make screenshots` takes pictures of all.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright
from sqlalchemy import select

from tests.ui import scenery
from tests.ui.pages import Visitor, serving
from tests.ui.samples import PASSWORD, pair_rows, ranking_rows
from tests.ui.tour import CHROMIUM, CUT_OFF, SIZES, started, tour
from ui.accounts import LoginLimiter, RateLimiter, add_user
from ui.assignment import next_assignment
from ui.campaigns import create_campaign
from ui.live import LiveModels
from ui.schema import Answer, Assignment, Campaign, Event, Turn, User, Vote, utc_now
from ui.server import create_app
from ui.settings import CampaignSettings
from ui.store import Store
from ui.votes import record_vote
from workbench.generation import SamplingSettings

HOSTILE = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'> "
    "![beacon](https://evil.example/b.png) \u202egnp.exe"
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium: the pages are not tried in a browser (apt-get install chromium)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = started(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory, sqlite_template, tiny_llama) -> Iterator[Store]:
    path = tmp_path_factory.mktemp("browser") / "ratings.db"
    path.write_bytes(sqlite_template.read_bytes())
    opened = Store(f"sqlite:///{path}")
    for name in ("ann", "bob"):
        add_user(opened, name, PASSWORD)
    add_user(opened, "rita", PASSWORD, "researcher")
    models = {"base": str(tiny_llama), "aligned": str(tiny_llama)}
    arena = CampaignSettings(mode="arena", guidelines="Be *fair*.")
    create_campaign(opened, "arena", [], arena, models=models)
    create_campaign(opened, "chat", [], CampaignSettings(mode="chat"), models=models)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def address(store) -> Iterator[str]:
    live = LiveModels(SamplingSettings(max_new_tokens=24, temperature=1.0))
    limits = {"logins": LoginLimiter(1000, 1000), "requests": RateLimiter(1000, 10_000)}
    with serving(create_app(store, b"s" * 64, live=live, **limits)) as url:
        yield url


@pytest.fixture(scope="module")
def cookies(address) -> dict[str, str]:
    return {
        name: Visitor(address, name).http.cookies["rlhf_session"] for name in ("ann", "bob", "rita")
    }


@pytest.fixture
def visit(browser, address, cookies) -> Iterator:
    """Open a page as somebody who has logged in; every context has cookies of its own."""
    opened: list[BrowserContext] = []
    outside: list[str] = []
    troubles: list[str] = []

    def open_page(name: str, path: str, size: str = "desktop", scheme: str = "light") -> Page:
        width, height = SIZES[size]
        context = browser.new_context(
            base_url=address,
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            is_mobile=size == "phone",
            has_touch=size == "phone",
        )
        opened.append(context)
        if name:
            cookie = {"name": "rlhf_session", "value": cookies[name], "url": address}
            context.add_cookies([cookie])
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda sent: outside.append(sent.url))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(path)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert troubles == []
    # Fonts, scripts, beacons: nothing is asked of anybody else.
    own = (f"{address}/", "data:", "blob:")
    assert [url for url in outside if not url.startswith(own)] == []


@pytest.fixture
def campaign(store, request) -> str:
    """A campaign of pairs of the test's own."""
    name = re.sub(r"\W+", " ", request.node.name).strip()
    create_campaign(store, name, pair_rows(12), CampaignSettings(raters_per_item=2))
    return name


def rate(visit, name: str, campaign: str, **options: str) -> Page:
    """Open a campaign as a rater, and go past the guidelines."""
    page = visit(name, f"/rate/?campaign={campaign}", **options)
    page.get_by_role("button", name="Begin").click()
    return page


def shown(page: Page) -> list[str]:
    return page.locator(".answer .body").all_inner_texts()


def votes(store, campaign: str) -> list[Vote]:
    with store.reading() as session:
        found = select(Vote).join(Campaign).where(Campaign.name == campaign).order_by(Vote.id)
        return list(session.scalars(found))


def said(page: Page, text: str | re.Pattern) -> None:
    expect(page.locator("#status")).to_have_text(text)


# --- raters ---------------------------------------------------------------------------------


def test_log_in_read_the_guidelines_and_vote_by_mouse(visit, store, campaign):
    page = visit("", f"/rate/?campaign={campaign}")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("not the password")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("do not go together")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Guidelines")).to_be_visible()
    expect(page.locator("#vote")).to_be_hidden()
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_text("12 left")).to_be_visible()
    first = shown(page)
    page.get_by_role("button", name="B much better").click()
    said(page, "Saved.")
    expect(page.get_by_text("11 left")).to_be_visible()
    assert shown(page) != first
    (vote,) = votes(store, campaign)
    assert vote.choice == "b_much"
    assert 0 < vote.seconds < 60
    with store.reading() as session:
        order = session.get_one(Assignment, vote.assignment_id).order
        texts = [session.get_one(Answer, answer).text for answer in order]
    assert texts == first  # what is stored as left stood on the left
    page.reload()
    expect(page.locator(".answer")).to_have_count(2)  # the guidelines are not shown again


def test_every_key_votes_as_it_says(visit, store, campaign):
    page = rate(visit, "ann", campaign)
    for number, key in enumerate("12345tbs"):
        expect(page.get_by_text(f"{12 - number} left")).to_be_visible()
        page.keyboard.press(key)
    expect(page.get_by_text("4 left")).to_be_visible()
    chosen = ["a_much", "a", "tie", "b", "b_much", "tie", "both_bad", "skip"]
    assert [vote.choice for vote in votes(store, campaign)] == chosen
    page.keyboard.press("u")
    said(page, re.compile("taken back"))
    expect(page.get_by_text("5 left")).to_be_visible()
    assert len(votes(store, campaign)) == 7


def test_keys_are_for_typing_in_a_field(visit, store, campaign):
    page = rate(visit, "ann", campaign)
    page.keyboard.press("m")
    page.keyboard.type("12 tubs")
    page.keyboard.press("Control+5")
    expect(page.get_by_label("Comment")).to_have_value("12 tubs")
    assert votes(store, campaign) == []
    page.keyboard.press("Escape")
    page.keyboard.press("Control+1")  # the browser's own
    page.keyboard.press("x")
    assert votes(store, campaign) == []
    page.keyboard.press("1")
    said(page, "Saved.")
    (vote,) = votes(store, campaign)
    assert vote.comment == "12 tubs"
    expect(page.get_by_label("Comment")).to_have_value("")
    page.keyboard.press("?")
    page.get_by_label("Use these keys").uncheck()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("1")
    page.wait_for_timeout(300)
    assert len(votes(store, campaign)) == 1


def test_buttons_are_dead_until_the_next_pair_is_there(visit, store, campaign):
    page = rate(visit, "ann", campaign)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/component_server/", hold)
    first = shown(page)
    page.get_by_role("button", name="A better").click()
    for button in page.locator("[data-choice]").all():
        expect(button).to_be_disabled()
    page.keyboard.press("5")
    page.get_by_role("button", name="Tie").click(force=True)
    page.keyboard.press("u")
    assert len(held) == 1
    assert shown(page) == first
    held[0].continue_()
    page.unroute_all()
    said(page, "Saved.")
    expect(page.get_by_role("button", name="A better")).to_be_enabled()
    assert [vote.choice for vote in votes(store, campaign)] == ["a"]


def test_a_vote_that_does_not_arrive_can_be_sent_again(visit, store, campaign):
    page = rate(visit, "ann", campaign)
    first = shown(page)
    page.route("**/component_server/", lambda route: route.abort())
    page.keyboard.press("4")
    said(page, "The server does not answer. Try again.")
    assert shown(page) == first
    page.unroute_all()
    page.keyboard.press("4")
    said(page, "Saved.")
    assert [vote.choice for vote in votes(store, campaign)] == ["b"]


def test_flags_and_a_reload_in_the_middle(visit, store, campaign):
    page = rate(visit, "ann", campaign)
    first = shown(page)
    page.get_by_text("Flag answer B").click()
    page.get_by_role("group", name="What is wrong with answer B?").get_by_label(
        "Makes things up"
    ).check()
    page.get_by_label("Comment").fill("half a thought")
    page.reload()
    expect(page.locator(".answer")).to_have_count(2)
    assert shown(page) == first
    expect(page.get_by_label("Comment")).to_have_value("half a thought")
    expect(page.locator("#answer-B .count")).to_have_text("1")
    page.get_by_role("button", name="Both bad").click()
    said(page, "Saved.")
    (vote,) = votes(store, campaign)
    with store.reading() as session:
        order = session.get_one(Assignment, vote.assignment_id).order
    assert vote.flags == {str(order[1]): ["hallucination"]}
    expect(page.locator("#answer-B .count")).to_be_hidden()  # the next item has none


def test_flags_and_guidelines_by_keyboard(visit, store, campaign):
    page = rate(visit, "ann", campaign)
    page.keyboard.press("x")
    page.keyboard.press("Space")
    page.keyboard.press("x")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#answer-A .count")).to_have_text("1")
    expect(page.locator("#answer-B .count")).to_have_text("1")
    page.keyboard.press("g")
    expect(page.get_by_role("heading", name="Guidelines")).to_be_focused()
    page.keyboard.press("1")  # nothing to vote on here
    page.keyboard.press("g")
    page.keyboard.press("4")
    said(page, "Saved.")
    (vote,) = votes(store, campaign)
    assert vote.choice == "b"
    with store.reading() as session:
        order = session.get_one(Assignment, vote.assignment_id).order
    flags = {str(order[0]): ["instruction"], str(order[1]): ["customer"]}
    assert vote.flags == flags


def test_guidelines_read_at_the_end_lead_nowhere_else(visit, store):
    create_campaign(store, "short", pair_rows(1), CampaignSettings())
    page = rate(visit, "ann", "short")
    page.keyboard.press("1")
    expect(page.get_by_role("heading", name="Nothing left for you here")).to_be_visible()
    page.keyboard.press("g")
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_role("heading", name="Nothing left for you here")).to_be_visible()
    assert [vote.choice for vote in votes(store, "short")] == ["a_much"]


def test_a_vote_with_the_keyboard_alone_by_tab_and_enter(visit, store, campaign):
    page = rate(visit, "ann", campaign)
    focused = "document.activeElement.innerText.trim().replace(/\\s+/g, ' ')"
    expect(page.locator("#prompt-title")).to_be_focused()
    passed = []
    for _ in range(9):
        page.keyboard.press("Tab")
        passed.append(page.evaluate(focused))
    order = [
        "Flag answer A",
        "Flag answer B",
        "A much better 1",
        "A better 2",
        "Tie 3",
        "B better 4",
    ]
    assert passed[:6] == order
    for _ in range(3):
        page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == "B better 4"
    page.keyboard.press("Enter")
    said(page, "Saved.")
    expect(page.locator("#prompt-title")).to_be_focused()
    assert [vote.choice for vote in votes(store, campaign)] == ["b"]


def test_everything_has_a_name_for_a_screen_reader(visit, campaign):
    page = rate(visit, "ann", campaign)
    expect(page.locator(".answer")).to_have_count(2)
    for control in page.locator(
        "button:visible, a:visible, textarea:visible, summary:visible"
    ).all():
        assert control.evaluate("node => node.innerText || node.labels?.[0]?.innerText").strip()
    expect(page.get_by_role("article", name="Answer A")).to_be_visible()
    expect(page.get_by_role("group", name="Which answer is better?")).to_be_visible()
    expect(page.get_by_role("region", name="Your vote")).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.title() == f"{campaign} – Ratings"


def test_ranking_by_keyboard_and_by_mouse_with_ties(visit, store):
    create_campaign(store, "ranks", ranking_rows(3, 5), CampaignSettings(mode="ranking"))
    page = rate(visit, "ann", "ranks")
    expect(page.locator("#order")).to_have_text("Give each answer a rank; 1 is best.")
    save = page.get_by_role("button", name="Save ranking")
    for key in "213":
        page.keyboard.press(key)
    expect(page.locator("#order")).to_have_text("B > A > C · 2 to go")
    expect(save).to_be_disabled()
    page.keyboard.press("Enter")  # not yet
    page.get_by_role("radiogroup", name="Rank of answer D").get_by_role("radio", name="1").click()
    page.keyboard.press("c")  # an answer, and no command
    page.keyboard.press("3")
    page.keyboard.press("e")
    page.keyboard.press("3")
    page.keyboard.press("x")
    page.keyboard.press("Space")
    expect(page.locator("#answer-E .count")).to_have_text("1")
    expect(page.locator("#order")).to_have_text("B = D > A > C = E")
    page.get_by_role("radio", name="2").nth(2).focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#order")).to_have_text("B = D > A > E > C")
    save.click()
    said(page, "Saved.")
    assert votes(store, "ranks")[0].ranks == [2, 1, 4, 1, 3]
    page.keyboard.press("u")
    said(page, re.compile("taken back"))
    expect(page.locator(".chosen")).to_have_count(0)
    for key in "21345":
        page.keyboard.press(key)
    expect(save).to_be_enabled()
    page.keyboard.press("Enter")  # though a rank has the focus
    said(page, "Saved.")
    page.get_by_role("button", name="Skip").click()
    said(page, "Skipped.")
    found = [(vote.choice, vote.ranks) for vote in votes(store, "ranks")]
    assert found == [(None, [2, 1, 3, 4, 5]), ("skip", None)]


def test_two_raters_at_once(visit, store, campaign):
    pages = [rate(visit, name, campaign) for name in ("ann", "bob")]
    for number in range(12):
        for page in pages:
            expect(page.get_by_text(f"{12 - number} left")).to_be_visible()
        for page, key in zip(pages, "15", strict=True):
            page.keyboard.press(key)
    for page in pages:
        expect(page.get_by_role("heading", name="Nothing left for you here")).to_be_visible()
    with store.reading() as session:
        rows = session.execute(
            select(User.name, Vote.choice, Assignment.item_id)
            .join(Vote, Vote.user_id == User.id)
            .join(Assignment, Assignment.id == Vote.assignment_id)
            .join(Campaign, Campaign.id == Vote.campaign_id)
            .where(Campaign.name == campaign)
        ).all()
    assert len(set(rows)) == len(rows) == 24
    assert {(name, choice) for name, choice, _ in rows} == {("ann", "a_much"), ("bob", "b_much")}


def test_hostile_answers_do_nothing(visit, store):
    rows = [{"prompt": HOSTILE, "answers": [{"model": m, "text": HOSTILE + m} for m in ("x", "y")]}]
    create_campaign(store, "plain hostile", rows, CampaignSettings(guidelines=HOSTILE))
    create_campaign(store, "marked hostile", rows, CampaignSettings(markdown=True))
    for name in ("plain hostile", "marked hostile"):
        page = rate(visit, "ann", name)
        expect(page.locator(".answer")).to_have_count(2)
        assert all("<script>window.hacked=1</script>" in text for text in shown(page))
        assert all("⟨U+202E⟩" in text for text in shown(page))
        assert page.locator("#main img, #main script, .answer a").count() == 0
        assert page.evaluate("window.hacked") is None


def test_the_policy_stops_a_script_that_slipped_through(visit, campaign):
    page = rate(visit, "ann", campaign)
    injected = """document.querySelector('#turns').innerHTML =
        "<img src='data:,' onerror='window.hacked=1'>" +
        "<a id=x href='javascript:window.hacked=2'>x</a>";
        document.querySelector('#x').click()"""
    page.evaluate(injected)
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None


def test_an_ended_session_leads_to_the_log_in_and_back(visit, store, campaign):
    page = rate(visit, "ann", campaign)
    expect(page.locator(".answer")).to_have_count(2)
    first = shown(page)
    page.context.clear_cookies()
    page.keyboard.press("1")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator(".answer")).to_have_count(2)
    assert shown(page) == first
    assert votes(store, campaign) == []


def test_dark_and_light_follow_the_system_and_the_switch(visit, campaign):
    def background(page):
        return page.locator(".answer").first.evaluate(
            "node => getComputedStyle(node).backgroundColor"
        )

    light, dark = (rate(visit, "ann", campaign, scheme=scheme) for scheme in ("light", "dark"))
    assert background(light) == "rgb(255, 255, 255)"
    assert background(dark) == "rgb(27, 33, 43)"
    dark.get_by_text("ann", exact=True).click()
    dark.get_by_role("button", name="Dark or light").click()
    assert background(dark) == "rgb(255, 255, 255)"
    dark.reload()
    expect(dark.locator(".answer")).to_have_count(2)
    assert background(dark) == "rgb(255, 255, 255)"


def test_on_a_phone_the_answers_stand_one_above_the_other(visit, campaign):
    page = rate(visit, "ann", campaign, size="phone")
    one, other = (page.locator(f"#answer-{letter}").bounding_box() for letter in "AB")
    assert one["x"] == other["x"]
    assert one["y"] + one["height"] <= other["y"]
    assert one["width"] > 340
    page.get_by_role("button", name="A much better").tap()
    said(page, "Saved.")


# --- chats ----------------------------------------------------------------------------------


def test_a_chat_is_streamed_kept_over_a_reload_and_voted_on(visit, store):
    page = rate(visit, "ann", "chat")
    page.get_by_label("Your prompt").fill("Why does the harbour smell of tar?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .cursor")).to_have_count(2)
    for button in page.locator("[data-choice]").all():
        expect(button).to_be_disabled()
    said(page, "Vote, or go on.")
    first = shown(page)
    page.reload()
    expect(page.locator(".answer")).to_have_count(2)
    assert shown(page) == first
    page.get_by_label("Go on, or vote below").fill("And after rain?")
    page.get_by_role("button", name="Send to both").click()
    said(page, "Vote, or go on.")
    assert all("And after rain?" in text for text in shown(page))
    page.get_by_role("button", name="A better").click()
    said(page, "Saved.")
    assert "aligned" not in page.content()
    expect(page.get_by_label("Your prompt")).to_be_visible()
    (vote,) = votes(store, "chat")
    with store.reading() as session:
        turns = session.scalars(
            select(Turn).where(Turn.assignment_id == vote.assignment_id).order_by(Turn.number)
        ).all()
    assert [turn.text for turn in turns] == [
        "Why does the harbour smell of tar?",
        "And after rain?",
    ]
    page.get_by_role("button", name="Undo").click()
    said(page, re.compile("taken back"))
    assert votes(store, "chat") == []
    page.get_by_role("button", name="Tie").click()
    said(page, "Saved.")


def test_the_arena_names_the_models_after_the_vote(visit, store):
    page = rate(visit, "bob", "arena")
    page.get_by_label("Your prompt").fill("Who are you?")
    page.get_by_role("button", name="Send to both").click()
    said(page, "Vote, or go on.")
    assert not re.search(r"\b(base|aligned)\b", page.locator("#main").inner_text())
    page.get_by_role("button", name="B better").click()
    named = page.locator(".answer .name")
    expect(named).to_have_count(2)
    expect(page.locator("#comment")).to_be_hidden()
    assert sorted(named.all_inner_texts()) == ["aligned", "base"]
    expect(page.get_by_role("button", name="A better")).to_be_disabled()
    expect(page.get_by_role("button", name="Undo")).to_be_hidden()
    page.keyboard.press("n")
    expect(page.get_by_label("Your prompt")).to_be_focused()
    expect(named).to_have_count(0)
    (vote,) = votes(store, "arena")
    assert vote.choice == "b"


def test_a_prompt_that_is_too_long_is_refused_and_kept(visit):
    page = rate(visit, "bob", "chat")
    page.get_by_label("Your prompt").fill("x" * 4001)
    page.get_by_role("button", name="Send to both").click()
    said(page, "4001 characters; 4000 at most")
    expect(page.get_by_label("Your prompt")).to_have_value("x" * 4001)


# --- researchers ----------------------------------------------------------------------------


@pytest.fixture
def rated(store, campaign) -> str:
    """A campaign on which two raters have voted, for `good` more often than not."""
    for name, wins in (("ann", 9), ("bob", 7)):
        for number in range(12):
            item = next_assignment(store, campaign, name, utc_now())
            right = item.answers[0].startswith("Right") == (number < wins)
            choice = "a" if right else "b"
            record_vote(store, name, item.assignment_id, choice, seconds=9.0, now=utc_now())
    return campaign


def research(visit, campaign: str, **options: str) -> Page:
    """Open the researchers' page at a campaign, and wait for its numbers."""
    page = visit("rita", f"/research/?campaign={campaign}", **options)
    expect(page.locator("#results table").first).to_be_visible()
    return page


def test_a_researcher_sees_who_wins_and_how_the_raters_do(visit, rated):
    page = research(visit, rated)
    row = page.locator("#overview tr", has=page.get_by_role("link", name=rated))
    expect(row).to_have_attribute("aria-current", "true")
    expect(row.get_by_role("progressbar", name="24 of 24 votes")).to_be_visible()
    expect(page.locator("#numbers")).to_contain_text("24")
    expect(page.locator("#numbers")).to_contain_text("$0.29")
    first = page.locator("#results table").first.locator("tbody tr").first
    expect(first).to_contain_text("good")
    expect(first).to_contain_text("67 %")
    plots = page.locator("#results .plot")
    expect(plots).to_have_count(4)
    for plot in plots.all():
        drawing = plot.get_by_role("img").locator("visible=true")
        expect(drawing).to_have_count(1)
        box = drawing.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 100
    page.get_by_role("tab", name="Raters").click()
    expect(page.locator("#people tbody tr")).to_have_count(2)
    expect(page.locator("#people").get_by_role("img").locator("visible=true")).to_have_count(1)


def test_dark_chosen_by_a_researcher_stays(visit, rated):
    page = research(visit, rated)
    dark = "document.body.classList.contains('dark')"
    assert not page.evaluate(dark)
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate(dark)
    page.reload()
    expect(page.locator("#results table").first).to_be_visible()
    assert page.evaluate(dark)


def test_pausing_resuming_and_closing(visit, store, campaign):
    page = visit("rita", f"/research/?campaign={campaign}")
    button = {name: page.get_by_role("button", name=name) for name in ("Pause", "Resume", "Close")}
    button["Pause"].click()
    expect(page.locator("#message")).to_have_text(f"{campaign} is paused.")
    expect(button["Pause"]).to_be_hidden()
    rater = visit("ann", f"/rate/?campaign={campaign}")
    expect(rater.get_by_role("heading", name="This campaign is paused")).to_be_visible()
    button["Resume"].click()
    expect(page.locator("#message")).to_have_text(f"{campaign} is open again.")
    rater.reload()
    expect(rater.get_by_role("button", name="Begin")).to_be_visible()
    button["Close"].click()  # and yes to the question
    expect(page.locator("#message")).to_have_text(f"{campaign} is closed.")
    expect(page.locator("#overview tr[aria-current] .badge")).to_have_text("closed")
    for each in button.values():
        expect(each).to_be_hidden()
    rater.reload()
    expect(rater.get_by_role("heading", name="This campaign is closed")).to_be_visible()
    with store.reading() as session:
        found = (
            select(Event.what, User.name)
            .join(User)
            .where(Event.detail["campaign"].as_string() == campaign)
        )
        done = session.execute(found.order_by(Event.id)).all()
    assert done == [("pause", "rita"), ("resume", "rita"), ("close", "rita")]


def test_exporting_the_pairs(visit, rated):
    page = research(visit, rated)
    page.get_by_role("tab", name="Export").click()
    page.get_by_role("button", name="What would it hold?").click()
    expect(page.locator("#preview")).to_contain_text("pairs of 24 votes")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download jsonl").click()
    assert waiting.value.suggested_filename == f"{rated}.jsonl"
    rows = [json.loads(line) for line in Path(waiting.value.path()).read_text().splitlines()]
    assert {"prompt", "chosen", "rejected", "margin", "weight"} <= set(rows[0])
    expect(page.locator("#preview")).to_contain_text(f"{len(rows)} pairs")
    page.get_by_label("none").check()
    expect(page.locator("#download a")).to_have_attribute("href", re.compile("consolidate=none"))
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download jsonl").click()
    assert len(Path(waiting.value.path()).read_text().splitlines()) == 24


def test_a_rater_has_no_way_to_the_results(visit):
    page = visit("ann", "/research/")
    expect(page.get_by_role("heading", name="This page is for researchers.")).to_be_visible()
    page.get_by_role("link", name="Back to the start").click()
    expect(page.locator("#desk")).to_be_visible()


# --- looks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(store) -> None:
    scenery.looked_at(store)
    scenery.rated(store)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_off_on_any_page(visit, scenes, size, scheme):
    page = visit("", "/login", size=size, scheme=scheme)
    for name in tour(page):
        page.wait_for_timeout(200)
        assert (name, page.evaluate(CUT_OFF)) == (name, {"wide": 0, "cut": []})

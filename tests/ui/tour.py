"""A tour through every page in a real browser, for the tests and for the pictures in docs/img.

Chromium is Debian's, or the one named by $CHROMIUM.
"""

import os
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, Playwright, expect

from tests.ui import scenery
from tests.ui.samples import PASSWORD

expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium", path="/usr/bin")
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
# What is wider than the window, and what does not fit into its own box.
CUT_OFF = """() => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const boxes = [...document.querySelectorAll('button, a, summary, h1, h2, label, .badge')];
  const cut = boxes.filter((node) => node.checkVisibility() && node.clientWidth > 0
    && getComputedStyle(node).overflow !== 'visible'
    && !node.closest('.where, .unseen')
    && (node.scrollWidth > node.clientWidth + 1 || node.scrollHeight > node.clientHeight + 1));
  return {wide, cut: cut.map((node) => node.outerHTML.slice(0, 80))};
}"""


def started(playwright: Playwright) -> Browser:
    """Return Chromium, as it runs in a container as well."""
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    return playwright.chromium.launch(executable_path=CHROMIUM, args=options)


def tour(page: Page) -> Iterator[str]:
    """Go through every page of the scenes, as the researcher rita, and yield a name at each.

    An arena of the name "arena" is voted on; everything else is left as it was.
    """
    page.goto("/login")
    yield "login"
    page.get_by_label("Password").fill("wrong password")
    page.get_by_label("Name").fill("rita")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    yield "login-refused"
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/research/**")
    page.goto("/account")
    yield "account"
    page.goto("/nowhere")
    yield "refusal"
    page.goto("/rate/")
    expect(page.locator("#campaign-list button").first).to_be_visible()
    yield "campaigns"
    page.goto(f"/rate/?campaign={scenery.DONE}")
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_role("heading", name="Nothing left for you here")).to_be_visible()
    yield "done"
    yield from _ratings(page)
    yield from _arena(page)
    yield from _research(page)


def _ratings(page: Page) -> Iterator[str]:
    page.goto(f"/rate/?campaign={scenery.PAIRS}")
    expect(page.get_by_role("button", name="Begin")).to_be_visible()
    yield "guidelines"
    page.get_by_role("button", name="Begin").click()
    expect(page.locator(".answer")).to_have_count(2)
    yield "pair"
    page.get_by_text("Flag answer B").click()
    page.get_by_label("Makes things up").last.check()
    yield "flags"
    page.get_by_text("rita", exact=True).click()
    yield "menu"
    page.get_by_text("rita", exact=True).click()
    page.get_by_label("Makes things up").last.uncheck()
    page.keyboard.press("?")
    yield "keys"
    page.goto(f"/rate/?campaign={scenery.RANKED}")
    page.get_by_role("button", name="Begin").click()
    for key in "213":
        page.keyboard.press(key)
    expect(page.locator("#order")).to_have_text("B > A > C · 2 to go")
    yield "ranking"


def _arena(page: Page) -> Iterator[str]:
    page.goto("/rate/?campaign=arena")
    page.get_by_role("button", name="Begin").click()
    yield "chat-empty"
    page.get_by_label("Your prompt").fill(scenery.QUESTION)
    page.get_by_role("button", name="Send to both").click()
    expect(page.locator("#status")).to_have_text("Vote, or go on.")
    yield "chat"
    page.get_by_role("button", name="A better").click()
    expect(page.get_by_role("button", name="Next")).to_be_visible()
    yield "arena-revealed"


def _research(page: Page) -> Iterator[str]:
    page.goto(f"/research/?campaign={scenery.RATED}")
    expect(page.locator("#results .plot").first).to_be_visible()
    yield "results"
    page.get_by_role("tab", name="Raters").click()
    expect(page.locator("#people table")).to_be_visible()
    yield "raters"
    page.get_by_role("tab", name="Export").click()
    expect(page.locator("#download a")).to_be_visible()
    page.get_by_role("button", name="What would it hold?").click()
    expect(page.locator("#preview table")).to_be_visible()
    yield "export"

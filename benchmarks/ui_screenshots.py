"""Takes pictures of every page of the rating app, light and dark, on a desk and on a phone.

    python -m benchmarks.ui_screenshots docs/img

The scenes are made up and seeded, texts included, so that a picture changes only when a page does.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.ui import scenery
from tests.ui.pages import serving
from tests.ui.samples import PASSWORD
from tests.ui.tour import CHROMIUM, CUT_OFF, SIZES, started, tour
from ui.accounts import add_user
from ui.campaigns import create_campaign
from ui.server import create_app
from ui.settings import CampaignSettings
from ui.store import Store

LONG = ("results", "raters", "export")  # pages taken from top to bottom
LARGEST = 150_000  # bytes of a picture
COLOURS = 128  # of a picture: text and flat areas need no more


def main() -> int:
    """Write the pictures, and say what is cut off on them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the pictures, ui-PAGE-SIZE-SCHEME.png")
    parser.add_argument("--only", nargs="*", help="pages by name; default: all")
    given = parser.parse_args()
    if CHROMIUM is None:
        print("there is no Chromium: apt-get install chromium, or name one in $CHROMIUM")
        return 2
    given.folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    bad = 0
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = Store(f"sqlite:///{folder}/ratings.db")
        _make_scenes(store)
        live: Any = scenery.Talkers()
        with serving(create_app(store, b"s" * 64, live=live)) as address:
            for name, picture, cut in _pictures(started(playwright), address, given.only):
                (given.folder / f"ui-{name}.png").write_bytes(picture)
                sizes[name] = len(picture)
                if cut or len(picture) > LARGEST:
                    print(f"{name}: {len(picture):,} bytes, cut off: {cut}")
                    bad += 1
        store.close()
    total = sum(sizes.values())
    print(f"{len(sizes)} pictures, {total / 1e6:.2f} MB, the largest {max(sizes.values()):,} bytes")
    return 1 if bad else 0


def _make_scenes(store: Store) -> None:
    add_user(store, "rita", PASSWORD, "researcher")
    settings = CampaignSettings(mode="arena")
    create_campaign(store, "arena", [], settings, models={"base": "talker", "aligned": "talker"})
    scenery.looked_at(store)
    scenery.rated(store)


def _pictures(
    browser: Browser, address: str, only: list[str] | None
) -> Iterator[tuple[str, bytes, list[str]]]:
    for size, (width, height) in SIZES.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(
                base_url=address,
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                reduced_motion="reduce",
                is_mobile=size == "phone",
            )
            page = context.new_page()
            page.set_default_timeout(60_000)
            for name in tour(page):
                if only and name not in only:
                    continue
                page.evaluate("document.fonts.ready")
                page.wait_for_timeout(300)
                found = page.evaluate(CUT_OFF)
                wide = [f"{found['wide']} px"] if found["wide"] else []
                yield f"{name}-{size}-{scheme}", _picture(page, name in LONG), wide + found["cut"]
            context.close()


def _picture(page: Page, whole: bool) -> bytes:
    """Return the page as a small PNG."""
    taken = Image.open(io.BytesIO(page.screenshot(full_page=whole, caret="hide"))).convert("RGB")
    buffer = io.BytesIO()
    taken.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())

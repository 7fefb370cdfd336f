"""Text from models and raters, made harmless to look at: nothing hidden, nothing that acts."""

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

MOST_SHOWN = 20_000
# More combining marks than any language stacks on one letter; floods of them run over the page.
_MOST_MARKS = 4
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji need them
_SEEN_FORMATS = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd")
_JOINER_IN_ASCII = re.compile(f"(?<=[\x00-\x7f])[{_JOINERS}]|[{_JOINERS}](?=[\x00-\x7f]|$)")
_TAGS = {
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li",
    "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip


def storable(text: str) -> str:
    """Return a text that every database and file takes: NUL and lone surrogates replaced."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def harmless(text: str, limit: int = MOST_SHOWN) -> str:
    """Return a text as a rater may see it.

    Bidirectional controls, invisible characters and control characters are shown as marks such as
    ⟨U+202E⟩, NUL is left out, and what is too long is cut with a note. The result is still plain
    text: whoever puts it into HTML escapes it.

    Args:
        text: written by a model or a person.
        limit: most characters shown.
    """
    note = ""
    if len(text) > limit:
        note = f"\n⟨cut: {len(text):,} characters, the first {limit:,} are shown⟩"
        text = text[:limit]
    text = re.sub("\r\n?|[\u2028\u2029\x85]", "\n", text.replace("\0", ""))
    return _marked(text) + note


def markdown_html(text: str, limit: int = MOST_SHOWN) -> str:
    """Return a text as HTML of its markdown: no images, no links, no attributes, no raw HTML.

    Links and images stay as they are written, so that a rater sees where they would lead and the
    browser loads nothing.

    Args:
        text: markdown written by a model.
        limit: most characters shown.
    """
    import nh3

    html = _markdown().render(harmless(text, limit))
    # Entities (&#x202e;) have become characters only now.
    return _marked(nh3.clean(html, tags=_TAGS, attributes={}, link_rel=None))


@cache
def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return parser.disable(["image", "link", "autolink", "reference", "html_block", "html_inline"])


def _marked(text: str) -> str:
    hidden = {
        ord(letter): f"⟨U+{ord(letter):04X}⟩"
        for letter in set(text)
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs")
        and letter not in "\n\t"
        and letter not in _JOINERS
        and letter not in _SEEN_FORMATS
    }
    if hidden:
        text = text.translate(hidden)
    text = _JOINER_IN_ASCII.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)
    if any(unicodedata.combining(letter) for letter in set(text)):
        text = _unstacked(text)
    return text


def _unstacked(text: str) -> str:
    kept: list[str] = []
    marks = 0
    for letter in text:
        marks = marks + 1 if unicodedata.combining(letter) else 0
        if marks <= _MOST_MARKS:
            kept.append(letter)
        elif marks == _MOST_MARKS + 1:
            kept.append("⟨…⟩")
    return "".join(kept)

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.display import harmless, markdown_html, storable

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"


@pytest.mark.parametrize("letter", BIDI + "\u200b\u2060\ufeff\u00ad\x1b\x07\U000e0041")
def test_what_cannot_be_seen_is_shown_as_a_mark(letter):
    assert harmless(f"a{letter}b") == f"a⟨U+{ord(letter):04X}⟩b"


@pytest.mark.parametrize(
    "text",
    [
        "plain <b>text</b> & more\n\tin lines",
        "می‌خواهم",  # Persian writes a zero-width non-joiner here
        "👩‍🔬 and 👍🏽",  # and this woman is a scientist by a joiner
        "क्‍ष",
        "naïve, Ǻ, ệ",
        "\u0600\u0661",
    ],
)
def test_what_people_write_stays_as_it_is(text):
    assert harmless(text) == text


def test_a_joiner_between_plain_letters_hides_something():
    assert harmless("Smol\u200cLM\u200d") == "Smol⟨U+200C⟩LM⟨U+200D⟩"


def test_nul_goes_and_line_ends_become_one_kind():
    assert harmless("a\0b\r\nc\rd\u2028e\x85f") == "ab\nc\nd\ne\nf"


def test_a_flood_of_combining_marks_is_cut_and_said():
    assert harmless("e" + "\u0301" * 300 + "x") == "e" + "\u0301" * 4 + "⟨…⟩x"


def test_a_megabyte_is_cut_and_said():
    text = harmless("a" * 1_000_000, limit=100)
    assert text == "a" * 100 + "\n⟨cut: 1,000,000 characters, the first 100 are shown⟩"
    assert len(harmless("a" * 1_000_000)) < 20_100


@given(st.text())
def test_nothing_hidden_is_left_in_any_text(text):
    shown = harmless(text)
    bad = [c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert bad == []
    assert not set(shown) & set(BIDI)
    assert harmless(shown) == shown


@given(st.text(st.characters(categories=None)))
def test_what_is_storable_can_be_stored(text):
    stored = storable(text)
    assert "\0" not in stored
    assert stored.encode("utf-8").decode("utf-8") == stored
    assert len(stored) == len(text)


def test_half_characters_become_question_marks():
    assert storable("a\ud800b\0é") == "a?b\ufffdé"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![beacon](https://evil.example/x.png)",
        "[click](javascript:alert(1))",
        "<https://evil.example>",
        "[a]: https://evil.example\n\n[a]",
        "<svg onload=alert(1)>",
        "<style>*{display:none}</style>",
        '<a href="https://evil.example">x</a>',
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "```\n<script>alert(1)</script>\n```",
        "| a |\n|---|\n| <img src=x> |",
    ],
)
def test_markdown_loads_and_runs_nothing(text):
    html = markdown_html(text)
    for tag in ("<script", "<img", "<svg", "<style", "<a", "<link", "<iframe"):
        assert tag not in html.lower()
    assert "evil" not in html or "https://evil.example" in html  # shown, so that one sees it


def test_markdown_is_rendered():
    html = markdown_html("# Hi\n\n**bold** `code` ~~gone~~\n\n- one\n\n| a |\n|:-:|\n| 1 |")
    for part in (
        "<h1>Hi</h1>", "<strong>bold</strong>", "<code>code</code>", "<s>gone</s>",
        "<li>one</li>", "<th>a</th>", "<td>1</td>",
    ):  # fmt: skip
        assert part in html
    assert "[x](https://x.example)" in markdown_html("[x](https://x.example)")


def test_markdown_cannot_spell_what_is_hidden():
    assert markdown_html("a&#x202e;b&#8203;c") == "<p>a⟨U+202E⟩b⟨U+200B⟩c</p>\n"


def test_markdown_of_a_megabyte_is_cut_and_said():
    html = markdown_html("*" * 1_000_000, limit=1000)
    assert len(html) < 2000
    assert "⟨cut: 1,000,000 characters" in html

"""Colours that everybody can tell apart, texts that fit, SVG that is safe inside a page."""

import io
import re
import warnings
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ui.drawing import COLOURS, WIDE, Chart, Plot, Row, Sign, blank, mark, measure
from workbench.statistics import Interval

# Machado, Oliveira & Fernandes (2009), severity 1.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def linear(colour):
    share = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    low, high = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb):
    """CIELAB of linear sRGB."""
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
              [0.0193339, 0.1191920, 0.9503041]]  # fmt: skip
    xyz = np.array(matrix) @ rgb / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def chart(names=("model",), text="1.0", legend=("sign",), alarm="", note="", ci95=None):
    """A plot of one row."""

    def paint(axes, y, colours):
        mark(axes, y, 0.5, ci95, Sign("win", "o"), colours)

    drawn = Chart(
        [Row(tuple(names), text, paint, alarm)], (0, 1), {0: "0 %", 1: "100 %"}, "share", 0.5,
        {name: Sign("win", "o") for name in legend}, note=note,
    )  # fmt: skip
    return Plot("chart", "A chart", "one row", drawn.paint)


def boxes(plot, width):
    """The box of every text of a drawn figure, in CSS pixels, by the text."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot.figure("light", width)
        warnings.filterwarnings("ignore", message="Glyph")
        with mpl.rc_context({"font.family": "DejaVu Sans", "text.parse_math": False}):
            from matplotlib.backends.backend_agg import FigureCanvasAgg

            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            texts = list(figure.texts)
            for axes in figure.axes:
                texts.append(axes.xaxis.label)
                for axis in (axes.xaxis, axes.yaxis):
                    low, high = sorted(axis.get_view_interval())
                    ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
                    texts += [label for place, label in ticks if low <= place <= high]
            drawn = [text for text in texts if text.get_visible() and text.get_text()]
            return figure, [
                (text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in drawn
            ]


def assert_texts_fit(plot, width):
    figure, found = boxes(plot, width)
    _, height = figure.get_size_inches() * 96
    assert found
    for text, box in found:
        assert box.x0 >= -0.5, (text, box)
        assert box.x1 <= width + 0.5, (text, box)
        assert box.y0 >= -0.5, (text, box)
        assert box.y1 <= height + 0.5, (text, box)
    for place, (text, box) in enumerate(found):
        for other, against in found[:place]:
            overlap = (
                min(box.x1, against.x1) - max(box.x0, against.x0) > 1
                and min(box.y1, against.y1) - max(box.y0, against.y0) > 2
            )
            assert not overlap, (text, other)
    return figure, found


# Colours


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_with_the_sheet(theme):
    sheet = COLOURS["sheet"][theme]
    for name, pair in COLOURS.items():
        if name in {"ink", "soft", "alarm"}:
            assert contrast(pair[theme], sheet) >= 4.5, name
        elif name not in {"sheet", "line"}:
            assert contrast(pair[theme], sheet) >= 3, name


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_shares_stay_apart_for_everybody(theme, blindness):
    matrix = np.array(BLINDNESS[blindness])
    seen = [
        lab(np.clip(matrix @ linear(COLOURS[name][theme]), 0, 1))
        for name in ("win", "tie", "bad", "loss")
    ]
    apart = [np.linalg.norm(seen[i] - seen[j]) for i in range(4) for j in range(i)]
    assert min(apart) > 15


def test_each_light_colour_names_one_pair():
    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS)


# Texts

NAMES = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.text("aZ\u0301\u0338\u0489\u20dd\u0e49\u0670", min_size=1),  # marks that pile up
    st.text("אבجد٣\u202e\u200f\u2067 a1(", min_size=1),  # from right to left
    st.text("😀👩\u200d🔬🇩🇪\ufe0f漢ﷺ", min_size=1),  # wide, and joined
    st.text("\n\t\0\x1b\u2028$_^\\%{}<&", min_size=1),  # with a meaning elsewhere
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    names=st.lists(NAMES, min_size=1, max_size=2),
    times=st.sampled_from([1, 9, 400]),
    alarm=st.sampled_from(["", "too fast, fails gold questions, favours the left"]),
    width=st.sampled_from([390, WIDE, 1200]),
)
def test_any_names_fit(names, times, alarm, width):
    numbers = "12 % (3–45 %), 678 votes"
    plot = chart([name * times for name in names], numbers, alarm=alarm)
    figure, found = assert_texts_fit(plot, width)
    (axes,) = figure.axes
    dots = [line.get_window_extent() for line in axes.lines]
    for text, box in found:  # and no text lies on what is drawn
        assert not any(box.overlaps(dot) for dot in dots), text


@settings(max_examples=6, deadline=None, derandomize=True)
@given(name=NAMES)
def test_any_name_gives_svg(name):
    plot = chart([name, name * 99])
    root = ET.fromstring(plot.svg(390))
    assert root.get("role") == "img"
    assert plot.page().count("<svg") == 2


@pytest.mark.parametrize("width", [390, WIDE, 1200])
def test_a_long_legend_and_note_are_wrapped(width):
    legend = [f"a sign that means {number}" for number in range(7)]
    assert_texts_fit(chart(legend=legend, note="A note of many words. " * 12), width)


def test_short_names_share_a_line_with_the_numbers():
    _, found = boxes(chart(("aligned", "base"), "92 %"), 390)
    heights = {text: box.y0 for text, box in found}
    assert heights["aligned against base"] == pytest.approx(heights["92 %"], abs=4)


def test_long_names_keep_both_ends():
    _, found = boxes(chart(("first-" + "x" * 80 + "-last", "base")), 390)
    (name,) = [text for text, _ in found if "against" in text]
    assert name.startswith("first-")
    assert "-last against base" in name
    assert "…" in name


def test_measuring():
    assert measure("") == 0
    assert measure("MMMM") == pytest.approx(4 * measure("M"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        assert measure("漢") > 1.2 * measure("0")


# Files


def test_png_has_the_size_and_the_colours_of_the_theme():
    for theme, place in (("light", 0), ("dark", 1)):
        image = Image.open(io.BytesIO(chart().png(theme, 390, 2))).convert("RGB")
        assert image.width == 780
        sheet = COLOURS["sheet"][place]
        assert image.getpixel((1, 1)) == tuple(int(sheet[i : i + 2], 16) for i in (1, 3, 5))


def test_the_same_plot_gives_the_same_bytes_whatever_the_users_settings():
    plain = chart().png(), chart().svg()
    with mpl.rc_context({"font.size": 40, "axes.facecolor": "red", "savefig.dpi": 7}):
        assert (chart().png(), chart().svg()) == plain
    assert mpl.rcParams["font.size"] != 40


def test_svg_is_part_of_a_page():
    svg = chart(("<script>alert(1)</script>", 'a & $b$ "c"'), note="<b>").svg(390)
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "A chart. one row"
    texts = [text for node in root.iter() for text in [node.text or ""] if text.strip()]
    assert any("<script>" in text for text in texts)  # as text, not as a tag
    assert not {node.tag for node in root.iter() if node.tag.endswith(("script", "style", "b"))}
    assert "font-family" not in svg
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", svg)
    assert f"light-dark({COLOURS['win'][0]}, {COLOURS['win'][1]})" in svg
    assert f"light-dark({COLOURS['ink'][0]}, {COLOURS['ink'][1]})" in svg
    colours = set(re.findall(r"#[0-9a-f]{6}", svg))
    assert colours <= {colour for pair in COLOURS.values() for colour in pair}


def test_ids_are_a_plots_own():
    found = []
    for name in ("one", "two"):
        page = Plot(name, "title", "words", chart().paint).page()
        found += re.findall(r'\bid="([^"]*)"', page)
        for target in re.findall(r'(?:href="#|url\(#)([^")]*)', page):
            assert target in found
    assert len(found) == len(set(found))
    own = tuple(f"{name}-{width}-" for name in ("one", "two") for width in (WIDE, 390))
    assert all(name.startswith(own) for name in found)


def test_a_page_has_one_for_phones_and_one_for_screens():
    page = Plot("p", "Wins & losses", "words", chart().paint).page()
    assert "<figcaption>Wins &amp; losses</figcaption>" in page
    assert page.count("<svg") == 2
    assert 'class="wide"' in page
    assert 'class="narrow"' in page
    assert f"max-width: {WIDE}px" in page
    assert "max-width: 390px" in page


@pytest.mark.parametrize(
    ("ci95", "arrows"),
    [(Interval(0.2, 0.8), set()), (Interval(-3, 0.8), {"<"}), (Interval(-3, 9), {"<", ">"})],
)
def test_an_interval_that_goes_on_beyond_the_axis_ends_in_an_arrow(ci95, arrows):
    (axes,) = chart(ci95=ci95).figure().axes
    assert {line.get_marker() for line in axes.lines} & {"<", ">"} == arrows
    ends = [x for line in axes.lines for x in line.get_xdata()]
    assert (min(ends), max(ends)) == (max(ci95.low, 0), min(ci95.high, 1))


def test_blank():
    plot = blank("name", "Title", "Nothing yet.")
    _, found = boxes(plot, 390)
    assert [text for text, _ in found] == ["Nothing yet."]
    assert plot.words == "Nothing yet."
    assert_texts_fit(plot, 390)

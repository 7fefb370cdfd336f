"""How plots are drawn: colours, signs, measured texts, and matplotlib's SVG as part of a page.

All lengths are CSS pixels. Texts are measured before they are placed, so that none is cut off.
"""

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import category, east_asian_width

from ui.display import harmless
from workbench.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Theme = Literal["light", "dark"]
Colours = Mapping[str, str]
WIDE, NARROW = 600, 390

# Light and dark. Blue and orange stay apart in every common colour blindness, and shapes or places
# repeat what colours say. On the sheet, texts have 4.5:1 contrast, and all but the lines 3:1.
COLOURS: Mapping[str, tuple[str, str]] = {
    "sheet": ("#ffffff", "#1b212b"),
    "ink": ("#1b2230", "#e7ebf2"),
    "soft": ("#566173", "#9fabbd"),
    "line": ("#d6dbe3", "#3a4555"),
    "win": ("#0072b2", "#56b4e9"),
    "tie": ("#8a929c", "#78828f"),
    "bad": ("#4d5560", "#b4bdc9"),
    "loss": ("#d55e00", "#f5853f"),
    "alarm": ("#a84300", "#f7a072"),
}
SIDE = 24  # free at both sides, for half of an axis label
_FONT, _LINE = 12.5, 18
_DASHED = (0, (4, 3))
_END = 120  # signs kept of each end of a name; more than fits anywhere


@dataclass(frozen=True)
class Plot:
    """A plot that can be drawn at any width.

    Attributes:
        name: plain letters, unique on a page.
        title: what it shows.
        words: what is seen, for those who cannot see it.
        paint: draws it, given the width and the colours by name.
    """

    name: str
    title: str
    words: str
    paint: Callable[[int, Colours], "Figure"]

    def figure(self, theme: Theme = "light", width: int = WIDE) -> "Figure":
        """Return the plot as a matplotlib figure."""
        with _drawing():
            return self.paint(width, {name: c[theme == "dark"] for name, c in COLOURS.items()})

    def png(self, theme: Theme = "light", width: int = WIDE, scale: float = 2) -> bytes:
        """Return the plot as a PNG of `scale` dots a CSS pixel."""
        buffer = io.BytesIO()
        with _drawing():
            figure = self.figure(theme, width)
            figure.savefig(buffer, format="png", dpi=96 * scale, metadata={"Software": None})
        return buffer.getvalue()

    def svg(self, width: int = WIDE) -> str:
        """Return the plot as SVG inside a page, whose fonts and colour scheme it follows."""
        buffer = io.StringIO()
        with _drawing():
            figure = self.figure("light", width)
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return _inline(buffer.getvalue(), f"{self.name}-{width}", f"{self.title}. {self.words}")

    def page(self) -> str:
        """Return the plot with its title as HTML, drawn for phones and for wider screens."""
        return (
            "<style>.plot { margin: 0 } "
            "@media (max-width: 48rem) { .plot .wide { display: none } } "
            "@media (min-width: 48.01rem) { .plot .narrow { display: none } }</style>"
            f'<figure class="plot"><figcaption>{html.escape(self.title)}</figcaption>'
            f'<div class="wide">{self.svg(WIDE)}</div>'
            f'<div class="narrow">{self.svg(NARROW)}</div></figure>'
        )


@dataclass(frozen=True)
class Sign:
    """How a number is marked, or, without a marker, how a share is filled."""

    colour: str
    marker: str = ""
    hollow: bool = False

    def style(self, colours: Colours) -> dict[str, Any]:
        """Return matplotlib's words for it."""
        colour = colours[self.colour]
        if not self.marker:
            return {"color": colour, "linewidth": 7, "solid_capstyle": "butt"}
        bar = self.marker == "|"
        return {
            "color": colour,
            "marker": self.marker,
            "markerfacecolor": colours["sheet"] if self.hollow else colour,
            "markersize": 10 if bar else 5.5,
            "markeredgewidth": 2.2 if bar else 1.2,
            "linestyle": "none",
        }


@dataclass(frozen=True)
class Row:
    """A row of a chart: names and numbers in a line, and under them a picture on the common axis.

    Attributes:
        names: what it is of; two are joined by "against".
        text: the numbers.
        paint: draws the picture around a height.
        alarm: what is wrong with it, in a line of its own.
    """

    names: tuple[str, ...]
    text: str
    paint: Callable[["Axes", float, Colours], None]
    alarm: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """The names in one line each, with nothing in them that piles up, hides or turns around."""
        return tuple(map(_one_line, self.names))

    @property
    def words(self) -> str:
        """The row for those who cannot see it."""
        alarm = f" ({self.alarm})" if self.alarm else ""
        return f"{' against '.join(self.shown)}{alarm}: {self.text}"


@dataclass(frozen=True)
class Chart:
    """Rows over one axis, and how the signs in them are to be read.

    Attributes:
        rows: from top to bottom.
        limits: of the axis.
        ticks: its numbers and their texts.
        unit: its label.
        centre: where a dashed line stands.
        legend: signs by their meaning.
        lanes: lines of signs in a row's picture.
        note: printed below.
    """

    rows: Sequence[Row]
    limits: tuple[float, float]
    ticks: Mapping[float, str]
    unit: str
    centre: float
    legend: Mapping[str, Sign]
    lanes: int = 1
    note: str = ""

    def paint(self, width: int, colours: Colours) -> "Figure":
        """Draw the chart."""
        within = width - 2 * SIDE
        places, lines = _flow(list(self.legend), within)
        notes = _wrapped(self.note, within)
        top, picture = _LINE * lines + 12, 15 + 15 * self.lanes
        heads = [_head(row, within) for row in self.rows]
        heights = [_LINE * len(head) + picture for head in heads]
        below = 52 + (_LINE * len(notes) + 8 if notes else 0)
        figure = new_figure(width, top + sum(heights) + below, colours)
        axes = new_axes(figure, (SIDE, top, within, sum(heights)), colours)
        axes.set(xlim=self.limits, ylim=(sum(heights), 0), yticks=[], xlabel=self.unit)
        axes.set_xticks(list(self.ticks), list(self.ticks.values()))
        for (x, line), (name, sign) in zip(places, self.legend.items(), strict=True):
            y = 8 + _LINE * (line + 0.5)
            _explain(figure, x, y, sign.style(colours))
            write(figure, x + 24, y, name, colours["soft"])
        y = float(top)
        for row, head, tall in zip(self.rows, heads, heights, strict=True):
            for place, sides in enumerate(head):
                for ha, (text, colour) in sides.items():
                    x = SIDE if ha == "left" else width - SIDE
                    write(figure, x, y + 10 + _LINE * place, text, colours[colour], ha=ha)
            begin, end = y - top + tall - picture, y - top + tall - 8
            axes.vlines(list(self.ticks), begin, end, colours["line"], linewidth=0.8, zorder=0.5)
            axes.vlines(self.centre, begin, end, colours["soft"], linestyle=_DASHED, linewidth=1)
            row.paint(axes, begin + 10, colours)
            y += tall
        for place, text in enumerate(notes):
            write(figure, SIDE, y + 58 + _LINE * place, text, colours["soft"])
        return figure


def blank(name: str, title: str, words: str) -> Plot:
    """Return a plot that says why there is nothing to be seen."""

    def paint(width: int, colours: Colours) -> "Figure":
        figure = new_figure(width, 90, colours)
        write(figure, width / 2, 45, words, colours["soft"], ha="center")
        return figure

    return Plot(name, title, words, paint)


def mark(
    axes: "Axes", y: float, value: float, ci95: Interval | None, sign: Sign, colours: Colours
) -> None:
    """Mark a number and its interval; what goes beyond the axis ends in an arrow."""
    style = sign.style(colours)
    over: dict[str, Any] = {"clip_on": False, "zorder": 5}
    if ci95 is not None:
        low, high = axes.get_xlim()
        ends = [max(ci95.low, low), min(ci95.high, high)]
        # A rim in the sheet's colour keeps it readable on bars.
        axes.plot(ends, [y, y], color=colours["sheet"], linewidth=4, **over)
        axes.plot(ends, [y, y], color=style["color"], linewidth=1.8, **over)
        for end, beyond, tip in ((low, ci95.low < low, "<"), (high, ci95.high > high, ">")):
            if beyond:
                axes.plot(end, y, color=style["color"], marker=tip, markersize=6, **over)
        axes.plot(value, y, color=colours["sheet"], marker=style["marker"], markersize=9, **over)
    axes.plot(value, y, **style, **over)


def new_figure(width: int, height: int, colours: Colours) -> "Figure":
    """Return an empty figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 96, height / 96), dpi=96, facecolor=colours["sheet"])


def new_axes(figure: "Figure", box: tuple[float, float, float, float], colours: Colours) -> "Axes":
    """Return axes at left, top, width and height."""
    width, height = figure.get_size_inches() * 96
    left, top, wide, tall = box
    axes = figure.add_axes(
        (left / width, 1 - (top + tall) / height, wide / width, tall / height), facecolor="none"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(colours["soft"])
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6, labelcolor=colours["soft"], labelsize=0.9 * _FONT * 0.75)
    axes.xaxis.label.set_color(colours["soft"])
    return axes


def write(figure: "Figure", x: float, y: float, text: str, colour: str, ha: str = "left") -> None:
    """Write a text, centred at a height from the top."""
    width, height = figure.get_size_inches() * 96
    figure.text(x / width, 1 - y / height, text, color=colour, ha=ha, va="center_baseline")


def measure(text: str) -> float:
    """Return the width of a text."""
    # Signs that this font lacks and a page's fonts have.
    wide = 0.4 * _FONT * sum(east_asian_width(sign) in "WF" for sign in text)
    return wide + _size(text)[0]


def _size(text: str) -> tuple[float, float]:
    """Return width and height in the font of the plots, as SVG or as PNG, whichever is larger."""
    sizes = [
        measured.get_text_width_height_descent(text, font, ismath=False)
        for measured, font in _measured()
    ]
    return max(float(width) for width, _, _ in sizes), max(float(tall) for _, tall, _ in sizes)


@cache
def _measured() -> list[tuple[Any, Any]]:
    """Return what measures texts, with its font: SVG's letters are scaled, PNG's fit the pixels."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    plain, points = (FontProperties(family="DejaVu Sans", size=s) for s in (_FONT, 0.75 * _FONT))
    return [(text_to_path, plain), (RendererAgg(1, 1, 96), points)]


def _one_line(name: str) -> str:
    """Return a name without line breaks, hidden signs, and marks that reach into other lines."""
    ends = name if len(name) <= 2 * _END else f"{name[:_END]}…{name[-_END:]}"
    line = " ".join(harmless(ends).split())
    if _size(line)[1] > _LINE:
        line = "".join(sign for sign in line if not category(sign).startswith("M"))
    return line


def _explain(figure: "Figure", x: float, y: float, style: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches() * 96
    xs = [x + 9] if "marker" in style else [x + 1, x + 17]
    line = Line2D([at / width for at in xs], [1 - y / height] * len(xs), **style)
    line.set_transform(figure.transFigure)
    figure.add_artist(line)


def _head(row: Row, room: float) -> list[dict[str, tuple[str, str]]]:
    """Return the lines above a row's picture: by side, a text and its colour."""
    names, text = " against ".join(row.shown), {"right": (row.text, "soft")}
    if measure(names) + 14 + measure(row.text) <= room:
        lines = [{"left": (names, "ink")} | text]
    else:
        lines = [{"left": (_joined(row.shown, room), "ink")}, text]
    if row.alarm:
        lines.append({"left": (_shortened(row.alarm, room), "alarm")})
    return lines


def _shortened(text: str, room: float) -> str:
    """Return a text that fits, its middle left out if it must be."""

    def cut(kept: int) -> str:
        return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"

    if measure(text) <= room:
        return text
    fits, too_many = 0, len(text)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if measure(cut(middle)) <= room else (fits, middle)
    return cut(fits)


def _joined(names: Sequence[str], room: float) -> str:
    """Return the names with "against" between them, the longer ones shortened to fit."""
    if len(names) == 1:
        return _shortened(names[0], room)
    room -= measure(" against ")
    one, other = (measure(name) for name in names)
    shares = (max(room / 2, room - other), max(room / 2, room - one))
    return " against ".join(map(_shortened, names, shares))


def _wrapped(text: str, room: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and measure(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _flow(names: Sequence[str], room: float) -> tuple[list[tuple[float, int]], int]:
    """Return where the entries of a legend begin, and in which line, and the number of lines."""
    x, line, places = 0.0, 0, []
    for name in names:
        wide = 24 + measure(name)
        if x and x + wide > room:
            x, line = 0.0, line + 1
        places.append((SIDE + x, line))
        x += wide + 18
    return places, line + 1 if names else 0


@contextmanager
def _drawing() -> Iterator[None]:
    from matplotlib import style

    own = {
        "font.family": "DejaVu Sans",
        "font.size": _FONT * 0.75,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "plots",
    }
    # after_reset: a user's own matplotlibrc must not change the plots.
    with style.context(["default", own], after_reset=True), warnings.catch_warnings():
        # In a page its fonts draw the text, so a sign that matplotlib's own font lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _inline(svg: str, name: str, words: str) -> str:
    """Return matplotlib's SVG as part of a page: ids prefixed, the page's fonts, both themes."""
    _, _, wide, tall = svg.partition('viewBox="')[2].partition('"')[0].split()
    # Only tags are rewritten: text between them may hold anything and is escaped already.
    body = re.sub(r"<[^<>]*>", lambda tag: _tag(tag[0], name), svg[svg.index('<g id="figure_1"') :])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" role="img" '
        f'aria-label="{html.escape(words)}" style="display: block; width: 100%; height: auto; '
        f'max-width: {float(wide) / 0.75:.0f}px">{body}'
    )


def _tag(tag: str, name: str) -> str:
    tag = tag.replace("xlink:href=", "href=")
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(url\(|href=")#', rf"\1#{name}-", tag)
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)
    pairs = {light: f"light-dark({light}, {dark})" for light, dark in COLOURS.values()}
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: pairs.get(found[0], found[0]), tag)

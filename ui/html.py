"""Pages and parts of pages from the templates; what people and models wrote is escaped in them."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ui.display import harmless
from workbench.statistics import Estimate, Interval


def render(template: str, **values: Any) -> str:
    """Return a template filled in.

    Args:
        template: name of a file in the folder of templates.
        values: what stands in it.
    """
    return _environment.get_template(template).render(**values)


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _between(interval: Interval) -> str:
    return f"{100 * interval.low:.0f}–{100 * interval.high:.0f}"


def _percent(estimate: Estimate) -> str:
    return f"{_share(estimate.value)} ({_between(estimate.ci95)})"


def _short(text: Any) -> str:
    """Return the beginning of a text, or of the last of some messages, harmless to look at."""
    return harmless(text if isinstance(text, str) else text[-1]["content"], 160)


def _number(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.ci95.low:.2f}–{estimate.ci95.high:.2f})"


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "thousands": lambda count: f"{count:,}",
    "dollars": lambda amount: f"${amount:,.2f}",
    "share": _share,
    "between": _between,
    "percent": _percent,
    "number": _number,
    "short": _short,
    "decimal": lambda estimate: f"{estimate.value:.2f}",
}

"""Draws how the cost of an update grows with each of its sizes."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ppo_tables import AXES, PHASES
from workbench.report.canvas import COLOURS, DASHED, ends, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Json = dict[str, Any]
PHASE_COLOURS = {"rollout": "sft", "score": "reward", "update": "ppo"}
SIZE = (880, 240)  # points


def draw(results: Json, path: Path) -> None:
    """Draw the growth that was measured, on a GPU if there is one; nothing where there is none."""
    found = [
        results[device]["parts"]["growth"]["rows"]
        for device in ("cuda", "cpu")
        if results.get(device, {}).get("parts", {}).get("growth", {}).get("rows")
    ]
    if found:
        measured = {row["axis"] for row in found[0]}
        axes = [axis for axis in AXES if axis in measured]
        paints = [partial(paint, rows=found[0], axis=axis, first=axis == axes[0]) for axis in axes]
        picture(path, SIZE, paints)


def paint(axes: "Axes", rows: list[Json], axis: str, *, first: bool) -> str:
    """Paint the seconds of an update, and of its phases, against one of its sizes.

    Args:
        axes: where to draw.
        rows: of the growth part.
        axis: the size.
        first: whether what all axes share is named here.

    Returns:
        what is seen, in words.
    """
    points = [(row["value"], row["updates"][0]) for row in rows if row["axis"] == axis]
    sizes = [size for size, _ in points]
    whole = [lap["wall_s"] for _, lap in points]
    axes.plot(sizes, whole, color=COLOURS["text"], marker="o", label="update in all")
    for phase in PHASES:
        seconds = [lap[phase]["wall_s"] for _, lap in points]
        axes.plot(sizes, seconds, color=COLOURS[PHASE_COLOURS[phase]], linestyle=DASHED,
                  label=f"phase: {phase}")  # fmt: skip
    axes.set_xticks(sizes, [str(size) for size in sizes])
    if axis in {"response", "episodes"}:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(AXES[axis])
    if first:
        axes.set_ylabel("seconds")
        axes.figure.legend(loc="outside upper center", ncols=4)
    return f"{AXES[axis]}: {ends(whole)} seconds"

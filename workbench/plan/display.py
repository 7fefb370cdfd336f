"""What `rlhf plan` prints: tables of memory and speed, and a sentence that says what fits."""

from typing import Any

from rich.console import Console
from rich.text import Text

from workbench.plan.devices import GB, Devices
from workbench.plan.fitting import ROLLOUT, Fit, share
from workbench.plan.memory import StageMemory
from workbench.plan.speed import Speed
from workbench.runs import new_table

WORK = {
    "rollout": "{rows} prompts: cache, weights put together, sampling",
    "score": "{rows} answers read by every role",
    "update": "{rows} answers forward and backward: activations, logits of a few",
    "step": "{rows} rows forward and backward",
}


def amount(count: int) -> str:
    """Return bytes in the unit of `--gpus`: 16.1 GB, and 0.03 GB for little."""
    value = count / GB
    return f"{value:.{2 if value < 10 else 1}f} GB"


def show_memory(console: Console, memory: StageMemory, fit: Fit, devices: Devices) -> None:
    """Print what is held by each role, and what the phases take."""
    request = memory.request
    titles = ["role", "what", "whole", "a device"]
    table = new_table(*titles)
    for column in table.columns[2:]:
        column.justify = "right"
        column.no_wrap = True
    for part in memory.parts:
        own = share(part.bytes, request)
        table.add_row(part.role, part.what, amount(part.bytes), amount(own))
    if fit.kept >= GB // 100:
        table.add_row(
            "experience", "of an update's answers, and trunk states", "", amount(fit.kept)
        )
    for phase, size in fit.phases.items():
        rows = fit.rollout_batch if phase == ROLLOUT else fit.micro_batch
        words = WORK[phase].format(rows=rows)
        gathered = fit.gathered[phase]
        table.add_row(phase, words, "", amount(size))
        if gathered:
            table.add_row("", "weights gathered from the other devices", "", amount(gathered))
    table.add_row(
        "overhead", "libraries, and a tenth for gaps between blocks", "", amount(fit.overhead)
    )
    table.add_row(
        Text("peak", "bold"),
        "what is held, and " + ("all phases" if devices.cpu else "the largest phase"),
        "",
        amount(fit.peak),
    )
    table.add_row("", f"there is, on {devices}", "", amount(devices.bytes))
    console.print(table)


def show_speed(console: Console, speeds: list[Speed]) -> None:
    """Print estimates of tokens a second, and where they come from."""
    if not speeds:
        console.print(
            "tokens a second: no estimate; name the device with --device, or --measure this machine"
        )
        return
    phases = list(speeds[0].seconds)
    table = new_table("estimate", *(f"{phase}, tokens/s" for phase in phases), "whole, tokens/s")
    for column in table.columns[1:]:
        column.justify = "right"
    for speed in speeds:
        rates = [speed.tokens[phase] / speed.seconds[phase] for phase in phases]
        table.add_row(speed.device, *(f"{rate:,.0f}" for rate in (*rates, speed.per_second)))
    console.print(table)
    for speed in speeds:
        console.print(Text(f"{speed.device}: {speed.source}", "dim"))
    console.print(Text("not counted: what devices send to one another, and loading", "dim"))


def sentence(
    stage: str, fit: Fit, devices: Devices, found: dict[str, Any], change: str | None
) -> str:
    """Return whether the stage fits, and the settings to use or the cheapest change.

    Args:
        stage: its name.
        fit: how it fits.
        devices: it is to run on.
        found: settings of the run that is planned.
        change: what would fit where this does not.
    """
    if fit.fits:
        return (
            f"{stage} fits on {devices}, {amount(fit.peak)} at its peak; "
            f"with the largest batches that fit and are of use: {settings_text(found)}"
        )
    said = f"{stage} does not fit on {devices}: {amount(fit.peak)} with one row at a time"
    if change is None:
        return f"{said}; nothing tried here would, use a smaller model or larger devices"
    return f"{said}; the cheapest change that fits: {change}"


def settings_text(found: dict[str, Any]) -> str:
    """Return settings as they are typed."""
    return " ".join(f"{key}={value}" for key, value in found.items())

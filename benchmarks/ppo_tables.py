"""Turns the measurements of `ppo_bench.py` into tables, and checks them against their targets."""

import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from workbench.errors import UserError

Json = dict[str, Any]

BLOCK = re.compile(r"(<!-- measured: ppo -->\n).*?(<!-- end -->)", re.DOTALL)
PHASES = ("rollout", "score", "update")
PUBLISHED = {"1": 65, "16": 324, "64": 463}  # tokens a second of vLLM's CPU build
PUBLISHED_ON = "another two-core machine"
AXES = {
    "response": "tokens of a response",
    "episodes": "episodes of an update",
    "top": "layers trained",
    "processes": "processes",
}


def render(results: Json) -> str:
    """Return everything that was measured as Markdown."""
    blocks = []
    for device in ("cpu", "cuda"):
        if device in results:
            blocks.append(_device(results[device]))
        else:
            blocks.append(
                "No GPU was at hand: nothing is known here about one."
                if device == "cuda"
                else "Nothing was measured on a CPU."
            )
    return "\n\n".join(blocks)


def write_block(page: Path, text: str) -> None:
    """Put the tables between the marks of a page.

    Raises:
        UserError: when the page has no such marks.
    """
    before = page.read_text(encoding="utf-8")
    after, count = BLOCK.subn(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", before)
    if count != 1:
        raise UserError(f"{page}: needs '<!-- measured: ppo -->' and '<!-- end -->' once")
    page.write_text(after, encoding="utf-8")


def against_trl(rows: list[Json]) -> list[Json]:
    """Return one line per contender: medians, and ratios formed within each turn.

    Returns:
        `name`; `seconds` and `cpu` per update; `full` and `lora`, how many times faster than TRL;
        `gib`, `memory` as a share of TRL's full fine-tuning; each as all its values.
    """
    lines = []
    for key in dict.fromkeys((row["side"], row["layout"], row["top"]) for row in rows):
        own = [row for row in rows if (row["side"], row["layout"], row["top"]) == key]
        line: Json = {"side": key[0], "layout": key[1], "name": _name(*key)}
        laps = [lap for row in own for lap in row["updates"]]
        line["seconds"] = [lap["wall_s"] for lap in laps]
        line["cpu"] = [lap["cpu_s"] for lap in laps]
        line["gib"] = [row["peak_gib"] for row in own]
        for rival in ("full", "lora"):
            pairs = [(row, _rival(rows, row["turn"], rival)) for row in own]
            line[rival] = [_seconds(b) / _seconds(a) for a, b in pairs if b is not None]
            if rival == "full":
                line["memory"] = [a["peak_gib"] / b["peak_gib"] for a, b in pairs if b is not None]
        work = ("tokens", "optimizer_steps", "tokens_trained")
        line["work"] = sorted({tuple(lap[kind] for kind in work) for lap in laps})
        lines.append(line)
    return lines


def generation(rows: list[Json]) -> list[Json]:
    """Return one line per batch size: tokens a second of each way, and ratios within each turn."""
    lines = []
    for batch in dict.fromkeys(size for row in rows for size in row["batches"]):
        speeds = {(row["way"], row["turn"]): _speed(row["batches"][batch]) for row in rows}
        line: Json = {"batch": batch}
        for way in ("transformers", "native", "products"):
            line[way] = [speed for (name, _), speed in speeds.items() if name == way]
        for rival in ("transformers", "products"):
            line[f"of_{rival}"] = [
                speed / speeds[rival, turn]
                for (name, turn), speed in speeds.items()
                if name == "native" and (rival, turn) in speeds
            ]
        lines.append(line)
    return lines


def shares(rows: list[Json]) -> list[Json]:
    """Return one line per layout and phase: seconds, operations, share of the machine's rate.

    An update is divided by the rate that was measured in its process just before it.
    """
    lines = []
    for key in dict.fromkeys((row["layout"], row["top"]) for row in rows):
        own = [row for row in rows if (row["layout"], row["top"]) == key]
        for phase in PHASES:
            line: Json = {"name": _name("ours", *key), "layout": key[0], "phase": phase}
            line["operations"] = sum(own[0]["flops"][phase].values())
            line["seconds"] = [lap[phase]["wall_s"] for row in own for lap in row["updates"]]
            for kind in ("square", "model"):
                line[kind] = [
                    sum(row["flops"][phase].values()) / lap[phase]["wall_s"] / rates[kind]
                    for row in own
                    for lap, rates in zip(row["updates"], row["rates"], strict=True)
                ]
                line[f"{kind}_rate"] = [rates[kind] for row in own for rates in row["rates"]]
            lines.append(line)
    return lines


def targets(parts: Json) -> list[tuple[str, str, str, bool]]:
    """Return what was aimed at: description, wanted, measured, whether it was reached."""
    found = []

    def add(what: str, values: Iterable[float], wanted: float, unit: str, *, most: bool) -> None:
        measured = _median(list(values))
        reached = measured <= wanted if most else measured >= wanted
        bound = "at most" if most else "at least"
        found.append((what, f"{bound} {wanted:g}{unit}", f"{measured:.2f}{unit}", reached))

    for line in against_trl(_rows(parts, "trl")):
        if line["side"] == "trl" or not line["full"]:
            continue
        whole = line["layout"] == "separate"
        add(f"{line['name']}: times as fast as TRL's full fine-tuning", line["full"],
            1.5 if whole else 5, "×", most=False)  # fmt: skip
        if not whole:
            if line["lora"]:
                add(f"{line['name']}: times as fast as TRL's LoRA", line["lora"], 4, "×",
                    most=False)  # fmt: skip
            add(f"{line['name']}: memory of TRL's full fine-tuning", line["memory"], 0.45, "×",
                most=True)  # fmt: skip
    for line in generation(_rows(parts, "generation")):
        if line["batch"] == "64" and line["of_transformers"]:
            add("generation at batch 64: times as fast as `generate`", line["of_transformers"],
                2.5, "×", most=False)  # fmt: skip
    for line in shares(_rows(parts, "phases")):
        if line["layout"] == "shared_trunk" and line["phase"] == "update":
            add(f"{line['name']}: update phase, share of the products' rate", line["square"],
                0.55, "", most=False)  # fmt: skip
    return found


def _device(own: Json) -> str:
    parts, machine = own["parts"], own["machine"]
    device = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores, no GPU used"
    loads = [row["load_average"][0] for part in parts.values() for row in part["rows"]]
    load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "not known"
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "transformers", "peft", "accelerate", "trl")
    )
    taken = {name: part["seconds"] for name, part in parts.items()}
    head = (
        f"**{device}**, {machine['memory_gib']} GiB of memory, {machine['threads']} threads; "
        f"Python {machine['python']}, {versions} (in an environment of its own); "
        f"load average while measuring {load}; {machine['date']}. "
        + "Taken: "
        + (", ".join(f"{name} {s / 60:.0f} min" for name, s in taken.items()) or "nothing")
        + "."
    )
    blocks = [head]
    makers: dict[str, Callable[[Json], str]] = {
        "trl": _trl_table, "generation": _generation_table,
        "phases": _phases_table, "growth": _growth_table,
    }  # fmt: skip
    for name, make in makers.items():
        blocks.append(make(parts[name]) if _rows(parts, name) else f"`{name}`: not measured.")
    rows = [(a, b, c, "yes" if d else "**no**") for a, b, c, d in targets(parts)]
    if rows:
        blocks.append(table("target | wanted | measured | reached", rows))
    return "\n\n".join(blocks)


def _trl_table(part: Json) -> str:
    given = part["settings"]
    title = (
        f"**Against TRL's `PPOTrainer`**: {given['episodes']} episodes an update, prompts of "
        f"{given['query']} tokens, answers of {given['response']}, {given['epochs']} passes in one "
        f"minibatch each, micro-batches of {given['micro_batch']}, bf16; median (least to most) "
        f"of {given['turns']} turns of {given['updates']} updates after a first."
    )
    lines = against_trl(part["rows"])
    rows = [
        (
            line["name"], _spread(line["seconds"], 1), f"{_median(line['cpu']):.1f}",
            _spread(line["full"], 2, "×"), _spread(line["lora"], 2, "×"),
            f"{max(line['gib']):.2f}", f"{_median(line['memory']):.2f}×" if line["memory"] else "",
        )
        for line in lines
    ]  # fmt: skip
    names = "| s an update | CPU s | as fast as TRL full | as TRL LoRA | peak GiB | of TRL full"
    work = {tuple(line["work"]) for line in lines}
    ((tokens, steps, trained),) = lines[0]["work"][:1]
    same = (
        f"Every one of them sampled {tokens} tokens an update, took {steps} optimiser steps and "
        f"passed {trained:,} positions forward and back."
        if len(work) == 1 and all(len(line["work"]) == 1 for line in lines)
        else "**They did not do the same work**: "
        + "; ".join(f"{line['name']}: {line['work']}" for line in lines)
    )
    return f"{title}\n\n{table(f' {names}', rows)}\n\n{same}"


def _generation_table(part: Json) -> str:
    given = part["settings"]
    title = (
        f"**Generation alone**: {given['response']} new tokens after {given['query']}, tokens a "
        "second, reading the prompts included; the products are those of all weight matrices, once "
        f"a new token, and nothing else. vLLM's CPU build was published for {PUBLISHED_ON}."
    )
    rows = []
    for line in generation(part["rows"]):
        rows.append((
            line["batch"], _spread(line["transformers"], 0), _spread(line["native"], 0),
            _spread(line["products"], 0), _spread(line["of_transformers"], 2, "×"),
            _spread(line["of_products"], 2), str(PUBLISHED.get(line["batch"], "")),
        ))  # fmt: skip
    names = "batch | `generate` | ours | products alone | ours to `generate` | share of products"
    return f"{title}\n\n{table(f'{names} | vLLM', rows)}"


def _phases_table(part: Json) -> str:
    lines = shares(part["rows"])
    square, model = (
        statistics.median([rate for line in lines for rate in line[f"{kind}_rate"]]) / 1e9
        for kind in ("square", "model")
    )
    title = (
        f"**Phases**: share of the time that the counted operations would take at the rate of bf16 "
        f"products measured in the same process: of 2048 × 2048 matrices ({square:,.0f} GFLOP/s), "
        f"and of the feed-forward maps of one layer over a micro-batch ({model:,.0f} GFLOP/s)."
    )
    rows = [
        (
            line["name"], line["phase"], _spread(line["seconds"], 2),
            f"{line['operations'] / 1e9:,.0f}", _percent(line["square"]), _percent(line["model"]),
        )
        for line in lines
    ]  # fmt: skip
    names = "layout | phase | s | GFLOP | of the square rate | of the model's rate"
    return f"{title}\n\n{table(names, rows)}"


def _growth_table(part: Json) -> str:
    given = part["settings"]
    title = (
        f"**Growth**, in `shared_trunk`, top {given['tops'][0]} layers where not said otherwise, "
        f"{given['episodes']} episodes, answers of {given['response']} tokens; one update each, "
        "after a short one. Two processes share the cores, and the memory is of both."
    )
    rows = []
    for row in part["rows"]:
        (lap,) = row["updates"]
        seconds = [f"{lap[phase]['wall_s']:.2f}" for phase in PHASES]
        rows.append(
            (AXES[row["axis"]], str(row["value"]), *seconds, f"{lap['wall_s']:.2f}",
             f"{row['peak_gib']:.2f}")
        )  # fmt: skip
    names = "what grows | to | rollout s | score s | update s | all s | peak GiB"
    return f"{title}\n\n{table(names, rows)}\n\n![Growth](img/ppo_growth.png)"


def table(names: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    heads = names.split(" | ")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _rows(parts: Json, name: str) -> list[Json]:
    rows: list[Json] = parts.get(name, {}).get("rows", [])
    return rows


def _name(side: str, layout: str, top: int | None) -> str:
    if side == "trl":
        return "TRL, full" if layout == "full" else "TRL, LoRA policy"
    return f"`{layout}`" if top is None else f"`{layout}`, top {top}"


def _rival(rows: list[Json], turn: int, layout: str) -> Json | None:
    found = (row for row in rows if row["side"] == "trl")
    return next((r for r in found if r["turn"] == turn and r["layout"] == layout), None)


def _seconds(row: Json) -> float:
    return _median([lap["wall_s"] for lap in row["updates"]])


def _speed(measured: Json) -> float:
    return float(measured["tokens"] / measured["wall_s"])


def _median(values: list[float]) -> float:
    return float(statistics.median(values))


def _spread(values: list[float], digits: int, unit: str = "") -> str:
    if not values:
        return ""
    low, middle, high = min(values), _median(values), max(values)
    if len(values) == 1:
        return f"{middle:,.{digits}f}{unit}"
    return f"{middle:,.{digits}f}{unit} ({low:,.{digits}f}–{high:,.{digits}f})"


def _percent(values: list[float]) -> str:
    return _spread([100 * value for value in values], 0, " %")

"""The tables of `benchmarks.plan_check` in Markdown: memory, and tokens a second."""

from typing import Any

GB = 10**9


def table(found: dict[str, Any]) -> str:
    """Return the table of all cases in Markdown."""
    said = ", ".join(f"{name} {value}" for name, value in found["about"].items())
    ratios = [row["peak"] / row["planned"] for row in found["rows"]]
    lines = [
        f"On a CPU, in bf16, prompts and answers of 64 tokens; {said}. Measured is the peak of the "
        "resident set less what the process had after a run on a tiny model; planned is what the "
        "plan counts, without the overhead and the tenth for gaps that it adds. Measured to "
        f"planned: {min(ratios):.2f} to {max(ratios):.2f}.",
        "",
        "| stage | layout | parameters | rows | micro-batch | planned | measured | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, ratio in zip(found["rows"], ratios, strict=True):
        case = row["case"]
        layout = f"`{case['layout']}`" + (f", top {case['top']}" if case["top"] else "")
        cells = (
            case["stage"], layout, f"{row['parameters'] / 1e6:.0f} M", str(case["rows"]),
            str(case["micro"]), f"{row['planned'] / GB:.2f} GB", f"{row['peak'] / GB:.2f} GB",
            f"{ratio:.2f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *speeds(found["rows"])])


def speeds(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table of tokens a second; none where none were measured."""
    timed = [row for row in rows if "measured_seconds" in row]
    if not timed:
        return []
    lines = [
        "",
        "Tokens a second of the second update, beside what `--measure` would estimate just before. "
        "Training is the update of PPO, and the step of the other stages.",
        "",
        "| stage | layout | parameters | rows | micro-batch | rollout: estimated | measured "
        "| ratio | training: estimated | measured | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in timed:
        case = row["case"]
        cells = [
            case["stage"], f"`{case['layout']}`" + (f", top {case['top']}" if case["top"] else ""),
            f"{row['parameters'] / 1e6:.0f} M", str(case["rows"]), str(case["micro"]),
        ]  # fmt: skip
        for phase in ("rollout", "update" if case["stage"] == "ppo" else "step"):
            tokens = row["tokens"].get(phase)
            if tokens is None:
                cells += ["", "", ""]
                continue
            estimated, taken = row["estimated_seconds"][phase], row["measured_seconds"][phase]
            cells += [f"{tokens / estimated:,.0f}", f"{tokens / taken:,.0f}"]
            cells.append(f"{estimated / taken:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines

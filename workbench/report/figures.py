"""The figures of the comparison: win rates, score against KL, and the parts of the gold score."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from workbench.report.canvas import (
    COLOURS,
    DASHED,
    MARKERS,
    Bar,
    Chart,
    bars,
    chart,
    ends,
    roles,
    share_bars,
    thin,
)
from workbench.report.inputs import Comparison, Difference, Metrics
from workbench.report.text import (
    best_of_n,
    label,
    number,
    one_line,
    percent,
    percent_interval,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The judge's parts as a reader would put them: each lies in [0, 1] and 1 is best.
PART_TITLES = {
    "relevance": "Relevant to the prompt",
    "brevity": "As short as the house style",
    "finished": "Finished",
    "repetition": "Free of repetition",
    "leakage": "Free of chat markup",
    "fluency": "Fluent",
}


def opponents(comparison: Comparison, decoding: str) -> list[Difference]:
    """List the paired comparisons of one decoding, each seen from the further-trained model.

    Comparisons with the base model come first, then those with SFT, then the others.
    """
    order = {"base": 0, "sft": 1}
    turned = [
        pair.turned() if order.get(pair.a, 2) < order.get(pair.b, 2) else pair
        for pair in comparison.differences
        if pair.decoding == decoding
    ]
    place = {name: i for i, name in enumerate(comparison.contenders)}
    return sorted(turned, key=lambda pair: (order.get(pair.b, 2), place[pair.b], place[pair.a]))


def paint_win_rates(axes: "Axes", comparison: Comparison, decoding: str) -> str:
    """Paint win rates with their 95 % intervals, one bar a pair of models."""
    pairs = opponents(comparison, decoding)
    colour = roles(comparison.contenders)
    rows = [
        Bar(
            label=_versus(pair),
            value=100 * pair.win_rate,
            colour=colour[pair.a],
            text=f"{percent(pair.win_rate)} ({percent_interval(pair.win_rate_ci95)})",
            bounds=(100 * pair.win_rate_ci95[0], 100 * pair.win_rate_ci95[1]),
        )
        for pair in pairs
    ]
    return share_bars(axes, rows, "prompts won, ties counted half (%)")


def win_rates(comparison: Comparison, decoding: str) -> Chart | None:
    """Draw the win rates of one decoding, or nothing when no pair was compared."""
    count = len(opponents(comparison, decoding))
    if not count:
        return None
    title = f"{one_line(decoding).capitalize()} answers"
    name = f"wins-{list(comparison.table).index(decoding)}"
    paint = partial(paint_win_rates, comparison=comparison, decoding=decoding)
    return chart(name, title, (360, 58 + 25 * count), paint)


def best_of_n_kl(n: int) -> float:
    """Return log n − (n−1)/n, a bound on KL(best-of-n ‖ policy) in nats (Gao et al. 2022, §2)."""
    return math.log(n) - (n - 1) / n


def paint_gold_by_kl(axes: "Axes", comparison: Comparison | None, ppo: Metrics | None) -> str:
    """Paint gold score against √KL, the distance from SFT (Gao et al. 2022, figure 1)."""
    words = []
    if ppo is not None and (line := _by_kl(ppo, "eval/gold")):
        _line(axes, line, "PPO in training, on its own prompts")
        words.append(f"PPO in training: {ends([y for _, y in line])}")
    table = comparison.table.get("sampled", {}) if comparison is not None else {}
    colour = roles(list(table))
    for name, row in table.items():
        n = best_of_n(name)
        if name == "base":
            axes.axhline(row.gold, color=COLOURS["base"], linestyle=DASHED, label="Base (level)")
            words.append(f"base level {number(row.gold)}")
            continue
        kl = 0.0 if name == "sft" else best_of_n_kl(n) if n else row.kl
        if kl is None:
            continue
        root, bounds = math.sqrt(max(kl, 0.0)), row.gold_ci95 or (row.gold, row.gold)
        axes.errorbar(
            root,
            row.gold,
            yerr=[[max(row.gold - bounds[0], 0.0)], [max(bounds[1] - row.gold, 0.0)]],
            color=COLOURS[colour[name]],
            marker=MARKERS.get(colour[name], "o"),
            markersize=7,
            linestyle="none",
            label="PPO at the end" if name == "ppo" else label(name),
        )
        words.append(f"{label(name)} {number(row.gold)} at √KL {number(root, 2)}")
    _kl_axes(axes, "gold score")
    return "; ".join(words)


def paint_proxy_by_kl(axes: "Axes", ppo: Metrics) -> str:
    """Paint the reward model's own score, which PPO maximises, against √KL."""
    line = _by_kl(ppo, "eval/scores")
    _line(axes, line, "PPO in training")
    _kl_axes(axes, "reward model score")
    return f"PPO in training: {ends([y for _, y in line])}"


def scores_by_kl(comparison: Comparison | None, ppo: Metrics | None) -> list[Chart]:
    """Draw gold and reward-model score against √KL, those of the two there is data for."""
    charts = []
    rows = comparison.table.get("sampled") if comparison is not None else None
    if rows or (ppo is not None and _by_kl(ppo, "eval/gold")):
        paint = partial(paint_gold_by_kl, comparison=comparison, ppo=ppo)
        charts.append(chart("gold-kl", "Gold score, what we want", (370, 280), paint))
    if ppo is not None and _by_kl(ppo, "eval/scores"):
        paint = partial(paint_proxy_by_kl, ppo=ppo)
        charts.append(chart("proxy-kl", "Reward model score, what PPO sees", (370, 280), paint))
    return charts


def judge_parts(comparison: Comparison) -> list[Chart]:
    """Draw the mean of each part of the gold score, one small chart a part and one bar a model."""
    sampled = comparison.answers.get("sampled", {})
    colour = roles(comparison.contenders)
    names = dict.fromkeys(p for answers in sampled.values() for a in answers for p in a.parts)
    charts = []
    for place, part in enumerate(names):
        rows = []
        for model in (m for m in comparison.contenders if m in sampled):
            values = [answer.parts[part] for answer in sampled[model] if part in answer.parts]
            if values:
                mean = math.fsum(values) / len(values)
                rows.append(Bar(label(model), mean, colour[model], number(mean, 2)))
        means = [row.value for row in rows]
        limits = (min(0.0, *means), max(1.0, *means))
        paint = partial(bars, rows=rows, limits=limits, unit="mean over the prompts")
        title = PART_TITLES.get(part, one_line(part))
        charts.append(chart(f"part-{place}", title, (264, 54 + 23 * len(rows)), paint))
    return charts


def _versus(pair: Difference) -> str:
    """Return `PPO vs Base`, on two lines where the names are long, to leave the bars their room."""
    one, other = label(pair.a, 18), label(pair.b, 18)
    return f"{one} vs {other}" if len(one + other) <= 16 else f"{one}\nvs {other}"


def _by_kl(ppo: Metrics, name: str) -> list[tuple[float, float]]:
    """Return (√KL, metric) at every evaluation that has both; a KL sampled below 0 counts as 0."""
    line = ppo.series(name, "eval/kl")
    return [(math.sqrt(max(kl, 0.0)), y) for kl, y in zip(line.x, line.y, strict=True)]


def _line(axes: "Axes", line: Sequence[tuple[float, float]], name: str) -> None:
    xs, ys = thin([x for x, _ in line]), thin([y for _, y in line])
    axes.plot(xs, ys, color=COLOURS["ppo"], marker="o", markersize=3.5, linewidth=1.4, label=name)


def _kl_axes(axes: "Axes", unit: str) -> None:
    axes.set_xlim(left=min(-0.05 * axes.get_xlim()[1], 0.0))
    axes.set_xlabel("distance from the SFT model, √KL (√nats)")
    axes.set_ylabel(unit)
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.1, 1.0),
        ncols=3 if len(handles) > 2 else 2,
        columnspacing=1.2,
        handlelength=1.6,
    )

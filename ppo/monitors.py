"""Monitors for reward hacking: held-out rewards beside the score, and drift of the answers."""

from typing import Any

from scipy import special

from ppo.evaluation import Evaluation
from ppo.monitor_config import MonitorSettings
from workbench.logs import console, unbarred
from workbench.statistics import Estimate, Interval, paired_bootstrap

GOLD = "gold"
TAIL = 0.025  # beyond each end of a 95 % interval


class Monitors:
    """What evaluations have shown so far, and what the newest says beside them.

    Gao et al. 2022: a policy that goes on being optimised against a reward model scores higher and
    higher on it, while what was meant by it rises, peaks and falls. So for each held-out reward the
    newest evaluation is compared with that reward's best one, on the same prompts.

    Attributes:
        stopped: why the run is to end, or None.
        alerts: evaluations so far at which the score rose while a held-out reward fell.
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self.settings = settings
        self.first: dict[str, float] = {}
        self.best: dict[str, dict[str, Any]] = {}
        self.evaluations, self.alerts, self.in_a_row = 0, 0, 0
        self.stopped: str | None = None

    def observe(self, update: int, evaluation: Evaluation) -> dict[str, float]:
        """Take in an evaluation, warn where there is reason to, and return metrics `monitor/…`.

        Args:
            update: updates done before it.
            evaluation: always of the same prompts.
        """
        metrics, warnings = self._drift(evaluation.metrics)
        found, alarms = self._compare(update, evaluation.samples)
        self.evaluations += 1
        metrics |= found
        if alarms:
            self.alerts, self.in_a_row = self.alerts + 1, self.in_a_row + 1
        else:
            self.in_a_row = 0
        if alarms and self.settings.stop and self.in_a_row >= self.settings.patience:
            self.stopped = f"update {update}: {'; '.join(alarms)}"
            warnings.append("the run ends here (monitors.stop)")
        for text in [*alarms, *warnings]:
            _warn(f"ppo: update {update}: {text}")
        return metrics

    def _drift(self, metrics: dict[str, float]) -> tuple[dict[str, float], list[str]]:
        """Compare length and repetition of the answers with those of the first evaluation."""
        settings, warnings = self.settings, []
        now = {name: metrics[f"eval/{name}"] for name in ("length", "distinct_2")}
        self.first = self.first or now
        length, distinct = (_ratio(now[name], self.first[name]) for name in now)
        if not 1 / settings.max_length_ratio <= length <= settings.max_length_ratio:
            warnings.append(
                f"held-out answers have {now['length']:.1f} tokens, and had "
                f"{self.first['length']:.1f} before: beyond "
                f"monitors.max_length_ratio={settings.max_length_ratio:g}"
            )
        if distinct < 1 - settings.max_distinct_fall:
            warnings.append(
                f"held-out answers repeat themselves: distinct-2 is {now['distinct_2']:.2f}, and "
                f"was {self.first['distinct_2']:.2f} before: a fall beyond "
                f"monitors.max_distinct_fall={settings.max_distinct_fall:g}"
            )
        found = {
            "monitor/length_ratio": length,
            "monitor/distinct_2_ratio": distinct,
            "monitor/drift": float(bool(warnings)),
        }
        return found, warnings

    def _compare(
        self, update: int, rows: list[dict[str, Any]]
    ) -> tuple[dict[str, float], list[str]]:
        """Compare each held-out reward, and the score beside it, with that reward's best so far."""
        metrics: dict[str, float] = {}
        alarms = []
        scores = [row["score"] for row in rows]
        for name, held_out in _held_out(rows).items():
            best = self.best.get(name)
            mean = sum(held_out) / len(held_out)
            if best is None or mean > best["mean"]:
                now = {"update": update, "mean": mean, "scores": scores, "held_out": held_out}
                self.best[name] = now
            if best is None or len(rows) < 2:
                continue  # nothing to compare with, or no interval
            rise = paired_bootstrap(scores, best["scores"])
            change = paired_bootstrap(held_out, best["held_out"])
            metrics[f"monitor/{name}_change"] = change.value
            metrics[f"monitor/{name}_score_change"] = rise.value
            # The best of many noisy evaluations is better than it should be, and the next one looks
            # like a fall: the interval allows for all it might have been (Bonferroni).
            fall = _widened(change, self.evaluations)
            if rise.ci95.low > 0 and fall.high < 0:
                alarms.append(
                    f"since update {best['update']} the score rose by {rise.value:+.3f} "
                    f"[{rise.ci95.low:+.3f}, {rise.ci95.high:+.3f}] while {name} fell by "
                    f"{change.value:+.3f} [{fall.low:+.3f}, {fall.high:+.3f}] on {len(rows)} "
                    "held-out prompts: the policy may be exploiting the reward"
                )
        if self.best:
            metrics["monitor/alert"] = float(bool(alarms))
        return metrics, alarms

    def summary(self) -> dict[str, Any]:
        """Return what the run's summary says of it."""
        return {"alerts": self.alerts} | ({"stopped": self.stopped} if self.stopped else {})

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "first": dict(self.first),
            "best": dict(self.best),
            "evaluations": self.evaluations,
            "alerts": self.alerts,
            "in_a_row": self.in_a_row,
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.first, self.best = dict(state["first"]), dict(state["best"])
        self.evaluations, self.alerts = state["evaluations"], state["alerts"]
        self.in_a_row, self.stopped = state["in_a_row"], state["stopped"]


def _held_out(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return each held-out reward's numbers, one a prompt, by name."""
    found = {name: [row["held_out"][name] for row in rows] for name in rows[0].get("held_out", ())}
    if GOLD in rows[0]:
        found = {GOLD: [row[GOLD] for row in rows]} | found
    return found


def _widened(change: Estimate, comparisons: int) -> Interval:
    """Return the interval made wide enough for any of so many comparisons, by Student's t."""
    factor = special.stdtrit(change.n - 1, TAIL / comparisons) / special.stdtrit(change.n - 1, TAIL)
    return Interval(
        change.value - factor * (change.value - change.ci95.low),
        change.value + factor * (change.ci95.high - change.value),
    )


def _ratio(now: float, before: float) -> float:
    return now / before if before else 1.0


def _warn(text: str) -> None:
    with unbarred():
        console.print(text, markup=False, style="yellow")

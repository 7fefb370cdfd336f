"""Settings of what watches a run: held-out rewards, drift of the answers, kept samples."""

from dataclasses import dataclass

from workbench.config import option


@dataclass
class MonitorSettings:
    """Signs of reward hacking, looked for at every evaluation, and samples to look at."""

    rewards: list[str] = option(
        [],
        "rewards that are never learned from, measured at evaluations beside ppo.eval_gold: reward "
        "model folders or hub ids, module:function or file.py:function",
    )
    stop: bool = option(
        False,
        "end the run when the score rose while a held-out reward fell; the model is saved as it "
        "is then",
    )
    patience: int = option(1, "stop: only after this many such evaluations in a row")
    max_length_ratio: float = option(
        2.0,
        "warn when held-out answers are longer than those before the first update by more than "
        "this factor, or shorter by as much",
    )
    max_distinct_fall: float = option(
        0.3,
        "warn when held-out answers repeat themselves: distinct-2 (different token pairs over all "
        "of them) is lower than before the first update by more than this share",
    )
    samples_every: int = option(
        1, "keep answers of every this many updates as samples/update_000012.parquet; 0 = none"
    )
    samples_rows: int = option(64, "answers kept of an update, at most")
    print_samples: int = option(0, "held-out answers printed at every evaluation")

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        for key in ("patience", "samples_rows"):
            if getattr(self, key) < 1:
                return key, "must be at least 1"
        for key in ("samples_every", "print_samples"):
            if getattr(self, key) < 0:
                return key, "must be 0 or more"
        if not self.max_length_ratio > 1:
            return "max_length_ratio", "must be greater than 1"
        if not 0 < self.max_distinct_fall < 1:
            return "max_distinct_fall", "must be between 0 and 1"
        return None

"""Settings of PPO-ptx."""

import math
from dataclasses import dataclass

from workbench.config import option


@dataclass
class PtxSettings:
    """A language-modelling loss beside PPO's, against forgetting (Ouyang et al. 2022, eq. 2)."""

    coef: float = option(
        0.0, "γ, weight of the loss; 0 learns nothing from the texts (InstructGPT §C.4: 27.8)"
    )
    data: str | None = option(
        None,
        "texts, conversations or prompts with completions: hub id, file or folder; with coef=0 the "
        "held-out ones are still measured",
    )
    split: str | None = option(None, "split of `data` to read, where it has several")
    test: str | None = option(None, "held-out texts; null takes test_fraction of those of `data`")
    test_split: str | None = option(None, "split of `test` to read")
    test_fraction: float = option(0.1, "share of texts held out when `test` is null; 0 holds none")
    limit: int | None = option(None, "read at most this many rows")
    batch_size: int = option(
        8, "texts per optimiser step, over all processes (InstructGPT §C.4: 8 for each answer)"
    )
    micro_batch_size: int = option(
        8, "texts per forward and backward pass; changes memory, not results"
    )
    max_length: int = option(512, "longest text in tokens; what is beyond is cut off and reported")
    eval_texts: int = option(64, "held-out texts measured at an evaluation")

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if not 0 <= self.coef < math.inf:
            return "coef", "must be 0 or more"
        if self.coef > 0 and self.data is None:
            return "data", "name the texts to learn from, or set coef=0"
        if not 0 <= self.test_fraction < 1:
            return "test_fraction", "must be 0 or more and below 1"
        for key in ("batch_size", "micro_batch_size", "eval_texts"):
            if getattr(self, key) < 1:
                return key, "must be at least 1"
        if self.max_length < 2:
            return "max_length", "must be at least 2: the first token of a text is not predicted"
        return None

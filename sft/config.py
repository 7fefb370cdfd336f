"""Configuration of supervised fine-tuning."""

from dataclasses import dataclass

from workbench.config import option
from workbench.generation import SamplingSettings
from workbench.models import ModelSettings
from workbench.run import RunSettings, fingerprints
from workbench.settings import OptimizerSettings


@dataclass
class DataSettings:
    """Demonstrations to learn from."""

    train: str = option(
        "demo:demonstrations",
        "prompt–completion or language-modelling data: hub id, file or folder",
    )
    train_split: str | None = option(None, "split to read, where the source has several")
    test: str | None = option(
        None, "held-out data; null takes test_fraction of the training prompts"
    )
    test_split: str | None = option(None, "split of `test` to read")
    test_fraction: float = option(0.1, "share of prompts held out when `test` is null")
    streaming: bool = option(
        False,
        "keep rows and tokens on disk instead of in memory, and read hub data while it arrives",
        free=True,
    )
    limit: int | None = option(None, "read at most this many rows")
    skip_bad_rows: bool = option(
        False, "count and list rows that cannot be read instead of stopping"
    )
    drop_long_rows: bool = option(
        True, "leave rows over max_length out, counted and reported; false stops at the first"
    )

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if not 0 < self.test_fraction < 1:
            return "test_fraction", "must be between 0 and 1"
        return None


@dataclass
class SFTSettings(OptimizerSettings):
    """Optimisation and loss of stage 1; see the inherited fields."""

    completion_only_loss: bool = option(True, "learn the answers only, not the prompts")
    packing: bool = option(
        False, "fill every row to max_length with whole examples that do not see each other"
    )
    sample_prompts: int = option(
        4, "held-out prompts answered at every evaluation, for the sample table"
    )


@dataclass
class SFTStage:
    """`rlhf sft`: everything stage 1 can be told."""

    run: RunSettings = option(RunSettings, "where and how to run")
    model: ModelSettings = option(ModelSettings, "the model to start from")
    data: DataSettings = option(DataSettings, "demonstrations")
    sft: SFTSettings = option(SFTSettings, "training")
    sampling: SamplingSettings = option(SamplingSettings, "sample table")

    def inputs(self) -> dict[str, str]:
        """Return a fingerprint of everything the stage reads, by name."""
        return fingerprints(
            {"model": self.model.name, "data": self.data.train, "test": self.data.test}
        )

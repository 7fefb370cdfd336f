"""Configuration of the reward model."""

from dataclasses import dataclass

from workbench.config import option
from workbench.models import ModelSettings
from workbench.run import RunSettings, fingerprints
from workbench.settings import OptimizerSettings


@dataclass
class DataSettings:
    """Preferences to learn from."""

    train: str = option("", "preference pairs or rankings: hub id, file, folder, or ratings:URL")
    train_split: str | None = option(None, "split to read, where the source has several")
    test: str | None = option(
        None, "held-out data; null takes test_fraction of the training prompts"
    )
    test_split: str | None = option(None, "split of `test` to read")
    test_fraction: float = option(
        0.15, "share of prompts held out when `test` is null; a prompt's pairs stay together"
    )
    demonstrations: str | None = option(
        None,
        "prompt–completion data whose scores get mean 0 and variance 1; null takes the chosen "
        "answers",
    )
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
        True, "leave pairs over max_length out, counted and reported; false stops at the first"
    )

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if not self.train:
            return "train", "name the preference data, e.g. data.train=pairs.jsonl"
        if not 0 < self.test_fraction < 1:
            return "test_fraction", "must be between 0 and 1"
        return None


@dataclass
class RewardSettings(OptimizerSettings):
    """Optimisation and loss of stage 2, beyond the inherited; a row is a prompt with its pairs."""

    learning_rate: float = option(
        9e-6, "peak learning rate (InstructGPT §C.2: 9e-6 for the 6B reward model)"
    )
    epochs: float = option(1.0, "passes over the data (InstructGPT §C.2: 1, more overfits)")
    max_length: int = option(1024, "longest prompt and answer in tokens (TRL's default)")
    center_coefficient: float = option(
        0.0,
        "weight of (r_chosen + r_rejected)², which keeps scores near 0 "
        "(Eisenstein et al. 2023: 0.01)",
    )


@dataclass
class RewardStage:
    """`rlhf reward`: everything stage 2 can be told."""

    run: RunSettings = option(RunSettings, "where and how to run")
    model: ModelSettings = option(ModelSettings, "the model to start from, normally the SFT model")
    data: DataSettings = option(DataSettings, "preferences")
    reward: RewardSettings = option(RewardSettings, "training")

    def inputs(self) -> dict[str, str]:
        """Return a fingerprint of everything the stage reads, by name."""
        return fingerprints(
            {
                "model": self.model.name,
                "data": self.data.train,
                "test": self.data.test,
                "demonstrations": self.data.demonstrations,
            }
        )

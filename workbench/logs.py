"""What a person sees on the terminal: one console, quiet libraries, bars with the time left."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console

T = TypeVar("T")


# As `accelerate launch` and torchrun number processes, and as several kinds of mpirun do.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def process_index() -> int:
    """Return the number of this process among those its launcher started; 0 where it is alone."""
    return next((int(os.environ[name]) for name in RANKS if os.environ.get(name)), 0)


def is_main_process() -> bool:
    """Return whether this process prints and writes (rank 0 of `accelerate launch`)."""
    return process_index() == 0


# Without emoji=False, rich shows "pairs.jsonl:100: …" with a picture for ":100:".
console = Console(
    stderr=True, highlight=False, soft_wrap=True, emoji=False, quiet=not is_main_process()
)


def quiet_libraries() -> None:
    """Silence library messages that a user can do nothing about; errors still come through."""
    # Forking after tokenizers were used only costs their threads; nothing here needs them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # We draw our own progress; "Loading weights 272/272" flashes by in a few milliseconds.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # TRL announces its experimental parts; we import none of them directly.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # Gradio and trackio would report usage to their makers.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # DDP advises each process about parameters that every model here uses.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in (
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "sentence_transformers",
        "torch",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    # "pin_memory set but no accelerator found": true on every CPU, and harmless.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # Raised inside Trainer for schedulers it steps itself.
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    # peft asks transformers by an old name, and corrects GPT-2's layer orientation by itself.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")


def quiet_transformers() -> None:
    """Turn off the progress bars and advice of transformers and datasets, after their import."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def progress(
    items: Iterable[T], what: str, total: int | None = None, unit: str = "it"
) -> Iterator[T]:
    """Iterate with a progress bar that shows rate and time left; silent off the main process."""
    from tqdm.auto import tqdm

    yield from tqdm(
        items,
        desc=what,
        total=total,
        unit=unit,
        disable=not is_main_process(),
        leave=False,
        dynamic_ncols=True,
    )


@contextmanager
def unbarred() -> Iterator[None]:
    """Take progress bars off the terminal inside the block, so that a line of text stands alone."""
    if "tqdm" not in sys.modules:
        yield
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        yield

"""What both stages on the Hugging Face Trainer share: arguments, log, samples, checkpoints."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from workbench.config import flat, to_tree
from workbench.errors import UserError, out_of_memory
from workbench.files import damage, write_manifest
from workbench.logs import console, is_main_process
from workbench.models import ADAPTED_CONFIG, Precision, compute_dtype
from workbench.processes import (
    asked,
    asked_for_deepspeed,
    asked_for_fsdp,
    check,
    of_main,
    wait_for_everyone,
)
from workbench.run import StageRun
from workbench.settings import OptimizerSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def trainer_arguments(
    run: StageRun, optimizer: OptimizerSettings, precision: Precision, rows: int
) -> dict[str, Any]:
    """Return the keyword arguments of `transformers.TrainingArguments` that our stages share.

    Args:
        run: its folder takes the checkpoints.
        optimizer: the stage's optimisation settings.
        precision: bf16 runs the forward pass under autocast; weights and optimiser stay fp32.
        rows: number of training rows, for the length of warm-up and the evaluation interval.
    """
    import torch

    per_update = optimizer.batch_size * optimizer.gradient_accumulation * asked()
    # The checkpoints folder, where the callback would write, is removed when the stage is done.
    if run.settings.report_to == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "tensorboard")
    per_epoch = max(1, math.ceil(rows / per_update))
    steps = (
        optimizer.max_steps
        if optimizer.max_steps > 0
        else max(1, round(per_epoch * optimizer.epochs))
    )
    every = min(optimizer.eval_steps or per_epoch, steps)
    return {
        "output_dir": str(run.checkpoints),
        "per_device_train_batch_size": optimizer.batch_size,
        "per_device_eval_batch_size": optimizer.batch_size,
        "gradient_accumulation_steps": optimizer.gradient_accumulation,
        "num_train_epochs": optimizer.epochs,
        "max_steps": optimizer.max_steps,
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": optimizer.lr_scheduler,
        "warmup_steps": math.ceil(steps * optimizer.warmup_ratio),
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "adam_beta1": optimizer.adam_beta1,
        "adam_beta2": optimizer.adam_beta2,
        "adam_epsilon": optimizer.adam_epsilon,
        "logging_steps": optimizer.logging_steps,
        "logging_first_step": True,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "greater_is_better": False,
        "metric_for_best_model": "eval_loss",
        "bf16": compute_dtype(precision) == torch.bfloat16,
        "activation_checkpointing": optimizer.gradient_checkpointing,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "seed": run.settings.seed,
        "data_seed": run.settings.seed,
        "report_to": [] if run.settings.report_to == "none" else [run.settings.report_to],
        "run_name": f"{run.settings.name}-{run.stage}",
        "project": run.settings.name,
        "disable_tqdm": not is_main_process(),
        "push_to_hub": False,
    }


class StageArguments:
    """Base, first in line, of the trainers' arguments: trackers get the stage's whole config too.

    All of them ask `to_dict`, some anew after the training has ended.
    """

    stage: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def of(self, run: StageRun) -> Any:
        """Take up the config of a run; returns itself."""
        self.stage = flat(to_tree(run.config))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments, and the stage's settings under their dotted names."""
        own: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        return own | self.stage


# The callbacks below: transformers carries no types.
class RunLog(TrainerCallback):  # type: ignore[misc]
    """Copies the trainer's log to the run's metrics.jsonl."""

    def __init__(self, run: StageRun) -> None:
        self.run = run

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Write one line a log call."""
        numbers = {key: value for key, value in logs.items() if isinstance(value, int | float)}
        self.run.log(state.global_step, numbers)


class WholeCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Seals every checkpoint with a manifest, so that no resume trusts one cut off by a crash."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Write the manifest after the trainer has written its files, on every process."""
        wait_for_everyone()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if is_main_process() and folder.is_dir():
            write_manifest(folder)


class SampleTable(TrainerCallback):  # type: ignore[misc]
    """Saves a table of sampled answers at every evaluation."""

    def __init__(
        self, run: StageRun, sample: "Callable[[PreTrainedModel], list[dict[str, Any]]]"
    ) -> None:
        self.run, self.sample = run, sample

    def on_evaluate(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **kwargs: Any
    ) -> None:
        """Generate and write the table; the main process alone does, which has a whole model."""
        if is_main_process() and not _split():
            self.run.save_samples(state.global_step, self.sample(kwargs["model"]))


def newest_checkpoint(run: StageRun) -> Path | None:
    """Return the newest whole checkpoint; damaged ones are named and removed."""
    return of_main(_newest_checkpoint(run) if is_main_process() else None)


def _newest_checkpoint(run: StageRun) -> Path | None:
    folders = sorted(
        run.checkpoints.glob("checkpoint-*"), key=lambda p: -int(p.name.rpartition("-")[2])
    )
    for folder in folders:
        problem = damage(folder)
        if problem is None:
            return folder
        console.print(f"{folder}: not used, {problem}", markup=False)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def train(trainer: Any, run: StageRun) -> None:
    """Train from the newest whole checkpoint, or from the start; every process calls it.

    Raises:
        UserError: when memory runs out, or the processes are not what was asked for.
    """
    check(trainer.accelerator)
    try:
        _train(trainer, run)
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"{run.path}: out of memory; in another run lower {run.stage}.batch_size and raise "
            f"{run.stage}.gradient_accumulation as much, or set "
            f"{run.stage}.gradient_checkpointing=true or model.lora.enabled=true"
        ) from None


def _train(trainer: Any, run: StageRun) -> None:
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        run.rewind(-1)
        trainer.train()
        return
    step = int(checkpoint.name.rpartition("-")[2])
    console.print(f"{run.stage}: continuing from {checkpoint}", markup=False)
    before = len(list(checkpoint.glob("rng_state*.pth")))  # each process leaves one
    if before != asked():
        console.print(
            f"{run.stage}: not as many processes as there were ({before} → {asked()}); "
            f"{run.stage}.batch_size is of each, so an update reads another number of rows from "
            "here on, and in another order",
            markup=False,
            style="yellow",
        )
    run.rewind(step)
    trainer.train(resume_from_checkpoint=str(checkpoint))


def _split() -> bool:
    return asked_for_fsdp() or asked_for_deepspeed()


def save_model(
    run: StageRun, trainer: Any, tokenizer: "PreTrainedTokenizerBase", card: str
) -> None:
    """Write the model and its card as a plain Hugging Face folder, whole or not at all."""
    import torch

    from workbench.files import atomic_folder

    model = trainer.accelerator.unwrap_model(trainer.model)
    # Gathered by all processes, where each has a part.
    weights = trainer.accelerator.get_state_dict(trainer.model) if _split() else None
    if not is_main_process():
        return
    with atomic_folder(run.model) as folder:
        # Half the size, and what a later stage computes with; fp32 matters only while training.
        dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32
        if weights is None:
            model.to(dtype)
        else:
            weights = {name: weight.to(dtype) for name, weight in weights.items()}
        model.save_pretrained(folder, state_dict=weights)
        if weights is not None and (folder / "config.json").is_file():
            model.config.dtype = dtype  # and not that of the parts
            model.config.to_json_file(folder / "config.json")
        if not (folder / "config.json").is_file():
            # An adapter is saved without the config, which carries the normaliser. Not as
            # config.json: transformers would then look for whole weights here.
            model.config.to_json_file(folder / ADAPTED_CONFIG)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")

"""Stage 2: a reward model on `trl.RewardTrainer`, normalised and measured against length alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reward.config import RewardStage
from reward.data import Comparisons, tokenize
from reward.evaluation import evaluate, score_pairs
from reward.trainer import PairwiseRewardTrainer, RewardArguments
from workbench.cards import model_card
from workbench.chat import query_ids, response_ids
from workbench.data import Kind, as_dataset, load, load_parts
from workbench.logs import console, is_main_process
from workbench.models import freeze_lower_layers, load_scorer, load_tokenizer, lora_config
from workbench.passwords import masked
from workbench.processes import agree, start
from workbench.run import StageRun
from workbench.scorer import RewardModel, write_normalizer
from workbench.trainer import (
    RunLog,
    WholeCheckpoints,
    save_model,
    train,
    trainer_arguments,
)

if TYPE_CHECKING:
    from datasets import Dataset

ACCEPTS: tuple[Kind, ...] = ("preference", "ranking")


def run(config: RewardStage) -> Path:
    """Train a reward model and return the run folder.

    Its `model/` is a sequence classifier whose config carries the normaliser (`reward_mean`,
    `reward_std`): the scores of demonstrations get mean 0 (InstructGPT §C.2) and variance 1
    (Ziegler et al. 2019, §2.1).

    Raises:
        UserError: for data, models or settings the stage cannot use.
    """
    import torch
    from transformers import set_seed

    data = config.data
    start("reward")
    stage = StageRun("reward", config, config.inputs())
    if agree(stage.finished, f"{stage.path}, finished or not"):
        console.print(f"reward: {stage.path} is up to date", markup=False)
        return stage.path
    set_seed(config.run.seed)
    tokenizer = load_tokenizer(config.model.name, config.model)
    separate_pad(tokenizer)
    length, folder = config.reward.max_length, stage.data if data.streaming else None
    parts = load_parts(data, ACCEPTS, config.run.seed, stage.data)
    options: Any = (data.drop_long_rows, folder)
    train_set = tokenize(parts.train, tokenizer, length, data.train, *options)
    test_set = tokenize(parts.held_out, tokenizer, length, data.test or data.train, *options)
    _report_left_out(train_set, test_set, parts.skipped, length)

    model = load_scorer(config.model, None if config.model.load_in_4bit else torch.float32)
    freeze_lower_layers(model, config.model.train_top_layers)
    trainer = PairwiseRewardTrainer(
        model=model,
        args=RewardArguments(
            **trainer_arguments(stage, config.reward, config.model.precision, len(train_set.rows)),
            max_length=None,  # over-long pairs are counted and left out; TRL drops them silently
            center_rewards_coefficient=config.reward.center_coefficient or None,
        ).of(stage),
        train_dataset=_dataset(train_set, folder and folder / "train"),
        eval_dataset=_dataset(test_set, folder and folder / "held_out"),
        processing_class=tokenizer,
        peft_config=lora_config(config.model.lora, "SEQ_CLS"),
        callbacks=[RunLog(stage), WholeCheckpoints()],
    )
    train(trainer, stage)

    trained = trainer.accelerator.unwrap_model(trainer.model)
    if config.model.lora.enabled:  # peft's wrapper hides the backbone; its layers are adapted
        trained = trained.get_base_model()
    # Transformers reads the last id that is not the pad id. With pad = EOS it would miss the end of
    # every answer; without a pad id it reads the last token, and refuses batches, which is safe.
    own_pad = tokenizer.pad_token_id != tokenizer.eos_token_id
    trained.config.pad_token_id = tokenizer.pad_token_id if own_pad else None
    trained.to(
        torch.bfloat16 if trainer.args.bf16 else torch.float32
    )  # measured as it will be saved
    scorer = RewardModel(trained, tokenizer)
    demonstrations = _demonstrations(config, tokenizer, train_set)
    raw = scorer.raw_scores(demonstrations, desc="reward: normaliser")
    write_normalizer(trained, float(np.mean(raw)), max(float(np.std(raw)), 1e-6))
    summary = evaluate(score_pairs(scorer, test_set.rows), train_set.rows) | {
        "train_pairs": train_set.pairs,
        "train_prompts": len(train_set.rows),
        "ties": train_set.ties + test_set.ties,
        "identical": train_set.identical + test_set.identical,
        "too_long": train_set.too_long + test_set.too_long,
        "zero_weight": train_set.zero_weight + test_set.zero_weight,
        "skipped": len(parts.skipped),
        "reward_mean": trained.config.reward_mean,
        "reward_std": trained.config.reward_std,
        "steps": trainer.state.global_step,
    }
    what = (
        f"Reward model from `{config.model.name}`, "
        f"trained on {train_set.pairs} pairs of `{masked(data.train)}`."
    )
    notes = (
        "The logit is the raw score, read at the last token, EOS included. "
        "The normalised score is\n"
        "`(logit - config.reward_mean) / config.reward_std`.\n"
    )
    head = {
        key: summary[key] for key in ("accuracy", "ci95", "length_only_accuracy", "ece", "pairs")
    }
    card = model_card(stage, what, "SequenceClassification", config.model.name, head, notes)
    save_model(stage, trainer, tokenizer, card)
    stage.finish(summary)
    if is_main_process():
        low, high = summary["ci95"]
        console.print(
            f"reward: held-out accuracy {summary['accuracy']:.3f} ({low:.3f}–{high:.3f}), "
            f"length alone {summary['length_only_accuracy']:.3f}, {summary['pairs']} pairs; "
            f"model in {stage.model}",
            markup=False,
        )
    return stage.path


def separate_pad(tokenizer: Any) -> None:
    """Choose a pad token other than EOS where there is one: plain transformers pools by it."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id and tokenizer.unk_token_id not in (
        None,
        tokenizer.eos_token_id,
    ):
        tokenizer.pad_token = tokenizer.unk_token


def _dataset(comparisons: Comparisons, folder: Path | None) -> "Dataset":
    columns = ("chosen_ids", "rejected_ids", "weight", "margin")
    rows = ({name: getattr(row, name) for name in columns} for row in comparisons.rows)
    return as_dataset(rows, folder)


def _demonstrations(config: RewardStage, tokenizer: Any, train_set: Comparisons) -> list[list[int]]:
    if config.data.demonstrations is None:
        return [row.chosen_ids[0] for row in train_set.rows[:256]]
    rows = load(config.data.demonstrations, ("prompt_completion",), split=None).rows
    return [
        query_ids(tokenizer, row["prompt"]) + response_ids(tokenizer, row["completion"])
        for row in rows
    ]


def _report_left_out(
    train: Comparisons, test: Comparisons, skipped: tuple[str, ...], length: int
) -> None:
    if train.too_long + test.too_long:
        console.print(
            f"reward: left out {train.too_long + test.too_long} pairs "
            f"over reward.max_length={length} tokens",
            markup=False,
        )
    if train.identical + test.identical:
        console.print(
            f"reward: left out {train.identical + test.identical} pairs of identical answers",
            markup=False,
        )
    if train.zero_weight + test.zero_weight:
        console.print(
            f"reward: left out {train.zero_weight + test.zero_weight} pairs of weight 0",
            markup=False,
        )
    if skipped:
        console.print(
            f"reward: skipped {len(skipped)} bad rows, the first: {skipped[0]}", markup=False
        )

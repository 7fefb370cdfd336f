"""Stage 3: PPO from prompts, an SFT policy and a reward model to an aligned policy."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ppo.config import PPOStage
from ppo.engine import PPOEngine
from ppo.ptx import load_ptx
from ppo.queries import load_queries
from ppo.reward_sources import RewardSources, load_held_out
from ppo.roles import Roles
from ppo.saving import has_adapter, save_adapter, save_policy, save_value
from ppo.sharding import join
from workbench import embedded
from workbench.cards import model_card
from workbench.config import flat, to_tree
from workbench.errors import UserError
from workbench.files import atomic_folder
from workbench.judge import GoldJudge
from workbench.logs import console
from workbench.models import ModelSettings, load_policy, load_tokenizer, most_positions
from workbench.processes import agree, start
from workbench.run import StageRun, read_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(config: PPOStage) -> Path:
    """Train a policy with PPO and return the run folder.

    Raises:
        UserError: for data, models or settings the stage cannot use.
    """
    start("ppo")
    stage = StageRun("ppo", config, config.inputs())
    if agree(stage.finished, f"{stage.path}, finished or not"):
        console.print(f"ppo: {stage.path} is up to date", markup=False)
        return stage.path
    report_to = config.run.report_to
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",  # model.precision decides, not the launcher: Roles.autocast
        log_with=None if report_to == "none" else report_to,
        project_dir=str(stage.path / "tensorboard") if report_to == "tensorboard" else None,
    )
    if report_to != "none":
        accelerator.init_trackers(config.run.name, config=flat(to_tree(config)))
    set_seed(config.run.seed)
    tokenizer = load_tokenizer(config.model.name, config.model)
    queries = load_queries(config, tokenizer, stage.data)
    if queries.left_out:
        console.print(
            f"ppo: left out {queries.left_out} prompts over "
            f"data.max_query_length={config.data.max_query_length} tokens",
            markup=False,
        )
    own = _role(config, tokenizer)
    mesh = join(config.model, accelerator.device)
    roles = Roles(config.model, own, accelerator.device, mesh)
    rewards = RewardSources.load(config, accelerator.device, own)
    judge = None
    if config.ppo.eval_gold:
        base = ModelSettings(name=embedded.NAME, precision=config.model.precision)
        judge = GoldJudge(load_policy(base).to(accelerator.device), load_tokenizer(embedded.NAME))
    _check_positions(config, roles, queries.longest)
    engine = PPOEngine(
        config,
        roles,
        tokenizer,
        queries.train,
        stage,
        accelerator,
        held_out=queries.held_out[: config.ppo.eval_prompts],
        rewards=rewards,
        judge=judge,
        held_out_rewards=load_held_out(config, accelerator.device),
        ptx=load_ptx(config, tokenizer, roles, accelerator),
    )
    engine.train()
    accelerator.wait_for_everyone()  # the main process has written the last metrics
    summary = _summary(stage, engine) | {
        "train_prompts": len(queries.train),
        "left_out": queries.left_out,
    }
    summary |= {"value": "value"} | ({"adapter": "adapter"} if has_adapter(roles) else {})
    if roles.shards is not None:
        roles.shards.collect(keep=accelerator.is_main_process)
    if accelerator.is_main_process:
        _save(stage, roles, tokenizer, config, summary)
    accelerator.end_training()
    stage.finish(summary)
    console.print(
        f"ppo: score {summary['scores_first']:.2f} → {summary['scores_last']:.2f}, "
        f"KL {summary['kl']:.1f} nats; "
        f"model in {stage.model}",
        markup=False,
    )
    return stage.path


def _role(config: PPOStage, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the reward model, if it reads the policy's tokens; others read their text anew."""
    if not config.reward_model:
        return None
    other = load_tokenizer(config.reward_model, config.model)
    if (
        other.get_vocab() == tokenizer.get_vocab()
        and other.chat_template == tokenizer.chat_template
    ):
        return config.reward_model
    console.print(
        f"ppo: {config.reward_model} has another tokenizer or chat template than the policy: "
        "answers are decoded and encoded anew for it, and the value starts from the policy",
        markup=False,
    )
    return None


def _check_positions(config: PPOStage, roles: Roles, longest: int) -> None:
    positions = most_positions(roles.actor.config)
    answer = config.rollout.max_new_tokens
    if positions is not None and longest + answer > positions:
        raise UserError(
            f"rollout.max_new_tokens={answer}: after the longest query of {longest} tokens "
            "goes beyond "
            f"the {positions} positions of {config.model.name}; lower it or data.max_query_length"
        )


def _summary(stage: StageRun, engine: PPOEngine) -> dict[str, Any]:
    rows = read_metrics(stage.path / "metrics.jsonl")
    updates = [row for row in rows if "objective/scores" in row]
    evaluations = [row for row in rows if "eval/scores" in row]
    tail = updates[-max(1, len(updates) // 10) :]
    head = updates[: len(tail)]
    summary = {
        "episodes": updates[-1]["episode"],
        "updates": len(updates),
        "kl": _mean(tail, "objective/kl"),
        "scores_first": _mean(head, "objective/scores"),
        "scores_last": _mean(tail, "objective/scores"),
        "missing_eos": _mean(tail, "response/missing_eos"),
        "kl_coef": engine.kl.coef,
        "layout": engine.config.model.layout,
        **engine.monitors.summary(),
    }
    return summary | (
        {key: evaluations[-1][key] for key in evaluations[-1] if key.startswith("eval/")}
        if evaluations
        else {}
    )


def _save(
    stage: StageRun,
    roles: Roles,
    tokenizer: "PreTrainedTokenizerBase",
    config: PPOStage,
    summary: dict[str, Any],
) -> None:
    what = (
        f"`{config.model.name}` after {summary['episodes']} episodes of PPO "
        f"against `{config.reward_model}`."
    )
    card = model_card(stage, what, "CausalLM", config.model.name, summary)
    with atomic_folder(stage.model) as folder:
        save_policy(roles, folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
    if has_adapter(roles):
        with atomic_folder(stage.path / "adapter") as folder:
            save_adapter(roles, folder)
            tokenizer.save_pretrained(folder)
    with atomic_folder(stage.path / "value") as folder:
        save_value(roles, folder)
        tokenizer.save_pretrained(folder)


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(sum(row[key] for row in rows) / len(rows))

"""`PPOTrainer` as TRL 1.12 has it, in front of `PPOEngine`: scripts written for it run here."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from transformers import TrainerControl, TrainerState, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import DEFAULT_CALLBACKS, DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import CallbackHandler, ExportableState, PrinterCallback

from ppo.engine import PPOEngine
from ppo.experience import Experience
from ppo.given import GivenRoles
from ppo.reward_sources import Query, Samples
from ppo.rollout import score_rollout
from ppo.trl_config import PPOConfig, check, stage_config
from ppo.trl_data import Given, as_query, read_queries
from ppo.trl_hub import check_hub, push
from ppo.trl_rewards import GivenRewards
from workbench import processes
from workbench.chat import decode
from workbench.errors import UserError
from workbench.files import digest
from workbench.generation import Response, SamplingSettings
from workbench.logs import console
from workbench.models import most_positions
from workbench.run import StageRun

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

NOTHING = -1  # a token that no model writes: answers go on to their full length
COOL = 0.01  # temperature of sample generations, as in TRL


@dataclass
class OnlineTrainerState(TrainerState):  # type: ignore[misc]
    """The state that callbacks see, with the number of episodes so far."""

    episode: int = 0


class PolicyAndValue(nn.Module):
    """What callbacks get as `model`."""

    def __init__(self, policy: Any, value_model: Any) -> None:
        super().__init__()
        self.policy, self.value_model, self.config = policy, value_model, policy.config


class PPOTrainer:
    """PPO for scripts written for TRL 1.12's `PPOTrainer`.

    What differs, and why, is in docs/migrating-from-trl.md. For a loop of your own:
    `trainer.update(trainer.score(trainer.rollout(prompts)))`.
    """

    state: OnlineTrainerState
    control: TrainerControl

    def __init__(
        self,
        args: PPOConfig,
        processing_class: "PreTrainedTokenizerBase",
        model: "PreTrainedModel",
        ref_model: "PreTrainedModel | None",
        reward_model: Any,
        train_dataset: Any,
        value_model: "PreTrainedModel | None" = None,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: "Sequence[TrainerCallback | type[TrainerCallback]] | None" = None,
        peft_config: "PeftConfig | None" = None,
    ) -> None:
        """Put models, data and engine together.

        Args:
            args: the configuration.
            processing_class: tokenizer of the policy.
            model: causal language model; it is trained where it is, in float32.
            ref_model: the KL is to this model; None takes a copy of `model`, or with `peft_config`
                `model` without its adapter.
            reward_model: sequence classifier with one output that reads the policy's tokens. More
                than TRL takes: a `workbench.scorer.RewardModel`, which brings a tokenizer of its
                own; a function `f(prompts, completions, **columns) -> list[float]`; a list of them,
                whose scores are added.
            train_dataset: rows with `input_ids`, `prompt` or `messages`.
            value_model: sequence classifier with one output, trained where it is; None starts it
                from the reward model.
            data_collator: called with each row alone, to make its `input_ids`.
            eval_dataset: rows for `generate_completions`.
            optimizers: an optimiser over parameters of `model` and `value_model`, and its schedule;
                None for either makes AdamW, or the schedule `args` names.
            callbacks: beside those of transformers.
            peft_config: trains a LoRA adapter of `model` in place of its weights.

        Raises:
            UserError: for a field, model or row that cannot be used.
        """
        if ref_model is not None and ref_model is model:
            raise UserError("ref_model: is model itself, which will be trained; hand in None")
        if train_dataset is None:
            raise UserError("train_dataset: is None; hand in rows with input_ids or prompt")
        check(args)
        check_hub(args)
        self.args, self.processing_class = args, processing_class
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.stop_token_id = args.stop(processing_class.eos_token_id)
        train = read_queries(train_dataset, processing_class, data_collator)
        held_out: list[Query] = []
        if eval_dataset is not None:
            held_out = read_queries(eval_dataset, processing_class, data_collator, "eval_dataset")
        self.held_out = held_out
        _check_positions(model, args, max(len(query.ids) for query in [*train, *held_out]))
        cpu = args.use_cpu or not torch.cuda.is_available()
        # The engine decides on precision itself, as `args.bf16` says.
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no")
        processes.check(self.accelerator)
        args.work_out(len(train), self.accelerator.num_processes)
        set_seed(args.seed)
        given = GivenRewards(reward_model)
        layout, name = "separate" if peft_config is None else "lora", _name(model, "model")
        config = stage_config(args, name, given.own_name, given.function_names, layout)
        self.roles = GivenRoles(
            config.model,
            self.accelerator.device,
            policy=model,
            reference=ref_model,
            reward=given.own,
            value=value_model,
            peft_config=peft_config,
        )
        self.policy_model, self.value_model = model, self.roles.value_model
        self.ref_model, self.reward_model = self.roles.ref_model, reward_model
        self.model = PolicyAndValue(model, self.value_model)
        rows = [[query.ids, query.columns] for query in train]
        inputs = {"arguments": digest(args.beside()), "train_dataset": digest(rows)}
        # What is there is left alone until `train()` says whether to go on from it.
        self.run = StageRun("ppo", config, inputs, replace=False)
        self.engine = PPOEngine(
            config,
            self.roles,
            processing_class,
            train,
            self.run,
            self.accelerator,
            rewards=given.sources(config.rewards, self.accelerator.device),
            stop_token_id=NOTHING if self.stop_token_id is None else self.stop_token_id,
        )
        self._set_optimizers(*optimizers)
        self._set_callbacks(callbacks)

    @property
    def optimizer(self) -> Any:
        """Of policy and value function."""
        return self.engine.optimisation.optimizer

    @property
    def lr_scheduler(self) -> Any:
        """It steps once an update."""
        return self.engine.optimisation.scheduler

    def train(self, resume_from_checkpoint: bool | None = None) -> None:
        """Run all updates.

        Args:
            resume_from_checkpoint: True goes on from the newest whole checkpoint under
                `output_dir`; else the run starts anew and drops those that are there.

        Raises:
            UserError: for the path of a checkpoint.
        """
        if not isinstance(resume_from_checkpoint, bool | None):
            raise UserError(
                f"resume_from_checkpoint={resume_from_checkpoint!r}: hand in True, which takes "
                f"the newest whole checkpoint in {self.run.checkpoints}"
            )
        self._begin(resume=bool(resume_from_checkpoint))
        started, args, handler = time.time(), self.args, self.callback_handler
        self.control = handler.on_train_begin(args, self.state, self.control)
        first, total = self.engine.global_step, self.engine.total_updates
        every = max(1, total // args.num_sample_generations) if args.num_sample_generations else 0
        for update in range(first, total):
            metrics = self.update(self.score(self.rollout()))
            seconds = max(time.time() - started, 1e-9)
            metrics["eps"] = int((self.state.episode - first * int(args.batch_size or 1)) / seconds)
            self.log(metrics)
            self.control = handler.on_step_end(args, self.state, self.control)
            self._save_if_asked()
            if every and update % every == 0:
                self.generate_completions(sampling=True)
            if self.control.should_training_stop:
                break
        self.control = handler.on_train_end(args, self.state, self.control)
        self._save_if_asked()
        self.accelerator.wait_for_everyone()

    def rollout(self, prompts: Sequence[Given] | None = None) -> Samples:
        """Sample a response to each prompt.

        Args:
            prompts: of this process, as text, messages, token ids or rows,
                `args.local_batch_size` of them; None takes the next ones of the training data.
        """
        queries = None
        if prompts is not None:
            queries = [as_query(prompt, self.processing_class) for prompt in prompts]
        samples = self.engine.rollout(queries)
        return samples._replace(responses=[self._ended(each) for each in samples.responses])

    def score(self, rollout: Samples) -> Experience:
        """Score responses under every role and source of reward, and estimate advantages."""
        return self.engine.score(rollout)

    def update(self, rollout: Experience) -> dict[str, float]:
        """Learn from a scored rollout and return the update's metrics."""
        metrics = self.engine.update(rollout)
        self.state.global_step = self.engine.global_step
        self.state.episode = self.engine.global_step * int(self.args.batch_size or 1)
        self.state.epoch = self.state.episode / len(self.engine.train_queries)
        return metrics

    def generate_completions(self, sampling: bool = False) -> list[dict[str, Any]]:
        """Answer prompts of `eval_dataset` almost greedily, score, print and keep the answers.

        Args:
            sampling: only the first `args.per_device_eval_batch_size` of them.

        Returns:
            A row an answer: `query`, `model response`, `score`; none without an `eval_dataset`, and
            on processes other than the main one.
        """
        queries = self.held_out[: self.args.per_device_eval_batch_size if sampling else None]
        if not queries or not self.accelerator.is_main_process:
            return []
        engine, tokenizer = self.engine, self.processing_class
        ids = [query.ids for query in queries]
        size = engine.config.rollout.batch_size
        cool = SamplingSettings(self.args.response_length, COOL, size)
        found = engine.backend.sample(ids, cool, self.args.seed)
        samples = Samples(queries, [self._ended(response) for response in found])
        scored = score_rollout(
            self.roles, ids, samples.responses, 1.0, engine.args.micro_batch_size
        )
        own = None if self.roles.reward is None else scored.scores
        scores, _ = engine.rewards(samples, tokenizer, own)
        rows = [
            {
                "query": tokenizer.decode(query.ids, skip_special_tokens=True),
                "model response": decode(tokenizer, response.ids),
                "score": float(score),
            }
            for query, response, score in zip(queries, samples.responses, scores, strict=True)
        ]
        self.run.save_samples(engine.global_step, rows)
        for row in rows[:5]:
            console.print(
                f"{row['score']:8.3f}  {row['query']!r} → {row['model response']!r}", markup=False
            )
        return rows

    def log(self, logs: dict[str, float]) -> None:
        """Write numbers to the run's log and hand them to the callbacks."""
        self.run.log(self.engine.global_step, logs)
        logs = {**logs, "epoch": self.state.epoch}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Save the policy, or its adapter, and the tokenizer; `output_dir` None is that of `args`.

        With `args.push_to_hub` the folder is uploaded too.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        if self.accelerator.is_main_process:
            if self.roles.adapters is None:
                self.policy_model.save_pretrained(folder)
            else:
                self.roles.adapters.save("policy", folder, self.engine.config.model.name)
            self.processing_class.save_pretrained(folder)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push(folder, "Model save")

    def push_to_hub(self, commit_message: str = "End of training", **_: Any) -> str | None:
        """Save the policy to `args.output_dir`, upload it, and return the address.

        Raises:
            UserError: offline, or when the hub refuses.
        """
        check_hub(self.args, asked=True)
        folder = Path(str(self.args.output_dir))
        asked, self.args.push_to_hub = self.args.push_to_hub, False
        self.save_model(folder)
        self.args.push_to_hub = asked
        return self._push(folder, commit_message)

    def add_callback(self, callback: Any) -> None:
        """Add a callback, or make one of a class."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Take a callback, or the one of a class, out and return it."""
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: Any) -> None:
        """Take a callback, or the one of a class, out."""
        self.callback_handler.remove_callback(callback)

    def _begin(self, *, resume: bool) -> None:
        engine = self.engine
        if not resume:
            if self.accelerator.is_main_process:
                shutil.rmtree(self.run.checkpoints, ignore_errors=True)
        elif not engine.resume():
            console.print(
                f"ppo: no checkpoint in {self.run.checkpoints}; starting anew", markup=False
            )
        self.accelerator.wait_for_everyone()
        self.run.rewind(engine.global_step if resume and engine.global_step else -1)
        self.roles.sync_actor()
        self.state.global_step, self.state.max_steps = engine.global_step, engine.total_updates
        self.state.num_train_epochs = int(self.args.total_episodes or 0) / len(engine.train_queries)
        self.state.compute_steps(self.args, engine.total_updates)

    def _save_if_asked(self) -> None:
        if self.control.should_save:
            self.engine.save_state()
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _ended(self, response: Response) -> Response:
        """Where nothing stops an answer, EOS anywhere in it is what a missing one is told from."""
        if self.stop_token_id is not None:
            return response
        ended = self.processing_class.eos_token_id in response.ids
        return replace(response, finished=ended)

    def _set_optimizers(self, optimizer: Any, scheduler: Any) -> None:
        optimisation, args = self.engine.optimisation, self.args
        if optimizer is not None:
            ours = {id(p) for group in optimisation.parameters for p in group}
            if any(id(p) not in ours for group in optimizer.param_groups for p in group["params"]):
                raise UserError(
                    "optimizers: the optimiser holds parameters of neither model nor value_model"
                )
            optimisation.optimizer = optimizer
        updates = self.engine.total_updates
        optimisation.scheduler = scheduler or get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimisation.optimizer,
            num_warmup_steps=args.get_warmup_steps(updates),
            num_training_steps=updates,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )

    def _set_callbacks(
        self, callbacks: "Sequence[TrainerCallback | type[TrainerCallback]] | None"
    ) -> None:
        reporting = get_reporting_integration_callbacks(self.args.report_to)
        self.callback_handler = CallbackHandler(
            [*DEFAULT_CALLBACKS, *reporting, *(callbacks or ())],
            *(self.model, self.processing_class, self.optimizer, self.lr_scheduler),
        )
        self.add_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self.control = TrainerControl()
        stateful = [*self.callback_handler.callbacks, self.control]
        self.state = OnlineTrainerState(
            is_local_process_zero=self.accelerator.is_local_main_process,
            is_world_process_zero=self.accelerator.is_main_process,
            stateful_callbacks=[each for each in stateful if isinstance(each, ExportableState)],
        )

    def _push(self, folder: Path, message: str) -> str | None:
        return push(self.args, folder, message) if self.accelerator.is_main_process else None


def _name(model: Any, default: str) -> str:
    return str(getattr(model.config, "_name_or_path", "") or default)


def _check_positions(model: Any, args: PPOConfig, longest: int) -> None:
    positions = most_positions(model.config)
    if positions is not None and longest + args.response_length > positions:
        raise UserError(
            f"PPOConfig: response_length={args.response_length}: after the longest prompt of "
            f"{longest} tokens goes beyond the {positions} positions of the model; lower it, or "
            "leave out long prompts"
        )

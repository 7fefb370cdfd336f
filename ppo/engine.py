"""The PPO loop: sample, score, update; read it from top to bottom."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ppo import checkpoint
from ppo.config import PPOStage
from ppo.evaluation import evaluate
from ppo.experience import Experience, make_experience
from ppo.kl import AdaptiveKL, FixedKL
from ppo.reward_sources import Query, RewardSources, Samples
from ppo.rewards import RunningMoments
from ppo.roles import Roles
from ppo.rollout import Rollout, score_rollout
from ppo.update import Optimisation
from workbench.chat import Prompt, query_ids
from workbench.errors import UserError
from workbench.generation import generate
from workbench.run import StageRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.judge import GoldJudge


class PPOEngine:
    """PPO on Accelerate.

    Every random choice of update u (prompts, sampling, minibatches) is drawn from a generator
    seeded by (seed, u, process), so a resumed run repeats exactly what an uninterrupted one would
    have done.

    `train` runs everything. Who brings a loop of their own calls, once an update,
    `engine.update(engine.score(engine.rollout()))`.
    """

    def __init__(
        self,
        config: PPOStage,
        roles: Roles,
        tokenizer: "PreTrainedTokenizerBase",
        train: Sequence[Query],
        run: StageRun,
        accelerator: Accelerator,
        *,
        held_out: Sequence[Query] = (),
        rewards: RewardSources | None = None,
        judge: "GoldJudge | None" = None,
        stop_token_id: int | None = None,
    ) -> None:
        """Set up optimiser and schedule.

        Args:
            config: the stage's configuration; `config.ppo` is the algorithm's.
            roles: the models.
            tokenizer: of the policy.
            train: prompts to practise on.
            run: the run folder.
            accelerator: of all processes.
            held_out: prompts for evaluation.
            rewards: sources of reward; None takes the reward model among the roles.
            judge: scores held-out answers beside the reward; None for none.
            stop_token_id: ends an answer; None takes the tokenizer's EOS.

        Raises:
            UserError: when the batch cannot be divided among processes and minibatches.
        """
        self.config, self.args, self.roles, self.tokenizer = config, config.ppo, roles, tokenizer
        self.train_queries, self.held_out = list(train), list(held_out)
        self.run, self.accelerator, self.judge = run, accelerator, judge
        self.stop_token_id = tokenizer.eos_token_id if stop_token_id is None else stop_token_id
        self.rewards = rewards or RewardSources(config.rewards, config.reward_model, [])
        args, world = self.args, accelerator.num_processes
        if args.batch_size % (world * args.num_mini_batches):
            raise UserError(
                f"ppo.batch_size={args.batch_size}: "
                "must divide by processes × ppo.num_mini_batches "
                f"({world} × {args.num_mini_batches}) exactly"
            )
        self.local_batch_size = args.batch_size // world
        self.total_updates = math.ceil(args.total_episodes / args.batch_size)
        self.kl: FixedKL | AdaptiveKL = (
            AdaptiveKL(args.kl_coef, args.kl_target, args.kl_horizon)
            if args.kl_controller == "adaptive"
            else FixedKL(args.kl_coef)
        )
        self.moments = RunningMoments()
        self.optimisation = Optimisation(args, roles, accelerator, self.total_updates)
        self.global_step = 0
        self.seconds: dict[str, float] = {}

    def train(self) -> None:
        """Run all updates, from the newest whole checkpoint if there is one."""
        state = checkpoint.load_newest(self.run.checkpoints)
        if state is not None:
            self.load_state(state)
        self.run.rewind(self.global_step if state is not None else -1)
        self.roles.sync_actor()
        if self.global_step == 0:
            self.evaluate()
        bar = tqdm(
            range(self.global_step, self.total_updates),
            desc="ppo",
            unit="update",
            initial=self.global_step,
            total=self.total_updates,
            disable=not self.accelerator.is_local_main_process,
            dynamic_ncols=True,
        )
        for _ in bar:
            metrics = self.step()
            bar.set_postfix(
                score=f"{metrics['objective/scores']:.2f}", kl=f"{metrics['objective/kl']:.2f}"
            )
            last = self.global_step == self.total_updates
            if last or _due(self.global_step, self.args.eval_every):
                self.evaluate()
            if _due(self.global_step, self.args.save_every) and not last:
                self.save_state()

    def step(self) -> dict[str, float]:
        """Do one update (rollout, score, update), log and return its metrics."""
        metrics = self.update(self.score(self.rollout()))
        self.run.log(self.global_step, metrics)
        self.accelerator.log(metrics, step=self.global_step)
        return metrics

    def rollout(self, prompts: Sequence[Prompt | Query] | None = None) -> Samples:
        """Sample a response to each prompt.

        Args:
            prompts: of this process, `batch_size / processes` of them; None takes the next ones of
                the training data.
        """
        queries = self.next_queries() if prompts is None else [self._query(p) for p in prompts]
        with self._timed("rollout"), self.roles.sampling():
            responses = generate(
                self.roles.actor,
                [query.ids for query in queries],
                self.config.rollout,
                eos_token_id=self.stop_token_id,
                seed=self._seed(1),
            )
        return Samples(queries, responses)

    def score(self, samples: Samples) -> Experience:
        """Score responses under every role and source of reward, and estimate advantages."""
        with self._timed("score"):
            rollout = score_rollout(
                self.roles,
                [query.ids for query in samples.queries],
                samples.responses,
                self.config.rollout.temperature,
                self.args.micro_batch_size,
            )
            own = None if self.roles.reward is None else rollout.scores
            scores, parts = self.rewards(samples, self.tokenizer, own)
            rollout = rollout._replace(scores=scores.to(self.roles.device), parts=parts)
            return self.experience(rollout)

    def experience(self, rollout: Rollout) -> Experience:
        """Turn a scored rollout into rewards, advantages and returns."""
        return make_experience(
            rollout,
            self.args,
            kl_coef=self.kl.coef,
            moments=self.moments,
            world=self.accelerator.num_processes,
            reduce=self._sum,
            value_only=self.global_step < self.args.value_warmup_updates,
        )

    def update(self, experience: Experience) -> dict[str, float]:
        """Learn from experience, bring the actor in step, and return the update's metrics.

        Raises:
            UserError: when the loss becomes NaN or infinite; the weights stay as they were.
        """
        with self._timed("update"):
            try:
                learned = self.optimisation(
                    experience, self.config.rollout.temperature, self._seed(3)
                )
            except FloatingPointError as error:
                raise UserError(
                    f"{self.run.path}: {error} at update {self.global_step + 1}; "
                    "lower ppo.learning_rate "
                    "or ppo.value_learning_rate; the last checkpoint is kept"
                ) from None
        self.kl.update(experience.metrics["objective/kl"], self.args.batch_size)
        self.roles.sync_actor()
        self.global_step += 1
        metrics = experience.metrics | learned
        metrics |= {
            "episode": self.global_step * self.args.batch_size,
            "lr": self.optimisation.learning_rate,
        }
        metrics |= {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
        self.optimisation.scheduler.step()
        return metrics

    def next_queries(self) -> list[Query]:
        """Return this process's queries; every prompt comes once before any comes twice."""
        count, batch = len(self.train_queries), self.args.batch_size
        first = self.global_step * batch + self.accelerator.process_index * self.local_batch_size
        chosen = []
        for position in range(first, first + self.local_batch_size):
            generator = torch.Generator().manual_seed(
                _mix(self.config.run.seed, 2, position // count, 0)
            )
            order = torch.randperm(count, generator=generator)
            chosen.append(self.train_queries[int(order[position % count])])
        return chosen

    def evaluate(self) -> dict[str, float]:
        """Answer the held-out prompts, log `eval/…`, save the sample table; main process only."""
        if not self.held_out or not self.accelerator.is_main_process:
            return {}
        result = evaluate(
            self.roles,
            self.tokenizer,
            self.held_out,
            self.config.rollout,
            self.rewards,
            seed=self.config.run.seed,
            micro_batch_size=self.args.micro_batch_size,
            judge=self.judge,
        )
        row = result.metrics | {"episode": self.global_step * self.args.batch_size}
        self.run.log(self.global_step, row)
        self.run.save_samples(self.global_step, result.samples)
        return result.metrics

    def save_state(self) -> None:
        """Write a checkpoint of everything a resumed run needs."""
        if self.accelerator.is_main_process:
            names = [name for name, p in self.roles.trained.named_parameters() if p.requires_grad]
            weights = dict(self.roles.trained.named_parameters())
            state = {
                "update": self.global_step,
                "kl_coef": self.kl.coef,
                "moments": self.moments.state_dict(),
                "weights": {name: weights[name].detach().cpu() for name in names},
                **self.optimisation.state_dict(),
            }
            checkpoint.save(self.run.checkpoints, self.global_step, state)
        self.accelerator.wait_for_everyone()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self.global_step, self.kl.coef = state["update"], state["kl_coef"]
        self.moments.load_state_dict(state["moments"])
        weights = dict(self.roles.trained.named_parameters())
        with torch.no_grad():
            for name, value in state["weights"].items():
                weights[name].copy_(value)
        self.optimisation.load_state_dict(state)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - started

    def _query(self, prompt: Prompt | Query) -> Query:
        if isinstance(prompt, Query):
            return prompt
        return Query(query_ids(self.tokenizer, prompt), prompt)

    def _seed(self, purpose: int) -> int:
        process = self.accelerator.process_index
        return _mix(self.config.run.seed, purpose, self.global_step, process)

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.accelerator.reduce(value, "sum")
        return total


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _mix(seed: int, *parts: int) -> int:
    """Return a seed that differs for every purpose, update and process."""
    value = seed
    for part in parts:
        value = (value * 1_000_003 + part + 1) % (2**63 - 1)
    return value

"""The PPO loop: sample, score, update; read it from top to bottom."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ppo import checkpoint, failures
from ppo.ahead import make_ahead
from ppo.backends import make_backend
from ppo.config import PPOStage
from ppo.evaluation import evaluate
from ppo.experience import Experience, make_experience
from ppo.kl import AdaptiveKL, FixedKL
from ppo.monitors import Monitors
from ppo.ptx import Ptx
from ppo.queries import content
from ppo.reward_sources import Query, RewardSources, Samples, Source
from ppo.rewards import RunningMoments
from ppo.roles import Roles
from ppo.rollout import Rollout, score_rollout
from ppo.samples import sample_rows, save_update
from ppo.state import passing_state, take_up, whole_state
from ppo.update import Optimisation
from workbench.chat import Prompt, query_ids
from workbench.errors import UserError
from workbench.processes import agree, of_main
from workbench.run import StageRun, read_metrics
from workbench.samples import print_samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.judge import GoldJudge


class PPOEngine:
    """PPO on Accelerate.

    Every random choice of update u (prompts, sampling, minibatches) is drawn from a generator
    seeded by (seed, u, process), so a resumed run repeats exactly what an uninterrupted one would
    have done. The libraries' global generators, from which functions of the user's may draw, are
    kept in checkpoints.

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
        held_out_rewards: Mapping[str, Source] | None = None,
        ptx: Ptx | None = None,
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
            held_out_rewards: by name, as the judge.
            ptx: texts to learn beside PPO; None for none.
            stop_token_id: ends an answer; None takes the tokenizer's EOS.

        Raises:
            UserError: when the batch cannot be divided among processes and minibatches.
        """
        self.config, self.args, self.roles, self.tokenizer = config, config.ppo, roles, tokenizer
        self.train_queries, self.held_out = train, list(held_out)
        self.run, self.accelerator, self.judge = run, accelerator, judge
        self.stop_token_id = tokenizer.eos_token_id if stop_token_id is None else stop_token_id
        self.backend = make_backend(config.rollout, roles, self.stop_token_id, run.path / "vllm")
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
        self.ahead = make_ahead(config.rollout, self.backend, roles)
        self.monitors, self.held_out_rewards = Monitors(config.monitors), held_out_rewards
        self.ptx = ptx
        self.optimisation = Optimisation(args, roles, accelerator, self.total_updates, ptx)
        self.global_step = self.staleness = 0
        self.seconds: dict[str, float] = {}
        self.before = passing_state(self)  # what a checkpoint holds if the next update fails

    @cached_property
    def data_digest(self) -> str:
        """Hash of all prompts to practise on."""
        return content(self.train_queries)

    def train(self) -> None:
        """Run all updates, from the newest whole checkpoint if there is one."""
        resumed = self.resume()
        self.run.rewind(self.global_step if resumed else -1)
        self.roles.sync_actor()
        if self.global_step == 0 or of_main(self._owes_evaluation()):
            self.evaluate()
        if self._stopped():
            return  # by an evaluation before it was resumed, or the one it owed
        bar = tqdm(
            range(self.global_step, self.total_updates),
            desc="ppo",
            unit="update",
            initial=self.global_step,
            total=self.total_updates,
            disable=not self.accelerator.is_main_process,
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
            stopped = self._stopped()
            if stopped or (_due(self.global_step, self.args.save_every) and not last):
                self.save_state()
            if stopped:
                break

    def step(self) -> dict[str, float]:
        """Do one update (rollout, score, update), log and return its metrics."""
        samples = self.rollout()
        experience = self.score(samples)
        dropped = bool(self.staleness and self.ahead and self.ahead.too_far(experience.metrics))
        if dropped:
            spent = self.seconds["rollout"] + self.seconds["score"]
            self.moments.load_state_dict(self.before["moments"])  # they have seen its scores
            samples = self.rollout(fresh=True)
            experience = self.score(samples)
            self.seconds["rollout"] += spent
        if self.ahead is not None:
            experience.metrics["rollout/dropped"] = float(dropped)
        metrics = self.update(experience)
        self.run.log(self.global_step, metrics)
        self.accelerator.log(metrics, step=self.global_step)
        self._keep_samples(samples, experience)
        return metrics

    def rollout(
        self, prompts: Sequence[Prompt | Query] | None = None, *, fresh: bool = False
    ) -> Samples:
        """Sample a response to each prompt.

        Args:
            prompts: of this process, `batch_size / processes` of them; None takes the next ones of
                the training data.
            fresh: sample anew what was sampled ahead.
        """
        step, ahead = self.global_step, None if prompts else self.ahead
        queries = self.next_queries(step) if prompts is None else [self._query(p) for p in prompts]
        with self._phase("rollout"):
            if not fresh:
                self.before = passing_state(self)  # waits for a batch that is under way
            found = None if fresh or ahead is None else ahead.take(step)
            self.staleness = int(found is not None)
            if found is None:
                found = self.backend.sample(_ids(queries), self.config.rollout, self._seed(1))
            if ahead is not None and step + 1 < self.total_updates and not ahead.has(step + 1):
                following = _ids(self.next_queries(step + 1))
                later: Any = self.backend
                seed = self._seed(1, step + 1)
                ahead.start(step + 1, later.later(following, self.config.rollout, seed))
        return Samples(queries, found)

    def score(self, samples: Samples) -> Experience:
        """Score responses under every role and source of reward, and estimate advantages."""
        with self._phase("score"):
            rollout = score_rollout(
                self.roles,
                [query.ids for query in samples.queries],
                samples.responses,
                self.config.rollout.temperature,
                self.args.micro_batch_size,
            )
            own = None if self.roles.reward is None else rollout.scores
            scores, parts = self.rewards(samples, self.tokenizer, own)
            parts = {name: part.to(self.roles.device) for name, part in parts.items()}
            rollout = rollout._replace(scores=scores.to(self.roles.device), parts=parts)
            experience = self.experience(rollout)
            if self.ahead is not None:
                experience.metrics["rollout/staleness"] = float(self.staleness)
            return experience

    def experience(self, rollout: Rollout) -> Experience:
        """Turn a scored rollout into rewards, advantages and returns.

        Raises:
            DivergenceError: when a number is NaN or infinite, or the KL beyond `ppo.max_kl`.
        """
        failures.check_rollout(rollout, self._sum)
        experience = make_experience(
            rollout,
            self.args,
            kl_coef=self.kl.coef,
            moments=self.moments,
            world=self.accelerator.num_processes,
            reduce=self._sum,
            value_only=self.global_step < self.args.value_warmup_updates,
            process=self.accelerator.process_index,
        )
        failures.check_experience(experience, self.args.max_kl, self._sum)
        return experience

    def update(self, experience: Experience) -> dict[str, float]:
        """Learn from experience, bring the actor in step, and return the update's metrics.

        Raises:
            UserError: when the loss becomes NaN or infinite, or memory ends; says which checkpoint
                is kept.
        """
        with self._phase("update"):
            if self.ptx is not None:
                steps = self.args.num_ppo_epochs * self.args.num_mini_batches
                self.ptx.start(self.global_step, steps)
            learned = self.optimisation(experience, self.config.rollout.temperature, self._seed(3))
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

    def next_queries(self, step: int | None = None) -> list[Query]:
        """Return this process's queries of an update; every prompt comes once before one twice.

        Args:
            step: the update's number; None is the one that is due.
        """
        count, batch = len(self.train_queries), self.args.batch_size
        step = self.global_step if step is None else step
        orders: dict[int, list[int]] = {}  # one for each pass over the prompts
        first = step * batch + self.accelerator.process_index * self.local_batch_size
        chosen = []
        for position in range(first, first + self.local_batch_size):
            number, place = divmod(position, count)
            if number not in orders:
                generator = torch.Generator().manual_seed(_mix(self.config.run.seed, 2, number, 0))
                orders[number] = torch.randperm(count, generator=generator).tolist()
            chosen.append(self.train_queries[orders[number][place]])
        return chosen

    def evaluate(self) -> dict[str, float]:
        """Answer the held-out prompts, log `eval/…`, save the sample table.

        The main process does so alone, unless weights are split: then all must gather them.
        """
        alone = self.roles.shards is None
        if not self.held_out or (alone and not self.accelerator.is_main_process):
            return {}
        self.before = passing_state(self)
        with failures.stopping(self, "evaluation"):
            result = evaluate(
                self.roles,
                self.backend,
                self.tokenizer,
                self.held_out,
                self.config.rollout,
                self.rewards,
                seed=self.config.run.seed,
                micro_batch_size=self.args.micro_batch_size,
                judge=self.judge,
                held_out=self.held_out_rewards,
            )
        metrics = dict(result.metrics)
        if self.ptx is not None and self.ptx.held_out:
            metrics["eval/ptx_loss"] = self.ptx.held_out_loss()
        metrics |= self.monitors.observe(self.global_step, result)
        row = metrics | {"episode": self.global_step * self.args.batch_size}
        self.run.log(self.global_step, row)
        self.run.save_samples(self.global_step, result.samples)
        if shown := self.config.monitors.print_samples:
            print_samples(result.samples[:shown], f"ppo: update {self.global_step}")
        return metrics

    def save_state(self, passing: dict[str, Any] | None = None) -> None:
        """Write a checkpoint of everything a resumed run needs; all processes call it.

        Args:
            passing: what `passing_state` was before a failing update changed it; None takes it now.
        """
        state = whole_state(self, passing or passing_state(self))
        if self.accelerator.is_main_process:
            keep = self.args.save_total_limit
            checkpoint.save(self.run.checkpoints, self.global_step, state, keep)
        self.accelerator.wait_for_everyone()

    def resume(self) -> bool:
        """Take up the newest whole checkpoint, if there is one; returns whether there was.

        Raises:
            UserError: when it is of other settings, prompts or processes than this run.
        """
        state = checkpoint.load_newest(self.run.checkpoints)
        agree(state and state["update"], f"{self.run.checkpoints}, the newest whole one")
        if state is not None:
            take_up(self, state)
        return state is not None

    def _owes_evaluation(self) -> bool:
        """Return whether it was stopped in the evaluation after its last update."""
        step = self.global_step
        last = step == self.total_updates
        if not self.held_out or not (last or _due(step, self.args.eval_every)):
            return False
        path = self.run.path / "metrics.jsonl"
        rows = read_metrics(path) if path.is_file() else []
        return not any(row["step"] == step and "eval/scores" in row for row in rows)

    def _keep_samples(self, samples: Samples, experience: Experience) -> None:
        settings = self.config.monitors
        if self.accelerator.is_main_process and _due(self.global_step, settings.samples_every):
            rows = sample_rows(samples, experience, self.tokenizer, settings.samples_rows)
            save_update(self.run.path / "samples", self.global_step, rows)

    def _stopped(self) -> bool:
        # Only the main process evaluates; all of them end together.
        if not self.config.monitors.stop:
            return False
        stopped = torch.tensor(float(self.monitors.stopped is not None), device=self.roles.device)
        return bool(self._sum(stopped) > 0)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        with failures.stopping(self, name):
            yield
        self.seconds[name] = time.perf_counter() - started

    def _query(self, prompt: Prompt | Query) -> Query:
        if isinstance(prompt, Query):
            return prompt
        return Query(query_ids(self.tokenizer, prompt), prompt)

    def _seed(self, purpose: int, step: int | None = None) -> int:
        process = self.accelerator.process_index
        step = self.global_step if step is None else step
        return _mix(self.config.run.seed, purpose, step, process)

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.accelerator.reduce(value, "sum")
        return total


def _ids(queries: Sequence[Query]) -> list[list[int]]:
    return [query.ids for query in queries]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _mix(seed: int, *parts: int) -> int:
    """Return a seed that differs for every purpose, update and process."""
    value = seed
    for part in parts:
        value = (value * 1_000_003 + part + 1) % (2**63 - 1)
    return value

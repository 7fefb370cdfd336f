"""The PPO loop: sample, score, reward, estimate advantages, update; read it from top to bottom."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ppo import checkpoint
from ppo.advantages import gae, whiten
from ppo.config import PPOStage
from ppo.evaluation import evaluate
from ppo.kl import AdaptiveKL, FixedKL, kl_per_token
from ppo.losses import explained_variance, masked_mean, policy_loss, value_loss
from ppo.rewards import shape_scores, token_rewards
from ppo.roles import Roles
from ppo.rollout import Rollout, micro_batches, sample_rollout, select, unflatten
from workbench.chat import Prompt
from workbench.errors import UserError
from workbench.run import StageRun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.judge import GoldJudge


class Experience(NamedTuple):
    """A rollout with what is learned from it.

    Attributes:
        rollout: the sampled responses.
        advantages, returns: [B, R], 0 on padding.
        metrics: numbers about the rollout, averaged over all processes.
    """

    rollout: Rollout
    advantages: torch.Tensor
    returns: torch.Tensor
    metrics: dict[str, float]


class PPOTrainer:
    """PPO on Accelerate.

    Every random choice of update u (prompts, sampling, minibatches) is drawn from a generator
    seeded by (seed, u, process), so a resumed run repeats exactly what an uninterrupted one would
    have done.
    """

    def __init__(
        self,
        config: PPOStage,
        roles: Roles,
        tokenizer: "PreTrainedTokenizerBase",
        train_queries: Sequence[list[int]],
        run: StageRun,
        accelerator: Accelerator,
        *,
        eval_prompts: Sequence[Prompt] = (),
        eval_queries: Sequence[list[int]] = (),
        judge: "GoldJudge | None" = None,
    ) -> None:
        """Set up optimiser and schedule.

        Args:
            config: the stage's configuration; `config.ppo` is the algorithm's.
            roles: the models.
            tokenizer: of policy and reward model.
            train_queries: token ids of the prompts to practise on.
            run: the run folder.
            accelerator: of all processes.
            eval_prompts: held-out prompts.
            eval_queries: their token ids.
            judge: scores held-out answers beside the reward model; None for none.

        Raises:
            UserError: when the batch cannot be divided among processes and minibatches.
        """
        self.config, self.args, self.roles, self.tokenizer = config, config.ppo, roles, tokenizer
        self.train_queries, self.run, self.accelerator = train_queries, run, accelerator
        self.eval_prompts, self.eval_queries, self.judge = eval_prompts, eval_queries, judge
        args, world = self.args, accelerator.num_processes
        if args.batch_size % (world * args.num_mini_batches):
            raise UserError(
                f"ppo.batch_size={args.batch_size}: "
                "must divide by processes × ppo.num_mini_batches "
                f"({world} × {args.num_mini_batches}) exactly"
            )
        self.local_batch_size = args.batch_size // world
        self.local_mini_batch_size = self.local_batch_size // args.num_mini_batches
        self.updates = math.ceil(args.total_episodes / args.batch_size)
        self.kl: FixedKL | AdaptiveKL = (
            AdaptiveKL(args.kl_coef, args.kl_target, args.kl_horizon)
            if args.kl_controller == "adaptive"
            else FixedKL(args.kl_coef)
        )
        module = roles.trained
        groups = [[p for p in module.policy.parameters() if p.requires_grad]]
        groups[0] += [
            p for p in module.lm_head.parameters() if p.requires_grad and not _among(p, groups[0])
        ]
        groups.append([*module.value.parameters(), *module.value_head.parameters()])
        self.parameters = groups
        self.optimizer = torch.optim.AdamW(
            [
                {"params": groups[0], "lr": args.learning_rate, "name": "policy"},
                {"params": groups[1], "lr": args.value_learning_rate, "name": "value"},
            ],
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        # Only the module: gradients are averaged over processes by its wrapper. The scheduler steps
        # once an update, and Accelerate would step it once per process.
        self.model = accelerator.prepare(module)
        self.update = 0

    def train(self) -> None:
        """Run all updates, from the newest whole checkpoint if there is one."""
        state = checkpoint.load_newest(self.run.checkpoints)
        if state is not None:
            self.load_state(state)
        self.run.rewind(self.update if state is not None else -1)
        self.roles.sync_actor()
        if self.update == 0:
            self.evaluate()
        bar = tqdm(
            range(self.update, self.updates),
            desc="ppo",
            unit="update",
            initial=self.update,
            total=self.updates,
            disable=not self.accelerator.is_local_main_process,
            dynamic_ncols=True,
        )
        for _ in bar:
            metrics = self.step()
            bar.set_postfix(
                score=f"{metrics['objective/scores']:.2f}", kl=f"{metrics['objective/kl']:.2f}"
            )
            last = self.update == self.updates
            if last or (self.args.eval_every and self.update % self.args.eval_every == 0):
                self.evaluate()
            if self.args.save_every and self.update % self.args.save_every == 0 and not last:
                self.save_state()

    def step(self) -> dict[str, float]:
        """Do one update (rollout, rewards, advantages, optimisation) and return its metrics."""
        clock = Clock()
        queries = self.next_queries()
        rollout = sample_rollout(
            self.roles,
            queries,
            self.config.rollout,
            eos_token_id=self.tokenizer.eos_token_id,
            seed=self._seed(1),
            micro_batch_size=self.args.micro_batch_size,
            clock=clock,
        )
        experience = self.experience(rollout)
        metrics = experience.metrics | self.optimize(experience)
        clock("update")
        self.kl.update(metrics["objective/kl"], self.args.batch_size)
        self.roles.sync_actor()
        self.update += 1
        metrics |= {
            "episode": self.update * self.args.batch_size,
            "lr": float(self.scheduler.get_last_lr()[0]),
        }
        metrics |= clock.metrics()
        self.scheduler.step()
        self.run.log(self.update, metrics)
        self.accelerator.log(metrics, step=self.update)
        return metrics

    def next_queries(self) -> list[list[int]]:
        """Return this process's queries; every prompt comes once before any comes twice."""
        count, batch = len(self.train_queries), self.args.batch_size
        first = self.update * batch + self.accelerator.process_index * self.local_batch_size
        chosen = []
        for position in range(first, first + self.local_batch_size):
            generator = torch.Generator().manual_seed(
                _mix(self.config.run.seed, 2, position // count, 0)
            )
            order = torch.randperm(count, generator=generator)
            chosen.append(self.train_queries[int(order[position % count])])
        return chosen

    def experience(self, rollout: Rollout) -> Experience:
        """Turn a rollout into rewards, advantages and returns."""
        args, mask = self.args, rollout.response_mask
        scores = shape_scores(
            rollout.scores, rollout.finished, args.missing_eos_penalty, args.score_clip
        )
        rewards = token_rewards(
            scores, rollout.logprobs, rollout.ref_logprobs, mask, self.kl.coef, args.kl_estimator
        )
        if args.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False, reduce=self._sum)
        advantages, returns = gae(rewards, rollout.values, mask, args.gamma, args.lam)
        if args.whiten_advantages:
            advantages = whiten(advantages, mask, reduce=self._sum)
        kl = (kl_per_token(rollout.logprobs, rollout.ref_logprobs) * mask).sum(-1)
        # What the rewards hold, whichever the estimator; `objective/kl` is always k1, unbiased.
        penalty = self.kl.coef * (
            kl_per_token(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator) * mask
        ).sum(-1)
        # The mean over processes, weighed by their tokens.
        world = self.accelerator.num_processes
        share = mask.sum() * world / self._sum(mask.sum())
        metrics = self._mean(
            {
                "objective/kl": kl.mean(),
                "objective/entropy": masked_mean(rollout.entropy, mask) * share,
                "objective/scores": rollout.scores.mean(),
                "objective/non_score_reward": -penalty.mean(),
                "objective/rlhf_reward": (scores - penalty).mean(),
                "response/length": mask.sum(-1).mean(),
                "response/missing_eos": (~rollout.finished).float().mean(),
                "val/explained_variance": explained_variance(
                    rollout.values, returns, mask, self._sum
                ),
                "val/num_eos_tokens": rollout.finished.float().sum() * world,
            }
        )
        return Experience(
            rollout, advantages, returns, metrics | {"objective/kl_coef": self.kl.coef}
        )

    def optimize(self, experience: Experience) -> dict[str, float]:
        """Pass over the batch `num_ppo_epochs` times in minibatches; returns mean metrics."""
        args, totals, first_ratio = self.args, _Totals(), math.nan
        generator = torch.Generator().manual_seed(self._seed(3))
        for _ in range(args.num_ppo_epochs):
            order = torch.randperm(self.local_batch_size, generator=generator).tolist()
            for start in range(0, self.local_batch_size, self.local_mini_batch_size):
                stats = self._minibatch(
                    experience, order[start : start + self.local_mini_batch_size]
                )
                if math.isnan(first_ratio):
                    first_ratio = stats["val/ratio"]
                totals.add(stats)
        return totals.means() | {"val/ratio_first_minibatch": first_ratio}

    def _minibatch(self, experience: Experience, rows: list[int]) -> dict[str, float]:
        """Take an optimiser step on some rows, in micro-batches; all tokens weigh the same."""
        args, rollout = self.args, experience.rollout
        mask = rollout.response_mask[rows]
        tokens = self._sum(mask.sum())
        # Wrapped modules average gradients over processes; we want the sum over all tokens divided
        # by their number.
        scale = self.accelerator.num_processes / tokens
        sums = torch.zeros(8, device=self.roles.device, dtype=torch.float64)
        lengths = [len(rollout.queries[i]) + len(rollout.responses[i].ids) for i in rows]
        parts = list(micro_batches(lengths, args.micro_batch_size))
        frozen = self.update < args.value_warmup_updates
        for number, part in enumerate(parts):
            index = [rows[k] for k in part]
            queries = [rollout.queries[i] for i in index]
            batch = select(rollout, index, self.roles.device)
            width = rollout.response_mask.shape[1]
            mb_mask = rollout.response_mask[index]
            with self._sync(last=number == len(parts) - 1), self.roles.autocast():
                stats, values = self.model(batch, self.config.rollout.temperature)
                new_logprobs = unflatten(stats.logprobs, batch, queries, width)
                new_values = unflatten(values, batch, queries, width)
                policy = policy_loss(
                    new_logprobs,
                    rollout.logprobs[index],
                    experience.advantages[index],
                    mb_mask,
                    args.cliprange,
                )
                value = value_loss(
                    new_values,
                    rollout.values[index],
                    experience.returns[index],
                    mb_mask,
                    args.cliprange_value,
                )
                loss = (0.0 if frozen else 1.0) * policy.loss + args.vf_coef * value.loss
                self.accelerator.backward(loss * scale)
            sums += torch.stack(
                [
                    policy.loss.detach(),
                    value.loss.detach(),
                    policy.clipped,
                    value.clipped,
                    policy.approx_kl.detach(),
                    policy.ratio.detach(),
                    stats.entropy.sum(),
                    loss.detach(),
                ]
            ).double()
        norms = [
            torch.nn.utils.clip_grad_norm_(group, args.max_grad_norm) for group in self.parameters
        ]
        means = self._sum(sums) / tokens
        if not torch.isfinite(means).all() or not all(torch.isfinite(norm) for norm in norms):
            raise UserError(
                f"{self.run.path}: the loss became NaN or infinite at update {self.update + 1}; "
                "lower ppo.learning_rate "
                "or ppo.value_learning_rate; the last checkpoint is kept"
            )
        if frozen:
            # Gradients of 0 would still decay the weights, and count as steps in Adam's averages.
            for parameter in self.parameters[0]:
                parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        names = (
            "loss/policy_avg loss/value_avg policy/clipfrac_avg val/clipfrac_avg "
            "policy/approxkl_avg val/ratio "
            "policy/entropy_avg loss/total_avg"
        )
        metrics = dict(zip(names.split(), means.tolist(), strict=True))
        return metrics | {"policy/grad_norm": float(norms[0]), "val/grad_norm": float(norms[1])}

    def evaluate(self) -> dict[str, float]:
        """Answer the held-out prompts, log `eval/…`, save the sample table; main process only."""
        if not self.eval_queries or not self.accelerator.is_main_process:
            return {}
        result = evaluate(
            self.roles,
            self.tokenizer,
            self.eval_prompts,
            self.eval_queries,
            self.config.rollout,
            seed=self.config.run.seed,
            micro_batch_size=self.args.micro_batch_size,
            judge=self.judge,
        )
        self.run.log(self.update, result.metrics | {"episode": self.update * self.args.batch_size})
        self.run.save_samples(self.update, result.samples)
        return result.metrics

    def save_state(self) -> None:
        """Write a checkpoint of everything a resumed run needs."""
        if self.accelerator.is_main_process:
            names = [name for name, p in self.roles.trained.named_parameters() if p.requires_grad]
            weights = dict(self.roles.trained.named_parameters())
            state = {
                "update": self.update,
                "kl_coef": self.kl.coef,
                "weights": {name: weights[name].detach().cpu() for name in names},
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
            }
            checkpoint.save(self.run.checkpoints, self.update, state)
        self.accelerator.wait_for_everyone()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        self.update, self.kl.coef = state["update"], state["kl_coef"]
        weights = dict(self.roles.trained.named_parameters())
        with torch.no_grad():
            for name, value in state["weights"].items():
                weights[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def _lr_factor(self, update: int) -> float:
        args = self.args
        warm = min(1.0, 0.1 + 0.9 * update / args.warmup_updates) if args.warmup_updates else 1.0
        return warm * (1 - update / self.updates if args.lr_scheduler == "linear" else 1.0)

    def _seed(self, purpose: int) -> int:
        return _mix(self.config.run.seed, purpose, self.update, self.accelerator.process_index)

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.accelerator.reduce(value, "sum")
        return total

    def _mean(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        stacked = torch.stack([value.double() for value in values.values()])
        mean = self.accelerator.reduce(stacked, "mean").tolist()
        return dict(zip(values, mean, strict=True))

    def _sync(self, *, last: bool) -> Any:
        # Gradients travel between processes once per optimiser step, with the last micro-batch.
        return torch.enable_grad() if last else self.accelerator.no_sync(self.model)


class Clock:
    """Seconds per phase of an update."""

    def __init__(self) -> None:
        self.last, self.seconds = time.perf_counter(), dict[str, float]()

    def __call__(self, phase: str) -> None:
        """End a phase that began when the one before it ended."""
        now = time.perf_counter()
        self.seconds[phase], self.last = now - self.last, now

    def metrics(self) -> dict[str, float]:
        """Return `time/<phase>`."""
        return {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}


class _Totals:
    """Mean of metrics over optimiser steps."""

    def __init__(self) -> None:
        self.sums, self.count = dict[str, float](), 0

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        return {name: value / self.count for name, value in self.sums.items()}


def _mix(seed: int, *parts: int) -> int:
    """Return a seed that differs for every purpose, update and process."""
    value = seed
    for part in parts:
        value = (value * 1_000_003 + part + 1) % (2**63 - 1)
    return value


def _among(parameter: torch.nn.Parameter, others: list[torch.nn.Parameter]) -> bool:
    return any(parameter is other for other in others)

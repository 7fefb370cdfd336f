"""One update's optimisation: several passes over a batch of experience, in minibatches."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ppo.config import PPOSettings
from ppo.experience import Experience
from ppo.losses import policy_loss, value_loss
from ppo.ptx import Ptx
from ppo.roles import Roles
from ppo.rollout import micro_batches, select, unflatten
from ppo.sharding import check_done, split_moments, whole

if TYPE_CHECKING:
    from accelerate import Accelerator

NAMES = (
    "loss/policy_avg", "policy/clipfrac_avg", "policy/approxkl_avg", "val/ratio",
    "policy/entropy_avg", "loss/value_avg", "val/clipfrac_avg", "loss/total_avg",
)  # fmt: skip
POLICY, VALUE = slice(0, 5), slice(5, 7)  # which of them are whose
KL = "policy/approxkl_avg"


class Optimisation:
    """The optimiser, its schedule, and the step on a minibatch.

    Attributes:
        model: the trained module, wrapped by Accelerate.
        parameters: those of the policy, and those of the value function.
        steps: optimiser steps begun in this update.
    """

    def __init__(
        self,
        args: PPOSettings,
        roles: Roles,
        accelerator: "Accelerator",
        total_updates: int,
        ptx: Ptx | None = None,
    ) -> None:
        self.args, self.roles, self.accelerator = args, roles, accelerator
        self.total_updates, self.steps = total_updates, 0
        self.ptx = ptx if ptx is not None and ptx.learns else None
        check_done(roles)
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
            fused=True,  # one pass over the weights where the plain one makes a dozen
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        # Only the module: gradients are averaged over processes by its wrapper, or by what gathers
        # weights that are split. The scheduler steps once an update, and Accelerate would step it
        # once per process.
        self.model = module if roles.shards is not None else accelerator.prepare(module)

    @property
    def learning_rate(self) -> float:
        """Of the policy, now."""
        return float(self.scheduler.get_last_lr()[0])

    def __call__(self, experience: Experience, temperature: float, seed: int) -> dict[str, float]:
        """Pass over the batch `num_ppo_epochs` times in minibatches.

        Args:
            experience: of this process.
            temperature: of the rollout; divides the logits here too.
            seed: of the order of the rows.

        Returns:
            Mean metrics over the minibatches that were stepped on.

        Raises:
            FloatingPointError: when the loss or a gradient is NaN or infinite; no step was taken.
        """
        args, totals, first_ratio, stopped = self.args, _Totals(), math.nan, False
        self.steps = 0
        generator = torch.Generator().manual_seed(seed)
        for _ in range(args.num_ppo_epochs):
            for rows in self._minibatches(len(experience.rollout.queries), generator):
                stats = self.step(experience, rows, temperature)
                if math.isnan(first_ratio):
                    first_ratio = stats["val/ratio"]
                totals.add(stats)
                # Over all processes, so that all of them stop together.
                stopped = args.target_kl is not None and stats[KL] > args.target_kl
                if stopped:
                    break
            if stopped:
                break
        return totals.means() | {
            "val/ratio_first_minibatch": first_ratio,
            "policy/minibatches": float(totals.count),
        }

    def _minibatches(self, count: int, generator: torch.Generator) -> Iterator[list[int]]:
        size = count // self.args.num_mini_batches
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, size * self.args.num_mini_batches, size):
            yield order[start : start + size]

    def step(
        self, experience: Experience, rows: Sequence[int], temperature: float
    ) -> dict[str, float]:
        """Take an optimiser step on some rows, in micro-batches; all tokens weigh the same."""
        args, rollout = self.args, experience.rollout
        tokens = self._sum(rollout.response_mask[list(rows)].sum())
        # Wrapped modules average gradients over processes; we want the sum over all tokens divided
        # by their number.
        scale = self.accelerator.num_processes / tokens
        sums = torch.zeros(len(NAMES), device=self.roles.device, dtype=torch.float64)
        lengths = [len(rollout.queries[i]) + len(rollout.responses[i].ids) for i in rows]
        parts = list(micro_batches(lengths, args.micro_batch_size))
        frozen = experience.value_only
        # In one autocast, which casts each weight once and not anew for every micro-batch.
        with self.roles.autocast():
            beside = {}
            if self.ptx is not None and not frozen:
                with self._sync(last=False):
                    beside["loss/ptx"] = self.ptx.backward(self.accelerator)
            for number, part in enumerate(parts):
                with self._sync(last=number == len(parts) - 1):
                    sums += self._learn(experience, [rows[k] for k in part], temperature, scale)
        norms = [
            whole(torch.nn.utils.clip_grad_norm_(group, args.max_grad_norm))
            for group in self.parameters
        ]
        means = self._sum(sums) / tokens
        if not torch.isfinite(means).all() or not all(torch.isfinite(norm) for norm in norms):
            self.optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError("the loss became NaN or infinite")
        if frozen:
            # Gradients of 0 would still decay the weights, and count as steps in Adam's averages.
            for parameter in self.parameters[0]:
                parameter.grad = None
        self.steps += 1
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        metrics = dict(zip(NAMES, means.tolist(), strict=True))
        metrics |= {"policy/grad_norm": float(norms[0]), "val/grad_norm": float(norms[1])}
        return metrics | beside

    def _learn(
        self, experience: Experience, index: list[int], temperature: float, scale: torch.Tensor
    ) -> torch.Tensor:
        """Add a micro-batch's gradients; returns the sums over its tokens, as in `NAMES`."""
        args, rollout = self.args, experience.rollout
        queries = [rollout.queries[i] for i in index]
        batch = select(rollout, index, self.roles.device)
        mask, width = rollout.response_mask[index], rollout.response_mask.shape[1]
        # One after the other, so that the activations of one alone are kept; a wrapper that sends
        # gradients around must see all of the module's parameters in one pass.
        alone = self.model is self.roles.trained
        sums = torch.zeros(len(NAMES), device=self.roles.device, dtype=torch.float64)
        for part in (("policy",), ("value",)) if alone else (("policy", "value"),):
            loss: Any = 0.0
            learns = not (experience.value_only and part == ("policy",))
            with torch.set_grad_enabled(learns):
                stats, values = self.model(batch, temperature, part)
            if stats is not None:
                policy = policy_loss(
                    unflatten(stats.logprobs, batch, queries, width),
                    rollout.logprobs[index],
                    experience.advantages[index],
                    mask,
                    args.cliprange,
                    None if experience.weights is None else experience.weights[index],
                )
                loss = loss + (0.0 if experience.value_only else 1.0) * policy.loss
                sums[POLICY] += torch.stack(
                    [policy.loss, policy.clipped, policy.approx_kl, policy.ratio,
                     stats.entropy.sum()]
                ).detach().double()  # fmt: skip
            if values is not None:
                value = value_loss(
                    unflatten(values, batch, queries, width),
                    rollout.values[index],
                    experience.returns[index],
                    mask,
                    args.cliprange_value,
                )
                loss = loss + args.vf_coef * value.loss
                sums[VALUE] += torch.stack([value.loss, value.clipped]).detach().double()
            sums[-1] += loss.detach().double()
            if learns:
                self.accelerator.backward(loss * scale)
        return sums

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the weights."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.optimizer.load_state_dict(split_moments(state["optimizer"], self.optimizer))
        self.scheduler.load_state_dict(state["scheduler"])

    def _lr_factor(self, update: int) -> float:
        args = self.args
        warm = min(1.0, 0.1 + 0.9 * update / args.warmup_updates) if args.warmup_updates else 1.0
        return warm * (1 - update / self.total_updates if args.lr_scheduler == "linear" else 1.0)

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.accelerator.reduce(value, "sum")
        return total

    def _sync(self, *, last: bool) -> Any:
        # Gradients travel between processes once per optimiser step, with the last micro-batch;
        # where weights are split, with every one: no process keeps whole gradients.
        split = self.roles.shards is not None
        return torch.enable_grad() if last or split else self.accelerator.no_sync(self.model)


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


def _among(parameter: torch.nn.Parameter, others: list[torch.nn.Parameter]) -> bool:
    return any(parameter is other for other in others)

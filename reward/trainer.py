"""`trl.RewardTrainer` with all pairs of a prompt in one batch element, each answer encoded once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import logsigmoid
from trl import RewardConfig, RewardTrainer

from workbench.trainer import StageArguments

NO_PAD = -1  # a pad id that no token has

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Batch comparisons; an answer that occurs in several pairs becomes one row of the batch.

    Of K answers every one is read once instead of K - 1 times (Ouyang et al. 2022, §3.5).

    Returns:
        `input_ids`, `attention_mask` and `position_ids` [N, T] of the N different answers, padded
        on the left so that the last column holds every row's last token; `chosen` and `rejected`
        [P], indices into them; `weight` and `margin` [P].
    """
    index: dict[tuple[int, ...], int] = {}
    sides: dict[str, list[int]] = {"chosen": [], "rejected": []}
    for row in rows:
        for side, places in sides.items():
            places += [index.setdefault(tuple(ids), len(index)) for ids in row[f"{side}_ids"]]
    width = max(len(ids) for ids in index)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in index])
    return {
        "input_ids": torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in index]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp_min(0),
        "chosen": torch.tensor(sides["chosen"]),
        "rejected": torch.tensor(sides["rejected"]),
        "weight": torch.tensor([value for row in rows for value in row["weight"]]),
        "margin": torch.tensor([value for row in rows for value in row["margin"]]),
    }


def preference_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    weight: torch.Tensor,
    margin: torch.Tensor,
    center: float,
    total: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the weighted Bradley–Terry loss, a scalar.

    -Σ w·log σ(r_chosen - r_rejected - margin) / Σ w  (Ouyang et al. 2022, eq. 1), plus `center`
    times the weighted mean of (r_chosen + r_rejected)² (Eisenstein et al. 2023).

    Args:
        chosen: scores of the chosen answers, [P].
        rejected: scores of the rejected answers, [P].
        weight: of each pair, [P].
        margin: of each pair, [P].
        center: coefficient of the centring term.
        total: Σ w to divide by, a scalar; None takes that of `weight`.
    """
    share = weight / (weight.sum() if total is None else total)
    loss = -(share * logsigmoid(chosen - rejected - margin)).sum()
    if center:
        loss = loss + center * (share * (chosen + rejected) ** 2).sum()
    return loss


# trl carries no types
class RewardArguments(StageArguments, RewardConfig):  # type: ignore[misc]
    """TRL's arguments and the stage's config."""


class PairwiseRewardTrainer(RewardTrainer):  # type: ignore[misc]
    """TRL's reward trainer with our batches: weighted pairs, one forward pass per answer.

    Transformers reads the score at the last id that is not the pad id; where pad = EOS that is the
    token *before* EOS, and finished answers look like cut-off ones. While training, no id is the
    pad id, and left padding puts every row's last real token where transformers then looks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=collate, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["chosen_ids", "rejected_ids", "weight", "margin"]

    def compute_loss(
        self,
        model: "PreTrainedModel",
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Score every answer once, then compare by index; metrics keep TRL's names."""
        del num_items_in_batch
        # Here and not before: at its start, `train` copies the tokenizer's pad id into the config.
        self.model.config.pad_token_id = NO_PAD
        mode = "train" if self.model.training else "eval"
        names = ("input_ids", "attention_mask", "position_ids")
        scores = (
            model(**{name: inputs[name] for name in names}, use_cache=False)
            .logits.squeeze(-1)
            .float()
        )
        chosen, rejected = scores[inputs["chosen"]], scores[inputs["rejected"]]
        center = self.args.center_rewards_coefficient or 0.0
        weight, total = inputs["weight"], None
        if mode == "train":
            # Losses are averaged over processes, whose pairs differ in number and weight.
            total = self.accelerator.reduce(weight.sum(), "mean")
        loss = preference_loss(chosen, rejected, weight, inputs["margin"], center, total)
        self._note(mode, (chosen - rejected).detach(), scores.detach())
        return (loss, {"logits": scores}) if return_outputs else loss

    def _note(self, mode: str, margins: torch.Tensor, scores: torch.Tensor) -> None:
        """Note what is shown of a batch, over the pairs and answers of all processes."""
        counts = [margins.new_tensor(len(margins)), margins.new_tensor(len(scores))]
        sums = [(margins > 0).sum().float(), margins.sum(), scores.sum()]
        own = torch.stack([*counts, *sums, scores.min(), scores.max()])
        # As many numbers from each process, though not as many pairs.
        every = self.accelerator.gather(own).view(-1, len(own))
        pairs, answers, right, margin, score = every[:, :5].sum(0).tolist()
        for name, value in {
            "accuracy": right / pairs,
            "margin": margin / pairs,
            "mean_reward": score / answers,
            "min_reward": every[:, 5].min().item(),
            "max_reward": every[:, 6].max().item(),
        }.items():
            self._metrics[mode][name].append(value)

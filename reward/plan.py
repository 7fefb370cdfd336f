"""What the training of a reward model holds in memory, and what its steps take."""

from typing import Any

import torch

from workbench.plan.memory import Request
from workbench.plan.skeleton import classifier
from workbench.plan.supervised import TrainerMemory

ANSWERS = 2  # of a row: one pair


def memory(request: Request) -> TrainerMemory:
    """Return the memory of `rlhf reward`; `workbench.launch` finds it by this name."""
    return TrainerMemory(request, classifier, "SEQ_CLS", _loss, "reward")


def _loss(model: Any, request: Request, rows: int) -> torch.Tensor:
    ids = torch.zeros(ANSWERS * rows, request.tokens, dtype=torch.long)
    mask = torch.ones_like(ids)
    states = model.base_model(
        input_ids=ids, attention_mask=mask, position_ids=mask.cumsum(-1) - 1, use_cache=False
    ).last_hidden_state
    loss: torch.Tensor = model.score(states)[:, -1].float().sum()
    return loss

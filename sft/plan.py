"""What supervised fine-tuning holds in memory, and what its steps take."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from workbench.plan.memory import Request
from workbench.plan.skeleton import language_model
from workbench.plan.supervised import TrainerMemory


def memory(request: Request) -> TrainerMemory:
    """Return the memory of `rlhf sft`; `workbench.launch` finds it by this name."""
    return TrainerMemory(request, language_model, "CAUSAL_LM", _loss, "sft")


def _loss(model: Any, request: Request, rows: int) -> torch.Tensor:
    ids = torch.zeros(rows, request.tokens, dtype=torch.long)
    hidden = model.base_model(
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
    ).last_hidden_state
    learned = hidden[:, request.prompt - 1 : -1].reshape(-1, hidden.shape[-1])
    if request.cpu and request.devices == 1:
        # As `DemonstrationTrainer`: logits of the learned positions.
        logits = model.get_output_embeddings()(learned)
        return cross_entropy(logits.float(), ids[:, request.prompt :].reshape(-1), reduction="sum")
    # TRL's fused head keeps no logits; it goes through the vocabulary in tiles, in float32.
    loss: torch.Tensor = learned.float().sum()
    return loss

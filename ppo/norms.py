"""RMS norms with a gradient of their own: a third of the passes over memory that autograd makes."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RMSNorm(nn.Module):
    """x / rms(x) · w (Zhang & Sennrich 2019), computed in float32, given in the type of x.

    Under autocast transformers' own gives float32 where w is float32, and each product that reads
    it makes a bf16 copy of it again.
    """

    def __init__(self, weight: nn.Parameter, variance_epsilon: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = weight, variance_epsilon

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the norm of [..., d]."""
        found: torch.Tensor = _RMSNorm.apply(  # type: ignore[no-untyped-call]
            hidden_states, self.weight, self.variance_epsilon
        )
        return found


class _RMSNorm(torch.autograd.Function):
    """With n = x r and r = 1 / rms(x): dx = r (dn - n mean(dn n)), dn = dy w; dw = Σ dy n."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        wide = states.float()
        # In this order transformers' own gives the same bits in float32.
        factor = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(states, weight, factor)
        return (weight * (wide * factor)).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        states, weight, factor = ctx.saved_tensors
        normed = states.float() * factor
        wide = grad.float()
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (wide * normed).flatten(0, -2).sum(0).to(weight.dtype)
        to_states = None
        if ctx.needs_input_grad[0]:
            slope = wide * weight
            share = torch.linalg.vecdot(slope, normed).unsqueeze(-1) / normed.shape[-1]
            to_states = torch.addcmul(slope, normed, share, value=-1).mul_(factor).to(states.dtype)
        return to_states, to_weight, None


def quick_norms(model: "PreTrainedModel") -> None:
    """Put `RMSNorm` in the place of a Llama or Qwen model's norms; names and weights stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in {"LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}:
                setattr(parent, name, RMSNorm(child.weight, child.variance_epsilon))

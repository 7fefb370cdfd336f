"""Log-probabilities of tokens from hidden states; logits of a few rows at a time, never kept."""

from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ppo.sharding import whole
from workbench.errors import UserError

LOGIT_ROWS = 128  # rows of logits alive at a time: 128 × 49,152 × 4 bytes = 25 MB


class TokenStats(NamedTuple):
    """Per response token, [N] float32: its log-probability, and the entropy of its distribution."""

    logprobs: torch.Tensor
    entropy: torch.Tensor


@torch.no_grad()
def check_logits(model: Any, name: str) -> None:
    """Refuse a model whose logits are more than what its head gives.

    Families that scale or cap them afterwards would be trained on log-probabilities that are not
    theirs. Four tokens show it, whichever the setting is called.

    Args:
        model: causal language model, in evaluation mode.
        name: under which the user knows it.

    Raises:
        UserError: names the family.
    """
    head, ids = model.get_output_embeddings(), torch.arange(4, device=model.device)[None]
    plain = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state).float()
    found = model(input_ids=ids, use_cache=False).logits.float()
    if float((found - plain).abs().max()) > 1e-3 * float(plain.abs().max()) + 1e-6:
        raise UserError(
            f"{name}: {model.config.model_type} models change their logits after the head, and PPO "
            "reads the head itself, so that its probabilities would be wrong; use another family"
        )


def token_stats(
    hidden: torch.Tensor, lm_head: Any, tokens: torch.Tensor, temperature: float
) -> TokenStats:
    """Return log-probability and entropy of tokens; logits for them only, a few rows at a time.

    Gradients flow to the states, and to the head where it is trained; not through the entropy.

    Args:
        hidden: [N, d].
        lm_head: linear layer that maps [n, d] to logits [n, V].
        tokens: [N].
        temperature: divides the logits, for log-probabilities and entropy alike.
    """
    weight = whole(lm_head.weight)
    bias = None if lm_head.bias is None else whole(lm_head.bias)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        logprobs, entropy = _TokenStats.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, tokens, temperature, dtype
        )
    return TokenStats(logprobs, entropy)


class _TokenStats(torch.autograd.Function):
    """log softmax(h W / T)[token] and its gradient.

    With p = softmax, d logprob / d h = (W[token] - p W) / T, which is as small as h: with a frozen
    head it is computed at once and nothing of width V is needed again. For a trained head the
    logits are computed again in the backward pass, which is cheaper than keeping them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        tokens: torch.Tensor,
        temperature: float,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        learns = any(ctx.needs_input_grad[1:3])
        slopes = ctx.needs_input_grad[0] and not learns
        logprobs, entropy = (torch.empty(len(tokens), device=hidden.device) for _ in range(2))
        slope = hidden.new_empty(hidden.shape) if slopes else None
        for start in range(0, len(tokens), LOGIT_ROWS):
            part = slice(start, start + LOGIT_ROWS)
            chosen = tokens[part]
            logits = _logits(hidden[part].to(dtype), head, offset, temperature)
            chances = torch.softmax(logits, dim=-1)
            # log Σ exp from the likeliest token, whose probability is never too small for a float:
            # the vocabulary is passed over less often than for a log-softmax and its exponential.
            top = logits.argmax(-1, keepdim=True)
            total = logits.gather(-1, top) - chances.gather(-1, top).log()
            logprobs[part] = (logits.gather(-1, chosen[:, None]) - total).squeeze(-1)
            entropy[part] = total.squeeze(-1) - torch.linalg.vecdot(chances, logits)
            if slope is not None:
                mean = chances.to(dtype) @ head
                slope[part] = ((head[chosen].float() - mean.float()) / temperature).to(slope.dtype)
        ctx.temperature, ctx.dtype = temperature, dtype
        if learns:
            ctx.save_for_backward(hidden, weight, bias, tokens)
        else:
            ctx.save_for_backward(slope)
        ctx.learns = learns
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        nothing = (None, None, None)
        with torch.autocast(grad.device.type, enabled=False):
            if not ctx.learns:
                (slope,) = ctx.saved_tensors
                return (slope * grad[:, None]).to(slope.dtype), None, None, *nothing
            hidden, weight, bias, tokens = ctx.saved_tensors
            head = weight.to(ctx.dtype)
            offset = None if bias is None else bias.to(ctx.dtype)
            to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight)
            to_bias = None if bias is None else torch.zeros_like(bias)
            for start in range(0, len(tokens), LOGIT_ROWS):
                part = slice(start, start + LOGIT_ROWS)
                rows = hidden[part].to(ctx.dtype)
                logits = _logits(rows, head, offset, ctx.temperature)
                share = (grad[part] / ctx.temperature)[:, None]
                logits = torch.softmax(logits, dim=-1).mul_(-share)
                logits.scatter_add_(-1, tokens[part][:, None], share)
                if to_bias is not None:
                    to_bias += logits.sum(0)
                logits = logits.to(ctx.dtype)
                to_hidden[part] = (logits @ head).to(hidden.dtype)
                to_weight += logits.T @ rows
        return to_hidden, to_weight, to_bias, *nothing


def _logits(
    rows: torch.Tensor, head: torch.Tensor, offset: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    logits = functional.linear(rows, head, offset).float()
    return logits if temperature == 1 else logits / temperature

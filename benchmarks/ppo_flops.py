"""Operations of a phase, counted and by formula, and the rate at which a machine multiplies."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

SQUARE = 2048  # rows and columns of the square product
SECONDS = 0.4  # that a rate is measured for

aten = torch.ops.aten


@dataclass(frozen=True)
class Shape:
    """A decoder and a batch, as far as operations depend on them.

    Attributes:
        layer: weights of the linear maps of one layer.
        keys: those of them that give keys and values.
        head: weights of the output head.
        width: of the attention's queries, all heads together.
        length: tokens of a sequence, query and response.
        response: tokens of a response.
        batch: sequences.
    """

    layer: int
    keys: int
    head: int
    width: int
    length: int
    response: int
    batch: int


def shape(config: Any, query: int, response: int, batch: int) -> Shape:
    """Return the shape of a Llama-like model on a batch."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    queries, keys = heads * size, config.num_key_value_heads * size
    layer = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    return Shape(
        layer=layer,
        keys=config.hidden_size * 2 * keys,
        head=config.hidden_size * config.vocab_size,
        width=queries,
        length=query + response,
        response=response,
        batch=batch,
    )


def layer_products(shape: Shape) -> float:
    """Return the operations of one layer's linear maps over the batch, forward."""
    return 2.0 * shape.layer * shape.batch * shape.length


def top_products(shape: Shape) -> float:
    """Return those of the last layer's: all but keys and values for the response alone."""
    own = (shape.layer - shape.keys) * shape.response
    return 2.0 * shape.batch * (shape.keys * shape.length + own)


def layer_attention(shape: Shape) -> float:
    """Return those of its attention: two products over half of the square, as it is causal."""
    return 2.0 * shape.batch * shape.width * shape.length**2


def top_attention(shape: Shape) -> float:
    """Return those of the last layer's attention, counted as half of its rectangle."""
    return 2.0 * shape.batch * shape.width * shape.response * shape.length


def update_flops(shape: Shape, layers: int, epochs: int) -> dict[str, float]:
    """Return the operations of the update phase in `shared_trunk`.

    In each pass policy and value go forward and back through their own layers; back takes twice
    the products of forward, to inputs and to weights. The frozen head multiplies response positions
    twice, to logits and back.

    Args:
        shape: of model and batch.
        layers: trained, of policy and value each.
        epochs: passes over the batch.

    Returns:
        `products` and `attention`, as `counted` gives them.
    """
    head = 2 * 2 * shape.head * shape.batch * shape.response
    through = 3 * 2 * epochs
    return {
        "products": through * ((layers - 1) * layer_products(shape) + top_products(shape))
        + epochs * head,
        "attention": through * ((layers - 1) * layer_attention(shape) + top_attention(shape)),
    }


def counted(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Do the work; return its result and the operations that it needs, by kind.

    Returns:
        `products`, of two matrices; `attention`, in a fused kernel or as batched products. What
        causal attention computes above the diagonal, and what a kernel computes anew, is not
        needed and not counted; batched products are taken to be those of causal attention.
    """
    attention = 0.0

    def add(products: int, query: torch.Tensor, key: torch.Tensor, *, causal: bool) -> int:
        nonlocal attention
        batch, heads, length, width = query.shape
        square = 2.0 * batch * heads * length * key.shape[2] * width
        attention += products * square / (2 if causal else 1)
        return 0

    def forward(query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> int:
        return add(2, query, key, causal=_causal(rest, options, 2))

    def backward(
        _: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any
    ) -> int:
        return add(4, query, key, causal=_causal(rest, options, 4))

    def batched(a: torch.Tensor, b: torch.Tensor, **_: Any) -> int:
        nonlocal attention
        attention += a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]  # half of the square's
        return 0

    def added(_: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **options: Any) -> int:
        return batched(a, b, **options)

    kernels: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        aten.bmm: batched,
        aten.baddbmm: added,
    }
    for function in kernels.values():
        function._get_raw = True  # called with tensors, not with shapes
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        result = work()
    # On a GPU the counter knows the fused kernels itself, and counts the whole square.
    return result, {"products": float(counter.get_total_flops()), "attention": attention}


def product_rates(config: Any, rows: int, device: str) -> dict[str, float]:
    """Return the rates of bf16 products, FLOP a second.

    Args:
        config: of a Llama-like model.
        rows: tokens that pass through a layer at once.
        device: "cpu" or "cuda".

    Returns:
        `square` of 2048 × 2048 matrices; `model` of one layer's linear maps over such rows.
    """
    square = torch.randn(SQUARE, SQUARE, device=device, dtype=torch.bfloat16)
    states = torch.randn(rows, config.hidden_size, device=device, dtype=torch.bfloat16)
    middle = torch.randn(rows, config.intermediate_size, device=device, dtype=torch.bfloat16)
    up = torch.randn(config.intermediate_size, config.hidden_size, device=device)
    up = up.bfloat16()
    down = up.T.contiguous()

    def layer() -> None:
        functional.linear(states, up)
        functional.linear(middle, down)

    one = 2.0 * rows * up.numel()
    return {
        "square": 2.0 * SQUARE**3 / seconds(lambda: square @ square, device),
        "model": 2 * one / seconds(layer, device),
    }


def seconds(work: Callable[[], Any], device: str) -> float:
    """Return the seconds that the work takes, the mean over repetitions after a first."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    wait()
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < SECONDS or count < 3:
        work()
        wait()
        count += 1
    return passed / count


def _causal(args: tuple[Any, ...], options: dict[str, Any], place: int) -> bool:
    return bool(options.get("is_causal", args[place] if len(args) > place else False))

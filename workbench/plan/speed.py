"""Speed: a roofline from a device's rates, for the phases of each stage."""

from dataclasses import dataclass

from workbench.plan.devices import Rates
from workbench.plan.memory import Request


@dataclass(frozen=True)
class Speed:
    """What a device does, by estimate.

    Attributes:
        device: whose rates were taken.
        seconds: of one update, by phase, on each device.
        tokens: that the phase is counted in, by phase, over all devices.
        per_second: tokens of the whole stage a second, over all devices: answer tokens sampled and
            learned from in PPO, tokens read in the other stages.
        source: of the rates, and what share of them was assumed.
    """

    device: str
    seconds: dict[str, float]
    tokens: dict[str, int]
    per_second: float
    source: str


def ppo_speed(
    request: Request, rates: Rates, rows: int, sampled: int, passes: int, bytes_read: int
) -> Speed:
    """Return the speed of an update of PPO.

    Args:
        request: what is planned.
        rates: of the device.
        rows: answers of a device and update.
        sampled: of them decoded together.
        passes: over a batch.
        bytes_read: of weights, for each new token.
    """
    counts, answer = request.counts, rows * request.response
    flops, bandwidth = rates.flops * rates.compute_share, rates.bandwidth * rates.read_share
    share = (request.top_layers or counts.depth) / counts.depth
    body, head = _body(request, request.tokens, rows), 2 * counts.head * answer
    lower, upper = (1 - share) * body, share * body
    # A reward model that is an adapter changes the lower layers, and reads the tokens anew.
    # Sampling has kept what the lower layers make of the tokens.
    again = lower if request.layout == "lora" and request.top_layers is not None else 0
    backward = 1 if request.layout == "lora" else 2  # an adapter's weights are few
    trained_head = request.layout == "separate"
    learned = 2 * (1 + backward) * upper + (4 if trained_head else 2) * head
    batches = -(-rows // sampled)
    middle = request.prompt + request.response / 2
    cache = sampled * middle * counts.cache * request.dtype.itemsize
    step = max((bytes_read + cache) / bandwidth, _one(request, sampled) / flops)
    seconds = {
        "rollout": batches * request.response * step + _body(request, request.prompt, rows) / flops,
        "score": (again + 4 * upper + 2 * head) / flops,
        "update": passes * learned / flops,
    }
    n = request.devices
    tokens = {"rollout": n * answer, "score": n * rows * request.tokens}
    tokens["update"] = passes * n * rows * request.tokens
    per_second = n * answer / sum(seconds.values())
    return Speed(rates.name, seconds, tokens, per_second, rates.source)


def trainer_speed(request: Request, rates: Rates, sequences: int, head: bool) -> Speed:
    """Return the speed of a step of `sft` or `reward`.

    Args:
        request: what is planned.
        rates: of the device.
        sequences: of a device and step.
        head: whether logits over the vocabulary are computed.
    """
    counts = request.counts
    top = request.top_layers if request.layout == "shared_trunk" else None
    share = (top or counts.depth) / counts.depth
    body = _body(request, request.tokens, sequences)
    logits = 2 * counts.head * sequences * request.response if head else 0
    backward = (1 if request.layout == "lora" else 2) * share
    again = share if request.checkpointing else 0
    flops = body * (1 + backward + again) + 3 * logits
    seconds = {"step": flops / (rates.flops * rates.compute_share)}
    tokens = {"step": request.devices * sequences * request.tokens}
    return Speed(rates.name, seconds, tokens, tokens["step"] / seconds["step"], rates.source)


def _body(request: Request, length: int, rows: int) -> float:
    """Return the operations of all layers on whole sequences: products, and causal attention."""
    counts = request.counts
    attention = 2 * counts.depth * counts.attended * length**2  # half of the square
    return float(rows * (2 * counts.layers * length + attention))


def _one(request: Request, rows: int) -> float:
    """Return the operations of one new token in each row."""
    counts = request.counts
    return 2.0 * rows * (counts.layers + counts.head)

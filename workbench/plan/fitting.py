"""Fitting a stage into devices: the batch sizes that fit, and what would fit where none does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from workbench.errors import UserError
from workbench.plan.devices import Devices
from workbench.plan.memory import Request, StageMemory

ROLLOUT = "rollout"  # the phase whose rows are `rollout.batch_size`
MOST_ROWS = 4096
# Blocks of an allocator are not all in use: measured in `docs/scaling.md`, "Planning".
SLACK = 1.1


@dataclass(frozen=True)
class Fit:
    """How a stage fits into each device.

    Attributes:
        fits: whether it does.
        micro_batch: rows of a forward and backward pass: the most that fit, up to a minibatch; 1
            where none fits.
        rollout_batch: rows that are decoded together; None where nothing is sampled.
        held: bytes of a device's share of what is held.
        kept: bytes it keeps of its rows through an update.
        gathered: bytes of the others' shares that it gathers, by phase.
        phases: bytes that each phase takes beside these, at its peak.
        work: bytes of the phase that takes the most; on a CPU of all of them, one after the other.
        overhead: bytes that are no tensors, and gaps between them.
        peak: of all.
    """

    fits: bool
    micro_batch: int
    rollout_batch: int | None
    held: int
    kept: int
    gathered: dict[str, int]
    phases: dict[str, int]
    work: int
    overhead: int
    peak: int


def share(part: int, request: Request) -> int:
    """Return the bytes that one device holds of a part."""
    return -(-part // request.devices) if request.sharding == "fsdp2" else part


def fit(memory: StageMemory, devices: Devices, rows: int) -> Fit:
    """Return how a stage fits, with the largest batches that do.

    Args:
        memory: of the stage.
        devices: it is to run on.
        rows: of one device and update.
    """
    sampling = ROLLOUT in memory.phases
    if _held(memory) > devices.bytes:
        return placed(memory, devices, rows, 1, 1 if sampling else None)
    one, most = 1 if sampling else None, max(1, memory.most(rows))
    # The other stages add passes of one size up to an update, so that it must divide the rows.
    sizes = [n for n in _sizes(most) if sampling or most % n == 0]
    micro = _largest(lambda n: _fits(memory, devices, rows, n, one), sizes)
    if not sampling:
        return placed(memory, devices, rows, micro, None)
    sampled = _largest(lambda n: _fits(memory, devices, rows, micro, n), _sizes(rows))
    return placed(memory, devices, rows, micro, sampled)


def placed(
    memory: StageMemory, devices: Devices, rows: int, micro: int, sampled: int | None
) -> Fit:
    """Return how a stage fits with given batches; see `fit`."""
    request = memory.request
    taken = {phase: sampled or micro if phase == ROLLOUT else micro for phase in memory.phases}
    phases = {phase: memory.work(phase, n) for phase, n in taken.items()}
    sharded = request.sharding == "fsdp2"
    gathered = {phase: memory.gathered[phase] if sharded else 0 for phase in memory.phases}
    each = [size + gathered[phase] for phase, size in phases.items()]
    # The C library keeps what a phase has freed, and the next one's blocks are of other sizes.
    work = sum(each) if devices.cpu else max(each)
    held, kept = _held(memory), memory.kept(rows)
    peak = int((held + kept + work) * SLACK) + devices.overhead
    fits = peak <= devices.bytes
    overhead = peak - held - kept - work
    return Fit(fits, micro, sampled, held, kept, gathered, phases, work, overhead, peak)


def alternatives(request: Request, *, scored: bool = True) -> Iterator[tuple[str, Request]]:
    """Yield what may be changed to need less memory, the cheapest first, each with its words.

    Args:
        request: what needs too much.
        scored: whether the stage has a reward model in memory, as PPO does.
    """
    smaller = scored and request.reward == "whole"  # an adapter in its place would be
    sharded = replace(request, sharding="fsdp2")
    several = request.devices > 1 and request.sharding == "none"
    adapters = replace(request, layout="lora", top_layers=None)
    if several:
        yield "--sharding fsdp2", sharded
    if request.layout == "lora" and smaller:
        yield "--reward adapter", replace(request, reward="adapter")
    if request.layout != "lora":
        yield "--layout lora", adapters
        if smaller:
            yield "--layout lora --reward adapter", replace(adapters, reward="adapter")
        if several:
            yield "--layout lora --sharding fsdp2", replace(adapters, sharding="fsdp2")
    if several and smaller:
        words = "--sharding fsdp2 --reward adapter"
        words = words if request.layout == "lora" else f"--layout lora {words}"
        yield words, replace(adapters, sharding="fsdp2", reward="adapter")
    if request.counts.depth >= 4 and (request.layout != "lora" or request.top_layers is None):
        top = request.counts.depth // 4
        few = replace(request, layout="shared_trunk", top_layers=top)
        if request.layout == "separate":
            yield f"--layout shared_trunk --top-layers {top}", few
        yield f"--layout lora --top-layers {top}", replace(few, layout="lora")
    for factor in (2, 4, 8, 16, 32, 64):
        count = request.devices * factor
        more = replace(sharded, devices=count)
        yield f"{count} devices, --sharding fsdp2", more
        if request.layout != "lora":
            words = f"{count} devices, --layout lora --sharding fsdp2"
            yield words, replace(adapters, devices=count, sharding="fsdp2")


def cheapest(
    request: Request,
    devices: Devices,
    rows: int,
    memory_of: Callable[[Request], StageMemory],
    *,
    scored: bool = True,
) -> str | None:
    """Return the first change with which one row at a time fits, in words; None for none."""
    for words, each in alternatives(request, scored=scored):
        if devices.cpu and each.devices > 1:
            continue
        among = replace(devices, count=each.devices)
        few = max(1, rows * request.devices // each.devices)
        try:
            memory = memory_of(each)
        except UserError:  # a layout that this stage does not shard
            continue
        # What is held alone tells of most that they are too much, and costs nothing.
        if _held(memory) < devices.bytes and placed(memory, among, few, 1, 1).fits:
            return words
    return None


def _held(memory: StageMemory) -> int:
    """Return the bytes of a device's share of what is held."""
    return sum(share(part.bytes, memory.request) for part in memory.parts)


def _fits(
    memory: StageMemory, devices: Devices, rows: int, micro: int, sampled: int | None
) -> bool:
    """Return whether a stage fits with given batches; does not count what cannot change that."""
    # Of the phases that learn, the last one takes the most.
    held = _held(memory) + memory.kept(rows) + memory.work(memory.phases[-1], micro)
    if int(held * SLACK) + devices.overhead > devices.bytes:
        return False
    return placed(memory, devices, rows, micro, sampled).fits


def _sizes(most: int) -> list[int]:
    """Return the batches to try, the largest first: `most`, and the powers of two below it."""
    powers = (2**n for n in range(MOST_ROWS.bit_length()))
    return [most, *reversed([size for size in powers if size < most])]


def _largest(fits: Callable[[int], bool], sizes: list[int]) -> int:
    """Return the first size that fits; 1, the last of them, where none does."""
    # From above: small batches are counted on their own, those over a few rows follow from two.
    return next((size for size in sizes if fits(size)), 1)

"""What a stage holds in memory, and what its steps take beside that: common to all stages."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from workbench.plan.skeleton import Counts

Sharding = Literal["none", "fsdp2"]
Reward = Literal["whole", "adapter"]
ADAM_BYTES = 8  # two averages in float32 (Loshchilov & Hutter 2019)
Key = TypeVar("Key")
_FEW_ROWS = (4, 8)
FEW_LAYERS = (3, 4)  # layers of the small models from which a large one's memory follows


@dataclass(frozen=True)
class Request:
    """What is to be planned.

    Attributes:
        config: of the policy.
        counts: of its parameters.
        layout: separate, lora or shared_trunk.
        top_layers: layers trained; None is all.
        lora_rank: of the adapters.
        prompt, response: tokens.
        dtype: what is computed in.
        cpu: whether the devices are CPUs.
        devices: how many.
        sharding: how what is held is divided among them.
        checkpointing: whether sft and reward compute activations again in the backward pass.
        reward: what PPO's reward model is, a model of its own or an adapter on the policy's.
    """

    config: "PreTrainedConfig"
    counts: "Counts"
    layout: str
    top_layers: int | None
    lora_rank: int
    prompt: int
    response: int
    dtype: torch.dtype
    cpu: bool
    devices: int
    sharding: Sharding
    checkpointing: bool = False
    reward: Reward = "whole"

    @property
    def tokens(self) -> int:
        """Of a prompt with its answer."""
        return self.prompt + self.response


@dataclass(frozen=True)
class Part:
    """Something that is held during the whole stage.

    Attributes:
        role: whose it is.
        what: it is.
        bytes: of the whole, on one device without sharding.
    """

    role: str
    what: str
    bytes: int


class StageMemory(ABC):
    """The memory of a stage; each stage has its own, which `workbench.launch` finds.

    Attributes:
        parts: what is held all the time.
        trained: parameters with gradients.
        phases: of an update, by name, in order.
        gathered: bytes that a device gathers of the others' shares in a phase, under fsdp2.
    """

    phases: tuple[str, ...]
    parts: tuple[Part, ...]
    trained: int
    gathered: dict[str, int]

    def __init__(self, request: Request) -> None:
        self.request = request
        self.known: dict[tuple[str, int], dict[str, int]] = {}

    @abstractmethod
    def peaks(self, phase: str, rows: int) -> dict[str, int]:
        """Return the bytes that a phase takes beside what is held, at the peak of each window."""

    @abstractmethod
    def kept(self, rows: int) -> int:
        """Return the bytes that a device keeps of its rows from one phase to the next."""

    @abstractmethod
    def most(self, rows: int) -> int:
        """Return how many of a device's rows an update learns from at once, at most."""

    @abstractmethod
    def settings(self, rows: int, micro: int, sampled: int | None, passes: int) -> dict[str, Any]:
        """Return the settings of a run as it is planned, by their keys.

        Args:
            rows: of one device and update.
            micro: rows of a forward and backward pass.
            sampled: rows decoded together; None where nothing is sampled.
            passes: over a batch, where it is read more than once.
        """

    def work(self, phase: str, rows: int) -> int:
        """Return the bytes that a phase takes at its peak, beside what is held.

        In each window every further row adds the same.
        """
        low, high = _FEW_ROWS
        if rows <= high:
            return max(self._peaks(phase, rows).values())
        few, more = self._peaks(phase, low), self._peaks(phase, high)
        return max(few[k] + (rows - low) * (more[k] - few[k]) // (high - low) for k in few)

    def _peaks(self, phase: str, rows: int) -> dict[str, int]:
        if (phase, rows) not in self.known:
            self.known[phase, rows] = self.peaks(phase, rows)
        return self.known[phase, rows]


def tensors(module: nn.Module, seen: set[int], *, trained: bool = False) -> tuple[int, int]:
    """Return the number of a module's parameters, and their and its buffers' bytes.

    Args:
        module: whose they are.
        seen: ids of those that were counted before; joined by these.
        trained: leave out parameters that require no gradients.
    """
    number = size = 0
    for tensor in module.parameters():
        if id(tensor) not in seen and (tensor.requires_grad or not trained):
            seen.add(id(tensor))
            number += tensor.numel()
            size += tensor.numel() * tensor.element_size()
    for buffer in module.buffers():
        if id(buffer) not in seen:
            seen.add(id(buffer))
            size += buffer.numel() * buffer.element_size()
    return number, size


def training_parts(trained: int, request: Request) -> list[Part]:
    """Return what training holds for so many parameters in float32."""
    found = [
        Part("gradients", "float32", 4 * trained),
        Part("AdamW", "two averages, float32", ADAM_BYTES * trained),
    ]
    if request.devices > 1 and request.sharding == "none":
        found.append(Part("gradient buckets", "of the data-parallel wrapper", 4 * trained))
    return found


def model_settings(request: Request) -> dict[str, Any]:
    """Return the settings under `model` that all stages have."""
    found: dict[str, Any] = {
        "model.precision": "bf16" if request.dtype == torch.bfloat16 else "fp32"
    }
    if request.top_layers is not None:
        found["model.train_top_layers"] = request.top_layers
    if request.layout == "lora":
        found["model.lora.r"] = request.lora_rank
    return found


def prepare_gradients(module: nn.Module) -> None:
    """Give trained parameters gradients, as all but the first micro-batch of a step find them."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)


def from_few(measure: Callable[[int], dict[Key, int]], wanted: int) -> dict[Key, int]:
    """Return what `measure` gives for many layers, from what it gives for few.

    Each further layer adds the same to what is held, and to the peak of a window.

    Args:
        measure: from a number of layers to bytes by window.
        wanted: number of layers.
    """
    low, high = FEW_LAYERS
    if wanted <= high:
        return measure(wanted)
    few, more = measure(low), measure(high)
    return {name: few[name] + (wanted - low) * (more[name] - few[name]) for name in few}

"""Devices: how much memory they have, and how fast they are, by data sheet or measured here."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from workbench.errors import UserError

if TYPE_CHECKING:
    import torch

GB = 10**9
UNITS = {"GB": GB, "GIB": 2**30}
_DEVICES = re.compile(r"(?:(\d+)x|(cpu):)(\d+(?:\.\d+)?)(GB|GiB)", re.IGNORECASE)
MOST_DEVICES = 100_000


@dataclass(frozen=True)
class Devices:
    """What a stage is to run on.

    Attributes:
        count: how many devices.
        bytes: memory of each.
        cpu: whether it is a CPU.
    """

    count: int
    bytes: int
    cpu: bool

    @property
    def overhead(self) -> int:
        """Bytes that are not tensors: contexts and libraries of a GPU, all of Python on a CPU."""
        # A CUDA context with the kernels of PyTorch takes about half a GB, cuBLAS its workspaces,
        # and NCCL buffers for each peer; a process that has imported everything about 1 GB.
        return GB if self.count == 1 else int(1.5 * GB)

    def __str__(self) -> str:
        """Return them in words."""
        size = f"{self.bytes / GB:.3g} GB"
        if self.cpu:
            return f"a CPU with {size}"
        return f"{self.count} device{'s' if self.count > 1 else ''} of {size}"


@dataclass(frozen=True)
class Rates:
    """How fast a device is.

    Attributes:
        name: of it.
        flops: matrix products in bf16, operations a second.
        bandwidth: of its memory, bytes a second.
        compute_share: of `flops` that training reaches.
        read_share: of `bandwidth` that decoding reaches.
        gigabytes: its memory, as it is sold; 0 for this machine.
        source: of the rates and the shares.
    """

    name: str
    flops: float
    bandwidth: float
    compute_share: float
    read_share: float
    gigabytes: tuple[int, ...]
    source: str


# The Llama 3 herd of models (Dubey et al. 2024), table 4: 38 to 43 % of the bf16 peak of H100s.
COMPUTE_SHARE = 0.4
# docs/performance.md, generation alone, batch 16: 0.59 of what the products alone would allow.
READ_SHARE = 0.6
# docs/performance.md, what fell short: matrix products are 68 % of an update's time.
PRODUCT_SHARE = 0.68


def _sheet(
    name: str, tflops: float, gb_per_second: float, gigabytes: tuple[int, ...], source: str
) -> Rates:
    shares = "training at 40 % of the peak (Dubey et al. 2024, table 4), decoding at 60 % of the "
    shares += "bandwidth (docs/performance.md)"
    flops, bandwidth = tflops * 1e12, gb_per_second * 1e9
    source = f"{source}; {shares}"
    return Rates(name, flops, bandwidth, COMPUTE_SHARE, READ_SHARE, gigabytes, source)


# Dense bf16 with float32 sums; where a sheet gives rates "with sparsity", half of them.
SHEETS = {
    rates.name: rates
    for rates in (
        _sheet("h200", 989, 4800, (141,), "NVIDIA H200 Tensor Core GPU datasheet, SXM"),
        _sheet("h100", 989, 3350, (80,), "NVIDIA H100 Tensor Core GPU datasheet, SXM"),
        _sheet("a100", 312, 2039, (80, 40), "NVIDIA A100 Tensor Core GPU datasheet, 80GB SXM"),
        _sheet("l40s", 362, 864, (48,), "NVIDIA L40S datasheet"),
        _sheet("l4", 121, 300, (24,), "NVIDIA L4 Tensor Core GPU datasheet"),
        _sheet("4090", 165.2, 1008, (24,), "NVIDIA Ada GPU architecture whitepaper, appendix A"),
        _sheet("3090", 71, 936, (24,), "NVIDIA Ampere GA102 GPU architecture whitepaper"),
    )
}


def read_devices(text: str) -> Devices:
    """Return the devices that `--gpus` names.

    Raises:
        UserError: says how they are written.
    """
    match = _DEVICES.fullmatch(text.strip())
    if match is None:
        raise UserError(f"--gpus {text}: write COUNTxSIZE, e.g. 8x80GB or 1x24GB, or cpu:24GB")
    count = 1 if match[2] else int(match[1])
    size = int(float(match[3]) * UNITS[match[4].upper()])
    if not 1 <= count <= MOST_DEVICES:
        raise UserError(f"--gpus {text}: the number of devices must be 1 to {MOST_DEVICES}")
    if size < GB:
        raise UserError(f"--gpus {text}: a device needs at least 1 GB")
    return Devices(count, size, cpu=bool(match[2]))


def known_rates(devices: Devices, name: str | None) -> tuple[Rates, ...]:
    """Return the rates of the device named, or of all those with as much memory.

    Raises:
        UserError: for a device whose data sheet is not known here.
    """
    if name is not None:
        found = SHEETS.get(name.lower())
        if found is None:
            raise UserError(
                f"--device {name}: its rates are not known here, only those of "
                f"{', '.join(SHEETS)}; --measure takes this machine's"
            )
        return (found,)
    if devices.cpu:
        return ()
    size = round(devices.bytes / GB)
    return tuple(rates for rates in SHEETS.values() if size in rates.gigabytes)


def measured_rates(dtype: "torch.dtype", kind: Literal["cpu", "cuda"]) -> Rates:
    """Measure this machine for some seconds: products of square matrices, and copies of memory."""
    import torch

    size, copied = (8192, 2**30) if kind == "cuda" else (2048, 2**28)
    a = torch.ones(size, size, dtype=dtype, device=kind)
    out = torch.empty_like(a)
    flops = 2 * size**3 / _seconds(lambda: torch.mm(a, a, out=out), kind)
    source = torch.zeros(copied, dtype=torch.uint8, device=kind)
    target = torch.zeros_like(source)
    bandwidth = 2 * copied / _seconds(lambda: target.copy_(source), kind)
    said = f"{flops / 1e12:.2f} TFLOP/s in {size} × {size} products, {bandwidth / 1e9:.1f} GB/s"
    said = f"measured here: {said} in copies; training at 68 % of the first and decoding at 60 % "
    said += "of the second (docs/performance.md)"
    return Rates("this machine", flops, bandwidth, PRODUCT_SHARE, READ_SHARE, (), said)


def _seconds(work: Callable[[], object], kind: str) -> float:
    """Return the least seconds that some work takes, of what fits in about a second."""
    import torch

    best, began = float("inf"), time.perf_counter()
    for turn in range(50):
        if kind == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if kind == "cuda":
            torch.cuda.synchronize()
        if turn:  # the first one chooses kernels and takes memory
            best = min(best, time.perf_counter() - start)
        if turn and time.perf_counter() - began > 1.0:
            break
    return best

"""What a measured process says of itself: seconds, peak memory, optimiser steps, tokens trained.

It imports nothing of this project, as the process that runs TRL has no part of it installed.
"""

import ctypes
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

GIB = 2**30


class Watch:
    """Measures from one `lap` to the next; peak memory counts from the watch's start.

    The peak is that of the resident set on a CPU and of the allocator on a GPU. Before the start
    the C library gives back what loading left over, and the kernel's high-water mark is set anew,
    so that the peak of loading is not in it.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.steps = self.tokens = 0
        self.fresh = self._reset()
        register_optimizer_step_post_hook(self._stepped)
        self.lap()

    def lap(self) -> dict[str, float]:
        """Return wall and processor seconds since the last lap, and what was done in it."""
        if self.cuda:
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time(), self.steps, self.tokens
        before = getattr(self, "_before", now)
        self._before = now
        names = ("wall_s", "cpu_s", "optimizer_steps", "tokens_trained")
        return {name: b - a for name, a, b in zip(names, before, now, strict=True)}

    def peak_gib(self) -> float:
        """Return the peak of memory since the start."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() / GIB
        if not self.fresh:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / GIB

    def count(self, *modules: torch.nn.Module) -> None:
        """Count the positions that pass forward through a module with gradients."""
        for module in modules:
            module.register_forward_pre_hook(self._passed, with_kwargs=True)

    def _passed(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The value's own pass is over positions that the policy's has been through.
        if torch.is_grad_enabled() and ("value",) not in args:
            given = [*kwargs.values(), *args]
            ids = next(found for found in map(_token_ids, given) if found is not None)
            self.tokens += ids.numel()

    def _stepped(self, *_: Any) -> None:
        self.steps += 1

    def _reset(self) -> bool:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return True
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        except OSError:  # another system: then the peak of loading counts too
            return False
        return True


def about() -> dict[str, Any]:
    """Return what the numbers of this process depend on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "nice": os.nice(0),
    }


def _token_ids(value: Any) -> torch.Tensor | None:
    value = getattr(value, "input_ids", value)
    whole = isinstance(value, torch.Tensor) and not value.is_floating_point()
    return value if whole else None

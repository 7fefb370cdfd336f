"""Memory in use while code runs on tensors without data: counted as tensors come and go."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORWARD, BACKWARD = "forward", "backward"


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that operations make, until they are freed.

    What the code would read from data (how long the longest answer is) it is told, as there is
    none. Attention kernels and products are those of the real step; nothing is computed.

    Attributes:
        peaks: the most bytes in use at a time, within each window that was begun.
    """

    def __init__(self, longest: int, *, packs: bool) -> None:
        """Count from zero.

        Args:
            longest: what the code will read where it asks for an integer.
            packs: whether packed weights are copies, as on a CPU.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.longest, self.packs = longest, packs
        self.bytes, self.peaks = 0, dict[str, int]()
        self.begin()
        self._sizes: dict[int, int] = {}
        self._hooks: list[Any] = []

    def begin(self, name: str = "") -> None:
        """Begin a pass: two windows of its own, forward and, when a gradient comes, backward."""
        self.name, self.window = name, f"{name}{FORWARD}"
        for window in (FORWARD, BACKWARD):
            self.peaks.setdefault(f"{name}{window}", 0)

    def leave_out(self, modules: Iterable[nn.Module]) -> None:
        """Do not count the parameters, buffers and gradients of some modules."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                for each in (tensor, tensor.grad):
                    if each is not None:
                        self._sizes[each.untyped_storage()._cdata] = 0

    def watch_layer(self, layer: nn.Module) -> None:
        """Let the second window begin when the gradient has come down to a layer's input.

        All the layers' activations are kept until then, and few of them later.
        """
        self._hooks.append(layer.register_forward_pre_hook(self._entered, with_kwargs=True))

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _entered(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        if states.requires_grad and torch.is_grad_enabled():
            states.register_hook(self._came_down)

    def _came_down(self, _: torch.Tensor) -> None:
        self.window = f"{self.name}{BACKWARD}"

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count what it has made."""
        stand_in = _STAND_INS.get(func.name())
        if stand_in is None:
            found = func(*args, **(kwargs or {}))
        else:
            found = stand_in(self, *args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        return found

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = size = storage.nbytes()
        weakref.finalize(storage, self._freed, key)
        self.bytes += size
        self.peaks[self.window] = max(self.peaks[self.window], self.bytes)

    def _freed(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key, 0)


def _bincount(
    _: Live, values: torch.Tensor, weights: Any = None, minlength: int = 0
) -> torch.Tensor:
    del weights
    return values.new_empty(minlength)


def _number(live: Live, value: torch.Tensor) -> int | bool:
    return live.longest if value.dtype == torch.int64 else False


def _pack(live: Live, weight: torch.Tensor, sizes: Any = None) -> torch.Tensor:
    del sizes
    return torch.empty_like(weight) if live.packs else weight


_STAND_INS: dict[str, Callable[..., Any]] = {
    "aten::bincount": _bincount,
    "aten::_local_scalar_dense": _number,
    "mkldnn::_reorder_linear_weight": _pack,
}

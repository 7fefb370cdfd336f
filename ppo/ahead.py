"""Sampling ahead: the next batch is made in a thread while this one is learned from."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch

from workbench.errors import UserError
from workbench.generation import Response

if TYPE_CHECKING:
    from ppo.backends import Backend
    from ppo.config import RolloutSettings
    from ppo.roles import Roles

Later = Callable[[], list[Response]]


class Ahead:
    """At most one batch, sampled by the policy as it was an update before it is learned from."""

    def __init__(self, max_kl: float | None) -> None:
        """Start nothing yet.

        Args:
            max_kl: how far from the policy a batch may be, nats per token; None for any.
        """
        self.max_kl = max_kl
        self._step, self._batch = -1, Future[list[Response]]()
        self._thread: threading.Thread | None = None

    def has(self, step: int) -> bool:
        """Return whether the batch of an update is there or under way."""
        return self._step == step

    def start(self, step: int, later: Later) -> None:
        """Begin to sample the batch of an update.

        Args:
            step: the update that will learn from it.
            later: samples it, by weights that nothing changes meanwhile.
        """
        threads, before, batch = torch.get_num_threads(), self._thread, Future[list[Response]]()
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        device = torch.cuda.current_device() if on_gpu else None

        def work() -> None:
            if before is not None:
                before.join()  # a batch that nobody wanted any more
            torch.set_num_threads(threads)  # each thread has a number of its own
            if device is not None:
                torch.cuda.set_device(device)  # and begins on the first GPU
            try:
                batch.set_result(later())
            except BaseException as error:  # noqa: BLE001 - raised again by who takes the batch
                batch.set_exception(error)

        # A daemon: what ends the run does not wait for a batch that is under way.
        self._thread = threading.Thread(target=work, name="rollout", daemon=True)
        self._step, self._batch = step, batch
        self._thread.start()

    def too_far(self, metrics: Mapping[str, float]) -> bool:
        """Return whether a batch is beyond the bound.

        Args:
            metrics: `importance/kl`, KL(μ‖π_old) per token on the batch, over all processes.
        """
        return self.max_kl is not None and metrics["importance/kl"] > self.max_kl

    def take(self, step: int) -> list[Response] | None:
        """Wait for the batch of an update and return it; None when there is none.

        Raises:
            Exception: what sampling it raised.
        """
        if self._step != step:
            return None
        self._step = -1
        return self._batch.result()

    def state(self) -> dict[str, Any] | None:
        """Wait for the batch and return what a checkpoint keeps of it; None when there is none."""
        if self._step < 0 or self._batch.exception() is not None:
            return None
        rows = [(row.ids, row.finished, row.logprobs) for row in self._batch.result()]
        return {"step": self._step, "responses": rows}

    def load(self, state: dict[str, Any] | None) -> None:
        """Take up what a checkpoint kept."""
        self._step = -1
        if state is not None:
            self._step, self._batch = state["step"], Future()
            self._batch.set_result([Response(*row) for row in state["responses"]])


def make_ahead(settings: "RolloutSettings", backend: "Backend", roles: "Roles") -> Ahead | None:
    """Return what samples ahead, or None where `rollout.overlap` is off.

    Raises:
        UserError: for a backend that cannot, or weights that are split over processes.
    """
    if not settings.overlap:
        return None
    if roles.shards is not None:
        raise UserError(
            "rollout.overlap=true: sampling gathers weights from all processes, and so does "
            "learning, which must not happen at once; set it to false, or launch without FSDP"
        )
    if not hasattr(backend, "later"):
        raise UserError(
            "rollout.overlap=true: goes with rollout.backend=native, for the families it decodes, "
            "and with a vLLM server; set it to false"
        )
    return Ahead(settings.overlap_max_kl)

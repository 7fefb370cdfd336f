"""Sampling ahead: the next batch is made in a thread while this one is learned from."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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
    """At most one batch, sampled by the policy as it was an update before it is learned from.

    Attributes:
        dropped: whether the last batch was thrown away, the policy having moved too far since.
    """

    def __init__(self, max_kl: float | None) -> None:
        """Start nothing yet.

        Args:
            max_kl: by how much an update may move the policy, nats per token; None for any.
        """
        self.max_kl, self.dropped = max_kl, False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._step, self._batch = -1, Future[list[Response]]()

    def start(self, step: int, later: Later) -> None:
        """Begin to sample the batch of an update.

        Args:
            step: the update that will learn from it.
            later: samples it, by weights that nothing changes meanwhile.
        """
        threads = torch.get_num_threads()

        def work() -> list[Response]:
            torch.set_num_threads(threads)  # each thread has a number of its own
            return later()

        self._step, self._batch = step, self._pool.submit(work)

    def moved(self, kl: float) -> None:
        """Take note of how far an update has moved the policy; too far, and the batch is dropped.

        Args:
            kl: between the policies before and after, nats per token.
        """
        self.dropped = self.max_kl is not None and kl > self.max_kl
        if self.dropped:
            self._step = -1

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

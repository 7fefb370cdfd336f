"""Rollouts by a vLLM server that gets the policy's weights as an adapter, a version at a time."""

import hashlib
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ppo.lora import POLICY
from ppo.saving import save_adapter
from ppo.vllm_config import VLLMSettings
from ppo.vllm_server import ServedPolicy, UnknownModelError, VLLMServer
from workbench.errors import UserError
from workbench.files import atomic_folder
from workbench.generation import Response, SamplingSettings
from workbench.logs import console, is_main_process
from workbench.models import locate

if TYPE_CHECKING:
    from ppo.ahead import Later
    from ppo.roles import Roles

CHECKED_TOKENS = 8  # of each, of a batch that is sampled ahead
CHECKED = 8  # answers of each rollout whose log-probabilities are computed here as well
KEPT = 2  # versions on the server
OWNER = "run"  # file beside an adapter: whose it is
POLL_SECONDS = 0.2


class Weights(Protocol):
    """Brings the policy's weights to a server."""

    def version(self) -> str:
        """Return what the policy's weights, as they are now, are called; equal ones alike."""
        ...

    def send(self, version: str) -> str:
        """See that the server has a version, and return the name under which it is asked for."""
        ...

    def held(self) -> AbstractContextManager[object]:
        """Return what a thread holds from sending a version until it has all its answers."""
        ...


class VLLMBackend:
    """Answers of a server, checked to be the policy's own.

    On several processes each asks for its own share, and the main one alone sends weights.
    """

    def __init__(
        self,
        settings: VLLMSettings,
        roles: "Roles",
        stop_token_id: int,
        server: VLLMServer,
        served: ServedPolicy,
        weights: Weights,
    ) -> None:
        self.settings, self.roles, self.stop_token_id = settings, roles, stop_token_id
        self.server, self.served, self.weights = server, served, weights

    def sample(
        self, queries: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
    ) -> list[Response]:
        """Sample one response per query, with log-probabilities; see `Backend`.

        Raises:
            UserError: when the server cannot be reached, answers wrongly, or has other weights.
        """
        if not queries:
            return []
        longest = max(map(len, queries)) + settings.max_new_tokens
        if self.served.longest is not None and longest > self.served.longest:
            raise UserError(
                f"{self.settings.url}: takes {self.served.longest} tokens of prompt and answer, "
                f"and {longest} may be needed; start it with --max-model-len {longest}"
            )
        version = self.weights.version()
        responses = self._asked(version, queries, settings, seed)
        check_weights(self.settings, self.roles, queries, responses, settings.temperature)
        return responses

    def later(
        self, queries: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
    ) -> "Later":
        """Return a call that asks for answers by the weights of now, while these are trained on."""
        version = self.weights.version()
        # The batch itself comes when the policy has moved on. The weights can be sent and a few
        # tokens compared now.
        few, brief = queries[:CHECKED], min(CHECKED_TOKENS, settings.max_new_tokens)
        found = self._asked(version, few, replace(settings, max_new_tokens=brief), seed)
        check_weights(self.settings, self.roles, few, found, settings.temperature)
        return partial(self._asked, version, queries, settings, seed)

    def _asked(
        self,
        version: str,
        queries: Sequence[Sequence[int]],
        settings: SamplingSettings,
        seed: int,
    ) -> list[Response]:
        for _ in range(self.settings.tries):
            with self.weights.held():
                name = self.weights.send(version)
                try:
                    return self.server.sample(name, queries, settings, seed, self.stop_token_id)
                except UnknownModelError:
                    continue  # it was started anew, and gets the weights once more
        raise UserError(
            f"{self.settings.url}: loses the weights it was sent ({self.settings.tries} tries); "
            "look at its log, and give it --max-cpu-loras for all runs it serves"
        )


class AdapterFiles:
    """The policy's adapter, written into a folder that the server reads.

    A version is named after its run and content, and no name is used for another one: vLLM keeps
    what it has read of prompts by adapter name, and would go on with what old weights made of them.
    """

    def __init__(
        self, settings: VLLMSettings, roles: "Roles", server: VLLMServer, folder: Path
    ) -> None:
        self.settings, self.roles, self.server = settings, roles, server
        self.folder, self.owner = Path(settings.folder or folder).resolve(), str(folder.resolve())
        self.loaded: list[str] | None = None  # by this run, the newest last; None: not looked yet
        self._lock = threading.Lock()  # a batch sampled ahead asks from a thread of its own

    def version(self) -> str:
        """Return a name made from the run, so that no other drops it, and the adapter's bytes."""
        assert self.roles.adapters is not None
        found = hashlib.sha256(self.owner.encode())
        for name, weight in self.roles.adapters.peft.named_parameters():
            if f".{POLICY}." in name:
                found.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return f"policy-{found.hexdigest()[:16]}"

    def send(self, version: str) -> str:
        """Write and load an adapter the server does not have, and drop those from before.

        The last one stays beside it: what is sampled ahead may still be under way with it. Those
        that the run left before it was stopped are dropped as well, and no other run's. Other
        processes than the main one wait until it is there.

        Raises:
            UserError: when the server cannot load it, or it has gone from the folder.
        """
        if not is_main_process():
            self._wait(version)
            return version
        with self._lock:
            if version not in self._names():
                self._write(version)
                self.server.load(version, self.folder / version)
            before = self._left() if self.loaded is None else self.loaded
            self.loaded = [name for name in before if name != version] + [version]
            while len(self.loaded) > KEPT:
                old = self.loaded.pop(0)
                self.server.unload(old)
                shutil.rmtree(self.folder / old, ignore_errors=True)
        return version

    def held(self) -> AbstractContextManager[object]:
        """Return what holds nothing: versions are there side by side."""
        return nullcontext()

    def _left(self) -> list[str]:
        """Return what an earlier process of this run wrote, the newest last."""
        found = []
        for mark in self.folder.glob(f"policy-*/{OWNER}"):
            with suppress(FileNotFoundError):  # another run's that shares the folder, just dropped
                if mark.read_text("utf-8") == self.owner:
                    found.append((mark.stat().st_mtime_ns, mark.parent.name))
        return [name for _, name in sorted(found)]

    def _write(self, version: str) -> None:
        path = self.folder / version
        if path.is_dir():
            return
        if self.version() != version:  # never other weights under its name
            raise UserError(f"{path}: is gone, and the policy has other weights by now")
        with atomic_folder(path) as folder:
            save_adapter(self.roles, folder)
            (folder / OWNER).write_text(self.owner, encoding="utf-8")

    def _names(self) -> list[str]:
        return [str(row["id"]) for row in self.server.models()]

    def _wait(self, version: str) -> None:
        until = time.monotonic() + self.settings.timeout
        while version not in self._names():
            if (self.folder / version).is_dir():
                # Written, and not there: the server was started anew, and the main process, which
                # may have its answers already, will not send it again.
                self.server.load(version, self.folder / version)
                return
            if time.monotonic() > until:
                raise UserError(
                    f"{self.settings.url}: the main process has not loaded {version} within "
                    f"rollout.vllm.timeout={self.settings.timeout:g} s"
                )
            time.sleep(POLL_SECONDS)


def served_policy(server: VLLMServer, settings: VLLMSettings, policy: str) -> ServedPolicy:
    """Return the model a server was started with; says so where its name is not the policy's.

    Raises:
        UserError: when the server does not answer or has no such model.
    """
    served = server.base(settings.model)
    if served.root is not None and not _same(served.root, policy):
        console.print(
            f"ppo: {settings.url} was started with {served.root}, the policy is {policy}; "
            "whether they are one model is seen from the first answers",
            markup=False,
        )
    return served


def check_weights(
    settings: VLLMSettings,
    roles: "Roles",
    queries: Sequence[Sequence[int]],
    responses: Sequence[Response],
    temperature: float,
) -> None:
    """Compare the log-probabilities of the first answers with the policy's own.

    Args:
        settings: how far they may be apart.
        roles: the actor's are the own.
        queries: token ids of each.
        responses: one each, with log-probabilities.
        temperature: that they were sampled at; nothing is compared at 0.

    Raises:
        UserError: when they are not those of one model.
    """
    if temperature == 0:
        return
    queries, responses, limit = queries[:CHECKED], responses[:CHECKED], settings.max_difference
    found = difference(roles, queries, responses, temperature)
    if found <= limit:
        return
    where = settings.url if settings.mode == "server" else "rollout.vllm.mode=colocate"
    if temperature != 1 and difference(roles, queries, responses, 1.0) <= limit:
        raise UserError(
            f"{where}: reports log-probabilities before the temperature of {temperature:g} is "
            "applied; start it with --logprobs-mode processed_logprobs"
        )
    raise UserError(
        f"{where}: its log-probabilities differ from the policy's by {found:.3f} nats per token "
        f"(rollout.vllm.max_difference={limit:g}), so it has other weights; start it with --model "
        f"{locate(roles.settings.name)}"
    )


@torch.no_grad()
def difference(
    roles: "Roles",
    queries: Sequence[Sequence[int]],
    responses: Sequence[Response],
    temperature: float,
) -> float:
    """Return by how much reported log-probabilities differ from the policy's own.

    Args:
        roles: the actor's are the own.
        queries: token ids of each.
        responses: one each, with log-probabilities.
        temperature: that they were sampled at.

    Returns:
        Mean absolute difference per token, nats.
    """
    total, count = 0.0, 0
    with roles.sampling() as actor:
        for query, response in zip(queries, responses, strict=True):
            ids = torch.tensor([[*query, *response.ids]], device=roles.device)
            logits = actor(input_ids=ids).logits[0, len(query) - 1 : -1].float()
            tokens = ids[0, len(query) :, None]
            own = torch.log_softmax(logits / temperature, -1).gather(-1, tokens)[:, 0].cpu()
            total += float((own - torch.tensor(response.logprobs)).abs().sum())
            count += len(response.ids)
    return total / count


def _same(root: str, policy: str) -> bool:
    if root == policy:
        return True
    place = Path(locate(policy))
    return place.exists() and Path(root).exists() and place.resolve() == Path(root).resolve()

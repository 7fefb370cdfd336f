"""vLLM on GPUs through TRL: all weights sent by NCCL, or vLLM in the training process itself."""

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ppo.vllm_backend import POLL_SECONDS, check_weights
from ppo.vllm_config import VLLMSettings
from workbench.errors import UserError
from workbench.files import write_text
from workbench.generation import Response, SamplingSettings
from workbench.logs import is_main_process
from workbench.models import load_tokenizer

if TYPE_CHECKING:
    from ppo.roles import Roles

MARK = "sent"  # file with the start of the run and the version that was sent last in it


class SentWeights:
    """All weights, sent from the main process's GPU to a server's by NCCL (TRL's `VLLMClient`).

    The server answers under one name whatever it was sent; that it has the right weights is seen
    from its log-probabilities.
    """

    def __init__(
        self,
        settings: VLLMSettings,
        roles: "Roles",
        name: str,
        folder: Path,
        start: str,
        client: Any = None,
    ) -> None:
        """Meet the server, on the main process.

        Args:
            settings: of vLLM.
            roles: the actor's weights are sent.
            name: the server's for its model.
            folder: that all training processes see.
            start: of the run, called by a name never used before and the same on all processes:
                what was sent before it may be gone from the server.
            client: a `VLLMClient`; None makes one.

        Raises:
            UserError: when the server refuses.
        """
        self.settings, self.roles, self.name = settings, roles, name
        self.mark = Path(settings.folder or folder).resolve() / MARK
        self.start, self.sent = start, ""
        self._lock = threading.Lock()
        self.client = client
        if client is None and is_main_process():
            self.client = _met(settings, roles.device)

    def version(self) -> str:
        """Return a name made from sums over each weight, which differ as soon as one changes."""
        sums = []
        for weight in self.roles.actor.parameters():
            sums.append(weight.detach().sum(dtype=torch.float64))
            sums.append(torch.linalg.vector_norm(weight.detach(), dtype=torch.float64))
        return f"weights-{hash(tuple(torch.stack(sums).tolist())) & (2**64 - 1):016x}"

    def send(self, version: str) -> str:
        """Send the weights where they are others than the last; other processes wait for it.

        Raises:
            UserError: when the policy has moved on from this version, or the wait was too long.
        """
        if self.sent == version:
            return self.name
        if is_main_process():
            if self.version() != version:  # never other weights under its name
                raise UserError(
                    f"{self.settings.url}: was sent other weights than {version}, which the policy "
                    "has no more"
                )
            self.client.update_model_params(self.roles.actor)
            # It holds what the old weights made of prompts.
            self.client.reset_prefix_cache()
            write_text(self.mark, f"{self.start} {version}")
        else:
            self._wait(version)
        self.sent = version
        return self.name

    def held(self) -> AbstractContextManager[object]:
        """Return what one thread holds at a time: the server has a single place for weights."""
        return self._lock

    def _wait(self, version: str) -> None:
        until = time.monotonic() + self.settings.timeout
        wanted = f"{self.start} {version}"
        while not self.mark.is_file() or self.mark.read_text("utf-8") != wanted:
            if time.monotonic() > until:
                raise UserError(
                    f"{self.mark}: the main process has not sent {version} within "
                    f"rollout.vllm.timeout={self.settings.timeout:g} s; all processes must see "
                    "this folder (rollout.vllm.folder)"
                )
            time.sleep(POLL_SECONDS)


class ColocatedBackend:
    """vLLM in the training process, on its GPU (TRL's `VLLMGeneration`).

    Its answers depend on what it has drawn before, so a resumed run does not repeat them.
    """

    def __init__(
        self, settings: VLLMSettings, roles: "Roles", stop_token_id: int, generation: Any = None
    ) -> None:
        """Prepare; vLLM starts with the first rollout, which says how long answers may become.

        Args:
            settings: of vLLM.
            roles: the actor's weights are its own.
            stop_token_id: ends an answer; a negative one lets every answer go on to its end.
            generation: a `VLLMGeneration`; None makes one.

        Raises:
            UserError: where CUDA or vLLM is missing.
        """
        if generation is None:
            need_gpu("rollout.vllm.mode=colocate")
        self.settings, self.roles, self.stop_token_id = settings, roles, stop_token_id
        self.generation = generation

    def sample(
        self,
        queries: Sequence[Sequence[int]],
        settings: SamplingSettings,
        seed: int,  # noqa: ARG002 - one seed for all would give equal prompts equal answers
    ) -> list[Response]:
        """Sample one response per query, with log-probabilities; see `Backend`.

        Raises:
            UserError: when vLLM turns out to have other weights.
        """
        if self.generation is None:
            self.generation = _colocated(self.settings, self.roles, self.stop_token_id)
        self.generation.temperature = settings.temperature
        self.generation.max_completion_length = settings.max_new_tokens
        with self.roles.sampling():
            self.generation.sync_weights()
        _, answers, logprobs, _ = self.generation.generate([list(q) for q in queries], None, 1)
        if any(row[0] is None for rows in logprobs for row in rows):
            raise UserError("rollout.vllm.mode=colocate: vLLM gave log-probabilities that are NaN")
        responses = [
            Response(list(ids), ids[-1] == self.stop_token_id, [row[0] for row in rows])
            for ids, rows in zip(answers, logprobs, strict=True)
        ]
        check_weights(self.settings, self.roles, queries, responses, settings.temperature)
        return responses


def need_gpu(what: str) -> None:
    """Check that vLLM and a GPU are here.

    Raises:
        UserError: names the setting that needs them.
    """
    from trl.import_utils import is_vllm_available

    other = (
        "or use model.layout=lora with rollout.vllm.mode=server and rollout.vllm.weights=lora, "
        "which needs neither"
    )
    if not torch.cuda.is_available():
        raise UserError(f"{what}: needs a GPU with CUDA, and here is none; get one, {other}")
    if not is_vllm_available():
        raise UserError(f"{what}: needs vLLM in this environment; pip install 'trl[vllm]', {other}")


def _met(settings: VLLMSettings, device: torch.device) -> Any:
    """Return a client that the server has met, with a way for weights between them."""
    from trl.generation.vllm_client import VLLMClient

    try:
        client = VLLMClient(
            base_url=settings.url.removesuffix("/").removesuffix("/v1"),
            group_port=settings.group_port,
            connection_timeout=settings.timeout,
        )
        client.init_communicator(device=device)
    except (ConnectionError, RuntimeError, OSError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"{settings.url}: rollout.vllm.weights=nccl: {first}") from None
    return client


def _colocated(settings: VLLMSettings, roles: "Roles", stop_token_id: int) -> Any:
    from accelerate import Accelerator
    from trl.generation import VLLMGeneration

    stops = [] if stop_token_id < 0 else [stop_token_id]
    return VLLMGeneration(
        model=roles.actor,
        accelerator=Accelerator(),
        processing_class=load_tokenizer(roles.settings.name, roles.settings),
        mode="colocate",
        gpu_memory_utilization=settings.gpu_memory,
        trust_remote_code=roles.settings.trust_remote_code,
        logprobs=0,
        generation_kwargs={"stop_token_ids": stops, "ignore_eos": True},
    )

"""Backends: what samples a rollout's answers, behind one function.

Another engine, in this process or behind a server, joins by a class with `sample` and a name in
`rollout.backend`; nothing else knows how answers come about.
"""

import copy
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ppo.vllm_backend import AdapterFiles, VLLMBackend, served_policy
from ppo.vllm_gpu import ColocatedBackend, SentWeights, need_gpu
from ppo.vllm_server import VLLMServer
from workbench.decoder import FAMILIES
from workbench.errors import UserError
from workbench.generation import Response, SamplingSettings, generate
from workbench.logs import console
from workbench.processes import asked, of_main

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from ppo.ahead import Later
    from ppo.config import RolloutSettings
    from ppo.roles import Roles
    from ppo.vllm_config import VLLMSettings


class Backend(Protocol):
    """Samples answers from the policy's own distribution, as its weights are at the call."""

    def sample(
        self, queries: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
    ) -> list[Response]:
        """Sample one response per query, in their order.

        Args:
            queries: token ids of each query.
            settings: length, temperature and batch size; nothing else may shape the distribution.
            seed: the same one gives the same answers again, so that a resumed run repeats itself.
        """
        ...


class NativeBackend:
    """The own decode loop (`workbench/generation.py`)."""

    def __init__(self, roles: "Roles", stop_token_id: int, *, logprobs: bool = False) -> None:
        self.roles, self.stop_token_id, self.logprobs = roles, stop_token_id, logprobs
        self._copy: PreTrainedModel | None = None

    def sample(
        self, queries: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
    ) -> list[Response]:
        """Sample one response per query; see `Backend`."""
        # What the shared lower layers make of the tokens is what roles read and learn from.
        with self.roles.sampling() as actor:
            return self._answers(actor, queries, settings, seed, self.roles.depth)

    def later(
        self, queries: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
    ) -> "Later":
        """Return a call that samples by the weights of now, while these are trained on.

        It takes a copy of the actor, in its type: memory for one more model.
        """
        with self.roles.sampling() as actor, torch.no_grad():
            if self._copy is None:
                self._copy = copy.deepcopy(actor)
            for own, new in zip(self._copy.parameters(), actor.parameters(), strict=True):
                own.copy_(new)
        return partial(self._answers, self._copy, queries, settings, seed)

    def _answers(
        self,
        actor: "PreTrainedModel",
        queries: Sequence[Sequence[int]],
        settings: SamplingSettings,
        seed: int,
        keep_depth: int = 0,
    ) -> list[Response]:
        return generate(
            actor,
            queries,
            settings,
            eos_token_id=self.stop_token_id,
            seed=seed,
            logprobs=self.logprobs,
            keep_depth=keep_depth,
        )


class TransformersBackend:
    """`generate` of transformers: any model it can decode, several times slower."""

    def __init__(self, roles: "Roles", stop_token_id: int) -> None:
        self.roles, self.stop_token_id = roles, stop_token_id

    def sample(
        self, queries: Sequence[Sequence[int]], settings: SamplingSettings, seed: int
    ) -> list[Response]:
        """Sample one response per query; see `Backend`."""
        config = generation_config(settings, self.stop_token_id)
        # The longest first, so that memory trouble shows at once; like lengths waste no padding.
        order = sorted(range(len(queries)), key=lambda i: -len(queries[i]))
        found: dict[int, Response] = {}
        with (
            self.roles.sampling() as model,
            _only(model, config),
            _seeded(seed, model.device),
        ):
            for start in range(0, len(order), settings.batch_size):
                chunk = order[start : start + settings.batch_size]
                answers = _answers(model, [queries[i] for i in chunk], config)
                found.update(zip(chunk, map(self._response, answers), strict=True))
        return [found[i] for i in range(len(queries))]

    def _response(self, ids: list[int]) -> Response:
        """Cut what was written after the end of an answer while others went on."""
        if self.stop_token_id not in ids:
            return Response(ids, finished=False)
        return Response(ids[: ids.index(self.stop_token_id) + 1], finished=True)


def make_backend(
    settings: "RolloutSettings", roles: "Roles", stop_token_id: int, folder: Path = Path("vllm")
) -> Backend:
    """Return the backend `rollout.backend` names; where it is another one, a message says why.

    Args:
        settings: of the rollout.
        roles: the models; the actor is what samples.
        stop_token_id: ends an answer; a negative one lets every answer go on to its full length.
        folder: for what a server reads.

    Raises:
        UserError: for a vLLM that is not there, has another model, or could not sample ahead.
    """
    if settings.backend == "vllm":
        if asked() > 1 and settings.vllm.weights == "nccl" and settings.overlap:
            raise UserError(
                "rollout.overlap=true: on several processes one would send vLLM new weights while "
                "another is still answered by the old ones (rollout.vllm.weights=nccl); set it to "
                "false, or use model.layout=lora with rollout.vllm.weights=lora"
            )
        return make_vllm(settings.vllm, roles, stop_token_id, folder)
    if settings.backend == "native":
        reason = not_native(roles.actor)
        if reason is None:
            return NativeBackend(roles, stop_token_id, logprobs=settings.overlap)
        console.print(
            f"ppo: {roles.settings.name} {reason}: its answers are sampled by transformers' "
            "generate, which is slower (rollout.backend=transformers)",
            markup=False,
        )
    return TransformersBackend(roles, stop_token_id)


def make_vllm(
    settings: "VLLMSettings", roles: "Roles", stop_token_id: int, folder: Path
) -> VLLMBackend | ColocatedBackend:
    """Return the backend that the settings describe.

    Args:
        settings: of vLLM.
        roles: the models.
        stop_token_id: ends an answer.
        folder: for adapters, where the settings name none.

    Raises:
        UserError: for a server that does not answer or has no such model, and where CUDA or vLLM
            is needed and missing.
    """
    if roles.shards is not None:
        raise UserError(
            "rollout.backend=vllm: takes weights that every process has whole, and here they are "
            "split over processes; use rollout.backend=native, or launch without FSDP"
        )
    if settings.mode == "colocate":
        return ColocatedBackend(settings, roles, stop_token_id)
    if settings.weights == "nccl":
        need_gpu("rollout.vllm.weights=nccl")
    server = VLLMServer(settings.url, timeout=settings.timeout, tries=settings.tries)
    served = served_policy(server, settings, roles.settings.name)
    weights = (
        AdapterFiles(settings, roles, server, folder)
        if settings.weights == "lora"
        else SentWeights(settings, roles, served.name, folder, of_main(secrets.token_hex(8)))
    )
    return VLLMBackend(settings, roles, stop_token_id, server, served, weights)


def not_native(model: "PreTrainedModel") -> str | None:
    """Return why the own decode loop does not take a model, or None where it does."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"is a {config.model_type} model, which native decoding is not tested for"
    kinds = config.to_dict().get("layer_types") or []
    other = sorted({str(kind) for kind in kinds} - {"full_attention"})
    if other:
        return f"has layers of {' and '.join(other)}, which native decoding is not tested for"
    return None


def generation_config(settings: SamplingSettings, stop_token_id: int) -> "GenerationConfig":
    """Return settings for `generate` that leave nothing to the model's or the library's defaults.

    The library's top-k is 50 where none is given.
    """
    from transformers import GenerationConfig

    stop = None if stop_token_id < 0 else stop_token_id
    greedy = settings.temperature == 0
    drawn: dict[str, Any] = (
        {"do_sample": False}
        if greedy
        else {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    )
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=stop,
        pad_token_id=stop if stop is not None else 0,
        bos_token_id=None,
        use_cache=True,
        **drawn,
    )


@torch.no_grad()
def _answers(
    model: "PreTrainedModel", queries: Sequence[Sequence[int]], config: "GenerationConfig"
) -> list[list[int]]:
    width = max(map(len, queries))
    ids = [[0] * (width - len(query)) + list(query) for query in queries]
    mask = [[0] * (width - len(query)) + [1] * len(query) for query in queries]
    written: Any = model.generate(
        input_ids=torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        generation_config=config,
    )
    answers: list[list[int]] = written[:, width:].tolist()
    return answers


@contextmanager
def _only(model: "PreTrainedModel", config: "GenerationConfig") -> Iterator[None]:
    """Make `config` the model's own in the block.

    `generate` fills whatever is None with the model's own settings, and what is meant to be None
    (no token ends an answer, none is suppressed) would come from there.
    """
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, which `generate` draws from, and give them back as they were."""
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)
        yield

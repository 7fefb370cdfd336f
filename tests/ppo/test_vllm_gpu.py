"""vLLM on GPUs: refused where there is none, and asked as TRL's own classes are to be asked.

Neither has been run: stand-ins take the calls, whose arguments are checked against TRL's.
"""

import inspect
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from trl import import_utils
from trl.generation import vllm_client, vllm_generation

from ppo import vllm_gpu
from ppo.backends import make_backend
from ppo.vllm_config import VLLMSettings
from ppo.vllm_gpu import ColocatedBackend, SentWeights, need_gpu
from tests.ppo.test_backends import EOS, QUERY, roles_of, small
from workbench.errors import UserError
from workbench.generation import Response, SamplingSettings, generate

QUERIES = [QUERY, QUERY[:2]] * 3


class StandIn:
    """Takes calls that the real class would take, and keeps them.

    Whatever is called must be one of its methods, with arguments that fit.
    """

    def __init__(self, kind, **answers):
        self.kind, self.answers, self.calls = kind, answers, []

    def __getattr__(self, name):
        def call(*given, **named):
            inspect.signature(getattr(self.kind, name)).bind(self, *given, **named)
            self.calls.append(name)
            return self.answers.get(name, lambda *_, **__: None)(*given, **named)

        return call


@pytest.fixture
def roles():
    found = roles_of(small("llama"))
    found.device, found.shards = torch.device("cpu"), None
    found.sampling = lambda: nullcontext(found.actor)
    return found


def told(model, settings, wrong=0.0):
    """What `VLLMGeneration.generate` returns for a model."""

    def answer(prompts, images, count):
        assert (images, count) == (None, 1)
        said = generate(model, prompts, settings, eos_token_id=EOS, seed=3)
        rows = []
        for query, response in zip(prompts, said, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([query + response.ids])).logits[0]
            chances = torch.log_softmax(logits[len(query) - 1 : -1] / settings.temperature, -1)
            tokens = torch.tensor(response.ids)[:, None]
            rows.append([[float(p) + wrong] for p in chances.gather(-1, tokens)])
        ids = [response.ids for response in said]
        return prompts, ids, rows, [[[token] for token in row] for row in ids]

    return answer


@pytest.mark.parametrize("given", [{"mode": "colocate"}, {"weights": "nccl"}])
def test_without_a_gpu_it_is_refused_in_one_line(roles, given, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = SimpleNamespace(backend="vllm", vllm=VLLMSettings(**given))
    with pytest.raises(UserError, match="needs a GPU with CUDA, and here is none") as caught:
        make_backend(settings, roles, EOS)
    assert "\n" not in str(caught.value)
    assert "rollout.vllm.weights=lora" in str(caught.value)


def test_without_vllm_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(import_utils, "is_vllm_available", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'trl\[vllm\]'") as caught:
        need_gpu("rollout.vllm.mode=colocate")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_colocated_vllm_gets_the_weights_and_answers(roles, temperature):
    settings = SamplingSettings(6, temperature, 64)
    generation = StandIn(vllm_generation.VLLMGeneration, generate=told(roles.actor, settings))
    backend = ColocatedBackend(VLLMSettings(mode="colocate"), roles, EOS, generation)
    answers = backend.sample(QUERIES, settings, 0)
    assert generation.calls == ["sync_weights", "generate"]
    assert (generation.temperature, generation.max_completion_length) == (temperature, 6)
    for answer in answers:
        assert isinstance(answer, Response)
        assert answer.finished == (answer.ids[-1] == EOS)
        assert len(answer.logprobs) == len(answer.ids)


def test_a_colocated_vllm_with_other_weights_is_refused(roles):
    settings = SamplingSettings(6, 1.0, 64)
    generation = StandIn(
        vllm_generation.VLLMGeneration, generate=told(roles.actor, settings, wrong=-0.5)
    )
    backend = ColocatedBackend(VLLMSettings(mode="colocate"), roles, EOS, generation)
    with pytest.raises(UserError, match=r"mode=colocate: its log-prob.* by 0.500 nats"):
        backend.sample(QUERIES, settings, 0)


def test_it_is_built_as_trl_wants_it(roles, monkeypatch):
    made = {}

    def build(**given):
        inspect.signature(vllm_generation.VLLMGeneration.__init__).bind(None, **given)
        made.update(given)

    monkeypatch.setattr("trl.generation.VLLMGeneration", build, raising=False)
    monkeypatch.setattr(vllm_gpu, "load_tokenizer", lambda *given: "tokenizer")
    roles.settings.trust_remote_code = False
    vllm_gpu._colocated(VLLMSettings(mode="colocate", gpu_memory=0.4), roles, EOS)
    assert made["model"] is roles.actor
    assert made["gpu_memory_utilization"] == 0.4
    assert made["generation_kwargs"] == {"stop_token_ids": [EOS], "ignore_eos": True}
    # Else they would be those before the temperature; TRL sets it, and no argument does.
    assert 'logprobs_mode="processed_logprobs"' in inspect.getsource(vllm_generation)


def test_weights_are_sent_when_they_changed_and_caches_dropped(roles, tmp_path, monkeypatch):
    client = StandIn(vllm_client.VLLMClient)
    settings = VLLMSettings(weights="nccl")
    weights = SentWeights(settings, roles, "policy", tmp_path, client)
    first = weights.version()
    assert weights.send(first) == "policy"
    assert weights.send(weights.version()) == "policy"
    assert client.calls == ["update_model_params", "reset_prefix_cache"]
    with torch.no_grad():
        roles.actor.get_output_embeddings().weight[1, 2] += 1e-3
    second = weights.version()
    assert second != first
    weights.send(second)
    assert client.calls == ["update_model_params", "reset_prefix_cache"] * 2
    # Other processes send nothing; they wait until the main one has.
    other = SentWeights(settings, roles, "policy", tmp_path, StandIn(vllm_client.VLLMClient))
    monkeypatch.setattr(vllm_gpu, "is_main_process", lambda: False)
    assert other.send(second) == "policy"
    settings.timeout = 0.1
    with pytest.raises(UserError, match="has not sent weights-none within"):
        other.send("weights-none")
    assert other.client.calls == []


def test_the_client_is_met_as_trl_wants_it(monkeypatch):
    made, kind = [], vllm_client.VLLMClient

    def build(**given):
        inspect.signature(kind.__init__).bind(None, **given)
        made.append(given)
        return StandIn(kind)

    monkeypatch.setattr(vllm_client, "VLLMClient", build)
    settings = VLLMSettings(url="http://10.0.0.1:8000/v1/", timeout=5)
    client = vllm_gpu._met(settings, torch.device("cpu"))
    assert made == [
        {"base_url": "http://10.0.0.1:8000", "group_port": 51216, "connection_timeout": 5}
    ]
    assert client.calls == ["init_communicator"]

    def refuse(**given):
        raise ConnectionError("The vLLM server can't be reached\nand more")

    monkeypatch.setattr(vllm_client, "VLLMClient", refuse)
    with pytest.raises(UserError, match=r"weights=nccl: The vLLM server can't be reached$"):
        vllm_gpu._met(settings, torch.device("cpu"))

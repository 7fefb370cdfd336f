"""vLLM on GPUs: refused where there is none, and asked as TRL's own classes are to be asked.

Neither has been run: stand-ins take the calls, whose arguments are checked against TRL's.
"""

import inspect
import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from trl import import_utils
from trl.generation import vllm_client, vllm_generation

from ppo import backends, vllm_gpu
from ppo.backends import make_backend
from ppo.vllm_backend import VLLMBackend
from ppo.vllm_config import VLLMSettings
from ppo.vllm_gpu import ColocatedBackend, SentWeights, need_gpu
from ppo.vllm_server import ServedPolicy
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
    weights = SentWeights(settings, roles, "policy", tmp_path, "start", client)
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
    mute = StandIn(vllm_client.VLLMClient)
    other = SentWeights(settings, roles, "policy", tmp_path, "start", mute)
    monkeypatch.setattr(vllm_gpu, "is_main_process", lambda: False)
    assert other.send(second) == "policy"
    settings.timeout = 0.1
    with pytest.raises(UserError, match="has not sent weights-none within"):
        other.send("weights-none")
    assert other.client.calls == []


def test_what_was_sent_before_a_run_was_started_anew_is_not_taken_for_sent(
    roles, tmp_path, monkeypatch
):
    client = StandIn(vllm_client.VLLMClient)
    settings = VLLMSettings(weights="nccl", timeout=0.1)
    before = SentWeights(settings, roles, "policy", tmp_path, "first start", client)
    version = before.version()
    before.send(version)
    main, other = (
        SentWeights(settings, roles, "policy", tmp_path, "second start", client) for _ in range(2)
    )
    monkeypatch.setattr(vllm_gpu, "is_main_process", lambda: False)
    with pytest.raises(UserError, match=f"has not sent {version} within"):
        other.send(version)
    monkeypatch.setattr(vllm_gpu, "is_main_process", lambda: True)
    main.send(version)
    monkeypatch.setattr(vllm_gpu, "is_main_process", lambda: False)
    assert other.send(version) == "policy"
    assert client.calls == ["update_model_params", "reset_prefix_cache"] * 2


def test_each_start_has_a_name_of_its_own_on_which_all_processes_agree(
    roles, tmp_path, monkeypatch
):
    given = SimpleNamespace(
        backend="vllm", overlap=False, vllm=VLLMSettings(weights="nccl", folder=str(tmp_path))
    )
    monkeypatch.setattr(backends, "need_gpu", lambda what: None)
    monkeypatch.setattr(backends, "served_policy", lambda *_: ServedPolicy("policy", None, None))
    monkeypatch.setattr(vllm_gpu, "_met", lambda *_: None)
    starts = [make_backend(given, roles, EOS).weights.start for _ in range(2)]
    assert len(set(starts)) == 2
    monkeypatch.setattr(backends, "of_main", lambda value: f"main's, not {len(value) * '*'}")
    assert make_backend(given, roles, EOS).weights.start.startswith("main's, not *")


def nccl_backend(roles, tmp_path, answer):
    """A backend with stand-ins for the ways to the server: `answer` takes the place of `sample`."""
    settings = VLLMSettings(weights="nccl")
    client = StandIn(vllm_client.VLLMClient)
    weights = SentWeights(settings, roles, "policy", tmp_path, "start", client)
    server, served = SimpleNamespace(sample=answer), ServedPolicy("policy", None, None)
    return VLLMBackend(settings, roles, EOS, server, served, weights)


def test_weights_are_not_sent_while_a_batch_by_others_is_under_way(roles, tmp_path, monkeypatch):
    begun, goes_on, asked = threading.Event(), threading.Event(), []

    def answer(name, queries, settings, seed, stop):
        asked.append(weights.sent)
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            goes_on.wait(60)
            asked.append(weights.sent)
        return generate(roles.actor, queries, settings, eos_token_id=EOS, seed=seed, logprobs=True)

    @contextmanager
    def watched():
        if lock.locked():
            goes_on.set()  # the next one has come, and waits
        with lock:
            yield

    backend = nccl_backend(roles, tmp_path, answer)
    weights, settings = backend.weights, SamplingSettings(6, 1.0, 64)
    lock = weights.held()
    monkeypatch.setattr(weights, "held", watched)
    first = weights.version()
    thread = threading.Thread(target=backend.later(QUERIES, settings, 0))
    thread.start()
    assert begun.wait(60)
    weights.client.answers["update_model_params"] = lambda *_: goes_on.set()
    with torch.no_grad():
        roles.actor.get_output_embeddings().weight[1, 2] += 1.0
    second = weights.version()
    backend.sample(QUERIES, settings, 0)
    thread.join(60)
    assert asked == [first, first, first, second]


def test_other_weights_are_never_sent_under_an_older_version_s_name(roles, tmp_path):
    def answer(name, queries, settings, seed, stop):
        return generate(roles.actor, queries, settings, eos_token_id=EOS, seed=seed, logprobs=True)

    backend = nccl_backend(roles, tmp_path, answer)
    settings = SamplingSettings(6, 1.0, 64)
    later = backend.later(QUERIES, settings, 0)
    with torch.no_grad():
        roles.actor.get_output_embeddings().weight[1, 2] += 1.0
    backend.sample(QUERIES, settings, 0)
    with pytest.raises(UserError, match="was sent other weights than weights-"):
        later()  # it comes late: the server has the new ones by now
    assert len(backend.weights.client.calls) == 4


def test_sampling_ahead_on_several_processes_is_refused(roles, monkeypatch):
    given = SimpleNamespace(backend="vllm", overlap=True, vllm=VLLMSettings(weights="nccl"))
    monkeypatch.setattr(backends, "asked", lambda: 2)
    with pytest.raises(UserError, match=r"rollout\.overlap=true: on several processes") as caught:
        make_backend(given, roles, EOS)
    assert "\n" not in str(caught.value)
    for overlap, weights, processes in (
        (False, "nccl", 2),
        (True, "nccl", 1),
        (True, "lora", 2),
    ):
        given.overlap, given.vllm.weights = overlap, weights
        monkeypatch.setattr(backends, "asked", lambda count=processes: count)
        monkeypatch.setattr(backends, "make_vllm", lambda *_: "made")
        assert make_backend(given, roles, EOS) == "made"


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

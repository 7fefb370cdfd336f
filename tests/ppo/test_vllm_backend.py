"""Rollouts by a server: the policy's own by version, and a clear end where they are not."""

import json
import shutil
import threading

import pytest
import torch

from ppo import checkpoint
from ppo.backends import make_backend
from ppo.vllm_backend import AdapterFiles, VLLMBackend, difference
from ppo.vllm_server import VLLMServer
from tests.ppo.test_lora import reward_adapter
from tests.ppo.vllm_double import vllm_double
from workbench.errors import UserError
from workbench.generation import SamplingSettings

COMPLETIONS, LOAD = "/v1/completions", "/v1/load_lora_adapter"
SAMPLED = SamplingSettings(6, 1.0, 4)


pytestmark = pytest.mark.usefixtures("waits")


@pytest.fixture
def server(llama):
    with vllm_double(llama.policy) as running:
        yield running


@pytest.fixture
def made(llama, trainer, server, tmp_path):
    """A function from overrides to an engine in layout lora that rolls out by the server."""

    def make(*given, run="run.name=served"):
        reward = f"reward_model={reward_adapter(llama.policy, tmp_path / 'reward')}"
        return trainer(
            llama, "model.layout=lora", reward, "rollout.backend=vllm", "rollout.vllm.tries=3",
            f"rollout.vllm.url={server.address}", "rollout.vllm.max_difference=1e-3", run, *given,
        )  # fmt: skip

    return make


def queries_of(engine):
    return [query.ids for query in engine.held_out]


def moved(engine, seed=4, scale=0.3):
    """Change the policy's adapter."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in engine.roles.trained.named_parameters():
            if weight.requires_grad and name.startswith("policy"):
                weight.add_(scale * torch.randn(weight.shape, generator=draw))


def refusal(what):
    with pytest.raises(UserError) as caught:
        what()
    message = str(caught.value)
    assert "\n" not in message
    return message


def answering(trouble):
    """Make trouble with answers to prompts only."""
    return lambda path, body, number: trouble(body, number) if path == COMPLETIONS else None


# --- an update


def test_an_update_learns_from_answers_of_the_server(made, server):
    engine = made()
    assert isinstance(engine.backend, VLLMBackend)
    metrics = engine.step()
    assert metrics["importance/logprob_difference_max"] < 1e-4
    assert metrics["importance/weight"] == pytest.approx(1, abs=1e-5)
    assert metrics["importance/truncated"] == 0
    assert metrics["val/ratio_first_minibatch"] == pytest.approx(1, abs=1e-6)
    assert abs(metrics["objective/kl"]) < 1e-6
    engine.step()
    engine.step()
    asked = [body["model"] for body in server.bodies(COMPLETIONS)]
    first, second, third = asked[::8]
    assert len({first, second, third}) == 3
    assert asked == [first] * 8 + [second] * 8 + [third] * 8
    # The last but one may still be asked ahead; older ones are gone, on the disk as well.
    assert server.names() == [second, third]
    folders = {path.name for path in (engine.run.path / "vllm").iterdir()}
    assert folders == {second, third}


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_that_was_killed_leaves_no_adapters_behind(made, server, tmp_path, shared):
    """Nor does it touch those of another run on the same server, in the same folder or not."""
    where = [f"rollout.vllm.folder={tmp_path / 'shared'}"] if shared else []
    other = made(*where, run="run.name=other")
    moved(other, 1)
    queries = queries_of(other)
    other.backend.sample(queries, SAMPLED, 0)
    (theirs,) = server.names()
    killed = made(*where)
    for _ in range(3):
        killed.step()
    old, newest = server.names()[1:]
    again, folder = made(*where), killed.backend.weights.folder
    expected = {theirs, newest}
    for seed in (2, 3):
        moved(again, seed)
        again.backend.sample(queries, SAMPLED, 0)
        expected.add(again.backend.weights.version())
        assert set(server.names()) == expected
        found = {path.name for path in folder.iterdir()}
        assert found == expected - (set() if shared else {theirs})
        expected.discard(newest)
    assert old not in expected
    assert (other.backend.weights.folder / theirs).is_dir()


def test_the_policy_as_it_is_now_is_sampled(made, server):
    engine = made()
    queries = queries_of(engine)
    before = engine.backend.sample(queries, SAMPLED, 0)
    assert engine.backend.sample(queries, SAMPLED, 0) == before
    moved(engine)
    after = engine.backend.sample(queries, SAMPLED, 0)
    assert [a.ids for a in after] != [b.ids for b in before]
    assert difference(engine.roles, queries, after, 1.0) < 1e-5
    assert difference(engine.roles, queries, before, 1.0) > 1e-2


def test_a_version_is_named_after_its_run_and_weights_alone(made):
    engine = made()
    weights = engine.backend.weights
    first = weights.version()
    moved(engine, 1)
    second = weights.version()
    with torch.no_grad():  # the value's adapter is none of the policy's
        for name, weight in engine.roles.trained.named_parameters():
            if name.startswith("value"):
                weight.add_(1.0)
    assert weights.version() == second != first
    # Another run with equal weights would drop them when it has moved on.
    assert made(run="run.name=another").backend.weights.version() != first


def test_answers_do_not_depend_on_what_else_is_asked(made):
    engine = made()
    queries = queries_of(engine) * 3
    answers = engine.backend.sample(queries, SamplingSettings(6, 1.0, 1), 5)
    assert engine.backend.sample(queries, SamplingSettings(6, 1.0, 12), 5) == answers
    assert engine.backend.sample(queries, SAMPLED, 6) != answers
    # Equal prompts have seeds of their own.
    assert len({tuple(a.ids) for a in answers[:: len(engine.held_out)]}) > 1
    assert engine.backend.sample([], SAMPLED, 0) == []


def test_evaluations_and_a_whole_run(made, server):
    engine = made("ppo.eval_every=1")
    engine.train()
    rows = [json.loads(line) for line in (engine.run.path / "metrics.jsonl").open()]
    assert sum("eval/scores" in row for row in rows) == 4
    assert sum("importance/kl" in row for row in rows) == 3


def test_a_resumed_run_equals_the_uninterrupted_one(made):
    whole = made("ppo.save_every=2", run="run.name=whole")
    whole.train()
    again = made("ppo.save_every=2", run="run.name=whole")  # from its checkpoint, after 2 of 3
    again.train()
    assert again.global_step == 3
    a, b = (dict(engine.roles.trained.named_parameters()) for engine in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


# --- temperature


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_at_the_temperature(made, temperature):
    engine = made(f"rollout.temperature={temperature}")
    metrics = engine.step()
    assert metrics["importance/logprob_difference_max"] < 1e-4


def test_raw_log_probabilities_are_seen_and_named(made, server):
    server.raw = True
    engine = made("rollout.temperature=0.7")
    message = refusal(engine.step)
    assert "--logprobs-mode processed_logprobs" in message
    assert "temperature of 0.7" in message
    made(run="run.name=one").step()  # at 1 they are the same


# --- other weights


def test_another_model_is_refused(made, server, other_pad, tiny_llama, capsys):
    server.root = tiny_llama  # the same sizes without the head that ends answers
    message = refusal(made().step)
    assert "differ from the policy's by" in message
    assert "so it has other weights; start it with --model" in message
    assert f"was started with {tiny_llama}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["stubborn", "deaf"])
def test_old_weights_under_a_new_name_are_refused(made, server, kind):
    engine = made()
    engine.step()
    setattr(server, kind, True)
    if kind == "stubborn":
        server.first = server.loaded[server.names()[0]]
    moved(engine)
    assert "so it has other weights" in refusal(engine.step)


def test_old_weights_are_refused_before_they_sample_ahead(made, server):
    engine = made()
    engine.step()
    server.stubborn, server.first = True, server.loaded[server.names()[0]]
    moved(engine)
    ids = [query.ids for query in engine.next_queries(1)]
    message = refusal(lambda: engine.backend.later(ids, engine.config.rollout, 0))
    assert "so it has other weights" in message


def test_what_is_sampled_ahead_comes_by_the_weights_of_then(made, server):
    engine = made()
    ids = [query.ids for query in engine.next_queries(0)]
    then = engine.backend.sample(ids, engine.config.rollout, 0)
    later = engine.backend.later(ids, engine.config.rollout, 0)
    moved(engine)
    assert [row.ids for row in later()] == [row.ids for row in then]


def test_answers_under_another_name_are_asked_for_again_and_refused(made, server, waits):
    engine = made()
    server.change = lambda answer: answer | {"model": "policy-old"}
    message = refusal(engine.step)
    assert "answered with the weights 'policy-old' where 'policy-" in message
    assert "(3 tries)" in message
    assert len(waits) >= 2


def test_a_server_that_was_started_anew_gets_the_weights_again(made, server):
    engine = made()
    engine.step()
    version = engine.backend.weights.version()
    first = [True]

    def once(body, number):
        if first and first.pop():
            server.restart()

    server.trouble = answering(once)
    engine.step()
    assert server.names() == [version]


def test_a_version_that_is_gone_is_never_made_of_other_weights(made, server):
    engine = made()
    weights = engine.backend.weights
    old = weights.send(weights.version())
    moved(engine)
    server.restart()
    assert weights.send(old) == old  # from its folder
    server.restart()
    shutil.rmtree(weights.folder / old)
    assert "is gone, and the policy has other weights" in refusal(lambda: weights.send(old))


def test_a_server_that_keeps_forgetting_is_given_up(made, server):
    engine = made()
    server.trouble = answering(lambda body, number: server.restart())
    assert "loses the weights it was sent (3 tries)" in refusal(engine.step)


# --- trouble in a run


def test_trouble_that_passes_is_waited_for(made, server, waits):
    engine = made("rollout.batch_size=1")
    trouble = [(503, "busy", {}), (None, "", {}), None, (500, "oops", {})]
    server.trouble = answering(lambda body, number: trouble.pop() if trouble else None)
    metrics = engine.step()
    assert metrics["importance/logprob_difference_max"] < 1e-4
    assert len(waits) == 3
    assert trouble == []


def test_a_server_that_dies_leaves_a_checkpoint_and_a_line(made, server, capsys):
    engine = made()
    gone = [False]
    server.trouble = lambda path, body, number: (None, "", {}) if gone[0] else None
    log = engine.run.log

    def after(step, metrics):
        log(step, metrics)
        gone[0] = step == 2

    engine.run.log = after
    message = refusal(engine.train)
    assert server.address in message
    assert "(3 tries)" in message
    assert "the same command goes on from the checkpoint of update 2" in message
    assert checkpoint.newest(engine.run.checkpoints) == 2
    # The server is back: the run goes on and ends as one that never stopped.
    gone[0] = False
    again = made()
    again.train()
    assert again.global_step == 3
    whole = made(run="run.name=whole")
    whole.train()
    a, b = (dict(each.roles.trained.named_parameters()) for each in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_server_that_is_not_there_is_named_before_training(made, server):
    server.trouble = lambda path, body, number: (None, "", {})
    message = refusal(made)
    assert message.startswith(f"{server.address}/models: not reached")


def test_a_slow_answer_is_asked_for_again(made, server):
    engine = made("rollout.vllm.timeout=0.5", "rollout.batch_size=1")
    late, release = [True], threading.Event()
    server.trouble = answering(
        lambda body, number: late and late.pop() and release.wait(60) and None
    )
    engine.step()
    server.trouble = answering(lambda body, number: release.wait(60) and None)
    message = refusal(engine.step)
    release.set()
    assert "no answer within 0.5 s (3 tries)" in message


def test_an_adapter_that_cannot_be_loaded_is_named(made, server):
    engine = made()
    reply = 400, {"error": {"message": "LoRA rank 32 is greater than max_lora_rank 16."}}, {}
    server.trouble = lambda path, body, number: reply if path == LOAD else None
    message = refusal(engine.step)
    assert "LoRA rank 32 is greater than max_lora_rank 16." in message
    assert "--max-lora-rank" in message
    server.trouble = lambda path, body, number: (404, "Not Found", {}) if path == LOAD else None
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in refusal(engine.step)


def test_prompts_that_are_too_long_are_refused_before_they_are_sent(made, server):
    server.longest = 10
    assert "start it with --max-model-len" in refusal(made().step)
    assert server.bodies(COMPLETIONS) == []


# --- settings


def test_layouts_without_an_adapter_are_told_what_to_do(llama, config):
    for layout, extra in (("separate", []), ("shared_trunk", ["model.train_top_layers=1"])):
        message = refusal(
            lambda layout=layout, extra=extra: config(
                llama, "rollout.backend=vllm", f"model.layout={layout}", *extra
            )
        )
        assert "rollout.vllm.weights" in message
        assert f"model.layout={layout} has no adapter to send; use model.layout=lora" in message


def test_sharded_weights_are_refused(made):
    engine = made()
    engine.roles.shards = object()
    message = refusal(lambda: make_backend(engine.config.rollout, engine.roles, 2))
    assert "split over processes; use rollout.backend=native" in message


# --- other processes


def test_another_process_waits_for_the_main_one_s_weights(made, server, monkeypatch):
    engine = made()
    theirs = AdapterFiles(
        engine.config.rollout.vllm, engine.roles,
        VLLMServer(server.address, timeout=30, tries=3), engine.run.path / "vllm",
    )  # fmt: skip
    monkeypatch.setattr("ppo.vllm_backend.is_main_process", lambda: False)
    version, found, asked = theirs.version(), [], threading.Event()
    server.trouble = lambda path, body, number: asked.set()
    thread = threading.Thread(target=lambda: found.append(theirs.send(version)))
    thread.start()
    assert asked.wait(60)  # it looks, and finds nothing yet
    assert found == []
    monkeypatch.setattr("ppo.vllm_backend.is_main_process", lambda: True)
    engine.backend.weights.send(version)
    thread.join(60)
    assert found == [version]
    server.restart()  # the main process has its answers, and will not send them again
    monkeypatch.setattr("ppo.vllm_backend.is_main_process", lambda: False)
    assert theirs.send(version) == version
    assert server.names() == [version]
    engine.config.rollout.vllm.timeout = 0.1
    assert "has not loaded policy-none within" in refusal(lambda: theirs.send("policy-none"))


def test_the_named_backend_is_taken_only_where_it_is_named(made, server):
    engine = made()
    assert isinstance(
        make_backend(engine.config.rollout, engine.roles, 2, engine.run.path), VLLMBackend
    )
    engine.config.rollout.backend = "native"
    assert not isinstance(make_backend(engine.config.rollout, engine.roles, 2), VLLMBackend)

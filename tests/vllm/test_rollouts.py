"""Rollouts by a real vLLM server: skipped where `make vllm` has not built one."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ppo import checkpoint
from ppo.config import PPOStage
from ppo.engine import PPOEngine
from ppo.roles import Roles
from ppo.stage import run
from ppo.vllm_backend import AdapterFiles, VLLMBackend, difference, served_policy
from ppo.vllm_config import VLLMSettings
from ppo.vllm_server import VLLMServer
from tests.ppo.test_backends import p_value
from tests.vllm.server import missing, vllm_server
from tests.workbench.run_folders import rlhf
from workbench.config import load_config
from workbench.errors import UserError
from workbench.generation import SamplingSettings
from workbench.models import load_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

EOS, WORDS = 2, 16
QUERY = [1, 5, 3, 7, 4]
COUNT = 2000
# Float32 on both sides, different kernels; measured: at most 2e-5.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A Llama of 16 words, with heads of a size that vLLM's CPU attention has."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("vllm") / "policy"
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(WORDS - 3))]
    table = Tokenizer(models.WordLevel(dict(zip(words, range(WORDS), strict=True)), "<unk>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=table, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="</s>",
    ).save_pretrained(folder)  # fmt: skip
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.25, bos_token_id=1, eos_token_id=EOS, pad_token_id=EOS,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Settings that ship with a model, each of which would change what is drawn.
    model.generation_config.update(do_sample=True, top_k=2, top_p=0.3, temperature=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(policy, tmp_path_factory):
    with vllm_server(
        policy, tmp_path_factory.mktemp("server"), "--max-model-len", "64",
        "--logprobs-mode", "processed_logprobs",
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
def served(policy, server, tmp_path):
    """A function to a backend and its roles, in layout lora."""

    def make(**given):
        config = load_config(
            PPOStage, None,
            [f"model.name={policy}", "model.layout=lora", "model.precision=fp32",
             "rewards.functions=[a:b]"],
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)  # of the adapter's first weights
            roles = Roles(config.model, None, torch.device("cpu"))
        settings = VLLMSettings(url=server.url, max_difference=CLOSE, **given)
        http = VLLMServer(server.url, timeout=300, tries=3)
        weights = AdapterFiles(settings, roles, http, tmp_path / "adapters")
        found = served_policy(http, settings, str(policy))
        backend = VLLMBackend(settings, roles, EOS, http, found, weights)
        return SimpleNamespace(backend=backend, roles=roles, http=http)

    return make


def move(roles, seed=4, scale=0.1):
    """Change the policy's adapter."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in roles.trained.named_parameters():
            if weight.requires_grad and name.startswith("policy"):
                weight.add_(scale * torch.randn(weight.shape, generator=draw))


@torch.no_grad()
def exact(roles, temperature):
    """Probabilities of [first, second] token from full forward passes; EOS has no second one."""

    def after(ids):
        with roles.sampling():
            logits = roles.actor(input_ids=torch.tensor([ids])).logits[0, -1].double()
        return torch.softmax(logits / temperature, -1).numpy()

    first = after(QUERY)
    joint = np.stack([first[i] * after([*QUERY, i]) for i in range(WORDS)])
    joint[EOS] = 0.0
    joint[EOS, EOS] = first[EOS]
    return joint


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_and_log_probabilities_are_the_policy_s(served, temperature):
    made = served()
    move(made.roles)
    settings = SamplingSettings(2, temperature, 64)
    queries = [QUERY] * COUNT
    answers = made.backend.sample(queries, settings, 1)
    seen = np.zeros((WORDS, WORDS))
    for answer in answers:
        seen[answer.ids[0], answer.ids[-1]] += 1
    joint = exact(made.roles, temperature)
    assert (joint.sum(1) > 0.01).sum() >= 5
    first = joint.sum(1)
    assert p_value(seen.sum(1), first) > 1e-3
    assert p_value(seen, joint) > 1e-3
    # Wrong probabilities would be seen: those of the other temperature.
    other = exact(made.roles, 1.7 - temperature)
    assert p_value(seen, other) < 1e-3
    # What came with the tokens is what they were drawn from.
    for answer in answers[:200]:
        place = joint[answer.ids[0]].sum()
        assert answer.logprobs[0] == pytest.approx(np.log(place), abs=CLOSE)
        if len(answer.ids) == 2:
            second = joint[answer.ids[0], answer.ids[1]] / place
            assert answer.logprobs[1] == pytest.approx(np.log(second), abs=CLOSE)


def test_answers_end_with_the_stop_token_alone_and_repeat_by_seed(served):
    made = served()
    settings = SamplingSettings(30, 1.0, 16)
    queries = [QUERY, QUERY[:2]] * 20
    answers = made.backend.sample(queries, settings, 2**62 + 5)
    assert {answer.finished for answer in answers} == {True, False}
    for answer in answers:
        assert answer.finished == (answer.ids[-1] == EOS)
        assert EOS not in answer.ids[:-1]
        assert answer.finished or len(answer.ids) == 30
    again = made.backend.sample(queries, settings, 2**62 + 5)
    assert [a.ids for a in again] == [a.ids for a in answers]
    assert [a.ids for a in made.backend.sample(queries, settings, 6)] != [a.ids for a in answers]
    assert len({tuple(a.ids) for a in answers[::2]}) > 10  # equal prompts, seeds of their own
    made.backend.stop_token_id = -1
    endless = made.backend.sample(queries[:8], settings, 1)
    assert [len(answer.ids) for answer in endless] == [30] * 8


def test_an_adapter_takes_the_place_of_the_one_before(served):
    made = served()
    settings, queries = SamplingSettings(8, 1.0, 16), [QUERY] * 20
    before = made.backend.sample(queries, settings, 1)
    first = made.backend.weights.loaded[-1]
    move(made.roles)
    after = made.backend.sample(queries, settings, 1)
    second = made.backend.weights.loaded[-1]
    assert [a.ids for a in after] != [b.ids for b in before]
    assert difference(made.roles, queries, after, 1.0) < CLOSE
    assert difference(made.roles, queries, before, 1.0) > 0.1
    names = [row["id"] for row in made.http.models()]
    assert {first, second} <= set(names)
    move(made.roles, 5)
    made.backend.sample(queries, settings, 1)
    names = [row["id"] for row in made.http.models()]
    assert first not in names  # only the last one stays beside the newest
    move(made.roles, 5, -0.1)
    again = made.backend.sample(queries, settings, 1)
    assert [a.ids for a in again] == [a.ids for a in after]
    second = made.backend.weights.loaded[-1]
    made.http.unload(second)  # as after a restart: it is loaded again
    reloaded = made.backend.sample(queries, settings, 1)
    assert [a.ids for a in reloaded] == [a.ids for a in again]


def test_other_weights_than_the_policy_s_are_refused(served):
    made = served()
    with torch.no_grad():
        made.roles.actor.get_output_embeddings().weight.mul_(1.5)
    with pytest.raises(UserError, match="so it has other weights"):
        made.backend.sample([QUERY] * 8, SamplingSettings(8, 1.0, 8), 0)


def settings_of(policy, server, tmp_path, *more):
    reward = tmp_path / "reward.py"
    reward.write_text(
        "def share(prompts, completions, **columns):\n"
        "    texts = [text.split() for text in completions]\n"
        "    return [words.count('w5') / max(1, len(words)) for words in texts]\n"
    )
    rows = [{"prompt": f"w{k % 13} w{k * 5 % 13} w{k * 3 % 11}"} for k in range(60)]
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"run.root={tmp_path / 'runs'}", f"model.name={policy}", "model.precision=fp32",
        "model.layout=lora", f"rewards.functions=[{reward}:share]", f"data.train={data}",
        "rollout.backend=vllm", f"rollout.vllm.url={server.url}", "rollout.vllm.tries=2",
        f"rollout.vllm.max_difference={CLOSE}", "rollout.max_new_tokens=8",
        "ppo.total_episodes=320", "ppo.batch_size=32", "ppo.num_mini_batches=2",
        "ppo.micro_batch_size=16", "ppo.learning_rate=2e-2", "ppo.value_learning_rate=1e-2",
        "ppo.eval_every=10", "ppo.eval_prompts=6", "ppo.save_every=0", *more,
    ]  # fmt: skip


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def test_ppo_learns_from_a_server_s_answers(policy, server, tmp_path):
    config = load_config(PPOStage, None, settings_of(policy, server, tmp_path))
    folder = run(config)
    updates = [row for row in rows_of(folder) if "objective/scores" in row]
    assert len(updates) == 10
    assert max(row["importance/logprob_difference_max"] for row in updates) < CLOSE
    assert all(row["importance/truncated"] == 0 for row in updates)
    scores = [row["objective/scores"] for row in updates]
    assert np.mean(scores[-2:]) > np.mean(scores[:2]) + 0.1
    # What was learned is in the saved model too, without the server.
    tokenizer = load_tokenizer(str(folder / "model"))
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    prompt = tokenizer("w1 w2 w3", return_tensors="pt").input_ids
    with torch.no_grad():
        chances = torch.softmax(model(prompt).logits[0, -1], -1)
    assert chances.shape == (WORDS,)


def test_ppo_learns_from_answers_that_a_server_gives_ahead(policy, server, tmp_path, monkeypatch):
    asked, learning = [], []  # versions: of the batches asked for ahead, of who learns from them
    saved = {}  # update: the batch that waited in its checkpoint
    sample, score, save = VLLMServer.sample, PPOEngine.score, checkpoint.save

    def asking(self, name, *given):
        if threading.current_thread() is not threading.main_thread():
            asked.append(name)
        return sample(self, name, *given)

    def scoring(self, samples):
        learning.append(self.backend.weights.version())
        return score(self, samples)

    def saving(folder, update, state, keep):
        saved[update] = state["ahead"][0]
        save(folder, update, state, keep)

    monkeypatch.setattr(VLLMServer, "sample", asking)
    monkeypatch.setattr(PPOEngine, "score", scoring)
    monkeypatch.setattr(checkpoint, "save", saving)
    # From answers an update old smaller steps are taken, and more of them.
    given = ["ppo.learning_rate=5e-3", "ppo.total_episodes=640", "ppo.save_every=5"]
    ahead = ["rollout.overlap=true", "rollout.overlap_max_kl=null", *given]
    folder = run(load_config(PPOStage, None, settings_of(policy, server, tmp_path, *ahead)))
    updates = [row for row in rows_of(folder) if "objective/scores" in row]
    assert [row["rollout/staleness"] for row in updates] == [0] + [1] * 19
    assert len(set(learning)) == 20
    assert asked == learning[:-1]  # each the version before
    # The first batch differs by rounding, the others by an update.
    assert updates[0]["importance/logprob_difference_max"] < CLOSE
    assert all(row["importance/logprob_difference_max"] > 1e-3 for row in updates[1:])
    assert {update: batch["step"] for update, batch in saved.items()} == {5: 5, 10: 10, 15: 15}
    assert all(len(batch["responses"]) == 32 for batch in saved.values())
    scores = [row["objective/scores"] for row in updates]
    assert np.mean(scores[-4:]) > np.mean(scores[:4]) + 0.1


def test_rlhf_generate_asks_a_real_server(policy, server, capsys):
    """It has no chat template, which the client learns from vLLM's own words."""
    given = ["generate", f"openai:{server.url}#{policy}", "-p", "w1 w2", "--max-new-tokens", "5"]
    assert rlhf(*given) == 0
    words = capsys.readouterr().out.split()
    assert 0 < len(words) <= 6
    assert all(word == "[…]" or word[0] == "w" for word in words)


def test_a_server_that_dies_leaves_a_checkpoint_and_a_line(policy, server, tmp_path, monkeypatch):
    """The last test: it ends the server."""
    asked = []
    sample = VLLMServer.sample

    def dying(self, *given):
        asked.append(1)
        if len(asked) == 4:  # an evaluation and two updates are done
            server.kill()
        return sample(self, *given)

    monkeypatch.setattr(VLLMServer, "sample", dying)
    config = load_config(PPOStage, None, settings_of(policy, server, tmp_path))
    with pytest.raises(UserError) as caught:
        run(config)
    message = str(caught.value)
    assert "\n" not in message
    assert f"{server.url}/models: not reached" in message or "completions: not" in message
    assert "the same command goes on from the checkpoint of update 2" in message
    assert checkpoint.newest(tmp_path / "runs" / "default" / "ppo" / "checkpoints") == 2

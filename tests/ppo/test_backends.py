"""Both backends: the model's own distribution, each token read once, nothing else moved."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from ppo.backends import (
    NativeBackend,
    TransformersBackend,
    generation_config,
    make_backend,
    not_native,
)
from ppo.config import RolloutSettings
from tests.ppo.conftest import PROMPTS
from tests.ppo.test_engine import LAYOUTS
from tests.ppo.test_lora import reward_adapter
from workbench import generation
from workbench.chat import query_ids
from workbench.decoder import FAMILIES
from workbench.generation import SamplingSettings
from workbench.models import ModelSettings, load_policy, load_tokenizer

BACKENDS = {"native": NativeBackend, "transformers": TransformersBackend}
EOS = 2
QUERY = [5, 3, 7, 4]
COUNT = 60_000
WORDS = 10

_SIZES = {
    "vocab_size": WORDS,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": None,
    "initializer_range": 0.18,
}
_GROUPED = {
    **_SIZES, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
SMALL = {
    "llama": lambda: LlamaConfig(**_GROUPED),
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=4),
    "gpt2": lambda: GPT2Config(**_SIZES, n_embd=16, n_layer=2, n_head=4, n_positions=64),
}


def roles_of(model):
    """What a backend needs of the roles, around one model."""
    from contextlib import nullcontext

    return SimpleNamespace(
        actor=model,
        sampling=lambda: nullcontext(model),
        depth=0,
        settings=SimpleNamespace(name="a/model"),
    )


def small(family: str):
    """A model of ten words, whose distribution can be counted out."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(SMALL[family](), dtype=torch.float32).eval()
    return model.requires_grad_(False)


@pytest.fixture(params=BACKENDS)
def kind(request):
    return BACKENDS[request.param]


@pytest.fixture
def model(family):
    return load_policy(ModelSettings(name=str(family.policy)), torch.float32).eval()


def queries_of(family) -> list[list[int]]:
    tokenizer = load_tokenizer(str(family.policy))
    return [query_ids(tokenizer, text) for text in PROMPTS]


def eos_of(family) -> int:
    return load_tokenizer(str(family.policy)).eos_token_id


# --- the distribution


@torch.no_grad()
def exact(model, temperature: float) -> np.ndarray:
    """Probabilities of [first, second] token, from full forward passes; EOS has no second one."""

    def after(ids: list[int]) -> np.ndarray:
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        return torch.softmax(logits / temperature, -1).numpy()

    first = after(QUERY)
    joint = np.stack([first[i] * after([*QUERY, i]) for i in range(WORDS)])
    joint[EOS] = 0.0
    joint[EOS, EOS] = first[EOS]
    return joint


def table(responses) -> np.ndarray:
    """How often each [first, second] token was drawn."""
    seen = np.zeros((WORDS, WORDS))
    for response in responses:
        ids = response.ids
        assert response.finished == (ids[-1] == EOS)
        assert len(ids) == (1 if ids[0] == EOS else 2)
        seen[ids[0], ids[-1]] += 1
    return seen


def p_value(seen: np.ndarray, probabilities: np.ndarray) -> float:
    """Of counts under probabilities; rare outcomes are counted together."""
    seen, expected = seen.ravel(), probabilities.ravel() * seen.sum()
    rare = expected < 5
    assert not seen[expected == 0].any()
    seen = np.append(seen[~rare], seen[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    seen, expected = seen[expected > 0], expected[expected > 0]
    return float(stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue)


def tilted(probabilities: np.ndarray) -> np.ndarray:
    """Every second outcome 5 % likelier than it is, the others rarer."""
    order = np.argsort(probabilities.ravel())
    factor = np.empty(order.size)
    factor[order] = np.where(np.arange(order.size) % 2, 1.05, 0.95)
    wrong = probabilities * factor.reshape(probabilities.shape)
    return wrong / wrong.sum()


@pytest.fixture(scope="module")
def drawn():
    """A function from family, backend and temperature to model and counts, drawn once."""
    known = {}

    def draw(family: str, backend: str, temperature: float):
        key = family, backend, temperature
        if key not in known:
            model = small(family)
            settings = SamplingSettings(2, temperature, 20_000)
            sampler = BACKENDS[backend](roles_of(model), EOS)
            known[key] = model, table(sampler.sample([QUERY] * COUNT, settings, seed=1))
        return known[key]

    return draw


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("family", "backend"),
    [
        *((family, "native") for family in SMALL),
        ("llama", "transformers"),
        ("gpt2", "transformers"),
    ],
)
def test_frequencies_are_the_models_probabilities(drawn, family, backend, temperature):
    model, seen = drawn(family, backend, temperature)
    joint = exact(model, temperature)
    assert (joint.sum(1) > 0.01).sum() >= 5  # several first tokens, each with its own second ones
    first, wrong = joint.sum(1), tilted(joint.sum(1))
    assert p_value(seen.sum(1), first) > 1e-3
    assert p_value(seen, joint) > 1e-3
    # It would be seen if they were 5 % off, in the first token or in the second given the first.
    assert p_value(seen.sum(1), wrong) < 1e-3
    conditional = np.stack([row.sum() * tilted(row) for row in joint if row.sum()])
    assert p_value(seen, conditional) < 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_both_backends_draw_alike(drawn, family, temperature):
    native, other = (drawn(family, backend, temperature)[1] for backend in BACKENDS)
    assert not np.array_equal(native, other)
    counts = np.stack([native.ravel(), other.ravel()])
    counts = counts[:, counts.sum(0) > 10]
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    hotter = drawn(family, "transformers", 0.7 if temperature == 1 else 1.0)[1]
    counts = np.stack([native.ravel(), hotter.ravel()])
    counts = counts[:, counts.sum(0) > 10]
    assert stats.chi2_contingency(counts).pvalue < 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_native_logprobs_are_those_of_a_full_forward_pass(family, model, monkeypatch, temperature):
    """Token by token, in a batch of queries of all lengths that answers leave one after another."""
    eos, queries = eos_of(family), queries_of(family)
    # In the order in which the loop takes them.
    queries = sorted([*queries, *queries[:7]], key=lambda q: (-len(q), tuple(q)))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(logits, temperature, draws):
        tokens = choose(logits, temperature, draws)
        seen.append((torch.log_softmax(logits.double() / temperature, -1), tokens))
        return tokens

    choose = generation.choose
    monkeypatch.setattr(generation, "choose", spy)
    settings = SamplingSettings(24, temperature, 64)
    responses = NativeBackend(roles_of(model), eos).sample(queries, settings, seed=2)
    lengths = [len(response.ids) for response in responses]
    assert len(set(lengths)) > 4, "answers should leave at many different steps"

    rows = list(range(len(queries)))
    found: list[list[float]] = [[] for _ in queries]
    for step, (logprobs, tokens) in enumerate(seen):
        if len(tokens) < len(rows):
            rows = [row for row in rows if lengths[row] > step]
        assert len(tokens) == len(rows)
        for k, row in enumerate(rows):
            if step < lengths[row]:
                assert int(tokens[k]) == responses[row].ids[step]
                found[row].append(float(logprobs[k, tokens[k]]))
    for query, response, mine in zip(queries, responses, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([query + response.ids])).logits[0].double()
        whole = torch.log_softmax(logits[len(query) - 1 : -1] / temperature, -1)
        expected = whole.gather(-1, torch.tensor(response.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(mine).double(), expected, rtol=0, atol=1e-4)


def test_greedy_answers_are_those_of_full_forward_passes(family, model, kind):
    """No padding, no cache and no batch there; left padding, both and all three here."""
    eos, queries = eos_of(family), queries_of(family)
    answers = kind(roles_of(model), eos).sample(queries, SamplingSettings(12, 0.0, 5), seed=0)
    for query, answer in zip(queries, answers, strict=True):
        ids: list[int] = []
        with torch.no_grad():
            while len(ids) < 12 and eos not in ids:
                ids.append(int(model(input_ids=torch.tensor([query + ids])).logits[0, -1].argmax()))
        assert answer.ids == ids
        assert answer.finished == (eos in ids)


# --- what is read, and how often


class Reading:
    """The tokens that go into a model: rows and columns of everything that is embedded."""

    def __init__(self, model) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.get_input_embeddings().register_forward_pre_hook(self._note)

    def _note(self, module, args) -> None:
        rows = len(args[0])
        self.shapes.append((rows, args[0].numel() // rows))


def test_a_prompt_is_read_once_for_all_its_samples(family, model):
    first, second = queries_of(family)[1:3]
    reading = Reading(model)
    NativeBackend(roles_of(model), -1).sample(
        [first, second] * 8, SamplingSettings(5, 1.0, 16), seed=0
    )
    width = max(len(first), len(second))
    assert reading.shapes == [(2, width), (16, 1), (16, 1), (16, 1), (16, 1)]
    # `generate` reads each of them.
    reading.shapes.clear()
    TransformersBackend(roles_of(model), -1).sample(
        [first] * 8, SamplingSettings(2, 1.0, 16), seed=0
    )
    assert reading.shapes == [(8, len(first)), (8, 1)]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_finished_answers_leave_and_the_loop_ends_with_the_last(request, name):
    family = request.getfixturevalue(name)
    model = load_policy(ModelSettings(name=str(family.policy)), torch.float32).eval()
    eos, queries = eos_of(family), queries_of(family) * 2
    reading = Reading(model)
    responses = NativeBackend(roles_of(model), eos).sample(
        queries, SamplingSettings(400, 1.0, 64), seed=1
    )
    assert all(response.finished for response in responses)
    lengths = [len(response.ids) for response in responses]
    steps = reading.shapes[1:]
    assert len(steps) == max(lengths) - 1 < 399
    for step, (rows, columns) in enumerate(steps, 1):
        writing = sum(length > step for length in lengths)
        assert columns == 1
        # A few may stay: each leaving copies what the others have read.
        assert writing <= rows <= max(writing / 0.85, writing + 1)
    assert sum(rows for rows, _ in steps) < 1.2 * (sum(lengths) - len(lengths))


# --- settings


def test_the_same_seed_repeats_and_the_global_state_stays(family, model, kind):
    eos, queries = eos_of(family), queries_of(family)
    backend, settings = kind(roles_of(model), eos), SamplingSettings(8, 1.0, 6)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = backend.sample(queries, settings, seed=2**62 + 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert backend.sample(queries, settings, seed=2**62 + 5) == first
    assert backend.sample(queries, settings, seed=6) != first
    assert len({tuple(response.ids) for response in first}) > 10
    for response in first:
        assert 1 <= len(response.ids) <= 8
        assert response.finished == (response.ids[-1] == eos)
        assert eos not in response.ids[:-1]
        assert response.finished or len(response.ids) == 8
    assert {response.finished for response in first} == {True, False}


def test_without_a_stop_token_answers_go_on_to_their_full_length(family, model, kind):
    model.generation_config.eos_token_id = list(range(100))
    answers = kind(roles_of(model), -1).sample(
        queries_of(family), SamplingSettings(9, 1.0, 64), seed=0
    )
    assert [len(answer.ids) for answer in answers] == [9] * len(answers)
    assert not any(answer.finished for answer in answers)


def test_settings_that_ship_with_a_model_are_not_used(kind):
    """Each of them alone would change what is drawn, or end answers elsewhere."""
    model = small("llama")
    backend, settings = kind(roles_of(model), EOS), SamplingSettings(6, 1.0, 64)
    plain = backend.sample([QUERY] * 40, settings, seed=0)
    shipped = GenerationConfig(
        top_k=2, top_p=0.3, temperature=0.2, do_sample=True, repetition_penalty=3.0, min_p=0.2,
        typical_p=0.4, no_repeat_ngram_size=1, min_new_tokens=4, suppress_tokens=[4, 5],
        begin_suppress_tokens=[6], forced_eos_token_id=7, eos_token_id=[8, 9], max_length=5,
        epsilon_cutoff=0.1, eta_cutoff=0.1, bad_words_ids=[[3]], num_beams=3,
        renormalize_logits=True, exponential_decay_length_penalty=(1, 3.0), max_time=1e-9,
        stop_strings=["a"], num_return_sequences=2, return_dict_in_generate=True,
    )  # fmt: skip
    model.generation_config = shipped
    assert backend.sample([QUERY] * 40, settings, seed=0) == plain
    assert model.generation_config is shipped


def test_the_models_own_settings_come_back_after_an_error():
    model = small("gpt2")
    own = model.generation_config
    with pytest.raises(IndexError):
        TransformersBackend(roles_of(model), EOS).sample([[10**6]], SamplingSettings(2), seed=0)
    assert model.generation_config is own


def test_nothing_is_left_to_the_librarys_defaults():
    found = generation_config(SamplingSettings(5, 0.7), 3)
    assert (found.do_sample, found.temperature, found.top_k, found.top_p) == (True, 0.7, 0, 1.0)
    assert (found.max_new_tokens, found.eos_token_id, found.pad_token_id) == (5, 3, 3)
    assert GenerationConfig._get_default_generation_params()["top_k"] == 50  # it would be used


# --- which one is taken


def test_the_named_backend_is_taken(family, model, capsys):
    roles = roles_of(model)
    assert isinstance(make_backend(RolloutSettings(), roles, 0), NativeBackend)
    other = make_backend(RolloutSettings(backend="transformers"), roles, 0)
    assert isinstance(other, TransformersBackend)
    assert capsys.readouterr().err == ""


def test_another_family_is_sampled_by_transformers_with_one_message(capsys):
    from transformers import OPTConfig

    config = OPTConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2,
        word_embed_proj_dim=16, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    backend = make_backend(RolloutSettings(), roles_of(model), EOS)
    assert isinstance(backend, TransformersBackend)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "a/model is a opt model" in printed
    answers = backend.sample([QUERY, QUERY[:2]], SamplingSettings(5), seed=0)
    assert all(1 <= len(answer.ids) <= 5 for answer in answers)
    assert capsys.readouterr().err == ""


def test_sliding_windows_are_not_native():
    config = Qwen2Config(**_GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert config.layer_types == ["full_attention", "sliding_attention"]
    assert "sliding_attention" in str(not_native(SimpleNamespace(config=config)))
    for family in FAMILIES:
        assert not_native(SimpleNamespace(config=SMALL[family]())) is None


# --- in the loop


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_ratio_is_one_with_transformers_too(llama, trainer, layout, temperature):
    made = trainer(
        llama, *LAYOUTS[layout], "rollout.backend=transformers",
        f"rollout.temperature={temperature}",
    )  # fmt: skip
    assert isinstance(made.backend, TransformersBackend)
    metrics = made.step()
    assert abs(metrics["objective/kl"]) < 1e-6
    assert abs(metrics["val/ratio_first_minibatch"] - 1) < 1e-6
    assert abs(metrics["val/ratio"] - 1) > 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["separate", "lora"])
def test_the_policy_as_it_is_now_is_sampled(llama, trainer, tmp_path, layout, backend):
    """Also where it is an adapter: the sampled tokens' log-probabilities are the policy's."""
    given = []
    if layout == "lora":
        given = [f"reward_model={reward_adapter(llama.policy, tmp_path / 'reward')}"]
    made = trainer(llama, *LAYOUTS[layout], *given, f"rollout.backend={backend}")
    before = made.backend.sample([q.ids for q in made.held_out], made.config.rollout, 0)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in made.roles.trained.named_parameters():
            if parameter.requires_grad and not name.startswith("value"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    made.roles.sync_actor()
    greedy = SamplingSettings(6, 0.0, 8)
    queries = [query.ids for query in made.held_out]
    after = made.backend.sample(queries, made.config.rollout, 0)
    assert after != before
    for query, answer in zip(queries, made.backend.sample(queries, greedy, 0), strict=True):
        with torch.no_grad():
            logits = made.roles.actor(input_ids=torch.tensor([query + answer.ids])).logits[0]
        assert logits[len(query) - 1 : -1].argmax(-1).tolist() == answer.ids


def test_a_resumed_run_with_transformers_equals_the_uninterrupted_one(llama, trainer):
    given = ["rollout.backend=transformers", "ppo.save_every=2", "ppo.eval_every=1"]
    whole = trainer(llama, "run.name=whole", *given)
    whole.train()
    again = trainer(llama, "run.name=whole", *given)  # from its checkpoint, after 2 of 3
    again.train()
    assert again.global_step == 3
    a, b = (dict(made.roles.trained.named_parameters()) for made in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)

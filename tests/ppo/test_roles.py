"""Layouts that agree at step 0, a value that starts as the reward, an actor that follows."""

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, PhiConfig

from ppo.config import PPOModelSettings
from ppo.roles import Roles, last_states, response_tokens
from ppo.rollout import collate, score_rollout
from tests.ppo.conftest import MEAN, PROMPTS, STD, reward_folder
from workbench.chat import query_ids
from workbench.config import load_config
from workbench.errors import UserError
from workbench.generation import Response
from workbench.models import ModelSettings, load_policy, load_scorer, load_tokenizer
from workbench.scorer import RewardModel, apply_head

CPU = torch.device("cpu")
LAYOUTS = {
    "separate": [],
    "shared_trunk": ["layout=shared_trunk", "train_top_layers=1"],
    "lora": ["layout=lora", "lora.r=4"],
    "lora at the top": ["layout=lora", "lora.r=4", "train_top_layers=1"],
}


def open_roles(family, layout: str = "separate", *overrides: str, reward=None) -> Roles:
    given = [f"name={family.policy}", "precision=fp32", *LAYOUTS[layout], *overrides]
    torch.manual_seed(0)
    return Roles(load_config(PPOModelSettings, None, given), str(reward or family.reward), CPU)


def some_answers(family, count: int = 6) -> tuple[list[list[int]], list[Response]]:
    """Queries with made-up answers of 1 to 6 tokens; every second one ends with EOS."""
    tokenizer = load_tokenizer(str(family.policy))
    draw = torch.Generator().manual_seed(3)
    queries = [query_ids(tokenizer, text) for text in PROMPTS[:count]]
    answers = []
    for i in range(count):
        ids = torch.randint(5, len(tokenizer), (1 + i,), generator=draw).tolist()
        if i % 2:
            ids[-1] = tokenizer.eos_token_id
        answers.append(Response(ids, finished=bool(i % 2)))
    return queries, answers


def some_batch(roles: Roles, family):
    batch = collate(*some_answers(family), None, CPU)
    return batch._replace(hidden=roles.activations(batch.input_ids, batch.attention_mask))


@torch.no_grad()
def perturb(module, scale: float = 0.05, seed: int = 1) -> None:
    """Move everything that is trained, as updates would."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))


@torch.no_grad()
def plain_logprobs(model, family, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of the made-up answers, [N], from one plain forward pass per sequence."""
    rows = []
    for query, answer in zip(*some_answers(family), strict=True):
        logits = model(input_ids=torch.tensor([query + answer.ids])).logits[0].float()
        logprobs = torch.log_softmax(logits / temperature, -1)
        rows += [logprobs[len(query) - 1 + i, token] for i, token in enumerate(answer.ids)]
    return torch.stack(rows)


# --- step 0


def test_all_layouts_start_alike(family):
    found = {}
    for layout in LAYOUTS:
        roles = open_roles(family, layout)
        split = layout in {"shared_trunk", "lora at the top"}
        assert roles.depth == (family.layers - 1 if split else 0)
        found[layout] = score_rollout(roles, *some_answers(family), 1.0, 4)
    for layout in list(LAYOUTS)[1:]:
        # A reward model that is no adapter is none of the trunk, and the value shares its head.
        values = [] if "lora" in layout else ["values"]
        for name in ("logprobs", "ref_logprobs", "entropy", "scores", *values):
            mine, other = getattr(found["separate"], name), getattr(found[layout], name)
            assert torch.allclose(mine, other, atol=1e-5), (layout, name)
    assert found["separate"].values.std() > 0.01  # they say something


@pytest.mark.parametrize("layout", LAYOUTS)
def test_policy_and_reference_start_equal(family, layout):
    rollout = score_rollout(open_roles(family, layout), *some_answers(family), 1.0, 4)
    assert torch.equal(rollout.logprobs, rollout.ref_logprobs)


@pytest.mark.parametrize("layout", ["separate", "shared_trunk"])
def test_value_at_the_last_token_starts_as_the_score(family, layout):
    roles = open_roles(family, layout)
    batch = some_batch(roles, family)
    with torch.no_grad():
        values = apply_head(roles.trained.value_head, last_states(roles.trained.value, batch))
    assert torch.allclose(values, roles.scores(batch), atol=1e-5)


def test_values_are_read_before_each_token(family):
    """V of token t must not know token t: changing the last token changes no value."""
    roles = open_roles(family)
    queries, answers = some_answers(family)
    changed = [Response([*a.ids[:-1], (a.ids[-1] + 1) % 300], a.finished) for a in answers]
    before = score_rollout(roles, queries, answers, 1.0, 4)
    after = score_rollout(roles, queries, changed, 1.0, 4)
    assert torch.equal(before.values, after.values)
    assert not torch.equal(before.scores, after.scores)


def test_scores_are_the_reward_models(family):
    roles = open_roles(family)
    queries, answers = some_answers(family)
    reward = RewardModel.load(ModelSettings(name=str(family.reward), precision="fp32"))
    rows = [query + answer.ids for query, answer in zip(queries, answers, strict=True)]
    expected = torch.tensor(reward.score_tokens(rows))
    assert (roles.mean, roles.std) == (MEAN, STD)
    assert torch.allclose(roles.scores(some_batch(roles, family)), expected, atol=1e-5)
    assert expected.std() > 0.01


def test_the_reward_models_pad_makes_no_difference(llama, other_pad):
    tokenizer = load_tokenizer(str(other_pad))
    assert tokenizer.pad_token_id != load_tokenizer(str(llama.reward)).pad_token_id
    mine, other = open_roles(llama), open_roles(llama, reward=other_pad)
    queries, answers = some_answers(llama)
    # The other model's PAD as an answer's last tokens: pooling by id would stop before them.
    answers[0] = Response([9, tokenizer.pad_token_id, tokenizer.pad_token_id], finished=False)
    a, b = (score_rollout(roles, queries, answers, 1.0, 4) for roles in (mine, other))
    assert torch.equal(a.scores, b.scores)
    assert torch.equal(a.values, b.values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_policy_and_value_are_trained(family, layout):
    roles = open_roles(family, layout)
    frozen = [roles.reference, roles.reward, roles.reward_head]
    if "lora" not in layout:  # there the policy's adapter is the actor's
        frozen.append(roles.actor)
    frozen_weights = {p.data_ptr() for module in frozen for p in module.parameters()}
    assert not any(p.requires_grad for module in frozen for p in module.parameters())

    trained = {n: p for n, p in roles.trained.named_parameters() if p.requires_grad}
    assert not frozen_weights & {p.data_ptr() for p in trained.values()}
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert not any(module.training for module in roles.trained.modules())  # dropout is off
    policy = {name for name in trained if not name.startswith("value")}
    if "lora" in layout:
        assert policy
        assert all("lora_" in name for name in policy)
    own = {p.data_ptr() for n, p in trained.items() if n in policy}
    assert not own & {p.data_ptr() for n, p in trained.items() if n not in policy}
    whole = sum(p.numel() for p in load_policy(ModelSettings(name=str(family.policy))).parameters())
    assert (sum(trained[name].numel() for name in policy) == whole) == (layout == "separate")


# --- temperature


def test_temperature_divides_in_policy_and_reference_alike(family):
    roles = open_roles(family)
    rollout = score_rollout(roles, *some_answers(family), 0.7, 4)
    expected = plain_logprobs(
        AutoModelForCausalLM.from_pretrained(family.policy, dtype=torch.float32), family, 0.7
    )
    assert torch.allclose(rollout.logprobs[rollout.response_mask.bool()], expected, atol=1e-5)
    assert torch.equal(rollout.logprobs, rollout.ref_logprobs)


# --- the actor follows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sync_gives_the_actor_the_trained_policy(family, layout):
    roles = open_roles(family, layout)
    before = plain_logprobs(roles.actor, family)
    perturb(roles.trained)
    rollout = score_rollout(roles, *some_answers(family), 1.0, 4)
    trained = rollout.logprobs[rollout.response_mask.bool()]
    assert (trained - before).abs().max() > 0.01

    if "lora" not in layout:  # there the actor is the policy
        assert torch.equal(plain_logprobs(roles.actor, family), before)  # not in step yet
    roles.sync_actor()
    assert torch.allclose(plain_logprobs(roles.actor, family), trained, atol=1e-5)
    # The reference stays what it was.
    reference = score_rollout(roles, *some_answers(family), 1.0, 4).ref_logprobs
    assert torch.allclose(reference[rollout.response_mask.bool()], before, atol=1e-5)


def test_sync_copies_every_weight_of_a_whole_policy(family):
    roles = open_roles(family)
    perturb(roles.trained)
    roles.sync_actor()
    trained = {**roles.trained.policy.state_dict()}
    for name, weight in roles.actor.base_model.state_dict().items():
        assert torch.equal(weight, trained[name]), name
    assert torch.equal(roles.actor.get_output_embeddings().weight, roles.trained.lm_head.weight)


def test_sync_copies_a_head_with_a_bias(llama, tmp_path):
    """Phi has one; so a family that no fixture covers is in step as well."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        PhiConfig(
            vocab_size=360, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, pad_token_id=0,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "phi")
    load_tokenizer(str(llama.policy)).save_pretrained(tmp_path / "phi")
    load_scorer(ModelSettings(name=str(tmp_path / "phi"))).save_pretrained(tmp_path / "reward")
    given = [f"name={tmp_path / 'phi'}", "precision=fp32"]
    roles = Roles(load_config(PPOModelSettings, None, given), str(tmp_path / "reward"), CPU)
    perturb(roles.trained)
    roles.sync_actor()
    assert torch.equal(roles.actor.lm_head.bias, roles.trained.lm_head.bias)
    assert roles.actor.lm_head.bias.std() > 0.01


def test_sync_leaves_the_trunk_alone(family):
    roles = open_roles(family, "shared_trunk")
    start = load_policy(ModelSettings(name=str(family.policy)), torch.float32).state_dict()
    perturb(roles.trained)
    roles.sync_actor()
    top = roles.trained.policy.state_dict()
    moved = {
        name for name, w in roles.actor.state_dict().items() if not torch.equal(w, start[name])
    }
    assert len(moved) == len(top)
    assert not any(f".{i}." in name for name in moved for i in range(roles.depth))


def test_bf16_computes_in_bf16_but_trains_and_scores_in_fp32(llama):
    exact = open_roles(llama, "shared_trunk")
    roles = open_roles(llama, "shared_trunk", "precision=bf16")
    a, b = (score_rollout(r, *some_answers(llama), 1.0, 4) for r in (exact, roles))
    assert next(roles.actor.parameters()).dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in roles.trained.parameters() if p.requires_grad)
    assert b.logprobs.dtype == b.values.dtype == b.scores.dtype == torch.float32
    assert not torch.equal(a.logprobs, b.logprobs)
    assert (a.logprobs - b.logprobs)[a.response_mask.bool()].abs().mean() < 0.2
    assert (a.scores - b.scores).abs().max() < 0.1


# --- refusals


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_reward_model_with_another_vocabulary_is_refused(llama, tmp_path):
    policy, tokenizer = (
        load_policy(ModelSettings(name=str(llama.policy)), torch.float32),
        load_tokenizer(str(llama.policy)),
    )
    size = policy.config.vocab_size
    policy.resize_token_embeddings(size + 3)
    policy.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    reward = reward_folder(tmp_path / "wide", tmp_path / "reward")
    with pytest.raises(UserError) as error:
        open_roles(llama, reward=reward)
    text = one_line(error)
    assert str(reward) in text
    assert f"has {size + 3} tokens" in text
    assert str(size) in text


def test_different_lower_layers_cannot_be_shared(llama, other_bottom):
    with pytest.raises(UserError) as error:
        open_roles(llama, "shared_trunk", reward=other_bottom)
    text = one_line(error)
    assert str(other_bottom) in text
    assert "lower 2 layers" in text
    assert "model.layout=separate" in text
    open_roles(llama, "separate", reward=other_bottom)


def test_more_layers_than_there_are_are_refused(llama):
    with pytest.raises(UserError, match="train_top_layers=7: the policy has 3 layers"):
        open_roles(llama, "shared_trunk", "train_top_layers=7")
    assert open_roles(llama, "shared_trunk", f"train_top_layers={llama.layers - 1}").depth == 1


def test_with_all_layers_of_their_own_roles_share_the_embedding(family):
    roles = open_roles(family, "shared_trunk", f"train_top_layers={family.layers}")
    assert roles.depth == 0
    batch = some_batch(roles, family)
    assert torch.equal(
        batch.hidden[batch.attention_mask.bool()], roles.actor.base_model(
            input_ids=batch.input_ids, output_hidden_states=True
        ).hidden_states[0][batch.attention_mask.bool()],
    )  # fmt: skip
    whole = open_roles(family, "separate")
    a, b = (score_rollout(each, *some_answers(family), 1.0, 4) for each in (roles, whole))
    for name in ("logprobs", "ref_logprobs", "entropy", "scores", "values"):
        assert torch.allclose(getattr(a, name), getattr(b, name), atol=1e-5), name


def test_a_model_without_a_trained_head_is_not_a_reward_model(llama):
    """`load_scorer` would draw a head, and PPO would chase random numbers without a word."""
    with pytest.raises(UserError, match="not a reward model") as error:
        open_roles(llama, reward=llama.policy)
    assert str(llama.policy) in one_line(error)


def test_a_family_without_halves_is_refused_only_where_they_are_needed(llama, tmp_path):
    model = AutoModelForCausalLM.from_config(
        OPTConfig(
            vocab_size=360, hidden_size=16, num_hidden_layers=2, ffn_dim=16, num_attention_heads=2,
            word_embed_proj_dim=16, pad_token_id=0,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "opt")
    load_tokenizer(str(llama.policy)).save_pretrained(tmp_path / "opt")
    load_scorer(ModelSettings(name=str(tmp_path / "opt"))).save_pretrained(tmp_path / "reward")
    given = [f"name={tmp_path / 'opt'}", "precision=fp32"]
    Roles(load_config(PPOModelSettings, None, given), str(tmp_path / "reward"), CPU)
    given += LAYOUTS["shared_trunk"]
    with pytest.raises(UserError) as error:
        Roles(load_config(PPOModelSettings, None, given), str(tmp_path / "reward"), CPU)
    assert "opt" in one_line(error)


@pytest.mark.parametrize("target", ["[nowhere]", "[lm_head, q_proj]", "[embed_tokens]"])
def test_adapters_that_cannot_be_are_refused(llama, target):
    with pytest.raises(UserError) as error:
        open_roles(llama, "lora", f"lora.target_modules={target}")
    assert one_line(error).startswith("model.lora.target_modules=[")


def test_response_tokens_are_the_answers(family):
    roles = open_roles(family)
    _, answers = some_answers(family)
    tokens = response_tokens(some_batch(roles, family)).tolist()
    assert tokens == [token for answer in answers for token in answer.ids]

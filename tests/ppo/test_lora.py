"""One trunk in memory: adapters that start as nothing, keep apart, and leave the trunk alone."""

import json
from pathlib import Path

import pytest
import torch

from ppo.config import PPOModelSettings
from ppo.lora import POLICY, REWARD, VALUE
from ppo.roles import Roles, last_states
from ppo.rollout import score_rollout
from tests.ppo.conftest import MEAN, STD
from tests.ppo.test_roles import CPU, perturb, plain_logprobs, some_answers, some_batch
from workbench.attention import prefer_causal
from workbench.config import load_config
from workbench.models import (
    ADAPTED_CONFIG,
    LoraSettings,
    ModelSettings,
    load_policy,
    load_scorer,
    load_tokenizer,
    lora_config,
)
from workbench.scorer import RewardModel, apply_head

NUMBERS = ("logprobs", "ref_logprobs", "values", "entropy", "scores")


def reward_adapter(policy: Path, folder: Path, lowest: int = 0) -> Path:
    """Save a reward model as `rlhf reward` does with LoRA: adapter, head, and normaliser.

    Layers below `lowest` are not adapted.
    """
    from peft import get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = load_scorer(ModelSettings(name=str(policy)), torch.float32)
        settings = LoraSettings(enabled=True, r=3, alpha=5)
        config = lora_config(settings, "SEQ_CLS")
        if lowest:
            config.exclude_modules = rf".*\.(?:layers|h)\.[0-{lowest - 1}]\..*"
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.reward_mean, model.config.reward_std = MEAN, STD
    adapted.save_pretrained(folder)
    model.config.to_json_file(folder / ADAPTED_CONFIG)
    load_tokenizer(str(policy)).save_pretrained(folder)
    return folder


@pytest.fixture
def reward(family, tmp_path) -> Path:
    return reward_adapter(family.policy, tmp_path / "reward")


def open_lora(family, reward, *overrides: str) -> Roles:
    given = [f"name={family.policy}", "precision=fp32", "layout=lora", "lora.r=4", *overrides]
    torch.manual_seed(0)
    name = None if reward is None else str(reward)
    return Roles(load_config(PPOModelSettings, None, given), name, CPU)


def numbers(roles: Roles, family) -> dict[str, torch.Tensor]:
    rollout = score_rollout(roles, *some_answers(family), 1.0, 4)
    return {name: getattr(rollout, name) for name in NUMBERS}


def parameters(roles: Roles) -> dict[int, torch.nn.Parameter]:
    """Every parameter any role can reach, once per place in memory."""
    modules = [roles.actor, roles.reference, roles.reference_head, roles.trained, roles.trunk]
    modules += [roles.reward, roles.reward_head]
    for module in list(modules):
        modules += list(getattr(module, "body", ()))
    return {p.data_ptr(): p for module in modules if module for p in module.parameters()}


# --- one trunk


def test_one_trunk_is_in_memory(family, reward):
    roles = open_lora(family, reward)
    found = parameters(roles)
    adapters = [p for name, p in roles.actor.named_parameters() if ".lora_" in name]
    places = {p.data_ptr() for p in adapters}
    rest = [p for place, p in found.items() if place not in places]
    one = sum(p.numel() for p in load_policy(ModelSettings(name=str(family.policy))).parameters())
    heads = 2 * roles.actor.config.hidden_size + 1
    assert sum(p.numel() for p in rest) == one + heads
    whole = open_lora(family, family.reward)  # a reward model that is none of the trunk's
    assert sum(p.numel() for p in parameters(whole).values()) > 1.5 * one


def test_adapters_are_float32_over_a_bf16_trunk(llama, tmp_path):
    reward = reward_adapter(llama.policy, tmp_path / "reward")
    roles = open_lora(llama, reward, "precision=bf16")
    kinds = {(".lora_" in name, p.dtype) for name, p in roles.actor.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    exact, rough = numbers(open_lora(llama, reward), llama), numbers(roles, llama)
    assert torch.equal(rough["logprobs"], rough["ref_logprobs"])
    assert (exact["scores"] - rough["scores"]).abs().mean() < 0.05
    assert (exact["values"] - rough["values"]).abs().mean() < 0.05
    perturb(roles.trained.policy)
    plain_logprobs(roles.actor, llama)  # outside autocast too


# --- step 0


def test_a_fresh_adapter_equals_its_trunk_bit_for_bit(family, reward):
    roles = open_lora(family, reward)
    found = numbers(roles, family)
    assert torch.equal(found["logprobs"], found["ref_logprobs"])
    plain = load_policy(ModelSettings(name=str(family.policy)), torch.float32).eval()
    prefer_causal(plain)  # as the roles do; other kernels round otherwise
    assert torch.equal(plain_logprobs(roles.actor, family), plain_logprobs(plain, family))


def test_the_reward_adapter_scores_as_the_reward_model(family, reward):
    roles = open_lora(family, reward)
    whole = RewardModel.load(ModelSettings(name=str(reward), precision="fp32"))
    rows = [query + answer.ids for query, answer in zip(*some_answers(family), strict=True)]
    expected = torch.tensor(whole.score_tokens(rows))
    assert (roles.mean, roles.std) == (MEAN, STD)
    assert torch.allclose(roles.scores(some_batch(roles, family)), expected, atol=1e-5)
    assert expected.std() > 0.01
    other = score_rollout(
        Roles(
            load_config(PPOModelSettings, None, [f"name={family.policy}", "precision=fp32"]),
            str(reward), CPU,
        ),
        *some_answers(family), 1.0, 4,
    )  # fmt: skip
    mine = numbers(roles, family)
    for name in NUMBERS:  # `separate` with the same reward model, merged
        assert torch.allclose(mine[name], getattr(other, name), atol=1e-5), name


@pytest.mark.parametrize("top", [None, 1])
def test_the_value_starts_as_the_reward_adapter(family, tmp_path, top):
    """At the last token, in normalised scores; also where the lower layers are shared."""
    given = [] if top is None else [f"train_top_layers={top}"]
    lowest = family.layers - (top or family.layers)
    roles = open_lora(family, reward_adapter(family.policy, tmp_path / "reward", lowest), *given)
    assert roles.reward_embedded == (top is not None)
    batch = some_batch(roles, family)
    with torch.no_grad():
        values = apply_head(roles.trained.value_head, last_states(roles.trained.value, batch))
    assert torch.allclose(values, roles.scores(batch), atol=1e-5)
    assert values.std() > 0.01


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_temperature_divides_in_all_roles_and_the_entropy_alike(family, reward, temperature):
    roles = open_lora(family, reward)
    perturb(roles.trained)
    queries, answers = some_answers(family)
    rollout = score_rollout(roles, queries, answers, temperature, 4)
    kept = rollout.response_mask.bool()
    policy = plain_logprobs(roles.actor, family, temperature)
    assert torch.allclose(rollout.logprobs[kept], policy, atol=1e-5)
    plain = load_policy(ModelSettings(name=str(family.policy)), torch.float32).eval()
    expected = plain_logprobs(plain, family, temperature)
    assert torch.allclose(rollout.ref_logprobs[kept], expected, atol=1e-5)
    assert (policy - expected).abs().max() > 0.01
    for i, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        with torch.no_grad():
            logits = roles.actor(input_ids=torch.tensor([query + answer.ids])).logits[0]
        logits = logits[len(query) - 1 : -1] / temperature
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        assert torch.allclose(rollout.entropy[i, : len(answer.ids)], entropy, atol=1e-5)


def test_with_learning_rate_0_an_adapter_stays_its_trunk(family, trainer, reward):
    made = trainer(
        family, "model.layout=lora", "model.lora.r=4", f"reward_model={reward}",
        "ppo.lr_scheduler=constant", "ppo.weight_decay=0.1",
    )  # fmt: skip
    made.optimisation.scheduler.base_lrs = [0.0, 0.0]
    for group in made.optimisation.optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: p.clone() for name, p in made.roles.trained.named_parameters()}
    for _ in range(3):
        metrics = made.step()
        assert metrics["objective/kl"] == 0.0
        assert metrics["policy/grad_norm"] > 0
    after = dict(made.roles.trained.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    found = numbers(made.roles, family)
    assert torch.equal(found["logprobs"], found["ref_logprobs"])
    plain = load_policy(ModelSettings(name=str(family.policy)), torch.float32).eval()
    prefer_causal(plain)
    assert torch.equal(plain_logprobs(made.roles.actor, family), plain_logprobs(plain, family))


def test_another_kind_of_reward_model_stays_whole_and_lends_its_head(llama, tmp_path, capsys):
    roles = open_lora(llama, llama.reward)
    assert "isawholemodel:itstays" in "".join(capsys.readouterr().err.split())
    assert torch.allclose(roles.trained.value_head.weight * STD, roles.reward_head.weight)

    other = reward_adapter(llama.policy, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(llama.reward)
    (other / "adapter_config.json").write_text(json.dumps(config))
    roles = open_lora(llama, other)
    assert f"isanadapterof{llama.reward}," in "".join(capsys.readouterr().err.split())
    assert REWARD not in roles.adapters.peft.peft_config


def test_without_a_reward_model_the_value_starts_at_zero(llama):
    roles = open_lora(llama, None)
    rollout = score_rollout(roles, *some_answers(llama), 1.0, 4)
    assert not rollout.values.any()
    assert not rollout.scores.any()


# --- adapters keep apart


@pytest.mark.parametrize(
    ("moved", "changes"),
    [(POLICY, {"logprobs", "entropy"}), (VALUE, {"values"}), (REWARD, {"scores"})],
)
def test_an_adapter_moves_its_own_role_alone(family, reward, moved, changes):
    roles = open_lora(family, reward)
    before = numbers(roles, family)
    with torch.no_grad():
        for layer in roles.adapters.layers.values():
            layer.lora_B[moved].weight.add_(0.1)
    after = numbers(roles, family)
    assert {name for name in NUMBERS if not torch.equal(before[name], after[name])} == changes


@pytest.mark.parametrize("top", [None, 1])
def test_updates_leave_trunk_reference_and_reward_bit_for_bit(family, trainer, reward, top):
    given = [] if top is None else [f"model.train_top_layers={top}"]
    made = trainer(family, "model.layout=lora", f"reward_model={reward}", "model.lora.r=4", *given)
    roles = made.roles
    trunk = {n: w.clone() for n, w in roles.adapters.plain_state(roles.actor).items()}
    before = numbers(roles, family)
    metrics = [made.step() for _ in range(2)]
    assert abs(metrics[0]["val/ratio_first_minibatch"] - 1) < 1e-6
    after = numbers(roles, family)
    assert torch.equal(before["ref_logprobs"], after["ref_logprobs"])
    assert torch.equal(before["scores"], after["scores"])
    assert (before["logprobs"] - after["logprobs"]).abs().max() > 1e-3
    assert (before["values"] - after["values"]).abs().max() > 1e-3
    plain = load_policy(ModelSettings(name=str(family.policy)), torch.float32).eval()
    prefer_causal(plain)  # as the roles do; other kernels round otherwise
    assert all(torch.equal(w, trunk[n]) for n, w in plain.state_dict().items())
    with roles.adapters.use(None):
        assert torch.equal(plain_logprobs(roles.actor, family), plain_logprobs(plain, family))


def test_a_resumed_run_equals_the_uninterrupted_one(llama, trainer, tmp_path):
    reward = reward_adapter(llama.policy, tmp_path / "reward")
    given = ["model.layout=lora", "model.lora.r=4", f"reward_model={reward}", "ppo.save_every=2"]
    whole = trainer(llama, "run.name=whole", *given)
    whole.train()
    again = trainer(llama, "run.name=whole", *given)  # from its last checkpoint, after 2 of 3
    again.train()
    a, b = (dict(made.roles.trained.named_parameters()) for made in (whole, again))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.roles.adapters.peft.peft_config[VALUE].r == 3


# --- sampling


def test_sampling_merges_and_gives_the_same_tensors_back(family, reward):
    roles = open_lora(family, reward)
    perturb(roles.trained)
    before = {n: (p.data_ptr(), p.clone()) for n, p in roles.actor.named_parameters()}
    adapted = plain_logprobs(roles.actor, family)
    with roles.sampling():
        merged = plain_logprobs(roles.actor, family)
    assert torch.allclose(merged, adapted, atol=1e-4)  # logits reach 15
    assert not torch.equal(merged, adapted)
    assert torch.equal(plain_logprobs(roles.actor, family), adapted)
    for name, parameter in roles.actor.named_parameters():
        place, weight = before[name]
        assert parameter.data_ptr() == place
        assert torch.equal(parameter, weight), name


def test_an_interrupted_sampling_gives_the_weights_back(llama):
    roles = open_lora(llama, None)
    perturb(roles.trained)
    before = plain_logprobs(roles.actor, llama)
    with pytest.raises(KeyboardInterrupt), roles.sampling():
        raise KeyboardInterrupt
    assert torch.equal(plain_logprobs(roles.actor, llama), before)

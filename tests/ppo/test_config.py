"""Defaults, help, and one line for every impossible setting."""

import subprocess
import sys
from pathlib import Path

import pytest

from ppo import PPOSettings, PPOStage
from workbench.config import load_config, settings
from workbench.errors import UserError

REWARD = "reward_model=somewhere"
CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "ppo").glob("*.yaml"))


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(PPOStage, None, [REWARD, *overrides])
    text = str(error.value)
    assert "\n" not in text
    return text


def test_every_setting_has_help():
    rows = settings(PPOStage)
    assert len(rows) > 50
    assert [row.key for row in rows if len(row.help) < 8] == []


def test_defaults_are_the_literatures():
    config = PPOSettings()
    assert (config.gamma, config.lam, config.cliprange, config.cliprange_value) == (
        1,
        0.95,
        0.2,
        0.2,
    )
    assert (config.vf_coef, config.adam_epsilon, config.kl_estimator) == (0.1, 1e-5, "k1")
    assert (config.batch_size, config.num_mini_batches, config.num_ppo_epochs) == (512, 8, 4)
    assert load_config(PPOStage, None, [REWARD]).rollout.temperature == 1.0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_packaged_configs_are_valid(path):
    config = load_config(PPOStage, path)
    assert config.ppo.batch_size % config.ppo.num_mini_batches == 0
    assert config.rollout.temperature == 1.0


def test_there_are_packaged_configs():
    assert {"default", "demo"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("ppo.total_episodes=0", "greater than 0"),
        ("ppo.batch_size=-8", "greater than 0"),
        ("ppo.num_mini_batches=3", "divide batch_size=512"),
        ("ppo.num_ppo_epochs=0", "greater than 0"),
        ("ppo.micro_batch_size=0", "greater than 0"),
        ("ppo.learning_rate=0", "greater than 0"),
        ("ppo.value_learning_rate=-0.5", "greater than 0"),
        ("ppo.max_grad_norm=0", "greater than 0"),
        ("ppo.cliprange=0", "greater than 0"),
        ("ppo.cliprange_value=0", "greater than 0"),
        ("ppo.kl_coef=-0.1", "0 or more"),
        ("ppo.kl_target=0", "greater than 0"),
        ("ppo.kl_horizon=0", "greater than 0"),
        ("ppo.gamma=1.01", "[0, 1]"),
        ("ppo.lam=-0.1", "[0, 1]"),
        ("ppo.adam_beta1=1.0", "[0, 1)"),
        ("ppo.adam_beta2=-0.1", "[0, 1)"),
        ("ppo.adam_epsilon=-0.5", "0 or more"),
        ("ppo.weight_decay=-0.1", "0 or more"),
        ("ppo.score_clip=0", "greater than 0"),
        ("ppo.save_every=-1", "0 or more"),
        ("ppo.eval_every=-1", "0 or more"),
        ("ppo.eval_prompts=0", "greater than 0"),
        ("ppo.warmup_updates=-1", "0 or more"),
        ("ppo.value_warmup_updates=-1", "0 or more"),
        ("ppo.total_episodes=511", "at least one batch"),
        ("ppo.kl_estimator=k4", "one of k1, k2, k3"),
        ("ppo.learning_rate=fast", "is not float"),
        ("ppo.learning_rat=1e-5", "did you mean 'ppo.learning_rate'"),
        ("data.test_fraction=1", "between 0 and 1"),
        ("data.max_query_length=0", "at least 1"),
        ("model.layout=shared_trunk", "needs model.train_top_layers"),
        ("model.train_top_layers=4", "layout=separate"),
        ("model.load_in_4bit=true", "4-bit"),
        ("model.lora.dropout=0.1", "dropout is off"),
        ("rollout.temperature=0", "greedy"),
        ("rollout.temperature=-1", "0 (greedy) or more"),
        ("reward_model=", "name the reward model"),
    ],
)
def test_impossible_settings_name_key_value_and_reason(override, part):
    text = refused(override)
    key, _, value = override.partition("=")
    assert text.startswith(("command line: ", "default: "))
    assert key in text
    assert value.rstrip("0") in text
    assert part in text


def test_impossible_combinations_are_refused():
    four_bit = refused("model.load_in_4bit=true", "model.lora.enabled=true")
    assert "PPO does not train on 4-bit weights" in four_bit
    both = refused(
        "model.layout=shared_trunk", "model.train_top_layers=2", "model.lora.enabled=true"
    )
    assert "not both" in both
    assert "layout=lora" in both


@pytest.mark.parametrize("given", [["model.layout=lora"], ["model.lora.enabled=true"]])
def test_either_setting_that_asks_for_adapters_stands_for_both(given):
    for extra in ([], ["model.lora.r=3"]):
        model = load_config(PPOStage, None, ["reward_model=x", *given, *extra]).model
        assert (model.layout, model.lora.enabled) == ("lora", True)
    top = load_config(PPOStage, None, ["reward_model=x", *given, "model.train_top_layers=2"]).model
    assert (top.layout, top.train_top_layers) == ("lora", 2)
    assert "at least 1" in refused(*given, "model.train_top_layers=0")


def test_reading_a_config_does_not_import_torch():
    code = "import sys, ppo; ppo.PPOSettings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_offers_the_names_people_know():
    import ppo
    from ppo import PPOEngine

    assert PPOEngine.__module__ == "ppo.engine"
    assert set(ppo.__all__) == {"PPOSettings", "PPOStage", "PPOEngine", "PPOConfig", "PPOTrainer"}
    with pytest.raises(AttributeError, match="PPOTrainor"):
        ppo.PPOTrainor  # noqa: B018

import dataclasses

import pytest
from transformers import HfArgumentParser

from ppo import PPOConfig, trl_config
from ppo.trl_config import stage_config
from ppo.trl_fields import ALLOWED_VALUES, HONOURED, REFUSED, REFUSED_VALUES, WITHOUT_EFFECT
from workbench.errors import UserError

# The fields TRL 1.12's PPOConfig adds to TrainingArguments or gives another default.
TRL = {
    "learning_rate": 3e-6, "logging_steps": 10, "gradient_checkpointing": True, "bf16": None,
    "lr_scheduler_kwargs": None, "use_liger_kernel": False, "torch_empty_cache_steps": None,
    "dataset_num_proc": None, "num_mini_batches": 1, "total_episodes": None,
    "local_rollout_forward_batch_size": 64, "num_sample_generations": 10, "response_length": 53,
    "stop_token": None, "stop_token_id": None, "temperature": 0.7, "missing_eos_penalty": None,
    "sft_model_path": "EleutherAI/pythia-160m", "world_size": None, "num_total_batches": None,
    "micro_batch_size": None, "local_batch_size": None, "batch_size": None,
    "local_mini_batch_size": None, "mini_batch_size": None, "push_to_hub": False,
    "reward_model_path": "EleutherAI/pythia-160m", "model_adapter_name": None,
    "ref_adapter_name": None, "num_ppo_epochs": 4, "whiten_rewards": False, "kl_coef": 0.05,
    "kl_estimator": "k1", "cliprange": 0.2, "vf_coef": 0.1, "cliprange_value": 0.2, "gamma": 1.0,
    "lam": 0.95, "ds3_gather_for_generation": True,
}  # fmt: skip
GROUPS = (HONOURED, REFUSED, WITHOUT_EFFECT)
# A value other than the default, for each refused field.
SET = {
    "model_adapter_name": "a", "ref_adapter_name": "b", "max_steps": 7, "optim_args": "x=1",
    "optim_target_modules": ["q"], "label_smoothing_factor": 0.1, "fp16": True,
    "torch_compile": True, "torch_compile_backend": "inductor", "torch_compile_mode": "default",
    "use_liger_kernel": True, "neftune_noise_alpha": 5.0, "auto_find_batch_size": True,
    "include_num_input_tokens_seen": "all", "save_only_model": True, "enable_jit_checkpoint": True,
    "hub_always_push": True, "load_best_model_at_end": True, "metric_for_best_model": "loss",
    "greater_is_better": True, "restore_callback_states_from_checkpoint": True,
    "ignore_data_skip": True, "full_determinism": True, "data_seed": 3,
    "train_sampling_strategy": "group_by_length", "parallelism_config": object(),
    "ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 20, "ddp_broadcast_buffers": True,
    "ddp_static_graph": True, "fsdp": "full_shard", "deepspeed": {"zero_optimization": {}},
}  # fmt: skip


def make(**given):
    return PPOConfig(output_dir="out", **given)


def test_every_field_is_in_exactly_one_group():
    fields = [field.name for field in dataclasses.fields(PPOConfig)]
    counts = {name: sum(name in group for group in GROUPS) for name in fields}
    assert {name for name, count in counts.items() if count != 1} == set()
    assert {name for group in GROUPS for name in group} == set(fields)
    assert {*REFUSED_VALUES, *ALLOWED_VALUES} <= set(HONOURED)
    assert all(said.strip() for group in GROUPS for said in group.values())


def test_trl_s_fields_and_defaults():
    defaults = {field.name: field.default for field in dataclasses.fields(PPOConfig)}
    assert {name: defaults[name] for name in TRL} == TRL


def test_refused_fields_are_all_tried():
    assert set(SET) == set(REFUSED)


@pytest.mark.parametrize("name", SET)
def test_a_refused_field_is_named_with_what_to_use_instead(name):
    with pytest.raises(UserError, match=rf"^PPOConfig: {name}=.*refused; ") as caught:
        make(**{name: SET[name]})
    assert str(caught.value).endswith(REFUSED[name])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr_scheduler_type", "greedy"),
        ("save_strategy", "epoch"),
        ("optim", "adafactor"),
        ("stop_token", "period"),
        ("kl_estimator", "k4"),
    ],
)
def test_refused_values(name, value):
    with pytest.raises(UserError, match=rf"^PPOConfig: {name}='{value}': \w"):
        make(**{name: value})


def test_a_field_that_another_version_adds_is_not_dropped_in_silence(monkeypatch):
    known = {name: why for name, why in WITHOUT_EFFECT.items() if name != "debug"}
    monkeypatch.setattr(trl_config, "WITHOUT_EFFECT", known)
    make()
    with pytest.raises(UserError, match="debug='underflow_overflow': not known here"):
        make(debug="underflow_overflow")


def test_defaults_work_on_any_machine_and_survive_a_copy():
    args = make()
    assert args.bf16
    again = dataclasses.replace(args, kl_coef=0.1)
    assert (again.kl_coef, again.response_length) == (0.1, 53)
    (parsed,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(
        ["--output_dir", "out", "--stop_token", "eos", "--missing_eos_penalty", "1.0"]
    )
    assert (parsed.stop_token, parsed.missing_eos_penalty) == ("eos", 1.0)


def test_batch_sizes():
    args = make(
        per_device_train_batch_size=4, gradient_accumulation_steps=6, num_mini_batches=3,
        num_train_epochs=2.5,
    )  # fmt: skip
    args.work_out(rows=100, world=2)
    assert (args.local_batch_size, args.batch_size, args.micro_batch_size) == (24, 48, 8)
    assert (args.local_mini_batch_size, args.mini_batch_size) == (8, 16)
    assert (args.world_size, args.total_episodes, args.num_total_batches) == (2, 250, 6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_mini_batches": 3}, "num_mini_batches=3: must divide .* = 8 exactly"),
        ({"total_episodes": 0}, "total_episodes=0: must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0: must be"),
    ],
)
def test_batch_sizes_that_cannot_be(given, message):
    with pytest.raises(UserError, match=message):
        make(**given).work_out(rows=10, world=1)


def test_the_engine_gets_every_number():
    args = make(
        per_device_train_batch_size=2, gradient_accumulation_steps=4, num_mini_batches=2,
        total_episodes=20, num_ppo_epochs=3, local_rollout_forward_batch_size=5, response_length=9,
        temperature=0.6, missing_eos_penalty=2.0, whiten_rewards=True, kl_coef=0.3,
        kl_estimator="k3", cliprange=0.11, cliprange_value=0.12, vf_coef=0.13, gamma=0.9, lam=0.8,
        learning_rate=1e-4, weight_decay=0.01, adam_beta1=0.8, adam_beta2=0.98, adam_epsilon=1e-7,
        max_grad_norm=0.5, bf16=False, seed=11,
    )  # fmt: skip
    args.work_out(rows=10, world=1)
    made = stage_config(args, "policy", "reward", ["given:f"])
    same = (
        "num_ppo_epochs num_mini_batches batch_size kl_coef kl_estimator cliprange cliprange_value "
        "vf_coef gamma lam learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon "
        "max_grad_norm missing_eos_penalty whiten_rewards"
    )
    for name in same.split():
        assert getattr(made.ppo, name) == getattr(args, name), name
    assert made.ppo.missing_eos == "subtract"
    assert (made.ppo.micro_batch_size, made.ppo.value_learning_rate) == (2, 1e-4)
    assert made.ppo.total_episodes == 24  # the last batch is a whole one
    asked = {"max_new_tokens": 9, "temperature": 0.6, "batch_size": 5}
    assert vars(made.rollout) | asked == vars(made.rollout)
    assert (made.model.precision, made.run.seed, made.run.name) == ("fp32", 11, "out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.0}, "rollout.temperature=0"),
        ({"lam": 1.5}, "^PPOConfig: ppo.lam=1.5: must be"),
        ({"cliprange": "wide"}, "^PPOConfig: ppo.cliprange='wide' is not float"),
    ],
)
def test_a_number_out_of_range_is_named(given, message):
    args = make(**given)
    args.work_out(rows=10, world=1)
    with pytest.raises(UserError, match=message):
        stage_config(args, "policy", "reward", [])


def test_stop_tokens():
    assert make().stop(7) is None
    assert make(stop_token="eos").stop(7) == 7
    assert make(stop_token_id=0).stop(7) == 0
    with pytest.raises(UserError, match="the tokenizer has no EOS"):
        make(stop_token="eos").stop(None)
    with pytest.raises(UserError, match="one of them, not both"):
        make(stop_token="eos", stop_token_id=0).stop(7)

"""Estimates follow from the sizes: more passes cost more, more devices do more, and so on."""

from dataclasses import replace

import pytest
import torch

from workbench.plan.devices import Rates
from workbench.plan.memory import Request
from workbench.plan.skeleton import counts, read_config
from workbench.plan.speed import ppo_speed, trainer_speed

RATES = Rates("one", 1e12, 1e11, 0.5, 0.5, (), "nowhere")


@pytest.fixture
def request_of(tiny_llama):
    config = read_config(str(tiny_llama))
    return Request(
        config, counts(config), "separate", None, 4, 20, 12, torch.bfloat16,
        cpu=False, devices=1, sharding="none",
    )  # fmt: skip


def test_training_all_weights_is_six_operations_a_weight_and_token(request_of):
    sizes = request_of.counts
    speed = trainer_speed(request_of, RATES, 3, head=False)
    attention = 6 * sizes.depth * sizes.attended * 32**2
    assert speed.seconds["step"] * 0.5e12 == pytest.approx(3 * (6 * sizes.layers * 32 + attention))
    assert speed.per_second == pytest.approx(3 * 32 / speed.seconds["step"])
    adapters = trainer_speed(replace(request_of, layout="lora"), RATES, 3, head=False)
    assert adapters.seconds["step"] == pytest.approx(speed.seconds["step"] * 2 / 3)
    again = trainer_speed(replace(request_of, checkpointing=True), RATES, 3, head=False)
    assert again.seconds["step"] == pytest.approx(speed.seconds["step"] * 4 / 3)


def test_decoding_reads_all_weights_for_each_token(request_of):
    speed = ppo_speed(request_of, RATES, 1, 1, 1, bytes_read=10**9)
    assert speed.seconds["rollout"] == pytest.approx(12 * 10**9 / 0.5e11, rel=1e-3)
    # Twice the rows in two batches take twice as long, in one about as long as before.
    assert ppo_speed(request_of, RATES, 2, 1, 1, 10**9).seconds["rollout"] == pytest.approx(
        2 * speed.seconds["rollout"], rel=1e-3
    )
    assert ppo_speed(request_of, RATES, 2, 2, 1, 10**9).seconds["rollout"] == pytest.approx(
        speed.seconds["rollout"], rel=1e-3
    )


def test_passes_devices_and_frozen_layers_count(request_of):
    speed = ppo_speed(request_of, RATES, 4, 4, 1, 1)
    assert ppo_speed(request_of, RATES, 4, 4, 4, 1).seconds["update"] == pytest.approx(
        4 * speed.seconds["update"]
    )
    many = ppo_speed(replace(request_of, devices=8), RATES, 4, 4, 1, 1)
    assert many.per_second == pytest.approx(8 * speed.per_second)
    few = replace(request_of, layout="shared_trunk", top_layers=1)
    assert ppo_speed(few, RATES, 4, 4, 1, 1).seconds["update"] < speed.seconds["update"]

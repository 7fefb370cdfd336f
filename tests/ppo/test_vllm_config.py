"""vLLM's settings: impossible ones, and those that a layout does not go with."""

import pytest

from ppo.vllm_config import VLLMSettings
from workbench.errors import UserError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("url=localhost:8000", "url.*must be the address of a server"),
        ("timeout=0", "timeout.*greater than 0"),
        ("tries=0", "tries.*greater than 0"),
        ("max_difference=0", "max_difference.*greater than 0"),
        ("gpu_memory=1", "gpu_memory.*between 0 and 1"),
        ("mode=ray", "mode"),
        ("weights=file", "weights"),
    ],
)
def test_impossible_settings_are_refused(llama, config, given, message):
    with pytest.raises(UserError, match=message):
        config(llama, f"rollout.vllm.{given}")


def test_weights_and_layout_must_go_together():
    for mode in ("server", "colocate"):
        for weights in ("lora", "nccl"):
            settings = VLLMSettings(mode=mode, weights=weights)
            by_adapter = mode == "server" and weights == "lora"
            for layout in ("separate", "shared_trunk", "lora"):
                fits = by_adapter == (layout == "lora")
                assert (settings.misfit(layout) is None) == fits
    assert VLLMSettings().misfit("separate")[0] == "weights"
    assert VLLMSettings(mode="colocate").misfit("lora")[0] == "mode"


def test_other_backends_do_not_mind(llama, config):
    made = config(llama, "rollout.vllm.weights=nccl", "model.layout=separate")
    assert made.rollout.backend == "native"

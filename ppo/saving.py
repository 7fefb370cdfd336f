"""What a run leaves: the policy as a plain model, its adapter where it has one, and the critic."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ppo.lora import POLICY, VALUE, Role
from ppo.roles import Roles
from ppo.trunk import upper_half
from workbench.models import ADAPTED_CONFIG, locate
from workbench.scorer import write_normalizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_policy(roles: Roles, folder: Path) -> None:
    """Write the actor as a plain causal language model; an adapter is merged into it."""
    if roles.adapters is None:
        roles.actor.save_pretrained(folder)
        return
    with roles.adapters.merged(POLICY):
        roles.actor.save_pretrained(folder, state_dict=roles.adapters.plain_state(roles.actor))


def has_adapter(roles: Roles) -> bool:
    """Return whether the policy is an adapter on a model that can be loaded by its name.

    Where that model was itself merged from an adapter, only whole models can be left.
    """
    whole = not (Path(locate(roles.settings.name)) / "adapter_config.json").is_file()
    return roles.adapters is not None and whole


def save_adapter(roles: Roles, folder: Path) -> None:
    """Write the policy's adapter alone, as PEFT does."""
    assert roles.adapters is not None
    roles.adapters.save(POLICY, folder, locate(roles.settings.name))


def save_value(roles: Roles, folder: Path) -> None:
    """Write the value function as a sequence classifier, or as the adapter of one.

    It is read like a reward model: the logit less `config.reward_mean`, which is minus the bias of
    the value's head, as classifiers' heads have none.
    """
    head = roles.trained.value_head
    bias = float(head.bias.detach())
    adapted = isinstance(roles.trained.value, Role)
    if roles.adapters is not None and adapted and has_adapter(roles):
        roles.adapters.save(VALUE, folder, locate(roles.settings.name), head.weight)
        config = copy.deepcopy(roles.actor.config)
        config.num_labels, config.reward_mean, config.reward_std = 1, -bias, 1.0
        config.to_json_file(folder / ADAPTED_CONFIG)
        return
    model = _classifier(roles)
    model.score.weight = nn.Parameter(head.weight.detach().to(roles.dtype))
    write_normalizer(model, -bias, 1.0)
    model.save_pretrained(folder)


def _classifier(roles: Roles) -> "PreTrainedModel":
    """Return the value as a whole model; its head is still empty."""
    from transformers import AutoModelForSequenceClassification

    value = roles.trained.value
    adapted = isinstance(value, Role)
    own = not adapted and roles.trunk is None
    config = copy.deepcopy(value.config if own else roles.actor.config)
    config.num_labels = 1
    with torch.device("meta"):  # the weights are those that are there already
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    if roles.adapters is not None and adapted:
        with roles.adapters.merged(VALUE):
            state = roles.adapters.plain_state(roles.actor.base_model)
        model.base_model.load_state_dict(state, assign=True)
        return model
    trained = {name: weight.to(roles.dtype) for name, weight in value.state_dict().items()}
    if own:
        model.base_model.load_state_dict(trained, assign=True)
    else:
        model.base_model.load_state_dict(roles.actor.base_model.state_dict(), assign=True)
        upper_half(model, roles.depth, embedded=True).load_state_dict(trained, assign=True)
    return model

"""What scripts hand in as `reward_model`: a model, one with its own tokenizer, functions, lists."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ppo.config import RewardSettings
from ppo.reward_sources import ForeignRewardModel, RewardFunction, RewardSources, Source
from workbench.errors import UserError
from workbench.scorer import RewardModel


class GivenRewards:
    """Sources of reward that are in memory; scores of several are added.

    Attributes:
        own: the model that reads the policy's tokens, among the roles; or None.
    """

    def __init__(self, given: Any) -> None:
        """Tell the sources apart.

        Raises:
            UserError: for what cannot give rewards, and for several models without a tokenizer.
        """
        found: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
        self.own: Any = None
        self.foreign: list[RewardModel] = []
        self.functions: list[RewardFunction] = []
        for source in found:
            if isinstance(source, RewardModel):
                self.foreign.append(source)
            elif isinstance(source, nn.Module) and self.own is None:
                self.own = source
            elif isinstance(source, nn.Module):
                raise UserError(
                    "reward_model: only one model can share the policy's tokens; hand in the "
                    "others as workbench.scorer.RewardModel(model, tokenizer)"
                )
            elif callable(source):
                self.functions.append(RewardFunction(source, _function_name(source)))
            else:
                raise UserError(
                    f"reward_model: is {type(source).__name__}; hand in a sequence classifier, a "
                    "workbench.scorer.RewardModel, a function or a list of them"
                )
        if not found:
            raise UserError("reward_model: is an empty list; hand in at least one source")

    @property
    def own_name(self) -> str:
        """Name of the reward model; empty where there is none."""
        first = self.own if self.own is not None or not self.foreign else self.foreign[0].model
        return "" if first is None else _model_name(first)

    @property
    def function_names(self) -> list[str]:
        """Names of the functions, as a configuration has them."""
        return [function.name for function in self.functions]

    def sources(self, settings: RewardSettings, device: torch.device) -> RewardSources:
        """Return them as the engine takes them."""
        for model in self.foreign:
            model.model.requires_grad_(False).to(device)
        models: list[Source] = [
            ForeignRewardModel(model, _model_name(model.model)) for model in self.foreign
        ]
        own = None if self.own is None else self.own_name
        return RewardSources(settings, own, [*models, *self.functions])


def _model_name(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or "reward_model")


def _function_name(function: Any) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return f"given:{re.sub(r'[^A-Za-z0-9_]', '_', name)}"

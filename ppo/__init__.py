"""Stage 3: PPO on Accelerate (Schulman et al. 2017, as Ouyang et al. 2022 use it)."""

from typing import TYPE_CHECKING, Any

from ppo.config import PPOSettings, PPOStage

if TYPE_CHECKING:
    from ppo.engine import PPOEngine
    from ppo.trainer import PPOTrainer
    from ppo.trl_config import PPOConfig

__all__ = ["PPOConfig", "PPOEngine", "PPOSettings", "PPOStage", "PPOTrainer"]


def __getattr__(name: str) -> Any:
    # These import torch, transformers and accelerate; reading a config should not.
    if name == "PPOEngine":
        from ppo.engine import PPOEngine

        return PPOEngine
    if name == "PPOTrainer":
        from ppo.trainer import PPOTrainer

        return PPOTrainer
    if name == "PPOConfig":
        from ppo.trl_config import PPOConfig

        return PPOConfig
    raise AttributeError(f"module 'ppo' has no attribute {name!r}")

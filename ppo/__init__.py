"""Stage 3: PPO on Accelerate (Schulman et al. 2017, as Ouyang et al. 2022 use it)."""

from typing import TYPE_CHECKING, Any

from ppo.config import PPOSettings, PPOStage

if TYPE_CHECKING:
    from ppo.engine import PPOEngine

__all__ = ["PPOEngine", "PPOSettings", "PPOStage"]


def __getattr__(name: str) -> Any:
    # The trainer imports torch and accelerate; reading a config should not.
    if name == "PPOEngine":
        from ppo.engine import PPOEngine

        return PPOEngine
    raise AttributeError(f"module 'ppo' has no attribute {name!r}")

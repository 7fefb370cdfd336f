"""KL to the reference: per-token estimators and the coefficient's controllers.

Which estimator is for what: k1 for the reward. A penalty in the reward enters the gradient as
E[∇log π · (r - β·k)], and of the three only k1 makes that the gradient of E[r] - β·KL, since the
term it leaves out, E[∇k1] = E[∇log π], is 0. The others miss E[∇k], which is not: with k2 learning
rests where r - β·(log π/π_ref)²/2 is the same for all tokens, with k3 where
r - β·(π_ref/π + log π/π_ref) is, and neither is π ∝ π_ref·exp(r/β). As measures, k2 and k3 have
less variance than k1.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Estimator = Literal["k1", "k2", "k3"]


def kl_per_token(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: Estimator = "k1"
) -> torch.Tensor:
    """Estimate KL(π‖π_ref) per token from tokens sampled from π.

    Schulman 2020, "Approximating KL divergence". With r = π_ref / π of the sampled token: k1 = -log
    r (unbiased), k2 = (log r)² / 2 (biased, low variance), k3 = r - 1 - log r (unbiased, never
    negative).

    Args:
        logprobs: of the sampled tokens under π, any shape.
        ref_logprobs: of the same tokens under π_ref, same shape.
        estimator: k1, k2 or k3.

    Returns:
        Estimates in nats, same shape.
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(log_ratio) - log_ratio


@dataclass
class FixedKL:
    """A coefficient that stays.

    Attributes:
        coef: β.
    """

    coef: float

    def update(self, kl: float, episodes: int) -> None:
        """Do nothing; the coefficient is fixed."""


@dataclass
class AdaptiveKL:
    """A coefficient steered towards a target KL (Ziegler et al. 2019, §2.2).

    Attributes:
        coef: β.
        target: nats per response.
        horizon: episodes over which a lasting error changes β by a factor of about e^0.2.
    """

    coef: float
    target: float
    horizon: int

    def update(self, kl: float, episodes: int) -> None:
        """Move β: e = clip(KL / target - 1, ±0.2), β ← β·(1 + e·episodes / horizon).

        Args:
            kl: mean KL per response of the batch, nats.
            episodes: answers in the batch.
        """
        error = min(0.2, max(-0.2, kl / self.target - 1))
        self.coef *= 1 + error * episodes / self.horizon

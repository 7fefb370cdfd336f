"""The whole trainer on a task whose optimum is known: a bandit under a KL penalty."""

import torch
from accelerate import Accelerator

from ppo.config import PPOStage, RewardSettings
from ppo.engine import PPOEngine
from ppo.reward_sources import Query, RewardFunction, RewardSources
from ppo.roles import Roles
from tests.ppo.conftest import arguments
from workbench.config import load_config
from workbench.models import load_tokenizer
from workbench.run import StageRun

BETA = 0.5
PRIZES = torch.tensor([-0.6, 0.2, 0.9, -0.3, 0.5, 0.7]).double()


@torch.no_grad()
def distribution(model, ids: list[int]) -> torch.Tensor:
    return torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)


def distance(p: torch.Tensor, q: torch.Tensor) -> float:
    """Total variation."""
    return float((p - q).abs().sum() / 2)


def test_the_policy_becomes_the_optimal_one(llama, runs, prompts):
    """One token, rewards for a handful of them: π* ∝ π_ref·exp(r/β) (Ziegler et al. 2019, eq. 2).

    A penalty of the wrong size or sign, a temperature that is left out, an advantage at the wrong
    token or a biased sampler all lead elsewhere. So do k2 and k3 as penalties (ppo/kl.py).
    """
    found, reference, optimum = learned(llama, runs, prompts)
    assert distance(reference, optimum) > 0.25
    assert distance(found, optimum) < 0.02


def learned(family, runs, prompts, *overrides: str) -> tuple[torch.Tensor, ...]:
    """Distributions of the learned policy, the reference and the optimum."""
    given = [
        *arguments(family, runs, prompts),
        "reward_model=", "rewards.functions=[mine:reward]", "rollout.max_new_tokens=1",
        "rollout.batch_size=512", "ppo.batch_size=512", "ppo.micro_batch_size=512",
        "ppo.total_episodes=81920", "ppo.num_mini_batches=1", "ppo.num_ppo_epochs=2",
        "ppo.missing_eos_penalty=null", f"ppo.kl_coef={BETA}",
        "ppo.learning_rate=3e-3", "ppo.value_learning_rate=1e-2", "ppo.vf_coef=1",
        "ppo.cliprange_value=10", "monitors.samples_every=0", *overrides,
    ]  # fmt: skip
    config = load_config(PPOStage, None, given)
    tokenizer = load_tokenizer(config.model.name)
    roles = Roles(config.model, None, torch.device("cpu"))
    ids = [5]  # one token to read: all time goes into what is learned
    reference = distribution(roles.actor, ids)
    prizes = torch.zeros(len(reference)).double()
    prizes[reference.topk(6).indices] = PRIZES

    def reward(completion_ids):
        return [float(prizes[tokens[0]]) for tokens in completion_ids]

    optimum = reference * (prizes / BETA).exp()
    optimum /= optimum.sum()
    engine = PPOEngine(
        config, roles, tokenizer, [Query(ids, "go")], StageRun("ppo", config, {}),
        Accelerator(cpu=True),
        rewards=RewardSources(RewardSettings(), None, [RewardFunction(reward, "mine")]),
    )  # fmt: skip
    while engine.global_step < engine.total_updates:
        engine.step()
    return distribution(roles.actor, ids), reference, optimum

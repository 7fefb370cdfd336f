"""Policies that end some of their answers, reward models made from them, and ready trainers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo.config import PPOStage
from workbench.config import load_config
from workbench.models import (
    ModelSettings,
    decoder_layers,
    final_norm,
    load_policy,
    load_scorer,
    load_tokenizer,
)
from workbench.scorer import write_normalizer

MEAN, STD = 0.4, 1.7  # the normaliser of every reward model here
PROMPTS = [
    f"{opening} {subject}{end}"
    for opening in ("Why does", "Could you describe", "Nobody saw")
    for subject, end in (
        ("the harbour", "?"),
        ("rice", " rest for ten minutes before noon on a cold Sunday?"),
        ("a gull", "."),
        ("the ferry to the north island", " take so long after rain?"),
        ("bread", "!"),
        ("my new coat", ", and who painted the gate blue?"),
        ("the kettle", " hum when the lift goes down?"),
    )
]


@dataclass(frozen=True)
class Family:
    """A policy that ends its answers, and a reward model with the same lower layers."""

    policy: Path
    reward: Path
    layers: int


@pytest.fixture(scope="session")
def llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Grouped heads, BOS, an untied head, and PAD = EOS."""
    return _family(tiny_llama, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def gpt2(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Absolute positions, dropout in its config, a tied head."""
    return _family(tiny_gpt2, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def qwen(tiny_qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Kinds of attention named by layer, a tied head, a PAD of its own."""
    return _family(tiny_qwen, tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session", params=["llama", "gpt2", "qwen"])
def family(request: pytest.FixtureRequest) -> Family:
    """Each family in turn."""
    found: Family = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def other_pad(llama: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The llama reward model with another PAD, an everyday token that stands in answers."""

    def edit(model: Any, tokenizer: Any) -> None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ord("a"))
        model.config.pad_token_id = tokenizer.pad_token_id

    return reward_folder(llama.policy, tmp_path_factory.mktemp("other-pad"), edit)


@pytest.fixture(scope="session")
def other_bottom(llama: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama reward model one of whose lowest weights differs from the policy's."""

    def edit(model: Any, tokenizer: Any) -> None:
        with torch.no_grad():
            decoder_layers(model)[0].self_attn.q_proj.weight[3, 5] += 0.01

    return reward_folder(llama.policy, tmp_path_factory.mktemp("other-bottom"), edit)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 prompts of 3 to 20 words as JSON lines."""
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS), "utf-8")
    return path


@pytest.fixture
def config(runs: Path, prompts: Path) -> Callable[..., PPOStage]:
    """A function from family and overrides to a small config: 3 updates of 8 episodes in fp32."""

    def make(family: Family, *overrides: str) -> PPOStage:
        return load_config(PPOStage, None, [*arguments(family, runs, prompts), *overrides])

    return make


@pytest.fixture
def trainer(config: Callable[..., PPOStage]) -> Callable[..., Any]:
    """A function from family and overrides to a `PPOEngine`, built as the stage builds it."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    from ppo.engine import PPOEngine
    from ppo.reward_sources import Query
    from ppo.roles import Roles
    from workbench.chat import query_ids
    from workbench.run import StageRun

    def make(family: Family, *overrides: str) -> PPOEngine:
        made = config(family, *overrides)
        set_seed(made.run.seed)
        tokenizer = load_tokenizer(made.model.name)
        return PPOEngine(
            made,
            Roles(made.model, made.reward_model, torch.device("cpu")),
            tokenizer,
            [Query(query_ids(tokenizer, text), text) for text in PROMPTS[:-4]],
            StageRun("ppo", made, {}),
            Accelerator(cpu=True),
            held_out=[Query(query_ids(tokenizer, text), text) for text in PROMPTS[-4:]],
        )

    return make


def even_share(batch: Any) -> torch.Tensor:
    """Return the share of even tokens among each answer's tokens, [B]: a score to learn."""
    tokens = batch.input_ids[batch.rows, batch.columns]
    sums = torch.zeros(2, len(batch.input_ids))
    sums[0].index_add_(0, batch.rows, (tokens % 2 == 0).float())
    sums[1].index_add_(0, batch.rows, torch.ones(len(tokens)))
    return sums[0] / sums[1]


def arguments(family: Family, runs: Path, prompts: Path) -> list[str]:
    """The small config as overrides, for a command line too."""
    return [
        f"run.root={runs}",
        f"model.name={family.policy}",
        "model.precision=fp32",
        f"reward_model={family.reward}",
        f"data.train={prompts}",
        "rollout.max_new_tokens=7",
        "ppo.total_episodes=24",
        "ppo.batch_size=8",
        "ppo.num_mini_batches=2",
        "ppo.num_ppo_epochs=2",
        "ppo.micro_batch_size=3",
        "ppo.learning_rate=3e-3",
        "ppo.value_learning_rate=3e-3",
        "ppo.eval_prompts=4",
        "ppo.eval_every=0",
        "ppo.save_every=0",
    ]


def reward_folder(
    policy: Path, folder: Path, edit: Callable[[Any, Any], None] | None = None
) -> Path:
    """Save a reward model made from a policy: own head, top layer and norm, and a normaliser."""
    tokenizer = load_tokenizer(str(policy))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = load_scorer(ModelSettings(name=str(policy)), torch.float32)
        with torch.no_grad():
            for module in (decoder_layers(model)[-1], final_norm(model)):
                for parameter in module.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    write_normalizer(model, MEAN, STD)
    if edit is not None:
        edit(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _family(tiny: Path, folder: Path) -> Family:
    from workbench.chat import query_ids

    tokenizer = load_tokenizer(str(tiny))
    model = load_policy(ModelSettings(name=str(tiny)), torch.float32).eval()
    with torch.no_grad():
        states = [
            model.base_model(input_ids=torch.tensor([query_ids(tokenizer, text)])).last_hidden_state
            for text in PROMPTS
        ]
        mean = torch.cat(states, dim=1)[0].mean(0)
        # A random model hardly ever ends an answer; this gives EOS a logit of about 6.5.
        head = model.get_output_embeddings()
        head.weight[tokenizer.eos_token_id] = 6.5 * mean / mean.square().sum()
    policy = folder / "policy"
    model.save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    return Family(policy, reward_folder(policy, folder / "reward"), len(decoder_layers(model)))

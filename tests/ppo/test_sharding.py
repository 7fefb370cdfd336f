"""Sharded PPO on two CPU processes: the numbers, the answers and the files of a single one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ppo.config import PPOModelSettings
from ppo.roles import Roles
from ppo.sharding import check_done, gather, join, skeleton, split_like, whole
from tests.conftest import SENTENCES
from tests.ppo import sharded
from tests.ppo.conftest import Family, arguments
from tests.ppo.test_lora import reward_adapter
from workbench.config import load_config
from workbench.errors import UserError
from workbench.run import read_metrics

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
# The same answers in both runs, and all of a batch in each optimiser step.
FOLLOWED = [
    "ppo.num_mini_batches=1", "ppo.weight_decay=0.1", "ppo.max_grad_norm=0.5",
    "ppo.learning_rate=3e-4", "ppo.value_learning_rate=3e-4",
]  # fmt: skip
SHARED = ["model.layout=shared_trunk", "model.train_top_layers=1"]
LORA = ["model.layout=lora", "model.lora.r=4"]
CASES = {
    "llama in a shared trunk": ("llama", SHARED),
    "llama with adapters on a trunk, and texts": (
        "llama", [*LORA, "model.train_top_layers=2", "reward_model={adapter}", "ptx.data={texts}",
                  "ptx.coef=0.5", "ptx.batch_size=4", "ppo.value_warmup_updates=1"],
    ),
    "gpt2 with adapters": ("gpt2", LORA),
    "qwen in a shared trunk": ("qwen", SHARED),
}  # fmt: skip
HALVED = [*LORA, "model.precision=bf16", "ppo.save_every=1"]


class Seen(NamedTuple):
    """What two processes saw of each attempt, by name, and where the runs are."""

    runs: Path
    by_name: dict[str, list[dict[str, Any]]]
    attempts: dict[str, dict[str, Any]]


def launch(attempts: list[dict[str, Any]], folder: Path) -> list[list[dict[str, Any]]]:
    """Carry out attempts on two processes with sharding; returns what each process saw."""
    (folder / "plan.json").write_text(json.dumps(attempts))
    result = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2",
         "--config_file", str(ROOT / "configs/accelerate/fsdp2.yaml"),
         "-m", "tests.ppo.sharded", str(folder / "plan.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def seen(llama, gpt2, qwen, prompts, tmp_path_factory) -> Seen:
    """All attempts, in one start of two processes."""
    families = {"llama": llama, "gpt2": gpt2, "qwen": qwen}
    folder = tmp_path_factory.mktemp("sharded")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    adapter = reward_adapter(llama.policy, folder / "adapter")

    def given(family: Family, name: str, *more: str) -> list[str]:
        return [*arguments(family, folder / "runs", prompts), *more, f"run.name={name}"]

    attempts = {}
    for number, (name, (family, more)) in enumerate(CASES.items()):
        filled = [each.format(adapter=adapter, texts=texts) for each in more]
        made = given(families[family], f"case-{number}", *FOLLOWED, *filled)
        attempts[name] = {"arguments": made, "canned": True}
    halved = {name: given(llama, name, *HALVED) for name in ("whole", "stopped")}
    attempts["whole"] = {"arguments": halved["whole"]}
    attempts["stopped"] = {"arguments": halved["stopped"], "stop": 2}
    attempts["resumed"] = {"arguments": halved["stopped"]}
    attempts["separate"] = {"arguments": given(llama, "separate", "model.layout=separate")}
    attempts["forgotten"] = {"arguments": given(llama, "forgotten", *LORA), "forget": "Norm"}
    found = launch(list(attempts.values()), folder)
    by_name = {name: [each[k] for each in found] for k, name in enumerate(attempts)}
    return Seen(folder / "runs", by_name, attempts)


def log(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run without times."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """All weights a run left, by file and name."""
    return {
        f"{path.relative_to(folder)}:{name}": weight
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, weight in load_file(path).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_half_the_weights_each_learn_what_one_does(seen, name):
    attempt = seen.attempts[name]
    number = list(CASES).index(name)
    alone = [*attempt["arguments"], f"run.root={seen.runs}-alone"]
    one, two = sharded.carry_out(attempt | {"arguments": alone}), seen.by_name[name]
    # Where the weights are, and those of Adam's averages.
    assert not one["split"]
    assert all(process["split"] for process in two)
    assert sum(process["here"] for process in two) == one["numbers"] == two[0]["numbers"]
    assert all(process["here"] < 0.51 * one["numbers"] for process in two)
    assert all(process["bytes"] < 0.55 * 4 * one["numbers"] for process in two)
    # What is sampled, before and after training.
    assert one["before"] == two[0]["before"] == two[1]["before"] != two[0]["after"]
    assert one["after"] == two[0]["after"] == two[1]["after"]
    # What is learned: losses, gradient norms, KL, evaluations of three updates.
    folders = [Path(f"{seen.runs}-alone"), seen.runs]
    expected, found = (log(folder / f"case-{number}" / "ppo") for folder in folders)
    assert len(found) == len(expected) == 5
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for key in row:
            bound = 1e-5 if key.startswith("loss") else 1e-4
            assert row[key] == pytest.approx(other[key], rel=bound, abs=bound), key
    assert any(row.get("loss/ptx") for row in found) == ("texts" in name)
    # What is left.
    others, weights = (saved(folder / f"case-{number}" / "ppo") for folder in folders)
    assert weights.keys() == others.keys()
    assert {key.split("/")[0] for key in weights} >= {"model", "value"}
    assert all(torch.allclose(weights[key], others[key], atol=1e-6) for key in weights)
    model = AutoModelForCausalLM.from_pretrained(seen.runs / f"case-{number}" / "ppo" / "model")
    kept = {key.partition(":")[2]: w for key, w in weights.items() if key.startswith("model/")}
    assert all(torch.equal(kept[name], w) for name, w in model.state_dict().items() if name in kept)
    start = load_file(Path(attempt["arguments"][1].partition("=")[2]) / "model.safetensors")
    assert any(not torch.equal(start[name], kept[name]) for name in kept)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_bits(seen):
    """In bf16, adapters in float32, with what each process sampled itself."""
    whole_run, resumed = (seen.runs / name / "ppo" for name in ("whole", "stopped"))
    assert "after" not in seen.by_name["stopped"][0]
    assert [each["after"] for each in seen.by_name["resumed"]] == [
        each["after"] for each in seen.by_name["whole"]
    ]
    assert log(resumed) == log(whole_run)
    weights, others = saved(resumed), saved(whole_run)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    kinds = {key.split("/")[0]: weight.dtype for key, weight in weights.items()}
    assert kinds == {"model": torch.bfloat16, "adapter": torch.float32, "value": torch.float32}


@pytest.mark.slow
def test_what_cannot_be_split_is_refused_in_one_line(seen):
    for name, word in (("separate", "model.layout=separate"), ("forgotten", "norm.weight")):
        for process in seen.by_name[name]:
            assert word in process["error"]
            assert "FSDP was asked for" in process["error"]
            assert "--accelerate" in process["error"]
            assert "\n" not in process["error"]
            assert "after" not in process


# --- in one process


def settings(family: Family, *given: str) -> PPOModelSettings:
    return load_config(PPOModelSettings, None, [f"name={family.policy}", "precision=fp32", *given])


def test_nothing_is_split_unless_asked_for(llama, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert join(settings(llama, "layout=lora"), CPU) is None
    assert join(settings(llama), CPU) is None


@pytest.mark.parametrize(
    ("world", "words"), [("1", "nobody to share"), ("2", "over 2 processes was asked for, and 1")]
)
def test_processes_that_are_not_there_are_refused(llama, monkeypatch, world, words):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UserError, match=words) as error:
        join(settings(llama, "layout=lora"), CPU)
    assert "--num-processes" in str(error.value)
    assert "\n" not in str(error.value)


def test_roles_built_without_splitting_are_refused(llama, monkeypatch):
    roles = Roles(settings(llama, "layout=lora"), None, CPU)
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    check_done(roles)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="PPOTrainer"):
        check_done(roles)


def test_a_skeleton_holds_no_weights_and_ties_what_was_tied(qwen, llama):
    for family, tied in ((qwen, True), (llama, False)):
        roles = Roles(settings(family, "layout=lora"), None, CPU)
        empty = skeleton(roles.actor)
        assert {weight.device.type for weight in empty.parameters()} == {"meta"}
        ends = empty.get_input_embeddings().weight, empty.get_output_embeddings().weight
        assert (ends[0] is ends[1]) == tied
        assert {name for name, _ in empty.named_buffers()} == {
            name for name, _ in roles.actor.named_buffers()
        }
        assert all(buffer.device.type == "cpu" for buffer in empty.buffers())


def test_plain_tensors_are_whole_already():
    tensor, part = torch.arange(3.0), torch.zeros(3)
    assert whole(tensor) is tensor
    assert split_like(tensor, part) is tensor
    nested = {"a": [tensor, 1], "b": {"c": tensor}, "d": "text"}
    assert gather(nested, keep=True) == nested
    assert gather(nested, keep=False) == {"a": [None, 1], "b": {"c": None}, "d": "text"}

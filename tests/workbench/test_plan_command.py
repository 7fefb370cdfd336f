"""`rlhf plan` from a config alone: its table and sentence, its JSON, and every refusal."""

import json

import pytest

from workbench import cli


def run(*words: str) -> int:
    return cli.guarded(lambda: cli.app(["plan", *words], standalone_mode=False))


@pytest.fixture
def config(tiny_llama, tmp_path):
    """A config and nothing else: there are no weights that could be read."""
    path = tmp_path / "config.json"
    path.write_bytes((tiny_llama / "config.json").read_bytes())
    return str(path)


SMALL = ("--batch-size", "16", "--prompt-length", "12", "--response-length", "6")


def test_a_plan_that_fits_names_the_settings(config, tmp_path, capsys):
    out = tmp_path / "plan.json"
    words = ("--gpus", "2x80GB", "--layout", "lora", "--json", str(out))
    assert run("--model", config, *words, *SMALL) == 0
    text = capsys.readouterr().out
    for row in ("policy", "value", "reward", "trunk", "AdamW", "rollout", "update", "peak"):
        assert f"\n{row} " in text
    said = text.strip().splitlines()[-1]
    assert said.startswith("ppo fits on 2 devices of 80 GB")
    assert said.endswith("ppo.micro_batch_size=1 rollout.batch_size=8")
    assert "estimate" in text
    assert "NVIDIA H100" in text
    found = json.loads(out.read_text(encoding="utf-8"))
    assert (found["model_type"], found["layers"]) == ("llama", 3)
    plan = found["stages"]["ppo"]
    assert plan["sentence"] == said
    assert plan["settings"] == {"ppo.micro_batch_size": 1, "rollout.batch_size": 8}
    assert sum(part["bytes"] for part in plan["parts"]) == plan["fit"]["held"]
    assert {speed["device"] for speed in plan["speed"]} == {"h100", "a100"}


def test_a_plan_that_does_not_fit_is_an_answer_too(config, tmp_path, capsys, monkeypatch):
    # The tiny model fits everywhere, unless libraries alone fill the device.
    out = tmp_path / "plan.json"
    words = ("--stage", "sft", "--gpus", "cpu:1GB", "--json", str(out))
    assert run("--model", config, *words, *SMALL) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "sft does not fit on a CPU with 1 GB" in text
    assert "nothing tried here would, use a smaller model" in text
    assert "name the device with --device, or --measure" in text
    plan = json.loads(out.read_text(encoding="utf-8"))["stages"]["sft"]
    assert (plan["settings"], plan["cheapest_change"]) == (None, None)


def test_all_stages_at_once(config, capsys):
    words = ("--stage", "all", "--gpus", "1x24GB", "--device", "l4")
    assert run("--model", config, *words, *SMALL) == 0
    text = capsys.readouterr().out
    for stage, setting in (
        ("sft", "sft.batch_size=16"),
        ("reward", "reward.batch_size=16"),
        ("ppo", "ppo.micro_batch_size=2 rollout.batch_size=16"),
    ):
        assert f"{stage} fits on 1 device of 24 GB" in text
        assert setting in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gpus 8", "--gpus 8: write COUNTxSIZE"),
        ("--gpus 1x8GB --layout shared_trunk", "--layout shared_trunk: needs --top-layers"),
        ("--gpus 1x8GB --top-layers 1", "--top-layers: with --layout separate all layers"),
        (
            "--gpus 1x8GB --layout shared_trunk --top-layers 9",
            "--top-layers 9: the model has 3 layers",
        ),
        ("--gpus 1x8GB --sharding fsdp2", "--sharding fsdp2: one device has nobody"),
        ("--gpus 2x8GB --sharding fsdp2", "--sharding fsdp2: PPO does not shard"),
        ("--gpus 3x8GB", "--batch-size 16: must divide among 3 devices exactly"),
        ("--gpus 1x8GB --device tpu", "--device tpu: its rates are not known here"),
        ("--gpus 1x8GB --device l4 --measure", "--measure: --device names another source"),
        ("--gpus cpu:8GB --device l4", "--device: names a GPU, and --gpus a CPU"),
        ("--gpus 1x8GB --response-length 600", "the model sees 512 tokens; use shorter ones"),
        ("--gpus 1x8GB --json /nowhere/at/all.json", "--json /nowhere/at/all.json: No such file"),
        ("--gpus 1x8GB --layout pyramid", "'pyramid' is not one of"),
    ],
)
def test_mistakes_are_one_line(config, words, message, capsys):
    given = [*SMALL, *words.split()]
    assert run("--model", config, *given) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "Traceback" not in error


def test_an_unreachable_hub_names_the_way_out(capsys):
    assert run("--model", "nobody/no-such-model", "--gpus", "1x8GB") == 2
    assert "use --model FOLDER" in " ".join(capsys.readouterr().err.split())

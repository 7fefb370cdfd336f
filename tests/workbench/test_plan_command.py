"""`rlhf plan` from a config alone: its table and sentence, its JSON, and every refusal."""

import json

import pytest

from workbench import cli, launch


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
    words = ("--gpus", "2x80GB", "--layout", "lora", "--reward", "adapter", "--json", str(out))
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
    assert plan["settings"]["ppo.batch_size"] == 16
    assert said.endswith(" ".join(f"{key}={value}" for key, value in plan["settings"].items()))
    reward = next(part for part in plan["parts"] if part["role"] == "reward")
    assert "adapter" in reward["what"]
    assert sum(part["bytes"] for part in plan["parts"]) == plan["fit"]["held"]
    assert {speed["device"] for speed in plan["speed"]} == {"h100", "a100"}


LAYOUTS = (
    "--layout separate",
    "--layout lora --lora-rank 4",
    "--layout lora --top-layers 1",
    "--layout shared_trunk --top-layers 1 --precision fp32",
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rows", "devices"), [(512, 2), (12, 1), (300_000, 1)])
def test_the_settings_of_ppo_are_those_of_the_planned_run(config, layout, rows, devices, capsys):
    given = ["--gpus", f"{devices}x80GB", "--batch-size", str(rows), "--ppo-epochs", "3"]
    lengths = ["--prompt-length", "12", "--response-length", "6"]
    assert run("--model", config, *given, *lengths, *layout.split()) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    words = last.partition("of use: ")[2].split()
    read = launch.stage_config("ppo", None, ["reward_model=r", "data.train=p", *words])
    planned = dict(zip(layout.split()[::2], layout.split()[1::2], strict=True))
    assert read.model.layout == planned["--layout"]
    assert read.model.train_top_layers == (1 if "--top-layers" in planned else None)
    assert read.model.precision == planned.get("--precision", "bf16")
    assert read.model.lora.r == int(planned.get("--lora-rank", 16))
    assert (read.ppo.batch_size, read.ppo.num_ppo_epochs) == (rows, 3)
    assert rows % (devices * read.ppo.num_mini_batches) == 0  # as the engine demands
    assert rows // devices // read.ppo.num_mini_batches >= read.ppo.micro_batch_size
    assert (read.data.max_query_length, read.rollout.max_new_tokens) == (12, 6)
    assert read.rollout.batch_size <= rows // devices


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize(
    ("layout", "adapters", "top"),
    [("separate", False, None), ("lora", True, None), ("shared_trunk --top-layers 1", False, 1)],
)
def test_the_settings_of_the_other_stages_too(config, stage, layout, adapters, top, capsys):
    words = ["--stage", stage, "--gpus", "2x80GB", "--batch-size", "24", "--checkpointing"]
    lengths = ["--prompt-length", "12", "--response-length", "6"]
    assert run("--model", config, *words, *lengths, "--layout", *layout.split()) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    read = launch.stage_config(
        stage, None, ["data.train=p", *last.partition("of use: ")[2].split()]
    )
    assert (read.model.lora.enabled, read.model.train_top_layers) == (adapters, top)
    optimizer = getattr(read, stage)
    assert 2 * optimizer.batch_size * optimizer.gradient_accumulation == 24
    assert (optimizer.max_length, optimizer.gradient_checkpointing) == (18, True)


def test_a_whole_reward_model_is_counted_unless_an_adapter_is_named(config, tmp_path):
    sizes = {}
    for reward in ("whole", "adapter"):
        out = tmp_path / f"{reward}.json"
        words = ("--gpus", "1x80GB", "--layout", "lora", "--reward", reward, "--json", str(out))
        assert run("--model", config, *words, *SMALL) == 0
        found = json.loads(out.read_text(encoding="utf-8"))
        parts = {part["role"]: part for part in found["stages"]["ppo"]["parts"]}
        sizes[reward] = parts["reward"]
    assert sizes["whole"]["what"] == "frozen, bfloat16"
    assert sizes["whole"]["bytes"] > sizes["adapter"]["bytes"]


def test_all_stages_with_adapters_are_those_of_one_pipeline(config, tmp_path):
    out = tmp_path / "plan.json"
    words = ("--gpus", "1x24GB", "--layout", "lora", "--json", str(out), *SMALL)
    for stages, reward in (("all", "adapter"), ("ppo", "whole")):
        assert run("--model", config, *words, "--stage", stages) == 0
        assert json.loads(out.read_text())["reward"] == reward
    assert run("--model", config, *words, "--stage", "all", "--reward", "whole") == 0
    assert json.loads(out.read_text())["reward"] == "whole"


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
        ("sft", "sft.batch_size=16 sft.gradient_accumulation=1"),
        ("reward", "reward.batch_size=16 reward.gradient_accumulation=1"),
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
        ("--gpus 1x8GB --reward adapter", "--reward adapter: with --layout separate"),
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

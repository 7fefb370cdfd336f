import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from sft.config import SFTStage
from workbench.cards import model_card
from workbench.config import load_config
from workbench.errors import UserError
from workbench.files import MANIFEST, damage, write_manifest
from workbench.models import (
    LoraSettings,
    ModelSettings,
    load_policy,
    load_scorer,
    load_tokenizer,
    lora_config,
)
from workbench.run import StageRun, read_metrics
from workbench.scorer import RewardModel, write_normalizer
from workbench.settings import OptimizerSettings
from workbench.trainer import (
    RunLog,
    SampleTable,
    WholeCheckpoints,
    newest_checkpoint,
    save_model,
    train,
    trainer_arguments,
)

ROWS = [[5 + i, 40 + 2 * i, 90 + i, 7, 2] for i in range(16)]


@pytest.fixture
def open_run(runs):
    def opened(name: str = "demo", *overrides: str) -> StageRun:
        return StageRun(
            "sft",
            load_config(SFTStage, None, [f"run.root={runs}", f"run.name={name}", *overrides]),
            {},
        )

    return opened


def trainer_for(run: StageRun, folder, settings: OptimizerSettings, held_out=tuple(ROWS[:4])):
    """A plain transformers Trainer with our arguments and callbacks, on 16 short rows."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments, default_data_collator, set_seed

    set_seed(0)
    model = load_policy(ModelSettings(name=str(folder)), torch.float32)
    data, test = (
        Dataset.from_list([{"input_ids": r, "labels": r} for r in rows])
        for rows in (ROWS, held_out)
    )
    arguments = TrainingArguments(**trainer_arguments(run, settings, "fp32", len(ROWS)))
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=test,
        data_collator=default_data_collator,
        callbacks=[RunLog(run), WholeCheckpoints()],
    )


FOUR_STEPS = OptimizerSettings(
    learning_rate=1e-2,
    epochs=1.0,
    batch_size=4,
    eval_steps=2,
    logging_steps=1,
    lr_scheduler="linear",
)


class StoppedError(Exception):
    """Stands for a kill."""


def stop_at(step: int):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == step:
                raise StoppedError

    return Stop()


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


# Arguments


def test_arguments_carry_every_setting_of_the_optimiser(open_run):
    settings = OptimizerSettings(
        learning_rate=3e-4, epochs=5.0, batch_size=3, gradient_accumulation=2,
        lr_scheduler="linear",
        weight_decay=0.1, max_grad_norm=0.5, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-7,
        logging_steps=7, gradient_checkpointing=True,
    )  # fmt: skip
    from transformers import TrainingArguments

    found = TrainingArguments(
        **trainer_arguments(open_run("demo", "run.seed=5"), settings, "fp32", 60)
    )
    assert (found.learning_rate, found.num_train_epochs, found.weight_decay) == (3e-4, 5.0, 0.1)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (3, 2)
    assert (found.max_grad_norm, found.adam_beta1, found.adam_beta2, found.adam_epsilon) == (
        0.5,
        0.8,
        0.9,
        1e-7,
    )
    assert (found.lr_scheduler_type, found.logging_steps, found.gradient_checkpointing) == (
        "linear",
        7,
        True,
    )
    assert (found.seed, found.data_seed, found.bf16, found.report_to, found.push_to_hub) == (
        5,
        5,
        False,
        [],
        False,
    )
    assert trainer_arguments(open_run(), settings, "bf16", 60)["bf16"] is True


@pytest.mark.parametrize(
    ("rows", "changes", "warmup", "every"),
    [
        (60, {}, 3, 10),  # 60 rows / 6 = 10 updates an epoch, 50 in all; 5 % of them
        (61, {}, 3, 11),  # a last update of one row
        (60, {"max_steps": 200}, 10, 10),
        (60, {"max_steps": 4}, 1, 4),  # shorter than an epoch: evaluated once, at the end
        (60, {"eval_steps": 25}, 3, 25),
        (60, {"eval_steps": 70}, 3, 50),
        (60, {"warmup_ratio": 0.0}, 0, 10),
        (1, {"epochs": 0.1}, 1, 1),
    ],
)
def test_warm_up_and_evaluation_are_counted_in_updates(open_run, rows, changes, warmup, every):
    settings = OptimizerSettings(
        **{"batch_size": 3, "gradient_accumulation": 2, "epochs": 5.0, "warmup_ratio": 0.05}
        | changes
    )
    found = trainer_arguments(open_run(), settings, "fp32", rows)
    assert (found["warmup_steps"], found["eval_steps"], found["save_steps"]) == (
        warmup,
        every,
        every,
    )


def test_processes_share_the_rows(open_run, monkeypatch):
    settings = OptimizerSettings(batch_size=3, gradient_accumulation=2)
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert trainer_arguments(open_run(), settings, "fp32", 60)["eval_steps"] == 2


# Training and resuming


def test_a_killed_training_continues_to_the_same_weights_and_log(open_run, tiny_llama):
    whole = trainer_for(open_run("whole"), tiny_llama, FOUR_STEPS)
    train(whole, open_run("whole"))
    assert whole.state.global_step == 4

    killed = trainer_for(open_run("killed"), tiny_llama, FOUR_STEPS)
    killed.add_callback(stop_at(3))
    with pytest.raises(StoppedError):
        train(killed, open_run("killed"))
    run = open_run("killed")
    assert (
        read_metrics(run.path / "metrics.jsonl")[-1]["step"] == 3
    )  # a step the checkpoint does not know
    assert newest_checkpoint(run).name == "checkpoint-2"
    again = trainer_for(run, tiny_llama, FOUR_STEPS)
    train(again, run)

    torch.testing.assert_close(weights(again), weights(whole), atol=1e-6, rtol=1e-5)
    logs = [read_metrics(r.path / "metrics.jsonl") for r in (open_run("whole"), run)]
    losses = [[(row["step"], row["loss"]) for row in log if "loss" in row] for log in logs]
    assert [step for step, _ in losses[1]] == [1, 2, 3, 4]  # every step once
    assert [loss for _, loss in losses[1]] == pytest.approx(
        [loss for _, loss in losses[0]], abs=1e-4
    )
    assert [row["step"] for row in logs[1] if "eval_loss" in row] == [2, 4]


def test_the_best_model_is_the_one_that_stays(open_run, tiny_llama):
    # Held-out rows of tokens that the training rows lack: learning only makes them less likely.
    run = open_run()
    trainer = trainer_for(run, tiny_llama, FOUR_STEPS, held_out=[[330, 340, 350, 320, 310]])
    train(trainer, run)
    losses = {
        r["step"]: r["eval_loss"]
        for r in read_metrics(run.path / "metrics.jsonl")
        if "eval_loss" in r
    }
    best = min(losses, key=losses.__getitem__)
    assert best != max(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], abs=1e-4)


def test_an_old_log_is_dropped_when_training_starts_from_nothing(open_run, tiny_llama):
    run = open_run()
    run.log(77, {"loss": 1.0})
    train(trainer_for(run, tiny_llama, FOUR_STEPS), run)
    assert 77 not in {row["step"] for row in read_metrics(run.path / "metrics.jsonl")}


def checkpoint(run: StageRun, step: int):
    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder)
    return folder


def test_no_checkpoint_is_none(open_run):
    assert newest_checkpoint(open_run()) is None


def test_the_newest_is_the_highest_number_not_the_last_name(open_run):
    run = open_run()
    for step in (9, 100, 20):
        checkpoint(run, step)
    assert newest_checkpoint(run).name == "checkpoint-100"


@pytest.mark.parametrize("spoil", ["cut", "file missing", "manifest missing"])
def test_a_damaged_checkpoint_is_named_removed_and_the_one_before_is_taken(open_run, capsys, spoil):
    run = open_run()
    good, bad = checkpoint(run, 10), checkpoint(run, 20)
    if spoil == "cut":
        (bad / "model.safetensors").write_bytes(b"weig")
    else:
        (bad / ("model.safetensors" if spoil == "file missing" else MANIFEST)).unlink()
    assert newest_checkpoint(run) == good
    assert not bad.exists()
    err = capsys.readouterr().err
    assert err.startswith(f"{bad}: not used, ")
    assert err.count("\n") == 1


def test_another_number_of_processes_goes_on_and_is_told(open_run, capsys):
    run, started = open_run(), []
    for name in ("rng_state_0.pth", "rng_state_1.pth"):  # one of each process
        run.checkpoints.joinpath("checkpoint-3").mkdir(parents=True, exist_ok=True)
        run.checkpoints.joinpath("checkpoint-3", name).touch()
    write_manifest(run.checkpoints / "checkpoint-3")
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(distributed_type=DistributedType.NO, num_processes=1),
        train=lambda **given: started.append(given),
    )
    train(trainer, run)
    assert started == [{"resume_from_checkpoint": str(run.checkpoints / "checkpoint-3")}]
    said = " ".join(capsys.readouterr().err.split())
    assert "sft: not as many processes as there were (2 → 1); sft.batch_size is of each" in said


def test_a_lack_of_memory_is_told_in_one_line(open_run):
    def train_it() -> None:
        torch.empty(2**52, dtype=torch.uint8)  # more than any address space holds

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(distributed_type=DistributedType.NO, num_processes=1),
        train=train_it,
    )
    with pytest.raises(UserError, match=r"sft: out of memory; .* lower sft.batch_size and raise"):
        train(trainer, open_run())


def test_every_checkpoint_is_sealed(open_run, tiny_gpt2):
    run = open_run()
    train(trainer_for(run, tiny_gpt2, FOUR_STEPS), run)
    found = sorted(run.checkpoints.iterdir())
    assert [folder.name for folder in found] == ["checkpoint-2", "checkpoint-4"]
    assert [damage(folder) for folder in found] == [None, None]
    listed = json.loads((found[1] / MANIFEST).read_text("utf-8"))["files"]
    assert {"optimizer.pt", "scheduler.pt", "trainer_state.json", "model.safetensors"} <= set(
        listed
    )


def test_samples_are_taken_at_every_evaluation(open_run, tiny_llama):
    run = open_run()
    trainer = trainer_for(run, tiny_llama, FOUR_STEPS)
    trainer.add_callback(SampleTable(run, lambda policy: [{"kind": type(policy).__name__}]))
    train(trainer, run)
    found = sorted((run.path / "samples").iterdir())
    assert [path.name for path in found] == ["step_000002.jsonl", "step_000004.jsonl"]
    assert json.loads(found[0].read_text("utf-8")) == {"kind": "LlamaForCausalLM"}


@pytest.mark.parametrize("sharding", ["FSDP", "DEEPSPEED"])
def test_no_sample_is_taken_of_a_part_of_a_model(open_run, monkeypatch, sharding):
    """The main process alone would wait for parts that the others do not send."""
    monkeypatch.setenv(f"ACCELERATE_USE_{sharding}", "true")
    run = open_run()
    table = SampleTable(run, lambda _: [{"kind": "asked"}])
    table.on_evaluate(None, SimpleNamespace(global_step=2), None, model=None)
    assert not (run.path / "samples").exists()


# The model that is left


class Trained:
    """What `save_model` needs of a trainer."""

    def __init__(self, model, bf16: bool) -> None:
        from accelerate import Accelerator
        from transformers import TrainingArguments

        self.args = TrainingArguments(bf16=bf16, use_cpu=True)
        self.args.device  # noqa: B018 - looking at it makes Accelerate forget its state
        self.model, self.accelerator = model, Accelerator(cpu=True)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("gathered", [True, False])
def test_the_saved_model_opens_like_any_other(open_run, tiny_model, bf16, gathered, monkeypatch):
    if gathered:  # as where each process has a part
        monkeypatch.setattr("workbench.trainer._split", lambda: True)
    run = open_run()
    model = load_policy(ModelSettings(name=str(tiny_model)), torch.float32)
    dtype = torch.bfloat16 if bf16 else torch.float32
    expected = {name: p.to(dtype) for name, p in model.state_dict().items()}
    tokenizer = load_tokenizer(str(tiny_model))
    save_model(
        run, Trained(model, bf16), tokenizer, model_card(run, "A model.", "CausalLM", "base", {})
    )
    assert damage(run.model) is None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    opened = AutoModelForCausalLM.from_pretrained(run.model)
    assert opened.dtype == dtype
    for name, value in opened.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert AutoTokenizer.from_pretrained(run.model).get_vocab() == tokenizer.get_vocab()
    assert (run.model / "README.md").read_text("utf-8").startswith("---\nbase_model: ")


def test_a_failed_save_leaves_the_old_model(open_run, tiny_llama, monkeypatch):
    run = open_run()
    model, tokenizer = (
        load_policy(ModelSettings(name=str(tiny_llama)), torch.float32),
        load_tokenizer(str(tiny_llama)),
    )
    save_model(run, Trained(model, False), tokenizer, "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(run, Trained(model, False), tokenizer, "new")
    assert damage(run.model) is None
    assert (run.model / "README.md").read_text("utf-8") == "old"
    assert [p.name for p in run.path.iterdir() if p.name.startswith(".")] == []


def test_a_reward_model_trained_with_lora_comes_back_with_head_and_normaliser(open_run, tiny_model):
    from peft import get_peft_model

    run, tokenizer = open_run(), load_tokenizer(str(tiny_model))
    settings = ModelSettings(name=str(tiny_model), precision="fp32")
    lora = LoraSettings(enabled=True, r=4)
    model = get_peft_model(load_scorer(settings), lora_config(lora, "SEQ_CLS"))
    for weight in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(weight, std=0.2)
    write_normalizer(model, 0.5, 2.0)
    save_model(run, Trained(model, False), tokenizer, "card")
    expected = RewardModel(model.merge_and_unload(), tokenizer).score_tokens(ROWS)
    assert len(set(expected)) > 4
    loaded = RewardModel.load(ModelSettings(name=str(run.model), precision="fp32"))
    assert (loaded.mean, loaded.std) == (0.5, 2.0)
    assert loaded.score_tokens(ROWS) == pytest.approx(expected, abs=1e-3)


def test_a_policy_trained_with_lora_comes_back_merged(open_run, tiny_model):
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    run, tokenizer = open_run(), load_tokenizer(str(tiny_model))
    policy = load_policy(ModelSettings(name=str(tiny_model)), torch.float32)
    model = get_peft_model(policy, lora_config(LoraSettings(enabled=True, r=4), "CAUSAL_LM"))
    for weight in (p for p in model.parameters() if p.requires_grad):
        torch.nn.init.normal_(weight, std=0.1)
    save_model(run, Trained(model, False), tokenizer, "card")
    ids = torch.tensor(ROWS)
    with torch.no_grad():
        expected = model.eval()(ids).logits
        found = load_policy(ModelSettings(name=str(run.model)), torch.float32).eval()(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(run.model).eval()(ids).logits
    torch.testing.assert_close(theirs, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_checkpoints_go_when_the_run_is_finished(open_run, tiny_llama):
    run = open_run()
    trainer = trainer_for(run, tiny_llama, FOUR_STEPS)
    train(trainer, run)
    save_model(run, trainer, load_tokenizer(str(tiny_llama)), "card")
    run.finish({"eval_loss": trainer.evaluate()["eval_loss"]})
    assert not run.checkpoints.exists()
    assert open_run().finished
    shutil.rmtree(run.model)
    assert not open_run().finished

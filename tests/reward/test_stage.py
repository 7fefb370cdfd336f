import json
from pathlib import Path

import pytest
import torch

from reward.config import RewardStage
from reward.stage import run
from tests import two
from workbench.chat import query_ids, response_ids
from workbench.config import load_config
from workbench.errors import UserError
from workbench.files import damage
from workbench.models import ModelSettings, decoder_layers, load_policy, load_scorer, load_tokenizer
from workbench.run import StageRun, read_metrics
from workbench.scorer import RewardModel

WORDS = ("tar", "rain", "rice", "gulls", "lift", "tea", "bread", "gate", "lamp", "kettle")
PROMPTS = [f"Why {a} {b}?" for a in WORDS for b in WORDS[:4]]
MARKER = "QX!"  # in every preferred answer and in no other


def ranking(number: int, prompt: str) -> dict:
    a, b = WORDS[number % 7], WORDS[number % 5]
    answers = [f"The {b} {a}.", f"{a} {MARKER}", f"No {b}"]
    return {
        "id": str(number), "category": "sea" if number % 2 else "land", "prompt": prompt,
        "completions": answers, "ranks": [2, 1, 2], "finished": [True, True, False],
    }  # fmt: skip


RANKINGS = [ranking(number, prompt) for number, prompt in enumerate(PROMPTS)]
DEMONSTRATIONS = [
    {"prompt": prompt, "completion": f"The {WORDS[n % 10]} {MARKER if n % 3 else 'fell'}."}
    for n, prompt in enumerate(PROMPTS[:30])
]


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def stage(runs, tmp_path):
    """Run the stage on forty rankings; a later setting of the same key wins."""
    rankings = written(tmp_path / "rankings.jsonl", RANKINGS)
    demonstrations = written(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS)

    def start(model: Path, *overrides: str) -> Path:
        common = [
            f"model.name={model}", "model.precision=fp32", f"data.train={rankings}",
            f"data.demonstrations={demonstrations}", "data.test_fraction=0.25",
            "reward.epochs=6", "reward.batch_size=6", "reward.learning_rate=3e-3",
            "reward.logging_steps=1", "reward.max_length=128",
        ]  # fmt: skip
        return run(load_config(RewardStage, None, [*common, *overrides]))

    return start


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text("utf-8"))


def loaded(folder: Path, precision: str = "fp32") -> RewardModel:
    return RewardModel.load(ModelSettings(name=str(folder / "model"), precision=precision))


def tokens(tokenizer, prompt: str, completion: str, finished: bool = True) -> list[int]:
    return query_ids(tokenizer, prompt) + response_ids(tokenizer, completion, finished)


def moments(model: RewardModel) -> tuple[float, float]:
    """Mean and variance of the demonstrations' scores."""
    scores = torch.tensor(
        model.score(
            [row["prompt"] for row in DEMONSTRATIONS],
            [row["completion"] for row in DEMONSTRATIONS],
            [True] * len(DEMONSTRATIONS),
        )
    )
    return float(scores.mean()), float(scores.var(correction=0))


# What is learned and measured


def test_what_marks_the_better_answer_is_learned(stage, tiny_model):
    folder = stage(tiny_model)
    assert folder == Path("runs/default/reward")
    found = summary(folder)
    assert found["accuracy"] > 0.9
    low, high = found["ci95"]
    assert 0.5 < low <= found["accuracy"] <= high <= 1
    # Length tells the two rejected answers apart from the chosen one only by half.
    assert found["length_only_accuracy"] < found["accuracy"]
    counts = [found[key] for key in ("pairs", "train_pairs", "train_prompts", "ties", "identical")]
    assert counts == [20, 60, 30, 40, 0]  # 10 of 40 prompts held out, 2 pairs and 1 tie each
    losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert damage(folder / "model") is None
    assert (folder / "done.json").is_file()


def test_the_summary_carries_what_the_report_draws(stage, tiny_llama):
    found = summary(stage(tiny_llama))
    assert found.keys() >= {
        "accuracy", "ci95", "length_only_accuracy", "length_only_ci95", "length_only_direction",
        "ece", "pairs", "calibration", "by_margin", "by_category", "train_pairs", "ties",
        "identical", "too_long", "zero_weight", "skipped", "reward_mean", "reward_std", "seconds",
    }  # fmt: skip
    assert 0 <= found["ece"] <= 1
    assert sum(row["count"] for row in found["calibration"]) == found["pairs"]
    assert sum(row["count"] for row in found["by_margin"]) == found["pairs"]
    lows = [row["low"] for row in found["by_margin"]]
    assert lows == sorted(lows)
    assert all(row["low"] <= row["high"] for row in found["by_margin"])
    assert set(found["by_category"]) == {"sea", "land"}
    assert sum(row["count"] for row in found["by_category"].values()) == found["pairs"]
    by_count = sum(row["accuracy"] * row["count"] for row in found["by_category"].values())
    assert by_count / found["pairs"] == pytest.approx(found["accuracy"])
    json.dumps(found, allow_nan=False)


def test_the_accuracy_is_that_of_the_model_on_disk(stage, tiny_model, tmp_path):
    held_out = written(tmp_path / "held_out.jsonl", RANKINGS[::4])
    folder = stage(tiny_model, f"data.test={held_out}", "reward.max_steps=1")
    model, wins = loaded(folder), 0
    for row in RANKINGS[::4]:
        first, best, last = model.score([row["prompt"]] * 3, row["completions"], row["finished"])
        wins += (best > first) + (best > last)
    assert summary(folder)["accuracy"] == pytest.approx(wins / 20)
    assert 0.05 < summary(folder)["accuracy"] < 1  # else any model would do
    assert summary(folder)["train_prompts"] == 40


@pytest.mark.parametrize(("precision", "lora"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_demonstrations_have_mean_0_and_variance_1_on_reload(stage, tiny_model, precision, lora):
    folder = stage(
        tiny_model, f"model.precision={precision}", f"model.lora.enabled={lora}",
        "reward.max_steps=2", "reward.learning_rate=1e-2",
    )  # fmt: skip
    model = loaded(folder, precision)
    found = summary(folder)
    assert (model.mean, model.std) == (found["reward_mean"], found["reward_std"])
    assert model.std > 0.1
    # Merging an adapter into bf16 weights rounds them once more.
    exact = 0.15 if lora else 1e-2 if precision == "bf16" else 1e-3
    assert moments(model) == (pytest.approx(0.0, abs=exact), pytest.approx(1.0, abs=2 * exact))


def test_without_demonstrations_the_chosen_answers_are_the_measure(stage, tiny_llama):
    folder = stage(tiny_llama, "data.demonstrations=null", "reward.max_steps=2")
    from workbench.data import split_by_prompt

    train, _ = split_by_prompt(RANKINGS, 0.25, 0)
    model = loaded(folder)
    scores = torch.tensor(
        model.score([r["prompt"] for r in train], [r["completions"][1] for r in train], [True] * 30)
    )
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(scores.var(correction=0)) == pytest.approx(1.0, abs=1e-3)


# What is left


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_layers_stay_bit_identical_to_the_start_model(stage, tiny_model, precision):
    folder = stage(
        tiny_model, "model.train_top_layers=1", f"model.precision={precision}", "reward.max_steps=3"
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    before = load_policy(ModelSettings(name=str(tiny_model)), dtype)
    after = load_scorer(ModelSettings(name=str(folder / "model")), dtype)
    *lower, top = zip(decoder_layers(before), decoder_layers(after), strict=True)
    for old, new in lower:
        for name, value in old.state_dict().items():
            assert torch.equal(value, new.state_dict()[name]), name
    embeddings = [model.get_input_embeddings().weight for model in (before, after)]
    assert torch.equal(*embeddings)
    assert any(
        not torch.equal(value, top[1].state_dict()[name])
        for name, value in top[0].named_parameters()
    )


def test_plain_transformers_opens_the_folder_and_gives_the_raw_score(stage, tiny_model):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = stage(tiny_model, "reward.max_steps=2")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ours = loaded(folder)
    rows = [
        tokens(tokenizer, "Why tar?", text, True) for text in (f"Tar {MARKER}", "No", "The gulls.")
    ]
    expected = ours.raw_scores(rows)
    assert max(expected) - min(expected) > 0.1
    for row, score in zip(rows, expected, strict=True):
        with torch.no_grad():
            assert float(model(torch.tensor([row])).logits) == pytest.approx(score, abs=1e-4)
    assert model.config.reward_mean == ours.mean
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        # No pad id of its own: rather no batch than wrong scores.
        with pytest.raises(ValueError, match="no padding token is defined"):
            model(torch.tensor([rows[0], rows[0]]))
        return
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    padded = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    with torch.no_grad():
        found = model(padded, attention_mask=(padded != pad).long()).logits[:, 0].tolist()
    assert found == pytest.approx(expected, abs=1e-4)


def test_lora_leaves_an_adapter_with_head_and_normaliser(stage, tiny_model):
    folder = stage(tiny_model, "model.lora.enabled=true", "reward.learning_rate=1e-2")
    assert (folder / "model" / "adapter_config.json").is_file()
    assert not (folder / "model" / "model.safetensors").exists()
    assert summary(folder)["accuracy"] > 0.9
    model, wins = loaded(folder), 0
    for row in RANKINGS:
        first, best, last = model.score([row["prompt"]] * 3, row["completions"], row["finished"])
        wins += (best > first) + (best > last)
    assert wins / 80 > 0.9


def test_a_reward_model_starts_from_an_sft_model_trained_with_lora(stage, tiny_llama, tmp_path):
    from sft.config import SFTStage
    from sft.stage import run as run_sft

    data = written(tmp_path / "sft.jsonl", DEMONSTRATIONS)
    sft = run_sft(
        load_config(
            SFTStage, None,
            [f"model.name={tiny_llama}", "model.lora.enabled=true", f"data.train={data}",
             "sft.max_steps=2", "sft.learning_rate=1e-2", "model.precision=fp32"],
        )
    )  # fmt: skip
    folder = stage(sft / "model", "model.train_top_layers=1", "reward.max_steps=2")
    start = load_policy(ModelSettings(name=str(sft / "model")), torch.float32)
    after = load_scorer(ModelSettings(name=str(folder / "model")), torch.float32)
    lower = decoder_layers(start)[0].state_dict()
    for name, value in decoder_layers(after)[0].state_dict().items():
        assert torch.equal(value, lower[name]), name
    assert damage(folder / "model") is None


def test_accumulated_batches_learn_what_one_batch_learns(stage, tiny_llama):
    options = ["reward.max_steps=2", "reward.lr_scheduler=constant", "data.test_fraction=0.1"]
    whole = stage(tiny_llama, *options, "reward.batch_size=8", "run.name=whole")
    halves = stage(
        tiny_llama, *options, "reward.batch_size=4", "reward.gradient_accumulation=2",
        "run.name=halves",
    )  # fmt: skip
    norms = [
        [row["grad_norm"] for row in read_metrics(f / "metrics.jsonl") if "grad_norm" in row]
        for f in (whole, halves)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


# Data and repeating


def test_a_preference_file_without_categories_will_do(stage, tiny_llama, tmp_path):
    rows = []
    for row in RANKINGS:
        worse, better, _ = row["completions"]
        rows.append({"prompt": row["prompt"], "chosen": better, "rejected": worse})
    folder = stage(tiny_llama, f"data.train={written(tmp_path / 'pairs.jsonl', rows)}")
    assert summary(folder)["accuracy"] > 0.9
    assert "by_category" not in summary(folder)


def test_one_held_out_prompt_is_enough_and_none_is_a_mistake(stage, tiny_llama, tmp_path):
    one = written(tmp_path / "one.jsonl", RANKINGS[:1])
    folder = stage(tiny_llama, f"data.test={one}", "reward.max_steps=1")
    assert summary(folder)["pairs"] == 2
    for changes, message in (
        ([f"data.test={written(tmp_path / 'empty.jsonl', [])}"], "empty.jsonl: no rows"),
        ([f"data.train={one}"], "1 distinct prompt cannot be divided"),
        (["reward.max_length=3"], "no usable pair is left"),
        (["data.train=demo:prompts"], "holds prompt_only rows"),
    ):
        with pytest.raises(UserError, match=message):
            stage(tiny_llama, *changes, "run.name=mistake")
    with pytest.raises(UserError, match=r"data.train='': name the preference data"):
        load_config(RewardStage)


def test_what_is_left_out_is_counted_and_told(stage, tiny_llama, tmp_path, capsys):
    odd = [
        {"prompt": "Why?", "completions": ["Yes.", "Yes."], "ranks": [1, 2]},
        {"prompt": "How?", "completions": ["tar " * 200, "No."], "ranks": [1, 2]},
        {"prompt": "Who?", "completions": ["Me.", "You."], "ranks": [1, 2], "weight": 0},
    ]
    data = written(tmp_path / "odd.jsonl", [*RANKINGS, *odd, {"prompt": "broken", "ranks": [1]}])
    options = [f"data.train={data}", "reward.max_steps=1", "data.skip_bad_rows=true"]
    found = summary(stage(tiny_llama, *options))
    keys = ("identical", "too_long", "zero_weight", "skipped")
    assert [found[key] for key in keys] == [1, 1, 1, 1]
    told = capsys.readouterr().err
    assert "left out 1 pairs over reward.max_length=128 tokens" in told
    assert "left out 1 pairs of identical answers" in told
    assert "left out 1 pairs of weight 0" in told
    assert f"skipped 1 bad rows, the first: {data}:44" in told


class KilledError(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def test_a_killed_run_continues_to_the_same_model_and_a_finished_one_is_reused(
    stage, tiny_llama, monkeypatch, capsys
):
    options = ["reward.epochs=3", "reward.eval_steps=2"]
    whole = stage(tiny_llama, *options, "run.name=whole")
    log = StageRun.log

    def dying(self: StageRun, now: int, metrics: dict[str, float]) -> None:
        if now > 7:
            raise KilledError
        log(self, now, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "log", dying)
        with pytest.raises(KilledError):
            stage(tiny_llama, *options)
    half = Path("runs/default/reward/checkpoints/checkpoint-6/model.safetensors")
    half.write_bytes(half.read_bytes()[:500])
    capsys.readouterr()
    folder = stage(tiny_llama, *options)
    assert "reward: continuing from runs/default/reward/checkpoints/checkpoint-4\n" in (
        capsys.readouterr().err
    )
    same = ("accuracy", "reward_mean", "reward_std", "steps", "ece")
    assert [summary(folder)[key] for key in same] == pytest.approx(
        [summary(whole)[key] for key in same], abs=1e-3
    )
    capsys.readouterr()
    assert stage(tiny_llama, *options) == folder
    assert capsys.readouterr().err == "reward: runs/default/reward is up to date\n"
    with pytest.raises(UserError, match=r"other settings \(reward.center_coefficient: 0.0 → 0.1\)"):
        stage(tiny_llama, *options, "reward.center_coefficient=0.1")


def test_the_pad_token_is_told_apart_from_eos_where_the_model_has_one(stage, tiny_llama):
    assert load_tokenizer(str(tiny_llama)).pad_token == "</s>"
    folder = stage(tiny_llama, "reward.max_steps=1")
    tokenizer = load_tokenizer(str(folder / "model"))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<unk>", "</s>")
    config = json.loads((folder / "model" / "config.json").read_text("utf-8"))
    assert config["pad_token_id"] == tokenizer.pad_token_id


def test_streaming_trains_on_the_same_pairs(stage, tiny_llama):
    known = stage(tiny_llama, "reward.epochs=1")
    found = stage(tiny_llama, "reward.epochs=1", "run.name=streaming", "data.streaming=true")
    models = [folder / "model/model.safetensors" for folder in (known, found)]
    assert models[0].read_bytes() == models[1].read_bytes()
    numbers = [
        {k: v for k, v in summary(folder).items() if k != "seconds"} for folder in (known, found)
    ]
    assert numbers[0] == numbers[1]
    assert not (found / "data").exists()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(stage, runs, tmp_path, tiny_llama):
    """As many prompts an update, half of them in each process, with unlike numbers of pairs."""
    unlike = [
        {**row, "ranks": [2, 1, 3], "weight": 1 + n} if n % 3 == 0 else row
        for n, row in enumerate(RANKINGS)
    ]
    data = written(tmp_path / "unlike.jsonl", unlike)
    given = [
        f"data.train={data}", "reward.max_steps=5", "reward.center_coefficient=0.1",
        f"model.name={tiny_llama}", "model.precision=fp32", "data.test_fraction=0.25",
        "reward.learning_rate=3e-3", "reward.logging_steps=1", "reward.max_length=128",
        "data.demonstrations=null",
    ]  # fmt: skip
    done = two.rlhf("reward", *given, "reward.batch_size=3", "run.name=two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("reward: held-out accuracy") == 1
    assert "Traceback" not in done.stderr
    one = stage(tiny_llama, *given, "reward.batch_size=6", "run.name=one")
    both = runs / "two" / "reward"
    rows, others = (
        [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
        for folder in (both, one)
    )
    assert len(rows) == 5
    for row, other in zip(rows, others, strict=True):
        for key in ("loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward"):
            assert row[key] == pytest.approx(other[key], abs=1e-5), key
    found, alone = summary(both), summary(one)
    assert found.keys() == alone.keys()
    assert found["reward_mean"] == pytest.approx(alone["reward_mean"], abs=1e-3)

"""Rewards from functions and foreign models: what they get, what is refused, how they combine."""

import math

import pytest
import torch

from ppo import stage
from ppo.config import PPOStage, RewardSettings
from ppo.reward_sources import (
    ForeignRewardModel,
    Query,
    RewardFunction,
    RewardSources,
    Samples,
)
from tests.ppo.conftest import PROMPTS, arguments
from workbench.chat import query_ids
from workbench.config import load_config
from workbench.errors import UserError
from workbench.functions import function_digest, load_function, names_function
from workbench.generation import Response
from workbench.models import ModelSettings, load_tokenizer
from workbench.run import read_metrics
from workbench.scorer import RewardModel

TEXTS = ["a", "bb", "ccc"]


def samples(prompts=("p", "q", "r"), columns=({}, {}, {})) -> Samples:
    return Samples(
        [Query([1, 2], prompt, given) for prompt, given in zip(prompts, columns, strict=True)],
        [Response([5] * len(text), True) for text in TEXTS],
    )


# --- what a function is handed


def test_a_function_gets_trl_s_arguments_and_the_columns_that_all_rows_have():
    seen = {}

    def function(**given):
        seen.update(given)
        return [1, 2.5, torch.tensor(3.0)]

    columns = ({"answer": 7, "level": 1}, {"answer": 8}, {"answer": 9})
    assert RewardFunction(function, "f")(samples(columns=columns), TEXTS) == [1.0, 2.5, 3.0]
    assert seen == {
        "prompts": ["p", "q", "r"],
        "completions": TEXTS,
        "completion_ids": [[5], [5, 5], [5, 5, 5]],
        "answer": [7, 8, 9],
    }


def test_a_conversation_s_completion_is_a_message():
    turns = [{"role": "user", "content": "hello"}]
    seen = []

    def function(prompts, completions, **_):
        seen.append((prompts, completions))
        return [0.0] * 3

    RewardFunction(function, "f")(samples(prompts=[turns] * 3), TEXTS)
    prompts, completions = seen[0]
    assert prompts == [turns] * 3
    assert completions == [[{"role": "assistant", "content": text}] for text in TEXTS]


def test_a_function_without_kwargs_gets_only_what_it_names():
    def function(completions, answer):
        return [len(text) + extra for text, extra in zip(completions, answer, strict=True)]

    columns = ({"answer": 1, "id": 3},) * 3
    assert RewardFunction(function, "f")(samples(columns=columns), TEXTS) == [2, 3, 4]


# --- what is refused


def refusal(function) -> str:
    with pytest.raises(UserError) as error:
        RewardFunction(function, "mine:f")(samples(), TEXTS)
    assert "\n" not in str(error.value)
    assert "mine:f" in str(error.value)
    return str(error.value)


def test_a_function_that_raises_is_named_with_the_row():
    def function(prompts, completions):
        return [1 / (3 - len(text)) for text in completions]

    text = refusal(function)
    assert "ZeroDivisionError" in text
    assert "row 2" in text
    assert "'r'" in text


def test_a_function_that_fails_on_the_batch_alone_says_so():
    def function(prompts, completions):
        if len(completions) > 1:
            raise MemoryError("too many")
        return [0.0]

    assert "on the whole batch: too many" in refusal(function)


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "good"])
def test_a_score_that_is_no_finite_number_is_named_with_the_row(bad):
    text = refusal(lambda prompts, completions: [1.0, bad, 2.0])
    assert repr(bad) in text
    assert "row 1" in text


def test_a_wrong_number_of_scores_is_refused():
    assert "2 scores for 3 completions" in refusal(lambda completions: [1.0, 2.0])
    assert "returned float" in refusal(lambda completions: 1.0)
    assert "returned str" in refusal(lambda completions: "abc")


# --- names


@pytest.mark.parametrize(
    ("source", "yes"),
    [
        ("rewards:short", True), ("a.b:short", True), ("my/rewards.py:short", True),
        ("runs/demo/reward/model", False), ("owner/name", False), ("owner/name:config", False),
        ("rewards", False), ("rewards.py", False),
    ],
)  # fmt: skip
def test_functions_are_told_from_folders_and_hub_ids(source, yes):
    assert names_function(source) is yes


def test_functions_are_found_in_files_and_modules(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_x.py").write_text("def short(completions):\n    return [0.5]\n")
    monkeypatch.chdir(tmp_path)
    for source in ("my_rewards_x.py:short", "my_rewards_x:short"):
        assert load_function(source, "rewards.functions")(["a"]) == [0.5]
    assert function_digest("my_rewards_x:short") == function_digest("my_rewards_x.py:short")
    before = function_digest("my_rewards_x:short")
    (tmp_path / "my_rewards_x.py").write_text("def short(completions):\n    return [0.6]\n")
    assert function_digest("my_rewards_x:short") != before
    assert function_digest("json:dumps") not in {"missing", before}
    assert function_digest("no_such_module_x:f") == "missing"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("no_such_module_x:f", "ModuleNotFoundError"),
        ("no_such_file.py:f", "cannot be imported"),
        ("json:no_such_function", "there is no function no_such_function"),
        ("broken.py:f", "SyntaxError"),
    ],
)
def test_a_function_that_is_not_there_is_one_line(tmp_path, monkeypatch, source, why):
    (tmp_path / "broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=why) as error:
        load_function(source, "rewards.functions")
    assert "\n" not in str(error.value)
    assert "rewards.functions" in str(error.value)


# --- foreign reward models


def test_a_foreign_model_reads_its_own_tokens_of_the_same_text(llama, gpt2):
    """A GPT-2 reward model scores a Llama policy's answers as it scores their text itself."""
    reward = RewardModel.load(ModelSettings(name=str(gpt2.reward), precision="fp32"))
    tokenizer = load_tokenizer(str(llama.policy))
    answers = ["rice, please", "no", "the gull is late"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in answers]
    done = [True, False, True]
    made = Samples(
        [Query(query_ids(tokenizer, text), text) for text in PROMPTS[:3]],
        [Response(one, end) for one, end in zip(ids, done, strict=True)],
    )
    sources = RewardSources(RewardSettings(), None, [ForeignRewardModel(reward, "gpt2/reward")])
    scores, parts = sources(made, tokenizer, None)
    assert scores.tolist() == pytest.approx(reward.score(PROMPTS[:3], answers, done), abs=1e-6)
    assert list(parts) == ["gpt2/reward"]


# --- combination

SCORES = torch.tensor([[1.0, 4.0], [3.0, 2.0], [0.5, -1.0]])


def combined(*, models: int = 2, functions: int = 1, **given) -> list[float]:
    settings = RewardSettings(functions=["m:f"] * functions, **given)
    sources = [RewardFunction(len, f"s{i}") for i in range(models + functions)]
    return RewardSources(settings, None, sources).combine(SCORES[: models + functions]).tolist()


def test_scores_are_combined_as_the_setting_says():
    assert combined() == [4.5, 5.0]
    assert combined(combine="mean") == [2.5, 2.0]
    assert combined(combine="min") == [1.5, 1.0]
    # variances of (1, 3) and (4, 2) are 1 and 1
    assert combined(combine="mean_minus_variance", variance_coef=0.5) == [2.0, 1.5]
    assert combined(weights=[2.0, 1.0, -1.0]) == [4.5, 11.0]
    assert combined(weights=[3.0, 1.0, 0.0], combine="mean") == [1.5, 3.5]
    assert combined(models=0, functions=3) == [4.5, 5.0]


def test_sources_of_one_name_are_told_apart():
    paths = ["runs/a/reward/model", "runs/b/reward/model", "runs/b/reward/model", "m:f"]
    sources = [RewardFunction(len, name) for name in paths[1:]]
    made = RewardSources(RewardSettings(functions=["m:f"]), paths[0], sources)
    assert made.names == ["a/reward", "b/reward", "b/reward-2", "m:f"]


# --- in a run

FUNCTION = """
def count(prompts, completions, completion_ids, level):
    assert len(prompts) == len(completions) == len(level)
    return [len(ids) / 7 * weight for ids, weight in zip(completion_ids, level)]
"""


def test_a_run_without_a_reward_model_learns_from_a_function(llama, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "count_x.py").write_text(FUNCTION)
    rows = "".join(f'{{"prompt": "{text}", "level": 1}}\n' for text in PROMPTS)
    (tmp_path / "prompts.jsonl").write_text(rows)
    given = [
        *arguments(llama, runs, tmp_path / "prompts.jsonl"),
        "reward_model=", "rewards.functions=[count_x:count]", "ppo.total_episodes=256",
        "ppo.batch_size=32", "ppo.missing_eos_penalty=null", "ppo.kl_coef=0",
        "ppo.micro_batch_size=32", "ppo.lr_scheduler=constant",
    ]  # fmt: skip
    path = stage.run(load_config(PPOStage, None, given))
    found = [row for row in read_metrics(path / "metrics.jsonl") if "objective/scores" in row]
    for row in found:
        assert row["objective/scores"] == pytest.approx(row["response/length"] / 7, abs=1e-6)
    assert found[-1]["objective/scores"] > found[0]["objective/scores"] + 0.1


def test_sources_are_logged_each_and_weighed(llama, gpt2, runs, prompts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ones_x.py").write_text(
        "def one(completions):\n    return [1.0] * len(completions)\n"
    )
    given = [
        *arguments(llama, runs, prompts),
        f"rewards.models=[{gpt2.reward}]", "rewards.functions=[ones_x:one]",
        "rewards.weights=[1, 0.5, 3]", "ppo.total_episodes=8",
    ]  # fmt: skip
    path = stage.run(load_config(PPOStage, None, given))
    rows = read_metrics(path / "metrics.jsonl")
    row = next(row for row in rows if "objective/scores" in row)
    parts = {name: value for name, value in row.items() if name.startswith("rewards/")}
    assert len(parts) == 3
    own, other, ones = parts.values()
    assert ones == 1.0
    assert row["objective/scores"] == pytest.approx(own + 0.5 * other + 3, abs=1e-5)
    assert any(name.startswith("eval/rewards/") for name in rows[0])


def test_a_reward_model_with_another_tokenizer_is_read_as_text(llama, gpt2, runs, prompts, capsys):
    given = [*arguments(llama, runs, prompts), f"reward_model={gpt2.reward}"]
    path = stage.run(load_config(PPOStage, None, [*given, "ppo.total_episodes=8"]))
    assert "has another tokenizer" in capsys.readouterr().err
    rows = read_metrics(path / "metrics.jsonl")
    assert all(math.isfinite(row.get("objective/scores", 0.0)) for row in rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward_model="], "name the reward model"),
        (["rewards.weights=[1, 2]"], "there are 1"),
        (["rewards.combine=min"], "needs two reward models"),
        (["rewards.functions=[short]"], "must be module:function"),
        (["rewards.variance_coef=-1"], "must be 0 or more"),
        (["rewards.weights=[.inf]"], "must be finite"),
        (["ppo.target_kl=0"], "must be greater than 0"),
        (
            ["ppo.missing_eos=replace", "ppo.missing_eos_penalty=null"],
            "needs a missing_eos_penalty",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(llama, runs, prompts, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(PPOStage, None, [*arguments(llama, runs, prompts), *overrides])

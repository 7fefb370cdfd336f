"""Kept samples: the numbers of the update they come from, few enough, the same after a resume."""

import pytest
from pyarrow import parquet

from ppo.reward_sources import RewardFunction, RewardSources
from ppo.samples import sample_rows, save_update
from tests.ppo.conftest import PROMPTS
from workbench.chat import decode
from workbench.samples import read_rows

COLUMNS = ["prompt", "completion", "score", "kl", "advantage", "length", "finished"]


def files(made) -> list[str]:
    return sorted(path.name for path in (made.run.path / "samples").glob("update_*"))


def test_rows_hold_what_was_learned_from(llama, trainer):
    made = trainer(llama, "ppo.whiten_advantages=false")
    with_length = RewardFunction(lambda completion_ids: [len(ids) for ids in completion_ids], "n")
    made.config.rewards.functions = ["n"]
    made.rewards = RewardSources(made.config.rewards, "somewhere/reward", [with_length])
    for _ in range(2):
        samples = made.rollout()
        experience = made.score(samples)
        rows = sample_rows(samples, experience, made.tokenizer, 5)
        made.update(experience)
    assert len(rows) == 5
    rollout = experience.rollout
    for i, row in enumerate(rows):
        answer = rollout.responses[i]
        n = len(answer.ids)
        assert set(row) == {*COLUMNS, "reward/n", "reward/somewhere/reward"}
        assert row["prompt"] == samples.queries[i].prompt
        assert row["completion"] == decode(made.tokenizer, answer.ids)
        assert (row["length"], row["finished"]) == (n, answer.finished)
        assert row["reward/n"] == n
        assert row["score"] == pytest.approx(row["reward/somewhere/reward"] + n)
        kl = (rollout.logprobs - rollout.ref_logprobs)[i, :n].sum()
        assert row["kl"] == pytest.approx(float(kl), abs=1e-6)
        advantage = experience.advantages[i, :n].mean()
        assert row["advantage"] == pytest.approx(float(advantage), abs=1e-6)
    assert any(abs(row["kl"]) > 1e-4 for row in rows)
    assert len({row["advantage"] for row in rows}) == 5


def test_every_update_leaves_a_file(llama, trainer):
    made = trainer(llama)
    made.train()
    assert files(made) == [f"update_00000{i}.parquet" for i in (1, 2, 3)]
    table = parquet.read_table(made.run.path / "samples" / "update_000002.parquet")
    source = f"reward/{llama.reward.parent.name}/reward"
    assert sorted(table.column_names) == sorted([*COLUMNS, source])
    assert table.num_rows == 8
    assert set(table["prompt"].to_pylist()) < set(PROMPTS)
    assert not list((made.run.path / "samples").glob(".*"))  # nothing half-written


def test_how_many_are_kept_is_a_setting(llama, trainer):
    made = trainer(llama, "monitors.samples_every=2", "monitors.samples_rows=3")
    made.train()
    assert files(made) == ["update_000002.parquet"]
    assert len(read_rows(made.run.path / "samples" / "update_000002.parquet")) == 3
    none = trainer(llama, "run.name=none", "monitors.samples_every=0")
    none.train()
    assert files(none) == []


def test_conversations_are_kept_as_such(tmp_path):
    turns = [{"role": "user", "content": "Why?"}]
    save_update(tmp_path, 7, [{"prompt": turns, "completion": "So.", "score": 1.5}])
    (row,) = read_rows(tmp_path / "update_000007.parquet")
    assert row == {"prompt": turns, "completion": "So.", "score": 1.5}


def test_a_resumed_run_writes_the_same_bytes(llama, trainer, monkeypatch):
    whole = trainer(llama, "run.name=whole", "ppo.total_episodes=32")
    whole.train()
    given = ["run.name=cut", "ppo.total_episodes=32", "ppo.save_every=2"]
    first = trainer(llama, *given)
    real = first.step

    def step():
        if first.global_step == 3:
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(first, "step", step)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    torn = first.run.path / "samples" / "update_000003.parquet"
    torn.write_bytes(torn.read_bytes()[:50])
    resumed = trainer(llama, *given)
    resumed.train()
    assert files(resumed) == files(whole)
    for name in files(whole):
        a, b = (made.run.path / "samples" / name for made in (whole, resumed))
        assert a.read_bytes() == b.read_bytes()


def test_held_out_answers_are_printed_when_asked(llama, trainer, capsys):
    made = trainer(llama, "monitors.print_samples=2")
    capsys.readouterr()
    made.evaluate()
    printed = capsys.readouterr().err
    assert "ppo: update 0" in printed
    words = [PROMPTS[-4 + i].split()[0] for i in range(2)]
    assert all(word in printed for word in [*words, "completion", "score"])
    quiet = trainer(llama, "run.name=quiet")
    capsys.readouterr()
    quiet.evaluate()
    assert "completion" not in capsys.readouterr().err

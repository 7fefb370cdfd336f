"""`rlhf samples`: the file that is meant, its rows in order, and one line for every mistake."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tests.workbench.run_folders import rlhf
from workbench.errors import UserError
from workbench.samples import find_file, ordered, read_rows

FOLDER = Path("runs/demo/ppo/samples")


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    FOLDER.mkdir(parents=True)
    for update in (1, 12):
        rows = [
            {
                "prompt": f"Why {i}?", "completion": f"So {i}, after {update}.",
                "reward/reward": i / 2, "score": i / 2, "kl": 0.25, "advantage": (i - 2) ** 2 / 3,
                "length": 5 + i, "finished": i % 2 == 0,
            }
            for i in range(5)
        ]  # fmt: skip
        parquet.write_table(
            pyarrow.Table.from_pylist(rows), FOLDER / f"update_{update:06d}.parquet"
        )
    rows = [
        {"prompt": [{"role": "user", "content": "Well?"}], "completion": "Fine.", "score": 0.5,
         "held_out": {"ends": -3.0}},
        {"prompt": [{"role": "user", "content": "Really?"}], "completion": "[b]No[/b] \x1b[31m.",
         "score": 1.5, "held_out": {"ends": -2.0}},
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (FOLDER / "step_000010.jsonl").write_text(text)


def failed(capsys, *arguments) -> str:
    assert rlhf("samples", *arguments) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed
    return printed


def test_the_newest_update_is_shown_with_every_number(capsys):
    assert rlhf("samples", "runs/demo/ppo") == 0
    out = capsys.readouterr().out
    for part in ("Why 4?", "So 4, after 12.", "advantage", "reward", "2.000", "0.250", "yes", "no"):
        assert part in out
    assert f"5 of 5 answers in {FOLDER}/update_000012.parquet" in out
    assert max(map(len, out.splitlines()[:-1])) <= 100


def test_update_limit_and_order_choose(capsys):
    arguments = ["runs/demo/ppo", "--update", "1", "--sort", "-advantage", "--limit", "2"]
    assert rlhf("samples", *arguments) == 0
    out = capsys.readouterr().out
    assert "2 of 5 answers" in out
    assert "update_000001" in out
    assert out.index("So 2, after 1.") < out.index("So 1, after 1.")
    assert "So 0" not in out


def test_answers_of_evaluations_and_single_files_are_shown(capsys):
    assert rlhf("samples", "runs/demo/ppo", "--held-out", "--sort", "held_out/ends") == 0
    out = capsys.readouterr().out
    assert out.index("user: Really?") < out.index("user: Well?")
    assert "[b]No[/b] ?" in out  # printed as it is, and no escape sequence
    assert "\x1b[31m." not in out
    assert rlhf("samples", str(FOLDER / "update_000001.parquet")) == 0
    assert "after 1." in capsys.readouterr().out


def test_where_only_evaluations_were_kept_they_are_taken():
    for path in FOLDER.glob("update_*"):
        path.unlink()
    assert find_file(Path("runs/demo/ppo")).name == "step_000010.jsonl"


def test_mistakes_are_one_line(capsys):
    assert "no such file or folder" in failed(capsys, "runs/dmo/ppo")
    assert "no samples here" in failed(capsys, "runs/demo")
    assert "the nearest are of 12" in failed(capsys, "runs/demo/ppo", "--update", "10")
    said = failed(capsys, "runs/demo/ppo", "--sort", "scre")
    assert "use reward/reward, score, kl, advantage, length, finished" in said
    broken = FOLDER / "update_000013.parquet"
    broken.write_bytes(b"PAR1")
    assert f"{broken}: cannot be read" in failed(capsys, str(broken))
    other = Path("rows.jsonl")
    other.write_text('{"prompt": "a"}\n')
    assert "holds no samples" in failed(capsys, str(other))


def test_rows_without_the_number_come_last_either_way():
    rows = [{"completion": "a", "score": 1.0, "gold": 0.5}, {"completion": "b", "score": 2.0},
            {"completion": "c", "score": 0.0, "gold": 0.7}]  # fmt: skip
    assert [row["completion"] for row in ordered(rows, "gold", "x")] == ["c", "a", "b"]
    assert [row["completion"] for row in ordered(rows, "-gold", "x")] == ["a", "c", "b"]
    assert [row["completion"] for row in ordered(rows, None, "x")] == ["a", "b", "c"]


def test_reading_refuses_what_is_empty(tmp_path):
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no samples"):
        read_rows(tmp_path / "x.jsonl")

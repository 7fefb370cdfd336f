import json
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from workbench.data import Spool, load_parts
from workbench.errors import UserError


@dataclass
class Data:
    """A stage's `data` section."""

    train: str
    train_split: str | None = None
    test: str | None = None
    test_split: str | None = None
    test_fraction: float = 0.25
    limit: int | None = None
    skip_bad_rows: bool = False
    streaming: bool = False


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": f"why {n // 2}?", "completion": f"so {n}"} for n in range(40)]
    return Data(write(tmp_path / "rows.jsonl", rows))


ACCEPT = ("prompt_completion",)


@pytest.mark.parametrize("limit", [None, 11])
def test_rows_on_disk_are_the_rows_in_memory(data, tmp_path, limit):
    data = replace(data, limit=limit)
    known = load_parts(data, ACCEPT, 3, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    found = load_parts(replace(data, streaming=True), ACCEPT, 3, tmp_path / "data")
    assert isinstance(found.train, Spool)
    assert isinstance(found.held_out, Spool)
    assert [list(part) for part in found[:2]] == [list(part) for part in known[:2]]
    assert len(found.train) + len(found.held_out) == (limit or 40)
    assert {row["prompt"] for row in found.train}.isdisjoint(
        row["prompt"] for row in found.held_out
    )


def test_named_held_out_data_and_skipped_rows_of_both(data, tmp_path):
    other = write(tmp_path / "test.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": 5}])
    train = write(tmp_path / "train.jsonl", [{"prompt": "c", "completion": "d"}, {"completion": 1}])
    for streaming in (False, True):
        given = Data(train, test=other, skip_bad_rows=True, streaming=streaming)
        found = load_parts(given, ACCEPT, 0, tmp_path / "data")
        assert [list(found.train), list(found.held_out)] == [
            [{"prompt": "c", "completion": "d"}], [{"prompt": "a", "completion": "b"}]
        ]  # fmt: skip
        assert [why.partition(": ")[0] for why in found.skipped] == [f"{train}:2", f"{other}:2"]
        with pytest.raises(UserError, match=r"train\.jsonl:2: "):
            load_parts(replace(given, skip_bad_rows=False), ACCEPT, 0, tmp_path / "data")


PEAK = """
import json, sys, tracemalloc
from pathlib import Path
from tests.workbench.data.test_parts import ACCEPT, Data
from workbench.data import load_parts
tracemalloc.start()
load_parts(Data(sys.argv[1], streaming=sys.argv[2] == "disk"), ACCEPT, 0, Path(sys.argv[3]))
print(tracemalloc.get_traced_memory()[1])
"""


def test_memory_does_not_grow_with_the_texts(tmp_path):
    rows = [{"prompt": f"{n}: {'why ' * 500}", "completion": "so " * 500} for n in range(4000)]
    source = write(tmp_path / "rows.jsonl", rows)  # 14 MB

    def peak(where: str) -> int:
        command = [sys.executable, "-c", PEAK, source, where, str(tmp_path / "data")]
        return int(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)

    assert peak("memory") > 14_000_000
    assert peak("disk") < 4_000_000

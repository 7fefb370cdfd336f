import datetime
import errno
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from workbench.data import Mapped, Spool, as_dataset
from workbench.data.conversations import RowError
from workbench.errors import UserError

ROWS = [{"prompt": f"why {n}?", "rank": n, "note": None} for n in range(40)]


def filled(folder, rows=ROWS):
    spool = Spool(folder)
    for row in rows:
        spool.append(row)
    return spool


def test_rows_come_back_as_they_were(tmp_path):
    strange = [
        {"a": "line\nbreak \u2028 \ud800 é", "b": [{"role": "user"}]},
        {"c": "x" * 50_000},
        {},
    ]
    spool = filled(tmp_path / "new folder", strange)
    assert list(spool) == strange
    assert (len(spool), spool[-1], spool[1]["c"]) == (3, {}, "x" * 50_000)
    spool.append({"later": 1.5})  # between two readings
    assert spool[3] == {"later": 1.5}
    with pytest.raises(IndexError):
        spool[4]


def test_some_rows_and_what_is_made_of_them(tmp_path):
    spool = filled(tmp_path)
    assert list(spool.select([7, 3, 3])) == [ROWS[7], ROWS[3], ROWS[3]]
    assert list(spool.select([7, 3])[1:]) == [ROWS[3]]
    assert list(spool[5:20:6]) == ROWS[5:20:6]
    made = Mapped(spool, lambda row: row["rank"] * 2)
    assert (len(made), made[4], list(made[-2:])) == (40, 8, [76, 78])


def test_threads_and_forked_processes_read_at_once(tmp_path):
    spool = filled(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(spool.__getitem__, list(range(40)) * 5)) == ROWS * 5
    script = (
        "import os, sys; from pathlib import Path; from workbench.data import Spool\n"
        "spool = Spool(Path(sys.argv[1])); [spool.append({'n': n}) for n in range(9)]; spool[0]\n"
        "child = os.fork(); ok = all(spool[n]['n'] == n for n in range(9) for _ in range(50))\n"
        "if child: ok = ok and os.waitpid(child, 0)[1] == 0\n"
        "os._exit(0 if ok else 1)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)


def test_no_file_is_left_even_of_one_that_is_in_use(tmp_path):
    spool = filled(tmp_path)
    assert spool[0] == ROWS[0]
    assert list(tmp_path.iterdir()) == []


def test_what_json_cannot_hold_is_refused(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(RowError, match=r"on disk \(Object of type date .*data\.streaming=false"):
        spool.append({"when": datetime.date(2026, 1, 1)})
    assert len(spool) == 0


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_table_of_rows(tmp_path, on_disk):
    folder = tmp_path / "train" if on_disk else None
    for count in (40, 3):  # the second takes the place of the first, not what that has left
        rows = [{"input_ids": [n, n + 1], "weight": n / 2} for n in range(count)]
        table = as_dataset(iter(rows), folder)
        assert list(table) == rows
        assert bool(table.cache_files) == on_disk


def test_an_error_on_the_way_to_the_table_is_the_users(tmp_path):
    def rows():
        yield {"input_ids": [1]}
        raise UserError("data.jsonl: row 2 is too long")

    for folder in (None, tmp_path / "train"):
        with pytest.raises(UserError, match=r"^data\.jsonl: row 2 is too long$"):
            as_dataset(rows(), folder)


def test_a_full_disk_stays_one(tmp_path):
    """`datasets` wraps what its writer meets; the command tells a full disk by its number."""

    def rows():
        yield {"input_ids": [1]}
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        as_dataset(rows(), tmp_path / "train")
    assert caught.value.errno == errno.ENOSPC

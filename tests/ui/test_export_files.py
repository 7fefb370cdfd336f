import csv
import json
from io import StringIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ui.export_files import csv_text, form_of, is_formula, neutralised, restored, write_rows
from workbench.data import KINDS, load, splits_of
from workbench.errors import UserError
from workbench.files import damage

ROWS = [
    {
        "prompt": f"p{number % 2}",
        "chosen": "=1+1",
        "rejected": "'- b",
        "margin": 1.5,
        "weight": 1.0,
        "chosen_finished": True,
        "rejected_finished": False,
        "category": None if number == 1 else "c",
        "raters": [1, 2],
        "split": "test" if number == 1 else "train",
    }
    for number in range(3)
]


@given(st.text() | st.text(alphabet="'=+-@\t\r\n ＝a"))
@example("''=1")
@example("' =1")
def test_a_cell_is_no_formula_and_comes_back(text):
    cell = neutralised(text)
    assert restored(cell) == text
    assert not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠"))
    assert not cell.startswith(("\t", "\r"))
    assert is_formula(text) == (cell != text)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("'=1", "''=1"),
        ("  =1", "'  =1"),
        ("＝1", "'＝1"),
        ("'tis so", "'tis so"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_cells_in_particular(text, cell):
    assert neutralised(text) == cell


def test_csv_keeps_every_cell_apart():
    cells = ['=a,"b"', "x\ny", "x\ry", "x\r\ny", 1.5, [{"role": "user", "content": "=é"}], None]
    text = csv_text(list("abcdefg"), [cells])
    header, row = csv.reader(StringIO(text, newline=""))
    assert header == list("abcdefg")
    assert row == [
        "'=a,\"b\"", "x\ny", "x\ry", "x\r\ny", "1.5", '[{"role": "user", "content": "=é"}]', ""
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_file_comes_back_as_it_was(form, tmp_path):
    from datasets import load_dataset

    out = tmp_path / "new" / f"pairs.{form}"
    write_rows(ROWS, out, form, "card")
    again = load(str(out), ("preference",))
    given = [{k: v for k, v in row.items() if v is not None} for row in ROWS]
    assert [{k: v for k, v in row.items() if v is not None} for row in again.rows] == given
    assert [row["chosen"] for row in load(str(out), KINDS, split="test").rows] == ["=1+1"]
    kind = "json" if form == "jsonl" else form
    table = load_dataset(
        kind, data_files=str(out), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert table["chosen"][:] == [row["chosen"] for row in ROWS]
    write_rows(ROWS[:1], out, form, "card")  # takes the place of the old one
    assert len(load(str(out), KINDS).rows) == 1
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_csv_is_for_spreadsheets_and_still_loads(tmp_path):
    out = tmp_path / "pairs.csv"
    write_rows(ROWS, out, "csv", "card")
    rows = load(str(out), ("preference",)).rows
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("'=1+1", "''- b")] * 3
    assert (rows[0]["margin"], rows[0]["weight"]) == (1.5, 1.0)
    assert "chosen_finished" not in rows[0]  # as text, training would refuse it
    assert restored(rows[0]["chosen"]) == "=1+1"


def test_a_datasets_folder_keeps_splits_apart_and_describes_itself(tmp_path):
    from datasets import load_from_disk

    out = tmp_path / "pairs"
    write_rows(ROWS, out, "datasets", "# Pairs\n")
    assert damage(out) is None
    assert (out / "README.md").read_text("utf-8") == "# Pairs\n"
    assert set(splits_of(str(out))) == {"train", "test"}
    saved = load_from_disk(str(out))
    assert list(saved) == ["train", "test"]
    assert saved["train"].features == saved["test"].features
    assert "split" not in saved["train"].column_names
    assert load(str(out), ("preference",)).rows[0]["rejected_finished"] is False
    assert len(load(str(out), KINDS, split="test").rows) == 1
    write_rows(ROWS[:1], out, "datasets", "")  # one of ours is replaced
    assert splits_of(str(out)) == ("train",)


def test_what_is_there_and_not_ours_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"^{tmp_path}: holds something else; name a new folder"):
        write_rows(ROWS, tmp_path, "datasets", "")
    with pytest.raises(UserError, match=r"notes.txt: holds something else"):
        write_rows(ROWS, tmp_path / "notes.txt", "datasets", "")
    with pytest.raises(UserError, match=f"^{tmp_path}: a folder is there; name a file"):
        write_rows(ROWS, tmp_path, "jsonl", "")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    write_rows(ROWS, tmp_path / "empty", "datasets", "")


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv", "datasets"])
def test_a_failure_leaves_the_old_file_and_no_litter(form, tmp_path):
    out = tmp_path / "pairs"
    write_rows(ROWS, out, form, "card")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # A lone surrogate is no UTF-8; nothing can write it.
    with pytest.raises((UnicodeEncodeError, ValueError, TypeError)):
        write_rows([*ROWS, {**ROWS[0], "chosen": "\ud800"}], out, form, "card")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.jsonl", "jsonl"), ("a.CSV", "csv"), ("a.parquet", "parquet"), ("a", "datasets")],
)
def test_the_name_tells_the_form(name, form, tmp_path):
    assert form_of(tmp_path / name) == form


def test_json_lines_are_readable(tmp_path):
    write_rows([ROWS[0] | {"prompt": "Größe"}], tmp_path / "a.jsonl", "jsonl", "")
    text = (tmp_path / "a.jsonl").read_text("utf-8")
    assert "Größe" in text
    assert json.loads(text)["raters"] == [1, 2]

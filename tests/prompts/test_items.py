import json
from datetime import date
from pathlib import Path

import pytest

from prompts.items import Item, load_items
from workbench.errors import UserError


def written(folder: Path, *rows: object, name: str = "items.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_rows_become_items_with_their_id_fields_and_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": "a", "question": "1+1?", "n": 2}\n\n{"id": 7, "question": "è"}\n')
    assert load_items(path) == [
        Item("a", {"question": "1+1?", "n": 2}, 1),
        Item("7", {"question": "è"}, 3),
    ]


def test_a_row_without_id_is_named_by_its_number_not_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"q": "x"}\n\n\n{"q": "y"}\n')
    assert [(item.id, item.line) for item in load_items(path)] == [("1", 1), ("2", 4)]


def test_json_arrays_csv_and_parquet_give_the_same_items(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"id": "a", "question": "Red, or blue?", "choices": ["red", "blue"]},
        {"id": "b", "question": "[1] is a footnote", "choices": ["yes"]},
    ]
    (tmp_path / "i.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "i.csv").write_text(
        'id,question,choices\na,"Red, or blue?","[""red"", ""blue""]"\n'
        'b,[1] is a footnote,"[""yes""]"\n'
    )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")
    for name in ("i.json", "i.csv", "i.parquet"):
        items = load_items(tmp_path / name)
        assert [{"id": item.id, **item.fields} for item in items] == rows, name


@pytest.mark.parametrize("cell", ["[1, 2]", "[]", "[see below", '["a", 1]', "12", ""])
def test_other_csv_cells_stay_text(tmp_path: Path, cell: str) -> None:
    quoted = cell.replace('"', '""')
    (tmp_path / "i.csv").write_text(f'id,q\na,"{quoted}"\n')
    assert load_items(tmp_path / "i.csv")[0].fields == {"q": cell}


def test_limit_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"q": "x"}\n{"q": "y"}\nbroken\n')
    assert [item.fields["q"] for item in load_items(path, limit=2)] == ["x", "y"]
    with pytest.raises(UserError, match=r"items\.jsonl:3: broken JSON"):
        load_items(path, limit=3)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(UserError, match=f"limit={limit} leaves no items"):
        load_items(written(tmp_path, {"q": "x"}), limit=limit)


def test_an_id_given_twice_names_both_lines(tmp_path: Path) -> None:
    path = written(tmp_path, {"id": "a"}, {"id": "b"}, {"id": "a"})
    with pytest.raises(UserError, match=r"items\.jsonl:3: id 'a' was already given in line 1"):
        load_items(path)


def test_a_row_number_does_not_silently_meet_a_given_id(tmp_path: Path) -> None:
    # "2" is given to the first row, and the second, which has none, would be called "2" as well.
    with pytest.raises(UserError, match=r":2: id '2' was already given in line 1"):
        load_items(written(tmp_path, {"id": 2}, {"q": "x"}))


@pytest.mark.parametrize("name", [None, "", "  ", True, 1.5, ["a"]])
def test_an_id_is_a_text_or_a_whole_number(tmp_path: Path, name: object) -> None:
    with pytest.raises(UserError, match=r"items\.jsonl:1: 'id' is .*; write a text or a whole"):
        load_items(written(tmp_path, {"id": name, "q": "x"}))


def test_values_that_json_cannot_hold_are_refused_at_load(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for value in (date(2020, 1, 2), b"\x00", float("nan")):
        pq.write_table(pa.Table.from_pylist([{"q": value}]), tmp_path / "i.parquet")
        with pytest.raises(UserError, match=r"i\.parquet:1: 'q' is .*JSON cannot hold"):
            load_items(tmp_path / "i.parquet")
    surrogate = written(tmp_path, {"q": "x"}, {"q": "\ud800"})
    with pytest.raises(UserError, match=r"items\.jsonl:2: 'q' is '\\ud800'"):
        load_items(surrogate)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, r"missing\.jsonl: cannot be read"),
        ("items.txt", "x", r"items\.txt: cannot read '\.txt' files"),
        ("items.jsonl", "", r"items\.jsonl: no items"),
        ("items.jsonl", "[1]\n", r"items\.jsonl:1: the row is list"),
        ("items.csv", "a,b\n1\n", r"items\.csv:2: 1 cells under 2 columns"),
    ],
)
def test_files_that_hold_no_items_say_why(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_items(tmp_path / name)


def test_new_fields_are_expressions_over_the_columns(tmp_path: Path) -> None:
    rows = [{"prompt": [{"content": f"{n}+1?"}], "n": n, "task": "sums"} for n in range(2)]
    fields = {"question": "prompt[0].content", "n": "n + 1", "id": "task ~ n"}
    assert load_items(written(tmp_path, *rows), fields=fields) == [
        Item("sums0", {**rows[0], "question": "0+1?", "n": 1}, 1),
        Item("sums1", {**rows[1], "question": "1+1?", "n": 2}, 2),
    ]


def test_expressions_read_the_lists_of_csv_cells(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text('Best Answer,worse\nred,"[""blue"", ""navy""]"\n')
    (item,) = load_items(tmp_path / "i.csv", fields={"choices": "[row['Best Answer']] + worse"})
    assert item.fields["choices"] == ["red", "blue", "navy"]


@pytest.mark.parametrize("text", ["promt[0]", "prompt[0", "prompt.__class__", "'x' * 99999999"])
def test_a_wrong_expression_names_file_line_and_itself(tmp_path: Path, text: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('\n{"prompt": "x"}\n')
    with pytest.raises(UserError) as caught:
        load_items(path, fields={"question": text})
    assert str(caught.value).startswith(f"{path}:2: field {f'question={text}'!r}: ")


def test_an_expression_that_fails_later_names_that_line(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": ["x"]}, {"prompt": []})
    with pytest.raises(UserError, match=r"items\.jsonl:2: field 'q=prompt\[0\]': .*no element 0"):
        load_items(path, fields={"q": "prompt[0]"})

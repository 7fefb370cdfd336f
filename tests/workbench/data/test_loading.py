import json
import sys

import pytest

from workbench.data import loading
from workbench.data.formats import KINDS
from workbench.data.loading import load, splits_of
from workbench.errors import UserError


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def pair(number: int) -> dict[str, object]:
    return {"prompt": f"p{number}", "chosen": "yes", "rejected": "no"}


def test_load_keeps_order_and_extra_columns(tmp_path):
    rows = [pair(i) | {"id": i, "category": "c"} for i in range(5)]
    source = write(tmp_path / "a.jsonl", *rows)
    loaded = load(source, ("preference",))
    assert (loaded.kind, loaded.rows) == ("preference", rows)
    assert (loaded.source, loaded.skipped) == (source, ())
    assert load(source, KINDS, limit=2).rows == rows[:2]


def test_the_first_bad_row_ends_in_one_line(tmp_path):
    source = write(tmp_path / "a.jsonl", pair(0), '{"prompt": "x"', pair(2))
    with pytest.raises(UserError, match=rf"^{source}:2: broken JSON .*; write one object"):
        load(source, KINDS)


def test_skipped_rows_are_listed(tmp_path):
    source = write(tmp_path / "a.jsonl", pair(0), "{", "", {"prompt": "x", "chosen": "y"}, pair(4))
    loaded = load(source, KINDS, skip_bad_rows=True)
    assert loaded.rows == [pair(0), pair(4)]
    first, second = loaded.skipped
    assert first.startswith(f"{source}:2: broken JSON")
    assert second.startswith(f"{source}:4: missing key 'rejected'")


def test_the_kind_is_that_of_most_rows_not_of_the_first(tmp_path):
    source = write(tmp_path / "a.jsonl", {"prompt": "x"}, pair(1), pair(2))
    with pytest.raises(UserError, match=r":1: missing key 'rejected'|:1: missing key 'chosen'"):
        load(source, ("preference",))


def test_a_kind_that_is_not_accepted(tmp_path):
    source = write(tmp_path / "a.jsonl", pair(0))
    with pytest.raises(UserError, match=r"holds preference rows .*, wanted prompt_only \(prompt\)"):
        load(source, ("prompt_only",))


def test_unknown_columns_come_with_the_renaming(tmp_path):
    source = write(tmp_path / "a.jsonl", {"question": "x", "answer": "y"})
    with pytest.raises(
        UserError, match=r"rename 'question' to 'prompt', 'answer' to 'completion'$"
    ):
        load(source, ("prompt_completion",))


def test_instruction_files_load_as_prompts_and_completions(tmp_path):
    rows = [{"instruction": f"i{i}", "input": "x" * i, "output": f"o{i}"} for i in range(2)]
    wanted = [
        {"prompt": "i0", "completion": "o0"},
        {"prompt": "i1\n\nx", "completion": "o1"},
    ]
    loaded = load(write(tmp_path / "a.jsonl", *rows), ("prompt_completion",))
    assert (loaded.kind, loaded.rows) == ("prompt_completion", wanted)
    (tmp_path / "b.csv").write_text("instruction,input,output\ni0,,o0\ni1,x,o1\n")
    assert load(str(tmp_path / "b.csv"), KINDS).rows == wanted
    source = write(tmp_path / "c.jsonl", *rows, {"instruction": "i2", "input": ""})
    with pytest.raises(UserError, match=rf"^{source}:3: an instruction without a 'response' or"):
        load(source, KINDS)


def test_mixed_forms_are_refused(tmp_path):
    talk = {"prompt": [{"role": "user", "content": "a"}]}
    source = write(tmp_path / "a.jsonl", {"prompt": "a"}, talk)
    with pytest.raises(UserError, match=rf":2: the row is a list of messages, but {source}:1 is"):
        load(source, KINDS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [((), "no rows; write at least one"), (("{", "["), "no usable row, all 2 rows are bad")],
)
def test_an_empty_result_is_an_error(tmp_path, rows, message):
    source = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(UserError, match=message):
        load(source, KINDS, skip_bad_rows=True)


def test_a_limit_below_one(tmp_path):
    with pytest.raises(UserError, match="limit=0 leaves no rows"):
        load(write(tmp_path / "a.jsonl", pair(0)), KINDS, limit=0)


def test_deep_json_ends_in_one_line(tmp_path):
    source = write(tmp_path / "a.jsonl", pair(0), '{"a":' + "[" * 100_000)
    with pytest.raises(UserError, match=":2: nested too deeply"):
        load(source, KINDS)
    source = write(tmp_path / "b.jsonl", '{"prompt": "a", "x": ' + "[" * 400 + "]" * 400 + "}")
    with pytest.raises(UserError, match=":1: 'x' is nested deeper than 50"):
        load(source, KINDS)


def test_folder_with_splits(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", pair(0))
    write(tmp_path / "train-00001-of-00002.jsonl", pair(1))
    write(tmp_path / "test.jsonl", pair(2))
    (tmp_path / "README.md").write_text("not data")
    source = str(tmp_path)
    assert splits_of(source) == ("test", "train")
    assert load(source, KINDS).rows == [pair(0), pair(1)]
    assert load(source, KINDS).source == f"{source} (train)"
    assert load(source, KINDS, split="test").rows == [pair(2)]
    with pytest.raises(UserError, match="no split 'dev'; it has test, train"):
        load(source, KINDS, split="dev")


def test_folder_without_train_asks_which_split(tmp_path):
    write(tmp_path / "test.jsonl", pair(2))
    assert load(str(tmp_path), KINDS).rows == [pair(2)]
    write(tmp_path / "validation.jsonl", pair(3))
    with pytest.raises(UserError, match="no split 'train'; it has test, validation"):
        load(str(tmp_path), KINDS)


def test_folder_without_split_names_is_one_set(tmp_path):
    write(tmp_path / "b.jsonl", pair(1))
    write(tmp_path / "a.json", json.dumps([pair(0)]))
    assert splits_of(str(tmp_path)) == ()
    assert load(str(tmp_path), KINDS).rows == [pair(0), pair(1)]
    write(tmp_path / "c.jsonl", {"prompt": "x"})
    with pytest.raises(UserError, match=r"c.jsonl: holds prompt_only rows, but .*a.json holds"):
        load(str(tmp_path), KINDS)


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"the folder holds no .jsonl"):
        load(str(tmp_path), KINDS)


def test_split_column_of_a_file(tmp_path):
    rows = [pair(i) | {"split": "test" if i % 3 == 0 else "train"} for i in range(6)]
    source = write(tmp_path / "a.jsonl", *rows)
    assert load(source, KINDS).rows == rows
    assert load(source, KINDS, split="test").rows == [rows[0], rows[3]]
    with pytest.raises(UserError, match="no rows with split 'dev'"):
        load(source, KINDS, split="dev")
    plain = write(tmp_path / "b.jsonl", pair(0))
    with pytest.raises(UserError, match=":1: split 'test' was asked for, but the row has no"):
        load(plain, KINDS, split="test")


def test_saved_dataset_folders(tmp_path):
    from datasets import Dataset, DatasetDict

    one = Dataset.from_list([pair(0), pair(1)])
    one.save_to_disk(tmp_path / "one")
    DatasetDict(train=one, test=Dataset.from_list([pair(2)])).save_to_disk(tmp_path / "two")
    assert load(str(tmp_path / "one"), KINDS).rows == [pair(0), pair(1)]
    two = str(tmp_path / "two")
    assert set(splits_of(two)) == {"train", "test"}
    assert load(two, KINDS, split="test").rows == [pair(2)]
    assert load(two, KINDS).rows == [pair(0), pair(1)]
    bad = Dataset.from_list([pair(0), {"prompt": "", "chosen": "a", "rejected": "b"}])
    bad.save_to_disk(tmp_path / "bad")
    with pytest.raises(UserError, match=f"{tmp_path}/bad:2: empty prompt"):
        load(str(tmp_path / "bad"), KINDS)
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match="a damaged saved data set"):
        load(str(tmp_path / "one"), KINDS)


@pytest.mark.parametrize("name", ["trian.jsonl", "./trian", "deeper/trian.jsonl"])
def test_a_missing_file_names_the_nearest(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", pair(0))
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "deeper" / "train.jsonl", pair(0))
    with pytest.raises(UserError, match=r"no such file or folder; did you mean .*train.jsonl\?"):
        load(name, KINDS)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "the data source is empty"),
        ("nothing-like-it", "no such file or folder; nothing in"),
        ("a\0b", "no such file|not a usable path"),
        ("x" * 5000, "not a usable path"),
        ("demo:prompt", "use demo:prompts or demo:demonstrations"),
    ],
)
def test_impossible_sources(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load(source, KINDS)


def test_the_hub_out_of_reach_ends_in_one_line(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"not loadable from the hub .* or name a local file"):
        load("nobody/no-such-data-set:plain", KINDS)


def test_hub_data_is_read_while_it_arrives(tmp_path, monkeypatch):
    # A folder is opened by `datasets` as a repository on the hub would be.
    folder = tmp_path / "set"
    folder.mkdir()
    lines = [json.dumps({"prompt": f"why {n}?", "completion": "so"}) for n in range(130)]
    (folder / "train-00000.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "train-00001.jsonl").write_text("{broken", "utf-8")
    monkeypatch.setattr(loading, "_open", loading._hub)
    accept = ("prompt_completion",)
    for limit in (3, 130):
        found = load(str(folder), accept, limit=limit, spool=tmp_path / "rows")
        assert [row["prompt"] for row in found.rows] == [f"why {n}?" for n in range(limit)]
    assert found.source == f"{folder} (train)"
    with pytest.raises(UserError, match=r"set \(train\): stopped arriving after row 130 \("):
        load(str(folder), accept, spool=tmp_path / "rows")


def test_loading_a_file_imports_nothing_heavy(tmp_path):
    import subprocess

    source = write(tmp_path / "a.jsonl", pair(0))
    code = (
        "import sys; from workbench.data import load; load(sys.argv[1], ('preference',)); "
        "print([name for name in ('torch', 'datasets', 'numpy', 'pyarrow') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, source], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"

import sqlite3

import pytest

from prompts.cache import Cache
from workbench.errors import UserError

VALUE = {"ids": [1, 2], "finished": True, "seconds": 0.5, "share": 0.25}


@pytest.fixture
def cache(tmp_path):
    opened = Cache(tmp_path / "known.sqlite")
    yield opened
    opened.close()


def test_values_come_back_in_another_process_later(tmp_path):
    path = tmp_path / "deep" / "known.sqlite"
    first = Cache(path)
    first.put({"a": VALUE, "b": {"logprob": -1.25}})
    first.close()
    second = Cache(path)
    assert second.get(["b", "a", "c"]) == {"a": VALUE, "b": {"logprob": -1.25}}
    assert second.get([]) == {}
    second.put({"a": {"logprob": 0.0}})
    assert second.get(["a"]) == {"a": {"logprob": 0.0}}
    second.close()


def test_thousands_of_keys_are_asked_for_at_once(cache):
    values = {f"key {n}": {"logprob": float(n)} for n in range(1_234)}
    cache.put(values)
    assert cache.get([*values, "another"]) == values


def test_two_open_caches_see_each_others_values(tmp_path):
    one, two = Cache(tmp_path / "known.sqlite"), Cache(tmp_path / "known.sqlite")
    one.put({"a": VALUE})
    two.put({"b": VALUE})
    assert one.get("ab") == two.get("ab") == {"a": VALUE, "b": VALUE}
    mode = sqlite3.connect(tmp_path / "known.sqlite").execute("PRAGMA journal_mode").fetchone()
    assert mode == ("wal",)
    one.close()
    two.close()


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = Cache(None)
    cache.put({"a": VALUE})
    assert cache.get(["a"]) == {"a": VALUE}
    cache.close()
    assert Cache(None).get(["a"]) == {}
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_cache_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("some notes, " * 200)
    with pytest.raises(UserError, match=r"notes.txt: the cache cannot be used .*delete the file"):
        Cache(path)
    with pytest.raises(UserError, match="the cache cannot be used"):
        Cache(path / "below")
    assert path.read_text().startswith("some notes")


def test_a_damaged_value_is_named(tmp_path):
    Cache(tmp_path / "known.sqlite").close()
    with sqlite3.connect(tmp_path / "known.sqlite") as raw:
        raw.execute("INSERT INTO answers VALUES ('a', '{\"ids\": [1,')")
    with pytest.raises(UserError, match="the cache cannot be used"):
        Cache(tmp_path / "known.sqlite").get(["a"])

import json

import pytest

from ppo.queries import content, load_queries
from ppo.reward_sources import Query
from workbench.errors import UserError
from workbench.models import load_tokenizer


@pytest.fixture
def made(config, llama, tmp_path):
    rows = [{"prompt": f"Say {'very ' * (n % 5)}much {n}", "topic": n} for n in range(24)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    tokenizer = load_tokenizer(str(llama.policy))

    def load(*overrides):
        settings = config(llama, f"data.train={path}", "data.test_fraction=0.25", *overrides)
        return load_queries(settings, tokenizer, tmp_path / "data")

    return load


def test_queries_on_disk_are_those_in_memory(made):
    whole = made()
    lengths = sorted(len(query.ids) for query in [*whole.train, *whole.held_out])
    assert (len(lengths), whole.longest, whole.left_out) == (24, lengths[-1], 0)
    bound = lengths[12]
    for overrides in ((), (f"data.max_query_length={bound}",)):
        known, found = made(*overrides), made(*overrides, "data.streaming=true")
        assert list(found.train) == list(known.train)
        assert list(found.held_out) == list(known.held_out)
        assert found[2:] == known[2:]
        assert content(found.train) == content(known.train)
    assert found.longest == bound
    assert found.left_out == sum(length > bound for length in lengths)
    assert set(found.train[0].columns) == {"topic"}


def test_nothing_short_enough(made):
    for streaming in ("false", "true"):
        with pytest.raises(UserError, match=r"no prompt of at most data\.max_query_length=1 tok"):
            made("data.max_query_length=1", f"data.streaming={streaming}")


def test_content_depends_on_order_and_borders():
    def hashed(*ids):
        return content([Query(list(each), "") for each in ids])

    assert hashed([1, 2], [3]) == hashed([1, 2], [3])
    assert len({hashed([1, 2], [3]), hashed([1], [2, 3]), hashed([3], [1, 2]), hashed()}) == 4

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from ppo.trl_data import as_query, read_queries
from workbench.chat import query_ids
from workbench.errors import UserError
from workbench.models import load_tokenizer

TEXT = "Why does the harbour smell?"
TURNS = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return load_tokenizer(str(tiny_llama))


def test_text_messages_rows_and_tokens_give_the_same_query(tokenizer):
    ids = query_ids(tokenizer, TEXT)
    answered = [*TURNS, {"role": "assistant", "content": "Tar."}]
    given = [
        TEXT, TURNS, ids, torch.tensor(ids), {"prompt": TEXT}, {"prompt": TURNS},
        {"messages": TURNS}, {"messages": answered}, {"input_ids": ids},
        {"input_ids": torch.tensor(ids)},
    ]  # fmt: skip
    assert [as_query(each, tokenizer).ids for each in given] == [ids] * len(given)


def test_padding_is_taken_off(tokenizer):
    ids, pad = query_ids(tokenizer, TEXT), tokenizer.pad_token_id
    padded = {"input_ids": [pad, pad, *ids, pad], "attention_mask": [0, 0] + [1] * len(ids) + [0]}
    assert as_query(padded, tokenizer).ids == ids
    # An EOS that is seen is no padding, though it has PAD's id.
    seen = {"input_ids": [*ids, pad], "attention_mask": [1] * (len(ids) + 1)}
    assert as_query(seen, tokenizer).ids == [*ids, pad]
    assert as_query([pad, pad, *ids], tokenizer).ids == ids


def test_other_columns_are_kept_for_reward_functions(tokenizer):
    row = {"input_ids": [5, 6], "attention_mask": [1, 1], "answer": 42, "prompt": TEXT}
    query = as_query(row, tokenizer)
    assert (query.prompt, query.columns) == (TEXT, {"answer": 42})
    assert as_query({"input_ids": [70, 71]}, tokenizer).prompt == tokenizer.decode([70, 71])


def test_collators(tokenizer):
    ids = query_ids(tokenizer, TEXT)
    rows = Dataset.from_list([{"input_ids": ids}, {"input_ids": ids[:3]}])

    def own(batch):
        return {"input_ids": torch.tensor([batch[0]["text"]])}

    padding = DataCollatorWithPadding(tokenizer)
    assert [q.ids for q in read_queries(rows, tokenizer, padding)] == [ids, ids[:3]]
    (query,) = read_queries([{"text": [7, 8]}], tokenizer, own)
    assert (query.ids, query.columns) == ([7, 8], {"text": [7, 8]})


def test_several_data_sets(tokenizer):
    rows = {"a": [{"prompt": "x"}], "b": [{"prompt": "y"}, {"prompt": "z"}]}
    assert [query.prompt for query in read_queries(rows, tokenizer)] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "eval_dataset: has no rows"),
        ([{"prompt": "a"}, {"text": "b"}], "row 1: needs input_ids, prompt or messages; .* text"),
        ([{"input_ids": []}], "row 0: input_ids has no tokens"),
        ([{"input_ids": [10**6]}], "row 0: input_ids has a token beyond"),
        ([{"prompt": ""}], "row 0: needs input_ids"),
    ],
)
def test_rows_that_cannot_be_read(tokenizer, rows, message):
    with pytest.raises(UserError, match=message):
        read_queries(rows, tokenizer, where="eval_dataset")

from pathlib import Path

import pytest

from prompts.library import LIBRARY
from prompts.options import cache_file, library_of, named_fields
from workbench.errors import UserError


def test_the_cache_is_one_for_all_runs_unless_another_or_none_is_asked_for(monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", "here")
    assert cache_file(None, no_cache=False) == Path("here/answers.sqlite")
    assert cache_file(Path("mine.sqlite"), no_cache=False) == Path("mine.sqlite")
    assert cache_file(None, no_cache=True) is None


def test_the_library_is_the_starter_library_unless_a_folder_is_named(tmp_path):
    assert library_of(None).root == LIBRARY
    assert library_of(tmp_path).root == tmp_path


def test_new_fields_are_split_at_the_first_equals_sign():
    texts = ["question=prompt[0].content", " right = a == b "]
    assert named_fields(texts) == {"question": "prompt[0].content", "right": "a == b"}
    assert named_fields([]) == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["question"], "--field 'question': write name=expression"),
        (["=a"], "--field '=a': write name=expression"),
        (["q="], "--field 'q=': write name=expression"),
        (["q=a", "q=b"], "--field 'q=b': 'q' is given twice; keep one"),
    ],
)
def test_a_new_field_without_name_or_expression_is_refused(texts, message):
    with pytest.raises(UserError, match=message):
        named_fields(texts)

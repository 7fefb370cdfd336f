import time
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from prompts.documents import MAX_BYTES, FieldError, nearest, read_yaml, validated
from workbench.errors import UserError

TEXT = """\
name: a
# a comment
nested:
  list:
    - one
    - key: value
      text: |
        first
        second
  "quoted": 1
"""


class Dog(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["dog"]
    bark: int = 0


class Cat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["cat"]
    lives: int = Field(9, ge=1, le=9)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    low: float = 0.0
    high: float = 1.0

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise FieldError(f"is above high ({self.high})", "low")
        return self


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    mode: Literal["fast", "slow"] = "fast"
    inner: Inner | None = None
    pets: list[Annotated[Dog | Cat, Field(discriminator="kind")]] = []
    by_name: dict[str, Inner] = {}


@pytest.fixture
def read(tmp_path):
    def read(text: str | bytes):
        path = tmp_path / "file.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_yaml(path)

    return read


def problem(read, text: str | bytes, model: type[BaseModel] | None = None) -> str:
    with pytest.raises(UserError) as error:  # noqa: PT012 - the first step may raise, or the second
        source = read(text)
        if model is not None:
            validated(source, model)
    message = str(error.value)
    assert "\n" not in message
    return message.partition("file.yaml")[2]


def test_every_key_knows_its_line(read):
    source = read(TEXT)
    assert source.tree["nested"]["list"][1] == {"key": "value", "text": "first\nsecond\n"}
    assert source.line() == 1
    assert source.line("name") == 1
    assert source.line("nested") == 3
    assert source.line("nested", "list", 0) == 5
    assert source.line("nested", "list", 1, "text") == 7
    assert source.line("nested", "quoted") == 10


def test_an_unknown_key_has_the_line_of_its_deepest_known_parent(read):
    source = read(TEXT)
    assert source.line("nested", "list", 7, "x") == 4
    assert source.line("nothing") == 1


def test_a_line_inside_a_block_is_counted_from_its_key(read):
    source = read(TEXT)
    within = source.error("bad", "nested", "list", 1, "text", within=2)
    assert str(within).endswith("file.yaml:9: nested.list.1.text: bad")
    assert ":1: name: bad" in str(source.error("bad", "name", within=1))
    assert str(source.error("bad")).endswith("file.yaml:1: bad")


def test_merge_keys_work(read):
    source = read("base: &b {x: 1}\nother:\n  <<: *b\n  y: 2\n")
    assert source.tree["other"] == {"x": 1, "y": 2}
    assert source.line("other", "y") == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3: key 'a' stands twice (first on line 1); remove one"),
        ("x:\n  a: 1\n  a: 1\n", ":3: key 'a' stands twice (first on line 2); remove one"),
        ("a: [1, 2\nb: 3\n", ":2: not valid YAML ("),
        ("a: b: c\n", ":1: not valid YAML (mapping values are not allowed here)"),
        ("- a\n- b\n", ":1: expected a mapping (`key: value` lines), found a list"),
        ("", ":1: expected a mapping (`key: value` lines), found nothing"),
        ("a: 1\nyes: 2\n", ":2: key 'yes' is not a text for YAML; put it in quotes"),
        ("1: 2\n", ":1: key '1' is not a text"),
        ("? [a, b]\n: 2\n", ":1: key 'a list' is not a text"),
        ("a: !!python/object/apply:os.system [ls]\n", ":1: not valid YAML (could not determine"),
        ("a: !!bool maybe\n", ": not valid YAML ('maybe')"),
        ("a: !!timestamp soon\n", ": not valid YAML ("),
        ("a: 2020-13-45\n", ": not valid YAML (month must be in 1..12)"),
        ("a: &x [*x]\n", ":1: nested too deeply"),
        ("a: " + "[" * 40 + "]" * 40, ":1: nested too deeply; at most 30 levels"),
        ("a: " + "[" * 5_000, ": nested too deeply"),
        (b"a: \xff\n", ": not UTF-8 text; save the file as UTF-8"),
        ("a: 'x\x00'", ": not valid YAML ("),
    ],
)
def test_a_file_that_is_no_such_document_is_refused(read, text, expected):
    assert problem(read, text).startswith(expected)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path)


def test_a_large_file_is_refused(read):
    assert problem(read, "a: " + "x" * MAX_BYTES).startswith(": larger than 200,000 bytes")


def test_aliases_that_multiply_are_refused_at_once(read):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    begin = time.process_time()
    assert ": more than 50,000 values, aliases (*name) counted" in problem(read, "\n".join(lines))
    assert time.process_time() - begin < 5


def test_of_many_names_only_the_first_are_listed():
    few, many = [f"n{i:02}" for i in range(21)], [f"n{i:02}" for i in range(60)]
    assert nearest("xyz", few).endswith("n19, n20")
    assert nearest("xyz", many).endswith("n18, n19 and 40 more")
    assert nearest("n599", many) == "did you mean 'n59'?"


def test_half_a_character_is_refused(read):
    text = 'name: a\nstop: ["x", "\\ud83d"]\n'
    assert problem(read, text) == ":2: half a character (\\ud800 to \\udfff); write it whole"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mode: fast\n", ":1: name: is missing; add it"),
        ("name: a\nmod: fast\n", ":2: mod: unknown key; did you mean 'mode'?"),
        ("nam: a\n", ":1: nam: unknown key; did you mean 'name'? (and 1 more)"),
        ("name: a\ninner:\n  hihg: 2\n", ":3: inner.hihg: unknown key; did you mean 'high'?"),
        (
            "name: a\ninner:\n  zzz: 2\n",
            ":3: inner.zzz: unknown key; there are: high, low",
        ),
        (
            "name: a\nmode: fats\n",
            ":2: mode: must be one of fast, slow (is 'fats'); did you mean 'fast'?",
        ),
        ("name: yes\n", ":1: name: must be a text (YAML reads yes, no, on, off as True)"),
        ("name: 12\n", ":1: name: must be a text (is 12); put it in quotes"),
        ("name: a\ninner: {low: 1e-2}\n", ":2: inner.low: must be a number (YAML reads '1e-2'"),
        ("name: a\ninner: 3\n", ":2: inner: must be a mapping of keys to values (is 3)"),
        ("name: a\ninner:\n  low: 3\n", ":3: inner.low: is above high (1.0)"),
        ("name: a\npets:\n  - kind: dgo\n", ":3: pets.0.kind: must be one of dog, cat (is 'dgo')"),
        ("name: a\npets:\n  - {bark: 1}\n", ":3: pets.0.kind: is missing; add it"),
        ("name: a\npets: [3]\n", ":2: pets.0: must be a mapping of keys to values (is 3)"),
        (
            "name: a\npets:\n  - kind: dog\n  - kind: cat\n    lifes: 1\n",
            ":5: pets.1.lifes: unknown key; did you mean 'lives'?",
        ),
        ("name: a\npets: [{kind: cat, lives: 0}]\n", ":2: pets.0.lives: must be at least 1 (is 0)"),
        ("name: a\npets: [{kind: cat, lives: 10}]\n", ":2: pets.0.lives: must be at most 9"),
        ("name: a\npets: x\n", ":2: pets: must be a valid list (is 'x')"),
        ("name: a\nby_name:\n  x: {lo: 1}\n", ":3: by_name.x.lo: unknown key; did you mean 'low'?"),
        (f"name: 0x{'f' * 5000}\n", ":1: name: must be a text (is a number of thousands of digits"),
    ],
)
def test_an_error_names_line_key_and_remedy(read, text, expected):
    assert problem(read, text, Model).startswith(expected)


def test_a_right_document_becomes_the_model(read):
    model = validated(read("name: a\npets: [{kind: cat}]\ninner: {low: 0.5}\n"), Model)
    assert model == Model(name="a", pets=[Cat(kind="cat")], inner=Inner(low=0.5))


@given(
    text=st.one_of(
        st.text(max_size=60),
        st.text(alphabet="ab:-[]{}&*!|>'\"#%?<, \n\t01", max_size=60),
    )
)
def test_any_text_is_read_or_refused_in_one_line(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    message = str(path)
    try:
        validated(read_yaml(path), Model)
    except UserError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert "\n" not in message


def test_the_nearest_name_is_offered():
    assert nearest("fast_shot", ["few_shot", "zero_shot"]) == "did you mean 'few_shot'?"
    assert nearest("q", ["b", "a"]) == "there are: a, b"
    assert nearest("q", []) == "there are none"


def test_paths_are_kept(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1", encoding="utf-8")
    assert read_yaml(path).path == Path(path)

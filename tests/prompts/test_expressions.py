import time

import pytest

from prompts.expressions import Expressions
from workbench.data.conversations import RowError
from workbench.errors import UserError

ROW = {
    "prompt": [{"role": "user", "content": "Which gull hums?"}],
    "best": "the grey one",
    "worst": "none",
    "ranks": [3, 1, 2],
    "Best Answer": "grey",
}


def value(text: str, row: dict = ROW):
    return Expressions({"found": text})(row)["found"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prompt[0].content", "Which gull hums?"),
        ("prompt|map(attribute='content')|join(' ')", "Which gull hums?"),
        ("[best, worst]", ["the grey one", "none"]),
        ("(best, worst)", ["the grey one", "none"]),
        ("{'text': best}", {"text": "the grey one"}),
        ("best ~ '; ' ~ worst", "the grey one; none"),
        ("row['Best Answer']", "grey"),
        ("ranks|sort|first", 1),
        ("ranks[0] > ranks[1]", True),
        ("best if nothing is not defined else worst", "the grey one"),
        ("[best, best.removeprefix('the ')]", ["the grey one", "grey one"]),
        ("'%}{{ ' ~ worst", "%}{{ none"),
        ("best\n~ worst", "the grey onenone"),
        ("none", None),
    ],
)
def test_an_expression_gives_a_value_of_the_row(text, expected):
    assert value(text) == expected


def test_fields_stand_beside_the_columns_and_see_the_row_as_it_was():
    found = Expressions({"best": "worst", "worst": "best", "more": "row.best"})(ROW)
    assert found == {**ROW, "best": "none", "worst": "the grey one", "more": "the grey one"}
    assert Expressions({})(ROW) == ROW


def test_a_column_called_row_is_itself():
    assert value("row", {"row": "7"}) == "7"


def test_values_are_not_expressions():
    assert value("text", {"text": "{{ 1 + 1 }} a ~ b"}) == "{{ 1 + 1 }} a ~ b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("promt[0].content", "'promt' is undefined; did you mean 'prompt'?"),
        (
            "[best, zz]",
            "'zz' is undefined; there are: Best Answer, best, prompt, ranks, row, worst",
        ),
        ("prompt[0].text", "'dict object' has no attribute 'text'"),
        ("prompt[1]", "list object has no element 1"),
        ("prompt[0", "unexpected end of template, expected ','"),
        ("best worst", "more text after the expression"),
        ("best, worst", "more text after the expression"),
        ("best }}{{ worst", "more text after the expression"),
        ("best %}{% include 'x' %}", "unexpected '}'"),
        ("", "unexpected 'end of template'"),
        ("best|uper", "no filter named 'uper' here; did you mean 'upper'?"),
        ("best.upper", "not JSON serializable"),
        ("1e999", "holds a number that is too large"),
        ("ranks[0] + best", "TypeError: unsupported operand"),
        ("best\n+ ranks", "TypeError: can only concatenate str"),
    ],
)
def test_a_wrong_expression_says_why_in_one_line(text, message):
    with pytest.raises(RowError) as caught:
        value(text)
    assert message in str(caught.value)
    assert repr(f"found={text}") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "best.__class__",
        "prompt|map(attribute='__class__')|list",
        "best['__class__']",
        "self",
        "self.__init__",
        "range",
        "namespace(x=1)",
        "cycler.__init__.__globals__",
        "best.format(best)",
        "best * 999999999",
        "range(99999999)|list",
        "9 ** 99999",
        "'%999999999d' % 1",
        "[" * 5_000,
        "best ~ " * 20_000 + "best",
    ],
)
def test_a_hostile_expression_is_refused_at_once(text):
    started = time.perf_counter()
    with pytest.raises(RowError) as caught:
        value(text)
    assert time.perf_counter() - started < 5
    assert "found=" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_all_rows_cost_together_is_not_bounded():
    expressions = Expressions({"found": "range(9000)|join"})
    assert {len(expressions(ROW)["found"]) for _ in range(200)} == {34_890}


@pytest.mark.parametrize("name", ["", "two words", "1st", "a.b"])
def test_a_field_has_a_name_that_templates_can_read(name):
    with pytest.raises(UserError, match="its name must be one that templates can read"):
        Expressions({name: "best"})

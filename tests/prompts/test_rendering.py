import json
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.items import Item
from prompts.rendering import as_text, compile_template, continuation, token_ids
from prompts.template import Template, load_template
from workbench.chat import query_ids
from workbench.errors import UserError
from workbench.models import load_tokenizer

PASSAGE = SimpleNamespace(text="Tea is at four.", source="rules.md#1", score=0.9)
POOL = [
    Item("p1", {"question": "1 + 1?", "answer": "2", "why": "One more than one."}, 1),
    Item("p2", {"question": "2 + 2?", "answer": "4", "why": "Twice two."}, 2),
]


def template(text="Q: {{ question }}", **settings) -> Template:
    defaults = {"name": "task/x", "strategy": "zero_shot", "variables": {"question": "string"}}
    return Template(**{**defaults, "template": text, **settings})


def few_shot(**exemplars) -> Template:
    return template(
        strategy="few_shot",
        variables={"question": "string", "answer": "string", "why": "string"},
        exemplars={"pool": "pool.jsonl", "answer": "{{ why }} So {{ answer }}.", **exemplars},
    )


def item(**fields) -> Item:
    return Item("i1", {"question": "3 + 3?", **fields}, 7)


def contents(messages) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def problem(made: Template, row: Item) -> str:
    with pytest.raises(UserError) as error:
        compile_template(made).render(row)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_system_and_user_turn():
    made = template("Q: {{ question }}\n", system="Be {{ tone }}.", variables={
        "question": "string", "tone": "string",
    })  # fmt: skip
    assert contents(compile_template(made).render(item(tone="brief"))) == [
        ("system", "Be brief."),
        ("user", "Q: 3 + 3?"),
    ]


def test_an_empty_system_turn_is_left_out():
    made = template(system="{% if question == 'x' %}Be brief.{% endif %}")
    assert contents(compile_template(made).render(item())) == [("user", "Q: 3 + 3?")]


def test_exemplars_become_turns():
    assert contents(compile_template(few_shot()).render(item(), POOL)) == [
        ("user", "Q: 1 + 1?"),
        ("assistant", "One more than one. So 2."),
        ("user", "Q: 2 + 2?"),
        ("assistant", "Twice two. So 4."),
        ("user", "Q: 3 + 3?"),
    ]


def test_exemplars_in_one_turn_stand_between_separators():
    made = few_shot(layout="one_turn", separator="\n---\n")
    assert contents(compile_template(made).render(item(), POOL)) == [
        (
            "user",
            "Q: 1 + 1?\nOne more than one. So 2.\n---\nQ: 2 + 2?\nTwice two. So 4.\n---\nQ: 3 + 3?",
        )
    ]


def test_exemplars_for_a_template_without_them_are_refused():
    with pytest.raises(UserError, match=r"task/x.yaml:1: has no `exemplars`, but some are given"):
        compile_template(template()).render(item(), POOL)


@pytest.mark.parametrize(
    "value", ["{{ 7*7 }}", "{% include '/etc/passwd' %}", "{{ question }}", "{# x #}", "{%", "<&>"]
)
def test_values_are_never_rendered_again(value):
    made = few_shot()
    pool = [Item("p", {"question": value, "answer": value, "why": value}, 1)]
    rendered = compile_template(made).render(item(question=value), pool)
    assert contents(rendered) == [
        ("user", f"Q: {value}"),
        ("assistant", f"{value} So {value}."),
        ("user", f"Q: {value}"),
    ]


@given(st.text(min_size=1, max_size=80).filter(lambda text: text.strip()))
def test_any_value_arrives_as_it_is(value):
    messages = compile_template(template("{{ question }}")).render(item(question=value))
    assert messages == [{"role": "user", "content": value}]


def test_passages_are_read_with_text_source_and_score():
    text = "{% for p in passages %}{{ p.text }} ({{ p.source }}, {{ p.score }}) {% endfor %}"
    made = template(text + "{{ question }}", documents={"folder": "docs", "query": "question"})
    compiled = compile_template(made)
    assert contents(compiled.render(item(), passages=[PASSAGE])) == [
        ("user", "Tea is at four. (rules.md#1, 0.9) 3 + 3?")
    ]
    assert contents(compiled.render(item())) == [("user", "3 + 3?")]


def test_an_exemplar_brings_its_own_passages():
    made = few_shot()
    made = made.model_copy(
        update={
            "template": "{{ passages|map(attribute='text')|join }} {{ question }}",
            "documents": template(documents={"folder": "d", "query": "question"}).documents,
        }
    )
    own = Item("p", {**POOL[0].fields, "passages": [{"text": "Own."}]}, 1)
    rendered = contents(compile_template(made).render(item(), [own, POOL[1]], [PASSAGE]))
    assert [content for role, content in rendered if role == "user"] == [
        "Own. 1 + 1?",
        " 2 + 2?",
        "Tea is at four. 3 + 3?",
    ]


def test_an_optional_field_is_none_where_it_is_missing():
    made = template(
        "{{ question }}{% if hint %} ({{ hint }}){% endif %}",
        variables={"question": "string", "hint": {"type": "string", "optional": True}},
    )
    compiled = compile_template(made)
    assert compiled.render(item(hint="six"))[0]["content"] == "3 + 3? (six)"
    assert compiled.render(item())[0]["content"] == "3 + 3?"
    assert compiled.render(item(hint=None))[0]["content"] == "3 + 3?"


def test_a_field_that_only_exemplars_read_is_not_asked_of_items():
    assert compile_template(few_shot()).render(item(), POOL)[-1]["content"] == "Q: 3 + 3?"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"qestion": "x"}, "lacks it; did you mean 'qestion'?"),
        ({}, "lacks it; there are none"),
        ({"question": None}, "has null; mend the item, or declare it optional"),
        ({"question": 5}, "has 5, which is no string; mend the item or the type"),
        ({"question": ["a"]}, "has ['a'], which is no string"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_its_item(fields, expected):
    assert problem(template(), Item("i1", fields, 7)).startswith(
        f"task/x.yaml:1: variables.question: item 'i1' (row 7 of its file) {expected}"
    )


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("string", ["", "a"], [1, True, ["a"], {"a": 1}]),
        ("integer", [0, -3], [1.0, True, "1"]),
        ("number", [0, 1.5], [True, "1"]),
        ("boolean", [True, False], [0, "true"]),
        ("list", [[], [1]], ["a", {"a": 1}]),
        ("object", [{}, {"a": 1}], [[1], "a"]),
    ],
)
def test_types_are_checked(kind, right, wrong):
    made = template("Value: {{ v }}", variables={"v": kind})
    for value in right:
        assert compile_template(made).render(Item("i", {"v": value}, 1))
    for value in wrong:
        assert f"which is no {kind}" in problem(made, Item("i", {"v": value}, 1))


def test_an_error_while_rendering_names_line_and_item(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\nstrategy: zero_shot\ntemplate: |\n  Rows:\n  {% for row in rows %}\n"
        "  {{ row.name }}\n  {% endfor %}\nvariables: {rows: list}\n"
    )
    with pytest.raises(UserError) as error:
        compile_template(load_template(path)).render(Item("i1", {"rows": [{"nam": 1}]}, 1))
    assert str(error.value) == (
        f"{path}:6: template: 'dict object' has no attribute 'name' (item 'i1')"
    )


def test_a_turn_without_text_is_refused():
    made = template("{% if question == 'x' %}y{% endif %}")
    assert problem(made, item()) == "task/x.yaml:1: template: renders to nothing for item 'i1'"


def test_a_conversation_that_is_too_long_is_refused():
    compiled = compile_template(few_shot())
    pool = [Item(str(i), {"question": "x" * 400_000, "answer": "y", "why": "z"}, i) for i in (1, 2)]
    with pytest.raises(
        UserError, match=r"renders to 1,200,0\d\d characters for item 'i1'; at most"
    ):
        compiled.render(item(question="x" * 400_000), pool)


def test_wrong_jinja_is_refused_when_it_is_compiled():
    with pytest.raises(UserError, match=r"task/x.yaml:1: template: reads 'b', which"):
        compile_template(template("{{ question }}{{ b }}"))


def test_the_two_passes_of_zero_shot_cot():
    made = template(strategy="zero_shot_cot", trigger="Think.")
    messages = compile_template(made).render(item())
    assert contents(messages) == [("user", "Q: 3 + 3?\nThink.")]
    second = continuation(messages, " Three and three.\n", made.answer_trigger)
    assert contents(second) == [
        ("user", "Q: 3 + 3?\nThink."),
        ("assistant", "Three and three.\nTherefore, the answer is"),
    ]
    assert len(messages) == 1
    assert continuation(messages, "", "So")[-1]["content"] == "So"


def test_plain_text_has_no_marks_but_those_of_the_template():
    messages = compile_template(few_shot()).render(item(), POOL[:1])
    assert as_text(messages) == "Q: 1 + 1?\n\nOne more than one. So 2.\n\nQ: 3 + 3?\n\n"
    assert as_text(continuation(messages, "Six.", "So")).endswith("Q: 3 + 3?\n\nSix.\nSo")


@pytest.fixture
def llama(tiny_llama):
    return load_tokenizer(str(tiny_llama))


def test_a_chat_model_gets_the_turns_of_its_template(tiny_qwen):
    tokenizer = load_tokenizer(str(tiny_qwen))
    messages = compile_template(few_shot()).render(item(), POOL[:1])
    ids = token_ids(tokenizer, messages)
    assert ids == query_ids(tokenizer, messages)
    assert tokenizer.decode(ids).endswith(
        "<|im_start|>user\nQ: 3 + 3?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_chat_model_continues_the_last_assistant_turn(tiny_qwen):
    tokenizer = load_tokenizer(str(tiny_qwen))
    messages = compile_template(template()).render(item())
    text = tokenizer.decode(token_ids(tokenizer, continuation(messages, "Six.", "So it is")))
    assert text == ("<|im_start|>user\nQ: 3 + 3?<|im_end|>\n<|im_start|>assistant\nSix.\nSo it is")


def test_one_bos_whether_the_template_writes_it_or_the_tokenizer_adds_it(llama):
    messages = compile_template(template()).render(item())
    for turns in (messages, continuation(messages, "Six.", "So")):
        ids = token_ids(llama, turns)
        assert ids[0] == llama.bos_token_id
        assert ids.count(llama.bos_token_id) == 1
    llama.chat_template = None
    assert llama("x")["input_ids"][0] == llama.bos_token_id
    for turns in (messages, [{"role": "user", "content": f"{llama.bos_token}Q: 3 + 3?"}]):
        ids = token_ids(llama, turns)
        assert ids.count(llama.bos_token_id) == 1
    assert token_ids(llama, messages) == query_ids(llama, messages)


def test_a_model_without_template_and_bos_gets_plain_text(tiny_gpt2):
    tokenizer = load_tokenizer(str(tiny_gpt2))
    messages = compile_template(template(system="Be brief.")).render(item())
    assert tokenizer.decode(token_ids(tokenizer, messages)) == "Be brief.\n\nQ: 3 + 3?\n\n"


def test_a_chat_template_that_drops_the_answer_is_refused(tiny_qwen):
    tokenizer = load_tokenizer(str(tiny_qwen))
    tokenizer.chat_template = "{% for m in messages[:1] %}{{ m['content'] }}{% endfor %}"
    turns = continuation(compile_template(template()).render(item()), "Six.", "So")
    with pytest.raises(UserError, match="cannot continue an answer"):
        token_ids(tokenizer, turns)


def test_ten_thousand_few_shot_items_render_in_three_seconds():
    compiled = compile_template(few_shot(k=4))
    words = "pears and apples " * 15
    pool = [
        Item(f"p{i}", {"question": f"{i} {words}", "answer": str(i), "why": words}, i)
        for i in range(16)
    ]
    items = [Item(f"a{i}", {"question": f"{i} {words}"}, i) for i in range(10_000)]
    begin = time.process_time()
    rendered = [compiled.render(row, pool[n % 12 : n % 12 + 4]) for n, row in enumerate(items)]
    assert time.process_time() - begin < 3.0
    assert all(len(messages) == 9 for messages in rendered)
    assert json.dumps(rendered[7]).count("pears") > 100

import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.items import Item
from prompts.rendering import check_template, compile_template
from prompts.sandbox import MAX_CHARACTERS, MAX_SOURCE
from prompts.template import Template
from workbench.errors import UserError

SECONDS = 8  # of one core; the slowest needs less than one on an idle machine
MEGABYTES = 120

LOOPS = "{% for i in range(10000) %}{% for j in range(100) %}BODY{% endfor %}{% endfor %}x"
GROW = (
    "{% set ns = namespace(s='xxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = VALUE %}"
    "{% endfor %}{{ ns.s }}"
)
LONG = "{% set a = 'x' * 900000 %}{% for i in range(10000) %}BODY{% endfor %}x"


TOO_LARGE = "holds a number that is too large"
WORDS = (
    "{{ }} {% %} for in if endif endfor else set endset x q 'a' 1 ( ) [ ] . , | ~ + * == range "
    "upper join namespace() loop not"
)


def template(text: str, **fields) -> Template:
    variables = {name: "string" if isinstance(v, str) else "list" for name, v in fields.items()}
    return Template(name="a/b", strategy="zero_shot", template=text, variables=variables)


def render(text: str, **fields) -> str:
    checked = template(text, **fields)
    check_template(checked)
    return compile_template(checked).render(Item("i1", fields, 1))[0]["content"]


def refusal(text: str, **fields) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(UserError) as error:
        render(text, **fields)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < SECONDS
    assert (after.ru_maxrss - before.ru_maxrss) / 1024 < MEGABYTES
    message = str(error.value)
    assert message.startswith("a/b.yaml:1: template: ")
    assert "\n" not in message
    return message.removeprefix("a/b.yaml:1: template: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ ''.__class__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "access to attribute '__class__'"),
        ("{{ ''|attr('__class__') }}", "no filter named 'attr' here"),
        ("{{ ''['__class__'] }}", "'str object' has no attribute '__class__'"),
        ("{{ ['']|map(attribute='__class__')|list }}", "'str object' has no attribute"),
        ("{{ [''] | selectattr('__class__')|list }}", "'str object' has no attribute"),
        ("{{ range.__globals__ }}", "access to attribute '__globals__'"),
        ("{{ self.__init__.__globals__ }}", "reads 'self', which `variables` does not declare"),
        ("{{ cycler.__init__ }}", "reads 'cycler'"),
        ("{{ lipsum(100000) }}", "reads 'lipsum'"),
        ("{{ context }}", "reads 'context'"),
        ("{{ namespace().__class__ }}", "access to attribute '__class__' of 'Namespace'"),
        (
            "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
            "access to attribute '__init__' of 'LoopContext'",
        ),
        ("{{ '{0.__class__}'.format(1) }}", "calls something that is neither a method nor"),
        ("{{ '{a.__class__}'.format_map({'a': 1}) }}", "calls something that is neither"),
        ("{{ [].append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ {}.update({}) }}", "access to attribute 'update' of 'dict' object is unsafe"),
        ("{{ (1).to_bytes(10) }}", "access to attribute 'to_bytes'"),
    ],
)
def test_python_behind_the_values_is_out_of_reach(text, expected):
    assert refusal(text).startswith(expected)


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("{% include '/etc/passwd' %}", "include"),
        ("{% include ['/etc/passwd'] ignore missing %}", "include"),
        ("{% import '/etc/passwd' as x %}", "import"),
        ("{% from '/etc/passwd' import x %}", "fromimport"),
        ("{% extends '/etc/passwd' %}", "extends"),
        ("{% block x %}{% endblock %}", "block"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "macro"),
        ("{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}x{% endcall %}", "macro"),
        ("{% for x in [[1]] recursive %}{{ loop(x) }}{% endfor %}", "recursive for"),
        ("{% filter upper %}x{% endfilter %}", "filterblock"),
        ("{% with a = 1 %}{{ a }}{% endwith %}", "with"),
    ],
)
def test_files_and_macros_are_refused_while_loading(text, tag):
    with pytest.raises(UserError, match=f"a/b.yaml:1: template: '{tag}' is not allowed; "):
        check_template(template(text))


@pytest.mark.parametrize(
    "body",
    [
        "{% for k in range(10000) %}{% endfor %}",
        "y",
        "{% if i == j %}{% endif %}",
        "{% set b = 1 ~ 2 ~ 3 %}",
        "{% if q.foo is defined %}{% endif %}",
        "{% if range(10000) %}{% endif %}",
        "{% if [1] * 900000 %}{% endif %}",
        "{% if 'x' * 900000 %}{% endif %}",
        "{% if range(100)|map('upper') %}{% endif %}",
    ],
)
def test_endless_loops_are_refused(body):
    text = LOOPS.replace("BODY", body)
    fields = {"q": "x"} if "q." in body else {}
    message = refusal(text, **fields)
    assert "its loops run too long" in message or "too much work for a prompt" in message


@pytest.mark.parametrize(
    "body",
    [
        "{% if a == 'x' * 900000 %}{% endif %}",
        "{% set b = a[1:] %}",
        "{% if a[1:] %}{% endif %}",
        "{% set b = a|upper %}",
        "{% if a.count('xx' * 1000) %}{% endif %}",
        "{% if ('x' * 100000 ~ 'y') in a %}{% endif %}",
        "{% if a|float %}{% endif %}",
        "{{ a[0] }}{% if a|wordcount %}{% endif %}",
        "{% if {a: 1} %}{% endif %}",
        "{% if {}[a] is defined %}{% endif %}",
    ],
)
def test_repeated_work_on_a_long_text_is_refused(body):
    assert refusal(LONG.replace("BODY", body)).startswith("too much work for a prompt")


def test_hashing_a_long_tuple_again_and_again_is_refused():
    text = "{% set t = (1,) * 90000 %}{% for i in range(10000) %}BODY{% endfor %}x"
    for body in ("{% if {}[t] is defined %}{% endif %}", "{% set d = {t: 1} %}"):
        assert refusal(text.replace("BODY", body)).startswith("too much work for a prompt")


def test_sorting_again_and_again_is_refused():
    text = (
        "{% set a = range(10000)|reverse|list %}{% for i in a %}{% set b = a|sort %}{% endfor %}x"
    )
    assert refusal(text).startswith("too much work for a prompt")


@pytest.mark.parametrize(
    "value",
    [
        "ns.s + ns.s",
        "ns.s ~ ns.s",
        "[ns.s, ns.s]",
        "(ns.s, ns.s)",
        "{'a': ns.s, 'b': ns.s}",
        "[ns.s, ns.s]|join",
        "ns.s|replace('x', 'xx')",
        "ns.s.replace('x', 'xx')",
        "ns.s * 2",
        "''.join([ns.s, ns.s])",
    ],
)
def test_a_value_that_doubles_is_refused(value):
    message = refusal(GROW.replace("VALUE", value))
    assert message.startswith(("a value of size 1,", "too much work for a prompt"))


def test_a_block_that_doubles_is_refused():
    text = GROW.replace("= VALUE %}", "%}{{ ns.s }}{{ ns.s }}{% endset %}")
    assert refusal(text).startswith("a value of size 1,310,720; at most 1,000,000")


def test_a_number_that_squares_is_refused():
    text = GROW.replace("'xxxxxxxxxx'", "10").replace("VALUE", "ns.s * ns.s")
    assert refusal(text).startswith("a number of 1,701 bits; at most 1000")


@pytest.mark.parametrize(
    "text",
    [
        "{% for i in range(10000) %}{{ 'x' * 10000 }}{% endfor %}",
        "{% set y %}{% for i in range(10000) %}{{ 'x' * 10000 }}{% endfor %}{% endset %}{{ y }}",
        "{% for i in range(10000) %}" + "y" * 10_000 + "{% endfor %}",
        "{% set y %}{% for i in range(10000) %}" + "y" * 10_000 + "{% endfor %}{% endset %}{{ y }}",
    ],
)
def test_an_output_of_100_megabytes_is_refused(text):
    message = refusal(text)
    assert "too much work for a prompt" in message or "its loops run too long" in message


def test_an_output_above_the_limit_is_refused():
    text = "{% for i in range(3) %}{{ 'x' * 400000 }}{% endfor %}"
    assert refusal(text) == ("renders to 1,200,000 characters for item 'i1'; at most 1,000,000")
    assert len(render("{{ 'x' * 1000000 }}")) == MAX_CHARACTERS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ 'x' * 10**9 }}", "a value of size 1,000,000,000; at most 1,000,000"),
        ("{{ 10**9 * 'x' }}", "a value of size 1,000,000,000"),
        ("{% set a = 'x' * 10**9 %}y", "a value of size 1,000,000,000"),
        ("{{ ([1] * 10**9)|length }}", "a value of size 1,000,000,000"),
        ("{{ namespace(a='x' * 10**9) }}", "a value of size 1,000,000,000"),
        ("{{ 9 ** (9 ** 9) }}", "an exponent above 64"),
        ("{{ 2 ** 64 ** 16 + 0 }}", "a number of 1,025 bits"),
        ("{{ range(10**9) }}", "a range of more than 10,000 numbers"),
        ("{{ range(10**30)|length }}", "a range of more than 10,000 numbers"),
        ("{% for i in range(10**9) %}{% endfor %}", "a range of more than 10,000 numbers"),
        ("{{ 'x'|center(10**9) }}", "a value of size 1,000,000,000"),
        ("{{ 'x'|center(width=10**9) }}", "a value of size 1,000,000,000"),
        ("{{ ['x']|map('center', 10**9)|list }}", "a value of size 1,000,000,000"),
        ("{{ range(10000)|join('x' * 10000) }}", "a value of size 100,000,000"),
        ("{{ range(10000)|join(d='x' * 10000) }}", "a value of size 100,000,000"),
        ("{{ ('x' * 10000).join('y' * 10000) }}", "a value of size 100,000,000"),
        ("{{ '%1000000000d'|format(1) }}", "the format filter takes widths below 1000 only"),
        ("{{ '%.1000000000f'|format(1) }}", "the format filter takes widths below 1000 only"),
        ("{{ '%*d'|format(10**9, 1) }}", "the format filter takes widths below 1000 only"),
        ("{{ '%(a)1000000000d'|format(a=1) }}", "the format filter takes its values by position"),
        ("{{ ('%s' * 10000)|format('x' * 10000) }}", "a value of size 100,020,000"),
        ("{{ '%1000000000d' % 1 }}", "formats a text with %; use the format filter"),
        ("{{ '{:>1000000000}'.format(1) }}", "calls something that is neither a method"),
        ("{{ 'x'.ljust(10**9) }}", "access to attribute 'ljust'"),
        ("{{ 'x'.center(10**9) }}", "access to attribute 'center'"),
        ("{{ '1'.zfill(10**9) }}", "access to attribute 'zfill'"),
        ("{{ 'x'.expandtabs(10**9) }}", "access to attribute 'expandtabs'"),
        ("{{ ('x' * 10000)|replace('x', 'y' * 10000) }}", "a value of size 100,000,000"),
        ("{{ ('x' * 10000)|replace('', 'y' * 10000) }}", "a value of size 100,010,000"),
        ("{{ ('x' * 10000)|replace(old='x', new='y' * 10000) }}", "a value of size 100,000,000"),
        ("{{ ('x' * 10000).replace('', 'y' * 10000) }}", "a value of size 100,010,000"),
        ("{{ ('\n' * 1000)|indent(10**6) }}", "a value of size 1,001,000,000"),
        ("{{ ('\n' * 1000)|indent('x' * 10000) }}", "a value of size 10,010,000"),
        ("{{ [1]|tojson(indent=10**9) }}", "tojson indents by at most 8"),
        ("{{ 1.5|round(10**9, 'ceil') }}", "round takes a precision of at most 20"),
        ("{{ 15|round(-10**9) }}", "round takes a precision of at most 20"),
        ("{{ ([[1]] * 300000)|sum(start=[]) }}", "sum adds numbers"),
        ("{{ ('a' * 900000).strip('b' * 500000) }}", "a value of size 4,500,000,000"),
        ("{{ ('a' * 900000)|trim('b' * 500000) }}", "a value of size 4,500,000,000"),
        ("{{ ('f' * 900000)|int(0, 16) }}", "a number of 3,600,000 bits"),
        ("{{ [1]|batch(10**9, 'x')|list }}", "no filter named 'batch' here"),
        ("{{ [1]|slice(10**9)|list }}", "no filter named 'slice' here"),
        ("{{ ['x', 'y']|map('for loop', -10**9)|list }}", "no filter named 'for loop' here"),
        ("{{ ['x']|map('paid value')|list }}", "no filter named 'paid value' here"),
    ],
)
def test_a_value_that_blows_up_is_refused(text, expected):
    assert refusal(text).startswith(expected)


def test_json_of_deep_nesting_is_bounded():
    text = (
        "{% set n = namespace(x=[1] * 1000) %}{% for i in range(400) %}{% set n.x = [n.x] %}"
        "{% endfor %}{{ n.x|tojson(indent=8) }}"
    )
    assert refusal(text).startswith("tojson writes more than 1,000,000 characters")


@pytest.mark.parametrize(
    "text",
    [
        "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
        "{{ " + "[" * 20_000 + "]" * 20_000 + " }}",
        "{{ " + "-" * 40_000 + "1 }}",
        "{{ " + "not " * 5_000 + "1 }}",
        "{{ ''" + ".a" * 5_000 + " }}",
        "{{ 1" + "+1" * 5_000 + " }}",
        "{{ ''" + "|trim" * 3_000 + " }}",
        "{% if 1 %}" * 2_000 + "{% endif %}" * 2_000,
        "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    ],
)
def test_deep_nesting_is_refused(text):
    assert refusal(text) == "is nested too deeply; simplify it"


def test_a_long_source_is_refused():
    assert refusal("x" * (MAX_SOURCE + 1)) == "has 50,001 characters; at most 50,000"
    assert len(render("x" * MAX_SOURCE)) == MAX_SOURCE


def test_a_number_of_thousands_of_digits_is_refused():
    assert refusal("{{ " + "9" * 5_000 + " }}") == TOO_LARGE
    assert refusal("{{ " + "9" * 4_000 + " }}").startswith("a number of 13,288 bits")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ none }}", "prints None; write {% if x %} around it, or {{ x or '' }}"),
        ("{{ q.upper }}", "prints a builtin_function_or_method; call it"),
        ("{{ [q.upper] }}", "a builtin_function_or_method inside a list or mapping"),
        ("{{ {'items': 1}.items }}", "prints a builtin_function_or_method; call it, or use ['name"),
        ("{{ q.uper() }}", "'str object' has no attribute 'uper'"),
        ("{{ {'a': 1}.b }}", "'dict object' has no attribute 'b'"),
        ("{{ [1][3] }}", "list object has no element 3"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ 1 + q }}", "TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
        ("{% for i in 5 %}{% endfor %}", "TypeError: 'int' object is not iterable"),
        ("{{ (-8) ** 0.5 }}", "prints a complex"),
        ("{{ loop }}", "reads 'loop', which"),
        ("{% for i in [1] %}{{ loop(i) }}{% endfor %}", "calls something that is neither"),
        ("{{ q is foo }}", "no test named 'foo' here"),
        ("{{ q|truncate(1) }}", "AssertionError: expected length >= 3, got 1"),
        ("{{ q", "unexpected end of template"),
        ("{% debug %}", "Encountered unknown tag 'debug'"),
    ],
)
def test_a_mistake_is_one_line(text, expected):
    assert refusal(text, **({"q": "x"} if "q" in text else {})).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ q|upper }} {{ q.strip().split(' ')[0] }}", "ONE TWO one"),
        ("{% for x in xs %}{{ loop.index }}. {{ x }}{{ ', ' if not loop.last }}{% endfor %}",
         "1. a, 2. b"),
        ("{% for x in xs if x != 'a' %}{{ loop.length }}{{ x }}{% endfor %}", "1b"),
        ("{% for x in [] %}x{% else %}none{% endfor %}", "none"),
        ("{{ xs|join(', ') }} {{ xs|length }} {{ xs|first }} {{ xs|last }}", "a, b 2 a b"),
        ("{{ ', '.join(xs) }}", "a, b"),
        ("{{ xs|map('upper')|list }} {{ xs|reverse|list }}", "['A', 'B'] ['b', 'a']"),
        ("{{ range(3)|sum }} {{ [1.5, 2]|sum }} {{ 2.345|round(1) }}", "3 3.5 2.3"),
        ("{{ {'a': [1, 'é']}|tojson }}", '{"a": [1, "é"]}'),
        ("{{ '%.2f of %3d'|format(1.239, 7) }}", "1.24 of   7"),
        ("{{ q ~ '-' ~ 1 }} {{ 'ABC'[xs|length] }}", "one two-1 C"),
        ("{% set n = namespace(i=0) %}{% for x in xs %}{% set n.i = n.i + 1 %}{% endfor %}"
         "{{ n.i }}", "2"),
        ("{% set both %}{{ q }}!{% endset %}{{ both }}", "one two!"),
        ("{{ 'yes' if 'a' in xs and q is string else 'no' }}", "yes"),
        ("{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}", "a2b1"),
        ("{% for k, v in {'b': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "b=1"),
        ("{{ {'items': 1}['items'] }} {{ q[:3] }} {{ q[::-1] }}", "1 one owt eno"),
        ("{{ q|default('z') }} {{ {}.get('a', 5) }} {{ 7 // 2 }}", "one two 5 3"),
        ("{% for x in xs %}{{ loop.cycle('odd', 'even') }} {% endfor %}", "odd even "),
        ("{% raw %}{{ z }}{% endraw %}{# never #}", "{{ z }}"),
        ("a\n  {% if q %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"),
        ("{{ '<&>' }}", "<&>"),
    ],
)  # fmt: skip
def test_what_prompts_need_works(text, expected):
    given = {"q": "one two", "xs": ["a", "b"]}
    assert (
        render(text, **{name: value for name, value in given.items() if name in text}) == expected
    )


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.sampled_from(WORDS.split()),
        max_size=14,
    )
)
def test_any_text_renders_or_is_refused_in_one_line(words):
    message = "a/b.yaml:1: "
    try:
        render(" ".join(["x", *words]))
    except UserError as error:
        message = str(error)
    assert message.startswith("a/b.yaml:")
    assert "\n" not in message


@pytest.mark.parametrize("text", ["{{ '\\ud800' }}", "{{ '%c'|format(56320) }}"])
def test_half_a_character_is_refused(text):
    assert refusal(text).startswith("renders half a character (\\ud800 to \\udfff); write it whole")


def test_a_number_that_is_infinite_for_python_is_refused_in_words():
    assert refusal("{{ 1e999 }}") == f"{TOO_LARGE} (item 'i1')"

from pathlib import Path

import pytest
import yaml

from prompts.documents import Source
from prompts.template import (
    NumberExtractor,
    PlainExtractor,
    RegexExtractor,
    Template,
    load_template,
)
from workbench.errors import UserError

ZERO_SHOT = """\
name: task/plain
strategy: zero_shot
template: |
  Question: {{ question }}
  Answer:
variables:
  question: string
"""
FEW_SHOT = """\
name: task/shots
strategy: few_shot
template: "{{ question }}"
variables:
  question: string
  answer: string
exemplars:
  pool: pool.jsonl
"""
ZERO_SHOT_COT = ZERO_SHOT.replace("zero_shot", "zero_shot_cot")
SAMPLED = ZERO_SHOT.replace("zero_shot", "self_consistency") + "generation: {temperature: 0.7}\n"
RANKED = ZERO_SHOT + "scoring: likelihood\nchoices: ['yes', 'no']\n"
RETRIEVED = """\
name: task/retrieved
strategy: zero_shot
template: "{{ passages[0].text }} {{ question }}"
variables: {question: string}
documents:
  folder: handbook
  query: question
"""


@pytest.fixture
def load(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"id": "p1", "question": "q", "answer": "a"}\n')
    (tmp_path / "handbook").mkdir()

    def load(text: str, root: Path | None = None) -> Template:
        path = tmp_path / "task.yaml"
        path.write_text(text, encoding="utf-8")
        return load_template(path, root)

    return load


def problem(load, text: str) -> str:
    with pytest.raises(UserError) as error:
        load(text)
    assert "\n" not in str(error.value)
    return str(error.value).partition("task.yaml:")[2]


def test_a_short_file_has_the_documented_defaults(load):
    template = load(ZERO_SHOT)
    assert template.template == "Question: {{ question }}\nAnswer:\n"
    assert template.variables["question"].type == "string"
    assert not template.variables["question"].optional
    assert template.trigger == "Let's think step by step."
    assert template.answer_trigger == "Therefore, the answer is"
    assert template.answer.extract == [PlainExtractor(type="all")]
    assert template.answer.normalise == "strip"
    assert (template.generation.max_new_tokens, template.generation.temperature) == (64, 0.0)
    assert (template.scoring, template.choices, template.stop) == ("generate", None, [])
    assert template.metrics == ["exact_match"]
    assert template.pool_path is None
    assert template.documents_path is None


def test_exemplar_defaults_and_paths(load, tmp_path):
    template = load(FEW_SHOT)
    settings = template.exemplars
    assert (settings.k, settings.selector, settings.order) == (3, "first_n", "as_selected")
    assert (settings.layout, settings.separator, settings.seed) == ("turns", "\n\n", 0)
    assert settings.answer == "{{ answer }}"
    assert template.pool_path == tmp_path / "pool.jsonl"
    assert load(RETRIEVED).documents_path == tmp_path / "handbook"


def test_fixed_exemplars_are_as_many_as_their_ids(load):
    assert load(FEW_SHOT + "  selector: fixed\n  ids: [p1, p2]\n").exemplars.k == 2
    assert load(FEW_SHOT + "  selector: fixed\n  ids: [p1, p2]\n  k: 2\n").exemplars.k == 2


def test_extractors_are_written_by_name_or_with_settings(load):
    chain = "answer: {extract: [{type: regex, pattern: '(x)', flags: i}, number, last_line]}\n"
    assert load(ZERO_SHOT + chain).answer.extract == [
        RegexExtractor(type="regex", pattern="(x)", group=1, which="last", flags="i"),
        NumberExtractor(type="number", which="last"),
        PlainExtractor(type="last_line"),
    ]


@pytest.mark.parametrize("text", [ZERO_SHOT, FEW_SHOT, ZERO_SHOT_COT, SAMPLED, RANKED, RETRIEVED])
def test_each_kind_of_template_loads(load, text):
    assert load(text).name.startswith("task/")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ZERO_SHOT + "temprature: 1\n", "8: temprature: unknown key; "),
        (ZERO_SHOT.replace("task/plain", "Task"), "1: name: is lower-case words joined by '/'"),
        (ZERO_SHOT.replace("task/plain", "../x"), "1: name: is lower-case words joined by '/'"),
        (ZERO_SHOT.replace("zero_shot", "zeroshot"), "2: strategy: must be one of zero_shot, "),
        (ZERO_SHOT.replace("string", "strng"), "7: variables.question: must be one of string, "),
        (ZERO_SHOT + "  for: string\n", "8: variables.for: is no name Jinja can read"),
        (ZERO_SHOT + "  loop: string\n", "8: variables.loop: is no name Jinja can read"),
        (ZERO_SHOT + "  two words: string\n", "8: variables.two words: is no name"),
        # strategies and what belongs to them
        (ZERO_SHOT.replace("zero_shot", "few_shot"), "1: exemplars: is missing; strategy"),
        (ZERO_SHOT.replace("zero_shot", "chain_of_thought"), "1: exemplars: is missing; "),
        (FEW_SHOT.replace("few_shot", "zero_shot"), "7: exemplars: is not for strategy"),
        (FEW_SHOT.replace("few_shot", "zero_shot_cot"), "7: exemplars: is not for strategy"),
        (ZERO_SHOT + "trigger: Think.\n", "8: trigger: is for strategy 'zero_shot_cot' only"),
        (ZERO_SHOT + "answer_trigger: So\n", "8: answer_trigger: is for strategy 'zero_shot_cot'"),
        (ZERO_SHOT + "samples: 3\n", "8: samples: is for strategy 'self_consistency' only"),
        (SAMPLED + "samples: 1\n", "9: samples: must be at least 2 (is 1)"),
        (SAMPLED.replace("0.7", "0"), "8: generation.temperature: is 0, so that all samples are"),
        (ZERO_SHOT + "generation: {max_new_tokens: 0}\n", "8: generation.max_new_tokens: must be"),
        (ZERO_SHOT + "generation: {max_new_tokens: true}\n", "8: generation.max_new_tokens: "),
        (ZERO_SHOT + "generation: {temperature: -1}\n", "8: generation.temperature: must be at"),
        (ZERO_SHOT + "generation: {temperature: .nan}\n", "8: generation.temperature: must be a"),
        (ZERO_SHOT + "metrics: []\n", "8: metrics: "),
        # scoring
        (ZERO_SHOT + "choices: [a, b]\n", "8: choices: is for `scoring: likelihood` only"),
        (ZERO_SHOT + "scoring: likelihood\n", "1: choices: is missing; `scoring: likelihood`"),
        (RANKED.replace("'no'", "'yes'"), "9: choices: needs at least two different texts"),
        (RANKED.replace("'yes', 'no'", "'yes'"), "9: choices: needs at least two different texts"),
        (RANKED.replace("'yes'", "yes"), "9: choices"),
        (RANKED.replace("zero_shot", "zero_shot_cot"), "8: scoring: likelihood generates no text"),
        # exemplars
        (FEW_SHOT + "  k: 0\n", "9: exemplars.k: must be at least 1 (is 0)"),
        (
            FEW_SHOT + "  selector: fixed\n",
            "7: exemplars.ids: is for selector 'fixed', which needs",
        ),
        (FEW_SHOT + "  ids: [p1]\n", "9: exemplars.ids: is for selector 'fixed'"),
        (
            FEW_SHOT + "  selector: fixed\n  ids: [p1, p1]\n",
            "10: exemplars.ids: names an exemplar twice",
        ),
        (
            FEW_SHOT + "  selector: fixed\n  ids: [p1]\n  k: 2\n",
            "11: exemplars.k: is 2 but there are 1 ids",
        ),
        (FEW_SHOT + "  selector: knn\n", "7: exemplars.by: selector 'knn' needs `by`"),
        (FEW_SHOT + "  selector: mmr\n", "7: exemplars.by: selector 'mmr' needs `by`"),
        (FEW_SHOT + "  selector: balanced\n", "7: exemplars.label: selector 'balanced' needs"),
        (FEW_SHOT + "  order: nearest_last\n", "9: exemplars.order: 'nearest_last' needs selector"),
        (FEW_SHOT + "  layout: row\n", "9: exemplars.layout: must be one of turns, one_turn"),
        (FEW_SHOT.replace("pool.jsonl", "none.jsonl"), "8: exemplars.pool: no such file: "),
        (RETRIEVED.replace("handbook", "none"), "6: documents.folder: no such folder: "),
        (RETRIEVED + "  words: 3\n", "8: documents.words: must be at least 10 (is 3)"),
        (
            RETRIEVED.replace("{question: string}", "{question: string, passages: list}"),
            "4: variables.passages: comes from `documents`; remove it here",
        ),
        # answers
        (ZERO_SHOT + "answer: {extract: []}\n", "8: answer.extract: "),
        (ZERO_SHOT + "answer: {extract: [numbr]}\n", "8: answer.extract.0.type: must be one of"),
        (ZERO_SHOT + "answer: {extract: [regex]}\n", "8: answer.extract.0.pattern: is missing"),
        (
            ZERO_SHOT + "answer: {extract: [{type: regex, pattern: '(x'}]}\n",
            "8: answer.extract.0.pattern: not a regular expression (missing ) at position 2)",
        ),
        (  # compiled, it would fill the memory
            ZERO_SHOT + "answer: {extract: [{type: regex, pattern: '((x{999}){999}){999}'}]}\n",
            "8: answer.extract.0.pattern: counted repeats multiply to more than 100,000",
        ),
        (
            ZERO_SHOT + "answer: {extract: [{type: regex, pattern: 'x'}]}\n",
            "8: answer.extract.0.pattern: has 0 group(s) but group is 1",
        ),
        (
            ZERO_SHOT + "answer: {extract: [{type: regex, pattern: '(x)', flags: q}]}\n",
            "8: answer.extract.0.flags: unknown flag in 'q'",
        ),
        (
            ZERO_SHOT + "answer: {extract: [{type: choice, letters: a}]}\n",
            "8: answer.extract.0.let",
        ),
        (
            ZERO_SHOT + "answer: {extract: [{type: label, labels: [yes, no]}]}\n",
            "8: answer.extract.0.labels.0: must be a text (YAML reads yes, no, on, off as True)",
        ),
        (ZERO_SHOT + "answer: {normalise: upper}\n", "8: answer.normalise: must be one of none"),
    ],
)
def test_an_impossible_template_is_refused_with_its_line(load, text, expected):
    assert problem(load, text).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stop: ['\\n']\n", "8: stop.0: holds a backslash and 'n', not a line break or tab; write"),
        ("stop: [x, '\\n\\nQ:']\n", "8: stop.1: holds a backslash and 'n'"),
        ("stop:\n  - x\n  - a\\tb\n", "10: stop.1: holds a backslash and 't'"),
        ("stop: ['']\n", "8: stop.0: is empty and would stop every answer at once"),
        ("system: 'Be kind.\\nBe brief.'\n", "8: system: holds a backslash and 'n'"),
    ],
)
def test_a_backslash_that_is_no_line_break_is_refused(load, text, expected):
    assert problem(load, ZERO_SHOT + text).startswith(expected)


def test_a_backslash_in_a_template_or_separator_is_refused(load):
    text = FEW_SHOT.replace('"{{ question }}"', "'{{ question }}\\nA:'")
    assert problem(load, text).startswith("3: template: holds a backslash and 'n'")
    text = FEW_SHOT + "  separator: '\\n'\n"
    assert problem(load, text).startswith("9: exemplars.separator: holds a backslash and 'n'")


def test_real_line_breaks_and_those_of_jinja_are_kept(load):
    template = load(ZERO_SHOT + 'stop: ["\\n", "\\n\\n"]\n')
    assert template.stop == ["\n", "\n\n"]
    joined = ZERO_SHOT.replace("question: string", "question: list").replace(
        "|\n  Question: {{ question }}\n  Answer:", "\"{{ question|join('\\\\n') }}\""
    )
    assert load(joined).template == "{{ question|join('\\n') }}"
    code = ZERO_SHOT.replace("Answer:", "Print it with a final \\n.")
    assert "final \\n." in load(code).template


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            ZERO_SHOT.replace("{{ question }}", "{{ qestion }}"),
            "4: template: reads 'qestion', which `variables` does not declare; "
            "did you mean 'question'?",
        ),
        (
            ZERO_SHOT.replace("Answer:", "{% for x in xs %}{{ x }}{% endfor %}"),
            "5: template: reads 'xs', which",
        ),
        (ZERO_SHOT + "system: Be {{ tone }}\n", "8: system: reads 'tone', which"),
        (FEW_SHOT + "  answer: '{{ rationale }}'\n", "9: exemplars.answer: reads 'rationale'"),
        (FEW_SHOT.replace("  answer: string\n", ""), "6: exemplars.answer: reads 'answer'"),
        (ZERO_SHOT + "  hint: string\n", "8: variables.hint: is read by nothing; use it or remove"),
        (
            RETRIEVED.replace("{{ passages[0].text }} ", ""),
            "5: documents: no text reads `passages`; print them or remove this",
        ),
        (ZERO_SHOT.replace("Answer:", "{{ passages }}"), "5: template: reads 'passages', which"),
        (ZERO_SHOT.replace("Answer:", "{% if %}"), "5: template: Expected an expression"),
        (ZERO_SHOT.replace("Answer:", "{{ question"), "5: template: unexpected end of template"),
        (
            ZERO_SHOT.replace("Answer:", "{{ question|uper }}"),
            "5: template: no filter named 'uper' here; did you mean 'upper'?",
        ),
        (
            ZERO_SHOT.replace("Answer:", "{% include '/etc/passwd' %}"),
            "5: template: 'include' is not allowed",
        ),
    ],
)
def test_jinja_is_checked_while_loading(load, text, expected):
    assert problem(load, text).startswith(expected)


def test_fields_that_other_settings_name_count_as_read(load):
    text = FEW_SHOT.replace("  answer: string\n", "  answer: string\n  topic: string\n")
    assert problem(load, text).startswith("7: variables.topic: is read by nothing")
    assert load(text + "  selector: knn\n  by: topic\n")
    assert load(text + "  selector: balanced\n  label: topic\n")
    ranked = ZERO_SHOT + "  options: list\nscoring: likelihood\nchoices: options\n"
    assert load(ranked).choices == "options"


def test_the_name_is_the_path_below_the_library(load, tmp_path):
    text = ZERO_SHOT.replace("task/plain", "task")
    assert load(text, tmp_path).name == "task"
    with pytest.raises(UserError, match=r"task.yaml:1: name: must be 'task' as its path"):
        load(ZERO_SHOT, tmp_path)


def test_a_template_made_in_memory_names_itself_in_errors():
    template = Template(name="a/b", strategy="zero_shot", template="Hello")
    assert template.path == Path("a/b.yaml")
    assert str(template.error("bad", "stop", 0)) == "a/b.yaml:1: stop.0: bad"


def test_errors_know_the_line_of_a_loaded_template(load):
    template = load(ZERO_SHOT)
    assert str(template.error("bad", "template", within=2)).endswith("task.yaml:5: template: bad")
    assert isinstance(template._source, Source)


def test_the_schema_covers_what_files_may_hold():
    schema = Template.json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"name", "strategy", "template"}
    extract = schema["$defs"]["AnswerSettings"]["properties"]["extract"]["items"]["anyOf"]
    assert set(extract[0]["enum"]) == {
        "choice", "number", "yes_no", "last_line", "first_line", "code_block", "all",
    }  # fmt: skip
    variable = schema["properties"]["variables"]["additionalProperties"]["anyOf"]
    assert variable[0]["enum"][0] == "string"
    assert variable[1] == {"$ref": "#/$defs/Variable"}
    assert yaml.safe_load(yaml.safe_dump(schema)) == schema


def test_every_setting_is_described():
    schema = Template.json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, field in section["properties"].items():
            assert name == "type" or field.get("description"), f"{section['title']}.{name}"

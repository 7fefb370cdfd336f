import json
import subprocess
import sys

import pytest
import yaml

from prompts.library import Library
from prompts.suite import SUITES
from prompts.template import Template
from prompts.versions import content_hash
from tests.prompts.conftest import only_line


def mine(home):
    """The option that names the small library."""
    return ("--library", home / "library")


def test_list_names_every_template_with_its_strategy(rlhf, home):
    code, out, err = rlhf("prompts", "list", *mine(home))
    assert (code, err) == (0, "")
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert rows == [
        "template strategy description",
        "gulls/greedy zero_shot One number.",
        "gulls/ranked few_shot One of three numbers.",
        "gulls/sampled zero_shot One number, drawn.",
    ]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--tag", "counting"], ["gulls/greedy", "gulls/ranked"]),
        (["--strategy", "zero_shot"], ["gulls/greedy", "gulls/sampled"]),
        (["--tag", "counting", "--strategy", "few_shot"], ["gulls/ranked"]),
    ],
)
def test_list_can_be_narrowed(rlhf, home, options, names):
    _, out, _ = rlhf("prompts", "list", *mine(home), *options)
    assert [line.split()[0] for line in out.splitlines()[1:]] == names


def test_list_of_the_starter_suites_counts_templates_and_items(rlhf):
    code, out, _ = rlhf("prompts", "list", "--suites")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:3] for line in out.splitlines() if line[0] != " "}
    assert set(rows) - {"suite"} == {path.stem for path in SUITES.glob("*.yaml")}
    assert rows["smoke"] == ["3", "12"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tag", "countin"], "--tag countin: no template has it; did you mean 'counting'?"),
        (["--strategy", "few_shots"],
         "--strategy few_shots: no template has it; did you mean 'few_shot'?"),
        (["--suites", "--tag", "x"],
         "list: --tag and --strategy are of templates; leave --suites out"),
        (["--library", "nowhere"],
         "nowhere: no such folder; a library is a folder of .yaml templates"),
    ],
)  # fmt: skip
def test_mistakes_in_list_are_one_line(rlhf, home, options, message):
    code, out, err = rlhf("prompts", "list", *mine(home), *options)
    assert (code, out) == (2, "")
    assert only_line(err) == message


def test_show_prints_a_template_file_with_its_history_as_comments(rlhf, home):
    version = content_hash(Library(home / "library").get("gulls/greedy"))
    _, out, _ = rlhf("prompts", "show", "gulls/greedy", *mine(home))
    assert f"# version {version} (not recorded; `rlhf prompts label` records it)" in out
    assert Template.model_validate(yaml.safe_load(out)).name == "gulls/greedy"
    label = ["label", "gulls/greedy", "current", "production", "--by", "ann", "--note", "good"]
    assert rlhf("prompts", *label, *mine(home))[0] == 0
    _, out, _ = rlhf("prompts", "show", "gulls/greedy@production", *mine(home))
    comments = [line for line in out.splitlines() if line.startswith("# ")]
    assert comments[0].startswith(f"# version {version} (recorded 20")
    assert comments[1] == f"# label production: {version}"
    assert comments[2].endswith(f": {version}, good")
    assert comments[3].endswith(f": production from nothing to {version} by ann, good")
    assert yaml.safe_load(out)["name"] == "gulls/greedy"


def test_a_label_moves_and_says_where_it_was(rlhf, home):
    path = home / "library" / "gulls" / "greedy.yaml"
    first = content_hash(Library(home / "library").get("gulls/greedy"))
    options = ["production", "--by", "ann", *mine(home)]
    code, out, err = rlhf("prompts", "label", "gulls/greedy", "current", *options)
    assert (code, out, err) == (0, "", f"gulls/greedy: production is {first}\n")
    path.write_text(path.read_text().replace("a number", "digits"))
    second = content_hash(Library(home / "library").get("gulls/greedy"))
    _, _, err = rlhf("prompts", "label", "gulls/greedy", "current", *options)
    assert err == f"gulls/greedy: production is {second}, was {first}\n"
    # Back, by the beginning of the hash and by another label.
    _, _, err = rlhf("prompts", "label", "gulls/greedy", first[:6], *options)
    assert err == f"gulls/greedy: production is {first}, was {second}\n"
    rlhf("prompts", "label", "gulls/greedy", "latest", "candidate", "--by", "ann", *mine(home))
    labels = Library(home / "library").history.labels("gulls/greedy")
    assert labels == {"production": first, "candidate": second}


def test_who_moves_a_label_is_taken_from_the_shell(rlhf, home, monkeypatch):
    words = ["prompts", "label", "gulls/greedy", "current", "production", *mine(home)]
    code, _, err = rlhf(*words)
    assert (code, only_line(err)) == (2, "label: say who moves it, with --by NAME")
    monkeypatch.setenv("USER", "bea")
    assert rlhf(*words)[0] == 0
    (move,) = Library(home / "library").history.moves("gulls/greedy")
    assert move.by == "bea"


def test_diff_shows_what_changed_since_a_version(rlhf, home):
    path = home / "library" / "gulls" / "greedy.yaml"
    rlhf("prompts", "label", "gulls/greedy", "current", "production", "--by", "ann", *mine(home))
    code, out, err = rlhf("prompts", "diff", "gulls/greedy", *mine(home))
    assert (code, out) == (0, "")
    assert err == "gulls/greedy@latest and gulls/greedy are the same\n"
    path.write_text(path.read_text().replace("a number", "digits"))
    for words in (["gulls/greedy"], ["gulls/greedy@production"],
                  ["gulls/greedy@production", "gulls/greedy"]):  # fmt: skip
        code, out, err = rlhf("prompts", "diff", *words, *mine(home))
        assert (code, err) == (0, "")
        changed = [line for line in out.splitlines()[2:] if line[0] in "+-"]
        assert changed == [
            "-template: '{{ question }} Reply with a number.'",
            "+template: '{{ question }} Reply with digits.'",
        ]
    # Two templates may be compared as well.
    _, out, _ = rlhf("prompts", "diff", "gulls/greedy", "gulls/sampled", *mine(home))
    assert "-name: gulls/greedy" in out
    assert "+name: gulls/sampled" in out


def test_render_shows_the_conversation_of_an_item(rlhf, home):
    data = ["--data", "items.jsonl", *mine(home)]
    code, out, err = rlhf("prompts", "render", "gulls/ranked", "--item", "i3", *data)
    assert (code, err) == (0, "")
    assert out == (
        "[system]\nCount.\n\n[user]\nWhat hums on the landing?\n\n[assistant]\nthe lamp\n\n"
        "[user]\nHow many gulls sit on 3 gates?\n"
    )
    _, out, _ = rlhf("prompts", "render", "gulls/greedy", *data)
    assert out == "[user]\nHow many gulls sit on 0 gates? Reply with a number.\n"


def test_render_as_json_is_the_messages(rlhf, home):
    words = ["gulls/greedy", "--suite", "gulls.yaml", "--item", "i2", "--json"]
    _, out, _ = rlhf("prompts", "render", *words, *mine(home))
    content = "How many gulls sit on 2 gates? Reply with a number."
    assert json.loads(out) == [{"role": "user", "content": content}]


def test_render_finds_the_items_of_a_starter_template(rlhf, home):
    _, out, _ = rlhf("prompts", "render", "arithmetic/zero_shot", "--item", "ar002")
    assert "Maya has 7 apples" in out


def test_render_takes_fields_from_the_command_line(rlhf, home):
    words = ["gulls/sampled", "--set", "question=Is it 3: or 4?"]
    _, out, _ = rlhf("prompts", "render", *words, *mine(home))
    assert out == "[user]\nIs it 3: or 4?\n"
    words = ["annotate/label", "--set", "text=It hums.", "--set", "labels=[praise, blame]"]
    _, out, _ = rlhf("prompts", "render", *words)
    assert "Labels: praise, blame\n\nText: It hums." in out
    # Over the fields of an item, where one is named.
    words = ["gulls/ranked", "--data", "items.jsonl", "--set", "question=Which?", "--json"]
    _, out, _ = rlhf("prompts", "render", *words, *mine(home))
    assert json.loads(out)[-1]["content"] == "Which?"


def test_render_maps_foreign_rows_to_the_fields_of_a_template(rlhf, home):
    (home / "foreign.jsonl").write_text('{"prompt": [{"content": "Who hums?"}], "x": "y"}\n')
    words = ["gulls/greedy", "--data", "foreign.jsonl", *mine(home)]
    code, out, err = rlhf("prompts", "render", *words, "--field", "question=prompt[0].content")
    assert (code, out, err) == (0, "[user]\nWho hums? Reply with a number.\n", "")
    code, _, err = rlhf("prompts", "render", *words, "--field", "question=promt[0].content")
    assert (code, only_line(err)) == (
        2,
        "foreign.jsonl:1: field 'question=promt[0].content': 'promt' is undefined; did you mean "
        "'prompt'?",
    )


def test_render_for_a_model_is_the_text_it_reads(rlhf, home, tiny_llama):
    words = ["gulls/sampled", "--set", "question=Why?", "--model", tiny_llama]
    code, out, err = rlhf("prompts", "render", *words, *mine(home))
    assert code == 0
    assert out == "<s>[user] Why?\n[assistant] \n"
    assert err.endswith(" tokens\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gulls/greedi"], "no template 'gulls/greedi'; did you mean 'gulls/greedy'?"),
        (["gulls/greedy"],
         "gulls/greedy: no starter suite lists it; name a suite with --suite"),
        (["gulls/greedy", "--data", "items.jsonl", "--item", "i99"], "did you mean 'i9'?"),
        (["gulls/greedy", "--suite", "gull"],
         "gull: no such suite file; there are: "),
        (["gulls/greedy", "--set", "question"], "--set 'question': write field=value"),
        (["gulls/greedy", "--set", "questio=1"],
         "--set questio=1: gulls/greedy has no variable 'questio'; did you mean 'question'?"),
        (["gulls/ranked", "--set", "options=[a"],
         "--set options=[a: the value is not YAML; quote it"),
        (["gulls/greedy", "--set", "question=1", "--json", "--model", "m"],
         "render: give either --json or --model"),
        (["gulls/greedy@old", "--data", "items.jsonl"], "no version of 'gulls/greedy' is recorded"),
    ],
)  # fmt: skip
def test_mistakes_in_render_are_one_line(rlhf, home, words, message):
    code, out, err = rlhf("prompts", "render", *words, *mine(home))
    assert (code, out) == (2, "")
    assert message in only_line(err)


def test_schema_is_printed_or_written(rlhf, home):
    _, out, _ = rlhf("prompts", "schema")
    assert json.loads(out) == Template.json_schema()
    code, out, err = rlhf("prompts", "schema", "suite", "--out", "suite.schema.json")
    assert (code, out, err) == (0, "", "suite.schema.json\n")
    written = json.loads((home / "suite.schema.json").read_text())
    assert {"suite", "templates", "data"} == set(written["required"])
    code, _, err = rlhf("prompts", "schema", "suit")
    assert code == 2
    assert "suit" in only_line(err)


def test_the_commands_load_nothing_heavy_before_they_run():
    code = (
        "import sys\nfrom workbench.cli import app\n"
        "app(['prompts', 'run', '--help'], standalone_mode=False)\n"
        "heavy = ('torch', 'transformers', 'numpy', 'jinja2', 'prompts.runner', 'prompts.suite')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--batch-size" in done.stdout

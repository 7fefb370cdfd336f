import json

import pytest

from prompts.library import Library
from tests.prompts.conftest import only_line

FEW = """
name: gulls/few
strategy: few_shot
system: Count the gulls.
template: "{{ question }}"
variables: {question: string, answer: string}
exemplars: {pool: ../../letters.jsonl, k: 2}
answer: {extract: [{type: regex, pattern: '([a-f])', which: first}]}
generation: {max_new_tokens: 6}
"""


@pytest.fixture
def letters(home):
    """The small library with a template that has exemplars to choose from, and thirty items."""
    (home / "library" / "gulls" / "few.yaml").write_text(FEW)
    for name, count in (("letters.jsonl", 6), ("questions.jsonl", 30)):
        rows = [
            {"id": f"{name[0]}{n}", "question": f"Who counts {n} gates in {name}?",
             "answer": "abcdef"[n % 6]}
            for n in range(count)
        ]  # fmt: skip
        (home / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (home / "letters.yaml").write_text(
        "suite: letters\ntemplates: [gulls/few, gulls/greedy]\ndata: questions.jsonl\n"
    )
    return home


def options(home, tiny, *more):
    return (
        "gulls/few", "--suite", "letters.yaml", "--model", f"tiny={tiny}", "--precision", "fp32",
        "--library", home / "library", "--cache", home / "known.sqlite", "--budget", "400", *more,
    )  # fmt: skip


def test_search_says_what_it_found_and_where(rlhf, letters, tiny_llama):
    code, out, err = rlhf("prompts", "search", *options(letters, tiny_llama, "--candidates", "6"))
    assert code == 0
    assert out.startswith("6 candidates (of 6 asked for) were judged on up to 15 dev items with ")
    assert err.endswith("trials and held-out results in runs/prompts/search-gulls-few\n")
    found = json.loads((letters / "runs/prompts/search-gulls-few/search.json").read_text())
    assert (found["suite"], found["model"], found["template"]) == ("letters", "tiny", "gulls/few")
    assert "\n".join([*found["sentences"], ""]) == out


def test_the_options_of_search_reach_it(rlhf, letters, tiny_llama):
    (letters / "try.yaml").write_text("instructions: [Count., Think of gulls.]\n")
    more = [
        "--instructions", "try.yaml", "--dev-share", "0.4", "--seed", "7", "--alpha", "0.2",
        "--candidates", "4", "--out", "mine", "--batch-size", "8",
    ]  # fmt: skip
    assert rlhf("prompts", "search", *options(letters, tiny_llama, *more))[0] == 0
    found = json.loads((letters / "mine" / "search.json").read_text())
    assert (len(found["dev"]), found["seed"], found["alpha"], found["budget"]) == (12, 7, 0.2, 400)
    tried = {trial["instruction"] for trial in found["trials"]}
    assert tried <= {None, "Count.", "Think of gulls."}
    assert len(tried) > 1


def test_a_search_takes_items_of_other_columns_as_a_run_does(rlhf, letters, tiny_llama):
    rows = [{"ask": f"Who counts {n} gates?", "gold": "abcdef"[n % 6]} for n in range(40)]
    (letters / "theirs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    more = [
        "--data", "theirs.jsonl", "--field", "question=ask", "--target", "gold", "--limit", "24",
        "--candidates", "4",
    ]  # fmt: skip
    code, _, err = rlhf("prompts", "search", *options(letters, tiny_llama, *more))
    assert code == 0, err
    folder = letters / "runs/prompts/search-gulls-few"
    found = json.loads((folder / "search.json").read_text())
    ids = {int(item) for item in found["dev"] + found["held_out"]}
    assert ids == set(range(1, 25))
    row = json.loads((folder / "dev.jsonl").read_text().splitlines()[0])
    assert (row["question"], row["gold"]) == (row["ask"], rows[int(row["id"]) - 1]["gold"])


def test_the_best_is_written_only_if_its_gain_is_real_or_anyway(rlhf, letters, tiny_llama):
    file = letters / "library" / "gulls" / "few.yaml"
    words = [*options(letters, tiny_llama, "--candidates", "6", "--seed", "1")]
    _, out, err = rlhf("prompts", "search", *words, "--write")
    assert "The best has " in out
    assert "The gain is real" not in out
    assert "not written: the gain is not shown to be real\n" in err
    assert file.read_text() == FEW
    _, _, err = rlhf("prompts", "search", *words, "--write-anyway", "--as", "gulls/found")
    written = letters / "library" / "gulls" / "found.yaml"
    assert f"written: {written}\n" in err
    (version,) = Library(letters / "library").history.versions("gulls/found")
    assert version.note.startswith("search: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--as", "gulls/found"], "--as: names what is written; add --write"),
        (["--model", "a=x,b=y"], "--model a=x,b=y: name one model"),
        (["--budget", "5"], "budget"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--target", "gold"], "questions.jsonl:1: item q0 has no field 'gold', the target"),
        (["--field", "question"], "--field 'question': write name=expression"),
        (["--limit", "3"], "3 items cannot be split into 2 to choose on and 1 to measure on"),
        (["--dev-share", "1"], "dev_share must lie between 0 and 1 (is 1)"),
        (["--instructions", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--out", "items.jsonl/x"], "items.jsonl/x: cannot be written"),
        (["--out", "library"], "library: holds something else; choose another folder with --out"),
    ],
)
def test_mistakes_in_search_are_one_line(rlhf, letters, tiny_llama, words, message):
    code, out, err = rlhf("prompts", "search", *options(letters, tiny_llama), *words)
    assert (code, out) == (2, "")
    assert message in only_line(err)


def test_a_template_that_no_suite_lists_is_an_error(rlhf, letters):
    words = ["gulls/few", "--budget", "9", "--library", "library"]
    code, _, err = rlhf("prompts", "search", *words)
    assert code == 2
    assert only_line(err) == "gulls/few: no starter suite lists it; name a suite with --suite"


def test_bootstrapping_needs_a_template_with_rationales(rlhf, letters, tiny_llama):
    code, _, err = rlhf("prompts", "search", *options(letters, tiny_llama, "--bootstrap"))
    assert code == 2
    assert "rationale" in only_line(err)

import json

import pytest

from tests.prompts.conftest import only_line
from workbench.data import load

TEXTS = ["The lamp hums.", "Put the kettle on.", "Nobody could say who had painted the gate."]
REWRITE = """
name: rewrite
strategy: zero_shot
template: "Other words: {{ text }}"
variables: {text: string}
generation: {max_new_tokens: 12, temperature: 1.0}
stop: [e, a, o, n, t, " "]
"""


@pytest.fixture
def texts(home):
    rows = [{"id": f"t{n}", "body": text, "text": text} for n, text in enumerate(TEXTS)]
    (home / "texts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    rows = [{"id": f"a{n}", "prompt": text, "completions": TEXTS} for n, text in enumerate(TEXTS)]
    (home / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (home / "rewrite.yaml").write_text(REWRITE)
    return home


def common(model):
    return ("--model", f"tiny={model}", "--out", "out.jsonl", "--precision", "fp32",
            "--cache", "known.sqlite")  # fmt: skip


def written(home, name="out.jsonl"):
    return [json.loads(line) for line in (home / name).read_text().splitlines()]


def test_texts_get_one_of_the_labels(rlhf, texts, tiny_llama):
    words = ["--labels", "praise, blame", "--labels", "news", "--column", "body"]
    more = ["--question", "What is it?", "--limit", "2", "--batch-size", "2"]
    code, out, err = rlhf("prompts", "annotate", "texts.jsonl", *common(tiny_llama), *words, *more)
    assert (code, out) == (0, "")
    assert err.splitlines()[-1] == "2 rows in out.jsonl: kept 2 of 2"
    rows = written(texts)
    assert [row["id"] for row in rows] == ["t0", "t1"]
    assert {row["label"] for row in rows} <= {"praise", "blame", "news"}
    assert {row["annotator"] for row in rows} == {"tiny"}
    assert "What is it?" in rows[0]["prompt"][-1]["content"]
    assert load(str(texts / "out.jsonl"), ("prompt_completion",)).skipped == ()


def test_labels_the_model_is_unsure_of_can_be_left_out(rlhf, texts, tiny_llama):
    words = ["--labels", "praise,blame", "--min-confidence", "1.0"]
    code, out, err = rlhf("prompts", "annotate", "texts.jsonl", *common(tiny_llama), *words)
    assert (code, out) == (2, "")
    message = only_line(err.rpartition("\r")[2])  # behind the progress bar
    assert message == "out.jsonl: not written, there is no row: kept 0 of 3; left out: 3 unsure"


def test_without_labels_answers_are_compared_in_both_orders(rlhf, texts, tiny_llama):
    words = ["--on-disagreement", "tie"]
    code, _, err = rlhf("prompts", "annotate", "answers.jsonl", *common(tiny_llama), *words)
    assert code == 0
    assert "both orders agree on" in err
    rows = written(texts)
    assert len(rows) >= 9  # three pairs of each, and ties twice
    assert load(str(texts / "out.jsonl"), ("preference",)).skipped == ()
    tied = [row for row in rows if row["tie"]]
    code, _, err = rlhf("prompts", "annotate", "answers.jsonl", *common(tiny_llama))
    if code == 0:
        assert len(written(texts)) == len(rows) - len(tied)
    else:
        assert len(tied) == len(rows)


def test_texts_are_rewritten(rlhf, texts, tiny_llama):
    words = ["--template", "rewrite.yaml", "--copies", "4", "--min-similarity", "-1", "--seed", "3"]
    code, out, err = rlhf("prompts", "paraphrase", "texts.jsonl", *common(tiny_llama), *words)
    assert (code, out) == (0, "")
    rows = written(texts)
    assert err.splitlines()[-1].startswith(f"{len(rows)} rows in out.jsonl: kept {len(rows)} of 12")
    assert {row["paraphrase_of"] for row in rows} <= {"t0", "t1", "t2"}
    assert all(row["text"] != row["body"] for row in rows)
    words[-1] = "4"
    rlhf("prompts", "paraphrase", "texts.jsonl", *common(tiny_llama), *words)
    assert written(texts) != rows


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("annotate", ["texts.jsonl", "--question", "what?"],
         "annotate: --question and --min-confidence are for labels; add --labels"),
        ("annotate", ["texts.jsonl", "--min-confidence", "0.5"],
         "annotate: --question and --min-confidence are for labels; add --labels"),
        ("annotate", ["texts.jsonl"], "texts.jsonl:1: completions is None"),
        ("annotate", ["answers.jsonl", "--out", "answers.jsonl"],
         "--out answers.jsonl: is the file that is read; write to another"),
        ("paraphrase", ["texts.jsonl", "--out", "texts.jsonl/new.jsonl"],
         "texts.jsonl/new.jsonl: cannot be written (File exists); choose another place with"),
        ("annotate", ["texts.jsonl", "--labels", "one"], "labels ['one']: give at least two"),
        ("annotate", ["texts.jsonl", "--model", "a=x,b=y"], "--model a=x,b=y: name one model"),
        ("annotate", ["texts.jsonl", "--on-disagreement", "guess"], "--on-disagreement"),
        ("annotate", ["nowhere.jsonl"], "nowhere.jsonl"),
        ("annotate", ["texts.jsonl", "--no-cache"], "give either --cache FILE or --no-cache"),
        ("paraphrase", ["texts.jsonl", "--column", "nothing"], "texts.jsonl:1: 'nothing' is None"),
        ("paraphrase", ["texts.jsonl", "--copies", "0"], "copies=0: ask for at least 1"),
        ("paraphrase", ["texts.jsonl", "--template", "annotate/nothing"],
         "no template 'annotate/nothing'; did you mean"),
        ("paraphrase", ["texts.jsonl", "--library", "library"],
         "library: no template 'annotate/paraphrase'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_write_nothing(rlhf, texts, tiny_llama, command, words, message):
    own = (texts / "answers.jsonl").read_text()
    code, out, err = rlhf("prompts", command, *common(tiny_llama), *words)
    assert (code, out) == (2, "")
    assert message in only_line(err)
    assert not (texts / "out.jsonl").exists()
    assert (texts / "answers.jsonl").read_text() == own

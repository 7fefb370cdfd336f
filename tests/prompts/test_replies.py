import json
from collections import Counter

import pytest

from prompts.answers import majority
from prompts.cached_model import CachedModel, Query
from prompts.conversations import render_all
from prompts.rendering import token_ids
from prompts.replies import answer_all
from tests.prompts.gulls import ITEMS, library_in, run, suite_items, suite_of, tiny


@pytest.fixture
def home(tmp_path):
    return library_in(tmp_path)


def test_a_sampled_reply_does_not_depend_on_batch_limit_repeats_or_cache(home, tiny_llama):
    suite = suite_of(home, "sampled", "thinking", "voting", more="repeats: 3\nmetrics: [f1]\n")

    def outputs(out: str, **options) -> dict[tuple, tuple]:
        _, rows = run(home, suite, tiny_llama, out, **options)
        return {
            (row["template"], row["item"], row["repeat"]): (row["rationale"], row["output"])
            for row in rows
        }

    everything = outputs("a", cache=None)
    assert len({text for _, text in everything.values()}) > 20
    some = outputs("b", limit=2, repeats=2)
    assert some == {key: everything[key] for key in some}
    assert outputs("c", batch_size=4) == everything  # two items known, the others not
    other = outputs("d", seed=1, limit=3)
    assert sum(other[key] == everything[key] for key in other) < len(other) / 4


def test_zero_shot_cot_gives_the_rationale_back_and_reads_the_second_answer(home, tiny_llama):
    suite = suite_of(home, "thinking", more="metrics: [f1]\n")
    _, rows = run(home, suite, tiny_llama)
    prompts = render_all(suite.entries[0].template, suite_items(suite))
    model = tiny(tiny_llama)
    for row, messages in zip(rows, prompts.messages, strict=True):
        assert messages[-1]["content"].endswith("Let's think step by step.")
        turn = {"role": "assistant", "content": f"{row['rationale']}\nSo it is".strip()}
        first = token_ids(model.tokenizer, messages)
        second = token_ids(model.tokenizer, [*messages, turn])
        assert row["prompt_tokens"] == len(first) + len(second)
        assert 2 <= row["tokens"] <= 16
        assert row["flexible"] == row["output"]


def test_self_consistency_is_the_majority_of_its_samples(home, tiny_llama):
    suite = suite_of(home, "voting", more="metrics: [f1]\n")
    _, rows = run(home, suite, tiny_llama)
    template = suite.entries[0].template
    single = template.model_copy(update={"strategy": "zero_shot"})
    singles = answer_all(tiny(tiny_llama), render_all(single, suite_items(suite)), 3, 0)
    for row, samples in zip(rows, singles, strict=True):
        votes = [sample.answer.flexible for sample in samples]
        assert row["flexible"] == majority(votes)
        assert row["tokens"] == sum(sample.tokens for sample in samples)
        shown = samples[votes.index(row["flexible"])]
        assert (row["output"], row["finished"]) == (shown.text, shown.finished)
    counts = Counter(row["flexible"] for row in rows)
    assert len(counts) > 1, "the samples should differ"


def test_choices_are_ranked_by_likelihood_with_and_without_length(home, tiny_llama):
    suite = suite_of(home, "ranked", more="target: right\nrepeats: 2\n")
    _, rows = run(home, suite, tiny_llama)
    assert len(rows) == 5  # nothing is drawn
    model = tiny(tiny_llama)
    for row, item in zip(rows, ITEMS, strict=True):
        (found,) = model.likelihoods(*pair(model, item["question"], "two"))
        logprobs = [choice["logprob"] for choice in row["choices"]]
        assert logprobs[1] == pytest.approx(found.logprob, abs=1e-4)
        assert [choice["bytes"] for choice in row["choices"]] == [8, 3, 15]
        by_byte = [choice["logprob"] / choice["bytes"] for choice in row["choices"]]
        right = item["options"].index("two") if item["right"] == "two" else 0
        assert row["scores"] == {
            "acc": float(logprobs.index(max(logprobs)) == right),
            "acc_norm": float(by_byte.index(max(by_byte)) == right),
        }
        assert row["score"] == row["scores"]["acc_norm"]
        assert row["output"] == row["flexible"] == item["options"][by_byte.index(max(by_byte))]
        assert (row["parsed"], row["finished"], row["tokens"]) == (True, True, 0)
    assert len({tuple(choice["logprob"] for choice in row["choices"]) for row in rows}) == 5


def pair(model: CachedModel, question: str, choice: str):
    ids = token_ids(model.tokenizer, [{"role": "user", "content": question}])
    return [Query(tuple(ids))], [model.tokenizer(choice, add_special_tokens=False)["input_ids"]]


def test_stop_texts_cut_the_output(home, tiny_llama):
    suite = suite_of(home, "greedy")
    _, rows = run(home, suite, tiny_llama)
    stop = rows[0]["output"][2:4]
    path = home / "library" / "t" / "greedy.yaml"
    path.write_text(path.read_text() + f"stop: [{json.dumps(stop)}]\n")
    _, stopped = run(home, suite_of(home, "greedy"), tiny_llama)
    assert stopped[0]["output"] == rows[0]["output"][: rows[0]["output"].index(stop)].strip()
    assert stopped[0]["finished"]
    assert stopped[0]["version"] != rows[0]["version"]


def test_a_progress_bar_names_model_and_template_only_while_there_is_work(home, tiny_llama, capsys):
    suite = suite_of(home, "greedy")
    run(home, suite, tiny_llama)
    assert "tiny: t/greedy" in capsys.readouterr().err
    run(home, suite, tiny_llama)
    assert capsys.readouterr().err == ""

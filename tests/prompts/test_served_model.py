import json

import pytest

from prompts.annotate import label
from prompts.cache import Cache
from prompts.cached_model import CachedModel
from prompts.library import Library
from prompts.questions import Question
from prompts.served_model import RemoteModel, open_model
from tests.prompts.gulls import library_in, run, suite_of
from tests.workbench.chat_server import chat_server
from tests.workbench.run_folders import rlhf
from workbench.errors import UserError


@pytest.fixture
def server():
    with chat_server() as running:
        yield running


@pytest.fixture
def home(tmp_path):
    return library_in(tmp_path)


def question(text, seed=0, repeat=0):
    return Question([{"role": "user", "content": text}], seed, repeat)


def test_a_source_says_what_kind_of_model_it_is(server, tiny_llama):
    options = {"precision": "fp32", "batch_size": 2}
    assert isinstance(open_model("a", server.source(), Cache(None), **options), RemoteModel)
    assert isinstance(open_model("a", str(tiny_llama), Cache(None), **options), CachedModel)


def test_equal_greedy_questions_are_asked_once_and_sampled_ones_each(server):
    model = RemoteModel("m", server.source(), 4)
    asked = [question("a"), question("b"), question("a", seed=5, repeat=1)]
    written = model.write(asked, max_new_tokens=9, temperature=0.0)
    assert [each.text for each in written] == ["echo: a", "echo: b", "echo: a"]
    assert (model.generated, len(server.bodies())) == (2, 2)
    server.asked.clear()
    model.write(asked, max_new_tokens=9, temperature=1.0)
    assert sorted(body["seed"] for body in server.bodies()) == [0, 0, 5]
    assert model.generated == 5
    assert model.write([], max_new_tokens=9, temperature=0.0) == []


def test_a_suite_is_answered_by_a_server(server, home):
    suite = suite_of(home, "greedy", "thinking", "voting", "few")
    result, rows = run(home, suite, server.source(), repeats=2, seed=3)
    # greedy and few 5 each, a rationale and an answer 5 × 2 each, three votes 5 × 2 times
    assert (result.generated, result.cached) == (5 + 20 + 30 + 5, 0)
    greedy = [row for row in rows if row["template"] == "t/greedy"]
    assert [row["output"] for row in greedy] == [
        f"echo: How many gulls sit on {n} gates?" for n in range(5)
    ]
    told = {(row["finished"], row["prompt_tokens"], row["tokens"]) for row in greedy}
    assert told == {(True, 7, 8)}
    record = json.loads((result.path / "run.json").read_text())
    assert record["models"]["tiny"] == {
        "source": server.source(),
        "content_hash": server.source(),
        "dtype": "unknown",
        "device": "served",
    }


def test_the_second_pass_of_zero_shot_cot_goes_on_where_the_first_ended(server, home):
    run(home, suite_of(home, "thinking"), server.source())
    continued = [body for body in server.bodies() if body.get("continue_final_message")]
    assert len(continued) == 5
    for body in continued:
        first, second = body["messages"][-2:]
        assert first["role"] == "user"
        assert second["content"].startswith("echo: ")
        assert second["content"].endswith("\nSo it is")


def test_answers_are_not_kept_as_the_server_may_have_other_weights_by_then(server, home):
    suite = suite_of(home, "greedy")
    run(home, suite, server.source())
    server.say = lambda body: "other weights"
    result, rows = run(home, suite, server.source())
    assert (result.generated, result.cached) == (5, 0)
    assert {row["output"] for row in rows} == {"other weights"}


def test_ranking_choices_is_refused_before_anything_is_asked(server, home):
    suite = suite_of(home, "greedy", "ranked", more="target: right\n")
    message = (
        r"t/ranked: ranks its choices by likelihood, which a served model does not tell "
        rf"\(tiny, {server.source()}\); give the model's folder, or leave the template out"
    )
    with pytest.raises(UserError, match=message):
        run(home, suite, server.source())
    assert server.bodies() == []
    assert not (home / "out").exists()


def test_labelling_needs_likelihoods_too(server, home):
    template = Library(home / "library").get("t/ranked")
    template = template.model_copy(update={"choices": "labels"})
    with pytest.raises(UserError, match="ranks its choices by likelihood"):
        label(RemoteModel("m", server.source()), template, [], home, labels=["a", "b"])


def test_a_judge_may_be_served(server, home, tiny_llama):
    judged = "assertions: [{type: judge, template: t/judge, model: 'SOURCE'}]\n"
    server.say = lambda body: "yes"
    suite = suite_of(home, "greedy", more=judged.replace("SOURCE", server.source()))
    _, rows = run(home, suite, tiny_llama)
    assert [row["assertions"][0]["passed"] for row in rows] == [True] * 5
    assert len(server.bodies()) >= 1


def test_rlhf_prompts_run_compares_a_served_model_with_others(
    server, home, tiny_llama, capsys, monkeypatch
):
    monkeypatch.chdir(home)
    suite_of(home, "greedy")
    models = f"local={tiny_llama},served={server.source()}"
    words = ("gulls.yaml", "--models", models, "--library", "library", "--no-cache", "--out", "o")
    assert rlhf("prompts", "run", *words) == 0
    rows = [json.loads(line) for line in (home / "o" / "results.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["local"] * 5 + ["served"] * 5
    capsys.readouterr()
    wrong = f"served={server.source('gone')}"
    assert rlhf("prompts", "run", "gulls.yaml", "--models", wrong, "--library", "library") == 2
    assert "has no model 'gone'" in capsys.readouterr().err

import socket
import threading

import pytest

from tests.workbench.chat_server import chat_server
from tests.workbench.run_folders import rlhf
from workbench.asking import TRIES
from workbench.compare import Plan, compare
from workbench.errors import UserError
from workbench.generation import SamplingSettings
from workbench.models import ModelSettings, load_policy, load_scorer, load_tokenizer, locate
from workbench.served import Said, ServedModel, is_served, seeds_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
GREEDY = SamplingSettings(max_new_tokens=8, temperature=0.0, batch_size=4)


pytestmark = pytest.mark.usefixtures("waits")


@pytest.fixture
def server():
    with chat_server() as running:
        yield running


def ask(server, *prompts, sampling=GREEDY, **options):
    model = ServedModel(server.source())
    return model.answers(prompts, sampling, seeds=range(len(prompts)), **options)


def refusal(server, *prompts, **options):
    with pytest.raises(UserError) as caught:
        ask(server, *(prompts or ("Hi",)), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def only_answers(trouble):
    """Make trouble with answers only, and not when the models are listed."""
    return lambda path, body, number: None if path == "/v1/models" else trouble(path, body, number)


# What is asked and what is read


def test_answers_come_in_the_order_of_the_prompts_and_say_what_they_took(server):
    prompts = [f"number {n}" for n in range(20)]
    said = ask(server, *prompts)
    assert [each.text for each in said] == [f"echo: {prompt}" for prompt in prompts]
    assert {(each.finished, each.prompt_tokens, each.tokens) for each in said} == {(True, 7, 3)}
    assert all(each.seconds > 0 for each in said)


def test_a_string_is_a_user_turn_as_it_is_for_a_loaded_model_with_a_chat_template(server):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    ask(server, "Why?", turns)
    bodies = sorted(server.bodies(CHAT), key=lambda body: len(body["messages"]))
    assert bodies[0]["messages"] == [{"role": "user", "content": "Why?"}]
    assert bodies[1]["messages"] == turns
    assert "continue_final_message" not in bodies[0]


def test_an_assistant_s_turn_at_the_end_is_continued(server):
    ask(server, [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Since"}])
    (body,) = server.bodies(CHAT)
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_a_model_without_a_chat_template_reads_text(server):
    server.template = False
    turns = [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}]
    opened = [*turns, {"role": "assistant", "content": "Th"}]
    said = ask(server, "A story", turns, opened, sampling=SamplingSettings(8, 0.0, 1))
    assert [body["prompt"] for body in server.bodies(TEXT)] == [
        "A story",
        "One.\n\nTwo.\n\n",
        "One.\n\nTwo.\n\nTh",
    ]
    assert len(server.bodies(CHAT)) == 1  # it is not asked again what it has said
    assert said[0].text == "echo: A story"


def test_sampling_is_sent_and_the_server_s_own_is_switched_off(server):
    ask(server, "x", "y", sampling=SamplingSettings(5, 0.7, 1), stop=["\n\n", "Q:"])
    first, second = server.bodies()
    assert first == {
        "model": "policy",
        "max_tokens": 5,
        "temperature": 0.7,
        "top_p": 1.0,
        "seed": 0,
        "stop": ["\n\n", "Q:"],
        "messages": [{"role": "user", "content": "x"}],
    }
    assert second["seed"] == 1
    server.asked.clear()
    ask(server, "x", sampling=GREEDY)
    assert server.bodies()[0]["temperature"] == 0
    assert server.bodies()[0].keys().isdisjoint({"seed", "stop"})


def test_a_long_seed_becomes_one_that_every_server_takes(server):
    ServedModel(server.source()).answers(["x"], SamplingSettings(5, 1.0), seeds=[2**47 + 3])
    assert server.bodies()[0]["seed"] == 3


def test_seeds_depend_on_the_seed_and_the_place():
    assert seeds_of(0, 3) == seeds_of(0, 5)[:3]
    assert len(set(seeds_of(0, 100) + seeds_of(1, 100))) == 200


def test_a_cut_answer_is_not_finished_and_a_stopped_one_is(server):
    server.say = lambda body: "one two Q: three four"
    assert [ask(server, "x", sampling=SamplingSettings(n, 0.0))[0].finished for n in (2, 9)] == [
        False,
        True,
    ]
    stopped = ask(server, "x", stop=["Q:"])[0]
    assert (stopped.text, stopped.finished) == ("one two", True)


def test_a_server_that_leaves_the_stop_text_is_corrected(server):
    server.change = lambda answer: (
        answer | {"choices": [{"message": {"content": " a\0b Q: c"}, "finish_reason": "stop"}]}
    )
    assert ask(server, "x", stop=["Q:"])[0].text == "a\ufffdb"


def test_so_many_requests_are_under_way_at_a_time_and_no_more(server):
    together = threading.Barrier(3, timeout=60)
    server.trouble = only_answers(lambda path, body, number: together.wait() and None)
    ask(server, *"abcdef", sampling=SamplingSettings(8, 0.0, 3))  # six in two rounds of three
    assert server.most_at_once == 3


def test_nothing_is_asked_where_there_are_no_prompts(server):
    assert ask(server) == []
    assert server.bodies() == []


def test_a_stream_grows_to_the_answer(server):
    server.say = lambda body: "one two three"
    *parts, last = ServedModel(server.source()).stream("Hi", GREEDY, 3)
    assert parts[:3] == ["one", "one two", "one two three"]
    assert isinstance(last, Said)
    assert (last.text, last.finished, last.tokens) == ("one two three", True, 3)
    assert server.bodies()[0]["stream"] is True


def test_a_model_without_a_chat_template_streams_too(server):
    server.template = False
    *_, last = ServedModel(server.source()).stream("Hi you", GREEDY, 3)
    assert last.text == "echo: Hi you"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((500, "out of memory", {}), "answered 500: out of memory"),
        ((200, "data: {", {}), "answered what is no JSON object: {"),
        ((200, [{"error": {"message": "gone"}}], {}), 'answered an error: {"message": "gone"}'),
        ((200, [{"choices": [{"delta": {"content": "a"}}]}], {}), "(finish_reason null)"),
        ((None, None, {}), "not reached"),
    ],
)
def test_a_stream_that_fails_says_so(server, reply, message):
    server.trouble = only_answers(lambda path, body, number: reply)
    with pytest.raises(UserError, match="chat/completions: ") as caught:
        list(ServedModel(server.source()).stream("Hi", GREEDY, 0))
    assert message in str(caught.value)


# Trouble


@pytest.mark.parametrize(
    "reply",
    [(429, "slow down", {}), (500, "oops", {}), (503, "loading", {}), (None, None, {})],
    ids=["429", "500", "503", "broken"],
)
def test_a_busy_server_is_asked_again_ever_later(server, waits, reply):
    server.trouble = only_answers(lambda path, body, number: reply if number <= 4 else None)
    assert ask(server, "Hi")[0].text == "echo: Hi"
    assert len(server.bodies()) == 4
    assert len(waits) == 3
    assert all(0.5 * 2**k <= wait <= 0.75 * 2**k for k, wait in enumerate(waits))


def test_the_server_may_say_when_to_come_again_within_reason(server, waits):
    asked = iter(["7", "3600", "soon"])
    server.trouble = only_answers(
        lambda path, body, number: (429, "", {"Retry-After": next(asked)}) if number < 5 else None
    )
    ask(server, "Hi")
    assert 7 <= waits[0] <= 10.5
    assert waits[1:] == [60.0, 60.0]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((429, "slow\ndown", {}), f"answered 429: slow down ({TRIES} tries)"),
        ((502, "<html>bad gateway</html>", {}), "answered 502: <html>bad gateway</html> ("),
        ((None, None, {}), f"({TRIES} tries)"),
    ],
)
def test_a_server_that_stays_busy_is_given_up(server, reply, message):
    server.trouble = only_answers(lambda path, body, number: reply)
    found = refusal(server)
    assert found.startswith(f"{server.address}/chat/completions: ")
    assert message in found
    assert len(server.bodies()) == TRIES


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((400, {"error": {"message": "too long"}}, {}), 'answered 400: {"error": {"message": "to'),
        ((401, "no", {}), "answered 401: no; set OPENAI_API_KEY"),
        ((404, "no", {}), "answered 404: no; does the address end as the server's does, in /v1?"),
        ((200, "<html>", {}), "answered what is no JSON object: <html>"),
        ((200, "[1]", {}), "answered what is no JSON object: [1]"),
        ((200, "", {}), "answered what is no JSON object: (nothing)"),
        ((200, {"error": "broken"}, {}), 'answered an error: "broken"'),
        ((200, {"choices": []}, {}), "answered with 0 choices where one was asked for"),
        ((200, {"choices": [{}, {}]}, {}), "answered with 2 choices where one was asked for"),
        ((200, {"choices": ["a"]}, {}), "answered with 1 choices"),
        ((302, "", {"Location": "http://127.0.0.1:1/"}), "answered 302"),
    ],
)
def test_a_wrong_answer_is_named_and_not_asked_for_again(server, reply, message):
    server.trouble = only_answers(lambda path, body, number: reply)
    assert refusal(server).startswith(f"{server.address}/chat/completions: {message}")
    assert len(server.bodies()) == 1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"message": {"content": None}, "finish_reason": "tool_calls"},
         'answered without text (finish_reason "tool_calls")'),
        ({"message": {"content": "a"}, "finish_reason": None},
         "answered without an end (finish_reason null)"),
        ({"finish_reason": "stop"}, 'answered without text (finish_reason "stop")'),
    ],
)  # fmt: skip
def test_an_answer_without_text_or_end_is_none(server, choice, message):
    server.change = lambda answer: answer | {"choices": [choice]}
    assert message in refusal(server)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 3}, "many"])
def test_an_answer_whose_length_is_not_told_is_none(server, usage):
    server.change = lambda answer: answer | {"usage": usage}
    assert "answered without counting its tokens (usage)" in refusal(server)


def test_empty_answers_are_counted(server, capsys):
    server.say = lambda body: "" if body["messages"][0]["content"] == "x" else "text"
    assert [each.text for each in ask(server, "x", "y", "x")] == ["", "text", ""]
    assert capsys.readouterr().err == f"{server.source()}: 2 of 3 answers are empty\n"


def test_a_filtered_answer_is_a_cut_one(server):
    server.change = lambda answer: (
        answer | {"choices": [{"message": {"content": "I"}, "finish_reason": "content_filter"}]}
    )
    assert ask(server, "x")[0].finished is False


def test_an_answer_that_takes_too_long_is_given_up_at_once(server):
    never = threading.Event()
    server.trouble = only_answers(lambda path, body, number: never.wait(30) and None)
    model = ServedModel(server.source(), timeout=0.2)
    with pytest.raises(UserError, match=r"no answer within 0\.2 s; ask for less at a time"):
        model.answers(["x"], GREEDY, seeds=[0])
    never.set()
    assert len(server.bodies()) == 1


def test_one_failure_ends_all(server):
    held = threading.Event()

    def trouble(path, body, number):
        if body["messages"][0]["content"] == "bad":
            return 400, "bad", {}
        held.wait(30)  # others are still under way
        return None

    server.trouble = only_answers(trouble)
    assert "answered 400: bad" in refusal(server, "bad", *"abcdefgh")
    held.set()
    assert len(server.bodies()) <= 5  # those behind them are not asked for


def test_a_server_that_is_not_there_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=rf"^http://127.0.0.1:{port}/v1/models: not reached "):
        ServedModel(f"openai:http://127.0.0.1:{port}/v1#policy")


# The source


def test_a_model_that_is_not_named_or_not_there_comes_with_those_that_are(server):
    server.models = ["base", "policy-3"]
    for name, message in (("", "name a model"), ("policy", "has no model 'policy'")):
        with pytest.raises(UserError) as caught:
            ServedModel(server.source(name))
        assert str(caught.value) == (
            f"openai:{server.address}: {message}; write openai:{server.address}#NAME with one of "
            "base, policy-3"
        )
    with pytest.raises(UserError, match="name a model"):
        ServedModel(f"openai:{server.address}/")


def test_a_server_that_does_not_list_its_models_is_believed(server):
    server.trouble = lambda path, body, number: (404, "", {}) if path == "/v1/models" else None
    assert ask(server, "Hi")[0].text == "echo: Hi"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("openai:", "not the address of a server; write openai:http://HOST:PORT/v1#NAME"),
        ("openai:localhost:8000/v1#x", "not the address of a server"),
        ("openai:ftp://host/v1#x", "not the address of a server"),
        ("openai:http:///v1#x", "not the address of a server"),
        ("openai:http://host/v1?key=1#x", "not the address of a server"),
        ("openai:http://host:99999/v1#x", "Port out of range"),
        ("openai:http://ann:secret@host/v1#x", "no passwords in the address; set OPENAI_API_KEY"),
    ],
)
def test_a_source_that_is_none_is_named_before_anything_is_sent(source, message):
    assert is_served(source)
    with pytest.raises(UserError, match=message) as caught:
        ServedModel(source)
    assert "secret" not in str(caught.value)


def test_the_key_is_sent_and_never_shown(server, monkeypatch):
    ask(server, "x")
    assert all("Authorization" not in headers for headers in server.headers)
    server.headers.clear()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-precious")
    ask(server, "x")
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-precious"}
    server.trouble = only_answers(lambda path, body, number: (401, "wrong key sk-precious", {}))
    message = refusal(server)
    assert message.endswith("answered 401: wrong key ***; is OPENAI_API_KEY right?")


# Where served models are used, and where they cannot be


def test_rlhf_generate_asks_a_server(server, capsys, tmp_path):
    assert rlhf("generate", server.source(), "-p", "Why?", "--max-new-tokens", "9") == 0
    assert capsys.readouterr().out == "echo: Why?\n"
    out = tmp_path / "answers.jsonl"
    words = ("generate", server.source(), "-p", "a b c", "--max-new-tokens", "2")
    assert rlhf(*words, "--out", str(out)) == 0
    assert out.read_text() == (
        '{"prompt": "a b c", "completion": "echo: a", "finished": false, "tokens": 2}\n'
    )
    capsys.readouterr()
    assert rlhf("generate", server.source("x"), "-p", "a") == 2
    assert capsys.readouterr().err.startswith(
        f"rlhf: error: openai:{server.address}: has no model 'x'; write "
    )


@pytest.mark.parametrize(
    "use",
    [
        locate,
        load_tokenizer,
        lambda source: load_policy(ModelSettings(name=source)),
        lambda source: load_scorer(ModelSettings(name=source)),
        lambda source: compare(
            Plan({"a": source, "b": source}, "a"), [{"prompt": "x"}, {"prompt": "y"}], None
        ),
    ],
)
def test_what_needs_weights_tokens_or_probabilities_says_so(use):
    source = "openai:http://127.0.0.1:1/v1#policy"
    with pytest.raises(UserError, match=f"^{source}: a served model answers prompts and no more"):
        use(source)

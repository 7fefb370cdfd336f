import threading
from itertools import pairwise
from queue import SimpleQueue

import pytest

from tests.workbench.chat_server import chat_server
from ui.chats import Reply
from ui.errors import Refused
from ui.live import LiveModels
from workbench.chat import decode, query_ids
from workbench.errors import UserError
from workbench.generation import SamplingSettings, generate
from workbench.served import ServedModel

HELLO = [{"role": "user", "content": "Why does the harbour smell of tar?"}]


def test_the_answers_grow_and_end_with_what_the_model_writes(tiny_llama):
    live = LiveModels(SamplingSettings(max_new_tokens=12, temperature=0))
    *grown, replies = live.answer([str(tiny_llama)] * 2, [HELLO, HELLO])
    loaded = live.load(str(tiny_llama))
    (expected,) = generate(
        loaded.model,
        [query_ids(loaded.tokenizer, HELLO)],
        live.sampling,
        eos_token_id=loaded.tokenizer.eos_token_id,
    )
    text = decode(loaded.tokenizer, expected.ids)
    assert replies == [Reply(text, len(expected.ids), expected.finished)] * 2
    for side in (0, 1):
        for earlier, later in pairwise(texts[side] for texts in grown):
            assert later.startswith(earlier.strip("\ufffd"))


def test_no_side_shows_more_than_the_slower_one(tiny_llama, tiny_qwen):
    live = LiveModels(SamplingSettings(max_new_tokens=40, temperature=0))
    slow = live.load(str(tiny_qwen))
    slow.turn.acquire()  # the right side waits for its turn
    answers = live.answer([str(tiny_llama), str(tiny_qwen)], [HELLO, HELLO])
    assert next(answers) == ["", ""]  # the left side has written something by now
    slow.turn.release()
    *_, texts = answers
    assert all(isinstance(reply, Reply) for reply in texts)


def test_a_model_is_loaded_once(tiny_llama):
    live = LiveModels()
    assert live.load(str(tiny_llama)) is live.load(str(tiny_llama))


def test_answers_that_nobody_waits_for_stop(tiny_llama, monkeypatch):
    written, gone = SimpleQueue(), threading.Event()

    def recorded(*args, stop, **kwargs):
        def paused(ids):
            return (len(ids) < 5 or gone.wait(60)) and stop(ids)

        responses = generate(*args, stop=paused, **kwargs)
        written.put(len(responses[0].ids))
        return responses

    monkeypatch.setattr("ui.live.generate", recorded)
    live = LiveModels(SamplingSettings(max_new_tokens=100, temperature=0))
    where = str(tiny_llama)
    answers = live.answer([where], [HELLO])
    next(answers)
    answers.close()
    gone.set()
    assert written.get(timeout=60) <= 5
    *_, (whole,) = live.answer([where], [HELLO])
    assert written.get(timeout=60) == whole.tokens > 5


def test_a_conversation_that_is_too_long_is_refused(tiny_llama):
    live = LiveModels(SamplingSettings(max_new_tokens=500))
    with pytest.raises(Refused, match="too long for the models") as error:
        next(live.answer([str(tiny_llama)] * 2, [HELLO, HELLO]))
    assert error.value.reason == "invalid"


def test_a_model_that_is_not_there_is_named(tiny_llama, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        next(LiveModels().answer([str(tmp_path / "nowhere")] * 2, [HELLO, HELLO]))


def test_an_error_of_a_model_is_raised_where_it_is_seen(tiny_llama, monkeypatch):
    live = LiveModels(SamplingSettings(max_new_tokens=4))

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("ui.live.generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(live.answer([str(tiny_llama)] * 2, [HELLO, HELLO]))


# Served models


def test_a_served_model_answers_beside_a_loaded_one(tiny_llama):
    live = LiveModels(SamplingSettings(max_new_tokens=12, temperature=0))
    with chat_server() as server:
        wheres = [str(tiny_llama), server.source()]
        *grown, (left, right) = live.answer(wheres, [HELLO, HELLO])
        assert live.load(server.source()) is live.load(server.source())
        (alone,) = list(live.answer([str(tiny_llama)], [HELLO]))[-1]
    assert left == alone
    assert right == Reply("echo: Why does the harbour smell of tar?", 8, True)
    assert server.bodies()[0]["messages"] == HELLO
    for earlier, later in pairwise(texts[1] for texts in grown):
        assert later.startswith(earlier)
    assert right.text.startswith(grown[-1][1])


def test_an_answer_of_a_server_that_nobody_waits_for_stops():
    stopped = threading.Event()

    class Endless(ServedModel):
        def __init__(self):
            pass

        def stream(self, prompt, sampling, seed):
            try:
                while True:
                    yield "more"
            finally:
                stopped.set()

    live = LiveModels()
    live._models["openai:http://h/v1#x"] = Endless()
    answers = live.answer(["openai:http://h/v1#x"], [HELLO])
    next(answers)
    answers.close()
    assert stopped.wait(60)


def test_a_server_that_fails_is_named(monkeypatch):
    monkeypatch.setattr("workbench.asking.sleep", lambda seconds: None)
    with chat_server() as server:
        live = LiveModels(SamplingSettings(max_new_tokens=12, temperature=0))
        live.load(server.source())
        server.trouble = lambda path, body, number: (500, "out of memory", {})
        with pytest.raises(UserError, match="answered 500: out of memory"):
            list(live.answer([server.source()] * 2, [HELLO, HELLO]))

import threading
from itertools import pairwise
from queue import SimpleQueue

import pytest

from ui.chats import Reply
from ui.errors import Refused
from ui.live import LiveModels
from workbench.chat import decode, query_ids
from workbench.errors import UserError
from workbench.generation import SamplingSettings, generate

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
    waiting = True

    def go() -> None:
        nonlocal waiting
        waiting = False
        slow.turn.release()

    threading.Timer(1.0, go).start()
    early = 0
    for texts in live.answer([str(tiny_llama), str(tiny_qwen)], [HELLO, HELLO]):
        if waiting:
            early += 1
            assert texts == ["", ""]
    assert early > 0
    assert all(isinstance(reply, Reply) for reply in texts)


def test_a_model_is_loaded_once(tiny_llama):
    live = LiveModels()
    assert live.load(str(tiny_llama)) is live.load(str(tiny_llama))


def test_answers_that_nobody_waits_for_stop(tiny_llama, monkeypatch):
    written = SimpleQueue()

    def recorded(*args, **kwargs):
        responses = generate(*args, **kwargs)
        written.put(len(responses[0].ids))
        return responses

    monkeypatch.setattr("ui.live.generate", recorded)
    live = LiveModels(SamplingSettings(max_new_tokens=400, temperature=0))
    where = str(tiny_llama)
    *_, (whole,) = live.answer([where], [HELLO])
    assert written.get(timeout=60) == whole.tokens > 100
    answers = live.answer([where], [HELLO])
    next(answers)
    answers.close()
    assert written.get(timeout=60) < whole.tokens


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

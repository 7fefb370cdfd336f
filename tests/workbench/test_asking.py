"""Requests that are sent again, and places worked on at once; the rest by `test_served.py`."""

import threading

import pytest

from tests.workbench.chat_server import chat_server
from workbench.asking import Asking, UnusableAnswerError, at_once
from workbench.errors import UserError

pytestmark = pytest.mark.usefixtures("waits")


def sent(asking, read=lambda response: response.text):
    return asking.sent("x", lambda: asking.client.get(f"{asking.url}/x"), read)


def test_an_unusable_answer_is_asked_for_again(waits):
    with chat_server(trouble=lambda path, body, number: (200, f"answer {number}", {})) as server:
        asking = Asking(server.address, timeout=30, tries=4)

        def read(response):
            if response.text != "answer 3":
                raise UnusableAnswerError(f"said {response.text}")
            return response.text

        assert sent(asking, read) == "answer 3"
        assert len(waits) == 2
        with pytest.raises(UserError, match=r"/x: said answer 7 \(4 tries\)$"):
            sent(asking, read)


def test_a_slow_answer_is_asked_for_again_or_given_up(waits):
    release = threading.Event()
    slow = lambda path, body, number: release.wait(60) and None  # noqa: E731
    with chat_server(trouble=slow) as server:
        with pytest.raises(UserError, match=r"no answer within 0\.3 s \(2 tries\)$"):
            sent(Asking(server.address, timeout=0.3, tries=2))
        assert len(server.asked) == 2
        with pytest.raises(UserError, match=r"no answer within 0\.3 s; ask for less$"):
            sent(Asking(server.address, timeout=0.3, tries=2, slow="ask for less"))
        assert len(server.asked) == 3
        release.set()


def test_waits_double_up_to_a_minute(waits):
    busy = lambda path, body, number: (503, "busy", {})  # noqa: E731
    refused = pytest.raises(UserError, match=r"answered 503: busy \(10 tries\)$")
    with chat_server(trouble=busy) as server, refused:
        sent(Asking(server.address, timeout=30, tries=10))
    assert len(waits) == 9
    for k, wait in enumerate(waits):
        assert min(60, 0.5 * 2**k) <= wait <= min(60, 0.75 * 2**k)


def test_places_are_worked_on_at_once_and_no_more_of_them():
    together, lock, most = threading.Barrier(3, timeout=60), threading.Lock(), [0, 0]

    def work(place):
        with lock:
            most[0] += 1
            most[1] = max(most)
        together.wait()
        with lock:
            most[0] -= 1
        return place * place

    assert dict(at_once(work, 6, 3)) == {place: place * place for place in range(6)}
    assert most[1] == 3
    assert dict(at_once(work, 0, 3)) == {}


def test_the_first_error_ends_it():
    begun = []

    def work(place):
        begun.append(place)
        raise ValueError(f"place {place}")

    with pytest.raises(ValueError, match="place 0"):
        dict(at_once(work, 1000, 1))
    assert begun == [0]

"""What is asked of a vLLM server, and what is taken for an answer."""

import copy
import math

import pytest

from ppo.vllm_server import UnknownModelError, VLLMServer, read_answer, request
from tests.workbench.chat_server import chat_server
from workbench.asking import UnusableAnswerError
from workbench.errors import UserError
from workbench.generation import SamplingSettings

QUERY, STOP = [1, 5, 7], 2
SETTINGS = SamplingSettings(4, 0.7, 2)
GOOD = {
    "model": "policy-1",
    "choices": [
        {
            "finish_reason": "stop",
            "prompt_token_ids": QUERY,
            "token_ids": [6, 9, STOP],
            "logprobs": {"token_logprobs": [-0.5, -1.25, 1e-6]},
        }
    ],
}


pytestmark = pytest.mark.usefixtures("waits")


def changed(**choice):
    answer = copy.deepcopy(GOOD)
    answer["choices"][0].update(choice)
    return answer


def read(answer, stop=STOP):
    return read_answer(answer, "policy-1", QUERY, SETTINGS, stop)


def test_a_good_answer_is_read():
    said = read(GOOD)
    assert (said.ids, said.finished, said.logprobs) == ([6, 9, STOP], True, [-0.5, -1.25, 1e-6])
    cut = changed(token_ids=[6] * 4, logprobs={"token_logprobs": [-1] * 4}, finish_reason="length")
    assert (read(cut).finished, read(cut).logprobs) == (False, [-1.0] * 4)
    assert read(changed(prompt_token_ids=None)).finished  # not every version repeats the prompt


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"choices": []}, "weights 'None'"),
        (GOOD | {"model": "policy-0"}, "weights 'policy-0' where 'policy-1' were asked for"),
        (GOOD | {"choices": []}, "0 choices where one was asked for"),
        (GOOD | {"choices": GOOD["choices"] * 2}, "2 choices"),
        (GOOD | {"choices": "x"}, "0 choices"),
        (GOOD | {"choices": ["x"]}, "1 choices"),
        (changed(token_ids=None), "without token ids"),
        (changed(token_ids=[]), "without token ids"),
        (changed(token_ids=["6"]), "without token ids"),
        (changed(prompt_token_ids=[1, 1, 5, 7]), "read other tokens than were sent"),
        (changed(logprobs=None), "without a log-probability for each of 3 tokens"),
        (changed(logprobs={"token_logprobs": [-1.0]}), "for each of 3 tokens"),
        (changed(logprobs={"token_logprobs": [-1.0, None, -1.0]}), "that are none"),
        (changed(logprobs={"token_logprobs": [-1.0, math.nan, -1.0]}), "that are none"),
        (changed(logprobs={"token_logprobs": [-1.0, 0.5, -1.0]}), "that are none"),
        (changed(logprobs={"token_logprobs": [-1.0, -math.inf, -1.0]}), "that are none"),
        (changed(token_ids=[6, STOP, 9]), "end neither with token 2 nor after 4"),
        (changed(token_ids=[6, 9, 9]), "end neither with token 2 nor after 4"),
    ],
)
def test_what_is_not_what_was_asked_for_is_no_answer(answer, message):
    with pytest.raises(UnusableAnswerError, match=message):
        read(answer)


def test_without_a_stop_token_only_full_answers_are_answers():
    full = changed(token_ids=[6, STOP, 9, 9], logprobs={"token_logprobs": [-1.0] * 4})
    assert not read(full, stop=-1).finished
    with pytest.raises(UnusableAnswerError, match="end neither"):
        read(GOOD, stop=-1)


def test_a_request_leaves_nothing_to_defaults():
    body = request("policy-1", QUERY, SETTINGS, 9, [STOP])
    assert body["prompt"] == QUERY  # tokens, no text to be read in another way
    sampled = {key: body[key] for key in ("max_tokens", "temperature", "seed", "stop_token_ids")}
    assert sampled == {"max_tokens": 4, "temperature": 0.7, "seed": 9, "stop_token_ids": [STOP]}
    plain = {
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True,
    }  # fmt: skip
    assert {key: body[key] for key in plain} == plain
    assert (body["logprobs"], body["return_token_ids"]) == (0, True)


def server_of(served):
    return VLLMServer(served.address, timeout=30, tries=2)


def test_the_model_it_was_started_with_is_found():
    rows = [
        {"id": "sft", "root": "runs/sft", "max_model_len": 64},
        {"id": "policy-1", "parent": "sft"},
    ]
    listed = 200, {"data": rows}, {}
    with chat_server(trouble=lambda path, body, number: listed) as served:
        found = server_of(served).base(None)
        assert (found.name, found.root, found.longest) == ("sft", "runs/sft", 64)
        assert server_of(served).base("sft") == found
        with pytest.raises(UserError, match=r"has no model 'other'; it has sft$"):
            server_of(served).base("other")
        rows.append({"id": "second"})
        with pytest.raises(UserError, match=r"name the policy with rollout\.vllm\.model"):
            server_of(served).base(None)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, {"data": "x"}, {}), "without a list of models (2 tries)"),
        ((200, "<html>", {}), "no JSON object: <html> (2 tries)"),
        ((401, "no", {}), "answered 401: no; set OPENAI_API_KEY"),
        ((404, "no", {}), "does the address end as the server's does, in /v1?"),
    ],
)
def test_a_list_of_models_that_is_none_is_named(reply, message):
    with chat_server(trouble=lambda path, body, number: reply) as served:
        with pytest.raises(UserError) as caught:
            server_of(served).models()
        assert message in str(caught.value)


def test_wrong_answers_are_asked_for_again(waits):
    replies = [GOOD | {"choices": []}, changed(token_ids=None), GOOD]
    with chat_server(trouble=lambda path, body, number: (200, replies[number - 1], {})) as served:
        server = VLLMServer(served.address, timeout=30, tries=3)
        (said,) = server.sample("policy-1", [QUERY], SETTINGS, 0, STOP)
        assert said.ids == [6, 9, STOP]
    assert len(waits) == 2
    assert waits[1] > waits[0]


def test_a_name_it_does_not_know_is_told_from_other_refusals():
    unknown = {"error": {"message": "The model `policy-1` does not exist."}}
    replies = [(404, unknown, {}), (404, "Not Found", {}), (400, "too long", {})]
    with chat_server(trouble=lambda path, body, number: replies[number - 1]) as served:
        server = server_of(served)
        with pytest.raises(UnknownModelError):
            server.sample("policy-1", [QUERY], SETTINGS, 0, STOP)
        with pytest.raises(UserError, match="in /v1"):
            server.sample("policy-1", [QUERY], SETTINGS, 0, STOP)
        with pytest.raises(UserError, match="answered 400: too long"):
            server.sample("policy-1", [QUERY], SETTINGS, 0, STOP)

import pytest

from tests.workbench.chat_server import chat_server
from workbench.answering import Answered, answer_prompts
from workbench.chat import decode, query_ids
from workbench.errors import UserError
from workbench.generation import SamplingSettings, generate
from workbench.models import ModelSettings, load_policy, load_tokenizer


def test_answers_of_a_loaded_model_are_its_own(tiny_llama):
    prompts, sampling = ["Why?", "How?"], SamplingSettings(6, 1.0)
    found = answer_prompts(str(tiny_llama), prompts, sampling, samples=2, seed=3)
    model = load_policy(ModelSettings(name=str(tiny_llama)))
    tokenizer = load_tokenizer(str(tiny_llama))
    queries = [query_ids(tokenizer, prompt) for prompt in prompts for _ in range(2)]
    drawn = generate(model, queries, sampling, eos_token_id=tokenizer.eos_token_id, seed=3)
    expected = [Answered(decode(tokenizer, r.ids), r.finished, len(r.ids)) for r in drawn]
    assert found == [expected[:2], expected[2:]]


def test_answers_of_a_served_model_have_the_same_form_and_a_seed_each():
    with chat_server() as server:
        found = answer_prompts(
            server.source(), ["a b", "c"], SamplingSettings(2, 1.0), samples=3, seed=1
        )
    assert found == [[Answered("echo: a", False, 2)] * 3, [Answered("echo: c", True, 2)] * 3]
    assert len({body["seed"] for body in server.bodies()}) == 6


def test_a_prompt_that_is_too_long_is_named_by_its_place(tiny_llama):
    prompts = ["short", "word " * 600, "short"]
    with pytest.raises(UserError, match=r"^prompt 2: \d+ tokens and an answer of 6 go beyond the"):
        answer_prompts(str(tiny_llama), prompts, SamplingSettings(6, 1.0), samples=2)

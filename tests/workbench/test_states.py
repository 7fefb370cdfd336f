import pytest
import torch

from workbench.models import ModelSettings, load_policy
from workbench.states import answer_states

FAMILIES = ("tiny_llama", "tiny_gpt2", "tiny_qwen")
QUERIES = [[5, 6, 7], [5, 6, 7], [8], [5, 6, 7], [9, 10, 11, 12, 13], [8]]
ANSWERS = [[20, 21], [22], [23, 24, 25], [], [26], [27, 28, 29, 30]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_states_are_those_of_a_full_forward_pass(family, batch_size, request):
    model = load_policy(ModelSettings(name=str(request.getfixturevalue(family))), torch.float32)
    seen = []
    for index, hidden in answer_states(model, QUERIES, ANSWERS, batch_size):
        for row, i in enumerate(index):
            with torch.no_grad():
                whole = model.base_model(torch.tensor([QUERIES[i] + ANSWERS[i]])).last_hidden_state
            count = len(ANSWERS[i]) + 1
            torch.testing.assert_close(hidden[row, :count], whole[0, -count:], rtol=0, atol=1e-5)
            seen.append(i)
    assert sorted(seen) == list(range(len(QUERIES)))


def test_only_empty_answers_give_the_state_after_the_query(tiny_llama):
    model = load_policy(ModelSettings(name=str(tiny_llama)), torch.float32)
    ((index, hidden),) = answer_states(model, QUERIES[:2], [[], []], 4)
    assert index == [0, 1]
    assert hidden.shape[:2] == (2, 1)

import numpy as np
import pytest
import torch
from scipy import stats

from workbench.config import load_config
from workbench.errors import UserError
from workbench.generation import Response, SamplingSettings, StopText, choose, generate
from workbench.models import ModelSettings, load_policy

EOS = 0  # where the test does not care


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_policy(ModelSettings(name=str(tiny_model)), torch.float32)


@pytest.fixture(scope="module")
def llama(tiny_llama):
    return load_policy(ModelSettings(name=str(tiny_llama)), torch.float32)


def some_queries(count: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Queries of 1 to 30 tokens, long and short ones mixed."""
    draw = np.random.default_rng(seed)
    lengths = [1 + (7 * i) % 30 for i in range(count)]
    return [draw.integers(0, vocabulary, length).tolist() for length in lengths]


def answers(
    model,
    queries,
    eos: int,
    length: int = 16,
    *,
    seed: int = 0,
    batch: int = 64,
    temperature: float = 0.0,
):
    settings = SamplingSettings(max_new_tokens=length, temperature=temperature, batch_size=batch)
    return generate(model, queries, settings, eos_token_id=eos, seed=seed)


def one_by_one(model, query: list[int], eos: int, length: int = 16) -> Response:
    """The greedy answer by full forward passes: no cache, no padding, no batch."""
    ids: list[int] = []
    with torch.no_grad():
        while len(ids) < length and eos not in ids:
            logits = model.eval()(input_ids=torch.tensor([[*query, *ids]])).logits
            ids.append(int(logits[0, -1].argmax()))
    return Response(ids, eos in ids)


def unused_token(model, queries: list[list[int]], length: int = 16) -> int:
    """A token in no greedy answer: with it as EOS, every answer runs to its full length."""
    used = {token for query in queries for token in one_by_one(model, query, -1, length).ids}
    return min(set(range(model.config.vocab_size)) - used)


def middle_token(model, queries: list[list[int]], length: int = 16) -> int:
    """A token that as EOS ends some greedy answers early, some late and some never."""
    free = [one_by_one(model, query, -1, length).ids for query in queries]

    def places(token: int) -> int:
        ends = [ids.index(token) for ids in free if token in ids]
        return len(set(ends)) if len(ends) < len(free) else 0

    return max({token for ids in free for token in ids}, key=places)


def test_greedy_answers_equal_uncached_unpadded_ones(model):
    queries = some_queries(16, model.config.vocab_size)
    eos = middle_token(model, queries)
    expected = [one_by_one(model, query, eos) for query in queries]
    assert answers(model, queries, eos) == expected
    assert {response.finished for response in expected} == {True, False}
    assert len({tuple(response.ids) for response in expected}) > 8  # they depend on the query


@pytest.mark.parametrize("batch", [1, 2, 4, 64])
def test_the_batch_an_answer_shares_changes_nothing(model, batch):
    queries = some_queries(16, model.config.vocab_size)
    eos = middle_token(model, queries)
    assert answers(model, queries, eos, batch=batch) == answers(model, queries, eos, batch=16)


def test_rows_that_finish_leave_the_others_as_they_were(model):
    queries = some_queries(16, model.config.vocab_size)
    free = answers(model, queries, unused_token(model, queries))
    eos = middle_token(model, queries)
    ended = answers(model, queries, eos)
    lengths = {len(response.ids) for response in ended}
    assert len(lengths) > 2, "the rows should leave at several different steps"
    for with_eos, without in zip(ended, free, strict=True):
        assert with_eos.ids == without.ids[: len(with_eos.ids)]


def test_an_eos_inside_a_query_is_read_like_any_token(model):
    # Padding is the EOS id as well: a mask of `ids != eos` would hide these tokens.
    eos = model.config.eos_token_id
    short, long = [5, eos, 9], [eos, eos, *range(20, 40)]
    assert answers(model, [short, long], eos) == [
        one_by_one(model, query, eos) for query in (short, long)
    ]
    assert answers(model, [short], eos) != answers(model, [[5, 9]], eos)


def test_answers_come_in_the_order_of_the_queries(model):
    queries = some_queries(7, model.config.vocab_size)
    eos = middle_token(model, queries)
    forward = answers(model, queries, eos, batch=2)
    backward = answers(model, queries[::-1], eos, batch=3)
    assert forward == backward[::-1]


def test_no_queries_no_answers(llama):
    assert answers(llama, [], EOS) == []


@pytest.mark.parametrize("length", [1, 2, 16])
def test_an_answer_is_finished_exactly_when_it_ends_in_eos(model, length):
    queries = some_queries(16, model.config.vocab_size)
    eos = middle_token(model, queries)
    for response in answers(model, queries, eos, length):
        assert 1 <= len(response.ids) <= length
        assert response.finished == (response.ids[-1] == eos)
        assert eos not in response.ids[:-1]
        assert response.finished or len(response.ids) == length


def test_eos_as_the_very_last_allowed_token_still_counts_as_finished(model):
    queries = some_queries(16, model.config.vocab_size)
    eos = middle_token(model, queries)
    response = max(
        (r for r in answers(model, queries, eos) if r.finished), key=lambda r: len(r.ids)
    )
    place = len(response.ids)
    query = queries[answers(model, queries, eos).index(response)]
    assert answers(model, [query], eos, place) == [response]
    assert answers(model, [query], eos, place - 1) == (
        [Response(response.ids[:-1], False)] if place > 1 else []
    )


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(model):
    queries = some_queries(6, model.config.vocab_size)
    first = answers(model, queries, EOS, seed=1, temperature=1.0)
    torch.manual_seed(99)  # the global generator has no part in it
    assert answers(model, queries, EOS, seed=1, temperature=1.0) == first
    assert answers(model, queries, EOS, seed=2, temperature=1.0) != first


def test_equal_queries_get_answers_of_their_own(llama):
    drawn = answers(llama, [[5, 6, 7]] * 8, EOS, temperature=1.0)
    assert len({tuple(response.ids) for response in drawn}) == 8


def test_generation_leaves_the_global_random_state_alone(llama):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    answers(llama, some_queries(3, 300), EOS, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_off_during_generation_and_the_mode_comes_back(tiny_gpt2):
    model = load_policy(ModelSettings(name=str(tiny_gpt2)), torch.float32)
    assert model.config.resid_pdrop > 0
    queries = some_queries(6, model.config.vocab_size)
    eos = model.config.eos_token_id
    calm = answers(model.eval(), queries, eos)
    assert not model.training
    assert answers(model.train(), queries, eos) == calm
    assert model.training
    ids = torch.tensor([queries[3]])
    assert not torch.equal(model(ids).logits, model(ids).logits)  # it would have been on


def test_the_mode_comes_back_after_an_error_too(tiny_gpt2):
    model = load_policy(ModelSettings(name=str(tiny_gpt2)), torch.float32).train()
    with pytest.raises(IndexError):
        answers(model, [[10_000]], EOS)
    assert model.training


def test_generated_tokens_follow_the_model_own_distribution(model):
    # The first token of many answers to one query against softmax of the uncached logits.
    query, count = [7, 8, 9, 10], 4096
    with torch.no_grad():
        wanted = torch.softmax(
            model.eval()(torch.tensor([query])).logits[0, -1].double(), -1
        ).numpy()
    drawn = [r.ids[0] for r in answers(model, [query] * count, EOS, 1, temperature=1.0, batch=1024)]
    assert chi_square(drawn, wanted) > 1e-3


def uniform(count: int, seed: int) -> torch.Tensor:
    """Draws in (0, 1], as `generate` makes them."""
    return 1.0 - torch.rand(count, generator=torch.Generator().manual_seed(seed))


def chi_square(drawn: list[int], probabilities: np.ndarray) -> float:
    """The p-value of draws under probabilities; rare tokens are counted together."""
    expected = probabilities * len(drawn)
    seen = np.bincount(drawn, minlength=len(probabilities)).astype(float)
    rare = expected < 5
    if rare.any():
        seen = np.append(seen[~rare], seen[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    assert len(expected) > 3
    return float(stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choose_draws_from_softmax_of_logits_over_temperature(temperature, dtype):
    logits = torch.linspace(-2, 2, 12).roll(5).to(dtype)
    drawn = choose(logits.expand(50_000, -1), temperature, uniform(50_000, 11)).tolist()
    scaled = torch.softmax(logits.double() / temperature, -1).numpy()
    other = torch.softmax(logits.double() / (temperature * 1.05), -1).numpy()
    assert chi_square(drawn, scaled) > 1e-3
    assert chi_square(drawn, other) < 1e-3  # the test can tell 5 % apart


def test_choose_draws_from_a_wide_vocabulary_without_favour():
    # 50,000 equally likely tokens: rounding of the running sum must not push draws to either end.
    drawn = torch.cat(
        [choose(torch.zeros(100, 50_000), 1.0, draws) for draws in uniform(2_000, 5).split(100)]
    )
    tenths = np.bincount((drawn // 5_000).numpy(), minlength=10)
    assert stats.chisquare(tenths).pvalue > 1e-3


def test_choose_rows_are_independent():
    drawn = choose(torch.zeros(20_000, 4), 1.0, uniform(20_000, 5)).reshape(-1, 2)
    table = np.zeros((4, 4))
    np.add.at(table, (drawn[:, 0].numpy(), drawn[:, 1].numpy()), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_choose_never_takes_an_impossible_token():
    logits = torch.full((100_000, 5), float("-inf"))
    logits[:, 2] = 0.0
    draws = uniform(100_000, 0)
    draws[:2] = torch.tensor([1.0, 2.0**-24])  # the largest and the smallest there are
    assert choose(logits, 1.0, draws).unique().tolist() == [2]


def test_temperature_0_takes_the_likeliest_token():
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(choose(logits, 0.0, None), logits.argmax(-1))


def test_samples_of_one_query_are_those_of_queries_read_one_by_one(model):
    # Equal queries share what was read of them; each still draws its own answer.
    queries = [[5, 6, 7]] * 5 + [[8, 9]] * 3
    settings = SamplingSettings(max_new_tokens=12, temperature=1.0, batch_size=8)
    seeds = list(range(8))
    together = generate(model, queries, settings, eos_token_id=2, seeds=seeds)
    alone = [
        generate(model, [query], settings, eos_token_id=2, seeds=[seed])[0]
        for query, seed in zip(queries, seeds, strict=True)
    ]
    assert together == alone
    assert len({tuple(response.ids) for response in together[:5]}) > 1


def test_a_query_seed_gives_the_same_answer_in_any_place_and_batch(llama):
    queries = some_queries(9, 256)
    seeds = [100 + i for i in range(9)]
    settings = SamplingSettings(max_new_tokens=10, temperature=1.0, batch_size=4)
    first = generate(llama, queries, settings, eos_token_id=2, seeds=seeds)
    back = generate(
        llama,
        queries[::-1],
        SamplingSettings(max_new_tokens=10, temperature=1.0, batch_size=9),
        eos_token_id=2,
        seeds=seeds[::-1],
    )
    assert back[::-1] == first


def test_the_batch_size_does_not_change_sampled_answers(llama):
    queries = some_queries(9, 256)
    small, large = (
        answers(llama, queries, 2, temperature=1.0, seed=3, batch=batch) for batch in (2, 9)
    )
    assert small == large


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(97 + i % 26) for i in ids)


def test_a_stop_text_ends_an_answer_at_the_token_that_completes_it(llama):
    queries = some_queries(6, 256)
    free = answers(llama, queries, -1, 24)
    text = Letters().decode(free[0].ids, skip_special_tokens=True)
    stop = StopText(Letters(), [text[6:8], "?"])
    settings = SamplingSettings(max_new_tokens=24, temperature=0.0)
    stopped = generate(llama, queries, settings, eos_token_id=-1, stop=stop)
    end = text.index(text[6:8]) + 2
    assert stopped[0] == Response(free[0].ids[:end], finished=True)
    for response, other in zip(stopped, free, strict=True):
        whole = Letters().decode(other.ids, skip_special_tokens=True)
        assert response.finished == (text[6:8] in whole)
        assert response.ids == other.ids[: len(response.ids)]


def test_no_queries_give_no_answers(llama):
    assert generate(llama, [], SamplingSettings(), eos_token_id=2) == []


def test_a_progress_bar_is_drawn_only_when_it_has_a_name(llama, capsys):
    settings = SamplingSettings(max_new_tokens=2)
    generate(llama, [[5]], settings, eos_token_id=2, seed=0)
    assert capsys.readouterr().err == ""
    generate(llama, [[5]], settings, eos_token_id=2, seed=0, desc="answering")
    assert "answering" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["max_new_tokens=0", "temperature=-0.1", "batch_size=0"])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=wrong.partition("=")[0]):
        load_config(SamplingSettings, None, [wrong])

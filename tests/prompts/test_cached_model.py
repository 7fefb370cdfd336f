import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import prompts.cached_model
from prompts.cache import Cache
from prompts.cached_model import CachedModel, Query, code_version, content_hash
from workbench.embedded import GGUF_SHA256, NAME
from workbench.errors import UserError
from workbench.likelihood import answer_logprobs
from workbench.models import load_tokenizer

GREEDY = {"max_new_tokens": 6, "temperature": 0.0}
SAMPLED = {"max_new_tokens": 6, "temperature": 1.0}


@pytest.fixture
def cache(tmp_path):
    opened = Cache(tmp_path / "known.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def model(tiny_llama, cache):
    return CachedModel("tiny", str(tiny_llama), cache, precision="fp32", batch_size=4)


def queries(model: CachedModel, count: int = 6) -> list[Query]:
    texts = [f"The lamp {'hums ' * n}and" for n in range(count)]
    return [Query(tuple(model.tokenizer(text)["input_ids"]), n) for n, text in enumerate(texts)]


def loaded(model: CachedModel) -> bool:
    return "policy" in vars(model)


def test_a_known_answer_is_not_generated_again_and_needs_no_weights(tiny_llama, cache, model):
    asked = queries(model)
    first = model.answers(asked, **GREEDY)
    assert (model.generated, model.cached) == (6, 0)
    assert loaded(model)
    again = CachedModel("other name", str(tiny_llama), cache, precision="fp32")
    assert again.answers(asked, **GREEDY) == first
    assert (again.generated, again.cached) == (0, 6)
    assert not loaded(again)


def test_only_what_is_missing_is_generated(model):
    asked = queries(model)
    some = model.answers(asked[::2], **SAMPLED)
    every = model.answers(asked, **SAMPLED)
    assert every[::2] == some
    assert (model.generated, model.cached) == (6, 3)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_sampled_answer_depends_on_its_seed_not_on_batch_or_company(tiny_llama, batch_size):
    model = CachedModel("m", str(tiny_llama), Cache(None), precision="fp32", batch_size=batch_size)
    asked = queries(model)
    every = [answer.ids for answer in model.answers(asked, **SAMPLED)]
    for query, ids in zip(asked, every, strict=True):
        alone = CachedModel("m", str(tiny_llama), Cache(None), precision="fp32")
        alone.__dict__["policy"] = model.policy
        assert [answer.ids for answer in alone.answers([query], **SAMPLED)] == [ids]


def test_repeats_of_one_prompt_are_answers_of_their_own_but_greedy_ones_are_one(model):
    ids = queries(model)[3].ids
    repeats = [Query(ids, seed=7 + n, repeat=n) for n in range(4)]
    sampled = model.answers(repeats, **SAMPLED)
    assert len({tuple(answer.ids) for answer in sampled}) == 4
    assert model.generated == 4
    greedy = model.answers(repeats, **GREEDY)
    assert len({tuple(answer.ids) for answer in greedy}) == 1
    assert model.generated == 5


@pytest.mark.parametrize(
    "change",
    [{"max_new_tokens": 7}, {"temperature": 0.7}, {"stop": ["e"]}, {"seed": 99}, {"repeat": 1}],
)
def test_other_settings_are_other_answers(model, change):
    (query, *_) = queries(model)
    model.answers([query], **SAMPLED)
    settings = {key: change[key] for key in change if key not in ("seed", "repeat")}
    other = Query(query.ids, change.get("seed", query.seed), change.get("repeat", query.repeat))
    model.answers([other], **{**SAMPLED, **settings})
    assert (model.generated, model.cached) == (2, 0)


def test_other_weights_types_and_code_are_other_answers(tiny_llama, tmp_path, cache, monkeypatch):
    def generated(source: Path, precision: str = "fp32") -> int:
        model = CachedModel("m", str(source), cache, precision=precision)
        model.answers(queries(model)[:1], **GREEDY)
        return model.generated

    assert generated(tiny_llama) == 1
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)
    assert generated(copy) == 0  # the same files elsewhere are the same model
    assert generated(copy, "bf16") == 1
    weights = load_file(copy / "model.safetensors")
    save_file({key: value * 1.5 for key, value in weights.items()}, copy / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    assert generated(copy) == 1
    monkeypatch.setattr(prompts.cached_model, "code_version", lambda: "another")
    assert generated(tiny_llama) == 1


def test_an_interrupted_run_keeps_its_finished_batches(tiny_llama, cache, model, monkeypatch):
    asked = queries(model, 6)
    compute, calls = CachedModel._generate, []

    def interrupted(self, batch, *settings):
        calls.append(len(batch))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(self, batch, *settings)

    monkeypatch.setattr(CachedModel, "_generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.answers(asked, **GREEDY)
    monkeypatch.setattr(CachedModel, "_generate", compute)
    again = CachedModel("m", str(tiny_llama), cache, precision="fp32")
    again.answers(asked, **GREEDY)
    assert (again.generated, again.cached) == (2, 4)
    assert calls == [4, 2]


def test_times_are_those_of_the_batch_and_come_back_with_the_answer(model):
    answers = model.answers(queries(model, 4), **GREEDY)
    assert len({answer.seconds for answer in answers}) == 1
    assert answers[0].seconds > 0
    assert sum(answer.share for answer in answers) == pytest.approx(answers[0].seconds)
    assert model.answers(queries(model, 4), **GREEDY) == answers


def test_stop_texts_end_answers_and_are_cut_from_the_text(model):
    settings = {"max_new_tokens": 40, "temperature": 0.0}
    (query, *_) = queries(model)
    (free,) = model.answers([query], **settings)
    text = model.text(free.ids)
    stop = text[5:8]
    (stopped,) = model.answers([query], **settings, stop=[stop])
    assert stopped.finished
    assert len(stopped.ids) < len(free.ids)
    assert model.text(stopped.ids, [stop]) == text[: text.find(stop)].strip()
    assert stop in model.text(stopped.ids)


def test_text_ends_at_the_first_stop_and_holds_no_nul(model):
    ids = model.tokenizer("one two three\0four", add_special_tokens=False)["input_ids"]
    assert model.text(ids, ["three", "two"]) == "one"
    assert model.text(ids) == "one two three�four"
    assert model.text([*ids, model.tokenizer.eos_token_id], ["four"]) == "one two three�"


def test_likelihoods_are_the_sum_over_tokens_and_are_known_later(model):
    first, *_ = asked = queries(model, 5)
    tails = [[40 + n, 41, 60][: 1 + n % 3] for n in range(5)]
    found = model.likelihoods(asked, tails)
    expected = [
        sum(row) for row in answer_logprobs(model.policy, [query.ids for query in asked], tails)
    ]
    assert [each.logprob for each in found] == pytest.approx(expected, abs=1e-4)
    assert model.likelihoods(asked, tails) == found
    assert (model.generated, model.cached) == (5, 5)
    model.likelihoods([first], [[40, 41]])
    assert model.generated == 6


def test_a_prompt_longer_than_the_model_reads_is_an_error_not_a_cut(model):
    query = Query(tuple([5] * 510), name="t: item a7")
    with pytest.raises(UserError, match=r"t: item a7: 510 tokens and up to 6 of answer .* the 512"):
        model.answers([query], **GREEDY)
    with pytest.raises(UserError, match="the 512 that model tiny reads"):
        model.likelihoods([query], [[1, 2, 3]])
    assert model.answers([query], max_new_tokens=2, temperature=0.0)


def test_a_model_that_is_not_there_is_an_error_at_once(cache):
    with pytest.raises(UserError, match="no such folder"):
        CachedModel("m", "runs/nowhere/model", cache)


def test_unloading_frees_the_weights_and_they_come_back(model):
    model.answers(queries(model)[:1], **GREEDY)
    model.unload()
    assert not loaded(model)
    model.answers(queries(model)[1:2], **GREEDY)
    assert loaded(model)


def test_precision_is_the_type_of_the_weights(tiny_llama, cache):
    for precision, name in (("fp32", "float32"), ("bf16", "bfloat16")):
        model = CachedModel("m", str(tiny_llama), cache, precision=precision)
        assert model.dtype == name
        assert model.policy.dtype == getattr(torch, name)


def test_the_light_tokenizer_is_the_loaders_own(tiny_model, cache):
    model = CachedModel("m", str(tiny_model), cache)
    slow = load_tokenizer(str(tiny_model))
    for text in ("Bread rises slowly; 12 gulls.", "¿Dónde? 你好\n\n\tx"):
        assert model.tokenizer(text)["input_ids"] == slow(text)["input_ids"]
    assert model.tokenizer.chat_template == slow.chat_template
    assert model.tokenizer.eos_token_id == slow.eos_token_id


def test_a_tokenizer_with_a_class_of_its_own_is_left_to_the_loader(tiny_qwen, tmp_path, cache):
    copy = tmp_path / "model"
    shutil.copytree(tiny_qwen, copy)
    path = copy / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "tokenizer_class": "Qwen2Tokenizer"}))
    assert prompts.cached_model._plain_tokenizer(copy) is None
    path.write_text(json.dumps({**settings, "auto_map": {}}))
    assert prompts.cached_model._plain_tokenizer(copy) is None
    path.write_text(json.dumps({**settings, "eos_token": None}))
    with pytest.raises(UserError, match="no EOS token"):
        _ = CachedModel("m", str(copy), cache).tokenizer


def test_content_hashes_follow_the_files(tiny_llama, tmp_path):
    assert content_hash(NAME) == GGUF_SHA256[:16]
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(tiny_llama)}))
    first = content_hash(str(adapter))
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    (base / "generation_config.json").write_text("{}")
    config.write_text(json.dumps({"base_model_name_or_path": str(base)}))
    second = content_hash(str(adapter))
    (base / "extra.txt").write_text("x")
    assert len({first, second, content_hash(str(adapter)), content_hash(str(base))}) == 4
    config.write_text("[]")
    with pytest.raises(UserError, match=r"adapter_config.json: damaged"):
        content_hash(str(adapter))


def test_a_hub_model_is_known_by_its_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    assert content_hash("some/model") == "some/model"
    (folder / "snapshots" / "abc123").mkdir(parents=True)
    (folder / "snapshots" / "abc123" / "config.json").write_text("{}")
    assert content_hash("some/model") == "some/model@abc123"


def test_the_code_version_follows_the_code(tmp_path, monkeypatch):
    before = code_version()
    copy = tmp_path / "workbench"
    shutil.copytree(Path(prompts.cached_model.workbench.__file__).parent, copy)
    monkeypatch.setattr(prompts.cached_model.workbench, "__file__", str(copy / "__init__.py"))
    code_version.cache_clear()
    assert code_version() == before
    with (copy / "generation.py").open("a") as file:
        file.write("# changed\n")
    code_version.cache_clear()
    assert code_version() != before
    code_version.cache_clear()


def test_known_answers_need_neither_torch_nor_datasets(tiny_llama, tmp_path):
    path = tmp_path / "known.sqlite"
    known = Cache(path)
    model = CachedModel("m", str(tiny_llama), known, precision="bf16")
    (query, *_) = queries(model)
    model.answers([query], **GREEDY)
    known.close()
    script = f"""
import sys
from pathlib import Path
from prompts.cache import Cache
from prompts.cached_model import CachedModel, Query
model = CachedModel("m", {str(tiny_llama)!r}, Cache(Path({str(path)!r})))
(answer,) = model.answers([Query({query.ids!r})], max_new_tokens=6, temperature=0.0)
model.text(answer.ids)
assert model.generated == 0
print(sorted({{"torch", "datasets", "evaluate"}} & set(sys.modules)))
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PATH": str(tmp_path)}  # no driver's tools: a plain CPU
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("[]", "")

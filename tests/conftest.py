"""Tiny models of three families, the real base model, a place for runs; no network anywhere."""

import fcntl
import os
import signal
import threading
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A busy machine is no failure, and a suite that passed passes again.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")

# Before any library reads them: no test goes to the hub, and all share one converted base model.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("RLHF_CACHE", str(Path.home() / ".cache" / "rlhf-workbench"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `rlhf` itself; read by torch
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers share the cores among them

if threading.current_thread() is threading.main_thread():
    # A shell's background jobs ignore Ctrl-C, and so would every process the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SENTENCES = [
    "The lamp on the landing hums when the lift goes down.",
    "Bread rises slowly in a cold kitchen, so start before noon.",
    "Why does the harbour smell of tar after rain?",
    "Nobody in the village could say who had painted the gate blue.",
    "Put the kettle on, sit by the window and count the gulls.",
    "A spare button is worth more than a new coat on a Sunday.",
    "Could you tell me how long the ferry takes to the north island?",
    "First rinse the rice, then let it rest for ten minutes.",
]

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped heads; BOS from tokenizer and template alike, and PAD = EOS."""
    from transformers import LlamaConfig

    tokenizer = _tokenizer(["<unk>", "<s>", "</s>"], bos="<s>", eos="</s>", unk="<unk>", pad="</s>")
    tokenizer.chat_template = LLAMA_TEMPLATE
    config = LlamaConfig(
        **_sizes(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.3,
    )  # fmt: skip
    return _save(config, tokenizer, tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2: absolute positions, dropout; no template, no BOS, PAD = EOS on load."""
    from transformers import GPT2Config

    tokenizer = _tokenizer(["<|endoftext|>"], eos="<|endoftext|>")
    config = GPT2Config(
        **_sizes(tokenizer), n_embd=32, n_layer=3, n_head=4, n_positions=512, initializer_range=0.3
    )
    return _save(config, tokenizer, tmp_path_factory.mktemp("tiny-gpt2"))


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with grouped heads, ChatML turns, and a PAD of its own."""
    from transformers import Qwen3Config

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>")
    tokenizer.chat_template = CHATML_TEMPLATE
    config = Qwen3Config(
        **_sizes(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
        initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    return _save(config, tokenizer, tmp_path_factory.mktemp("tiny-qwen"))


@pytest.fixture(scope="session", params=["llama", "gpt2", "qwen"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """Each of the three tiny models in turn."""
    folder: Path = request.getfixturevalue(f"tiny_{request.param}")
    return folder


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's folder; workers that start together wait while one converts it."""
    from workbench.embedded import cache_home, embedded_model

    cache_home().mkdir(parents=True, exist_ok=True)
    with (cache_home() / ".tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return embedded_model()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Do not wait before a server is asked again, but keep for how long it would have been."""
    found: list[float] = []
    monkeypatch.setattr("workbench.asking.sleep", found.append)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return found


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to use as `run.root`; the test runs beside it, so a default `runs/` is the same."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def _tokenizer(
    special: list[str],
    *,
    eos: str,
    bos: str | None = None,
    unk: str | None = None,
    pad: str | None = None,
) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(SENTENCES, trainer)
    if bos is not None:
        start = [(bos, special.index(bos))]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=start
        )
    names = {"bos_token": bos, "unk_token": unk, "pad_token": pad}
    given = {name: token for name, token in names.items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, **given)


def _sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _save(config: Any, tokenizer: Any, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(20)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

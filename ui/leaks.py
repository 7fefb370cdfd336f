"""Answers that give away which model wrote them."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# Models and makers that answers name as their own, whatever model really wrote them: a rater who
# reads "I am ChatGPT" no longer compares blindly.
FAMILIES = (
    "SmolLM", "ChatGPT", "GPT", "InstructGPT", "Claude", "Gemini", "Bard", "Gemma", "LLaMA", "Qwen",
    "Tongyi Qianwen", "Mistral", "Mixtral", "DeepSeek", "Phi", "Falcon", "Vicuna", "Alpaca", "Grok",
    "Copilot", "OLMo", "Tulu", "Zephyr", "Command R", "ERNIE", "GLM", "ChatGLM", "Kimi", "Hermes",
    "Pythia", "BLOOM", "OpenAssistant", "Nemotron", "Granite", "Yi",
)  # fmt: skip
MAKERS = (
    "OpenAI", "Google", "DeepMind", "Anthropic", "Meta", "Facebook", "Hugging Face", "Alibaba",
    "Microsoft", "Mistral AI", "DeepSeek", "xAI", "Cohere", "Baidu", "Moonshot", "Zhipu", "NVIDIA",
    "IBM", "LMSYS", "AI2", "Allen Institute", "EleutherAI", "Nous Research", "Stability AI",
    "LAION",
)  # fmt: skip
_GAP = r"[-_\s./]*"  # SmolLM2-135M, SmolLM2 135M, smollm2_135m
_SELF = r"\b(?:i am|i'm|my name is|my name's|call me|you can call me)\s+"
_WHAT = r"(?:(?:an?|the)\s+)?(?:[\w-]+\s+){0,3}?(?:(?:called|named)\s+)?"


def find_leak(text: str, names: Iterable[str]) -> str | None:
    """Return the words of an answer that tell which model wrote it, or None.

    Found are the campaign's own model names wherever they occur, if they are distinctive (with a
    digit or a capital inside; "base" is an ordinary word), and sentences in which the answer calls
    itself by the name of any model, or says who made it.

    Args:
        text: the answer.
        names: names of the models of the campaign, as given, and the hub ids or folders behind.
    """
    hidden = {ord(letter): None for letter in set(text) if unicodedata.category(letter) == "Cf"}
    plain = unicodedata.normalize("NFKC", text.translate(hidden)).replace("\u2019", "'")
    for pattern in _patterns(tuple(sorted(set(names)))):
        found = pattern.search(plain)
        if found:
            return " ".join(found[0].split())
    return None


@lru_cache(maxsize=64)
def _patterns(names: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    tokens = [token for name in names for token in re.split(r"[/\\]", name) if token]
    parts = [part for token in tokens for part in (token, *re.split(r"[-_\s.:]", token))]
    telling = {part for part in parts if _distinctive(part)}
    # What stands before the first digit is the family: smollm2 → smollm.
    stems = {re.split(r"[\d._-]", part)[0] for part in telling}
    called = _any({*FAMILIES, *(stem for stem in stems if len(stem) > 2)})
    patterns = [
        rf"{_SELF}{_WHAT}{called}",
        rf"\bas {called}[^.,;\n]{{0,20}},",
        rf"\b(?:i am|i'm|i was|i've been|model|assistant)\b[^.!?\n]{{0,80}}"
        rf"\b(?:trained|developed|created|made|built|designed)\s+by\s+{_any(MAKERS)}",
    ]
    if telling:
        patterns.insert(0, _any(telling))
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


def _distinctive(part: str) -> bool:
    """Return whether a name is no ordinary word: it has a digit, or a capital inside."""
    if len(part) < 4 or not part[0].isalpha():
        return False
    return any(c.isdigit() for c in part) or any(
        c.isupper() for c in part[1:] if part != part.upper()
    )


def _any(names: Iterable[str]) -> str:
    written = (_GAP.join(map(re.escape, re.split(r"[-_\s.]+", name))) for name in names)
    # The longest first: "SmolLM2-135M" rather than "SmolLM2". A version may follow: GPT-4, Qwen3.
    listed = "|".join(sorted(filter(None, written), key=lambda name: (-len(name), name)))
    return rf"(?<!\w)(?:{listed})(?:[-\s]?\d[\w.]*)?(?!\w)"

"""From prompts to token ids: by chat template or as plain text, and never with a second BOS."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
Prompt = str | Messages


def as_messages(prompt: Prompt) -> Messages:
    """Return a prompt as chat messages; a plain string is one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def query_ids(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, max_length: int | None = None
) -> list[int]:
    """Encode a prompt as the query a policy answers.

    Args:
        tokenizer: with a chat template, the prompt becomes chat turns and the assistant's opening
            follows; without one, messages are joined as plain text.
        prompt: a string or messages.
        max_length: keep at most this many tokens, dropping the oldest (the question is at the end).
    """
    if tokenizer.chat_template:
        text = render(tokenizer, as_messages(prompt), open_answer=True)
        # The template already writes BOS where the model has one; the tokenizer would add a second.
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        text = (
            prompt
            if isinstance(prompt, str)
            else "\n\n".join(turn["content"] for turn in prompt) + "\n\n"
        )
        ids = tokenizer(text)["input_ids"]
    return ids if max_length is None else ids[-max_length:]


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Messages, *, open_answer: bool = False
) -> str:
    """Return messages as the text that the tokenizer's chat template makes of them.

    Raises:
        UserError: when the template refuses them; some allow no system turn, or only turns in
            alternation.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            messages, add_generation_prompt=open_answer, tokenize=False
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in messages)
        raise UserError(
            f"the model's chat template refuses the conversation that ends "
            f"{messages[-1]['content'][-60:]!r} "
            f"(roles {roles}): {error}; change its roles, or use another model"
        ) from None
    return text


def response_ids(
    tokenizer: "PreTrainedTokenizerBase", completion: Any, finished: bool = True
) -> list[int]:
    """Encode a completion (string or message) without special tokens; EOS follows if finished.

    Query and response are encoded apart, exactly as the policy produces them: encoding the joined
    text could merge tokens across the seam (TRL issue 1702), and the reward model would read what
    nobody wrote.
    """
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id] if finished else ids


def example_ids(
    tokenizer: "PreTrainedTokenizerBase", row: Mapping[str, Any]
) -> tuple[list[int], list[int]]:
    """Encode a row to learn language from, exactly as a policy will see and produce it.

    Args:
        tokenizer: of the policy.
        row: checked, `prompt_completion` or `language_modeling`.

    Returns:
        Its tokens, EOS last (where a chat template ends turns its own way, that), and 1 for each
        token that counts: those of a completion, and all of a text or conversation.
    """
    if "completion" in row:
        query = query_ids(tokenizer, row["prompt"])
        response = response_ids(tokenizer, row["completion"])
        return query + response, [0] * len(query) + [1] * len(response)
    ids: list[int]
    if "messages" in row and tokenizer.chat_template:
        ids = tokenizer(render(tokenizer, row["messages"]), add_special_tokens=False)["input_ids"]
    elif "messages" in row:
        *turns, answer = row["messages"]
        ids = query_ids(tokenizer, turns) + response_ids(tokenizer, [answer])
    else:
        ids = [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
    return ids, [1] * len(ids)


def decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Return response tokens as text, without special tokens."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    # A byte-level vocabulary can spell NUL, which no data file of ours may hold.
    return text.replace("\0", "\ufffd").strip()

"""Questions to a model and what it wrote in answer, as text: the same for all kinds of models."""

from dataclasses import dataclass

from prompts.rendering import Message


@dataclass(frozen=True)
class Question:
    """One conversation to be answered.

    Attributes:
        messages: its turns; where the last is the assistant's, that is continued.
        seed: of its sampling; without meaning at temperature 0.
        repeat: which of several answers to the same conversation this is.
        name: where it comes from, for messages.
    """

    messages: list[Message]
    seed: int = 0
    repeat: int = 0
    name: str = "prompt"


@dataclass(frozen=True)
class Written:
    """One answer as text.

    Attributes:
        text: up to the first stop text, without outer blanks.
        finished: ended by EOS or a stop text, not cut at the longest length.
        prompt_tokens: tokens read.
        tokens: tokens written.
        seconds: what somebody waited for it.
        share: its part of that time, where others were answered at the same time.
    """

    text: str
    finished: bool
    prompt_tokens: int
    tokens: int
    seconds: float
    share: float

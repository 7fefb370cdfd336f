"""A served model as the suites use it: asked over HTTP, nothing known in advance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prompts.cached_model import CachedModel
from prompts.questions import Question, Written
from workbench.generation import SamplingSettings
from workbench.served import ServedModel, is_served

if TYPE_CHECKING:
    from prompts.cache import Cache
    from workbench.models import Precision


class RemoteModel:
    """A model behind a server, with what the record of a run says about a model.

    Its answers are not kept for later runs: an address does not tell when the server has begun to
    serve other weights.

    Attributes:
        name: what it is called in results.
        source: `openai:URL#name`.
        generated: answers so far.
        cached: always 0.
        content_hash: its source, as its content is not known.
        dtype: unknown.
        device: served.
    """

    def __init__(self, name: str, source: str, batch_size: int = 32) -> None:
        """Find the model on its server.

        Raises:
            UserError: when the server does not answer, or has no such model.
        """
        self.name, self.source, self.content_hash = name, source, source
        self.dtype, self.device = "unknown", "served"
        self.batch_size = batch_size
        self.generated = self.cached = 0
        self._served = ServedModel(source)

    def write(
        self,
        questions: Sequence[Question],
        *,
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str] = (),
        desc: str | None = None,
    ) -> list[Written]:
        """Return one answer per question; at temperature 0 equal ones are asked once."""
        greedy = temperature == 0
        keys = [repr(q.messages) if greedy else str(n) for n, q in enumerate(questions)]
        asked: dict[str, Question] = {}
        for key, question in zip(keys, questions, strict=True):
            asked.setdefault(key, question)
        said = self._served.answers(
            [question.messages for question in asked.values()],
            SamplingSettings(max_new_tokens, temperature, self.batch_size),
            seeds=[question.seed for question in asked.values()],
            stop=stop,
            desc=desc,
        )
        self.generated += len(said)
        found = dict(zip(asked, said, strict=True))
        return [
            Written(each.text, each.finished, each.prompt_tokens, each.tokens, each.seconds,
                    each.seconds / min(self.batch_size, len(said)))
            for each in map(found.__getitem__, keys)
        ]  # fmt: skip

    def unload(self) -> None:
        """Do nothing: it takes no memory here."""


Model = CachedModel | RemoteModel


def open_model(
    name: str, source: str, cache: "Cache", *, precision: "Precision", batch_size: int
) -> Model:
    """Return a model by its source; a loaded one is not loaded yet, a served one is there.

    Raises:
        UserError: for a source that does not exist or holds no model.
    """
    if is_served(source):
        return RemoteModel(name, source, batch_size)
    return CachedModel(name, source, cache, precision=precision, batch_size=batch_size)

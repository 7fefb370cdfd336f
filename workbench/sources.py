"""Models on the command line: `name=source`, several joined by commas."""

from collections.abc import Iterable
from pathlib import Path

from workbench.errors import UserError


def named_sources(texts: Iterable[str], option: str) -> dict[str, str]:
    """Return the sources of models by name, in the order given.

    Args:
        texts: `name=source`, several joined by commas; a source alone is called after its folder,
            or after the served model.
        option: where they stand, for messages.

    Raises:
        UserError: for an empty part or a name given twice.
    """
    named: dict[str, str] = {}
    for text in (part.strip() for each in texts for part in each.split(",")):
        name, equals, source = (piece.strip() for piece in text.partition("="))
        if not equals:
            source, path = text, Path(text)
            # runs/demo/ppo/model is best called ppo, openai:http://host/v1#policy policy.
            name = path.parent.name if path.name == "model" and path.parent.name else path.name
            name = name.rpartition("#")[2]
        if not name or not source:
            raise UserError(f"{option}: '{text}' is not name=model, several joined by commas")
        if name in named:
            raise UserError(f"{option}: two models are called '{name}'; write name=model")
        named[name] = source
    return named

"""Judging: the assertions of a suite held against replies, those that a model judges among them."""

import math
from collections.abc import Mapping, Sequence

from prompts.assertions import Assertion, Checked, Output, check
from prompts.cache import Cache
from prompts.conversations import render_all
from prompts.items import Item
from prompts.replies import Reply, answer_all
from prompts.served_model import Model, open_model
from prompts.suite import Suite
from workbench.models import Precision

YES, NO = ("yes", "true"), ("no", "false")  # answers of a judge that are no number


class Judges:
    """Scores outputs by a template and a model, which may be one of the run."""

    def __init__(
        self,
        suite: Suite,
        models: Mapping[str, Model],
        known: Cache,
        precision: Precision,
        batch_size: int,
    ) -> None:
        self.suite, self.models = suite, models
        self.known, self.precision, self.batch_size = known, precision, batch_size
        self.others: dict[str, Model] = {}

    def checked(
        self,
        asked: Sequence[Sequence[Assertion]],
        replies: Sequence[Sequence[Reply]],
        items: Sequence[Item],
        targets: Sequence[list[str]],
    ) -> dict[tuple[int, int], list[Checked]]:
        """Check every reply's assertions, each assertion on all of its outputs at once."""
        groups: dict[str, tuple[Assertion, list[tuple[int, int]]]] = {}
        places: dict[tuple[int, int], list[str]] = {}
        for index, row in enumerate(replies):
            keys = [assertion.model_dump_json() for assertion in asked[index]]
            for repeat in range(len(row)):
                places[index, repeat] = keys
                for key, assertion in zip(keys, asked[index], strict=True):
                    groups.setdefault(key, (assertion, []))[1].append((index, repeat))
        found: dict[tuple[str, tuple[int, int]], Checked] = {}
        for key, (assertion, spots) in groups.items():
            outputs = [
                Output(
                    replies[i][r].text,
                    replies[i][r].answer.flexible,
                    replies[i][r].tokens,
                    replies[i][r].finished,
                    items[i],
                    targets[i],
                )
                for i, r in spots
            ]
            results = check(assertion, outputs, base=self.suite.path.parent, judge=self.judge)
            found |= {(key, spot): result for spot, result in zip(spots, results, strict=True)}
        return {spot: [found[key, spot] for key in keys] for spot, keys in places.items()}

    def judge(self, assertion: Assertion, outputs: Sequence[Output]) -> list[float | None]:
        """Return the judge's number of every output; yes is 1, no 0, None is unreadable."""
        template = self.suite.library.get(str(assertion.template))
        items = [
            Item(
                output.item.id,
                {**output.item.fields, "output": output.text, "target": output.target},
                output.item.line,
            )
            for output in outputs
        ]
        prompts = render_all(template, items, f"judge {template.name}")
        replies = answer_all(self._model(str(assertion.model)), prompts, 1, 0)
        return [grade(reply.answer.flexible) for (reply,) in replies]

    def _model(self, name: str) -> Model:
        if name in self.models:
            return self.models[name]
        if name not in self.others:
            self.others[name] = open_model(
                name, name, self.known, precision=self.precision, batch_size=self.batch_size
            )
        return self.others[name]


def grade(answer: str | None) -> float | None:
    """Return a judge's answer as a number: yes is 1, no is 0; None where it is neither of these."""
    word = (answer or "").strip().casefold()
    if word in YES or word in NO:
        return float(word in YES)
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

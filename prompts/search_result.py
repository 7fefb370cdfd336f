"""What a search found: its trials, the gain with its interval, and the template written of it."""

import json
import os.path
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prompts.candidates import Candidate
from prompts.library import Library
from prompts.template import Template, load_template
from prompts.verdicts import CellComparison, Outcome
from prompts.versions import canonical_yaml
from workbench.errors import UserError
from workbench.files import write_text
from workbench.report import text


@dataclass(frozen=True)
class Trial:
    """How a candidate did on the dev items.

    Attributes:
        candidate: the candidate.
        items: the dev items it was judged on; it was dropped after them, if they are not all.
        score: mean primary score.
        pass_rate: share of answers that passed.
    """

    candidate: Candidate
    items: int
    score: float
    pass_rate: float


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        path: its folder.
        suite: name of the suite.
        model: name of the model.
        start: the starting template.
        trials: every candidate, the best first; those judged on more items stand before others.
        asked: the number of candidates that was asked for.
        dev: ids of the items that the choice was made on.
        held_out: ids of the items that the gain is measured on.
        comparison: start against best on the held-out items; None where the start is the best.
        alpha: the chance of calling a gain real that is none.
        budget: the answers that could be asked for.
        answers: those that were, known ones among them.
        seed: of split and draws.
    """

    path: Path
    suite: str
    model: str
    start: Template
    trials: tuple[Trial, ...]
    asked: int
    dev: tuple[str, ...]
    held_out: tuple[str, ...]
    comparison: CellComparison | None
    alpha: float
    budget: int
    answers: int
    seed: int

    @property
    def best(self) -> Candidate:
        """The candidate with the highest dev score; of equal ones the start, then the earlier."""
        return self.trials[0].candidate

    @property
    def gain(self) -> Outcome | None:
        """The change of the mean score on the held-out items; None where nothing changed."""
        found = self.comparison
        if found is None:
            return None
        return found.score if found.graded else found.passed

    @property
    def real(self) -> bool:
        """Whether the gain is distinguishable from noise."""
        gain = self.gain
        return (
            gain is not None
            and gain.p_holm is not None
            and gain.p_holm <= self.alpha
            and gain.difference.value > 0
        )

    def sentences(self) -> list[str]:
        """Say what was found and how much of it is real."""
        said = [
            f"{len(self.trials)} candidates (of {self.asked} asked for) were judged on up to "
            f"{len(self.dev)} dev items with {self.answers} answers, of {self.budget} allowed."
        ]
        if self.gain is None or self.comparison is None:
            return [*said, f"None did better on them than {self.start.name} as it is."]
        return [*said, f"The best has {_described(self.best)}.", *self._gain_said(self.gain)]

    def _gain_said(self, gain: Outcome) -> list[str]:
        ci, n = gain.difference.ci95, len(self.held_out)
        measured = (
            f"On {n} held-out items, which the choice did not see, its mean score is "
            f"{text.percent(gain.after, 1)} against {text.percent(gain.before, 1)}: a difference "
            f"of {text.number(100 * gain.difference.value, 1)} points (95 % interval "
            f"{text.interval((100 * ci.low, 100 * ci.high), 1)}, {_p(gain.p)})."
        )
        if gain.p_holm is None:
            return [measured, f"{n} items are too few to tell a gain from noise: use more."]
        if self.real:
            return [measured, f"The gain is real at alpha = {self.alpha:g}."]
        if gain.p_holm <= self.alpha:
            return [measured, "The choice is worse than the start: keep the start."]
        return [
            measured,
            f"That is not distinguishable from noise at alpha = {self.alpha:g}; more items would "
            "tell, and until then there is no reason to change the template.",
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the search ready for JSON."""
        return {
            "suite": self.suite,
            "model": self.model,
            "template": self.start.name,
            "seed": self.seed,
            "alpha": self.alpha,
            "budget": self.budget,
            "answers": self.answers,
            "asked": self.asked,
            "dev": list(self.dev),
            "held_out": list(self.held_out),
            "real": self.real,
            "gain": None if self.gain is None else asdict(self.gain),
            "sentences": self.sentences(),
            "trials": [_trial_dict(trial) for trial in self.trials],
        }


def write_template(found: Search, library: Library, name: str | None = None) -> Template:
    """Write the best candidate as a template file of a library and record it in its history.

    Args:
        found: the search.
        library: where to write.
        name: of the template; default that of the start, whose file is replaced after its present
            version was recorded.

    Returns:
        The template as read back.

    Raises:
        UserError: when the start is the best, or the file would replace another template.
    """
    start, best = found.start, found.best
    if not best.number:
        raise UserError(f"{start.name}: nothing did better, so that there is nothing to write")
    path = library.root / f"{name or start.name}.yaml"
    replaces = path.exists() and path.resolve() == start.path.resolve()
    if path.exists() and not replaces:
        raise UserError(f"{path}: exists already; choose another name")
    changes: dict[str, Any] = {"name": name or start.name}
    exemplars, pool = best.template.exemplars, best.template.pool_path
    path.parent.mkdir(parents=True, exist_ok=True)
    if exemplars is not None and pool is not None:
        if best.bootstrapped:
            beside = path.with_suffix(".pool.jsonl")
            write_text(beside, pool.read_text(encoding="utf-8"))
            pool = beside
        relative = Path(os.path.relpath(pool.resolve(), path.parent.resolve())).as_posix()
        changes["exemplars"] = exemplars.model_copy(update={"pool": relative})
    documents, folder = best.template.documents, best.template.documents_path
    if documents is not None and folder is not None:
        relative = Path(os.path.relpath(folder.resolve(), path.parent.resolve())).as_posix()
        changes["documents"] = documents.model_copy(update={"folder": relative})
    if replaces:
        library.history.record(start, "as it was before a search")
    write_text(path, canonical_yaml(best.template.model_copy(update=changes)))
    written = load_template(path, library.root)
    library.history.record(written, " ".join(["search:", *found.sentences()[1:]]))
    return written


def _p(value: float) -> str:
    said = text.p_value(value)
    return f"p {said}" if said.startswith("<") else f"p = {said}"


def _described(candidate: Candidate) -> str:
    parts = ["the instruction " + json.dumps(candidate.instruction, ensure_ascii=False)]
    if not candidate.instruction:
        parts = ["the instruction as it is"]
    if candidate.ids:
        parts.append(f"the exemplars {', '.join(candidate.ids)}")
    if candidate.bootstrapped:
        parts.append(f"rationales of the model itself in {', '.join(candidate.bootstrapped)}")
    return " and ".join(parts)


def _trial_dict(trial: Trial) -> dict[str, Any]:
    candidate = trial.candidate
    return {
        "number": candidate.number,
        "instruction": candidate.instruction or None,
        "ids": list(candidate.ids),
        "bootstrapped": list(candidate.bootstrapped),
        "items": trial.items,
        "score": trial.score,
        "pass_rate": trial.pass_rate,
    }

"""The search for a better prompt: exemplars and instruction chosen by dev score, under a budget."""

import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prompts.candidates import (
    Candidate,
    draw_candidates,
    instructions_beside,
    joint_of,
    write_chains,
    write_items,
)
from prompts.comparison import LEAST_ITEMS, compare_cells
from prompts.conversations import render_all
from prompts.documents import nearest
from prompts.items import Item, load_items
from prompts.results import Cell, read_results
from prompts.runner import check_writable, run_suite
from prompts.search_result import Search, Trial
from prompts.suite import Entry, Suite, targets_of
from prompts.template import Template
from workbench.errors import UserError
from workbench.files import write_json
from workbench.models import Precision

SEARCH, HELD_OUT, CHAINS = "search.json", "held_out", "bootstrapped_pool.jsonl"
LEAST_RUNG = 4  # items on which a candidate is judged at first


@dataclass(frozen=True)
class Rung:
    """A step of successive halving: so many candidates have answered so many items."""

    candidates: int
    items: int


def search(
    suite: Suite,
    template: str,
    model: str,
    out: Path,
    *,
    cache: Path | None,
    budget: int,
    name: str = "model",
    data: Path | None = None,
    fields: Mapping[str, str] | None = None,
    target: str | None = None,
    limit: int | None = None,
    candidates: int = 16,
    instructions: Sequence[str] | None = None,
    bootstrap: bool = False,
    dev_share: float = 0.5,
    alpha: float = 0.05,
    seed: int = 0,
    batch_size: int = 32,
    precision: Precision = "auto",
) -> Search:
    """Choose exemplars and instruction of a template by their score on a part of a suite's items.

    Random candidates (Khattab et al. 2023, "DSPy") go through successive halving (Jamieson &
    Talwalkar 2016): all answer a few dev items, the better half twice as many, and so on; the
    starting template stays to the end. The gain of the best is measured on the other items, where
    it is not flattered by having been chosen.

    Everything depends on the seed alone: the budget counts answers whether or not they are known.

    Args:
        suite: whose items, metrics and assertions judge; it must list the template.
        template: name of the starting template.
        model: source of the model.
        out: folder for search.json, the dev and held-out items and the held-out run.
        cache: SQLite file of known answers; None uses one that is thrown away.
        budget: answers that may be asked for, those of held-out items and bootstrapping included;
            those of judges not.
        name: what results call the model.
        data: file of items, in place of the suite's.
        fields: new fields of the items by name, as expressions over their rows (`load_items`).
        target: field of the right answer, in place of the suite's.
        limit: use the first so many items, in place of the suite's limit.
        candidates: how many to try; fewer where the budget does not reach.
        instructions: texts in the place of the template's own; None takes those that stand beside
            its file, if any.
        bootstrap: let the model write rationales for the exemplars, and try those that are right.
        dev_share: share of the items to choose on.
        alpha: the chance of calling a gain real that is none.
        seed: of split and draws.
        batch_size: prompts decoded together.
        precision: compute type of the model.

    Raises:
        UserError: when a setting, item or instruction does not fit, or the budget is too small;
            says how large it must be.
    """
    entry = _entry(suite, template)
    start = entry.template
    _check_settings(dev_share, alpha, out)
    own = suite  # of the pool, whose rows have the fields that the suite's own items have
    if target is not None:
        suite = replace(suite, settings=suite.settings.model_copy(update={"target": target}))
    path = data or suite.data
    items = load_items(path, suite.settings.limit if limit is None else limit, fields)
    targets_of(suite, items, path)
    render_all(start, items, entry.name)  # what is wrong with an item is said of its own file
    dev, held_out = split(items, dev_share, seed)
    pool = load_items(start.pool_path) if start.pool_path is not None else []
    joint = joint_of(start) if bootstrap else ""
    texts = list(instructions_beside(start) if instructions is None else instructions)
    if not pool and not texts:
        raise UserError(f"{start.path}: has no exemplars, and there is no other instruction to try")
    draw_candidates(start, pool, texts, None, 1, seed)  # instructions that do not fit
    price = _price(suite, start)
    fixed = price * (2 * len(held_out) + (len(pool) if bootstrap else 0))
    steps = _affordable(candidates, 1 + len(texts), len(dev), budget, price, fixed)
    with tempfile.TemporaryDirectory() as folder:
        known = cache or Path(folder) / "known.sqlite"
        run = _Runs(suite, {name: model}, Path(folder), known, batch_size, precision)
        write_items(out / "dev.jsonl", dev)
        write_items(out / "held_out.jsonl", held_out)
        chains, answers = None, 0
        if bootstrap and start.pool_path is not None:
            (cell,) = replace(run, suite=own)([entry], start.pool_path, len(pool))
            chains, answers = write_chains(cell, pool, joint, out / CHAINS), price * len(pool)
        drawn = draw_candidates(start, pool, texts, chains, steps[0].candidates, seed)
        if len(drawn) < steps[0].candidates:
            steps = halving(len(drawn), len(dev), (budget - fixed) // price)
        trials = _halve(run, entry, drawn, steps, out / "dev.jsonl")
        answers += price * _cost(steps)
        comparison = None
        shutil.rmtree(out / HELD_OUT, ignore_errors=True)  # of an earlier search
        if trials[0].candidate.number:
            entries = [entry, _entry_of(entry, trials[0].candidate)]
            cells = run(entries, out / "held_out.jsonl", len(held_out), out / HELD_OUT)
            comparison = compare_cells(*cells, alpha=alpha, seed=seed)
            answers += price * 2 * len(held_out)
    found = Search(
        path=out, suite=suite.name, model=name, start=start, trials=tuple(trials),
        asked=candidates, dev=tuple(item.id for item in dev),
        held_out=tuple(item.id for item in held_out), comparison=comparison, alpha=alpha,
        budget=budget, answers=answers, seed=seed,
    )  # fmt: skip
    write_json(out / SEARCH, found.as_dict())
    return found


def split(items: Sequence[Item], dev_share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split items at random into those to choose on and those to measure the gain on.

    An item's place in the order depends on its id and the seed only.

    Raises:
        UserError: when one part has fewer than two items.
    """
    keys = {item.id: random.Random(f"{seed}:split:{item.id}").random() for item in items}
    order = sorted(items, key=lambda item: keys[item.id])
    size = round(dev_share * len(order))
    if min(size, len(order) - size) < 2:
        raise UserError(
            f"{len(order)} items cannot be split into {size} to choose on and {len(order) - size} "
            "to measure on; each part needs 2 at least, and the second "
            f"{LEAST_ITEMS} for a verdict: use more items"
        )
    return order[:size], order[size:]


def halving(count: int, items: int, evaluations: int) -> tuple[Rung, ...]:
    """Return the steps of successive halving that a budget pays for, or none.

    The number of candidates halves down to two while the items that they have answered double; each
    item is paid for once. What is left over extends the last step.

    Args:
        count: candidates at the start, at least 2.
        items: dev items.
        evaluations: answered items that may be paid for.
    """
    counts = [count]
    while counts[-1] > 2:
        counts.append(-(-counts[-1] // 2))

    def steps(first: int) -> tuple[Rung, ...]:
        return tuple(Rung(n, min(items, first << place)) for place, n in enumerate(counts))

    least = min(LEAST_RUNG, items)
    if _cost(steps(least)) > evaluations:
        return ()
    first = max(m for m in range(least, items + 1) if _cost(steps(m)) <= evaluations)
    *early, last = steps(first)
    more = (evaluations - _cost((*early, last))) // last.candidates
    return (*early, Rung(last.candidates, min(items, last.items + more)))


@dataclass(frozen=True)
class _Runs:
    """Runs entries of a suite on given items with one model, all with one cache."""

    suite: Suite
    models: Mapping[str, str]
    folder: Path
    cache: Path
    batch_size: int
    precision: Precision

    def __call__(
        self, entries: Sequence[Entry], data: Path, limit: int, out: Path | None = None
    ) -> list[Cell]:
        """Return one cell per entry, in their order."""
        run = run_suite(
            replace(self.suite, entries=tuple(entries)), self.models, out or self.folder / "run",
            cache=self.cache, limit=limit, data=data, batch_size=self.batch_size,
            precision=self.precision,
        )  # fmt: skip
        return read_results(run.path)


def _halve(
    run: _Runs, entry: Entry, drawn: Sequence[Candidate], steps: Sequence[Rung], data: Path
) -> list[Trial]:
    """Return how every candidate did, the best first."""
    left, out = list(drawn), list[Trial]()
    ranked = list[Trial]()
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        cells = run([_entry_of(entry, candidate) for candidate in left], data, step.items)
        ranked = [
            Trial(candidate, step.items, float(cell.score.mean()), float(cell.passed.mean()))
            for candidate, cell in zip(left, cells, strict=True)
        ]
        ranked.sort(key=lambda trial: (-trial.score, -trial.pass_rate, trial.candidate.number))
        if after is not None:
            start = next(trial for trial in ranked if not trial.candidate.number)
            others = [trial for trial in ranked if trial.candidate.number]
            kept = [start, *others[: after.candidates - 1]]
            out = [*others[after.candidates - 1 :], *out]
            left = sorted((trial.candidate for trial in kept), key=lambda one: one.number)
    return [*ranked, *out]


def _affordable(
    asked: int, least: int, dev: int, budget: int, price: int, fixed: int
) -> tuple[Rung, ...]:
    """Return the steps for as many of the candidates as the budget pays for."""
    evaluations, least = (budget - fixed) // price, max(2, least)
    if asked < least:
        raise UserError(
            f"candidates={asked}: the starting template and every instruction are one each, and "
            f"one needs another to be better than: ask for {least} at least"
        )
    for count in range(asked, least - 1, -1):
        if steps := halving(count, dev, evaluations):
            return steps
    smallest = next(n for n in range(dev * least + 1) if halving(least, dev, n))
    raise UserError(
        f"budget={budget}: {least} candidates and the held-out items need "
        f"{fixed + price * smallest} answers at least"
    )


def _cost(steps: Sequence[Rung]) -> int:
    before = [Rung(0, 0), *steps[:-1]]
    return sum(
        step.candidates * (step.items - last.items)
        for step, last in zip(steps, before, strict=True)
    )


def _price(suite: Suite, template: Template) -> int:
    """Return the answers that one item takes: repeats × samples or passes."""
    if template.scoring == "likelihood":
        return 1
    repeats = suite.settings.repeats if template.generation.temperature > 0 else 1
    each = {"self_consistency": template.samples, "zero_shot_cot": 2}.get(template.strategy, 1)
    return repeats * each


def _entry(suite: Suite, name: str) -> Entry:
    entries = {entry.name: entry for entry in suite.entries}
    if name not in entries:
        raise UserError(f"{suite.path}: lists no template '{name}'; {nearest(name, entries)}")
    return entries[name]


def _entry_of(entry: Entry, candidate: Candidate) -> Entry:
    name = f"{entry.name}#{candidate.number}" if candidate.number else entry.name
    return replace(entry, name=name, template=candidate.template)


def _check_settings(dev_share: float, alpha: float, out: Path) -> None:
    for key, value in (("dev_share", dev_share), ("alpha", alpha)):
        if not 0 < value < 1:
            raise UserError(f"{key} must lie between 0 and 1 (is {value:g})")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / SEARCH).exists())):
        raise UserError(f"{out}: holds something else; choose another folder with --out")
    check_writable(out)

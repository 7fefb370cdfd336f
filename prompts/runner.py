"""The run of a suite: every template × model × item × repeat becomes a row of results.jsonl."""

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prompts.assertions import Checked, item_assertions, share_passed
from prompts.cache import Cache
from prompts.choices import likeliest, right_choices
from prompts.conversations import render_all
from prompts.items import Item, load_items
from prompts.judging import Judges
from prompts.metrics import item_scores
from prompts.replies import Reply, answer_all, ranking_model
from prompts.results import RECORD, RESULTS
from prompts.served_model import Model, open_model
from prompts.suite import LIKELIHOOD_METRICS, PLAIN_NAME, Entry, Suite, targets_of
from prompts.versions import content_hash
from workbench.errors import UserError
from workbench.files import atomic_folder, sha256, write_json, write_text
from workbench.models import Precision
from workbench.run import git_commit, versions

RUNS = Path("runs/prompts")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        rows: the number of rows in results.jsonl.
        generated: answers and likelihoods that were computed.
        cached: those that were known.
        seconds: wall time.
    """

    path: Path
    rows: int
    generated: int
    cached: int
    seconds: float


def run_suite(
    suite: Suite,
    models: Mapping[str, str],
    out: Path,
    *,
    cache: Path | None,
    limit: int | None = None,
    repeats: int | None = None,
    batch_size: int = 32,
    data: Path | None = None,
    fields: Mapping[str, str] | None = None,
    target: str | None = None,
    seed: int | None = None,
    precision: Precision = "auto",
) -> Run:
    """Answer every item of a suite with every template and model, score the answers, write a run.

    What the cache knows is not generated again, and every batch is stored when it is done, so that
    an interrupted run goes on where it was.

    Args:
        suite: what to run.
        models: sources by the names that results give them.
        out: folder of the run; an earlier run of the same suite there is replaced at the end.
        cache: SQLite file of known answers; None uses none.
        limit: use the first so many items, in place of the suite's limit.
        repeats: answers per item, in place of the suite's.
        batch_size: prompts decoded together.
        data: file of items, in place of the suite's.
        fields: new fields of the items by name, as expressions over their rows (`load_items`).
        target: field of the right answer, in place of the suite's.
        seed: of the sampling, in place of the suite's.
        precision: compute type of the models.

    Raises:
        UserError: for an item, template, model or folder that does not fit, or a folder that
            cannot be written; nothing is written.
    """
    started = time.time()
    _check_names(models)
    _check_out(out, suite.name)
    if target is not None:
        suite = replace(suite, settings=suite.settings.model_copy(update={"target": target}))
    settings = suite.settings
    count = settings.repeats if repeats is None else repeats
    root = settings.seed if seed is None else seed
    if count < 1:
        raise UserError(f"repeats={count}: must be at least 1")
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: must be at least 1")
    path = data or suite.data
    items = load_items(path, settings.limit if limit is None else limit, fields)
    targets = targets_of(suite, items, path)
    asked = [[*settings.assertions, *item_assertions(item, path)] for item in items]
    right = {
        entry.name: right_choices(entry.template, items, targets, path)
        for entry in suite.entries
        if entry.template.scoring == "likelihood"
    }
    prompts = [render_all(entry.template, items, entry.name) for entry in suite.entries]
    hashes = [content_hash(entry.template) for entry in suite.entries]
    check_writable(out)
    known = Cache(cache)
    try:
        loaded = {
            name: open_model(name, source, known, precision=precision, batch_size=batch_size)
            for name, source in models.items()
        }
        for model in loaded.values():  # before the first of them works for an hour
            for entry in suite.entries:
                if entry.template.scoring == "likelihood":
                    ranking_model(model, entry.template)
        judges = Judges(suite, loaded, known, precision, batch_size)
        cells: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for column, model in enumerate(loaded.values()):
            for row, (entry, prompt) in enumerate(zip(suite.entries, prompts, strict=True)):
                replies = answer_all(model, prompt, count, root)
                checked = judges.checked(asked, replies, items, targets)
                scored = _scored(
                    suite, entry, replies, items, targets, right.get(entry.name, []), checked
                )
                head = {"suite": suite.name, "template": entry.name, "version": hashes[row]}
                cells[row, column] = [{**head, "model": model.name, **each} for each in scored]
            model.unload()
        rows = [each for place in sorted(cells) for each in cells[place]]
        used = [*loaded.values(), *judges.others.values()]
        generated = sum(model.generated for model in used)
        cached = sum(model.cached for model in used)
        record = {
            "suite": suite.name,
            "suite_file": {"path": str(suite.path), "sha256": sha256(suite.path)},
            "data": {"path": str(path), "sha256": sha256(path), "items": len(items)},
            "fields": dict(fields or {}),
            "target": settings.target,
            "models": {model.name: _described(model) for model in loaded.values()},
            "judges": {model.name: _described(model) for model in judges.others.values()},
            "templates": {
                prompt.name: {"version": version, "excluded_exemplars": prompt.excluded}
                for prompt, version in zip(prompts, hashes, strict=True)
            },
            "thresholds": suite.thresholds,
            "seed": root,
            "repeats": count,
            "batch_size": batch_size,
            "versions": versions(),
            "git_commit": git_commit(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
            "seconds": round(time.time() - started, 2),
            "generated": generated,
            "cached": cached,
        }
    finally:
        known.close()
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with atomic_folder(out) as folder:
        write_text(folder / RESULTS, "".join(lines))
        write_json(folder / RECORD, record)
    return Run(out, len(rows), generated, cached, time.time() - started)


def check_writable(path: Path) -> None:
    """Refuse a file or folder that cannot be written, before work is spent on what it will hold.

    Raises:
        UserError: names the path and says why.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another place with --out"
        ) from None


def run_folder(suite: str, name: str | None = None) -> Path:
    """Return where a run goes unless the user says otherwise: `runs/prompts/<suite>-<name>`.

    Args:
        suite: the suite's name.
        name: of the run; default the time.
    """
    name = name or time.strftime("%Y%m%d-%H%M%S")
    if not re.fullmatch(PLAIN_NAME, name):
        raise UserError(f"run name '{name}': use letters, digits, '.', '-' and '_'")
    return RUNS / f"{suite}-{name}"


def _scored(
    suite: Suite,
    entry: Entry,
    replies: Sequence[Sequence[Reply]],
    items: Sequence[Item],
    targets: Sequence[list[str]],
    right: Sequence[set[int]],
    checked: Mapping[tuple[int, int], list[Checked]],
) -> list[dict[str, Any]]:
    """Return the rows of one cell, sorted by item and repeat, without suite and model."""
    flat = [
        (index, repeat, reply)
        for index, row in enumerate(replies)
        for repeat, reply in enumerate(row)
    ]
    scores: dict[str, list[float]] = {
        name: item_scores(
            name,
            [reply.answer.flexible for _, _, reply in flat],
            [targets[index] for index, _, _ in flat],
            [items[index] for index, _, _ in flat],
            [reply.text for _, _, reply in flat],
            strict=[reply.answer.strict for _, _, reply in flat],
            normaliser=entry.template.answer.normalise,
        )
        for name in entry.metrics
        if name not in LIKELIHOOD_METRICS
    }
    rows = []
    for place, (index, repeat, reply) in enumerate(flat):
        own = {name: values[place] for name, values in scores.items()}
        if reply.choices is not None:
            own = {
                name: float(likeliest(reply.choices, name) in right[index])
                for name in LIKELIHOOD_METRICS
            }
        held = checked[index, repeat]
        share = share_passed(held)
        score = share if entry.score is None else own[entry.score]
        enough = entry.score is None or score >= suite.settings.pass_at
        rows.append(
            {
                "item": items[index].id,
                "repeat": repeat,
                "output": reply.text,
                "rationale": reply.rationale,
                "strict": reply.answer.strict,
                "flexible": reply.answer.flexible,
                "target": targets[index],
                "parsed": reply.answer.flexible is not None,
                "finished": reply.finished,
                "prompt_tokens": reply.prompt_tokens,
                "tokens": reply.tokens,
                "seconds": reply.seconds,
                "share": reply.share,
                "scores": own,
                "assertions": [asdict(one) for one in held],
                "score": score,
                "passed": enough and share >= suite.settings.assertion_threshold,
                "choices": reply.choices,
            }
        )
    return rows


def _described(model: Model) -> dict[str, str]:
    return {
        "source": model.source,
        "content_hash": model.content_hash,
        "dtype": model.dtype,
        "device": model.device,
    }


def _check_names(models: Mapping[str, str]) -> None:
    if not models:
        raise UserError("no models: name at least one, --models base=smollm2-135m-instruct")
    for name in models:
        if not re.fullmatch(PLAIN_NAME, name):
            raise UserError(
                f"model name '{name}': use letters, digits, '.', '-' and '_'; files are named so"
            )


def _check_out(out: Path, suite: str) -> None:
    """Refuse to replace anything but an earlier run of the same suite."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        before = json.loads((out / RECORD).read_text(encoding="utf-8"))["suite"]
    except (OSError, ValueError, KeyError, TypeError):
        before = None
    if before != suite:
        held = "something else" if before is None else f"a run of suite {before}"
        raise UserError(f"{out}: holds {held}; choose another folder with --out")

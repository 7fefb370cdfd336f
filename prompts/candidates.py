"""Candidates of a search: a template with another instruction, exemplars or rationales."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from prompts.documents import read_yaml, validated
from prompts.items import Item
from prompts.rendering import check_template
from prompts.results import Cell
from prompts.template import Settings, Template
from workbench.errors import UserError
from workbench.files import write_text

T = TypeVar("T")

OWN = ""  # the starting template's own instruction
MISSES = 100  # draws in a row that bring nothing new, after which all candidates are taken as seen
# `{{ rationale }} The answer is {{ answer }}.`: the joint tells where a chain's answer begins.
_CHAIN = re.compile(r"\s*\{\{\s*rationale\s*\}\}(?P<joint>[^{]*[^{\s][^{]*)\{\{")


class InstructionFile(Settings):
    """A list of instructions to try, as `few_shot.instructions` beside `few_shot.yaml`."""

    instructions: list[str] = Field(min_length=1, description="each replaces the template's own")


@dataclass(frozen=True)
class Chains:
    """Rationales that the model wrote itself and that ended in the right answer.

    Attributes:
        pool: the exemplar pool with them in the place of its own.
        ids: the exemplars that have one.
    """

    pool: Path
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """One template of a search.

    Attributes:
        number: 0 is the starting template.
        template: the template.
        instruction: the text that replaces the template's own; empty for its own.
        ids: exemplars in the order shown; empty where they are selected as before.
        bootstrapped: those of them whose rationale the model wrote.
    """

    number: int
    template: Template
    instruction: str = OWN
    ids: tuple[str, ...] = ()
    bootstrapped: tuple[str, ...] = ()


def instruction_of(template: Template) -> str | None:
    """Return the text that says what to do, or None where it cannot be told from the rest.

    It is the trigger of zero_shot_cot (Kojima et al. 2022), else the system turn, else the first
    paragraph of the user turn if the rest is a template without it.
    """
    if template.strategy == "zero_shot_cot":
        return template.trigger
    if template.system is not None:
        return template.system
    first, _, rest = template.template.partition("\n\n")
    if not first.strip() or not rest.strip():
        return None
    try:
        check_template(template.model_copy(update={"template": rest}))
    except UserError:
        return None
    return first


def with_instruction(template: Template, instruction: str | None) -> Template:
    """Return the template with another instruction, or without one.

    Raises:
        UserError: when the template's own cannot be told from the rest, or must not be missing; or
            when the new one is wrong Jinja or reads other variables.
    """
    if instruction_of(template) is None:
        raise template.error(
            "has no instruction that could be replaced; write it as `system`, or as the first "
            "paragraph of the user turn",
            "template",
        )
    if instruction is not None and not instruction.strip():
        raise template.error("an instruction is empty; write it or remove it")
    if template.strategy == "zero_shot_cot":
        if instruction is None:
            raise template.error("must not be missing", "trigger")
        return template.model_copy(update={"trigger": instruction})
    if template.system is not None:
        changed = template.model_copy(update={"system": instruction})
    else:
        _, _, rest = template.template.partition("\n\n")
        text = rest if instruction is None else f"{instruction.strip()}\n\n{rest}"
        changed = template.model_copy(update={"template": text})
    check_template(changed)
    return changed


def instructions_beside(template: Template) -> list[str]:
    """Return the instructions to try that stand in `<variant>.instructions` beside the template.

    Returns:
        The texts; an empty list when there is no such file.
    """
    path = template.path.with_suffix(".instructions")
    return read_instructions(path) if path.is_file() else []


def read_instructions(path: Path) -> list[str]:
    """Return the list under the key `instructions` of a YAML file.

    Raises:
        UserError: when the file cannot be read or is no such list.
    """
    return validated(read_yaml(path), InstructionFile).instructions


def joint_of(template: Template) -> str:
    """Return the text between rationale and answer in the exemplars, such as `The answer is`.

    Raises:
        UserError: when the exemplars show no rationale, or nothing stands between it and the
            answer.
    """
    found = _CHAIN.match(template.exemplars.answer) if template.exemplars else None
    if found is None:
        raise template.error(
            "bootstrapped rationales need `{{ rationale }}`, a text such as ' The answer is ', and "
            "the answer",
            "exemplars",
            "answer",
        )
    return found["joint"].strip()


def write_chains(cell: Cell, pool: Sequence[Item], joint: str, path: Path) -> Chains:
    """Write a pool whose rationales are the model's own wherever they ended in the right answer.

    Each row was answered as a question, with other rows as its exemplars. A chain is used when its
    answer passed and follows the joint, so that the exemplar can be written in the same form; the
    first such repeat counts. Other rows keep the rationale they have.

    Args:
        cell: the answers to the rows of the pool.
        pool: its rows.
        joint: what stands between rationale and answer.
        path: the new pool's file.
    """
    found: dict[str, str] = {}
    for item, rows in zip(cell.items, cell.rows, strict=True):
        for row in rows:
            rationale, joined, _ = row.output.rpartition(joint)
            if row.passed and joined and rationale.strip():
                found.setdefault(item, rationale.strip())
    changed = [
        Item(each.id, {**each.fields, "rationale": found[each.id]}, each.line)
        if each.id in found
        else each
        for each in pool
    ]
    write_items(path, changed)
    return Chains(path, tuple(each.id for each in pool if each.id in found))


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Write items as JSON Lines, atomically."""
    rows = ({"id": item.id, **item.fields} for item in items)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def draw_candidates(
    start: Template,
    pool: Sequence[Item],
    instructions: Sequence[str],
    chains: Chains | None,
    count: int,
    seed: int,
) -> list[Candidate]:
    """Return the starting template, every instruction with its exemplars, and random candidates.

    A random candidate has one of the instructions, its own among them, and k exemplars of the pool
    in random order. Where chains are given, half of them show some (Khattab et al. 2023, "DSPy",
    BootstrapFewShotWithRandomSearch).

    Args:
        start: the starting template.
        pool: its exemplars; empty where it has none.
        instructions: texts to be tried in the place of its own.
        chains: rationales of the model itself, or None.
        count: how many to return at most; fewer when there are no more.
        seed: of the draws.

    Raises:
        UserError: when an instruction does not fit the template.
    """
    texts = [OWN, *instructions]
    bases = [start]
    for number, text in enumerate(instructions, 1):
        try:
            bases.append(with_instruction(start, text))
        except UserError as error:
            raise UserError(f"instruction {number}: {error}") from None
    plans: dict[tuple[int, tuple[str, ...], tuple[str, ...]], None] = {
        (number, (), ()): None for number in range(len(bases))
    }
    # Of Python's generators only random() promises the same numbers in later versions.
    generator, misses = random.Random(f"{seed}:candidates"), 0
    while start.exemplars is not None and len(plans) < count and misses < MISSES:
        number = int(generator.random() * len(bases))
        plan = number, *_exemplars(start.exemplars.k, pool, chains, generator)
        misses = misses + 1 if plan in plans else 0
        plans[plan] = None
    return [
        Candidate(place, _fixed(bases[number], ids, own, chains), texts[number], ids, own)
        for place, (number, ids, own) in enumerate(plans)
    ][:count]


def sample(values: Sequence[T], count: int, generator: random.Random) -> list[T]:
    """Return some of the values in random order."""
    keys = [generator.random() for _ in values]
    order = sorted(range(len(values)), key=keys.__getitem__)
    return [values[place] for place in order[:count]]


def _exemplars(
    k: int, pool: Sequence[Item], chains: Chains | None, generator: random.Random
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return k ids of the pool, and those of them that show a chain."""
    ids, first = [each.id for each in pool], list[str]()
    if chains is not None and chains.ids and generator.random() < 0.5:
        first = sample(chains.ids, 1, generator)
    others = sample([each for each in ids if each not in first], k - len(first), generator)
    shown = sample([*first, *others], k, generator)
    own = [each for each in shown if first and chains is not None and each in chains.ids]
    return tuple(shown), tuple(own)


def _fixed(
    template: Template, ids: tuple[str, ...], own: tuple[str, ...], chains: Chains | None
) -> Template:
    if template.exemplars is None or not ids:
        return template
    changes = {
        "selector": "fixed", "ids": list(ids), "k": len(ids), "order": "as_selected", "seed": 0,
    }  # fmt: skip
    if own and chains is not None:
        changes["pool"] = str(chains.pool.resolve())
    return template.model_copy(update={"exemplars": template.exemplars.model_copy(update=changes)})

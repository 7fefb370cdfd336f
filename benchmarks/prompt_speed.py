"""Measures the prompt library: 10,000 items rendered, and a run whose answers are all known."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prompts.conversations import render_all
from prompts.items import Item, load_items
from prompts.library import Library
from prompts.runner import run_suite
from prompts.suite import load_suite
from workbench.embedded import NAME
from workbench.errors import UserError

TEMPLATE = "arithmetic/few_shot"  # four exemplars, a system turn
NEW_TOKENS = 4  # of the answers that fill the cache; their length is no part of the measurement


def main() -> None:
    """Print both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=NAME, help="whose answers fill the cache")
    parser.add_argument("--rendered", type=int, default=10_000, help="items to render")
    parser.add_argument("--cached", type=int, default=1_000, help="items of the cached run")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        if given.child is not None:
            print(json.dumps(run_cached(given.child, given.model, given.batch_size)))
            return
        seconds, characters = rendering_seconds(given.rendered)
        print(
            f"{given.rendered:,} items rendered from {TEMPLATE}: {seconds:.2f} s of one core, "
            f"{characters / given.rendered:,.0f} characters each"
        )
        with tempfile.TemporaryDirectory() as folder:
            write_suite(Path(folder), given.cached)
            generated, _ = run_cached(Path(folder), given.model, given.batch_size)
            wall, known = cached_seconds(Path(folder), given.model)
        print(
            f"{known:,} items answered from the cache ({generated:,} were generated before): "
            f"{wall:.2f} s from the start of Python to its end"
        )
    except UserError as error:
        sys.exit(f"prompt_speed.py: error: {error}")


def rendering_seconds(count: int) -> tuple[float, int]:
    """Render items with a few-shot template, selection of exemplars and leak check included.

    Args:
        count: items.

    Returns:
        Processor time of this process in seconds, and the characters rendered.
    """
    items = _items(count)
    started = time.process_time()
    messages = render_all(Library().get(TEMPLATE), items).messages
    seconds = time.process_time() - started
    return seconds, sum(len(turn["content"]) for turns in messages for turn in turns)


def write_suite(folder: Path, count: int) -> None:
    """Write a suite of one short-answer template and so many items."""
    rows = ({"id": item.id, **item.fields} for item in _items(count))
    (folder / "items.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "short.yaml").write_text(
        "name: short\nstrategy: zero_shot\nvariables: {question: string}\n"
        f'template: "{{{{ question }}}}"\ngeneration: {{max_new_tokens: {NEW_TOKENS}}}\n'
    )
    (folder / "speed.yaml").write_text(
        "suite: speed\ntemplates: [short.yaml]\ndata: items.jsonl\nmetrics: [exact_match]\n"
    )


def run_cached(folder: Path, model: str, batch_size: int) -> tuple[int, int]:
    """Run the suite and return how many answers were generated and how many were known."""
    suite = load_suite(folder / "speed.yaml", Library())
    run = run_suite(
        suite,
        {"model": model},
        folder / "run",
        cache=folder / "known.sqlite",
        batch_size=batch_size,
    )
    return run.generated, run.cached


def cached_seconds(folder: Path, model: str) -> tuple[float, int]:
    """Run the suite again in a Python of its own, as a user starts it.

    Returns:
        Wall time in seconds, and how many answers were known.

    Raises:
        UserError: when the run fails or something had to be generated.
    """
    command = [sys.executable, __file__, "--child", str(folder), "--model", model]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise UserError(f"the cached run failed: {done.stderr.strip().splitlines()[-1]}")
    generated, known = json.loads(done.stdout)
    if generated:
        raise UserError(f"{generated} answers were not in the cache")
    return seconds, known


def _items(count: int) -> list[Item]:
    """Return items that all differ, made of a few word problems."""
    known = load_items(Library().root.parent / "data" / "arithmetic.jsonl")
    return [
        Item(
            f"i{number}",
            {
                **known[number % len(known)].fields,
                "question": f"Question {number}: {known[number % len(known)].fields['question']}",
            },
            number + 1,
        )
        for number in range(count)
    ]


if __name__ == "__main__":
    main()

"""Synthetic results for the tests of comparison, baselines and reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from prompts.results import RECORD, RESULTS, Cell, Row


def row(item="a01", passed=True, **changes: Any) -> dict[str, Any]:
    """A line of results.jsonl."""
    return {
        "suite": "arithmetic",
        "template": "arithmetic/few_shot",
        "version": "0123456789ab",
        "model": "base",
        "item": item,
        "repeat": 0,
        "output": "The answer is 12." if passed else "The answer is 11.",
        "rationale": None,
        "strict": "12" if passed else "11",
        "flexible": "12" if passed else "11",
        "target": ["12"],
        "parsed": True,
        "finished": True,
        "prompt_tokens": 80,
        "tokens": 10,
        "seconds": 0.4,
        "share": 0.1,
        "scores": {"exact_match": float(passed)},
        "assertions": [],
        "score": float(passed),
        "passed": passed,
        "choices": None,
    } | changes


def cell(passed: Any, *, score: Any = None, parsed: Any = None, items=None, **names: str) -> Cell:
    """A cell of numbers only; `passed` has shape (n,) or (n, r)."""
    passes = np.asarray(passed, dtype=bool)
    passes = passes.reshape(len(passes), -1)
    return Cell(
        template=names.get("template", "t"),
        version=names.get("version", "v1"),
        model=names.get("model", "m"),
        items=list(items) if items is not None else [f"i{k:04d}" for k in range(len(passes))],
        passed=passes,
        score=passes.astype(float)
        if score is None
        else np.asarray(score, dtype=float).reshape(passes.shape),
        parsed=np.ones_like(passes) if parsed is None else np.asarray(parsed).reshape(passes.shape),
    )


def full_cell(rows: list[dict[str, Any]]) -> Cell:
    """A cell with its rows, one answer an item."""
    return Cell.of([[Row.model_validate(each)] for each in rows])


def write_run(folder: Path, rows: list[dict[str, Any]], **record: Any) -> Path:
    """A run folder with results.jsonl and run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(each) + "\n" for each in rows)
    (folder / RESULTS).write_text(text, encoding="utf-8")
    known = {
        "suite": rows[0]["suite"] if rows else "arithmetic",
        "models": {
            name: {"source": f"models/{name}"} for name in sorted({r["model"] for r in rows})
        },
        "thresholds": {},
        "seed": 0,
        "git_commit": "f" * 40,
        "versions": {"torch": "2.13.0"},
        "data": {"path": "/home/someone/arithmetic.jsonl"},
    }
    (folder / RECORD).write_text(json.dumps(known | record), encoding="utf-8")
    return folder

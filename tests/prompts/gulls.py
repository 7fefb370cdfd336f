"""A small library of every strategy, its suites and items, and runs of them on a tiny model."""

import json
from pathlib import Path

from prompts.cache import Cache
from prompts.cached_model import CachedModel
from prompts.items import load_items
from prompts.library import Library
from prompts.runner import run_suite
from prompts.suite import Suite, load_suite

GREEDY = "generation: {max_new_tokens: 8}"
SAMPLED = "generation: {max_new_tokens: 8, temperature: 1.0}"
LETTER = "{type: regex, pattern: '([a-e])', which: first}"
TEMPLATES = {
    "t/greedy": ("zero_shot", GREEDY),
    "t/sampled": ("zero_shot", SAMPLED),
    "t/short": ("zero_shot", "generation: {max_new_tokens: 1}"),
    "t/thinking": ("zero_shot_cot", f"{SAMPLED}\nanswer_trigger: 'So it is'"),
    "t/voting": ("self_consistency", f"{SAMPLED}\nsamples: 3\nanswer: {{extract: [{LETTER}]}}"),
    "t/ranked": ("zero_shot", "scoring: likelihood\nchoices: options"),
    "t/few": ("few_shot", f"{GREEDY}\nexemplars: {{pool: ../../pool.jsonl, k: 2}}"),
    "t/judge": ("zero_shot", f"{GREEDY}\nanswer: {{extract: [yes_no]}}"),
}
ITEMS = [
    {"id": f"i{n}", "question": f"How many gulls sit on {n} gates?", "answer": str(n),
     "options": ["one gull", "two", "no gulls at all"], "right": ["two", 0][n % 2]}
    for n in range(5)
]  # fmt: skip
POOL = [{"id": f"p{n}", "question": q, "answer": "x"} for n, q in enumerate(
    ["Who painted the gate blue?", "How many gulls sit on 3 gates?", "What hums?", "Why tar?"]
)]  # fmt: skip


def library_in(home: Path) -> Path:
    """Write a library of every strategy, five items and a pool that repeats one of them."""
    for name, (strategy, more) in TEMPLATES.items():
        field = "output" if name == "t/judge" else "question"
        others = {"t/ranked": "  options: list\n", "t/few": "  answer: string\n"}.get(name, "")
        path = home / "library" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'name: {name}\nstrategy: {strategy}\ntemplate: "{{{{ {field} }}}}"\n'
            f"variables:\n  {field}: string\n{others}{more}\n"
        )
    write_rows(home / "items.jsonl", ITEMS)
    write_rows(home / "pool.jsonl", POOL)
    return home


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def suite_of(home: Path, *templates: str, more: str = "", name: str = "gulls") -> Suite:
    path = home / f"{name}.yaml"
    listed = ", ".join(f"t/{template}" for template in templates)
    path.write_text(f"suite: {name}\ntemplates: [{listed}]\ndata: items.jsonl\n{more}")
    return load_suite(path, Library(home / "library"))


def run(home: Path, suite: Suite, model: Path, out: str = "out", **options):
    options = {"cache": home / "known.sqlite", "precision": "fp32", **options}
    result = run_suite(suite, {"tiny": str(model)}, home / out, **options)
    lines = (result.path / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert result.rows == len(rows)
    return result, rows


def tiny(model: Path, **options) -> CachedModel:
    return CachedModel("tiny", str(model), Cache(None), precision="fp32", **options)


def suite_items(suite: Suite):
    return load_items(suite.data)

"""The `rlhf` command in this process, and a small library with a suite for it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench import cli

Run = Callable[..., tuple[int, str, str]]

FILES = {
    "library/gulls/greedy.yaml": """
name: gulls/greedy
description: One number.
strategy: zero_shot
template: "{{ question }} Reply with a number."
variables: {question: string}
generation: {max_new_tokens: 4}
tags: [counting]
""",
    "library/gulls/sampled.yaml": """
name: gulls/sampled
description: One number, drawn.
strategy: zero_shot
template: "{{ question }}"
variables: {question: string}
generation: {max_new_tokens: 4, temperature: 1.0}
""",
    "library/gulls/ranked.yaml": """
name: gulls/ranked
description: One of three numbers.
strategy: few_shot
system: "Count."
template: "{{ question }}"
variables: {question: string, options: list, answer: string}
exemplars: {pool: ../../pool.jsonl, k: 1}
scoring: likelihood
choices: options
tags: [counting, ranking]
""",
    "gulls.yaml": """
suite: gulls
description: Counting.
templates: [gulls/greedy, gulls/ranked]
data: items.jsonl
""",
}


@pytest.fixture
def rlhf(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; returns exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlhf", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The working directory: a library of three templates, a suite and twelve items."""
    write_home(tmp_path, monkeypatch, tmp_path_factory)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_home(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Write the small library; the answers of models are kept for the session, for nobody else."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("USER", raising=False)
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"), encoding="utf-8")
    rows = [
        {
            "id": f"i{n}",
            "question": f"How many gulls sit on {n} gates?",
            "answer": str(n),
            "options": [str(n), str(n + 1), "none"],
        }
        for n in range(12)
    ]
    pool = [{"id": "p0", "question": "What hums on the landing?", "answer": "the lamp"}]
    for name, content in (("items.jsonl", rows), ("pool.jsonl", pool)):
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in content))


def only_line(text: str) -> str:
    """Return the message of an error that is one line and nothing else."""
    assert text.startswith("rlhf: error: "), text
    assert text.count("\n") == 1, text
    return text.removeprefix("rlhf: error: ").rstrip("\n")

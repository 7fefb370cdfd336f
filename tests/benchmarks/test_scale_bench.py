"""The scale bench: whole commands, rates from a log, and a table with ratios of each turn."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import scale_bench
from workbench.launch import stage_config

GIVEN = Namespace(demo=Path("runs/demo"), steps=3, updates=2)


@pytest.mark.parametrize("stage", scale_bench.UNITS)
def test_the_global_batch_is_the_same_on_two_processes(stage, tmp_path):
    def batch(count):
        words = scale_bench._words(stage, GIVEN, tmp_path, count)
        config = stage_config(stage, f"configs/{stage}/demo.yaml", words)
        own = getattr(config, stage).batch_size
        return own if stage == "ppo" else own * count

    assert batch(1) == batch(2)


def test_rates_come_from_the_log(tmp_path):
    log = tmp_path / "metrics.jsonl"
    laps = [{"step": n, "time/rollout": n, "time/score": 1, "time/update": 2} for n in (90, 5, 1)]
    log.write_text("".join(json.dumps(lap) + "\n" for lap in laps))
    assert scale_bench._rate("ppo", tmp_path) == 32 / 6  # the first update is not counted
    log.write_text('{"step": 3, "train_runtime": 9.0, "train_samples_per_second": 4.5}\n')
    assert scale_bench._rate("sft", tmp_path) == 4.5


def test_the_table():
    machine = {
        "processor": "Some CPU", "cores": 2, "torch": "1", "transformers": "2", "accelerate": "3",
        "date": "2026-01-01", "load_average": [0.5, 1, 1],
    }  # fmt: skip
    processes = [
        {"turn": turn, "stage": stage, "processes": count, "per_second": 2.0 * count + turn}
        for turn in (0, 1)
        for stage in scale_bench.UNITS
        for count in (1, 2)
    ]
    overlap = [
        {"turn": 0, "overlap": ahead, "seconds": 9.25 - ahead, "first_score": -3, "score": -1.5,
         "kl": 0.5, "mismatch": 0.001 * ahead}
        for ahead in (False, True)
    ]  # fmt: skip
    streaming = [{"streaming": True, "rows": 60000, "peak_mib": 26.4, "source_mib": 56.2}]
    parts = {"processes": processes, "overlap": overlap, "streaming": streaming}
    text = scale_bench.table({k: {"machine": machine, "rows": v} for k, v in parts.items()})
    assert "| `ppo`, episodes a second | 2.50 | 4.50 | 2.00, 1.67 |" in text
    assert "| `rollout.overlap=true` | 8.2 | -3.00 | -1.50 | 0.50 | 0.00100 |" in text
    assert "| `data.streaming=true`, 60,000 demonstrations, 56 MiB | 26 MiB |" in text
    assert text.count("Some CPU, 2 cores, no GPU; torch 1") == 3

"""The arithmetic of the PPO benchmark: operations by count and formula, ratios, targets, tables."""

import argparse
import json
import sys

import pytest
import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks import ppo_bench, ppo_figure, ppo_flops, ppo_models, ppo_ours, ppo_tables
from benchmarks.ppo_watch import Watch
from workbench.errors import UserError


def lap(seconds, **changes):
    phases = {phase: {"wall_s": seconds / 4, "cpu_s": seconds / 2} for phase in ppo_tables.PHASES}
    work = {"tokens": 768, "optimizer_steps": 4, "tokens_trained": 7168}
    return {"wall_s": seconds, "cpu_s": 2 * seconds} | phases | work | changes


def row(side, layout, top, turn, seconds, gib, **changes):
    return {
        "side": side, "layout": layout, "top": top, "turn": turn, "peak_gib": gib,
        "load_average": [2.0 + turn, 0, 0],
        "updates": [lap(s, **changes) for s in seconds],
    }  # fmt: skip


@pytest.fixture
def results():
    """Two turns, the second on a machine half as fast."""
    rows = []
    for turn, slow in ((0, 1), (1, 2)):
        rows += [
            row("trl", "full", None, turn, [60 * slow, 60 * slow], 6.0),
            row("trl", "lora", None, turn, [40 * slow, 40 * slow], 5.0),
            row("ours", "separate", None, turn, [30 * slow, 30 * slow], 4.0),
            row("ours", "shared_trunk", 10, turn, [10 * slow, 10 * slow], 2.4),
            row("ours", "shared_trunk", 5, turn, [8 * slow, 8 * slow], 3.0),
        ]
    settings = {
        "turns": 2, "updates": 2, "episodes": 16, "query": 64, "response": 48, "epochs": 4,
        "micro_batch": 8, "tops": [10, 5],
    }  # fmt: skip
    speeds = {"transformers": 10.0, "native": 4.0, "products": 2.0}
    generation = [
        {
            "way": way,
            "turn": 0,
            "load_average": [1, 0, 0],
            "batches": {"64": {"tokens": 3072, "wall_s": wall}},
        }
        for way, wall in speeds.items()
    ]
    flops = {phase: {"products": 200e9, "attention": 50e9} for phase in ppo_tables.PHASES}
    phases = [
        row("ours", "shared_trunk", 10, 0, [2.0], 2.0)
        | {"flops": flops, "rates": [{"square": 1000e9, "model": 500e9}]}
    ]
    growth = [
        {
            "axis": "top",
            "value": value,
            "peak_gib": 2.0,
            "load_average": [2.5, 0, 0],
            "updates": [lap(value)],
        }
        for value in (1, 5)
    ]
    rows_of = {"trl": rows, "generation": generation, "phases": phases, "growth": growth}
    parts = {
        name: {"settings": settings, "seconds": 60.0, "rows": rows}
        for name, rows in rows_of.items()
    }
    return {"cpu": {"machine": ppo_bench.machine("cpu"), "parts": parts}}


def test_ratios_are_formed_within_a_turn(results):
    lines = ppo_tables.against_trl(results["cpu"]["parts"]["trl"]["rows"])
    found = {line["name"]: line for line in lines}
    assert found["TRL, full"]["full"] == [1, 1]
    assert found["`separate`"]["full"] == [2, 2]  # across turns it would be from 1 to 4
    assert found["`shared_trunk`, top 10"]["lora"] == [4, 4]
    assert found["`shared_trunk`, top 10"]["memory"] == pytest.approx([0.4, 0.4])
    assert found["`separate`"]["seconds"] == [30, 30, 60, 60]


def test_a_turn_that_lacks_a_side_gives_no_ratio(results):
    rows = results["cpu"]["parts"]["trl"]["rows"]
    alone = [line for line in rows if not (line["side"] == "trl" and line["turn"] == 1)]
    assert all(len(line["full"]) == 1 for line in ppo_tables.against_trl(alone))
    ours = [line for line in rows if line["side"] == "ours"]
    assert all(line["full"] == line["memory"] == [] for line in ppo_tables.against_trl(ours))
    results["cpu"]["parts"]["trl"]["rows"] = ours
    assert "| `separate` | 45.0 (30.0–60.0) | 90.0 |  |  | 4.00 |  |" in ppo_tables.render(results)


def test_targets_are_said_to_be_reached_only_when_they_are(results):
    found = {what: reached for what, _, _, reached in ppo_tables.targets(results["cpu"]["parts"])}
    assert found == {
        "`separate`: times as fast as TRL's full fine-tuning": True,
        "`shared_trunk`, top 10: times as fast as TRL's full fine-tuning": True,
        "`shared_trunk`, top 10: times as fast as TRL's LoRA": True,
        "`shared_trunk`, top 10: memory of TRL's full fine-tuning": True,
        "`shared_trunk`, top 5: times as fast as TRL's full fine-tuning": True,
        "`shared_trunk`, top 5: times as fast as TRL's LoRA": True,
        "`shared_trunk`, top 5: memory of TRL's full fine-tuning": False,
        "generation at batch 64: times as fast as `generate`": True,
        # 250 GFLOP in half a second, of 1,000 a second
        "`shared_trunk`, top 10: update phase, share of the products' rate": False,
    }


def test_tables_name_what_was_measured_and_what_was_not(results):
    text = ppo_tables.render(results)
    assert "Every one of them sampled 768 tokens an update, took 4 optimiser steps" in text
    assert "| 64 | 307 | 768 | 1,536 | 2.50× | 0.50 | 463 |" in text
    assert "| `shared_trunk`, top 10 | update | 0.50 | 250 | 50 % | 100 % |" in text
    assert "| layers trained | 5 | 1.25 | 1.25 | 1.25 | 5.00 | 2.00 |" in text
    assert "load average while measuring 1.0 to 3.0" in text
    assert "No GPU was at hand" in text
    del results["cpu"]["parts"]["growth"]
    assert "`growth`: not measured." in ppo_tables.render(results)


def test_unequal_work_is_said(results):
    results["cpu"]["parts"]["trl"]["rows"][0]["updates"][0]["optimizer_steps"] = 8
    assert "**They did not do the same work**" in ppo_tables.render(results)


def test_a_gpu_joins_the_tables_under_its_name(results):
    results["cuda"] = json.loads(json.dumps(results["cpu"]))
    results["cuda"]["machine"]["gpu"] = "Fast Card 9"
    text = ppo_tables.render(results)
    assert "**Fast Card 9**" in text
    assert "No GPU was at hand" not in text


def test_only_the_block_of_the_page_is_written_anew(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured: ppo -->\nold\n<!-- end -->\nafter\n")
    for _ in range(2):
        ppo_tables.write_block(page, r"a \1 table")
    text = page.read_text()
    assert text == "before\n<!-- measured: ppo -->\n\na \\1 table\n\n<!-- end -->\nafter\n"
    page.write_text("nothing\n")
    with pytest.raises(UserError, match="needs '<!-- measured: ppo -->'"):
        ppo_tables.write_block(page, "x")


def test_growth_is_drawn_where_it_was_measured(results, tmp_path):
    path = tmp_path / "growth.png"
    ppo_figure.draw({"cpu": {"parts": {}}}, path)
    assert not path.exists()
    ppo_figure.draw(results, path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The conductor with measurements that cost nothing, and the labels of those it started."""
    monkeypatch.setattr(sys, "argv", ["ppo_bench.py", "--out", str(tmp_path / "ppo.json")])
    given, started = ppo_bench.arguments(), []
    given.device = "cpu"

    def start(job, *_):
        started.append(job.labels)
        if len(started) == 3:
            raise UserError("killed")
        return {"peak_gib": 1.0, "load_average": [1, 1, 1], "updates": [lap(1.0)]}

    monkeypatch.setattr(ppo_bench, "start", start)
    return given, started


def test_a_part_that_was_cut_short_is_taken_up_where_it_stopped(bench, tmp_path):
    given, started = bench
    results = {"cpu": {"parts": {}}}
    with pytest.raises(UserError, match="killed"):
        ppo_bench.part("trl", given, results["cpu"]["parts"], tmp_path, results)
    kept = json.loads(given.out.read_text())
    assert len(kept["cpu"]["parts"]["trl"]["rows"]) == 2
    given.resume = True
    ppo_bench.part("trl", given, kept["cpu"]["parts"], tmp_path, kept)
    names = [(labels["side"], labels["layout"], labels["top"]) for labels in started]
    turn = [
        ("trl", "full", None), ("trl", "lora", None), ("ours", "separate", None),
        ("ours", "lora", None), ("ours", "shared_trunk", 10), ("ours", "shared_trunk", 5),
    ]  # fmt: skip
    assert names == [*turn[:3], *turn[2:], *turn]  # the third failed and came again
    assert len(kept["cpu"]["parts"]["trl"]["rows"]) == 12


def test_other_sizes_start_a_part_anew(bench, tmp_path):
    given, started = bench
    results = {"cpu": {"parts": {}}}
    with pytest.raises(UserError, match="killed"):
        ppo_bench.part("generation", given, results["cpu"]["parts"], tmp_path, results)
    given.resume, given.response = True, 24
    ppo_bench.part("generation", given, results["cpu"]["parts"], tmp_path, results)
    assert [labels["way"] for labels in started[3:]] == 2 * [
        "transformers", "native", "products"
    ]  # fmt: skip
    assert len(results["cpu"]["parts"]["generation"]["rows"]) == 6


def test_a_measurement_that_fails_is_one_line():
    with pytest.raises(UserError, match=r"-c raise SystemExit\('no room'\): status 1: no room$"):
        ppo_bench.run([sys.executable, "-c", "raise SystemExit('no room')"])


def test_attention_counts_half_where_it_is_causal():
    states = torch.randn(2, 4, 8, 16, requires_grad=True)
    square = 2 * 2 * 4 * 8 * 8 * 16

    def work(*, causal):
        mixed = scaled_dot_product_attention(states, states, states, is_causal=causal)
        return mixed.sum().backward()

    _, whole = ppo_flops.counted(lambda: work(causal=False))
    _, half = ppo_flops.counted(lambda: work(causal=True))
    assert whole == {"products": 0, "attention": 6 * square}
    assert half == {"products": 0, "attention": 3 * square}
    _, batched = ppo_flops.counted(lambda: torch.ones(3, 8, 16) @ torch.ones(3, 16, 8))
    assert batched == {"products": 0, "attention": 3 * 8 * 8 * 16}
    given, found = ppo_flops.counted(lambda: linear(torch.ones(3, 5), torch.ones(7, 5)))
    assert given.shape == (3, 7)
    assert found == {"products": 2 * 3 * 5 * 7, "attention": 0}


@pytest.fixture
def engine(tiny_llama, tmp_path):
    folder = tmp_path / "models"
    ppo_models.write(folder, str(tiny_llama), random=False, query=9, count=12)
    given = argparse.Namespace(
        folder=folder, layout="shared_trunk", top=1, episodes=4, response=5, epochs=3,
        micro_batch=2, device="cpu",
    )  # fmt: skip
    return ppo_ours.build(given, str(tmp_path / "runs"))


def test_counted_operations_follow_the_formula(engine):
    shape = ppo_flops.shape(engine.roles.actor.config, query=9, response=5, batch=4)
    found = ppo_ours.operations(engine)
    assert found["update"] == ppo_flops.update_flops(shape, layers=1, epochs=3)
    assert found["rollout"]["products"] > 0
    assert found["score"]["products"] > 0


def test_an_update_is_timed_and_its_work_counted(engine):
    watch = Watch("cpu")
    watch.count(engine.optimisation.model)
    found = ppo_ours.update(engine, watch)
    assert found["tokens"] == 4 * 5
    assert found["optimizer_steps"] == 3
    assert found["tokens_trained"] == 3 * 4 * 14
    phases = [found[phase] for phase in ppo_tables.PHASES]
    assert all(phase["wall_s"] > 0 for phase in phases)
    assert found["wall_s"] == sum(phase["wall_s"] for phase in phases)
    assert phases[0]["tokens_trained"] == phases[1]["tokens_trained"] == 0
    assert 0.01 < watch.peak_gib() < 100

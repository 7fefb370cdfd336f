"""The learning curves' table: gold at equal KL, and its interval over prompts."""

import pytest

from benchmarks.ppo_curves import Curve, at_kl, command, table


def curve(layout: str, seed: int, lift: float) -> Curve:
    kl = [0.0, 1.0, 3.0]
    gold = [[0.2, 0.4], [0.3 + lift, 0.5 + lift], [0.7 + lift, 0.9 + lift]]
    return Curve(layout, seed, kl, gold)


def test_gold_at_a_kl_lies_on_the_line_between_two_evaluations():
    assert at_kl(curve("lora", 0, 0.0), 2.0) == pytest.approx([0.5, 0.7])
    assert at_kl(curve("lora", 0, 0.0), 0.5) == pytest.approx([0.25, 0.45])
    with pytest.raises(ValueError, match="lora, seed 4"):
        at_kl(curve("lora", 4, 0.0), 3.5)


def test_the_table_compares_at_the_largest_kl_that_all_runs_reached():
    short = curve("lora", 1, 0.1)._replace(kl=[0.0, 1.0, 2.0])
    curves = [curve("separate", 0, 0.0), curve("separate", 1, 0.0), curve("lora", 0, 0.1), short]
    lines = table(curves).splitlines()
    assert "gold at KL 2.00" in lines[0]
    # At KL 2: 0.6 and 0.7 + 0.1 against 0.6; both prompts gain alike, so the interval is a point.
    assert lines[3].startswith("| `lora` | 3.00 / 2.00 | 0.300 | 0.900 | 0.800 | +0.200 (+0.200")


def test_every_layout_gets_a_whole_command(tmp_path):
    given = command("lora", 2, tmp_path)
    assert f"run.root={tmp_path}" in given
    assert {"run.seed=2", "model.layout=lora", "model.train_top_layers=null"} <= set(given)

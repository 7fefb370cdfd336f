import sys

import pytest

from benchmarks import prompt_speed
from workbench.errors import UserError


def test_ten_thousand_items_render_within_three_seconds_of_one_core():
    seconds, characters = prompt_speed.rendering_seconds(10_000)
    assert 0 < seconds < 3
    assert characters > 10_000 * 400  # four exemplars and a question


def test_a_cached_run_generates_nothing_and_is_timed_from_its_start(tmp_path, tiny_llama):
    prompt_speed.write_suite(tmp_path, 20)
    assert prompt_speed.run_cached(tmp_path, str(tiny_llama), 8) == (20, 0)
    seconds, known = prompt_speed.cached_seconds(tmp_path, str(tiny_llama))
    assert known == 20
    assert seconds > 0.1, "Python and the libraries have to start"
    (tmp_path / "known.sqlite").unlink()
    with pytest.raises(UserError, match="20 answers were not in the cache"):
        prompt_speed.cached_seconds(tmp_path, str(tiny_llama))
    with pytest.raises(UserError, match="the cached run failed"):
        prompt_speed.cached_seconds(tmp_path / "nowhere", str(tiny_llama))


def test_main_prints_both_times(monkeypatch, capsys, tiny_llama):
    sizes = ["--rendered", "50", "--cached", "9", "--batch-size", "9"]
    monkeypatch.setattr(sys, "argv", ["prompt_speed.py", "--model", str(tiny_llama), *sizes])
    prompt_speed.main()
    rendered, cached = capsys.readouterr().out.splitlines()
    assert rendered.startswith("50 items rendered from arithmetic/few_shot: 0.")
    assert cached.startswith("9 items answered from the cache (9 were generated before): ")


def test_a_wrong_model_is_one_line(monkeypatch, tmp_path):
    argv = ["prompt_speed.py", "--rendered", "1", "--model", str(tmp_path / "nowhere")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match=r"prompt_speed.py: error: .*nowhere"):
        prompt_speed.main()

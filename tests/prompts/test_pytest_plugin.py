import tomllib
from pathlib import Path

import pytest

from prompts import pytest_plugin
from prompts.baselines import bless
from prompts.library import Library
from prompts.results import read_results
from prompts.runner import run_suite
from prompts.suite import load_suite
from tests.prompts.conftest import write_home

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[2]
NAME = "prompts.pytest_plugin"


@pytest.fixture(scope="module")
def warm(tiny_llama, tmp_path_factory):
    """Answer an item in this process.

    What is first imported inside an inner run is forgotten after it, and some libraries cannot be
    imported twice.
    """
    home = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        write_home(home, patch, tmp_path_factory)
        suite = load_suite(home / "gulls.yaml", Library(home / "library"))
        run_suite(suite, {"tiny": str(tiny_llama)}, home / "out", cache=None, limit=1)


@pytest.fixture
def suites(warm, pytester, tiny_llama, monkeypatch, tmp_path_factory):
    """Run pytest in the folder of the small library; returns its result."""
    write_home(pytester.path, monkeypatch, tmp_path_factory)
    pytester.makepyfile(test_other="def test_other():\n    pass\n")

    def run(*options):
        return pytester.runpytest_inprocess(
            "-p", NAME, "-p", "no:cacheprovider", "-rA",
            "--prompt-library", "library", "--prompt-models", f"tiny={tiny_llama}",
            *map(str, options),
        )  # fmt: skip

    return run


def edit(pytester, text):
    path = pytester.path / "gulls.yaml"
    path.write_text(path.read_text() + text)


def test_every_cell_is_a_test(suites, pytester):
    result = suites("--prompt-suite", "gulls.yaml", "--prompt-limit", "3")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "PASSED gulls.yaml::gulls/greedy[[]tiny]",
            "PASSED gulls.yaml::gulls/ranked[[]tiny]",
        ]
    )
    result.stdout.fnmatch_lines(
        [
            "*prompt suite gulls*",
            "2 cells measured, and no threshold is missed.",
            "results and report.html in runs/prompts/gulls-pytest",
        ]
    )
    cells = read_results(pytester.path / "runs" / "prompts" / "gulls-pytest")
    assert [len(cell.items) for cell in cells] == [3, 3]


def test_a_missed_threshold_fails_its_cell_alone(suites, pytester):
    edit(pytester, "thresholds: {gulls/greedy: {pass_rate: 1.0}}\n")
    result = suites("--prompt-suite", "gulls.yaml")
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*gulls/greedy with tiny*", "pass rate * is below the threshold*"])
    assert "Traceback" not in result.stdout.str()
    assert "pytest_plugin.py" not in result.stdout.str()


def test_other_tests_run_only_if_they_are_named(suites):
    collected = suites("--prompt-suite", "gulls.yaml", "--collect-only")
    collected.stdout.no_fnmatch_line("*test_other.py*")
    result = suites("test_other.py", "--prompt-suite", "gulls.yaml", "--prompt-limit", "1")
    result.assert_outcomes(passed=3)
    suites("test_other.py").assert_outcomes(passed=1)


def test_only_selected_cells_are_run(suites, pytester):
    suites("--prompt-suite", "gulls.yaml", "-k", "ranked").assert_outcomes(passed=1, deselected=1)
    (cell,) = read_results(pytester.path / "runs" / "prompts" / "gulls-pytest")
    assert cell.template == "gulls/ranked"


def test_collecting_runs_nothing(suites, pytester):
    result = suites("--prompt-suite", "gulls.yaml", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["gulls.yaml::gulls/greedy[[]tiny]"])
    assert not (pytester.path / "runs").exists()


def blessed(pytester, tiny_llama, change):
    """Bless results of the same suite, changed before by `change`."""
    suite = load_suite(pytester.path / "gulls.yaml", Library(pytester.path / "library"))
    folder = pytester.path / "old"
    run_suite(suite, {"tiny": str(tiny_llama)}, folder, cache=None)
    results = folder / "results.jsonl"
    results.write_text("".join(map(change, results.read_text().splitlines(keepends=True))))
    bless(folder, "tiny", pytester.path / "kept", "ann")


def all_passed(line):
    return line.replace('"passed": false', '"passed": true')


def test_a_regression_against_the_baseline_fails_and_names_the_items(suites, pytester, tiny_llama):
    blessed(pytester, tiny_llama, all_passed)
    result = suites("--prompt-suite", "gulls.yaml", "--prompt-baseline", "kept")
    assert result.parseoutcomes()["failed"] >= 1
    result.stdout.fnmatch_lines(
        [
            "*gulls/greedy with tiny*",
            "regression: 100* → 0*, p*",
            "  i0: was right, now wrong (1 → 0 of 1)",
            "*cells regressed: gulls/greedy with tiny*",
        ]
    )


def test_the_same_results_pass_against_the_baseline(suites, pytester, tiny_llama):
    blessed(pytester, tiny_llama, str)
    result = suites("--prompt-suite", "gulls.yaml", "--prompt-baseline", "kept")
    result.assert_outcomes(passed=2)
    assert "no difference can be shown in 2 of 2 cells" in result.stdout.str().lower()


def test_what_cannot_be_concluded_is_skipped_and_says_why(suites, pytester, tiny_llama):
    blessed(pytester, tiny_llama, str)
    options = ["--prompt-suite", "gulls.yaml", "--prompt-baseline", "kept"]
    result = suites(*options, "--prompt-limit", "4")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*insufficient data*"])
    path = pytester.path / "gulls.yaml"
    path.write_text(path.read_text().replace("gulls/ranked]", "gulls/ranked, gulls/sampled]"))
    result = suites(*options)
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*not in the baseline*"])


def test_a_model_without_baseline_is_an_error(suites):
    result = suites("--prompt-suite", "gulls.yaml", "--prompt-baseline", "kept")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["kept/gulls/tiny.json: no such baseline; bless a run with*"])
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        ("", ["--prompt-suite", "gull"], "ERROR: gull: no such suite file; *"),
        ("metrics: [nothing]\n", ["--prompt-suite", "gulls.yaml"],
         "*gulls.yaml:5: metrics.0: unknown metric; *"),
        ("", ["--prompt-suite", "gulls.yaml", "--prompt-models", "tiny=x"],
         "*two models are called 'tiny'; write name=model"),
        ("", ["--prompt-suite", "gulls.yaml", "--prompt-limit", "0"], "*limit=0 leaves no items*"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(suites, pytester, text, options, line):
    edit(pytester, text)
    result = suites(*options)
    assert result.ret != 0
    (result.stderr if line.startswith("ERROR") else result.stdout).fnmatch_lines([line])
    assert "Traceback" not in result.stdout.str()


def test_a_verdict_and_the_numbers_are_in_pytest_s_own_junit(suites, pytester):
    suites("--prompt-suite", "gulls.yaml", "--junitxml", "junit.xml")
    text = (pytester.path / "junit.xml").read_text()
    assert 'name="items" value="12"' in text
    assert 'name="unparsed_rate" value="0.0000"' in text


def test_the_plugin_is_installed_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Under the module's name, so that `-p prompts.pytest_plugin` does not load it a second time.
    assert project["entry-points"]["pytest11"] == {NAME: NAME}
    assert pytest_plugin.__name__ == NAME

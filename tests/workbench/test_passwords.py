import pytest

from sft.config import SFTStage
from workbench.config import dump_yaml, load_config, to_tree
from workbench.errors import UserError
from workbench.passwords import masked, masked_tree
from workbench.run import StageRun, environment


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ratings:postgresql+psycopg://me:sesame@host:5432/name#first",
         "ratings:postgresql+psycopg://me:***@host:5432/name#first"),
        ("data.train=ratings:postgres://:sesame@host/name",
         "data.train=ratings:postgres://:***@host/name"),
        ("postgresql://me:se@sa@me@host/name", "postgresql://me:***@host/name"),
        ("postgresql://me:se/sa/me@host/name", "postgresql://me:***@host/name"),
        ("postgresql://me:open sesame@host/name", "postgresql://me:***@host/name"),
        ("mysql+pymysql://me:sesame@host/a and mariadb://me:sesame@host/b",
         "mysql+pymysql://me:***@host/a and mariadb://me:***@host/b"),
        ("postgresql://host/name?user=me&password=sesame&sslpassword=sesame#first",
         "postgresql://host/name?user=me&password=***&sslpassword=***#first"),
    ],
)  # fmt: skip
def test_a_password_is_masked(text, shown):
    assert masked(text) == shown
    assert masked(shown) == shown
    assert masked_tree({"a": [text, ("b", text)], "c": 1}) == {"a": [shown, ("b", shown)], "c": 1}


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me:too@work/ratings.db#first",
        "postgresql+psycopg://me@/name?host=/run/postgresql",
        "postgresql://host:5432/name#first",
        "http://localhost:7860/ or write to me@host",
        "user: a colon, a slash / and an @ sign",
        "",
    ],
)
def test_other_texts_stay(text):
    assert masked(text) == text


def test_what_a_run_writes_shows_none(runs, monkeypatch):
    source = "ratings:postgresql+psycopg://me:sesame@host/name"
    monkeypatch.setattr("sys.argv", ["rlhf", "reward", "--data", source])
    config = load_config(SFTStage, None, [f"data.train={source}", f"run.root={runs}"])
    assert config.data.train == source  # the run itself needs it
    assert to_tree(config)["data"]["train"] == source.replace("sesame", "***")
    assert "***" in dump_yaml(config)
    assert environment()["command"][-1] == source.replace("sesame", "***")
    stage = StageRun("sft", config, {})
    written = "".join(path.read_text("utf-8") for path in stage.path.rglob("*") if path.is_file())
    assert "***@host/name" in written
    assert "sesame" not in written + str(UserError(f"{source}: no"))


def test_a_run_is_the_same_with_another_password(runs):
    def opened(password: str) -> StageRun:
        given = [f"data.train=ratings:postgresql://me:{password}@host/name", f"run.root={runs}"]
        return StageRun("sft", load_config(SFTStage, None, given), {})

    stage = opened("sesame")
    stage.log(1, {"loss": 1.0})
    opened("***")
    assert (stage.path / "metrics.jsonl").is_file()  # continued, and not started anew

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import get_args, get_type_hints

import httpx
import pytest
from sqlalchemy import select

from tests.ui.pages import Visitor, serving
from tests.workbench.chat_server import chat_server
from ui import command, schema
from ui.accounts import list_users, verify
from ui.campaigns import close_campaign, find_campaign
from ui.schema import Answer, Item
from ui.store import Store
from workbench.cli import guarded

LINE = re.compile(r"^rlhf: error: [^\n]*\n$")


@pytest.fixture
def url(tmp_path, sqlite_template) -> str:
    (tmp_path / "ratings.db").write_bytes(sqlite_template.read_bytes())
    return f"sqlite:///{tmp_path}/ratings.db"


@pytest.fixture
def ui(url, monkeypatch, capsys) -> Callable[..., tuple[int, str, list]]:
    """Run the command without serving; returns exit code, messages, and what would be served."""
    served: list = []
    monkeypatch.setattr("ui.server.serve", lambda app, host, port: served.append((app, host, port)))

    def run(*arguments: object, db: str = url) -> tuple[int, str, list]:
        words = [*map(str, arguments), "--db", db]
        code = guarded(lambda: command.app(words, standalone_mode=False))
        return code, capsys.readouterr().err, served

    return run


@pytest.fixture
def opened(url):
    store = Store(url)
    yield store
    store.close()


@pytest.fixture
def models(tiny_llama, tiny_gpt2) -> str:
    return f"base={tiny_llama},aligned={tiny_gpt2}"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Question {number}?", "category": "odd"} for number in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def items(store, name):
    with store.reading() as session:
        campaign = find_campaign(session, name)
        found = select(Item).where(Item.campaign_id == campaign.id).order_by(Item.position)
        return campaign, session.scalars(found).all()


def test_the_first_start_makes_two_accounts_and_says_their_passwords_once(ui, opened):
    code, err, served = ui()
    assert code == 0
    made = dict(re.findall(r"^  (researcher|rater) +(\S+)$", err, re.MULTILINE))
    assert {user.name: user.role for user in list_users(opened)} == {
        "researcher": "researcher",
        "rater": "rater",
    }
    for name, password in made.items():
        assert re.fullmatch(r"[a-z2-9]{4}-[a-z2-9]{4}-[a-z2-9]{4}", password)
        assert verify(opened, name, password).role == name
    assert "no campaign yet" in err
    assert "http://127.0.0.1:7860/" in err
    assert [(host, port) for _, host, port in served] == [("127.0.0.1", 7860)]
    _, again, _ = ui()
    assert "password" not in again
    assert len(list_users(opened)) == 2


def test_models_answer_the_prompts_and_a_campaign_is_made(ui, opened, models, prompts):
    code, err, served = ui(
        "--models", models, "--prompts", prompts, "--campaign", "first", "--raters-per-item", 2,
        "--max-new-tokens", 6, "--set", "swap_share=0.25", "--set", "guidelines=Be fair.",
        "--limit", 4, "--port", 8123,
    )  # fmt: skip
    assert code == 0
    assert "campaign first: 4 items" in err
    assert served[0][2] == 8123
    campaign, made = items(opened, "first")
    assert (campaign.mode, campaign.raters_per_item, campaign.swap_share) == ("pair", 2, 0.25)
    assert campaign.guidelines == "Be fair."
    assert campaign.blind
    assert [item.prompt for item in made] == [f"Question {number}?" for number in range(4)]
    assert {item.category for item in made} == {"odd"}
    with opened.reading() as session:
        answers = session.scalars(select(Answer)).all()
    assert len(answers) == 8
    assert {answer.model for answer in answers} == {"base", "aligned"}
    assert max(answer.tokens for answer in answers) <= 6


def test_served_models_are_compared_like_others(ui, opened, tiny_llama, prompts):
    with chat_server() as server:
        models = f"local={tiny_llama},served={server.source()}"
        code, err, _ = ui("--models", models, "--prompts", prompts, "--max-new-tokens", 6)
        assert code == 0, err
        code, err, _ = ui("--models", f"a={server.source('gone')},b={server.source()}")
        assert (code, LINE.match(err) is not None) == (2, True)
        assert "has no model 'gone'" in err
    campaign, made = items(opened, "comparison")
    assert campaign.models == {"local": str(tiny_llama), "served": server.source()}
    assert len(made) == 5
    with opened.reading() as session:
        answers = session.scalars(select(Answer).where(Answer.model == "served")).all()
    assert sorted(answer.text for answer in answers) == [
        f"echo: Question {number}?" for number in range(5)
    ]


def test_a_second_start_serves_the_campaign_as_it_is(ui, opened, models, prompts):
    options = ("--models", models, "--prompts", prompts, "--max-new-tokens", 4)
    ui(*options)
    code, err, served = ui(*options)
    assert code == 0
    assert "campaign comparison: it is there, and is served as it is" in err
    assert len(served) == 2
    assert len(items(opened, "comparison")[1]) == 5


def test_sampling_follows_seed_and_temperature(ui, opened, tiny_llama, prompts):
    models = f"one={tiny_llama},two={tiny_llama}"
    options = ("--models", models, "--prompts", prompts, "--limit", 1, "--max-new-tokens", 12)

    def texts(name, *more):
        assert ui(*options, "--campaign", name, *more)[0] == 0
        _, (item,) = items(opened, name)
        with opened.reading() as session:
            found = select(Answer.text).where(Answer.item_id == item.id).order_by(Answer.id)
            return session.scalars(found).all()

    greedy = texts("greedy", "--temperature", 0)
    assert greedy[0] == greedy[1]
    drawn = texts("drawn", "--temperature", 1.0)
    assert texts("again", "--temperature", 1.0) == drawn
    assert texts("other", "--temperature", 1.0, "--seed", 5) != drawn


def test_answers_to_rank(ui, opened, models, prompts):
    options = ("--models", models, "--prompts", prompts, "--limit", 2, "--max-new-tokens", 4)
    assert ui(*options, "--mode", "ranking", "--samples", 2)[0] == 0
    campaign, made = items(opened, "comparison")
    assert campaign.mode == "ranking"
    with opened.reading() as session:
        counts = [
            len(session.scalars(select(Answer).where(Answer.item_id == item.id)).all())
            for item in made
        ]
    assert counts == [4, 4]


def test_rows_that_have_answers_need_no_models(ui, opened, tmp_path):
    path = tmp_path / "rows.jsonl"
    answers = [{"model": "x", "text": "one"}, {"model": "y", "text": "one"}]
    rows = [{"prompt": "p", "answers": answers}, {"prompt": "q", "answers": answers}]
    rows[1]["gold_best"] = "x"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    code, err, _ = ui("--rows", path, "--set", "gold_share=0.2")
    assert code == 0
    assert "campaign comparison: 1 items (1 gold questions, 2 with two answers alike)" in err
    assert [item.kind for item in items(opened, "comparison")[1]] == ["normal", "gold"]


def test_live_models_are_loaded_before_the_server_starts(ui, opened, tiny_llama):
    models = f"base={tiny_llama},aligned={tiny_llama}"
    code, err, served = ui("--models", models, "--mode", "arena", "--max-new-tokens", 4)
    assert code == 0
    assert err.count(f"loading {tiny_llama}") == 1
    assert "raters write the prompts" in err
    campaign, made = items(opened, "comparison")
    assert (campaign.mode, campaign.blind, made) == ("arena", False, [])
    password = re.search(r"rater +(\S+)", err)[1]
    with serving(served[0][0]) as address:
        rater = Visitor(address, "rater", password)
        said = {"campaign": "comparison", "assignment": None, "text": "Who are you?"}
        lines = rater.http.post("/chat/say", json=said).text.splitlines()
    assert len(json.loads(lines[-1])["chat"]["turns"]) == 1


def test_a_closed_campaign_loads_nothing(ui, opened, tiny_llama):
    models = f"base={tiny_llama},aligned={tiny_llama}"
    ui("--models", models, "--mode", "chat")
    close_campaign(opened, "comparison")
    assert "loading" not in ui("--models", models, "--mode", "chat")[1]


def test_the_modes_are_those_of_the_schema():
    offered = get_type_hints(command.ui)["mode"]
    assert get_args(offered) == get_args(schema.Mode)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "a=x,,b=y"], "--models: '' is not name=model"),
        (["--models", "=x"], "--models: '=x' is not name=model"),
        (["--models", "a=./no/such"], "./no/such: no such folder"),
        (
            ["--models", "a={llama},a={llama}"],
            "--models: two models are called 'a'; write",
        ),
        (["--models", "a={llama}", "--prompts", "{prompts}"], "1 models with 1 answers each"),
        (["--rows", "{prompts}", "--models", "a={llama}"], "--rows: it holds the answers"),
        (["--rows", "nowhere.jsonl"], "nowhere.jsonl: cannot read it"),
        (["--rows", "{bad}"], "bad.jsonl:2: not JSON"),
        (["--rows", "{list}"], "list.jsonl:1: expected an object with prompt and answers"),
        (["--set", "swap_share"], "'swap_share' is not an override"),
        (["--set", "swapshare=1"], "unknown key 'swapshare' (value 1); did you mean 'swap_share'?"),
        (["--set", "swap_share=2"], "swap_share=2.0: must be at least 0 and less than 1"),
        (["--models", "a={llama},b={llama}", "--prompts", "no.jsonl"], "no.jsonl"),
        (["--models", "a={llama},b={llama}", "--split", "x"], "no rows with split 'x'"),
        (["--models", "a={llama},b={llama}", "--mode", "arena", "--campaign", "/"], "campaign '/'"),
        (["--mode", "duel"], "duel"),
        (["--port", "0"], "--port"),
        (["--limit", "0"], "--limit"),
        (["--raters-per-item", "0"], "--raters-per-item"),
        (["--temperature", "-1"], "--temperature"),
    ],
)
def test_a_mistake_is_one_line(ui, tiny_llama, tmp_path, prompts, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p"}\n{')
    (tmp_path / "list.jsonl").write_text("[]\n")
    places = {"{llama}": tiny_llama, "{prompts}": prompts}
    places |= {"{bad}": tmp_path / "bad.jsonl", "{list}": tmp_path / "list.jsonl"}
    for name, path in places.items():
        arguments = [word.replace(name, str(path)) for word in arguments]
    code, err, served = ui(*arguments)
    assert code == 2
    assert LINE.match(err[err.index("rlhf: error") :]), err
    assert message in err
    assert "password" not in err  # they are made when all is well, and shown with the address
    assert served == []


def test_a_server_that_others_reach_wants_accounts_first(ui, opened):
    code, err, served = ui("--host", "0.0.0.0")
    assert code == 2
    assert "has no accounts yet; make them first: rlhf ui user add" in err
    assert (list_users(opened), served) == ([], [])
    assert ui()[0] == 0
    code, err, served = ui("--host", "0.0.0.0")
    assert code == 0
    assert "put a proxy that speaks HTTPS in front" in err
    assert "http://localhost:7860/" in err
    assert "HTTPS" not in ui()[1]


def test_the_password_of_a_database_is_not_shown(ui):
    code, err, _ = ui(db="postgresql+psycopg://ann:hunter2@127.0.0.1:9/none")
    assert code == 2
    assert "hunter2" not in err


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from workbench.cli import guarded; from ui.command import app; "
    code += "sys.exit(guarded(lambda: app(standalone_mode=False)))"
    words = ["--db", f"sqlite:///{tmp_path}/new/ratings.db", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True
    )
    try:
        lines = []
        while not lines or "Ctrl-C stops" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        password = re.search(r"researcher +(\S+)", "".join(lines))[1]
        address = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            try:
                httpx.get(f"{address}/login")
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        visitor = Visitor(address, "researcher", password)
        assert visitor.http.get("/session").json()["role"] == "researcher"
        assert "server" not in visitor.http.get("/login").headers
        taken = subprocess.run(
            [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True, check=False
        )
        assert taken.returncode == 2
        assert f"127.0.0.1:{port}: cannot listen there" in taken.stderr.splitlines()[-1]
    finally:
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in rest

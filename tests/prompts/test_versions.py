import json
import subprocess
import sys
import time

import pytest
import yaml

from prompts.items import load_items
from prompts.rendering import compile_template
from prompts.template import load_template
from prompts.versions import MAX_RECORDED, History, canonical_yaml, content_hash, diff, snapshot
from workbench.errors import UserError

PLAIN = """\
name: task/plain
strategy: zero_shot
template: |
  Question: {{ question }}
  Answer:
variables:
  question: string
"""
FULL = """\
name: task/full
strategy: few_shot
template: "{{ passages|map(attribute='text')|join }} {{ question }}"
variables: {question: string, answer: string}
exemplars:
  pool: ../data/pool.jsonl
  k: 1
documents:
  folder: ../data/handbook
  query: question
"""
POOL = '{"id": "p1", "question": "1 + 1?", "answer": "2"}\n'


@pytest.fixture
def load(tmp_path):
    data = tmp_path / "library/data"
    (data / "handbook/part").mkdir(parents=True)
    (data / "pool.jsonl").write_text(POOL)
    (data / "handbook/a.md").write_text("Tea is at four.")
    (data / "handbook/part/b.txt").write_text("Doors close at six.")

    def load(text: str):
        name = yaml.safe_load(text)["name"]
        path = tmp_path / "library" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return load_template(path)

    return load


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "history.jsonl")


def test_the_hash_is_stable():
    """A golden number: whoever changes it changes the version of every template ever recorded."""
    from prompts.template import Template

    made = Template(name="a/b", strategy="zero_shot", template="{{ q }}", variables={"q": "string"})
    assert content_hash(made) == "5027447f6238"


def test_comments_layout_and_written_defaults_do_not_count(load):
    version = content_hash(load(PLAIN))
    assert len(version) == 12
    assert content_hash(load("# a comment\n" + PLAIN)) == version
    assert (
        content_hash(load(PLAIN.replace("  question: string", "  question: {type: string}")))
        == version
    )
    assert content_hash(load(PLAIN + "stop: []\ngeneration: {temperature: 0.0}\n")) == version
    lines = PLAIN.splitlines(keepends=True)
    assert content_hash(load("".join([lines[1], lines[0], *lines[2:]]))) == version


@pytest.mark.parametrize(
    "change",
    [
        ("Answer:", "Answer: "),
        ("Question:", "question:"),
        ("variables:", "stop: ['x']\nvariables:"),
        ("variables:", "generation: {temperature: 0.1}\nvariables:"),
        ("variables:", "system: Be brief.\nvariables:"),
        ("variables:", "answer: {extract: [number]}\nvariables:"),
        ("variables:", "description: New.\nvariables:"),
    ],
)
def test_every_setting_counts(load, change):
    assert content_hash(load(PLAIN.replace(*change))) != content_hash(load(PLAIN))


def test_pool_and_documents_count_by_their_bytes_not_their_place(load, tmp_path):
    data = tmp_path / "library/data"
    version = content_hash(load(FULL))
    (data / "notes.md").write_text("Outside the folder.")
    (data / "handbook/.hidden.md").write_text("Hidden.")
    (data / "handbook/picture.png").write_bytes(b"\x00")
    assert content_hash(load(FULL)) == version
    (data / "pool.jsonl").rename(data / "moved.jsonl")
    assert content_hash(load(FULL.replace("pool.jsonl", "moved.jsonl"))) == version
    (data / "moved.jsonl").rename(data / "pool.jsonl")
    for path in ("pool.jsonl", "handbook/a.md", "handbook/part/b.txt"):
        old = (data / path).read_text()
        (data / path).write_text(old + "\n")
        assert content_hash(load(FULL)) != version
        (data / path).write_text(old)
    (data / "handbook/c.md").write_text("New.")
    assert content_hash(load(FULL)) != version


def test_canonical_yaml_reads_back_as_the_same_template(load):
    for text in (PLAIN, FULL):
        template = load(text)
        again = load(canonical_yaml(template))
        assert again.model_dump() == template.model_dump()
        assert content_hash(again) == content_hash(template)
    assert "template: |\n  Question: {{ question }}\n  Answer:\n" in canonical_yaml(load(PLAIN))
    assert "stop" not in canonical_yaml(load(PLAIN + "stop: []\n"))


def test_versions_are_recorded_once_and_in_order(load, history):
    first = history.record(load(PLAIN), note="start")
    assert history.record(load(PLAIN)) == first
    second = history.record(load(PLAIN.replace("Answer:", "A:")))
    assert [entry.version for entry in history.versions("task/plain")] == [first, second]
    assert history.versions("task/plain")[0].note == "start"
    assert history.versions("task/none") == []
    assert history.record(load(PLAIN)) == first
    assert history.resolve("task/plain", "latest").version == first
    assert len(history.versions("task/plain")) == 3


def test_the_file_only_grows(load, history):
    before = b""
    first = history.record(load(PLAIN))
    for step in (
        lambda: history.record(load(FULL)),
        lambda: history.move("production", "task/plain", first, by="Ada"),
        lambda: history.record(load(PLAIN.replace("Answer:", "A:"))),
    ):
        step()
        after = history.path.read_bytes()
        assert after.startswith(before)
        assert len(after) > len(before)
        before = after


def test_a_pool_shared_by_versions_is_kept_once(load, history):
    history.record(load(FULL))
    history.record(load(FULL + "stop: [x]\n"))
    rows = [json.loads(line) for line in history.path.read_text().splitlines()]
    assert [row["event"] for row in rows] == ["file", "file", "file", "version", "version"]


def test_labels_move_and_every_move_is_recorded(load, history):
    first = history.record(load(PLAIN))
    second = history.record(load(PLAIN.replace("Answer:", "A:")))
    history.move("production", "task/plain", first, by="Ada", note="launch")
    history.move("candidate", "task/plain", "latest", by="Ada")
    moved = history.move("production", "task/plain", "candidate", by="Bo", note="won")
    assert (moved.version, moved.previous, moved.by) == (second, first, "Bo")
    assert history.labels("task/plain") == {"production": second, "candidate": second}
    assert [(m.label, m.version, m.previous, m.note) for m in history.moves("task/plain")] == [
        ("production", first, None, "launch"),
        ("candidate", second, None, ""),
        ("production", second, first, "won"),
    ]
    history.move("production", "task/plain", second, by="Bo")
    assert len(history.moves("task/plain")) == 3
    assert history.labels("task/none") == {}


@pytest.mark.parametrize("label", ["Production", "latest", "beef", "0123456789ab", "", "a b", "1a"])
def test_a_label_that_could_be_taken_for_something_else_is_refused(load, history, label):
    version = history.record(load(PLAIN))
    with pytest.raises(UserError, match=f"label '{label}': use a lower-case word"):
        history.move(label, "task/plain", version, by="Ada")
    with pytest.raises(UserError, match="say who moves it"):
        history.move("production", "task/plain", version, by=" ")


def test_a_reference_is_resolved_or_refused(load, history):
    version = history.record(load(PLAIN))
    history.move("production", "task/plain", version, by="Ada")
    for reference in (version, version[:4], "latest", "production"):
        assert history.resolve("task/plain", reference).version == version
    with pytest.raises(UserError, match=r"'prodution'; did you mean 'production'\?"):
        history.resolve("task/plain", "prodution")
    for reference in ("", version[:3], "ffff"):
        with pytest.raises(UserError, match=f"has no label or version '{reference}'"):
            history.resolve("task/plain", reference)
    with pytest.raises(UserError, match=r"no version of 'task/pain' is recorded; did you mean"):
        history.resolve("task/pain", "latest")


def test_an_ambiguous_beginning_is_refused(load, history):
    history.record(load(PLAIN))
    lines = history.path.read_text().splitlines()
    rows = [json.loads(lines[-1]) | {"version": f"abcd{n:08x}"} for n in (1, 2)]
    history.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="'abcd' begins abcd00000001, abcd00000002; write more"):
        history.resolve("task/plain", "abcd")


def test_an_old_version_renders_as_it_did(load, history, tmp_path):
    template = load(FULL)
    pool = load_items(template.pool_path)
    before = compile_template(template).render(pool[0], pool)
    version = history.record(template)
    data = tmp_path / "library/data"
    (data / "pool.jsonl").write_text(POOL.replace("1 + 1", "5 + 5"))
    (data / "handbook/a.md").unlink()
    load(FULL.replace("{{ question }}", "{{ question }}!"))
    folder = tmp_path / "restored"
    old = history.restore(history.resolve("task/full", version), folder)
    assert content_hash(old) == version
    items = load_items(old.pool_path)
    assert compile_template(old).render(items[0], items) == before
    assert (old.documents_path / "a.md").read_text() == "Tea is at four."
    assert (old.documents_path / "part/b.txt").read_text() == "Doors close at six."
    stamp = old.path.stat().st_mtime_ns
    assert (
        history.restore(history.resolve("task/full", version), folder).path.stat().st_mtime_ns
        == stamp
    )
    old.path.write_text("damaged")
    assert content_hash(history.restore(history.resolve("task/full", version), folder)) == version


def test_a_pool_that_is_no_text_is_kept(load, history, tmp_path):
    (tmp_path / "library/data/pool.jsonl").write_bytes(b"\xff\xfe\x00")
    version = history.record(load(FULL))
    restored = history.restore(history.resolve("task/full", version), tmp_path / "r")
    assert restored.pool_path.read_bytes() == b"\xff\xfe\x00"


def test_a_version_changed_by_hand_is_refused(load, history, tmp_path):
    version = history.record(load(PLAIN))
    text = history.path.read_text()
    history.path.write_text(text.replace("Question: ", "Query: "))
    with pytest.raises(UserError, match=f"version {version} of task/plain was changed by hand"):
        history.restore(history.resolve("task/plain", version), tmp_path / "a")
    history.path.write_text(text.replace('"text": "name', '"text": "- name'))
    with pytest.raises(UserError, match="was changed by hand"):
        history.restore(history.resolve("task/plain", version), tmp_path / "b")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", r"history\.jsonl:2: damaged record \("),
        ("[]", "2: damaged record"),
        ('{"event": "dance"}', r"2: damaged record \(unknown event 'dance'\)"),
        ('{"event": "version", "name": "x"}', "2: damaged record"),
        (
            '{"event": "label", "name": "task/plain", "label": "a", "version": "ff", '
            '"previous": null, "time": "", "by": "", "note": ""}',
            "label of the unknown version ff",
        ),
    ],
)
def test_a_damaged_record_is_refused_and_left_alone(load, history, line, expected):
    history.record(load(PLAIN))
    with history.path.open("a") as file:
        file.write(f"{line}\n")
    before = history.path.read_bytes()
    with pytest.raises(UserError, match=expected):
        history.versions("task/plain")
    with pytest.raises(UserError, match=expected):
        history.record(load(FULL))
    assert history.path.read_bytes() == before


def test_a_record_that_was_cut_off_is_refused(load, history):
    history.record(load(PLAIN))
    history.path.write_bytes(history.path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"history\.jsonl:1: damaged record \(cut off\)"):
        history.record(load(FULL))


def test_a_history_that_cannot_be_written_or_read_is_one_line(load, tmp_path):
    history = History(tmp_path / "none/history.jsonl")
    with pytest.raises(UserError, match=r"cannot be written .* copy the library to a folder"):
        history.record(load(PLAIN))
    with pytest.raises(UserError, match="cannot be read"):
        History(tmp_path).versions("task/plain")


def test_large_documents_are_refused(load, history, tmp_path):
    (tmp_path / "library/data/handbook/big.md").write_text("x" * MAX_RECORDED)
    with pytest.raises(UserError, match=r"pool and documents have 5,000,\d\d\d bytes; the history"):
        history.record(load(FULL))
    assert not history.path.exists()


def test_processes_that_record_at_once_lose_nothing(load, history, tmp_path):
    paths = [load(PLAIN.replace("plain", f"plain{n}")).path for n in range(2)]
    code = (
        "import sys; from pathlib import Path; from prompts.template import load_template\n"
        "from prompts.versions import History\n"
        "template, history = load_template(Path(sys.argv[1])), History(Path(sys.argv[2]))\n"
        "for n in range(20):\n"
        "    history.record(template.model_copy(update={'stop': [f'{n}']}))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(history.path)])
        for path in paths
    ]
    assert [process.wait(timeout=100) for process in running] == [0, 0]
    assert [len(history.versions(f"task/plain{n}")) for n in range(2)] == [20, 20]


def test_a_diff_shows_what_changed(load, tmp_path):
    old = snapshot(load(FULL))
    assert diff(old, old) == ""
    (tmp_path / "library/data/pool.jsonl").write_text(POOL.replace("1 + 1", "5 + 5"))
    (tmp_path / "library/data/handbook/c.md").write_text("New.\n")
    new = snapshot(load(FULL + "stop: [x]\n"))
    text = diff(old, new)
    assert text.startswith(
        f"--- task/full@{old.version}/template.yaml\n+++ task/full@{new.version}/template.yaml\n"
    )
    assert "\n+stop:\n+- x" in text
    assert (
        '\n-{"id": "p1", "question": "1 + 1?", "answer": "2"}\n+{"id": "p1", "question": "5' in text
    )
    assert "/documents/c.md\n@@ -0,0 +1 @@\n+New." in text
    assert "handbook/a.md" not in text


def test_a_diff_of_binary_files_says_so(load, tmp_path):
    old = snapshot(load(FULL))
    (tmp_path / "library/data/pool.jsonl").write_bytes(b"\xff")
    assert diff(old, snapshot(load(FULL))).endswith("binary files differ")


def test_times_are_utc(load):
    entry = snapshot(load(PLAIN), note="why")
    assert entry.note == "why"
    assert entry.time.endswith("+00:00")
    assert entry.time[:4] == time.strftime("%Y", time.gmtime())

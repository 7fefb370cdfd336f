import io
import json
import zipfile
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from tests.ui.pages import Visitor, serving
from tests.ui.samples import NOON, PASSWORD, campaign
from ui.accounts import add_user
from ui.assignment import next_assignment
from ui.downloads import link
from ui.exporting import Filters
from ui.schema import Event, User
from ui.server import create_app
from ui.store import Store
from ui.votes import record_vote


@pytest.fixture(scope="module")
def store(tmp_path_factory, sqlite_template) -> Iterator[Store]:
    path = tmp_path_factory.mktemp("downloads") / "ratings.db"
    path.write_bytes(sqlite_template.read_bytes())
    opened = Store(f"sqlite:///{path}")
    campaign(opened, "House style", items=4, raters_per_item=2)
    add_user(opened, "rita", PASSWORD, "researcher")
    for name in ("ann", "bob"):
        for number in range(4):
            item = next_assignment(opened, "House style", name, NOON)
            right = item.answers[0].startswith("Right") == (number != 3 or name == "ann")
            choice = "a" if right else "b"
            record_vote(opened, name, item.assignment_id, choice, seconds=9.0, now=NOON)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def address(store) -> Iterator[str]:
    with serving(create_app(store, b"s" * 64)) as url:
        yield url


@pytest.fixture(scope="module")
def rita(address) -> Visitor:
    return Visitor(address, "rita")


def get(visitor, form="jsonl", name="House style", **filters):
    return visitor.http.get(link(name, form, Filters(**filters)))


def test_a_link_names_what_was_chosen():
    chosen = Filters(min_raters=2, drop_failed=True)
    assert link("a b", "csv", chosen) == (
        "/export/a%20b?form=csv&consolidate=majority&min_raters=2&min_agreement=0.0"
        "&drop_failed=True&test_fraction=0.0"
    )


def test_a_file_of_pairs(rita):
    reply = get(rita)
    assert reply.status_code == 200
    named = "attachment; filename*=utf-8''House%20style.jsonl"
    assert reply.headers["content-disposition"] == named
    rows = [json.loads(line) for line in reply.text.splitlines()]
    assert {row["chosen"].split()[0] for row in rows} == {"Right"}
    assert len(rows) == 3


def test_filters_are_applied(rita):
    assert len(get(rita, consolidate="none").text.splitlines()) == 8
    strict = get(rita, min_raters=3)
    assert strict.status_code == 400
    assert "no pair" in strict.text


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_other_forms(rita, form):
    reply = get(rita, form)
    assert reply.status_code == 200
    assert reply.content[:4] == b"PAR1" if form == "parquet" else b"chosen" in reply.content


def test_a_folder_for_datasets_is_zipped(rita, tmp_path):
    from datasets import load_from_disk

    reply = get(rita, "datasets", test_fraction=0.5)
    zipfile.ZipFile(io.BytesIO(reply.content)).extractall(tmp_path)
    found = load_from_disk(str(tmp_path))
    assert sum(len(found[split]) for split in found) == 3
    assert (tmp_path / "README.md").is_file()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/export/nothing", 400),
        ("/export/House%20style?form=xls", 422),
        ("/export/House%20style?min_raters=0", 400),
        ("/export/House%20style?min_agreement=2", 400),
        ("/export/House%20style?where=1", 422),
        ("/export/..%2F..%2Fetc%2Fpasswd", 404),
    ],
)
def test_a_wrong_request_is_refused(rita, path, status):
    assert rita.http.get(path).status_code == status


def test_raters_get_nothing(address):
    assert get(Visitor(address, "ann")).status_code == 403


def test_an_export_is_recorded(rita, store):
    get(rita, "csv")
    with store.reading() as session:
        found = select(Event.detail, User.name).join(User).where(Event.what == "export")
        detail, name = session.execute(found.order_by(Event.id.desc()).limit(1)).one()
    assert (detail, name) == ({"campaign": "House style", "form": "csv"}, "rita")

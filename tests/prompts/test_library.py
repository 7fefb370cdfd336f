import pytest

from prompts.library import LIBRARY, Library
from prompts.versions import content_hash
from workbench.errors import UserError

TEMPLATE = """\
name: {name}
strategy: zero_shot
template: "{text} {{{{ question }}}}"
variables: {{question: string}}
"""


def write(root, name: str, text: str = "Say:") -> None:
    path = root / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE.format(name=name, text=text), encoding="utf-8")


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "library"
    write(root, "task/plain")
    write(root, "task/kind", "Please say:")
    write(root, "other")
    return Library(root)


def test_names_are_paths_below_the_folder(library):
    assert library.names() == ["other", "task/kind", "task/plain"]
    assert library.get("task/kind").template == "Please say: {{ question }}"
    assert library.get("task/kind").path == library.root / "task/kind.yaml"


def test_an_unknown_name_offers_the_nearest(library):
    with pytest.raises(UserError, match=r"no template 'task/plane'; did you mean 'task/plain'\?"):
        library.get("task/plane")
    with pytest.raises(UserError, match="there are: other, task/kind, task/plain"):
        library.get("zzz")


@pytest.mark.parametrize("name", ["../library/other", "/etc/passwd", "task", ""])
def test_what_is_no_name_is_not_found(library, name):
    with pytest.raises(UserError, match=f"no template '{name}'"):
        library.get(name)


def test_a_name_that_is_not_the_path_is_refused(library):
    (library.root / "other.yaml").write_text(TEMPLATE.format(name="another", text="x"))
    with pytest.raises(UserError, match=r"other.yaml:1: name: must be 'other' as its path"):
        library.get("other")
    with pytest.raises(UserError, match="must be 'other' as its path"):
        library.get(str(library.root / "other.yaml"))


def test_a_file_anywhere_is_found_by_its_path(library, tmp_path):
    write(tmp_path, "mine/own")
    assert library.get(str(tmp_path / "mine/own.yaml")).name == "mine/own"
    assert library.get(str(library.root / "task/kind.yaml")).name == "task/kind"
    with pytest.raises(UserError, match=r"none\.yaml: no such template file; check the path"):
        library.get(str(tmp_path / "none.yaml"))


def test_a_yml_file_is_not_overlooked(library):
    (library.root / "task/new.yml").write_text("x: 1")
    with pytest.raises(UserError, match=r"task/new\.yml: template files end with \.yaml; rename"):
        library.names()


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no such folder; a library is a folder of \.yaml"):
        Library(tmp_path / "none")


def test_labels_and_versions_name_what_was_recorded(library):
    first = library.history.record(library.get("task/plain"))
    library.history.move("production", "task/plain", first, by="Ada")
    write(library.root, "task/plain", "Tell:")
    second = library.history.record(library.get("task/plain"))
    assert library.get("task/plain").template == "Tell: {{ question }}"
    assert library.get("task/plain@production").template == "Say: {{ question }}"
    assert library.get(f"task/plain@{first[:6]}").template == "Say: {{ question }}"
    assert library.get("task/plain@latest").path == library.root / "task/plain.yaml"
    assert library.get(f"task/plain@{second}").template == "Tell: {{ question }}"
    with pytest.raises(UserError, match=r"has no label or version 'staging'"):
        library.get("task/plain@staging")
    with pytest.raises(UserError, match=r"no version of 'other' is recorded"):
        library.get("other@production")


def test_a_recorded_template_survives_its_file(library):
    library.history.record(library.get("other"))
    (library.root / "other.yaml").unlink()
    assert library.get("other@latest").template == "Say: {{ question }}"


def test_entries_are_the_file_as_it_is_or_as_recorded(library):
    version = library.history.record(library.get("other"), note="first")
    write(library.root, "other", "Tell:")
    assert library.entry("other@latest").note == "first"
    assert library.entry("other").version != version
    assert "Tell:" in library.entry("other").text


def test_the_starter_library_loads():
    library = Library()
    assert library.root == LIBRARY
    assert library.names()
    assert {library.get(name).name for name in library.names()} == set(library.names())


@pytest.mark.parametrize("name", Library().names())
def test_the_record_of_the_starter_library_knows_each_template_as_it_is(name):
    library = Library()
    recorded = [entry.version for entry in library.history.versions(name)]
    current = content_hash(library.get(name))
    # A changed template shows in review as a new line of the record, with its reason:
    # `rlhf prompts label NAME current production --by WHO --note WHY`.
    assert recorded[-1:] == [current], f"{name} was changed and not recorded"
    assert library.history.labels(name)["production"] == current

import pytest

from prompts.conversations import render_all
from prompts.library import Library
from tests.prompts.gulls import ITEMS, library_in, suite_items, suite_of


@pytest.fixture
def home(tmp_path):
    return library_in(tmp_path)


def test_exemplars_are_shown_and_an_item_never_sees_its_repetition(home):
    template = Library(home / "library").get("t/few")
    suite = suite_of(home, "few")
    prompts = render_all(template, suite_items(suite))
    assert prompts.excluded == 1
    for number, messages in enumerate(prompts.messages):
        shown = [turn["content"] for turn in messages[:-1] if turn["role"] == "user"]
        second = "What hums?" if number == 3 else "How many gulls sit on 3 gates?"
        assert shown == ["Who painted the gate blue?", second]
        assert messages[-1]["content"] == ITEMS[number]["question"]


@pytest.mark.slow
def test_passages_are_searched_for_and_shown(home):
    folder = home / "documents"
    folder.mkdir()
    (folder / "birds.md").write_text("Gulls sit on gates by the harbour, mostly in the evening.\n")
    (folder / "bread.md").write_text("Bread rises slowly in a cold kitchen, so start early.\n")
    path = home / "library" / "t" / "found.yaml"
    path.write_text(
        "name: t/found\nstrategy: zero_shot\nvariables: {question: string}\n"
        'template: "{{ passages[0].text }} ({{ passages[0].source }}) {{ question }}"\n'
        "documents: {folder: ../../documents, k: 1, query: question}\n"
    )
    template = Library(home / "library").get("t/found")
    prompts = render_all(template, suite_items(suite_of(home, "greedy")))
    assert "Gulls sit on gates" in prompts.messages[0][-1]["content"]
    assert "birds.md" in prompts.messages[0][-1]["content"]

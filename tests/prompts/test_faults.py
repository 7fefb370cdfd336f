import pytest

from prompts.answers import Extraction
from prompts.conversations import render_all
from prompts.faults import FAULTS, Fault
from prompts.items import load_items
from prompts.library import Library
from prompts.suite import SUITES, load_suite
from prompts.template import Template
from prompts.versions import content_hash

LIBRARY = Library()
BY_NAME = {fault.name: fault for fault in FAULTS}
# Every strategy, with and without a system turn, likelihood, labels, letters, lists and two texts.
TEMPLATES = (
    "arithmetic/zero_shot", "arithmetic/few_shot", "arithmetic/chain_of_thought",
    "arithmetic/zero_shot_cot", "arithmetic/self_consistency", "commonsense/few_shot",
    "commonsense/likelihood", "sentiment/few_shot", "emotion/zero_shot", "passage_qa/few_shot",
    "refusal/few_shot",
)  # fmt: skip


def broken(fault: str, name: str) -> Template:
    faulty = BY_NAME[fault].apply(LIBRARY.get(name))
    assert faulty is not None
    return faulty


def prompts(template: Template):
    data = load_suite(SUITES / f"{template.name.split('/')[0]}.yaml", LIBRARY).data
    return render_all(template, load_items(data, 3)).messages


def first_item(suite: str):
    return load_items(load_suite(SUITES / f"{suite}.yaml", LIBRARY).data, 1)[0].fields


def last_turn(fault: str, name: str) -> str:
    return prompts(broken(fault, name))[0][-1]["content"]


def test_there_are_more_than_a_dozen_and_each_is_named_and_described():
    assert len(FAULTS) == len(BY_NAME) == 22
    assert all(fault.description and not fault.description.endswith(".") for fault in FAULTS)
    assert BY_NAME["few_tokens"].description == "Allow an eighth of the new tokens"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_fault_changes_what_it_says_and_nothing_else(name):
    template = LIBRARY.get(name)
    whole = prompts(template)
    settings = (template.answer, template.stop, template.generation)
    found = 0
    for fault in FAULTS:
        faulty = fault.apply(template)
        if faulty is None:
            continue
        found += 1
        assert content_hash(faulty) != content_hash(template), fault.name
        changed_text = prompts(faulty) != whole
        changed_rest = (faulty.answer, faulty.stop, faulty.generation) != settings
        assert (changed_text, changed_rest) == (not fault.generated, fault.generated), fault.name
    assert found >= 10


def test_every_fault_applies_to_some_starter_template_and_most_to_a_few_shot_one():
    templates = [LIBRARY.get(name) for name in TEMPLATES]
    applies = {
        fault.name: [each.name for each in templates if fault.apply(each) is not None]
        for fault in FAULTS
    }
    assert min(len(names) for names in applies.values()) >= 2
    assert sum("sentiment/few_shot" in names for names in applies.values()) == 20


def test_a_template_without_what_is_broken_has_no_such_fault():
    zero = LIBRARY.get("arithmetic/zero_shot")
    for fault in ("missing_system", "wrong_labels", "one_exemplar", "leaked_answer"):
        assert BY_NAME[fault].apply(zero) is None
    likelihood = LIBRARY.get("commonsense/likelihood")
    assert all(fault.apply(likelihood) is None for fault in FAULTS if fault.generated)
    cot = LIBRARY.get("arithmetic/zero_shot_cot")
    assert BY_NAME["missing_instruction"].apply(cot) is None


def test_what_would_not_even_load_is_no_fault_of_the_suite():
    template = LIBRARY.get("arithmetic/few_shot")
    unread = Fault("x", "Reads nothing", lambda t: t.model_copy(update={"template": "Well?"}))
    assert unread.apply(template) is None
    assert Fault("x", "Changes nothing", lambda t: t.model_copy()).apply(template) is None


def test_instructions_are_dropped_whole_or_in_part_and_replaced():
    question = first_item("arithmetic")["question"]
    turn = last_turn("missing_instruction", "arithmetic/zero_shot")
    assert turn == f"Problem: {question}\nAnswer:"
    assert prompts(broken("missing_system", "arithmetic/few_shot"))[0][0]["role"] == "user"
    system = prompts(broken("missing_last_sentence", "arithmetic/few_shot"))[0][0]["content"]
    assert system == "Solve each problem."
    system = prompts(broken("wrong_language", "arithmetic/few_shot"))[0][0]["content"]
    assert system.endswith("and nothing else. Write in French.")
    turn = last_turn("wrong_language", "arithmetic/zero_shot_cot")
    assert turn.endswith("Let's think step by step. Write in French.")


def test_labels_and_letters_are_exchanged():
    system = prompts(broken("shuffled_labels", "sentiment/few_shot"))[0][0]["content"]
    assert "Is the sentiment of the sentence negative, neutral or positive?" in system
    assert "A sentence is positive if it states facts" in system
    turn = last_turn("shuffled_labels", "emotion/zero_shot")
    assert "joy" in turn
    assert "Joy means that it shows no emotion" in turn  # a capital stays one
    lines = last_turn("shifted_letters", "commonsense/few_shot").splitlines()
    assert [line[:2] for line in lines[1:5]] == ["B.", "C.", "D.", "A."]
    assert lines[1] == f"B. {first_item('commonsense')['choices'][0]}"


def test_the_question_is_lost_cut_or_marked():
    assert last_turn("missing_variable", "arithmetic/zero_shot").endswith("Problem: \nAnswer:")
    turn = last_turn("missing_variable", "passage_qa/few_shot")
    assert turn.startswith("Passage: \n")
    assert not turn.endswith("Question: \nAnswer:")
    question = first_item("arithmetic")["question"]
    turn = last_turn("truncated_context", "arithmetic/few_shot")
    assert turn == f"Problem: {question[: len(question) // 2]}\nAnswer:"
    assert last_turn("missing_cue", "arithmetic/few_shot") == f"Problem: {question}"
    assert last_turn("doubled_turns", "arithmetic/few_shot") == (
        f"<|im_start|>user\nProblem: {question}\nAnswer:<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_answer_leaks_into_the_prompt():
    turn = last_turn("leaked_answer", "arithmetic/few_shot")
    assert turn.startswith(f"{first_item('arithmetic')['answer']}\nProblem:")
    turn = last_turn("leaked_answer", "passage_qa/few_shot")
    assert turn.startswith(f"{first_item('passage_qa')['answer'][0]}\nPassage:")


@pytest.mark.parametrize(
    "name",
    ["sentiment/few_shot", "arithmetic/chain_of_thought", "passage_qa/few_shot",
     "refusal/few_shot", "commonsense/likelihood"],
)  # fmt: skip
def test_exemplars_with_wrong_labels_keep_their_questions(name):
    right, wrong = prompts(LIBRARY.get(name)), prompts(broken("wrong_labels", name))
    for before, after in zip(right, wrong, strict=True):
        for old, new in zip(before, after, strict=True):
            assert (old == new) == (old["role"] != "assistant")


def test_wrong_labels_come_from_the_pool():
    (messages, *_) = prompts(broken("wrong_labels", "sentiment/few_shot"))
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    assert sorted(answers) == sorted(["negative", "neutral", "positive"] * 2)


def test_exemplars_are_reduced_lost_or_laid_out_otherwise():
    def roles(fault: str) -> str:
        (messages, *_) = prompts(broken(fault, "arithmetic/few_shot"))
        return "".join(turn["role"][0] for turn in messages)

    assert roles("one_exemplar") == "suau"
    assert roles("missing_exemplars") == roles("other_layout") == "su"
    assert last_turn("other_layout", "arithmetic/few_shot").count("Problem:") == 5
    assert broken("missing_exemplars", "arithmetic/few_shot").strategy == "zero_shot"
    assert broken("missing_exemplars", "arithmetic/self_consistency").samples == 5
    assert list(broken("missing_exemplars", "arithmetic/few_shot").variables) == ["question"]


def test_generation_settings_are_broken():
    template = LIBRARY.get("arithmetic/few_shot")
    assert broken("early_stop", template.name).stop == [*template.stop, " "]
    assert broken("missing_stop", template.name).stop == []
    assert broken("few_tokens", template.name).generation.max_new_tokens == 2
    assert broken("few_tokens", "sentiment/few_shot").generation.max_new_tokens == 1
    assert broken("high_temperature", template.name).generation.temperature == 1.5
    voting = broken("high_temperature", "arithmetic/self_consistency")
    assert voting.generation.temperature == 1.5


@pytest.mark.parametrize(
    ("fault", "name", "text", "before", "after"),
    [
        ("wrong_pattern", "arithmetic/few_shot", "The answer is 12.", "12", None),
        ("lenient_extraction", "arithmetic/chain_of_thought",
         "3 + 4 = 7 pears. The answer is 7.", "7", "3"),
        ("lenient_extraction", "passage_qa/few_shot", "Answer: Oslo\nIt is in the north.", "oslo",
         "answer oslo"),
        ("missing_normaliser", "arithmetic/few_shot", "1,200.0", "1200", "1,200.0"),
        ("missing_normaliser", "sentiment/few_shot", "Positive.", "positive", "Positive"),
    ],
)  # fmt: skip
def test_extraction_is_broken(fault, name, text, before, after):
    assert Extraction(LIBRARY.get(name).answer)(text).flexible == before
    assert Extraction(broken(fault, name).answer)(text).flexible == after

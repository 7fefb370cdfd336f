"""Deliberate faults: what goes wrong with prompts in practice, as functions of a template.

They measure the regression suite itself: which of them does it find, with how many items?
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import meta

from prompts.candidates import instruction_of, with_instruction
from prompts.items import load_items
from prompts.rendering import check_template
from prompts.sandbox import Sandbox
from prompts.template import NumberExtractor, RegexExtractor, Template, YesNoExtractor
from workbench.errors import UserError

_PRINTED = re.compile(r"\{\{\s*(\w+)(\[0\])?\s*\}\}")  # {{ name }} and {{ name[0] }}
_LETTER = re.compile(r"^([A-H])(?=[.)] )", re.MULTILINE)  # of a choice: "A. …" or "A) …"
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")
FEWER_TOKENS = 8  # an eighth of the new tokens
HOT = 1.5


@dataclass(frozen=True)
class Fault:
    """One way to break a template.

    Attributes:
        name: what tables call it.
        description: what was done, in words.
        make: returns the broken template, or None where there is nothing to break.
        generated: whether it breaks what is generated only, and so nothing of likelihood scoring.
    """

    name: str
    description: str
    make: Callable[[Template], Template | None]
    generated: bool = False

    def apply(self, template: Template) -> Template | None:
        """Return the broken template.

        Returns:
            None where it has nothing to break, or where what is broken would not even load.
        """
        if self.generated and template.scoring == "likelihood":
            return None
        try:
            faulty = self.make(template)
            if faulty is None or faulty == template:
                return None
            check_template(faulty)
        except UserError:
            return None
        return faulty


def missing_instruction(template: Template) -> Template | None:
    """Drop the instruction from the user turn."""
    told = template.system is None and template.strategy != "zero_shot_cot"
    return with_instruction(template, None) if told and instruction_of(template) else None


def missing_system(template: Template) -> Template | None:
    """Drop the system turn."""
    return template.model_copy(update={"system": None}) if template.system else None


def missing_last_sentence(template: Template) -> Template | None:
    """Drop the last sentence of the instruction, mostly the one about the answer's form."""
    instruction = instruction_of(template)
    sentences = _SENTENCE.split(instruction.strip()) if instruction else []
    return with_instruction(template, " ".join(sentences[:-1])) if sentences[1:] else None


def wrong_language(template: Template) -> Template | None:
    """Ask for French at the end of the instruction."""
    instruction = instruction_of(template)
    if not instruction:
        return None
    return with_instruction(template, f"{instruction.strip()} Write in French.")


def shuffled_labels(template: Template) -> Template | None:
    """Exchange the names of the labels in the instruction."""
    labels = [label for label in _labels(template) if len(label) > 1]
    instruction = instruction_of(template)
    if instruction is None or len(labels) < 2:
        return None
    next_label = {name.lower(): other for name, other in _rotated(labels).items()}
    words = re.compile(rf"\b({'|'.join(map(re.escape, labels))})\b", re.IGNORECASE)

    def exchanged(match: re.Match[str]) -> str:
        other = next_label[match[0].lower()]
        return other.capitalize() if match[0][0].isupper() else other

    return with_instruction(template, words.sub(exchanged, instruction))


def shifted_letters(template: Template) -> Template | None:
    """Print the letters of the choices one place further: what was A is called B."""
    letters = _LETTER.findall(template.template)
    if len(letters) < 2:
        return None
    others = _rotated(letters)
    return _user_turn(template, _LETTER.sub(lambda match: others[match[1]], template.template))


def missing_variable(template: Template) -> Template | None:
    """Leave the first text variable of the user turn out."""
    for name in _printed_texts(template):
        turn = re.sub(rf"\{{\{{\s*{name}\b[^}}]*\}}\}}", "", template.template)
        if turn.strip() and name not in _read(turn):
            return _pruned(_user_turn(template, turn))
    return None


def truncated_context(template: Template) -> Template | None:
    """Cut every text of the user turn to its first half."""
    texts = _printed_texts(template)

    def cut(match: re.Match[str]) -> str:
        name = match[1]
        return f"{{{{ {name}[:({name} | length) // 2] }}}}" if name in texts else match[0]

    return _user_turn(template, _PRINTED.sub(cut, template.template))


def missing_cue(template: Template) -> Template | None:
    """Leave the user turn's last line out where it is a cue such as `Answer:`."""
    turn, line_break, cue = template.template.rstrip().rpartition("\n")
    if not line_break or not re.fullmatch(r"[\w ]+:", cue):
        return None
    return _user_turn(template, turn)


def doubled_turns(template: Template) -> Template | None:
    """Write the marks of a chat template into the user turn, which gets them anyway."""
    turn = template.template.rstrip("\n")
    # Jinja drops the last line break of a text.
    marked = f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n\n"
    return _user_turn(template, marked)


def leaked_answer(template: Template) -> Template | None:
    """Print the answer, of exemplars and of the item itself, above the user turn."""
    answer = _exemplar_answer(template)
    if answer is None or template.variables[answer[1]].optional:
        return None
    return _user_turn(template, f"{answer[0]}\n{template.template}")


def wrong_labels(template: Template) -> Template | None:
    """Show exemplars whose answers are those of others."""
    answer = _exemplar_answer(template)
    if answer is None or template.exemplars is None or template.pool_path is None:
        return None
    values = [row.fields.get(answer[1]) for row in load_items(template.pool_path)]
    first = [value[0] if answer[2] and isinstance(value, list) else value for value in values]
    texts = list(dict.fromkeys(value for value in first if isinstance(value, str)))
    if len(texts) < 2 or None in first:
        return None
    other = f"{{{{ {json.dumps(_rotated(texts))}[{answer[1]}{answer[2]}] }}}}"
    before, _, after = template.exemplars.answer.rpartition(answer[0])
    return _exemplars(template, answer=f"{before}{other}{after}")


def one_exemplar(template: Template) -> Template | None:
    """Show a single exemplar."""
    if template.exemplars is None:
        return None
    return _exemplars(template, k=1, ids=template.exemplars.ids[:1])


def missing_exemplars(template: Template) -> Template | None:
    """Show no exemplars."""
    if template.exemplars is None:
        return None
    voting = template.strategy == "self_consistency"
    strategy = template.strategy if voting else "zero_shot"
    return _pruned(template.model_copy(update={"strategy": strategy, "exemplars": None}))


def other_layout(template: Template) -> Template | None:
    """Put the exemplars into one turn where they had turns of their own, or the other way."""
    if template.exemplars is None:
        return None
    other = "turns" if template.exemplars.layout == "one_turn" else "one_turn"
    return _exemplars(template, layout=other)


def early_stop(template: Template) -> Template | None:
    """Stop at the first blank."""
    return template.model_copy(update={"stop": [*template.stop, " "]})


def missing_stop(template: Template) -> Template | None:
    """Drop the stop texts."""
    return template.model_copy(update={"stop": []})


def few_tokens(template: Template) -> Template | None:
    """Allow an eighth of the new tokens."""
    most = max(1, template.generation.max_new_tokens // FEWER_TOKENS)
    return _generation(template, max_new_tokens=most)


def high_temperature(template: Template) -> Template | None:
    """Sample at a temperature of 1.5, or twice the temperature if that is more."""
    return _generation(template, temperature=max(HOT, 2 * template.generation.temperature))


def wrong_pattern(template: Template) -> Template | None:
    """Look for the answer after a mark that nothing asks for."""
    pattern = RegexExtractor(type="regex", pattern=r"####\s*(\S+)")
    return _answer(template, extract=[pattern])


def lenient_extraction(template: Template) -> Template | None:
    """Keep the last extractor alone, and let it take the first match."""
    last = template.answer.extract[-1]
    if isinstance(last, RegexExtractor | NumberExtractor | YesNoExtractor):
        last = last.model_copy(update={"which": "first"})
    return _answer(template, extract=[last])


def missing_normaliser(template: Template) -> Template | None:
    """Compare answers as they are written."""
    return _answer(template, normalise="none")


def _named(make: Callable[[Template], Template | None], *, generated: bool = False) -> Fault:
    description = (make.__doc__ or "").rstrip(".")
    return Fault(make.__name__, description, make, generated)


FAULTS = (
    *map(
        _named,
        (
            missing_instruction, missing_system, missing_last_sentence, wrong_language,
            shuffled_labels, shifted_letters, missing_variable, truncated_context, missing_cue,
            doubled_turns, leaked_answer, wrong_labels, one_exemplar, missing_exemplars,
            other_layout,
        ),
    ),
    *(
        _named(make, generated=True)
        for make in (
            early_stop, missing_stop, few_tokens, high_temperature, wrong_pattern,
            lenient_extraction, missing_normaliser,
        )
    ),
)  # fmt: skip


def _rotated(values: Sequence[str]) -> dict[str, str]:
    """Map every value to the next, the last to the first."""
    return dict(zip(values, [*values[1:], values[0]], strict=True))


def _labels(template: Template) -> list[str]:
    """Return the labels that the answers are taken from, if they are."""
    if isinstance(template.choices, list):
        return template.choices
    for extractor in template.answer.extract:
        if extractor.type == "label":
            return extractor.labels
    return []


def _printed_texts(template: Template) -> list[str]:
    """Return the text variables that the user turn prints as they are, in its order."""
    names = dict.fromkeys(match[1] for match in _PRINTED.finditer(template.template))
    kinds: Mapping[str, Any] = template.variables
    return [name for name in names if name in kinds and kinds[name].type == "string"]


def _exemplar_answer(template: Template) -> tuple[str, str, str] | None:
    """Return what prints the answer of an exemplar: `{{ answer[0] }}`, `answer` and `[0]`."""
    if template.exemplars is None:
        return None
    *_, last = [None, *_PRINTED.finditer(template.exemplars.answer)]
    return last and (last[0], last[1], last[2] or "")


def _read(text: str) -> set[str]:
    return set(meta.find_undeclared_variables(Sandbox().syntax(text)))


def _pruned(template: Template) -> Template:
    """Declare only the variables that are read."""
    texts = [template.template, template.system or ""]
    read = {template.choices} if isinstance(template.choices, str) else set[str]()
    if template.documents is not None:
        read.add(template.documents.query)
    if template.exemplars is not None:
        texts.append(template.exemplars.answer)
        read |= {template.exemplars.by or "", template.exemplars.label or ""}
    read = read.union(*map(_read, texts))
    left = {name: kind for name, kind in template.variables.items() if name in read}
    return template.model_copy(update={"variables": left})


def _user_turn(template: Template, text: str) -> Template:
    return template.model_copy(update={"template": text})


def _exemplars(template: Template, **changes: Any) -> Template | None:
    if template.exemplars is None:
        return None
    changed = template.exemplars.model_copy(update=changes)
    return template.model_copy(update={"exemplars": changed})


def _generation(template: Template, **changes: Any) -> Template:
    changed = template.generation.model_copy(update=changes)
    return template.model_copy(update={"generation": changed})


def _answer(template: Template, **changes: Any) -> Template:
    return template.model_copy(update={"answer": template.answer.model_copy(update=changes)})

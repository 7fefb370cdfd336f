"""From template and item to messages, text or token ids; hostile templates are refused."""

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.utils import concat

from prompts.documents import nearest
from prompts.sandbox import FAILURES, MAX_CHARACTERS, Sandbox, words
from workbench.chat import query_ids
from workbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prompts.items import Item
    from prompts.retrieval import Passage
    from prompts.template import Template

Message = dict[str, str]

ACCEPTED: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list, tuple),
    "object": (dict,),
}


def _texts(template: "Template") -> list[tuple[tuple[str, ...], str]]:
    """Return the Jinja texts of a template with their keys."""
    texts: list[tuple[tuple[str, ...], str]] = [(("template",), template.template)]
    if template.system is not None:
        texts.append((("system",), template.system))
    if template.exemplars is not None:
        texts.append((("exemplars", "answer"), template.exemplars.answer))
    return texts


def check_template(template: "Template") -> None:
    """Check the Jinja texts of a template without an item.

    Raises:
        UserError: for a syntax error, a construct that is not allowed, a variable that is read but
            not declared or declared but not read; names file, line and key.
    """
    sandbox = Sandbox()
    read: set[str] = set()
    for keys, text in _texts(template):
        read |= _read(sandbox, template, keys, text)
    if template.documents is not None and "passages" not in read:
        raise template.error("no text reads `passages`; print them or remove this", "documents")
    read |= _used_elsewhere(template)
    for name in template.variables:
        if name not in read:
            raise template.error("is read by nothing; use it or remove it", "variables", name)


def _used_elsewhere(template: "Template") -> set[str]:
    exemplars, documents = template.exemplars, template.documents
    fields = [
        template.choices if isinstance(template.choices, str) else None,
        exemplars.by if exemplars else None,
        exemplars.label if exemplars else None,
        documents.query if documents else None,
    ]
    return {field for field in fields if field is not None}


def _read(sandbox: Sandbox, template: "Template", keys: tuple[str, ...], text: str) -> set[str]:
    try:
        tree = sandbox.syntax(text)
        read = meta.find_undeclared_variables(tree)
    except FAILURES as error:
        line = error.lineno if isinstance(error, TemplateSyntaxError) else 1
        raise template.error(words(error), *keys, within=line) from None
    names = {name.name: name.lineno for name in reversed(list(tree.find_all(nodes.Name)))}
    if "self" in names:
        read.add("self")
    declared = set(template.variables) | ({"passages"} if template.documents else set())
    for name in sorted(read - declared, key=lambda name: (names[name], name)):
        raise template.error(
            f"reads '{name}', which `variables` does not declare; {nearest(name, declared)}",
            *keys,
            within=names[name],
        )
    return read


class _Part:
    """One Jinja text of a template, compiled."""

    def __init__(
        self, sandbox: Sandbox, template: "Template", keys: tuple[str, ...], text: str
    ) -> None:
        self.sandbox, self.template, self.keys = sandbox, template, keys
        read = _read(sandbox, template, keys, text)
        self.file = f"{template.name}:{'.'.join(keys)}"
        try:
            self.jinja = sandbox.function(text, self.file)
        except FAILURES as error:
            raise template.error(words(error), *keys) from None
        self.variables = [
            (name, ACCEPTED[variable.type], variable.type, variable.optional)
            for name, variable in template.variables.items()
            if name in read
        ]

    def __call__(self, item: "Item", passages: Sequence[Mapping[str, Any]]) -> str:
        values: dict[str, Any] = {}
        for name, accepted, kind, optional in self.variables:
            value = values[name] = item.fields.get(name)
            if type(value) not in accepted and (value is not None or not optional):
                raise self._unfit(item, name, kind)
        if self.template.documents is not None:
            values["passages"] = passages
        try:
            text = concat(self.jinja.root_render_func(self.jinja.new_context(values)))
            text.encode()  # neither files nor tokenizers take half a character
        except FAILURES as error:
            line = self._line(error.__traceback__)
            raise self.template.error(
                f"{words(error)} (item '{item.id}')", *self.keys, within=line
            ) from None
        if not text.strip() and self.keys != ("system",):
            raise self.template.error(f"renders to nothing for item '{item.id}'", *self.keys)
        return text

    def _unfit(self, item: "Item", name: str, kind: str) -> UserError:
        value = item.fields.get(name)
        row = f"item '{item.id}' (row {item.line} of its file)"
        if value is not None:
            found = f"{row} has {value!r:.60}, which is no {kind}; mend the item or the type"
        elif name in item.fields:
            found = f"{row} has null; mend the item, or declare it optional"
        else:
            found = f"{row} lacks it; {nearest(name, item.fields)}"
        return self.template.error(found, "variables", name)

    def _line(self, trace: TracebackType | None) -> int:
        line = 1
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self.file:
                line = self.jinja.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return line


class Compiled:
    """A template ready to be filled with items; `compile_template` makes it.

    Attributes:
        template: where it comes from.
    """

    def __init__(self, template: "Template") -> None:
        self.template = template
        self._sandbox = Sandbox()
        self._lock = threading.Lock()
        parts = {
            keys: _Part(self._sandbox, template, keys, text) for keys, text in _texts(template)
        }
        self._user = parts["template",]
        self._system = parts.get(("system",))
        self._answer = parts.get(("exemplars", "answer"))

    def render(
        self,
        item: "Item",
        exemplars: Sequence["Item"] = (),
        passages: Sequence["Passage"] = (),
    ) -> list[Message]:
        """Return the conversation for an item.

        Values are inserted as they are and never rendered again.

        Args:
            item: the row that is asked about.
            exemplars: worked examples, in the order in which they are shown.
            passages: what retrieval found; the template reads text, source and score. An exemplar
                reads its own field `passages`, if it has one.

        Returns:
            A system turn if the template has one, the exemplars' turns, and the user turn.

        Raises:
            UserError: when a field is missing or of another type, the text fails on this item, or
                the conversation is longer than `MAX_CHARACTERS`; names template, line and item.
        """
        found = [{"text": p.text, "source": p.source, "score": p.score} for p in passages]
        with self._lock:
            self._sandbox.refill()
            shown = self._shown(exemplars)
            question = self._user(item, found)
            system = self._system(item, found) if self._system else ""
        if self.template.strategy == "zero_shot_cot":
            question += f"\n{self.template.trigger}"
        messages = [{"role": "system", "content": system}] if system.strip() else []
        settings = self.template.exemplars
        if settings is not None and settings.layout == "one_turn":
            texts = [f"{user}\n{answer}" for user, answer in shown]
            question = settings.separator.join([*texts, question])
        else:
            for user, answer in shown:
                messages.append({"role": "user", "content": user})
                messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": question})
        size = sum(len(message["content"]) for message in messages)
        if size > MAX_CHARACTERS:
            raise self.template.error(
                f"renders to {size:,} characters for item '{item.id}'; at most {MAX_CHARACTERS:,}",
                "template",
            )
        return messages

    def _shown(self, exemplars: Sequence["Item"]) -> list[tuple[str, str]]:
        if not exemplars:
            return []
        if self._answer is None:
            raise self.template.error("has no `exemplars`, but some are given")
        own = [exemplar.fields.get("passages", []) for exemplar in exemplars]
        return [
            (self._user(exemplar, passages), self._answer(exemplar, passages))
            for exemplar, passages in zip(exemplars, own, strict=True)
        ]


def compile_template(template: "Template") -> Compiled:
    """Parse and compile the Jinja texts of a template, once for all items.

    Raises:
        UserError: for a wrong or hostile text; names file, line and key.
    """
    return Compiled(template)


def continuation(messages: Sequence[Message], rationale: str, answer_trigger: str) -> list[Message]:
    """Return the second pass of zero_shot_cot (Kojima et al. 2022).

    Args:
        messages: the first pass.
        rationale: what the model answered to it.
        answer_trigger: such as "Therefore, the answer is".

    Returns:
        The messages and an assistant turn, rationale and trigger, that is to be continued.
    """
    start = f"{rationale.strip()}\n{answer_trigger}".lstrip()
    return [*messages, {"role": "assistant", "content": start}]


def as_text(messages: Sequence[Message]) -> str:
    """Return a conversation for a model without turns, as `workbench.chat` trains one.

    Contents are separated by an empty line; one follows the last user turn, so that the answer
    comes next, and none follows an assistant turn that is to be continued.
    """
    text = "\n\n".join(message["content"] for message in messages)
    return text if messages[-1]["role"] == "assistant" else f"{text}\n\n"


def token_ids(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Encode a conversation as `workbench.chat.query_ids` does, with one BOS at most.

    Args:
        tokenizer: with a chat template the messages become turns, else `as_text`.
        messages: when the last is an assistant turn, it is left open to be continued.

    Raises:
        UserError: when the chat template refuses the conversation.
    """
    turns = list(messages)
    if tokenizer.chat_template and turns[-1]["role"] != "assistant":
        return query_ids(tokenizer, turns)
    if tokenizer.chat_template:
        try:
            text: str = tokenizer.apply_chat_template(
                turns, continue_final_message=True, tokenize=False
            )
        except (TemplateError, ValueError) as error:
            raise UserError(
                f"the model's chat template cannot continue an answer: {str(error)[:200]}; "
                "use another model, or a strategy other than zero_shot_cot"
            ) from None
        continued: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return continued
    ids: list[int] = tokenizer(as_text(turns))["input_ids"]
    bos = tokenizer.bos_token_id
    # A text that itself begins with BOS gets another from the tokenizer.
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

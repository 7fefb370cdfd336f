"""The template file: one prompt, its exemplars, documents, answer and generation settings."""

import keyword
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from prompts.answers import compile_pattern
from prompts.documents import FieldError, Source, read_yaml, validated
from prompts.rendering import check_template
from workbench.errors import UserError

Strategy = Literal["zero_shot", "few_shot", "chain_of_thought", "zero_shot_cot", "self_consistency"]
VariableType = Literal["string", "integer", "number", "boolean", "list", "object"]
# Names that Jinja keeps for itself or that rendering provides.
RESERVED = {"self", "loop", "range", "namespace", "true", "false", "none"}
STRATEGY_KEYS = {
    "trigger": "zero_shot_cot",
    "answer_trigger": "zero_shot_cot",
    "samples": "self_consistency",
}
NEED_SETTINGS = {"regex", "json", "label"}  # extractors that cannot be written as a bare name
JINJA = re.compile(r"\{([{%]).*?[%}]\}", re.DOTALL)
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*)*")


def _literal_break(text: str) -> str | None:
    found = re.search(r"\\[nrt]", text)
    return found and (
        f"holds a backslash and '{found[0][1]}', not a line break or tab; write it in double "
        f'quotes, "{found[0]}"'
    )


class Settings(BaseModel):
    """A section of a template file: unknown keys and silent conversions are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Variable(Settings):
    """A field of the items that the template reads."""

    type: VariableType = Field(description="type of the field's value")
    optional: bool = Field(default=False, description="None where an item lacks the field")
    description: str = Field(default="", description="what it holds")


class ExemplarSettings(Settings):
    """Which worked examples are shown before the question, and how."""

    pool: str = Field(description="data file of the exemplars, relative to the template file")
    k: int = Field(default=3, ge=1, le=256, description="number of exemplars")
    selector: Literal["fixed", "first_n", "random", "knn", "mmr", "balanced"] = Field(
        default="first_n",
        description="fixed: `ids`; first_n; random: seeded; knn: nearest by embedding; mmr: near "
        "and diverse; balanced: equally many of each `label`",
    )
    ids: list[str] = Field(default=[], description="fixed: ids of the exemplars, in order")
    by: str | None = Field(default=None, description="knn, mmr: the field that is embedded")
    label: str | None = Field(
        default=None, description="balanced: the field whose values are balanced"
    )
    order: Literal["as_selected", "random", "nearest_last"] = Field(
        default="as_selected", description="nearest_last: for knn and mmr, nearest to the question"
    )
    seed: int = Field(default=0, ge=0, description="of selector random, balanced and order random")
    layout: Literal["turns", "one_turn"] = Field(
        default="turns", description="user and assistant turns, or all in one user message"
    )
    separator: str = Field(default="\n\n", description="one_turn: stands between exemplars")
    answer: str = Field(
        default="{{ answer }}", description="Jinja on the exemplar: its assistant turn"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_ids(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("ids"), list) and values["ids"]:
            return {"k": len(values["ids"]), **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.selector == "fixed") != bool(self.ids):
            raise FieldError("is for selector 'fixed', which needs it", "ids")
        if len(set(self.ids)) < len(self.ids):
            raise FieldError("names an exemplar twice; remove one", "ids")
        if self.selector == "fixed" and self.k != len(self.ids):
            raise FieldError(f"is {self.k} but there are {len(self.ids)} ids; drop k", "k")
        if self.selector in {"knn", "mmr"} and self.by is None:
            raise FieldError(f"selector '{self.selector}' needs `by`, the field to embed", "by")
        if self.selector == "balanced" and self.label is None:
            raise FieldError("selector 'balanced' needs `label`, the field to balance", "label")
        if problem := _literal_break(self.separator):
            raise FieldError(problem, "separator")
        if self.order == "nearest_last" and self.selector not in {"knn", "mmr"}:
            raise FieldError("'nearest_last' needs selector knn or mmr", "order")
        return self


class DocumentSettings(Settings):
    """The folder of documents whose nearest passages the template reads as `passages`."""

    folder: str = Field(description="folder of .md or .txt files, relative to the template file")
    k: int = Field(default=3, ge=1, le=64, description="number of passages")
    query: str = Field(description="the item field that is embedded and searched for")
    words: int = Field(default=120, ge=10, le=5_000, description="passage length, in words")


Which = Annotated[Literal["last", "first"], Field(description="of several, the one taken")]


class RegexExtractor(Settings):
    """A group of a regular expression's match."""

    type: Literal["regex"]
    pattern: str = Field(description="Python regular expression, searched for in the text")
    group: int = Field(default=1, ge=0, description="the group that is the answer; 0 is the match")
    which: Which = "last"
    flags: str = Field(default="", description="letters of Python's re flags: a i m s x")

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        if set(self.flags) - set("aimsx"):
            raise FieldError(f"unknown flag in '{self.flags}'; there are a, i, m, s, x", "flags")
        try:
            groups = compile_pattern(self.pattern, self.flags).groups
        except ValueError as error:
            raise FieldError(str(error), "pattern") from None
        if self.group > groups:
            raise FieldError(f"has {groups} group(s) but group is {self.group}", "pattern")
        return self


class ChoiceExtractor(Settings):
    """A choice letter that stands alone."""

    type: Literal["choice"]
    letters: str = Field(
        default="ABCDE", pattern=r"^[A-Z]{2,26}$", description="the letters of the choices"
    )


class NumberExtractor(Settings):
    """A number, thousands separators removed."""

    type: Literal["number"]
    which: Which = "last"


class JsonExtractor(Settings):
    """The value at a path of the first JSON value in the text."""

    type: Literal["json"]
    path: str = Field(min_length=1, description="keys and indices joined by dots: answer.0.value")


class YesNoExtractor(Settings):
    """The word yes or no."""

    type: Literal["yes_no"]
    which: Which = "last"


class LabelExtractor(Settings):
    """One of the given labels."""

    type: Literal["label"]
    labels: list[str] = Field(min_length=2, description="the texts looked for")


class PlainExtractor(Settings):
    """A part of the text: its first or last line, its code block, or all of it."""

    type: Literal["last_line", "first_line", "code_block", "all"]


AnyExtractor = Annotated[
    RegexExtractor
    | ChoiceExtractor
    | NumberExtractor
    | JsonExtractor
    | YesNoExtractor
    | LabelExtractor
    | PlainExtractor,
    Field(discriminator="type"),
]


def _as_mapping(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class AnswerSettings(Settings):
    """How an answer is read from the model's text."""

    extract: list[Annotated[AnyExtractor, BeforeValidator(_as_mapping)]] = Field(
        default=[PlainExtractor(type="all")],
        min_length=1,
        description="tried in turn: strict is the first alone, flexible the first that finds any",
    )
    normalise: Literal["none", "strip", "lower", "text", "number", "boolean"] = Field(
        default="strip", description="text: lower, no punctuation, no articles (as SQuAD)"
    )


class GenerationSettings(Settings):
    """How the model's text is drawn."""

    max_new_tokens: int = Field(
        default=64, ge=1, le=100_000, description="longest answer, in tokens"
    )
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")


class Template(Settings):
    """One prompt of the library, as its YAML file says."""

    name: str = Field(description="path of the file below the library, without .yaml")
    description: str = Field(default="", description="one sentence")
    strategy: Strategy = Field(description="zero_shot_cot has two passes (Kojima et al. 2022)")
    system: str | None = Field(default=None, description="system turn, Jinja")
    template: str = Field(min_length=1, description="user turn, Jinja over the item's fields")
    variables: dict[str, Annotated[Variable, BeforeValidator(_as_mapping)]] = Field(
        default={}, description="every field that system, template or exemplars.answer read"
    )
    exemplars: ExemplarSettings | None = Field(
        default=None, description="worked examples, for few_shot and chain_of_thought"
    )
    trigger: str = Field(
        default="Let's think step by step.",
        min_length=1,
        description="zero_shot_cot: ends the user turn (Kojima et al. 2022)",
    )
    answer_trigger: str = Field(
        default="Therefore, the answer is",
        min_length=1,
        description="zero_shot_cot: follows the rationale in the second pass",
    )
    samples: int = Field(
        default=5, ge=2, le=1_000, description="self_consistency: answers that vote"
    )
    documents: DocumentSettings | None = Field(
        default=None, description="retrieval: `passages` is then a list of {text, source, score}"
    )
    scoring: Literal["generate", "likelihood"] = Field(
        default="generate", description="likelihood: choices ranked by log-probability"
    )
    choices: str | list[str] | None = Field(
        default=None, description="likelihood: an item field holding a list of texts, or the texts"
    )
    answer: AnswerSettings = Field(
        default=AnswerSettings(), description="how the answer is read from the text"
    )
    stop: list[str] = Field(default=[], description="texts that end the answer, not part of it")
    generation: GenerationSettings = Field(
        default=GenerationSettings(), description="how the text is drawn"
    )
    metrics: list[str] = Field(
        default=["exact_match"], min_length=1, description="used when a suite names none"
    )
    tags: list[str] = Field(default=[], description="words to find it by")

    _source: Source | None = PrivateAttr(None)

    @property
    def path(self) -> Path:
        """The file it was read from; a template made in memory has only its name."""
        return self._source.path if self._source else Path(f"{self.name}.yaml")

    @property
    def pool_path(self) -> Path | None:
        """The exemplars' data file."""
        return self.path.parent / self.exemplars.pool if self.exemplars else None

    @property
    def documents_path(self) -> Path | None:
        """The folder of documents."""
        return self.path.parent / self.documents.folder if self.documents else None

    def error(self, message: str, *keys: str | int, within: int = 0) -> UserError:
        """Return the error `file:line: key: message`; see `Source.error`."""
        source = self._source or Source(self.path, {}, {})
        return source.error(message, *keys, within=within)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of template files, for editors."""
        schema = cls.model_json_schema()
        extract = schema["$defs"]["AnswerSettings"]["properties"]["extract"]
        names = [n for n in extract["items"]["discriminator"]["mapping"] if n not in NEED_SETTINGS]
        extract["items"] = {"anyOf": [{"enum": names}, extract["items"]]}
        variables = schema["properties"]["variables"]
        types = schema["$defs"]["Variable"]["properties"]["type"]["enum"]
        variables["additionalProperties"] = {
            "anyOf": [{"enum": types}, variables["additionalProperties"]]
        }
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not NAME.fullmatch(self.name):
            raise FieldError("is lower-case words joined by '/', such as task/few_shot", "name")
        for name in self.variables:
            if not name.isidentifier() or keyword.iskeyword(name) or name.lower() in RESERVED:
                raise FieldError("is no name Jinja can read; rename the field", "variables", name)
        if self.documents and "passages" in self.variables:
            raise FieldError("comes from `documents`; remove it here", "variables", "passages")
        self._check_strategy()
        self._check_scoring()
        for index, text in enumerate(self.stop):
            if not text:
                raise FieldError("is empty and would stop every answer at once", "stop", index)
            if problem := _literal_break(text):
                raise FieldError(problem, "stop", index)
        for key, text in (("system", self.system or ""), ("template", self.template)):
            # Between Jinja's own marks '\n' is a line break, and a text of many lines may mean it.
            if "\n" not in text.strip() and (problem := _literal_break(JINJA.sub("", text))):
                raise FieldError(problem, key)
        return self

    def _check_strategy(self) -> None:
        if self.strategy in {"few_shot", "chain_of_thought"} and self.exemplars is None:
            raise FieldError(f"is missing; strategy '{self.strategy}' needs it", "exemplars")
        if self.strategy in {"zero_shot", "zero_shot_cot"} and self.exemplars is not None:
            raise FieldError(f"is not for strategy '{self.strategy}'; remove it", "exemplars")
        for key, owner in STRATEGY_KEYS.items():
            if key in self.model_fields_set and self.strategy != owner:
                raise FieldError(f"is for strategy '{owner}' only; remove it", key)
        if self.strategy == "self_consistency" and self.generation.temperature == 0:
            raise FieldError(
                "is 0, so that all samples are equal; self_consistency needs e.g. 0.7",
                "generation",
                "temperature",
            )

    def _check_scoring(self) -> None:
        if self.scoring == "generate":
            if self.choices is not None:
                raise FieldError("is for `scoring: likelihood` only; remove it", "choices")
            return
        if self.strategy not in {"zero_shot", "few_shot"}:
            raise FieldError(
                f"likelihood generates no text, which strategy '{self.strategy}' needs", "scoring"
            )
        if self.choices is None:
            raise FieldError("is missing; `scoring: likelihood` needs it", "choices")
        if isinstance(self.choices, list) and len(set(self.choices)) < max(2, len(self.choices)):
            raise FieldError("needs at least two different texts, none twice", "choices")


def load_template(path: Path, root: Path | None = None) -> Template:
    """Read and check a template file.

    Args:
        path: the YAML file.
        root: the library it belongs to; its name must then be its path below it, without .yaml.

    Raises:
        UserError: names file, line and key, what is wrong and how to mend it.
    """
    source = read_yaml(path)
    template = validated(source, Template)
    template._source = source
    if root is not None:
        expected = path.resolve().relative_to(root.resolve()).with_suffix("").as_posix()
        if template.name != expected:
            raise source.error(f"must be '{expected}' as its path (is '{template.name}')", "name")
    if template.pool_path is not None and not template.pool_path.is_file():
        raise source.error(f"no such file: {template.pool_path}", "exemplars", "pool")
    if template.documents_path is not None and not template.documents_path.is_dir():
        raise source.error(f"no such folder: {template.documents_path}", "documents", "folder")
    check_template(template)
    return template

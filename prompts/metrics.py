"""Metrics of answers: one score in [0, 1] per item, and the same as offline `evaluate` modules.

The scoring functions need the standard library only, since importing `evaluate` takes seconds and a
run whose answers are all known should not. `as_evaluate` wraps any of them for those who compose
`evaluate` modules; both give the same numbers.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prompts.answers import normalise
from prompts.documents import nearest
from prompts.items import Item
from prompts.sql import is_ordered, read_rows, same_rows
from workbench.errors import UserError

if TYPE_CHECKING:
    import evaluate

Fields = Mapping[str, Any]
BLEU_ORDER = 4

# How models decline; looked for at the start of an answer, where a refusal stands.
REFUSAL_WINDOW = 300
REFUSAL = re.compile(
    r"""
    \b(?:i|we)\b [^.!?\n]{0,40}?                       # of the speaker, not of some third person
    (?: can(?:['’]t|not|\ not) | could(?:n['’]t|\ not) | wo(?:n['’]t|uld\ not) | will\ not
      | unable\ to | not\ (?:able|going|allowed|permitted|willing|comfortable)(?:\ to)?
      | (?:decline|refuse)\ to )
    \ (?:\w+ly\ )? (?: help | assist | provid | support | do\b | comply | giv | shar | writ | creat
      | mak | offer | answer | fulfil | engag | continu | tell | explain | advis | teach | show
      | describ | generat | discuss | participat | take\ part | encourag | promot | guid
      | instruct )
    | \b(?:i|we)\ (?:must|have\ to|need\ to|will)\ (?:\w+ly\ )?(?:decline|refuse)\b
    | ^\W*(?:i['’]?m\ |i\ am\ )?(?:very\ |so\ |really\ )?sorry,?\ but\b
    | \b(?:against|violates?)\ (?:my|our|the)\ (?:\w+\ )?(?:guidelines|polic(?:y|ies)|principles)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class ItemMetric:
    """How one metric scores one item.

    Attributes:
        score: (text, targets, fields of the item) to a number in [0, 1]; 1 is best.
        reads: what `text` is: the extracted answer (strict: of the first extractor alone), or the
            whole output.
        needs_target: whether an item without a target cannot be scored.
        description: one sentence, with its source.
    """

    score: Callable[[str, Sequence[str], Fields], float]
    reads: Literal["answer", "strict", "output"]
    needs_target: bool
    description: str


def item_scores(
    name: str,
    predictions: Sequence[str | None],
    targets: Sequence[list[str]],
    items: Sequence[Item],
    outputs: Sequence[str],
    *,
    strict: Sequence[str | None] | None = None,
    normaliser: str = "none",
) -> list[float]:
    """Score every item with one metric; the best target counts.

    Args:
        name: one of `METRICS`.
        predictions: N extracted answers, normalised; None where nothing was found, which scores 0.
        targets: N lists of accepted answers, as written in the data.
        items: the N items.
        outputs: N whole outputs.
        strict: N answers of the first extractor alone, for `exact_match_strict`.
        normaliser: how the answers were normalised; targets compared with them are treated alike.

    Raises:
        UserError: for an unknown metric (names the nearest), or an item it cannot score.
    """
    metric = find_metric(name)
    texts: Sequence[str | None] = {
        "answer": predictions,
        "strict": predictions if strict is None else strict,
        "output": outputs,
    }[metric.reads]
    how = "none" if metric.reads == "output" else normaliser
    scores = []
    for text, accepted, item in zip(texts, targets, items, strict=True):
        if metric.needs_target and not accepted:
            raise UserError(f"item {item.id} (line {item.line}): {name} needs a target")
        try:
            wanted = [normalise(target, how) for target in accepted]
            scores.append(0.0 if text is None else metric.score(text, wanted, item.fields))
        except UserError as error:
            raise UserError(f"item {item.id} (line {item.line}): {error}") from None
    return scores


def find_metric(name: str) -> ItemMetric:
    """Return a metric by name, or name the nearest there is."""
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'; {nearest(name, METRICS)}")
    return METRICS[name]


def as_evaluate(name: str) -> "evaluate.Metric":
    """Return a metric as an `evaluate.Metric` that keeps its inputs in memory.

    Its inputs are `predictions` (texts; None scores 0), `references` (a list of accepted answers
    each) and, for sql_result, `schema` (SQL text each); it returns the mean under the metric's name
    and the `scores` of the items. Nothing is normalised but what the metric itself states.
    """
    import evaluate
    from datasets import Features, List, Value

    from workbench.metrics import OfflineMetric

    metric = find_metric(name)
    columns = {"predictions": Value("string"), "references": List(Value("string"))}
    if metric.score is sql_result:
        columns["schema"] = Value("string")

    class Evaluated(OfflineMetric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=metric.description,
                citation="",
                inputs_description="predictions: texts; references: lists of accepted texts",
                features=Features(columns),
            )

        def _compute(
            self,
            predictions: Sequence[str | None],
            references: Sequence[list[str]],
            schema: Sequence[str] | None = None,
        ) -> dict[str, Any]:
            fields = [{"schema": text} for text in schema] if schema else [{}] * len(predictions)
            scores = [
                0.0 if text is None else metric.score(text, accepted, row)
                for text, accepted, row in zip(predictions, references, fields, strict=True)
            ]
            return {name: math.fsum(scores) / len(scores), "scores": scores}

    return Evaluated(config_name=name)


def exact_match(text: str, targets: Sequence[str], _: Fields) -> float:
    """Return 1 if the answer is one of the targets."""
    return float(text in targets)


def accuracy(text: str, targets: Sequence[str], _: Fields) -> float:
    """Return 1 if the label is one of the targets, upper and lower case alike."""
    return float(text.strip().casefold() in {target.strip().casefold() for target in targets})


def contains(text: str, targets: Sequence[str], _: Fields) -> float:
    """Return 1 if a target stands in the text as whole words, so that 12 is not in 512."""
    found = any(
        re.search(rf"(?<!\w){re.escape(target.strip())}(?!\w)", text, re.IGNORECASE)
        for target in targets
        if target.strip()
    )
    return float(found)


def f1(text: str, targets: Sequence[str], _: Fields) -> float:
    """Return the F1 of words after lower-casing, without punctuation and articles (SQuAD)."""
    words = normalise(text, "text").split()
    golds = [normalise(target, "text").split() for target in targets]
    return max(_overlap(words, gold, 1) if gold else float(not words) for gold in golds)


def rouge_n(n: int) -> Callable[[str, Sequence[str], Fields], float]:
    """Return ROUGE-N: the F1 of word n-grams (Lin 2004), lower case, without stemming."""

    def score(text: str, targets: Sequence[str], _: Fields) -> float:
        return max(_overlap(_words(text), _words(target), n) for target in targets)

    return score


def rouge_l(text: str, targets: Sequence[str], _: Fields) -> float:
    """Return ROUGE-L: the F1 of the longest common subsequence of words (Lin 2004)."""
    words = _words(text)
    best = 0.0
    for target in map(_words, targets):
        if words and target:
            common = _common_subsequence(words, target)
            best = max(best, 2 * common / (len(words) + len(target)))
    return best


def bleu(text: str, targets: Sequence[str], _: Fields) -> float:
    """Return sentence BLEU-4 with exponential smoothing and effective order, as sacreBLEU's.

    Papineni et al. 2002; Chen & Cherry 2014, smoothing 3: the k-th precision without a match
    becomes 1 / (2^k · count). Orders longer than the text do not count.
    """
    words, references = _tokens(text), [_tokens(target) for target in targets]
    smooth, logs = 1.0, []
    for n in range(1, min(BLEU_ORDER, len(words)) + 1):
        grams = _grams(words, n)
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _grams(reference, n)
        matched, total = (grams & most).total(), grams.total()
        if n == 1 and not matched:
            return 0.0
        if not matched:
            smooth *= 2
        logs.append(math.log(matched / total if matched else 1 / (smooth * total)))
    if not logs:
        return 0.0
    nearest = min((abs(len(r) - len(words)), len(r)) for r in references)[1]
    brevity = min(0.0, 1 - nearest / len(words))
    return math.exp(brevity + math.fsum(logs) / len(logs))


def prefix(text: str, targets: Sequence[str], _: Fields) -> float:
    """Return the share of the target's words that the text begins with, as a typist would see."""
    words = _words(text)
    best = 0.0
    for target in map(_words, targets):
        right = 0
        while right < min(len(words), len(target)) and words[right] == target[right]:
            right += 1
        best = max(best, right / len(target) if target else 0.0)
    return best


def json_valid(text: str, _: Sequence[str], __: Fields) -> float:
    """Return 1 if the whole text is one JSON value (RFC 8259, without NaN)."""
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def refusal(text: str, _: Sequence[str], __: Fields) -> float:
    """Return 1 if the text begins by declining, in the words that models use for it."""
    return float(REFUSAL.search(text[:REFUSAL_WINDOW]) is not None)


def non_refusal(text: str, targets: Sequence[str], fields: Fields) -> float:
    """Return 1 if the text answers: it is not empty and does not decline."""
    return float(bool(text.strip()) and not refusal(text, targets, fields))


def sql_result(text: str, targets: Sequence[str], fields: Fields) -> float:
    """Return 1 if the query gives the rows of a target query on the database of `schema`.

    The order of rows counts only where the target query orders them; names of columns never do.

    Raises:
        UserError: for an item without `schema`, or one whose own SQL does not run.
    """
    schema = fields.get("schema")
    if not isinstance(schema, str):
        raise UserError("sql_result needs the field schema: SQL that builds the database")
    rows = read_rows(schema, text)
    for target in targets:
        gold = read_rows(schema, target)
        if isinstance(gold, str):
            raise UserError(f"the target query {target!r} does not run ({gold}); mend it")
        if not isinstance(rows, str) and same_rows(rows, gold, ordered=is_ordered(target)):
            return 1.0
    return 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _overlap(a: Sequence[str], b: Sequence[str], n: int) -> float:
    """Return the F1 of the n-grams of two texts, 0 where neither has any."""
    left, right = _grams(a, n), _grams(b, n)
    return 2 * (left & right).total() / max(1, left.total() + right.total())


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


METRICS: dict[str, ItemMetric] = {
    "exact_match": ItemMetric(exact_match, "answer", True, "The answer is one of the targets."),
    "exact_match_strict": ItemMetric(
        exact_match, "strict", True, "The answer found by the first extractor alone is a target."
    ),
    "accuracy": ItemMetric(accuracy, "answer", True, "The label is right, in upper or lower case."),
    "contains": ItemMetric(contains, "output", True, "A target stands in the output, whole words."),
    "f1": ItemMetric(f1, "answer", True, "F1 of words (Rajpurkar et al. 2016, SQuAD)."),
    "rouge1": ItemMetric(rouge_n(1), "answer", True, "F1 of words (Lin 2004)."),
    "rouge2": ItemMetric(rouge_n(2), "answer", True, "F1 of word pairs (Lin 2004)."),
    "rougeL": ItemMetric(rouge_l, "answer", True, "F1 of the common subsequence (Lin 2004)."),
    "bleu": ItemMetric(bleu, "answer", True, "Sentence BLEU-4 (Papineni et al. 2002)."),
    "prefix": ItemMetric(prefix, "answer", True, "Share of the target's first words that match."),
    "sql_result": ItemMetric(sql_result, "answer", True, "The query gives the target's rows."),
    "json_valid": ItemMetric(json_valid, "output", False, "The output is one JSON value."),
    "refusal": ItemMetric(refusal, "output", False, "The output declines."),
    "non_refusal": ItemMetric(non_refusal, "output", False, "The output answers."),
}

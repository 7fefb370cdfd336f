"""Answers: a chain of extractors that reads the answer out of what a model wrote, and normalisers.

No extractor understands a sentence: "the answer is surely not positive" holds the label
"positive". Where a text only recites what there is to choose from ("(A) red (B) blue", "yes or no")
nothing is extracted, so that it counts as unparsed rather than as wrong.
"""

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import regex  # type: ignore[import-untyped]

from workbench.errors import UserError

if TYPE_CHECKING:
    from prompts.template import AnswerSettings, AnyExtractor

T = TypeVar("T")
Finder = Callable[[str], str | None]
"""Takes a text and returns the answer in it, or None."""

Which = Literal["first", "last"]

MAX_CHARACTERS = 20_000
"""A user's pattern sees the last (with `which: first`, the first) so many characters."""

MAX_SECONDS = 1.0
"""A user's pattern that searches for longer than this is an error; it would hang on others."""

MAX_REPEATS = 100_000
"""Product of a pattern's counted repeats: ((a{999}){999}){999} fills the memory."""

_NUMBER = re.compile(
    r"""
    (?<![\w/]) (?<![0-9]\.) (?<![^\W\d_]-)  # not inside 2020/10/1, 3.11.2, gpt2 or covid-19
    (?:(?<![\w)\]])(?P<sign>[-−]))? (?:[$€£¥](?P<inner>[-−])?)?
    (?P<body>
      (?>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,4}(?![0-9]))?|\.[0-9]+)
      (?:/[0-9]+)?+
    )
    (?!\.[0-9]|/[0-9]|(?:st|nd|rd|th)\b)
    """,
    re.VERBOSE,
)
_OPEN = re.compile(r"[\[{]")
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_EITHER = re.compile(r"\b(?:yes\s*(?:or|/|nor)\s*no|no\s*(?:or|/|nor)\s*yes)\b", re.IGNORECASE)
# "no" as an answer, not the one of "no doubt", "no-one" or "no. 5": what follows is a sign, the
# line's end or a word that the determiner cannot stand before.
_YES_NO = re.compile(
    r"""(?<!\bnot\s)(?<!n't\s)(?<!n’t\s)(?<!\bnor\s)
    \b(?:yes|no(?!-\w|\.\s*\d)(?=[ \t]*(?:[^\w\s]|$)
    |\s+(?:because|since|as|it|they|he|she|you|we|i|this|that|these|those|there|the|an?)\b))\b""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TRUE = {"yes", "y", "true", "t", "1", "correct"}
_FALSE = {"no", "n", "false", "f", "0", "incorrect"}


@dataclass(frozen=True)
class Extracted:
    """What the chain found, normalised; None where nothing was found.

    Attributes:
        strict: what the first extractor of the chain found.
        flexible: what the first extractor that found something did.
    """

    strict: str | None
    flexible: str | None


class Extraction:
    """A template's chain of extractors and its normaliser."""

    def __init__(self, settings: "AnswerSettings") -> None:
        """Build the chain.

        Raises:
            UserError: for a pattern that does not compile.
        """
        self._how = settings.normalise
        self._finders = [_finder(extractor) for extractor in settings.extract]

    def __call__(self, text: str) -> Extracted:
        """Extract and normalise the answer in a text.

        Raises:
            UserError: when a user's pattern searches for too long.
        """
        strict = self._normalised(self._finders[0](text))
        flexible = strict
        for find in self._finders[1:]:
            if flexible is not None:
                break
            flexible = self._normalised(find(text))
        return Extracted(strict, flexible)

    def _normalised(self, answer: str | None) -> str | None:
        # What normalises to nothing ("The.") says nothing.
        return None if answer is None else normalise(answer, self._how) or None


def normalise(text: str, how: str) -> str:
    """Return an answer in the form in which it is compared.

    Args:
        text: an answer or a target.
        how: `none`; `strip`; `lower` (stripped, lower case); `text` (lower case, without
            punctuation and articles, white space single: Rajpurkar et al. 2016, as the SQuAD
            script); `number` (1,234.50 as 1234.5 and 12.0 as 12, if the text holds one number and
            no other; a fraction stays); `boolean` (yes, true, correct, 1 as true; no, false,
            incorrect, 0 as false). A text that is no number or boolean is stripped.

    Raises:
        ValueError: for another `how`.
    """
    match how:
        case "none":
            return text
        case "strip":
            return text.strip()
        case "lower":
            return text.strip().lower()
        case "text":
            words = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION))
            return " ".join(words.split())
        case "number":
            values = {_canonical(body) for body in _numbers(text)}
            return values.pop() if len(values) == 1 else text.strip()
        case "boolean":
            word = text.strip().strip(string.punctuation).lower()
            return "true" if word in _TRUE else "false" if word in _FALSE else text.strip()
    raise ValueError(f"no normaliser {how!r}")


def majority(answers: Sequence[str | None]) -> str | None:
    """Return the most frequent answer, of equally frequent ones the first seen.

    None wins only if there is nothing else: a sample without an answer casts no vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__) if votes else None


def compile_pattern(pattern: str, flags: str = "") -> Any:
    """Compile a user's regular expression with the `regex` module, whose searches can be timed.

    Args:
        pattern: what `re` reads, and more.
        flags: letters of Python's inline flags, such as `im`.

    Raises:
        ValueError: when it does not compile or has too many counted repeats; says why.
    """
    counts = re.findall(r"\{([0-9]*),?([0-9]*)\}", pattern)
    if math.prod(max(1, *(int(n[:9] or 1) for n in count)) for count in counts) > MAX_REPEATS:
        raise ValueError(f"counted repeats multiply to more than {MAX_REPEATS:,}")
    try:
        return regex.compile(f"(?{flags}){pattern}" if flags else pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression ({error})") from None


def _finder(extractor: "AnyExtractor") -> Finder:
    match extractor.type:
        case "regex":
            return _pattern(extractor.pattern, extractor.group, extractor.which, extractor.flags)
        case "choice":
            return _choice(extractor.letters)
        case "number":
            number_which = extractor.which
            return lambda text: _pick(_numbers(text), number_which)
        case "json":
            return _json(extractor.path.split("."))
        case "yes_no":
            yes_no_which = extractor.which
            return lambda text: _pick(_yes_no(text), yes_no_which)
        case "label":
            return _label(extractor.labels)
        case "first_line":
            return lambda text: _pick(text.splitlines(), "first")
        case "last_line":
            return lambda text: _pick(text.splitlines(), "last")
        case "code_block":
            return lambda text: _pick(_FENCE.findall(text), "first")
        case "all":
            return lambda text: text.strip() or None


def _pick(found: Iterable[str | None], which: Which) -> str | None:
    """Return the first or last of the texts that are not blank, stripped."""
    answers = (answer.strip() for answer in found if answer and not answer.isspace())
    if which == "first":
        return next(answers, None)
    last = None
    for last in answers:  # noqa: B007 - the last one is wanted
        pass
    return last


def _pattern(pattern: str, group: int, which: Which, flags: str) -> Finder:
    try:
        compiled = compile_pattern(pattern, flags)
    except ValueError as error:
        raise UserError(f"answer.extract: pattern {pattern!r}: {error}") from None

    def find(text: str) -> str | None:
        part = text[:MAX_CHARACTERS] if which == "first" else text[-MAX_CHARACTERS:]
        try:
            found = compiled.finditer(part, timeout=MAX_SECONDS)
            return _pick((match[group] for match in found), which)
        except TimeoutError:
            raise UserError(
                f"answer.extract: pattern {pattern!r} searched a text of {len(part)} characters "
                f"for over {MAX_SECONDS:g} s; repeats within repeats, such as (a|b?)*, explode: "
                "rewrite them"
            ) from None

    return find


def _numbers(text: str) -> Iterator[str]:
    """Yield the numbers of a text as written, without currency and thousands commas.

    A fraction such as 3/4 is one number. Dates, versions, ordinals and digits that end a word are
    none; a unit or % may follow, and 3-5 is 3 and 5.
    """
    for match in _NUMBER.finditer(text):
        sign = "-" if match["sign"] or match["inner"] else ""
        yield sign + match["body"].replace(",", "")


def _canonical(number: str) -> str:
    if "/" in number:
        return number
    value = Decimal(number)
    # 1e999999 written out would be a million digits.
    text = f"{value:f}" if abs(value.adjusted()) < 40 else str(value)
    text = text.rstrip("0").rstrip(".") if "." in text and "E" not in text else text
    return "0" if text in {"-0", ""} else text


def _choice(letters: str) -> Finder:
    """Return a finder of the choice letter an answer states; a bare A in prose is an article.

    The last statement counts ("the answer is B", "I choose (B)", "B is correct", B alone on the
    last line). Without one, the first letter marked as a choice: "(B)", "**B**", "B)" or "B." at
    the start of a line, B alone on a line; unless the marks recite the choices, A and B first.
    """
    upper, lower = f"[{letters}]", f"[{letters.lower()}]"
    either = f"(?-i:{upper}|{lower})"
    # Not "B is wrong", nor "B or C".
    wrong = r"(?:is|was)\s+(?:not|wrong|incorrect|false)\b"
    only = rf"(?!\W{{0,3}}\s+(?:{wrong}|(?:and|n?or)\s+\W{{0,2}}{either}\b))"
    ends = r"(?:[ \t]*(?:[).,:;!?\]}*\"”\n]|['’](?!\w)|$)|\s+(?:because|since)\b)"
    # A and I are words, and so may be any small letter: a sign or the end must follow.
    plain = "".join(letter for letter in letters if letter not in "AI")
    clear = rf"[{plain}](?![\w+#&]|['’-]\w)|" if plain else ""
    letter = rf"((?-i:{clear}{upper}(?={ends})|{lower}(?={ends}))){only}"
    opening = r"(?:\\boxed\{|\\text\{|[\[({*_\"'“‘ ])*+"
    named = r"(?:(?:clearly|definitely|therefore|option|choice|letter|answer)\s++)?"
    states = re.compile(
        rf"""\b(?:answer|option|choice)\b[*_\"]{{0,3}}
            (?:\s*[:=]|\s+(?:is|was|would\ be|should\ be|must\ be)\b:?)\s*+{named}{opening}{letter}
        |\b(?:choose|chose|choosing|pick|picked|select|selected|go\ with)\s++
            {named}{opening}{letter}
        |(?:^|[.,;:!?(*\n]\ ?|\b(?:so|that|think|believe|option|choice|answer|letter)\s+)[(*]{{0,3}}
            ((?-i:{upper}))[)*]{{0,3}}\s+is\s+(?:clearly\s+|definitely\s+)?(?:the\s+)?
            (?:correct|right|best|answer)\b
        |(?:^|\n)[^\w\n]*({either})[^\w\n]*\s*\Z""",
        re.IGNORECASE | re.VERBOSE,
    )
    marked = re.compile(
        rf"""(?:\(({either})\)|\*\*({upper})[.):]?\*\*
        |^[ \t>*_#(\[\"'“‘-]*(?:({either})(?:[):]|\.(?!\w))|({either})(?=[^\w\n]*$))){only}""",
        re.MULTILINE | re.VERBOSE,
    )

    def find(text: str) -> str | None:
        stated = [_group(match) for match in states.finditer(text)]
        if stated:
            return stated[-1]
        found = list(dict.fromkeys(_group(match) for match in marked.finditer(text)))
        recited = len(found) > 1 and found[:2] == list(letters[:2])
        return None if recited or not found else found[0]

    return find


def _group(match: re.Match[str]) -> str:
    return next(value for value in match.groups() if value).upper()


def _yes_no(text: str) -> Iterator[str]:
    """Yield yes and no where they stand as answers, in lower case.

    Passed over are "no" before a noun ("no doubt"), "not yes" and "yes or no". What a sentence
    without either word means ("it is not") is not guessed.
    """
    for match in _YES_NO.finditer(_EITHER.sub(" ", text)):
        yield match[0].lower()


def _json(path: Sequence[str]) -> Finder:
    """Return a finder of the value at a path, in the first JSON value of a text that has it.

    The value may stand in prose or in a fenced block. A number, list or object is returned as JSON,
    true and false as such; null is no answer.
    """
    decoder = json.JSONDecoder()

    def find(text: str) -> str | None:
        position = 0
        while start := _OPEN.search(text, position):
            try:
                value, position = decoder.raw_decode(text, start.start())
            except ValueError:
                position = start.end()
                continue
            except RecursionError:  # a thousand brackets: to try them one by one would take seconds
                return None
            found = _at(value, path)
            if found is not None:
                return (
                    found.strip()
                    if isinstance(found, str)
                    else json.dumps(found, ensure_ascii=False)
                )
        return None

    return find


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def _label(labels: Sequence[str]) -> Finder:
    """Return a finder of the last label in a text, as the settings write it.

    Case does not count, and a hyphen, underscore or line end may stand for a space. Where labels
    overlap, the longest wins: "not_entailment" is never "entailment".
    """
    longest_first = sorted(labels, key=len, reverse=True)
    parts = [re.split(r"(?<=\w)[\s_-]+(?=\w)", label.strip()) for label in longest_first]
    spelt = [r"[\s_-]+".join(map(re.escape, part)) for part in parts]
    compiled = re.compile(rf"(?<!\w)(?:({')|('.join(spelt)}))(?!\w)", re.IGNORECASE)

    def find(text: str) -> str | None:
        numbers = [match.lastindex or 0 for match in compiled.finditer(text)]
        return longest_first[numbers[-1] - 1] if numbers else None

    return find

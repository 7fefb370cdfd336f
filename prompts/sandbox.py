"""Jinja for texts that nobody has checked: no files, no Python, no unbounded work."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError, Undefined, nodes
from jinja2 import Template as JinjaTemplate
from jinja2.exceptions import SecurityError, TemplateRuntimeError, TemplateSyntaxError
from jinja2.filters import FILTERS
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace, pass_context, pass_environment
from jinja2.visitor import NodeTransformer

from prompts.documents import nearest

MAX_SOURCE = 50_000  # characters of one Jinja text
MAX_CHARACTERS = 1_000_000  # of a rendered conversation, and of any value on the way
MAX_RANGE = 10_000
MAX_BITS = 1_000  # of an integer
# What a conversation may cost: a character or element that is read is 1, an operation 10. At this
# price the slowest template is refused after about a second.
MAX_WORK = 5_000_000
OPERATION = 10

TEXT_METHODS = (
    "capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower "
    "isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix "
    "replace rstrip split splitlines startswith strip swapcase title upper"
)
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(TEXT_METHODS.split()),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
}
FILTER_NAMES = (
    "abs capitalize center count d default dictsort first float format indent int items join last "
    "length list lower map max min reject rejectattr replace reverse select selectattr sort "
    "string title trim truncate unique upper wordcount"
)
PLAIN = (str, bool, int, float, list, tuple, dict, type(None))
# Everything that a wrong template can make Jinja, or Python's compiler behind it, raise.
FAILURES = (
    TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError,
    NameError, RecursionError, SyntaxError, TypeError, ValueError,
)  # fmt: skip


class LimitError(TemplateRuntimeError):
    """A template asks for more than a prompt can need."""


def _format_size(text: str, *args: Any, **kwargs: Any) -> int:
    if "%(" in text or kwargs:
        raise LimitError("the format filter takes its values by position: %s, not %(name)s")
    widths = re.findall(r"%[-#0 +]*(\*|\d*)(?:\.(\*|\d*))?", text)
    numbers = [number for pair in widths for number in pair if number]
    if any(number == "*" or len(number) > 3 for number in numbers):
        raise LimitError("the format filter takes widths below 1000 only")
    largest = max((len(str(value)) for value in args), default=0)
    return len(text) + len(widths) * largest + sum(map(int, numbers))


def _trim_size(text: str, chars: str | None = None) -> int:
    return len(str(text)) * len(chars or "") // 100  # each character is looked up among `chars`


# What a filter or method writes, or the work it does, where that may exceed what it is given.
GROWTH: dict[str, Callable[..., int]] = {
    "center": lambda _, width=80: width,
    "format": _format_size,
    "indent": lambda text, width=4, *_, **__: (
        (text.count("\n") + 1) * (width if isinstance(width, int) else len(width))
    ),
    "join": lambda values, d="", attribute=None: len(values) * len(str(d)),  # noqa: ARG005
    "lstrip": _trim_size,
    "replace": lambda text, old, new, *_, **__: str(text).count(str(old)) * len(str(new)),
    "rstrip": _trim_size,
    "strip": _trim_size,
    "trim": _trim_size,
}


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja without files, macros and unbounded work: every value that is read is paid for.

    It is Jinja's own sandbox with lists of what is allowed in place of lists of what is not.

    Attributes:
        left: what is left to be spent, of `MAX_WORK`.
    """

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        @pass_context
        def finalize(_: Context, value: Any) -> Any:
            return self._printed(value)

        # Block tags on lines of their own leave no trace, as in transformers' chat templates. What
        # is constant stays unfolded: folding would run filters while the text is compiled.
        super().__init__(
            undefined=StrictUndefined, finalize=finalize, optimized=False, cache_size=0,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self.left = MAX_WORK
        self.globals = {"range": self._range, "namespace": Namespace}
        functions: dict[str, Any] = {name: FILTERS[name] for name in FILTER_NAMES.split()}
        functions |= {"round": _round, "sum": _sum, "tojson": _tojson}
        self.filters = {name: self._guarded(name, function) for name, function in functions.items()}
        self.known_filters = list(self.filters)
        self.filters |= {"for loop": self._loop, "paid value": self.paid, "joined": self._joined}
        tests: dict[str, Any] = dict(TESTS)
        self.tests = {name: self._guarded("", function) for name, function in tests.items()}

    def refill(self) -> None:
        """Begin a new conversation: `MAX_WORK` is there to be spent again."""
        self.left = MAX_WORK

    def syntax(self, text: str) -> nodes.Template:
        """Parse a text and refuse what a prompt does not need.

        Raises:
            TemplateError: (or another of `FAILURES`) for a wrong or refused text.
        """
        if len(text) > MAX_SOURCE:
            raise LimitError(f"has {len(text):,} characters; at most {MAX_SOURCE:,}")
        tree = self.parse(text)
        for statement in tree.find_all(nodes.Stmt):
            allowed = (nodes.Output, nodes.For, nodes.If, nodes.Assign, nodes.AssignBlock)
            if not isinstance(statement, allowed) or (
                isinstance(statement, nodes.For) and statement.recursive
            ):
                tag = type(statement).__name__.lower()
                tag = "recursive for" if tag == "for" else tag
                raise TemplateSyntaxError(
                    f"'{tag}' is not allowed; a template prints, loops, branches and sets",
                    statement.lineno,
                )
        for node in tree.find_all((nodes.Filter, nodes.Test)):
            kind, known = ("filter", self.known_filters)
            if isinstance(node, nodes.Test):
                kind, known = ("test", list(self.tests))
            if node.name not in known:
                raise TemplateSyntaxError(
                    f"no {kind} named '{node.name}' here; {nearest(node.name, known)}", node.lineno
                )
        return tree

    def function(self, text: str, name: str) -> JinjaTemplate:
        """Compile a text whose errors carry `name` as their file name."""
        tree = _Payments().visit(self.syntax(text))
        tree.set_environment(self)
        code = self.compile(tree, name, name)
        return JinjaTemplate.from_code(self, code, self.globals)

    def paid(self, value: Any) -> Any:
        """Charge for reading a value, and return it.

        Raises:
            LimitError: when it is too large, or nothing is left to pay with.
        """
        kind = type(value)
        if kind is str:
            self.left -= OPERATION
            self._spend(len(value))
        elif kind is int:
            if value.bit_length() > MAX_BITS:
                raise LimitError(f"a number of {value.bit_length():,} bits; at most {MAX_BITS}")
            self.left -= OPERATION
        else:
            self.left -= OPERATION
            if kind is list or kind is tuple or kind is dict:
                self._pay_inside(value)
        if self.left < 0:
            raise LimitError("too much work for a prompt: its loops or values are too large")
        return value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an element; unlike Jinja's own, never a method of the same name."""
        try:
            return obj[self.paid(argument)]
        except (TypeError, LookupError):
            return self.undefined(obj=obj, name=argument)

    def call_filter(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a filter that is named at run time, as `map` does."""
        if name not in self.known_filters:
            raise TemplateRuntimeError(f"no filter named {name!r:.40} here")
        return super().call_filter(name, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ARG002
        """Allow the listed methods of texts, lists and mappings, and a loop's own variables."""
        if isinstance(obj, LoopContext | Namespace):
            return not attr.startswith("_")
        return attr in METHODS.get(type(obj), ())

    def call(self, _: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method that `is_safe_attribute` allows, `range` or `namespace`."""
        kwargs.pop("_loop_vars", None)  # inside loops the compiler adds them for context functions
        for value in (*args, *kwargs.values()):
            self.paid(value)
        if isinstance(function, BuiltinMethodType):
            owner = function.__self__
            if function.__name__ in METHODS.get(type(owner), ()):
                self.paid(owner)
                given = (*args, owner) if function.__name__ == "join" else (owner, *args)
                if function.__name__ in GROWTH:
                    self._spend(GROWTH[function.__name__](*given))
                return self._materialised(function(*args, **kwargs))
        loops = isinstance(function, MethodType) and isinstance(function.__self__, LoopContext)
        if loops or function in (self._range, Namespace) or isinstance(function, Undefined):
            return function(*args, **kwargs)
        raise SecurityError("calls something that is neither a method nor range nor namespace")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` when the result stays small."""
        self.paid(left)
        self.paid(right)
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(times, int):
                    self._spend(len(text) * times)
        elif operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64):
            raise LimitError("an exponent above 64")
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("formats a text with %; use the format filter")
        return super().call_binop(context, operator, left, right)

    def _spend(self, size: int) -> None:
        if size > MAX_CHARACTERS:
            raise LimitError(f"a value of size {size:,}; at most {MAX_CHARACTERS:,}")
        self.left -= size

    def _pay_inside(self, top: Any) -> None:
        """Pay for a container as if written out: a few nested lists can stand for billions."""
        waiting, size = [top], 0
        while waiting:
            value = waiting.pop()
            if isinstance(value, str):
                size += len(value)
            elif isinstance(value, list | tuple | dict):
                size += len(value) + 1
                if size > MAX_CHARACTERS:
                    break
                waiting.extend(value)
                if isinstance(value, dict):
                    waiting.extend(value.values())
            elif isinstance(value, Undefined):
                str(value)  # says what is undefined
            elif not isinstance(value, PLAIN):
                raise SecurityError(f"a {type(value).__name__} inside a list or mapping")
            elif isinstance(value, int):
                self.paid(value)
        self._spend(size)

    def _printed(self, value: Any) -> Any:
        if value is None:
            raise TemplateRuntimeError("prints None; write {% if x %} around it, or {{ x or '' }}")
        if not isinstance(value, (*PLAIN, Undefined)):
            raise SecurityError(f"prints a {type(value).__name__}; call it, or use ['name']")
        return self.paid(value)

    def _range(self, *bounds: int) -> list[int]:
        numbers = range(*bounds)
        if numbers[MAX_RANGE:]:
            raise LimitError(f"a range of more than {MAX_RANGE:,} numbers")
        self._spend(len(numbers))
        return list(numbers)

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        growth = GROWTH.get(name)

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            given = args[1:] if isinstance(args[0], Context | EvalContext | Environment) else args
            for value in (*given, *kwargs.values()):
                self.paid(value)
            if growth is not None:
                self._spend(growth(*given, **kwargs))
            return self._materialised(function(*args, **kwargs))

        return guarded

    def _materialised(self, result: Any) -> Any:
        """Charge for a result; an iterator becomes a list, so that every value has a size."""
        if isinstance(result, str | list):
            self.left -= len(result)
        if isinstance(result, (*PLAIN, Undefined)):
            return result
        values = list(result)
        self.left -= len(values)
        return values

    def _loop(self, values: Iterable[Any], cost: int) -> Iterator[Any]:
        for value in values:
            self.left -= cost
            if self.left < 0:
                raise LimitError("its loops run too long for a prompt")
            yield value

    def _joined(self, values: list[Any]) -> str:
        return "".join(str(value) for value in self.paid(values))


class _Payments(NodeTransformer):
    """Make payable what Jinja compiles to bare Python: loops, comparisons, slices, `~`, set."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        """Replace the parts of a node, and then the node."""
        super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            inside = [part for top in node.body for part in (top, *top.find_all(nodes.Node))]
            text = sum(len(part.data) for part in inside if isinstance(part, nodes.TemplateData))
            cost = OPERATION * (1 + len(inside)) + text
            node.iter = _call("for loop", node.iter, nodes.Const(cost))
        elif isinstance(node, nodes.Assign):
            node.node = _call("paid value", node.node)
        elif isinstance(node, nodes.Compare):
            node.expr = _call("paid value", node.expr)
            for operand in node.ops:
                operand.expr = _call("paid value", operand.expr)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            node.node = _call("paid value", node.node)
        elif isinstance(node, nodes.Pair):
            node.key = _call("paid value", node.key)
        elif isinstance(node, nodes.Concat):
            return _call("joined", nodes.List(node.nodes, lineno=node.lineno))
        return node


def _call(name: str, value: Any, *args: nodes.Expr) -> nodes.Filter:
    # The names hold blanks, or are not in `known_filters`: no template can write them.
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > 20:
        raise LimitError("round takes a precision of at most 20")
    rounded: float = FILTERS["round"](value, precision, method)
    return rounded


@pass_environment
def _sum(environment: Environment, values: Any, attribute: Any = None, start: float = 0) -> float:
    if not isinstance(start, int | float):
        raise LimitError("sum adds numbers; use join for texts")
    total: float = FILTERS["sum"](environment, values, attribute, start)
    return total


def _tojson(value: Any, indent: int | None = None) -> str:
    if indent is not None and not 0 <= indent <= 8:
        raise LimitError("tojson indents by at most 8")
    chunks, size = [], 0
    for chunk in json.JSONEncoder(ensure_ascii=False, allow_nan=False, indent=indent).iterencode(
        value
    ):
        size += len(chunk)
        if size > MAX_CHARACTERS:
            raise LimitError(f"tojson writes more than {MAX_CHARACTERS:,} characters")
        chunks.append(chunk)
    return "".join(chunks)


def words(error: BaseException) -> str:
    """Say what one of `FAILURES` means."""
    if isinstance(error, RecursionError | MemoryError | SyntaxError):
        return "is nested too deeply; simplify it"
    if isinstance(error, NameError) or "integer string conversion" in str(error):
        return "holds a number that is too large"  # Jinja writes 1e999 as the name `inf`
    if isinstance(error, UnicodeEncodeError):
        return "renders half a character (\\ud800 to \\udfff); write it whole"
    if isinstance(error, TemplateError):
        return str(error.message or "is not valid Jinja").rstrip(".")
    return f"{type(error).__name__}: {error}"

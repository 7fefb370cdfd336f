"""Expressions: new fields of a row, each a Jinja expression over its columns.

They bring foreign data to the names that templates read: `question=prompt[0].content`.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from jinja2 import Template as JinjaTemplate
from jinja2 import Undefined, nodes
from jinja2.exceptions import TemplateSyntaxError, UndefinedError
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.utils import concat

from prompts.documents import nearest
from prompts.sandbox import FAILURES, Sandbox, words
from workbench.data.conversations import RowError, shorten
from workbench.errors import UserError

ROW = "row"  # the whole row, for columns whose names Jinja cannot read: row['Best Answer']
VALUE = "value"


class Expressions:
    """New fields by name; every one sees the row as it was, and none sees another."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """Take the expressions by the names of their fields.

        Raises:
            UserError: for a name that templates could not read.
        """
        for name, text in texts.items():
            if not name.isidentifier():
                raise UserError(
                    f"field {shorten(f'{name}={text}', 100)}: its name must be one that templates "
                    "can read, of letters, digits and '_'"
                )
        self._texts = dict(texts)
        self._sandbox = _ExpressionSandbox()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with the new fields beside, or in place of, its own.

        Args:
            row: values by column name. An expression reads them by name, the whole as `row`.

        Raises:
            RowError: for an expression that is wrong, refused, or gives nothing on this row.
        """
        self._sandbox.refill()
        names: dict[str, Any] = {ROW: row, **row}
        return {**row, **{name: self._value(name, names) for name in self._texts}}

    @cached_property
    def _compiled(self) -> dict[str, JinjaTemplate]:
        # At the first row, whose place the message of a wrong expression then carries.
        compiled = {}
        for name, text in self._texts.items():
            try:
                compiled[name] = self._sandbox.function(text, name)
            except FAILURES as error:
                raise self._error(name, words(error)) from None
        return compiled

    def _value(self, name: str, names: Mapping[str, Any]) -> Any:
        compiled = self._compiled[name]
        try:
            context = compiled.new_context(dict(names))
            concat(compiled.root_render_func(context))
            value = context.vars[VALUE]
            if isinstance(value, Undefined):
                str(value)  # says what is undefined
            return json.loads(json.dumps(value, allow_nan=False))  # tuples become lists
        except FAILURES as error:
            raise self._error(name, f"{words(error)}{self._hint(name, names, error)}") from None

    def _hint(self, name: str, names: Mapping[str, Any], error: BaseException) -> str:
        read = find_undeclared_variables(self._sandbox.syntax(self._texts[name]))
        missing = read - {*names} if isinstance(error, UndefinedError) else set()
        return f"; {nearest(min(missing), names)}" if missing else ""

    def _error(self, name: str, what: str) -> RowError:
        return RowError(f"field {shorten(f'{name}={self._texts[name]}', 100)}: {what}")


class _ExpressionSandbox(Sandbox):
    """The sandbox of templates for texts that are one expression, whose value is set and kept."""

    def parse(
        self, source: str, name: str | None = None, filename: str | None = None
    ) -> nodes.Template:
        parser = Parser(self, source, name, filename, state="variable")
        expression = parser.parse_expression()
        if not parser.stream.eos:
            raise TemplateSyntaxError(
                "more text after the expression", parser.stream.current.lineno
            )
        kept = nodes.Assign(nodes.Name(VALUE, "store", lineno=1), expression, lineno=1)
        tree = nodes.Template([kept], lineno=1)
        tree.set_environment(self)
        return tree

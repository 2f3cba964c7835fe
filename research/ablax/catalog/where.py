"""Conditions on runs in words: `metrics.bits_per_byte<2 and status=finished`, made into SQL over the index.

    NAME OP VALUE   with = != < <= > >= and ~ (contains), joined by `and`, `or`, `not` and parentheses

NAME is a column of runs (`status`, `name`, `path`, `kind`, `step`, `seconds`, `parameters`, `seed`, `started`, `note`),
`tag`, `metrics.NAME` (of the last evaluation) or a knob's dotted path. A VALUE with blanks stands in quotes.
"""

import re
from typing import Any

from ablax.catalog.index import COLUMNS, Index
from ablax.config import RequestError, suggest

TOKEN = re.compile(r"""\s*(?:(<=|>=|!=|[=<>~()])|"([^"]*)"|'([^']*)'|([^\s=<>!~()"']+))""")
OPERATORS = {"=": "=", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "~": "like"}
NAMES = ("path", "kind", *COLUMNS, "note")
"""Columns of `runs` that a condition may name."""


def matching(index: Index, text: str) -> set[str]:
    """Paths of the runs and sweeps for which a condition holds.

    Raises:
      RequestError: if it is malformed, or no run has a name that it asks for.
    """
    sql, values = _Parser(index, text).parsed()
    return {row["path"] for row in index.select(f"select path from runs where {sql}", values)}


class _Parser:
    """Recursive descent: a term, `not`, `and`, `or`, from the strongest to the weakest."""

    def __init__(self, index: Index, text: str):
        self.index, self.text, self.values = index, text, []
        self.tokens: list[tuple[str, bool]] = []
        place = 0
        while text[place:].strip():
            if not (found := TOKEN.match(text, place)):
                raise self.wrong(f"cannot be read from {text[place:].strip()!r} on")
            sign, double, single, word = found.groups()
            quoted = double if double is not None else single
            self.tokens.append((quoted, True) if quoted is not None else (sign or word, False))
            place = found.end()
        self.tokens.reverse()

    def wrong(self, why: str) -> RequestError:
        return RequestError(
            f'--where={self.text!r} {why}; write, say, "status=finished and step>100"'
        )

    def parsed(self) -> tuple[str, list[Any]]:
        sql = self.either()
        if self.tokens:
            raise self.wrong(f"has {self.tokens[-1][0]!r} where `and` or `or` should stand")
        return sql, self.values

    def take(self) -> tuple[str, bool]:
        if not self.tokens:
            raise self.wrong("ends too early")
        return self.tokens.pop()

    def says(self, word: str) -> bool:
        """Takes a word, if it comes next."""
        text, quoted = self.tokens[-1] if self.tokens else ("", True)
        if quoted or text.lower() != word:
            return False
        self.tokens.pop()
        return True

    def either(self) -> str:
        parts = [self.both()]
        while self.says("or"):
            parts.append(self.both())
        return f"({' or '.join(parts)})"

    def both(self) -> str:
        parts = [self.one()]
        while self.says("and"):
            parts.append(self.one())
        return f"({' and '.join(parts)})"

    def one(self) -> str:
        if self.says("not"):
            return f"(not {self.one()})"
        if self.says("("):
            sql = self.either()
            if not self.says(")"):
                raise self.wrong("has a parenthesis that is not closed")
            return sql
        (name, _), (operator, quoted) = self.take(), self.take()
        if quoted or operator not in OPERATORS:
            raise self.wrong(f"has {operator!r} where one of {' '.join(OPERATORS)} should stand")
        return self.term(name, operator, *self.take())

    def term(self, name: str, operator: str, text: str, quoted: bool) -> str:
        value: Any = f"%{text}%" if operator == "~" else text if quoted else _number(text)
        test = f"{OPERATORS[operator]} ?"
        if name in NAMES:
            self.values.append(value)
            return f"(runs.{name} {test})"
        if name == "tag":
            if operator not in ("=", "!=", "~"):
                raise self.wrong("compares tags by size; use = or !=")
            self.values.append(text if operator != "~" else value)
            found = f"exists (select 1 from tags t where t.path = runs.path and t.tag {test.replace('!=', '=')})"
            return f"(not {found})" if operator == "!=" else found
        metric = name.startswith("metrics.")
        table, own = ("metrics", name.removeprefix("metrics.")) if metric else ("knobs", name)
        self.known(table, own, name)
        self.values += [own, value]
        last = " and t.last" if metric else ""
        return f"exists (select 1 from {table} t where t.path = runs.path{last} and t.name = ? and t.value {test})"

    def known(self, table: str, own: str, name: str) -> None:
        names = [row["name"] for row in self.index.select(f"select distinct name from {table}")]
        if own not in names:
            near = suggest(own, [*names, *NAMES, "tag"] if table == "knobs" else names)
            raise self.wrong(f"asks for {name!r}, which no run has{near}")


def _number(text: str) -> Any:
    truth = {"true": 1, "false": 0}
    if text.lower() in truth:
        return truth[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

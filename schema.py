"""Schemas of data from files, declared as dataclasses whose fields are checked.

    @dataclass
    class Box:
        width: Annotated[int, Range(1, 4096)]
        name: str = ""

    check(Box, data, "boxes.json")   # "boxes.json: width must be a whole number, 1 to 4096, but is -3"

Types of fields: int, float (finite), str (valid Unicode), bool, None, Any, Literal, unions, list[…], tuple[…],
dict[…], other dataclasses, and `Annotated` with a `Range` or a `Rule`. A field with a default may be missing. A
`__post_init__` may raise `ValueError` for fields that contradict each other. Undeclared fields are allowed, unless the
class sets `closed = True`. Nothing is converted: the data remain dicts and lists.

Pydantic checks twice as fast, but importing it would make --help several times slower, and its messages would have to
be rewritten as one line that names file and field.
"""
import dataclasses
import math
import reprlib
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from utils import UserError


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number, or of the length of a text or a list."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, value: Any) -> bool:
        """Whether a number, or the length of a text or a list, lies within the bounds."""
        return self.low <= (value if isinstance(value, int | float) else len(value)) <= self.high

    def __str__(self) -> str:
        return f"at least {self.low}" if self.high == math.inf else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Rule:
    """Any other condition; `words` follow "must be a text, " in messages."""

    holds: Callable[[Any], bool]
    words: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Fault:
    """A fault in the data: its place, as names and indices from the top, and its problem, "must be …, but is …"."""

    path: tuple[str | int, ...]
    problem: str

    def __str__(self) -> str:
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")
        return f"{place} {self.problem}".strip()


# The id of a ref, a sentence, an image …
Id = Annotated[int, Rule(lambda number: abs(number) < 2**63, "of 64 bits")] | Annotated[str, Range(0, 1000)]
_MISSING = object()


Finder = Callable[[Any], Sequence[Fault]]


def check(kind: Any, data: Any, source: str) -> None:
    """Raises `UserError` naming `source` and the first fault if `data` does not fit the type `kind`."""
    if found := faults(kind, data):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(f"{source}: {found[0]}{more}")


def refuse_newer(data: dict[str, Any], known: int, source: str) -> None:
    """Raises `UserError` if the `format_version` of `data` is above `known`; files from before versions have none."""
    version = data.get("format_version", 1)
    if type(version) is not int or not 1 <= version <= known:
        raise UserError(f"{source} has format version {shown(version)}, and this code reads versions up to {known}: "
                        "take the code that wrote it, or a newer one")


def faults(kind: Any, data: Any) -> Sequence[Fault]:
    """All faults of `data`; empty if it fits the type `kind`."""
    return finder(kind)(data)


def shown(value: Any) -> str:
    """A value of any type and size in a few characters, for messages."""
    try:
        return "missing" if value is _MISSING else reprlib.repr(value)
    except ValueError:   # a whole number of thousands of digits
        return f"a huge {type(value).__name__}"


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, which neither files nor tokenizers accept."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


_SCALARS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    Any: (lambda value: True, "anything"),
    int: (lambda value: type(value) is int, "a whole number"),
    float: (lambda value: type(value) in (int, float) and abs(value) < math.inf, "a number"),
    str: (lambda value: isinstance(value, str) and is_unicode(value), "a text"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    bytes: (lambda value: isinstance(value, bytes), "bytes"),
    type(None): (lambda value: value is None, "nothing"),
    list: (lambda value: isinstance(value, list | tuple), "a list"),
    dict: (lambda value: isinstance(value, dict), "an object"),
}


def words(kind: Any) -> str:
    """The requirement of `kind` in words that follow "must be"."""
    if kind in _SCALARS:
        return _SCALARS[kind][1]
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        unit = {str: " characters", list: " entries"}.get(get_origin(parts[0]) or parts[0], "")
        return ", ".join([words(parts[0]), *(f"{condition}{unit * isinstance(condition, Range)}"
                                            for condition in parts[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(words, parts)))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts)) if len(parts) > 1 else repr(parts[0])
    if origin is tuple and parts[-1] is not ...:
        return f"a list of {len(parts)}"
    return f"a list of which each is {words(parts[0])}" if origin in (list, tuple) else "an object"


@cache
def finder(kind: Any) -> Finder:
    """The function that finds the faults of a value of this type; it quickly returns () if there are none."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in _SCALARS:
        return _single(_SCALARS[kind][0], words(kind))
    if dataclasses.is_dataclass(kind):
        return _of_fields(kind)
    if origin is Literal:
        return _single(lambda value: any(type(value) is type(part) and value == part for part in parts), words(kind))
    if origin in (Union, types.UnionType):
        return _single(_either([finder(part) for part in parts]), words(kind))
    if origin is Annotated:
        right = _all_of([condition.holds for condition in parts[1:]])
        if parts[0] in _SCALARS:   # its words include the conditions
            return _single(_all_of([_SCALARS[parts[0]][0], right]), words(kind))
        return _first_then(finder(parts[0]), _single(right, words(kind)))
    if origin is dict:
        key, entry = map(finder, parts)
        return _first_then(finder(dict), lambda value: [
            Fault((shown(name), *fault.path), fault.problem)
            for name, item in value.items() for fault in (*key(name), *entry(item))])
    if origin is list or parts[-1] is ...:
        each = finder(parts[0])
        return _first_then(finder(list), lambda value: [
            Fault((number, *fault.path), fault.problem) for number, item in enumerate(value) for fault in each(item)])
    exactly = _single(lambda value: isinstance(value, list | tuple) and len(value) == len(parts), words(kind))
    return _first_then(exactly, lambda value: [
        Fault((number, *fault.path), fault.problem)
        for number, (part, item) in enumerate(zip(parts, value, strict=True)) for fault in finder(part)(item)])


# Loops and not any() and all(), because a data set has millions of values, and a generator for each takes its time.

def _either(options: Sequence[Finder]) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        for option in options:   # noqa: SIM110
            if not option(value):
                return True
        return False
    return holds


def _all_of(conditions: Sequence[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        for condition in conditions:   # noqa: SIM110
            if not condition(value):
                return False
        return True
    return holds


def _single(holds: Callable[[Any], bool], needed: str) -> Finder:
    return lambda value: () if holds(value) else (Fault((), f"must be {needed}, but is {shown(value)}"),)


def _first_then(first: Finder, then: Finder) -> Finder:
    return lambda value: first(value) or then(value)


def _of_fields(kind: type) -> Finder:
    hints = get_type_hints(kind, include_extras=True)
    fields = [(field.name, finder(hints[field.name]), words(hints[field.name]), _is_required(field))
              for field in dataclasses.fields(kind)]
    names = {name for name, *_ in fields}
    needed = "an object with " + ", ".join(name for name, *_, required in fields if required)
    is_object = _single(lambda value: isinstance(value, dict), needed)
    closed, has_rules = getattr(kind, "closed", False), hasattr(kind, "__post_init__")

    def find(value: dict[str, Any]) -> Sequence[Fault]:
        found: list[Fault] = []
        for name, find_in, needed_there, required in fields:
            given = value.get(name, _MISSING)
            if given is not _MISSING:
                found += [Fault((name, *fault.path), fault.problem) for fault in find_in(given)]
            elif required:
                found.append(Fault((name,), f"must be {needed_there}, but is missing"))
        if closed and (extra := [name for name in value if name not in names]):
            found.append(Fault((), f"has {shown(extra[0])}, which is not known; known are {', '.join(sorted(names))}"))
        if has_rules and not found:
            try:
                kind(**{name: value[name] for name in names & value.keys()})
            except ValueError as error:
                found.append(Fault((), f"is impossible: {error}"))
        return found

    return _first_then(is_object, find)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING

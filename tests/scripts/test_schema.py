"""Limits are declared: data from files must fit the annotations of a dataclass's fields."""
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest

from schema import Id, Range, Rule, check, faults
from utils import UserError


@dataclass
class Part:
    name: str
    weight: Annotated[float, Range(0, 1)] = 1.0


@dataclass
class Whole:
    id: Id
    count: Annotated[int, Range(1, 9)]
    kind: Literal["a", "b"]
    parts: Annotated[list[Part], Range(1)]
    size: tuple[int, int]
    even: Annotated[int, Rule(lambda number: number % 2 == 0, "even")] = 2
    table: dict[str, int] = field(default_factory=dict)
    on: bool | None = None
    rest: Any = None

    def __post_init__(self) -> None:
        if self.count < len(self.parts):
            raise ValueError("fewer than its parts")


GOOD = {"id": "x", "count": 2, "kind": "a", "parts": [{"name": "p"}, {"name": "q", "weight": 0}], "size": (1, 2)}


def test_what_is_declared_passes_and_more_may_be_there():
    check(Whole, {**GOOD, "table": {"k": 1}, "on": True, "rest": {1: 2}, "unknown": 3}, "f")


@pytest.mark.parametrize(("change", "message"), [
    ({"id": 1.5}, "id must be a whole number, of 64 bits or a text, 0 to 1000 characters, but is 1.5"),
    ({"count": 10}, "count must be a whole number, 1 to 9, but is 10"),
    ({"count": True}, "count must be a whole number, 1 to 9, but is True"),
    ({"count": 10**5000}, "but is a huge int"),
    ({"kind": "c"}, "kind must be one of 'a', 'b', but is 'c'"),
    ({"parts": []}, "parts must be a list of which each is an object, at least 1 entries, but is []"),
    ({"parts": [{"name": "p"}, {"name": 3}]}, "parts[1].name must be a text, but is 3"),
    ({"parts": [{"name": "\udc80"}]}, "parts[0].name must be a text"),
    ({"parts": [{"weight": float("nan"), "name": ""}]}, "parts[0].weight must be a number, 0 to 1, but is nan"),
    ({"parts": [7]}, "parts[0] must be an object with name, but is 7"),
    ({"size": [1]}, "size must be a list of 2, but is [1]"),
    ({"size": [1, None]}, "size[1] must be a whole number, but is None"),
    ({"even": 3}, "even must be a whole number, even, but is 3"),
    ({"table": {3: 3}}, "table.3 must be a text"),
    ({"table": {"k": "v"}}, "table.'k' must be a whole number"),
    ({"on": 1}, "on must be true or false or nothing, but is 1"),
    ({"count": 1}, "f: is impossible: fewer than its parts")])
def test_the_first_fault_is_named_with_its_place(change, message):
    with pytest.raises(UserError) as refused:
        check(Whole, {**GOOD, **change}, "f")
    assert message in str(refused.value)


def test_a_missing_field_is_a_fault_unless_it_has_a_default():
    assert [fault.path for fault in faults(Whole, {})] == [("id",), ("count",), ("kind",), ("parts",), ("size",)]
    with pytest.raises(UserError, match=r"f: id must be a whole number, .*, but is missing \(and 4 more\)"):
        check(Whole, {}, "f")


def test_a_closed_class_refuses_what_it_does_not_know():
    @dataclass
    class Closed(Part):
        closed: ClassVar[bool] = True

    check(Closed, {"name": "p"}, "f")
    with pytest.raises(UserError, match="f: has 'colour', which is not known; known are name, weight"):
        check(Closed, {"name": "p", "colour": "red"}, "f")

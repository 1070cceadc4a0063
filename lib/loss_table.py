"""The table of training losses, and the text of `--loss`: parts with weights. This module does not import torch.

    ce:0.9,dice:0.1                         0.9 · cross-entropy + 0.1 · Dice: RMSIN's loss
    ce:0.5,focal:0.5:alpha=0.4:gamma=1      a part with settings of its own

A loss is a function `loss(logits, target, **settings)` of logits (B, 2, S, S') and target (B, S, S') int64 of 0 and 1,
which returns a scalar, and a row of `LOSSES`.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from math import inf
from typing import Any

from utils import UserError, printable


@dataclass(frozen=True)
class Loss:
    """A row of `LOSSES`: `source`, FILE:NAME, is a function in lib/; `settings` are its arguments with their defaults.

    A setting is a number, whole if its default is whole. `--loss` sets it, a checkpoint stores it, and a resumed run
    may not change it.
    """

    source: str
    settings: Mapping[str, float] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """The function."""
        file, name = self.source.split(":")
        return getattr(import_module(f"lib.{file}"), name)


LOSSES: dict[str, Loss] = {
    "ce": Loss("losses:weighted_cross_entropy"),
    "dice": Loss("losses:dice"),
    "focal": Loss("losses:focal", {"alpha": 0.25, "gamma": 2.0}),
}


@dataclass(frozen=True)
class Term:
    """One part of a loss: the name of its row, its weight, and a value for each of its settings."""

    name: str
    weight: float
    settings: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        settings = [f"{name}={_number(value)}" for name, value in self.settings]
        return ":".join([self.name, _number(self.weight), *settings])


@cache
def parse_loss(text: str) -> tuple[Term, ...]:
    """The terms of NAME[:WEIGHT[:SETTING=NUMBER…]],… in their order; the weight defaults to 1, settings to the row's.

    Raises `UserError` for any other text, for a name given twice, and if all weights are 0.
    """
    terms = [_term(part.strip()) for part in text.split(",")]
    names = [term.name for term in terms]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"'{printable(text)[:80]}' has {sorted(twice)[0]} twice")
    if not any(term.weight for term in terms):
        raise UserError(f"'{printable(text)[:80]}' has no weight above 0")
    return tuple(term for term in terms if term.weight)


def spelled_out(text: str) -> str:
    """The text with every weight and setting spelled out, so that equal losses have equal texts; see `parse_loss`."""
    return ",".join(map(str, parse_loss(text)))


def loss_of_share(dice_weight: float) -> str:
    """The loss of `--dice_weight`: the share of Dice, the rest is cross-entropy."""
    return spelled_out(f"ce:{1 - dice_weight!r},dice:{dice_weight!r}")


def _term(text: str) -> Term:
    name, *rest = text.split(":")
    if name not in LOSSES:
        raise UserError(f"'{printable(name)[:40]}' is none of the losses {', '.join(LOSSES)}; --loss has the form "
                        "ce:0.9,dice:0.1")
    weight = _read(rest[0], f"the weight of {name}") if rest else 1.0
    settings = dict(LOSSES[name].settings)
    for part in rest[1:]:
        setting, _, value = part.partition("=")
        if setting not in settings:
            has = f"has the settings {', '.join(settings)}" if settings else "has no settings"
            raise UserError(f"'{printable(setting)[:40]}' is no setting of the loss {name}, which {has}")
        number = _read(value, f"{setting} of {name}")
        if isinstance(settings[setting], int) and number != int(number):
            raise UserError(f"{setting} of {name} must be a whole number, but is '{value[:40]}'")
        settings[setting] = type(settings[setting])(number)
    return Term(name, weight, tuple(settings.items()))


def _read(text: str, what: str) -> float:
    """A finite number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = inf
    if not 0 <= number < 1e6:   # NaN is not
        raise UserError(f"{what} must be a number from 0 to 1e6, but is '{printable(text)[:40]}'")
    return number


def _number(value: float) -> str:
    """The shortest text that `float` reads as the same number."""
    return f"{value!r}".removesuffix(".0")

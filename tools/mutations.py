"""Small changes to data, text and files that programs do not expect; the same generator makes the same ones."""
import copy
import json
import random
from typing import Any

DEEP: list[Any] = []
for _ in range(300):
    DEEP = [DEEP]

# Values that replace a number, a text or a list. {box} is a folder that nothing may write to.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, -10**30, 1e308, float("nan"), float("inf"), 0.5, "", "x", "7",
    "../../victim/photo", "{box}/victim/photo", "a\0b", "\ud800", "\x1b[31mred\x1b[0m", "\u202ertl",
    "é" * 200, "x" * 5000, "-1", "nan", [], {}, [1], [[1]], {"x": 1},
    [None] * 50, DEEP, "\n\n", "[CLS]", [-1e9, 1e9] * 4, [46340, 46340])
FLAG_VALUES = (
    "-1", "0", "1", "3", "nan", "inf", "-inf", "1e400", "9" * 40, "", " ", "x", "../x", "/dev/null/x", "a" * 300,
    "cuda:-1", "cuda:99", "mps", "meta", "cpu:1", "\x1b[31m", "é", "\udcff", "٣", "1_0", "0x10", "1e-400", "-0.0",
    "1-1-1-1", "0-0-0-0", "²-1-1-1", "99999999999-1-1-1", "auto", ".", "..", "~", "none.pth", "\n", "*")


def change(data: Any, draw: random.Random) -> Any:
    """A copy of nested lists and dicts in which one to three entries are replaced, removed, repeated or renamed."""
    data = copy.deepcopy(data)
    for _ in range(draw.randint(1, 3)):
        holder, key = _place(data, draw)
        if holder is None:
            return copy.deepcopy(draw.choice(VALUES))
        what = draw.randrange(8)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[draw.choice(("x", "../x", "\x1b", "id", "model"))] = holder.pop(key)
        elif what == 1:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif what == 2 and isinstance(holder[key], int | float):
            holder[key] = draw.choice((-holder[key], holder[key] + 1, holder[key] * 1000, str(holder[key])))
        elif what == 3 and isinstance(holder[key], str):
            holder[key] = text(holder[key], draw)
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))   # a later change may be made inside
    return data


def _place(data: Any, draw: random.Random) -> tuple[Any, Any]:
    """A random entry, more often one near the top: its list or dict, and its index or key."""
    holder = key = None
    while isinstance(data, list | dict) and data and (holder is None or draw.random() < 0.8):
        holder, key = data, draw.choice(list(data)) if isinstance(data, dict) else draw.randrange(len(data))
        data = data[key]
    return holder, key


def text(content: str, draw: random.Random) -> str:
    """A text cut short, doubled, or with something hostile inside."""
    place = draw.randint(0, len(content))
    return draw.choice((content[:place], content * 2, content[:place] + "\0\x1b\ud800" + content[place:],
                        content[:place] + "9" * 30 + content[place:]))


def damage(content: bytes, draw: random.Random, most: int = 6) -> bytes:
    """Bytes cut short, flipped, overwritten, repeated or removed, at most `most` times, mostly in the first 512."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, most)):
        if not changed:
            break
        place = draw.randrange(min(len(changed), draw.choice((64, 512, len(changed)))) or 1)
        length = draw.choice((1, 1, 2, 4, 16))
        what = draw.randrange(6)
        if what == 0:
            del changed[place + 1:]
        elif what == 1:
            changed[place] ^= 1 << draw.randrange(8)
        elif what == 2:
            changed[place:place + length] = draw.choice((b"\0", b"\xff", b"\x7f")) * length
        elif what == 3:
            changed[place:place] = changed[place:place + length]
        elif what == 4:
            del changed[place:place + length]
        else:
            changed[place:place + length] = draw.randbytes(length)
    return bytes(changed)


def as_json(data: Any) -> bytes:
    """JSON of data that JSON may be unable to hold."""
    return json.dumps(data, default=str).encode()


def flags(base: list[str], known: list[str], draw: random.Random) -> list[str]:
    """A command line with one to three flags given another value, doubled, or without their value."""
    line = list(base)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        extra = [draw.choice(known)]
        if draw.random() < 0.9:
            extra.append(draw.choice(FLAG_VALUES))
        line += extra
    return line

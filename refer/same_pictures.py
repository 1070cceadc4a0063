"""Which files are the same picture under several names: links to one file, or files of the same bytes."""
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

from utils import sha256_of

_FIRST_BYTES = 2**14   # which nearly always tell apart files of one size


def same_pictures(paths: Iterable[str]) -> dict[str, str]:
    """{path: the first of the paths whose file has the same bytes}, for every path.

    Only files of one size are read, and only those that begin alike are read to their end. A file that cannot be read
    is like no other.
    """
    groups = [list(dict.fromkeys(paths))]
    for key in (_size, _beginning, _content):
        groups = [part for group in groups for part in (_parts(group, key) if len(group) > 1 else [group])]
    return {path: group[0] for group in groups for path in group}


def _parts(paths: list[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """The paths in groups of one key, those without one each on its own."""
    parts: dict[Hashable, list[str]] = defaultdict(list)
    for path in paths:
        try:
            parts[key(path)].append(path)
        except (OSError, ValueError):
            parts["cannot be read", path].append(path)
    return list(parts.values())


def _size(path: str) -> int:
    return os.path.getsize(path)


def _beginning(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(_FIRST_BYTES)).digest()


def _content(path: str) -> str:
    return sha256_of(path)

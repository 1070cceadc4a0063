"""Pictures dealt out to splits: those of one group, and those of the same content, stay together."""
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from utils import UserError

NAMES = ("train", "val", "test")


def group_pictures(groups_of: Mapping[str, set[str]], same: Mapping[str, str]) -> list[list[str]]:
    """The pictures that stay together: those of one group, and those that are one picture (`same`).

    `groups_of` has the groups of each picture, none for a picture on its own.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for path, groups in groups_of.items():
        for node in (("picture", same.get(path, path)), *(("group", group) for group in sorted(groups))):
            parent[root(node)] = root(("picture", path))
    together: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in groups_of:
        together[root(("picture", path))].append(path)
    return list(together.values())


def deal(groups: Sequence[Sequence[str]], shares: Sequence[float], seed: int) -> dict[str, str]:
    """{picture: split}: each split gets its share of the pictures as nearly as whole groups allow, at least a group.

    The same groups and seed give the same splits. Raises UserError if there are fewer groups than splits.
    """
    wanted = {name: share / sum(shares) for name, share in zip(NAMES, shares, strict=True) if share > 0}
    if len(groups) < len(wanted):
        raise UserError(f"{len(groups)} pictures, or groups of pictures, cannot be dealt out to {len(wanted)} splits: "
                        "give more pictures, or fewer splits (--split 1 0 0 puts all in train)")
    order = sorted(map(list, groups))
    random.Random(seed).shuffle(order)
    order.sort(key=len, reverse=True)
    pictures = sum(map(len, groups))
    missing = {name: share * pictures for name, share in wanted.items()}
    empty, split_of = list(wanted), {}
    for place, group in enumerate(order):
        choice = empty if len(order) - place <= len(empty) else missing
        name = max(choice, key=lambda name: missing[name])
        missing[name] -= len(group)
        if name in empty:
            empty.remove(name)
        split_of.update(dict.fromkeys(group, name))
    return split_of

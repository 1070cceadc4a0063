"""Whether masks of a training set are empty without being meant so, which a wrong rule for reading them causes."""
import numpy as np

from data.dataset import TrainSet
from refer.masks import BadImage
from utils import UserError, log

LOOKED_AT = 200       # refs of a training set, evenly spread
MOST_EMPTY = 0.1      # share of them that may have an empty mask


def refuse_empty(train_set: TrainSet, allowed: bool) -> None:
    """Raises `UserError` if more than `MOST_EMPTY` of the training refs that are looked at have an empty mask.

    Refs without a target by design do not count. With `allowed`, such a set is logged instead. A mask that cannot be
    read is left to training, which skips or names it.
    """
    refs, table = train_set.refs, train_set.table
    places = np.linspace(0, len(refs) - 1, min(LOOKED_AT, len(refs))).astype(int).tolist()
    empty, looked_at = [], 0
    for place in places:
        row = int(refs.rows[place])
        if table.no_target[row]:
            continue
        try:
            mask = train_set.packed.load(row)[1].numpy() if train_set.packed else table.mask(row)
        except BadImage:
            continue
        looked_at += 1
        if not mask.any():
            empty.append(row)
    if len(empty) <= MOST_EMPTY * looked_at:
        return
    path = table.mask_path(empty[0])
    found = (f"{len(empty)} of {looked_at} training refs that were looked at have an empty mask, the first is "
             f"{table.where(empty[0])}" + (f" ({path})" if path else ""))
    if not allowed:
        raise UserError(f"{found}: a network would learn to mark nothing. See how the masks are read "
                        "(tools/check_dataset.py lists all), or train on them with --allow_empty")
    log(f"--allow_empty: {found}")

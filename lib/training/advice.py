"""Advice after a training that has learned next to nothing."""
from collections.abc import Sequence

LOW_MIOU = 10   # percent; a network that has learned something is above it


def advice_on(mIoUs: Sequence[float]) -> str:
    """What to look at if the val mIoU of every epoch, in percent, stayed below `LOW_MIOU`; else ''."""
    if not mIoUs or max(mIoUs) >= LOW_MIOU:
        return ""
    return (f"val mIoU stayed below {LOW_MIOU}: look at the data with tools/check_dataset.py and its contact sheet; "
            "see with --overfit 8 whether the network learns eight refs at all; then try more --epochs or another --lr")

"""The REFER index: annotation files in; refs, image paths and masks out. It raises and never exits or prints.

    from refer import REFER
    index = REFER("./refer/data", "rrsisd", "unc")

`refer/data/README.md` says how to lay out each data set. `refer.layouts`, the table of data sets, imports no package;
`REFER`, which needs several, is therefore imported on first use.
"""
from typing import Any

from refer.layouts import DATASETS

__all__ = ["DATASETS", "REFER"]


def __getattr__(name: str) -> Any:
    if name == "REFER":
        from refer.refer import REFER
        return REFER
    raise AttributeError(f"module 'refer' has no attribute {name!r}")

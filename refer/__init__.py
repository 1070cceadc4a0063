"""The REFER index: annotation files in; refs, image paths and masks out. It raises and never exits or prints.

    from refer import REFER
    index = REFER("./refer/data", "rrsisd", "unc")

`refer/data/README.md` says how to lay out each data set.
"""

from refer.refer import DATASETS, REFER

__all__ = ["DATASETS", "REFER"]

"""test.py in its plain form: what its time from start to end is compared with (docs/performance.md).

    time python test.py FLAGS --batch-size 16 --fuse
    time python tools/plain_test.py FLAGS --batch-size 1

The network of tools/plain.py, and nothing done about memory and garbage.
"""
import contextlib
import runpy
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import distributed
import utils


def main() -> None:
    utils.importing_much = contextlib.nullcontext
    utils.set_up_cpu = lambda device: None
    distributed.leave_at_once = lambda: None

    from lib import checkpoint  # only now: this is the large import
    from tools.plain import make_plain

    restore = checkpoint.restore

    def restore_plain(*arguments: Any) -> tuple:
        model, *rest = restore(*arguments)
        return make_plain(model), *rest

    checkpoint.restore = restore_plain
    runpy.run_path(str(Path(utils.__file__).with_name("test.py")), run_name="__main__")


if __name__ == "__main__":
    main()

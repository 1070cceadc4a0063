"""Large arrays that one process of each machine makes, and that all processes and their workers map from one file."""
import os
import platform
import shutil
import signal
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np

from distributed import gather_objects
from distributed.signals import STOP_SIGNALS
from utils import UserError, rank

Arrays = dict[str, np.ndarray]
Make = Callable[[], Arrays]
Write = Callable[[Path], None]   # saves arrays in a folder

# Windows cannot remove a mapped file, so each process reads a copy there. Programs on macOS may crash in a forked
# process, as Apple's libraries do not support it.
MAPPED: Literal["r"] | None = "r" if os.name == "posix" else None
FORKS = hasattr(os, "fork") and sys.platform != "darwin"


def shared_arrays(write: Write, ready: bool = True) -> Arrays:
    """Read-only arrays in memory that all processes of a machine share.

    On each machine one process calls `write`, which saves the arrays in a temporary folder (below TMPDIR): the first
    process that is `ready`, or the first if none is. All processes then map the files into their memory, and the
    folder is removed. Every process must call this function. Raises `UserError` as `write` does, and if the folder
    cannot be written.
    """
    node = machine()
    first = min((not begun, number) for number, (name, begun) in enumerate(gather_objects((node, ready)))
                if name == node)[1]
    folder = None
    try:
        if rank() == first:
            folder = Path(tempfile.mkdtemp(prefix="refs-"))
            write(folder)
        made = gather_objects(folder)[first]
        assert made is not None
        # As plain arrays, because indexing a memmap takes three times as long.
        arrays = {path.stem: np.asarray(np.load(path, mmap_mode=MAPPED)) for path in made.iterdir()}
        gather_objects(None)   # waits until all processes have mapped the files
    except OSError as error:
        raise UserError(f"{folder or tempfile.gettempdir()} cannot hold the arrays that the processes share ({error}): "
                        "make room there, or name another folder in TMPDIR") from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    return arrays


def machine() -> tuple[str, int, int]:
    """What tells machines apart: the host's name and its temporary folder, which containers of one name each have."""
    try:
        place = os.stat(tempfile.gettempdir())
    except OSError:   # writing there will say so
        return platform.node(), 0, 0
    return platform.node(), place.st_dev, place.st_ino


def save(arrays: Arrays, folder: Path) -> None:
    """Writes each array to a file of its name."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


class MadeApart:
    """Arrays that a child process makes while this process goes on; when the child ends, its memory is freed.

    Make it before this process starts threads, and so before it connects to others: a lock that another thread holds
    during the fork stays locked in the child for ever, which is rare but would hang the run. Where processes cannot
    fork, and if `begin` is false, `write` makes the arrays.
    """

    def __init__(self, make: Make, begin: bool = True):
        self.make, self.child = make, 0
        if begin and FORKS:
            sys.stdout.flush()
            sys.stderr.flush()
            self.connection, other_end = Pipe()
            self.child = os.fork()
            if not self.child:
                self.connection.close()
                _make_and_save(make, other_end)
            other_end.close()
            self.end_child = weakref.finalize(self, os.kill, self.child, signal.SIGKILL)   # if nobody wants the arrays

    def write(self, folder: Path) -> None:
        """Saves the arrays in the folder. Raises `make`'s UserError, OSError, or RuntimeError for a bug or a crash."""
        if not self.child:
            return save(self.make(), folder)
        try:
            self.connection.send(folder)
            error = self.connection.recv()
        except (EOFError, ConnectionError):
            error = RuntimeError("the process that reads the refs is gone; it may have lacked memory")
        self.connection.close()
        os.waitpid(self.child, 0)
        self.end_child.detach()
        if error:
            raise error


def _make_and_save(make: Make, parent: Connection) -> None:
    """The child's work. The child ends without its parent's exit handlers, at the latest when the parent ends."""
    arrays: Arrays = {}
    error: Exception | None = None
    try:
        for number in STOP_SIGNALS:   # the parent handles them
            signal.signal(number, signal.SIG_IGN)
        try:
            arrays = make()
        except UserError as raised:
            error = raised
        except Exception:   # as text, since not every exception can be sent
            error = RuntimeError(f"the process that reads the refs failed:\n{traceback.format_exc()}")
        folder = parent.recv()
        try:
            save(arrays, folder)
        except OSError as raised:
            error = raised
        parent.send(error)
    except EOFError:   # the parent is gone
        pass
    finally:
        os._exit(0)

"""Large arrays that one process of each machine makes, and that all processes and their workers map from one file."""
import multiprocessing
import os
import platform
import shutil
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from distributed import gather_objects
from utils import UserError, rank

Arrays = dict[str, np.ndarray]
Make = Callable[[], Arrays]


def shared_arrays(make: Make, apart: bool = False) -> Arrays:
    """The arrays that `make()` returns, read-only, in memory that all processes of a machine share.

    The machine's first process makes them; with `apart` a child of it does, whose end frees the memory that this took.
    The arrays lie in a temporary folder (below TMPDIR), which is removed once all processes have mapped them. Every
    process must call this. Raises `UserError` as `make` does, and when that folder cannot be written.
    """
    node = platform.node()
    first = min(number for number, (name, _) in enumerate(gather_objects((node, rank()))) if name == node)
    folder = None
    try:
        if rank() == first:
            folder = Path(tempfile.mkdtemp(prefix="refs-"))
            if apart and "fork" in multiprocessing.get_all_start_methods():
                _make_apart(make, folder)
            else:
                _save(make(), folder)
        made = gather_objects(folder)[first]
        assert made is not None
        # As plain arrays, because indexing a memmap takes three times as long.
        arrays = {path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in made.iterdir()}
        gather_objects(None)   # by now all have mapped them
    except OSError as error:
        raise UserError(f"{folder or tempfile.gettempdir()} cannot hold what the processes share ({error}): make room "
                        "there, or name another folder in TMPDIR") from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    return arrays


def _save(arrays: Arrays, folder: Path) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _make_apart(make: Make, folder: Path) -> None:
    """Runs `make` in a child process and waits for it. Raises its UserError; RuntimeError for a bug or a crash."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(make, folder, sender), daemon=True)
    child.start()
    sender.close()
    try:
        kind, message = receiver.recv()
    except EOFError:
        kind, message = "crash", "it said nothing"
    child.join()
    if kind == "user error":
        raise UserError(message)
    if kind != "done":
        raise RuntimeError(f"the process that reads the refs failed (exit status {child.exitcode}); it may have lacked "
                           f"memory. {message}")


def _child(make: Make, folder: Path, sender: Connection) -> None:
    try:
        _save(make(), folder)
        sender.send(("done", ""))
    except UserError as error:
        sender.send(("user error", str(error)))
    except Exception:
        sender.send(("bug", traceback.format_exc()))
    finally:
        sender.close()
        os._exit(0)   # without the exit handlers that the parent registered for itself

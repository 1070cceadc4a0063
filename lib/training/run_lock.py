"""A lock that allows one run of a name at a time, since two would mix their files."""
import importlib
import os
from pathlib import Path
from typing import BinaryIO

from lib.training.state import run_files
from utils import UserError, log, rank
from utils.files import remove_abandoned

_held: list[BinaryIO] = []   # they stay open until the process ends; the system then releases the locks


def hold(folder: Path, model_id: str) -> None:
    """Locks `folder` against other runs of this name until this process ends. The first process locks for all.

    Loader workers do not inherit the lock, so it never outlives the run. Raises `UserError` if another run holds it.
    """
    if rank() > 0:
        return
    path = folder / f".{model_id}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    try:
        _lock(file)
        for path in run_files(folder, model_id).values():   # left by a run of this name that was killed
            remove_abandoned(path, 0)
    except (BlockingIOError, PermissionError) as error:
        raise UserError(f"another run of --model_id {model_id} is writing to {folder}: wait for it, stop it, or give "
                        "this one another --model_id") from error
    except OSError as error:
        log(f"{folder} has no locks ({error.strerror or error}): do not start two runs with one --model_id at the same "
            "time")
    _held.append(file)


def _lock(file: BinaryIO) -> None:
    """Locks an open file for this process, by POSIX or by Windows. Raises `OSError` if another process has the lock."""
    try:
        posix = importlib.import_module("fcntl")
        posix.lockf(file, posix.LOCK_EX | posix.LOCK_NB)
    except ImportError:
        try:
            windows = importlib.import_module("msvcrt")
        except ImportError:
            if not _held:   # it is said once
                log("this system has no locks: do not start two runs with one --model_id at the same time")
            return
        os.lseek(file.fileno(), 0, os.SEEK_SET)   # it locks from here on, the file being empty or not
        windows.locking(file.fileno(), windows.LK_NBLCK, 1)

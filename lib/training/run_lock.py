"""A lock that allows one run of a name at a time, since two would mix their files."""
import fcntl
from pathlib import Path
from typing import BinaryIO

from utils import UserError, rank

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
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise UserError(f"another run of --model_id {model_id} is writing to {folder}: wait for it, stop it, or give "
                        "this one another --model_id") from error
    except OSError:   # a file system without locks
        pass
    _held.append(file)

"""One run at a time of one name: the second would mix its files with the first one's."""
import fcntl
from pathlib import Path
from typing import BinaryIO

from utils import UserError, rank

_held: list[BinaryIO] = []   # open as long as the process lives; the system then lets go, whatever ends it


def hold(folder: Path, model_id: str) -> None:
    """Keeps other runs of this name out of `folder`, until this process ends. The first process holds for all.

    Raises `UserError` if another run has it. Loader workers do not inherit the lock, so that they cannot keep it.
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

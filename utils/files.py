"""Files that are read or written whole, atomically, with errors in one line."""
import glob
import hashlib
import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.ranks import rank


def set_aside(path: Path) -> Path | None:
    """Adds the time of its last change to the name of `path`, left by an earlier run; returns the new name, or None."""
    if rank() > 0 or not path.exists():
        return None
    written = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    new, number = path.with_suffix(f".{written}{path.suffix}"), 1
    while os.path.lexists(new):   # two runs may have ended in one second, or times may be those of a copy
        number += 1
        new = path.with_suffix(f".{written}-{number}{path.suffix}")
    return path.rename(new)


ABANDONED_S = 3600   # a temporary file that nothing was written to for so long is a killed process's


def temporary_beside(path: Path) -> Path:
    """A name for what becomes `path` when it is whole: hidden, of the same suffix, and no other file's or process's."""
    return path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")


def remove_abandoned(path: Path, after_s: float = ABANDONED_S) -> None:
    """Removes temporary files of `path` that killed processes left, those that were not written to for `after_s`."""
    pattern = f".{glob.escape(path.stem[:40])}.{'[0-9a-f]' * 12}.tmp{glob.escape(path.suffix)}"
    for file in path.parent.glob(pattern):
        with suppress(OSError):   # another process may remove it
            if time.time() - file.stat().st_mtime > after_s:
                file.unlink()


def write_json(path: Path, content: Any) -> None:
    """Writes plain data as JSON, atomically. Raises `UserError` if the file cannot be written."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes `path` in UTF-8, atomically. Raises `UserError` if the file cannot be written."""
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder")
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):   # it may not exist
            temporary.unlink()
        raise UserError(f"{path} cannot be written: {error}") from error


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file. Raises `UserError` if it cannot be read or is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise UserError(f"{path} cannot be read: its brackets are nested too deeply") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def make_folder(folder: Path) -> None:
    """Makes `folder` if it does not exist. Raises `UserError` if it is not writable, before any work is lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error


def sha256_of(path: str | Path) -> str:
    """The SHA-256, in hexadecimal, of a file; of a folder, that of its files' SHA-256 and names."""
    if os.path.isdir(path):
        files = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
        listed = "".join(f"{sha256_of(os.path.join(path, name))} {name}\n" for name in files)
        return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(file.read()).hexdigest()

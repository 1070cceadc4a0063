"""The file `FILE.sha256` beside a checkpoint, as `sha256sum` writes it; BSD's form and upper case are read as well."""
import os
import re
from pathlib import Path

from utils.files import temporary_beside

_DIGEST = re.compile(r"^\\?([0-9a-f]{64})\b|= ([0-9a-f]{64})$", re.IGNORECASE)   # GNU's form, BSD's


def digest_file(path: str | Path) -> Path:
    """The path of the file with a checkpoint's SHA-256."""
    return Path(f"{path}.sha256")


def read_digests(path: str | Path) -> list[str]:
    """Every SHA-256 that the checkpoint may have, in lower case; [] if there is no file beside it.

    A line without a SHA-256 is returned as it is: it matches no file, so the damage is detected.
    """
    try:
        lines = digest_file(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = [(_DIGEST.search(line.strip()), line) for line in lines if line.strip()]
    return [(match[1] or match[2]).lower() if match else line for match, line in found]


def write_digests(path: Path, digests: list[str]) -> None:
    """Writes the SHA-256 of `path`, or two of them while a new file replaces the old one. Raises `OSError`."""
    temporary = temporary_beside(digest_file(path))
    with open(temporary, "w", encoding="utf-8") as file:
        file.write("".join(f"{digest}  {path.name}\n" for digest in dict.fromkeys(digests)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, digest_file(path))
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Syncs a folder, so that the names in it survive a power failure. Windows cannot, and keeps its own log."""
    if not hasattr(os, "O_DIRECTORY"):   # on Windows no folder can be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_digests(old: Path, new: Path) -> None:
    """Renames the SHA-256 file of a checkpoint that was renamed from `old` to `new`."""
    if digests := read_digests(old):
        write_digests(new, digests)
        digest_file(old).unlink()

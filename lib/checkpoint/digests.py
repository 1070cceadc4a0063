"""The SHA-256 beside a checkpoint, `FILE.sha256`, as `sha256sum` writes it; read in BSD's form and upper case too."""
import os
import re
from pathlib import Path

_DIGEST = re.compile(r"^\\?([0-9a-f]{64})\b|= ([0-9a-f]{64})$", re.IGNORECASE)   # GNU's form, BSD's


def digest_file(path: str | Path) -> Path:
    """Where a checkpoint's SHA-256 stands, in the form of `sha256sum`."""
    return Path(f"{path}.sha256")


def read_digests(path: str | Path) -> list[str]:
    """Every SHA-256 that may be the checkpoint's, in lower case; [] if none stands beside it.

    A line that holds none stays as it is: no file has it, and the damage is noticed.
    """
    try:
        lines = digest_file(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = [(_DIGEST.search(line.strip()), line) for line in lines if line.strip()]
    return [(match[1] or match[2]).lower() if match else line for match, line in found]


def write_digests(path: Path, digests: list[str]) -> None:
    """Writes the SHA-256 of `path`, or several while one file takes another's place. Raises `OSError`."""
    temporary = Path(f"{digest_file(path)}.tmp")
    with open(temporary, "w") as file:
        file.write("".join(f"{digest}  {path.name}\n" for digest in dict.fromkeys(digests)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, digest_file(path))
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last over a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_digests(old: Path, new: Path) -> None:
    """What a checkpoint that was renamed from `old` to `new` still needs: its SHA-256 goes with it."""
    if digests := read_digests(old):
        write_digests(new, digests)
        digest_file(old).unlink()

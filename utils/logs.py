"""Log lines, progress bars, and a standard output that never ends a run."""
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from tqdm import tqdm

from utils.ranks import rank

T = TypeVar("T")
LINE_S = 30   # between two lines about a long work

# Characters that move a terminal's cursor, hide or reorder its text, or cannot be encoded in UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with control characters escaped, for example `\\x1b`, because sentences and names come from files."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Output:
    """Standard output that never ends a run: text for a full disk or a closed pipe is lost."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):   # a closed stream raises ValueError
            try:
                sys.stdout.write(text)
            except UnicodeEncodeError:
                sys.stdout.write(text.encode("ascii", "backslashreplace").decode())

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stdout.flush()

    def isatty(self) -> bool:
        return sys.stdout.isatty()

    def fileno(self) -> int:
        return sys.stdout.fileno()

    @property
    def encoding(self) -> str:
        return sys.stdout.encoding


_output = _Output()


@contextmanager
def standard_output() -> Iterator[None]:
    """A context in which standard output exists; text that cannot be written to it at the end is lost.

    A program may be started without standard output (`>&-`); the next file that it opens would then become its
    standard output. The null device is opened first to prevent that.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)   # it gets the lowest free number
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):   # Python would try once more and change the exit status
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def log(message: str, any_process: bool = False) -> None:
    """Prints one line, above a progress bar if there is one, from the first process or, if `any_process`, from each."""
    if rank() == 0 or any_process:
        tqdm.write(printable(message), file=_output)
        _output.flush()


def progress(batches: Iterable[T], description: str, lines: bool = False) -> Iterable[T]:
    """`batches` with a progress bar on the first process's terminal; no bar if the output goes to a file.

    With `lines`, for which the number of batches must be known, such a file gets a line every half minute.
    """
    hidden = rank() > 0 or not sys.stdout.isatty()
    if lines and hidden and rank() == 0:
        return _progress_lines(batches, len(batches), description)  # type: ignore[arg-type]   # it is sized
    return tqdm(batches, desc=description, disable=hidden, leave=False, dynamic_ncols=True, file=_output)


def _progress_lines(batches: Iterable[T], total: int, description: str) -> Iterator[T]:
    """`batches` with a line about how many of `total` are done whenever `LINE_S` seconds have passed."""
    began = said = time.monotonic()
    for done, batch in enumerate(batches):
        now = time.monotonic()
        if now - said >= LINE_S and done:
            said = now
            log(f"{description}: {done} of {total}, about {duration((now - began) / done * (total - done))} left")
        yield batch


def duration(seconds: float) -> str:
    """A duration in its two largest units: '40 s', '6 min 20 s', '3 h 5 min', '2 d 4 h'."""
    whole = round(seconds)
    units = (("d", whole // 86400), ("h", whole // 3600 % 24), ("min", whole // 60 % 60), ("s", whole % 60))
    first = next((place for place, (_, count) in enumerate(units) if count), 3)
    return " ".join(f"{count} {unit}" for unit, count in units[first:first + 2] if count) or "0 s"

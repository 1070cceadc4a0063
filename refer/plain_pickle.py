"""Reads pickles that hold plain data only.

An ordinary unpickler imports whatever the file names and calls it, so a downloaded file can run any
program. Data files need none of that: lists, dicts, strings and numbers have opcodes of their own.
"""

import copyreg
import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from utils import UserError


class _PlainUnpickler(pickle.Unpickler):
    """Builds what the opcodes themselves describe, and refuses every request for something from outside."""

    def __init__(self, content: bytes, path: Path, encoding: str) -> None:
        super().__init__(io.BytesIO(content), encoding=encoding)
        self.path = path

    def find_class(self, module: str, name: str) -> NoReturn:
        remedy = "Get the file again from its authors: refer/data/README.md says where."
        if module.partition(".")[0] == "numpy":
            remedy = ("This is a number or an array of NumPy: if the file is your own, write int(x), float(x) or "
                      "x.tolist() in its place.")
        raise UserError(
            f"{self.path} asks to load '{module}.{name}', but a data file may hold plain data only "
            f"(lists, dicts, strings, numbers). It was refused and nothing in it was run. {remedy}"
        )

    def persistent_load(self, pid: object) -> NoReturn:
        raise UserError(
            f"{self.path} refers to an outside object ('{pid}'), but a data file may hold plain data only "
            "(lists, dicts, strings, numbers). It was refused and nothing in it was run. "
            "Get the file again from its authors: refer/data/README.md says where."
        )


def load_plain_pickle(path: str | Path) -> Any:
    """The content of a pickle of plain data, of any protocol, Python 2's included.

    Plain is what has an opcode of its own: dict, list, tuple, set, frozenset, str, bytes, bytearray, int,
    float, bool, None. (Protocols 0 to 3 spell a set, and 0 to 2 bytes, as calls of a class: refused.)
    Python 2's byte strings become str, as UTF-8 or, where they are not that, as Latin-1.

    Raises UserError, naming the file, if it cannot be read, is truncated or garbage, or asks for a class,
    a function, a registered extension or a persistent id. Nothing in the file is ever imported or called.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Check that it is there and that you may read it; "
            "refer/data/README.md says what goes where."
        ) from error
    # Objects already imported for extension codes are handed out of this cache without asking find_class.
    copyreg.clear_extension_cache()
    try:
        try:
            return _PlainUnpickler(content, path, encoding="utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(content, path, encoding="latin1").load()
    except UserError:
        raise
    except Exception as error:  # damaged bytes surface as nearly any exception, from EOFError to KeyError
        raise UserError(
            f"{path} ({len(content)} bytes) is not a complete pickle of plain data "
            f"({type(error).__name__}: {error}). Nothing in it was run. It may be truncated: download it "
            "again, refer/data/README.md says where."
        ) from error

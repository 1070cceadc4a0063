"""Errors, log lines, files and machine data for every script. This module imports no other of the project."""
import atexit
import gc
import hashlib
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class UserError(ValueError):
    """A mistake in the user's input: scripts print it in one line and exit with status 2."""


class MachineError(RuntimeError):
    """A failure outside the program: scripts print it in one line and exit with status 1."""


def rank() -> int:
    """The rank of this process in the run, 0 without distributed training."""
    return _process_group().get_rank() if _process_group() else 0


def world_size() -> int:
    """The number of processes of the run, 1 without distributed training."""
    return _process_group().get_world_size() if _process_group() else 1


def _process_group() -> ModuleType | None:
    """torch.distributed if a process group exists; this module does not import torch, which takes seconds."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


# Garbage collection: Python's collector would pause each process at another training step.

@contextmanager
def importing_much() -> Iterator[None]:
    """A context for imports of large packages, whose objects the garbage collector need not scan, now or later."""
    gc.disable()
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None   # no work has begun, so a traceback is useless
    finally:
        gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)   # some packages complain if their objects are not freed at exit


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """A context in which only `gc.collect()` collects, and skips the existing objects: data and network."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


# Log lines

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

    A program may be started without one (`>&-`); the next file that it opens would take its place. The null device
    takes it instead.
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


def progress(batches: Iterable[T], description: str) -> Iterable[T]:
    """`batches` with a progress bar on the first process's terminal; no bar if the output goes to a file."""
    hidden = rank() > 0 or not sys.stdout.isatty()
    return tqdm(batches, desc=description, disable=hidden, leave=False, dynamic_ncols=True, file=_output)


def duration(seconds: float) -> str:
    """A duration in its two largest units: '40 s', '6 min 20 s', '3 h 5 min', '2 d 4 h'."""
    whole = round(seconds)
    units = (("d", whole // 86400), ("h", whole // 3600 % 24), ("min", whole // 60 % 60), ("s", whole % 60))
    first = next((place for place, (_, count) in enumerate(units) if count), 3)
    return " ".join(f"{count} {unit}" for unit, count in units[first:first + 2] if count) or "0 s"


def set_aside(path: Path) -> Path | None:
    """Renames `path`, left by an earlier run, by the time of its last change; returns the new name, or None."""
    if rank() > 0 or not path.exists():
        return None
    written = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    return path.rename(path.with_suffix(f".{written}{path.suffix}"))


def write_json(path: Path, content: Any) -> None:
    """Writes plain data as JSON, atomically. Raises `UserError` if the file cannot be written."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes `path` in UTF-8, atomically. Raises `UserError` if the file cannot be written."""
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder")
    temporary = path.with_name(path.name + ".tmp")
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
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else \
            hashlib.sha256(file.read()).hexdigest()


@cache
def processor() -> tuple[str, frozenset[str]]:
    """This machine's processor: its name, and Linux's feature flags (no flags on other systems)."""
    lines: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            lines.setdefault(key.strip(), value.strip())
    name = lines.get("model name") or platform.processor() or platform.machine()
    return name, frozenset(lines.get("flags", lines.get("Features", "")).split())


INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16",
                "asimd": "NEON", "sve": "SVE", "bf16": "BF16"}   # by Linux's flags; those that speed depends on


def describe_cpu() -> str:
    """The processor's name and the instructions that speed depends on: 'AMD EPYC (AVX2, AVX-512)'."""
    name, flags = processor()
    known = [instructions for flag, instructions in INSTRUCTIONS.items() if flag in flags]
    return f"{name} ({', '.join(known)})" if known else name


def describe_run(device: "torch.device") -> dict[str, Any]:
    """The environment that results depend on: package versions, the device, the number of processes."""
    import torch
    packages = ("torch", "torchvision", "transformers", "tokenizers", "pycocotools", "numpy", "Pillow")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else describe_cpu()
    return {"versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
            "device": f"{device.type}: {name}", "processes": world_size()}


def peak_memory_mib(device: "torch.device") -> int:
    """The peak memory in MiB, of the GPU or, on the CPU, of this process."""
    if device.type == "cuda":
        import torch
        return torch.cuda.max_memory_allocated(device) >> 20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> (20 if sys.platform == "darwin" else 10)

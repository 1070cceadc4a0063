"""Checkpoint files: reading runs no code in them, and writing is atomic.

Loading is strict and runs no code: only tensors, plain data and `argparse.Namespace` are unpickled, and an
entry that is missing, unexpected or of another shape raises an error.
"""
import hashlib
import os
import pickle
import re
import shutil
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from lib.checkpoint.digests import digest_file, read_digests, sync_folder, write_digests
from lib.checkpoint.model_folder import read_description, weights_file
from lib.checkpoint.settings import FORMAT_VERSION, model_settings
from lib.checkpoint.strict_loading import State, build_with_weights, load_weights
from lib.model import ReferringSegmenter
from lib.segmentation import ModelConfig
from schema import refuse_newer
from utils import UserError, sha256_of
from utils.files import remove_abandoned, temporary_beside

Checkpoint = dict[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The contents of a checkpoint, which is a file or a model folder, on the CPU; no code in it is run.

    Raises `UserError` if the checkpoint is missing, damaged, or holds more than tensors and plain data.
    """
    path = Path(path)
    if path.is_dir():
        return {**read_description(path), **read_checkpoint(weights_file(path))}
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; train one with train.py, or download an original one "
                        "(docs/deployment.md, 'Original checkpoints', says from where)")
    if path.suffix == ".safetensors":
        return {"model": read_safetensors(path)}
    if problem := _problem(path):
        raise UserError(f"checkpoint {path} is damaged: {problem}")
    try:
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")   # about content that is refused anyway, or harmless
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"checkpoint {path} is damaged, or holds more than tensors and plain data; it was not loaded "
                        f"and nothing in it was run: {_forbidden(error)}") from error
    except Exception as error:   # damaged bytes raise nearly any exception
        raise UserError(f"checkpoint {path} is damaged or not a PyTorch checkpoint ({_first_line(error)}); "
                        "fetch or train it again") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path} is not a checkpoint: it holds a {type(content).__name__}, not a dict")
    if any(tensor.is_nested for tensor in _tensors(content)):   # they have no shape
        raise UserError(f"checkpoint {path} holds nested tensors, which no network here has: it was not loaded")
    refuse_newer(content, FORMAT_VERSION, f"checkpoint {path}")
    return content


def read_safetensors(path: str | Path) -> State:
    """The tensors of a safetensors file by name, on the CPU. Raises `UserError` if the file is damaged."""
    if problem := _problem(Path(path)):
        raise UserError(f"checkpoint {path} is damaged: {problem}")
    try:
        return load_file(path)
    except Exception as error:   # its own error, KeyError for an unknown type, or OSError
        raise UserError(f"checkpoint {path} is damaged or not a safetensors file ({_first_line(error)}); fetch it "
                        "again") from error


def peek(path: str | Path, entry: str) -> Any:
    """One entry of a checkpoint of this project, read without its weights; None if it is absent or the file is damaged.

    The checksum is not verified, so nothing that matters may depend on the entry.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(entry)
    except Exception:   # damaged bytes raise nearly any exception
        return None


def _problem(path: Path) -> str:
    """The damage found in a file's bytes before any of them are interpreted; '' if there is none."""
    try:
        is_archive, size = zipfile.is_zipfile(path), path.stat().st_size   # before PyTorch 1.6, files were no archives
        digests = read_digests(path)
        if digests and sha256_of(path) not in digests:
            return (f"its SHA-256 is not the one in {digest_file(path)}; fetch or train it again (if you replaced the "
                    "file yourself, remove the .sha256 file)")
        if not is_archive:
            return ""
        with zipfile.ZipFile(path) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
            if inflated > size:   # PyTorch does not compress entries
                return f"its entries inflate to {inflated >> 20} MiB, more than the file has"
            wrong = "" if digests else archive.testzip()
            return f"the checksum of {wrong} in it is wrong; fetch it again" if wrong else ""
    except Exception as error:   # damaged archives raise nearly any exception, failing disks OSError
        return f"it cannot be read ({_first_line(error)}); fetch it again"


def _forbidden(error: Exception) -> str:
    """What a file holds that is not loaded, with the remedy, or else the first line of the error."""
    found = re.search(r"GLOBAL ([\w.]{1,100})", str(error))
    if not found:
        return _first_line(error)
    if found[1].partition(".")[0] == "numpy":
        return (f"a number or array of NumPy ({found[1]}); write float(x), or torch.from_numpy(x), in the program that "
                "saves it, or save the weights alone: torch.save({'model': checkpoint['model']}, FILE)")
    return f"it holds {found[1]}; ask its authors for the weights alone: torch.save({{'model': weights}}, FILE)"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def load_checkpoint(model: nn.Module, path: str | Path) -> Checkpoint:
    """Copies the weights of a checkpoint, this project's or an original program's, into `model`; returns the contents.

    Every entry must fit. Raises `UserError`, and leaves `model` unchanged, if an entry is missing, unexpected or of
    another shape, or if the file cannot be read or holds more than tensors and plain data.
    """
    checkpoint = read_checkpoint(path)
    load_weights(model, checkpoint, path)
    return checkpoint


def restore(path: str, args: Namespace | None) -> tuple[ReferringSegmenter, ModelConfig, Tokenizer]:
    """The network of a checkpoint with its weights, in evaluation mode on the CPU, its settings and its tokenizer.

    `args` are the flags (args.py). They describe an original checkpoint, which does not describe itself, and their
    `--ema` selects the average of the weights. Raises `UserError` if the path is empty, if the file cannot be read or
    does not fit, or if it lacks the average that `--ema` selects.
    """
    if not path:
        raise UserError("--resume FILE is needed: the checkpoint to use")
    checkpoint = read_checkpoint(path)
    if args and args.ema:
        use_average(checkpoint, path)
    config, tokenizer = model_settings(args, checkpoint)
    network = build_with_weights(config, checkpoint, path, merged=True)
    return network.eval(), replace(config, text_lora=0), tokenizer


def use_average(checkpoint: Checkpoint, path: str) -> None:
    """Replaces the weights of `checkpoint`, read from `path`, by their average. Raises `UserError` if it has none."""
    if "ema" not in checkpoint:
        raise UserError(f"--ema: checkpoint {path} holds no averaged weights: leave the flag out, or train with it")
    checkpoint["model"] = checkpoint["ema"]


class _HashingFile:
    """A writable file for torch.save that also computes the SHA-256 of its bytes."""

    def __init__(self, file: BinaryIO):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, content: Any) -> int:
        self.hash.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint atomically, and its SHA-256 beside it.

    The new file is written under another name, synced and read back before it replaces the old one, so that `path` is
    a complete checkpoint, old or new, at every moment. Raises `UserError` if there is no space or no permission; the
    old file then remains, and no incomplete one.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    needed_mib = sum(tensor.nbytes for tensor in _tensors(checkpoint)) >> 20
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        with open(temporary, "wb") as file:
            hashing = _HashingFile(file)
            torch.save(checkpoint, hashing)  # type: ignore[arg-type]   # it calls nothing but write and flush
            file.flush()
            os.fsync(file.fileno())
        digest = sha256_of(temporary)
        if digest != hashing.hash.hexdigest():
            raise OSError("what was read back is not what was written")
        # Until the rename, `path` is the old file, so both digests are valid.
        write_digests(path, [*read_digests(path), digest])
        os.replace(temporary, path)
        sync_folder(path.parent)
        write_digests(path, [digest])
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        free_mib = shutil.disk_usage(path.parent).free >> 20 if path.parent.is_dir() else 0
        raise UserError(f"checkpoint {path} cannot be written: {_first_line(error)}; it needs about {needed_mib} MiB, "
                        f"{free_mib} MiB are free. The file that was there, if any, is untouched") from error


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict | list | tuple):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _tensors(part)

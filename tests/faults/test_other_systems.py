"""What a student's macOS or Windows laptop runs: no module and no program needs what only Linux has.

Nobody has run the project there for these tests; a stand-in hides the names that these systems lack.
"""
import ast
import importlib
import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from data import TrainSet
from lib.training.run_lock import hold
from tests.conftest import NARROW_NANO, save_nano_checkpoint
from tests.faults.other_system import become_another_system
from tests.launch import PATIENCE_S, ROOT, nano_flags
from utils import UserError

FOLDERS = ("bert", "data", "distributed", "lib", "refer", "tools", "utils")
FILES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES]


def does(step: str, action: Callable[[], object], failures: dict[str, str]) -> None:
    """Does it; an error becomes an entry in `failures`."""
    try:
        action()
    except BaseException:
        failures[step] = traceback.format_exc()


def laptop(folder: Path, toy: Path, checkpoint: Path, answer) -> None:
    """Imports every module anew, trains, evaluates and predicts; sends which step failed and how."""
    os.chdir(folder)
    for name in [name for name in sys.modules if name.split(".")[0] in {module.split(".")[0] for module in MODULES}]:
        del sys.modules[name]
    failures: dict[str, str] = {}
    become_another_system()
    for module in MODULES:
        does(module, lambda name=module: importlib.import_module(name), failures)
    importlib.import_module("lib.segmentation").SWIN_VARIANTS["nano"] = NARROW_NANO
    data = ["--refer_data_root", str(toy), "--workers", "0"]
    picture = next((toy / "images").rglob("*.jpg"))
    programs = {"train": ("TRAINING", nano_flags(toy, "--epochs", 1, "--batch-size", 8, "--lr", 1e-4)),
                "test": ("EVALUATION", [*data, "--resume", str(checkpoint), "--results", "results.json", "--report",
                                        "report", "--save_predictions", "predictions"]),
                "demo_inference": ("", ["--resume", str(checkpoint), "--image", str(picture), "--sentence", "a ship",
                                        "--out", "found", "--json"])}
    for program, (groups, flags) in programs.items():
        def action(program=program, groups=groups, flags=flags):
            arguments, module = importlib.import_module("args"), importlib.import_module(program)
            parser = arguments.get_parser(*getattr(arguments, groups)) if groups else module.parser()
            module.run(parser.parse_args(flags))
        does(f"running {program}.py", action, failures)
    answer.send(failures)
    os._exit(0)


@pytest.mark.slow
def test_every_module_imports_and_the_programs_run_without_what_only_linux_has(tmp_path, toy, narrow_nano):
    """In a forked process, where PyTorch is loaded already."""
    checkpoint = save_nano_checkpoint(tmp_path / "nano.pth", toy)
    answers, answer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=laptop, args=(tmp_path, toy, checkpoint, answer))
    process.start()
    answer.close()
    assert answers.poll(PATIENCE_S), "it hangs"
    failures = answers.recv()
    process.join(10)
    assert not failures, "\n".join(f"--- {step}\n{said}" for step, said in failures.items())
    assert (tmp_path / "checkpoints").is_dir() and (tmp_path / "report").is_dir() and (tmp_path / "found").is_dir()


def test_windows_locks_a_run_with_its_own_function(tmp_path, monkeypatch):
    """A stand-in for Windows' module keeps the locked files, as Windows would."""
    locked: list[Path] = []

    def locking(descriptor: int, mode: int, size: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert (mode, size, os.lseek(descriptor, 0, os.SEEK_CUR)) == (2, 1, 0)
        if path in locked:
            raise PermissionError(13, "Permission denied")
        locked.append(path)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    hold(tmp_path, "first")
    hold(tmp_path, "second")
    with pytest.raises(UserError, match="another run of --model_id first is writing"):
        hold(tmp_path, "first")


def test_loaders_can_start_their_processes_anew(refer, tokenizer):
    """macOS and Windows do not fork loader workers, but send them the data set."""
    dataset = TrainSet(refer, "train", tokenizer, 32, seed=1)
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset)


def calls_without_encoding(path: Path) -> list[str]:
    """The places where a file reads or writes text in the system's encoding."""
    found = []
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or any(keyword.arg in ("encoding", "mode") for keyword in call.keywords):
            continue
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)
                 and isinstance(argument.value, str) and set(argument.value) <= set("rwabx+")]
        opens = (isinstance(call.func, ast.Name) and call.func.id == "open") or (
            method == "open" and modes and ast.unparse(call.func) != "rasterio.open")   # a scene is no text
        if method in ("read_text", "write_text") or (opens and not any("b" in mode for mode in modes)):
            found.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    return found


def test_text_files_are_read_and_written_in_utf_8():
    """Windows' default is another encoding, so every call names one."""
    assert not [place for path in FILES for place in calls_without_encoding(path)]

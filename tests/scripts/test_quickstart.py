"""The quickstart's commands, its environment, and that the shell script takes the same steps."""
import os
import runpy
import subprocess
from pathlib import Path

import pytest

from args import EVALUATION, TRAINING, get_parser
from tests.launch import ROOT

QUICKSTART = runpy.run_path(str(ROOT / "scripts/quickstart.py"))


@pytest.fixture
def environment(tmp_path) -> Path:
    """An environment whose python notes what it is asked to do, and does nothing."""
    python = tmp_path / "environment/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    python.chmod(0o755)
    return python.parent.parent


def asked(environment: Path, script: list[object], *flags: str) -> list[str]:
    """What the environment's python was asked to do by the script, which runs beside the environment."""
    done = subprocess.run([*map(str, script), *flags], cwd=environment.parent, capture_output=True, text=True,
                          env={**os.environ, "VENV": environment.name})
    assert done.returncode == 0, done.stderr
    notes = environment.parent / "asked"
    lines = notes.read_text().splitlines()
    notes.unlink()
    return lines


def test_every_command_has_flags_that_its_program_knows():
    commands = [[str(part) for part in command] for _, command in QUICKSTART["steps"](["--seed", "2", "--epochs", "1"])]
    assert [command[0] for command in commands] == ["tools/make_toy_rrsisd.py", "train.py", *["test.py"] * 4,
                                                    "tools/contact_sheet.py"]
    training = get_parser(*TRAINING).parse_args(commands[1][1:])
    assert (training.seed, training.epochs, training.batch_size, training.model_id) == (2, 1, 16, "quickstart")
    evaluations = [get_parser(*EVALUATION).parse_args(command[1:]) for command in commands[2:6]]
    assert [(flags.split, flags.shuffle_sentences) for flags in evaluations] == [
        ("val", False), ("val", True), ("test", False), ("test", True)]


def test_the_shell_script_takes_the_same_steps_with_its_arguments_in_the_environment_that_it_is_given(environment):
    by_python = asked(environment, ["python3", ROOT / "scripts/quickstart.py"], "--seed", "2")
    by_shell = asked(environment, ["bash", ROOT / "scripts/quickstart.sh"], "--seed", "2")
    assert by_python[0].startswith("-m pip install") and by_python[1:] == by_shell   # it is installed once
    assert by_shell[1].startswith("train.py ") and by_shell[1].endswith("--output-dir quickstart --seed 2")
    assert len(by_shell) == 7


def test_a_step_that_fails_ends_the_quickstart_with_its_status(environment):
    (environment / "bin/python").write_text("#!/bin/sh\nexit 7\n")
    done = subprocess.run(["python3", str(ROOT / "scripts/quickstart.py")], capture_output=True, text=True,
                          env={**os.environ, "VENV": str(environment)})
    assert done.returncode == 7 and "1/4" not in done.stdout

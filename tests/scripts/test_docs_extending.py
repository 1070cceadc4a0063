"""docs/extending.md carried out on a copy of the repository: its files written, its edits made, its commands run."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.toy import make_toy_rrsisd
from tests.conftest import save_nano_checkpoint
from tests.launch import ROOT

PAGE = (ROOT / "docs/extending.md").read_text()
PARTS = ("args.py", "train.py", "test.py", "transforms.py", "schema.py", "pyproject.toml",
         "tests/__init__.py", "tests/conftest.py", "tests/launch.py", "tests/nltk_stand_in.py",
         "tests/network/__init__.py", "bert", "data", "distributed", "lib", "refer", "tools", "utils")
RUN_COMMANDS = """
import json, shlex, sys
from pathlib import Path
from tests.launch import run_script
for command in json.load(sys.stdin):
    done = run_script(*shlex.split(command)[1:], cwd=Path.cwd())
    print(done.stdout)
    assert done.returncode == 0, command + done.stdout + done.stderr
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """The copy, with the page's files and edits."""
    folder = tmp_path_factory.mktemp("extended")
    for part in PARTS:
        (folder / part).parent.mkdir(exist_ok=True)
        if (ROOT / part).is_dir():   # refer/data may hold gigabytes
            shutil.copytree(ROOT / part, folder / part,
                            ignore=lambda path, _: ["data"] if path == str(ROOT / "refer") else [])
        else:
            shutil.copy(ROOT / part, folder / part)
    for text in blocks("python"):
        path = folder / text.split("\n", 1)[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for diff in blocks("diff"):
        subprocess.run(["git", "apply", "-"], cwd=folder, input=diff, text=True, check=True)
    make_toy_rrsisd(folder / "quickstart/data", images=10, size=64)
    return folder


def python(folder: Path, *words: str, given: str = "") -> str:
    """The output of `python WORDS…` in the copy, which must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, input=given, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_commands(folder: Path, block: str) -> str:
    """The output of the commands of a block of the page in the copy."""
    return python(folder, "-c", RUN_COMMANDS, given=json.dumps(block.replace("\\\n", " ").splitlines()))


def test_a_loss_an_encoder_and_a_fusion_module_are_one_row_each():
    added = [[line for line in diff.splitlines() if re.match(r"[+-](?![+-])", line)] for diff in blocks("diff")]
    assert [len(rows) for rows in added] == [1, 1, 1]
    assert ["boundary" in added[0][0], "micro" in added[1][0], "gated" in added[2][0]] == [True] * 3


@pytest.mark.slow
def test_the_examples_pass_the_tests_that_the_page_gives_them(extended):
    files = [text.split("\n", 1)[0].removeprefix("# ") for text in blocks("python") if text.startswith("# tests/")]
    assert len(files) == 3
    assert "5 passed" in python(extended, "-m", "pytest", *files, "-p", "no:cacheprovider")


@pytest.mark.slow
def test_the_fusion_module_starts_from_the_network_it_extends(extended):
    data, gates = extended / "quickstart/data", 2 * 4   # weight and bias in each stage
    save_nano_checkpoint(extended / "quickstart/model_best_quickstart.pth", data)
    said = run_commands(extended, blocks("bash")[0])
    assert f"{gates} entries start fresh: backbone.stages.0.fusion.gate_project.weight" in said
    saved = torch.load(extended / "checkpoints/model_best_gated.pth", weights_only=True)
    assert saved["config"]["fusion"] == "gated"
    assert saved["args"]["loss"] == "ce:0.9,dice:0.1,boundary:0.2:width_px=5"
    assert saved["model"]["backbone.stages.0.fusion.gate_project.weight"].any()   # it began as zeros

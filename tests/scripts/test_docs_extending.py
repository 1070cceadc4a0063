"""docs/extending.md carried out on a copy of the repository: its files written, its edits made, its commands run."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.toy import make_toy_rrsisd
from tests.launch import ROOT

PAGE = (ROOT / "docs/extending.md").read_text()
PARTS = ("args.py", "train.py", "test.py", "transforms.py", "distributed.py", "utils.py", "pyproject.toml",
         "tests/__init__.py", "tests/conftest.py", "tests/launch.py", "bert", "data", "lib", "refer", "tools")
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


def edit(folder: Path, diff: str) -> None:
    """Makes the changes of a diff without line numbers; what it would replace must be there once."""
    first, rest = diff.split("\n", 1)
    path = folder / first.removeprefix("--- ")
    text = path.read_text()
    for change in rest.split("@@\n"):
        lines = change.splitlines()
        before, after = ("\n".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
        assert text.count(before) == 1, f"docs/extending.md, {path.name}: not there once:\n{before}"
        text = text.replace(before, after)
    path.write_text(text)


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
    for diff in blocks("diff"):
        edit(folder, diff)
    for text in blocks("python"):
        (folder / text.split("\n", 1)[0].removeprefix("# ")).write_text(text)
    make_toy_rrsisd(folder / "quickstart/data", images=10, size=64)   # for its text encoder
    return folder


def python(folder: Path, *words: str, given: str = "") -> str:
    """What `python WORDS…` prints in the copy; it must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, input=given, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_fusion_module_passes_the_tests_that_the_page_gives_it(extended):
    said = python(extended, "-m", "pytest", "tests/test_gated_fusion.py", "-p", "no:cacheprovider")
    assert "4 passed" in said


def test_the_data_set_is_written_without_faults_and_trains(extended):
    for script in ("make_pictures.py", "write_refer.py"):
        python(extended, script)
    (commands,) = blocks("bash")
    lines = commands.replace("\\\n", " ").splitlines()
    said = python(extended, "-c", RUN_COMMANDS, given=json.dumps(lines))
    assert "\n0 faults" in said and "train: 4 refs, 8 sentences, 4 images" in said
    assert (extended / "roofs.png").is_file() and (extended / "models/roofs/log.jsonl").is_file()

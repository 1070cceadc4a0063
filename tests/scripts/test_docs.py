"""Every command and every Python block of README.md and docs/ works as written.

Commands run in a folder as the quickstart leaves it, with a small toy data set and a small checkpoint. A block under
`<!-- not run: REASON -->` needs a download, GPUs or hours, and is left out.
"""
import re
import shlex
from pathlib import Path

import pytest

from data.toy import make_toy_rrsisd
from tests.conftest import save_nano_checkpoint
from tests.launch import ROOT, run_script

pytestmark = pytest.mark.usefixtures("narrow_nano")

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?P<excuse><!-- not run: [^\n]+ -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
RUN_ELSEWHERE = {"docs/extending.md": "python"}   # tests/test_docs_extending.py


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks in that language that are to be run."""
    if RUN_ELSEWHERE.get(page.relative_to(ROOT).as_posix()) == language:
        return []
    return [found["text"] for found in BLOCK.finditer(page.read_text()) if found["language"] == language
            and not found["excuse"]]


def commands(page: Path) -> list[list[str]]:
    """The page's commands, each split into words."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_blocks_are_found_and_excuses_heeded(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```bash\npython a.py \\\n  --x 'y z'\n# why\n```\n<!-- not run: why -->\n```bash\nb\n```\n"
                    "```python\nc\n```\n")
    monkeypatch.setattr("tests.scripts.test_docs.ROOT", tmp_path)
    assert commands(page) == [["python", "a.py", "--x", "y z"]] and blocks(page, "python") == ["c\n"]


@pytest.fixture(scope="module")
def left_by_the_quickstart(tmp_path_factory) -> Path:
    """A folder with quickstart/data and quickstart/model_best_quickstart.pth; pages share what they write."""
    folder = tmp_path_factory.mktemp("docs")
    data = folder / "quickstart/data"
    make_toy_rrsisd(data, images=20, size=64, seed=3)
    save_nano_checkpoint(folder / "quickstart/model_best_quickstart.pth", data)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page, left_by_the_quickstart, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")   # for the processes that tools/benchmark.py starts
    for python, script, *flags in commands(page):
        assert python == "python", f"{page.name}: mark the block of `{python} {script}` as not run, or use python"
        done = run_script(script, *flags, cwd=left_by_the_quickstart)
        assert done.returncode == 0, f"{page.name}: python {shlex.join([script, *flags])}\n{done.stdout}{done.stderr}"


@pytest.mark.slow   # blocks may read what the page's commands wrote
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, left_by_the_quickstart, monkeypatch):
    monkeypatch.chdir(left_by_the_quickstart)
    for text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_commands_in_marked_blocks_only_and_its_links_lead_somewhere(page):
    text = page.read_text()
    for found in BLOCK.finditer(text):
        assert found["language"], f"{page.name}: a block without a language is neither run nor excused: {found[0][:60]}"
    for target in re.findall(r'(?:\]\(|src(?:set)?=")(?!https?://)([^)#"]+)', text):
        assert (page.parent / target).exists(), target

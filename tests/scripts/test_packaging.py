"""`pip install .` installs the packages that the scripts need and no module; what CITATION.cff names."""
import re
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement

from tests.launch import ROOT


def test_the_package_is_its_requirements_and_no_module(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    for name in ("pyproject.toml", "requirements.txt", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("lib", "data", "bert"):   # several packages side by side, which setuptools refuses to guess about
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "utils.py").touch()
    program = "from setuptools.build_meta import prepare_metadata_for_build_wheel as prepare; prepare('.')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("*.dist-info")
    lines = (folder / "METADATA").read_text().splitlines()
    needed = {Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist: ")}
    assert needed == {Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines()
                      if line and not line.startswith("#")}
    assert (folder / "top_level.txt").read_text().strip() == ""


def test_the_citation_file_names_the_version_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()   # what the format requires
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()
    entries = (ROOT / "README.md").read_text().replace("{", "").replace("}", "").split("@")   # BibTeX
    for reference in citation["references"]:
        (entry,) = (entry for entry in entries if f"= {reference['title']}," in entry)
        assert re.search(rf"year *= {reference['year']}\b", entry)

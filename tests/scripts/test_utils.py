"""Functions that all scripts share: durations in words, lines about long work, names of files."""
import os

import pytest

import utils
from lib.training.state import Progress
from utils import duration
from utils.files import remove_abandoned, temporary_beside


@pytest.mark.parametrize(("seconds", "said"), [
    (0.2, "0 s"), (40, "40 s"), (59.6, "1 min"), (380, "6 min 20 s"), (3 * 3600 + 301, "3 h 5 min"), (7200, "2 h"),
    (2 * 86400 + 4 * 3600 + 5, "2 d 4 h"), (86400 + 59 * 60, "1 d")])
def test_a_duration_has_its_two_largest_units(seconds, said):
    assert duration(seconds) == said


def test_the_time_left_is_that_of_all_epochs_at_the_speed_of_this_one():
    assert Progress(epoch=1, step=10, seconds=5.0).seconds_left(batches=100, epochs=3) == 190 * 0.5
    assert Progress(epoch=2, step=100, seconds=50.0).seconds_left(batches=100, epochs=3) == 0


def test_long_work_without_a_terminal_prints_a_line_every_half_minute(monkeypatch, capsys):
    clock = iter([0, 1, 29, 31, 32, 62, 63])   # seconds, at the begin and at each of six batches
    monkeypatch.setattr("utils.logs.time.monotonic", lambda: next(clock))
    assert list(utils.progress(list("abcdef"), "tiles", lines=True)) == list("abcdef")
    assert capsys.readouterr().out.splitlines() == ["tiles: 2 of 6, about 1 min 2 s left",
                                                    "tiles: 4 of 6, about 31 s left"]


def test_an_earlier_runs_file_is_renamed_to_a_free_name(tmp_path):
    path, kept = tmp_path / "model.pth", []
    for content in "abc":
        path.write_text(content)
        os.utime(path, (1, 1))
        kept.append(utils.set_aside(path))
    assert [file.read_text() for file in kept] == list("abc") and not path.exists()


def test_files_that_killed_processes_left_are_removed_and_no_others(tmp_path):
    path = tmp_path / "model.pth"
    abandoned, growing, of_another = (temporary_beside(file) for file in (path, path, tmp_path / "mode.pth"))
    for file in (abandoned, growing, of_another, tmp_path / "model.pth.tmp", tmp_path / ".model.mine.tmp.pth"):
        file.write_text("x")
        os.utime(file, (1, 1))
    growing.write_text("more")
    remove_abandoned(path)
    assert not abandoned.exists() and len(list(tmp_path.iterdir())) == 4

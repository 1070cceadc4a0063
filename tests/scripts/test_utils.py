"""Functions that all scripts share: durations in words."""
import pytest

from lib.training.state import Progress
from utils import duration


@pytest.mark.parametrize(("seconds", "said"), [
    (0.2, "0 s"), (40, "40 s"), (59.6, "1 min"), (380, "6 min 20 s"), (3 * 3600 + 301, "3 h 5 min"), (7200, "2 h"),
    (2 * 86400 + 4 * 3600 + 5, "2 d 4 h"), (86400 + 59 * 60, "1 d")])
def test_a_duration_has_its_two_largest_units(seconds, said):
    assert duration(seconds) == said


def test_the_time_left_is_that_of_all_epochs_at_the_speed_of_this_one():
    assert Progress(epoch=1, step=10, seconds=5.0).seconds_left(batches=100, epochs=3) == 190 * 0.5
    assert Progress(epoch=2, step=100, seconds=50.0).seconds_left(batches=100, epochs=3) == 0

"""The schedule of the learning rate, by hand."""
import pytest

from lib.training.optimizer import learning_rate_factor


def test_the_rate_falls_as_a_power_of_what_is_left():
    factors = [learning_rate_factor(iteration, total=10, warmup=0) for iteration in (0, 5, 9, 10, 11)]
    assert factors == pytest.approx([1, 0.5 ** 0.9, 0.1 ** 0.9, 0, 0])


def test_a_warm_up_begins_at_a_share_and_ends_at_the_whole_rate():
    """Of four iterations, the first has a quarter and the fourth all of what the schedule gives."""
    factors = [learning_rate_factor(iteration, total=100, warmup=4) for iteration in range(6)]
    plain = [(1 - iteration / 100) ** 0.9 for iteration in range(6)]
    rise = (0.25, 0.5, 0.75, 1, 1, 1)
    assert factors == pytest.approx([share * rate for share, rate in zip(rise, plain, strict=True)])

"""The schedule of the learning rate, by hand."""
import pytest

from args import get_parser
from lib.training.optimizer import learning_rate_factor, warm_up_of


def test_the_rate_falls_as_a_power_of_what_is_left():
    factors = [learning_rate_factor(iteration, total=10, warmup=0) for iteration in (0, 5, 9, 10, 11)]
    assert factors == pytest.approx([1, 0.5 ** 0.9, 0.1 ** 0.9, 0, 0])


def test_a_warm_up_begins_at_a_share_and_ends_at_the_whole_rate():
    """Of four iterations, the first has a quarter and the fourth all of what the schedule gives."""
    factors = [learning_rate_factor(iteration, total=100, warmup=4) for iteration in range(6)]
    plain = [(1 - iteration / 100) ** 0.9 for iteration in range(6)]
    rise = (0.25, 0.5, 0.75, 1, 1, 1)
    assert factors == pytest.approx([share * rate for share, rate in zip(rise, plain, strict=True)])


@pytest.mark.parametrize(("flags", "iterations", "warm_up", "said"), [
    ("", 5000, 100, ""), ("", 1000, 100, ""), ("", 90, 9, "warm-up of 9 instead of 100 iterations, a tenth"),
    ("--warmup_iters 50", 90, 50, ""), ("--warmup_iters 500", 90, 500, "the whole run has 90 iterations, so lr never")])
def test_a_recipes_warm_up_is_at_most_a_tenth_of_the_run(capsys, flags, iterations, warm_up, said):
    args = get_parser().parse_args(["--swin_type", "nano", *flags.split()])
    assert warm_up_of(args, iterations) == warm_up
    printed = capsys.readouterr().out
    assert said in printed and bool(said) == bool(printed)

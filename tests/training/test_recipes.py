"""What follows from the number of training samples, and the advice after a training without success."""
import pytest

from args import get_parser
from lib.training.advice import advice_on
from lib.training.recipes import fit_to_samples


@pytest.mark.parametrize(("samples", "passes", "epochs"), [
    (1, 250, 10), (8, 31, 10), (80, 3, 14), (800, 1, 15), (5_760, 1, 2), (12_181, 1, 1), (100_000, 1, 1)])
def test_a_nano_network_sees_2500_to_12000_samples(samples, passes, epochs):
    args = get_parser().parse_args(["--swin_type", "nano"])
    fit_to_samples(args, samples)
    assert (args.passes, args.epochs) == (passes, epochs)


def test_flags_and_the_faithful_recipes_stay():
    args = get_parser().parse_args(["--swin_type", "nano", "--epochs", "3", "--passes", "2"])
    fit_to_samples(args, 8)
    assert (args.passes, args.epochs) == (2, 3)
    args = get_parser().parse_args(["--swin_type", "nano", "--epochs", "3"])
    fit_to_samples(args, 8)
    assert (args.passes, args.epochs) == (1, 3)
    args = get_parser().parse_args([])
    fit_to_samples(args, 8)
    assert (args.passes, args.epochs) == (1, 40)


def test_advice_follows_only_if_no_epoch_was_good():
    assert advice_on([3.0, 9.9]).startswith("val mIoU stayed below 10: look at the data with tools/check_dataset.py")
    assert advice_on([3.0, 10.0, 2.0]) == advice_on([]) == ""

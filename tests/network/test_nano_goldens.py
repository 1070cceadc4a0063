"""Each method computes at nano sizes what it computed when it last passed the originals' goldens (`parity/nano.py`)."""
import numpy as np
import pytest

from tests.network.parity import nano

GOLDEN = np.load(nano.FILE)


@pytest.mark.parametrize("method", nano.METHODS)
def test_evaluation_and_training_are_the_golden_ones(method):
    for name, values in nano.computed(method).items():
        np.testing.assert_allclose(values, GOLDEN[f"{method}/{name}"], rtol=1e-7, atol=1e-10, err_msg=name)


def test_the_goldens_tell_the_methods_apart():
    for first, second in zip(nano.METHODS, nano.METHODS[1:], strict=False):
        assert not np.allclose(GOLDEN[f"{first}/logits"], GOLDEN[f"{second}/logits"], rtol=1e-2)

"""Folded BatchNorms change the numbers by rounding only."""
import pytest
import torch
from torch import nn

from lib.fuse import fuse
from tests.conftest import make_inputs


@pytest.mark.parametrize("model", ["rmsin", "lavt"])
def test_a_fused_network_gives_the_same_logits(nano, model):
    network = nano(model).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):   # statistics of a trained network: not 0 and 1
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    image, token_ids, token_mask = make_inputs(3, 64)
    before = network(image.double(), token_ids, token_mask)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    after = fuse(network)(image.double(), token_ids, token_mask)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) <= norms - 6
    torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-12)


def test_training_is_refused(nano):
    with pytest.raises(ValueError, match="still learns"):
        fuse(nano().train())

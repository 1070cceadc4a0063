"""Folded BatchNorms change the numbers by rounding only, and weights kept in bfloat16 as autocast does."""
import pytest
import torch
from torch import nn

from lib.accelerate import accelerate, prepare_for_inference
from lib.accelerate.onednn import has_bfloat16, pack_products
from lib.language_fusion import Gate
from lib.swin import Mlp
from tests.conftest import make_inputs


@pytest.mark.parametrize("model", ["rmsin", "lavt"])
@pytest.mark.parametrize("accelerated", [False, True])
def test_a_fused_network_gives_the_same_logits(nano, model, accelerated):
    network = nano(model).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):   # statistics of a trained network: not 0 and 1
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_()
            module.running_var.uniform_(0.5, 2)
    image, token_ids, token_mask = make_inputs(3, 64)
    before = network(image.double(), token_ids, token_mask)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    if accelerated:
        accelerate(network, torch.device("cpu"))
    after = prepare_for_inference(network, fold_batchnorm=True)(image.double(), token_ids, token_mask)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) <= norms - 6
    torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-12)


def test_training_is_refused(nano):
    with pytest.raises(ValueError, match="still learns"):
        prepare_for_inference(nano().train())


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU or PyTorch has no packed bfloat16 products")
@pytest.mark.parametrize("model", ["rmsin", "lavt"])
@torch.inference_mode()
def test_weights_kept_in_bfloat16_err_no_more_than_autocast(nano, model):
    network = nano(model, fusion_heads=(1, 2, 2, 4))
    image, token_ids, token_mask = make_inputs(3, 64)
    exact = network(image, token_ids, token_mask)
    with torch.autocast("cpu", torch.bfloat16):
        converted = network(image, token_ids, token_mask)
        kept = prepare_for_inference(accelerate(network, torch.device("cpu")), "bf16")(image, token_ids, token_mask)
    assert kept.dtype == torch.bfloat16
    assert (kept - exact).norm() < 1.2 * (converted - exact).norm() < 0.1 * exact.norm()


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU or PyTorch has no packed bfloat16 products")
def test_packed_layers_compute_their_activation_too():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    for layers in (Gate(16), Mlp(16), nn.Sequential(nn.Linear(16, 3)), nn.Sequential(nn.Linear(16, 4), nn.Sigmoid())):
        expected = layers(x).detach()
        pack_products(layers)
        assert not any(isinstance(layer, nn.Linear | nn.ReLU | nn.GELU | nn.Tanh) for layer in layers)
        with torch.no_grad():
            torch.testing.assert_close(layers(x).float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU or PyTorch has no packed bfloat16 products")
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_1_x_1_convolution_is_that_convolution(bias):
    torch.manual_seed(0)
    layers, x = nn.Sequential(nn.Conv2d(8, 3, 1, bias=bias)), torch.randn(2, 8, 4, 5)
    expected = layers(x).detach()
    pack_products(layers)
    assert not isinstance(layers[0], nn.Conv2d)
    with torch.no_grad():
        torch.testing.assert_close(layers(x).float(), expected, rtol=2e-2, atol=2e-2)


def test_without_an_amp_weights_stay(nano):
    network = nano()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for name, value in prepare_for_inference(network, "off").state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == before[name].dtype

"""Folded BatchNorms and packed products change numbers by rounding, and weights kept in bfloat16 as autocast does."""
import pytest
import torch
from torch import nn

from lib.accelerate import accelerate, prepare_for_inference
from lib.accelerate.onednn import PackedLinear, has_bfloat16, has_products, pack_products
from lib.pwam import Gate
from lib.swin import Mlp
from tests.conftest import inputs_for, make_inputs


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


PRECISIONS = [pytest.param(dtype, marks=pytest.mark.skipif(not has_products(dtype), reason="no such products here"))
              for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_packed_layers_compute_their_activation_too(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for layers in (Gate(16), Mlp(16), nn.Sequential(nn.Linear(16, 3)), nn.Sequential(nn.Linear(16, 4), nn.Sigmoid())):
        expected = layers(x).detach()
        pack_products(accelerate(layers, torch.device("cpu")), dtype)
        assert not any(isinstance(layer, nn.Linear | nn.ReLU | nn.GELU | nn.Tanh) for layer in layers)
        with torch.no_grad():
            torch.testing.assert_close(layers(x).float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_1_x_1_convolution_is_that_convolution(bias, dtype):
    torch.manual_seed(0)
    layers, x = nn.Sequential(nn.Conv2d(8, 3, 1, bias=bias)), torch.randn(2, 8, 4, 5)
    expected = layers(x).detach()
    pack_products(layers, dtype)
    assert not isinstance(layers[0], nn.Conv2d)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    with torch.no_grad():
        torch.testing.assert_close(layers(x).float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", ["rmsin", "lavt", "lgce", "fianet"])
@torch.inference_mode()
def test_a_network_packed_in_float32_gives_the_same_logits(nano, model):
    network = nano(model, fusion_heads=(1, 2, 2, 4))
    inputs = inputs_for(network, 3, 64)
    expected = network(*inputs)
    prepare_for_inference(accelerate(network, torch.device("cpu")), fold_batchnorm=True)
    assert any(isinstance(module, PackedLinear) for module in network.modules()) == has_products(torch.float32)
    prepared = network(*inputs)
    torch.testing.assert_close(prepared, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_without_an_amp_and_folding_weights_stay(nano):
    network = nano()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for name, value in prepare_for_inference(network, "off").state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == before[name].dtype

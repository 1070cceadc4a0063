"""Weights rounded together give the bits that autocast gives, in the forward pass and in every gradient."""
import pytest
import torch
from torch import nn

from lib.accelerate import WeightCasts, accelerate, autocast, weight_casts
from lib.accelerate.swap import FASTER
from lib.accelerate.weight_casts import CastConv2d, CastLinear
from lib.swin import WindowAttention
from lib.training.optimizer import freeze_text
from tests.conftest import inputs_for

pytestmark = pytest.mark.usefixtures("narrow_nano")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("model", ["lavt", "lgce"])
@pytest.mark.parametrize("group", [2 ** 24, 2 ** 12], ids=["one group", "many groups"])
def test_a_step_has_the_same_bits(nano, model, group, monkeypatch):
    """As on a GPU, but with the CPU's autocast. BERT's second layer is frozen."""
    monkeypatch.setattr(weight_casts, "GROUP", group)
    monkeypatch.delitem(FASTER["cuda"], WindowAttention)   # which rounds the gradient of its bias elsewhere
    results = []
    for together in (False, True):
        network = nano(model).train()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        freeze_text(network, 1, False)
        if together:
            accelerate(network, CUDA)
        casts = WeightCasts(network)
        assert len(casts.groups) == (0 if not together else 1) or group < 2 ** 24
        with autocast(CPU, "bf16"), casts.lent():
            lent = [m for m in network.modules() if isinstance(m, CastLinear | CastConv2d) and m.lent]
            assert bool(lent) == together and all(tensor.dtype == torch.bfloat16 for m in lent for tensor in m.lent)
            torch.manual_seed(1)
            logits = network(*inputs_for(network, 2, 64))
        assert not any(getattr(module, "lent", None) for module in network.modules())
        logits.float().square().mean().backward()
        results.append({"logits": logits, **{name: p.grad for name, p in network.named_parameters()}})
    for name, expected in results[0].items():
        found = results[1][name]
        assert (found is None) == (expected is None), name
        assert expected is None or (found.dtype == expected.dtype and torch.equal(found, expected)), name


def test_nothing_is_lent_without_autocast_or_gradients(nano):
    network = accelerate(nano("lavt"), CUDA)
    casts = WeightCasts(network)
    with casts.lent():
        assert not any(getattr(module, "lent", None) for module in network.modules())
    with torch.no_grad(), autocast(CPU, "bf16"), casts.lent():
        assert not any(getattr(module, "lent", None) for module in network.modules())


def test_a_compiled_network_keeps_autocasts_casts_and_is_one_graph():
    torch._dynamo.reset()
    model = accelerate(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3)), CUDA)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    casts = WeightCasts(compiled)
    assert casts.groups == [] and len(WeightCasts(model).groups) == 1
    with autocast(CPU, "bf16"), casts.lent():
        assert compiled(torch.ones(2, 1, 3, 3)).dtype == torch.bfloat16

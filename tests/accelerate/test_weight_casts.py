"""Weights rounded together give the bits that autocast gives, in the forward pass and in every gradient."""
import pytest
import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertSelfAttention

from bert import TextEncoder
from lib.accelerate import WeightCasts, accelerate, autocast, weight_casts
from lib.accelerate.swap import FASTER
from lib.accelerate.weight_casts import Borrower, lend
from lib.training.optimizer import freeze_text
from tests.conftest import TEXT, inputs_for

pytestmark = pytest.mark.usefixtures("narrow_nano")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("model", ["lavt", "lgce"])
@pytest.mark.parametrize(("group", "rows"), [(2 ** 24, "of layers"), (2 ** 12, "of layers"), (2 ** 12, "all")],
                         ids=["one group", "many groups", "with the other rows of GPUs"])
def test_a_step_has_the_same_bits(nano, model, group, rows, monkeypatch):
    """As on a GPU, but with the CPU's autocast. BERT's second layer is frozen.

    The rows that compute elsewhere than autocast have the same bits with and without rounded weights.
    """
    monkeypatch.setattr(weight_casts, "GROUP", group)
    monkeypatch.setitem(FASTER, "cuda", {plain: fast for plain, fast in FASTER["cuda"].items() if plain in (
        nn.Linear, nn.Conv2d) or (rows == "all" and plain is not BertSelfAttention)})   # which sums in another order
    results = []
    for together in (False, True):
        network = nano(model).train()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        freeze_text(network, 1, False)
        if together or rows == "all":
            accelerate(network, CUDA)
        casts = WeightCasts(network if together else nn.Identity())
        assert len(casts.groups) == (0 if not together else 1) or group < 2 ** 24
        with autocast(CPU, "bf16"), casts.lent():
            lent = [m for m in network.modules() if isinstance(m, Borrower) and m.lent]
            assert bool(lent) == together and all(tensor.dtype == torch.bfloat16 for m in lent for tensor in m.lent)
            assert len({type(m) for m in lent}) == together * (2 if rows == "of layers" else 3)
            torch.manual_seed(1)
            logits = network(*inputs_for(network, 2, 64))
        assert not any(getattr(module, "lent", None) for module in network.modules())
        logits.float().square().mean().backward()
        results.append({"logits": logits, **{name: p.grad for name, p in network.named_parameters()}})
    for name, expected in results[0].items():
        found = results[1][name]
        assert (found is None) == (expected is None), name
        assert expected is None or (found.dtype == expected.dtype and torch.equal(found, expected)), name


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_that_are_lent_as_one_give_the_same_values_and_gradients(frozen):
    torch.manual_seed(0)
    attention = TextEncoder(BertConfig(**TEXT)).bert.encoder.layer[0].attention.self.double().eval()
    attention.requires_grad_(not frozen)
    x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    mask = (torch.arange(5) < torch.tensor([[3], [5], [1]]))[:, None, None]
    results = []
    for lent in (False, True):
        if lent:
            lend([accelerate(attention, CUDA)], torch.float64)
            assert [tuple(tensor.shape) for tensor in attention.lent] == [(48, 16), (48,)]
        y = attention(x, mask)[0]
        wanted = [x, *(parameter for parameter in attention.parameters() if not frozen)]
        results.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    for plain, joined in zip(*results, strict=True):
        torch.testing.assert_close(joined, plain, rtol=1e-9, atol=1e-15)


def test_a_changed_layer_of_the_attention_runs_as_it_is_written(nano):
    class Louder(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    network = nano("lavt")
    changed = network.text_encoder.bert.encoder.layer[0].attention.self
    changed.key = Louder(16, 16)
    accelerate(network, CUDA)
    with autocast(CPU, "bf16"), WeightCasts(network).lent():
        assert changed.lent is None and changed.query.lent and not hasattr(changed.key, "lent")
        assert network.text_encoder.bert.encoder.layer[1].attention.self.lent


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

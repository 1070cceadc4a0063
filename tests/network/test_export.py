"""The network is one graph, without breaks for torch.compile, and torch.export can trace it whole."""
import pytest
import torch

from tests.conftest import inputs_for

pytestmark = pytest.mark.usefixtures("narrow_nano")

MODELS = ["rmsin", "lavt_one", "lgce", "fianet"]


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("model", MODELS)
def test_the_forward_pass_is_one_graph(nano, model, training):
    torch._dynamo.reset()
    network = nano(model, num_tmem=1).train(training)
    explained = torch._dynamo.explain(network)(*inputs_for(network, 2, 64))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


@pytest.mark.slow
@pytest.mark.parametrize(("model", "swin_type"), [("rmsin", "tiny"), ("lavt_one", "tiny"), ("lgce", "nano"),
                                                   ("fianet", "nano")])
@torch.no_grad()
def test_an_exported_network_computes_the_same_on_other_inputs(nano, model, swin_type):
    network = nano(model, swin_type=swin_type, num_tmem=1)
    traced_on = inputs_for(network, 2, 64)
    other = tuple(x.flip(0) for x in traced_on)
    expected = network(*other)
    exported = torch.export.export(network, traced_on, strict=False)
    torch.testing.assert_close(exported.module()(*other), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(network(*other), expected)   # the export leaves nothing behind

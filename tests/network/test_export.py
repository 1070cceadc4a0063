"""The network is one graph, without breaks for torch.compile, and torch.export can trace it whole."""
import pytest
import torch
from torch.export.passes import move_to_device_pass

from bert import make_text_encoder, text_config
from tests.conftest import TEXT, inputs_for, make_inputs
from tests.timm_models import SWIN_V2
from tools.fake_gpu import GPU, fake_gpu, needs_driver

pytestmark = pytest.mark.usefixtures("narrow_nano")

MODELS = ["rmsin", "lavt_one", "lgce", "fianet"]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "training"), [(MODELS[0], False), *((model, True) for model in MODELS)])
def test_the_forward_pass_is_one_graph(nano, model, training):
    """Only BatchNorm differs between evaluation and training."""
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


@pytest.mark.slow
def test_so_is_a_backbone_of_timms(nano):
    torch._dynamo.reset()
    backbone = nano("lavt_one", backbone=f"timm:{SWIN_V2}").backbone.train()
    image, _, token_mask = make_inputs(2, 64)
    inputs = image, torch.randn(2, 20, 16), token_mask
    explained = torch._dynamo.explain(backbone)(*inputs)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons
    other = tuple(x.flip(0) for x in inputs)
    with torch.no_grad():
        exported = torch.export.export(backbone.eval(), inputs, strict=False)
        torch.testing.assert_close(exported.module()(*other), backbone(*other), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(needs_driver(), reason="this PyTorch has fake GPUs only beside a driver")
def test_an_exported_program_moves_to_a_gpu_with_its_constants(nano):
    """As docs/deployment.md says, since the device of the masks is a part of the graph."""
    network = nano("lavt_one")
    program = torch.export.export(network.requires_grad_(False), inputs_for(network, 2, 64), strict=False)
    with fake_gpu(), torch.no_grad():
        inputs = [x.to(GPU) for x in inputs_for(network, 2, 64)]
        with pytest.raises((RuntimeError, AssertionError)):
            program.module().to(GPU)(*inputs)
        assert move_to_device_pass(program, "cuda:0").module()(*inputs).device == GPU


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip_text_model", "mpnet", "modernbert"])
@torch.no_grad()
def test_an_encoder_of_another_family_is_one_graph_that_onnx_runtime_takes(kind):
    """ONNX Runtime has no `where` of true and false, with which a mask is easily written."""
    encoder = make_text_encoder(text_config({"model_type": kind, **TEXT, "pad_token_id": 1}, "the test")).eval()
    _, ids, mask = make_inputs(2, 32)
    program = torch.export.export(encoder, (ids, mask), strict=False)
    torch.testing.assert_close(program.module()(ids.flip(0), mask.flip(0)), encoder(ids.flip(0), mask.flip(0)))
    assert not [node for node in program.graph.nodes if node.target is torch.ops.aten.where.self
                and node.meta["val"].dtype == torch.bool]

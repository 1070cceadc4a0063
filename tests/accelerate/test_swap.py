"""`accelerate` swaps classes by exact type, and nothing that a user sees changes: values, gradients, entries."""
import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig

from bert import TextEncoder
from lib.accelerate import accelerate, onednn
from lib.accelerate.gpu_swin import GpuSwinBlock
from lib.accelerate.onednn import Product, has_products
from lib.accelerate.swap import FASTER
from lib.arc import AdaptiveRotatedConv
from lib.cim import CrossScaleAttention, ScaleFusion
from lib.decoder import Level
from lib.pwam import PixelWordAttention, WordAttention
from lib.swin import PatchMerging, SwinBlock, WindowAttention
from lib.windows import padded_size, shift_mask
from tests.conftest import TEXT, inputs_for, make_inputs

CPU = torch.device("cpu")


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def window_attention(shifted: bool, height: int = 7, width: int = 9) -> tuple:
    """Two samples of a map that must be padded to whole windows of 4."""
    attention = WindowAttention(8, 2, 4, shifted)
    nn.init.normal_(attention.qkv.bias)
    return attention, (maps(2, height, width, 8), shift_mask(*padded_size(height, width, 4), 4, like=maps(1)))


def swin_block(drop_path: float) -> tuple:
    """Six samples of a map that must be padded to whole windows of 4."""
    torch.manual_seed(0)
    return SwinBlock(8, 2, 4, True, drop_path), (maps(6, 7, 9, 8), shift_mask(*padded_size(7, 9, 4), 4, like=maps(1)))


def rotated_conv(side: int) -> tuple:
    """Angles of both signs; maps of side 28 are transformed by Winograd's algorithm, of side 20 not."""
    conv = AdaptiveRotatedConv(6, 5, kernels=2)
    nn.init.normal_(conv.router.angle.weight, std=30)
    return conv, (maps(4, 6, side, side),)


def words(without: int = 0) -> tuple:
    """Arguments of word attention for two samples, of which so many have no words."""
    mask = (torch.arange(5) < torch.tensor([[3], [5]])).long()
    mask[2 - without:] = 0
    return maps(2, 30, 8), maps(2, 5, 12), mask


def sentences() -> tuple:
    """Token ids and masks of three samples, of which the last has no words."""
    mask = (torch.arange(5) < torch.tensor([[3], [5], [0]])).long()
    return torch.arange(15).view(3, 5), mask


CASES = {   # of every class in the table: a module, and the arguments of its forward pass
    "linear": lambda: (nn.Linear(8, 5), (maps(2, 3, 8),)),
    "convolution": lambda: (nn.Conv2d(4, 6, 3), (maps(2, 4, 5, 6),)),
    "LayerNorm": lambda: (nn.LayerNorm(8), (maps(2, 3, 8),)),
    "LayerNorm without parameters": lambda: (nn.LayerNorm(8, elementwise_affine=False), (maps(2, 3, 8),)),
    "patch merging": lambda: (PatchMerging(4), (maps(2, 6, 4, 4),)),
    "patch merging of an odd map": lambda: (PatchMerging(4), (maps(2, 5, 7, 4),)),
    "windows": lambda: window_attention(shifted=False),
    "shifted windows": lambda: window_attention(shifted=True),
    "shifted windows without padding": lambda: window_attention(True, 8, 8),
    "a map smaller than the shift": lambda: window_attention(True, 1, 1),
    "Swin block": lambda: swin_block(drop_path=0.0),
    "PWAM": lambda: (PixelWordAttention(8, 12), words()),
    "PWAM with heads": lambda: (PixelWordAttention(8, 12, heads=4), words()),
    "word attention": lambda: (WordAttention(8, 12), words()),
    "word attention without words": lambda: (WordAttention(8, 12), words(without=1)),
    "ARC": lambda: rotated_conv(28),
    "ARC on a small map": lambda: rotated_conv(20),
    "decoder level": lambda: (Level(4, 6, 8, lambda i, o: nn.Conv2d(i, o, 3, padding=1, bias=False)),
                              (maps(2, 4, 3, 5), maps(2, 6, 6, 9))),
    "decoder level with ARC": lambda: (Level(4, 6, 8, AdaptiveRotatedConv), (maps(2, 4, 3, 5), maps(2, 6, 6, 9))),
    "cross-scale attention": lambda: (CrossScaleAttention(16, 4), (maps(3, 16, 4, 4),)),
    "scale fusion": lambda: (ScaleFusion(4), (maps(2, 4, 6, 8), maps(2, 4, 3, 4))),
    "text encoder": lambda: (TextEncoder(BertConfig(**TEXT)), sentences()),
    "BERT's attention": lambda: (TextEncoder(BertConfig(**TEXT)).bert.encoder.layer[0].attention.self,
                                 (maps(3, 5, 16), torch.ones(3, 1, 1, 5).bool())),
}


CUDA = torch.device("cuda")
# The rows of GPUs compute on CPUs, too.
PAIRS = [(case, device) for device in (CPU, CUDA) for case in CASES if type(CASES[case]()[0]) in FASTER[device.type]]


def output(module: nn.Module, arguments: list | tuple) -> torch.Tensor:
    """What a module computes; BERT's attention returns it as the first of two."""
    y = module(*arguments)
    return y[0] if isinstance(y, tuple) else y


@pytest.mark.parametrize(("case", "device"), PAIRS)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_faster_module_gives_the_same_values_and_gradients(case, device, training):
    torch.manual_seed(0)
    module, arguments = CASES[case]()
    module, plain = module.double().train(training), type(module)
    for dropout in (part for part in module.modules() if isinstance(part, nn.Dropout)):
        dropout.p = 0.0
    keys, buffers = list(module.state_dict()), {name: b.clone() for name, b in module.named_buffers()}
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in arguments]
    results = []
    for faster in (False, True):
        if faster:
            module.load_state_dict(buffers, strict=False)   # running statistics as before
            assert type(accelerate(module, device)) is FASTER[device.type][plain]
        y = output(module, inputs)
        weighting = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        wanted = [*(x for x in inputs if x.requires_grad), *module.parameters()]
        results.append((y, torch.autograd.grad((y * weighting).sum(), wanted, allow_unused=True)))
    assert list(module.state_dict()) == keys
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-11)
    for expected, found in zip(results[0][1], results[1][1], strict=True):
        if expected is not None:
            torch.testing.assert_close(torch.zeros_like(expected) if found is None else found, expected,
                                       rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("case", "device"), PAIRS)
@torch.inference_mode()
def test_a_faster_module_rounds_little_in_bfloat16(case, device):
    """Winograd's transform costs most of it: 1.6 % where a plain convolution errs by 0.5 %.

    A row of GPUs rounds hardly more than autocast, whose own error in word attention is 2 %, beside the results of its
    LayerNorms, of which the text encoder has five.
    """
    torch.manual_seed(0)
    module, arguments = CASES[case]()
    arguments = [x.float() if x.is_floating_point() else x for x in arguments]
    exact = output(module.eval(), arguments)
    with torch.autocast("cpu", torch.bfloat16):
        plain, fast = (output(part, arguments) for part in (module, accelerate(copy.deepcopy(module), device)))
    limit = 2e-2 if device == CPU else 1.2 * (plain - exact).norm() / exact.norm() + 5e-3
    assert (fast - exact).norm() < limit * exact.norm()


@pytest.mark.parametrize(("model", "size"), [("rmsin", 96), ("lavt", (72, 100)), ("lgce", (72, 100)),
                                               ("fianet", (72, 100))])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_faster_network_gives_the_same_logits_and_gradients(nano, model, size, training):
    assert_same_network(nano, model, size, training, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size"), [("rmsin", 96), ("fianet", (72, 100))])
def test_the_rows_of_gpus_give_the_same_logits_and_gradients(nano, model, size):
    assert_same_network(nano, model, size, True, CUDA)


def assert_same_network(nano, model: str, size: int | tuple[int, int], training: bool, device: torch.device) -> None:
    """36 windows at the first stage, padding at the others; ARC with angles of both signs; drop path in training."""
    results = []
    for faster in (False, True):
        network = nano(model, 96, fusion_heads=(1, 2, 4, 8)).double()
        for level in network.decoder.levels:
            if model == "rmsin":
                nn.init.normal_(level.conv2.router.angle.weight, std=30)
        for module in network.train(training).modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, SwinBlock):
                module.drop_path.p = 0.5
        names = set(network.state_dict())
        if faster:
            accelerate(network, device)
        assert set(network.state_dict()) == names
        image, *sentence = inputs_for(network, 4, size)
        torch.manual_seed(1)
        logits = network(image.double(), *sentence)
        logits.square().mean().backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        results.append((logits, torch.cat([gradients[name].flatten() for name in sorted(gradients)])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("drop_path", [1e-9, 0.5, 1.0], ids=["all kept", "some dropped", "all dropped"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept activations", "recomputed activations"])
@pytest.mark.parametrize("amp", [False, True], ids=["float64", "bfloat16"])
def test_a_block_under_drop_path_draws_and_computes_what_the_plain_block_does(drop_path, recompute, amp):
    """With the same, faster attention. Every parameter has a gradient, of zeros if all branches are dropped."""
    results = []
    for faster in (False, True):
        block, arguments = swin_block(drop_path)
        x, mask = (argument.to(torch.bfloat16 if amp else torch.float64) for argument in arguments)
        block.to(torch.float32 if amp else torch.float64)
        accelerate(block, CPU)
        block.__class__ = FASTER["cpu"][SwinBlock] if faster else SwinBlock
        x.requires_grad_()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            y = checkpoint(block, x, mask, use_reentrant=False) if recompute else block(x, mask)
        weighting = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        gradients = torch.autograd.grad((y * weighting).sum(), [x, *block.parameters()])
        results.append((y, *gradients, torch.rand(3)))
        if drop_path == 1.0:
            assert torch.equal(y, x) and not any(gradient.any() for gradient in gradients[1:])
    assert torch.equal(results[0][-1], results[1][-1])
    for plain, fast in zip(*results, strict=True):
        assert fast.dtype == plain.dtype and (fast - plain).norm() <= (1e-2 if amp else 1e-12) * plain.norm()
    torch.manual_seed(1)
    kept = [int(block.drop_path(torch.ones(6, 1)).count_nonzero()) for _ in range(2)]
    assert all(number in {1e-9: [6], 0.5: range(1, 6), 1.0: [0]}[drop_path] for number in kept)


def test_a_block_on_a_gpu_scales_its_branches_by_the_factors_drawn():
    block, (x, mask) = swin_block(0.5)
    block.double()
    torch.manual_seed(1)
    first, second = 2 * x.new_empty(2, 6, 1, 1, 1).bernoulli_(0.5)
    expected = x + first * block.attn(block.norm1(x), mask)
    expected = expected + second * block.mlp(block.norm2(expected))
    torch.manual_seed(1)
    assert type(accelerate(block, CUDA)) is GpuSwinBlock
    torch.testing.assert_close(block(x, mask), expected, rtol=1e-9, atol=1e-11)
    block.drop_path.p = 1.0
    assert torch.equal(block(x, mask), x)


def test_a_dropped_branch_is_not_computed():
    block, arguments = swin_block(0.5)
    x, mask = (argument.float() for argument in arguments)
    computed: list[int] = []
    for module in (block.attn, block.mlp):
        module.register_forward_pre_hook(lambda _, arguments: computed.append(len(arguments[0])))
    accelerate(block, CPU)
    for _ in range(20):
        state = torch.get_rng_state()
        computed.clear()
        block(x, mask)
        torch.set_rng_state(state)
        kept = [int(block.drop_path(torch.ones(len(x))).count_nonzero()) for _ in range(2)]
        assert computed == [number for number in kept if number]
    block.drop_path.p = 1.0
    computed.clear()
    block(x, mask)
    assert not computed


def test_every_class_of_the_table_is_tested():
    assert {type(make()[0]) for make in CASES.values()} == set(FASTER["cpu"]) | set(FASTER["cuda"])


def test_a_subclass_runs_as_it_is_written():
    class Louder(PixelWordAttention):
        def forward(self, *arguments):
            return 2 * super().forward(*arguments)

    class ThirdConv(nn.Conv2d):
        pass

    fusion = Louder(8, 12).double()
    arguments = words()
    before = fusion(*arguments)
    assert type(accelerate(fusion, CPU)) is Louder and torch.equal(fusion(*arguments), before)
    level = accelerate(Level(4, 6, 8, lambda i, o: ThirdConv(i, o, 3, padding=1)), CPU)
    assert type(level.conv2) is ThirdConv


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_other_devices_have_rows_of_their_own_or_keep_the_plain_network(nano, device):
    network = nano()
    types = [FASTER.get(device, {}).get(type(module), type(module)) for module in network.modules()]
    keys = list(network.state_dict())
    accelerate(network, torch.device(device))
    assert [type(module) for module in network.modules()] == types and list(network.state_dict()) == keys


def test_channels_last_is_a_layout_of_gpus(nano):
    inputs = make_inputs(1, 64)
    for device, laid_out in ((CPU, False), (torch.device("cuda"), True)):
        network = nano()
        before = network(*inputs)
        accelerate(network, device, channels_last=True)
        assert network.decoder.levels[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) == laid_out
        torch.testing.assert_close(network(*inputs), before, rtol=1e-4, atol=1e-5)


def test_the_position_bias_cached_in_evaluation_follows_the_weights(nano):
    """It is cached between passes of one size, and derived anew after loading or training and for inference tensors."""
    inputs, network = make_inputs(1, 64), accelerate(nano("lavt"), CPU)
    attention = network.backbone.stages[0].blocks[1].attn
    with torch.no_grad():
        first = network(*inputs)
        cached = attention.derived_bias.value
        torch.testing.assert_close(network(*inputs), first, rtol=0, atol=1e-6)
        assert attention.derived_bias.value is cached
        changed = {name: value * torch.arange(len(value))[:, None] if "bias_table" in name else value
                   for name, value in network.state_dict().items()}
        network.load_state_dict(changed)
        second = network(*inputs)
        assert not torch.equal(second, first)
    network(*inputs).sum().backward()
    assert attention.derived_bias.value is None and attention.relative_position_bias_table.grad is not None
    with torch.inference_mode():
        fresh = accelerate(nano("lavt"), CPU)
        fresh.load_state_dict(changed)
        torch.testing.assert_close(fresh(*inputs), second)


@pytest.mark.skipif(not has_products(torch.float32), reason="this CPU or PyTorch has no such products")
@pytest.mark.parametrize("bias", [True, False])
def test_a_large_product_in_float32_and_its_gradients(bias, monkeypatch):
    """Of a map whose rows are not contiguous, multiplied by oneDNN both ways."""
    torch.manual_seed(0)
    plain, fast = nn.Linear(6, 10, bias=bias), nn.Linear(6, 10, bias=bias)
    fast.load_state_dict(plain.state_dict())
    accelerate(fast, CPU)
    calls: list[int] = []
    apply = Product.apply
    monkeypatch.setattr(onednn, "LARGE", 2 * 4 * 3 * 60)
    monkeypatch.setattr(onednn, "WIDE", 6)
    monkeypatch.setattr(Product, "apply", lambda *arguments: calls.append(1) or apply(*arguments))
    results = []
    for layer in (plain, fast):
        x = torch.linspace(-1, 1, 2 * 6 * 4 * 3).view(2, 6, 4, 3).requires_grad_()
        y = layer(x.permute(0, 2, 3, 1))
        weighting = torch.linspace(-1, 1, y.numel()).view(2, 10, 4, 3).permute(0, 2, 3, 1)
        results.append((y, *torch.autograd.grad((y * weighting).sum(), [x, *layer.parameters()])))
    assert calls == [1]
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        fast(torch.zeros(1, 6))            # small
        fast.double()(torch.zeros(99, 6).double())
    with torch.autocast("cpu", torch.bfloat16):
        fast.float()(torch.zeros(99, 6))
    assert calls == [1]


def test_a_frozen_layer_passes_its_gradient_on(monkeypatch):
    monkeypatch.setattr(onednn, "LARGE", 0)
    monkeypatch.setattr(onednn, "WIDE", 0)
    layer, x = accelerate(nn.Linear(3, 2).requires_grad_(False), CPU), torch.ones(4, 3, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, 3))
    assert layer.weight.grad is None

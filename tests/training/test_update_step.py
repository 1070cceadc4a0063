"""One update from several batches, in any precision; one that is not finite changes nothing."""
import pytest
import torch
from torch import nn

from lib.accelerate import accelerate, autocast
from lib.training.optimizer import freeze_text, make_optimizer, recompute_activations, restore_optimizer
from lib.training.update_step import Updater
from tests.conftest import make_inputs
from utils import UserError

pytestmark = pytest.mark.usefixtures("narrow_nano")


def updater_of(model: nn.Module, accumulate: int = 1, amp: str = "off", skip_bad: bool = False) -> Updater:
    freeze_text(model, layers=2, embeddings=True)
    optimizer, schedule = make_optimizer(model, lr=1e-3, weight_decay=0.01, total_iterations=10)
    return Updater(model, optimizer, schedule, torch.device("cpu"), amp, accumulate, skip_bad)


def updates(updater: Updater) -> int:
    return max((int(state["step"]) for state in updater.optimizer.state.values()), default=0)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def test_accumulated_batches_are_one_batch(nano):
    """With BatchNorm in evaluation mode, nothing mixes the samples of a batch.

    In float64, since Adam makes steps of float32's rounding noise where a gradient vanishes.
    """
    image, *words = make_inputs(4, 64)
    inputs, changed = (image.double(), *words), []
    for accumulate in (1, 2):
        model = nano("lavt").double()
        updater = updater_of(model, accumulate)
        for part in range(accumulate):
            share = [tensor.chunk(accumulate)[part] for tensor in inputs]
            assert updater.backward(updater.forward(*share).square().mean()) == (part == accumulate - 1)
        changed.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
        assert updater.schedule.last_epoch == 1
    torch.testing.assert_close(*changed, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_update_that_is_not_finite_changes_nothing(nano, skip_bad):
    model, inputs = nano("rmsin").train(), make_inputs(2, 64)
    updater = updater_of(model, skip_bad=skip_bad)
    updater.backward(updater.forward(*inputs).mean())
    before, state = weights(model), {k: v.clone() for k, v in next(iter(updater.optimizer.state.values())).items()}
    updater.backward(updater.forward(*inputs).mean() * float("nan"))
    after = dict(zip(model.state_dict(), weights(model), strict=True))
    names = [name for name, _ in model.named_parameters()]
    assert all(torch.equal(after[name], old) for name, old in zip(model.state_dict(), before, strict=True)
               if skip_bad or name in names)   # statistics too, where the run goes on
    assert all(torch.equal(v, state[k]) for k, v in next(iter(updater.optimizer.state.values())).items())
    assert updater.bad_updates == 1
    before = weights(model)
    updater.backward(updater.forward(*inputs).mean())
    moved = any(not torch.equal(dict(model.named_parameters())[name], old)
                for name, old in zip(model.state_dict(), before, strict=True) if name in names)
    assert moved == skip_bad   # otherwise nothing moves until somebody looked


def test_one_small_image_is_too_little_for_batchnorm(nano):
    """At 96 px CIM's coarsest map is one pixel."""
    updater = updater_of(nano("rmsin", 96).train())
    updater.forward(*make_inputs(2, 96))
    with pytest.raises(UserError, match=r"one image of 96×96 px .* raise --batch-size or --img_size"):
        updater.forward(*make_inputs(1, 96))


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_lower_precision_moves_float32_weights_much_the_same_way(nano, amp):
    inputs, moves = make_inputs(2, 96), []   # at 64 px a bfloat16 convolution of oneDNN gives NaN now and then
    for precision in ("off", amp):
        model = nano("rmsin", 96)
        updater, before = updater_of(model, amp=precision), [p.detach().clone() for p in model.parameters()]
        while not updates(updater):   # fp16's first updates only find the scale of the loss
            logits = updater.forward(*inputs)
            assert logits.dtype == torch.float32
            updater.backward(logits[:, 1].mean())
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert (updater.scaler is not None) == (precision == "fp16")
        moves.append(torch.cat([(p.detach() - old).flatten() for p, old in
                                zip(model.parameters(), before, strict=True)]))
    assert torch.cosine_similarity(*moves, dim=0) > 0.9


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_resumed_update_is_the_same_in_another_memory_layout(amsgrad):
    """`--channels_last` may differ between the starts of a run."""
    results = []
    for layouts in (("contiguous",) * 2, ("contiguous", "channels last"), ("channels last", "contiguous")):
        torch.manual_seed(0)
        weight, stored = torch.randn(4, 3, 3, 3), None
        for layout in layouts:
            form = torch.channels_last if layout == "channels last" else torch.contiguous_format
            parameter = nn.Parameter(weight.clone().contiguous(memory_format=form))
            optimizer = torch.optim.AdamW([parameter], 0.01, fused=True, amsgrad=amsgrad)
            if stored:
                restore_optimizer(optimizer, stored)
            parameter.grad = torch.linspace(-1, 1, 108).view(4, 3, 3, 3).contiguous(memory_format=form)
            optimizer.step()
            weight, stored = parameter.detach(), optimizer.state_dict()
        results.append(weight.contiguous())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_computing_blocks_again_gives_the_same_values_and_gradients(nano):
    inputs, logits, gradients, passes = make_inputs(2, 64), [], [], []
    for recompute in (False, True):
        model = nano("rmsin").double().train()
        model.decoder.eval()   # ARC's dropout
        attentions = [block.attn for stage in model.backbone.stages for block in stage.blocks]
        calls: list[int] = []
        for attention in attentions:
            attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if recompute:
            recompute_activations(model)
        logits.append(model(inputs[0].double(), *inputs[1:]))
        logits[-1].square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        passes.append(len(calls) / len(attentions))
    torch.testing.assert_close(*logits, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    assert passes == [1, 2]   # once forward, and once more in the backward pass


def test_bfloat16_gives_no_gradient_where_only_padding_was_seen(nano):
    """At 64 px CIM's 5 × 5 convolution sees a map of 2 × 2 through its taps 2 and 3 alone."""
    network = accelerate(nano("rmsin", img_size=64).train(), torch.device("cpu"))
    for seed in range(5):
        image, token_ids, token_mask = make_inputs(4, 64)
        torch.manual_seed(seed)
        network.zero_grad()
        with autocast(torch.device("cpu"), "bf16"):
            logits = network(image + torch.randn_like(image), token_ids, token_mask)
        logits.float().square().mean().backward()
        for attention in (network.cross_scale.block.attention1, network.cross_scale.block.attention2):
            gradient = attention.down3[0].weight.grad.clone()
            assert gradient[:, :, 2:4, 2:4].any()
            gradient[:, :, 2:4, 2:4] = 0
            assert not gradient.any()

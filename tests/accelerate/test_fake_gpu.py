"""Every model runs on a GPU as far as a machine without one can tell: no tensor on a wrong device, no wait in a step.

The tensors have CUDA's devices and types, but no numbers; every operator checks both (tools/fake_gpu.py).
"""
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException

from lib.accelerate import accelerate, prepare_for_inference
from lib.evaluation.metrics import evaluate
from lib.losses import segmentation_loss
from lib.segmentation import MODELS
from lib.training.averaging import WeightAverage
from lib.training.masked_pass import Disturbance, taught_loss
from lib.training.optimizer import freeze_text, make_optimizer, recompute_activations
from lib.training.update_step import Updater
from tests.conftest import inputs_for
from tools.costs import Ledger, parts_of
from tools.fake_gpu import GPU, FakeDevice, WaitingError, fake_gpu, needs_driver
from transforms import network_inputs

pytestmark = [pytest.mark.usefixtures("narrow_nano"),
              pytest.mark.skipif(needs_driver(), reason="this PyTorch has fake GPUs only beside a driver")]

# Each precision is tried with other flags of train.py; bfloat16 with --channels_last, too.
PRECISIONS = {
    "off": {"skip_bad": True, "accumulate": 2},
    "bf16": {"checkpointing": True, "average": True},
    "fp16": {"masked_pass": True},
}


def moved(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(GPU, non_blocking=True) for x in inputs)


def train(device: FakeDevice, model: nn.Module, tokenizer, amp: str, checkpointing: bool = False, accumulate: int = 1,
          average: bool = False, masked_pass: bool = False, skip_bad: bool = False) -> Updater:
    """A step of training, without a wait, of a network that is moved to the GPU."""
    freeze_text(model, 1, False)
    device.to_gpu(model.train())
    averaged = WeightAverage(model, 0.9) if average else None
    if checkpointing:
        recompute_activations(model)
    updater = Updater(model, *make_optimizer(model, 1e-4, 0.01, 10), GPU, amp, accumulate, skip_bad,
                      passes=1 + masked_pass)
    disturb = Disturbance(tokenizer)
    inputs, target = moved(inputs_for(model, 2, 64)), torch.ones(2, 64, 64, dtype=torch.int64, device=GPU)
    device.waiting_allowed = False
    for _ in range(accumulate):
        logits = updater.forward(*inputs)
        updater.backward(segmentation_loss(logits, target, "ce:0.9,dice:0.1"))
        if masked_pass:
            updater.backward(taught_loss(updater.forward(*disturb(*inputs)), logits))
    if averaged:
        averaged.update(model)
    return updater


@pytest.mark.slow
@pytest.mark.parametrize("amp", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_a_step_of_training(nano, tokenizer, model, amp):
    network = accelerate(nano(model, num_tmem=1), GPU, channels_last=amp == "bf16")
    with fake_gpu() as device:
        updater = train(device, network, tokenizer, amp, **PRECISIONS[amp])
        trained = [parameter for group in updater.optimizer.param_groups for parameter in group["params"]]
        unused = [part for stage in network.backbone.stages[-1:] for part in stage.parameters()]
        for parameter in trained:
            assert parameter.device == GPU
            moments = updater.optimizer.state[parameter]
            if parameter.requires_grad and not any(parameter is other for other in unused):
                assert all(moments[name].device == GPU for name in ("exp_avg", "exp_avg_sq"))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_evaluation_and_folding(nano, model):
    for amp, fold in (("off", False), ("bf16", True)):
        network = nano(model, num_tmem=1)
        with fake_gpu() as device:
            prepare_for_inference(device.to_gpu(accelerate(network, GPU)), amp, fold)
            image, *words = inputs_for(network, 3, 64)
            names = ("token_ids", "token_mask", "phrase_masks")
            batch = {"image": image.byte(), "target": torch.ones(3, 64, 64, dtype=torch.uint8),
                     "index": torch.arange(3), **dict(zip(names, words, strict=False))}
            network_inputs(batch, GPU)   # the images' mean goes to the GPU once
            device.waiting_allowed = False
            rows = evaluate(network, [batch, batch], GPU, amp)
            assert rows.device == GPU and rows.shape == (6, 6)
            assert all(x.device == GPU for x in network_inputs(batch, GPU))


class Faulty(nn.Module):
    """A network with a fault of a kind that a CPU does not show."""

    def __init__(self, network: nn.Module, fault):
        super().__init__()
        self.network, self.fault = network, fault

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.fault(self.network(*inputs))


@pytest.mark.parametrize(("fault", "error"), [
    (lambda y: y + torch.zeros(2, 64, 64), RuntimeError),
    (lambda y: y * y.mean().item(), DataDependentOutputException),
    (lambda y: y if y.mean() > 0 else -y, DataDependentOutputException),
    (lambda y: y + torch.ones(64).to(GPU), WaitingError),
    (lambda y: (y.mean().cpu(), y)[1], WaitingError),
], ids=["a tensor of the host", "a number that is read", "a condition", "a copy to the GPU", "a copy to the host"])
def test_a_fault_that_a_cpu_does_not_show_is_found(fault, error):
    layer = Faulty(nn.Conv2d(3, 2, 1), fault)
    with fake_gpu() as device:
        device.to_gpu(layer)
        device.waiting_allowed = False
        with pytest.raises(error):
            layer(torch.empty(2, 3, 64, 64, device=GPU)).sum().backward()


# Operators of a step of RMSIN (narrow nano, 64 px, batch 2, bfloat16) by family. On a GPU each is a launch, and a small
# batch waits for launches alone: whoever changes the network compares these numbers, and decides.
BUDGET = {"fill": 34, "cast": 103, "pointwise": 470, "copy": 113, "LayerNorm": 51, "reduction": 110, "GEMM": 271,
          "attention": 18, "activation": 128, "convolution": 132, "BatchNorm": 142, "resize": 24, "update": 12}


@pytest.mark.slow
def test_the_operators_of_a_step_are_within_the_budget(nano, tokenizer):
    network = accelerate(nano("rmsin"), GPU)
    with fake_gpu() as device:
        ledger = Ledger(parts=parts_of(network))
        updater = train(device, network, tokenizer, "bf16")
        inputs, target = moved(inputs_for(network, 2, 64)), torch.ones(2, 64, 64, dtype=torch.int64, device=GPU)
        with ledger:
            updater.backward(segmentation_loss(updater.forward(*inputs), target, "ce:0.9,dice:0.1"))
    found = {family: cost.operators for family, cost in ledger.by("family").items()}
    assert {family: count for family, count in found.items() if count > BUDGET.get(family, 0)} == {}, str(found)
    assert sum(found.values()) > 0.97 * sum(BUDGET.values()), "fewer than before: lower the budget"

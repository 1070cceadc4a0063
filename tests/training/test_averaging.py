"""The moving average of the weights: its arithmetic, and that tensors derived from it follow it."""
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.accelerate import accelerate
from lib.training.averaging import WeightAverage
from lib.training.optimizer import recompute_activations
from tests.conftest import make_inputs

DECAY = 0.75


def train_a_little(model: torch.nn.Module, seed: int) -> None:
    """Moves all weights and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer += torch.rand(buffer.shape, generator=generator)
            elif name.endswith("num_batches_tracked"):
                buffer += 3


def test_weights_are_averaged_as_torch_does_and_statistics_with_them(nano):
    model = nano("rmsin")
    average, reference = WeightAverage(model, DECAY), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    variance, counter = "decoder.levels.0.bn1.running_var", "decoder.levels.0.bn1.num_batches_tracked"
    by_hand = None
    for seed in range(3):
        train_a_little(model, seed)
        average.update(model)
        reference.update_parameters(model)
        now = model.state_dict()[variance].clone()
        by_hand = now if by_hand is None else DECAY * by_hand + (1 - DECAY) * now
    for averaged, expected in zip(average.network.parameters(), reference.module.parameters(), strict=True):
        assert torch.equal(averaged, expected)
    state = average.network.state_dict()
    torch.testing.assert_close(state[variance], by_hand)
    assert state[counter] == model.state_dict()[counter] == 9
    assert all(torch.equal(buffer, dict(model.named_buffers())[name])   # index tables are not weakened to other indices
               for name, buffer in average.network.named_buffers() if not buffer.is_floating_point())


@pytest.mark.parametrize("name", ["rmsin", "lavt"])
def test_what_validates_between_updates_is_the_average_of_now(nano, name):
    """The CPU kernels keep tensors derived from weights; they follow the average as it moves."""
    cpu, inputs = torch.device("cpu"), make_inputs(2, 64)
    model = accelerate(nano(name), cpu)
    average = WeightAverage(model, DECAY)
    recompute_activations(model)
    model.train()
    for seed in range(2):
        train_a_little(model, seed)
        average.update(model)
        fresh = accelerate(nano(name), cpu)
        fresh.load_state_dict(average.network.state_dict())
        with torch.inference_mode():
            # On Intel's CPUs the rounding of a product depends on where its factors lie in memory.
            torch.testing.assert_close(average.network(*inputs), fresh(*inputs), rtol=0, atol=1e-6)
        assert not average.network.training

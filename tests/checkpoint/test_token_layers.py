"""Fine-tuning RMSIN at another image size: CIM's token layers are resized on request, and refused without it."""
import pytest
import torch

from args import get_parser
from lib.checkpoint import read_checkpoint
from lib.checkpoint.starting import make_network
from lib.checkpoint.token_layers import resize_token_layer, scales_of
from tests.conftest import make_inputs, save_nano_checkpoint
from utils import UserError


def area(side: int) -> int:
    return sum(scale ** 2 for scale in scales_of(side))


@pytest.mark.parametrize(("old", "new"), [(15, 28), (15, 10), (2, 3)])
def test_a_constant_input_gives_the_same_output_at_every_size(old, new):
    """For ones, a layer's output is the sum of each row, a map, which the new layer gives in the new size."""
    torch.manual_seed(0)
    weight = torch.rand(old * old, area(old), dtype=torch.float64)
    resized = resize_token_layer(weight, new * new)
    assert resized.shape == (new * new, area(new))
    torch.testing.assert_close(resized.sum(1), resize_token_layer(weight.sum(1), new * new))
    assert resize_token_layer(torch.full((old * old,), 3.0), new * new) == pytest.approx(torch.full((new * new,), 3.0))


def test_the_three_scales_keep_apart():
    """A weight that sums the second scale's 2 × 2 tokens still reads that scale alone, with the same sum."""
    weight = torch.zeros(16, area(4))
    weight[:, 16:20] = 1
    first, second, third = resize_token_layer(weight, 64).split([64, 16, 9], dim=1)
    assert not first.any() and not third.any() and second.sum(1) == pytest.approx(torch.full((64,), 4.0))


def test_a_ramp_stays_a_ramp():
    """A layer that copies the first scale, 4 × 4, copies a ramp on 8 × 8 tokens, but for its flattened ends."""
    weight = torch.zeros(16, area(4))
    weight[:, :16] = torch.eye(16)
    ramp = torch.arange(8.0).repeat(8, 1)
    copied = (resize_token_layer(weight, 64)[:, :64] @ ramp.flatten()).view(8, 8)
    torch.testing.assert_close(copied[:, 2:-2], ramp[:, 2:-2], rtol=0, atol=0.1)


def test_the_same_size_changes_nothing():
    weight = torch.rand(9, area(3))
    torch.testing.assert_close(resize_token_layer(weight, 9), weight)


def flags(toy, path, *more: str):
    return get_parser().parse_args(["--init_from", str(path), "--ck_bert", str(toy / "bert"), *more])


def test_another_image_size_is_refused_with_the_choice_or_resized(toy, tmp_path, capsys):
    path = save_nano_checkpoint(tmp_path / "m.pth", toy)   # 64 px
    with pytest.raises(UserError, match=r"64 px.*--img_size 96.*--resize_weights"):
        make_network(flags(toy, path, "--img_size", "96"), {})
    model, config, _ = make_network(flags(toy, path, "--img_size", "96", "--resize_weights"), {})
    assert config.img_size == 96 and "4 token layers" in capsys.readouterr().out
    assert model.eval()(*make_inputs(1, 96)).shape == (1, 2, 96, 96)
    given, found = read_checkpoint(path)["model"], model.state_dict()
    name = "cross_scale.block.attention1.token_project.bias"
    torch.testing.assert_close(found[name], resize_token_layer(given[name], 9))
    same = [name for name in given if given[name].shape == found[name].shape]
    assert len(same) == len(given) - 4 and all(torch.equal(given[name], found[name]) for name in same)

"""PWAM against the equations of its paper, written out for one pixel and one word at a time."""
import pytest
import torch

from lib.pwam import Gate, PixelWordAttention, instance_norm


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8, dtype=torch.float64)         # 2 samples, 6 pixels, 8 channels
    words = torch.randn(2, 5, 12, dtype=torch.float64)    # 5 words
    return x, words, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_padding_words_change_nothing(inputs, heads):
    x, words, mask = inputs
    fusion = PixelWordAttention(8, 12, heads).double().eval()
    changed = words.clone()
    changed[0, 3:] = 1e3 * torch.randn(2, 12, dtype=torch.float64)
    assert torch.equal(fusion(x, words, mask), fusion(x, changed, mask))
    torch.testing.assert_close(fusion(x[:1], words[:1, :3], mask[:1, :3]), fusion(x, words, mask)[:1])


def test_real_words_change_every_pixel(inputs):
    x, words, mask = inputs
    fusion = PixelWordAttention(8, 12).double().eval()
    changed = words.clone()
    changed[0, 0] += 1
    assert (fusion(x, words, mask) != fusion(x, changed, mask))[0].any(dim=-1).all()


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_word_by_word(inputs, heads):
    x, words, mask = inputs
    fusion = PixelWordAttention(8, 12, heads).double().eval()
    query, key, value = instance_norm(fusion.query(x)), fusion.key(words), fusion.value(words)
    language = torch.zeros_like(x)
    for sample, pixel in [(b, p) for b in range(2) for p in range(6)]:
        for channels in torch.arange(8).chunk(heads):
            real = mask[sample].bool()
            score = key[sample, real][:, channels] @ query[sample, pixel, channels] * 8 ** -0.5   # C, not C / heads
            language[sample, pixel, channels] = score.softmax(0) @ value[sample, real][:, channels]
    language = instance_norm(fusion.language_project(language))
    gelu = torch.nn.functional.gelu
    expected = gelu(fusion.joint_project(gelu(fusion.visual_project(x)) * language))
    torch.testing.assert_close(fusion(x, words, mask), expected)


def test_instance_norm_is_torchs_without_its_transposes():
    x = torch.randn(3, 50, 7, dtype=torch.float64)
    torch.testing.assert_close(instance_norm(x), torch.nn.InstanceNorm1d(7)(x.transpose(1, 2)).transpose(1, 2))


def test_the_gate_is_bounded_and_has_no_bias():
    gate = Gate(8)
    assert (gate(1e3 * torch.randn(4, 8)).abs() <= 1).all()
    assert torch.equal(gate(torch.zeros(1, 8)), torch.zeros(1, 8))


def test_the_shares_shown_are_those_that_the_forward_pass_uses(inputs):
    x, words, mask = inputs
    fusion = PixelWordAttention(8, 12).double().eval()
    weights = fusion.attention_weights(x, words, mask).mean(dim=1)
    language = instance_norm(fusion.language_project(weights @ fusion.value(words)))
    gelu = torch.nn.functional.gelu
    expected = gelu(fusion.joint_project(gelu(fusion.visual_project(x)) * language))
    torch.testing.assert_close(fusion(x, words, mask), expected)

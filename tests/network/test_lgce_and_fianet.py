"""The modules of LGCE and FIANet compute their equations, which are written out here in small."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.lgce import GuidedBlocks
from lib.object_position import ObjectPositionAlignment
from lib.tmem import TextBlock, tmem

DIMS = [32, 64, 128, 256]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def alignment():
    """The module, its inputs for 2 samples of 3 × 4 pixels and 5 words, and what its two attentions find."""
    module = ObjectPositionAlignment(16, 12).double()
    x, language, words = drawn(2, 3, 4, 16), drawn(2, 3, 4, 16), drawn(2, 2, 5, 12)
    masks = torch.tensor([[[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]], [[0, 0, 0, 0, 0], [1, 1, 1, 1, 0]]])
    found = module.object_attention(x.flatten(1, 2), words[:, 0], masks[:, 0]).view(x.shape)
    place = module.position_attention(x.flatten(1, 2), words[:, 1], masks[:, 1]).view(x.shape)
    return module, x, language, (words, masks), found, place


def test_alignment_adds_the_object_where_its_position_points(alignment):
    module, x, language, phrases, found, place = alignment
    squeeze, excite = module.channel_weights[0], module.channel_weights[2]
    for sample in range(2):
        pair = torch.stack([place[sample].mean(-1), place[sample].max(-1).values])            # mean first, then maximum
        where = F.conv2d(pair[None], module.position_conv.weight, padding=1)[0, 0].sigmoid()
        channels = excite(squeeze(x[sample].flatten(0, 1).mean(0)).relu()).sigmoid()
        branch = module.object_gate(found[sample]) * found[sample] * where[..., None]
        expected = channels * (language[sample] + branch)
        torch.testing.assert_close(module(x, language, phrases)[sample], expected)
    assert squeeze.out_features == 2   # of 16 channels


def test_a_sentence_that_names_no_object_adds_no_object(alignment):
    """In the second sample the object's mask is 0 throughout, and so are its features."""
    module, x, language, phrases, found, _ = alignment
    assert found[1].abs().max() < 1e-12 < found[0].abs().max()
    weights = module.channel_weights(x.mean(dim=(1, 2)))[1]
    torch.testing.assert_close(module(x, language, phrases)[1], weights * language[1])


def test_tmem_reads_the_words_at_the_coarsest_maps_size():
    module = tmem(DIMS, 12, num_tmem=2).double().eval()
    features = [drawn(2, dim, 2 ** (3 - i) * 3, 2 ** (3 - i) * 2) for i, dim in enumerate(DIMS)]
    words, mask = drawn(2, 5, 12), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    fused = module(features, words, mask)
    assert [map.shape for map in fused] == [map.shape for map in features] and len(module.block) == 2

    tokens = module.reduce(torch.cat([F.adaptive_avg_pool2d(map, (3, 2)) for map in features], 1))
    tokens = tokens.flatten(2).transpose(1, 2)
    for block in module.block:
        tokens = block(tokens, words, mask)
    shared = module.expand(module.bn(tokens.transpose(1, 2).reshape(2, -1, 3, 2))).split(DIMS, 1)
    for own, part, fusion, found in zip(features, shared, module.fusions, fused, strict=True):
        torch.testing.assert_close(found, fusion(own, part))
    changed = module(features, words.roll(1, 1), mask)
    assert all(not torch.allclose(a, b) for a, b in zip(fused, changed, strict=True))


def test_tmems_block_is_attention_and_mlp_before_whose_branches_it_normalises():
    block = TextBlock(8, 12).double()
    tokens, words, mask = drawn(2, 6, 8), drawn(2, 5, 12), torch.ones(2, 5, dtype=torch.long)
    middle = tokens + block.attention(F.layer_norm(tokens, (8,)), words, mask)
    first, second = block.mlp[0], block.mlp[2]
    expected = middle + second(F.gelu(first(F.layer_norm(middle, (8,)))))
    torch.testing.assert_close(block(tokens, words, mask), expected)
    assert first.out_features == 16 and first.bias.abs().max() == 0   # starts as Swin's linear layers do


def vit_block(block: nn.Module, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """A pre-norm block of LGCE on (B, T, C), one head at a time."""
    dim = tokens.shape[-1]
    normed = F.layer_norm(tokens, (dim,), block.norm1.weight, block.norm1.bias)   # eps 1e-5
    query, key, value = block.attn.qkv(normed).chunk(3, -1)
    mixed = []
    for part in torch.arange(dim).chunk(heads):
        scores = query[..., part] @ key[..., part].mT * (dim // heads) ** -0.5
        mixed.append(scores.softmax(-1) @ value[..., part])
    tokens = tokens + block.attn.proj(torch.cat(mixed, -1))
    normed = F.layer_norm(tokens, (dim,), block.norm2.weight, block.norm2.bias)
    return tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(normed)))


def test_lgces_guide_token_joins_the_two_coarsest_maps_and_goes():
    module = GuidedBlocks(DIMS, 12).double()
    features = [1e-3 * drawn(2, dim, 5 - i, 4) for i, dim in enumerate(DIMS)]   # small, so that the eps counts
    words, mask = drawn(2, 5, 12), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    enhanced = module(features, words, mask)
    assert enhanced[0] is features[0] and enhanced[1] is features[1]
    for i, (depth, heads) in enumerate([(1, 8), (3, 16)]):
        assert len(module.blocks[i]) == depth and module.blocks[i][0].attn.qkv.bias is None
        assert module.blocks[i][0].mlp.fc1.out_features == 2 * DIMS[2 + i]
        guide = module.guides[i](words.mean(1, keepdim=True))   # of all words, padding included
        tokens = torch.cat([guide, features[2 + i].flatten(2).mT], dim=1)
        for block in module.blocks[i]:
            tokens = vit_block(block, tokens, heads)
        torch.testing.assert_close(enhanced[2 + i].flatten(2).mT, tokens[:, 1:])

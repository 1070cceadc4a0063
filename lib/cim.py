"""CIM, RMSIN's cross-scale interaction module, and the frame that it shares with TMEM (RMSIN, CVPR 2024, "CIM").

Shapes: B batch, D sum of the channels of the four stages, E = D / 4 embedding, g side of the coarsest map, G = g² its
tokens, A = G + G1 + G2 tokens at its three scales (225 + 64 + 25 at 480 px), h heads, N words, L channels of
a word vector.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.swin import init_swin_weights

HEADS, KEY_DIM, VALUE_DIM = 8, 32, 64  # per head


class FeedForward(nn.Module):
    """BatchNorm, 1 × 1 up, BatchNorm, grouped 3 × 3, ReLU6, 1 × 1 down, on (B, C, g, g)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, hidden, 1)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=dim)
        self.conv3 = nn.Conv2d(hidden, dim, 1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.bn2(self.conv1(self.bn1(z)))
        return self.conv3(F.relu6(self.conv2(z)))


class IntraFeedForward(nn.Module):
    """A residual feed-forward within each stage's share of the channels: (B, E, g, g) -> same."""

    def __init__(self, dims: list[int]):
        super().__init__()
        self.dims = dims
        self.feed_forwards = nn.ModuleList(FeedForward(dim, 2 * dim) for dim in dims)

    def forward(self, z: Tensor) -> Tensor:
        groups = z.split(self.dims, dim=1)
        return torch.cat([group + feed_forward(group)
                          for group, feed_forward in zip(groups, self.feed_forwards, strict=True)], dim=1)


class CrossScaleAttention(nn.Module):
    """Attention over the tokens of the map and of two coarser versions of it: (B, E, g, g) -> same.

    A linear layer over the token axis maps A tokens back to G; its shape (G, A) ties the module to one image size. Two
    steps view a tensor in another shape *without* transposing it, because the original weights were trained so.
    """

    def __init__(self, dim: int, side: int):
        super().__init__()
        tokens, inner = side * side, HEADS * VALUE_DIM
        all_tokens = tokens + ((side + 1) // 2) ** 2 + ((side + 2) // 3) ** 2
        self.bn_in = nn.BatchNorm2d(dim)
        self.down2 = nn.Sequential(nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim), nn.BatchNorm2d(dim))
        self.down3 = nn.Sequential(nn.Conv2d(dim, dim, 5, stride=3, padding=2, groups=dim), nn.BatchNorm2d(dim))
        self.qkv = nn.Linear(dim, HEADS * (2 * KEY_DIM + VALUE_DIM), bias=False)
        self.qkv_bn = nn.BatchNorm1d(HEADS * (2 * KEY_DIM + VALUE_DIM))
        self.token_project = nn.Linear(all_tokens, tokens)
        self.value_conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.channel_project = nn.Linear(inner, dim)
        self.bn_out = nn.BatchNorm2d(dim)
        self.conv_out = nn.Conv2d(dim, dim, 1)

    def scales(self, z: Tensor) -> list[Tensor]:
        """The map itself, and at a half and a third of its size: (B, E, g, g) -> three maps."""
        z = self.bn_in(z)
        return [z, self.down2(z), self.down3(z)]

    def forward(self, z: Tensor) -> Tensor:
        batch, _, side, _ = z.shape
        tokens = torch.cat([scale.flatten(2) for scale in self.scales(z)], dim=2).transpose(1, 2)   # (B, A, E)

        qkv = self.qkv_bn(self.qkv(tokens).flatten(0, 1))                                   # over all B·A rows
        qkv = qkv.view(batch, -1, HEADS, 2 * KEY_DIM + VALUE_DIM).transpose(1, 2)       # (B, h, A, 128)
        query, key, value = qkv.split([KEY_DIM, KEY_DIM, VALUE_DIM], dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)                        # (B, h, A, 64)

        # (B, A, 512) viewed as (B, 512, A), not transposed.
        attended = attended.transpose(1, 2).reshape(batch, HEADS * VALUE_DIM, -1)
        attended = self.token_project(attended)                                             # (B, 512, G)
        # (B, h, G, 64) viewed as (B, 512, g, g), not transposed.
        local = value[:, :, :side * side].reshape(batch, HEADS * VALUE_DIM, side, side)
        local = self.value_conv(F.hardswish(local)).flatten(2)                              # (B, 512, G)

        z = self.channel_project((attended + local).transpose(1, 2))                        # (B, G, E)
        z = z.transpose(1, 2).reshape(batch, -1, side, side)
        return self.conv_out(F.hardswish(self.bn_out(z)))


class CrossScaleBlock(nn.Module):
    """Attention, per-stage feed-forward, attention, feed-forward, each a residual branch: (B, E, g, g) -> same."""

    def __init__(self, dims: list[int], side: int):
        super().__init__()
        embedding = sum(dims)
        self.attention1 = CrossScaleAttention(embedding, side)
        self.intra = IntraFeedForward(dims)
        self.attention2 = CrossScaleAttention(embedding, side)
        self.feed_forward = FeedForward(embedding, 2 * embedding)

    def forward(self, z: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """z (B, E, g, g) -> same; the words are not used."""
        z = z + self.attention1(z)
        z = z + self.intra(z)
        z = z + self.attention2(z)
        return z + self.feed_forward(z)


class ScaleFusion(nn.Module):
    """Gates and shifts a stage's own map (B, C, H, W) by the global part (B, C, g, g): -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.local_embedding, self.global_gate, self.global_embedding = (
            nn.Sequential(nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim)) for _ in range(3))

    def forward(self, own: Tensor, shared: Tensor) -> Tensor:
        size = own.shape[-2:]
        # F.hardsigmoid would round its gradient to float32 even in float64.
        gate = F.relu6(self.global_gate(shared) + 3) / 6
        gate = F.interpolate(gate, size, mode="bilinear", align_corners=False)
        shift = F.interpolate(self.global_embedding(shared), size, mode="bilinear", align_corners=False)
        return self.local_embedding(own) * gate + shift


class CrossScale(nn.Module):
    """Pools the four maps to the coarsest, lets them interact, and fuses the result into each of them.

    `dims` are the stages' channels; `make_block(quarters)` receives a quarter of each and returns the module in
    which they interact, `block(z, words, word_mask)` with z (B, E, g, g') -> same.
    """

    def __init__(self, dims: list[int], make_block: Callable[[list[int]], nn.Module]):
        super().__init__()
        self.dims = dims
        quarter = [dim // 4 for dim in dims]
        self.reduce = nn.Conv2d(sum(dims), sum(quarter), 1)
        self.block = make_block(quarter)
        self.bn = nn.BatchNorm2d(sum(quarter))
        self.expand = nn.Conv2d(sum(quarter), sum(dims), 1)
        self.fusions = nn.ModuleList(ScaleFusion(dim) for dim in dims)

    def forward(self, features: list[Tensor], words: Tensor, word_mask: Tensor) -> list[Tensor]:
        """Four maps (B, C, H, W), finest first, words (B, N, L), word_mask (B, N) -> four maps of the same shapes"""
        height, width = features[-1].shape[-2:]
        pooled = [F.adaptive_avg_pool2d(feature, (height, width)) for feature in features]
        z = self.block(self.reduce(torch.cat(pooled, dim=1)), words, word_mask)
        shared = self.expand(self.bn(z)).split(self.dims, dim=1)
        return [fusion(own, part) for fusion, own, part in zip(self.fusions, features, shared, strict=True)]


def cim(dims: list[int], side: int) -> CrossScale:
    """RMSIN's cross-scale module with one block that does not use the words.

    `side` is the coarsest map's side, image size / 32. Other sizes do not fit the weights; `lib.model` rejects them.
    """
    module = CrossScale(dims, lambda quarters: CrossScaleBlock(quarters, side))
    return module.apply(init_swin_weights)   # CIM is inside the backbone in the original code, and initialised with it

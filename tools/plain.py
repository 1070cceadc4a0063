"""The network computed the straightforward way, as the published programs do: what tools/benchmark.py compares with.

`make_plain(model)` replaces the forward of the modules whose fast form differs; weights and results stay the same
(a test says so). Shapes as in lib/.
"""
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert import TextEncoder
from lib.accelerate.winograd import Conv3x3
from lib.backbone import Stage
from lib.language_fusion import PixelWordAttention
from lib.model import ReferringSegmenter
from lib.rotated_conv import AdaptiveRotatedConv
from lib.swin import WindowAttention
from lib.windows import MASKED, split_windows


def window_attention(self: WindowAttention, x: Tensor) -> Tensor:
    """Queries, keys and values of padding too, the mask built anew, scores and softmax one after the other."""
    _, height, width, channels = x.shape
    window, heads, area = self.window, self.heads, self.window ** 2
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    padded_height, padded_width = x.shape[1:3]
    if self.shift:
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
    windows = split_windows(x, window).flatten(0, 1)                                  # (B·n, w², C)
    qkv = self.qkv(windows).reshape(-1, area, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    query, key, value = qkv[0] * (channels // heads) ** -0.5, qkv[1], qkv[2]
    scores = query @ key.transpose(-2, -1)
    bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(area, area, -1)
    scores = scores + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
    if self.shift:
        mask = shift_mask(padded_height, padded_width, window, self.shift, x.device)
        scores = scores.view(-1, len(mask), heads, area, area) + mask[None, :, None]
        scores = scores.view(-1, heads, area, area)
    x = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(-1, area, channels)
    x = self.proj(x).view(-1, padded_height * padded_width // area, area, channels)
    x = join_windows(x, window, padded_height, padded_width)
    if self.shift:
        x = torch.roll(x, (self.shift, self.shift), (1, 2))
    return x[:, :height, :width].contiguous()


def join_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `split_windows`: (B, n, w², C) -> (B, H, W, C)."""
    batch, _, _, channels = x.shape
    x = x.view(batch, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(n, w², w²) of 0 and −100, from a picture of the nine regions."""
    regions = torch.zeros((1, height, width, 1), device=device)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in bands for columns in bands):
        regions[:, rows, columns] = number
    regions = split_windows(regions, window).view(-1, window * window)
    return (regions[:, None] != regions[:, :, None]).float() * MASKED


def pixel_words(self: PixelWordAttention, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """1 × 1 convolutions over transposed maps, scores and softmax one after the other."""
    def conv(layer: nn.Linear, z: Tensor) -> Tensor:
        return F.conv1d(z, layer.weight[:, :, None], layer.bias)

    batch, pixels, channels = x.shape
    x, words, mask = x.transpose(1, 2), words.transpose(1, 2), word_mask[:, None].to(x.dtype)
    visual = self.dropout(F.gelu(conv(self.visual_project, x)))
    query = F.instance_norm(conv(self.query, x)).transpose(1, 2)
    key, value = conv(self.key, words) * mask, conv(self.value, words) * mask
    query = query.reshape(batch, pixels, self.heads, -1).transpose(1, 2)
    key, value = (z.reshape(batch, self.heads, channels // self.heads, -1) for z in (key, value))
    scores = channels ** -0.5 * (query @ key) + (1e4 * mask[:, None] - 1e4)
    language = scores.softmax(dim=-1) @ value.transpose(-2, -1)
    language = language.transpose(1, 2).reshape(batch, pixels, channels).transpose(1, 2)
    language = F.instance_norm(conv(self.language_project, language))
    return self.dropout(F.gelu(conv(self.joint_project, visual * language))).transpose(1, 2)


def stage(self: Stage, x: Tensor, words: Tensor, word_mask: Tensor,
          recompute_blocks: bool = False) -> tuple[Tensor, Tensor | None]:
    """The last stage's gates and branch too, which nothing reads."""
    for block in self.blocks:
        x = block(x)
    fused = self.fusion(x.flatten(1, 2), words, word_mask).view(x.shape)
    update = x + self.language_gate(fused) * fused
    if self.intra_scale is not None:
        visual = self.intra_scale(x)
        update = update + self.visual_gate(visual) * visual
    return fused, None if self.downsample is None else self.downsample(update)


def convolution(self: Conv3x3, *maps: Tensor) -> Tensor:
    """All of the multiplications, of the joined maps."""
    return nn.Conv2d.forward(self, torch.cat(maps, dim=1))


def rotated_conv(self: AdaptiveRotatedConv, x: Tensor) -> Tensor:
    """Each rotation matrix put together entry by entry from rows of zeros."""
    batch, _, height, width = x.shape
    scale, angle = self.router(x)
    rotations = torch.stack([torch.stack([rotation(theta) for theta in row]) for row in angle])   # (B, K, 9, 9)
    rotations = rotations * scale[..., None, None]
    outputs, inputs = self.weight.shape[1:3]
    weight = rotations.transpose(0, 1).reshape(len(self.weight), batch * 9, 9) @ self.weight.permute(
        0, 3, 4, 1, 2).reshape(len(self.weight), 9, -1)
    weight = weight.sum(0).view(batch, 3, 3, outputs, inputs).permute(0, 3, 4, 1, 2).reshape(-1, inputs, 3, 3)
    x = F.conv2d(x.reshape(1, -1, height, width), weight, padding=1, groups=batch)
    return x.reshape(batch, -1, height, width)


def rotation(theta: Tensor) -> Tensor:
    """The (9, 9) matrix of one angle, DESIGN 2.7 as it stands."""
    x, y = torch.cos(theta), torch.sin(theta)
    a, b, c, zero, one = x - y, x * y, x + y, torch.zeros_like(x), torch.ones_like(x)
    if theta >= 0:
        entries = {0: {0: a, 1: 1 - a}, 1: {1: x - b, 2: b, 4: 1 - c + b, 5: y - b}, 2: {2: a, 5: 1 - a},
                   3: {0: b, 1: y - b, 3: x - b, 4: 1 - c + b}, 4: {4: one},
                   5: {4: 1 - c + b, 5: x - b, 7: y - b, 8: b}, 6: {3: 1 - a, 6: a},
                   7: {3: y - b, 4: 1 - c + b, 6: b, 7: x - b}, 8: {7: 1 - a, 8: a}}
    else:
        entries = {0: {0: c, 3: 1 - c}, 1: {0: -b, 1: x + b, 3: b - y, 4: 1 - a - b}, 2: {1: 1 - c, 2: c},
                   3: {3: x + b, 4: 1 - a - b, 6: -b, 7: b - y}, 4: {4: one},
                   5: {1: b - y, 2: -b, 4: 1 - a - b, 5: x + b}, 6: {6: c, 7: 1 - c},
                   7: {4: 1 - a - b, 5: b - y, 7: x + b, 8: -b}, 8: {5: 1 - c, 8: c}}
    return torch.stack([torch.stack([entries[row].get(column, zero) for column in range(9)]) for row in range(9)])


def text(self: TextEncoder, token_ids: Tensor, token_mask: Tensor) -> Tensor:
    """BERT with unfused attention, making its own mask."""
    self.bert.config._attn_implementation = "eager"
    return self.bert(token_ids, attention_mask=token_mask).last_hidden_state


FORWARDS = {TextEncoder: text, WindowAttention: window_attention, PixelWordAttention: pixel_words,
            Stage: stage, Conv3x3: convolution, AdaptiveRotatedConv: rotated_conv}


def make_plain(model: ReferringSegmenter) -> ReferringSegmenter:
    """Gives the modules of `model`, in place, their straightforward forwards."""
    for module in model.modules():
        if type(module) in FORWARDS:
            module.forward = MethodType(FORWARDS[type(module)], module)
    return model

"""Maps of the attention that each pixel pays to each word: PWAM's weights (LAVT, section 3.2).

Shapes: B batch, N words, h w the third stage's map, S the network's size.
"""
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from lib.model import ReferringSegmenter

STAGE = 2   # 1/16 of the image's size: fine enough for objects, deep enough for meaning
LEVELS = 32  # colours of a map: few, so that PNGs stay small


def has_word_maps(model: ReferringSegmenter) -> bool:
    """Whether the network's fusion has `attention_weights`; a part of one's own need not have them."""
    return hasattr(model.backbone.stages[STAGE].fusion, "attention_weights")


@torch.inference_mode()
def word_maps(model: ReferringSegmenter, image: Tensor, *words: Tensor) -> Tensor:
    """The attention weight that each pixel gives each word: arguments of the network -> (B, N, h, w), 0 to 1."""
    found: list[Tensor] = []
    fusion: Any = model.backbone.stages[STAGE].fusion
    hook = fusion.register_forward_pre_hook(
        lambda module, inputs: found.append(module.attention_weights(*inputs).mean(dim=1)))
    try:
        model.encode(image, *words)
    finally:
        hook.remove()
    stride = 4 * 2 ** STAGE
    height, width = (-(-side // stride) for side in image.shape[-2:])
    return found[0].transpose(1, 2).unflatten(-1, (height, width))


def heat_strip(maps: Tensor, token_ids: Tensor, token_mask: Tensor, tokenizer: Tokenizer) -> list[tuple[str, bytes]]:
    """A small PNG for each token of a sentence, on a common scale: (N, h, w), (N,), (N,) -> [(token, PNG), …].

    Black means no attention, white the largest weight that any pixel gives any word of this sentence.
    """
    real = token_mask.bool()
    shown = maps[real].float().cpu().numpy()
    heat = np.round((LEVELS - 1) * shown / max(float(shown.max()), 1e-9)).astype(np.uint8)
    ramp = np.linspace(0, 1, LEVELS)[:, None]
    colours = np.concatenate([np.minimum(1, 1.8 * ramp), np.clip(1.8 * ramp - 0.5, 0, 1), np.clip(3 * ramp - 2, 0, 1)],
                             axis=1)
    strip = []
    for token_id, levels in zip(token_ids[real].tolist(), heat, strict=True):
        picture = Image.fromarray(levels, mode="P")
        picture.putpalette((255 * colours).astype(np.uint8).tobytes())
        picture.save(png := io.BytesIO(), "PNG", optimize=True)
        strip.append((tokenizer.id_to_token(token_id) or "?", png.getvalue()))
    return strip

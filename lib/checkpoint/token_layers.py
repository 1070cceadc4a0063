"""CIM's token layers fitted to another image size, as a start for fine-tuning.

A token layer, `token_project`, has a row for each of the G tokens of the coarsest map and a column for each of the A
tokens of its three scales (see `lib.cim`), so it belongs to one image size.
"""
import re

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.checkpoint.strict_loading import State, shape_of

TOKEN_LAYER = re.compile(r"cross_scale\.block\.attention[12]\.token_project\.(weight|bias)")


def scales_of(side: int) -> tuple[int, int, int]:
    """The sides of CIM's three maps, of which the first is the coarsest map of the backbone."""
    return side, (side + 1) // 2, (side + 2) // 3


def of_another_size(state: State, needed: State) -> list[str]:
    """The names of the token layers in `state` that the network of `needed` has for another image size."""
    return [name for name, value in state.items() if TOKEN_LAYER.fullmatch(name) and name in needed
            and shape_of(value) != shape_of(needed[name]) and is_token_layer(value) and is_token_layer(needed[name])]


def is_token_layer(value: object) -> bool:
    """Whether a tensor has the shape of a token layer's weight (G, A) or bias (G,) for some side."""
    if not isinstance(value, Tensor) or value.dim() not in (1, 2) or not len(value):
        return False
    side = round(len(value) ** 0.5)
    return side ** 2 == len(value) and list(value.shape[1:]) in ([], [sum(scale ** 2 for scale in scales_of(side))])


def resize_token_layer(value: Tensor, rows: int) -> Tensor:
    """A token layer's weight (G, A) or bias (G,) for a coarsest map of `rows` tokens.

    The new layer computes what the old one does between two bilinear resamplings: of its input, each of the three
    scales as a map, from the new size to the old one, and of its output back. The input mixes tokens with channels
    (see `lib.cim`), so this is a start for training and does not keep what the network predicts.
    """
    old, new = round(len(value) ** 0.5), round(rows ** 0.5)
    if value.dim() == 1:
        return resize_maps(value[None], old, new)[0]
    parts = value.split([scale ** 2 for scale in scales_of(old)], dim=1)
    columns = [part @ resize_maps(torch.eye(after ** 2, dtype=value.dtype), after, before).T
               for part, before, after in zip(parts, scales_of(old), scales_of(new), strict=True)]
    return resize_maps(torch.cat(columns, dim=1).T, old, new).T.contiguous()


def resize_maps(maps: Tensor, old: int, new: int) -> Tensor:
    """Square maps, flattened, in another size, by bilinear interpolation: (n, old²) -> (n, new²)."""
    resized = F.interpolate(maps.reshape(1, -1, old, old), (new, new), mode="bilinear", align_corners=False,
                            antialias=new < old)
    return resized.reshape(-1, new * new)

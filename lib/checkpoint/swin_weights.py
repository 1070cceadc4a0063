"""Swin's classification weights as the backbone's start."""
import re
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lib.checkpoint.files import read_checkpoint
from lib.checkpoint.strict_loading import misfit, refuse_misfits, suggestion
from utils import UserError

# What Swin's classification files lack because it is not theirs, and what they bring that is not needed.
SWIN_STARTS_FRESH = r"^(stages\.\d+\.(fusion|language_gate|visual_gate|intra_scale|alignment)|norms\.\d+)\."
SWIN_IGNORED = r"^(norm|head)\.|\.(attn_mask|relative_position_index)$"


def load_swin_weights(backbone: nn.Module, path: str | Path) -> str:
    """Starts the backbone from a Swin classification checkpoint; returns one line on what came from where.

    The published forms are known: `{'model': …}`, `{'state_dict': …}` or bare, with a `module.`, `backbone.` or
    (MoBY) `encoder.` prefix. Bias tables of another window are resized bicubically. Raises `UserError` when the
    file is not there or belongs to another variant.
    """
    if not Path(path).is_file():
        raise UserError(f"--pretrained_swin_weights {path} does not exist; pretrained_weights/README.md says where to "
                        "get it, and --pretrained_swin_weights '' starts from random weights")
    content = read_checkpoint(path)
    published = content.get("model", content.get("state_dict", content))
    if not isinstance(published, dict):
        raise UserError(f"--pretrained_swin_weights {path}: its weights are a {type(published).__name__}, not a dict")
    if not all(isinstance(name, str) for name in published):
        raise UserError(f"--pretrained_swin_weights {path}: its entries are not named, so they are no weights")
    for prefix in ("module.", "encoder.", "backbone."):
        if any(name.startswith((prefix + "patch_embed.", prefix + "encoder.")) for name in published):
            published = {name.removeprefix(prefix): value for name, value in published.items()
                         if name.startswith(prefix)}
    state = {re.sub(r"^layers\.", "stages.", name): value for name, value in published.items()
             if not re.search(SWIN_IGNORED, name)}

    own = backbone.state_dict()
    resized = [name for name, value in state.items() if name.endswith("relative_position_bias_table")
               and name in own and is_resizable(value, own[name])]
    for name in resized:
        state[name] = resize_bias_table(state[name], own[name].shape[0])
    fresh = [name for name in own if name not in state and re.search(SWIN_STARTS_FRESH, name)]
    whole = {**state, **{name: own[name] for name in fresh}}
    refuse_misfits(whole, own, f"--pretrained_swin_weights {path}", suggestion(state, own))
    backbone.load_state_dict(whole)
    return (f"Swin weights from {path}: {len(state)} entries loaded, {len(resized)} bias tables resized to this "
            f"window, {len(fresh)} entries start fresh (fusion, gates, output norms)")


def is_resizable(table: Any, own: Tensor) -> bool:
    """Whether `table` is that of another window and otherwise like `own`."""
    return (not misfit(table, own) and table.dim() == 2 and table.shape[0] != own.shape[0]
            and table.shape[1] == own.shape[1] and round(table.shape[0] ** 0.5) ** 2 == table.shape[0])


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """A ((2w − 1)², heads) table for another window: a (heads, 2w − 1, 2w − 1) picture, resized bicubically."""
    old_side, new_side = round(table.shape[0] ** 0.5), round(rows ** 0.5)
    picture = table.T.reshape(1, table.shape[1], old_side, old_side)
    picture = F.interpolate(picture, (new_side, new_side), mode="bicubic", align_corners=False)
    return picture.flatten(2)[0].T.contiguous()

"""Initialisation of the backbone with Swin's classification weights."""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lib.checkpoint.files import read_checkpoint, read_safetensors
from lib.checkpoint.strict_loading import OF_TIMM, State, misfit, refuse_misfits, suggestion
from lib.timm_backbone import TimmBackbone
from transforms import IMAGENET_MEAN, IMAGENET_STD
from utils import UserError, hub

FLAG = "--pretrained_swin_weights"
TIMM = "timm:"   # prefix of the name of timm's pretrained model
TIMM_EXAMPLE = "timm:swin_base_patch4_window12_384.ms_in22k"
TIMM_FILE = "model.safetensors"

# Entries of the backbone that Swin's classification files lack, and entries of these files that it does not need.
SWIN_STARTS_FRESH = r"^(stages\.\d+\.(fusion|language_gate|visual_gate|intra_scale|alignment)|norms\.\d+)\."
SWIN_IGNORED = r"^(norm|head)\.|\.(attn_mask|relative_position_index)$"


def load_swin_weights(backbone: nn.Module, source: str | Path) -> str:
    """Loads Swin classification weights into the backbone; returns one line for the log on the entries loaded.

    `source` is `timm:NAME` or a file, `.pth` or `.safetensors`, in the original layout or timm's. The weights may be in
    an entry `model` or `state_dict`, and their names may begin with `module.`, `backbone.` or (MoBY) `encoder.`. Bias
    tables of another window are resized bicubically. Raises `UserError` if the weights cannot be obtained or belong to
    another variant.
    """
    if isinstance(backbone, TimmBackbone):
        return load_timm_weights(backbone, str(source))
    if "swin_s3_" in str(source):
        raise UserError(f"{FLAG} {source}: Swin-S3 has another window in each stage, which no --swin_type has; give "
                        f"another Swin, for example {TIMM_EXAMPLE}")
    given = read_swin_weights(str(source))
    state = {re.sub(r"^layers\.", "stages.", name): value for name, value in given.items()
             if not re.search(SWIN_IGNORED, name)}

    own = backbone.state_dict()
    resized = [name for name, value in state.items() if name.endswith("relative_position_bias_table")
               and name in own and is_resizable(value, own[name])]
    for name in resized:
        state[name] = resize_bias_table(state[name], own[name].shape[0])
    fresh = [name for name in own if name not in state and re.search(SWIN_STARTS_FRESH, name)]
    whole = {**state, **{name: own[name] for name in fresh}}
    refuse_misfits(whole, own, f"{FLAG} {source}", suggestion(state, own))
    backbone.load_state_dict(whole)
    return (f"Swin weights from {source}: {len(state)} entries loaded, {len(resized)} bias tables resized to this "
            f"window, {len(fresh)} entries start fresh (fusion, gates, output norms)")


def load_timm_weights(backbone: TimmBackbone, source: str) -> str:
    """`load_swin_weights` for a model of timm's, from `timm:NAME` or a file in timm's layout or its authors'."""
    name = source.removeprefix(TIMM)
    if source != name and not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"{FLAG} {source}: names of timm's are like {TIMM}{backbone.name}")
    state = backbone.from_timm(read_timm(name) if source != name else read_published(source), f"{FLAG} {source}")
    own = backbone.state_dict()
    fresh = [name for name in own if name not in state and not OF_TIMM.search(name)]
    whole = {**state, **{name: own[name] for name in fresh}}
    refuse_misfits(whole, own, f"{FLAG} {source}", suggestion(state, own))
    backbone.load_state_dict(whole)
    return (f"weights of {TIMM}{backbone.name} from {source}: {len(state)} entries loaded, {len(fresh)} start fresh "
            "(fusion, gates, output norms)" + (note_on_colours(name) if source != name else ""))


def note_on_colours(name: str) -> str:
    """A note for the log if timm's pretrained model was trained on images that were normalised otherwise than here."""
    import timm
    try:
        facts = timm.get_pretrained_cfg(name)
    except RuntimeError:   # the hub has the weights, but this version of timm does not know them
        facts = None
    if facts is None or (facts.mean, facts.std) == (tuple(IMAGENET_MEAN), tuple(IMAGENET_STD)):
        return ""
    return f"; it was trained on images of mean {facts.mean} and deviation {facts.std}, unlike ImageNet's here"


def read_swin_weights(source: str) -> State:
    """The entries of a file or of `timm:NAME` under the names of the original Swin, without any prefix.

    Raises `UserError` if the source cannot be read or holds no named weights.
    """
    if source.startswith(TIMM):
        name = source.removeprefix(TIMM)
        if not re.fullmatch(r"swin_(tiny|small|base|large)_[\w.]+", name):
            raise UserError(f"{FLAG} {source}: not one of timm's swin_tiny_…, swin_small_…, swin_base_… and "
                            f"swin_large_…; the default weights are {TIMM_EXAMPLE} there")
        return from_timm(read_timm(name))
    published = read_published(source)
    for prefix in ("module.", "encoder.", "backbone."):
        if any(name.startswith((prefix + "patch_embed.", prefix + "encoder.")) for name in published):
            published = {name.removeprefix(prefix): value for name, value in published.items()
                         if name.startswith(prefix)}
    return from_timm(published)


def read_published(source: str) -> State:
    """The entries of a classification checkpoint. Raises `UserError` if it cannot be read or holds no named weights."""
    if not Path(source).is_file():
        raise UserError(f"{FLAG} {source} does not exist; pretrained_weights/README.md says where to get it, "
                        f"{FLAG} {TIMM_EXAMPLE} fetches the same weights by name, and {FLAG} '' starts from random "
                        "weights")
    content = read_checkpoint(source)
    published = content.get("model", content.get("state_dict", content))
    if not isinstance(published, dict):
        raise UserError(f"{FLAG} {source}: its weights are a {type(published).__name__}, not a dict")
    if not all(isinstance(name, str) for name in published):
        raise UserError(f"{FLAG} {source}: its entries are not named, so they are no weights")
    return published


def read_timm(name: str) -> State:
    """The weights of timm's pretrained model `name`, from this machine's cache of the hub or else from the hub."""

    def read(local_only: bool) -> State:
        if local_only:   # without timm, whose import takes seconds
            from huggingface_hub import hf_hub_download
            return read_safetensors(hf_hub_download(f"timm/{name}", TIMM_FILE, local_files_only=True))
        from timm.models import load_state_dict_from_hf
        return load_state_dict_from_hf(f"timm/{name}", TIMM_FILE)

    return hub.load(FLAG, TIMM + name, read, "neither this machine's cache nor the Hugging Face hub provided it; check "
                    f"the name, which is like {TIMM_EXAMPLE}, or give a file (pretrained_weights/README.md)")


def from_timm(state: Mapping[str, Tensor]) -> State:
    """Renames timm's entries to the original names; other entries and all values stay the same.

    timm merges patches at the start of a stage, the original Swin at the end of the previous one.
    """
    reduction = "layers.{}.downsample.reduction.weight"
    if reduction.format(3) not in state or reduction.format(0) in state:
        return dict(state)
    return {re.sub(r"^layers\.(\d+)(?=\.downsample\.)", lambda found: f"layers.{int(found[1]) - 1}", name): value
            for name, value in state.items()}


def is_resizable(table: Any, own: Tensor) -> bool:
    """Whether `table` is a bias table like `own` for another window."""
    return (not misfit(table, own) and table.dim() == 2 and table.shape[0] != own.shape[0]
            and table.shape[1] == own.shape[1] and round(table.shape[0] ** 0.5) ** 2 == table.shape[0])


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """Resizes a ((2w − 1)², heads) bias table to `rows` rows, as a bicubic (heads, 2w − 1, 2w − 1) image."""
    old_side, new_side = round(table.shape[0] ** 0.5), round(rows ** 0.5)
    picture = table.T.reshape(1, table.shape[1], old_side, old_side)
    picture = F.interpolate(picture, (new_side, new_side), mode="bicubic", align_corners=False)
    return picture.flatten(2)[0].T.contiguous()

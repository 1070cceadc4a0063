"""timm's hierarchical models as the backbone, with fusion, gates and intra-scale branches as in lib/backbone.py.

timm computes the map of a stage; the map with its gated branches is the input of timm's next stage, which begins with
the downsampling.

Shapes: B batch, S S' the image, H W a stage's map, C its channels, N words, L channels of a word vector. Between stages
maps are channels-last, (B, H, W, C); inside a stage they have timm's order.
"""
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.backbone import Backbone, Stage
from lib.object_position import Phrases
from lib.pwam import Gate
from lib.swin import init_swin_weights, no_weight_decay
from utils import UserError

TESTED = "swin_…, swinv2_…, convnext_…, convnextv2_…, resnet…, mambaout_…"
STRIDES = [4, 8, 16, 32]   # pixels of the image per token of the four maps
# Given to each family that has them: images of any size, and windows that keep their size on maps that are smaller.
SETTINGS: dict[str, Any] = {"strict_img_size": False, "always_partition": True}

Modules = dict[str, nn.Module]   # a stage's modules by name, each of which reads the output of the one before
Parts = Callable[[int], tuple[nn.Module, nn.Module | None, nn.Module | None]]


@dataclass(frozen=True)
class Plan:
    """What timm says about a model: its channels per stage, its arguments, and the whole model without memory."""

    name: str
    dims: list[int]
    settings: dict[str, Any]
    whole: nn.Module
    has_drop_path: bool
    channels_last: bool
    stages: list[Modules]


def refusal(name: str, reason: str) -> UserError:
    """The error for a name that is no backbone; `reason` completes the sentence."""
    return UserError(f"--backbone timm:{name}: {reason}; a backbone has four stages at strides 4, 8, 16 and 32, and "
                     f"these families are tested: {TESTED}")


def in_a_line(error: Exception) -> str:
    """The beginning of an error's message, without the full stop of a sentence; its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


@cache
def plan(name: str) -> Plan:
    """The plan of timm's model `name`, of which no weights are made. Raises `UserError` if it is no backbone."""
    import timm
    if not timm.is_model(name):
        close = get_close_matches(name.split(".")[0], timm.list_models(), 3)
        raise refusal(name, f"timm {timm.__version__} has no such model" + (
            f" (but {', '.join(close)})" if close else ""))
    try:
        with torch.device("meta"):
            whole: Any = timm.create_model(name)
            accepted = signature(type(whole).__init__).parameters
            settings = {setting: value for setting, value in SETTINGS.items() if setting in accepted}
            whole = timm.create_model(name, **settings) if settings else whole
            info = list(whole.feature_info)
            places = [place for place, entry in enumerate(info) if entry["reduction"] >= STRIDES[0]]
            strides = [info[place]["reduction"] for place in places]
            if strides != STRIDES:
                raise ValueError(f"its features have the strides {', '.join(map(str, dict.fromkeys(strides)))}")
            settings = {**settings, "features_only": True, "out_indices": tuple(places)}
            features = timm.create_model(name, **settings).eval()
            stages = list(split_stages(features))
    except Exception as error:   # of any kind, by the code of a thousand models
        raise refusal(name, in_a_line(error)) from error
    return Plan(name, [info[place]["num_chs"] for place in places], settings, whole, "drop_path_rate" in accepted,
                getattr(features, "output_fmt", "NCHW") == "NHWC", stages)


def split_stages(features: nn.Module) -> Iterator[Modules]:
    """The modules of each stage of a model that timm made with `features_only`, the stem with the first stage."""
    from timm.models import FeatureListNet
    if not isinstance(features, FeatureListNet):
        raise ValueError("timm does not give its stages as modules that follow each other")
    stage: Modules = {}
    for name, module in features.items():
        stage[name] = module
        if name in features.return_layers:
            yield stage
            stage = {}


@cache
def try_size(name: str, side: int) -> None:
    """Raises `UserError` if the model does not compute its four maps of images of `side` pixels; on no memory."""
    known, x = plan(name), torch.empty(1, 3, side, side, device="meta")
    try:
        for stage, dim, stride in zip(known.stages, known.dims, STRIDES, strict=True):
            for module in stage.values():
                x = module(x)
            place = side // stride
            if x.shape != ((1, place, place, dim) if known.channels_last else (1, dim, place, place)):
                raise ValueError(f"its map at stride {stride} is {tuple(x.shape)}")
    except Exception as error:   # of any kind, by the code of a thousand models
        raise refusal(name, f"it does not read images of {side} px, {in_a_line(error)}") from error


class ReadLinear(nn.Linear):
    """A linear layer of which another module reads the weight, so that no faster class may take its place."""


class TimmStage(Stage):
    """timm's modules of a stage, followed by the language (and intra-scale, and alignment) of lib/backbone.py.

    `first` marks the stage that reads the image, `last` the one after which nothing reads x.
    """

    def __init__(self, modules: Modules, fusion: nn.Module, intra_scale: nn.Module | None, alignment: nn.Module | None,
                 dim: int, first: bool, last: bool, channels_last: bool):
        nn.Module.__init__(self)   # the constructor of Stage makes Swin's parts
        self.timm = nn.ModuleDict(modules)
        self.fusion = fusion
        self.language_gate = Gate(dim).apply(init_swin_weights)
        self.intra_scale = intra_scale
        self.visual_gate = Gate(dim).apply(init_swin_weights) if intra_scale is not None else None
        self.alignment = alignment
        self.first, self.last, self.channels_last = first, last, channels_last
        if last:
            for unused in (self.language_gate, self.intra_scale, self.visual_gate, self.alignment):
                if unused is not None:
                    unused.requires_grad_(False)

    @property
    def blocks(self) -> list[nn.Module]:  # type: ignore[override]
        """timm's blocks, without those with BatchNorm: computing activations again would move its statistics."""
        blocks = [block for module in self.timm.values() for block in getattr(module, "blocks", [])]
        return [block for block in blocks if not any(isinstance(part, _BatchNorm) for part in block.modules())]

    def forward(self, x: Tensor, words: Tensor, word_mask: Tensor,
                phrases: Phrases | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C), or the image (B, 3, S, S') for the first stage -> fused features (B, H', W', C'), next x

        The other arguments are as in lib/backbone.py. The next x is None after the last stage.
        """
        x = self.visual(x)
        fused = self.fusion(x.flatten(1, 2), words, word_mask).view(x.shape)
        return fused, None if self.last else self.update(x, fused, phrases)

    def visual(self, x: Tensor) -> Tensor:
        """timm's part of `forward`: a map of ⌈S/4⌉ × ⌈S'/4⌉ tokens first, then of half as many per side, rounded up."""
        if self.first:
            height, width = x.shape[-2:]
            x = F.pad(x, (0, -width % STRIDES[0], 0, -height % STRIDES[0]))
        else:
            height, width = x.shape[1:3]
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
            x = x if self.channels_last else x.permute(0, 3, 1, 2)
        for module in self.timm.values():
            x = module(x)
        return x if self.channels_last else x.permute(0, 2, 3, 1)


class TimmBackbone(Backbone):
    """As lib/backbone.py's, with stages of timm's model `name`."""

    def __init__(self, name: str, stages: list[TimmStage], dims: list[int]):
        super().__init__(nn.Identity(), list(stages), dims)  # type: ignore[arg-type]   # the first stage has the stem
        self.name = name

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that AdamW does not decay.

        Of timm's parameters these are the ones that timm's optimisers do not decay: biases, others of one dimension,
        and those that the model declares. Of the other parameters they are this project's, LayerNorms.
        """
        whole = plan(self.name).whole
        declared: Callable[[], set[str]] = getattr(whole, "no_weight_decay", set)
        exempt = {key(name) for name in declared()}
        parameters = dict(self.named_parameters())
        return no_weight_decay(self) | {name for timms, name in self.timm_entries().items() if name in parameters
                                        and (parameters[name].dim() <= 1 or timms in exempt)}

    def timm_entries(self) -> dict[str, str]:
        """{`key` of timm's name: name here} of all parameters and buffers of timm's modules."""
        names = [*dict(self.named_parameters()), *dict(self.named_buffers())]
        return {key(name.split(".timm.", 1)[1]): name for name in names if ".timm." in name}

    def from_timm(self, given: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The entries of a classification model's file under their names here; unknown ones keep their names.

        The file has timm's layout, or another one that timm translates, such as the model's authors'. Entries of
        modules after the last stage, such as the classifier, are left out. Tables of positions are resized if timm
        does so. Raises `UserError`, which names `source`, if timm cannot translate the file.
        """
        whole = plan(self.name).whole
        translate = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", lambda state, _: state)
        try:
            state = translate(dict(given), whole)
        except Exception as error:   # of any kind, by the code of a thousand models
            raise UserError(f"{source}: these are not the entries of timm:{self.name} ({type(error).__name__}: "
                            f"{in_a_line(error)})") from error
        own, known = self.timm_entries(), {key(name) for name in whole.state_dict()}
        return {own.get(key(name), name): value for name, value in state.items()
                if key(name) in own or key(name) not in known}


def key(name: str) -> str:
    """timm's name of an entry as it is compared: timm joins the first two of its parts by _ where it splits a model."""
    return name.replace(".", "_")


def timm_backbone(name: str, drop_path: float, side: int, parts: Parts) -> TimmBackbone:
    """The backbone of timm's model `name` with fresh weights; `parts(stage)` makes fusion, intra-scale and alignment.

    `drop_path` is the rate of the last block, `side` the image's side in pixels that the network is made for. Raises
    `UserError` if the model is no backbone.
    """
    import timm
    known = plan(name)
    try_size(name, -(-side // STRIDES[-1]) * STRIDES[-1])
    if drop_path and not known.has_drop_path:
        raise refusal(name, f"it has no drop path, and --drop_path is {drop_path}")
    rate: dict[str, Any] = {"drop_path_rate": drop_path} if known.has_drop_path else {}
    features = timm.create_model(name, **known.settings, **rate)
    for module in features.modules():
        if hasattr(module, "qkv_bias_separate"):   # the attention of Swin V2
            module.qkv.__class__ = ReadLinear
    last = len(known.dims) - 1
    stages = [TimmStage(modules, *parts(stage), dim=known.dims[stage], first=stage == 0, last=stage == last,
                        channels_last=known.channels_last) for stage, modules in enumerate(split_stages(features))]
    return TimmBackbone(name, stages, known.dims)

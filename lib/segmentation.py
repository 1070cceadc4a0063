"""Tables of models, Swin variants and parts; the settings of a network; the function that builds it.

This module imports torch only when a network is built, so that the scripts answer --help and wrong flags at once.
"""
from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from schema import Range, Rule, check
from utils import UserError

if TYPE_CHECKING:
    from torch import nn

    from lib.backbone import Backbone
    from lib.model import ReferringSegmenter

    # Makes fusion, intra-scale and alignment of a stage, by its number from 0.
    StageParts = Callable[[int], tuple[nn.Module, nn.Module | None, nn.Module | None]]

LARGEST_IMAGE_PX = 4096  # largest side of a network's input
LARGEST_RANK = 256       # of an adapter
STRIDE = 32  # pixels of the image per token of the coarsest map
SWIN, TIMM = "swin", "timm:"   # backbones: this project's Swin, and the prefix of a name of timm's
BACKBONE = re.compile(rf"{SWIN}|{TIMM}[\w.-]{{1,100}}")
DROP_PATH = 0.3   # of all backbones but nano


@dataclass(frozen=True)
class SwinVariant:
    """A row of the table: channels of the first stage, blocks and heads of each stage, window, drop path rate."""

    dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    drop_path: float = DROP_PATH

    @property
    def dims(self) -> list[int]:
        """Channels of each stage."""
        return [self.dim * 2 ** stage for stage in range(len(self.depths))]

    @property
    def drop_path_rates(self) -> list[float]:
        """The drop path rate of each block: a linear rise from 0 to `drop_path` over all blocks."""
        last = sum(self.depths) - 1
        return [self.drop_path * block / last for block in range(last + 1)]


SWIN_VARIANTS = {
    "nano": SwinVariant(32, (2, 2, 2, 2), (1, 2, 4, 8), window=4, drop_path=0.0),  # for demo and tests
    "tiny": SwinVariant(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": SwinVariant(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": SwinVariant(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": SwinVariant(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


@dataclass(frozen=True)
class Part:
    """A row of `PARTS`. Its `source`, FILE:NAME, is a class or a factory function in lib/; None stands for no part.

    The weights of a `fixed_size` part fit one image size, a multiple of `STRIDE`. A network with a part that
    `reads_phrases` needs the masks of each sentence's phrases.
    """

    source: str | None
    fixed_size: bool = False
    reads_phrases: bool = False

    def load(self) -> Callable[..., Any]:
        """The class or function that makes the module; without a part, a function that returns None."""
        if self.source is None:
            return lambda: None
        file, name = self.source.split(":")
        return getattr(import_module(f"lib.{file}"), name)

    def make(self, **sizes: Any) -> Any:
        """The module; its maker receives those of the `sizes` that are names of its arguments."""
        maker = self.load()
        return maker(**{name: sizes[name] for name in signature(maker).parameters if name in sizes})


# The parts available for each place of the network. A place is also a flag, whose choices are the parts' names.
PARTS: dict[str, dict[str, Part]] = {
    "fusion": {
        "pwam": Part("pwam:PixelWordAttention"),
    },
    "intra_scale": {
        "none": Part(None),
        "iim": Part("iim:IntraScale"),
    },
    "alignment": {
        "none": Part(None),
        "object_position": Part("object_position:ObjectPositionAlignment", reads_phrases=True),
    },
    "cross_scale": {
        "none": Part(None),
        "cim": Part("cim:cim", fixed_size=True),
        "tmem": Part("tmem:tmem"),
        "lgce": Part("lgce:GuidedBlocks"),
    },
    "decoder_conv": {
        "plain": Part("decoder:plain_conv"),
        "arc": Part("arc:AdaptiveRotatedConv"),
    },
}

# Where the state dict keeps the entries of each place.
ENTRIES = {"fusion": r"backbone\.stages\.\d+\.fusion\.", "cross_scale": r"cross_scale\.",
           "alignment": r"backbone\.stages\.\d+\.alignment\.",
           "intra_scale": r"backbone\.stages\.\d+\.(intra_scale|visual_gate)\.",
           "decoder_conv": r"decoder\.levels\.\d+\.conv2\."}

# The parts of each model. `lavt` and `lavt_one` are the same network; their original checkpoints have two layouts.
LAVT = {"fusion": "pwam", "intra_scale": "none", "alignment": "none", "cross_scale": "none", "decoder_conv": "plain"}
MODELS: dict[str, dict[str, str]] = {
    "rmsin": {**LAVT, "intra_scale": "iim", "cross_scale": "cim", "decoder_conv": "arc"},
    "lavt": LAVT,
    "lavt_one": LAVT,
    "lgce": {**LAVT, "cross_scale": "lgce"},
    "fianet": {**LAVT, "alignment": "object_position", "cross_scale": "tmem"},
}

NUM_TMEM = 3   # blocks, as for RRSIS-D
MAX_TOKENS = {"fianet": 22}   # of a sentence, for models whose original code has other than 20

# Settings that are not written, so that code from before they existed reads the files of networks without them.
LEFT_OUT = (("backbone", SWIN), ("drop_path", None), ("text_lora", 0))
FLAGS = {"window": "window12", "fusion_heads": "mha", "text": "ck_bert"}   # of fields whose flag has another name


Heads = Annotated[int, Range(1, 1024)]


@dataclass(frozen=True)
class ModelConfig:
    """All settings that are needed to build a network, as plain data; a checkpoint contains them.

    `text` is the text encoder's configuration from `bert.plain_config`, which `bert.text_config` checks and reads.
    `class_names` are the names that a network with `reads_phrases` looks for in sentences (`bert.phrases`). A part that
    is '' becomes the model's default. `swin_type` and `window` belong to the backbone `swin`. Every other field has a
    flag (see `flag_of`), which must not change in a resumed run.
    """

    # A type checker cannot read the names of a table in `Literal`; schema.py does, when a checkpoint is checked.
    model: Literal[tuple(MODELS)]  # type: ignore[valid-type]
    swin_type: Literal[tuple(SWIN_VARIANTS)]  # type: ignore[valid-type]
    window: Annotated[int, Range(1, 32)]
    img_size: Annotated[int, Range(1, LARGEST_IMAGE_PX)]
    fusion_heads: tuple[Heads, Heads, Heads, Heads]
    fusion_drop: Annotated[float, Range(0, 1)]
    text: dict[str, Any]
    fusion: Literal[("", *PARTS["fusion"])] = ""  # type: ignore[valid-type]
    intra_scale: Literal[("", *PARTS["intra_scale"])] = ""  # type: ignore[valid-type]
    cross_scale: Literal[("", *PARTS["cross_scale"])] = ""  # type: ignore[valid-type]
    decoder_conv: Literal[("", *PARTS["decoder_conv"])] = ""  # type: ignore[valid-type]
    max_tokens: Annotated[int, Range(2, 512)] = 20
    alignment: Literal[("", *PARTS["alignment"])] = ""  # type: ignore[valid-type]
    num_tmem: Annotated[int, Range(1, 64)] = NUM_TMEM   # blocks of TMEM; other networks have none
    class_names: tuple[Annotated[str, Range(1, 200)], ...] = ()
    backbone: Annotated[str, Rule(BACKBONE.fullmatch, f"{SWIN} or {TIMM}NAME")] = SWIN
    drop_path: Annotated[float, Range(0, 1)] | None = None   # None: the Swin variant's, or DROP_PATH
    text_lora: Annotated[int, Range(0, LARGEST_RANK)] = 0   # rank of the text encoder's adapters; 0: none
    closed: ClassVar[bool] = True   # see schema.py: an unknown setting might change the network

    def __post_init__(self) -> None:
        for place, name in MODELS[self.model].items():
            if not getattr(self, place):
                object.__setattr__(self, place, name)

    @classmethod
    def from_args(cls, args: Namespace) -> ModelConfig:
        """The settings that the flags describe, with the configuration of `--text_encoder` or `--ck_bert`.

        Raises `UserError` if the text encoder cannot be found.
        """
        from bert import config_from_flags, plain_config
        return cls(**settings_of(args), text=plain_config(config_from_flags(args)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises `UserError` if `values` describes no network."""
        from bert import text_config
        check(cls, values, "the checkpoint's config")
        text_config(values["text"], "the checkpoint's config, text")
        return cls(**{**values, "fusion_heads": tuple(values["fusion_heads"]),
                      "class_names": tuple(values.get("class_names", ()))})

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, for a checkpoint or JSON."""
        values = {**asdict(self), "fusion_heads": list(self.fusion_heads), "class_names": list(self.class_names)}
        return {name: value for name, value in values.items() if (name, value) not in LEFT_OUT}

    def part(self, place: str) -> Part:
        """The row of `PARTS` that this network has in a place."""
        return PARTS[place][getattr(self, place)]

    @property
    def reads_phrases(self) -> bool:
        """Whether the network needs phrase masks, `model(image, token_ids, token_mask, phrase_masks)`."""
        return any(self.part(place).reads_phrases for place in PARTS)


def flag_of(field: str) -> str:
    """The name of the flag, in the namespace, that sets a field of `ModelConfig`."""
    return FLAGS.get(field, field)


NETWORK_FLAGS = tuple(flag_of(field.name) for field in fields(ModelConfig)
                      if field.name not in ("text", "class_names"))


def settings_of(args: Namespace) -> dict[str, Any]:
    """The fields of `ModelConfig` that the flags set, which are all but `text` and `class_names`."""
    return {"model": args.model, "swin_type": args.swin_type, "window": window_of(args), "img_size": args.img_size,
            "fusion_heads": fusion_heads(args.mha), "fusion_drop": args.fusion_drop,
            "max_tokens": getattr(args, "max_tokens", 20), "num_tmem": args.num_tmem or NUM_TMEM,
            "backbone": args.backbone, "drop_path": args.drop_path, "text_lora": args.text_lora,
            **{place: getattr(args, place) for place in PARTS}}


def flags_of(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `settings_of`: {flag: value}, by the flags' names in the namespace."""
    heads = "" if set(config.fusion_heads) == {1} else "-".join(map(str, config.fusion_heads))
    changed = {"mha": heads, "window12": config.window == 12}
    return {flag: changed.get(flag, getattr(config, field.name, None)) for field in fields(ModelConfig)
            if (flag := flag_of(field.name)) in NETWORK_FLAGS}


def window_of(args: Namespace) -> int:
    """Side of the attention window: 12 with `--window12` or window12 in the Swin file's path, else the variant's."""
    if args.window12 or "window12" in (args.pretrained_swin_weights or ""):
        return 12
    return SWIN_VARIANTS[args.swin_type].window


def fusion_heads(mha: str) -> tuple[int, ...]:
    """PWAM's heads in the four stages, from `--mha`: '' means one each, 'a-b-c-d' one number for each stage."""
    return tuple(int(number) for number in mha.split("-")) if mha else (1, 1, 1, 1)


def build(config: ModelConfig) -> ReferringSegmenter:
    """The network that `config` describes, with fresh weights. Raises `UserError` if its numbers do not fit."""
    from bert import add_adapters, make_text_encoder, text_config
    from lib.decoder import Decoder
    from lib.model import ReferringSegmenter

    dims, fixed_size = dims_of(config), config.part("cross_scale").fixed_size
    if fixed_size and config.img_size % STRIDE:
        raise UserError(f"--img_size {config.img_size}: {config.model} needs a multiple of {STRIDE}")
    for dim, heads in zip(dims, config.fusion_heads, strict=True):
        if dim % heads:
            raise UserError(f"--mha asks for {heads} heads in a stage of {dim} channels, which {heads} does not divide")
    text_encoder = make_text_encoder(text_config(config.text, "the text encoder's configuration"))
    if config.text_lora:
        add_adapters(text_encoder.network, text_encoder.layers, config.text_lora)

    def parts(stage: int) -> tuple[nn.Module, nn.Module | None, nn.Module | None]:
        fusion, intra_scale, alignment = (
            config.part(place).make(dim=dims[stage], text_dim=text_encoder.dim, heads=config.fusion_heads[stage],
                                    dropout=config.fusion_drop) for place in ("fusion", "intra_scale", "alignment"))
        return fusion, intra_scale, alignment

    backbone = swin_backbone(config, parts) if config.backbone == SWIN else backbone_of_timm(config, parts)
    cross_scale = config.part("cross_scale").make(dims=dims, side=config.img_size // STRIDE,
                                                  text_dim=text_encoder.dim, num_tmem=config.num_tmem)
    decoder = Decoder(dims, config.part("decoder_conv").load())
    return ReferringSegmenter(text_encoder, backbone, decoder, cross_scale, config.img_size if fixed_size else None,
                              config.reads_phrases)


def dims_of(config: ModelConfig) -> list[int]:
    """The channels of the backbone's four stages. Raises `UserError` for a name that is no backbone of timm's."""
    if config.backbone == SWIN:
        return SWIN_VARIANTS[config.swin_type].dims
    from lib.timm_backbone import plan
    return plan(config.backbone.removeprefix(TIMM)).dims


def swin_backbone(config: ModelConfig, parts: StageParts) -> Backbone:
    """This project's Swin; `parts(stage)` makes fusion, intra-scale and alignment of each stage."""
    from lib.backbone import Backbone, Stage
    from lib.swin import PatchEmbed, SwinBlock

    variant = SWIN_VARIANTS[config.swin_type]
    if config.drop_path is not None:
        variant = replace(variant, drop_path=config.drop_path)
    patch_embed, stages, rates = PatchEmbed(variant.dims[0]), [], iter(variant.drop_path_rates)
    for number, dim in enumerate(variant.dims):
        blocks = [SwinBlock(dim, variant.heads[number], config.window, shifted=place % 2 == 1, drop_path=next(rates))
                  for place in range(variant.depths[number])]
        stages.append(Stage(blocks, *parts(number), dim, last=number == len(variant.dims) - 1))
    return Backbone(patch_embed, stages, variant.dims)


def backbone_of_timm(config: ModelConfig, parts: StageParts) -> Backbone:
    """A model of timm's with the same parts."""
    from lib.timm_backbone import plan, timm_backbone
    name, rate = config.backbone.removeprefix(TIMM), config.drop_path
    if rate is None:
        rate = DROP_PATH if plan(name).has_drop_path else 0.0
    return timm_backbone(name, rate, config.img_size, parts)


def build_model(args: Namespace) -> ReferringSegmenter:
    """The network that the flags describe, with fresh weights: `model(image, token_ids, token_mask) -> logits`.

    One that `reads_phrases` is called as `model(image, token_ids, token_mask, phrase_masks)`.
    """
    return build(ModelConfig.from_args(args))

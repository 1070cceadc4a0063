"""The table of variants and the one builder. The only file of `lib/` that reads command-line arguments."""
from argparse import Namespace
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import Tokenizer
from torch import nn

from bert import BertConfig, TextEncoder, load_text_config, load_tokenizer, tokenizer_from_text
from lib.accelerate.winograd import Conv3x3
from lib.backbone import Backbone
from lib.cross_scale import CrossScale
from lib.decoder import Decoder
from lib.model import ReferringSegmenter
from lib.rotated_conv import AdaptiveRotatedConv
from utils import UserError

MODELS = ("rmsin", "lavt", "lavt_one")
STRIDE = 32  # pixels of the image per token of the coarsest map


@dataclass(frozen=True)
class SwinVariant:
    """A row of the table: width of the first stage, blocks and heads of each stage, window, drop path's rate."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    drop_path: float = 0.3


SWIN_VARIANTS = {
    "nano": SwinVariant(32, (2, 2, 2, 2), (1, 2, 4, 8), window=4, drop_path=0.0),  # for the demo and the tests
    "tiny": SwinVariant(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": SwinVariant(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": SwinVariant(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": SwinVariant(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


@dataclass(frozen=True)
class ModelConfig:
    """All that it takes to build a network again, as plain data; a checkpoint carries it.

    `text` is the text encoder's configuration as `BertConfig.to_diff_dict` gives it.
    """

    model: str
    swin_type: str
    window: int
    img_size: int
    fusion_heads: tuple[int, ...]
    fusion_drop: float
    text: dict[str, Any]

    @classmethod
    def from_args(cls, args: Namespace) -> "ModelConfig":
        """What the flags ask for; reads the text encoder's config.json when `--ck_bert` is a folder.

        Raises `UserError` for a text encoder that cannot be found.
        """
        return cls(model=args.model, swin_type=args.swin_type, window=window_of(args), img_size=args.img_size,
                   fusion_heads=fusion_heads(args.mha), fusion_drop=args.fusion_drop,
                   text=load_text_config(args.ck_bert).to_diff_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`."""
        return cls(**{**values, "fusion_heads": tuple(values["fusion_heads"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain data only, fit for a checkpoint or JSON."""
        return {**asdict(self), "fusion_heads": list(self.fusion_heads)}


def window_of(args: Namespace) -> int:
    """Side of the attention window: 12 when `--window12` or the Swin file's path says so, else the variant's."""
    if args.window12 or "window12" in (args.pretrained_swin_weights or ""):
        return 12
    return SWIN_VARIANTS[args.swin_type].window


def fusion_heads(mha: str) -> tuple[int, ...]:
    """PWAM's heads in the four stages, from `--mha`: '' is one each, 'a-b-c-d' one number a stage."""
    return tuple(int(number) for number in mha.split("-")) if mha else (1, 1, 1, 1)


def build(config: ModelConfig) -> ReferringSegmenter:
    """The network that `config` describes, with fresh weights."""
    variant = SWIN_VARIANTS[config.swin_type]
    is_rmsin = config.model == "rmsin"
    if is_rmsin and config.img_size % STRIDE:
        raise UserError(f"--img_size {config.img_size}: rmsin needs a multiple of {STRIDE}")
    widths = [variant.width * 2 ** stage for stage in range(len(variant.depths))]
    for width, heads in zip(widths, config.fusion_heads, strict=True):
        if width % heads:
            raise UserError(f"--mha asks for {heads} heads in a stage of {width} channels, which it does not divide")

    text_encoder = TextEncoder(BertConfig.from_dict(config.text))
    backbone = Backbone(widths, list(variant.depths), list(variant.heads), config.window, text_encoder.width,
                        list(config.fusion_heads), config.fusion_drop, is_rmsin, variant.drop_path)
    cross_scale = CrossScale(widths, config.img_size // STRIDE) if is_rmsin else None
    decoder = Decoder(widths, AdaptiveRotatedConv if is_rmsin else Conv3x3)
    return ReferringSegmenter(text_encoder, backbone, decoder, cross_scale, config.img_size if is_rmsin else None)


def build_model(args: Namespace) -> nn.Module:
    """The network that the flags describe, with fresh weights: `model(image, token_ids, token_mask) -> logits`."""
    return build(ModelConfig.from_args(args))


def describe_model(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a checkpoint says of its network, so that nothing else is needed to build and feed it again."""
    return {"config": config.to_dict(), "tokenizer": tokenizer.to_str()}


def model_settings(args: Namespace | None, checkpoint: dict[str, Any]) -> tuple[ModelConfig, Tokenizer]:
    """The network's settings and tokenizer: those that `checkpoint` carries, or else those that the flags name.

    Raises `UserError` when a flag contradicts the checkpoint, when neither says what is needed, and
    when the tokenizer knows more words than the text encoder.
    """
    if args is None and not {"config", "tokenizer"} <= checkpoint.keys():
        raise UserError("the checkpoint does not say what network and tokenizer it belongs to, as published ones do "
                        "not: give the flags that describe it (args.py)")
    if "config" in checkpoint:
        config = ModelConfig.from_dict(checkpoint["config"])
        if args:
            refuse_contradictions(args, config)
    else:
        config = ModelConfig.from_args(args)
        refuse_other_heads(config, checkpoint.get("args"))
    if "tokenizer" in checkpoint:
        return config, tokenizer_from_text(checkpoint["tokenizer"])
    tokenizer = load_tokenizer(args.bert_tokenizer)
    words = BertConfig.from_dict(config.text).vocab_size
    if tokenizer.get_vocab_size() > words:
        raise UserError(f"--bert_tokenizer {args.bert_tokenizer} has {tokenizer.get_vocab_size()} tokens, more than "
                        f"the {words} of the text encoder: give the tokenizer that belongs to it")
    return config, tokenizer


def refuse_other_heads(config: ModelConfig, saved: Any) -> None:
    """Raises `UserError` if a published file's saved flags, where it has them, name other heads of PWAM than `config`.

    Weights do not show their heads: with others they load and give wrong masks.
    """
    saved = saved if isinstance(saved, dict) else vars(saved) if isinstance(saved, Namespace) else {}
    if "mha" in saved and fusion_heads(saved["mha"] or "") != config.fusion_heads:
        raise UserError(f"the checkpoint was trained with --mha '{saved['mha']}', the flags say "
                        f"'{'-'.join(map(str, config.fusion_heads))}': give --mha as it was trained")


def refuse_contradictions(args: Namespace, config: ModelConfig) -> None:
    """Raises `UserError` naming both values if a flag on the command line differs from the checkpoint's setting."""
    given = {
        "model": ("--model", args.model, config.model),
        "swin_type": ("--swin_type", args.swin_type, config.swin_type),
        "img_size": ("--img_size", args.img_size, config.img_size),
        "mha": ("--mha", fusion_heads(args.mha), config.fusion_heads),
        "window12": ("--window12: window", 12, config.window),
    }
    for name, (flag, asked, stored) in given.items():
        if name in args.given and asked != stored:
            raise UserError(f"{flag} {asked} was given, but the checkpoint was trained with {stored}: leave the flag "
                            "out, or give another checkpoint")

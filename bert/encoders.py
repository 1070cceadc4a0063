"""Text encoders of `--text_encoder`: those of transformers that a row of `FAMILIES` describes, besides BERT.

A row says which class has the encoder, where its layers are, and what its tokens may attend to. Everything else follows
from the encoder's own configuration and tokenizer. Shapes: B batch, N tokens, L channels of a word vector.
"""
import json
from argparse import Namespace
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.activations import ACT2FN

from bert.encoder import (
    BertConfig,
    Report,
    TextEncoder,
    bert_config,
    load_pretrained,
    load_text_config,
    quiet,
    read_config,
)
from bert.tokenizer import load_tokenizer, tokenizer_from_text
from schema import Range, Rule, check, shown
from utils import UserError, hub


@dataclass(frozen=True)
class Family:
    """A row of `FAMILIES`. `model` is the class in transformers; `layers` and `norm` (after them) are parts of it.

    In a `causal` encoder a token attends to those before it. One that `reads_padding` was trained without a mask. One
    that `skips_padding` numbers positions from `pad_token_id` + 1 on. An encoder that `adds_mask` cannot take a mask of
    true and false. `unused` are parts that do not contribute to the last hidden state.
    """

    model: str
    layers: str
    norm: str = ""
    causal: bool = False
    reads_padding: bool = False
    skips_padding: bool = False
    adds_mask: bool = False
    unused: tuple[str, ...] = ()

    @property
    def kind(self) -> Any:
        """The class in transformers."""
        return getattr(transformers, self.model)


FAMILIES: dict[str, Family] = {   # by model_type
    "distilbert": Family("DistilBertModel", "transformer.layer"),
    "electra": Family("ElectraModel", "encoder.layer"),
    "roberta": Family("RobertaModel", "encoder.layer", skips_padding=True, unused=("pooler",)),
    "xlm-roberta": Family("XLMRobertaModel", "encoder.layer", skips_padding=True, unused=("pooler",)),
    "mpnet": Family("MPNetModel", "encoder.layer", skips_padding=True, adds_mask=True, unused=("pooler",)),
    "modernbert": Family("ModernBertModel", "layers", norm="final_norm"),
    "clip_text_model": Family("CLIPTextModel", "encoder.layers", norm="final_layer_norm", causal=True),
    "siglip_text_model": Family("SiglipTextModel", "encoder.layers", norm="final_layer_norm", reads_padding=True,
                                unused=("head",)),
    "siglip2_text_model": Family("Siglip2TextModel", "encoder.layers", norm="final_layer_norm", reads_padding=True,
                                 unused=("head",)),
}
TOWERS = {"clip": "clip_text_model", "siglip": "siglip_text_model", "siglip2": "siglip2_text_model"}   # model: its part
KNOWN = ("bert", *FAMILIES, *TOWERS)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")

Size = Annotated[int, Range(1, 2**20)]
Few = Annotated[int, Range(0, 96)]   # layers
Share = Annotated[float, Range(0, 1)]
Activation = Annotated[str, Rule(lambda name: name in ACT2FN, "the name of an activation")]


@dataclass
class Rope:
    """Rotary positions of one kind of layer, as ModernBERT's configuration has them."""

    rope_type: Literal["default"] = "default"
    rope_theta: Annotated[float, Range(1, 1e9)] = 10_000.0


@dataclass
class Ropes:
    """The rotary positions of both kinds of layers; versions of transformers write other entries beside them."""

    full_attention: Rope | None = None
    sliding_attention: Rope | None = None

    @staticmethod
    def entries(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The declared entries of `values` alone."""
        return {layer: {name: part[name] for name in ("rope_type", "rope_theta") if name in part}
                for layer in ("full_attention", "sliding_attention") if (part := values.get(layer))}


LayerType = Literal["full_attention", "sliding_attention"]


@dataclass
class EncoderSettings:
    """The entries that an encoder's configuration may have; without one, the family's own default holds."""

    vocab_size: Size | None = None
    hidden_size: Annotated[int, Range(1, 8192)] | None = None
    num_hidden_layers: Few | None = None
    num_attention_heads: Annotated[int, Range(1, 128)] | None = None
    intermediate_size: Annotated[int, Range(1, 32768)] | None = None
    max_position_embeddings: Size | None = None
    type_vocab_size: Annotated[int, Range(1, 16)] | None = None
    embedding_size: Annotated[int, Range(1, 8192)] | None = None
    relative_attention_num_buckets: Annotated[int, Range(1, 1024)] | None = None
    pad_token_id: Annotated[int, Range(0, 2**20)] | None = None
    hidden_act: Activation | None = None
    hidden_dropout_prob: Share | None = None
    attention_probs_dropout_prob: Share | None = None
    attention_dropout: Share | None = None
    initializer_range: Share | None = None
    initializer_factor: Annotated[float, Range(0, 100)] | None = None
    layer_norm_eps: Share | None = None
    # DistilBERT's names
    n_layers: Few | None = None
    n_heads: Annotated[int, Range(1, 128)] | None = None
    dim: Annotated[int, Range(1, 8192)] | None = None
    hidden_dim: Annotated[int, Range(1, 32768)] | None = None
    dropout: Share | None = None
    activation: Activation | None = None
    sinusoidal_pos_embds: bool | None = None
    # ModernBERT's
    hidden_activation: Activation | None = None
    embedding_dropout: Share | None = None
    mlp_dropout: Share | None = None
    initializer_cutoff_factor: Annotated[float, Range(0, 100)] | None = None
    norm_eps: Share | None = None
    norm_bias: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    local_attention: Size | None = None
    layer_types: Annotated[list[LayerType], Range(0, 96)] | None = None
    rope_parameters: Ropes | None = None
    global_attn_every_n_layers: Annotated[int, Range(1, 96)] | None = None
    global_rope_theta: Annotated[float, Range(1, 1e9)] | None = None
    local_rope_theta: Annotated[float, Range(1, 1e9)] | None = None
    # Other values than these make another network.
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    add_cross_attention: Literal[False] = False


FIXED = ("position_embedding_type", "is_decoder", "add_cross_attention")
OLDER = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")   # names in published configurations


def text_config(values: dict[str, Any], source: str) -> PreTrainedConfig:
    """An encoder's configuration, BERT's among them, from plain data that names its `model_type` (none is BERT's).

    A whole CLIP or SigLIP gives that of its text tower. Entries that `EncoderSettings` lacks do not change the network.
    Raises `UserError`, which names the `source`, for another type and for values that no encoder can have.
    """
    kind = values.get("model_type", "bert") if isinstance(values, dict) else "bert"
    if kind == "bert":
        return bert_config(values, source)
    if isinstance(kind, str) and kind in TOWERS:
        kind, values = TOWERS[kind], values.get("text_config") or {}
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{source} describes a model of the type {shown(kind)}, which is no text encoder that this "
                        f"code has; it has {', '.join(KNOWN)}")
    check(EncoderSettings, values, source)
    make = FAMILIES[kind].kind.config_class
    usual = make()
    given = {field.name: value for field in fields(EncoderSettings) if (value := values.get(field.name)) is not None
             and field.name not in FIXED and (hasattr(usual, field.name) or field.name in OLDER)}
    # JSON writes 0.0 as 0 at times, and the configurations accept no whole number where they expect a fraction.
    given = {name: float(value) if isinstance(getattr(usual, name, None), float) else value
             for name, value in given.items()}
    if "rope_parameters" in given:
        given["rope_parameters"] = Ropes.entries(given["rope_parameters"])
    try:
        with quiet():   # of ids of special tokens, which do not change the last hidden state
            config = make(**given)
            try_out(json.dumps(plain_config(config), sort_keys=True))
    except Exception as error:   # whatever the constructors raise
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{source} is impossible: no {kind} can be built of it ({said})") from error
    return config


def plain_config(config: PreTrainedConfig) -> dict[str, Any]:
    """An encoder's configuration as plain data for a checkpoint; `text_config` reads it."""
    if isinstance(config, BertConfig):
        return config.to_diff_dict()
    names = [field.name for field in fields(EncoderSettings)
             if field.name not in (*FIXED, *OLDER, *config.attribute_map)]
    values = {name: getattr(config, name) for name in names if hasattr(config, name)}
    if values.get("rope_parameters"):
        values["rope_parameters"] = Ropes.entries(values["rope_parameters"])
    return {"model_type": config.model_type, **values}


@cache
def try_out(plain: str) -> None:
    """Raises an error of any type if no network can be built of a configuration, as JSON; it takes no memory."""
    values = json.loads(plain)
    kind = values.pop("model_type")
    config = FAMILIES[kind].kind.config_class(**values)
    with torch.device("meta"):
        FamilyEncoder(config)
    parts = config.num_attention_heads * (2 if kind == "modernbert" else 1)   # rotary positions turn pairs of channels
    if config.hidden_size % parts:
        raise ValueError(f"{config.hidden_size} channels are no multiple of {parts}")
    if (pad := config.pad_token_id) is not None and not 0 <= pad < config.vocab_size:
        raise ValueError(f"pad_token_id {pad} is outside its vocabulary of {config.vocab_size}")


def positions(config: PreTrainedConfig) -> int:
    """The largest number of tokens, special ones included, for which an encoder has positions."""
    skipped = config.model_type in FAMILIES and FAMILIES[config.model_type].skips_padding
    return config.max_position_embeddings - (config.pad_token_id + 1 if skipped else 0)


class FamilyEncoder(TextEncoder):
    """An encoder of `FAMILIES`: token_ids, token_mask (B, N) int64 -> words (B, N, L), its last hidden state.

    A token that may attend to no real one, such as one before the words of a phrase, attends to all that the encoder's
    own order allows.
    """

    def __init__(self, config: PreTrainedConfig):
        nn.Module.__init__(self)   # not the parent's, which makes a BERT
        self.family, self.name = FAMILIES[config.model_type], config.model_type
        self.encoder = tower_of(self.family.kind(config))
        for part in self.family.unused:   # a part without a gradient would stop training in several processes
            setattr(self.encoder, part, None if part == "pooler" else nn.Identity())
        self.dropout_in_training = True

    @property
    def network(self) -> PreTrainedModel:
        return self.encoder

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.encoder.get_submodule(self.family.layers))

    @property
    def after_layers(self) -> nn.Module:
        return self.encoder.get_submodule(self.family.norm) if self.family.norm else nn.Identity()

    def pretrained(self, source: str, local_only: bool) -> tuple[dict[str, Tensor], Report]:
        model, report = load_pretrained(self.family.kind, source, local_only)
        weights = {name: value for name, value in tower_of(model).state_dict().items() if not self.is_unused(name)}
        return weights, {"missing_keys": [name for name in report["missing_keys"] if not self.is_unused(name)],
                         "mismatched_keys": [row for row in report["mismatched_keys"] if not self.is_unused(row[0])]}

    def is_unused(self, name: str) -> bool:
        """Whether an entry belongs to a part that this encoder leaves out."""
        return bool({*self.family.unused} & {*name.split(".")})

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        real = token_mask.bool() | self.family.reads_padding
        place = torch.arange(token_ids.shape[1], device=token_ids.device)
        distance = place[None, :] - place[:, None]                                           # (N, N), of word to word
        near = distance <= 0 if self.family.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.name == "modernbert":
            window = distance.abs() <= self.config.local_attention // 2
            masks: Any = {"full_attention": visible(real, near), "sliding_attention": visible(real, near & window)}
            return self.encoder(token_ids, attention_mask=masks).last_hidden_state
        allowed = visible(real, near)
        if self.family.adds_mask:   # the parts directly: the whole model takes such a mask in newer versions only
            scores = torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, -torch.inf)
            return cast(Any, self.encoder).encoder(self.encoder.embeddings(input_ids=token_ids), scores)[0]
        return self.encoder(token_ids, attention_mask=allowed).last_hidden_state


def visible(real: Tensor, near: Tensor) -> Tensor:
    """Which token (row) attends to which (column): real (B, N) and near (N, N) bool -> (B, 1, N, N) bool.

    A mask of four dimensions is used unchanged; the values of a smaller one would be inspected, which waits for a GPU.
    """
    allowed = real[:, None, None, :] & near
    return allowed | near & ~allowed.any(dim=-1, keepdim=True)   # ONNX Runtime has no `where` of true and false


def tower_of(model: PreTrainedModel) -> Any:
    """The encoder itself, which older versions of transformers wrap in CLIP's and SigLIP's text models."""
    return getattr(model, "text_model", model)


def make_text_encoder(config: PreTrainedConfig) -> TextEncoder:
    """The encoder of a configuration, with random weights."""
    return TextEncoder(config) if isinstance(config, BertConfig) else FamilyEncoder(config)


def config_from_flags(args: Namespace) -> PreTrainedConfig:
    """The configuration of the encoder that `--text_encoder` names or else `--ck_bert`. Raises `UserError`."""
    if not args.text_encoder:
        return load_text_config(args.ck_bert)
    values, source = read_config("--text_encoder", args.text_encoder)
    if not isinstance(values, dict) or "model_type" not in values:
        raise UserError(f"{source} names no model_type, so its kind is unknown; this code has {', '.join(KNOWN)}")
    return text_config(values, source)


def tokenizer_from_flags(args: Namespace, config: PreTrainedConfig) -> tuple[Tokenizer, str]:
    """The tokenizer for an encoder and the flag that names it: `--bert_tokenizer`, or `--text_encoder` without it.

    Raises `UserError` if it cannot be had or does not fit the encoder.
    """
    of_encoder = args.text_encoder and "bert_tokenizer" not in args.given
    flag, source = ("--text_encoder", args.text_encoder) if of_encoder else ("--bert_tokenizer", args.bert_tokenizer)
    named = f"{flag} {source}"
    if isinstance(config, BertConfig):
        return load_tokenizer(source, flag), named
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{named}: the folder has no tokenizer, which is one of {', '.join(TOKENIZER_FILES)}")
    with quiet():
        loaded = hub.load(flag, source, lambda local: read_tokenizer(source, local))
    pad = config.pad_token_id if loaded.pad_token_id is None else loaded.pad_token_id
    if FAMILIES[config.model_type].skips_padding and pad != config.pad_token_id:
        raise UserError(f"{named}: the tokenizer pads with token {pad}, and the encoder counts positions by the "
                        f"padding {config.pad_token_id}: give the tokenizer that belongs to it")
    tokenizer = tokenizer_from_text(loaded.backend_tokenizer.to_str())
    # A length of 0 pads nothing: `bert.tokenizer` lays out the rows by what is declared here.
    tokenizer.enable_padding(direction=loaded.padding_side, pad_id=pad or 0, length=0,
                             pad_token=tokenizer.id_to_token(pad or 0) or "[PAD]")
    return tokenizer, named


def read_tokenizer(source: str, local_only: bool) -> Any:
    """transformers' tokenizer of a folder or a hub name, with its fast part; runs no code of the source.

    A class that needs a package not installed here (SigLIP's) leaves its published tokenizer.json to be read.
    """
    options = {"local_files_only": local_only, "trust_remote_code": False}
    try:
        loaded = AutoTokenizer.from_pretrained(source, **options)
        if hasattr(loaded, "backend_tokenizer"):
            return loaded
    except ImportError:
        pass
    return PreTrainedTokenizerFast.from_pretrained(source, local_files_only=local_only)


def stored_tokenizer(text: str, config: PreTrainedConfig) -> Tokenizer:
    """The tokenizer in a checkpoint, for its encoder: BERT's rows are laid out as in the original programs."""
    return tokenizer_from_text(text, padded=not isinstance(config, BertConfig))

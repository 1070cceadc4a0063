"""The network that a training run starts with: the sources of its settings and its weights."""
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bert import is_adapter, load_text_weights, stored_tokenizer, text_config, tokenizer_from_flags
from bert.adapters import beside_adapters, layers_with_adapters, merge
from lib.checkpoint.files import read_checkpoint
from lib.checkpoint.official_layout import from_official, is_official
from lib.checkpoint.settings import model_settings, refuse_unknown_words, refuse_unmarked_words
from lib.checkpoint.strict_loading import (
    State,
    build_with_weights,
    by_module,
    infer_config,
    needed_entries,
    refuse_misfits,
    refuse_unnamed,
    shape_of,
    suggestion,
)
from lib.checkpoint.swin_weights import load_swin_weights
from lib.checkpoint.token_layers import of_another_size, resize_token_layer
from lib.model import ReferringSegmenter
from lib.segmentation import ENTRIES, MODELS, PARTS, SWIN, ModelConfig, build, flag_of, settings_of
from utils import UserError, log


def make_network(args: Namespace, resumed: dict[str, Any]) -> tuple[ReferringSegmenter, ModelConfig, Tokenizer]:
    """The network that the run starts with, its settings and its tokenizer.

    Its weights are those of `resumed`, the contents of `--resume`, or of `--init_from`, or else the pretrained weights
    of Swin and BERT that the flags name. Raises `UserError` if weights or settings do not fit.
    """
    if args.init_from and not resumed:
        checkpoint = read_checkpoint(args.init_from)
        config, tokenizer = settings_to_start(args, checkpoint)
        needed, _ = needed_entries(config)   # shapes are compared before memory is allocated
        taken, said = weights_to_start(needed, config, checkpoint, args.init_from, args.resize_weights)
        model = build(config)
        model.load_state_dict({**model.state_dict(), **taken})
        log(said)
        return model, config, tokenizer
    config, tokenizer = model_settings(args, resumed)
    if resumed:
        return build_with_weights(config, resumed, args.resume), config, tokenizer
    model = build(config)
    log(load_swin_weights(model.backbone, args.pretrained_swin_weights) if args.pretrained_swin_weights else
        f"Swin starts from random weights: no --pretrained_swin_weights for --swin_type {args.swin_type}"
        if config.backbone == SWIN else f"{config.backbone} starts from random weights: no --pretrained_swin_weights")
    flag, source = ("--text_encoder", args.text_encoder) if args.text_encoder else ("--ck_bert", args.ck_bert)
    name = model.text_encoder.name
    log(f"{name} starts from {source}" if load_text_weights(model.text_encoder, source, flag) else
        f"{name} starts from random weights: {source} has a configuration only")
    return model, config, tokenizer


def settings_to_start(args: Namespace, checkpoint: dict[str, Any]) -> tuple[ModelConfig, Tokenizer]:
    """Settings and tokenizer of a network that starts from `checkpoint`: the file's, unless flags replace them.

    For an original checkpoint, which does not describe itself, the flags describe the network. Raises `UserError` as
    `lib.checkpoint.model_settings` does.
    """
    if "config" not in checkpoint:
        return model_settings(args, checkpoint)
    stored = ModelConfig.from_dict(checkpoint["config"])
    changes = {field: value for field, value in settings_of(args).items() if flag_of(field) in args.given}
    if changes.get("model", stored.model) != stored.model:
        changes = {**MODELS[changes["model"]], **changes}
    config = replace(stored, **changes)
    text = text_config(config.text, "the text encoder")
    tokenizer = (tokenizer_from_flags(args, text)[0] if "bert_tokenizer" in args.given or "tokenizer" not in checkpoint
                 else stored_tokenizer(checkpoint["tokenizer"], text))
    refuse_unknown_words(tokenizer, config, "the tokenizer")
    refuse_unmarked_words(tokenizer, config, "the tokenizer")
    return config, tokenizer


def weights_to_start(needed: State, config: ModelConfig, checkpoint: dict[str, Any], path: str | Path,
                     resize: bool = False) -> tuple[State, str]:
    """The weights of `checkpoint`, the contents of `path`, for a new network, and a line on them for the log.

    `config` describes the network and `needed` is its state dict, possibly on the meta device. In parts (see
    `lib.segmentation.PARTS`) that differ from the file's, entries that the file lacks or has in another shape start
    fresh, and entries that only the file has are left out. Adapters of another rank become part of the weights, and new
    ones start fresh. `resize` fits CIM's token layers to another image size. Raises `UserError` if any other entry does
    not fit.
    """
    refuse_unnamed(checkpoint, path)
    given = from_official(checkpoint) if is_official(checkpoint) else checkpoint["model"]
    stored = (ModelConfig.from_dict(checkpoint["config"]) if "config" in checkpoint else
              infer_config(given, checkpoint.get("args"), "bert_model" in checkpoint))
    other_rank = config.text_lora != stored.text_lora
    if other_rank:
        given = beside_adapters(without_adapters(given, stored, path), layers_with_adapters(needed))
    others = of_another_size(given, needed)
    if others and not resize:
        raise UserError(f"--init_from {path} was trained at {stored.img_size} px, and its CIM fits that size alone: "
                        f"give --img_size {stored.img_size}, or --img_size {config.img_size} with --resize_weights, "
                        "which interpolates its token layers as a start for training")
    given = {**given, **{name: resize_token_layer(given[name], len(needed[name])) for name in others}}
    changed = [place for place in PARTS if getattr(config, place) != getattr(stored, place)]
    in_changed_part = re.compile("|".join(ENTRIES[place] for place in changed) or r"(?!)").match
    taken: State = {name: value for name, value in given.items() if not in_changed_part(name)
                    or (name in needed and shape_of(value) == shape_of(needed[name]))}
    fresh = [name for name in needed if name not in taken
             and (in_changed_part(name) or (other_rank and is_adapter(name)))]
    left_out = [name for name in given if name not in taken]
    refuse_misfits(taken, {name: needed[name] for name in needed if name not in fresh}, f"--init_from {path}",
                   suggestion(given, needed))
    notes = [f"{len(names)} entries {what}: {by_module(dict.fromkeys(names))}"
             for names, what in ((fresh, "start fresh"), (left_out, "of the file are left out")) if names]
    if other_rank and stored.text_lora:
        notes.append(f"adapters of rank {stored.text_lora} added to the weights")
    if others:
        notes.append(f"{len(others)} token layers resized from {stored.img_size} to {config.img_size} px")
    return taken, "; ".join([f"weights from {path}: {len(taken)} entries loaded", *notes])


def without_adapters(given: State, stored: ModelConfig, path: str | Path) -> State:
    """The weights of a file that `stored` describes, with its adapters, if any, added to them. Raises `UserError`."""
    needed, layers = needed_entries(stored)
    own = {name: value for name, value in needed.items() if name.startswith(tuple(f"{layer}." for layer in layers))}
    refuse_misfits({name: given[name] for name in own if name in given}, own, f"--init_from {path}")
    return merge(given, layers)

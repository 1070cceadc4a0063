"""Strict loading of weights: every entry must fit, and an error explains which ones do not."""
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bert import BertConfig
from bert.adapters import adapted_layers, merge, with_adapters
from lib.checkpoint.official_layout import from_official, is_official, published_entries, to_official
from lib.checkpoint.settings import saved_flags
from lib.model import ReferringSegmenter
from lib.segmentation import MAX_TOKENS, NUM_TMEM, STRIDE, SWIN, SWIN_VARIANTS, TIMM, ModelConfig, build, fusion_heads
from utils import UserError

State = dict[str, Tensor]
OF_TIMM = re.compile(r"(^|\.)stages\.\d\.timm\.")   # entries of a backbone of timm's
BERT_HEAD_WIDTH = 64  # channels of an attention head in every pretrained BERT
MARKS = (("fianet", re.compile(r"\.alignment\.")), ("lgce", re.compile(r"^cross_scale\.guides\.")),
         ("rmsin", re.compile(r"^cross_scale\.|\.router\.")))   # entries that distinguish a model from lavt


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Copies a whole network's weights from `checkpoint`, the contents of `path`, in either layout.

    Raises `UserError` if they do not fit; the message names entries as the file does.
    """
    model.load_state_dict(fitting_weights(checkpoint, model.state_dict(), path))


def build_with_weights(config: ModelConfig, checkpoint: dict[str, Any], path: str | Path,
                       merged: bool = False) -> ReferringSegmenter:
    """The network that `config` describes with the weights of `checkpoint`, the contents of `path`.

    Shapes are compared on a network without memory first, because a file of a few bytes may describe a huge one. With
    `merged`, the network has no adapters (`text_lora` is 0), and those of the file are added to its weights. Raises
    `UserError` if the weights do not fit.
    """
    needed, layers = needed_entries(config)
    state = fitting_weights(checkpoint, needed, path)
    if merged:
        config, state = replace(config, text_lora=0), merge(state, layers)
    model = build(config)
    model.load_state_dict(state)
    return model


def needed_entries(config: ModelConfig) -> tuple[State, list[str]]:
    """The state dict of the network that `config` describes, on the meta device, and its layers with adapters."""
    with torch.device("meta"):
        network = build(replace(config, text_lora=0))
    if not config.text_lora:
        return network.state_dict(), []
    layers = adapted_layers(network, network.text_encoder.layers)
    return with_adapters(network.state_dict(), layers, config.text_lora), layers


def fitting_weights(checkpoint: dict[str, Any], needed: State, path: str | Path) -> State:
    """The weights of a checkpoint in either layout under this project's names; `needed` has the required shapes.

    Raises `UserError` for an entry that is missing, unexpected, of another shape or type, or not finite.
    """
    refuse_unnamed(checkpoint, path)
    if not is_official(checkpoint):
        state = checkpoint["model"]
        refuse_misfits(state, needed, f"checkpoint {path}", suggestion(state, needed))
        return state
    state = from_official(checkpoint)
    refuse_misfits(published_entries(checkpoint), published_entries(to_official(needed, split_text=False)),
                   f"published checkpoint {path}", suggestion(state, needed))
    return state


def refuse_unnamed(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raises `UserError` if the contents of a file have no weights by name, in either layout."""
    for part in ("model", "bert_model") if "bert_model" in checkpoint else ("model",):
        if not isinstance(checkpoint.get(part), dict):
            entries = ", ".join(map(str, checkpoint))[:200] or "nothing"
            raise UserError(f"checkpoint {path} has no '{part}' entry with weights; it has {entries}")
        if not all(isinstance(name, str) for name in checkpoint[part]):
            raise UserError(f"checkpoint {path}: the entries of '{part}' are not named, so they are no weights")


def refuse_misfits(given: State, needed: State, source: str, advice: str = "") -> None:
    """Raises `UserError` listing the missing, unexpected and unusable entries of `given`, compared with `needed`.

    The `advice` on what to do comes first, since the list may be long.
    """
    common = [name for name in needed if name in given]
    unusable = {name: f"{name} {problem}" for name in common if (problem := misfit(given[name], needed[name]))}
    reshaped = {name: f"{name} is {shape_of(given[name])}, needed {shape_of(needed[name])}"
                for name in common if name not in unusable and shape_of(given[name]) != shape_of(needed[name])}
    found = [f"{len(names)} {what}: {by_module(names)}" for names, what in (
        (dict.fromkeys(name for name in needed if name not in given), "missing"),
        (dict.fromkeys(name for name in given if name not in needed), "unexpected"),
        (unusable, "of another kind"), (reshaped, "of another shape")) if names]
    if not found and (bad := {name: None for name in common if not is_finite(given[name])}):   # shapes fit
        found = [f"{len(bad)} with NaN or infinite values: {by_module(bad)}"]
    if found:
        raise UserError(f"{source} does not fit this network{advice}. Nothing was loaded; {'; '.join(found)}")


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def misfit(value: Any, needed: Tensor) -> str:
    """The reason why `value` cannot be copied into a tensor like `needed`, apart from its shape; '' if it can."""
    if not isinstance(value, Tensor):
        return f"is {shape_of(value)}, needed {shape_of(needed)}"
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return f"is no dense tensor with values ({value.layout}, {value.device.type}, {value.dtype})"
    fits = value.dtype in _FLOATS if needed.is_floating_point() else value.dtype == needed.dtype
    return "" if fits else f"is of {value.dtype}, needed {needed.dtype}"


def is_finite(value: Tensor) -> bool:
    """Whether a dense tensor has neither NaN nor infinite values; one pass, without a copy."""
    if not value.is_floating_point() or not value.numel():
        return True
    low, high = torch.aminmax(value)   # both are NaN if any value is
    return bool(torch.isfinite(low) & torch.isfinite(high))


def shape_of(value: Any) -> tuple[int, ...] | str:
    """A tensor's shape, or the type of any other value as text."""
    return tuple(value.shape) if isinstance(value, Tensor) else f"no tensor but a {type(value).__name__}"


def by_module(entries: Mapping[str, str | None], modules: int = 3, shown: int = 2) -> str:
    """The first few entry names, or their notes, of each of the first few modules, as one line."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, note in entries.items():
        parts = name.split(".")[:-1]
        depth = 4 if parts[1:2] and parts[1] in ("layers", "stages") else 3 if parts[:1] == ["text_encoder"] else 2
        groups[".".join(parts[:depth])].append(note or name)
    listed = []
    for module, names in list(groups.items())[:modules]:
        rest = f" and {len(names) - shown} more in {module}" if len(names) > shown else ""
        listed.append(", ".join(names[:shown]) + rest)
    more = sum(map(len, list(groups.values())[modules:]))
    return " | ".join(listed) + (f" | and {more} in {len(groups) - modules} other modules" if more else "")


def traits(state: State) -> dict[str, Any]:
    """The settings that the names and shapes of weights show: model, backbone, swin_type, window, img_size, num_tmem.

    Settings that they do not show are left out. `swin_type` is a text with the width if no known variant has it.
    """
    models = (model for model, mark in MARKS if any(mark.search(name) for name in state))
    is_timms = any(OF_TIMM.search(name) for name in state)
    found: dict[str, Any] = {"model": next(models, "lavt"), "backbone": f"{TIMM}NAME" if is_timms else SWIN}
    if tmem_blocks := {name.split(".")[2] for name in state if re.match(r"cross_scale\.block\.\d", name)}:
        found["num_tmem"] = len(tmem_blocks)
    depths = tuple(sum(f"stages.{stage}.blocks." in name and name.endswith(".attn.qkv.weight") for name in state)
                   for stage in range(4))
    for name, value in state.items():
        if not isinstance(value, Tensor) or not value.dim() or OF_TIMM.search(name):
            continue
        if name.endswith("patch_embed.proj.weight"):
            fitting = [variant for variant, row in SWIN_VARIANTS.items() if row.dim == value.shape[0]]
            exact = [variant for variant in fitting if SWIN_VARIANTS[variant].depths == depths]
            found["swin_type"] = (exact or fitting or [f"none of the known ones, its width is {value.shape[0]}"])[0]
        elif name.endswith("relative_position_bias_table"):
            found["window"] = (round(value.shape[0] ** 0.5) + 1) // 2
        elif name.endswith("attention1.token_project.weight"):
            found["img_size"] = STRIDE * round(value.shape[0] ** 0.5)
    return found


def infer_config(state: State, args: Any, text_beside: bool) -> ModelConfig:
    """The settings of the network that weights of unknown origin belong to.

    They follow from the names and shapes in `state`, which has this project's names, and from `args`, the flags that an
    original program saved (a namespace, a dict or nothing): only these contain PWAM's heads and LAVT's image size.
    `text_beside` distinguishes lavt from lavt_one. Raises `UserError` if the weights belong to no known network.
    """
    found, flags = traits(state), saved_flags(args)
    if found.get("swin_type") not in SWIN_VARIANTS or "window" not in found:
        raise UserError(f"the weights belong to no known network: Swin {found.get('swin_type', 'not found')}")
    words = "text_encoder.bert.embeddings.word_embeddings.weight"
    inner = "text_encoder.bert.encoder.layer.0.intermediate.dense.weight"
    if not {words, words.replace("word", "position"), inner} <= state.keys():
        raise UserError("the weights hold no text encoder: an original lavt checkpoint has it under 'bert_model'")
    sizes = [state[name] for name in (words, words.replace("word", "position"), inner)]
    if not all(isinstance(value, Tensor) and value.dim() == 2 for value in sizes):
        raise UserError("the weights hold no text encoder: its embeddings are no tables")
    vocabulary, width = state[words].shape
    layers = len({name.split(".")[4] for name in state if name.startswith("text_encoder.bert.encoder.layer.")})
    text = BertConfig(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
                      num_attention_heads=max(1, width // BERT_HEAD_WIDTH), intermediate_size=state[inner].shape[0],
                      max_position_embeddings=state[words.replace("word", "position")].shape[0])
    model = "lavt_one" if found["model"] == "lavt" and not text_beside else found["model"]
    return ModelConfig.from_dict({
        "model": model, "swin_type": found["swin_type"], "window": found["window"],
        "img_size": found.get("img_size", flags.get("img_size", 480)), "text": text.to_diff_dict(),
        "num_tmem": found.get("num_tmem", NUM_TMEM), "max_tokens": MAX_TOKENS.get(model, 20),
        "fusion_heads": fusion_heads(flags.get("mha") or ""), "fusion_drop": flags.get("fusion_drop", 0.0)})


def suggestion(given: State, built: State) -> str:
    """Advice on flags with which the network would fit the weights; '' if names and shapes show no difference."""
    wanted, have = traits(given), traits(built)
    differing = {kind: value for kind, value in wanted.items() if have.get(kind) != value}
    if not differing:
        return ""
    flags = [{12: "--window12"}.get(value, f"no --window12, for a window of {value}, and --pretrained_swin_weights ''")
             if kind == "window" else f"--{kind} {value}" for kind, value in differing.items()]
    return f": the weights suggest {', '.join(flags)}"

"""Trained parameters, optimiser and schedule, as in the original recipe."""
from argparse import Namespace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bert import BertConfig, is_adapter
from lib.model import ReferringSegmenter
from lib.swin import no_weight_decay
from lib.timm_backbone import TimmBackbone
from utils import log


def freeze_text(model: ReferringSegmenter, layers: int, embeddings: bool, dropout: bool = True,
                last_layers: int | None = None) -> None:
    """Freezes the text encoder except some layers and, if `embeddings`, what is before them and what they share.

    BERT's first `layers` train, 10 in the original code, and all of another encoder; with `last_layers`, as many of
    either that are nearest the words. A norm after the layers trains with them. Of layers with adapters, the adapters
    alone train. `dropout` switches the encoder's dropouts on while the network trains.
    """
    text = model.text_encoder
    text.dropout_in_training = dropout
    first, stop = (0, layers) if isinstance(text.config, BertConfig) else (0, len(text.layers))
    if last_layers is not None:
        first, stop = max(0, len(text.layers) - last_layers), len(text.layers)
    text.requires_grad_(embeddings)
    text.layers.requires_grad_(False)
    adapted = any(is_adapter(name) for name, _ in text.named_parameters())
    for name, parameter in text.layers[first:stop].named_parameters():
        parameter.requires_grad_(is_adapter(name) or not adapted)
    text.after_layers.requires_grad_(first < stop and not adapted)


def recompute_activations(model: ReferringSegmenter) -> None:
    """Makes the backward pass recompute the activations inside the backbone's blocks, of which the inputs are kept."""
    for stage in model.backbone.stages:
        blocks: Any = stage.blocks
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def parameter_groups(model: ReferringSegmenter) -> list[dict[str, Any]]:
    """AdamW's groups of trained parameters: backbone without decay, backbone, decoder, text encoder.

    The module across the scales counts as part of the backbone, as CIM and TMEM do in the original programs, unless its
    `optimizer_group` is "decoder".
    """
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    decoder = [*model.decoder.parameters()]
    in_backbone: list[nn.Module] = [model.backbone]
    if model.cross_scale is not None:
        if getattr(model.cross_scale, "optimizer_group", "") == "decoder":
            decoder += model.cross_scale.parameters()
        else:
            in_backbone.append(model.cross_scale)
    for part in in_backbone:
        exempt = part.no_weight_decay() if isinstance(part, TimmBackbone) else no_weight_decay(part)
        for name, parameter in part.named_parameters():
            (plain if name in exempt else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": plain, "weight_decay": 0.0}, {"params": decayed}, {"params": decoder},
                                    {"params": model.text_encoder.parameters()}]
    return [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]


def learning_rate_factor(iteration: int, total: int, warmup: int) -> float:
    """The schedule: (1 − iteration / total)^0.9, times a linear rise over the first `warmup` iterations."""
    rise = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    return rise * (1 - min(iteration, total) / total) ** 0.9


def warm_up_of(args: Namespace, iterations: int) -> int:
    """The warm-up of a run of so many iterations: a recipe's is at most a tenth of it, one that was asked for stays."""
    asked, tenth = args.warmup_iters, iterations // 10
    if "warmup_iters" in args.given:
        if asked > iterations:
            log(f"--warmup_iters {asked}: the whole run has {iterations} iterations, so lr never gets to --lr")
        return asked
    if asked > tenth:
        log(f"warm-up of {tenth} instead of {asked} iterations, a tenth of this run's {iterations}")
    return min(asked, tenth)


def make_optimizer(model: ReferringSegmenter, lr: float, weight_decay: float, total_iterations: int,
                   warmup_iterations: int = 0,
                   amsgrad: bool = False) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW for the parameters that are not frozen, and its schedule, which is stepped after every iteration."""
    optimizer = torch.optim.AdamW(parameter_groups(model), lr, weight_decay=weight_decay, amsgrad=amsgrad, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: learning_rate_factor(iteration, total_iterations, warmup_iterations))
    return optimizer, schedule


def restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Loads the result of `state_dict`, with each moment laid out in memory like its parameter.

    The fused update pairs numbers by their places in memory, and PyTorch keeps the stored layout, which is another one
    if `--channels_last` has changed since. Raises `ValueError` if the parameters are others.
    """
    optimizer.load_state_dict(stored)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

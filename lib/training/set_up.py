"""The network made ready for training: frozen, accelerated, averaged, compiled and wrapped as the flags ask."""
from argparse import Namespace

import torch
from torch import nn

import distributed
from bert import BertConfig
from lib.accelerate import accelerate, compiled
from lib.model import ReferringSegmenter
from lib.training.averaging import WeightAverage
from lib.training.optimizer import freeze_text, recompute_activations
from utils import UserError


def set_up_training(model: ReferringSegmenter, args: Namespace,
                    device: torch.device) -> tuple[nn.Module, WeightAverage | None]:
    """Freezes, accelerates and wraps `model`, in place, as the flags ask.

    Returns the module that a training step calls, and the average of the weights if `--ema` keeps one. Raises
    `UserError` if the flags count layers of a BERT that the network does not have.
    """
    if "bert_layers" in args.given and not isinstance(model.text_encoder.config, BertConfig):
        raise UserError(f"--bert_layers {args.bert_layers} counts the first layers of a BERT, and the text encoder is "
                        f"{model.text_encoder.name}: give --text_layers, which counts the last ones")
    freeze_text(model, args.bert_layers, args.train_embeddings, args.bert_dropout, args.text_layers)
    accelerate(model.to(device), device, args.channels_last)
    average = WeightAverage(model, args.ema) if args.ema else None
    if args.checkpoint_activations:
        recompute_activations(model)
    return distributed.wrap(compiled(model, device) if args.compile else model, device), average

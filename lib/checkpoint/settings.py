"""The network's settings and tokenizer in a checkpoint, and their comparison with the flags."""
import re
from argparse import Namespace
from dataclasses import dataclass
from typing import Annotated, Any

from tokenizers import Tokenizer

from bert import layout_of, positions, stored_tokenizer, text_config, tokenizer_from_flags, words_needed
from lib.segmentation import LARGEST_IMAGE_PX, ModelConfig, flag_of, fusion_heads, settings_of
from schema import Range, Rule, check
from utils import UserError, log

FORMAT_VERSION = 1   # of checkpoints; raise it when older code cannot read new files any more


def describe_model(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The entries of a checkpoint that describe its network: all that is needed to build it and to tokenize for it."""
    return {"format_version": FORMAT_VERSION, "config": config.to_dict(), "tokenizer": tokenizer.to_str()}


def model_settings(args: Namespace | None, checkpoint: dict[str, Any]) -> tuple[ModelConfig, Tokenizer]:
    """The network's settings and tokenizer, read from `checkpoint` or, where it lacks them, from the flags.

    Raises `UserError` if a flag contradicts the checkpoint, if neither describes the network, or if the tokenizer
    does not fit the text encoder or the network.
    """
    if "config" in checkpoint:
        config = ModelConfig.from_dict(checkpoint["config"])
        if args:
            refuse_contradictions(args, config)
            note_other_dataset(args, checkpoint.get("args"))
    else:
        config = ModelConfig.from_args(needed_flags(args))
        refuse_other_heads(config, checkpoint.get("args"))
    text = text_config(config.text, "the text encoder")
    if config.max_tokens > (places := positions(text)):
        raise UserError(f"--max_tokens {config.max_tokens}: the text encoder has positions for {places} tokens; give "
                        "no more")
    if "tokenizer" in checkpoint:
        tokenizer, source = stored_tokenizer(checkpoint["tokenizer"], text), "the checkpoint's tokenizer"
    else:
        tokenizer, source = tokenizer_from_flags(needed_flags(args), text)
    refuse_unknown_words(tokenizer, config, source)
    refuse_unmarked_words(tokenizer, config, source)
    return config, tokenizer


def needed_flags(args: Namespace | None) -> Namespace:
    """The flags, where the checkpoint lacks its settings or its tokenizer. Raises `UserError` if there are none."""
    if args is None:
        raise UserError("the checkpoint does not say what network and tokenizer it belongs to, which is usual for "
                        "original ones: give the flags that describe it (args.py)")
    return args


def refuse_unknown_words(tokenizer: Tokenizer, config: ModelConfig, source: str) -> None:
    """Raises `UserError` if the tokenizer has token ids without a row in the text encoder's embedding, or too few."""
    known, needed = text_config(config.text, "the text encoder").vocab_size, words_needed(tokenizer)
    if needed > known:
        raise UserError(f"{source} has {needed} tokens, more than the {known} of the text encoder: give the tokenizer "
                        "that belongs to it")
    if needed < known / 2:   # a vocabulary may be padded, but not to twice its size
        raise UserError(f"{source} has {needed} tokens, far fewer than the {known} of the text encoder, so their ids "
                        "mean other words there: give the tokenizer that belongs to it")


def refuse_unmarked_words(tokenizer: Tokenizer, config: ModelConfig, source: str) -> None:
    """Raises `UserError` if the network reads phrases, and words do not begin at the second token of a row."""
    layout = layout_of(tokenizer)
    if config.reads_phrases and (layout.before != 1 or layout.pads_left):
        has = "pads on the left" if layout.pads_left else f"has {layout.before} tokens before the words"
        raise UserError(f"{config.model} marks phrases from the second token of a row on, and {source} {has}: give "
                        "another text encoder, or another --model")


@dataclass
class SavedFlags:
    """The flags that an original program saved in a checkpoint and that its weights do not imply."""

    mha: Annotated[str, Rule(re.compile(r"(\d{1,4}(-\d{1,4}){3})?").fullmatch, "of the form A-B-C-D")] | None = None
    img_size: Annotated[int, Range(1, LARGEST_IMAGE_PX)] = 480
    fusion_drop: Annotated[float, Range(0, 1)] = 0.0


def saved_flags(saved: Any) -> dict[str, Any]:
    """A checkpoint's `args`, a namespace or a dict, as a dict; {} for anything else. Raises `UserError`."""
    flags = saved if isinstance(saved, dict) else vars(saved) if isinstance(saved, Namespace) else {}
    check(SavedFlags, flags, "the checkpoint's args")
    return flags


def refuse_other_heads(config: ModelConfig, saved: Any) -> None:
    """Raises `UserError` if the flags saved in an original checkpoint name other heads of PWAM than `config`.

    The shapes of weights do not depend on the heads: with a wrong number, they load and give wrong masks.
    """
    saved = saved_flags(saved)
    if "mha" in saved and fusion_heads(saved["mha"] or "") != config.fusion_heads:
        raise UserError(f"the checkpoint was trained with --mha '{saved['mha']}', the flags say "
                        f"'{'-'.join(map(str, config.fusion_heads))}': give --mha as it was trained")


def note_other_dataset(args: Namespace, saved: Any) -> None:
    """Logs a note if the script reads its default data set, and the checkpoint was trained on another one."""
    trained_on = saved.get("dataset") if isinstance(saved, dict) else None
    chosen = "refer_data_root" not in args or "dataset" in args.given
    if isinstance(trained_on, str) and not chosen and args.dataset != trained_on:
        log(f"note: the checkpoint was trained on {trained_on}, but the default, {args.dataset}, is read: give "
            "--dataset if you mean another")


def refuse_contradictions(args: Namespace, config: ModelConfig) -> None:
    """Raises `UserError` naming both values if a flag on the command line differs from the checkpoint's setting."""
    for field, asked in settings_of(args).items():
        if flag_of(field) in args.given and asked != getattr(config, field):
            flag = "--window12: window" if field == "window" else f"--{flag_of(field)}"
            raise UserError(f"{flag} {asked} was given, but the checkpoint was trained with {getattr(config, field)}: "
                            "leave the flag out, or give another checkpoint")

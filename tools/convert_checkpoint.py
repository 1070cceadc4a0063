"""Turns a checkpoint of train.py into the original layout or back; every tensor keeps its bits.

`--to official` writes what the original programs load: their entry names, `bert_model` beside `model` for lavt, the
attention's index tables. LGCE's entries that have no effect are left out: its program must load the file with
strict=False. `--to native` writes what train.py writes. The adapters of `--text_lora` are added to the weights. The
optimiser's state cannot be converted (its parameters are numbered in another order), so a converted file serves
evaluation and fine-tuning, but no resumed run.
"""
import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import distributed
from args import Parser
from lib.checkpoint import read_checkpoint, save_checkpoint
from lib.checkpoint.official_layout import from_official, is_official, to_official
from lib.checkpoint.strict_loading import build_with_weights, infer_config
from lib.segmentation import ModelConfig
from utils import UserError


def convert(checkpoint: dict[str, Any], to: str, path: str) -> dict[str, Any]:
    """The contents of a checkpoint, read from `path`, in the layout `to`. Raises `UserError` if it fits no network."""
    if not isinstance(checkpoint.get("model"), dict):
        raise UserError(f"checkpoint {path} has no 'model' entry")
    published = is_official(checkpoint)
    state = from_official(checkpoint) if published else checkpoint["model"]
    if "config" in checkpoint:
        config = ModelConfig.from_dict(checkpoint["config"])
    else:
        config = infer_config(state, checkpoint.get("args"), text_beside="bert_model" in checkpoint)
    network = build_with_weights(config, checkpoint, path, merged=True)   # strict: what would not load is not converted
    if config.text_lora:
        config, state = replace(config, text_lora=0), network.state_dict()
    carried = {key: checkpoint[key] for key in ("epoch", "args", "tokenizer", "best_oIoU") if key in checkpoint}
    if isinstance(carried.get("args"), argparse.Namespace):
        carried["args"] = {key: value for key, value in vars(carried["args"]).items()
                           if isinstance(value, str | int | float | bool | list | tuple | dict | None)}
    weights = {"model": state} if to == "native" else to_official(state, split_text=config.model == "lavt")
    if to == "official" and isinstance(carried.get("args"), dict):
        carried["args"] = argparse.Namespace(**carried["args"])   # as the original programs save it
    return {**weights, **carried, "config": config.to_dict()}


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="checkpoint to read, in either layout")
    parser.add_argument("target", metavar="OUT", help="checkpoint to write")
    parser.add_argument("--to", required=True, choices=("official", "native"), help="layout to write")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    with distributed.user_errors("convert_checkpoint.py"):
        checkpoint = read_checkpoint(args.source)
        save_checkpoint(args.target, convert(checkpoint, args.to, args.source))
        print(f"wrote {args.target} in the {args.to} layout")


if __name__ == "__main__":
    main()

"""Writes a trained model in a form that others use: a model folder, ONNX, or a program of torch.export.

    python tools/export.py --resume CHECKPOINT --to folder --out FOLDER [--results FILE] [--push USER/NAME]
    python tools/export.py --resume CHECKPOINT --to onnx --out FILE.onnx
    python tools/export.py --resume CHECKPOINT --to torch --out FILE.pt2

Graphs take image, token_ids, token_mask (and phrase_masks where the network reads phrases) and give logits in float32;
docs/deployment.md shows their use. A file's logits are compared with the network's before it gets its name.
"""
import argparse
import re
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from args import RecipeParser, get_parser
from utils import importing_much

with importing_much():
    from tokenizers import Tokenizer

    import distributed
    from lib.checkpoint import build_with_weights, model_settings, read_checkpoint, weights_file
    from lib.checkpoint.files import use_average
    from lib.checkpoint.model_folder import push_folder, write_folder
    from lib.export import export_graph
    from lib.model import ReferringSegmenter
    from lib.segmentation import ModelConfig
    from utils import UserError, log, make_folder, sha256_of


def repository(text: str) -> str:
    """An argparse type: a name of the Hugging Face hub."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text):
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is not of the form USER/NAME")
    return text


def parser() -> RecipeParser:
    """The flags that describe a network, and what to write."""
    flags = get_parser("network")
    flags.description, flags.conflict_handler = __doc__.splitlines()[0], "resolve"
    flags.inputs, flags.outputs = ("resume", "results"), ("out",)
    ours = flags.add_argument_group("export")
    ours.add_argument("--resume", required=True, metavar="FILE|FOLDER",
                      help="checkpoint or model folder to export; an original checkpoint needs the flags above")
    ours.add_argument("--to", required=True, choices=("folder", "onnx", "torch"),
                      help="folder: weights, settings, tokenizer and a model card;\n"
                           "onnx: for ONNX Runtime (needs pip install onnx onnxscript onnxruntime); torch: a .pt2")
    ours.add_argument("--ema", action="store_true", help="export the averaged weights of a run of train.py --ema")
    ours.add_argument("--out", required=True, metavar="FILE|FOLDER", help="what to write")
    ours.add_argument("--results", metavar="FILE",
                      help="with --to folder: put the metrics of test.py --results into the model card")
    ours.add_argument("--push", type=repository, metavar="USER/NAME",
                      help="with --to folder: also upload it to the Hugging Face hub; a new repository is private")
    return flags


def export_folder(args: Namespace, checkpoint: dict[str, Any], model: ReferringSegmenter, config: ModelConfig,
                  tokenizer: Tokenizer) -> None:
    """Writes the model folder with its card, and uploads it if --push is given."""
    from lib.evaluation.result_files import read_evaluation
    from lib.report.model_card import model_card
    averaged = bool(args.ema)
    results = args.results and read_evaluation(args.results, sha256_of(weights_file(args.resume)), averaged)
    training = checkpoint.get("args", {})
    training = vars(training) if isinstance(training, Namespace) else training if isinstance(training, dict) else {}
    folder = Path(args.out).absolute()
    card = model_card(args.push or folder.name, config, training, results, averaged)
    write_folder(folder, model.state_dict(), config, tokenizer, card)
    log(f"wrote {args.out}: --resume {args.out} takes it")
    if args.push:
        log(f"uploaded it: {push_folder(folder, args.push)}")


def run(args: Namespace) -> None:
    """Writes what the flags ask for. `main` prints its user errors."""
    if args.to != "folder" and (args.results or args.push):
        raise UserError("--results and --push belong to --to folder: a graph has no model card")
    checkpoint = read_checkpoint(args.resume)
    if args.ema:
        use_average(checkpoint, args.resume)
    config, tokenizer = model_settings(args, checkpoint)
    model = build_with_weights(config, checkpoint, args.resume, merged=True).eval()
    config = replace(config, text_lora=0)
    make_folder(Path(args.out).absolute().parent)
    if args.to == "folder":
        export_folder(args, checkpoint, model, config, tokenizer)
    else:
        log(f"wrote {export_graph(model, config, tokenizer, args.to, Path(args.out))}")


def main() -> None:
    args = parser().parse_args()
    with distributed.user_errors("export.py"):
        run(args)


if __name__ == "__main__":
    main()

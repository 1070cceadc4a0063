"""Draws a checkpoint's predictions for some samples: image, sentence, truth, prediction and IoU, as one PNG.

Takes test.py's flags, and --out and --samples.
"""
import sys
import textwrap
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import distributed
from args import EVALUATION, RecipeParser, get_parser, positive
from data import EvalSet
from lib.accelerate import accelerate, set_up
from lib.checkpoint import restore
from lib.evaluation.metrics import count_pixels, predict
from lib.imagery.drawing import PREDICTION_COLOUR, TRUTH_COLOUR, overlay, sheet
from lib.segmentation import NETWORK_FLAGS
from refer.refer import REFER
from tools.ref_sheet import save_sheet
from transforms import network_inputs
from utils import UserError

# The flags of test.py that change a sheet, and those that any program takes.
READ = {*NETWORK_FLAGS, "max_tokens", "ck_bert", "bert_tokenizer", "model", "pretrained_swin_weights", "resume", "ema",
        "refer_data_root", "dataset", "splitBy", "published_masks", "split", "device", "local_rank", "tf32",
        "cudnn_benchmark", "out", "samples", "ddp_trained_weights", "workers", "batch_size", "pin_mem"}
CAPTION_CHARACTERS, CAPTION_LINES = 80, 2   # that fit below three panels


def parser() -> RecipeParser:
    """test.py's flags and two more."""
    flags = get_parser(*EVALUATION)
    flags.description = __doc__.splitlines()[0]
    ours = flags.add_argument_group("contact sheet")
    ours.add_argument("--out", default="contact_sheet.png", metavar="FILE", help="PNG to write")
    ours.add_argument("--samples", default=16, type=positive, metavar="N",
                      help="how many, evenly spread over the split")
    return flags


def caption(sentence: str, iou: float) -> str:
    """Lines that fit below a sample's panels."""
    return "\n".join(textwrap.wrap(f"IoU {100 * iou:.1f}: {sentence}", CAPTION_CHARACTERS, max_lines=CAPTION_LINES,
                                   placeholder=" …"))


@torch.inference_mode()
def run(args: Namespace) -> None:
    """Evaluates the chosen samples and writes the sheet. Raises `UserError` for flags that have no effect here."""
    if idle := set(args.given) - READ:
        raise UserError(f"--{sorted(idle)[0]} has no effect on a contact sheet: leave it out")
    device = distributed.init_processes(args.device, args.local_rank)
    set_up(device, args)
    model, config, tokenizer = restore(args.resume, args)
    accelerate(model.to(device), device)
    refer = REFER(args.refer_data_root, args.dataset, args.splitBy, args.published_masks)
    dataset = EvalSet(refer, args.split, tokenizer, config.img_size, max_tokens=config.max_tokens,
                      phrases=config.reads_phrases)

    drawn = []
    for index in np.linspace(0, len(dataset) - 1, min(args.samples, len(dataset))).astype(int).tolist():
        sample = dataset[index]
        target = sample["target"][None].to(device)
        predicted = predict(model(*network_inputs(default_collate([sample]), device)))
        intersection, union = count_pixels(predicted, target)[0, :2].tolist()
        pixels = sample["image"].permute(1, 2, 0).numpy()
        panels = (pixels, overlay(pixels, target[0].bool().cpu().numpy(), TRUTH_COLOUR),
                  overlay(pixels, predicted[0].cpu().numpy(), PREDICTION_COLOUR))
        drawn.append(([Image.fromarray(panel) for panel in panels],
                      caption(dataset.describe(index)["sentence"], intersection / max(1, union))))
    save_sheet(sheet(drawn, headings=("image", "truth", "prediction")), Path(args.out))
    print(f"{len(drawn)} samples of {args.dataset} {args.split} (image, truth, prediction): {Path(args.out).resolve()}")


def main() -> None:
    args = parser().parse_args()
    with distributed.user_errors("contact_sheet.py"):
        run(args)


if __name__ == "__main__":
    main()

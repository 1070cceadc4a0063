"""Draws what a checkpoint makes of some samples: image, sentence, truth, prediction and IoU, as one PNG.

Takes test.py's flags, and --out and --samples.
"""
import sys
import textwrap
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import utils
from args import RecipeParser, get_parser
from data import EvalSet
from lib.checkpoint import read_checkpoint
from lib.evaluation import count_pixels
from lib.segmentation import build, model_settings
from lib.strict_load import load_weights
from refer.refer import REFER
from transforms import normalize
from utils import UserError

PANEL_PX, CAPTION_PX, MARGIN_PX, COLUMNS = 192, 48, 8, 2
TRUTH_COLOUR, PREDICTION_COLOUR = (40, 200, 90), (240, 60, 160)


def parser() -> RecipeParser:
    """test.py's flags and two more."""
    flags = get_parser()
    flags.description = __doc__.splitlines()[0]
    sheet = flags.add_argument_group("contact sheet")
    sheet.add_argument("--out", default="contact_sheet.png", metavar="FILE", help="PNG to write")
    sheet.add_argument("--samples", default=16, type=int, metavar="N", help="how many, evenly spread over the split")
    return flags


def tint(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The image with a mask laid over it: (S, S, 3) uint8, (S, S) bool -> (S, S, 3) uint8."""
    inside = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
    tinted = image.copy()
    tinted[inside] = (0.6 * image[inside] + 0.4 * np.array(colour)).astype(np.uint8)
    tinted[mask & ~inside] = colour
    return tinted


def draw_sample(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, sentence: str, iou: float) -> Image.Image:
    """One sample: image, truth and prediction side by side, the sentence and the IoU below."""
    panels = [image, tint(image, truth, TRUTH_COLOUR), tint(image, predicted, PREDICTION_COLOUR)]
    drawn = Image.new("RGB", (len(panels) * (PANEL_PX + MARGIN_PX), PANEL_PX + CAPTION_PX), "white")
    for column, panel in enumerate(panels):
        drawn.paste(Image.fromarray(panel).resize((PANEL_PX, PANEL_PX)), (column * (PANEL_PX + MARGIN_PX), 0))
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(14)
    lines = textwrap.wrap(sentence, 64)[:2]
    pen.text((2, PANEL_PX + 4), "\n".join(lines), fill="black", font=font)
    pen.text((drawn.width - MARGIN_PX - 76, PANEL_PX + 4), f"IoU {100 * iou:.1f}", fill="black", font=font)
    return drawn


@torch.inference_mode()
def run(args: Namespace) -> None:
    """Evaluates the chosen samples and writes the sheet."""
    if not args.resume:
        raise UserError("--resume FILE is needed: the checkpoint to look at")
    device = utils.init_processes(args.device, args.local_rank)
    checkpoint = read_checkpoint(args.resume)
    config, tokenizer = model_settings(args, checkpoint)
    model = build(config).eval()
    load_weights(model, checkpoint, args.resume)
    model.to(device)
    refer = REFER(args.refer_data_root, args.dataset, args.splitBy, args.published_masks)
    dataset = EvalSet(refer, args.split, tokenizer, config.img_size)

    drawn = []
    for index in np.linspace(0, len(dataset) - 1, min(args.samples, len(dataset))).astype(int).tolist():
        sample = dataset[index]
        image, token_ids, token_mask, target = (sample[key][None].to(device)
                                                for key in ("image", "token_ids", "token_mask", "target"))
        logits = model(normalize(image), token_ids, token_mask)
        intersection, union, _ = count_pixels(logits, target)[0].tolist()
        drawn.append(draw_sample(sample["image"].permute(1, 2, 0).numpy(), sample["target"].bool().numpy(),
                                 (logits[0, 1] > logits[0, 0]).cpu().numpy(), dataset.describe(index)["sentence"],
                                 intersection / max(1, union)))
    rows = -(-len(drawn) // COLUMNS)
    width, height = drawn[0].width + 2 * MARGIN_PX, drawn[0].height + MARGIN_PX
    sheet = Image.new("RGB", (COLUMNS * width, rows * height + MARGIN_PX), "white")
    for number, picture in enumerate(drawn):
        sheet.paste(picture, (number % COLUMNS * width + MARGIN_PX, number // COLUMNS * height + MARGIN_PX))
    try:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(args.out, "PNG")
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be written: {error}") from error
    print(f"{len(drawn)} samples of {args.dataset} {args.split} (image, truth, prediction): {Path(args.out).resolve()}")


def main() -> None:
    args = parser().parse_args()
    with utils.user_errors("contact_sheet.py"):
        run(args)


if __name__ == "__main__":
    main()

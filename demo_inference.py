"""Segments your own images by your own sentences: writes a mask PNG and an overlay PNG for each pair."""
import argparse
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from torch import Tensor
from torchvision.transforms import functional as TF

import utils
from args import RecipeParser, get_parser
from bert import tokenize
from lib.checkpoint import read_checkpoint
from lib.model import ReferringSegmenter
from lib.segmentation import build, model_settings
from lib.strict_load import load_weights
from transforms import normalize
from utils import UserError

TINT = (240, 60, 160)


def parser() -> RecipeParser:
    """The flags of the network and the run, and the images and sentences."""
    flags = get_parser()
    flags.description = __doc__
    demo = flags.add_argument_group("demo")
    demo.add_argument("--image", nargs="+", required=True, metavar="FILE", help="images, of any size")
    demo.add_argument("--sentence", nargs="+", required=True, metavar="TEXT", help="each is applied to each image")
    demo.add_argument("--out", default="predictions", metavar="FOLDER", help="where the PNGs go (default: predictions)")
    return flags


def open_image(path: str) -> Image.Image:
    """The image as RGB, upright. Raises `UserError` if Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"--image {path} cannot be read: {error}") from error


@torch.inference_mode()
def segment(model: ReferringSegmenter, tokenizer: Tokenizer, image: Image.Image, sentences: list[str],
            size_px: int) -> Tensor:
    """Probability of the object meant by each sentence: (sentences, H, W) float32 in the image's own size."""
    device = next(model.parameters()).device
    pixels = TF.pil_to_tensor(TF.resize(image, [size_px, size_px]))[None].to(device)
    token_ids, token_mask = (torch.from_numpy(tokens).to(device) for tokens in tokenize(tokenizer, sentences))
    logits = model(normalize(pixels).expand(len(sentences), -1, -1, -1), token_ids, token_mask)
    logits = F.interpolate(logits, (image.height, image.width), mode="bilinear", align_corners=False)
    return logits.softmax(1)[:, 1].cpu()


def overlay(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The image with the mask (H, W) bool tinted."""
    pixels = np.asarray(image).copy()
    pixels[mask] = (0.5 * pixels[mask] + 0.5 * np.array(TINT)).astype(np.uint8)
    return Image.fromarray(pixels)


def run(args: argparse.Namespace) -> None:
    """All pairs of images and sentences; `main` says its user errors."""
    if not args.resume:
        raise UserError("--resume FILE is needed: the checkpoint to use")
    device = utils.init_processes(args.device, args.local_rank)
    checkpoint = read_checkpoint(args.resume)
    config, tokenizer = model_settings(args, checkpoint)
    model = build(config).eval()
    load_weights(model, checkpoint, args.resume)
    model.to(device)
    folder = Path(args.out)
    for path in args.image:
        image = open_image(path)
        probabilities = segment(model, tokenizer, image, args.sentence, config.img_size)
        for sentence, probability in zip(args.sentence, probabilities.numpy(), strict=True):
            mask = probability > 0.5
            name = f"{Path(path).stem}-{re.sub(r'[^a-z0-9]+', '-', sentence.lower()).strip('-')[:60]}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}-mask.png")
                overlay(image, mask).save(folder / f"{name}-overlay.png")
            except OSError as error:
                raise UserError(f"--out {folder} cannot be written: {error}") from error
            sure = f", mean probability {probability[mask].mean():.2f}" if mask.any() else ""
            print(f"{path}: '{sentence}': {mask.sum()} of {mask.size} pixels{sure} -> {folder / name}-overlay.png")


def main() -> None:
    args = parser().parse_args()
    with utils.user_errors("demo_inference.py"):
        run(args)


if __name__ == "__main__":
    main()

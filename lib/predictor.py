"""A trained network as a library: it segments the object in an image that a sentence refers to.

    from lib.predictor import Predictor
    mask = Predictor("checkpoint.pth").segment("photo.jpg", "the ship on the left")

Shapes: H, W the image's height and width, S the network's input size, n sentences, all sizes in pixels.
"""
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bert import PhraseMarker, reading_problems, tokenize
from lib.accelerate import accelerate, autocast, prepare_for_inference, set_up_cuda, usable_amp
from lib.checkpoint import restore
from lib.checkpoint.model_folder import fetch_folder
from lib.imagery.pictures import array_to_picture, read_picture, to_rgb
from transforms import normalize, resize_image
from utils import UserError

Picture = str | Path | Image.Image | np.ndarray
Progress = Callable[[Sequence[tuple[int, int]]], Iterable[tuple[int, int]]]


class ReadingWarning(UserWarning):
    """The network does not receive all of a sentence: its vocabulary lacks a word, or the sentence is too long."""


@dataclass(frozen=True)
class Segmentation:
    """A mask (H, W) bool, and the mean probability inside it (0 for an empty mask)."""

    mask: np.ndarray
    mean_probability: float


class Predictor:
    """Segments images with the network of a checkpoint, which is a file or a model folder.

    An image is a path, a Pillow image of any mode, or an array (H, W), (H, W, 3) or (H, W, 4); arrays of other types
    than uint8 are stretched to 8 bits (see `lib.imagery.pictures`). An image of any size is resized to the network's
    input size, and the mask back to the image's. If a sentence has too many words, or words that the network does not
    know, it is segmented with a `ReadingWarning`.

    `device` is 'cuda', 'cpu' or the like (default: a GPU if there is one); `amp` is the precision as in args.py; `fast`
    folds BatchNorms and packs weights, as `--fuse` does. On a GPU the process computes float32 in TF32 from then on, as
    test.py does, unless `args` say otherwise (`--no-tf32`). An original checkpoint does not describe itself and needs
    `args`, the result of `args.get_parser().parse_args([…])` for its flags. A network that reads phrases also needs
    `class_names`, the names that it looks for in sentences (`refer.categories.CLASS_NAMES`). Raises `UserError` if the
    checkpoint cannot be used.
    """

    def __init__(self, checkpoint: str | Path, *, device: str | torch.device | None = None, amp: str = "off",
                 fast: bool = False, args: Namespace | None = None, class_names: Sequence[str] = ()):
        self.model, config, self.tokenizer = restore(str(checkpoint), args)
        if config.reads_phrases and not (class_names or config.class_names):
            raise UserError(f"{config.model} looks for the names of its data set's classes in a sentence, and the "
                            "checkpoint names none, as original ones do not: give class_names, or --dataset NAME")
        self.marker = PhraseMarker(class_names or config.class_names) if config.reads_phrases else None
        self.size_px, self.max_tokens = config.img_size, config.max_tokens
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda":
            set_up_cuda(getattr(args, "tf32", True), getattr(args, "cudnn_benchmark", True))
        self.amp = usable_amp(amp, self.device)
        accelerate(self.model.to(self.device), self.device)
        prepare_for_inference(self.model, self.amp, fold_batchnorm=fast)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> "Predictor":
        """A predictor from a checkpoint, a model folder, or a repository USER/NAME of the Hugging Face hub.

        A repository in this machine's cache is not fetched again. Raises `UserError` if it cannot be fetched.
        """
        return cls(source if Path(source).exists() else fetch_folder(str(source)), **options)

    def segment(self, image: Picture, sentence: str, threshold: float = 0.5) -> np.ndarray:
        """The mask of the referred object: (H, W) bool, where its probability is above `threshold` (0 to 1)."""
        return self.probabilities(image, [sentence])[0] > threshold

    def segment_batch(self, images: Sequence[Picture], sentences: Sequence[str], threshold: float = 0.5,
                      batch_size: int = 8) -> list[np.ndarray]:
        """`segment` for pairs of an image and a sentence, `batch_size` pairs at a time.

        Raises `ValueError` if the numbers of images and sentences differ.
        """
        if len(images) != len(sentences):
            raise ValueError(f"{len(images)} images but {len(sentences)} sentences: give one sentence an image")
        self.warn_of(sentences)
        masks: list[np.ndarray] = []
        for first in range(0, len(images), batch_size):
            pictures = [open_picture(image) for image in images[first:first + batch_size]]
            margins = self.margins(pictures, sentences[first:first + batch_size])
            masks += [probability(margin, picture.size[::-1]).numpy() > threshold
                      for margin, picture in zip(margins.split(1), pictures, strict=True)]
        return masks

    def probabilities(self, image: Picture, sentences: Sequence[str]) -> np.ndarray:
        """The probability of each sentence's object at each pixel: (n, H, W) float32, 0 to 1."""
        self.warn_of(sentences)
        picture = open_picture(image)
        margins = self.margins([picture] * len(sentences), sentences)
        return torch.cat([probability(margin, picture.size[::-1])[None] for margin in margins.split(1)]).numpy()

    def segment_scene(self, image: Picture, sentences: Sequence[str], tile_px: int, overlap: float = 0.25,
                      threshold: float = 0.5, progress: Progress = iter) -> list[Segmentation]:
        """The mask of each sentence's object, computed tile by tile for scenes much larger than training images.

        Tiles are `tile_px` wide and high and share `overlap` (0 to 0.9) of their side with their neighbours. Logits of
        overlapping tiles are averaged with weights that rise towards a tile's middle. Positions in a sentence ("on the
        left") are relative to a tile. `progress` may wrap the list of tiles' corners in a progress bar. An image no
        larger than a tile is one tile. Besides image and masks, memory holds one row of tiles.

        Raises `ValueError` for another `overlap`.
        """
        self.warn_of(sentences)
        picture = open_picture(image, any_size=True)
        masks = np.zeros((len(sentences), picture.height, picture.width), dtype=bool)
        sums = np.zeros(len(sentences))
        for top, found in self.bands(picture, sentences, tile_px, overlap, progress):
            inside = found > threshold
            masks[:, top:top + found.shape[1]] = inside
            sums += np.where(inside, found, 0).sum((1, 2), dtype=np.float64)
        return [Segmentation(mask, float(total / max(1, mask.sum()))) for mask, total in zip(masks, sums, strict=True)]

    def bands(self, picture: Image.Image, sentences: Sequence[str], tile_px: int, overlap: float,
              progress: Progress = iter) -> Iterator[tuple[int, np.ndarray]]:
        """Yields bands of `segment_scene`'s probabilities from top to bottom: first row, (n, rows, W) float32."""
        if not 0 <= overlap <= 0.9:
            raise ValueError(f"an overlap of {overlap} is not between 0 and 0.9")
        stride = max(1, round(tile_px * (1 - overlap)))
        tops, lefts = (starts(length, tile_px, stride) for length in (picture.height, picture.width))
        height, width = min(tile_px, picture.height), min(tile_px, picture.width)
        weight = tent(height)[:, None] * tent(width)
        margin_sum = torch.zeros(len(sentences), height, picture.width)   # over the rows that a row of tiles covers
        weight_sum = torch.zeros(height, picture.width)
        for top, left in progress([(top, left) for top in tops for left in lefts]):
            tile = picture.crop((left, top, left + width, top + height))
            margins = self.margins([tile] * len(sentences), sentences)
            columns = slice(left, left + width)
            margin_sum[:, :, columns] += weight * resized(margins, (height, width))
            weight_sum[:, columns] += weight
            if left == lefts[-1]:   # the pixels above the next row of tiles are complete
                below = next((other for other in tops if other > top), top + height)
                done = below - top
                yield top, torch.sigmoid(margin_sum[:, :done] / weight_sum[:done]).numpy()
                margin_sum = torch.cat([margin_sum[:, done:], torch.zeros_like(margin_sum[:, :done])], dim=1)
                weight_sum = torch.cat([weight_sum[done:], torch.zeros_like(weight_sum[:done])])

    def warn_of(self, sentences: Sequence[str]) -> None:
        """Issues a `ReadingWarning` for each part of a sentence that the network does not receive as written."""
        for sentence in dict.fromkeys(sentences):
            for problem in reading_problems(self.tokenizer, sentence, self.max_tokens):
                warnings.warn(f"'{sentence}': {problem}", ReadingWarning, stacklevel=3)

    @torch.inference_mode()
    def margins(self, pictures: Sequence[Image.Image], sentences: Sequence[str]) -> Tensor:
        """The object's logit less the background's, at the network's size: (B, S, S) float32 on the CPU."""
        small = {id(picture): resize_image(picture, self.size_px) for picture in pictures}
        image = torch.stack([small[id(picture)] for picture in pictures]).to(self.device)
        words = (torch.from_numpy(read).to(self.device)
                 for read in tokenize(self.tokenizer, list(sentences), self.max_tokens, self.marker))
        with autocast(self.device, self.amp):
            logits = self.model(normalize(image), *words)
        return (logits[:, 1] - logits[:, 0]).float().cpu()


def open_picture(image: Picture, any_size: bool = False) -> Image.Image:
    """`image` as an RGB image. Raises `UserError` for an unreadable file, `ValueError` for a wrong array."""
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else to_rgb(image)
    return array_to_picture(image) if isinstance(image, np.ndarray) else read_picture(image, any_size)


def resized(margins: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing: (n, S, S) -> (n, *size)."""
    return F.interpolate(margins[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def probability(margin: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, S, S) -> (H, W): the object's probability, the softmax of both resized logits."""
    return torch.sigmoid(resized(margin, size))[0]


def starts(length: int, tile: int, stride: int) -> list[int]:
    """The starts of tiles that cover `length` without reaching beyond it; 0 alone if a tile is longer."""
    return [*range(0, length - tile, stride), length - tile] if length > tile else [0]


def tent(length: int) -> Tensor:
    """Positive weights (length,) that rise from the ends to the middle."""
    ramp = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(ramp, ramp.flip(0)) / length

"""A trained network as a library: it segments the object in an image that a sentence refers to.

    from lib.predictor import Predictor
    mask = Predictor("checkpoint.pth").segment("photo.jpg", "the ship on the left")

Shapes: H, W the image's height and width, S the network's input size, n sentences, all sizes in pixels.
"""
import math
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

from bert import PhraseMarker, layout_of, reading_problems, tokenize
from lib.accelerate import accelerate, autocast, prepare_for_inference, set_up_cuda, usable_amp
from lib.accelerate.threads import LentThreads, choose_threads
from lib.checkpoint import restore
from lib.checkpoint.model_folder import fetch_folder
from lib.imagery.drawing import Shown, overlay
from lib.imagery.scenes import Scene
from lib.imagery.sources import Plain, Tile, in_one_piece, open_source
from lib.report.attention_maps import has_word_maps, word_maps
from transforms import normalize, resize_image
from utils import UserError

Picture = str | Path | Image.Image | np.ndarray | Tensor
Progress = Callable[[Sequence[tuple[int, int]]], Iterable[tuple[int, int]]]

BAND_ROWS = 256                  # of a scene's probabilities that are computed at a time
MOST_ROW_BYTES = 8 << 30         # of the logits of a row of tiles
MOST_TILES = 1_000_000           # of a scene: a file of a few kilobytes may claim any size
SHOWN_CHARACTERS = 80            # of a sentence in a warning


class ReadingWarning(UserWarning):
    """The network does not receive all of a sentence: its vocabulary lacks a word, or the sentence is too long.

    The text is cut to a line's length; `sentence` and `problem` hold all of it.
    """

    def __init__(self, sentence: str, problem: str):
        super().__init__(f"'{cut(sentence)}': {cut(problem, 3 * SHOWN_CHARACTERS)}")
        self.sentence, self.problem = sentence, problem


@dataclass(frozen=True)
class Segmentation:
    """A mask (H, W) bool, and the mean probability inside it (0 for an empty mask)."""

    mask: np.ndarray
    mean_probability: float

    def _repr_png_(self) -> bytes | None:
        """Notebooks show the mask."""
        return self.mask.view(Shown)._repr_png_()


class Predictor:
    """Segments images with the network of a checkpoint, which is a file or a model folder.

    An image is a path, a Pillow image of any mode, an array (H, W) or (H, W, 3), or a tensor (3, H, W); the last two
    hold uint8, or floats from 0 to 1. An array or tensor of four or more channels needs `bands`, one or three of them,
    1-based; an array of four may also declare the fourth as opacity by `alpha=True`. `bands` also selects the bands of
    a file; see `lib.imagery.scenes` for scenes. Anything else raises a `TypeError` or `ValueError` of one line, and a
    file that cannot be read a `UserError`. An image of any size is resized to the network's input size, and the mask
    back to the image's. If a sentence has too many words, or words that the network does not know, it is segmented
    with a `ReadingWarning`.

    `device` is 'cuda', 'cpu' or the like (default: a GPU if there is one); `amp` is the precision as in args.py; `fast`
    folds BatchNorms and packs weights, as `--fuse` does. On a GPU the process computes float32 in TF32 from then on, as
    test.py does, unless `args` say otherwise (`--no-tf32`). On a CPU that other programs use, too, it computes with
    fewer threads where these are faster, unless the variable `OMP_NUM_THREADS` is set. A process that is forked from
    one with a predictor must call `torch.set_num_threads(1)` before it computes, or it would wait for the threads of
    its parent for ever. An original checkpoint does not describe itself and needs
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
        self.threads = choose_threads(self.device, kind=LentThreads)
        accelerate(self.model.to(self.device), self.device)
        prepare_for_inference(self.model, self.amp, fold_batchnorm=fast)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> "Predictor":
        """A predictor from a checkpoint, a model folder, or a repository USER/NAME of the Hugging Face hub.

        A repository in this machine's cache is not fetched again. Raises `UserError` if it cannot be fetched.
        """
        return cls(source if Path(source).exists() else fetch_folder(str(source)), **options)

    def segment(self, image: Picture, sentence: str | Sequence[str], threshold: float = 0.5, *,
                bands: Sequence[int] = (), alpha: bool = False) -> np.ndarray:
        """The mask of the referred object: (H, W) bool, where its probability is above `threshold` (0 to 1).

        A list of sentences gives (n, H, W). Notebooks show the result as a picture.
        """
        return (self.probabilities(image, sentence, bands=bands, alpha=alpha) > threshold).view(Shown)

    def segment_batch(self, images: Sequence[Picture], sentences: str | Sequence[str], threshold: float = 0.5,
                      batch_size: int = 8, *, bands: Sequence[int] = (), alpha: bool = False) -> list[np.ndarray]:
        """`segment` for pairs of an image and a sentence, `batch_size` pairs at a time; one sentence stands for all.

        Raises `ValueError` if the numbers of images and sentences differ.
        """
        sentences = [sentences] * len(images) if isinstance(sentences, str) else check_sentences(sentences)
        if len(images) != len(sentences):
            raise ValueError(f"{len(images)} images but {len(sentences)} sentences: give one sentence an image")
        self.warn_of(sentences)
        masks: list[np.ndarray] = []
        for first in range(0, len(images), batch_size):
            tiles = [open_whole(image, bands, alpha) for image in images[first:first + batch_size]]
            found = self.batch_probabilities(tiles, sentences[first:first + batch_size])
            masks += [(probability > threshold).view(Shown) for probability in found]
        return masks

    def probabilities(self, image: Picture, sentences: str | Sequence[str], *, bands: Sequence[int] = (),
                      alpha: bool = False) -> np.ndarray:
        """The probability of each sentence's object at each pixel: (n, H, W) float32, 0 to 1; (H, W) for one `str`."""
        single = isinstance(sentences, str)
        wanted = [sentences] if isinstance(sentences, str) else check_sentences(sentences)
        self.warn_of(wanted)
        tile = open_whole(image, bands, alpha)
        found = self.batch_probabilities([tile] * len(wanted), wanted)
        return (found[0] if single else np.stack(found)).view(Shown)

    def batch_probabilities(self, tiles: Sequence[Tile], sentences: Sequence[str]) -> list[np.ndarray]:
        """The probabilities of pairs, which are computed together: (H, W) float32 each, 0 where a tile has no value."""
        found = []
        for margin, tile in zip(self.margins([tile.picture for tile in tiles], sentences).split(1), tiles, strict=True):
            one = torch.sigmoid(resized(margin, tile.picture.size[::-1]))[0].numpy()   # softmax of both resized logits
            found.append(one if tile.valid is None else one * tile.valid)
        return found

    def overlay(self, image: Picture, mask: np.ndarray, *, bands: Sequence[int] = (),
                alpha: bool = False) -> Image.Image:
        """The image with a mask (H, W) bool tinted inside and outlined, which notebooks show.

        Raises `ValueError` for a mask of another shape.
        """
        picture = open_whole(image, bands, alpha).picture
        mask = np.asarray(mask)
        if mask.shape != picture.size[::-1] or mask.dtype != bool:
            raise ValueError(f"a mask must be {picture.size[::-1]} bool, as the image is large; it is {mask.shape} "
                             f"{mask.dtype}")
        return Image.fromarray(overlay(np.asarray(picture), mask))

    @torch.inference_mode()
    def attention(self, image: Picture, sentence: str, *, bands: Sequence[int] = (), alpha: bool = False) -> np.ndarray:
        """The attention that each pixel pays to each of `words(sentence)`: (words, H, W) float32, 0 to 1.

        These are PWAM's weights in the third stage, resized to the image.
        """
        check_sentences([sentence])
        if not has_word_maps(self.model):
            raise ValueError("this network's fusion has no attention_weights, of which the maps would be made")
        self.warn_of([sentence])
        picture = open_whole(image, bands, alpha).picture
        words = self.read([sentence])
        with autocast(self.device, self.amp):
            maps = word_maps(self.model, normalize(self.to_network([picture])), *words)[0].float().cpu()
        return resized(maps[self.columns_of_words(words[1])], picture.size[::-1]).numpy().view(Shown)

    def words(self, sentence: str) -> list[str]:
        """The tokens that the network reads of a sentence, without the special ones around them."""
        ids, mask = self.read([sentence])[:2]
        return [self.tokenizer.id_to_token(token) or "?" for token in ids[0, self.columns_of_words(mask)].tolist()]

    def columns_of_words(self, token_mask: Tensor) -> slice:
        """The columns of a sentence's words, given its mask (1, N), without the special tokens around them."""
        return layout_of(self.tokenizer).words(int(token_mask.sum()), token_mask.shape[1])

    def segment_scene(self, image: Picture, sentences: str | Sequence[str], tile_px: int, overlap: float = 0.25,
                      threshold: float = 0.5, progress: Progress = iter, *, bands: Sequence[int] = (),
                      alpha: bool = False) -> list[Segmentation]:
        """The mask of each sentence's object, computed tile by tile for scenes much larger than training images.

        Tiles are `tile_px` wide and high and share `overlap` (0 to 0.9) of their side with their neighbours. Logits of
        overlapping tiles are averaged with weights that rise towards a tile's middle. Positions in a sentence ("on the
        left") are relative to a tile. `progress` may wrap the list of tiles' corners in a progress bar. An image no
        larger than a tile is one tile. Besides the masks, and the image unless it is a scene's file, memory holds one
        row of tiles.

        Raises `ValueError` for another `overlap`.
        """
        sentences = [sentences] if isinstance(sentences, str) else check_sentences(sentences)
        self.warn_of(sentences)
        source = open_source(as_array(image, bands), True, bands, alpha)
        try:
            masks = np.zeros((len(sentences), *source.size[::-1]), dtype=bool)
            sums = np.zeros(len(sentences))
            for top, found in self.bands(source, sentences, tile_px, overlap, progress):
                inside = found > threshold
                masks[:, top:top + found.shape[1]] = inside
                sums += np.where(inside, found, 0).sum((1, 2), dtype=np.float64)
        finally:
            if isinstance(source, Scene):
                source.close()
        return [Segmentation(mask, float(total / max(1, mask.sum()))) for mask, total in zip(masks, sums, strict=True)]

    def bands(self, image: Picture | Plain | Scene, sentences: Sequence[str], tile_px: int, overlap: float,
              progress: Progress = iter) -> Iterator[tuple[int, np.ndarray]]:
        """Yields bands of `segment_scene`'s probabilities from top to bottom: first row, (n, rows, W) float32.

        Pixels without a value have the probability 0, and a tile of such pixels only is not computed. Raises
        `UserError` if there are too many tiles, or if a row of tiles of so wide a scene does not fit into memory.
        """
        source = open_source(image, True)
        lefts, tops = tile_starts(source.size, len(sentences), tile_px, overlap)
        width, height = (min(tile_px, length) for length in source.size)
        weight = tent(height)[:, None] * tent(width)
        row_weight, column_weight = (sum_of_tents(length, where, side) for length, where, side in
                                     ((source.size[1], tops, height), (source.size[0], lefts, width)))
        margin_sum = torch.zeros(len(sentences), height, source.size[0])   # over the rows that a row of tiles covers
        valid = np.ones((height, source.size[0]), bool)
        for top, left in progress([(top, left) for top in tops for left in lefts]):
            columns = slice(left, left + width)
            picture, inside = source.crop((left, top, left + width, top + height))
            valid[:, columns] = True if inside is None else inside
            if inside is None or inside.any():
                margins = self.margins([picture] * len(sentences), sentences)
                margin_sum[:, :, columns] += weight * resized(margins, (height, width))
            if left != lefts[-1]:
                continue
            below = next((other for other in tops if other > top), top + height)
            done = below - top   # rows above the next row of tiles are complete
            for first in range(0, done, BAND_ROWS):
                rows = slice(first, min(first + BAND_ROWS, done))
                weights = row_weight[top + rows.start:top + rows.stop, None] * column_weight
                yield top + first, torch.sigmoid(margin_sum[:, rows] / weights).numpy() * valid[rows]
            for sum_of_one in margin_sum:   # in place: the sums of a wide scene are large
                kept = sum_of_one[done:].clone()
                sum_of_one[:height - done] = kept
                sum_of_one[height - done:] = 0

    def warn_of(self, sentences: Sequence[str]) -> None:
        """Issues a `ReadingWarning` for each part of a sentence that the network does not receive as written."""
        for sentence in dict.fromkeys(sentences):
            for problem in reading_problems(self.tokenizer, sentence, self.max_tokens):
                warnings.warn(ReadingWarning(sentence, problem), stacklevel=3)

    def read(self, sentences: Sequence[str]) -> tuple[Tensor, ...]:
        """The network's arguments beside the image: token ids and token mask, (n, N) each, and phrase masks if any."""
        return tuple(torch.from_numpy(read).to(self.device)
                     for read in tokenize(self.tokenizer, list(sentences), self.max_tokens, self.marker))

    def to_network(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RGB images resized to the network's size: (B, 3, S, S) uint8."""
        return torch.stack([resize_image(picture, self.size_px) for picture in pictures]).to(self.device)

    @torch.inference_mode()
    def margins(self, pictures: Sequence[Image.Image], sentences: Sequence[str]) -> Tensor:
        """The object's logit less the background's, at the network's size: (B, S, S) float32 on the CPU.

        One picture for all sentences is resized once.
        """
        same = all(picture is pictures[0] for picture in pictures)
        image = self.to_network(pictures[:1] if same else pictures).expand(len(sentences), -1, -1, -1)
        with self.threads.step(), autocast(self.device, self.amp):
            logits = self.model(normalize(image), *self.read(sentences))
        return (logits[:, 1] - logits[:, 0]).float().cpu()


def cut(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """The text, cut to `most` characters."""
    return text if len(text) <= most else text[:most - 1] + "…"


def check_sentences(sentences: Any) -> list[str]:
    """A list of sentences. Raises `TypeError` for anything else, and `ValueError` for none."""
    if not isinstance(sentences, (list, tuple)) or not all(isinstance(sentence, str) for sentence in sentences):
        kind = type(sentences).__name__
        raise TypeError(f"a sentence must be a str, and several a list of str; this is of type {kind}" + (
            " with other types in it" if kind in ("list", "tuple") else ""))
    if not sentences:
        raise ValueError("no sentence was given: give one, or a list with at least one")
    return list(sentences)


def as_array(image: Any, bands: Sequence[int] = ()) -> Any:
    """A tensor (3, H, W), as torchvision has it, as an array (H, W, 3); anything else as it is.

    Raises `ValueError` for a tensor of another shape. With `bands`, it may have any number of channels.
    """
    if not isinstance(image, Tensor):
        return image
    if image.ndim != 3 or not (image.shape[0] in (1, 3, 4) or bands):
        raise ValueError(f"an image tensor must be (3, H, W); it is {tuple(image.shape)} of {image.dtype}")
    if image.dtype == torch.bfloat16:   # unknown to NumPy
        image = image.float()
    return image.detach().cpu().numpy().transpose(1, 2, 0)


def open_whole(image: Picture, bands: Sequence[int] = (), alpha: bool = False) -> Tile:
    """`image` as one RGB tile. Raises as `lib.imagery.sources.open_source` does."""
    source = open_source(as_array(image, bands), False, bands, alpha)
    try:
        return in_one_piece(source)
    finally:
        if isinstance(source, Scene):
            source.close()


def resized(margins: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing: (n, S, S) -> (n, *size)."""
    return F.interpolate(margins[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def starts(length: int, tile: int, stride: int) -> list[int]:
    """The starts of tiles that cover `length` without reaching beyond it; 0 alone if a tile is longer."""
    return [*range(0, length - tile, stride), length - tile] if length > tile else [0]


def tile_starts(size: tuple[int, int], sentences: int, tile_px: int, overlap: float) -> tuple[list[int], list[int]]:
    """The starts of the columns and rows of tiles that cover a scene of a size (W, H), for so many sentences.

    Raises `ValueError` for an overlap that is not from 0 to 0.9, and `UserError` if there are too many tiles, or if a
    row of tiles of so wide a scene does not fit into memory.
    """
    if not 0 <= overlap <= 0.9:
        raise ValueError(f"an overlap of {overlap} is not between 0 and 0.9")
    stride = max(1, round(tile_px * (1 - overlap)))
    if (tiles := math.prod(-(-length // stride) for length in size)) > MOST_TILES:
        raise UserError(f"the scene is {size[0]} × {size[1]} px, which are {tiles:,} tiles of {tile_px} px, more than "
                        f"{MOST_TILES:,}: give a larger --tile, or cut the scene")
    if (needed := 4 * sentences * min(tile_px, size[1]) * size[0]) > MOST_ROW_BYTES:
        raise UserError(f"the scene is {size[0]} px wide: a row of tiles of {tile_px} px would take "
                        f"{needed / 2**30:.0f} GiB; give a smaller --tile, or fewer sentences at a time")
    lefts, tops = (starts(length, tile_px, stride) for length in size)
    return lefts, tops


def tent(length: int) -> Tensor:
    """Positive weights (length,) that rise from the ends to the middle."""
    ramp = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(ramp, ramp.flip(0)) / length


def sum_of_tents(length: int, where: Sequence[int], side: int) -> Tensor:
    """The weights of all tiles of a side that start at `where`: (length,)."""
    total = torch.zeros(length)
    for start in where:
        total[start:start + side] += tent(side)
    return total

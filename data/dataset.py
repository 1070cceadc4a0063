"""Refs of one split as samples: what training draws, and what evaluation goes through.

A sample is a dict of `image` (3, S, S) uint8, `target` (S, S) uint8 of 0 and 1, `token_ids` and `token_mask`
(N,) int64, and `index`, an int. Pictures travel as uint8 and are normalised on the device (`transforms.normalize`).
Where bad images are skipped, `problem` says what was wrong with one; in evaluation such a sample has nothing else.
"""
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

import transforms
from bert import tokenize
from data.packed import PackedRefs
from distributed import from_first_process
from refer.masks import BadImage
from refer.refer import REFER
from utils import UserError, log


class RefTokens:
    """The tokens of all sentences of some refs: row `first[i] + j` is sentence j of ref i."""

    def __init__(self, refs: list[dict[str, Any]], token_ids: np.ndarray, token_mask: np.ndarray):
        self.counts = [len(ref["sentences"]) for ref in refs]
        self.first = np.cumsum([0, *self.counts[:-1]]).tolist()
        self.token_ids, self.token_mask = torch.from_numpy(token_ids), torch.from_numpy(token_mask)

    def __call__(self, ref_index: int, sentence_index: int) -> dict[str, Tensor]:
        row = self.first[ref_index] + sentence_index
        return {"token_ids": self.token_ids[row], "token_mask": self.token_mask[row]}


def tokenize_refs(tokenizer: Tokenizer, refs: list[dict[str, Any]]) -> RefTokens:
    """Every sentence of every ref from its `raw` text, tokenised once for all processes."""
    sentences = [sentence["raw"] for ref in refs for sentence in ref["sentences"]]
    return RefTokens(refs, *from_first_process(lambda: tokenize(tokenizer, sentences)))


def load_image_and_mask(refer: REFER, ref: dict[str, Any]) -> tuple[Image.Image, np.ndarray]:
    """A ref's image, RGB, and its mask (H, W) uint8 of 0 and 1, each in its own size. Raises `BadImage`.

    A mask that is a picture must have its image's size; one that annotations hold need not (RRSIS-D's quirk).
    """
    path = Path(refer.image_path(ref))
    where = refer.where(ref)
    try:
        with Image.open(path) as opened:
            opened.load()
            image = opened if opened.mode == "RGB" else opened.convert("RGB")   # converting RGB would copy it
    except FileNotFoundError as error:
        raise BadImage(f"{where}: its image {path} is missing; complete the download "
                       "(refer/data/README.md says from where)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"{where}: its image {path} cannot be read ({error}); "
                       "fetch that file again") from error
    mask = refer.getMask(ref)["mask"]
    if "mask_path" in (annotation := refer.refToAnn[ref["ref_id"]]) and image.size != mask.shape[::-1]:
        raise BadImage(f"{where}: its mask {annotation['mask_path']} is {mask.shape[1]}×{mask.shape[0]}, its image "
                       f"{path} {image.width}×{image.height}; a mask picture must have its image's size, fetch both "
                       "again")
    return image, mask


def identify(refer: REFER, ref: dict[str, Any], sentence_index: int) -> dict[str, Any]:
    """What results say of a sample: `ref_id`, `sent_id`, `image_id`, `category` (its name), `sentence`."""
    sentence = ref["sentences"][sentence_index]
    return {"ref_id": ref["ref_id"], "sent_id": sentence["sent_id"], "image_id": ref["image_id"],
            "category": refer.Cats[ref["category_id"]], "sentence": sentence["raw"]}


class ReferDataset(Dataset):
    """The refs of one split with their images and masks, resized to `size_px`.

    `packed` names a file that `tools/pack_dataset.py` wrote; '' reads the images themselves. Raises `UserError` when
    a split has no refs, and, unless `skip_bad_images`, when a sample's image is missing or broken.
    """

    def __init__(self, refer: REFER, split: str, tokenizer: Tokenizer, size_px: int, skip_bad_images: bool = False,
                 packed: str = ""):
        self.refer, self.tokenizer, self.size_px, self.skip_bad_images = refer, tokenizer, size_px, skip_bad_images
        self.packed = PackedRefs(packed, refer, size_px) if packed else None
        self.said_that_sizes_differ = False
        self.refs = refer.loadRefs(refer.getRefIds(split=split))
        self.tokens = tokenize_refs(tokenizer, self.refs)

    def load(self, ref: dict[str, Any]) -> tuple[Image.Image, np.ndarray]:
        """The ref's image, RGB, and its mask (H, W) uint8 of 0 and 1, each in its own size."""
        image, mask = load_image_and_mask(self.refer, ref)
        if image.size != mask.shape[::-1] and not self.said_that_sizes_differ:
            self.said_that_sizes_differ = True
            log(f"ref {ref['ref_id']}: its image {self.refer.image_path(ref)} is {image.width}×{image.height}, its "
                f"mask {mask.shape[1]}×{mask.shape[0]}; each is resized to {self.size_px} px, which is right if they "
                "show the same ground (tools/check_dataset.py lists all of these)")
        return image, mask

    def resized(self, ref: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The ref's image (3, S, S) and mask (S, S), uint8; from the packed file if there is one."""
        return self.packed.load(ref) if self.packed else transforms.resize(*self.load(ref), self.size_px)


class TrainSet(ReferDataset):
    """One sample a ref, with one of its sentences drawn anew each epoch.

    The index is a pair (epoch, ref index). All that is random about a sample follows from the seed and that
    pair, so it does not depend on the number of workers or processes, nor on where a run was resumed.
    `random_box_share` of the refs, drawn here, have black squares pasted on their images. A bad image that is
    skipped is replaced by the next ref's sample.
    """

    LONGEST_RUN_OF_BAD_IMAGES = 10  # more, and the folder is at fault

    def __init__(self, refer: REFER, split: str, tokenizer: Tokenizer, size_px: int, seed: int,
                 random_box_share: float = 0.0, skip_bad_images: bool = False, packed: str = ""):
        super().__init__(refer, split, tokenizer, size_px, skip_bad_images, packed)
        self.seed = seed
        count = int(random_box_share * len(self.refs))
        self.boxed = frozenset(random.Random(seed).sample(range(len(self.refs)), count))

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        problems: list[str] = []
        while True:
            try:
                sample = self.draw(epoch, (index + len(problems)) % len(self))
                return {**sample, "problem": "; ".join(problems)} if problems else sample
            except BadImage as error:
                problems.append(str(error))
                if not self.skip_bad_images or len(problems) > self.LONGEST_RUN_OF_BAD_IMAGES:
                    raise

    def draw(self, epoch: int, index: int) -> dict[str, Any]:
        """The sample of one ref in one epoch. Raises `BadImage`."""
        draw = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(draw >> np.uint64(1)))
        sentence = int(torch.randint(self.tokens.counts[index], (), generator=generator))
        if index in self.boxed:   # before resizing, so from the image's own file even where others are packed
            image, mask = self.load(self.refs[index])
            image, target = transforms.resize(transforms.add_random_boxes(image, generator), mask, self.size_px)
        else:
            image, target = self.resized(self.refs[index])
        return {"image": image, "target": target, "index": index, **self.tokens(index, sentence)}


class EvalSet(ReferDataset):
    """One sample a (ref, sentence), in the order of the refs.

    With `shuffle_seed`, the control: each ref is shown the sentences of another ref, drawn by that seed.
    With `one_sentence_seed`, one sentence a ref, drawn by that seed (the published way to validate).
    """

    def __init__(self, refer: REFER, split: str, tokenizer: Tokenizer, size_px: int, shuffle_seed: int | None = None,
                 one_sentence_seed: int | None = None, skip_bad_images: bool = False, packed: str = ""):
        super().__init__(refer, split, tokenizer, size_px, skip_bad_images, packed)
        self.samples = [(i, j) for i, ref in enumerate(self.refs) for j in range(len(ref["sentences"]))]
        if one_sentence_seed is not None:
            draw = random.Random(one_sentence_seed)
            self.samples = [(i, draw.randrange(len(ref["sentences"]))) for i, ref in enumerate(self.refs)]
        self.speaker = list(range(len(self.refs)))  # whose sentences each ref is shown
        if shuffle_seed is not None:
            if len(self.refs) < 2:
                raise UserError("--shuffle_sentences needs a split of at least two refs")
            order = random.Random(shuffle_seed).sample(self.speaker, len(self.speaker))
            for ref_index, other in zip(order, order[1:] + order[:1], strict=True):
                self.speaker[ref_index] = other
        self.last: tuple[int, Tensor, Tensor] | None = None  # sentences of one ref follow each other

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ref_index, sentence_index = self.samples[index]
        if self.last is None or self.last[0] != ref_index:
            try:
                self.last = ref_index, *self.resized(self.refs[ref_index])
            except BadImage as error:
                if not self.skip_bad_images:
                    raise
                return {"problem": str(error)}
        _, image, target = self.last
        speaker = self.speaker[ref_index]
        sentence = sentence_index % self.tokens.counts[speaker]
        return {"image": image, "target": target, "index": index, **self.tokens(speaker, sentence)}

    def ref_of(self, index: int) -> dict[str, Any]:
        """The ref of a sample."""
        return self.refs[self.samples[index][0]]

    def picture(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """A sample's image, RGB, and its mask (H, W) uint8 of 0 and 1, each in its own size. Raises `BadImage`."""
        return load_image_and_mask(self.refer, self.ref_of(index))

    def original_mask(self, index: int) -> np.ndarray:
        """A sample's mask (H, W) uint8 of 0 and 1 in its own size."""
        return self.refer.getMask(self.ref_of(index))["mask"]

    def describe(self, index: int) -> dict[str, Any]:
        """What `identify` says of a sample, with the sentence that the network was shown."""
        ref_index, sentence_index = self.samples[index]
        speaker = self.refs[self.speaker[ref_index]]
        shown = speaker["sentences"][sentence_index % len(speaker["sentences"])]
        return {**identify(self.refer, self.refs[ref_index], sentence_index), "sentence": shown["raw"]}

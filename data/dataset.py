"""The refs of a split as samples, which training draws at random and evaluation shows in order.

A sample is a dict of `image` (3, S, S) uint8, `target` (S, S) uint8 of 0 and 1, `token_ids` and `token_mask`
(N,) int64, and `index`, an int; for networks that read phrases also `phrase_masks` (2, N) int64. Pictures travel as
uint8 and are normalised on the device (`transforms.network_inputs`).
Where bad images are skipped, `problem` describes a bad one; in evaluation such a sample has no other entry.
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
from bert.phrases import PhraseMarker
from bert.tokenizer import MAX_TOKENS, layout_of, real_tokens, tokenize_many
from data.packed import PackedRefs
from data.shared import MadeApart, save, shared_arrays
from data.toy import is_toy
from refer.located import LocatedRefs
from refer.masks import BadImage
from refer.refer import REFER
from refer.selection import excluded, leaks, read_exclusions
from refer.table import RefRows, RefTable, read_arrays
from utils import UserError, log
from utils.image_files import DEEP_MODES, open_image

MOST_STRETCHED = 1.5   # a mask's ratio of sides over its image's; RRSIS-D has masks of 800×800 of images of 800×787


class RefsReader:
    """Reads the refs of one data set or of several (see `refer.layouts.parse_datasets`), once for all processes.

    Every process makes a reader before it starts threads (see `MadeApart`). On each machine the process with
    `local_rank` 0 then begins to read. Later, every process calls `refs`.
    """

    def __init__(self, data_root: str, datasets: str, split_by: str, published_masks: bool = False,
                 local_rank: int = 0):
        def read() -> dict[str, np.ndarray]:
            return read_arrays(data_root, datasets, split_by, published_masks)

        self.reading = MadeApart(read, begin=local_rank == 0)

    def refs(self) -> RefTable:
        """The refs, when they are read. Raises `UserError` as `REFER` does."""
        table = RefTable(shared_arrays(self.reading.write, ready=self.reading.child > 0))
        for note in table.notes:
            log(note)
        return table


def read_refs(data_root: str, datasets: str, split_by: str, published_masks: bool = False) -> RefTable:
    """What a `RefsReader` reads, in a program of one process. Raises `UserError` as `REFER` does."""
    return RefsReader(data_root, datasets, split_by, published_masks).refs()


class RefTokens:
    """The tokens of all sentences of some refs. Ref i has `counts[i]` sentences; row `first[i] + j` is its sentence j.

    `phrase_masks` (sentences, 2, N) uint8 exist for networks that read phrases.
    """

    def __init__(self, first: np.ndarray, token_ids: np.ndarray, lengths: np.ndarray,
                 phrase_masks: np.ndarray | None = None, pads_left: bool = False):
        self.first, self.counts = first[:-1], np.diff(first)
        self.token_ids, self.lengths, self.phrase_masks = token_ids, lengths, phrase_masks
        self.pads_left = pads_left

    def __call__(self, ref_index: int, sentence_index: int) -> dict[str, Tensor]:
        row = self.first[ref_index] + sentence_index
        token_ids = torch.from_numpy(self.token_ids[row].astype(np.int64))
        mask, = real_tokens(self.lengths[row:row + 1], len(token_ids), self.pads_left)
        read = {"token_ids": token_ids, "token_mask": torch.from_numpy(mask.astype(np.int64))}
        if self.phrase_masks is not None:
            read["phrase_masks"] = torch.from_numpy(self.phrase_masks[row].astype(np.int64))
        return read


def tokenize_refs(tokenizer: Tokenizer, refs: RefRows, max_tokens: int = MAX_TOKENS,
                  phrases: bool = False) -> RefTokens:
    """Tokenises every sentence of every ref from its `raw` text, once for all processes of a machine.

    With `phrases`, tokens that name the object and its place are marked, too. Raises `UserError` if nltk is missing.
    """
    begins, ends = refs.table.first_sentence[refs.rows], refs.table.first_sentence[refs.rows + 1]
    first = np.concatenate([[0], np.cumsum(ends - begins)])
    texts = refs.table.texts["sentences"]

    def make() -> dict[str, np.ndarray]:
        sentences = (texts[place] for begin, end in zip(begins, ends, strict=True) for place in range(begin, end))
        token_ids, lengths = tokenize_many(tokenizer, sentences, int(first[-1]), max_tokens)
        arrays = {"token_ids": token_ids, "lengths": lengths}
        return {**arrays, "phrase_masks": mark_phrases(refs, lengths, max_tokens)} if phrases else arrays

    return RefTokens(first, **shared_arrays(lambda folder: save(make(), folder)),
                     pads_left=layout_of(tokenizer).pads_left)


def mark_phrases(refs: RefRows, lengths: np.ndarray, max_tokens: int) -> np.ndarray:
    """The phrase masks of all sentences of some refs: (sentences, 2, max_tokens) uint8.

    `lengths` (sentences,) are in tokens. The class names to look for are those of each ref's data set.
    """
    table = refs.table
    markers = [PhraseMarker(table.class_names(source)) for source in range(len(table.sources))]
    masks = np.zeros((len(lengths), 2, max_tokens), dtype=np.uint8)
    row = 0
    for ref in refs.rows.tolist():
        for place in range(table.first_sentence[ref], table.first_sentence[ref + 1]):
            real = (np.arange(max_tokens) < lengths[row])[None]
            masks[row], = markers[table.source_of[ref]]([table.texts["sentences"][place]], real)
            row += 1
    return masks


def load_image_and_mask(refs: LocatedRefs, ref: Any) -> tuple[Image.Image, np.ndarray]:
    """A ref's image, RGB, and its mask (H, W) uint8 of 0 and 1, each in its own size. Raises `BadImage`.

    A mask in a picture file must have the size of its image. A mask in the annotations must have about its shape: some
    of RRSIS-D's differ by a few pixels.
    """
    path = refs.image_path(ref)
    try:
        with open_image(path) as opened:
            opened.load()
            if opened.mode in DEEP_MODES:
                raise ValueError(f"it has more than 8 bits in a channel, {opened.mode}: save it with 8 bits first")
            image = opened if opened.mode == "RGB" else opened.convert("RGB")   # converting RGB would copy it
    except FileNotFoundError as error:
        raise BadImage(f"{refs.where(ref)}: its image {path} is missing; complete the download "
                       "(refer/data/README.md says from where)") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"{refs.where(ref)}: its image {path} has too many pixels ({error}); cut it into smaller "
                       "images, and its mask with it") from error
    except Exception as error:   # decoders raise nearly any exception for damaged bytes
        raise BadImage(f"{refs.where(ref)}: its image {path} cannot be read ({error}); "
                       "fetch that file again") from error
    mask = refs.mask(ref)
    if image.size != mask.shape[::-1] and (mask_path := refs.mask_path(ref)):
        raise BadImage(f"{refs.where(ref)}: its mask {mask_path} is {mask.shape[1]}×{mask.shape[0]}, its image {path} "
                       f"{image.width}×{image.height}; a mask picture must have its image's size, fetch both again")
    height, width = mask.shape
    shapes = image.width * height, image.height * width   # equal if both have one shape
    if max(shapes) > MOST_STRETCHED * min(shapes):
        raise BadImage(f"{refs.where(ref)}: its mask is {width}×{height}, its image {path} {image.width}×"
                       f"{image.height}, which is another shape, so they cannot show the same ground; take both from "
                       "the same download")
    return image, mask


def identify(refer: REFER, ref: dict[str, Any], sentence_index: int) -> dict[str, Any]:
    """A sample's entries in a file of results: `ref_id`, `sent_id`, `image_id`, `category` (its name), `sentence`.

    A sample whose mask is empty by design also has `no_target`.
    """
    return _identity(ref, refer.Cats[ref["category_id"]], sentence_index)


def _identity(ref: dict[str, Any], category: str, sentence_index: int) -> dict[str, Any]:
    sentence = ref["sentences"][sentence_index]
    return {"ref_id": ref["ref_id"], "sent_id": sentence["sent_id"], "image_id": ref["image_id"], "category": category,
            "sentence": sentence["raw"], **({"no_target": True} if ref.get("no_target") else {})}


class ReferDataset(Dataset):
    """The refs of one split with their images and masks, resized to `size_px`, and their sentences of `max_tokens`.

    `refer` is the table of the refs, or an index. `source` chooses one of several data sets. `packed` names a file
    that `tools/pack_dataset.py` wrote; with '' the image files are read. With `phrases`, samples have `phrase_masks`.
    `most` limits the number of refs, which are then evenly spread over the split; 0 means all.
    Raises `UserError` when a split has no refs, and, unless `skip_bad_images`, when a sample's image is missing or
    broken.
    """

    def __init__(self, refer: REFER | RefTable, split: str, tokenizer: Tokenizer, size_px: int,
                 skip_bad_images: bool = False, packed: str = "", max_tokens: int = MAX_TOKENS,
                 source: int | None = None, phrases: bool = False, most: int = 0):
        self.table = RefTable.of(refer)
        self.tokenizer, self.size_px, self.skip_bad_images = tokenizer, size_px, skip_bad_images
        self.packed = PackedRefs(packed, self.table, size_px) if packed else None
        self.said_that_sizes_differ = False
        rows = self.chosen(self.table.rows(split, source))
        if 0 < most < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
        self.refs = RefRows(self.table, rows)
        self.tokens = tokenize_refs(tokenizer, self.refs, max_tokens, phrases)

    def chosen(self, rows: np.ndarray) -> np.ndarray:
        """The rows of the split that are used, here all of them."""
        return rows

    def load(self, ref_index: int) -> tuple[Image.Image, np.ndarray]:
        """A ref's image, RGB, and its mask (H, W) uint8 of 0 and 1, each in its own size. Raises `BadImage`."""
        table, row = self.table, int(self.refs.rows[ref_index])
        image, mask = load_image_and_mask(table, row)
        if image.size != mask.shape[::-1] and not self.said_that_sizes_differ:
            self.said_that_sizes_differ = True
            log(f"{table.where(row)}: its image {table.image_path(row)} is {image.width}×{image.height}, its "
                f"mask {mask.shape[1]}×{mask.shape[0]}; each is resized to {self.size_px} px, which is right if they "
                "show the same ground (tools/check_dataset.py lists all of these)")
        return image, mask

    def resized(self, ref_index: int) -> tuple[Tensor, Tensor]:
        """A ref's image (3, S, S) and mask (S, S), uint8; from the packed file if there is one."""
        if self.packed:
            return self.packed.load(int(self.refs.rows[ref_index]))
        return transforms.resize(*self.load(ref_index), self.size_px)


class TrainSet(ReferDataset):
    """One sample for each ref, its sentence drawn anew in each epoch; for some data sets, one for each sentence.

    The index is a pair (epoch, sample). All that is random about a sample follows from the seed and that
    pair, so it does not depend on the number of workers or processes, nor on where a run was resumed.
    `random_box_share` of the samples, drawn here, have black squares pasted on their images. A bad image that is
    skipped is replaced by the next sample. `exclude` names a list of refs that are left out (see `refer.selection`).
    Raises `UserError` if a training image is in a test split of another of the data sets, unless `allow_leak`.
    """

    LONGEST_RUN_OF_BAD_IMAGES = 10  # with more, the folder is at fault

    def __init__(self, refer: REFER | RefTable, split: str, tokenizer: Tokenizer, size_px: int, seed: int,
                 random_box_share: float = 0.0, skip_bad_images: bool = False, packed: str = "",
                 max_tokens: int = MAX_TOKENS, exclude: str = "", allow_leak: bool = False, phrases: bool = False,
                 most: int = 0):
        self.exclude, self.allow_leak = exclude, allow_leak
        super().__init__(refer, split, tokenizer, size_px, skip_bad_images, packed, max_tokens, None, phrases, most)
        self.seed = seed
        # The ref of each sample, and the number of its sentence, -1 where the sentence is drawn.
        counts = np.where(self.table.each_sentence[self.refs.rows], self.tokens.counts, 0)
        self.ref_of_sample = np.repeat(np.arange(len(self.refs)), np.maximum(counts, 1))
        starts = np.cumsum(np.maximum(counts, 1)) - np.maximum(counts, 1)
        place = np.arange(len(self.ref_of_sample)) - starts[self.ref_of_sample]
        self.sentence_of_sample = np.where(counts[self.ref_of_sample] > 0, place, -1)
        count = int(random_box_share * len(self))
        self.boxed = np.zeros(len(self), dtype=bool)
        self.boxed[random.Random(seed).sample(range(len(self)), count)] = True

    def chosen(self, rows: np.ndarray) -> np.ndarray:
        """The rows that no exclusion list names. Raises `UserError` for images of a test split."""
        if self.exclude:
            out, unknown = excluded(self.table, rows, entries := read_exclusions(self.exclude))
            log(f"--exclude {self.exclude}: {out.sum()} of {len(rows)} training refs are left out"
                + (f"; {len(unknown)} of its {len(entries)} entries name none, the first is {unknown[0]}"
                   if unknown else ""))
            rows = rows[~out]
            if not len(rows):
                raise UserError(f"--exclude {self.exclude} leaves no training ref")
        if found := leaks(self.table, rows, "val"):
            log(f"{'; '.join(found)}: the best epoch is chosen on images that are trained on")
        if found := leaks(self.table, rows, "test"):
            if not self.allow_leak:
                raise UserError(f"{'; '.join(found)}: figures on these splits would measure memorisation. Leave the "
                                "images out with --exclude, or train on them with --allow_leak")
            log(f"--allow_leak: {'; '.join(found)}; figures on these splits measure memorisation, too")
        return rows

    def __len__(self) -> int:
        return len(self.ref_of_sample)

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
        """One sample in one epoch. Raises `BadImage`."""
        draw = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(draw >> np.uint64(1)))
        ref_index, sentence = int(self.ref_of_sample[index]), int(self.sentence_of_sample[index])
        if sentence < 0:
            sentence = int(torch.randint(int(self.tokens.counts[ref_index]), (), generator=generator))
        if self.boxed[index]:   # before resizing, so that the image's own file is read even if there is a packed one
            picture, mask = self.load(ref_index)
            image, target = transforms.resize(transforms.add_random_boxes(picture, generator), mask, self.size_px)
        else:
            image, target = self.resized(ref_index)
        return {"image": image, "target": target, "index": index, **self.tokens(ref_index, sentence)}

    def ref_of(self, index: int) -> dict[str, Any]:
        """The ref of a sample."""
        return self.refs[int(self.ref_of_sample[index])]


class EvalSet(ReferDataset):
    """One sample for each (ref, sentence), in the order of the refs.

    With `shuffle_seed`, each ref gets the sentences of another ref, drawn by that seed: the control experiment.
    With `one_sentence_seed`, each ref has one sentence, drawn by that seed, as in the original programs' validation.
    """

    def __init__(self, refer: REFER | RefTable, split: str, tokenizer: Tokenizer, size_px: int,
                 shuffle_seed: int | None = None, one_sentence_seed: int | None = None, skip_bad_images: bool = False,
                 packed: str = "", max_tokens: int = MAX_TOKENS, source: int | None = None, phrases: bool = False,
                 most: int = 0):
        super().__init__(refer, split, tokenizer, size_px, skip_bad_images, packed, max_tokens, source, phrases, most)
        if source is None and len(self.table.sources) > 1:
            raise UserError("an evaluation is of one data set, but --dataset names "
                            f"{', '.join(self.table.datasets)}: name one of them")
        counts = self.tokens.counts
        # The ref of each sample and the number of its sentence: (samples, 2).
        self.samples = np.stack([np.repeat(np.arange(len(counts)), counts),
                                 np.arange(counts.sum()) - np.repeat(self.tokens.first, counts)], axis=1)
        if one_sentence_seed is not None:
            draw = random.Random(one_sentence_seed)
            self.samples = np.array([(i, draw.randrange(count)) for i, count in enumerate(counts.tolist())])
        self.speaker = np.arange(len(self.refs))  # the ref whose sentences are shown, for each ref
        if shuffle_seed is not None:
            if len(self.refs) < 2:
                raise UserError("--shuffle_sentences needs a split of at least two refs")
            order = random.Random(shuffle_seed).sample(self.speaker.tolist(), len(self.speaker))
            self.speaker[order] = order[1:] + order[:1]
        self.last: tuple[int, Tensor, Tensor] | None = None  # a cache: a ref's sentences follow each other

    @property
    def name(self) -> str:
        """The data set's name; "toy" for a toy set, whose scores say nothing about the data set that it imitates."""
        source = self.table.sources[int(self.table.source_of[self.refs.rows[0]])]
        folders = Path(source["annotation_files"][0]).parents
        return "toy" if any(map(is_toy, folders)) else source["dataset"]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ref_index, sentence_index = self.samples[index].tolist()
        if self.last is None or self.last[0] != ref_index:
            try:
                self.last = ref_index, *self.resized(ref_index)
            except BadImage as error:
                if not self.skip_bad_images:
                    raise
                return {"problem": str(error)}
        _, image, target = self.last
        speaker = int(self.speaker[ref_index])
        sentence = sentence_index % int(self.tokens.counts[speaker])
        return {"image": image, "target": target, "index": index, **self.tokens(speaker, sentence)}

    def check_images(self) -> None:
        """Opens every image without decoding it, to find a missing one before hours of work. Raises `BadImage`."""
        if self.packed or self.skip_bad_images:
            return
        for path, row in {self.table.image_path(row): row for row in self.refs.rows.tolist()}.items():
            try:
                open_image(path).close()
            except Exception as error:   # decoders raise nearly any exception for damaged bytes
                raise BadImage(f"{self.table.where(row)}: its image {path} cannot be opened ({error}); complete the "
                               "download (refer/data/README.md says from where)") from error

    def ref_of(self, index: int) -> dict[str, Any]:
        """The ref of a sample."""
        return self.refs[int(self.samples[index, 0])]

    def no_target(self, indices: list[int] | np.ndarray) -> np.ndarray:
        """Whether the mask of each of these samples is empty by design: (n,) bool."""
        return self.table.no_target[self.refs.rows[self.samples[indices, 0]]]

    def images(self) -> int:
        """The number of images of the split."""
        return len(np.unique(self.table.image_of[self.refs.rows]))

    def picture(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """A sample's image, RGB, and its mask (H, W) uint8 of 0 and 1, each in its own size. Raises `BadImage`."""
        return self.load(int(self.samples[index, 0]))

    def original_mask(self, index: int) -> np.ndarray:
        """A sample's mask (H, W) uint8 of 0 and 1 in its own size."""
        return self.table.mask(int(self.refs.rows[self.samples[index, 0]]))

    def describe(self, index: int) -> dict[str, Any]:
        """What `identify` says of a sample, with the sentence that the network was shown."""
        ref_index, sentence_index = self.samples[index].tolist()
        ref, speaker = self.refs[ref_index], self.refs[int(self.speaker[ref_index])]
        shown = speaker["sentences"][sentence_index % len(speaker["sentences"])]
        return {**_identity(ref, ref["category"], sentence_index), "sentence": shown["raw"]}

"""A data set packed for training: images resized and masks as bits, in one HDF5 file, a chunk for each sample.

`tools/pack_dataset.py` writes it. Samples come out bit for bit as from the images and annotations themselves.
"""
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import transforms
from refer.entries import Entry
from refer.mask_files import masks_digest
from refer.refer import REFER
from refer.table import RefTable
from utils import UserError, sha256_of
from utils.files import temporary_beside

if TYPE_CHECKING:
    import h5py

FORMAT = 1
Load = Callable[[Entry], tuple[Image.Image, np.ndarray]]  # a ref's image and mask, each in its own size


def settings_of(refer: RefTable, size_px: int) -> dict[str, Any]:
    """The settings that a packed file depends on besides the images; they are compared when it is opened."""
    source, = refer.sources
    return {"format": FORMAT, "dataset": source["dataset"], "splitBy": source["splitBy"], "size_px": size_px,
            "published_masks": source["drop_overlaps"],
            "annotations": {_name_of(Path(path)): sha256_of(path) for path in refer.annotation_files},
            "masks": masks_digest(refer)}


def _name_of(path: Path) -> str:
    """The name of an annotation file; of a folder of them, which each split may have, that with the folder above."""
    return "/".join(path.parts[-2:]) if path.is_dir() else path.name


class PackedRefs:
    """Reads samples by their ref's row. Each process opens the file for itself: HDF5's handles do not survive a fork.

    Raises `UserError` if the file is not there, is damaged, or was packed from other annotations or settings.
    """

    def __init__(self, path: str | Path, refer: REFER | RefTable, size_px: int):
        self.table = refer = RefTable.of(refer)
        if len(refer.sources) > 1:
            raise UserError(f"--packed {path} holds one data set, --dataset names {len(refer.sources)}")
        self.path, self.size_px = Path(path), size_px
        self.file: h5py.File | None = None
        self.sha256: str | None = None   # of the contents, known once the file is opened
        self.process = -1
        file = self.opened()
        try:
            stored = json.loads(file.attrs["settings"])
            ref_ids = json.loads(file["ref_ids"][()])
            images = file["image_of_ref"][()]
        except (KeyError, ValueError, OSError) as error:
            raise UserError(f"--packed {path} is not a packed data set, or it is damaged ({error}): write it again "
                            "with tools/pack_dataset.py") from error
        wanted = settings_of(refer, size_px)
        if changed := [f"{key} is {stored.get(key)!r} there, {wanted[key]!r} here" for key in wanted
                       if stored.get(key, wanted[key] if key == "masks" else None) != wanted[key]]:
            raise UserError(f"--packed {path} does not fit: {'; '.join(changed)}. Write one that does with "
                            "tools/pack_dataset.py")
        self.sha256 = file.attrs.get("sha256", "")
        packed_row = {ref_id: row for row, ref_id in enumerate(ref_ids)}
        self.row_of = np.array([packed_row[refer.ref(row)["ref_id"]] for row in range(len(refer))], dtype=np.int64)
        self.image_of = images[self.row_of]

    def opened(self) -> "h5py.File":
        """This process's handle of the file, which its first call opens."""
        import h5py  # only packed sets need it
        if self.file is None or self.process != os.getpid():
            try:
                self.file, self.process = h5py.File(self.path, "r"), os.getpid()
            except OSError as error:
                raise UserError(f"--packed {self.path} cannot be opened ({error}); tools/pack_dataset.py writes such a "
                                "file") from error
            if self.sha256 not in (None, self.file.attrs.get("sha256", "")):
                raise UserError(f"--packed {self.path} was replaced while the program ran: start it again, or give "
                                "the new file another name")
        return self.file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "file": None, "process": -1}   # for workers that are spawned

    def load(self, ref_row: int) -> tuple[Tensor, Tensor]:
        """A ref's image (3, S, S) uint8 and mask (S, S) uint8 of 0 and 1, as `transforms.resize` gives them."""
        row, image = int(self.row_of[ref_row]), int(self.image_of[ref_row])
        file = self.opened()
        try:
            pixels, packed_bits = file["images"][image], file["masks"][row]
        except (OSError, KeyError, ValueError, IndexError) as error:
            ref_id = self.table.ref(ref_row)["ref_id"]
            raise UserError(f"--packed {self.path} is damaged at ref {ref_id} ({error}): write it again with "
                            "tools/pack_dataset.py") from error
        bits = np.unpackbits(packed_bits, count=self.size_px ** 2)
        return torch.from_numpy(pixels), torch.from_numpy(bits).view(self.size_px, self.size_px)


class ResizedRefs(Dataset):
    """Refs as they are packed: image (3, S, S) uint8, mask as bits, eight per byte, (⌈S² / 8⌉,) uint8."""

    def __init__(self, refs: list[Entry], load: Load, size_px: int):
        self.refs, self.load, self.size_px = refs, load, size_px

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image, target = transforms.resize(*self.load(self.refs[row]), self.size_px)
        return image, torch.from_numpy(np.packbits(target.numpy()))


def write_packed(path: str | Path, refer: REFER, size_px: int, load: Load, watch: Callable[[Iterable], Iterable],
                 workers: int = 0) -> str:
    """Packs all refs of `refer` with their images, whole or not at all; returns the SHA-256 of images and masks.

    `load(ref)` gives image and mask in their own sizes (see `data.dataset.ReferDataset.load`). It runs in `workers`
    processes, or in this one if there are none; the file's bytes do not depend on their number. `watch` passes the
    samples on and may show progress. Raises `UserError` for a bad image and when the file cannot be written.
    """
    import h5py
    path = Path(path)
    temporary = temporary_beside(path)
    refs = sorted(refer.data["refs"], key=lambda ref: str(ref["image_id"]))
    images: dict[Any, int] = {}
    for ref in refs:
        images.setdefault(ref["image_id"], len(images))
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "w") as file:
            file.attrs["settings"] = json.dumps(settings_of(RefTable.of(refer), size_px))
            file["ref_ids"] = json.dumps([ref["ref_id"] for ref in refs])
            file["image_of_ref"] = np.array([images[ref["image_id"]] for ref in refs], dtype=np.int64)
            pixels = file.create_dataset("images", (len(images), 3, size_px, size_px), np.uint8,
                                         chunks=(1, 3, size_px, size_px))
            length = -(-size_px ** 2 // 8)
            masks = file.create_dataset("masks", (len(refs), length), np.uint8, chunks=(1, length))
            done = -1
            samples = DataLoader(ResizedRefs(refs, load, size_px), batch_size=None, num_workers=workers)
            for row, (image, bits) in enumerate(watch(samples)):
                masks[row] = bits.numpy()
                digest.update(bits.numpy().tobytes())
                if images[refs[row]["image_id"]] > done:
                    done += 1
                    pixels[done] = image.numpy()
                    digest.update(image.numpy().tobytes())
            file.attrs["sha256"] = digest.hexdigest()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def verify_packed(path: str | Path) -> bool:
    """Whether the images and masks of a packed file still have the SHA-256 that was stored with them."""
    import h5py
    digest, done = hashlib.sha256(), -1
    try:
        with h5py.File(path, "r") as file:
            for row, image in enumerate(file["image_of_ref"][()]):
                digest.update(file["masks"][row].tobytes())
                if image > done:
                    done = image
                    digest.update(file["images"][image].tobytes())
            return digest.hexdigest() == file.attrs["sha256"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a packed data set, or it is damaged: {error}") from error

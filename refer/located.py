"""What the index and the table of refs have in common: the image of a ref, its mask, and its name in messages."""
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from refer.entries import WHERE_TO_GET_IT, Entry, Id
from refer.masks import BadImage, decode_segmentation, read_mask_picture
from utils import UserError


@dataclass(frozen=True)
class StoredMask:
    """A mask as annotation files hold it: `annotation` has a `segmentation`, or a `mask_path` and `object_above`."""

    annotation: Entry
    ann_id: Id
    height: int | None   # the image entry's, in pixels
    width: int | None
    drop_overlaps: bool
    dataset: str
    instances_path: str   # the file to repair if the mask cannot be decoded


class LocatedRefs:
    """Refs whose images and masks lie in files. A subclass says where; a ref is whatever it takes as one."""

    def image_file(self, ref: Any) -> tuple[str, str]:
        """The folder and the file name of a ref's image."""
        raise NotImplementedError

    def line_of(self, ref: Any) -> tuple[str | None, int, Id]:
        """The file of lines and the line that a ref comes from (None and 0 from any other file), and its id."""
        raise NotImplementedError

    def stored_mask(self, ref: Any) -> StoredMask:
        """The mask of a ref, not yet decoded."""
        raise NotImplementedError

    def image_path(self, ref: Any) -> str:
        """Path of a ref's image; whether the file exists is not looked at.

        The name is the image entry's: the one in RefCOCO's refs carries an annotation's suffix.
        """
        return os.path.join(*self.image_file(ref))

    def where(self, ref: Any) -> str:
        """The name of a ref in messages: file and line if it comes from a file of lines, else its id."""
        path, line, ref_id = self.line_of(ref)
        return f"{path}, line {line}" if path and line else f"ref {ref_id}"

    def mask_path(self, ref: Any) -> str:
        """Path of a mask that is a picture; '' for any other mask."""
        return self.stored_mask(ref).annotation.get("mask_path", "")

    def mask(self, ref: Any) -> np.ndarray:
        """The mask of a ref, (H, W) uint8 of 0 and 1.

        `decode_segmentation` says what H and W are; a mask that is a picture has its size. Raises UserError if the
        segmentation is malformed, BadImage if the picture is missing, broken or no mask.
        """
        stored = self.stored_mask(ref)
        if "mask_path" in stored.annotation:
            try:
                return read_mask_picture(stored.annotation["mask_path"], stored.annotation["object_above"])
            except ValueError as error:
                raise BadImage(f"{self.where(ref)}: {error}") from error
        try:
            return decode_segmentation(stored.annotation.get("segmentation"), stored.height, stored.width,
                                       stored.drop_overlaps)
        except ValueError as error:
            raise UserError(
                f"{stored.dataset}, {self.where(ref)}, annotation {stored.ann_id!r}: its segmentation is malformed: "
                f"{error}. Repair it in {stored.instances_path} or download that file again: {WHERE_TO_GET_IT}; "
                "tools/check_dataset.py lists all of these."
            ) from error

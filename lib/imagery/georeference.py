"""The georeference of a TIFF, and masks that carry it on (GeoTIFF 1.1, section 7)."""
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GeoTags = dict[int, tuple[int, object]]   # {tag: (TIFF field type, value)}

_SHORT, _DOUBLE, _ASCII = 3, 12, 2
GEO_TAGS = {  # tags that georeference a TIFF, with their TIFF field types
    33550: ("ModelPixelScale", _DOUBLE), 33922: ("ModelTiepoint", _DOUBLE), 34264: ("ModelTransformation", _DOUBLE),
    34735: ("GeoKeyDirectory", _SHORT), 34736: ("GeoDoubleParams", _DOUBLE), 34737: ("GeoAsciiParams", _ASCII)}


def geo_tags(image: Image.Image) -> GeoTags:
    """The tags of a georeferenced TIFF, else {}. Tags of a wrong type are left out."""
    found: Any = getattr(image, "tag_v2", {})
    return {tag: (kind, found[tag]) for tag, (_, kind) in GEO_TAGS.items()
            if tag in found and found.tagtype[tag] == kind}


def save_mask(mask: np.ndarray, path: Path, tags: GeoTags | None = None) -> Path:
    """Writes a mask (H, W) bool as 0 and 255 to `path` with .png added, or .tif if there are `tags`.

    Returns the path. Raises `OSError` if it cannot be written.
    """
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    if not tags:
        picture.save(path := path.with_name(path.name + ".png"))
        return path
    from PIL.TiffImagePlugin import ImageFileDirectory_v2
    directory = ImageFileDirectory_v2()
    for tag, (kind, value) in tags.items():
        directory.tagtype[tag] = kind
        directory[tag] = value
    picture.save(path := path.with_name(path.name + ".tif"), tiffinfo=directory, compression="tiff_deflate")
    return path

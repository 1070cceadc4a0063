"""Reading and drawing of pictures: image files as RGB, masks over images, outlines of masks, sheets of panels.

Shapes: H, W height and width in pixels. Colours are (red, green, blue), 0 … 255.
"""
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from utils import UserError

TRUTH_COLOUR, PREDICTION_COLOUR = (40, 200, 90), (240, 60, 160)
STRETCH_PERCENT = (2.0, 98.0)  # percentiles that become black and white in a picture of more than 8 bits
_SHORT, _DOUBLE, _ASCII = 3, 12, 2
GEO_TAGS = {  # tags that georeference a TIFF (GeoTIFF 1.1, section 7), with their TIFF field types
    33550: ("ModelPixelScale", _DOUBLE), 33922: ("ModelTiepoint", _DOUBLE), 34264: ("ModelTransformation", _DOUBLE),
    34735: ("GeoKeyDirectory", _SHORT), 34736: ("GeoDoubleParams", _DOUBLE), 34737: ("GeoAsciiParams", _ASCII)}


def read_picture(path: str | Path | BinaryIO, any_size: bool = False, name: str = "") -> Image.Image:
    """An image file as an upright RGB image; its `info["geo_tags"]` holds a georeferenced TIFF's tags, if any.

    Error messages call the file `name`, or its path without one. The first of several frames is read. A georeferenced
    picture is not rotated, because its tags would become wrong.
    Raises `UserError` if Pillow cannot read the file, or if it has so many pixels that Pillow suspects an attack,
    unless `any_size`.
    """
    try:
        with _pixel_limit(None if any_size else Image.MAX_IMAGE_PIXELS), Image.open(path) as opened:
            tags = _geo_tags(opened)
            opened.load()
            if not tags:
                ImageOps.exif_transpose(opened, in_place=True)
            return to_rgb(opened, tags)
    except Image.DecompressionBombError as error:
        raise UserError(f"{name or path} has more pixels than is safe to open unasked ({error}); if you trust it, give "
                        "demo_inference.py --tile PIXELS, which reads images of any size") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name or path} cannot be read as an image: it is of no format that Pillow knows") from error
    except Exception as error:   # damaged bytes make decoders raise nearly any exception
        raise UserError(f"{name or path} cannot be read as an image: {error or type(error).__name__}") from error


class _pixel_limit:
    """A context in which Pillow opens images of up to `pixels` pixels (None: of any size) without a warning."""

    def __init__(self, pixels: int | None):
        self.pixels, self.warnings = pixels, warnings.catch_warnings()

    def __enter__(self) -> None:
        self.before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, self.pixels
        self.warnings.__enter__()
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def __exit__(self, *error: Any) -> None:
        Image.MAX_IMAGE_PIXELS = self.before
        self.warnings.__exit__(*error)


def to_rgb(image: Image.Image, geo_tags: dict[int, tuple[int, object]] | None = None) -> Image.Image:
    """Any Pillow image as RGB: transparent pixels become black, and more than 8 bits are stretched to 8.

    As in map viewers, the 2nd percentile of the values becomes black and the 98th white.
    """
    if image.mode in ("I", "F", "I;16", "I;16B", "I;16L", "I;16N"):
        rgb = Image.fromarray(stretch(np.asarray(image))).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.new("RGB", image.size)
        rgb.paste(rgba, mask=rgba.getchannel("A"))
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")   # converting RGB would copy it
    rgb.info = {"geo_tags": geo_tags} if geo_tags else {}
    return rgb


def stretch(values: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) numbers of any range -> same shape, uint8; infinite values and NaN count as 0."""
    values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    low, high = np.percentile(values[::max(1, len(values) // 1024)], STRETCH_PERCENT)
    return (255 * np.clip((values - low) / max(float(high - low), 1e-12), 0, 1)).round().astype(np.uint8)


def array_to_picture(pixels: np.ndarray) -> Image.Image:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) numbers -> an RGB image; other types than uint8 are stretched.

    Raises `ValueError` for another shape.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or not pixels.size:
        raise ValueError(f"an image array must be (H, W), (H, W, 3) or (H, W, 4), but is {pixels.shape}")
    if pixels.dtype != np.uint8:
        pixels = stretch(pixels)
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _geo_tags(image: Image.Image) -> dict[int, tuple[int, object]]:
    """{tag: (TIFF field type, value)} of a georeferenced TIFF, else {}. Tags of a wrong type are left out."""
    tags: Any = getattr(image, "tag_v2", {})
    return {tag: (kind, tags[tag]) for tag, (_, kind) in GEO_TAGS.items() if tag in tags and tags.tagtype[tag] == kind}


def save_mask(mask: np.ndarray, path: Path, geo_tags: dict[int, tuple[int, object]] | None = None) -> Path:
    """Writes a mask (H, W) bool as 0 and 255 to `path` with .png added, or .tif if there are `geo_tags`.

    Returns the path. Raises `OSError` if it cannot be written.
    """
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    if not geo_tags:
        picture.save(path := path.with_name(path.name + ".png"))
        return path
    from PIL.TiffImagePlugin import ImageFileDirectory_v2
    directory = ImageFileDirectory_v2()
    for tag, (kind, value) in geo_tags.items():
        directory.tagtype[tag] = kind
        directory[tag] = value
    picture.save(path := path.with_name(path.name + ".tif"), tiffinfo=directory, compression="tiff_deflate")
    return path


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = PREDICTION_COLOUR) -> np.ndarray:
    """The image with the mask tinted inside and drawn with a solid contour.

    image (H, W, 3) uint8, mask (H, W) bool -> (H, W, 3) uint8. Pixels outside the mask are unchanged.
    """
    inside = mask.copy()
    inside[1:] &= mask[:-1]
    inside[:-1] &= mask[1:]
    inside[:, 1:] &= mask[:, :-1]
    inside[:, :-1] &= mask[:, 1:]
    drawn = image.copy()
    drawn[inside] = (0.6 * image[inside] + 0.4 * np.array(colour)).astype(np.uint8)
    drawn[mask & ~inside] = colour
    return drawn


def polygons(mask: np.ndarray) -> list[list[list[float]]]:
    """The outlines of a mask (H, W) bool, a list for each part: [x1, y1, x2, y2, …] of the part, then of its holes.

    Coordinates are pixels from the image's top left corner. Outlines pass through the middle of the edges of border
    pixels. An empty mask gives [].
    """
    import contourpy  # only reports and --json need it
    padded = np.pad(mask, 1).astype(np.float32)
    filled: Any = contourpy.contour_generator(z=padded, fill_type="OuterOffset").filled(0.5, np.inf)
    points, offsets = filled
    shift = 0.5 - 1   # from pixel centres to corners, less the padding
    return [[(ring[:-1] + shift).ravel().tolist() for ring in np.split(part, bounds[1:-1])]
            for part, bounds in zip(points, offsets, strict=True)]


def sheet(rows: Sequence[tuple[Sequence[Image.Image], str]], columns: int = 2, panel_px: int = 192,
          headings: Sequence[str] = ()) -> Image.Image:
    """A contact sheet of samples: the panels of each, the same number for all, with lines of text below them.

    Panels are resized to squares; longer text is cut. `headings` name the panels above the first row.
    """
    margin, font = 8, ImageFont.load_default(14)
    caption_px = 4 + 18 * max(1 + text.count("\n") for _, text in rows)
    width = max(len(panels) for panels, _ in rows) * (panel_px + margin) + margin
    height, heading_px = panel_px + caption_px + margin, 22 if headings else 0
    drawn = Image.new("RGB", (columns * width, heading_px + -(-len(rows) // columns) * height + margin), "white")
    pen = ImageDraw.Draw(drawn)
    for column, (place, heading) in product(range(min(columns, len(rows))), enumerate(headings)):
        left = column * width + margin + place * (panel_px + margin)
        pen.text((left + 2, margin), heading, fill="black", font=font)
    for number, (panels, text) in enumerate(rows):
        left, top = number % columns * width + margin, heading_px + number // columns * height + margin
        for place, panel in enumerate(panels):
            drawn.paste(panel.convert("RGB").resize((panel_px, panel_px)), (left + place * (panel_px + margin), top))
        pen.text((left + 2, top + panel_px + 2), text, fill="black", font=font)
    return drawn

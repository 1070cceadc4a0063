"""The one way in which this project opens an image file."""
import os
import warnings
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

# The formats that people have. Pillow knows more, and reads some of these with programs of the machine: PostScript, for
# example, whatever the file is called, with Ghostscript, which would run a stranger's program.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM", "AVIF")
ORIENTATION = 0x0112   # the EXIF tag by which viewers turn a picture
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")   # Pillow's names for more than 8 bits in a channel

# What Pillow warns of in a damaged file is followed by an error, or the picture is whole all the same.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@cache
def known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow can read."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """An opened image file, whose pixels are not decoded yet, as `Image.open` returns it.

    Its content decides on its format, which must be one of `FORMATS`; no program is started. Raises whatever Pillow
    raises: `UnidentifiedImageError` for another format, `FileNotFoundError`, `DecompressionBombError`, …; and `OSError`
    for a pipe or device, which might wait or go on for ever.
    """
    if isinstance(source, str | Path) and os.path.exists(source) and not os.path.isfile(source):
        raise OSError(f"{source} is no regular file")
    return Image.open(source, formats=known_formats())

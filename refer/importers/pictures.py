"""The pictures of an import: their sizes, read from their headers only, and their names in the new data set."""
import os
from collections.abc import Iterable

from PIL import Image

from utils.image_files import FORMATS, ORIENTATION, open_image

# Pillow's modes of at most 8 bits a band, which become RGB without loss of contrast.
_EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def read_size(path: str) -> tuple[int, int]:
    """(width, height) of a picture. Raises ValueError, saying what is wrong, for a file that is none."""
    try:
        path.encode()
        with open_image(path) as opened:
            size, mode = opened.size, opened.mode
    except FileNotFoundError as error:
        raise ValueError(f"its picture {path} is missing") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"the name of its picture {path!r} is not valid Unicode: rename it") from error
    except Exception as error:   # decoders raise nearly any exception for damaged bytes
        said = "it is none of " + ", ".join(FORMATS) if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"its picture {path} cannot be read ({said})") from error
    if mode not in _EIGHT_BITS:
        raise ValueError(f"its picture {path} has more than 8 bits a band ({mode}): save it with 8 bits")
    return size


def is_turned(path: str) -> bool:
    """Whether viewers turn the picture as its EXIF data say, which neither masks nor training do."""
    with open_image(path) as opened:
        return opened.getexif().get(ORIENTATION, 1) != 1


def names_below_common_folder(paths: Iterable[str]) -> dict[str, str]:
    """{absolute path: its path below the folder that holds all of them}, with '/' between folders."""
    paths = list(paths)
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return {path: os.path.relpath(path, root).replace(os.sep, "/") for path in paths}

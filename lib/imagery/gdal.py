"""GDAL by way of rasterio, prepared for files of strangers. rasterio is an optional package, imported when first used.

GDAL knows some hundred formats. Several of them download what a file names, or start other programs. Here it opens
regular files of the formats in `DRIVERS` only and has no network. A VRT, which names other files, may name pictures of
these formats in its own folder and below.
"""
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from utils import UserError

DRIVERS = ("GTiff", "JP2OpenJPEG", "VRT", "HFA", "PNG", "JPEG", "BMP", "GIF", "WEBP", "ENVI", "EHdr", "NITF", "PCIDSK",
           "AAIGrid", "ERS", "RST", "SAGA", "RRASTER")
_NETWORK = ("HTTP", "WMS", "WCS", "WMTS", "EEDA", "EEDAI", "PLMOSAIC", "STACIT", "STACTA", "GTI", "DAAS",
            "ESRIC", "Rasterlite", "MBTiles", "KMLSUPEROVERLAY", "DERIVED")
CACHE_BYTES = 128 << 20   # of decoded blocks; GDAL's default is 5 % of the machine's memory
OPTIONS = {
    "GDAL_SKIP": " ".join(_NETWORK),                        # holds if GDAL was not in use before
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "/vsicurl/none",      # no URL may be opened as a file
    "GDAL_VRT_ENABLE_PYTHON": "NO", "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",   # code, and any file's bytes as pixels
    "GDAL_CACHEMAX": CACHE_BYTES,   # rasterio counts in bytes
    "CPL_DEBUG": "OFF"}
_MOST_VRT_BYTES, _DEEPEST_VRT = 64 << 20, 4


def need_rasterio(name: str) -> Any:
    """The module rasterio. Raises `UserError` in one line if it is not installed."""
    try:
        import rasterio
        import rasterio.features
        import rasterio.transform
        import rasterio.warp
        import rasterio.windows
    except ImportError as error:
        raise UserError(f"{name} needs the package rasterio, which reads georeferenced scenes and many formats: "
                        "pip install -r requirements-geo.txt") from error
    return rasterio


@contextmanager
def gdal(name: str) -> Iterator[Any]:
    """A context in which GDAL has the options above and its errors are `UserError`s about the file `name`."""
    rasterio = need_rasterio(name)
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    with rasterio.Env(**OPTIONS), one_line(name):
        yield rasterio


def open_raster(rasterio: Any, path: Path) -> Any:
    """Opens a file with the first of `DRIVERS` that knows its format; raises what rasterio does if none can."""
    reasons = []
    for driver in DRIVERS:   # rasterio takes one driver at a time
        try:
            return rasterio.open(path, driver=driver)
        except rasterio.errors.RasterioIOError as error:
            reasons.append(error)
    raise next((error for error in reasons if "not recognized" not in str(error)), rasterio.errors.RasterioIOError(
        f"it is of no format that is read here ({', '.join(DRIVERS[:6])}, …)"))


@contextmanager
def one_line(name: str, what: str = "cannot be read") -> Iterator[None]:
    """A context that turns the errors of GDAL and of files into a `UserError` of one line: NAME WHAT: reason."""
    rasterio = need_rasterio(name)
    from rasterio._err import CPLE_BaseError  # GDAL's own errors, which rasterio does not wrap everywhere
    try:
        yield
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError, CPLE_BaseError, OSError, MemoryError,
            UnicodeError) as error:   # the last of a damaged name in the file
        root: BaseException = error   # GDAL's own words are at the end of the chain, in more detail
        while isinstance(root.__cause__, Exception):
            root = root.__cause__
        reason = os.strerror(root.errno) if isinstance(root, OSError) and root.errno else \
            " ".join(str(root).split()) or type(root).__name__
        raise UserError(f"{name} {what}: {reason[:300]}") from error


def check_file(path: Path, name: str, folder: Path | None = None, depth: int = 0) -> None:
    """Raises `UserError` unless `path` is a regular file and, if it is a VRT, all that it names are such files too.

    The sources of a VRT lie in its folder or below, `folder` for a VRT that another one names.
    """
    if not os.path.isfile(path):   # a name that is too long is no file
        raise UserError(f"{name} cannot be read: it is {'a folder' if os.path.isdir(path) else 'no file'}")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            if b"<VRTDataset" not in head and not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
                return
            text = head + file.read(_MOST_VRT_BYTES)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from error
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{name} cannot be read: it is no valid VRT ({error})") from error
    if tree.tag != "VRTDataset":
        raise UserError(f"{name} cannot be read: of files in XML, only VRTs are read, and this is {tree.tag[:40]}")
    if tree.get("subClass", "VRTWarpedDataset") != "VRTWarpedDataset" or depth == _DEEPEST_VRT:
        raise UserError(f"{name} cannot be read: this kind of VRT is not; write it as a GeoTIFF: gdal_translate")
    folder = folder or path.parent
    for node in tree.iter():
        if node.tag not in ("SourceFilename", "SourceDataset", "SourceDEM"):
            continue
        source = (node.text or "").strip()
        here = node.get("relativeToVRT", node.get("relativetoVRT", "0")) == "1"
        target = (path.parent / source) if here else Path(source)
        # Names of no file, such as URLs, /vsicurl/… and DRIVER:…, are files that are missing.
        if not source or not os.path.isfile(target):
            raise UserError(f"{name} cannot be read: its source '{source[:100]}' is no file of this machine")
        if not target.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{name} cannot be read: its source '{source[:100]}' lies outside the folder of the VRT; "
                            "write it as a GeoTIFF, if you trust it: gdal_translate")
        check_file(target, name, folder, depth + 1)

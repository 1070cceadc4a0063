"""Contact sheets of refs, for a look at a data set: what tools/check_dataset.py and tools/make_toy_rrsisd.py write.

It lies in tools/ since it needs `data` and `lib`, neither of which imports the other. H, W: height and width in pixels.
"""
import os
import random
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.dataset import load_image_and_mask
from lib.imagery.drawing import TRUTH_COLOUR, overlay, sheet
from refer.refer import REFER
from utils import UserError
from utils.files import temporary_beside

PANEL_PX, COLUMNS = 192, 4
NOTICE_CHARACTERS, NOTICE_LINES = 25, 9     # of text that fit on a panel,
CAPTION_CHARACTERS, CAPTION_LINES = 54, 6   # and below the two of a ref


def choose(refer: REFER, number: int, seed: int, split: str = "") -> list[dict[str, Any]]:
    """`number` refs of a split, or of all splits, drawn by the seed, in the files' order; all refs if there are fewer.

    Raises `UserError` for a split without refs.
    """
    ref_ids = refer.getRefIds(split=split)
    places = random.Random(seed).sample(range(len(ref_ids)), min(number, len(ref_ids)))
    return [refer.Refs[ref_ids[place]] for place in sorted(places)]


def draw_refs(refer: REFER, refs: Sequence[dict[str, Any]]) -> Image.Image:
    """A sheet of refs, at least one: each one's image, the same with its mask, and what the files say of it below.

    A ref whose image or mask cannot be read has a panel that says why.
    """
    rows = []
    for ref in refs:
        try:
            panels = draw_mask(*load_image_and_mask(refer, ref))
        except Exception as error:  # damaged files surface as nearly any exception; all of them are to be seen
            panels = [notice(str(error)), Image.new("RGB", (PANEL_PX, PANEL_PX), "lightgray")]
        rows.append((panels, caption(refer, ref)))
    return sheet(rows, COLUMNS, PANEL_PX)


def draw_mask(image: Image.Image, mask: np.ndarray) -> list[Image.Image]:
    """Two panels: the image, RGB, and the same with its mask (H, W) of 0 and 1 over it, each from its own size.

    A pixel of the panel shows the object if any mask pixel that it covers does: small objects would vanish otherwise.
    """
    small = image.resize((PANEL_PX, PANEL_PX))
    coverage = Image.fromarray(mask.astype(np.float32)).resize(small.size, Image.Resampling.BOX)
    return [small, Image.fromarray(overlay(np.asarray(small), np.asarray(coverage) > 0, TRUTH_COLOUR))]


def notice(text: str) -> Image.Image:
    """A panel with words in place of a picture."""
    panel = Image.new("RGB", (PANEL_PX, PANEL_PX), "lightgray")
    lines = textwrap.wrap(printable(text), NOTICE_CHARACTERS, max_lines=NOTICE_LINES, placeholder=" …")
    ImageDraw.Draw(panel).text((6, 6), "\n".join(lines), fill="darkred", font=ImageFont.load_default(14))
    return panel


def caption(refer: REFER, ref: dict[str, Any]) -> str:
    """Lines that fit below a ref's two panels: its id, split and category, then its sentences, cut if they are long."""
    lines = textwrap.wrap(printable(f"ref {ref['ref_id']}, {ref['split']}, {refer.Cats[ref['category_id']]}"),
                          CAPTION_CHARACTERS, max_lines=1, placeholder=" …")
    for sentence in ref["sentences"]:
        lines += textwrap.wrap(printable(sentence["raw"]), CAPTION_CHARACTERS) or ["(empty sentence)"]
    return "\n".join(lines if len(lines) <= CAPTION_LINES else [*lines[:CAPTION_LINES - 1], "…"])


def printable(text: str) -> str:
    """Text of a file as a font can draw it: half a character (a lone surrogate) becomes its number."""
    return text.encode("utf-8", "backslashreplace").decode()


def save_sheet(drawn: Image.Image, path: Path) -> None:
    """Writes a PNG whole or not at all, making its folder. Raises `UserError` if that is not possible."""
    try:
        temporary = temporary_beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn.save(temporary, "PNG")
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # is gone if all went well
                temporary.unlink()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written: {error}") from error

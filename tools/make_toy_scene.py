"""Writes a georeferenced scene of any size as a mosaic of pictures, row by row: to try and to measure scenes with."""
import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from args import Parser, positive
from distributed import user_errors
from lib.imagery.gdal import gdal, one_line
from utils import UserError, log
from utils.image_files import open_image


def flags() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER", help="folder of JPEG files")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="GeoTIFF to write")
    parser.add_argument("--side", default=480, type=positive, metavar="PIXELS", help="width and height (default: 480)")
    parser.add_argument("--cell", default=96, type=positive, metavar="PIXELS",
                        help="side of a picture in the mosaic (default: 96)")
    parser.add_argument("--bits", default=8, type=int, choices=(8, 16), help="of a value (default: 8)")
    parser.add_argument("--near_infrared", action="store_true", help="add a fourth band")
    parser.add_argument("--seed", default=0, type=int, help="of the choice of pictures (default: 0)")
    return parser.parse_args()


def main() -> None:
    with user_errors("make_toy_scene.py"):
        write(flags())


def write(args: argparse.Namespace) -> None:
    """Writes the scene in UTM zone 31, half a metre a pixel, in tiles of 256 px."""
    files = sorted(args.images.glob("*.jpg"))[:64]
    if not files:
        raise UserError(f"--images {args.images} has no file *.jpg")
    cells = []
    for file in files:
        red, green, blue = np.asarray(open_image(file).convert("RGB").resize((args.cell, args.cell))).transpose(2, 0, 1)
        cells.append(np.stack([red, green, blue, 255 - blue][:3 + args.near_infrared]))
    draw, args.out = np.random.RandomState(args.seed), Path(args.out)
    with gdal(str(args.out)) as rasterio, one_line(str(args.out), "cannot be written"), rasterio.open(
            args.out, "w", driver="GTiff", width=args.side, height=args.side, count=len(cells[0]),
            dtype=f"uint{args.bits}", tiled=True, blockxsize=256, blockysize=256, compress="deflate", zlevel=1,
            photometric="rgb", crs="EPSG:32631", alpha="unspecified" if args.near_infrared else None,
            transform=rasterio.Affine(0.5, 0, 448000, 0, -0.5, 5412000)) as scene:
        for top in range(0, args.side, args.cell):
            row = np.concatenate([cells[draw.randint(len(cells))] for _ in range(0, args.side, args.cell)], axis=2)
            row = row[:, :args.side - top, :args.side]
            scene.write(row if args.bits == 8 else row.astype(np.uint16) * 16 + 300,
                        window=((top, top + row.shape[1]), (0, args.side)))
    log(f"{args.out}: {args.side} × {args.side} px of {len(cells[0])} bands of {args.bits} bits")


if __name__ == "__main__":
    main()

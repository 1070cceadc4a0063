"""Gives the programs thousands of mutated inputs, and counts those that do not end as they should.

Each input must end in success or in one line and status 2: never in a traceback, in more than 20 s of computing, in
more than 2 GiB, or in a change to a file outside its folder. Inputs follow from the seed alone; each runs in a forked
process of its own (Linux only). Failures are printed with the number that reproduces them: --first N --inputs 1.
"""
import argparse
import importlib
import io
import json
import os
import pickle
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from args import EVALUATION, INFERENCE, TRAINING, Parser, count, get_parser, positive
from bert import is_adapter, load_tokenizer
from bert.adapters import beside_adapters
from data import EvalSet
from data.toy import make_toy_rrsisd
from distributed import user_errors
from lib.checkpoint import describe_model, load_swin_weights, restore, save_checkpoint
from lib.checkpoint.strict_loading import needed_entries
from lib.evaluation.metrics import COUNTS
from lib.evaluation.predictions import encode_mask
from lib.evaluation.result_files import read_probe
from lib.imagery.drawing import overlay
from lib.imagery.gdal import gdal
from lib.imagery.layers import save_picture
from lib.imagery.pictures import read_picture
from lib.imagery.scenes import Scene
from lib.imagery.sources import open_source
from lib.inference.pairs import read_pairs
from lib.segmentation import ModelConfig, build
from lib.training.resume import choose_start
from refer.refer import REFER
from tools import import_dataset, mutations
from tools.score_predictions import read_predictions
from utils import log, write_json
from utils.image_files import open_image

ROOT = Path(__file__).resolve().parents[1]
MOST_CPU_S, MOST_WALL_S, MOST_MIB = 20, 120, 2048
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "SGI", "ICO", "JPEG2000", "DDS", "AVIF",
           "IM", "MSP", "XBM", "SPIDER", "BLP")
CHECKED = ("refs", "flags", "masks", "descriptions")   # areas with check_dataset.py, whose status 1 means faults
Input = Callable[[], None]   # what the forked process does with one input, in an empty folder


class Samples:
    """The valid inputs that all others are made from: a toy data set, a nano checkpoint, results, pictures."""

    def __init__(self, folder: Path):
        self.toy = folder / "toy"
        make_toy_rrsisd(self.toy, images=20, size=64, seed=3)
        self.refs = pickle.loads((self.toy / "rrsisd/refs(unc).p").read_bytes())
        self.instances = json.loads((self.toy / "rrsisd/instances.json").read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(str(self.toy / "bert"))
        args = get_parser().parse_args(["--model", "lavt", "--swin_type", "nano", "--img_size", "64", "--ck_bert",
                                        str(self.toy / "bert")])
        config = ModelConfig.from_args(args)
        self.checkpoint = {
            "model": dict(build(config).state_dict()), "epoch": 1, "args": {"batch_size": 8}, "world_size": 1,
            "progress": {"epoch": 1, "step": 0}, "optimizer": {}, "lr_scheduler": {}, "generators": [{}],
            **describe_model(config, tokenizer)}
        self.adapted = with_adapters(self.checkpoint)
        self.checkpoint_file = folder / "c.pth"
        save_checkpoint(self.checkpoint_file, self.checkpoint)
        index = REFER(self.toy, "rrsisd")
        self.predictions, samples = [], []
        for ref in index.loadRefs(index.getRefIds(split="val")):
            rle = encode_mask(index.getMask(ref)["mask"])
            for sentence in ref["sentences"]:
                ids = {"ref_id": ref["ref_id"], "sent_id": sentence["sent_id"]}
                self.predictions.append({**ids, "segmentation": rle})
                samples.append({**ids, "image_id": ref["image_id"], "sentence": sentence["raw"],
                                **dict(zip(COUNTS, (5, 9, 7, 2, 4), strict=True))})
        self.results = {"samples": samples, "split": "val", "annotations": {"a": "b"}}
        self.probe = {"conditions": [{"name": "x", "mIoU": 3.0, "change": 0.0, "interval": None, "changed": 0}],
                      "words": [{"word": "x", "times": 3, "mean_loss": 0.5}]}
        self.make_own(folder / "source", index)
        if find_spec("rasterio") and find_spec("pyogrio"):
            self.make_scenes(folder / "scenes")
        self.pictures = {}
        for kind in FORMATS:
            picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
            path = folder / "picture"
            for mode in ("RGB", "P", "F", "1"):   # the first that the format takes
                try:
                    picture.convert(mode).save(path, kind)
                    self.pictures[kind] = path.read_bytes()
                    break
                except (OSError, ValueError, KeyError):
                    continue


    def make_own(self, folder: Path, index: REFER) -> None:
        """A table with pictures and masks in `folder`, and `own`, the data set that is imported from it."""
        folder.mkdir()
        self.source, self.own, self.rows = folder, folder.with_name("roofs"), []
        for number, ref in enumerate(list(index.Refs.values())[:20:2]):
            shutil.copy(index.image_path(ref), folder / f"{number}.jpg")
            Image.fromarray(index.getMask(ref)["mask"] * np.uint8(255)).save(folder / f"m{number}.png")
            split = ("train", "val", "test")[number % 3]
            self.rows.append({"image": f"{number}.jpg", "mask": f"m{number}.png", "split": split,
                              "sentence": ref["sentences"][0]["raw"], "category": "ship, small"})
        (folder / "refs.jsonl").write_bytes(b"".join(mutations.as_json(row) + b"\n" for row in self.rows))
        with redirect_stdout(io.StringIO()):
            import_dataset.main([str(folder / "refs.jsonl"), "--out", str(self.own)])
        self.description = json.loads((self.own / "dataset.json").read_text(encoding="utf-8"))

    def make_scenes(self, folder: Path) -> None:
        """Scenes by suffix, and a layer over one of them."""
        folder.mkdir()
        self.scene, place = folder / "map.tif", {"crs": "EPSG:32631", "driver": "GTiff", "width": 90, "height": 70}
        values = np.random.default_rng(0).integers(0, 4000, (4, 70, 90))
        with gdal("map.tif") as rasterio:
            transform = rasterio.Affine(0.5, 0, 448000, 0, -0.5, 5412000)
            for name, kind, more in (("map.tif", "uint16", {"tiled": True, "blockxsize": 32, "blockysize": 32}),
                                     ("float.tif", "float32", {"nodata": 7.0}), ("byte.tif", "uint8", {})):
                with rasterio.open(folder / name, "w", count=4, dtype=kind, transform=transform, **place,
                                   **more) as file:
                    file.write(values.astype(kind))
            importlib.import_module("rasterio.shutil").copy(folder / "map.tif", folder / "map.vrt", driver="VRT")
        corners = [[448005.0 + x, 5411990.0 - y] for x, y in ((0, 0), (20, 0), (20, 9), (0, 9), (0, 0))]
        self.layer = {"type": "FeatureCollection", "crs": {"properties": {"name": "EPSG:32631"}}, "features": [
            {"type": "Feature", "properties": {"sentence": f"roof {number}", "split": "train"},
             "geometry": {"type": "Polygon", "coordinates": [corners]}} for number in range(3)]}
        self.scenes = {path.name: path.read_bytes() for path in folder.iterdir()}


def script(name: str, *arguments: object) -> None:
    """Does what `python NAME ARGUMENTS…` does."""
    sys.argv = [str(ROOT / name), *map(str, arguments)]
    runpy.run_path(str(ROOT / name), run_name="__main__")


def flags(samples: Samples, draw: random.Random) -> Input:
    """Command lines: train.py's are parsed only, the others' run."""
    data, network = ["--refer_data_root", samples.toy], ["--resume", samples.checkpoint_file, "--device", "cpu"]
    picture = next((samples.toy / "images/rrsisd/JPEGImages").iterdir())
    name, groups, base = draw.choice((
        ("train.py", TRAINING, ["--ck_bert", samples.toy / "bert"]),
        ("test.py", EVALUATION, [*data, *network, "--split", "val", "--workers", 0]),
        ("demo_inference.py", INFERENCE, [*network, "--image", picture, "--sentence", "ship"]),
        ("tools/score_predictions.py", (), [*data, "--split", "val"]), ("tools/check_dataset.py", (), [*data, "-j", 0]),
        ("tools/compare_results.py", (), ["a.json", "b.json"])))
    own = {"demo_inference.py": ["--image", "--sentence", "--out", "--json", "--threshold", "--tile", "--overlap"],
           "tools/score_predictions.py": ["--predictions", "--dataset", "--splitBy", "--split", "--img_size",
                                          "--results"],
           "tools/check_dataset.py": ["--dataset", "--splitBy", "--json", "--examples", "-j", "--pictures", "--samples",
                                      "--seed", "--split"], "tools/compare_results.py": ["--changed", "--json"]}
    known = [*own.get(name, []), *(option for action in get_parser(*groups)._actions for option in action.option_strings
                                   if groups and option not in ("-h", "--help", "--compile"))]
    line = mutations.flags(list(map(str, base)), known, draw)
    if name == "train.py":
        return lambda: get_parser(*TRAINING).parse_args(line)
    return lambda: script(name, *line)


def refs(samples: Samples, draw: random.Random) -> Input:
    """Annotation files: checked, read as samples, and scored."""
    in_refs, structured, use = draw.random() < 0.5, draw.random() < 0.8, draw.randrange(3)
    refs_file, instances = pickle.dumps(samples.refs, 4), mutations.as_json(samples.instances)
    if in_refs:
        refs_file = pickle.dumps(mutations.change(samples.refs, draw), 4) if structured else \
            mutations.damage(refs_file, draw)
    else:
        instances = mutations.as_json(mutations.change(samples.instances, draw)) if structured else \
            mutations.damage(instances, draw)

    def run() -> None:
        Path("rrsisd").mkdir()
        Path("rrsisd/refs(unc).p").write_bytes(refs_file)
        Path("rrsisd/instances.json").write_bytes(instances)
        Path("images").symlink_to(samples.toy / "images")
        Path("p.json").write_bytes(mutations.as_json(samples.predictions))
        if use == 0:
            script("tools/check_dataset.py", "--refer_data_root", ".", "-j", 0)
        elif use == 1:
            script("tools/score_predictions.py", "--refer_data_root", ".", "--predictions", "p.json", "--split", "val")
        else:
            with user_errors("fuzz.py"):
                dataset = EvalSet(REFER(".", "rrsisd"), "val", load_tokenizer(str(samples.toy / "bert")), 32)
                for number in range(len(dataset)):
                    dataset[number], dataset.describe(number)
    return run


def with_adapters(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint as `--text_lora 2` would have written it."""
    settings = {**checkpoint["config"], "text_lora": 2}
    needed, layers = needed_entries(ModelConfig.from_dict(settings))
    adapters = {name: torch.zeros(value.shape) for name, value in needed.items() if is_adapter(name)}
    return {**checkpoint, "model": {**beside_adapters(checkpoint["model"], layers), **adapters}, "config": settings}


def checkpoints(samples: Samples, draw: random.Random) -> Input:
    """Checkpoint files, some with adapters: restored and used, resumed from, converted, read as Swin's weights."""
    whole = draw.choice((samples.checkpoint, samples.checkpoint, samples.adapted))
    content: Any = whole
    kind, use = draw.randrange(4), draw.randrange(4)
    if kind == 0:
        content = mutations.change({**content, "model": {}}, draw)
        if isinstance(content, dict) and content.get("model") == {}:
            content["model"] = whole["model"]
    elif kind == 1:
        content = {**content, "config": mutations.change(content["config"], draw)}
    elif kind == 2:
        content = {**content, "model": dict(content["model"])}
        names = [name for name in content["model"] if whole is samples.checkpoint or "lora" in name]
        for name in draw.sample(sorted(names), draw.randint(1, 3)):
            value = content["model"][name]
            content["model"][draw.choice((name, name, name + "x"))] = draw.choice((
                value.float() * float("nan"), value.to(torch.complex64), value.to("meta"), value.long(),
                value.flatten()[:0], value.reshape(1, -1), torch.zeros(()), None, "x", value.float().to_sparse(),
                value.half(), torch.zeros(1).expand(10**9), {}))
    if kind == 0 and draw.random() < 0.3:
        content = {**samples.checkpoint, "tokenizer": mutations.text(samples.checkpoint["tokenizer"], draw) if
                   draw.random() < 0.3 else mutations.as_json(mutations.change(
                       json.loads(samples.checkpoint["tokenizer"]), draw)).decode()}
    torch.save(content, stream := io.BytesIO())
    file = mutations.damage(stream.getvalue(), draw) if kind == 3 else stream.getvalue()

    def run() -> None:
        Path("c.pth").write_bytes(file)
        if use == 2:
            script("tools/convert_checkpoint.py", "c.pth", "out.pth", "--to", "official")
            return
        with user_errors("fuzz.py"):
            if use == 0:
                model, config, _ = restore("c.pth", None)
                if config.img_size <= 128:
                    model(torch.zeros(1, 3, config.img_size, config.img_size), torch.zeros(1, 20).long(),
                          torch.ones(1, 20).long())
            elif use == 1:
                choose_start("c.pth", Path("."), "m", False)
            else:
                args = get_parser().parse_args(["--model", "lavt", "--swin_type", "nano", "--img_size", "64",
                                                "--ck_bert", str(samples.toy / "bert")])
                load_swin_weights(build(ModelConfig.from_args(args)).backbone, "c.pth")
    return run


def results(samples: Samples, draw: random.Random) -> Input:
    """Results, predictions and probes."""
    use = draw.randrange(3)
    sound = (samples.results, samples.predictions, samples.probe)[use]
    content = mutations.as_json(mutations.change(sound, draw)) if draw.random() < 0.8 else \
        draw.choice((mutations.damage(mutations.as_json(sound), draw), b"[" * 200_000))

    def run() -> None:
        Path("a.json").write_bytes(content)
        Path("b.json").write_bytes(mutations.as_json(samples.results))
        if use == 0:
            script("tools/compare_results.py", "a.json", "b.json", "--json", "c.json")
        elif use == 1:
            script("tools/score_predictions.py", "--refer_data_root", samples.toy, "--predictions", "a.json", "--split",
                   "val", "--results", "r.json")
        else:
            with user_errors("fuzz.py"):
                read_probe("a.json")
    return run


def pictures(samples: Samples, draw: random.Random) -> Input:
    """Picture files: shown with a mask, and read as a mask."""
    content = mutations.damage(samples.pictures[draw.choice(sorted(samples.pictures))], draw, 2)

    def run() -> None:
        Path("1_2.png").write_bytes(content)
        with user_errors("fuzz.py"):
            picture = read_picture("1_2.png")
            mask = np.zeros(picture.size[::-1], bool)
            if mask.size < 10**7:
                Image.fromarray(overlay(np.asarray(picture), mask)).save("o.png")
                save_picture(Image.fromarray(mask), Path("m.png"))
            for read in read_predictions(Path(".")).values():
                read(2**22)
    return run


def masks(samples: Samples, draw: random.Random) -> Input:
    """Masks as pictures: of a data set that is imported, and of one in RISBench's layout, checked and read."""
    kind, in_place = draw.choice(sorted(samples.pictures)), draw.random() < 0.5
    content = (samples.source / "m0.png").read_bytes()
    if draw.random() < 0.3:
        content = samples.pictures[kind]
    elif draw.random() < 0.4:
        mode = draw.choice(("1", "P", "LA", "RGBA", "RGB", "I", "F", "I;16", "CMYK"))
        with open_image(io.BytesIO(content)) as opened:
            opened.point(lambda value: value // draw.choice((1, 2, 255))).convert(mode).save(
                stream := io.BytesIO(), "TIFF")
        content = stream.getvalue()
    if draw.random() < 0.6:
        content = mutations.damage(content, draw, 3)

    def run() -> None:
        if in_place:
            shutil.copytree(samples.source, "source", dirs_exist_ok=True)
            Path("source/m0.png").write_bytes(content)
            script("tools/import_dataset.py", "source/refs.jsonl", "--out", "own", *draw.choice(
                ([], ["--skip_bad"], ["--object_above", 50], ["--object_value", 255])))
            return
        for folder in ("img_rgb", "mask"):
            Path("risbench", folder).mkdir(parents=True)
        shutil.copy(samples.source / "0.jpg", "risbench/img_rgb/val_1.png")
        Path("risbench/mask/val_1.png").write_bytes(content)
        Path("risbench/output_phrase_val.txt").write_text("val_1.png a ship\n", encoding="utf-8")
        if draw.random() < 0.5:
            script("tools/check_dataset.py", "--refer_data_root", ".", "--dataset", "risbench", "-j", 0)
        with user_errors("fuzz.py"):
            EvalSet(REFER(".", "risbench"), "val", load_tokenizer(str(samples.toy / "bert")), 32)[0]
    return run


def tables(samples: Samples, draw: random.Random) -> Input:
    """Tables and lists of pairs: imported, and read as `demo_inference.py --pairs` reads them."""
    rows, suffix = mutations.change(samples.rows, draw), draw.choice((".csv", ".tsv", ".jsonl"))
    rows = rows if isinstance(rows, list) else [rows]
    if suffix == ".jsonl":
        content = b"".join(mutations.as_json(row) + b"\n" for row in rows)
    else:
        names = [*samples.rows[0]]
        cells = [[str(row.get(name, "")) if isinstance(row, dict) else str(row) for name in names] for row in rows]
        joined = [(",", "\t")[suffix == ".tsv"].join('"' + cell.replace('"', '""') + '"' for cell in line)
                  for line in [names, *cells]]
        content = "\n".join(joined).encode("utf-8", "surrogatepass")
    content = mutations.damage(content, draw) if draw.random() < 0.5 else content
    use = draw.randrange(2)

    def run() -> None:
        shutil.copytree(samples.source, "source")
        Path("source/list" + suffix).write_bytes(content)
        if use == 0:
            script("tools/import_dataset.py", "source/list" + suffix, "--out", "own",
                   *draw.choice(([], ["--skip_bad"])))
        else:
            with user_errors("fuzz.py"):
                read_pairs(Path("source/list" + suffix))
    return run


def descriptions(samples: Samples, draw: random.Random) -> Input:
    """The files of a data set of one's own, dataset.json and JSON Lines: checked, read, converted."""
    use, in_lines = draw.randrange(3), draw.random() < 0.4
    lines = (samples.own / "roofs_val.jsonl").read_bytes()
    description = mutations.as_json(samples.description)
    if in_lines:
        entry = mutations.change(json.loads(lines.split(b"\n")[0]), draw)
        lines = mutations.damage(lines, draw) if draw.random() < 0.3 else mutations.as_json(entry) + b"\n"
    else:
        description = mutations.damage(description, draw) if draw.random() < 0.3 else mutations.as_json(
            mutations.change(samples.description, draw))
    if draw.random() < 0.02:
        description = b"[" * 200_000

    def run() -> None:
        shutil.copytree(samples.own, "roofs", symlinks=True)
        Path("roofs/dataset.json").write_bytes(description)
        Path("roofs/roofs_val.jsonl").write_bytes(lines)
        if use == 0:
            script("tools/check_dataset.py", "--dataset", "./roofs", "-j", 0)
        elif use == 1:
            script("tools/convert_dataset.py", "--dataset", "./roofs", "--to", draw.choice(
                ("refer", "coco", "jsonl", "phrases")), "--out", "out")
        else:
            with user_errors("fuzz.py"):
                dataset = EvalSet(REFER(".", "./roofs"), "val", load_tokenizer(str(samples.toy / "bert")), 32)
                for number in range(len(dataset)):
                    dataset[number], dataset.describe(number)
    return run


def scenes(samples: Samples, draw: random.Random) -> Input:
    """Georeferenced scenes, VRTs and layers: read in windows, and imported."""
    name = draw.choice(sorted(samples.scenes))
    content = mutations.damage(samples.scenes[name], draw, 3)
    layer, use = mutations.as_json(mutations.change(samples.layer, draw)), draw.randrange(3)
    bands = draw.choice(((), (1,), (1, 2, 3), (4, 4, 4), (9,)))

    def run() -> None:
        for other, whole in samples.scenes.items():
            Path(other).write_bytes(whole)
        if use == 2:
            Path("layer.geojson").write_bytes(layer)
            script("tools/import_dataset.py", "layer.geojson", "--raster", "map.tif", "--tile", 32, "--out", "own")
            return
        Path(name).write_bytes(content)
        with user_errors("fuzz.py"):
            source = open_source(Path(name), True, bands)
            width, height = source.size
            source.crop((0, 0, min(64, width), min(64, height)))
            if use and isinstance(source, Scene):
                source.preview(64)
    return run


AREAS = {area.__name__: area for area in (flags, refs, checkpoints, results, pictures, masks, tables, descriptions,
                                          scenes)}


def child(run: Input, folder: Path) -> None:
    """Runs one input in the forked process, in `folder`, with limited resources and output in files; never returns."""
    import resource  # Windows has no such module
    os.chdir(folder)
    for number in (1, 2):
        os.dup2(os.open(folder.parent / f"said{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False, errors="backslashreplace") for number in (1, 2))
    mapped = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * MOST_MIB * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = 0
    try:
        run()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 0
    except BaseException:
        import traceback
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def verdict(run: Input, box: Path, allowed: tuple[int, ...], everything: bool) -> str:
    """'' if the input ended as it should, else how it ended. `box` holds files that it must not change."""
    folder = box / "work"
    folder.mkdir()
    before = contents(box, everything)
    begun, inherited_kib = time.monotonic(), resident_kib()   # included in a child's peak
    if (process := os.fork()) == 0:
        child(run, folder)
    while not (ended := os.wait4(process, os.WNOHANG))[0]:
        if time.monotonic() - begun > MOST_WALL_S:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.002)
    said = (box / "said2").read_text(encoding="utf-8", errors="replace")
    status, used = os.waitstatus_to_exitcode(ended[1]), ended[2]
    after = contents(box, everything)
    shutil.rmtree(folder)
    if status < 0:
        return f"signal {-status}" if used.ru_utime + used.ru_stime < MOST_CPU_S - 1 else "more than 20 s"
    if "Traceback" in said or status not in allowed:
        return f"status {status}: {said.strip().splitlines()[-1][:300] if said.strip() else 'nothing said'}"
    if status == 2 and len(said.splitlines()) != 1:
        return f"{len(said.splitlines())} lines: {said.strip()[:300]!r}"
    if status == 2 and re.search("[\x00-\x08\x0b-\x1f\x7f]", said.rstrip("\n")):
        return f"control characters: {said!r}"[:300]
    if (grown_kib := used.ru_maxrss - inherited_kib) > MOST_MIB * 1024:
        return f"{grown_kib >> 10} MiB more"
    return "" if before == after else "changed a file outside its folder"


def resident_kib() -> int:
    """The memory that this process holds, in KiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 10


def contents(box: Path, everything: bool) -> dict[str, tuple[int, int]]:
    """Sizes and times of the files that no input may change: all in `box` if `everything`, else those in `victim`."""
    kept = sorted((box if everything else box / "victim").rglob("*"))
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in kept
            if not path.name.startswith("said") and not path.is_relative_to(box / "work")}


def fuzz(inputs: int, seed: int, areas: list[str], first: int = 0) -> dict[str, Any]:
    """Runs the inputs; -> {"inputs", "ended well", "by area", "failures": [(number, area, how it ended)]}."""
    torch.set_num_threads(1)   # forked children cannot use this process's other threads
    failures, done = [], Counter()
    with tempfile.TemporaryDirectory() as temporary:
        samples = Samples(Path(temporary))
        box = Path(temporary) / "box"
        (box / "victim").mkdir(parents=True)
        (box / "victim/photo").write_text("leave this alone", encoding="utf-8")
        for number in range(first, first + inputs):
            area = areas[number % len(areas)]
            run = AREAS[area](samples, random.Random(f"{seed}/{number}"))
            done[area] += 1
            if how := verdict(run, box, (0, 1, 2) if area in CHECKED else (0, 2), area != "flags"):
                failures.append((number, area, how))
                log(f"{number} {area}: {how}")
            if (number - first + 1) % 100 == 0:
                log(f"{number - first + 1} inputs, {len(failures)} failures")
    return {"inputs": inputs, "seed": seed, "ended well": inputs - len(failures), "by area": dict(done),
            "failures": failures}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("areas", nargs="*", metavar="AREA", help="which of these, default all:\n" + "\n".join(
        f"{name}: {area.__doc__}" for name, area in AREAS.items()))
    parser.add_argument("--inputs", default=10_000, type=positive, metavar="N", help="default: 10000")
    parser.add_argument("--first", default=0, type=count, metavar="N", help="number of the first input (default: 0)")
    parser.add_argument("--seed", default=0, type=count, help="seed of the inputs (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    if unknown := set(args.areas) - AREAS.keys():
        parser.error(f"no area {', '.join(sorted(unknown))}: choose from {', '.join(AREAS)}")
    if sys.platform != "linux":
        parser.error(f"{sys.platform} cannot limit and measure forked processes as Linux does: run this on Linux")
    areas = args.areas or [area for area in AREAS if area != "scenes" or (find_spec("rasterio") and
                                                                          find_spec("pyogrio"))]
    figures = fuzz(args.inputs, args.seed, areas, args.first)
    log(f"{figures['ended well']} of {figures['inputs']} inputs ended well")
    if args.json:
        write_json(args.json, figures)
    sys.exit(1 if figures["failures"] else 0)


if __name__ == "__main__":
    main()

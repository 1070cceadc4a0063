"""Gives the programs thousands of mutated inputs, and counts those that do not end as they should.

Each input must end in success or in one line and status 2: never in a traceback, in more than 20 s of computing, in
more than 2 GiB, or in a change to a file outside its folder. Inputs follow from the seed alone; each runs in a forked
process of its own (Linux only). Failures are printed with the number that reproduces them: --first N --inputs 1.
"""
import argparse
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from args import EVALUATION, INFERENCE, TRAINING, Parser, count, get_parser, positive
from bert import load_tokenizer
from data import EvalSet
from data.toy import make_toy_rrsisd
from distributed import user_errors
from lib.checkpoint import describe_model, load_swin_weights, restore, save_checkpoint
from lib.evaluation.metrics import COUNTS
from lib.evaluation.predictions import encode_mask
from lib.evaluation.result_files import read_probe
from lib.imagery.drawing import overlay
from lib.imagery.layers import save_picture
from lib.imagery.pictures import read_picture
from lib.segmentation import ModelConfig, build
from lib.training.resume import choose_start
from refer.refer import REFER
from tools import mutations
from tools.score_predictions import read_predictions
from utils import log, write_json

ROOT = Path(__file__).resolve().parents[1]
MOST_CPU_S, MOST_WALL_S, MOST_MIB = 20, 120, 2048
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "SGI", "ICO", "JPEG2000", "DDS", "AVIF",
           "IM", "MSP", "XBM", "SPIDER", "BLP")
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


def checkpoints(samples: Samples, draw: random.Random) -> Input:
    """Checkpoint files: restored and used, resumed from, converted, read as Swin's weights."""
    content: Any = samples.checkpoint
    kind, use = draw.randrange(4), draw.randrange(4)
    if kind == 0:
        content = mutations.change({**content, "model": {}}, draw)
        if isinstance(content, dict) and content.get("model") == {}:
            content["model"] = samples.checkpoint["model"]
    elif kind == 1:
        content = {**content, "config": mutations.change(content["config"], draw)}
    elif kind == 2:
        content = {**content, "model": dict(content["model"])}
        for name in draw.sample(sorted(content["model"]), draw.randint(1, 3)):
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


AREAS = {area.__name__: area for area in (flags, refs, checkpoints, results, pictures)}


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
            if how := verdict(run, box, (0, 1, 2) if area in ("refs", "flags") else (0, 2), area != "flags"):
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
    figures = fuzz(args.inputs, args.seed, args.areas or list(AREAS), args.first)
    log(f"{figures['ended well']} of {figures['inputs']} inputs ended well")
    if args.json:
        write_json(args.json, figures)
    sys.exit(1 if figures["failures"] else 0)


if __name__ == "__main__":
    main()

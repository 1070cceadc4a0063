"""Measures what a large data set costs: seconds and memory of reading it, and memory of the loader's workers.

Writes a synthetic set in RRSIS-D's layout (one small picture under every name, a mask and a sentence per ref), reads it
as train.py does, and goes through an epoch. USS is a process's memory without the part that it shares with others.
"""
import argparse
import json
import multiprocessing
import os
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from bert import load_tokenizer
from bert.from_scratch import write_text_encoder
from data import TrainSet, read_refs, train_loader
from data.toy.scenes import grammar_words
from distributed import user_errors
from utils import UserError

SIZE_PX = 64
WORDS = (4, 10)  # of a sentence, RRSIS-D's mean is 6.8


def write_set(root: Path, refs: int) -> None:
    """Writes a synthetic set of `refs` refs, and a text encoder's folder."""
    draw, words = random.Random(0), grammar_words()
    images, annotations, entries = [], [], []
    for number in range(refs):
        top, height = draw.randrange(40), draw.randrange(4, 20)
        mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8, order="F")
        mask[top:top + height, :draw.randrange(10, 60)] = 1
        rle = coco_mask.encode(mask)
        part = {"size": rle["size"], "counts": rle["counts"].decode()}
        raw = " ".join(draw.choices(words, k=draw.randint(*WORDS)))
        images.append({"id": number, "file_name": "0.jpg", "height": SIZE_PX, "width": SIZE_PX})
        annotations.append({"id": number, "image_id": number, "categories_id": 0, "bbox": [0, top, 20, top + height],
                            "area": 20 * height, "segmentation": [part]})
        entries.append({"ref_id": number, "ann_id": number, "image_id": number, "category_id": 0, "split": "train",
                        "file_name": "0.jpg", "sent_ids": [number], "sentences": [
                            {"raw": raw, "sent": raw, "tokens": raw.split(), "sent_id": number}]})
    (root / "rrsisd").mkdir(parents=True)
    (root / "images/rrsisd/JPEGImages").mkdir(parents=True)
    Image.new("RGB", (SIZE_PX, SIZE_PX), "gray").save(root / "images/rrsisd/JPEGImages/0.jpg")
    (root / "rrsisd/refs(unc).p").write_bytes(pickle.dumps(entries, 4))
    (root / "rrsisd/instances.json").write_text(json.dumps({
        "images": images, "annotations": annotations, "categories": [{"id": 0, "name": "ship"}]}), encoding="utf-8")
    write_text_encoder(root / "bert", grammar_words())


def memory_mib(process: int | str = "self") -> dict[str, float]:
    """A process's resident set, the part that it alone holds, and its peak (Linux)."""
    rollup, status = (Path(f"/proc/{process}/{name}").read_text(encoding="utf-8").splitlines()
                      for name in ("smaps_rollup", "status"))
    rollup, status = (dict(line.split(":", 1) for line in lines) for lines in (rollup[1:], status))
    kib = {name: int(value.split()[0]) for name, value in {**rollup, "VmHWM": status["VmHWM"]}.items()}
    uss = kib["Private_Clean"] + kib["Private_Dirty"]
    sizes = {"RSS": kib["Rss"], "USS": uss, "peak RSS": kib["VmHWM"]}
    return {name: round(size / 1024, 1) for name, size in sizes.items()}


def cpu_seconds() -> float:
    """Processor seconds of this process and its ended children, which a busy machine does not increase."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def epoch(batches: object, most: int) -> Iterator[int]:
    """Goes through at most `most` batches and yields, after each, the number done so far."""
    for done, _ in enumerate(batches, start=1):
        yield done
        if done == most:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--refs", default=270_000, type=int, metavar="N",
                        help="number of refs (default: 270000, as RemoteSAM-270K)")
    parser.add_argument("--workers", default=2, type=int, metavar="N", help="default: 2")
    parser.add_argument("--batches", default=0, type=int, metavar="N",
                        help="batches of 64 samples to load (default: a whole epoch)")
    args = parser.parse_args()
    with user_errors("measure_refs.py"), tempfile.TemporaryDirectory() as folder:
        if sys.platform != "linux":
            raise UserError(f"{sys.platform} does not tell the memory of processes as Linux does: run this on Linux")
        root = Path(folder)
        writer = multiprocessing.get_context("fork").Process(target=write_set, args=(root / "set", args.refs))
        writer.start()   # in another process, as its memory is not what is measured
        writer.join()
        tokenizer = load_tokenizer(str(root / "set/bert"))
        before = memory_mib()
        print(f"{args.refs} refs; imports take {before}")
        start, spent = time.perf_counter(), cpu_seconds()
        refs = read_refs(str(root / "set"), "rrsisd", "unc")
        read, spent_reading = time.perf_counter() - start, cpu_seconds() - spent
        dataset = TrainSet(refs, "train", tokenizer, 32, seed=1)
        print(f"index {read:.1f} s ({spent_reading:.1f} s of processors), tokens "
              f"{time.perf_counter() - start - read:.1f} s ({cpu_seconds() - spent - spent_reading:.1f} s)")
        after = memory_mib()
        print(f"afterwards {after}: USS grew by {after['USS'] - before['USS']:.0f} MiB", flush=True)
        batches = train_loader(dataset, 64, args.workers, False, 0, 1)
        workers: list[int] = []
        start = time.perf_counter()
        for done in epoch(batches, args.batches or len(batches)):
            if done == 20:   # by then each worker has loaded some
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8")
                workers = [int(pid) for pid in children.split()]
                first = {pid: memory_mib(pid)["USS"] for pid in workers}
        for pid in workers if args.workers else ():
            last = memory_mib(pid)["USS"] if Path(f"/proc/{pid}").exists() else 0
            print(f"worker {pid}: USS {first[pid]} MiB after 20 batches, {last} MiB after {done} "
                  f"({100 * (last / max(1, first[pid]) - 1):+.1f} %)")
        print(f"{done} batches of 64 in {time.perf_counter() - start:.0f} s; this process {memory_mib()}")


if __name__ == "__main__":
    main()

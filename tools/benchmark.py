"""Measures forward pass, training step, evaluation and data loading, of this code and of the plain form of it.

    python tools/benchmark.py forward train --swin_type base --window12 --img_size 480 --baseline
    python tools/benchmark.py loading --data FOLDER --packed FILE

With --baseline each figure is also taken of the straightforward network (tools/plain.py) and loop: unfused
attention, masks built per forward, float32, everything given a gradient, a stop after every step, one image at a time
in evaluation. The two take turns, so that a slow minute of the machine hits both. Times are medians over the rounds.
"""
import argparse
import gc
import json
import platform
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import utils
from args import get_parser
from bert import load_tokenizer
from data import TrainSet, train_loader
from lib.evaluation import evaluate
from lib.fuse import fuse, keep_weights_in
from lib.losses import segmentation_loss
from lib.model import ReferringSegmenter
from lib.optimizer import freeze_text, make_optimizer
from lib.segmentation import build_model
from lib.update import AMP_DTYPES, Updater, autocast
from refer.refer import REFER
from tools.plain import make_plain
from transforms import normalize
from utils import UserError, log, user_errors

TOKENS = 20


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: what the network's could reach at best."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        wait(device)
        begun = time.perf_counter()
        a @ b
        wait(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * side ** 3 / min(seconds[1:])


def make_batch(args: Namespace, size: int, device: torch.device) -> dict[str, Tensor]:
    """Random pictures, words and masks as the loaders give them."""
    generator = torch.Generator().manual_seed(0)
    shape = (size, args.img_size, args.img_size)
    batch = {"image": torch.randint(0, 256, (size, 3, *shape[1:]), generator=generator, dtype=torch.uint8),
             "target": torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8),
             "token_ids": torch.randint(1, 90, (size, TOKENS), generator=generator),
             "token_mask": torch.ones(size, TOKENS, dtype=torch.int64), "index": torch.arange(size)}
    return {key: value.to(device) for key, value in batch.items()}


def fresh_model(args: Namespace, device: torch.device, plain: bool) -> ReferringSegmenter:
    """The network that the flags ask for, with the same weights each time."""
    torch.manual_seed(0)
    model = build_model(args)
    return (make_plain(model) if plain else model).to(device)


def forward(args: Namespace, device: torch.device, plain: bool) -> tuple[Callable[[], None], int]:
    """A function that runs one forward pass in evaluation mode, and the images in it."""
    model, batch = fresh_model(args, device, plain).eval(), make_batch(args, args.batch_size, device)
    if not plain:
        speed_up(model, args)
        if args.fuse:
            fuse(model)
        keep_weights_in(model, args.amp)

    @torch.inference_mode()
    def run() -> None:
        with autocast(device, "off" if plain else args.amp):
            model(normalize(batch["image"]), batch["token_ids"], batch["token_mask"])
    return run, args.batch_size


def train(args: Namespace, device: torch.device, plain: bool) -> tuple[Callable[[], None], int]:
    """A function that runs one training step, and the images in it."""
    model, batch = fresh_model(args, device, plain).train(), make_batch(args, args.batch_size, device)
    if plain:
        return plain_train(model, batch, args), args.batch_size
    speed_up(model, args)
    freeze_text(model, args.bert_layers, args.train_embeddings)
    optimizer, schedule = make_optimizer(model, args.lr, args.weight_decay, 10_000)
    updater = Updater(model, optimizer, schedule, device, args.amp)

    def run() -> None:
        logits = updater.forward(normalize(batch["image"]), batch["token_ids"], batch["token_mask"])
        updater.backward(segmentation_loss(logits, batch["target"].long(), args.dice_weight))
    return run, args.batch_size


def plain_train(model: ReferringSegmenter, batch: dict[str, Tensor], args: Namespace) -> Callable[[], None]:
    """The published loop's step: all parameters take a gradient, the loss is read, garbage is collected."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=args.weight_decay)

    def run() -> None:
        logits = model(normalize(batch["image"]), batch["token_ids"], batch["token_mask"])
        loss = segmentation_loss(logits, batch["target"].long(), args.dice_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        gc.collect()
        if batch["image"].is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
    return run


def evaluation(args: Namespace, device: torch.device, plain: bool) -> tuple[Callable[[], None], int]:
    """A function that evaluates 16 images of random pixels: in batches, or as published one by one."""
    model, images = fresh_model(args, device, plain).eval(), 16
    size = 1 if plain else min(images, args.batch_size)
    batches = [make_batch(args, size, device) for _ in range(images // size)]
    if not plain:
        keep_weights_in(fuse(model) if args.fuse else model, args.amp)
    return lambda: evaluate(model, batches, device, "off" if plain else args.amp), images // size * size


def loading(args: Namespace, device: torch.device, plain: bool) -> tuple[Callable[[], None], int]:
    """A function that loads training samples in this process: decoding, resizing, and packing up as batches."""
    if not args.data:
        raise UserError("loading needs --data FOLDER, a data root with the data set in it")
    refer = REFER(args.data, args.dataset, args.splitBy)
    tokenizer = load_tokenizer(args.bert_tokenizer)
    dataset = TrainSet(refer, "train", tokenizer, args.img_size, args.seed, packed="" if plain else args.packed)
    count = min(len(dataset), 64)
    if plain:
        return lambda: plain_load(dataset, count), count
    batches = train_loader(dataset, args.batch_size, 0, False, 0, 1)
    batches.batch_sampler.samples = count
    return lambda: [None for _ in batches], count // args.batch_size * args.batch_size


def plain_load(dataset: TrainSet, count: int) -> None:
    """As published: the whole mask decoded and converted, image and mask through torchvision, floats normalised."""
    from PIL import Image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    from transforms import IMAGENET_MEAN, IMAGENET_STD
    size = [dataset.size_px] * 2
    for ref in dataset.refs[:count]:
        image = Image.open(dataset.refer.image_path(ref)).convert("RGB")
        mask = Image.fromarray(dataset.refer.getMask(ref)["mask"], mode="P")
        pixels = TF.normalize(TF.to_tensor(TF.resize(image, size)), IMAGENET_MEAN, IMAGENET_STD)
        target = torch.as_tensor(TF.pil_to_tensor(TF.resize(mask, size, InterpolationMode.NEAREST)), dtype=torch.int64)
        torch.stack([pixels]), torch.stack([target])


def speed_up(model: ReferringSegmenter, args: Namespace) -> None:
    """What the flags ask for beyond the fast network itself."""
    model.backbone.recompute_blocks = args.checkpoint_activations
    if args.compile:
        model.backbone.compile_blocks()


TASKS = {"forward": forward, "train": train, "evaluation": evaluation, "loading": loading}


def measure(args: Namespace, task: str, device: torch.device) -> dict[str, Any]:
    """Seconds of each round of one task, of this code and perhaps of the plain form, taking turns."""
    forms = {"this code": False, **({"plain": True} if args.baseline else {})}
    result: dict[str, Any] = {}
    runs = {}
    for name, plain in forms.items():
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device) >> 20   # by the other form
        runs[name], images = TASKS[task](args, device, plain)
        for _ in range(args.warm_up):
            runs[name]()
        wait(device)
        result[name] = {"images": images, "seconds": []}
        if device.type == "cuda" or len(result) == 1:   # a CPU process keeps one peak, of all that it ever held
            result[name]["peak_memory_mib"] = utils.peak_memory_mib(device) - before
    for _ in range(args.rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            wait(device)
            result[name]["seconds"].append(time.perf_counter() - begun)
    for entry in result.values():
        entry["images_per_second"] = entry["images"] / statistics.median(entry["seconds"])
    if task in ("forward", "train"):
        with FlopCounterMode(display=False) as counter:
            runs["this code"]()
        flops = counter.get_total_flops()
        peak = matmul_flops(device, AMP_DTYPES[args.amp] or torch.float32)
        seconds = statistics.median(result["this code"]["seconds"])
        result["this code"] |= {"gflop": flops / 1e9, "gflop_per_second": flops / seconds / 1e9,
                                "share_of_matmul": flops / seconds / peak, "matmul_gflop_per_second": peak / 1e9}
    if args.baseline:
        ratios = sorted(a / b for a, b in zip(result["plain"]["seconds"], result["this code"]["seconds"], strict=True))
        scale = result["this code"]["images"] / result["plain"]["images"]
        result["ratio"] = {"median": statistics.median(ratios) * scale, "lowest": ratios[0] * scale,
                           "highest": ratios[-1] * scale}
    if args.profile:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            runs["this code"]()
            wait(device)
        profile.export_chrome_trace(f"{args.profile}-{task}.json")
        sort_by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        log(profile.key_averages().table(sort_by=sort_by, row_limit=25, max_name_column_width=50))
    return result


def show(task: str, result: dict[str, Any]) -> None:
    """One line for each form of the task."""
    for name in ("this code", "plain"):
        if entry := result.get(name):
            share = f", {100 * entry['share_of_matmul']:.0f} % of matmul" if "share_of_matmul" in entry else ""
            log(f"{task:10} {name:9} {entry['images_per_second']:8.2f} images/s, "
                f"{1000 * statistics.median(entry['seconds']):8.1f} ms for {entry['images']} image(s) "
                + (f"peak {entry['peak_memory_mib']} MiB" if "peak_memory_mib" in entry else "") + share)
    if ratio := result.get("ratio"):
        log(f"{task:10} {ratio['median']:.2f} times as fast ({ratio['lowest']:.2f} to {ratio['highest']:.2f} by round)")


def parser() -> argparse.ArgumentParser:
    """The flags of train.py that matter here, and the benchmark's own."""
    own = get_parser()
    own.description, own.usage = __doc__, "benchmark.py TASK... [flags of train.py] [flags below]"
    group = own.add_argument_group("benchmark")
    group.add_argument("tasks", nargs="+", choices=sorted(TASKS), help="what to measure")
    group.add_argument("--baseline", action="store_true", help="measure the plain form too, in turns")
    group.add_argument("--rounds", default=7, type=int, help="measurements of each (default: 7)")
    group.add_argument("--warm_up", default=2, type=int, help="runs before (default: 2)")
    group.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    group.add_argument("--data", metavar="FOLDER", help="data root for the task loading")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    group.add_argument("--profile", metavar="PREFIX", help="write PREFIX-TASK.json, a trace for chrome://tracing")
    return own


def main() -> None:
    args = parser().parse_args()
    with user_errors("benchmark.py"):
        if args.threads:
            torch.set_num_threads(args.threads)
        device = utils.init_processes(args.device, args.local_rank)
        figures = {"flags": {key: str(value) for key, value in vars(args).items()}, **utils.describe_run(device),
                   "cpu": platform.processor(), "threads": torch.get_num_threads()}
        for task in args.tasks:
            figures[task] = measure(args, task, device)
            show(task, figures[task])
        if args.json:
            utils.write_json(args.json, json.loads(json.dumps(figures)))


if __name__ == "__main__":
    main()

"""Measures forward pass, training step, evaluation and data loading, of this code and of the plain form of it.

    python tools/benchmark.py forward train --swin_type base --window12 --img_size 480 --baseline
    python tools/benchmark.py loading --data FOLDER --packed FILE
    python tools/benchmark.py count --gpu h200 --batch-size 8 --amp bf16

With --baseline each figure is also taken of the plain network, without lib.accelerate, and of a plain loop:
attention, masks built per forward, float32, everything given a gradient, a stop after every step, one image at a time
in evaluation. Each form has a process of its own, with its own memory; the two take turns, so that a slow minute of
the machine hits both. Times are medians over the rounds. With --scale each task is measured at several sizes of image
and of batch instead, and how its cost grows is fitted.

The task count measures nothing: it counts the operators of a training step, their bytes and FLOPs, without a GPU, and
gives the least time that a GPU's data sheet allows.
"""
import argparse
import gc
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

import distributed
import utils
from args import count, get_parser, positive
from distributed import user_errors
from lib.accelerate import AMP_DTYPES, set_up
from lib.accelerate.onednn import has_products
from tools import counting
from tools.costs import FLOPS, GPUS
from tools.workloads import WORKLOADS
from utils import UserError, log

# FLOPs of operators that FlopCounterMode does not know or counts wrongly, by the shapes of their arguments.
ONEDNN_FLOPS = {torch.ops.mkldnn._linear_pointwise:
                lambda x, weight, *_, **__: 2 * weight[0] * math.prod(x)} if has_products(torch.float32) else {}


def wait(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, which a network can reach at best."""
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


def prepare(args: Namespace) -> torch.device:
    """Sets this process's threads and returns its device."""
    if args.threads:
        torch.set_num_threads(args.threads)
    return distributed.init_processes(args.device, args.local_rank)


def serve(connection: Connection, args: Namespace, task: str, plain: bool) -> None:
    """Runs in the process of one form: does the task once for each request and answers with the seconds it took.

    The first answer is the number of images. On a request of False it answers with all other figures and ends.
    """
    try:
        device = prepare(args)
        if plain:
            gc.unfreeze()   # see utils.importing_much
        if not plain or device.type == "cuda":   # the original's GPU settings were the same
            set_up(device, args)
        run, images = WORKLOADS[task](args, device, plain)
        for _ in range(args.warm_up):
            run()
        wait(device)
    except UserError as error:
        connection.send(error)
        return
    connection.send(images)
    try:
        while connection.recv():
            begun = time.perf_counter()
            run()
            wait(device)
            connection.send(time.perf_counter() - begun)
    except EOFError:   # the other form failed
        return
    result: dict[str, Any] = {"peak_memory_mib": utils.peak_memory_mib(device)}
    # Not for training on a CPU, where the work of a step depends on the branches that drop path drops.
    if not plain and (task == "forward" or (task == "train" and device.type == "cuda")):
        with FlopCounterMode(display=False, custom_mapping={**FLOPS, **ONEDNN_FLOPS}) as counter:
            run()
        result |= {"gflop": counter.get_total_flops() / 1e9,
                   "matmul_gflop_per_second": matmul_flops(device, AMP_DTYPES[args.amp] or torch.float32) / 1e9}
    if not plain and args.profile:
        write_profile(run, device, f"{args.profile}-{task}.json")
    connection.send(result)


def write_profile(run: Callable[[], None], device: torch.device, path: str) -> None:
    """A trace of one run, for chrome://tracing, and the operations that took longest as a table."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
        wait(device)
    profile.export_chrome_trace(path)
    sort_by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    log(profile.key_averages().table(sort_by=sort_by, row_limit=25, max_name_column_width=50))


def answer(connection: Connection) -> Any:
    """The answer of the process at the other end. Raises the `UserError` that occurred there."""
    try:
        said = connection.recv()
    except EOFError:
        sys.exit(1)   # it has printed the reason
    if isinstance(said, UserError):
        raise said
    return said


def measure(args: Namespace, task: str, context: Any = None) -> dict[str, Any]:
    """Seconds of each round of one task, of this code and perhaps of the plain form, taking turns.

    `context` starts the processes: by default each imports everything anew.
    """
    context = context or multiprocessing.get_context("spawn")
    forms: dict[str, Connection] = {}
    try:
        for name in ("this code", "plain")[:1 + args.baseline]:
            forms[name], other_end = context.Pipe()
            context.Process(target=serve, args=(other_end, args, task, name == "plain")).start()
            other_end.close()
        return take_turns(args, forms)
    finally:
        for connection in forms.values():   # this ends the processes
            connection.close()


def take_turns(args: Namespace, forms: dict[str, Connection]) -> dict[str, Any]:
    """`measure`, with the processes of the forms at the other ends of these connections."""
    result: dict[str, Any] = {name: {"images": answer(forms[name]), "seconds": []} for name in forms}
    for _ in range(args.rounds):
        for name, connection in forms.items():
            connection.send(True)
            result[name]["seconds"].append(answer(connection))
    for name, connection in forms.items():
        connection.send(False)
        entry = result[name]
        entry |= {"images_per_second": entry["images"] / statistics.median(entry["seconds"]), **answer(connection)}
        if "gflop" in entry:
            entry["gflop_per_second"] = entry["gflop"] / statistics.median(entry["seconds"])
            entry["share_of_matmul"] = entry["gflop_per_second"] / entry["matmul_gflop_per_second"]
    if args.baseline:
        ratios = sorted(a / b for a, b in zip(result["plain"]["seconds"], result["this code"]["seconds"], strict=True))
        scale = result["this code"]["images"] / result["plain"]["images"]
        result["ratio"] = {"median": statistics.median(ratios) * scale, "lowest": ratios[0] * scale,
                           "highest": ratios[-1] * scale}
    return result


def show(task: str, result: dict[str, Any]) -> None:
    """One line for each form of the task."""
    for name in ("this code", "plain"):
        if entry := result.get(name):
            share = f", {100 * entry['share_of_matmul']:.0f} % of matmul" if "share_of_matmul" in entry else ""
            log(f"{task:10} {name:9} {entry['images_per_second']:8.2f} images/s, "
                f"{1000 * statistics.median(entry['seconds']):8.1f} ms for {entry['images']} image(s) "
                f"peak {entry['peak_memory_mib']} MiB{share}")
    if ratio := result.get("ratio"):
        log(f"{task:10} {ratio['median']:.2f} times as fast ({ratio['lowest']:.2f} to {ratio['highest']:.2f} by round)")


SIDES_PX, BATCHES = (320, 480, 640, 896), (1, 2, 4, 8)   # the sizes of --scale


def measure_scale(args: Namespace, task: str) -> dict[str, Any]:
    """Seconds an image of one task against the image's side, at the batch size asked for, and against the batch size.

    `exponent` says with which power of the side or the batch size the seconds of a whole batch grow.
    """
    result: dict[str, Any] = {}
    for name, values in (("img_size", args.scale_sides), ("batch_size", args.scale_batches)):
        rows = []
        for value in values:
            measured = measure(Namespace(**{**vars(args), name: value, "baseline": False}), task)["this code"]
            seconds = sorted(measured["seconds"])
            rows.append({name: value, "images": measured["images"], "seconds": statistics.median(seconds),
                         "lowest": seconds[0], "highest": seconds[-1], "peak_memory_mib": measured["peak_memory_mib"]})
        fit = statistics.linear_regression([math.log(row[name]) for row in rows],
                                           [math.log(row["seconds"]) for row in rows])
        result[name] = {"rows": rows, "exponent": fit.slope}
    return result


def show_scale(task: str, result: dict[str, Any]) -> None:
    """A table for each of the two sizes."""
    for name, what in (("img_size", "image, px"), ("batch_size", "batch")):
        log(f"\n| {task}: {what} | seconds | range | an image | peak memory |\n|---|---|---|---|---|")
        for row in result[name]["rows"]:
            log(f"| {row[name]} | {row['seconds']:.3g} | {row['lowest']:.3g} to {row['highest']:.3g} | "
                f"{row['seconds'] / row['images']:.3g} | {row['peak_memory_mib']} MiB |")
        log(f"The seconds grow with the power {result[name]['exponent']:.2f} of this size.")


def numbers(text: str) -> list[int]:
    """An argparse type: whole numbers joined by commas, two at least."""
    found = [positive(part) for part in text.split(",")]
    if len(set(found)) < 2:
        raise argparse.ArgumentTypeError(f"{text} names one size, and growth takes two at least")
    return found


def machine(device: torch.device) -> str:
    """The machine that the figures are of: the device, the CPU and its instructions, and its load."""
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""   # not on Windows
    return f"{gpu}{utils.describe_cpu()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}{load}"


def parser() -> argparse.ArgumentParser:
    """The flags of train.py that matter here, and the benchmark's own."""
    own = get_parser()
    own.description, own.usage = __doc__, "benchmark.py TASK... [flags of train.py] [flags below]"
    group = own.add_argument_group("benchmark")
    group.add_argument("tasks", nargs="+", choices=sorted([*WORKLOADS, "count"]), help="what to measure, or count")
    group.add_argument("--gpu", default="h200", choices=GPUS, help="the device of the bounds of count (default: h200)")
    group.add_argument("--baseline", action="store_true", help="measure the plain form too, in turns")
    group.add_argument("--scale", action="store_true", help="measure several sizes of image and batch instead")
    group.add_argument("--scale_sides", default=SIDES_PX, type=numbers, metavar="N,N,…",
                       help=f"sides of images, in pixels (default: {','.join(map(str, SIDES_PX))})")
    group.add_argument("--scale_batches", default=BATCHES, type=numbers, metavar="N,N,…",
                       help=f"sizes of batches (default: {','.join(map(str, BATCHES))})")
    group.add_argument("--rounds", default=7, type=positive, help="measurements of each form (default: 7)")
    group.add_argument("--warm_up", default=2, type=count, help="runs before the measurements (default: 2)")
    group.add_argument("--threads", type=positive, help="CPU threads (default: torch's choice)")
    group.add_argument("--data", metavar="FOLDER", help="data root for the task loading")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    group.add_argument("--profile", metavar="PREFIX", help="write PREFIX-TASK.json, a trace for chrome://tracing")
    return own


def main() -> None:
    args = parser().parse_args()
    with user_errors("benchmark.py"):
        device = prepare(args)
        figures = {"flags": {key: str(value) for key, value in vars(args).items()}, **utils.describe_run(device),
                   "machine": machine(device)}
        if args.tasks != ["count"]:
            log(figures["machine"])
        for task in args.tasks:
            if task == "count":
                figures[task] = counting.count(Namespace(**vars(args)))
                continue
            figures[task] = measure_scale(args, task) if args.scale else measure(args, task)
            (show_scale if args.scale else show)(task, figures[task])
        if args.json:
            utils.write_json(args.json, json.loads(json.dumps(figures)))


if __name__ == "__main__":
    main()

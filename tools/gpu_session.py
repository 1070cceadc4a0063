"""A short session on a GPU, which tools/benchmark_gpu.sh starts: first a smoke test, then measurements.

Everything is imported once, before CUDA is used; each step runs in a process that is forked from this one and cannot
stop the others. A result is written as soon as it is there: results.jsonl has all, summary.md a table of them.
"""
import argparse
import contextlib
import gzip
import io
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig

import distributed
import test
import train
from args import EVALUATION, TRAINING, get_parser
from data.toy import make_toy_rrsisd
from distributed.batch_norm import share_batch_norms
from lib.accelerate import accelerate
from lib.accelerate.process import set_up_cuda
from lib.losses import segmentation_loss
from lib.segmentation import MODELS, ModelConfig, build
from lib.training.optimizer import freeze_text, make_optimizer
from lib.training.update_step import Updater
from tools import benchmark, counting
from utils import log

# Least cosines of logits and of gradients between a precision on the device and float32 on the CPU. The gradients of
# these small networks lose more in bfloat16: the CPU's own have 0.943 to 0.982.
CLOSE = {"off": (0.9999, 0.999), "bf16": (0.99, 0.9), "fp16": (0.999, 0.98)}
LOSS = "ce:0.9,dice:0.1"
LARGEST_FILE = 16 << 20
FORK = "fork"   # the children share the imports; on Linux only


def nano(model: str) -> nn.Module:
    """A nano network for images of 64 px, with the same weights each time and a small BERT."""
    torch.manual_seed(0)
    text = BertConfig(vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                      max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    network = build(ModelConfig(model, "nano", 4, 64, (1, 1, 1, 1), 0.0, text.to_diff_dict(), num_tmem=1))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def inputs_for(network: nn.Module, device: torch.device, batch: int = 4) -> tuple[Tensor, ...]:
    """Random arguments of a nano network."""
    generator = torch.Generator().manual_seed(1)
    token_mask = (torch.arange(20) < torch.arange(batch)[:, None] % 5 + 4).long()
    inputs = (torch.randn(batch, 3, 64, 64, generator=generator),
              torch.randint(1, 100, (batch, 20), generator=generator) * token_mask, token_mask,
              torch.stack([token_mask, token_mask], dim=1))
    return tuple(x.to(device) for x in (inputs if network.reads_phrases else inputs[:3]))


def step_of(network: nn.Module, device: torch.device, amp: str) -> tuple[Updater, Callable[[], Tensor]]:
    """The updater of a network and a function that takes a training step and returns the logits."""
    freeze_text(network, 1, False, dropout=False)
    accelerate(network.to(device).train(), device)
    updater = Updater(network, *make_optimizer(network, 1e-4, 0.01, 100), device, amp)
    inputs = inputs_for(network, device)
    target = (torch.arange(64 * 64, device=device).view(64, 64) % 3 == 0).long().expand(4, 64, 64)

    def step() -> Tensor:
        logits = updater.forward(*inputs)
        updater.backward(segmentation_loss(logits, target, LOSS))
        return logits
    return updater, step


def numbers_of(device: torch.device, model: str, amp: str) -> tuple[Tensor, Tensor]:
    """Logits and gradients of a step, as vectors on the CPU."""
    network = nano(model)
    updater, step = step_of(network, device, amp)
    found: list[Tensor] = []
    updater.update = lambda: found.extend(   # type: ignore[method-assign]
        p.grad.flatten().double().cpu() for p in network.parameters() if p.grad is not None)
    logits = step().detach().flatten().double().cpu()
    return logits, torch.cat(found)


def every_model(device: torch.device) -> dict[str, Any]:
    """Each model in each precision against the CPU in float32: the cosines of logits and of gradients."""
    if device.type == "cuda":
        set_up_cuda(tf32=False, cudnn_benchmark=False)
    found, wrong = {}, []
    for model in MODELS:
        expected = numbers_of(torch.device("cpu"), model, "off")
        for amp, least in CLOSE.items():
            numbers = numbers_of(device, model, amp)
            cosines = [round(float(torch.cosine_similarity(a, b, dim=0)), 6)
                       for a, b in zip(numbers, expected, strict=True)]
            found[f"{model} {amp}"] = cosines
            if not all(cosine >= needed for cosine, needed in zip(cosines, least, strict=True)):
                wrong.append(f"{model} {amp}: {cosines}")
    if wrong:
        raise AssertionError(f"logits and gradients differ from the CPU's: {'; '.join(wrong)}")
    return {"cosines of logits and gradients": found}


def no_wait(device: torch.device) -> dict[str, Any]:
    """Steps in each precision under CUDA's own check that nothing waits."""
    for amp in CLOSE:
        _, step = step_of(nano("rmsin"), device, amp)
        step()
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        step()
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return {"steps": len(CLOSE)}


def wrapped(device: torch.device) -> dict[str, Any]:
    """DDP, shared BatchNorm and NCCL in one process give the gradients of the bare network."""
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    gradients = []
    for shared in (False, True):
        network = nano("rmsin")
        updater, step = step_of(network, device, "off")
        updater.update = lambda: None   # type: ignore[method-assign]
        if shared:
            ids = [device.index] if device.type == "cuda" else None
            updater.model = DistributedDataParallel(share_batch_norms(network), device_ids=ids,
                                                    gradient_as_bucket_view=True)
        step()
        gradients.append(torch.cat([p.grad.flatten().double() for p in network.parameters() if p.grad is not None]))
    dist.destroy_process_group()
    cosine = float(torch.cosine_similarity(*gradients, dim=0))
    if not cosine > 0.999:
        raise AssertionError(f"the cosine of the gradients with and without DDP is {cosine}")
    return {"cosine of gradients": round(cosine, 6)}


def toy_flags(folder: Path, *flags: str) -> list[str]:
    """Flags of a nano network on the toy set."""
    toy = str(folder / "toy")
    return ["--refer_data_root", toy, "--ck_bert", f"{toy}/bert", "--bert_tokenizer", f"{toy}/bert", "--swin_type",
            "nano", "--workers", "0", *flags]


def train_toy(folder: Path, device: torch.device, stop: bool, *flags: str) -> dict[str, Any]:
    """train.py on the toy set; with `stop` a signal ends it after the first update."""
    os.chdir(folder)
    if stop:
        distributed.signals._signals.append(signal.SIGTERM)
    try:
        train.run(get_parser(*TRAINING).parse_args(toy_flags(
            folder, "--device", device.type, "--model_id", "toy", "--output-dir", str(folder), *flags)))
    except train.Interrupted:
        return {"stopped": True}
    last = json.loads((folder / "models/toy/log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {"images_per_second": last["images_per_second"], "mIoU": last["val"]["mIoU"]}


def same_integers(folder: Path, device: torch.device) -> dict[str, Any]:
    """test.py in float32 on the GPU and on the CPU: the share of pixel counts that are the same."""
    counts = []
    for where in (device.type, "cpu"):
        results = folder / f"{where}.json"
        test.run(get_parser(*EVALUATION).parse_args(toy_flags(
            folder, "--resume", str(folder / "model_last_toy.pth"), "--device", where, "--split", "val", "--no-tf32",
            "--batch-size", "4", "--results", str(results))))
        counts.append(json.loads(results.read_text(encoding="utf-8"))["samples"])
    names = ("intersection", "union")
    pairs = [(a[name], b[name]) for a, b in zip(*counts, strict=True) for name in names]
    same = sum(a == b for a, b in pairs) / len(pairs)
    if not same > 0.9:   # a pixel whose two logits agree to the last digits may fall on either side
        raise AssertionError(f"only {same:.0%} of the pixel counts are those of the CPU: {pairs[:20]}")
    return {"same pixel counts": f"{same:.1%}"}


def measurement(task: str, flags: list[str], limit_s: float) -> dict[str, Any]:
    """A task of tools/benchmark.py in processes that are forked from this one."""
    def out_of_time(*_: Any) -> None:
        raise TimeoutError(f"not done within {limit_s:.0f} s")
    before = signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(max(1, int(limit_s)))
    try:
        return benchmark.measure(benchmark.parser().parse_args([task, *flags]), task, multiprocessing.get_context(FORK))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        for child in multiprocessing.active_children():
            child.join(0.5)
            child.kill()


def bound(flags: list[str]) -> dict[str, Any]:
    """The counted cost of an eager training step."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""   # in this process alone
    with contextlib.redirect_stdout(io.StringIO()):
        return counting.count(benchmark.parser().parse_args(["count", *flags]))["all"]


def child(connection: Any, function: Callable[..., Any], arguments: tuple) -> None:
    """Runs in a forked process."""
    torch.set_num_threads(torch.get_num_threads())   # makes PyTorch's pool anew, which two threads at once cannot
    try:
        connection.send(("", function(*arguments)))
    except BaseException as error:
        connection.send((f"{type(error).__name__}: {error}\n{traceback.format_exc()}", None))


class Session:
    """Runs steps within the time, and writes what each gave."""

    def __init__(self, out: Path, limit_s: float):
        self.out, self.begun, self.limit_s = out, time.perf_counter(), limit_s
        self.rows: list[dict[str, Any]] = []

    def left(self) -> float:
        return self.limit_s - (time.perf_counter() - self.begun)

    def fork(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
        context: Any = multiprocessing.get_context(FORK)
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(theirs, function, arguments))
        process.start()
        theirs.close()
        return process, ours

    def wait_for(self, process: Any, connection: Any, limit_s: float) -> Any:
        """The answer of a forked process. Raises `RuntimeError` with its traceback, or `TimeoutError`."""
        try:
            if not connection.poll(min(limit_s, max(1.0, self.left()))):
                raise TimeoutError("no time left")
            error, result = connection.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"the process ended with status {process.exitcode}") from None
        finally:
            process.kill()
            process.join(5)   # its lock on the run's folder is released, unless a GPU holds it
        if error:
            raise RuntimeError(error)
        return result

    def step(self, name: str, run: Callable[[], Any], least_s: float = 5) -> Any:
        """Runs a step unless the time is up, and writes its result at once; None if it failed."""
        begun, row = time.perf_counter(), {"step": name}
        if self.left() < least_s:
            row["failed"] = "no time left"
        else:
            try:
                row["result"] = run()
            except Exception as error:
                row["failed"] = str(error) or type(error).__name__
        row["seconds"] = round(time.perf_counter() - begun, 1)
        self.rows.append(row)
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=str) + "\n")
        log(f"{name}: {row.get('failed') or json.dumps(row['result'], default=str)[:400]} ({row['seconds']} s)")
        (self.out / "summary.md").write_text(self.summary(), encoding="utf-8")
        return row.get("result")

    def smoke(self, name: str, function: Callable[..., Any], *arguments: Any, limit_s: float = 60) -> Any:
        return self.step(f"smoke: {name}", lambda: self.wait_for(*self.fork(function, *arguments), limit_s))

    def summary(self) -> str:
        """A Markdown table of the results; the bound is counted, everything else measured."""
        lines = [f"Session on {self.machine}.", "", "| step | result | bound | peak memory | seconds |",
                 "|---|---|---|---|---|"]
        for row in self.rows:
            result, least, memory = row.get("result"), "", ""
            if "failed" in row:
                said = "FAILED: " + row["failed"].splitlines()[0][:200].replace("|", "/")
            elif isinstance(result, dict) and "this code" in result:
                own = result["this code"]
                said = (f"{1000 * statistics.median(own['seconds']):.1f} ms, {own['images_per_second']:.1f} images/s"
                        + (f", {result['ratio']['median']:.2f} times plain" if "ratio" in result else ""))
                memory = f"{own['peak_memory_mib']} MiB"
                if "bound" in row.get("result", {}):
                    least = f"{1000 * result['bound']['seconds']:.1f} ms"
            else:
                said = json.dumps(result, default=str)[:200].replace("|", "/")
            lines.append(f"| {row['step']} | {said} | {least} | {memory} | {row['seconds']} |")
        return "\n".join(lines) + "\n"

    machine = ""


# Name, task and flags of the measurements, most wanted first; {A} and {B} are the two sizes of batches.
MEASUREMENTS = [
    ("training {A} bf16 compiled", "train", "--batch-size {A} --amp bf16 --compile"),
    ("training {A} bf16", "train", "--batch-size {A} --amp bf16 --profile {OUT}/profile"),
    ("training 2 bf16", "train", "--batch-size 2 --amp bf16"),
    ("training {A} TF32 against plain", "train", "--batch-size {A} --baseline"),
    ("evaluation {B} bf16", "evaluation", "--batch-size {B} --amp bf16 --fuse"),
    ("evaluation 1 bf16", "evaluation", "--batch-size 1 --amp bf16 --fuse"),
    ("training {B} bf16", "train", "--batch-size {B} --amp bf16"),
    ("training {A} bf16 channels last", "train", "--batch-size {A} --amp bf16 --channels_last"),
    ("training {A} bf16 checkpointed", "train", "--batch-size {A} --amp bf16 --checkpoint_activations"),
    ("training {A} float32", "train", "--batch-size {A} --no-tf32"),
    ("training {A} LAVT bf16", "train", "--batch-size {A} --amp bf16 --model lavt_one"),
    ("loading", "loading", "--batch-size 2 --workers {W} --data {LARGE} --ck_bert {LARGE}/bert "
                           "--bert_tokenizer {LARGE}/bert"),
    ("training {B} bf16 compiled", "train", "--batch-size {B} --amp bf16 --compile"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("work", type=Path, help="folder for data and checkpoints")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--limit", type=float, default=450, help="seconds for everything after the imports")
    args = parser.parse_args()
    dry, out, work = args.dry_run, args.out.resolve(), args.work.resolve()
    device = torch.device("cpu") if dry else torch.device("cuda", 0)
    session = Session(out, args.limit)
    fields = {"A": 2 if dry else 8, "B": 4 if dry else 16, "W": 1 if dry else 8, "OUT": out, "LARGE": work / "large"}
    base = (["--swin_type", "nano", "--img_size", "64", "--rounds", "1", "--warm_up", "0", "--device", "cpu",
             "--threads", "1", "--ck_bert", str(work / "toy/bert")] if dry else
            ["--swin_type", "base", "--window12", "--img_size", "480", "--rounds", "7", "--warm_up", "3",
             "--device", "cuda"])
    session.machine = session.wait_for(*session.fork(lambda: benchmark.machine(device)), 60)
    log(f"{session.machine}; PyTorch {torch.__version__}")

    make_toy_rrsisd(work / "toy", images=20 if dry else 2400, size=96, seed=0)
    make_toy_rrsisd(work / "large", images=10 if dry else 40, size=96 if dry else 800, seed=0)
    # Bounds are counted on the CPU while the smoke test runs.
    bounds = {(size, amp): session.fork(bound, [*base, "--batch-size", str(size), *(["--amp", amp] if amp else [])])
              for size in (2, fields["A"]) for amp in ("bf16", "")} if not dry else {
                  (2, "bf16"): session.fork(bound, [*base, "--batch-size", "2", "--amp", "bf16"])}
    session.smoke("every model and precision against the CPU", every_model, device)
    session.smoke("no wait within a step", no_wait, device)
    session.smoke("DDP, shared BatchNorm, " + ("Gloo" if dry else "NCCL"), wrapped, device)
    run = ("--img_size", "64", "--batch-size", "4" if dry else "64", "--epochs", "1", "--amp", "bf16")
    session.smoke("a run that a signal stops", train_toy, work, device, True, *run)
    session.smoke("the run resumed", train_toy, work, device, False, *run, "--resume", "auto")
    session.smoke("evaluation equals the CPU's", same_integers, work, device)
    counted = {key: session.step(f"bound: batch {key[0]} {key[1] or 'TF32'} (counted)",
                                 lambda forked=forked: session.wait_for(*forked, 90)) for key, forked in bounds.items()}

    for name, task, flags in MEASUREMENTS:
        words = flags.format(**fields).split()

        def measured(task: str = task, words: list[str] = words) -> dict[str, Any]:
            result = measurement(task, [*words, *base], session.left())
            size, amp = int(words[words.index("--batch-size") + 1]), "bf16" if "--amp" in words else ""
            plain_step = not {"--model", "--no-tf32", "--checkpoint_activations", "--compile"} & set(words)
            if task == "train" and plain_step and counted.get((size, amp)):
                result["bound"] = counted[size, amp]
            return result
        session.step(name.format(**fields), measured, least_s=1 if dry else 20)
    session.step("toy training, compiled", lambda: session.wait_for(*session.fork(
        train_toy, work, device, False, "--img_size", "96", "--batch-size", "16", "--epochs", "1" if dry else "3",
        "--amp", "bf16", "--compile"), 120))
    for path in out.glob("profile*.json"):   # chrome://tracing reads the compressed file, too
        packed = path.with_suffix(".json.gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        if packed.stat().st_size > LARGEST_FILE:
            packed.unlink()
    failed = [row["step"] for row in session.rows if "failed" in row]
    log(f"done after {time.perf_counter() - session.begun:.0f} s; {len(failed)} of {len(session.rows)} steps failed"
        + "".join(f"\nnot done: {name}" for name in failed))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

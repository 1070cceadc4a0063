"""Loaders for training and evaluation, which deal the samples out to the processes.

A loader has a random generator of its own, so that starting one does not change the global one, which dropout uses.
"""
import os
import signal
import threading
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Sampler, default_collate

from data.dataset import EvalSet, TrainSet
from data.empty_masks import refuse_empty
from distributed.signals import STOP_SIGNALS
from refer.table import RefTable
from utils import MachineError, UserError, log, rank, world_size

T = TypeVar("T")


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """One process's share of each epoch's batches, as lists of (pass, index); passes count from the run's beginning.

    An epoch goes through all samples `passes` times; seed and epoch determine the order of each pass. All passes
    together are cut into global batches (an incomplete last one is dropped), and each process takes its share of every
    global batch. The number of batches is a multiple of `accumulate`.
    """

    def __init__(self, samples: int, batch_size: int, rank: int, world_size: int, seed: int, accumulate: int = 1,
                 passes: int = 1):
        self.passes = passes
        self.samples, self.batch_size, self.rank, self.seed = samples, batch_size, rank, seed
        self.global_batch, self.accumulate = batch_size * world_size, accumulate
        self.epoch = 0
        self.first = 0  # the number of this epoch's batches that are done already

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.samples * self.passes // (self.global_batch * self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = [(self.epoch * self.passes + number, index) for number in range(self.passes)
                 for index in torch.randperm(self.samples, generator=generator).tolist()]
        for batch in range(self.first, len(self)):
            start = batch * self.global_batch + self.rank * self.batch_size
            yield order[start:start + self.batch_size]


class ShardedBatches(Sampler[list[int]]):
    """Every sample once, in order: whole batches go to the processes in turn, and none is repeated or dropped."""

    def __init__(self, samples: int, batch_size: int, rank: int, world_size: int):
        batches = [list(range(start, min(start + batch_size, samples))) for start in range(0, samples, batch_size)]
        self.batches = batches[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of the samples that have an image, if any, and `problems`, which describes the bad images."""
    problems = [sample.pop("problem") for sample in samples if "problem" in sample]
    whole = [sample for sample in samples if sample]
    return {**(default_collate(whole) if whole else {}), "problems": problems}


def log_problems(batches: Iterable[dict[str, Any]], problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the batches that have a sample; adds the problems of bad images to the log and to `problems`.

    Raises `MachineError` when a loader's process is gone, or has no shared memory for its batch.
    """
    for batch in _watched(batches):
        for problem in batch["problems"]:
            log(f"skipped: {problem}", any_process=True)
        problems += batch["problems"]
        if "image" in batch:
            yield batch


class ReadableBatches(DataLoader):
    """A loader that yields the batches with a sample, and logs bad images. `problems` are those of the last pass."""

    problems: list[str]

    def __iter__(self) -> Iterator[dict[str, Any]]:   # type: ignore[override]
        self.problems = []
        return log_problems(super().__iter__(), self.problems)


def _watched(batches: Iterable[T]) -> Iterator[T]:
    """Yields the batches; the errors that PyTorch raises when a worker process is killed become one line."""
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
            # PyTorch's handler would raise at any point, even within an update; the loader finds a dead worker itself.
            if hasattr(signal, "SIGCHLD"):   # not on Windows, where PyTorch sets no handler
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # The last two occur if a worker is killed between announcing a batch and passing on its memory.
            if not isinstance(error, RuntimeError) or any(words in str(error) for words in (
                    "DataLoader worker", "shared memory", "unable to write to file", "unable to allocate shared",
                    "No space left", "in memory thread")):
                said = " ".join(str(error).split())[:300] or type(error).__name__
                raise MachineError(f"a loader process is gone or cannot pass its batch on ({said}): see whether memory "
                                   "or /dev/shm is full; fewer --workers need less") from error
            raise
        yield batch


def ignore_signals_of_launchers(worker: int) -> None:
    """Makes a worker process ignore the stop signals of launchers and terminals.

    Its parent still needs it to finish the step. Only a SIGTERM from the parent itself ends the worker.
    """
    def watch() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):   # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=watch, daemon=True).start()


def _loader(dataset: TrainSet | EvalSet, sampler: Sampler, workers: int, pin_memory: bool) -> ReadableBatches:
    return ReadableBatches(dataset, batch_sampler=sampler, num_workers=workers, pin_memory=pin_memory,
                           persistent_workers=workers > 0, generator=torch.Generator(), collate_fn=collate,
                           worker_init_fn=ignore_signals_of_launchers)


def train_loader(dataset: TrainSet, batch_size: int, workers: int, pin_memory: bool, rank: int, world_size: int,
                 accumulate: int = 1, passes: int = 1) -> ReadableBatches:
    """Batches for one process; set `loader.batch_sampler.epoch` (and `.first`) before going through it."""
    sampler = EpochBatches(len(dataset), batch_size, rank, world_size, dataset.seed, accumulate, passes)
    return _loader(dataset, sampler, workers, pin_memory)


def eval_loader(dataset: EvalSet, batch_size: int, workers: int, pin_memory: bool, rank: int,
                world_size: int) -> ReadableBatches:
    """Batches of one process's share of an evaluation."""
    sampler = ShardedBatches(len(dataset), batch_size, rank, world_size)
    return _loader(dataset, sampler, workers, pin_memory)


def make_loaders(args: Namespace, refs: RefTable, tokenizer: Tokenizer, size_px: int,
                 max_tokens: int, phrases: bool = False) -> tuple[ReadableBatches, ReadableBatches]:
    """This process's loaders of the train split and of the val split; the latter is that of the first data set.

    `args` are train.py's flags. With `phrases`, samples have phrase masks. Raises `UserError` if an epoch would have no
    update, and if many training masks are empty (see `refuse_empty`).
    """
    shared = {"skip_bad_images": args.skip_bad_images, "packed": args.packed, "max_tokens": max_tokens,
              "phrases": phrases}
    train_set = TrainSet(refs, "train", tokenizer, size_px, args.seed, args.random_box_share,
                         exclude=args.exclude, allow_leak=args.allow_leak, most=args.overfit, **shared)
    refuse_empty(train_set, args.allow_empty)
    if args.overfit:
        log(f"--overfit: trains on {len(train_set.refs)} refs of the train split and is validated on the same")
    val_set = EvalSet(refs, "train" if args.overfit else "val", tokenizer, size_px, source=0, most=args.overfit,
                      one_sentence_seed=args.seed if args.published_validation else None, **shared)
    common = (args.batch_size, args.workers, args.pin_mem, rank(), world_size())
    train_batches = train_loader(train_set, *common, args.accumulate, args.passes)
    if not len(train_batches):
        raise UserError(f"the train split of {args.dataset} has {len(train_set)} samples, fewer than an update of "
                        f"{args.accumulate} batch(es) of {args.batch_size} for each of {world_size()} "
                        "process(es): lower --batch-size or --accumulate")
    return train_batches, eval_loader(val_set, *common)

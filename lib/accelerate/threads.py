"""Adaptive number of threads on a CPU, in training and inference.

The threads of an operation wait for the slowest of them. Beside another busy program one of them often has no core, and
the others spin until it gets one: two threads on two cores then keep a third of their speed, while one thread keeps
60 %. The load of a machine changes, so the number of threads is adapted during the run. A step is an update in
training, a batch or a tile in inference.
"""
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils import log

WINDOW_S = 2.0     # duration of a measurement of speed
PATIENCE_S = 30.0  # between two trials


class ThreadCount:
    """Sets torch's number of threads to the faster choice: all threads, or as many as there are free cores.

    A trial of another number lasts one window, and the number is kept if the steps are faster. Fewer threads are tried
    when this process gets less processor time than its threads could use, and all threads again after `PATIENCE_S`.
    """

    def __init__(self, threads: int):
        self.full = self.now = threads
        self.before: tuple[int, float] | None = None   # during a trial: threads and steps a second before it
        self.next_trial_s = 0.0                        # in training time
        self.trained_s = self.seconds = self.cpu_seconds = 0.0
        self.steps = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Times the step inside, and may change the number of threads afterwards."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.add(time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, seconds: float, cpu_seconds: float) -> None:
        """Counts a step that took `seconds`, in which the process computed for `cpu_seconds` on all cores together."""
        self.steps += 1
        self.trained_s += seconds
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds
        if self.seconds >= WINDOW_S:
            self.end_window(self.steps / self.seconds, self.cpu_seconds / self.seconds)
            self.steps, self.seconds, self.cpu_seconds = 0, 0.0, 0.0

    def end_window(self, speed: float, cores: float) -> None:
        """Ends a trial, or begins one if it is promising; `cores` is the number of cores that this process had."""
        if self.before:
            threads, earlier_speed = self.before
            self.before = None
            self.next_trial_s = self.trained_s + PATIENCE_S
            if speed <= earlier_speed:
                self.use(threads)
            else:
                self.tell()
        elif self.trained_s >= self.next_trial_s:
            wanted = self.full if self.now < self.full else min(self.full, max(1, round(cores)))
            if wanted != self.now:
                self.before = self.now, speed
                self.use(wanted)

    def use(self, threads: int) -> None:
        """Sets torch's number of threads."""
        self.now = threads
        torch.set_num_threads(threads)

    def tell(self) -> None:
        """Logs the number that a trial has settled on."""
        log(f"computing with {self.now} of {self.full} threads: faster while other programs use this machine"
            if self.now < self.full else f"computing with all {self.full} threads again")


class LentThreads(ThreadCount):
    """`ThreadCount` for a library: the number holds inside steps only, and nothing is logged.

    Threads of the caller may take steps at the same time, of which one is measured.
    """

    def __init__(self, threads: int):
        super().__init__(threads)
        self.measuring = threading.Lock()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Computes the step inside with the number of threads that was found fastest, which may change afterwards."""
        before = torch.get_num_threads()
        alone = self.measuring.acquire(blocking=False)
        try:
            if self.now < self.full:
                torch.set_num_threads(self.now)
            if alone:
                with super().step():
                    yield
            else:
                yield
        finally:
            if alone:
                self.measuring.release()
            torch.set_num_threads(before)

    def use(self, threads: int) -> None:
        self.now = threads

    def tell(self) -> None:
        pass


class FixedThreads:
    """Keeps the number of threads fixed."""

    @contextmanager
    def step(self) -> Iterator[None]:
        yield


def choose_threads(device: torch.device, deterministic: bool = False,
                   kind: type[ThreadCount] = ThreadCount) -> ThreadCount | FixedThreads:
    """The controller of the number of threads: one of the given `kind` on a CPU, else `FixedThreads`.

    The number is also fixed if `OMP_NUM_THREADS` is set, or if the run is deterministic, because results depend on it
    in their last digits.
    """
    adapts = device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and not deterministic
    return kind(torch.get_num_threads()) if adapts else FixedThreads()

"""Adaptive number of threads for training on a CPU.

The threads of an operation wait for the slowest of them. Beside another busy program one of them often has no core, and
the others spin until it gets one: two threads on two cores then keep a third of their speed, while one thread keeps
60 %. The load of a machine changes, so the number of threads is adapted during the run.
"""
import os
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
        """Times the training step inside, and may change the number of threads afterwards."""
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
                log(f"training with {self.now} of {self.full} threads: faster while other programs use this machine"
                    if self.now < self.full else f"training with all {self.full} threads again")
        elif self.trained_s >= self.next_trial_s:
            wanted = self.full if self.now < self.full else min(self.full, max(1, round(cores)))
            if wanted != self.now:
                self.before = self.now, speed
                self.use(wanted)

    def use(self, threads: int) -> None:
        """Sets torch's number of threads."""
        self.now = threads
        torch.set_num_threads(threads)


class FixedThreads:
    """Keeps the number of threads fixed."""

    @contextmanager
    def step(self) -> Iterator[None]:
        yield


def choose_threads(device: torch.device, deterministic: bool) -> ThreadCount | FixedThreads:
    """The controller of the number of threads: `ThreadCount` on a CPU, else `FixedThreads`.

    The number is also fixed if `OMP_NUM_THREADS` is set, or if the run is deterministic, because results depend on it.
    """
    adapts = device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and not deterministic
    return ThreadCount(torch.get_num_threads()) if adapts else FixedThreads()

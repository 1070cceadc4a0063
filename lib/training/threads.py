"""How many threads train on a CPU, chosen anew while the run goes on.

The threads of an operation wait for the slowest of them. Beside another busy program one of them often has no core,
and the others spin until it gets one: two threads on two cores then kept a third of their speed, where one thread,
which needs no other, has 60 % of it. How busy the machine is changes, so the number of threads does too.
"""
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils import log

WINDOW_S = 2.0     # over which speed is measured
PATIENCE_S = 30.0  # between two trials


class ThreadCount:
    """Keeps torch's number of threads at what trains fastest: all of them, or as many as there are free cores.

    A trial of another number lasts one window, and the number stays if the steps were faster. Fewer threads are tried
    when this process got less processor time than its threads could use, all of them again after `PATIENCE_S`.
    """

    def __init__(self, threads: int):
        self.full = self.now = threads
        self.before: tuple[int, float] | None = None   # during a trial: threads and steps a second until then
        self.next_trial_s = 0.0                        # of training time
        self.trained_s = self.seconds = self.cpu_seconds = 0.0
        self.steps = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Times the training step inside; afterwards the number of threads may be another one."""
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
        """Ends a trial, or begins one where it promises something; `cores` is how many this process had."""
        if self.before:
            threads, earlier_speed = self.before
            self.before = None
            self.next_trial_s = self.trained_s + PATIENCE_S
            if speed <= earlier_speed:
                self.use(threads)
            else:
                log(f"training with {self.now} of {self.full} threads: faster beside what else runs on this machine"
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
    """Leaves the number of threads alone."""

    @contextmanager
    def step(self) -> Iterator[None]:
        yield


def choose_threads(device: torch.device, deterministic: bool) -> ThreadCount | FixedThreads:
    """What watches over the number of threads; nothing does on GPUs, if `OMP_NUM_THREADS` is set, or if the same
    command must give the same bits, which depend on the number of threads."""
    adapts = device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and not deterministic
    return ThreadCount(torch.get_num_threads()) if adapts else FixedThreads()

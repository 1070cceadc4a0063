"""Signals that ask a run to stop, and the processes' agreement on stopping together."""
import os
import signal
import threading
from typing import Any

from distributed.communication import any_process
from distributed.leaving import leave
from utils import rank, world_size

EXIT_REQUEUE = 75  # exit status of a run that a signal stopped and that can be resumed: "try again" in sysexits
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
                     if hasattr(signal, name))   # Windows has the first two
PATIENCE_S = 25  # time for all processes to agree on stopping; launchers kill after 30 s
_signals: list[int] = []
_agreed = threading.Event()


def watch_signals() -> None:
    """Makes SIGTERM, SIGINT, SIGUSR1 and SIGHUP only request a stop; a second signal has its default effect.

    Ignored signals, such as SIGHUP under nohup, stay ignored.

    With several processes, a process ends itself if the others do not agree on stopping within `PATIENCE_S` after
    the signal: one of them may be gone, and a collective would wait for it.
    """
    def note(number: int, frame: Any) -> None:
        _signals.append(number)
        for watched in heeded:
            signal.signal(watched, signal.SIG_DFL)

    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for watched in heeded:
        signal.signal(watched, note)
    if world_size() > 1:
        # The main thread cannot handle a signal while it waits inside a collective; this pipe receives it at once.
        read_end, write_end = os.pipe()
        if hasattr(os, "set_blocking"):   # Windows has it since Python 3.12, and needs it not
            os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threading.Thread(target=_leave_unless_agreed, args=(read_end,), daemon=True).start()


def _leave_unless_agreed(signals: int) -> None:
    while os.read(signals, 1)[0] not in STOP_SIGNALS:
        pass
    if not _agreed.wait(PATIENCE_S):
        leave(1, f"process {rank()} could not agree with the others on stopping within {PATIENCE_S} s of the signal; "
                  "the last checkpoint is intact", is_cause=False)


def stop_requested() -> bool:
    """Whether this process has received a signal to stop."""
    return bool(_signals)


def agree_to_stop() -> bool:
    """Whether any process has received a signal to stop; all processes get the same answer."""
    stop = any_process(stop_requested())
    if stop:
        _agreed.set()
    return stop

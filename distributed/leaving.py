"""Ending a process, at once where other processes may wait for it."""
import json
import multiprocessing
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist


def leave(status: int, message: str, is_cause: bool = True) -> NoReturn:
    """Prints the message and ends this process, at once and without cleaning up if others may wait for it."""
    with suppress(OSError):   # the terminal may be closed
        if message:
            print(message, file=sys.stderr, flush=True)
    if not dist.is_initialized():
        sys.exit(status)
    if is_cause and "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun shows this file's message at the end
        report = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(report), encoding="utf-8")
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(status)


def leave_at_once() -> NoReturn:
    """Ends a finished script at once; Python would need another second to free the imported packages."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)

"""Garbage collection at chosen times: Python's own would pause each process at a different training step."""
import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing_much() -> Iterator[None]:
    """A context for imports of large packages, whose objects the garbage collector need not scan, now or later."""
    gc.disable()
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None   # no work has begun, so a traceback is useless
    finally:
        gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)   # some packages complain if their objects are not freed at exit


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """A context in which only `gc.collect()` collects, and skips the existing objects: data and network."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()

"""The processes of a run: their connection, communication, common stop, and their end after a failure.

It imports nothing else of the project but `utils`.
"""
from distributed.communication import any_process, from_first_process, gather_objects, gather_rows
from distributed.connection import end_processes, init_processes, was_restarted
from distributed.devices import local_rank
from distributed.failures import memory_advice, out_of_memory, user_errors
from distributed.leaving import leave_at_once
from distributed.signals import EXIT_REQUEUE, agree_to_stop, stop_requested, watch_signals
from distributed.wrapping import share_buffers, wrap

__all__ = [
    "EXIT_REQUEUE", "agree_to_stop", "any_process", "end_processes", "from_first_process", "gather_objects",
    "gather_rows", "init_processes", "leave_at_once", "local_rank", "memory_advice", "out_of_memory", "share_buffers",
    "stop_requested", "user_errors", "was_restarted", "watch_signals", "wrap",
]

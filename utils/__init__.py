"""Errors, log lines, files and the machine, for every script. It imports neither the rest of the project nor torch."""
from utils.errors import MachineError, UserError
from utils.files import make_folder, read_json, set_aside, sha256_of, write_json, write_text
from utils.logs import duration, log, printable, progress, standard_output
from utils.machine import describe_cpu, describe_run, peak_memory_mib, processor
from utils.memory import importing_much, rare_garbage_collection
from utils.ranks import rank, world_size

__all__ = [
    "MachineError", "UserError", "describe_cpu", "describe_run", "duration", "importing_much", "log", "make_folder",
    "peak_memory_mib", "printable", "processor", "progress", "rank", "rare_garbage_collection", "read_json",
    "set_aside", "sha256_of", "standard_output", "world_size", "write_json", "write_text",
]

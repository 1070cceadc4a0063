"""What processes tell each other: values, rows, and whether a condition holds on any of them."""
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils import rank, world_size

T = TypeVar("T")


def from_first_process(make: Callable[[], T]) -> T:
    """The result of `make()`, called by the first process only and sent to the others (plain picklable data)."""
    if world_size() == 1:
        return make()
    box = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (n, k) of all processes, in process order; n may differ between them."""
    if world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    padded = rows.new_zeros(max(int(count) for count in counts), rows.shape[1])
    padded[:len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:int(count)] for part, count in zip(parts, counts, strict=True)])


def gather_objects(value: T) -> list[T]:
    """Every process's value (plain picklable data), in process order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


_control_group: Any = None


def any_process(condition: bool) -> bool:
    """Whether the condition holds on any process, found out through the CPUs, so that no process waits for its GPU."""
    global _control_group
    if world_size() == 1:
        return condition
    if _control_group is None:
        _control_group = dist.new_group(backend="gloo")
    flag = torch.tensor([int(condition)])
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=_control_group)
    return bool(flag)

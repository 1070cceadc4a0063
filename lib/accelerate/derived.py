"""What is made from a parameter and stays the same until that changes."""
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class Kept:
    """Keeps one tensor made from a parameter. With gradients it is made anew each time: it belongs to the graph."""

    def __init__(self):
        self.parameter: Tensor | None = None
        self.key: tuple = ()
        self.value: Tensor | None = None

    def get(self, parameter: Tensor, settings: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """`make()`, or what it gave last time if neither `parameter` nor `settings` have changed since."""
        if torch.is_grad_enabled() or parameter.is_inference():   # inference tensors count no changes
            self.parameter, self.value = None, None
            return make()
        key = (settings, parameter._version, parameter.data_ptr(), parameter.dtype)
        if self.parameter is not parameter or self.key != key:
            self.parameter, self.key, self.value = parameter, key, make()
        return self.value

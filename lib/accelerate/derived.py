"""A cache of a tensor derived from a parameter."""
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class DerivedTensor:
    """Caches one tensor derived from a parameter until the parameter changes.

    With gradients enabled the tensor is derived again at each call, because it then belongs to the autograd graph.
    """

    def __init__(self) -> None:
        self.parameter: Tensor | None = None
        self.key: tuple = ()
        self.value: Tensor | None = None

    def get(self, parameter: Tensor, settings: Hashable, derive: Callable[[], Tensor]) -> Tensor:
        """Returns `derive()`, or its last result if neither `parameter` nor `settings` has changed since."""
        if torch.is_grad_enabled() or parameter.is_inference():   # inference tensors have no version counter
            self.parameter, self.value = None, None
            return derive()
        key = (settings, parameter._version, parameter.data_ptr(), parameter.dtype)
        if self.value is None or self.parameter is not parameter or self.key != key:
            self.parameter, self.key, self.value = parameter, key, derive()
        return self.value

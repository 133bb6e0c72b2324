"""Which dtype a network computes in, and how autocast is kept from choosing another."""

from contextlib import AbstractContextManager, nullcontext

import torch


class Precision:
    """The dtype of the products. Norm statistics, softmax and loss are float32 whatever it is.

    Args:
        chosen: the dtype for float32 parameters where autocast is off.
    """

    def __init__(self, chosen: torch.dtype):
        self.chosen = chosen

    def dtype(self, parameters: torch.dtype, device_type: str) -> torch.dtype:
        """The parameters' own dtype where that is not float32; else autocast's where that is on,
        else the chosen one."""
        if parameters != torch.float32:
            return parameters
        if autocast_on(device_type):
            return torch.get_autocast_dtype(device_type)
        return self.chosen

    def region(self, device_type: str) -> AbstractContextManager:
        """Keeps autocast, which only chose the dtype, away from the ops."""
        if autocast_on(device_type):
            return torch.autocast(device_type, enabled=False)
        return nullcontext()


def autocast_on(device_type: str) -> bool:
    """Whether autocast chooses dtypes for this kind of device."""
    # "meta" has no autocast; torch.amp.is_autocast_available cannot be traced before PyTorch 2.14
    return device_type != "meta" and torch.is_autocast_enabled(device_type)

"""When an op's body is called as it is, without torch's dispatcher.

A `custom_op` costs several times a launch on the host: it is there for who traces, watches or
transforms a call (torch.compile, fake tensors, FLOP counters, the profiler, functorch) and for
autograd. A branch with a backward of its own needs none of that in a plain eager step, and calls the
body. The numbers are the same: it is the same body.
"""

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def direct(tensor: Tensor) -> bool:
    """Whether a call on this tensor and its like may leave the dispatcher out: on a device, of no
    subclass, without gradients, and nobody watches."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(tensor) in _PLAIN
        and (tensor.is_cuda or tensor.is_cpu)
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and not torch.autograd._profiler_enabled()
    )

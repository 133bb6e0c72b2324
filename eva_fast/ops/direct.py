"""When an op's body is called as it is, without torch's dispatcher.

A `custom_op` costs several times a launch on the host: it is there for who traces, watches or
transforms a call (torch.compile, fake tensors, FLOP counters, the profiler, functorch) and for
autograd. A plain eager step needs none of that: branches with a backward of their own call the body,
and an op that is differentiated by itself brings its body's gradient along (`differentiable`). The
numbers are the same: it is the same body.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def direct(tensor: Tensor) -> bool:
    """Whether a call on this tensor and its like may leave the dispatcher out: without gradients, and
    nobody watches."""
    return not torch.is_grad_enabled() and unwatched(tensor)


def unwatched(tensor: Tensor) -> bool:
    """Whether nobody watches, for whom a call on this tensor would have to be an operator: it is on a
    device, of no subclass, and neither compiled, traced, transformed nor profiled."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in _PLAIN
        and (tensor.is_cuda or tensor.is_cpu)
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and not torch.autograd._profiler_enabled()
    )


def differentiable(
    operator: Callable[..., Any],
    body: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """What calls `operator`, a `custom_op` with this body and this autograd, or the body as it is, with
    the same gradient. The first argument is a tensor."""

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            output = body(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *gradients):
            return backward(ctx, *gradients)

    def call(*inputs: Any) -> Any:
        if not unwatched(inputs[0]):
            return operator(*inputs)
        return Direct.apply(*inputs) if torch.is_grad_enabled() else body(*inputs)

    return call

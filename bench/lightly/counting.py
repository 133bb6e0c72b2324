"""The arithmetic of a step in either library: matrix products, convolutions and attention, two FLOPs a
multiply-add, by PyTorch's own table of formulas, in which our ops are too."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class Counting(TorchDispatchMode):
    """{operator: FLOPs} of what runs under it, in `flops`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = str(func._overloadpacket)
        if name == "aten._scaled_dot_product_flash_attention_for_cpu":
            self.flops[name] += sdpa_flop_count(*(t.shape for t in args[:3]))
        elif name == "aten._scaled_dot_product_flash_attention_for_cpu_backward":
            self.flops[name] += sdpa_backward_flop_count(*(t.shape for t in args[:4]))
        elif func._overloadpacket in flop_registry:
            self.flops[name] += int(
                flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            )
        return out

"""Attention on meta tensors: `scaled_dot_product_attention` would take the unfused path there, which
no GPU takes."""

import torch
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class FlashAttention(TorchFunctionMode):
    """Leads `scaled_dot_product_attention` on meta tensors to the device's flash operator."""

    def __init__(self, device: str):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            q, k, v = args[:3]
            if q.is_meta:
                scale = kwargs.get("scale")
                if self.device == "cpu":
                    flash = aten._scaled_dot_product_flash_attention_for_cpu
                    return flash(q, k, v, 0.0, False, scale=scale)[0]
                return aten._scaled_dot_product_flash_attention(
                    q, k, v, 0.0, False, False, scale=scale
                )[0]
        return func(*args, **kwargs)

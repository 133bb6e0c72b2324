"""A module to be scripted: shared, empty, strided and 16-bit tensors."""

import torch


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 2)
        self.again = self.inner
        self.sizes = [1, 2]
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("numbers", torch.arange(12).view(3, 4).T)
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("brain", torch.randn(5).bfloat16())

    def forward(self, x):
        return self.again(self.inner(x)[:, :1].expand(-1, 3)) + self.sizes[0]

import torch

from eva_fast.ops.largest import leave, left

CAME: list = []


class Twice(torch.autograd.Function):
    """Gives gradients with a number left, and notes what came with its own."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        CAME.append(left(g))
        g = g * 2
        leave(g, torch.tensor([7.0]))
        return g


def test_it_goes_from_one_function_to_the_next():
    CAME.clear()
    x = torch.ones(3, requires_grad=True)
    Twice.apply(Twice.apply(x)).sum().backward()
    assert [None, torch.tensor([7.0])] == CAME


def test_not_with_a_sum_of_gradients():
    CAME.clear()
    x = torch.ones(3, requires_grad=True)
    y = Twice.apply(x)
    (Twice.apply(y) + Twice.apply(y)).sum().backward()
    assert CAME == [None, None, None] and x.grad.tolist() == [8.0, 8.0, 8.0]


def test_not_with_a_tensor_that_changed():
    x = torch.ones(3)
    with torch.no_grad():
        leave(x, torch.tensor([1.0]))
        assert left(x) == 1.0
        x.mul_(2)
        assert left(x) is None and left(x[:]) is None

"""Where the dispatcher may be left out: never where someone traces, watches or transforms a call."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from eva_fast import ops
from eva_fast.ops.bias_gelu import bias_gelu_forward
from eva_fast.ops.direct import direct
from tests.ops.helpers import leaf


class Names(TorchDispatchMode):
    """Names of the operators that the dispatcher sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def operators(call):
    with Names() as mode:
        call()
    return mode.seen


def test_a_plain_tensor_without_gradients():
    x = torch.randn(2, 3)
    with torch.no_grad():
        assert direct(x) and direct(torch.nn.Parameter(x))
    assert not direct(x)


@torch.no_grad()
def test_not_for_other_tensors():
    class Other(torch.Tensor):
        pass

    assert not direct(torch.randn(2).as_subclass(Other))
    assert not direct(torch.empty(2, device="meta"))
    with FakeTensorMode() as mode:
        fake = torch.empty(2)
    assert not direct(fake) and not direct(mode.from_tensor(torch.empty(2)))


@torch.no_grad()
def test_who_watches_sees_the_operator():
    h, bias = torch.randn(4, 8), torch.randn(8)
    assert any(
        "eva_fast.bias_gelu" in name for name in operators(lambda: bias_gelu_forward(h, bias))
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        bias_gelu_forward(h, bias)
    assert any(e.key == "eva_fast::bias_gelu" for e in profiler.key_averages())


@torch.no_grad()
def test_compiled_calls_keep_the_operator():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    h, bias = torch.randn(4, 8), torch.randn(8)
    compiled = torch.compile(bias_gelu_forward, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(h, bias), bias_gelu_forward(h, bias), rtol=0, atol=0)
    assert any("bias_gelu" in str(node.target) for node in graphs[0].graph.nodes)


@pytest.mark.parametrize("transform", ["vmap", "jvp"])
@torch.no_grad()
def test_not_inside_transforms(transform):
    seen = []

    def look(x):
        seen.append(direct(x))
        return x

    x = torch.randn(3)
    if transform == "vmap":
        torch.func.vmap(look)(x)
    else:
        torch.func.jvp(look, (x,), (x,))
    assert seen == [False]


def embedded():
    patches, row = leaf(2, 5, 24), leaf(24)
    mask = torch.tensor([[0, 3], [1, 2]], dtype=torch.int32)
    inputs = [patches, mask, row, leaf(24), leaf(6, 24), leaf(24)]
    return ops.embed_tokens, torch.ops.eva_fast.embed_tokens, inputs, lambda out: out


def compared():
    inputs = [leaf(7, 24), torch.randn(7, 24)]
    return ops.negative_cosine, torch.ops.eva_fast.negative_cosine, inputs, lambda out: out[0]


@pytest.mark.parametrize("case", [embedded, compared])
def test_a_differentiable_op_by_its_body_has_the_operators_bits(kernels, case):
    public, operator, inputs, loss_of = case()
    wanted = [t for t in inputs if t.requires_grad]
    found, expected = public(*inputs), loss_of(operator(*inputs))
    assert type(found.grad_fn).__name__ == "DirectBackward"
    upstream = torch.randn_like(expected)
    assert torch.equal(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, wanted, upstream),
        torch.autograd.grad(expected, wanted, upstream),
        strict=True,
    ):
        assert torch.equal(a, b)
    names = operators(lambda: public(*inputs))
    assert any(str(operator).removeprefix("eva_fast.") in name for name in names)
    with torch.no_grad():
        assert torch.equal(public(*inputs), expected)

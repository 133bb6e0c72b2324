"""A block by itself: against the plain one, with hooks, compiled, checkpointed, on token rows."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import eva_fast
from eva_fast.layers import Attention, Block, Mlp, Stream, plain
from tests.ops.helpers import leaf

SIZES = dict(
    img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, mlp_hidden=70, predict_dim=20
)


def pair(drop_path=0.0, **options):
    torch.manual_seed(0)
    block = Block(60, 3, 99, drop_path, **options)
    reference = plain.Block(60, 3, 99, drop_path, **options)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.2)
    reference.load_state_dict(block.state_dict())
    return block, reference


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def assert_close(found, expected, tolerance=1e-6):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert (found[name] - wanted).norm() <= tolerance * wanted.norm() + 1e-9, name


@pytest.mark.parametrize("rows", [None, [1, 4, 8], [0, 2, 7], [0]], ids=str)
@pytest.mark.parametrize("drop_path", [0.0, 0.5], ids=["all", "dropped"])
def test_a_block_is_the_plain_block(kernels, rows, drop_path):
    """Of all tokens, of patches, of patches and CLS (row 0), of CLS alone."""
    block, reference = pair(drop_path)
    tokens = None if rows is None else torch.tensor([rows] * 4, dtype=torch.int32)
    x = leaf(4, 9, 60)
    y = x.detach().clone().requires_grad_()
    torch.manual_seed(3)
    found = block(x, tokens).added()
    torch.manual_seed(3)
    expected = reference(y, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(expected)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    assert_close(gradients(block), gradients(reference), 1e-5)


@pytest.mark.parametrize("rows", [None, [0, 2, 7]], ids=str)
@pytest.mark.parametrize(
    ("options", "biased"),
    [
        ({"qkv_bias": "full"}, False),
        ({"layer_scale": 0.1}, False),
        ({"layer_scale": 0.1}, True),
        ({"qkv_bias": "full"}, True),
    ],
    ids=["full bias", "LayerScale", "LayerScale, scores biased", "full bias, scores biased"],
)
def test_a_block_with_options_is_the_plain_block(options, biased, rows):
    """And so are the gradients of gamma, of the scores' bias and of a k bias, which has none."""
    block, reference = pair(0.5, **options)
    tokens = None if rows is None else torch.tensor([rows, [1, 3, 4], rows, rows]).int()
    x, bias = leaf(4, 9, 60), leaf(3, 9, 9) if biased else None
    y, bias_y = (None if t is None else t.detach().clone().requires_grad_() for t in (x, bias))
    torch.manual_seed(3)
    found = block(x, tokens, bias=bias).added()
    torch.manual_seed(3)
    expected = reference(y, tokens, bias=bias_y)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(expected)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    assert_close(gradients(block), gradients(reference), 1e-5)
    if biased:
        torch.testing.assert_close(bias.grad, bias_y.grad, rtol=1e-4, atol=1e-5)
    if options.get("qkv_bias") == "full":
        assert not block.attn.qkv.bias.grad[60:120].any()


def test_a_pending_branch_goes_in_and_comes_out():
    """A chain of blocks on streams is the chain on tokens."""
    torch.manual_seed(0)
    blocks = [pair(0.5)[0] for _ in range(3)]
    x = torch.randn(4, 9, 60)
    torch.manual_seed(3)
    stream = Stream(x)
    for block in blocks:
        stream = block(stream)
    torch.manual_seed(3)
    tokens = x
    for block in blocks:
        tokens = block(tokens).added()
    torch.testing.assert_close(stream.added(), tokens, rtol=1e-5, atol=1e-5)


def student(drop_path=0.2, **options):
    torch.manual_seed(0)
    model = eva_fast.create_model(**SIZES, drop_path=drop_path, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def batch():
    torch.manual_seed(5)
    mask = torch.rand(4, 16).argsort(1)[:, :6].sort(1).values.int()
    return torch.randn(4, 3, 32, 32), mask, torch.randn(24, 20)


def step(model, seed=7):
    """Loss and gradients of one step, drop-path's numbers from `seed`."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model.loss(*batch())
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_hooks_fire_on_every_block_attention_and_mlp(kernels):
    model = student(kernels=kernels)
    seen = []
    for name, module in model.named_modules():
        if name.endswith((".attn", ".mlp")) or name.rpartition(".")[0] == "blocks":
            module.register_forward_pre_hook(lambda m, _, n=name: seen.append(f"into {n}"))
            module.register_forward_hook(lambda m, _, out, n=name: seen.append(n))
    step(model)
    assert [n for n in seen if not n.startswith("into ")] == [
        n for i in range(4) for n in (f"blocks.{i}.attn", f"blocks.{i}.mlp", f"blocks.{i}")
    ]
    assert len(seen) == 2 * 12


def test_a_hook_may_change_what_a_block_gives():
    model, other = student(0.0), student(0.0)
    images, mask, _ = batch()
    hook = model.blocks[1].register_forward_hook(lambda m, a, out: Stream(out.added() * 2))
    with torch.no_grad():
        for p in (other.blocks[1].attn.proj, other.blocks[1].mlp.fc2):
            p.weight.zero_()
            p.bias.zero_()
        changed = model(images, mask)
        hook.remove()
        assert not torch.allclose(changed, model(images, mask))
        hook = model.blocks[1].register_forward_hook(lambda m, a, out: a[0])
        torch.testing.assert_close(model(images, mask), other(images, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_checkpointed_blocks(dtype):
    model = student(compute_dtype=dtype)
    expected = step(model)
    for block in model.blocks:
        forward = block.forward
        block.forward = lambda *a, f=forward, **k: checkpoint(f, *a, use_reentrant=False, **k)
    assert_close(step(model), expected)


@pytest.mark.parametrize("how", ["block.compile()", "torch.compile(block)"])
def test_blocks_compiled_one_by_one(how):
    model = student(drop_path=0.0)
    expected = step(model)
    torch._dynamo.reset()
    for i, block in enumerate(model.blocks):
        if how == "block.compile()":
            block.compile(fullgraph=True, backend="aot_eager")
        else:
            model.blocks[i] = torch.compile(block, fullgraph=True, backend="aot_eager")
    found = {k.replace("_orig_mod.", ""): v for k, v in step(model).items()}
    assert_close(found, expected)


def test_compiled_blocks_with_rates_of_their_own_share_their_graphs():
    """PyTorch gives up after eight graphs of one function; a giant has forty blocks."""
    torch.manual_seed(0)
    rates = [0.05 * i for i in range(12)]
    blocks = [Block(24, 2, 30, rate) for rate in rates]
    torch._dynamo.reset()
    for block in blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    stream = Stream(torch.randn(64, 5, 24))
    for rate, block in zip(rates, blocks, strict=True):
        stream = block(stream)
        assert (stream.scale is None) == (rate == 0)
        if rate:
            assert stream.scale.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    assert stream.x.isfinite().all()


def test_a_model_can_be_copied_and_pickled(tmp_path):
    model = student(0.0)
    torch.save(model, tmp_path / "model.pt")
    expected = step(model)
    for twin in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert_close(step(twin), expected, 0)


def test_a_block_with_options_checkpointed_and_compiled():
    block, x, bias = pair(0.0, layer_scale=0.1)[0], leaf(4, 9, 60), leaf(3, 9, 9)

    def run(block):
        upstream = torch.linspace(-1, 1, 4 * 9 * 60).view(4, 9, 60)
        return torch.autograd.grad(
            block(x, bias=bias).added(), [x, bias, *block.parameters()], upstream
        )

    expected = run(block)
    block.recompute = True
    for a, b in zip(run(block), expected, strict=True):
        assert torch.equal(a, b)
    block.recompute = False
    torch._dynamo.reset()
    block.compile(fullgraph=True, backend="aot_eager")
    for a, b in zip(run(block), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Attention, Mlp])
def test_parameters_are_the_plain_ones(kind):
    arguments = (60, 3) if kind is Attention else (60, 99)
    fused, reference = kind(*arguments), getattr(plain, kind.__name__)(*arguments)
    assert {k: v.shape for k, v in fused.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }


def outcome(block):
    """What a block gives and all its gradients, and whether it was one function."""
    torch.manual_seed(5)
    x, branch, bias = leaf(4, 9, 60), leaf(4, 9, 60), leaf(60)
    scale = torch.tensor([0.0, 2.0, 2.0, 0.0])
    out = block(Stream(x, branch, bias, scale), scales=(scale.flip(0) + 1, scale))
    total = out.added()
    upstream = torch.linspace(-1, 1, total.numel()).view_as(total)
    inputs = [x, branch, bias, *block.parameters()]
    name = type(out.x.grad_fn).__name__
    return name, [total, *torch.autograd.grad(total, inputs, upstream)]


class Watched:
    """A hook of any kind that changes nothing and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *_):
        self.calls += 1


def replace(block):
    class Mine(Attention):
        pass

    block.attn.__class__ = Mine


HEARD = {
    "forward hook": lambda block, hook: block.attn.register_forward_hook(hook),
    "forward pre-hook": lambda block, hook: block.mlp.register_forward_pre_hook(hook),
    "hook of all modules": lambda block, hook: (
        torch.nn.modules.module.register_module_forward_hook(hook)
    ),
    "another class": lambda block, hook: (hook(), replace(block)),
    "another forward": lambda block, hook: setattr(
        block.mlp, "forward", lambda *given, f=block.mlp.forward: (hook(), f(*given))[1]
    ),
    "compiled": lambda block, hook: (
        hook(), torch._dynamo.reset(), block.mlp.compile(backend="aot_eager")
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": "full", "layer_scale": 0.1}], ids=["qv", "full"]
)
@pytest.mark.parametrize("heard", HEARD)
def test_both_branches_are_one_function_unless_someone_hears_of_a_part(kernels, heard, options):
    """With the same bits either way."""
    block, hook = pair(**options)[0], Watched()
    name, expected = outcome(block)
    assert name == "_BlockBranchBackward"
    handle = HEARD[heard](block, hook)
    try:
        name, found = outcome(block)
    finally:
        if hasattr(handle, "remove"):
            handle.remove()
    assert name != "_BlockBranchBackward" and hook.calls
    tolerance = 1e-5 if heard == "compiled" else 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_a_backward_hook_on_a_part_is_called():
    block, seen = pair()[0], []
    block.mlp.register_full_backward_hook(lambda *_: seen.append("mlp"))
    x = leaf(2, 5, 60)
    block(x).added().sum().backward()
    assert seen == ["mlp"] and x.grad.isfinite().all()


def test_gradients_that_nobody_wants_are_none():
    block = pair()[0]
    frozen = (block.attn.qkv.weight, block.attn.q_bias, block.attn.v_bias, block.mlp.fc2.weight)
    for parameter in frozen:
        parameter.requires_grad_(False)
    x = leaf(2, 5, 60)
    block(x).added().square().sum().backward()
    found = {n: p.grad.clone() for n, p in block.named_parameters() if p.grad is not None}
    block.zero_grad()
    for parameter in frozen:
        parameter.requires_grad_(True)
    block(x).added().square().sum().backward()
    assert len(found) == sum(p.requires_grad for p in block.parameters()) - len(frozen)
    assert all(torch.equal(found[n], block.get_parameter(n).grad) for n in found)

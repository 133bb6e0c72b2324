import copy

import pytest
import torch

from eva_fast import ops
from eva_fast.ops import choose, copies
from eva_fast.ops.largest import parts_of
from tests.ops.helpers import Accuracy, opcheck

BETAS, EPS = (0.9, 0.98), 1e-6
# A chunk of the Triton kernel and a bit, odd sizes, one element, a scalar-like row.
SHAPES = [(16384 + 16,), (7, 3), (1,), (60, 88)]
DECAYS = [0.05, 0.0, 0.05, 0.1]


def tensors(dtype=torch.float32, grad_dtype=torch.float32, copy_dtype=torch.bfloat16, scale=1.0):
    """Arguments of adamw at step 3, with moments that fit the gradients."""
    params = [torch.randn(s).to(dtype) for s in SHAPES]
    return {
        "params": params,
        "copies": [torch.full_like(p, float("nan"), dtype=copy_dtype) for p in params],
        "grads": [(torch.randn(s) * scale).to(grad_dtype) for s in SHAPES],
        "exp_avgs": [torch.randn(s).to(dtype) for s in SHAPES],
        "exp_avg_sqs": [torch.rand(s).to(dtype) for s in SHAPES],
        "steps": [torch.tensor(3.0) for _ in SHAPES],
        "weight_decays": DECAYS,
        "lr": torch.tensor(1e-2),
        "betas": BETAS,
        "eps": EPS,
        "grad_scale": None,
    }


def stock(arguments, dtype):
    """The same step by torch.optim.AdamW in `dtype`; returns parameters and moments."""
    params = [torch.nn.Parameter(p.to(dtype)) for p in arguments["params"]]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(params, DECAYS, strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=arguments["lr"].item(), betas=BETAS, eps=EPS)
    for i, p in enumerate(params):
        scale = arguments["grad_scale"]
        grad = arguments["grads"][i].to(dtype)
        p.grad = grad if scale is None else grad * scale.to(dtype)
        optimizer.state[p] = {
            "step": arguments["steps"][i] - 1,  # torch counts inside the step
            "exp_avg": arguments["exp_avgs"][i].to(dtype, copy=True),
            "exp_avg_sq": arguments["exp_avg_sqs"][i].to(dtype, copy=True),
        }
    optimizer.step()
    states = [optimizer.state[p] for p in params]
    return [
        [p.detach() for p in params],
        [s["exp_avg"] for s in states],
        [s["exp_avg_sq"] for s in states],
    ]


CASES = {
    "fp32": dict(copy_dtype=torch.bfloat16),
    "bf16 gradients": dict(grad_dtype=torch.bfloat16),
    "fp16 gradients and copies": dict(grad_dtype=torch.float16, copy_dtype=torch.float16),
    "huge gradients, clipped": dict(scale=1e4, clip=1e-4),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_against_float64(kernels, case):
    options = dict(CASES[case])
    clip = options.pop("clip", None)
    arguments = tensors(**options)
    arguments["grad_scale"] = torch.tensor(clip) if clip else None
    usual, exact = stock(arguments, torch.float32), stock(arguments, torch.float64)
    ops.adamw(**arguments)
    found = [arguments[name] for name in ("params", "exp_avgs", "exp_avg_sqs")]
    accuracy = Accuracy()
    for name, lists in zip(("param", "exp_avg", "exp_avg_sq"), zip(found, usual, exact)):
        for a, p, e in zip(*lists, strict=True):
            accuracy.add(name, a, p, e)
    accuracy.check()
    for p, c in zip(arguments["params"], arguments["copies"], strict=True):
        assert torch.equal(c, p.to(c.dtype))


def test_without_copies(kernels):
    arguments = tensors()
    expected = stock(arguments, torch.float32)[0]
    ops.adamw(**{**arguments, "copies": []})
    for a, b in zip(arguments["params"], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_an_overflow_changes_nothing(kernels, scale):
    arguments = tensors()
    arguments["grads"][0][0] = float("nan")
    arguments["grad_scale"] = torch.tensor(scale)
    before = copy.deepcopy(arguments)
    ops.adamw(**{**arguments, "copies": []})
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        for a, b in zip(arguments[name], before[name], strict=True):
            assert torch.equal(a, b)


def test_no_tensors(kernels):
    """Nothing is launched, and an optimiser without gradients keeps all as it is."""
    arguments = {k: [] if isinstance(v, list) else v for k, v in tensors().items()}
    model, optimizer = model_and_optimizer(ops.FusedAdamW)
    before = copy.deepcopy(model.state_dict())
    with choose.noting(lambda op, *_: pytest.fail(f"{op.name} ran")):
        ops.adamw(**arguments)
        optimizer.step()
    assert arguments["lr"] == 1e-2 and not optimizer.state
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_reference_in_float64():
    arguments = tensors(dtype=torch.float64, grad_dtype=torch.float64)
    expected = stock(arguments, torch.float64)
    arguments["lr"] = arguments["lr"].double()
    ops.adamw.reference(**{**arguments, "lr": torch.tensor(0.01, dtype=torch.float64)})
    for name, wanted in zip(("params", "exp_avgs", "exp_avg_sqs"), expected, strict=True):
        for a, b in zip(arguments[name], wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def model_and_optimizer(kind, wrap=None):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(20, 60), torch.nn.GELU(), torch.nn.Linear(60, 3))
    if wrap is not None:
        for layer in (model[0], model[2]):
            layer.weight, layer.bias = wrap(layer.weight.data), wrap(layer.bias.data)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return model, kind(groups, lr=1e-2, betas=BETAS, eps=EPS)


def train(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        # the generator is the CPU's, whatever the device of the test
        x = torch.randn(16, 20, generator=generator, device="cpu").to(model[0].weight.device)
        loss = (model(x) - x[:, :3]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_optimizer_follows_torch_and_exchanges_states_with_it(kernels):
    ours, fused = model_and_optimizer(ops.FusedAdamW)
    theirs, plain = model_and_optimizer(torch.optim.AdamW)
    assert train(ours, fused, 5, 0) == pytest.approx(train(theirs, plain, 5, 0), abs=1e-6)
    # each goes on from the other's state
    saved = copy.deepcopy((ours.state_dict(), fused.state_dict()))
    ours.load_state_dict(theirs.state_dict())
    fused.load_state_dict(plain.state_dict())
    theirs.load_state_dict(saved[0])
    plain.load_state_dict(saved[1])
    assert train(ours, fused, 5, 1) == pytest.approx(train(theirs, plain, 5, 1), abs=1e-6)


def test_optimizer_writes_copies_and_skips_overflows(kernels):
    model, optimizer = model_and_optimizer(ops.FusedAdamW)
    first = model[0].weight
    optimizer.copies[first] = torch.zeros_like(first, dtype=torch.bfloat16)
    train(model, optimizer, 2, 0)
    assert torch.equal(optimizer.copies[first], first.bfloat16())
    before = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.step(grad_scale=torch.tensor(float("nan")))
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(before[i][k], after[i][k]) for i in before for k in before[i])
    assert after[0]["step"].item() == 2


def test_optimizer_sees_parameters_that_changed_their_shape_or_layout(kernels):
    for other in (torch.randn(40, 24), torch.randn(24, 12).t(), torch.randn(12, 24).half()):
        model, optimizer = model_and_optimizer(ops.FusedAdamW)
        train(model, optimizer, 1, 0)
        weight = model[0].weight
        weight.data, weight.grad = other, torch.zeros_like(other)
        with pytest.raises(ValueError, match="adamw: .* expected"):
            optimizer.step()


def test_copied_optimizer_goes_on(kernels):
    model, optimizer = model_and_optimizer(ops.FusedAdamW)
    train(model, optimizer, 2, 0)
    twin, copied = copy.deepcopy((model, optimizer))
    assert train(twin, copied, 2, 1) == train(model, optimizer, 2, 1)


@pytest.mark.parametrize("with_copies", [True, False], ids=["copies", "no copies"])
def test_largest_magnitudes_of_each_chunk(kernels, with_copies):
    """Two chunks of the first tensor, one of each other; the new values are as without."""
    arguments, plain = tensors(), tensors()
    for name, values in arguments.items():
        if isinstance(values, list) and name != "weight_decays":
            plain[name] = [v.clone() for v in values]
    if not with_copies:
        arguments["copies"] = plain["copies"] = []
    parts = [torch.full_like(parts_of(p), torch.nan) for p in arguments["params"]]
    assert [len(p) for p in parts] == [2, 1, 1, 1]
    ops.adamw(**arguments, largest=parts)
    ops.adamw(**plain)
    for p, same, found in zip(arguments["params"], plain["params"], parts, strict=True):
        assert torch.equal(p, same)
        wanted = [chunk.abs().max() for chunk in p.flatten().split(16384)]
        assert found.tolist() == [w.item() for w in wanted]
    skipped = [p.clone() for p in parts]
    ops.adamw(**{**arguments, "grad_scale": torch.tensor(torch.nan)}, largest=skipped)
    assert all(torch.equal(a, b) for a, b in zip(skipped, parts, strict=True))
    arguments["grads"][1][0, 0] = torch.nan
    ops.adamw(**arguments, largest=parts)
    assert parts[1].isnan().all() and parts[0].isfinite().all()


def test_skipped_step_does_not_pass_a_stale_copy_for_current(kernels):
    model, optimizer = model_and_optimizer(ops.FusedAdamW)
    first = model[0].weight
    copy_ = copies.write(torch.empty_like(first, dtype=torch.bfloat16), first)
    optimizer.copies[first] = copy_
    train(model, optimizer, 1, 0)
    assert copies.is_current(copy_, first)
    with torch.no_grad():
        first.mul_(2)
    optimizer.step(grad_scale=torch.tensor(float("nan")))
    assert not copies.is_current(copy_, first) or torch.equal(copy_, first.bfloat16())


def test_sharded_parameters(tmp_path):
    """DTensors, as FSDP2 makes them, are updated on this process's shards."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        sharded, fused = model_and_optimizer(
            ops.FusedAdamW,
            wrap=lambda p: torch.nn.Parameter(distribute_tensor(p, mesh, [Shard(0)])),
        )
        plain, expected = model_and_optimizer(torch.optim.AdamW)
        for _ in range(3):
            for a, b in zip(sharded.parameters(), plain.parameters(), strict=True):
                b.grad = torch.randn_like(b)
                a.grad = distribute_tensor(b.grad.clone(), mesh, [Shard(0)])
            fused.step()
            expected.step()
        for a, b in zip(sharded.parameters(), plain.parameters(), strict=True):
            assert isinstance(a, DTensor) and isinstance(fused.state[a]["exp_avg"], DTensor)
            torch.testing.assert_close(a.full_tensor(), b, rtol=1e-6, atol=1e-6)
    finally:
        dist.destroy_process_group()


def test_opcheck(kernels):
    arguments = list(tensors().values())[:8]
    for largest in ([], [parts_of(p) for p in arguments[0]]):
        given = [*arguments, *BETAS, EPS, torch.tensor(0.5), largest]
        opcheck(torch.ops.eva_fast.adamw.default, given)


def test_compiled():
    torch._dynamo.reset()
    eager = tensors()
    traced = copy.deepcopy(eager)
    ops.adamw(**eager)
    torch.compile(ops.adamw, fullgraph=True, backend="aot_eager")(**traced)
    for name in ("params", "copies", "exp_avgs", "exp_avg_sqs"):
        for a, b in zip(traced[name], eager[name], strict=True):
            assert torch.equal(a, b)


BAD = {
    r"3 grads for 4 params": lambda a: a["grads"].pop(),
    r"1 copies for 4 params": lambda a: a.update(copies=a["copies"][:1]),
    r"grads\[1\] has shape": lambda a: a["grads"].__setitem__(1, torch.randn(3, 7)),
    r"params\[2\] has dtype": lambda a: a["params"].__setitem__(2, torch.zeros(1).half()),
    r"exp_avgs\[0\] is on": lambda a: a["exp_avgs"].__setitem__(0, a["exp_avgs"][0].to("meta")),
    r"largest\[0\] has shape": lambda a: a.update(largest=[torch.zeros(1)] * 4),
    r"2 largest for 4 params": lambda a: a.update(largest=[torch.zeros(2)] * 2),
    r"params\[3\] has strides": lambda a: a["params"].__setitem__(3, torch.randn(88, 60).t()),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    arguments = tensors()
    BAD[message](arguments)
    with pytest.raises(ValueError, match=f"adamw: {message}"):
        ops.adamw(**arguments)

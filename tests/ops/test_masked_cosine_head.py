import pytest
import torch
import torch.nn.functional as F

from eva_fast.ops import Case, choose
from eva_fast.ops.masked_cosine_head import OP, masked_cosine_head
from eva_fast.ops.race import timed_by
from tests.ops.helpers import (
    DTYPES,
    SHORT,
    check_against_float64,
    check_compiled,
    leaf,
    masks,
    rows_apart,
)

EPS = 1e-6


def predictions(x, mask, ln_w, ln_b, weight, bias, eps):
    rows = x
    if mask is not None:
        rows = torch.cat([image[1 + index.long()] for image, index in zip(x, mask)])
    dtype = rows.dtype
    y = F.layer_norm(rows, rows.shape[-1:], ln_w.to(dtype), ln_b.to(dtype), eps)
    return F.linear(y, weight.to(dtype), bias.to(dtype))


def plain(x, mask, ln_w, ln_b, weight, bias, target, eps):
    """As a model writes it, in stock PyTorch: norm, Linear, cosine of float32."""
    p = predictions(x, mask, ln_w, ln_b, weight, bias, eps)
    compute = torch.float64 if p.dtype == torch.float64 else torch.float32
    return -F.cosine_similarity(p.to(compute), target.to(compute)).mean()


def arguments(batch, patches, count, width, predict, dtype=torch.float32):
    inputs = (
        leaf(batch, patches + 1, width, dtype=dtype),
        masks(batch, patches, count),
        leaf(width, dtype=dtype),
        leaf(width, dtype=dtype),
        leaf(predict, width, dtype=dtype, scale=width**-0.5),
        leaf(predict, dtype=dtype),
    )
    # a target that the prediction resembles, else the loss is a sum that cancels
    target = predictions(*inputs, EPS).detach() + leaf(batch * count, predict, dtype=dtype)
    return *inputs, target.detach(), EPS


@pytest.fixture(params=["fused", "composed"])
def implementation(request, kernels):
    """Both of Triton's implementations; PyTorch has one."""
    if kernels == "triton":
        choose.force(OP.name, request.param)
    elif request.param == "fused":
        pytest.skip("only Triton has a fused forward")
    yield request.param
    choose.force(OP.name, "auto")


# sizes (images, patches, masked, width, predicted) and draws: few values need many draws, or the
# comparison with plain PyTorch's own error is one of luck
CASES = {
    "width 60, 20 predicted": ((2, 9, 4, 60, 20), 8),
    "one row of 88": ((1, 4, 1, 88, 20), 16),
    "7 rows, 176 to 1024": ((1, 9, 7, 176, 1024), 4),
    "every patch masked, 88 to 768": ((2, 4, 4, 88, 768), 8),
    "ViT-g's width": ((1, 36, 12, 1408, 100), 2),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
@pytest.mark.parametrize("case", CASES)
def test_against_float64(implementation, case, dtype):
    sizes, draws = CASES[case]
    check_against_float64(masked_cosine_head, plain, lambda: arguments(*sizes, dtype), draws=draws)


def test_float32_parameters_with_16_bit_rows(implementation):
    def inputs():
        x, mask, *parameters, target, eps = arguments(2, 9, 4, 60, 20)
        x = x.detach().to(torch.bfloat16).requires_grad_()
        return x, mask, *parameters, target, eps

    check_against_float64(masked_cosine_head, plain, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
def test_rows_that_are_gathered_already(implementation, dtype):
    def inputs():
        x, _, *parameters, target, eps = arguments(7, 1, 1, 60, 20, dtype)
        return x[:, 1].detach().requires_grad_(), None, *parameters, target, eps

    check_against_float64(masked_cosine_head, plain, inputs, draws=8)


def test_strided_rows(implementation):
    x, mask, *parameters, target, eps = arguments(2, 9, 4, 60, 20)
    wide = torch.cat((mask, mask), 1)[:, :4]
    want = masked_cosine_head(x, mask, *parameters, target, eps)
    strided = (rows_apart(x), wide, *parameters, rows_apart(target), eps)
    torch.testing.assert_close(masked_cosine_head(*strided), want, rtol=0, atol=0)
    leaves = (strided[0], *parameters)
    found = torch.autograd.grad(masked_cosine_head(*strided), leaves)
    for a, b in zip(found, torch.autograd.grad(want, (x, *parameters)), strict=True):
        torch.testing.assert_close(a, b)


def test_zeros_where_nothing_is_masked(implementation):
    x, mask, *rest = arguments(2, 9, 4, 60, 20)
    loss = masked_cosine_head(x, mask, *rest)
    (dx,) = torch.autograd.grad(loss, x)
    touched = torch.zeros(2, 10, dtype=torch.bool)
    for image, index in zip(touched, mask):
        image[1 + index.long()] = True
    assert not dx[~touched].any() and dx[touched].any(-1).all()


def test_saves_three_scalars_a_row(implementation):
    """Beside the inputs, which the model holds anyway."""
    inputs = arguments(2, 9, 4, 60, 20)
    held = {t.data_ptr() for t in inputs if torch.is_tensor(t)}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        masked_cosine_head(*inputs)
    assert sum(t.numel() for t in saved if t.data_ptr() not in held) == 3 * 8


def test_no_rows(implementation):
    inputs = arguments(2, 9, 0, 60, 20)
    loss = masked_cosine_head(*inputs)
    assert loss == 0
    leaves = [t for t in inputs if torch.is_tensor(t) and t.requires_grad]
    for gradient, tensor in zip(torch.autograd.grad(loss, leaves), leaves, strict=True):
        assert gradient.shape == tensor.shape and not gradient.any()


def test_a_row_of_zeros_has_cosine_zero(implementation):
    x, mask, ln_w, ln_b, weight, bias, target, eps = arguments(1, 4, 2, 60, 20)
    silent = (x, mask, ln_w, ln_b, torch.zeros_like(weight), torch.zeros_like(bias), target, eps)
    assert masked_cosine_head(*silent) == 0


def test_opcheck(kernels):
    inputs = arguments(2, 9, 3, 20, 12)
    torch.library.opcheck(torch.ops.eva_fast.masked_cosine_head.default, inputs)
    *tensors, eps = (t.detach() if torch.is_tensor(t) else t for t in inputs)
    loss, statistics = torch.ops.eva_fast.masked_cosine_head(*tensors, eps)
    backward = torch.ops.eva_fast.masked_cosine_head_backward.default
    torch.library.opcheck(backward, (loss, *tensors, statistics, eps))


def test_compiled(kernels):
    check_compiled(masked_cosine_head, arguments(2, 9, 3, 20, 12))


def test_reference_in_float64():
    inputs = [t.double() if torch.is_tensor(t) and t.is_floating_point() else t
              for t in arguments(2, 9, 4, 60, 20)]  # fmt: skip
    torch.testing.assert_close(
        masked_cosine_head.reference(*inputs), plain(*inputs), rtol=0, atol=1e-12
    )


def test_the_estimate_where_nothing_is_measured():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    small, large = (3360, 1408, 768), (3360 * 128, 1408, 768)

    def chosen(sizes, dtype, device=cuda):
        return choose.decide(OP, Case(device, dtype, sizes)).name

    assert chosen(small, torch.bfloat16) == "fused"
    assert chosen(large, torch.bfloat16) == "composed"
    assert chosen(small, torch.float32) == "composed"
    assert chosen(small, torch.bfloat16, cpu) == "torch"
    choose.force(OP.name, "composed")
    assert chosen(small, torch.bfloat16) == "composed"
    choose.force(OP.name, "triton")  # the family
    assert chosen(small, torch.bfloat16) == "fused"
    choose.force(OP.name, "auto")
    assert chosen(small, torch.bfloat16) == "fused"
    with pytest.raises(ValueError, match="unknown kernels 'quick' for masked_cosine_head"):
        choose.force(OP.name, "quick")


@pytest.mark.parametrize("faster", ["fused", "composed", "torch"])
def test_a_gpu_measures_each_shape_once(faster, gpu_to_race_on, monkeypatch):
    raced = []
    monkeypatch.setattr(torch, "randn", lambda *sizes, **options: torch.empty(0, device="meta"))

    def clock(name, run, device):
        raced.append(name)
        return 1.0 if name == faster else 2.0

    case = Case(torch.device("cuda"), torch.bfloat16, (3360, 1408, 768))
    with timed_by(clock):
        assert choose.decide(OP, case).name == faster and set(raced) == {
            "fused",
            "composed",
            "torch",
        }
        raced.clear()
        choose.forget_measured()  # as another process would start
        assert choose.decide(OP, case).name == faster and not raced


BAD = {
    "x has shape .*, expected \\(\\*, \\*\\)": {"mask": None},
    "mask has dtype": {"mask": torch.zeros(2, 3, dtype=torch.int64)},
    "mask has shape": {"mask": torch.zeros(1, 3, dtype=torch.int32)},
    "x has shape": {"x": torch.zeros(20, 20)},
    "x has dtype": {"x": torch.zeros(2, 10, 20, dtype=torch.int32)},
    "x has strides": {"x": torch.zeros(2, 20, 10).transpose(1, 2)},
    "ln_w has shape": {"ln_w": torch.zeros(19)},
    "weight has shape": {"weight": torch.zeros(12, 19)},
    "weight has dtype": {"weight": torch.zeros(12, 20, dtype=torch.float16)},
    "bias has shape": {"bias": torch.zeros(11)},
    "target has shape": {"target": torch.zeros(5, 12)},
    "target is on device": {"target": torch.zeros(6, 12, device="meta")},
    "target requires grad": {"target": torch.zeros(6, 12, requires_grad=True)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    names = ("x", "mask", "ln_w", "ln_b", "weight", "bias", "target", "eps")
    values = dict(zip(names, arguments(2, 9, 3, 20, 12), strict=True)) | BAD[message]
    with pytest.raises(ValueError, match=f"masked_cosine_head: .*{message}"):
        masked_cosine_head(**values)

import pytest
import torch

from eva_fast import ops
from eva_fast.ops.fp8_gemm import emulated

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PAIRS = pytest.mark.parametrize(
    "formats", [(E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2)], ids=["e4m3", "e5m2 a", "e5m2 b"]
)
on_gpu = (
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
        reason="needs an NVIDIA GPU with 8-bit floats",
    ),
)
DEVICES = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=on_gpu, id="on a GPU")]
)


def operands(m, n, k, formats, device):
    a, b = torch.randn(m, k), torch.randn(n, k)
    qa = ops.quantise_fp8(a.to(device), None, formats[0], want_columns=False)
    qb = ops.quantise_fp8(b.to(device), None, formats[1], want_columns=False)
    return qa.rows, qb.rows, qa.scale, qb.scale


def exact(a, b, scale_a, scale_b, bias=None):
    out = a.double().cpu() @ b.double().cpu().t() * (scale_a.double() * scale_b.double()).cpu()
    return out if bias is None else out + bias.double().cpu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@PAIRS
@DEVICES
def test_against_float64(device, formats, dtype):
    """The operands are exact: what is off is the sum and the last rounding. A GPU's sums keep about
    14 bits."""
    torch.manual_seed(0)
    for m, n, k in ((1, 16, 16), (37, 48, 64), (257, 160, 1408)):
        arguments = operands(m, n, k, formats, device)
        bias = torch.randn(n, dtype=dtype, device=device) if dtype == torch.bfloat16 else None
        found = ops.fp8_gemm(*arguments, bias, dtype)
        expected = exact(*arguments, bias)
        assert found.dtype == dtype and found.shape == (m, n)
        allowed = torch.finfo(dtype).eps / 2 + (2**-12 if device == "cuda" else 1e-6)
        # errors of a sum grow with what is summed, not with what remains
        size = exact(*(t.float().abs() for t in arguments), None if bias is None else bias.abs())
        assert ((found.double().cpu() - expected).abs() <= allowed * size).all()


@pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])
@PAIRS
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu, id="on a GPU")])
def test_the_gpu_agrees_with_the_emulation(device, formats, fast):
    """ViT-g's fc1 and fc2: root mean square of the difference below 2^-9 of the result's, a half of
    bfloat16's unit in the last place; 2^-8 with fast accumulation."""
    torch.manual_seed(0)
    for n, k in ((6144, 1408), (1408, 6144)):
        arguments = operands(514, n, k, formats, device)
        found = ops.fp8_gemm(*arguments, None, torch.bfloat16, fast).float()
        expected = emulated(*arguments).float()
        assert (found - expected).norm() <= 2.0 ** (-8 if fast else -9) * expected.norm()


@DEVICES
def test_a_part_of_the_columns(device):
    """Rows of b may lie apart, as those of a part of a transposed weight do."""
    torch.manual_seed(0)
    a, b, scale_a, scale_b = operands(32, 48, 96, (E4M3, E4M3), device)
    part = ops.fp8_gemm(a[:, :32].contiguous(), b[:, :32], scale_a, scale_b)
    whole = ops.fp8_gemm(a[:, :32].contiguous(), b[:, :32].contiguous(), scale_a, scale_b)
    assert torch.equal(part, whole)


@DEVICES
def test_no_rows(device):
    a, b, *scales = operands(4, 16, 16, (E4M3, E4M3), device)
    assert ops.fp8_gemm(a[:0], b, *scales).shape == (0, 16)


def test_a_scale_that_is_not_finite_spoils_everything():
    a, b, scale_a, scale_b = operands(4, 16, 16, (E4M3, E4M3), "cpu")
    assert ops.fp8_gemm(a, b, scale_a * torch.nan, scale_b).isnan().all()


def test_bad_use():
    a, b, *scales = operands(4, 16, 16, (E4M3, E4M3), "cpu")
    for wrong, message in (
        ((a.float(), b), "a has dtype torch.float32"),
        ((a, b[:, :8]), r"b has shape \(16, 8\)"),
        ((a[:, :8], b[:, :8]), "K is 8, expected a multiple of 16"),
        ((a, b[:8]), "N is 8, expected a multiple of 16"),
        ((a.to(E5M2), b.to(E5M2)), "no GPU multiplies"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.fp8_gemm(*wrong, *scales)


def test_opcheck():
    """The fake tensors' part: opcheck's own arithmetic on its copies does not know 8-bit floats."""
    arguments = operands(5, 32, 16, (E4M3, E4M3), "cpu")
    torch.library.opcheck(
        torch.ops.eva_fast.fp8_gemm.default,
        (*arguments, None, torch.bfloat16, True),
        test_utils="test_faketensor",
    )

"""Tiles of the attention kernels: every set computes the same, and the fastest is found and kept."""

import pytest
import torch

from eva_fast.ops import registry
from eva_fast.ops.packed_attention import packed_attention
from eva_fast.ops.race import timed_by

pytest.importorskip("triton", reason="Triton is not installed")

from eva_fast.kernels import tiles
from eva_fast.kernels.attention_tiles import split_rows
from eva_fast.kernels.packed_attention import forward_options, launch_forward
from eva_fast.kernels.packed_attention_dkv import dkv_options, launch_dkv
from eva_fast.kernels.packed_attention_dq import dq_options, launch_dq
from eva_fast.kernels.tiles import Tiles, fastest

SIZES = 70, 70, 24  # queries, keys, head: 64 rows in tiles, CLS and 5 more in the rest
CUDA = torch.device("cuda", 0)


def sets(options, *more):
    return [pytest.param(found, id=str(found)) for found in options(*SIZES, 2, *more)]


@pytest.fixture(scope="module")
def inputs():
    """q, k, v, dout, and out, lse, (dq, dk, dv) by the reference in float64."""
    torch.manual_seed(0)
    packed = torch.randn(1, 70, 3, 2, 24, dtype=torch.float64, requires_grad=True)
    dout = torch.randn(1, 70, 2, 24, dtype=torch.float64)
    out, lse = packed_attention.reference(None, packed, 0.2)
    (gradient,) = torch.autograd.grad(out, packed, dout)
    single = [t.detach().float() for t in (*packed.unbind(2), dout)]
    return single, (out.detach(), lse.detach()), gradient.unbind(2)


interpreter = pytest.mark.skipif(
    not registry.interpreted(), reason="the kernels run on the GPU or in Triton's interpreter"
)


def close(found, exact):
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-6)


@pytest.mark.interpreted
@interpreter
@pytest.mark.parametrize("chosen", sets(forward_options))
def test_forward(inputs, chosen):
    (q, k, v, _), (out, lse), _ = inputs
    found = torch.empty_like(q), torch.empty(lse.shape)
    launch_forward(q, k, v, *found, 0.2, chosen)
    close(found[0], out)
    close(found[1], lse)


@pytest.mark.interpreted
@interpreter
@pytest.mark.parametrize("chosen", sets(dq_options, 90))
def test_dq(inputs, chosen):
    (q, k, v, dout), (out, lse), (dq, *_) = inputs
    found, delta = torch.empty_like(q), torch.empty(lse.shape)
    launch_dq(dout, q, k, v, out.float(), lse.float(), delta, 0.2, found, chosen)
    close(found, dq)
    close(delta, (out * dout).sum(-1).transpose(1, 2))


@pytest.mark.interpreted
@interpreter
@pytest.mark.parametrize("chosen", sets(dkv_options, 90))
def test_dk_and_dv(inputs, chosen):
    (q, k, v, dout), (out, lse), (_, dk, dv) = inputs
    delta = (out * dout).sum(-1).transpose(1, 2).float().contiguous()
    found = torch.empty_like(k), torch.empty_like(v)
    launch_dkv(dout, q, k, v, lse.float(), delta, 0.2, *found, chosen)
    close(found[0], dk)
    close(found[1], dv)


@pytest.mark.parametrize("first", [True, False])
def test_every_row_is_in_one_tile_and_none_is_nearly_empty(first):
    for block in (32, 64, 128):
        for rows in range(1, 600):
            split = split_rows(rows, block, first)
            exact = rows - split.rest
            assert split.rest <= 16 and split.tiles >= 1
            assert exact == split.tiles * block if split.even else exact < split.tiles * block
            last = exact - (split.tiles - 1) * block
            assert last >= 15 or split.tiles == 1


OPTIONS = [Tiles(64, 64, 4, 2), Tiles(32, 64, 4, 2), Tiles(64, 32, 4, 2, beside=True)]


def milliseconds(fast):
    def clock(name, run, device):
        run()
        return 1.0 if name == str(fast) else 2.0

    return clock


def pick(run=lambda option: None):
    return fastest("a kernel", (5, 7), CUDA, lambda: OPTIONS, run)


@pytest.fixture
def gpu(gpu_to_race_on):
    tiles.forget()
    yield
    tiles.forget()


def test_the_fastest_is_kept(gpu):
    tried = []
    with timed_by(milliseconds(OPTIONS[2])):
        assert pick(tried.append) == OPTIONS[2]
    assert set(tried) == set(OPTIONS)
    tiles.forget()
    assert pick() == OPTIONS[2]  # of the disk: nothing was timed


def test_one_that_fails_is_left_out(gpu):
    def run(option):
        if option != OPTIONS[1]:
            raise RuntimeError("out of resources: shared memory")

    with timed_by(milliseconds(OPTIONS[2])):
        assert pick(run) == OPTIONS[1]


def test_the_first_where_nothing_can_be_measured(gpu, monkeypatch):
    def never(option):
        raise AssertionError("timed")

    assert fastest("a kernel", (5, 7), torch.device("cpu"), lambda: OPTIONS, never) == OPTIONS[0]
    assert fastest("a kernel", (5, 8), CUDA, lambda: OPTIONS[1:2], never) == OPTIONS[1]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert pick(never) == OPTIONS[0]

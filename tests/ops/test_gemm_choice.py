"""The GEMM of a CPU: measured once, kept on disk, overruled by a run's own choice."""

import pytest

from eva_fast import native
from eva_fast.ops import dispatch, gemm_choice

pytestmark = pytest.mark.skipif(not native.available(), reason="the native library is not built")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gemm_choice.fastest_gemm.cache_clear()
    dispatch.set_kernels("auto")
    yield
    gemm_choice.fastest_gemm.cache_clear()
    dispatch.set_kernels("auto")


@pytest.mark.parametrize("faster", ["torch", "native"])
def test_the_faster_one_runs_and_is_remembered(monkeypatch, faster):
    races = []

    def race():
        races.append(1)
        return {"torch": 2.0, "native": 2.0, faster: 1.0}

    monkeypatch.setattr(gemm_choice, "_race", race)
    assert dispatch.implementation("gemm", "cpu") == faster
    gemm_choice.fastest_gemm.cache_clear()  # as another process would start
    assert gemm_choice.fastest_gemm() == faster and len(races) == 1
    for other in ("torch", "native"):
        dispatch.set_kernels("auto", {"gemm": other})
        assert dispatch.implementation("gemm", "cpu") == other
        dispatch.set_kernels(other)
        assert dispatch.implementation("gemm", "cpu") == other
    assert len(races) == 1


def test_the_race_is_run():
    medians = gemm_choice._race()
    assert set(medians) == {"torch", "native"} and min(medians.values()) > 0


def test_other_ops_need_no_race(monkeypatch):
    monkeypatch.setattr(gemm_choice, "_race", lambda: pytest.fail("raced"))
    assert dispatch.implementation("bias_gelu", "cpu") == "native"
    assert dispatch.implementation("gemm", "cuda") == "torch"

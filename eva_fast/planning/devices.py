"""The devices a step is predicted for: a table of NVIDIA GPUs from their data sheets, and this CPU.

Peaks are dense (no sparsity). The efficiencies are assumptions, stated here and nowhere else: the
share of a peak that large library matrix products, streaming kernels and flash attention reach.
"""

import torch

from eva_fast.errors import UsageError
from eva_fast.planning import cpu
from eva_fast.planning.rates import Device, Rate

GB = 1e9
GIB = 2**30


def _gpu(
    name: str,
    title: str,
    memory_gb: float,
    tflops: tuple[float, float],
    tb_per_second: float,
    gemm_share: float,
    attention_share: float,
    link_gb: float,
    network_gb: float,
    fp8_share: float | None = None,
) -> Device:
    half, single = tflops[0] * 1e12, tflops[1] * 1e12
    stream = Rate(((1, tb_per_second * 1e12 * 0.85),))
    products = {
        "float16": half * gemm_share,
        "bfloat16": half * gemm_share,
        "float32": single * 0.85,
    }
    peaks = {"float16": half, "bfloat16": half, "float32": single}
    attention = dict(products)
    if fp8_share is not None:
        peaks["float8_e4m3fn"] = 2 * half
        products["float8_e4m3fn"] = 2 * half * fp8_share
    return Device(
        name=name,
        title=title,
        kind="cuda",
        memory_bytes=int(memory_gb * GB),
        peak_flops=peaks,
        gemm={dtype: Rate(((1, rate),)) for dtype, rate in products.items()},
        attention={
            dtype: Rate(((1, rate * attention_share),)) for dtype, rate in attention.items()
        },
        stream=stream,
        resident=stream,
        launch_seconds=1.5e-6,
        host_seconds=7e-6,
        reserved_bytes=int(2.5 * GIB),
        link_bytes=link_gb * GB,
        network_bytes=network_gb * GB,
    )


# Data sheets: memory, dense 16-bit tensor-core and plain float32 TFLOP/s, TB/s, NVLink one way.
# The 16-bit share of peak falls where power limits the clock (H100, B200) or memory feeds it late.
# 8-bit products have twice the peak, at the same power: a smaller share of it (the last number).
_TABLE = (
    _gpu("a100-40", "A100 SXM 40 GB", 40, (312, 19.5), 1.555, 0.78, 0.40, 300, 25),
    _gpu("a100-80", "A100 SXM 80 GB", 80, (312, 19.5), 2.039, 0.78, 0.40, 300, 25),
    _gpu("h100", "H100 SXM 80 GB", 80, (989, 67), 3.35, 0.68, 0.30, 450, 50, 0.58),
    _gpu("h100-pcie", "H100 PCIe 80 GB", 80, (756, 51), 2.0, 0.62, 0.30, 50, 25, 0.52),
    _gpu("h200", "H200 SXM 141 GB", 141, (989, 67), 4.8, 0.70, 0.30, 450, 50, 0.60),
    _gpu("b200", "B200 SXM 180 GB", 180, (2250, 75), 7.7, 0.70, 0.25, 900, 50, 0.60),
)
DEVICES = {d.name: d for d in _TABLE}
ALIASES = {"a100": "a100-80", "h100-sxm": "h100"}


def device(name: str, formulation: str = "tuned") -> Device:
    """A device by name, "cpu" for this machine's: measured with the operators that the formulation
    runs, a few seconds, once a process.

    ValueError names the devices there are."""
    key = ALIASES.get(name.lower(), name.lower())
    if key == "cpu":
        return cpu.measure_cpu(torch.get_num_threads(), own=formulation == "eva_fast")
    if key not in DEVICES:
        known = ", ".join(["cpu", *DEVICES, *ALIASES])
        raise UsageError(f"unknown device {name!r}: one of {known}")
    return DEVICES[key]

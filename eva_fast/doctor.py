"""`eva-fast doctor`: what is installed, which kernels run, and why."""

import importlib.metadata
import importlib.util
import platform
from typing import Any

import torch
from rich.console import Group
from rich.table import Table

from eva_fast import __version__, native
from eva_fast.data import jpeg
from eva_fast.ops import attention_choice, dispatch
from eva_fast.ops.measure import kept_choices

PACKAGES = (
    *(
        "torch",
        "triton",
        "torchvision",
        "numpy",
        "pillow",
        "safetensors",
        "timm",
        "open_clip_torch",
    ),
    *(
        "transformers",
        "flash-attn",
        "xformers",
        "apex",
        "liger-kernel",
        "scikit-learn",
        "tensorboard",
    ),
)
OPS = (
    *("patchify", "embed_tokens", "add_layer_norm", "bias_gelu", "masked_gather", "gemm"),
    *("layer_norm_project", "negative_cosine", "masked_cosine_head", "adamw"),
)
HEAD_DIM = 64  # the head size for which attention backends are listed


def diagnose() -> dict[str, Any]:
    """Everything the report shows, fit for JSON."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    return {
        "eva_fast": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpp_kernels": native.available(),
        "libjpeg_turbo": jpeg.available(),
        "packages": {name: _version(name) for name in PACKAGES},
        "ops": {op: dispatch.implementation(op, device.type) for op in OPS},
        "attention": attention_choice.backends(HEAD_DIM, dtype, device),
        "measured": kept_choices(),
    }


def _version(package: str) -> str | None:
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    if package == "apex" and importlib.util.find_spec("apex.normalization") is None:
        return None  # the package of that name on PyPI is something else than NVIDIA's
    return found


def render(report: dict[str, Any]) -> Group:
    """The report as tables."""
    machine = Table(title="Machine", show_header=False)
    for name in ("eva_fast", "python", "machine", "device", "cpu_capability", "threads"):
        machine.add_row(name, str(report[name]))
    cpp = "built" if report["cpp_kernels"] else (
        "not built: plain PyTorch runs instead. With a C++ compiler (apt install g++) install again"
    )  # fmt: skip
    machine.add_row("C++ kernels", cpp)
    turbo = "libjpeg-turbo, only where the crop needs it" if report["libjpeg_turbo"] else (
        "Pillow, slower. With libjpeg-turbo's headers (apt install libjpeg-dev) install again"
    )  # fmt: skip
    machine.add_row("JPEG decoding", turbo)

    packages = Table(title="Libraries")
    packages.add_column("package")
    packages.add_column("version")
    for name, version in report["packages"].items():
        packages.add_row(name, version or "[dim]not installed[/dim]")

    ops = Table(title="Ops: what runs unless a run measures otherwise")
    ops.add_column("op")
    ops.add_column("implementation")
    for op, kind in report["ops"].items():
        ops.add_row(op, kind)

    attention = Table(title=f"Attention backends, head size {HEAD_DIM}, in order of preference")
    attention.add_column("backend")
    attention.add_column("runs here")
    for name, obstacle in report["attention"].items():
        attention.add_row(name, "yes" if obstacle is None else f"[dim]no: it {obstacle}[/dim]")
    return Group(machine, packages, ops, attention, *map(_measured, report["measured"][:8]))


def _measured(entry: dict[str, Any]) -> Table:
    table = Table(title="Measured choice, milliseconds", caption=entry["file"])
    kinds = sorted({kind for e in entry["choices"].values() for kind in e["milliseconds"]})
    table.add_column("op")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for op, found in entry["choices"].items():
        cells = []
        for kind in kinds:
            ms = found["milliseconds"].get(kind)
            text = "" if ms is None else f"{ms:.2f}"
            cells.append(f"[bold]{text}[/bold]" if kind == found["kind"] else text)
        table.add_row(op, *cells)
    return table

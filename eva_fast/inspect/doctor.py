"""`eva-fast doctor`: what is installed, which kernels run, and why."""

import importlib.metadata
import importlib.util
import platform
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Group
from rich.table import Table

from eva_fast import native
from eva_fast.data.decode import jpeg
from eva_fast.ops import choose, kept, registry
from eva_fast.version import __version__

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


def diagnose(all_measured: bool = False) -> dict[str, Any]:
    """Everything the report shows, fit for JSON. all_measured: every choice of kernels on disk, not the
    newest alone; `measured_kept` says how many there are."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    case = registry.Case(device, torch.bfloat16 if cuda else torch.float32)
    measured = kept.everything()
    return {
        "eva_fast": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpp_kernels": native.available(),
        "cpp_obstacle": native.obstacle(),
        "libjpeg_turbo": jpeg.available(),
        "packages": {name: _version(name) for name in PACKAGES},
        "ops": {op.name: choose.implementation(op.name, device.type) for op in registry.ops()},
        "obstacles": {op.name: op.obstacles(case) for op in registry.ops()},
        "measured": [
            {"file": str(path), "choices": {op: asdict(c) for op, c in choices.items()}}
            for path, choices in (measured if all_measured else measured[:1])
        ],
        "measured_kept": len(measured),
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
    obstacle = report["cpp_obstacle"]
    cpp = "built" if obstacle is None else f"plain PyTorch runs instead: the library {obstacle}"
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
    for heading in ("op", "implementation", "could run too"):
        ops.add_column(heading)
    for op, chosen in report["ops"].items():
        others = [n for n, why in report["obstacles"][op].items() if why is None and n != chosen]
        ops.add_row(op, chosen, ", ".join(others))

    absent = Table(title="What cannot run here")
    for heading in ("implementation", "because it", "of"):
        absent.add_column(heading)
    for (name, why), of in _cannot_run(report["obstacles"]).items():
        absent.add_row(name, why, ", ".join(of))
    more = report["measured_kept"] - len(report["measured"])
    hint = [f"{more} older measured choices are kept: eva-fast doctor --all"] if more else []
    return Group(machine, packages, ops, absent, *map(_measured, report["measured"]), *hint)


def _cannot_run(obstacles: dict[str, dict[str, str | None]]) -> dict[tuple[str, str], list[str]]:
    """{(implementation, why): ops}; a backward that shares its forward's fate is not named."""
    found: dict[tuple[str, str], list[str]] = {}
    for op, by_name in obstacles.items():
        for name, why in by_name.items():
            of = found.setdefault((name, why), []) if why is not None else None
            if of is not None and op.removesuffix("_backward") not in of:
                of.append(op)
    return found


def _measured(entry: dict[str, Any]) -> Table:
    table = Table(title="Measured choice, milliseconds", caption=entry["file"])
    names = sorted({name for e in entry["choices"].values() for name in e["milliseconds"]})
    table.add_column("op")
    for name in names:
        table.add_column(name, justify="right")
    for op, found in entry["choices"].items():
        cells = []
        for name in names:
            ms = found["milliseconds"].get(name)
            text = "" if ms is None else f"{ms:.2f}"
            cells.append(f"[bold]{text}[/bold]" if name == found["implementation"] else text)
        table.add_row(op, *cells)
    return table

"""`eva-fast profile`: some steps of a real run, timed plainly, then watched by torch.profiler.

The run is `pretrain` itself, with its loader, teacher and optimiser, which calls after each step.
The first steps warm up, the next are timed with nothing attached (images/s, waiting for data, MFU),
the last ones run under the profiler (trace, top operators, memory).
"""

import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.table import Table

from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.files import atomic_write, fresh_folder, writing_to
from eva_fast.inspect.traced import (
    TopOperator,
    device_seconds,
    draw_memory,
    memory_events,
    top_operators,
)

TRACE, MEMORY, SUMMARY = "trace.json", "memory.png", "profile.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileResult:
    """What was seen. All of it is measured; MFU divides by a measured peak."""

    folder: Path
    device: str
    batch: int
    steps: int
    """Timed steps."""
    step_seconds: float
    """Mean of the timed steps."""
    images_per_second: float
    data_wait: float
    """Share of the time that the loop waited for the loader."""
    host_seconds: float
    """What a timed step took the host to make; on a CPU the step itself."""
    device_seconds: float | None
    """What the device's kernels took in a profiled step, one after the other; None on a CPU."""
    mfu: float
    """The student's arithmetic a second over the device's measured matrix product rate."""
    peak_flops: float
    """That rate."""
    peak_bytes: int
    """Most tensor memory that the profiled steps held beyond what was there before them."""
    top: tuple[TopOperator, ...]
    trace: Path
    """Chrome trace: chrome://tracing or ui.perfetto.dev."""
    memory: Path | None
    """PNG of memory over time; None where matplotlib is not installed."""


class _Marks:
    """Notes the end of every step and switches the profiler on and off."""

    def __init__(self, device: torch.device, warm: int, timed: int, watched: int):
        self.device = device
        self.warm, self.watch_from, self.last = warm, warm + timed, warm + timed + watched
        self.started = self.stopped = 0.0
        self.profiler: Any = None

    def __call__(self, done: int) -> None:
        """Called with the number of finished steps."""
        if done == self.warm:
            self._wait()
            self.started = time.perf_counter()
        if done == self.watch_from:
            self._wait()
            self.stopped = time.perf_counter()
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.profiler = torch.profiler.profile(
                activities=activities, profile_memory=True, acc_events=True
            )
            self.profiler.start()
        if done == self.last:
            self._wait()
            self.profiler.stop()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def profile(
    config: Config, *, steps: int = 10, warmup: int = 3, watched: int = 3, out: Path | None = None
) -> ProfileResult:
    """Profiles a run of this configuration.

    Args:
        config: as for `pretrain`; its length, checkpoints and pictures are ignored.
        steps: steps timed without a profiler.
        warmup: steps before them: compiling, choosing kernels, filling the loader; on a GPU at least
            those after which the step is a CUDA graph or not.
        watched: steps under the profiler after them.
        out: folder for trace, memory picture and summary; by default runs/profile-TIME.

    Returns a ProfileResult; the folder holds `trace.json`, `memory.png` and `profile.json`.
    ValueError for counts below 1 or an output folder that holds a profile already.
    """
    for name, value in (("steps", steps), ("warmup", warmup), ("watched", watched)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    # The profiler's library reports each start and stop on stderr otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    folder = _make_folder(out)

    from eva_fast.recipes.pretrain import run
    from eva_fast.train.captured import SETTLED
    from eva_fast.train.resolve import device_and_dtype

    device, _ = device_and_dtype(config)
    if device.type == "cuda" and config.run.graph != "off":
        warmup = max(warmup, SETTLED)
    marks = _Marks(device, warmup, steps, watched)
    scratch = Path(tempfile.mkdtemp(prefix="eva-fast-profile-"))
    try:
        result = run(_shortened(config, warmup + steps + watched, scratch / "run"), on_step=marks)
        waits, host = _means(scratch / "run" / "metrics.jsonl", warmup, steps)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

    marks.profiler.export_chrome_trace(str(folder / TRACE))
    events = memory_events(marks.profiler, device)
    drawn = draw_memory(events, folder / MEMORY, device)
    own = device_seconds(marks.profiler, device, watched)
    times = waits, host, own
    found = _summarise(config, result, marks, device, times, folder, drawn, events, steps)
    data = {**asdict(found), "folder": None, "trace": TRACE, "memory": drawn and MEMORY}
    with atomic_write(folder / SUMMARY) as draft:
        draft.write_text(json.dumps(data, indent=1) + "\n")
    return found


def _make_folder(out: Path | None) -> Path:
    if out is None:
        made_up = Path("runs") / f"profile-{time.strftime('%Y%m%d-%H%M%S')}"
        with writing_to(made_up):
            return fresh_folder(made_up)
    if (out / SUMMARY).exists():
        raise UsageError(f"{out} already holds a profile; choose another out")
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def _shortened(config: Config, steps: int, folder: Path) -> Config:
    """The same run, a few steps long, into a scratch folder, a metrics line every step."""
    optim = replace(config.optim, steps=steps, epochs=None)
    quiet = replace(
        config.run,
        out=folder,
        resume="never",
        checkpoint_every=None,
        checkpoint_minutes=0,
        picture_every=None,
        log_every=1,
        track="none",
        progress=False,
    )
    return replace(config, optim=optim, run=quiet)


def _means(metrics: Path, warmup: int, steps: int) -> tuple[float, float]:
    """Of the timed steps: mean share spent waiting for data, mean seconds that the host made them."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    timed = [line for line in lines if warmup < line["step"] <= warmup + steps]
    count = max(len(timed), 1)
    return (
        sum(line["data_wait"] for line in timed) / count,
        sum(line["host_ms"] for line in timed) / 1e3 / count,
    )


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the quickest of a few large matrix products in this dtype on this device."""
    from eva_fast.planning.cpu import measure_cpu

    if device.type == "cpu":
        return max(measure_cpu(torch.get_num_threads(), dtype).peak_flops.values())
    side, best = 8192, float("inf")
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(8):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        torch.mm(a, b)
        after.record()
        after.synchronize()
        best = min(best, before.elapsed_time(after) / 1e3)
    return 2 * side**3 / best


def _summarise(
    config: Config,
    result: Any,
    marks: _Marks,
    device: torch.device,
    times: tuple[float, float, float | None],
    folder: Path,
    drawn: Path | None,
    events: list[tuple[int, int]],
    steps: int,
) -> ProfileResult:
    from eva_fast.planning.run import PlannedRun
    from eva_fast.train.resolve import setting_of

    batch, (waits, host, own) = config.optim.batch_size, times
    seconds = (marks.stopped - marks.started) / steps
    dtype = setting_of(config).compute_dtype
    peak = measured_peak(device, dtype)
    flops = PlannedRun.of(config, dtype, device.type).count(batch).needed_flops
    return ProfileResult(
        folder=folder,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        batch=batch,
        steps=steps,
        step_seconds=seconds,
        images_per_second=batch / seconds,
        data_wait=waits,
        host_seconds=host,
        device_seconds=own,
        mfu=flops / seconds / peak,
        peak_flops=peak,
        peak_bytes=max((level for _, level in events), default=0),
        top=top_operators(marks.profiler, device),
        trace=folder / TRACE,
        memory=drawn,
    )


def render(result: ProfileResult) -> Group:
    """The result as something rich can print."""
    table = Table(title="top operators of the profiled steps, own time (measured)")
    table.add_column("operator")
    for name in ("calls", "ms", "share"):
        table.add_column(name, justify="right")
    for op in result.top:
        table.add_row(op.name, str(op.calls), f"{op.seconds * 1e3:.1f}", f"{op.share:.1%}")
    own = result.device_seconds
    device = "the same" if own is None else f"{own * 1e3:.1f} ms"
    lines = [
        f"{result.device}, batch {result.batch}, {result.steps} timed steps: "
        f"{result.step_seconds * 1e3:.1f} ms a step, {result.images_per_second:.1f} images/s",
        f"host {result.host_seconds * 1e3:.1f} ms a step, device {device}",
        f"waiting for data {result.data_wait:.1%}; MFU {result.mfu:.1%} of a measured "
        f"{result.peak_flops / 1e12:.3g} TFLOP/s; peak {result.peak_bytes / 1e6:.0f} MB above "
        "the start of the profiled steps",
    ]
    places = [f"trace {result.trace}", *([f"memory {result.memory}"] if result.memory else [])]
    return Group(*lines, table, *places)


def to_text(result: ProfileResult, width: int = 110) -> str:
    """The result as plain text."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(render(result))
    return capture.get()

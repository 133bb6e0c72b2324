"""Plots of a session's findings: `python -m bench.session.plots FOLDER`, in a process of its own, so
that drawing never holds up a stage."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.session.notes import read
from bench.session.report import machine_of, of_kind
from bench.session.runner import ROOT


class Pictures:
    """Draws beside whatever runs: one process at a time, ended with the block."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def draw(self, out: Path) -> None:
        """Begins to draw, unless a drawing is still being made."""
        if self.process is None or self.process.poll() is not None:
            words = [sys.executable, "-m", "bench.session.plots", str(out)]
            with (out / "logs" / "plots.txt").open("ab") as log:
                self.process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log)

    def finish(self, out: Path, seconds: float) -> None:
        """Draws the last time, if that can be done in `seconds`."""
        self.close()
        self.draw(out)
        assert self.process is not None
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.close()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def draw(out: Path) -> list[Path]:
    """Draws what the findings allow; the files."""
    from eva_fast.evaluation.figures import pyplot

    plt, machine, findings = pyplot(), machine_of(out), read(out)
    drawn = []
    for name, make in (("steps", _steps), ("attention", _attention), ("ops", _ops)):
        figure = make(plt, findings)
        if figure is not None:
            figure.suptitle(machine.get("device", ""), fontsize=9)
            figure.tight_layout()
            drawn.append(out / f"{machine['slug']}-{name}.png")
            figure.savefig(drawn[-1], metadata={"Software": None})
            plt.close(figure)
    return drawn


def _bars(plt: Any, rows: list[tuple[str, float]], label: str) -> Any:
    """Horizontal bars; the rows of eva_fast stand out."""
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.22 * len(rows)))
    ours = ("eva_fast", "eva_fast captured", "triton", "native")
    colors = ["#D55E00" if name.endswith(ours) else "#7f7f7f" for name, _ in rows]
    axes.barh(range(len(rows)), [value for _, value in rows], color=colors)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels([name for name, _ in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return figure


def _steps(plt: Any, findings: list[dict]) -> Any:
    rows = [
        (f"{f['model']} b{f['batch']} {f['variant']}", f["images_per_second"])
        for f in of_kind(findings, "step")
        if "images_per_second" in f
    ]
    return _bars(plt, rows, "images/s")


def _attention(plt: Any, findings: list[dict]) -> Any:
    rows = [
        (f"{'x'.join(map(str, f['shape']))} {f['dtype']} {f['implementation']}",
         f["forward_us"] + f["backward_us"])
        for f in of_kind(findings, "attention")
    ]  # fmt: skip
    return _bars(plt, rows, "forward and backward, us on the device")


def _ops(plt: Any, findings: list[dict]) -> Any:
    rows = []
    for f in of_kind(findings, "op"):
        ours = f["variants"].get("eva_fast")
        others = [v["device_us"] for n, v in f["variants"].items() if n != "eva_fast"]
        if ours and others:
            name = f"{f['op']} {f['mode']} eva_fast"
            rows.append((name, min(others) / ours["device_us"]))
    return _bars(plt, rows, "times faster than the best other variant, on the device")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))

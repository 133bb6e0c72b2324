"""What users of the official script look for in `--output_dir`, beside what eva_fast's run writes there.

log.txt             a JSON object an epoch, under the official names
checkpoint-N.pth    the student's weights after epoch N, {"model": state dict} in official naming

Both are made of what the run has written, `metrics.jsonl` and its checkpoints, so that one that goes on
makes them whole. Not written: `train_loss_scale` and `test_loss`, the optimiser's state (the run's own
checkpoints hold it), DeepSpeed's folders.
"""

import functools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_fast.errors import UsageError
from eva_fast.files import RUN_ENVIRONMENT, atomic_write, is_run
from eva_fast.world import ALONE, joined

if TYPE_CHECKING:
    from eva_fast.config import Config
    from eva_fast.train import RunLength
    from eva_fast.train.config import OptimConfig

log = logging.getLogger(__name__)
LOG = "log.txt"
MEANS = {"train_loss": "loss", "train_all_loss_mean": "loss", "train_grad_norm": "grad_norm"}
"""Official names and those of `metrics.jsonl`."""


def check_folder(out: Path) -> None:
    """UsageError where the folder holds what the official script wrote: its runs do not go on here, and
    its files would be written over."""
    if out.is_dir() and not is_run(str(out)):
        for found in sorted([*out.glob("checkpoint-*"), *out.glob(LOG)]):
            raise UsageError(
                f"--output_dir {out} holds {found.name} of another program, whose runs eva_fast does "
                "not go on with: give another --output_dir; --finetune FILE begins with such weights"
            )


class Outputs:
    """Writes both files of one run, from the process that writes what is written once."""

    def __init__(self, out: Path, config: "Config", length: "RunLength"):
        """length: of the run; each of its epochs ends at a multiple of its steps."""
        self.out, self.config, self.length = out, config, length
        self.every = config.run.checkpoint_every or length.total
        self.epochs = 0

    def on_step(self, step: int) -> None:
        """After each step, before its log point."""
        told = (step - 1) // self.config.run.log_every * self.config.run.log_every
        if told // self.length.steps_per_epoch > self.epochs:
            self.epochs = told // self.length.steps_per_epoch
            self._log()
        self._weights()

    def finish(self) -> None:
        """After the run, or where it stopped."""
        self._log()
        self._weights()

    def _log(self) -> None:
        lines = (json.dumps(line) + "\n" for line in epochs(self.out, self.config, self.length))
        with atomic_write(self.out / LOG) as draft:
            draft.write_text("".join(lines))

    def _weights(self) -> None:
        """Those of each checkpoint at the end of an epoch, of which few are there. A file that cannot
        be written is told of, and the run goes on."""
        from torch.random import fork_rng

        from eva_fast.recipes.export import export
        from eva_fast.train import checkpoint

        for folder in checkpoint.steps_in(self.out / "checkpoints"):
            step = int(folder.name.removeprefix("step_"))
            path = self.out / f"checkpoint-{step // self.length.steps_per_epoch - 1}.pth"
            if (step % self.every and step != self.length.total) or path.exists():
                continue
            try:
                # The other processes read nothing here, and what an empty student is made of is none
                # of the run's draws.
                with joined(ALONE), fork_rng(devices=[]):
                    export(folder, path, format="official")
            except (UsageError, OSError) as error:
                log.error("%s was not written: %s", path, error)


def epochs(out: Path, config: "Config", length: "RunLength") -> Iterator[dict[str, Any]]:
    """The lines of log.txt: those epochs of which `metrics.jsonl` tells all. Means are over steps; the
    window of a log point that reaches into two epochs counts for each by its share."""
    windows = _windows(out / "metrics.jsonl")
    parameters = json.loads((out / RUN_ENVIRONMENT).read_text())["parameters"]
    optim, steps = config.optim, length.steps_per_epoch
    last = windows[-1][1] if windows else 0
    for epoch in range(last // steps):
        begin, end = epoch * steps, (epoch + 1) * steps
        rate = mean_rate(length, optim, epoch)
        means = {name: _mean(windows, key, begin, end) for name, key in MEANS.items()}
        yield {
            "train_lr": rate,
            "train_min_lr": rate,
            **{name: value for name, value in means.items() if value is not None},
            "train_weight_decay": optim.weight_decay,
            "train_momentum": optim.betas[1],
            "epoch": epoch,
            "n_parameters": parameters,
        }


@functools.cache
def mean_rate(length: "RunLength", optim: "OptimConfig", epoch: int) -> float:
    """The learning rate over the steps of an epoch."""
    steps = range(epoch * length.steps_per_epoch, (epoch + 1) * length.steps_per_epoch)
    return sum(length.rate(step, optim) for step in steps) / len(steps)


Window = tuple[int, int, dict[str, Any]]
"""First step, the one behind the last, and means over them."""


def _windows(metrics: Path) -> list[Window]:
    """The log points in order; of steps that a run took again after going back, the later ones."""
    found: list[Window] = []
    for text in metrics.read_text().splitlines():
        line = json.loads(text)
        while found and found[-1][1] >= line["step"]:
            found.pop()
        found.append((found[-1][1] if found else 0, line["step"], line))
    return found


def _mean(windows: list[Window], key: str, begin: int, end: int) -> float | None:
    total = weight = 0.0
    for first, last, line in windows:
        share = min(last, end) - max(first, begin)
        if share > 0 and line.get(key) is not None:
            total, weight = total + share * line[key], weight + share
    return total / weight if weight else None

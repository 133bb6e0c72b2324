"""Probes in a run: its student's features scored on labelled images every so many steps."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from eva_fast.config import Config
from eva_fast.data.decode.formats import reading_arrays
from eva_fast.device import undisturbed
from eva_fast.errors import RunError, UsageError, first_line
from eva_fast.evaluation.compare import compare
from eva_fast.evaluation.evaluator import check_probes
from eva_fast.evaluation.features import check_readable, student_features
from eva_fast.evaluation.figures import pyplot
from eva_fast.evaluation.probes import PROBES
from eva_fast.evaluation.result import Scores
from eva_fast.evaluation.splits import known_labels, open_labelled, split
from eva_fast.files import atomic_write
from eva_fast.train.callbacks import Callback, Training
from eva_fast.train.telemetry import keep_until

log = logging.getLogger(__name__)
FILE, FIGURE = "probes.jsonl", "probes.png"
TIMES = 10
"""Probes of a run that does not say how often."""


class Probing(Callback):
    """Scores the student as it is, with `eva-fast eval`'s probes: a line of `probes.jsonl` each time,
    a figure of all of them at the end.

    The run waits meanwhile; its numbers are the same with and without. UsageError where the images have
    no classes. Images that cannot be read later end no run: the line of that probe has `error` in place
    of scores, and the next probe tries again.
    """

    def __init__(self, config: Config):
        asked = config.probes
        self.data = str(asked.probe_data)
        self.probes = check_probes(asked.probe_with)
        self.every = asked.probe_every
        self.megapixels = config.data.max_megapixels
        self.bands = None if config.data.channels == 3 else config.data.statistics
        with reading_arrays(self.bands is not None):
            self.sources = open_labelled(self.data)
        self.labels = known_labels(self.sources)
        if self.labels is not None:
            split(self.labels, self.data)  # what is wrong with them is told before any work
        self._failed = False
        with undisturbed(torch.device("cpu")):
            check_readable(self.sources, f"probe_data {self.data}", self.megapixels, self.bands)

    def on_start(self, training: Training) -> None:
        if training.first:
            keep_until(training.out / FILE, training.step)

    def on_step(self, training: Training) -> None:
        every = self.every or max(1, training.total // TIMES)
        if training.step % every and training.step != training.total:
            return
        student = training.student()
        if training.first:
            self._probe(training, student)

    def _probe(self, training: Training, student: Any) -> None:
        start = time.monotonic()
        try:
            scores = self._scores(student)
        except (UsageError, RunError, OSError) as error:
            found: dict[str, Any] = {"error": first_line(error)}
            if not self._failed:
                log.warning(
                    "the probe at step %d failed: %s. The run goes on, and so do its next probes; %s "
                    "says which failed", training.step, found["error"], FILE,
                )  # fmt: skip
        else:
            found = scores.to_dict()
            del found["features"]
            log.info("probe at step %d: %s", training.step, scores.sentence())
        self._failed = "error" in found
        seconds = round(time.monotonic() - start, 1)
        with (training.out / FILE).open("a") as file:
            file.write(json.dumps({"step": training.step, **found, "seconds": seconds}) + "\n")

    def _scores(self, student: Any) -> Scores:
        was_training = student.training
        device = next(student.parameters()).device
        try:
            with undisturbed(device):
                return compare(
                    {"student": student_features(student.eval())}, self.sources, self.labels,
                    self.data, self.probes, size=student.sizes.img_size, device=device,
                    max_megapixels=self.megapixels, bands=self.bands,
                ).rows[0]  # fmt: skip
        finally:
            student.train(was_training)

    def on_end(self, training: Training, stopped_by: str | None) -> None:
        if training.first and any("error" not in line for line in lines_of(training.out)):
            try:
                draw(training.out)
            except UsageError as error:  # the scores are there without
                log.warning("no %s: %s", FIGURE, error)


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The lines of `probes.jsonl` of a run; [] where it has none."""
    file = run / FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def probing(config: Config) -> tuple[Callback, ...]:
    """The callback that a configuration asks for, if it does."""
    return () if config.probes.probe_data is None else (Probing(config),)


def draw(run: Path) -> None:
    """`probes.png` of a run: its scores over steps, with their standard errors. UsageError where
    matplotlib is not installed."""
    plt = pyplot()
    lines = lines_of(run)
    figure, axes = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    for probe in PROBES:
        points = [line for line in lines if probe in line]
        if points:
            axes.errorbar(
                [p["step"] for p in points], [p[probe] for p in points],
                [p[f"{probe}_error"] for p in points], marker="o", markersize=3, capsize=2,
                label={"knn": "k-NN", "linear": "linear"}[probe],
            )  # fmt: skip
    axes.set(xlabel="step", ylabel="accuracy %")
    axes.legend()
    with atomic_write(run / FIGURE) as draft:
        figure.savefig(draft, format="png")
    plt.close(figure)


__all__ = ["Probing", "draw", "lines_of", "probing"]

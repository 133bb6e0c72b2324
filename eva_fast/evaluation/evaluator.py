"""`evaluate()`: the figures of `eva-fast eval`."""

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eva_fast.data.config import DataConfig
from eva_fast.data.decode.formats import reading_arrays
from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.device import choose_device
from eva_fast.errors import UsageError
from eva_fast.evaluation.compare import compare
from eva_fast.evaluation.features import (
    PIXELS,
    Extractor,
    check_readable,
    pixel_features,
    student_features,
)
from eva_fast.evaluation.probes import PROBES, require_sklearn
from eva_fast.evaluation.result import Evaluation
from eva_fast.evaluation.splits import known_labels, open_labelled, split
from eva_fast.evaluation.students import (
    Student,
    find_weights,
    load_student,
    prepared_as,
    run_config,
    untrained,
)
from eva_fast.evaluation.verdict import RANDOM, verdicts
from eva_fast.files import atomic_write, writing_to
from eva_fast.keywords import AnyPath
from eva_fast.objectives.request import see_channels
from eva_fast.options import user_path
from eva_fast.teachers import load_teacher

log = logging.getLogger(__name__)
OWN = "own"


def evaluate(
    run_or_weights: AnyPath,
    data: Any = "builtin",
    probe: str | Sequence[str] = ("knn", "linear"),
    teacher: Any = OWN,
    *,
    out: AnyPath | None = None,
    device: str = "auto",
    batch_size: int = 64,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Evaluation:
    """Probes a student's mean patch features, beside random init, 8x8 pixels and the teacher.

    The images are the largest centred square, resized to the student's input; no mask. A student's
    feature is the mean of its patch tokens after the final norm, a teacher's the mean of its patch
    features at the student's grid.

    Args:
        run_or_weights: folder of a run, or a weight file in official or timm naming.
        data: "builtin", a folder with a folder a class (a fixed quarter is for validation), or one
            with train/ and val/ of such; or any source whose items have labels.
        probe: of "knn" (cosine, k=5, T=0.07) and "linear" (logistic regression), a list or with a
            comma between.
        teacher: teacher to compare with, as for `load_teacher`, or a teacher module; "own" for the
            run's, "none" for none.
        out: JSON file for the result; by default eval.json in the run's folder, or
            NAME.eval.json beside a file NAME.
        device: "cpu", "cuda" or "auto".
        batch_size: images at a time.
        max_megapixels: images of more million pixels are left out.

    Returns:
        Evaluation: a row of scores for each kind of features, the student's first, the sentences
        that come of them, and what was measured on. Written as JSON too.

    Raises:
        ValueError, FileNotFoundError: unknown probe, no run, no labels, one class only, a teacher
            that cannot be loaded, scikit-learn missing.
    """
    start = time.perf_counter()
    probes = check_probes(probe)
    weights = find_weights(run_or_weights)
    file = _beside(run_or_weights, weights) if out is None else user_path(out)
    if file.is_dir():
        raise UsageError(f"out={str(file)!r} is a folder, and the result is a file: name one in it")
    where = choose_device(device)
    prepared = prepared_as(run_config(weights))
    bands = None if prepared.channels == 3 else prepared.statistics
    with reading_arrays(bands is not None):
        sources = open_labelled(data)
        labels = known_labels(sources)
        if labels is not None:
            split(labels, data)  # what is wrong with them is told before any work
        if bands is not None:
            check_readable(sources, str(data), max_megapixels, bands)
        student = load_student(weights, where)
        found = compare(
            _extractors(student, teacher, weights, prepared, where), sources, labels, data, probes,
            size=student.sizes.img_size, device=where, batch_size=batch_size,
            max_megapixels=max_megapixels,
            bands=bands,
        )  # fmt: skip
    result = Evaluation(
        classes=found.classes,
        train=found.train,
        val=found.val,
        majority=found.majority,
        rows=found.rows,
        weights=weights,
        data=str(data),
        sizes=asdict(student.sizes),
        probes=probes,
        verdicts=tuple(verdicts(found.rows, probes)),
        seconds=round(time.perf_counter() - start, 1),
    )
    _write(file, result.to_dict())
    return result


def _extractors(
    student: Student, teacher: Any, weights: Path, prepared: DataConfig, where: torch.device
) -> dict[str, Extractor]:
    """The student and what it is compared with."""
    channels = getattr(student.sizes, "channels", 3)
    if channels != prepared.channels:
        raise UsageError(
            f"{weights} is of images with {channels} channels, and no config.yaml beside it says how "
            "they are prepared: evaluate the run's folder"
        )
    extractors: dict[str, Extractor] = {
        "student": student_features(student),
        RANDOM: student_features(untrained(student, where)),
        f"{PIXELS}x{PIXELS} pixels": pixel_features,
    }
    config = run_config(weights)
    judge = _open_teacher(teacher, config, student.grid, where)
    if judge is not None:
        see_channels(judge, prepared, config.get("teacher_channels"))
        name = _short(getattr(judge, "name", type(judge).__name__))
        extractors[f"teacher {name}"] = lambda images: judge(images).mean(1)
    return extractors


def _beside(asked: AnyPath, weights: Path) -> Path:
    """Files that were named themselves may lie beside others, and each has a result of its own."""
    bare = Path(asked).name == weights.name
    return weights.with_name(f"{weights.name}.eval.json" if bare else "eval.json")


def check_probes(probes: str | Sequence[str]) -> tuple[str, ...]:
    """The probes of those names. UsageError for an unknown one, or one that needs what is not here."""
    given = [probes] if isinstance(probes, str) else probes
    parts = (part.strip() for name in given for part in name.split(","))
    names = tuple(dict.fromkeys(part for part in parts if part))
    unknown = [name for name in names if name not in PROBES]
    if unknown or not names:
        what = f"unknown probe {unknown[0]!r}" if unknown else "no probe is named"
        raise UsageError(f"{what}; possible are {', '.join(PROBES)}")
    if "linear" in names:
        require_sklearn()
    return names


def _short(name: str) -> str:
    """A teacher's name without the folders of its file."""
    scheme, colon, file = name.rpartition(":")
    return f"{scheme}{colon}{Path(file).name}" if os.path.exists(file) else name


def _open_teacher(
    teacher: Any, config: dict[str, Any], grid: tuple[int, int], device: torch.device
) -> nn.Module | None:
    """The teacher to compare with. One that was asked for must load; the run's own may be gone."""
    if isinstance(teacher, nn.Module) or teacher == "none":
        return teacher if isinstance(teacher, nn.Module) else None
    own = teacher in (None, OWN)
    name = config.get("teacher") if own else teacher
    if name is None:
        return None
    try:
        found = load_teacher(name, grid=grid, device=str(device))
        if "code" in found.points:
            raise UsageError(f"teacher {name} is a tokenizer: codes are no features to probe")
        return found
    except (UsageError, OSError) as error:
        if not own:
            raise
        log.warning("without the run's teacher %s: %s", name, error)
        return None


def _write(path: Path, result: dict[str, Any]) -> None:
    with writing_to(path), atomic_write(path) as draft:
        draft.write_text(json.dumps(result, indent=1) + "\n")
    log.info("wrote %s", path)

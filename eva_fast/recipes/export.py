"""`eva-fast export`: weights of a run, finished or not, as one file that other libraries load."""

from pathlib import Path

import torch

from eva_fast.errors import MissingFileError
from eva_fast.evaluate.students import WEIGHTS, find_weights, load_checkpoint, load_student
from eva_fast.files import writing_to
from eva_fast.train import checkpoint
from eva_fast.weights import write_student

CPU = torch.device("cpu")


def export_weights(source: Path | str, out: Path | str) -> Path:
    """Writes weights in official naming (float32 safetensors) and returns the file.

    Args:
        source: a weights file, a run's folder (its final weights, or those of its newest whole
            checkpoint if it has not ended), one checkpoint, or another library's folder.
        out: the file to write.

    Raises FileNotFoundError where there is nothing to export, ValueError for a damaged checkpoint
    or a place that cannot be written to.
    """
    source = Path(source)
    folder = source if (source / checkpoint.STATE).is_file() else None
    unfinished = source / "checkpoints"
    if folder is None and unfinished.is_dir() and not (source / WEIGHTS).is_file():
        folder = checkpoint.newest(unfinished)
        if folder is None:
            raise MissingFileError(f"{source} holds neither final weights nor a whole checkpoint")
    if folder is None:
        model = load_student(find_weights(source), CPU)
    else:
        model = load_checkpoint(folder, CPU)
    with writing_to(out):
        return write_student(model, out)

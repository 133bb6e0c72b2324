"""`eva-fast export`: weights of a run, finished or not, as one file that other libraries load."""

from pathlib import Path

import torch

from eva_fast.errors import MissingFileError, UsageError
from eva_fast.evaluate.students import find_weights, load_student
from eva_fast.model import create_model, sizes_of
from eva_fast.model.export import save_weights
from eva_fast.train import checkpoint

_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden")


def export_weights(source: Path | str, out: Path | str) -> Path:
    """Writes weights in official naming (float32 safetensors) and returns the file.

    Args:
        source: a weights file, a run's folder (its final weights, or those of its newest whole
            checkpoint if it has not ended), or one checkpoint.
        out: the file to write.

    Raises FileNotFoundError where there is nothing to export, ValueError for a damaged checkpoint.
    """
    source, out = Path(source), Path(out)
    folder = source if (source / checkpoint.STATE).is_file() else None
    if folder is None and source.is_dir() and not (source / "model.safetensors").is_file():
        folder = checkpoint.newest(source / "checkpoints")
        if folder is None:
            raise MissingFileError(f"{source} holds neither final weights nor a whole checkpoint")
    if folder is None:
        model = load_student(find_weights(source), torch.device("cpu"))
    else:
        model = _of_checkpoint(folder)
    save_weights(model, out)
    return out


def _of_checkpoint(folder: Path):
    """The student of a checkpoint. Its prediction width is the teacher's, known from the tensors."""
    fault = checkpoint.fault_of(folder)
    if fault is not None:
        raise UsageError(f"checkpoint {folder} is damaged: {fault}")
    options = checkpoint.read_state(folder)["options"]
    predict_dim = checkpoint.names_in(folder)["model.lm_head.weight"].size[0]
    chosen = {name: options[name] for name in _SIZES}
    sizes = sizes_of(options["model"], **chosen)
    model = create_model(**{name: getattr(sizes, name) for name in _SIZES}, predict_dim=predict_dim)
    tensors = {"model": model.state_dict()}
    checkpoint.load(folder, tensors)
    model.load_official(tensors["model"])
    return model

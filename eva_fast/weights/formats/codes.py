"""Tokenizers and students of their codes as other libraries load them."""

from pathlib import Path

from eva_fast.errors import UsageError
from eva_fast.model.vqkd import VqKd
from eva_fast.weights.codes import (
    CodeModel,
    float_tensors,
    timm_beit_arguments,
    timm_tensors,
    write_code_model,
)
from eva_fast.weights.formats.exported import TORCH_SUFFIXES, Exported
from eva_fast.weights.writer import write, write_torch


def export_codes(model: CodeModel, path: Path, format: str) -> Exported:
    """Writes a tokenizer or a student of its codes for BEiT v2's code ("official": as that saves it
    where the path ends in .pt or .pth), or the student's encoder for timm, as safetensors. UsageError
    for another format, and for timm in a .pt or .pth."""
    if format == "official":
        if path.suffix in TORCH_SUFFIXES:
            write_torch(path, {"model": float_tensors(model)})
            load = (
                f'import torch\n\nstate = torch.load({str(path)!r}, weights_only=True)["model"]\n'
            )
        else:
            write_code_model(model, path)
            load = f"from safetensors.torch import load_file\n\nstate = load_file({str(path)!r})\n"
        kind = "VQKD" if isinstance(model, VqKd) else "VisionTransformerForMaskedImageModelingCLS"
        return Exported(
            path, f"{load}model.load_state_dict(state, strict=False)  # BEiT v2's {kind}\n"
        )
    if format != "timm" or isinstance(model, VqKd):
        what = "a tokenizer is" if isinstance(model, VqKd) else "a student of tokens is"
        kinds = "official" if isinstance(model, VqKd) else "official or timm"
        raise UsageError(f"format {format} is of EVA's student; {what} written as {kinds}")
    if path.suffix in TORCH_SUFFIXES:
        raise UsageError(
            f"a student of tokens is written for timm as safetensors, not as {path.name}"
        )
    write(path, timm_tensors(model))
    arguments = ", ".join(f"{k}={v!r}" for k, v in timm_beit_arguments(model.sizes).items())
    return Exported(
        path,
        "from safetensors.torch import load_file\nfrom timm.models.beit import Beit\n\n"
        f"model = Beit({arguments}).eval()\nmodel.load_state_dict(load_file({str(path)!r}))\n"
        "# model.forward_features(images): all tokens after the last norm, [B,T,D], of images\n"
        "# normalised by ImageNet's mean and standard deviation\n",
    )

"""Weight files of every library: one reader, one writer, names and sizes brought to one's own.

    tensors = weights.read("ViT-L-14.pt")             # any file or folder, lazily, running nothing
    weights.write("out.safetensors", tensors)         # whole or not at all
    weights.naming.timm.EVA_POOLED.write(state)       # another library's names, and back
    weights.export(model, "timm.safetensors", "timm") # a student as another library loads it

`student.py` reads and writes students, `formats.py` writes them for others, `resize.py` fits weights
to other image and patch sizes, `hub.py` finds weights by name.
"""

from eva_fast.weights import naming
from eva_fast.weights.backbone import (
    holds_backbone,
    initialise_backbone,
    read_backbone,
    write_backbone,
)
from eva_fast.weights.codes import CODEBOOK, code_model, holds_codes, write_code_model
from eva_fast.weights.formats import FOLDERS, FORMATS, ChannelStatistics, Exported, export
from eva_fast.weights.formats.codes import export_codes
from eva_fast.weights.reader import Weights, read
from eva_fast.weights.resize import RESIZES, resize_patches, resize_positions
from eva_fast.weights.student import (
    fit,
    infer_sizes,
    initialise,
    initialise_encoder,
    read_student,
    write_student,
)
from eva_fast.weights.swin import (
    holds_swin,
    initialise_swin,
    read_swin_student,
    swin_sizes_in,
)
from eva_fast.weights.writer import write, write_torch

__all__ = [
    "CODEBOOK",
    "FOLDERS",
    "FORMATS",
    "RESIZES",
    "ChannelStatistics",
    "Exported",
    "Weights",
    "code_model",
    "export",
    "export_codes",
    "fit",
    "holds_backbone",
    "holds_codes",
    "holds_swin",
    "infer_sizes",
    "initialise",
    "initialise_backbone",
    "initialise_encoder",
    "initialise_swin",
    "naming",
    "read",
    "read_backbone",
    "read_student",
    "read_swin_student",
    "resize_patches",
    "resize_positions",
    "swin_sizes_in",
    "write",
    "write_backbone",
    "write_code_model",
    "write_student",
    "write_torch",
]

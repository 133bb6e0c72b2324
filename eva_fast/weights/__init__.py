"""Weight files of every library: one reader, one writer, names and sizes brought to one's own.

    tensors = weights.read("ViT-L-14.pt")             # any file or folder, lazily, running nothing
    weights.write("out.safetensors", tensors)         # whole or not at all
    weights.naming.timm.EVA_POOLED.write(state)       # another library's names, and back

`student.py` reads and writes students, `resize.py` fits weights to other image and patch sizes,
`hub.py` finds weights by name.
"""

from eva_fast.weights import naming
from eva_fast.weights.reader import Weights, read
from eva_fast.weights.resize import resize_patches, resize_positions
from eva_fast.weights.student import (
    infer_sizes,
    initialise,
    read_student,
    write_student,
)
from eva_fast.weights.writer import write

__all__ = [
    "Weights",
    "infer_sizes",
    "initialise",
    "naming",
    "read",
    "read_student",
    "resize_patches",
    "resize_positions",
    "write",
    "write_student",
]

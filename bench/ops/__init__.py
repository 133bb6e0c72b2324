"""One file an op, named as the op: `subject(shape, mode, kit)` builds its case."""

"""The C++ kernels of csrc/ops as implementations of the ops, one file an op; see `calls`."""

"""A CUDA device without a device: what the host does in a step can be timed and checked anywhere.

PyTorch's CUDA build and Triton's launcher run as they are; below them a library in place of the
CUDA runtime, driver and cuBLAS takes every launch and does nothing. Memory is the host's, copies
between host and device are done, kernels are not: what they would have written is 0 or what was
there. So values mean nothing; which calls are made, in what order and at what cost means all.
"""

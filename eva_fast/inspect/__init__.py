"""What is installed, what a run spends its time on, what compilers made of the kernels."""

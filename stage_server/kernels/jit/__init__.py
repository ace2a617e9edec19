"""The kernels themselves, in Triton's language; imported where one is launched, nowhere else."""

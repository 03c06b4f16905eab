"""Encoder blocks' own kernels for float32 on CPUs, compiled for the machine that they run on."""

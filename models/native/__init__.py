"""Encoder blocks' own kernels on CPUs, compiled for the machine that they run on."""

"""A stand-in for Horovod, of which IPU hosts use the PyTorch part."""

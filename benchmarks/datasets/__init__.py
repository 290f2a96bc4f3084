"""Kernels and features of whole data sets beside neural-tangents' and PyTorch's, in one run."""

"""Serving of exported kernels. Imports neither JAX nor what of `exporter` needs it."""

"""Answers asked for by many clients at once: python -m benchmarks.answers --help."""

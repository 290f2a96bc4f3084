"""Models of real size, from their file to their answers: `python -m benchmarks.real`."""

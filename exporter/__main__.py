"""`python -m exporter`: the same as the console script `ntk-export`."""

from exporter.main import run

run()

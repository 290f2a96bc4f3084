"""`python -m exporter`: the same as the console script `ntk-export`."""

from exporter.command.main import run

run()

"""The command stage: flags come in, a run of the stages goes out, shown line by line, with an exit code.

It alone knows absl, the terminal and signals.
"""

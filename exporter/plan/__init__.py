"""The plan stage: a functional model and a configuration come in, what to export and how goes out.

`planning` checks the one against the other, `choosing` measures what features and contractions take and decides blocks
and passes by the memory budget, `explanation` shows both to people. It alone knows how large programs may be. It uses
JAX, and neither TensorFlow graphs nor files.
"""

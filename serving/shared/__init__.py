"""What exports, servers and clients share: names of files, formats, flags, and the beginning of every command.

Nothing here imports TensorFlow or JAX before it is needed.
"""

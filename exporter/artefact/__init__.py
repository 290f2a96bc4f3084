"""The artefact stage: a module comes in, a published version of a SavedModel goes out, or nothing.

It is written beside the base directory with warmup requests and manifest (`writing`), verified where only TensorFlow
is (`verification`), and renamed into place under a lock (`versions`). It alone knows files of SavedModels.
"""

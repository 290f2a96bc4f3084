"""`ntk-bundle`: a model base directory comes in, what a deployment needs goes out beside its versions.

It alone knows containers, Kubernetes and TF Serving's configuration files; `batching` makes the row-wise model that a
server may batch.
"""

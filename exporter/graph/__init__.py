"""The graph stage: a plan and its schedule come in, a TensorFlow module that computes every signature goes out.

`lowering` makes JAX functions TensorFlow functions of one XlaCallModule each, `programs` says which of them a signature
needs, `serve_graph` is the TensorFlow around them for any number of examples, `kernel_module` names, checks and
keeps variables, and `building` makes it of a plan. It alone knows jax2tf.
"""

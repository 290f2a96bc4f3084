"""`ntk-serve`: flags come in, a running server goes out: tensorflow_model_server, a container of it, or our own."""

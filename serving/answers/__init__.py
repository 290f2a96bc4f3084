"""Answers that can be served: a reference set beside the network, and what its kernel says about new inputs.

Begun: `leave_one_out` and `classes` (the algebra), `targets` (what y and outputs are). The command is to come.
"""

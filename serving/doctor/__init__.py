"""`ntk-doctor`: a directory or an address comes in, a table of what is wrong goes out.

`saved_model` checks an export, `server` a running server, `results` compares with the reference that exports record.
"""

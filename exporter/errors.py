"""The error that a user sees: one message that says what was expected, what was received, and the cure."""


class ExportError(Exception):
    """An export cannot go on because of its input or surroundings; its text is shown as it is, without a traceback."""

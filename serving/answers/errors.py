"""The error whose text users are shown."""


class AnswersError(Exception):
    """What keeps answers from being fitted: what was expected, what came, and the cure; its text is shown as it is."""

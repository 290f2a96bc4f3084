"""The error whose text users are shown."""


class DatasetError(Exception):
    """What keeps a job from being done: what was expected, what came, and the cure; its text is shown as it is."""

"""The error whose text users are shown."""

from serving.dataset.errors import DatasetError


class FitError(DatasetError):
    """What keeps answers from being fitted: what was expected, what came, and the cure; its text is shown as it is."""

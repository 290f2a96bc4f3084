"""The error whose text users are shown."""

from serving.dataset.errors import DatasetError


class ReportError(DatasetError):
    """What keeps a page from being written: what was expected, what came, and the cure; its text is shown as it is."""

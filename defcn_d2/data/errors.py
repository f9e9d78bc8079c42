"""The error of data sets, apart from whatever reads or draws them."""

from ..utils.errors import UserError


class DatasetError(UserError, RuntimeError):
    """A data set cannot be made or read; the message names the folder or file and the remedy."""

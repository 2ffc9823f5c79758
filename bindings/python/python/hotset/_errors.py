"""What can go wrong. The compiled half raises these by name."""


class Error(Exception):
    """Any failure of hotset, as one sentence."""


class BudgetTooSmall(Error):
    """The memory budget cannot hold the model's dense weights, its state and the experts of one token."""

    #: The smallest budget that would do, in bytes.
    least: int

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message, least)
        self.least = least

    def __str__(self) -> str:
        return str(self.args[0])


class Unsupported(Error):
    """The file is sound, and asks for something that hotset does not have."""


class BadFile(Error):
    """A file's contents are wrong, or the file is not whole."""


class ReadError(Error, OSError):
    """The operating system refused something."""


class InvalidRequest(Error, ValueError):
    """The caller asked for something that cannot be."""

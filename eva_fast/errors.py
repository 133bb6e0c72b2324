"""Errors whose message is all that a person needs: the command line prints them without a traceback.

Every other exception, a bare ValueError too, is a fault of the program or of a caller's code, and
keeps its traceback.
"""


class UsageError(ValueError):
    """What was asked for cannot be done as asked: an option, a path, what a file holds. The message
    says what is possible instead. Exit status 2."""


class MissingFileError(UsageError, FileNotFoundError):
    """A file or folder that was named is not there. Exit status 2."""


class RunError(RuntimeError):
    """A run that began rightly cannot go on: unreadable data, a dead worker, a full disk, numbers
    that are not finite. The message says how to go on. Exit status 1."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, cut to fit into a message; its kind where it
    says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

"""The error family. Each kind has the exit code with which a job ends.

A message states what is wrong, what was got, what was expected, where, and the remedy.
"""

from functools import partial


class SamtokError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 1


class ConfigError(SamtokError, ValueError):
    """A flag or config value that cannot work.

    Flags that are fields of ``owner``, the config object that is at fault, are written ``--.name`` in the
    message; the command line puts the owner's place before them.
    """

    exit_code = 2

    def __init__(self, message: str, *, owner: object = None) -> None:
        super().__init__(message)
        self.message, self.owner = message, owner

    def __str__(self) -> str:
        return self.message.replace("--.", "--")

    def __reduce__(self) -> tuple:  # the owner stays: it is for the process that parsed it
        return type(self), (self.message,)


class DataError(SamtokError, ValueError):
    """A record, image or mask that cannot be used; reject tables count by its reason, such as ``rle_sum``."""

    exit_code = 3

    def __init__(self, message: str, *, reason: str = "data") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:  # keeps the reason when Ray pickles the error
        return partial(type(self), reason=self.reason), (str(self),)


class StorageError(SamtokError):
    """A file or object that could not be read or written, after retries."""

    exit_code = 4


class ClusterError(SamtokError):
    """A Ray cluster that cannot be reached or is too small."""

    exit_code = 5


class CheckpointError(SamtokError):
    """A weight file that is wrong, partial or foreign."""

    exit_code = 6

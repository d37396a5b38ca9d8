"""The two kinds of bad news."""

from __future__ import annotations

__all__ = ["Failure", "SigakError"]


class SigakError(ValueError):
    """A mistake the user can mend. The message says what was expected, what was received and what
    to do.
    """


class Failure(RuntimeError):  # noqa: N818 - what it is, not that it is an error
    """Something failed that is not a mistake in what the user gave, such as a loss that became
    NaN.
    """

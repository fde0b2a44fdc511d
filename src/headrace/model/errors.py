"""The six ways in which something can fail, each defined by what the caller does next.

=============  =====================================================================
kind           what the caller does
=============  =====================================================================
`Invalid`      fix the input; trying the same again fails the same way
`Unavailable`  try again after `retry_after_s`; nothing was done
`Fenced`       stop: another owner has taken over, and its work stands
`Corrupt`      restore: stored bytes are damaged or missing; nothing was served from them
`Closed`       nothing: the object was closed, by its owner, on purpose
`Internal`     report a bug: a promise of our own code was broken
=============  =====================================================================

A message is a short fact and then the reason; `hint` says what to do. Neither is an interface:
programs read `code`.
"""

from __future__ import annotations

from typing import ClassVar


class HeadraceError(Exception):
    """Base of every error that Headrace raises on purpose.

    `message` is one sentence for people, `hint` what to do about it (may be empty), `code` a stable
    word in snake_case for programs (it stands in HTTP answers and dead letters).
    """

    kind_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        """Keep the three parts; `code` falls back to the kind's own."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.kind_code

    def __str__(self) -> str:
        """Return message and hint as people read them."""
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class Invalid(HeadraceError):
    """The input is wrong and will stay wrong."""

    kind_code = "invalid"


class Unavailable(HeadraceError):
    """It cannot be done now, nothing was done, and it is worth trying again."""

    kind_code = "unavailable"

    def __init__(
        self, message: str, *, hint: str = "", code: str = "", retry_after_s: float = 1.0
    ) -> None:
        """Keep how long to wait before the next try, in seconds."""
        super().__init__(message, hint=hint, code=code)
        self.retry_after_s = retry_after_s


class Fenced(HeadraceError):
    """Another owner committed in our place; whatever we hold in memory is stale."""

    kind_code = "fenced"


class Corrupt(HeadraceError):
    """Stored data is damaged or gone; nothing of it was served."""

    kind_code = "corrupt"


class Closed(HeadraceError):
    """The object was closed before the call."""

    kind_code = "closed"


class Internal(HeadraceError):
    """One of our own invariants does not hold."""

    kind_code = "internal"

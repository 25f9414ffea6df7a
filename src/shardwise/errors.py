"""Every error that shardwise raises on purpose.

A `UserError` is the user's to mend: its message says what is wrong, which value it was, and what would work; the command
line prints it as one line and exits with code 2. Anything else that reaches the command line is a failure of the run.
"""

from __future__ import annotations

TIME_UP = "its time was up before it was complete"
"""How a request fails that had a time limit: what its `Ended` says."""

SHRUNK = "there is less room than when the request came"
"""How the error of a request begins that fitted once, and does not where other ranks have taken over."""

ALL_BARRED = (
    "no token may be drawn: every id is excluded, by what is barred, what is allowed, what the answer must look like, or an "
    "infinite bias"
)
"""How a request fails whose own fields leave no token to draw."""


class ShardwiseError(Exception):
    """The root of all deliberate errors."""


class UserError(ShardwiseError, ValueError):
    """The input cannot be used as it is; the message says what would work."""


class ConfigError(UserError):
    """A config.json asks for something unknown, contradictory or not implemented."""


class CheckpointError(UserError):
    """A checkpoint folder is missing, damaged, or does not match its config."""


class LayoutError(UserError):
    """A model cannot be cut in the way that was asked for."""


class CapacityError(UserError):
    """The model, cut as asked, does not fit the memory it was given."""


class RequestError(UserError):
    """A prompt or a sampling value is out of range."""


class TooLong(RequestError):
    """A prompt, with what is asked for behind it, is longer than the context."""


class QueueFull(ShardwiseError):
    """So many requests wait already that another one is not taken in. `retry_after_s` whole seconds from now there will be
    room for it, as far as can be told."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(ShardwiseError):
    """The engine is gone, or going: it takes no requests any more. The message is the cause."""


class Conflict(ShardwiseError):
    """What is asked for does not go with what goes on already; the message says with what."""


class CommError(ShardwiseError):
    """A collective failed. `rank` is the caller, `site` the place in the model, `culprit` the peer at fault if it is known."""

    def __init__(self, message: str, *, rank: int, site: str, culprit: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank
        self.site = site
        self.culprit = culprit


class RankLost(ShardwiseError):
    """A rank died or failed. `rank` is which, `phase` what it was doing, `reason` why."""

    def __init__(self, rank: int, phase: str, reason: str) -> None:
        super().__init__(f"rank {rank} was lost during {phase}: {reason}")
        self.rank = rank
        self.phase = phase
        self.reason = reason


class LossesSpent(ShardwiseError):
    """More was lost than may be in so long a time: to start anew would not help. The command line exits with code 75, which
    sysexits.h calls a temporary failure."""

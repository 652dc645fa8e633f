"""How much is measured, and when a time bound ends it.

Under a bound there are fewer sessions rather than ones that never get past their start, and each has its
share of the blocks; what was planned is never exceeded.
"""

import time
from dataclasses import dataclass

MOST_WARM_UP_RUNS = 20
_WORTH = 2  # blocks that a session must have room for, to be begun under a bound


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured: `blocks` in each of `sessions`, each giving two runs of every cell.

    `warm_up_s` is the least time that a cell is warmed up for in a session, `warm_up_runs` the most requests;
    after `most_warm_up_s` two are enough.
    Without `alone` no cell is opened by itself before, so there are no cold loads and no peaks of a GPU.
    """

    sessions: int
    blocks: int
    warm_up_s: float = 2.0
    warm_up_runs: int = MOST_WARM_UP_RUNS
    most_warm_up_s: float = 20.0
    alone: bool = True

    @property
    def runs(self) -> int:
        """Runs of each cell."""
        return 2 * self.sessions * self.blocks

    def visits(self, num_cells: int) -> int:
        """Visits that `measure_cells` announces, warm-up aside: the last cell has no raw calls."""
        return self.runs * (2 * num_cells - 1)


class TimeUp(Exception):  # noqa: N818 - no error
    """The time bound has come; its text says which."""


def bound_text(within_s: float | None) -> str:
    """A bound in words."""
    return f"the time bound of {(within_s or 0) / 60:.3g} min"


class Pace:
    """Sessions and blocks that there is time for.

    Args:
        amount: what is wanted.
        within_s: seconds from now in which everything must end, or None.
    """

    def __init__(self, amount: Amount, within_s: float | None = None) -> None:
        self.sessions, self.blocks = amount.sessions, amount.blocks
        self._within_s = within_s
        self._start = time.monotonic()
        self._session_start = self._start

    def check(self) -> None:
        """End what is going on where the bound has come.

        Raises:
            TimeUp: it has.
        """
        if self._within_s is not None and time.monotonic() - self._start >= self._within_s:
            raise TimeUp(bound_text(self._within_s))

    def begin(self) -> None:
        """A session begins."""
        self.check()
        self._session_start = time.monotonic()

    def first_block(self, seconds: float) -> None:
        """The first block has ended: share the bound out by what it and the start before it took."""
        if self._within_s is None:
            return
        set_up = time.monotonic() - self._session_start - seconds
        left = self._within_s - (self._session_start - self._start)
        least = set_up + min(_WORTH, self.blocks) * seconds
        self.sessions = max(1, min(self.sessions, int(left / least)))
        self.blocks = max(1, min(self.blocks, int((left / self.sessions - set_up) / seconds)))

    def left_s(self, session: int, block: int, seconds: float) -> float:
        """Estimate of what is left after a block, numbered from 0, where a block takes so long."""
        set_up = max(0.0, time.monotonic() - self._session_start - (block + 1) * seconds)
        later = self.sessions - session - 1
        estimate = (self.blocks - block - 1) * seconds + later * (set_up + self.blocks * seconds)
        if self._within_s is None:
            return estimate
        return max(0.0, min(estimate, self._start + self._within_s - time.monotonic()))

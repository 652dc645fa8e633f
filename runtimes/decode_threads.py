"""How many threads decode a token: the budget, or half of it while other processes hold the cores.

A token has hundreds of barriers, and behind each all threads wait for the one that has lost its core: beside
two busy threads on two cores a token of 135 M parameters takes more than twice its time, on one thread a
tenth more than alone (the table in `threads.py`; `make cold-and-busy` measures it). Half of the threads find
cores of their own. It is done where a token becomes the same to the bit on any number of threads, so that an
answer never depends on what else the machine does; elsewhere `--threads`, which `tune` proposes.
"""

from math import inf

_STALLED = 1.8  # times a usual token
_IN_A_ROW = 2  # one such token may be anybody's hiccup
_SPELL, _LONGEST_SPELL = 8, 64  # tokens until the budget is tried again
_DRIFT = 1.01  # a usual token takes longer as the context grows


class DecodeThreads:
    """The threads of the next token, by what those before took.

    Args:
        budget: how many there may be.
        fixed: always so many.

    Attributes:
        count: of the next token.
    """

    def __init__(self, budget: int, *, fixed: bool) -> None:
        self.count = self._budget = budget
        self._is_fixed = fixed or budget == 1
        self._usual_s = inf
        self._slow_s: list[float] = []
        self._wanted, self._spell, self._left = _IN_A_ROW, _SPELL, 0

    def took(self, seconds: float) -> None:
        """A token took so long on `count` threads."""
        if self._is_fixed:
            return
        if self.count == self._budget:
            self._took_all(seconds)
        elif seconds >= min(self._slow_s):  # fewer threads are no way out: this is what a token takes now
            self._usual_s = min(self._slow_s)
            self._all_again()
        else:
            self._left -= 1
            if self._left == 0:
                self.count, self._wanted, self._slow_s = self._budget, 1, []
                self._spell = min(2 * self._spell, _LONGEST_SPELL)

    def _took_all(self, seconds: float) -> None:
        if seconds <= _STALLED * self._usual_s:
            self._usual_s = min(seconds, _DRIFT * self._usual_s)
            self._all_again()
            return
        self._slow_s.append(seconds)
        if len(self._slow_s) >= self._wanted:
            self.count, self._left = self._budget // 2, self._spell

    def _all_again(self) -> None:
        self.count, self._slow_s = self._budget, []
        self._wanted, self._spell = _IN_A_ROW, _SPELL

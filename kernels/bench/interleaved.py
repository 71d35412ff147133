"""Timing on a machine that does other things too: arms take turns, CPU time is what counts, and a control row says whether to
believe it.

Two arms are compared round by round, so that a slow minute of the machine slows both. The control is one thing measured twice
in every round: where its own ratio leaves 0.97 to 1.03, the session is thrown away and measured again.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Arm = Callable[[], None]

CONTROL_LOW, CONTROL_HIGH = 0.97, 1.03


@dataclass(frozen=True)
class Ratio:
    """One arm's time as a share of another's, in three readings.

    Attributes:
        paired: median over the rounds of the ratio within a round. cpu: of the sums. minimum: of the quickest rounds.
    """

    paired: float
    cpu: float
    minimum: float

    def __str__(self) -> str:
        """`0.97 | 0.98 | 0.96`."""
        return f"{self.paired:.3f} | {self.cpu:.3f} | {self.minimum:.3f}"


@dataclass(frozen=True)
class Session:
    """CPU seconds of every arm in every round, and whether the control believed them."""

    seconds: Mapping[str, tuple[float, ...]]
    control: Ratio

    @property
    def valid(self) -> bool:
        """Whether one thing measured twice came out the same."""
        return CONTROL_LOW <= self.control.paired <= CONTROL_HIGH

    def ratio(self, arm: str, reference: str) -> Ratio:
        """`arm` over `reference`."""
        return ratio_of(self.seconds[arm], self.seconds[reference])


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The three readings of two equally long lists of seconds, round by round."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(median(pairs), sum(ours) / sum(theirs), min(ours) / min(theirs))


def measure_session(
    arms: Mapping[str, Arm],
    control: tuple[str, str],
    *,
    rounds: int,
    on_round: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.process_time,
) -> Session:
    """Let the arms take turns, `rounds` times.

    Every round begins with another arm and every second one runs backwards, so that no arm always comes after the same one.

    Args:
        control: the names of the two arms that are the same thing.
    """
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        for name in order if number % 2 == 0 else reversed(order):
            gc.collect()
            gc.disable()
            try:
                start = clock()
                arms[name]()
                seconds[name].append(clock() - start)
            finally:
                gc.enable()
        if on_round is not None:
            on_round(number + 1, rounds)
    frozen = {name: tuple(values) for name, values in seconds.items()}
    return Session(frozen, ratio_of(frozen[control[0]], frozen[control[1]]))


def measure(
    arms: Mapping[str, Arm],
    control: tuple[str, str],
    *,
    rounds: int,
    attempts: int = 3,
    on_session: Callable[[Session], None] | None = None,
    on_round: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.process_time,
) -> Session:
    """The first session whose control holds, or the last of `attempts`; `on_session` gets each one, also those thrown away."""
    assert attempts >= 1
    for _ in range(attempts):
        session = measure_session(arms, control, rounds=rounds, on_round=on_round, clock=clock)
        if on_session is not None:
            on_session(session)
        if session.valid:
            break
    return session

"""Verdicts on registered claims: a statistic of each seed, Student's interval over seeds, and a rule fixed beforehand.

The rules are those of the README of ``advdim.experiments``, which was written before the runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..power_law import Interval, mean_interval

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "open"
#: With fewer than :data:`FEWEST` seeds nothing is decided; with none, nothing was run. Some statistics have no rule.
UNDECIDED, NOT_RUN, REPORTED = "not decided", "not run", "reported"
#: Seeds without which no claim is decided.
FEWEST = 3
#: What counts as equal to 1/2.
ABOUT_HALF = (0.4, 0.6)

#: A statistic by seed.
PerSeed = dict[int, float]


@dataclass(frozen=True)
class Rule:
    """What an interval has to be for a claim to be supported.

    Attributes:
        words: the rule in words.
        judge: interval to verdict; None for a statistic that is reported and decides nothing.
    """

    words: str
    judge: Callable[[Interval], str] | None = field(default=None, repr=False)


def above(bound: float = 0.0) -> Rule:
    """Supported if the whole interval lies above the bound, contradicted if below, else open."""
    return Rule(f"above {bound:g}", lambda i: _side(i.low > bound, i.high < bound))


def below(bound: float = 0.0) -> Rule:
    """Supported if the whole interval lies below the bound, contradicted if above, else open."""
    return Rule(f"below {bound:g}", lambda i: _side(i.high < bound, i.low > bound))


def is_half() -> Rule:
    """Supported if the interval lies in [.4, .6], contradicted if it excludes .5, else open."""
    low, high = ABOUT_HALF
    return Rule("1/2", lambda i: _side(low <= i.low and i.high <= high, not i.contains(0.5)))


def not_zero() -> Rule:
    """Supported if the interval excludes 0, else open: no interval shows that there is no difference."""
    return Rule("not 0", lambda i: _side(not i.contains(0.0), False))


def is_zero() -> Rule:
    """Contradicted if the interval excludes 0, else open."""
    return Rule("0", lambda i: _side(False, not i.contains(0.0)))


#: Of what is reported without a rule.
NO_RULE = Rule("reported")


def _side(right: bool, wrong: bool) -> str:
    return SUPPORTED if right else CONTRADICTED if wrong else OPEN


@dataclass(frozen=True)
class Finding:
    """A registered statistic, and what it decides.

    Attributes:
        claim: number of the claim, as "1a".
        about: the networks and images that it is about.
        statistic: what is measured, in words.
        rule: what decides.
        interval: the statistic's mean over seeds, with its interval; None without a seed.
        values: the statistic by seed.
        whole: number of seeds that have every run that the statistic needs.
        planned: number of seeds registered.
        verdict: "supported", "contradicted", "open", "not decided" (fewer than 3 seeds), "not run" or "reported".
        note: what else the reader has to know, or nothing.
    """

    claim: str
    about: str
    statistic: str
    rule: Rule
    interval: Interval | None
    values: PerSeed
    whole: int
    planned: int
    verdict: str
    note: str = ""

    @property
    def seeds(self) -> int:
        """Number of seeds in the interval."""
        return len(self.values)

    def __str__(self) -> str:
        interval = "" if self.interval is None else str(self.interval)
        return f"{self.claim} {self.about}: {interval}, {self.seeds} of {self.planned} seeds, {self.verdict}"


def finding(
    claim: str,
    about: str,
    statistic: str,
    values: PerSeed,
    rule: Rule,
    *,
    m: int,
    planned: int,
    whole: int | None = None,
    interval: Interval | None = None,
    note: str = "",
) -> Finding:
    """Decide a claim from a statistic by seed, by Student's interval at level 1 - .05/m.

    Args:
        claim: number of the claim.
        about: as for :class:`Finding`.
        statistic: as for :class:`Finding`.
        values: the statistic by seed.
        rule: what decides.
        m: number of comparisons in the claim's family (Bonferroni).
        planned: number of seeds registered.
        whole: number of seeds that have all their runs, some of which may have no statistic; None is all of ``values``.
        interval: in place of that of the mean of ``values``, such as that of a regression.
        note: what else the reader has to know.
    """
    whole = len(values) if whole is None else whole
    if interval is None and values:
        interval = mean_interval(list(values.values()), level(m))
    if left := whole - len(values):
        note = "; ".join(text for text in (f"{left} of {whole} seeds lack it", note) if text)
    return Finding(
        claim, about, statistic, rule, interval, values, whole, planned, _verdict(values, whole, rule, interval), note
    )


def level(m: int) -> float:
    """Level of the intervals of m comparisons (Bonferroni)."""
    return 1 - 0.05 / m


def _verdict(values: PerSeed, whole: int, rule: Rule, interval: Interval | None) -> str:
    if not whole:
        return NOT_RUN
    if rule.judge is None:
        return REPORTED
    return UNDECIDED if interval is None or len(values) < FEWEST else rule.judge(interval)

"""Users of a shared limit in groups in which every way in goes with every way out.

Behind a limit that several ways lead through, nothing tells whose money passes. So they may share one only where each
of them may go on by every way of the others: else collateral would leave by a way that its own node does not have. A
node that can pass everything to another one may go on by its ways too. What such groups may use of their limit is
divided evenly among them, on the safe side.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import NamedTuple


class Use(NamedTuple):
    """One way through a limit: how it comes in, how it goes on, and the nodes at its ends."""

    entry: Hashable
    exit: Hashable
    origin: int
    target: int


def user_groups(uses: Iterable[Use], passes: Collection[tuple[int, int]]) -> dict[Hashable, int]:
    """Number of the group of every entry, from 0 in the order of `uses`.

    `passes` are pairs of nodes of which the first can pass everything to the second. What would only lead a node back
    to itself needs no way.
    """
    exits: dict[Hashable, dict[Hashable, Use]] = {}
    origins: dict[Hashable, set[int]] = {}
    for use in uses:
        exits.setdefault(use.entry, {})[use.exit] = use
        origins.setdefault(use.entry, set()).add(use.origin)

    def follows(one: Hashable, other: Hashable) -> bool:
        """Whether what comes in by `one` may go on by every way of `other`."""
        return all(
            way in exits[one] or all(origin == use.target or (origin, use.origin) in passes for origin in origins[one])
            for way, use in exits[other].items()
        )

    groups: list[list[Hashable]] = []
    for entry in exits:
        fitting = (group for group in groups if all(follows(entry, one) and follows(one, entry) for one in group))
        group = next(fitting, None)
        if group is None:
            groups.append([entry])
        else:
            group.append(entry)
    return {entry: number for number, group in enumerate(groups) for entry in group}

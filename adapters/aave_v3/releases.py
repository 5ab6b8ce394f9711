"""What differs between the releases of Aave v3.

Sources, release by release: v3.0 (3.0.2) and v3.1 github.com/aave/aave-v3-core (`GenericLogic`, `LiquidationLogic`,
`MathUtils`) and aave/aave-v3-periphery (`IUiPoolDataProviderV3`); v3.1 to v3.7 github.com/aave-dao/aave-v3-origin, the
same contracts and docs/3.1 to docs/3.7 (v3.7: `liquidation-rounding.md`, `isolated-emode.md`). Read 2026-11-21.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Generation(NamedTuple):
    """One release by the rules that it has."""

    name: str
    emode_of_reserves: bool
    """Each reserve belongs to one category at most and its record holds the category's parameters (before v3.2).

    Later a category names its reserves by bitmaps.
    """
    closes_by_account: bool
    """The close factor of one half is of the account's whole debt and spares small positions, no dust may be left, and
    a debt without collateral is written off (v3.3 on); before, it is of the debt in the reserve and nothing else.
    """
    series_interest: bool
    """Debts grow by 1 + x + x^2/2 + x^3/6 (v3.4 on); before, by three terms of (1 + rate per second)^seconds."""
    rounds_against_user: bool
    """Balances floor, debts and their values ceil (v3.5 on); before, tokens round half up and debt values floor."""
    health_of_average: bool
    """The health factor is of the average threshold, floored to a basis point (before v3.5); later of the sum."""
    emode_stands_alone: bool
    """A category applies whatever the base parameters are (v3.6 on); before, a base threshold or LTV of 0 stays 0."""
    seizes_by_floor: bool
    """Seized collateral floors, the protocol's fee ceils, and used shares tell whether any collateral is left (v3.7);
    before, amounts round half up and values tell.
    """


_NAMES = ("v3.0", "v3.1", "v3.2", "v3.3", "v3.4", "v3.5", "v3.6", "v3.7")


def _generation(minor: int) -> Generation:
    return Generation(
        name=_NAMES[minor],
        emode_of_reserves=minor < 2,
        closes_by_account=minor >= 3,
        series_interest=minor >= 4,
        rounds_against_user=minor >= 5,
        health_of_average=minor < 5,
        emode_stands_alone=minor >= 6,
        seizes_by_floor=minor >= 7,
    )


GENERATIONS: Mapping[str, Generation] = {name: _generation(minor) for minor, name in enumerate(_NAMES)}
"""Releases by name. A flag or bitmap that a release does not know yet is absent from its payloads."""

LATEST = GENERATIONS["v3.7"]

"""What a venue's adapter covers, said once beside the adapter; `docs/venues.md` is generated from it."""

from __future__ import annotations

from typing import NamedTuple


class VenueFacts(NamedTuple):
    """One venue in the words of its risk engineers; every entry a short phrase or sentence in plain text."""

    title: str
    """Name of the venue, with its version."""
    accounts: tuple[str, ...]
    """What is an account here and how accounts share collateral (nodes), one entry per account type."""
    equity: str
    """Equity as the venue counts it."""
    requirement: str
    """Initial and maintenance requirement, by which rule forms."""
    verdict: str
    """Trigger of a liquidation and the rule at equality."""
    cross_or_isolated: str
    orders: str
    """What open orders do to the requirement, or why nothing."""
    liquidation: str
    """Mechanics that exist exactly, and the liquidation price if the venue defines one."""
    rules: tuple[str, ...]
    """Source and date of every rule that was read."""
    parameters: str
    """Where tiers, weights and market-wide inputs come from."""
    gaps: tuple[str, ...]
    """What is not covered, taken as reported or not verified."""

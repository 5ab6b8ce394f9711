"""What a run of `recommend` leaves: every market before and after, what that does to the book, and where it stands."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from aggregator.errors import ExitCode
from aggregator.tier_trial import TrialRow

from .collateral_recommendation import CollateralChange
from .early_warning import EarlyWarning
from .model_monitor import MonitoredModel
from .recommendation import MarketOutlook, Outcome
from .tier_ladder import Ladder


class MarketChange(NamedTuple):
    """One market before and after: ladders, what was forecast of it, and the accounts that its holders lose today.

    `accounts` are liquidatable by the changes of this run and hold the market, of `value_usd` gross in it.
    """

    before: Ladder
    after: Ladder
    outlook: MarketOutlook
    accounts: tuple[str, ...]
    value_usd: float


class Recommended(NamedTuple):
    """What was recommended, what it does to the book, and where it was written.

    `models` is what was watched of the models; `early_warning` is None unless the scenarios have a forecast of today's
    scale.
    """

    reference_id: str
    as_of: datetime
    outcome: Outcome
    markets: tuple[MarketChange, ...]
    collateral: tuple[CollateralChange, ...]
    models: tuple[MonitoredModel, ...]
    trial: tuple[TrialRow, ...]
    conditions: tuple[str, ...]
    document: Path
    report: Path
    store: str
    early_warning: EarlyWarning | None = None

    @property
    def exit_code(self) -> ExitCode:
        """Bad data when a market that the book holds could not be recommended or a portfolio is incomplete."""
        return ExitCode.BAD_DATA if self.conditions else ExitCode.OK

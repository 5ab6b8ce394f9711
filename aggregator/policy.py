"""The requirement policy: every figure of the unified requirement that a risk committee sets, with its default.

Sources of the defaults: offset cap 0.80 and stressed weight 0.25, Regulation (EU) 153/2013 arts 27 and 28 (b); grid,
Derive PMRM and SPAN shape (15 % scan, a third of the extreme move); impact 1, the square-root law of Toth et al. 2011;
liquidity horizons up to 120 days, Basel Committee MAR33; participation 10 % of the daily volume and every hazard,
loss given default and rate: ASSUMED, to be set by the user.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .section import Section


class Grid(Section):
    """The deterministic scenario grid: all prices together, each underlying alone, each peg alone.

    `scan` is the largest ordinary move by asset, `default_scan` that of the others; `points` lie evenly between minus
    and plus the scan, each with volatility down, unchanged and up. Extreme points are `extreme` scans away, with
    volatility unchanged, and count at `extreme_weight` of their loss. See `scenario_grid`.
    """

    points: int = Field(default=7, ge=3, le=41)
    scan: dict[str, float] = {"BTC": 0.15, "ETH": 0.15, "SOL": 0.25, "BNB": 0.25, "XRP": 0.25}
    default_scan: float = Field(default=0.50, gt=0, lt=1)
    peg: dict[str, float] = {}
    default_peg: float = Field(default=0.05, gt=0, lt=1)
    vol_up: float = Field(default=0.45, ge=0)
    vol_down: float = Field(default=0.30, ge=0, lt=1)
    vol_power: float = Field(default=0.3, ge=0)
    vol_floor_days: float = Field(default=1.0, gt=0)
    vol_minimum: float = Field(default=0.05, gt=0)
    extreme: float = Field(default=3.0, gt=1)
    extreme_weight: float = Field(default=1 / 3, gt=0, le=1)

    @model_validator(mode="after")
    def _moves(self) -> Grid:
        if self.points % 2 == 0:
            raise ValueError(f"points is {self.points}; an odd number has the unchanged price in its middle")
        for name, move in [*self.scan.items(), *self.peg.items()]:
            if not 0.0 < move < 1.0:
                raise ValueError(f"the move of {name} is {move}; expected a share between 0 and 1")
        return self


class AssetLiquidity(Section):
    """What the market in an asset bears: volume a day in USD, relative spread, daily standard deviation."""

    adv_usd: float = Field(gt=0)
    spread: float = Field(ge=0, lt=1)
    daily_std: float = Field(gt=0)


class Liquidity(Section):
    """Cost and time of closing out. `assets` (by risk factor name) comes before what the calibration says.

    `horizons` are the liquidity horizons in days that a close-out time is rounded up to, those beyond the horizon of
    the run; what takes longer than the last counts up to it and is said. A position is concentrated from
    `concentration_share` of the daily volume on.
    """

    impact: float = Field(default=1.0, ge=0)
    participation: float = Field(default=0.1, gt=0, le=1)
    horizons: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 120.0)
    concentration_share: float = Field(default=0.1, gt=0)
    assets: dict[str, AssetLiquidity] = {}

    @model_validator(mode="after")
    def _rising(self) -> Liquidity:
        if not self.horizons or self.horizons[0] <= 0 or list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"horizons are {list(self.horizons)}; expected rising positive numbers of days")
        return self


class Basis(Section):
    """Charge for legs of one asset that offset each other across venues: expected shortfall of their relative gap."""

    majors: tuple[str, ...] = ("BTC", "ETH")
    floor_majors: float = Field(default=0.0020, ge=0, lt=1)
    floor_others: float = Field(default=0.0100, ge=0, lt=1)
    assets: dict[str, float] = {}


class VenuePolicy(Section):
    """What the failure of a venue would cost: hazard a year, loss given default, and the tokens that fall with it.

    `own_tokens` are symbols: the venue's own, and those that its group issues or holds for. A wrapping of one counts.
    """

    hazard_per_year: float = Field(default=0.02, ge=0)
    loss_given_default: float = Field(default=0.6, ge=0, le=1)
    own_tokens: tuple[str, ...] = ()
    funding_hours: float = Field(default=8.0, gt=0)
    """Hours that the venue's funding rate is stated for."""


class Haircut(Section):
    """Volatility-adjusted haircut of collateral that is not simulated: z standard deviations over `days`."""

    static: float = Field(default=0.0, ge=0, le=1)
    z: float = Field(default=2.326, ge=0)
    days: float = Field(default=2.0, gt=0)
    liquidity: float = Field(default=0.0, ge=0, le=1)


# Own tokens and the hours of a funding rate are facts of the venues; hazards and losses stay at the defaults above.
# What Binance issues beside BNB is a claim on what it holds; the issuers are those of the asset book.
_VENUES = {
    "binance": VenuePolicy(own_tokens=("BNB", "BNSOL", "BTCB", "WBETH")),
    "okx": VenuePolicy(own_tokens=("OKB",)),
    "bybit": VenuePolicy(own_tokens=("MNT", "BIT")),
    "hyperliquid": VenuePolicy(own_tokens=("HYPE",), funding_hours=1.0),
    "dydx_v4": VenuePolicy(own_tokens=("DYDX", "ethDYDX"), funding_hours=1.0),
    "drift_v2": VenuePolicy(own_tokens=("DRIFT",), funding_hours=1.0),
    "aave_v3": VenuePolicy(own_tokens=("AAVE", "GHO")),
    "compound_v3": VenuePolicy(own_tokens=("COMP",)),
    "gmx_v2": VenuePolicy(own_tokens=("GMX",)),
    "derive": VenuePolicy(own_tokens=("DRV",), funding_hours=1.0),
}


class Requirement(Section):
    """The stack of the unified requirement.

    `collateral` says whether collateral moves in the scenarios or stands still at a haircut; never both.
    """

    stress_weight: float = Field(default=0.25, ge=0, le=1)
    stressed_scenarios: int = Field(default=4096, ge=256, le=1_000_000)
    """Scenarios of each stressed law."""
    offset_cap: float = Field(default=0.80, ge=0, le=1)
    floor_rate: float = Field(default=0.01, ge=0, le=1)
    initial_scale: float = Field(default=1.25, ge=1)
    collateral: Literal["simulated", "haircut"] = "simulated"
    haircut: Haircut = Haircut()
    grid: Grid = Grid()
    liquidity: Liquidity = Liquidity()
    basis: Basis = Basis()
    venues: dict[str, VenuePolicy] = _VENUES
    other_venues: VenuePolicy = VenuePolicy()
    opportunity_rate: float = Field(default=0.05, ge=0)
    """What capital that lies as margin could earn elsewhere, a year."""

    def venue(self, name: str) -> VenuePolicy:
        """The policy of a venue: its own, else that of all others."""
        return self.venues.get(name, self.other_venues)

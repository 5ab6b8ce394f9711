"""The library of named stresses: what a person writes in TOML, and the moves of the risk factors that it means.

A stress is one joint event. Beside the prices it says what else breaks on that day: implied volatility, pegs, the marks
of single venues, oracles, depth, funding, venues and chains that stand still. Simple relative changes are written as
people say them (-0.39 is a fall by 39 %, depth 0.02 is a fiftieth of today's); nothing is scaled by the horizon.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from .calibration_ranges import within
from .errors import ConfigurationError, nearest_name
from .section import Section

Change = Annotated[float, Field(le=20.0)]
Beta = Annotated[float, within(-20.0, 20.0, "a multiple of the reference's log move")]
Multiplier = Annotated[float, within(1e-4, 100.0, "a multiplier of today's")]
Share = Annotated[float, within(-1.0, 1.0, "a share of notional, 0.01 for 1 %")]
Days = Annotated[float, within(0.0, 365.0, "days", above=True)]

DEFAULT = "default"
"""Key of a table for every asset that the table does not name."""


class Price(Section):
    """Relative price changes by asset; the others change by `beta` times that of `reference`, in logarithms."""

    moves: dict[str, Change] = {}
    reference: str = "BTC"
    beta: Beta | None = None

    @field_validator("moves")
    @classmethod
    def _above_minus_one(cls, moves: dict[str, float]) -> dict[str, float]:
        for asset, move in moves.items():
            if move <= -1.0:
                raise ValueError(f"{asset} moves by {move}; a price cannot fall by all of itself")
        return moves

    @model_validator(mode="after")
    def _one_rule_for_the_others(self) -> Price:
        if self.beta is None and "reference" in self.model_fields_set:
            raise ValueError(f"reference {self.reference} moves nothing without a beta")
        if self.beta is not None and DEFAULT in self.moves:
            raise ValueError("give the other assets either a beta or a default move, not both")
        if self.beta is not None and self.reference not in self.moves:
            raise ValueError(f"beta needs a move of its reference {self.reference}")
        return self


class Venue(Section):
    """What one venue does differently: its own (wrong) marks, its funding, a halt of withdrawals, or its failure.

    `marks` are relative errors of the venue's marks of an asset against the market: its triggers read them, losses are
    taken at the market. `funding` is the rate that its longs pay in place of the stress's, for the venue's own interval
    (`funding_hours` of the policy). With `withdrawals` false nothing that lies there can be used elsewhere; `fails`
    loses it at the loss given default of the policy.
    """

    marks: dict[str, Change] = {}
    funding: Share | None = None
    withdrawals: bool = True
    fails: bool = False

    @field_validator("marks")
    @classmethod
    def _above_minus_one(cls, marks: dict[str, float]) -> dict[str, float]:
        if DEFAULT in marks:
            raise ValueError(f"{DEFAULT} is no asset; a wrong mark needs its name")
        for asset, error in marks.items():
            if error <= -1.0:
                raise ValueError(f"{asset} is marked by {error}; a mark cannot be below zero")
        return marks


class Replay(Section):
    """Days whose closes a stress is measured on, where a history table is there: from the close of one to the other."""

    first: date
    last: date

    @model_validator(mode="after")
    def _in_order(self) -> Replay:
        if not self.first < self.last:
            raise ValueError(f"first {self.first} is not before last {self.last}")
        return self


class Stress(Section):
    """One named stress.

    `vol` multiplies the 30-day implied volatility of an underlying, `peg` is the relative change of a stablecoin or of
    the discount of a wrapped token. `oracle` "frozen": the triggers of the venues named in `frozen` (all, if none) read
    today's prices while fills and losses take the new ones. `funding` is what the longs of every perpetual pay over the
    stress, as a share of notional; a venue's own rate is paid for `funding_days`. `binding`: the loss enters the
    requirement beside the grid.
    """

    description: str = Field(min_length=1)
    source: str = Field(min_length=1)
    binding: bool = False
    price: Price = Price()
    replay: Replay | None = None
    vol: dict[str, Annotated[float, Field(le=100.0)]] = {}
    peg: dict[str, Change] = {}
    depth: Multiplier = 1.0
    funding: Share = 0.0
    funding_days: Days = 1.0
    oracle: Literal["live", "frozen"] = "live"
    frozen: tuple[str, ...] = ()
    venues: dict[str, Venue] = {}
    chains_halted: tuple[str, ...] = ()
    transfers: Literal["open", "shut"] = "open"
    """Shut: nothing reaches another node in time, so every node stands alone."""
    combines: tuple[str, ...] = ()
    """Other stresses that happen at once: moves add in logarithms, depths multiply, halts unite."""

    @model_validator(mode="after")
    def _frozen_oracles(self) -> Stress:
        if self.frozen and self.oracle != "frozen":
            raise ValueError('frozen names venues, but oracle is not "frozen"')
        return self

    @model_validator(mode="after")
    def _days_of_funding(self) -> Stress:
        if "funding_days" in self.model_fields_set and all(venue.funding is None for venue in self.venues.values()):
            raise ValueError("funding_days is for the funding of venues, and no venue states one")
        return self

    @field_validator("vol")
    @classmethod
    def _positive(cls, vol: dict[str, float]) -> dict[str, float]:
        for asset, factor in vol.items():
            if factor <= 0.0:
                raise ValueError(f"vol of {asset} is multiplied by {factor}; expected a positive number")
        return vol

    @field_validator("peg")
    @classmethod
    def _above_minus_one(cls, peg: dict[str, float]) -> dict[str, float]:
        for asset, change in peg.items():
            if change <= -1.0:
                raise ValueError(f"peg of {asset} changes by {change}; expected more than -1")
        return peg


class StressLibrary(Section):
    """All stresses by name."""

    stress: dict[str, Stress] = Field(min_length=1)

    @model_validator(mode="after")
    def _combinations(self) -> StressLibrary:
        for name, stress in self.stress.items():
            for other in stress.combines:
                if other not in self.stress:
                    raise ValueError(f"{name} combines {other!r}, which is not there{nearest_name(other, self.stress)}")
                if self.stress[other].combines:
                    raise ValueError(f"{name} combines {other}, which is a combination itself; name its parts")
        return self

    def parts(self, name: str) -> list[Stress]:
        """The stresses that a name stands for: itself and what it combines."""
        return [self.stress[name], *(self.stress[other] for other in self.stress[name].combines)]


class StressMoves(NamedTuple):
    """Log-changes of the factors under one stress: in the market, at each venue with marks of its own, at the triggers.

    `triggers` maps a venue to the moves its liquidation engine sees; a venue that is in neither mapping sees `market`.
    """

    market: np.ndarray
    marks: Mapping[str, np.ndarray]
    triggers: Mapping[str, np.ndarray]


def read_stress_library(path: str | Path) -> StressLibrary:
    """The library in a TOML file; ConfigurationError names the stress and the key that is wrong."""
    name = Path(path).name
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the stress library {name!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{name} is not valid TOML: {error}") from None
    try:
        return StressLibrary.model_validate(document)
    except ValidationError as error:
        raise ConfigurationError(f"{name}: " + "; ".join(_sentences(error))) from None


def _sentences(error: ValidationError) -> list[str]:
    out = []
    for entry in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(part) for part in entry["loc"])
        if entry["type"] == "extra_forbidden":
            known = {*Stress.model_fields, *Price.model_fields, *Venue.model_fields, *Replay.model_fields}
            out.append(f"unknown key {place}{nearest_name(str(entry['loc'][-1]), sorted(known))}")
        elif entry["type"] == "missing":
            out.append(f"missing key {place}")
        else:
            out.append(f"{place}: {entry['msg'].removeprefix('Value error, ')}")
    return out


def check_names(library: StressLibrary, *, assets: Collection[str], venues: Collection[str]) -> None:
    """Raises ConfigurationError for every asset or venue of the library that nobody knows, with the nearest right name.

    A name that is misspelt would otherwise move nothing, and nobody would see it.
    """
    wrong = []
    for name, stress in library.stress.items():
        tables = {"price.moves": stress.price.moves, "vol": stress.vol, "peg": stress.peg}
        tables |= {f"venues.{venue}.marks": what.marks for venue, what in stress.venues.items()}
        for place, table in tables.items():
            unknown = [asset for asset in table if asset != DEFAULT and asset not in assets]
            wrong += [f"{name}.{place}: unknown asset {asset!r}{nearest_name(asset, assets)}" for asset in unknown]
        for venue in (*stress.venues, *stress.frozen):
            if venue not in venues:
                wrong.append(f"{name}: unknown venue {venue!r}{nearest_name(venue, venues)}")
    if wrong:
        raise ConfigurationError("stress library: " + "; ".join(wrong))


def check_kinds(library: StressLibrary, *, prices: Collection[str], pegs: Collection[str]) -> None:
    """Raises ConfigurationError for every entry that can move nothing: it names an asset that has no such factor.

    `prices` are the assets with a price factor of their own, `pegs` those with a peg. A stablecoin has no price of its
    own, Bitcoin no peg, and a wrapped token moves by the price of what it stands for.
    """
    any_of_both = {*prices, *pegs}
    wrong = []
    for name, stress in library.stress.items():
        tables = [
            ("price.moves", stress.price.moves, prices, "no price of its own; stables and wrapped tokens move by peg"),
            ("vol", stress.vol, prices, "no price of its own, so nothing has an implied volatility of it"),
            ("peg", stress.peg, pegs, "no peg; it moves by price.moves"),
        ]
        for venue, what in stress.venues.items():
            tables.append((f"venues.{venue}.marks", what.marks, any_of_both, "no price or peg of its own"))
        for place, table, movable, why in tables:
            still = [asset for asset in table if asset != DEFAULT and asset not in movable]
            wrong += [f"{name}.{place}.{asset} would move nothing: {asset} has {why}" for asset in still]
    if wrong:
        raise ConfigurationError("stress library: " + "; ".join(wrong))


class Held(NamedTuple):
    """What of a portfolio a stress can act on; `funded` are the venues at which it has perpetuals."""

    factors: frozenset[str]
    venues: frozenset[str]
    funded: frozenset[str]
    chains: frozenset[str]


def without_effect(stress: Stress, held: Held) -> list[str]:
    """Keys of the stress, down to the name, that act on nothing of what is held; sorted.

    A library speaks of more than one book holds, so this is no mistake as such; but a chain that is misspelt, or an
    implied volatility where no option is, shows here. What a combination takes from other stresses is said with them.
    The single prices of an event with dates to replay are those of the whole market and not listed.
    """
    found: list[str] = []
    moves = {} if stress.replay else stress.price.moves
    for place, kind, table in (("price.moves", "price", moves), ("vol", "vol", stress.vol), ("peg", "peg", stress.peg)):
        of_kind = {factor.partition(":")[2] for factor in held.factors if factor.startswith(f"{kind}:")}
        found += [f"{place}.{asset}" for asset in table if asset != DEFAULT and asset not in of_kind]
        if DEFAULT in table and of_kind <= set(table):
            found.append(f"{place}.{DEFAULT}")
    if stress.price.beta is not None and not any(
        factor.startswith("price:") and factor.removeprefix("price:") not in stress.price.moves
        for factor in held.factors
    ):
        found.append("price.beta")
    for venue, what in stress.venues.items():
        if venue not in held.venues:
            found.append(f"venues.{venue}")
            continue
        moved = {factor.partition(":")[2] for factor in held.factors if not factor.startswith("vol:")}
        found += [f"venues.{venue}.marks.{asset}" for asset in what.marks if asset not in moved]
        if what.funding is not None and venue not in held.funded:
            found.append(f"venues.{venue}.funding")
    own = {venue for venue, what in stress.venues.items() if what.funding is not None}
    if stress.funding and not held.funded - own:
        found.append("funding")
    found += [f"frozen.{venue}" for venue in stress.frozen if venue not in held.venues]
    found += [f"chains_halted.{chain}" for chain in stress.chains_halted if chain not in held.chains]
    return sorted(found)


def stress_moves(parts: Sequence[Stress], factors: Sequence[str], venues: Sequence[str]) -> StressMoves:
    """What the `parts` of one stress do to `factors` (price:, vol:, peg:), float64 log-changes; 0 for others.

    Several parts add up. The marks of a venue come on top of the market's move.
    """
    market = np.zeros(len(factors))
    own: dict[str, np.ndarray] = {}
    frozen: set[str] = set()
    for stress in parts:
        market = market + np.array([_log_move(stress, factor) for factor in factors])
        for venue, what in stress.venues.items():
            if what.marks:
                error = np.array([_mark_error(what, factor) for factor in factors])
                own[venue] = own.get(venue, np.zeros(len(factors))) + error
        if stress.oracle == "frozen":
            frozen |= set(stress.frozen or venues)
    marks = {venue: market + error for venue, error in own.items()}
    triggers = {venue: np.zeros(len(factors)) for venue in frozen}
    return StressMoves(market, marks, triggers)


def _log_move(stress: Stress, factor: str) -> float:
    kind, _, name = factor.partition(":")
    if kind == "price":
        moves = stress.price.moves
        if name in moves:
            return math.log1p(moves[name])
        if stress.price.beta is not None:
            return stress.price.beta * math.log1p(moves[stress.price.reference])
        return math.log1p(moves.get(DEFAULT, 0.0))
    if kind == "vol":
        return math.log(stress.vol.get(name, stress.vol.get(DEFAULT, 1.0)))
    if kind == "peg":
        return math.log1p(stress.peg.get(name, stress.peg.get(DEFAULT, 0.0)))
    return 0.0


def _mark_error(venue: Venue, factor: str) -> float:
    kind, _, name = factor.partition(":")
    return math.log1p(venue.marks.get(name, 0.0)) if kind in ("price", "peg") else 0.0

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
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from .errors import ConfigurationError, nearest_name
from .section import Section

DEFAULT = "default"
"""Key of a table for every asset that the table does not name."""


class Price(Section):
    """Relative price changes by asset; the others change by `beta` times that of `reference`, in logarithms."""

    moves: dict[str, float] = {}
    reference: str = "BTC"
    beta: float | None = None

    @field_validator("moves")
    @classmethod
    def _above_minus_one(cls, moves: dict[str, float]) -> dict[str, float]:
        for asset, move in moves.items():
            if move <= -1.0:
                raise ValueError(f"{asset} moves by {move}; a price cannot fall by all of itself")
        return moves

    @model_validator(mode="after")
    def _one_rule_for_the_others(self) -> Price:
        if self.beta is not None and DEFAULT in self.moves:
            raise ValueError("give the other assets either a beta or a default move, not both")
        if self.beta is not None and self.reference not in self.moves:
            raise ValueError(f"beta needs a move of its reference {self.reference}")
        return self


class Venue(Section):
    """What one venue does differently: its own (wrong) marks, a halt of withdrawals, or its failure.

    `marks` are relative errors of the venue's marks of an asset against the market: its triggers read them, losses are
    taken at the market. With `withdrawals` false nothing that lies there can be used elsewhere; `fails` loses it at the
    loss given default of the policy.
    """

    marks: dict[str, float] = {}
    withdrawals: bool = True
    fails: bool = False

    @field_validator("marks")
    @classmethod
    def _above_minus_one(cls, marks: dict[str, float]) -> dict[str, float]:
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
    today's prices while fills and losses take the new ones. `funding` is the rate that longs pay over the stress, as a
    share of notional. `binding`: the loss enters the requirement beside the grid.
    """

    description: str = Field(min_length=1)
    source: str = Field(min_length=1)
    binding: bool = False
    price: Price = Price()
    replay: Replay | None = None
    vol: dict[str, float] = {}
    peg: dict[str, float] = {}
    depth: float = Field(default=1.0, gt=0)
    funding: float = 0.0
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

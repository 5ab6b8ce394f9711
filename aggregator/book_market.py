"""What a unit of each asset and of each instrument is worth today in USD, and which rows of the cube move it.

Read once for each distinct one that a book holds. Rows of the cube get provisional numbers as they are met and final
ones when all are known: sorted by what they are, so that neither the order of the tables nor what else a book holds
changes the order in which an account's rows are added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .column_codes import numbers
from .covered_rules import NotCoveredError
from .cube import TERMS, CubeBuilder, OptionTerms, years_until
from .errors import ConfigurationError
from .exponents import USD, combined

_PRICE_FIELDS = ("oracle", "index", "stable_price", "mark")

Exponents = tuple[tuple[str, float], ...]


class AssetUnit(NamedTuple):
    """Price today in USD, the factors that move it, and their row."""

    price: float
    exponents: Mapping[str, float]
    row: int


class InstrumentUnit(NamedTuple):
    """What one unit of quantity adds: its value, the cash of one unit of entry price, its notional.

    `value_usd` per unit of the row `value_row`; `notional` in the settlement asset, moved by `ratio_row`, is
    `contract` times the mark, or over it for an inverse contract.
    """

    value_row: int
    value_usd: float
    settlement_row: int
    settlement_usd: float
    entry_usd: float
    inverse: bool
    option: bool
    notional: float
    ratio_row: int
    settlement: str
    contract: float


class _Listing(NamedTuple):
    kind: str
    underlying: str
    settlement: str
    size: float
    payoff: str
    strike: float
    expiry: datetime | None
    option_type: str | None

    @property
    def inverse(self) -> bool:
        return self.payoff == "inverse"


class BookMarket:
    """Lookups by asset and instrument; `NotCoveredError` says what is missing."""

    def __init__(
        self, tables: Mapping[str, pa.Table], held: pa.Array, as_of: datetime, known: frozenset[str] | None
    ) -> None:
        self.as_of, self.known = as_of, known
        assets = tables["assets"]
        self._assets = {
            name: (factor, peg, multiplier)
            for name, factor, peg, multiplier in zip(
                *(assets[column].to_pylist() for column in ("asset_id", "risk_factor", "peg_of")),
                numbers(assets, "multiplier", math.nan).tolist(),
                strict=True,
            )
        }
        if len(self._assets) != assets.num_rows:
            raise ConfigurationError("assets: an asset_id stands twice; check the tables with a snapshot")
        self._listings = _listings(tables["instruments"], held)
        marks = tables["marks"]
        self.with_own_marks = marks["account_id"].drop_null().unique()
        marks = marks.filter(pc.is_null(marks["account_id"])) if len(self.with_own_marks) else marks
        keys = zip(*(marks[name].to_pylist() for name in ("venue", "subject", "field")), strict=True)
        self._marks: dict[tuple[str, str, str], float] = dict(zip(keys, marks["value"].to_pylist(), strict=True))
        if len(self._marks) != marks.num_rows:
            raise ConfigurationError("marks: a venue, subject and field stand twice; check the tables with a snapshot")
        self._of_assets: dict[tuple[str, str], AssetUnit] = {}
        self._of_products: dict[tuple[str, str, bool], tuple[int, int]] = {}
        self._products: dict[Exponents, int] = {(): 0}
        self._options: dict[OptionTerms, int] = {}

    def asset(self, venue: str, asset_id: str) -> AssetUnit:
        """An asset at a venue's price; a stable without a price of its own counts at par."""
        found = self._of_assets.get((venue, asset_id))
        if found is None:
            found = self._of_assets[venue, asset_id] = self._asset(venue, asset_id)
        return found

    def _asset(self, venue: str, asset_id: str) -> AssetUnit:
        if asset_id == USD:
            return AssetUnit(1.0, {}, 0)
        exponents = self._exponents(asset_id)
        self._require(exponents, asset_id)
        price = next((p for f in _PRICE_FIELDS if (p := self._marks.get((venue, asset_id, f))) is not None), None)
        if price is None:
            factor, _, multiplier = self._assets[asset_id]
            if factor is not None:
                raise NotCoveredError(f"no price of {asset_id} on {venue}")
            price = multiplier
        return AssetUnit(_positive(price, f"the price of {asset_id} on {venue}"), exponents, self._product(exponents))

    def instrument(self, venue: str, instrument_id: str) -> InstrumentUnit:
        """An instrument at a venue's marks."""
        of = self._listings.get(instrument_id)
        if of is None:
            raise NotCoveredError(f"market {instrument_id!r} is not known")
        if of.payoff not in ("linear", "inverse"):
            raise NotCoveredError(f"the payoff of {instrument_id} is {of.payoff!r}")
        _positive(of.size, f"the contract size of {instrument_id}")
        settlement = self.asset(venue, of.settlement)
        if of.kind == "option":
            row = self._option(venue, instrument_id, of, settlement)
            return InstrumentUnit(
                row, of.size, settlement.row, settlement.price, 0.0, of.inverse, True, 0.0, 0, of.settlement, of.size
            )
        mark = self._marks.get((venue, instrument_id, "mark"))
        if mark is None:
            raise NotCoveredError(f"no mark of {instrument_id}")
        mark = _positive(mark, f"the mark of {instrument_id}")
        value_row, ratio_row = self._contract_rows(of, settlement)
        notional = of.size / mark if of.inverse else of.size * mark
        value = -of.size * settlement.price / mark if of.inverse else of.size * mark * settlement.price
        entry = of.size * settlement.price
        return InstrumentUnit(
            value_row, value, settlement.row, settlement.price, entry, of.inverse, False, notional, ratio_row,
            of.settlement, of.size,
        )  # fmt: skip

    def _contract_rows(self, of: _Listing, settlement: AssetUnit) -> tuple[int, int]:
        key = (of.underlying, of.settlement, of.inverse)
        found = self._of_products.get(key)
        if found is None:
            moved = self._exponents(of.underlying)
            self._require(moved, of.underlying)
            ratio = combined((moved, -1.0)) if of.inverse else moved
            value = combined((ratio, 1.0), (settlement.exponents, 1.0))
            found = self._of_products[key] = self._product(value), self._product(ratio)
        return found

    def _option(self, venue: str, instrument_id: str, of: _Listing, settlement: AssetUnit) -> int:
        if of.expiry is None or of.option_type not in ("call", "put"):
            raise NotCoveredError(f"the expiry of {instrument_id} is {of.expiry}, its type {of.option_type!r}")
        _positive(of.strike, f"the strike of {instrument_id}")
        factor = self._assets.get(of.underlying, (None,))[0]
        subject = f"{of.underlying}@{of.expiry:%Y-%m-%dT%H:%M:%SZ}"
        forward, rate = self._marks.get((venue, subject, "forward")), self._marks.get((venue, subject, "rate"), 0.0)
        vol = self._marks.get((venue, instrument_id, "implied_vol"))
        if forward is None or vol is None or factor is None:
            raise NotCoveredError(f"no forward, implied vol or price factor of {instrument_id}")
        if not (math.isfinite(vol) and vol >= 0.0 and math.isfinite(rate)):
            raise NotCoveredError(f"implied vol {vol} or rate {rate} of {instrument_id}")
        forward = _positive(forward, f"the forward of {subject} on {venue}")
        names = {f"price:{factor}": 1.0}
        self._require({**names, f"vol:{factor}": 1.0}, instrument_id)
        years = years_until((of.expiry - self.as_of).total_seconds())
        conversion = _key(combined((settlement.exponents, 1.0), (names, -1.0 if of.inverse else 0.0)))
        terms = OptionTerms(
            forward=forward,
            strike=of.strike,
            years=years,
            vol=vol,
            discount=float(np.exp(-max(rate, 0.0) * years)),
            is_call=of.option_type == "call",
            price_factor=f"price:{factor}",
            vol_factor=f"vol:{factor}",
            conversion=conversion,
            conversion_today=settlement.price / forward if of.inverse else settlement.price,
        )
        return -1 - self._options.setdefault(terms, len(self._options))

    def _exponents(self, asset_id: str) -> dict[str, float]:
        if asset_id == USD:
            return {}
        asset = self._assets.get(asset_id)
        if asset is None:
            raise NotCoveredError(f"asset {asset_id!r} is not known")
        factor, peg, _ = asset
        out = {f"price:{factor}": 1.0} if factor else {}
        if peg:
            out[f"peg:{peg}"] = 1.0
        return out

    def _require(self, exponents: Mapping[str, float], subject: str) -> None:
        for name in exponents:
            if self.known is not None and name not in self.known:
                raise NotCoveredError(f"{subject} needs the factor {name}, which nothing moves")

    def _product(self, exponents: Mapping[str, float]) -> int:
        """Provisional number of a factor row; option rows have negative ones."""
        return self._products.setdefault(_key(exponents), len(self._products))

    def finished(self) -> tuple[CubeBuilder, np.ndarray]:
        """The cube, and the final row of every provisional number: [number], negative ones from the end."""
        cube = CubeBuilder()
        products, options = sorted(self._products), sorted(self._options)
        final = np.zeros(len(products) + len(options), np.int64)
        for key in products:
            final[self._products[key]] = cube.factor_row(dict(key))
        rows = [cube.option_row(terms) for terms in options]
        for terms, row in zip(options, rows, strict=True):
            final[-1 - self._options[terms]] = cube.finished_row(row)
        return cube, final


def _key(exponents: Mapping[str, float]) -> Exponents:
    key = tuple(sorted((name, power) for name, power in exponents.items() if power != 0.0))
    if len(key) > TERMS:
        raise NotCoveredError(f"a product of {len(key)} factors, at most {TERMS} are possible: {key}")
    return key


def _positive(value: float, what: str) -> float:
    if not (math.isfinite(value) and value > 0.0):
        raise NotCoveredError(f"{what} is {value}")
    return value


def _listings(instruments: pa.Table, held: pa.Array) -> dict[str, _Listing]:
    """The listings that some account holds."""
    instruments = instruments.filter(pc.is_in(instruments["instrument_id"], value_set=held))
    text = {
        name: instruments[name].to_pylist()
        for name in ("instrument_id", "kind", "underlying", "settlement_asset", "payoff", "expiry", "option_type")
    }
    columns = zip(
        text["kind"],
        text["underlying"],
        text["settlement_asset"],
        numbers(instruments, "contract_size").tolist(),
        text["payoff"],
        numbers(instruments, "strike", math.nan).tolist(),
        text["expiry"],
        text["option_type"],
        strict=True,
    )
    found = {name: _Listing(*row) for name, row in zip(text["instrument_id"], columns, strict=True)}
    if len(found) != instruments.num_rows:
        raise ConfigurationError("instruments: an instrument_id stands twice; check the tables with a snapshot")
    return found

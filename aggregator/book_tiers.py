"""Margin tiers and collateral weights of a book, by rule set and instrument or asset, read by columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from .column_codes import numbers, order_by, places
from .covered_rules import NotCoveredError

_ROUNDING = 1e-12


class TierTables(NamedTuple):
    """Floors, steps and jumps [tables, tiers] as `rules.tiered_notional`; padded tiers have step and jump 0."""

    floor: np.ndarray
    step: np.ndarray
    jump: np.ndarray


class MarginTiers:
    """The maintenance tiers of every rule set and instrument that a book combines."""

    def __init__(self, table: pa.Table, rule_sets: Sequence[str], instruments: Sequence[str]) -> None:
        self._rule_set = {name: number for number, name in enumerate(sorted(set(rule_sets)))}
        self._instrument = {name: number for number, name in enumerate(instruments)}
        rules = places(table["rule_set"], pa.array([*self._rule_set], pa.string()))
        market = places(table["market"], pa.array([*self._instrument], pa.string()))
        kept = np.flatnonzero((rules >= 0) & (market >= 0))
        rules, market = rules[kept], market[kept]
        floor, rate, deduction = (
            numbers(table, name)[kept] for name in ("notional_floor", "maintenance_rate", "deduction")
        )
        tier = table["tier"].to_numpy().astype(np.int64)[kept]
        order = order_by(rules, market, tier)
        self._pair = (rules * len(self._instrument) + market)[order]
        self.floor, self.rate, deduction = floor[order], rate[order], deduction[order]
        begins = np.concatenate([[True], self._pair[1:] != self._pair[:-1]])[: len(order)]

        def steps(values: np.ndarray) -> np.ndarray:
            before = np.concatenate([[0.0], values[:-1]])[: len(values)]
            return values - np.where(begins, 0.0, before)

        # The formula of `rules.tiered_notional.pack_tiers` for all tables at once.
        self.step = steps(self.rate)
        jump = self.floor * self.step - steps(deduction)
        self.jump = np.where(np.abs(jump) <= _ROUNDING * (np.abs(deduction) + self.floor * self.rate), 0.0, jump)
        self._begins = np.flatnonzero(begins)
        self._number = {pair: number for number, pair in enumerate(self._pair[self._begins].tolist())}
        ascends = np.ones(len(order), bool)
        ascends[1:] = self.floor[1:] > self.floor[:-1]
        # A comparison with NaN is false: such a table does not ascend.
        wrong = np.where(begins, self.floor != 0.0, ~ascends) | ~np.isfinite(self.step) | ~np.isfinite(self.jump)
        self._wrong = np.logical_or.reduceat(wrong, self._begins) if len(order) else np.zeros(0, bool)
        self._free = ~(self.rate[self._begins] > 0.0)

    def table(self, rule_set: str, instrument: str) -> int:
        """Number of the tiers of an instrument; raises `NotCoveredError` where they cannot be used."""
        pair = self._rule_set[rule_set] * len(self._instrument) + self._instrument[instrument]
        number = self._number.get(pair)
        if number is None:
            raise NotCoveredError(f"no margin tiers of {instrument}")
        if self._wrong[number]:
            raise NotCoveredError(f"tier floors of {instrument} do not ascend from 0")
        if self._free[number]:
            raise NotCoveredError(f"the first tier of {instrument} requires nothing")
        return number

    def tables(self, used: Sequence[int]) -> TierTables:
        """The tables with these numbers, padded to one width with their last floor."""
        first = self._begins[np.asarray(used, np.int64)]
        ends = np.append(self._begins, len(self._pair))[1:]
        last = ends[np.asarray(used, np.int64)] - 1
        width = int((last - first).max(initial=0)) + 1
        at = first[:, None] + np.arange(width)
        real = at <= last[:, None]
        at = np.minimum(at, last[:, None])
        return TierTables(self.floor[at], np.where(real, self.step[at], 0.0), np.where(real, self.jump[at], 0.0))


class CollateralWeights:
    """(asset weight, liability weight) at maintenance, by rule set, asset and e-mode."""

    def __init__(self, table: pa.Table) -> None:
        columns = [table[name].to_pylist() for name in ("rule_set", "asset_id", "emode", "tier")]
        columns += [
            numbers(table, name, np.nan).tolist()
            for name in ("floor", "asset_weight_maintenance", "liability_weight_maintenance")
        ]
        self._rows: dict[tuple[str, str, str], list[tuple[int, float, float, float]]] = {}
        for rule_set, asset_id, emode, *row in zip(*columns, strict=True):
            self._rows.setdefault((rule_set, asset_id, emode), []).append((row[0], row[1], row[2], row[3]))

    def has(self, rule_set: str, emode: str, name: str) -> bool:
        """Whether there is a row with this id: of an instrument, it weighs the profit of positions."""
        return (rule_set, name, emode) in self._rows or (rule_set, name, "") in self._rows

    def of(self, rule_set: str, emode: str, unit: str, asset_id: str) -> tuple[float, float]:
        """The weights of an asset; `NotCoveredError` where they are not one number each. The account's own unit counts
        in full where no row says otherwise.
        """
        tiers = self._rows.get((rule_set, asset_id, emode)) or self._rows.get((rule_set, asset_id, ""))
        if tiers is None:
            if asset_id != unit:
                raise NotCoveredError(f"no collateral weight of {asset_id} in {rule_set}")
            return 1.0, 1.0
        if len(tiers) > 1 or tiers[0][1] != 0.0:
            raise NotCoveredError(f"several slices of {asset_id} in {rule_set}")
        _, _, weight, liability = tiers[0]
        if not (np.isfinite(weight) and np.isfinite(liability)):
            raise NotCoveredError(f"collateral weights {weight} and {liability} of {asset_id} in {rule_set}")
        return weight, liability

"""What the inputs hold that bears on a difference between a venue's figure and ours, looked up by account.

Nothing here knows a venue. What a venue does otherwise than its published rules its adapter says in rows of
`market_state` whose market is the account: `reconciliation_note` (or `reconciliation_note.<figure>`) with the size that
it accounts for, in the account's unit, as value and the words as text; `order_margin` with what the account states that
its orders take. A price that the adapter works out of other figures of the account has the formula as its source.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from functools import cached_property
from typing import NamedTuple

from .cube import CubeBuilder
from .errors import Failure, FailureReason
from .market import Market
from .portfolio import Book, pack_book
from .rule_forms import Fixed, Form, TieredNotional, WeightedValue, parse_parameters
from .snapshot import Row, Snapshot

NOTE = "reconciliation_note"
"""Field of `market_state` for what a venue does otherwise; `.equity` and so on behind it for one figure alone."""
ORDER_MARGIN = "order_margin"
"""Field of `market_state` for the margin that the account states for its open orders."""

_REPORTED = ("reported_equity", "reported_initial_margin", "reported_maintenance_margin", "reported_health")
_OUTDATED = timedelta(days=1)
# A figure of few digits may be rounded, or round. It passes for rounded only where that is no more than half a cent or
# a ten-millionth of it, and for a ratio half of a hundredth.
_ROUNDING_USD = 0.005
_ROUNDING_RELATIVE = 1e-7
_ROUNDING_RATIO = 0.005
# Two accounts' marks of one instant that differ by more are no roundings of one price.
_SAME_MARK = 1e-6


class Note(NamedTuple):
    """What a venue does otherwise, and the largest difference that it makes, in the figure's unit."""

    text: str
    size: float


class Stated(NamedTuple):
    """The venue's own figures of an account's positions: their sum in the account's unit, what their rounding leaves
    open, and how many there are.
    """

    amount: float
    slack: float
    rows: int


class Prices(NamedTuple):
    """Marks by instrument that an account's own margins imply; `slack` is what rounding leaves open, in its unit."""

    marks: Mapping[str, float]
    slack: float
    sentence: str


def place_of(number: Decimal) -> int:
    """Decimals that a number carries, trailing zeros aside; 0 for an integer."""
    # normalize() rounds to the digits of the context, and decimal128 holds 38.
    with localcontext(prec=60):
        exponent = number.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


@dataclass(frozen=True)
class Evidence:
    """Lookups over the checked snapshots of a run and everything that could not be read."""

    snapshots: Mapping[str, Snapshot]
    all_failures: Sequence[Failure]
    as_of: datetime

    # ---- the account -------------------------------------------------------------------------------------------------

    @cached_property
    def _accounts(self) -> Mapping[str, tuple[str, Row]]:
        return {
            row["account_id"]: (name, row)
            for name, snapshot in self.snapshots.items()
            for row in snapshot.tables["accounts"]
        }

    @cached_property
    def _failures(self) -> Mapping[str, list[Failure]]:
        out: dict[str, list[Failure]] = {}
        for failure in dict.fromkeys(self.all_failures):
            out.setdefault(failure.account_id or failure.subject, []).append(failure)
        return out

    @cached_property
    def _rules(self) -> Mapping[str, list[tuple[Row, Form]]]:
        """Components by rule set."""
        out: dict[str, list[tuple[Row, Form]]] = {}
        for snapshot in self.snapshots.values():
            for row in snapshot.tables["rule_sets"]:
                out.setdefault(row["rule_set"], []).append((row, parse_parameters(row["form"], row["parameters"])))
        return out

    @cached_property
    def _markets(self) -> Mapping[str, Market]:
        return {name: Market(s, CubeBuilder(), self.as_of, frozenset()) for name, s in self.snapshots.items()}

    def _row(self, account_id: str) -> Row:
        return self._accounts[account_id][1]

    def market(self, account_id: str) -> Market:
        """Lookups over the snapshot of an account that was read."""
        return self._markets[self._accounts[account_id][0]]

    def _components(self, account_id: str) -> list[tuple[Row, Form]]:
        return self._rules.get(self._row(account_id)["rule_set"], []) if account_id in self._accounts else []

    def failures(self, account_id: str) -> list[Failure]:
        """What could not be read of an account, then findings about it."""
        return sorted(self._failures.get(account_id, ()), key=lambda failure: failure.account_id is None)

    def reported(self, account_id: str) -> Mapping[str, Decimal | None]:
        """The columns `reported_...` of an account; empty for one that has no row."""
        return {name: self._row(account_id)[name] for name in _REPORTED} if account_id in self._accounts else {}

    def reported_part(self, account_id: str, level: str) -> tuple[float, str]:
        """(Amount in the account's unit, basis) of what a level (equity, initial, maintenance) takes from the venue as
        reported; the basis is empty where it takes nothing.

        Of equity that is also what stands at prices that follow from other figures of the account: a profit, or a
        balance's worth, from which the price was worked out comes back as it was stated.
        """
        total, bases = self._worked_out(account_id) if level == "equity" else (0.0, [])
        for row, form in self._components(account_id):
            if not isinstance(form, Fixed) or not form.basis.startswith("reported"):
                continue
            on_level = row["side"] == level or (row["side"] == "requirement" and row["level"] in (level, "both"))
            amount = float(getattr(form, level, 0)) if on_level else 0.0
            if amount:
                total += amount
                bases.append(form.basis)
        return total, "; ".join(bases)

    def _worked_out(self, account_id: str) -> tuple[float, list[str]]:
        """(Sum of absolute amounts in the account's unit, bases) that prices worked out of the account's own figures
        bring into its equity.
        """
        market, row = self.market(account_id), self._row(account_id)
        unit_price, _ = market.asset_price(row["venue"], account_id, row["settlement_asset"])
        at_mark = any(
            isinstance(form, WeightedValue) and form.options == "mark" for _, form in self._components(account_id)
        )
        amounts, sources = [], Counter[str]()
        for position in market.positions.get(account_id, ()):
            instrument = market.instruments[position["instrument_id"]]
            mark = market.mark(row["venue"], account_id, position["instrument_id"], "mark")
            is_option = instrument["kind"] == "option"
            if mark is None or not _is_worked_out(mark) or (is_option and not at_mark):
                continue
            size = float(position["quantity"]) * float(instrument["contract_size"])
            entry = 0.0 if is_option else float(position["entry_price"])
            linear = is_option or instrument["payoff"] == "linear"
            gain = mark["value"] - entry if linear else 1 / entry - 1 / mark["value"]
            price, _ = market.asset_price(row["venue"], account_id, instrument["settlement_asset"])
            amounts.append(abs(size * gain) * price / unit_price)
            sources[mark["source"]] += 1
        for balance in market.balances.get(account_id, ()):
            mark = market.asset_mark(row["venue"], account_id, balance["asset_id"])
            if mark is not None and _is_worked_out(mark):
                amount = balance["quantity"] + (balance["accrued_interest"] or 0)
                amounts.append(abs(float(amount)) * mark["value"] / unit_price)
                sources[mark["source"]] += 1
        return math.fsum(amounts), [f"{count} prices from {source}" for source, count in sorted(sources.items())]

    # ---- rounding ----------------------------------------------------------------------------------------------------

    @cached_property
    def _decimals(self) -> Mapping[tuple[str, str, str], int]:
        """Most decimals that any account of a venue and unit carries in a column of reported figures."""
        out: dict[tuple[str, str, str], int] = {}
        for _, row in self._accounts.values():
            for column in _REPORTED:
                if row[column] is not None:
                    key = row["venue"], row["settlement_asset"], column
                    out[key] = max(out.get(key, 0), place_of(row[column]))
        return out

    def half_place(self, account_id: str, column: str, unit_price: float) -> float:
        """Half a unit in the last place to which the venue states a figure, in the figure's unit; 0 where it states
        none.

        The last place is the finest that any account of the venue and unit carries: trailing zeros do not show in one.
        """
        row = self._row(account_id) if account_id in self._accounts else {}
        value = row.get(column)
        if value is None or not unit_price > 0:
            return 0.0
        half = 0.5 * 10.0 ** -self._decimals[row["venue"], row["settlement_asset"], column]
        if column == "reported_health":
            return min(half, _ROUNDING_RATIO)
        return min(half, _largest_rounding(float(value), unit_price))

    @cached_property
    def _position_decimals(self) -> Mapping[tuple[str, str], int]:
        out: dict[tuple[str, str], int] = {}
        for snapshot in self.snapshots.values():
            for row in snapshot.tables["positions"]:
                for column in ("reported_initial_margin", "reported_maintenance_margin"):
                    if row[column] is not None and row["account_id"] in self._accounts:
                        key = self._row(row["account_id"])["venue"], column
                        out[key] = max(out.get(key, 0), place_of(row[column]))
        return out

    def row_count(self, account_id: str) -> int:
        """Balances and positions of an account."""
        market = self.market(account_id)
        return len(market.balances.get(account_id, ())) + len(market.positions.get(account_id, ()))

    # ---- orders, notes, dates ----------------------------------------------------------------------------------------

    @cached_property
    def _orders(self) -> Mapping[str, int]:
        out: dict[str, int] = {}
        for snapshot in self.snapshots.values():
            for row in snapshot.tables["open_orders"]:
                out[row["account_id"]] = out.get(row["account_id"], 0) + 1
        return out

    def orders(self, account_id: str) -> int:
        """Open orders that were read."""
        return self._orders.get(account_id, 0)

    @cached_property
    def _state(self) -> Mapping[tuple[str, str], Row]:
        return {
            (row["market"], row["field"]): row
            for snapshot in self.snapshots.values()
            for row in snapshot.tables["market_state"]
            if row["field"] == ORDER_MARGIN or row["field"].partition(".")[0] == NOTE
        }

    def order_margin(self, account_id: str) -> float | None:
        """What the account states that its open orders take, in its unit."""
        row = self._state.get((account_id, ORDER_MARGIN))
        return None if row is None else row["value"]

    def note(self, account_id: str, figure: str) -> Note | None:
        """What the venue does otherwise with this figure; None without words or without a size."""
        row = self._state.get((account_id, f"{NOTE}.{figure}")) or self._state.get((account_id, NOTE))
        if row is None or row["value"] is None or not row["text"]:
            return None
        return Note(row["text"], abs(row["value"]))

    def older_parameters(self, account_id: str) -> str | None:
        """That the account's rule set holds parameters more than a day older than the account; None if it does not."""
        moment = _moment(self._row(account_id))
        dates = [d for row, _ in self._components(account_id) if (d := row["read_at"] or row["valid_from"]) is not None]
        if moment is None or not dates or moment - min(dates) <= _OUTDATED:
            return None
        return f"parameters are of {min(dates):%Y-%m-%d}, the account of {moment:%Y-%m-%d}"

    def circumstances(self, account_id: str, *, orders: bool) -> list[str]:
        """What stands beside a difference without accounting for it, in words."""
        out = []
        moment, stale = _moment(self._row(account_id)), self._stale_marks(account_id)
        if moment is not None and stale:
            first = next(iter(stale.values()))
            out.append(
                f"{len(stale)} marks of another time than the account (first {first['subject']}, "
                f"{(first['as_of'] - moment).total_seconds():+.0f} s)"
            )
        if (age := self.older_parameters(account_id)) is not None:
            out.append(age)
        if orders and (count := self.orders(account_id)):
            out.append(f"{count} open orders")
        out += [row["text"] for (market, _), row in self._state.items() if market == account_id and row["text"]]
        out += self.price_gaps(account_id)
        return out + [f"a finding: {failure.message}" for failure in self.failures(account_id)[:1]]

    def price_gaps(self, account_id: str) -> list[str]:
        """That prices of what the account holds are not one price: other accounts' marks of the same instant, and the
        snapshot's findings of prices further apart than a run allows.
        """
        market, row = self.market(account_id), self._row(account_id)
        assets = [balance["asset_id"] for balance in market.balances.get(account_id, ())]
        out = []
        for position in market.positions.get(account_id, ()):
            instrument_id = position["instrument_id"]
            assets.append(market.instruments[instrument_id]["underlying"])
            own = market.mark(row["venue"], account_id, instrument_id, "mark")
            if own is None:
                continue
            others = self._marks[row["venue"], instrument_id, own["as_of"]]
            other = max(others, key=lambda mark: (abs(mark["value"] - own["value"]), mark["account_id"] or ""))
            if abs(other["value"] - own["value"]) > _SAME_MARK * own["value"]:
                place = other["account_id"] or "the venue's own mark"
                out.append(
                    f"inconsistent marks of {instrument_id}: {own['value']:.8g} here, {other['value']:.8g} of the same "
                    f"instant for {place}"
                )
        symbols = {market.assets[asset]["symbol"] for asset in assets if asset in market.assets}
        return out + [
            f"a finding: {failure.message}"
            for symbol in sorted(symbols)
            for failure in self._failures.get(symbol, ())
            if failure.reason is FailureReason.INCONSISTENT and failure.path == "marks"
        ]

    @cached_property
    def _marks(self) -> Mapping[tuple[str, str, datetime | None], list[Row]]:
        """The lowest and the highest mark by venue, instrument and instant."""
        out: dict[tuple[str, str, datetime | None], list[Row]] = {}
        for snapshot in self.snapshots.values():
            for row in snapshot.tables["marks"]:
                if row["field"] == "mark":
                    key = row["venue"], row["subject"], row["as_of"]
                    ends = sorted([*out.get(key, ()), row], key=lambda mark: (mark["value"], mark["account_id"] or ""))
                    out[key] = [ends[0], ends[-1]]
        return out

    # ---- the venue's own figures of the positions --------------------------------------------------------------------

    def stated_of_positions(self, account_id: str, level: str) -> Stated | None:
        """The positions' own reported margins of a level, None where one of them states none."""
        market, row, column = self.market(account_id), self._row(account_id), f"reported_{level}_margin"
        unit_price, _ = market.asset_price(row["venue"], account_id, row["settlement_asset"])
        amounts, slack = [], 0.0
        for position in market.positions.get(account_id, ()):
            if position[column] is None:
                return None
            settlement = market.instruments[position["instrument_id"]]["settlement_asset"]
            price, _ = market.asset_price(row["venue"], account_id, settlement)
            amounts.append(float(position[column]) * price / unit_price)
            slack += self._place(row["venue"], column, float(position[column]), price) * price / unit_price
        return Stated(math.fsum(amounts), slack, len(amounts))

    def _place(self, venue: str, column: str, value: float, price: float) -> float:
        unit = 10.0 ** -self._position_decimals[venue, column]
        return min(unit, 2 * _largest_rounding(value, price))

    def _stale_marks(self, account_id: str) -> dict[str, Row]:
        """Marks by instrument that the account's positions use and that are of another time than the account."""
        market, row = self.market(account_id), self._row(account_id)
        moment, out = _moment(row), {}
        for position in market.positions.get(account_id, ()):
            mark = market.mark(row["venue"], account_id, position["instrument_id"], "mark")
            if not position["quantity"] or mark is None or None in (moment, mark["as_of"]):
                continue
            if mark["as_of"] != moment:
                out[position["instrument_id"]] = mark
        return out

    def implied_marks(self, account_id: str) -> Prices | None:
        """Marks that the account's own initial margins imply in place of those of another time; None if one does not.

        Where initial margin is notional over the chosen leverage, mark = margin * leverage / size.
        """
        stale = self._stale_marks(account_id)
        by_leverage = any(
            isinstance(form, TieredNotional) and form.initial == "leverage" and form.basis == "mark"
            for _, form in self._components(account_id)
        )
        if not stale or not by_leverage:
            return None
        market, row = self.market(account_id), self._row(account_id)
        unit_price, _ = market.asset_price(row["venue"], account_id, row["settlement_asset"])
        marks, slack = {}, 0.0
        for position in market.positions[account_id]:
            instrument = market.instruments[position["instrument_id"]]
            if position["instrument_id"] not in stale or not position["quantity"]:
                continue
            margin, leverage = position["reported_initial_margin"], position["leverage"]
            if not margin or not leverage or position["initial_rate_override"] is not None:
                return None
            if instrument["payoff"] != "linear" or instrument["kind"] == "option" or position["side_mode"] != "net":
                return None
            size = abs(position["quantity"]) * instrument["contract_size"]
            marks[position["instrument_id"]] = float(margin * leverage / size)
            price, _ = market.asset_price(row["venue"], account_id, instrument["settlement_asset"])
            place = self._place(row["venue"], "reported_initial_margin", float(margin), price)
            slack += float(leverage) * place * price / unit_price
        moment, (name, first) = _moment(row), next(iter(stale.items()))
        assert moment is not None
        apart = (first["as_of"] - moment).total_seconds()
        sentence = (
            f"matches at the marks behind the account's own initial margins ({name} {marks[name]:.8g}, not "
            f"{first['value']:.8g}, which is of {abs(apart):g} s {'later' if apart > 0 else 'earlier'})"
        )
        return Prices(marks, slack, sentence)

    # ---- the accounts by themselves ----------------------------------------------------------------------------------

    def seconds_apart(self, account_id: str) -> float:
        """Seconds by which the account's own time lies behind the run's (negative: before it), as far as its figures
        depend on the time: 0 for an account that holds nothing that expires.
        """
        market, moment = self.market(account_id), _moment(self._row(account_id))
        held = (market.instruments[p["instrument_id"]] for p in market.positions.get(account_id, ()))
        if moment is None or all(instrument["expiry"] is None for instrument in held):
            return 0.0
        return (moment - self.as_of).total_seconds()

    def book_at(self, marks: Mapping[str, Mapping[str, float]]) -> Book:
        """The accounts alone, as one portfolio, each at its own time and with these marks by instrument."""
        snapshots = {}
        for name, snapshot in self.snapshots.items():
            members = {a for a in marks if self._accounts[a][0] == name}
            tables = dict(snapshot.tables)
            for table in ("accounts", "balances", "positions", "open_orders"):
                tables[table] = tuple(row for row in tables[table] if row["account_id"] in members)
            tables["marks"] = (*_without(tables["marks"], marks), *self._own_marks(sorted(members), marks))
            snapshots[name] = replace(snapshot, tables=tables, incomplete=frozenset())
        moments = {account: moment for account in marks if (moment := _moment(self._row(account))) is not None}
        book, _ = pack_book(snapshots, {"": sorted(marks)}, as_of=self.as_of, moments=moments)
        return book

    def _own_marks(self, account_ids: Iterable[str], marks: Mapping[str, Mapping[str, float]]) -> list[Row]:
        return [
            {
                "venue": self._row(account)["venue"],
                "account_id": account,
                "subject": instrument,
                "field": "mark",
                "value": value,
                "confidence": None,
                "as_of": _moment(self._row(account)),
                "source": "implied by the account's own initial margin",
            }
            for account in account_ids
            for instrument, value in sorted(marks[account].items())
        ]


def _without(rows: Iterable[Row], marks: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """`rows` without an account's own marks of the instruments that get other ones."""
    return [r for r in rows if r["field"] != "mark" or r["subject"] not in marks.get(r["account_id"] or "", {})]


def _is_worked_out(mark: Row) -> bool:
    """Whether an account's own price was worked out of its other figures; one that was stated has its request there."""
    return mark["account_id"] is not None and any(sign in mark["source"] for sign in (" / ", " over "))


def _largest_rounding(value: float, unit_price: float) -> float:
    return max(_ROUNDING_RELATIVE * abs(value), _ROUNDING_USD / unit_price)


def _moment(row: Row) -> datetime | None:
    """The instant that an account's row is of."""
    moment: datetime | None = row["event_at"] or row["received_at"]
    return moment

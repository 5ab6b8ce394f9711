"""A slow twin of the engine: from canonical rows and a matrix of factor moves to margins, losses and risk measures.

Written from the design and the rules' descriptions in plain Python and NumPy float64, one account and one row at a
time: no packing, no buckets, no differences in float32, no engine code. Values are arrays over scenarios whose first
entry is today (a move of zero and no time elapsed), so one formula gives both. Money in USD unless a name says
otherwise; long positive; losses positive.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from scipy.special import ndtr

Row = dict[str, Any]
Tables = Mapping[str, Sequence[Row]]

DAYS_PER_YEAR = 365.0
MEASURE_OF_LONGEST_TERM_DAYS = 30.0
VOL_MOVE_LIMIT = 2.0


@dataclass
class Account:
    """One account today and in every scenario; `equity`, `initial` and `maintenance` [1 + S] in its own unit."""

    account_id: str
    node: str
    unit_price: float
    equity: np.ndarray
    initial: np.ndarray
    maintenance: np.ndarray
    liquidated: np.ndarray
    """[S], at the horizon."""
    distance: np.ndarray
    """[S], equity less trigger times requirement."""
    health: float | None
    line_values: dict[str, np.ndarray] = field(default_factory=dict)
    """Contribution to market equity of each balance and position, USD, [1 + S]."""


class World:
    """Prices of everything of one snapshot, today and in every scenario."""

    def __init__(
        self, tables: Tables, factors: Sequence[str], shocks: np.ndarray, *, as_of: datetime, horizon_days: float
    ) -> None:
        self.tables, self.as_of = tables, as_of
        moves = np.vstack([np.zeros(len(factors)), shocks])
        self.moves = {name: moves[:, number] for number, name in enumerate(factors)}
        self.none = np.zeros(len(moves))
        self.elapsed_years = np.r_[0.0, np.full(len(shocks), horizon_days / DAYS_PER_YEAR)]
        self.assets = {row["asset_id"]: row for row in tables["assets"]}
        self.instruments = {row["instrument_id"]: row for row in tables["instruments"]}

    def of(self, table: str, **match: Any) -> list[Row]:
        return [row for row in self.tables[table] if all(row.get(k) == v for k, v in match.items())]

    def mark(self, account: Row, subject: str, name: str) -> Row | None:
        for owner in (account["account_id"], None):
            found = [
                row
                for row in self.of("marks", venue=account["venue"], subject=subject, field=name)
                if row.get("account_id") == owner
            ]
            if found:
                return found[0]
        return None

    def log_move(self, asset_id: str) -> np.ndarray:
        """Log change of an asset's USD price: its factor's move and its own peg's."""
        if asset_id == "USD":
            return self.none
        asset = self.assets[asset_id]
        factor, peg = asset.get("risk_factor"), asset.get("peg_of")
        return (
            (self.moves[f"price:{factor}"] if factor else 0.0) + (self.moves[f"peg:{peg}"] if peg else 0.0) + self.none
        )

    def price_today(self, account: Row, asset_id: str) -> float:
        if asset_id == "USD":
            return 1.0
        for name in ("oracle", "index", "stable_price", "mark"):
            row = self.mark(account, asset_id, name)
            if row is not None:
                return float(row["value"])
        assert not self.assets[asset_id].get("risk_factor"), asset_id
        return 1.0

    def confidence(self, account: Row, asset_id: str) -> float:
        for name in ("oracle", "index", "stable_price", "mark"):
            row = self.mark(account, asset_id, name)
            if row is not None:
                return _confidence(row)
        return 1.0

    def price(self, account: Row, asset_id: str) -> np.ndarray:
        """USD price of an asset, [1 + S]."""
        return self.price_today(account, asset_id) * np.exp(self.log_move(asset_id))


def _confidence(row: Row | None) -> float:
    return 1.0 if row is None or row.get("confidence") is None else float(row["confidence"])


def black76(
    forward: np.ndarray, strike: float, years: np.ndarray, vol: np.ndarray, discount: np.ndarray, *, call: bool
) -> np.ndarray:
    """Discounted price of a European option; the intrinsic where no time or no volatility is left."""
    side = 1.0 if call else -1.0
    total = vol * np.sqrt(years)
    safe = np.where(total > 0, total, 1.0)
    d1 = np.log(forward / strike) / safe + safe / 2
    price = side * (forward * ndtr(side * d1) - strike * ndtr(side * (d1 - safe)))
    return discount * np.where(total > 0, price, np.maximum(side * (forward - strike), 0.0))


def _term(world: World, instrument: Row) -> float:
    return max((instrument["expiry"] - world.as_of).total_seconds(), 0.0) / (DAYS_PER_YEAR * 86400.0)


def _expiry_subject(instrument: Row) -> str:
    return f"{instrument['underlying']}@{instrument['expiry'].strftime('%Y-%m-%dT%H:%M:%SZ')}"


def _moved_vol(world: World, factor: str, vol: float, years: float) -> np.ndarray:
    scale = (MEASURE_OF_LONGEST_TERM_DAYS / max(years * DAYS_PER_YEAR, 1.0)) ** 0.5
    return vol * np.exp(np.clip(world.moves[f"vol:{factor}"] * scale, -VOL_MOVE_LIMIT, VOL_MOVE_LIMIT))


def option_value(world: World, account: Row, instrument: Row, *, undiscounted: bool) -> np.ndarray:
    """USD value of one contract's unit, [1 + S]; an inverse option pays coins, its quote value over the forward."""
    subject = _expiry_subject(instrument)
    forward_row, vol_row = (
        world.mark(account, subject, "forward"),
        world.mark(account, instrument["instrument_id"], "implied_vol"),
    )
    rate_row = world.mark(account, subject, "rate")
    assert forward_row is not None
    assert vol_row is not None
    rate = 0.0 if rate_row is None or undiscounted else max(float(rate_row["value"]), 0.0)
    years = _term(world, instrument)
    left = np.maximum(years - world.elapsed_years, 0.0)
    factor = world.assets[instrument["underlying"]]["risk_factor"]
    forward = forward_row["value"] * np.exp(world.moves[f"price:{factor}"])
    vol = _moved_vol(world, factor, vol_row["value"], years)
    call = instrument["option_type"] == "call"
    quoted = black76(forward, float(instrument["strike"]), left, vol, np.exp(-rate * left), call=call)
    settlement = world.price(account, instrument["settlement_asset"])
    return quoted / forward * settlement if instrument["payoff"] == "inverse" else quoted * settlement


def position_value(world: World, account: Row, row: Row, *, undiscounted: bool) -> np.ndarray:
    """What a position adds to market equity, USD, [1 + S]: an option its value, a perp or future its profit."""
    instrument = world.instruments[row["instrument_id"]]
    settlement = world.price(account, instrument["settlement_asset"])
    size = float(row["quantity"]) * float(instrument["contract_size"])
    cash = float(row.get("unsettled_funding") or 0) + float(row.get("realized_pnl") or 0)
    if instrument["kind"] == "option":
        return size * option_value(world, account, instrument, undiscounted=undiscounted) + cash * settlement
    mark_row = world.mark(account, row["instrument_id"], "mark")
    assert mark_row is not None
    mark = mark_row["value"] * np.exp(world.log_move(instrument["underlying"]))
    entry = float(row["entry_price"])
    profit = size * (mark - entry) if instrument["payoff"] == "linear" else size * (1.0 / entry - 1.0 / mark)
    return (profit + cash) * settlement


def account_twin(world: World, account_id: str) -> Account:
    """One account by its rule set."""
    account = world.of("accounts", account_id=account_id)[0]
    unit = account["settlement_asset"]
    unit_price = world.price(account, unit)
    components = sorted(world.of("rule_sets", rule_set=account["rule_set"]), key=lambda row: row["component_no"])
    parsed = [(row, json.loads(row["parameters"])) for row in components]
    undiscounted = any(row["form"] in ("expiry_max_loss", "option_formula") for row in components)

    lines, holdings = {}, []
    for row in world.of("balances", account_id=account_id):
        sign = 1.0 if row["side"] == "asset" else -1.0
        tokens = sign * (float(row["quantity"]) + float(row.get("accrued_interest") or 0))
        value = tokens * world.price(account, row["asset_id"])
        lines[f"{account_id}/{row['asset_id']}" + ("" if sign > 0 else "/debt")] = value
        holdings.append((row["asset_id"], row["side"], bool(row["collateral_enabled"]) or sign < 0, value, None))
    for row in world.of("positions", account_id=account_id):
        value = position_value(world, account, row, undiscounted=undiscounted)
        suffix = "" if row["side_mode"] == "net" else f"/{row['side_mode']}"
        lines[f"{account_id}/{row['instrument_id']}{suffix}"] = value
        settlement = world.instruments[row["instrument_id"]]["settlement_asset"]
        holdings.append((settlement, None, True, value, row["instrument_id"]))

    equity, initial, maintenance = world.none.copy(), world.none.copy(), world.none.copy()
    for row, form in parsed:
        if row["side"] == "equity" and row["form"] == "fixed":
            equity += float(form["equity"])
        elif row["side"] == "equity":
            counted = _weighted_equity(world, account, form, holdings, unit_price, "maintenance")
            equity += counted
            initial += counted - _weighted_equity(world, account, form, holdings, unit_price, "initial")
        elif row["form"] == "debt_charge":
            needed = _debt_charge(world, form, holdings, unit_price)
            initial += needed[0]
            maintenance += needed[1]
        elif row["form"] == "weighted_value":
            for level, total in (("initial", initial), ("maintenance", maintenance)):
                total += _haircuts(world, account, form, holdings, unit_price, level)
        elif row["form"] in ("tiered_notional", "rate_of_size"):
            orders = world.of("open_orders", account_id=account_id)
            initial += float(form["per_order"]) * len(orders)
            maintenance += float(form["per_order"]) * len(orders)
            charged = _positions_and_markets_with_orders(world, account_id, form)
            charge = _tiered if row["form"] == "tiered_notional" else _by_size
            for position in charged:
                needed = charge(world, account, form, position, unit_price)
                initial += needed[0]
                maintenance += needed[1]
        elif row["form"] == "fixed":
            initial += float(form["initial"])
            maintenance += float(form["maintenance"])
    forms: dict[str, list[Any]] = {}
    for row, form in parsed:
        forms.setdefault(row["form"], []).append(form)
    for unit_of_risk in _risk_units(world, account, forms, unit_price, undiscounted=undiscounted):
        needed = _unit_requirement(unit_of_risk, forms)
        initial += needed[0]
        maintenance += needed[1]

    verdict = forms["verdict"][0]
    least = float(verdict["trigger"]) * maintenance
    short = equity <= least if verdict["liquidates_when"] == "at_or_below" else equity < least
    liquidated = np.where(maintenance > 0, short, equity < 0)[1:]
    health: float | None = None
    if verdict["health"] == "weighted_collateral_over_debt":
        power, debt = 0.0, 0.0
        for asset, side, counts, value, _ in holdings:
            if side == "liability":
                debt -= value[0] / unit_price[0]
            elif counts:
                power += _weight(world, account, asset, "asset", "maintenance") * value[0] / unit_price[0]
        health = power / debt if debt > 0 else None
    elif maintenance[0] > 0:
        health = float(equity[0] / maintenance[0])
    return Account(
        account_id=account_id,
        node=account["node"],
        unit_price=float(unit_price[0]),
        equity=equity,
        initial=initial,
        maintenance=maintenance,
        liquidated=liquidated,
        distance=(equity - np.where(maintenance > 0, least, 0.0))[1:],
        health=health,
        line_values=lines,
    )


def _weight(world: World, account: Row, asset: str, side: str, level: str) -> float:
    """Weight of an asset: in the account's e-mode, else outside of it, else 1 for the account's own unit."""
    for emode in dict.fromkeys([account.get("emode") or "", ""]):
        found = world.of("collateral_tiers", rule_set=account["rule_set"], asset_id=asset, emode=emode)
        if found:
            return float(found[0][f"{side}_weight_{level}"])
    assert asset == account["settlement_asset"], asset
    return 1.0


def _weighted_equity(
    world: World, account: Row, form: Any, holdings: Sequence[Any], unit_price: Any, level: str
) -> np.ndarray:
    """What the holdings count at the weights of `level`, slice by slice."""
    counting = [(asset, value / unit_price, held) for asset, _, counts, value, held in holdings if counts]
    if form["weights"] == "unit":
        return np.sum([value for _, value, _ in counting], axis=0) if counting else world.none
    nets: dict[tuple[str, str], np.ndarray] = {}
    for number, (asset, value, held) in enumerate(counting):
        own = held is not None and world.of("collateral_tiers", rule_set=account["rule_set"], asset_id=held)
        key = (asset, "") if form["net_by_asset"] else (held if own else asset, str(number))
        nets[key] = nets.get(key, world.none) + value
    total = world.none.copy()
    for (subject, _), net in nets.items():
        tiers = sorted(
            world.of("collateral_tiers", rule_set=account["rule_set"], asset_id=subject, emode=""),
            key=lambda tier: tier["tier"],
        )
        if len(tiers) < 2:
            owed = 1.0 if form["liabilities"] == "unit" else _weight(world, account, subject, "liability", level)
            total += net * np.where(net > 0, _weight(world, account, subject, "asset", level), owed)
            continue
        for number, tier in enumerate(tiers):
            worth = 1.0 if tier["floor_in"] == "value" else world.price(account, subject) / unit_price
            above = float(tier["floor"]) * worth
            below = float(tiers[number + 1]["floor"]) * worth if number + 1 < len(tiers) else math.inf
            slice_ = np.clip(np.minimum(net, below) - above, 0.0, None)
            total += slice_ * float(tier[f"asset_weight_{level}"])
        owed = 1.0 if form["liabilities"] == "unit" else float(tiers[0][f"liability_weight_{level}"])
        total += np.minimum(net, 0.0) * owed
    return total


def _debt_charge(
    world: World, form: Any, holdings: Sequence[Any], unit_price: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(initial, maintenance) on what is owed: every liability, or each asset's net."""
    owed: dict[str, np.ndarray] = {}
    if form["net_by_asset"]:
        for asset, _, _, value, _ in holdings:
            owed[asset] = owed.get(asset, world.none) - value / unit_price
        owed = {asset: np.maximum(debt, 0.0) for asset, debt in owed.items()}
    else:
        for asset, side, _, value, _ in holdings:
            if side == "liability":
                owed[asset] = owed.get(asset, world.none) - value / unit_price
    levels = [
        np.sum(
            [float(form[f"{level}_rates"].get(asset, form[f"{level}_rate"])) * debt for asset, debt in owed.items()], 0
        )
        + world.none
        for level in ("initial", "maintenance")
    ]
    return levels[0], levels[1]


def _positions_and_markets_with_orders(world: World, account_id: str, form: Any) -> list[Row]:
    """The account's positions with what its orders could make of them, and markets of orders alone."""
    out = {row["instrument_id"]: dict(row) for row in world.of("positions", account_id=account_id)}
    if form["orders"] != "ignore":
        for waiting in world.of("open_orders", account_id=account_id):
            if waiting["reduce_only"]:
                continue
            empty = {"instrument_id": waiting["instrument_id"], "quantity": "0"}
            row = out.setdefault(waiting["instrument_id"], empty)
            row[waiting["side"]] = row.get(waiting["side"], 0.0) + float(waiting["remaining_quantity"])
    return list(out.values())


def _sizes(form: Any, row: Row) -> tuple[float, float]:
    """(contracts that count initially, for maintenance)."""
    held = float(row["quantity"])
    worst = max(abs(held), abs(held + row.get("buy", 0.0)), abs(held - row.get("sell", 0.0)))
    return worst, worst if form["orders"] == "worst_side" else abs(held)


def _by_size(world: World, account: Row, form: Any, row: Row, unit_price: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(initial, maintenance) of one position at a rate that grows with the root of its size (no integer rounding)."""
    (tier,) = world.of("margin_tiers", rule_set=account["rule_set"], market=row["instrument_id"])
    instrument = world.instruments[row["instrument_id"]]
    mark_row = world.mark(account, row["instrument_id"], "mark")
    assert mark_row is not None
    mark = mark_row["value"] * np.exp(world.log_move(instrument["underlying"]))
    conversion = world.price(account, instrument["settlement_asset"]) / unit_price
    needed = []
    for level, size in zip(("initial", "maintenance"), _sizes(form, row), strict=True):
        rate = float(tier[f"{level}_rate"])
        root = math.floor(math.sqrt(10 * math.floor(size * 1e9 + 1e-4) + 1))
        ten_thousandths = round(rate * 1e4)
        grown = ten_thousandths - ten_thousandths // 5 + math.floor(root * float(tier["size_coefficient"]) / 10 + 1e-9)
        rate = max(ten_thousandths, grown) / 1e4
        if level == "initial" and row.get("initial_rate_override") is not None:
            rate = max(rate, float(row["initial_rate_override"]))
        needed.append(size * mark * rate * conversion)
    return needed[0], needed[1]


def _haircuts(
    world: World, account: Row, form: Any, holdings: Sequence[Any], unit_price: np.ndarray, level: str
) -> np.ndarray:
    total = world.none.copy()
    for asset, side, counts, value, _ in holdings:
        if side is None or not counts or form["weights"] == "unit":
            continue
        if asset == account["settlement_asset"] and not world.of(
            "collateral_tiers", rule_set=account["rule_set"], asset_id=asset
        ):
            continue
        weight = _weight(world, account, asset, side, level)
        in_unit = value / unit_price
        total += in_unit - weight * (value if form["weighted_at"] == "usd" else in_unit)
    return total


def _tiered(world: World, account: Row, form: Any, row: Row, unit_price: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(initial, maintenance) of one position in the account's unit: brackets walked one by one."""
    instrument = world.instruments[row["instrument_id"]]
    mark_row = world.mark(account, row["instrument_id"], "mark")
    assert mark_row is not None
    mark = mark_row["value"] * np.exp(world.log_move(instrument["underlying"]))
    if form["basis"] == "entry":
        mark = float(row["entry_price"]) + world.none
    tiers = sorted(
        world.of("margin_tiers", rule_set=account["rule_set"], market=row["instrument_id"]), key=lambda t: t["tier"]
    )
    contract = float(instrument["contract_size"])
    contracts = dict(zip(("initial", "maintenance"), _sizes(form, row), strict=True))
    needed = {}
    for level, count in contracts.items():
        notional = count * contract * mark if instrument["payoff"] == "linear" else count * contract / mark
        measure = count + world.none if form["floors"] == "quantity" else notional
        sliced, whole = world.none.copy(), np.full_like(notional, float(tiers[0][f"{level}_rate"]))
        for number, tier in enumerate(tiers):
            floor = float(tier["notional_floor"])
            cap = float(tiers[number + 1]["notional_floor"]) if number + 1 < len(tiers) else math.inf
            sliced += float(tier[f"{level}_rate"]) * np.clip(np.minimum(measure, cap) - floor, 0.0, None)
            whole = np.where(measure > floor, float(tier[f"{level}_rate"]), whole)
        average = sliced / np.where(measure > 0, measure, 1.0)
        if level == "maintenance":
            is_whole = len(tiers) > 1 and not any(float(tier["deduction"]) for tier in tiers)
            needed[level] = notional * (whole if is_whole else average)
        else:
            rate = average if form["initial"] == "tier_integral" else whole
            rate = 1.0 / float(row["leverage"]) if form["initial"] == "leverage" else rate
            if row.get("initial_rate_override") is not None:
                rate = np.maximum(rate, float(row["initial_rate_override"]))
            needed[level] = notional * rate
    if float(row["quantity"]):
        needed = {level: np.maximum(amount, float(form["minimum"])) for level, amount in needed.items()}
    if form["initial_at_least_maintenance"]:
        needed["initial"] = np.maximum(needed["initial"], needed["maintenance"])
    conversion = world.price(account, instrument["settlement_asset"]) / unit_price
    return needed["initial"] * conversion, needed["maintenance"] * conversion


# ---- risk units ------------------------------------------------------------------------------------------------------


@dataclass
class Option:
    """One option position of a unit, [1 + S] where it moves."""

    quantity: float
    strike: float
    call: bool
    vol: np.ndarray
    expiry: datetime


@dataclass
class Expiry:
    """What an expiry's options share."""

    years: np.ndarray
    forward: np.ndarray
    rate: float
    confidence: float


@dataclass
class Unit:
    """One underlying of an account, in the account's unit."""

    symbol: str
    spot: np.ndarray
    spot_confidence: float
    stable: np.ndarray
    perp: tuple[float, np.ndarray, float]
    options: list[Option]
    expiries: dict[datetime, Expiry]
    collateral: list[tuple[str, np.ndarray, float]]
    """(asset symbol, USD value, confidence)"""


def _risk_symbol(world: World, asset_id: str) -> str:
    asset = world.assets[asset_id]
    return asset.get("risk_factor") or asset.get("peg_of") or asset["symbol"]


def _risk_units(
    world: World, account: Row, forms: Mapping[str, Any], unit_price: np.ndarray, *, undiscounted: bool
) -> list[Unit]:
    if not {"price_vol_grid", "expiry_max_loss", "contingency"} & set(forms):
        return []
    positions: dict[str, list[tuple[Row, Row]]] = {}
    named: dict[str, str] = {}
    for row in world.of("positions", account_id=account["account_id"]):
        instrument = world.instruments[row["instrument_id"]]
        symbol = _risk_symbol(world, instrument["underlying"])
        positions.setdefault(symbol, []).append((row, instrument))
        named.setdefault(symbol, instrument["underlying"])
    tokens: dict[str, list[Row]] = {}
    for row in sorted(world.of("balances", account_id=account["account_id"]), key=lambda r: r["asset_id"]):
        if row["asset_id"] != account["settlement_asset"] and row["side"] == "asset" and row["collateral_enabled"]:
            symbol = _risk_symbol(world, row["asset_id"])
            if symbol not in positions and len(positions) == 1:
                symbol = next(iter(positions))
            tokens.setdefault(symbol, []).append(row)
            named.setdefault(symbol, row["asset_id"])
    units = []
    for symbol in sorted(set(positions) | set(tokens)):
        unit = Unit(
            symbol=symbol,
            spot=world.price(account, named[symbol]),
            spot_confidence=world.confidence(account, named[symbol]),
            stable=unit_price,
            perp=(0.0, world.none, 1.0),
            options=[],
            expiries={},
            collateral=[
                (
                    world.assets[row["asset_id"]]["symbol"],
                    (float(row["quantity"]) + float(row.get("accrued_interest") or 0))
                    * world.price(account, row["asset_id"]),
                    world.confidence(account, row["asset_id"]),
                )
                for row in tokens.get(symbol, [])
            ],
        )
        for row, instrument in positions.get(symbol, []):
            quantity = float(row["quantity"]) * float(instrument["contract_size"])
            if instrument["kind"] == "perp":
                mark = world.mark(account, row["instrument_id"], "mark")
                assert mark is not None
                unit.perp = (
                    quantity,
                    mark["value"] * np.exp(world.log_move(instrument["underlying"])),
                    _confidence(mark),
                )
                continue
            subject, years = _expiry_subject(instrument), _term(world, instrument)
            feeds = [world.mark(account, subject, name) for name in ("forward", "rate")]
            feeds.append(world.mark(account, row["instrument_id"], "implied_vol"))
            forward, rate, vol = feeds
            assert forward is not None
            assert vol is not None
            before = unit.expiries[instrument["expiry"]].confidence if instrument["expiry"] in unit.expiries else 1.0
            unit.expiries[instrument["expiry"]] = Expiry(
                years=np.maximum(years - world.elapsed_years, 0.0),
                forward=forward["value"] * np.exp(world.moves[f"price:{symbol}"]),
                rate=0.0 if rate is None or undiscounted else float(rate["value"]),
                confidence=min(before, *(_confidence(feed) for feed in feeds)),
            )
            unit.options.append(
                Option(
                    quantity=quantity,
                    strike=float(instrument["strike"]),
                    call=instrument["option_type"] == "call",
                    vol=_moved_vol(world, symbol, vol["value"], years),
                    expiry=instrument["expiry"],
                )
            )
        units.append(unit)
    return units


def _unit_requirement(unit: Unit, forms: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    initial, maintenance = np.zeros_like(unit.stable), np.zeros_like(unit.stable)
    parts = [_grid(unit, form) for form in forms.get("price_vol_grid", [])]
    parts += [_max_loss(unit, form) for form in forms.get("expiry_max_loss", [])]
    parts += [_contingency(unit, form) for form in forms.get("contingency", [])]
    for part in parts:
        initial = initial + part[0]
        maintenance = maintenance + part[1]
    return initial, maintenance


def _value(option: Option, expiry: Expiry, *, forward: np.ndarray, vol: np.ndarray) -> np.ndarray:
    discount = np.exp(-max(expiry.rate, 0.0) * expiry.years)
    return option.quantity * black76(forward, option.strike, expiry.years, vol, discount, call=option.call)


def _grid(unit: Unit, form: Any) -> tuple[np.ndarray, np.ndarray]:
    """Minus the factor times the worse of the grid's worst profit and the basis contingency."""
    assert not any(point["vol"].startswith("skew") for point in form["scenarios"]), "the twin knows no skew"
    number = {key: float(value) for key, value in (form["vol_shock"] | form["discount"]).items()}
    window = float(form["settlement_window_s"])
    delta_one = unit.perp[0] * unit.perp[1]
    for symbol, value, _ in unit.collateral:
        if symbol in form["grid_collateral"]:
            delta_one = delta_one + value / unit.stable
    worst = np.full_like(unit.stable, math.inf)

    def expiry_value(moment: datetime, spot: float, vol: str) -> np.ndarray:
        expiry = unit.expiries[moment]
        open_share = np.clip(expiry.years * DAYS_PER_YEAR * 86400.0 / window, 0.0, 1.0) if window > 0 else 1.0
        days = expiry.years * DAYS_PER_YEAR
        tau = 30.0 / np.maximum(np.maximum(days, number["dte_floor_days"]), 1.0 / 86400.0)
        move = tau ** np.where(days <= 30.0, number["short_term_power"], number["long_term_power"])
        total = np.zeros_like(unit.stable)
        for option in unit.options:
            if option.expiry == moment:
                moved = {
                    "none": option.vol,
                    "up": np.maximum(number["min_vol_up"], option.vol * (1.0 + number["range_up"] * move)),
                    "down": option.vol * np.maximum(0.0, 1.0 - number["range_down"] * move),
                }[vol]
                total += _value(option, expiry, forward=expiry.forward * (1.0 + open_share * (spot - 1.0)), vol=moved)
        return total

    today = {moment: expiry_value(moment, 1.0, "none") for moment in unit.expiries}
    for point in form["scenarios"]:
        spot, dampening = float(point["spot"]), float(point["dampening"])
        profit = (spot - 1.0) * delta_one + np.zeros_like(unit.stable)
        for moment, expiry in unit.expiries.items():
            shocked = expiry_value(moment, spot, point["vol"])
            rate = max(expiry.rate, 0.0)
            long = number["long_base"] * np.exp(
                -expiry.years * (rate * number["long_rate_mult"] + number["long_rate_add"])
            )
            short = number["short_base"] * np.exp(
                expiry.years * (rate * number["short_rate_mult"] + number["short_rate_add"])
            )
            short = np.minimum(short, np.exp(rate * expiry.years))
            profit += np.where(shocked >= 0, long, short) * shocked - today[moment]
        worst = np.minimum(worst, dampening * profit)
    basis = np.zeros_like(unit.stable)
    for moment, expiry in unit.expiries.items():
        moves = [expiry_value(moment, float(form["basis"][name]), "none") for name in ("spot_up", "spot_down")]
        loss = np.minimum(np.minimum(*moves) - today[moment], 0.0)
        basis += loss * (float(form["basis"]["add_factor"]) + float(form["basis"]["mult_factor"]) * expiry.years)
    worst = np.minimum(worst, basis)
    peg = np.maximum(0.0, float(form["peg_loss"]["threshold"]) - unit.stable) * float(form["peg_loss"]["factor"])
    return -(float(form["initial_factor"]) + peg) * worst, -float(form["maintenance_factor"]) * worst


def _max_loss(unit: Unit, form: Any) -> tuple[np.ndarray, np.ndarray]:
    """Value of the options less the better, per expiry, of the per-contract margins and the worst payoff."""
    rule = {key: float(value) for key, value in form["per_contract"].items()}
    spot = unit.spot
    out = []
    for level in ("initial", "maintenance"):
        total = np.zeros_like(spot)
        for moment, expiry in unit.expiries.items():
            options = [option for option in unit.options if option.expiry == moment]
            alone, value = np.zeros_like(spot), np.zeros_like(spot)
            for option in options:
                worth = _value(option, expiry, forward=expiry.forward, vol=option.vol)
                value += worth
                if option.quantity >= 0:
                    continue
                out_of_money = np.maximum(0.0, (option.strike - spot) if option.call else (spot - option.strike))
                rate = np.maximum(rule["min_spot_rate"], rule["max_spot_rate"] - out_of_money / spot)
                margin = worth + option.quantity * spot * rate
                size = option.quantity * spot
                if option.call:
                    kept = worth + rule["mm_call_spot_rate"] * size
                else:
                    kept = worth + np.minimum(rule["mm_put_spot_rate"] * size, rule["mm_put_mark_rate"] * worth)
                    margin = np.minimum(margin, rule["mm_offset_scale"] * kept)
                alone += margin if level == "initial" else kept
            ends = [0.0, *(option.strike for option in options if option.quantity != 0)]
            payoffs = [
                sum(o.quantity * max(0.0, (end - o.strike) if o.call else (o.strike - end)) for o in options)
                for end in ends
            ]
            calls = sum(option.quantity for option in options if option.call)
            unpaired = float(form[f"unpaired_{level}_scale"]) * expiry.forward * min(calls, 0.0)
            total += value - np.maximum(alone, min(0.0, *payoffs) + unpaired)
        out.append(total)
    return out[0], out[1]


def _contingency(unit: Unit, form: Any) -> tuple[np.ndarray, np.ndarray]:
    """Measure times price times rate; charges by confidence and depeg fall on the initial level alone."""
    quantity, mark, perp_confidence = unit.perp
    price = unit.spot if form["price"] == "spot" else (mark if quantity else unit.spot)
    measure = form["measure"]
    amounts: list[tuple[np.ndarray, float]] = []
    if measure in ("gross_perp", "gross_perp_and_short_options"):
        amounts.append((abs(quantity) * price, min(unit.spot_confidence, perp_confidence)))
    for moment, expiry in unit.expiries.items():
        options = [option for option in unit.options if option.expiry == moment]
        confidence = min(unit.spot_confidence, expiry.confidence)
        if measure in ("gross_options", "naked_short_options") and quantity:
            confidence = min(confidence, perp_confidence)
        if measure == "gross_options":
            held = sum(abs(option.quantity) for option in options)
        elif measure == "naked_short_options":
            strikes = {option.strike for option in options}
            held = sum(max(0.0, -sum(o.quantity for o in options if o.strike == strike)) for strike in strikes)
        elif measure in ("short_options", "gross_perp_and_short_options"):
            held = sum(max(0.0, -option.quantity) for option in options)
        else:
            continue
        amounts.append((held * price, confidence))
    for _, value, own in unit.collateral:
        if measure == "collateral":
            amounts.append((value / unit.stable, min(own, unit.spot_confidence)))
        elif measure == "collateral_usd":
            amounts.append((value, own))
    nothing = np.zeros_like(unit.stable)
    if form["confidence"] is not None:
        threshold, factor = (float(form["confidence"][name]) for name in ("threshold", "factor"))
        doubted = [(1.0 - confidence) * amount for amount, confidence in amounts if confidence < threshold]
        return np.sum(doubted, axis=0) * factor if doubted else nothing, nothing
    total = np.sum([amount for amount, _ in amounts], axis=0) if amounts else nothing
    if form["depeg"] is not None:
        short = np.maximum(0.0, float(form["depeg"]["threshold"]) - unit.stable)
        return total * short * float(form["depeg"]["factor"]), nothing
    return total * float(form["initial_rate"] or 0), total * float(form["maintenance_rate"] or 0)


# ---- risk measures ---------------------------------------------------------------------------------------------------


def value_at_risk(losses: np.ndarray, weights: np.ndarray, level: float) -> float:
    """The smallest loss with mass `level` at or below it, found by sorting."""
    order = np.argsort(losses, kind="stable")
    reached = np.cumsum(weights[order]) >= level - 1e-12
    return float(losses[order][np.argmax(reached)])


def expected_shortfall(losses: np.ndarray, weights: np.ndarray, level: float) -> float:
    """VaR plus the mean excess over the tail's mass."""
    var = value_at_risk(losses, weights, level)
    return var + math.fsum(weights * np.maximum(losses - var, 0.0)) / (1.0 - level)


def tail_weights(losses: np.ndarray, weights: np.ndarray, level: float) -> np.ndarray:
    """Weights of the tail, summing to 1, from the worst scenario on; the last one reached takes what is left."""
    left, out = 1.0 - level, np.zeros_like(weights)
    for scenario in np.argsort(-losses, kind="stable"):
        out[scenario] = min(left, weights[scenario])
        left -= out[scenario]
    return out / (1.0 - level)

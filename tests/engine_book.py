"""Books in canonical tables for the engine's tests: markets, accounts of every kind, and the way to results.

Nothing here goes through a venue's adapter. An account builder returns the rows of one account by table name and takes
its random numbers from the caller, so a book is decided by its seed. Prices are in USD, quantities in units or, for
inverse contracts, in contracts of 100 USD (perps) or one coin (options).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from aggregator.correlation import correlation_matrix
from aggregator.engine import Cube, Detail, Headline, draw_cube, evaluate_details, evaluate_headlines
from aggregator.generators.multivariate_t import multivariate_t
from aggregator.greeks import greeks_by_underlying, row_sensitivities
from aggregator.portfolio import Book, PackedPortfolio, pack_book
from aggregator.results import (
    Evaluated,
    account_rows,
    allocation_rows,
    histogram_rows,
    is_calculated,
    node_rows,
    portfolio_row,
    result_table,
    worst_rows,
)
from aggregator.rule_forms import (
    BasisContingency,
    Component,
    Confidence,
    Contingency,
    DebtCharge,
    ExpiryMaxLoss,
    Fixed,
    GridPoint,
    OptionFormula,
    PegLoss,
    PriceVolGrid,
    RateOfSize,
    StaticDiscount,
    TieredNotional,
    Verdict,
    VolShock,
    WeightedValue,
    component_rows,
)
from aggregator.scenarios import ScenarioGenerator
from aggregator.schema import CANONICAL, RESULT_KEYS, RESULTS, table_from_rows
from aggregator.snapshot import Snapshot, take_snapshot

Rows = dict[str, list[dict[str, Any]]]

AS_OF = datetime(2024, 3, 1, 8, tzinfo=UTC)
SPOT = {"BTC": 62000.0, "ETH": 3400.0, "SOL": 130.0, "wstETH": 3951.25, "USDC": 1.0003}
USDT_OFF_PEG = 0.9712
DAILY_STD = {
    "peg:USDC": 0.002,
    "peg:USDT": 0.004,
    "peg:wstETH": 0.003,
    "price:BTC": 0.03,
    "price:ETH": 0.04,
    "price:SOL": 0.06,
    "vol:BTC": 0.05,
    "vol:ETH": 0.06,
}
CORRELATION = {
    ("price:BTC", "price:ETH"): 0.8,
    ("price:BTC", "price:SOL"): 0.65,
    ("price:ETH", "price:SOL"): 0.7,
    ("price:BTC", "vol:BTC"): -0.3,
    ("price:ETH", "vol:ETH"): -0.35,
    ("peg:USDC", "peg:USDT"): 0.4,
}
# One that ends inside the horizon of a day, and three behind it on both sides of 30 days.
EXPIRIES = tuple(AS_OF + timedelta(hours=h) for h in (12, 24 * 7, 24 * 28, 24 * 119))
NO_FIXED_FIGURE = "reported without a formula"


def rows(**tables: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows by table name."""
    return {name: [dict(row) for row in of] for name, of in tables.items()}


def merged(*parts: Rows) -> Rows:
    """All rows of several parts, table by table, in their order."""
    out: Rows = defaultdict(list)
    for part in parts:
        for name, of in part.items():
            out[name] += of
    return dict(out)


# ---- markets ---------------------------------------------------------------------------------------------------------


def _asset(
    asset_id: str, *, factor: str | None = None, peg: str | None = None, multiplier: str = "1"
) -> dict[str, Any]:
    return {"asset_id": asset_id, "symbol": asset_id, "risk_factor": factor, "peg_of": peg, "multiplier": multiplier}


def _instrument(instrument_id: str, kind: str, underlying: str, settlement: str, **columns: Any) -> dict[str, Any]:
    venue, _, symbol = instrument_id.partition(":")
    return {
        "instrument_id": instrument_id,
        "venue": venue,
        "symbol": symbol,
        "kind": kind,
        "underlying": underlying,
        "settlement_asset": settlement,
        "payoff": "linear",
        "contract_size": "1",
    } | columns


def mark(venue: str, subject: str, field: str, value: float, **columns: Any) -> dict[str, Any]:
    """One row of `marks`."""
    return {"venue": venue, "subject": subject, "field": field, "value": value, "source": "test"} | columns


def option_id(venue: str, underlying: str, expiry: int, strike: int, option_type: str) -> str:
    """Id of the option with the expiry of that number in `EXPIRIES`."""
    return f"{venue}:{underlying}-{expiry}-{strike}-{option_type}"


STRIKES = {"BTC": (45000, 55000, 60000, 66000, 80000), "ETH": (2400, 3000, 3300, 3700, 4500)}
VENUES = ("lend", "perps", "multi", "coin", "options", "standard", "wallet")


def market_rows() -> Rows:
    """Assets, instruments and marks of every venue. On `multi` USDT trades off its peg."""
    assets = [
        _asset("BTC", factor="BTC"),
        _asset("ETH", factor="ETH"),
        _asset("SOL", factor="SOL"),
        _asset("USDC", peg="USDC"),
        _asset("USDT", peg="USDT"),
        _asset("wstETH", factor="ETH", peg="wstETH", multiplier="1.162"),
    ]
    marks = [mark(venue, asset, "oracle", price) for venue in VENUES for asset, price in SPOT.items()]
    marks += [
        mark("multi", "USDT", "index", USDT_OFF_PEG),
        mark("wallet", "USDT", "index", USDT_OFF_PEG),
    ]
    instruments = []
    for symbol, basis in (("BTC", 1.0008), ("ETH", 0.9995), ("SOL", 1.0021)):
        for venue, settlement in (("perps", "USDC"), ("multi", "USDT"), ("options", "USDC"), ("standard", "USDC")):
            instruments.append(_instrument(f"{venue}:{symbol}-PERP", "perp", symbol, settlement))
            marks.append(mark(venue, f"{venue}:{symbol}-PERP", "mark", SPOT[symbol] * basis))
    instruments.append(_instrument("multi:ETH-JUN", "future", "ETH", "USDT", expiry=EXPIRIES[3]))
    marks.append(mark("multi", "multi:ETH-JUN", "mark", SPOT["ETH"] * 1.031))
    for symbol, size in (("BTC", "100"), ("ETH", "10")):
        for suffix, kind, basis in (("PERP", "perp", 1.0004), ("JUN", "future", 1.027)):
            name = f"coin:{symbol}-{suffix}"
            instruments.append(_instrument(name, kind, symbol, symbol, payoff="inverse", contract_size=size))
            marks.append(mark("coin", name, "mark", SPOT[symbol] * basis))
    for venue, settled in (("options", "linear"), ("standard", "linear"), ("coin", "inverse")):
        part = _option_market(venue, settled)
        instruments += part["instruments"]
        marks += part["marks"]
    return rows(assets=assets, instruments=instruments, marks=marks)


def _option_market(venue: str, payoff: str) -> Rows:
    instruments, marks = [], []
    for underlying, strikes in STRIKES.items():
        for number, expiry in enumerate(EXPIRIES):
            subject = f"{underlying}@{expiry:%Y-%m-%dT%H:%M:%SZ}"
            forward = SPOT[underlying] * (1.0 + 0.0004 + 0.011 * number)
            marks.append(mark(venue, subject, "forward", forward, confidence=0.97 if number == 2 else 1.0))
            if payoff == "linear":
                marks.append(mark(venue, subject, "rate", 0.045))
            for place, strike in enumerate(strikes):
                for kind in ("call", "put"):
                    name = option_id(venue, underlying, number, strike, kind)
                    settlement = "USDC" if payoff == "linear" else underlying
                    columns = {"payoff": payoff, "strike": str(strike), "expiry": expiry, "option_type": kind}
                    instruments.append(_instrument(name, "option", underlying, settlement, **columns))
                    marks.append(mark(venue, name, "implied_vol", 0.5 + 0.02 * (place - 2) ** 2 + 0.03 * number))
    return rows(instruments=instruments, marks=marks)


# ---- rule sets -------------------------------------------------------------------------------------------------------


def _verdict(at: str = "below", trigger: str = "1", health: str = "equity_over_requirement") -> Component:
    return Component(
        side="verdict",
        parameters=Verdict(liquidates_when=at, trigger=Decimal(trigger), health=health),  # type: ignore[arg-type]
    )


def _numbers(model: type, **values: str) -> Any:
    return model(**{name: Decimal(value) for name, value in values.items()})


def _grid() -> PriceVolGrid:
    points = [
        (spot, vol, "1") for spot in ("0.85", "0.9", "0.95", "1", "1.05", "1.1", "1.15") for vol in ("up", "down")
    ]
    points += [("0.65", "none", "0.35"), ("1.4", "none", "0.4")]
    return PriceVolGrid(
        scenarios=tuple(GridPoint(spot=Decimal(s), vol=v, dampening=Decimal(d)) for s, v, d in points),  # type: ignore[arg-type]
        vol_shock=_numbers(
            VolShock,
            range_up="0.45",
            range_down="0.3",
            short_term_power="0.3",
            long_term_power="0.13",
            dte_floor_days="1",
            min_vol_up="0.3",
        ),
        discount=_numbers(
            StaticDiscount,
            long_base="0.98",
            long_rate_mult="1",
            long_rate_add="0.01",
            short_base="1.01",
            short_rate_mult="1",
            short_rate_add="0.01",
        ),
        initial_factor=Decimal("1.3"),
        maintenance_factor=Decimal("1.05"),
        basis=_numbers(BasisContingency, spot_up="1.05", spot_down="0.95", add_factor="0.25", mult_factor="0.01"),
        peg_loss=_numbers(PegLoss, threshold="0.98", factor="4"),
        settlement_window_s=Decimal(1800),
        grid_collateral=("ETH", "wstETH"),
    )


def _contingencies() -> list[Contingency]:
    confidence = _numbers(Confidence, threshold="0.98", factor="0.4")
    return [
        Contingency(measure="gross_perp", maintenance_rate=Decimal("0.015"), initial_rate=Decimal("0.025")),
        Contingency(measure="naked_short_options", maintenance_rate=Decimal("0.01"), initial_rate=Decimal("0.015")),
        Contingency(measure="gross_options", confidence=confidence),
        Contingency(measure="collateral", confidence=confidence),
    ]


_PER_CONTRACT = _numbers(
    OptionFormula,
    max_spot_rate="0.15",
    min_spot_rate="0.13",
    mm_call_spot_rate="0.09",
    mm_put_spot_rate="0.09",
    mm_put_mark_rate="0.075",
    mm_offset_scale="1.05",
)


def _requirement(parameters: Any, group_by: Any = "account") -> Component:
    return Component(side="requirement", parameters=parameters, group_by=group_by)


def _equity(**parameters: Any) -> Component:
    return Component(side="equity", parameters=WeightedValue(**parameters))


RULES: Mapping[str, tuple[Component, ...]] = {
    "lend": (
        _equity(),
        _requirement(WeightedValue(weights="collateral_tiers")),
        _verdict(health="weighted_collateral_over_debt"),
    ),
    "perps": (_equity(), _requirement(TieredNotional(), "position"), _verdict()),
    "perps_tier_rate": (
        _equity(),
        _requirement(TieredNotional(initial="tier_rate"), "position"),
        _verdict("at_or_below"),
    ),
    "multi": (
        _equity(weights="collateral_tiers", net_by_asset=True),
        _requirement(TieredNotional(), "position"),
        _verdict("at_or_below", trigger="1.05"),
    ),
    "coin": (_equity(), _requirement(TieredNotional(), "position"), _verdict()),
    "coin_options": (
        _equity(),
        _requirement(Fixed(initial=Decimal("0.9"), maintenance=Decimal("0.6"), basis=NO_FIXED_FIGURE)),
        _verdict(),
    ),
    "portfolio": (
        _equity(),
        _requirement(WeightedValue(weights="collateral_tiers", weighted_at="usd")),
        _requirement(_grid(), "risk_unit"),
        *(_requirement(form, "risk_unit") for form in _contingencies()),
        _verdict(),
    ),
    "standard": (
        _equity(),
        _requirement(WeightedValue(weights="collateral_tiers")),
        _requirement(
            ExpiryMaxLoss(
                per_contract=_PER_CONTRACT,
                unpaired_initial_scale=Decimal("0.2"),
                unpaired_maintenance_scale=Decimal("0.1"),
            ),
            "expiry",
        ),
        _requirement(
            Contingency(
                measure="gross_perp", price="perp_mark", initial_rate=Decimal("0.1"), maintenance_rate=Decimal("0.065")
            ),
            "risk_unit",
        ),
        _requirement(
            Contingency(
                measure="gross_perp_and_short_options", depeg=_numbers(PegLoss, threshold="0.99", factor="1.2")
            ),
            "risk_unit",
        ),
        _verdict(),
    ),
    "wallet": (_equity(), _verdict()),
    # Weights in slices, a charge on what is owed, tiers of the whole notional, and open orders that count.
    "slices": (
        _equity(weights="collateral_tiers", net_by_asset=True, liabilities="unit"),
        _requirement(
            TieredNotional(
                initial="tier_rate",
                orders="worst_side",
                per_order=Decimal("0.25"),
                minimum=Decimal(400),
                initial_at_least_maintenance=True,
            ),
            "position",
        ),
        _requirement(
            DebtCharge(
                net_by_asset=True,
                initial_rate=Decimal("0.1"),
                maintenance_rate=Decimal("0.02"),
                maintenance_rates={"ETH": Decimal("0.05")},
            )
        ),
        _verdict("at_or_below"),
    ),
    # Profit at a weight of its own, rates by the root of the size, tiers at entry, and costs against equity.
    "sized": (
        _equity(weights="collateral_tiers"),
        Component(side="equity", parameters=Fixed(equity=Decimal("-12.5"), basis="computed closing cost")),
        _requirement(RateOfSize(law="integer_sqrt", orders="worst_side_initial"), "position"),
        _requirement(DebtCharge(initial_rate=Decimal("0.2"), maintenance_rate=Decimal("0.1"))),
        _verdict(),
    ),
    "entry": (
        _equity(),
        _requirement(TieredNotional(initial="tier_integral", basis="entry", minimum=Decimal(1)), "position"),
        _verdict(),
    ),
    "contracts": (
        _equity(),
        _requirement(TieredNotional(initial="tier_rate", floors="quantity"), "position"),
        _verdict(),
    ),
}

# notional floor, maintenance rate, initial rate; in the settlement asset
USD_TIERS = (("0", "0.005", "0.01"), ("50000", "0.01", "0.02"), ("250000", "0.025", "0.05"), ("1000000", "0.05", "0.1"))
COIN_TIERS = (("0", "0.004", "0.01"), ("5", "0.01", "0.02"), ("20", "0.025", "0.05"))
# asset: initial and maintenance weight, in the e-mode of ETH too
LENDER_WEIGHTS = {
    "": {
        "BTC": ("0.73", "0.78"),
        "ETH": ("0.8", "0.83"),
        "wstETH": ("0.78", "0.81"),
        "USDC": ("0.75", "0.78"),
        "USDT": ("0.7", "0.75"),
    },
    "eth": {"ETH": ("0.93", "0.95"), "wstETH": ("0.92", "0.945")},
}
MULTI_WEIGHTS = {
    "BTC": ("0.95", "0.97"),
    "ETH": ("0.93", "0.95"),
    "SOL": ("0.8", "0.85"),
    "USDC": ("0.98", "1"),
    "USDT": ("1", "1"),
}
MANAGER_WEIGHTS = {"ETH": ("0.8", "0.85"), "wstETH": ("0.75", "0.82"), "USDT": ("0.9", "0.95")}


def _tiers(
    rule_set: str, market: str, steps: Sequence[tuple[str, str, str]], *, whole: bool = False, **columns: Any
) -> list[dict[str, Any]]:
    """Rows of `margin_tiers`, with the deductions that continue the tier below, or none (`whole`)."""
    out, deduction, before = [], Decimal(0), Decimal(0)
    for number, (floor, maintenance, initial) in enumerate(steps):
        if not whole:
            deduction += Decimal(floor) * (Decimal(maintenance) - before)
        before = Decimal(maintenance)
        out.append(
            {
                "rule_set": rule_set,
                "market": market,
                "tier": number + 1,
                "notional_floor": floor,
                "initial_rate": initial,
                "maintenance_rate": maintenance,
                "deduction": str(deduction),
                "source": "venue",
            }
            | columns
        )
    return out


def _weights(
    rule_set: str, emode: str, weights: Mapping[str, tuple[str, str]], debt: str = "1"
) -> list[dict[str, Any]]:
    return [
        {
            "rule_set": rule_set,
            "asset_id": asset,
            "emode": emode,
            "tier": 1,
            "floor": "0",
            "asset_weight_initial": initial,
            "asset_weight_maintenance": maintenance,
            "liability_weight_initial": debt,
            "liability_weight_maintenance": debt,
            "source": "test",
        }
        for asset, (initial, maintenance) in weights.items()
    ]


CONTRACT_TIERS = (("0", "0.004", "0.01"), ("1000", "0.01", "0.02"), ("4000", "0.025", "0.05"))
SLICES = {
    "BTC": (("0", "0.95", "0.96"), ("1.5", "0.9", "0.92"), ("4", "0.5", "0.6"), ("9", "0", "0.1")),
    "ETH": (("0", "0.9", "0.9"), ("20", "0.7", "0.75")),
    "USDT": (("0", "1", "1"), ("2000", "0.9", "0.95")),
}


def _slices(
    rule_set: str, asset: str, slices: Sequence[tuple[str, str, str]], *, debt: str = "1", floor_in: str | None = None
) -> list[dict[str, Any]]:
    """Rows of `collateral_tiers` by floor, initial and maintenance weight."""
    return [
        row | {"tier": number + 1, "floor": floor, "floor_in": floor_in}
        for number, (floor, initial, maintenance) in enumerate(slices)
        for row in _weights(rule_set, "", {asset: (initial, maintenance)}, debt)
    ]


def rule_rows() -> Rows:
    """Rule sets, margin tiers and collateral tiers of every venue."""
    components = [row for name, of in RULES.items() for row in component_rows(name, of, source="test")]
    tiers = []
    for symbol in ("BTC", "ETH", "SOL"):
        for rule_set in ("perps", "perps_tier_rate"):
            tiers += _tiers(rule_set, f"perps:{symbol}-PERP", USD_TIERS)
        tiers += _tiers("multi", f"multi:{symbol}-PERP", USD_TIERS[:3])
    tiers += _tiers("multi", "multi:ETH-JUN", (("0", "0.02", "0.04"),))
    for symbol in ("BTC", "ETH"):
        for suffix in ("PERP", "JUN"):
            tiers += _tiers("coin", f"coin:{symbol}-{suffix}", COIN_TIERS)
    weights = [row for emode, of in LENDER_WEIGHTS.items() for row in _weights("lend", emode, of)]
    for symbol in ("BTC", "ETH", "SOL"):
        tiers += _tiers("slices", f"multi:{symbol}-PERP", USD_TIERS, whole=True)
        tiers += _tiers("entry", f"perps:{symbol}-PERP", USD_TIERS)
        tiers += _tiers("sized", f"perps:{symbol}-PERP", (("0", "0.03", "0.05"),), size_coefficient="0.002")
    for suffix in ("PERP", "JUN"):
        tiers += _tiers("contracts", f"coin:BTC-{suffix}", CONTRACT_TIERS)
    weights += [row for asset, slices in SLICES.items() for row in _slices("slices", asset, slices)]
    weights += _slices("sized", "USDC", (("0", "1", "1"),))
    weights += _slices("sized", "ETH", (("0", "0.7", "0.8"),), debt="1.1")
    # The profit of SOL counts in part, and initially up to 100.
    weights += _slices("sized", "perps:SOL-PERP", (("0", "0.8", "0.9"), ("125", "0", "0.9")), floor_in="value")
    # A debt in a multi-asset account counts for more than it is worth.
    weights += _weights("multi", "", MULTI_WEIGHTS, debt="1.02")
    for manager in ("portfolio", "standard"):
        weights += _weights(manager, "", MANAGER_WEIGHTS)
    return rows(rule_sets=components, margin_tiers=tiers, collateral_tiers=weights)


# ---- accounts --------------------------------------------------------------------------------------------------------


def amount(value: float) -> str:
    """A decimal text of six digits behind the point."""
    return f"{value:.6f}"


def account(account_id: str, rule_set: str, unit: str, *, node: str | None = None, **columns: Any) -> dict[str, Any]:
    """One row of `accounts`; its venue is what stands before the colon of its id, its node the id unless given."""
    return {
        "account_id": account_id,
        "node": node or account_id,
        "venue": account_id.partition(":")[0],
        "owner": "desk",
        "margin_mode": "cross",
        "rule_set": rule_set,
        "settlement_asset": unit,
        "received_at": AS_OF,
    } | columns


def balance(account_id: str, asset: str, quantity: float, *, enabled: bool = True, **columns: Any) -> dict[str, Any]:
    """One row of `balances`; a negative quantity is a liability."""
    return {
        "account_id": account_id,
        "asset_id": asset,
        "side": "asset" if quantity >= 0 else "liability",
        "quantity": amount(abs(quantity)),
        "collateral_enabled": enabled,
    } | columns


def position(account_id: str, instrument: str, quantity: float, **columns: Any) -> dict[str, Any]:
    """One row of `positions`."""
    return {
        "account_id": account_id,
        "instrument_id": instrument,
        "side_mode": "net",
        "quantity": amount(quantity),
    } | columns


def lender(account_id: str, rng: np.random.Generator, *, emode: bool = False) -> Rows:
    """Collateral (one asset of it disabled) and debts, health around 1.1."""
    eth, steth, btc = rng.uniform(20, 80), rng.uniform(5, 40), rng.uniform(0.5, 2)
    power = eth * SPOT["ETH"] * 0.83 + steth * SPOT["wstETH"] * 0.81
    debt = power / rng.uniform(0.97, 1.15)
    balances = [
        balance(account_id, "ETH", eth, accrued_interest=amount(eth * 1e-4)),
        balance(account_id, "wstETH", steth),
        balance(account_id, "BTC", btc, enabled=False),
    ]
    if emode:
        balances.append(balance(account_id, "ETH", -debt / SPOT["ETH"], accrued_interest="0.011"))
    else:
        balances += [balance(account_id, "USDC", -0.7 * debt), balance(account_id, "USDT", -0.3 * debt)]
    row = account(account_id, "lend", "USD", margin_mode="lending", emode="eth" if emode else None)
    return rows(accounts=[row], balances=balances)


def perp_cross(account_id: str, rng: np.random.Generator, *, rule_set: str = "perps", thin: float = 1.0) -> Rows:
    """Perps of three coins against USDC with chosen leverage; `thin` < 1 leaves less collateral."""
    quantities = {"BTC": rng.uniform(-4, 4), "ETH": rng.uniform(-60, 60), "SOL": rng.uniform(-900, 900)}
    gross = sum(abs(q) * SPOT[s] for s, q in quantities.items())
    positions = []
    for symbol, quantity in quantities.items():
        entry = SPOT[symbol] * rng.uniform(0.97, 1.03)
        chosen = {"leverage": str(rng.integers(5, 40))} if rule_set == "perps" else {}
        positions.append(
            position(
                account_id,
                f"perps:{symbol}-PERP",
                quantity,
                entry_price=amount(entry),
                unsettled_funding=amount(rng.uniform(-20, 20)),
                **chosen,
            )
        )
    positions[0]["initial_rate_override"] = "0.031"
    cash = balance(account_id, "USDC", thin * gross * rng.uniform(0.08, 0.16))
    row = account(account_id, rule_set, "USDC", reported_equity="1000.5", reported_maintenance_margin="12.25")
    return rows(accounts=[row], balances=[cash], positions=positions)


def isolated(account_id: str, rng: np.random.Generator, *, zero: bool = False) -> Rows:
    """One isolated perp; with `zero` its quantity is 0."""
    quantity = 0.0 if zero else rng.uniform(-80, 80)
    cash = abs(quantity) * SPOT["ETH"] * rng.uniform(0.03, 0.12) + 10
    columns = {"entry_price": amount(SPOT["ETH"] * rng.uniform(0.99, 1.01)), "leverage": "20"}
    return rows(
        accounts=[account(account_id, "perps", "USDC", margin_mode="isolated")],
        balances=[balance(account_id, "USDC", cash)],
        positions=[position(account_id, "perps:ETH-PERP", quantity, **columns)],
    )


def multi_assets(account_id: str, rng: np.random.Generator, *, unit: str = "USD") -> Rows:
    """Weighted coins netted by asset with profit in USDT, which trades off its peg; one coin is borrowed."""
    sol = rng.uniform(-3000, 3000)
    positions = [
        position(
            account_id,
            "multi:SOL-PERP",
            sol,
            side_mode="long" if sol > 0 else "short",
            entry_price=amount(SPOT["SOL"] * rng.uniform(0.95, 1.05)),
            leverage="10",
            realized_pnl=amount(rng.uniform(-50, 50)),
        ),
        position(
            account_id,
            "multi:ETH-JUN",
            rng.uniform(-40, 40),
            entry_price=amount(SPOT["ETH"] * rng.uniform(0.98, 1.06)),
            leverage="8",
        ),
    ]
    balances = [
        balance(account_id, "BTC", abs(sol) * SPOT["SOL"] / SPOT["BTC"] * rng.uniform(0.05, 0.2)),
        # Close to the profit of the positions: the netted USDT changes sign in some scenarios.
        balance(account_id, "USDT", rng.uniform(-6000, 9000)),
        balance(account_id, "ETH", -rng.uniform(0.1, 2.0)),
    ]
    row = account(account_id, "multi", unit, multi_assets_mode=True)
    return rows(accounts=[row], balances=balances, positions=positions)


def coin_margined(account_id: str, rng: np.random.Generator) -> Rows:
    """Inverse perp and dated future on BTC, in BTC."""
    contracts = rng.uniform(-9000, 9000)
    coins = abs(contracts) * 100 / SPOT["BTC"] * rng.uniform(0.05, 0.3)
    positions = [
        position(account_id, "coin:BTC-PERP", contracts, entry_price=amount(SPOT["BTC"] * 1.01), leverage="15"),
        position(
            account_id,
            "coin:BTC-JUN",
            -0.6 * contracts,
            entry_price=amount(SPOT["BTC"] * 1.03),
            leverage="10",
            unsettled_funding="0.0031",
        ),
    ]
    return rows(
        accounts=[account(account_id, "coin", "BTC")],
        balances=[balance(account_id, "BTC", coins)],
        positions=positions,
    )


def coin_options(account_id: str, rng: np.random.Generator) -> Rows:
    """Inverse options on BTC, in BTC, with a requirement as reported."""
    chosen = [(0, 60000, "put"), (1, 66000, "call"), (2, 55000, "put"), (3, 80000, "call")]
    positions = [
        position(account_id, option_id("coin", "BTC", number, strike, kind), rng.uniform(-6, 6))
        for number, strike, kind in chosen
    ]
    return rows(
        accounts=[account(account_id, "coin_options", "BTC", margin_mode="portfolio")],
        balances=[balance(account_id, "BTC", rng.uniform(1.0, 3.0))],
        positions=positions,
    )


def _option_positions(account_id: str, venue: str, rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    ids = [
        option_id(venue, "ETH", number, strike, kind)
        for number in range(len(EXPIRIES))
        for strike in STRIKES["ETH"]
        for kind in ("call", "put")
    ]
    chosen = sorted(rng.choice(len(ids), count, replace=False))
    return [position(account_id, ids[place], rng.uniform(-30, 20)) for place in chosen]


def portfolio_margin(account_id: str, rng: np.random.Generator, *, options: int = 7) -> Rows:
    """Options, a perp and collateral of ETH under the grid, contingencies and collateral haircuts."""
    perp = position(account_id, "options:ETH-PERP", rng.uniform(-20, 20), entry_price=amount(SPOT["ETH"] * 0.99))
    return rows(
        accounts=[account(account_id, "portfolio", "USDC", margin_mode="portfolio")],
        balances=[
            balance(account_id, "USDC", rng.uniform(-50_000, 20_000)),
            balance(account_id, "ETH", rng.uniform(1, 30)),
            balance(account_id, "wstETH", rng.uniform(1, 10), accrued_interest="0.0025"),
        ],
        positions=[*_option_positions(account_id, "options", rng, options), perp],
    )


def standard_margin(account_id: str, rng: np.random.Generator, *, options: int = 5) -> Rows:
    """Options on ETH under the maximum loss of each expiry, a perp of BTC, and a second stable as collateral."""
    perp = position(account_id, "standard:BTC-PERP", rng.uniform(-1, 1), entry_price=amount(SPOT["BTC"] * 1.004))
    return rows(
        accounts=[account(account_id, "standard", "USDC")],
        balances=[
            balance(account_id, "USDC", rng.uniform(5_000, 40_000)),
            balance(account_id, "USDT", rng.uniform(100, 20_000)),
        ],
        positions=[*_option_positions(account_id, "standard", rng, options), perp],
    )


def order(
    account_id: str, number: int, instrument: str, quantity: float, *, reduce_only: bool = False
) -> dict[str, Any]:
    """One row of `open_orders`; a negative quantity sells."""
    return {
        "order_id": f"{account_id}/{number}",
        "account_id": account_id,
        "instrument_id": instrument,
        "side": "buy" if quantity > 0 else "sell",
        "remaining_quantity": amount(abs(quantity)),
        "limit_price": None,
        "reduce_only": reduce_only,
    }


def sliced(account_id: str, rng: np.random.Generator) -> Rows:
    """Coins in slices, one borrowed, perps with orders on both sides, one market with orders alone."""
    positions = [
        position(account_id, "multi:SOL-PERP", rng.uniform(-3000, 3000), entry_price=amount(SPOT["SOL"] * 1.01)),
        position(account_id, "multi:ETH-PERP", rng.uniform(-0.2, 0.2), entry_price=amount(SPOT["ETH"])),
    ]
    orders = [
        order(account_id, 1, "multi:SOL-PERP", rng.uniform(100, 900)),
        order(account_id, 2, "multi:SOL-PERP", -rng.uniform(100, 900)),
        order(account_id, 3, "multi:BTC-PERP", -rng.uniform(0.1, 2)),
        order(account_id, 4, "multi:BTC-PERP", rng.uniform(5, 9), reduce_only=True),
    ]
    balances = [
        balance(account_id, "BTC", rng.uniform(0.5, 12)),
        balance(account_id, "USDT", rng.uniform(-9000, 9000)),
        balance(account_id, "ETH", rng.uniform(-30, 40)),
    ]
    row = account(account_id, "slices", "USD", multi_assets_mode=True)
    return rows(accounts=[row], balances=balances, positions=positions, open_orders=orders)


def sized(account_id: str, rng: np.random.Generator) -> Rows:
    """Perps whose rate grows with their size, profit at a weight, a coin borrowed or held."""
    positions = [
        position(
            account_id,
            f"perps:{symbol}-PERP",
            rng.uniform(-size, size),
            entry_price=amount(SPOT[symbol] * rng.uniform(0.9, 1.1)),
        )
        for symbol, size in (("BTC", 3), ("ETH", 60), ("SOL", 9000))
    ]
    positions[1]["initial_rate_override"] = "0.2"
    balances = [
        balance(account_id, "USDC", rng.uniform(40_000, 300_000)),
        balance(account_id, "ETH", rng.uniform(-20, 20)),
    ]
    orders = [order(account_id, 1, "perps:SOL-PERP", rng.uniform(-5000, 5000))]
    row = account(account_id, "sized", "USDC")
    return rows(accounts=[row], balances=balances, positions=positions, open_orders=orders)


def at_entry(account_id: str, rng: np.random.Generator) -> Rows:
    """Perps whose requirement is of the size at entry."""
    columns = {"entry_price": amount(SPOT["BTC"] * rng.uniform(0.9, 1.1))}
    return rows(
        accounts=[account(account_id, "entry", "USDC", margin_mode="isolated")],
        balances=[balance(account_id, "USDC", rng.uniform(1_000, 30_000))],
        positions=[position(account_id, "perps:BTC-PERP", rng.uniform(-8, 8), **columns)],
    )


def by_contracts(account_id: str, rng: np.random.Generator) -> Rows:
    """Inverse contracts under brackets that count contracts."""
    part = coin_margined(account_id, rng)
    part["accounts"][0]["rule_set"] = "contracts"
    return part


def wallet(account_id: str, rng: np.random.Generator) -> Rows:
    """Coins that nothing is required of."""
    return rows(
        accounts=[account(account_id, "wallet", "USD")],
        balances=[balance(account_id, "USDT", rng.uniform(1e3, 1e5)), balance(account_id, "SOL", rng.uniform(10, 900))],
    )


BUILDERS = {
    "lend:plain": lender,
    "lend:emode": lambda name, rng: lender(name, rng, emode=True),
    "perps:cross": perp_cross,
    "perps:rates": lambda name, rng: perp_cross(name, rng, rule_set="perps_tier_rate", thin=0.6),
    "perps:thin": lambda name, rng: perp_cross(name, rng, thin=0.35),
    "perps:isolated": isolated,
    "perps:zero": lambda name, rng: isolated(name, rng, zero=True),
    "multi:usd": multi_assets,
    "multi:usdt": lambda name, rng: multi_assets(name, rng, unit="USDT"),
    "coin:margined": coin_margined,
    "coin:options": coin_options,
    "options:grid": portfolio_margin,
    "standard:losses": standard_margin,
    "multi:slices": sliced,
    "perps:sized": sized,
    "perps:entry": at_entry,
    "coin:contracts": by_contracts,
    "wallet:spot": wallet,
}
"""Account builders by venue and kind."""


class AccountBook(NamedTuple):
    """Canonical rows and the portfolios over them."""

    tables: Rows
    portfolios: dict[str, tuple[str, ...]]


def book_of(members: Mapping[str, Sequence[str]], *, seed: int) -> AccountBook:
    """A book with the accounts of the named kinds (keys of `BUILDERS`) in each portfolio."""
    parts, portfolios = [market_rows(), rule_rows()], {}
    for number, (portfolio, kinds) in enumerate(members.items()):
        ids = []
        for place, kind in enumerate(kinds):
            # Each account has a stream of its own: what else is in the book changes nothing.
            rng = np.random.default_rng([seed, number, place])
            ids.append(f"{kind}:{portfolio}:{place}")
            parts.append(BUILDERS[kind](ids[-1], rng))
        portfolios[portfolio] = tuple(ids)
    return AccountBook(merged(*parts), portfolios)


EVERY_KIND = {
    "n1": ("lend:plain", "perps:cross", "multi:usd", "wallet:spot"),
    "n2": ("lend:emode", "perps:thin", "multi:usdt", "perps:zero"),
    "n3": ("lend:plain", "perps:rates", "multi:usdt", "perps:isolated"),
    "u1": ("options:grid", "standard:losses", "perps:cross", "coin:options", "multi:slices"),
    "u2": ("options:grid", "standard:losses", "perps:thin", "multi:slices", "perps:sized"),
    "u3": ("options:grid", "standard:losses", "coin:margined", "multi:slices", "perps:entry", "coin:contracts"),
}
"""Portfolios that hold every kind of account, of two shapes: each shape costs a compilation."""


VARIANTS = ("base", "zero", "split", "cash", "double", "bad")
"""Portfolios that differ from `base` by one thing each; see `variants`."""


def variants(*, seed: int) -> AccountBook:
    """Six copies of one portfolio: as it is (`base`), with a position of quantity 0 (`zero`), with its ETH perp in two
    instruments of equal terms (`split`), with 5,000 dollars that nothing moves (`cash`), with every amount doubled
    (`double`), and with an account whose value float32 cannot hold (`bad`).
    """
    twin = _instrument("perps:ETH-TWIN", "perp", "ETH", "USDC")
    wild = _asset("WILD", factor="BTC")
    extra = rows(
        assets=[_asset("DOLLAR"), wild],
        instruments=[twin],
        marks=[mark("perps", "perps:ETH-TWIN", "mark", SPOT["ETH"] * 0.9995), mark("wallet", "WILD", "oracle", 1e30)],
        margin_tiers=_tiers("perps", "perps:ETH-TWIN", USD_TIERS),
    )
    parts, portfolios = [extra], {}
    for name in VARIANTS:
        kinds = ("lend:plain", "perps:cross", "multi:usd")
        ids = [f"{kind}:{name}:{place}" for place, kind in enumerate(kinds)]
        own = merged(
            *(BUILDERS[k](i, np.random.default_rng([seed, n])) for n, (k, i) in enumerate(zip(kinds, ids, strict=True)))
        )
        if name == "zero":
            columns = {"entry_price": "120", "leverage": "10"}
            # Another instrument than the account's own: one that is settled in what the account holds.
            own["positions"].append(position(ids[1], "perps:ETH-TWIN", 0.0, **columns))
        elif name == "split":
            (eth,) = (row for row in own["positions"] if row["instrument_id"] == "perps:ETH-PERP")
            eth["quantity"], rest = amount(float(eth["quantity"]) * 0.25), amount(float(eth["quantity"]) * 0.75)
            eth["unsettled_funding"] = None
            own["positions"].append(eth | {"instrument_id": "perps:ETH-TWIN", "quantity": rest})
        elif name == "cash":
            own["balances"].append(balance(ids[1], "DOLLAR", 5000.0))
        elif name == "double":
            own["balances"] = [_doubled(row, "quantity", "accrued_interest") for row in own["balances"]]
            own["positions"] = [
                _doubled(row, "quantity", "unsettled_funding", "realized_pnl") for row in own["positions"]
            ]
        elif name == "bad":
            ids.append(f"wallet:spot:{name}:3")
            own = merged(
                own, rows(accounts=[account(ids[-1], "wallet", "USD")], balances=[balance(ids[-1], "WILD", 1e12)])
            )
        parts.append(own)
        portfolios[name] = tuple(ids)
    return AccountBook(merged(*parts), portfolios)


def _doubled(row: Mapping[str, Any], *columns: str) -> dict[str, Any]:
    return dict(row) | {name: str(2 * Decimal(row[name])) for name in columns if row.get(name) is not None}


def desk_book(*, seed: int) -> AccountBook:
    """Every kind of account and the variants, in two shapes."""
    every, other = book_of(EVERY_KIND, seed=seed), variants(seed=seed)
    return AccountBook(merged(every.tables, other.tables), every.portfolios | other.portfolios)


# ---- from tables to results ------------------------------------------------------------------------------------------


def snapshot_of(tables: Rows, *, as_of: datetime | None = AS_OF) -> Snapshot:
    """The checked snapshot of canonical rows."""
    return take_snapshot(
        [{name: table_from_rows(name, tables.get(name, [])) for name in CANONICAL if name != "failures"}], as_of=as_of
    )


def packed(book: AccountBook, *, missing: frozenset[str] = frozenset()) -> Book:
    """The packed book; every account must be claimed and every row sound."""
    snapshot = snapshot_of(book.tables)
    out, unclaimed = pack_book({"main": snapshot}, book.portfolios, as_of=AS_OF, missing=missing)
    assert not unclaimed
    return out


def generator_of(factors: Sequence[str], *, scale: float = 1.0) -> ScenarioGenerator:
    """Multivariate t over `factors`, standard deviations times `scale`."""
    pairs = {pair: rho for pair, rho in CORRELATION.items() if set(pair) <= set(factors)}
    std = {name: DAILY_STD[name] * scale for name in factors}
    return multivariate_t(factors, std, correlation=correlation_matrix(factors, pairs), nu=4.0)


FACTORS = tuple(sorted(DAILY_STD))


def cube_of(book: Book, *, scenarios: int = 1000, chunk: int = 512, seed: int = 5, scale: float = 1.0) -> Cube:
    """The cube of a packed book over all factors of `DAILY_STD`, so that its draws do not depend on the book."""
    return draw_cube(
        book.cube.build(FACTORS),
        generator_of(FACTORS, scale=scale),
        seed=seed,
        scenarios=scenarios,
        chunk=chunk,
        horizon_days=1.0,
    )


def result_tables(
    portfolios: Sequence[PackedPortfolio], cube: Cube, *, devices: int = 1, detailed: bool = True
) -> dict[str, pa.Table]:
    """Result tables of the portfolios, sorted by key; with the detail of all of them, or without any."""
    figures: Sequence[Headline | None]
    if detailed:
        found = evaluate_details(portfolios, FACTORS, cube, devices=devices, worst=WORST)
        figures = [both[0] if both else None for both in found]
    else:
        figures = evaluate_headlines(portfolios, FACTORS, cube, devices=devices)
    evaluated = [Evaluated(p, h) for p, h in zip(portfolios, figures, strict=True)]
    out: Rows = {
        "portfolio_margin": [portfolio_row(e) for e in evaluated],
        "account_margin": [row for e in evaluated for row in account_rows(e)],
        "node_margin": [row for e in evaluated for row in node_rows(e)],
    }
    if detailed:
        out |= detail_rows(evaluated, [both[1] if both else None for both in found], cube)
    return {
        name: result_table(name, "run", of).sort_by([(key, "ascending") for key in RESULT_KEYS[name]])
        for name, of in out.items()
    }


def detail_rows(evaluated: Sequence[Evaluated], details: Sequence[Detail | None], cube: Cube) -> Rows:
    """Rows of the tables of detail, of the portfolios that have figures."""
    sensitivities = row_sensitivities(cube.rows, FACTORS)
    out: Rows = {name: [] for name in ("allocation", "scenarios_worst", "loss_histogram", "greeks")}
    for one, found in zip(evaluated, details, strict=True):
        if found is None or not is_calculated(one):
            continue
        out["allocation"] += allocation_rows(one, found)
        out["scenarios_worst"] += worst_rows(one, found, cube, FACTORS)
        out["loss_histogram"] += histogram_rows(one, found)
        columns = RESULTS["greeks"].names[2:]
        out["greeks"] += [
            {"portfolio_id": one.portfolio.portfolio_id} | dict(zip(columns, (name, *values), strict=True))
            for name, values in greeks_by_underlying(one.portfolio.legs, sensitivities).items()
        ]
    return out


class Desk(NamedTuple):
    """One book with everything that was computed of it; entries of the lists belong to the book's portfolios."""

    tables: Rows
    book: Book
    cube: Cube
    headlines: list[Headline]
    details: list[Detail]

    def place(self, portfolio_id: str) -> int:
        """Position of a portfolio."""
        return [p.portfolio_id for p in self.book.portfolios].index(portfolio_id)

    def portfolio(self, portfolio_id: str) -> PackedPortfolio:
        """A packed portfolio."""
        return self.book.portfolios[self.place(portfolio_id)]

    def headline(self, portfolio_id: str) -> Headline:
        """Headline figures of a portfolio."""
        return self.headlines[self.place(portfolio_id)]

    def detail(self, portfolio_id: str) -> Detail:
        """Detail figures of a portfolio."""
        return self.details[self.place(portfolio_id)]

    def evaluated(self, portfolio_id: str) -> Evaluated:
        """What the result tables are made of."""
        return Evaluated(self.portfolio(portfolio_id), self.headline(portfolio_id))


SCENARIOS = 1000
"""Not a multiple of the tile, so that there is padding of weight 0."""
WORST = 8


@functools.cache
def desk(seed: int = 2) -> Desk:
    """The desk book of a seed, computed once per process."""
    tables = desk_book(seed=seed)
    book = packed(tables)
    cube = cube_of(book)
    found = [both for both in evaluate_details(book.portfolios, FACTORS, cube, devices=1, worst=WORST) if both]
    assert len(found) == len(book.portfolios)
    return Desk(tables.tables, book, cube, [both[0] for both in found], [both[1] for both in found])


def table_bytes(tables: Mapping[str, pa.Table]) -> dict[str, bytes]:
    """Each table as the bytes of an Arrow stream."""
    out = {}
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        out[name] = sink.getvalue().to_pybytes()
    return out

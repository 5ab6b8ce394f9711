"""Random accounts of every kind at the made-up venues, and the books of them that the tests of the engine share.

An account builder returns the rows of one account by table name and takes its random numbers from the caller, so a book
is decided by its seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from tests.engine_markets import (
    AS_OF,
    EXPIRIES,
    SPOT,
    STRIKES,
    Rows,
    asset_row,
    instrument_row,
    mark,
    market_rows,
    merged,
    option_id,
    rows,
)
from tests.engine_rules import USD_TIERS, rule_rows, tier_rows


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
    twin = instrument_row("perps:ETH-TWIN", "perp", "ETH", "USDC")
    wild = asset_row("WILD", factor="BTC")
    extra = rows(
        assets=[asset_row("DOLLAR"), wild],
        instruments=[twin],
        marks=[mark("perps", "perps:ETH-TWIN", "mark", SPOT["ETH"] * 0.9995), mark("wallet", "WILD", "oracle", 1e30)],
        margin_tiers=tier_rows("perps", "perps:ETH-TWIN", USD_TIERS),
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

"""A unified wallet of Bybit: its coins, their dollar prices, and what of its totals no position or order explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

from aggregator.errors import FailureReason

from ..amounts import FieldError, joined
from ..rows import Rows
from ..transport import Payload
from .catalog import BybitCatalog, lines_of
from .parse import CoinLine, CollateralLine, WalletLine, coin_line, wallet_line

UNIFIED_TYPE = "UNIFIED"

_ZERO = Decimal(0)
# The venue rounds to 8 decimals and values coins at prices of the moment of the answer.
_TOTAL_TOLERANCE = Decimal("1e-4")
_SMALLEST_TOTAL = Decimal("0.01")
# Below a dollar the rounding of `usdValue` shows in the price that it gives.
_SMALLEST_PRICED = Decimal(1)


class Wallet(NamedTuple):
    """The unified wallet of an owner: totals, coins by name, dollars per coin, and the answer that it came in."""

    line: WalletLine
    payload: Payload
    coins: Mapping[str, CoinLine]
    prices: Mapping[str, Decimal]
    own_prices: frozenset[str]
    """Coins whose price is this wallet's own."""


class Loans(NamedTuple):
    """Margin of loans, in dollars."""

    initial: Decimal
    maintenance: Decimal


def read_wallet(
    rows: Rows,
    payloads: Sequence[Payload],
    home: str,
    *,
    market_prices: Mapping[str, Decimal],
    catalog: BybitCatalog,
) -> Wallet | None:
    """The unified wallet in the answers of one owner, or None; what is wrong with it fails `home`.

    A wallet of another type that holds something is unsupported: it is margined apart, coin by coin.
    """
    found = lines_of(
        rows, payloads, wallet_line, key=lambda line: line.account_type, whole=home, account=lambda record: home
    )
    unified = None
    for account_type, (line, payload, _) in sorted(found.items()):
        coins = _coins(rows, line, payload, home)
        if account_type == UNIFIED_TYPE:
            own = {coin: price for coin, entry in coins.items() if (price := own_price(entry)) is not None}
            unified = Wallet(line, payload, coins, _prices(coins, own, market_prices, catalog), frozenset(own))
            _check_total(rows, unified, home)
        elif any(not coin.empty for coin in coins.values()):
            rows.fail(
                FailureReason.UNSUPPORTED,
                f"a wallet of type {account_type[:40]} has no rule here",
                payload=payload.name,
                path=joined(line.path, "accountType"),
                subject=home,
                account_id=home,
            )
    if unified is None:
        message = "no account/wallet-balance answer with a unified wallet that can be used"
        rows.fail(FailureReason.MISSING_FIELD, message, path="list", subject=home, account_id=home)
    return unified


def _coins(rows: Rows, wallet: WalletLine, payload: Payload, home: str) -> dict[str, CoinLine]:
    # the coins stand inside their wallet, not at the head of the answer
    inside = replace(payload, body={"list": wallet.coins})
    found = lines_of(
        rows,
        [inside],
        coin_line,
        key=lambda line: line.coin,
        whole=home,
        account=lambda record: home,
        within=lambda place: joined(wallet.path, "coin") + place.removeprefix("list"),
    )
    return {coin: line for coin, (line, _, _) in found.items()}


def own_price(line: CoinLine) -> Decimal | None:
    """Dollars per coin as the wallet itself values it; None where it does not, or values too little of it."""
    if not line.usd_value or not line.equity or abs(line.usd_value) < _SMALLEST_PRICED:
        return None
    return line.usd_value / line.equity if line.usd_value * line.equity > 0 else None


def _prices(
    coins: Mapping[str, CoinLine],
    own: Mapping[str, Decimal],
    market_prices: Mapping[str, Decimal],
    catalog: BybitCatalog,
) -> dict[str, Decimal]:
    """The wallet's own price, else the market's, else par for a stable."""
    stable = {coin: Decimal(1) for coin in coins if catalog.named.is_stable(coin)}
    return stable | dict(market_prices) | dict(own)


def _check_total(rows: Rows, wallet: Wallet, home: str) -> None:
    """The coins of a wallet must be all of it: a list that was cut, or asked for single coins, is no whole account."""
    stated = wallet.line.equity
    values = [line.usd_value for line in wallet.coins.values() if line.usd_value is not None]
    if stated is None or len(values) < len(wallet.coins):
        return
    total, gross = sum(values, _ZERO), sum(map(abs, values), _ZERO)
    if abs(total - stated) > max(_SMALLEST_TOTAL, _TOTAL_TOLERANCE * max(gross, abs(stated))):
        rows.fail(
            FailureReason.INCONSISTENT,
            f"totalEquity {stated} is not the {total} of the coins that are listed",
            payload=wallet.payload.name,
            path=joined(wallet.line.path, "totalEquity"),
            subject=home,
            account_id=home,
        )


def counts_as_collateral(line: CoinLine, others: Sequence[CollateralLine | None]) -> bool:
    """Whether a coin is collateral by the venue's list and by its owner's choice: the wallet's own word, else that of
    the first of `others` which has one.

    Raises missing_field where nobody says it of a coin that is held.
    """
    words = []
    for key, stated, name in (
        ("marginCollateral", line.is_collateral, "is_collateral"),
        ("collateralSwitch", line.switched_on, "switched_on"),
    ):
        found = (stated, *(getattr(other, name) for other in others if other is not None))
        word = next((flag for flag in found if flag is not None), None)
        if word is None and line.net > 0:
            raise FieldError(joined(line.path, key), FailureReason.MISSING_FIELD, f"field {key!r} is missing")
        words.append(word is not False)
    return all(words)


def in_dollars(wallet: Wallet, coin: str, amount: Decimal | None) -> Decimal:
    """Dollars of an amount of a coin, 0 for none; raises missing_mark where the coin has no price."""
    if not amount:
        return _ZERO
    if coin not in wallet.prices:
        raise FieldError(
            joined(wallet.line.path, "coin"), FailureReason.MISSING_MARK, f"no dollar price of {coin[:40]}"
        )
    return amount * wallet.prices[coin]


def order_initial(wallet: Wallet) -> Decimal:
    """Initial margin of open orders in dollars, as the wallet states it by coin.

    Raises missing_field where an account that has an initial margin does not say which part of it is for orders.
    """
    total = _ZERO
    for coin, line in wallet.coins.items():
        if line.order_initial is None and wallet.line.initial:
            path = joined(line.path, "totalOrderIM")
            raise FieldError(path, FailureReason.MISSING_FIELD, "field 'totalOrderIM' is missing")
        total += in_dollars(wallet, coin, line.order_initial)
    return total


def loan_margins(wallet: Wallet) -> Loans:
    """Margin of loans in dollars: what the account's totals hold beyond its positions and orders.

    The venue margins a loan by tiers of the coin and does not publish a formula for the total. Without a loan nothing.
    Raises missing_field where the totals are blank or a coin does not state its parts, and inconsistent where they are
    below their parts.
    """
    if not any(line.borrowed or line.spot_borrow or line.net < 0 for line in wallet.coins.values()):
        return Loans(_ZERO, _ZERO)
    out = []
    for key, total, parts in (
        ("totalInitialMargin", wallet.line.initial, ("order_initial", "position_initial")),
        ("totalMaintenanceMargin", wallet.line.maintenance, ("position_maintenance",)),
    ):
        path = joined(wallet.line.path, key)
        if total is None:
            raise FieldError(path, FailureReason.MISSING_FIELD, f"field {key!r} is missing beside a loan")
        for line in wallet.coins.values():
            for part in parts:
                if getattr(line, part) is None and abs(total) > _SMALLEST_TOTAL:
                    message = f"{key} {total} beside a loan, but no word of what positions and orders need of it"
                    raise FieldError(line.path, FailureReason.MISSING_FIELD, message)
        explained = sum(
            (in_dollars(wallet, coin, getattr(line, part)) for coin, line in wallet.coins.items() for part in parts),
            _ZERO,
        )
        rest = total - explained
        tolerance = max(_SMALLEST_TOTAL, _TOTAL_TOLERANCE * abs(total))
        if rest < -tolerance:
            message = f"{key} {total} is less than its parts, {explained}"
            raise FieldError(path, FailureReason.INCONSISTENT, message)
        # within the rounding of the venue's own figures there is no margin of loans
        out.append(rest if rest > tolerance else _ZERO)
    return Loans(*out)

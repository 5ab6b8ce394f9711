"""Bodies of Binance's portfolio-margin answers as typed lines: account, balances, collateral rates, loan leverage.

Portfolio margin answers under `papi/`, portfolio margin pro under `portfolio/`; both carry the same objects. Every
reader raises `FieldError` with the path inside the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..amounts import (
    FieldError,
    decimal_at,
    joined,
    members,
    non_negative_at,
    optional_decimal_at,
    positive_at,
)
from ..fields import text_at


class PortfolioLine(NamedTuple):
    """The venue's own figures of a portfolio-margin account, in USD; `equity` is after haircuts."""

    equity: Decimal
    initial: Decimal | None
    maintenance: Decimal
    uni_mmr: Decimal
    open_loss: Decimal
    status: str
    account_type: str


class BalanceLine(NamedTuple):
    """One coin of a portfolio-margin account, in coins: margin wallet, its loan, and the futures wallets."""

    asset: str
    path: str
    margin_asset: Decimal
    borrowed: Decimal
    interest: Decimal
    linear_wallet: Decimal
    inverse_wallet: Decimal
    option_wallet: Decimal
    linear_profit: Decimal | None
    inverse_profit: Decimal | None
    option_equity: Decimal

    @property
    def held(self) -> Decimal:
        """Coins of all wallets, without the loan; may be negative where a futures wallet is."""
        return self.margin_asset + self.linear_wallet + self.inverse_wallet + self.option_wallet

    @property
    def owed(self) -> Decimal:
        """Coins borrowed, and those that negative wallets owe beyond what the others hold."""
        return self.borrowed + max(-self.held, Decimal(0))


class CollateralRates(NamedTuple):
    """Slices of one coin as (floor, rate), ascending from 0."""

    asset: str
    tiers: tuple[tuple[Decimal, Decimal], ...]


def portfolio_line(body: Any) -> PortfolioLine:
    """The answer of `portfolio/account` or `papi/account`."""
    return PortfolioLine(
        equity=decimal_at(body, "accountEquity"),
        initial=optional_decimal_at(body, "accountInitialMargin"),
        maintenance=non_negative_at(body, "accountMaintMargin"),
        uni_mmr=decimal_at(body, "uniMMR"),
        open_loss=_optional_amount(body, "totalMarginOpenLoss", ""),
        status=str(body.get("accountStatus") or ""),
        account_type=str(body.get("accountType") or ""),
    )


def _optional_amount(record: Mapping[str, Any], key: str, path: str) -> Decimal:
    number = optional_decimal_at(record, key, path) or Decimal(0)
    if number < 0:
        raise FieldError(joined(path, key), FailureReason.OUT_OF_RANGE, f"{number} must not be negative")
    return number


def balance_line(record: Any, path: str) -> BalanceLine:
    """A row of `papi/balance` or `portfolio/balance`.

    `crossMarginAsset` may be left out, which is free and locked coins together; the wallets may not.
    """
    asset = text_at(record, "asset", path)
    if record.get("crossMarginAsset") in (None, ""):
        free = non_negative_at(record, "crossMarginFree", path)
        held = free + non_negative_at(record, "crossMarginLocked", path)
    else:
        held = non_negative_at(record, "crossMarginAsset", path)
    return BalanceLine(
        asset=asset,
        path=path,
        margin_asset=held,
        borrowed=non_negative_at(record, "crossMarginBorrowed", path),
        interest=non_negative_at(record, "crossMarginInterest", path),
        linear_wallet=decimal_at(record, "umWalletBalance", path),
        inverse_wallet=decimal_at(record, "cmWalletBalance", path),
        option_wallet=optional_decimal_at(record, "optionWalletBalance", path) or Decimal(0),
        linear_profit=optional_decimal_at(record, "umUnrealizedPNL", path),
        inverse_profit=optional_decimal_at(record, "cmUnrealizedPNL", path),
        option_equity=optional_decimal_at(record, "optionEquity", path) or Decimal(0),
    )


def collateral_rates(record: Any, path: str) -> CollateralRates:
    """A row of `portfolio/collateralRate`: one rate, or tiers of them under `collateralInfo`.

    Raises out_of_range unless 0 <= rate <= 1, and inconsistent unless tiers begin at 0 and continue each other. The
    published quick-calculation number `cum` follows from floors and rates and is not read. Above the last cap nothing
    counts.
    """
    asset = text_at(record, "asset", path)
    if "collateralInfo" not in record:
        return CollateralRates(asset, ((Decimal(0), _rate(record, path)),))
    tiers: list[tuple[Decimal, Decimal]] = []
    expected: Decimal | None = Decimal(0)
    for number, entry in enumerate(members(record, "collateralInfo", path)):
        place = joined(joined(path, "collateralInfo"), number)
        floor, cap = decimal_at(entry, "tierFloor", place), optional_decimal_at(entry, "tierCap", place)
        if floor != expected or (cap is not None and cap <= floor):
            message = f"collateral tier from {floor} to {cap} of {asset} does not continue at {expected}"
            raise FieldError(place, FailureReason.INCONSISTENT, message)
        tiers.append((floor, _rate(entry, place)))
        expected = cap
    if not tiers:
        raise FieldError(joined(path, "collateralInfo"), FailureReason.MISSING_FIELD, f"no collateral rate of {asset}")
    if expected is not None:
        tiers.append((expected, Decimal(0)))
    return CollateralRates(asset, tuple(tiers))


def _rate(record: Any, path: str) -> Decimal:
    rate = non_negative_at(record, "collateralRate", path)
    if rate > 1:
        raise FieldError(joined(path, "collateralRate"), FailureReason.OUT_OF_RANGE, f"{rate} is above 1")
    return rate


def loan_leverage(record: Any, path: str) -> tuple[str, Decimal]:
    """(asset, leverage) of a row of `portfolio/margin-asset-leverage`; raises out_of_range unless it is above 1."""
    leverage = positive_at(record, "leverage", path)
    if leverage <= 1:
        raise FieldError(joined(path, "leverage"), FailureReason.OUT_OF_RANGE, f"leverage {leverage} must be above 1")
    return text_at(record, "asset", path), leverage


def asset_index_price(record: Any, path: str) -> tuple[str, Decimal]:
    """(asset, USD price) of a row of `portfolio/asset-index-price`."""
    return text_at(record, "asset", path), positive_at(record, "assetIndexPrice", path)


def order_initial(record: Any, path: str) -> tuple[str, Decimal]:
    """(asset, initial margin of its open orders) of a row of `assets` in an account answer."""
    return text_at(record, "asset", path), non_negative_at(record, "openOrderInitialMargin", path)

"""Positions of one owner on Binance: rows of several answers brought together, and what each needs beside its own row.

Used for accounts of either futures product and for portfolio margin, where both lie in one account.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from aggregator.errors import FailureReason

from ..amounts import FieldError
from ..market_rows import add_mark
from ..rows import Rows
from ..symbols import instrument_id
from ..transport import Payload
from .contracts import Product
from .market import VENUE, BinanceCatalog, MarketData
from .parse import PositionLine, SymbolSetting, no_position, position_line, unique_lines
from .rules import leverage_problem

PositionKey = tuple[str, str]
"""Symbol and side mode."""

# `notionalValue` is rounded to 8 decimals of a coin.
_NOTIONAL_TOLERANCE = Decimal("1e-6")


@dataclass
class Holder:
    """Who holds positions, and where they are written; the marks of positions by account and instrument."""

    rows: Rows
    owner: str
    catalog: BinanceCatalog
    market: MarketData
    marks: dict[tuple[str, str], tuple[Decimal, str, datetime | None]] = field(default_factory=dict)
    """Mark, request and time."""

    def write_marks(self) -> None:
        """Adds the marks that came with positions."""
        for (home, instrument), (value, source, moment) in sorted(self.marks.items()):
            add_mark(self.rows, instrument, "mark", value, as_of=moment, source=source, account_id=home)


def position_lines(
    rows: Rows,
    payload: Payload,
    records: Sequence[Any],
    product: Product,
    *,
    path: str,
    account: Callable[[Any], str | None],
) -> dict[PositionKey, PositionLine]:
    """Readable positions of one answer; a bad one fails `account(record)`."""
    lines = unique_lines(
        rows,
        payload.name,
        records,
        lambda record, place: position_line(record, place, product),
        key=lambda line: f"{line.market.symbol} {line.side_mode}",
        path=path,
        account=account,
        skip=lambda record: no_position(record, product),
    )
    return {(line.market.symbol, line.side_mode): line for line in lines}


def merged(lines: Sequence[PositionLine], setting: SymbolSetting | None) -> PositionLine:
    """One line from those of several answers, the first that states a field winning, and the owner's setting last."""

    def first(name: str) -> Any:
        return next((value for line in lines if (value := getattr(line, name)) is not None), None)

    isolated = first("isolated")
    if isolated is None:
        # Version 3 does not say: only an isolated position has an isolated wallet.
        isolated = setting.isolated if setting else any(line.isolated_wallet or line.isolated_margin for line in lines)
    leverage = first("leverage")
    return lines[0]._replace(
        quantity=next(line.quantity for line in lines if line.quantity != 0),
        entry_price=first("entry_price"),
        mark_price=first("mark_price"),
        leverage=setting.leverage if leverage is None and setting else leverage,
        isolated=isolated,
        isolated_wallet=first("isolated_wallet"),
        isolated_margin=first("isolated_margin"),
        initial=first("initial"),
        maintenance=first("maintenance"),
        liquidation_price=first("liquidation_price"),
        notional=first("notional"),
    )


def check_one_moment(
    line: PositionLine,
    risk: PositionLine | None,
    stated: PositionLine | None,
    *,
    account_listed: bool,
    names: tuple[str, str],
) -> None:
    """Raises inconsistent unless both answers that list positions say the same quantity."""
    quantities = {other.quantity for other in (risk, stated) if other is not None}
    if len(quantities) > 1 or (stated is None and account_listed):
        raise FieldError(
            f"{line.path}.positionAmt",
            FailureReason.INCONSISTENT,
            f"quantity {risk.quantity if risk else 0} in {names[0]}, "
            f"{stated.quantity if stated else 0} in {names[1]}: the answers are not of one moment",
        )


def add_position(
    holder: Holder, home: str, line: PositionLine, *, payload: str, source: str, moment: datetime | None
) -> None:
    """The row of one position, its mark, and the failures of what it lacks.

    Raises missing_field without an entry price or leverage, and what `BinanceCatalog.instrument` raises.
    """
    instrument = holder.catalog.instrument(line.market, f"{line.path}.symbol")
    for key, value in (("entryPrice", line.entry_price), ("leverage", line.leverage)):
        if value is None:
            message = f"no {key} of {line.market.symbol} in any answer of this owner"
            raise FieldError(f"{line.path}.{key}", FailureReason.MISSING_FIELD, message)
    holder.rows.add(
        "positions",
        account_id=home,
        instrument_id=instrument,
        side_mode=line.side_mode,
        quantity=line.quantity,
        entry_price=line.entry_price,
        leverage=line.leverage,
        reported_initial_margin=line.initial,
        reported_maintenance_margin=line.maintenance,
        reported_liquidation_price=line.liquidation_price,
    )
    mark = _mark(holder, home, line, instrument, payload=payload, source=source, moment=moment)
    _check_contract_size(holder, line, payload)
    _check_brackets(holder, home, line, mark, payload)


def _mark(
    holder: Holder,
    home: str,
    line: PositionLine,
    instrument: str,
    *,
    payload: str,
    source: str,
    moment: datetime | None,
) -> Decimal | None:
    """Mark of a position: its own answer's, else the market's; kept for writing when it is its own."""
    if line.mark_price is None:
        premium = holder.market.premiums.get(line.market.symbol)
        if premium is not None:
            return premium.mark_price
        api = "dapi" if line.market.inverse else "fapi"
        holder.rows.fail(
            FailureReason.MISSING_MARK,
            f"no mark of {line.market.symbol} in {api}/positionRisk or {api}/premiumIndex",
            payload=payload,
            path=f"{line.path}.markPrice",
            subject=instrument,
            account_id=home,
        )
        return None
    earlier = holder.marks.setdefault((home, instrument), (line.mark_price, source, moment))[0]
    if earlier != line.mark_price:
        message = f"marks {earlier} and {line.mark_price} of {line.market.symbol} in one answer"
        raise FieldError(f"{line.path}.markPrice", FailureReason.INCONSISTENT, message)
    return line.mark_price


def _check_contract_size(holder: Holder, line: PositionLine, payload: str) -> None:
    """The coins that an inverse position states must follow from its contracts; only their size can be wrong."""
    if not line.market.inverse or not line.notional or line.mark_price is None:
        return
    size = holder.catalog.contract_size(line.market)
    expected = abs(line.quantity) * size / line.mark_price
    if abs(abs(line.notional) - expected) > _NOTIONAL_TOLERANCE * max(expected, Decimal(1)):
        raise FieldError(
            f"{line.path}.notionalValue",
            FailureReason.INCONSISTENT,
            f"{line.notional} is not what {line.quantity} contracts of {size} dollars are worth at {line.mark_price}",
        )


def _check_brackets(holder: Holder, home: str, line: PositionLine, mark: Decimal | None, payload: str) -> None:
    """Failures of a position without brackets, and the finding of one with more leverage than they allow."""
    brackets = holder.market.brackets.find(line.market, holder.owner)
    instrument = instrument_id(VENUE, line.market.symbol)
    if brackets is None:
        api = "dapi" if line.market.inverse else "fapi"
        holder.rows.fail(
            FailureReason.MISSING_PARAMETER,
            f"no usable brackets of {line.market.symbol} in {api}/leverageBracket or the parameter file",
            payload=payload,
            path=line.path,
            subject=instrument,
            account_id=home,
        )
    elif mark is not None and line.leverage is not None:
        size = holder.catalog.contract_size(line.market)
        notional = abs(line.quantity) * size / mark if line.market.inverse else abs(line.quantity) * mark
        problem = leverage_problem(notional, line.leverage, brackets)
        if problem:
            holder.rows.fail(
                FailureReason.INCONSISTENT,
                f"{home}: {problem}",
                payload=payload,
                path=f"{line.path}.leverage",
                subject=instrument,
            )

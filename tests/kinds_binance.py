"""Checks of `venues/binance.json`: brackets, portfolio-margin parts and uniMMR by `adapters.binance.mechanics`."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from adapters.binance import mechanics

Cases = list[dict[str, Any]]

# of every case: the levels of the venue's FAQ on portfolio margin
STATUSES = (
    ("normal", Decimal("1.5")),
    ("warning", Decimal("1.2")),
    ("reduce_only", Decimal("1.05")),
    ("liquidation", Decimal(1)),
)


def _number(value: Any) -> Decimal:
    return Decimal(str(value))


def binance_tiered_mm(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        brackets = [
            mechanics.Bracket(
                _number(floor), None if cap is None else _number(cap), *map(_number, (rate, leverage, cum))
            )
            for floor, cap, rate, leverage, cum in case["tiers"]
        ]
        margin = mechanics.bracket_margin(
            _number(case["notional"]), brackets, selected_leverage=_number(case["selected_leverage"])
        )
        out.append({key: float(value) for key, value in margin._asdict().items()})
    return out


def binance_pm_parts(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        parts = mechanics.portfolio_margin_parts(
            [mechanics.MarginCoin(m["coin"], _number(m["asset"]), _number(m["loan"])) for m in case["margin"]],
            [
                mechanics.LinearPosition(p["symbol"], *(_number(p[key]) for key in ("qty", "entry", "mark", "mmr")))
                for p in case["usdm"]
            ],
            [
                mechanics.InversePosition(
                    p["symbol"],
                    _number(p["contract_usd"]),
                    int(p["side"]),
                    *(_number(p[key]) for key in ("entry", "mark", "mmr")),
                )
                for p in case["coinm"]
            ],
            loan_rate=_number(case["margin_loan_mmr"]),
        )
        out.append(
            {
                "upnl_usdt": [float(value) for value in parts.linear_profit],
                "margin_equity": {coin: float(value) for coin, value in parts.margin_equity.items()},
                "margin_mm": {coin: float(value) for coin, value in parts.margin_maintenance.items()},
            }
        )
    return out


def _portfolio_coin(figures: dict[str, Any]) -> mechanics.PortfolioMarginCoin:
    return mechanics.PortfolioMarginCoin(
        margin_asset=_number(figures["margin_asset"]),
        margin_loan=_number(figures["margin_loan"]),
        futures_wallet=_number(figures["futures_wallet"]),
        futures_profit=_number(figures["futures_upnl"]),
        futures_maintenance=_number(figures["futures_mm"]),
        index_price=_number(figures["index"]),
        collateral_rate=_number(figures["collateral_rate"]),
    )


def binance_unimmr(inputs: Cases) -> Cases:
    out = []
    for case in inputs:
        coins = {coin: _portfolio_coin(figures) for coin, figures in case["coins"].items()}
        result = mechanics.uni_mmr(
            coins,
            loan_rate=_number(case["loan_mmr"]),
            statuses=STATUSES,
            open_loss_usd=_number(case["open_loss_usd"]),
        )
        out.append(
            {
                "equity_usd": float(result.equity_usd),
                "mm_usd": float(result.maintenance_usd),
                "uni_mmr": None if result.ratio is None else float(result.ratio),
                "status": result.status,
            }
        )
    return out


CHECKS: dict[str, Callable[[Cases], Cases]] = {
    "binance_tiered_mm": binance_tiered_mm,
    "binance_pm_parts": binance_pm_parts,
    "binance_unimmr": binance_unimmr,
}

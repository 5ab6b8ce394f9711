"""Checks of `venues/paradex.json`, through `adapters.paradex.mechanics` and `adapters.paradex.portfolio_margin`."""

from fractions import Fraction
from typing import Any

from adapters.paradex import mechanics
from adapters.paradex import portfolio_margin as pm
from adapters.paradex.mechanics import MarketMargin, OptionFractions, OptionMarket, Order, PerpMarket

Case = dict[str, Any]
Cases = list[Case]


def _exact(value: Any) -> Fraction:
    return Fraction(str(value))


def _fractions(level: Case) -> OptionFractions:
    return OptionFractions(**{name: _exact(level[name]) for name in OptionFractions._fields})


# of every case: an option's fee is at most this share of its mark (paradex-docs dated-options/fees)
FEE_CAP = Fraction(1, 8)


def _market(case: Case) -> PerpMarket | OptionMarket:
    mark, fee_rate = _exact(case["mark"]), _exact(case.get("fee_rate", 0))
    if isinstance(case["imf"], dict):
        return OptionMarket(
            mark,
            _exact(case["spot"]),
            _exact(case["strike"]),
            is_call=bool(case["is_call"]),
            imf=_fractions(case["imf"]),
            mmf=_fractions(case["mmf"]),
            fee_rate=fee_rate,
            fee_cap=FEE_CAP,
        )
    return PerpMarket(mark, _exact(case["imf"]), _exact(case.get("mmf_factor", 0)), fee_rate)


def _margin(case: Case) -> MarketMargin:
    """One market: its position signed, or as a size with a side; orders one by one or summed by side at the mark."""
    position = _exact(case.get("position", case.get("size", 0)))
    if not case.get("is_long", True):
        position = -abs(position)
    orders = [Order(_exact(size), _exact(price)) for size, price in case.get("orders", [])]
    for key, side in (("buy_orders", 1), ("sell_orders", -1)):
        if case.get(key):
            orders.append(Order(side * _exact(case[key]), _exact(case["mark"])))
    return mechanics.market_margin(_market(case), position, orders)


def cross_margin(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        margins = [_margin(one) for one in case.get("positions", [case])]
        imr, mmr = mechanics.account_margin(margins)
        results.append(
            {
                "buy_open_size": sum(margin.buy_open_size for margin in margins),
                "sell_open_size": sum(margin.sell_open_size for margin in margins),
                "net_imr": sum(margin.net_imr for margin in margins),
                "fee_provision_imr": sum(margin.fee_provision_imr for margin in margins),
                "open_loss": sum(margin.open_loss for margin in margins),
                "imr": imr,
                "mmr": mmr,
            }
        )
    return results


def min_delta(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        risk = mechanics.min_delta_risk(
            [_exact(delta) for delta in case["deltas"]],
            spot=_exact(case["spot"]),
            hedged=_exact(case["hedged_margin_factor"]),
            unhedged=_exact(case["unhedged_margin_factor"]),
        )
        results.append(risk._asdict())
    return results


def _leg(record: Case) -> pm.Leg:
    option = None
    if record["kind"] == "option":
        terms = record["strike"], bool(record["is_call"]), record["dte"], record["mark_iv"]
        option = pm.OptionTerms(*terms, fee_cap=float(FEE_CAP))
    return pm.Leg(record["size"], record["mark"], record["delta"], record["fee"], option, record.get("price"))


def _configuration(record: Case) -> pm.Configuration:
    vol = record["vol_shock_params"]
    return pm.Configuration(
        scenarios=tuple(pm.Scenario(*row) for row in record["scenarios"]),
        vol=pm.VolShockParameters(
            vol["vega_power_short_dte"], vol["vega_power_long_dte"], vol["dte_floor_days"], vol["min_vol_shock_up"]
        ),
        hedged_factor=record["hedged_margin_factor"],
        unhedged_factor=record["unhedged_margin_factor"],
        mmf_factor=record["mmf_factor"],
        funding_hours=record["funding_provision_hour"],
    )


def portfolio(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        margin = pm.portfolio_margin(
            [_leg(record) for record in case["positions"]],
            [_leg(record) for record in case["orders"]],
            underlying=pm.Underlying(case["spot"], case["perp_mark"], case["funding_8h"], case["rate"]),
            configuration=_configuration(case["pm_config"]),
            cdf=pm.venue_normal_cdf,
        )
        results.append(
            {
                "imr": margin.imr,
                "mmr": margin.mmr,
                "worst_loss": margin.worst_loss,
                "delta_min": margin.min_delta,
                "funding_provision": margin.funding_provision,
                "fee_provision_imr": margin.fee_provision_imr,
                "fee_provision_mmr": margin.fee_provision_mmr,
                "worst_scenario_index": margin.worst_scenario,
            }
        )
    return results


CHECKS = {"paradex_xm": cross_margin, "paradex_pm_mindelta": min_delta, "paradex_pm": portfolio}

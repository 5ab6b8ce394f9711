"""Checks of `venues/span.json` by the mechanics of the adapter: arrays from scan ranges, and arrays as published."""

from typing import Any

from adapters.span import mechanics

Case = dict[str, Any]
Cases = list[Case]


def _holdings_of_ranges(case: Case) -> list[tuple[Any, Any]]:
    points = mechanics.scenarios(case["extreme_multiple"], case["extreme_cover"])
    holdings: list[tuple[Any, Any]] = []
    for held in case["positions"]:
        if held["kind"] == "future":
            array = mechanics.future_array(case["price_scan_range"], points)
        else:
            array = mechanics.option_array(
                mechanics.Option(held["strike"], held["vol"], case["days_to_expiry"], held["is_call"]),
                case["future_price"],
                price_scan_range=case["price_scan_range"],
                vol_scan_range=case["vol_scan_range_relative"],
                look_ahead_days=case["look_ahead_days"],
                points=points,
            )
        holdings.append((held["qty"], array))
    return holdings


def span_scan(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        if "positions" in case:
            holdings = _holdings_of_ranges(case)
        else:
            # Published as profits of what is held: a loss array of the opposite sign.
            holdings = [(-1, case[key]) for key in ("long_future_pnl", "short_call_pnl") if case.get(key) is not None]
        found = mechanics.scan(mechanics.total_losses(holdings))
        results.append(
            {
                "losses": list(found.losses),
                "scanning_risk": found.risk,
                "portfolio_pnl": [-loss for loss in found.losses],
                "worst_scenario": found.active,
            }
        )
    return results


CHECKS = {"span_scan": span_scan}

"""Checks of `venues/drift_v2.json`, through `adapters.drift_v2.mechanics` and `.liquidation`; results are exact."""

from typing import Any

from adapters.drift_v2 import liquidation, mechanics
from adapters.drift_v2.mechanics import Margin, PerpMarket, PerpPosition, SpotMarket, SpotPosition, StrictPrice

Case = dict[str, Any]
Cases = list[Case]


def _integers(case: Case, *names: str) -> dict[str, Any]:
    return {name: int(case[name]) for name in names if case.get(name) is not None}


def _optional(case: Case, name: str) -> int | None:
    return None if case.get(name) is None else int(case[name])


def _spot_market(market: Case) -> SpotMarket:
    names = ("initial_asset_weight", "maintenance_asset_weight", "initial_liability_weight")
    return SpotMarket(
        int(market.get("index", 1)),
        int(market["decimals"]),
        int(market.get("price", 0)),
        _optional(market, "twap_5min"),
        **_integers(market, *names, "maintenance_liability_weight", "imf_factor", "scale_initial_asset_weight_start"),
        deposits=int(market.get("deposits_token_amount", 0)),
    )


def _spot(case: Case) -> SpotPosition:
    orders = _integers(case, "open_bids", "open_asks", "open_orders")
    return SpotPosition(_spot_market(case["market"]), int(case["token_amount"]), **orders)


def _perp_market(market: Case) -> PerpMarket:
    weights = ("unrealized_pnl_initial_asset_weight", "unrealized_pnl_maintenance_asset_weight")
    return PerpMarket(
        **_integers(market, "oracle_price", "margin_ratio_initial", "margin_ratio_maintenance", "imf_factor", *weights),
        **_integers(market, "unrealized_pnl_imf_factor", "unrealized_pnl_max_imbalance", "net_user_pnl"),
        is_prediction=bool(market.get("prediction", False)),
    )


def _perp(case: Case) -> PerpPosition:
    orders = _integers(case, "open_bids", "open_asks", "open_orders", "unsettled_funding", "max_margin_ratio")
    return PerpPosition(
        _perp_market(case["market"]),
        int(case["base_asset_amount"]),
        int(case["quote_asset_amount"]),
        **orders,
        isolated_amount=int(case.get("isolated_token_amount", 0)) if case.get("isolated") else None,
    )


def _figures(margin: Margin) -> Case:
    return {
        "total_collateral": margin.total_collateral,
        "margin_requirement": margin.requirement,
        "total_collateral_plus_buffer": margin.total_collateral_plus_buffer,
        "margin_requirement_plus_buffer": margin.requirement_plus_buffer,
    }


def account_margin(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        margin = mechanics.account_margin(
            [_spot(held) for held in case.get("spot_positions") or ()],
            [_perp(held) for held in case.get("perp_positions") or ()],
            case["margin_type"],
            quote_price=StrictPrice(int(case["quote_price"]), _optional(case, "quote_twap_5min")),
            strict=bool(case.get("strict", False)),
            max_margin_ratio=int(case.get("user_max_margin_ratio") or 0),
            buffer=int(case.get("margin_buffer") or 0),
        )
        result = _figures(margin.cross)
        if margin.isolated:
            result["isolated"] = _figures(next(iter(margin.isolated.values())))
        results.append(result)
    return results


def weights(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        market, size, kind = _spot_market(case["market"]), int(case["size"]), case["margin_type"]
        result: Case = {}
        if "asset_weight" in case["want"]:
            result["asset_weight"] = mechanics.asset_weight(market, size, int(case["price"]), kind)
        if "liability_weight" in case["want"]:
            result["liability_weight"] = mechanics.liability_weight(market, size, kind)
        results.append(result)
    return results


def scaled_initial_asset_weight(inputs: Cases) -> Cases:
    return [
        {"asset_weight": mechanics.scaled_initial_asset_weight(_spot_market(case["market"]), int(case["price"]))}
        for case in inputs
    ]


def perp_position(inputs: Cases) -> Cases:
    margins = [
        mechanics.perp_margin(_perp(case), case["margin_type"], StrictPrice(int(case["quote_price"])))
        for case in inputs
    ]
    return [{"margin_requirement": m.requirement, "weighted_unrealized_pnl": m.weighted_pnl} for m in margins]


def unrealized_pnl_weight(inputs: Cases) -> Cases:
    names = ("unrealized_pnl_imf_factor", "unrealized_pnl_initial_asset_weight")
    more = ("unrealized_pnl_maintenance_asset_weight", "unrealized_pnl_max_imbalance", "net_user_pnl")
    return [
        {
            "asset_weight": mechanics.profit_weight(
                PerpMarket(0, 0, 0, **_integers(case, *names, *more)), int(case["unrealized_pnl"]), case["margin_type"]
            )
        }
        for case in inputs
    ]


def base_to_cover_shortage(inputs: Cases) -> Cases:
    names = ("margin_ratio", "liquidation_fee", "if_liquidation_fee", "oracle_price", "quote_oracle_price")
    return [
        {
            "base_asset_amount": liquidation.base_to_cover_shortage(
                int(case["margin_shortage"]), **_integers(case, *names)
            )
        }
        for case in inputs
    ]


def liability_to_cover_shortage(inputs: Cases) -> Cases:
    names = ("asset_weight", "asset_multiplier", "liability_weight", "liability_multiplier", "liability_decimals")
    return [
        {
            "liability_transfer": liquidation.liability_to_cover_shortage(
                int(case["margin_shortage"]), **_integers(case, *names, "liability_price", "if_fee")
            )
        }
        for case in inputs
    ]


def perp_if_fee(inputs: Cases) -> Cases:
    names = ("base_asset_amount", "margin_ratio", "liquidator_fee", "oracle_price", "quote_oracle_price", "max_if_fee")
    return [
        {"fee": liquidation.perp_if_fee(int(case["margin_shortage"]), **_integers(case, *names))} for case in inputs
    ]


def liquidation_fee(inputs: Cases) -> Cases:
    return [
        {
            "fee": liquidation.liquidation_fee(
                int(case["base_fee"]), int(case["max_fee"]), **_integers(case, "last_active_slot", "current_slot")
            )
        }
        for case in inputs
    ]


def max_pct_to_liquidate(inputs: Cases) -> Cases:
    return [
        {
            "pct": liquidation.max_pct_to_liquidate(
                int(case["margin_shortage"]),
                slot=int(case["slot"]),
                last_active_slot=int(case["last_active_slot"]),
                initial_pct=int(case["initial_pct_to_liquidate"]),
                duration=int(case["liquidation_duration"]),
                margin_freed=int(case["margin_freed"]),
            )
        }
        for case in inputs
    ]


def asset_for_liability(inputs: Cases) -> Cases:
    names = ("asset_multiplier", "asset_decimals", "asset_price", "liability_amount", "liability_multiplier")
    return [
        {
            "asset_transfer": liquidation.asset_for_liability(
                int(case["asset_amount"]), **_integers(case, *names, "liability_decimals", "liability_price")
            )
        }
        for case in inputs
    ]


CHECKS = {
    "account_margin": account_margin,
    "weights": weights,
    "scaled_initial_asset_weight": scaled_initial_asset_weight,
    "perp_position": perp_position,
    "unrealized_pnl_weight": unrealized_pnl_weight,
    "base_to_cover_shortage": base_to_cover_shortage,
    "liability_to_cover_shortage": liability_to_cover_shortage,
    "perp_if_fee": perp_if_fee,
    "liquidation_fee": liquidation_fee,
    "max_pct_to_liquidate": max_pct_to_liquidate,
    "asset_for_liability": asset_for_liability,
}

"""Checks of `venues/dydx_v4.json`, through `adapters.dydx_v4.mechanics`; results are exact."""

from fractions import Fraction
from typing import Any

from adapters.dydx_v4 import mechanics
from adapters.dydx_v4.mechanics import LiquidityTier, PerpPosition

Case = dict[str, Any]
Cases = list[Case]


def _tier(case: Case) -> LiquidityTier:
    tier = case["liquidity_tier"]
    return LiquidityTier(
        int(tier["initial_margin_ppm"]),
        int(tier.get("maintenance_fraction_ppm", 0)),
        int(tier.get("open_interest_lower_cap", 0)),
        int(tier.get("open_interest_upper_cap", 0)),
    )


def _position(case: Case) -> PerpPosition:
    return PerpPosition(
        int(case["quantums"]),
        int(case["atomic_resolution"]),
        int(case["price"]),
        int(case["exponent"]),
        _tier(case),
        int(case.get("open_interest", 0)),
        int(case.get("custom_imf_ppm", 0)),
    )


def _account(case: Case) -> tuple[int, list[PerpPosition], int]:
    return int(case["usdc_quantums"]), [_position(held) for held in case["positions"]], int(case["perp_index"])


def adjusted_imf(inputs: Cases) -> Cases:
    return [
        {"imf_ppm": mechanics.adjusted_imf_ppm(_tier(case), int(case["open_interest_quote_quantums"]))}
        for case in inputs
    ]


def initial_margin(inputs: Cases) -> Cases:
    return [
        {
            "initial_margin": mechanics.initial_margin(
                int(case["notional_quote_quantums"]),
                _tier(case),
                open_interest_notional=int(case["open_interest_quote_quantums"]),
                custom_imf_ppm=int(case.get("custom_imf_ppm", 0)),
            )
        }
        for case in inputs
    ]


def position_margin(inputs: Cases) -> Cases:
    risks = [mechanics.position_risk(_position(case)) for case in inputs]
    return [{"initial_margin": risk.imr, "maintenance_margin": risk.mmr} for risk in risks]


def net_notional(inputs: Cases) -> Cases:
    return [
        {
            "net_notional": mechanics.net_notional(
                int(case["quantums"]),
                atomic_resolution=int(case["atomic_resolution"]),
                price=int(case["price"]),
                exponent=int(case["exponent"]),
            )
        }
        for case in inputs
    ]


def funding_settlement_ppm(inputs: Cases) -> Cases:
    return [
        {
            "settlement_ppm": mechanics.settlement_ppm(
                int(case["quantums"]),
                current_index=int(case["current_funding_index"]),
                entry_index=int(case["entry_funding_index"]),
            )
        }
        for case in inputs
    ]


def fillable_price(inputs: Cases) -> Cases:
    return [
        {
            "fillable_price": mechanics.fillable_price(
                *_account(case),
                bankruptcy_adjustment_ppm=int(case["bankruptcy_adjustment_ppm"]),
                spread_to_mmr_ppm=int(case["spread_to_mmr_ppm"]),
            )
        }
        for case in inputs
    ]


def bankruptcy_price(inputs: Cases) -> Cases:
    return [
        {"quote_quantums": mechanics.bankruptcy_price(*_account(case), int(case["delta_quantums"]))} for case in inputs
    ]


def insurance_fund_delta(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        amount = int(case["fill_amount"])
        quote = mechanics.fill_quote_quantums(int(case["subticks"]), amount, int(case["quantum_conversion_exponent"]))
        delta = mechanics.insurance_fund_delta(
            *_account(case),
            is_buy=case["is_buy"],
            fill_amount=amount,
            quote_quantums=quote,
            max_liquidation_fee_ppm=int(case["max_liquidation_fee_ppm"]),
        )
        results.append({"quote_quantums": delta})
    return results


def position_liquidation_limits(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        notional = mechanics.net_notional(
            int(case["quantums"]),
            atomic_resolution=int(case["atomic_resolution"]),
            price=int(case["price"]),
            exponent=int(case["exponent"]),
        )
        limits = mechanics.position_limits(
            notional,
            min_notional=int(case["min_position_notional_liquidated"]),
            max_portion_ppm=int(case["max_position_portion_liquidated_ppm"]),
        )
        results.append({"min_notional": limits.minimum, "max_notional": limits.maximum})
    return results


def indexer_equity(inputs: Cases) -> Cases:
    results = []
    for case in inputs:
        initial = Fraction(str(case["initial_margin_ppm"])) / mechanics.PPM
        maintenance = initial * Fraction(str(case["maintenance_fraction_ppm"])) / mechanics.PPM
        usdc = Fraction(str(case["usdc"]))
        risk = mechanics.indexer_risk(
            Fraction(str(case["size"])), Fraction(str(case["oracle_price"])), initial, maintenance
        )
        results.append(
            {
                "equity": mechanics.indexer_equity(usdc, [risk]),
                "free_collateral": mechanics.indexer_free_collateral(usdc, [risk]),
                "signed_notional": risk.signed_notional,
                "initial_risk": risk.initial,
                "maintenance_risk": risk.maintenance,
            }
        )
    return results


CHECKS = {
    "adjusted_imf": adjusted_imf,
    "initial_margin": initial_margin,
    "position_margin": position_margin,
    "net_notional": net_notional,
    "funding_settlement_ppm": funding_settlement_ppm,
    "fillable_price": fillable_price,
    "bankruptcy_price": bankruptcy_price,
    "insurance_fund_delta": insurance_fund_delta,
    "position_liquidation_limits": position_liquidation_limits,
    "indexer_equity": indexer_equity,
}

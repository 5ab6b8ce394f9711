"""GMX v2: every shape of requests, positions and market values gives the same tables."""

import copy
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from adapters.adapter import Normalized
from adapters.transport import Payload
from aggregator.rule_forms import Fixed, parse_parameters
from aggregator.schema.canonical import CANONICAL
from tests.desk_gmx_v2 import ETH_LONG, SOL_LONG, desk, normalized, usd
from tests.normalized_rows import only, rows_of


@pytest.fixture(scope="module")
def whole() -> Normalized:
    return normalized(desk())


def _as_lists(props: Any) -> Any:
    return [list(props["addresses"].values()), list(props["numbers"].values()), list(props["flags"].values())]


def _flat(props: Any) -> Any:
    return {**props["addresses"], **props["numbers"], **props["flags"]}


@pytest.mark.parametrize(
    "shape",
    [
        lambda body: [_as_lists(props) for props in body],
        lambda body: [_flat(props) for props in body],
        lambda body: {"positions": body},
        lambda body: {"result": body},
        lambda body: {"data": {"positions": body}},
        lambda body: [{"position": props} for props in body],
        lambda body: [{**props, "numbers": {k: int(v) for k, v in props["numbers"].items()}} for props in body],
        lambda body: [
            {**props, "addresses": {k: v.upper().replace("0X", "0x") for k, v in props["addresses"].items()}}
            for props in body
        ],
    ],
)
def test_every_shape_of_positions_gives_the_same_tables(whole: Normalized, shape: Callable[[Any], Any]) -> None:
    payloads = [replace(p, body=shape(p.body)) if p.request == "getAccountPositions" else p for p in desk()]
    result = normalized(payloads)
    assert result.failures == []
    assert result.batches == whole.batches


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("getMarkets", "Reader.getMarkets"),
        ("getMarkets", "v2/getMarkets"),
        ("tickers", "prices/tickers"),
        ("tokens", "arbitrum/tokens"),
        ("getAccountPositionInfoList", "getAccountPositionInfoList:osprey"),
    ],
)
def test_requests_may_be_written_in_several_ways(whole: Normalized, before: str, after: str) -> None:
    result = normalized([replace(p, request=after) if p.request == before else p for p in desk()])
    assert result.failures == []
    for name in set(CANONICAL) - {"failures", "marks", "market_state"}:
        assert result.batches[name] == whole.batches[name]


def test_a_single_info_and_lists_of_tuples_are_read(whole: Normalized) -> None:
    def each(payload: Payload) -> list[Payload]:
        if payload.request == "getMarkets":
            return [replace(payload, body={"markets": [list(market.values()) for market in payload.body]})]
        if payload.request == "getAccountPositionInfoList":
            return [replace(payload, request=f"getPositionInfo:{i}", body=info) for i, info in enumerate(payload.body)]
        return [payload]

    result = normalized([one for payload in desk() for one in each(payload)])
    assert result.failures == []
    assert rows_of(result, "accounts") == rows_of(whole, "accounts")
    assert rows_of(result, "rule_sets") == rows_of(whole, "rule_sets")


def test_empty_positions_are_passed_over(whole: Normalized) -> None:
    def with_empty(body: Any) -> None:
        empty = copy.deepcopy(body[0])
        empty["numbers"] = dict.fromkeys(empty["numbers"], "0")
        empty["flags"]["isLong"] = False
        body.append(empty)

    assert normalized(desk(with_empty, "getAccountPositions", "kestrel")).batches == whole.batches
    assert normalized(desk(lambda body: body.clear(), "getAccountPositions", "kestrel")).failures[0].account_id is None


def test_accrued_values_of_a_market_info_go_before_those_of_the_store(whole: Normalized) -> None:
    def with_funding(body: Any) -> None:
        sides = {
            side: {"longToken": "987654321098765432", "shortToken": "987654321098765432"} for side in ("long", "short")
        }
        delta = {
            side: {"longToken": "100000000000000000", "shortToken": "200000000000000000"} for side in ("long", "short")
        }
        body[0] |= {
            "baseFunding": {"fundingFeeAmountPerSize": sides, "claimableFundingAmountPerSize": sides},
            "nextFunding": {"fundingFeeAmountPerSizeDelta": delta},
        }

    result = normalized(desk(with_funding, "getMarketInfoList"))
    assert result.failures == []
    rule_set = only(result, "accounts", account_id=SOL_LONG)["rule_set"]
    before, after = (
        parse_parameters("fixed", only(of, "rule_sets", rule_set=rule_set, form="fixed")["parameters"])
        for of in (whole, result)
    )
    assert isinstance(before, Fixed)
    assert isinstance(after, Fixed)
    # 2e17 / 1e45 raw units per raw dollar of 240 000: 48 USDC more at 0.99995.
    assert before.equity - after.equity == pytest.approx(
        Decimal(240_000 * 200 / 1e6) * Decimal("0.99995"), abs=Decimal("2e-6")
    )


def test_prices_and_values_beside_the_positions_go_first() -> None:
    def beside(payload: Payload) -> Payload:
        if payload.request != "getAccountPositions":
            return payload
        price = {"min": "3300000000000000", "max": "3301000000000000"}
        prices = {
            "indexTokenPrice": price,
            "longTokenPrice": price,
            "shortTokenPrice": {"min": str(10**24), "max": str(10**24)},
        }
        store = {"minCollateralFactorForLiquidation": str(usd("0.02"))}
        return replace(payload, body={"position": payload.body[0], "prices": prices, "dataStore": store})

    result = normalized([beside(p) for p in desk() if p.request != "isPositionLiquidatable"])
    assert result.failures == []
    assert only(result, "marks", account_id=ETH_LONG, field="mark")["value"] == 3300
    rule_set = only(result, "accounts", account_id=ETH_LONG)["rule_set"]
    assert only(result, "margin_tiers", rule_set=rule_set)["maintenance_rate"] == Decimal("0.02")

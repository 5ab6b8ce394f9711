"""Buckets: what shares a shape, how long it is, and that padding is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from aggregator.batch import bucketed
from aggregator.portfolio import PackedPortfolio
from aggregator.unit_batch import rounded_up
from tests.engine_accounts import EVERY_KIND, VARIANTS, desk_book
from tests.engine_book import FACTORS, packed


@pytest.fixture(scope="module")
def portfolios() -> tuple[PackedPortfolio, ...]:
    return packed(desk_book(seed=2)).portfolios


def test_rounded_up() -> None:
    assert [rounded_up(n) for n in (0, 1, 4, 5, 16, 17, 65_536)] == [0, 4, 4, 16, 16, 64, 65_536]
    assert rounded_up(65_537) == 131_072
    assert [rounded_up(n, (1, 2, 4)) for n in (1, 3, 5, 9)] == [1, 4, 8, 12]


def test_every_portfolio_with_accounts_is_in_one_bucket(portfolios: tuple[PackedPortfolio, ...]) -> None:
    members = [PackedPortfolio("empty"), *portfolios[:4], PackedPortfolio("none either"), *portfolios[4:]]
    buckets = bucketed(members, FACTORS)
    assert len(buckets) == 2
    found = sorted(position for bucket in buckets for position in bucket.members)
    assert found == [n for n, p in enumerate(members) if p.accounts]
    assert bucketed([PackedPortfolio("empty")], FACTORS) == []
    assert bucketed([], FACTORS) == []


@pytest.mark.parametrize(
    ("count", "devices", "length"), [(1, 1, 8), (8, 1, 8), (9, 1, 64), (1, 2, 16), (5, 2, 16), (7, 3, 24)]
)
def test_lengths_are_few_and_the_same_for_each_device(
    portfolios: tuple[PackedPortfolio, ...], count: int, devices: int, length: int
) -> None:
    plain = [p for p in portfolios if not p.units][:count]
    (bucket,) = bucketed(plain, FACTORS, multiple=devices)
    assert bucket.members == tuple(range(count))
    assert bucket.arrays.trigger.shape[0] == length
    assert not np.asarray(bucket.arrays.account_is_real[count:]).any()


def test_too_many_shapes_are_merged_into_one(portfolios: tuple[PackedPortfolio, ...]) -> None:
    natural = bucketed(portfolios, FACTORS)
    (merged,) = bucketed(portfolios, FACTORS, most_buckets=1)
    assert merged.members == tuple(range(len(portfolios)))
    for bucket in natural:
        for name in ("leg_row", "tier_floor", "requirement_row", "group_account"):
            assert np.all(getattr(merged.arrays, name).shape[1:] >= np.array(getattr(bucket.arrays, name).shape[1:]))
    # Only portfolios with options have units in a shape of their own; in the merged one padded units charge nothing.
    assert [bucket.arrays.units is None for bucket in natural] == [True, False]
    assert merged.arrays.units is not None


def test_padding_adds_nothing(portfolios: tuple[PackedPortfolio, ...]) -> None:
    (bucket,) = bucketed(portfolios, FACTORS, most_buckets=1)
    arrays = bucket.arrays
    for place, portfolio in enumerate(portfolios):
        for names, count in (
            (("leg_coefficient", "leg_row", "leg_line"), len(portfolio.legs)),
            (("native_coefficient", "native_row", "native_group"), len(portfolio.native_legs)),
            (("requirement_initial", "requirement_maintenance", "requirement_row"), len(portfolio.requirements)),
            (("tier_notional", "tier_conversion", "tier_step"), len(portfolio.tiers)),
            (("fixed_initial", "fixed_maintenance", "account_is_real"), len(portfolio.accounts)),
        ):
            for name in names:
                leaf = np.asarray(getattr(arrays, name)[place])
                assert not leaf[count:].any(), name
                assert not np.isnan(leaf.astype(float)).any(), name
        assert arrays.units is not None
        spare = np.asarray(arrays.units.market.option_quantity[place])[len(portfolio.units) :]
        assert not spare.any()
        # What is divided by must not be 0 where nothing is.
        assert np.asarray(arrays.units.market.stable_price[place]).min() > 0
        assert np.asarray(arrays.units.market.expiry_forward[place]).min() > 0


def test_rows_arrive_as_they_were_packed(portfolios: tuple[PackedPortfolio, ...]) -> None:
    for bucket in bucketed(portfolios, FACTORS):
        for place, member in enumerate(bucket.members):
            portfolio = portfolios[member]
            count = len(portfolio.legs)
            got = zip(
                *(
                    np.asarray(getattr(bucket.arrays, f"leg_{n}")[place])[:count]
                    for n in ("line", "row", "coefficient")
                ),
                strict=True,
            )
            assert list(got) == portfolio.legs
            if bucket.arrays.units is not None:
                spots = np.asarray(bucket.arrays.units.market.spot[place])[: len(portfolio.units)]
                assert list(spots) == [unit.spot for unit in portfolio.units]


def test_the_desk_is_what_these_tests_think(portfolios: tuple[PackedPortfolio, ...]) -> None:
    assert [p.portfolio_id for p in portfolios] == sorted((*EVERY_KIND, *VARIANTS))

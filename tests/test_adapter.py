"""Finding adapters by name through entry points."""

import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

import adapters.adapter
from adapters.adapter import GROUP, Adapter, Context, Normalized, adapter_names, find_adapter
from adapters.asset_book import read_asset_book
from adapters.rows import Rows
from adapters.transport import Payload
from aggregator.errors import ConfigurationError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class FlatVenue:
    """The smallest adapter that is one."""

    venue = "flat"
    requests = ("account",)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        rows = Rows(self.venue)
        return Normalized(rows.batches(), rows.failures)


FLAT = FlatVenue()
NO_ADAPTER = object()
NO_REQUESTS = type("NoRequests", (), {"venue": "flat", "normalize": FlatVenue.normalize})()


def registered(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    """Let the installed distributions claim these (name, value) pairs."""
    points = EntryPoints(EntryPoint(name, value, GROUP) for name, value in entries)

    def entry_points(*, group: str) -> EntryPoints:
        return points.select(group=group)

    monkeypatch.setattr(adapters.adapter, "entry_points", entry_points)
    monkeypatch.setitem(sys.modules, "flat_venue", sys.modules[__name__])


def test_the_project_registers_its_venues() -> None:
    assert {"aave_v3", "binance", "derive", "hyperliquid"} <= set(adapter_names())
    assert adapter_names() == sorted(adapter_names())


@pytest.mark.parametrize("venue", ["aave_v3", "binance", "derive", "hyperliquid"])
def test_each_registered_venue_is_found_and_says_its_own_name(venue: str) -> None:
    adapter = find_adapter(venue)
    assert isinstance(adapter, Adapter)
    assert adapter.venue == venue
    assert adapter.requests
    assert len(set(adapter.requests)) == len(adapter.requests)


def test_an_unknown_venue_names_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_adapter("binanse")
    message = str(caught.value)
    assert "unknown venue 'binanse' (did you mean 'binance'?)" in message
    for name in adapter_names():
        assert name in message


def test_a_venue_of_another_distribution_joins_by_being_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, ("flat", "flat_venue:FLAT"))
    assert find_adapter("flat").requests == ("account",)
    assert adapter_names() == ["flat"]


def test_one_registration_seen_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, ("flat", "flat_venue:FLAT"), ("flat", "flat_venue:FLAT"))
    assert find_adapter("flat").venue == "flat"
    assert adapter_names() == ["flat"]


def test_two_claims_of_one_name_are_refused_and_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registered(monkeypatch, ("flat", "theirs:ADAPTER"), ("flat", "flat_venue:FLAT"))
    with pytest.raises(ConfigurationError, match=r"'flat' is claimed by flat_venue:FLAT, theirs:ADAPTER"):
        find_adapter("flat")


@pytest.mark.parametrize("value", ["flat_venue:NO_ADAPTER", "flat_venue:NO_REQUESTS"])
def test_an_object_that_is_no_adapter_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    registered(monkeypatch, ("flat", value))
    with pytest.raises(ConfigurationError, match=f"{value} is no adapter: it lacks venue, requests or normalize"):
        find_adapter("flat")


@pytest.mark.parametrize("value", ["no_such_module_here:ADAPTER", "flat_venue:ABSENT"])
def test_an_adapter_that_cannot_be_imported_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    registered(monkeypatch, ("flat", value))
    with pytest.raises(ConfigurationError, match=f"venue 'flat': cannot import {value}") as caught:
        find_adapter("flat")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("venue", ["aave_v3", "binance", "derive", "hyperliquid"])
def test_every_adapter_answers_to_no_payloads_with_all_tables(venue: str) -> None:
    context = Context(
        read_asset_book(CONFIGS / "assets.toml"), tomllib.loads((CONFIGS / f"venues/{venue}.toml").read_text())
    )
    normalized = find_adapter(venue).normalize([], context)
    assert set(normalized.batches) == set(Rows(venue).batches())
    assert normalized.batches["accounts"].num_rows == 0

"""The asset book: what moves each token, and every mistake in the file by name."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from adapters.asset_book import Asset, AssetBook, Earnings, read_asset_book
from adapters.catalog import Catalog
from aggregator.errors import ConfigurationError

SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "assets.toml"

BOOK = """
factors = ["BTC", "ETH", "SHIB", "BABYDOGE", "1INCH"]
[stables]
USDC = "circle"
[wrapped]
WETH = { of = "ETH" }
stETH = { of = "ETH", issuer = "lido", peg = true }
"""


def book_of(folder: Path, text: str) -> AssetBook:
    path = folder / "assets.toml"
    path.write_text(text, encoding="utf-8")
    return read_asset_book(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        book_of(folder, text)
    return str(caught.value)


def test_each_section_says_what_moves_its_assets(tmp_path: Path) -> None:
    book = book_of(tmp_path, BOOK)
    assert book.resolve("BTC") == Asset("BTC", "BTC", Decimal(1), None, None)
    assert book.resolve("USDC") == Asset("USDC", None, Decimal(1), "USDC", "circle")
    assert book.resolve("WETH") == Asset("WETH", "ETH", Decimal(1), None, None)
    assert book.resolve("stETH") == Asset("stETH", "ETH", Decimal(1), "stETH", "lido")


@pytest.mark.parametrize(
    ("symbol", "multiplier", "factor"),
    [
        ("1000SHIB", 1000, "SHIB"),
        ("10000SHIB", 10_000, "SHIB"),
        ("1000000SHIB", 1_000_000, "SHIB"),
        ("1MBABYDOGE", 1_000_000, "BABYDOGE"),
        ("kSHIB", 1000, "SHIB"),
        ("1INCH", 1, "1INCH"),
    ],
)
def test_contract_prefixes_become_multipliers(tmp_path: Path, symbol: str, multiplier: int, factor: str) -> None:
    asset = book_of(tmp_path, BOOK).resolve(symbol)
    assert asset is not None
    assert (asset.symbol, asset.multiplier, asset.risk_factor) == (symbol, Decimal(multiplier), factor)


@pytest.mark.parametrize(
    "symbol",
    [
        "1000USDC",
        "kUSDC",
        "1MUSDC",
        "",
        "btc",
        "DOGE",
        "1000DOGE",
        "k",
        "1000",
        "100SHIB",
        "1000kSHIB",
        "KSHIB",
        "BTC ",
        "1000SHIB\n",
    ],
)
def test_an_unlisted_symbol_is_unknown_and_never_guessed(tmp_path: Path, symbol: str) -> None:
    assert book_of(tmp_path, BOOK).resolve(symbol) is None


def test_an_empty_file_is_an_empty_book(tmp_path: Path) -> None:
    assert not book_of(tmp_path, "").assets


@pytest.mark.parametrize(
    ("text", "useful"),
    [
        ("factrs = []", "unknown key 'factrs' (did you mean 'factors'?)"),
        ('factors = ["BTC", "BTC"]', "'BTC' is listed twice"),
        ('factors = ["BTC"]\n[stables]\nBTC = "x"', "'BTC' is listed twice"),
        ('factors = ["BTC"]\n[wrapped]\nBTC = { of = "BTC" }', "'BTC' is listed twice"),
        ('[wrapped]\nWETH = { of = "ETH" }', "'WETH' needs `of` a listed factor"),
        ('[stables]\nDAI = "maker"\n[wrapped]\nsDAI = { of = "DAI" }', "'sDAI' needs `of` a listed factor"),
        ('factors = ["ETH"]\n[wrapped]\nWETH = {}', "'WETH' needs `of` a listed factor"),
        ('factors = ["ETH"]\n[wrapped]\nWETH = { of = "ETH", isuer = "x" }', "'isuer' (did you mean 'issuer'?)"),
        ('factors = ["ETH"]\n[wrapped]\nWETH = "ETH"', "'WETH' is no {of, issuer, peg}"),
        ('factors = ["ETH"]\n[wrapped]\nWETH = { of = ["ETH"] }', "'WETH' is no {of, issuer, peg}"),
        ('factors = "BTC"', "expected `factors` as a list"),
        ("factors = [1]", "expected `factors` as a list"),
        ('stables = ["USDC"]', "`[stables]` as symbol = issuer"),
        ("[stables]\nUSDC = 1", "`[stables]` as symbol = issuer"),
        ('wrapped = ["WETH"]', "`[wrapped]` as symbol"),
        ('yield_bearing = ["sDAI"]', "`[yield_bearing]` as symbol"),
        (
            '[yield_bearing]\nsDAI = { index = "1.1", as_of = "2026-01-01", source = "x", of = "DAI" }',
            "needs `of` a listed stable",
        ),
        ('[yield_bearing]\nUSDY = { index = "0.9", as_of = "2026-01-01", source = "x" }', "'0.9' is no number above 1"),
        ('[yield_bearing]\nUSDY = { index = "1", as_of = "2026-01-01", source = "x" }', "'1' is no number above 1"),
        (
            '[yield_bearing]\nUSDY = { index = "11.5", as_of = "2026-01-01", source = "x" }',
            "'11.5' is no number above 1",
        ),
        (
            '[yield_bearing]\nUSDY = { index = "Infinity", as_of = "2026-01-01", source = "x" }',
            "'Infinity' is no number",
        ),
        ('[yield_bearing]\nUSDY = { index = "NaN", as_of = "2026-01-01", source = "x" }', "'NaN' is no number"),
        ('[yield_bearing]\nUSDY = { index = "1.1", as_of = "2026", source = "x" }', "as_of '2026' is no date"),
        ('[yield_bearing]\nUSDY = { index = "1.1", as_of = "lately", source = "x" }', "as_of 'lately' is no date"),
        ('[yield_bearing]\nUSDY = { index = "1.1", as_of = "2026-02-30", source = "x" }', "'2026-02-30' is no date"),
        (
            '[yield_bearing]\nUSDY = { index = "much", as_of = "2026-01-01", source = "x" }',
            "'much' is no number above 1",
        ),
        ('[yield_bearing]\nUSDY = { index = "1.1", source = "x" }', "needs `as_of`"),
        ('[yield_bearing]\nUSDY = { index = "1.1", as_of = "2026" }', "needs `source`"),
        ('[yield_bearing]\nUSDY = { as_of = "2026", source = "x" }', "needs `index`"),
        ('[yield_bearing]\nUSDY = { indx = "1.1" }', "unknown key 'indx' (did you mean 'index'?)"),
        ("[yield_bearing]\nUSDY = { index = 1.1 }", "'USDY' is no {of, issuer, index, as_of, source}"),
        ('factors = ["ETH"]\n[spellings]\nSTETH = "stETH"', "'STETH' spells 'stETH', which is not listed"),
        ('factors = ["ETH"]\n[spellings]\nETH = "ETH"', "'ETH' is listed twice"),
        ("[spellings]\nSTETH = 1", "`[spellings]` as symbol"),
        ("factors = [", "assets.toml"),
    ],
)
def test_every_mistake_is_a_configuration_error_that_names_it(tmp_path: Path, text: str, useful: str) -> None:
    message = refused(tmp_path, text)
    assert useful in message
    assert "assets.toml" in message


def test_an_unreadable_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the asset book 'none.toml': No such file"):
        read_asset_book(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'factors = ["\xe4"]')
    with pytest.raises(ConfigurationError, match=r"latin.toml"):
        read_asset_book(tmp_path / "latin.toml")


def test_the_shipped_book_is_consistent() -> None:
    book = read_asset_book(SHIPPED)
    for symbol, asset in book.assets.items():
        assert asset.symbol == symbol
        index = asset.earnings.index if asset.earnings is not None else None
        assert asset.multiplier == (index or 1)
        assert asset.risk_factor or asset.peg_of, f"nothing moves {symbol}"
        assert asset.risk_factor is None or book.assets[asset.risk_factor].risk_factor == asset.risk_factor
        assert asset.peg_of is None or book.assets[asset.peg_of].peg_of == asset.peg_of
    for symbol in ("kPEPE", "1000SHIB", "1000PEPE", "1INCH"):
        assert book.resolve(symbol) is not None


def test_a_token_whose_name_begins_like_a_contract_prefix_is_one_token() -> None:
    book = read_asset_book(SHIPPED)
    assert book.resolve("kHYPE") == Asset("kHYPE", "HYPE", Decimal(1), "kHYPE", "kinetiq")
    assert book.resolve("kBTC") == Asset("kBTC", "BTC", Decimal(1), None, "kraken")


def test_another_spelling_is_moved_by_the_same_factors(tmp_path: Path) -> None:
    book = book_of(tmp_path, BOOK + '[spellings]\nSTETH = "stETH"\nusdc = "USDC"\n')
    assert book.resolve("STETH") == Asset("STETH", "ETH", Decimal(1), "stETH", "lido")
    assert book.resolve("usdc") == Asset("usdc", None, Decimal(1), "USDC", "circle")


def test_a_dollar_that_earns_has_an_index_and_the_peg_of_its_stable(tmp_path: Path) -> None:
    earning = """
[yield_bearing]
sUSDC = { of = "USDC", issuer = "sky", index = "1.0625", as_of = "2026-01-01", source = "a page" }
USDY = { issuer = "ondo" }
"""
    book = book_of(tmp_path, BOOK + earning)
    assert book.resolve("sUSDC") == Asset(
        "sUSDC", None, Decimal("1.0625"), "USDC", "sky", Earnings(Decimal("1.0625"), date(2026, 1, 1), "a page")
    )
    without = Earnings(None, None, "")
    assert book.resolve("USDY") == Asset("USDY", None, Decimal(1), "USDY", "ondo", without)
    assert book.resolve("1000sUSDC") is None
    catalog = Catalog("test", book)
    assert [catalog.is_stable(name) for name in ("USDC", "sUSDC", "USDY", "ETH")] == [True, False, False, False]


def test_what_centralized_venues_write_in_capitals_is_in_the_shipped_book() -> None:
    book = read_asset_book(SHIPPED)
    for spelled, listed in (("STETH", "stETH"), ("WSTETH", "wstETH"), ("USDE", "USDe"), ("SUSDE", "sUSDe")):
        asset = book.assets[listed]
        assert book.resolve(spelled) == asset._replace(symbol=spelled)
    for symbol in ("BUIDL", "USYC", "EURR", "ETHW", "sDAI", "USDY"):
        assert book.resolve(symbol) is not None, symbol

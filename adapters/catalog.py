"""What a venue's tables name: assets, resolved through the asset book, and instruments, each with one row.

An asset's id is its symbol, or `<symbol>@<chain>` on a chain. A symbol that the asset book does not list is unknown and
is never guessed; whoever needs it gets a `FieldError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from aggregator.errors import FailureReason

from .amounts import FieldError
from .asset_book import Asset, AssetBook
from .earning_dollars import tell_unpriced_earnings
from .rows import Rows
from .symbols import instrument_id

DOLLAR = Asset("USD", None, Decimal(1), None, None)
"""The dollar itself, which is no token and in no asset book; nothing moves it."""


def asset_row(asset: Asset, *, chain: str | None = None, decimals: int | None = None) -> dict[str, Any]:
    """The row of `assets` of an asset, or of its token on a chain with that many decimals."""
    return {
        "asset_id": f"{asset.symbol}@{chain}" if chain else asset.symbol,
        "symbol": asset.symbol,
        "chain": chain,
        "decimals": decimals,
        "risk_factor": asset.risk_factor,
        "multiplier": asset.multiplier,
        "peg_of": asset.peg_of,
        "issuer": asset.issuer,
    }


@dataclass
class Catalog:
    """Assets and instruments that the tables of one venue name, each once; `write` adds their rows at the end."""

    venue: str
    book: AssetBook
    aliases: Mapping[str, str] = field(default_factory=dict)
    """The venue's symbol -> that of the asset book, where they differ."""
    assets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows by asset id."""
    instruments: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows by instrument id."""
    earning: dict[str, Asset] = field(default_factory=dict)
    """Dollars that earn in their own price, by asset id."""

    def symbol(self, name: str) -> str:
        """The asset book's spelling of a symbol of the venue."""
        return self.aliases.get(name, name)

    def resolved(self, name: str) -> Asset | None:
        """What the asset book says of a symbol of the venue, contract prefixes unfolded; None for an unknown one."""
        return self.book.resolve(self.symbol(name))

    def knows(self, *names: str) -> bool:
        """Whether the asset book has all of these symbols."""
        return all(self.resolved(name) is not None for name in names)

    def is_stable(self, name: str) -> bool:
        """Whether a known asset is moved by no price factor and earns nothing in its own price: it counts at one dollar
        where nobody states its price.
        """
        asset = self.resolved(name)
        return asset is not None and asset.risk_factor is None and asset.earnings is None

    def risk_symbol(self, name: str) -> str:
        """Name of the price factor (or peg) that moves an asset taken in before; `KeyError` for any other."""
        row = self.assets[self.symbol(name)]
        return str(row["risk_factor"] or row["peg_of"] or row["symbol"])

    def asset(self, name: str) -> str | None:
        """Takes an asset in and gives its id; None when the asset book does not know it."""
        symbol = self.symbol(name)
        if symbol not in self.assets:
            asset = self.resolved(name)
            if asset is None:
                return None
            self.assets[symbol] = asset_row(asset)
            if asset.earnings is not None:
                self.earning[symbol] = asset
        return symbol

    def known_asset(
        self, name: str, *, path: str, reason: FailureReason = FailureReason.UNKNOWN_ASSET, of: str = ""
    ) -> str:
        """`asset`; raises `FieldError(reason)` for an unknown one, with the instrument `of` which it is a part."""
        identity = self.asset(name)
        if identity is None:
            part = f" of {of}" if of else ""
            raise FieldError(path, reason, f"{name[:60]!r}{part[:60]} is not in the asset book")
        return identity

    def token(self, name: str, chain: str, decimals: int | None, *, path: str) -> str:
        """Takes a token on a chain in and gives its id; raises `FieldError(unknown_asset)`.

        By its exact symbol: a token on a chain is no multiple of another, as a contract named kPEPE is.
        """
        asset = self.book.assets.get(self.symbol(name))
        if asset is None:
            raise FieldError(path, FailureReason.UNKNOWN_ASSET, f"token {name[:60]!r} is not in the asset book")
        row = asset_row(asset, chain=chain, decimals=decimals)
        identity: str = row["asset_id"]
        self.assets[identity] = row
        if asset.earnings is not None:
            self.earning[identity] = asset
        return identity

    def dollar(self) -> str:
        """Takes the dollar in and gives its id."""
        self.assets[DOLLAR.symbol] = asset_row(DOLLAR)
        return DOLLAR.symbol

    def pair(self, base: str, settlement: str, *, of: str, path: str) -> tuple[str, str]:
        """(underlying, settlement asset) of the instrument `of`; raises `FieldError`: unknown_market, unknown_asset."""
        underlying = self.known_asset(base, path=path, reason=FailureReason.UNKNOWN_MARKET, of=of)
        return underlying, self.known_asset(settlement, path=path, of=of)

    def instrument(
        self,
        symbol: str,
        *,
        kind: str,
        underlying: str,
        settlement_asset: str,
        inverse: bool = False,
        contract_size: Decimal = Decimal(1),
        strike: Decimal | None = None,
        expiry: datetime | None = None,
        option_type: str | None = None,
    ) -> str:
        """Takes an instrument in by the venue's symbol and gives its id; one that is there stays as it is.

        `underlying` and `settlement_asset` are asset ids that were taken in.
        """
        identity = instrument_id(self.venue, symbol)
        if identity not in self.instruments:
            self.instruments[identity] = {
                "instrument_id": identity,
                "venue": self.venue,
                "symbol": symbol,
                "kind": kind,
                "underlying": underlying,
                "settlement_asset": settlement_asset,
                "payoff": "inverse" if inverse else "linear",
                "contract_size": contract_size,
                "strike": strike,
                "expiry": expiry,
                "option_type": option_type,
            }
        return identity

    def write(self, rows: Rows) -> None:
        """Adds the rows of `assets` and `instruments`, by id; balances and marks must be there.

        A finding tells of each balance of a dollar that earns in its own price which is valued by the asset book's
        index, for want of a price; where the book has no index either, its account fails.
        """
        if self.earning:
            tell_unpriced_earnings(rows, self.earning)
        rows.rows["assets"].extend(self.assets[identity] for identity in sorted(self.assets))
        rows.rows["instruments"].extend(self.instruments[identity] for identity in sorted(self.instruments))

"""What a calibration is asked for, read from TOML: tables, as-of time, assets, windows, and what is assumed.

Paths are relative to the file; `$NAME` in a path stands for an environment variable. The clock is never read.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator

from .errors import ConfigurationError, nearest_name
from .section import Section


class Window(Section):
    """Sample of a stressed law: its dates, both included; the law is called stressed_`name`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    first: date
    last: date

    @model_validator(mode="after")
    def _ordered(self) -> Window:
        if self.last <= self.first:
            raise ValueError("last must be after first")
        return self


class TokenDiscount(Section):
    """A staked token's discount factor: `token` over `underlying` in the table, standing for the factor's own."""

    token: str = "BETH"
    underlying: str = "ETH"


class AssumedDepeg(Section):
    """What a handful of events cannot tell: depth Beta(a, b) * cap, recovery per day, share that never recovers."""

    depth_a: float = Field(default=1.0, gt=0)
    depth_b: float = Field(default=4.0, gt=0)
    depth_cap: float = Field(default=0.4, gt=0, le=1)
    recovery_per_day: float = Field(default=0.5, ge=0)
    absorbing_probability: float = Field(default=0.05, ge=0, le=1)


class AssumedDiscountJump(Section):
    """A stressed discount of a staked token: jumps per year, depth Beta(a, b) * cap."""

    jumps_per_year: float = Field(default=0.25, ge=0)
    depth_a: float = Field(default=2.0, gt=0)
    depth_b: float = Field(default=4.0, gt=0)
    depth_cap: float = Field(default=0.15, gt=0, le=1)


class CalibrationRequest(Section):
    """A whole request. An empty `assets` takes every asset of the markets that has a history of its own."""

    as_of: datetime
    history: str
    context: str | None = None
    assets: tuple[str, ...] = ()
    anchors: tuple[str, ...] = Field(default=("BTC", "ETH"), min_length=1)
    markets: tuple[str, ...] = Field(default=("perp", "spot"), min_length=1)
    vols: tuple[str, ...] = ("BTC", "ETH", "SOL")
    """Underlyings with an implied volatility factor; without own history the rule of the first one that has one."""
    majors: tuple[str, ...] = ("BTC", "ETH")
    """Assets with the lower floor of the basis."""
    minimum_days: int = Field(default=250, ge=200)
    decay: float = Field(default=0.97, gt=0.5, lt=1)
    floor_fraction: float = Field(default=0.5, ge=0, le=1)
    correlation_days: int = Field(default=730, ge=200)
    copula_assets: int = Field(default=8, ge=2, le=50)
    """How many assets, by volume, the tail index of the copula is fitted on."""
    windows: tuple[Window, ...] = (
        Window(name="2020", first=date(2020, 1, 1), last=date(2020, 12, 31)),
        Window(name="2021", first=date(2021, 1, 1), last=date(2021, 12, 31)),
        Window(name="2022", first=date(2022, 1, 1), last=date(2022, 12, 31)),
    )
    pegs: dict[str, str] = Field(default={"USDC": "USDC", "USDT": "USDT", "DAI": "USDC"})
    """Stablecoin to the asset whose history stands for it; USDT is BTC in dollars over BTC in USDT."""
    peg_days: int = Field(default=1095, ge=60)
    """Last days of a coin's history that its ordinary law is fitted on; depegs are counted over all of it."""
    depeg_sample: tuple[str, ...] = ("USDC", "USDP", "BUSD")
    depeg: AssumedDepeg = AssumedDepeg()
    discounts: dict[str, TokenDiscount] = Field(default={"wstETH": TokenDiscount()})
    discount_nu: float = Field(default=3.0, gt=2)
    discount_jump: AssumedDiscountJump = AssumedDiscountJump()
    funding_cap: float = Field(default=0.003, gt=0)
    """Largest size of a funding rate per interval: 0.75 times the 0.4 % maintenance rate of the first bracket."""
    skew_tilt: float = 0.0
    basis_floor_major: float = Field(default=0.002, gt=0)
    basis_floor: float = Field(default=0.01, gt=0)

    @field_validator("as_of")
    @classmethod
    def _zoned(cls, value: datetime) -> datetime:
        if value.tzinfo is None:
            raise ValueError("as_of needs a time zone, for example 2024-06-30T00:00:00Z")
        return value.astimezone(UTC)

    @model_validator(mode="after")
    def _distinct(self) -> CalibrationRequest:
        names = [window.name for window in self.windows]
        if len(set(names)) != len(names):
            raise ValueError("two windows have one name")
        return self


def read_request(path: Path) -> CalibrationRequest:
    """The request in a TOML file; ConfigurationError with one sentence per mistake and the nearest right name."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the calibration request {path.name!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path.name} is not valid TOML: {error}") from None
    try:
        return CalibrationRequest.model_validate(document)
    except ValidationError as error:
        sentences = []
        for entry in error.errors(include_url=False, include_context=False, include_input=False):
            place = ".".join(str(part) for part in entry["loc"])
            if entry["type"] == "extra_forbidden":
                sentences.append(f"unknown key {place}{nearest_name(str(entry['loc'][-1]), _KNOWN)}")
            elif entry["type"] == "missing":
                sentences.append(f"missing key {place}")
            else:
                sentences.append(
                    ": ".join(part for part in (place, entry["msg"].removeprefix("Value error, ")) if part)
                )
        raise ConfigurationError(f"{path.name}: " + "; ".join(sentences)) from None


_KNOWN = sorted(
    {
        name
        for model in (CalibrationRequest, Window, TokenDiscount, AssumedDepeg, AssumedDiscountJump)
        for name in model.model_fields
    }
)


def request_path(text: str, folder: Path, environment: Mapping[str, str] | None = None) -> Path:
    """An absolute path from one of a request; ConfigurationError for a `$NAME` that is not set."""
    variables = os.environ if environment is None else environment

    def value(match: re.Match[str]) -> str:
        if match.group(1) not in variables:
            raise ConfigurationError(f"path {text!r}: the environment variable {match.group(1)} is not set")
        return variables[match.group(1)]

    return (folder / re.sub(r"\$([A-Za-z_][A-Za-z0-9_]*)", value, text)).resolve()

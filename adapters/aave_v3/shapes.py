"""Answers of view functions as decoders write them: named objects, or tuples in the order of the ABI.

A body may be bare or inside `{result: ...}` or `{data: ...}`; a function's outputs and a struct may be an object with
their names, an object with "0", "1", ... or a list. Here all become objects with the names of the interfaces; paths in
failures name the fields as the interfaces do, whatever the shape. A struct in list form is known by its length, which
differs between the releases that changed it.

Order of fields: `IUiPoolDataProviderV3` of aave/aave-v3-periphery (v3.0) and aave-dao/aave-v3-origin (v3.1 to v3.7),
`DataTypes.EModeCategory` (v3.2, v3.6) and docs/3.7/isolated-emode.md (v3.7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aggregator.errors import FailureReason

from ..amounts import FieldError, joined

_WRAPPERS = ("result", "data")
_MOST_WRAPPERS = 3

RESERVES_OUTPUTS = ("reserves", "baseCurrencyInfo")
USER_OUTPUTS = ("userReserves", "userEmodeCategoryId")
EMODES_OUTPUTS = ("eModes",)
ACCOUNT_OUTPUTS = (
    "totalCollateralBase",
    "totalDebtBase",
    "availableBorrowsBase",
    "currentLiquidationThreshold",
    "ltv",
    "healthFactor",
)
BASE_CURRENCY = (
    "marketReferenceCurrencyUnit",
    "marketReferenceCurrencyPriceInUsd",
    "networkBaseTokenPriceInUsd",
    "networkBaseTokenPriceDecimals",
)

_HEAD = (
    "underlyingAsset",
    "name",
    "symbol",
    "decimals",
    "baseLTVasCollateral",
    "reserveLiquidationThreshold",
    "reserveLiquidationBonus",
    "reserveFactor",
    "usageAsCollateralEnabled",
    "borrowingEnabled",
)
_INDICES = ("liquidityIndex", "variableBorrowIndex", "liquidityRate", "variableBorrowRate")
_PRICE = ("totalScaledVariableDebt", "priceInMarketReferenceCurrency", "priceOracle")
_SLOPES = ("variableRateSlope1", "variableRateSlope2")
_CEILING = ("debtCeiling", "debtCeilingDecimals")
_CAPS = ("borrowCap", "supplyCap")

_RESERVE_V30 = (
    *_HEAD,
    "stableBorrowRateEnabled",
    "isActive",
    "isFrozen",
    *_INDICES,
    "stableBorrowRate",
    "lastUpdateTimestamp",
    "aTokenAddress",
    "stableDebtTokenAddress",
    "variableDebtTokenAddress",
    "interestRateStrategyAddress",
    "availableLiquidity",
    "totalPrincipalStableDebt",
    "averageStableRate",
    "stableDebtLastUpdateTimestamp",
    *_PRICE,
    *_SLOPES,
    "stableRateSlope1",
    "stableRateSlope2",
    "baseStableBorrowRate",
    "baseVariableBorrowRate",
    "optimalUsageRatio",
    "isPaused",
    "isSiloedBorrowing",
    "accruedToTreasury",
    "unbacked",
    "isolationModeTotalDebt",
    "flashLoanEnabled",
    *_CEILING,
    "eModeCategoryId",
    *_CAPS,
    "eModeLtv",
    "eModeLiquidationThreshold",
    "eModeLiquidationBonus",
    "eModePriceSource",
    "eModeLabel",
    "borrowableInIsolation",
)
_RESERVE_V31 = (*_RESERVE_V30, "virtualAccActive", "virtualUnderlyingBalance")
_RESERVE_V34 = (
    *_HEAD,
    "isActive",
    "isFrozen",
    *_INDICES,
    "lastUpdateTimestamp",
    "aTokenAddress",
    "variableDebtTokenAddress",
    "interestRateStrategyAddress",
    "availableLiquidity",
    *_PRICE,
    *_SLOPES,
    "baseVariableBorrowRate",
    "optimalUsageRatio",
    "isPaused",
    "isSiloedBorrowing",
    "accruedToTreasury",
    "isolationModeTotalDebt",
    "flashLoanEnabled",
    *_CEILING,
    *_CAPS,
    "borrowableInIsolation",
    "virtualUnderlyingBalance",
    "deficit",
)


def _with(fields: tuple[str, ...], new: str, before: str) -> tuple[str, ...]:
    place = fields.index(before)
    return (*fields[:place], new, *fields[place:])


_RESERVE_V33 = _with(
    _with(_RESERVE_V34, "unbacked", "isolationModeTotalDebt"), "virtualAccActive", "virtualUnderlyingBalance"
)
_RESERVE_V32 = _RESERVE_V33[:-1]

RESERVE = (_RESERVE_V34, _RESERVE_V33, _RESERVE_V32, _RESERVE_V31, _RESERVE_V30)
USER_RESERVE = (
    ("underlyingAsset", "scaledATokenBalance", "usageAsCollateralEnabledOnUser", "scaledVariableDebt"),
    (
        "underlyingAsset",
        "scaledATokenBalance",
        "usageAsCollateralEnabledOnUser",
        "stableBorrowRate",
        "scaledVariableDebt",
        "principalStableDebt",
        "stableBorrowLastUpdateTimestamp",
    ),
)
EMODE_ENTRY = (("id", "eMode"),)
_EMODE_HEAD = ("ltv", "liquidationThreshold", "liquidationBonus", "collateralBitmap")
EMODE = (
    (*_EMODE_HEAD, "isolated", "label", "borrowableBitmap", "ltvzeroBitmap"),
    (*_EMODE_HEAD, "label", "borrowableBitmap", "ltvzeroBitmap"),
    (*_EMODE_HEAD, "label", "borrowableBitmap"),
)


def opened(body: Any, names: Sequence[str]) -> tuple[Any, str]:
    """(body without its wrappers, path of what is left): a wrapper is an object that has none of `names` itself."""
    path = ""
    for _ in range(_MOST_WRAPPERS):
        if not isinstance(body, Mapping) or any(name in body for name in (*names, "0")):
            break
        wrapper = next((key for key in _WRAPPERS if body.get(key) is not None), None)
        if wrapper is None:
            break
        body, path = body[wrapper], joined(path, wrapper)
    return body, path


def outputs(body: Any, names: Sequence[str]) -> tuple[Mapping[str, Any], str]:
    """(outputs of one view function by name, path of the object): raises malformed for a list of another length and for
    what is neither list nor object.
    """
    value, path = opened(body, names)
    found = _only_output(value, names[0]) if len(names) == 1 else struct(value, (tuple(names),), path)
    if not isinstance(found, Mapping):
        raise FieldError(path, FailureReason.MALFORMED, f"expected an object, found {type(found).__name__}")
    return found, path


def _only_output(value: Any, name: str) -> Any:
    """The one output of a function, which some decoders return alone and some in a tuple of one."""
    if isinstance(value, Mapping) and name not in value and "0" in value:
        value = value["0"]
    if not isinstance(value, list):
        return value
    alone = len(value) == 1 and isinstance(value[0], list) and (not value[0] or isinstance(value[0][0], list | Mapping))
    return {name: value[0] if alone else value}


def struct(value: Any, layouts: Sequence[tuple[str, ...]], path: str) -> Any:
    """One struct by name. Objects with names stay as they are; raises malformed for a tuple of an unknown length."""
    if isinstance(value, Mapping):
        if "0" not in value or any(name in value for layout in layouts for name in layout):
            return value
        value = [value[str(place)] for place in range(len(value)) if str(place) in value]
    if not isinstance(value, list):
        return value
    for layout in layouts:
        if len(layout) == len(value):
            return dict(zip(layout, value, strict=True))
    known = ", ".join(str(length) for length in sorted({len(layout) for layout in layouts}))
    raise FieldError(path, FailureReason.MALFORMED, f"a tuple of {len(value)}, expected one of {known}")


def structs(values: list[Any], layouts: Sequence[tuple[str, ...]]) -> list[Any]:
    """`struct` of every entry; an entry that is none stays as it is, to be refused where it is read."""
    found = []
    for value in values:
        try:
            found.append(struct(value, layouts, ""))
        except FieldError:
            found.append(value)
    return found

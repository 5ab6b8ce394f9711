"""A small made-up market for the learned tiers, and settings that train in a second.

Four-hour bars of five perpetuals with clustered volatility: `BTC` from the first day, `CCC` halted for twenty days,
`NEW` listed 30 days before the end, `PEG` pinned to one, `ZZZ` ordinary; funding and sentiment of every day.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.market_files import BAR_COLUMNS, CONTEXT_COLUMNS, MarketHistory
from models.tier_model_settings import TierModelSettings

FIRST = np.datetime64("2022-01-01", "us")
DAYS = 400
BARS = DAYS * 6
HALT = (250, 270)
"""Days of `CCC` without bars."""

NEW_DAYS = 30
ASSETS = ("BTC", "CCC", "NEW", "PEG", "ZZZ")

SETTINGS = TierModelSettings.model_validate(
    {
        "network": {"levels": [0.95, 0.99, 0.995], "layers": 1, "width": 4, "dropout": 0.1},
        "training": {
            "seed": 3,
            "seeds": 2,
            "steps": 20,
            "batch": 64,
            "learning_rate": 0.01,
            "weight_decay": 0.1,
            "gradient_clip": 1.0,
            "weight_average": 0.9,
            "pinball_width": 0.05,
            "shortfall_weight": 0.1,
            "smoothness_weight": 0.3,
            "smallest_volatility": 0.004,
            "largest_scaled_loss": 25.0,
        },
        "walk_forward": {"months": 6, "embargo_days": 2, "least_rows": 400},
        "classical": {"window_days": 200, "own_days": 100.0, "refresh_days": 5},
        "mixture": {"network": 0.75, "credible_rows": 500.0},
        "guard": {
            "window_days": 120,
            "least_days": 40,
            "strength": 0.5,
            "smallest_factor": 0.9,
            "largest_factor": 1.25,
        },
        "published": {
            "weight": 0.25,
            "slow_weight": 0.02,
            "reach": 0.65,
            "guard_strength": 0.6,
            "largest_ratio_30_days": 2.2,
            "largest_rise_5_days": 0.65,
            "way_out": 3.0,
            "warm_up_days": 60,
        },
    }
)


def bars(seed: int = 1) -> dict[str, dict[str, np.ndarray]]:
    """Columns ts (datetime64), open, high, low, close, volume of every asset."""
    generator = np.random.default_rng(seed)
    common = generator.standard_t(4, BARS)
    log_volatility = np.zeros(BARS)
    for bar in range(1, BARS):
        log_volatility[bar] = 0.98 * log_volatility[bar - 1] + 0.12 * generator.standard_normal()
    result = {}
    for place, asset in enumerate(ASSETS):
        size = 0.0004 if asset == "PEG" else 0.008 * (1.0 + 0.4 * place)
        own = 0.7 * common + 0.7 * generator.standard_t(4, BARS)
        close = 100.0 * np.exp(np.cumsum(np.clip(size * np.exp(log_volatility) * own, -0.25, 0.25)))
        opened = np.concatenate([[100.0], close[:-1]])
        reach = size * np.abs(generator.standard_normal((2, BARS)))
        keep = np.ones(BARS, dtype=bool)
        if asset == "CCC":
            keep[HALT[0] * 6 : HALT[1] * 6] = False
        if asset == "NEW":
            keep[: BARS - NEW_DAYS * 6] = False
        columns = {
            "ts": FIRST + np.arange(BARS) * np.timedelta64(4, "h"),
            "open": opened,
            "high": np.maximum(opened, close) * np.exp(reach[0]),
            "low": np.minimum(opened, close) * np.exp(-reach[1]),
            "close": close,
            "volume": 1e6 * np.exp(generator.standard_normal(BARS)),
        }
        result[asset] = {name: values[keep] for name, values in columns.items()}
    return result


def context(seed: int = 2) -> pa.Table:
    """Daily funding of BTC and the sentiment index."""
    generator = np.random.default_rng(seed)
    stamps = FIRST + np.arange(DAYS) * np.timedelta64(1, "D")
    return pa.table(
        {
            "asset": ["BTC"] * DAYS + ["MARKET"] * DAYS,
            "series": ["funding_daily_mean"] * DAYS + ["fear_greed"] * DAYS,
            "ts": pa.array(np.concatenate([stamps, stamps]), pa.timestamp("us", "UTC")),
            "value": np.concatenate([1e-4 * generator.standard_normal(DAYS), generator.uniform(10.0, 90.0, DAYS)]),
        },
        schema=pa.schema(list(CONTEXT_COLUMNS.items())),
    )


def history(columns: dict[str, dict[str, np.ndarray]], mood: pa.Table | None) -> MarketHistory:
    """The tables that a market folder with these 4-hour bars would be read as."""
    counts = [len(one["ts"]) for one in columns.values()]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([one[name] for one in columns.values()])

    names = pa.array(np.repeat(np.array(list(columns), dtype=object), counts), pa.string())
    total = sum(counts)
    table = pa.table(
        {
            "asset": names.dictionary_encode().cast(BAR_COLUMNS["asset"]),
            "market": pa.array(["perp"] * total).dictionary_encode().cast(BAR_COLUMNS["market"]),
            "ts": pa.array(joined("ts"), pa.timestamp("us", "UTC")),
            **{name: joined(name) for name in ("open", "high", "low", "close", "volume")},
            "quote_vol": joined("volume") * joined("close"),
            "nbars": np.ones(total, dtype=np.int64),
        },
        schema=pa.schema(list(BAR_COLUMNS.items())),
    )
    return MarketHistory(table, table.slice(0, 0), table.slice(0, 0), mood, None)


def small_history() -> MarketHistory:
    """The market as it is described above."""
    return history(bars(), context())

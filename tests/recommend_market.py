"""A market folder, settings and checkpoints for tests of recommendations: made up, and trained in seconds."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from models.train_request import run_training
from tests.sample_desk import toml
from tests.small_tier_market import BARS, FIRST, SETTINGS, bars, history

LAST = np.datetime64("2024-06-30", "us")
"""End of the last bar: the instant of the quickstart desk."""

NAMES = {"BTC": "BTC", "ZZZ": "ETH", "CCC": "SOL"}
"""Assets of the small market and the names that they get here."""


def columns() -> dict[str, dict[str, np.ndarray]]:
    """4-hour bars of BTC, ETH and SOL up to `LAST`."""
    shift = LAST - (FIRST + BARS * np.timedelta64(4, "h"))
    made = bars()
    return {new: {**made[old], "ts": made[old]["ts"] + shift} for old, new in NAMES.items()}


def market_folder(folder: Path, bars_of: dict[str, dict[str, np.ndarray]] | None = None) -> Path:
    """`folder` with a file of 4-hour bars in it."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(history(columns() if bars_of is None else bars_of, None).bars_4h, folder / "ohlcv_4h.parquet")
    return folder


def settings_file(path: Path) -> Path:
    """The settings of the small market as TOML."""
    document: dict[str, Any] = SETTINGS.model_dump(mode="json")
    path.write_text(toml(document), encoding="utf-8")
    return path


def trained(market: Path, out: Path, settings: Path) -> Path:
    """Checkpoints of both horizons against the worst point, fitted to `market`."""
    run_training(
        market, out=out, settings=settings, until=date(2024, 6, 30), targets=(("8h", "adverse"), ("1d", "adverse"))
    )
    return out

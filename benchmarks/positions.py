"""Positions per second of the adapters that read long lists of positions by columns, against row by row.

    .venv/bin/python -m benchmarks.positions            # prints; --write keeps the figures

The desks are those of `tests/test_columns.py`, the ordinary cross account of one owner repeated under other owners.
Time is processor time of `normalize` alone. Both ways alternate within a round; the medians count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from adapters import columns
from adapters.adapter import find_adapter
from tests import test_columns

RESULTS = Path(__file__).resolve().parent / "results" / "positions.json"
ROW_BY_ROW = 10**12
"""A number of records from which columns are used that no desk reaches."""


VENUES = ("binance", "dydx_v4", "hyperliquid")
"""Venues whose desk can be widened; the wallet of Bybit's states totals of its own four positions."""
MARKETS = 100
"""Positions of one account."""


def main() -> None:
    """Measure every venue that has a desk, print a table, and write it if asked to."""
    parser = argparse.ArgumentParser(prog="benchmarks.positions", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--owners", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    asked = parser.parse_args()
    _widen()
    found = [_measured(venue, asked.owners, asked.rounds) for venue in VENUES]
    for row in found:
        print(
            f"{row['venue']:<14} {row['positions']:>8} positions  "
            f"by columns {row['by_columns_per_second']:>9,}/s  row by row {row['row_by_row_per_second']:>9,}/s"
        )
    if asked.write:
        machine = {
            "cpu_count": os.cpu_count(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
        }
        document = {"machine": machine, "rounds": asked.rounds, "venues": found}
        RESULTS.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _widen() -> None:
    """Let the desks hold many markets: assets of the book at made-up prices, long and short in turn."""
    own = list(test_columns.COINS)
    known = [a.symbol for a in test_columns.BOOK.assets.values() if a.risk_factor == a.symbol and a.symbol.isalnum()]
    coins = [*own, *[symbol for symbol in known if symbol not in own and symbol.isupper() and symbol != "XRP"]][
        :MARKETS
    ]
    test_columns.COINS = tuple(coins)  # type: ignore[assignment]
    test_columns.PRICES |= {coin: Decimal(f"{10 + n}.25") for n, coin in enumerate(coins) if coin not in own}
    test_columns.SIZES |= {coin: Decimal("1.5") * (-1) ** n for n, coin in enumerate(coins) if coin not in own}


def _measured(venue: str, owners: int, rounds: int) -> dict[str, Any]:
    desk, context = test_columns.DESKS[venue]()
    market = [payload for payload in desk if not payload.account]
    one = [payload for payload in desk if payload.account == "south"]
    payloads = market + [replace(payload, account=f"owner{n}") for n in range(owners) for payload in one]
    adapter, usual = find_adapter(venue), columns.WORTHWHILE
    taken: dict[int, list[float]] = {usual: [], ROW_BY_ROW: []}
    positions = 0
    try:
        for _ in range(rounds):
            for worthwhile, times in taken.items():
                columns.WORTHWHILE = worthwhile
                start = time.process_time()
                result = adapter.normalize(payloads, context)
                times.append(time.process_time() - start)
                assert not result.failures, result.failures[0]
                positions = result.batches["positions"].num_rows
    finally:
        columns.WORTHWHILE = usual
    by_columns, row_by_row = (statistics.median(times) for times in taken.values())
    return {
        "venue": venue,
        "positions": positions,
        "accounts": owners,
        "by_columns_per_second": round(positions / by_columns),
        "row_by_row_per_second": round(positions / row_by_row),
    }


if __name__ == "__main__":
    main()

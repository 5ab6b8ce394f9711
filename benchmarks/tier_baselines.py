"""The baselines of the margin tiers on a market history, beside the figures that were published for them.

    .venv/bin/python -m benchmarks.tier_baselines --market DIR [--horizon 1d] [--loss close] [--workers 2] [--write]

Makes every baseline forecast (needs the extra `baselines`), scores them and prints the whole score; for 1 day, close to
close, also each figure of the perpetuals that differs from the published one by more than rounding. `--only` takes
names of baselines; `--forecasts FILE` scores that table where it exists, else keeps the new one there. `--write` puts
the figures of both sides together into `benchmarks/results/tier_baselines.json`, in the place of a run for the same
horizon and loss. Each baseline is made for the loss: nothing is scaled afterwards.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

from models.baselines import BASELINES, baseline_forecasts
from models.forecast_metrics import Metrics
from models.forecast_scores import FORMATS, ScoreTable, score, scores_text
from models.forecast_table import read_forecasts, write_forecasts
from models.market_history import read_market, windows

RESULTS = Path(__file__).resolve().parent / "results" / "tier_baselines.json"

PUBLISHED = """
COMBO4 .9923 .94 .83 .88 .9915 .9932 .9924 18.33 .9176 -1.752 .1427 .1327 .38 4.2 .097 3.41 6.33 1.64 .95
HAR-QR-pooled .9922 .88 .97 .93 .9911 .9931 .9927 18.46 .9233 -1.753 .1454 .1356 .39 2.0 .234 6.55 12.34 3.52 .95
GARCH-t .9921 .87 .82 .86 .9918 .9931 .9913 18.94 .9474 -1.710 .1467 .1358 .39 4.0 .088 3.62 5.50 1.79 .93
COMBO4-slow .9929 .85 .81 .85 .9921 .9936 .9932 18.97 .9474 -1.718 .1525 .1378 .37 4.4 .072 3.21 5.70 1.53 .97
GJR-FHS .9916 .94 .84 .89 .9917 .9927 .9902 19.04 .9516 -1.704 .1447 .1382 .40 3.9 .087 3.63 5.47 1.79 .92
COMBO4-ema0.2 .9906 .98 .65 .71 .9904 .9919 .9895 19.23 .9581 -1.696 .1416 .1382 .40 8.9 .027 2.34 4.14 .70 .92
HAR-QR-ema0.1 .9904 .97 .62 .66 .9903 .9921 .9886 19.36 .9610 -1.686 .1409 .1392 .40 8.7 .028 2.23 4.08 .44 .93
EWMA94-FHS .9883 .94 .86 .85 .9847 .9894 .9919 19.48 .9712 -1.671 .1420 .1494 .39 5.6 .065 3.54 6.59 1.68 .82
EWMA97-FHS .9880 .95 .77 .77 .9862 .9885 .9898 19.79 .9868 -1.644 .1390 .1475 .42 6.8 .038 2.42 4.52 .97 .82
QT-EWMA97 .9887 .97 .79 .82 .9874 .9895 .9898 19.87 .9894 -1.642 .1427 .1485 .42 6.8 .041 2.60 4.62 1.05 .85
EWMA97-N .9824 .37 .78 .35 .9791 .9843 .9849 19.94 .9903 -1.530 .1182 .1416 .44 6.5 .035 2.30 4.39 .90 .56
FHS+stress25 .9937 .78 .72 .64 .9950 .9936 .9919 20.22 1.0036 -1.627 .1641 .1420 .38 7.7 .026 1.94 2.69 .65 .97
ACI-EWMA97 .9894 1.00 .88 .89 .9881 .9896 .9911 20.65 1.0291 -1.606 .1569 .1588 .42 5.6 .058 3.67 6.94 2.04 .94
FHS+buffer25 .9916 .91 .70 .74 .9910 .9925 .9915 20.74 1.0304 -1.599 .1609 .1514 .43 8.3 .026 2.00 3.70 .80 .93
HS500 .9906 .97 .59 .66 .9931 .9917 .9859 21.10 1.0375 -1.567 .1541 .1503 .45 9.7 .012 1.30 2.11 .18 .91
FHS+floor10y .9957 .35 .83 .47 .9974 .9961 .9929 21.76 1.0846 -1.530 .1877 .1446 .38 5.4 .017 1.59 1.85 .46 .98
STATIC995 .9966 .22 .93 .30 .9989 .9976 .9923 24.80 1.2414 -1.393 .2209 .1561 .41 3.5 .004 1.08 1.24 .08 .98
"""
"""One model a line, columns in the order of `Metrics`: 47 perpetuals, 2020-01-01 .. 2024-06-30, 99 %, 1 day, close to
close, both sides, 102,462 rows. Source: the project's design page on the yardstick of margin tiers, section 4.1."""


def published() -> dict[str, Metrics]:
    """The published figures by model."""
    return {
        name: Metrics(*map(float, rest)) for name, *rest in (line.split() for line in PUBLISHED.split("\n") if line)
    }


def differences(table: ScoreTable) -> list[str]:
    """A line for each figure of the perpetuals, both sides, that is not the published one as printed."""
    both = next((g for g in table.groups if (g.group, g.side) == ("perps", "both")), None)
    lines = []
    for model, theirs in published().items() if both else ():
        ours = both.metrics.get(model) if both else None
        for name, value, expected in zip(Metrics._fields, ours or (), theirs, strict=True) if ours else ():
            printed = format(value, FORMATS[name])
            if float(printed) != expected:
                lines.append(f"{model:14s} {name:7s} published {expected:<8g} here {printed}")
    return lines


def main() -> None:
    """Runs the benchmark as the module docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--market", type=Path, required=True, help="folder of the market history")
    parser.add_argument("--horizon", choices=("1d", "8h"), default="1d")
    parser.add_argument("--loss", choices=("close", "adverse"), default="close")
    parser.add_argument("--start", default="2020-01-01")
    parser.add_argument("--end", default=None, help="first day without forecasts; default the end of the history")
    parser.add_argument("--only", nargs="*", default=list(BASELINES))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--forecasts", type=Path, help="Parquet: scored if it exists, else written")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()

    history = read_market(arguments.market)
    begun = time.perf_counter()
    if arguments.forecasts and arguments.forecasts.exists():
        forecasts = read_forecasts(arguments.forecasts)
    else:
        until = None if arguments.end is None else np.datetime64(arguments.end, "us")
        panel = windows(history, arguments.horizon, until=until)
        forecasts = baseline_forecasts(
            panel,
            start=np.datetime64(arguments.start, "us"),
            end=panel.opening[-1] + np.timedelta64(1, "D"),
            loss=arguments.loss,
            names=arguments.only,
            workers=arguments.workers,
            progress=lambda name: print(f"{time.perf_counter() - begun:6.0f} s  {name}", flush=True),
        )
        if arguments.forecasts:
            write_forecasts(forecasts, arguments.forecasts)
    made = time.perf_counter() - begun
    table = score(forecasts, history)
    print(scores_text(table))
    if (table.horizon, table.loss) == ("1d", "close"):
        print("not as published:", *differences(table), sep="\n")
    print(f"forecasts {made:.0f} s, score {time.perf_counter() - begun - made:.0f} s")
    if arguments.write:
        _write(table)


def _write(table: ScoreTable) -> None:
    run = {
        "horizon": table.horizon,
        "loss": table.loss,
        "level": table.level,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "groups": {
            group.group: {
                "first": str(group.first.astype("datetime64[D]")),
                "last": str(group.last.astype("datetime64[D]")),
                "rows": group.rows,
                "assets": len(group.assets),
                "metrics": {model: _rounded(found) for model, found in group.metrics.items()},
            }
            for group in table.groups
            if group.side == "both"
        },
    }
    kept = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    others = [one for one in kept if (one["horizon"], one["loss"]) != (table.horizon, table.loss)]
    runs = sorted([*others, run], key=lambda one: (one["horizon"], one["loss"] != "close"))
    RESULTS.write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def _rounded(found: Metrics) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else round(value, 5) for name, value in found._asdict().items()}


if __name__ == "__main__":
    main()

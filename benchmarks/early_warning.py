"""Does a forecast of today's scale warn earlier? Probabilities of liquidation of made-up accounts on recorded prices.

    .venv/bin/python -m benchmarks.early_warning --market DIR [--forecasts DIR] [--checkpoints DIR] [--write]

Every two days accounts are opened (`leveraged_accounts`) and followed for a week. At 00:00 each has a probability of
being liquidatable after a day, at 00:00, 08:00 and 16:00 one after 8 hours, by the exact law of one step under

    historical          plain historical simulation: the last 730 days as they were
    filtered            the shipped filtered history, EWMA volatility, weights by age
    learned close       the same residuals at the learned margin of that moment, close to close
    learned adverse     the same at the learned margin against the worst point inside the window
    classical close     the two with the classical member of the margin in place of the whole model:
    classical adverse   what the network itself adds

Margins are walk-forward: networks are fitted to what had ended two days before each half-year. `--forecasts` keeps
them in a folder. What happened is read from bars of four hours. `--write` puts the figures into
`benchmarks/results/early_warning.json`; docs/early-warning.md explains them.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aggregator.backtest_laws import PLAIN_DAYS, plain_changes
from aggregator.backtest_market import Market, build_market, filled_residuals, has_history
from aggregator.history import DECAY, FLOOR_FRACTION, age_weights
from aggregator.history_tables import read_history_table, return_panel
from aggregator.tail_scale import weighted_quantile
from benchmarks.leveraged_accounts import Accounts, drawn_accounts, first_liquidation, surplus_parts
from benchmarks.warning_scores import alarm_threshold, lead_times, scores, warned
from models.market_history import FourHourPanel, MarketHistory, bars_4h_panel, read_market

RESULTS = Path(__file__).resolve().parent / "results" / "early_warning.json"

LEVEL = 0.99
HALF_LIFE_DAYS = 730.0
PEGGED = ("BUSD", "USDC", "USDP", "UST", "PAXG", "BETH", "WBETH")
"""No market to be leveraged in; staked ether has its underlying's."""

FIRST, LAST = np.datetime64("2020-01-10", "h"), np.datetime64("2024-06-22", "h")
COHORT_DAYS, LIFE_DAYS, ACCOUNTS = 2, 7, 60
LOOK_HOURS, BAR_HOURS = 8, 4
AGAINST = "filtered"
UNSEEN = np.datetime64("2024-01-01", "D")
"""The learned model's settings were chosen on what came before."""

FALSE_ALARMS = (0.05, 0.10)
"""Shares of the looks that no liquidation followed, at which alarms are compared."""

WINDOWS = {
    "2020-03 crash": ("2020-03-05", "2020-03-20"),
    "2020-09 fall": ("2020-08-31", "2020-09-10"),
    "2021-01 fall": ("2021-01-08", "2021-01-24"),
    "2021-05 crash": ("2021-05-10", "2021-05-28"),
    "2021-09 fall": ("2021-09-04", "2021-09-12"),
    "2021-12 fall": ("2021-12-01", "2021-12-08"),
    "2022-05 LUNA": ("2022-05-03", "2022-05-18"),
    "2022-06 lenders": ("2022-06-08", "2022-06-22"),
    "2022-11 FTX": ("2022-11-04", "2022-11-18"),
    "2023-06 suits": ("2023-06-03", "2023-06-14"),
    "2023-08 flash": ("2023-08-14", "2023-08-21"),
    "2024-04 fall": ("2024-04-08", "2024-04-20"),
}
"""Crises, with some days before the fall; every other day is a control."""

TARGETS = ("1d_close", "1d_adverse", "8h_close", "8h_adverse")


class Margins(NamedTuple):
    """Walk-forward margins of a target: `opening` [times], `assets`, by model [times, assets, (long, short)]."""

    opening: np.ndarray
    assets: tuple[str, ...]
    rates: Mapping[str, np.ndarray]


class Step(NamedTuple):
    """What all laws of a day share: residuals [dates, assets], weights, their tail quantiles down and up [assets],
    EWMA volatility [assets], plain changes [days, assets] and which assets have a history."""

    residuals: np.ndarray
    weights: np.ndarray
    down: np.ndarray
    up: np.ndarray
    volatility: np.ndarray
    plain: np.ndarray
    usable: np.ndarray


# ---- laws ------------------------------------------------------------------------------------------------------------


def day_step(market: Market, t: int) -> Step:
    """Of day t from the days before it."""
    usable = np.array([has_history(market, t, column) for column in range(market.prices)])
    table = filled_residuals(market, t, market.volatility[t], market.residuals)
    weights = age_weights(market.dates[market.first : t], HALF_LIFE_DAYS)
    down, up = (
        np.array(
            [weighted_quantile(sign * table[:, a], weights, LEVEL) if usable[a] else np.nan for a in range(len(usable))]
        )
        for sign in (-1.0, 1.0)
    )
    plain = plain_changes(market, t)[-PLAIN_DAYS:]
    return Step(table, weights, down, up, market.volatility[t], plain, usable)


def conditional_shocks(step: Step, down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Residuals brought to log-moves down and up [assets], as `tail_scale.conditioned` does factor by factor."""
    return step.residuals * np.where(step.residuals < 0.0, down / step.down, up / step.up)


def liquidation_probability(
    shocks: np.ndarray, weights: np.ndarray, constant: np.ndarray, parts: np.ndarray
) -> np.ndarray:
    """P(constant + parts x e^shock <= 0) by account; shocks [scenarios, assets], what is not known must not be held."""
    growth = np.exp(np.nan_to_num(shocks)).astype(np.float32)
    surplus = growth @ parts.T.astype(np.float32) + constant.astype(np.float32)
    return weights @ (surplus <= 0.0)


def laws_at(
    step: Step, margins: Mapping[str, Margins], horizon: str, at: np.datetime64, columns: tuple[str, ...]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By law: shocks [scenarios, assets] over the horizon, weights. An asset without a margin keeps its volatility."""
    root = (LOOK_HOURS / 24.0) ** 0.5 if horizon == "8h" else 1.0
    filtered = step.residuals * step.volatility * root
    even = np.full(len(step.plain), 1.0 / len(step.plain))
    found = {"historical": (step.plain * root, even), "filtered": (filtered, step.weights)}
    for loss in ("close", "adverse"):
        of = margins[f"{horizon}_{loss}"]
        row = int(np.searchsorted(of.opening, at))
        if row == len(of.opening) or of.opening[row] != at:
            raise ValueError(f"no margin of {horizon} {loss} at {at}")
        place = [of.assets.index(name) for name in columns]
        for model, rates in of.rates.items():
            long, short = rates[row, place].T
            with np.errstate(invalid="ignore"):
                shocks = conditional_shocks(step, -np.log1p(-np.minimum(long, 0.95)), np.log1p(short))
            known = np.isfinite(long) & np.isfinite(short)
            found[f"{model} {loss}"] = np.where(known, shocks, filtered), step.weights
    return found


# ---- the walk --------------------------------------------------------------------------------------------------------


class Cohort(NamedTuple):
    """Accounts opened at one bar, in which bar since then each is liquidated, and their number in the whole walk."""

    accounts: Accounts
    opened: int
    gone: np.ndarray
    reference: np.ndarray
    first_number: int


class Rows(NamedTuple):
    """Account-times of one horizon, [rows]: hours since 1970, account, its liquidation in hours (inf: none in its
    life), whether it was below maintenance at the end and at any time within, and probabilities by law."""

    hours: np.ndarray
    account: np.ndarray
    gone_hours: np.ndarray
    at_end: np.ndarray
    within: np.ndarray
    probabilities: dict[str, np.ndarray]


def walk(
    market: Market,
    bars: FourHourPanel,
    margins: Mapping[str, Margins],
    *,
    first: np.datetime64 = FIRST,
    last: np.datetime64 = LAST,
    accounts: int = ACCOUNTS,
    seed: int = 1,
    note: Any = None,
) -> dict[str, Rows]:
    """Rows by horizon ("1d", "8h") of all accounts that are opened in [first, last)."""
    columns = tuple(name.partition(":")[2] for name in market.factors)
    low, high = (np.where(np.isfinite(of), of, bars.close) for of in (bars.low, bars.high))
    life = LIFE_DAYS * 24 // BAR_HOURS
    alive: list[Cohort] = []
    kept: dict[str, list[tuple[Any, ...]]] = {"1d": [], "8h": []}
    number = 0
    days = np.arange(first.astype("datetime64[D]"), last.astype("datetime64[D]"))
    for done, day in enumerate(days):
        t = int(np.searchsorted(market.dates, day))
        step = day_step(market, t)
        bar = int(np.searchsorted(bars.opening, day.astype(bars.opening.dtype)))
        if done % COHORT_DAYS == 0:
            random = np.random.Generator(np.random.Philox(key=[seed, int(day.astype(np.int64))]))
            reference = bars.close[bar - 1]
            made = drawn_accounts(random, step.usable & np.isfinite(reference), accounts)
            ahead = slice(bar, bar + life)
            relative = (low[ahead] / reference, high[ahead] / reference, bars.close[ahead] / reference)
            alive.append(Cohort(made, bar, first_liquidation(made, *relative), reference, number))
            number += accounts
        alive = [cohort for cohort in alive if bar - cohort.opened < life]
        for look in range(0, 24, LOOK_HOURS):
            at = bar + look // BAR_HOURS
            time_at = day + np.timedelta64(look, "h")
            for horizon in ("1d", "8h") if look == 0 else ("8h",):
                laws = laws_at(step, margins, horizon, time_at.astype("datetime64[us]"), columns)
                kept[horizon].append(_look(alive, bars, step, laws, at, 24 if horizon == "1d" else LOOK_HOURS, life))
        if note is not None:
            note(done + 1, len(days))
    return {horizon: _joined(parts) for horizon, parts in kept.items()}


def _look(
    alive: list[Cohort],
    bars: FourHourPanel,
    step: Step,
    laws: Mapping[str, tuple[np.ndarray, np.ndarray]],
    at: int,
    hours: int,
    life: int,
) -> tuple[Any, ...]:
    """One look at all accounts that are alive, whose life covers the horizon, and whose assets have a history."""
    ahead = hours // BAR_HOURS
    parts: list[tuple[np.ndarray, ...]] = []
    for cohort in alive:
        age = at - cohort.opened
        if age + ahead > life:
            continue
        constant, weights = surplus_parts(cohort.accounts, bars.close[at - 1] / cohort.reference)
        held = cohort.accounts.notional != 0.0
        known = step.usable & np.isfinite(bars.close[at - 1 : at + ahead]).all(axis=0)
        usable = ~(held & ~known).any(axis=1) & (cohort.gone >= age)
        growth = np.nan_to_num(bars.close[at + ahead - 1] / bars.close[at - 1])
        at_end = constant + (weights * growth).sum(axis=1) <= 0.0
        within = cohort.gone < age + ahead
        begun = (bars.opening[cohort.opened].astype("datetime64[h]")).astype(np.int64)
        gone = np.where(cohort.gone < life, begun + BAR_HOURS * cohort.gone, np.inf)
        names = cohort.first_number + np.arange(len(constant))
        parts.append(tuple(of[usable] for of in (names, gone, at_end, within, constant, weights)))
    names, gone, at_end, within, constant, weights = (np.concatenate(of) for of in zip(*parts, strict=True))
    hour = bars.opening[at].astype("datetime64[h]").astype(np.int64)
    found = {
        name: liquidation_probability(shocks, mass, constant, weights).astype(np.float32)
        for name, (shocks, mass) in laws.items()
    }
    return np.full(len(names), hour), names, gone, at_end, within, found


def _joined(parts: list[tuple[Any, ...]]) -> Rows:
    hours, account, gone, at_end, within = (np.concatenate([part[place] for part in parts]) for place in range(5))
    laws = parts[0][5]
    probabilities = {name: np.concatenate([part[5][name] for part in parts]).astype(np.float64) for name in laws}
    return Rows(hours, account, gone, at_end, within, probabilities)


# ---- what it is worth ------------------------------------------------------------------------------------------------


def report(rows: Mapping[str, Rows]) -> dict[str, Any]:
    """Scores by horizon, outcome and period, and lead times at an equal rate of false alarms."""
    found: dict[str, Any] = {}
    for horizon, of in rows.items():
        day = of.hours // 24
        crisis = np.zeros(len(day), dtype=bool)
        periods: dict[str, np.ndarray] = {}
        for name, window in WINDOWS.items():
            begin, end = (int(np.datetime64(one, "D").astype(np.int64)) for one in window)
            periods[name] = (day >= begin) & (day <= end)
            crisis |= periods[name]
        found[horizon] = {
            outcome: {
                period: _scores(of, happened, mask)
                for period, mask in {
                    "all": np.ones(len(day), dtype=bool),
                    "crises": crisis,
                    "other days": ~crisis,
                    "from 2024": day >= int(UNSEEN.astype(np.int64)),
                }.items()
                if mask.any()
            }
            for outcome, happened in (("at_end", of.at_end), ("within", of.within))
        }
        found[horizon]["by_crisis"] = {
            name: {
                "rows": int(mask.sum()),
                "happened": int(of.within[mask].sum()),
                # one or two blocks of days have no error bar
                "auc": {law: value["auc"][0] for law, value in _scores(of, of.within, mask)["laws"].items()},
            }
            for name, mask in periods.items()
            if of.within[mask].any()
        }
        found[horizon]["lead"] = {
            "crises": _lead(of, crisis),
            "other days": _lead(of, ~crisis),
        }
    return found


def _scores(of: Rows, happened: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    probabilities = {name: values[mask] for name, values in of.probabilities.items()}
    return scores(probabilities, happened[mask], of.hours[mask] // 24, against=AGAINST)


def _lead(of: Rows, period: np.ndarray) -> dict[str, Any]:
    """Of the accounts liquidated in the period; thresholds are set once, on all rows of all periods."""
    liquidated = np.isfinite(of.gone_hours) & (of.hours <= of.gone_hours)
    inside = np.isin(of.account, np.unique(of.account[period & of.within])) & liquidated
    order = np.flatnonzero(inside)[np.lexsort((of.hours[inside], of.account[inside]))]
    found: dict[str, Any] = {}
    for share in FALSE_ALARMS if len(order) else ():
        thresholds, leads = {}, {}
        for name, probability in of.probabilities.items():
            thresholds[name] = alarm_threshold(probability, of.within, share)
            alarm = probability[order] > thresholds[name]
            leads[name] = warned(alarm, of.account[order], of.hours[order].astype(np.float64), of.gone_hours[order])
        found[f"{share:g}"] = {
            "laws": {name: {"threshold": thresholds[name], **lead_times(lead)} for name, lead in leads.items()},
            f"minus_{AGAINST}": {
                name: lead_times(lead, leads[AGAINST]) for name, lead in leads.items() if name != AGAINST
            },
        }
    return found


# ---- inputs ----------------------------------------------------------------------------------------------------------


def walk_forward_margins(history: MarketHistory, target: str, checkpoints: Path | None) -> Margins:
    """Learned and classical margins of a target such as 1d_close from 2020 on; minutes on two cores."""
    from models.classical_margin import classical_rates
    from models.features import feature_panel
    from models.learned import learned_rates
    from models.market_history import windows
    from models.offset_windows import offset_windows
    from models.tier_model_settings import SHIPPED, read_tier_model_settings
    from models.walk_forward import refit_dates

    horizon, loss = target.split("_")
    settings = read_tier_model_settings(SHIPPED)
    panel = windows(history, horizon)  # type: ignore[arg-type]
    features = feature_panel(history, horizon, panel)  # type: ignore[arg-type]
    learned = learned_rates(
        features,
        panel,
        loss,  # type: ignore[arg-type]
        settings,
        start=FIRST.astype("datetime64[D]"),
        end=LAST.astype("datetime64[D]") + np.timedelta64(10, "D"),
        offsets=offset_windows(history, loss) if horizon == "1d" else None,  # type: ignore[arg-type]
        checkpoints=checkpoints,
    ).learned
    classical = classical_rates(
        features,
        panel,
        loss,  # type: ignore[arg-type]
        levels=settings.network.levels,
        settings=settings.classical,
        refits=refit_dates(features.opening, settings.walk_forward.months),
    )
    place = settings.network.levels.index(LEVEL)
    rates = {"learned": learned, "classical": classical}
    return Margins(
        features.opening, features.assets, {name: np.exp(of.log_margin[..., place]) for name, of in rates.items()}
    )


def kept_margins(history: MarketHistory, target: str, folder: Path | None, checkpoints: Path | None) -> Margins:
    """As above, read from `folder` where it was kept."""
    file = None if folder is None else folder / f"{target}.npz"
    if file is not None and file.exists():
        with np.load(file, allow_pickle=False) as kept:
            rates = {name: kept[name] for name in ("learned", "classical")}
            return Margins(kept["opening"], tuple(kept["assets"].tolist()), rates)
    made = walk_forward_margins(history, target, checkpoints)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            file,
            opening=made.opening,
            assets=np.array(made.assets),
            learned=made.rates["learned"],
            classical=made.rates["classical"],
        )
    return made


def daily_market(folder: Path, assets: tuple[str, ...]) -> Market:
    """Daily closes of `assets`, perpetuals before spot, as the sweep's rule splices them."""
    panel, _ = return_panel(
        read_history_table(folder / "ohlcv_1d.parquet"), assets, markets=("perp", "spot"), splice=True
    )
    return build_market(panel, {}, {}, {}, decay=DECAY, floor_fraction=FLOOR_FRACTION, seed=1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--market", type=Path, required=True)
    parser.add_argument("--forecasts", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    history = read_market(arguments.market)
    margins = {target: kept_margins(history, target, arguments.forecasts, arguments.checkpoints) for target in TARGETS}
    names = tuple(name for name in margins["1d_close"].assets if name not in PEGGED)
    market = daily_market(arguments.market, names)
    bars = bars_4h_panel(history, tuple(name.partition(":")[2] for name in market.factors))
    before = time.process_time()
    rows = walk(market, bars, margins, note=lambda done, total: done % 100 or print(f"{done} of {total} days"))
    text = json.dumps(document(rows, time.process_time() - before), indent=1)
    if arguments.write:
        RESULTS.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def document(rows: Mapping[str, Rows], seconds: float) -> dict[str, Any]:
    """What is written: the report with what it was made with."""
    return {
        "what": "probabilities of liquidation of made-up accounts, walk-forward; docs/early-warning.md",
        "first": str(FIRST),
        "last": str(LAST),
        "accounts_per_cohort": ACCOUNTS,
        "false_alarms": list(FALSE_ALARMS),
        "windows": WINDOWS,
        "machine": {"architecture": platform.machine(), "python": platform.python_version(), "numpy": np.__version__},
        "walk_processor_seconds": round(seconds, 1),
        "horizons": report(rows),
    }


if __name__ == "__main__":
    main()

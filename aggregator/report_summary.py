"""The top of the report: the state of the run in a sentence, and its headline figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from .errors import ExitCode
from .report_stress import worst_stress
from .report_words import NOT_AVAILABLE, counted, percent, short, times, words, words_with_error

Row = Mapping[str, Any]

NOTABLE_PROBABILITY = 0.01
"""From here on the first line names the account that is most likely to be liquidated."""


def condition_word(condition: Row) -> str:
    """What the exit code of a condition stands for."""
    words = {
        int(ExitCode.INTERNAL): "internal error",
        int(ExitCode.CONFIGURATION): "configuration",
        int(ExitCode.BAD_DATA): "bad or incomplete data",
        int(ExitCode.LIMIT_BREACHED): "limit breached",
        int(ExitCode.VENUE_UNREACHABLE): "venue unreachable",
    }
    return words.get(condition.get("code", 0), str(condition.get("condition", "condition")))


def verdict(run_tables: Mapping[str, pa.Table], portfolios: Sequence[Row], conditions: Sequence[Row]) -> Row:
    """The state of the run in one or two sentences, and how grave it is (bad, attention or good)."""
    liquidatable = pc.sum(run_tables["account_margin"].column("liquidatable").cast(pa.int64())).as_py() or 0
    incomplete = sum(not row["complete"] for row in portfolios)
    breached = sum(c.get("code") == ExitCode.LIMIT_BREACHED for c in conditions)
    unreachable = sum(c.get("code") == ExitCode.VENUE_UNREACHABLE for c in conditions)
    sentences = []
    if liquidatable:
        sentences.append(f"{counted(liquidatable, 'account')} can be liquidated now")
    if breached:
        sentences.append("a limit is breached" if breached == 1 else f"{breached} limits are breached")
    grave = bool(sentences)
    if unreachable:
        sentences.append("a venue did not answer" if unreachable == 1 else f"{unreachable} venues did not answer")
    if incomplete:
        sentences.append(
            f"{incomplete} of {counted(len(portfolios), 'portfolio')} incomplete: limits there are undecided"
        )
    elif any(c.get("code") == ExitCode.BAD_DATA for c in conditions):
        sentences.append("some input rows could not be used; every portfolio is complete")
    if not sentences:
        if not portfolios:
            sentences.append("the run holds no portfolio")
        elif conditions:
            sentences.append(f"the run reports {counted(len(conditions), 'condition')}")
        else:
            sentences.append("no account can be liquidated now, no limit is breached, all data are complete")
    likeliest = max(
        (row for row in portfolios if row["p_liquidation_largest_account"] is not None),
        key=lambda row: row["p_liquidation_largest"],
        default=None,
    )
    if likeliest is not None and likeliest["p_liquidation_largest"] >= NOTABLE_PROBABILITY:
        account = likeliest["p_liquidation_largest_account"]
        sentences.append(f"{account} is liquidated at the horizon in {likeliest['p_liquidation_largest']:.1%} of cases")
    text = "; ".join(sentences)
    grade = "bad" if grave else "good" if portfolios and not conditions and not incomplete else "attention"
    return {"text": f"{text[0].upper()}{text[1:]}.", "grade": grade}


def tiles(run_tables: Mapping[str, pa.Table], portfolios: Sequence[Row]) -> list[Row]:
    """The figures at the top; amounts are sums over portfolios, which never offset each other.

    The standard error of a sum is not known, because all portfolios see the same scenarios; the sum of the errors
    bounds it.
    """
    count = len(portfolios)

    def total(column: str) -> float | None:
        known = [row[column] for row in portfolios if row[column] is not None]
        return sum(known) if known else None

    def scope(column: str) -> str:
        known = sum(row[column] is not None for row in portfolios)
        if known < count:
            return f"{known} of {counted(count, 'portfolio')} computed"
        return "" if count == 1 else f"sum of {count} portfolios"

    effective, silo = total("requirement_effective_usd"), total("requirement_silo_usd")
    errors = [row["es_99_pooled_error_usd"] for row in portfolios if row["es_99_pooled_usd"] is not None]
    error = sum(errors) if errors and None not in errors else None
    error_note = "± one standard error" if count == 1 else "± an upper bound"
    return [
        {"label": "Equity", "value": words(total("equity_usd")), "note": scope("equity_usd") or "at market value"},
        {
            "label": "Unified maintenance margin",
            "value": words(effective),
            "note": Markup("venues' own {}").format(words(total("native_maintenance_usd"))),
        },
        {
            "label": "Unified initial margin",
            "value": words(total("requirement_initial_usd")),
            "note": Markup("venues' own {}").format(words(total("native_initial_usd"))),
        },
        _extreme(portfolios, "health_unified", "Unified health", "equity over maintenance", lowest=True),
        {
            "label": "ES 99 % pooled",
            "value": words_with_error(total("es_99_pooled_usd"), error),
            "note": "; ".join(
                note for note in (scope("es_99_pooled_usd"), error_note if error is not None else "") if note
            ),
        },
        _saving(portfolios, effective, silo),
        _likeliest_liquidation(portfolios),
        _worst_stress(run_tables["stress"].to_pylist(), count),
    ]


def _extreme(portfolios: Sequence[Row], column: str, label: str, note: str, *, lowest: bool = False) -> Row:
    """The tile of the portfolio whose figure is the largest or lowest; it is named when there are several."""
    known = [row for row in portfolios if row[column] is not None]
    if not known:
        return {"label": label, "value": NOT_AVAILABLE, "note": note}
    row = (min if lowest else max)(known, key=lambda row: row[column])
    value = times(row[column]) if lowest else percent(row[column], 2)
    if len(portfolios) > 1:
        return {"label": label, "value": value, "note": Markup("{}, {}").format(short(row["portfolio_id"]), note)}
    return {"label": label, "value": value, "note": note}


def _saving(portfolios: Sequence[Row], effective: float | None, silo: float | None) -> Row:
    """The tile of what pooling saves: the usable part of it where the run has routes, else what is asked for of the
    nodes alone. Of several portfolios it is the share of their savings together.
    """
    efficiency = percent(effective / silo, 1) if effective is not None and silo else NOT_AVAILABLE
    alone = "the nodes alone" if silo is None else Markup("the nodes alone, {}").format(words(silo))
    saving = [row for row in portfolios if row["usable_saving"] is not None]
    if not saving:
        return {"label": "Margin efficiency", "value": efficiency, "note": Markup("of {}").format(alone)}
    whole = sum(row["requirement_silo_usd"] - row["requirement_ideal_usd"] for row in saving)
    granted = sum(row["offset_benefit_usd"] for row in saving)
    return {
        "label": "Usable saving",
        "value": percent(saving[0]["usable_saving"] if len(saving) == 1 else granted / whole, 1),
        "note": Markup("of what pooling saves; margin {} of {}").format(efficiency, alone),
    }


def _likeliest_liquidation(portfolios: Sequence[Row]) -> Row:
    """The tile of the portfolio that most likely loses an account at the horizon; beside it, the same on the way."""
    column, on_the_way = "p_liquidation_any_at_horizon", "p_liquidation_path"
    tile = _extreme(portfolios, column, "Largest P(any liquidation)", "at the horizon")
    row = max((r for r in portfolios if r[column] is not None), key=lambda r: r[column], default=None)
    if row is None or row[on_the_way] is None:
        return tile
    return {**tile, "note": Markup("{}; on the way {}").format(tile["note"], percent(row[on_the_way], 2))}


def _worst_stress(stresses: Sequence[Row], portfolios: int) -> Row:
    label = "Worst named stress"
    row = worst_stress(stresses)
    if row is None:
        return {"label": label, "value": NOT_AVAILABLE, "note": "no library of stresses in this run"}
    name = short(row["stress"], 30)
    if portfolios > 1:
        name = Markup("{}, {}").format(name, short(row["portfolio_id"]))
    return {"label": label, "value": words(row["loss_usd"]), "note": name}

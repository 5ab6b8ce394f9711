"""The report of a run: complete, safe against what data may hold, equal for equal input, honest about what is missing.

The sample run is a small desk simulated here with plain NumPy, so that its figures belong together: contributions add
up to the pooled expected shortfall, the histogram is the one that VaR and ES come from. Run as a program
(`python tests/test_report.py FOLDER`) this file writes the sample reports into a folder, to be looked at.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aggregator import report_charts
from aggregator.errors import StoreError
from aggregator.report import (
    DETAILED_PORTFOLIOS,
    RECONCILIATION_ROWS,
    difference,
    full,
    native,
    percent,
    ratio,
    render_report,
    write_report,
)
from aggregator.report_charts import (
    HeatCell,
    LadderStep,
    WaterfallStep,
    compact,
    heat_map,
    histogram_chart,
    ladder_chart,
    nice_ticks,
    waterfall_chart,
)
from aggregator.schema import RESULTS

RUN = "20240630T120000Z-0a1b2c3d"
SCENARIOS = 4096
SEED = 20240630
HOSTILE = "<script>alert(1)</script>"
HOSTILE_NAMES = (
    HOSTILE,
    "\"'><img src=x onerror=alert(1)>",
    "</title></svg></style><iframe src='https://evil.example/'>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript://alert(1)",
    "line\nbreak\x00\x1b and \u202egnp.exe",
    "x" * 400,
    "&lt;b&gt;",
)
# Coordinates are written with one decimal.
COORDINATE = 0.051

VENUES = ("aave_v3", "binance", "deribit", "derive", "hyperliquid")
ASSETS = ("BTC", "ETH", "SOL", "USDC")
DAILY_VOL = {"BTC": 0.028, "ETH": 0.036, "SOL": 0.052, "USDC": 0.0004}
HARMLESS_TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "section",
        "footer",
        "nav",
        "div",
        "p",
        "pre",
    ),
    *("h1", "h2", "h3", "ul", "li", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "a", "b", "i"),
    *("code", "span", "svg", "text", "line", "rect", "polygon"),
}
SECTIONS = (
    "Margin report",
    "Portfolios",
    "Margin ladder",
    "Accounts nearest to liquidation",
    "Portfolio ",
    "Equity waterfall",
    "Losses over the horizon",
    "Where the requirement comes from",
    "Worst scenarios",
    "Accounts by health",
    "Positions: alone and in the whole",
    "Greeks by underlying",
    "Reconciliation",
    "Data quality",
    "Risk factors",
    "Failures",
    "Appendix",
    "Configuration",
)


def _tail_mean(losses: np.ndarray, confidence: float, of: np.ndarray | None = None) -> float:
    """Mean over the worst scenarios of `losses`, of the losses themselves or of `of` (its Euler contribution)."""
    count = round(len(losses) * (1 - confidence))
    worst = np.argsort(-losses, kind="stable")[:count]
    return float((losses if of is None else of)[worst].mean())


def _quantile(losses: np.ndarray, confidence: float) -> float:
    return float(np.sort(losses)[::-1][round(len(losses) * (1 - confidence)) - 1])


def _portfolio(name: str, rng: np.random.Generator, size_usd: float) -> dict[str, list[dict[str, Any]]]:
    """Result rows of one complete portfolio of about `size_usd` over all venues and assets."""
    common = rng.standard_t(4, SCENARIOS) / np.sqrt(2)
    moves = {
        asset: np.expm1(DAILY_VOL[asset] * (0.85 * common + 0.53 * rng.standard_t(4, SCENARIOS) / np.sqrt(2)))
        for asset in ASSETS
    }
    accounts = [(venue, f"{venue}:{name}-{k}") for venue in VENUES for k in range(1 if venue == "derive" else 2)]
    positions: list[tuple[str, str, str, float]] = []
    for number, (venue, account) in enumerate(accounts):
        positions.append((venue, account, "USDC", size_usd * float(rng.uniform(0.05, 0.2))))
        for asset in ASSETS[:3]:
            if rng.uniform() < 0.75:
                sign = 1 if (number + len(asset)) % 2 else -1
                positions.append((venue, account, asset, sign * size_usd * float(rng.lognormal(-2.2, 0.8))))
    losses = [-value * moves[asset] for _, _, asset, value in positions]
    total = np.sum(losses, axis=0)
    by_account = {
        a: np.sum([x for x, p in zip(losses, positions, strict=True) if p[1] == a], axis=0) for _, a in accounts
    }
    equity = {a: sum(p[3] for p in positions if p[1] == a and p[2] == "USDC") for _, a in accounts}
    maintenance = {a: 0.03 * sum(abs(p[3]) for p in positions if p[1] == a) for _, a in accounts}
    gross = {a: sum(abs(p[3]) for p in positions if p[1] == a) for _, a in accounts}
    liquidated = {a: by_account[a] > equity[a] - maintenance[a] for _, a in accounts}
    health = {a: equity[a] / maintenance[a] for _, a in accounts}
    weakest = min(health, key=lambda a: health[a])
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in RESULTS}
    isolated = {c: sum(max(_tail_mean(x, c), 0.0) for x in losses) for c in (0.99, 0.995)}
    silo = {c: sum(max(_tail_mean(x, c), 0.0) for x in by_account.values()) for c in (0.99, 0.995)}
    pooled = {c: _tail_mean(total, c) for c in (0.99, 0.995)}
    likeliest = max(liquidated, key=lambda account: float(np.mean(liquidated[account])))
    rows["portfolio_margin"].append(
        {
            "portfolio_id": name,
            "complete": True,
            "accounts_left_out": "[]",
            "left_out_gross_usd": 0.0,
            "status": "ok",
            "accounts": len(accounts),
            "positions": len(positions),
            "equity_usd": sum(equity.values()),
            "gross_notional_usd": sum(gross.values()),
            "native_initial_usd": 1.6 * sum(maintenance.values()),
            "native_maintenance_usd": sum(maintenance.values()),
            "health_minimum": health[weakest],
            "health_minimum_account": weakest,
            "p_liquidation_any_at_horizon": float(np.mean(np.any(list(liquidated.values()), axis=0))),
            "p_liquidation_largest": float(np.mean(liquidated[likeliest])),
            "p_liquidation_largest_account": likeliest,
            "mean_loss_usd": float(total.mean()),
            "worst_loss_usd": float(total.max()),
            "var_99_pooled_usd": _quantile(total, 0.99),
            "es_99_pooled_usd": pooled[0.99],
            "var_995_pooled_usd": _quantile(total, 0.995),
            "es_995_pooled_usd": pooled[0.995],
            "var_99_silo_sum_usd": sum(_quantile(x, 0.99) for x in by_account.values()),
            "es_99_silo_sum_usd": silo[0.99],
            "var_995_silo_sum_usd": sum(_quantile(x, 0.995) for x in by_account.values()),
            "es_995_silo_sum_usd": silo[0.995],
            "es_99_isolated_sum_usd": isolated[0.99],
            "es_995_isolated_sum_usd": isolated[0.995],
            "offset_within_nodes_99_usd": isolated[0.99] - silo[0.99],
            "offset_across_nodes_99_usd": silo[0.99] - pooled[0.99],
            "pooled_to_silo_99": pooled[0.99] / silo[0.99],
            "equity_to_es_99": sum(equity.values()) / pooled[0.99],
        }
    )
    for venue, account in accounts:
        reports = venue in ("binance", "hyperliquid")
        rows["account_margin"].append(
            {
                "portfolio_id": name,
                "account_id": account,
                "node": account,
                "venue": venue,
                "margin_mode": "lending" if venue == "aave_v3" else "cross",
                "status": "ok",
                "unit": "USDC",
                "unit_price_usd": 1.0,
                "equity": equity[account],
                "initial_requirement": 1.6 * maintenance[account],
                "maintenance_requirement": maintenance[account],
                "health": health[account],
                "trigger": 1.05 if venue == "binance" else 1.0,
                "liquidatable": False,
                "near_boundary": False,
                "p_liquidation_at_horizon": float(np.mean(liquidated[account])),
                "equity_usd": equity[account],
                "gross_notional_usd": gross[account],
                "reported_equity": equity[account] if reports else None,
                "reported_maintenance_margin": maintenance[account] * 1.000021 if reports else None,
                "reported_parts": False if reports else None,
                "equity_difference": 0.0 if reports else None,
                "maintenance_difference": -0.000021 * maintenance[account] if reports else None,
            }
        )
        rows["reconciliation"] += [
            _compared(name, venue, account, "equity", equity[account], equity[account] if reports else None),
            _compared(
                name, venue, account, "maintenance_margin", maintenance[account],
                maintenance[account] * 1.000021 if reports else None,
            ),
        ]  # fmt: skip
        rows["node_margin"].append(
            {
                "portfolio_id": name,
                "node": account,
                "venue": venue,
                "equity_usd": equity[account],
                "var_99_usd": _quantile(by_account[account], 0.99),
                "es_99_usd": _tail_mean(by_account[account], 0.99),
                "var_995_usd": _quantile(by_account[account], 0.995),
                "es_995_usd": _tail_mean(by_account[account], 0.995),
            }
        )
    for (venue, account, asset, value), own in zip(positions, losses, strict=True):
        rows["allocation"].append(
            {
                "portfolio_id": name,
                "level": "position",
                "key": f"{account} {asset}-PERP" if asset != "USDC" else f"{account} USDC",
                "venue": venue,
                "asset": asset,
                "account_id": account,
                "value_usd": value,
                "es_99_usd": _tail_mean(total, 0.99, own),
                "es_995_usd": _tail_mean(total, 0.995, own),
                "es_99_isolated_usd": _tail_mean(own, 0.99),
                "es_995_isolated_usd": _tail_mean(own, 0.995),
                "var_99_isolated_usd": _quantile(own, 0.99),
                "var_995_isolated_usd": _quantile(own, 0.995),
            }
        )
    for rank, scenario in enumerate(np.argsort(-total, kind="stable")[:10].tolist(), start=1):
        drivers = sorted(
            (
                {"key": f"{p[1]} {p[2]}-PERP", "loss_usd": float(x[scenario])}
                for p, x in zip(positions, losses, strict=True)
            ),
            key=lambda driver: -float(str(driver["loss_usd"])),
        )
        rows["scenarios_worst"].append(
            {
                "portfolio_id": name,
                "rank": rank,
                "scenario": scenario,
                "weight": 1 / SCENARIOS,
                "loss_usd": float(total[scenario]),
                "drivers": json.dumps(drivers[:5]),
                "moves": json.dumps(
                    {f"price:{a}": float(moves[a][scenario]) for a in ASSETS[:3]}
                    | {"vol:BTC": 0.31, "vol:ETH": 0.27, "peg:USDC": float(moves["USDC"][scenario])}
                ),
                "liquidated": json.dumps([a for _, a in accounts if liquidated[a][scenario]]),
            }
        )
    for asset in ASSETS[:3]:
        delta = sum(p[3] for p in positions if p[2] == asset)
        rows["greeks"].append(
            {
                "portfolio_id": name,
                "underlying": asset,
                "delta_usd": delta,
                "gamma_usd": 0.002 * delta,
                "vega_usd": -0.0011 * delta,
                "theta_usd": 0.0004 * delta,
            }
        )
    counts, edges = np.histogram(total, bins=60)
    for number, count in enumerate(counts.tolist()):
        rows["loss_histogram"].append(
            {
                "portfolio_id": name,
                "bin": number,
                "loss_from_usd": float(edges[number]),
                "loss_to_usd": float(edges[number + 1]),
                "probability": count / SCENARIOS,
            }
        )
    return rows


def _compared(
    portfolio: str, venue: str, account: str, figure: str, ours: float, reported: float | None
) -> dict[str, Any]:
    """A row of `reconciliation`: a difference is unexplained and beyond the bound from one dollar on."""
    difference = None if reported is None else ours - reported
    row = {
        "portfolio_id": portfolio,
        "account_id": account,
        "venue": venue,
        "figure": figure,
        "unit": "USDC",
        "ours": ours,
        "reported": reported,
        "difference": difference,
        "difference_relative": difference / reported if difference is not None and reported else None,
        "difference_usd": difference,
        "status": "match" if reported is not None else "not_reported",
        "message": "equal" if reported is not None else "no payload states it",
        "beyond_bound": difference is not None and abs(difference) > 1.0,
    }
    return row | ({"status": "unexplained", "message": "nothing accounts for it"} if difference else {})


def _run_row(**changes: Any) -> dict[str, Any]:
    row = {
        "started_at": datetime(2024, 6, 30, 12, 0, 0, tzinfo=UTC),
        "finished_at": datetime(2024, 6, 30, 12, 0, 21, tzinfo=UTC),
        "duration_s": 21.4,
        "as_of": datetime(2024, 6, 30, 11, 59, 30, tzinfo=UTC),
        "snapshot_hash": "5" * 64,
        "configuration_digest": "c" * 64,
        "run_digest": "0a1b2c3d" * 8,
        "configuration": json.dumps(
            {"run": {"scenarios": SCENARIOS}, "venues": {"binance": "https://fapi.example/v2"}}
        ),
        "inputs": json.dumps(
            [
                {
                    "venue": v,
                    "request": f"GET https://{v}.example/account",
                    "name": f"{v}/account.json",
                    "sha256": "ab" * 32,
                }
                for v in VENUES
            ]
        ),
        "code_version": "0.1.0",
        "versions": json.dumps({"python": "3.11.2", "jax": "0.10.2", "pyarrow": "26.0.0"}),
        "device": "cpu x 2",
        "seed": SEED,
        "generator": "student_t_filtered",
        "scenarios": SCENARIOS,
        "horizon_days": 1.0,
        "shards": 1,
        "portfolios": 0,
        "portfolios_incomplete": 0,
        "accounts": 0,
        "failures": 0,
        "conditions": "[]",
    }
    return {**row, **changes}


def tables_of(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, pa.Table]:
    """Result tables from rows without run ids, in the canonical schemas."""
    out = {}
    for name, schema in RESULTS.items():
        full_rows = [{"run_id": RUN, **row} for row in rows.get(name, [])]
        unknown = {column for row in full_rows for column in row} - set(schema.names)
        assert not unknown, (name, unknown)
        out[name] = pa.Table.from_pylist(full_rows, schema=schema)
        for f in schema:
            assert f.nullable or out[name][f.name].null_count == 0, (name, f.name)
    return out


def _merged(*parts: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [row for part in parts for row in part.get(name, [])] for name in RESULTS}


def _factors() -> list[dict[str, Any]]:
    rows = [
        {"factor": f"price:{a}", "std_horizon": DAILY_VOL[a], "filled_share": 0.0, "source": "history"}
        for a in ASSETS[:3]
    ]
    rows.append({"factor": "vol:ETH", "std_horizon": 0.061, "filled_share": 0.31, "source": "proxy"})
    rows.append({"factor": "peg:USDC", "std_horizon": 0.0004, "filled_share": 0.0, "source": "figures"})
    return rows


@cache
def one_desk() -> dict[str, pa.Table]:
    """One complete portfolio without any condition."""
    rows = _portfolio("quickstart", np.random.default_rng(SEED), 900_000.0)
    rows["runs"] = [_run_row(portfolios=1, accounts=9)]
    rows["factors"] = _factors()
    return tables_of(rows)


def _uncomputed_portfolio(name: str, account: str) -> dict[str, list[dict[str, Any]]]:
    """A portfolio whose only account could not be computed: no figure but what is left out."""
    portfolio = {
        "portfolio_id": name,
        "complete": False,
        "accounts_left_out": json.dumps([account]),
        "left_out_gross_usd": 1_234_567.0,
        "status": "no_complete_account",
        "accounts": 0,
        "positions": 0,
    }
    margin = {
        "portfolio_id": name,
        "account_id": account,
        "node": account,
        "venue": "deribit",
        "margin_mode": "portfolio",
        "status": "incomplete",
        "unit": "BTC",
    }
    return {"portfolio_margin": [portfolio], "account_margin": [margin]}


@cache
def many_desks(count: int = 15) -> dict[str, pa.Table]:
    """Portfolios of all sizes, one without any figure, one incomplete, one to be liquidated, a limit breached."""
    rng = np.random.default_rng(SEED)
    names = [f"desk {chr(ord('A') + k % 26)}{k // 26 or ''}" for k in range(count - 1)]
    parts = [_portfolio(name, rng, float(10 ** rng.uniform(4.5, 7.5))) for name in names]
    parts[1]["account_margin"][0].update(liquidatable=True, health=0.97, near_boundary=True)
    parts[2]["portfolio_margin"][0].update(
        complete=False, status="incomplete", accounts_left_out='["okx:lost"]', left_out_gross_usd=310_000.0
    )
    parts[2]["account_margin"].append(
        {
            "portfolio_id": names[2],
            "account_id": "okx:lost",
            "node": "okx:lost",
            "venue": "okx",
            "margin_mode": "cross",
            "status": "incomplete",
            "unit": "USDT",
        }
    )
    for extra in range(60):  # a long list of positions that do not matter much
        parts[0]["allocation"].append(
            {
                **parts[0]["allocation"][-1],
                "key": f"small {extra:02d}",
                "es_99_usd": 0.5 - extra / 100,
                "value_usd": 10.0,
            }
        )
    rows = _merged(*parts, _uncomputed_portfolio("desk without marks", "deribit:unknown"))
    conditions = [
        {"condition": "limit_breached", "code": 4, "message": "equity_to_es_99 of desk B is 0.9, the bound is 1.0"},
        {"condition": "bad_data", "code": 3, "message": "2 accounts are incomplete"},
    ]
    rows["runs"] = [
        _run_row(portfolios=count, portfolios_incomplete=2, failures=2, conditions=json.dumps(conditions), shards=4)
    ]
    rows["factors"] = _factors()
    rows["failures"] = [
        {
            "venue": "okx",
            "payload": "okx/account.json",
            "path": "data[0].positions[3].markPx",
            "subject": "okx:lost",
            "account_id": "okx:lost",
            "reason": "missing_mark",
            "message": "no mark of WIF-USDT-SWAP and no proxy for it",
        },
        {
            "venue": None,
            "payload": None,
            "path": None,
            "subject": "SOL",
            "reason": "stale",
            "message": "mark is 3 h old",
        },
    ]
    return tables_of(rows)


@cache
def hostile_run() -> dict[str, pa.Table]:
    """Every text column of every table holds text that must not be believed."""
    rows = _portfolio("p", np.random.default_rng(SEED), 50_000.0)
    rows = {name: list(part) for name, part in rows.items()}
    for k, name in enumerate(HOSTILE_NAMES):
        extra = _portfolio(name, np.random.default_rng(k), 20_000.0)
        rows = _merged(rows, extra)
    rows["failures"] = [
        {"venue": n, "payload": n, "path": n, "subject": n, "account_id": n, "reason": "malformed", "message": n}
        for n in HOSTILE_NAMES
    ]
    rows["factors"] = [
        {"factor": f"price:{n}", "std_horizon": 0.1, "filled_share": 0.5, "source": "rule"} for n in HOSTILE_NAMES
    ]
    rows["runs"] = [
        _run_row(
            configuration=json.dumps({n: n for n in HOSTILE_NAMES}),
            inputs=json.dumps([{"venue": n, "request": n, "name": n, "sha256": n} for n in HOSTILE_NAMES]),
            versions=json.dumps({n: n for n in HOSTILE_NAMES}),
            conditions=json.dumps([{"condition": n, "code": 99, "message": n} for n in HOSTILE_NAMES]),
            device=HOSTILE,
            generator=HOSTILE,
            code_version=HOSTILE,
        )
    ]
    for table, columns in {
        "allocation": ("venue", "asset", "key"),
        "greeks": ("underlying",),
        "account_margin": ("venue", "unit"),
        "reconciliation": ("account_id", "unit", "reason", "message"),
        "portfolio_margin": ("health_minimum_account",),
    }.items():
        for number, row in enumerate(rows[table]):
            row.update(dict.fromkeys(columns, HOSTILE_NAMES[number % len(HOSTILE_NAMES)]))
    for row in rows["scenarios_worst"]:
        row["drivers"] = json.dumps([{"key": n, "loss_usd": 1.0} for n in HOSTILE_NAMES])
        row["moves"] = json.dumps(dict.fromkeys(HOSTILE_NAMES, -0.5))
        row["liquidated"] = json.dumps(HOSTILE_NAMES)
    rows["portfolio_margin"][1].update(complete=False, status="incomplete", accounts_left_out=json.dumps(HOSTILE_NAMES))
    return tables_of(rows)


def empty_run() -> dict[str, pa.Table]:
    return tables_of({"runs": [_run_row(inputs="[]", configuration="{}")]})


SAMPLES: dict[str, Callable[[], dict[str, pa.Table]]] = {
    "one desk": one_desk,
    "many desks": many_desks,
    "hostile": hostile_run,
    "empty": empty_run,
}


class Page(HTMLParser):
    """A page taken apart: tags must be balanced; text, tags and attributes are kept."""

    VOID = ("meta", "line", "rect", "polygon", "br")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.errors: list[str] = []
        self.feed(html)
        self.close()
        self.errors += [f"{tag} is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> at line {self.getpos()[0]} closes something else")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module", params=list(SAMPLES))
def html(request: pytest.FixtureRequest) -> str:
    return render_report(SAMPLES[request.param]())


def test_tags_are_balanced_and_anchors_lead_somewhere(html: str) -> None:
    page = Page(html)
    assert page.errors == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert links
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def test_nothing_runs_and_nothing_is_loaded(html: str) -> None:
    page = Page(html)
    assert {tag for tag, _ in page.tags} <= HARMLESS_TAGS
    for tag, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "xlink:href", "action")}, (
            tag
        )
        assert tag == "a" or "href" not in attributes
    lower = html.lower()
    for forbidden in ("<script", "<img", "<iframe", "http://", "https://", "://", "@import", "url(", "<link"):
        assert forbidden not in lower, forbidden
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1
    assert (policy[0] or "").startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_no_figure_is_nan_and_no_python_object_shows(html: str) -> None:
    text = Page(html).text
    for word in ("nan", "None", "inf", "Undefined", "<function", "Markup("):
        assert not re.search(rf"(?<![\w]){re.escape(word)}(?![\w])", text), word


def test_hostile_text_is_shown_as_text() -> None:
    html = render_report(hostile_run())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}" in html
    assert "49" not in Page("".join(re.findall(r"<code>.*?</code>", html))).text
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
    page = Page(html)
    assert HOSTILE in page.text
    assert "https://evil.example/" in page.text, "the address is read, though nothing takes it for a link"
    assert "&lt;b&gt;" in page.text, "escaped once, not twice and not undone"
    shown = re.sub(r' (title|aria-label)="[^"]*"', "", html)
    assert "x" * 300 not in re.sub(
        r"<pre>.*?</pre>|<title>.*?</title>|<li>.*?</li>|<dd>.*?</dd>", "", shown, flags=re.S
    )
    assert "x" * 400 in html, "the whole of a long name stays in its title"


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    first = write_report(many_desks(), tmp_path / "new" / "folder" / "report.html")
    second = write_report(many_desks(), tmp_path / "again.html")
    assert first == tmp_path / "new" / "folder" / "report.html"
    assert first.read_bytes() == second.read_bytes()
    write_report(one_desk(), first)
    assert first.read_bytes() != second.read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == ["report.html"]


def test_every_section_is_there_in_order() -> None:
    for sample in (one_desk, many_desks):
        text = re.sub(r"<style>.*?</style>", "", render_report(sample()), flags=re.S)
        # the accounts of a single portfolio are listed once, in its own section
        sections = [s for s in SECTIONS if sample is many_desks or s != "Accounts nearest to liquidation"]
        places = [re.search(rf"<h[123]>{re.escape(section)}", text) for section in sections]
        assert all(places), [s for s, place in zip(sections, places, strict=True) if not place]
        starts = [place.start() for place in places if place]
        assert starts == sorted(starts)
    assert render_report(many_desks()).count("<h3>Equity waterfall") == 14


def test_the_figures_are_those_of_the_tables() -> None:
    tables = one_desk()
    page = Page(render_report(tables))
    row = tables["portfolio_margin"].to_pylist()[0]
    for column in (
        "equity_usd",
        "es_99_pooled_usd",
        "es_995_pooled_usd",
        "native_maintenance_usd",
        "es_99_silo_sum_usd",
    ):
        assert f"{row[column]:,.0f}" in page.text, column
        assert f"USD {compact(row[column])}".replace("\u00a0", " ") in page.text or column.startswith(
            ("es_995", "es_99_silo")
        ), column
    assert f"{row['health_minimum']:.3f}" in page.text
    assert "5" * 64 in page.text
    assert str(SEED) in page.text
    assert "2024-06-30 11:59:30 UTC" in page.text
    # the contributions of the sample add up, and so does the last line of the page's table
    euler = sum(a["es_99_usd"] for a in tables["allocation"].to_pylist())
    assert euler == pytest.approx(row["es_99_pooled_usd"], rel=1e-9)
    total = re.search(r'<tr class="sum">.*?</tr>', render_report(tables), flags=re.S)
    assert total
    assert full(row["es_99_pooled_usd"]) in total.group()
    assert "100.0\u00a0%" in total.group()


@pytest.mark.parametrize(
    ("change", "sentence", "grade"),
    [
        ({}, "No account can be liquidated now, no limit is breached, all data are complete.", "good"),
        ({"code": 4}, "A limit is breached.", "bad"),
        ({"code": 5}, "A venue did not answer.", "attention"),
        ({"code": 3}, "Some input rows could not be used; every portfolio is complete.", "attention"),
        ({"code": 1}, "The run reports 1 condition.", "attention"),
    ],
)
def test_the_verdict_says_what_holds(change: dict[str, int], sentence: str, grade: str) -> None:
    tables = dict(one_desk())
    conditions = [{"condition": "x", "message": "why", **change}] if change else []
    run = {**tables["runs"].to_pylist()[0], "conditions": json.dumps(conditions)}
    tables["runs"] = pa.Table.from_pylist([run], schema=RESULTS["runs"])
    row = tables["portfolio_margin"].to_pylist()[0]
    likely = (
        f"; {row['p_liquidation_largest_account']} is liquidated at the horizon "
        f"in {row['p_liquidation_largest']:.1%} of cases."
    )
    assert row["p_liquidation_largest"] >= 0.01
    assert f'<p class="verdict {grade}">{sentence.removesuffix(".")}{likely}</p>' in render_report(tables)


def test_the_verdict_leaves_out_an_unlikely_liquidation() -> None:
    tables = dict(one_desk())
    row = tables["portfolio_margin"].to_pylist()[0] | {"p_liquidation_largest": 0.0099}
    tables["portfolio_margin"] = pa.Table.from_pylist([row], schema=RESULTS["portfolio_margin"])
    assert "all data are complete.</p>" in render_report(tables)


def test_the_verdict_of_a_grave_run_names_everything() -> None:
    html = render_report(many_desks())
    assert (
        '<p class="verdict bad">1 account can be liquidated now; a limit is breached; 2 of 15 portfolios incomplete: '
        "limits there are undecided; " in html
    )
    assert "the bound is 1.0" in html


def test_what_is_missing_is_said_and_never_zero() -> None:
    html = render_report(many_desks())
    row = re.search(r"<tr[^>]*>\s*<td class=\"name\">desk without marks</td>.*?</tr>", html, flags=re.S)
    assert row
    cells = Page(row.group()).text
    assert "no complete account" in cells
    assert cells.count("n/a") == 9
    assert not re.search(r"\d", cells)
    assert "left out deribit:unknown; last known gross value left out USD 1.23 M" in Page(html).text
    assert "14 of 15 portfolios computed" in html
    lost = re.search(r'<tr class="undecided">\s*<td class="name">okx:lost</td>.*?</tr>', html, flags=re.S)
    assert lost
    assert "incomplete" in lost.group()
    assert lost.group().count("n/a") == 9


def test_a_single_portfolio_without_figures_is_no_blank_page() -> None:
    html = render_report(tables_of({**_uncomputed_portfolio("p", "deribit:x"), "runs": [_run_row()]}))
    page = Page(html)
    assert page.errors == []
    for sentence in (
        "1 of 1 portfolio incomplete: limits there are undecided.",
        "0 of 1 portfolio computed",
        "No portfolio of this run could be computed.",
        "No account has a health figure.",
        "No portfolio of this run has an allocation",
    ):
        assert sentence in page.text
    assert "USD 0" not in page.text


def test_the_reconciliation_is_a_table_of_differences_by_size() -> None:
    tables = many_desks()
    html = render_report(tables)
    section = html[html.index('<section id="reconciliation">') : html.index('<section id="data">')]
    rows = [row for row in tables["reconciliation"].to_pylist() if row["status"] != "not_reported"]
    rows.sort(key=lambda row: -abs(row["difference_usd"]))
    shown = re.findall(r"<tr([^>]*)>\s*<td class=\"name\">([^<]+)</td><td>([^<]+)</td>", section)
    assert len(rows) > RECONCILIATION_ROWS == len(shown)
    assert f"{len(rows) - RECONCILIATION_ROWS:,} more figures are in the result store." in section
    for (mark, account, figure), row in zip(shown, rows, strict=False):
        assert (account, figure) == (row["account_id"], row["figure"].replace("_", " "))
        assert ("alarm" in mark) is row["beyond_bound"]
    assert {mark for mark, _, _ in shown} == {' class="alarm"', ' class="undecided"', ""}
    counts = dict(re.findall(r'<span class="status \w+">([a-z ]+)</span> ([\d,]+)', section))
    assert counts["not reported"] == str(tables["reconciliation"].num_rows - len(rows))
    assert full(rows[0]["difference_usd"], 2) in section
    assert "−0.0021\u00a0%" in section


def test_a_run_without_compared_figures_says_so() -> None:
    assert "No figure of this run was compared." in render_report(empty_run())


def test_an_empty_run_says_so() -> None:
    text = Page(render_report(empty_run())).text
    for sentence in (
        "The run holds no portfolio.",
        "No factors.",
        "No input row was refused.",
        "No inputs are listed.",
    ):
        assert sentence in text


def test_long_runs_are_cut_and_say_so() -> None:
    rng = np.random.default_rng(SEED)
    parts = [_portfolio(f"p{k:02d}", rng, 1e6) for k in range(DETAILED_PORTFOLIOS + 2)]
    rows = _merged(*parts)
    rows["runs"] = [_run_row()]
    html = render_report(tables_of(rows))
    assert html.count('<section class="portfolio"') == DETAILED_PORTFOLIOS
    assert "2 more portfolios have details in the result store." in html
    many = render_report(many_desks())
    assert re.search(r"\d+ positions in between", many)


def test_names_of_data_do_not_mix_with_the_totals_of_the_heat_map() -> None:
    rows = _portfolio("p", np.random.default_rng(SEED), 1e6)
    position = rows["allocation"][0]
    rows["allocation"] = [
        {
            **position,
            "key": f"{venue} {k}",
            "venue": venue,
            "asset": f"A{k:02d}",
            "es_99_usd": 100.0 - k,
            "value_usd": 1.0,
        }
        for venue in ("total", "other", None)
        for k in range(13)
    ]
    rows["runs"] = [_run_row()]
    html = render_report(tables_of(rows))
    tips = re.findall(r"<title>(\w+(?: \w+)?, \w+): ES USD ([^,]+), value USD ([^<]+)</title>", html)
    venue_sum = sum(100.0 - k for k in range(13))
    assert tips.count(("total, total", "1.22\u00a0k", "13.0")) == 1, "the venue that is called total"
    assert tips.count(("other, total", "1.22\u00a0k", "13.0")) == 1
    assert tips.count(("no venue, total", "1.22\u00a0k", "13.0")) == 1
    assert tips.count(("total, total", compact(3 * venue_sum), "39.0")) == 1
    assert tips.count(("no venue, other", compact(90.0 + 89.0 + 88.0), "3.00")) == 1, "three assets beyond the tenth"


def test_what_is_no_run_is_refused() -> None:
    tables = one_desk()
    with pytest.raises(StoreError, match=r"missing \['greeks'\]"):
        render_report({name: table for name, table in tables.items() if name != "greeks"})
    with pytest.raises(StoreError, match="found 0 run rows"):
        render_report({**tables, "runs": tables["runs"].slice(0, 0)})
    run = {**tables["runs"].to_pylist()[0], "conditions": "{broken"}
    with pytest.raises(StoreError, match=r"runs\.conditions: expected JSON"):
        render_report({**tables, "runs": pa.Table.from_pylist([run], schema=RESULTS["runs"])})


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.004, "0"),
        (-0.004, "0"),
        (0.05, "0.05"),
        (9.999, "10.0"),
        (812.4, "812"),
        (999.9, "1.00\u00a0k"),
        (-310_000.0, "−310\u00a0k"),
        (1_236_000.0, "1.24\u00a0M"),
        (999_999.0, "1.00\u00a0M"),
        (12_345_678.0, "12.3\u00a0M"),
        (4.5e9, "4.50\u00a0bn"),
        (-1.2e15, "−1,200\u00a0tn"),
    ],
)
def test_compact_amounts(amount: float, text: str) -> None:
    assert compact(amount) == text


def test_full_figures() -> None:
    assert full(1234567.4) == "1,234,567"
    assert full(-1234.5, 2) == "−1,234.50"
    assert full(-0.2) == "0"
    assert full(None) == '<span class="na">n/a</span>'
    assert percent(0.0) == "0.00 %"
    assert percent(0.00001) == "< 0.01 %"
    assert percent(-0.00001) == "> −0.01 %"
    assert percent(-0.25, 1) == "−25.0 %"
    assert native(0.012345678) == "0.012346"
    assert native(-250.0) == "−250.00"
    assert ratio(1.0500001) == "1.050"
    assert ratio(2.0**256) == "> 1,000,000"
    assert difference(0.0, 5.0) == "0 %"
    assert difference(1e-9, 1e-3) == "0.0001 %"
    assert difference(-1e-8, 1.0) == "< 0.0001 %"
    assert difference(-0.02, -2.0) == "−1.0000 %"
    assert difference(0.5, 0.0) == "0.500000"
    assert difference(0.5, None) == '<span class="na">n/a</span>'


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2e6, 7.7e6), (0.0, 999.0), (1e-4, 3e-4), (-5.0, -1.0)])
def test_ticks_are_round_inside_and_even(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    step = ticks[1] - ticks[0]
    assert np.allclose(np.diff(ticks), step, rtol=1e-9)
    mantissa = step / 10 ** np.floor(np.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6
    assert nice_ticks(2.0, 2.0) == [2.0]


# -- charts --------------------------------------------------------------------------------------------------------


def _boxes(svg: str, colors: Sequence[str]) -> list[tuple[float, float, float, float]]:
    """(x, y, width, height) of the boxes of these colors."""
    found = re.findall(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)" fill="(#\w+)"', svg)
    return [tuple(float(part) for part in box[:4]) for box in found if box[4] in colors]  # type: ignore[misc]


ALL_COLORS = (report_charts.BLUE, report_charts.ORANGE, report_charts.NEUTRAL, report_charts.INK, report_charts.SKY)


def test_ladder_bars_are_in_proportion() -> None:
    svg = str(
        ladder_chart(
            [
                LadderStep("alone", 4e6, 5e6, "99.5 %"),
                LadderStep("native", None, None, "initial"),
                LadderStep(HOSTILE, 1e6, 2e6, "99.5 %", emphasis=True),
            ],
            title=HOSTILE,
        )
    )
    first, second = _boxes(svg, ALL_COLORS)
    assert first[0] == second[0]
    assert first[2] == pytest.approx(4 * second[2], abs=4 * COORDINATE)
    assert svg.count("<polygon") == 2
    assert ">n/a</text>" in svg
    assert "<script" not in svg
    assert Page(svg).errors == []


def test_waterfall_steps_hang_together() -> None:
    svg = str(
        waterfall_chart(
            [
                WaterfallStep("a", 300.0),
                WaterfallStep("b", -100.0),
                WaterfallStep("c", 250.0),
                WaterfallStep("sum", 450.0, "total"),
                WaterfallStep("need", -600.0),
                WaterfallStep("left", -150.0, "total"),
            ],
            title="t",
        )
    )
    boxes = _boxes(svg, ALL_COLORS)
    assert len(boxes) == 6
    unit = boxes[0][2] / 300.0
    zero = boxes[0][0]
    spans = [(0, 300), (200, 300), (200, 450), (0, 450), (-150, 450), (-150, 0)]
    for box, (start, end) in zip(boxes, spans, strict=True):
        assert box[0] == pytest.approx(zero + start * unit, abs=2 * COORDINATE)
        assert box[2] == pytest.approx((end - start) * unit, abs=2 * COORDINATE)
    assert "+300" in svg
    assert "−600" in svg


def test_histogram_heights_are_probability_per_width() -> None:
    bins = [(-2.0, -1.0, 0.2), (-1.0, 0.0, 0.4), (0.0, 2.0, 0.4)]
    svg = str(histogram_chart(bins, [("VaR 99 %", 1.5), ("ES 99 %", 1.9)], title="t", tail_from=0.0))
    first, second, third = _boxes(svg, ALL_COLORS)
    assert second[3] == pytest.approx(2 * first[3], abs=2 * COORDINATE)
    assert third[3] == pytest.approx(first[3], abs=2 * COORDINATE), "twice the probability over twice the width"
    assert len(_boxes(svg, (report_charts.ORANGE,))) == 1
    assert "VaR 99 %" in svg
    assert svg.count("stroke-dasharray") == 1
    tail = str(histogram_chart(bins, [], title="t", tail_from=0.0, only_tail=True))
    assert len(_boxes(tail, ALL_COLORS)) == 1
    far_right = str(histogram_chart(bins, [("VaR 99 %", 1.8), ("ES 99 %", 1.99)], title="t", tail_from=0.0))
    labels = re.findall(r'text-anchor="(\w+)" fill="#1f2933" font-size="11">([^<]+)', far_right)
    assert labels == [("end", "ES 99 %: 1.99"), ("end", "VaR 99 %: 1.80")], "no label leaves the picture or is crossed"
    assert "no scenario losses" in histogram_chart([], [], title="t")


def test_heat_map_is_deep_where_the_figure_is_large() -> None:
    cells: list[list[HeatCell | None]] = [
        [HeatCell(100.0, 1e6), HeatCell(-100.0, -1e6), HeatCell(0.0, 0.0)],
        [HeatCell(1.0, 5.0), None, HeatCell(1.0, 5.0)],
        [HeatCell(101.0, 1e6), HeatCell(-100.0, -1e6), HeatCell(1.0, 5.0)],
    ]
    svg = str(heat_map(["v", "w", "total"], ["A", HOSTILE, "total"], cells, title="t"))
    fills = re.findall(r'<rect [^>]*fill="(#\w+)"', svg)
    assert len(fills) == 9
    assert fills[0] == report_charts.ORANGE
    assert fills[1] == report_charts.BLUE
    assert fills[2] == fills[6] == fills[8], "totals are not colored"
    assert sum(int(fills[3][k : k + 2], 16) for k in (1, 3, 5)) > 720, "a small figure is nearly white"
    assert "<script" not in svg


@pytest.mark.parametrize(
    "svg",
    [
        ladder_chart([LadderStep("a", 0.0, 0.0, "s")], title="t"),
        ladder_chart([], title="t"),
        ladder_chart([LadderStep("a", -1.0, -2.0, "s")], title="t"),
        waterfall_chart([], title="t"),
        waterfall_chart([WaterfallStep("a", 0.0, "total")], title="t"),
        histogram_chart([(0.0, 0.0, 1.0)], [], title="t"),
        histogram_chart([(0.0, 1.0, 0.0)], [("VaR", 40.0)], title="t"),
        heat_map([], [], [], title="t"),
    ],
)
def test_edge_cases_draw_something_sound(svg: str) -> None:
    page = Page(str(svg))
    assert page.errors == []
    assert page.tags[0][0] == "svg"
    assert page.tags[0][1]["role"] == "img"
    assert (page.tags[0][1]["viewbox"] or "").startswith("0 0 ")
    assert page.tags[1][0] == "title"
    assert "nan" not in str(svg)


if __name__ == "__main__":
    for label, sample in SAMPLES.items():
        write_report(sample(), Path(sys.argv[1]) / f"{label.replace(' ', '_')}.html")

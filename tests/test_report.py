"""The report of a run: whole, safe and equal for equal tables; every figure in it is one of the tables."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from aggregator.errors import StoreError
from aggregator.report import DETAILED_PORTFOLIOS, RECONCILIATION_ROWS, full, render_report, write_report
from aggregator.report_charts import compact
from aggregator.schema import RESULTS
from tests.report_samples import (
    HOSTILE,
    SAMPLES,
    SEED,
    Page,
    drawn_portfolio,
    empty_run,
    hostile_run,
    many_desks,
    merged_rows,
    one_desk,
    run_row,
    tables_of,
    uncomputed_portfolio,
)

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
    html = render_report(tables_of({**uncomputed_portfolio("p", "deribit:x"), "runs": [run_row()]}))
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
    parts = [drawn_portfolio(f"p{k:02d}", rng, 1e6) for k in range(DETAILED_PORTFOLIOS + 2)]
    rows = merged_rows(*parts)
    rows["runs"] = [run_row()]
    html = render_report(tables_of(rows))
    assert html.count('<section class="portfolio"') == DETAILED_PORTFOLIOS
    assert "2 more portfolios have details in the result store." in html
    many = render_report(many_desks())
    assert re.search(r"\d+ positions in between", many)


def test_names_of_data_do_not_mix_with_the_totals_of_the_heat_map() -> None:
    rows = drawn_portfolio("p", np.random.default_rng(SEED), 1e6)
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
    rows["runs"] = [run_row()]
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

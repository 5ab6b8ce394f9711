"""The report of a run: whole, safe and equal for equal tables; every figure in it is one of the tables."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from aggregator.errors import StoreError
from aggregator.report import DETAILED_PORTFOLIOS, RECONCILIATION_ROWS, render_report, write_report
from aggregator.report_charts import compact
from aggregator.report_requirement import ADD_ONS, NODE_ROWS
from aggregator.report_reverse_stress import PRICE_ROWS
from aggregator.report_stress import LARGEST_LOSSES, LARGEST_UNCOVERED
from aggregator.report_words import far, full, full_with_error, move, native, percent, ratio, times
from aggregator.schema.results import RESULTS
from tests.report_samples import (
    HOSTILE,
    SAMPLES,
    SEED,
    STRESSES,
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
    *("details", "summary", "code", "span", "svg", "text", "line", "path", "rect", "polygon"),
}
SECTIONS = (
    "Margin report",
    "Portfolios",
    "Margin ladder",
    "Accounts nearest to liquidation",
    "Portfolio ",
    "Unified requirement",
    "Requirement by node",
    "What collateral can do in time",
    "Named stresses",
    "Smallest move that liquidates",
    "Losses over the horizon",
    "Cost of locked capital",
    "Equity waterfall",
    "Where the expected shortfall comes from",
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
    *_, total = re.findall(r'<tr class="sum">.*?</tr>', render_report(tables), flags=re.S)
    assert full(row["es_99_pooled_usd"]) in total
    assert "100.0\u00a0%" in total


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
    assert cells.count("n/a") == 11
    assert not re.search(r"\d", cells)
    assert "left out deribit:unknown; last known gross value left out USD 1.23 M" in Page(html).text
    assert "14 of 15 portfolios computed" in html
    lost = re.search(r'<tr class="undecided">\s*<td class="name">okx:lost</td>.*?</tr>', html, flags=re.S)
    assert lost
    assert "incomplete" in lost.group()
    assert lost.group().count("n/a") == 10


def _between(html: str, start: str, end: str) -> str:
    begin = html.index(start)
    return html[begin : html.index(end, begin)]


def _numbers(text: str) -> list[str]:
    return re.findall(r"−?\d[\d,]*(?:\.\d+)?", text)


def _cells(html: str) -> list[str]:
    return [Page(cell).text.strip() for cell in re.findall(r'<td class="n(?: strong)?">.*?</td>', html, flags=re.S)]


def _changed(
    name: str, tables: dict[str, pa.Table], change: Mapping[str, object], **which: object
) -> dict[str, pa.Table]:
    """The tables with the columns of `change` in the rows of table `name` that match `which`."""
    rows = [row | change if all(row[k] == v for k, v in which.items()) else row for row in tables[name].to_pylist()]
    return {**tables, name: pa.Table.from_pylist(rows, schema=RESULTS[name])}


def test_every_number_of_the_requirement_and_the_stresses_is_in_a_table() -> None:
    tables = one_desk()
    html = render_report(tables)
    written: set[str] = set()
    names = (
        "portfolio_margin",
        "account_margin",
        "requirement",
        "node_margin",
        "stress",
        "reverse_stress",
        "nodes",
        "routes",
    )
    for name in names:
        for row in tables[name].to_pylist():
            for column, value in row.items():
                if isinstance(value, float):
                    forms = [full(value), ratio(value), times(value)]
                    forms += [percent(value, decimals) for decimals in (0, 1, 2)]
                    forms += [f"USD {compact(value)}"] if column.endswith("_usd") else []
                    forms += [full(value, 2)] if column == "distance" else []
                    forms += [far(value / row["trigger"] - 1)] if column == "health" and row["trigger"] else []
                    forms += [f"{value:,.1f}"] if column.startswith("hours") else []
                    forms += [native(value)] if name == "account_margin" else []
                    written |= {number for form in forms for number in _numbers(str(form))}
                elif column in ("liquidated", "insolvent"):
                    written.add(str(len(json.loads(value))))
    parts = [
        _between(html, '<section id="portfolios">', '<section id="ladder">'),
        _between(html, "The figures of the ladder", "</section>"),
        _between(html, "<h3>Requirement by node", "<h3>What collateral"),
        _between(html, "<h3>What collateral", "<h3>Named stresses"),
        _between(html, "<h3>Named stresses", "<h3>Smallest move"),
        _between(html, "<h3>Smallest move", "<h3>Losses over"),
        _between(html, "<h3>Cost of locked capital", "<details>"),
    ]
    shown = [number for part in parts for cell in _cells(part) for number in _numbers(cell)]
    assert len(shown) > 200
    assert set(shown) <= written
    tiles = Page(_between(html, '<div class="tiles">', "<nav>"))
    labels = {"99"}  # of the label ES 99 %
    assert set(_numbers(tiles.text)) <= {*written, *labels, *_numbers(STRESSES[9][0])}


def test_the_requirement_is_built_up_before_the_reader() -> None:
    tables = one_desk()
    html = render_report(tables)
    row = tables["portfolio_margin"].to_pylist()[0]
    (whole,) = [r for r in tables["requirement"].to_pylist() if r["scope"] == "unified" and r["level"] == "maintenance"]
    base_parts = {"es_blend_usd": "ES blend", "grid_usd": "grid", "stress_usd": "binding stress", "floor_usd": "floor"}
    (binding,) = [column for column in base_parts if whole[column] == whole["base_usd"]]
    chart = _between(html, "<h3>Unified requirement", "<h3>Key figures")
    steps = re.findall(r"<rect [^>]*><title>([^<]*): USD ([^<]*)</title>", chart)
    assert dict(steps) == {
        f"Base: {base_parts[binding]}": compact(whole["base_usd"]),
        **{label: f"+{compact(whole[column])}" for column, label in ADD_ONS.items() if whole[column] > 0},
        "Ideal: all pooled": compact(row["requirement_ideal_usd"]),
        "Offset not granted": f"+{compact(row['requirement_effective_usd'] - row['requirement_ideal_usd'])}",
        "Unified margin": compact(row["requirement_effective_usd"]),
    }
    ladder = _between(html, '<section id="ladder">', "<details>")
    for column in ("requirement_silo_usd", "requirement_effective_usd", "requirement_ideal_usd"):
        assert f": USD {compact(row[column])}</title>" in ladder, column
    table = _between(html, "<h3>Requirement by node", "</table>")
    scopes = re.findall(r'<td class="name">([^<]*)</td>', table)
    assert scopes[-1] == "All pooled"
    by_size = sorted(
        (r for r in tables["requirement"].to_pylist() if r["level"] == "maintenance" and r["scope"] != "unified"),
        key=lambda r: -r["requirement_usd"],
    )
    assert scopes[:-1] == [r["scope"] for r in by_size]
    last = table[table.index("All pooled") :]
    for column in base_parts:
        mark = "n strong" if column == binding else "n"
        assert f'<td class="{mark}">{full(whole[column])}</td>' in last, "the part that binds stands out"
    sentence = Page(_between(html, '<p class="says">The nodes alone need', "</p>")).text
    assert (
        f"{percent(row['offset_share'], 0)} of the offset is granted: {full(row['offset_benefit_usd'])}"
        in sentence.replace("\u00a0", " ")
    )
    assert "all prices at -1 of the scan" in sentence
    assert full(row["unmeasured_usd"]) in sentence


def test_the_expected_shortfall_has_its_error_beside_it() -> None:
    tables = one_desk()
    row = tables["portfolio_margin"].to_pylist()[0]
    shown = f"{compact(row['es_99_pooled_usd'])} ± {compact(row['es_99_pooled_error_usd'])}".replace("\u00a0", " ")
    page = render_report(tables).replace("\u00a0", " ")
    assert shown in _between(page, '<div class="tiles">', "<nav>")
    assert shown in _between(page, '<section id="ladder">', "</section>")
    exact = str(full_with_error(row["es_99_pooled_usd"], row["es_99_pooled_error_usd"])).replace("\u00a0", " ")
    assert page.count(exact) == 3, "portfolios, ladder, key figures"
    unknown = dict.fromkeys((f"{m}_{c}_pooled_error_usd" for m in ("var", "es") for c in ("99", "995")), None)
    without = Page(render_report(_changed("portfolio_margin", tables, unknown)))
    assert without.errors == []
    assert not re.search(r"\d\s?(k|M)?\s?±", without.text)


def test_the_stresses_stand_by_loss_and_none_that_uncovers_is_lost() -> None:
    tables = many_desks()
    rows = [row for row in tables["stress"].to_pylist() if row["portfolio_id"] == "desk A"]
    html = render_report(tables)
    start = html.index("Portfolio desk A</h2>")
    table = _between(html[start:], "<h3>Named stresses", "<h3>Smallest move").replace("\u00a0", " ")
    shown = re.findall(r'<tr([^>]*)><td class="name">([^<]*?)(?: <span[^>]*>binding</span>)?</td>', table)
    by_loss = sorted(rows, key=lambda row: -row["loss_usd"])
    names = [name for _, name in shown]
    assert names == [row["stress"] for row in by_loss if row["stress"] in names], "in order of their loss"
    assert set(names) >= {row["stress"] for row in by_loss[:LARGEST_LOSSES]}
    rest = sorted(by_loss[LARGEST_LOSSES:], key=lambda row: -row["uncovered_usd"])[:LARGEST_UNCOVERED]
    assert any(row["uncovered_usd"] > 0 for row in rest)
    assert set(names) == {row["stress"] for row in by_loss[:LARGEST_LOSSES]} | {
        row["stress"] for row in rest if row["uncovered_usd"] > 0
    }
    assert f"{len(rows) - len(names)} more stresses, neither among the largest losses" in table
    marks = {name: mark for mark, name in shown}
    for row in rows:
        if row["stress"] in marks:
            expected = (
                ' class="alarm"'
                if row["uncovered_pooled_usd"] > 0
                else ' class="lacking"'
                if row["uncovered_usd"] > 0
                else ""
            )
            assert marks[row["stress"]] == expected, row["stress"]
    assert len(set(marks.values())) > 1
    assert table.count(">binding</span>") == sum(row["binding"] for row in rows if row["stress"] in names) == 1
    assert "1 of them binds the requirement" in table


def test_a_stress_says_what_of_it_is_depth_and_what_it_does_not_touch() -> None:
    tables = one_desk()
    table = _between(render_report(tables), "<h3>Named stresses", "<h3>Smallest move")
    binding = next(row for row in tables["stress"].to_pylist() if row["binding"])
    assert binding["depth_loss_usd"] > 0
    assert "of it depth" in table
    assert f'<td class="n">{full(binding["depth_loss_usd"])}</td>' in table
    untouched = {"without_effect": json.dumps(["peg.A", "peg.B", "peg.C", HOSTILE, "peg.E"])}
    without = _changed("stress", tables, untouched, stress=binding["stress"])
    without = _changed("stress", without, {"depth_loss_usd": 0.0})
    table = _between(render_report(without), "<h3>Named stresses", "<h3>Smallest move")
    assert "nothing held here: peg.A, peg.B, peg.C and 2 more" in Page(table).text
    assert "of it depth" not in table
    older = _changed("stress", tables, dict.fromkeys(("depth_loss_usd", "without_effect")))
    table = _between(render_report(older), "<h3>Named stresses", "<h3>Smallest move")
    assert "of it depth" not in table
    assert "nothing held here" not in table


def _moves_section(html: str, portfolio: str) -> str:
    start = html.index(f"Portfolio {portfolio}</h2>")
    return _between(html[start:], "<h3>Smallest move that liquidates", "<h3>Losses over")


def _move_rows(section: str) -> list[tuple[str, list[str]]]:
    """(class, cells as text) of every row of the section's tables."""
    rows = re.findall(r"<tr( class=\"\w+\")?>(<td.*?)</tr>", section, flags=re.S)
    return [
        (mark, [Page(cell).text.strip() for cell in re.findall(r"<td.*?</td>", cells, flags=re.S)])
        for mark, cells in rows
    ]


def test_the_smallest_moves_are_those_of_the_table() -> None:
    tables = one_desk()
    rows = tables["reverse_stress"].to_pylist()
    section = _moves_section(render_report(tables), "quickstart")
    main, _, folded = section.partition("<details>")
    joint = next(row for row in rows if row["kind"] == "joint")
    prices = sorted((row for row in rows if row["kind"] == "asset"), key=lambda row: row["distance"])
    accounts = [row for row in rows if row["kind"] == "account" and row["distance"] is not None]
    accounts.sort(key=lambda row: row["distance"])
    assert len(accounts) > 2, "the sample has near and far accounts"
    assert any(row["kind"] == "account" and row["status"] == "none" for row in rows)
    whats = ["all together", *(f"{row['subject'].removeprefix('price:')} price" for row in prices)]
    for part, expected, firsts, seconds in (
        (main, [joint, *prices], whats, [row["account_id"] for row in (joint, *prices)]),
        (folded, accounts, [row["subject"] for row in accounts], [row["venue"] for row in accounts]),
    ):
        shown = _move_rows(part)
        assert [cells[0] for _, cells in shown] == firsts, "nearest first"
        assert [cells[1] for _, cells in shown] == seconds
        for (mark, cells), row in zip(shown, expected, strict=True):
            assert mark == ""
            assert cells[2] == full(row["distance"], 2)
            assert cells[4].replace("\u00a0", " ") == percent(row["probability"])
            moves = sorted(json.loads(row["moves"]).items(), key=lambda pair: -abs(pair[1]))
            visible = [(name, value) for name, value in moves if abs(value) >= 0.0005]
            text = re.sub(r"\s+", " ", cells[3].replace("\u00a0", " ")).replace(" ;", ";")
            assert text.split(" and ")[0] == "; ".join(
                f"{name.removeprefix('price:')} price {move(value)}" for name, value in visible
            )
            assert ("and 1 smaller" in text) is (len(visible) < len(moves))


def test_what_no_move_liquidates_is_no_distance() -> None:
    tables = one_desk()
    nothing = dict.fromkeys(("distance", "moves", "probability", "account_id", "venue"))
    none = _changed("reverse_stress", tables, nothing | {"status": "none"})
    section = _moves_section(render_report(none), "quickstart")
    assert "3 prices alone liquidate nothing." in Page(section).text
    assert [cells for _, cells in _move_rows(section)] == [["all together", "none found", "n/a", "–", "n/a"]]
    failed = _changed("reverse_stress", none, {"status": "calculation"}, subject="price:ETH")
    (_, joint), (mark, ether) = _move_rows(_moves_section(render_report(failed), "quickstart"))
    assert joint[0] == "all together"
    assert mark == ' class="undecided"'
    assert ether == ["ETH price calculation", "n/a", "n/a", "–", "n/a"]


def test_an_account_that_is_gone_now_is_marked_among_the_moves() -> None:
    tables = many_desks()
    (account,) = [row["account_id"] for row in tables["account_margin"].to_pylist() if row["liquidatable"]]
    section = _moves_section(render_report(tables), "desk B")
    gone = [cells for mark, cells in _move_rows(section) if mark == ' class="alarm"']
    assert [cells[0] for cells in gone] == ["all together liquidatable now", f"{account} liquidatable now"]
    assert gone[0][1] == account
    assert all(cells[2:] == ["0.00", "–", "n/a"] for cells in gone)


def test_many_prices_are_cut_and_say_so() -> None:
    tables = one_desk()
    rows = tables["reverse_stress"].to_pylist()
    price = next(row for row in rows if row["kind"] == "asset")
    rows += [price | {"subject": f"price:A{k:02d}", "distance": 20.0 + k} for k in range(PRICE_ROWS)]
    html = render_report({**tables, "reverse_stress": pa.Table.from_pylist(rows, schema=RESULTS["reverse_stress"])})
    assert "3 more prices, farther away, are in the result store." in html


def test_a_liquidation_on_the_way_stands_beside_that_at_the_horizon() -> None:
    tables = one_desk()
    html = render_report(tables)
    row = tables["portfolio_margin"].to_pylist()[0]
    tile = Page(_between(html, "Largest P(any liquidation)", "</div></div>")).text.replace("\u00a0", " ")
    assert f"at the horizon; on the way {percent(row['p_liquidation_path'])}" in tile
    sentence = f"with a probability of {percent(row['p_liquidation_path'])}, in half of these cases within "
    assert f"{sentence}{row['hours_to_liquidation_50']:.1f} h." in Page(html).text.replace("\u00a0", " ")
    table = _between(html, "<h3>Accounts by health", "</table>")
    names = [Page(cell).text.strip() for cell in re.findall(r"<th.*?</th>", table)]
    at = names.index("on the way, median")
    assert names[at - 1] == "P(liq.) at horizon"
    shown = {cells[0]: cells[at - 1 : at + 1] for _, cells in _move_rows(table.replace("\n", ""))}
    accounts = tables["account_margin"].to_pylist()
    assert len(shown) == len(accounts)
    assert {0.0} < {account["p_liquidation_path"] for account in accounts}, "some are never liquidated"
    for account in accounts:
        hours = account["hours_to_liquidation_50"]
        assert [cell.replace("\u00a0", " ") for cell in shown[account["account_id"]]] == [
            percent(account["p_liquidation_at_horizon"]),
            percent(account["p_liquidation_path"])
            if hours is None
            else f"{percent(account['p_liquidation_path'])} {hours:.1f} h",
        ]


def test_a_portfolio_that_no_path_liquidates_is_said_to_be() -> None:
    never = {"p_liquidation_path": 0.0} | dict.fromkeys(f"hours_to_liquidation{part}" for part in ("", "_10", "_50"))
    text = Page(render_report(_changed("portfolio_margin", one_desk(), never))).text
    assert "No account is liquidated on any path." in text
    assert "Some account is liquidated" not in text


def test_a_run_without_paths_and_reverse_stress_shows_no_empty_columns() -> None:
    tables = one_desk()
    for name in ("portfolio_margin", "account_margin"):
        new = [f.name for f in RESULTS[name] if "path" in f.name or f.name.startswith("hours_to")]
        assert len(new) == 5
        tables = _changed(name, tables, dict.fromkeys(new))
    html = render_report({**tables, "reverse_stress": tables["reverse_stress"].slice(0, 0)})
    page = Page(html)
    assert page.errors == []
    assert "on the way" not in page.text.lower()
    assert "n/a" not in _between(html, '<section id="portfolios">', '<section id="ladder">')
    section = _moves_section(html, "quickstart")
    assert "<p>Not computed in this run.</p>" in section
    assert "<table" not in section


def test_a_run_without_requirement_and_stresses_says_so() -> None:
    """An old run: both tables are empty and the new columns null; nothing turns into a zero."""
    tables = one_desk()
    names = [f.name for f in RESULTS["portfolio_margin"]]
    new = names[names.index("var_99_pooled_error_usd") :]
    tables = _changed("portfolio_margin", tables, dict.fromkeys(new))
    nodes = [f.name for f in RESULTS["node_margin"]]
    tables = _changed("node_margin", tables, dict.fromkeys(nodes[nodes.index("requirement_usd") :]))
    tables = {**tables, "requirement": tables["requirement"].slice(0, 0), "stress": tables["stress"].slice(0, 0)}
    html = render_report(tables)
    page = Page(html)
    assert page.errors == []
    for sentence in (
        "The unified requirement was not computed.",
        "the chart is the expected shortfall",
        "No named stresses were computed.",
        "no library of stresses in this run",
        "Not computed in this run.",
    ):
        assert sentence in page.text
    assert "USD 0" not in page.text
    assert "Requirement by node" not in page.text
    assert Page(_between(html, '<div class="tiles">', "<nav>")).text.count("n/a") == 5
    assert "Left after a 1 % tail" in page.text.replace("\u00a0", " ")


def test_hidden_illiquidity_is_kept_and_said() -> None:
    tables = one_desk()
    row = tables["portfolio_margin"].to_pylist()[0]
    larger = row["requirement_silo_usd"] * 1.1
    change = {
        "requirement_ideal_usd": larger,
        "requirement_effective_usd": larger,
        "offset_benefit_usd": row["requirement_silo_usd"] - larger,
    }
    text = Page(render_report(_changed("portfolio_margin", tables, change))).text
    assert "The whole needs no less than its parts" in text
    assert "of the offset is granted" not in text


def test_what_the_add_ons_could_not_measure_is_no_zero() -> None:
    tables = one_desk()
    nothing = dict.fromkeys(("liquidity_usd", "concentration_usd", "beyond_horizons_usd"))
    unknown = _changed("requirement", tables, nothing, scope="unified")
    html = render_report(unknown)
    row = re.search(r'<td class="name">All pooled</td>.*?</tr>', html, flags=re.S)
    assert row
    assert row.group().count("n/a") == 2, "liquidity and concentration"
    chart = _between(html, "<h3>Unified requirement", "<h3>Key figures")
    assert chart.count(">n/a</text>") == 2
    assert "slower than the last liquidity horizon" not in html
    known = _changed("requirement", tables, {"liquidity_usd": 0.0, "beyond_horizons_usd": 1234.0}, scope="unified")
    assert "Positions of 1,234 are slower than the last liquidity horizon" in Page(render_report(known)).text
    row = re.search(r'<td class="name">All pooled</td>.*?</tr>', render_report(known), flags=re.S)
    assert row
    assert "n/a" not in row.group()


def test_an_unbounded_requirement_is_a_word_and_no_chart() -> None:
    tables = one_desk()
    endless = {"requirement_silo_usd": np.inf, "requirement_effective_usd": np.inf, "requirement_ideal_usd": np.inf}
    tables = _changed("portfolio_margin", tables, endless)
    tables = _changed("requirement", tables, {"basis_usd": np.inf, "requirement_usd": np.inf}, scope="unified")
    page = Page(render_report(tables))
    assert page.errors == []
    assert "unbounded" in page.text
    assert "A part of the requirement is unbounded: see the table." in page.text
    assert not re.search(r"\b(inf|nan)\b", page.text)


def test_many_nodes_are_cut_and_say_so() -> None:
    tables = one_desk()
    rows = tables["requirement"].to_pylist()
    first = next(row for row in rows if row["scope"] != "unified")
    rows += [first | {"level": "maintenance", "scope": f"node {k}", "requirement_usd": 1.0} for k in range(NODE_ROWS)]
    nodes = sum(row["level"] == "maintenance" for row in rows) - 1
    html = render_report({**tables, "requirement": pa.Table.from_pylist(rows, schema=RESULTS["requirement"])})
    assert f"{nodes - NODE_ROWS} more nodes, with smaller requirements, are in the result store." in html


def test_the_locked_capital_costs_what_the_table_says() -> None:
    tables = one_desk()
    html = render_report(tables)
    section = _between(html, "<h3>Cost of locked capital", "<details>")
    names = re.findall(r'<td class="name">([^<]*)</td>', section)
    nodes = sorted(tables["node_margin"].to_pylist(), key=lambda row: -row["locked_usd"])
    assert names == [row["node"] for row in nodes]
    assert f"<b>{full(tables['portfolio_margin'].to_pylist()[0]['capital_cost_usd'])}</b> a year" in section
    assert "n/a" not in section, "a node without perpetuals pays no funding"
    assert section.count(">–</span>") == sum(row["funding_cost_usd"] is None for row in nodes) > 0
    for word in ("Interest", "not known"):
        assert word not in section, "no node has a debt"
    paid = _changed("node_margin", tables, {"borrow_cost_usd": 4321.0}, node=nodes[0]["node"])
    section = _between(render_report(paid), "<h3>Cost of locked capital", "<details>")
    assert "4,321" in section
    assert "not known" not in section
    lender = {"uncosted_usd": 7654.0, "funding_cost_usd": None}
    unknown = _changed("node_margin", tables, lender, node=nodes[0]["node"])
    unknown = _changed("portfolio_margin", unknown, {"capital_cost_usd": None})
    section = _between(render_report(unknown), "<h3>Cost of locked capital", "<details>")
    assert "the rate of debts and perpetuals worth 7,654: what they cost is not known" in section
    assert section.count("n/a") == 2, "the node's funding and the sum"


def test_headline_figures_of_several_portfolios_are_sums_and_extremes() -> None:
    tables = many_desks()
    known = [row for row in tables["portfolio_margin"].to_pylist() if row["requirement_effective_usd"] is not None]
    tiles = _between(render_report(tables), '<div class="tiles">', "<nav>").replace("\u00a0", " ")
    effective, silo, es, error = (
        sum(row[column] for row in known)
        for column in (
            "requirement_effective_usd",
            "requirement_silo_usd",
            "es_99_pooled_usd",
            "es_99_pooled_error_usd",
        )
    )
    assert f"USD {compact(effective)}<".replace("\u00a0", " ") in tiles
    assert str(percent(effective / silo, 1)) in tiles
    saving = [row for row in known if row["usable_saving"] is not None]
    usable = sum(row["offset_benefit_usd"] for row in saving) / sum(
        row["requirement_silo_usd"] - row["requirement_ideal_usd"] for row in saving
    )
    assert f'Usable saving</div><div class="value">{percent(usable, 1)}' in tiles
    assert f"USD {compact(es)} ± {compact(error)}<".replace("\u00a0", " ") in tiles
    assert "14 of 15 portfolios computed; ± an upper bound" in tiles
    weakest = min(known, key=lambda row: row["health_unified"])
    assert f"{times(weakest['health_unified'])}<".replace("\u00a0", " ") in tiles
    assert f"{weakest['portfolio_id']}, equity over maintenance" in tiles
    worst = max(tables["stress"].to_pylist(), key=lambda row: row["loss_usd"])
    assert f"{worst['stress']}, {worst['portfolio_id']}".replace("\u00a0", " ") in tiles


def test_haircuts_stand_between_market_value_and_unified_equity() -> None:
    tables = one_desk()
    equity = tables["portfolio_margin"].to_pylist()[0]["equity_usd"]
    html = render_report(_changed("portfolio_margin", tables, {"unified_equity_usd": 0.9 * equity}))
    assert f"Collateral haircuts: USD {compact(-0.1 * equity)}</title>" in html
    assert f"Unified equity: USD {compact(0.9 * equity)}</title>" in html
    assert "Collateral haircuts" not in render_report(tables)


def test_what_needs_no_look_is_folded_away() -> None:
    tables = one_desk()
    assert "<details open><summary>" in _between(render_report(tables), '<section id="reconciliation">', "</section>")
    rows = [row for row in tables["reconciliation"].to_pylist() if row["status"] == "match"]
    fine = {**tables, "reconciliation": pa.Table.from_pylist(rows, schema=RESULTS["reconciliation"])}
    assert "<details><summary>" in _between(render_report(fine), '<section id="reconciliation">', "</section>")


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

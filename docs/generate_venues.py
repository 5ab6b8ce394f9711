"""Writes docs/venues.md from the adapters: what each says of itself, what its fixtures become, and its reference cases.

    .venv/bin/python -P docs/generate_venues.py

`tests/test_docs.py` fails when the page is not what this program writes.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adapters.adapter import Context, find_adapter
from adapters.asset_book import read_asset_book
from adapters.facts import VenueFacts
from adapters.transport import Payload, PayloadRequest, RecordedTransport

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "venues.md"
TESTS = ROOT / "tests"

HEAD = """# Venues

Written by `docs/generate_venues.py` from what each adapter says of itself, from what its fixtures become, and from the
reference cases; do not edit. How rules are written as components: [rule forms](rule-forms.md); how to add one:
[add a venue](add-a-venue.md). Payloads are recorded files; nothing is fetched live.

"Exact" means integers, `Decimal` or fractions up to the canonical tables, and figures of today in float64 that agree
with the venue's rule at 1e-9 relative. Dated parameters are figures that no payload carries; they have a date and a
source, the venue changes them without notice, and it is on the operator to keep them current. The liquidation price of
every account and market is the engine's own, by [one definition](liquidation-prices.md) for all venues.

"""


class Venue(NamedTuple):
    """One venue with what was counted of it."""

    name: str
    facts: VenueFacts
    requests: Sequence[str]
    components: Sequence[str]
    modes: Sequence[str]
    cases: Counter[str]
    fixtures: int
    dated: str
    """Sentence on the dated parameter file, if there is one."""


def venue_names() -> list[str]:
    """The venues of this repository, from its project file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return sorted(project["project"]["entry-points"]["crossmargin.adapters"])


def read_venue(name: str) -> Venue:
    """A venue's facts, and the forms and account types that its own fixtures produce."""
    adapter = find_adapter(name)
    facts = importlib.import_module(f"adapters.{name}").FACTS
    components: dict[str, None] = {}
    modes: set[str] = set()
    sample = _sample(name)
    if sample is not None:
        tables = adapter.normalize(_payloads(name, sample), _context(sample)).batches
        for row in tables["rule_sets"].to_pylist():
            if row["side"] != "verdict":
                components[f"{row['form']} ({row['side']})"] = None
        modes = set(tables["accounts"].column("margin_mode").to_pylist())
    vectors = TESTS / "vectors" / "venues" / f"{name}.json"
    cases = json.loads(vectors.read_text(encoding="utf-8"))["cases"] if vectors.exists() else []
    return Venue(
        name=name,
        facts=facts,
        requests=adapter.requests,
        components=sorted(components),
        modes=sorted(modes),
        cases=Counter(case["kind"] for case in cases),
        fixtures=len(sample.PAYLOADS) if sample is not None else 0,
        dated=_dated(name),
    )


def _dated(name: str) -> str:
    path = ROOT / "configs" / "venues" / f"{name}.toml"
    if not path.exists():
        return ""
    parameters = tomllib.loads(path.read_text(encoding="utf-8"))
    return f" Dated file: `configs/venues/{name}.toml` of {str(parameters['as_of'])[:10]}."


def _sample(name: str) -> Any:
    path = TESTS / f"sample_{name}.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location(f"sample_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _payloads(name: str, sample: Any) -> list[Payload]:
    transport = RecordedTransport(TESTS / "payloads" / name)
    answers = [transport.fetch(name, PayloadRequest(request, file, owner)) for request, file, owner in sample.PAYLOADS]
    payloads = [answer for answer in answers if isinstance(answer, Payload)]
    assert len(payloads) == len(answers), f"{name}: a fixture cannot be read"
    return payloads


def _context(sample: Any) -> Context:
    parameters = {}
    if sample.PARAMETERS:
        parameters = tomllib.loads((ROOT / sample.PARAMETERS).read_text(encoding="utf-8"))
    return Context(read_asset_book(ROOT / "configs" / "assets.toml"), parameters)


def page(venues: Sequence[Venue]) -> str:
    """The whole page."""
    lines = [
        "| adapter | venue | account types in the fixtures | rule forms | reference cases |",
        "|---|---|---|---|---|",
    ]
    for venue in venues:
        forms = ", ".join(dict.fromkeys(component.split(" ")[0] for component in venue.components)) or "the user's own"
        cases = f"{sum(venue.cases.values())} in {len(venue.cases)} kinds" if venue.cases else "none"
        modes = ", ".join(venue.modes) or "any"
        lines.append(
            f"| `{venue.name}` | [{venue.facts.title}](#{_anchor(venue.facts.title)}) | {modes} | {forms} | {cases} |"
        )
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join(_section(venue) for venue in venues)


def _anchor(title: str) -> str:
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _section(venue: Venue) -> str:
    facts = venue.facts
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(venue.cases.items())) or "none"
    out = [f"## {facts.title}", ""]
    out += [f"**Requests.** {', '.join(f'`{request}`' for request in venue.requests)}.", ""]
    out += [f"**Accounts.** {_sentence('; '.join(facts.accounts))}", ""]
    out += [f"**Equity.** {_sentence(facts.equity)}", ""]
    out += [f"**Requirement.** {_sentence(facts.requirement)}", ""]
    if venue.components:
        out += [f"Components of its fixtures: {', '.join(f'`{c}`' for c in venue.components)}.", ""]
    out += [f"**Verdict.** {_sentence(facts.verdict)}", ""]
    out += [f"**Cross or isolated.** {_sentence(facts.cross_or_isolated)}", ""]
    out += [f"**Open orders.** {_sentence(facts.orders)}", ""]
    out += [f"**Liquidation.** {_sentence(facts.liquidation)}", ""]
    out += [f"**Parameters.** {_sentence(facts.parameters)}{venue.dated}", ""]
    out += [f"**Tested.** {venue.fixtures} payloads of our own; reference cases: {kinds}.", ""]
    out += ["**Source of the rules.**", "", *[f"- {line}" for line in facts.rules], ""]
    out += ["**Known gaps.**", "", *[f"- {line}" for line in facts.gaps], ""]
    return "\n".join(out)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def pages() -> dict[str, str]:
    """Text of the generated page by file name."""
    return {PAGE.name: page([read_venue(name) for name in venue_names()])}


if __name__ == "__main__":
    for name, text in pages().items():
        PAGE.with_name(name).write_text(text, encoding="utf-8", newline="\n")

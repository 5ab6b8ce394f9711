"""Clearing houses that margin by SPAN: one account per house, futures and options scanned over 16 scenarios.

A generic leg: clearing houses publish the same figures in many file formats, so the documents here have a form of this
project's own, into which a house's files are brought. Three JSON documents; numbers are decimal texts or JSON numbers,
times ISO-8601, `?` marks what may be absent.

`parameters` (market-wide, one per clearing house and day)
    clearing_house, as_of?            code of the house; instant of the parameters (else the receive time)
    scan?                             extreme_multiple, extreme_cover, look_ahead_days: the two extreme scenarios and
                                      the time that passes, where arrays are to be computed; delta_weights?: seven
                                      weights of the price points 0, +1/3, -1/3, +2/3, -2/3, +1, -1
    combined_commodities[]            code, underlying (symbol of the asset book), currency,
                                      price_scan_range? (money per unit) or price_scan_rate? (fraction of the price),
                                      vol_scan_range? (fraction of the vol), short_option_minimum? (money per
                                      contract), short_option_count? (sum | larger), initial_ratio? (initial over
                                      maintenance, 1), index_price? (USD of the underlying)
      .contracts[]                    symbol, kind (future | option), expiry, month? (YYYY-MM, else the expiry's),
                                      multiplier, price (per unit), delta_scale?, risk_array? (16 losses of one long
                                      contract), composite_delta?, price_scan_range?, vol_scan_range?; of an option
                                      also option_type, strike, implied_vol, future_price, premium? (upfront)
      .calendar?                      tiers[] {tier, first, last}; spreads[] {priority, charge, legs[] {tier,
                                      side A | B, delta}}
      .delivery?[]                    month, spread_charge, outright_charge (money per delta)
    inter_commodity_spreads?[]        priority, legs[] {commodity, side A | B, delta, credit_rate}

`positions` (per owner): clearing_house, account?, positions[] {symbol, quantity (signed contracts), settlement_price?
(price to which a future has been settled, else today's)}

`account` (per owner): clearing_house, account?, currency, cash (signed), collateral?[] {asset, quantity, price?,
haircut}, reported? {equity, initial_requirement, maintenance_requirement} (in the sense of `rules`: with option value
in the equity and before it in the requirement)

Several documents of one kind need a remark behind a colon (`positions:late`) unless house, owner or account differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..account_rows import add_balance
from ..adapter import Context, Normalized
from ..amounts import FieldError, joined
from ..catalog import Catalog
from ..facts import VenueFacts
from ..market_rows import add_mark, add_market_state
from ..questions import in_order, owner_of, reject_copies
from ..rows import Rows
from ..symbols import account_id, expiry_subject, instrument_id
from ..transport import Payload
from .margin import PortfolioMargin, portfolio_margin
from .parse import Account, Collateral, Commodity, Contract, House, Line, read_account, read_house, read_lines, text_at
from .rules import rule_rows

VENUE = "span"
PARAMETERS, POSITIONS, ACCOUNT = "parameters", "positions", "account"
USD = "USD"


class Part(NamedTuple):
    """Which account of an owner: the house, and the number of the account there (empty for the only one)."""

    house: str
    account: str

    @property
    def text(self) -> str:
        return f"{self.house}:{self.account}" if self.account else self.house


@dataclass
class _Reading:
    """One snapshot while it is read."""

    rows: Rows
    catalog: Catalog
    houses: dict[str, House] = field(default_factory=dict)
    lost_houses: dict[str, FieldError] = field(default_factory=dict)

    def asset(self, symbol: str, path: str, reason: FailureReason = FailureReason.UNKNOWN_ASSET) -> str:
        """Asset id, noted for the table `assets`; raises `FieldError(reason)` where the asset book has none."""
        if symbol == USD:
            return self.catalog.dollar()
        return self.catalog.known_asset(symbol, path=path, reason=reason)


@dataclass(frozen=True)
class SpanAdapter:
    """Adapter of clearing-house accounts; see the package's docstring."""

    venue: str = VENUE
    requests: tuple[str, ...] = (PARAMETERS, POSITIONS, ACCOUNT)

    def normalize(self, payloads: Sequence[Payload], context: Context) -> Normalized:
        """Canonical tables of one snapshot, and what could not be read; the order of `payloads` does not matter."""
        reading = _Reading(Rows(VENUE), Catalog(VENUE, context.assets))
        by_kind = _sorted_out(reading, payloads)
        for payload in by_kind[PARAMETERS]:
            _read_parameters(reading, payload)
        documents: dict[tuple[str, Part], dict[str, Payload]] = defaultdict(dict)
        for kind in (POSITIONS, ACCOUNT):
            for payload in by_kind[kind]:
                documents[payload.account, _part(payload.body)][kind] = payload
        for (owner, part), found in sorted(documents.items()):
            _add_account(reading, owner, part, found)
        rows = reading.rows
        reading.catalog.write(rows)
        return Normalized(rows.batches(), rows.failures)


ADAPTER = SpanAdapter()


# ---- which document answers what -------------------------------------------------------------------------------------


def _part(body: Any) -> Part:
    """The account that a document is about; raises `FieldError` for one that does not say."""
    account = body.get("account") if isinstance(body, Mapping) else None
    if account is not None and not isinstance(account, str):
        raise FieldError("account", FailureReason.MALFORMED, f"expected a text, found {type(account).__name__}")
    return Part(text_at(body, "clearing_house"), account or "")


def _sorted_out(reading: _Reading, payloads: Sequence[Payload]) -> dict[str, list[Payload]]:
    """Payloads to read by kind; what is unknown, of nobody, or answers one question twice becomes a failure."""
    rows = reading.rows
    groups: dict[tuple[str, str, Part], list[Payload]] = defaultdict(list)
    for payload in in_order(payloads):
        kind = payload.request.partition(":")[0].strip().rpartition("/")[2]
        # What an unreadable document would have told of its owner is unknown.
        owner = account_id(VENUE, payload.account) if kind != PARAMETERS and payload.account else None
        with rows.guard(payload.name, subject=payload.account or payload.request, account_id=owner):
            label = owner_of(payload, kind, requests=ADAPTER.requests, owned=(POSITIONS, ACCOUNT))
            part = _part(payload.body)
            groups[kind, label, part if label else part._replace(account="")].append(payload)
    kinds: dict[str, list[Payload]] = defaultdict(list)
    for (kind, owner, part), copies in groups.items():
        if len(copies) == 1:
            kinds[kind].append(copies[0])
            continue
        what = f"{kind} of {part.text}"
        if kind == PARAMETERS:
            message = f"{what} came {len(copies)} times, all copies are rejected"
            reading.lost_houses[part.house] = FieldError("", FailureReason.DUPLICATE, message)
        account = account_id(VENUE, owner, part.text) if kind != PARAMETERS else None
        reject_copies(rows, copies, what, subject=part.text, account_id=account)
    return kinds


# ---- the house -------------------------------------------------------------------------------------------------------


def _read_parameters(reading: _Reading, payload: Payload) -> None:
    rows, code = reading.rows, _part(payload.body).house

    def note(error: FieldError, subject: str) -> None:
        rows.refuse(error, payload=payload.name, subject=subject)

    try:
        reading.houses[code] = read_house(payload.body, payload.received_at, note)
    except FieldError as error:
        note(error, code)
        reading.lost_houses[code] = error
        return
    house = reading.houses[code]
    for commodity in house.commodities.values():
        if isinstance(commodity, Commodity):
            _add_market(reading, house, commodity, payload)
    for contract in house.contracts.values():
        commodity_of = house.commodities.get(contract.commodity) if isinstance(contract, Contract) else None
        if isinstance(contract, Contract) and isinstance(commodity_of, Commodity):
            # A contract on something that the asset book does not know is a failure of those who hold it.
            if not reading.catalog.knows(commodity_of.underlying):
                continue
            with rows.guard(payload.name, subject=contract.symbol):
                _add_contract(reading, house, commodity_of, contract, payload)


def _contract_id(house: House, symbol: str) -> str:
    return instrument_id(VENUE, f"{house.code}:{symbol}")


def _add_market(reading: _Reading, house: House, commodity: Commodity, payload: Payload) -> None:
    figures = {
        "price_scan_range": commodity.price_scan_range,
        "price_scan_rate": commodity.price_scan_rate,
        "vol_scan_range": commodity.vol_scan_range,
        "short_option_minimum": commodity.short_option_minimum,
        "initial_ratio": commodity.initial_ratio,
    }
    for name, value in figures.items():
        if value is not None:
            market = f"{VENUE}:{house.code}:{commodity.code}"
            add_market_state(reading.rows, market, name, value, as_of=house.as_of, source=payload.request)
    if commodity.index_price is not None:
        with reading.rows.guard(payload.name, subject=commodity.code):
            reading.asset(commodity.underlying, "underlying", FailureReason.UNKNOWN_MARKET)
            _add_mark(reading, commodity.underlying, "index", commodity.index_price, house, payload)


def _add_contract(reading: _Reading, house: House, commodity: Commodity, contract: Contract, payload: Payload) -> None:
    rows = reading.rows
    reading.asset(commodity.underlying, "underlying", FailureReason.UNKNOWN_MARKET)
    reading.asset(commodity.currency, "currency")
    identity = _contract_id(house, contract.symbol)
    rows.add(
        "instruments",
        instrument_id=identity,
        venue=VENUE,
        symbol=contract.symbol,
        kind=contract.kind,
        underlying=commodity.underlying,
        settlement_asset=commodity.currency,
        payoff="linear",
        contract_size=contract.multiplier,
        strike=contract.strike,
        expiry=contract.expiry,
        option_type=contract.option_type,
    )
    _add_mark(reading, identity, "mark", contract.price, house, payload)
    if contract.implied_vol is not None:
        _add_mark(reading, identity, "implied_vol", contract.implied_vol, house, payload)


def _add_mark(
    reading: _Reading, subject: str, name: str, value: Decimal, house: House, payload: Payload, account: str = ""
) -> None:
    add_mark(reading.rows, subject, name, value, as_of=house.as_of, source=payload.request, account_id=account or None)


# ---- an account ------------------------------------------------------------------------------------------------------


def _add_account(reading: _Reading, owner: str, part: Part, found: Mapping[str, Payload]) -> None:
    """The account of one house, complete or with the failures that say what it lacks."""
    rows, identity = reading.rows, account_id(VENUE, owner, part.text)
    rule_set = f"{VENUE}:{part.text}:{owner}"
    held, state = found.get(POSITIONS), found.get(ACCOUNT)
    account: Account | None = None
    if state is None:
        _fail(rows, identity, FailureReason.MISSING_FIELD, f"no usable document {ACCOUNT!r}", ACCOUNT)
    else:
        with rows.guard(state.name, subject=identity, account_id=identity):
            account = read_account(state.body)
    newest = state or held
    reported = account.reported if account else {}
    rows.add(
        "accounts",
        account_id=identity,
        node=identity,
        venue=VENUE,
        owner=owner,
        margin_mode="portfolio",
        rule_set=rule_set,
        settlement_asset=account.currency if account else USD,
        received_at=newest.received_at if newest else None,
        reported_equity=reported.get("equity"),
        reported_initial_margin=reported.get("initial_requirement"),
        reported_maintenance_margin=reported.get("maintenance_requirement"),
    )
    if held is None:
        _fail(rows, identity, FailureReason.MISSING_FIELD, f"no usable document {POSITIONS!r}", POSITIONS)
    house = reading.houses.get(part.house)
    if house is None:
        lost = reading.lost_houses.get(part.house)
        reason = FailureReason.MISSING_PARAMETER if lost is None else lost.reason
        message = f"no usable margin parameters of {part.house}" + (f": {lost.message}" if lost else "")
        _fail(rows, identity, reason, message, PARAMETERS)
    if account is None or state is None or held is None or house is None:
        return
    lines: list[Line] = []
    with rows.guard(held.name, subject=identity, account_id=identity):

        def note(error: FieldError, subject: str) -> None:
            rows.refuse(error, payload=held.name, subject=subject, account_id=identity)

        lines = read_lines(held.body, note)
    collateral: list[tuple[str, Collateral]] = []
    with rows.guard(state.name, subject=identity, account_id=identity):
        collateral = _add_balances(reading, house, account, state, identity)
    with rows.guard(held.name, subject=identity, account_id=identity):
        margin = portfolio_margin(house, lines)
        risk_symbols = _risk_symbols(reading, margin, account)
        _add_positions(reading, house, lines, held, identity)
        added = rule_rows(rule_set, house, margin, risk_symbols=risk_symbols, collateral=collateral)
        for table, extra in added.items():
            rows.rows[table] += extra


def _fail(rows: Rows, identity: str, reason: FailureReason, message: str, path: str) -> None:
    rows.fail(reason, message, path=path, subject=identity, account_id=identity)


def _risk_symbols(reading: _Reading, margin: PortfolioMargin, account: Account) -> dict[str, str]:
    """Price factor of each commodity held; raises unsupported for one in another currency than the account's."""
    found = {}
    for entry in margin.commodities:
        commodity = entry.commodity
        path = entry.holdings[0].line.path
        if commodity.currency != account.currency:
            message = f"{commodity.code} is in {commodity.currency}, the account in {account.currency}"
            raise FieldError(path, FailureReason.UNSUPPORTED, message)
        reading.asset(commodity.underlying, path, FailureReason.UNKNOWN_MARKET)
        found[commodity.code] = reading.catalog.risk_symbol(commodity.underlying)
    return found


def _add_positions(reading: _Reading, house: House, lines: Sequence[Line], payload: Payload, identity: str) -> None:
    """Positions, and per option expiry the price of its future, which houses and commodities may state differently."""
    forwards: dict[str, Decimal] = {}
    for line in lines:
        contract = house.contracts[line.symbol]
        assert isinstance(contract, Contract)
        commodity = house.commodities[contract.commodity]
        assert isinstance(commodity, Commodity)
        is_option = contract.kind == "option"
        reading.rows.add(
            "positions",
            account_id=identity,
            instrument_id=_contract_id(house, line.symbol),
            side_mode="net",
            quantity=line.quantity,
            entry_price=None if is_option else line.settlement_price or contract.price,
        )
        if is_option:
            subject = expiry_subject(commodity.underlying, contract.expiry)
            if forwards.setdefault(subject, contract.future_price) != contract.future_price:
                message = f"options of {subject} are on futures at {forwards[subject]} and at {contract.future_price}"
                raise FieldError(line.path, FailureReason.INCONSISTENT, message)
    for subject, price in sorted(forwards.items()):
        _add_mark(reading, subject, "forward", price, house, payload, identity)


def _add_balances(
    reading: _Reading, house: House, account: Account, payload: Payload, identity: str
) -> list[tuple[str, Collateral]]:
    """Cash and collateral as balances; (asset id, entry) of the collateral."""
    reading.asset(account.currency, "currency")
    rows = reading.rows
    if account.cash:
        add_balance(rows, identity, account.currency, account.cash)
    listed = []
    for number, entry in enumerate(account.collateral):
        path = joined("collateral", number)
        asset = reading.asset(entry.symbol, joined(path, "asset"))
        is_stable = reading.catalog.assets[asset]["risk_factor"] is None
        if entry.symbol == account.currency:
            message = f"{entry.symbol} is the account's currency: its cash"
            raise FieldError(joined(path, "asset"), FailureReason.INCONSISTENT, message)
        if entry.price is None and not is_stable:
            raise FieldError(joined(path, "price"), FailureReason.MISSING_MARK, f"no price of {entry.symbol}")
        if entry.price is not None:
            name = "stable_price" if is_stable else "index"
            _add_mark(reading, entry.symbol, name, entry.price, house, payload, identity)
        rows.add(
            "balances",
            account_id=identity,
            asset_id=entry.symbol,
            side="asset",
            quantity=entry.quantity,
            collateral_enabled=True,
        )
        listed.append((entry.symbol, entry))
    return listed


FACTS = VenueFacts(
    title="SPAN clearing houses (generic)",
    accounts=("One account per clearing house, owner and account number, a node of its own",),
    equity="Cash, collateral after haircuts, variation of futures since their settlement, value of options",
    requirement="Risk of the combined commodities: scanning risk plus calendar and delivery charges minus "
    "inter-commodity credit, at least the short option minimum; as price_vol_grid where a commodity is scanned by a "
    "rate of the price, as fixed computed amount otherwise",
    verdict="Called below the requirement",
    cross_or_isolated="Portfolio margin within one house; no cross-margining between houses",
    orders="Not margined before they are filled",
    liquidation="No liquidation mechanics: a house calls margin; risk arrays, scan, spreads, minimum and total exact",
    rules=("CME Group, Components of SPAN and Risk Arrays (16 scenarios); houses' figures are inputs",),
    parameters="A margin parameter document per house and day, in a form of this project's own",
    gaps=(
        "Published arrays, charges, credits and minimums stay as they are today in every scenario",
        "Value of options above the risk also covers other losses here, while a house limits it to the risk",
        "One currency per account; options whose premium is settled daily are refused; no SPAN 2, no TIMS",
        "Composite delta weights are the house's: without them an option needs its published delta in spreads",
    ),
)

"""The routes file: what is refused and on which line, and the networks that follow from it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from adapters.adapter import adapter_names
from aggregator.errors import ConfigurationError, FailureReason
from aggregator.route_network import RouteNetwork, given_routes, route_network
from aggregator.routes import NEVER_DOWN, Routes, merged_channels, read_routes

CONFIGS = Path(__file__).parent.parent / "configs"

TWO_VENUES = """\
[channels.ethereum]
kind = "chain"
source = "test"

[channels.arbitrum]
kind = "chain"
source = "test"

[channels.bridge]
kind = "bridge"
source = "test"

[[links]]
source_chain = "ethereum"
target_chain = "arbitrum"
through = "bridge"
median_hours = 0.25
p99_hours = 0.5
capacity_usd = 300
fee = 0.01
source = "test"

[venues.binance]
chains = ["ethereum"]
leaving = { median_hours = 0.2, p99_hours = 2.0, capacity_usd = 1000 }
arriving = { median_hours = 0.1, p99_hours = 0.5 }
within = { median_hours = 0.0, p99_hours = 0.1 }
source = "test"

[venues.hyperliquid]
chains = ["arbitrum"]
leaving = { median_hours = 0.1, p99_hours = 0.5 }
arriving = { median_hours = 0.1, p99_hours = 0.25 }
source = "test"
"""


def _read(tmp_path: Path, text: str, nodes: tuple[str, ...] = ()) -> Routes:
    path = tmp_path / "routes.toml"
    path.write_text(text, encoding="utf-8")
    return read_routes(path, venues=adapter_names(), nodes=nodes)


def _written(**keys: object) -> str:
    lines = [
        f"{key} = {value!r}" if not isinstance(value, str) else f'{key} = "{value}"' for key, value in keys.items()
    ]
    return "\n[[routes]]\n" + "\n".join(lines) + "\n"


ROUTE = {"origin": "binance", "target": "okx", "median_hours": 0.5, "p99_hours": 2.0, "source": "test"}


def test_the_shipped_file_reads_and_joins_every_venue_with_every_other() -> None:
    routes = read_routes(CONFIGS / "routes.toml", venues=adapter_names())
    nodes = [(f"{venue}:a", venue) for venue in sorted(routes.venues)]
    network = route_network(nodes, routes)
    reached = _reachable(network)
    for source in range(len(nodes)):
        missing = [nodes[t][0] for t in range(len(nodes)) if t != source and t not in reached[source]]
        assert not missing, f"{nodes[source][0]} reaches {missing} by no way"


def _reachable(network: RouteNetwork) -> list[set[int]]:
    out = []
    for start in range(len(network.points)):
        found, edge = {start}, [start]
        while edge:
            at = edge.pop()
            for route in network.routes:
                if route.source == at and route.target not in found:
                    found.add(route.target)
                    edge.append(route.target)
        out.append(found)
    return out


def test_a_composed_route_adds_times_takes_the_smallest_capacity_and_compounds_fees(tmp_path: Path) -> None:
    network = route_network([("a", "binance"), ("b", "hyperliquid")], _read(tmp_path, TWO_VENUES))
    (there,) = [route for route in network.routes if route.target == 1]
    assert there.median_hours == pytest.approx(0.2 + 0.25 + 0.1, rel=1e-15)
    assert there.p99_hours == pytest.approx(2.0 + 0.5 + 0.25, rel=1e-15)
    assert there.capacity_usd == 300.0
    assert there.arriving_usd == pytest.approx(297.0, rel=1e-12)
    assert there.through == ("venue binance", "ethereum", "bridge", "arbitrum")
    # There is a link one way only.
    assert not [route for route in network.routes if route.source == 1]


def test_a_withdrawal_limit_is_a_point_that_all_routes_of_the_node_lead_through(tmp_path: Path) -> None:
    network = route_network([("a", "binance"), ("b", "hyperliquid")], _read(tmp_path, TWO_VENUES))
    assert network.points == ("a", "b", "a withdrawals")
    (to_gate,) = [route for route in network.routes if route.source == 0]
    assert (to_gate.target, to_gate.capacity_usd, to_gate.p99_hours, to_gate.through) == (2, 1000.0, 0.0, ())
    assert network.nodes == 2
    assert network.venues == ("binance", "hyperliquid", "")


def test_a_node_that_lives_on_one_chain_is_reached_by_no_other() -> None:
    routes = read_routes(CONFIGS / "routes.toml", venues=adapter_names())
    nodes = [("lender", "aave_v3"), ("perps", "hyperliquid")]
    at_home = route_network(nodes, routes, chains=("ethereum", ""))
    assert {route.through for route in at_home.routes if route.source == 0} == {
        ("venue aave_v3", "default aave_v3", "ethereum", "cctp", "arbitrum")
    }
    everywhere = route_network(nodes, routes)
    assert {route.through for route in everywhere.routes if route.source == 0} == {
        ("venue aave_v3", "default aave_v3", "arbitrum")
    }


def test_nodes_of_one_venue_are_joined_by_what_it_offers_within(tmp_path: Path) -> None:
    network = route_network([("cross", "binance"), ("isolated", "binance")], _read(tmp_path, TWO_VENUES))
    assert {(r.name, r.p99_hours) for r in network.routes if r.target in (0, 1)} == {("within", 0.1)}
    nothing = route_network([("cross", "hyperliquid"), ("isolated", "hyperliquid")], _read(tmp_path, TWO_VENUES))
    assert nothing.routed == ()


def test_a_written_route_replaces_the_composed_ones_of_its_pair(tmp_path: Path) -> None:
    text = TWO_VENUES + _written(
        **ROUTE | {"target": "hyperliquid"}, capacity_usd=50.0, fee=0.1, asset="USDT", through=["ethereum"]
    ).replace("'", '"')
    network = route_network([("a", "binance"), ("b", "hyperliquid")], _read(tmp_path, text))
    (route,) = [r for r in network.routes if r.target == 1]
    assert (route.asset, route.p99_hours, route.arriving_usd) == ("USDT", 2.0, 45.0)
    assert route.through == ("venue binance", "ethereum")


def test_a_credit_line_joins_its_members_through_one_line(tmp_path: Path) -> None:
    text = (
        TWO_VENUES
        + '\n[[credit]]\nname = "prime"\nline_usd = 500\nvenues = ["binance", "hyperliquid"]\nsource = "test"\n'
    )
    network = route_network([("a", "binance"), ("b", "hyperliquid")], _read(tmp_path, text))
    claims, line = network.points.index("prime claims"), network.points.index("prime")
    joined = {
        (r.source, r.target): r.capacity_usd
        for r in network.routes
        if claims in (r.source, r.target) or line in (r.source, r.target)
    }
    assert joined == {
        (0, claims): math.inf,
        (1, claims): math.inf,
        (claims, line): 500.0,
        (line, 0): math.inf,
        (line, 1): math.inf,
    }
    # A broker with one member joins nothing.
    alone = route_network([("a", "binance")], _read(tmp_path, text))
    assert alone.points == ("a",)


def _changed(old: str, new: str) -> str:
    assert TWO_VENUES.count(old) == 1
    return TWO_VENUES.replace(old, new)


WRONG = {
    "a negative time": (
        _changed("p99_hours = 0.5\ncapacity", "p99_hours = -1\ncapacity"),
        "p99_hours = -1",
        "links.0.p99_hours: Input should be greater than or equal to 0",
    ),
    "a channel with a typo": (
        _changed('through = "bridge"', 'through = "brigde"'),
        "brigde",
        "links.0.through: unknown channel 'brigde' (did you mean 'bridge'?)",
    ),
    "a chain with a typo": (
        _changed('"ethereum"]', '"etherum"]'),
        "etherum",
        "venues.binance.chains: unknown chain 'etherum' (did you mean 'ethereum'?)",
    ),
    "a venue with a typo": (
        _changed("venues.binance]", "venues.binanse]"),
        "binanse",
        "venues.binanse: unknown venue 'binanse' (did you mean 'binance'?)",
    ),
    "a key with a typo": (
        TWO_VENUES + _written(**ROUTE, feee=0.1),
        "feee",
        "routes.0.feee: unknown key feee (did you mean 'fee'?)",
    ),
    "an unknown end": (
        TWO_VENUES + _written(**ROUTE | {"target": "okex"}),
        "okex",
        "routes.0.target: unknown venue or node 'okex' (did you mean 'okx'?)",
    ),
    "times that contradict each other": (
        TWO_VENUES + _written(**ROUTE | {"p99_hours": 0.1}),
        "[[routes]]",
        "routes.0: p99_hours 0.1 is below median_hours 0.5",
    ),
    "a negative reaction": (
        TWO_VENUES + "\n[operator]\nreaction_hours = -1\n",
        "reaction_hours",
        "operator.reaction_hours: Input should be greater than or equal to 0",
    ),
    "a number as text": (
        _changed("p99_hours = 0.5\ncapacity", 'p99_hours = "0.5"\ncapacity'),
        'p99_hours = "0.5"',
        "links.0.p99_hours: Input should be a valid number",
    ),
    "a truth as a number": (
        TWO_VENUES + _written(**ROUTE).replace("[[routes]]", "[[routes]]\nfee = true"),
        "fee = true",
        "routes.0.fee: Input should be a valid number",
    ),
    "a number as a truth": (
        _changed("within = {", "profit_leaves = 1\nwithin = {"),
        "profit_leaves = 1",
        "venues.binance.profit_leaves: Input should be a valid boolean",
    ),
    "a number as text within a table": (
        _changed("leaving = { median_hours = 0.1,", 'leaving = { median_hours = "0.1",'),
        'median_hours = "0.1"',
        "venues.hyperliquid.leaving.median_hours: Input should be a valid number",
    ),
    "a date as a source": (
        TWO_VENUES.replace('source = "test"', "source = 2024-05-01", 1),
        "source = 2024",
        "channels.ethereum.source: Input should be a valid string",
    ),
    "an infinite limit": (
        _changed("capacity_usd = 300", "capacity_usd = inf"),
        "capacity_usd = inf",
        "links.0.capacity_usd: Input should be a finite number",
    ),
    "one table where many are meant": (
        TWO_VENUES.replace("[[links]]", "[links]"),
        "[links]",
        "links: Input should be a valid array",
    ),
    "many tables where one is meant": (
        TWO_VENUES + "\n[[operator]]\nreaction_hours = 1\n",
        "[[operator]]",
        "operator: Input should be an object",
    ),
    "a number where a table is meant": (
        "venues.binance = 3\n" + TWO_VENUES.replace("[venues.binance]", "[venues.okx]"),
        "venues.binance = 3",
        "venues.binance: Input should be an object",
    ),
    "a section that is a number": (
        "deadline = 4\n" + TWO_VENUES,
        "deadline = 4",
        "deadline: Input should be an object",
    ),
    "a mistake behind a text that looks like keys": (
        TWO_VENUES
        + '\n[[routes]]\norigin = "binance"\ntarget = "okx"\nsource = """\nmedian_hours = 1\n[[routes]]\n"""\n'
        + "p99_hours = 2.0\nmedian_hours = -3.0\n",
        "median_hours = -3.0",
        "routes.0.median_hours: Input should be greater than or equal to 0",
    ),
    "a mistake behind a sign that only some programs take for a new line": (
        "# \u2028\n" + TWO_VENUES + _written(**ROUTE | {"p99_hours": -2.0}),
        "p99_hours = -2.0",
        "routes.0.p99_hours: Input should be greater than or equal to 0",
    ),
    "a route that is written twice, in another order": (
        TWO_VENUES
        + _written(**ROUTE).replace("[[routes]]", '[[routes]]\nthrough = ["ethereum", "bridge"]')
        + _written(**ROUTE).replace("[[routes]]", '[[routes]] # again\nthrough = ["bridge", "ethereum"]'),
        "[[routes]] # again",
        "routes.1: the route is written twice, and its capacity would count twice",
    ),
    "an unknown mode": (
        TWO_VENUES + '\n[deadline]\nmode = "paths"\n',
        'mode = "paths"',
        "deadline.mode: Input should be 'fixed' or 'path'",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused_with_the_line_that_is_wrong(tmp_path: Path, what: str) -> None:
    text, at, says = WRONG[what]
    line = next(number for number, line in enumerate(text.split("\n"), 1) if at in line)
    with pytest.raises(ConfigurationError) as caught:
        _read(tmp_path, text)
    assert str(caught.value) == f"routes.toml, line {line}, {says}"


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        _read(tmp_path, TWO_VENUES + "\n[[routes\n")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        _read(tmp_path, TWO_VENUES + f"\n[operator]\nreaction_hours = {'9' * 5000}\n")


def test_fees_that_pay_whoever_goes_round_are_refused_with_the_line_that_pays(tmp_path: Path) -> None:
    there = _written(**ROUTE, fee=0.001)
    back = _written(**ROUTE | {"origin": "okx", "target": "binance"}, fee=-0.002)
    with pytest.raises(
        ConfigurationError, match=r"line 50, routes\.1\.fee: fees pay 0\.10% .*(binance -> okx|okx -> binance)"
    ):
        _read(tmp_path, TWO_VENUES + there + back)
    # A rebate that the way back takes again is none.
    _read(tmp_path, TWO_VENUES + there + back.replace("-0.002", "-0.0009"))


def test_a_broker_who_takes_money_back_for_nothing_closes_a_cycle(tmp_path: Path) -> None:
    paid = _written(**ROUTE | {"fee": -0.002})
    credit = '\n[[credit]]\nname = "prime"\nvenues = ["okx", "binance"]\nsource = "test"\nline_usd = '
    with pytest.raises(ConfigurationError, match=r"line 42, routes\.0\.fee: fees pay 0\.20% "):
        _read(tmp_path, TWO_VENUES + paid + credit + "100\n")
    _read(tmp_path, TWO_VENUES + paid + credit + "0\n")


def test_rows_of_a_routes_table_become_routes_or_failures() -> None:
    good = {
        "source_node": "a",
        "target_node": "b",
        "asset_id": "USDC",
        "transfer_median_s": 60.0,
        "transfer_p99_s": 7200.0,
        "capacity_usd": 100.0,
        "fee_rate": 0.01,
        "failure_probability": 0.02,
    }
    wrong = {
        "transfer_median_s": -1.0,
        "transfer_p99_s": 1.0,
        "capacity_usd": math.nan,
        "fee_rate": 1.0,
        "failure_probability": None,
        "target_node": "c",
        "source_node": "b",
    }
    rows = [good, *(good | {field: value} for field, value in wrong.items())]
    found, failures = given_routes(rows, ("a", "b"))
    assert len(found) == 1
    assert {failure.path for failure in failures} == {
        "routes.transfer_median_s",
        "routes.transfer_p99_s",
        "routes.capacity_usd",
        "routes.fee_rate",
        "routes.failure_probability",
        "routes.target_node",
    }
    assert all(failure.reason == FailureReason.OUT_OF_RANGE for failure in failures)
    network = route_network([("a", "mine"), ("b", "mine")], Routes(), given=found)
    (route,) = network.routes
    assert (route.source, route.target, route.p99_hours, route.arriving_usd) == (0, 1, 2.0, 99.0)
    outage = found[0].outage
    assert 1.0 / (1.0 + math.exp(-outage.intercept)) == pytest.approx(0.02, rel=1e-12)
    assert outage.slope == 0.0


def test_a_venue_that_fails_lets_nothing_out_by_any_way(tmp_path: Path) -> None:
    """Neither a withdrawal nor a move within it, nor can a broker claim what lies there; what comes in is not held."""
    text = TWO_VENUES.replace("within = {", "default_per_year = 0.5\nwithin = {")
    text += '\n[[credit]]\nname = "prime"\nline_usd = 500\nvenues = ["binance", "hyperliquid"]\nsource = "test"\n'
    routes = _read(tmp_path, text)
    network = route_network([("a", "binance"), ("i", "binance"), ("b", "hyperliquid")], routes)
    for number in (0, 1):
        reached, edge = set(), [number]
        while edge:
            at = edge.pop()
            reached.add(at)
            edge += [
                r.target
                for r in network.routes
                if r.source == at and "default binance" not in r.through and r.target not in reached
            ]
        assert not reached & ({0, 1, 2} - {number})
    assert not [r for r in network.routes if r.source == 2 and "default binance" in r.through]
    channels = merged_channels(routes, ("binance", "hyperliquid"))
    assert channels["default binance"] == (NEVER_DOWN, 0.5)
    assert "default hyperliquid" not in channels
    with pytest.raises(ConfigurationError, match=r"channels\.default binance: the name 'default binance' is taken"):
        _read(tmp_path, text + '\n[channels."default binance"]\nkind = "bridge"\nsource = "test"\n')

"""The quickstart desk with its transfer model: paths and scenarios of its nodes under a small routes file."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

from aggregator.config import load_configuration
from aggregator.evidence import Evidence
from aggregator.node_scenarios import NodeRules, NodeScenarios, node_scenarios
from aggregator.path_margin import PathLaw, path_figures
from aggregator.policy import Requirement
from aggregator.routes import Routes
from aggregator.run_inputs import read_inputs
from aggregator.transfer_run import TransferLaw, Transfers, profit_leaves, transfer_law, transfers
from tests.quickstart_book import FACTORS, HORIZON_DAYS, QUICKSTART
from tests.unified_twin import SEED, Desk, desk, law

PATHS, STEPS = 512, 4

ROUTES = Routes.model_validate(
    {
        "operator": {"warning_health": 1.5, "warning_share": 0.3, "reaction_hours": 0.5},
        "deadline": {"mode": "path", "fixed_hours": 4.0, "market": "BTC"},
        "channels": {
            "ethereum": {"kind": "chain", "source": "test", "outage": {"intercept": -2.0, "slope": 0.3}},
            "unused": {"kind": "bridge", "source": "test", "outage": {"intercept": 0.0, "slope": 0.0}},
        },
        "venues": {
            name: {
                "chains": ["ethereum"],
                "leaving": {"median_hours": 0.2, "p99_hours": 2.0},
                "arriving": {"median_hours": 0.1, "p99_hours": hours},
                "outage": {"intercept": -3.0, "slope": 0.5},
                "grace_hours": 3.0,
                "profit_leaves": name == "hyperliquid",
                "liquidation_cost": 0.01,
                "source": "test",
            }
            for name, hours in (("binance", 0.5), ("hyperliquid", 1.0), ("aave_v3", 4.0))
        },
    }
)
"""Three venues of the desk joined by one chain; its others stand alone."""


class TransferDesk(NamedTuple):
    """The desk, its law and nodes in one mode, and what the model finds."""

    desk: Desk
    rules: NodeRules
    paths: PathLaw
    law: TransferLaw
    nodes: NodeScenarios
    found: Transfers


@functools.cache
def measured() -> Desk:
    """The desk with its headline and unified requirement."""
    return desk(Requirement())


@functools.cache
def rules() -> NodeRules:
    """What is known of the desk's accounts outside the engine."""
    inputs = read_inputs(load_configuration(QUICKSTART), lambda stage, done, total: None)
    evidence = Evidence(inputs.snapshots, [], inputs.as_of)
    accounts = measured().portfolio.accounts
    native = measured().headline.native
    return NodeRules(
        units={a.account_id: evidence.market(a.account_id).exponents(a.unit) for a in accounts},
        requirements={
            a.account_id: (float(native.initial[n]), float(native.maintenance[n])) for n, a in enumerate(accounts)
        },
        warning_health=ROUTES.operator.warning_health,
        profit_leaves=profit_leaves(ROUTES),
    )


def path_law() -> PathLaw:
    """Four steps of six hours."""
    return PathLaw(law(math.sqrt(HORIZON_DAYS / STEPS), 0.6), SEED, PATHS, STEPS, HORIZON_DAYS / STEPS)


def run_law(mode: Literal["fixed", "path"], routes: Routes = ROUTES, paths: PathLaw | None = None) -> TransferLaw:
    """The law of a run over the desk's cube."""
    of = measured()
    venues = sorted({venue for _, venue in of.portfolio.nodes})
    paths = (paths or path_law()) if mode == "path" else None
    return transfer_law(routes, [], FACTORS, of.cube, paths, venues=venues, seed=SEED, horizon_days=HORIZON_DAYS)


@functools.cache
def transfer_desk(mode: Literal["fixed", "path"]) -> TransferDesk:
    """Everything of the desk in one mode."""
    of = measured()
    if mode == "fixed":
        (nodes,) = node_scenarios([of.portfolio], FACTORS, of.cube, rules())
    else:
        (figures,) = path_figures([of.portfolio], FACTORS, of.cube.rows, path_law(), [[]], nodes=rules())
        assert figures is not None
        nodes = figures.nodes
    assert nodes is not None
    shared = run_law(mode)
    (found,) = transfers([of.portfolio], [nodes], shared, devices=1)
    assert found is not None
    return TransferDesk(of, rules(), path_law(), shared, nodes, found)

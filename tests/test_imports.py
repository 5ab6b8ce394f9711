"""Who may import whom, held by a walk over the syntax trees of the three packages.

`aggregator` is a column of modules: each may import those above it in `AGGREGATOR_ORDER` and no other. `adapters` read
canonical shapes and never meet JAX; `models` never meet a venue; only `aggregator.run_inputs`, `aggregator.sweep` and
`aggregator.cli` see all three packages. Imports count wherever they stand: at the top, inside a function, under
`TYPE_CHECKING`.
"""

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("aggregator", "adapters", "models")

# Downwards: a module may import the ones before it. A new module needs its place here.
AGGREGATOR_ORDER = (
    "errors",
    "progress",
    "compiler_flags",
    "rounding",
    "one_kernel",
    "device_mesh",
    "schema.fields",
    "schema.decimals",
    "schema.canonical",
    "schema.casting",
    "schema.headline_tables",
    "schema.detail_tables",
    "schema.results",
    "schema",
    "rule_forms",
    "exponents",
    "section",
    "policy",
    "config",
    "calibration_ranges",
    "stress",
    "routes",
    "route_groups",
    "route_ways",
    "route_network",
    "snapshot",
    "volatility_filter",
    "tail_scale",
    "history_tables",
    "history",
    "replay",
    "correlation",
    "calibration.volatility",
    "calibration.tails",
    "calibration.dependence",
    "calibration.jumps",
    "calibration.regimes",
    "calibration.vol_rule",
    "calibration.mean_reversion",
    "calibration.pegs",
    "calibration.liquidity",
    "calibration.basis",
    "calibration.sample",
    "calibration.laws",
    "calibration",
    "calibration_file",
    "calibration_request",
    "calibration_text",
    "calibration_sections",
    "calibration_laws",
    "calibration_levels",
    "calibrate",
    "scenarios",
    "sobol_points",
    "generators.column_sums",
    "generators.multivariate_t",
    "generators.t_copula",
    "generators.filtered_historical",
    "generators.merton_jumps",
    "generators.regime_switching",
    "generators.mixture",
    "generators",
    "overlays.added_factors",
    "overlays.spot_vol",
    "overlays.partial_default",
    "overlays.jump_strata",
    "overlays.rare_jumps",
    "overlays.lst_discount",
    "overlays.funding",
    "overlays.oracle_error",
    "overlays.liquidity_drought",
    "overlays",
    "path_views",
    "calibrated_overlays",
    "calibrated_history",
    "calibrated",
    "factors",
    "pricing",
    "cube",
    "market",
    "rules.risk_unit",
    "rules.tiered_notional",
    "rules.rate_of_size",
    "rules.weighted_value",
    "rules.delta_charges",
    "rules.price_vol_grid",
    "rules.contingency",
    "rules.option_formula",
    "rules.expiry_max_loss",
    "rules.contract_margin",
    "rules",
    "risk_units",
    "account",
    "portfolio",
    "risk",
    "batch_errors",
    "closed_forms",
    "scenario_laws",
    "heston",
    "scenario_grid",
    "add_ons",
    "requirement",
    "transfer",
    "transfer_minimum",
    "transfer_shortfall",
    "transfer_programme",
    "transfer_cuts",
    "reactive_transfer",
    "unit_batch",
    "batch",
    "unified_batch",
    "unit_margin",
    "margin",
    "unified_shortfall",
    "unified",
    "stress_margin",
    "weighted_tail",
    "sweep_scenarios",
    "cube_prices",
    "engine",
    "netted_arrays",
    "netted_ranges",
    "netted_losses",
    "netted_verdicts",
    "netted_kernel",
    "netted_dense",
    "column_codes",
    "covered_rules",
    "book_market",
    "book_tiers",
    "book_accounts",
    "book_legs",
    "book_columns",
    "netting",
    "netted_shards",
    "netted_sweep",
    "unit_requirement",
    "withdrawal_shares",
    "node_scenarios",
    "path_margin",
    "tier_paths",
    "tier_trial",
    "channel_outages",
    "transfer_margin",
    "transfer_large",
    "transfer_batch",
    "transfer_run",
    "greeks",
    "unified_market",
    "run_market",
    "condensed",
    "liquidation_price",
    "account_alone",
    "reverse_stress",
    "results",
    "capital_cost",
    "unified_results",
    "transfer_detail",
    "transfer_results",
    "stress_results",
    "path_results",
    "reverse_results",
    "native",
    "evidence",
    "reconciliation",
    "differences",
    "store_versions",
    "store",
    "tier_tables",
    "report_charts",
    "report_words",
    "report_positions",
    "report_requirement",
    "report_stress",
    "report_reverse_stress",
    "report_network_map",
    "report_ladders",
    "report_tiers",
    "report_transfer",
    "report_summary",
    "report",
    "report_request",
    "headline",
    "backtest_statistics",
    "backtest_books",
    "backtest_market",
    "backtest_laws",
    "backtest_margin",
    "backtest_request",
    "conditions",
    "run_inputs",
    "run_identity",
    "run_record",
    "sweep_work",
    "sweep_transfers",
    "sweep_shards",
    "sweep_detail",
    "sweep",
    "screen_tables",
    "screen",
    "reconcile",
    "doctor",
    "terminal",
    "verb",
    "answers",
    "cli",
    "__main__",
)
SEE_ALL_PACKAGES = ("run_inputs", "sweep", "cli")
ADAPTERS_MAY_IMPORT = ("schema", "snapshot", "rule_forms", "errors")
JAX_FAMILY = ("jax", "jaxlib", "equinox", "optax", "jaxtyping")

# Whole modules that are not imported and names that are not used, with what is wrong about them.
FORBIDDEN_MODULES = {
    "pickle": "runs code on loading",
    "cloudpickle": "runs code on loading",
    "dill": "runs code on loading",
    "joblib": "pickles",
    "yaml": "reads 1e-3 as text, no as False and keeps the last of duplicate keys",
    "jax.core": "no stable interface",
    "jax._src": "no stable interface",
    "jax.experimental.shard_map": "moved to jax.shard_map",
}
FORBIDDEN_NAMES = {
    "jax.numpy.empty": "uninitialized from JAX 0.11 on: use zeros",
    "jax.numpy.empty_like": "uninitialized from JAX 0.11 on: use zeros_like",
    "jax.pmap": "use jax.shard_map",
    "jax.experimental.enable_x64": "moved to jax.enable_x64",
}


class Module(NamedTuple):
    """A source file: its dotted name below the package ("" for the package itself) and its syntax tree."""

    package: str
    name: str
    is_package: bool
    path: str
    tree: ast.Module


class Import(NamedTuple):
    """One imported name: the full dotted target, the level of the relative import (0 if absolute), and its line."""

    target: str
    level: int
    line: int


def _module(path: Path, root: Path) -> Module:
    relative = path.relative_to(root)
    dotted = relative.with_suffix("").parts
    is_package = dotted[-1] == "__init__"
    name = ".".join(dotted[1:-1] if is_package else dotted[1:])
    return Module(
        dotted[0], name, is_package, str(relative), ast.parse(path.read_text(encoding="utf-8"), str(relative))
    )


@functools.cache
def _modules(root: Path = ROOT) -> list[Module]:
    return [_module(path, root) for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def _imports(module: Module) -> Iterator[Import]:
    """Every imported name of a module; `from x import y` yields x.y, which may be a module or a name in x."""
    parents = [module.package, *filter(None, module.name.split("."))]
    if not module.is_package:
        parents = parents[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, 0, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from (Import(".".join([*base, alias.name]), node.level, node.lineno) for alias in node.names)


def _is_in(dotted: str, names: tuple[str, ...]) -> bool:
    return any(dotted == name or dotted.startswith(name + ".") for name in names)


def _below_package(target: str, known: set[str]) -> str:
    """The longest module of `known` that `target` (dotted, below its package) lies in; "" for the package itself."""
    parts = target.split(".")
    return next((name for k in range(len(parts), 0, -1) if (name := ".".join(parts[:k])) in known), "")


def direction_errors(modules: list[Module]) -> list[str]:
    """One sentence for every import that goes against the direction of the packages and of `AGGREGATOR_ORDER`."""
    order = {name: rank for rank, name in enumerate(AGGREGATOR_ORDER)}
    errors = []
    for module in modules:
        for target, level, line in _imports(module):
            where = f"{module.path}:{line} imports {target}"
            package, _, rest = target.partition(".")
            if package not in PACKAGES:
                if module.package == "adapters" and _is_in(target, JAX_FAMILY):
                    errors.append(f"{where}: adapters never import JAX")
                continue
            if (package == module.package) != bool(level):
                errors.append(f"{where}: relative inside a package, absolute across packages")
            if package == module.package == "aggregator":
                used = _below_package(rest, set(order))
                # What stands in the package's __init__ (the version) may be used anywhere; a module without a place in
                # the order has a test of its own.
                if used and (not module.name or order[used] >= order.get(module.name, len(order))):
                    errors.append(f"{where}: {module.name or '__init__'} may only import what stands above it")
            elif module.package == "aggregator" and module.name not in SEE_ALL_PACKAGES:
                errors.append(f"{where}: only {', '.join(SEE_ALL_PACKAGES)} see the other packages")
            elif module.package == "adapters" and (
                package == "models" or (package == "aggregator" and not _is_in(rest, ADAPTERS_MAY_IMPORT))
            ):
                errors.append(f"{where}: adapters see aggregator.{{{', '.join(ADAPTERS_MAY_IMPORT)}}} only")
            elif module.package == "models" and (
                package == "adapters" or (package == "aggregator" and _is_in(rest, SEE_ALL_PACKAGES))
            ):
                errors.append(f"{where}: models see neither adapters nor {', '.join(SEE_ALL_PACKAGES)}")
    return errors


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """The full dotted name of `a.b.c` with its first name resolved through the module's imports; "" otherwise."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value, aliases)):
        return f"{base}.{node.attr}"
    return ""


def forbidden_uses(modules: list[Module]) -> list[str]:
    """One sentence for every use of a module, a name or an argument that the project does without."""
    errors = []
    last_parts = {name.rpartition(".")[2] for name in FORBIDDEN_NAMES}
    for module in modules:
        for target, _, line in _imports(module):
            for name, reason in FORBIDDEN_MODULES.items():
                if _is_in(target, (name,)):
                    errors.append(f"{module.path}:{line} imports {name}: {reason}")
            if target in FORBIDDEN_NAMES:
                errors.append(f"{module.path}:{line} imports {target}: {FORBIDDEN_NAMES[target]}")
        aliases = {}
        nodes = [*ast.walk(module.tree)]
        for node in nodes:
            if isinstance(node, ast.Import):
                aliases.update({alias.asname: alias.name for alias in node.names if alias.asname})
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                aliases.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in last_parts:
                if (name := _dotted(node, aliases)) in FORBIDDEN_NAMES:
                    errors.append(f"{module.path}:{node.lineno} uses {name}: {FORBIDDEN_NAMES[name]}")
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                errors.append(f"{module.path}:{node.value.lineno} passes allow_pickle: runs code on loading")
    return errors


def test_every_aggregator_module_has_its_place_in_the_order() -> None:
    unknown = {
        module.name for module in _modules() if module.package == "aggregator" and module.name not in AGGREGATOR_ORDER
    } - {""}
    assert not unknown, f"put {', '.join(sorted(unknown))} in AGGREGATOR_ORDER, below everything they import"


def test_imports_go_one_way() -> None:
    errors = direction_errors(_modules())
    assert not errors, "\n".join(errors)


def test_nothing_forbidden_is_used() -> None:
    tests = [_module(path, ROOT) for path in sorted((ROOT / "tests").rglob("*.py"))]
    errors = forbidden_uses(_modules() + tests)
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("aggregator/margin.py", "from .engine import evaluate", "may only import what stands above it"),
        ("aggregator/margin.py", "from . import engine", "may only import what stands above it"),
        ("aggregator/margin.py", "def f():\n    from .margin import g", "may only import what stands above it"),
        ("aggregator/rules/weighted_value.py", "from ..risk import tile_sum", "may only import what stands above it"),
        ("aggregator/rules/weighted_value.py", "from . import apply", "may only import what stands above it"),
        ("aggregator/__init__.py", "from .errors import DataError", "may only import what stands above it"),
        ("aggregator/engine.py", "from aggregator.margin import f", "relative inside a package"),
        ("aggregator/engine.py", "import aggregator.margin", "relative inside a package"),
        ("aggregator/engine.py", "from models.tier_model import TierModel", "see the other packages"),
        ("aggregator/store.py", "import adapters", "see the other packages"),
        ("adapters/binance.py", "import jax.numpy as jnp", "never import JAX"),
        ("adapters/binance.py", "from equinox import Module", "never import JAX"),
        ("adapters/binance.py", "from aggregator.engine import evaluate", "adapters see aggregator."),
        ("adapters/binance.py", "from models import tier_model", "adapters see aggregator."),
        ("adapters/binance.py", "from adapters.symbols import resolve", "relative inside a package"),
        ("models/train.py", "from adapters import binance", "models see neither"),
        ("models/train.py", "from aggregator.sweep import run", "models see neither"),
        ("models/train.py", "from aggregator.run_inputs import read_inputs", "models see neither"),
        ("models/train.py", "from aggregator import cli", "models see neither"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(tmp_path: Path, path: str, source: str, message: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source + "\n", encoding="utf-8")
    errors = direction_errors(_modules(tmp_path))
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "aggregator/engine.py",
            "import jax\nfrom .margin import f\nfrom .rules.risk_unit import g\nfrom .rules import h",
        ),
        ("aggregator/rules/weighted_value.py", "from ..schema.canonical import ACCOUNTS\nfrom .. import __version__"),
        ("aggregator/rules/__init__.py", "from .weighted_value import weighted_value\nfrom ..pricing import value"),
        (
            "aggregator/run_inputs.py",
            "from adapters.adapter import find\nfrom models import tier_model\nfrom . import engine",
        ),
        (
            "adapters/binance.py",
            "from decimal import Decimal\nfrom aggregator.schema.canonical import MARKS\nfrom .symbols import f",
        ),
        ("models/train.py", "import jax\nfrom aggregator.engine import evaluate\nfrom .loss import pinball"),
    ],
)
def test_an_import_in_the_right_direction_passes(tmp_path: Path, path: str, source: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source + "\n", encoding="utf-8")
    assert direction_errors(_modules(tmp_path)) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("import yaml", "imports yaml"),
        ("from jax._src import core", "imports jax._src"),
        ("from jax import core", "imports jax.core"),
        ("from jax.experimental import shard_map", "imports jax.experimental.shard_map"),
        ("import jax.numpy as jnp\nx = jnp.empty(3)", "uses jax.numpy.empty"),
        ("from jax import numpy\nx = numpy.empty_like(y)", "uses jax.numpy.empty_like"),
        ("import jax\nx = jax.numpy.empty(3)", "uses jax.numpy.empty"),
        ("from jax.numpy import empty", "imports jax.numpy.empty"),
        ("import jax\nf = jax.pmap(g)", "uses jax.pmap"),
        ("import numpy\nx = numpy.load(p, allow_pickle=True)", "passes allow_pickle"),
    ],
)
def test_a_forbidden_use_is_found(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "models" / "train.py"
    path.parent.mkdir()
    path.write_text(source + "\n", encoding="utf-8")
    errors = forbidden_uses(_modules(tmp_path))
    assert len(errors) == 1
    assert message in errors[0]


def _modules_loaded_by(code: str) -> tuple[set[str], str]:
    """Names in `sys.modules` after `code` ran in a process of its own, and what it wrote to standard output."""
    script = (
        f"import json, sys\ntry:\n    {code}\nfinally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    finished = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert finished.returncode == 0, finished.stderr
    return set(json.loads(finished.stderr.splitlines()[-1])), finished.stdout


def test_importing_the_command_line_loads_no_jax() -> None:
    loaded, _ = _modules_loaded_by("import aggregator.cli")
    assert "aggregator.cli" in loaded
    assert not loaded.intersection(JAX_FAMILY)


def test_help_loads_no_jax() -> None:
    loaded, output = _modules_loaded_by(
        "sys.argv = ['crossmargin', '--help']; import aggregator.__main__ as m; m.main()"
    )
    assert "sweep" in output
    assert not loaded.intersection(JAX_FAMILY)


def test_adapters_load_no_jax_even_indirectly() -> None:
    names = [f"adapters.{module.name}".rstrip(".") for module in _modules() if module.package == "adapters"]
    loaded, _ = _modules_loaded_by(f"import {', '.join(names)}")
    assert set(names) <= loaded
    assert not loaded.intersection(JAX_FAMILY)

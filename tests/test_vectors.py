"""Every reference case of `tests/vectors` (or of `--vectors DIR`) against this code.

A folder holds `<topic>.json` files and `venues/<venue>.json` files of cases (name, kind, inputs, expected, tolerance).
`tests/vectors/KINDS.md` lists every file, kind and key; anything outside of it is an error, in whatever folder. The
code under test is reached through one module per file, `tests/kinds_<file>.py`, whose `CHECKS` maps a kind to a
function from the list of `inputs` of all cases of the kind to the list of results. Every key of `expected` is compared:

- numbers as exact fractions (a float by its binary value, a string by its decimal digits), within the case's `abs` or
  `rel`, either of which suffices; without either, equal;
- the quantities in `ENGINE_FORM_KEYS` also pass at 1e-9 relative: what the vectorized rule forms compute in float64;
- null and 2^256 - 1 mean none or infinite, and so does an infinite result;
- lists element by element, other strings and booleans by equality;
- except the keys in `ONE_OF_SEVERAL`, which show one of several right answers.

The second half of the file proves that this suite can fail.
"""

import importlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

Case = dict[str, Any]
Check = Callable[[list[Case]], list[Case]]

VECTORS = Path(__file__).resolve().parent / "vectors"

# Subjects that are not built yet: a whole file, or one kind of a file as `<file>/<kind>`. Their kinds are reported as
# skipped, with the number of cases and why.
NOT_YET = {
    "liquidation": "liquidation cascades and contagion are not built yet",
    "rebalance": "hedge and collateral recommendations are not built yet",
}

# Maps whose keys are data (a coin, a market, a strike), so that KINDS.md can only show the ones that occur. The value
# of any key under them must have the shape of the ones shown.
DATA_MAPS = {
    ("scenarios", "call_prices"),
    ("scenarios", "calls"),
    ("venues/binance", "coins"),
    ("venues/binance", "margin_equity"),
    ("venues/binance", "margin_mm"),
    ("venues/derive", "markets"),
}

# Native margin at current prices is float64 and equals the venue at 1e-9 relative: an engine form may stand in for the
# venue's integers in these quantities (and in no mechanics, which are exact).
ENGINE_FORM_RELATIVE = Fraction(1, 10**9)
ENGINE_FORM_KEYS = {
    "account_value",
    "equity",
    "equity_usd",
    "health",
    "health_factor",
    "im",
    "imr",
    "initial_margin",
    "maintenance_margin",
    "margin_equity",
    "margin_mm",
    "margin_requirement",
    "mm",
    "mm_usd",
    "mmr",
    "requirement",
    "uni_mmr",
}

# One optimum where several attain the same value, so another is no error. `test_transfer_shortfall` proves that the one
# shown attains the minimum that this code finds.
ONE_OF_SEVERAL = {("margin", "tces"): {"K_one_optimum"}}

UNLIMITED = 2**256 - 1
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_KIND = re.compile(r"\*\*(?P<kind>\w+)\*\* \(\d+ cases\)")
_KEY = re.compile(r"`(?P<path>[^`]+)`")


class KnownKeys(NamedTuple):
    inputs: frozenset[str]
    expected: frozenset[str]


class Folder(NamedTuple):
    """Cases by (file, kind), and what in the folder is unknown to KINDS.md or unreadable."""

    cases: dict[tuple[str, str], list[Case]]
    problems: list[str]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def known_kinds(text: str) -> dict[tuple[str, str], KnownKeys]:
    """(file, kind) -> the paths of its keys, from the text of KINDS.md."""
    known: dict[tuple[str, str], KnownKeys] = {}
    file = kind = None
    for line in text.splitlines():
        if line.startswith("## "):
            file, kind = line.removeprefix("## ").strip(), None
        elif found := _KIND.match(line):
            kind = found["kind"]
        elif kind is not None and file is not None and line.startswith(("- inputs: ", "- expected: ")):
            part, _, listed = line.removeprefix("- ").partition(": ")
            paths = frozenset(path.removesuffix("?") for path in _KEY.findall(listed))
            known[file, kind] = known.get((file, kind), KnownKeys(frozenset(), frozenset()))._replace(**{part: paths})
    return known


def _leaves(value: Any, file: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values of all leaves, as KINDS.md writes them: `a.b`, `a[].b`, `a[][]`; keys of a data map are `*`."""
    if isinstance(value, dict) and (value or not prefix):
        is_data = (file, prefix.rpartition(".")[2]) in DATA_MAPS
        for key, item in value.items():
            name = "*" if is_data else key
            yield from _leaves(item, file, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list) and value:
        for item in value:
            yield from _leaves(item, file, f"{prefix}[]")
    elif isinstance(value, list):
        yield f"{prefix}[]", value
    else:
        yield prefix, value


def _with_data_keys_starred(path: str, file: str) -> str:
    for map_file, name in DATA_MAPS:
        if map_file == file:
            # Strikes hold a dot themselves ("70.0"); everything else stops at the next dot.
            key = r"[^.\[]+(?:\.\d+)?" if file == "scenarios" else r"[^.\[]+"
            path = re.sub(rf"(^|\.)({name})\.{key}", r"\1\2.*", path)
    return path


def _unknown_paths(value: Any, known: frozenset[str], file: str) -> list[str]:
    allowed = {_with_data_keys_starred(path, file) for path in known}
    # A list may be empty in one case and hold lists or maps in another, and a map or list may be null as a whole.
    may_be_empty = {path[: found.end()] for path in allowed for found in re.finditer(r"\[\]", path)}
    may_be_null = {path[: found.start()] for path in allowed for found in re.finditer(r"[.\[]", path)}
    unknown = {
        path
        for path, leaf in _leaves(value, file)
        if path not in allowed
        and not (leaf == [] and path in may_be_empty)
        and not (leaf in (None, {}) and path in may_be_null)
    }
    return sorted(unknown)


def read_folder(folder: Path) -> Folder:
    """All cases of `folder`, with a sentence for everything in it that KINDS.md does not know."""
    known = known_kinds((VECTORS / "KINDS.md").read_text(encoding="utf-8"))
    cases: dict[tuple[str, str], list[Case]] = {}
    problems: list[str] = []
    found = sorted([*folder.glob("*.json"), *folder.glob("venues/*.json")])
    if not found:
        problems.append(f"{folder}: no <topic>.json and no venues/<venue>.json in it")
    for path in found:
        file = path.relative_to(folder).with_suffix("").as_posix()
        if file not in {name for name, _ in known}:
            problems.append(f"{file}: file not listed in KINDS.md")
            continue
        for number, case in enumerate(json.loads(path.read_text(encoding="utf-8"))["cases"]):
            where = f"{file}: case {case.get('name', number)!r}"
            missing = [key for key in ("name", "kind", "inputs", "expected", "tolerance") if key not in case]
            if missing:
                problems.append(f"{where}: without {', '.join(missing)}")
                continue
            if not case["expected"]:
                problems.append(f"{where}: expects nothing")
            keys = known.get((file, case["kind"]))
            if keys is None:
                problems.append(f"{where}: kind {case['kind']!r} not listed in KINDS.md")
                continue
            for part, listed in (("inputs", keys.inputs), ("expected", keys.expected)):
                problems.extend(
                    f"{where}: key {unknown!r} of {part} not listed in KINDS.md for kind {case['kind']!r}"
                    for unknown in _unknown_paths(case[part], listed, file)
                )
            problems.extend(
                f"{where}: tolerance {name!r} is neither abs nor rel"
                for name in case["tolerance"]
                if name not in ("abs", "rel")
            )
            cases.setdefault((file, case["kind"]), []).append(case)
    return Folder(cases, problems)


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


def _number(value: Any) -> Fraction | None:
    """The exact value of a number or of a decimal string; None for anything else, NaN and infinities included."""
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, str):
        return Fraction(Decimal(value)) if _DECIMAL.fullmatch(value) else None
    if isinstance(value, (int, np.integer)):
        return Fraction(int(value))
    if isinstance(value, (float, np.floating)):
        return Fraction(float(value)) if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return Fraction(value) if value.is_finite() else None
    return value if isinstance(value, Fraction) else None


def _means_none(value: Any) -> bool:
    if isinstance(value, (float, np.floating, Decimal)):
        return math.isinf(value) and bool(value > 0)
    return value is None or _number(value) == UNLIMITED


def differences(expected: Any, got: Any, tolerance: Case, path: str = "") -> list[str]:
    """One sentence per place where `got` is not what is expected; empty if it passes."""
    if isinstance(expected, dict):
        if not isinstance(got, dict):
            return [f"{path}: expected a map, got {got!r}"]
        found = []
        for key, value in expected.items():
            place = f"{path}.{key}" if path else key
            if key in got:
                found += differences(value, got[key], tolerance, place)
            else:
                found.append(f"{place}: expected {value!r}, missing in the result")
        return found
    if isinstance(expected, list):
        if not isinstance(got, Sequence | np.ndarray) or isinstance(got, str):
            return [f"{path}: expected a list, got {got!r}"]
        if len(got) != len(expected):
            return [f"{path}: expected {len(expected)} elements, got {len(got)}: {got!r}"]
        pairs = enumerate(zip(expected, got, strict=True))
        return [text for i, (e, g) in pairs for text in differences(e, g, tolerance, f"{path}[{i}]")]
    if _means_none(expected) or _means_none(got):
        return [] if _means_none(expected) and _means_none(got) else [f"{path}: expected {expected!r}, got {got!r}"]

    wanted, value = _number(expected), _number(got)
    if wanted is None or value is None:
        kinds_agree = isinstance(expected, bool) == isinstance(got, (bool, np.bool_))
        return (
            []
            if wanted is value is None and kinds_agree and expected == got
            else [f"{path}: expected {expected!r}, got {got!r}"]
        )
    absolute, relative = (_number(tolerance[name]) if name in tolerance else Fraction(0) for name in ("abs", "rel"))
    if absolute is None or relative is None:
        return [f"{path}: the tolerance {tolerance!r} is not a number"]
    if ENGINE_FORM_KEYS.intersection(re.split(r"[.\[\]]+", path)):
        relative = max(relative, ENGINE_FORM_RELATIVE)
    error = abs(value - wanted)
    if error <= absolute or error <= relative * abs(wanted):
        return []
    off = f"{float(error):.6g}" + (f" ({float(error / abs(wanted)):.3g} relative)" if wanted else "")
    return [f"{path}: expected {expected!r}, got {got!r}, error {off}, tolerance {tolerance!r}"]


# ---------------------------------------------------------------------------------------------------------------------
# Running


def reason_not_yet(file: str, kind: str) -> str | None:
    """Why `kind` of `file` is not computed, or None if it has to be."""
    return NOT_YET.get(file, NOT_YET.get(f"{file}/{kind}"))


def check_of(file: str, kind: str) -> Check:
    """The function that computes `kind`, from `tests/kinds_<file>.py`."""
    name = f"tests.kinds_{file.rpartition('/')[2]}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise LookupError(f"{file}: {name.replace('.', '/')}.py is missing, and the file is not in NOT_YET") from None
    checks: dict[str, Check] = module.CHECKS
    if kind not in checks:
        raise LookupError(f"{file}: {name}.CHECKS has no function for kind {kind!r}, only {sorted(checks)}")
    return checks[kind]


class Batches:
    """Results of each kind, computed in one call on first use and kept for the kind's other cases."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._results: dict[tuple[str, str], list[Case | Exception]] = {}

    def result(self, file: str, kind: str, number: int) -> Case:
        key = file, kind
        if key not in self._results:
            self._results[key] = self._compute(file, kind)
        found = self._results[key][number]
        if isinstance(found, Exception):
            raise found
        return found

    def _compute(self, file: str, kind: str) -> list[Case | Exception]:
        inputs = [case["inputs"] for case in self._folder.cases[file, kind]]
        try:
            check = check_of(file, kind)
        except LookupError as error:
            return [LookupError(*error.args) for _ in inputs]
        try:
            results: list[Case | Exception] = [*check(inputs)]
        except Exception:
            # One case that raises must not take the others of its kind with it.
            return [self._alone(check, case) for case in inputs]
        if len(results) != len(inputs):
            short = f"{file}: {kind}: {len(inputs)} cases went in, {len(results)} results came out"
            return [AssertionError(short) for _ in inputs]
        return results

    @staticmethod
    def _alone(check: Check, case: Case) -> Case | Exception:
        try:
            (result,) = check([case])
        except Exception as error:
            return error
        return result


_FOLDERS: dict[Path, Folder] = {}


def folder_of(config: pytest.Config) -> tuple[Path, Folder]:
    given = config.getoption("--vectors")
    path = Path(given).resolve() if given else VECTORS
    if path not in _FOLDERS:
        _FOLDERS[path] = read_folder(path)
    return path, _FOLDERS[path]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "vector" not in metafunc.fixturenames:
        return
    _, folder = folder_of(metafunc.config)
    parameters = []
    for (file, kind), cases in folder.cases.items():
        if reason_not_yet(file, kind) is not None:
            parameters.append(pytest.param((file, kind, None), id=f"{file}-{kind}"))
        else:
            parameters += [
                pytest.param((file, kind, number), id=f"{file}-{kind}-{case['name']}")
                for number, case in enumerate(cases)
            ]
    metafunc.parametrize("vector", parameters)


@pytest.fixture(scope="module")
def batches(request: pytest.FixtureRequest) -> Batches:
    return Batches(folder_of(request.config)[1])


def test_everything_in_the_folder_is_known(request: pytest.FixtureRequest) -> None:
    path, folder = folder_of(request.config)
    assert not folder.problems, f"{len(folder.problems)} problems in {path}:\n" + "\n".join(folder.problems[:50])


def test_case(vector: tuple[str, str, int | None], batches: Batches, request: pytest.FixtureRequest) -> None:
    file, kind, number = vector
    _, folder = folder_of(request.config)
    cases = folder.cases[file, kind]
    if number is None:
        reason = f"{file}: {kind} ({len(cases)} cases): {reason_not_yet(file, kind)}"
        pytest.skip(reason)
    case = cases[number]
    got = batches.result(file, kind, number)
    several = ONE_OF_SEVERAL.get((file, kind), set())
    expected = {key: value for key, value in case["expected"].items() if key not in several}
    found = differences(expected, got, case["tolerance"])
    if found:
        pytest.fail(
            f"{file}: {kind}: {case['name']}\n"
            f"inputs    {json.dumps(case['inputs'])}\n"
            f"expected  {json.dumps(case['expected'])}\n"
            f"got       {got!r}\n"
            f"tolerance {case['tolerance']!r}\n"
            f"note      {case.get('note', '')}\n" + "\n".join(found),
            pytrace=False,
        )


# ---------------------------------------------------------------------------------------------------------------------
# The suite can fail


PERP: Case = {
    "name": "one",
    "kind": "inverse_perp",
    "inputs": {"usd_notional": 100.0, "entry": 50.0, "mark": 60.0},
    "expected": {"pnl_coin": 1 / 3, "pnl_usd": 20.0, "dpnl_coin_dS": 100 / 3600, "d2pnl_coin_dS2": -200 / 216000},
    "tolerance": {"rel": 1e-9},
}


def _write(folder: Path, name: str, *cases: Case) -> Path:
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"meta": {}, "cases": list(cases)}), encoding="utf-8")
    return folder


def test_a_good_folder_has_no_problems_and_passes(tmp_path: Path) -> None:
    folder = read_folder(_write(tmp_path, "pricing", PERP))
    assert folder.problems == []
    got = Batches(folder).result("pricing", "inverse_perp", 0)
    assert differences(PERP["expected"], got, PERP["tolerance"]) == []


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("pricing", {"kind": "inverse_prep"}, "kind 'inverse_prep' not listed"),
        ("pricings", {}, "file not listed"),
        ("venues/pricing", {}, "file not listed"),
        ("pricing", {"inputs": {**PERP["inputs"], "fee": 1.0}}, "key 'fee' of inputs not listed"),
        ("pricing", {"inputs": {**PERP["inputs"], "mark": {"bid": 1.0}}}, "key 'mark.bid' of inputs not listed"),
        ("pricing", {"inputs": {**PERP["inputs"], "mark": [60.0]}}, "key 'mark[]' of inputs not listed"),
        ("pricing", {"inputs": {**PERP["inputs"], "mark": []}}, "key 'mark[]' of inputs not listed"),
        ("pricing", {"expected": {**PERP["expected"], "pnl": 1.0}}, "key 'pnl' of expected not listed"),
        ("pricing", {"expected": {}}, "expects nothing"),
        ("pricing", {"tolerance": {"relative": 1.0}}, "neither abs nor rel"),
    ],
)
def test_what_kinds_does_not_list_is_a_problem(tmp_path: Path, file: str, change: Case, complaint: str) -> None:
    problems = read_folder(_write(tmp_path, file, {**PERP, **change})).problems
    assert len(problems) == 1
    assert complaint in problems[0]


def test_a_case_without_tolerance_and_an_empty_folder_are_problems(tmp_path: Path) -> None:
    bare = {key: value for key, value in PERP.items() if key != "tolerance"}
    assert "without tolerance" in read_folder(_write(tmp_path / "bare", "pricing", bare)).problems[0]
    (tmp_path / "empty").mkdir()
    assert "no <topic>.json" in read_folder(tmp_path / "empty").problems[0]


def test_keys_that_are_data_may_be_new_but_their_fields_may_not(tmp_path: Path) -> None:
    coin = {"margin_asset": 1.0, "margin_loan": 0.0, "futures_wallet": 0.0, "futures_upnl": 0.0, "futures_mm": 0.0}
    coin |= {"index": 100.0, "collateral_rate": 0.9}
    case: Case = {
        "name": "one",
        "kind": "binance_unimmr",
        "inputs": {"loan_mmr": 0.1, "open_loss_usd": 0.0, "coins": {"SOL": coin}},
        "expected": {"equity_usd": 90.0},
        "tolerance": {"rel": 1e-9},
    }
    assert read_folder(_write(tmp_path / "new", "venues/binance", case)).problems == []
    case["inputs"]["coins"]["SOL"] = {**coin, "price": 1.0}
    problems = read_folder(_write(tmp_path / "field", "venues/binance", case)).problems
    assert len(problems) == 1
    assert "'coins.*.price'" in problems[0]


@pytest.mark.parametrize(
    ("expected", "got", "tolerance"),
    [
        ({"a": 1.0}, {}, {"rel": 1.0}),
        ({"a": 1.0}, {"a": 1.1}, {"rel": 1e-2}),
        ({"a": 1.0}, {"a": 1.1}, {"abs": "0.05"}),
        ({"a": 1.0}, {"a": math.nan}, {"abs": 1e9, "rel": 1e9}),
        ({"a": 1.0}, {"a": math.inf}, {"abs": 1e9, "rel": 1e9}),
        ({"a": 1.0}, {"a": None}, {"abs": 1e9}),
        ({"a": 1.0}, {"a": True}, {"abs": 1e9}),
        ({"a": True}, {"a": 1}, {"abs": 1e9}),
        ({"a": True}, {"a": False}, {"abs": 1e9}),
        ({"a": None}, {"a": 0.0}, {"abs": 1e9}),
        ({"a": str(UNLIMITED)}, {"a": str(UNLIMITED - 1)}, {"abs": 0}),
        ({"a": "normal"}, {"a": "margin_call"}, {"abs": 1e9}),
        ({"a": "100000000000000000000000001"}, {"a": 1e26}, {"abs": 0}),
        ({"a": [1.0, 2.0]}, {"a": [1.0]}, {"abs": 1e9}),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.1]}, {"abs": 1e-3}),
        ({"a": [1.0]}, {"a": "1"}, {"abs": 1e9}),
        ({"a": {"b": 1.0}}, {"a": {"c": 1.0}}, {"abs": 1e9}),
        ({"a": 1.0}, {"a": 1.0}, {"abs": "nought"}),
        ({"total_debt_base": "1000000000000"}, {"total_debt_base": "1000000000001"}, {"abs": 0}),
        ({"im": 1.0}, {"im": 1.0 + 2e-9}, {"abs": 0}),
    ],
)
def test_a_wrong_result_is_found(expected: Case, got: Case, tolerance: Case) -> None:
    assert len(differences(expected, got, tolerance)) == 1


@pytest.mark.parametrize(
    ("expected", "got", "tolerance"),
    [
        ({"a": 100.0}, {"a": 101.0}, {"rel": "0.01"}),
        ({"a": 100.0}, {"a": np.float32(101.0)}, {"rel": 1e-9, "abs": 1}),
        ({"a": "1.50"}, {"a": Decimal("1.5")}, {}),
        ({"a": "3"}, {"a": 3}, {"abs": 0}),
        ({"a": [1.0, [2.0]]}, {"a": (np.float64(1.0), np.array([2.0]))}, {}),
        ({"a": None}, {"a": math.inf}, {}),
        ({"a": str(UNLIMITED)}, {"a": None}, {}),
        ({"a": "full"}, {"a": "full"}, {"abs": 1}),
        ({"a": True}, {"a": np.bool_(True)}, {}),
        ({"im": "1000000000000"}, {"im": 1000000000001.0}, {"abs": 0}),
        ({"margin_mm": {"BTC": 1.0}}, {"margin_mm": {"BTC": 1.0 + 1e-10, "ETH": 0.0}}, {"rel": 0}),
    ],
)
def test_a_right_result_passes(expected: Case, got: Case, tolerance: Case) -> None:
    assert differences(expected, got, tolerance) == []


def test_a_missing_module_a_missing_kind_and_a_missing_result_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LookupError, match=r"kinds_liquidation\.py is missing"):
        check_of("liquidation", "adl")
    with pytest.raises(LookupError, match="no function for kind 'inverse_prep'"):
        check_of("pricing", "inverse_prep")
    broken = {**PERP, "name": "two", "inputs": {"entry": 50.0, "mark": 60.0}}
    folder = read_folder(_write(tmp_path, "pricing", PERP, broken))
    batches = Batches(folder)
    assert differences(PERP["expected"], batches.result("pricing", "inverse_perp", 0), PERP["tolerance"]) == []
    with pytest.raises(KeyError, match="usd_notional"):
        batches.result("pricing", "inverse_perp", 1)
    monkeypatch.setitem(
        importlib.import_module("tests.kinds_pricing").CHECKS, "inverse_perp", lambda inputs: inputs[:1]
    )
    with pytest.raises(AssertionError, match="2 cases went in, 1 results came out"):
        Batches(folder).result("pricing", "inverse_perp", 0)


def test_every_listed_kind_is_either_computed_or_not_yet() -> None:
    listed = set(known_kinds((VECTORS / "KINDS.md").read_text(encoding="utf-8")))
    venues = {f"venues/{path.stem}" for path in (VECTORS / "venues").glob("*.json")}
    in_scope = {"margin", "pricing", "risk_measures", "scenarios"} | venues
    assert len(in_scope) == 18
    whole_files = {name for name in NOT_YET if name in {file for file, _ in listed}}
    assert {file for file, _ in listed} == in_scope | whole_files
    assert not in_scope & whole_files
    for file, kind in sorted(listed):
        if reason_not_yet(file, kind) is None:
            assert callable(check_of(file, kind))


def test_a_not_yet_that_names_nothing_or_something_that_is_computed_is_found() -> None:
    listed = set(known_kinds((VECTORS / "KINDS.md").read_text(encoding="utf-8")))
    names = {file for file, _ in listed} | {f"{file}/{kind}" for file, kind in listed}
    assert set(NOT_YET) <= names
    for file, kind in listed:
        if reason_not_yet(file, kind) is not None:
            with pytest.raises(LookupError, match=r"is missing|has no function"):
                check_of(file, kind)


def test_a_kind_is_skipped_by_its_own_name_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOT_YET, "pricing/quanto", "not built")
    assert reason_not_yet("pricing", "quanto") == "not built"
    assert reason_not_yet("pricing", "inverse_perp") is None
    assert reason_not_yet("venues/pricing", "quanto") is None
    monkeypatch.setitem(NOT_YET, "pricing", "nothing of it")
    assert reason_not_yet("pricing", "inverse_perp") == "nothing of it"

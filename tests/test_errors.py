"""Error families, the closed list of reasons, exit codes and hints."""

import dataclasses

import pytest

from aggregator.errors import (
    PRECEDENCE,
    ConfigurationError,
    CrossmarginError,
    DataError,
    ExitCode,
    Failure,
    FailureReason,
    StoreError,
    VenueUnreachableError,
    nearest_name,
)


def test_the_list_of_reasons_is_the_documented_one() -> None:
    documented = (
        "malformed missing_field not_a_number out_of_range unknown_market unknown_asset missing_parameter missing_mark "
        "stale duplicate inconsistent unsupported unreachable calculation"
    )
    assert [str(reason) for reason in FailureReason] == documented.split()


@pytest.mark.parametrize(
    ("family", "code"),
    [
        (CrossmarginError, 1),
        (StoreError, 1),
        (ConfigurationError, 2),
        (DataError, 3),
        (VenueUnreachableError, 5),
    ],
)
def test_each_family_has_its_documented_exit_code(family: type[CrossmarginError], code: int) -> None:
    assert issubclass(family, CrossmarginError)
    assert family.exit_code == code


def test_every_bad_exit_has_a_rank_and_unreachable_comes_before_bad_data() -> None:
    assert set(PRECEDENCE) == set(ExitCode) - {ExitCode.OK}
    assert len(PRECEDENCE) == len(set(PRECEDENCE))
    assert [int(code) for code in PRECEDENCE] == [1, 2, 4, 5, 3]


def test_a_data_error_says_reason_message_and_place_and_keeps_the_failure() -> None:
    failure = Failure(FailureReason.NOT_A_NUMBER, "'abc' is not a number", "binance", "account.json", "assets[2].free")
    error = DataError(failure)
    assert str(error) == "not_a_number: 'abc' is not a number (binance account.json assets[2].free)"
    assert error.failure is failure


def test_a_data_error_without_a_place_has_no_empty_brackets() -> None:
    assert str(DataError(Failure(FailureReason.STALE, "too old"))) == "stale: too old"


def test_a_failure_cannot_be_changed() -> None:
    failure = Failure(FailureReason.STALE, "too old")
    with pytest.raises(dataclasses.FrozenInstanceError):
        failure.message = "fresh"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("scenrios", " (did you mean 'scenarios'?)"),
        ("scenarios", " (did you mean 'scenarios'?)"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_the_nearest_name_is_a_hint_or_nothing(name: str, hint: str) -> None:
    assert nearest_name(name, ["engine", "scenarios", "store"]) == hint


def test_there_is_no_hint_without_names_and_a_generator_of_names_will_do() -> None:
    assert nearest_name("engine", []) == ""
    assert nearest_name("engin", (name for name in ("store", "engine"))) == " (did you mean 'engine'?)"

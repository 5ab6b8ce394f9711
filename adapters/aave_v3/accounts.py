"""An owner's supplies and debts in one market: one account, accrued to the second at which its payload was received."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from aggregator.errors import FailureReason

from ..adapter import Context
from ..amounts import FieldError, joined, token_amount
from ..market_rows import add_mark, add_reconciliation_note
from ..rows import Rows
from ..transport import Payload
from .deployments import Deployment
from .markets import EMODES, RESERVES, Market, asset_of
from .mechanics import RAY, EMode, effective_parameters, owed_amount, supplied_amount
from .parse import (
    Reported,
    Reserve,
    read_account_data,
    read_user_reserve,
    repeated_addresses,
    unsigned_at,
    user_answer,
    user_records,
)
from .rules import rule_set_id

USER_RESERVES, ACCOUNT_DATA = "getUserReservesData", "getUserAccountData"


class Account(NamedTuple):
    """One owner in one market."""

    owner: str
    account_id: str
    """`aave_v3:<owner>:<market>`."""
    market: Market
    context: Context

    @property
    def deployment(self) -> Deployment:
        return self.market.deployment

    def read(self, rows: Rows, answers: Mapping[str, Payload]) -> int:
        """Adds the account and its balances from the owner's `answers` by request; returns its e-mode category (0 when
        none, or not known).
        """
        user, data = answers.get(USER_RESERVES), answers.get(ACCOUNT_DATA)
        category, path = 0, ""
        answer: Mapping[str, Any] | None = None
        if user is None:
            self._fail(rows, FailureReason.MISSING_FIELD, f"no usable payload of {USER_RESERVES}", USER_RESERVES)
        else:
            with rows.guard(user.name, subject=self.owner, account_id=self.account_id):
                answer, path = user_answer(user.body)
            if answer is not None:
                with rows.guard(user.name, subject=self.owner, account_id=self.account_id):
                    category = unsigned_at(answer, "userEmodeCategoryId", path, largest=255)
        if self.market.payload is None:
            self._fail(rows, FailureReason.MISSING_MARK, f"no usable payload of {RESERVES}", RESERVES)
        emode = self.market.emodes.get(category)
        if category and emode is None:
            self._fail_emode(rows, category)
        if user is not None and answer is not None and self.market.payload is not None:
            self._add_balances(rows, user, answer, path, emode)
        reported = self._reported(rows, data)
        newest = user or data
        rows.add(
            "accounts",
            account_id=self.account_id,
            node=self.account_id,
            venue=rows.venue,
            chain=self.deployment.chain,
            owner=self.owner,
            margin_mode="lending",
            rule_set=rule_set_id(self.deployment),
            settlement_asset="USD",
            emode=str(category) if category else None,
            received_at=newest.received_at if newest else None,
            reported_equity=reported.equity if reported else None,
            reported_maintenance_margin=reported.maintenance_margin if reported else None,
            reported_health=reported.health if reported else None,
        )
        return category

    def _fail(self, rows: Rows, reason: FailureReason, message: str, path: str) -> None:
        rows.fail(reason, message, path=path, subject=self.owner, account_id=self.account_id)

    def _fail_emode(self, rows: Rows, category: int) -> None:
        where = RESERVES if self.deployment.generation.emode_of_reserves else EMODES
        error = self.market.bad_emodes.get(category)
        if error is None:
            message, reason = f"e-mode category {category} is not known", FailureReason.MISSING_PARAMETER
        else:
            message, reason = f"e-mode category {category} cannot be used: {error.message}", error.reason
        self._fail(rows, reason, message, where)

    def _reported(self, rows: Rows, data: Payload | None) -> Reported | None:
        """The venue's own figures. They are for comparison: an unreadable one is a finding and stops nobody."""
        if data is None or self.market.base is None:
            return None
        with rows.guard(data.name, subject=self.account_id):
            reported = read_account_data(data.body, self.market.base, self.deployment.generation)
            if reported.health_slack:
                words = f"{self.deployment.generation.name} floors the average threshold to a basis point"
                slack, as_of = reported.health_slack, data.received_at
                add_reconciliation_note(rows, self.account_id, "health", slack, words, as_of=as_of, source=data.request)
            return reported
        return None

    def _add_balances(
        self, rows: Rows, user: Payload, answer: Mapping[str, Any], inner: str, emode: EMode | None
    ) -> None:
        with rows.guard(user.name, subject=self.owner, account_id=self.account_id):
            records = user_records(answer, inner)
            twice = repeated_addresses(records)
            where = joined(inner, "userReserves")
            if not records and self.market.records:
                message = "no reserves: the contract lists every reserve of the market for every user"
                raise FieldError(where, FailureReason.MISSING_FIELD, message)
            if emode is not None and not self.market.places_tell(records):
                # A finding of its own: the balances are what they are, their e-mode is not known.
                message = (
                    "reserves are not listed as in getReservesData, so that their places there do not tell the bits of "
                    "the e-mode category; give the reserves their `id`"
                )
                with rows.guard(user.name, subject=self.owner, account_id=self.account_id):
                    raise FieldError(where, FailureReason.INCONSISTENT, message)
            for i, record in enumerate(records):
                path = joined(where, i)
                with rows.guard(user.name, subject=self.owner, account_id=self.account_id):
                    self._add_balance(rows, record, path, user=user, emode=emode, twice=twice)

    def _add_balance(
        self, rows: Rows, record: Any, path: str, *, user: Payload, emode: EMode | None, twice: set[str]
    ) -> None:
        held = read_user_reserve(record, path)
        if held.address in twice:
            raise FieldError(path, FailureReason.DUPLICATE, f"several entries of {held.address}; all rejected")
        if held.scaled_supply == held.scaled_debt == 0:
            return
        reserve = self._reserve(held.address, path)
        generation = self.deployment.generation
        received = user.received_at or (self.market.payload.received_at if self.market.payload else None)
        liquidity_index, borrow_index = reserve.indices_at(received, generation)
        effective = effective_parameters(reserve.parameters, reserve.reserve_id, emode, generation=generation)
        if supplied := supplied_amount(held.scaled_supply, liquidity_index, generation):
            rows.add(
                "balances",
                account_id=self.account_id,
                asset_id=reserve.asset_id,
                side="asset",
                quantity=token_amount(supplied, reserve.decimals),
                collateral_enabled=held.is_collateral and effective.liquidation_threshold > 0,
            )
        if owed := owed_amount(held.scaled_debt, borrow_index, generation):
            rows.add(
                "balances",
                account_id=self.account_id,
                asset_id=reserve.asset_id,
                side="liability",
                quantity=token_amount(owed, reserve.decimals),
                collateral_enabled=True,
            )
            # The account's own mark: another deployment of the chain lends the same token at another rate.
            market = self.market.payload
            add_mark(
                rows,
                reserve.asset_id,
                "borrow_rate",
                Fraction(reserve.borrow_rate, RAY),
                as_of=market.received_at if market else None,
                source=market.request if market else RESERVES,
                account_id=self.account_id,
            )

    def _reserve(self, address: str, path: str) -> Reserve:
        where = joined(path, "underlyingAsset")
        if address in self.market.unreadable:
            error = self.market.unreadable[address]
            raise FieldError(where, error.reason, f"reserve {address} cannot be used: {error.message}")
        reserve = self.market.reserves.get(address)
        if reserve is None:
            raise FieldError(where, FailureReason.UNKNOWN_MARKET, f"no reserve {address} in {RESERVES}")
        if asset_of(self.context, reserve) is None:
            raise FieldError(where, FailureReason.UNKNOWN_ASSET, f"token {reserve.symbol!r} is not in the asset book")
        return reserve

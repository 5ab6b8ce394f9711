"""How the report writes names and figures: pure functions from a value to text, safe to be placed in HTML.

A figure that does not exist is n/a and never 0; what would round to zero is shown as below the last digit. A minus is
typographic. Names keep their whole text in a title where the page shows a part of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from .errors import StoreError
from .report_charts import MINUS, NO_BREAK, compact

NOT_AVAILABLE = Markup('<span class="na">n/a</span>')
_UNBOUNDED = "unbounded"
# Control characters are not allowed in HTML, and direction overrides can make text read as something else.
_UNPRINTABLE = dict.fromkeys(
    (
        *(code for code in range(0x20) if chr(code) not in "\t\n\r"),
        *range(0x7F, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *(0xFFFE, 0xFFFF),
    ),
    "\ufffd",
)


class Limited(NamedTuple):
    """Rows for the page and how many more there are."""

    rows: Sequence[Any]
    more: int


def limited(rows: Sequence[Any], count: int) -> Limited:
    """The first `count` rows."""
    return Limited(list(rows[:count]), max(0, len(rows) - count))


def parsed_json(text: str, where: str) -> Any:
    """The value of a JSON column; `StoreError` that names the column where it is damaged."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreError(f"{where}: expected JSON, found {text[:40]!r} ({error})") from error


def decimals_of(amounts: Iterable[float | None]) -> int:
    """Decimals of the USD columns: cents only for small books."""
    return 2 if max((abs(amount) for amount in amounts if amount is not None), default=0.0) < 10_000 else 0


def counted(number: int, noun: str) -> str:
    """1 account, 2 accounts."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _signed(text: str) -> str:
    """A typographic minus, and no sign on a figure that is all zeros."""
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.,") else MINUS + text[1:]
    return text


def words(amount: float | None) -> str | Markup:
    """USD 1.24 M; n/a for None, unbounded for a requirement that nothing covers."""
    if amount is None:
        return NOT_AVAILABLE
    return _UNBOUNDED if math.isinf(amount) else f"USD{NO_BREAK}{compact(amount)}"


def words_with_error(amount: float | None, error: float | None) -> str | Markup:
    """USD 125 k ± 12.3 k, one standard error; the amount alone where its error is not known."""
    if amount is None or error is None:
        return words(amount)
    return f"{words(amount)}{NO_BREAK}±{NO_BREAK}{compact(error)}"


def full(amount: float | None, decimals: int = 0) -> str | Markup:
    """A figure in full with thousands separators; n/a for None, unbounded for an infinite one."""
    if amount is None:
        return NOT_AVAILABLE
    return _UNBOUNDED if math.isinf(amount) else _signed(f"{amount:,.{decimals}f}")


def full_with_error(amount: float | None, error: float | None, decimals: int = 0) -> str | Markup:
    """124,946 ± 12,348, one standard error; the figure alone where its error is not known."""
    if amount is None or error is None:
        return full(amount, decimals)
    return f"{full(amount, decimals)}{NO_BREAK}±{NO_BREAK}{full(error, decimals)}"


def native(amount: float | None) -> str | Markup:
    """A figure in a unit of unknown worth (USDT or BTC): two decimals from 100 on, else up to six that carry digits."""
    if amount is None:
        return NOT_AVAILABLE
    decimals = 2 if abs(amount) >= 100 or amount == 0 else 4 if abs(amount) >= 1 else 6
    return _signed(f"{amount:,.{decimals}f}")


def difference(amount: float | None, reported: float | None) -> str | Markup:
    """Recomputed minus reported as a fraction of the reported figure; the plain figure when that is zero."""
    if amount is None or reported is None:
        return NOT_AVAILABLE
    if reported == 0:
        return native(amount)
    share = amount / abs(reported)
    if abs(share) < 5e-9:
        return "0 %"
    return percent(share, 4) if abs(share) >= 5e-7 else "< 0.0001 %"


def percent(share: float | None, decimals: int = 2) -> str | Markup:
    """A fraction in percent; one that is not zero but rounds to it is shown as below the last digit."""
    if share is None or math.isnan(share):
        return NOT_AVAILABLE
    if math.isinf(share):
        return _UNBOUNDED
    text = f"{share * 100:.{decimals}f}"
    if share != 0 and not text.strip("-0."):
        bound = f"{10.0**-decimals:.{decimals}f} %"
        return f"< {bound}" if share > 0 else f"> {MINUS}{bound}"
    return f"{_signed(text)} %"


def part(amount: float | None, whole: float | None) -> str | Markup:
    """`amount` as a share of a positive `whole`; n/a otherwise."""
    return NOT_AVAILABLE if amount is None or whole is None or whole <= 0 else percent(amount / whole, 1)


def move(share: float) -> str:
    """A relative move in percent with its sign; a rise beyond tenfold is no more than far."""
    if share > 10:
        return "> +1,000 %"
    return f"+{share * 100:.1f} %" if share > 0 else f"{_signed(f'{share * 100:.1f}')} %"


def price(amount: float | None) -> str | Markup:
    """A price with six digits that carry, and no more than twelve decimals."""
    if amount is None:
        return NOT_AVAILABLE
    decimals = 2 if amount == 0 else min(12, max(0, 5 - math.floor(math.log10(abs(amount)))))
    return _signed(f"{amount:,.{decimals}f}")


def ratio(number: float | None) -> str | Markup:
    """A ratio with three decimals; large ones with fewer, absurd ones as a bound."""
    if number is None:
        return NOT_AVAILABLE
    if abs(number) >= 1e6:
        return "> 1,000,000" if number > 0 else f"< {MINUS}1,000,000"
    return _signed(f"{number:,.3f}" if abs(number) < 100 else f"{number:,.1f}")


def times(number: float | None) -> str | Markup:
    """A multiple such as 3.21 times, as 3.21 ×."""
    return NOT_AVAILABLE if number is None else f"{_signed(f'{number:,.2f}')}{NO_BREAK}×"


def hours(number: float | None) -> str | Markup:
    """A time in hours as 16.0 h."""
    return NOT_AVAILABLE if number is None else f"{number:,.1f}{NO_BREAK}h"


def far(share: float | None) -> str | Markup:
    """The distance of health to its trigger in percent; beyond tenfold it is no more than far."""
    if share is None:
        return NOT_AVAILABLE
    return "> 1,000 %" if share > 10 else percent(share, 1)


def moment(time: datetime | None) -> str | Markup:
    """A time as 2024-06-30 12:00:00 UTC."""
    return NOT_AVAILABLE if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def short(text: str | None, length: int = 40) -> str | Markup:
    """A name; the middle of a long one is cut out and the whole kept in its title."""
    if text is None or text == "":
        return Markup('<span class="na">–</span>')
    if len(text) <= length:
        return text
    tail = length // 3
    return Markup('<span title="{}">{}…{}</span>').format(text, text[: length - 1 - tail], text[-tail:])


def factor_name(factor: str) -> str:
    """`vol:ETH` as ETH vol."""
    kind, _, name = factor.partition(":")
    return f"{name} {kind}" if name else factor


def finished(value: Any) -> Any:
    """What every expression of the template passes: escaped, printable, and without anything that reads as an address.

    A data string may hold an address; written with a character reference it looks the same, and neither a browser, a
    mail client nor a search over the file takes it for a link. A percent sign stays on the line of its figure.
    """
    if value is None:
        return NOT_AVAILABLE
    return Markup(str(escape(value)).translate(_UNPRINTABLE).replace("://", "&#58;//").replace(" %", f"{NO_BREAK}%"))

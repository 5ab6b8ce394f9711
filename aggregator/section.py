"""What every section of a TOML file that people write has in common: typed, frozen, and no key that is not known."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigurationError


class Section(BaseModel):
    """One table of a file; an unknown key, an infinite number or a change after reading is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


_Table = TypeVar("_Table", bound=Section)


def read_section(path: Path, kind: type[_Table]) -> _Table:
    """The whole of a TOML file as one section; ConfigurationError naming the file and every wrong or missing key."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML ({error})") from None
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigurationError(f"{path}: {wrong}") from None

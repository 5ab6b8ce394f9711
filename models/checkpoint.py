"""A fitted tail model as a file: one line of JSON, then the arrays; and the manifest whose hash is checked first.

The header says what the fit is (horizon, loss, inputs by name, settings, refit date, hash of the rows it saw). The
manifest beside it (`NAME.json` for `NAME.tail`) repeats the header and gives size and SHA-256 of the whole file: arrays
alone would load with flipped bits or trailing bytes. Nothing here can run code: no pickle.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, ValidationError

from aggregator.errors import ConfigurationError
from aggregator.section import Section

from .market_history import Horizon, Loss
from .tail_network import TailNetwork
from .tier_model_settings import Network, Training
from .training import BINS, Fit, Moments

SCHEMA = 2
SUFFIX = ".tail"
LARGEST_FILE = 16 * 2**20
"""Bytes; a checkpoint is some hundred kilobytes, and what is larger is no checkpoint."""


class Header(Section):
    """What a fit is. `refit` is an ISO date; `rows_sha256` of the rows that it was fitted to.

    `guard_log_factors`, one per level, are the coverage guard's on that date where a fit is to be used by itself; empty
    in a walk-forward, which measures its own.
    """

    schema_version: int = Field(default=SCHEMA, ge=SCHEMA, le=SCHEMA)
    horizon: Horizon
    loss: Loss
    inputs: tuple[str, ...] = Field(min_length=1)
    network: Network
    training: Training
    refit: str
    rows: int = Field(ge=1)
    rows_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    guard_log_factors: tuple[float, ...] = ()


def rows_digest(*columns: np.ndarray) -> str:
    """SHA-256 of the arrays [rows, ...] that a fit is made of, in their order, as little-endian numbers."""
    digest = hashlib.sha256()
    for values in columns:
        digest.update(f"{values.shape}{values.dtype.name}".encode())
        digest.update(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def write_checkpoint(path: Path, header: Header, fit: Fit, *, source: str) -> None:
    """Write `path` (ending in `.tail`) and its manifest; both appear whole or not at all. `source` names the data."""
    body = io.BytesIO()
    body.write(json.dumps(header.model_dump(mode="json"), sort_keys=True).encode() + b"\n")
    eqx.tree_serialise_leaves(body, _leaves(fit))
    content = body.getvalue()
    manifest = {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "source": source,
        "header": header.model_dump(mode="json"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, content)
    _replace(path.with_suffix(".json"), (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def read_header(path: Path) -> Header:
    """The header of a checkpoint whose file is what its manifest says."""
    return _checked(path)[0]


def read_checkpoint(path: Path, *, inputs: tuple[str, ...] | None = None) -> tuple[Header, Fit]:
    """Header and fit of `path`.

    Raises ConfigurationError, before any array is read, when file or manifest is missing, the size or SHA-256 is
    another (a flipped, missing or trailing byte), the header is not that of the manifest, or the fit was made for other
    `inputs` than those asked for; and when an array has another shape than the header says.
    """
    header, content = _checked(path)
    if inputs is not None and header.inputs != inputs:
        different = sorted(set(header.inputs) ^ set(inputs)) or ["their order"]
        raise ConfigurationError(f"{path.name}: fitted to other inputs than this program computes: {different}")
    stream = io.BytesIO(content[content.index(b"\n") + 1 :])
    try:
        leaves = eqx.tree_deserialise_leaves(stream, _leaves(_empty_fit(header)))
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise ConfigurationError(f"{path.name}: arrays are not those of the header ({error})") from None
    networks, moments, training_loss = leaves
    return header, Fit(networks, Moments(*(np.asarray(values) for values in moments)), np.asarray(training_loss))


def _leaves(fit: Fit) -> tuple[TailNetwork, Moments, np.ndarray]:
    return fit.networks, fit.moments, fit.training_loss


def _checked(path: Path) -> tuple[Header, bytes]:
    manifest = _manifest(path.with_suffix(".json"))
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= LARGEST_FILE else b""
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    if size != manifest.get("bytes"):
        raise ConfigurationError(f"{path.name}: {size} bytes, its manifest says {manifest.get('bytes')}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != manifest.get("sha256"):
        raise ConfigurationError(f"{path.name}: SHA-256 {digest}, its manifest says {manifest.get('sha256')}")
    line = content.split(b"\n", 1)[0]
    try:
        header = Header.model_validate_json(line)
        declared = Header.model_validate(manifest.get("header"))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigurationError(f"{path.name}: header: {wrong}") from None
    if header != declared:
        raise ConfigurationError(f"{path.name}: the manifest describes another fit than the header")
    return header, content


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: manifest cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: manifest is not JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise ConfigurationError(f"{path}: manifest is not an object")
    return manifest


def _empty_fit(header: Header) -> Fit:
    """A fit of the right shapes and types; its figures are overwritten."""
    levels, inputs = len(header.network.levels), len(header.inputs)

    def one_seed(key: jax.Array) -> TailNetwork:
        return TailNetwork(
            key,
            inputs=inputs,
            layers=header.network.layers,
            width=header.network.width,
            log_margin=jnp.arange(levels, dtype=jnp.float32),
            log_shortfall=jnp.arange(levels, dtype=jnp.float32) + 1.0,
            dropout=header.network.dropout,
        )

    networks = eqx.filter_vmap(one_seed)(jax.random.split(jax.random.key(0), header.training.seeds))
    moments = Moments(np.zeros(inputs), np.zeros(inputs), np.zeros((inputs, BINS - 1)), np.zeros((inputs, BINS + 1)))
    return Fit(networks, moments, np.zeros(header.training.seeds, dtype=np.float32))


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)

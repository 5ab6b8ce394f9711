"""Checkpoints: what is written is what is read, and nothing that was touched is read at all."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aggregator.errors import ConfigurationError
from models.checkpoint import Header, read_checkpoint, read_header, rows_digest, write_checkpoint
from models.tail_network import TailNetwork
from models.training import Fit, input_moments
from tests.small_tier_market import SETTINGS

INPUTS = ("range_1", "side")


MOMENTS = input_moments(np.array([[0.0, np.nan], [0.5, 1.0], [4.5, -1.0]], dtype=np.float32))


def fitted(seed: int = 0) -> Fit:
    def one(key: jax.Array) -> TailNetwork:
        return TailNetwork(
            key,
            inputs=len(INPUTS),
            layers=SETTINGS.network.layers,
            width=SETTINGS.network.width,
            log_margin=jnp.array([0.1, 0.4, 0.5]),
            log_shortfall=jnp.array([0.5, 0.7, 0.9]),
            dropout=SETTINGS.network.dropout,
        )

    networks = eqx.filter_vmap(one)(jax.random.split(jax.random.key(seed), SETTINGS.training.seeds))
    return Fit(networks, MOMENTS, np.array([3.0, 4.0], dtype=np.float32))


def header(**changed: object) -> Header:
    given = {
        "horizon": "1d",
        "loss": "close",
        "inputs": INPUTS,
        "network": SETTINGS.network,
        "training": SETTINGS.training,
        "refit": "2024-01-01",
        "rows": 7,
        "rows_sha256": "0" * 64,
    }
    return Header.model_validate(given | changed)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "fits" / "1d_close.tail"
    write_checkpoint(target, header(), fitted(), source="a test")
    return target


def test_what_is_read_is_what_was_written(path: Path) -> None:
    found, made = read_checkpoint(path, inputs=INPUTS)
    assert found == header() == read_header(path)
    for one, other in zip(jax.tree.leaves(fitted()), jax.tree.leaves(made), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.array_equal(one, other)
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["source"] == "a test"
    assert manifest["bytes"] == path.stat().st_size
    first = path.read_bytes()
    write_checkpoint(path, header(), fitted(), source="a test")
    assert path.read_bytes() == first
    assert sorted(file.name for file in path.parent.iterdir()) == ["1d_close.json", "1d_close.tail"]


def test_a_touched_file_is_refused(path: Path) -> None:
    content = path.read_bytes()
    last_array = bytearray(content)
    last_array[-20] ^= 1
    in_header = content.replace(b'"1d"', b'"8h"', 1)
    for touched in (bytes(last_array), content + b"\n", content[:-1], content[: len(content) // 2], b"", in_header):
        assert touched != content
        path.write_bytes(touched)
        with pytest.raises(ConfigurationError, match="its manifest says"):
            read_checkpoint(path)


def test_a_manifest_of_something_else_is_refused(path: Path) -> None:
    beside = path.with_suffix(".json")
    manifest = json.loads(beside.read_text())
    beside.write_text(json.dumps(manifest | {"header": header(refit="2023-07-01").model_dump(mode="json")}))
    with pytest.raises(ConfigurationError, match="another fit than the header"):
        read_checkpoint(path)
    beside.write_text("[]")
    with pytest.raises(ConfigurationError, match="not an object"):
        read_checkpoint(path)
    beside.write_text("{")
    with pytest.raises(ConfigurationError, match="not JSON"):
        read_checkpoint(path)
    beside.unlink()
    with pytest.raises(ConfigurationError, match="manifest cannot be read"):
        read_checkpoint(path)


def test_other_inputs_than_the_program_computes_are_refused(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="range_2"):
        read_checkpoint(path, inputs=("range_2", "side"))
    with pytest.raises(ConfigurationError, match="their order"):
        read_checkpoint(path, inputs=INPUTS[::-1])


def test_a_header_that_does_not_fit_the_arrays_is_refused(path: Path) -> None:
    wider = SETTINGS.network.model_copy(update={"width": 5})
    write_checkpoint(path, header(network=wider), fitted(), source="a test")
    with pytest.raises(ConfigurationError, match="not those of the header"):
        read_checkpoint(path)


def test_a_missing_file_and_an_unknown_key_are_named(path: Path) -> None:
    with pytest.raises(ValueError, match="surprise"):
        header(surprise=1)
    path.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_checkpoint(path)


def test_the_digest_sees_values_shapes_and_order() -> None:
    rows, loss = np.arange(6.0).reshape(3, 2), np.arange(3.0, dtype=np.float32)
    digests = {
        rows_digest(rows, loss),
        rows_digest(rows[::-1], loss),
        rows_digest(rows.reshape(2, 3), loss),
        rows_digest(rows, loss.astype(np.float64)),
    }
    assert len(digests) == 4
    assert rows_digest(rows.copy(), loss.copy()) in digests

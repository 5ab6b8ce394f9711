"""Where arrays lie that devices share: two devices of the host, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import json
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from aggregator.device_mesh import dealt_out, on_every_device
first, second = jax.devices()
values = np.arange(6.0).reshape(2, 3)
whole, dealt = on_every_device({"x": values}, 2)["x"], dealt_out(values, 2)
with jax.default_device(second):
    alone, alone_dealt = on_every_device(values, 1), dealt_out(values, 1)
def where(array):
    return {str(s.device): np.asarray(s.data).tolist() for s in array.addressable_shards}
print(json.dumps([[str(first), str(second)], *map(where, (whole, dealt, alone, alone_dealt))]))
"""


def test_arrays_lie_on_all_devices_or_are_dealt_out_and_one_device_is_the_default_one() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (first, second), whole, dealt, alone, alone_dealt = json.loads(done.stdout.splitlines()[-1])
    rows = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert whole == {first: rows, second: rows}
    assert dealt == {first: rows[:1], second: rows[1:]}
    assert alone == alone_dealt == {second: rows}

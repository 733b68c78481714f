"""One of two processes that step one model together: `processes.py NUMBER PORT FOLDER`.

Each leaves the parts of the parameters that its devices have; test_sharding.py compares them.
"""

import pathlib
import sys

import support  # noqa: F401  (first: it chooses the platform)

import jax
import numpy as np


def main(number, port, folder):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))

    import test_sharding as shared

    assert len(jax.devices()) == 8 and len(jax.local_devices()) == 4
    _, shardings = shared.mesh_of("4x2")
    for name in ("block", "rank-1", "factored"):
        optimizer = shared.with_shardings(name, shardings)
        params, grads = shared.model(shardings)
        state, step = optimizer.init(params), shared.stepper(optimizer)
        for _ in range(shared.STEPS):
            params, state = step(params, state, grads)
        parts = {}
        for key, array in params.items():
            for shard in array.addressable_shards:
                place = ",".join(
                    f"{at.start or 0}:{at.stop or extent}"
                    for at, extent in zip(shard.index, array.shape)
                )
                parts[f"{key}@{place}"] = np.asarray(shard.data)
        np.savez(pathlib.Path(folder) / f"{name}-{number}.npz", **parts)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])

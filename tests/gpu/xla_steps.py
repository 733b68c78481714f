"""Steps of lowbit.jax on JAX's default device, compared with the reference; prints what it did as a
line of JSON, or ends with an exception."""

import json
import os
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import lowbit
import lowbit.jax

import inputs

SHAPES = {"a": (300, 257), "b": (4097,), "c": (64, 3, 3, 3), "d": (100,), "e": ()}
PRESETS = ("adamw4", "adamw4-block", "adamw8", "adamw32")
DTYPES = (("bf16", "bf16"), ("bf16", "f32"), ("f32", "f32"))
STEPS = 4
#: Also as a host that waits for nothing: the device has work all the time.
TIMED_STEPS, TIMED_SHAPE = 200, (1024, 1024)
_JAX = {"f32": jnp.float32, "bf16": jnp.bfloat16}


def main():
    # A rehearsal has no GPU for JAX.
    platform = os.environ.get("LOWBIT_REHEARSAL", "gpu")
    device = jax.devices()[0]
    if device.platform != platform:
        raise RuntimeError(f"JAX's default device is {device}, not a GPU")
    random = inputs.Random(int(os.environ["LOWBIT_SEED"]))
    compared = 0
    for preset in PRESETS:
        for dtypes in DTYPES:
            compared += jitted(random, preset, *dtypes)
        compared += scanned(random, preset)
        compared += updates(random, preset)
    intact(random)
    result = {
        "bytes equal": compared,
        "environment": {
            "jax": jax.__version__,
            "jax_device": str(device.device_kind),
            "lowbit": lowbit.version(),
        },
        "microseconds": {preset: timed(random, preset) for preset in PRESETS},
    }
    print(json.dumps(result))


def model(random, param_dtype, grad_dtype):
    """Parameters, and the gradients of all steps, as numpy arrays by name."""
    params = {key: random.param(size(shape), param_dtype) for key, shape in SHAPES.items()}
    grads = [
        {key: random.grad(size(shape), grad_dtype) for key, shape in SHAPES.items()}
        for _ in range(STEPS)
    ]
    return params, grads


def size(shape):
    return int(np.prod(shape))


def to_jax(arrays, dtype):
    """On the default device; 16-bit floats are given as their bits."""

    def convert(array, shape):
        array = array.reshape(shape)
        return jnp.array(array if dtype == "f32" else array.view(_JAX[dtype]))

    return {key: convert(array, SHAPES[key]) for key, array in arrays.items()}


def expected(preset, params, grads, dtypes, updates=False):
    """Parameters (or the last updates) and states after all steps of the reference."""
    plan = lowbit.Plan(
        preset,
        [lowbit.Tensor(key, shape, *dtypes) for key, shape in SHAPES.items()],
        variant="reference",
    )
    params = [array.copy() for array in params.values()]
    state = plan.zeros()
    results = params
    for step, grad in enumerate(grads, 1):
        if updates:
            results = [np.zeros_like(array) for array in params]
        plan.step(
            *(params, list(grad.values()), state),
            step=step,
            lr=1e-3,
            updates=results if updates else None,
        )
    return plan, results, state


def require_same(plan, results, state, tensors, jax_state):
    """Compares bits; returns the bytes."""
    pairs = list(zip(results, tensors.values(), plan.tensors))
    slots = lowbit.jax._slots(jax.tree.structure(tensors), jax_state)
    for info, array in zip(plan.buffers, state):
        pairs.append((array, slots[lowbit.jax._slot(info)][info.tensor], info))
    for array, found, info in pairs:
        if np.asarray(found).tobytes() != array.tobytes():
            raise AssertionError(f"{info} differs from the reference")
    return sum(array.nbytes for array, *_ in pairs)


def jitted(random, preset, *dtypes):
    """In place: under donation every array keeps its memory."""
    params, grads = model(random, *dtypes)
    optimizer = lowbit.jax.adamw(1e-3, spec=preset)
    tensors = to_jax(params, dtypes[0])
    state = optimizer.init(tensors)

    @jax.jit
    def warm(params, state, grads):
        return optimizer.apply(grads, state, params)

    step = jax.jit(lambda p, s, g: optimizer.apply(g, s, p), donate_argnums=(0, 1))
    warm(tensors, state, to_jax(grads[0], dtypes[1]))  # without donation all stays as it is
    for grad in grads:
        before = pointers((tensors, state.m, state.v))
        tensors, state = step(tensors, state, to_jax(grad, dtypes[1]))
        if pointers((tensors, state.m, state.v)) != before:
            raise AssertionError("a donated array has moved")
    want = expected(preset, params, grads, dtypes)
    return require_same(*want, tensors, state)


def pointers(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


def scanned(random, preset):
    """All steps in one program, where XLA captures the loop's body once."""
    params, grads = model(random, "bf16", "f32")
    optimizer = lowbit.jax.adamw(1e-3, spec=preset)
    tensors = to_jax(params, "bf16")
    stacked = [to_jax(grad, "f32") for grad in grads]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stacked)

    @jax.jit
    def loop(params, state, grads):
        def body(carry, grad):
            return optimizer.apply(grad, carry[1], carry[0]), None

        return jax.lax.scan(body, (params, state), grads)[0]

    tensors, state = loop(tensors, optimizer.init(tensors), stacked)
    return require_same(*expected(preset, params, grads, ("bf16", "f32")), tensors, state)


def updates(random, preset):
    """optax's door: the update takes the gradient's place."""
    params, grads = model(random, "f32", "f32")
    optimizer = lowbit.jax.adamw(1e-3, spec=preset)
    tensors = to_jax(params, "f32")
    state = optimizer.init(tensors)
    step = jax.jit(lambda p, s, g: optimizer.update(g, s, p), donate_argnums=(1, 2))
    for grad in grads:
        found, state = step(tensors, state, to_jax(grad, "f32"))
    return require_same(*expected(preset, params, grads, ("f32", "f32"), True), found, state)


def intact(random):
    """Without donation the caller's arrays keep their values."""
    params, grads = model(random, "f32", "f32")
    optimizer = lowbit.jax.adamw(1e-3, spec="adamw4")
    tensors = to_jax(params, "f32")
    state = optimizer.init(tensors)
    before = jax.tree.map(np.array, (tensors, state))
    jax.block_until_ready(
        jax.jit(lambda p, s, g: optimizer.apply(g, s, p))(tensors, state, to_jax(grads[0], "f32"))
    )
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves((tensors, state))):
        if old.tobytes() != np.asarray(new).tobytes():
            raise AssertionError("an array that was not donated has changed")


def timed(random, preset):
    """Microseconds of a step on one matrix, over steps that are enqueued one after the other."""
    optimizer = lowbit.jax.adamw(1e-3, spec=preset)
    params = {"w": jnp.zeros(TIMED_SHAPE, jnp.bfloat16)}
    grads = {"w": jnp.ones(TIMED_SHAPE, jnp.bfloat16)}
    state = optimizer.init(params)
    step = jax.jit(lambda p, s, g: optimizer.apply(g, s, p), donate_argnums=(0, 1))
    rounds = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(TIMED_STEPS):
            params, state = step(params, state, grads)
        jax.block_until_ready(params)
        rounds.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(rounds) / TIMED_STEPS


if __name__ == "__main__":
    sys.exit(main())

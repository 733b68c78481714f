"""E3: small convolutional networks on digits and on glyphs of unseen typefaces.

The metric is test accuracy in points; delta, written down before any run, is 0.5 points, and 0.01
of test loss on the digits. ReLU and no clipping: coordinates whose gradient is exactly zero for a
while are common here.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import arms
import data
import records
import training

#: In points of accuracy.
DELTA = 0.5
#: In nats, for digits.
DELTA_LOSS = 0.01

BATCH = 32


class Network(NamedTuple):
    """Two 3 x 3 convolutions and two dense layers.

    channels, strides: of the convolutions; hidden: width of the first dense layer.
    """

    channels: tuple
    strides: tuple
    hidden: int


class Case(NamedTuple):
    load: object
    network: Network
    epochs: int


CASES = {
    "digits": Case(data.digits, Network((32, 64), (1, 2), 128), 25),
    "glyphs": Case(data.glyphs, Network((24, 48), (2, 2), 128), 5),
}


def init(network, side, classes, seed):
    """Parameters: uniform within 1 / sqrt(inputs), as torch has it."""
    rng = np.random.default_rng([seed, 0])

    def layer(*shape):
        bound = np.float32(np.prod(shape[:-1]) ** -0.5)
        uniform = lambda size: jnp.asarray(rng.uniform(-bound, bound, size).astype(np.float32))
        return {"w": uniform(shape), "b": uniform(shape[-1:])}

    first, second = network.channels
    for stride in network.strides:
        side = -(-side // stride)
    return {
        "conv1": layer(3, 3, 1, first),
        "conv2": layer(3, 3, first, second),
        "dense1": layer(side * side * second, network.hidden),
        "dense2": layer(network.hidden, classes),
    }


def logits(params, images, *, strides):
    x = images[..., None]
    for name, stride in zip(("conv1", "conv2"), strides):
        x = jax.lax.conv_general_dilated(
            x,
            params[name]["w"],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params[name]["b"])
    x = x.reshape(len(x), -1)
    x = jax.nn.relu(x @ params["dense1"]["w"] + params["dense1"]["b"])
    return x @ params["dense2"]["w"] + params["dense2"]["b"]


def _cross_entropy(outputs, labels):
    chosen = jnp.take_along_axis(outputs, labels[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(outputs, axis=-1) - chosen


@functools.cache
def _loss(strides):
    def loss(params, batch):
        return _cross_entropy(logits(params, batch[0], strides=strides), batch[1]).mean()

    return loss


@functools.cache
def _test(strides):
    @jax.jit
    def test(params, images, labels):
        outputs = logits(params, images, strides=strides)
        return (outputs.argmax(-1) == labels).mean(), _cross_entropy(outputs, labels).mean()

    return test


@functools.cache
def _loaded(case):
    return CASES[case].load()


def task(case, seed):
    """The seed fixes the initial weights and the order of batches, anew each epoch."""
    images = _loaded(case)
    network = CASES[case].network
    inputs, labels = images.train
    per_epoch = len(labels) // BATCH

    @functools.lru_cache(maxsize=1)
    def order(epoch):
        return np.random.default_rng([seed, 1, epoch]).permutation(len(labels))

    def batch(step):
        epoch, at = divmod(step, per_epoch)
        chosen = order(epoch)[at * BATCH : (at + 1) * BATCH]
        return inputs[chosen], labels[chosen]

    def score(params):
        accuracy, loss = _test(network.strides)(params, *images.test)
        return {"accuracy": 100 * float(accuracy), "test_loss": float(loss)}

    params = init(network, inputs.shape[1], images.classes, seed)
    return training.Task(
        loss=_loss(network.strides),
        params=params,
        batch=batch,
        decays=jax.tree.map(lambda param: param.ndim > 1, params),
        score=score,
    )


def run(store, case, arm, seed):
    """One run of one arm, unless it is on file."""
    steps = CASES[case].epochs * (len(_loaded(case).train[1]) // BATCH)
    options = training.Settings(steps=steps, lr=1e-3, weight_decay=0.01, schedule="linear")
    options = options._replace(lr=options.lr * arms.lr_factor(arm))
    spec = training.seeded(arms.spec(arm), seed)
    key = {
        "arm": arm,
        "case": case,
        "spec": spec,
        "seed": seed,
        "settings": options._asdict(),
        "data": _loaded(case).digest,
    }
    progress = records.progress(f"{store.experiment} {case} {arm} seed {seed}", steps)
    return store.run(key, lambda: training.train(task(case, seed), options, spec, progress))


#: What is compared; the last four are controls, of v's zero point and of the learning rate.
ARMS = (
    "adamw32",
    "adamw4",
    "nf4-rank1+rank1/linear",
    "nf4-rank1+rank1/de0-zip",
    "nf4-rank1+rank1/linear-log",
    "nf4-sr+rank1/linear",
    "nf4+rank1/linear",
    "adamw4-block",
    "nf4-rank1-sr+rank1/linear",
    "de+factored",
    "nf4-sr+factored",
    "nf4-rank1+rank1/power2",
    "nf4-sr+rank1/power2",
    "nf4+rank1/power2",
    "de-sr+rank1/linear",
    "nf4-rank1+f32",
    "nf4-sr+f32",
    "nf4+f32",
    "de+f32",
    "f32+rank1/linear",
    "sgdm32",
    "sgdm:de",
    "sgdm:nf4",
    "sgdm:nf4-sr",
    "lion32",
    "lion:de",
    "lion:nf4",
    "lion:nf4-sr",
    "adamw8",
    "adamw8-b2048",
    "de+b2048/de",
    "nf4+rank1/linear0",
    "adamw32@0.7lr",
)


def compare(store, group, seeds, part, parts, arms=None):
    """Arms on one case; a seed of all of them before the next."""
    jobs = [(arm, seed) for seed in range(seeds) for arm in arms or ARMS]
    for arm, seed in jobs[part::parts]:
        run(store, group, arm, seed)

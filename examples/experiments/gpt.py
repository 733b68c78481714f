"""The language model of E1, E4 and E5: a small GPT.

Pre-layer-norm, learned positions, biases, the embedding tied to the output. With the defaults it
has 1,127,552 parameters, 99.5 % of them in the 14 tensors of more than 4096 elements.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Shape(NamedTuple):
    vocabulary: int = 4096
    context: int = 64
    width: int = 128
    heads: int = 4
    layers: int = 3


def init(shape, seed):
    """Parameters, a tree of float32 arrays. Normal of 0.02; what ends a residual branch is smaller
    by sqrt(2 layers), as in GPT-2. NumPy's generator: the same numbers under every JAX."""
    rng = np.random.default_rng([seed, 0])
    width = shape.width

    def normal(*size, scale=0.02):
        return jnp.asarray(rng.standard_normal(size, np.float32) * np.float32(scale))

    def linear(inputs, outputs, scale=0.02):
        return {"w": normal(inputs, outputs, scale=scale), "b": jnp.zeros((outputs,))}

    def norm():
        return {"scale": jnp.ones((width,)), "bias": jnp.zeros((width,))}

    ends = 0.02 / (2 * shape.layers) ** 0.5
    return {
        "embed": normal(shape.vocabulary, width),
        "position": normal(shape.context, width),
        "layers": [
            {
                "norm1": norm(),
                "qkv": linear(width, 3 * width),
                "out": linear(width, width, ends),
                "norm2": norm(),
                "up": linear(width, 4 * width),
                "down": linear(4 * width, width, ends),
            }
            for _ in range(shape.layers)
        ],
        "norm": norm(),
    }


def count(shape):
    """How many parameters there are."""
    return sum(param.size for param in jax.tree.leaves(jax.eval_shape(lambda: init(shape, 0))))


def decays(params):
    """Which parameters weight decay is for: matrices."""
    return jax.tree.map(lambda param: param.ndim > 1, params)


def loss(params, tokens, *, heads):
    """Mean cross-entropy in nats per token. tokens: int32[batch, context + 1]."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
    batch, context = inputs.shape
    past = jnp.tril(jnp.ones((context, context), bool))
    # Tokens of all sequences are one axis: XLA's matrix products are faster on two axes than on
    # three.
    x = (params["embed"][inputs] + params["position"][:context]).reshape(batch * context, -1)
    for layer in params["layers"]:
        qkv = jnp.split(_linear(layer["qkv"], _norm(layer["norm1"], x)), 3, axis=-1)
        q, k, v = (y.reshape(batch, context, heads, -1).swapaxes(1, 2) for y in qkv)
        scores = q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
        x = x + _linear(layer["out"], (weights @ v).swapaxes(1, 2).reshape(x.shape))
        hidden = jax.nn.gelu(_linear(layer["up"], _norm(layer["norm2"], x)))
        x = x + _linear(layer["down"], hidden)
    x = _norm(params["norm"], x)
    logits = x @ params["embed"].T
    chosen = (x * params["embed"][targets]).sum(-1)
    return (jax.nn.logsumexp(logits, axis=-1) - chosen).mean()


def _linear(layer, x):
    return x @ layer["w"] + layer["b"]


def _norm(layer, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(
        (centred * centred).mean(-1, keepdims=True) + 1e-5
    ) * layer["scale"] + layer["bias"]

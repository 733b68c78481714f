"""E2: fine-tuning a pretrained transformer, all-MiniLM-L6-v2, to WordNet's classes of definitions.

All 22.6 M parameters are trained; mean pooling and a linear head. The metric is test accuracy in
points on 10,000 definitions; delta, written down before any run, is 0.5 points.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import arms
import data
import records
import training

#: In points of accuracy.
DELTA = 0.5

BATCH = 32
LENGTH = 32
TRAIN, TEST = 8_000, 10_000
CLASSES = 45
LAYERS, HEADS = 6, 12

#: The last two are controls.
ARMS = (
    "adamw32",
    "nf4-sr+rank1/power2",
    "adamw4",
    "adamw4-block",
    "nf4-sr+factored",
    "adamw8",
    "de+b2048/de",
    "adamw32@0.7lr",
)

#: Parameters of the checkpoint that are no weights of this use.
_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


def init(seed):
    """The pretrained parameters by their names, and a head of the seed."""
    params = safetensors.numpy.load_file(data.folder("minilm") / "model.safetensors")
    params = {name: jnp.asarray(p) for name, p in params.items() if name not in _UNUSED}
    width = params["embeddings.LayerNorm.weight"].shape[0]
    rng = np.random.default_rng([seed, 0])
    head = rng.standard_normal((CLASSES, width), np.float32) * np.float32(0.02)
    return {**params, "head.weight": jnp.asarray(head), "head.bias": jnp.zeros((CLASSES,))}


def logits(params, tokens, mask):
    """tokens: int32[batch, length]; mask: bool, which of them are no padding."""
    batch, length = tokens.shape

    def linear(name, x):
        return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-12)
        return centred * scale * params[f"{name}.weight"] + params[f"{name}.bias"]

    def heads(x):
        return x.reshape(batch, length, HEADS, -1).swapaxes(1, 2)

    x = params["embeddings.word_embeddings.weight"][tokens]
    x += params["embeddings.position_embeddings.weight"][:length]
    x += params["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x).reshape(batch * length, -1)
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        q, k, v = (
            heads(linear(f"{at}.attention.self.{name}", x)) for name in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None, None, :], scores, -jnp.inf))
        mixed = (weights @ v).swapaxes(1, 2).reshape(x.shape)
        x = norm(
            f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", mixed)
        )
        hidden = jax.nn.gelu(linear(f"{at}.intermediate.dense", x), approximate=False)
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", hidden))
    kept = mask[..., None].astype(x.dtype)
    pooled = (x.reshape(batch, length, -1) * kept).sum(1) / kept.sum(1)
    return linear("head", pooled)


def _cross_entropy(outputs, labels):
    chosen = jnp.take_along_axis(outputs, labels[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(outputs, axis=-1) - chosen


def _loss(params, batch):
    tokens, mask, labels = batch
    return _cross_entropy(logits(params, tokens, mask), labels).mean()


@jax.jit
def _test(params, tokens, mask, labels):
    outputs = logits(params, tokens, mask)
    return (outputs.argmax(-1) == labels).sum(), _cross_entropy(outputs, labels).sum()


def task(seed):
    """The seed fixes the head and the order of batches; the split is the same for all."""
    definitions = data.definitions(LENGTH)
    order = np.random.default_rng(0).permutation(len(definitions.labels))
    train, test = order[:TRAIN], order[TRAIN : TRAIN + TEST]
    per_epoch = TRAIN // BATCH

    def rows(chosen):
        tokens = definitions.tokens[chosen].astype(np.int32)
        mask = np.arange(LENGTH) < definitions.lengths[chosen, None]
        return tokens, mask, definitions.labels[chosen].astype(np.int32)

    @functools.lru_cache(maxsize=1)
    def shuffled(epoch):
        return train[np.random.default_rng([seed, 1, epoch]).permutation(TRAIN)]

    def batch(step):
        epoch, at = divmod(step, per_epoch)
        return rows(shuffled(epoch)[at * BATCH : (at + 1) * BATCH])

    def score(params):
        parts = np.array_split(test, max(1, len(test) // 100))
        sums = np.array([[float(n) for n in _test(params, *rows(part))] for part in parts])
        right, loss = sums.sum(0) / len(test)
        return {"accuracy": 100 * right, "test_loss": loss}

    params = init(seed)
    return training.Task(
        loss=_loss,
        params=params,
        batch=batch,
        decays=jax.tree.map(lambda param: param.ndim > 1, params),
        score=score,
    )


def settings(steps=3 * (TRAIN // BATCH)):
    return training.Settings(
        steps=steps, lr=1e-4, weight_decay=0.01, warmup=steps // 10, schedule="linear"
    )


def compare(store, seeds, part, parts):
    """All arms; a seed of all of them before the next."""
    jobs = [(arm, seed) for seed in range(seeds) for arm in ARMS]
    for arm, seed in jobs[part::parts]:
        options = settings()
        options = options._replace(lr=options.lr * arms.lr_factor(arm))
        spec = training.seeded(arms.spec(arm), seed)
        key = {
            "arm": arm,
            "spec": spec,
            "seed": seed,
            "settings": options._asdict(),
            "data": data.definitions(LENGTH).digest,
        }
        progress = records.progress(f"e2 {arm} seed {seed}", options.steps)

        def run(spec=spec, seed=seed, options=options, progress=progress):
            return training.train(task(seed), options, spec, progress)

        store.run(key, run)

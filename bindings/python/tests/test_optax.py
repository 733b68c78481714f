"""Every optimizer that optax also has, fifty steps against optax in float64.

optax gets the f32 values of the hyper-parameters, so that what remains is the rounding of states
and updates to f32. Where the two define something differently, the test says so and sets both to
the same.
"""

import unittest

import support

import jax
import numpy as np
import optax

import lowbit

STEPS = 50
SHAPES = {"matrix": (64, 65), "cube": (6, 2, 7, 3), "ties": (4, 4, 4), "vector": (37,)}
F32 = {"bits": 32}


def f32(value):
    """The f32 nearest to a number, as optax gets it."""
    return float(np.float32(value))


def gradients(step):
    """Of many magnitudes, without the blocks of zeros: under Adam a parameter whose only gradient
    is its own decay jumps around 0, and any rounding grows there."""
    found = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        grad = support.grad(1000 * step + i, shape)
        found[name] = np.where(grad == 0, support.param(1000 * step + i, shape), grad)
    return found


class TestOptax(unittest.TestCase):
    def check(self, transformation, spec, first_step=1, **hyper):
        """Runs both and compares parameters and updates.

        first_step: the library's number of the first step, which decides the bias corrections.
        """
        tensors = [lowbit.Tensor(name, shape) for name, shape in SHAPES.items()]
        plan = lowbit.Plan({"threshold": 0, **spec}, tensors, variant="reference")
        params = {name: support.param(i, shape) for i, (name, shape) in enumerate(SHAPES.items())}
        state = plan.zeros()
        with jax.enable_x64(True):
            want = {name: np.float64(p) for name, p in params.items()}
            optax_state = transformation.init(want)
            update = jax.jit(transformation.update)
            largest = dict.fromkeys(params, 0.0)
            for step in range(STEPS):
                grads = gradients(step)
                double = {name: np.float64(g) for name, g in grads.items()}
                updates, optax_state = update(double, optax_state, want)
                for name, u in updates.items():
                    self.assertEqual(u.dtype, np.float64)
                    want[name] = want[name] + np.asarray(u)
                    largest[name] = max(largest[name], np.abs(u).max())
                plan.step(
                    list(params.values()),
                    list(grads.values()),
                    state,
                    step=first_step + step,
                    **hyper,
                )
        ratios = []
        for name, found in params.items():
            # In each step half an ulp of the parameter, and some of the largest update.
            bound = STEPS * 2.0**-24 * (np.abs(want[name]).max() + 5 * largest[name])
            # The bound is worth something: a hundredth of one update would leave it.
            self.assertLess(bound, largest[name] / 100, name)
            off = np.abs(found - want[name]).max()
            self.assertLessEqual(off, bound, name)
            ratios.append(off / bound)
        print(f"{self.id()}: at most {max(ratios):.3f} of the bound")

    def test_adamw(self):
        adamw = optax.adamw(
            f32(1e-3), b1=f32(0.9), b2=f32(0.999), eps=f32(1e-8), weight_decay=f32(0.1)
        )
        spec = {"optimizer": "adamw", "m": F32, "v": F32}
        self.check(adamw, spec, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1)

    def test_adam(self):
        # Our adam has the decay in the gradient, as torch; optax composes it.
        adam = optax.chain(
            optax.add_decayed_weights(f32(0.1)),
            optax.adam(f32(1e-3), b1=f32(0.9), b2=f32(0.95), eps=f32(1e-6)),
        )
        spec = {"optimizer": "adam", "m": F32, "v": F32}
        self.check(adam, spec, lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-6, weight_decay=0.1)

    def test_amsgrad(self):
        # optax takes the maximum of the bias-corrected v, or corrects nothing; we, as torch, correct
        # the maximum. In steps so late that the corrections are 1 all are the same.
        amsgrad = optax.chain(
            optax.scale_by_amsgrad(
                b1=f32(0.9),
                b2=f32(0.95),
                eps=f32(1e-8),
                bias_correction_mu=False,
                bias_correction_nu=False,
            ),
            optax.scale(-f32(1e-3)),
        )
        spec = {"optimizer": "adam", "m": F32, "v": F32, "amsgrad": True}
        hyper = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0}
        self.check(amsgrad, spec, first_step=1_000_000, **hyper)

    def test_sgd(self):
        # optax's momentum has no dampening. The decay is in the gradient (chained before) or
        # decoupled (chained after, and multiplied by lr as the momentum is).
        for nesterov in (False, True):
            for decoupled in (False, True):
                momentum = optax.trace(f32(0.9), nesterov=nesterov)
                decay = optax.add_decayed_weights(f32(0.1))
                order = (momentum, decay) if decoupled else (decay, momentum)
                sgd = optax.chain(*order, optax.scale(-f32(0.01)))
                spec = {
                    "optimizer": "sgdm",
                    "m": F32,
                    "sgdm": {"nesterov": nesterov, "decoupled": decoupled},
                }
                with self.subTest(nesterov=nesterov, decoupled=decoupled):
                    self.check(sgd, spec, lr=0.01, beta1=0.9, weight_decay=0.1)
        plain = optax.sgd(f32(0.01), momentum=f32(0.9), nesterov=True)
        spec = {"optimizer": "sgdm", "m": F32, "sgdm": {"nesterov": True}}
        self.check(plain, spec, lr=0.01, beta1=0.9, weight_decay=0.0)

    def test_lion(self):
        lion = optax.lion(f32(1e-4), b1=f32(0.9), b2=f32(0.99), weight_decay=f32(0.1))
        spec = {"optimizer": "lion", "m": F32}
        self.check(lion, spec, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.1)

    def test_adafactor(self):
        # The defaults of both are the paper's but for the step size: optax takes a schedule, here the
        # paper's min(lr, 1/sqrt(t)). optax factors the two largest axes if they are long enough.
        lr = f32(0.3)
        for factored in (False, True):
            v = {**F32, "normalization": "factored", "factor_axes": "largest_two"}
            adafactor = optax.adafactor(
                lambda count: jax.numpy.minimum(lr, 1 / jax.numpy.sqrt(count + 1.0)),
                min_dim_size_to_factor=2,
                decay_rate=f32(0.8),
                eps=f32(1e-30),
                factored=factored,
            )
            spec = {"optimizer": "adafactor", "v": v if factored else F32}
            with self.subTest(factored=factored):
                self.check(adafactor, spec, lr=0.3, eps=1e-30, weight_decay=0.0)

    def test_adafactor_options(self):
        # optax averages the update after the step size has multiplied it, we before: the same while
        # the step size is constant. Its decay is not multiplied by lr; ours is.
        lr, decay = f32(0.01), f32(0.1)
        for clip in (None, f32(0.5)):
            adafactor = optax.adafactor(
                lr,
                min_dim_size_to_factor=2,
                decay_rate=f32(0.7),
                multiply_by_parameter_scale=False,
                clipping_threshold=clip,
                momentum=f32(0.9),
                weight_decay_rate=lr * decay,
                eps=f32(1e-20),
            )
            spec = {
                "optimizer": "adafactor",
                "m": F32,
                "v": {**F32, "normalization": "factored", "factor_axes": "largest_two"},
                "adafactor": {
                    "relative_step": False,
                    "scale_parameter": False,
                    "clip_threshold": clip or 0.0,
                    "decay_rate": 0.7,
                },
            }
            with self.subTest(clip=clip):
                self.check(adafactor, spec, lr=0.01, beta1=0.9, eps=1e-20, weight_decay=0.1)

    def test_sm3(self):
        # optax adds eps to v, we divide as the paper; and it always has a momentum, so that ours
        # without one is its b1 = 0.
        for momentum in (0.0, 0.9):
            sm3 = optax.chain(
                optax.scale_by_sm3(b1=f32(momentum), eps=0.0),
                optax.add_decayed_weights(f32(0.1)),
                optax.scale(-f32(0.01)),
            )
            spec = {"optimizer": "sm3", **({"m": F32} if momentum else {})}
            with self.subTest(momentum=momentum):
                self.check(sm3, spec, lr=0.01, beta1=momentum, weight_decay=0.1)


if __name__ == "__main__":
    unittest.main()

"""optax's own tests of its contributed optimizers and of shardings, as they are in its package, with
this package's optimizers in the place of theirs."""

import importlib
import unittest
from unittest import mock

import support  # noqa: F401  (first: it chooses the platform)

import jax
import optax.contrib
from absl.testing import parameterized

import lowbit.jax


def _adafactor(learning_rate: optax.ScalarOrSchedule):
    """Its learning rate may also be None, and of such ones the suite does not try schedules."""
    return lowbit.jax.adafactor(learning_rate)


# Name, arguments. Targets of a few elements, so that `threshold` 0 is needed for codes; converging
# to 3 % on such a target is what f32 states are for, so those run the whole suite and the codes the
# parts that ask for types and forms.
_OPTIMIZERS = {
    "lowbit_adamw": (lowbit.jax.adamw, {"learning_rate": 1e-2, "weight_decay": 0.0}),
    "lowbit_adam": (lowbit.jax.adam, {"learning_rate": 1e-2}),
    "lowbit_sgdm": (lowbit.jax.sgdm, {"learning_rate": 1e-3}),
    "lowbit_factor": (lowbit.jax.factor, {"learning_rate": 1e-2, "weight_decay": 0.0}),
    "lowbit_lion": (lowbit.jax.lion, {"learning_rate": 1e-3, "weight_decay": 0.0}),
    "lowbit_adafactor": (_adafactor, {"learning_rate": 1e-2}),
    "lowbit_sm3": (lowbit.jax.sm3, {"learning_rate": 1e-1}),
}
_CASES = tuple(
    {"opt_name": name, "opt_kwargs": arguments, "wrapper_name": None, "wrapper_kwargs": None}
    for name, (_, arguments) in _OPTIMIZERS.items()
)
_SHARDED = {
    "adamw": lowbit.jax.adamw(1.0),
    "adamw4_block": lowbit.jax.adamw(1.0, spec="adamw4-block"),
    "factor": lowbit.jax.factor(1.0),
    "sgdm": lowbit.jax.sgdm(1.0),
    "lion": lowbit.jax.lion(1.0),
    "adafactor": lowbit.jax.adafactor(),
    "sm3": lowbit.jax.sm3(1.0),
}


def _product(*sequences, **grid):
    """`parameterized.product` with our optimizers where theirs are given."""
    ours = [_CASES if "opt_name" in sequence[0] else sequence for sequence in sequences]
    return _original_product(*ours, **grid)


def _named_parameters(*cases):
    """`parameterized.named_parameters` likewise."""
    given = list(cases[0]) if len(cases) == 1 else list(cases)
    if isinstance(given[0][1], optax.GradientTransformation):
        given = list(_SHARDED.items())
    return _original_named(*given)


_original_product = parameterized.product
_original_named = parameterized.named_parameters
for _name, (_factory, _) in _OPTIMIZERS.items():
    setattr(optax.contrib, _name, _factory)
with (
    mock.patch.object(parameterized, "product", _product),
    mock.patch.object(parameterized, "named_parameters", _named_parameters),
):
    _contrib = importlib.import_module("optax.contrib._common_test")
    _sharding = importlib.import_module("optax._src.sharding_test")


class ContribTest(_contrib.ContribTest):
    pass


@unittest.skipUnless(hasattr(jax, "set_mesh"), "this JAX has no meshes with Explicit axes")
class ShardingTest(_sharding.ShardingTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # The suite compares versions as texts, by which "0.10" is older than "0.7", and would skip.
        patch = mock.patch.object(jax, "__version__", "0.9")
        patch.start()
        cls.addClassCleanup(patch.stop)


class TestSuite(unittest.TestCase):
    def test_it_is_the_whole_suite(self):
        names = unittest.TestLoader().getTestCaseNames(ContribTest)
        self.assertGreaterEqual(len(names), 16 * len(_CASES))


if __name__ == "__main__":
    unittest.main()

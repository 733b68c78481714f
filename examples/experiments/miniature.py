"""A miniature of E4 and E5 for continuous integration: minutes, and it can fail.

One layer instead of three, one seed. It shows that nothing that training relies on is broken; it is
no evidence about quantizers.
"""

import arms
import gpt
import language_model
import quantization_error
import training

MODEL = language_model.SMALL._replace(shape=gpt.Shape(layers=1))
OPTIONS = language_model.settings(160, lr=4e-3)

ZERO_FREE = ("rank1/linear", "b128/linear", "rank1/de0", "b128/de0", "rank1/power2")
WITH_ZERO = ("b2048/de", "rank1/linear0")


def run():
    """Raises AssertionError with what is wrong, if something is."""
    zero_point()
    quantization()


def zero_point():
    """With a zero in v's map training is unstable; without, it is as good as in 32 bits."""
    results = {}
    for arm in ("adamw32", "adamw4", "de+b2048/de"):
        spec = training.seeded(arms.spec(arm), 0)
        task = language_model.task(0, MODEL)
        result = training.train(task, OPTIONS, spec, until_unstable=True)
        losses = result["train_loss"]
        results[arm] = result
        print(
            f"{arm:<12} {'unstable' if result['unstable'] else 'stable':<9}"
            f" {len(losses) * training.WINDOW:>4} steps, train loss {losses[0]:.2f} to"
            f" {losses[-1]:.2f}, validation loss {result['validation_loss']:.3f}",
            flush=True,
        )
    exact, paper, control = (results[arm] for arm in ("adamw32", "adamw4", "de+b2048/de"))
    assert not exact["unstable"] and not paper["unstable"]
    assert control["unstable"], "the control is stable: these runs would not see a broken v"
    # Not a tolerance of equivalence: broken states lose nats. Untrained, the loss is log 4096.
    assert exact["validation_loss"] < 6.5
    assert abs(paper["validation_loss"] - exact["validation_loss"]) < 0.25


def quantization():
    """The order of quantizers on real moments."""
    names = ("f32", "8bit-de0", *ZERO_FREE, *WITH_ZERO)
    errors = quantization_error.follow(0.999, ["f32", "de"], names, {"end": 40}, model=MODEL)["end"]
    following = {name: errors["next"][f"f32+{name}"]["relative_l2"] for name in names}
    for name in names:
        zeros = errors["v"][name]["carried"]["zeros"]
        print(f"{name:<14} next-step error {following[name]:10.3g}, zeros {100 * zeros:6.3f} %")
    assert following["f32"] < 1e-5
    best = min(following[name] for name in ZERO_FREE)
    assert following["8bit-de0"] < best / 3
    for name in WITH_ZERO:
        assert errors["v"][name]["carried"]["zeros"] > 0, name
        assert following[name] > 10 * max(following[other] for other in ZERO_FREE), name
    for name in ZERO_FREE:
        assert errors["v"][name]["carried"]["zeros"] == 0, name
        assert following[name] < 0.5, name

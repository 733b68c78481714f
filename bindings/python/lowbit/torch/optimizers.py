"""The optimizers, with the arguments that they have in torch."""

import torch

from . import takeover
from .optimizer import LowbitOptimizer, documented


def _check(name, value, allowed):
    if not allowed:
        raise ValueError(f"Invalid {name}: {value}")


def _check_lr(lr, options):
    """torch's own checks and messages."""
    if isinstance(lr, torch.Tensor):
        if options.get("foreach") and not options.get("capturable"):
            raise ValueError(
                "lr as a Tensor is not supported for capturable=False and foreach=True"
            )
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    _check("learning rate", lr, 0.0 <= lr)


def _check_betas(betas, options):
    kinds = {isinstance(beta, torch.Tensor) for beta in betas}
    if len(kinds) == 2:
        raise ValueError("betas must be either both floats or both Tensors")
    for i, beta in enumerate(betas):
        if isinstance(beta, torch.Tensor):
            if options.get("foreach") and not options.get("capturable"):
                raise ValueError(
                    f"betas[{i}] as a Tensor is not supported for capturable=False and foreach=True"
                )
            if beta.numel() != 1:
                raise ValueError(f"Tensor betas[{i}] must be 1-element")
        _check(f"beta parameter at index {i}", beta, 0.0 <= beta < 1.0)


def _momentum(momentum, spec, m):
    """The quantizer of a momentum that these optimizers may have or not."""
    has = isinstance(spec, dict) and "m" in spec
    if momentum == 0 and (has or m is not None):
        raise ValueError("the spec has a state m: give momentum")
    return 32 if momentum and not has and m is None else m


class _Adam(LowbitOptimizer):
    """What Adam and AdamW share."""

    _torch = None

    def __init__(self, params, lr, betas, eps, weight_decay, amsgrad, options):
        _check_lr(lr, options)
        _check("epsilon value", eps, eps > 0.0)
        _check_betas(betas, options)
        _check("weight_decay value", weight_decay, weight_decay >= 0.0)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
        }
        super().__init__(params, defaults, **options)

    @staticmethod
    def _hyper(group):
        return (group["lr"], *group["betas"], group["eps"], group["weight_decay"])

    def _options(self, group):
        return {"amsgrad": group["amsgrad"]}

    @classmethod
    def from_adamw(cls, optimizer, params=None, **options):
        """Takes over a running optimizer of torch: its groups, and its states quantized. States
        that are DTensors are gathered one at a time, for the bits of one process.

        optimizer: a `torch.optim.AdamW`, or `torch.optim.Adam` for the Adam classes; it is not
            changed.
        params: parameters in the same order, if not the same ones.
        options: further arguments of this class.

        Raises TypeError for another optimizer, ValueError for another number of parameters.
        """
        return takeover.from_torch(cls, cls._torch, optimizer, params, options)

    def to_adamw(self, **options):
        """Gives back torch's optimizer of the same parameters, its states in their dtypes.

        options: further arguments of it, as fused=True.

        What is kept beside 16-bit parameters is not in it.
        """
        return takeover.to_torch(self._torch, self, options)


@documented
class AdamW4bit(_Adam):
    """AdamW (Loshchilov and Hutter 2019) with both moments in 4 bits: `torch.optim.AdamW`.

    lr, betas, eps, weight_decay, amsgrad: as there; lr and betas may be tensors.
    spec: "adamw4" is the paper's (m in blocks, v rank-1), "adamw4-robust" the closest to 32 bits,
        "adamw4-block" the fastest; "adamw8", "adamw32", "factor4".
    """

    _optimizer = "adamw"
    _torch = torch.optim.AdamW

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        *,
        spec="adamw4",
        **options,
    ):
        options["spec"] = spec
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, options)


@documented
class AdamW8bit(AdamW4bit):
    """AdamW with both moments in 8 bits: `torch.optim.AdamW`.

    lr, betas, eps, weight_decay, amsgrad: as there; lr and betas may be tensors.
    """

    def __init__(self, *args, spec="adamw8", **kwargs):
        super().__init__(*args, spec=spec, **kwargs)


@documented
class Factor4bit(AdamW4bit):
    """AdamW with m in 4 bits and v as means of rows and columns, as in the paper's 4-bit Factor.

    lr, betas, eps, weight_decay: as `torch.optim.AdamW` has them.
    """

    def __init__(self, *args, spec="factor4", **kwargs):
        super().__init__(*args, spec=spec, **kwargs)


@documented
class Adam4bit(_Adam):
    """Adam (Kingma and Ba 2015) with both moments in 4 bits: `torch.optim.Adam`.

    lr, betas, eps, weight_decay, amsgrad: as there; the decay is part of the gradient (L2).
    spec: also a preset of AdamW, for its quantizers.
    """

    _optimizer = "adam"
    _torch = torch.optim.Adam

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        amsgrad=False,
        *,
        spec="adamw4",
        **options,
    ):
        options["spec"] = spec
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, options)


@documented
class Adam8bit(Adam4bit):
    """Adam with both moments in 8 bits: `torch.optim.Adam`.

    lr, betas, eps, weight_decay, amsgrad: as there; the decay is part of the gradient (L2).
    """

    def __init__(self, *args, spec="adamw8", **kwargs):
        super().__init__(*args, spec=spec, **kwargs)


@documented
class SGD4bit(LowbitOptimizer):
    """SGD with its momentum in 4 bits: `torch.optim.SGD`.

    lr, momentum, dampening, weight_decay, nesterov: as there, but that the momentum is 0.9 unless
        told otherwise, as without one there is no state.
    """

    _optimizer = "sgdm"

    def __init__(
        self,
        params,
        lr=1e-3,
        momentum=0.9,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        *,
        spec="sgdm4",
        **options,
    ):
        _check_lr(lr, options)
        _check("momentum value", momentum, momentum >= 0.0)
        _check("weight_decay value", weight_decay, weight_decay >= 0.0)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        if not 0.0 < momentum < 1.0:
            raise ValueError(
                f"momentum is {momentum}: without one, SGD has no state to keep in few bits; use"
                " torch.optim.SGD"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults, spec=spec, **options)

    @staticmethod
    def _hyper(group):
        return (group["lr"], group["momentum"], 0.0, 1e-8, group["weight_decay"])

    def _options(self, group):
        options = {"nesterov": group["nesterov"], "dampening": group["dampening"]}
        return {"sgdm": tuple(options.items())}


@documented
class SGD8bit(SGD4bit):
    """SGD with its momentum in 8 bits: `torch.optim.SGD`.

    lr, momentum, dampening, weight_decay, nesterov: as SGD4bit has them.
    """

    def __init__(self, *args, spec="sgdm8", **kwargs):
        super().__init__(*args, spec=spec, **kwargs)


@documented
class Lion4bit(LowbitOptimizer):
    """Lion (Chen et al. 2023) with its momentum in 4 bits.

    lr, betas, weight_decay: as in the paper.
    """

    _optimizer = "lion"

    def __init__(
        self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, *, spec="lion4", **options
    ):
        _check_lr(lr, options)
        _check_betas(betas, options)
        _check("weight_decay value", weight_decay, weight_decay >= 0.0)
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, defaults, spec=spec, **options)

    @staticmethod
    def _hyper(group):
        return (group["lr"], *group["betas"], 1e-8, group["weight_decay"])


@documented
class Lion8bit(Lion4bit):
    """Lion with its momentum in 8 bits.

    lr, betas, weight_decay: as in the paper.
    """

    def __init__(self, *args, spec="lion8", **kwargs):
        super().__init__(*args, spec=spec, **kwargs)


@documented
class Adafactor(LowbitOptimizer):
    """Adafactor (Shazeer and Stern 2018), with the arguments of `torch.optim.Adafactor`.

    lr: the largest relative step: the step size is min(lr, 1 / sqrt(step)), times the parameter's
        RMS.
    beta2_decay: v decays by 1 - step^beta2_decay.
    eps: what is added to the squared gradient (as in the paper; torch bounds v from below
        instead), and the smallest RMS that a parameter counts with.
    d: the update's RMS is clipped to it; 0: no clipping.
    weight_decay: as there.
    relative_step: whether lr is a bound of the relative step, or the step size.
    scale_parameter: whether the step size is times the parameter's RMS.
    momentum: 0 is none; kept as the spec says, in float32 if it says nothing.
    """

    _optimizer = "adafactor"

    def __init__(
        self,
        params,
        lr=1e-2,
        beta2_decay=-0.8,
        eps=(1e-30, 1e-3),
        d=1.0,
        weight_decay=0.0,
        *,
        relative_step=True,
        scale_parameter=True,
        momentum=0.0,
        spec="adafactor",
        m=None,
        **options,
    ):
        _check_lr(lr, options)
        _check("beta2_decay", beta2_decay, beta2_decay <= 0)
        _check("epsilon1", eps[0], eps[0] > 0)
        _check("epsilon2", eps[1], eps[1] >= 0)
        _check("clipping threshold d", d, d >= 1 or d == 0)
        _check("momentum value", momentum, 0.0 <= momentum < 1.0)
        _check("weight_decay value", weight_decay, weight_decay >= 0.0)
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "relative_step": relative_step,
            "scale_parameter": scale_parameter,
            "momentum": momentum,
        }
        m = _momentum(momentum, spec, m)
        super().__init__(params, defaults, spec=spec, m=m, **options)

    @staticmethod
    def _hyper(group):
        beta1, eps = group["momentum"], group["eps"][0]
        return (group["lr"], beta1, 0.999, eps, group["weight_decay"])

    def _options(self, group):
        options = {
            "relative_step": group["relative_step"],
            "scale_parameter": group["scale_parameter"],
            "clip_threshold": group["d"],
            "decay_rate": -group["beta2_decay"],
            "eps2": group["eps"][1],
        }
        return {"adafactor": tuple(options.items())}


@documented
class SM3(LowbitOptimizer):
    """SM3 (Anil et al. 2019): the second moment is one vector of maxima for each axis.

    lr, momentum: as in the paper; a momentum is kept as the spec says, in float32 if it says
        nothing, and 0 is none.
    weight_decay: decoupled, as in AdamW.
    """

    _optimizer = "sm3"

    def __init__(
        self, params, lr=1e-3, momentum=0.9, weight_decay=0.0, *, spec="sm3", m=None, **options
    ):
        _check_lr(lr, options)
        _check("momentum value", momentum, 0.0 <= momentum < 1.0)
        _check("weight_decay value", weight_decay, weight_decay >= 0.0)
        m = _momentum(momentum, spec, m)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, spec=spec, m=m, **options)

    @staticmethod
    def _hyper(group):
        return (group["lr"], group["momentum"], 0.999, 1e-8, group["weight_decay"])

"""Optimizers: one table of kinds, each a frozen dataclass that builds an optax transformation.

`build` is called inside the traced step (and at init) with the knobs as float32 scalars that may be
tracers, so no scalar is a constant of the program. Weight decay is decoupled and multiplied by the
learning rate (Loshchilov and Hutter 2019) unless a class says otherwise, and always obeys the mask.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from ablax.config import knob
from ablax.training.masks import by_rule, own_buffers, per_layer
from ablax.training.optax_kinds import Optimizer, optax_kinds
from ablax.training.rates import Rates, per_rate

Hyper = Mapping[str, Any]
Schedule = Callable[[Any], Any]
DecayMask = Callable[[Any], Any]
MomentDtype = Literal["float32", "bfloat16"]

MATRICES = (
    (
        r"embed|position|relative|norm|(bias|scale|gain|slopes?)$|(^|/)(head|logits|lm_head|unembed)",
        "adam",
    ),
    (r"(^|/)(out|output|projection|o)[^/]*/kernel$", "last"),
    (r"kernel(_[a-z0-9]+)?$|weights?(_[a-z0-9]+)?$", "first"),
)


@dataclasses.dataclass(frozen=True)
class AdamWConfig(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2)."""

    WIDTH_RULE: ClassVar = "adam"

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt3": {"b2": 0.95, "weight_decay": 0.1},
        "bert": {"b2": 0.999, "eps": 1e-6, "weight_decay": 0.01, "learning_rate": 1e-4},
    }
    b1: float = knob(0.9, "decay of the first moment, per step", traced=True)
    b2: float = knob(0.999, "decay of the second moment, per step", traced=True)
    eps: float = knob(1e-8, "added to the root of the second moment", traced=True)
    weight_decay: float = knob(
        0.01, "decay of the weights, times the learning rate, per step", traced=True
    )
    nesterov: bool = knob(False, "look ahead along the first moment (NAdam)")
    moment_dtype: MomentDtype = knob("float32", "dtype in which the first moment is kept")

    def build(self, hyper: Hyper, learning_rate: Schedule, decay_mask: DecayMask) -> Any:
        return optax.adamw(
            learning_rate,
            *(hyper["b1"], hyper["b2"], hyper["eps"]),
            mu_dtype=jnp.dtype(self.moment_dtype),
            weight_decay=hyper["weight_decay"],
            mask=decay_mask,
            nesterov=self.nesterov,
        )


@dataclasses.dataclass(frozen=True)
class AdamConfig(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), without weight decay."""

    WIDTH_RULE: ClassVar = "adam"

    b1: float = knob(0.9, "decay of the first moment, per step", traced=True)
    b2: float = knob(0.999, "decay of the second moment, per step", traced=True)
    eps: float = knob(1e-8, "added to the root of the second moment", traced=True)
    nesterov: bool = knob(False, "look ahead along the first moment (NAdam)")

    def build(self, hyper: Hyper, learning_rate: Schedule, decay_mask: DecayMask) -> Any:
        return optax.adam(
            learning_rate, hyper["b1"], hyper["b2"], hyper["eps"], nesterov=self.nesterov
        )


@dataclasses.dataclass(frozen=True)
class SGDConfig(Optimizer):
    """Stochastic gradient descent; weight decay is added to the gradient before momentum, as in
    PyTorch.
    """

    WIDTH_RULE: ClassVar = "sgd"

    learning_rate: float = knob(1.0, "peak learning rate", traced=True)
    momentum: float = knob(0.0, "decay of the velocity, per step; 0 keeps none", traced=True)
    nesterov: bool = knob(False, "look ahead along the velocity (Sutskever et al. 2013)")
    weight_decay: float = knob(0.0, "times the weights, added to the gradient", traced=True)

    def build(self, hyper: Hyper, learning_rate: Schedule, decay_mask: DecayMask) -> Any:
        momentum = None if self.momentum == 0 else hyper["momentum"]
        decay = optax.add_decayed_weights(hyper["weight_decay"], decay_mask)
        return optax.chain(decay, optax.sgd(learning_rate, momentum, self.nesterov))


@dataclasses.dataclass(frozen=True)
class LionConfig(Optimizer):
    """Lion: the sign of an interpolated momentum (Chen et al. 2023, algorithm 2)."""

    WIDTH_RULE: ClassVar = "adam"

    learning_rate: float = knob(
        1e-4, "peak learning rate, 3 to 10 times below AdamW's", traced=True
    )
    b1: float = knob(0.9, "interpolation of momentum and gradient in the update", traced=True)
    b2: float = knob(0.99, "decay of the momentum, per step", traced=True)
    weight_decay: float = knob(
        0.1, "decay of the weights, times the learning rate, per step", traced=True
    )
    moment_dtype: MomentDtype = knob("float32", "dtype in which the momentum is kept")

    def build(self, hyper: Hyper, learning_rate: Schedule, decay_mask: DecayMask) -> Any:
        dtype = jnp.dtype(self.moment_dtype)
        return optax.lion(
            learning_rate, hyper["b1"], hyper["b2"], dtype, hyper["weight_decay"], decay_mask
        )


@dataclasses.dataclass(frozen=True)
class MuonConfig(Optimizer):
    """Muon for the matrices of the layers (Jordan 2024), AdamW for everything else.

    Each layer's kernel is one matrix: [D, N, H] is orthogonalised as [D, N*H], and an output
    projection [N, H, D] as [N*H, D]. Updates are scaled to AdamW's root mean square (Liu et al.
    2025, equation 4), so AdamW's learning rate and weight decay carry over.
    """

    momentum: float = knob(0.95, "decay of the momentum, per step", traced=True)
    nesterov: bool = knob(True, "look ahead along the momentum")
    iterations: int = knob(5, "Newton-Schulz iterations")
    update_rms: float = knob(
        0.2, "root mean square of a matrix's update, times the learning rate", traced=True
    )
    b1: float = knob(0.9, "AdamW: decay of the first moment", traced=True)
    b2: float = knob(0.95, "AdamW: decay of the second moment", traced=True)
    eps: float = knob(1e-8, "added to norms and to the root of AdamW's second moment", traced=True)
    adam_factor: float = knob(1.0, "AdamW's learning rate over Muon's", traced=True)
    weight_decay: float = knob(
        0.1, "decay of the weights, times Muon's learning rate, per step", traced=True
    )
    matrices: tuple[str, ...] = knob(
        (), "regular expressions of further matrices [in, ...out], asked first"
    )
    others: tuple[str, ...] = knob(
        (), "regular expressions of further parameters for AdamW, asked second"
    )

    def build(self, hyper: Hyper, learning_rate: Schedule, decay_mask: DecayMask) -> Any:
        asked = [(p, "first") for p in self.matrices] + [(p, "adam") for p in self.others]
        side = by_rule(
            (*asked, *MATRICES), "Muon", "name it in optimizer.matrices or optimizer.others"
        )
        muon = contrib.muon(
            learning_rate,
            ns_steps=self.iterations,
            beta=hyper["momentum"],
            eps=hyper["eps"],
            nesterov=self.nesterov,
            adam_b1=hyper["b1"],
            adam_b2=hyper["b2"],
            adam_learning_rate=lambda count: hyper["adam_factor"] * learning_rate(count),
            muon_weight_dimension_numbers=lambda tree: jax.tree.map(_matrix, side(tree), tree),
            consistent_rms=hyper["update_rms"],
        )
        # optax masks the decay of Muon's part only; ours covers both parts with one rule.
        decay = optax.add_decayed_weights(
            lambda count: -hyper["weight_decay"] * learning_rate(count), decay_mask
        )
        return optax.chain(per_layer(muon), decay)


def _matrix(side: str, leaf: Any) -> contrib.MuonDimensionNumbers | None:
    if side == "adam":
        return None
    axes = tuple(range(leaf.ndim))
    cut = 1 if side == "first" else leaf.ndim - 1
    return contrib.MuonDimensionNumbers(axes[:cut], axes[cut:])


@dataclasses.dataclass(frozen=True)
class AdafactorConfig(Optimizer):
    """Adafactor: a factored second moment (Shazeer and Stern 2018, algorithm 4), per layer."""

    learning_rate: float = knob(
        1e-2, "peak learning rate, times the parameter's own scale", traced=True
    )
    factored: bool = knob(True, "keep row and column sums instead of the whole second moment")
    min_dim_size_to_factor: int = knob(128, "smallest second-largest axis that is factored")
    decay_rate: float = knob(0.8, "exponent c of the second moment's decay 1 - t^-c", traced=True)
    multiply_by_parameter_scale: bool = knob(
        True, "multiply updates by the parameter's root mean square"
    )
    clipping_threshold: float = knob(1.0, "largest root mean square of an update", traced=True)
    momentum: float = knob(0.0, "decay of the momentum, per step; 0 keeps none", traced=True)
    eps: float = knob(1e-30, "added to the squared gradient", traced=True)
    weight_decay: float = knob(
        0.0, "decay of the weights, times the learning rate, per step", traced=True
    )

    def build(self, hyper: Hyper, learning_rate: Schedule, decay_mask: DecayMask) -> Any:
        adafactor = optax.adafactor(
            learning_rate,
            self.min_dim_size_to_factor,
            hyper["decay_rate"],
            multiply_by_parameter_scale=self.multiply_by_parameter_scale,
            clipping_threshold=hyper["clipping_threshold"],
            momentum=None if self.momentum == 0 else hyper["momentum"],
            weight_decay_rate=lambda count: hyper["weight_decay"] * learning_rate(count),
            eps=hyper["eps"],
            factored=self.factored,
            weight_decay_mask=decay_mask,
        )
        return per_layer(adafactor)


@dataclasses.dataclass(frozen=True)
class ScheduleFreeAdamWConfig(Optimizer):
    """Schedule-free AdamW (Defazio et al. 2024, algorithm 1): train with a constant schedule and a
    warm-up.

    The trained parameters are the points y at which gradients are taken; evaluate
    `evaluation_params`, the average x.
    """

    learning_rate: float = knob(2.5e-3, "peak learning rate", traced=True)
    b1: float = knob(0.9, "interpolation of the average and the iterate", traced=True)
    b2: float = knob(0.999, "decay of the second moment, per step", traced=True)
    eps: float = knob(1e-8, "added to the root of the second moment", traced=True)
    weight_decay: float = knob(
        0.0, "decay of the weights, times the learning rate, per step", traced=True
    )
    weight_lr_power: float = knob(
        2.0, "power of the learning rate in the average's weights", traced=True
    )

    def build(self, hyper: Hyper, learning_rate: Schedule, decay_mask: DecayMask) -> Any:
        base = optax.chain(
            optax.scale_by_rms(hyper["b2"], hyper["eps"], eps_in_sqrt=False, bias_correction=True),
            optax.add_decayed_weights(hyper["weight_decay"], decay_mask),
            optax.scale_by_learning_rate(learning_rate),
        )
        # optax counts the average's steps from one and the base's from zero.
        return contrib.schedule_free(
            base, lambda count: learning_rate(count - 1), hyper["b1"], hyper["weight_lr_power"]
        )


OPTIMIZERS: dict[str, type] = {
    "adamw": AdamWConfig,
    "adam": AdamConfig,
    "sgd": SGDConfig,
    "lion": LionConfig,
    "muon": MuonConfig,
    "adafactor": AdafactorConfig,
    "schedule_free_adamw": ScheduleFreeAdamWConfig,
    **optax_kinds(),
}


def build_optimizer(
    config: Any,
    hyper: Hyper,
    learning_rate: Schedule,
    decay_mask: DecayMask,
    rates: Rates = (),
) -> optax.GradientTransformation:
    """The transformation of a config, with a state that shares no buffer with parameters or knobs.

    Args:
      config: an entry of OPTIMIZERS (its `static` form will do), or a class from outside with the
        same `build`.
      hyper: the config's traced knobs as float32 scalars, possibly tracers.
      learning_rate: step (int32) -> learning rate, the knob times the schedule's factor.
      decay_mask: parameters -> tree of bool, True where weight decay acts (see
        `DecayConfig.build`).
      rates: factors on the learning rates of some parameters, see `rates.per_rate`.
    """

    def build(hyper: Hyper, learning_rate: Schedule) -> Any:
        return config.build(hyper, learning_rate, decay_mask)

    return own_buffers(per_rate(build, hyper, learning_rate, rates))


def evaluation_params(config: Any, opt_state: Any, params: Any) -> Any:
    """The parameters to evaluate and to sample from: the running average of schedule-free, else
    `params`.
    """
    if isinstance(config, ScheduleFreeAdamWConfig):
        return contrib.schedule_free_eval_params(opt_state, params)
    return params

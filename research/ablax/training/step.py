"""The training step: two pure functions that know no mesh, no axis name, no file and no clock."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ablax.config import RequestError
from ablax.objectives.batch import Batch, Losses
from ablax.objectives.forward import Forward, losses_of, splits
from ablax.objectives.sums import Sums
from ablax.shapes import Array
from ablax.training.guard import ACCEPTED, GuardState, judge
from ablax.training.masks import clipping
from ablax.training.micro import join_rows, split_rows
from ablax.training.optimizers import build_optimizer, evaluation_params
from ablax.training.rates import Rates
from ablax.training.settings import TrainingConfig
from ablax.training.state import TrainState, key_of


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The pure functions of one experiment.

    Attributes:
      module: the Linen model.
      objective: turns logits into sums.
      optimizer: config of an optimizer (see `optimizers.build_optimizer`).
      schedule: (hyper, step) -> factor of the learning rate.
      config: accumulation, clipping, averaging.
      spec: shapes and dtypes of a global batch.
      streams: whether a recurrent carry goes from batch to batch.
      rates: factors on the learning rates of some parameters (see `rates.rates_of`).
    """

    module: Any
    objective: Any
    optimizer: Any
    schedule: Callable[[Mapping[str, Any], Array], Array]
    config: TrainingConfig
    spec: Mapping[str, jax.ShapeDtypeStruct]
    streams: bool = False
    rates: Rates = ()

    def __post_init__(self):
        if self.config.loss_chunk is not None and not splits(self.module):
            raise RequestError(
                f"training.loss_chunk={self.config.loss_chunk} needs methods `features` and `logits`, which "
                f"{type(self.module).__name__} has not; add them, or set it to none"
            )

    def transformation(self, hyper: Mapping[str, Any]) -> optax.GradientTransformation:
        """The optimizer for the given traced values."""
        own, factor = hyper.get("optimizer", {}), hyper.get("schedule", {})

        def rate(step: Array) -> Array:
            return own["learning_rate"] * self.schedule(factor, step)

        mask = self.config.decay.build()
        return build_optimizer(self.optimizer, own, rate, mask, self.rates)

    @functools.cached_property
    def init(self) -> Callable[[Array, Mapping[str, Any]], TrainState]:
        """See `fresh`. One function for all who ask, because JAX finds what it has traced by the function itself."""
        return self.fresh

    def fresh(self, rng: Array, hyper: Mapping[str, Any]) -> TrainState:
        """A fresh state.

        Args:
          rng: uint32 [2] key data.
          hyper: nested float32 scalars.
        """
        key = jax.random.wrap_key_data(rng, impl="threefry2x32")
        init_key, run_key = jax.random.split(key)
        tokens, positions, segments = (
            jnp.ones((1, self.spec[name].shape[1]), jnp.int32)
            for name in ("tokens", "positions", "segment_ids")
        )
        own = hyper.get("model", {})
        params = self.module.init(init_key, tokens, positions, segments, hyper=own)["params"]
        carry = self.module.init_carry(self.spec["tokens"].shape[0]) if self.streams else ()
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.transformation(hyper).init(params),
            ema=jax.tree.map(jnp.copy, params) if self.config.ema_decay is not None else (),
            carry=carry,
            hyper=hyper,
            rng=jax.random.key_data(run_key),
            guard=GuardState.fresh(),
        )

    def loss(
        self, params: Any, hyper: Mapping[str, Any], carry: Any, key: Array | None, batch: Batch
    ) -> Losses:
        """Loss and metrics as sums, and the carry; with a key it is a training pass."""
        own = hyper.get("model", {})
        apply = Forward(self.module, params, own, carry, key, self.config.loss_chunk)
        return losses_of(self.objective, apply, batch, hyper.get("objective", {}))

    def gradients(self, state: TrainState, batch: Batch) -> tuple[Any, Sums, dict[str, Sums], Any]:
        """Gradient of the total (not the mean), and the sums.

        Returns:
          (gradient like params, loss sums, metric sums, carry).
        """
        parts = self.config.accumulation

        def one(carry: Any, batch: Batch, key: Array):
            def total(params):
                loss, metrics, after = self.loss(params, state.hyper, carry, key, batch)
                return loss.total, (loss, metrics, after if self.streams else ())

            gradient, (loss, metrics, after) = jax.grad(total, has_aux=True)(state.params)
            return gradient, loss, metrics, jax.lax.stop_gradient(after)

        if parts == 1:
            return one(state.carry, batch, key_of(state))

        def body(sums, micro):
            index, carry, batch = micro
            *out, after = one(carry, batch, jax.random.fold_in(key_of(state), index))
            return jax.tree.map(jnp.add, sums, tuple(out)), after

        micro = (jnp.arange(parts), split_rows(state.carry, parts), split_rows(batch, parts))
        _, carry, rows = jax.tree.map(lambda x: x[0], micro)
        shapes = jax.eval_shape(one, carry, rows, key_of(state))[:3]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        sums, after = jax.lax.scan(body, zeros, micro)
        return *sums, join_rows(after)

    def update(
        self, state: TrainState, gradient: Any, loss: Sums, carry: Any
    ) -> tuple[TrainState, dict[str, Array]]:
        """Divides once by the count, clips, and takes the optimizer's step, unless the guard refuses it."""
        count = jnp.maximum(loss.count, 1).astype(jnp.float32)
        norm = optax.tree.norm(gradient) / count
        factor = clipping(norm, self.config.clip_norm) / count
        rate = state.hyper["optimizer"]["learning_rate"] * self.schedule(
            state.hyper.get("schedule", {}), state.step
        )
        guard = judge(self.config.guard, state.guard, state.hyper, loss, norm, rate)
        # A choice between two whole states would hold both in memory.
        after = jax.lax.cond(
            guard.refused == ACCEPTED,
            self.apply,
            lambda state, *_: state,
            *(state, gradient, factor, carry),
        )
        numbers = {"gradient_norm": norm, "learning_rate": rate, "refused": guard.refused}
        return dataclasses.replace(after, guard=guard), numbers

    def apply(self, state: TrainState, gradient: Any, factor: Array, carry: Any) -> TrainState:
        """The optimizer's step along `factor` times the gradient."""
        gradient = jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient)
        updates, opt_state = self.transformation(state.hyper).update(
            gradient, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if self.config.ema_decay is not None:
            ema = optax.incremental_update(params, state.ema, 1 - self.config.ema_decay)
        return dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, ema=ema, carry=carry
        )

    def step(
        self, state: TrainState, batch: Batch, reduce: Callable[[Any], Any] = lambda tree: tree
    ) -> tuple[TrainState, dict[str, Any]]:
        """Update after gradients; `reduce` adds the gradients and sums of devices where an engine needs it.

        Returns:
          (the next state, metrics: `loss` and the objective's as Sums, scalars as float32).
        """
        gradient, loss, metrics, carry = self.gradients(state, batch)
        gradient, loss, metrics = reduce((gradient, loss, metrics))
        state, numbers = self.update(state, gradient, loss, carry)
        return state, {"loss": loss, **metrics, **numbers}

    def evaluation_params(self, state: TrainState) -> Any:
        """The parameters that are scored: averaged ones where the run keeps them."""
        if self.config.ema_decay is not None:
            return state.ema
        return evaluation_params(self.optimizer, state.opt_state, state.params)

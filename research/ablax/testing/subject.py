"""The model under test, with the programs that the laws share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from ablax.config import RequestError, static, traced, walk
from ablax.training.masks import parameter_path
from ablax.training.state import scalars

ROWS = 2


def instance(config: Any) -> Any:
    """A config, of itself or of its class.

    Raises:
      RequestError: if it is no dataclass.
    """
    if not dataclasses.is_dataclass(config):
        raise RequestError(
            f"{config!r} is no config; decorate its class with @dataclasses.dataclass(frozen=True)"
        )
    return config() if isinstance(config, type) else config


def law_broken(name: str, law: str, seen: str, remedy: str) -> NoReturn:
    """Raises the AssertionError of a broken law."""
    raise AssertionError(f"{name} breaks the law of {law}: {seen}; {remedy}")


def traced_paths(config: Any) -> list[str]:
    """Dotted paths of the traced knobs."""
    return [path for path, field, _, _ in walk(config) if field.metadata.get("traced")]


def value_at(config: Any, path: str) -> float:
    """The knob at a dotted path."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def changed(config: Any, path: str, value: float) -> Any:
    """The config with the knob at a dotted path changed."""
    head, _, rest = path.partition(".")
    inner = changed(getattr(config, head), rest, value) if rest else value
    return dataclasses.replace(config, **{head: inner})


def awake(config: Any) -> Any:
    """The config with traced knobs that are off (dropout rates) at 0.1, so that their code is in the program."""
    for path in traced_paths(config):
        if value_at(config, path) == 0:
            try:
                config = changed(config, path, 0.1)
            except RequestError:
                continue  # this knob allows nothing but other values
    return config


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`, without XLA's optimisations on a CPU: the laws compile for longer than they compute."""
    cpu = jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0} if cpu else {})


def whole(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions and segments of rows that are one segment each."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return tokens, positions, np.ones_like(tokens)


def initialiser(module: Any, tokens: np.ndarray) -> Callable[[Mapping[str, Any]], Any]:
    """hyper -> initial parameters."""
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles several times faster than threefry

    def init(hyper: Mapping[str, Any]) -> Any:
        return module.init(key, *map(jnp.asarray, whole(tokens)), hyper=hyper)["params"]

    return init


def training_pass(module: Any) -> Callable[..., tuple[Any, Any]]:
    """(params, hyper, tokens, positions, segment_ids) -> (loss, its gradient), dropout acting."""

    def loss(params: Any, hyper: Mapping[str, Any], tokens: Any, positions: Any, segments: Any):
        rngs = {"dropout": jax.random.key(1, impl="unsafe_rbg")}
        (logits, _), own = module.apply(
            {"params": params},
            tokens,
            positions,
            segments,
            hyper=hyper,
            train=True,
            rngs=rngs,
            mutable=["losses"],
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
        loss = -jnp.sum(jnp.where(segments != 0, chosen[..., 0], 0)) / tokens.size
        return loss + sum(map(jnp.mean, jax.tree.leaves(own)))

    return jax.value_and_grad(loss)


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model under test.

    Attributes:
      given: the config as the user set it.
      config: the same with traced knobs awake.
      module: built from the static config, in which traced knobs are nan.
      vocab_size: V.
      hyper: the traced knobs as float32 scalars.
      params: initial ones plus noise, so that no bias is zero.
      tokens: int32 [2 T], those of a row all different where V allows.
      init, train: compiled, see `initialiser` and `training_pass`.
      forward: (tokens, positions, segment_ids) -> logits [2 T V], compiled.
    """

    given: Any
    config: Any
    module: Any
    vocab_size: int
    hyper: Mapping[str, Any]
    params: Any
    tokens: np.ndarray
    init: Callable[..., Any]
    train: Callable[..., Any]
    forward: Callable[..., np.ndarray]

    @classmethod
    def of(cls, given: Any, vocab_size: int, length: int) -> "Subject":
        """Builds and initialises the model."""
        config, name = awake(given), type(given).__name__
        try:
            module = static(config).build(vocab_size, length)
        except RequestError as error:
            seen = f"with nan in a traced knob its config says: {error}"
            law_broken(
                name, "traced knobs", seen, "write range checks as `if x < 0: raise`; nan passes"
            )
        rng = np.random.default_rng(0)
        rows = [rng.permutation(max(vocab_size, length))[:length] % vocab_size for _ in range(ROWS)]
        tokens, hyper = np.asarray(rows, np.int32), scalars(traced(config))
        init = compiled(initialiser(module, tokens))
        try:
            initial = init(hyper)
        except jax.errors.ConcretizationTypeError as error:
            seen = f"a value of `hyper` is needed in Python ({str(error).splitlines()[0]})"
            law_broken(
                name, "traced knobs", seen, "branch on the config, compute with `hyper` in jnp"
            )

        def noisy(path: Any, leaf: Any) -> np.ndarray:
            if leaf.dtype != jnp.float32:
                seen = f"the parameter {parameter_path(path)} is {leaf.dtype}"
                law_broken(name, "float32", seen, "create it in float32, cast it where it is used")
            scale = leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.1
            return np.asarray(leaf + rng.normal(0, scale, leaf.shape), np.float32)

        params = jax.tree_util.tree_map_with_path(noisy, initial)
        run = compiled(lambda p, h, *batch: module.apply({"params": p}, *batch, hyper=h)[0])

        def forward(*batch: np.ndarray) -> np.ndarray:
            return np.asarray(run(params, hyper, *batch))

        train = compiled(training_pass(module))
        return cls(given, config, module, vocab_size, hyper, params, tokens, init, train, forward)

    def broken(self, law: str, seen: str, remedy: str) -> NoReturn:
        """Raises the AssertionError of a broken law."""
        law_broken(type(self.given).__name__, law, seen, remedy)

    def exchanged(self, place: int) -> np.ndarray:
        """The tokens with that of the first row at `place` replaced by another."""
        tokens = self.tokens.copy()
        tokens[0, place] = (tokens[0, place] + 1) % self.vocab_size
        return tokens

"""Every knob changes something that can be observed: a traced program, a traced value, a schedule, a batch, the plan of
evaluations and checkpoints, what writers are asked to do. Nothing is compiled.

Catches a knob that nobody reads, a typo in a field's name, and a knob that is read and then dropped on the way.
"""

import contextlib
import dataclasses
import functools
import io
import types
import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax import trainer
from ablax.config import Duration, flatten, hints, static, traced
from ablax.evaluation.scores import MetricIdentity, Scores
from ablax.experiment import base, resolve
from ablax.models.table import MODELS
from ablax.objectives.sums import Sums
from ablax.objectives.table import OBJECTIVES
from ablax.training import descent, evaluators, session, writers
from ablax.training.optimizers import OPTIMIZERS, build_optimizer
from ablax.training.schedules import SCHEDULES
from ablax.training.state import scalars

# -- a changed value for every kind of field ---------------------------------------------------------------------------


def other(annotation: Any, value: Any, choices: Any) -> Any:
    """A value unlike `value`, by the field's annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if choices is not None:
        return next(c for c in choices if c != value)
    if origin in (typing.Union, types.UnionType):
        inner = next(a for a in arguments if a is not type(None))
        return other(
            inner,
            {int: 4, float: 0.25, str: "x", bool: False}.get(inner, value)
            if value is None
            else value,
            None,
        )
    if origin is Literal:
        return next(a for a in arguments if a != value)
    if origin is tuple:
        return (*value, 8) if value else (("nothing",) if arguments[0] is str else (8,))
    if annotation is Duration:
        return Duration("50%") if value != Duration("50%") else Duration("25%")
    return {
        bool: lambda v: not v,
        int: lambda v: v * 2 if v else 1,
        float: lambda v: v / 2 if v else 0.25,
        str: lambda v: v + "x",
    }[annotation](value)


def changed_fields(config: Any, special: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, config before, config after) of every plain field; `special`: where `other` fails."""
    result = []
    for field in dataclasses.fields(config):
        if "family" in field.metadata or dataclasses.is_dataclass(getattr(config, field.name)):
            continue
        before, value = config, None
        if field.name in special:
            context, value = special[field.name]
            before = dataclasses.replace(config, **context)
        if value is None:
            value = other(
                hints(type(config))[field.name],
                getattr(before, field.name),
                field.metadata["choices"],
            )
        result.append((field.name, before, dataclasses.replace(before, **{field.name: value})))
    return result


# -- models, objectives, optimizers, schedules: programs and values ----------------------------------------------------

TINY = {"num_layers": 2, "width": 8, "num_heads": 2}
MODEL_SPECIAL = {
    "num_heads": ({}, 4),
    "num_kv_heads": ({}, 1),
    "qkv_bias": ({}, False),
    "hidden_width": ({}, 24),
    "feedforward_width": ({}, 24),
    "unroll": ({}, 1),
    "fold_rows": ({}, None),
    "norm_epsilon": ({}, 1e-3),
    "attention_pattern": ({}, (2,)),
    "scale_residual_init": ({}, None),
}


@functools.cache
def model_program(config: Any) -> tuple[str, str, Any]:
    """Traced init and training pass, and the traced values."""
    module = static(config).build(11, 6)
    hyper = scalars(traced(config))
    tokens = jnp.ones((2, 6), jnp.int32)
    arguments = (tokens, jnp.broadcast_to(jnp.arange(6), (2, 6)), tokens)

    def init(key, hyper):
        return module.init({"params": key}, *arguments, hyper=hyper)

    key = jax.random.key(0)
    variables = jax.eval_shape(init, key, hyper)
    carry = module.init_carry(2) if hasattr(module, "init_carry") else ()

    def loss(variables, hyper, key):
        logits, _ = module.apply(
            variables, *arguments, hyper=hyper, carry=carry, train=True, rngs={"dropout": key}
        )
        return logits.sum()

    return (
        str(jax.make_jaxpr(init)(key, hyper)),
        str(jax.make_jaxpr(jax.grad(loss))(variables, hyper, key)),
        jax.tree.map(float, hyper),
    )


def model_cases():
    for kind, cls in MODELS.items():
        if hasattr(cls, "fit"):
            continue
        names = {f.name for f in dataclasses.fields(cls)}
        config = cls(**{k: v for k, v in TINY.items() if k in names})
        special = {k: v for k, v in MODEL_SPECIAL.items() if k in names}
        for name, before, after in changed_fields(config, special):
            yield pytest.param(before, after, id=f"{kind}.{name}")
        for field in dataclasses.fields(config):
            if "family" in field.metadata:
                for tag, inner in field.metadata["family"].table.items():
                    for name, before, after in changed_fields(inner(), {}):
                        pair = [
                            dataclasses.replace(config, **{field.name: c}) for c in (before, after)
                        ]
                        yield pytest.param(*pair, id=f"{kind}.{field.name}={tag}.{name}")


@pytest.mark.parametrize(("before", "after"), list(model_cases()))
def test_model_knobs(before, after):
    assert model_program(before) != model_program(after)


def test_ngram_knobs():
    tokens, offsets = np.array([1, 2, 1, 2, 3, 1]), np.array([0, 6])
    for name, before, after in changed_fields(
        MODELS["ngram"](),
        {"order": ({"order": 1}, 2), "discount_fallback": ({"order": 2}, (0.4, 0.9, 1.4))},
    ):
        fitted = [
            c.fit(tokens, offsets, 5, None, None).log_probs(np.array([[1, 2]]))
            for c in (before, after)
        ]
        assert not np.array_equal(*fitted), name


PARAMS = {
    "blocks": {"mlp": {"kernel": jnp.ones((2, 4, 6)), "bias": jnp.ones((2, 6))}},
    "tokens": {"embedding": jnp.ones((5, 4))},
}


@functools.cache
def optimizer_program(config: Any) -> tuple[str, Any]:
    """Traced init and update, and the traced values."""
    hyper = scalars(traced(config))

    def run(hyper, gradient, params):
        mask = lambda tree: jax.tree.map(lambda _: True, tree)  # noqa: E731
        tx = build_optimizer(
            static(config), hyper, lambda step: hyper["learning_rate"] * (step + 1.0), mask
        )
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(gradient, state, params)
        return updates, state

    return str(jax.make_jaxpr(run)(hyper, PARAMS, PARAMS)), jax.tree.map(float, hyper)


OPTIMIZER_SPECIAL = {
    "muon": {"matrices": ({}, ("embedding",)), "others": ({}, ("kernel",))},
    "sgd": {"nesterov": ({"momentum": 0.9}, True)},
    "rmsprop": {"nesterov": ({"momentum": 0.9}, True)},
    "adafactor": {
        "factored": ({"min_dim_size_to_factor": 2}, False),
        "min_dim_size_to_factor": ({"min_dim_size_to_factor": 2}, 64),
        "momentum": ({}, 0.5),
    },
}


def optimizer_cases():
    for kind, cls in OPTIMIZERS.items():
        for name, before, after in changed_fields(cls(), OPTIMIZER_SPECIAL.get(kind, {})):
            yield pytest.param(before, after, id=f"{kind}.{name}")


@pytest.mark.parametrize(("before", "after"), list(optimizer_cases()))
def test_optimizer_knobs(before, after):
    assert optimizer_program(before) != optimizer_program(after)


def test_schedule_knobs():
    for kind, cls in SCHEDULES.items():
        for name, before, after in changed_fields(cls(**({"warmup": Duration(10)})), {}):
            curves = []
            for config in (before, after):
                hyper = scalars(traced(config))
                factor = config.build(100, lambda duration: duration.steps(100), hyper)
                curves.append(np.array([factor(jnp.int32(step)) for step in range(0, 100, 7)]))
            assert not np.array_equal(*curves), f"{kind}.{name}"


# -- everything else: a run with its surroundings recorded -------------------------------------------------------------


class Stage:
    """Stands in for devices, disk and displays, and writes down what the trainer asks of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.seen: list[Any] = []
        note = self.seen.append

        class Engine:
            def __init__(self, experiment, program):
                self.program = program
                real = build(experiment, program)
                note((type(real).__name__, len(experiment.parallel.devices())))

            def init(self, rng, hyper):
                note(("init", np.asarray(rng).tolist(), jax.tree.map(float, hyper)))
                shapes = jax.eval_shape(self.program.init, rng, hyper)
                note(str(jax.make_jaxpr(self.program.step)(shapes, dict(self.program.spec))))
                return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)

            def step(self, state, batch):
                note({name: np.asarray(rows).tobytes() for name, rows in batch.items()})
                one = Sums(np.float32(1), np.int32(1))
                schedule = float(
                    self.program.schedule(state.hyper["schedule"], jnp.asarray(state.step))
                )
                note(schedule)
                metrics = {"loss": one, "nats_per_token": one, "gradient_norm": np.float32(1)}
                return state.replace(step=state.step + 1), metrics

        class Checkpoints:
            def __init__(self, folder, *arguments, **options):
                note(("checkpoints", arguments, {k: v for k, v in options.items() if k != "say"}))

            latest_step = lambda self: None  # noqa: E731
            wait = close = lambda self: None

            def save(self, step, state, cursor, config, scores):
                note(("save", step))

        def score(name):
            def fake(module, params, documents, *, names, put, hyper, **options):
                options.pop("vocabulary", None)
                note((name, names, options, documents.tokens.tobytes()))
                ones = np.ones(len(names))
                identity = MetricIdentity("likelihood", "document", None, None, True, True, True)
                return Scores(ones, ones, ones, ones, tuple(names)), identity

            return fake

        build = session.build_engine
        monkeypatch.setattr(session, "build_engine", Engine)
        monkeypatch.setattr(descent, "Checkpoints", Checkpoints)
        for name in ("score_documents", "score_masked", "score_pseudo_likelihood"):
            monkeypatch.setattr(evaluators, name, score(name))
        for name in ("ConsoleWriter", "TensorBoardWriter"):
            monkeypatch.setattr(writers, name, self.writer(name))
        monkeypatch.setattr(
            writers,
            "_wandb",
            lambda config, folder: self.writer("wandb")(dataclasses.asdict(config)),
        )

    def writer(self, name):
        note = self.seen.append

        class Writer:
            def __init__(self, *arguments):
                note((name, [a for a in arguments if isinstance(a, (int, dict))]))

            def write(self, record):
                note((name, record["step"], record["split"]))

            def close(self):
                pass

        return Writer


SMALL = {
    "data.source": "builtin:python_reference",
    "data.tokenizer": "byte",
    "data.sequence_length": 8,
    "model.num_layers": 1,
    "model.width": 8,
    "model.num_heads": 2,
    "training.batch_size": 2,
    "training.steps": 6,
    "schedule.warmup": 1,
    "evaluation.documents": 2,
    "writers.every": 2,
}
# path -> (context, new value): where the default context or the automatic change will not do.
CONTEXTS: dict[str, tuple[dict[str, Any], Any]] = {
    "name": ({}, None),
    "data.source.name": ({}, "python_source"),
    "data.split.rule": ({}, "tail"),
    "data.split.validation": ({"data.split.rule": "tail"}, 0.2),
    "data.split.test": ({"data.split.rule": "tail"}, 0.2),
    "data.split.seed": ({"data.split.validation": 0.3}, 1),
    "data.layout": ({}, "packed"),
    "data.sequence_length": ({}, 16),
    "training.steps": ({}, 7),
    "training.accumulation": ({}, 2),
    "training.decay.embeddings": ({}, False),
    "training.decay.weights": ({}, ("bias",)),
    "training.decay.spared": ({}, ("kernel",)),
    "evaluation.split": ({}, "train"),
    "evaluation.documents": ({}, 1),
    "evaluation.rule": ({}, "stream"),
    "evaluation.context": ({}, 4),
    "evaluation.stride": ({}, 4),
    "evaluation.pseudo_documents": ({"model": "encoder", "objective": "masked"}, 3),
    "evaluation.pseudo_every": ({"model": "encoder", "objective": "masked"}, 3),
    "checkpoint.best": ({}, "perplexity"),
    **{
        f"writers.wandb_{k}": ({"writers.wandb": True}, None)
        for k in ("project", "entity", "name", "mode")
    },
    "objective.label_smoothing": ({}, 0.1),
}
# What cannot be seen in a short run, and where it is tested instead.
ELSEWHERE = {
    "name": "is written to run.json (tests/test_trainer.py)",
    "data.prefetch": "how far ahead batches are made (tests/data/test_loader.py)",
    "data.split.shared": "splits of the default rule share nothing (tests/data/test_splits.py)",
    "data.phase": "acts from the second epoch on (tests/data/test_layouts.py)",
    "parallel.data": "needs several devices (tests/parallel)",
}
COVERED = ("model.", "optimizer.", "schedule.")  # above, for every kind


def run_cases():
    experiment = resolve(base(), SMALL)
    for path in flatten(experiment):
        if path.endswith("kind") or path.startswith(COVERED) or path in ELSEWHERE:
            continue
        yield path


@pytest.fixture(scope="module")
def observations():
    return {}


def observe(overrides, monkeypatch, tmp_path, cache):
    key = str(sorted(overrides.items(), key=str))
    if key not in cache:
        with monkeypatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
            stage = Stage(patch)
            trainer.train(resolve(base(), {**SMALL, **overrides}), tmp_path / "run", fresh=True)
        cache[key] = stage.seen
    return cache[key]


@pytest.mark.parametrize("path", list(run_cases()))
def test_run_knobs(path, monkeypatch, tmp_path, observations):
    context, value = CONTEXTS.get(path, ({}, None))
    before = resolve(base(), {**SMALL, **context})
    if value is None:
        holder, leaf = before, path.split(".")
        for part in leaf[:-1]:
            holder = getattr(holder, part)
        field = next(f for f in dataclasses.fields(holder) if f.name == leaf[-1])
        value = other(
            hints(type(holder))[leaf[-1]], getattr(holder, leaf[-1]), field.metadata["choices"]
        )
    first = observe(context, monkeypatch, tmp_path, observations)
    second = observe({**context, path: value}, monkeypatch, tmp_path, observations)
    assert repr(first) != repr(second), f"{path}={value!r} changes nothing"


def test_masked_objective_knobs():
    from ablax.objectives.batch import Vocabulary

    vocabulary = Vocabulary(50, np.arange(50) < 3, np.arange(50) % 3 == 0, 2)
    rng = np.random.default_rng(0)
    row = {
        "tokens": rng.integers(3, 50, 65).astype(np.int32),
        "positions": np.arange(65, dtype=np.int32),
    }
    row["segment_ids"] = np.ones(65, np.int32)
    cls = OBJECTIVES["masked"]
    special = {
        "span_length": ({"unit": "span"}, 1.0),
        "random_share": ({"mask_share": 0.4}, 0.6),
        "label_smoothing": ({}, 0.1),
    }
    for name, before, after in changed_fields(cls(), special):
        made = [
            c.transform(row, np.random.default_rng(1), vocabulary)["tokens"].tolist()
            for c in (before, after)
        ]
        assert made[0] != made[1] or traced(before) != traced(after), name

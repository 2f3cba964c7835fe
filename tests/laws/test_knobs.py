"""Every knob changes something that can be observed: a traced program, a traced value, a schedule, a batch, the plan of
evaluations and checkpoints, what writers are asked to do. Nothing is compiled.

Catches a knob that nobody reads, a typo in a field's name, and a knob that is read and then dropped on the way.
"""

import ast
import contextlib
import dataclasses
import functools
import io
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablax import trainer
from ablax.config import Duration, flatten, hints, static, traced
from ablax.data.sources import SOURCES
from ablax.data.tokenizers import TOKENIZERS
from ablax.evaluation.scores import MetricIdentity, Scores
from ablax.experiment import base, resolve
from ablax.models.table import MODELS
from ablax.objectives.batch import Vocabulary
from ablax.objectives.sums import Sums
from ablax.objectives.table import OBJECTIVES
from ablax.training import descent, evaluators, session, writers
from ablax.training.optimizers import OPTIMIZERS, build_optimizer
from ablax.training.schedules import SCHEDULES
from ablax.training.sharding import AXES
from ablax.training.state import scalars
from changed_knobs import changed_fields, other

# -- models, objectives, optimizers, schedules: programs and values ----------------------------------------------------

TINY = {"num_layers": 2, "width": 8, "num_heads": 2}
MODEL_SPECIAL = {
    "num_heads": ({}, 4),
    "num_kv_heads": ({}, 1),
    "qkv_bias": ({}, False),
    "attention_out_bias": ({}, False),
    "parallel_residual": ({"norm_placement": "pre"}, True),
    "hidden_width": ({}, 24),
    "feedforward_width": ({}, 24),
    "unroll": ({}, 1),
    "fold_rows": ({}, None),
    "norm_epsilon": ({}, 1e-3),
    "attention_pattern": ({}, (2,)),
    "attention_kernel": ({}, "xla"),
    "scale_residual_init": ({}, None),
}


# A table longer than a row; ends of YaRN's ramp between whole pairs: a tiny head has two.
CHOICE_SPECIAL: dict[str, dict[str, Any]] = {
    "learned": {"length": ({}, 9)},
    "yarn": {
        name: ({"truncate": False}, None) for name in ("beta_fast", "beta_slow", "original_length")
    },
}
TOKENS = jnp.ones((2, 6), jnp.int32)
ARGUMENTS = (TOKENS, jnp.broadcast_to(jnp.arange(6), (2, 6)), TOKENS)


@functools.cache
def model_start(config: Any) -> tuple[str, Any, Any]:
    """Traced init, the traced values and the shapes of the parameters."""
    module = static(config).build(11, 6)
    hyper = scalars(traced(config))

    def init(key, hyper):
        return module.init({"params": key}, *ARGUMENTS, hyper=hyper)

    program, variables = jax.make_jaxpr(init, return_shape=True)(jax.random.key(0), hyper)
    return str(program), jax.tree.map(float, hyper), variables


@functools.cache
def model_gradient(config: Any) -> str:
    """The traced training pass."""
    module, key = static(config).build(11, 6), jax.random.key(0)
    hyper, variables = scalars(traced(config)), model_start(config)[2]
    carry = module.init_carry(2) if hasattr(module, "init_carry") else ()

    def loss(variables, hyper, key):
        logits, _ = module.apply(
            variables, *ARGUMENTS, hyper=hyper, carry=carry, train=True, rngs={"dropout": key}
        )
        return logits.sum()

    return str(jax.make_jaxpr(jax.grad(loss))(variables, hyper, key))


def chosen_cases(config):
    """(path, before, after) of every knob of every choice that a config has, and of the choices that those have."""
    for field in dataclasses.fields(config):
        if "family" not in field.metadata:
            continue
        for tag, cls in field.metadata["family"].table.items():
            for name, *pair in [
                *changed_fields(cls(), CHOICE_SPECIAL.get(tag, {})),
                *chosen_cases(cls()),
            ]:
                before, after = (dataclasses.replace(config, **{field.name: c}) for c in pair)
                yield f"{field.name}={tag}.{name}", before, after


def model_cases():
    for kind, cls in MODELS.items():
        if hasattr(cls, "fit"):
            continue
        names = {f.name for f in dataclasses.fields(cls)}
        config = cls(**{k: v for k, v in TINY.items() if k in names})
        special = {k: v for k, v in MODEL_SPECIAL.items() if k in names}
        for name, before, after in changed_fields(config, special):
            yield pytest.param(before, after, id=f"{kind}.{name}")
        for path, before, after in chosen_cases(config):
            yield pytest.param(before, after, id=f"{kind}.{path}")


@pytest.mark.parametrize(("before", "after"), list(model_cases()))
def test_model_knobs(before, after):
    """The training pass is traced only where the start does not tell them apart already."""
    same_start = model_start(before)[:2] == model_start(after)[:2]
    assert not same_start or model_gradient(before) != model_gradient(after)


def test_ngram_knobs():
    tokens, offsets = np.array([1, 2, 1, 2, 3, 1]), np.array([0, 6])
    for name, before, after in changed_fields(
        MODELS["ngram"](),
        {"order": ({"order": 1}, 2), "discount_fallback": ({"order": 2}, (0.4, 0.9, 1.4))},
    ):
        if name == "read":  # what it is given: training/test_fitting.py
            continue
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
            over = staticmethod(contextlib.nullcontext)

            def __init__(self, experiment, program, devices):
                self.program = program
                real = build(experiment, program, devices)
                note((type(real).__name__, real.sizes, str(getattr(real, "rules", None))))

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
                metrics = {
                    "loss": one,
                    "nats_per_token": one,
                    "gradient_norm": np.float32(1),
                    "refused": np.int32(0),
                }
                return state.replace(step=state.step + 1), metrics

        class Checkpoints:
            def __init__(self, folder, *arguments, **options):
                note(("checkpoints", arguments, {k: v for k, v in options.items() if k != "say"}))

            latest_step = lambda self: None  # noqa: E731
            all_steps = lambda self: []  # noqa: E731
            wait = close = lambda self: None

            def save(self, step, state, cursor, config, scores):
                note(("save", step))

        def score(name):
            def fake(module, params, documents, *, names, hyper, **options):
                for functions in ("vocabulary", "put", "choices"):
                    options.pop(functions, None)
                note((name, names, options, documents.tokens.tobytes()))
                ones = np.ones(len(names))
                identity = MetricIdentity("likelihood", "document", None, None, True, True, True)
                return Scores(ones, ones, ones, ones, tuple(names)), identity

            return fake

        build = session.build_engine
        monkeypatch.setattr(session, "build_engine", Engine)
        monkeypatch.setattr(descent, "Checkpoints", Checkpoints)

        def probe(module, params, tested, *, training, **options):
            options |= {"tested": tested.labels, "training": training.labels}
            return [score("score_probes")(module, params, tested.documents, **options)]

        for name in ("score_documents", "score_masked", "score_pseudo_likelihood", "score_choices"):
            monkeypatch.setattr(evaluators, name, score(name))
        monkeypatch.setattr(evaluators, "score_probes", probe)
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
CODE = pathlib.Path(__file__).resolve().parent.parent.parent / "research/ablax/data/*.py"
# path -> (context, new value): where the default context or the automatic change will not do.
CONTEXTS: dict[str, tuple[dict[str, Any], Any]] = {
    "name": ({}, None),
    "data.split.rule": ({}, "tail"),
    "data.split.validation": ({"data.split.rule": "tail"}, 0.2),
    "data.split.test": ({"data.split.rule": "tail"}, 0.2),
    "data.split.seed": ({"data.split.validation": 0.3}, 1),
    "data.layout": ({}, "packed"),
    "data.sequence_length": ({}, 16),
    "training.steps": ({}, 7),
    "training.accumulation": ({}, 2),
    "parallel.rules": ({}, ("mine=fsdp",)),
    "training.guard.window": ({"training.guard.spike": 6.0}, 50),
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
    "evaluation.probe_documents": ({"evaluation.probe_label": "brackets"}, 4),
    "evaluation.probe_label": (
        {
            "data.source": f"text:{CODE}",
            "data.split.rule": "tail",
            "evaluation.probe_documents": 4,
        },
        "brackets",
    ),
    "evaluation.probe_layer": (
        {"evaluation.probe_label": "brackets", "evaluation.probe_documents": 4},
        0.5,
    ),
    "checkpoint.best": ({}, "perplexity"),
    **{
        f"writers.wandb_{k}": ({"writers.wandb": True}, None)
        for k in ("project", "entity", "name", "mode")
    },
    "objective.label_smoothing": ({}, 0.1),
}
# What cannot be seen in a short run on one device, and the test that sees it.
ELSEWHERE = {
    # need another run
    "init.run": "training/test_start.py::test_another_vocabulary_takes_the_body",
    "init.match": "training/test_start.py::test_another_vocabulary_takes_the_body",
    # written to run.json and nowhere else
    "name": "test_trainer.py::test_a_run_says_what_it_was",
    # what becomes of refused steps
    "training.guard.policy": "training/test_recovery.py::test_skip_goes_on_without_the_step",
    "training.guard.skip_batches": "training/test_recovery.py::test_rewind_leaves_out_the_batches_since_the_checkpoint",
    "training.guard.patience": "training/test_recovery.py::test_patience_ends_a_run_that_skips_on_and_on",
    # how far ahead batches are made
    "data.prefetch": "data/test_loader.py::test_seek_is_iteration_and_restart_is_continuation",
    # splits of the default rule share nothing
    "data.split.shared": "data/test_splits.py::test_given_splits_must_not_share_documents",
    # acts from the second epoch on
    "data.phase": "data/test_layouts.py::test_window_phase_moves_later_epochs_and_repeats_nothing",
    # act when one of several processes is lost
    "heartbeat.silence": "parallel/test_stuck_ranks.py::test_a_frozen_rank",
    "heartbeat.stuck": "parallel/test_stuck_ranks.py::test_a_rank_that_gets_no_data",
    "heartbeat.patience": "training/test_heartbeat.py::test_slow_is_not_stuck",
    # acts when a run has finished
    "checkpoint.at_end": "training/test_thinned.py::test_a_run_thins_itself_when_it_has_finished",
    # acts in a run that hangs
    "checkpoint.grace_seconds": "training/test_signals.py::test_the_watchdog_ends_a_stuck_process",
    # needs several devices
    **{
        f"parallel.{axis}": "parallel/test_engines.py::test_mesh_is_pmap_is_one_device"
        for axis in AXES
    },
}
# Families whose whole tables are compared, here and in test_data_knobs.py.
COVERED = {
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "objective": OBJECTIVES,
    "data.source": SOURCES,
    "data.tokenizer": TOKENIZERS,
}
TESTS = pathlib.Path(__file__).resolve().parent.parent


def families(config, prefix=""):
    """Path and table of every choice in a tree of configs; what lies inside a choice is its own."""
    for field in dataclasses.fields(config):
        inner, path = getattr(config, field.name), prefix + field.name
        if "family" in field.metadata:
            yield path, field.metadata["family"].table
        elif dataclasses.is_dataclass(inner):
            yield from families(inner, path + ".")


def test_every_family_is_covered():
    """Catches: a new table of choices, of whose entries only the default would be looked at."""
    assert dict(families(resolve(base(), {}))) == COVERED


def test_what_is_tested_elsewhere_is():
    """Catches: a test that was renamed or removed, and a knob that is gone."""
    assert set(ELSEWHERE) <= set(flatten(resolve(base(), SMALL)))
    for path, place in ELSEWHERE.items():
        file, name = place.split("::")
        tree = ast.parse((TESTS / file).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{path}: {place} is no test"


def run_cases():
    experiment = resolve(base(), SMALL)
    for path in flatten(experiment):
        # An objective's loss is traced in a run only.
        covered = any(path.startswith(name + ".") for name in COVERED if name != "objective")
        if path.endswith("kind") or covered or path in ELSEWHERE:
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


OBJECTIVE_SPECIAL = {
    "span_length": ({"unit": "span"}, 1.0),
    "random_share": ({"mask_share": 0.4}, 0.6),
    "label_smoothing": ({}, 0.1),
}


def objective_cases():
    for kind, cls in OBJECTIVES.items():
        special = {k: v for k, v in OBJECTIVE_SPECIAL.items() if hasattr(cls, k)}
        for name, before, after in changed_fields(cls(), special):
            yield pytest.param(before, after, id=f"{kind}.{name}")


@pytest.mark.parametrize(("before", "after"), list(objective_cases()))
def test_objective_knobs(before, after):
    vocabulary = Vocabulary(50, np.arange(50) < 3, np.arange(50) % 3 == 0, 2)
    row = {
        "tokens": np.random.default_rng(0).integers(3, 50, 65).astype(np.int32),
        "positions": np.arange(65, dtype=np.int32),
        "segment_ids": np.ones(65, np.int32),
    }
    made = [
        c.transform(row, np.random.default_rng(1), vocabulary)["tokens"].tolist()
        for c in (before, after)
    ]
    assert made[0] != made[1] or traced(before) != traced(after)

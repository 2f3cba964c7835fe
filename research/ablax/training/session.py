"""From a resolved experiment to its program: sizes, durations, schedule, module, engine."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax

from ablax.config import Duration, RequestError, knob, static, traced
from ablax.data.corpus import Corpus
from ablax.data.loader import Loader
from ablax.distributed import ranks
from ablax.models.feedforward import ExpertsConfig
from ablax.objectives.batch import vocabulary_of
from ablax.training.parallel import MeshEngine, PmapEngine, build
from ablax.training.rates import rates_of
from ablax.training.rows import rows_of_process
from ablax.training.sharding import row_shards
from ablax.training.state import TrainState, scalars
from ablax.training.step import Program


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run."""

    every: Duration = knob(
        Duration("20%"), "Time between checkpoints; 0 = only at the end.", mark="execution"
    )
    keep: int = knob(2, "Newest checkpoints that are kept.", mark="cosmetic")
    best: str = knob(
        "auto",
        "Evaluation metric whose smallest value marks the best checkpoint, which is kept too; "
        "auto = the objective's nats per token.",
        mark="cosmetic",
    )
    at_end: Literal["auto", "state", "parameters"] = knob(
        "auto",
        "What a finished run keeps of its checkpoints: the whole state, so that it may get more training.steps or be "
        "forked, or only the parameters that are evaluated; auto = parameters for a cell of a sweep, else the state.",
        mark="cosmetic",
    )
    grace_seconds: float = knob(
        120.0,
        "Time that a run has to save and end after SIGTERM, SIGUSR1 or Ctrl-C; stuck longer, it says where and ends "
        "with 1. A little less than what the scheduler gives.",
        mark="execution",
    )

    def __post_init__(self):
        if self.keep < 1:
            raise RequestError(
                f"keep={self.keep} must be at least 1: a run resumes from its newest"
            )
        if not self.grace_seconds > 0:
            raise RequestError(f"grace_seconds={self.grace_seconds} must be more than 0")


@dataclasses.dataclass(frozen=True)
class Clock:
    """Turns durations into steps of one run.

    Attributes:
      total: steps of the run.
      tokens_per_step: positions of a global batch.
      steps_per_epoch: steps that read as many rows as the training split has.
    """

    total: int
    tokens_per_step: int
    steps_per_epoch: float

    @classmethod
    def of(cls, steps: Duration, loader: Loader) -> "Clock":
        """The clock of a run over this loader.

        Raises:
          RequestError: if it has no steps.
        """
        total = steps.steps(None, loader.tokens_per_step, loader.steps_per_epoch)
        if total < 1:
            raise RequestError(f"training.steps={steps} comes to no step at all; raise it")
        return cls(total, loader.tokens_per_step, loader.steps_per_epoch)

    def __call__(self, duration: Duration) -> int:
        """A duration in steps."""
        return duration.steps(self.total, self.tokens_per_step, self.steps_per_epoch)


def build_program(experiment: Any, vocab_size: int, clock: Clock) -> Program:
    """The pure functions of an experiment; its traced knobs are not in them (see `ablax.config.static`).

    Raises:
      RequestError: if sizes do not fit each other.
    """
    frozen = static(experiment)
    length = experiment.data.sequence_length
    schedule = frozen.schedule
    # Built once with placeholders so that a mistake in the durations is reported before anything is traced.
    schedule.build(clock.total, clock, scalars(traced(experiment.schedule)))
    return Program(
        module=frozen.model.build(vocab_size, length),
        objective=frozen.objective,
        optimizer=frozen.optimizer,
        schedule=lambda hyper, step: schedule.build(clock.total, clock, hyper)(step),
        config=frozen.training,
        spec=frozen.objective.batch_spec(frozen.training.batch_size, length),
        streams=frozen.data.layout == "streams",
        rates=rates_of(frozen.model, frozen.optimizer),
    )


def hyper_of(experiment: Any) -> dict[str, Any]:
    """The traced knobs that programs read, as float32 scalars by family."""
    families = ("model", "objective", "optimizer", "schedule", "training")
    return {
        name: scalars(values) for name in families if (values := traced(getattr(experiment, name)))
    }


def build_engine(
    experiment: Any, program: Program, devices: Sequence[Any] | None = None
) -> MeshEngine | PmapEngine:
    """The engine of an experiment over these devices (None = all).

    Raises:
      RequestError: if batch or model do not divide over them.
    """
    engine = build(experiment.parallel, program, jax.devices() if devices is None else devices)
    check_layout(experiment, engine.sizes)
    return engine


def check_layout(experiment: Any, sizes: Mapping[str, int]) -> None:
    """Refuses devices over which an experiment does not divide evenly.

    Args:
      sizes: devices along each axis.

    Raises:
      RequestError: naming what does not divide, and what to do.
    """
    training, rows = experiment.training, row_shards(sizes)
    if training.batch_size % (rows * training.accumulation):
        fewer = range(sizes["data"] - 1, 0, -1)
        parts = rows // sizes["data"] * training.accumulation
        fit = next((data for data in fewer if training.batch_size % (parts * data) == 0), None)
        raise RequestError(
            f"training.batch_size={training.batch_size} does not divide over {rows} devices"
            + f" x training.accumulation={training.accumulation}" * (training.accumulation > 1)
            + f"; make it a multiple of {rows * training.accumulation}"
            + (f", or set parallel.data={fit} to use fewer" if fit else "")
        )
    length, heads = experiment.data.sequence_length, getattr(experiment.model, "num_heads", None)
    if sizes["sequence"] > 1 and getattr(experiment.model, "RECURRENT", False):
        raise RequestError(
            f"parallel.sequence={sizes['sequence']} splits positions, which a recurrent model reads one after "
            "the other; use parallel.data or parallel.fsdp"
        )
    experts = getattr(experiment.model, "feedforward", None)
    if isinstance(experts, ExpertsConfig):
        check_experts(experts, sizes)
    if length % sizes["sequence"]:
        raise RequestError(
            f"parallel.sequence={sizes['sequence']} does not divide data.sequence_length={length}"
        )
    if heads is not None and heads % sizes["tensor"]:
        raise RequestError(
            f"parallel.tensor={sizes['tensor']} does not divide model.num_heads={heads}; choose a divisor"
        )


def check_experts(config: ExpertsConfig, sizes: Mapping[str, int]) -> None:
    """Refuses a mesh that the experts of a model do not divide over; see `check_layout`."""
    split = next((axis for axis in ("expert", "tensor") if sizes[axis] > 1), None)
    if split and config.capacity_factor is None:
        raise RequestError(
            f"parallel.{split}={sizes[split]} splits experts, for which each needs a fixed number of places; set "
            "model.feedforward.capacity_factor=1.25"
        )
    if config.num_experts % sizes["expert"]:
        raise RequestError(
            f"parallel.expert={sizes['expert']} does not divide model.feedforward.num_experts={config.num_experts}; "
            "choose a divisor"
        )


def training_loader(experiment: Any, corpus: Corpus) -> Loader:
    """Batches of the training split for an objective; of a run in several processes, this process's rows of them."""
    vocabulary = vocabulary_of(corpus.tokenizer)
    index, count = rows_of_process(experiment.parallel) if ranks().several else (0, 1)
    return corpus.loader(
        experiment.training.batch_size,
        experiment.seed,
        lambda row, rng: experiment.objective.transform(row, rng, vocabulary),
        process_index=index,
        process_count=count,
    )


def root_key(seed: int) -> jax.Array:
    """uint32 [2] key data of a run's seed."""
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def abstract_state(program: Program, experiment: Any) -> TrainState:
    """Shapes and dtypes of the state, without computing it."""
    return jax.eval_shape(program.init, root_key(0), hyper_of(experiment))


def best_metric(experiment: Any) -> str:
    """The evaluation metric that marks the best checkpoint."""
    if experiment.checkpoint.best != "auto":
        return experiment.checkpoint.best
    return "nats_per_token" if experiment.objective.CAUSAL else "masked_nats_per_token"

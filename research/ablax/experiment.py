"""The root of a configuration, and how an experiment file becomes one."""

import dataclasses
import importlib.util
import inspect
import pathlib
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from ablax.config import (
    RequestError,
    check_seed,
    family,
    from_dict,
    import_class,
    knob,
    override,
    suggest,
    tag_of,
    to_dict,
)
from ablax.data.corpus import DataConfig
from ablax.models.table import MODELS
from ablax.objectives.table import OBJECTIVES
from ablax.training.evaluators import EvaluationConfig
from ablax.training.heartbeat import HeartbeatConfig
from ablax.training.optimizers import OPTIMIZERS
from ablax.training.parallel import ParallelConfig
from ablax.training.rates import rates_of
from ablax.training.schedules import SCHEDULES
from ablax.training.session import CheckpointConfig
from ablax.training.settings import TrainingConfig
from ablax.training.start import InitConfig
from ablax.training.writers import WritersConfig


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run, completely: equal `result` knobs, code and data give equal results."""

    name: str = knob("", "What reports call this run.", mark="cosmetic")
    seed: int = knob(0, "Of initialisation, data order, masking and dropout.")
    data: DataConfig = knob(DataConfig(), "Documents, tokens and rows.")
    model: Any = family(MODELS, "decoder", "What is trained.")
    objective: Any = family(OBJECTIVES, "causal", "What it learns.")
    optimizer: Any = family(OPTIMIZERS, "adamw", "How gradients move parameters.")
    schedule: Any = family(SCHEDULES, "cosine", "How the learning rate changes over the run.")
    init: InitConfig = knob(InitConfig(), "Which parameters come from another run.")
    training: TrainingConfig = knob(TrainingConfig(), "How long, how large, how averaged.")
    parallel: ParallelConfig = knob(
        ParallelConfig(), "How it is spread over devices.", mark="execution"
    )
    heartbeat: HeartbeatConfig = knob(
        HeartbeatConfig(), "When a rank of several counts as lost.", mark="execution"
    )
    evaluation: EvaluationConfig = knob(EvaluationConfig(), "What is measured, and when.")
    checkpoint: CheckpointConfig = knob(CheckpointConfig(), "What is kept.", mark="execution")
    writers: WritersConfig = knob(WritersConfig(), "Where metrics go.", mark="cosmetic")

    def __post_init__(self):
        check_seed(self.seed)
        causal = getattr(self.model, "CAUSAL", None)
        if causal is not None and causal != self.objective.CAUSAL:
            need, other = (
                ("decoder, lstm or ngram", "masked")
                if self.objective.CAUSAL
                else ("encoder", "causal")
            )
            raise RequestError(
                f"objective.kind does not fit model.kind={type(self.model).__name__}: it needs {need}; "
                f"change the model, or set objective.kind={other}"
            )
        if self.data.layout == "streams" and not getattr(self.model, "RECURRENT", False):
            raise RequestError(
                "data.layout=streams needs a recurrent model; set model.kind=lstm or data.layout=windows"
            )
        if self.evaluation.probe_documents and hasattr(self.model, "fit"):
            raise RequestError(
                f"evaluation.probe_documents={self.evaluation.probe_documents}: a {type(self.model).__name__} has no "
                "states that probes could read; set it to 0"
            )
        rates_of(self.model, self.optimizer)  # raises where they do not go together
        if self.training.batch_size % self.training.accumulation:
            raise RequestError(
                f"training.batch_size={self.training.batch_size} does not divide into "
                f"training.accumulation={self.training.accumulation} micro-batches; make it a multiple"
            )


def base(**kinds: Any) -> Any:
    """The default configuration, one locked `ml_collections.ConfigDict`, with the kinds of tagged unions chosen.

    Args:
      **kinds: field of `Experiment` -> `kind`, `kind:preset` or a config class; `data.source` and `data.tokenizer`
        are spelled `source` and `tokenizer`.

    Example: `base(model="lstm:small", schedule="constant", tokenizer="character")`.
    """
    paths = {"source": "data.source", "tokenizer": "data.tokenizer"}
    classes = [kind for kind in kinds.values() if isinstance(kind, type)]
    fields = {f.name: f for f in dataclasses.fields(Experiment) + dataclasses.fields(DataConfig)}
    tags = {}
    for name, kind in kinds.items():
        if "family" not in fields[name].metadata:
            raise RequestError(
                f"{name!r} has no kinds; set its fields in the configuration that base() returns"
            )
        tags[paths.get(name, name) + ".kind"] = tag_of(fields[name], kind)
    values = override(Experiment, to_dict(Experiment()), tags, extend=classes)
    return ml_collections.ConfigDict(values, type_safe=False).lock()


def resolve(
    config: Mapping[str, Any] | ml_collections.ConfigDict | Experiment,
    overrides: Mapping[str, Any] | None = None,
    *,
    extend: Iterable[Any] = (),
    imports: bool = True,
) -> Experiment:
    """Validates a configuration with flat overrides, before anything is compiled.

    Args:
      overrides: dotted path -> value or its text; kinds are applied first.
      extend: config classes from outside that kinds may name, or `module:Name` texts of them.
      imports: whether kinds may import modules that `extend` does not name.

    Raises:
      RequestError: for the first mistake.
    """
    if isinstance(config, Experiment) and not overrides:
        return config
    if isinstance(config, Experiment):
        config = to_dict(config)
    classes = extension_classes(extend)
    values = override(Experiment, config, overrides or {}, extend=classes, imports=imports)
    return from_dict(Experiment, values, extend=classes, imports=imports)


def extension_classes(extend: Iterable[Any]) -> list[type]:
    """The config classes that the caller allows: classes as they are, `module:Name` imported."""
    return [import_class(item) if isinstance(item, str) else item for item in extend]


@dataclasses.dataclass(frozen=True)
class Page:
    """An experiment file that has been run.

    Attributes:
      path: the file.
      module: its namespace.
      argument: what stands behind the file's name, or None.
    """

    path: pathlib.Path
    module: types.ModuleType
    argument: str | None

    def get_config(self) -> ml_collections.ConfigDict:
        """The configuration of the page for its argument.

        Raises:
          RequestError: if the page takes no argument, or does not know this one.
        """
        get = self.module.get_config
        if self.argument is None:
            return get()
        if not inspect.signature(get).parameters:
            raise RequestError(f"{self.path} takes no argument; remove :{self.argument}")
        sizes = getattr(self.module, "SIZES", (self.argument,))
        if self.argument not in sizes:
            raise RequestError(
                f"{self.path} has no size {self.argument!r}{suggest(self.argument, sizes)}"
            )
        return get(self.argument)

    def get_sweep(self) -> Any:
        """The plan of the page: a `Plan`, or flat overrides, one dict per cell.

        Raises:
          RequestError: if the file has none.
        """
        if not hasattr(self.module, "get_sweep"):
            raise RequestError(
                f"{self.path} has no get_sweep(); add one that returns a list of overrides, or use ablax train"
            )
        return self.module.get_sweep()


def read_experiment(spec: str) -> Page:
    """Runs an experiment file.

    Args:
      spec: `FILE[:ARGUMENT]` or, for a shipped one, `ablax:pretrain/decoder[:ARGUMENT]`.

    Raises:
      RequestError: if there is no such file or it defines no `get_config`.
    """
    prefix, rest = ("ablax:", spec[6:]) if spec.startswith("ablax:") else ("", spec)
    name, colon, argument = rest.partition(":")
    path = experiment_path(prefix + name)
    module_spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise RequestError(f"{path} is no Python file; give --config an experiment's .py file")
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent))  # a page may import what lies beside it
    try:
        module_spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    if not hasattr(module, "get_config"):
        raise RequestError(f"{path} defines no get_config(); see the experiments that Ablax ships")
    return Page(path, module, argument if colon else None)


def experiment_path(spec: str) -> pathlib.Path:
    """The file of an experiment; `ablax:NAME` is looked up among those that Ablax ships."""
    if not spec.startswith("ablax:"):
        path = pathlib.Path(spec).expanduser()
        if not path.is_file():
            raise RequestError(
                f"there is no experiment file {spec!r}; shipped ones are spelled ablax:pretrain/decoder"
            )
        return path
    name = spec.removeprefix("ablax:").removesuffix(".py")
    for root in shipped_roots():
        path = root / f"{name}.py"
        if path.is_file():
            return path
    names = [
        str(p.relative_to(r).with_suffix("")) for r in shipped_roots() for p in r.rglob("*.py")
    ]
    raise RequestError(f"Ablax ships no experiment {name!r}{suggest(name, names)}")


def shipped_roots() -> list[pathlib.Path]:
    """Where shipped experiments may lie: beside the package when installed, else in the checkout."""
    package = pathlib.Path(__file__).resolve().parent
    roots = (package / "experiments", package.parent.parent / "experiments")
    return [root for root in roots if root.is_dir()]

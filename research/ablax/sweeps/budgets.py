"""What an arm costs, traced abstractly: parameters, tokens and FLOPs of its run; nothing is compiled."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from ablax import inspection
from ablax.config import RequestError, flatten
from ablax.experiment import Experiment, resolve
from ablax.training import session
from ablax.training.masks import EMBEDDINGS, parameter_path


class Budgets:
    """Costs of a configuration with overrides. Data are opened once, and only where sizes depend on them."""

    def __init__(self, config: Any, extend: Iterable[Any] = (), offline: bool = False):
        self.config, self.extend, self.offline = config, tuple(extend), offline
        self.corpora: dict[str, Any] = {}
        self.per_token: dict[str, float] = {}

    def cost(self, budget: str, overrides: Mapping[str, Any]) -> float:
        """A budget's amount: `params`, `params_without_embeddings`, `tokens` or `flops` of a run.

        `flops` are those of matrix products in training, as a dry run shows them. Embeddings are the tables of tokens
        and positions (arXiv:2001.08361, section 2.1); an untied head is none.

        Raises:
          RequestError: if the configuration is refused, or is fitted to counts and has no such budget.
        """
        experiment = resolve(self.config, overrides, extend=self.extend)
        if hasattr(experiment.model, "fit"):
            raise RequestError(
                f"a {type(experiment.model).__name__} is fitted to counts and has no {budget}; leave its arm out"
            )
        corpus = self._corpus(experiment)
        per_epoch = inspection.steps_per_epoch(experiment, corpus)
        steps = inspection.durations(experiment, per_epoch)["training.steps"]
        tokens = steps * experiment.training.batch_size * experiment.data.sequence_length
        if budget == "tokens":
            return tokens
        # Products inside a kernel cannot be counted; they are those of the reference.
        program = inspection.program_of(
            inspection.without_kernel(experiment),
            inspection.vocabulary_size(experiment, corpus),
            per_epoch,
        )
        if budget == "flops":
            # How long the run is does not matter to a step.
            settings = flatten(experiment) | {"training.steps": None, "seed": None}
            key = repr(sorted(settings.items()))
            if key not in self.per_token:
                state = session.abstract_state(program, experiment)
                found = inspection.flops(program, state)
                self.per_token[key] = found["training_per_token"]
            return self.per_token[key] * tokens
        return count(session.abstract_state(program, experiment).params, budget == "params")

    def _corpus(self, experiment: Experiment) -> Any:
        if not inspection.needs_data(experiment):
            return None
        key = repr(experiment.data)
        if key not in self.corpora:
            self.corpora[key] = inspection.corpus_of(experiment, self.offline)
        return self.corpora[key]


def count(params: Any, embeddings: bool) -> int:
    """How many numbers a tree of parameters has, with or without tables of tokens and positions."""
    return sum(
        math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if embeddings or not is_embedding(parameter_path(path))
    )


def is_embedding(path: str) -> bool:
    """Whether a parameter's path is that of a table of tokens or positions, and not of a norm behind one."""
    return bool(re.search(EMBEDDINGS, path)) and not re.search(r"norm[^/]*/", path)

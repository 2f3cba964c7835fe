"""Where a run's parameters come from when they are not drawn: another run, as asked for by pattern."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ablax.config import RequestError, knob
from ablax.data.tokenizer import Tokenizer
from ablax.data.tokenizers import load_tokenizer
from ablax.run import RunFolder
from ablax.training.checkpoints import Checkpoints
from ablax.training.manifest import Damaged, check_fits, leaves_of
from ablax.training.masks import parameter_path
from ablax.training.saved import SavedCheckpoint
from ablax.training.state import TrainState
from ablax.training.step import Program
from ablax.training.thinned import evaluated_branch, is_thinned

# Parameters that belong to the ids of a tokenizer: rows of embeddings, columns of heads.
OF_TOKENS = re.compile(r"^(tokens|embedding|head\w*)(/|$)")
SHOWN = 6


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Which parameters are taken from another run. Everything else of a run starts afresh."""

    run: str = knob(
        "",
        "Folder of the run whose parameters this one starts from, RUN or RUN@STEP (the newest checkpoint without "
        "@STEP); empty = all are drawn.",
    )
    match: str = knob(
        "",
        "Regular expression that is searched in the paths of parameters: those it finds are taken and must fit, the "
        "others are drawn; empty = all are taken.",
    )

    def __post_init__(self):
        try:
            re.compile(self.match)
        except re.error as error:
            raise RequestError(
                f"match={self.match!r} is not a regular expression: {error}"
            ) from None
        if self.match and not self.run:
            raise RequestError(f"match={self.match!r} needs a run to take parameters from: set run")


@dataclasses.dataclass(frozen=True)
class Donor:
    """A checkpoint whose parameters are taken.

    Attributes:
      folder: its run.
      saved: the checkpoint.
      prefix: where the parameters lie in it: those that are evaluated, averaged if the run averages.
      taken: their paths.
      drawn: paths of the parameters that are not taken.
    """

    folder: RunFolder
    saved: SavedCheckpoint
    prefix: str
    taken: tuple[str, ...]
    drawn: tuple[str, ...]

    @classmethod
    def of(
        cls, config: InitConfig, params: Any, tokenizer: Tokenizer, say: Callable[[str], None]
    ) -> "Donor | None":
        """The donor of a run, checked; None if all its parameters are drawn.

        Args:
          params: the run's parameters, or their shapes.
          tokenizer: the run's.

        Raises:
          RequestError: if there is no such run or step, it is damaged, a parameter does not fit, or its ids mean
            other texts.
        """
        if not config.run:
            return None
        path, at, step_text = config.run.rpartition("@")
        folder = RunFolder(path if at else config.run).require()
        with Checkpoints(folder.checkpoints, writer=False, say=say) as checkpoints:
            steps = checkpoints.all_steps()
        if not steps or (at and step_text not in map(str, steps)):
            raise RequestError(f"init.run={config.run}: no such checkpoint; kept steps are {steps}")
        saved = SavedCheckpoint(folder.checkpoints, int(step_text) if at else steps[-1], say=say)
        try:
            shapes, kind = saved.shapes(), saved.config()["optimizer"]["kind"]
        except Damaged as damage:
            raise RequestError(
                f"init.run={config.run}: the checkpoint is damaged ({damage}); choose another step of {steps}"
            ) from None
        if kind == "schedule_free_adamw" and not is_thinned(shapes):
            raise RequestError(
                f"init.run={config.run} was trained with optimizer.kind={kind}, whose average is not kept as such; "
                "choose a run with another optimizer"
            )
        prefix = evaluated_branch(shapes)
        wanted = leaves_of(params)
        taken = {name: leaf for name, leaf in wanted.items() if re.search(config.match, name)}
        if not taken:
            raise RequestError(
                f"init.match={config.match!r} finds no parameter of this model; there are: {', '.join(wanted)}"
            )
        there = {name: shapes[prefix + name] for name in taken if prefix + name in shapes}
        remedy = "let init.match leave them out, or give this model their sizes"
        check_fits(taken, there, f"init.run: {saved}", remedy)
        other = load_tokenizer(folder.tokenizer).fingerprint != tokenizer.fingerprint
        if other and (of_tokens := [name for name in taken if OF_TOKENS.search(name)]):
            raise RequestError(
                f"init.run={config.run} has another tokenizer than this run, and {', '.join(of_tokens)} belong to "
                "its ids; let init.match leave them out, or use its tokenizer"
            )
        return cls(folder, saved, prefix, tuple(taken), tuple(n for n in wanted if n not in taken))

    def give(self, program: Program, state: TrainState, say: Callable[[str], None]) -> TrainState:
        """A fresh state with the taken parameters in their places; averages and optimizer start from them.

        Raises:
          RequestError: if the checkpoint is damaged.
        """
        chosen = {self.prefix + name for name in self.taken}
        try:
            arrays = self.saved.arrays(chosen.__contains__)
        except Damaged as damage:
            raise RequestError(
                f"init.run: {self.saved} is damaged ({damage}); choose another step"
            ) from None

        def place(path: Any, leaf: jax.Array) -> jax.Array:
            found = arrays.get(self.prefix + parameter_path(path))
            if found is None:
                return leaf
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, found.__getitem__)

        def rest(params: Any, hyper: Any) -> Any:
            averaged = jax.tree.map(jnp.copy, params) if state.ema != () else ()
            return program.transformation(hyper).init(params), averaged

        params = jax.tree_util.tree_map_with_path(place, state.params)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (state.opt_state, state.ema))
        opt_state, ema = jax.jit(rest, out_shardings=shardings)(params, state.hyper)
        say(f"{len(self.taken)} parameters are taken from {self.saved}; {self.drawn_text()}")
        return dataclasses.replace(state, params=params, opt_state=opt_state, ema=ema)

    def drawn_text(self) -> str:
        """Which parameters are not taken."""
        if not self.drawn:
            return "none is drawn"
        more = f" and {len(self.drawn) - SHOWN} more" if len(self.drawn) > SHOWN else ""
        return f"{len(self.drawn)} are freshly drawn: {', '.join(self.drawn[:SHOWN])}{more}"

    def record(self) -> dict[str, Any]:
        """What run.json says of a run's parent."""
        return {
            "workdir": str(self.folder.path),
            "step": self.saved.step,
            "fingerprint": self.folder.status().get("fingerprint"),
            "taken": len(self.taken),
            "drawn": list(self.drawn),
        }

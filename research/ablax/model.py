"""A trained model, frozen, with what it can do: score, generate, fill, apply."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ablax import placement
from ablax.config import RequestError, traced
from ablax.data.tokenizers import Tokenizer, load_tokenizer
from ablax.evaluation.ngram_scoring import score_documents_by_ngram
from ablax.evaluation.pieces import tokenize
from ablax.evaluation.scores import Scores
from ablax.evaluation.scoring import score_documents
from ablax.experiment import Experiment, resolve
from ablax.generation.beams import Beams
from ablax.generation.completion import Completion
from ablax.generation.decoders import NgramDecoder
from ablax.generation.filling import Filling, fill
from ablax.generation.generate import complete, generate
from ablax.generation.prompts import Prompt
from ablax.generation.sampling import Sampling
from ablax.generation.stepwise import Stepwise
from ablax.models.ngram import Ngram
from ablax.run import RunFolder
from ablax.training.canary import without_kernel
from ablax.training.checkpoints import Checkpoints
from ablax.training.compilation import keep_programs
from ablax.training.fitting import FITTED
from ablax.training.manifest import check_file
from ablax.training.parallel import ParallelConfig, layout_of
from ablax.training.session import Clock, abstract_state, best_metric, build_program
from ablax.training.state import scalars, without_hyper
from ablax.training.thinned import evaluated_only, evaluated_params


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model of a run at one of its checkpoints.

    Attributes:
      config: the run's resolved configuration.
      module: the Linen module, or the fitted `Ngram`.
      params: its parameters; empty for an n-gram model.
      tokenizer: the run's tokenizer.
      step: the checkpoint's step.
      hyper: the model's traced knobs as float32 scalars.
      layout: the devices that share the work; see `over`.
    """

    config: Experiment
    module: Any
    params: Any
    tokenizer: Tokenizer
    step: int
    hyper: Mapping[str, Any]
    layout: placement.Over = contextlib.nullcontext

    @property
    def kind(self) -> str:
        """The model's config class, for messages."""
        return type(self.config.model).__name__

    @property
    def parameters(self) -> int:
        """How many numbers the model stores."""
        if isinstance(self.module, Ngram):
            return self.module.parameter_count
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def marked(self) -> bool:
        """Whether documents stand between <bos> and <eos>."""
        return self.config.data.document_marks

    def require(self, causal: bool, what: str) -> None:
        """Raises RequestError if the model cannot do `what`."""
        if causal != self.config.objective.CAUSAL:
            other = "fill" if causal else "generate and score"
            raise RequestError(f"a {self.kind} cannot {what}; it can {other}")

    def over(self, **parallel: Any) -> "Model":
        """The same model over several devices, which share the parameters and the rows that it scores and continues.

        Args:
          **parallel: see `ParallelConfig`: data=2, tensor=4.

        Raises:
          RequestError: if the devices do not fit, or nothing can be split.
        """
        if isinstance(self.module, Ngram):
            raise RequestError(f"a {self.kind} runs on the host; it cannot lie over devices")
        layout = layout_of(ParallelConfig(**parallel), jax.devices())
        return dataclasses.replace(self, params=layout.put(self.params), layout=layout)

    def score(
        self,
        texts: Sequence[str],
        *,
        context: int | None = None,
        stride: int | None = None,
        batch_rows: int = 8,
    ) -> Scores:
        """Nats, tokens, correct predictions and bytes of each document (see `score_documents`).

        Args:
          context: tokens of context; the training length when None.
          stride: tokens that a window moves; None = the context.
        """
        self.require(True, "score documents")
        documents = tokenize(self.tokenizer, texts)
        if isinstance(self.module, Ngram):
            return score_documents_by_ngram(self.module, documents)[0]
        specials = self.tokenizer.specials
        scores, _ = score_documents(
            self.module,
            self.params,
            documents,
            hyper=self.hyper,
            bos=specials.bos if self.marked else None,
            eos=specials.eos if self.marked else None,
            context_length=context or self.config.data.sequence_length,
            stride=stride,
            batch_rows=batch_rows,
            over=self.layout,
        )
        return scores

    def generate(
        self, prompts: str | Sequence[Prompt], *, cache_dtype: str | None = None, **options: Any
    ) -> list[list[Completion]]:
        """Continuations of each prompt.

        Args:
          cache_dtype: of a Transformer's keys and values, float32 or bfloat16; the model's when None.
          **options: of `complete`: max_new_tokens (as many as fit, 64 at most, when None), max_length, stop, echo and
            others; of `Sampling`: temperature, top_k, top_p, frequency_penalty and others; of `Beams`: num_beams,
            length_penalty, early_stopping.

        Raises:
          RequestError: if the model is not causal, or see `complete`.
        """
        self.require(True, "generate")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        for name, cls in (("sampling", Sampling), ("beams", Beams)):
            fields = [field.name for field in dataclasses.fields(cls) if field.name in options]
            options[name] = cls(**{field: options.pop(field) for field in fields})
        options["add_bos"] = self.marked
        if isinstance(self.module, Ngram):
            if cache_dtype is not None:
                raise RequestError(
                    f"cache_dtype={cache_dtype}: a {self.kind} keeps no keys and values"
                )
            return complete(Stepwise(NgramDecoder(self.module)), self.tokenizer, prompts, **options)
        return generate(
            self.module,
            self.params,
            self.tokenizer,
            prompts,
            hyper=self.hyper,
            cache_dtype=cache_dtype,
            over=self.layout,
            **options,
        )

    def fill(self, texts: str | Sequence[str], top_k: int = 5) -> list[Filling]:
        """The likeliest tokens at each `[MASK]` of each text.

        Raises:
          RequestError: if the model was not trained with masks.
        """
        self.require(False, "fill masks")
        texts = [texts] if isinstance(texts, str) else list(texts)
        return fill(
            self.module,
            self.params,
            self.tokenizer,
            texts,
            hyper=self.hyper,
            top_k=top_k,
        )

    def apply(self, batch: Mapping[str, Any]) -> jax.Array:
        """Logits float32 [B T V] of a batch of `tokens` [B T] (positions and segments are made up if absent).

        Raises:
          RequestError: if the model is fitted to counts and has no logits.
        """
        if isinstance(self.module, Ngram):
            raise RequestError(f"a {self.kind} has no logits; it can score and generate")
        tokens = jnp.asarray(batch["tokens"], jnp.int32)
        positions = batch.get(
            "positions", jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        )
        segments = batch.get("segment_ids", jnp.ones_like(tokens))
        logits, _ = self.module.apply(
            {"params": self.params}, tokens, positions, segments, hyper=self.hyper
        )
        return logits


def own_tokenizer(folder: RunFolder) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
      RequestError: if it is not the one that the run was trained with: its ids would mean other texts.
    """
    tokenizer = load_tokenizer(folder.tokenizer)
    trained = (folder.status().get("data") or {}).get("tokenizer", tokenizer.fingerprint)
    if tokenizer.fingerprint != trained:
        raise RequestError(
            f"{folder.tokenizer} is not the tokenizer that the run was trained with; restore it"
        )
    return tokenizer


# A loaded model takes no steps: how long its schedule was does not matter.
LOADED = Clock(total=10**9, tokens_per_step=1, steps_per_epoch=1.0)


def load(
    workdir: str | pathlib.Path,
    step: int | str = "best",
    *,
    extend: Iterable[Any] = (),
    trust_unverified: bool = False,
    say: Callable[[str], None] | None = None,
) -> Model:
    """Loads a run's model.

    Args:
      workdir: its folder.
      step: `best` (by the run's checkpoint metric), `last`, or a step that was kept.
      extend: config classes from outside that the run uses, or `module:Name` texts; nothing else is imported.
      trust_unverified: read weights although the manifest that tells whether they are whole is missing.
      say: takes a line about damaged checkpoints; stderr when None.

    Raises:
      RequestError: if there is no such run or step, or it needs a class that the caller did not name.
    """
    keep_programs()
    say = say or (lambda text: print(text, file=sys.stderr))
    folder = RunFolder(workdir).require()
    experiment = resolve(folder.config(), extend=extend, imports=False)
    tokenizer = own_tokenizer(folder)
    if hasattr(experiment.model, "fit"):
        if step not in ("best", "last", 0):
            raise RequestError(
                f"{folder.path} is fitted to counts and has no step {step}; use best"
            )
        check_file(folder.checkpoints / FITTED, trust_unverified, say)
        module = Ngram.load(folder.checkpoints / FITTED)
        return Model(experiment, module, {}, tokenizer, 0, {})
    program = build_program(without_kernel(experiment), tokenizer.vocab_size, LOADED)
    template, best = without_hyper(abstract_state(program, experiment)), best_metric(experiment)
    options: dict[str, Any] = {"writer": False, "unverified": trust_unverified, "say": say}
    with Checkpoints(folder.checkpoints, best_metric=best, **options) as checkpoints:
        if step == "best" and checkpoints.best_step() is None:
            step = "last"
        wanted: Any = None if step == "last" else step
        left = evaluated_only(template.params)
        state, _, found = checkpoints.restore(template, wanted, thinned=left)
    params = evaluated_params(program, state)
    return Model(
        experiment, program.module, params, tokenizer, found, scalars(traced(experiment.model))
    )

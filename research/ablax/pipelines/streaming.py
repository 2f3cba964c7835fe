"""Streaming: what of a growing text is settled, said piece by piece while the model goes on."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ablax.config import RequestError
from ablax.generation.beams import Beams
from ablax.generation.completion import Detokenizer, Ends
from ablax.generation.decoders import NgramDecoder, position_limit
from ablax.generation.loop import Compiled, Decoded, Engine, Watch
from ablax.generation.sampling import Controls
from ablax.generation.stepwise import Stepwise
from ablax.model import Model
from ablax.models.ngram import Ngram
from ablax.shapes import Array


def engine_of(model: Model, cache_dtype: str | None = None) -> Engine:
    """What continues prompts by a model.

    Args:
      cache_dtype: of a Transformer's keys and values; the model's when None.

    Raises:
      RequestError: if there are none.
    """
    if isinstance(model.module, Ngram):
        if cache_dtype is not None:
            raise RequestError(
                f"cache_dtype={cache_dtype}: a {model.kind} keeps no keys and values"
            )
        return Stepwise(NgramDecoder(model.module))
    limit, size = position_limit(model.module), model.tokenizer.vocab_size
    weights = model.module, model.params, model.hyper
    return Compiled(*weights, size, limit, cache_dtype, model.layout)


@dataclasses.dataclass(frozen=True, eq=False)
class Watched:
    """An engine that shows what it has so far, every few tokens.

    Attributes:
      look: takes what there is; True: no more is wanted.
    """

    engine: Engine
    look: Callable[[Decoded], bool]

    @property
    def max_length(self) -> int | None:
        """See `Engine`."""
        return self.engine.max_length

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Array,
        controls: Controls,
        max_new_tokens: int | Sequence[int],
        watch: Watch | None = None,
        alternatives: int = 0,
    ) -> Decoded:
        """See `Engine`."""

        def both(decoded: Decoded) -> np.ndarray:
            unwanted = self.look(decoded)
            stopped = watch(decoded) if watch else np.zeros(len(prompts), bool)
            return stopped | unwanted

        return self.engine.decode(prompts, keys, controls, max_new_tokens, both, alternatives)

    def read(self, prompts: Sequence[Sequence[int]], alternatives: int = 0) -> Decoded:
        """See `Engine`."""
        return self.engine.read(prompts, alternatives)

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        controls: Controls,
        max_new_tokens: int | Sequence[int],
        beams: Beams,
        alternatives: int = 0,
    ) -> Decoded:
        """See `Engine`."""
        return self.engine.search(prompts, controls, max_new_tokens, beams, alternatives)


def settled(text: str, stops: Sequence[str]) -> int:
    """How many characters of a text that goes on are sure to stay.

    Not sure are a character whose bytes are incomplete, and what may be the beginning of a stop string.
    """
    end = len(text.rstrip("\ufffd"))
    sure = end
    for stop in stops:
        if (place := text.find(stop)) >= 0:
            sure = min(sure, place)
        for size in range(1, min(len(stop) - 1, end) + 1):
            if text.endswith(stop[:size], 0, end):
                sure = min(sure, end - size)
    return sure


class Cutter:
    """Cuts what is settled off a growing text, each time the part that is new."""

    def __init__(self, detokenize: Detokenizer, ends: Ends):
        self.detokenize, self.ends, self.said = detokenize, ends, ""

    def __call__(self, tokens: np.ndarray) -> str:
        """What the tokens so far add; a token that ends the text is none of it."""
        if len(tokens) and int(tokens[-1]) in self.ends.ids:
            tokens = tokens[:-1]
        text = self.detokenize(tokens)
        return self.rest(text[: settled(text, self.ends.texts)])

    def rest(self, text: str) -> str:
        """What a text adds. Of one that begins otherwise nothing can be said yet."""
        if not text.startswith(self.said):
            return ""
        new, self.said = text[len(self.said) :], text
        return new


def pieces(
    work: Callable[[Callable[[Decoded], bool]], str], cutter: Cutter
) -> Generator[str, None, None]:
    """Says a text while it is made, in a thread of its own; closing the generator ends the work too.

    Args:
      work: makes the whole text of one row, and shows now and then what there is.
    """
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()
    unwanted = threading.Event()

    def look(decoded: Decoded) -> bool:
        said.put(cutter(decoded.tokens[0, : decoded.counts[0]]))
        return unwanted.is_set()

    def run() -> None:
        try:
            said.put(cutter.rest(work(look)))
            said.put(None)
        except BaseException as error:  # it is raised where the pieces are read
            said.put(error)

    thread = threading.Thread(target=run, name="ablax-stream")
    thread.start()
    try:
        while (piece := said.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            if piece:
                yield piece
    finally:
        unwanted.set()
        thread.join()


def tell(streamer: Any, said: Iterable[str]) -> str:
    """Gives each piece to a streamer, and the whole text back.

    Args:
      streamer: has `put(text)` and `end()`; or transformers' `on_finalized_text(text, stream_end)`.
    """
    finalized = getattr(streamer, "on_finalized_text", None)
    whole = ""
    for piece in said:
        whole += piece
        if finalized:
            finalized(piece, stream_end=False)
        else:
            streamer.put(piece)
    if finalized:
        finalized("", stream_end=True)
    else:
        streamer.end()
    return whole


def stripped(said: Iterable[str]) -> Iterator[str]:
    """The pieces of a text without the white space around the whole of it."""
    held, begun = "", False
    for piece in said:
        held += piece
        if not begun:
            held = held.lstrip()
        sure = held.rstrip()
        if sure:
            yield sure
            held, begun = held[len(sure) :], True

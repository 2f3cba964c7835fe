"""The text that every machine has: the running interpreter's standard library and its language
reference, as TFDS builders that need neither a network nor TensorFlow."""

import hashlib
import importlib
import platform
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from ablax.config import RequestError

LEFT_OUT_FOLDERS = frozenset(
    {
        "test",
        "tests",  # long, repetitive, and partly not UTF-8 on purpose
        "idlelib",  # an application
        "lib2to3",  # an old grammar and its fixers, gone from newer interpreters
        "site-packages",
        "dist-packages",  # whatever the user has installed
        "__pycache__",
        "pydoc_data",  # the language reference, which is the other builder
        "encodings",  # generated code-page tables
    }
)
LEFT_OUT_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")
"""Beginnings of names of files that describe one build or one machine."""

HEADING = re.compile(r"^(?=\S.*\n(?:\*{3,}|={3,}|-{3,}|~{3,}|\^{3,})\n)", re.MULTILINE)
"""Before a line that the next one underlines."""


def python_source() -> dict[str, str]:
    """Modules of the standard library by relative path, sorted.

    The rule: every `.py` file below `sysconfig.get_path("stdlib")` that is a library module written
    by hand: no folder on its path is in `LEFT_OUT_FOLDERS` or holds a build's configuration
    (`config-*`), and its name does not begin with one of `LEFT_OUT_FILES`. Files are decoded by
    their own declaration (PEP 263) and keep their line ends.

    Raises:
      RequestError: the interpreter comes without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    modules = {name: _decode(path) for name, path in sorted(paths.items()) if _included(name)}
    modules = {name: text for name, text in modules.items() if text.strip()}
    if not modules:
        raise RequestError(
            f"builtin:python_source: {root} holds no .py files; use an interpreter that comes with "
            "the source of its standard library"
        )
    return modules


def _included(name: str) -> bool:
    *folders, file = name.split("/")
    left_out = LEFT_OUT_FOLDERS.intersection(folders) or file.startswith(LEFT_OUT_FILES)
    return not left_out and not (folders and folders[0].startswith("config-"))


def _decode(path: Path) -> str:
    with open(path, "rb") as file:
        encoding, _ = tokenize.detect_encoding(file.readline)
    return path.read_bytes().decode(encoding)


def python_reference() -> dict[str, str]:
    """Sections of the language reference as `topic:number`, topics sorted: what `help("topics")`
    shows, as plain text.

    The rule: a topic that is an excerpt of another is left out (see `without_excerpts`): `if` and
    `for` are parts of `compound`, and a split would put one copy on either side. The others are cut
    before each heading, because five topics hold half of the text.

    Raises:
      RequestError: the interpreter comes without `pydoc_data`.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise RequestError(
            "builtin:python_reference: this interpreter has no pydoc_data; use one that comes with "
            "its full standard library"
        ) from None
    return {
        f"{topic}:{number}": section
        for topic, text in without_excerpts(dict(sorted(topics.items()))).items()
        for number, section in enumerate(filter(str.strip, HEADING.split(text)), 1)
    }


def without_excerpts(documents: dict[str, str]) -> dict[str, str]:
    """The documents but those of which most, in characters, stands paragraph by paragraph in a
    single longer one. Indentation and line breaks do not matter; of equals the last stays."""
    split = re.compile(r"\n\s*\n").split
    paragraphs = {
        name: {" ".join(paragraph.split()) for paragraph in split(text)}
        for name, text in documents.items()
    }

    def size(texts: set[str]) -> int:
        return sum(map(len, texts))

    def is_excerpt(place: int, name: str) -> bool:
        mine = paragraphs[name]
        return any(
            2 * size(mine & paragraphs[other]) > size(mine)
            for number, other in enumerate(documents)
            if (len(documents[other]), number) > (len(documents[name]), place)
        )

    return {
        name: text
        for place, (name, text) in enumerate(documents.items())
        if not is_excerpt(place, name)
    }


def content_config(documents: dict[str, str]) -> tfds.core.BuilderConfig:
    """Names a variant by the interpreter's version and the content, so that two machines with one
    cache and differently patched interpreters do not read each other's files."""
    digest = hashlib.sha256()
    for name, text in documents.items():
        for part in (name.encode(), text.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    version = f"{platform.python_implementation().lower()}-{platform.python_version()}"
    return tfds.core.BuilderConfig(
        name=f"{version}-{digest.hexdigest()[:12]}",
        version="1.0.0",
        description=f"{len(documents)} documents of {version}, SHA-256 {digest.hexdigest()}",
    )


class _StandardLibrary(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # there are no checksums of downloads to look for beside this file
    CONTENT: ClassVar[Any]
    DESCRIPTION: ClassVar[str]

    def __init__(self, **kwargs: Any):
        self._documents = type(self).CONTENT()
        kwargs.setdefault("config", content_config(self._documents))
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict({"name": text, "text": text}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        for key, (name, text) in enumerate(self._documents.items()):
            yield key, {"name": name, "text": text}


class PythonSource(_StandardLibrary):
    """The standard library of the running interpreter; a document is a module."""

    CONTENT = staticmethod(python_source)
    DESCRIPTION = "Modules of the Python standard library, without tests and generated tables."


class PythonReference(_StandardLibrary):
    """The language reference of the running interpreter; a document is a section of a topic."""

    CONTENT = staticmethod(python_reference)
    DESCRIPTION = "Sections of the Python language reference, each once."


BUILDERS = {"python_source": PythonSource, "python_reference": PythonReference}

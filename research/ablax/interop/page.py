"""The page beside an imported model: an experiment that starts from its parameters."""

from pathlib import Path

import ml_collections

from ablax.config import to_config_dict
from ablax.experiment import resolve
from ablax.run import RunFolder

PAGE = "experiment.py"
TEXT = '''"""Training that starts from the parameters of {source}.

Command: `ablax train --config={path} --config.data.source=text:FILE --workdir=NEW`
"""

import pathlib

from ablax.interop.page import started_from


def get_config():
    """Model, tokenizer and parameters are those of this folder; all else is the default."""
    return started_from(pathlib.Path(__file__).resolve().parent)
'''


def page_text(folder: Path, source: str) -> str:
    """The page of a run folder."""
    return TEXT.format(source=source, path=folder / PAGE)


def started_from(folder: Path) -> ml_collections.ConfigDict:
    """The configuration of a run with its own parameters to start from, and its tokenizer.

    Raises:
      RequestError: if the folder holds no run.
    """
    run = RunFolder(folder).require()
    changes = {"init.run": str(run.path), "data.tokenizer.path": str(run.tokenizer)}
    return to_config_dict(resolve(run.config(), changes)).lock()

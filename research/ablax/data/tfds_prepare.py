"""Finds a dataset of TensorFlow Datasets on disk, or prepares it: as ArrayRecord files and without
TensorFlow."""

import contextlib
import difflib
import glob
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import ssl
import sys
import tempfile
import types
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import constants, file_adapters, naming, read_only_builder

from ablax.config import RequestError
from ablax.data.tfrecord import read_tfrecords

TRIED_HOSTS = 3
ANSWER_SECONDS = 5


def find_builder(name: str, data_dir: str | None, cache: Path, offline: bool) -> Any:
    """A prepared builder whose files are ArrayRecord.

    It is looked for in `data_dir`, or else in `cache/tfds` and TFDS's own folder, and prepared in
    the first of them where it is missing. Files of TFRecord are copied once under `cache/tfds`.

    Raises:
      RequestError: an unknown dataset, or one that cannot be prepared here.
    """
    _check_name(name)
    own = cache / "tfds"
    default = Path(constants.DATA_DIR)
    folders = [Path(data_dir).expanduser()] if data_dir else [own, default]
    for folder in folders:
        with contextlib.suppress(tfds.core.DatasetNotFoundError):
            return _random_access(read_only_builder.builder_from_files(name, data_dir=folder), own)
    try:
        # Many builders of text are registered only when their part of TFDS is imported.
        for part in ("text", "summarization", "translate", "question_answering"):
            importlib.import_module(f"tensorflow_datasets.{part}")
        builder = tfds.builder(name, data_dir=folders[0], file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise RequestError(_unknown(name, folders)) from None
    except (AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"source tfds: {name}: {reason}; check config and version") from None
    if offline:
        raise RequestError(
            f"source tfds: {name} is not prepared under {' or '.join(map(str, folders))} and the "
            "network is off; run `ablax prepare` where there is one"
        )
    _refuse_without_network(builder)
    prepare(builder)
    return builder


def _check_name(name: str) -> None:
    """Lets through what the catalog's names look like: no path out of the folder, no argument of a builder's, no
    namespace, whose datasets are asked for over the network, `offline` or not."""
    try:
        dataset, arguments = naming.parse_builder_name_kwargs(name)
    except ValueError:  # its text has some twenty lines
        dataset, arguments = None, {}
    named = (
        dataset is not None and not dataset.namespace and arguments.keys() <= {"config", "version"}
    )
    if not named or not arguments.get("config", "config").strip("."):
        raise RequestError(
            f"source tfds: {name!r} is no name of a dataset; write NAME, NAME/CONFIG or NAME/CONFIG:1.2.3"
        )


def _unknown(name: str, folders: list[Path]) -> str:
    known = set(tfds.list_builders(with_community_datasets=False))
    for folder in filter(Path.is_dir, folders):
        known |= {entry.name for entry in folder.iterdir() if entry.is_dir()}
    close = difflib.get_close_matches(name.partition("/")[0].partition(":")[0], known, 3)
    hint = f"did you mean {', '.join(close)}?" if close else "see tensorflow.org/datasets/catalog"
    return f"source tfds: unknown dataset {name!r}; {hint}"


def _refuse_without_network(builder: Any) -> None:
    """Says so in seconds where nothing can be downloaded: TFDS would try for minutes.

    A dataset is let through if a host of its answers, or if files were downloaded before, which may be all it needs.
    """
    name = builder.info.full_name
    urls = map(urllib.parse.urlsplit, builder.url_infos or ())
    hosts = list(dict.fromkeys((url.scheme, url.netloc) for url in urls))[:TRIED_HOSTS]
    web = [f"{scheme}://{host}/" for scheme, host in hosts if scheme in ("http", "https")]
    if not web or any(map(_answers, web)):
        return
    downloads = Path(builder.data_dir.removesuffix(name)) / "downloads"
    if not any(downloads.rglob("*.INFO")):
        raise RequestError(
            f"source tfds: {name} is not prepared and {hosts[0][1]} does not answer; run `ablax prepare` on a machine "
            "with network and the same cache (then --offline here), or read a local copy: data.source=text:PATH"
        )


def _answers(url: str) -> bool:
    """Whether a host can be reached, through a proxy if the environment names one; whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS)
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:  # TFDS has certificates of its own
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True


def prepare(builder: Any) -> None:
    """Downloads and writes a dataset, unless that is done.

    Raises:
      RequestError: it needs a library that is missing, or files that cannot be had.
    """
    if builder.is_prepared():
        return
    name = builder.info.full_name
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        # TFDS prints to stdout, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr), _lent_gfile(builder):
            builder.download_and_prepare(download_config=config)
    except AssertionError as error:
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise
        raise RequestError(f"source tfds: {name}: {' '.join(str(error).split())}") from None
    except ImportError as error:
        raise RequestError(
            f"source tfds: preparing {name} needs {error.name or error}; do it where that is "
            f"installed: tfds build {builder.info.name} --file_format=array_record"
        ) from error
    except (OSError, tfds.download.DownloadError) as error:
        # Another process may have moved its own copy into place meanwhile.
        if not builder.is_prepared():
            reason = str(error).splitlines()[0]
            raise RequestError(
                f"source tfds: {name} could not be prepared: {reason}; check network and disk"
            ) from error
        builder.info.read_from_directory(builder.data_path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back TFDS's warnings about folders that are not there yet."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def _lent_gfile(builder: Any) -> Iterator[None]:
    """Lends the builder's module the file functions of `tf.io.gfile`, all that most text datasets
    use of TensorFlow, while it prepares. Does nothing where TensorFlow is installed or not used."""
    module = sys.modules[type(builder).__module__]
    if importlib.util.find_spec("tensorflow") is not None or not hasattr(module, "tf"):
        yield
        return
    gfile = types.SimpleNamespace(
        GFile=_open,
        exists=os.path.exists,
        isdir=os.path.isdir,
        listdir=os.listdir,
        glob=glob.glob,
    )
    lent = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile))
    with mock.patch.object(module, "tf", lent):
        yield


def _open(name: str, mode: str = "r") -> Any:
    return open(name, mode, encoding=None if "b" in mode else "utf-8")


def _random_access(builder: Any, own: Path) -> Any:
    held = builder.info.file_format
    if held in file_adapters.FileFormat.with_random_access():
        return builder
    if held != file_adapters.FileFormat.TFRECORD:
        raise RequestError(
            f"source tfds: {builder.data_path} holds {held.value} files; convert them: tfds "
            f"convert_format --dataset_dir={builder.data_path} --out_file_format=array_record "
            "--out_path=DIR"
        )
    target = own / "from_tfrecord" / _stamp(Path(builder.data_path)) / builder.info.full_name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            _convert(builder, temporary)
            with contextlib.suppress(OSError):  # another process was first
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return tfds.builder_from_directory(target)


def _stamp(folder: Path) -> str:
    """Names a folder's state, so that a dataset prepared anew is copied anew."""
    files = sorted((path.name, path.stat()) for path in folder.iterdir())
    state = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(json.dumps([str(folder), state]).encode()).hexdigest()[:16]


def _convert(builder: Any, folder: Path) -> None:
    """Copies a dataset's records as they are into ArrayRecord files, and its metadata with them."""
    writer = file_adapters.ArrayRecordFileAdapter
    for info in builder.info.splits.values():
        template = info.filename_template.replace(
            data_dir=folder, filetype_suffix=writer.FILE_SUFFIX
        )
        for shard, path in enumerate(info.filepaths):
            records = enumerate(read_tfrecords(Path(path)))
            target = template.sharded_filepath(shard_index=shard, num_shards=info.num_shards)
            writer.write_examples(target, records)
    for path in Path(builder.data_path).iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copyfile(path, folder / path.name)
    description = folder / "dataset_info.json"
    content = json.loads(description.read_text(encoding="utf-8"))
    content["fileFormat"] = writer.FILE_SUFFIX
    description.write_text(json.dumps(content, indent=2), encoding="utf-8")

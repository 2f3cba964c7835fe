"""Compiled programs are kept in a private folder, so that a program is compiled once for all runs that share it."""

import os
import stat
from pathlib import Path

import jax

from ablax.config import RequestError
from ablax.data.store import cache_root


def keep_programs() -> Path | None:
    """Points JAX's persistent compilation cache at `$ABLAX_CACHE/programs`, unless the user chose one.

    A cached program is code that will run, so the folder must be the user's own (mode 0700).
    ABLAX_COMPILE_CACHE=0 switches this off.

    Returns:
      The folder in use.

    Raises:
      RequestError: if others can write the folder.
    """
    if os.environ.get("ABLAX_COMPILE_CACHE") == "0":
        return None
    if chosen := jax.config.values.get("jax_compilation_cache_dir"):
        return Path(chosen)
    folder = cache_root() / "programs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RequestError(
            f"others can write {folder}, where compiled programs are kept; run `chmod 700 {folder}`, "
            "set ABLAX_CACHE to a folder of your own, or ABLAX_COMPILE_CACHE=0"
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder

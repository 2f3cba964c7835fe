"""One strict session for all tests: CPU, no silent rank promotion, checked shapes, a private cache, two threads."""

import os
import signal
import sys

from compiling import FLAGS

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
# A shell without job control lets what it starts in the background ignore Ctrl-C, and children inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
if str(ROOT / "research") not in sys.path:
    sys.path.insert(0, str(ROOT / "research"))

from ablax.allocator import tune_malloc

tune_malloc()

import jax

from processor_time import pytest_runtest_call as pytest_runtest_call  # a hook, found by its name

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real data beside the project; a test that needs it skips where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the development data folder ../shared/data is absent")
    return folder


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory):
    """Token stores of the tests never mix with the user's."""
    os.environ["ABLAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also the long proofs (marked slow)")
    parser.addoption(
        "--ci", action="store_true", help="also what needs services or clean environments"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--all"):
            item.add_marker(pytest.mark.skip(reason="long proof; scripts/test --all runs it"))
        if "ci" in item.keywords and not config.getoption("--ci"):
            item.add_marker(pytest.mark.skip(reason="scripts/test --ci runs it"))

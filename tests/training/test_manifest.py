"""Every kind of damage to every file of a checkpoint is found, or changes nothing that is read back.

Fails if a hash is not compared, an item beside the arrays is not sealed, a manifest of another step is believed, or a
file can be lost without notice: each of these was put in once.
"""

import collections
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ablax.training.checkpoints import Checkpoints
from ablax.training.manifest import Damaged, describe, leaves_of
from ablax.training.saved import SavedCheckpoint
from checkpoint_states import METRIC, fill, make_state, same

STEPS = (1, 2, 3)
# Orbax leaves coroutines behind when a file under them is broken.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
    )
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integrity") / "saved"
    fill(folder, STEPS).close()
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(folder: Path, rng: random.Random) -> str:
    """One bit of one file; in half of the trials of the largest, where the weights are."""
    some = [path for path in files(folder / "3") if path.stat().st_size]
    largest = max(some, key=lambda path: path.stat().st_size)
    path = largest if rng.random() < 0.5 else rng.choice(some)
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} of {path.relative_to(folder)}"


def truncate(folder: Path, rng: random.Random) -> str:
    path = rng.choice([path for path in files(folder / "3") if path.stat().st_size])
    size = rng.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"{path.relative_to(folder)} cut to {size} bytes"


def delete(folder: Path, rng: random.Random) -> str:
    """A file or a folder."""
    path = rng.choice(sorted((folder / "3").rglob("*")))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"{path.relative_to(folder)} deleted"


def swap(folder: Path, rng: random.Random) -> str:
    """Two files of a checkpoint."""
    one, other = rng.sample(files(folder / "3"), 2)
    return exchange(folder, one, other)


def swap_steps(folder: Path, rng: random.Random) -> str:
    """The same item, or file, of two checkpoints, or a whole checkpoint with another."""
    one = rng.choice([folder / "3", *sorted((folder / "3").rglob("*"))])
    there = folder / rng.choice("12") / one.relative_to(folder / "3")
    if not there.exists():
        # The names of the arrays' files are random, and now and then their number: one of like rank.
        others = sorted(there.parent.iterdir())
        there = others[min(sorted(one.parent.iterdir()).index(one), len(others) - 1)]
    return exchange(folder, one, there)


def exchange(folder: Path, one: Path, other: Path) -> str:
    aside = folder / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return f"{one.relative_to(folder)} and {other.relative_to(folder)} swapped"


DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (
    flip,
    truncate,
    delete,
    swap,
    swap_steps,
)


def read(folder: Path) -> str | None:
    """What is said about checkpoint 3; None if it is accepted, and then it must be what was saved."""
    checkpoint = SavedCheckpoint(folder, 3, say=pytest.fail)
    try:
        state, cursor = checkpoint.state(make_state())
    except Damaged as damage:
        return str(damage)
    assert same(state, make_state(3))
    assert (cursor, checkpoint.config()) == ({"bytes": 3}, {"seed": 3})
    assert checkpoint.scores() == {METRIC: abs(3 - 1.9)}
    return None


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


@pytest.fixture(scope="module")
def needed(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files without which a checkpoint is not accepted. The others are Orbax's markers and notes, and what its
    writers merged into the files that count: nothing reads them.
    """
    work, found = tmp_path_factory.mktemp("needed") / "work", set()
    for name in contents(saved / "3"):
        shutil.copytree(saved / "3", work / "3")
        (work / "3" / name).unlink()
        if read(work) is not None:
            found.add(name)
        shutil.rmtree(work)
    for item in ("cursor", "config", "scores", "manifest"):
        assert f"{item}/metadata" in found
    sizes = {name: (saved / "3" / name).stat().st_size for name in contents(saved / "3")}
    assert max(sizes, key=sizes.__getitem__) in found  # where the weights are
    return found


def run_trials(saved: Path, work: Path, needed: set[str], seeds: range) -> None:
    """All damage is found, or what is read is bit-equal (see `read`). Found is nearly all damage to a file that
    counts: some of their bytes belong to nothing, as the ends of the arrays' files do.
    """
    before, outcomes = contents(saved / "3"), collections.Counter()
    for seed in seeds:
        shutil.copytree(saved, work)
        damage = DAMAGES[seed % len(DAMAGES)]
        what = damage(work, random.Random(seed))
        after = contents(work / "3")
        hurt = {name for name in needed if after.get(name) != before[name]}
        said = read(work)
        if said is not None:
            # One line that begins with the step and its part.
            assert re.match(r"3/(state|manifest|cursor|config|scores)\b[^\n]*$", said), (what, said)
        outcomes[damage.__name__] += bool(hurt)
        outcomes["found"] += bool(hurt) and said is not None
        shutil.rmtree(work)
    assert all(outcomes[damage.__name__] > len(seeds) / 20 for damage in DAMAGES), outcomes
    hurt = outcomes.total() - outcomes["found"]
    assert hurt > len(seeds) / 2
    assert outcomes["found"] > 0.9 * hurt, outcomes


def test_damage_is_found_or_harmless(saved: Path, tmp_path: Path, needed: set[str]):
    run_trials(saved, tmp_path / "work", needed, range(50))


@pytest.mark.slow
def test_much_damage_is_found_or_harmless(saved: Path, tmp_path: Path, needed: set[str]):
    run_trials(saved, tmp_path / "work", needed, range(1000, 1600))


def test_a_checkpoint_under_another_steps_name_is_not_believed(saved: Path, tmp_path: Path):
    """Fails if the step that a manifest belongs to is not compared with its folder's."""
    shutil.copytree(saved / "2", tmp_path / "copy" / "3")
    with pytest.raises(Damaged, match="3/manifest belongs to step 2"):
        SavedCheckpoint(tmp_path / "copy", 3).arrays()


def test_an_edited_manifest_is_not_believed(saved: Path, tmp_path: Path):
    """Fails if hashes may be changed together with what they are the hashes of."""
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    path = copy / "3" / "manifest" / "metadata"
    path.write_text(path.read_text().replace('"step": 3', '"step": 4', 1))
    (copy / "3").rename(copy / "4")
    with pytest.raises(Damaged, match="4/manifest is not what was saved"):
        SavedCheckpoint(copy, 4).arrays()


def test_the_hash_is_of_values_shape_and_dtype():
    """Fails if arrays of equal bytes, or the same array in another memory order, are mistaken."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    one = describe({"a": values})
    assert one == describe({"a": np.asfortranarray(values)})
    assert one != describe({"a": values.reshape(3, 2)})
    assert one != describe({"a": values.view(np.int32)})
    assert one != describe({"a": np.nextafter(values, 9)})


def test_a_run_goes_back_over_several_damaged_steps(saved: Path, tmp_path: Path):
    """Fails if only one damaged checkpoint can be skipped, or one is left where a resume looks."""
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    for step in ("2", "3"):
        (copy / step / "state" / "manifest.ocdbt").unlink()
    said: list[str] = []
    with Checkpoints(copy, say=said.append) as checkpoints:
        state, _, step = checkpoints.restore(make_state())
        assert (step, checkpoints.all_steps()) == (1, [1])
    assert same(state, make_state(1))
    assert ["3/state/manifest.ocdbt is missing" in said[0], "2/state" in said[1]] == [True, True]
    assert len(leaves_of(state)) == len(leaves_of(make_state()))
    assert sorted(path.name for path in (copy / "damaged").iterdir()) == ["2.0", "3.0"]

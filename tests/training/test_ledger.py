"""The ledger: the same for any number of processes, exact after a kill, and it tells where two runs part."""

import contextlib
import itertools
import json

import numpy as np
import pytest

from ablax import cli
from ablax.config import RequestError
from ablax.data.layouts import make_layout
from ablax.data.loader import Loader
from ablax.data.store import TokenStore
from ablax.training.ledger import RECORD, Ledger, hash_rows, pack
from ablax.training.recorded import compare_ledgers, read_ledger, unpack

B, T = 4, 5


def make_store():
    lengths = np.array([12, 3, 0, 30, 1, 7, 0, 0, 25, 200, 2, 9, 14] * 3)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(2, 2 + offsets[-1]).astype(np.uint16)
    return TokenStore(tokens, offsets, lengths, "s", 1000, 0, None)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    root, store = tmp_path_factory.mktemp("cache"), make_store()
    return {
        kind: make_layout(
            kind, store, sequence_length=T, bos=0, eos=1, batch_size=B, seed=5, root=root
        )
        for kind in ("windows", "packed", "streams")
    }


def loaders(layout, processes=1, seed=0):
    return [
        Loader(
            layout,
            global_batch_size=B,
            seed=seed,
            process_index=process,
            process_count=processes,
            prefetch=0,
        )
        for process in range(processes)
    ]


def record(workdir, loaders, steps):
    """The steps as the processes of a run write them."""
    workdir.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        ledgers = [
            stack.enter_context(Ledger(workdir, loader, lambda step: step - 1, print))
            for loader in loaders
        ]
        for step in steps:
            for ledger, loader in zip(ledgers, loaders, strict=True):
                ledger.write(step, loader.batch(step - 1))
    return workdir


@pytest.mark.parametrize("kind", ["windows", "packed", "streams"])
def test_documents_are_those_whose_tokens_are_in_the_rows(layouts, kind, tmp_path):
    """Catches: a document too many at a row's edge, one that only its marks bring in, the epoch forgotten."""
    store = layouts[kind].store
    plain = make_layout(kind, store, sequence_length=T, batch_size=B, seed=5, root=tmp_path)
    for layout, marks in ((layouts[kind], True), (plain, False)):
        (loader,) = loaders(layout)
        for step in range(2 * int(loader.steps_per_epoch) + 1):
            batch = loader.batch(step)
            for place, found in enumerate(loader.documents(step)):
                row = batch["tokens"][place][batch["segment_ids"][place] > 0]
                owners = np.searchsorted(store.offsets, row[row > 1] - 2, side="right") - 1
                extra = set(found.tolist()) - set(owners)
                assert set(owners) <= set(found.tolist())
                assert len(extra) <= marks * np.isin(row, (0, 1)).sum()  # only a mark was read
                assert (np.diff(found) > 0).all()


def test_ledger_does_not_depend_on_the_processes(layouts, tmp_path):
    """Catches: a hash of rows without their places, documents of the own rows only."""
    one, two, four = (
        read_ledger(record(tmp_path / str(n), loaders(layouts["packed"], n), range(1, 9)))
        for n in (1, 2, 4)
    )
    assert len(one) == 8
    assert len(set(one.hashes)) == 8
    assert one.hashes == two.hashes == four.hashes
    assert [one.documents(s) for s in range(1, 9)] == [four.documents(s) for s in range(1, 9)]
    expected = np.unique(np.concatenate(loaders(layouts["packed"])[0].documents(2))).tolist()
    assert one.documents(3) == expected


def test_of_processes_that_read_the_same_rows_one_writes(layouts, tmp_path):
    """Catches: two writers of one file, of which one cuts off what the other wrote."""
    loader = loaders(layouts["windows"])[0]
    twice = read_ledger(record(tmp_path / "twice", [loader, loader], range(1, 6)))
    once = read_ledger(record(tmp_path / "once", [loader], range(1, 6)))
    assert twice.hashes == once.hashes
    for name in ("0.bin", "documents.bin"):
        mine, other = ((tmp_path / run / "ledger" / name).read_bytes() for run in ("twice", "once"))
        assert mine == other


def test_rows_that_change_places_or_values_change_the_hash(layouts):
    batch = loaders(layouts["windows"])[0].batch(0)
    swapped = {name: rows[[1, 0, 2, 3]] for name, rows in batch.items()}
    other = {**batch, "tokens": batch["tokens"] + (np.arange(B * 6).reshape(B, 6) == 9)}
    widened = {**batch, "tokens": batch["tokens"].astype(np.int64)}
    hashes = [hash_rows(one, 0) for one in (batch, swapped, other, widened)]
    assert len(set(hashes)) == 4


def test_a_killed_run_leaves_the_ledger_of_one_that_was_not(layouts, tmp_path):
    """Also with fewer processes after it. Catches: steps recorded twice, half a record, what absent processes wrote."""
    layout = layouts["windows"]
    whole = read_ledger(record(tmp_path / "whole", loaders(layout), range(1, 12)))
    killed = record(tmp_path / "killed", loaders(layout, 4), range(1, 8))
    with (killed / "ledger" / "0.bin").open("ab") as file:
        file.write(b"x" * (RECORD.itemsize // 2))
    with (killed / "ledger" / "documents.bin").open("ab") as file:
        file.write(b"\xff")
    record(killed, loaders(layout, 2), range(5, 9))
    found = read_ledger(record(killed, loaders(layout), range(7, 12)))
    assert found.hashes == whole.hashes
    assert [found.documents(s) for s in range(1, 12)] == [whole.documents(s) for s in range(1, 12)]
    for name in ("0.bin", "documents.bin"):
        mine, theirs = ((r / "ledger" / name).read_bytes() for r in (killed, tmp_path / "whole"))
        assert len(mine) == len(theirs)


def test_a_step_of_which_rows_are_missing_is_not_recorded(layouts, tmp_path):
    """Catches: half a batch that passes for a whole one; a gap that later steps hide."""
    workdir = record(tmp_path / "run", loaders(layouts["windows"], 2), range(1, 6))
    part = workdir / "ledger" / "1.bin"
    part.write_bytes(part.read_bytes()[: -2 * RECORD.itemsize])
    assert len(read_ledger(workdir)) == 3
    gap = record(tmp_path / "gap", loaders(layouts["windows"]), itertools.chain([1, 2], [5, 6]))
    assert len(read_ledger(gap)) == 2


def test_compare_names_the_step_at_which_runs_part(layouts, tmp_path, capsys):
    one, other = loaders(layouts["windows"]), loaders(layouts["windows"], seed=1)
    a, b = (record(tmp_path / name, one, range(1, 7)) for name in "ab")
    assert compare_ledgers(a, b).same
    record(b, other, range(4, 7))
    assert (compare_ledgers(a, b).same, compare_ledgers(a, b).parts_at) == (False, 4)
    assert cli.main(["ledger", "--compare", str(a), str(b)]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["parts_at"] == 4
    assert "the batches part at step 4" in shown.err
    c = record(tmp_path / "c", one, range(1, 5))
    assert compare_ledgers(a, c).parts_at == 5
    assert cli.main(["ledger", "--workdir", str(a), "--step=3"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == read_ledger(a).documents(3)
    assert cli.main(["ledger", "--workdir", str(a), "--step=9"]) == 2
    assert cli.main(["ledger", "--workdir", str(tmp_path / "none")]) == 2


def test_a_disk_that_fails_ends_the_ledger_and_not_the_run(layouts, tmp_path):
    (loader,) = loaders(layouts["windows"])
    said = []
    (tmp_path / "ledger").write_text("a file where the folder belongs")
    with Ledger(tmp_path, loader, lambda step: step - 1, said.append) as ledger:
        for step in (1, 2):
            ledger.write(step, loader.batch(step - 1))
    assert len(said) == 1
    assert "cannot be written" in said[0]


def test_packed_numbers_come_back():
    for numbers in ([], [0], [0, 127, 128, 129, 40_000, 2**40]):
        assert unpack(pack(np.array(numbers, np.int64)) + b"\x07more") == numbers
    with pytest.raises(ValueError, match="cut short"):
        unpack(pack(np.array([1, 300]))[:-1])


def test_another_format_is_refused(layouts, tmp_path):
    workdir = record(tmp_path / "run", loaders(layouts["windows"]), [1])
    path = workdir / "ledger" / "0.bin"
    path.write_bytes(b"something else entirely, and long enough for a header")
    with pytest.raises(RequestError, match="not a ledger of this version"):
        read_ledger(workdir)

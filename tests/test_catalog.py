"""The catalog of real runs: what was tried, what produced a number, who descends from whom, notes, disk, deletion."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

import ablax
from ablax import cli
from ablax.catalog.finding import find
from ablax.catalog.index import Index
from ablax.catalog.lineage import parents_of, tree
from ablax.catalog.notes import add_note, change_tags, read_notes
from ablax.catalog.prune import GRAVE, Rules, bury, clear_graves, plan_of, seconds_of
from ablax.config import RequestError
from ablax.difference import diff as ablax_diff
from ablax.experiment import base
from ablax.run import RunFolder, write_json
from ablax.sweeps.launch import launch

RESEARCH = pathlib.Path(__file__).parent.parent / "research"


def experiment(place: pathlib.Path, **changes):
    config = base(tokenizer="byte", schedule="constant", source=f"text:{place / 'text.txt'}")
    config.data.source.document, config.data.split.validation = "line", 0.2
    config.model.num_layers, config.model.width, config.model.num_heads = 1, 16, 2
    config.data.sequence_length, config.training.batch_size, config.training.steps = 16, 4, 1
    config.evaluation.documents, config.evaluation.every = 4, 0
    config.writers.tensorboard = False
    return ablax.resolve(config, {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """`parent`, its fork `child`, `taker` of the child's parameters, and a `sweep` of n-gram models; to be read."""
    place = tmp_path_factory.mktemp("catalog").resolve()
    lines = [f"the {n}th line says {'abc' * (n % 5)}" for n in range(60)]
    (place / "text.txt").write_text("\n".join(lines))
    root = place / "runs"
    ablax.train(experiment(place), root / "parent", progress=False)
    longer = {"training.steps": 2}
    ablax.fork(root / "parent", root / "child", longer)
    ablax.train(experiment(place, training__steps=2), root / "child", progress=False)
    taker = experiment(place, init__run=str(root / "child"), optimizer__learning_rate=3e-4)
    ablax.train(taker, root / "taker", progress=False)
    ngram = experiment(place, model="ngram")
    plan = [{"arm": f"order {n}", "model.order": n, "seed": s} for n in (2, 3) for s in (0, 1)]
    launch(ngram, plan, root / "sweep", progress=False)
    return root


@pytest.fixture
def root(built: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy to write in; its parents' folders are names of another place, as after a move."""
    return pathlib.Path(shutil.copytree(built, tmp_path / "moved"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture):
    def run(*arguments):
        code = cli.main(["runs", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else None, captured.err

    return run


def by_path(rows):
    return {row["path"]: row for row in rows}


def test_runs_and_sweeps_are_listed_with_what_differs(built: pathlib.Path):
    """Catches: cells that hide their sweep, a knob that all have alike, a difference that is not shown."""
    rows = by_path(ablax.runs(built))
    assert {"parent", "child", "taker", "sweep"} < rows.keys()
    assert len(rows) == 8
    sweep = rows["sweep"]
    assert (sweep["kind"], sweep["cells"], sweep["finished"]) == ("sweep", 4, 4)
    assert rows["child"]["differs"]["training.steps"] == 2
    assert rows["taker"]["differs"]["optimizer.learning_rate"] == 3e-4
    assert "data.sequence_length" not in rows["taker"]["differs"]
    assert rows["parent"]["metrics"]["bits_per_byte"] > 0
    assert rows["parent"]["status"] == "finished"


def test_what_produced_a_number(built: pathlib.Path):
    """Catches: a search that wants all digits, or takes 1.2 for 1.25; the means of arms, which only reports show."""
    index = Index(built)
    exact = by_path(index.rows())["child"]["metrics"]["bits_per_byte"]
    found = find(index, f"{exact:.4f}")
    assert ("child", exact) in [(one["path"], one["value"]) for one in found]
    assert all(f"{one['value']:.4f}" == f"{exact:.4f}" for one in found)
    cells = [row for row in index.rows() if row["path"].startswith("sweep/") and row["seed"] == 0]
    for cell in cells:
        value = cell["metrics"]["bits_per_byte"]
        whats = [one["what"] for one in find(index, f"{value:.5f}") if one["path"] == "sweep"]
        assert any(what.startswith("bits_per_byte, mean of arm order") for what in whats)
    status = RunFolder(built / "taker").status()
    hashes = {"fingerprint": status["fingerprint"], "code": status["starts"][0]["code"]["sha256"]}
    for what, value in hashes.items():
        assert {"path": "taker", "what": what, "value": value} in find(index, value[:12])
    (parameters,) = index.select(
        "select value from hashes where path = 'parent' and what = 'parameters 1'"
    )
    found = find(index, parameters["value"][:10])
    assert {one["path"] for one in found} == {
        "parent",
        "child",
    }  # a fork has the checkpoint that it began with
    assert find(index, "1e23456") == []  # a hash may look like a number that no float holds
    with pytest.raises(RequestError, match="neither a number nor"):
        find(index, "hello")


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        ("status=finished and kind=run and not path~sweep", {"parent", "child", "taker"}),
        ("training.steps=2 or optimizer.learning_rate<=0.0005 and kind=run", {"child", "taker"}),
        ("(model.order=2 or model.order=3) and seed=1 and metrics.bits_per_byte>0", None),
        ("metrics.bits_per_byte<0", set()),
        ("name='no such name'", set()),
    ],
)
def test_conditions(built: pathlib.Path, where: str, paths: set[str] | None):
    """Catches: `and` that binds weaker than `or`, numbers compared as texts, a metric that was not the last."""
    found = {row["path"] for row in ablax.runs(built, where)}
    if paths is None:
        assert len(found) == 2
        assert all(path.startswith("sweep/") and path.endswith("seed1") for path in found)
    else:
        assert {path for path in found if not path.startswith("sweep/")} == paths


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("model.widht=2", "did you mean"),
        ("status finished", "should stand"),
        ("(status=finished", "not closed"),
        ("status=", "ends too early"),
        ("status=finished step=1", "`and` or `or`"),
    ],
)
def test_mistakes_in_conditions(built: pathlib.Path, where: str, words: str):
    with pytest.raises(RequestError, match=words) as refused:
        ablax.runs(built, where)
    assert "\n" not in str(refused.value)


def test_sql_reads_and_nothing_else(built: pathlib.Path, tmp_path: pathlib.Path):
    """Catches: a query that changes the index, or makes and reads other files."""
    index = Index(built)
    found = index.select("select count(*) as n from metrics where name = 'bits_per_byte' and last")
    assert found == [{"n": 7}]
    for sql in ("delete from runs", f"attach '{tmp_path / 'x'}' as x", "pragma user_version = 9"):
        with pytest.raises(RequestError, match="only select"):
            index.select(sql)
    assert not (tmp_path / "x").exists()
    assert len(index.rows()) == 8


def test_the_index_follows_the_folders(root: pathlib.Path, tmp_path: pathlib.Path):
    """Catches: a change that the index does not see, a folder that is read again without one, and facts that only the
    index has: whatever becomes of its file, the list is the same."""
    cache = tmp_path / "cache"
    first = Index(root, cache=cache)
    assert first.read == 8
    assert Index(root, cache=cache).read == 0
    RunFolder(root / "child").update(status="failed")
    with (root / "parent" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "split": "validation", "bits_per_byte": 0.125}\n')
    again = Index(root, cache=cache)
    assert again.read == 2
    assert by_path(again.rows())["child"]["status"] == "failed"
    assert [one["path"] for one in find(again, "0.125")] == ["parent"]
    shutil.rmtree(root / "taker")
    assert "taker" not in by_path(Index(root, cache=cache).rows())
    expected = Index(root, cache=cache, rebuild=True).rows()
    for content in (b"", b"no database", again.file.read_bytes()[:5000]):
        again.file.write_bytes(content)
        assert Index(root, cache=cache).rows() == expected
    (tmp_path / "file").write_text("")
    assert Index(root, cache=tmp_path / "file" / "inside").rows() == expected  # no place to keep it
    (step,) = (root / "parent" / "checkpoints").glob("1")
    (step / "manifest" / "metadata").write_text('{"seal": "f00d", "leaves": {}}')
    assert find(Index(root, cache=cache, rebuild=True), "f00d00") == []  # read all the same
    (root / "parent" / "config.json").write_text("{")
    broken = Index(root, cache=cache)
    assert list(broken.unread) == ["parent"]
    assert not list(root.glob("*.sqlite"))


def test_lineage(built: pathlib.Path, root: pathlib.Path):
    """Catches: a parent of `init.run` that is none, and parents that are lost when the folder moves."""
    rows = Index(built).rows()
    assert parents_of(rows) == {"child": "parent", "taker": "child"}
    assert tree(rows) == [
        "parent: finished",
        "   child (forked at step 1): finished",
        "      taker (takes parameters of step 2): finished",
    ]
    assert parents_of(Index(root).rows()) == parents_of(rows)


def test_notes_and_tags(root: pathlib.Path, command):
    """Written while the run trains (its lock is held, run.json is replaced); a fork starts without them."""
    run = root / "parent"
    with RunFolder(run).lock():
        assert command("note", run, "the loss\njumps")[0] == 0
        RunFolder(run).update(step=1)
        code, found, _ = command("tag", run, "+good", "+old")
        assert (code, found["tags"]) == (0, ["good", "old"])
        assert command("tag", run, "-old")[1]["tags"] == ["good"]
    (row,) = ablax.runs(root, "tag=good and note~jumps")
    assert (row["path"], row["tags"], row["notes"][0]["text"]) == (
        "parent",
        ["good"],
        "the loss\njumps",
    )
    ablax.fork(run, root / "another")
    assert read_notes(root / "another") == {"tags": [], "notes": []}
    for arguments in (("tag", run, "-absent"), ("tag", run, "good"), ("note", run, " ")):
        assert command(*arguments)[0] == 2
    with pytest.raises(RequestError, match="holds no run"):
        add_note(root, "x")
    with pytest.raises(RequestError, match="is no tag"):
        change_tags(run, ["a b"], [])


def test_disk(built: pathlib.Path, command):
    code, found, said = command(f"--root={built}", "--disk")
    sizes = by_path(found)["parent"]
    files = [p for p in (built / "parent").rglob("*") if p.is_file()]
    assert (code, sizes["total"]) == (0, sum(p.stat().st_size for p in files))
    assert 0 < sizes["checkpoints"] < sizes["total"]
    assert "in all" in said


def goes(root: pathlib.Path, rules: Rules) -> dict[str, str | None]:
    return {one["path"]: one["kept"] for one in plan_of(Index(root).rows(), rules)}


def test_what_others_stand_on_stays(root: pathlib.Path):
    """Catches: the parent of a fork or of init.run that goes, or a cell that its report needs; a run that may go on."""
    plan = goes(root, Rules(older_than=0))
    assert plan["parent"] == "child stands on it"
    assert plan["child"] == "taker stands on it"
    assert plan["taker"] is None
    cells = [path for path in plan if path.startswith("sweep/")]
    assert len(cells) == 4
    assert all(plan[path] is None for path in cells)
    whole = goes(root, Rules(older_than=0, whole=True))
    assert all("the report of sweep needs it" in str(whole[path]) for path in cells)
    RunFolder(root / "taker").update(status="running")
    assert "may go on" in str(goes(root, Rules(older_than=0))["taker"])


def test_rules(root: pathlib.Path):
    """Catches: rules that add up instead of narrowing, a NaN among values, best ones of other data taken for rivals."""
    assert goes(root, Rules(older_than=3600)) == {}
    assert goes(root, Rules(failed=True)) == {}
    rows = [row for row in Index(root).rows() if row["kind"] == "run"]
    ranked = sorted(rows, key=lambda row: (row["metrics"]["bits_per_byte"], row["path"]))
    assert goes(root, Rules(keep_best=3)).keys() == {row["path"] for row in ranked[3:]}
    diverged = [
        {**rows[0], "path": path, "metrics": {**rows[0]["metrics"], "bits_per_byte": value}}
        for path, value in (("bad", 3.0), ("worst", math.nan), ("good", 1.0))
    ]
    named = plan_of(diverged, Rules(keep_best=1))
    assert [one["path"] for one in named] == ["bad", "worst"]
    assert seconds_of("36h") == seconds_of("1.5d") == 129600
    for wrong in (lambda: seconds_of("3"), Rules, lambda: Rules(keep_best=-1)):
        with pytest.raises(RequestError):
            wrong()


def test_checkpoints_go_and_the_rest_stays(root: pathlib.Path, command):
    """Without --yes nothing goes. Catches: half a run after a kill; a longer run that starts over in silence."""
    rules = (f"--root={root}", "--older_than=0h", "--where=path=taker")
    code, found, said = command("prune", *rules, "--dry_run")
    assert (code, [one["path"] for one in found]) == (0, ["taker"])
    assert "would go" in said
    assert (root / "taker" / "checkpoints").is_dir()
    metrics = (root / "taker" / "metrics.jsonl").read_bytes()
    code, found, _ = command("prune", *rules, "--yes")
    assert [one["deleted"] for one in found] == [True]
    assert not (root / "taker" / "checkpoints").exists()
    assert (root / "taker" / "metrics.jsonl").read_bytes() == metrics
    assert RunFolder(root / "taker").status()["pruned"]["bytes"] == found[0]["bytes"]
    assert command("prune", *rules, "--yes", "--dry_run")[0] == 2
    config = ablax.resolve(RunFolder(root / "taker").config(), {"training.steps": 3})
    with pytest.raises(RequestError, match="were pruned on"):
        ablax.train(config, root / "taker", progress=False)


def test_a_kill_leaves_a_run_or_none(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Catches: deleting in place. What a kill leaves is no run, and the next call removes it."""
    rules, rows = Rules(older_than=0, whole=True), Index(root).rows()
    plan = [one for one in plan_of(rows, rules) if one["path"] == "taker"]

    def dying(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ablax.catalog.prune.shutil.rmtree", dying)
        with pytest.raises(KeyboardInterrupt):
            bury(plan, rules)
    assert not (root / "taker").exists()
    (grave,) = root.glob(f"{GRAVE}*")
    assert (grave / "checkpoints").is_dir()
    assert "taker" not in by_path(Index(root).rows())
    clear_graves(Index(root).rows())
    assert not grave.exists()


def test_a_run_that_is_being_written_stays(root: pathlib.Path):
    """The lock counts, whatever run.json says. Catches: checkpoints that go under a run that somebody just started."""
    rules = Rules(older_than=0)
    plan = [one for one in plan_of(Index(root).rows(), rules) if one["path"] == "taker"]
    script = (
        "import sys, time\nfrom ablax.run import RunFolder\nwith RunFolder(sys.argv[1]).lock():\n"
    )
    script += "    print('held', flush=True)\n    time.sleep(60)\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(root / "taker")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(RESEARCH)},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        (one,) = bury(plan, rules)
        assert (one["deleted"], one["kept"]) == (False, "another process writes it")
        assert (root / "taker" / "checkpoints").is_dir()
    finally:
        holder.kill()
        holder.wait()


def test_a_thousand_runs_are_listed_at_once(tmp_path: pathlib.Path):
    """Catches: a list that reads every folder each time. The second one may take a third of the first."""
    for number in range(300):
        folder = tmp_path / "runs" / str(number)
        knobs = {f"group{i}": {f"knob{j}": number * j for j in range(10)} for i in range(10)}
        write_json(folder / "config.json", {"name": "many", **knobs})
        write_json(folder / "run.json", {"name": "many", "status": "finished", "step": number})
        (folder / "metrics.jsonl").write_text(
            "".join(
                f'{{"step": {s}, "split": "validation", "loss": {s / 7}}}\n' for s in range(100)
            )
        )
    seconds = []
    for _ in range(2):
        start = time.process_time()
        index = Index(tmp_path / "runs", cache=tmp_path / "cache")
        seconds.append(time.process_time() - start)
    assert index.read == 0
    assert len(index.rows()) == 300
    assert seconds[1] < seconds[0] / 3


def test_diff_names_the_files_that_differ(root: pathlib.Path):
    """Catches: files of one side only where the other keeps none, code of another start, equal files that are named."""
    cells = [root / "sweep" / name for name in ("first", "second")]
    for cell, code in zip(cells, ("a" * 64, "b" * 64), strict=True):
        shutil.copytree(root / "taker", cell)
        RunFolder(cell).update(starts=[{"code": {"sha256": code}}])
    assert ablax_diff(*cells)["files"] == {}
    for code, text in (("a" * 16, "x = 1\n"), ("b" * 16, "x = 2\n"), ("c" * 16, "x = 3\n")):
        kept = root / "sweep" / "code" / code / "ablax"
        kept.mkdir(parents=True)
        (kept / "edited.py").write_text(text)
        (kept / "same.py").write_text("y = 1\n")
    (kept.parent.parent / ("b" * 16) / "ablax" / "new.py").write_text("z = 1\n")
    files = ablax_diff(*cells)["files"]
    assert files.keys() == {"ablax/edited.py", "ablax/new.py"}
    assert files["ablax/new.py"][0] is None
    assert ablax_diff(cells[0], root / "parent")["files"] == {}

"""Lists the runs and sweeps under a folder: what was tried, what produced a number, what descends from what.

ablax runs --root=DIR --where="metrics.bits_per_byte<2 and status=finished and model.width>=64 and tag=good"
ablax runs --root=DIR --find=1.8292         the runs, and arms of sweeps, whose number rounds to this
ablax runs --root=DIR --find=3fa9c1         by the beginning of a hash: code, commit, configuration, data, parameters
ablax runs --root=DIR --tree                who descends from whom
ablax runs --root=DIR --disk                checkpoints, evaluations, ledger, total
ablax runs --root=DIR --sql="select path, value from metrics where name='bits_per_byte' and last order by value"
ablax runs note RUN "text"                  ablax runs tag RUN +good -old
ablax runs prune --root=DIR --older_than=30d --keep_best=5
"""

import argparse
from pathlib import Path
from typing import Any

from ablax.commands import output
from ablax.config import RequestError
from ablax.history import LOSSES

COLUMNS = (
    "run",
    "kind",
    "status",
    "step",
    "parameters",
    "seconds",
    "metric",
    "value",
    "tags",
    "differs in",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `ablax runs`, and its actions."""
    _root(parser, None)
    parser.add_argument("--where", metavar="CONDITION", help="only those for which it holds")
    parser.add_argument("--find", metavar="TEXT", help="a number, or the beginning of a hash")
    parser.add_argument("--sql", metavar="SELECT", help="a query over the index, read only")
    parser.add_argument("--tree", action="store_true", help="show who descends from whom")
    parser.add_argument("--disk", action="store_true", help="show what each run occupies")
    parser.add_argument("--rebuild", action="store_true", help="read every folder again")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", help="prune, note or tag")
    prune = actions.add_parser("prune", help="delete checkpoints, or whole runs")
    _root(prune, argparse.SUPPRESS)
    prune.add_argument("--where", default=argparse.SUPPRESS, help="only those for which it holds")
    prune.add_argument("--older_than", metavar="AGE", help="ended before: 12h, 30d, 2w")
    prune.add_argument(
        "--keep_best", type=int, metavar="N", help="all but the best N of each data set"
    )
    prune.add_argument(
        "--metric", default="bits_per_byte", help="of --keep_best (default bits_per_byte)"
    )
    prune.add_argument("--failed", action="store_true", help="only runs that failed")
    prune.add_argument(
        "--whole", action="store_true", help="whole runs, not only their checkpoints"
    )
    prune.add_argument(
        "--dry_run", action="store_true", help="only show (what it does without --yes)"
    )
    prune.add_argument("--yes", action="store_true", help="delete")
    note = actions.add_parser("note", help="add a note to a run")
    note.add_argument("run", type=Path, metavar="RUN")
    note.add_argument("text", metavar="TEXT")
    tag = actions.add_parser("tag", help="put tags on a run, or take them off")
    tag.add_argument("run", type=Path, metavar="RUN")
    tag.add_argument("tags", nargs=argparse.REMAINDER, metavar="+TAG|-TAG")


def _root(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument(
        "--root", type=Path, default=default, metavar="DIR", help="the folder that holds the runs"
    )


def run(args: argparse.Namespace) -> None:
    """JSON on stdout, a table on stderr."""
    if args.action in ("note", "tag"):
        return _annotate(args)
    if args.root is None:
        raise RequestError("ablax runs needs --root=DIR, the folder that holds the runs")
    from ablax.catalog.finding import find
    from ablax.catalog.index import Index
    from ablax.catalog.listing import listed

    index = Index(args.root, rebuild=args.rebuild)
    for path, why in index.unread.items():
        output.say(f"{path} is left out: {why}")
    if args.action == "prune":
        return _prune(args, index)
    if args.sql or args.find:
        found = index.select(args.sql) if args.sql else find(index, args.find)
        output.emit(found)
        columns = list(found[0]) if found else ["nothing"]
        output.table(args.sql or args.find, columns, [tuple(row.values()) for row in found])
        return None
    rows = listed(index, args.where)
    if args.disk:
        _disk(args, rows)
        return None
    output.emit(rows)
    output.table(f"runs under {args.root}", COLUMNS, [_row(row) for row in rows])
    if args.tree:
        from ablax.catalog.lineage import tree

        for line in tree(rows) or ["no run here descends from another"]:
            output.say(line)
    return None


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    metrics = row["metrics"]
    metric = next((name for name in ("bits_per_byte", *LOSSES) if name in metrics), None)
    sweep = row["kind"] == "sweep"
    status = f"{row['finished']} of {row['cells']} cells" if sweep else row["status"]
    differs = ", ".join(f"{path}={value}" for path, value in row["differs"].items())
    tags = " ".join(row.get("tags", []))
    numbers = (row.get("step"), row.get("parameters"), row["seconds"])
    value = metrics[metric] if metric else None
    return (row["path"], row["kind"], status, *numbers, metric, value, tags, differs)


def _disk(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    from ablax.catalog.usage import PARTS, usage

    runs = [row for row in rows if row["kind"] == "run"]
    found = [
        {"path": row["path"], "workdir": row["workdir"], **usage(Path(row["workdir"]))}
        for row in runs
    ]
    output.emit(found)
    names = (*PARTS, "total")
    shown = [(row["path"], *(output.size(row[name]) for name in names)) for row in found]
    total = sum(row["total"] for row in found)
    output.table(
        f"disk under {args.root}", ("run", *names), shown, [f"{output.size(total)} in all"]
    )


def _prune(args: argparse.Namespace, index: Any) -> None:
    from ablax.catalog.prune import Rules, bury, clear_graves, plan_of, seconds_of
    from ablax.catalog.where import matching

    if args.yes and args.dry_run:
        raise RequestError("--yes deletes and --dry_run does not; keep one of them")
    age = seconds_of(args.older_than) if args.older_than else None
    rules = Rules(age, args.keep_best, args.metric, args.failed, args.whole)
    rows = index.rows()
    chosen = matching(index, args.where) if args.where else None
    found = plan_of(rows, rules, chosen)
    if args.yes:
        clear_graves(rows)
        found = bury(found, rules)
    output.emit(found)
    shown = [(one["path"], output.size(one["bytes"]), one["kept"] or "goes") for one in found]
    total = output.size(sum(one["bytes"] for one in found if one["kept"] is None))
    what = "whole runs" if args.whole else "checkpoints"
    note = f"{total} of {what} {'deleted' if args.yes else 'would go; --yes deletes them'}"
    output.table(f"{what} under {args.root}", ("run", "bytes", "fate"), shown, [note])


def _annotate(args: argparse.Namespace) -> None:
    from ablax.catalog.notes import add_note, change_tags

    if args.action == "note":
        output.emit(add_note(args.run, args.text))
        return
    signs = {tag[:1] for tag in args.tags}
    if not args.tags or not signs <= {"+", "-"}:
        raise RequestError("ablax runs tag RUN needs tags with their signs: +good -old")
    add, remove = ([tag[1:] for tag in args.tags if tag[0] == sign] for sign in "+-")
    output.emit(change_tags(args.run, add, remove))

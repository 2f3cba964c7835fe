"""A sweep that may end early: which cells are wanted, by the boundary that its plan declares, and what is claimed."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ablax.config import RequestError
from ablax.run import now
from ablax.sweeps.boundaries import Boundary
from ablax.sweeps.cells import read_record
from ablax.sweeps.look_log import changed_since, log_looks, read_looks
from ablax.sweeps.looks import Look, Verdict, judge, restored
from ablax.sweeps.statistics import Comparison, paired

Values = Mapping[str, Mapping[int, float]]


class Early:
    """Makes the looks of a plan as its cells finish.

    Args:
      sweep: the sweep's folder.
      plan: what `read_plan` returns.
      rule: the boundary.
      say: takes a line of talk.
    """

    def __init__(
        self, sweep: Path, plan: Mapping[str, Any], rule: Boundary, say: Callable[[str], None]
    ):
        self.sweep, self.plan, self.rule, self.say = sweep, plan, rule, say
        self._found: dict[str, dict[int, float]] = {arm: {} for arm in plan["arms"]}
        self._settled: set[str] = set()

    def held(self) -> set[str]:
        """The cells that no look wants, as things stand; every look and decision is logged and said once."""
        verdicts = verdicts_of(self.plan, self.rule, self._values())
        for record in log_looks(self.sweep, verdicts.values(), now()):
            said = f"{record['arm']} after {len(record['seeds'])} seeds: {record['decision']}"
            self.say(f"look at {said} (p = {record['p']:.2g} over all looks)")
        return unwanted(self.plan, verdicts)

    def _values(self) -> dict[str, dict[int, float]]:
        """Arm -> seed -> value of the finished cells; the record of one that is finished is read once."""
        for cell in self.plan["cells"]:
            folder = cell["folder"]
            if cell["repeat"] or folder in self._settled:
                continue
            record = read_record(self.sweep, folder)
            if record["status"] == "finished":
                self._settled.add(folder)
                if (value := record["metrics"].get(self.plan["metric"])) is not None:
                    self._found[cell["arm"]][cell["seed"]] = float(value)
        return self._found


def seeds_of(plan: Mapping[str, Any]) -> list[int]:
    """The seeds in the plan's order, which every arm must have.

    Raises:
      RequestError: if one has others.
    """
    by_arm: dict[str, list[int]] = {}
    for cell in plan["cells"]:
        if not cell["repeat"]:
            by_arm.setdefault(cell["arm"], []).append(cell["seed"])
    baseline = by_arm[plan["baseline"]]
    for arm, seeds in by_arm.items():
        if seeds != baseline:
            raise RequestError(
                f"looks need the same seeds, in the same order, in every arm: {arm!r} has {seeds} and "
                f"{plan['baseline']!r} {baseline}; make them by one product with seeds(n)"
            )
    return baseline


def rule_of(plan: Mapping[str, Any]) -> Boundary | None:
    """The boundary that a plan declares, if it does."""
    declared = plan.get("analysis", {}).get("looks")
    return None if declared is None else restored(declared)


def verdicts_of(plan: Mapping[str, Any], rule: Boundary, values: Values) -> dict[str, Verdict]:
    """What the looks say; see `judge`."""
    return judge(rule, values, plan["baseline"], plan["arms"], seeds_of(plan))


def unwanted(plan: Mapping[str, Any], verdicts: Mapping[str, Verdict]) -> set[str]:
    """The cells that no look wants, as things stand."""
    seeds = seeds_of(plan)
    wanted = {arm: verdict.wanted for arm, verdict in verdicts.items()}
    wanted[plan["baseline"]] = max(wanted.values(), default=len(seeds))
    return {
        cell["folder"] for cell in plan["cells"] if seeds.index(cell["seed"]) >= wanted[cell["arm"]]
    }


def comparisons(plan: Mapping[str, Any], rule: Boundary, values: Values) -> dict[str, Comparison]:
    """Arm -> what may be claimed after looking more than once: p over all looks, Holm's over all arms, and an interval
    that holds with those of the other looks. It takes the seeds of the last look, whatever else has finished."""
    found = {}
    for arm, verdict in verdicts_of(plan, rule, values).items():
        if arm not in values:
            continue
        if not verdict.looks:
            why = f"no look yet: the first one takes {verdict.wanted} seeds of both"
            found[arm] = Comparison(0, None, why=why)
            continue
        found[arm] = _comparison(verdict, verdict.looks[-1], values[plan["baseline"]], values[arm])
    return found


def _comparison(
    verdict: Verdict, look: Look, baseline: Mapping[int, float], arm: Mapping[int, float]
) -> Comparison:
    if look.difference is None:
        return Comparison(len(look.seeds), None, why=look.why)
    ours, theirs = ({seed: side[seed] for seed in look.seeds} for side in (arm, baseline))
    last = paired(theirs, ours)
    return dataclasses.replace(
        last,
        interval=look.interval,
        p=look.p,
        p_holm=verdict.p_holm,
        detectable=None,
        why=None if look.interval else "so early no interval is bounded: its looks go on",
    )


def told(sweep: Path, plan: Mapping[str, Any], rule: Boundary, values: Values) -> list[str]:
    """What a report says of the looks, one line each; also which are not what the log says."""
    declared = plan["analysis"]["looks"]
    options = ", ".join(f"{name}={value}" for name, value in declared.items() if name != "rule")
    lines = [
        f"Looked at early, by the boundary that the plan declared: {declared['rule']} ({options}); p and intervals "
        "hold over all looks, and looks.jsonl has each"
    ]
    verdicts = verdicts_of(plan, rule, values)
    for arm, verdict in verdicts.items():
        if verdict.looks:
            seeds = len(verdict.looks[-1].seeds)
            lines.append(f"{arm}: {verdict.state} after {seeds} of {len(seeds_of(plan))} seeds")
    changed = changed_since(read_looks(sweep), verdicts)
    return lines + [f"changed after a look, {one}" for one in changed]


def marked(
    plan: Mapping[str, Any], rule: Boundary, values: Values, records: Mapping[str, Any]
) -> dict[str, Any]:
    """The cells' records, where those that never ran because no look wanted them are `unneeded`."""
    unneeded = unwanted(plan, verdicts_of(plan, rule, values))
    return {
        folder: {**record, "status": "unneeded"}
        if folder in unneeded and record["status"] == "missing"
        else record
        for folder, record in records.items()
    }

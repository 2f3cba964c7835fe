"""Launch files for clusters: filled in, read by the tools that will read them, and refused where they would break."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ablax.commands.output import FAILED, PREEMPTED, REFUSED

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
CLUSTER = Path(__file__).resolve().parent.parent / "scripts" / "cluster"
GIVEN = {
    "sbatch.sh": ["config=ablax:pretrain/decoder:tiny", "workdir=/shared/run"],
    "tpu_pod.sh": ["config=ablax:pretrain/decoder:tiny", "workdir=/shared/run"],
    "jobset.yaml": [
        "config=ablax:pretrain/decoder:tiny",
        "workdir=/runs/a",
        "image=registry/ablax:1",
        "claim=runs",
        "processes=4",
        "name=mine",
    ],
}


def render(*arguments):
    return subprocess.run([CLUSTER / "render", *arguments], capture_output=True, text=True)


def readme_commands(folder):
    """Runs the README's commands, but for sbatch itself, with the project's scripts in a folder."""
    block = next(b for b in README.split("```")[1::2] if "scripts/cluster/render" in b)
    fill, submit = block.strip().splitlines()
    (folder / "scripts").symlink_to(CLUSTER.parent)
    subprocess.run(fill, shell=True, cwd=folder, check=True)
    return submit


def test_the_commands_of_the_readme(tmp_path):
    """A real sbatch takes the result in tests/test_slurm.py."""
    assert readme_commands(tmp_path) == "sbatch job.sh"
    text = (tmp_path / "job.sh").read_text()
    assert "#SBATCH --ntasks-per-node=2\n" in text
    assert "train --config=ablax:pretrain/decoder --workdir=runs/decoder " in text


def test_every_template_is_tested():
    assert {p.name for p in CLUSTER.iterdir() if p.suffix in (".sh", ".yaml")} == set(GIVEN)


@pytest.mark.parametrize("name", GIVEN)
def test_rendered(name):
    """Catches: a placeholder that is left, a `$` of the shell that was not doubled, a declaration that is printed."""
    done = render(name, *GIVEN[name])
    assert done.returncode == 0, done.stderr
    assert "#: " not in done.stdout
    assert "ablax:pretrain/decoder:tiny" in done.stdout
    if name.endswith(".sh"):
        assert "${" not in done.stdout.replace("${tpu[@]}", "").replace("${where[@]}", "")
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
        if shutil.which("shellcheck"):
            checked = subprocess.run(
                ["shellcheck", "-"], input=done.stdout, capture_output=True, text=True
            )
            assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config=a"], "workdir=... is missing: the run's folder"),
        (["config=a", "workdir=b", "node=2"], "unknown parameter node; there are: config, "),
        (["config=$(reboot)", "workdir=b"], "must be made of words"),
        (["config=a", "workdir=b;reboot"], "must be made of words"),
    ],
)
def test_refused(arguments, message):
    done = render("sbatch.sh", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_parameters_are_listed():
    done = render("sbatch.sh")
    assert done.returncode == 0
    assert "(required)" in done.stdout
    assert "workdir" in done.stdout


def test_sbatch_directives_come_before_commands():
    """Catches: a directive that sbatch does not see, because it stops at the first command."""
    lines = render("sbatch.sh", *GIVEN["sbatch.sh"]).stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert max(directives) < first
    assert {lines[i].split()[1] for i in directives} >= {"--requeue", "--signal=USR1@150"}


def after(manifest, code):
    """What a JobSet does when a process ends with an exit code: of the rules of Job and JobSet the first that match."""
    policy = manifest["spec"]["failurePolicy"]
    (workers,) = manifest["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    # A Job that made one pod again would have a rank without the others.
    assert job["backoffLimit"] == 0
    (container,) = job["template"]["spec"]["containers"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        asked = rule["onExitCodes"]
        assert (asked["operator"], asked["containerName"]) == ("In", container["name"])
        if code in asked["values"]:
            reason, done = "PodFailurePolicy", f"exit code {code} matching {rule['action']} rule"
            message = f"Container {container['name']} for pod default/mine-0 failed with {done} at index {index}"
            break
    for rule in policy["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"  # which counts towards maxRestarts


def test_jobset_tells_exit_codes_apart():
    """Catches: a preemption that counts as a failure, a wrong request that is tried again, a failure without end."""
    manifest = yaml.safe_load(render("jobset.yaml", *GIVEN["jobset.yaml"]).stdout)
    assert after(manifest, PREEMPTED) == "RestartJobSetAndIgnoreMaxRestarts"
    assert after(manifest, REFUSED) == "FailJobSet"
    for code in (FAILED, 137):  # 137: killed, as for want of memory
        assert after(manifest, code) == "RestartJobSet"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 3


def test_jobset_is_one_run_of_several_processes():
    """Catches: pods that do not know how many they are, or look for process 0 under a name that no pod has."""
    manifest = yaml.safe_load(render("jobset.yaml", *GIVEN["jobset.yaml"]).stdout)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (workers,) = manifest["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 4, 4)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] > 120
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    # A JobSet names its pods JOBSET-JOB-JOBINDEX-PODINDEX, in a domain of its own name.
    assert environment == {
        "ABLAX_PROCESS_COUNT": "4",
        "ABLAX_COORDINATOR": f"mine-{workers['name']}-0-0.mine:8476",
    }
    assert manifest["spec"]["network"]["enableDNSHostnames"] is True
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
    assert volumes[mounts["/runs"]] == "runs"

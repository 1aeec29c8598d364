"""``omnimri jobs``: the training jobs of a Kubernetes cluster, and the rendering of jobs for ``--dry-run``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.errors import BadInput
from components.settings import Settings, StageName, load_settings
from flows.cli.options import JsonOption, ProfileOption, SetOption

if TYPE_CHECKING:
    from components.launching.job import JobStatus
    from components.launching.kubernetes.launcher import KubernetesLauncher

app = typer.Typer(no_args_is_help=True, help="List, follow, cancel and clean up the training jobs of a Kubernetes cluster.")

KeyArgument = Annotated[str, typer.Argument(help="name of the job, as omnimri jobs list shows it")]


def placement_overrides(launcher: str | None, nodes: int | None, gpus: int | None) -> list[str]:
    """Return ``--launcher``, ``--nodes`` and ``--gpus`` as overrides of settings: one process for each GPU, or CPU node."""
    overrides = [f"launcher={launcher}"] if launcher else []
    if nodes is not None or gpus is not None:
        overrides += [f"kubernetes.nodes={nodes or 1}", f"kubernetes.gpus_per_node={gpus or 0}"]
        overrides.append(f"training.processes={(nodes or 1) * (gpus or 1)}")
    return overrides


def cluster_objects(settings: Settings, until: StageName | None = None) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the objects that a cluster would get for the stages up to one, and remarks; the cluster is not contacted.

    Names contain the digest of the corpus; before there is a corpus, the digest of the settings takes its place.

    Raises:
        BadInput: the settings launch on this machine.
    """
    from components.curation.corpus import SUMMARY, Corpus
    from components.home import Home
    from components.launching.kubernetes.manifests import RenderingName, render
    from components.training import stage_jobs

    if settings.launcher != "kubernetes":
        raise BadInput("only a cluster gets objects", where="--dry-run", remedy="add --launcher kubernetes")
    home, requested = Home.open(), settings.kubernetes.rendering
    mounts, remarks = list(settings.kubernetes.volumes.values()), []
    rendering: RenderingName = "jobset" if requested == "auto" else requested
    curated = (home.curated / SUMMARY).exists()
    digest = Corpus.open(home.curated).digest if curated else settings.digest()
    if not curated:
        remarks.append("# No corpus yet: the digests in the names will differ.")
    if mounts and not any(home.root.is_relative_to(mount) for mount in mounts):
        home = Home(mounts[0] / "omnimri", mounts[0] / "data")
        remarks.append(f"# OMNIMRI_HOME is on no volume of the pods: rendered with OMNIMRI_HOME={home.root}")
    rendered = [render(job, rendering, settings.kubernetes.namespace) for job in stage_jobs(digest, settings, home, until)]
    return remarks, [thing for rendering in rendered for thing in rendering.objects]


def print_objects(remarks: list[str], objects: list[dict[str, Any]]) -> None:
    """Print objects as YAML, with remarks as comments."""
    import yaml

    print("\n".join([*remarks, yaml.safe_dump_all(objects, sort_keys=False)]), end="")


def _launcher(profile: str, overrides: list[str] | None) -> KubernetesLauncher:
    from components.launching.kubernetes.api_client import Cluster
    from components.launching.kubernetes.launcher import KubernetesLauncher

    settings = load_settings(profile, overrides).kubernetes
    return KubernetesLauncher(Cluster.connect(settings.namespace, settings.context), settings.rendering)


@app.command("list", epilog="Example: omnimri jobs list")
def list_jobs(profile: ProfileOption = "demo", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """List the jobs, including those that ended."""
    from flows.cli.output import emit

    statuses = _launcher(profile, overrides).jobs()
    if as_json:
        emit({"jobs": statuses})
    else:
        print("\n".join(format_jobs(statuses)))


def format_jobs(statuses: list[JobStatus]) -> list[str]:
    """Return a line for each job and its detail indented below: names and commands must stay whole on terminals of any width."""
    width = max([len(status.key) for status in statuses], default=0)
    lines = [] if statuses else ["no jobs"]
    for status in statuses:
        lines.append(f"{status.key:<{width}}  {status.state:<13}  {status.nodes} nodes  {status.created}".rstrip())
        lines += [f"    {line}" for line in status.detail.splitlines()]
    return lines


@app.command("logs", epilog="Example: omnimri jobs logs alignment-0123456789 --follow")
def show_logs(
    key: KeyArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="keep printing until the job ends")] = False,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
) -> None:
    """Print the log of a job's pods, each line after its rank."""
    for line in _launcher(profile, overrides).find(key).stream(follow=follow):
        print(line, flush=True)


@app.command("cancel", epilog="Example: omnimri jobs cancel alignment-0123456789")
def cancel(key: KeyArgument, profile: ProfileOption = "demo", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Cancel a job and remove its objects from the cluster; its checkpoints stay."""
    from flows.cli.output import emit

    _launcher(profile, overrides).find(key).cancel()
    if as_json:
        emit({"cancelled": key})
    else:
        print(f"{key} is cancelled; its checkpoints stay", file=sys.stderr)


@app.command("clean", epilog="Example: omnimri jobs clean")
def clean(profile: ProfileOption = "demo", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Remove the objects of jobs that ended, and incomplete objects that a killed process left."""
    from flows.cli.output import emit

    removed = _launcher(profile, overrides).clean_up()
    if as_json:
        emit({"removed": removed})
    else:
        print(f"removed: {', '.join(removed) or 'nothing'}")

"""``omnimri jobs``: the training jobs of a cluster; and what the other commands need to place training there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.errors import BadInput
from components.settings import Settings, StageName, load_settings

if TYPE_CHECKING:
    from components.launching.kubernetes.launcher import KubernetesLauncher

app = typer.Typer(no_args_is_help=True, help="The training jobs of a Kubernetes cluster.")

KeyArgument = Annotated[str, typer.Argument(help="name of the job, as omnimri jobs list shows it")]
ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="a profile whose settings say which cluster")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one setting; repeatable")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


def placement(launcher: str | None, nodes: int | None, gpus: int | None) -> list[str]:
    """``--launcher``, ``--nodes`` and ``--gpus`` as overrides of settings: one process for each GPU, or for each node without."""
    overrides = [f"launcher={launcher}"] if launcher else []
    if nodes is not None or gpus is not None:
        if launcher != "kubernetes":
            raise BadInput("machines are counted on a cluster", where="--nodes, --gpus", remedy="add --launcher kubernetes")
        overrides += [f"kubernetes.nodes={nodes or 1}", f"kubernetes.gpus_per_node={gpus or 0}"]
        overrides.append(f"training.processes={(nodes or 1) * (gpus or 1)}")
    return overrides


def cluster_objects(settings: Settings, until: StageName) -> tuple[list[str], list[dict[str, Any]]]:
    """What a cluster would be given for the stages up to one, and remarks about it; nothing is sent, not even a question.

    Names carry the digest of the corpus; before there is one, that of the settings stands in.
    """
    from components.curation.corpus import SUMMARY, Corpus
    from components.home import Home
    from components.launching.kubernetes.manifests import RenderingName, render
    from components.training import stage_jobs

    if settings.launcher != "kubernetes":
        raise BadInput("only a cluster is given objects", where="--dry-run", remedy="add --launcher kubernetes")
    home, wanted = Home.open(), settings.kubernetes.rendering
    mounts, remarks = list(settings.kubernetes.volumes.values()), []
    rendering: RenderingName = "jobset" if wanted == "auto" else wanted
    known = (home.curated / SUMMARY).exists()
    digest = Corpus.open(home.curated).digest if known else settings.digest()
    if not known:
        remarks.append("# No corpus yet: the digests in the names will be others.")
    if mounts and not any(home.root.is_relative_to(mount) for mount in mounts):
        home = Home(mounts[0] / "omnimri", mounts[0] / "data")
        remarks.append(f"# OMNIMRI_HOME lies on no volume of the pods: shown as it would be with OMNIMRI_HOME={home.root}")
    rendered = [render(job, rendering, settings.kubernetes.namespace) for job in stage_jobs(digest, settings, home, until)]
    return remarks, [thing for one in rendered for thing in one.objects]


def print_objects(remarks: list[str], objects: list[dict[str, Any]]) -> None:
    """Print objects as YAML, with remarks as its comments."""
    import yaml

    print("\n".join([*remarks, yaml.safe_dump_all(objects, sort_keys=False)]), end="")


def _launcher(profile: str, overrides: list[str] | None) -> KubernetesLauncher:
    from components.launching.kubernetes.api_client import Cluster
    from components.launching.kubernetes.launcher import KubernetesLauncher

    where = load_settings(profile, overrides).kubernetes
    return KubernetesLauncher(Cluster.connect(where.namespace, where.context), where.rendering)


@app.command("list", epilog="Example: omnimri jobs list")
def list_jobs(profile: ProfileOption = "demo", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """List the jobs, those that ended included."""
    from flows.cli.output import emit, table

    statuses = _launcher(profile, overrides).jobs()
    if as_json:
        emit({"jobs": statuses})
        return
    cells = [[status.key, status.state, str(status.nodes), status.created, status.detail] for status in statuses]
    table("Jobs", ["job", "state", "nodes", "created", "detail"], cells)


@app.command("logs", epilog="Example: omnimri jobs logs alignment-0123456789 --follow")
def show_logs(
    key: KeyArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until the job ends")] = False,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
) -> None:
    """Show what the pods of a job write, each line after its rank."""
    for line in _launcher(profile, overrides).find(key).stream(follow=follow):
        print(line, flush=True)


@app.command("cancel", epilog="Example: omnimri jobs cancel alignment-0123456789")
def cancel(key: KeyArgument, profile: ProfileOption = "demo", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """End a job and remove all that was made for it; its checkpoints stay."""
    from flows.cli.output import emit

    _launcher(profile, overrides).find(key).cancel()
    if as_json:
        emit({"cancelled": key})
    else:
        print(f"{key} is cancelled; its checkpoints stay", file=sys.stderr)


@app.command("clean", epilog="Example: omnimri jobs clean")
def clean(profile: ProfileOption = "demo", overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Remove the records of jobs that ended, and what a killed process left half made."""
    from flows.cli.output import emit

    removed = _launcher(profile, overrides).clean_up()
    if as_json:
        emit({"removed": removed})
    else:
        print(f"removed: {', '.join(removed) or 'nothing'}")

"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

ProfileOption = Annotated[
    str, typer.Option("--profile", "-p", metavar="NAME|PATH", help="settings: a profile of profiles/, or a YAML file")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one setting; repeatable")]
LauncherOption = Annotated[str | None, typer.Option("--launcher", help="where training runs: local or kubernetes")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
NameOption = Annotated[str, typer.Option(help="name of the registered model")]
VersionArgument = Annotated[str, typer.Argument(help="version number or alias, e.g. 3 or staging")]
ReasonOption = Annotated[str, typer.Option(help="reason, recorded in the promotion history; no patient names")]


class Alias(StrEnum):
    """Aliases to which a version can be promoted."""

    staging = "staging"
    production = "production"

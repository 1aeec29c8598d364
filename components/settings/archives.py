"""Settings of image archives (PACS)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from components.settings.section import Section


class ServerSettings(Section):
    """One image archive (PACS). User name, password or token come from the environment, never from a file of settings."""

    url: str = Field(description="DICOMweb: https://host/dicom-web; DIMSE: dicom://AE_TITLE@host:port, with TLS dicom+tls://")
    ae_title: str = Field(
        default="OMNIMRI", min_length=1, max_length=16, description="application entity title of this machine (DIMSE)"
    )
    ca: Path | None = Field(
        default=None, description="PEM file of the authority that signed the server's certificate; none = those of the system"
    )
    certificate: Path | None = Field(default=None, description="PEM file of this machine's certificate, if the server asks for one")
    certificate_key: Path | None = Field(default=None, description="PEM file of its private key; none = in the certificate's file")


class PacsSettings(Section):
    """Image archives that datasets come from and that results may go to."""

    servers: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], ServerSettings] = Field(
        default={}, description="name -> archive"
    )
    allow_hosts: tuple[str, ...] = Field(
        default=(), description="hosts outside of this machine and cluster that images may come from and results may go to"
    )
    timeout_s: float = Field(default=60.0, gt=0, description="timeout of a connection, and of a pause within an answer, seconds")
    patience_s: float = Field(default=300.0, ge=0, description="time to wait for a server that does not answer, seconds")
    batch_gb: float = Field(
        default=4.0, gt=0, description="size at which fetched series are ingested and their originals removed, gigabytes"
    )
    poll_s: float = Field(default=60.0, gt=0, description="time between two questions of the watcher to a server, seconds")

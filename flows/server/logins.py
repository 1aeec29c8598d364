"""Logins that Prefect's and MLflow's servers ask for, one variable each: ``USER:PASSWORD``.

Prefect has such a variable itself. MLflow's basic authentication keeps users in a database; ``omnimri serve`` makes it anew at each
start, with this one user, so that a changed password counts. Commands and services send the logins that their environment has.
"""

from __future__ import annotations

import configparser
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from components.errors import BadInput
from components.files import atomic_file
from components.home import Home, sqlite_address
from components.network import LOOPBACK

PREFECT_LOGIN, MLFLOW_LOGIN = "PREFECT_SERVER_API_AUTH_STRING", "OMNIMRI_MLFLOW_LOGIN"
LOGINS = {"Prefect": PREFECT_LOGIN, "MLflow": MLFLOW_LOGIN}
"""Server -> the variable of its login."""
PASSWORD_CHARACTERS = 12
"""Fewest characters of a password; MLflow requires as many."""


@dataclass(frozen=True)
class Logins:
    """Logins of the servers; "" = none.

    Attributes:
        prefect, mlflow: ``USER:PASSWORD``.
    """

    prefect: str = field(default="", repr=False)
    mlflow: str = field(default="", repr=False)

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Logins:
        """Read the logins of an environment.

        Raises:
            BadInput: one is not USER:PASSWORD, or its password is short.
        """
        for name in (PREFECT_LOGIN, MLFLOW_LOGIN):
            user, separator, password = environment.get(name, "").partition(":")
            if separator + user and (not user or len(password) < PASSWORD_CHARACTERS):
                remedy = f"write USER:PASSWORD, with a password of at least {PASSWORD_CHARACTERS} characters"
                raise BadInput("not a login", where=name, remedy=remedy)
        return cls(environment.get(PREFECT_LOGIN, ""), environment.get(MLFLOW_LOGIN, ""))

    def require_for(self, host: str, is_forced: bool) -> None:
        """Check that servers that other machines can reach ask for logins.

        Raises:
            BadInput: they do not, and the user did not allow that.
        """
        if host not in LOOPBACK and not is_forced and not (self.prefect and self.mlflow):
            missing = [name for name, login in ((PREFECT_LOGIN, self.prefect), (MLFLOW_LOGIN, self.mlflow)) if not login]
            remedy = f"set {' and '.join(missing)} to USER:PASSWORD, or add --without-login, e.g. behind a proxy with a login"
            raise BadInput("other machines can reach this address without a login", where=f"--host {host}", remedy=remedy)

    def client_environment(self) -> dict[str, str]:
        """Return the variables by which Prefect's and MLflow's clients log in."""
        user, _, password = self.mlflow.partition(":")
        prefect = {"PREFECT_API_AUTH_STRING": self.prefect} if self.prefect else {}
        return prefect | ({"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password} if self.mlflow else {})

    def prepare_mlflow(self, home: Home) -> dict[str, str]:
        """Write the settings of MLflow's authentication, without the password; return the variables of its server."""
        user, _, password = self.mlflow.partition(":")
        users, path = home.mlflow / "login.db", home.mlflow / "login.ini"
        users.unlink(missing_ok=True)
        settings = configparser.ConfigParser(interpolation=None)
        settings["mlflow"] = {
            "default_permission": "READ",
            "database_uri": sqlite_address(users, "pysqlite").replace("%", "%%"),
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        }
        with atomic_file(path) as temporary, temporary.open("w") as stream:
            settings.write(stream)
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(path),
            "MLFLOW_AUTH_ADMIN_USERNAME": user,
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        }


def log_in() -> None:
    """Let the clients of this process send the logins of its environment, unless they have others."""
    for name, value in Logins.read(os.environ).client_environment().items():
        os.environ.setdefault(name, value)


def server_without_login(error: BaseException) -> str | None:
    """Return the server that refused a request for want of a (right) login; None for any other error."""
    servers = {"mlflow": "MLflow", "prefect": "Prefect"}
    server = servers.get(type(error).__module__.partition(".")[0])
    return server if re.search(r"code 401\b|401 Unauthorized", str(error)) else None

"""The commands about who may do what: ``forebay secret create``, ``forebay token create|inspect``.

They need the cluster's secret and no cluster, so they run where nodes run.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from client.cli.output import AsJson, Column, Output
from client.errors import InvalidRequest, Misconfigured, Unauthenticated

__all__ = ["SecretFile", "register"]

_LONGEST_S = 3650 * 86_400
_LAST_S = 253_402_300_799  # The end of the year 9999, behind which there are no dates.
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SPAN = re.compile(r"([1-9][0-9]{0,8})([smhd])")

SecretFile = Annotated[
    Path | None, typer.Option("--secret-file", envvar="FOREBAY_SECRET_FILE", help="The cluster's secret.", metavar="PATH")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    secret = typer.Typer(help="Make the cluster's secret, which its nodes share.")
    secret.command("create")(create_secret)
    # With one command alone Typer would leave out its name.
    secret.callback()(lambda: None)
    app.add_typer(secret, name="secret")
    token = typer.Typer(help="Make and look at tokens, by which clients may do what.")
    token.command("create")(create_token)
    token.command("inspect")(inspect_token)
    app.add_typer(token, name="token")


def create_secret(
    path: Annotated[Path, typer.Argument(help="Where; its directory must be there.")], as_json: AsJson = False
) -> None:
    """Make a file with a random secret, for its owner alone. One that is there already stays as it is."""
    from storenode import secret

    made = secret.create_secret(path)
    text = f"made {path}" if made else f"{path} is there already and stays as it is"
    Output(as_json=as_json).document({"path": str(path), "created": made}, text)


def create_token(
    bucket: Annotated[list[str] | None, typer.Option(help="A bucket, or '*' for all; several: again.")] = None,
    prefix: Annotated[str, typer.Option(help="Only keys that begin so; end it with / for a folder.")] = "",
    verbs: Annotated[str, typer.Option(help="read, write, delete, admin; several with commas.")] = "read",
    admin: Annotated[bool, typer.Option("--admin", help="All verbs on all buckets, instead of these three.")] = False,
    expires: Annotated[str, typer.Option(help="After how long: 30d, 12h, 90m or 45s.")] = "30d",
    name: Annotated[str, typer.Option(help="Who holds it, for people to read.")] = "anonymous",
    cluster: Annotated[str | None, typer.Option(help="Id of the one cluster that takes it.")] = None,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, alone on standard output: export FOREBAY_TOKEN=$(forebay token create ...)."""
    from storenode.grants import Grant, Scope, everything
    from storenode.secret import read_secret
    from storenode.tokens import mint

    if admin and (bucket or prefix):
        raise InvalidRequest("--admin is for all buckets; leave out --bucket and --prefix, or --admin")
    if not admin and not bucket:
        raise InvalidRequest("name the --bucket that the token is for, '*' for all of them, or give --admin")
    if secret_file is None:
        raise Misconfigured(
            "a token is signed with the cluster's secret: name its file by --secret-file or FOREBAY_SECRET_FILE"
        )
    wanted = [verb.strip() for verb in verbs.split(",") if verb.strip()]
    scopes = [everything()] if admin else [Scope.of(bucket=one, verbs=wanted, prefix=prefix) for one in bucket or ()]
    now_s = time.time()
    grant = Grant(subject=name, scopes=tuple(scopes), expires_s=int(now_s) + _span_s(expires))
    token = mint(read_secret(secret_file), grant, now_s=now_s, cluster_id=cluster)
    output = Output(as_json=as_json)
    output.document({"token": token, **_described(grant.claims())}, token)
    if not as_json:
        output.note(f"{name}: {'; '.join(map(str, scopes))}; until {output.show(grant.expires_s, 'time')}")


def inspect_token(
    token: Annotated[str, typer.Argument(help="The token; - reads it from standard input, which nobody else sees.")] = "-",
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what a token says, and whether it is genuine, if the secret is at hand."""
    from storenode.grants import Scope
    from storenode.secret import read_secret
    from storenode.tokens import claims_of, signed_by

    text = (sys.stdin.readline() if token == "-" else token).strip()
    if not text:
        raise Unauthenticated("there is no token on standard input")
    claims = claims_of(text)
    genuine = "unknown: name the secret by --secret-file"
    if secret_file is not None:
        genuine = "yes" if signed_by(read_secret(secret_file), text) is not None else "no: another secret signed it"
    columns: dict[str, Column] = {
        "subject": "text",
        "scopes": "text",
        "cluster": "text",
        "issued_s": "time",
        "expires_s": "time",
        "expired": "text",
        "genuine": "text",
    }
    described = {**_described(claims), "genuine": genuine}
    if not as_json:
        described["scopes"] = [str(Scope.from_json(scope)) for scope in claims.get("scopes") or ()]
    Output(as_json=as_json).fields(described, columns)


def _described(claims: dict[str, Any]) -> dict[str, Any]:
    """What a token says. Anybody may have made it."""
    issued_s, expires_s = (_moment(claims.get(name)) for name in ("iat", "exp"))
    return {
        "subject": claims.get("sub"),
        "scopes": claims.get("scopes"),
        "cluster": claims.get("aud"),
        "issued_s": issued_s,
        "expires_s": expires_s,
        "expired": None if expires_s is None else time.time() > expires_s,
    }


def _moment(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value <= _LAST_S else None


def _span_s(text: str) -> int:
    match = _SPAN.fullmatch(text)
    span_s = int(match[1]) * _UNITS_S[match[2]] if match else 0
    if not 0 < span_s <= _LONGEST_S:
        raise InvalidRequest(f"--expires {text!r}: expected a number with s, m, h or d, such as 30d, and 10 years at most")
    return span_s

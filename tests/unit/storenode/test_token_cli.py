"""``forebay secret`` and ``forebay token``: what they make, what they print where, and what they refuse."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.cli.app import build_app
from storenode.secret import Secret, read_secret
from storenode.tokens import Tokens
from tests.support.tokens import OTHER, make_token

DAY_S = 86_400
Forebay = Callable[..., Any]


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "secret"
    monkeypatch.setenv("FOREBAY_SECRET_FILE", str(path))
    forebay("secret", "create", str(path))
    return path


def forebay(*args: str, code: int = 0, stdin: str | None = None) -> tuple[str, str]:
    """Standard output and standard error of a command line."""
    result = CliRunner().invoke(build_app(), list(args), input=stdin, prog_name="forebay")
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def granted(secret: Secret, token: str) -> tuple[str, list[str], float]:
    """Who holds the token, its scopes in words, and in how many seconds it ends."""
    grant = Tokens(secret, cluster_id="c1", leeway_s=0, max_known=1).grant(token.encode())
    return grant.subject, list(map(str, grant.scopes)), grant.expires_s - time.time()


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert forebay("secret", "create", str(path)) == (f"made {path}\n", "")
    before = path.read_bytes()
    assert forebay("secret", "create", str(path))[0] == f"{path} is there already and stays as it is\n"
    assert json.loads(forebay("secret", "create", str(path), "--json")[0]) == {"path": str(path), "created": False}
    assert path.read_bytes() == before
    assert before.decode().strip() not in "".join(forebay("secret", "create", str(path)))


def test_a_token_comes_alone_on_standard_output(secret: Path) -> None:
    out, err = forebay("token", "create", "--bucket", "data", "--prefix", "run/", "--verbs", "read,write", "--name", "ann")
    subject, scopes, left_s = granted(read_secret(secret), out.strip())
    assert out.count("\n") == 1
    assert (subject, scopes) == ("ann", ["read, write on data/run/*"])
    assert 30 * DAY_S - 60 < left_s <= 30 * DAY_S
    assert err.startswith("ann: read, write on data/run/*; until ")


@pytest.mark.parametrize(
    ("arguments", "scopes"),
    [
        (["--admin"], ["read, write, delete, admin on all buckets"]),
        (["--bucket", "*"], ["read on all buckets"]),
        (["--bucket", "one", "--bucket", "two", "--verbs", "delete"], ["delete on one", "delete on two"]),
    ],
)
def test_scopes_are_as_asked(secret: Path, arguments: list[str], scopes: list[str]) -> None:
    assert granted(read_secret(secret), forebay("token", "create", *arguments)[0].strip())[1] == scopes


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("90m", 5400), ("12h", 43_200), ("2d", 2 * DAY_S)])
def test_a_token_ends_when_asked(secret: Path, text: str, seconds: int) -> None:
    left_s = granted(read_secret(secret), forebay("token", "create", "--admin", "--expires", text)[0].strip())[2]
    assert seconds - 30 < left_s <= seconds


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the --bucket"),
        (["--admin", "--bucket", "data"], "--admin is for all buckets"),
        (["--bucket", "data", "--verbs", "fly"], "use read, write, delete, admin"),
        (["--bucket", "data", "--verbs", ""], "use read, write, delete, admin"),
        (["--bucket", "data", "--verbs", "admin", "--prefix", "a"], "admin is for whole buckets"),
        (["--bucket", "Data"], "bucket name 'Data'"),
        (["--admin", "--expires", "never"], "--expires 'never': expected"),
        (["--admin", "--expires", "0d"], "--expires '0d': expected"),
        (["--admin", "--expires", "999999999d"], "10 years at most"),
        (["--admin", "--secret-file", "/nowhere/secret"], "there is no secret at /nowhere/secret"),
    ],
)
@pytest.mark.usefixtures("secret")
def test_what_can_not_be_meant_is_refused(arguments: list[str], said: str) -> None:
    out, err = forebay("token", "create", *arguments, code=1)
    assert out == "" and said in err


def test_without_a_secret_there_is_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREBAY_SECRET_FILE", raising=False)
    assert "FOREBAY_SECRET_FILE" in forebay("token", "create", "--admin", code=1)[1]


def test_a_token_says_what_it_is(secret: Path) -> None:
    token = forebay("token", "create", "--bucket", "data", "--cluster", "c7", "--expires", "1h", "--name", "ann")[0]
    found = json.loads(forebay("token", "inspect", "-", "--json", stdin=token)[0])
    assert found == json.loads(forebay("token", "inspect", token.strip(), "--json")[0])
    assert found.pop("expires_s") - found.pop("issued_s") == 3600
    assert found == {
        "subject": "ann",
        "scopes": [{"bucket": "data", "verbs": ["read"]}],
        "cluster": "c7",
        "expired": False,
        "genuine": "yes",
    }
    assert "scopes\tread on data\n" in forebay("token", "inspect", stdin=token)[0]
    made = json.loads(forebay("token", "create", "--admin", "--json")[0])
    assert made["scopes"] == [{"bucket": "*", "verbs": ["read", "write", "delete", "admin"]}]


def test_a_token_is_readable_without_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREBAY_SECRET_FILE", raising=False)
    found = json.loads(forebay("token", "inspect", make_token("read", expires_s=1), "--json")[0])
    assert (found["expired"], found["genuine"]) == (True, "unknown: name the secret by --secret-file")


@pytest.mark.usefixtures("secret")
def test_a_token_of_another_secret_is_seen() -> None:
    assert "genuine\tno: another secret signed it" in forebay("token", "inspect", make_token("read", secret=OTHER))[0]


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c"])
def test_what_is_no_token_is_said(token: str) -> None:
    assert "no token" in forebay("token", "inspect", stdin=token, code=1)[1]

"""The cluster's secret: made once whoever comes first, read strictly, never shown."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest

from client.errors import DiskFailed, Misconfigured
from storenode.secret import Secret, create_secret, read_secret
from tests.support.filesystem import ScriptedFileSystem, SimulatedCrash

KEY, SECOND = bytes(range(32)), bytes(range(100, 164))


def test_a_secret_is_made_for_its_owner_alone_and_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert create_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    (key,) = read_secret(path).keys
    assert len(key) == 32
    assert [found.name for found in tmp_path.iterdir()] == ["secret"]


def test_an_existing_secret_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(KEY.hex())
    assert not create_secret(path)
    assert path.read_text() == KEY.hex()


def test_of_racing_starters_one_makes_the_secret_and_all_have_the_same(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from storenode.secret import create_secret, read_secret\n"
        "path = pathlib.Path(sys.argv[1]); sys.stdin.read(); print(create_secret(path), read_secret(path).keys[0].hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "secret")]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    said = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert sorted(made for made, _ in said) == ["False", "False", "False", "True"]
    assert len({key for _, key in said}) == 1


def test_a_crash_at_any_call_leaves_a_whole_secret_or_none(tmp_path: Path) -> None:
    fs = ScriptedFileSystem()
    create_secret(tmp_path / "whole", fs=fs)
    for at in range(len(fs.calls)):
        path = tmp_path / f"secret-{at}"
        fs = ScriptedFileSystem()
        fs.fail(SimulatedCrash(), at=at)
        with pytest.raises(SimulatedCrash):
            create_secret(path, fs=fs)
        if path.exists():
            read_secret(path)
        # Nobody is told of a secret that a power cut could still take away.
        again = ScriptedFileSystem()
        create_secret(path, fs=again)
        assert again.calls[-1].method == "sync"


def test_a_disk_that_fails_is_said(tmp_path: Path) -> None:
    fs = ScriptedFileSystem()
    fs.fail(OSError(5, "Input/output error"), method="sync_data")
    with pytest.raises(DiskFailed):
        create_secret(tmp_path / "secret", fs=fs)
    assert list(tmp_path.iterdir()) == []


def test_where_no_secret_can_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"no secret can be made at .*nowhere/secret: No such file"):
        create_secret(tmp_path / "nowhere" / "secret")


def test_keys_are_in_hex_or_base64_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    lines = [KEY.hex(), SECOND.hex().upper(), base64.b64encode(KEY).decode(), base64.urlsafe_b64encode(SECOND).decode()]
    path.write_text("\n".join([f"  {line}\r\n" for line in lines]))
    assert read_secret(path).keys == (KEY, SECOND, KEY, SECOND)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected 1 to 8 lines"),
        (b"\n \n", "expected 1 to 8 lines"),
        ((KEY.hex().encode() + b"\n") * 9, "expected 1 to 8 lines"),
        (b"a" * 20_000, "expected 1 to 8 lines"),
        (KEY.hex().encode() + b"\npassword", "key 2 is no 32 bytes"),
        (KEY[:31].hex().encode(), "key 1 is no 32 bytes"),
        (base64.b64encode(KEY[:31]), "key 1 is no 32 bytes"),
        (b"\x9f\n\x00" + b"\xff" * 64, "key 1 is no 32 bytes|lines"),
    ],
)
def test_what_is_no_good_secret_is_refused_and_not_shown(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match=said) as refused:
        read_secret(path)
    assert "password" not in refused.value.message and KEY[:31].hex() not in refused.value.message
    with pytest.raises(Misconfigured, match=said):
        create_secret(path)


def test_a_missing_secret_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"there is no secret at .*; `forebay secret create .*` makes one"):
        read_secret(tmp_path / "secret")
    with pytest.raises(Misconfigured, match="can't be read: Is a directory"):
        read_secret(tmp_path)


def test_a_secret_does_not_show_its_keys() -> None:
    assert repr(Secret(KEY, SECOND)) == str(Secret(KEY, SECOND)) == "<Secret of 2 keys>"

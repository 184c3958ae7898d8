"""README shows only what works: its commands and its Python, run as shown on a cluster that ``forebay up`` started."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
README_PORTS = ("7070", "7071", "7072")


@contextmanager
def _cluster(directory: Path) -> Iterator[list[str]]:
    """The endpoints of ``forebay up`` on free ports."""
    command = [sys.executable, "-m", "client.cli", "up", "--nodes", "3", "--data", str(directory), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield [node["endpoint"] for node in json.loads(process.stdout.readline())["nodes"]]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


def _commands() -> list[str]:
    lines = re.findall(r"^    ((?:forebay|curl) .*)$", README, re.MULTILINE)
    return [line for line in lines if not line.startswith("forebay up")]


def test_the_commands_and_the_python_of_the_readme_work(tmp_path: Path) -> None:
    with _cluster(tmp_path) as endpoints:
        environment = {
            **os.environ,
            "FOREBAY_ENDPOINT": ",".join(endpoints),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        commands = _commands()
        assert len(commands) >= 9, "README has changed its form; this test has to follow"
        for command in commands:
            for port, endpoint in zip(README_PORTS, endpoints, strict=True):
                command = command.replace(f"http://127.0.0.1:{port}", endpoint)
            if command.startswith("curl"):
                command += " --fail --silent --show-error"
            subprocess.run(command, shell=True, check=True, cwd=ROOT, env=environment)
        blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        assert len(blocks) == 3
        subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True, env=environment, cwd=ROOT)

"""The four clients that people have run unchanged against a real server: a whole loop each, with real training.

The base model is the tiny random one: what is tested is the contract, not what a model says.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving import running

CLIENTS = Path(__file__).parent / "clients"
NODE = ("node", "--no-warnings", "--experimental-websocket")  # Node 20 has WebSocket only behind this flag

COMMANDS = [
    pytest.param((sys.executable,), "script.py", id="requests script"),
    pytest.param(NODE, "page.mjs", id="fetch page", marks=pytest.mark.needs("node")),
    pytest.param(NODE, "component.mjs", id="component", marks=pytest.mark.needs("node")),
    pytest.param(("bash",), "sequence.sh", id="curl sequence", marks=pytest.mark.needs("curl")),
]


@pytest.mark.parametrize(("command", "client"), COMMANDS)
def test_a_client_goes_through_the_loop(
    command: tuple[str, ...], client: str, tmp_path: Path, tiny_model: Path, database_url: str
) -> None:
    """The client loads, generates, annotates, trains and ends well, and an adapter is there."""
    program = shutil.which(command[0]) or command[0]
    with running(tmp_path / "home", MODEL=str(tiny_model), DATABASE_URL=database_url) as server:
        ended = subprocess.run(
            [program, *command[1:], str(CLIENTS / client), server.url],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr + (server.home / "server.log").read_text()
        assert "succeeded" in ended.stdout
        assert list((server.home / "outputs").glob("li-*-1/adapter_model.safetensors"))

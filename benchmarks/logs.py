"""Does a stalled client delay the others? A run's lines at many WebSockets, from the print to the client.

    python -m benchmarks.logs [clients]      200, two rounds of some 15 seconds

train.sh prints the time every 20 ms; each client notes when it has a line. In the second round one more client has
taken nothing since its handshake. Clients and server share the machine, so what the clients take is in the figures.
"""

import asyncio
import socket
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from benchmarks import direct
from benchmarks.serving import Server, running

LINES = 500
SCRIPT = f"""exec "$PYTHON" -u -c 'import time
for _ in range({LINES}):
    print(time.time_ns())
    time.sleep(0.02)'
"""
PAIR = {"mode": "single", "human_input": "Hi.", "chosen": "Hello.", "rejected": "No."}
NEVER_READING = (
    b"GET /ws/train/logs?after=0 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def main() -> None:
    """Print the table."""
    clients = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(direct.machine())
    print("| clients | stalled | lines | p50, ms | p99, ms | max, ms |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "train.sh"
        script.write_text(SCRIPT)
        with running(Path(name) / "home", TRAIN_SCRIPT=str(script), MODEL="base") as server:
            server.call("POST", "/api/dataset/add", PAIR)
            for stalled in (0, 1):
                waits = sorted(asyncio.run(_round(server, clients, stalled)))
                p50, p99 = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
                print(f"| {clients} | {stalled} | {len(waits)} | {p50:.0f} | {p99:.0f} | {waits[-1]:.0f} |")


async def _round(server: Server, clients: int, stalled: int) -> list[float]:
    """Milliseconds from print to client, of each line at each client."""
    deaf = [socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) for _ in range(stalled)]
    for one in deaf:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        one.sendall(NEVER_READING)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        following = [asyncio.create_task(_follow(session, server.url)) for _ in range(clients)]
        await asyncio.sleep(3)
        await asyncio.to_thread(server.call, "POST", "/api/train/start")
        waits = [wait for each in await asyncio.gather(*following) for wait in each]
    for one in deaf:
        one.close()
    return waits


async def _follow(session: aiohttp.ClientSession, url: str) -> list[float]:
    waits: list[float] = []
    async with session.ws_connect(url + "/ws/train/logs") as following:
        async for message in following:
            said = message.json()
            if said["type"] == "log":
                waits.append((time.time_ns() - int(said["message"])) / 1e6)
                if len(waits) == LINES:
                    break
    return waits


if __name__ == "__main__":
    main()

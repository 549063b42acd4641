"""The WebSocket that shows a run's log."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse, WSCloseCode, WSMsgType

from prefanno.keys import LOOP, SOCKETS
from prefanno.training.log import Line
from prefanno.web import training_answers, training_logs
from tests.conftest import Client, MakeClient
from tests.web.conftest import LASTING, WAIT_S, MakeTrainer, never_reading, refused, until

pytestmark = pytest.mark.sqlite_only  # what is told is read from files

LOGS, FILE, START, STOP = "/ws/train/logs", "/api/train/log", "/api/train/start", "/api/train/stop"
IDLE: dict[str, Any] = {"type": "status", "running": False}
RUNNING: dict[str, Any] = {"type": "status", "running": True}
HEARTBEAT = {"type": "heartbeat"}
SLOWLY = "for i in $(seq 400); do echo $i; sleep 0.002; done"
WIDE = 'line=$(printf "%02000d" 0); for i in $(seq 12); do for j in $(seq 500); do echo $line; done; sleep 0.2; done'

Socket = ClientWebSocketResponse[bool]


def _numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


async def _connect(client: Client) -> tuple[Socket, list[str], bool]:
    """A new connection, its history's messages, and whether a run is under way."""
    socket = await client.ws_connect(LOGS)
    history, status = await _next(socket), await _next(socket)
    assert set(history) == {"type", "run", "logs"} and history["type"] == "history"
    assert all(training_answers.LogLine().validate(line) == {} for line in history["logs"])
    assert set(status) == {"type", "running"} and status["type"] == "status"
    return socket, [line["message"] for line in history["logs"]], status["running"]


async def _next(socket: Socket) -> dict[str, Any]:
    message: dict[str, Any] = await socket.receive_json(timeout=WAIT_S)
    return message


async def _rest(socket: Socket) -> list[str]:
    """The messages of all lines until the run has ended; nothing but lines comes before that."""
    lines = []
    while (message := await _next(socket)) != IDLE:
        assert set(message) == {"type", "run", "time", "message", "next"} and message["type"] == "log"
        lines.append(message["message"])
    return lines


async def test_history_then_status_then_lines_then_the_end(make_trainer: MakeTrainer) -> None:
    """A client that watches a whole run gets an empty history, idle, running, each line in order, and idle."""
    client = await make_trainer("seq 30; echo last")
    socket, history, running = await _connect(client)
    assert (history, running) == ([], False)
    await client.post(START)
    assert await _next(socket) == RUNNING
    assert await _rest(socket) == [*_numbers(1, 30), "last"]


async def test_each_change_is_told_once(make_trainer: MakeTrainer) -> None:
    """Starts and stops reach every client as one status each."""
    client = await make_trainer("sleep 1000")
    sockets = [(await _connect(client))[0] for _ in range(2)]
    for _ in range(2):
        await client.post(START)
        await client.post(STOP)
    for socket in sockets:
        await socket.send_str("ping")
        told = [await _next(socket) for _ in range(5)]
        assert told == [RUNNING, IDLE, RUNNING, IDLE, HEARTBEAT]


async def test_only_the_text_ping_is_answered(client: Client) -> None:
    """Each text frame `ping` gets a heartbeat; other frames get nothing and do no harm."""
    socket, _, _ = await _connect(client)
    for text in ("PING", "", "pong", '{"type": "ping"}', "ping "):
        await socket.send_str(text)
    await socket.send_bytes(b"ping")
    await socket.send_str("ping")
    assert await _next(socket) == HEARTBEAT
    with pytest.raises(TimeoutError):
        await socket.receive(timeout=0.1)


async def test_heartbeats_come_unasked(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client gets heartbeats while nothing happens, and while lines come without a pause."""
    monkeypatch.setattr(training_logs, "HEARTBEAT_S", 0.03)
    client = await make_trainer("while true; do echo hello; sleep 0.001; done")
    socket, _, _ = await _connect(client)
    for _ in range(3):
        assert await _next(socket) == HEARTBEAT
    await client.post(START)
    kinds: list[str] = []
    while kinds.count("heartbeat") < 5 or "log" not in kinds:
        kinds.append((await _next(socket))["type"])


async def test_history_is_of_the_last_run(make_trainer: MakeTrainer, make_client: MakeClient) -> None:
    """After a run its last 1,000 lines are the history, also in the next server on the same home."""
    client = await make_trainer("seq 1500")
    await client.post(START)
    await client.app[LOOP].training.wait()
    socket, history, running = await _connect(client)
    assert (history, running) == (_numbers(501, 1500), False)
    await socket.close()
    await client.close()
    _, history, running = await _connect(await make_client(client.app[LOOP].settings))
    assert (history, running) == (_numbers(501, 1500), False)


async def test_the_next_server_takes_up_the_run(make_trainer: MakeTrainer, make_client: MakeClient) -> None:
    """A run outlives its server: the next one shows what it printed, and tells its end."""
    client = await make_trainer(LASTING)
    socket, _, _ = await _connect(client)
    await client.post(START)
    assert [(await _next(socket))["type"] for _ in range(2)] == ["status", "log"]
    settings = client.app[LOOP].settings
    await client.close()
    client = await make_client(settings)
    await until(lambda: client.app[LOOP].training.news.log.count)
    socket, history, running = await _connect(client)
    assert (history, running) == (["hello"], True)
    await client.post(STOP)
    assert await _rest(socket) == []


async def test_no_line_is_lost_or_doubled(make_trainer: MakeTrainer) -> None:
    """Clients that connect in the middle of a run get every line once, in history or live."""
    client = await make_trainer(SLOWLY)
    await client.post(START)
    connected = []
    for _ in range(8):
        connected.append(await _connect(client))
        await asyncio.sleep(0.05)
    assert connected[0][2] is True
    for socket, history, running in connected:
        assert history + (await _rest(socket) if running else []) == _numbers(1, 400)


async def test_a_line_between_reading_and_telling_is_not_doubled(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that connects when lines have been read but not told yet gets them once."""
    client = await make_trainer(LASTING)
    supervisor = client.app[LOOP].training
    await client.post(START)
    read, told = asyncio.Event(), asyncio.Event()
    poll, to_thread = supervisor.news.log.poll, asyncio.to_thread

    async def held(function: Any, *arguments: Any, **named: Any) -> Any:
        result = await to_thread(function, *arguments, **named)
        if function == poll and isinstance(result, Sequence) and any(isinstance(line, Line) for line in result):
            read.set()
            await told.wait()
        return result

    monkeypatch.setattr(asyncio, "to_thread", held)
    await read.wait()
    socket, history, _ = await _connect(client)
    told.set()
    await client.post(STOP)
    assert history + await _rest(socket) == ["hello"]


async def _resume(client: Client, run: int | None, after: int) -> tuple[Socket, list[dict[str, Any]], bool]:
    """A connection of a client that has the run's lines up to the offset; what it lacked, each with its run."""
    found: list[dict[str, Any]] = []
    of = "" if run is None else f"&run={run}"
    socket = await client.ws_connect(f"{LOGS}?after={after}{of}")
    while (message := await _next(socket))["type"] == "history":
        found += [line | {"run": message["run"]} for line in message["logs"]]
    assert message["type"] == "status"
    return socket, found, message["running"]


async def test_who_connects_again_gets_what_came_since(make_trainer: MakeTrainer, make_client: MakeClient) -> None:
    """However often a client connects again, also to another server, it has each line of the file once."""
    client = await make_trainer(f"printf 'first\\n\\n'; {SLOWLY}; printf '\\xff谜\\nlast words'")
    settings = client.app[LOOP].settings
    await client.post(START)
    lines: list[str] = []
    run, after, running, connections = None, 0, True, 0
    while running:
        socket, found, running = await _resume(client, run, after)
        connections += 1
        while running and len(found) < 50:
            message = await _next(socket)
            if message["type"] == "status":
                running = message["running"]
            elif message["type"] == "log":
                found.append(message)
        await socket.close()
        lines += [line["message"] for line in found]
        run, after = (found[-1]["run"], found[-1]["next"]) if found else (run, after)
        if connections == 3:
            await client.close()
            client = await make_client(settings)
    assert connections >= 5
    assert lines == ["first", "", *_numbers(1, 400), "\ufffd谜", "last words"]
    assert "\n".join(lines).encode() == (settings.runs / "1" / "train.log").read_bytes().replace(
        b"\xff", b"\xef\xbf\xbd"
    )


async def test_who_missed_the_end_of_a_run_gets_it_and_the_next(make_trainer: MakeTrainer) -> None:
    """A client that has a part of an older run gets its rest, then all runs since, from their start, with their ids."""
    client = await make_trainer("seq 3")
    for _ in range(3):
        await client.post(START)
        await client.app[LOOP].training.wait()
    socket, found, running = await _resume(client, 1, 2)
    assert [(line["run"], line["message"]) for line in found] == [
        *((1, "2"), (1, "3")),
        *((run, number) for run in (2, 3) for number in ("1", "2", "3")),
    ]
    assert not running
    await client.post(START)
    assert await _next(socket) == RUNNING
    assert await _rest(socket) == _numbers(1, 3)


async def test_the_history_fits_one_message(make_trainer: MakeTrainer) -> None:
    """Of long lines the history has fewer: clients refuse messages of many megabytes."""
    client = await make_trainer("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last")
    await client.post(START)
    await client.app[LOOP].training.wait()
    _, history, _ = await _connect(client)
    assert history[-1] == "last"
    assert 900_000 < sum(map(len, history)) <= training_logs.LARGEST


async def test_an_offset_beyond_the_file_is_no_harm(make_trainer: MakeTrainer) -> None:
    """A client that says it has more than there is gets nothing of this run, and the next one in full."""
    client = await make_trainer("seq 3")
    socket, found, _ = await _resume(client, None, 10**12)
    assert found == []
    await client.post(START)
    assert await _next(socket) == RUNNING
    assert await _rest(socket) == _numbers(1, 3)
    _, found, _ = await _resume(client, 1, 10**12)
    assert found == []


async def test_progress_is_told_to_who_knows_of_it(make_trainer: MakeTrainer) -> None:
    """Only a client that speaks of offsets gets the states of a line that has not ended."""
    client = await make_trainer("printf '10%%'; sleep 1; printf '\\r90%%'; sleep 1; echo")
    plain, _, _ = await _connect(client)
    knowing, _, _ = await _resume(client, None, 0)
    await client.post(START)
    assert await _next(plain) == await _next(knowing) == RUNNING
    assert await _rest(plain) == ["90%"]
    told = [await _next(knowing) for _ in range(4)]
    assert told[:2] == [{"type": "progress", "message": text} for text in ("10%", "90%")]
    assert (told[2]["type"], told[2]["message"], told[3]) == ("log", "90%", IDLE)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("after=x", 400),
        ("after=-1", 400),
        ("run=0", 400),
        ("run=1&run=2", 400),
        ("since=1", 400),
        ("run=7&after=0", 404),
    ],
)
async def test_a_place_that_is_none_is_refused(client: Client, query: str, status: int) -> None:
    """What is no offset, and a run that is not there, is refused before the handshake."""
    await refused(await client.get(f"{LOGS}?{query}"), status)


async def test_the_file_is_there_to_the_byte(make_trainer: MakeTrainer) -> None:
    """The log comes as it was printed, whole or from an offset on; a run that is not there has none."""
    client = await make_trainer(r"printf 'one\r\x1b[1mtwo\xff\n'; printf three")
    await refused(await client.get(FILE), 404)
    await client.post(START)
    await client.app[LOOP].training.wait()
    printed = b"one\r\x1b[1mtwo\xff\nthree"
    answer = await client.get(FILE)
    assert (await answer.read(), answer.headers["Content-Type"]) == (printed, "text/plain; charset=utf-8")
    part = await client.get(f"{FILE}?run=1", headers={"Range": "bytes=4-"})
    assert (part.status, await part.read()) == (206, printed[4:])
    await refused(await client.get(f"{FILE}?run=2"), 404)


async def test_a_burst_of_lines_is_told_in_full(make_trainer: MakeTrainer) -> None:
    """A client that reads gets every line, also when many more than the backlog are printed at once."""
    client = await make_trainer("seq 30000")
    socket, _, _ = await _connect(client)
    await client.post(START)
    assert await _next(socket) == RUNNING
    assert await _rest(socket) == _numbers(1, 30_000)


async def test_a_run_that_prints_without_a_pause_can_be_watched_and_stopped(make_trainer: MakeTrainer) -> None:
    """While a run prints faster than anybody reads, its lines arrive, and stopping it works."""
    client = await make_trainer("while [ $SECONDS -lt 8 ]; do echo hello; done; sleep 1000")
    socket, _, _ = await _connect(client)
    await client.post(START)
    assert await _next(socket) == RUNNING
    assert (await _next(socket))["message"] == "hello"
    answer = await client.post(STOP)
    assert answer.status == 200


async def test_a_client_that_never_reads_is_cut_off(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes nothing loses its connection during the run; the others get every line."""
    monkeypatch.setattr(training_logs, "BACKLOG", 2000)
    client = await make_trainer(f"{WIDE}; sleep 1000")
    async with never_reading(client):
        await until(lambda: len(client.app[SOCKETS]) == 1)
        socket, _, _ = await _connect(client)
        await client.post(START)
        assert await _next(socket) == RUNNING
        lines = [await _next(socket) for _ in range(6000)]
        assert all(line["type"] == "log" for line in lines)
        await until(lambda: len(client.app[SOCKETS]) == 1)


async def test_without_a_handshake_the_answer_names_websocket(client: Client) -> None:
    """A plain GET is refused in the one shape, and says what the address is for."""
    answer = await client.get(LOGS)
    assert answer.status in (400, 426)
    assert "WebSocket" in (await refused(answer, answer.status))["detail"]


async def test_a_frame_that_is_too_long_ends_only_its_own_connection(client: Client) -> None:
    """A client that sends megabytes is closed; others go on."""
    greedy, _, _ = await _connect(client)
    other, _, _ = await _connect(client)
    with contextlib.suppress(ConnectionError):
        await greedy.send_str("x" * (5 << 20))
    await until(lambda: len(client.app[SOCKETS]) == 1)
    await other.send_str("ping")
    assert await _next(other) == HEARTBEAT


async def test_a_bug_closes_the_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug after the handshake ends the connection with the code for that, not with HTTP amid the frames."""

    def broken(_: object) -> None:
        raise RuntimeError("what only the log may know")

    monkeypatch.setattr(client.app[LOOP].training, "follow", broken)
    socket = await client.ws_connect(LOGS)
    message = await socket.receive(timeout=WAIT_S)
    assert message.type is WSMsgType.CLOSE and message.data == WSCloseCode.INTERNAL_ERROR
    assert "what only the log may know" in caplog.text and "Traceback" in caplog.text

"""Several processes on one port, for models so small that one interpreter is the limit.

    client ─▶ parent: accept ─▶ the worker with the fewest connections ─▶ [socket over a Unix pair] ─▶ uvicorn ─▶ engine

The parent only hands connections over. Left to the kernel, keep-alive connections can all end on one worker, which halves
the rate. A worker that ends unasked ends the service with an error: what runs us starts us whole again, and is told why.
Over each pair the worker says READY; the parent's half closed means: finish and end. Closed connections are counted in
memory that all share.
"""

import asyncio
import gc
import logging
import mmap
import multiprocessing
import os
import signal
import socket
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from types import FrameType

import app.main  # noqa: F401 (once, before the processes part)
from app.board import Board
from app.errors import ModelError, SettingsError
from app.server import DrainingServer, announce
from app.service import Service
from app.settings import Settings
from app.shortcut import PredictProtocol

log = logging.getLogger("convserve")

READY, CONNECTION, SERVING = b"r", b"c", b"s"


def serve_in_workers(settings: Settings, listener: socket.socket) -> int:
    """Serves until told to stop; returns the exit code: 1 if a worker could not start or ended unasked."""
    gc.freeze()  # what is loaded stays shared: the collector would write to every page
    board = Board(settings.workers)
    closed = memoryview(mmap.mmap(-1, 8 * settings.workers)).cast("Q")
    pairs = [socket.socketpair() for _ in range(settings.workers)]
    context = multiprocessing.get_context("fork")
    workers = []
    for number, (ours, _) in enumerate(pairs):
        process = context.Process(
            target=_work, args=(settings, listener, board, closed, pairs, number), name=f"worker-{number}"
        )
        process.start()
        workers.append(_Worker(process, ours, closed, number))
    for _, theirs in pairs:
        theirs.close()
    return asyncio.run(_Dispatcher(listener, workers, settings.drain_seconds).run())


@dataclass(slots=True, eq=False)
class _Worker:
    process: BaseProcess
    channel: socket.socket
    closed: memoryview
    number: int
    handed_over: int = 0
    ready: bool = False
    ended: bool = False

    @property
    def connections(self) -> int:
        return self.handed_over - self.closed[self.number]


class _Dispatcher:
    """The parent's loop."""

    def __init__(self, listener: socket.socket, workers: list[_Worker], drain_seconds: float) -> None:
        self._listener = listener
        self._workers = workers
        self._drain_seconds = drain_seconds
        self._all_ended = asyncio.Event()
        self._accepting: asyncio.Task[None] | None = None
        self._draining = self._stopping = self._failed = False

    async def run(self) -> int:
        self._loop = asyncio.get_running_loop()
        for worker in self._workers:
            self._loop.add_reader(worker.channel, self._hear, worker)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        self._loop.add_signal_handler(
            signal.SIGHUP, lambda: os.kill(self._workers[0].process.pid or 0, signal.SIGHUP)
        )  # all follow
        await self._all_ended.wait()
        for worker in self._workers:
            worker.process.join()
        log.info("stopped")
        return int(self._failed or any(worker.process.exitcode for worker in self._workers))

    def _hear(self, worker: _Worker) -> None:
        if not worker.channel.recv(len(READY)):
            self._on_end(worker)
            return
        worker.ready = True
        if all(one.ready for one in self._workers) and not self._stopping:
            self._accepting = self._loop.create_task(self._accept())

    def _on_end(self, worker: _Worker) -> None:
        self._loop.remove_reader(worker.channel)
        worker.ended = True
        if not self._stopping:
            self._failed = True
            worker.process.join()
            if worker.ready:
                log.error("%s ended with %s: stopping the others", worker.process.name, worker.process.exitcode)
            self._stop()
        if all(one.ended for one in self._workers):
            self._all_ended.set()

    async def _accept(self) -> None:
        self._listener.listen(2048)
        self._listener.setblocking(False)
        self._workers[0].channel.send(SERVING)
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError as error:  # out of file descriptors, say: the next attempt would fail as well
                log.error("no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(1)
                continue
            with connection:
                self._hand_over(connection)

    def _hand_over(self, connection: socket.socket) -> None:
        worker = min((one for one in self._workers if not one.ended), key=lambda one: one.connections)
        try:
            socket.send_fds(worker.channel, [CONNECTION], [connection.fileno()], socket.MSG_DONTWAIT)
            worker.handed_over += 1
        except OSError as error:
            log.error("%s takes no connection: %s", worker.process.name, error.strerror)

    def _on_signal(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if not worker.ended:
                os.kill(worker.process.pid or 0, number)
        if number == signal.SIGTERM and not self._draining and self._drain_seconds:
            self._draining = True
            log.info("draining: unready now, closing in %g s", self._drain_seconds)
            self._loop.call_later(self._drain_seconds, self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._accepting is not None:
            self._accepting.cancel()
        self._loop.call_soon(self._listener.close)  # after the task let go of it
        for worker in self._workers:
            if not worker.ended:
                worker.channel.shutdown(socket.SHUT_WR)


def _work(
    settings: Settings,
    listener: socket.socket,
    board: Board,
    closed: memoryview,
    pairs: list[tuple[socket.socket, socket.socket]],
    number: int,
) -> None:
    os.setsid()  # Ctrl-C reaches the parent alone, which passes it on
    port = listener.getsockname()[1]
    listener.close()
    for place, (ours, theirs) in enumerate(pairs):
        ours.close()
        if place != number:
            theirs.close()
    board.own = number
    try:
        service = Service.create(_share_of(settings), board)
        server = _WorkerServer(service, pairs[number][1], port, closed[number : number + 1])
    except (ModelError, SettingsError) as error:
        raise SystemExit(f"convserve: {error}" if number == 0 else 1) from None
    server.run(sockets=[])


def _share_of(settings: Settings) -> Settings:
    """One worker's part of what the service may take."""
    parts = {
        "max_queue_size": -(-settings.max_queue_size // settings.workers),
        "max_queue_bytes": -(-settings.max_queue_bytes // settings.workers),
        "cache_bytes": settings.cache_bytes // settings.workers,
    }
    return settings.model_copy(update=parts)


class _WorkerServer(DrainingServer):
    """Gets its connections from the parent instead of a listener, and ends when the parent says so or is gone."""

    def __init__(self, service: Service, channel: socket.socket, port: int, closed: memoryview) -> None:
        super().__init__(service)
        self._channel = channel
        self._port = port
        self.closed = closed  # of one number: the connections that ended

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel, self._hear)
        self._channel.send(READY)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The parent says when the drain is over."""
        if sig == signal.SIGTERM:
            self._service.draining = True
        else:
            super().handle_exit(sig, frame)

    def _hear(self) -> None:
        said, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
        if said == SERVING:
            announce(self._service, self._port)
        for descriptor in descriptors:
            task = self._loop.create_task(self._connect(socket.socket(fileno=descriptor)))
            self.server_state.tasks.add(task)
            task.add_done_callback(self.server_state.tasks.discard)
        if not said:
            self._loop.remove_reader(self._channel)
            self._service.draining = self.should_exit = True

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: _Connection(self), connection, ssl=self.config.ssl)
        except OSError:
            self.closed[0] += 1


class _Connection(PredictProtocol):
    """As everywhere, but the server hears of its end."""

    def __init__(self, server: _WorkerServer) -> None:
        super().__init__(server.config, server.server_state, server.lifespan.state)
        self._server = server

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server.closed[0] += 1

"""HTTP/1.1 clients that measure: streams of requests from one thread over many connections.

A closed stream sends its next request once it has an answer; an open one sends at a rate, whatever
comes back, and notes how late it was itself. `wrk` is for rates that Python cannot reach.
"""

from __future__ import annotations

import gc
import json
import random
import select
import socket
import subprocess
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from support import percentile

# After the last request, for its answer.
DRAIN_S = 30


def request_bytes(url, path, body=b"", headers=()):
    lines = [f"POST {path} HTTP/1.1", f"host: {urlsplit(url).netloc}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in dict(headers).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Answers:
    """What became of requests: for each when it was sent, how long it took, in seconds, and its status."""

    answers: list[tuple[float, float, int]]

    def times_ms(self, status=200):
        return [took * 1e3 for _, took, got in self.answers if got == status]

    def count(self, status=200):
        return sum(got == status for _, _, got in self.answers)

    def statuses(self):
        return {status: self.count(status) for status in sorted({got for _, _, got in self.answers})}

    def p(self, percent, status=200):
        return percentile(self.times_ms(status), percent)


@dataclass
class Stream(Answers):
    """Requests of one kind, over connections of their own. Times in seconds."""

    url: str
    request: bytes
    connections: int
    rate: float | None = None  # a second; None is a closed loop
    keep_bodies: bool = False

    answers: list[tuple[float, float, int]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    begun: float = 0.0
    seconds: float = 0.0  # from the first request to the last answer
    lost: int = 0  # connections that ended without an answer
    unsent: int = 0  # no connection was free until the end


class Connection:
    def __init__(self, stream, poll):
        self.stream = stream
        self.poll = poll
        self.open()

    def open(self):
        address = urlsplit(self.stream.url)
        self.socket = socket.create_connection((address.hostname, address.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(DRAIN_S)
        self.poll.register(self.socket, select.EPOLLIN)
        self.buffer = b""
        self.sent = 0.0
        self.is_waiting = False

    def send(self):
        self.sent = time.perf_counter()
        self.is_waiting = True
        self.socket.sendall(self.stream.request)

    def receive(self):
        """Whether an answer, or its loss, is complete. A server may end what idles too long."""
        try:
            part = self.socket.recv(1 << 18)
        except ConnectionError:
            part = b""
        if not part:
            was_waiting = self.is_waiting
            self.stream.lost += was_waiting
            self.close()
            self.open()
            return was_waiting
        self.buffer += part
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return False
        length = content_length(self.buffer[:head].lower())
        if len(self.buffer) < head + 4 + length:
            return False
        stream = self.stream
        stream.answers.append((self.sent, time.perf_counter() - self.sent, int(self.buffer[9:12])))
        if stream.keep_bodies:
            stream.bodies.append(self.buffer[head + 4 :])
        self.buffer = b""
        self.is_waiting = False
        return True

    def close(self):
        self.poll.unregister(self.socket)
        self.socket.close()


def content_length(head):
    at = head.find(b"content-length:")
    if at < 0:
        raise ValueError(f"an answer without a length: {head!r}")
    end = head.find(b"\r\n", at)
    return int(head[at + 15 : end if end > 0 else len(head)])


class Schedule:
    """The moments of an open stream: so many a second, at random."""

    def __init__(self, number, stream, begun, end):
        self.stream, self.end = stream, end
        self.random = random.Random(number)  # others than another stream's
        self.next = begun
        self.step()

    def step(self):
        self.next += self.random.expovariate(self.stream.rate)

    def is_due(self, now):
        return self.next <= now and self.next < self.end


def drive(streams, seconds):
    """Runs all of them at once for so long, and until each request has its answer."""
    gc.collect()
    gc.disable()
    driver = Driver(streams, seconds)
    try:
        driver.run()
    finally:
        driver.close()
        gc.enable()
    return streams


class Driver:
    def __init__(self, streams, seconds):
        self.streams = streams
        self.poll = select.epoll()
        # In turn: a server ends those that idle.
        self.idle = {id(stream): deque(self.connect(stream)) for stream in streams}
        self.connections = {each.socket.fileno(): each for free in self.idle.values() for each in free}
        self.begun = time.perf_counter()
        self.end = self.begun + seconds
        opens = enumerate(stream for stream in streams if stream.rate)
        self.schedules = [Schedule(number, stream, self.begun, self.end) for number, stream in opens]
        self.flying = 0

    def connect(self, stream):
        return (Connection(stream, self.poll) for _ in range(stream.connections))

    def run(self):
        for stream in self.streams:
            while not stream.rate and self.idle[id(stream)]:
                self.send(stream)
        while True:
            now = time.perf_counter()
            for schedule in self.schedules:
                self.send_due(schedule, now)
            if now > self.end and not self.flying or now > self.end + DRAIN_S:
                break
            self.receive(self.pause(now))
        for stream in self.streams:
            stream.begun, stream.seconds = self.begun, time.perf_counter() - self.begun

    def send(self, stream):
        self.idle[id(stream)].popleft().send()
        self.flying += 1

    def send_due(self, schedule, now):
        """What no connection was free for by the end is not sent any more."""
        while schedule.is_due(now):
            if now > self.end:
                schedule.stream.unsent += 1
            elif self.idle[id(schedule.stream)]:
                schedule.stream.late.append(now - schedule.next)
                self.send(schedule.stream)
            else:
                return
            schedule.step()

    def pause(self, now):
        """Until the next request is due; the last millisecond is spent looking, as a sleep is not exact."""
        due = [schedule.next for schedule in self.schedules if schedule.next < self.end]
        wait = min(due, default=now + 0.1) - now
        return 0 if wait < 0.001 else wait - 0.001

    def receive(self, seconds):
        for descriptor, _ in self.poll.poll(seconds):
            connection = self.connections[descriptor]
            is_answered = connection.receive()
            self.connections[connection.socket.fileno()] = connection  # it may be a new one
            if not is_answered:
                continue
            if not connection.stream.rate and time.perf_counter() < self.end:
                connection.send()
            else:
                self.idle[id(connection.stream)].append(connection)
                self.flying -= 1

    def close(self):
        for connection in set(self.connections.values()):
            connection.close()
        self.poll.close()


def closed(url, path, body, headers, connections, seconds):
    stream = Stream(url, request_bytes(url, path, body, headers), connections)
    return drive([stream], seconds)[0]


@dataclass
class Report:
    """What wrk saw; times in ms."""

    requests: int
    seconds: float
    errors: int
    p50: float
    p99: float

    @property
    def rate(self):
        return self.requests / self.seconds


def wrk(url, path, body, headers, connections, seconds, core=None):
    """A closed loop by wrk, on one core if asked; GET without a body. `errors` counts what has no 2xx or 3xx."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if body is not None:
            escaped = "".join(f"\\{byte:03}" for byte in body)
            script.write(f'wrk.method="POST"; wrk.body="{escaped}"\n')
        for name, value in dict(headers).items():
            script.write(f'wrk.headers["{name}"]="{value}"\n')
        script.write(WRK_DONE)
        script.flush()
        held = ["taskset", "-c", str(core)] if core is not None else []
        command = [*held, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
        command += ["--timeout", "30s", "-s", script.name, url + path]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Report(**json.loads(output.splitlines()[-1]))


WRK_DONE = """
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %f, "errors": %d, "p50": %f, "p99": %f}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""asfc, the Airflow Scheduler Failover Controller: one scheduler, always, and never two.

One controller runs on each node (`python3 asfc.py start`). One of them is active and keeps one
`airflow scheduler` running on one node: it starts it again where it died, and moves it when that
fails. The others stand by and watch the active one's heartbeat. All they share is the metadata
service. This file needs Python 3.6 or newer, its standard library, ssh between the nodes, and the
command-line client of the database (none for SQLite). It never imports Airflow.

What it promises
    At most one controller is active, and what it sends takes effect on a node only until that node
    has heard of a newer one. At most one scheduler runs, under every single fault. After a fault
    one runs again without a person, wherever its node had promised to fence itself or fence_command
    is set. No lost or unclear answer is ever read as "not running". Stopping, upgrading, freezing
    or losing controllers does not touch a healthy scheduler.

What it does not promise
    A host that its hypervisor suspends for longer than W and wakes again runs its scheduler beside
    the new one for some seconds. So does one whose controller is dead for good and which is cut off
    after that: two faults. A scheduler that a person starts by hand runs beside the other until the
    next turn; one that SIGKILL can't end runs on. fence_command or a hardware watchdog help.

The clock
    CLOCK_BOOTTIME of each host, never a wall clock, and never two hosts' clocks compared. Only
    their rates may not differ by a tenth.

The words
    node       a host named in scheduler_nodes_in_cluster
    active     the one controller that acts; its node is the active failover node
    standby    every other controller
    active scheduler node   the node that is to run the scheduler
    lease      the right to be active; it ends unless renewed by a heartbeat
    term       the reign of one active controller, counted up
    move       numbers the attempts to start; the pair (term, move) orders all that nodes are sent
    gate       what a node keeps of that pair, to refuse whatever comes too late
    intent     a start that a node has begun and whose process it has not seen yet
    possible nodes   all nodes where a scheduler may be alive or may still start
    instance   the random id of one run of a controller
    promise    of a node, in its record: when its controller has not written the record for F, no
               scheduler lives there any more, for the controller has fenced its own node
    silence    no sign of life from a node for W = 1.1 F: then it has kept its promise
    fencing    ending a scheduler that may not run: by its own controller, or from outside by
               fence_command, which switches the host off
    wish       of a person, that the scheduler runs on another node: the record `orders`
    drained    a node that a person has taken out of service: no scheduler is started there
    h, i, c    heartbeat timeout, heartbeat interval (h / 10), time limit of a query to a node

The protections
    conditional write; acting window; the lease counts from before the write was sent; a standby
    waits for h; a cleared record is taken only after h; the holder's h counts, not the standby's;
    gate and deadline test; intent; proof before start; proof after the write; silence lasts W;
    silence needs queries without an answer; fence; the fence ends starts in flight; one try after
    a freeze; the deadline is inherited; an orderly stop takes the promise back first; a pause
    takes the promise back first; old metadata raises the term; all nodes are possible after
    clear; cluster id in the gate; node name in the gate; no stamp of a successor; silence
    outlasts a slow clock; release on an overdue main loop; standing back when nothing can be
    asked; a passed deadline is dealt with before the next write; the gate is raised before the
    next write; the try is for a node that is still possible; a node that comes back at the last
    moment is possible again; a late process has its time to appear; every start takes a new move;
    instance in the gate; a record speaks only while it is fresh; a record whose version fell
    promises nothing; a lease that ran out is read before it is written; the holder, too, is given
    time after an outage; a scheduler that is seen makes its node possible; local guard; veto of the
    job table.

The order of this file
    errors, the door to the world, configuration, values, metadata services, nodes, fencing itself,
    node records, health evidence, alerts, lease, this node, the service manager, status over
    HTTP, decision, the failover controller, the demo, the command line. Each section uses only what
    stands above it.
"""
import argparse
import base64
import collections
import configparser
import errno
import fcntl
import functools
import json
import logging
import os
import re
import selectors
import shlex
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from typing import (Any, Callable, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional,
                    Sequence, Set, Tuple, TypeVar)

__version__ = "2.0.0"


###############################################################################
# Errors ######################################################################
###############################################################################


class AsfcError(Exception):
    """The root of all errors that end a verb with one clear line. Each knows its exit status."""
    exit_status = 1


class ConfigurationError(AsfcError):
    """The configuration can't be used; its text names each problem, its place and the remedy."""
    exit_status = 78  # EX_CONFIG: systemd's RestartPreventExitStatus stops there


class MetadataError(AsfcError):
    """The metadata service is away, refuses, is too slow, or answers something that can't be."""
    exit_status = 69  # EX_UNAVAILABLE


class RefusedError(AsfcError):
    """What was asked for can't be done now: something else that runs is in the way."""
    exit_status = 75  # EX_TEMPFAIL


class UsageError(AsfcError):
    """The command line can't be understood."""
    exit_status = 2


###############################################################################
# The door to the world #######################################################
###############################################################################


class Command(NamedTuple):
    """A command line for the operating system, with the time in seconds that it may take.

    `environment` is added to this process's own. `request` is what the command was made from; the
    door ignores it, a simulated world answers it.
    """
    argv: Tuple[str, ...]
    timeout_s: float
    stdin: str = ""
    environment: Optional[Dict[str, str]] = None
    request: Any = None


class CommandResult(NamedTuple):
    """What became of a command: its exit status, or None and the problem in one line."""
    status: Optional[int]
    stdout: str
    stderr: str
    problem: str = ""
    seconds: float = 0.0   # that it took

    def failure(self) -> str:
        """Why it did not succeed, with its last words, in one line; "" when it did."""
        if self.status == 0:
            return ""
        words = (self.stderr.strip() or self.stdout.strip()).split("\n")[-1][:200]
        return "{} {}".format(
            self.problem or "exit status {}".format(self.status), words).strip()


class _RunningCommand:
    """A child process in a process group of its own, with its pipes and its deadline."""
    MOST_OUTPUT = 4 * 1024 * 1024  # bytes; a command that says more is cut off

    def __init__(self, command: Command, now: float) -> None:
        self.began = now
        self.deadline = now + command.timeout_s
        self.timeout_s = command.timeout_s
        self.output = {"stdout": bytearray(), "stderr": bytearray()}
        self.stdin_rest = command.stdin.encode("utf-8")
        self.problem = ""
        environment = dict(os.environ, **command.environment) if command.environment else None
        self.process = subprocess.Popen(
            command.argv, stdin=subprocess.PIPE if self.stdin_rest else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
            start_new_session=True)

    def pipes(self) -> List[Tuple[Any, int, str]]:
        """The open pipes, each with the event to wait for and its name."""
        process = self.process
        named = [(process.stdout, selectors.EVENT_READ, "stdout"),
                 (process.stderr, selectors.EVENT_READ, "stderr")]
        if process.stdin:
            named.append((process.stdin, selectors.EVENT_WRITE, "stdin"))
        return named

    def transfer(self, pipe: Any, name: str) -> bool:
        """Move what can be moved through a pipe that is ready; False when it is at its end."""
        try:
            if name == "stdin":
                self.stdin_rest = self.stdin_rest[os.write(pipe.fileno(), self.stdin_rest[:4096]):]
                return bool(self.stdin_rest)
            data = os.read(pipe.fileno(), 65536)
        except OSError:
            return False  # the command closed its end: what it answers tells why
        if len(self.output[name]) < self.MOST_OUTPUT:
            self.output[name] += data
        return bool(data)

    def drain(self, pipe: Any, name: str) -> None:
        """Read the last words of an ended command, no more than may be kept: a child of its own may
        go on writing into the same pipe."""
        while len(self.output[name]) < self.MOST_OUTPUT and self.transfer(pipe, name):
            pass

    def kill(self) -> None:
        """End the whole process group; only while the leader is not reaped, so its id is ours."""
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except OSError:
                pass
        self.problem = "no answer within {:g} s".format(self.timeout_s)

    def result(self, now: float) -> CommandResult:
        """Reap the process and say what became of it."""
        status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                try:
                    pipe.close()
                except OSError:
                    pass
        stdout, stderr = (bytes(self.output[name]).decode("utf-8", "replace")
                          for name in ("stdout", "stderr"))
        return CommandResult(None if self.problem else status, stdout, stderr, self.problem,
                             now - self.began)


class _HttpClient:
    """One connection of an HttpServer."""

    def __init__(self, connection: Any, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline
        self.received = bytearray()
        self.to_send = b""
        self.answered = False

    def read(self) -> bool:
        """Take in what was sent; whether the client has not gone. After the answer it is thrown
        away: closing on it would reset the connection, and the answer with it."""
        data = self.connection.recv(HttpServer.MOST_REQUEST)
        if not self.answered:
            self.received += data
        return bool(data)

    def request(self) -> Optional[bytes]:
        """The request line, when the request is whole or too long to become that; else None."""
        whole = re.search(rb"\r?\n\r?\n", self.received)
        if not whole and len(self.received) < HttpServer.MOST_REQUEST:
            return None
        return bytes(self.received).split(b"\n", 1)[0].strip() if whole else b""

    def send(self) -> None:
        """Send on; when all is sent, say so."""
        import socket
        self.to_send = self.to_send[self.connection.send(self.to_send):]
        if not self.to_send:
            self.connection.shutdown(socket.SHUT_WR)


class HttpServer:
    """Answers GET and HEAD, one request a connection; whatever its clients do costs little.

    A connection lives LIFE_S, whatever happens on it, and a request is no longer than MOST_REQUEST
    bytes. There are at most MOST_CLIENTS: a new one takes the place of the oldest, so that slow
    ones keep nobody out. Raises OSError when it can't listen at that address (an IP one).
    """
    LIFE_S = 5.0
    MOST_REQUEST = 4096
    MOST_CLIENTS = 32
    ACCEPTED_AT_ONCE = 8
    REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
               503: "Service Unavailable"}

    def __init__(self, address: str, port: int) -> None:
        import socket
        self._listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._selector = selectors.DefaultSelector()
        self._clients: "collections.deque[_HttpClient]" = collections.deque()   # the oldest first
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((address, port))
            self._listener.listen(128)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        while self._clients:
            self._drop(self._clients[0])
        self._listener.close()
        self._selector.close()

    def serve(self, wait_s: float, answer: Callable[[str], Tuple[int, str, str]]) -> bool:
        """Wait at most so long for clients, and go one small step on with each of them.

        `answer` gets a path and returns status, content type and text. Returns whether there was
        anything to do: the caller makes a pause then, which bounds what this can cost.
        """
        ready = self._selector.select(wait_s)
        for key, _ in ready:
            if key.data is None:
                self._accept(answer)
            elif key.data in self._clients:
                self._go_on(key.data, answer)
        while self._clients and self._clients[0].deadline <= time.monotonic():
            self._drop(self._clients[0])
        return bool(ready)

    def _accept(self, answer: Callable[[str], Tuple[int, str, str]]) -> None:
        for _ in range(self.ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if len(self._clients) >= self.MOST_CLIENTS:
                self._drop(self._clients[0])
            connection.setblocking(False)
            client = _HttpClient(connection, time.monotonic() + self.LIFE_S)
            self._clients.append(client)
            self._selector.register(connection, selectors.EVENT_READ, client)
            self._go_on(client, answer)

    def _drop(self, client: _HttpClient) -> None:
        self._clients.remove(client)
        self._selector.unregister(client.connection)
        client.connection.close()

    def _go_on(self, client: _HttpClient, answer: Callable[[str], Tuple[int, str, str]]) -> None:
        well = False
        try:
            well = self._step(client, answer)
        except BlockingIOError:
            well = True
        except OSError:
            pass
        finally:   # whatever went wrong, also in what makes the answer
            if not well:
                self._drop(client)

    def _step(self, client: _HttpClient, answer: Callable[[str], Tuple[int, str, str]]) -> bool:
        """Read or write once; whether the connection is to be kept."""
        if not client.to_send:
            if not client.read():
                return False
            request = None if client.answered else client.request()
            if request is None:
                return True
            client.to_send, client.answered = self._reply(request, answer), True
            self._selector.modify(client.connection, selectors.EVENT_WRITE, client)
        client.send()
        if not client.to_send:
            self._selector.modify(client.connection, selectors.EVENT_READ, client)
        return True

    def _reply(self, request: bytes, answer: Callable[[str], Tuple[int, str, str]]) -> bytes:
        match = re.fullmatch(r"([A-Z]+) ([!-~]+) HTTP/1\.[0-9]", request.decode("latin-1"))
        method = match.group(1) if match else ""
        if not match:
            status, kind, text = 400, "text/plain", "this is no HTTP request\n"
        elif method not in ("GET", "HEAD"):
            status, kind, text = 405, "text/plain", "only GET and HEAD\n"
        else:
            status, kind, text = answer(match.group(2).partition("?")[0])
        body = text.encode("utf-8", "replace")
        head = ("HTTP/1.1 {} {}\r\nContent-Type: {}; charset=utf-8\r\nContent-Length: {}\r\n"
                "Cache-Control: no-store\r\n{}Connection: close\r\n\r\n").format(
                    status, self.REASONS[status], kind, len(body),
                    "Allow: GET, HEAD\r\n" if status == 405 else "")
        return head.encode("ascii") + (b"" if method == "HEAD" else body)


class LocalProcess(NamedTuple):
    """A process of this host; pid and start time (clock ticks since boot) name it for good."""
    pid: int
    start: int
    parent: int
    session: int
    uid: int
    words: Tuple[str, ...]   # of its command line, split at blanks: some write it as one text
    marker: str = ""         # ASFC_NODE in its environment: what a start command has brought up


# What a look at a process fails with for want of means: who is not seen then need not be gone.
_NOT_SEEN = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def _local_process(pid: str) -> Optional[LocalProcess]:
    """One process by /proc; None when it has ended, is a zombie or lives in a container."""
    def read(name: str) -> str:
        with open("/proc/{}/{}".format(pid, name), "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    try:
        fields = read("stat").rpartition(")")[2].split()
        status = dict(line.partition(":")[::2] for line in read("status").splitlines())
        uid = int(status["Uid"].split()[1])
        words = tuple(read("cmdline").replace("\0", " ").split())
    except (OSError, ValueError, LookupError) as error:
        if getattr(error, "errno", None) in _NOT_SEEN:
            raise
        return None   # it is just ending; then a file of it may be cut off, too
    if len(fields) < 20 or fields[0] in "ZX" or len(status.get("NSpid", "").split()) > 1:
        return None
    try:
        environment = read("environ").split("\0")
    except OSError as error:
        if error.errno in _NOT_SEEN:
            raise
        environment = []  # another user's
    marker = [text[10:] for text in environment if text.startswith("ASFC_NODE=")]
    return LocalProcess(int(pid), int(fields[19]), int(fields[1]), int(fields[3]),
                        uid, words, marker[0] if marker else "")


class Connection:
    """A TCP connection of which every step ends at the deadline, however the peer drips its bytes.

    All methods raise OSError; the end of what the peer sends is an error, too.
    """

    def __init__(self, address: Tuple[Any, Any], deadline: float,
                 now: Callable[[], float]) -> None:
        import socket
        self.deadline = deadline
        self._now, self._began = now, now()
        self._socket = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            self._step(self._socket.connect, address[1])
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self._socket.close()
            raise

    def _step(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Have the socket do something, for no longer than until the deadline."""
        import socket
        left_s = self.deadline - self._now()
        try:
            if left_s <= 0:
                raise socket.timeout
            self._socket.settimeout(left_s)
            return function(argument)
        except socket.timeout:
            raise OSError("no answer within {:g} s".format(round(self.deadline - self._began, 2)))

    def send(self, data: bytes) -> None:
        self._step(self._socket.sendall, data)

    def receive(self, length: int) -> bytes:
        """So many bytes, no fewer."""
        data = self.receive_rest(length)
        if len(data) < length:
            raise ConnectionResetError("the connection was closed")
        return data

    def receive_rest(self, most: int) -> bytes:
        """What comes until the peer closes the connection, but no more than so many bytes."""
        data = bytearray()
        while len(data) < most:
            part = self._step(self._socket.recv, most - len(data))
            if not part:
                break
            data += part
        return bytes(data)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: Any) -> None:
        self._socket.close()


def host_and_port(host: str, port: int) -> str:
    return ("[{}]:{}" if ":" in host else "{}:{}").format(host, port)


class Servers:
    """Servers that do the same: the addresses of several hosts, in the order to be tried in.

    Nothing cuts short the resolver's wait for a DNS that is away, so threads wait for it. What it
    said last of a host is used until it answers again.
    """

    def __init__(self, hosts: Sequence[Tuple[str, int]], now: Callable[[], float]) -> None:
        self.order: List[Tuple[Any, Any]] = []   # that of the last answer is the first
        self._hosts = hosts
        self._now = now
        self._known: Dict[Tuple[str, int], List[Tuple[Any, Any]]] = {}
        self.problem = "no host name was resolved in time"

    def tries(self, deadline: float) -> Iterable[Tuple[Tuple[Any, Any], float]]:
        """Addresses for `connect`, each with the time until when it may be tried.

        Each gets half of the time that is left, the last one all of it: one that hangs leaves time
        for the next. None when no host has an address: `problem` says why.
        """
        self._resolve(self._now() + (deadline - self._now()) / 4)
        found = [address for host in self._hosts for address in self._known.get(host, [])]
        order = [address for address in self.order if address in found]
        # Each process begins with another one, for Python's hash of a text differs.
        order += sorted(set(found) - set(order), key=hash)
        # Should all fail, the last ones, which had the least time, are the first ones next time.
        self.order = order[::-1]
        for number, address in enumerate(order, 1):
            now = self._now()
            yield address, deadline if number == len(order) else (now + deadline) / 2

    def note(self, address: Tuple[Any, Any], is_well: bool) -> None:
        """Have this one tried first from now on, or last."""
        others = [one for one in self.order if one != address]
        self.order = [address] + others if is_well else others + [address]

    def _resolve(self, end: float) -> None:
        threads = [threading.Thread(target=self._ask, args=host, daemon=True)
                   for host in self._hosts if not self._ask(*host, only_numbers=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - self._now()))

    def _ask(self, host: str, port: int, only_numbers: bool = False) -> bool:
        """Learn the addresses of a host; of one that is given by its number nobody is asked."""
        import socket
        try:
            self._known[host, port] = [(entry[0], entry[4]) for entry in socket.getaddrinfo(
                host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST if only_numbers else 0)]
            return True
        except (OSError, UnicodeError) as error:
            if not only_numbers:
                self.problem = "{}: {}".format(host, getattr(error, "strerror", None) or error)
            return False


class World:
    """The one door to everything outside this process.

    Time, waiting, threads, files, locks, subprocesses, sockets and signals are reached through it
    alone, so a test can hand in a world of its own and drive the same code through virtual time.
    """
    # CLOCK_BOOTTIME goes on while the machine is suspended, and nobody sets it. Python 3.6 has no
    # name for it; its number on Linux is 7. CLOCK_MONOTONIC would stand still in a suspend.
    CLOCK = getattr(time, "CLOCK_BOOTTIME", 7)
    PATIENCE_S = 5.0   # for loops that nobody waits for, at the end of the process
    SIGNAL_WAIT_S = 0.5

    def __init__(self) -> None:
        self.notify_socket = ""   # where a service manager listens; "": nowhere
        self.watchdog_s = 0.0     # it ends a service that is silent for so long; 0: it does not
        self._wakers: Dict[str, threading.Event] = {}
        self._hung_up = False
        self._hangup_handler: Callable[[], None] = lambda: None

    # -- time and identity

    def now(self) -> float:
        """Seconds on the clock of this host that never jumps and never stops."""
        return time.clock_gettime(self.CLOCK)

    def utc_text(self) -> str:
        """The wall clock as UTC text: for people to read, never to decide by."""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()) + " UTC"

    def host_name(self) -> str:
        return os.uname().nodename  # what socket.gethostname() says, without importing it

    def host_names(self) -> Tuple[str, ...]:
        """The names by which programs of this host may call it."""
        import socket
        return tuple(sorted({self.host_name(), socket.getfqdn()}))

    def user_id(self, name: str) -> Optional[int]:
        """The id of a user, '' being the one of this process; None when there is no such user."""
        if not name:
            return os.geteuid()
        import pwd
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            return None

    def user_name(self) -> str:
        """Who works here, for people to read: the login name, else the number."""
        import pwd
        try:
            return pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            return str(os.geteuid())

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def boot_clock(self) -> Tuple[str, float]:
        """The id of this boot, and /proc/uptime in seconds: what the script on a node reads, too.

        In some containers that differs from `now`. Raises OSError where it can't be read.
        """
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        with open("/proc/uptime") as file:
            return boot, float(file.read().split()[0])

    def monotonic_us(self) -> int:
        """Microseconds of CLOCK_MONOTONIC, by which systemd orders notifications."""
        return int(time.monotonic() * 1e6)

    def random_id(self) -> str:
        """A fresh random name of 16 hexadecimal digits."""
        return os.urandom(8).hex()

    # -- threads and waiting

    def sleep(self, seconds: float) -> None:
        """Wait, in a verb; what runs in loops returns the seconds instead."""
        time.sleep(seconds)

    def mutex(self) -> Any:
        """A lock between the loops of one process, to be used in a `with` statement."""
        return threading.Lock()

    def run_loops(self, steps: Mapping[str, Callable[[], Optional[float]]],
                  awaited: Sequence[str]) -> None:
        """Call each step in a thread of its own, again and again, until it returns None.

        A step returns the seconds after which it wants to be called next; `wake` calls it sooner.
        Returns when the awaited loops have ended. The others then get a few seconds: one may hang
        in a server that never ends its answer, and goes with the process.
        """
        self._wakers.update((name, threading.Event()) for name in steps)
        threads = {name: threading.Thread(target=self._loop, args=(name, step), daemon=True)
                   for name, step in steps.items()}
        for thread in threads.values():
            thread.start()
        for name in awaited:
            while threads[name].is_alive():
                # The kernel may give a signal to another thread; its handler runs in this one, and
                # only when this one wakes by itself.
                threads[name].join(self.SIGNAL_WAIT_S)
                if self._hung_up:
                    self._hung_up = False
                    self._hangup_handler()
        for thread in threads.values():
            thread.join(self.PATIENCE_S)

    def _loop(self, name: str, step: Callable[[], Optional[float]]) -> None:
        waker = self._wakers[name]
        delay = step()
        while delay is not None:
            waker.wait(max(0.0, delay))
            waker.clear()
            delay = step()

    def wake(self, name: str) -> None:
        """Have the loop of this name call its step now, or again if it is in it."""
        if name in self._wakers:
            self._wakers[name].set()

    def on_stop_signal(self, handler: Callable[[str], None]) -> None:
        """Call the handler with the signal's name when this process is asked to stop.

        A signal that is ignored from the start, as SIGHUP is under nohup, stays so.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            signal.signal(number, lambda received, _: handler(signal.Signals(received).name))

    def on_hangup(self, handler: Callable[[], None]) -> None:
        """Have SIGHUP call this handler and not stop this process; ignored, it stays ignored.

        It is called within run_loops, a moment later: it may wake loops. Within the signal it could
        not, for the signal may have come in the middle of another one's waking the same loop.
        """
        def note(received: int, frame: Any) -> None:
            self._hung_up = True
        self._hangup_handler = handler
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, note)

    # -- subprocesses

    def run(self, commands: Sequence[Command]) -> List[CommandResult]:
        """Run commands at the same time, each in its own process group, and return their results.

        A command that is not done within its time is killed with its group. Takes no longer than
        the longest time limit among them. A program that can't be started is a result too.
        """
        results: List[Optional[CommandResult]] = [None] * len(commands)
        running: Dict[int, _RunningCommand] = {}
        with selectors.DefaultSelector() as selector:
            for index, command in enumerate(commands):
                try:
                    running[index] = started = _RunningCommand(command, self.now())
                except (OSError, ValueError) as error:
                    results[index] = CommandResult(None, "", "", "{}: {}".format(
                        command.argv[0], getattr(error, "strerror", None) or error))
                    continue
                for pipe, event, name in started.pipes():
                    os.set_blocking(pipe.fileno(), False)
                    selector.register(pipe, event, (index, name))
            while running:
                self._transfer(selector, running)
                for index in [i for i, child in running.items() if self._is_over(child)]:
                    child = running.pop(index)
                    for pipe, _, _ in child.pipes():
                        if not pipe.closed and pipe in selector.get_map():
                            selector.unregister(pipe)
                    results[index] = child.result(self.now())
        return results  # type: ignore[return-value]

    def _transfer(self, selector: Any, running: Dict[int, _RunningCommand]) -> None:
        """Wait until a pipe is ready, a deadline comes or 50 ms have gone, and move the data."""
        soonest = min(child.deadline for child in running.values()) - self.now()
        for key, _ in selector.select(min(0.05, max(0.0, soonest))):
            index, name = key.data
            if not running[index].transfer(key.fileobj, name):
                selector.unregister(key.fileobj)
                key.fileobj.close()

    def _is_over(self, child: _RunningCommand) -> bool:
        """Whether the child has ended or had to be killed. Pipes that others hold don't count."""
        if child.process.poll() is not None:
            for pipe, event, name in child.pipes():
                if event == selectors.EVENT_READ and not pipe.closed:
                    child.drain(pipe, name)
            return True
        if self.now() < child.deadline:
            return False
        child.kill()
        return True

    # -- files

    def read_text(self, path: str) -> Optional[str]:
        """The text of a file, or None where there is none. Raises OSError for any other failure."""
        try:
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_text(self, path: str, text: str, durable: bool = True) -> None:
        """Replace a file as a whole and for good, keeping its mode and owner. Raises OSError.

        One that need not outlive a crash of the machine is not waited for: `durable` is False.
        """
        try:
            before = os.stat(path)
        except FileNotFoundError:
            before = None
        beside = "{}.{}.new".format(path, os.getpid())
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="surrogateescape",
                      newline="") as file:
                if before:
                    os.chown(descriptor, before.st_uid, before.st_gid)
                    os.chmod(descriptor, stat.S_IMODE(before.st_mode))
                file.write(text)
                file.flush()
                if durable:
                    os.fsync(descriptor)
            os.rename(beside, path)
        except OSError:
            if os.path.exists(beside):
                os.unlink(beside)
            raise

    def remove_file(self, path: str) -> None:
        """Remove a file, if it is there. Raises OSError."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    def make_directory(self, path: str) -> None:
        """Make a directory that only its owner can enter, and those above it. Raises OSError."""
        os.makedirs(path, mode=0o700, exist_ok=True)

    def hold_lock(self, path: str, text: str) -> Optional[str]:
        """Take the lock file for the rest of this process; None when another process holds it.

        Returns what stands in the file; a new file gets `text`. The lock is the kernel's (flock):
        it goes with the process, however that ends, and children don't inherit it.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        held = os.read(descriptor, 4096).decode("utf-8", "replace").strip()
        if not held:
            os.write(descriptor, (text + "\n").encode("utf-8"))
            os.fsync(descriptor)
        return held or text

    # -- the person at the terminal

    def ask(self, question: str) -> Optional[str]:
        """What a person answers, '' for nothing; None where no terminal is there to ask on."""
        if not sys.stdin or not sys.stdin.isatty():
            return None
        try:
            return input(question).strip()
        except EOFError:
            return ""

    # -- processes of this host, by /proc alone: fencing must not wait for a disk or a program

    def processes(self) -> List["LocalProcess"]:
        """All processes of this host that are not in a container of their own.

        Raises OSError when they can't be looked at, for want of file descriptors perhaps.
        """
        found = [_local_process(pid) for pid in os.listdir("/proc") if pid.isdigit()]
        return [process for process in found if process]

    def signal_process(self, process: "LocalProcess", number: int) -> bool:
        """Send a signal, if the process is still the one that was listed; whether it is."""
        try:
            with open("/proc/{}/stat".format(process.pid), "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[19]) != process.start:
                    return False
            os.kill(process.pid, number)
        except PermissionError:
            pass            # it is not ours: the next list shows it
        except (OSError, ValueError, IndexError):
            return False    # it has just ended
        return True

    # -- the service manager

    def take_notify_socket(self) -> None:
        """Learn from the environment where a service manager listens, and take it out of there.

        What asfc starts is another service: its messages must not be taken for asfc's.
        """
        self.notify_socket = os.environ.pop("NOTIFY_SOCKET", "")
        limit_us = os.environ.pop("WATCHDOG_USEC", "")
        os.environ.pop("WATCHDOG_PID", None)
        self.watchdog_s = int(limit_us) / 1e6 if re.fullmatch("[0-9]+", limit_us) else 0.0

    def notify(self, text: str) -> bool:
        """Send the service manager a message, without waiting; whether it was taken."""
        import socket
        path = self.notify_socket
        address = "\0" + path[1:] if path.startswith("@") else path   # an abstract name
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode("utf-8", "replace"), address)
            return True
        except (OSError, ValueError):
            return False

    # -- sockets

    def http_server(self, address: str, port: int) -> HttpServer:
        """A server that listens there. Raises OSError."""
        return HttpServer(address, port)

    def servers(self, hosts: Sequence[Tuple[str, int]]) -> "Servers":
        """Servers that do the same, given as hosts with their ports."""
        return Servers(hosts, self.now)

    def connect(self, address: Tuple[Any, Any], deadline: float) -> Connection:
        """A TCP connection to an address of a server. Raises OSError."""
        return Connection(address, deadline, self.now)

    def http_get(self, url: str, timeout_s: float, verify_tls: bool = True) -> Tuple[int, str]:
        """Fetch a page; returns the HTTP status and at most 64 KiB of its text. Raises OSError.

        The time limit is for each step of the connection; a caller that must not wait longer has a
        loop of its own for it.
        """
        import http.client
        import urllib.error
        import urllib.request
        context = None
        if url.startswith("https:"):
            import ssl
            context = ssl.create_default_context()
            if not verify_tls:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
        handlers: List[Any] = [urllib.request.ProxyHandler({})]
        if context:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        opener = urllib.request.build_opener(*handlers)
        try:
            try:
                reply = opener.open(url, timeout=timeout_s)
            except urllib.error.HTTPError as error:
                reply = error  # a page like any other, with its status
            with reply:
                return reply.getcode(), reply.read(65536).decode("utf-8", "replace")
        except (ValueError, EOFError, http.client.HTTPException) as error:
            raise OSError("{}: {}".format(type(error).__name__, error))

    def send_mail(self, smtp: Any, recipients: Sequence[str], alert: Any) -> None:
        """Send a plain mail by the settings of [smtp]. Raises OSError with what went wrong.

        The mail server's refusal of a login is told without what was tried.
        """
        import email.message
        import smtplib
        message = email.message.EmailMessage()
        message["Subject"] = " ".join(alert.subject.split())
        message["From"] = smtp.mail_from
        message["To"] = ", ".join(recipients)
        message.set_content(alert.text)
        client = smtplib.SMTP_SSL if smtp.ssl else smtplib.SMTP
        try:
            with client(smtp.host, smtp.port, timeout=smtp.timeout_s) as server:
                if smtp.starttls and not smtp.ssl:
                    self._start_tls(server, verified=bool(smtp.user))
                if smtp.user:
                    server.login(smtp.user, smtp.password)
                server.send_message(message)
        except smtplib.SMTPAuthenticationError as error:
            raise OSError("the mail server refused the login of smtp_user, code {}".format(
                error.smtp_code))
        except (smtplib.SMTPException, ValueError) as error:
            raise OSError("mail server {}:{}: {}".format(smtp.host, smtp.port, error))

    @staticmethod
    def _start_tls(server: Any, verified: bool) -> None:
        """Begin TLS. A password goes only to a server that proved who it is; an alert without a
        login goes out even where the local mail relay has a certificate of its own making."""
        import ssl
        context = ssl.create_default_context()
        if not verified:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        server.starttls(context=context)


###############################################################################
# Configuration ###############################################################
###############################################################################

SECTION = "scheduler_failover"
RETRY_INTERVAL_S = 1.0    # r: a failed metadata operation is tried again after this
CLOCK_RATE_LIMIT = 1.1    # rho: the clocks of two hosts may differ in rate by less than this
OWN_SETTLE_S = 5.0        # S after asfc's own start command, which never detaches late
FENCE_TICK_S = 1.0        # d: how often a controller looks whether it has to fence itself
KILL_EFFECT_S = 0.5       # k: what SIGKILL takes to have its effect
COMMAND_LIMIT_S = 10.0    # for Airflow's *_cmd keys
STRANGERS_ADDRESS = "airflow@airflow.com"  # the default of the pip package; a real, foreign domain


class Option(NamedTuple):
    """A key of our section: default as text, parser (ValueError: wrong), words for people."""
    name: str
    default: str
    parse: Callable[[str], Any]
    allowed: str
    help: str
    shown: bool = False   # init writes it as a line to edit; the others stand there as comments
    secret: bool = False  # its value never appears in a message
    live: bool = True     # a controller that runs takes a new value over, see LiveConfiguration


_Kind = Tuple[Callable[[str], Any], str]


def _check(condition: Any) -> None:
    if not condition:
        raise ValueError


def _number(low: float, high: float, of: str = "") -> _Kind:
    """A number within limits: a whole one, or one of seconds when `of` says so."""
    convert: Callable[[str], Any] = float if of else int

    def parse(text: str) -> Any:
        value = convert(text)
        _check(low <= value <= high)
        return value
    return parse, "a {} from {:g} to {:g}".format(
        "number of " + of if of else "whole number", low, high)


def _seconds(low: float, high: float) -> _Kind:
    return _number(low, high, "seconds")


def _one_of(*words: str) -> _Kind:
    """One of the words, in any case; the value is the word as it stands here."""
    known = {word.lower(): word for word in words}

    def parse(text: str) -> str:
        _check(text.lower() in known)
        return known[text.lower()]
    return parse, "one of " + ", ".join(words)


def _yes_or_no() -> _Kind:
    words = {"true": True, "t": True, "1": True, "yes": True, "on": True,
             "false": False, "f": False, "0": False, "no": False, "off": False}

    def parse(text: str) -> bool:
        _check(text.lower() in words)
        return words[text.lower()]
    return parse, "True or False"


def _path(empty: str = "") -> _Kind:
    """A path that means the same from every directory; `empty`: what no path means, if it may."""
    def parse(text: str) -> str:
        _check(empty if not text else re.match(r"(/|~/|~$)", text) and text.isprintable())
        return text
    words = "a path that begins with / or ~/"
    return parse, words + ", or empty: " + empty if empty else words


def _pattern(pattern: str, allowed: str) -> _Kind:
    """A text that matches the pattern as a whole."""
    def parse(text: str) -> str:
        _check(re.fullmatch(pattern, text))
        return text
    return parse, allowed


def _shell_words(least: int) -> _Kind:
    """A text that a shell would split into at least so many words; it stays a text."""
    def parse(text: str) -> str:
        _check(len(shlex.split(text)) >= least)
        return text
    return parse, "shell words with paired quotes" + ("" if least else ", or empty")


def is_host_name(text: str) -> bool:
    """Whether ssh can take the text for a host: a name, or an IP address, and never an option."""
    if ":" in text:
        import socket
        try:
            return bool(socket.inet_pton(socket.AF_INET6, re.sub(r"%[A-Za-z0-9_.-]+$", "", text)))
        except (OSError, ValueError):
            return False
    return len(text) <= 253 and bool(re.fullmatch(
        r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*",
        text))


def _node_names(text: str) -> Tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    _check(names and all(is_host_name(name) for name in names))
    return names


def _node_name(text: str) -> str:
    _check(not text or is_host_name(text))
    return text


def _ip_address(text: str) -> str:
    four = re.fullmatch(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})", text)
    _check(all(int(part) < 256 for part in four.groups()) if four
           else ":" in text and is_host_name(text))
    return text


class ZookeeperNodes(NamedTuple):
    """A connect string of ZooKeeper: hosts with their ports, and the path that all begins with."""
    hosts: Tuple[Tuple[str, int], ...]
    chroot: str   # "" or "/a/b"

    @classmethod
    def of(cls, text: str) -> "ZookeeperNodes":
        """Read `host:port,host:port/chroot`. Raises ValueError."""
        names, slash, chroot = "".join(text.split()).partition("/")
        hosts = []
        for name in filter(None, names.split(",")):
            match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::(\d{0,5}))?", name)
            _check(match)
            ipv6, host, port = match.groups() if match else ("", "", "")
            _check(is_host_name(ipv6 or host) and (":" in ipv6 if ipv6 else True))
            _check(0 < int(port or 2181) < 65536)
            hosts.append((ipv6 or host, int(port or 2181)))
        parts = chroot.rstrip("/").split("/") if chroot.rstrip("/") else []
        _check(hosts and chroot.isprintable() and not {"", ".", ".."} & set(parts))
        return cls(tuple(hosts), "".join("/" + part for part in parts))

    def __str__(self) -> str:
        return ",".join(host_and_port(*host) for host in self.hosts) + self.chroot


def _zookeeper_nodes(text: str) -> str:
    return str(ZookeeperNodes.of(text))


def _addresses(text: str) -> Tuple[str, ...]:
    addresses = tuple(word for word in re.split(r"[\s,;]+", text) if word)
    _check(all(re.fullmatch(r"[^@<>\"]+(@[^@<>\"]+)?", address) for address in addresses))
    return addresses


def _subject(text: str) -> str:
    _check(text)
    return " ".join(text.split())  # a line break would end the mail's header


_LINE: _Kind = _pattern(r"[^\n]*", "one line of text, or empty")
_COMMAND: _Kind = (str, "a shell command, or empty")

OPTIONS: Tuple[Option, ...] = (
    Option("scheduler_nodes_in_cluster", "localhost", _node_names,
           "host names or IP addresses, separated by commas",
           "The nodes that may run the scheduler, in the order in which they are tried, the same "
           "on all nodes. Each is what `get_current_host` prints there. localhost alone: this "
           "host.",
           shown=True),
    Option("metadata_service_type", "SQLMetadataService",
           *_one_of("SQLMetadataService", "ZookeeperMetadataService"),
           help="Where the controllers share what they know. SQLMetadataService: the database of "
           "sql_alchemy_conn. ZookeeperMetadataService: a ZooKeeper ensemble.", live=False),
    Option("metadata_service_zookeeper_nodes", "localhost:2181", _zookeeper_nodes,
           "host:port, separated by commas, then perhaps a /path",
           "The servers of ZookeeperMetadataService. A port that is left out is 2181; all that "
           "asfc keeps stands below the path (chroot).", live=False),
    Option("metadata_service_zookeeper_auth", "", *_pattern(
        r"([^:\s][^:\n]*:[^\n]+)?", "user:password, or empty: none is needed"),
           help="What asfc proves itself by to ZooKeeper (scheme digest), the same on all nodes. "
           "The znodes that it makes can then be read and written by this user alone.",
           secret=True, live=False),
    Option("metadata_service_zookeeper_auth_cmd", "", *_shell_words(0),
           help="A command, run without a shell, that prints metadata_service_zookeeper_auth.",
           secret=True, live=False),
    Option("poll_frequency", "10", *_seconds(1, 3600),
           help="How often the active controller looks at the scheduler.", shown=True),
    Option("heartbeat_timeout", "30", *_seconds(7.5, 3600),
           help="A standby takes over when the active controller's record has not changed for so "
           "long. It does not depend on poll_frequency.", live=False),
    Option("airflow_scheduler_start_command", "", *_COMMAND,
           help="Starts the scheduler on a node; run by the user's login shell or bash. One that "
           "begins with sudo has to return. Empty: asfc's own way. With systemd: sudo systemctl "
           "restart airflow-scheduler", shown=True),
    Option("airflow_scheduler_stop_command", "", *_COMMAND,
           help="Stops the scheduler on a node. Empty: asfc's own way. With systemd: "
           "sudo systemctl stop airflow-scheduler", shown=True),
    Option("airflow_scheduler_status_command", "", *_COMMAND,
           help="Says whether the scheduler runs on a node: exit status 0 yes, 3 no, all else "
           "unknown. Empty: only the process list is asked."),
    Option("airflow_virtualenv", "", *_path("none"),
           help="bin/activate of the virtual environment that asfc's own start of the scheduler "
           "uses."),
    Option("airflow_scheduler_log_file", "~/airflow/logs/scheduler.logs", *_path(),
           help="Where asfc's own start appends the scheduler's output; ~ is the home there."),
    Option("scheduler_user", "", *_pattern(
        r"([A-Za-z0-9_][A-Za-z0-9_.-]*\$?)?", "a user name, or empty: the user asfc works as"),
           help="The user whose scheduler it is; only processes of this user are counted and "
           "stopped.", live=False),
    Option("alert_to_email", "", _addresses,
           "mail addresses, separated by commas, or empty: no mail",
           "Who gets a mail when no scheduler can be started, and when one runs again.",
           shown=True),
    Option("alert_email_subject",
           "Airflow Alert - Scheduler Failover Controller Failed to Startup Scheduler", _subject,
           "a text", "The subject of these mails."),
    Option("retry_count_before_alerting", "5", *_number(1, 10000),
           help="So many rounds must fail before a mail is sent."),
    Option("smtp_user", "", *_LINE, help="Login at the mail server, if not as [smtp] says."),
    Option("smtp_password", "", *_LINE, help="Its password, if not as [smtp] says.",
           secret=True),
    Option("logging_level", "INFO", *_one_of(
        "NOTSET", "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL"),
           help="How much is logged."),
    Option("logging_dir", "~/airflow/logs/scheduler_failover/", *_path(),
           help="The directory of asfc's own log.", live=False),
    Option("logging_file_name", "scheduler_failover_controller.log", *_pattern(
        r"(?!\.{1,2}$)[^/\x00-\x1f]+", "a file name without /"),
           help="The file of asfc's own log.", live=False),
    Option("logs_rotate_when", "midnight", *_one_of(
        "S", "M", "H", "D", "midnight", "W0", "W1", "W2", "W3", "W4", "W5", "W6"),
           help="When the log is rotated: every second, minute, hour, day, at midnight, or on a "
           "day of the week (W0 is Monday).", live=False),
    Option("logs_rotate_backup_count", "7", *_number(0, 10000),
           help="How many rotated logs are kept; 0 keeps all.", live=False),
    Option("node_name", "", _node_name, "a host name, or empty: what `get_current_host` prints",
           "This node's name in scheduler_nodes_in_cluster, where it differs from its host name. "
           "Not the same on all nodes.", live=False),
    Option("state_dir", "~/.asfc", *_path(),
           help="The directory of asfc's own state on each node, the same on all; it must be on a "
           "local file system. ~ is the home on the node.", live=False),
    Option("ssh_command", "ssh", *_shell_words(1),
           help="The ssh client, with options if need be."),
    Option("ssh_options", "", *_shell_words(0), help="More options for ssh."),
    Option("query_timeout", "5", *_seconds(0.5, 60),
           help="How long a node may take to say whether a scheduler runs there."),
    Option("scheduler_start_timeout", "90", *_seconds(1, 3600),
           help="How long a start command may run before it is ended, and how long a scheduler "
           "that was started may live without a first heartbeat."),
    Option("scheduler_stop_wait_time", "10", *_seconds(0, 600),
           help="asfc's own stop waits so long after SIGTERM, and again after a second one, before "
           "SIGKILL."),
    Option("scheduler_restart_sleep_time", "35", *_seconds(1, 3600),
           help="After your own start command asfc waits so long for the scheduler to appear."),
    Option("on_metadata_loss", "stop", *_one_of("stop", "keep"),
           help="What a node does when its controller can't write to the metadata for two thirds "
           "of heartbeat_timeout. stop: it ends its scheduler, so another node may start one once "
           "it has been silent for long enough. keep: it goes on, and when it can't be reached no "
           "other node starts one, until it answers, fence_command works or a person uses "
           "confirm_dead."),
    Option("fence_grace_time", "5", *_seconds(0, 600),
           help="A node that fences itself waits so long between SIGTERM and SIGKILL.", live=False),
    Option("fence_command", "", *_COMMAND,
           help="Switches a node off that doesn't answer (STONITH); run by sh on the active "
           "failover node, with the node's name in ASFC_NODE. Exit status 0: the node is off for "
           "certain."),
    Option("fence_timeout", "60", *_seconds(1, 600),
           help="How long fence_command may take."),
    Option("on_event_command", "", *_COMMAND,
           help="Is told of each event of the history; run by sh where the event is noted, one "
           "after the other, with ASFC_EVENT and more in its environment. asfc never waits for "
           "it."),
    Option("on_event_timeout", "30", *_seconds(1, 3600),
           help="How long on_event_command may take."),
    Option("scheduler_restart_budget", "3", *_number(1, 1000),
           help="So many restarts on one node within scheduler_restart_window, then the next node "
           "is tried."),
    Option("scheduler_restart_window", "600", *_seconds(1, 86400),
           help="The window of scheduler_restart_budget."),
    Option("status_http_port", "0", *_number(0, 65535),
           help="Tells of this controller over HTTP at /health, /active and /metrics. 0: it does "
           "not."),
    Option("status_http_address", "127.0.0.1", _ip_address, "an IP address",
           "Where status_http_port listens; 0.0.0.0 or :: for all addresses. Whoever reaches it "
           "can read it."),
    Option("reminder_interval", "86400", *_seconds(0, 31536000),
           help="While asfc is paused or a node is drained a mail reminds of it, so often. "
           "0: never."),
    Option("health_page_verify_tls", "True", *_yes_or_no(),
           help="Verify the certificate of Airflow's health page."),
    Option("allow_sqlite_on_network_file_system", "False", *_yes_or_no(),
           help="Allow SQLite metadata on a network file system whose locks are known to work.",
           live=False),
)
_OPTION_BY_NAME: Dict[str, Option] = {option.name: option for option in OPTIONS}


def default_section_text(virtualenv: str = "") -> str:
    """The section as `init` writes it; `virtualenv` is a path of bin/activate or ''."""
    import textwrap
    lines = ["[{}]".format(SECTION),
             "# A key that stands behind a # has the value that is shown there."]
    for option in OPTIONS:
        value = virtualenv if option.name == "airflow_virtualenv" and virtualenv else option.default
        active = option.shown or value != option.default
        lines += [""] + textwrap.wrap("{} ({})".format(option.help, option.allowed), 98,
                                      initial_indent="# ", subsequent_indent="# ",
                                      break_long_words=False, break_on_hyphens=False)
        lines.append("{}{} = {}".format("" if active else "# ", option.name, value).rstrip())
    return "\n".join(lines) + "\n"


def options_table_markdown() -> str:
    """The table of all keys for the README."""
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for option in OPTIONS:
        cells = ("`{}`".format(option.name), "`{}`".format(option.default) if option.default
                 else "(empty)", option.allowed, option.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


class SmtpSettings(NamedTuple):
    """How mail is sent. `starttls` is False where `ssl` is True, as Airflow has it."""
    host: str
    port: int
    user: str
    password: str
    starttls: bool
    ssl: bool
    mail_from: str
    timeout_s: float


class Configuration(NamedTuple):
    """All that was configured, checked. Made by `load`, never changed. Times are in seconds.

    The first fields are the keys of our section (see OPTIONS); an empty text means the default
    way that their help tells of. Then follow Airflow's own keys and where all was found.
    """
    scheduler_nodes_in_cluster: Tuple[str, ...]
    metadata_service_type: str
    metadata_service_zookeeper_nodes: str
    metadata_service_zookeeper_auth: str
    metadata_service_zookeeper_auth_cmd: str
    poll_frequency: float
    heartbeat_timeout: float
    airflow_scheduler_start_command: str
    airflow_scheduler_stop_command: str
    airflow_scheduler_status_command: str
    airflow_virtualenv: str
    airflow_scheduler_log_file: str       # ~ is expanded on the node
    scheduler_user: str
    alert_to_email: Tuple[str, ...]
    alert_email_subject: str
    retry_count_before_alerting: int
    smtp_user: str
    smtp_password: str
    logging_level: str
    logging_dir: str                      # ~ is expanded
    logging_file_name: str
    logs_rotate_when: str
    logs_rotate_backup_count: int
    node_name: str                        # never empty
    state_dir: str                        # ~ is expanded on the node
    ssh_command: str
    ssh_options: str
    query_timeout: float
    scheduler_start_timeout: float
    scheduler_stop_wait_time: float
    scheduler_restart_sleep_time: float
    on_metadata_loss: str
    fence_grace_time: float
    fence_command: str
    fence_timeout: float
    on_event_command: str
    on_event_timeout: float
    scheduler_restart_budget: int
    scheduler_restart_window: float
    status_http_port: int                 # 0: none
    status_http_address: str
    reminder_interval: float
    health_page_verify_tls: bool
    allow_sqlite_on_network_file_system: bool

    sql_alchemy_conn: str
    smtp: SmtpSettings
    health_urls: Tuple[str, ...]          # to be tried in this order; none: no page is configured
    health_threshold_s: float             # of scheduler heartbeats
    airflow_home: str
    airflow_home_is_explicit: bool        # a start must export it
    path: str                             # of airflow.cfg
    state_dir_here: str                   # state_dir on this host
    warnings: Tuple[str, ...]             # lines to log at start
    notes: Tuple[str, ...]                # what was understood in a way worth a line

    @property
    def heartbeat_interval_s(self) -> float:
        """i: how often the heartbeat is written."""
        return self.heartbeat_timeout / 10

    @property
    def acting_window_s(self) -> float:
        """The part of the heartbeat timeout in which the active controller may act."""
        return self.heartbeat_timeout * 2 / 3

    @property
    def retry_interval_s(self) -> float:
        """r: when a failed metadata operation is tried again."""
        return RETRY_INTERVAL_S

    @property
    def metadata_limit_s(self) -> float:
        """c_m: the limit of one metadata operation."""
        return min(3.0, self.heartbeat_timeout / 10)

    @property
    def promise_s(self) -> float:
        """F: a node whose controller is cut off from the metadata has ended its scheduler by then.

        2/3 h to the deadline, c_m for one last try, d to notice, g and k to end the scheduler.
        """
        return (self.acting_window_s + self.metadata_limit_s + FENCE_TICK_S + self.fence_grace_time
                + KILL_EFFECT_S)

    @property
    def settle_s(self) -> float:
        """S: an operator's start command may detach, and its process appear late."""
        own_start = not self.airflow_scheduler_start_command
        return OWN_SETTLE_S if own_start else self.scheduler_restart_sleep_time

    @property
    def stop_timeout_s(self) -> float:
        """The limit of a stop: two waits and a look; an operator's command has a minute before."""
        own = 2 * self.scheduler_stop_wait_time + self.query_timeout + 1
        return own + 60.0 if self.airflow_scheduler_stop_command else own

    def __repr__(self) -> str:
        return "<Configuration from {}>".format(self.path)  # all its values would show secrets

    @classmethod
    def load(cls, world: World, path: Optional[str] = None,
             overrides: Optional[Mapping[str, str]] = None,
             need_own_name: bool = False) -> "Configuration":
        """Read airflow.cfg and the environment; `path` is that of --config, else Airflow's rules.

        `overrides` are values of our section from the command line, as text. With `need_own_name`
        this host must be a node, with its state on a local file system, as `start` needs it.
        Raises ConfigurationError with one line for each problem, all of them together.
        """
        return _Loader(world, path, overrides or {}).load(need_own_name)


def silence_s(promise_s: float) -> float:
    """W: after so long without a sign of life a node has kept its promise, by any clock."""
    return CLOCK_RATE_LIMIT * promise_s


class WorstCase(NamedTuple):
    """A fault, and the longest time that may pass after it; `seconds` is None: no limit."""
    what: str
    seconds: Optional[float]
    then: str = ""   # what comes on top of the seconds, in words

    def __str__(self) -> str:
        if self.seconds is None:
            return "{}: {}".format(self.what, self.then)
        whole = -int(-round(self.seconds, 3) // 1)
        return "{}: {} s{}".format(self.what, whole, self.then and " + " + self.then)


AIRFLOW_HEARTBEAT_S = 5.0   # how often Airflow's scheduler shows its life


def worst_cases(configuration: Any) -> List[WorstCase]:
    """The times that follow from a configuration, which all nodes are taken to have.

    Most are until one scheduler runs again; s is what its own start takes.
    """
    p, h, c = (configuration.poll_frequency, configuration.heartbeat_timeout,
               configuration.query_timeout)
    i, c_m = configuration.heartbeat_interval_s, configuration.metadata_limit_s
    turn_s, takeover_s = p + 2 * c + c_m, i + 2 * c + 3 * c_m
    outage_s = configuration.acting_window_s - i - c_m - RETRY_INTERVAL_S
    away = ([WorstCase("nothing happens while the metadata is away for less than",
                       float(int(outage_s + 1e-9))),
             WorstCase("the metadata is away for longer: after its return", turn_s, "s")]
            if configuration.on_metadata_loss == "stop" else
            [WorstCase("the metadata is away and the scheduler dies: after its return",
                       turn_s, "s")])
    gone_s = left_after_s(configuration)
    return [
        WorstCase("the scheduler dies", turn_s, "s"),
        WorstCase("the scheduler hangs", configuration.health_threshold_s + AIRFLOW_HEARTBEAT_S
                  + p + c, "its stop + s"),
        WorstCase("its node is powered off or cut off, with the active controller or without",
                  None, "not before it answers or a person uses confirm_dead")
        if gone_s is None else
        WorstCase("its node is powered off or cut off, with the active controller or without",
                  gone_s + takeover_s, "s"),
        WorstCase("the active controller is lost, and a new one is active", h + i + c_m),
        WorstCase("the active controller is lost in the middle of a restart", h + p + takeover_s,
                  "s"),
        WorstCase("the active controller's main loop alone sticks: all this longer by", h),
        WorstCase("the active controller is stopped in order, and a new one is active", i + c_m),
    ] + away


def left_after_s(configuration: Any) -> Optional[float]:
    """When a node that gives no sign of life is known to run nothing; None: never by itself."""
    proofs = []
    if configuration.on_metadata_loss == "stop":
        proofs.append(max(configuration.heartbeat_timeout, silence_s(configuration.promise_s)))
    if configuration.fence_command:
        proofs.append(configuration.heartbeat_timeout + configuration.fence_timeout)
    return max(proofs) if proofs else None


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """Expand $NAME, ${NAME} and a leading ~, again and again, as Airflow does with its values."""
    def value_of(match: Any) -> str:
        return environment.get(match.group(1) or match.group(2), match.group(0))
    for _ in range(10):  # a variable that names itself would go on for ever
        expanded = re.sub(r"\$(?:(\w+)|\{([^}]*)\})", value_of, text, flags=re.ASCII)
        if re.match(r"~(/|$)", expanded) and environment.get("HOME"):
            expanded = (environment["HOME"].rstrip("/") + expanded[1:]) or "/"
        elif expanded.startswith("~"):
            expanded = os.path.expanduser(expanded)
        if expanded == text:
            break
        text = expanded
    return text


def airflow_home(world: World) -> str:
    """The directory AIRFLOW_HOME, else ~/airflow."""
    environment = world.environment()
    return _expand(environment.get("AIRFLOW_HOME") or "~/airflow", environment)


def find_airflow_cfg(world: World, path: Optional[str] = None) -> str:
    """Where airflow.cfg is: `path` (of --config), AIRFLOW_CONFIG, or in Airflow's home."""
    environment = world.environment()
    found = path or environment.get("AIRFLOW_CONFIG") or airflow_home(world) + "/airflow.cfg"
    return os.path.abspath(_expand(found, environment))


def _read_airflow_cfg(world: World, path: str) -> str:
    """The text of airflow.cfg. Raises ConfigurationError when there is none to be read."""
    try:
        text = world.read_text(path)
    except OSError as error:
        raise ConfigurationError("{}: can't be read: {}. It must be a file that user {} may read."
                                 .format(path, error.strerror or error, os.geteuid()))
    if text is None:
        raise ConfigurationError(
            "{}: there is no such file. Run any airflow command to make it, or name the right one "
            "by --config FILE, AIRFLOW_CONFIG or AIRFLOW_HOME.".format(path))
    for number, line in enumerate(text.split("\n"), 1):
        if re.search("[\udc80-\udcff\0]", line):
            raise ConfigurationError("{}: line {} is not UTF-8 text; save the file as UTF-8."
                                     .format(path, number))
    return text


def _parse_airflow_cfg(text: str, path: str) -> configparser.ConfigParser:
    """Parse airflow.cfg as Airflow does. Lines are named by number only: they may hold secrets."""
    parser = configparser.ConfigParser()
    try:
        parser.read_string(text[1:] if text.startswith("\ufeff") else text)
    except configparser.DuplicateSectionError as error:
        problem = "line {}: section [{}] stands there for the second time; make them one".format(
            error.lineno, error.section)
    except configparser.DuplicateOptionError as error:
        problem = "line {}: [{}] {} stands there for the second time; remove one".format(
            error.lineno, error.section, error.option)
    except configparser.MissingSectionHeaderError as error:
        problem = "line {}: stands before the first [section]; remove it".format(error.lineno)
    except configparser.ParsingError as error:
        numbers = [number for number, _ in getattr(error, "errors", [])]
        where = ", ".join(str(number) for number in numbers) or getattr(error, "lineno", "unknown")
        problem = "line {}: neither a [section], nor key = value, nor a # comment; correct it" \
            .format(where)
    else:
        return parser
    raise ConfigurationError("{}, {}.".format(path, problem))


# The start and stop commands that the pip package's init wrote, or its documentation shows.
_OLD_START = re.compile(
    r"export AIRFLOW_HOME=(?P<home>[^;]*?) ?;(?: ?(?P<source>[^;]*?) ?;)? ?"
    r"nohup airflow scheduler >> (?P<log>\S+) &")
_OLD_STOP = ("for pid in `ps -ef | grep \"airflow scheduler\" | awk '{print $2}'` ; "
             "do kill -9 $pid ; done")


def _home_relative(path: str) -> str:
    """A path as an old start command wrote it, in a shell that begins in the user's home."""
    path = re.sub(r"^(\$HOME|\$\{HOME\})(?=/)", "~", path)
    return path if path.startswith(("/", "~")) else "~/" + path


def _sourced_path(text: str) -> Optional[str]:
    """The path behind `source`, '' where nothing is sourced, None where the text is another."""
    if text.strip("{}") == "":
        return ""
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    return _home_relative(words[1]) if len(words) == 2 and words[0] in ("source", ".") else None


class _Loader:
    """One load of the configuration: collects all problems before it gives up."""
    LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

    def __init__(self, world: World, path: Optional[str], overrides: Mapping[str, str]) -> None:
        self.world = world
        self.environment = world.environment()
        self.overrides = {name: text for name, text in overrides.items() if text is not None}
        self.path = find_airflow_cfg(world, path)
        self.parser = _parse_airflow_cfg(_read_airflow_cfg(world, self.path), self.path)
        self.values: Dict[str, Any] = {}
        self.problems: List[str] = []
        self.warnings: List[str] = []
        self.notes: List[str] = []
        self.home = airflow_home(world)
        self.home_is_explicit = bool(self.environment.get("AIRFLOW_HOME"))

    def load(self, need_own_name: bool) -> Configuration:
        self._warn_of_unknown_keys()
        for option in OPTIONS:
            self.values[option.name] = self._own_value(option)
        self._check_section()
        self._check_nodes(need_own_name)
        self._check_timing()
        self._replace_old_commands()
        self._drop_strangers_address()
        self._ask_for_zookeeper_auth()
        state_dir_here = _expand(self.values["state_dir"], self.environment)
        if need_own_name:
            self._check_state_dir(state_dir_here)
        self.values["logging_dir"] = _expand(self.values["logging_dir"], self.environment)
        if self.values["logging_level"] == "WARN":
            self.values["logging_level"] = "WARNING"
        conn = self._sql_alchemy_conn()
        smtp = self._smtp()
        threshold = self._airflow_value("scheduler", "scheduler_health_check_threshold", "30",
                                        *_seconds(1, 86400))
        if self.problems:
            raise ConfigurationError("\n".join(self.problems))
        return Configuration(
            sql_alchemy_conn=conn, smtp=smtp, health_urls=self._health_urls(),
            health_threshold_s=threshold, airflow_home=self.home,
            airflow_home_is_explicit=self.home_is_explicit, path=self.path,
            state_dir_here=state_dir_here, warnings=tuple(self.warnings), notes=tuple(self.notes),
            **self.values)

    # -- our section

    def _own_text(self, name: str) -> Optional[str]:
        """The raw text of a key of our section, None when it is not set."""
        if name in self.overrides:
            return self.overrides[name]
        variable = self._variable(SECTION, name)
        if variable in self.environment:
            return self.environment[variable]
        return self.parser.get(SECTION, name, raw=True, fallback=None)

    def _own_value(self, option: Option) -> Any:
        text = self._own_text(option.name)
        if text is None:
            return option.parse(option.default)
        try:
            return option.parse(text.strip())
        except ValueError:
            self._wrong_own(option.name, "must be " + option.allowed)
            return option.parse(option.default)  # so that the other checks can go on

    def _wrong_own(self, name: str, remedy: str) -> None:
        text, option = self._own_text(name), _OPTION_BY_NAME[name]
        shown = None if option.secret else option.default if text is None else text
        self._wrong(SECTION, name, shown, remedy)

    def _wrong(self, section: str, name: str, text: Optional[str], remedy: str) -> None:
        """Note a problem: where it stands, its text (None for a secret), and what is allowed."""
        place, variable = self.path + ",", self._variable(section, name)
        if section == SECTION and name in self.overrides:
            place = "command line, for"
        elif variable in self.environment:
            place = "environment variable {}, for".format(variable)
        if text is not None and re.search(r"\s[#;]", text):
            remedy += " (a comment needs a line of its own)"
        shown = "(not shown)" if text is None else repr(text[:77] + "..." if text[80:] else text)
        self.problems.append("{} [{}] {} = {}: {}.".format(place, section, name, shown, remedy))

    def _check_section(self) -> None:
        """Without any word to us this host was never set up: the defaults are not an assignment."""
        prefix = self._variable(SECTION, "")
        if self.parser.has_section(SECTION) or any(
                name.startswith(prefix) for name in self.environment):
            return
        import difflib
        similar = difflib.get_close_matches(SECTION, [name.lower() for name in
                                                      self.parser.sections()], 1)
        self.problems.append("{}: it has no section [{}]{}. Run `asfc.py init` to append it."
                             .format(self.path, SECTION,
                                     ", only something like it" if similar else ""))

    def _warn_of_unknown_keys(self) -> None:
        prefix = self._variable(SECTION, "")
        names = {name: "{}, [{}]".format(self.path, SECTION) for name in (
            self.parser.options(SECTION) if self.parser.has_section(SECTION) else ())
            if name not in self.parser.defaults()}
        names.update((name[len(prefix):].lower(), "environment variable " + name + ", for")
                     for name in self.environment if name.startswith(prefix))
        for name, place in sorted(names.items()):
            if name in _OPTION_BY_NAME:
                continue
            import difflib
            near = difflib.get_close_matches(name, list(_OPTION_BY_NAME), 1)
            self.warnings.append("{} {}: asfc has no such key, it is ignored{}.".format(
                place, name, "; did you mean {}?".format(near[0]) if near else ""))

    def _check_nodes(self, need_own_name: bool) -> None:
        """Settle this node's own name, and the list with `localhost` replaced by it."""
        key = "scheduler_nodes_in_cluster"
        names = self._without_duplicates(self.values[key])
        host = self.world.host_name()
        own = self.values["node_name"] or host
        if any(name.lower() in self.LOCAL_NAMES for name in names):
            if len(names) > 1:
                self._wrong_own(key, "localhost can't stand beside other nodes; write what "
                                "`get_current_host` prints on each node")
                return
            names = (own,)
        own = next((name for name in names if name.lower() == own.lower()), own)
        self.values.update({key: names, "node_name": own})
        if own in names and not is_host_name(own):
            self._wrong_own("node_name", "this host's name {!r} can't be used; set node_name to a "
                            "host name".format(own))
        if need_own_name and own not in names:
            self._wrong_own(key, "this node's own name {!r} is not in it. `get_current_host` "
                            "prints {!r}: write that into the list on all nodes, or set node_name "
                            "to this node's name in the list".format(own, host))

    def _without_duplicates(self, names: Sequence[str]) -> Tuple[str, ...]:
        """The first of each name: host names are the same in upper and lower case."""
        unique: Dict[str, str] = {}
        for name in names:
            if name.lower() in unique:
                self.warnings.append("{}, [{}] scheduler_nodes_in_cluster: {} stands there more "
                                     "than once; it counts once.".format(self.path, SECTION, name))
            unique.setdefault(name.lower(), name)
        return tuple(unique.values())

    def _check_timing(self) -> None:
        """The inequalities on which the safety of the lease rests."""
        timeout = self.values["heartbeat_timeout"]
        window, interval, limit = timeout * 2 / 3, timeout / 10, min(3.0, timeout / 10)
        longest = CLOCK_RATE_LIMIT * (window + limit)
        if longest > timeout:
            self._wrong_own("heartbeat_timeout", "{:g} x (two thirds of it, {:.3g} s, + metadata "
                            "limit {:g} s) = {:.3g} s must not be more than it; make it longer"
                            .format(CLOCK_RATE_LIMIT, window, limit, longest))
        twice = 2 * (interval + limit + RETRY_INTERVAL_S)
        if window < twice - 1e-9:
            self._wrong_own("heartbeat_timeout", "two thirds of it, {:.3g} s, must be at least 2 x "
                            "(heartbeat interval {:g} s + metadata limit {:g} s + retry interval "
                            "{:g} s) = {:g} s; 7.5 s is the shortest that works".format(
                                window, interval, limit, RETRY_INTERVAL_S, twice))

    def _check_state_dir(self, state_dir_here: str) -> None:
        kind = network_file_system(self.world, state_dir_here)
        if kind:
            self._wrong_own("state_dir", "{} is on a network file system ({}); locks and gates "
                            "need a directory on a local one".format(state_dir_here, kind))

    def _replace_old_commands(self) -> None:
        """Put asfc's own commands in place of the pip package's default texts, which don't work."""
        note = "[{}] {} has the old default text, which doesn't work; asfc's own way is used{}."
        key = "airflow_scheduler_start_command"
        start = _OLD_START.fullmatch(" ".join(self.values[key].split()))
        sourced = _sourced_path(start.group("source") or "") if start else None
        if start and sourced is not None:
            self.values[key] = ""
            self._keep("airflow_virtualenv", sourced)
            self._keep("airflow_scheduler_log_file", _home_relative(start.group("log")))
            kept = [sourced] if sourced else []
            if start.group("home").startswith("/"):
                self.home, self.home_is_explicit = start.group("home"), True
                kept.append("AIRFLOW_HOME=" + self.home)
            self.notes.append(note.format(
                SECTION, key, " with " + " and ".join(kept) if kept else ""))
        key = "airflow_scheduler_stop_command"
        # What the pip package did: old config readers took a bare " ;" for a comment.
        self.values[key] = self.values[key].replace("\\;", ";")
        stop = self.values[key].replace("{{", "{").replace("}}", "}")
        if " ".join(stop.replace(";", " ; ").split()) == _OLD_STOP:
            self.values[key] = ""
            self.notes.append(note.format(SECTION, key, ""))

    def _keep(self, name: str, text: str) -> None:
        """Take over what an old start command said, unless a key of its own says it."""
        if self._own_text(name) is None and text:
            self.values[name] = text

    def _drop_strangers_address(self) -> None:
        given = self.values["alert_to_email"]
        kept = tuple(address for address in given if address.lower() != STRANGERS_ADDRESS)
        if kept != given:
            self.values["alert_to_email"] = kept
            self.warnings.append(
                "{}, [{}] alert_to_email: {} is the old default, an address of strangers; no mail "
                "goes there. Write your own address.".format(self.path, SECTION, STRANGERS_ADDRESS))

    def _ask_for_zookeeper_auth(self) -> None:
        key = "metadata_service_zookeeper_auth"
        if self.values[key] or not self.values[key + "_cmd"] \
                or self.values["metadata_service_type"] != "ZookeeperMetadataService":
            return
        output = self._command_output(SECTION, key, self.values[key + "_cmd"])
        try:
            self.values[key] = _OPTION_BY_NAME[key].parse(output)
        except ValueError:
            self._wrong(SECTION, key + "_cmd", None, "it must print user:password")

    # -- Airflow's own keys

    @staticmethod
    def _variable(section: str, name: str) -> str:
        return "AIRFLOW__{}__{}".format(section.upper(), name.upper())

    def _airflow_text(self, sections: Sequence[str], name: str, sensitive: bool = False) -> str:
        """The value of a key of Airflow's by its rules, '' where it is not set.

        The environment goes before the file, the first of the sections before the others. Only a
        sensitive key has *_cmd and *_secret forms.
        """
        for section in sections:
            variable = self._variable(section, name)
            if self.environment.get(variable):
                return _expand(self.environment[variable], self.environment)
            if sensitive and self.environment.get(variable + "_CMD"):
                return self._command_output(section, name, self.environment[variable + "_CMD"])
        for section in sections:
            text = self._file_text(section, name)
            if text:
                return _expand(text, self.environment)
        for section in sections if sensitive else ():
            command = self._file_text(section, name + "_cmd")
            if command:
                return self._command_output(section, name, command)
        for section in sections if sensitive else ():
            if self._variable(section, name) + "_SECRET" in self.environment or \
                    self._file_text(section, name + "_secret"):
                self._wrong(section, name + "_secret", None, "asfc can't ask a secrets backend; "
                            "set {0}, or {0}_cmd to a command that prints it".format(name))
        return ""

    def _file_text(self, section: str, name: str) -> str:
        """The value in the file, %% read as %. Its own text is never told: it may be a secret."""
        try:
            return self.parser.get(section, name, fallback="")
        except configparser.InterpolationError:
            self._wrong(section, name, None,
                        "Airflow can't read it either: a % must be written as %%")
            return ""

    def _command_output(self, section: str, name: str, command: str) -> str:
        """What a *_cmd key's command prints. Neither it nor its output is told: secrets."""
        try:
            words = tuple(shlex.split(command))
            problem = "" if words else "it is empty"
        except ValueError:
            problem = "its quotes are not paired"
        if not problem:
            result = self.world.run([Command(words, COMMAND_LIMIT_S)])[0]
            # Airflow keeps a line break at the end; none of these values can mean one.
            output = result.stdout.rstrip("\r\n")
            if result.status == 0 and output:
                return output
            problem = ("no answer or no such program" if result.status is None else
                       "exit status {}".format(result.status) if result.status else
                       "it printed nothing")
        self._wrong(section, name + "_cmd", None, "{}; it must be a command, run without a shell, "
                    "that prints the value of {} within {:g} s".format(
                        problem, name, COMMAND_LIMIT_S))
        return ""

    def _airflow_value(self, section: str, name: str, default: str, parse: Callable[[str], Any],
                       allowed: str) -> Any:
        """A checked value of a key of Airflow's."""
        text = self._airflow_text((section,), name).strip() or default
        try:
            return parse(text.split("#")[0].strip())
        except ValueError:
            self._wrong(section, name, text, "must be " + allowed)
            return parse(default)

    def _sql_alchemy_conn(self) -> str:
        before, name = len(self.problems), "sql_alchemy_conn"
        url = self._airflow_text(("database", "core"), name, sensitive=True).strip()
        if url and "://" not in url:
            by_variable = [section for section in ("database", "core")
                           if self._variable(section, name) in self.environment]
            in_file = "database" if self.parser.has_option("database", name) else "core"
            self._wrong((by_variable + [in_file])[0], name, None, "must be the URL of a database, "
                        "such as postgresql://user:password@host/airflow")
        if not url and len(self.problems) == before:
            url = "sqlite:///{}/airflow.db".format(self.home.rstrip("/"))
        return url

    def _smtp(self) -> SmtpSettings:
        """[smtp] of any Airflow, with our own login before its."""
        user = self.values["smtp_user"] or self._airflow_text(("smtp",), "smtp_user", True)
        password = self.values["smtp_password"] or self._airflow_text(
            ("smtp",), "smtp_password", True)
        ssl = self._airflow_value("smtp", "smtp_ssl", "False", *_yes_or_no())
        starttls = self._airflow_value("smtp", "smtp_starttls", "True", *_yes_or_no())
        return SmtpSettings(
            host=self._airflow_value("smtp", "smtp_host", "localhost", _host, "a host name"),
            port=self._airflow_value("smtp", "smtp_port", "25", *_number(1, 65535)),
            user=user, password=password, starttls=starttls and not ssl, ssl=ssl,
            mail_from=self._airflow_text(("smtp",), "smtp_mail_from") or "airflow@example.com",
            timeout_s=self._airflow_value("smtp", "smtp_timeout", "30", *_seconds(1, 600)))

    def _health_urls(self) -> Tuple[str, ...]:
        """Airflow 3 has [api] base_url and a page of its own; it understands [webserver] too."""
        urls: List[str] = []
        for section, pages in (("api", ("/api/v2/monitor/health", "/health")),
                               ("webserver", ("/health", "/api/v2/monitor/health"))):
            base = self._airflow_text((section,), "base_url").strip().rstrip("/")
            if base and not re.match(r"https?://[^/\s]+\S*$", base):
                self.warnings.append("{}, [{}] base_url: not an http:// or https:// URL; the "
                                     "health page is not asked.".format(self.path, section))
                continue
            urls += [base + page for page in pages if base and base + page not in urls]
        return tuple(urls)


def _host(text: str) -> str:
    _check(is_host_name(text))
    return text


def append_default_section(world: World, path: str, virtualenv: str = "") -> str:
    """Append our section, with its defaults, to airflow.cfg, once; says in a sentence what it did.

    `virtualenv` is the path of bin/activate that the scheduler is to be started with, or ''.
    Raises ConfigurationError when the file is missing or broken or can't be written.
    """
    text = _read_airflow_cfg(world, path)
    if _parse_airflow_cfg(text, path).has_section(SECTION):
        return "{} has a section [{}] already; nothing was changed.".format(path, SECTION)
    option = _OPTION_BY_NAME["airflow_virtualenv"]
    try:
        section = default_section_text(option.parse(virtualenv))
    except ValueError:
        raise ConfigurationError("--venv {!r}, for [{}] {}: must be {}.".format(
            virtualenv, SECTION, option.name, option.allowed))
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    addition = gap + section
    if "\r\n" in text:
        addition = addition.replace("\n", "\r\n")
    try:
        world.write_text(os.path.realpath(path), text + addition)  # a symbolic link stays one
    except OSError as error:
        raise ConfigurationError("{}: can't be written: {}. Run `init` as a user who may write the "
                                 "file and its directory.".format(path, error.strerror or error))
    return "The section [{}] was appended to {}. Edit scheduler_nodes_in_cluster there.".format(
        SECTION, path)


NETWORK_FILE_SYSTEMS = frozenset(
    "nfs nfs4 cifs smb3 smbfs ncpfs 9p ceph glusterfs lustre gpfs afs beegfs ocfs2 gfs2 orangefs "
    "pvfs2 coda davfs acfs vboxsf vmhgfs prl_fs fuse.glusterfs fuse.sshfs fuse.ceph "
    "fuse.ceph-fuse fuse.s3fs fuse.gcsfuse fuse.rclone fuse.juicefs fuse.mfs fuse.lizardfs "
    "fuse.davfs2 fuse.smbnetfs fuse.vmhgfs-fuse fuse.goofys fuse.moosefs fuse.seaweedfs "
    "fuse.blobfuse fuse.blobfuse2".split())


def network_file_system(world: World, path: str) -> str:
    """The type of the network file system that a path of this host lies on, '' on a local one.

    The path itself need not exist yet. Where the mounts can't be read the answer is ''.
    """
    try:
        mounts = world.read_text("/proc/self/mountinfo") or ""
    except OSError:
        return ""
    path = os.path.realpath(path)
    longest, kind = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if len(before.split(" ")) < 5 or not after:
            continue
        mount_point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)),
                             before.split(" ")[4])
        inside = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= longest:  # of two on one directory the later one counts
            longest, kind = len(mount_point), after.split(" ")[0]
    return kind if kind in NETWORK_FILE_SYSTEMS else ""


###############################################################################
# Values ######################################################################
###############################################################################

RUNNING, STOPPED, UNKNOWN = "running", "stopped", "unknown"


class Pair(NamedTuple):
    """(term, move): orders all that is ever sent to nodes."""
    term: int
    move: int

    def __str__(self) -> str:
        return "{}.{}".format(self.term, self.move)


class Stamp(NamedTuple):
    """What every command to a node carries, so that the node's gate can judge it."""
    cluster: str
    pair: Pair
    instance: str


class Gate(NamedTuple):
    """What a node's gate keeps: the highest pair with its instance, and whom it belongs to."""
    pair: Pair
    instance: str
    cluster: str
    node: str


class Intent(NamedTuple):
    """A start that a node has begun and whose process it has not seen yet."""
    pair: Pair
    instance: str
    command_runs: bool
    age_s: float              # since the start command was launched
    ended_s: Optional[float]  # since its end was first seen; None while it runs


class Process(NamedTuple):
    """A process on a node; pid and start time (clock ticks since boot) name it for good."""
    pid: int
    start: int
    parent: int
    session: int
    uid: int
    arguments: str


class NodeReport(NamedTuple):
    """What is known of one node after it was asked: running, stopped, or unknown and why.

    `gate` is None when the node did not answer, or answered a verb's query, or its own controller
    while another command held the lock: neither proves anything.
    """
    node: str
    state: str
    reason: str
    answered: bool = False               # the node's own script answered with our nonce
    refused: str = ""                    # why the node refused the command
    gate: Optional[Gate] = None
    intent: Optional[Intent] = None
    mains: Tuple[Process, ...] = ()      # main processes of schedulers, the one to keep first
    remnants: Tuple[Process, ...] = ()   # what dead schedulers left
    foreign: Tuple[Process, ...] = ()    # schedulers of other users: told, never touched
    done: str = ""                       # what a start or a stop did, in words
    output: str = ""                     # the last lines that the start command wrote
    directory: str = ""                  # the id of its state directory, from controller.lock
    asked_at: float = 0.0                # the asker's clock before the question was sent
    by_record: bool = False              # it gave no answer: this is what its own record says


class StartMade(NamedTuple):
    """A start attempt, for the restart budget; `at_s` is on the cluster's clock."""
    node: str
    at_s: float


class FailedNode(NamedTuple):
    """A node that is passed over until `until_s` (cluster's clock); the wait doubles each time."""
    node: str
    until_s: float
    wait_s: float
    why: str


class Vouch(NamedTuple):
    """Somebody's word that a node is off: fence_command's success, or a person's.

    It lapses when the node answers again, or when its record is not of that version any more.
    """
    node: str
    version: Optional[int]   # of the node's record when the word was given; None: there was none
    by: str


def known_fields(kind: Any, fields: Mapping[str, Any]) -> Dict[str, Any]:
    """The fields that this version knows of what a later one may have written, in one format."""
    return {name: value for name, value in fields.items() if name in kind._fields}


CLUSTER = "cluster"      # the name of the record
CLUSTER_FORMAT = 2       # the number of its format; format 1 had no node records beside it


class ClusterRecord(NamedTuple):
    """The record `cluster`: who is active, and where a scheduler may be alive.

    `clock_s` is the cluster's own clock: the seconds that controllers have been active, added up
    by their heartbeats. Budgets and back-offs are measured on it, so no wall clock matters and a
    new active controller goes on where the last one was.
    """
    cluster: str
    term: int = 0
    move: int = 0
    holder: str = ""                  # the active failover node; "" when nobody is active
    instance: str = ""                # the run of the controller that is active
    lock_id: str = ""                 # the id in that controller's lock file
    heartbeat_timeout: float = 30.0   # what that controller promised
    heartbeat_at: str = ""            # UTC text, for people only
    clock_s: float = 0.0
    state_dir: str = ""               # the key's text: with another one a node has another gate
    possible_nodes: Tuple[str, ...] = ()
    assigned: bool = False            # whether the last possible node is the active scheduler node
    started: bool = False             # whether a start was sent there, or a scheduler seen there
    starts: Tuple[StartMade, ...] = ()
    failed: Tuple[FailedNode, ...] = ()
    cleared: bool = False             # emptied by clear_metadata: taken only after h
    paused: str = ""                  # why asfc is paused; "" when it is not
    vouched: Tuple[Vouch, ...] = ()   # possible nodes that are known to be off
    alive_at_s: Optional[float] = None   # when the scheduler was last seen running, as clock_s

    @property
    def pair(self) -> Pair:
        return Pair(self.term, self.move)

    @property
    def active_scheduler_node(self) -> Optional[str]:
        return self.possible_nodes[-1] if self.assigned and self.possible_nodes else None

    def to_text(self) -> str:
        """This record as JSON, in ASCII, with the number of its format."""
        return json.dumps(dict(self._asdict(), format=CLUSTER_FORMAT), sort_keys=True)

    def emptied(self) -> "ClusterRecord":
        """What clear_metadata leaves: never a lower term or move, the same id, the same promise."""
        return ClusterRecord(cluster=self.cluster, term=self.term, move=self.move, cleared=True,
                             heartbeat_timeout=self.heartbeat_timeout, clock_s=self.clock_s,
                             paused=self.paused)

    @classmethod
    def from_text(cls, text: str) -> "ClusterRecord":
        """Read a record. Raises MetadataError for one that this version can't understand."""
        try:
            fields = json.loads(text)
            written_format = fields.pop("format")
            if written_format not in (1, CLUSTER_FORMAT):
                raise MetadataError(
                    "the record 'cluster' has format {}, and this version of asfc knows format {}: "
                    "upgrade asfc on this node".format(written_format, CLUSTER_FORMAT))
            fields["vouched"] = tuple(Vouch(*vouch) for vouch in fields.get("vouched", ()))
            fields["possible_nodes"] = tuple(fields["possible_nodes"])
            fields["starts"] = tuple(StartMade(*start) for start in fields["starts"])
            fields["failed"] = tuple(FailedNode(*node) for node in fields["failed"])
            record = cls(**known_fields(cls, fields))
            return record._replace(term=int(record.term), move=int(record.move),
                                   heartbeat_timeout=float(record.heartbeat_timeout))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise MetadataError("the record 'cluster' can't be read: {:.80}".format(repr(text)))


NODE_PREFIX = "node/"    # before the name of a node, in the name of its record
NODE_FORMAT = 1


class NodeRecord(NamedTuple):
    """What a node's own controller says of itself and of what it sees; written by it alone."""
    node: str
    instance: str
    sequence: int = 0                 # of the writes of this instance
    gate: Optional[Gate] = None       # as it was when the processes were listed
    state: str = UNKNOWN
    reason: str = ""
    mains: Tuple[Process, ...] = ()
    remnants: int = 0
    intent: bool = False              # whether a start is open there
    promise_s: Optional[float] = None  # F: fenced so long after the last write; None: no promise
    no_promise: str = ""              # why there is none
    state_dir: str = ""
    state_dir_id: str = ""            # stands in its lock file
    host_names: Tuple[str, ...] = ()  # by which Airflow may know this host
    version: str = ""                 # of asfc
    settings: Mapping[str, Any] = {}  # those that matter to the others
    written_at: str = ""              # UTC text, for people only
    fenced: str = ""                  # when and why it last fenced itself, for people

    def to_text(self) -> str:
        """This record as JSON, in ASCII, with the number of its format."""
        return json.dumps(dict(self._asdict(), format=NODE_FORMAT), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Optional["NodeRecord"]:
        """Read a record; None for one that this version can't understand: it is no evidence."""
        try:
            fields = json.loads(text)
            if fields.pop("format") != NODE_FORMAT:
                return None
            gate = fields["gate"]
            fields["gate"] = gate and Gate(Pair(*gate[0]), *gate[1:])
            fields["mains"] = tuple(Process(*process) for process in fields["mains"])
            fields["host_names"] = tuple(fields["host_names"])
            promise_s = fields["promise_s"]
            fields["promise_s"] = None if promise_s is None else float(promise_s)
            record = cls(**known_fields(cls, fields))
            return record if record._is_sound() else None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def _is_sound(self) -> bool:
        """Whether each field is of its kind: one damaged record must not stop all heartbeats, and
        no silence may prove anything at once."""
        texts = (self.node, self.instance, self.reason, self.no_promise, self.state_dir,
                 self.state_dir_id, self.version, self.written_at, self.fenced) + self.host_names
        return (all(isinstance(text, str) for text in texts)
                and self.state in (RUNNING, STOPPED, UNKNOWN)
                and isinstance(self.settings, dict)
                and isinstance(self.settings.get("heartbeat_timeout", 0), (int, float))
                and (self.promise_s is None or 0 < self.promise_s < float("inf")))


HISTORY = "history"
HISTORY_FORMAT = 1


class HistoryEvent(NamedTuple):
    """Something that happened, for people: when, in which term, why, on which proof."""
    at: str                           # UTC text
    node: str                         # whose controller tells it
    term: int
    move: int
    what: str
    why: str = ""
    proof: str = ""
    without_scheduler_s: Optional[float] = None   # how long none was seen to run

    @classmethod
    def all_from_text(cls, text: str) -> List["HistoryEvent"]:
        """The events of the record, the oldest first; none when it can't be understood."""
        try:
            fields = json.loads(text)
            return [cls(**known_fields(cls, event)) for event in fields["events"]] \
                if fields["format"] == HISTORY_FORMAT else []
        except (ValueError, TypeError, KeyError):
            return []


# What can happen: the word that on_event_command gets, and what it means.
EVENTS: Dict[str, str] = collections.OrderedDict((
    ("active", "this controller is active now; the cause says why"),
    ("released", "it gave the lease up in order: it is stopped"),
    ("gave_up", "it gave the lease up: no node answers it, while the others live"),
    ("restored", "the metadata was restored from a backup: the term was raised"),
    ("nodes", "where a scheduler may be is changed: one is moved, found, or proved to be gone"),
    ("waiting", "no scheduler runs and none is started yet; the text says why"),
    ("start", "a scheduler is started"),
    ("start_failed", "a start has failed"),
    ("running", "the scheduler runs, after none was seen to run"),
    ("lost", "the scheduler is not seen to run any more; the cause says why"),
    ("stop", "schedulers or their remnants were stopped on a node, or that was tried"),
    ("self_fence", "this node fences itself, or has done so: its heartbeat was not confirmed"),
    ("outage", "the metadata answers this node again, after a time in which it could not act"),
    ("systemd", "a unit of systemd would bring this node's scheduler back, so it promises nothing"),
    ("fenced", "fence_command has switched a node off"),
    ("fence_failed", "fence_command has failed"),
    ("confirmed_dead", "a person vouched that a node is off"),
    ("cleared", "a person has cleared the metadata"),
    ("paused", "a person has paused asfc"),
    ("resumed", "a person has ended the pause"),
    ("wish", "a switchover or failover is done, refused or failed; the cause says why"),
    ("drained", "a person has drained a node"),
    ("undrained", "a person has ended that")))


def events_table_markdown() -> str:
    """The table of all events for the README."""
    rows = ["| ASFC_EVENT | meaning |", "|---|---|"]
    return "\n".join(rows + ["| `{}` | {} |".format(*event) for event in EVENTS.items()]) + "\n"


def event_command(configuration: Any, kind: str, event: HistoryEvent, instance: str,
                  sequence: int) -> Command:
    """The run of on_event_command for an event, the `sequence`th of this run of asfc."""
    without_s = event.without_scheduler_s
    texts = {"EVENT": kind, "TEXT": event.what, "CAUSE": event.why, "PROOF": event.proof,
             "NODE": event.node, "TERM": str(event.term), "MOVE": str(event.move),
             "TIME": event.at, "INSTANCE": instance, "SEQUENCE": str(sequence),
             "WITHOUT_SCHEDULER_S": "" if without_s is None else str(without_s)}
    environment = {"ASFC_" + name: text[:EVENT_TEXT_LENGTH] for name, text in texts.items()}
    environment["ASFC_ON_EVENT_COMMAND"] = configuration.on_event_command
    return Command(("sh", "-c", 'eval "$ASFC_ON_EVENT_COMMAND"'), configuration.on_event_timeout,
                   environment=environment)


EVENT_TEXT_LENGTH = 16384   # characters: the system takes no longer ones than 128 KiB
HISTORY_LENGTH = 200     # events that the record keeps,
HISTORY_SIZE = 20000     # and the most characters of it: every heartbeat reads all records


def history_text(events: Sequence[HistoryEvent]) -> str:
    """The record's text: the newest events, as many as it may hold."""
    kept: List[Dict[str, Any]] = []
    size = 0
    for event in reversed(events[-HISTORY_LENGTH:]):
        fields = dict(event._asdict())
        size += len(json.dumps(fields))
        if size > HISTORY_SIZE:
            break
        kept.insert(0, fields)
    return json.dumps({"format": HISTORY_FORMAT, "events": kept})


STATUS = "status"
STATUS_FORMAT = 1


class StatusRecord(NamedTuple):
    """What the active controller said last, for people alone: nothing is decided by it."""
    node: str
    term: int
    since: str                            # UTC text: when it said so first
    sentence: str
    unanswered: Mapping[str, str] = {}    # nodes that gave it no clear answer, and why

    @classmethod
    def bounded(cls, node: str, term: int, since: str, sentence: str,
                unanswered: Mapping[str, str]) -> "StatusRecord":
        """A record of a bounded size: every heartbeat reads it."""
        return cls(node, term, since, sentence[:1500],
                   {name: unanswered[name][:200] for name in sorted(unanswered)[:20]})

    def to_text(self) -> str:
        """This record as JSON, in ASCII, with the number of its format."""
        return json.dumps(dict(self._asdict(), format=STATUS_FORMAT), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Optional["StatusRecord"]:
        """Read a record; None for one that this version can't understand."""
        try:
            fields = json.loads(text)
            if fields["format"] != STATUS_FORMAT:
                return None
            return cls(str(fields["node"]), int(fields["term"]), str(fields["since"]),
                       str(fields["sentence"]), dict(fields["unanswered"]))
        except (ValueError, TypeError, KeyError):
            return None


ORDERS = "orders"        # a release that does not know this record lets it be
ORDERS_FORMAT = 1
DONE, REFUSED, FAILED, CANCELLED = "done", "refused", "failed", "cancelled"


class Drain(NamedTuple):
    """A node that a person has taken out of service: no scheduler is started there."""
    node: str
    by: str
    at: str                           # UTC text, for people only
    reason: str = ""

    def __str__(self) -> str:
        return "{} is drained, by {} at {}{}".format(
            self.node, self.by, self.at, self.reason and ": " + self.reason)


class Wish(NamedTuple):
    """A person's wish that the scheduler runs on another node; open until it has an outcome."""
    id: str
    verb: str                         # switchover or failover
    target: str
    by: str
    at: str                           # UTC text, for people only
    until_s: float                    # on the cluster's clock: then it is given up
    forced: bool = False              # also to a failed node, also away from one that is silent
    outcome: str = ""                 # done, refused, failed or cancelled; "" while it is open
    why: str = ""
    without_scheduler_s: Optional[float] = None

    def __str__(self) -> str:
        return "the {} to {}, asked for by {} at {}".format(
            self.verb, self.target, self.by, self.at)


class Orders(NamedTuple):
    """What people want. The verbs write this record; the active controller closes the wish."""
    drained: Tuple[Drain, ...] = ()
    wish: Optional[Wish] = None
    reminded_s: Optional[float] = None   # the cluster's clock at the last reminder of a pause or a
                                         # drain, or when there was none to remind of yet

    @property
    def open_wish(self) -> Optional[Wish]:
        return self.wish if self.wish and not self.wish.outcome else None

    def drain_of(self, node: str) -> Optional[Drain]:
        return next((drain for drain in self.drained if drain.node == node), None)

    def without_drain(self, node: str) -> "Orders":
        return self._replace(drained=tuple(one for one in self.drained if one.node != node))

    def closed(self, wish: Wish) -> "Orders":
        """With this outcome of the wish, if that is the one which is open."""
        found = self.open_wish
        return self._replace(wish=wish) if found and found.id == wish.id else self

    def to_text(self) -> str:
        """This record as JSON, in ASCII, with the number of its format."""
        return json.dumps({
            "format": ORDERS_FORMAT, "drained": [drain._asdict() for drain in self.drained],
            "wish": self.wish and self.wish._asdict(), "reminded_s": self.reminded_s},
            sort_keys=True)

    @classmethod
    def of(cls, records: Mapping[str, Any]) -> "Orders":
        """The record; empty before there is one. Raises MetadataError for a newer format."""
        found = records.get(ORDERS)
        if found is None:
            return NO_ORDERS
        try:
            fields = json.loads(found.value)
            if fields["format"] != ORDERS_FORMAT:
                raise MetadataError(
                    "the record 'orders' has format {}, and this version of asfc knows format {}: "
                    "upgrade asfc on this node".format(fields["format"], ORDERS_FORMAT))
            wish, reminded_s = fields["wish"], fields["reminded_s"]
            if wish:
                wish = Wish(**known_fields(Wish, wish))
                wish = wish._replace(until_s=float(wish.until_s), target=str(wish.target))
            return cls(tuple(Drain(**known_fields(Drain, drain)) for drain in fields["drained"]),
                       wish or None, None if reminded_s is None else float(reminded_s))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise MetadataError("the record 'orders' can't be read: {:.80}".format(
                repr(found.value)))


NO_ORDERS = Orders()


###############################################################################
# Metadata services ###########################################################
###############################################################################


class Record(NamedTuple):
    """A record as it stands in the metadata service; its version is 1 at first and only rises."""
    version: int
    value: str


class Write(NamedTuple):
    """A conditional write: it wins only if the record still has the expected version.

    An expected version of None creates the record: it wins only if there was none.
    """
    name: str
    value: str
    expected_version: Optional[int]


class Exchange(NamedTuple):
    """What one exchange brought: which writes won, and all records as they were after them."""
    won: Tuple[bool, ...]
    records: Dict[str, Record]


class SchedulerJob(NamedTuple):
    """A row of Airflow's job table that tells of a scheduler; each start makes a new one."""
    id: int
    hostname: str     # by Airflow's hostname_callable: need not be a node's name
    state: str        # running, success (it ended in order), failed; what others say counts little
    heartbeat: str    # UTC text by that host's clock: to see that it changed, never to reckon with


class MetadataService:
    """Small named records that all controllers share, each a text with a version.

    A backend brings `exchange` and the words about itself. Each failure is a MetadataError of one
    line. After one, what became of a write is unknown: read again. Nothing is made by reading.
    """

    def exchange(self, writes: Sequence[Write] = ()) -> Exchange:
        """Apply the writes in order, each for itself, then read all records, in one session.

        Takes no longer than metadata_limit_s. Raises MetadataError, and nothing else.
        """
        raise NotImplementedError

    def read_all(self) -> Dict[str, Record]:
        """All records by name, as they are now; none where nothing was ever written."""
        return self.exchange().records

    def write(self, name: str, value: str, expected_version: Optional[int]) -> bool:
        """Write one record on the condition of its version; says whether that won."""
        return self.exchange([Write(name, value, expected_version)]).won[0]

    def change_cluster(self, change: Callable[[Mapping[str, Record]], Optional[ClusterRecord]]
                       ) -> Optional[ClusterRecord]:
        """A verb's write of the record `cluster`, made again when a heartbeat came between.

        `change` is shown all records, leaves the holder's fields alone, and returns None when there
        is nothing to be written. Returns what was written. Raises MetadataError.
        """
        return self._change(CLUSTER, change)

    def change_orders(self, change: Callable[[Mapping[str, Record]], Optional[Orders]]
                      ) -> Optional[Orders]:
        """A verb's write of the record `orders`, likewise."""
        return self._change(ORDERS, change)

    def _change(self, name: str, change: Callable[[Mapping[str, Record]], Any]) -> Any:
        for _ in range(10):
            records = self.read_all()
            found, changed = records.get(name), change(records)
            if changed is None:
                return None
            if self.write(name, changed.to_text(), found.version if found else None):
                return changed
        raise MetadataError("{}: other writers were faster ten times; try again".format(
            self.describe()))

    def clear(self) -> bool:
        """Empty the record `cluster`; False when there is none. Raises MetadataError.

        Its term, move, id and promise stay, for none of them may ever be rewound.
        """
        def emptied(records: Mapping[str, Record]) -> Optional[ClusterRecord]:
            found = records.get(CLUSTER)
            return ClusterRecord.from_text(found.value).emptied() if found else None
        return self.change_cluster(emptied) is not None

    def add_to_history(self, event: HistoryEvent) -> None:
        """Write down what a verb has done. Raises MetadataError."""
        for _ in range(10):
            found = self.read_all().get(HISTORY)
            before = HistoryEvent.all_from_text(found.value) if found else []
            text = history_text(before + [event])
            if self.write(HISTORY, text, found.version if found else None):
                return
        raise MetadataError("{}: other writers were faster ten times".format(self.describe()))

    # Where the original controller leaves its heartbeat, in words.
    LEGACY_PLACE = "the table scheduler_failover_controller_metadata"

    def legacy_heartbeat(self) -> Optional[str]:
        """The heartbeat that the original controller left, word for word; None if there is none."""
        return None

    def describe(self) -> str:
        """What and where the service is, for people, without secrets."""
        raise NotImplementedError

    def check(self) -> str:
        """Ask the service what it is; returns one line: its version and what is risky about it."""
        raise NotImplementedError


class _ServerMetadataService(MetadataService):
    """What the backends have in common: the time limit, and errors of one line without secrets."""

    def __init__(self, world: World, configuration: Any, secret: str) -> None:
        self._world = world
        self._limit_s: float = configuration.metadata_limit_s
        self._secret = secret

    def _deadline(self) -> float:
        return self._world.now() + self._limit_s

    def _left_s(self, deadline: float) -> float:
        """The rest of the time for an exchange, in seconds; MetadataError when there is none."""
        left_s = deadline - self._world.now()
        if left_s < 0.05:
            raise self._error("no answer within {:g} s".format(self._limit_s))
        return left_s

    def _error(self, cause: str) -> MetadataError:
        return MetadataError("{}: {}".format(self.describe(), self._in_one_line(cause)))

    def _in_one_line(self, text: str) -> str:
        """Foreign words made fit for a message: short, in one line, without the password."""
        if self._secret:
            text = text.replace(self._secret, "***")
        line = " ".join(text.split())
        return line if len(line) <= 300 else line[:297] + "..."

    def _encoded(self, write: Write) -> Tuple[bytes, bytes]:
        """Name and value of a record as UTF-8. Raises MetadataError for what can't be stored."""
        found = []
        for field, text in (("name", write.name), ("value", write.value)):
            try:
                data = text.encode("utf-8")
            except UnicodeEncodeError:
                raise self._error("the {} of record {!a:.80} is not proper text".format(
                    field, write.name))
            if b"\0" in data or field == "name" and not 0 < len(data) < 256:
                raise self._error("the {} of record {!a:.80} can't be stored: it holds a NUL "
                                  "character or has no fitting length".format(field, write.name))
            found.append(data)
        return found[0], found[1]

    def _agreed(self, writes: Sequence[Write], exchange: Exchange) -> Exchange:
        """The exchange, if what it read is not older than what it wrote; else MetadataError."""
        records = exchange.records
        for write, has_won in zip(writes, exchange.won):
            version_now = records[write.name].version if write.name in records else 0
            if has_won and version_now <= (write.expected_version or 0):
                raise self._error("it says that it wrote record {}, and shows it unwritten; do all "
                                  "statements reach the same server?".format(write.name))
        return exchange


_Found = TypeVar("_Found")


class _NoTableError(MetadataError):
    """The database answers, and the table that was asked for is not there."""


class DatabaseUrl(NamedTuple):
    """What a sql_alchemy_conn says, its user and password decoded; `options` is its query part."""
    kind: str  # sqlite, mysql or postgresql
    driver: str
    user: str
    password: str
    host: str
    port: str
    database: str
    options: Dict[str, str]

    def __repr__(self) -> str:
        return "DatabaseUrl({}, ...)".format(self.kind)  # never the password, in no traceback


_DATABASE_KINDS = {"sqlite": "sqlite", "mysql": "mysql", "mariadb": "mysql",
                   "postgresql": "postgresql", "postgres": "postgresql"}
_DATABASE_URL = re.compile(r"""
    (?P<kind>\w+) (?:\+(?P<driver>\w+))? ://
    (?: (?P<user>[^:/?]*) (?: :(?P<password>.*?) )? @ )?
    (?: \[(?P<ipv6>[^\]/?]+)\] | (?P<host>[^\[\]:/?@]*) )
    (?: :(?P<port>\d{0,5}) )?
    (?: /(?P<database>[^?]*) )?
    (?: \?(?P<query>.*) )? $""", re.VERBOSE | re.DOTALL)


def read_database_url(text: str) -> DatabaseUrl:
    """Take a sql_alchemy_conn apart by SQLAlchemy's rules: only user and password are encoded.

    Raises ConfigurationError, which never shows the password.
    """
    import urllib.parse
    match = _DATABASE_URL.match(text.strip())
    if not match:
        raise ConfigurationError(
            "sql_alchemy_conn is not a database URL (not shown here: it may hold a password). One "
            "reads kind://user:password@host:port/database, with the special characters of user "
            "and password percent-encoded.")
    found = {name: value or "" for name, value in match.groupdict().items()}
    if found["kind"] not in _DATABASE_KINDS:
        raise ConfigurationError(
            "sql_alchemy_conn names a database of the kind '{}'; asfc can keep its metadata in "
            "SQLite, MySQL, MariaDB and PostgreSQL.".format(found["kind"]))
    if found["port"] and not 0 < int(found["port"]) < 65536:
        raise ConfigurationError("sql_alchemy_conn names the port {}; allowed are 1 to 65535."
                                 .format(found["port"]))
    options: Dict[str, str] = {}
    for key, value in urllib.parse.parse_qsl(found["query"], keep_blank_values=True):
        options[key] = options[key] + "," + value if key in options else value
    return DatabaseUrl(_DATABASE_KINDS[found["kind"]], found["driver"],
                       urllib.parse.unquote(found["user"]), urllib.parse.unquote(found["password"]),
                       found["ipv6"] or found["host"], found["port"], found["database"], options)


class SQLMetadataService(_ServerMetadataService):
    """The records in one table of the database that Airflow uses.

    A dialect brings its statements and a way to run them. A name, a value goes into a statement as
    hexadecimal digits and comes out so: no text can be taken for SQL, and none is changed by a
    character set on its way. Each row of an answer begins with a word that says what it is.
    """
    # {name} and {value} stand for hexadecimal digits, {version} for a whole number.
    CREATE_TABLE: str
    CREATE_RECORD: Tuple[str, ...]
    UPDATE_RECORD: Tuple[str, ...]
    READ_RECORDS: str
    READ_LEGACY: str
    READ_FACTS: Tuple[str, ...]
    # The newest rows of schedulers, found by Airflow's index job_type_heart: the table also holds a
    # row for each task that ever ran. All sessions see a heartbeat as the same text.
    JOBS_LIMIT = 50
    JOBS_WANTED = ("FROM job WHERE job_type = 'SchedulerJob' AND latest_heartbeat IS NOT NULL "
                   "ORDER BY latest_heartbeat DESC LIMIT {}".format(JOBS_LIMIT))
    READ_JOBS: Tuple[str, ...]
    RISKS: Mapping[Tuple[str, str], str] = {}
    CLIENTS: Tuple[str, ...] = ()   # programs, one of which each node needs
    KNOWN_OPTIONS: FrozenSet[str] = frozenset()

    def __init__(self, world: World, configuration: Any, url: DatabaseUrl) -> None:
        hidden = url.password not in (url.user, url.database, url.host)
        super().__init__(world, configuration, url.password if hidden else "")
        self._url = url
        self._kind = ""
        unknown = sorted(set(url.options) - self.KNOWN_OPTIONS)
        if unknown:
            logging.getLogger("asfc").info("sql_alchemy_conn: asfc does not use the parameters %s",
                                           ", ".join(unknown))

    def _run_statements(self, statements: Sequence[str], deadline: float,
                        mode: str = "rw") -> List[Tuple[str, ...]]:
        """Run statements, each for itself, in one session; returns the rows of all of them.

        A file is opened by the mode: ro (to read only), rw, or rwc (and made if need be). Raises
        _NoTableError when the first to name a table misses it, MetadataError for the rest.
        """
        raise NotImplementedError

    def exchange(self, writes: Sequence[Write] = ()) -> Exchange:
        deadline = self._deadline()
        statements = [part for write in writes for part in self._statements_of(write)]
        statements.append(self.READ_RECORDS)
        try:
            rows = self._run_statements(statements, deadline)
        except _NoTableError:
            if not writes:
                return Exchange((), {})
            rows = self._run_with_new_table(statements, deadline)
        return self._exchange_of(writes, rows)

    def legacy_heartbeat(self) -> Optional[str]:
        try:
            rows = self._run_statements([self.READ_LEGACY], self._deadline())
        except _NoTableError:
            return None
        try:
            return bytes.fromhex(rows[0][1]).decode("utf-8", "replace") or None if rows else None
        except (ValueError, IndexError):
            return None  # the heartbeat is NULL

    def scheduler_jobs(self) -> Optional[List[SchedulerJob]]:
        """The newest rows of schedulers in Airflow's job table; None when there is no such table.

        Raises MetadataError. A server that is read-only or a replica is one, too: on it no
        heartbeat can move, which says nothing of the schedulers.
        """
        try:
            rows = self._run_statements(self.READ_JOBS, self._deadline(), "ro")
        except _NoTableError:
            return None
        try:
            jobs = []
            for tag, number, *digits in rows:
                hostname, state, heartbeat = (bytes.fromhex(text).decode("utf-8", "replace")
                                              for text in digits)
                if tag != "job":
                    raise ValueError(tag)
                jobs.append(SchedulerJob(int(number), hostname, state, heartbeat))
            return jobs
        except ValueError as error:
            raise self._error("an answer that can't be ({})".format(error))

    def check(self) -> str:
        try:
            rows = self._run_statements(self.READ_FACTS, self._deadline())
        except _NoTableError:
            return "{}; the first write will make it.".format(self._kind)
        facts = {row[-2]: row[-1] for row in rows if len(row) > 1}
        risks = [self.RISKS[fact] for fact in sorted(facts.items()) if fact in self.RISKS]
        return ". Warning: ".join(["{} {}".format(self._kind, facts.get("version"))] + risks) + "."

    def _statements_of(self, write: Write) -> List[str]:
        """The statements of a conditional write; the last one says how many rows it changed."""
        name, value = self._encoded(write)
        digits = {"name": name.hex(), "value": value.hex()}
        if write.expected_version is None:
            return [part.format(**digits) for part in self.CREATE_RECORD]
        return [part.format(version=int(write.expected_version), **digits)
                for part in self.UPDATE_RECORD]

    def _run_with_new_table(self, statements: Sequence[str],
                            deadline: float) -> List[Tuple[str, ...]]:
        """Make the table and run the statements; others may be making it at the same time."""
        refused: Optional[MetadataError] = None
        try:
            self._run_statements([self.CREATE_TABLE], deadline, "rwc")
        except MetadataError as error:
            refused = error
        try:
            return self._run_statements(statements, deadline)
        except _NoTableError as error:
            raise refused or error

    def _exchange_of(self, writes: Sequence[Write], rows: Sequence[Tuple[str, ...]]) -> Exchange:
        """What the rows say. Rows that can't be the answer to these writes are an error."""
        try:
            answers: Dict[Tuple[str, ...], bool] = {("won", "0"): False, ("won", "1"): True}
            won = tuple(answers[row] for row in rows[:len(writes)])
            records = {}
            for tag, name, version, value in rows[len(won):]:
                records[bytes.fromhex(name).decode("utf-8")] = Record(
                    int(version), bytes.fromhex(value).decode("utf-8"))
                if tag != "record":
                    raise ValueError(tag)
            if len(won) != len(writes):
                raise ValueError("{} of {} writes".format(len(won), len(writes)))
        except (KeyError, ValueError) as error:
            raise self._error("an answer that can't be ({})".format(error))
        return self._agreed(writes, Exchange(won, records))


class SQLiteMetadataService(SQLMetadataService):
    """A file on this host, by Python's own sqlite3: with a rollback journal, never WAL."""
    CREATE_TABLE = ("CREATE TABLE IF NOT EXISTS asfc_metadata (name TEXT NOT NULL PRIMARY KEY, "
                    "version INTEGER NOT NULL, value TEXT NOT NULL)")
    CREATE_RECORD = ("INSERT OR IGNORE INTO asfc_metadata (name, version, value) "
                     "VALUES (CAST(X'{name}' AS TEXT), 1, CAST(X'{value}' AS TEXT))",
                     "SELECT 'won', changes()")
    UPDATE_RECORD = ("UPDATE asfc_metadata SET version = version + 1, "
                     "value = CAST(X'{value}' AS TEXT) "
                     "WHERE name = CAST(X'{name}' AS TEXT) AND version = {version}",
                     "SELECT 'won', changes()")
    READ_RECORDS = "SELECT 'record', hex(name), version, hex(value) FROM asfc_metadata"
    READ_LEGACY = ("SELECT 'legacy', hex(value) FROM scheduler_failover_controller_metadata "
                   "WHERE \"key\" = 'failover_heartbeat'")
    READ_FACTS = ("SELECT 'fact', 'version', sqlite_version()",)
    READ_JOBS = ("SELECT 'job', id, hex(hostname), hex(state), hex(latest_heartbeat) "
                 + SQLMetadataService.JOBS_WANTED,)
    SENTENCES = (  # how SQLite's words begin, and what they mean to an operator
        ("database is locked", "another process has kept it locked for too long"),
        ("database table is locked", "another process has kept it locked for too long"),
        ("attempt to write a readonly", "the file or its directory can't be written by this user"),
        ("unable to open", "this user can't open the file, or can't write its directory"),
        ("file is not a database", "the file is not a SQLite database"),
        ("file is encrypted", "the file is not a SQLite database"),
        ("database disk image", "the file is damaged"),
        ("database or disk is full", "the disk is full"))

    def __init__(self, world: World, configuration: Any, url: DatabaseUrl) -> None:
        super().__init__(world, configuration, url)
        self._kind = "SQLite"
        self._path = path = url.database
        if url.host or not path.startswith("/"):
            raise ConfigurationError(
                "sql_alchemy_conn names no file by its full path ({}); a file that all controllers "
                "of this host can share reads sqlite:////full/path/of/the.db, with four slashes."
                .format(path or "a database in memory"))
        foreign = network_file_system(world, path)
        if foreign and not configuration.allow_sqlite_on_network_file_system:
            raise ConfigurationError(
                "sql_alchemy_conn names {}, a file on a network file system ({}), whose locks often"
                " don't hold. Use MySQL, MariaDB or PostgreSQL, or, if its locks are known to work,"
                " set [scheduler_failover] allow_sqlite_on_network_file_system = True."
                .format(path, foreign))

    def describe(self) -> str:
        return "SQLite file {}".format(self._path)

    def _run_statements(self, statements: Sequence[str], deadline: float,
                        mode: str = "rw") -> List[Tuple[str, ...]]:
        import sqlite3
        if not os.path.isdir(os.path.dirname(self._path)):
            raise self._error("its directory does not exist")
        if mode != "rwc" and not os.path.exists(self._path):
            raise _NoTableError("{}: there is no such file yet".format(self.describe()))
        connection = None
        try:
            connection = self._connect(deadline, mode)
            return [tuple(map(str, row)) for statement in statements
                    for row in self._rows_of(connection, statement, deadline)]
        except sqlite3.Error as error:
            words = str(error)
            if words.startswith("no such table"):
                raise _NoTableError("{}: {}".format(self.describe(), words))
            meaning = [sentence for start, sentence in self.SENTENCES if words.startswith(start)]
            raise self._error("{} ({})".format(meaning[0], words) if meaning else words)
        finally:
            if connection:
                connection.close()

    def _connect(self, deadline: float, mode: str) -> Any:
        import sqlite3
        import urllib.parse
        connection = sqlite3.connect(
            "file:{}?mode={}".format(urllib.parse.quote(self._path), mode), uri=True,
            isolation_level=None, timeout=self._left_s(deadline))
        try:
            (journal,), = self._rows_of(connection, "PRAGMA journal_mode", deadline)
            if journal == "wal":
                raise self._error("it is in WAL mode, which asfc does not use; stop what uses it "
                                  "and run once: sqlite3 FILE 'PRAGMA journal_mode=DELETE'")
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _rows_of(self, connection: Any, statement: str, deadline: float) -> List[Tuple[Any, ...]]:
        """Run one statement, which waits for the locks of others until the deadline at most."""
        wait_ms = int(1000 * self._left_s(deadline))
        connection.execute("PRAGMA busy_timeout = {}".format(wait_ms))
        rows: List[Tuple[Any, ...]] = connection.execute(statement).fetchall()
        return rows


class _ClientMetadataService(SQLMetadataService):
    """A database server that is asked by its own command line client, one process an exchange.

    The server's limits are shorter than the client's: a statement of a client that was killed goes
    on in the server. A client that says all is well is believed only if its last row is `end`.
    """
    DEFAULT_PORT: int
    NO_TABLE: str   # the server's code for a table that is not there
    READ_ONLY: str  # the code of the error that our own test for a read-only server raises
    FAILURE: Any    # finds code and words of an error in what the client says

    def _command(self, statements: Sequence[str], limit_s: float) -> Command:
        """The command line that runs the statements, without the password."""
        raise NotImplementedError

    def _address(self) -> str:
        host, port = self._url.host or "localhost", self._url.port or self.DEFAULT_PORT
        return "{}:{}".format("[{}]".format(host) if ":" in host else host, port)

    def describe(self) -> str:
        return "{} at {}, database {}".format(self._kind, self._address(), self._url.database)

    def _run_statements(self, statements: Sequence[str], deadline: float,
                        mode: str = "rw") -> List[Tuple[str, ...]]:
        limit_s = round(self._left_s(deadline), 2)
        result = self._world.run([self._command(list(statements) + ["SELECT 'end'"], limit_s)])[0]
        lines = result.stdout.split("\n")
        self._look_at_session(lines)
        if result.problem or result.status != 0:
            raise self._failure(result, any(line.startswith("won\t") for line in lines))
        rows = [tuple(line.split("\t")) for line in lines[:-1]
                if not line.startswith(("server", "Ssl_"))]
        if not rows or rows.pop() != ("end",):
            raise self._error("an answer that can't be: {}".format(
                result.stdout.strip()[:100] or "none"))
        return rows

    def _look_at_session(self, lines: Sequence[str]) -> None:
        """Raise MetadataError when the session is not as the URL wants it."""

    def _failure(self, result: CommandResult, wrote: bool) -> MetadataError:
        """The error for a client that failed; `wrote`: a write had already been answered."""
        found = [match.groups() for match in self.FAILURE.finditer(result.stderr)]
        code, words = found[-1] if found else ("", "")
        if code == self.READ_ONLY:
            return self._error("the server is read-only or a replica; metadata needs the primary")
        if code == self.NO_TABLE and not wrote:
            return _NoTableError(str(self._error(words)))
        spoken = [line for line in result.stderr.splitlines() if line.strip()] or [""]
        return self._error(result.problem or words or spoken[0] or "the client ended with status "
                           "{} and without a word".format(result.status))


# What the URL may say about TLS, in the words of MySQL's own client, by rising strength.
_TLS_MODES = ("", "DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")


def tls_mode(options: Mapping[str, str]) -> str:
    """What the TLS parameters of MySQL's Python drivers ask for: one of _TLS_MODES."""
    def says(key: str, *words: str) -> bool:
        return options.get(key, "").lower() in words
    yes, no = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
    if options.get("ssl_mode"):
        if options["ssl_mode"].upper() not in _TLS_MODES:
            raise ConfigurationError("sql_alchemy_conn has ssl_mode={}; allowed are {}.".format(
                options["ssl_mode"], ", ".join(_TLS_MODES[1:])))
        return options["ssl_mode"].upper()
    if says("ssl_disabled", *yes) or says("ssl", *no):
        return "DISABLED"
    if says("ssl_verify_identity", *yes) or says("ssl_check_hostname", *yes):
        return "VERIFY_IDENTITY"
    has_authority = "ssl_ca" in options or "ssl_capath" in options
    if says("ssl_verify_cert", *yes) or has_authority and not says("ssl_verify_cert", *no):
        return "VERIFY_CA"
    return "REQUIRED" if any(re.match(r"ssl(_ca|_capath|_cert|_key|_cipher)?$", key)
                             for key in options) else ""


class MySQLMetadataService(_ClientMetadataService):
    """MySQL and MariaDB, by the client `mysql` or `mariadb` of either."""
    DEFAULT_PORT = 3306
    NO_TABLE, READ_ONLY = "1146", "1242"
    FAILURE = re.compile(r"^ERROR (\d+) \(\w+\)(?: at line \d+)?: (.*)", re.MULTILINE)
    CREATE_TABLE = ("CREATE TABLE IF NOT EXISTS asfc_metadata (name VARBINARY(255) NOT NULL "
                    "PRIMARY KEY, version BIGINT NOT NULL, value LONGTEXT CHARACTER SET utf8mb4 "
                    "COLLATE utf8mb4_bin NOT NULL) ENGINE=InnoDB")
    # ROW_COUNT() tells of changed rows, or of matched ones behind some proxies: an update that
    # always raises the version and an insert that ignores its loss are the same under both.
    CREATE_RECORD = ("INSERT IGNORE INTO asfc_metadata (name, version, value) "
                     "VALUES (X'{name}', 1, CONVERT(X'{value}' USING utf8mb4))",
                     "SELECT 'won', ROW_COUNT()")
    UPDATE_RECORD = ("UPDATE asfc_metadata SET version = version + 1, "
                     "value = CONVERT(X'{value}' USING utf8mb4) "
                     "WHERE name = X'{name}' AND version = {version}",
                     "SELECT 'won', ROW_COUNT()")
    READ_RECORDS = "SELECT 'record', HEX(name), version, HEX(value) FROM asfc_metadata"
    READ_LEGACY = ("SELECT 'legacy', HEX(CONVERT(value USING utf8mb4)) FROM "
                   "scheduler_failover_controller_metadata WHERE `key` = 'failover_heartbeat'")
    READ_FACTS = ("SELECT 'fact', 'version', @@version", "SHOW VARIABLES LIKE 'wsrep_on'",
                  "SHOW VARIABLES LIKE 'innodb_flush_log_at_trx_commit'")
    READ_JOBS = ("SET SESSION time_zone = '+00:00'",
                 "SELECT 'job', id, HEX(CONVERT(COALESCE(hostname, '') USING utf8mb4)), "
                 "HEX(CONVERT(COALESCE(state, '') USING utf8mb4)), "
                 "HEX(CAST(latest_heartbeat AS CHAR)) " + SQLMetadataService.JOBS_WANTED)
    _WEAK_COMMIT = ("innodb_flush_log_at_trx_commit is not 1, so a crash of the server can lose a "
                    "write that was confirmed")
    RISKS = {("wsrep_on", "ON"): "this is a Galera cluster; let all controllers use one server",
             ("innodb_flush_log_at_trx_commit", "0"): _WEAK_COMMIT,
             ("innodb_flush_log_at_trx_commit", "2"): _WEAK_COMMIT}
    # The last one fails on a server that is read-only, before any write, as it must for a user that
    # may write there nevertheless: two rows are an error where one value is wanted.
    SESSION = (
        "SET SESSION autocommit = 1, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', "
        "lock_wait_timeout = 1, innodb_lock_wait_timeout = 1{more} "
        "/*M!100101 , max_statement_time = {limit_s:.3f} */ "
        "/*!50708 , max_execution_time = {limit_ms} */",
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SELECT IF(@@read_only IN ('0', 'OFF') AND @@innodb_read_only IN ('0', 'OFF'), 'server', "
        "(SELECT 1 UNION SELECT 2))")
    SAME_OPTIONS = {"ssl_ca": "--ssl-ca", "ssl_capath": "--ssl-capath", "ssl_cert": "--ssl-cert",
                    "ssl_key": "--ssl-key", "ssl_cipher": "--ssl-cipher",
                    "charset": "--default-character-set"}
    CLIENTS = ("mysql", "mariadb")   # one of them
    KNOWN_OPTIONS = frozenset(SAME_OPTIONS) | frozenset(
        "ssl ssl_mode ssl_disabled ssl_verify_cert ssl_verify_identity ssl_check_hostname "
        "unix_socket read_default_file connect_timeout".split())
    TCP_DRIVERS = ("pymysql", "mysqlconnector", "aiomysql", "asyncmy")  # localhost is TCP to them

    def __init__(self, world: World, configuration: Any, url: DatabaseUrl) -> None:
        super().__init__(world, configuration, url)
        self._kind = "MySQL or MariaDB"
        self._tls_mode = tls_mode(url.options)
        self._program = ""
        self._is_mariadb_client = False
        self._is_galera = False
        self._has_met = False

    def _address(self) -> str:
        path = self._url.options.get("unix_socket")
        return "socket {}".format(path) if path else super()._address()

    def _run_statements(self, statements: Sequence[str], deadline: float,
                        mode: str = "rw") -> List[Tuple[str, ...]]:
        had_met = self._has_met
        try:
            if not had_met:
                self._meet(deadline)
            return super()._run_statements(statements, deadline, mode)
        except _NoTableError:
            raise
        except MetadataError:
            # Whatever answers next may be another server, or another client. But one that was met
            # just now stays so: a slow server would never have the time for both.
            self._has_met = self._has_met and not had_met
            raise

    def _meet(self, deadline: float) -> None:
        """Learn which client there is, and what kind of server it reaches."""
        for program in self.CLIENTS:
            answer = self._world.run([Command((program, "--version"), self._left_s(deadline))])[0]
            if answer.status == 0:
                break
        else:
            raise self._error("its client, the program mysql or mariadb, can't be run here: {}"
                              .format(answer.problem or answer.stderr))
        self._program, self._is_mariadb_client = program, "MariaDB" in answer.stdout
        self._is_galera = False
        rows = super()._run_statements(
            ["SELECT 'version', CONCAT(@@version, ' ', @@version_comment)",
             "SHOW VARIABLES LIKE 'wsrep_on'"], deadline)
        self._kind = "MariaDB" if "mariadb" in str(rows).lower() else "MySQL"
        self._is_galera = ("wsrep_on", "ON") in rows
        self._has_met = True

    def _must_see_cipher(self) -> bool:
        """MariaDB's client goes on without TLS when the server has none, unless it verifies."""
        return self._tls_mode == "REQUIRED" and self._is_mariadb_client

    def _look_at_session(self, lines: Sequence[str]) -> None:
        ciphers = [line for line in lines if line.startswith("Ssl_cipher\t")]
        if self._must_see_cipher() and "server" in lines and ciphers in ([], ["Ssl_cipher\t"]):
            raise self._error("the URL asks for TLS, and the server does not offer it")

    def _command(self, statements: Sequence[str], limit_s: float) -> Command:
        server_limit_s = 0.7 * limit_s
        # In a Galera cluster the server may lag: each statement waits until it has caught up.
        session = [part.format(more=", wsrep_sync_wait = 7" if self._is_galera else "",
                               limit_s=server_limit_s, limit_ms=int(1000 * server_limit_s))
                   for part in self.SESSION]
        if self._must_see_cipher():
            session.append("SHOW STATUS LIKE 'Ssl_cipher'")
        password = {"MYSQL_PWD": self._url.password} if self._url.password else None
        return Command(tuple(self._arguments(limit_s)), limit_s,
                       ";\n".join(session + list(statements)) + ";\n", password)

    def _arguments(self, limit_s: float) -> List[str]:
        url, options = self._url, self._url.options
        defaults = options.get("read_default_file")
        arguments = [self._program, "--defaults-file=" + defaults if defaults else "--no-defaults",
                     "--batch", "--skip-column-names", "--skip-reconnect", "--skip-auto-rehash",
                     "--local-infile=0", "--connect-timeout={}".format(max(1, int(limit_s)))]
        if options.get("unix_socket"):
            arguments += ["--protocol=SOCKET", "--socket=" + options["unix_socket"]]
        elif url.driver in self.TCP_DRIVERS and url.host in ("", "localhost") and not defaults:
            arguments += ["--protocol=TCP", "--host=localhost"]
        elif url.host:
            arguments.append("--host=" + url.host)
        for name, value in (("port", url.port), ("user", url.user), ("database", url.database)):
            if value:
                arguments.append("--{}={}".format(name, value))
        arguments += ["{}={}".format(self.SAME_OPTIONS[key], options[key])
                      for key in sorted(self.SAME_OPTIONS) if options.get(key)]
        return arguments + self._tls_arguments()

    def _tls_arguments(self) -> List[str]:
        if not self._is_mariadb_client:
            return ["--ssl-mode=" + self._tls_mode] if self._tls_mode else []
        if self._tls_mode.startswith("VERIFY"):
            return ["--ssl", "--ssl-verify-server-cert"]  # this client verifies the name as well
        return {"DISABLED": ["--skip-ssl"],
                "REQUIRED": ["--ssl", "--skip-ssl-verify-server-cert"]}.get(self._tls_mode, [])


class PostgreSQLMetadataService(_ClientMetadataService):
    """PostgreSQL (9.5 and later), by the client `psql`."""
    DEFAULT_PORT = 5432
    CLIENTS = ("psql",)
    NO_TABLE, READ_ONLY = "42P01", "22012"
    FAILURE = re.compile(r"^(?:.*?: )?\w+:\s+([0-9A-Z]{5}): (.*)", re.MULTILINE)
    CREATE_TABLE = ("CREATE TABLE IF NOT EXISTS asfc_metadata (name VARCHAR(255) COLLATE \"C\" "
                    "NOT NULL PRIMARY KEY, version BIGINT NOT NULL, value TEXT NOT NULL)")
    CREATE_RECORD = ("WITH written AS (INSERT INTO asfc_metadata (name, version, value) VALUES "
                     "(convert_from(decode('{name}', 'hex'), 'UTF8'), 1, "
                     "convert_from(decode('{value}', 'hex'), 'UTF8')) ON CONFLICT DO NOTHING "
                     "RETURNING 1) SELECT 'won', count(*) FROM written",)
    UPDATE_RECORD = ("WITH written AS (UPDATE asfc_metadata SET version = version + 1, "
                     "value = convert_from(decode('{value}', 'hex'), 'UTF8') WHERE "
                     "name = convert_from(decode('{name}', 'hex'), 'UTF8') AND version = {version} "
                     "RETURNING 1) SELECT 'won', count(*) FROM written",)
    READ_RECORDS = ("SELECT 'record', encode(convert_to(name, 'UTF8'), 'hex'), version, "
                    "encode(convert_to(value, 'UTF8'), 'hex') FROM asfc_metadata")
    READ_LEGACY = ("SELECT 'legacy', encode(convert_to(value::text, 'UTF8'), 'hex') FROM "
                   "scheduler_failover_controller_metadata WHERE \"key\" = 'failover_heartbeat'")
    READ_FACTS = ("SELECT 'fact', 'version', current_setting('server_version')",
                  "SELECT 'fact', 'fsync', current_setting('fsync')")
    READ_JOBS = ("SELECT 'job', id, encode(convert_to(COALESCE(hostname, ''), 'UTF8'), 'hex'), "
                 "encode(convert_to(COALESCE(state, ''), 'UTF8'), 'hex'), encode(convert_to("
                 "to_char(latest_heartbeat AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), "
                 "'UTF8'), 'hex') " + SQLMetadataService.JOBS_WANTED,)
    RISKS = {("fsync", "off"): "fsync is off, so a crash of the server can lose all of it"}
    # Stands before a statement in the same message, hence in the same transaction. Settings of the
    # session or of the connection would be refused by pgbouncer, or kept for its other clients. The
    # division fails on a server that is read-only; psql before 15 shows only the last row anyhow.
    SESSION = (
        "SELECT 'server', set_config('statement_timeout', '{limit_ms}', true), "
        "set_config('lock_timeout', '1000', true), set_config('synchronous_commit', "
        "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
        "ELSE current_setting('synchronous_commit') END, true), 1 / (CASE WHEN pg_is_in_recovery() "
        "OR current_setting('transaction_read_only') = 'on' THEN 0 ELSE 1 END) \\; ")
    TLS_WORDS = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
    # Those of libpq that asfc doesn't set itself; libpq refuses a key that it doesn't know.
    LIBPQ_OPTIONS = frozenset(
        "host hostaddr port user dbname passfile options application_name keepalives "
        "keepalives_idle keepalives_interval keepalives_count tcp_user_timeout sslmode requiressl "
        "sslcompression sslcert sslkey sslrootcert sslcrl sslcrldir sslsni sslnegotiation "
        "sslcertmode ssl_min_protocol_version ssl_max_protocol_version channel_binding "
        "require_auth requirepeer gssencmode krbsrvname gsslib gssdelegation service "
        "target_session_attrs load_balance_hosts".split())
    KNOWN_OPTIONS = LIBPQ_OPTIONS | {"ssl", "password", "client_encoding", "connect_timeout"}

    def __init__(self, world: World, configuration: Any, url: DatabaseUrl) -> None:
        secret = url.options.get("password")
        super().__init__(world, configuration, url._replace(password=secret) if secret else url)
        self._kind = "PostgreSQL"
        self._parameters = self._libpq_parameters()

    def _libpq_parameters(self) -> Dict[str, str]:
        """The connection in libpq's words, without the password."""
        url = self._url
        found = {"host": url.host, "port": url.port, "user": url.user, "dbname": url.database,
                 "application_name": "asfc"}
        wish = url.options.get("ssl", "").lower()  # as the drivers asyncpg and pg8000 have it
        if wish:
            found["sslmode"] = wish if wish in self.TLS_WORDS else \
                "disable" if wish in ("0", "false", "no", "off") else "require"
        found.update(item for item in url.options.items() if item[0] in self.LIBPQ_OPTIONS)
        if url.options.get("host", "").count(":") == found["host"].count(",") + 1:
            hosts = [host.split(":") for host in found["host"].split(",")]  # host=a:1&host=b:2
            found["host"] = ",".join(host for host, *_ in hosts)
            found["port"] = ",".join(host[-1] for host in hosts)
        return {key: value for key, value in found.items() if value}

    def _address(self) -> str:
        parameters = self._parameters
        host = parameters.get("host", parameters.get("hostaddr", ""))
        if "/" in host or not host:
            return "socket {}".format(host) if host else "the local socket"
        return "{}:{}".format("[{}]".format(host) if ":" in host else host,
                              parameters.get("port", self.DEFAULT_PORT))

    def describe(self) -> str:
        return "PostgreSQL at {}, database {}".format(
            self._address(), self._parameters.get("dbname", self._parameters.get("user", "")))

    def _command(self, statements: Sequence[str], limit_s: float) -> Command:
        session = self.SESSION.format(limit_ms=int(700 * limit_s))
        script = "".join("{}{};\n".format(session, statement) for statement in statements)
        words = " ".join("{}='{}'".format(key, re.sub(r"(['\\])", r"\\\1", value))
                         for key, value in sorted(self._parameters.items()))
        environment = {"PGCONNECT_TIMEOUT": str(max(2, int(limit_s))), "PGCLIENTENCODING": "UTF8"}
        if self._url.password:
            environment["PGPASSWORD"] = self._url.password
        return Command(("psql", "-X", "-q", "-A", "-t", "-w", "-F", "\t", "-v", "ON_ERROR_STOP=1",
                        "-v", "VERBOSITY=verbose", "-d", words), limit_s, script, environment)


# -- ZooKeeper: a client of our own, for a node has Python's standard library and nothing else

_ZK_CREATE, _ZK_EXISTS, _ZK_GET_DATA, _ZK_SET_DATA, _ZK_GET_ACL = 1, 3, 4, 5, 6
_ZK_GET_CHILDREN, _ZK_SYNC, _ZK_MULTI, _ZK_AUTH, _ZK_CLOSE = 8, 9, 14, 100, -11
_ZK_NO_NODE, _ZK_NODE_EXISTS = -101, -110
_ZK_LOST = (_ZK_NO_NODE, -103, _ZK_NODE_EXISTS)   # somebody else was faster; -103: bad version
_ZK_ERRORS = {
    -102: "no permission: is metadata_service_zookeeper_auth set, and the same on all nodes?",
    -115: "it refused metadata_service_zookeeper_auth", -124: "it wants SASL, which asfc can't do"}
_ZK_LONGEST = 2 * 0xfffff   # bytes of a message: twice of what a server takes, unless it is told to


def _zk_data(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def _zk_text(text: str) -> bytes:
    return _zk_data(text.encode("utf-8"))


class _ZkReader:
    """Takes a message apart. Raises ValueError for one that is cut off or odd."""

    def __init__(self, message: bytes) -> None:
        self.rest = message

    def numbers(self, form: str) -> Tuple[Any, ...]:
        size, message = struct.calcsize(form), self.rest
        if len(message) < size:
            raise ValueError("an answer that is cut off")
        self.rest = message[size:]
        return struct.unpack(form, message[:size])

    def data(self) -> bytes:
        length, = self.numbers(">i")
        if not -1 <= length <= len(self.rest):
            raise ValueError("an answer with a text of {} bytes".format(length))
        found, self.rest = self.rest[:max(0, length)], self.rest[max(0, length):]
        return found

    def texts(self) -> List[str]:
        count, = self.numbers(">i")
        return [self.data().decode("utf-8") for _ in range(count)]   # of too many the first fails

    def stat(self) -> Tuple[int, int, int, int]:
        """Version, cversion, number of children, and pzxid, the last change of the children."""
        _, _, _, _, version, cversion, _, _, _, children, pzxid = self.numbers(">qqqqiiiqiiq")
        return version, cversion, children, pzxid

    def failures(self) -> List[int]:
        """The codes of a multi that failed; none of one that was done, for it is all or nothing."""
        codes: List[int] = []
        while True:
            kind, is_end, _ = self.numbers(">i?i")
            if is_end or kind != -1:
                return codes
            codes += self.numbers(">i")


class _ZkSession:
    """A session for one exchange. Its begin is a transaction that a quorum agrees to, which neither
    a deposed leader nor a server that is cut off can bring about; and one that is given up soon
    runs out, with what is still on its way. Raises OSError and ValueError."""

    def __init__(self, connection: Connection, deadline: float, limit_s: float, zxid: int,
                 auth: str) -> None:
        """The handshake. A server that has not seen the transaction `zxid` yet refuses it."""
        self.has_written = False
        self.zxid = 0          # the newest transaction that the server has shown
        self.bases: Dict[bytes, int] = {}   # of the records that are there, by name
        self._connection, self._deadline, self._xid = connection, deadline, 0
        connection.send(_zk_data(struct.pack(">iqiq", 0, zxid, int(1000 * limit_s), 0)
                                 + _zk_data(bytes(16)) + b"\0"))
        try:
            _, timeout_ms = self._receive().numbers(">ii")
        except ConnectionResetError:
            raise OSError("it takes no clients: it has no quorum, or lags behind")
        if timeout_ms <= 0:
            raise OSError("it refused a new session")
        if auth:
            connection.send(_zk_data(struct.pack(">iii", -4, _ZK_AUTH, 0) + _zk_text("digest")
                                     + _zk_text(auth)))
            self._reply(-4, ())

    def ask(self, *requests: Tuple[int, bytes], allowed: Sequence[int] = ()
            ) -> List[Tuple[int, _ZkReader]]:
        """Send requests; returns code and reply of each. A code that is not allowed is an error."""
        first = self._xid + 1
        for kind, body in requests:
            self._xid += 1
            self._connection.send(_zk_data(struct.pack(">ii", self._xid, kind) + body))
        return [self._reply(xid, allowed) for xid in range(first, self._xid + 1)]

    def write(self, request: Tuple[int, bytes]) -> Tuple[int, _ZkReader]:
        """The same with a write. No other server can be tried after it, so all the time is its."""
        self.has_written, self._connection.deadline = True, self._deadline
        return self.ask(request, allowed=_ZK_LOST)[0]

    def end(self) -> None:
        """Close the session; the answer is not waited for."""
        self._connection.send(_zk_data(struct.pack(">ii", self._xid + 1, _ZK_CLOSE)))

    def _receive(self) -> _ZkReader:
        length, = struct.unpack(">i", self._connection.receive(4))
        if not 0 <= length <= _ZK_LONGEST:
            raise OSError("it announced a message of {} bytes".format(length))
        return _ZkReader(self._connection.receive(length))

    def _reply(self, xid: int, allowed: Sequence[int]) -> Tuple[int, _ZkReader]:
        """The reply to a request; what a server says without being asked is passed over."""
        while True:
            reader = self._receive()
            got, zxid, code = reader.numbers(">iqi")
            if got not in (xid, -1, -2):
                raise OSError("it answered request {} when {} was asked".format(got, xid))
            if got == xid and code and code not in allowed:
                raise OSError("{} (code {})".format(_ZK_ERRORS.get(code, "it failed"), code))
            if got == xid:
                self.zxid = max(self.zxid, zxid)
                return code, reader


class ZookeeperMetadataService(_ServerMetadataService):
    """The records as persistent znodes of a ZooKeeper ensemble: no ephemerals, no watches.

    A record is the znode NAME.BASE below `asfc`, its version BASE + 1 + the znode's own version.
    BASE is 0 or, where one of that name may have been removed by hand before, the number of a newer
    transaction, which is above all versions of before. So none ever falls, and a write that was
    meant for the znode of before finds none. Of two that make a record at the same time one wins:
    both raise the version of `asfc` in the same transaction.
    """
    LEGACY_PLACE = "the znode scheduler_failover_controller/failover_heartbeat"

    def __init__(self, world: World, configuration: Any) -> None:
        self._auth: str = configuration.metadata_service_zookeeper_auth
        super().__init__(world, configuration, self._auth.partition(":")[2])
        self._nodes = ZookeeperNodes.of(configuration.metadata_service_zookeeper_nodes)
        self._base = base = self._nodes.chroot + "/asfc"
        self._paths = ["/"] + [base[:part.end()] for part in re.finditer("/[^/]+", base)]
        self._servers = world.servers(self._nodes.hosts)
        self._zxid = 0

    def describe(self) -> str:
        return "ZooKeeper at {}".format(self._nodes)

    def exchange(self, writes: Sequence[Write] = ()) -> Exchange:
        encoded = [self._encoded(write) + (write.expected_version,) for write in writes]

        def work(session: _ZkSession) -> Exchange:
            if writes:
                self._look(session)
            won = tuple([self._write(session, *one) for one in encoded])
            return Exchange(won, self._records(session))
        return self._agreed(writes, self._in_session(work, self._deadline()))

    def legacy_heartbeat(self) -> Optional[str]:
        path = self._nodes.chroot + "/scheduler_failover_controller/failover_heartbeat"

        def work(session: _ZkSession) -> str:
            (code, reply), = session.ask(self._get(_ZK_GET_DATA, path), allowed=(_ZK_NO_NODE,))
            return "" if code else reply.data().decode("utf-8", "replace")
        return self._in_session(work, self._deadline()) or None

    def check(self) -> str:
        deadline = self._deadline()
        warning, said = self._in_session(self._acl_warning, deadline), ""
        try:
            with self._world.connect(self._servers.order[0], deadline) as connection:
                connection.send(b"srvr")
                said = connection.receive_rest(65536).decode("utf-8", "replace")
        except OSError:
            pass
        found = re.search(r"^Zookeeper version: ([^-,\s]+).*^Mode: (\S+)", said, re.M | re.S)
        version, mode = found.groups() if found else (
            "of an unknown version", "unknown: 4lw.commands.whitelist does not allow srvr")
        return "ZooKeeper {}; {} answered, its mode is {}{}.".format(
            version, host_and_port(*self._servers.order[0][1][:2]), mode, warning)

    def _acl_warning(self, session: _ZkSession) -> str:
        (code, reply), = session.ask((_ZK_GET_ACL, _zk_text(self._base)), allowed=(_ZK_NO_NODE,))
        return "" if code or not self._auth or reply.rest.startswith(self._acl()) else \
            ". Warning: {} was made without metadata_service_zookeeper_auth, others may read or " \
            "write there".format(self._base)

    def _in_session(self, work: Callable[[_ZkSession], _Found], deadline: float) -> _Found:
        """What `work` makes of a session with the first server that serves well. After a write was
        sent no other is tried, for what became of it is not known. Raises MetadataError."""
        problems: List[str] = []
        session: Optional[_ZkSession] = None
        for address, until in self._servers.tries(deadline):
            try:
                with self._world.connect(address, until) as link:
                    session = _ZkSession(link, deadline, self._limit_s, self._zxid, self._auth)
                    found = work(session)
                    session.end()
                self._servers.note(address, True)
                self._zxid = session.zxid
                return found
            except (OSError, ValueError) as error:
                said = getattr(error, "strerror", None) or error
                problems.append("{}: {}".format(host_and_port(*address[1][:2]), said))
                if session and session.has_written:
                    self._servers.note(address, False)
                    raise self._error("; ".join(problems) + "; the write may have been made")
        self._zxid = 0   # an ensemble that was restored from a backup refuses who has seen more
        raise self._error("; ".join(problems) or self._servers.problem)

    def _acl(self) -> bytes:
        """Who may do all with a znode that is made: the user that is set, or everybody."""
        scheme, identity = "world", "anyone"
        if self._auth:
            import hashlib
            digest = base64.b64encode(hashlib.sha1(self._auth.encode("utf-8")).digest())
            scheme, identity = "digest", self._auth.partition(":")[0] + ":" + digest.decode("ascii")
        return struct.pack(">ii", 1, 31) + _zk_text(scheme) + _zk_text(identity)

    def _new(self, path: str, value: bytes) -> Tuple[int, bytes]:
        return _ZK_CREATE, _zk_text(path) + _zk_data(value) + self._acl() + struct.pack(">i", 0)

    def _set(self, path: str, value: bytes, version: int) -> Tuple[int, bytes]:
        return _ZK_SET_DATA, _zk_text(path) + _zk_data(value) + struct.pack(">i", version)

    def _get(self, kind: int, path: str) -> Tuple[int, bytes]:
        return kind, _zk_text(path) + b"\0"   # and no watch

    def _path(self, session: _ZkSession, name: bytes) -> str:
        import urllib.parse
        return "{}/{}.{}".format(self._base, urllib.parse.quote(name, ""), session.bases[name])

    def _look(self, session: _ZkSession) -> None:
        """Learn which records there are now, for which the server has to catch up first."""
        import urllib.parse
        _, (code, reply) = session.ask(
            (_ZK_SYNC, _zk_text(self._base)), self._get(_ZK_GET_CHILDREN, self._base),
            allowed=(_ZK_NO_NODE,))
        session.bases = {}
        for child in [] if code else reply.texts():
            quoted, _, base = child.rpartition(".")
            if quoted and re.fullmatch("[0-9]{1,19}", base):
                name = urllib.parse.unquote_to_bytes(quoted)
                session.bases[name] = max(int(base), session.bases.get(name, 0))

    def _records(self, session: _ZkSession) -> Dict[str, Record]:
        """All records. That of the cluster is read last, so no node's record is newer than it."""
        self._look(session)
        names = sorted(session.bases, key=lambda name: name == CLUSTER.encode("ascii"))
        replies = session.ask(*(self._get(_ZK_GET_DATA, self._path(session, name))
                                for name in names), allowed=(_ZK_NO_NODE,))
        return {name.decode("utf-8"): Record(   # the value comes before the version
            value=reply.data().decode("utf-8"), version=session.bases[name] + 1 + reply.stat()[0])
            for name, (code, reply) in zip(names, replies) if not code}

    def _write(self, session: _ZkSession, name: bytes, value: bytes,
               expected_version: Optional[int]) -> bool:
        """One conditional write; says whether it won."""
        if expected_version is None:
            return self._make(session, name, value)
        version = expected_version - 1 - session.bases.get(name, 0)
        is_possible = name in session.bases and 0 <= version < 2 ** 31   # -1 stands for any version
        return is_possible and not session.write(
            self._set(self._path(session, name), value, version))[0]

    def _make(self, session: _ZkSession, name: bytes, value: bytes) -> bool:
        """Make a record where there is none; tried again when another record was made meanwhile."""
        while True:
            version, base = self._directory(session)   # before the look, or one might be made twice
            self._look(session)
            if name in session.bases:
                return False
            session.bases[name] = base
            parts = (self._set(self._base, b"", version),
                     self._new(self._path(session, name), value))
            code, reply = session.write((_ZK_MULTI, b"".join(
                struct.pack(">i?i", kind, False, -1) + body for kind, body in parts)
                + struct.pack(">i?i", -1, True, -1)))
            codes = [code] if code else reply.failures()
            if not codes:
                return True
            if not set(codes) & set(_ZK_LOST):
                raise OSError("it could not make a record (codes {})".format(codes))

    def _directory(self, session: _ZkSession) -> Tuple[int, int]:
        """Make `asfc` if need be; returns its version and the base for a record that is made now.

        That is 0 where nothing above or beside it was ever removed. A cversion counts children that
        were made and that were removed; that of the root begins at -1 with one that was not made.
        """
        questions = [self._get(_ZK_EXISTS, path) for path in self._paths]
        for path, (code, _) in zip(self._paths, session.ask(*questions, allowed=(_ZK_NO_NODE,))):
            if code:
                session.ask(self._new(path, b""), allowed=(_ZK_NODE_EXISTS,))
        stats = [reply.stat() for _, reply in session.ask(*questions)]
        removed = 2 + sum(cversion - children for _, cversion, children, _ in stats)
        return stats[-1][0], stats[-1][3] if removed else 0


def metadata_service(world: World, configuration: Any) -> MetadataService:
    """The service that the configuration names. Raises ConfigurationError; asks no server yet."""
    kind = configuration.metadata_service_type
    if kind == "ZookeeperMetadataService":
        return ZookeeperMetadataService(world, configuration)
    if kind != "SQLMetadataService":
        raise ConfigurationError("[scheduler_failover] metadata_service_type = {}: allowed are "
                                 "SQLMetadataService and ZookeeperMetadataService.".format(kind))
    url = read_database_url(configuration.sql_alchemy_conn)
    service: MetadataService = _SQL_SERVICES[url.kind](world, configuration, url)
    return service


_SQL_SERVICES: Mapping[str, Any] = {
    "sqlite": SQLiteMetadataService, "mysql": MySQLMetadataService,
    "postgresql": PostgreSQLMetadataService}


def job_table(world: World, configuration: Any) -> SQLMetadataService:
    """The database of Airflow's job table, wherever the metadata is kept.

    A service of its own, not shared with the heartbeat: each is asked by one loop. Raises
    ConfigurationError where sql_alchemy_conn names a database that can't be asked.
    """
    url = read_database_url(configuration.sql_alchemy_conn)
    kind = _SQL_SERVICES[url.kind]
    known = {key: value for key, value in url.options.items() if key in kind.KNOWN_OPTIONS}
    table: SQLMetadataService = kind(world, configuration, url._replace(options=known))
    return table


###############################################################################
# Nodes: the script ###########################################################
###############################################################################

# What runs on a node for every question and every order: POSIX sh and awk, sent along with the
# command; nothing of asfc need be installed there. Its parameters are assignments before its
# first line (see `script_for`). It answers in lines that begin with "asfc NONCE " and end with
# "asfc NONCE end". Comments and indentation are stripped before it is sent. A line "# point: ..."
# names a moment at which the tests kill or freeze it; the state on disk is safe at each of them.
#
# In the state directory: `gate` (highest pair, its instance, first cluster, first node name),
# `gate.lock` (flock), `intent` (a start whose process was not seen yet), `main` (the main
# processes seen), `start.out` (what the start command wrote). Each of one line, from the format
# number to the word "end", so that half a file is never taken for a whole one. Two are read only,
# the node's own controller writes them: `controller.lock` (the directory's id) and `fence`
# ("1 BOOT_ID HUNDREDTHS end": the deadline of the node's promise, by /proc/uptime in that boot;
# without it nothing is promised).
#
# A controller that fences itself finds what would still start a scheduler by names: the script of
# a start and its launcher are called asfc-start@NODE, and the start command and all that it starts
# have ASFC_NODE=NODE in their environment.

# The judge of a process list. In: ps's lines (pid ppid pgid sid uid stat args), then "ps STATUS".
# Out: a line each of main processes, targets (mains but the one to keep, and remnants), all that
# goes with them, which of that are tasks, the start command's processes, what to remember; then the
# lines of the answer.
# Processes are written pid:start. `image` is the address of a program's stack: forks share it,
# programs that were started separately don't, so a dead scheduler's forks give themselves away.
NODE_JUDGE = r"""
function base(word) { sub(/.*\//, "", word); return word }
# 1: a scheduler's main process or a fork of it; 2: one of its named helpers; 0: something else
function recognised(words, at) {
    at = 7
    if (base(words[at]) ~ /^python/)
        for (at++; words[at] ~ /^-/; at++) if (words[at] ~ /^-[^-]*[WX]$/) at++
    if (base(words[at]) != "airflow" || words[at + 1] != "scheduler") return 0
    return words[at + 2] == "--" || words[at + 2] == "-" ? 2 : 1
}
# Whether the process still is what ps saw; its start time, terminal and image are then known.
function known(p, line, text, field, file) {
    if (p in start) return start[p] != ""
    start[p] = ""
    file = proc "/" p "/stat"
    while ((getline line < file) > 0) text = text line " "
    close(file)
    sub(/.*\) /, "", text)
    if (split(text, field, " ") < 26 || field[1] ~ /^[ZX]/ || field[4] != session[p]) return 0
    terminal[p] = field[5]; start[p] = field[20]; image[p] = field[26]
    return 1
}
# In a container on this machine: that one is not ours to judge or to end.
function contained(p, line, file, field, ids) {
    file = proc "/" p "/status"
    while ((getline line < file) > 0) if (line ~ /^NSpid:/) ids = split(line, field, " ")
    close(file)
    return ids > 2
}
function below(p, top, depth) {
    for (depth = 0; depth < 200 && (p in parent); depth++) {
        if (p == top) return 1
        p = parent[p]
    }
    return 0
}
function name(p) { return p ":" start[p] }
function tell(word, p, text, i) {
    text = args[p]
    for (i = 0; i < 6; i++) sub(/^ *[^ ]+ */, "", text)
    report = report "asfc " nonce " " word " " p " " start[p] " " parent[p] " " session[p] " " \
        user[p] " " substr(text, 1, 200) "\n"
}
function orphan(p) { return !((parent[p] in running) && session[parent[p]] == session[p]) }
# Surely no leftover: leads its group, has forks or helpers, is held by its session, is remembered.
function certain(p) { return group[p] == p || (p in sons) || !orphan(p) || (p in remembered) }
# What a scheduler without a scheduler above it is: main, remnant, or a fork astray of main `of`.
function verdict(p, i, q, twins) {
    if (certain(p)) return "main"
    for (i = 1; i <= memories; i++)
        if (dead[i] && m_session[i] == session[p] &&
            (m_image[i] == image[p] || m_image[i] == 0 || image[p] == 0)) return "remnant"
    if (image[p] == 0) return "main"
    for (i = 1; i <= tops; i++) {
        q = top[i]
        if (q == p || session[q] != session[p] || image[q] != image[p]) continue
        if (certain(q)) { of = q; return "astray" }
        twins++
    }
    return twins && !(session[p] in running) ? "remnant" : "main"
}
# The highest process above one within its session.
function crown(q, depth) {
    for (depth = 0; depth < 200 && parent[q] != 1 && (parent[q] in running) && \
            session[parent[q]] == session[q]; depth++) q = parent[q]
    return q
}
# A session is the scheduler's own when nothing else lives in it: forks, and above it no terminal.
function owns(m, i, q, before) {
    before = m in remembered
    if (before && !m_own[remembered[m]]) return 0
    for (i = 1; i <= total; i++) {
        q = pid[i]
        if (session[q] != session[m] || below(q, m)) continue
        # What lost its parent since then was the scheduler's.
        if (before && !(q in protected) && !below(m, q) && !below(m, crown(q))) continue
        if ((q in protected) || !below(m, q) || !(q in shell) || !known(q) || terminal[q] != 0)
            return 0
    }
    return 1
}
function leftover(q, i, j) {
    if (kind[q] == 1 && (q in main)) return 0
    for (j = 1; j <= mains; j++)
        if (below(q, main_at[j]) || below(main_at[j], q)) return 0
    if (kind[q] == 2) {
        for (j = 1; j <= mains; j++) if (session[q] == session[main_at[j]]) return 0
        return kind[crown(q)] > 0    # a dag-processor's children have such names too
    }
    for (i = 1; i <= memories; i++)
        if (dead[i] && m_own[i] && session[q] == m_session[i] && known(q) &&
            start[q] >= m_start[i] && known(crown(q)) && start[crown(q)] >= m_start[i]) return 1
    return 0
}
# Whether a process goes with what is to be stopped, and not with the main process to keep.
function goes(q, i, t) {
    if (keep && (below(q, keep) || below(keep, q))) return 0
    for (i = 1; i <= targets; i++) if (below(q, target[i])) return 1
    if (keep && session[q] == session[keep]) return 0
    for (i = 1; i <= targets; i++) {
        t = target[i]
        if ((t in main) && session[q] == session[t] && owned[t]) return 1
    }
    return 0
}
function of_command(q, depth) {
    if (command_session == 0) return 0
    for (depth = 1; depth <= mains; depth++)
        if (below(q, main_at[depth]) || (main_at[depth] == keep && below(keep, q))) return 0
    if (!known(q) || start[q] < command_start) return 0
    for (depth = 0; depth < 200 && (q in parent); depth++) {
        if (session[q] == command_session) return 1
        q = parent[q]
    }
    return 0
}
BEGIN { FS = "\001" }
/^ps [0-9]+$/ { ps_status = substr($0, 4); next }
{
    words_in = split(substr($0, 1, 800), word, " ")
    if (words_in < 6 || word[1] word[2] word[3] word[4] word[5] ~ /[^0-9]/) { broken = 1; next }
    p = word[1]
    parent[p] = word[2]; group[p] = word[3]; session[p] = word[4]; user[p] = word[5]
    if (word[6] ~ /^[ZX]/) next
    running[p] = 1; pid[++total] = p
    if (base(word[7]) ~ /^-?[a-z]*sh$/) shell[p] = 1
    if (word[7] ~ /^\[/) ending[p] = 1    # its arguments go first, some time before it is dead
    if ((kind[p] = recognised(word))) args[p] = substr($0, 1, 800)
    task[p] = word[7] == "airflow" && (word[8] word[9] == "taskrunner:" || \
        word[8] word[9] == "worker--" && word[10] !~ /^LocalExecutor/)
}
END {
    if (ps_status != "0") { print "blind ps -A -ww -o ... fails (procps is needed)"; exit }
    if (broken) { print "blind its process list can not be understood"; exit }
    if (!(1 in parent) || !(me in parent)) {
        print "blind its process list hides processes (hidepid?)"; exit
    }
    for (q = me; (q in parent) && !(q in protected); q = parent[q]) protected[q] = 1
    protected[1] = 1; protected[0] = 1
    split(kept, f, ":")
    if ((f[1] in running) && known(f[1]) && start[f[1]] == f[2]) keep = f[1]
    for (i = 1; i <= total; i++) {
        p = pid[i]
        if (!kind[p]) continue
        if (!known(p)) {
            if (kind[p] == 1 && kind[parent[p]] != 1) { print "unsettled"; exit }
            kind[p] = 0; delete running[p]; continue    # a helper or fork that has just ended
        }
        if (user[p] == uid && !contained(p)) continue
        foreign[p] = kind[p]; kind[p] = 0
    }
    for (i = 1; i <= total; i++)
        if ((pid[i] in foreign) && foreign[pid[i]] == 1 && !(parent[pid[i]] in foreign))
            tell("foreign", pid[i])
    memories = split(memory, entry, " ")
    for (i = 1; i <= memories; i++) {
        split(entry[i], f, ":")
        m_pid[i] = f[1]; m_start[i] = f[2]; m_session[i] = f[3]
        m_own[i] = f[4] + 0; m_image[i] = f[5]
        dead[i] = !((f[1] in running) && known(f[1]) && start[f[1]] == f[2])
        # A session whose leader is younger than the scheduler in it has only its number.
        if (dead[i] && (f[3] in running) && known(f[3]) && start[f[3]] > f[2]) m_session[i] = ""
        if (!dead[i]) remembered[f[1]] = i
        # Not alive and not dead: now its forks would pass for schedulers, and it be forgotten.
        if (!dead[i] && (f[1] in ending)) { print "unsettled"; exit }
    }
    for (i = 1; i <= total; i++) {
        p = pid[i]
        if (!kind[p]) continue
        if (kind[parent[p]] == 1) sons[parent[p]] = 1
        if (kind[p] == 1 && kind[parent[p]] != 1) top[++tops] = p
        if ((parent[p] in ending) && session[parent[p]] == session[p]) { print "unsettled"; exit }
    }
    for (i = 1; i <= tops; i++) called[i] = verdict(top[i]) ":" of
    for (i = 1; i <= tops; i++) {
        p = top[i]; split(called[i], f, ":")
        if (f[1] == "main") { main[p] = 1; main_at[++mains] = p }
        if (f[1] == "astray") parent[p] = f[2]
        if (f[1] == "remnant") lost[p] = 1
    }
    for (i = 1; i <= mains; i++) {
        p = main_at[i]
        owned[p] = owns(p)
        main_list = main_list " " name(p)
        tell("main", p)
        if (p != keep) { target[++targets] = p; target_list = target_list " " name(p) }
        # One that lived 10 s, or leads the start command, is no passing stage of a daemon's start.
        if ((p in remembered) || p == command_pid || now - start[p] >= 1000)
            keep_list = keep_list " " name(p) ":" session[p] ":" owned[p] ":" image[p]
    }
    for (i = 1; i <= total; i++) {
        q = pid[i]
        if (user[q] != uid || (q in protected)) continue
        if (!(q in lost) && !leftover(q)) continue
        if (!known(q)) continue
        target[++targets] = q; target_list = target_list " " name(q)
        left[session[q]] = 1
        tell("remnant", q)
    }
    for (i = 1; i <= memories; i++)
        if (dead[i] && (m_session[i] in left)) keep_list = keep_list " " entry[i]
    for (i = 1; i <= total && targets; i++) {
        q = pid[i]
        if (user[q] != uid || (q in protected) || !goes(q) || !known(q)) continue
        kill_list = kill_list " " name(q)
        if (task[q]) task_list = task_list " " name(q)
    }
    if ((command_session in running) && known(command_session) && \
        command_session == command_pid && start[command_session] != command_start)
        command_session = 0
    for (i = 1; i <= total; i++) {
        q = pid[i]
        if (!(q in protected) && of_command(q)) command_list = command_list " " name(q)
    }
    print "settled" main_list
    print "targets" target_list
    print "kills" kill_list
    print "tasks" task_list
    print "command" command_list
    print "memory" keep_list
    printf "%s", report
    print "whole"
}
"""

# The keeper of a time limit, a process of its own: it kills the process group once the limit is
# over, frozen processes too, and leaves within a second after the process has.
NODE_TIMER = r"""
pid=$1 start=$2 group=$3 left=$4
trap "" HUP
same() {
    { read -r line <"/proc/$pid/stat"; } 2>/dev/null || exit 0
    set -- ${line##*) }
    shift 19
    [ "$1" = "$start" ] || exit 0
}
while same; [ "$left" -gt 0 ]; do
    sleep 1
    left=$((left - 1))
done
kill -KILL "-$group"
"""

NODE_SCRIPT = r"""
set -f
PATH=${PATH:-/usr/bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
proc=/proc
newline='
'
timer= intent= mains= status= memory= command_list=
unset ASFC_NODE    # only what a start command starts has it
tell() { printf 'asfc %s %s\n' "$nonce" "$*"; }
finish() {
    tell end
    [ -z "$timer" ] || kill -KILL "-$timer" 2>/dev/null
    exit 0
}
unknown() { tell unknown "$*"; finish; }
refuse() { tell refused "$*"; finish; }
number() { case $1 in ''|*[!0-9]*) return 1;; esac; }
nap() { sleep 0.1 2>/dev/null || sleep 1; }
# Hundredths of a second since boot, on the clock that goes on in a suspend.
look_at_clock() {
    read -r uptime rest </proc/uptime
    now=$((${uptime%.*} * 100 + 1${uptime#*.} - 100))
}
# Sets start, group and session of a process; false when it has ended.
process() {
    p_start= p_group= p_session=
    { read -r line <"$proc/$1/stat"; } 2>/dev/null || return 1
    set -- ${line##*) }
    case $1 in Z|X) return 1;; esac
    [ $# -ge 20 ] || return 1
    p_group=$3 p_session=$4
    shift 19
    p_start=$1
}
# Whether the process that is written pid:start still lives.
lives() { process "${1%%:*}" && [ "$p_start" = "${1#*:}" ]; }
# PID GROUP SECONDS. Neither the lock nor the pipes stay open in it.
limit() {
    process "$1" || return 0
    setsid sh -c "$timer_script" asfc-timer "$1" "$p_start" "$2" "$3" \
        </dev/null >/dev/null 2>&1 7>&- 8>&- 9>&- &
    limiter=$!
}

# -- State files

# Sets record to a file's words: none without a file, false when it isn't whole.
load() {
    record=
    [ -e "$dir/$1" ] || return 0
    { read -r record <"$dir/$1"; } 2>/dev/null
    case $record in '1 '*' end') return 0;; esac
    return 1
}
# Read back before it takes the old one's place: some shells don't notice a full disk.
store() {
    written=
    { printf '%s\n' "1 $2 end" >"$dir/$1.new"; } 2>/dev/null &&
        sync "$dir/$1.new" 2>/dev/null &&
        read -r written <"$dir/$1.new" && [ "$written" = "1 $2 end" ] &&
        mv -f "$dir/$1.new" "$dir/$1" && sync "$dir" 2>/dev/null
}
broken() {
    unknown "its file $dir/$1 can not be read or is damaged: see that no scheduler runs or starts" \
        "there, then remove it"
}
find_directory() {
    case $dir in '~') dir=$HOME;; '~/'*) dir=$HOME/${dir#'~/'};; esac
    case $dir in /*) ;; *) unknown "its state directory $dir is not an absolute path";; esac
}
local_directory() {
    file_system=$(stat -f -c %T "$1" 2>/dev/null) || return 1
    # Some stat programs have no name for overlay, xfs, btrfs, f2fs, zfs and bcachefs.
    case $file_system in UNKNOWN*)
        case $(stat -f -c %t "$1" 2>/dev/null) in
        794c7630|58465342|9123683e|f2f52010|2fc12fc1|ca451a4e) return 0;;
        esac;;
    esac
    case $file_system in
    nfs*|smb*|cifs*|fuse*|afs|kafs|coda|ceph*|gfs*|ocfs2|lustre|gpfs|panfs|v9fs|9p|ncp*|\
    novell|fhgfs|acfs|snfs|vxfs|ibrix|prl_fs|vboxsf|vmhgfs|UNKNOWN*) return 1;;
    esac
}
make_directory() {
    [ -d "$dir" ] || mkdir -p -m 700 "$dir" 2>/dev/null
    [ -d "$dir" ] && [ -O "$dir" ] && [ -w "$dir" ] && [ -x "$dir" ] ||
        unknown "its state directory $dir can not be made, or belongs to another user"
    local_directory "$dir" ||
        unknown "its state directory $dir is on a network file system (${file_system:-unknown});" \
            "set state_dir to a directory on a local one"
    { printf '' >>"$dir/gate.lock"; } 2>/dev/null || unknown "it can not write in $dir"
}
# Two nodes that tell one id share a state directory, which is an error.
tell_directory() {
    directory=
    [ ! -f "$dir/controller.lock" ] || { read -r directory <"$dir/controller.lock"; } 2>/dev/null
    case $directory in ''|*[!A-Za-z0-9_-]*) ;; *) tell directory "$directory";; esac
}
# The node's own controller must not wait long for the record it writes every few seconds. So it
# gives lock_wait, in hundredths of a second; false when the lock was held for so long.
take_lock() {
    exec 9>>"$dir/gate.lock"
    if [ -z "$lock_wait" ]; then
        flock -x 9 || unknown "it can not lock $dir/gate.lock"
        return
    fi
    look_at_clock
    until_then=$((now + lock_wait))
    until flock -n -x 9; do
        [ "$now" -lt "$until_then" ] || return 1
        nap
        look_at_clock
    done
}

# -- The gate

load_gate() {
    load gate || broken gate
    gate=${record#1 } gate=${gate% end}
    set -- $gate
    gate_term=${1:-} gate_move=${2:-} gate_instance=${3:-} gate_cluster=${4:-} gate_node=${5:-}
    [ $# = 0 ] || { [ $# = 5 ] && number "$1" && number "$2"; } || broken gate
}
pass_gate() {
    load_gate
    if [ "$gate" ]; then
        tell gate "$gate"
        [ "$gate_cluster" = "$cluster" ] ||
            refuse "node $node belongs to cluster $gate_cluster, not to $cluster: if this is" \
                "meant, stop the other cluster's controllers and its scheduler, then remove" \
                "$dir/gate there"
        [ "$gate_node" = "$node" ] ||
            refuse "the state directory $dir belongs to node $gate_node, not to $node: give each" \
                "node its own, or, if the node was renamed, remove $dir/gate there"
        [ "$term" -gt "$gate_term" ] ||
            { [ "$term" = "$gate_term" ] && [ "$move" -ge "$gate_move" ]; } ||
            refuse "node $node has heard of the newer $gate_term.$gate_move"
        [ "$gate" != "$term $move $instance $cluster $node" ] || return 0
        [ "$term.$move" != "$gate_term.$gate_move" ] ||
            refuse "on node $node $term.$move is taken by another instance, $gate_instance"
    fi
    gate="$term $move $instance $cluster $node"
    store gate "$gate" || unknown "it can not write in $dir (is its disk full?)"
    tell gate "$gate"
    # point: gate written
}
same_gate() { load gate && [ "$record" = "1 $gate end" ]; }

# -- The promise

# False when this node promised that no scheduler runs on it any longer by now.
promise_holds() {
    load fence || broken fence
    [ "$record" ] || return 0
    set -- $record
    [ $# = 4 ] && number "$3" || broken fence
    look_at_clock
    [ "$2" = "$boot" ] && [ "$now" -lt "$3" ]
}
refuse_without_promise() {
    refuse "the promise of node $node has run out: its controller has to renew it first"
}

# -- The intent

load_intent() {
    load intent || broken intent
    intent=${record#1 } intent=${intent% end}
    [ "$intent" ] || return 0
    set -- $intent
    [ $# = 9 ] && number "$1" && number "$2" && number "$4" && number "$5" && number "$6" &&
        number "$8" || broken intent
    intent_of="$1 $2 $3" intent_pid=$4 intent_start=$5 intent_session=$6
    intent_boot=$7 begun=$8 ended=$9
    [ "$intent_boot" = "$boot" ] || intent=
}
store_intent() {
    store intent "$intent_of $intent_pid $intent_start $intent_session $boot $begun $1"
}
close_intent() {
    intent=
    [ ! -e "$dir/intent" ] || { rm -f "$dir/intent" && sync "$dir"; } 2>/dev/null ||
        unknown "it can not write in $dir"
}
# An open intent ends when a main process is seen, or with the machine that it was begun on.
# Otherwise the time at which its command was first seen to have ended is kept.
settle_intent() {
    if [ "$mains" ] || [ "$status" = 0 ] || [ -z "$intent" ]; then
        close_intent
    elif [ "$ended" = - ] && ! lives "$intent_pid:$intent_start"; then
        look_at_clock
        ended=$now
        store_intent "$ended" || unknown "it can not write in $dir (is its disk full?)"
    fi
}
tell_intent() {
    [ "$intent" ] || return 0
    look_at_clock
    runs=0
    ! lives "$intent_pid:$intent_start" || runs=1
    since=-
    [ "$ended" = - ] || since=$((now - ended))
    tell intent "$intent_of $runs $((now - begun)) $since"
}
tell_output() {
    [ -z "$mains" ] || return 0
    out=$dir/start.out
    if [ ! -s "$out" ] && [ "$own_log" ]; then
        out=$own_log
        case $out in '~/'*) out=$HOME/${out#'~/'};; esac
    fi
    [ -r "$out" ] && [ -f "$out" ] || return 0
    tail -n 8 "$out" 2>/dev/null | tail -c 1500 | LC_ALL=C tr -d '\000-\010\013-\037\177' |
        while read -r line || [ "$line" ]; do tell output "$line"; done
}

# -- Processes

next_line() { line=${listing%%"$newline"*} listing=${listing#*"$newline"}; }
list_once() {
    process $$    # in a container /proc/uptime may be its own, start times are the host's
    listing=$({
        unset PS_FORMAT PS_PERSONALITY
        LC_ALL=C ps -A -ww -o pid=,ppid=,pgid=,sid=,uid=,stat=,args=
        echo "ps $?"
    } 2>/dev/null | LC_ALL=C awk -v me=$$ -v uid="$uid" -v proc="$proc" -v nonce="$nonce" \
        -v now="$p_start" -v memory="$memory" -v kept="$keep" -v command_pid="${intent_pid:-0}" \
        -v command_session="${intent_session:-0}" -v command_start="${intent_start:-0}" \
        "$judge" 2>/dev/null) || listing='blind its awk fails'
    case $listing in *"${newline}whole") ;; settled*) listing='blind its awk stopped midway';; esac
}
# Sets mains, targets, kills, command_list and report; ends the script when nothing can be seen.
list() {
    for attempt in 1 2 3 4; do
        list_once
        case $listing in unsettled) nap;; *) break;; esac
    done
    case $listing in
    settled*) ;;
    unsettled) unknown "its schedulers' processes come and go too fast to be listed";;
    *) unknown "${listing#blind }";;
    esac
    next_line; mains=${line#settled}
    next_line; targets=${line#targets}
    next_line; kills=${line#kills}
    next_line; tasks=${line#tasks}
    next_line; command_list=${line#command}
    next_line; seen_memory=${line#memory}
    report=${listing%whole}
}
load_memory() {
    load main || broken main
    set -- $record
    memory=
    [ "${2:-}" != "$boot" ] || { memory=${record#1 "$boot"} memory=${memory% end}; }
}
# A help in telling remnants apart; a full disk must not hide a scheduler that runs.
remember() {
    [ "$memory" = "$seen_memory" ] || ! store main "$boot$seen_memory" || memory=$seen_memory
}
find_user() {
    while read -r word real own_uid rest; do [ "$word" != Uid: ] || break; done </proc/$$/status
    uid=$own_uid
    [ -z "$user" ] || uid=$(id -u "$user" 2>/dev/null) ||
        unknown "it has no user $user (scheduler_user)"
}
# A service has no such variable, nor has every login by ssh.
find_users_manager() {
    case "$command $status_command" in
        *systemctl*" --user "*) export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$own_uid}";;
    esac
}
find_login_shell() {
    login_shell=${SHELL:-}
    case ${login_shell##*/} in ''|nologin|false)
        login_shell=$(getent passwd "$own_uid" 2>/dev/null)
        login_shell=${login_shell##*:};;
    esac
    case ${login_shell##*/} in ''|nologin|false) login_shell=;; esac
    [ -x "$login_shell" ] || login_shell=$(command -v bash) || login_shell=sh
}
# SECONDS COMMAND: run an operator's command, in a session of its own (but where sudo wants the
# terminal) and without the lock: what it leaves behind must not hold it.
run_limited() {
    if [ "$terminal" ]; then
        "$login_shell" -c "$2" </dev/null 9>&-
        return
    fi
    setsid "$login_shell" -c "$2" </dev/null 9>&- &
    child=$!
    limit "$child" "$child" "$1"
    wait "$child"
}
ask_status() {
    status=
    [ "$status_command" ] || return 0
    said=$(run_limited "$status_limit" "$status_command" 2>&1)
    status=$?
    said=$(printf '%s\n' "$said" | tail -n 1 | LC_ALL=C tr -d '\000-\037\177')
}
# systemctl's exit status is 3, too, while a unit waits to be restarted, and while it ends.
status_says_none() {
    [ "$status" = 3 ] && case $said in *activating) false;; esac
}
tell_all() {
    tell_intent
    [ -z "$status" ] || tell status "$status $said"
    printf '%s' "$report"
    tell_output
}

# -- Starting

start_refused() {
    if [ "$mains" ] || [ "$status" = 0 ]; then
        tell 'done' 'not started: a scheduler runs there already'
    elif [ "$intent" ]; then
        tell 'done' 'not started: an earlier start is still under way'
    elif [ "$status" ] && ! status_says_none; then
        tell 'done' 'not started: airflow_scheduler_status_command does not say that none runs'
    else
        return 1
    fi
}
# What reads "go" from fd 0 and becomes the command. It does nothing when its writer dies first.
launcher='read -r word && [ "$word" = go ] || exit 1; exec "$@" </dev/null'
start_shell() {
    shell=$login_shell
    [ "$own_start" ] || return 0
    shell=$(command -v bash) || shell=sh
    [ "$uid" = "$own_uid" ] || unknown "asfc works as another user than $user there:" \
        "airflow_scheduler_start_command must say how $user's scheduler is started"
}
intent_from() {
    process "$1" || return 1
    intent_of="$term $move $instance" intent_pid=$1 intent_start=$p_start intent_session=$2
    look_at_clock
    begun=$now ended=- intent=open
    store_intent - || return 1
    # point: intent written
    same_gate || return 1
    promise_holds || abandon_start "$2"
    # point: last test passed
}
# The lock and the gate are ours, so the intent is too: no word to go, and it can be closed.
abandon_start() {
    [ "$terminal" ] || { exec 8>&-; kill -KILL "$1" && wait "$1"; } 2>/dev/null
    close_intent
    refuse_without_promise
}
start_detached() {
    rm -f "$dir/go" && mkfifo -m 600 "$dir/go" || unknown "it can not write in $dir"
    exec 8<>"$dir/go"
    exec 7<"$dir/go"
    rm -f "$dir/go"
    ASFC_NODE=$node setsid sh -c "$launcher" "asfc-start@$node" "$shell" -c "$command" \
        <&7 7<&- 8>&- 9>&- >"$dir/start.out" 2>&1 &
    child=$!
    exec 7<&-
    # point: launched
    intent_from "$child" "$child" || unknown "it could not write its intent; nothing was started"
    echo go >&8
    exec 8>&-
    # point: sent on its way
    tell 'done' 'the start command was launched'
    tell_all
    finish
}
# sudo may want the terminal, and its end would end the command: so this session stays with it.
start_on_terminal() {
    process $$
    intent_from $$ "$p_session" || unknown "it could not write its intent; nothing was started"
    trap '' HUP
    tell 'done' 'the start command was launched'
    tell_all
    tell end
    exec 9>&-
    ASFC_NODE=$node "$shell" -c "$command" </dev/null >"$dir/start.out" 2>&1
    kill -KILL "-$timer" 2>/dev/null
    exit 0
}
start() {
    start_refused && { tell_all; finish; }
    promise_holds || refuse_without_promise
    start_shell
    { printf '' >"$dir/start.out"; } 2>/dev/null || unknown "it can not write in $dir"
    report= mains=
    if [ "$terminal" ]; then start_on_terminal; else start_detached; fi
}

# -- Stopping

# SIGNAL PROCESSES: each is looked at again first, for its number may be another's by now.
signal_each() {
    for each in $2; do
        if lives "$each"; then kill -"$1" "${each%%:*}" 2>/dev/null; fi
    done
}
any_lives() {
    for each in $1; do
        if lives "$each"; then return 0; fi
    done
    return 1
}
# PROCESSES SECONDS: true as soon as all are gone.
wait_gone() {
    look_at_clock
    until_then=$((now + $2 * 100))
    while any_lives "$1"; do
        [ "$now" -lt "$until_then" ] || return 1
        nap
        look_at_clock
    done
}
kill_command() {
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        [ "$command_list" ] || return 0
        signal_each KILL "$command_list"
        nap
        list
    done
    [ -z "$command_list" ]
}
count_living() {
    counted=0
    for each in $1; do
        if lives "$each"; then counted=$((counted + 1)); fi
    done
}
# TERM, TERM, KILL. All that goes with the targets was listed before the first signal; what they
# leave behind, and what was started meanwhile, goes with them. Some swallow the first TERM, and
# some wait for their tasks until the second.
stop_targets() {
    listed=$kills
    for attempt in 1 2; do
        signal_each TERM "$targets"
        ! wait_gone "$targets" "$stop_wait" || break
    done
    count_living "$tasks"
    left=
    [ "$counted" = 0 ] || left=", $counted of them tasks, which have to run again"
    count_living "$listed"
    left="$counted processes$left"
    signal_each TERM "$listed"
    wait_gone "$listed" 1
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        list
        [ "$kills" ] || any_lives "$listed" || break
        signal_each KILL "$kills $listed"
        nap
    done
}
stop_by_operator() {
    listed=$kills
    run_limited "$stop_limit" "$command" >"$dir/stop.out" 2>&1
    stopped_with=$?
    wait_gone "$mains" "$stop_wait"
    list
    said=$(tail -n 1 "$dir/stop.out" 2>/dev/null | LC_ALL=C tr -d '\000-\037\177')
    said="the stop command ended with status $stopped_with${said:+: }$said"
    if [ -z "$mains" ]; then
        kills="$kills $listed"
        ! any_lives "$kills" || stop_targets
    elif [ "$stopped_with" = 0 ]; then   # of another unit, or one that has swallowed SIGTERM
        said="$said; asfc ended the scheduler that it left"
        stop_targets
    fi
    tell 'done' "$said"
}
stop() {
    if [ "$keep" ] && ! lives "$keep"; then
        ask_status
        tell 'done' 'nothing was stopped: the scheduler to keep has ended'
        tell_all
        finish
    fi
    was_open=$intent
    if [ "$intent" ] && ! kill_command; then
        tell_intent
        unknown "processes of the start command can not be ended:$command_list"
    fi
    # point: start command killed
    if [ "$command" ] && [ -z "$keep" ]; then
        stop_by_operator
    elif [ "$targets" ]; then
        stop_targets
        tell 'done' "asked it to end (SIGTERM), then ended what was left (SIGKILL): $left"
    else
        tell 'done' 'there was nothing to stop'
    fi
    list
    if [ "$was_open" ] && [ "$command_list" ]; then
        tell_intent
        unknown "processes of the start command can not be ended:$command_list"
    fi
    ask_status
    remember
    close_intent
    tell_all
    finish
}

# -- What is asked for

needed='ps awk id stat sync sleep tail tr rm mv mkdir mkfifo flock setsid'
lacking() {
    lacks=
    for tool in $needed; do
        command -v "$tool" >/dev/null 2>&1 || lacks="$lacks $tool"
    done
    [ "$lacks" ]
}
look() {
    ! lacking || tell lacks "its PATH has no$lacks (packages: procps, coreutils, util-linux)"
    above=$dir
    while [ ! -e "$above" ] && [ "$above" != / ]; do above=${above%/*} above=${above:-/}; done
    if [ ! -d "$above" ] || [ ! -w "$above" ]; then
        tell lacks "the state directory $dir can not be made or written there"
    elif ! local_directory "$above"; then
        tell lacks "the state directory $dir is on a network file system there ($file_system)"
    fi
    tell_unlocked
}
tell_unlocked() {
    [ ! -r "$dir" ] || { load_intent; load_memory; }
    list
    ask_status
    [ -z "$mains" ] && [ "$status" != 0 ] || intent=
    tell_all
    finish
}

cd "${HOME:-/}" 2>/dev/null || cd /
if command -v setsid >/dev/null 2>&1; then
    process $$
    limit $$ "$p_group" "$time_limit"
    timer=$limiter
fi
tell node "$node"
read -r boot </proc/sys/kernel/random/boot_id
find_directory
tell_directory
find_user
find_users_manager
find_login_shell
[ "$verb" != look ] || look
! lacking || unknown "its PATH has no$lacks (packages: procps, coreutils, util-linux)"
make_directory
if ! take_lock; then
    tell held "another command holds its lock"
    exec 9>&-
    tell_unlocked
fi
# point: locked
pass_gate
load_intent
load_memory
list
if [ "$verb" = stop ]; then stop; fi
ask_status
remember
settle_intent
if [ "$verb" = start ]; then start; fi
tell_all
finish
"""


# What `check` asks of a node beside a look: it changes nothing there. `peers` are asked by this
# node's own ssh, four at a time, for an sshd drops connections at random when many come at once.
CHECK_SCRIPT = r"""
set -f
PATH=${PATH:-/usr/bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
tell() { printf 'asfc %s %s\n' "$nonce" "$*"; }
last() { printf '%s\n' "$1" | tail -n 1 | LC_ALL=C tr -d '\000-\037\177' | cut -c 1-200; }
has() { command -v "$1" >/dev/null 2>&1; }
# KEY PATH: whether what stands there can be written, or made.
may_write() {
    above=$2
    case $above in '~') above=$HOME;; '~/'*) above=$HOME/${above#'~/'};; esac
    while [ ! -e "$above" ] && [ "$above" != / ]; do above=${above%/*} above=${above:-/}; done
    { [ -d "$above" ] && [ -w "$above" ]; } || tell unwritable "$1 $2"
}
find_secrets() {
    [ -r "$cfg" ] && mode=$(stat -L -c %a "$cfg" 2>/dev/null) || return 0
    case $mode in *[4567]) ;; *) return 0;; esac
    ! grep -Eq '^[^#]*://[^:/@ ]*:[^@ ]+@|^ *[a-z_]*(password|fernet_key|secret_key) *= *[^ ]' \
        "$cfg" || tell secrets "$mode"
}
find_programs() {
    found=
    for program in $clients; do ! has "$program" || found=yes; done
    [ "$found" ] || [ -z "$clients" ] || tell missing "client $clients"
    [ -z "$ssh_program" ] || has "$ssh_program" || tell missing "ssh_command $ssh_program"
    for pair in $programs; do has "${pair#*=}" || tell missing "${pair%%=*} ${pair#*=}"; done
    [ -z "$sudo_start" ] || ask_sudo airflow_scheduler_start_command "$sudo_start"
    [ -z "$sudo_stop" ] || ask_sudo airflow_scheduler_stop_command "$sudo_stop"
}
ask_sudo() {
    has sudo || return 0
    said=$(sudo -n -l $2 2>&1 </dev/null) || tell denied "$1 $(last "$said")"
}
find_airflow() {
    [ "$probe" ] || return 0
    shell=$(command -v bash) || shell=sh
    said=$("$shell" -c "$probe" 2>&1 </dev/null) || tell airflow "$(last "$said")"
}
# UNIT, as words for systemctl.
show() {
    case $1 in --user*) export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}";; esac
    shown=$(systemctl show $1 -p LoadState -p MainPID -p Restart -p UnitFileState 2>/dev/null) &&
        shown=" "$(echo $shown)" "
}
find_unit() {
    ! has systemctl || ! show "$unit" || tell unit "${unit##* }$shown"
}
# Where process 1 is not systemd, as in a container, units of the machine around mean nothing.
find_parents() {
    read -r first </proc/1/comm
    for pid in $pids; do
        { read -r line <"/proc/$pid/stat"; } 2>/dev/null || continue
        set -- ${line##*) }
        group=/
        [ "$first" != systemd ] ||
            group=$(awk -F: '$1 == 0 { path = $3 } $2 == "name=systemd" { old = $3 }
                END { print old ? old : path }' "/proc/$pid/cgroup" 2>/dev/null)
        tell process "$pid $2 ${group:-/} $(last "$(tr '\000\n' '  ' <"/proc/$2/cmdline")")"
        case $group in *.service) find_unit_of_process "$pid" "$2" "${group##*/}";; esac
    done
}
# A process may live in the control group of a unit that is not its own, such as sshd's or cron's.
find_unit_of_process() {
    case $group in */user@*/*) set -- "$1" "$2" "--user $3";; esac
    has systemctl && show "${3%.service}" || return 0
    case $shown in *" MainPID=$1 "*|*" MainPID=$2 "*) set -- "${3##* }";; *) return 0;; esac
    tell runs "${1%.service}$shown"
}
ask_peer() {
    said=$(eval "$limit $ssh \"\$1\" 'echo asfc-check'" 2>&1 </dev/null)
    status=$?
    case $said in *asfc-check*) status=well said=;; esac
    tell peer "$1 $status $(last "$said")"
}
ask_peers() {
    limit=
    ! has timeout || limit="timeout $peer_limit"
    number=0
    for peer in $peers; do
        ask_peer "$peer" &
        number=$((number + 1))
        [ $((number % 4)) -ne 0 ] || wait
    done
    wait
}
cd "${HOME:-/}" 2>/dev/null || cd /
tell host "$(uname -n) $(cat /proc/sys/kernel/random/boot_id)"
may_write state_dir "$state_dir"
may_write logging_dir "$logging_dir"
[ -z "$probe" ] || may_write airflow_scheduler_log_file "$own_log"
find_secrets
find_programs
find_airflow
find_unit
find_parents
ask_peers
tell end
"""


@functools.lru_cache(maxsize=None)
def _stripped(script: str) -> str:
    """A script without comments, blank lines and indentation."""
    lines = [line.strip() for line in script.splitlines()]
    return "\n".join(line for line in lines if line and not line.startswith("#")) + "\n"


def script_for(parameters: Mapping[str, str]) -> str:
    """The script of a node with its parameters, ready to be sent."""
    constants = {"judge": _stripped(NODE_JUDGE), "timer_script": _stripped(NODE_TIMER)}
    assignments = ["{}={}".format(name, shlex.quote(value))
                   for name, value in list(parameters.items()) + list(constants.items())]
    return "\n".join(assignments) + "\n" + _stripped(NODE_SCRIPT)


def check_script(parameters: Mapping[str, str]) -> str:
    """The script of `check` with its parameters, ready to be sent."""
    return "".join("{}={}\n".format(name, shlex.quote(value))
                   for name, value in sorted(parameters.items())) + _stripped(CHECK_SCRIPT)


def script_words(script: str, name: str) -> Tuple[str, ...]:
    """The words of a command line that runs a script under a name: sh, and the script as base64.

    Base64 in short words passes unharmed through every login shell (csh limits a word's length,
    and newlines and quotes differ among them); nothing is read from stdin, for a terminal
    (ssh -tt) would echo it. A multiple of four keeps the padding off the beginning of a word.
    """
    encoded = base64.b64encode(script.encode("utf-8")).decode("ascii")
    chunks = [encoded[at:at + 400] for at in range(0, len(encoded), 400)]
    return ("sh", "-c", 'eval "$(printf %s "$@" | base64 -d)"', name) + tuple(chunks)


###############################################################################
# Nodes: asking and telling ###################################################
###############################################################################


class NodeRequest(NamedTuple):
    """What a command asks of a node. A simulated world answers this instead of running a script."""
    verb: str                 # look, query, start or stop
    nonce: str
    node: str
    stamp: Optional[Stamp]    # None for a verb's look
    keep: Optional[Process]   # a stop spares this main process
    own: bool = False         # a query of the node's own controller: it does not wait for the lock


def _shell_path(path: str) -> str:
    """A path quoted for sh, with a `~` at its beginning left to the node's shell."""
    home, slash, rest = path.partition("/")
    if re.match(r"~[A-Za-z0-9_.-]*$", home):
        return home + slash + (shlex.quote(rest) if rest else "")
    return shlex.quote(path)


def own_start_command(configuration: Any, environment: Mapping[str, str]) -> str:
    """asfc's own start command, as text for bash or sh: it becomes the scheduler."""
    return "\n".join(own_start_lines(configuration, environment) + [
        'log={}'.format(_shell_path(configuration.airflow_scheduler_log_file)),
        'mkdir -p "${log%/*}" || exit 1',
        'exec airflow scheduler >>"$log" 2>&1'])


def own_start_lines(configuration: Any, environment: Mapping[str, str]) -> List[str]:
    """How asfc's own start finds `airflow`; they end the shell where there is none to use."""
    if configuration.airflow_home_is_explicit:
        lines = ["export AIRFLOW_HOME=" + _shell_path(configuration.airflow_home)]
    else:
        lines = ['export AIRFLOW_HOME="${AIRFLOW_HOME:-$HOME/airflow}"']
    if environment.get("AIRFLOW_CONFIG"):
        lines.append("export AIRFLOW_CONFIG=" + _shell_path(environment["AIRFLOW_CONFIG"]))
    if configuration.airflow_virtualenv:
        lines.append(". {} || exit 1".format(_shell_path(configuration.airflow_virtualenv)))
    return lines + [
        "command -v airflow >/dev/null || { echo \"airflow: not found in $PATH\" >&2; exit 127; }",
        'case $(command -v airflow) in *" "*) echo "airflow: a path with blanks: asfc could not "'
        '"recognise its scheduler" >&2; exit 127;; esac']


# What ssh says when it fails, and what helps.
SSH_FAILURES = (
    (r"host key verification failed|no .*host key is known|remote host identification has changed",
     "ssh doesn't know its host key: as the user that runs asfc, run `ssh {node}` once and check "
     "the key (or `ssh-keygen -R {node}` first, if the host was rebuilt)"),
    (r"permission denied|too many authentication failures",
     "ssh: permission denied: as the user that runs asfc, run `ssh-copy-id {node}`"),
    (r"could not resolve hostname|name or service not known",
     "ssh: its name is not known here: see /etc/hosts or the DNS, or set ssh_options"),
    (r"connection refused", "ssh: connection refused: does sshd run there?"),
    (r"no route to host|network is unreachable",
     "ssh: no route to the host: is it off or cut off?"),
    (r"timed out|timeout", "ssh: no answer in time: is it off or cut off?"),
    (r"connection (closed|reset)|broken pipe", "ssh: the connection was closed by the other side"),
    (r"base64: |tr: .*not found", "it has no base64 or tr (package coreutils)"),
)


class NodeExamination(NamedTuple):
    """What `check` and `test_connection` learn from a look at a node."""
    report: NodeReport
    lacks: str          # what is wrong there, or why there is no answer; '' when all is well
    seconds: float      # that it took


class NodeAnswer(NamedTuple):
    """The lines of a node's answer, by their first word."""
    lines: Dict[str, List[str]]

    def only(self, word: str) -> str:
        """The text of a line that there is at most one of; '' when there is none."""
        found = self.lines.get(word, [])
        if len(found) > 1:
            raise ValueError("more than one line '{}'".format(word))
        return found[0] if found else ""

    def pair(self, term: str, move: str) -> Pair:
        return Pair(int(term), int(move))

    def gate(self) -> Optional[Gate]:
        lines = self.lines.get("gate", [])
        if not lines:
            return None
        term, move, instance, cluster, node = lines[-1].split(" ")  # the last: after it was raised
        return Gate(self.pair(term, move), instance, cluster, node)

    def intent(self) -> Optional[Intent]:
        if "intent" not in self.lines:
            return None
        term, move, instance, runs, age, ended = self.only("intent").split(" ")
        if runs not in ("0", "1"):
            raise ValueError("a damaged intent")
        return Intent(self.pair(term, move), instance, runs == "1", max(0.0, int(age) / 100),
                      None if ended == "-" else max(0.0, int(ended) / 100))

    def processes(self, word: str) -> Tuple[Process, ...]:
        """The processes of a kind, the one that was started first before the others."""
        found = []
        for text in self.lines.get(word, []):
            pid, start, parent, session, uid, arguments = text.split(" ", 5)
            found.append(Process(int(pid), int(start), int(parent), int(session), int(uid),
                                 arguments))
        return tuple(sorted(found, key=lambda process: (process.start, process.pid)))


def parse_answer(output: str, nonce: str) -> Optional[NodeAnswer]:
    """The answer within a command's output; None when it isn't there as a whole."""
    lines: Dict[str, List[str]] = {}
    prefix = "asfc {} ".format(nonce)
    for line in output.replace("\r", "").split("\n"):
        if line == prefix + "end":
            return NodeAnswer(lines)
        if line.startswith(prefix):
            word, _, text = line[len(prefix):].partition(" ")
            lines.setdefault(word, []).append(text)
    return None


class Nodes:
    """All that is asked of nodes and ordered there, on this host and over ssh."""
    NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.:-]*[A-Za-z0-9_.])?$")

    def __init__(self, world: World, configuration: Any) -> None:
        self.world = world
        self.configuration = configuration

    # -- the verbs

    def look(self, names: Iterable[str]) -> Dict[str, NodeReport]:
        """Ask all the nodes at the same time, changing and proving nothing."""
        return self._ask(names, "look", None)

    def query(self, names: Iterable[str], stamp: Stamp) -> Dict[str, NodeReport]:
        """Ask all the nodes at the same time; takes no longer than query_timeout."""
        return self._ask(names, "query", stamp)

    def query_own(self, stamp: Stamp) -> NodeReport:
        """Ask this host's node; while another command holds its lock, the report has no gate."""
        name = self.configuration.node_name
        return self._ask([name], "query", stamp, own=True)[name]

    def start(self, name: str, stamp: Stamp) -> NodeReport:
        """Have a node launch its scheduler, unless one runs or starts there.

        Returns when the command was launched; whether it worked is seen by later queries.
        """
        return self._ask([name], "start", stamp)[name]

    def stop(self, name: str, stamp: Stamp, keep: Optional[Process] = None) -> NodeReport:
        """End all schedulers, remnants and starts on a node, or all but the main process `keep`."""
        return self._ask([name], "stop", stamp, keep)[name]

    def test_connection(self, names: Iterable[str]) -> Dict[str, Tuple[bool, str]]:
        """Whether each node can be asked and has what it needs, with a sentence for people."""
        return {name: (not one.lacks, one.lacks or "Connection Succeeded")
                for name, one in self.examine(names).items()}

    def examine(self, names: Iterable[str]) -> Dict[str, "NodeExamination"]:
        """A look at all the nodes at the same time, with what each lacks and the time it took."""
        asked, requests, results = self._run(names, "look", None)
        found = {}
        for name in asked:
            result, request = results.get(name), requests.get(name)
            answer = request and result and parse_answer(result.stdout, request.nonce)
            lacks = "; ".join(answer.lines.get("lacks", []) + answer.lines.get("unknown", [])) \
                if answer else self.why_no_answer(name, result)
            found[name] = NodeExamination(self._report(name, request, result), lacks,
                                          result.seconds if result else 0.0)
        return found

    def inspect(self, parameters: Mapping[str, Mapping[str, str]],
                limit_s: float) -> Dict[str, Optional[NodeAnswer]]:
        """Send the script of `check` to all the nodes at the same time, with parameters for each.

        Returns what each has answered, None where there was no whole answer.
        """
        requests = [NodeRequest("check", self.world.random_id(), name, None, None)
                    for name in parameters]
        commands = [Command(self._words(request, check_script(dict(
            parameters[request.node], nonce=request.nonce)), False), limit_s, request=request)
            for request in requests]
        return {request.node: parse_answer(result.stdout, request.nonce)
                for request, result in zip(requests, self.world.run(commands))}

    # -- sending

    def _ask(self, names: Iterable[str], verb: str, stamp: Optional[Stamp],
             keep: Optional[Process] = None, own: bool = False) -> Dict[str, NodeReport]:
        asked_at = self.world.now()
        asked, requests, results = self._run(names, verb, stamp, keep, own)
        return {name: self._report(name, requests.get(name), results.get(name))
                ._replace(asked_at=asked_at) for name in asked}

    def _run(self, names: Iterable[str], verb: str, stamp: Optional[Stamp],
             keep: Optional[Process] = None, own: bool = False
             ) -> Tuple[List[str], Dict[str, NodeRequest], Dict[str, CommandResult]]:
        """Send a request to each node that has a proper name; returns all names, in order."""
        asked = list(collections.OrderedDict.fromkeys(names))
        requests = {name: NodeRequest(verb, self.world.random_id(), name, stamp, keep, own)
                    for name in asked if self.NAME.match(name)}
        commands = [self.command(request) for request in requests.values()]
        return asked, requests, dict(zip(requests, self.world.run(commands)))

    def command(self, request: NodeRequest) -> Command:
        """The command line of a request: on this host the script itself, else through ssh."""
        terminal = self._is_remote(request.node) and self._operators_sudo(request.verb)
        timeout_s = self._timeout_s(request.verb, terminal)
        script = script_for(self._parameters(request, terminal, timeout_s))
        return Command(self._words(request, script, terminal), timeout_s, request=request)

    def _words(self, request: NodeRequest, script: str, terminal: bool) -> Tuple[str, ...]:
        """The words that run a script on the node of a request."""
        words = script_words(script, "asfc-{}@{}".format(request.verb, request.node))
        if not self._is_remote(request.node):
            return words
        return self.ssh(request.node, terminal) + ("exec " + " ".join(
            word if re.match(r"[A-Za-z0-9+/=-]+$", word) else "'{}'".format(word)
            for word in words),)

    def _is_remote(self, name: str) -> bool:
        return bool(name != self.configuration.node_name)

    def _operators_command(self, verb: str) -> str:
        """What an operator has set for a verb; '' where asfc has its own way."""
        configuration = self.configuration
        text = {"start": configuration.airflow_scheduler_start_command,
                "stop": configuration.airflow_scheduler_stop_command}.get(verb, "")
        return str(text)

    def _operators_sudo(self, verb: str) -> bool:
        """Whether a command of the operator that runs in this verb begins with sudo."""
        texts = (self._operators_command(verb), self.configuration.airflow_scheduler_status_command)
        return any(text.split()[:1] == ["sudo"] for text in texts)

    def _timeout_s(self, verb: str, terminal: bool) -> float:
        """The time limit of a verb. A start needn't wait for its command, but on a terminal."""
        configuration = self.configuration
        if verb == "stop":
            return float(configuration.stop_timeout_s)
        if verb == "start" and terminal:
            return float(configuration.scheduler_start_timeout)
        return float(configuration.query_timeout) * (2 if verb == "start" else 1)

    def _parameters(self, request: NodeRequest, terminal: bool, timeout_s: float) -> Dict[str, str]:
        """The assignments before the script's first line; seconds are whole numbers."""
        configuration = self.configuration
        command = self._operators_command(request.verb)
        own_start = request.verb == "start" and not command
        wait_s = max(1, round(configuration.scheduler_stop_wait_time))
        query_s = max(1, round(configuration.query_timeout))
        lock_wait_s = min(RETRY_INTERVAL_S, 0.4 * configuration.query_timeout)
        parameters = {
            "verb": request.verb, "nonce": request.nonce, "node": request.node,
            "dir": configuration.state_dir, "user": configuration.scheduler_user,
            "terminal": "1" if terminal else "", "time_limit": str(max(1, round(timeout_s))),
            "status_command": configuration.airflow_scheduler_status_command,
            "status_limit": str(max(1, query_s - 1)), "stop_wait": str(wait_s),
            "stop_limit": str(max(1, round(timeout_s) - 3 * wait_s - query_s)),
            "own_start": "1" if own_start else "", "command": command,
            "own_log": "" if configuration.airflow_scheduler_start_command
                       else configuration.airflow_scheduler_log_file,
            "keep": "{}:{}".format(request.keep.pid, request.keep.start) if request.keep else "",
            "lock_wait": str(int(100 * lock_wait_s)) if request.own else ""}
        if own_start:
            parameters["command"] = own_start_command(configuration, self.world.environment())
        if request.stamp:
            parameters.update(cluster=request.stamp.cluster, term=str(request.stamp.pair.term),
                              move=str(request.stamp.pair.move), instance=request.stamp.instance)
        return parameters

    def ssh(self, name: str, terminal: bool) -> Tuple[str, ...]:
        """ssh's words up to the name. The operator's come first: ssh takes the first value."""
        connect_s = max(1, int(self.configuration.query_timeout * 0.8))
        options = ("BatchMode=yes", "ConnectTimeout={}".format(connect_s), "ConnectionAttempts=1",
                   "ServerAliveInterval=3", "ServerAliveCountMax=2", "LogLevel=ERROR",
                   "ForwardX11=no", "ClearAllForwardings=yes", "PermitLocalCommand=no",
                   "StrictHostKeyChecking=yes")
        words = shlex.split(self.configuration.ssh_command)
        words += shlex.split(self.configuration.ssh_options)
        for option in options:
            words += ["-o", option]
        return tuple(words + ["-tt" if terminal else "-T", name])

    # -- understanding the answers

    def _report(self, name: str, request: Optional[NodeRequest],
                result: Optional[CommandResult]) -> NodeReport:
        """What a command's result tells of its node. Never raises: what isn't clear is unknown."""
        answer = request and result and parse_answer(result.stdout, request.nonce)
        if not request or not answer:
            return NodeReport(name, UNKNOWN, self.why_no_answer(name, result))
        try:
            if answer.only("node") != name:
                raise ValueError("another node's name")
            report = NodeReport(
                name, UNKNOWN, "", answered=True, refused=answer.only("refused"),
                gate=answer.gate() if request.stamp else None, intent=answer.intent(),
                mains=answer.processes("main"), remnants=answer.processes("remnant"),
                foreign=answer.processes("foreign"), done=answer.only("done"),
                output="\n".join(answer.lines.get("output", [])),
                directory=answer.only("directory"))
            state, reason = self._judge(report, answer)
            held = answer.only("held")
        except ValueError as error:
            return NodeReport(name, UNKNOWN, "its answer is damaged: {}".format(error))
        return report._replace(state=state, reason=reason + (held and " ({})".format(held)))

    def _judge(self, report: NodeReport, answer: NodeAnswer) -> Tuple[str, str]:
        """Running, stopped or unknown, and the evidence or the reason in one line."""
        if report.refused:
            return UNKNOWN, "its gate refused: " + report.refused
        if "unknown" in answer.lines:
            return UNKNOWN, answer.only("unknown")
        status, _, said = answer.only("status").partition(" ")
        pids = ", ".join(str(process.pid) for process in report.mains)
        if status == "0":
            return RUNNING, "its status command says so" + (", pid " + pids if pids else "")
        if status and (status != "3" or pids or said.endswith("activating")):
            said = "its process list shows pid " + pids if status == "3" and pids else said
            return UNKNOWN, "its status command ended with status {}{}".format(
                status, said and ": " + said)
        if pids:
            return RUNNING, "pid " + pids
        if report.intent:
            return UNKNOWN, "a start is under way, term {}".format(report.intent.pair)
        return STOPPED, "its process list shows none"

    def why_no_answer(self, name: str, result: Optional[CommandResult]) -> str:
        """One line for people: why a node did not answer, and what helps."""
        if not result:
            return "'{}' is not a host name".format(name)
        said = (result.stderr.strip() or result.stdout.strip()).replace("\r", "")
        for pattern, sentence in SSH_FAILURES:
            if re.search(pattern, said, re.IGNORECASE):
                return sentence.format(node=name)
        last = said.split("\n")[-1][:200]
        if result.problem:
            return result.problem + (" (" + last + ")" if last else "")
        return "no answer, exit status {}{}".format(result.status, last and ": " + last)


###############################################################################
# Fencing itself ##############################################################
###############################################################################


def scheduler_kind(words: Sequence[str]) -> int:
    """1 for a scheduler's main process or a fork of it, 2 for a named helper, 0 for the rest."""
    at = 0
    if words and os.path.basename(words[0]).startswith("python"):
        at = 1
        while at < len(words) and words[at].startswith("-"):
            at += 2 if re.match(r"-[^-]*[WX]$", words[at]) else 1
    if os.path.basename("".join(words[at:at + 1])) != "airflow" \
            or tuple(words[at + 1:at + 2]) != ("scheduler",):
        return 0
    return 2 if tuple(words[at + 2:at + 3]) in (("--",), ("-",)) else 1


class FenceTargets(NamedTuple):
    """What a node that fences itself has to end, in this order."""
    starting: Tuple[LocalProcess, ...]     # scripts and start commands in flight
    mains: Tuple[LocalProcess, ...]
    belongings: Tuple[LocalProcess, ...]   # what lives below a main, or in a session that it leads


def fence_targets(processes: Sequence[LocalProcess], uid: int, node: str) -> FenceTargets:
    """Find what would start a scheduler, the schedulers of the user, and all that goes with them.

    A start command is found by the mark in its environment, which all that it starts inherits. So
    what a dead scheduler has left is ended as well: its tasks will be run again elsewhere.
    """
    by_pid = {process.pid: process for process in processes}
    kinds = {process.pid: scheduler_kind(process.words) for process in processes
             if process.uid == uid}
    mains = tuple(process for process in processes if kinds.get(process.pid) == 1)
    tops = {process.pid for process in mains}

    def belongs(process: LocalProcess) -> bool:
        if process.session in tops:
            return True
        crown, is_helper = process, kinds.get(process.pid) == 2
        for _ in range(200):
            if process.parent in tops:
                return True
            above = by_pid.get(process.parent)
            if above is None:
                break
            if crown is process and above.session == process.session:
                crown = above
            process = above
        return is_helper and bool(kinds.get(crown.pid))   # a dag-processor's have such names, too
    others = [process for process in processes if process.pid not in tops]
    belongings = tuple(process for process in others if belongs(process))
    name = "asfc-start@" + node
    starting = tuple(process for process in others if process not in belongings
                     and (process.marker == node or name in process.words))
    return FenceTargets(starting, mains, belongings)


class SelfFence:
    """Keeps this node's promise: no scheduler lives here F after its controller's last heartbeat.

    The deadline is two thirds of h after the moment before the last confirmed write of the node's
    own record was sent. A thread of its own watches it, which needs no metadata, ssh, lock, disk or
    log: then it ends what would start, the schedulers by SIGTERM, and after the grace by SIGKILL.
    The record is not written again before that is done: the others may have gone by its silence.

    One exception: a controller that did not run when the deadline passed, for it was frozen or not
    started yet, first gets one try of c_m: it reads, and where its node is still a possible one it
    writes. Otherwise SIGKILL at once.

    The deadline also stands in the state directory, for a controller that is started again and for
    the node's script, which starts nothing once it has passed.
    """
    SOON_S = 0.2     # between two looks while something is to be ended
    MOST_TRIES = 3   # one more each time that it is frozen in its try; a starved host stands still
                     # again and again, and its scheduler would live on for as long

    def __init__(self, world: World, configuration: Any, uid: int) -> None:
        self.deadline: Optional[float] = None
        self.clean = False              # the deadline has passed, and nothing is left to be ended
        self.clean_since = 0.0
        self.known: Tuple[Process, ...] = ()   # main processes that the last look has listed
        self.sentences: "collections.deque[str]" = collections.deque(maxlen=20)
        self.problem = ""               # why the deadline can't be written down at the moment
        self.ended = False
        self._world = world
        self._configuration = configuration
        self._uid = uid
        self._path = os.path.join(configuration.state_dir_here, "fence")
        self._ran_at: Optional[float] = None
        self._due_at = world.now()
        self._began_at: Optional[float] = None
        self._chance_until: Optional[float] = None
        self._tries, self._longest_try = 0, 0.0
        self._chance_refused = False    # this and the next are set by the heartbeat's loop
        self._was_frozen = False
        self._hard = False
        self._asked: Set[Tuple[int, int]] = set()
        self._belongings: Set[Tuple[int, int]] = set()   # seen with a main process in this fence
        self._inherit()

    def _inherit(self) -> None:
        """Take over the deadline of the controller that ran here before, on the same boot."""
        try:
            words = (self._world.read_text(self._path) or "").split()
            if not words:
                return
            now = self._world.now()   # first: frozen after it, the deadline is the earlier one
            boot, uptime_s = self._world.boot_clock()
            if len(words) != 4 or words[3] != "end":
                raise ValueError
            if words[1] == boot:
                self.deadline = now + int(words[2]) / 100.0 - uptime_s
        except (OSError, ValueError):
            self.deadline = self._world.now()  # it can't be told: as if it had passed

    # -- what the heartbeat tells it

    def about_to_promise(self, sent_at: float) -> None:
        """A record with a promise is about to be sent; from now on it may count for the others."""
        if self.deadline is None:
            self.promise_confirmed(sent_at)
        else:   # one that was inherited may be later: it was promised with another h
            self.deadline = min(self.deadline, sent_at + self._configuration.acting_window_s)

    def promise_confirmed(self, sent_at: float) -> None:
        self.deadline = sent_at + self._configuration.acting_window_s
        self._was_frozen = self._world.now() >= self.deadline  # no exchange lasts that long
        self._keep()

    def promise_withdrawn(self) -> None:
        """A record without a promise is confirmed: nobody counts on this node's silence."""
        self.deadline = None
        self._keep()

    def may_write(self) -> bool:
        """Whether the node's record may be written: a passed deadline is dealt with first."""
        return self.clean or self._began_at is None and (
            self.deadline is None or self._world.now() < self.deadline or self.has_chance())

    def has_chance(self) -> bool:
        """Whether the deadline has passed while this process did not run, and one try is open."""
        until = self._chance_until
        return until is not None and self._began_at is None and not self._chance_refused \
            and self._world.now() < until

    def is_overdue(self) -> bool:
        """Whether the deadline has passed and what it asks for is not done."""
        return self.deadline is not None and not self.clean and self._world.now() >= self.deadline

    def refuse_chance(self) -> None:
        """The node is not a possible one any more: another scheduler may run by now."""
        self._chance_refused = True
        self._world.wake("fence")

    def _keep(self) -> None:
        """Write the deadline down; on failure the old one stands there, which is earlier."""
        try:
            if self.deadline is None:
                self._world.remove_file(self._path)
            else:
                boot, uptime_s = self._world.boot_clock()
                self._world.write_text(self._path, "1 {} {:d} end\n".format(boot, int(
                    100 * (uptime_s + self.deadline - self._world.now()))), durable=False)
            self.problem = ""
        except OSError as error:
            self.problem = "the fence deadline can't be written to {}: {}".format(
                self._path, error.strerror or error)

    # -- the step of its own loop

    def step(self) -> Optional[float]:
        """Look at the deadline, and fence when it has passed; returns the seconds to the next."""
        if self.ended:
            return None
        now = self._world.now()
        pause_s = self._look(now, self._ran_at, max(0.0, now - self._due_at))
        self._ran_at, self._due_at = now, now + pause_s
        return pause_s

    def _look(self, now: float, before: Optional[float], late_s: float) -> float:
        """`before` is when this was done last, `late_s` by how much this time comes too late."""
        did_not_run = before is None or now - before > 2 * FENCE_TICK_S or self._was_frozen
        left_s = FENCE_TICK_S if self.deadline is None else self.deadline - now
        if left_s > 0 and (self._began_at is None or self.clean):
            self._began_at = self._chance_until = None
            self.clean = self._chance_refused = False
            self._tries = 0
            return min(FENCE_TICK_S, left_s)
        limit_s = self._configuration.metadata_limit_s
        if self._began_at is None and did_not_run and self._tries < self.MOST_TRIES:
            self._tries += 1
            self._was_frozen = False
            self._chance_until, self._longest_try = now + limit_s, now + 3 * limit_s
            self._world.wake("heartbeat")
        elif self._chance_until is not None:
            # The try has c_m in which this process does run.
            self._chance_until = min(self._chance_until + late_s, self._longest_try)
        if self._began_at is None and self._chance_until is not None \
                and not self._chance_refused and now < self._chance_until:
            return min(self.SOON_S, self._chance_until - now)
        if self._began_at is None:
            self._begin(now)
        return self._end_schedulers(now)

    def _begin(self, now: float) -> None:
        self._began_at = now
        self._hard = self._chance_until is not None or self._chance_refused
        self._asked, self._belongings = set(), set()
        self.sentences.append(
            "fencing this node: its heartbeat is not confirmed for {:.0f} s; a scheduler has {:g} "
            "s to end, then it is ended with its tasks".format(
                now - (self.deadline or now) + self._configuration.acting_window_s,
                0 if self._hard else self._configuration.fence_grace_time))

    def _ask_known(self, number: int) -> None:
        """Before /proc is read: that takes its time, and a stuck process can hold it up."""
        for main in self.known:
            self._ask(LocalProcess(main.pid, main.start, 0, 0, 0, ()), number)

    def _ask(self, process: LocalProcess, number: int) -> None:
        """Send a signal; SIGTERM only once to each: a second one means something else to some."""
        key = (process.pid, process.start)
        if number == signal.SIGKILL or key not in self._asked:
            self._asked.add(key)
            self._world.signal_process(process, number)

    def _end_schedulers(self, now: float) -> float:
        grace_over = now >= (self._began_at or now) + self._configuration.fence_grace_time
        hard = self._hard or grace_over
        number = signal.SIGKILL if hard else signal.SIGTERM
        if not self.clean:
            self._ask_known(number)
        processes = self._world.processes()
        found = fence_targets(processes, self._uid, self._configuration.node_name)
        # Tasks outlive a main process that ends by SIGTERM, and then nothing tells whose they are.
        self._belongings |= {(process.pid, process.start) for process in found.belongings}
        belongings = [process for process in processes
                      if (process.pid, process.start) in self._belongings]
        for process in found.starting:
            self._ask(process, signal.SIGKILL)
        for process in list(found.mains) + (belongings if hard else []):
            self._ask(process, number)
        clean = not (found.starting or found.mains or belongings)
        if clean and not self.clean:
            self.sentences.append("fenced: no scheduler runs or starts here")
            self.clean_since = now
            self._world.wake("node")
        self.clean = clean
        return FENCE_TICK_S if clean else self.SOON_S


###############################################################################
# Node records ################################################################
###############################################################################


class NodeView(NamedTuple):
    """Another node's record as this controller sees it, by its own clock."""
    record: NodeRecord
    version: int
    changed_at: float       # when this version was first seen
    trusted: bool           # False after its version fell back (restored metadata), till it rises
    moved: bool = False     # seen to change: what was read first may have been written a week ago


def view_of(node: str, found: Record, before: Optional[NodeView], now: float) -> NodeView:
    """The view of a node's record that was read now: a new one, or that from before.

    A record that can't be understood, of a newer version of asfc perhaps, is a sign of life. Else
    it says nothing, and promises nothing.
    """
    if before and before.version == found.version:
        return before
    record = NodeRecord.from_text(found.value) or NodeRecord(
        node, "", reason="its record can't be understood")
    return NodeView(record, found.version, now, not before or found.version > before.version,
                    before is not None)


STOPPED_IN_ORDER = "its controller was stopped"   # in a record that none writes any more


class NodeRecords:
    """All nodes' records: writes this node's own with each heartbeat, and watches the others'.

    It goes with the exchanges of the lease: `writes` before one, `answered` or `failed` after it.
    """
    def __init__(self, world: World, configuration: Any, instance: str, state_dir_id: str,
                 fence: SelfFence, no_promise: str, log: Any) -> None:
        self.views: Dict[str, NodeView] = {}
        self.leaving = False            # an orderly stop: the promise is taken back
        self.paused = False             # as the record `cluster` last said
        self.report: Optional[NodeReport] = None   # what the last look at this node has found
        self.unknown = False            # an own write whose outcome is not known
        self.raised_at = 0.0            # this node's gate is at what was read at that moment
        self._world = world
        self._configuration = configuration
        self._instance = instance
        self._state_dir_id = state_dir_id
        self.fence = fence
        self._no_promise = no_promise   # why this node can't promise anything; "" if it can
        self._log = log
        self._own = NODE_PREFIX + configuration.node_name
        self._version: Optional[int] = None
        self._sequence = 0
        self._sent_at = 0.0
        self._sent_promise = False
        self._displaced = False         # another controller of this name writes the record
        self._read = False
        self._waits_since: Optional[float] = None   # for a stranger's record of this node's name
        self.tell: Callable[[str, HistoryEvent], None] = lambda kind, event: None   # of each event
        self._events: List[HistoryEvent] = []   # that wait to be written
        self._events_mutex = world.mutex()      # several loops post them
        self._sent_events = 0
        self._news_after = float("-inf")
        self._history: Tuple[Optional[int], List[HistoryEvent]] = (None, [])
        self._status: Optional[StatusRecord] = None   # what is to be read there; None: not active
        self._status_read: Tuple[Optional[int], Optional[StatusRecord]] = (None, None)
        self._orders: Tuple[Optional[int], Optional[Orders]] = (None, NO_ORDERS)  # None: unreadable
        self._changes: List[Callable[[Orders], Orders]] = []   # of the orders, not written yet
        self._sent_changes = 0
        self._told: Set[str] = set()
        self._settings = common_settings(configuration)   # as the own record had them last
        self.brought_back = ""          # by which unit of systemd the scheduler would be
        self._fenced = ""
        self._host_names = world.host_names()   # once: it may have to ask the DNS

    # -- going with an exchange

    def writes(self) -> List[Write]:
        """What is to be written beside the heartbeat: the own record, and news for the history."""
        found: List[Write] = []
        self._sent_events = self._sent_changes = 0
        takes_news = self._read and not self.unknown and self._world.now() >= self._news_after
        if takes_news and self._events:
            waiting = self._events
            self._sent_events = len(waiting)
            events = self._history[1] + waiting
            found.append(Write(HISTORY, history_text(events), self._history[0]))
        found += self._orders_write() if takes_news else []
        sent_at = self._world.now()   # before it is asked: this process may be frozen after that
        if self._may_write():
            record = self._own_record()
            self._sent_at, self._sent_promise = sent_at, record.promise_s is not None
            if self._sent_promise:
                self.fence.about_to_promise(sent_at)
            self._sequence += 1
            found.append(Write(self._own, record.to_text(), self._version))
        version, written = self._status_read
        status = self._status   # the turn's loop may replace it meanwhile
        if status and takes_news \
                and (written is None or written._replace(since=status.since) != status):
            found.append(Write(STATUS, status.to_text(), version))
        return found

    def _may_write(self) -> bool:
        """First the own record is read; a passed deadline is dealt with before it is written.

        After that the gate is raised to what is read then: a start that was under way all the time
        would find the promise good again, and a gate that has heard of nothing new.
        """
        if not self._read or self.unknown or self._displaced or not self.fence.may_write():
            return False
        if self.fence.clean and self.raised_at <= self.fence.clean_since:
            return False
        if self._waits_since is not None:
            waited_s = self._world.now() - self._waits_since
            return waited_s >= self._configuration.heartbeat_timeout
        return True

    def failed(self, writes: Sequence[Write]) -> None:
        """The exchange brought no answer: what became of its writes has to be read.

        News that went with it may have been the reason, a row that another session has locked: the
        next heartbeats go without, or none would ever be confirmed.
        """
        self.unknown = self.unknown or bool(writes)
        if any(write.name in (HISTORY, ORDERS, STATUS) for write in writes):
            self._news_after = self._world.now() + self._configuration.heartbeat_timeout / 2

    def answered(self, writes: Sequence[Write], won: Sequence[bool],
                 records: Mapping[str, Record]) -> None:
        """Learn from an exchange. Raises RefusedError when two controllers share this name."""
        self.unknown = False
        confirmed = {write.name: has_won for write, has_won in zip(writes, won)}
        if confirmed.get(self._own):
            self._version = (self._version or 0) + 1
            self._waits_since = None
            if self.fence.is_overdue() and not self._is_possible(records.get(CLUSTER)):
                self.fence.refuse_chance()   # it came too late: the others may have gone by silence
            elif self._sent_promise:
                self.fence.promise_confirmed(self._sent_at)
            else:
                self.fence.promise_withdrawn()
        self._take_history(confirmed, records.get(HISTORY))
        self._take_status(records.get(STATUS))
        self._take_orders(confirmed, records)
        for name, found in sorted(records.items()):
            if name.startswith(NODE_PREFIX):
                self._take(name, found)
        if self._own not in records:
            self._version = None
        self._read = True

    def _is_possible(self, found: Optional[Record]) -> bool:
        """Whether this node may have a scheduler by a record that was read after a write."""
        record = ClusterRecord.from_text(found.value) if found else None
        return record is None or not record.possible_nodes \
            or self._configuration.node_name in record.possible_nodes

    def _take_history(self, confirmed: Mapping[str, bool], found: Optional[Record]) -> None:
        if confirmed.get(HISTORY):
            with self._events_mutex:
                self._events = self._events[self._sent_events:]
        if found and found.version != self._history[0]:
            self._history = (found.version, HistoryEvent.all_from_text(found.value))
        elif not found:
            self._history = (None, [])

    def _take_status(self, found: Optional[Record]) -> None:
        if not found:
            self._status_read = (None, None)
        elif found.version != self._status_read[0]:
            self._status_read = (found.version, StatusRecord.from_text(found.value))

    def _take_orders(self, confirmed: Mapping[str, bool], records: Mapping[str, Record]) -> None:
        found, before = records.get(ORDERS), self.orders
        with self._events_mutex:
            if confirmed.get(ORDERS):
                self._changes = self._changes[self._sent_changes:]
            if found is None:
                self._orders = (None, NO_ORDERS)
            elif found.version != self._orders[0]:
                try:
                    self._orders = (found.version, Orders.of(records))
                except MetadataError as error:
                    self._orders = (found.version, None)
                    self._log.warning("drained nodes and switchovers are unknown: %s", error)
        if self.orders[:2] != before[:2]:
            self._world.wake("turn")

    def _take(self, name: str, found: Record) -> None:
        node = name[len(NODE_PREFIX):]
        before = self.views.get(node)
        view = view_of(node, found, before, self._world.now())
        if name == self._own and found.version != self._version:
            self._take_own(found, NodeRecord.from_text(found.value))
        if view is not before:
            self.views = dict(self.views, **{node: view})  # other loops go through the old one
            self._compare(node, view.record, before)
            if before is None or self._essence(before.record) != self._essence(view.record):
                self._world.wake("turn")  # it may change what was decided

    @staticmethod
    def _essence(record: NodeRecord) -> Tuple[Any, ...]:
        return (record.instance, record.state, record.gate, record.intent,
                record.promise_s is None, [process[:2] for process in record.mains])

    def _take_own(self, found: Record, record: Optional[NodeRecord]) -> None:
        """Follow the version of the own record; a stranger that writes it is an error."""
        stranger = record is not None and record.instance != self._instance \
            and record.state_dir_id != self._state_dir_id
        if stranger and self._read and not self._displaced:
            self._displaced = True
            raise RefusedError(
                "another controller calls itself {0} and keeps its state elsewhere ({1}): give "
                "each its own node_name, or, on one host, stop one of them".format(
                    self._configuration.node_name, record.state_dir if record else "?"))
        if stranger:
            self._waits_since = self._world.now()
        self._version = found.version

    # -- the own record

    def _own_record(self) -> NodeRecord:
        configuration, report = self._configuration, self.report
        oldest_s = 3 * configuration.heartbeat_interval_s + configuration.query_timeout
        if report is None or self._world.now() - report.asked_at > oldest_s:
            report = NodeReport(configuration.node_name, UNKNOWN, "its controller has not listed "
                                "its processes lately")
        promise, self._settings = self.no_promise(), common_settings(configuration)
        return NodeRecord(
            configuration.node_name, self._instance, self._sequence, report.gate, report.state,
            report.reason, report.mains, len(report.remnants), report.intent is not None,
            None if promise else configuration.promise_s, promise, configuration.state_dir,
            self._state_dir_id, self._host_names, __version__, self._settings,
            self._world.utc_text(), self._fenced)

    def is_bound(self) -> bool:
        """Whether others may count on a promise that is neither taken back nor kept yet."""
        return self.fence.deadline is not None and not self.fence.clean

    def no_promise(self) -> str:
        """Why this node promises nothing at the moment, or ''."""
        if self.leaving:
            return STOPPED_IN_ORDER
        if self.paused:
            return "asfc is paused"
        if self._configuration.on_metadata_loss == "keep":
            return "on_metadata_loss = keep"
        return self._no_promise or self.brought_back

    def note_fencing(self, sentence: str) -> None:
        """Have the others read that this node has fenced itself."""
        self._fenced = "{}: {}".format(self._world.utc_text(), sentence)

    # -- news for people

    def post(self, kind: str, event: HistoryEvent) -> None:
        """Have an event, one of EVENTS, written to the history with the next exchange."""
        with self._events_mutex:
            self._events = (self._events + [event])[-HISTORY_LENGTH:]
        self.tell(kind, event)

    def say(self, status: Optional[StatusRecord]) -> None:
        """Have the active controller's sentence written with the next exchange, if it is new.

        None takes back what was not written yet: this controller is not the active one.
        """
        self._status = status

    # -- what people want

    @property
    def orders(self) -> Orders:
        """The orders as they were read last, with the changes that are not written yet."""
        with self._events_mutex:
            return self._changed_orders()

    def _changed_orders(self) -> Orders:
        orders = self._orders[1] or NO_ORDERS
        for change in self._changes:
            orders = change(orders)
        return orders

    def change_orders(self, change: Callable[[Orders], Orders]) -> None:
        """Have the orders changed with the next exchange; made anew when a verb came between."""
        with self._events_mutex:
            self._changes = self._changes + [change]

    def _orders_write(self) -> List[Write]:
        with self._events_mutex:
            version, orders = self._orders
            changed = self._changed_orders()
            if orders is None:
                return []
            if changed == orders:   # what was to be changed is so, or is gone
                self._changes = []
                return []
            self._sent_changes = len(self._changes)
            return [Write(ORDERS, changed.to_text(), version)]

    # -- what differs

    def _compare(self, node: str, record: NodeRecord, before: Optional[NodeView]) -> None:
        """Tell once of what differs between the controllers, and of what must and does not."""
        own_node = self._configuration.node_name
        if node == own_node:
            return
        for sentence in differences(self._settings, record, own_node):
            self._tell_once(logging.WARNING, sentence)
        if before and record.state_dir_id == self._state_dir_id:
            self._tell_once(logging.ERROR, (
                "{} and {} have one state directory id ({}): was the directory copied, or is it "
                "shared? Remove it on the one that was copied, while no scheduler runs there"
            ).format(own_node, node, record.state_dir_id))

    def _tell_once(self, level: int, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._log.log(level, "%s", sentence)


COMMON_SETTINGS = (
    "scheduler_nodes_in_cluster", "poll_frequency", "heartbeat_timeout", "state_dir",
    "on_metadata_loss", "fence_grace_time", "scheduler_user", "query_timeout",
    "airflow_scheduler_start_command", "airflow_scheduler_stop_command")


def common_settings(configuration: Any) -> Dict[str, Any]:
    """The settings that should be the same on all nodes, as a record holds them."""
    values = ((name, getattr(configuration, name)) for name in COMMON_SETTINGS)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


def differences(own: Mapping[str, Any], other: NodeRecord, node: str) -> List[str]:
    """A sentence for each setting or version in which another node's controller differs."""
    if not other.version:
        return ["the record of {} can't be understood on {}: is asfc newer there?".format(
            other.node, node)]
    if (other.version, other.settings) == (__version__, own):
        return []
    found = []
    if other.version != __version__:
        found.append("asfc is version {} on {} and {} on {}".format(
            __version__, node, other.version, other.node))
    for name, value in sorted(own.items()):
        if name in other.settings and other.settings[name] != value:
            found.append("{} is {} on {} and {} on {}: it should be the same on all nodes".format(
                name, value, node, other.settings[name], other.node))
    return found


def differences_from_here(configuration: Any, other: NodeRecord) -> List[str]:
    """The same, for a verb: with the configuration of this host, which may be newer than what the
    controller here has read."""
    settings = common_settings(configuration)
    if other.node != configuration.node_name:
        return differences(settings, other, "this host")
    changed = [name for name, value in sorted(settings.items())
               if other.settings.get(name, value) != value]
    found = []
    if changed:
        found.append("its controller has not taken over what is new in airflow.cfg: {}. Reload it "
                     "(SIGHUP); its log says what needs a restart".format(", ".join(changed)))
    if other.version not in ("", __version__):
        found.append("its controller is version {0} still, and {1} stands here: restart it".format(
            other.version, __version__))
    return found


###############################################################################
# Health evidence #############################################################
###############################################################################


PAGE, TABLE = "page", "table"


class HealthSign(NamedTuple):
    """What one source says of the scheduler, and since when on the asker's own clock.

    It tells of any host: of the newest heartbeat (page), or of the one that moved last (table).
    """
    readable: bool             # read just now; the page also calls the metadatabase healthy
    heartbeat: str             # the scheduler's latest heartbeat, as the source's own text
    unchanged_s: float         # from when that text was first read to when it was last read, all
                               # readings between having worked
    source: str = ""           # PAGE or TABLE; heartbeats of two sources can't be compared


NO_HEALTH_SIGN = HealthSign(False, "", 0.0)


def best_sign(table: HealthSign, page: HealthSign) -> HealthSign:
    """Of two signs that can be read the livelier one: hung is only who stands still in both.

    The table that asfc finds may be another database's than the scheduler's.
    """
    if table.readable and page.readable:
        return min(table, page, key=lambda sign: sign.unchanged_s)
    return table if table.readable else page


def read_health_page(text: str) -> Optional[str]:
    """The scheduler's latest heartbeat on a health page, or None when the page proves nothing.

    A page that isn't JSON, lacks a part, or tells of an unhealthy database proves nothing: with
    the database down every status on it is "unhealthy".
    """
    try:
        page = json.loads(text)
        if page["metadatabase"]["status"] != "healthy":
            return None
        return str(page["scheduler"]["latest_scheduler_heartbeat"] or "never")
    except (ValueError, TypeError, KeyError):
        return None


class _Watch:
    """What the watches over the two sources share: how often they ask, and what gets too old."""

    def __init__(self, world: World, configuration: Any, log: Any) -> None:
        self._world = world
        self._configuration = configuration
        self._log = log
        self._told = ""
        self.ended = False

    def pause_s(self) -> float:
        """Several readings within Airflow's threshold, however long the poll is."""
        return min(self._configuration.poll_frequency, self._configuration.health_threshold_s / 3)

    def _is_fresh(self, read_at: Optional[float]) -> bool:
        """Whether a reading still counts: not one that two later ones should have renewed.

        Nor does a reading follow on such a one: whoever was suspended in between, the schedulers
        may have been so as well.
        """
        oldest = 2 * (self.pause_s() + self._configuration.query_timeout)
        return read_at is not None and self._world.now() - read_at <= oldest

    def _tell(self, sentence: str, about: str = "") -> None:
        """Log a sentence once, until there is something else to tell (about)."""
        if (about or sentence) != self._told:
            self._told = about or sentence
            self._log.info(sentence)


class HealthWatch(_Watch):
    """Asks Airflow's health page in a loop of its own, so a page that hangs delays nobody."""

    def __init__(self, world: World, configuration: Any, log: Any) -> None:
        super().__init__(world, configuration, log)
        self._url = ""                # the one of the two places that answered last
        self._heartbeat = ""
        self._changed_at = 0.0
        self._read_at: Optional[float] = None
        self._readable_since = 0.0

    def step(self) -> Optional[float]:
        """Ask once; returns the seconds until the next question, None at the end."""
        if self.ended:
            return None
        if not self._configuration.health_urls:
            self._read_at = None
            return 3600.0
        heartbeat = self._ask()
        now = self._world.now()
        if heartbeat is None:
            self._read_at = None
        else:
            if not self._is_fresh(self._read_at):
                self._readable_since = now
            if heartbeat != self._heartbeat:
                self._heartbeat, self._changed_at = heartbeat, now
            self._read_at = now
        return self.pause_s()

    def sign(self) -> HealthSign:
        """The evidence as it stands."""
        read_at = self._read_at
        if read_at is None or not self._is_fresh(read_at):
            return NO_HEALTH_SIGN
        since = max(self._changed_at, self._readable_since)
        return HealthSign(True, self._heartbeat, read_at - since, PAGE)

    def _ask(self) -> Optional[str]:
        urls = self._configuration.health_urls
        problem = ""
        for url in sorted(urls, key=lambda url: url != self._url):
            try:
                status, text = self._world.http_get(url, self._configuration.query_timeout,
                                                    self._configuration.health_page_verify_tls)
            except OSError as error:
                problem = "{}: {}".format(url, error)
                continue
            heartbeat = read_health_page(text)
            if heartbeat is not None:
                self._url = url
                self._tell("the health page {} can be read".format(url))
                return heartbeat
            problem = "{}: HTTP {}, not a page that tells of a scheduler".format(url, status)
        if "CERTIFICATE_VERIFY_FAILED" in problem or "certificate" in problem.lower():
            problem += " (set health_page_verify_tls = False in [scheduler_failover] to accept it)"
        self._tell("the health page gives no evidence: " + problem)
        return None


class JobReadings(NamedTuple):
    """What readings of the job table have shown so far, judged by change alone."""
    read_at: Optional[float] = None             # None: the last reading brought nothing
    unchanged_since: float = 0.0                # since then no row has moved, and none was new
    heartbeat: str = ""                         # the one that moved last; at first the newest
    jobs: Mapping[int, SchedulerJob] = {}       # the rows of the last reading
    moved_at: Mapping[str, float] = {}          # host name: when a row of it was last seen to move

    def then(self, jobs: Sequence[SchedulerJob], now: float, follows: bool) -> "JobReadings":
        """These readings and one more; `follows`: nothing was missed since the last one.

        A row moves when its heartbeat is not what it was, be that later or earlier. One that is
        first seen has not moved; yet how long it has stood still counts from there. The last
        heartbeat of a scheduler that ended in order is no sign of life.
        """
        before = self.jobs if follows else {}
        moved = [job for job in jobs if job.id in before and job.state != "success"
                 and job.heartbeat != before[job.id].heartbeat]
        changed = any(before.get(job.id, job._replace(heartbeat="")).heartbeat != job.heartbeat
                      for job in jobs)
        heartbeat = moved[0].heartbeat if moved else self.heartbeat
        hosts = {job.hostname for job in jobs}
        moved_at = {host: at for host, at in self.moved_at.items() if host in hosts}
        moved_at.update((job.hostname, now) for job in moved)
        return JobReadings(now, now if changed or not follows else self.unchanged_since,
                           heartbeat or (jobs[0].heartbeat if jobs else "never"),
                           {job.id: job for job in jobs}, moved_at)


def node_of_host(host: str, names: Mapping[str, Iterable[str]]) -> Optional[str]:
    """The one node that a job's host name means, or None. `names` are other names of each node.

    The full name decides, else the name before the first dot, where one of the two is no longer
    than that. A name that more than one node has, or any host has, means nobody.
    """
    def plain(name: str) -> str:
        return name.strip().rstrip(".").lower()

    def short(name: str) -> str:
        is_address = ":" in name or re.fullmatch(r"[\d.]+", name)
        return name if is_address else name.partition(".")[0]

    host = plain(host)
    if not host or re.match(r"(ip6-)?localhost\d?(\.|$)|127\.|::1$", host):
        return None
    known = {node: {plain(name) for name in (node, *others)} for node, others in names.items()}
    owners = [node for node, own in known.items() if host in own]
    if not owners:
        owners = [node for node, own in known.items() if short(host) in map(short, own)]
        if len(owners) == 1 and host != short(host) and short(host) not in known[owners[0]]:
            return None  # both are full names, and of different domains
    return owners[0] if len(owners) == 1 else None


class JobWatch(_Watch):
    """Asks Airflow's job table in a loop of its own, so a database that hangs delays nobody.

    Only that a heartbeat changes from one reading to the next counts, by this host's own clock:
    the times in the table were written by clocks that may be hours off. Each reading that fails,
    for whatever reason, is no evidence.
    """
    NO_TABLE_PAUSE_S = 60.0

    def __init__(self, world: World, configuration: Any, table: Optional[Any], log: Any) -> None:
        super().__init__(world, configuration, log)
        self._table = table
        self._readings = JobReadings()   # replaced as a whole: other loops look at it
        self.failed_at: Optional[float] = None   # when a table that could be read could not be

    def step(self) -> Optional[float]:
        """Ask once; returns the seconds until the next question, None when there is none to ask."""
        if self.ended or self._table is None:
            return None
        try:
            jobs = self._table.scheduler_jobs()
        except MetadataError as error:
            if self._readings.heartbeat:
                self.failed_at = self._world.now()
            return self._no_evidence("failure", str(error), self.pause_s())
        if jobs is None:
            return self._no_evidence("no table", "there is none at {}".format(
                self._table.describe()), self.NO_TABLE_PAUSE_S)
        follows = self._is_fresh(self._readings.read_at)
        self._readings = self._readings.then(jobs, self._world.now(), follows)
        self._tell("the job table can be read: " + self._table.describe(), "readable")
        return self.pause_s()

    def _no_evidence(self, about: str, why: str, pause_s: float) -> float:
        self._readings = self._readings._replace(read_at=None)
        self._tell("the job table gives no evidence: " + why, about)
        return pause_s

    def sign(self) -> HealthSign:
        """The evidence as it stands."""
        readings = self._readings
        if readings.read_at is None or not self._is_fresh(readings.read_at):
            return NO_HEALTH_SIGN
        return HealthSign(True, readings.heartbeat, readings.read_at - readings.unchanged_since,
                          TABLE)

    def moved_at(self, node: str, names: Mapping[str, Iterable[str]]) -> Optional[float]:
        """A moment at which a scheduler on this node surely lived, on this host's clock; or None.

        `names` are the names of all nodes, as for `node_of_host`: only a host that can be nobody
        else counts. A heartbeat that was seen to move may have been made up to a pause earlier.
        """
        moments = [at - self.pause_s() for host, at in self._readings.moved_at.items()
                   if node_of_host(host, names) == node]
        return max(moments) if moments else None


###############################################################################
# Alerts ######################################################################
###############################################################################


class Alert(NamedTuple):
    """A mail to write: its subject and its text. Neither ever holds a secret."""
    subject: str
    text: str


class Alerts:
    """Mails alerts from a loop of its own. A mail server that hangs or is down delays nobody."""
    TRIES = 5
    WAIT_S = 30.0      # after a failure; each further wait is twice as long
    MOST_WAITING = 20

    def __init__(self, world: World, configuration: Any, log: Any) -> None:
        self._world = world
        self._configuration = configuration
        self._log = log
        self._waiting: "collections.deque[Alert]" = collections.deque(maxlen=self.MOST_WAITING)
        self._failures = 0
        self.ended = False

    def post(self, subject: str, text: str) -> None:
        """Hand over an alert to be mailed, in the background."""
        if not self._configuration.alert_to_email:
            self._log.info("no alert was mailed, alert_to_email is not set: %s", subject)
            return
        self._waiting.append(Alert(subject, text))
        self._world.wake("alerts")

    def step(self) -> Optional[float]:
        """Mail what waits; returns the seconds until the next try is due, None at the end."""
        while self._waiting:
            alert = self._waiting[0]
            try:
                self.send(alert)
            except OSError as error:
                self._failures += 1
                if self._failures < self.TRIES and not self.ended:
                    wait_s = self.WAIT_S * 2 ** (self._failures - 1)
                    self._log.warning("the alert %r could not be mailed (%s): next try in %g s",
                                      alert.subject, error, wait_s)
                    return wait_s
                self._log.error("the alert %r could not be mailed and is dropped after %d tries: "
                                "%s", alert.subject, self._failures, error)
            else:
                self._log.info("mailed the alert %r", alert.subject)
            self._failures = 0
            self._waiting.popleft()
        return None if self.ended else 3600.0

    def send(self, alert: Alert) -> None:
        """Mail one alert now. Raises OSError, with the mail server's words, when that fails."""
        self._world.send_mail(self._configuration.smtp, self._configuration.alert_to_email, alert)


class EventCommand:
    """Runs on_event_command for each event, in their order, from a loop of its own.

    They are numbered from 1 in each run of a controller, which its instance names. A gap in the
    numbers is an event that was dropped, for too many were waiting.
    """
    MOST_WAITING = 100

    def __init__(self, world: World, configuration: Any, instance: str, log: Any) -> None:
        self.ended = False
        self.failures = 0
        self.counts: Dict[str, int] = dict.fromkeys(EVENTS, 0)   # of all events, told or not
        self._world = world
        self._configuration = configuration
        self._instance = instance
        self._log = log
        self._mutex = world.mutex()   # several loops post
        self._waiting: "collections.deque[Tuple[int, str, HistoryEvent]]" = collections.deque()

    def post(self, kind: str, event: HistoryEvent) -> None:
        """Hand over an event, in the background."""
        dropped = None
        with self._mutex:
            self.counts[kind] += 1
            if self._configuration.on_event_command:
                self._waiting.append((sum(self.counts.values()), kind, event))
                if len(self._waiting) > self.MOST_WAITING:
                    dropped = self._waiting.popleft()
        if dropped:
            self._log.warning("on_event_command is too slow, %d events wait: number %d (%s) is "
                              "dropped", self.MOST_WAITING, dropped[0], dropped[2].what)
        self._world.wake("events")

    def step(self) -> Optional[float]:
        """Tell of what waits; returns the seconds until the next look, None at the end."""
        while not self.ended:
            with self._mutex:
                if not self._waiting:
                    return 3600.0
                sequence, kind, event = self._waiting.popleft()
            self._run(sequence, kind, event)
        if self._waiting:
            self._log.warning("on_event_command is not told of the last %d events: asfc ends",
                              len(self._waiting))
        return None

    def _run(self, sequence: int, kind: str, event: HistoryEvent) -> None:
        failure = self._world.run([event_command(
            self._configuration, kind, event, self._instance, sequence)])[0].failure()
        if failure:
            self.failures += 1
            self._log.warning("on_event_command failed for event %d (%s): %s", sequence, event.what,
                              failure)


###############################################################################
# Lease #######################################################################
###############################################################################


class _OpenClaim(NamedTuple):
    """A claim that was sent and whose outcome is not known yet; it may arrive late."""
    term: int
    sent_at: float
    expected_version: Optional[int]


class Lease:
    """The lease of the active controller, and a standby's watch over it.

    It is one record with a version in the metadata service. The holder writes it anew every
    h / 10, on condition that the version is still the one it knows; it acts only during the first
    two thirds of h, counted from before its last confirmed write was sent. A standby claims the
    lease when the version has not changed for the h that the holder promised, counted on the
    standby's own clock from when it first saw that version; of many that try, one write wins. So
    there is at most one active controller as long as the rates of two clocks differ by less than
    a tenth, whatever the clocks show.

    What this does not give: a holder that is frozen between its last look at the lease and a
    command still sends that command. The node's gate refuses it then, by term and move.

    Worked example, h = 30 s: writes every 3 s; acting ends 20 s after the last confirmed one was
    sent; a standby claims after 30 s without a change.
    """
    TRIES = 3        # of a write that lost against a verb's write
    CALM_READS = 4   # so many more looks than failures, before a silent holder is replaced
    SLACK_S = 2.0    # for the main loop's own work, beside what it waits for

    def __init__(self, world: World, configuration: Any, metadata: Any, lock_id: str,
                 own_gate: Callable[[], Optional[Gate]], log: Any) -> None:
        self.instance = world.random_id()
        self.active = False
        self.record: Optional[ClusterRecord] = None   # as it was last seen or written
        self.succeeded = ""          # the node whose lost lease was taken over, if any
        self.reason = ""             # why the lease was claimed
        self.fell_back = False       # the record is older than what this controller has seen
        self.failures = 0            # of heartbeats and looks that brought no answer
        self.read_at = 0.0           # `record` is at least as new as this moment
        self.nodes: Optional[NodeRecords] = None      # go with each exchange
        self.ended = False
        self.leaving = False         # an orderly stop: to be given up, and never claimed again
        self.failed_at: Optional[float] = None        # when the metadata last did not answer
        self._failing_since: Optional[float] = None   # without an answer since then
        self._world = world
        self._configuration = configuration
        self._metadata = metadata
        self._lock_id = lock_id
        self._own_gate = own_gate
        self._log = log
        self._mutex = world.mutex()
        self._version: Optional[int] = None
        self._asked_at = 0.0         # the moment before the last read that was answered
        self._seen_at = 0.0          # when this version was first seen
        self._confirmed_at = 0.0     # the moment before the last confirmed own write was sent
        self._outcome_unknown = False
        self._claim: Optional[_OpenClaim] = None
        self._looked = False
        self._had_record = False     # in this process
        self._terms: Set[int] = set()   # of the claim that was won, and those it was raised to
        self._highest = Pair(0, 0)   # of all pairs seen
        self._known, self._known_at = Pair(0, 0), 0.0   # of all heard of, and since when
        self._changed = False        # the record has changed while it was watched
        self._stand_back_until = float("-inf")
        self._alive_at: Optional[float] = None   # when the scheduler was last seen running
        self._calm_reads = 0         # looks less failures, from 0 to CALM_READS
        self._work_due = float("inf")
        self._legacy = LegacyWatch(world, configuration, metadata)
        self._told = ""

    # -- what the rest of the controller asks

    def may_act(self) -> bool:
        """Whether this moment lies in the acting window. To be asked before every effect."""
        now = self._world.now()
        leaving = self.leaving or now < self._stand_back_until
        return self.active and not leaving \
            and now < self._confirmed_at + self._configuration.acting_window_s

    def stamp(self, record: ClusterRecord) -> Optional[Stamp]:
        """The stamp for a command that was decided on this record; None unless it is our own.

        Never on the newest record that was seen: that may be a successor's, and a command with its
        pair would pass the gates.
        """
        if record.instance != self.instance:
            return None
        return Stamp(record.cluster, record.pair, self.instance)

    def expect_work(self, within_s: float) -> None:
        """The main loop will report again within this time; overdue by h, the heartbeat stops."""
        self._work_due = self._world.now() + within_s

    def overdue_s(self) -> float:
        """By how much the main loop's report is late; negative while it is not."""
        return self._world.now() - self._work_due

    def renewal_age_s(self) -> Optional[float]:
        """How old the active controller's last heartbeat is: its own last confirmed one, or, on
        standby, since when the record stands still. None before it is known."""
        if self.record is None:
            return None
        return self._world.now() - (self._confirmed_at if self.active else self._seen_at)

    def is_answered(self) -> bool:
        """Whether the metadata was read within h."""
        age_s = self._world.now() - self.read_at
        return self.read_at > 0 and age_s < self._configuration.heartbeat_timeout

    def update(self, change: Callable[[ClusterRecord], Optional[ClusterRecord]]) -> bool:
        """Write a changed record, as the active controller; whether that is confirmed.

        `change` is called again when another write came between, and may return None when it is
        not meant for the record that it is shown. Raises MetadataError when it can't be told
        whether the write took effect.
        """
        with self._mutex:
            for _ in range(self.TRIES):
                if self._outcome_unknown:
                    self._take_in(self._read())
                changed = change(self.record) if self.active and self.record else None
                if changed is None:
                    return False
                if self._write(changed):
                    return True
            return False

    def scheduler_runs(self) -> None:
        """Note that the scheduler runs now; the next heartbeat writes it down."""
        self._alive_at = self._world.now()

    def clock_s(self) -> float:
        """The cluster's own clock now, as far as this controller knows it."""
        since = self._confirmed_at if self.active else self._seen_at
        return (self.record.clock_s if self.record else 0.0) + self._world.now() - since

    def changed_within(self, seconds: float) -> bool:
        """Whether the record was seen to change lately, so that somebody reigns."""
        return self._changed and self._world.now() - self._seen_at < seconds

    def raise_term(self, above: Pair) -> bool:
        """Take a term above a pair that somebody has heard of; every known node becomes possible.

        For metadata that is older than what the nodes know: where the scheduler runs is not known
        then. Raises MetadataError when the outcome is unknown.
        """
        def change(record: ClusterRecord) -> Optional[ClusterRecord]:
            term = max(record.term, above.term, self._highest.term) + 1
            self._terms.add(term)
            return record._replace(term=term, possible_nodes=self.all_nodes(), assigned=False,
                                   started=False, vouched=())
        won = self.update(change)
        if won:
            self.fell_back = False
        return won

    def all_nodes(self) -> Tuple[str, ...]:
        """Every node that a scheduler may run on as far as anybody has written down."""
        known = list(self.record.possible_nodes) if self.record else []
        known += list(self._configuration.scheduler_nodes_in_cluster)
        known += sorted(self.nodes.views) if self.nodes else []
        return tuple(collections.OrderedDict.fromkeys(known))

    def release(self, stand_back_s: float = 0.0) -> None:
        """Give the lease up, so that a standby takes it at once; claim none for so many seconds.

        A failure is only told: the lease then runs out by itself.
        """
        self._stand_back_until = self._world.now() + stand_back_s
        try:
            if self.update(self._given_up):
                self._log.info("gave the lease up")
        except MetadataError as error:
            self._log.warning("could not give the lease up, it runs out by itself: %s", error)
        self.active = False

    def leave(self) -> None:
        """End in order: the heartbeat's loop gives up the lease and this node's promise first."""
        self.leaving = True
        if self.nodes:
            self.nodes.leaving = True
        self._world.wake("heartbeat")

    @staticmethod
    def _given_up(record: ClusterRecord) -> ClusterRecord:
        return record._replace(holder="", instance="", lock_id="")

    def look(self) -> None:
        """Read the metadata once, before the loops begin; a failure is left for them to tell."""
        try:
            with self._mutex:
                self._take_in(self._read())
        except MetadataError as error:
            self._log.debug("the first look at the metadata failed: %s", error)

    # -- the step of the heartbeat's loop

    def beat(self) -> Optional[float]:
        """One heartbeat, or one look of a standby; returns the seconds until the next is due.

        Raises RefusedError when the controller that asfc replaces still runs.
        """
        began = self._world.now()
        try:
            with self._mutex:
                self._beat()
        except MetadataError as error:
            self.failures += 1
            self.failed_at = self._world.now()
            self._failing_since = began if self._failing_since is None else self._failing_since
            self._calm_reads = max(0, self._calm_reads - 1)
            self._tell(logging.WARNING, "the metadata service failed: {}".format(error))
            if self.leaving and not self._is_bound():
                self._log.warning("could not give the lease up, it runs out by itself: %s", error)
                self.active, self.ended = False, True
            return None if self.ended else self._configuration.retry_interval_s
        self._tell_of_an_outage()
        if self.ended:
            return None
        return max(0.0, self._configuration.heartbeat_interval_s - (self._world.now() - began))

    def _tell_of_an_outage(self) -> None:
        """It answers. In the history stands what was so long that something came of it."""
        if self._told.startswith("the metadata service failed"):
            self._tell(logging.INFO, "the metadata service answers again")
        since, self._failing_since = self._failing_since, None
        lasted_s = 0.0 if since is None else self._world.now() - since
        if self.nodes and lasted_s >= self._configuration.acting_window_s:
            pair = self.record.pair if self.record else Pair(0, 0)
            self.nodes.post("outage", HistoryEvent(
                self._world.utc_text(), self._configuration.node_name, pair.term, pair.move,
                "the metadata service did not answer for {:.0f} s".format(lasted_s)))

    def _beat(self) -> None:
        if self.ended:
            return
        if self._outcome_unknown or self._ran_out() or self.nodes and (
                self.nodes.unknown or self.nodes.fence.has_chance()):
            self._take_in(self._read())
        if self.nodes and self.nodes.fence.has_chance() and not self._is_possible_here():
            self.nodes.fence.refuse_chance()
        if self.leaving:
            self._leave()
        elif self.active:
            self._renew()
        else:
            self._watch()

    def _ran_out(self) -> bool:
        """Whether the record has to be read before it is written: the version that was known before
        a long stop may, after a restore, be another record's."""
        return self.active and not self.leaving and not self.may_act()

    def _is_possible_here(self) -> bool:
        """Whether a scheduler may run on this node; where nobody has said, on all."""
        record = self.record
        return record is None or not record.possible_nodes \
            or self._configuration.node_name in record.possible_nodes

    def _is_bound(self) -> bool:
        """Whether others may count on a promise of this node that is not taken back or kept yet."""
        return bool(self.nodes and self.nodes.is_bound())

    def _leave(self) -> None:
        if self.active and self.record:
            if self._write(self._given_up(self.record)):
                self.active = False
                self._log.info("gave the lease up")
        else:
            self._take_in(self._exchange([]).records)
        self.ended = not self.active and not self._is_bound()

    def _read(self) -> Mapping[str, Record]:
        sent_at = self._world.now()
        records: Mapping[str, Record] = self._metadata.read_all()
        self._asked_at = sent_at
        if self.nodes:
            self.nodes.answered((), (), records)
        return records

    def _exchange(self, writes: Sequence[Write]) -> Exchange:
        """One exchange, in which the records that go with the heartbeat are written, too."""
        sent_at = self._world.now()
        beside = self.nodes.writes() if self.nodes else []
        try:
            exchange: Exchange = self._metadata.exchange(list(writes) + beside)
        except MetadataError:
            if self.nodes:
                self.nodes.failed(beside)
            raise
        self._asked_at = sent_at
        if self.nodes:
            self.nodes.answered(beside, exchange.won[len(writes):], exchange.records)
        return Exchange(exchange.won[:len(writes)], exchange.records)

    def _renew(self) -> None:
        overdue_s = self.overdue_s()
        if overdue_s > self._configuration.heartbeat_timeout:
            self._tell(logging.ERROR, "the main loop is overdue by {:.0f} s: the heartbeat stops, "
                       "a standby takes over".format(overdue_s))
            self._take_in(self._exchange([]).records)
            return
        for _ in range(self.TRIES):
            if not self.active or self._write(self.record):
                return

    def _watch(self) -> None:
        self._take_in(self._exchange([]).records)
        self._calm_reads = min(self.CALM_READS, self._calm_reads + 1)
        if self.active or self._world.now() < self._stand_back_until:
            return
        reason = self._claim_reason()
        if reason:
            self._send_claim(reason)

    def _write(self, record: Optional[ClusterRecord]) -> bool:
        """One conditional write, the lease counted from before it is sent; whether it won."""
        now = self._world.now()
        assert record is not None
        clock_s = record.clock_s + (now - self._confirmed_at if self.active else 0.0)
        record = record._replace(heartbeat_at=self._world.utc_text(), clock_s=round(clock_s, 3))
        if self.active and self._alive_at is not None:
            record = record._replace(alive_at_s=round(clock_s - (now - self._alive_at), 3))
        self._outcome_unknown = True
        exchange = self._exchange([Write(CLUSTER, record.to_text(), self._version)])
        self._outcome_unknown = False
        if not exchange.won[0]:
            self._take_in(exchange.records)
            return False
        self._version = (self._version or 0) + 1
        self.record, self._seen_at, self._confirmed_at = record, self._world.now(), now
        self.read_at = self._asked_at
        self._changed, self._highest = True, max(self._highest, record.pair)
        if self.nodes:
            self.nodes.paused = bool(record.paused)
        self._log.debug("heartbeat confirmed, version %d of the record", self._version)
        return True

    def _take_in(self, records: Mapping[str, Any]) -> None:
        """Learn what stands in the metadata service: the version, and whether the lease is ours."""
        now = self._world.now()
        found = records.get(CLUSTER)
        record = ClusterRecord.from_text(found.value) if found else None
        version = found.version if found else None
        self._outcome_unknown = False
        # After a restore another record may have come to the version that was known.
        if (version, record) != (self._version, self.record) or not self._looked:
            self._seen_at, self._changed = now, self._looked
        if not self._looked:
            self._world.wake("turn")
        self._look_for_a_fall(version, record)
        if self.active and self.record and record and (
                self.record.paused, self.record.vouched) != (record.paused, record.vouched):
            self._world.wake("turn")  # a person has said something that changes what is decided
        self._looked, self._version, self.record = True, version, record
        self.read_at = self._asked_at
        self._had_record = self._had_record or record is not None
        if self.nodes:
            self.nodes.paused = bool(record and record.paused)
        claim = self._claim
        if claim and version != claim.expected_version:
            self._claim = None  # it has won or lost; before, it may still arrive
        if record is not None and record.instance == self.instance:
            if claim and claim.term == record.term:
                self._won(claim.sent_at, "the claim whose reply was lost had won")
            if self.active and record.term in self._terms:
                return
        if self.active:
            self.active = False
            self._tell(logging.WARNING, "the lease is lost: {}".format(self._holder_in_words()))
            self._world.wake("turn")

    def _look_for_a_fall(self, version: Optional[int], record: Optional[ClusterRecord]) -> None:
        """Neither versions nor pairs ever fall, unless the metadata was restored from a backup."""
        if version is None or record is None:
            return
        if version < (self._version or 0) or record.pair < self._highest:
            if not self.fell_back:
                self._log.error("the metadata has fallen back from version %s to %d, from term %s "
                                "to %s: it was restored from a backup. Every node becomes possible",
                                self._version, version, self._highest, record.pair)
            self.fell_back = True
        elif record.term > self._highest.term:
            self.fell_back = False  # somebody has raised the term above what was known before
        self._highest = max(self._highest, record.pair)

    def _holder_in_words(self) -> str:
        if self.record is None:
            return "the record is gone"
        if not self.record.holder:
            return "the record was cleared" if self.record.cleared else "nobody holds it"
        return "{} is active in term {}".format(self.record.holder, self.record.term)

    # -- claiming

    def _claim_reason(self) -> str:
        """Why the lease may be claimed now, or nothing. The clock is this standby's own."""
        now, record = self._world.now(), self.record
        own = (self._configuration.node_name, self._lock_id)
        if record and (record.holder, record.lock_id) == own and not self._is_old(record):
            return "it was this node's own, and its lock file is in my hands"
        if not self._legacy.is_clear():
            return ""
        if record is None:
            return self._reason_without_record(now - self._seen_at)
        if record.state_dir not in ("", self._configuration.state_dir):
            self._tell(logging.ERROR, "state_dir is {} here and {} on {}: it must be the same on "
                       "all nodes, or a node has two gates. Until then this controller never "
                       "becomes active".format(self._configuration.state_dir, record.state_dir,
                                               record.holder or "the other nodes"))
            return ""
        if not record.holder and not record.cleared and not self._is_old(record):
            return "nobody held it"
        unchanged_s = now - self._last_heard_at(record)
        if unchanged_s < record.heartbeat_timeout:
            return ""
        if self._calm_reads < self.CALM_READS:
            return ""  # after an outage the holder, too, is given the time to come back
        if record.cleared:
            return "the metadata was cleared {:.0f} s ago".format(unchanged_s)
        return "{} sent no heartbeat for {:.0f} s".format(record.holder or "nobody", unchanged_s)

    def _known_pair(self, record: ClusterRecord) -> Pair:
        """The highest pair that this controller or its node has heard of."""
        gate = self._own_gate()
        return max(self._highest, gate.pair) if gate and gate.cluster == record.cluster \
            else self._highest

    def _last_heard_at(self, record: ClusterRecord) -> float:
        """When the record last changed, or, where it is old, this node heard of a newer pair."""
        known = self._known_pair(record)
        if known > self._known:
            self._known, self._known_at = known, self._world.now()
        return max(self._seen_at, self._known_at) if known > record.pair else self._seen_at

    def _is_old(self, record: ClusterRecord) -> bool:
        """Whether the metadata was restored: somebody may act whom the record does not name."""
        return self.fell_back or self._known_pair(record) > record.pair

    def _reason_without_record(self, unchanged_s: float) -> str:
        """One that never was may be made at once; where one was, its holder may still act."""
        if not self._had_record and self._own_gate() is None:
            return "there was no record"
        if unchanged_s < self._configuration.heartbeat_timeout:
            return ""
        return "the record has been gone for {:.0f} s".format(unchanged_s)

    def _send_claim(self, reason: str) -> None:
        """One conditional write that raises the term. Its reply may be lost: then look for it."""
        before = self._record_to_claim()
        configuration = self._configuration
        claim = before._replace(
            term=before.term + 1, holder=configuration.node_name, instance=self.instance,
            lock_id=self._lock_id, state_dir=configuration.state_dir,
            heartbeat_timeout=configuration.heartbeat_timeout,
            possible_nodes=before.possible_nodes or self.all_nodes(), cleared=False,
            clock_s=before.clock_s + self._world.now() - self._seen_at)
        self.succeeded = before.holder if before.holder != configuration.node_name else ""
        sent_at = self._world.now()
        if self._claim is None:  # else it stays open, from when it was first sent
            self._claim = _OpenClaim(claim.term, sent_at, self._version)
        if self._write(claim):
            self._claim = None
            self._won(sent_at, reason)

    def _record_to_claim(self) -> ClusterRecord:
        """The record as it stands; one that is older than what this node knows is no guide."""
        record = self.record
        if record is None:
            return self._first_record()
        known = self._known_pair(record)
        if not self.fell_back and known <= record.pair:
            return record
        self._log.error("the metadata (term %s) is older than what this node has heard of (%s): "
                        "every node becomes possible", record.pair, known)
        self.fell_back = False
        return record._replace(term=max(record.term, known.term), possible_nodes=self.all_nodes(),
                               assigned=False, started=False, vouched=())

    def _first_record(self) -> ClusterRecord:
        """A record where there is none: this node's gate tells the cluster and a term to exceed."""
        gate = self._own_gate()
        if gate is None:
            return ClusterRecord(cluster=self._world.random_id())
        return ClusterRecord(cluster=gate.cluster, term=gate.pair.term, move=gate.pair.move)

    def _won(self, sent_at: float, reason: str) -> None:
        assert self.record is not None
        self._confirmed_at, self.active, self.reason = sent_at, True, reason
        self._terms, self._alive_at = {self.record.term}, None
        self.expect_work(self._configuration.poll_frequency)
        self._tell(logging.INFO, "active in term {}: {}".format(self.record.term, reason))
        self._world.wake("turn")

    def _tell(self, level: int, sentence: str) -> None:
        if sentence != self._told:
            self._told = sentence
            self._log.log(level, sentence)


class LegacyWatch:
    """Watches the heartbeat of the controller that asfc replaces, before the first term is taken.

    Where its table exists, the heartbeat in it has to stand still for two of its polls and 5 s.
    """

    def __init__(self, world: World, configuration: Any, metadata: Any) -> None:
        self._world = world
        self._metadata = metadata
        self._watch_s = 2 * configuration.poll_frequency + 5
        self._heartbeat: Optional[str] = None
        self._since: Optional[float] = None
        self._clear = False

    def is_clear(self) -> bool:
        """Whether the other controller is known not to run. Raises RefusedError when it does."""
        if self._clear:
            return True
        heartbeat = self._metadata.legacy_heartbeat()
        if self._since is None:
            self._since, self._heartbeat = self._world.now(), heartbeat
        if heartbeat != self._heartbeat:
            raise RefusedError(
                "scheduler_failover_controller still runs: its heartbeat in {} moves ({}). Stop it "
                "on every node (systemctl stop scheduler_failover_controller, or its process), "
                "then start asfc again".format(self._metadata.LEGACY_PLACE, heartbeat))
        self._clear = heartbeat is None or self._world.now() - self._since >= self._watch_s
        return self._clear


###############################################################################
# This node ###################################################################
###############################################################################


def why_no_promise(world: World, configuration: Any) -> str:
    """Why this node's controller could not keep a promise to fence itself, or ''.

    It must be allowed to signal the scheduler, and nothing else may bring that back: for the latter
    see SystemdWatch.
    """
    uid = world.user_id(configuration.scheduler_user)
    if uid is None:
        return "there is no user {} here (scheduler_user)".format(configuration.scheduler_user)
    own = world.user_id("")
    if own not in (0, uid):
        return "asfc works as another user than the scheduler's ({}) and can't signal it".format(
            configuration.scheduler_user)
    return ""


def systemd_unit(command: str) -> Tuple[str, ...]:
    """The unit that a start command starts, as words for systemctl; () for anything else."""
    match = re.search(r"\bsystemctl\b((?:\s+-\S+)*)\s+(?:reload-or-)?(?:re)?start"
                      r"((?:\s+-\S+)*)\s+([\w@.:\\-]+)", command) \
        or re.search(r"(?:^|[\s/])service()()\s+([\w@.:-]+)\s+(?:re)?start\b", command)
    if not match:
        return ()
    is_users = "--user" in (match.group(1) + match.group(2)).split()
    return ("--user",) * is_users + (re.sub(r"\.service$", "", match.group(3)),)


def unit_of_process(world: World, pid: int) -> Tuple[str, ...]:
    """The unit in whose control group a process lives, as words for systemctl; () for none.

    Where process 1 is not systemd, as in a container, units of the machine around mean nothing.
    """
    try:
        if (world.read_text("/proc/1/comm") or "").strip() != "systemd":
            return ()
        text = world.read_text("/proc/{}/cgroup".format(pid)) or ""
    except OSError:
        return ()   # it has just ended
    for line in text.splitlines():
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        groups = path.split("/")
        if (number == "0" or controllers == "name=systemd") and groups[-1].endswith(".service"):
            is_users = any(group.startswith("user@") for group in groups[:-1])
            return ("--user",) * is_users + (groups[-1][:-len(".service")],)
    return ()


class SystemdWatch:
    """Whether a unit of systemd brings this node's scheduler back when asfc has ended it.

    It is the unit of the start command, or one that runs a scheduler that was found here. A process
    may live in the control group of a unit that is not its own, such as sshd's or asfc's: so the
    main process of the unit has to be the scheduler, or a shell just above it.
    """
    AGAIN_S = 60.0   # an operator may change a unit at any time

    def __init__(self, world: World, configuration: Any) -> None:
        self.sentence = ""                 # which does, and the remedy; '' while none does
        self._world = world
        self._configuration = configuration
        self._mains: Tuple[Any, ...] = ()
        self._asked_at: Optional[float] = None
        self._unit: Tuple[str, ...] = ()   # that runs the scheduler, or has run the last one here

    def look(self, mains: Sequence[Any]) -> None:
        """Ask about the units anew where these main processes are others, or once a minute."""
        now, mains = self._world.now(), tuple(mains)
        started = systemd_unit(self._configuration.airflow_scheduler_start_command)
        waits = (started or self._unit) and now - (self._asked_at or 0.0) >= self.AGAIN_S
        if self._asked_at is not None and not waits and (not mains or mains == self._mains):
            return
        self._mains, self._asked_at = mains, now
        found = {unit_of_process(self._world, main.pid) for main in mains} - {(), started}
        if mains:
            self._unit = next(filter(self._runs_one, sorted(found)), ())
        units = filter(None, (started, self._unit))
        self.sentence = next(filter(None, map(self._judge, units)), "")

    def _runs_one(self, unit: Tuple[str, ...]) -> bool:
        """Whether the main process of a unit is a scheduler, or unknown."""
        pid = self._show(unit).get("MainPID")
        if pid is None or pid in [str(main.pid) for main in self._mains]:
            return True
        return pid in [str(main.parent) for main in self._mains] and (
            self._world.read_text("/proc/{}/comm".format(pid)) or "").strip().endswith("sh")

    def _judge(self, unit: Tuple[str, ...]) -> str:
        shown, name = self._show(unit), unit[-1]
        systemctl = " ".join(("systemctl",) + unit[:-1])
        if "Restart" not in shown or shown.get("LoadState") == "not-found":
            return "systemctl does not tell whether {} is restarted or enabled".format(name)
        if shown["Restart"] != "no":
            return ("its unit {0} has Restart={1}: systemd brings the scheduler back when asfc has "
                    "ended it. Give it a drop-in with Restart=no (`{2} edit {0}`)".format(
                        name, shown["Restart"], systemctl))
        if shown.get("UnitFileState", "").startswith("enabled"):
            return ("its unit {0} is enabled: systemd starts the scheduler at boot, without asfc. "
                    "Say `{1} disable {0}`".format(name, systemctl))
        return ""

    def _show(self, unit: Tuple[str, ...]) -> Dict[str, str]:
        """What systemctl shows of a unit; nothing where it gives no answer."""
        words = ("systemctl",) + unit[:-1] + ("show", unit[-1])
        for name in ("LoadState", "MainPID", "Restart", "UnitFileState"):
            words += ("-p", name)
        environment = {}
        if "--user" in unit and not self._world.environment().get("XDG_RUNTIME_DIR"):
            environment["XDG_RUNTIME_DIR"] = "/run/user/{}".format(self._world.user_id(""))
        result = self._world.run([Command(words, self._configuration.query_timeout,
                                          environment=environment)])[0]
        lines = result.stdout.split("\n") if result.status == 0 else []
        return dict(line.partition("=")[::2] for line in lines if "=" in line)


class OwnNode:
    """Looks at this controller's own node every i: raises its gate, lists, and guards it.

    The gate is raised to the pair that was read last, with its holder's instance; then processes
    are listed; then the heartbeat writes what was found into the node's record.
    """

    def __init__(self, world: World, configuration: Any, nodes: Any, lease: Lease,
                 records: NodeRecords, log: Any) -> None:
        self.ended = False
        self._world = world
        self._configuration = configuration
        self._nodes = nodes
        self._lease = lease
        self._records = records
        self._log = log
        self._listed_at = 0.0
        self._asked: Dict[Tuple[int, int], float] = {}   # when SIGTERM was sent to a main process
        self._told = ""
        self._systemd = SystemdWatch(world, configuration)

    def begin(self) -> None:
        """Before anything is promised: ask about the units of what runs here."""
        uid = self._world.user_id(self._configuration.scheduler_user)
        self._ask_systemd([process for process in self._world.processes()
                           if process.uid == uid and scheduler_kind(process.words) == 1])

    def step(self) -> Optional[float]:
        """Look once; returns the seconds until the next look, None at the end."""
        began = self._world.now()
        self._tell_of_fencing()
        if self.ended:
            return None
        self._guard()
        read_at, record = self._lease.read_at, self._lease.record
        before, report = self._records.report, self._look(record)
        self._listed_at = self._world.now()
        if record is None or report.gate and report.gate.pair >= record.pair:
            self._records.raised_at = read_at
        self._records.report = report
        self._records.fence.known = report.mains
        self._ask_systemd(report.mains)
        if before is None or self._essence(before) != self._essence(report):
            self._world.wake("heartbeat")
        return max(0.0, self._configuration.heartbeat_interval_s - (self._world.now() - began))

    def _look(self, record: Optional[ClusterRecord]) -> NodeReport:
        node, before = self._configuration.node_name, self._records.report
        if record is None:
            looked: NodeReport = self._nodes.look([node])[node]
            return looked
        # Where nobody holds the lease the gate keeps its instance, or gets a name that nobody has.
        held = before.gate if before else None
        instance = record.instance or (
            held.instance if held and held.pair == record.pair else "nobody")
        asked: NodeReport = self._nodes.query_own(Stamp(record.cluster, record.pair, instance))
        return asked

    @staticmethod
    def _essence(report: NodeReport) -> Tuple[Any, ...]:
        """What the other controllers should learn of at once when it changes."""
        return (report.state, report.gate, report.intent is None,
                [process[:2] for process in report.mains])

    def _tell_of_fencing(self) -> None:
        sentences, problem = self._records.fence.sentences, self._records.fence.problem
        if problem and problem != self._told:
            self._log.error(problem)
        self._told = problem
        while sentences:
            sentence = sentences.popleft()
            self._log.error(sentence)
            self._records.note_fencing(sentence)
            self._post("self_fence", sentence)

    def _post(self, kind: str, sentence: str, why: str = "") -> None:
        record = self._lease.record
        self._records.post(kind, HistoryEvent(
            self._world.utc_text(), self._configuration.node_name,
            record.term if record else 0, record.move if record else 0, sentence, why))

    def _ask_systemd(self, mains: Sequence[Any]) -> None:
        """Promise nothing while a unit would bring this node's scheduler back, and say so."""
        before = self._systemd.sentence
        self._systemd.look(mains)
        sentence = self._records.brought_back = self._systemd.sentence
        if sentence and sentence != before:
            self._log.warning("this node promises nothing: %s", sentence)
            self._post("systemd", "systemd fights asfc: " + sentence)
        elif before and not sentence:
            self._log.info("no unit brings the scheduler back any more: this node promises again")

    def _guard(self) -> None:
        """End a scheduler that may not run here: first listed, then the record read, then ended."""
        report, read_at = self._records.report, self._lease.read_at
        record = self._lease.record   # after read_at: it is at least as new
        if report is None or record is None or read_at <= self._listed_at \
                or not self._is_forbidden(report, record):
            self._asked = {}
            return
        now = self._world.now()
        for main in report.mains:
            key = (main.pid, main.start)
            late = now - self._asked.get(key, now) >= self._configuration.fence_grace_time
            if not self._world.signal_process(
                    LocalProcess(main.pid, main.start, main.parent, main.session, main.uid, ()),
                    signal.SIGKILL if late else signal.SIGTERM):
                continue   # the active controller has ended it since it was listed
            self._log.warning(
                "guarding this node: no scheduler may run here in term %s, so pid %d is ended (%s)",
                record.pair, main.pid, "SIGKILL" if late else "SIGTERM")
            if key not in self._asked:
                self._asked[key] = now
                self._post("stop", "stopped the scheduler here, pid {}".format(main.pid),
                           "none may run here, only on {}".format(", ".join(record.possible_nodes)))

    def _is_forbidden(self, report: NodeReport, record: ClusterRecord) -> bool:
        """Whether the record surely allows no scheduler on this node."""
        return bool(
            report.mains and record.assigned and not record.paused and not self._lease.fell_back
            and self._configuration.node_name not in record.possible_nodes
            and report.gate and report.gate.cluster == record.cluster
            and report.gate.pair <= record.pair
            and self._lease.changed_within(self._configuration.heartbeat_timeout))


class LiveConfiguration:
    """The configuration of a running controller: its attributes are those in force now.

    `reload` replaces it as a whole, between two turns. What the promise of this node, its place in
    the metadata and the lease rest on stays until a restart, for an orderly stop takes the promise
    back first: so whatever the loops of the heartbeat and the fence reckon with never changes.
    """
    OF_THE_METADATA = ("sql_alchemy_conn", "state_dir_here")   # no keys of our section

    def __init__(self, load: Callable[[], Configuration]) -> None:
        self._load = load
        self._now = load()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now, name)

    def reload(self) -> Tuple[List[str], List[str], List[str]]:
        """Read all anew. Returns which names have changed, which of them wait for a restart, and
        the lines to log. Raises ConfigurationError, and has changed nothing then."""
        before, found = self._now, self._load()
        changed = [name for name in found._fields if name not in ("warnings", "notes")
                   and getattr(found, name) != getattr(before, name)]
        waiting = [name for name in changed if self._waits(name, before, found)]
        self._now = found._replace(**{name: getattr(before, name) for name in waiting})
        known = before.warnings + before.notes
        return changed, waiting, [line for line in found.warnings + found.notes
                                  if line not in known]

    def _waits(self, name: str, before: Configuration, found: Configuration) -> bool:
        """Whether a key that has changed waits for a restart."""
        if name in _OPTION_BY_NAME and not _OPTION_BY_NAME[name].live:
            return True
        if name == "airflow_scheduler_start_command":   # another unit may forbid to promise
            return systemd_unit(before.airflow_scheduler_start_command) != systemd_unit(
                found.airflow_scheduler_start_command)
        # The list has this node in it, by the name that it has now.
        return name in self.OF_THE_METADATA or name == "scheduler_nodes_in_cluster" \
            and before.node_name not in found.scheduler_nodes_in_cluster


###############################################################################
# The service manager #########################################################
###############################################################################


class ServiceManager:
    """Tells systemd how this controller fares (sd_notify), from a loop of its own.

    READY comes when the heartbeat and the turn have each come to an end once: the controller works
    then, whatever it has found. The watchdog is fed while the main loop is not overdue, by what it
    has said itself of its present work. So a main loop that is stuck, and a process that does not
    run, end by systemd's hand, WatchdogSec after that; the scheduler lives on.
    """
    RETRY_S = 1.0        # a message that was not taken is sent again after this
    MOST_WAITING = 100
    LONGEST = 900        # characters of a status: systemd takes datagrams of 4 KiB
    FEEDS = 4            # of the watchdog within its limit

    def __init__(self, world: World, lease: Lease) -> None:
        self.ended = False
        self._world = world
        self._lease = lease
        self._waiting: "collections.deque[str]" = collections.deque(maxlen=self.MOST_WAITING)
        self._finished: Set[str] = set()

    def tell(self, message: str, status: str = "") -> None:
        """Send a message, in its turn, with a line for `systemctl status`. May be called by a
        signal."""
        if status:
            message += "\nSTATUS=" + " ".join(status.split())[:self.LONGEST]
        if self._world.notify_socket:
            self._waiting.append(message.lstrip("\n"))
            self._world.wake("manager")

    def finished(self, loop: str) -> None:
        """A step of the loop has ended in order."""
        if loop not in self._finished:
            self._finished.add(loop)
            if {"heartbeat", "turn"} <= self._finished:
                self.tell("READY=1")

    def reloading(self) -> None:
        """The configuration is about to be read again; READY follows."""
        self.tell("RELOADING=1\nMONOTONIC_USEC={}".format(self._world.monotonic_us()))

    def step(self) -> Optional[float]:
        """Send what waits, and feed the watchdog; returns the seconds until the next time."""
        while self._waiting:
            if not self._world.notify(self._waiting[0]):
                return None if self.ended else self.RETRY_S
            self._waiting.popleft()
        if self._world.watchdog_s and self._lease.overdue_s() <= 0:
            self._world.notify("WATCHDOG=1")
        if self.ended:
            return None
        return self._world.watchdog_s / self.FEEDS or 3600.0


###############################################################################
# Status over HTTP ############################################################
###############################################################################


_Samples = Iterable[Tuple[Mapping[str, str], Optional[float]]]   # labels, and a value if known


class Metric(NamedTuple):
    """A metric for Prometheus: its name, its type, what it tells, and its samples."""
    name: str
    type: str
    help: str
    samples: Callable[[Any], _Samples]   # of a FailoverController


def _one(value: Callable[[Any], Optional[float]]) -> Callable[[Any], _Samples]:
    """A metric with one sample and no labels."""
    return lambda controller: [({}, value(controller))]


def _each(label: str, values: Callable[[Any], Mapping[str, float]]) -> Callable[[Any], _Samples]:
    """A metric with a sample for each value of a label."""
    return lambda controller: [({label: name}, value)
                               for name, value in sorted(values(controller).items())]


METRICS = (
    Metric("asfc_info", "gauge", "This controller's node and version; always 1.",
           lambda controller: [({"node": controller.node_name, "version": __version__}, 1)]),
    Metric("asfc_active", "gauge", "1 where this controller is active and may act.",
           _one(lambda controller: controller.lease.may_act())),
    Metric("asfc_term", "gauge", "The term, as this controller knows it.",
           _one(lambda controller: controller.lease.record and controller.lease.record.term)),
    Metric("asfc_paused", "gauge", "1 while asfc is paused.",
           _one(lambda controller: controller.records.paused)),
    Metric("asfc_scheduler_up", "gauge",
           "1 where some node's controller has said lately that a scheduler runs there.",
           _one(lambda controller: any(controller.scheduler_runs().values()))),
    Metric("asfc_scheduler_running", "gauge",
           "1 where a scheduler runs on the node, 0 where none does; nodes that said nothing "
           "lately are missing.",
           _each("node", lambda controller: controller.scheduler_runs())),
    Metric("asfc_renewal_age_seconds", "gauge",
           "Since the active controller's last heartbeat, as this controller knows it.",
           _one(lambda controller: controller.lease.renewal_age_s())),
    Metric("asfc_main_loop_overdue_seconds", "gauge",
           "By how much the main loop is later than it announced.",
           _one(lambda controller: max(0.0, controller.lease.overdue_s()))),
    Metric("asfc_turn_duration_seconds", "summary", "What the turns of the main loop took.",
           lambda controller: [({"": "_sum"}, controller.turns_took_s),
                               ({"": "_count"}, controller.turns)]),
    Metric("asfc_failovers_total", "counter",
           "Times that the scheduler ran on another node than before.",
           _one(lambda controller: controller.announcer.failovers)),
    Metric("asfc_scheduler_restarts_total", "counter",
           "Starts of the scheduler on the node where it ran before.",
           _one(lambda controller: controller.actuator.restarts)),
    Metric("asfc_command_failures_total", "counter",
           "Commands that failed or had no answer, a query of a node being one.",
           _each("command", lambda controller: dict(
               controller.actuator.command_failures, on_event_command=controller.events.failures))),
    Metric("asfc_metadata_failures_total", "counter",
           "Heartbeats and looks at the metadata that failed.",
           _one(lambda controller: controller.lease.failures)),
    Metric("asfc_events_total", "counter", "Events that this controller has noted.",
           _each("event", lambda controller: controller.events.counts)),
    Metric("asfc_configuration_broken", "gauge",
           "1 where the configuration could not be used when it was read again.",
           _one(lambda controller: controller.configuration_is_broken)))


def metrics_table_markdown() -> str:
    """The table of all metrics for the README."""
    rows = ["| metric | type | meaning |", "|---|---|---|"]
    return "\n".join(rows + ["| `{}` | {} | {} |".format(
        one.name, one.type, one.help) for one in METRICS]) + "\n"


def metrics_text(controller: Any) -> str:
    """All metrics of a controller in Prometheus' text format; the label "" is a suffix."""
    def escaped(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines = []
    for metric in METRICS:
        lines += ["# HELP {} {}".format(metric.name, metric.help),
                  "# TYPE {} {}".format(metric.name, metric.type)]
        for labels, value in metric.samples(controller):
            if value is not None:
                named = ",".join('{}="{}"'.format(name, escaped(text))
                                 for name, text in labels.items() if name)
                lines.append("{}{}{} {!r}".format(metric.name, labels.get("", ""),
                                                  named and "{" + named + "}", float(value)))
    return "\n".join(lines) + "\n"


def status_page(controller: Any, path: str) -> Tuple[int, str, str]:
    """What is answered for a path: status, content type and text.

    It reads what the other loops have left behind. It takes no lock and asks nobody, so it delays
    nobody, and an answer comes also when all else hangs.
    """
    if path == "/metrics":
        return 200, "text/plain; version=0.0.4", metrics_text(controller)
    states = {"/health": controller.is_healthy(), "/active": controller.lease.may_act()}
    if path not in states:
        return 404, "text/plain", "there are /health, /active and /metrics\n"
    record = controller.lease.record
    text = json.dumps(collections.OrderedDict((
        ("node", controller.node_name), ("healthy", states["/health"]),
        ("active", states["/active"]), ("term", record and record.term),
        ("active_scheduler_node", record and record.active_scheduler_node),
        ("sentence", controller.announcer.sentence))))
    return 200 if states[path] else 503, "application/json", text + "\n"


class StatusServer:
    """Serves status pages from a loop of its own, when a port is set; it may be set later."""
    LOOK_S = 1.0     # how long it waits for clients, at the most, before it looks at the settings
    PAUSE_S = 0.02   # between two steps while clients are there, however many
    RETRY_S = 10.0   # after it could not listen

    def __init__(self, world: World, configuration: Any,
                 answer: Callable[[str], Tuple[int, str, str]], log: Any) -> None:
        self.ended = False
        self._world = world
        self._configuration = configuration
        self._answer = answer
        self._log = log
        self._server: Any = None
        self._place: Tuple[str, int] = ("", 0)
        self._told = ""

    def step(self) -> Optional[float]:
        """Serve for a moment; returns the seconds until the next step, None at the end."""
        place = (self._configuration.status_http_address, self._configuration.status_http_port)
        if self._server and (self.ended or place != self._place):
            self._server.close()
            self._server = None
        if self.ended:
            return None
        if not place[1]:
            return 3600.0
        if not self._server and not self._listen(place):
            return self.RETRY_S
        return self.PAUSE_S if self._server.serve(self.LOOK_S, self._answer) else 0.0

    def _listen(self, place: Tuple[str, int]) -> bool:
        address, port = place
        try:
            self._server, self._place = self._world.http_server(address, port), place
            sentence = "status over HTTP: {}, port {}".format(address, port)
        except OSError as error:
            sentence = "no status over HTTP at {}, port {}: {}".format(
                address, port, error.strerror or error)
        if sentence != self._told:
            self._told = sentence
            self._log.log(logging.INFO if self._server else logging.ERROR, sentence)
        return bool(self._server)


###############################################################################
# Decision ####################################################################
###############################################################################


class Attempt(NamedTuple):
    """A start that this controller sent and whose success is not clear yet."""
    node: str
    pair: Pair
    sent_at: float
    heartbeat: str                    # what the health sign told before the start
    refused: bool = False             # by the node: that is no failed start
    seen_at: Optional[float] = None   # when the process was first seen alive
    source: str = ""                  # of that heartbeat; only another of it can be compared


class NodeFacts(NamedTuple):
    """What is known of a node beside its answer, all by the asker's own clock."""
    version: Optional[int] = None        # of its record; None: it never wrote one
    promise_s: Optional[float] = None    # F, as its record promises; None: no promise
    record_age_s: float = 0.0            # since its record was seen to change
    silent_s: float = 0.0                # since its last sign of life: an answer, a changed record
    unanswered: int = 0                  # queries since then that had no answer, r apart
    asked_in_move: bool = False          # the last of them carried the pair of this move
    job_moves: bool = False              # its scheduler's heartbeat in Airflow's table moves
    fence_failed: bool = False           # fence_command was tried lately and did not succeed

    def silence_left_s(self) -> Optional[float]:
        """How long its silence has to last yet until it proves something; None: for ever."""
        if self.promise_s is None or self.job_moves:
            return None
        return max(0.0, silence_s(self.promise_s) - self.silent_s)


NO_FACTS = NodeFacts()


class Observation(NamedTuple):
    """All that a decision is made from. Saved, it is a test case."""
    now: float
    record: ClusterRecord
    instance: str
    reports: Mapping[str, NodeReport]
    attempt: Optional[Attempt] = None
    health: HealthSign = NO_HEALTH_SIGN
    alive_s: float = 0.0               # how long the main process now running has been seen
    cleaned: FrozenSet[str] = frozenset()   # nodes whose remnants were stopped in this move
    facts: Mapping[str, NodeFacts] = {}
    fell_back: bool = False            # the metadata is older than what was read before
    raises: int = 0                    # how often the term was raised above a gate in this reign
    database_away_s: Optional[float] = None   # since Airflow's database was last seen not to answer
    orders: Orders = NO_ORDERS

    def proven_stopped(self, node: str) -> bool:
        """Whether it is proved that none runs or can still start on the node.

        An answer, or the node's own record, has to come with its gate at our pair. The pair is new
        with every change of the possible nodes, so such an answer is younger than the write it is
        needed for.
        """
        return self.says_stopped(node) or bool(self.vouch(node)) or self.is_silent(node)

    def says_stopped(self, node: str) -> bool:
        """Whether the node itself says so, by an answer or by its controller's fresh record."""
        report = self.reports.get(node)
        return bool(report and report.state == STOPPED and report.answered and not report.refused
                    and not report.intent and report.gate
                    and report.gate.pair == self.record.pair
                    and report.gate.instance == self.instance)

    def database_was_away(self, since_s: float, configuration: Any) -> bool:
        """Whether Airflow's database did not answer at some time since then, or just before it.

        Airflow 2 and 3 end some seconds after they have lost it, on whatever node. It is asked
        once a poll at least.
        """
        return self.database_away_s is not None \
            and self.database_away_s <= since_s + configuration.poll_frequency

    def answers(self, node: str) -> bool:
        """Whether the node can be given orders."""
        report = self.reports.get(node)
        return bool(report and report.answered and not report.by_record)

    def is_silent(self, node: str) -> bool:
        """Whether its silence proves that it has fenced itself, as its record promises."""
        report, facts = self.reports.get(node), self.facts.get(node, NO_FACTS)
        return bool(report and not report.answered and facts.silence_left_s() == 0.0
                    and facts.unanswered >= 2 and facts.asked_in_move)

    def may_be_left(self, node: str) -> bool:
        """Whether a move away from the node may begin; its last query follows the first write."""
        report, facts = self.reports.get(node), self.facts.get(node, NO_FACTS)
        return bool(self.vouch(node) or report and not report.answered
                    and facts.silence_left_s() == 0.0 and facts.unanswered >= 1)

    def vouch(self, node: str) -> Optional[Vouch]:
        """The word that the node is off; one that was seen again since then is not."""
        report = self.reports.get(node)
        if report and report.answered:
            return None
        version = self.facts.get(node, NO_FACTS).version
        found = [vouch for vouch in self.record.vouched
                 if vouch.node == node and vouch.version == version]
        return found[0] if found else None

    def takes_starts(self, node: str) -> bool:
        """Whether the node's script would run a start: a promise that has lapsed forbids it."""
        facts = self.facts.get(node, NO_FACTS)
        return facts.promise_s is None or facts.record_age_s < facts.promise_s / 2

    def scheduler_runs(self) -> bool:
        """Whether it runs where it was started; before it was, on any node where it still may."""
        record = self.record
        return any(map(self.runs_on, (record.active_scheduler_node or "",) if record.started
                       else record.possible_nodes))

    def runs_on(self, node: str) -> bool:
        report = self.reports.get(node)
        return bool(report and report.state == RUNNING and not report.refused)

    def reason(self, node: str) -> str:
        """What is known of the node and why, for the sentences."""
        report, facts, vouch = self.reports.get(node), self.facts.get(node), self.vouch(node)
        words = report.reason if report else "was not asked"
        if vouch:
            words = vouch.by
        elif facts and report and not report.answered:
            words += "; " + self._silence(facts)
        return "{}: {}".format(node, words)

    def to_text(self) -> str:
        """This observation as one line of JSON, from which `from_text` makes it again exactly."""
        return json.dumps({"format": OBSERVATION_FORMAT, "observation": _to_plain(self)})

    @classmethod
    def from_text(cls, text: str) -> "Observation":
        """Read a saved observation. Raises ConfigurationError for what is none."""
        try:
            fields = json.loads(text)
            if fields["format"] != OBSERVATION_FORMAT:
                raise ConfigurationError("the observation has format {}, and this version of asfc "
                                         "knows format {}".format(fields["format"],
                                                                  OBSERVATION_FORMAT))
            found = _from_plain(fields["observation"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError("this is no observation that asfc saved: {!r}".format(error))
        if not isinstance(found, cls):
            raise ConfigurationError("this is no observation that asfc saved")
        return found

    @staticmethod
    def _silence(facts: NodeFacts) -> str:
        if facts.job_moves:
            return "its scheduler's heartbeat moves in Airflow's table"
        if facts.promise_s is None:
            return "it has made no promise to fence itself"
        return "silent for {:.0f} s, and within {:.1f} s (x {:g}) it has fenced itself".format(
            facts.silent_s, facts.promise_s, CLOCK_RATE_LIMIT)


OBSERVATION_FORMAT = 1
_SAVED: Dict[str, Any] = {kind.__name__: kind for kind in (
    Observation, ClusterRecord, StartMade, FailedNode, Vouch, NodeReport, Gate, Pair, Intent,
    Process, Attempt, HealthSign, NodeFacts, Orders, Drain, Wish)}


def _to_plain(value: Any) -> Any:
    """A value for JSON: each object in it has one key, the kind of what it holds."""
    if hasattr(value, "_fields"):
        return {type(value).__name__: {name: _to_plain(getattr(value, name))
                                       for name in value._fields}}
    if isinstance(value, frozenset):
        return {"frozenset": sorted(value)}
    if isinstance(value, dict):
        return {"mapping": {key: _to_plain(one) for key, one in value.items()}}
    return [_to_plain(one) for one in value] if isinstance(value, tuple) else value


def _from_plain(plain: Any) -> Any:
    """What `_to_plain` was given. Raises KeyError, TypeError or ValueError for anything else."""
    if isinstance(plain, list):
        return tuple(_from_plain(one) for one in plain)
    if not isinstance(plain, dict):
        return plain
    (kind, held), = plain.items()
    if kind == "frozenset":
        return frozenset(held)
    fields = {name: _from_plain(one) for name, one in held.items()}
    return fields if kind == "mapping" else _SAVED[kind](**fields)


class ChangeRecord(NamedTuple):
    """Write the cluster record with these fields changed; nothing else happens unless it wins."""
    fields: Mapping[str, Any]
    new_move: bool = False


class StartScheduler(NamedTuple):
    """Start the scheduler on the one possible node. `proof` says why no other can run."""
    node: str
    proof: str
    why: str = ""   # it is started, and there


class StopScheduler(NamedTuple):
    """Stop what runs, starts or was left on a node, all but `keep`."""
    node: str
    why: str
    keep: Optional[Process] = None


class FenceNode(NamedTuple):
    """Run fence_command for a node that does not answer."""
    node: str
    why: str


class RaiseTerm(NamedTuple):
    """Take a term above what the nodes have heard of; every known node becomes possible."""
    above: Pair


class CloseWish(NamedTuple):
    """Write down what has become of a wish; it is not open any more."""
    wish: Wish   # with its outcome


def action_in_words(action: Any) -> str:
    """An action for people, to come after "would"."""
    if isinstance(action, CloseWish):
        return "tell that {} is {}".format(action.wish, action.wish.outcome)
    if isinstance(action, StartScheduler):
        return "start the scheduler on {} ({})".format(action.node, action.proof)
    if isinstance(action, StopScheduler):
        return "stop the scheduler on {}{} ({})".format(
            action.node, ", all but pid {}".format(action.keep.pid) if action.keep else "",
            action.why)
    if isinstance(action, FenceNode):
        return "run fence_command for {} ({})".format(action.node, action.why)
    if isinstance(action, RaiseTerm):
        return "take a term above {}".format(action.above)
    changes = ["{} = {}".format(name, ", ".join(str(getattr(one, "node", one)) for one in value)
                                or None if isinstance(value, tuple) else value)
               for name, value in sorted(action.fields.items())]
    return "change the record: {}{}".format("; ".join(changes),
                                            ", in a new move" if action.new_move else "")


class Decision(NamedTuple):
    """One sentence that says what is done and why, and the actions, done in order."""
    sentence: str
    actions: Tuple[Any, ...] = ()
    again_s: Optional[float] = None   # when to look again; None: at the next poll
    healthy: Optional[bool] = None    # one runs; or a round has failed; None: under way
    attempt_over: str = ""            # "worked" or "failed", when an attempt has come to its end
    why: str = ""                     # the facts behind it that the sentence does not tell


def decide(observation: Observation, configuration: Any) -> Decision:
    """What the active controller does now. A pure function: no clock, no I/O, no memory."""
    for rule in (do_nothing_while_paused, raise_term_above_what_nodes_heard,
                 forget_the_word_for_who_answers, admit_schedulers_seen_elsewhere,
                 reduce_schedulers_on_one_node, carry_out_the_wish, adopt_or_keep_one,
                 end_starts_that_failed, leave_a_silent_node, fence_an_unknown_node,
                 wait_for_unknown_nodes, judge_dead_attempt, stop_remnants, choose_another_node):
        decision = rule(observation, configuration)
        if decision:
            return decision
    return start_scheduler(observation, configuration)


# -- before all


def do_nothing_while_paused(seen: Observation, configuration: Any) -> Optional[Decision]:
    """Paused: heartbeats go on, and nothing is started, stopped or fenced."""
    if not seen.record.paused:
        return None
    running = [node for node in sorted(seen.reports) if seen.runs_on(node)]
    wish = seen.orders.open_wish
    return Decision("PAUSED ({}): nothing is started or stopped; a scheduler runs on {}".format(
        seen.record.paused, ", ".join(running) or "no node that is known"),
        (CloseWish(wish._replace(outcome=REFUSED, why="asfc is paused")),) if wish else (),
        attempt_over="paused" if seen.attempt else "")


def raise_term_above_what_nodes_heard(seen: Observation, configuration: Any) -> Optional[Decision]:
    """A gate ahead of the metadata means that the metadata is old: restored from a backup.

    At most as often in a reign as there are nodes: two clusters' controllers would go on for ever.
    """
    record = seen.record
    ahead = {node: report.gate for node, report in sorted(seen.reports.items())
             if report.refused and report.gate and report.gate.cluster == record.cluster
             and report.gate.node == node and report.gate.pair >= record.pair}
    if not ahead and not seen.fell_back or seen.raises > len(seen.reports):
        return None
    above = max([record.pair] + [gate.pair for gate in ahead.values() if gate])
    who = " and ".join("{} has heard of {}".format(node, gate.pair)
                       for node, gate in ahead.items() if gate) or "it has fallen back"
    return Decision("the metadata (term {}) is older than the cluster: {}. Was it restored from a "
                    "backup? Every node becomes possible".format(record.pair, who),
                    (RaiseTerm(above),), 0.0)


def forget_the_word_for_who_answers(seen: Observation, configuration: Any) -> Optional[Decision]:
    """A node that answers is not off: if it falls silent later, the old word must not count again.

    Its record may not have changed, for no controller need run there.
    """
    vouched = seen.record.vouched
    kept = tuple(vouch for vouch in vouched if not seen.answers(vouch.node))
    if kept == vouched:
        return None
    return Decision("{} answers, so nobody's word that it is off counts any more".format(
        ", ".join(vouch.node for vouch in vouched if vouch not in kept)),
        (ChangeRecord({"vouched": kept}),), 0.0)


# -- what a person wants


def carry_out_the_wish(seen: Observation, configuration: Any) -> Optional[Decision]:
    """The scheduler is to run on another node: it is stopped in order and started there.

    First the target becomes the last possible node, in a new move. Nothing is stopped before it has
    answered to that move, and while anything speaks against it. When none runs any more, the
    ordinary rules ask for proof and start it; they also undo what is given up half-way.
    """
    wish, record = seen.orders.open_wish, seen.record
    if wish is None:
        return None
    target, home = wish.target, record.active_scheduler_node
    if record.clock_s > wish.until_s:
        return close_wish(wish, FAILED, "it was not done in time")
    if home == target and record.started:
        return judge_the_wish(seen, configuration, wish)
    if seen.runs_on(target):
        return None   # that is adopted or stopped first
    against = what_speaks_against(seen, configuration, wish)
    if against:
        return close_wish(wish, FAILED if home == target else REFUSED, against)
    if home != target or failed_now(record, target):
        forgiven = tuple(failed for failed in record.failed if failed.node != target)
        decision = move_to(seen, target, {"failed": forgiven} if wish.forced else {}, "")
        return decision._replace(sentence="{} ({})".format(decision.sentence, wish),
                                 attempt_over="moved" if seen.attempt else "")
    running = [node for node in record.possible_nodes if seen.runs_on(node)]
    if not running:
        return None
    return Decision("stopping the scheduler on {} for {}".format(", ".join(running), wish), tuple(
        StopScheduler(node, "for {}".format(wish)) for node in running), 0.0)


def judge_the_wish(seen: Observation, configuration: Any, wish: Wish) -> Optional[Decision]:
    """The scheduler was started on the target: has that worked? None: that is not clear yet."""
    why = [failed.why for failed in seen.record.failed if failed.node == wish.target]
    if failed_now(seen.record, wish.target):
        return close_wish(wish, FAILED, "the start on {} failed: {}".format(wish.target, why[0]))
    if not seen.runs_on(wish.target) or seen.attempt and not shows_life(seen, configuration):
        return None
    return close_wish(wish, DONE, "the scheduler runs on " + wish.target)


def what_speaks_against(seen: Observation, configuration: Any, wish: Wish) -> str:
    """Why the scheduler can't be stopped now, to be started on the target; or ""."""
    record, target = seen.record, wish.target
    if record.active_scheduler_node is None:
        return "where the scheduler runs is not known yet"
    if target not in configuration.scheduler_nodes_in_cluster:
        return "{} is not in scheduler_nodes_in_cluster of the active controller".format(target)
    if seen.orders.drain_of(target):
        return str(seen.orders.drain_of(target))
    if not seen.answers(target) or not seen.says_stopped(target):
        return seen.reason(target)
    if not seen.takes_starts(target):
        return "{}: its promise has run out, for its controller does not write its record".format(
            target)
    if failed_now(record, target) and not wish.forced:
        return "{} has failed and is passed over".format(target)
    others = [node for node in record.possible_nodes if node != target]
    unclear = [node for node in others if not seen.proven_stopped(node)
               and not (seen.runs_on(node) and seen.answers(node))]
    if unclear and (not wish.forced or any(map(seen.runs_on, others))):
        return "a scheduler may run where none can be stopped now: " + "; ".join(
            map(seen.reason, unclear))
    return ""


def close_wish(wish: Wish, outcome: str, why: str) -> Decision:
    return Decision("{} is {}: {}".format(wish, outcome, why),
                    (CloseWish(wish._replace(outcome=outcome, why=why)),), 0.0)


# -- a scheduler runs somewhere


def admit_schedulers_seen_elsewhere(seen: Observation, configuration: Any) -> Optional[Decision]:
    """A node on which a scheduler is seen is a possible node, whoever started that."""
    possible = seen.record.possible_nodes
    strangers = tuple(node for node in sorted(seen.reports)
                      if seen.runs_on(node) and node not in possible)
    if not strangers:
        return None
    return Decision("a scheduler was found on {}, where none was expected: it is a possible node "
                    "now".format(", ".join(strangers)),
                    (ChangeRecord({"possible_nodes": strangers + possible}, new_move=True),), 0.0)


def reduce_schedulers_on_one_node(seen: Observation, configuration: Any) -> Optional[Decision]:
    """Of several schedulers on one node the first one listed stays."""
    for node, report in sorted(seen.reports.items()):
        if seen.runs_on(node) and len(report.mains) > 1:
            why = "{} schedulers run there, only the one with pid {} stays".format(
                len(report.mains), report.mains[0].pid)
            return Decision("stopping schedulers on {}: {}".format(node, why),
                            (StopScheduler(node, why, report.mains[0]),), 0.0, healthy=False)
    return None


def adopt_or_keep_one(seen: Observation, configuration: Any) -> Optional[Decision]:
    """Where schedulers run, one stays: the assigned one, else the first in the list's order."""
    record = seen.record
    running = [node for node in in_list_order(record.possible_nodes, configuration)
               if seen.runs_on(node)]
    if not running:
        return None
    assigned = record.active_scheduler_node
    if assigned in running and record.started:
        return keep_the_active_one(seen, configuration, running)
    # One that was started on a node which is unknown now may run there, too: then none may stay.
    if assigned is None or assigned in running or not record.started \
            or seen.proven_stopped(assigned):
        keeper = assigned if assigned in running else running[0]
        others = tuple(node for node in record.possible_nodes if node != keeper)
        return Decision("the scheduler that runs on {} is the one: {}".format(
            keeper, seen.reports[keeper].reason),
            (ChangeRecord({"possible_nodes": others + (keeper,), "assigned": True,
                           "started": True}, new_move=True),), 0.0)
    why = "{} is the active scheduler node and does not answer ({})".format(
        assigned, seen.reports[assigned].reason if assigned in seen.reports else "not asked")
    return Decision("stopping the scheduler on {}: {}".format(", ".join(running), why),
                    tuple(StopScheduler(node, why) for node in running), healthy=False)


def keep_the_active_one(seen: Observation, configuration: Any,
                        running: Sequence[str]) -> Decision:
    """The active scheduler node runs one: all others end, nodes that proved it leave the list."""
    record = seen.record
    active = record.possible_nodes[-1]
    surplus = [node for node in running if node != active]
    if surplus:
        why = "the scheduler runs on " + active
        return Decision("stopping the scheduler on {}: {}".format(", ".join(surplus), why),
                        tuple(StopScheduler(node, why) for node in surplus), 0.0, healthy=False)
    leftovers = stop_remnants(seen, configuration, but=active)
    if leftovers:
        return leftovers
    failed = end_starts_that_failed(seen, configuration)
    if failed:  # on another node: where one runs no start is open
        return failed._replace(healthy=None, attempt_over="")
    waiting = tuple(node for node in record.possible_nodes[:-1] if not seen.proven_stopped(node))
    if len(waiting) + 1 < len(record.possible_nodes):
        gone = [node for node in record.possible_nodes[:-1] if node not in waiting]
        return Decision("only {} can have a scheduler now: {}".format(
            ", ".join(waiting + (active,)), "; ".join(map(seen.reason, gone))),
            (ChangeRecord({"possible_nodes": waiting + (active,),
                           "vouched": kept_vouches(seen, waiting)}),), 0.0)
    if is_hung(seen, configuration):
        why = "it is hung: pid {} lives, but its heartbeat has stood at {} for {:.0f} s".format(
            seen.reports[active].mains[0].pid if seen.reports[active].mains else "?",
            seen.health.heartbeat, seen.health.unchanged_s)
        actions: Tuple[Any, ...] = (StopScheduler(active, why),)
        if seen.attempt:   # it has hung since its birth: another one here would as well
            actions += (ChangeRecord({"failed": mark_failed(record, active, why)}),)
        return Decision("stopping the scheduler on {}: {}".format(active, why), actions, 0.0,
                        healthy=False, attempt_over="failed" if seen.attempt else "")
    return tell_that_it_runs(seen, configuration, waiting)


def tell_that_it_runs(seen: Observation, configuration: Any, waiting: Sequence[str]) -> Decision:
    """Nothing to do; an attempt that has shown life has worked, and old failures are forgotten."""
    record = seen.record
    active = record.possible_nodes[-1]
    sentence = "no action: I am active, the scheduler runs on {}".format(active)
    if waiting:
        sentence += "; waiting for {}".format("; ".join(seen.reason(node) for node in waiting))
    attempt = seen.attempt
    if attempt and attempt.node == active:
        if not shows_life(seen, configuration):
            return Decision("started on {}, watching whether it lives on".format(active))
        return Decision(sentence, healthy=True, attempt_over="worked")
    forgiven = tuple(failed for failed in record.failed if failed.node != active)
    window_s = configuration.scheduler_restart_window
    if len(forgiven) < len(record.failed) and not starts_within(record, active, window_s):
        return Decision(sentence, (ChangeRecord({"failed": forgiven}),), healthy=True)
    return Decision(sentence, healthy=True)


def is_hung(seen: Observation, configuration: Any) -> bool:
    """Two signs: the process lives, and its heartbeat has stood still while it could be read.

    A scheduler that has just started is given the time that a start may take: one that has not
    shown life yet even scheduler_start_timeout, for on a busy host that may take Airflow a minute,
    and each one that is stopped for it makes the next one as late.
    """
    allowed_s = configuration.health_threshold_s
    young_s = max(allowed_s, configuration.scheduler_restart_sleep_time)
    if seen.attempt:
        young_s = max(young_s, configuration.scheduler_start_timeout)
    return (seen.health.readable and seen.health.unchanged_s > allowed_s
            and seen.alive_s > young_s)


def shows_life(seen: Observation, configuration: Any) -> bool:
    """Whether a started scheduler has worked: a heartbeat of its own, or a time that it lived."""
    attempt = seen.attempt
    if attempt is None or attempt.seen_at is None:
        return False
    if seen.health.readable and attempt.heartbeat and seen.health.source == attempt.source:
        return seen.health.heartbeat != attempt.heartbeat
    return seen.now - attempt.seen_at >= configuration.scheduler_restart_sleep_time


# -- no scheduler runs, as far as can be seen


def end_starts_that_failed(seen: Observation, configuration: Any) -> Optional[Decision]:
    """A start whose process did not appear in time is stopped, whatever is left of it."""
    for node in seen.record.possible_nodes:
        report = seen.reports.get(node)
        intent = report.intent if report and not report.refused else None
        if report is None or intent is None:
            continue
        if intent.command_runs:
            late = intent.age_s > configuration.scheduler_start_timeout
            why = "its start command has run for {:.0f} s".format(intent.age_s)
        else:
            ended_s = intent.ended_s or 0.0
            late = ended_s >= configuration.settle_s
            why = "no scheduler appeared within {:.0f} s after its start command ended{}".format(
                ended_s, word_about_daemons(configuration))
        if late:
            actions: Tuple[Any, ...] = (StopScheduler(node, why),)
            if seen.database_was_away(intent.age_s, configuration):
                why += "; Airflow's database did not answer then"
            else:   # once: only after the stop was answered
                actions += (ChangeRecord({"failed": mark_failed(seen.record, node, why)}),)
            return Decision("the start on {} failed: {}{}".format(node, why, last_words(report)),
                            actions, 0.0, healthy=False, attempt_over="failed")
    return None


def word_about_daemons(configuration: Any) -> str:
    """Where a start command has Airflow itself go into the background: what ends it without a word.

    1.10 starts nothing beside a pid file that a killed daemon has left, and tells nobody.
    """
    is_daemon = re.search(r"\bairflow\s+scheduler\b[^;&|]*\s(-D|--daemon)\b",
                          configuration.airflow_scheduler_start_command)
    return " (with -D a stale airflow-scheduler.pid may stand in its way)" if is_daemon else ""


def leave_a_silent_node(seen: Observation, configuration: Any) -> Optional[Decision]:
    """The first step of a move away from a node that will not answer any more."""
    assigned = seen.record.active_scheduler_node
    if assigned is None or seen.says_stopped(assigned) or not seen.may_be_left(assigned):
        return None
    if configuration.fence_command and not seen.vouch(assigned) \
            and not seen.facts.get(assigned, NO_FACTS).fence_failed:
        return None  # that goes first: it is worth more than silence
    chosen = choose_node(seen, configuration, seen.record.failed)
    if chosen:
        return move_to(seen, chosen, {}, passed_over(seen, chosen, seen.record.failed,
                                                     configuration))
    return Decision("waiting: no other node answers that a scheduler could be started on; {}"
                    .format("; ".join([seen.reason(assigned)] + list(map(str, seen.orders.drained)))
                            ), healthy=False)


def fence_an_unknown_node(seen: Observation, configuration: Any) -> Optional[Decision]:
    """Switch a node off that gave no sign of life for h, so another may have the scheduler."""
    if not configuration.fence_command:
        return None
    for node in seen.record.possible_nodes:
        report, facts = seen.reports.get(node), seen.facts.get(node, NO_FACTS)
        if report is None or report.answered or seen.vouch(node) or facts.fence_failed:
            continue
        if facts.silent_s >= configuration.heartbeat_timeout and facts.unanswered >= 2 \
                and not facts.job_moves:
            why = "no sign of life from it for {:.0f} s".format(facts.silent_s)
            return Decision("fencing {} by fence_command: {}".format(node, why),
                            (FenceNode(node, why),), 0.0)
    return None


def wait_for_unknown_nodes(seen: Observation, configuration: Any) -> Optional[Decision]:
    """While a possible node is unknown, a scheduler may run there: nothing is started anywhere."""
    record = seen.record
    unknown = [node for node in record.possible_nodes if not seen.proven_stopped(node)
               or waits_for_fence_command(seen, node, configuration)]
    if not unknown:
        return None
    reports = [seen.reports[node] for node in unknown if node in seen.reports]
    if all(report.intent for report in reports):
        return Decision("starting: {}".format("; ".join(map(seen.reason, unknown))),
                        again_s=configuration.retry_interval_s)
    reasons = "; ".join(map(seen.reason, unknown))
    again_s = silence_ends_s(seen, unknown, configuration)
    if again_s is not None:
        return Decision("waiting until {} {} been silent for long enough, then the scheduler is "
                        "started elsewhere: {}".format(
                            ", ".join(unknown), "has" if len(unknown) == 1 else "have", reasons),
                        again_s=again_s)
    if all(report.refused for report in reports):
        remedy = ("The metadata here is older than what the nodes have heard: was it restored from "
                  "a backup, or do not all controllers share one database (sql_alchemy_conn)?")
    else:
        remedy = ("Bring {0} back; or, when {1} switched off for certain, say so: {2}".format(
            ", ".join(unknown), "it is" if len(unknown) == 1 else "they are",
            "; ".join("asfc.py confirm_dead " + node for node in unknown)))
    return Decision("waiting: a scheduler may run on {}, so none is started. {} -- {}".format(
        ", ".join(unknown), reasons, remedy), healthy=False)


def waits_for_fence_command(seen: Observation, node: str, configuration: Any) -> bool:
    """Whether silence alone does not count yet, for fence_command has not had its try."""
    return bool(configuration.fence_command and not seen.says_stopped(node)
                and not seen.vouch(node) and not seen.facts.get(node, NO_FACTS).fence_failed)


def silence_ends_s(seen: Observation, nodes: Iterable[str],
                   configuration: Any) -> Optional[float]:
    """When the last of the nodes will have been silent for long enough; None: one never will.

    What is lacking then is a query without an answer: r apart they are sent.
    """
    longest = 0.0
    for node in nodes:
        report, facts = seen.reports.get(node), seen.facts.get(node, NO_FACTS)
        left_s = facts.silence_left_s()
        if report is None or report.answered or left_s is None:
            return None
        if waits_for_fence_command(seen, node, configuration):
            left_s = min(left_s, max(0.0, configuration.heartbeat_timeout - facts.silent_s))
        longest = max(longest, left_s)
    pause_s = configuration.poll_frequency if longest > 0 else configuration.retry_interval_s
    return min(longest or pause_s, pause_s)


def judge_dead_attempt(seen: Observation, configuration: Any) -> Optional[Decision]:
    """A scheduler that was started and died before it showed life is a failed start."""
    attempt = seen.attempt
    if attempt is None:
        return None
    if attempt.seen_at is None:
        # Refused, or never arrived: every new attempt is numbered anew, so a late one is refused.
        return Decision("the start on {} did not take place".format(attempt.node),
                        healthy=False, attempt_over="refused")
    why = "it died within {:.0f} s of its start".format(seen.now - attempt.sent_at)
    report = seen.reports[attempt.node]
    if seen.database_was_away(seen.now - attempt.sent_at, configuration):
        since_s = seen.now - attempt.sent_at + configuration.query_timeout   # counted, then sent
        starts = tuple(start for start in seen.record.starts
                       if seen.record.clock_s - start.at_s > since_s)
        return Decision("the start on {} came to nothing: {}{}; Airflow's database did not answer "
                        "then, so it is not held against the node".format(
                            attempt.node, why, last_words(report)),
                        (ChangeRecord({"starts": starts}),), healthy=False, attempt_over="failed")
    why += word_about_daemons(configuration)
    return Decision("the start on {} failed: {}{}".format(attempt.node, why, last_words(report)),
                    (ChangeRecord({"failed": mark_failed(seen.record, attempt.node, why)}),), 0.0,
                    healthy=False, attempt_over="failed")


def stop_remnants(seen: Observation, configuration: Any, but: str = "") -> Optional[Decision]:
    """What a dead scheduler left holds ports and tasks: it is stopped once before a next start."""
    for node in seen.record.possible_nodes:
        report = seen.reports.get(node)
        if node != but and node not in seen.cleaned and report and report.remnants \
                and seen.proven_stopped(node):
            why = "{} processes of a dead scheduler are left".format(len(report.remnants))
            return Decision("stopping remnants on {}: {}".format(node, why),
                            (StopScheduler(node, why),), 0.0)
    return None


def choose_another_node(seen: Observation, configuration: Any) -> Optional[Decision]:
    """The first step of a move: make the chosen node the last possible one, in a new move."""
    record = seen.record
    assigned = record.active_scheduler_node
    failed = record.failed
    used_up = starts_within(record, assigned, configuration.scheduler_restart_window)
    if assigned and not failed_now(record, assigned) and record.started \
            and len(used_up) >= configuration.scheduler_restart_budget:
        why = "{} starts within {:.0f} s".format(len(used_up),
                                                 configuration.scheduler_restart_window)
        failed = mark_failed(record, assigned, why)
    chosen = choose_node(seen, configuration, failed)
    if chosen is None:
        return Decision("; ".join(["waiting: no node of scheduler_nodes_in_cluster answers that a "
                                   "scheduler could be started on"] + list(map(
                                       str, seen.orders.drained))), healthy=False)
    if in_a_hurry(record, chosen, failed, configuration):
        return Decision("waiting: every node that answers has failed ({}); {} is tried next".format(
            "; ".join("{}: {}".format(node.node, node.why) for node in failed), chosen),
            healthy=False)
    fields: Dict[str, Any] = {"failed": failed} if failed != record.failed else {}
    if chosen == assigned:
        return Decision("{} is tried again".format(chosen), (ChangeRecord(fields),), 0.0) \
            if fields else None
    return move_to(seen, chosen, fields, passed_over(seen, chosen, failed, configuration))


def move_to(seen: Observation, chosen: str, fields: Mapping[str, Any], why: str) -> Decision:
    """Make the chosen node the last possible one, in a new move; proof is asked for after that."""
    record = seen.record
    assigned = record.active_scheduler_node
    others = tuple(node for node in record.possible_nodes if node != chosen)
    changed = dict(fields, possible_nodes=others + (chosen,), assigned=True, started=False)
    return Decision("moving the scheduler to {}{}".format(
        chosen, " from {}".format(seen.reason(assigned)) if assigned else ""),
        (ChangeRecord(changed, new_move=True),), 0.0, why=why)


def passed_over(seen: Observation, chosen: str, failed: Sequence[FailedNode],
                configuration: Any) -> str:
    """Why none of the nodes is taken that come before the chosen one, for the history.

    That the active scheduler node does not answer is told by the sentence of the move itself.
    """
    names, assigned = search_order(seen.record, configuration), seen.record.active_scheduler_node
    reasons = {node.node: "failed: " + node.why for node in failed
               if node.until_s > seen.record.clock_s}
    found = []
    for node in names[:names.index(chosen)]:
        if node in reasons:
            found.append("{}: {}".format(node, reasons[node]))
        elif seen.orders.drain_of(node):
            found.append(str(seen.orders.drain_of(node)))
        elif not seen.says_stopped(node):
            found += [seen.reason(node)] if node != assigned else []
        else:
            promises_nothing = seen.facts.get(node, NO_FACTS).promise_s is None
            found.append("{}: {}".format(node, "it promises nothing" if promises_nothing
                                         else "it takes no starts until it renews its promise"))
    return "; ".join(found + ["{} is the first that takes it, in the order {}".format(
        chosen, ", ".join(names))])


def search_order(record: ClusterRecord, configuration: Any) -> List[str]:
    """The nodes of the list as they are tried: from the active scheduler node on."""
    names = list(configuration.scheduler_nodes_in_cluster)
    place = names.index(record.active_scheduler_node) \
        if record.active_scheduler_node in names else 0
    return names[place:] + names[:place]


def choose_node(seen: Observation, configuration: Any,
                failed: Sequence[FailedNode]) -> Optional[str]:
    """The assigned node if it may be tried, else the next in the list's order that answers.

    One that promises to fence itself goes before one that does not. When only failed nodes are
    left, the one whose time is over first. A drained one is never chosen.
    """
    assigned = seen.record.active_scheduler_node
    candidates = [node for node in search_order(seen.record, configuration)
                  if seen.answers(node) and seen.says_stopped(node) and seen.takes_starts(node)
                  and not seen.orders.drain_of(node)]
    candidates.sort(key=lambda node: node != assigned and seen.facts.get(
        node, NO_FACTS).promise_s is None)
    until = {node.node: node.until_s for node in failed if node.until_s > seen.record.clock_s}
    fresh = [node for node in candidates if node not in until]
    if fresh or not candidates:
        return fresh[0] if fresh else None
    return min(candidates, key=lambda node: until[node])


def start_scheduler(seen: Observation, configuration: Any) -> Decision:
    """All other possible nodes have proved that none runs there: shrink the list, then start."""
    record = seen.record
    node = record.possible_nodes[-1]
    proof = "; ".join(map(seen.reason, record.possible_nodes))
    window_s, budget = (configuration.scheduler_restart_window,
                        configuration.scheduler_restart_budget)
    starts = (record.starts + (StartMade(node, record.clock_s),))[-max(20, budget):]
    if record.alive_at_s is not None and seen.database_was_away(
            record.clock_s - record.alive_at_s, configuration):
        starts = record.starts
        proof += "; Airflow's database did not answer lately, so this start is not counted"
    count = len(starts_within(record._replace(starts=starts), node, window_s))
    why = "{}; start {} of at most {} there within {:g} s".format(
        "none runs where it ran" if record.started else "{} was chosen for it".format(node),
        count, budget, window_s)
    change = ChangeRecord({"possible_nodes": (node,), "started": True, "starts": starts,
                           "vouched": ()}, new_move=record.started)
    return Decision("starting the scheduler on {}, term {}: {}".format(node, record.term, proof),
                    (change, StartScheduler(node, proof, why)), 0.5)


# -- helpers of the rules


def kept_vouches(seen: Observation, nodes: Iterable[str]) -> Tuple[Vouch, ...]:
    """The words for these nodes that still hold."""
    found = [seen.vouch(node) for node in nodes]
    return tuple(vouch for vouch in found if vouch)


def in_list_order(nodes: Iterable[str], configuration: Any) -> List[str]:
    """Nodes in the order of scheduler_nodes_in_cluster, those not in it last."""
    place = {node: at for at, node in enumerate(configuration.scheduler_nodes_in_cluster)}
    return sorted(nodes, key=lambda node: (place.get(node, len(place)), node))


def starts_within(record: ClusterRecord, node: Optional[str], window_s: float) -> List[StartMade]:
    return [start for start in record.starts
            if start.node == node and record.clock_s - start.at_s < window_s]


def failed_now(record: ClusterRecord, node: Optional[str]) -> bool:
    return any(failed.node == node and failed.until_s > record.clock_s for failed in record.failed)


FIRST_BACK_OFF_S, LONGEST_BACK_OFF_S = 60.0, 3600.0


def mark_failed(record: ClusterRecord, node: str, why: str) -> Tuple[FailedNode, ...]:
    """The failed nodes with this one among them, its time twice as long as the last."""
    waits = [failed.wait_s for failed in record.failed if failed.node == node]
    wait_s = min(2 * waits[0], LONGEST_BACK_OFF_S) if waits else FIRST_BACK_OFF_S
    others = tuple(failed for failed in record.failed if failed.node != node)
    return others + (FailedNode(node, record.clock_s + wait_s, wait_s, why),)


def in_a_hurry(record: ClusterRecord, node: str, failed: Sequence[FailedNode],
               configuration: Any) -> bool:
    """Whether a failed node would be tried sooner than a poll after the last start anywhere."""
    if not any(one.node == node and one.until_s > record.clock_s for one in failed):
        return False
    last_s = max([start.at_s for start in record.starts] or [float("-inf")])
    return record.clock_s - last_s < configuration.poll_frequency


def last_words(report: NodeReport) -> str:
    """The end of what the start command wrote, for the sentence of a failed start."""
    lines = [line.strip() for line in report.output.splitlines() if line.strip()]
    return " (its last words: {:.200})".format(lines[-1]) if lines else ""


###############################################################################
# The failover controller #####################################################
###############################################################################


class SignsOfLife:
    """What a controller has heard of each node, and since when it hears nothing.

    A sign of life is an answer to anything that was sent, or a record that has changed. So a
    standby asks, too, where a record stands still: a node whose controller died, and which then
    fails to answer twice while it is busy, would seem silent since its last record.
    """
    FENCE_RETRY_S = 60.0   # a fence_command that failed is tried again after this
    ASKED_KEPT = 10        # queries without an answer that are remembered, the last ones

    def __init__(self, world: World, configuration: Any, nodes: Any, lease: Any,
                 records: Any, jobs: JobWatch) -> None:
        self.ended = False
        self._nodes = nodes
        self._world = world
        self._configuration = configuration
        self._lease = lease
        self._records = records
        self._jobs = jobs
        self._began_at = world.now()
        self._answered_at: Dict[str, float] = {}
        self._unanswered: Dict[str, "collections.deque[Tuple[float, Pair]]"] = {}
        self._fence_failed_at: Dict[str, float] = {}

    def begin(self) -> None:
        """A reign begins: what was asked in an earlier one does not count."""
        self._began_at = self._world.now()
        self._unanswered, self._fence_failed_at = {}, {}

    def step(self) -> Optional[float]:
        """On standby: ask the possible nodes whose records stand still, changing nothing there."""
        if self.ended:
            return None
        record = self._lease.record
        if record and not self._lease.active:
            views = self._records.views
            still = [node for node in record.possible_nodes
                     if node in views and not self._is_fresh(views[node])]
            for node, report in self._nodes.look(still).items() if still else ():
                if report.answered:
                    self._answered_at[node] = self._world.now()
        return min(self._configuration.poll_frequency, self._configuration.heartbeat_timeout / 3)

    def best_report(self, report: NodeReport, stamp: Stamp) -> NodeReport:
        """Note a node's answer; where there is none its own fresh record speaks for it."""
        node, now = report.node, self._world.now()
        if report.answered:
            self._answered_at[node] = now
            self._unanswered.pop(node, None)
            return self._check_directory(report)
        asked = self._unanswered.setdefault(node, collections.deque(maxlen=self.ASKED_KEPT))
        if not asked or report.asked_at - asked[-1][0] >= self._configuration.retry_interval_s \
                or stamp.pair != asked[-1][1]:
            asked.append((report.asked_at, stamp.pair))
        return self._by_record(report) or report

    def _check_directory(self, report: NodeReport) -> NodeReport:
        """An answer from another state directory than its controller's has another gate."""
        view = self._records.views.get(report.node)
        if view is None or not self._is_fresh(view) \
                or view.record.state_dir_id in ("", report.directory):   # "": not understood
            return report
        return report._replace(state=UNKNOWN, reason=(
            "its state directory, as a login by ssh finds it, is not its own controller's ({}): do "
            "both have the same home directory?".format(view.record.state_dir)))

    def _is_fresh(self, view: NodeView) -> bool:
        configuration = self._configuration
        age_s = self._world.now() - view.changed_at
        return view.trusted and age_s <= (configuration.heartbeat_interval_s + RETRY_INTERVAL_S
                                          + configuration.metadata_limit_s)

    def runs_by_records(self) -> Dict[str, bool]:
        """Of each node whose record is fresh and knows: whether a scheduler runs there."""
        return {node: view.record.state == RUNNING for node, view in self._records.views.items()
                if view.moved and view.record.state != UNKNOWN and self._is_fresh(view)}

    def _by_record(self, report: NodeReport) -> Optional[NodeReport]:
        view = self._records.views.get(report.node)
        if view is None or not view.moved or not self._is_fresh(view) \
                or view.record.state == UNKNOWN:
            return None
        record = view.record
        return NodeReport(
            report.node, record.state, "its own controller says: {} ({})".format(
                record.reason, report.reason), answered=True, by_record=True, gate=record.gate,
            mains=record.mains, asked_at=report.asked_at)

    def facts(self, node: str, pair: Pair) -> NodeFacts:
        """What is known of a node beside its answer, in the move of this pair."""
        now, view = self._world.now(), self._records.views.get(node)
        life_at = max(self._answered_at.get(node, self._began_at if view is None else 0.0),
                      view.changed_at if view else 0.0)
        # Silence ends with the last read: what was written since then is not known.
        silent_s = min(now, self._lease.read_at) - life_at
        asked = [one for one in self._unanswered.get(node, []) if one[0] >= life_at]
        spread_s = asked[-1][0] - asked[0][0] if asked else 0.0
        unanswered = min(len(asked), 1 if spread_s < self._configuration.retry_interval_s else 2)
        failed_at = self._fence_failed_at.get(node)
        promise_s = view.record.promise_s if view and view.trusted else None
        return NodeFacts(
            view.version if view else None, promise_s,
            now - view.changed_at if view else 0.0, silent_s, unanswered,
            bool(asked and asked[-1][1] == pair), self._job_moves(node, life_at, promise_s),
            failed_at is not None and now - failed_at < self.FENCE_RETRY_S)

    def _job_moves(self, node: str, life_at: float, promise_s: Optional[float]) -> bool:
        """Whether Airflow's table shows its scheduler alive while all else of it is silent.

        Its last heartbeat may follow its last sign of life by a pause, and the veto ends when that
        has stood still for as long as a silence has to last.
        """
        views = self._records.views
        names = {name: views[name].record.host_names if name in views else ()
                 for name in set(self._configuration.scheduler_nodes_in_cluster) | set(views)}
        moved_at = self._jobs.moved_at(node, names)
        return promise_s is not None and moved_at is not None \
            and moved_at > life_at + self._jobs.pause_s() \
            and self._world.now() - moved_at < silence_s(promise_s)

    def fence_failed(self, node: str) -> None:
        self._fence_failed_at[node] = self._world.now()

    def is_cut_off(self) -> bool:
        """Whether no node answered for h, this one included, while other nodes' records move."""
        now, own = self._world.now(), self._configuration.node_name
        limit_s = self._configuration.heartbeat_timeout
        last = max([self._began_at] + list(self._answered_at.values()))
        moving = any(now - view.changed_at < limit_s for node, view in self._records.views.items()
                     if node != own)
        return moving and now - last >= limit_s


class Announcer:
    """Tells people what a controller does: by its log, status record, history, events and mails.

    Nothing is decided by it. What a turn has decided is told before it is done, for the event of
    what was done gives the turn's sentence as its reason.
    """

    def __init__(self, world: World, configuration: Any, lease: Lease, records: NodeRecords,
                 alerts: Alerts, manager: ServiceManager, log: Any) -> None:
        self.sentence = self.why = ""        # the last turn's, and the facts behind it
        self.remark = ""                     # of the last reload, for the status
        self.home: Optional[str] = None      # where the scheduler was last known to run well
        self.without_s: Optional[float] = None   # how long none ran before the one that runs
        self.failovers = 0
        self._world = world
        self._configuration = configuration
        self._lease = lease
        self._records = records
        self._alerts = alerts
        self._manager = manager
        self._log = log
        self._last_check = ""                # the last words of checks and starts, for alerts
        self._since = ""                     # UTC text: since when that is the sentence
        self._unanswered: Dict[str, str] = {}   # nodes without a clear answer, and why
        self._strangers: Set[Tuple[str, int, int]] = set()
        self._hard_to_remove: Dict[str, float] = {}   # possible nodes, and since when they wait
        self._runs: Optional[bool] = None    # the scheduler, at the last turn of this reign
        self._waits = False                  # whether it was waited at the last turn
        self._failed_rounds, self._alerted = 0, False

    def stand_by(self) -> None:
        """Another controller is active, or none."""
        self._failed_rounds, self._runs = 0, None

    def begin(self) -> None:
        """A reign begins."""
        record, own = self._lease.record, self._configuration.node_name
        self._waits = False
        self.post("active", "active failover node", why=self._lease.reason)
        self.home = record.active_scheduler_node if record and record.started else None
        if record and self._lease.succeeded:
            self._alerts.post("asfc: {} is the active failover node".format(own), self._report(
                "The controller on {} was lost. The one on {} is active now, in term {}.".format(
                    self._lease.succeeded, own, record.term)))

    def heard(self, reports: Mapping[str, NodeReport]) -> None:
        """All nodes were asked."""
        self._last_check = "\n".join("{}: {}, {}".format(name, report.state, report.reason)
                                     for name, report in sorted(reports.items()))
        self._log.debug("asked all nodes: %s", self._last_check.replace("\n", "; "))
        self._unanswered = {name: report.reason for name, report in reports.items()
                            if not report.intent and report.state == UNKNOWN}
        self._warn_of_other_users(reports)

    def _warn_of_other_users(self, reports: Mapping[str, NodeReport]) -> None:
        """Name each scheduler of another user once: it is neither counted nor stopped."""
        for node, report in sorted(reports.items()):
            for process in report.foreign:
                if (node, process.pid, process.start) not in self._strangers:
                    self._strangers.add((node, process.pid, process.start))
                    self._log.warning(
                        "a scheduler of another user runs on %s (pid %d, uid %d); it is not "
                        "counted and not stopped, see scheduler_user",
                        node, process.pid, process.uid)

    def observed(self, seen: Observation) -> None:
        """What people should know of this observation, whatever is decided by it."""
        self._note_whether_it_runs(seen)
        self._tell_of_nodes_that_stay(seen)
        self._remind(seen)

    def _note_whether_it_runs(self, seen: Observation) -> None:
        """Tell when the scheduler is lost, and that it runs again: after which time without one.

        A new active controller that finds one which nobody has started since it was last seen
        tells of none.
        """
        node = seen.record.active_scheduler_node
        runs = seen.record.started and seen.scheduler_runs()
        elsewhere = not seen.record.started and seen.scheduler_runs()
        if runs and node and not self._runs:
            since, self.without_s = seen.record.alive_at_s, None
            lived_on = self._runs is None and since is not None \
                and all(start.at_s < since for start in seen.record.starts)
            if since is not None and not lived_on:
                self.without_s = round(seen.record.clock_s - since, 1)
            self.post("running", "the scheduler runs on {}".format(node),
                      proof=seen.reports[node].reason, without_scheduler_s=self.without_s)
        elif self._runs and not runs and not elsewhere:
            self.post("lost", "the scheduler is not seen to run any more",
                      why=seen.reason(node) if node else "no node has it")
        self._runs = runs or elsewhere and self._runs

    def _tell_of_nodes_that_stay(self, seen: Observation) -> None:
        """Alert when a node stays possible for W beside the one that has the scheduler."""
        running = seen.runs_on(seen.record.active_scheduler_node or "")
        staying = [node for node in seen.record.possible_nodes[:-1] if running
                   and not seen.proven_stopped(node)]
        self._hard_to_remove = {node: self._hard_to_remove.get(node, seen.now) for node in staying}
        for node, since in self._hard_to_remove.items():
            if seen.now - since >= silence_s(self._configuration.promise_s):
                self._hard_to_remove[node] = float("inf")  # told once
                self._alerts.post("asfc: a scheduler may still run or start on {}".format(node),
                                  self._report("Nothing proves that none runs on {}.".format(
                                      seen.reason(node))))

    def _remind(self, seen: Observation) -> None:
        """Mail of a pause or of drained nodes again and again: they may have been forgotten."""
        paused, drained = seen.record.paused, seen.orders.drained
        before_s, now_s = seen.orders.reminded_s, seen.record.clock_s
        interval_s = self._configuration.reminder_interval
        if not paused and not drained:
            reminded_s = None
        elif before_s is None:
            reminded_s = now_s
        elif not interval_s or now_s - before_s < interval_s:
            return
        else:
            reminded_s = now_s
            words = ["{}. To end that: asfc.py undrain {}".format(one, one.node) for one in drained]
            if paused:
                words.insert(0, "asfc is paused, {}. To end that: asfc.py resume".format(paused))
            self._alerts.post("asfc: a reminder, {}".format(
                "asfc is paused" if paused else "drained: " + ", ".join(
                    one.node for one in drained)), self._report("\n".join(words)))
        if reminded_s != before_s:
            self._records.change_orders(lambda orders: orders._replace(reminded_s=reminded_s))

    def decided(self, decision: Decision, seen: Observation) -> None:
        """What a turn has decided, before it is done."""
        if decision.sentence != self.sentence and self._log.isEnabledFor(logging.DEBUG):
            self._log.debug("observation: %s", seen.to_text())
        failing = decision.healthy is False
        self.tell(decision.sentence, logging.WARNING if failing else logging.INFO)
        self.why = decision.why
        self._count_round(decision, seen)
        waits = decision.sentence.startswith("waiting")
        if waits and not self._waits:
            self.post("waiting", decision.sentence, decision.why)   # once: its numbers change
        self._waits = waits
        if decision.attempt_over == "failed":
            self.post("start_failed", decision.sentence)

    def _count_round(self, decision: Decision, seen: Observation) -> None:
        """Alert once after retry_count_before_alerting failed rounds, and once on recovery."""
        if decision.healthy is None:
            return
        if not decision.healthy:
            self._failed_rounds += 1
            if self._failed_rounds >= self._configuration.retry_count_before_alerting \
                    and not self._alerted:
                self._alerted = True
                self._alerts.post(self._configuration.alert_email_subject, self._report(
                    "No scheduler is known to run, after {} rounds.".format(self._failed_rounds)))
            return
        node = seen.record.active_scheduler_node
        self.failovers += self.home not in (None, node)
        if self._alerted:
            self._alerts.post("asfc: the scheduler runs again on {}".format(node), self._report(
                "The scheduler runs again on {}.".format(node)))
        elif self.home not in (None, node):
            self._alerts.post("asfc: the scheduler has moved to {}".format(node), self._report(
                "The scheduler has moved from {} to {}.".format(self.home, node)))
        self._failed_rounds, self._alerted, self.home = 0, False, node

    def tell_answer(self, verb: str, pair: Pair, report: NodeReport) -> None:
        """What a node answered to a start or a stop."""
        words = report.refused or report.done or report.reason
        level = logging.WARNING if report.refused or not report.answered else logging.INFO
        self._log.log(level, "%s on %s, move %s: %s", verb, report.node, pair, words)
        self._last_check += "\n{} on {}: {}\n{}".format(verb, report.node, words, report.output)

    def post(self, kind: str, what: str, why: str = "", proof: str = "",
             without_scheduler_s: Optional[float] = None) -> None:
        """Write an event into the history, with the next heartbeat."""
        record = self._lease.record
        self._records.post(kind, HistoryEvent(
            self._world.utc_text(), self._configuration.node_name, record.term if record else 0,
            record.move if record else 0, what, why, proof, without_scheduler_s))

    def tell(self, sentence: str, level: int = logging.INFO) -> None:
        """Log a turn's sentence when it has changed; a quiet poll is silent at INFO."""
        self._log.log(logging.DEBUG if sentence == self.sentence else level, sentence)
        if sentence != self.sentence:
            self._manager.tell("", sentence + self.remark)
            self.sentence, self._since = sentence, self._world.utc_text()
        record = self._lease.record
        self._records.say(StatusRecord.bounded(
            self._configuration.node_name, record.term, self._since, sentence,
            self._unanswered) if record and self._lease.active else None)

    def _report(self, headline: str) -> str:
        """The text of an alert: what an operator needs at 3 a.m."""
        record, configuration = self._lease.record, self._configuration
        return "\n".join([
            headline, "",
            "What asfc does: " + (self.sentence or "it has just begun"),
            "Active failover node: {} (term {})".format(
                configuration.node_name, record.term if record else "?"),
            "Active scheduler node: {}".format(record.active_scheduler_node if record else None),
            "Nodes: " + ", ".join(configuration.scheduler_nodes_in_cluster),
            "Cluster: {}".format(record.cluster if record else "?"),
            "Log: " + os.path.join(configuration.logging_dir, configuration.logging_file_name), "",
            "Last answers of the nodes:", self._last_check or "none yet", ""])


class Actuator:
    """Does what was decided, one action after the other, each under a fresh look at the lease."""

    def __init__(self, world: World, configuration: Any, nodes: Any, lease: Lease,
                 records: NodeRecords, life: SignsOfLife, announcer: Announcer,
                 sign: Callable[[], HealthSign], log: Any) -> None:
        self.attempt: Optional[Attempt] = None
        self.raises = 0                      # of the term, in this reign
        self.restarts = 0
        self.command_failures = dict.fromkeys(("query", "start", "stop", "fence_command"), 0)
        self._world = world
        self._configuration = configuration
        self._nodes = nodes
        self._lease = lease
        self._records = records
        self._life = life
        self._announcer = announcer
        self._sign = sign                    # of the scheduler's health, at this moment
        self._log = log
        self._cleaned: Set[Tuple[str, Pair]] = set()
        self._back: Set[str] = set()         # nodes that were left too early, to be listed again

    def stand_by(self) -> None:
        """Another controller is active, or none."""
        self.attempt, self.raises = None, 0

    def begin(self) -> None:
        """A reign begins: what was done in an earlier one does not count."""
        self.attempt, self._cleaned, self._back = None, set(), set()

    def cleaned(self, pair: Pair) -> FrozenSet[str]:
        """The nodes on which a stop was answered in the move of this pair."""
        return frozenset(name for name, of in self._cleaned if of == pair)

    def note_appearance(self, node: str, now: float) -> None:
        """A scheduler runs on the node; it may be the one that was started."""
        if self.attempt and self.attempt.node == node and self.attempt.seen_at is None:
            self.attempt = self.attempt._replace(seen_at=now)

    def perform(self, decision: Decision, seen: Observation) -> bool:
        """Do the actions of a decision on what was seen; whether none of them held it up."""
        attempt = self.attempt
        if not all(self._perform(action, seen) for action in decision.actions):
            return False
        if decision.attempt_over and self.attempt is attempt:
            self.attempt = None
        return True

    def _perform(self, action: Any, seen: Observation) -> bool:
        """Do one action if the lease still allows it; whether the next one may follow."""
        record = self._lease.record
        stamp = self._lease.stamp(record) if record and record.term == seen.record.term else None
        if record is None or stamp is None or not self._lease.may_act():
            self._log.warning("not done, the lease is not mine any more, or not confirmed: %s",
                              action)
            return False
        if isinstance(action, CloseWish):
            return self._close_wish(action.wish)
        if record.paused:
            return False
        if isinstance(action, ChangeRecord):
            return self._change_record(action, seen)
        if isinstance(action, RaiseTerm):
            return self._raise_term(action)
        if isinstance(action, FenceNode):
            return self._fence_node(action, record)
        if isinstance(action, StartScheduler):
            return record.possible_nodes == (action.node,) and self._start(action, stamp)
        return self._stop(action, stamp)

    def _close_wish(self, wish: Wish) -> bool:
        """Its outcome is written with the next heartbeat, and that is due now."""
        if wish.outcome == DONE:
            wish = wish._replace(without_scheduler_s=self._announcer.without_s)
        self._records.change_orders(lambda orders: orders.closed(wish))
        self._announcer.post("wish", "{} is {}".format(wish, wish.outcome), why=wish.why)
        self._world.wake("heartbeat")
        return True

    def _raise_term(self, action: RaiseTerm) -> bool:
        try:
            self.attempt, self._cleaned = None, set()
            won = self._lease.raise_term(action.above)
        except MetadataError as error:
            self._log.warning("the term could not be raised: %s", error)
            return False
        self.raises += int(won)
        if won:
            self._announcer.post("restored", "the metadata was restored: the term was raised",
                                 why="a pair above {} was known".format(action.above))
        return won

    def _fence_node(self, action: FenceNode, record: ClusterRecord) -> bool:
        """Run fence_command; its success is written down, for it holds until the node is seen."""
        configuration, node = self._configuration, action.node
        self._lease.expect_work(configuration.fence_timeout + self._lease.SLACK_S)
        result = self._world.run([Command(
            ("sh", "-c", 'eval "$ASFC_FENCE_COMMAND"'), configuration.fence_timeout,
            environment={"ASFC_NODE": node, "ASFC_CLUSTER": record.cluster,
                         "ASFC_TERM": str(record.term),
                         "ASFC_FENCE_COMMAND": configuration.fence_command})])[0]
        if result.failure():
            self._life.fence_failed(node)
            self.command_failures["fence_command"] += 1
            failed = "fence_command for {} failed".format(node)
            self._announcer.tell("{}, so nothing is known of it: {}".format(
                failed, result.failure()), logging.ERROR)
            self._announcer.post("fence_failed", failed, why=action.why)
            return True
        version = self._life.facts(node, record.pair).version
        vouch = Vouch(node, version, "fence_command on {} has switched it off, term {}".format(
            configuration.node_name, record.pair))
        self._announcer.post("fenced", "fenced {} by fence_command".format(node), why=action.why)
        try:
            return self._lease.update(lambda now: now._replace(vouched=tuple(
                one for one in now.vouched if one.node != node) + (vouch,)))
        except MetadataError as error:
            self._log.warning("the success of fence_command could not be written: %s", error)
            return False

    def _change_record(self, action: ChangeRecord, seen: Observation) -> bool:
        before = seen.record

        def change(record: ClusterRecord) -> Optional[ClusterRecord]:
            if record.paused or (record.pair, record.possible_nodes, record.vouched) != (
                    before.pair, before.possible_nodes, before.vouched):
                return None  # decided on another record: look again
            return record._replace(move=record.move + int(action.new_move), **action.fields)
        try:
            won = self._lease.update(change)
        except MetadataError as error:
            self._log.warning("the cluster record could not be written, nothing is done: %s", error)
            return False
        kept = set(action.fields.get("possible_nodes", before.possible_nodes))
        if won and (kept != set(before.possible_nodes) or action.new_move) \
                and not self._announcer.sentence.startswith("starting"):   # the start tells of it
            self._announcer.post("nodes", self._announcer.sentence, why=self._announcer.why)
        return won and not self._has_come_back(set(before.possible_nodes) - kept, seen)

    def _has_come_back(self, left: Set[str], seen: Observation) -> bool:
        """Whether a node that was left for its silence has written its record meanwhile.

        That controller, just thawed, read before this write that its node is possible, so its
        scheduler lives. One of the two sees the other's write, for each reads after its own.
        """
        views = self._records.views
        self._back = {node for node in left if node in views
                      and views[node].version != seen.facts[node].version
                      and not self._said_stopped(seen.reports.get(node))}
        if not self._back:
            return False
        self.list_again()
        return True

    def list_again(self) -> bool:
        """Make possible again what has come back; whether nothing is left to be done."""
        back = tuple(sorted(self._back))
        if not back:
            return True
        self._log.warning("%s has come back at the last moment: it is a possible node again",
                          ", ".join(back))
        try:
            if self._lease.update(lambda record: record._replace(
                    move=record.move + 1, possible_nodes=back + tuple(
                        node for node in record.possible_nodes if node not in back))):
                self._back = set()
        except MetadataError as error:
            self._log.warning("that could not be written: %s", error)
        return not self._back

    @staticmethod
    def _said_stopped(report: Optional[NodeReport]) -> bool:
        return bool(report and report.answered and report.state == STOPPED)

    def _start(self, action: StartScheduler, stamp: Stamp) -> bool:
        sign = self._sign()
        self.attempt = Attempt(action.node, stamp.pair, self._world.now(), sign.heartbeat,
                               source=sign.source)
        self._lease.expect_work(self._configuration.scheduler_start_timeout
                                + self._configuration.query_timeout + self._lease.SLACK_S)
        self._announcer.post("start", "starting the scheduler on " + action.node, action.why,
                             action.proof)
        self.restarts += action.node == self._announcer.home
        report = self._nodes.start(action.node, stamp)
        if report.refused:
            self.attempt = self.attempt._replace(refused=True)
        self._count_answer("start", stamp.pair, report)
        return True

    def _stop(self, action: StopScheduler, stamp: Stamp) -> bool:
        self._lease.expect_work(self._configuration.stop_timeout_s
                                + self._configuration.query_timeout + self._lease.SLACK_S)
        report = self._nodes.stop(action.node, stamp, action.keep)
        if report.answered:  # else its remnants, if there are any, have to be tried again
            self._cleaned.add((action.node, stamp.pair))
        self._announcer.post("stop", "stopped the scheduler on " + action.node, why=action.why,
                             proof=report.done or report.reason)
        self._count_answer("stop", stamp.pair, report)
        return report.answered

    def _count_answer(self, verb: str, pair: Pair, report: NodeReport) -> None:
        self.command_failures[verb] += not report.answered
        self._announcer.tell_answer(verb, pair, report)


class FailoverController:
    """One node's controller. Each turn observes, decides, acts and records, in this order.

    The heartbeat, the turns, the fence, the look at the own node, the watch over the others, the
    health page, the job table and the mails have loops of their own. Each is a step that returns
    the seconds after which it wants to be called next.
    """
    MOST_TURNS_AT_ONCE = 20   # turns without a wait between them; more would be a circle

    def __init__(self, world: World, configuration: Any, metadata: Any, nodes: Any, lock_id: str,
                 own_gate: Callable[[], Optional[Gate]], log: Any, no_promise: str = "",
                 jobs: Optional[Any] = None) -> None:
        self.lease = Lease(world, configuration, metadata, lock_id, own_gate, log)
        uid = world.user_id(configuration.scheduler_user)
        self.fence = SelfFence(world, configuration, -1 if uid is None else uid)
        self.records = NodeRecords(world, configuration, self.lease.instance, lock_id, self.fence,
                                   no_promise, log)
        self.lease.nodes = self.records
        self.own_node = OwnNode(world, configuration, nodes, self.lease, self.records, log)
        self.health = HealthWatch(world, configuration, log)
        self.jobs = JobWatch(world, configuration, jobs, log)
        self.alerts = Alerts(world, configuration, log)
        self.manager = ServiceManager(world, self.lease)
        self.events = EventCommand(world, configuration, self.lease.instance, log)
        self.records.tell = self.events.post
        self.status = StatusServer(world, configuration,
                                   lambda path: status_page(self, path), log)
        self.announcer = Announcer(world, configuration, self.lease, self.records, self.alerts,
                                   self.manager, log)
        self.node_name: str = configuration.node_name
        self.turns, self.turns_took_s = 0, 0.0
        self.configuration_is_broken = False
        self.fatal: Optional[AsfcError] = None
        self._world = world
        self._configuration = configuration
        self._nodes = nodes
        self._log = log
        self._stop_asked, self._reload_asked = "", False
        self._was_active = False
        self._turns_at_once = 0
        self._main: Tuple[str, int, int, float] = ("", 0, 0, 0.0)   # node, pid, start, first seen
        self._life = SignsOfLife(
            world, configuration, nodes, self.lease, self.records, self.jobs)
        self.actuator = Actuator(world, configuration, nodes, self.lease, self.records, self._life,
                                 self.announcer, self._sign, log)

    def run(self) -> None:
        """Run until a signal asks to stop. Raises RefusedError when the old controller runs."""
        self._world.on_stop_signal(self.stop)
        self._world.on_hangup(self.reload)
        self.own_node.begin()
        self.lease.look()   # a fence deadline may have passed: its one try then has c_m to itself
        loops = {"heartbeat": self._beat, "turn": self.turn, "fence": self.fence.step,
                 "node": self.own_node.step, "watch": self._life.step, "health": self.health.step,
                 "jobs": self.jobs.step, "alerts": self.alerts.step, "events": self.events.step,
                 "status": self.status.step}
        if self._world.notify_socket:
            loops["manager"] = self.manager.step
        self._world.run_loops({name: self._guarded(step) for name, step in loops.items()},
                              awaited=("heartbeat", "turn"))
        if self.fatal:
            raise self.fatal

    def stop(self, why: str) -> None:
        """Ask for an orderly stop: the current commands end, the lease is given up.

        Called by signals, too, and by a second one while the first is in here: that does nothing.
        """
        if self._stop_asked:
            return
        self._stop_asked = why
        self.manager.tell("STOPPING=1", "stopping ({}); the scheduler is left as it is".format(why))
        self._world.wake("turn")

    def reload(self) -> None:
        """Ask to have the configuration read again, between two turns."""
        self._reload_asked = True
        self._world.wake("turn")

    def _guarded(self, step: Callable[[], Optional[float]]) -> Callable[[], Optional[float]]:
        """A step whose unforeseen failure becomes a logged sentence, never a dead loop."""
        told = set()

        def guarded() -> Optional[float]:
            try:
                return step()
            except AsfcError as error:  # it ends this controller, in order
                self.fatal = self.fatal or error
                self.stop(str(error))
            except Exception as error:  # a bug of ours: its traceback is told once
                self._log.error("an error in asfc itself, trying again: %r", error,
                                exc_info=repr(error) not in told)
                told.add(repr(error))
            return self._configuration.retry_interval_s
        return guarded

    # -- the turn

    def turn(self) -> Optional[float]:
        """One turn; returns the seconds until the next one is due, None after an orderly stop."""
        if self._stop_asked:
            self._end()
            return None
        if self._reload_asked:
            self._reload_asked = False
            self._reload()
        began = self._world.now()
        again_s = self._turn_of_the_active() if self.lease.active else self._turn_on_standby()
        self.turns += 1
        self.turns_took_s += self._world.now() - began
        if again_s is None:
            again_s = self._configuration.poll_frequency - (self._world.now() - began)
        elif again_s == 0:
            self._turns_at_once += 1
            if self._turns_at_once > self.MOST_TURNS_AT_ONCE:
                again_s = self._configuration.retry_interval_s
        if again_s > 0:
            self._turns_at_once = 0
        again_s = max(0.0, again_s)
        self.lease.expect_work(again_s + self.lease.SLACK_S)
        self.manager.finished("turn")
        return again_s

    def _reload(self) -> None:
        """Read the configuration again; one that can't be used changes nothing."""
        self.manager.reloading()
        self.lease.expect_work(3 * COMMAND_LIMIT_S + self.lease.SLACK_S)   # Airflow's *_cmd keys
        try:
            changed, waiting, lines = self._configuration.reload()
        except ConfigurationError as error:
            self._log.error("the new configuration can't be used, the old one is kept: %s", error)
            self.announcer.remark = "; the new configuration can't be used: {}".format(error)
            self.configuration_is_broken = True
        else:
            self.configuration_is_broken = False
            self._log.info("the configuration was read again; changed: %s",
                           ", ".join(name for name in changed if name not in waiting) or "nothing")
            for line in lines:
                self._log.warning(line)
            self.announcer.remark = ""
            if waiting:
                self.announcer.remark = "; restart asfc for: {}".format(", ".join(waiting))
                self._log.warning("these keys keep their old values; restart asfc for: %s",
                                  ", ".join(waiting))
            self._log.setLevel(self._configuration.logging_level)
        self.manager.tell("READY=1", self.announcer.sentence + self.announcer.remark)
        for loop in ("heartbeat", "health", "watch", "status"):   # their pauses may be shorter now
            self._world.wake(loop)

    def _end(self) -> None:
        """The commands in flight are over; the heartbeat's loop takes back what was promised."""
        self._log.info("stopping (%s); the scheduler is left as it is", self._stop_asked)
        self.health.ended = self.jobs.ended = self.alerts.ended = self._life.ended = True
        self.events.ended = self.status.ended = True
        self.lease.expect_work(float("inf"))   # the main loop has ended, in order
        if self.lease.active:
            self.announcer.post("released", "gives the lease up",
                                why="its controller is stopped: " + self._stop_asked)
        self.lease.leave()
        for loop in ("health", "jobs", "alerts", "watch", "events", "status"):
            self._world.wake(loop)

    def _beat(self) -> Optional[float]:
        """The heartbeat; when it has ended in order, the fence and the node's loop end, too."""
        again_s = self.lease.beat()
        self.manager.finished("heartbeat")
        if again_s is None:
            self.fence.ended = self.own_node.ended = self.manager.ended = True
            for loop in ("fence", "node", "manager"):
                self._world.wake(loop)
        return again_s

    def _turn_on_standby(self) -> Optional[float]:
        self._was_active = False
        self.actuator.stand_by()
        self.announcer.stand_by()
        record = self.lease.record
        if record is None:
            self.announcer.tell("standby: the metadata is not known yet")
        elif record.instance == self.lease.instance:
            return None  # a claim of mine is just being confirmed
        elif not record.holder:
            self.announcer.tell("standby: nobody is active yet")
        else:
            self.announcer.tell("standby: {} is active in term {}".format(
                record.holder, record.term))
        return None

    def _turn_of_the_active(self) -> Optional[float]:
        if not self._was_active:
            self._begin()
        if not self.lease.may_act():
            self.announcer.tell("waiting: my heartbeat is not confirmed, so I do nothing")
            return self._configuration.retry_interval_s
        if not self.actuator.list_again():
            return self._configuration.retry_interval_s
        seen = self._observe()
        if not self.lease.may_act() or seen is None:
            return 0.0
        if self._life.is_cut_off():
            self._stand_back()
            return None
        self.announcer.observed(seen)
        if seen.scheduler_runs():
            self.lease.scheduler_runs()
        decision = decide(seen, self._configuration)
        self.announcer.decided(decision, seen)
        if not self.actuator.perform(decision, seen):
            return self._configuration.retry_interval_s
        return decision.again_s

    def _begin(self) -> None:
        """The first turn of a reign."""
        self._was_active = True
        self.actuator.begin()
        self._life.begin()
        self.announcer.begin()

    def _observe(self) -> Optional[Observation]:
        """Ask all nodes at the same time; None when the lease was lost meanwhile."""
        configuration, record = self._configuration, self.lease.record
        stamp = self.lease.stamp(record) if record else None
        if record is None or stamp is None:
            return None
        names = sorted(set(configuration.scheduler_nodes_in_cluster) | set(record.possible_nodes))
        self.lease.expect_work(configuration.query_timeout + self.lease.SLACK_S)
        reports = self._nodes.query(names, stamp)
        self.actuator.command_failures["query"] += sum(
            not one.answered for one in reports.values())
        self.announcer.heard(reports)
        known = {name: self._life.best_report(reports[name], stamp) for name in names}
        now, node = self._world.now(), record.active_scheduler_node
        alive_s = self._follow_process(now, node, known.get(node or ""))
        return Observation(
            now, record._replace(clock_s=self.lease.clock_s()), self.lease.instance, known,
            self.actuator.attempt, self._sign(), alive_s, self.actuator.cleaned(record.pair),
            {name: self._life.facts(name, stamp.pair) for name in names}, self.lease.fell_back,
            self.actuator.raises, self._database_away_s(now), self.records.orders)

    def _database_away_s(self, now: float) -> Optional[float]:
        failed_at = [self.jobs.failed_at]
        if self._configuration.metadata_service_type == "SQLMetadataService":   # the same database
            failed_at.append(self.lease.failed_at)
        return min((now - at for at in failed_at if at is not None), default=None)

    def _stand_back(self) -> None:
        """No node answers, not even the own one, and the others live: leave the lease to them."""
        stand_back_s = 2 * self._configuration.heartbeat_timeout
        self.announcer.tell(
            "no node answers me, while the others' records move: I give the lease up and stand "
            "back for {:.0f} s".format(stand_back_s), logging.ERROR)
        self.announcer.post("gave_up", "gave the lease up",
                            why="no node answers, while the others' records move")
        self.lease.release(stand_back_s)

    def _sign(self) -> HealthSign:
        return best_sign(self.jobs.sign(), self.health.sign())

    def _follow_process(self, now: float, node: Optional[str],
                        report: Optional[NodeReport]) -> float:
        """How long the main process on the active scheduler node has been seen, in seconds."""
        if not node or not report or report.state != RUNNING:
            return 0.0
        pid, start = report.mains[0][:2] if report.mains else (0, 0)
        if self._main[:3] != (node, pid, start):
            self._main = (node, pid, start, now)
        self.actuator.note_appearance(node, now)
        return now - self._main[3]

    # -- for the status over HTTP

    def is_healthy(self) -> bool:
        """Whether this controller works: its main loop goes on, and the metadata answers."""
        return self.lease.is_answered() and self.lease.overdue_s() <= 0 and not self._stop_asked

    def scheduler_runs(self) -> Dict[str, bool]:
        """Whether a scheduler runs on each node whose controller has said so lately."""
        return self._life.runs_by_records()


class DryRun:
    """Decides each poll as if it were the active controller, and only tells what it would do.

    It reads the metadata and asks the nodes with a verb's look. So it changes no gate, takes no
    lease and writes no record; it may run beside the controllers. What it can't see is what an
    active controller remembers: a start that is being watched, remnants that were stopped.
    """

    def __init__(self, world: World, configuration: Any, metadata: Any, nodes: Any, log: Any,
                 jobs: Optional[Any] = None, path: Optional[str] = None) -> None:
        self.record: Optional[ClusterRecord] = None
        self.orders = NO_ORDERS
        self.views: Dict[str, NodeView] = {}   # this and the next are read by SignsOfLife
        self.read_at = 0.0
        self.health = HealthWatch(world, configuration, log)
        self.jobs = JobWatch(world, configuration, jobs, log)
        self._world = world
        self._configuration = configuration
        self._metadata = metadata
        self._nodes = nodes
        self._log = log
        self._path = path                      # of the file for the last observation
        self._life = SignsOfLife(world, configuration, nodes, self, self, self.jobs)
        self._seen_version: Optional[int] = None
        self._seen_at = world.now()            # when this version of the record was first seen
        self._main: Tuple[Tuple[Any, ...], float] = ((), 0.0)
        self._told: Tuple[str, ...] = ()
        self._stop_asked = ""

    def run(self) -> None:
        """Run until a signal asks to stop."""
        self._world.on_stop_signal(self.stop)
        self._world.run_loops({"turn": self.turn, "health": self.health.step,
                               "jobs": self.jobs.step}, awaited=("turn",))

    def stop(self, why: str) -> None:
        self._stop_asked = why
        self.health.ended = self.jobs.ended = True
        for loop in ("turn", "health", "jobs"):
            self._world.wake(loop)

    def turn(self) -> Optional[float]:
        """Observe, decide and tell; returns the seconds until the next turn, None at the end."""
        if self._stop_asked:
            return None
        began = self._world.now()
        try:
            seen = self.observe()
        except MetadataError as error:
            self._tell(("the metadata service failed: {}".format(error),), logging.WARNING)
            return self._configuration.retry_interval_s
        decision = decide(seen, self._configuration)
        self._tell((decision.sentence,) + tuple(
            "would " + action_in_words(action) for action in decision.actions),
            logging.WARNING if decision.healthy is False else logging.INFO)
        self._save(seen)
        return max(0.0, self._configuration.poll_frequency - (self._world.now() - began))

    def observe(self) -> Observation:
        """What the active controller would see now. Raises MetadataError."""
        sent_at = self._world.now()
        records: Mapping[str, Record] = self._metadata.read_all()
        self.read_at = sent_at
        self._take_in(records)
        record = self._record_to_judge()
        names = sorted(set(self._configuration.scheduler_nodes_in_cluster)
                       | set(record.possible_nodes))
        stamp = Stamp(record.cluster, record.pair, record.instance)
        reports = {name: self._life.best_report(self._as_if_gated(report, stamp), stamp)
                   for name, report in self._nodes.look(names).items()}
        now = self._world.now()
        record = record._replace(clock_s=record.clock_s + now - self._seen_at)
        return Observation(
            now, record, record.instance, reports, None,
            best_sign(self.jobs.sign(), self.health.sign()),
            self._alive_s(now, reports.get(record.active_scheduler_node or "")), frozenset(),
            {name: self._life.facts(name, stamp.pair) for name in names}, orders=self.orders)

    def _take_in(self, records: Mapping[str, Record]) -> None:
        now, found = self._world.now(), records.get(CLUSTER)
        for name, one in records.items():
            node = name[len(NODE_PREFIX):]
            if name.startswith(NODE_PREFIX):
                self.views[node] = view_of(node, one, self.views.get(node), now)
        self.record = ClusterRecord.from_text(found.value) if found else None
        self.orders = Orders.of(records)
        if found and found.version != self._seen_version:
            self._seen_version, self._seen_at = found.version, now

    def _record_to_judge(self) -> ClusterRecord:
        """The record; before there is one, and after it was cleared, every node is possible."""
        record = self.record or ClusterRecord(cluster="none", term=1, instance="dry-run")
        if record.possible_nodes:
            return record
        known = list(self._configuration.scheduler_nodes_in_cluster) + sorted(self.views)
        return record._replace(possible_nodes=tuple(collections.OrderedDict.fromkeys(known)))

    @staticmethod
    def _as_if_gated(report: NodeReport, stamp: Stamp) -> NodeReport:
        """An answer to a look, taken for one to a query: with the node's gate at our pair."""
        if not report.answered or report.refused:
            return report
        return report._replace(gate=Gate(stamp.pair, stamp.instance, stamp.cluster, report.node))

    def _alive_s(self, now: float, report: Optional[NodeReport]) -> float:
        if not report or report.state != RUNNING:
            return 0.0
        main = (report.node,) + tuple(process[:2] for process in report.mains[:1])
        if main != self._main[0]:
            self._main = (main, now)
        return now - self._main[1]

    def _tell(self, sentences: Tuple[str, ...], level: int) -> None:
        """Log what is decided when it has changed; a quiet poll is silent at INFO."""
        level = logging.DEBUG if sentences == self._told else level
        self._told = sentences
        for sentence in sentences:
            self._log.log(level, "dry run: %s", sentence)

    def _save(self, seen: Observation) -> None:
        if not self._path:
            return
        try:
            self._world.write_text(self._path, seen.to_text() + "\n", durable=False)
        except OSError as error:
            self._log.error("the observation can't be written to %s: %s", self._path,
                            error.strerror or error)


###############################################################################
# The demo ####################################################################
###############################################################################

DEMO_SCHEDULER = """\
#!{python}
# A stand-in for `airflow scheduler`: it does nothing, until its directory is gone.
import os, sys, time
home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.exists(home + "/broken"):
    sys.exit("this stand-in for Airflow was broken by the demo")
with open(home + "/pids", "a") as pids:
    pids.write("%d\\n" % os.getpid())
while os.path.exists(home):
    time.sleep(0.1)
"""

DEMO_SSH = """\
#!/bin/sh
# A stand-in for ssh: the last two arguments are the node and the command.
while [ $# -gt 2 ]; do shift; done
[ ! -e {directory}/"$1"/off ] || {{ echo "ssh: connect to $1: No route to host" >&2; exit 255; }}
cd {directory}/"$1" || exit 255
HOME=$PWD PATH={directory}/"$1"/bin:{directory}/bin:{path} SHELL=/bin/sh exec sh -c "$2"
"""

DEMO_PS = """\
#!/bin/sh
# A stand-in for ps: of all processes it shows those of the demo's node alone, so nothing else on
# this machine can be taken for a scheduler or be signalled; and those that ask, up to process 1.
{ps} "$@" | awk -v home="$HOME/" -v asking=$PPID '
    {{ line[NR] = $0; pid[NR] = $1; parent[$1] = $2 }}
    END {{
        for (p = asking; p in parent; p = parent[p]) shown[p] = 1
        for (i = 1; i <= NR; i++) if ((pid[i] in shown) || index(line[i], home)) print line[i]
    }}'
"""

DEMO_CONTROLLER = """\
import runpy, sys
asfc = runpy.run_path(sys.argv[1], run_name="asfc")
sys.exit(asfc["main"](sys.argv[3:], asfc["DemoWorld"](sys.argv[2])))
"""

DEMO_CONFIGURATION = """\
[database]
sql_alchemy_conn = sqlite:///{directory}/metadata.db
[scheduler_failover]
scheduler_nodes_in_cluster = a, b
node_name = {node}
poll_frequency = 1
heartbeat_timeout = 8
scheduler_restart_sleep_time = 2
scheduler_restart_budget = 6
logging_dir = {directory}/{node}/log
ssh_command = {directory}/bin/ssh
alert_to_email =
"""


class DemoWorld(World):
    """The door of a controller of the demo: it sees no scheduler but those of its node.

    A node that fences itself ends each scheduler of its user that it sees, and here is but one
    machine.
    """

    def __init__(self, home: str) -> None:
        super().__init__()
        self._home = home

    def processes(self) -> List[LocalProcess]:
        """All but the schedulers of others."""
        return [process for process in super().processes() if not scheduler_kind(process.words)
                or any(self._home in word for word in process.words)]


class Demo:
    """Two controllers, a and b, on this machine, with a SQLite file and a stand-in scheduler.

    Both are the real program as child processes; Airflow, ssh and the view of processes are
    stand-ins.
    The demo plays the operator and the faults: it is the one part that uses the system directly.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.began = time.monotonic()
        self.controllers: Dict[str, subprocess.Popen] = {}
        self.lines: List[str] = []   # all that the controllers logged, each with its node
        self.read = 0                # how many of them the play has gone past

    def play(self) -> bool:
        """The whole play; whether everything came as it should."""
        self.lay_out()
        self.start_controller("a")
        if not self.wait_for("[a term 1] active in term 1", 15):
            return False
        self.start_controller("b")
        if not self.wait_for("the scheduler runs on a", 15):
            return False
        self.tell("kill -9 of the scheduler on a")
        if not self.kill_scheduler("a") or not self.wait_for("started on a", 15) \
                or not self.wait_for("the scheduler runs on a", 15):
            return False
        self.tell("kill -9 of the active controller, on a; the scheduler lives on")
        scheduler = self.pid_on("a", 5)
        self.controllers["a"].kill()
        if not self.wait_for("[b term 2] active in term 2", 20) or not self.start_again("a", 2) \
                or self.pid_on("a", 5) != scheduler:
            return False
        return self.switch_over() and self.lose_power() and self.break_airflow()

    def switch_over(self) -> bool:
        self.tell("python3 asfc.py switchover --to b, on a")
        verb = self.run("a", ["switchover", "--to", "b"], subprocess.PIPE, subprocess.STDOUT)
        said = verb.communicate()[0].strip().splitlines()
        self.tell("    " + (said or ["it said nothing"])[-1])
        return verb.returncode == 0 and self.wait_for("no action: I am active, the scheduler "
                                                      "runs on b", 15)

    def lose_power(self) -> bool:
        """The node of the scheduler and of the active controller is gone, without a word."""
        self.tell("node b loses power, with the active controller and the scheduler on it")
        off = os.path.join(self.directory, "b", "off")
        open(off, "w").close()
        self.controllers["b"].kill()
        if not self.kill_scheduler("b") or not self.wait_for("active in term 3", 20) \
                or not self.wait_for("starting the scheduler on a", 30) \
                or not self.wait_for("no action: I am active, the scheduler runs on a", 15):
            return False
        self.tell("node b has power again")
        os.remove(os.path.join(self.directory, "b", ".asfc", "fence"))   # void after a boot
        os.remove(off)
        return self.start_again("b", 3)

    def break_airflow(self) -> bool:
        self.tell("Airflow on a is broken, and its scheduler is killed")
        open(os.path.join(self.directory, "a", "broken"), "w").close()
        return self.kill_scheduler("a") and \
            self.wait_for("moving the scheduler to b from a", 30) and \
            self.wait_for("no action: I am active, the scheduler runs on b", 15)

    def lay_out(self) -> None:
        """Write the stand-ins and the two configurations."""
        texts = {"bin/ssh": DEMO_SSH.format(directory=self.directory, path=os.environ["PATH"]),
                 "bin/ps": DEMO_PS.format(ps=find_program("ps"))}
        for node in "ab":
            texts[node + "/bin/airflow"] = DEMO_SCHEDULER.format(python=sys.executable)
            texts[node + "/airflow/airflow.cfg"] = DEMO_CONFIGURATION.format(
                directory=self.directory, node=node)
        for name, text in texts.items():
            path = os.path.join(self.directory, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(text)
            os.chmod(path, 0o755)

    def run(self, node: str, words: List[str], stdout: int, stderr: int) -> subprocess.Popen:
        """This program as a child, on a node."""
        home = os.path.join(self.directory, node)
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith("AIRFLOW")}
        environment.update(HOME=home, SHELL="/bin/sh", PATH=":".join(
            [home + "/bin", self.directory + "/bin", os.environ["PATH"]]))
        return subprocess.Popen(
            [sys.executable, "-c", DEMO_CONTROLLER, os.path.abspath(__file__), home + "/"] + words,
            env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            universal_newlines=True)

    def start_controller(self, node: str) -> None:
        self.tell("python3 asfc.py start, on " + node)
        self.controllers[node] = child = self.run(
            node, ["start"], subprocess.DEVNULL, subprocess.PIPE)
        threading.Thread(target=self.follow, args=(child,), daemon=True).start()

    def start_again(self, node: str, term: int) -> bool:
        """Have the controller back on its node: without one, the node takes no starts."""
        fence = os.path.join(self.directory, node, ".asfc", "fence")
        deadlines = {World().read_text(fence)}
        self.start_controller(node)
        if not self.wait_for("[{} term {}] standby: ".format(node, term), 15):
            return False
        end = time.monotonic() + 10
        while time.monotonic() < end:
            deadlines.add(World().read_text(fence))
            if len(deadlines) > 3:  # renewed a few times, so the active one has read of it
                return True
            time.sleep(0.05)
        self.tell("the promise of {} to fence itself was not renewed".format(node))
        return False

    def follow(self, child: subprocess.Popen) -> None:
        """Print what a controller logs, as it comes."""
        for line in child.stderr or ():
            line = re.sub(r"^\S+ \S+ [A-Z]+ ", "", line.rstrip())
            self.lines.append(line)
            self.tell("    " + line)

    def tell(self, sentence: str) -> None:
        print("{:5.1f} s  {}".format(time.monotonic() - self.began, sentence), flush=True)

    def wait_for(self, words: str, timeout_s: float) -> bool:
        """Whether a controller logs these words, after the words that were last waited for."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for place in range(self.read, len(self.lines)):
                if words in self.lines[place]:
                    self.read = place + 1
                    return True
            time.sleep(0.05)
        self.tell("this was expected within {:g} s and did not come: {}".format(timeout_s, words))
        return False

    def pid_on(self, node: str, timeout_s: float) -> int:
        """The process of the stand-in scheduler that lives on a node, 0 when none does."""
        end = time.monotonic() + timeout_s
        while True:
            living = [pid for pid in self.pids(node) if self.lives(pid, node)]
            if living or time.monotonic() >= end:
                return living[-1] if living else 0
            time.sleep(0.05)

    def kill_scheduler(self, node: str) -> bool:
        """SIGKILL; whether there was one. (The number 0 would be the demo's own process group.)"""
        pid = self.pid_on(node, 5)
        if pid:
            os.kill(pid, signal.SIGKILL)
        else:
            self.tell("no scheduler runs on {}, though one should".format(node))
        return bool(pid)

    def pids(self, node: str) -> List[int]:
        try:
            with open(os.path.join(self.directory, node, "pids")) as file:
                return [int(line) for line in file.read().split()]
        except OSError:
            return []

    def lives(self, pid: int, node: str) -> bool:
        """Whether that process is still the demo's own: its number may be another's by now."""
        try:
            with open("/proc/{}/cmdline".format(pid)) as file:
                return os.path.join(self.directory, node) in file.read()
        except OSError:
            return False

    def clean_up(self) -> None:
        """End all that the demo started, the scripts on its nodes too, and remove its directory."""
        import shutil
        for child in self.controllers.values():
            child.kill()
            child.wait()
        end = time.monotonic() + 10
        while self.end_processes() and time.monotonic() < end:
            time.sleep(0.05)
        shutil.rmtree(self.directory, ignore_errors=True)

    def end_processes(self) -> int:
        """Send SIGKILL to whatever has its home in the demo's directory; returns how many."""
        home, found = os.fsencode("HOME={}/".format(self.directory)), 0
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/{}/environ".format(name), "rb") as file:
                    if any(one.startswith(home) for one in file.read().split(b"\0")):
                        found += 1
                        os.kill(int(name), signal.SIGKILL)
            except OSError:   # another user's, or over
                pass
        return found


def find_program(name: str) -> str:
    """The path of a program. Raises AsfcError when there is none."""
    import shutil
    path = shutil.which(name)
    if not path:
        raise AsfcError("the program {} is needed and not on PATH".format(name))
    return path


def verb_demo(world: World, arguments: Any) -> int:
    """Show on this one machine, without Airflow and without root, what asfc does.

    Two controllers with a SQLite file and a stand-in scheduler run in a temporary directory. The
    scheduler is killed, then the active controller, which joins again as a standby. The scheduler
    is moved by switchover; its node loses power; then the start is broken on one node. A timeline
    is printed; it takes about a minute and leaves nothing behind.
    """
    import tempfile
    directory = tempfile.mkdtemp(prefix="asfc-demo-")
    demo = Demo(directory)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        well = demo.play()
        demo.tell("the demo is over: {}".format(
            "one scheduler ran all the time it could" if well else "something did not work"))
    finally:
        demo.clean_up()
    return 0 if well else 1


###############################################################################
# The command line ############################################################
###############################################################################

RULER = "-" * 60


def verb_version(world: World, arguments: Any) -> int:
    """Print the version."""
    print("Scheduler Failover Controller Version: {}".format(__version__))
    return 0


def verb_init(world: World, arguments: Any) -> int:
    """Append the section [scheduler_failover], with every key explained, to airflow.cfg.

    The file keeps its mode and owner, and is replaced as a whole or not at all. Where the section
    is there already nothing is written. With --venv PATH the scheduler's start activates that
    virtualenv.
    """
    path = arguments.config or find_airflow_cfg(world)
    print(append_default_section(world, path, arguments.venv or ""))
    return 0


def verb_get_current_host(world: World, arguments: Any) -> int:
    """Print this host's name, as scheduler_nodes_in_cluster has to name it."""
    print("current host: {}".format(world.host_name()))
    return 0


def verb_test_connection(world: World, arguments: Any) -> int:
    """Test every node and the metadata service, and say what to do about each failure.

    A node is asked by the very way the controller asks it. The metadata service is read, and a
    scratch record is written twice, on condition of its version. Exit status 1 when a test failed.
    """
    configuration = load_configuration(world, arguments)
    answers = Nodes(world, configuration).test_connection(configuration.scheduler_nodes_in_cluster)
    for node in configuration.scheduler_nodes_in_cluster:
        well, sentence = answers[node]
        print("Testing Connection for host '{}': {}".format(node, sentence))
    metadata = metadata_service(world, configuration)
    well = all(answer[0] for answer in answers.values())
    try:
        print("Testing the metadata service: " + try_metadata(metadata))
    except MetadataError as error:
        print("Testing the metadata service: FAILED: {}".format(error))
        well = False
    return 0 if well else 1


def try_metadata(metadata: MetadataService) -> str:
    """Read, and write a scratch record on condition. Returns a sentence; raises MetadataError."""
    name, value = "scratch", '{"format": 1}'
    before = metadata.read_all().get(name)
    version = before.version if before else None
    if not metadata.write(name, value, version) or metadata.write(name, value, version):
        raise MetadataError("{}: a conditional write did not do what it must (another "
                            "test_connection at the same time?)".format(metadata.describe()))
    return "{}: read and conditional write succeeded. {}".format(metadata.describe(),
                                                                  metadata.check())


def verb_is_scheduler_running(world: World, arguments: Any) -> int:
    """Ask every node whether a scheduler runs there, all at the same time; a line a node.

    Exit status: 0 one scheduler runs; 1 none runs, each node said so; 3 it is not known, for a
    node gave no clear answer and none was seen to run; 4 more than one runs.
    """
    configuration = load_configuration(world, arguments)
    names = configuration.scheduler_nodes_in_cluster
    reports = Nodes(world, configuration).look(names)
    words = {RUNNING: "True", STOPPED: "False", UNKNOWN: "Unknown"}
    for node in names:
        print("Testing to see if scheduler is running on host '{}': {} ({})".format(
            node, words[reports[node].state], reports[node].reason))
    running = sum(max(1, len(reports[node].mains)) for node in names
                  if reports[node].state == RUNNING)
    if running:
        return 0 if running == 1 else 4
    return 1 if all(reports[node].state == STOPPED for node in names) else 3


def verb_metadata(world: World, arguments: Any) -> int:
    """Print what the metadata service holds: who is active, where the scheduler runs, and more.

    With --json one JSON object, for scripts. Before the first start the values are None (null).
    """
    configuration = load_configuration(world, arguments)
    records = metadata_service(world, configuration).read_all()
    record, nodes, now = cluster_record(records), node_records(records), world.utc_text()
    differ = [sentence for _, other in nodes.values()
              for sentence in differences_from_here(configuration, other)]
    worst = worst_cases(configuration)
    if arguments.json:
        print(json.dumps(metadata_fields(records, now, differ, worst), indent=2))
        return 0
    print_metadata(record, now, nodes, Orders.of(records))
    for sentence in differ:
        print("differs: " + sentence)
    print("{}\nat the longest, with the configuration of this host (s: the scheduler's own "
          "start):".format(RULER))
    for case in worst:
        print("  {}".format(case))
    return 0


def cluster_record(records: Mapping[str, Record]) -> Optional[ClusterRecord]:
    """The record `cluster`, None before there is one. Raises MetadataError for a newer one."""
    found = records.get(CLUSTER)
    return ClusterRecord.from_text(found.value) if found else None


def node_records(records: Mapping[str, Record]) -> "Dict[str, Tuple[int, NodeRecord]]":
    """All nodes' records that can be understood, with their versions, by the nodes' names."""
    found: Dict[str, Tuple[int, NodeRecord]] = collections.OrderedDict()
    for name, one in sorted(records.items()):
        record = NodeRecord.from_text(one.value) if name.startswith(NODE_PREFIX) else None
        if record:
            found[name[len(NODE_PREFIX):]] = (one.version, record)
    return found


def history_events(records: Mapping[str, Record]) -> List[HistoryEvent]:
    found = records.get(HISTORY)
    return HistoryEvent.all_from_text(found.value) if found else []


def metadata_fields(records: Mapping[str, Record], now: str, differ: Sequence[str],
                    worst: Sequence[WorstCase]) -> Dict[str, Any]:
    """All that is known, for scripts."""
    record = cluster_record(records)
    fields: Dict[str, Any] = collections.OrderedDict([
        ("active_failover_node", record.holder or None if record else None),
        ("active_scheduler_node", record.active_scheduler_node if record else None),
        ("last_failover_heartbeat", record.heartbeat_at or None if record else None),
        ("current_timestamp", now),
        ("version", records[CLUSTER].version if record else None)])
    if record:
        fields["cluster"] = dict(json.loads(record.to_text()), vouched=[
            dict(vouch._asdict()) for vouch in record.vouched])
    fields["nodes"] = {node: dict(json.loads(one.to_text()), record_version=version,
                                  silence_s=None if one.promise_s is None
                                  else silence_s(one.promise_s))
                       for node, (version, one) in node_records(records).items()}
    fields["orders"] = json.loads(Orders.of(records).to_text())
    fields["differences"] = list(differ)
    fields["worst_cases"] = [dict(case._asdict()) for case in worst]
    fields["history"] = [dict(event._asdict()) for event in history_events(records)]
    return fields


def print_metadata(record: Optional[ClusterRecord], now: str,
                   nodes: Mapping[str, Tuple[int, NodeRecord]],
                   orders: Orders = NO_ORDERS) -> None:
    """The original's four lines with their labels, then the rest for people."""
    print("{0}\nMetadata of asfc\n{0}".format(RULER))
    print("active_failover_node: {}".format(record.holder or None if record else None))
    print("active_scheduler_node: {}".format(record.active_scheduler_node if record else None))
    print("last_failover_heartbeat: {}".format(record.heartbeat_at or None if record else None))
    print("{}\ncurrent_timestamp: {}".format(RULER, now))
    if record is None:
        return
    print("{}\ncluster: {}\nterm: {}\nmove: {}".format(
        RULER, record.cluster, record.term, record.move))
    print("paused: {}".format(record.paused or None))
    print("possible_nodes: {}".format(", ".join(record.possible_nodes) or None))
    for drain in orders.drained:
        print("drained: {}".format(drain))
    if orders.open_wish:
        print("under way: {}".format(orders.open_wish))
    for vouch in record.vouched:
        lapsed = vouch.version != nodes.get(vouch.node, (None,))[0]
        print("vouched: {}, {}{}".format(
            vouch.node, vouch.by, "; lapsed, for its record has changed" if lapsed else ""))
    print("heartbeat_timeout: {:g} s".format(record.heartbeat_timeout))
    for failed in record.failed:
        left_s = failed.until_s - record.clock_s
        print("failed_node: {}, {}; {}".format(failed.node, failed.why, "passed over for {:.0f} s "
              "more".format(left_s) if left_s > 0 else "may be tried again"))
    print("starts: {}".format(", ".join("{} {:.0f} s ago".format(
        start.node, record.clock_s - start.at_s) for start in record.starts[-5:]) or None))
    print(RULER)
    for node, (_, one) in nodes.items():
        print("node {}: {}".format(node, node_in_words(one)))


def node_in_words(record: NodeRecord) -> str:
    """What a node's record says, for people."""
    promise = "promises nothing: {}".format(record.no_promise or "its controller is older") \
        if record.promise_s is None else \
        "fences itself within F = {:g} s, so W = {:g} s of silence are proof".format(
            record.promise_s, round(silence_s(record.promise_s), 2))
    return "{}, {}; {}; asfc {}; written at {}{}".format(
        record.state, record.reason, promise, record.version, record.written_at,
        record.fenced and "; last fenced: " + record.fenced)


def verb_history(world: World, arguments: Any) -> int:
    """Print what happened: when, which node's controller tells it, its term and move, what and why.

    A start tells its proof that no other scheduler ran. Where one runs again, the measured time
    without a scheduler stands there. The last 200 events are kept. With --json a list of objects,
    with --last N the last N events.
    """
    configuration = load_configuration(world, arguments)
    events = history_events(metadata_service(world, configuration).read_all())
    if arguments.last is not None:
        events = events[-arguments.last:] if arguments.last else []
    if arguments.json:
        print(json.dumps([dict(event._asdict()) for event in events], indent=2))
        return 0
    for event in events:
        print_event(event)
    if not events and arguments.last != 0:
        print("No event has been written down.")
    return 0


def reasons_of(event: HistoryEvent) -> List[Tuple[str, str]]:
    """What an event tells beside its headline: a label and its words each."""
    found = [(label, words) for label, words in (("why", event.why), ("proof", event.proof))
             if words]
    if event.without_scheduler_s is not None:
        found.append(("time", "{:.1f} s without a scheduler".format(event.without_scheduler_s)))
    return found


def print_event(event: HistoryEvent) -> None:
    print("{}  {:<6} {}  {}".format(
        event.at, str(Pair(event.term, event.move)), event.node, event.what))
    for label, words in reasons_of(event):
        print("{:>33} {}".format(label + ":", words))
    sys.stdout.flush()


# -- the cluster at a glance


# The exit statuses and words of monitoring plugins (Nagios, Icinga and their like).
FINE, DEGRADED, DOWN, NOT_KNOWN = 0, 1, 2, 3
LEVELS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def verb_status(world: World, arguments: Any) -> int:
    """Show the cluster at a glance: each node, the assignment, what the active controller says.

    Only the metadata is asked, so any node answers, and at once; where a controller seems not to
    write any more, or a clock is off, it watches for some seconds whether its record changes.
    Exit status, as monitoring plugins have it: 0 all is fine; 1 degraded: no standby, a node whose
    controller is silent, which does not answer the active one or promises nothing, or asfc is
    paused; 2 no scheduler or no active controller; 3 unknown, for the metadata can't be read.
    With --watch it is shown anew every 2 s, or every SECONDS, until Ctrl-C.
    """
    beats: Optional[Beats] = None
    level = None
    try:
        while True:
            try:
                configuration = load_configuration(world, arguments)
                beats = beats or Beats(world, configuration, metadata_service(world, configuration))
                beats.read()
                level = show_status(world, arguments, judge_status(beats, configuration))
            except AsfcError as error:
                level = show_that_nothing_is_known(arguments, error)
            sys.stdout.flush()
            if arguments.watch is None:
                return level
            world.sleep(arguments.watch)
    except KeyboardInterrupt:
        if level is None:
            raise
        return level


class Beats:
    """Which controllers still write their records, whatever the wall clocks show.

    A record counts as fresh at once where its UTC text says so. A text that looks too old, or lies
    ahead, may be a clock that is off: then it is read again until the version has changed, or has
    not for i + c_m + r.
    """
    SLACK_S = 1.5   # the texts are in whole seconds, and clocks that are set agree in one

    def __init__(self, world: World, configuration: Any, metadata: MetadataService) -> None:
        self.records: Dict[str, Record] = {}
        self.cluster: Optional[ClusterRecord] = None
        self.nodes: Dict[str, NodeRecord] = {}
        self.now = ""            # UTC text
        self.fresh_s = 0.0       # a controller that lives writes within that
        self._world = world
        self._configuration = configuration
        self._metadata = metadata
        self._read_at = 0.0
        self._seen: Dict[str, Tuple[int, float, bool]] = {}   # version, since when, seen to change

    def read(self) -> None:
        """Read until each record can be judged. Raises MetadataError."""
        while True:
            self._read_once()
            if all(self.is_fresh(name) is not None for name in self._watched()):
                return
            self._world.sleep(RETRY_INTERVAL_S)

    def _read_once(self) -> None:
        self._read_at, is_first = self._world.now(), not self._seen
        self.records = self._metadata.read_all()
        self.now, now = self._world.utc_text(), self._world.now()
        self.cluster = cluster_record(self.records)
        self.nodes = {node: one for node, (_, one) in node_records(self.records).items()}
        self.fresh_s = watch_s(self._configuration, self.records)
        for name, record in self.records.items():
            before = self._seen.get(name)
            if before is None or before[0] != record.version:
                self._seen[name] = (record.version, now, not is_first)

    def shown(self) -> List[str]:
        """The nodes to be shown: the list, possible ones, and others whose controllers write."""
        names = list(self._configuration.scheduler_nodes_in_cluster)
        names += list(self.cluster.possible_nodes) if self.cluster else []
        names += [node for node in sorted(self.nodes) if self.is_fresh(NODE_PREFIX + node)]
        return list(collections.OrderedDict.fromkeys(names))

    def _watched(self) -> List[str]:
        """The records whose freshness matters; one that was left in order is what it is."""
        names = [CLUSTER] if self.cluster and self.cluster.holder else []
        names += [NODE_PREFIX + node for node in self.shown()
                  if node not in self.nodes or self.nodes[node].no_promise != STOPPED_IN_ORDER]
        return [name for name in names if name in self.records]

    def is_fresh(self, name: str) -> Optional[bool]:
        """Whether a record is still written; None as long as that can't be told."""
        if name not in self.records:
            return False
        _, since, is_seen_to_change = self._seen[name]
        unchanged_s = self._read_at - since
        if is_seen_to_change or unchanged_s >= self.fresh_s:
            return unchanged_s < self.fresh_s
        return True if self.clocks_agree(name) and not self._is_doubted(name) else None

    def _is_doubted(self, name: str) -> bool:
        """Where two nodes tell of a scheduler, the one's record may be older than its stop."""
        running = [NODE_PREFIX + node for node, one in self.nodes.items() if one.state == RUNNING]
        return name in running and len(running) > 1

    def clocks_agree(self, name: str) -> bool:
        age_s = self.age_s(name)
        return age_s is not None and -self.SLACK_S <= age_s <= self.fresh_s + self.SLACK_S

    def age_s(self, name: str) -> Optional[float]:
        """How old a record is by its UTC text and this host's clock; None where there is none."""
        node = self.nodes.get(name[len(NODE_PREFIX):])
        text = node.written_at if node else ""
        if name == CLUSTER:
            text = self.cluster.heartbeat_at if self.cluster else ""
        written_s, now_s = utc_seconds(text), utc_seconds(self.now)
        return None if written_s is None or now_s is None else now_s - written_s

    def age_in_words(self, name: str) -> str:
        """Like "2 s"; by the version alone where the clocks don't agree."""
        age_s, fresh = self.age_s(name), self.is_fresh(name)
        if age_s is not None and (age_s > self.fresh_s if not fresh else self.clocks_agree(name)):
            return span_in_words(max(0.0, age_s))
        return "{}{:.0f} s".format("<" if fresh else ">", self.fresh_s)


def utc_seconds(text: str) -> Optional[float]:
    """The seconds of a UTC text as World.utc_text writes it; None for another text."""
    import calendar
    try:
        return float(calendar.timegm(time.strptime(text, "%Y-%m-%d %H:%M:%S UTC")))
    except ValueError:
        return None


def span_in_words(seconds: float) -> str:
    """A time in the unit that suits it, of six letters at most."""
    for unit, length_s, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * length_s:
            return "{:.0f} {}".format(seconds / length_s, unit)
    return "{:.0f} d".format(seconds / 86400)


class NodeStatus(NamedTuple):
    """A node in the table; a text is empty where nothing is known."""
    node: str
    role: str                      # active, standby, stopped, silent, stuck, none
    heard: str                     # the highest term.move that its gate has heard of
    scheduler: str                 # running, stopped, starting, unknown
    since: str                     # UTC text, of a scheduler that runs
    heartbeat_age: str
    promise_s: Optional[float]
    version: str
    problems: Tuple[str, ...]      # each makes the cluster a degraded one
    remarks: Tuple[str, ...]


class ClusterStatus(NamedTuple):
    level: int                             # FINE, DEGRADED, DOWN
    problems: Tuple[Tuple[int, str], ...]  # each with its level
    headline: str
    record: Optional[ClusterRecord]
    nodes: Tuple[NodeStatus, ...]
    says: Optional[StatusRecord]           # the active controller's last sentence
    last_event: Optional[HistoryEvent]
    worst: Tuple[WorstCase, ...]
    now: str                               # UTC text


def judge_status(beats: Beats, configuration: Any) -> ClusterStatus:
    """How the cluster is, as far as its records tell."""
    record, events = beats.cluster, history_events(beats.records)
    found = beats.records.get(STATUS)
    says = StatusRecord.from_text(found.value) if found else None
    if says and record and (says.node, says.term) != (record.holder, record.term):
        says = says._replace(unanswered={})   # of a reign that is over
    nodes = tuple(judge_node(node, beats, configuration, says, events) for node in beats.shown())
    problems = cluster_problems(beats, configuration, nodes)
    problems += [(DEGRADED, "{}: {}".format(one.node, problem))
                 for one in nodes for problem in one.problems]
    level = max([FINE] + [problem[0] for problem in problems])
    headline = "; ".join(text for one, text in problems if one == level and level) or \
        "the scheduler runs on {}, {} is active".format(", ".join(
            one.node for one in nodes if one.scheduler == RUNNING), record and record.holder)
    return ClusterStatus(level, tuple(problems), headline, record, nodes, says,
                         events[-1] if events else None, tuple(worst_cases(configuration)),
                         beats.now)


def cluster_problems(beats: Beats, configuration: Any,
                     nodes: Sequence[NodeStatus]) -> List[Tuple[int, str]]:
    """What is wrong with the cluster as a whole, each with its level."""
    record, found = beats.cluster, []
    if record is None:
        found.append((DOWN, "no controller has ever been active"))
    elif not record.holder:
        found.append((DOWN, "no controller is active"))
    elif not beats.is_fresh(CLUSTER):
        found.append((DOWN, "{} was active and sends no heartbeat".format(record.holder)))
    running = [one.node for one in nodes if one.scheduler == RUNNING]
    starting = [one.node for one in nodes if one.scheduler == STARTING]
    if len(running) > 1:
        found.append((DOWN, "schedulers run on {}".format(" and ".join(running))))
    elif not running:
        found.append((DOWN, "the scheduler is only being started on {}".format(
            ", ".join(starting)) if starting else "no scheduler is known to run"))
    if record and record.paused:
        found.append((DEGRADED, "asfc is paused {}".format(record.paused)))
    if len(configuration.scheduler_nodes_in_cluster) > 1 \
            and not any(one.role == "standby" for one in nodes):
        found.append((DEGRADED, "no node is on standby"))
    return found


STARTING = "starting"


def judge_node(node: str, beats: Beats, configuration: Any, says: Optional[StatusRecord],
               events: Sequence[HistoryEvent]) -> NodeStatus:
    """A node's line in the table, with what is to be said of it."""
    name, one, cluster = NODE_PREFIX + node, beats.nodes.get(node), beats.cluster
    role = role_of(node, beats)
    lives = role in ("active", "standby", "stuck")
    waits = bool(says and cluster and says.sentence.startswith("waiting")
                 and (says.node, says.term) == (cluster.holder, cluster.term))
    scheduler = scheduler_on(node, beats, configuration, lives, waits)
    problems = problems_of(node, role, beats)
    remarks = remarks_of(node, beats, configuration, lives and scheduler not in (RUNNING, STOPPED))
    if says and node in says.unanswered:   # where its controller is lost, that is problem enough
        (problems if lives else remarks).append(
            "the active controller gets no clear answer: {}".format(says.unanswered[node]))
    return NodeStatus(
        node, role, str(one.gate.pair) if one and one.gate else "", scheduler,
        running_since(node, events) if scheduler == RUNNING else "",
        beats.age_in_words(name) if name in beats.records else "",
        one.promise_s if one else None, one.version if one else "", tuple(problems),
        tuple(remarks + drain_remarks(node, beats.records)))


def role_of(node: str, beats: Beats) -> str:
    """One word for what the controller of a node does, as far as its record tells."""
    name, one, cluster = NODE_PREFIX + node, beats.nodes.get(node), beats.cluster
    if name not in beats.records:
        return "none"
    if one and one.no_promise == STOPPED_IN_ORDER:
        return "stopped"
    if not beats.is_fresh(name):
        return "silent"
    if cluster and cluster.holder == node:
        return "active" if beats.is_fresh(CLUSTER) else "stuck"
    return "standby"


def scheduler_on(node: str, beats: Beats, configuration: Any, lives: bool, waits: bool) -> str:
    """What is known of a node's scheduler: by its own record, else by what the active one saw, as
    long as it does not say itself that it waits."""
    one, cluster = beats.nodes.get(node), beats.cluster
    if one and lives and one.state != UNKNOWN:
        return one.state
    if one and lives and one.intent:
        return STARTING
    turn_s = configuration.poll_frequency + 2 * configuration.query_timeout \
        + configuration.metadata_limit_s
    if cluster and cluster.active_scheduler_node == node and beats.is_fresh(CLUSTER) and not waits \
            and cluster.alive_at_s is not None and cluster.clock_s - cluster.alive_at_s <= turn_s:
        return RUNNING
    return UNKNOWN


def running_since(node: str, events: Sequence[HistoryEvent]) -> str:
    """When the scheduler that runs on a node was seen first, by the history; '' if it is forgotten.

    A new active controller tells of it anew; a start, a stop or another node's goes before.
    """
    since = ""
    for event in reversed(events):
        if event.what == "the scheduler runs on {}".format(node):
            since = event.at
        elif re.match("start|stopp|fenc|the scheduler " if since
                      else "starting the scheduler on |the scheduler ", event.what):
            break   # one that was started since then has not been told of yet
    return since


def problems_of(node: str, role: str, beats: Beats) -> List[str]:
    """What is wrong with a node's controller, and what helps."""
    one, cluster, name = beats.nodes.get(node), beats.cluster, NODE_PREFIX + node
    found = {
        "none": ["no controller has ever run here: start asfc on it"],
        "silent": ["its controller is silent, its last record is {} old: is it off, cut off or "
                   "killed?".format(beats.age_in_words(name))],
        "stuck": ["it holds the lease and sends no heartbeat: see its log"],
        "stopped": ["its controller was stopped{}: start it again".format(
            one and " at " + one.written_at or "")]}.get(role, [])
    if role in ("active", "standby") and not (one and one.promise_s is not None) \
            and not (cluster and cluster.paused):
        found.append("it promises nothing, so its silence would prove nothing: {}".format(
            one.no_promise if one else "its record can't be understood, is asfc newer there?"))
    if one and len(one.mains) > 1:
        found.append("{} schedulers run here: pids {}".format(
            len(one.mains), ", ".join(str(process.pid) for process in one.mains)))
    return found


def remarks_of(node: str, beats: Beats, configuration: Any, is_unclear: bool) -> List[str]:
    """What else is worth a line about a node."""
    one, record, name, found = beats.nodes.get(node), beats.cluster, NODE_PREFIX + node, []
    if node not in configuration.scheduler_nodes_in_cluster:
        found.append("it is not in scheduler_nodes_in_cluster of this host")
    if one and is_unclear:
        found.append("its scheduler: " + one.reason)
    for failed in record.failed if record else ():
        left_s = failed.until_s - record.clock_s if record else 0
        if failed.node == node and left_s > 0:
            found.append("passed over for {} more: {}".format(span_in_words(left_s), failed.why))
    found += [vouch.by for vouch in (record.vouched if record else ()) if vouch.node == node]
    if record and node in record.possible_nodes and node != record.active_scheduler_node:
        found.append("a scheduler may still be alive or start here: the opposite is not proved yet")
    if one and one.fenced:
        found.append("fenced itself last at {}".format(one.fenced.partition(": ")[0]))
    if beats.is_fresh(name) and beats.age_s(name) is not None and not beats.clocks_agree(name):
        found.append("its clock and this host's differ by {}".format(
            span_in_words(abs(beats.age_s(name) or 0))))
    return found + (differences_from_here(configuration, one) if one else [])


def drain_remarks(node: str, records: Mapping[str, Record]) -> List[str]:
    """What is to be said of a node that is drained."""
    try:
        drain = Orders.of(records).drain_of(node)
    except MetadataError:
        return []   # of a newer version: the log tells of it
    return [str(drain)[len(node) + 4:]] if drain else []


def show_status(world: World, arguments: Any, status: ClusterStatus) -> int:
    """Print a status as JSON, or as a text of 80 columns; returns its level."""
    if arguments.json:
        print(json.dumps(status_fields(status), indent=None if arguments.watch else 2))
        return status.level
    is_terminal = sys.stdout.isatty()
    environment = world.environment()
    colourful = is_terminal and "NO_COLOR" not in environment and environment.get("TERM") != "dumb"
    lines = "\n".join(status_lines(status, colourful))
    if arguments.watch:
        lines = "\x1b[H\x1b[2J" + lines if is_terminal else lines + "\n"
    print(lines)
    return status.level


def show_that_nothing_is_known(arguments: Any, error: AsfcError) -> int:
    """One line, and the exit status of a monitoring plugin that knows nothing."""
    if arguments.json:
        print(json.dumps({"state": LEVELS[NOT_KNOWN], "exit_status": NOT_KNOWN,
                          "problems": [str(error)]}))
    print("{}: {}".format(LEVELS[NOT_KNOWN], error), file=sys.stderr)
    return NOT_KNOWN


def status_fields(status: ClusterStatus) -> Dict[str, Any]:
    """A status for scripts."""
    record = status.record
    return collections.OrderedDict([
        ("state", LEVELS[status.level]), ("exit_status", status.level),
        ("problems", [text for _, text in status.problems]),
        ("active_failover_node", record.holder or None if record else None),
        ("active_scheduler_node", record.active_scheduler_node if record else None),
        ("term", record.term if record else None), ("move", record.move if record else None),
        ("possible_nodes", list(record.possible_nodes) if record else []),
        ("paused", record.paused or None if record else None),
        ("current_timestamp", status.now),
        ("nodes", [dict(one._asdict()) for one in status.nodes]),
        ("says", status.says and dict(status.says._asdict())),
        ("last_event", status.last_event and dict(status.last_event._asdict())),
        ("worst_cases", [dict(case._asdict()) for case in status.worst])])


WIDTH = 80
COLOURS = ("32", "33", "31")   # of a level: green, yellow, red


def status_lines(status: ClusterStatus, colourful: bool) -> List[str]:
    """A status for people."""
    def paint(level: int, line: str) -> str:
        return "\x1b[{}m{}\x1b[0m".format(COLOURS[level], line) if colourful else line
    lines = [paint(status.level, line) for line in paragraph(
        LEVELS[status.level] + ":", status.headline, len(LEVELS[status.level]) + 2)] + [""]
    lines.append(node_columns("NODE", "ROLE", "TERM", "SCHEDULER", "SINCE (UTC)", "BEAT",
                              "PROMISE", "VERSION")[0])
    for one in status.nodes:
        promise = "none" if one.promise_s is None else "{:.1f} s".format(one.promise_s)
        lines += [paint(DEGRADED if one.problems else FINE, line) for line in node_columns(
            one.node, one.role, one.heard, one.scheduler, one.since[5:16], one.heartbeat_age,
            promise if one.heartbeat_age else "", one.version)]
        for remark in one.problems + one.remarks:
            lines += paragraph("    -", remark, 6)
    return lines + [""] + story_lines(status)


def node_columns(node: str, *columns: str) -> List[str]:
    """A line of the table; a name that is too long for its column has a line of its own."""
    line = "{:13} {:7} {:7} {:9} {:11} {:>6} {:>7}  {}".format(
        node if len(node) <= 13 else "", *columns).rstrip()
    return [line] if len(node) <= 13 else [node, line]


def story_lines(status: ClusterStatus) -> List[str]:
    """What stands below the table."""
    record, says, event, lines = status.record, status.says, status.last_event, []
    if record:
        lines += paragraph("assigned to:", "{}, term {}; possible: {}".format(
            record.active_scheduler_node or "no node", record.pair,
            ", ".join(record.possible_nodes) or "all"))
        lines += paragraph("paused:", record.paused or "no")
    if says:
        over = record is None or says.term != record.term or "active" not in [
            one.role for one in status.nodes if one.node == says.node]
        lines += paragraph("says:", says.sentence)
        lines += paragraph("", "({}, term {}, since {}{})".format(
            says.node, says.term, says.since, "; it is not active now" if over else ""))
    if event:
        lines += paragraph("last event:", "{} {} {}: {}".format(
            event.at, Pair(event.term, event.move), event.node, event.what))
        for label, words in reasons_of(event):
            lines += paragraph("", "{}: {}".format(label, words))
    lines += ["at the longest (s: the scheduler's own start):"]
    for case in status.worst:
        lines += paragraph("  -", str(case), 4)
    return lines


def paragraph(label: str, words: str, indent: int = 13) -> List[str]:
    """A text of 80 columns beside its label; what has no blank is not broken."""
    import textwrap
    return textwrap.wrap(words, WIDTH, initial_indent=label.ljust(indent),
                         subsequent_indent=" " * indent, break_long_words=False,
                         break_on_hyphens=False)


# -- whether all is as it should be


PROBLEM, REMARKABLE = "PROBLEM", "WARNING"


class Finding(NamedTuple):
    """Something that is not as it should be."""
    level: str     # PROBLEM: asfc can't do there what it is for; or REMARKABLE
    where: str     # a node's name, or what it is about
    text: str
    remedy: str


class Timing(NamedTuple):
    """A time that has to stay below a limit: measured, or as it follows from the settings."""
    what: str
    seconds: Optional[float]   # None: there was no answer
    limit_s: float
    limit: str                 # what the limit is
    measured: bool = True


def verb_check(world: World, arguments: Any) -> int:
    """Look for all that keeps asfc from working, now or in a failover, and say what to do about it.

    Looked at are the configuration, the metadata service, each node by ssh and every other node
    from there, programs and rights, the start and stop commands, units that fight asfc, a scheduler
    that somebody else has started, other nodes' settings, and the times that this takes. Nothing is
    changed by it; run it on each node. Exit status: 0 no problem, though there may be warnings;
    1 a problem; 78 the configuration can't be used.
    """
    configuration = load_configuration(world, arguments, need_own_name=True)
    checkup = Checkup(world, configuration, metadata_service(world, configuration),
                      Nodes(world, configuration))
    checkup.run()
    problems = [one for one in checkup.findings if one.level == PROBLEM]
    if arguments.json:
        print(json.dumps(collections.OrderedDict([
            ("problems", len(problems)), ("facts", checkup.facts),
            ("findings", [dict(one._asdict()) for one in checkup.findings]),
            ("timings", [dict(one._asdict()) for one in checkup.timings])]), indent=2))
    else:
        print("\n".join(checkup_lines(checkup)))
    return 1 if problems else 0


class Checkup:
    """Asks and measures, and keeps what it has found."""
    SAMPLES = 3

    def __init__(self, world: World, configuration: Any, metadata: MetadataService,
                 nodes: Nodes) -> None:
        self.findings: List[Finding] = []
        self.timings: List[Timing] = []
        self.facts: List[str] = []
        self._world = world
        self._configuration = configuration
        self._metadata = metadata
        self._nodes = nodes
        self._records: Dict[str, NodeRecord] = {}
        self._looks: Dict[str, NodeExamination] = {}

    def run(self) -> None:
        """Look at everything; takes some seconds, and longer where a node hangs."""
        configuration = self._configuration
        self.facts.append("configuration: {}; nodes: {}".format(
            configuration.path, ", ".join(configuration.scheduler_nodes_in_cluster)))
        for text in configuration.warnings:
            self._find(REMARKABLE, "configuration", text, "")
        for text in configuration.notes:
            self._find(REMARKABLE, "configuration", text, "take the old text out of the file")
        self.findings += judge_commands(configuration)
        self._look_at_metadata()
        self._look_at_nodes()
        self._look_from_nodes()
        self._judge_records()
        self.timings += inequalities(configuration)
        self.findings += judge_timings(self.timings)

    def _find(self, level: str, where: str, text: str, remedy: str) -> None:
        self.findings.append(Finding(level, where, text, remedy))

    def _look_at_metadata(self) -> None:
        """Read it several times; nothing is written, test_connection does that."""
        configuration, longest = self._configuration, 0.0
        try:
            for _ in range(self.SAMPLES + 2):
                began = self._world.now()
                records = self._metadata.read_all()
                longest = max(longest, self._world.now() - began)
            self.facts.append("metadata: {}; {}".format(
                self._metadata.describe(), self._metadata.check()))
            self._records = {node: one for node, (_, one) in node_records(records).items()}
            cluster_record(records)
        except MetadataError as error:
            self._find(PROBLEM, "metadata", str(error), "see to the database, and to its client "
                       "on this host; without it no controller does anything")
        self.timings.append(Timing("metadata operation", longest or None,
                                   configuration.metadata_limit_s, "m, by heartbeat_timeout"))

    def _look_at_nodes(self) -> None:
        names = self._configuration.scheduler_nodes_in_cluster
        samples = [self._nodes.examine(names)]
        self._looks = samples[0]
        well = [node for node in names if self._looks[node].report.answered]
        samples += [self._nodes.examine(well) for _ in range(self.SAMPLES - 1)]
        for node in names:
            one = self._looks[node]
            if one.lacks:
                self._find(PROBLEM, node, one.lacks, "" if one.report.answered else
                           "until it answers, no scheduler is started, stopped or seen there by "
                           "this node")
            self.timings.append(Timing(
                "query of {}".format(node), max(sample[node].seconds for sample in samples
                                                  if node in sample) if node in well else None,
                self._configuration.query_timeout, "query_timeout"))
        self.findings += judge_directories(self._looks, self._records)

    def _look_from_nodes(self) -> None:
        """Have each node that answers look around, and ask every other one by its own ssh."""
        names = [node for node, one in self._looks.items() if one.report.answered]
        peer_limit_s = self._configuration.query_timeout + 2
        limit_s = 10 + peer_limit_s * -(-len(self._looks) // 4)
        answers = self._nodes.inspect({node: self._parameters(node, peer_limit_s)
                                       for node in names}, limit_s)
        hosts: Dict[str, str] = {}
        for node in names:
            answer, report = answers[node], self._looks[node].report
            if answer is None:
                self._find(PROBLEM, node, "it did not answer the script of `check` within {:g} s"
                           .format(limit_s), "see what hangs there: sudo, systemctl, ssh?")
                continue
            other = hosts.setdefault(" ".join(answer.lines.get("host", [])), node)
            if other != node:
                self._find(PROBLEM, node, "it is the same host as {}".format(other),
                           "name each host once in scheduler_nodes_in_cluster; see /etc/hosts")
            try:
                self.findings += judge_inspection(node, answer, report, self._nodes)
            except ValueError as error:
                self._find(PROBLEM, node, "its answer is damaged: {}".format(error), "try again")

    def _parameters(self, node: str, peer_limit_s: float) -> Dict[str, str]:
        """What the script of `check` is told on a node."""
        configuration, names = self._configuration, list(self._looks)
        place = names.index(node)
        peers = [name for name in names[place + 1:] + names[:place] if Nodes.NAME.match(name)]
        if node == configuration.node_name:
            peers = []   # the looks were its own
        start, stop = (configuration.airflow_scheduler_start_command,
                       configuration.airflow_scheduler_stop_command)
        programs = ["{}={}".format(name, first_program(text)) for name, text in (
            ("airflow_scheduler_start_command", start), ("airflow_scheduler_stop_command", stop),
            ("airflow_scheduler_status_command", configuration.airflow_scheduler_status_command))]
        return {
            "state_dir": configuration.state_dir, "logging_dir": configuration.logging_dir,
            "own_log": configuration.airflow_scheduler_log_file.rpartition("/")[0] or "/",
            "cfg": configuration.path,
            "clients": " ".join(getattr(self._metadata, "CLIENTS", ())),
            "ssh_program": shlex.split(configuration.ssh_command)[0] if len(names) > 1 else "",
            "programs": " ".join(one for one in programs if not one.endswith("=")),
            "sudo_start": sudo_words(start), "sudo_stop": sudo_words(stop),
            "probe": "" if start else "\n".join(own_start_lines(
                configuration, self._world.environment())),
            "unit": " ".join(systemd_unit(start)) or OLD_UNIT,
            "pids": " ".join(str(main.pid) for main in self._looks[node].report.mains),
            "peers": " ".join(peers), "peer_limit": "{:.0f}".format(peer_limit_s),
            "ssh": " ".join(shlex.quote(word) for word in self._nodes.ssh("", False)[:-1])}

    def _judge_records(self) -> None:
        """What the nodes' own controllers have written about themselves."""
        configuration = self._configuration
        why = why_no_promise(self._world, configuration)
        if why:
            self._find(REMARKABLE, configuration.node_name, "it would promise nothing: " + why,
                       "remove the reason, or know that its silence will prove nothing")
        for node in configuration.scheduler_nodes_in_cluster:
            one = self._records.get(node)
            if one is None or node == configuration.node_name:
                continue
            for sentence in differences(common_settings(configuration), one,
                                        configuration.node_name):
                self._find(REMARKABLE, node, sentence, "make them the same, and restart the "
                           "controllers one by one")
            known = one.no_promise in ("asfc is paused", "on_metadata_loss = keep",
                                       STOPPED_IN_ORDER) or "its unit" in one.no_promise and any(
                found.where == node and "unit" in found.text for found in self.findings)
            if one.promise_s is None and not known:
                self._find(REMARKABLE, node, "it promises nothing: " + one.no_promise,
                           "remove the reason, or know that its silence proves nothing")


OLD_UNIT = "airflow-scheduler"   # the unit that Airflow ships


def first_program(text: str) -> str:
    """The program that a command of the operator begins with; '' where that is not plain."""
    words = text.split()
    if words[:1] == ["sudo"]:
        words = sudo_words(text).split()
        while words and words[0].startswith("-"):
            words = words[2 if words[0] in ("-u", "-g", "-C", "-p") else 1:]
    plain = words and re.match(r"[A-Za-z0-9_./+-]+$", words[0])
    return words[0] if plain and words[0] not in ("export", "source", ".", "cd", "set") else ""


def sudo_words(text: str) -> str:
    """What follows sudo in a command that is nothing but sudo and plain words; '' for others."""
    plain = re.match(r"sudo((?: +[A-Za-z0-9_./:@+=-]+)+) *$", text)
    return plain.group(1).strip() if plain else ""


def judge_commands(configuration: Any) -> List[Finding]:
    """What can be told of the start and stop commands from their texts alone, and of alerts."""
    start, stop = (configuration.airflow_scheduler_start_command,
                   configuration.airflow_scheduler_stop_command)
    found: List[Finding] = []
    key = "airflow_scheduler_start_command"
    if start.split()[:1] == ["sudo"] and re.search(r"\bairflow +scheduler\b", start) \
            and not re.search(r"(^| )(-D|--daemon)( |$)|&\s*$", start):
        found.append(Finding(PROBLEM, key, "it begins with sudo and stays in the foreground, so it "
                             "would be ended after scheduler_start_timeout",
                             "let it return: add --daemon, or let a unit run it"))
    units = systemd_unit(start), systemd_unit(re.sub(r"\bstop\b", "start", stop))
    if start and units[0] != units[1]:
        found.append(Finding(REMARKABLE, key, "start and stop don't use the same unit: {!r} and "
                             "{!r}".format(start, stop or "asfc's own stop"), "let both use it"))
    if not configuration.alert_to_email:
        found.append(Finding(REMARKABLE, "alert_to_email", "nobody is told when no scheduler can "
                             "be started", "set it, then use send_test_email"))
    return found


def judge_directories(looks: Mapping[str, NodeExamination],
                      records: Mapping[str, NodeRecord]) -> List[Finding]:
    """Whether each node has a state directory of its own, the one that its controller uses."""
    found: List[Finding] = []
    owners: Dict[str, str] = {}
    for node, look in looks.items():
        directory, record = look.report.directory, records.get(node)
        other = owners.setdefault(directory, node) if directory else node
        if other != node:
            found.append(Finding(
                PROBLEM, node, "its state directory is the one of {}, too".format(other),
                "a local directory for each; if it was copied, remove it on one while no scheduler "
                "runs there"))
        if record and look.report.answered and record.state_dir_id \
                and directory != record.state_dir_id:
            found.append(Finding(
                PROBLEM, node, "its state directory, as a login by ssh finds it, is not its own "
                "controller's ({})".format(record.state_dir),
                "the same home directory for both, or an absolute state_dir"))
    return found


def judge_inspection(node: str, answer: NodeAnswer, report: NodeReport,
                     nodes: Nodes) -> List[Finding]:
    """What a node's answer to the script of `check` tells."""
    found: List[Finding] = []
    configuration = nodes.configuration

    def tell(word: str, level: str, text: str, remedy: str) -> None:
        for line in answer.lines.get(word, []):
            first, _, rest = line.partition(" ")
            found.append(Finding(level, node, text.format(first, rest), remedy))
    tell("unwritable", PROBLEM, "{0}: {1} can't be made or written there",
         "give that directory to the user that runs asfc")
    tell("secrets", REMARKABLE, "airflow.cfg holds passwords, and everybody there can read it "
         "(mode {0})", "chmod 600 " + configuration.path)
    tell("missing", PROBLEM, "{0}: there is no {1} on the PATH of a login by ssh there",
         "install it there")
    tell("denied", PROBLEM, "{0}: sudo does not allow it there without a password: {1}",
         "a line with NOPASSWD by `visudo -f /etc/sudoers.d/asfc`, as the README has it")
    for line in answer.lines.get("airflow", []):
        found.append(Finding(PROBLEM, node, "asfc's own start would fail there: {}".format(line),
                             "set airflow_virtualenv, or put airflow on the PATH of a login by "
                             "ssh"))
    for line in sorted(answer.lines.get("peer", [])):
        peer, status, said = (line + "  ").split(" ", 2)
        if status != "well":
            why = nodes.why_no_answer(peer, CommandResult(
                None if status == "124" else int(status), "", said,
                "no answer in time" if status == "124" else ""))
            found.append(Finding(PROBLEM, node, "from there {} can't be asked: {}".format(
                peer, why), "mend that on {0}: when {0} is active, it has to reach {1}".format(
                    node, peer)))
    own = " ".join(systemd_unit(configuration.airflow_scheduler_start_command)[-1:])
    for word in ("unit", "runs"):
        for line in answer.lines.get(word, []):
            found += judge_unit(node, line, own, word == "runs")
    for line in answer.lines.get("process", []):
        found += judge_parent(node, line, configuration, own)
    for process in report.foreign:
        found.append(Finding(REMARKABLE, node, "a scheduler of another user (uid {}) runs there, "
                             "pid {}: it is neither counted nor stopped".format(
                                 process.uid, process.pid), "stop it, or set scheduler_user"))
    return found


def judge_unit(node: str, line: str, own: str, runs: bool) -> List[Finding]:
    """A unit that would bring the scheduler back, or start it at boot; `line` is systemctl's.

    `own` is the unit of the start command; `runs`: the unit's main process is the scheduler.
    """
    unit, *shown = line.split()
    facts = dict(one.partition("=")[::2] for one in shown)
    if facts.get("LoadState") != "loaded":
        return [Finding(PROBLEM, node, "airflow_scheduler_start_command starts the unit {}, and "
                        "there is none".format(unit), "install the unit there")] if own else []
    if runs and unit == own:
        return []   # it was told already
    found = []
    if facts.get("UnitFileState", "").startswith("enabled"):
        found.append(Finding(PROBLEM, node, "the unit {} is enabled: systemd would start a "
                             "scheduler at boot, whatever asfc does".format(unit),
                             "sudo systemctl disable {}".format(unit)))
    if (own or runs) and facts.get("Restart", "no") != "no":
        found.append(Finding(PROBLEM, node, "the unit {} has Restart={}: systemd would bring the "
                             "scheduler back where asfc has just left".format(
                                 unit, facts["Restart"]),
                             "a drop-in with Restart=no, as the README has it"))
    return found


def judge_parent(node: str, line: str, configuration: Any, own: str) -> List[Finding]:
    """A scheduler that somebody else than asfc has started; `line` is pid, parent, group, words."""
    pid, parent, group, words = (line + "   ").split(" ", 3)
    unit = group.rpartition("/")[2][:-len(".service")] if group.endswith(".service") else ""
    mine = not unit or unit == own or re.match(r"(asfc|sshd?)($|[@.-])", unit)
    sudo = configuration.airflow_scheduler_start_command.split()[:1] == ["sudo"]
    raised = parent in ("0", "1") or re.match(
        r"asfc|(\S*/)?(systemd|init|tini|dumb-init)\b|(\S*/)?(ba|da|z|k|c|tc|fi)?sh -c ", words) \
        or sudo and words.startswith("sudo")
    if mine and raised:
        return []
    return [Finding(
        REMARKABLE, node, "the scheduler that runs there, pid {}, was not started by asfc: {}"
        .format(pid, "it is in the unit {}.service".format(unit) if not mine
                else "its parent is pid {}, {}".format(parent, words.strip() or "?")),
        "asfc adopts it, but what started it must not start another: disable that")]


def inequalities(configuration: Any) -> List[Timing]:
    """The inequalities on which the safety of the lease rests. No wrong one would be loaded."""
    h, c_m = configuration.heartbeat_timeout, configuration.metadata_limit_s
    i, window_s = configuration.heartbeat_interval_s, configuration.acting_window_s
    return [Timing("{:g} x (2/3 h + m)".format(CLOCK_RATE_LIMIT),
                   CLOCK_RATE_LIMIT * (window_s + c_m), h, "h = heartbeat_timeout", False),
            Timing("2 x (i + m + {:g} s)".format(RETRY_INTERVAL_S),
                   2 * (i + c_m + RETRY_INTERVAL_S), window_s, "2/3 h", False)]


def judge_timings(timings: Sequence[Timing]) -> List[Finding]:
    """Measured times that leave no margin: a busy day needs twice as long at least."""
    return [Finding(
        REMARKABLE, "timing", "a {} took {:.2f} s, more than half of its limit, {:g} s ({})".format(
            one.what, one.seconds, one.limit_s, one.limit),
        "find out why it is slow, or make {} longer, on all nodes".format(
            "query_timeout" if one.limit == "query_timeout" else "heartbeat_timeout"))
        for one in timings
        if one.measured and one.seconds is not None and one.seconds > one.limit_s / 2]


def checkup_lines(checkup: Checkup) -> List[str]:
    """What was found, for people, in 80 columns."""
    lines: List[str] = []
    for fact in checkup.facts:
        label, _, words = fact.partition(": ")
        lines += paragraph(label + ":", words, 15)
    lines += [""] + timing_columns("TIME", "AT MOST", "LIMIT", "TO SPARE", "")
    for one in checkup.timings:
        took, spare = ("none", "") if one.seconds is None else (
            "{:.2f} s".format(one.seconds), "{:.2f} s".format(one.limit_s - one.seconds))
        lines += timing_columns(one.what, took, "{:.2f} s".format(one.limit_s), spare, one.limit)
    lines.append("")
    for finding in sorted(checkup.findings, key=lambda one: one.level):
        lines += paragraph(finding.level, "{}: {}".format(finding.where, finding.text), 9)
        lines += paragraph("      ->", finding.remedy, 9) if finding.remedy else []
    problems = sum(one.level == PROBLEM for one in checkup.findings)
    warnings = len(checkup.findings) - problems
    return lines + ["{} problem{}, {} warning{}".format(
        problems, "s" * (problems != 1), warnings, "s" * (warnings != 1))]


def timing_columns(what: str, *columns: str) -> List[str]:
    """A line of the table of times; a name that is too long for it has a line of its own."""
    line = "{:24} {:>8} {:>8} {:>9}  {}".format(what if len(what) <= 24 else "", *columns).rstrip()
    return [line] if len(what) <= 24 else [what, line]


def verb_clear_metadata(world: World, arguments: Any) -> int:
    """Forget where the scheduler may run: the next active controller asks every node anew.

    Refused while a controller is active, unless --force is given. Terms are never rewound.
    """
    configuration = load_configuration(world, arguments)
    metadata = metadata_service(world, configuration)
    found = metadata.read_all().get(CLUSTER)
    record = ClusterRecord.from_text(found.value) if found else None
    if record and record.holder and not arguments.force:
        raise RefusedError(
            "{} is active in term {}, its last heartbeat was at {}: stop the controllers first, or "
            "use --force when they are gone".format(record.holder, record.term,
                                                    record.heartbeat_at))
    metadata.clear()
    if record:
        note_in_history(world, configuration, metadata, record, "cleared",
                        "the metadata was cleared", "by " + person(world))
    print("The metadata is cleared." if found else "There was no metadata.")
    return 0


# -- what a person says to the cluster


def verb_confirm_dead(world: World, arguments: Any) -> int:
    """Vouch that an unreachable node is powered off, so its scheduler may be started elsewhere.

    WARNING: if a scheduler still runs there, there will be two. It is asked twice, unless --yes is
    given. Refused when the node is not a possible node, when it answers, or when its own controller
    still writes its record. The word lapses when the node is seen again.
    """
    configuration = load_configuration(world, arguments)
    confirm_dead(world, configuration, metadata_service(world, configuration),
                 Nodes(world, configuration), arguments.node, arguments.yes)
    return 0


def confirm_dead(world: World, configuration: Any, metadata: MetadataService, nodes: Any, node: str,
                 is_sure: bool) -> None:
    """Write a person's word that a node is off. Raises RefusedError when something speaks against.

    Its own record must stand still from the first read to the write: for a heartbeat at least.
    """
    began, records = world.now(), metadata.read_all()
    cluster = possible_node(cluster_record(records), node)
    watched, known = records.get(NODE_PREFIX + node), node_records(records).get(node)
    if watched and not known:
        raise RefusedError("the record of {} was written by a newer version of asfc: use that "
                           "version".format(node))
    report = nodes.look([node])[node]
    if report.answered:
        raise RefusedError("{} answers, so it is not off: {}, {}".format(
            node, report.state, report.reason))
    if not is_sure:
        ask_twice(world, node, report.reason, known[1] if known else None)
    left_s = watch_s(configuration, records) - (world.now() - began)
    if left_s > 0:
        print("watching for {:.0f} s whether {} writes its record".format(left_s, node), flush=True)
        world.sleep(left_s)
    by = "{} confirmed at {} that it is powered off".format(person(world), world.utc_text())
    vouch = Vouch(node, watched.version if watched else None, by)

    def vouched(records: Mapping[str, Record]) -> Optional[ClusterRecord]:
        record = possible_node(cluster_record(records), node)
        now = records.get(NODE_PREFIX + node)
        if (now.version if now else None) != vouch.version:
            raise RefusedError("{} is not off: its controller writes its record".format(node))
        return record._replace(vouched=tuple(
            one for one in record.vouched if one.node != node) + (vouch,))
    cluster = metadata.change_cluster(vouched) or cluster
    note_in_history(world, configuration, metadata, cluster, "confirmed_dead",
                    node + " was confirmed to be off", by)
    print("{}: {}. The active controller counts on it until {} is seen again.".format(
        node, by, node))


def possible_node(record: Optional[ClusterRecord], node: str) -> ClusterRecord:
    """The record, if a scheduler may be alive on the node. Raises RefusedError if none may."""
    if record is None or node not in record.possible_nodes:
        known = ", ".join(record.possible_nodes) if record else ""
        raise RefusedError("{} is not a possible node (those are: {}), so nobody waits for "
                           "it".format(node, known or "none"))
    return record


def watch_s(configuration: Any, records: Mapping[str, Record]) -> float:
    """i + c_m + r: a controller that lives writes its record within that; of the longest h."""
    cluster = cluster_record(records)
    timeouts = [configuration.heartbeat_timeout] + ([cluster.heartbeat_timeout] if cluster else [])
    timeouts += [float(one.settings.get("heartbeat_timeout", 0))
                 for _, one in node_records(records).values()]
    return max(timeouts) / 10 + min(3.0, max(timeouts) / 10) + RETRY_INTERVAL_S


def ask_twice(world: World, node: str, reason: str, record: Optional[NodeRecord]) -> None:
    """Have a person confirm that a node is off. Raises RefusedError for anything but that."""
    print("{} does not answer: {}".format(node, reason))
    print("Its own controller last wrote: {}".format(
        node_in_words(record) if record else "nothing, ever"), flush=True)
    sure = world.ask("If a scheduler still runs on {0}, there will be two. Is {0} powered off, for "
                     "certain? [yes/no] ".format(node))
    if sure is None:
        raise RefusedError("there is no terminal to ask on whether {} is off for certain: use "
                           "--yes to say so".format(node))
    if sure.lower() not in ("yes", "y") \
            or world.ask("Type the name of the node that is powered off: ") != node:
        raise RefusedError("{} was not confirmed to be off: nothing was written".format(node))


def person(world: World) -> str:
    return "{} on {}".format(world.user_name(), world.host_name())


def note_in_history(world: World, configuration: Any, metadata: MetadataService,
                    record: ClusterRecord, kind: str, what: str, why: str) -> None:
    """Add what a verb has done to the history, and tell on_event_command; it is done, so a failure
    is only told."""
    event = HistoryEvent(world.utc_text(), configuration.node_name, record.term, record.move, what,
                         why)
    try:
        metadata.add_to_history(event)
    except MetadataError as error:
        print("asfc: the history was not written: {}".format(error), file=sys.stderr)
    if configuration.on_event_command:
        failure = world.run([event_command(
            configuration, kind, event, world.random_id(), 1)])[0].failure()
        if failure:
            print("asfc: on_event_command failed: {}".format(failure), file=sys.stderr)


def verb_pause(world: World, arguments: Any) -> int:
    """Have asfc start, stop and fence nothing until `resume`; the controllers run on.

    That there are never two schedulers is the operator's business meanwhile. Returns when every
    controller that lives has taken its promise back to fence itself, or with status 1 when one has
    not done so within the heartbeat timeout.
    """
    configuration = load_configuration(world, arguments)
    return pause(world, configuration, metadata_service(world, configuration), arguments.reason)


def pause(world: World, configuration: Any, metadata: MetadataService, reason: str) -> int:
    """Write that asfc is paused, and wait until nothing is fenced any more. Exit status 0 or 1."""
    words = "by {} at {}{}".format(person(world), world.utc_text(), reason and ": " + reason)

    def paused(records: Mapping[str, Record]) -> Optional[ClusterRecord]:
        record = cluster_record(records)
        if record is None:
            raise RefusedError("there is nothing to pause: no controller has ever been active")
        return None if record.paused else record._replace(paused=words)
    record = metadata.change_cluster(paused)
    if record:
        note_in_history(world, configuration, metadata, record, "paused", "paused", words)
        print("asfc is paused: it starts, stops and fences nothing until `resume`.", flush=True)
    else:
        before = cluster_record(metadata.read_all())
        print("asfc is paused already, {}.".format(before.paused if before else "?"), flush=True)
    bound, lost = wait_for_promises(world, configuration, metadata)
    for node in lost:
        print("{} has not taken back its promise, and its controller does not write: if that "
              "lives, cut off from the metadata, it still ends a scheduler there.".format(node))
    if bound:
        print("asfc: not taken back yet: the promise of {} to fence itself. Call pause again to "
              "wait for it".format(", ".join(bound)), file=sys.stderr)
    return 1 if bound else 0


def wait_for_promises(world: World, configuration: Any,
                      metadata: MetadataService) -> Tuple[List[str], List[str]]:
    """Wait, up to h, until no controller that lives promises to fence its node.

    Returns the nodes that still do, and those whose controllers have not written meanwhile. It
    takes a heartbeat at least: what a controller that has not read of the pause yet sends may come
    late.
    """
    began, told = world.now(), ""
    views: Dict[str, NodeView] = {}
    while True:
        now, records = world.now(), metadata.read_all()
        fresh_s = watch_s(configuration, records)
        for node, (version, record) in node_records(records).items():
            if node not in views or views[node].version != version:
                views[node] = NodeView(record, version, now, True)
        promising = [node for node in views if views[node].record.promise_s is not None]
        lost = [node for node in promising if now - views[node].changed_at > fresh_s]
        bound = [node for node in promising if node not in lost]
        if not bound and now - began > fresh_s or now - began > configuration.heartbeat_timeout:
            return bound, lost
        if bound and told != ", ".join(bound):
            told = ", ".join(bound)
            print("waiting until the promise to fence itself is taken back by: " + told, flush=True)
        world.sleep(RETRY_INTERVAL_S)


def verb_resume(world: World, arguments: Any) -> int:
    """Have asfc work again after `pause`.

    Schedulers may have been started anywhere meanwhile. So every known node is a possible one: each
    has to answer, or to prove otherwise that none runs there, before one is started.
    """
    configuration = load_configuration(world, arguments)
    return resume(world, configuration, metadata_service(world, configuration))


def resume(world: World, configuration: Any, metadata: MetadataService) -> int:
    """End a pause; where the scheduler may run is asked anew, the assigned node stays the last."""
    def resumed(records: Mapping[str, Record]) -> Optional[ClusterRecord]:
        record = cluster_record(records)
        if record is None or not record.paused:
            return None
        known = record.possible_nodes + configuration.scheduler_nodes_in_cluster + tuple(
            sorted(name[len(NODE_PREFIX):] for name in records if name.startswith(NODE_PREFIX)))
        last = (record.active_scheduler_node,) if record.active_scheduler_node else ()
        nodes = tuple(node for node in collections.OrderedDict.fromkeys(known) if node not in last)
        return record._replace(paused="", move=record.move + 1, vouched=(), started=False,
                               possible_nodes=nodes + last if record.possible_nodes else ())
    record = metadata.change_cluster(resumed)
    if record is None:
        print("asfc is not paused.")
        return 0
    note_in_history(world, configuration, metadata, record, "resumed", "resumed",
                    "by " + person(world))
    print("asfc works again. Possible nodes: {}".format(", ".join(record.possible_nodes) or "all"))
    return 0


# -- moving the scheduler on purpose


class Steering:
    """What an operator does to where the scheduler runs: writes wishes, and follows them.

    The verbs only write the record `orders`, on condition of its version. All that is done to nodes
    is done by the active controller. Refusals raise RefusedError before anything is written.
    """
    MOST_S = 3600.0

    def __init__(self, world: World, configuration: Any, metadata: MetadataService,
                 nodes: Any, quiet: bool = False) -> None:
        self._world = world
        self._configuration = configuration
        self._metadata = metadata
        self._nodes = nodes
        self._quiet = quiet          # prints nothing: one JSON object is printed at the end
        self._known: List[HistoryEvent] = []
        self.events: List[HistoryEvent] = []   # what has happened since

    def say(self, sentence: str) -> None:
        if not self._quiet:
            print(sentence, flush=True)

    # -- before a wish is written

    def _cluster(self, records: Mapping[str, Record]) -> ClusterRecord:
        """The cluster's record, if a wish makes sense now. Raises RefusedError if none does."""
        record, wish = cluster_record(records), Orders.of(records).open_wish
        if record is None or not record.active_scheduler_node:
            raise RefusedError("it is not known yet where the scheduler runs: is a controller "
                               "active? See asfc.py metadata")
        if record.paused:
            raise RefusedError("asfc is paused, {}: resume first".format(record.paused))
        if not record.holder:
            raise RefusedError("no controller is active, so nobody would do it")
        if wish and record.clock_s < wish.until_s:
            raise RefusedError("{} is under way: wait for its end".format(wish))
        return record

    def choose(self, names: Sequence[str], forced: bool) -> Tuple[str, ClusterRecord]:
        """The first of the nodes that can take the scheduler. Raises RefusedError if none can.

        They have to answer here, and their own controllers to write their records meanwhile.
        """
        records = self._metadata.read_all()
        record = self._cluster(records)
        against = {node: self._known_against(node, record, records, forced) for node in names}
        asked = [node for node in names if not against[node]]
        if asked:
            reports = self._nodes.look(asked)
            still = self._standing_still(records, [CLUSTER] + [NODE_PREFIX + node for node in asked
                                                               if reports[node].answered])
            if CLUSTER in still:
                raise RefusedError("the active controller, on {}, does not write its heartbeat: "
                                   "wait until another one has taken over".format(record.holder))
            for node in asked:
                if not reports[node].answered:
                    against[node] = "{} does not answer: {}".format(node, reports[node].reason)
                elif NODE_PREFIX + node in still:
                    against[node] = "the controller on {} does not write its record".format(node)
        able = [node for node in names if not against[node]]
        if not able:
            raise RefusedError("; ".join(against[node] for node in names)
                               or "there is no other node in scheduler_nodes_in_cluster")
        return ([node for node in able if self._promises(records, node)] or able)[0], record

    def _known_against(self, node: str, record: ClusterRecord, records: Mapping[str, Record],
                       forced: bool) -> str:
        """What the metadata says against a node; or ""."""
        drain = Orders.of(records).drain_of(node)
        if node not in self._configuration.scheduler_nodes_in_cluster:
            return "{} is not in scheduler_nodes_in_cluster ({})".format(
                node, ", ".join(self._configuration.scheduler_nodes_in_cluster))
        if node == record.active_scheduler_node:
            return "{} is the active scheduler node already".format(node)
        if drain and not forced:
            return str(drain)
        if failed_now(record, node) and not forced:
            return "{} has failed and is passed over for {:.0f} s more: {}".format(
                node, *[(one.until_s - record.clock_s, one.why) for one in record.failed
                        if one.node == node][0])
        return ""

    def _standing_still(self, before: Mapping[str, Record], names: Sequence[str]) -> List[str]:
        """Those of the records that do not change within i + c_m + r; it returns when all have."""
        ends_at = self._world.now() + watch_s(self._configuration, before)
        while True:
            now = self._metadata.read_all()
            still = [name for name in names if name not in now or name in before
                     and now[name].version == before[name].version]
            if not still or self._world.now() >= ends_at:
                return still
            self._world.sleep(min(RETRY_INTERVAL_S, max(0.1, ends_at - self._world.now())))

    @staticmethod
    def _promises(records: Mapping[str, Record], node: str) -> bool:
        found = node_records(records).get(node)
        return bool(found and found[1].promise_s is not None)

    def others(self, home: Optional[str]) -> Sequence[str]:
        """The other nodes in the order in which a move tries them."""
        names = list(self._configuration.scheduler_nodes_in_cluster)
        place = names.index(home) + 1 if home in names else 0
        return [node for node in names[place:] + names[:place] if node != home]

    def home(self) -> Optional[str]:
        record = cluster_record(self._metadata.read_all())
        return record.active_scheduler_node if record else None

    # -- the wish

    def wish(self, target: str, record: ClusterRecord, limit_s: float, forced: bool = False,
             to_drain: str = "") -> Wish:
        by = person(self._world) + (to_drain and ", to drain " + to_drain)
        return Wish(self._world.random_id(), "failover" if forced else "switchover", target, by,
                    self._world.utc_text(), record.clock_s + limit_s, forced)

    def limit_s(self, forced: bool) -> float:
        """How long a move may take at the longest by these settings, a takeover in it too."""
        one = self._configuration
        limit_s = (3 * one.heartbeat_timeout + 4 * one.poll_frequency + one.stop_timeout_s
                   + one.scheduler_start_timeout + one.settle_s + one.scheduler_restart_sleep_time)
        if forced:
            limit_s += 2 * silence_s(one.promise_s) + one.fence_timeout
        return min(self.MOST_S, limit_s)

    def ask(self, wish: Wish) -> None:
        """Write the wish. Raises RefusedError when another one is open by now."""
        self._known = history_events(self._metadata.read_all())

        def asked(records: Mapping[str, Record]) -> Orders:
            self._cluster(records)
            orders = Orders.of(records)
            if wish.forced:
                orders = orders.without_drain(wish.target)
            return orders._replace(wish=wish)
        self._metadata.change_orders(asked)
        self.say("{}: written down for the active controller".format(wish))

    def set_drain(self, node: str, drain: Optional[Drain]) -> bool:
        """Write that a node is drained, or is not any more; whether that changes anything."""
        def changed(records: Mapping[str, Record]) -> Optional[Orders]:
            orders, record = Orders.of(records), cluster_record(records)
            known = set(self._configuration.scheduler_nodes_in_cluster) | set(node_records(records))
            if drain and node not in known.union(record.possible_nodes if record else ()):
                raise RefusedError("{} is no node of this cluster (those are: {})".format(
                    node, ", ".join(sorted(known))))
            if bool(orders.drain_of(node)) == bool(drain):
                return None
            return orders.without_drain(node)._replace(drained=orders.drained + (drain,)) \
                if drain else orders.without_drain(node)
        orders = self._metadata.change_orders(changed)
        if orders is None:
            self.say("{} is {}.".format(node, "drained already" if drain else "not drained"))
            return False
        record = cluster_record(self._metadata.read_all()) or ClusterRecord("")
        by = "by {}".format(person(self._world))
        if drain is None:
            note_in_history(self._world, self._configuration, self._metadata, record, "undrained",
                            node + " was undrained", by)
            self.say("{} may have the scheduler again.".format(node))
            return True
        note_in_history(self._world, self._configuration, self._metadata, record, "drained",
                        node + " was drained", by + (drain.reason and ": " + drain.reason))
        self.say("{} is drained: no scheduler is started there until `undrain`.".format(node))
        return True

    def follow(self, wish: Wish, limit_s: float) -> Wish:
        """Wait for the wish's outcome, and tell what happens. At the limit it is cancelled."""
        ends_at = self._world.now() + limit_s + self._configuration.heartbeat_timeout
        told = ""
        while True:
            try:
                records = self._metadata.read_all()
                self._tell_news(records)
                found = Orders.of(records).wish
                if found is None or found.id != wish.id:
                    return wish._replace(outcome=FAILED, why="another one has taken its place")
                if found.outcome:
                    return found
                if self._world.now() >= ends_at:
                    self.cancel(wish, "nobody has done it in time")
                    ends_at += RETRY_INTERVAL_S
            except MetadataError as error:
                if str(error) != told:
                    told = str(error)
                    self.say("asfc: {}; trying again".format(error))
                if self._world.now() >= ends_at + self._configuration.heartbeat_timeout:
                    raise
            self._world.sleep(RETRY_INTERVAL_S)

    def cancel(self, wish: Wish, why: str) -> None:
        """Close an open wish. What has begun is then ended or undone by asfc's own rules."""
        def cancelled(records: Mapping[str, Record]) -> Optional[Orders]:
            orders = Orders.of(records)
            changed = orders.closed(wish._replace(outcome=CANCELLED, why=why))
            return changed if changed != orders else None
        self._metadata.change_orders(cancelled)

    def _tell_news(self, records: Mapping[str, Record]) -> None:
        """Print the events that are new since the last look."""
        events = history_events(records)
        kept = [place for place, event in enumerate(events) if event in self._known]
        fresh = events[kept[-1] + 1:] if kept else events
        self._known = events
        self.events += fresh
        for event in fresh if not self._quiet else ():
            print_event(event)

    def carry_through(self, wish: Wish, limit_s: float) -> Wish:
        """Write a wish and follow it to its end; Ctrl-C cancels it."""
        self.ask(wish)
        try:
            return self.follow(wish, limit_s)
        except KeyboardInterrupt:
            self.cancel(wish, "cancelled by " + person(self._world))
            print("asfc: cancelled; if the scheduler was stopped already, asfc starts it by its "
                  "own rules", file=sys.stderr)
            raise


MOVE_STATUSES = {DONE: 0, REFUSED: RefusedError.exit_status}   # all else: 1


def tell_outcome(steering: Steering, as_json: bool, wish: Wish, **more: Any) -> int:
    """Print how it ended, by words or as JSON. Returns the exit status."""
    if as_json:
        fields = dict(wish._asdict(), **more)
        fields["events"] = [dict(event._asdict()) for event in steering.events]
        print(json.dumps(fields, indent=2, sort_keys=True))
    else:
        print("{} is {}: {}{}".format(
            wish, wish.outcome, wish.why, "" if wish.without_scheduler_s is None else
            "; {:.1f} s without a scheduler".format(wish.without_scheduler_s)))
    return MOVE_STATUSES.get(wish.outcome, 1)


def steer(world: World, arguments: Any, play: Callable[[Steering], int]) -> int:
    """Play a verb with all that it needs; with --json a refusal is an object, too."""
    configuration = load_configuration(world, arguments)
    try:
        return play(Steering(world, configuration, metadata_service(world, configuration),
                             Nodes(world, configuration), arguments.json))
    except RefusedError as error:
        if arguments.json:
            print(json.dumps({"outcome": REFUSED, "why": str(error)}, indent=2, sort_keys=True))
        raise


def verb_switchover(world: World, arguments: Any) -> int:
    """Move the scheduler to another node in order: it is stopped here and started there.

    Without --to the next node of the list that can take it is chosen. Nothing is stopped before
    that node has answered. It waits, and tells each step with its proof and how long there was no
    scheduler. Exit status: 0 done; 1 failed or not done in time; 75 refused, nothing was stopped;
    130 cancelled by Ctrl-C.
    """
    return steer(world, arguments, lambda steering: switchover(
        steering, arguments.to, arguments.timeout, arguments.json))


def switchover(steering: Steering, target: Optional[str], limit_s: Optional[float] = None,
               as_json: bool = False) -> int:
    limit_s = limit_s or steering.limit_s(False)
    names = [target] if target else steering.others(steering.home())
    chosen, record = steering.choose(names, False)
    wish = steering.carry_through(steering.wish(chosen, record, limit_s), limit_s)
    return tell_outcome(steering, as_json, wish, origin=record.active_scheduler_node)


def verb_failover(world: World, arguments: Any) -> int:
    """Move the scheduler to a node by force, also away from a node that does not answer.

    That node need not stop it in order: the scheduler is started as soon as it is proved that none
    runs there, by its silence or by fence_command. Proof is never skipped. The target may be
    drained, which ends, or have failed. It is asked first, unless --yes is given. Exit statuses as
    for switchover.
    """
    return steer(world, arguments, lambda steering: failover(
        world, steering, arguments.to, arguments.yes, arguments.timeout, arguments.json))


def failover(world: World, steering: Steering, target: str, is_sure: bool,
             limit_s: Optional[float] = None, as_json: bool = False) -> int:
    limit_s = limit_s or steering.limit_s(True)
    chosen, record = steering.choose([target], True)
    if not is_sure:
        sure = world.ask("Move the scheduler from {} to {} by force? [yes/no] ".format(
            record.active_scheduler_node, target))
        if sure is None:
            raise RefusedError("there is no terminal to ask on: use --yes")
        if sure.lower() not in ("yes", "y"):
            raise RefusedError("it was not confirmed: nothing was written")
    wish = steering.carry_through(steering.wish(chosen, record, limit_s, forced=True), limit_s)
    return tell_outcome(steering, as_json, wish, origin=record.active_scheduler_node)


def verb_drain(world: World, arguments: Any) -> int:
    """Take a node out of service: no scheduler is started there until `undrain`.

    When it has the scheduler, that is moved to the next node as by switchover; where none can take
    it, it stays. Exit status: 0 drained, and the scheduler is elsewhere; 1 drained, but the
    scheduler is still there; 75 refused, nothing was written.
    """
    return steer(world, arguments, lambda steering: drain(
        world, steering, arguments.node, arguments.reason, arguments.timeout, arguments.json))


def drain(world: World, steering: Steering, node: str, reason: str = "",
          limit_s: Optional[float] = None, as_json: bool = False) -> int:
    """Write that a node is drained, then move the scheduler if it is there. Exit status 0 or 1."""
    limit_s = limit_s or steering.limit_s(False)
    steering.set_drain(node, Drain(node, person(world), world.utc_text(), reason))
    home = steering.home()
    moved = Wish("", "switchover", "", person(world), world.utc_text(), 0.0, outcome=DONE,
                 why="the scheduler is not on it")
    if home == node:
        try:
            chosen, record = steering.choose(steering.others(node), False)
            moved = steering.carry_through(
                steering.wish(chosen, record, limit_s, to_drain=node), limit_s)
        except RefusedError as error:
            moved = moved._replace(outcome=REFUSED, why=str(error))
    if as_json:
        tell_outcome(steering, True, moved, verb="drain", node=node)
    elif moved.id:
        tell_outcome(steering, False, moved)
    if moved.outcome != DONE:
        steering.say("{0} is drained, but the scheduler stays there for now: {1}. Try `switchover` "
                     "later, or take it back: asfc.py undrain {0}".format(node, moved.why))
    return 0 if moved.outcome == DONE else 1


def verb_undrain(world: World, arguments: Any) -> int:
    """Have a drained node take part again: a scheduler may be started there. None is moved."""
    return steer(world, arguments, lambda steering: undrain(
        steering, arguments.node, arguments.json))


def undrain(steering: Steering, node: str, as_json: bool = False) -> int:
    changed = steering.set_drain(node, None)
    if as_json:
        print(json.dumps({"verb": "undrain", "node": node, "changed": changed}, indent=2))
    return 0


def verb_send_test_email(world: World, arguments: Any) -> int:
    """Send the alert mail with "This is a TEST ALERT", now, and say whether it was taken."""
    configuration = load_configuration(world, arguments)
    if not configuration.alert_to_email:
        raise ConfigurationError("{}: section [scheduler_failover], key alert_to_email: no one is "
                                 "named; set it to the addresses that alerts go to".format(
                                     configuration.path))
    alert = Alert(configuration.alert_email_subject, "This is a TEST ALERT\n\nIt was sent by asfc "
                  "on {}. Nothing has failed.\n".format(configuration.node_name))
    try:
        Alerts(world, configuration, logging.getLogger("asfc")).send(alert)
    except OSError as error:
        raise AsfcError("the test mail was not sent: {}. Check the section [smtp] of {}".format(
            error, configuration.path))
    print("Sent the test mail to {}".format(", ".join(configuration.alert_to_email)))
    return 0


def verb_start(world: World, arguments: Any) -> int:
    """Run the failover controller in the foreground until it is stopped (SIGTERM, SIGINT).

    It logs to the configured file and to stderr. Stopping it leaves the scheduler as it is. SIGHUP
    has it read its configuration again.
    With --dry-run it takes no lease, asks the nodes without changing anything there, and only tells
    on stderr what the active controller would do. --save FILE then keeps the last observation, for
    `replay`.
    """
    if arguments.save and not arguments.dry_run:
        raise UsageError("--save goes with --dry-run")
    world.take_notify_socket()
    if arguments.dry_run:
        return dry_run(world, load_configuration(world, arguments, need_own_name=True),
                       arguments.save)
    configuration: Any = LiveConfiguration(
        lambda: load_configuration(world, arguments, need_own_name=True))
    log = open_log(configuration)
    state_dir = configuration.state_dir_here
    try:
        world.make_directory(state_dir)
        lock_id = world.hold_lock(os.path.join(state_dir, "controller.lock"), world.random_id())
    except OSError as error:
        raise ConfigurationError("{}: section [scheduler_failover], key state_dir = {}: {}; it "
                                 "must be a directory that this user can write".format(
                                     configuration.path, configuration.state_dir, error.strerror))
    if lock_id is None:
        raise RefusedError("another controller runs with the state directory {}: stop it first, or "
                           "give this one a state_dir and a node_name of its own".format(state_dir))
    metadata = metadata_service(world, configuration)
    no_promise = why_no_promise(world, configuration)
    controller = FailoverController(
        world, configuration, metadata, Nodes(world, configuration), lock_id,
        lambda: read_own_gate(world, state_dir), log, no_promise,
        open_job_table(world, configuration, log))
    LogContext.of(log).lease = controller.lease
    for warning in configuration.warnings:
        log.warning(warning)
    for note in configuration.notes:
        log.info(note)
    if no_promise or configuration.on_metadata_loss == "keep":
        log.warning("this node promises nothing: %s. When it can't be reached, no other node "
                    "starts a scheduler until it answers, fence_command works or a person uses "
                    "confirm_dead", no_promise or "on_metadata_loss = keep")
    log.info("asfc %s starts on %s; nodes: %s; metadata: %s", __version__, configuration.node_name,
             ", ".join(configuration.scheduler_nodes_in_cluster), metadata.describe())
    controller.run()
    return 0


def open_job_table(world: World, configuration: Configuration,
                   log: logging.Logger) -> Optional[SQLMetadataService]:
    """The database of Airflow's job table, or None with a line that says why: none is needed."""
    try:
        return job_table(world, configuration)
    except ConfigurationError as error:
        log.info("the job table gives no evidence: %s", error)
        return None


def dry_run(world: World, configuration: Configuration, path: Optional[str]) -> int:
    log = open_log(configuration, to_file=False)  # a controller may run here, with its log file
    metadata = metadata_service(world, configuration)
    run = DryRun(world, configuration, metadata, Nodes(world, configuration), log,
                 open_job_table(world, configuration, log), path)
    LogContext.of(log).lease = run
    for line in configuration.warnings + configuration.notes:
        log.warning(line)
    log.info("asfc %s, dry run on %s; nodes: %s; metadata: %s", __version__,
             configuration.node_name, ", ".join(configuration.scheduler_nodes_in_cluster),
             metadata.describe())
    run.run()
    return 0


def verb_replay(world: World, arguments: Any) -> int:
    """Print what would be decided for an observation that `start --dry-run --save FILE` kept.

    It is judged with the configuration of this host; nothing is asked and nothing is done. A
    controller that logs at DEBUG writes its observations, too: what follows "observation: " is one.
    """
    configuration = load_configuration(world, arguments)
    try:
        text = world.read_text(arguments.file)
    except OSError as error:
        raise ConfigurationError("{}: {}".format(arguments.file, error.strerror))
    if text is None:
        raise ConfigurationError("{}: there is no such file".format(arguments.file))
    try:
        decision = decide(Observation.from_text(text), configuration)
    except ConfigurationError as error:
        raise ConfigurationError("{}: {}".format(arguments.file, error))
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise ConfigurationError("{}: no decision can be made from it, it is damaged: {!r}".format(
            arguments.file, error))
    print(decision.sentence)
    for action in decision.actions:
        print("would " + action_in_words(action))
    return 0


def read_own_gate(world: World, state_dir: str) -> Optional[Gate]:
    """What this node's gate holds, as the node's script keeps it; None where there is none.

    Raises MetadataError for one that can't be read: no cluster may be made up beside it.
    """
    path = os.path.join(state_dir, "gate")
    try:
        words = (world.read_text(path) or "").split()
        if not words:
            return None
        _, term, move, instance, cluster, node, end = words
        if end != "end":
            raise ValueError
        return Gate(Pair(int(term), int(move)), instance, cluster, node)
    except (OSError, ValueError):
        raise MetadataError("there is no record in the metadata, and this node's gate {} can't be "
                            "read to make one from".format(path))


class LogContext(logging.Filter):
    """Adds this node's name and the term to each log line."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self.node = node
        self.lease: Any = None   # what knows the record `cluster`

    def filter(self, record: logging.LogRecord) -> bool:
        cluster = self.lease.record if self.lease else None
        record.node, record.term = self.node, cluster.term if cluster else "-"
        return True

    @classmethod
    def of(cls, log: logging.Logger) -> "LogContext":
        return next(one for one in log.filters if isinstance(one, cls))


def open_log(configuration: Configuration, to_file: bool = True) -> logging.Logger:
    """The logger of a controller: the rotated file and stderr. Raises ConfigurationError."""
    logging.raiseExceptions = False  # a full disk must not fill stderr with tracebacks
    log = logging.getLogger("asfc")
    log.setLevel(configuration.logging_level)
    log.propagate = False
    log.addFilter(LogContext(configuration.node_name))
    handlers = [open_log_file(configuration)] if to_file else []
    for handler in handlers + [logging.StreamHandler()]:
        handler.setFormatter(logging.Formatter(
            "%(asctime)s %(levelname)s [%(node)s term %(term)s] %(message)s"))
        log.addHandler(handler)
    return log


def open_log_file(configuration: Configuration) -> logging.Handler:
    """The file of the log, rotated. Raises ConfigurationError."""
    import logging.handlers
    path = os.path.join(configuration.logging_dir, configuration.logging_file_name)
    try:
        os.makedirs(configuration.logging_dir, exist_ok=True)
        return logging.handlers.TimedRotatingFileHandler(
            path, when=configuration.logs_rotate_when, encoding="utf-8",
            backupCount=configuration.logs_rotate_backup_count)
    except OSError as error:
        raise ConfigurationError("{}: section [scheduler_failover], keys logging_dir and "
                                 "logging_file_name: {}: {}; it must be a file that this user can "
                                 "write".format(configuration.path, path, error.strerror))


def load_configuration(world: World, arguments: Any, need_own_name: bool = False) -> Configuration:
    overrides = {"airflow_virtualenv": arguments.venv} if arguments.venv else None
    return Configuration.load(world, arguments.config, overrides, need_own_name)


VERBS: Dict[str, Callable[[World, Any], int]] = {
    "version": verb_version, "init": verb_init, "test_connection": verb_test_connection,
    "is_scheduler_running": verb_is_scheduler_running, "clear_metadata": verb_clear_metadata,
    "metadata": verb_metadata, "send_test_email": verb_send_test_email,
    "get_current_host": verb_get_current_host, "start": verb_start, "history": verb_history,
    "status": verb_status, "check": verb_check, "confirm_dead": verb_confirm_dead,
    "pause": verb_pause, "resume": verb_resume, "switchover": verb_switchover,
    "failover": verb_failover, "drain": verb_drain, "undrain": verb_undrain,
    "replay": verb_replay, "demo": verb_demo}

_FLAG: Dict[str, Any] = {"action": "store_true", "default": False}


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise argparse.ArgumentTypeError("{!r} is not a whole number".format(text))
    return int(text)


def _pause(text: str) -> float:
    if not re.fullmatch("[0-9]{1,6}([.][0-9]+)?", text) or float(text) < 0.1:
        raise argparse.ArgumentTypeError("{!r} is not a number of seconds from 0.1 on".format(text))
    return float(text)


def _seconds_given(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)?", text) or not 1 <= float(text) <= 3600:
        raise argparse.ArgumentTypeError("{!r} is not a number of seconds, 1 to 3600".format(text))
    return float(text)


_JSON = ("--json", dict(_FLAG, help="one JSON object at the end, for scripts"))
_TIMEOUT: Tuple[str, Dict[str, Any]] = ("--timeout", {
    "metavar": "SECONDS", "type": _seconds_given, "default": None,
    "help": "give it up after so long; else as long as it may take by the settings"})

# The arguments of each verb: the name, and what argparse is told of it.
VERB_ARGUMENTS: Dict[str, Tuple[Tuple[str, Dict[str, Any]], ...]] = {
    "metadata": (("--json", dict(_FLAG, help="one JSON object, for scripts")),),
    "clear_metadata": (
        ("--force", dict(_FLAG, help="also while the metadata names an active controller")),),
    "history": (
        ("--json", dict(_FLAG, help="a JSON list, for scripts")),
        ("--last", {"metavar": "N", "type": _count, "default": None,
                    "help": "only the last N events"})),
    "check": (("--json", dict(_FLAG, help="one JSON object, for scripts")),),
    "status": (
        ("--json", dict(_FLAG, help="one JSON object, for scripts; with --watch one a line")),
        ("--watch", {"metavar": "SECONDS", "nargs": "?", "type": _pause, "const": 2.0,
                     "default": None, "help": "show it anew until Ctrl-C"})),
    "confirm_dead": (
        ("node", {"metavar": "NODE", "help": "the node that is powered off, for certain"}),
        ("--yes", dict(_FLAG, help="ask nothing"))),
    "pause": (("--reason", {"metavar": "TEXT", "default": "", "help": "is shown to everybody"}),),
    "switchover": (
        ("--to", {"metavar": "NODE", "default": None, "help": "the node; else the next that can"}),
        _TIMEOUT, _JSON),
    "failover": (
        ("--to", {"metavar": "NODE", "required": True, "help": "the node"}),
        ("--yes", dict(_FLAG, help="ask nothing")), _TIMEOUT, _JSON),
    "drain": (
        ("node", {"metavar": "NODE", "help": "the node that is to have no scheduler"}),
        ("--reason", {"metavar": "TEXT", "default": "", "help": "is shown to everybody"}),
        _TIMEOUT, _JSON),
    "undrain": (("node", {"metavar": "NODE", "help": "the node that was drained"}), _JSON),
    "start": (
        ("--dry-run", dict(_FLAG, help="decide and tell, and do nothing")),
        ("--save", {"metavar": "FILE", "default": None,
                    "help": "with --dry-run: keep the last observation there"})),
    "replay": (("file", {"metavar": "FILE", "help": "an observation that was saved"}),)}

EXIT_STATUSES = """\
exit statuses:
  0   done; for is_scheduler_running: one scheduler runs; for check: no problem
  1   a test failed, or the answer is no; for check: a problem; switchover, failover, drain: not
      moved
  2   the command line can't be understood
  3   is_scheduler_running: it is not known
  4   is_scheduler_running: more than one runs
  0, 1, 2, 3   of status: fine, degraded, no scheduler or nobody active, unknown
  69  the metadata service can't be used now
  75  refused for now: something that runs is in the way
  78  the configuration can't be used: what to change is said on stderr
"""


def command_line() -> argparse.ArgumentParser:
    """The parser of the command line. Options may stand before or after the verb."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("-venv", "--venv", metavar="PATH",
                        help="bin/activate of the virtualenv that Airflow lives in")
    common.add_argument("--config", metavar="FILE",
                        help="airflow.cfg, if it is not where Airflow looks for it")
    parser = argparse.ArgumentParser(
        prog="asfc.py", parents=[common], epilog=EXIT_STATUSES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Keeps exactly one Airflow scheduler running on a cluster of nodes.")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb")
    for name, function in VERBS.items():
        text = "\n".join(line.strip() for line in (function.__doc__ or "").strip().splitlines())
        verb = verbs.add_parser(
            name, parents=[common], help=text.splitlines()[0], description=text, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXIT_STATUSES)
        for argument, words in VERB_ARGUMENTS.get(name, ()):
            verb.add_argument(argument, **words)
    return parser


def main(argv: Optional[Sequence[str]] = None, world: Optional[World] = None) -> int:
    """Run one verb; returns the exit status. Each foreseen failure is one clear text on stderr."""
    parser = command_line()
    arguments = parser.parse_args(argv)
    for option in ("venv", "config"):
        path = getattr(arguments, option, None)
        setattr(arguments, option, os.path.abspath(os.path.expanduser(path)) if path else None)
    if not arguments.verb:
        parser.print_help(sys.stderr)
        return UsageError.exit_status
    try:
        status = VERBS[arguments.verb](world or World(), arguments)
        sys.stdout.flush()
        return status
    except AsfcError as error:
        print("asfc: {}".format(error), file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # the reader of our output has gone, as in `asfc.py metadata | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

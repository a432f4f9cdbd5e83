#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of asfc. `python3 test_asfc.py` runs all that this machine can; it says what it skipped."""
import argparse
import atexit
import collections
import contextlib
import ctypes
import email
import errno
import fcntl
import functools
import glob
import heapq
import http.client
import io
import itertools
import json
import logging
import math
import multiprocessing
import os
import py_compile
import queue
import random
import re
import resource
import selectors
import shlex
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import unittest
import urllib.parse
import uuid
from unittest import mock

import asfc

HERE = os.path.dirname(os.path.abspath(__file__))


def require(what, present):
    """Skip the test for want of something; in the full tier (ASFC_NO_SKIPS=1) that is a failure.

    With ASFC_PLAIN=1, in the plain tier, whatever needs more than Python is skipped.
    """
    if os.environ.get("ASFC_PLAIN"):
        raise unittest.SkipTest("the plain tier does without " + what)
    if not present:
        if os.environ.get("ASFC_NO_SKIPS"):
            raise AssertionError("the full tier needs " + what)
        raise unittest.SkipTest("needs " + what)


def wait_until(condition, timeout_s, what):
    """Wait until condition() is true and return its value; fail with `what` after the limit."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("not within {} s: {}".format(
                timeout_s, what() if callable(what) else what))
        time.sleep(0.02)


def clock():
    """Seconds on the clock that process start times count on; hosts of the tests share it."""
    return time.clock_gettime(7)  # CLOCK_BOOTTIME, which has no name in Python 3.6


def process_fields(pid):
    """The fields of /proc/PID/stat from the state on, or None when there is no such process."""
    try:
        with open("/proc/{}/stat".format(pid)) as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return None


def process_began(pid):
    """When a process was started, on clock(), rounded down to 10 ms; None when it is gone."""
    fields = process_fields(pid)
    return int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else None


def process_lives(pid):
    """Whether a process is there and not merely waiting to be reaped."""
    fields = process_fields(pid)
    return bool(fields) and fields[0] not in "ZX"


def children_of(pid):
    """The ids of a process's children."""
    every = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    return [int(child) for child in every if (process_fields(child) or [0, 0])[1] == str(pid)]


def descendants_of(pid):
    """The ids of a process's children, their children, and so on."""
    found = children_of(pid)
    for child in found:
        found.extend(children_of(child))  # the list grows while it is walked
    return found


def read_file(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def write_file(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def write_program(path, text):
    """Write a program that can be run; returns its path."""
    write_file(path, textwrap.dedent(text).lstrip())
    os.chmod(path, 0o755)
    return path


def find_program(*names):
    """The full path of the first program that is installed, also where only root's PATH looks."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]
    versions = filter(str.isdigit, os.listdir("/usr/lib/postgresql")
                      if os.path.isdir("/usr/lib/postgresql") else [])
    places += ["/usr/lib/postgresql/{}/bin".format(version)
               for version in sorted(versions, key=int, reverse=True)]
    return next((path for path in (shutil.which(name, path=os.pathsep.join(places))
                                   for name in names) if path), None)


###############################################################################
# Database servers that the tests start themselves ############################
###############################################################################


def free_port(address="127.0.0.1"):
    """A TCP port that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def become(user):
    """A function for preexec_fn that gives up root for a user; None where we aren't root."""
    if os.geteuid() != 0:
        return None
    import pwd
    entry = pwd.getpwnam(user)

    def give_up_root():
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    return give_up_root


class DatabaseServer:
    """A real server in a temporary directory, on a port and a socket of its own.

    `address` is where it listens; `remote_hosts` says from where its user may come. It is ended by
    its process id, at the latest when Python exits, and its directory is removed.
    """
    USER, PASSWORD = "airflow", "p@ss w%rd:/'\"\\x"
    SYSTEM_USER = SCHEME = ""

    def __init__(self, address="127.0.0.1", remote_hosts=("127.0.0.1",), options=()):
        self.address, self.remote_hosts, self.options = address, tuple(remote_hosts), tuple(options)
        self.port = self.process = self.directory = self.url = None

    # -- what a kind of server brings

    @classmethod
    def present(cls):
        """Whether this machine has its programs (and the system user that root starts it as)."""
        raise NotImplementedError

    def make_data(self):
        raise NotImplementedError

    def arguments(self):
        raise NotImplementedError

    def grant(self):
        """Make the user that `url` names, for the hosts it may come from."""
        raise NotImplementedError

    def client_arguments(self, database):
        """The client as the server's own administrator, through the socket."""
        raise NotImplementedError

    # -- what all do

    def start(self):
        """Start it, for the first time or after stop() or kill(), and wait until it answers."""
        first = self.launch()
        wait_until(lambda: self.answers(), 60, lambda: "the server answers:\n" + self.log_text())
        if first:
            self.grant()
        return self

    def launch(self):
        """Begin its start; whether it is the first one."""
        first = self.directory is None
        if first:
            self.directory = tempfile.mkdtemp(prefix="asfc-db-", dir="/tmp")
            owner = os.getpid()
            atexit.register(lambda: os.getpid() == owner and self.remove())
            if become(self.SYSTEM_USER):
                shutil.chown(self.directory, self.SYSTEM_USER)
            self.port = free_port(self.address)
            self.make_data()
        with open(os.path.join(self.directory, "server.log"), "ab") as log:
            self.process = subprocess.Popen(
                self.arguments(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.directory, preexec_fn=become(self.SYSTEM_USER))
        return first

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError("the server ended:\n" + self.log_text())
        return subprocess.run(self.client_arguments(""), input=b"SELECT 1;\n",
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE).returncode == 0

    def log_text(self):
        return read_file(os.path.join(self.directory, "server.log"))[-2000:]

    def processes(self):
        """The ids of the server and of its children."""
        if self.process is None or self.process.poll() is not None:
            return []
        return [self.process.pid] + children_of(self.process.pid)

    def _signal(self, number):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self):
        self._signal(signal.SIGSTOP)

    def thaw(self):
        self._signal(signal.SIGCONT)

    def kill(self):
        """As a power failure would end it."""
        self._signal(signal.SIGKILL)
        if self.process:
            self.process.wait()

    def stop(self):
        """In good order; what doesn't go is killed."""
        if self.process and self.process.poll() is None:
            self.thaw()
            self.process.send_signal(signal.SIGTERM if self.SCHEME == "mysql" else signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def remove(self):
        """End it and take its directory away."""
        self.kill()
        if self.directory:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.directory = None

    def sql(self, text, database=""):
        """Run statements as the administrator; returns what they print."""
        done = subprocess.run(self.client_arguments(database), input=text.encode("utf-8"),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            raise AssertionError(done.stderr.decode("utf-8", "replace"))
        return done.stdout.decode("utf-8").strip()

    @contextlib.contextmanager
    def session(self, text, database):
        """Keep a session open in which the statements have been run."""
        client = subprocess.Popen(self.client_arguments(database), stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE)
        try:
            client.stdin.write((text + ";\nSELECT 'ready';\n").encode("utf-8"))
            client.stdin.flush()
            while b"ready" not in client.stdout.readline():
                if client.poll() is not None:
                    raise AssertionError("the session ended")
            yield
        finally:
            client.kill()
            client.wait()
            client.stdin.close()
            client.stdout.close()

    def url_for(self, database, driver="", user=None, password=None):
        quoted = urllib.parse.quote(password or self.PASSWORD, safe="")
        return "{}{}://{}:{}@{}:{}/{}".format(
            self.SCHEME, driver, user or self.USER, quoted,
            "[{}]".format(self.address) if ":" in self.address else self.address, self.port,
            database)

    def create_database(self, name):
        """Make an empty database that the user may use; returns its URL, kept as `url` as well."""
        raise NotImplementedError

    def set_read_only(self, on):
        raise NotImplementedError


class MariaDbServer(DatabaseServer):
    SYSTEM_USER, SCHEME = "mysql", "mysql"
    HOSTS_OF_A_CLUSTER = "10.99.%"

    @classmethod
    def present(cls):
        return all([find_program("mariadbd", "mysqld"), find_program("mariadb-install-db"),
                    find_program("mysql", "mariadb")])

    def make_data(self):
        command = [find_program("mariadb-install-db"), "--no-defaults", "--skip-test-db",
                   "--auth-root-authentication-method=normal",
                   "--datadir=" + self.directory + "/data"]
        if become(self.SYSTEM_USER):
            command.append("--user=" + self.SYSTEM_USER)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def arguments(self):
        return [find_program("mariadbd", "mysqld"), "--no-defaults",
                "--datadir=" + self.directory + "/data", "--socket=" + self.directory + "/sock",
                "--pid-file=" + self.directory + "/pid", "--bind-address=" + self.address,
                "--port={}".format(self.port), "--skip-name-resolve",
                "--innodb-buffer-pool-size=24M", "--innodb-log-file-size=8M"] + list(self.options)

    def client_arguments(self, database):
        return [find_program("mysql", "mariadb"), "--no-defaults", "-N", "-B", "-n", "--user=root",
                "--socket=" + self.directory + "/sock", "--connect-timeout=5",
                "--default-character-set=utf8mb4", database]

    def grant(self):
        quoted = self.PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
        self.sql("".join("CREATE USER '{}'@'{}' IDENTIFIED BY '{}';".format(self.USER, host, quoted)
                         for host in self.remote_hosts))

    def create_database(self, name):
        self.sql("CREATE DATABASE {};".format(name) + "".join(
            "GRANT ALL ON {}.* TO '{}'@'{}';".format(name, self.USER, host)
            for host in self.remote_hosts))
        self.url = self.url_for(name)
        return self.url

    def set_read_only(self, on):
        self.sql("SET GLOBAL read_only = {}".format(int(on)))


class PostgreSqlServer(DatabaseServer):
    SYSTEM_USER, SCHEME = "postgres", "postgresql"
    HOSTS_OF_A_CLUSTER = "10.99.0.0/16"

    @classmethod
    def present(cls):
        return all([find_program("postgres"), find_program("initdb"), find_program("psql")])

    def make_data(self):
        subprocess.run([find_program("initdb"), "-D", self.directory + "/data", "-U", "postgres",
                        "-E", "UTF8", "--locale=C", "--auth-local=trust", "--no-sync"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.directory,
                       preexec_fn=become(self.SYSTEM_USER))
        write_file(self.directory + "/data/pg_hba.conf", "local all postgres trust\n" + "".join(
            "host all all {} scram-sha-256\n".format(
                host if "/" in host else host + ("/128" if ":" in host else "/32"))
            for host in self.remote_hosts))

    def arguments(self):
        return [find_program("postgres"), "-D", self.directory + "/data", "-k", self.directory,
                "-h", self.address, "-p", str(self.port), "-c", "shared_buffers=16MB"
                ] + list(self.options)

    def client_arguments(self, database):
        return [find_program("psql"), "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1",
                "-h", self.directory, "-p", str(self.port), "-U", "postgres",
                "-d", database or "postgres"]

    def grant(self):
        self.sql("CREATE USER {} PASSWORD E'{}';".format(
            self.USER, self.PASSWORD.replace("\\", "\\\\").replace("'", "\\'")))

    def create_database(self, name):
        self.sql("CREATE DATABASE {} OWNER {};".format(name, self.USER))
        self.url = self.url_for(name)
        return self.url

    def set_read_only(self, on):
        value = "on" if on else "off"
        self.sql("ALTER SYSTEM SET default_transaction_read_only = {};".format(value))
        self.sql("SELECT pg_reload_conf();")
        wait_until(lambda: self.sql("SHOW default_transaction_read_only;") == value,
                   10, "the server has read its settings")

    def set_replica(self, on):
        """Restart it as a hot standby without a primary, or as a primary again."""
        path = self.directory + "/data/standby.signal"
        self.stop()
        if on:
            write_file(path, "")
        else:
            os.unlink(path)
        self.start()


class ZooKeeperServer(DatabaseServer):
    """A ZooKeeper, alone or as one of an ensemble: then `members` holds the line server.N of each,
    and `number` is its own N. Its urls are connect strings behind zookeeper://."""
    SYSTEM_USER, SCHEME = "nobody", "zookeeper"
    JARS = ("zookeeper", "zookeeper-jute", "slf4j-api", "slf4j-simple", "netty-handler",
            "netty-transport", "netty-common", "netty-buffer", "metrics-core", "snappy-java")

    def __init__(self, address="127.0.0.1", remote_hosts=(), options=(), members=(), number=1):
        super().__init__(address, remote_hosts, options)
        self.members, self.number = tuple(members), number
        self.path = "/"

    @classmethod
    def present(cls):
        return find_program("java") and all(map(os.path.exists, cls.jars()))

    @classmethod
    def jars(cls):
        return ["/usr/share/java/{}.jar".format(name) for name in cls.JARS]

    def make_data(self):
        os.mkdir(self.directory + "/data")
        write_file(self.directory + "/data/myid", "{}\n".format(self.number))
        write_file(self.directory + "/zoo.cfg", "\n".join((
            "tickTime=500", "initLimit=10", "syncLimit=4", "dataDir={}/data".format(self.directory),
            "clientPort={}".format(self.port), "clientPortAddress=" + self.address,
            "admin.enableServer=false", "maxClientCnxns=0", "preAllocSize=64",
            "autopurge.purgeInterval=0") + self.members + self.options) + "\n")
        if become(self.SYSTEM_USER):
            for path in glob.glob(self.directory + "/data") + glob.glob(self.directory + "/data/*"):
                shutil.chown(path, self.SYSTEM_USER)

    def arguments(self):
        return [find_program("java"), "-Xms24m", "-Xmx48m", "-XX:+UseSerialGC", "-Xss512k",
                "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp", ":".join(self.jars()),
                "org.apache.zookeeper.server.quorum.QuorumPeerMain", self.directory + "/zoo.cfg"]

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError("the server ended:\n" + self.log_text())
        return "Mode: " in self.four_letters("srvr")

    def backup(self):
        shutil.rmtree(self.directory + "/backup", ignore_errors=True)
        subprocess.run(["cp", "-a", self.directory + "/data", self.directory + "/backup"],
                       check=True)

    def bring_back(self):
        """Put what backup() has kept in the place of the data, while the server is down."""
        shutil.rmtree(self.directory + "/data")
        subprocess.run(["cp", "-a", self.directory + "/backup", self.directory + "/data"],
                       check=True)

    def four_letters(self, word):
        with contextlib.suppress(OSError):
            with socket.create_connection((self.address, self.port), timeout=2) as connection:
                connection.sendall(word.encode())
                return b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        return ""

    def mode(self):
        return "".join(re.findall("Mode: (.*)", self.four_letters("srvr")))

    def grant(self):
        pass

    def create_database(self, name):
        self.url = "zookeeper://{}/{}".format(self.name(), name)
        return self.url

    def name(self):
        return "{}:{}".format("[{}]".format(self.address) if ":" in self.address else self.address,
                              self.port)

    @contextlib.contextmanager
    def client(self, auth=""):
        """A session of asfc's own client, for what a person would do with zkCli."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        deadline = time.clock_gettime(asfc.World.CLOCK) + 10
        with asfc.World().connect((family, (self.address, self.port)), deadline) as connection:
            session = asfc._ZkSession(connection, deadline, 10.0, 0, auth)
            yield ZnodesByHand(session)
            session.end()


class ZooKeeperEnsemble:
    """Three ZooKeeper servers, on loopback or each in a network of its own: there `networks` are
    given with their addresses. It can be used in a single server's place."""
    PASSWORD = DatabaseServer.PASSWORD

    def __init__(self, networks=(), addresses=("127.0.0.1",) * 3):
        ports = [(free_port(address), free_port(address)) if not networks else (2888, 3888)
                 for address in addresses]
        members = ["server.{}={}:{}:{}".format(number, address, *two) for number, (address, two)
                   in enumerate(zip(addresses, ports), 1)]
        self.servers = [ZooKeeperServer(address, members=members, number=number)
                        for number, address in enumerate(addresses, 1)]
        self._networks = networks or [None] * 3

    @classmethod
    def present(cls):
        return ZooKeeperServer.present()

    def call(self, server, function, *arguments):
        """Call a function where a server lives."""
        network = self._networks[server.number - 1]
        return network.call(function, *arguments) if network else function(*arguments)

    def start(self, *servers):
        for server in servers or self.servers:
            if not server.processes():
                self.call(server, server.launch)
        self.wait_for_all()
        return self

    def wait_for_all(self):
        """Wait until each of those that run follows or leads."""
        def modes():
            return [self.mode(server) for server in self.servers if server.processes()]
        wait_until(lambda: set(modes()) == {"leader", "follower"}
                   and modes().count("leader") == 1, 60, "an ensemble with a leader")

    def mode(self, server):
        return self.call(server, server.mode)

    def leader(self):
        return wait_until(lambda: [server for server in self.servers if server.processes()
                                   and self.mode(server) == "leader"], 30, "a leader")[0]

    def follower(self):
        return next(server for server in self.servers if self.mode(server) == "follower")

    def freeze(self):
        for server in self.servers:
            server.freeze()

    def thaw(self):
        for server in self.servers:
            server.thaw()

    def kill(self):
        for server in self.servers:
            server.kill()

    stop = kill   # a server of ZooKeeper ends no other way

    def remove(self):
        for server in self.servers:
            server.remove()

    def create_database(self, name):
        return "zookeeper://{}/{}".format(",".join(server.name() for server in self.servers), name)

    def client(self, auth=""):
        return self.servers[0].client(auth)


class ZnodesByHand:
    """What a person does with znodes."""
    WORLD, NO_NODE = struct.pack(">ii", 1, 31) + b"\0\0\0\5world\0\0\0\6anyone", -101

    def __init__(self, session):
        self.session = session

    def ask(self, kind, path, more=b"", allowed=()):
        return self.session.ask((kind, asfc._zk_text(path) + more), allowed=allowed)[0]

    def make(self, path, value=""):
        """Make a znode that everybody may change, with those above it."""
        if path.count("/") > 1:
            self.make(path.rpartition("/")[0])
        self.ask(1, path, asfc._zk_text(value) + self.WORLD + bytes(4), allowed=(-110,))

    def set(self, path, value):
        self.ask(5, path, asfc._zk_text(value) + struct.pack(">i", -1))

    def get(self, path):
        return self.ask(4, path, b"\0")[1].data().decode("utf-8")

    def children(self, path):
        """The names below a path, None where there is no such znode."""
        code, reply = self.ask(8, path, b"\0", allowed=(self.NO_NODE,))
        return None if code else sorted(reply.texts())

    def remove(self, path):
        """A znode with all below it."""
        for name in self.children(path) or []:
            self.remove(path + "/" + name)
        self.ask(2, path, struct.pack(">i", -1), allowed=(self.NO_NODE,))

    def permit(self, path, permissions):
        """What everybody may do with a znode: READ 1, WRITE 2, CREATE 4, DELETE 8, ADMIN 16."""
        self.ask(7, path, struct.pack(">ii", 1, permissions) + self.WORLD[8:]
                 + struct.pack(">i", -1))


_SHARED_SERVERS = {}


def shared_server(kind):
    """The one server of a kind that all test classes use, each with databases of its own."""
    require("the programs of a " + kind.__name__, kind.present())
    if kind not in _SHARED_SERVERS:
        _SHARED_SERVERS[kind] = kind().start()
    return _SHARED_SERVERS[kind]


###############################################################################
# Stand-ins ###################################################################
###############################################################################


def write_ps(path, marker):
    """Write a `ps` that shows pid 1, whoever asks and those above it, and what has marker in its
    arguments: what asks through it sees, and signals, only processes that a test or demo started.
    """
    return write_program(path, """
        #!/bin/sh
        {ps} "$@" | awk -v asker=$$ -v marker={marker} '
            {{ parent[$1] = $2; line[++lines] = $0; pid[lines] = $1 }}
            END {{
                for (p = asker; (p in parent) && !(p in shown); p = parent[p]) shown[p] = 1
                shown[1] = 1
                for (i = 1; i <= lines; i++)
                    if ((pid[i] in shown) || index(line[i], marker)) print line[i]
            }}'
        """.format(ps=find_program("ps"), marker=shlex.quote(marker)))


class SchedulerStandIn:
    """A program called airflow whose `scheduler` is a process like Airflow's own.

    Written into a directory that is to stand first in PATH. Its options are those of the next
    start: seconds until it becomes a scheduler, forks with the same arguments, whether it has a
    helper in a group of its own and a task in a session of its own, whether it ignores SIGTERM,
    whether it ends at once with an error. It writes a line into `schedulers.log` when it starts.
    """

    def __init__(self, directory):
        self.directory = directory
        self.log = os.path.join(directory, "schedulers.log")
        self.behave()

    def behave(self, delay_s=0, forks=0, helper=False, task=False, ignore_term=False, crash=False):
        """Write the program anew with these options."""
        write_program(os.path.join(self.directory, "airflow"), """
            #!{python}
            import os, signal, subprocess, sys, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN if {ignore_term} else signal.SIG_DFL)
            time.sleep({delay_s})
            with open({log!r}, "a") as log:
                log.write("%d\\n" % os.getpid())
            if {crash}:
                sys.exit("the scheduler crashes, as it was told to")
            def other(name, **options):
                subprocess.Popen(
                    [name + " " + {directory!r}, "1000"], executable={sleep!r}, **options)
            if {helper}:
                other("airflow scheduler -- DagFileProcessorManager", preexec_fn=os.setpgrp)
            if {task}:
                other("airflow task runner:", start_new_session=True)
            for _ in range({forks}):
                if not os.fork():
                    break
            while True:
                time.sleep(1000)
            """.format(python=sys.executable, sleep=find_program("sleep"), log=self.log,
                       directory=self.directory, delay_s=delay_s, forks=forks, helper=helper,
                       task=task, ignore_term=ignore_term, crash=crash))

    def start(self):
        """Start a scheduler by hand, in a session of its own; returns the Popen object."""
        return subprocess.Popen([os.path.join(self.directory, "airflow"), "scheduler"],
                                start_new_session=True)

    def started(self):
        """The process ids of all that ever started here."""
        if not os.path.exists(self.log):
            return []
        return [int(line) for line in read_file(self.log).splitlines()]


def processes_with(marker):
    """(pid, arguments) of all living processes with the marker in their arguments."""
    listing = subprocess.Popen(
        ["ps", "-A", "-ww", "-o", "pid=,stat=,args="], stdout=subprocess.PIPE,
        env=dict(os.environ, PATH="/usr/bin:/bin"))
    found = []
    for line in listing.communicate()[0].decode("utf-8", "replace").splitlines():
        pid, state, arguments = (line.split(None, 2) + ["", ""])[:3]
        pid = int(pid)
        if marker in arguments and state[0] not in "ZX" and pid not in (listing.pid, os.getpid()):
            found.append((pid, arguments))
    return found


def end_processes_with(marker):
    """End every process that carries the marker, a directory that only this test has."""
    assert len(marker) > 8 and os.path.basename(marker).startswith("asfc-")
    for _ in range(100):
        living = processes_with(marker)
        if not living:
            return
        for pid, _ in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def boot_id():
    return read_file("/proc/sys/kernel/random/boot_id").strip()


class NodeConfiguration:
    """What Nodes asks of a Configuration, with short times for tests."""
    node_name = "a"
    scheduler_user = ssh_options = ""
    airflow_scheduler_start_command = airflow_scheduler_stop_command = ""
    airflow_scheduler_status_command = airflow_virtualenv = airflow_home = ""
    airflow_home_is_explicit = False
    query_timeout, scheduler_start_timeout, scheduler_stop_wait_time = 5.0, 20.0, 1.0
    stop_timeout_s = 15.0
    ssh_command = "ssh"

    def __init__(self, directory):
        self.state_dir = os.path.join(directory, "state")
        self.airflow_scheduler_log_file = os.path.join(directory, "logs", "scheduler.logs")


class NodeWorld(asfc.World):
    """A world whose commands get variables of their own."""

    def __init__(self, environment):
        super().__init__()
        self.variables = environment

    def environment(self):
        return dict(os.environ, **self.variables)

    def run(self, commands):
        return super().run([command._replace(environment=self.variables) for command in commands])


class NodeSandbox:
    """A node on this machine: a directory with a home, a state directory and stand-ins for ps,
    airflow and ssh; `shell` runs the node's script. `close` ends all that was started in it.
    """

    def __init__(self, shell="dash", login_shell="/bin/sh"):
        self.directory = tempfile.mkdtemp(prefix="asfc-")
        self.bin = self.path("bin")
        os.mkdir(self.bin)
        write_ps(os.path.join(self.bin, "ps"), self.directory)
        os.symlink(find_program(shell), os.path.join(self.bin, "sh"))
        self.scheduler = SchedulerStandIn(self.bin)
        self.configuration = NodeConfiguration(self.directory)
        self.world = NodeWorld({"PATH": self.bin + ":" + os.environ["PATH"], "SHELL": login_shell,
                                "HOME": self.directory})
        self.nodes = asfc.Nodes(self.world, self.configuration)

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def write(self, name, text):
        """Write a file below the directory; returns its path."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, text)
        return path

    def read(self, name):
        return read_file(self.path(name))

    def keep(self, name, text):
        """Write a file of the state directory as the node's controller does; '' removes it."""
        path = self.path("state", name)
        if text:
            self.write("state/" + name + ".new", text)
            os.rename(path + ".new", path)
        elif os.path.exists(path):
            os.unlink(path)

    def promise(self, left_s, boot=None):
        """The fence deadline as the node's controller keeps it: so many seconds are left."""
        uptime_s = float(read_file("/proc/uptime").split()[0])
        self.keep("fence", "1 {} {:.0f} end\n".format(boot or boot_id(), 100 * (uptime_s + left_s)))

    def close(self):
        end_processes_with(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)


class NotifySocket:
    """The socket of a service manager: keeps what it is told. A name with @ is an abstract one."""

    def __init__(self, case, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        case.addCleanup(self.socket.close)
        self.socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self.socket.setblocking(False)
        self.told = []

    def texts(self):
        """All that has been told so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.told.append(self.socket.recv(8192).decode())
        return self.told

    def lines(self):
        return "\n".join(self.texts()).split("\n")


class SlowClients:
    """Clients of an HTTP server that send a byte twice a second, and come again and again."""

    def __init__(self, case, port, number):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, number + 500)), hard))
        case.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        self.port, self.number, self.ended = port, number, False
        self.open = self.dropped = 0

    def __enter__(self):
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended = True
        self.thread.join()

    def run(self):
        clients = {}
        while not self.ended:
            began = time.monotonic()
            while len(clients) < self.number:
                client = socket.socket()
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", self.port))
                clients[client] = iter(itertools.cycle(b"GET /metrics HTTP/1.1\r\nX: y"))
            self.open = len(clients)
            for client, text in list(clients.items()):
                try:
                    client.send(bytes([next(text)]))
                except BlockingIOError:
                    pass   # it is not connected yet
                except OSError:
                    self.dropped += 1
                    del clients[client]
                    client.close()
            time.sleep(max(0.0, 0.5 - (time.monotonic() - began)))
        for client in clients:
            client.close()


###############################################################################
# The door to the world #######################################################
###############################################################################


class DoorTest(unittest.TestCase):
    def setUp(self):
        self.world = asfc.World()
        self.directory = tempfile.mkdtemp(prefix="asfc-test-")
        self.addCleanup(shutil.rmtree, self.directory)

    def test_processes_that_can_not_be_looked_at_are_not_taken_for_gone(self):
        for number, gone in ((errno.ENOENT, True), (errno.ESRCH, True), (errno.EACCES, True),
                             (errno.EMFILE, False), (errno.ENFILE, False), (errno.ENOMEM, False)):
            failing = mock.Mock(side_effect=OSError(number, os.strerror(number)))
            with self.subTest(os.strerror(number)), \
                    mock.patch.object(asfc, "open", failing, create=True):
                if gone:
                    self.assertEqual(asfc.World().processes(), [])
                else:
                    self.assertRaises(OSError, asfc.World().processes)

    def test_a_signal_goes_to_the_listed_process_and_to_no_other_of_that_number(self):
        child = subprocess.Popen(["sleep", "100"])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        listed = asfc.LocalProcess(child.pid, int(process_fields(child.pid)[19]), 1, 1, 0, ())
        recycled = listed._replace(start=listed.start + 1)
        self.assertFalse(self.world.signal_process(recycled, signal.SIGKILL))
        self.assertIsNone(child.poll())
        with mock.patch.object(os, "kill", side_effect=PermissionError):
            self.assertTrue(self.world.signal_process(listed, signal.SIGKILL), "it is still there")
        self.assertTrue(self.world.signal_process(listed, signal.SIGKILL))
        self.assertEqual(child.wait(), -signal.SIGKILL)
        self.assertFalse(self.world.signal_process(listed, signal.SIGKILL))

    def test_a_command_gets_its_input_and_gives_its_output_and_status(self):
        text = "x" * 300000
        command = asfc.Command(("sh", "-c", "cat; echo oops >&2; exit 3"), 20, stdin=text)
        result = self.world.run([command])[0]
        self.assertEqual(result[:4], (3, text, "oops\n", ""))

    def test_commands_run_at_the_same_time_and_a_late_one_is_killed_with_its_children(self):
        pids = os.path.join(self.directory, "pids")
        late = "sleep 600 & echo $! > {}; wait".format(pids)
        began = time.monotonic()
        results = self.world.run([asfc.Command(("sh", "-c", late), 0.5),
                                  asfc.Command(("sh", "-c", "sleep 0.4; echo a"), 20),
                                  asfc.Command(("sh", "-c", "sleep 0.4; echo b"), 20),
                                  asfc.Command(("no-such-program",), 20)])
        self.assertLess(time.monotonic() - began, 5)
        self.assertEqual((results[0].status, results[0].problem), (None, "no answer within 0.5 s"))
        self.assertEqual([result.stdout for result in results[1:3]], ["a\n", "b\n"])
        self.assertIsNone(results[3].status)
        self.assertTrue(results[3].problem.startswith("no-such-program: "), results[3].problem)
        pid = int(read_file(pids))
        wait_until(lambda: not process_lives(pid), 10, "the killed command's child is gone")

    def test_a_child_that_keeps_the_pipes_open_does_not_hold_the_answer_back(self):
        began = time.monotonic()
        result = self.world.run([asfc.Command(("sh", "-c", "sleep 3 & echo done"), 20)])[0]
        self.assertEqual(result.stdout, "done\n")
        self.assertLess(time.monotonic() - began, 2.5)

    def test_a_file_is_replaced_as_a_whole_and_keeps_its_mode(self):
        path = os.path.join(self.directory, "file")
        self.assertIsNone(self.world.read_text(path))
        self.world.write_text(path, "one")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        os.chmod(path, 0o640)
        self.world.write_text(path, "two")
        self.assertEqual((self.world.read_text(path), stat.S_IMODE(os.stat(path).st_mode)),
                         ("two", 0o640))
        self.assertEqual(os.listdir(self.directory), ["file"])

    def test_a_lock_is_held_by_one_process_and_goes_with_it_and_children_do_not_inherit_it(self):
        path = os.path.join(self.directory, "lock")
        code = ("import asfc, subprocess, sys\nw = asfc.World()\n"
                "print(w.hold_lock({0!r}, 'first'))\n"
                "child = subprocess.Popen(['sleep', '600'], stdin=subprocess.DEVNULL)\n"
                "print(child.pid)\nsys.stdout.flush()\nsys.stdin.read()\n").format(path)
        holder = subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, universal_newlines=True)
        self.addCleanup(holder.stdout.close)
        self.addCleanup(holder.stdin.close)
        self.assertEqual(holder.stdout.readline(), "first\n")
        sleeper = int(holder.stdout.readline())
        self.addCleanup(os.kill, sleeper, signal.SIGKILL)
        self.assertIsNone(self.world.hold_lock(path, "second"))
        holder.kill()
        holder.wait()
        self.assertTrue(process_lives(sleeper))
        self.assertEqual(self.world.hold_lock(path, "second"), "first")

    def test_the_clock_is_the_one_that_goes_on_in_a_suspend(self):
        uptime = float(read_file("/proc/uptime").split()[0])
        self.assertAlmostEqual(time.clock_gettime(asfc.World.CLOCK), uptime, delta=3)
        self.assertEqual(asfc.World.CLOCK, 7)

    def test_loops_call_their_steps_until_they_end_and_are_woken(self):
        calls = []

        def waiting():
            calls.append("waiting")
            return 600 if calls.count("waiting") == 1 else None

        def waking():
            calls.append("waking")
            if calls.count("waiting"):
                self.world.wake("waiting")
            return 0.01 if calls.count("waiting") < 2 else None

        self.world.run_loops({"waiting": waiting, "waking": waking}, ("waiting", "waking"))
        self.assertEqual(calls.count("waiting"), 2)

    def test_a_loop_that_hangs_and_is_not_awaited_holds_the_end_up_only_for_a_while(self):
        self.world.PATIENCE_S = 0.1
        hang = threading.Event()
        self.addCleanup(hang.set)
        self.world.run_loops({"hangs": hang.wait, "ends": lambda: None}, ("ends",))
        self.assertFalse(hang.is_set())

    def test_signals_ask_to_stop_but_one_that_is_ignored_from_the_start_stays_so(self):
        code = ("import asfc, os, sys\n"   # os.write may be called while it is being called
                "asfc.World().on_stop_signal(lambda name: os.write(1, name.encode() + b'\\n'))\n"
                "os.write(1, b'ready\\n')\nsys.stdin.read()\n")
        def prepare(hang_up):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)   # these tests may run where they are ignored
            signal.signal(signal.SIGHUP, hang_up)

        for before, expected in ((signal.SIG_DFL, "SIGHUP\nSIGINT\nSIGTERM\n"),
                                 (signal.SIG_IGN, "SIGINT\nSIGTERM\n")):  # as nohup leaves it
            child = subprocess.Popen(
                [sys.executable, "-c", code], cwd=HERE, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, universal_newlines=True,
                preexec_fn=functools.partial(prepare, before))
            self.addCleanup(child.kill)
            self.assertEqual(child.stdout.readline(), "ready\n")
            child.send_signal(signal.SIGHUP)
            said = "" if before is signal.SIG_IGN else child.stdout.readline()
            for number in (signal.SIGINT, signal.SIGTERM):
                child.send_signal(number)
                said += child.stdout.readline()
            self.assertEqual((said, child.communicate()[0]), (expected, ""))

    def test_a_hangup_calls_its_handler_within_the_loops_and_an_ignored_one_stays_ignored(self):
        program = (
            "import asfc, os, sys, time\n"
            "world, seen = asfc.World(), []\n"
            "def handler():\n"
            "    seen.append('hung up')\n"
            "    world.wake('turn')\n"
            "def step():\n"
            "    os.write(1, b'step\\n')\n"
            "    return None if seen or os.path.exists(sys.argv[1]) else 600 if {} else 0.1\n"
            "world.on_stop_signal(seen.append)\n"
            "world.on_hangup(handler)\n"
            "world.run_loops({{'turn': step}}, ('turn',))\n"
            "print(seen)\n")
        for ignored in (False, True):
            flag = os.path.join(self.directory, "end")
            child = subprocess.Popen(
                [sys.executable, "-c", program.format(not ignored), flag], cwd=HERE,
                stdout=subprocess.PIPE, universal_newlines=True, preexec_fn=functools.partial(
                    signal.signal, signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL))
            self.addCleanup(child.kill)
            child.stdout.readline()
            child.send_signal(signal.SIGHUP)
            if ignored:
                child.stdout.readline()
                write_file(flag, "")
            self.assertEqual(child.communicate(timeout=20)[0].splitlines()[-1],
                             "[]" if ignored else "['hung up']")

    def test_a_notification_reaches_the_socket_and_no_command_inherits_where_it_is(self):
        name = "@asfc-test-" + uuid.uuid4().hex
        for path in (name, os.path.join(self.directory, "notify")):
            manager = NotifySocket(self, path)
            with mock.patch.dict(os.environ, NOTIFY_SOCKET=path, WATCHDOG_USEC="2500000",
                                 WATCHDOG_PID="1"):
                self.world.take_notify_socket()
                told = self.world.run([asfc.Command(("env",), 20)])[0].stdout
            self.assertNotRegex(told, "NOTIFY_SOCKET|WATCHDOG")
            self.assertEqual((self.world.notify_socket, self.world.watchdog_s), (path, 2.5))
            self.assertTrue(self.world.notify("READY=1\nSTATUS=\u00e4"))
            self.assertEqual(manager.texts(), ["READY=1\nSTATUS=\u00e4"])
            manager.socket.close()
            self.assertFalse(self.world.notify("READY=1"), "nobody listens any more")

    def test_a_manager_that_reads_nothing_holds_nobody_up(self):
        NotifySocket(self, os.path.join(self.directory, "notify"))
        self.world.notify_socket = os.path.join(self.directory, "notify")
        began = time.monotonic()
        self.assertFalse(all(self.world.notify("x" * 2000) for _ in range(2000)))
        self.assertLess(time.monotonic() - began, 5)

    def test_an_http_server_answers_one_request_a_connection_and_survives_what_is_none(self):
        def answer(path):
            if path == "/bug":
                raise ValueError("a bug")
            return 200 if path == "/well" else 503, "text/plain", "at " + path + "x" * 200000
        server = self.http_server()
        cases = ((b"GET /well HTTP/1.1\r\nHost: x\r\n\r\n", 200, 200008),
                 (b"GET /well?a=b HTTP/1.0\n\n", 200, 200008),
                 (b"HEAD /well HTTP/1.1\r\n\r\n", 200, 0), (b"GET / HTTP/1.1\r\n\r\n", 503, 200004),
                 (b"POST /well HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405, 18),
                 (b"GET /well\r\n\r\n", 400, 24), (b"\r\n\r\n", 400, 24),
                 (b"\x16\x03\x01\x02" + b"\xff" * 5000, 400, 24),
                 (b"GET /well HTTP/1.1\r\nX: " + b"y" * 9000, 400, 24),
                 (b"GET /well HTTP/1.1\r\n\r\n" * 50, 200, 200008))
        for sent, status, length in cases:
            with self.subTest(sent[:40]), self.serving(server, answer):
                head, _, body = self.say(server, sent).partition(b"\r\n\r\n")
                self.assertRegex(head, "HTTP/1.1 {} [A-Z]".format(status).encode())
                self.assertEqual(len(body), length)
                if b"HEAD" in sent:
                    self.assertIn(b"\r\nContent-Length: 200008\r\n", head)
        with socket.create_connection(server.address) as client:   # one that resets its connection
            server.serve(5, answer)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.serve(5, answer)
        self.assertEqual(len(server._clients), 0)
        with socket.create_connection(server.address) as client:
            client.sendall(b"GET /bug HTTP/1.1\r\n\r\n")
            with self.assertRaises(ValueError):
                while True:
                    server.serve(5, answer)
            self.assertEqual(client.recv(100), b"", "its connection is gone")

    def test_clients_that_are_slow_or_endless_or_deaf_lose_their_places_in_time(self):
        server = self.http_server()
        server.LIFE_S = 0.5
        answer = lambda path: (200, "text/plain", "x" * 3000000)   # noqa: E731

        def connect(text):
            client = socket.create_connection(server.address)
            self.addCleanup(client.close)
            client.sendall(text)
            return client
        for text in (b"", b"G", b"GET / HTTP/1.1\r\n\r\n"):   # the last one never reads
            connect(text)
        endless = connect(b"GET / HTTP/1.1\r\nX: ")
        began = time.monotonic()
        seen = 0
        while server._clients or time.monotonic() < began + 0.3:
            server.serve(0.05, answer)
            seen = max(seen, len(server._clients))
            with contextlib.suppress(OSError):
                endless.send(b"y")
        self.assertEqual(seen, 4)
        self.assertLess(time.monotonic() - began, 5)
        server.LIFE_S, server.MOST_CLIENTS = 60.0, 3
        clients = [connect(b"G") for _ in range(9)]
        for _ in range(5):
            server.serve(0.1, answer)
        self.assertEqual(len(server._clients), 3)
        self.assertEqual([client.recv(1) for client in clients[:6]], [b""] * 6, "the oldest")
        with self.serving(server, lambda path: (200, "text/plain", "well")):
            self.assertTrue(self.say(server, b"GET / HTTP/1.1\r\n\r\n").endswith(b"well"))

    def http_server(self):
        server = self.world.http_server("127.0.0.1", 0)
        self.addCleanup(server.close)
        server.address = server._listener.getsockname()
        return server

    @contextlib.contextmanager
    def serving(self, server, answer):
        ended = threading.Event()

        def serve():
            while not ended.is_set():
                server.serve(0.05, answer)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @staticmethod
    def say(server, text):
        """All that the server answers to a text, until it ends the connection."""
        with socket.create_connection(server.address, timeout=10) as client:
            client.sendall(text)
            return b"".join(iter(lambda: client.recv(65536), b""))

    def serve_pages(self, answers):
        """The URL of a server that gives these answers, one to each that asks; None: none."""
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.bind(("127.0.0.1", 0))
        listener.listen(5)

        def serve():
            for answer in answers:
                connection, _ = listener.accept()
                self.addCleanup(connection.close)
                connection.recv(65536)
                if answer:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
            listener.close()
        threading.Thread(target=serve, daemon=True).start()
        return "http://127.0.0.1:{}/health".format(listener.getsockname()[1])

    def test_a_page_is_fetched_whatever_its_status_and_one_that_hangs_is_an_error_in_time(self):
        url = self.serve_pages([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
                                b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", None])
        self.assertEqual(self.world.http_get(url, 5), (200, "{}"))
        self.assertEqual(self.world.http_get(url, 5), (404, "{}"))
        with self.assertRaises(OSError):
            self.world.http_get(url, 0.3)
        with self.assertRaises(OSError):
            self.world.http_get(url, 5)

    def test_what_is_no_http_is_an_error_of_the_operating_system(self):
        chunked = b"HTTP/1.1 {} X\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{{}}"
        for what, answer in (
                ("no status line", b"SSH-2.0-OpenSSH_9.6\r\n"),
                ("no status", b"HTTP/1.1 OK\r\n\r\n"), ("an end without a word", b"\r\n"),
                ("an endless header", b"HTTP/1.1 200 OK\r\n" + b"x" * 99999),
                ("a body that is cut off", chunked.replace(b"{}", b"200", 1)),
                ("an error's body that is cut off", chunked.replace(b"{}", b"503", 1))):
            with self.subTest(what):
                url = self.serve_pages([answer])
                with self.assertRaises(OSError):
                    self.world.http_get(url, 5)

    def test_a_command_line_of_one_text_is_split_and_a_zombie_is_no_process(self):
        """Airflow 2 gives itself one text with blanks for a command line."""
        process = subprocess.Popen([VENV + " -D", "60"], executable=find_program("sleep"))
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

        def listed():
            return [one.words for one in asfc.World().processes() if one.pid == process.pid]
        wait_until(lambda: listed() == [tuple(VENV.split()) + ("-D", "60")], 5, listed)
        process.kill()
        wait_until(lambda: process_fields(process.pid)[0] == "Z", 5, "it is a zombie")
        self.assertEqual(listed(), [])

    def test_no_stop_signal_is_lost_while_other_threads_run_commands(self):
        """When the main thread only joins the others, one of ten signals or so is."""
        program = (
            "import asfc\n"
            "world, asked = asfc.World(), []\n"
            "world.on_stop_signal(asked.append)\n"
            "def step():\n"
            "    world.run([asfc.Command(('true',), 5)])\n"
            "    return None if asked else 0.002\n"
            "print('ready', flush=True)\n"
            "world.run_loops({str(n): step for n in range(4)}, '0123')\n")
        for _ in range(1 if os.environ.get("ASFC_PLAIN") else 12):
            children = [subprocess.Popen([sys.executable, "-c", program], cwd=HERE,
                                         stdout=subprocess.PIPE) for _ in range(4)]
            for child in children:
                self.addCleanup(child.stdout.close)
                self.addCleanup(child.kill)
            for child in children:
                child.stdout.readline()
                time.sleep(0.03)    # somewhere among its commands
                child.send_signal(signal.SIGTERM)
            for child in children:
                self.assertEqual(child.wait(10), 0)


###############################################################################
# Configuration ###############################################################
###############################################################################

CFG = "/srv/airflow/airflow.cfg"
SECRET = "s3cret-pa55"
OLD_STOP = ("for pid in `ps -ef | grep \"airflow scheduler\" | awk '{print $2}'` %s "
            "do kill -9 $pid %s done")
OLD_START = "export AIRFLOW_HOME=%s;%s;nohup airflow scheduler >> ~/airflow/logs/scheduler.logs &"
MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime shared:7 - nfs4 files:/home rw,vers=4.2
31 30 8:2 / /home/local rw,relatime - xfs /dev/sdb1 rw
32 22 0:41 / /mnt/two\\040words rw - fuse.sshfs far:/x rw
33 22 0:42 / /mnt/twice rw - nfs files:/x rw
34 22 0:43 / /mnt/twice rw - tmpfs tmpfs rw
not a mount
"""


class FilesInMemory(asfc.World):
    """A world with files, an environment and a host name of its own; commands really run."""

    def __init__(self, files, environment=None, host="a"):
        super().__init__()
        self.files = dict(files)
        self.variables = dict({"AIRFLOW_HOME": "/srv/airflow", "HOME": "/home/me"},
                              **(environment or {}))
        self.host = host
        self.written = []

    def environment(self):
        return self.variables

    def host_name(self):
        return self.host

    def read_text(self, path):
        found = self.files.get(path)
        if isinstance(found, OSError):
            raise found
        return found

    def write_text(self, path, text):
        self.written.append(path)
        self.files[path] = text


def configured(section="", airflow="", environment=None, host="a", need_own_name=False, **more):
    """Load a configuration of these lines in our section, after `airflow`, the other sections."""
    text = airflow + "\n[scheduler_failover]\n" + section + "\n"
    world = FilesInMemory({CFG: text, "/proc/self/mountinfo": MOUNTS}, environment, host)
    return asfc.Configuration.load(world, need_own_name=need_own_name, **more)


def own(text):
    return "[scheduler_failover]\n" + text + "\n"


# What is broken: the file's text, more arguments, and words that the message must have.
URL = "sql_alchemy_conn = "
URL_COMMAND = "sql_alchemy_conn_cmd = "
ZOOKEEPER_COMMAND = ("metadata_service_type = ZookeeperMetadataService\n"
                     "metadata_service_zookeeper_auth_cmd = ")
KEY = "[scheduler_failover] "
NODES = "scheduler_nodes_in_cluster"
BROKEN = [
    ("no file", None, {}, [CFG, "no such file", "--config", "AIRFLOW_CONFIG"]),
    ("a directory", IsADirectoryError(21, "Is a directory"), {},
     [CFG, "Is a directory", "must be"]),
    ("unreadable", PermissionError(13, "Permission denied"), {},
     [CFG, "Permission denied", "may read"]),
    ("not UTF-8", own("# ok\n# \udce9t\udce9"), {}, [CFG, "line 3", "UTF-8"]),
    ("a zero byte", own("state_dir = /x\0y"), {}, [CFG, "line 2", "UTF-8"]),
    ("empty file", "", {}, ["[scheduler_failover]", "asfc.py init"]),
    ("section missing", "[core]\nx = 1\n", {}, ["no section [scheduler_failover]", "asfc.py init"]),
    ("section misspelt", "[Scheduler-Failover]\nx = 1\n", {}, ["something like it", "init"]),
    ("section twice", own("") + own(""), {}, ["line 3", "[scheduler_failover]", "second time"]),
    ("key twice", own("poll_frequency = 5\npoll_frequency = 6"), {},
     ["line 3", KEY + "poll_frequency", "second time", "remove"]),
    ("a line before sections", SECRET + " = 1\n" + own(""), {},
     ["line 1", "before the first", "remove"]),
    ("two garbage lines", own(SECRET + "\npoll_frequency = 1\nmore " + SECRET), {},
     ["line 2, 4", "key = value", "correct"]),
    ("poll not a number", own("poll_frequency = often"), {},
     [CFG, KEY + "poll_frequency = 'often'", "seconds from 1 to 3600"]),
    ("poll with a comment behind", own("poll_frequency = 10 # s"), {},
     [KEY + "poll_frequency", "a line of its own"]),
    ("poll too short", own("poll_frequency = 0.5"), {}, [KEY + "poll_frequency = '0.5'", "from 1"]),
    ("poll empty", own("poll_frequency ="), {}, [KEY + "poll_frequency = ''", "from 1"]),
    ("poll nan", own("poll_frequency = nan"), {}, [KEY + "poll_frequency = 'nan'", "from 1"]),
    ("poll wrong by environment", own(""), {"environment": {
        "AIRFLOW__SCHEDULER_FAILOVER__POLL_FREQUENCY": "x"}},
     ["environment variable AIRFLOW__SCHEDULER_FAILOVER__POLL_FREQUENCY",
      KEY + "poll_frequency = 'x'"]),
    ("heartbeat too short for its work", own("heartbeat_timeout = 5"), {},
     [KEY + "heartbeat_timeout = '5'", "seconds from 7.5"]),
    ("no nodes", own(NODES + " ="), {}, [KEY + NODES + " = ''", "separated by commas"]),
    ("only commas", own(NODES + " = , ,"), {}, [KEY + NODES, "separated by commas"]),
    ("a node like an option", own(NODES + " = a, -oProxyCommand=x"), {},
     [KEY + NODES, "host names"]),
    ("a node with a user", own(NODES + " = me@a"), {}, [KEY + NODES, "host names"]),
    ("a node with shell text", own(NODES + " = a, $(reboot)"), {}, [KEY + NODES, "host names"]),
    ("a node like no IPv6 address", own(NODES + " = a, fe80::1::2"), {},
     [KEY + NODES, "IP addresses"]),
    ("localhost beside others", own(NODES + " = localhost, b"), {},
     [KEY + NODES + " = 'localhost, b'", "beside other nodes", "get_current_host"]),
    ("own name not in the list", own(NODES + " = b, c\nstate_dir = /x"), {"need_own_name": True},
     [KEY + NODES + " = 'b, c'", "'a' is not in it", "get_current_host", "node_name"]),
    ("node_name not in the list", own(NODES + " = b, c\nnode_name = d\nstate_dir = /x"),
     {"need_own_name": True},
     [KEY + NODES, "'d' is not in it", "`get_current_host` prints 'a'", "node_name"]),
    ("node_name no host name", own("node_name = a b"), {},
     [KEY + "node_name = 'a b'", "host name"]),
    ("host name not usable", own(""), {"host": "-a"}, [KEY + "node_name", "'-a'", "set node_name"]),
    ("unknown metadata service", own("metadata_service_type = Redis"), {},
     [KEY + "metadata_service_type = 'Redis'", "SQLMetadataService, ZookeeperMetadataService"]),
    ("bad ZooKeeper servers", own("metadata_service_zookeeper_nodes = a;b"), {},
     [KEY + "metadata_service_zookeeper_nodes", "host:port"]),
    ("a ZooKeeper user without a password", own("metadata_service_zookeeper_auth = " + SECRET),
     {}, [KEY + "metadata_service_zookeeper_auth = (not shown)", "user:password"]),
    ("a command that prints no ZooKeeper user", own(ZOOKEEPER_COMMAND + "echo " + SECRET), {},
     [KEY + "metadata_service_zookeeper_auth_cmd = (not shown)", "user:password"]),
    ("a command for the ZooKeeper user that fails", own(ZOOKEEPER_COMMAND + "false " + SECRET), {},
     [KEY + "metadata_service_zookeeper_auth_cmd = (not shown)", "exit status 1"]),
    ("unknown level", own("logging_level = LOUD"), {}, [KEY + "logging_level = 'LOUD'", "DEBUG"]),
    ("unknown rotation", own("logs_rotate_when = W7"), {}, [KEY + "logs_rotate_when = 'W7'", "W6"]),
    ("negative backups", own("logs_rotate_backup_count = -1"), {},
     [KEY + "logs_rotate_backup_count", "from 0"]),
    ("log file is a path", own("logging_file_name = a/b"), {},
     [KEY + "logging_file_name = 'a/b'", "without /"]),
    ("log directory is relative", own("logging_dir = logs"), {},
     [KEY + "logging_dir = 'logs'", "begins with"]),
    ("retries not whole", own("retry_count_before_alerting = 1.5"), {},
     [KEY + "retry_count_before_alerting = '1.5'", "a whole number from 1"]),
    ("no retries", own("retry_count_before_alerting = 0"), {},
     [KEY + "retry_count_before_alerting", "from 1"]),
    ("mail address", own("alert_to_email = Me <me@x.org>"), {},
     [KEY + "alert_to_email", "mail addresses"]),
    ("empty subject", own("alert_email_subject ="), {}, [KEY + "alert_email_subject", "a text"]),
    ("state_dir relative", own("state_dir = asfc"), {},
     [KEY + "state_dir = 'asfc'", "begins with / or ~/"]),
    ("state_dir of another user", own("state_dir = ~bob/x"), {},
     [KEY + "state_dir = '~bob/x'", "begins with"]),
    ("state_dir on NFS", own("state_dir = /home/x"), {"need_own_name": True},
     [KEY + "state_dir = '/home/x'", "nfs4", "local"]),
    ("ssh command without its quote", own("ssh_command = ssh -o 'x"), {},
     [KEY + "ssh_command", "paired quotes"]),
    ("ssh command empty", own("ssh_command ="), {}, [KEY + "ssh_command = ''", "shell words"]),
    ("ssh options without a quote", own("ssh_options = \"-v"), {},
     [KEY + "ssh_options", "paired quotes"]),
    ("mail password of two lines", own("smtp_password = " + SECRET + "\n  more"), {},
     [KEY + "smtp_password = (not shown)", "one line of text"]),
    ("user like an option", own("scheduler_user = -x"), {},
     [KEY + "scheduler_user = '-x'", "a user name"]),
    ("virtualenv relative", own("airflow_virtualenv = venv/bin/activate"), {},
     [KEY + "airflow_virtualenv", "begins with / or ~/"]),
    ("--venv relative", own(""), {"overrides": {"airflow_virtualenv": "v"}},
     ["command line", KEY + "airflow_virtualenv = 'v'", "begins with"]),
    ("neither yes nor no", own("health_page_verify_tls = maybe"), {},
     [KEY + "health_page_verify_tls = 'maybe'", "True or False"]),
    ("query limit too long", own("query_timeout = 600"), {},
     [KEY + "query_timeout = '600'", "0.5 to 60"]),
    ("infinite sleep", own("scheduler_restart_sleep_time = inf"), {},
     [KEY + "scheduler_restart_sleep_time = 'inf'", "3600"]),
    ("URL is none", "[core]\n" + URL + SECRET + "\n" + own(""), {},
     ["[core] sql_alchemy_conn", "must be the URL"]),
    ("a bare % in the URL",
     "[database]\n" + URL + "mysql://u:" + SECRET + "%40@h/d\n" + own(""), {},
     ["[database] sql_alchemy_conn", "written as %%"]),
    ("URL's command fails",
     "[core]\n" + URL_COMMAND + "sh -c 'echo " + SECRET + "; exit 3'\n" + own(""), {},
     ["[core] sql_alchemy_conn_cmd", "exit status 3", "prints the value"]),
    ("URL's command is not there", "[core]\n" + URL_COMMAND + "/no/" + SECRET + "\n" + own(""), {},
     ["[core] sql_alchemy_conn_cmd", "no such program"]),
    ("URL's command has a lone quote",
     "[core]\n" + URL_COMMAND + "echo '" + SECRET + "\n" + own(""), {},
     ["[core] sql_alchemy_conn_cmd", "quotes"]),
    ("URL's command is silent", "[core]\n" + URL_COMMAND + "true\n" + own(""), {},
     ["[core] sql_alchemy_conn_cmd", "printed nothing"]),
    ("URL wrong by environment", own(""),
     {"environment": {"AIRFLOW__CORE__SQL_ALCHEMY_CONN": SECRET}},
     ["environment variable AIRFLOW__CORE__SQL_ALCHEMY_CONN", "[core] sql_alchemy_conn",
      "the URL"]),
    ("URL in a secrets backend",
     "[database]\nsql_alchemy_conn_secret = " + SECRET + "\n" + own(""), {},
     ["[database] sql_alchemy_conn_secret", "secrets backend", "sql_alchemy_conn_cmd"]),
    ("mail port", "[smtp]\nsmtp_port = smtp\n" + own(""), {},
     ["[smtp] smtp_port = 'smtp'", "1 to 65535"]),
    ("mail TLS", "[smtp]\nsmtp_starttls = perhaps\n" + own(""), {},
     ["[smtp] smtp_starttls", "True or False"]),
    ("mail host", "[smtp]\nsmtp_host = -x\n" + own(""), {},
     ["[smtp] smtp_host = '-x'", "a host name"]),
    ("mail password's %", "[smtp]\nsmtp_password = %" + SECRET + "\n" + own(""), {},
     ["[smtp] smtp_password", "written as %%"]),
    ("health threshold",
     "[scheduler]\nscheduler_health_check_threshold = soon\n" + own(""), {},
     ["[scheduler] scheduler_health_check_threshold = 'soon'", "seconds"]),
]


class BrokenConfigurations(unittest.TestCase):
    def load(self, text, environment=None, host="a", **more):
        files = {"/proc/self/mountinfo": MOUNTS}
        if text is not None:
            files[CFG] = text
        self.world = FilesInMemory(files, environment, host)
        return asfc.Configuration.load(self.world, **more)

    def test_each_of_many_broken_configurations_is_named_with_its_remedy(self):
        self.assertGreaterEqual(len(BROKEN), 40)
        for name, text, more, words in BROKEN:
            with self.subTest(name):
                with self.assertRaises(asfc.ConfigurationError) as caught:
                    self.load(text, **more)
                message = str(caught.exception)
                self.assertEqual(caught.exception.exit_status, 78)
                for word in words:
                    self.assertIn(word, message)
                self.assertEqual(len(message.splitlines()), 1, message)
                self.assertNotIn(SECRET, message)
                self.assertEqual(self.world.written, [])

    def test_three_errors_are_reported_together(self):
        text = "[smtp]\nsmtp_port = x\n" + own("poll_frequency = x\nlogging_level = x")
        with self.assertRaises(asfc.ConfigurationError) as caught:
            self.load(text)
        lines = str(caught.exception).splitlines()
        self.assertEqual(len(lines), 3, lines)
        for key in ("smtp_port", "poll_frequency", "logging_level"):
            self.assertEqual(len([line for line in lines if key in line]), 1)

    def test_a_secret_of_our_own_section_is_never_shown(self):
        configuration = self.load(own("smtp_password = " + SECRET))
        self.assertEqual(configuration.smtp.password, SECRET)
        said = configuration.warnings + configuration.notes
        self.assertNotIn(SECRET, repr(configuration) + "".join(said))


class ValidConfigurations(unittest.TestCase):
    def test_the_defaults_are_what_the_documentation_says(self):
        configuration = configured()
        expected = {
            "scheduler_nodes_in_cluster": ("a",), "node_name": "a", "poll_frequency": 10.0,
            "heartbeat_timeout": 30.0, "airflow_scheduler_start_command": "", "alert_to_email": (),
            "logging_dir": "/home/me/airflow/logs/scheduler_failover/", "state_dir": "~/.asfc",
            "state_dir_here": "/home/me/.asfc", "heartbeat_interval_s": 3.0,
            "acting_window_s": 20.0, "retry_interval_s": 1.0, "metadata_limit_s": 3.0,
            "settle_s": 5.0, "stop_timeout_s": 26.0, "health_threshold_s": 30.0, "health_urls": (),
            "airflow_home": "/srv/airflow", "path": CFG, "airflow_home_is_explicit": True,
            "warnings": (), "notes": (), "sql_alchemy_conn": "sqlite:////srv/airflow/airflow.db",
            "smtp": asfc.SmtpSettings("localhost", 25, "", "", True, False, "airflow@example.com",
                                      30.0)}
        for name, value in expected.items():
            self.assertEqual(getattr(configuration, name), value, name)

    def test_every_option_is_a_field_and_its_default_is_allowed(self):
        for option in asfc.OPTIONS:
            self.assertEqual(option.name, option.name.lower())
            self.assertIn(option.name, asfc.Configuration._fields)
            option.parse(option.default)

    def test_a_loaded_configuration_is_read_only(self):
        with self.assertRaises(AttributeError):
            configured().poll_frequency = 1

    def test_odd_but_valid_values_work(self):
        for section, key, value in (
                (NODES + " = h1, h2 ,,h3 , ", NODES, ("h1", "h2", "h3")),
                (NODES + " =\n  h1,\n  h2", NODES, ("h1", "h2")),
                (NODES + " = fe80::1%eth0, 10.0.0.1, my_host.x-y.org", NODES,
                 ("fe80::1%eth0", "10.0.0.1", "my_host.x-y.org")),
                (NODES + " = h1, H1, h2", NODES, ("h1", "h2")),
                (NODES + " = b, b", "warnings", (
                    CFG + ", [scheduler_failover] scheduler_nodes_in_cluster: b stands there more "
                    "than once; it counts once.",)),
                (NODES + " = A, b", "node_name", "A"),
                (NODES + " = 127.0.0.1", NODES, ("a",)),
                (NODES + " = localhost\nnode_name = n1", NODES, ("n1",)),
                ("POLL_FREQUENCY : 2.5", "poll_frequency", 2.5),
                ("heartbeat_timeout = 7.5", "heartbeat_timeout", 7.5),
                ("logging_level = warn", "logging_level", "WARNING"),
                ("logging_level = NOTSET", "logging_level", "NOTSET"),
                ("logs_rotate_when = MIDNIGHT", "logs_rotate_when", "midnight"),
                ("logs_rotate_when = w6", "logs_rotate_when", "W6"),
                ("logging_dir = ~/logs", "logging_dir", "/home/me/logs"),
                ("health_page_verify_tls = f", "health_page_verify_tls", False),
                ("alert_to_email = a@x.org; b@x.org,root", "alert_to_email",
                 ("a@x.org", "b@x.org", "root")),
                ("metadata_service_zookeeper_nodes = a:1, b:2/x",
                 "metadata_service_zookeeper_nodes", "a:1,b:2/x"),
                ("alert_email_subject = 100 % down", "alert_email_subject", "100 % down"),
                ("ssh_command = ssh -F '/a b'", "ssh_command", "ssh -F '/a b'"),
                ("airflow_scheduler_start_command = touch /tmp/$(date +%Y) $HOME \\; {{x}} # y",
                 "airflow_scheduler_start_command", "touch /tmp/$(date +%Y) $HOME \\; {{x}} # y"),
                ("airflow_scheduler_stop_command = a \\; b {{x}}",
                 "airflow_scheduler_stop_command", "a ; b {{x}}")):
            with self.subTest(section):
                self.assertEqual(getattr(configured(section), key), value)

    def test_a_connect_string_of_zookeeper_is_read_as_a_whole(self):
        for text, hosts, chroot in (
                ("h", [("h", 2181)], ""), ("h:", [("h", 2181)], ""), ("h:1/", [("h", 1)], ""),
                (" a:1 ,\n b , c:65535/x/y", [("a", 1), ("b", 2181), ("c", 65535)], "/x/y"),
                ("a,,b,", [("a", 2181), ("b", 2181)], ""), ("10.0.0.1:5", [("10.0.0.1", 5)], ""),
                ("[::1]:2182,[fe80::1%eth0]/a b-é.1/",
                 [("::1", 2182), ("fe80::1%eth0", 2181)], "/ab-é.1")):
            found = asfc.ZookeeperNodes.of(text)
            self.assertEqual(found, (tuple(hosts), chroot))
            self.assertEqual(asfc.ZookeeperNodes.of(str(found)), found)
        self.assertEqual(str(found), "[::1]:2182,[fe80::1%eth0]:2181/ab-é.1")
        for text in ("", ",", "/x", ":1", "a:x", "a:0", "a:65536", "a:-1", "a:1:2", "::1", "::1:1",
                     "[::1", "[::1]1", "[h]:1", "[]:1", "a;b", "a b;", "-a", "a:1//x", "a/x//y",
                     "a/./x", "a/../x", "a/x\x01", "a:123456", "http://a:1"):
            with self.assertRaises(ValueError, msg=text):
                asfc.ZookeeperNodes.of(text)

    def test_the_user_of_zookeeper_comes_from_a_key_or_a_command_and_is_shown_nowhere(self):
        key = "metadata_service_zookeeper_auth"
        for section, value in (
                (key + " = u:" + SECRET, "u:" + SECRET),
                (ZOOKEEPER_COMMAND + "echo 'u:%$HOME ;" + SECRET + "'", "u:%$HOME ;" + SECRET),
                (ZOOKEEPER_COMMAND + "echo no\n" + key + " = u:" + SECRET, "u:" + SECRET),
                (key + "_cmd = touch /nonexistent/directory", ""),   # not ZooKeeper: it is not run
                (ZOOKEEPER_COMMAND, "")):
            configuration = configured(section)
            self.assertEqual(getattr(configuration, key), value)
            said = configuration.warnings + configuration.notes
            self.assertNotIn(SECRET, repr(configuration) + "".join(said))

    def test_files_of_odd_form_work(self):
        plain = own("poll_frequency = 7\n" + NODES + " = a, b")
        for name, text in (("CRLF", plain.replace("\n", "\r\n")), ("BOM", "\ufeff" + plain),
                           ("no newline at the end", plain.rstrip()),
                           ("[DEFAULT]", "[DEFAULT]\nx = 1\n" + plain),
                           ("broken values elsewhere", "[other]\nbad = %Y\n\n" + plain),
                           ("a comment names the section", "# [scheduler_failover]\n" + plain)):
            with self.subTest(name):
                found = asfc.Configuration.load(FilesInMemory({CFG: text}))
                self.assertEqual((found.poll_frequency, found.scheduler_nodes_in_cluster),
                                 (7.0, ("a", "b")))
                self.assertEqual(found.warnings, ())

    def test_the_environment_goes_before_the_file_and_is_read_raw(self):
        variables = {"AIRFLOW__SCHEDULER_FAILOVER__POLL_FREQUENCY": "4",
                     "AIRFLOW__SCHEDULER_FAILOVER__AIRFLOW_SCHEDULER_START_COMMAND": "x %% $HOME"}
        configuration = configured("poll_frequency = 7", environment=variables)
        self.assertEqual(configuration.poll_frequency, 4.0)
        self.assertEqual(configuration.airflow_scheduler_start_command, "x %% $HOME")
        without_section = asfc.Configuration.load(FilesInMemory({CFG: "[core]\n"}, variables))
        self.assertEqual(without_section.poll_frequency, 4.0)

    def test_the_command_line_goes_before_the_environment(self):
        configuration = configured(
            "airflow_virtualenv = /file", overrides={"airflow_virtualenv": "/line"},
            environment={"AIRFLOW__SCHEDULER_FAILOVER__AIRFLOW_VIRTUALENV": "/variable"})
        self.assertEqual(configuration.airflow_virtualenv, "/line")

    def test_the_own_name_is_only_asked_for_when_it_is_needed(self):
        self.assertEqual(configured(NODES + " = b, c").node_name, "a")
        self.assertEqual(configured(NODES + " = b, c\nnode_name = c\nstate_dir = /x",
                                    need_own_name=True).node_name, "c")

    def test_an_operators_commands_have_longer_limits(self):
        configuration = configured("airflow_scheduler_start_command = sudo systemctl restart s\n"
                                   "airflow_scheduler_stop_command = sudo systemctl stop s")
        self.assertEqual((configuration.settle_s, configuration.stop_timeout_s), (35.0, 86.0))
        self.assertEqual(configuration.airflow_scheduler_stop_command, "sudo systemctl stop s")

    def test_an_unknown_key_is_a_warning_with_the_nearest_name(self):
        configuration = configured("pol_frequency = 3\nzzz = 1", environment={
            "AIRFLOW__SCHEDULER_FAILOVER__STATE_DIRR": "/x"})
        warnings = "\n".join(configuration.warnings)
        for words in ("pol_frequency: asfc has no such key", "did you mean poll_frequency?",
                      "zzz: asfc has no such key, it is ignored.",
                      "AIRFLOW__SCHEDULER_FAILOVER__STATE_DIRR", "did you mean state_dir?"):
            self.assertIn(words, warnings)
        self.assertEqual(len(configuration.warnings), 3)

    def test_the_strangers_address_is_dropped_with_a_warning(self):
        for given, kept in (("airflow@airflow.com", ()),
                            ("me@x.org, Airflow@airflow.com", ("me@x.org",))):
            configuration = configured("alert_to_email = " + given)
            self.assertEqual(configuration.alert_to_email, kept)
            self.assertEqual(len(configuration.warnings), 1)
            self.assertIn("alert_to_email", configuration.warnings[0])


class TextsOfTheOldController(unittest.TestCase):
    def test_its_default_texts_are_replaced_by_our_own_commands(self):
        starts = (("~/airflow", "source /opt/v/bin/activate", "/opt/v/bin/activate"),
                  ("~/airflow", "", ""), ("~/airflow", "{}", ""),
                  ("/srv/airflow", "source v/bin/activate", "~/v/bin/activate"),
                  ("~/airflow", "source $HOME/v/bin/activate", "~/v/bin/activate"))
        stops = (OLD_STOP % ("\\;", "\\;"), OLD_STOP % (";", ";"),
                 (OLD_STOP % ("\\;", "\\;")).replace("{", "{{").replace("}", "}}"))
        for home, middle, virtualenv in starts:
            for stop in stops:
                with self.subTest((home, middle, stop)):
                    configuration = configured(
                        "airflow_scheduler_start_command = {}\nairflow_scheduler_stop_command = {}"
                        .format(OLD_START % (home, middle), stop))
                    self.assertEqual(configuration.airflow_scheduler_start_command, "")
                    self.assertEqual(configuration.airflow_scheduler_stop_command, "")
                    self.assertEqual(configuration.airflow_virtualenv, virtualenv)
                    self.assertEqual(configuration.airflow_home, "/srv/airflow")
                    self.assertEqual(len(configuration.notes), 2, configuration.notes)

    def test_what_such_a_text_says_of_home_and_log_is_kept(self):
        configuration = configured(
            "airflow_scheduler_start_command = export AIRFLOW_HOME=/data/af;source /v/bin/activate;"
            "nohup airflow scheduler >> /data/log &\nairflow_virtualenv = /w/bin/activate",
            environment={"AIRFLOW_HOME": "", "AIRFLOW_CONFIG": CFG})
        self.assertEqual((configuration.airflow_home, configuration.airflow_home_is_explicit),
                         ("/data/af", True))
        self.assertEqual(configuration.airflow_scheduler_log_file, "/data/log")
        self.assertEqual(configuration.airflow_virtualenv, "/w/bin/activate",
                         "a key of its own wins")
        self.assertIn("AIRFLOW_HOME=/data/af", configuration.notes[0])
        self.assertEqual(configuration.sql_alchemy_conn, "sqlite:////data/af/airflow.db")

    def test_a_changed_text_is_an_operators_own(self):
        for text in ("export AIRFLOW_HOME=~/airflow;ulimit -n 9;nohup airflow scheduler >> ~/l &",
                     OLD_START % ("~/airflow", "source 'x") , "airflow scheduler -D"):
            configuration = configured("airflow_scheduler_start_command = " + text)
            self.assertEqual(configuration.airflow_scheduler_start_command, text)
            self.assertEqual(configuration.notes, ())


class AirflowsOwnKeys(unittest.TestCase):
    def conn(self, airflow, **environment):
        return configured("", airflow + "\n", environment).sql_alchemy_conn

    def test_the_database_url_is_found_by_airflows_rules(self):
        core = "[core]\nsql_alchemy_conn = x://core"
        database = "[database]\nsql_alchemy_conn = x://db"
        by_core = {"AIRFLOW__CORE__SQL_ALCHEMY_CONN": "x://env-core"}
        by_database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "x://env-db"}
        both = core + "\n" + database
        for file, environment, expected in (
                (core, {}, "x://core"), (database, {}, "x://db"), (both, {}, "x://db"),
                (both, by_core, "x://env-core"), (both, by_database, "x://env-db"),
                (both, dict(by_core, **by_database), "x://env-db"),
                ("", {"AIRFLOW__CORE__SQL_ALCHEMY_CONN_CMD": "echo x://cmd"}, "x://cmd"),
                (core, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD": "echo x://cmd"}, "x://cmd"),
                ("[core]\nsql_alchemy_conn_cmd = echo 'x://a b' ", {}, "x://a b"),
                ("[core]\nsql_alchemy_conn_cmd = printf '%%s' 'x://$HOME'", {}, "x://$HOME"),
                (core + "\nsql_alchemy_conn_cmd = false", {}, "x://core"),
                ("[core]\nsql_alchemy_conn =\n" + database, {}, "x://db"),
                ("[core]\nbad = %Y\nsql_alchemy_conn = x://u:p%%40@h", {}, "x://u:p%40@h"),
                ("[core]\nsql_alchemy_conn = x://a:p%%40ss%%25w%%3Ard@h:1/d", {},
                 "x://a:p%40ss%25w%3Ard@h:1/d"),
                (database, {"AIRFLOW__CORE__SQL_ALCHEMY_CONN_CMD": "echo x://cmd"}, "x://cmd"),
                (core + "\n[database]\n# sql_alchemy_conn = \nsql_alchemy_pool_size = 5", {},
                 "x://core"),
                ("[core]\nsql_alchemy_conn_cmd = echo x://core\n"
                 "[database]\nsql_alchemy_conn_cmd = echo x://db", {}, "x://db"),
                ("[core]\nhost = h\nsql_alchemy_conn = x://%(host)s", {}, "x://h"),
                ("[core]\nsql_alchemy_conn = x://${WHERE}/$HOME/~/$NONE",
                 {"WHERE": "$DEEP", "DEEP": "h"}, "x://h//home/me/~/$NONE"),
                ("", {"AIRFLOW__CORE__SQL_ALCHEMY_CONN": "x://u:p%%40@$HOST", "HOST": "h"},
                 "x://u:p%%40@h"),
                ("", {"AIRFLOW_HOME": "~/af", "AIRFLOW_CONFIG": CFG},
                 "sqlite:////home/me/af/airflow.db")):
            with self.subTest((file, environment)):
                self.assertEqual(self.conn(file, **environment), expected)

    def test_a_variable_that_names_itself_ends(self):
        self.assertIn("x://", self.conn("[core]\nsql_alchemy_conn = x://$A", A="$A"))

    def test_the_file_is_found_as_airflow_finds_it(self):
        for environment, path, expected in (
                ({}, None, "/srv/airflow/airflow.cfg"),
                ({"AIRFLOW_HOME": ""}, None, "/home/me/airflow/airflow.cfg"),
                ({"AIRFLOW_HOME": "$HOME/af"}, None, "/home/me/af/airflow.cfg"),
                ({"AIRFLOW_CONFIG": "~/x.cfg"}, None, "/home/me/x.cfg"),
                ({"AIRFLOW_CONFIG": "~/x.cfg"}, "/y.cfg", "/y.cfg")):
            world = FilesInMemory({expected: own("")}, environment)
            self.assertEqual(asfc.find_airflow_cfg(world, path), expected)
            self.assertEqual(asfc.Configuration.load(world, path).path, expected)

    def test_mail_settings_of_all_versions_are_read(self):
        smtp = configured("smtp_user = ours", (
            "[smtp]\nsmtp_host = mail.x.org\nsmtp_port = 465 \nsmtp_ssl = True # yes\n"
            "smtp_user = theirs\nsmtp_password_cmd = echo p%%w\nsmtp_timeout = 7\n"
            "smtp_mail_from = Me <me@x.org>\n")).smtp
        self.assertEqual(smtp, asfc.SmtpSettings("mail.x.org", 465, "ours", "p%w", False, True,
                                                 "Me <me@x.org>", 7.0))

    def test_a_login_at_the_mail_server_is_ours_where_airflow_3_has_no_keys_for_it(self):
        airflow_3 = ("[smtp]\nsmtp_host = localhost\nsmtp_starttls = True\nsmtp_ssl = False\n"
                     "smtp_port = 25\nsmtp_mail_from = airflow@example.com\nsmtp_timeout = 30\n")
        airflow_2 = airflow_3 + "smtp_user =\nsmtp_password =\n"
        password = {"AIRFLOW__SCHEDULER_FAILOVER__SMTP_PASSWORD": "p%w"}
        for airflow, section, environment, login in (
                (airflow_3, "", {}, ("", "")), (airflow_2, "", {}, ("", "")),
                (airflow_3 + "# smtp_user = airflow\n", "", {}, ("", "")),
                (airflow_3, "smtp_user = me\nsmtp_password = a%b", {}, ("me", "a%b")),
                (airflow_2, "smtp_user = me", password, ("me", "p%w")),
                (airflow_3, "", {"AIRFLOW__SMTP__SMTP_USER": "env"}, ("env", ""))):
            with self.subTest((section, environment)):
                smtp = configured(section, airflow, environment).smtp
                self.assertEqual((smtp.user, smtp.password), login)
                self.assertEqual((smtp.port, smtp.starttls, smtp.ssl), (25, True, False))

    def test_the_health_page_is_asked_only_where_a_base_url_is_set(self):
        old, new = "/health", "/api/v2/monitor/health"
        for airflow, environment, expected in (
                ("[webserver]\nbase_url = http://w:8080/\n", {},
                 ("http://w:8080" + old, "http://w:8080" + new)),
                ("[api]\nbase_url = https://w/x\n", {}, ("https://w/x" + new, "https://w/x" + old)),
                ("[api]\n# base_url = \nport = 8080\nhost = 0.0.0.0\n", {}, ()),
                ("[api]\n# base_url =\n[webserver]\nbase_url = http://w\n", {},
                 ("http://w" + old, "http://w" + new)),
                ("", {"AIRFLOW__API__BASE_URL": "http://e"}, ("http://e" + new, "http://e" + old))):
            configuration = configured("", airflow, environment)
            self.assertEqual(configuration.health_urls, expected)
        odd = configured("", "[webserver]\nbase_url = me:%s@host\n" % SECRET)
        self.assertEqual((odd.health_urls, len(odd.warnings)), ((), 1))
        self.assertNotIn(SECRET, odd.warnings[0])


class Init(unittest.TestCase):
    def test_the_section_is_appended_once_and_loads_without_a_warning(self):
        for before in ("", "[core]\nx = 1\n", "[core]\nx = 1", "[core]\r\nx = 1\r\n",
                       "# [scheduler_failover]\n"):
            with self.subTest(before):
                world = FilesInMemory({CFG: before})
                self.assertIn("was appended",
                              asfc.append_default_section(world, CFG, "/v/bin/activate"))
                after = world.files[CFG]
                self.assertTrue(after.startswith(before))
                self.assertEqual(after.count("\r\n"), after.count("\n") if "\r" in before else 0)
                self.assertIn("already", asfc.append_default_section(world, CFG, ""))
                self.assertEqual(world.files[CFG], after)
                configuration = asfc.Configuration.load(world, need_own_name=True)
                self.assertEqual((configuration.warnings, configuration.notes), ((), ()))
                self.assertEqual(configuration.airflow_virtualenv, "/v/bin/activate")

    def test_every_key_stands_in_the_section_and_uncommented_it_still_loads(self):
        text = asfc.default_section_text()
        for option in asfc.OPTIONS:
            self.assertRegex(text, r"(?m)^(# )?{} =".format(option.name))
        everything = re.sub(r"(?m)^# (?=\w+ =( |$))", "", text)
        configuration = asfc.Configuration.load(FilesInMemory({CFG: everything}))
        self.assertEqual(configuration, configured())
        self.assertLessEqual(max(len(line) for line in text.splitlines()), 100)

    def test_the_table_for_people_has_every_key(self):
        rows = asfc.options_table_markdown().splitlines()
        self.assertEqual(len(rows), len(asfc.OPTIONS) + 2)
        for option, row in zip(asfc.OPTIONS, rows[2:]):
            self.assertTrue(row.startswith("| `{}` |".format(option.name)))
            self.assertEqual(len(re.findall(r"(?<!\\)\|", row)), 5)

    def test_what_stands_in_its_way_is_an_error_and_nothing_is_written(self):
        for text, virtualenv, words in (
                (None, "", "no such file"), ("garbage\n", "", "line 1"), ("", "v\nx = 1", "--venv"),
                (PermissionError(13, "Permission denied"), "", "Permission denied")):
            world = FilesInMemory({CFG: text})
            with self.assertRaises(asfc.ConfigurationError) as caught:
                asfc.append_default_section(world, CFG, virtualenv)
            self.assertIn(words, str(caught.exception))
            self.assertEqual(world.written, [])

    def test_a_real_file_keeps_its_mode_and_its_link(self):
        with tempfile.TemporaryDirectory() as directory:
            path, link = os.path.join(directory, "real.cfg"), os.path.join(directory, "airflow.cfg")
            write_file(path, "[core]\n")
            os.chmod(path, 0o640)
            os.symlink(path, link)
            asfc.append_default_section(asfc.World(), link, "")
            self.assertTrue(os.path.islink(link))
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o640)
            self.assertEqual(sorted(os.listdir(directory)), ["airflow.cfg", "real.cfg"])
            self.assertIn("[scheduler_failover]", read_file(path))

    def test_a_directory_that_can_not_be_written_is_an_error(self):
        class ReadOnly(FilesInMemory):
            def write_text(self, path, text):
                raise OSError(30, "Read-only file system")
        with self.assertRaisesRegex(asfc.ConfigurationError, "Read-only file system"):
            asfc.append_default_section(ReadOnly({CFG: ""}), CFG, "")


class NetworkFileSystems(unittest.TestCase):
    def test_the_deepest_and_latest_mount_decides(self):
        world = FilesInMemory({"/proc/self/mountinfo": MOUNTS})
        for path, kind in (("/srv/x", ""), ("/home", "nfs4"), ("/home/me/.asfc", "nfs4"),
                           ("/homes", ""), ("/home/local/x", ""),
                           ("/mnt/two words/x", "fuse.sshfs"), ("/mnt/twice/x", "")):
            self.assertEqual(asfc.network_file_system(world, path), kind, path)

    def test_unreadable_mounts_are_no_network(self):
        for mounts in ({}, {"/proc/self/mountinfo": PermissionError(13, "Permission denied")}):
            self.assertEqual(asfc.network_file_system(FilesInMemory(mounts), "/home"), "")


###############################################################################
# Metadata services ###########################################################
###############################################################################


def metadata_settings(url, limit_s=3.0, **keys):
    """The part of a configuration that a metadata service reads; a url zookeeper://... stands for
    a connect string."""
    scheme, _, nodes = url.partition("://")
    kind = "ZookeeperMetadataService" if scheme == "zookeeper" else "SQLMetadataService"
    return argparse.Namespace(**dict(
        {"metadata_service_type": kind, "sql_alchemy_conn": url,
         "metadata_service_zookeeper_nodes": nodes, "metadata_service_zookeeper_auth": "",
         "metadata_limit_s": limit_s, "allow_sqlite_on_network_file_system": False}, **keys))


def service_for(url, limit_s=3.0, **keys):
    return asfc.metadata_service(asfc.World(), metadata_settings(url, limit_s, **keys))


def arguments_of(url, is_mariadb=True):
    """The command line and the environment that a URL becomes."""
    service = service_for(url)
    if isinstance(service, asfc.MySQLMetadataService):
        service._program, service._is_mariadb_client = "mysql", is_mariadb
    return service._command(["SELECT 1"], 3.0)


def stand_in(case, name, script):
    """Put a program of this name first on PATH for the rest of a test; returns its directory."""
    directory = tempfile.mkdtemp(prefix="asfc-stand-in-")
    case.addCleanup(shutil.rmtree, directory)
    write_program(os.path.join(directory, name), "#!/bin/sh\n" + script)
    patch = mock.patch.dict(os.environ, PATH=directory + os.pathsep + os.environ.get("PATH", ""))
    patch.start()
    case.addCleanup(patch.stop)
    return directory


class ADatabaseUrl(unittest.TestCase):
    GOOD = [
        # URL, (kind, driver, user, password, host, port, database, options)
        ("sqlite:////var/airflow.db", ("sqlite", "", "", "", "", "", "/var/airflow.db", {})),
        ("sqlite:////a b%20c@d:e/x.db?timeout=3",
         ("sqlite", "", "", "", "", "", "/a b%20c@d:e/x.db", {"timeout": "3"})),
        ("mysql://h/d", ("mysql", "", "", "", "h", "", "d", {})),
        ("mariadb+pymysql://u@h:1/d", ("mysql", "pymysql", "u", "", "h", "1", "d", {})),
        ("mysql+mysqldb://u:p%40s%3As%2Fw%25@h:3307/d?charset=utf8mb4&ssl_ca=%2Fca",
         ("mysql", "mysqldb", "u", "p@s:s/w%", "h", "3307", "d",
          {"charset": "utf8mb4", "ssl_ca": "/ca"})),
        ("postgresql+psycopg2://u%40x:p@[fe80::1]:5433/d",
         ("postgresql", "psycopg2", "u@x", "p", "fe80::1", "5433", "d", {})),
        ("postgres://azure@srv:p+q@h/d", ("postgresql", "", "azure@srv", "p+q", "h", "", "d", {})),
        ("postgresql://u:p@ss@h/d", ("postgresql", "", "u", "p@ss", "h", "", "d", {})),
        ("postgresql://u:a/b?c@h/d", ("postgresql", "", "u", "a/b?c", "h", "", "d", {})),
        ("postgresql://u:p@h/d?options=a%40b",
         ("postgresql", "", "u", "p", "h", "", "d", {"options": "a@b"})),
        ("postgresql://u@/d?host=/run/pg",
         ("postgresql", "", "u", "", "", "", "d", {"host": "/run/pg"})),
        ("postgresql:///d", ("postgresql", "", "", "", "", "", "d", {})),
        ("postgresql://u@h:/d", ("postgresql", "", "u", "", "h", "", "d", {})),
    ]
    BAD = ["", "airflow", "mysql:/u:secret@h/d", "mysql://u:secret@h:port/d",
           "mysql://u:secret@h:99999/d", "mysql://u:secret@h:0/d",
           "oracle://u:secret@h/d", "mssql+pyodbc://u:secret@h/d",
           "mysql://u:secret@[::1/d", "sqlite://", "sqlite:///:memory:", "sqlite:///relative.db",
           "sqlite://host/x.db", "mysql://u:secret@h/d?ssl_mode=STRONG"]

    def test_is_taken_apart_as_sqlalchemy_does_it(self):
        for text, parts in self.GOOD:
            with self.subTest(text):
                self.assertEqual(tuple(asfc.read_database_url(text)), parts)

    def test_that_can_not_be_used_is_refused_without_its_password(self):
        for text in self.BAD:
            with self.subTest(text):
                with self.assertRaises(asfc.ConfigurationError) as caught:
                    service_for(text)
                self.assertNotIn("secret", str(caught.exception))
                self.assertNotIn("\n", str(caught.exception))

    def test_of_another_kind_of_database_is_refused_by_its_name(self):
        with self.assertRaisesRegex(asfc.ConfigurationError, "'oracle'"):
            service_for("oracle://u:p@h/d")

    def test_never_shows_its_password_when_it_is_printed(self):
        self.assertNotIn("secret", repr(asfc.read_database_url("mysql://u:secret@h/d")))

    def test_with_unknown_parameters_is_used_and_they_are_noted(self):
        for url in ("postgresql://h/d?prepared_statement_cache_size=0",
                    "mysql://h/d?local_infile=1"):
            with self.assertLogs("asfc", "INFO") as logs:
                service_for(url)
            self.assertEqual(len(logs.output), 1)
            self.assertIn(url.partition("?")[2].partition("=")[0], logs.output[0])

    def test_nonsense_is_refused_as_the_service_type(self):
        with self.assertRaisesRegex(asfc.ConfigurationError, "allowed are"):
            service_for("mysql://h/d", metadata_service_type="Etcd")


class TheJobTablesPlace(unittest.TestCase):
    def table(self, url):
        return asfc.job_table(asfc.World(), metadata_settings(
            url, metadata_service_type="ZookeeperMetadataService"))

    def test_is_the_database_of_airflow_wherever_the_metadata_is_kept(self):
        for url, kind in (("sqlite:////tmp/x.db", asfc.SQLiteMetadataService),
                          ("mysql+pymysql://h/d", asfc.MySQLMetadataService),
                          ("postgresql://h/d", asfc.PostgreSQLMetadataService)):
            self.assertIsInstance(self.table(url), kind)

    def test_that_can_not_be_asked_is_one_error(self):
        for url in ("mssql://h/d", "sqlite://", "nonsense"):
            with self.assertRaises(asfc.ConfigurationError):
                self.table(url)

    def test_does_not_tell_again_of_unknown_parameters(self):
        with mock.patch.object(logging.getLogger("asfc"), "info") as info:
            self.table("postgresql://h/d?odd=1&sslmode=require")
        self.assertEqual(info.call_count, 0)


class TheClientsOfAUrl(unittest.TestCase):
    MYSQL = [
        # URL, is it MariaDB's client, what must be among the arguments, what must not
        ("mysql://u:secret@h:3307/d", True,
         ["--host=h", "--port=3307", "--user=u", "--database=d", "--skip-reconnect"],
         ["--protocol"]),
        ("mysql://u@[::1]/d", True, ["--host=::1"], []),
        ("mysql://u@localhost/d", True, ["--host=localhost"], ["--protocol"]),
        ("mysql+pymysql://u@localhost/d", True, ["--protocol=TCP", "--host=localhost"], []),
        ("mysql+mysqlconnector://u@/d", True, ["--protocol=TCP"], []),
        ("mysql://u@h/d?unix_socket=/run/s", True,
         ["--protocol=SOCKET", "--socket=/run/s"], ["--host"]),
        ("mysql://u@h/d?charset=utf8mb4", True, ["--default-character-set=utf8mb4"], []),
        ("mysql:///d?read_default_file=/etc/my.cnf", True,
         ["--defaults-file=/etc/my.cnf"], ["--no-defaults"]),
        ("mysql://-e@-h/-d", True, ["--user=-e", "--host=-h", "--database=-d"], []),
        ("mysql://h/d", True, [], ["--ssl", "--skip-ssl"]),
        ("mysql://h/d", False, [], ["--ssl"]),
        ("mysql://h/d?ssl_ca=/ca&ssl_cert=/c&ssl_key=/k", True,
         ["--ssl-ca=/ca", "--ssl-cert=/c", "--ssl-key=/k", "--ssl",
          "--ssl-verify-server-cert"], []),
        ("mysql://h/d?ssl_ca=/ca&ssl_capath=/cas&ssl_cipher=X", False,
         ["--ssl-ca=/ca", "--ssl-capath=/cas", "--ssl-cipher=X", "--ssl-mode=VERIFY_CA"],
         ["--ssl-verify"]),
        ("mysql://h/d?ssl_mode=required", True,
         ["--ssl", "--skip-ssl-verify-server-cert"], ["--ssl-mode"]),
        ("mysql://h/d?ssl_mode=required", False, ["--ssl-mode=REQUIRED"], []),
        ("mysql://h/d?ssl_mode=VERIFY_IDENTITY&ssl_ca=/ca", True,
         ["--ssl-verify-server-cert"], ["--ssl-mode"]),
        ("mysql://h/d?ssl_mode=VERIFY_IDENTITY&ssl_ca=/ca", False,
         ["--ssl-mode=VERIFY_IDENTITY"], []),
        ("mysql://h/d?ssl_disabled=True", True, ["--skip-ssl"], []),
        ("mysql://h/d?ssl_disabled=True", False, ["--ssl-mode=DISABLED"], []),
        ("mysql://h/d?ssl=true", False, ["--ssl-mode=REQUIRED"], []),
        ("mysql://h/d?ssl=false", True, ["--skip-ssl"], []),
        ("mysql://h/d?ssl_ca=/ca&ssl_verify_cert=false", False, ["--ssl-mode=REQUIRED"], []),
        ("mysql://h/d?ssl_ca=/ca&ssl_check_hostname=true", False,
         ["--ssl-mode=VERIFY_IDENTITY"], []),
        ("mysql://h/d?ssl_verify_cert=true", False, ["--ssl-mode=VERIFY_CA"], []),
    ]
    POSTGRESQL = [
        # URL, the connection in libpq's words, how it is described
        ("postgresql://u:secret@h:5433/d",
         "application_name='asfc' dbname='d' host='h' port='5433' user='u'", "h:5433, database d"),
        ("postgresql+asyncpg://u@h/d?ssl=verify-full",
         "application_name='asfc' dbname='d' host='h' sslmode='verify-full' user='u'",
         "h:5432, database d"),
        ("postgres://u@h/d?sslmode=verify-ca&sslrootcert=/ca&connect_timeout=9"
         "&client_encoding=latin1", "application_name='asfc' dbname='d' host='h' "
         "sslmode='verify-ca' sslrootcert='/ca' user='u'",
         "h:5432, database d"),
        ("postgresql://u@/d?host=/run/pg&port=99&password=secret",
         "application_name='asfc' dbname='d' host='/run/pg' port='99' user='u'",
         "socket /run/pg, database d"),
        ("postgresql://u@/d?host=a:1&host=b:2&target_session_attrs=read-write",
         "application_name='asfc' dbname='d' host='a,b' port='1,2' "
         "target_session_attrs='read-write' user='u'",
         "a,b:1,2, database d"),
        ("postgresql://u@[::1]/d", "application_name='asfc' dbname='d' host='::1' user='u'",
         "[::1]:5432"),
        ("postgresql://it's:x@h/a\\b c?application_name=me",
         "application_name='me' dbname='a\\\\b c' host='h' user='it\\'s'",
         "h:5432, database a\\b c"),
        ("postgresql://u@h/d?nonsense=1",
         "application_name='asfc' dbname='d' host='h' user='u'", "h:5432"),
    ]

    def test_of_mysql_and_mariadb_get_their_own_options(self):
        for url, is_mariadb, wanted, unwanted in self.MYSQL:
            with self.subTest(url, mariadb=is_mariadb):
                argv = arguments_of(url, is_mariadb).argv
                for argument in wanted:
                    self.assertIn(argument, argv)
                for argument in unwanted:
                    self.assertFalse([given for given in argv if given.startswith(argument)], argv)
                self.assertRegex(argv[1], "^--(no-defaults|defaults-file=)")

    def test_of_postgresql_get_only_what_libpq_knows(self):
        for url, words, described in self.POSTGRESQL:
            with self.subTest(url):
                self.assertEqual(arguments_of(url).argv[-2:], ("-d", words))
                self.assertIn(described, service_for(url).describe())

    def test_get_the_password_by_their_environment_alone(self):
        for url, variable in (("mysql://u:sec%20ret@h/d", "MYSQL_PWD"),
                              ("postgresql://u:sec%20ret@h/d", "PGPASSWORD"),
                              ("postgresql://u@h/d?password=sec+ret", "PGPASSWORD")):
            command = arguments_of(url)
            self.assertEqual(command.environment[variable], "sec ret")
            self.assertNotIn("sec", " ".join(command.argv) + command.stdin)

    def test_get_no_password_where_the_url_has_none(self):
        for url in ("mysql://u@h/d", "postgresql://u@h/d"):
            environment = arguments_of(url).environment or {}
            self.assertFalse({"MYSQL_PWD", "PGPASSWORD"} & set(environment))


class ClientsThatTalkNonsense(unittest.TestCase):
    """Stand-ins for the clients, so neither server nor client need be there."""
    URLS = (("mysql", "mysql://u:se%20cret@h/d"), ("psql", "postgresql://u:se%20cret@h/d"))
    VERSION = 'test "$1" != --version || { echo "mysql  Ver 15.1 Distrib 10.11-MariaDB"; exit; }\n'
    SCRIPTS = [
        ("exit 0", "an answer that can't be: none"),
        ("echo '<html>no</html>'", "<html>"),
        ("printf 'server\\nend'", "can't be"),
        ("printf 'record\\t61\\t1\\t62\\n'", "can't be"),
        ("printf 'record\\t61\\t1\\t6\\nend\\n'", "can't be"),
        ("printf 'record\\t61\\tNULL\\t62\\nend\\n'", "can't be"),
        ("printf 'record\\t61\\t1\\tff\\nend\\n'", "can't be"),
        ("printf 'record\\t61\\t1\\nend\\n'", "can't be"),
        ("printf 'recorx\\t61\\t1\\t62\\nend\\n'", "can't be"),
        ("head -c 5000000 /dev/zero; echo; echo end", "can't be"),
        ("head -c 300 /dev/urandom; echo; echo end", "can't be"),
        ("printf 'end\\n'; exit 3", "status 3"),
        ("printf 'end\\n'; kill -9 $$", "status -9"),
        ("echo 'bad word se cret here' >&2; exit 1", "bad word *** here"),
        ("exec sleep 20", "no answer within"),
        ("sleep 20 & exec sleep 20", "no answer within"),
    ]

    def test_are_one_error_of_one_line_within_the_limit(self):
        for program, url in self.URLS:
            for script, words in self.SCRIPTS:
                with self.subTest(program, script=script):
                    stand_in(self, program, self.VERSION + script + "\n")
                    limit_s = 0.5 if words == "no answer within" else 1.0
                    began = time.monotonic()
                    with self.assertRaises(asfc.MetadataError) as caught:
                        service = service_for(url, limit_s=limit_s)
                        service._has_met = True
                        service._program = program
                        service.read_all()
                    self.assertLess(time.monotonic() - began, limit_s + 0.6)
                    self.assertIn(words, str(caught.exception))
                    self.assertNotRegex(str(caught.exception), "\n|se cret|Traceback")
                    self.assertRegex(str(caught.exception), r" at h:\d+, database d: ")

    def test_a_server_that_takes_more_than_half_of_the_limit_is_met_once_and_then_used(self):
        stand_in(self, "mysql", self.VERSION + (
            "sleep 0.6; grep -q version_comment && printf 'server\\nversion\\tMariaDB\\n'\n"
            "printf 'server\\nend\\n'\n"))
        service = service_for("mysql://u:p@h/d", limit_s=1.0)
        for _ in range(2):
            with self.assertRaises(asfc.MetadataError):
                service.read_all()
            for _ in range(2):
                self.assertEqual(service.read_all(), {})
            service._has_met = False   # as after a failure

    def test_can_not_claim_a_write_that_did_not_happen(self):
        rows = {"two rows changed": r"won\t2\nrecord\t61\t2\t62\nend\n",
                "no count": r"record\t61\t2\t62\nend\n",
                "nothing at all": r"end\n",
                "a count of -1": r"won\t-1\nrecord\t61\t2\t62\nend\n",
                "won, but not to be seen": r"won\t1\nend\n",
                "won, but the old version is seen": r"won\t1\nrecord\t61\t1\t62\nend\n"}
        for program, url in self.URLS:
            for name, text in rows.items():
                with self.subTest(program, answer=name):
                    stand_in(self, program,
                             self.VERSION + "cat >/dev/null; printf '{}'\n".format(text))
                    service = service_for(url)
                    service._has_met, service._program = True, program
                    with self.assertRaises(asfc.MetadataError):
                        service.write("a", "b", 1)

    def test_can_not_make_a_job_table_out_of_nonsense(self):
        row = r"job\t7\t61\t62\t63\nend\n"
        nonsense = [row.replace(*change) for change in (
            (r"\t63", ""), (r"\t63", r"\t63\t64"), ("job", "record"), ("7", "x"), ("62", "6"),
            ("63", "NULL"), ("end", "en"))]
        for program, url in self.URLS:
            for text in [row] + nonsense:
                with self.subTest(program, answer=text):
                    stand_in(self, program,
                             self.VERSION + "cat >/dev/null; printf '{}'\n".format(text))
                    service = service_for(url)
                    service._has_met, service._program = True, program
                    if text == row:
                        self.assertEqual(service.scheduler_jobs(),
                                         [asfc.SchedulerJob(7, "a", "b", "c")])
                    else:
                        with self.assertRaisesRegex(asfc.MetadataError, "can't be"):
                            service.scheduler_jobs()

    def test_that_are_not_installed_are_named(self):
        with mock.patch.dict(os.environ, PATH="/nonexistent"):
            for program, url in self.URLS:
                with self.assertRaisesRegex(asfc.MetadataError, program + ".*No such file"):
                    service_for(url).read_all()

    def test_of_mariadb_alone_is_found_where_there_is_no_mysql(self):
        directory = stand_in(self, "mariadb", self.VERSION + "/bin/cat >/dev/null; echo end\n")
        with mock.patch.dict(os.environ, PATH=directory):
            self.assertEqual(service_for("mysql://u@h/d").read_all(), {})

    def test_of_mariadb_are_not_believed_without_tls_where_the_url_requires_it(self):
        for cipher, trusted in (("", False), ("TLS_AES_256_GCM_SHA384", True)):
            stand_in(self, "mysql", self.VERSION + "cat >/dev/null\n"
                     "printf 'server\\nSsl_cipher\\t{}\\nend\\n'\n".format(cipher))
            service = service_for("mysql://u@h/d?ssl_mode=REQUIRED")
            if trusted:
                self.assertEqual(service.read_all(), {})
            else:
                with self.assertRaisesRegex(asfc.MetadataError, "TLS"):
                    service.read_all()


# Airflow's job table with its ten columns and the indexes that count, as its migrations make it.
JOB_TABLE = """
    CREATE TABLE job (id INTEGER NOT NULL {0}, dag_id VARCHAR(250), state VARCHAR(20),
        job_type VARCHAR(30), start_date {1}, end_date {1}, latest_heartbeat {1},
        executor_class VARCHAR(500), hostname VARCHAR(500), unixname VARCHAR(1000),
        CONSTRAINT job_pkey PRIMARY KEY (id)){2};
    CREATE INDEX job_type_heart ON job (job_type, latest_heartbeat);
    CREATE INDEX idx_job_state_heartbeat ON job (state, latest_heartbeat);"""
BEATS = ["2026-11-22 14:57:{:02d}.813487".format(second) for second in range(60)]


class _MetadataContract:
    """What every backend must hold; a subclass says where its empty databases come from."""
    ODD_TEXTS = ["", " ", "'", "''", '"', "\\", "\\'", "\\\\", "a\nb\r\n\tc", "--", "a b ",
                 "x" * 100000,
                 "; DROP TABLE asfc_metadata;", "'); DROP TABLE asfc_metadata; --",
                 "\\'; DROP TABLE asfc_metadata; #", "/* */ /*! */ `x`", "{}", "{name}", "%s %(a)s",
                 "NULL", "end", "won\t1", "\x01\x1b[0m\x7f", "\u0085\u2028\x0b\x0c",
                 "$1 $$ :name :'name' \\g \\! id \\;", "é ß 漢字 \u202e",
                 "\U0001F600\U0001F9D1\u200d\U0001F680"]

    def new_url(self):
        raise NotImplementedError

    def setUp(self):
        self.url = self.new_url()
        self.service = service_for(self.url)

    def begin(self):
        self.assertTrue(self.service.write("a", "kept", None))

    def test_a_service_that_was_never_written_to_is_empty_and_stays_so_when_read(self):
        self.assertEqual(self.service.read_all(), {})
        self.assertIsNone(self.service.legacy_heartbeat())
        self.assertEqual(service_for(self.url).exchange(()), asfc.Exchange((), {}))
        self.assertEqual(self.tables(), [])

    def test_a_record_is_made_once_and_its_version_is_1(self):
        self.assertTrue(self.service.write("cluster", "a", None))
        self.assertFalse(self.service.write("cluster", "b", None))
        self.assertEqual(self.service.read_all(), {"cluster": asfc.Record(1, "a")})
        self.assertEqual(self.tables(), ["asfc_metadata"])

    def test_a_write_with_the_version_that_is_there_wins_and_with_another_loses(self):
        self.service.write("cluster", "a", None)
        self.assertTrue(self.service.write("cluster", "b", 1))
        for version in (0, 1, 3, 10 ** 18):
            self.assertFalse(self.service.write("cluster", "c", version), version)
        self.assertEqual(self.service.read_all(), {"cluster": asfc.Record(2, "b")})

    def test_a_write_to_a_record_that_is_not_there_loses(self):
        self.assertFalse(self.service.write("cluster", "a", 1))
        self.service.write("other", "a", None)
        self.assertFalse(self.service.write("cluster", "a", 1))
        self.assertEqual(set(self.service.read_all()), {"other"})

    def test_the_same_value_again_wins_and_raises_the_version(self):
        self.service.write("cluster", "same", None)
        for version in range(1, 6):
            self.assertTrue(self.service.write("cluster", "same", version))
        self.assertEqual(self.service.read_all()["cluster"].version, 6)

    def test_the_writes_of_an_exchange_are_applied_in_order_and_each_for_itself(self):
        exchange = self.service.exchange([
            asfc.Write("a", "1", None), asfc.Write("a", "2", 1), asfc.Write("a", "lost", 1),
            asfc.Write("b", "lost", 7), asfc.Write("b", "1", None), asfc.Write("a", "3", 2)])
        self.assertEqual(exchange.won, (True, True, False, False, True, True))
        self.assertEqual(exchange.records, {"a": asfc.Record(3, "3"), "b": asfc.Record(1, "1")})

    def test_any_text_comes_back_as_it_was_written(self):
        for number, text in enumerate(self.ODD_TEXTS):
            name = "odd {}".format(number)
            self.assertTrue(self.service.write(name, text, None), text[:20])
            self.assertTrue(self.service.write(name, text, 1), text[:20])
        records = self.service.read_all()
        for number, text in enumerate(self.ODD_TEXTS):
            self.assertEqual(records["odd {}".format(number)], asfc.Record(2, text))

    def test_any_name_names_one_record_and_no_other(self):
        names = [text for text in self.ODD_TEXTS if 0 < len(text) < 60]
        names += ["n" * 255, "A b", "a b", "a B"]
        for name in names:
            writes = [asfc.Write(name, name, None), asfc.Write(name, name, 1)]
            self.assertEqual(self.service.exchange(writes).won, (True, True), name)
        self.assertEqual(self.service.read_all(), {name: asfc.Record(2, name) for name in names})

    def test_what_can_not_be_stored_is_refused_before_it_is_sent(self):
        self.service.write("a", "1", None)
        for name, value in (("", "v"), ("n" * 256, "v"), ("é" * 128, "v"), ("a\0", "v"),
                            ("a", "v\0w"), ("a", "\ud800"), ("\udfff", "v")):
            with self.assertRaises(asfc.MetadataError):
                self.service.write(name, value, 1)
        self.assertEqual(self.service.read_all(), {"a": asfc.Record(1, "1")})

    def race(self, expected_version, racers=10):
        """Racers that are let go at the same moment; returns their results, errors included."""
        gate, results = threading.Barrier(racers), [None] * racers

        def run(number):
            service = service_for(self.url)
            gate.wait()
            try:
                results[number] = service.write("cluster", str(number), expected_version)
            except asfc.MetadataError as error:
                results[number] = error
        threads = [threading.Thread(target=run, args=(number,)) for number in range(racers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def test_of_ten_that_make_table_and_record_at_the_same_time_one_wins(self):
        results = self.race(None)
        self.assertEqual(sorted(map(str, results)), ["False"] * 9 + ["True"])
        winner = asfc.Record(1, str(results.index(True)))
        self.assertEqual(self.service.read_all(), {"cluster": winner})

    def test_of_ten_that_write_on_the_same_version_one_wins(self):
        self.service.write("cluster", "0", None)
        for version in range(1, 6):
            results = self.race(version)
            self.assertEqual(sorted(map(str, results)), ["False"] * 9 + ["True"])
            self.assertEqual(self.service.read_all()["cluster"],
                             asfc.Record(version + 1, str(results.index(True))))

    def test_the_heartbeat_of_the_original_is_read_where_it_left_one(self):
        self.make_legacy_table()
        self.assertIsNone(self.service.legacy_heartbeat())
        self.add_legacy_heartbeat("2026-11-22 14:00:00 'é'")
        self.assertEqual(self.service.legacy_heartbeat(), "2026-11-22 14:00:00 'é'")
        self.assertEqual(self.service.read_all(), {})

    def test_it_says_what_it_is_without_secrets(self):
        self.assertNotIn("\n", self.service.check())
        self.assertEqual(self.tables(), [])
        self.begin()
        text = self.service.check() + self.service.describe()
        self.assertRegex(text, self.KIND + r" \d")
        self.assertNotIn(DatabaseServer.PASSWORD, text)
        self.assertNotIn("\n", text)


class _SqlContract(_MetadataContract):
    """What holds for every database besides: Airflow's job table stands in it."""

    def add_job(self, number, hostname, beat, state="running", job_type="SchedulerJob"):
        """A row of the job table; `beat` is UTC."""
        text = [value if value is None else "'{}'".format(value.replace("'", "''"))
                for value in (state, job_type, beat, beat, hostname)]
        self.administer(self.IN_UTC + "INSERT INTO job (id, state, job_type, start_date, "
                        "latest_heartbeat, hostname) VALUES ({}, {}, {}, {}, {}, {});".format(
                            number, *(value or "NULL" for value in text)))

    def test_without_a_job_table_there_is_none_and_none_is_made(self):
        self.assertIsNone(self.service.scheduler_jobs())
        self.assertEqual(self.tables(), [])
        self.begin()
        self.assertIsNone(self.service.scheduler_jobs())
        self.make_job_table()
        self.assertEqual(self.service.scheduler_jobs(), [])

    def test_the_schedulers_rows_are_read_newest_first_and_no_other_row(self):
        self.make_job_table()
        odd = "é 'x' \U0001F600\t."
        self.add_job(1, "vm-1", BEATS[3], state="failed")
        self.add_job(2, odd, BEATS[5])
        self.add_job(3, "vm-3", BEATS[4], state="success")
        self.add_job(4, "vm-3", BEATS[9], job_type="LocalTaskJob")
        self.add_job(5, "vm-3", BEATS[9], job_type="TriggererJob")
        self.add_job(6, "vm-3", None)
        self.add_job(7, None, BEATS[1], state=None)
        self.assertEqual(self.service.scheduler_jobs(), [
            asfc.SchedulerJob(2, odd, "running", BEATS[5]),
            asfc.SchedulerJob(3, "vm-3", "success", BEATS[4]),
            asfc.SchedulerJob(1, "vm-1", "failed", BEATS[3]),
            asfc.SchedulerJob(7, "", "", BEATS[1])])
        self.administer(self.IN_UTC + "UPDATE job SET latest_heartbeat = '{}' WHERE id = 1;".format(
            BEATS[8]))
        self.assertEqual(self.service.scheduler_jobs()[0],
                         asfc.SchedulerJob(1, "vm-1", "failed", BEATS[8]))

    def test_of_a_big_job_table_the_newest_rows_are_found_by_their_index(self):
        self.make_job_table()
        self.administer(self.MANY_JOBS)
        jobs = self.service.scheduler_jobs()
        self.assertEqual([job.id for job in jobs], list(range(19900, 14900, -100)))
        *_, statement = self.service.READ_JOBS
        plan = str(self.service._run_statements([self.EXPLAIN + statement],
                                                self.service._deadline()))
        self.assertIn("job_type_heart", plan)
        self.assertNotRegex(plan, "(?i)sort|temp b-tree")

    def test_a_job_table_of_another_shape_is_an_error_and_not_no_table(self):
        self.administer("CREATE TABLE job (id INTEGER);")
        with self.assertRaises(asfc.MetadataError) as caught:
            self.service.scheduler_jobs()
        self.assertNotIsInstance(caught.exception, asfc._NoTableError)
        self.assertNotIn("\n", str(caught.exception))


class SQLiteMetadata(_SqlContract, unittest.TestCase):
    KIND = "SQLite"

    def new_url(self):
        self.directory = tempfile.mkdtemp(prefix="asfc test #%20")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.path = os.path.join(self.directory, "airflow é&=.db")
        return "sqlite:///" + self.path

    def run_sql(self, *statements):
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            return [connection.execute(statement).fetchall() for statement in statements][-1]
        finally:
            connection.close()

    def tables(self):
        if not os.path.exists(self.path):
            return []
        return [name for name, in self.run_sql(
            "SELECT name FROM sqlite_master WHERE type = 'table'")]

    def make_legacy_table(self):
        self.run_sql("CREATE TABLE scheduler_failover_controller_metadata "
                     "(key VARCHAR(50), value TEXT)")

    def add_legacy_heartbeat(self, text):
        self.run_sql("INSERT INTO scheduler_failover_controller_metadata "
                     "VALUES ('failover_heartbeat', '{}')".format(text.replace("'", "''")))

    IN_UTC, EXPLAIN = "", "EXPLAIN QUERY PLAN "
    MANY_JOBS = ("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 19999) "
                 "INSERT INTO job (id, state, job_type, latest_heartbeat) SELECT i, 'success', "
                 "CASE i % 100 WHEN 0 THEN 'SchedulerJob' ELSE 'LocalTaskJob' END, "
                 "datetime(1700000000 + i, 'unixepoch') FROM n;")

    def administer(self, text):
        self.run_sql(*(part for part in text.split(";") if part.strip()))

    def make_job_table(self):
        self.administer(JOB_TABLE.format("", "TIMESTAMP", ""))

    def test_the_job_table_is_only_ever_read(self):
        self.make_job_table()
        with mock.patch.object(self.service, "READ_JOBS", ("DELETE FROM job",)):
            with self.assertRaisesRegex(asfc.MetadataError, "can't be written"):
                self.service.scheduler_jobs()
        self.assertEqual(os.listdir(self.directory), [os.path.basename(self.path)])

    def test_the_job_table_of_a_file_in_wal_mode_is_an_error_and_it_stays_as_it_is(self):
        self.make_job_table()
        self.run_sql("PRAGMA journal_mode = WAL")
        with self.assertRaisesRegex(asfc.MetadataError, "WAL mode"):
            self.service.scheduler_jobs()
        self.assertEqual(self.run_sql("PRAGMA journal_mode"), [("wal",)])

    def test_the_job_table_of_a_locked_file_is_an_error_within_the_limit(self):
        self.make_job_table()
        blocker = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(blocker.close)
        blocker.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with self.assertRaisesRegex(asfc.MetadataError, "locked"):
            service_for(self.url, 0.5).scheduler_jobs()
        self.assertLess(time.monotonic() - began, 1.0)

    def test_what_a_killed_writer_left_is_no_job_table_until_the_next_writer_has_cleaned_up(self):
        self.make_job_table()
        self.add_job(1, "vm", BEATS[1])
        writer = sqlite3.connect(self.path, isolation_level=None)
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        writer.execute("UPDATE job SET latest_heartbeat = ?", (BEATS[2],))
        writer.executemany("INSERT INTO job (id, unixname) VALUES (?, ?)",
                           ((number, "x" * 1000) for number in range(2, 100)))
        torn = self.path + ".torn"
        for end in ("", "-journal"):
            shutil.copy(self.path + end, torn + end)
        writer.execute("ROLLBACK")
        writer.close()
        service = service_for("sqlite:///" + torn)
        with self.assertRaises(asfc.MetadataError):
            service.scheduler_jobs()
        service.read_all()
        self.assertEqual([job.heartbeat for job in service.scheduler_jobs()], [BEATS[1]])

    def test_reading_makes_no_file(self):
        self.assertEqual(self.service.read_all(), {})
        self.assertIsNone(self.service.scheduler_jobs())
        self.assertIn("first write", self.service.check())
        self.assertEqual(os.listdir(self.directory), [])

    def refused(self, words, limit_s=0.5, write=True):
        began = time.monotonic()
        with self.assertRaisesRegex(asfc.MetadataError, words) as caught:
            service = service_for(self.url, limit_s)
            service.write("a", "b", None) if write else service.read_all()
        self.assertLess(time.monotonic() - began, limit_s + 0.5)
        self.assertNotIn("\n", str(caught.exception))
        self.assertIn(self.path, str(caught.exception))

    def test_a_missing_directory_is_an_error_of_one_sentence(self):
        shutil.rmtree(self.directory)
        self.refused("directory does not exist")
        self.refused("directory does not exist", write=False)

    def test_a_file_that_is_no_database_is_an_error_of_one_sentence(self):
        with open(self.path, "wb") as file:
            file.write(b"no database" * 1000)
        self.refused("not a SQLite database", write=False)
        self.refused("not a SQLite database")

    def test_a_locked_file_is_an_error_within_the_limit_and_is_written_later(self):
        self.service.write("a", "b", None)
        blocker = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(blocker.close)
        blocker.execute("BEGIN EXCLUSIVE")
        self.refused("locked")
        self.refused("locked", write=False)
        blocker.execute("ROLLBACK")
        self.assertTrue(self.service.write("a", "c", 1))

    def test_a_writer_waits_for_another_one_that_is_quick(self):
        self.service.write("a", "b", None)
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent("""
            import sqlite3, sys, time
            connection = sqlite3.connect(sys.argv[1], isolation_level=None)
            connection.execute("BEGIN EXCLUSIVE")
            print("locked", flush=True)
            time.sleep(0.4)
            connection.execute("COMMIT")"""), self.path], stdout=subprocess.PIPE)
        child.stdout.readline()
        self.assertTrue(self.service.write("a", "c", 1))
        child.wait()
        child.stdout.close()

    def test_a_file_that_can_not_be_written_is_an_error_but_can_be_read(self):
        require("a user who is not root", find_program("setpriv") or os.geteuid())
        self.service.write("a", "b", None)
        os.chmod(self.path, 0o444)
        os.chmod(self.directory, 0o755)
        script = textwrap.dedent("""
            import argparse, sys, asfc
            service = asfc.metadata_service(asfc.World(), argparse.Namespace(
                metadata_service_type="SQLMetadataService", sql_alchemy_conn=sys.argv[1],
                metadata_limit_s=1.0, allow_sqlite_on_network_file_system=False))
            print(service.read_all())
            try:
                service.write("a", "c", 1)
            except asfc.MetadataError as error:
                print(error)""")
        prefix, python = [], sys.executable
        if os.geteuid() == 0:
            prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            python = next((path for path in (sys.executable, "/usr/bin/python3")
                           if not subprocess.call(prefix + [path, "-c", ""],
                                                  stderr=subprocess.DEVNULL)), None)
            require("a Python that nobody can run", python)
        shutil.copy(asfc.__file__, os.path.join(self.directory, "asfc.py"))
        done = subprocess.run(prefix + [python, "-B", "-c", script, self.url], cwd=self.directory,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        self.assertIn("Record(version=1, value='b')", lines[0])
        self.assertIn("can't be written by this user", lines[1])
        self.assertEqual(len(lines), 2, lines)

    def test_a_full_disk_is_an_error_of_one_sentence(self):
        self.service.write("a", "b", None)
        pages, = self.run_sql("PRAGMA page_count")[0]
        connect = asfc.SQLiteMetadataService._connect

        def connect_to_full_disk(service, deadline, mode):
            connection = connect(service, deadline, mode)
            connection.execute("PRAGMA max_page_count = {}".format(pages))
            return connection
        with mock.patch.object(asfc.SQLiteMetadataService, "_connect", connect_to_full_disk):
            with self.assertRaisesRegex(asfc.MetadataError, "the disk is full"):
                self.service.write("a", "c" * 100000, 1)
        self.assertEqual(self.service.read_all(), {"a": asfc.Record(1, "b")})

    def test_a_file_in_wal_mode_is_refused_with_the_remedy_and_left_as_it_is(self):
        self.run_sql("PRAGMA journal_mode = WAL", "CREATE TABLE dag (id)")
        for write in (True, False):
            self.refused("PRAGMA journal_mode=DELETE", write=write)
        self.assertEqual(self.run_sql("PRAGMA journal_mode"), [("wal",)])

    def test_airflows_own_tables_are_left_alone(self):
        self.run_sql("CREATE TABLE dag (id)", "INSERT INTO dag VALUES (1)")
        self.service.write("a", "b", None)
        self.assertEqual(sorted(self.tables()), ["asfc_metadata", "dag"])
        self.assertEqual(self.run_sql("PRAGMA journal_mode"), [("delete",)])

    def test_a_network_file_system_is_refused_unless_the_key_allows_it(self):
        with mock.patch.object(asfc, "network_file_system", lambda world, path: "nfs4"):
            with self.assertRaisesRegex(asfc.ConfigurationError, "nfs4.*allow_sqlite_on_network"):
                service_for(self.url)
            service = service_for(self.url, allow_sqlite_on_network_file_system=True)
            self.assertTrue(service.write("a", "b", None))

    def test_processes_that_race_give_each_version_to_one_of_them(self):
        script = textwrap.dedent("""
            import argparse, sys, asfc
            service = asfc.metadata_service(asfc.World(), argparse.Namespace(
                metadata_service_type="SQLMetadataService", sql_alchemy_conn=sys.argv[1],
                metadata_limit_s=10.0, allow_sqlite_on_network_file_system=False))
            won = []
            while True:
                record = service.read_all().get("counter", asfc.Record(0, ""))
                if record.version >= 40:
                    break
                if service.write("counter", "x", record.version or None):
                    won.append(record.version + 1)
            print(*won)""")
        children = [subprocess.Popen(
            [sys.executable, "-c", script, self.url], stdout=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(asfc.__file__))))
            for _ in range(4)]
        won = []
        for child in children:
            won += map(int, child.communicate()[0].split())
        self.assertEqual(sorted(won), list(range(1, 41)))


class _ServedContract(_MetadataContract):
    """What holds for a server: its faults are one error each, within the limit."""

    @classmethod
    def setUpClass(cls):
        cls.server = shared_server(cls.SERVER)

    def refused(self, words, service=None, write=True, limit_s=1.0):
        """Each of a new service, and of one that has answered before, must refuse in time."""
        for each in [service] if service else [service_for(self.url, limit_s), self.service]:
            each._limit_s = limit_s
            began = time.monotonic()
            with self.assertRaisesRegex(asfc.MetadataError, words) as caught:
                each.write("a", "lost", 1) if write else each.read_all()
            self.assertLess(time.monotonic() - began, limit_s + 0.4)
            self.assertNotIn("\n", str(caught.exception))
            for password in (self.server.PASSWORD, "wrong-secret"):
                self.assertNotIn(password, str(caught.exception))

    def serves(self):
        with contextlib.suppress(asfc.MetadataError):
            return self.service.read_all()

    def assert_kept(self):
        self.service._limit_s = 3.0
        self.assertEqual(self.service.read_all(), {"a": asfc.Record(1, "kept")})

    def test_a_frozen_server_is_an_error_within_the_limit_and_serves_again(self):
        self.begin()
        self.addCleanup(self.server.thaw)
        self.server.freeze()
        self.refused("no answer within", write=False)
        self.server.thaw()
        wait_until(self.serves, 30, "an answer")   # an ensemble may elect a leader first
        self.assert_kept()

    def test_a_stopped_server_is_an_error_and_serves_again(self):
        self.begin()
        self.server.kill()
        try:
            self.refused("onnect", write=True)
        finally:
            self.server.start()
        self.assert_kept()

    def test_clients_that_race_give_each_version_to_one_of_them(self):
        won, errors = [], []

        def count():
            service = service_for(self.url)
            while True:
                try:
                    record = service.read_all().get("counter", asfc.Record(0, ""))
                    if record.version >= 20:
                        return
                    if service.write("counter", "x", record.version or None):
                        won.append(record.version + 1)
                except asfc.MetadataError as error:
                    errors.append(error)
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(errors, [])
        self.assertEqual(sorted(won), list(range(1, 21)))


class _ServerContract(_ServedContract, _SqlContract):
    """What holds for the servers of databases besides."""
    CLIENT = ""
    databases = 0

    def new_url(self):
        type(self).databases += 1
        self.database = "{}_{}".format(type(self).__name__.lower(), self.databases)
        return self.server.create_database(self.database)

    def make_legacy_table(self):
        self.server.sql("CREATE TABLE scheduler_failover_controller_metadata "
                        "({}key{} VARCHAR(50), value TEXT);".format(self.QUOTE, self.QUOTE)
                        + self.LEGACY_GRANT, self.database)

    def add_legacy_heartbeat(self, text):
        self.server.sql("INSERT INTO scheduler_failover_controller_metadata "
                        "VALUES ('failover_heartbeat', '{}');".format(text.replace("'", "''")),
                        self.database)

    def administer(self, text):
        return self.server.sql(text, self.database)

    def make_job_table(self):
        self.administer(JOB_TABLE.format(*self.JOB_WORDS) + self.JOB_GRANT)

    def test_a_heartbeat_is_the_same_text_in_every_time_zone_of_a_session(self):
        self.make_job_table()
        for number, beat in enumerate((BEATS[0], "2026-10-25 00:30:00.000000",
                                       "2026-10-25 01:30:00.000001"), 1):
            self.add_job(number, "vm", beat)
        for zone in self.ZONES:
            with self.subTest(zone):
                self.set_time_zone(zone)
                self.addCleanup(self.set_time_zone, self.ZONES[0])
                beats = [job.heartbeat for job in service_for(self.url).scheduler_jobs()]
                self.assertEqual(beats, [BEATS[0], "2026-10-25 01:30:00.000001",
                                         "2026-10-25 00:30:00.000000"])

    def test_the_job_table_of_a_server_that_is_read_only_or_frozen_is_an_error_in_time(self):
        self.make_job_table()
        self.assertEqual(self.service.scheduler_jobs(), [])
        self.addCleanup(self.server.set_read_only, False)
        self.server.set_read_only(True)
        with self.assertRaisesRegex(asfc.MetadataError, "read-only"):
            self.service.scheduler_jobs()
        self.server.set_read_only(False)
        self.service._limit_s = 1.0
        self.addCleanup(self.server.thaw)
        self.server.freeze()
        began = time.monotonic()
        with self.assertRaises(asfc.MetadataError):
            self.service.scheduler_jobs()
        self.assertLess(time.monotonic() - began, 1.4)
        self.server.thaw()
        self.service._limit_s = 3.0
        self.assertEqual(self.service.scheduler_jobs(), [])

    def test_a_job_table_that_may_not_be_read_is_an_error(self):
        self.administer("CREATE TABLE other (id INTEGER);")
        self.make_job_table()
        self.administer(self.FORBID_JOBS.format(user=DatabaseServer.USER, database=self.database))
        with self.assertRaisesRegex(asfc.MetadataError, "denied"):
            service_for(self.url).scheduler_jobs()

    def test_a_read_only_server_is_an_error_for_writes_and_for_reads(self):
        self.begin()
        self.addCleanup(self.server.set_read_only, False)
        self.server.set_read_only(True)
        self.refused("read-only", write=True)
        self.refused("read-only", write=False)
        self.server.set_read_only(False)
        self.assert_kept()

    def test_a_locked_table_is_an_error_within_the_limit(self):
        self.begin()
        with self.server.session(self.LOCK_TABLE, self.database):
            self.refused("", write=True, limit_s=2.5)
            self.refused("", write=False, limit_s=1.0)
        self.assert_kept()

    def test_a_locked_row_is_an_error_and_the_write_is_not_made_later(self):
        self.begin()
        with self.server.session("BEGIN; SELECT version FROM asfc_metadata FOR UPDATE",
                                 self.database):
            self.refused("", write=True, limit_s=2.5)
        time.sleep(0.5)
        self.assert_kept()

    def test_a_slow_write_is_given_up_by_the_server_before_the_client_is_killed(self):
        self.begin()
        self.server.sql(self.SLOW_TRIGGER, self.database)
        service_limits = (1.0, 3.0)
        for limit_s in service_limits:
            self.refused("(?i)max_statement_time|statement timeout", limit_s=limit_s)
        time.sleep(0.5)
        self.assert_kept()

    def test_a_wrong_password_is_an_error_that_does_not_show_it(self):
        self.refused("(?i)denied|authentication", service_for(
            self.server.url_for(self.database, password="wrong-secret")))

    def test_a_database_that_is_not_there_is_an_error(self):
        self.refused("nosuch", service_for(self.server.url_for("nosuch")))

    def test_a_user_without_rights_is_told_what_it_may_not(self):
        self.server.sql(self.REVOKE.format(database=self.database, user=self.server.USER),
                        self.database)
        self.refused("(?i)denied", service_for(self.url))

    def test_a_driver_suffix_and_unknown_parameters_are_no_obstacle(self):
        url = self.server.url_for(self.database, driver=self.DRIVER)
        self.assertTrue(service_for(url + "?nonsense=1&connect_timeout=5").write("a", "b", None))

    def test_a_truncated_answer_is_an_error(self):
        self.begin()
        client = find_program(self.CLIENT)
        full = len(self.stand_in_output(client))
        self.assertGreater(full, 20)
        for length in range(0, full, 7):
            stand_in(self, self.CLIENT, self.HANDSHAKE.format(client)
                     + "{} \"$@\" | head -c {}\n".format(client, length))
            with self.assertRaises(asfc.MetadataError):
                self.service.read_all()

    def stand_in_output(self, client):
        directory = stand_in(self, self.CLIENT,
                             "{} \"$@\" | tee $(dirname $0)/out\n".format(client))
        self.service.read_all()
        with open(os.path.join(directory, "out"), "rb") as file:
            return file.read()

    def test_the_password_is_in_no_command_line_while_the_client_runs(self):
        client = find_program(self.CLIENT)
        directory = stand_in(self, self.CLIENT, textwrap.dedent("""
            cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' >> $(dirname $0)/seen
            {} "$@"
            """).format(client))
        self.begin()
        seen = read_file(os.path.join(directory, "seen"))
        self.assertIn(self.database, seen)
        for secret in (self.server.PASSWORD, self.url.split(":")[2].split("@")[0]):
            self.assertNotIn(secret, seen)

    def test_a_write_whose_client_was_killed_may_have_been_made_and_a_read_shows_it(self):
        self.begin()
        client = find_program(self.CLIENT)
        # The real client goes on in a session of its own, as a statement does in the server.
        stand_in(self, self.CLIENT, self.HANDSHAKE.format(client) + textwrap.dedent("""
            cat > "$0.in"
            exec < /dev/null
            setsid sh -c 'sleep 1.2; exec {} "$@" < "$0.in"' "$0" "$@" > /dev/null 2>&1 &
            exec sleep 30
            """).format(client))
        service = self.service
        service._limit_s = 1.0
        with self.assertRaisesRegex(asfc.MetadataError, "no answer within"):
            service.write("a", "after all", 1)
        os.environ["PATH"] = os.environ["PATH"].partition(os.pathsep)[2]
        self.assertEqual(service_for(self.url).read_all(), {"a": asfc.Record(1, "kept")})
        wait_until(lambda: service_for(self.url).read_all() == {"a": asfc.Record(2, "after all")},
                   15, "the write is made")
        self.assertFalse(service_for(self.url).write("a", "again", 1))


class MariaDbMetadata(_ServerContract, unittest.TestCase):
    SERVER, KIND, CLIENT, DRIVER, QUOTE = MariaDbServer, "MariaDB", "mysql", "+pymysql", "`"
    LEGACY_GRANT, LOCK_TABLE = "", "LOCK TABLES asfc_metadata WRITE"
    SLOW_TRIGGER = ("CREATE TRIGGER slow BEFORE UPDATE ON asfc_metadata FOR EACH ROW "
                    "SET @x = SLEEP(4);")
    REVOKE = ("REVOKE ALL ON {database}.* FROM '{user}'@'127.0.0.1'; "
              "GRANT SELECT ON {database}.* TO '{user}'@'127.0.0.1';")
    HANDSHAKE = "test \"$1\" != --version || exec {} --version\n"
    IN_UTC = "SET NAMES utf8mb4; SET time_zone = '+00:00';"
    EXPLAIN, JOB_GRANT = "EXPLAIN ", ""
    JOB_WORDS = ("AUTO_INCREMENT", "TIMESTAMP(6) NULL DEFAULT NULL",
                 "ENGINE=InnoDB DEFAULT CHARSET=utf8mb4")
    ZONES = ("SYSTEM", "+05:30", "-11:00")
    MANY_JOBS = ("INSERT INTO job (id, state, job_type, latest_heartbeat) SELECT seq, 'success', "
                 "IF(seq % 100, 'LocalTaskJob', 'SchedulerJob'), "
                 "FROM_UNIXTIME(1700000000 + seq) FROM seq_1_to_19999;")
    FORBID_JOBS = ("REVOKE ALL ON {database}.* FROM '{user}'@'127.0.0.1'; "
                   "GRANT SELECT ON {database}.other TO '{user}'@'127.0.0.1';")

    def set_time_zone(self, zone):
        self.server.sql("SET GLOBAL time_zone = '{}';".format(zone))

    def tables(self):
        return self.server.sql("SHOW TABLES;", self.database).split()

    def test_a_read_only_server_is_not_written_to_by_a_user_who_could(self):
        self.begin()
        self.addCleanup(self.server.set_read_only, False)
        self.server.sql("CREATE OR REPLACE USER root@'127.0.0.1' IDENTIFIED BY 'almighty'; "
                        "GRANT ALL ON *.* TO root@'127.0.0.1';")
        self.server.set_read_only(True)
        self.refused("read-only", service_for(
            self.server.url_for(self.database, "", "root", "almighty")))
        self.server.set_read_only(False)
        self.assert_kept()

    def test_tls_that_the_url_requires_and_the_server_lacks_is_an_error(self):
        for parameters in ("ssl_mode=REQUIRED", "ssl_mode=VERIFY_IDENTITY", "ssl=true"):
            self.refused("TLS|SSL", service_for(self.url + "?" + parameters), write=False)
        self.assertEqual(service_for(self.url + "?ssl_disabled=true").read_all(), {})

    def test_a_socket_is_used_where_the_url_names_one(self):
        self.server.sql("CREATE OR REPLACE USER local@localhost IDENTIFIED BY 'x'; "
                        "GRANT ALL ON {}.* TO local@localhost;".format(self.database))
        service = service_for("mysql://local:x@nowhere.invalid/{}?unix_socket={}/sock".format(
            self.database, self.server.directory))
        self.assertTrue(service.write("a", "b", None))
        self.assertIn("socket " + self.server.directory, service.describe())

    def test_a_weak_commit_is_a_warning_of_check(self):
        self.addCleanup(self.server.sql, "SET GLOBAL innodb_flush_log_at_trx_commit = 1;")
        self.server.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2;")
        self.assertIn("Warning: innodb_flush_log", self.service.check())

    def test_a_server_with_odd_defaults_changes_nothing(self):
        for setting, default in (
                ("autocommit = 0", "autocommit = 1"),
                ("sql_mode = 'ANSI,NO_BACKSLASH_ESCAPES'", "sql_mode = DEFAULT"),
                ("tx_isolation = 'SERIALIZABLE'", "tx_isolation = DEFAULT"),
                ("tx_isolation = 'READ-UNCOMMITTED'", "tx_isolation = DEFAULT"),
                ("character_set_server = 'latin1'", "character_set_server = DEFAULT")):
            with self.subTest(setting):
                self.addCleanup(self.server.sql, "SET GLOBAL {};".format(default))
                self.server.sql("SET GLOBAL {};".format(setting))
                self.setUp()
                self.assertTrue(self.service.write("a", "'\\\U0001F600", None))
                self.assertEqual(service_for(self.url).read_all(),
                                 {"a": asfc.Record(1, "'\\\U0001F600")})
                self.server.sql("SET GLOBAL {};".format(default))


class PostgreSqlMetadata(_ServerContract, unittest.TestCase):
    SERVER, KIND, CLIENT, DRIVER, QUOTE = PostgreSqlServer, "PostgreSQL", "psql", "+psycopg2", ""
    LEGACY_GRANT = "ALTER TABLE scheduler_failover_controller_metadata OWNER TO airflow;"
    LOCK_TABLE = "BEGIN; LOCK TABLE asfc_metadata IN ACCESS EXCLUSIVE MODE"
    SLOW_TRIGGER = ("CREATE FUNCTION slow() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(4); "
                    "RETURN NEW; END' LANGUAGE plpgsql; CREATE TRIGGER slow BEFORE UPDATE ON "
                    "asfc_metadata FOR EACH ROW EXECUTE FUNCTION slow();")
    REVOKE = ("ALTER DATABASE {database} OWNER TO postgres; "
              "REVOKE ALL ON SCHEMA public FROM public; GRANT USAGE ON SCHEMA public TO {user};")
    HANDSHAKE = "#{}\n"
    IN_UTC, EXPLAIN = "SET TIME ZONE 'UTC';", "EXPLAIN "
    JOB_WORDS = ("", "TIMESTAMP WITH TIME ZONE", "")
    JOB_GRANT = "ALTER TABLE job OWNER TO airflow;"
    ZONES = ("UTC", "Asia/Kolkata", "Europe/Berlin", "America/St_Johns")
    MANY_JOBS = ("INSERT INTO job (id, state, job_type, latest_heartbeat) SELECT i, 'success', "
                 "CASE i % 100 WHEN 0 THEN 'SchedulerJob' ELSE 'LocalTaskJob' END, "
                 "to_timestamp(1700000000 + i) FROM generate_series(1, 19999) AS i; ANALYZE job;")
    FORBID_JOBS = "ALTER TABLE job OWNER TO postgres; REVOKE ALL ON job FROM {user};"

    def set_time_zone(self, zone):
        self.server.sql("ALTER DATABASE {} SET timezone = '{}';".format(self.database, zone))

    def tables(self):
        return self.server.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public';",
                               self.database).split()

    def test_a_replica_is_an_error_for_writes_and_for_reads(self):
        self.begin()
        self.server.set_replica(True)
        try:
            self.refused("replica", write=False)
            self.refused("replica", write=True)
        finally:
            self.server.set_replica(False)
        self.assert_kept()

    def test_a_transaction_that_must_be_serialized_loses_or_fails_but_nothing_worse(self):
        self.server.sql("ALTER DATABASE {} SET default_transaction_isolation = 'serializable';"
                        .format(self.database))
        self.begin()
        for version in (None, 1, 2):
            results = self.race(version)
            self.assertEqual(results.count(True), 1, results)
            self.assertEqual(self.service.read_all(), {
                "a": asfc.Record(1, "kept"),
                "cluster": asfc.Record((version or 0) + 1, str(results.index(True)))})

    def test_the_limits_do_not_outlive_a_transaction(self):
        rows = self.service._run_statements(
            ["SELECT 'in', current_setting('statement_timeout'), current_setting('lock_timeout')",
             "SELECT 'x' \\; COMMIT; SELECT 'out', current_setting('statement_timeout')"],
            self.service._deadline())
        self.assertRegex(rows[0][1], "^[12][0-9]+ms$")
        self.assertEqual(rows[0][2], "1s")
        self.assertEqual(rows[-1], ("out", "0"))

    def test_a_commit_that_need_not_be_on_disk_is_made_to_be(self):
        for setting, seen in (("off", "on"), ("remote_apply", "remote_apply")):
            self.server.sql("ALTER DATABASE {} SET synchronous_commit = {};".format(
                self.database, setting))
            rows = self.service._run_statements(
                ["SELECT 'x', current_setting('synchronous_commit')"], self.service._deadline())
            self.assertEqual(rows, [("x", seen)])

    def test_a_database_of_another_encoding_keeps_what_it_can_and_refuses_the_rest(self):
        name = self.database + "_latin"
        self.server.sql("CREATE DATABASE {} OWNER airflow ENCODING 'LATIN1' TEMPLATE template0;"
                        .format(name))
        service = service_for(self.server.url_for(name))
        self.assertTrue(service.write("a", "é", None))
        self.assertEqual(service.read_all(), {"a": asfc.Record(1, "é")})
        with self.assertRaises(asfc.MetadataError):
            service.write("a", "\U0001F600", 1)


class ZnodeTree:
    """What a ZooKeeper server answers to asfc, in few words: frames in, frames out."""
    LOST = {-101, -103, -110}

    def __init__(self):
        self.zxid = 0
        self.znodes = {}        # path: [data, version, cversion, pzxid]
        self._add("/", b"", -1)
        self._add("/zookeeper", b"")
        self.znodes["/"][2] = -1

    def _add(self, path, data, cversion=0):
        self.zxid += 1
        self.znodes[path] = [data, 0, cversion, self.zxid]
        parent = self.znodes[self.parent(path)]
        parent[2:] = parent[2] + 1, self.zxid

    @staticmethod
    def parent(path):
        return path.rpartition("/")[0] or "/"

    def children(self, path):
        return [other.rpartition("/")[2] for other in self.znodes
                if other != "/" and self.parent(other) == path]

    def stat(self, path):
        data, version, cversion, pzxid = self.znodes[path]
        return struct.pack(">qqqqiiiqiiq", 1, 1, 1, 1, version, cversion, 0, 0, len(data),
                           len(self.children(path)), pzxid)

    def answer(self, frame, is_first):
        """The reply to a message, both without their lengths; None ends the connection."""
        if is_first:
            return struct.pack(">iiq", 0, 4000, 77) + asfc._zk_data(bytes(16)) + b"\0"
        reader = asfc._ZkReader(frame)
        xid, kind = reader.numbers(">ii")
        if kind == -11:
            return None
        code, body = (0, b"") if kind == 100 else self.multi(reader) if kind == 14 \
            else self.operation(kind, reader)
        return struct.pack(">iqi", xid, self.zxid, code) + (b"" if code else body)

    def operation(self, kind, reader):
        path = reader.data().decode("utf-8")
        if kind == 1:
            data = reader.data()
            if path in self.znodes:
                return -110, b""
            if self.parent(path) not in self.znodes:
                return -101, b""
            self._add(path, data)
            return 0, asfc._zk_text(path)
        if kind == 9:
            return 0, asfc._zk_text(path)
        if path not in self.znodes:
            return -101, b""
        znode = self.znodes[path]
        if kind == 5:
            data, (version,) = reader.data(), reader.numbers(">i")
            if version not in (-1, znode[1]):
                return -103, b""
            self.zxid += 1
            znode[:2] = data, znode[1] + 1
        elif kind == 4:
            return 0, asfc._zk_data(znode[0]) + self.stat(path)
        elif kind == 8:
            names = self.children(path)
            return 0, struct.pack(">i", len(names)) + b"".join(map(asfc._zk_text, names))
        elif kind == 6:
            return 0, ZnodesByHand.WORLD + self.stat(path)
        return 0, self.stat(path)

    def multi(self, reader):
        """Of setData, then create: no other one is asked for."""
        kept = {path: list(znode) for path, znode in self.znodes.items()}
        results, failed = [], 0
        for wanted in (5, 1):
            kind, _, _ = reader.numbers(">i?i")
            assert kind == wanted, kind
            code, body = (-2, b"") if failed else self.operation(kind, reader)
            failed = failed or code   # what follows the second one is not read
            results.append((kind, code, body))
        if failed:
            self.znodes = kept
            parts = [struct.pack(">i?ii", -1, False, code, code) for _, code, _ in results]
        else:
            parts = [struct.pack(">i?i", kind, False, 0) + body for kind, _, body in results]
        return 0, b"".join(parts) + struct.pack(">i?i", -1, True, -1)


class TreeConnection:
    """Stands for a connection to a server with this tree, whose answers `spoil` may change."""

    def __init__(self, tree, spoil):
        self.deadline, self.sent = 0.0, b""
        self._tree, self._spoil = tree, spoil
        self._asked, self._said, self._is_first, self._is_closed = b"", b"", True, False

    def send(self, data):
        self.sent += data
        self._asked += data
        while len(self._asked) >= 4 and not self._is_closed:
            end = 4 + struct.unpack(">i", self._asked[:4])[0]
            frame, self._asked = self._asked[4:end], self._asked[end:]
            reply = self._tree.answer(frame, self._is_first)
            self._is_first, self._is_closed = False, reply is None
            if reply is not None:
                self._said += self._spoil(asfc._zk_data(reply))

    def receive(self, length):
        if len(self._said) < length:
            raise OSError("no answer within 1 s")
        found, self._said = self._said[:length], self._said[length:]
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class TreeWorld(asfc.World):
    """Its only server has this tree."""

    def __init__(self, tree, spoil=lambda frame: frame):
        super().__init__()
        self._tree, self._spoil = tree, spoil

    def connect(self, address, deadline):
        self.connection = TreeConnection(self._tree, self._spoil)
        return self.connection


def tree_service(world, **keys):
    return asfc.metadata_service(world, metadata_settings("zookeeper://127.0.0.1:1/x", **keys))


class TreeServer:
    """A server with a tree that it may share with others; `misbehave` is called instead of sending
    the answer number `at` of a connection, the handshake being 0, with the socket and the answer.
    """

    def __init__(self, tree, misbehave=None, at=0):
        self.tree, self.misbehave, self.at = tree, misbehave, at
        self.connections = 0
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(50)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self):
        self._socket.close()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection = self._socket.accept()[0]
                self.connections += 1
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with contextlib.suppress(OSError, struct.error), contextlib.closing(connection):
            for number in itertools.count():
                length, = struct.unpack(">i", connection.recv(4, socket.MSG_WAITALL))
                frame = connection.recv(length, socket.MSG_WAITALL)
                with self.tree.lock:
                    reply = self.tree.answer(frame, number == 0)
                if reply is None:
                    return
                if self.misbehave and number >= self.at:
                    self.misbehave(connection, asfc._zk_data(reply))
                    return
                connection.sendall(asfc._zk_data(reply))


def say_nothing(connection, _=b""):
    """Say nothing more, until the other side goes."""
    while connection.recv(4096):
        pass


def drip(connection, frame):
    for place in range(len(frame)):
        connection.sendall(frame[place:place + 1])
        time.sleep(0.1)


def chatter(connection, frame):
    while True:
        connection.sendall(asfc._zk_data(struct.pack(">iqi", -1, -1, 0) + bytes(20)) * 10)
        time.sleep(0.01)


def said_instead(change, then=say_nothing):
    """Say something else than the answer."""
    def do(connection, frame):
        connection.sendall(change(frame))
        then(connection)
    return do


MISBEHAVIOURS = collections.OrderedDict((
    ("hangs", say_nothing), ("drips its bytes", drip), ("chatters", chatter),
    ("closes the connection", lambda connection, frame: None),
    ("closes in the middle of an answer", said_instead(lambda frame: frame[:7], lambda _: None)),
    ("hangs in the middle of an answer", said_instead(lambda frame: frame[:-1])),
    ("announces a negative length", said_instead(lambda frame: b"\xff\xff\xff\xfe" + frame[4:])),
    ("announces a huge length", said_instead(lambda frame: b"\x7f\xff\xff\xff" + frame[4:])),
    ("sends an empty answer", said_instead(lambda frame: bytes(4))),
    ("answers another request", said_instead(lambda frame: frame[:4] + b"\0\1\0\0" + frame[8:])),
    ("cuts the record off", said_instead(lambda frame: asfc._zk_data(frame[4:-5]))),
    ("sends something else", said_instead(lambda frame: b"HTTP/1.1 400 Bad Request\r\n\r\n"))))
ERROR_CODES = (-1, -2, -3, -5, -6, -7, -8, -12, -13, -14, -100, -102, -108, -111, -112, -113, -114,
               -115, -118, -119, -124, -125, -127)
for each in ERROR_CODES:
    MISBEHAVIOURS["answers with the error code {}".format(each)] = said_instead(
        lambda frame, code=each: asfc._zk_data(frame[4:16] + struct.pack(">i", code)))


class ServersThatMisbehave(unittest.TestCase):
    """Each way at each answer: an error in time, and never a wrong answer or a write made twice."""
    LIMIT_S = 1.5
    READS = 4    # handshake, sync, children, one record
    WRITE = 3    # the answer to a write, after handshake, sync and children

    def setUp(self):
        self.good = self.serve()

    def serve(self, misbehave=None, at=0, tree=None):
        if tree is None:
            tree = ZnodeTree()
            tree.lock = threading.Lock()
        server = TreeServer(tree, misbehave, at)
        self.addCleanup(server.close)
        return server

    def service(self, *ports):
        """Of servers that are tried in this order."""
        service = service_for("zookeeper://" + ",".join("127.0.0.1:{}".format(port)
                                                        for port in ports), self.LIMIT_S)
        service._servers.order = [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]
        return service

    def in_time(self, function, *arguments):
        began = time.monotonic()
        try:
            return function(*arguments)
        except asfc.MetadataError as error:
            self.assertNotIn("\n", str(error))
            return error
        finally:
            self.assertLess(time.monotonic() - began, self.LIMIT_S + 0.5)

    def each(self, case):
        """Try case(misbehaviour, at) with all of them, many at the same time."""
        cases = [(name, at) for name in MISBEHAVIOURS for at in range(self.READS)
                 if at or not name.startswith("answers")]
        problems, waiting = [], cases[::4] if os.environ.get("ASFC_PLAIN") else list(cases)

        def work():
            with contextlib.suppress(IndexError):
                while True:
                    name, at = waiting.pop()
                    try:
                        case(MISBEHAVIOURS[name], at)
                    except Exception:
                        problems.append("{} at {}: {}".format(name, at, traceback.format_exc()))
        threads = [threading.Thread(target=work) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertGreater(len(cases), 90)
        self.assertEqual("\n".join(problems), "")

    def test_make_way_for_the_next_one_within_the_same_time_when_something_is_read(self):
        self.assertTrue(self.service(self.good.port).write("a", "1", None))

        def case(misbehave, at):
            bad = self.serve(misbehave, at, self.good.tree)
            service = self.service(bad.port, self.good.port)
            for connections in (1, 1):   # the one that answered is the first to be asked then
                self.assertEqual(self.in_time(service.read_all), {"a": asfc.Record(1, "1")})
                self.assertEqual(bad.connections, connections)
        self.each(case)

    def test_are_an_error_when_there_is_no_other(self):
        self.assertTrue(self.service(self.good.port).write("a", "1", None))

        def case(misbehave, at):
            bad = self.serve(misbehave, at, self.good.tree)
            self.assertIsInstance(self.in_time(self.service(bad.port).read_all),
                                  asfc.MetadataError)
        self.each(case)

    def test_make_a_write_once_at_most_and_reading_tells(self):
        def case(misbehave, at):
            tree = ZnodeTree()
            tree.lock = threading.Lock()
            good = self.serve(tree=tree)
            self.assertTrue(self.service(good.port).write("a", "1", None))
            bad = self.serve(misbehave, at, tree)
            service = self.service(bad.port, good.port)
            found = self.in_time(service.write, "a", "2", 1)
            if at < self.WRITE:   # nothing was written yet: the next one has done it
                self.assertIs(found, True)
            else:
                self.assertRegex(str(found), "may have been made")
            self.assertEqual(self.in_time(service.read_all), {"a": asfc.Record(2, "2")})
        self.each(case)

    def test_are_passed_over_when_they_refuse_connections(self):
        ports = [free_port(), free_port(), self.good.port]
        service = self.service(*ports)
        self.assertTrue(self.in_time(service.write, "a", "1", None))
        self.good.close()
        error = self.in_time(self.service(*ports[:2]).read_all)
        self.assertEqual(str(error).count("Connection refused"), 2)

    def test_of_five_servers_two_may_hang(self):
        """As many as an ensemble of five can lose."""
        self.service(self.good.port).write("a", "1", None)
        bad = [self.serve(say_nothing).port for _ in range(2)]
        service = self.service(*bad + [self.good.port, free_port(), free_port()])
        self.assertEqual(self.in_time(service.read_all), {"a": asfc.Record(1, "1")})

    def test_that_refuse_a_session_or_its_user_are_an_error(self):
        refuse = said_instead(lambda frame: asfc._zk_data(bytes(8) + frame[12:]))
        error = self.in_time(self.service(self.serve(refuse).port).read_all)
        self.assertIn("refused a new session", str(error))
        service = self.service(self.serve(MISBEHAVIOURS["answers with the error code -115"],
                                          1).port)
        service._auth = "u:secret"
        error = self.in_time(service.read_all)
        self.assertRegex(str(error), "refused metadata_service_zookeeper_auth")
        self.assertNotIn("secret", str(error))

    def test_that_say_nothing_of_themselves_are_used_all_the_same(self):
        self.assertIn("ZooKeeper of an unknown version", self.service(self.good.port).check())

    def test_whose_names_nobody_resolves_are_an_error_in_time(self):
        def resolve(host, *arguments):
            if arguments[-1] != socket.AI_NUMERICHOST and host != "h":
                time.sleep(3)
            raise socket.gaierror(-2, "Name or service not known")
        with mock.patch.object(socket, "getaddrinfo", resolve):
            for host, words in (("h", "Name or service not known"), ("slow", "in time")):
                service = service_for("zookeeper://{}:1".format(host), self.LIMIT_S)
                self.assertIn(words, str(self.in_time(service.read_all)))
        service = self.service(self.good.port)
        service._nodes = asfc.ZookeeperNodes((("localhost", self.good.port),), "")
        service._servers._hosts = service._nodes.hosts
        self.assertEqual(self.in_time(service.read_all), {})
        with mock.patch.object(socket, "getaddrinfo", resolve):   # it is still known
            self.assertEqual(self.in_time(service.read_all), {})


class ZookeepersBytes(unittest.TestCase):
    GOLDEN = (
        "0000002d 00000000 0000000000000000 00002710 0000000000000000 00000010 "
        "00000000000000000000000000000000 00",                              # connect
        "0000001d fffffffc 00000064 00000000 00000006 646967657374 00000003 753a70",   # auth u:p
        "0000000f 00000001 00000003 00000002 2f61 00",                      # exists /a
        "0000000f 00000002 00000004 00000002 2f61 00",                      # getData /a
        "00000032 00000003 00000001 00000002 2f61 00000001 78 00000001 0000001f 00000005 "
        "776f726c64 00000006 616e796f6e65 00000000",                        # create /a "x"
        "00000017 00000004 00000005 00000002 2f61 00000001 79 00000000",    # setData, version 0
        "00000012 00000005 00000002 00000002 2f61 ffffffff",                # delete, any version
        "0000000d 00000006 00000009 00000001 2f",                           # sync /
        "00000008 00000007 fffffff5")                                       # close

    def test_are_those_that_a_well_kept_client_sends(self):
        connection = TreeConnection(ZnodeTree(), lambda frame: frame)
        session = asfc._ZkSession(connection, 0.0, 10.0, 0, "u:p")
        service = tree_service(TreeWorld(ZnodeTree()))
        any_code = range(-200, 0)
        session.ask(service._get(asfc._ZK_EXISTS, "/a"), service._get(asfc._ZK_GET_DATA, "/a"),
                    service._new("/a", b"x"), service._set("/a", b"y", 0),
                    (2, asfc._zk_text("/a") + struct.pack(">i", -1)),
                    (asfc._ZK_SYNC, asfc._zk_text("/")), allowed=any_code)
        session.end()
        self.assertEqual(connection.sent.hex(), "".join(self.GOLDEN).replace(" ", ""))

    def test_of_a_user_are_his_digest(self):
        service = tree_service(TreeWorld(ZnodeTree()), metadata_service_zookeeper_auth="u:p")
        self.assertIn(b"digest\0\0\0\x1eu:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ=", service._acl())

    def test_of_a_server_are_read_as_they_stand(self):
        sample = bytes.fromhex("00000025000000000000271012345678 90abcdef00000010 "
                               "000102030405060708090a0b0c0d0e0f00".replace(" ", ""))
        for end in (len(sample), len(sample) - 1):   # old servers leave the last byte out
            connection = mock.MagicMock()
            frame = struct.pack(">i", end - 4) + sample[4:end]
            connection.receive.side_effect = [frame[:4], frame[4:]]
            asfc._ZkSession(connection, 0.0, 10.0, 0, "")

    def test_that_are_cut_off_are_never_read_as_something_shorter(self):
        for message in (b"", bytes(3), b"\0\0\0\5abcd", b"\xff\xff\xff\xfe", b"\x7f\0\0\0ab"):
            for read in (asfc._ZkReader.data, asfc._ZkReader.stat):
                with self.assertRaises(ValueError):
                    read(asfc._ZkReader(message))
        self.assertEqual(asfc._ZkReader(b"\xff\xff\xff\xff").data(), b"")   # null

    def test_are_spoken_in_fewer_than_300_lines(self):
        part = read_file(asfc.__file__).partition("# -- ZooKeeper:")[2]
        self.assertLess(part.partition("\ndef metadata_service(")[0].count("\n"), 300)

    # -- spoilt ones

    @staticmethod
    def spoilt(chance, frame):
        """One of many ways to spoil a message, and whether it still says the same."""
        where, byte = chance.randrange(len(frame)), chance.randrange(256)
        number = struct.pack(">i", chance.choice((-2 ** 31, -2, -1, 0, 1, 7, 0xfffff, 2 ** 31 - 1)))
        rest = frame[4:]
        unasked = asfc._zk_data(struct.pack(">iqi", chance.choice((-1, -2)), -1, 0)
                                + bytes(chance.randrange(20)))
        return chance.choice((
            lambda: (frame[:where] + bytes([byte]) + frame[where + 1:], False),
            lambda: (frame[:where] + number + frame[where + 4:], False),
            lambda: (frame[:where], False),
            lambda: (asfc._zk_data(rest[:where]), where >= len(rest)),
            lambda: (frame[:where] + os.urandom(8) + frame[where:], False),
            lambda: (number + rest, False),
            lambda: (frame + frame, False),
            lambda: (b"", False),
            lambda: (asfc._zk_data(b""), False),
            lambda: (asfc._zk_data(struct.pack(">i", byte) + rest[4:]), False),
            lambda: (asfc._zk_data(rest[:12] + number + rest[16:]), False),
            lambda: (unasked * chance.randrange(5) + frame, True)))()

    @classmethod
    def fuzz(cls, frames, seed):
        """Spoil so many messages, one of an exchange; returns how often it was understood. Raises
        whatever is neither a MetadataError nor an answer, and AssertionError for a wrong one."""
        chance, spoilt, understood = random.Random(seed), 0, 0
        while spoilt < frames:
            tree, state = ZnodeTree(), {"left": -1, "same": True}

            def spoil(frame, state=state):
                state["left"] -= 1
                if state["left"] != 0:
                    return frame
                frame, state["same"] = cls.spoilt(chance, frame)
                return frame
            service = tree_service(TreeWorld(tree, spoil))
            service.exchange([asfc.Write("cluster", "é" * 50, None), asfc.Write("b", "1", None)])
            writes = chance.choice(((), (asfc.Write("cluster", "new", 1),),
                                    (asfc.Write("c", "new", None), asfc.Write("b", "lost", 7))))
            is_handshake = chance.randrange(14) == 0
            state["left"] = 1 if is_handshake else chance.randrange(2, 15)
            began = time.monotonic()
            try:
                found = service.exchange(writes)
                assert len(found.won) == len(writes) and all(
                    type(version) is int and type(value) is str
                    for version, value in found.records.values()), found
                understood += state["left"] <= 0 and not state["same"]
            except asfc.MetadataError as error:
                # Before the handshake is done nobody may speak unasked.
                assert is_handshake or not state["same"] and "\n" not in str(error), error
                state["same"] = False
            assert time.monotonic() - began < 3.5
            spoilt += state["left"] <= 0
            if state["same"]:
                state["left"] = -1
                assert service.read_all() == found.records
        return understood

    def test_that_are_spoilt_end_in_the_one_error_or_a_right_answer(self):
        frames = 200 if os.environ.get("ASFC_PLAIN") else 2000
        understood = self.fuzz(frames, 5)
        self.assertGreater(understood, frames / 20)
        self.assertLess(understood, frames / 2)


def soak_zookeeper_fuzz():
    seed = int(time.time())
    print("seed {}: {} of 100,000 were understood".format(
        seed, ZookeepersBytes.fuzz(100000, seed)))
    return 0


class ZookeeperMetadata(_ServedContract, unittest.TestCase):
    SERVER, KIND = ZooKeeperServer, "ZooKeeper"
    AUTH = "asfc:" + DatabaseServer.PASSWORD
    databases = 0

    def new_url(self):
        type(self).databases += 1
        self.base = "/test_{}/é".format(self.databases)
        return self.server.create_database(self.base[1:])

    def by_hand(self, name, *arguments, auth=""):
        with self.server.client(auth) as znodes:
            return getattr(znodes, name)(*arguments)

    def tables(self):
        there = self.by_hand("children", self.base + "/asfc") is not None
        return ["asfc_metadata"] if there else []

    def make_legacy_table(self):
        self.by_hand("make", self.base + "/scheduler_failover_controller/failover_heartbeat")

    def add_legacy_heartbeat(self, text):
        self.by_hand("set", self.base + "/scheduler_failover_controller/failover_heartbeat", text)

    def test_versions_never_fall_though_znodes_are_removed_by_hand(self):
        highest = 0
        for path in ("/asfc/RECORD", "/asfc/RECORD", "/asfc", "", "/asfc/RECORD"):
            for _ in range(3):
                record = self.service.read_all().get("cluster")
                self.assertTrue(self.service.write("cluster", "x", record and record.version))
            before = highest = self.service.read_all()["cluster"].version
            name, = self.by_hand("children", self.base + "/asfc")
            self.by_hand("remove", self.base + path.replace("RECORD", name))
            self.assertEqual(self.service.read_all(), {})
            for service in (self.service, service_for(self.url)):
                self.assertFalse(service.write("cluster", "old", before))
            self.assertTrue(service_for(self.url).write("cluster", "new", None))
            for version in list(range(10)) + [before - 1, before, before + 1]:
                self.assertFalse(self.service.write("cluster", "old", version), version)
            now = self.service.read_all()["cluster"]
            self.assertEqual(now.value, "new")
            self.assertGreater(now.version, highest)
            highest = now.version
            self.assertTrue(self.service.write("cluster", "newer", highest))
            self.assertEqual(self.service.read_all()["cluster"],
                             asfc.Record(highest + 1, "newer"))

    def test_of_ten_that_make_again_what_was_removed_one_wins(self):
        self.service.write("cluster", "0", None)
        for path in ("/asfc/cluster.0", "/asfc"):
            self.by_hand("remove", self.base + path)
            results = self.race(None)
            self.assertEqual(sorted(map(str, results)), ["False"] * 9 + ["True"])
            names = self.by_hand("children", self.base + "/asfc")
            self.assertEqual(len(names), 1, names)
            self.by_hand("remove", self.base + "/asfc/" + names[0])

    def test_a_record_is_made_once_though_another_is_made_just_before(self):
        """Where something was removed, that changes the base that the next one chooses."""
        self.service.write("x", "0", None)
        self.by_hand("remove", self.base + "/asfc/x.0")
        other, look = service_for(self.url), self.service._look

        def look_and_be_late(session):
            look(session)
            self.assertTrue(other.write("n", "x", None))
            self.assertTrue(other.write("cluster", "first", None))
        looks = iter((look, look_and_be_late))   # the first one belongs to every exchange
        self.service._look = lambda session: next(looks, look)(session)
        self.assertFalse(self.service.write("cluster", "second", None))
        names = [name.partition(".")[0] for name in self.by_hand("children", self.base + "/asfc")]
        self.assertEqual(sorted(names), ["cluster", "n"])

    def test_with_auth_nobody_else_can_read_or_write_a_znode_that_asfc_has_made(self):
        service = service_for(self.url, metadata_service_zookeeper_auth=self.AUTH)
        self.assertTrue(service.write("cluster", "a", None))
        self.assertTrue(service.write("cluster", "b", 1))
        self.assertEqual(service.read_all(), {"cluster": asfc.Record(2, "b")})
        self.assertNotIn("Warning", service.check())
        for auth in ("", "asfc:wrong-secret", "other:" + DatabaseServer.PASSWORD):
            stranger = service_for(self.url, metadata_service_zookeeper_auth=auth)
            self.refused("metadata_service_zookeeper_auth", stranger)
            self.refused("metadata_service_zookeeper_auth", stranger, write=False)
            for name, *arguments in (("set", "/asfc/cluster.0", "x"), ("get", "/asfc/cluster.0"),
                                     ("remove", "/asfc"), ("make", "/asfc/x"), ("make", "/x")):
                with self.assertRaisesRegex(OSError, "no permission"):
                    self.by_hand(name, self.base + arguments[0], *arguments[1:], auth=auth)
        self.assertEqual(service.read_all(), {"cluster": asfc.Record(2, "b")})

    def test_what_was_made_without_auth_is_a_warning_of_check(self):
        self.begin()
        service = service_for(self.url, metadata_service_zookeeper_auth=self.AUTH)
        self.assertRegex(service.check(), "Warning: {}/asfc was made without".format(self.base))
        self.assertNotIn("Warning", self.service.check())

    def test_check_says_which_server_answered_its_version_and_its_mode(self):
        self.assertEqual(self.service.check(), "ZooKeeper 3.8.0; {} answered, its mode is "
                         "standalone.".format(self.server.name()))

    def test_a_value_that_is_too_long_for_the_server_is_an_error_and_not_stored(self):
        self.begin()
        with self.assertRaises(asfc.MetadataError):
            self.service.write("a", "x" * 1100000, 1)
        self.assert_kept()

    def test_an_ensemble_that_was_restored_from_a_backup_is_used_again(self):
        server = ZooKeeperServer().start()
        self.addCleanup(server.remove)
        service = service_for(server.create_database("x"))
        service.write("cluster", "a", None)
        server.stop()
        server.backup()
        server.start()
        for version in range(1, 20):
            self.assertTrue(service.write("cluster", "b", version))
        server.kill()
        server.bring_back()
        server.start()
        with self.assertRaisesRegex(asfc.MetadataError, "lags behind"):
            service.read_all()
        self.assertEqual(service.read_all(), {"cluster": asfc.Record(1, "a")})
        self.assertTrue(service.write("cluster", "c", 1))


class ZookeeperEnsembleMetadata(ZookeeperMetadata):
    """The same with an ensemble of three, and what happens to one of them."""
    SERVER = ZooKeeperEnsemble

    def test_check_says_which_server_answered_its_version_and_its_mode(self):
        said = re.fullmatch(r"ZooKeeper 3.8.0; (\S+) answered, its mode is (leader|follower)\.",
                            self.service.check())
        server, = (one for one in self.server.servers if one.name() == said.group(1))
        self.assertEqual(server.mode(), said.group(2))

    def test_a_server_that_lags_never_shows_what_was_before(self):
        """It is frozen while others write, and asked as soon as it goes on. In between the leader
        may have given it up."""
        server = self.server.follower()
        path = self.url.partition("/test_")[2]
        lagging = service_for("zookeeper://{}/test_{}".format(server.name(), path))
        others = service_for(self.url)
        others._servers.order = [(socket.AF_INET, ("127.0.0.1", one.port))
                                 for one in self.server.servers if one is not server]
        self.assertTrue(others.write("cluster", "0", None))
        self.addCleanup(server.thaw)
        answers = 0
        for version, frozen_s in enumerate((0.2, 0.5, 0.2, 1.0, 0.5, 3.0, 0.2, 0.5), 1):
            server.freeze()
            self.assertTrue(others.write("cluster", str(version), version))
            time.sleep(frozen_s)
            server.thaw()
            with contextlib.suppress(asfc.MetadataError):
                self.assertEqual(lagging.read_all()["cluster"].value, str(version))
                answers += 1
            self.server.wait_for_all()
            self.assertEqual(lagging.read_all()["cluster"].value, str(version))
        self.assertGreater(answers, 3)

    def test_a_leader_that_was_frozen_and_deposed_answers_nothing_of_before(self):
        leader = self.server.leader()
        path = self.url.partition("/test_")[2]
        deposed = service_for("zookeeper://{}/test_{}".format(leader.name(), path))
        self.assertTrue(self.service.write("cluster", "0", None))
        self.assertEqual(deposed.read_all()["cluster"].value, "0")
        self.addCleanup(leader.thaw)
        leader.freeze()

        def written():
            with contextlib.suppress(asfc.MetadataError):
                record = self.service.read_all()["cluster"]
                return record.version > 1 or self.service.write("cluster", "1", record.version)
        wait_until(written, 30, "a write without the leader")
        leader.thaw()
        until, answers = time.monotonic() + 3, 0
        while time.monotonic() < until or not answers:
            with contextlib.suppress(asfc.MetadataError):
                self.assertEqual(deposed.read_all()["cluster"].value, "1")
                answers += 1
        self.server.wait_for_all()


###############################################################################
# Nodes: the model ############################################################
###############################################################################


class StartCommand:
    """A start command in a NodeModel: it runs until the simulation ends it."""

    def __init__(self):
        self.runs = True


class NodeModel:
    """A node as its script shows it to the world: gate, intent, start command, processes.

    Deterministic; the clock (a function that returns seconds) is handed in. `handle` answers a
    NodeRequest step by step: it yields the name of each point, or "waiting" while another request
    holds the lock, and returns the text of the answer. Not to advance it is a frozen script, to
    close it is a killed one. `appear`, `fail`, `die` and `power_cycle` are what befalls the node.
    What its controller keeps for the script: `fence_deadline`, on the model's clock, when the
    promise ends (None: there is none), and `directory_id`.
    """
    OWN_WAIT_S = 1.0   # so long an own request waits for the lock
    STOPPED = "asked it to end (SIGTERM), then ended what was left (SIGKILL)"   # the script counts

    def __init__(self, clock, directory="~/.asfc"):
        self.clock, self.directory = clock, directory
        self.gate = self.intent = self.command = self.output = None
        self.mains, self.remnants, self.foreign = [], [], []
        self.locked = False
        self.last_pid = 100
        self.fence_deadline, self.directory_id, self.fence_text = None, "", None

    # -- what befalls it

    def appear(self, detached=False):
        """The start command becomes the scheduler, or leaves it behind and ends."""
        self.last_pid += 1
        self.mains.append(asfc.Process(self.last_pid, int(self.clock() * 100), 1, self.last_pid, 0,
                                       "airflow scheduler"))
        if detached:
            self.command.runs = False
        self.command = None

    def fail(self, output="failed"):
        """The start command ends without a scheduler."""
        self.command.runs, self.command, self.output = False, None, output

    def die(self, remnants=0):
        """The scheduler dies; so many processes of it live on."""
        main = self.mains.pop()
        if self.intent:
            self.intent["command"].runs = False
        self.remnants += [main._replace(pid=main.pid + 1000 + i, arguments="airflow scheduler -- X")
                          for i in range(remnants)]

    def power_cycle(self):
        """All processes are gone, what is on disk stays, but an intent is of the boot before.

        So is a promise: it counts as run out.
        """
        self.mains, self.remnants, self.intent, self.command = [], [], None, None
        self.locked = False
        if self.fence_deadline is not None:
            self.fence_deadline = -math.inf

    # -- what its own controller sees and does without the script

    COMMAND_PID = 50

    def processes(self, node):
        """Its processes as the door of a controller on it lists them."""
        found = [asfc.LocalProcess(one.pid, one.start, one.parent, one.session, one.uid,
                                   tuple(one.arguments.split()))
                 for one in self.mains + self.remnants]
        if self.command:
            found.append(asfc.LocalProcess(self.COMMAND_PID, 1, 1, self.COMMAND_PID, 0,
                                           ("sh", "-c", "start"), node))
        return found

    def signal(self, process, number):
        """Each signal ends a process; a main process that goes by SIGKILL leaves nothing here."""
        key = (process.pid, process.start)
        if self.command and process.pid == self.COMMAND_PID:
            self.fail("killed")
        if self.intent and key in [main[:2] for main in self.mains]:
            self.intent["command"].runs = False
        self.mains = [main for main in self.mains if main[:2] != key]
        self.remnants = [remnant for remnant in self.remnants if remnant[:2] != key]

    # -- what it answers

    def answer(self, request):
        """The whole answer at once."""
        return self.run_to(self.handle(request), None)

    @staticmethod
    def run_to(steps, point):
        """Advance to the point; returns the answer if the end comes first, else None."""
        try:
            while next(steps) != point:
                pass
        except StopIteration as end:
            return end.value
        return None

    def handle(self, request):
        """The steps of a request; see the class."""
        lines = self._first_lines(request)
        if request.verb == "look":
            return self._told_unlocked(request, lines)
        came = self.clock()
        while self.locked:
            if request.own and self.clock() - came >= self.OWN_WAIT_S:
                return self.answer_held(request)
            yield "waiting"
        self.locked = True
        try:
            yield "locked"
            refused = yield from self._pass_gate(request, lines)
            if refused:
                return self._told(request, lines + ["refused " + refused], bare=True)
            if request.verb == "stop":
                yield from self._stop(request, lines)
            else:
                self._settle_intent()
                if request.verb == "start":
                    refused = yield from self._start(request, lines)
                    if refused:
                        return self._told(request, lines + ["refused " + refused], bare=True)
            return self._told(request, lines, intent=self.intent)
        finally:
            self.locked = False

    def answer_held(self, request):
        """What an own request is told that did not get the lock in time."""
        return self._told_unlocked(
            request, self._first_lines(request) + ["held another command holds its lock"])

    def _first_lines(self, request):
        directory = ["directory " + self.directory_id] if self.directory_id else []
        return ["node " + request.node] + directory

    def _told_unlocked(self, request, lines):
        return self._told(request, lines, intent=None if self.mains else self.intent)

    def _pass_gate(self, request, lines):
        stamp, held = request.stamp, self.gate
        wanted = asfc.Gate(stamp.pair, stamp.instance, stamp.cluster, request.node)
        if held:
            lines.append(self._gate_line())
            if held.cluster != wanted.cluster:
                return ("node {} belongs to cluster {}, not to {}: if this is meant, stop the "
                        "other cluster's controllers and its scheduler, then remove {}/gate "
                        "there").format(wanted.node, held.cluster, wanted.cluster, self.directory)
            if held.node != wanted.node:
                return ("the state directory {} belongs to node {}, not to {}: give each node its "
                        "own, or, if the node was renamed, remove {}/gate there").format(
                            self.directory, held.node, wanted.node, self.directory)
            if held.pair > wanted.pair:
                return "node {} has heard of the newer {}".format(wanted.node, held.pair)
            if held == wanted:
                return None
            if held.pair == wanted.pair:
                return "on node {} {} is taken by another instance, {}".format(
                    wanted.node, held.pair, held.instance)
        self.gate = wanted
        lines.append(self._gate_line())
        yield "gate written"
        return None

    def _gate_line(self):
        pair, instance, cluster, node = self.gate
        return "gate {} {} {} {} {}".format(pair.term, pair.move, instance, cluster, node)

    def _settle_intent(self):
        if self.mains:
            self.intent = None
        if self.intent and not self.intent["command"].runs and self.intent["ended"] is None:
            self.intent["ended"] = self.clock()

    def _start(self, request, lines):
        if self.mains:
            lines.append("done not started: a scheduler runs there already")
        elif self.intent:
            lines.append("done not started: an earlier start is still under way")
        elif not self._promise_holds():
            return self._without_promise(request)
        else:
            return (yield from self._launch(request, lines))
        return None

    def _launch(self, request, lines):
        self.output = None
        command = StartCommand()
        try:
            yield "launched"
            self.intent = {"stamp": request.stamp, "command": command, "begun": self.clock(),
                           "ended": None}
            yield "intent written"
            if not self._promise_holds():
                command.runs, self.intent = False, None
                return self._without_promise(request)
            yield "last test passed"
        except GeneratorExit:
            command.runs = False   # it waits for the word to go, and ends if none comes
            raise
        self.command = command
        yield "sent on its way"
        lines.append("done the start command was launched")
        return None

    def _promise_holds(self):
        return self.fence_deadline is None or self.clock() < self.fence_deadline

    @staticmethod
    def _without_promise(request):
        return ("the promise of node {} has run out: its controller has to renew it first"
                .format(request.node))

    def _stop(self, request, lines):
        if request.keep and request.keep[:2] not in [main[:2] for main in self.mains]:
            lines.append("done nothing was stopped: the scheduler to keep has ended")
            return
        if self.intent:
            is_kept = self.command is None and request.keep   # it has become the scheduler
            self.intent["command"].runs &= bool(is_kept)
            self.command = None
        yield "start command killed"
        spared = [main for main in self.mains if request.keep and main[:2] == request.keep[:2]]
        lines.append("done " + self.STOPPED
                     if self.mains != spared or self.remnants
                     else "done there was nothing to stop")
        self.mains, self.remnants = spared, []
        yield "stopped"   # the intent is closed last: a look between may still see it
        self.intent = None

    def _told(self, request, lines, intent=None, bare=False):
        if intent:
            stamp, now = intent["stamp"], self.clock()
            lines.append("intent {} {} {} {} {:.0f} {}".format(
                stamp.pair.term, stamp.pair.move, stamp.instance, int(intent["command"].runs),
                100 * (now - intent["begun"]),
                "-" if intent["ended"] is None else round(100 * (now - intent["ended"]))))
        if not bare:
            for word, processes in (("main", self.mains), ("remnant", self.remnants),
                                    ("foreign", self.foreign)):
                lines += ["{} {} {} {} {} {} {}".format(word, *process) for process in processes]
            lines += ["output " + self.output] if self.output and not self.mains else []
        return "".join("asfc {} {}\n".format(request.nonce, line) for line in lines + ["end"])


###############################################################################
# Nodes: the script and the model #############################################
###############################################################################


class PointedNodes(asfc.Nodes):
    """Nodes whose script runs here under any name, and ends or stops itself at a point."""
    pointed = {}      # nonce -> (point, signal, seconds until its timer ends it)
    terminal = ""     # "1": as with sudo over ssh, but for the terminal itself
    stop_wait_s = 5

    def _is_remote(self, name):
        return False

    def _parameters(self, request, terminal, timeout_s):
        parameters = super()._parameters(request, terminal, timeout_s)
        point, number, limit_s = self.pointed.get(request.nonce, ("", "", None))
        parameters.update(point=point, point_signal=number, stop_wait=str(self.stop_wait_s),
                          terminal=self.terminal)
        if limit_s:
            parameters["time_limit"] = str(limit_s)
        return parameters

    @staticmethod
    def script():
        """NODE_SCRIPT with its points come to life."""
        return re.sub(r"# point: (.*)", r'[ "$point" != "\1" ] || '
                      r'{ echo $$ >"$HOME/stopped.$nonce"; kill -"$point_signal" $$; }',
                      asfc.NODE_SCRIPT)


class NodePair:
    """A real node and its model, which get the same requests."""
    REFUSALS = ("has heard of the newer", "is taken by another instance", "belongs to cluster",
                "belongs to node", "has run out")
    HELD = "holds its lock"
    START = """
        echo $$ >>{0}/pids
        read -r what <{0}/control
        [ "$what" = appear ] || {{ echo failed; exit 3; }}
        exec -a "{0}/airflow scheduler" sleep 1000
        """

    def __init__(self, shell):
        self.sandbox = NodeSandbox(shell, find_program("bash"))
        directory = self.sandbox.directory
        os.mkfifo(self.sandbox.path("control"))
        self.sandbox.write("pids", "")
        self.sandbox.configuration.airflow_scheduler_start_command = self.START.format(directory)
        # Much cheaper than a filter: only pid 1, those above the asker, and what was written down.
        write_program(self.sandbox.path("bin", "ps"), """
            #!/bin/sh
            p=$$ pids=1
            while [ "$p" -gt 1 ]; do
                pids=$pids,$p
                read -r line </proc/$p/stat
                set -- ${{line##*) }} "$@"
                p=$2
            done
            while read -r p; do pids=$pids,$p; done <{}/pids
            exec {} -ww -o pid=,ppid=,pgid=,sid=,uid=,stat=,args= -p "$pids"
            """.format(directory, find_program("ps")))
        self.nodes = PointedNodes(self.sandbox.world, self.sandbox.configuration)
        self.clock = 0.0
        self.model = NodeModel(lambda: self.clock, self.sandbox.configuration.state_dir)
        self.fence = ""
        self.story = []
        self.exercised, self.answers = collections.Counter(), 0

    # -- requests

    def ask(self, request):
        """What the real node answers, as a report."""
        result = self.sandbox.world.run([self.nodes.command(request)])[0]
        report = self.nodes._report(request.node, request, result)
        refused = [words for words in self.REFUSALS if words in report.refused]
        self.exercised["".join(refused) or self.done(report) or report.state] += 1
        self.exercised["own"] += request.own
        self.exercised["held"] += self.HELD in report.reason
        self.exercised["directory"] += bool(report.directory)
        self.answers += 1
        return report

    @staticmethod
    def done(report):
        stopped = NodeModel.STOPPED
        return stopped if report.done.startswith(stopped) else report.done

    def plain(self, request, report):
        """A report without what may differ: pids, times, texts that name them."""
        if isinstance(report, str) or report is None:
            report = self.nodes._report(request.node, request,
                                        asfc.CommandResult(0, report or "", ""))
        intent = report.intent and (report.intent[:3] + (report.intent.ended_s is None,))
        return (report.answered, report.state, report.refused, report.gate, intent,
                len(report.mains), len(report.remnants), self.done(report), report.output,
                report.directory, self.HELD in report.reason)

    def compare(self, request, report, answer):
        real, model = self.plain(request, report), self.plain(request, answer)
        assert real == model, "the script says\n{}\nthe model says\n{}".format(
            (real, report.reason), model)

    def request_one(self, request):
        self.compare(request, self.ask(request), self.model.answer(request))

    def request_killed(self, request, point):
        """The script is killed at the point; frozen is the same, once its timer comes."""
        self.nodes.pointed[request.nonce] = (point, "KILL", None)
        report = self.ask(request)
        self.let_launcher_end(point)
        steps = self.model.handle(request)
        answer = self.model.run_to(steps, point)
        steps.close()
        self.compare(request, report, answer)

    def request_frozen(self, request, point, other, thaw, fence=None):
        """The script stops itself at the point; another comes; it goes on, or its timer ends it.

        Meanwhile the promise becomes `fence`.
        """
        self.nodes.pointed[request.nonce] = (point, "STOP", None if thaw else 1)
        reports, threads = self.in_threads([request])
        stopped = self.sandbox.path("stopped." + request.nonce)
        wait_until(lambda: (os.path.exists(stopped) and self.is_stopped(stopped)) or not
                   threads[0].is_alive(), 10, "the script is frozen")
        steps = self.model.handle(request)
        answer = self.model.run_to(steps, point)
        if fence is not None:
            self.promise(fence)
            self.exercised["frozen until the promise has run out"] += (
                not answer and point == "intent written" and fence in self.RUN_OUT)
        waiting = self.model.handle(other)
        if not thaw:
            steps.close()
            threads[0].join()
            self.let_launcher_end(point)
        others, more = self.in_threads([other])
        told = self.model.run_to(waiting, "waiting")
        if not told and other.own:
            self.clock += self.model.OWN_WAIT_S
            told = self.model.run_to(waiting, "waiting")
        if told:           # a look waits for no lock, and others not for a script that has ended
            more[0].join()
        if thaw and os.path.exists(stopped):
            answer = self.model.run_to(steps, None)
            os.kill(int(self.sandbox.read(stopped)), signal.SIGCONT)
        for thread in threads + more:
            thread.join()
        self.compare(request, reports[0], answer)
        self.compare(other, others[0], told or self.model.run_to(waiting, None))

    def request_both(self, one, other):
        """Two at once: the outcome is that of one order or the other."""
        if "look" in (one.verb, other.verb):
            one, other = sorted((one, other), key=lambda each: each.verb == "look")
        before = self.save()
        reports, threads = self.in_threads([one, other])
        for thread in threads:
            thread.join()
        held = [self.HELD in report.reason for report in reports]
        if other.verb == "look" or held[1]:
            self.compare_beside(one, reports[0], other, reports[1])
            return
        if held[0]:
            self.compare_beside(other, reports[1], one, reports[0])
            return
        after = asfc.NodeRequest("look", one.nonce + "a", "a", None, None)
        asked = (one, other, after)
        real = [self.plain(*each) for each in zip(asked, reports + [self.ask(after)])]
        for order in (asked, (other, one, after)):
            self.restore(before)
            answers = {request.nonce: self.plain(request, self.model.answer(request))
                       for request in order}
            if [answers[request.nonce] for request in asked] == real:
                return
        raise AssertionError("neither order gives {}; the model's last: {}".format(real, answers))

    def compare_beside(self, request, report, look, look_report):
        """A look, or an own query without the lock, may be told what holds at any moment."""
        tell = self.model.answer_held if look.own else self.model.answer
        seen, answer = [self.plain(look, tell(look))], None
        steps = self.model.handle(request)
        while answer is None:
            try:
                next(steps)
            except StopIteration as end:
                answer = end.value
            seen.append(self.plain(look, tell(look)))
        self.compare(request, report, answer)
        assert self.plain(look, look_report) in seen, (
            "a look says\n{}\nthe model says\n{}".format(look_report, seen))

    def in_threads(self, requests):
        reports = [None] * len(requests)

        def work(index):
            reports[index] = self.ask(requests[index])
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(requests))]
        for thread in threads:
            thread.start()
        return reports, threads

    def save(self):
        model = self.model
        intent = dict(model.intent, runs=model.intent["command"].runs) if model.intent else None
        return model.gate, intent, model.command, list(model.mains), model.output

    def restore(self, saved):
        model = self.model
        model.gate, intent, model.command, mains, model.output = saved
        model.mains, model.intent = list(mains), intent and dict(intent)
        if intent:
            intent["command"].runs = intent["runs"]

    @staticmethod
    def is_stopped(path):
        fields = process_fields(read_file(path).strip())
        return bool(fields) and fields[0] == "T"

    def let_launcher_end(self, point):
        """A launcher whose script was killed ends by itself, but a moment later."""
        if point not in ("launched", "intent written", "last test passed"):
            return
        wait_until(lambda: not [a for _, a in processes_with(self.sandbox.directory) if
                                "asfc-start" in a], 5, "the launcher ends")

    # -- what the node's controller keeps there

    FENCES = {   # seconds left and boot, as the file has them, and the model's deadline
        "none": (None, None, None), "holds": (1000, None, math.inf),
        "has run out": (0, None, 0.0), "is of another boot": (1000, "another-boot", -math.inf)}
    RUN_OUT = ("has run out", "is of another boot")

    def promise(self, what):
        """Set the promise of the node, both alike."""
        left_s, boot, self.model.fence_deadline = self.FENCES[what]
        if left_s is None:
            self.sandbox.keep("fence", "")
        else:
            self.sandbox.promise(left_s, boot)

    def name_directory(self, name):
        self.model.directory_id = name
        self.sandbox.keep("controller.lock", name + "\n")

    # -- events

    def event(self):
        """Let the start command go on, or the scheduler die, if there is one; both alike."""
        if self.model.command:
            what = "appear" if len(self.story) % 3 else "fail"
            getattr(self.model, what)()
            self.tell_command(what)
            if what == "appear":  # so that one and the same request can name it to both
                pid = self.newest_pid()
                self.model.mains[-1] = self.model.mains[-1]._replace(
                    pid=pid, start=int(process_fields(pid)[19]))
        elif self.model.mains:
            self.model.die()
            os.kill(self.newest_pid(), signal.SIGKILL)
            wait_until(lambda: not self.scheduler_lives(), 5, "the scheduler is dead")

    def tell_command(self, what):
        control = self.sandbox.path("control")

        def opened():
            try:
                return os.open(control, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return None
        descriptor = wait_until(opened, 10, "the start command listens")
        os.write(descriptor, what.encode() + b"\n")
        os.close(descriptor)
        if what == "appear":
            wait_until(self.scheduler_lives, 5, "the scheduler appears")
        else:
            self.let_command_end()

    def let_command_end(self):
        pid = self.newest_pid()
        wait_until(lambda: not process_lives(pid), 5, "the start command ends")

    def newest_pid(self):
        return int(self.sandbox.read("pids").split()[-1])

    def scheduler_lives(self):
        with contextlib.suppress(OSError):
            arguments = read_file("/proc/{}/cmdline".format(self.newest_pid()))
            return arguments.endswith("/airflow scheduler\x001000\x00")

    # -- one random sequence

    POINTS = ("locked", "gate written", "launched", "intent written", "last test passed",
              "sent on its way", "start command killed")

    def random_request(self, rng, verbs=("query",) * 2 + ("start",) * 3 + ("stop", "look")):
        held = self.model.gate
        pair, instance, cluster, node = held or asfc.Gate(asfc.Pair(1, 0), "i1", "c1", "a")
        kind = rng.random()
        if kind < 0.45:
            pair = asfc.Pair(pair.term, pair.move + 1)
        elif kind < 0.55:
            pair, instance = asfc.Pair(pair.term + 1, 0), rng.choice(["i1", "i2"])
        elif kind < 0.75:
            pair = asfc.Pair(max(1, pair.term + rng.randint(-1, 1)), rng.randint(0, 3))
            instance = rng.choice(["i1", "i2"])
        elif kind < 0.8:
            cluster = "c2"
        elif kind < 0.85:
            node = "b"
        verb = rng.choice(verbs + ("stop",) * 4 * bool(self.model.mains))
        stamp = None if verb == "look" else asfc.Stamp(cluster, pair, instance)
        keep = None
        if verb == "stop" and self.model.mains:
            main = self.model.mains[-1]
            keep = rng.choice([None, main, main._replace(start=main.start + 1)])
        own = verb == "query" and rng.random() < 0.5
        return asfc.NodeRequest(verb, "{:08x}".format(rng.getrandbits(32)), node, stamp, keep, own)

    def run(self, rng):
        """A sequence of requests and events; every answer must be the model's."""
        self.name_directory(rng.choice(["", "4f5e", "id-of_it"]))
        for _ in range(rng.randint(2, 4)):
            fence = rng.choice(["none", "none", "holds", "holds", "has run out",
                                "is of another boot"])
            if rng.random() < 0.4:
                self.promise(fence)
            kind, request, other = rng.random(), self.random_request(rng), self.random_request(rng)
            point = rng.choice(self.POINTS)
            self.story.append((round(kind, 2), fence, point, request, other))
            self.exercised["killed" if kind < 0.8 else "frozen"] += 0.66 <= kind < 0.90
            if kind < 0.66:
                self.request_one(request)
            elif kind < 0.80:
                self.request_killed(request, point)
            elif kind < 0.81:
                self.request_frozen(request, point, other, thaw=False)
            elif kind < 0.90:
                if rng.random() < 0.5:
                    other = self.random_request(rng, ("query",))._replace(
                        keep=None, verb="query", own=True)
                if rng.random() < 0.5:
                    request, point = self.random_request(rng, ("start",)), "intent written"
                    fence = rng.choice(self.RUN_OUT)
                self.request_frozen(request, point, other, True, fence)
            elif kind < 0.95:
                self.request_both(request, other)
            if rng.random() < 0.4:
                self.event()

    def close(self):
        """End what was written down, as long as it still is what it was, then whatever is left."""
        for pid in map(int, self.sandbox.read("pids").split()):
            with contextlib.suppress(OSError):
                if self.sandbox.directory in read_file("/proc/{}/cmdline".format(pid)):
                    os.kill(pid, signal.SIGKILL)
        self.sandbox.close()


def run_node_model(sequences, seed=None, workers=4):
    """Run so many random sequences against script and model; raises on the first difference.

    Returns what was exercised, with counts.
    """
    first = random.SystemRandom().randrange(10 ** 9) if seed is None else seed
    numbers, failures, mutex = iter(range(first, first + sequences)), [], threading.Lock()
    exercised = collections.Counter()
    shells = [shell for shell in ("dash", "bash", "busybox") if find_program(shell)]

    def work():
        while not failures:
            with mutex:
                number = next(numbers, None)
            if number is None:
                return
            pair = NodePair(shells[number % len(shells)])
            try:
                pair.run(random.Random(number))
            except BaseException as error:
                failures.append("seed {} ({}): {}\n{}".format(
                    number, shells[number % len(shells)], error, "\n".join(map(str, pair.story))))
            finally:
                pair.close()
            with mutex:
                exercised.update(pair.exercised)
                exercised["answers"] += pair.answers
    original, asfc.NODE_SCRIPT = asfc.NODE_SCRIPT, PointedNodes.script()
    try:
        threads = [threading.Thread(target=work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        asfc.NODE_SCRIPT = original
    if failures:
        raise AssertionError(failures[0])
    return exercised


def soak_node_model(sequences):
    """run_node_model for people: prints what was exercised, and returns the exit status."""
    began = time.monotonic()
    try:
        exercised = run_node_model(sequences)
    except AssertionError as error:
        print("the script and the model differ:\n{}".format(error), flush=True)
        return 1
    answers = exercised.pop("answers")
    for what, count in sorted(exercised.items()):
        print("{:8d} {}".format(count, what))
    print("{} random sequences in {:.0f} s: the script and the model gave the same {} answers"
          .format(sequences, time.monotonic() - began, answers), flush=True)
    return 0


class NodeModelTests(unittest.TestCase):
    def test_the_script_and_the_model_give_the_same_answers_to_random_sequences(self):
        if os.environ.get("ASFC_PLAIN"):
            self.assertGreater(run_node_model(20)["answers"], 20)
            return  # so few don't always come to everything
        exercised = run_node_model(300)
        for what in NodePair.REFUSALS + (
                "killed", "frozen", "frozen until the promise has run out", "own", "held",
                "directory", "running", "stopped", "unknown",
                "the start command was launched", "there was nothing to stop",
                "not started: a scheduler runs there already",
                "not started: an earlier start is still under way",
                "nothing was stopped: the scheduler to keep has ended",
                NodeModel.STOPPED):
            self.assertGreater(exercised[what], 0, what)


###############################################################################
# Nodes #######################################################################
###############################################################################


def stamped(term, move, instance="i1", cluster="c1"):
    return asfc.Stamp(cluster, asfc.Pair(term, move), instance)


VENV = "/opt/venv/bin/python3.8 /opt/venv/bin/airflow scheduler"
# The words of a command line, and what the judge on a node and the fence have to take them for:
# 1 a scheduler's main process or a fork of it, 2 one of its named helpers, 0 something else.
SCHEDULER_WORDS = (
    (VENV, 1), (VENV + " -D", 1), ("airflow scheduler", 1), ("airflow scheduler -D", 1),
    ("python -m airflow scheduler", 1), ("/usr/bin/python3 -sE /x/airflow scheduler", 1),
    ("/usr/bin/python3 -W ignore /x/airflow scheduler", 1),
    ("python3 -W error /x/airflow scheduler -D", 1),
    ("/usr/bin/python3 -u -X dev /x/airflow scheduler", 1),
    ("/opt/venv/bin/airflow scheduler -n 5", 1), ("/opt/venv/bin/airflow scheduler --pid /x", 1),
    ("airflow scheduler -- DagFileProcessorManager", 2),
    ("airflow scheduler - DagFileProcessor /d/x.py", 2),
    ("sh -c sleep 200; : airflow scheduler", 0), ("sh -c airflow scheduler", 0),
    ("grep airflow scheduler", 0), ("/bin/bash -c source a && airflow scheduler", 0),
    ("bash -c nohup airflow scheduler >>log 2>&1 &", 0), ("vim airflow scheduler", 0),
    ("vim airflow-scheduler.cfg", 0), ("tail -f scheduler.log", 0),
    ("less /var/log/airflow scheduler.log", 0), ("airflow scheduler.log", 0),
    ("ssh -tt b nohup airflow scheduler &", 0), ("airflow webserver scheduler", 0),
    ("python3 /opt/venv/bin/airflow webserver -w 1", 0), ("airflow jobs check scheduler", 0),
    ("airflow executor -- LocalExecutor", 0), ("airflow worker -- LocalExecutor: <idle>", 0),
    ("airflow task runner: d t manual 5", 0), ("airflow serve-logs", 0),
    ("airflow api_server -- host:0.0.0.0 port:28080", 0),
    ("/opt/venv/bin/python /opt/venv/bin/airflow dag-processor", 0), ("airflow", 0), ("", 0))

# What runs beside a scheduler and is nobody's to end, in lines of ps like those of JudgeTests.
STRANGERS = """\
    400 1 400 400 Ss sshd: airflow
    401 400 401 401 Ss -bash
    402 401 402 401 S vim airflow-scheduler.cfg
    403 401 403 401 S less /var/log/airflow scheduler.log
    404 401 404 401 S sh -c sleep 200; : airflow scheduler
    410 1 410 410 Ss /opt/venv/bin/python3 /opt/venv/bin/airflow webserver -w 1
    411 410 411 410 S gunicorn: master [airflow-webserver]
    412 411 411 410 S [ready] gunicorn: worker [airflow-webserver]
    420 1 420 420 Ss airflow api_server -- host:0.0.0.0 port:28080
    430 1 430 430 Ss /opt/venv/bin/python3 /opt/venv/bin/airflow dag-processor
    431 430 431 430 S airflow scheduler - DagFileProcessor /d/x.py
    440 1 440 440 Ss /opt/venv/bin/python3 /opt/venv/bin/airflow celery worker
    441 440 440 440 S airflow serve-logs
    442 440 440 440 S airflow task supervisor: ['airflow', 'tasks', 'run', 'd', 't']
    """

# Airflow's process trees, in the shape in which they were captured: pid ppid pgid sid stat args.
TREE_1_10 = """\
    60 1 60 60 Ss {main}
    """ + "".join("{0} 60 60 60 S {{main}}\n    ".format(pid) for pid in range(101, 134)) + """\
    64 60 64 60 S airflow scheduler -- DagFileProcessorManager
    65 64 64 60 Z [airflow schedul] <defunct>
    66 101 60 60 S {python} run d t 2026-11-22T14:43:32 --local --pool default_pool -sd /d/x.py
    67 66 67 60 S airflow task runner: d t 2026-11-22T14:43:32+00:00 5
    68 67 68 68 Ss bash /tmp/airflowtmp1/t
    69 68 68 68 S sleep 3000
    """
TREE_2 = """\
    60 1 60 60 Ss {main}
    61 60 60 60 Sl gunicorn: master [gunicorn]
    62 60 60 60 S {main}
    63 61 60 60 S gunicorn: worker [gunicorn]
    64 60 60 60 Sl airflow executor -- LocalExecutor
    65 60 60 60 S airflow worker -- LocalExecutor: ['airflow', 'tasks', 'run', 'd', 't']
    66 60 60 60 S airflow worker -- LocalExecutor
    67 60 67 60 S airflow scheduler -- DagFileProcessorManager
    68 65 60 60 Sl airflow task supervisor: ['airflow', 'tasks', 'run', 'd', 't']
    69 68 60 60 S airflow task runner: d t manual__2026-11-22T14:41:15+00:00 5
    70 69 70 70 Ss /usr/bin/bash -c echo begin; sleep 3000; echo done
    71 70 70 70 S sleep 3000
    """
TREE_3 = """\
    60 1 60 60 Ssl {main}
    61 60 60 60 S airflow serve-logs
    62 60 60 60 S {main}
    63 60 60 60 S airflow worker -- LocalExecutor: <idle>
    64 60 60 60 S airflow worker -- LocalExecutor: 0193a1b2-c3d4
    65 64 65 60 S airflow worker -- 0193a1b2-c3d4
    66 65 66 66 Ss /usr/bin/bash -c echo begin; sleep 3000; echo done
    67 66 66 66 S sleep 3000
    """


def tree(text, main=VENV, killed=(), inside=None):
    """The processes of a captured tree: [(pid, ppid, pgid, sid, stat, args)].

    Those that were killed are gone, and their children are pid 1's. A `main` without its leader,
    60, may be `inside` the session of a shell that is dead.
    """
    lines = text.format(main=main, python=main.rpartition(" scheduler")[0]).strip().splitlines()
    found = [line.split(None, 5) for line in lines]
    return [(int(pid), 1 if int(parent) in killed else int(parent))
            + tuple(inside if inside and int(number) == 60 else int(number)
                    for number in (group, session)) + (state, args)
            for pid, parent, group, session, state, args in found if int(pid) not in killed]


REMEMBERED = "60:600:60:1:9000"   # the main process, seen on an earlier look
# name: (processes, what is remembered, main processes, remnants)
TREES = {
    "1.10, LocalExecutor": (tree(TREE_1_10), "", {60}, set()),
    "1.10, main killed": (tree(TREE_1_10, killed={60}), REMEMBERED, set(),
                          {64, 66, 67} | set(range(101, 134))),
    "1.10, main killed before it was ever seen": (
        tree(TREE_1_10, killed={60}), "", set(), {64} | set(range(101, 134))),
    "1.10, main ended by SIGTERM, its task goes on": (
        tree(TREE_1_10, killed={60, 64, 65, 66} | set(range(101, 134))), REMEMBERED, set(), {67}),
    "1.10, the signal was swallowed: main stays without its manager": (
        tree(TREE_1_10, killed={64, 65}), REMEMBERED, {60}, set()),
    "1.10, a daemon": (tree(TREE_1_10, VENV + " -D", inside=58), "", {60}, set()),
    "2, LocalExecutor, its own health server": (tree(TREE_2), "", {60}, set()),
    "2, main killed": (tree(TREE_2, killed={60}), REMEMBERED, set(),
                       {61, 62, 63, 64, 65, 66, 67, 68, 69}),
    "2, main killed, no health server": (tree(TREE_2, killed={60, 62}), REMEMBERED, set(),
                                         {61, 63, 64, 65, 66, 67, 68, 69}),
    "2, second SIGTERM: its tasks go on": (
        tree(TREE_2, killed={60, 61, 62, 63, 64, 66, 67}), REMEMBERED, set(), {65, 68, 69}),
    "2, a daemon": (tree(TREE_2, VENV + " -D", inside=58), "", {60}, set()),
    "2, a daemon that hangs at birth": (
        [(60, 1, 58, 58, "S", VENV + " -D")], "", {60}, set()),
    "2, started by ssh and nohup": (tree(TREE_2, inside=58), "", {60}, set()),
    "3, LocalExecutor, its own health server": (tree(TREE_3), "", {60}, set()),
    "3, main killed": (tree(TREE_3, killed={60}), REMEMBERED, set(), {61, 62, 63, 64, 65}),
    "3, a new one beside what a dead one left": (
        tree(TREE_3, killed={60}) + [(300, 1, 300, 300, "Ss", VENV)], REMEMBERED, {300},
        {61, 62, 63, 64, 65}),
    "dead, but nobody has asked for its status yet": (
        [(60, 1, 60, 60, "Z", "[airflow] <defunct>")], REMEMBERED, set(), set()),
}


class JudgeTests(unittest.TestCase):
    """The awk program alone, over made-up process lists. The asker is process 50, the user 7."""
    # pid ppid pgid sid uid stat args; then, beside ps: start time and image (the stack's address).
    VENV = VENV
    BASE = ["1 0 1 1 0 Ss init", "50 1 50 50 7 Ss sh -c eval"]

    def judge(self, lines, memory="", keep="", command="0:0:0", starts=None, awk=("awk",), status=0,
              contained=()):
        """The program's output as a dictionary: line's first word -> pids."""
        directory = tempfile.mkdtemp(prefix="asfc-")
        self.addCleanup(shutil.rmtree, directory)
        for line in lines:
            pid, parent, group, session = line.split()[:4]
            if not pid.isdigit():
                continue
            start, image, terminal = (starts or {}).get(int(pid), (int(pid) * 10, 9000, 0))
            os.mkdir(os.path.join(directory, pid))
            fields = [parent, group, session, terminal] + [0] * 14 + [start] + [0] * 5 + [image, 0]
            write_file(os.path.join(directory, pid, "stat"),
                       "{} (a) b ( c) S {}\n".format(pid, " ".join(map(str, fields))))
        pid, start, session = command.split(":")
        for pid in contained:
            write_file(os.path.join(directory, str(pid), "status"),
                       "Name:\tairflow\nNSpid:\t{}\t1\n".format(pid))
        options = {"me": 50, "uid": 7, "proc": directory, "nonce": "n", "now": 100000,
                   "memory": memory, "kept": keep, "command_pid": pid, "command_session": session,
                   "command_start": start}
        words = list(awk)
        for option in options.items():
            words += ["-v", "{}={}".format(*option)]
        process = subprocess.Popen(words + [asfc._stripped(asfc.NODE_JUDGE)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env=dict(os.environ, LC_ALL="C"))
        listing = "\n".join(lines + ["ps {}".format(status), ""])
        output = process.communicate(listing.encode())[0].decode()
        if output.split()[0] != "settled":
            return output.strip()
        first, *rest = output.splitlines()
        found = {"settled": [int(word.split(":")[0]) for word in first.split()[1:]]}
        for line in rest:
            words = line.split()
            if words[0] == "asfc":
                found.setdefault(words[2], []).append(int(words[3]))
            elif words[0] == "memory":
                found["memory"] = words[1:]
            else:
                found[words[0]] = [int(word.split(":")[0]) for word in words[1:]]
        self.assertEqual(rest[-1], "whole")
        return found

    def test_a_main_process_is_recognised_by_the_words_of_its_arguments(self):
        for arguments, kind in SCHEDULER_WORDS:
            with self.subTest(arguments):
                found = self.judge(self.BASE + ["60 1 60 60 7 Ss " + arguments])
                self.assertEqual((found["settled"], found.get("remnant", [])),
                                 ([60] if kind == 1 else [], [60] if kind == 2 else []))

    def test_each_captured_tree_is_one_scheduler_or_what_is_left_of_it_and_nothing_else_is(self):
        strangers = tree(STRANGERS)
        for name, (processes, memory, mains, remnants) in TREES.items():
            with self.subTest(name):
                lines = ["{} {} {} {} 7 {} {}".format(*one) for one in processes + strangers]
                found = self.judge(self.BASE + lines, memory)
                self.assertEqual(set(found["settled"]), mains)
                self.assertEqual(set(found.get("remnant", [])), remnants)
                self.assertEqual(set(found["kills"]),
                                 {one[0] for one in processes if one[4] != "Z"})
                self.assertEqual(len(found["tasks"]), sum("bash" in one[5] for one in processes))

    def test_a_session_that_was_given_a_dead_schedulers_number_has_no_remnants(self):
        lines = self.BASE + ["60 1 60 60 7 Ss -bash", "61 60 61 60 7 S vim", "62 1 62 60 7 S x"]
        younger = {60: (5000, 1, 0), 61: (5001, 2, 0), 62: (5002, 3, 0)}
        self.assertNotIn("remnant", self.judge(lines, "60:600:60:1:9000", starts=younger))
        older = {60: (500, 1, 0), 61: (5001, 2, 0), 62: (5002, 3, 0)}
        self.assertEqual(self.judge(lines, "59:600:60:1:9000", starts=older)["remnant"], [62])

    def test_another_daemon_in_the_schedulers_session_is_never_ended_with_it(self):
        for above in ("airflow api-server", "python3 asfc.py start", "supervisord"):
            with self.subTest(above):
                lines = self.BASE + ["70 1 70 70 7 Ss " + above, "71 70 70 70 7 S " + self.VENV,
                                     "72 71 70 70 7 S " + self.VENV]
                for beside in ([], ["73 70 70 70 7 S airflow triggerer"]):
                    found = self.judge(lines + beside)
                    self.assertEqual((found["settled"], sorted(found["kills"])), ([71], [71, 72]))

    def test_a_daemon_that_its_wrapper_starts_later_is_never_ended_with_it(self):
        lines = self.BASE + ["70 1 70 70 7 Ss sh run", "71 70 70 70 7 S " + self.VENV]
        self.assertEqual(sorted(self.judge(lines)["kills"]), [70, 71])
        later = lines + ["75 70 70 70 7 S airflow webserver"]
        self.assertEqual(self.judge(later, "71:710:70:1:9000")["kills"], [71])

    def test_children_of_a_dag_processor_of_its_own_are_no_remnants(self):
        found = self.judge(self.BASE + [
            "80 1 80 80 7 Ss airflow dag-processor",
            "81 80 81 80 7 S airflow scheduler - DagFileProcessor /d/x.py"])
        self.assertNotIn("remnant", found)

    def test_every_awk_judges_the_same(self):
        lines = self.BASE + ["60 1 60 60 7 Ss " + self.VENV, "61 60 60 60 7 S " + self.VENV,
                             "62 60 62 60 7 S airflow scheduler -- DagFileProcessorManager",
                             "63 62 63 63 7 Ss bash /tmp/task", "70 1 70 70 8 Ss airflow scheduler",
                             "80 1 80 75 7 S airflow scheduler -- DagFileProcessorManager"]
        for awk in (("mawk",), ("gawk", "--posix"), ("gawk",), ("busybox", "awk")):
            with self.subTest(awk[0]):
                require(awk[0], find_program(awk[0]))
                found = self.judge(lines, awk=awk)
                self.assertEqual(found["settled"], [60])
                self.assertEqual(found["targets"], [60, 80])
                self.assertEqual(found["kills"], [60, 61, 62, 63, 80])
                self.assertEqual(found["remnant"], [80])
                self.assertEqual(found["foreign"], [70])
                self.assertEqual(found["memory"], ["60:600:60:1:9000"])

    def test_a_list_that_cannot_see_everything_is_no_list(self):
        for lines, status, said in (
                (self.BASE[1:], 0, "hides processes"), (self.BASE[:1], 0, "hides processes"),
                (self.BASE, 1, "fails"), ([], 0, "hides processes"),
                (self.BASE + ["x60 1 60 60 7 S x"], 0, "can not be understood")):
            with self.subTest(said):
                self.assertIn(said, self.judge(lines, status=status))

    def test_a_dead_schedulers_forks_and_helpers_are_remnants(self):
        twins = ["{0} 1 60 60 7 S {1}".format(pid, self.VENV) for pid in (61, 62, 63)]
        manager = "64 1 64 60 7 S airflow scheduler -- DagFileProcessorManager"
        own = "60:600:60:1:9000"
        cases = [
            # what, lines, memory, images, mains, remnants
            ("three forks of one program, session leader dead", twins, "", {}, [], [61, 62, 63]),
            ("the same with its manager", twins + [manager], "", {}, [], [61, 62, 63, 64]),
            ("three programs that were started separately", twins, "", {61: 1, 62: 2, 63: 3},
             [61, 62, 63], []),
            ("one fork alone may be a main process", twins[:1], "", {}, [61], []),
            ("one fork of a main process that is remembered and dead",
             twins[:1], own, {}, [], [61]),
            ("another program in that session", twins[:1], own, {61: 5}, [61], []),
            ("a fork when the addresses can't be read", twins[:1], own, {61: 0}, [], [61]),
            ("forks when the addresses can't be read and nothing is remembered", twins, "",
             {61: 0, 62: 0, 63: 0}, [61, 62, 63], []),
            ("a helper whose main process is gone", [manager], "", {}, [], [64]),
            ("gunicorn of a remembered session",
             ["65 1 60 60 7 S gunicorn: master"], own, {}, [], [65]),
            ("gunicorn of a session that others share",
             ["65 1 60 60 7 S gunicorn: master"], "60:600:60:0:9000", {}, [], []),
            ("a process of that session from before the scheduler",
             ["65 1 60 60 7 S gunicorn: master"], "60:700:60:1:9000", {}, [], []),
            ("another user's in that session",
             ["65 1 60 60 8 S gunicorn: master"], own, {}, [], []),
            ("the main process lives, a fork's parent died",
             ["60 1 60 60 7 Ss " + self.VENV] + twins, own, {}, [60], []),
            ("a main process in a dead shell's session, with forks",
             ["66 1 60 60 7 S " + self.VENV, "67 66 60 60 7 S " + self.VENV,
              "68 1 60 60 7 S " + self.VENV], "", {}, [66], []),
            ("two in one session, the shell lives",
             ["59 1 59 59 7 Ss bash", "61 59 59 59 7 S " + self.VENV,
              "62 59 59 59 7 S " + self.VENV], "", {}, [61, 62], []),
            ("a zombie doesn't count",
             ["60 1 60 60 7 Zs [airflow]"] + twins[:1], own, {}, [], [61]),
        ]
        for what, lines, memory, images, mains, remnants in cases:
            with self.subTest(what):
                starts = {pid: (pid * 10, image, 0) for pid, image in images.items()}
                found = self.judge(self.BASE + lines, memory, starts=starts)
                self.assertEqual((found["settled"], found.get("remnant", [])), (mains, remnants))

    def test_what_is_killed_with_a_scheduler_is_its_own(self):
        main = "60 1 60 60 7 Ss " + self.VENV
        shell = "59 1 59 59 7 Ss bash"
        inside = "60 59 60 59 7 S " + self.VENV
        web = "65 59 65 59 7 S airflow webserver"
        cases = [
            ("descendants, whatever their session",
             [main, "61 60 61 61 7 Ss bash task", "62 61 61 61 7 S sleep"], {}, "", [60, 61, 62]),
            ("a shell without a terminal that only holds the scheduler",
             [shell, inside], {}, "", [59, 60]),
            ("not the shell of a terminal", [shell, inside], {59: (590, 1, 34816)}, "", [60]),
            ("not what shares its shell", [shell, inside, web], {}, "", [60]),
            ("not another user's", [main, "61 60 61 61 8 S sudo"], {}, "", [60]),
            ("not the one to keep, nor its session", [main, "61 60 60 60 7 S x",
             "70 1 70 70 7 Ss " + self.VENV, "71 70 70 70 7 S y"], {}, "60:600", [70, 71]),
            ("all, when the one to keep is gone and its number is another's",
             [main], {}, "60:999", [60]),
        ]
        for what, lines, starts, keep, kills in cases:
            with self.subTest(what):
                found = self.judge(self.BASE + lines, keep=keep, starts=starts)
                self.assertEqual(found["kills"], kills)

    def test_the_asker_and_those_above_it_are_never_killed(self):
        lines = ["1 0 1 1 0 Ss init", "60 1 60 60 7 Ss " + self.VENV,
                 "49 60 60 60 7 S python asfc.py", "50 49 50 50 7 Ss sh -c eval"]
        self.assertEqual(self.judge(lines)["kills"], [])

    def test_the_start_commands_processes_are_its_session_and_what_stems_from_it(self):
        lines = self.BASE + [
            "60 1 60 60 7 Ss bash", "61 60 60 60 7 S sleep", "62 61 62 62 7 Ss other",
            "63 60 60 60 7 S " + self.VENV, "64 63 60 60 7 S gunicorn"]
        self.assertEqual(self.judge(lines, command="60:600:60")["command"], [60, 61, 62])
        self.assertEqual(self.judge(lines, command="60:601:60")["command"], [],
                         "another process has its number now")

    def test_a_scheduler_in_a_container_is_told_and_left_alone(self):
        found = self.judge(self.BASE + ["60 1 60 60 7 Ss " + self.VENV], contained=[60])
        self.assertEqual((found["settled"], found["kills"], found["foreign"]), ([], [], [60]))

    def test_while_a_scheduler_dies_nothing_is_told_of_it_and_its_forks(self):
        """Its arguments are gone, but it is not dead yet: afterwards the fork is a remnant."""
        memory, fork = "100:1000:100:1:9000", "101 100 100 100 7 S " + self.VENV
        dying = self.BASE + ["100 1 100 100 7 Rs [python3.8]"]
        for lines, known in ((dying, memory), (dying + [fork], memory), (dying + [fork], "")):
            self.assertEqual(self.judge(lines, known), "unsettled")
        dead = self.judge(self.BASE + ["101 1 100 100 7 S " + self.VENV], memory)
        self.assertEqual((dead["settled"], dead["remnant"]), ([], [101]))
        # A thread of the kernel has such a name, too, and is nobody's parent here.
        kernel = self.judge(self.BASE + ["2 0 0 0 0 S [kthreadd]",
                                         "101 1 101 101 7 S " + self.VENV])
        self.assertEqual(kernel["settled"], [101])

    def test_a_young_main_process_is_not_remembered(self):
        main = self.BASE + ["60 1 60 60 7 Ss " + self.VENV]
        self.assertEqual(self.judge(main, starts={60: (99500, 1, 0)})["memory"], [])
        self.assertEqual(self.judge(main, starts={60: (98900, 1, 0)})["memory"],
                         ["60:98900:60:1:1"])


def marker_of(pid):
    """What a process's environment has as ASFC_NODE."""
    return [variable for variable in read_file("/proc/{}/environ".format(pid)).split("\0")
            if variable.startswith("ASFC_NODE=")]


class NodeTestCase(unittest.TestCase):
    """Tests with a node on this machine."""
    def sandbox(self, *arguments):
        sandbox = NodeSandbox(*arguments)
        self.addCleanup(sandbox.close)
        return sandbox

    def patch_script(self, old, new):
        original = asfc.NODE_SCRIPT
        self.assertIn(old, original)
        asfc.NODE_SCRIPT = original.replace(old, new)
        self.addCleanup(setattr, asfc, "NODE_SCRIPT", original)

    def pointed(self, sandbox):
        """The nodes of a sandbox, whose script can be frozen or killed at a point."""
        original, asfc.NODE_SCRIPT = asfc.NODE_SCRIPT, PointedNodes.script()
        self.addCleanup(setattr, asfc, "NODE_SCRIPT", original)
        return PointedNodes(sandbox.world, sandbox.configuration)

    @contextlib.contextmanager
    def frozen(self, nodes, sandbox, request, point):
        """The script is frozen at the point within, then it goes on; yields (its pid, a list that
        gets its report)."""
        nodes.pointed[request.nonce] = (point, "STOP", 30)
        reports = []
        thread = threading.Thread(target=lambda: reports.append(nodes._report(
            "a", request, sandbox.world.run([nodes.command(request)])[0])))
        thread.start()
        stopped = sandbox.path("stopped." + request.nonce)
        wait_until(lambda: os.path.exists(stopped) and NodePair.is_stopped(stopped), 10,
                   "the script is frozen at " + point)
        pid = int(read_file(stopped))
        try:
            yield pid, reports
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            thread.join()

    def started(self, sandbox, stamp, running=1):
        """Start, and wait until a query sees so many main processes; returns its report."""
        self.assertEqual(sandbox.nodes.start("a", stamp).done, "the start command was launched")
        return self.seen(sandbox, stamp, running)

    def seen(self, sandbox, stamp, running=1):
        def report():
            found = sandbox.nodes.query(["a"], stamp)["a"]
            return found if len(found.mains) == running else None
        return wait_until(report, 10, lambda: sandbox.nodes.look(["a"]))


class GateTests(NodeTestCase):
    def test_the_gate_keeps_the_highest_pair_and_refuses_what_is_not_meant_for_it(self):
        sandbox = self.sandbox()
        nodes = sandbox.nodes
        for stamp, refused in (
                (stamped(2, 3), ""), (stamped(2, 3), ""), (stamped(2, 2), "newer 2.3"),
                (stamped(1, 9), "newer 2.3"), (stamped(2, 3, "i2"), "another instance, i1"),
                (stamped(2, 4), ""), (stamped(10, 0, "i2"), ""),
                (stamped(9, 5, "i2"), "newer 10.0"),
                (stamped(11, 0, "i2", "c2"), "belongs to cluster c1, not to c2")):
            with self.subTest(str(stamp)):
                report = nodes.query(["a"], stamp)["a"]
                self.assertIn(refused, report.refused)
                self.assertEqual(bool(refused), bool(report.refused))
                self.assertEqual(report.state, asfc.UNKNOWN if refused else asfc.STOPPED)
                self.assertEqual(report.gate.cluster, "c1")
        sandbox.configuration.node_name = "b"
        report = nodes.query(["b"], stamped(12, 0))["b"]
        self.assertIn("belongs to node a, not to b", report.refused)
        self.assertEqual(report.gate, asfc.Gate(asfc.Pair(10, 0), "i2", "c1", "a"))

    def test_a_look_changes_nothing_and_proves_nothing(self):
        sandbox = self.sandbox()
        before = sorted(os.listdir(sandbox.directory))
        report = sandbox.nodes.look(["a"])["a"]
        self.assertEqual((report.state, report.gate, report.answered), (asfc.STOPPED, None, True))
        self.assertEqual(sorted(os.listdir(sandbox.directory)), before)

    def test_a_late_start_of_a_lower_term_or_an_earlier_move_is_refused(self):
        sandbox = self.sandbox()
        for newer, late in ((stamped(2, 0, "i2"), stamped(1, 5)), (stamped(3, 2), stamped(3, 1))):
            sandbox.nodes.query(["a"], newer)
            report = sandbox.nodes.start("a", late)
            self.assertIn("has heard of the newer", report.refused)
            self.assertEqual(sandbox.nodes.query(["a"], newer)["a"].state, asfc.STOPPED)
        self.assertEqual(sandbox.scheduler.started(), [])

    def late_start_after_a_move(self, expected):
        """A start on a at 1.1 is delayed, the scheduler is moved to b at 1.2; how many run then."""
        a, b = self.sandbox(), self.sandbox()
        b.configuration.node_name = "b"
        self.assertEqual(a.nodes.query(["a"], stamped(1, 2))["a"].state, asfc.STOPPED)
        b.nodes.start("b", stamped(1, 2))
        a.nodes.start("a", stamped(1, 1))
        def started():
            return len(a.scheduler.started()) + len(b.scheduler.started())
        wait_until(lambda: started() >= expected, 20, "the schedulers start")
        time.sleep(0.3)   # time that one more would have
        return started()

    def test_a_move_and_a_late_start_end_in_one_scheduler_and_without_the_gate_in_two(self):
        self.assertEqual(self.late_start_after_a_move(1), 1)
        self.patch_script("\npass_gate\n", "\ngate='1 1 i1 c1 a'; store gate \"$gate\"\n")
        self.assertEqual(self.late_start_after_a_move(2), 2)

    def test_damaged_state_and_a_full_disk_start_nothing_and_prove_nothing(self):
        sandbox = self.sandbox()
        sandbox.nodes.query(["a"], stamped(1, 0))
        for name in ("gate", "intent", "main", "fence"):
            for text in ("", "1", "1 2", "2 1 1 i c a end", "1 x 1 i c a end", "1 1 0 i1 c1 a en"):
                if name == "main" and text.endswith("end"):
                    continue
                with self.subTest(file=name, text=text):
                    path = sandbox.path("state", name)
                    before = sandbox.read("state/gate")
                    sandbox.write("state/" + name, text)
                    report = sandbox.nodes.start("a", stamped(1, 1))
                    self.assertEqual((report.state, report.done), (asfc.UNKNOWN, ""))
                    self.assertIn("is damaged", report.reason)
                    os.unlink(path)
                    sandbox.write("state/gate", before)
        write_program(sandbox.path("bin", "sync"), "#!/bin/sh\nexit 1\n")
        report = sandbox.nodes.start("a", stamped(1, 9))
        self.assertEqual((report.state, report.done), (asfc.UNKNOWN, ""))
        self.assertIn("it can not write in", report.reason)
        self.assertEqual(sandbox.scheduler.started(), [])

    def test_every_answer_tells_the_id_of_the_state_directory(self):
        sandbox = self.sandbox()
        nodes, stamp = sandbox.nodes, stamped(2, 0)
        self.assertEqual(nodes.query(["a"], stamp)["a"].directory, "")
        directory = sandbox.world.hold_lock(sandbox.path("state", "controller.lock"), "4f5e-id")
        sandbox.configuration.airflow_scheduler_start_command = ": " + sandbox.directory
        for report in (nodes.look(["a"])["a"], nodes.query(["a"], stamp)["a"],
                       nodes.query(["a"], stamped(1, 0))["a"], nodes.query_own(stamp),
                       nodes.start("a", stamp), nodes.stop("a", stamp)):
            self.assertEqual((report.answered, report.directory), (True, directory), report)
        for text in ("", "two words", "a'b", "a\n"):
            sandbox.keep("controller.lock", text)
            self.assertEqual(nodes.look(["a"])["a"].directory, "a" if text == "a\n" else "", text)

    def test_the_own_query_waits_a_second_for_the_lock_and_then_answers_without_the_gate(self):
        for shell in ("dash", "bash", "busybox"):
            with self.subTest(shell):
                sandbox = self.sandbox(shell)
                nodes = sandbox.nodes
                nodes.query(["a"], stamped(1, 0))
                with open(sandbox.path("state", "gate.lock")) as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    began = time.monotonic()
                    report = nodes.query_own(stamped(1, 1))
                    took_s = time.monotonic() - began
                    self.assertEqual((report.state, report.gate, report.answered, report.reason), (
                        asfc.STOPPED, None, True,
                        "its process list shows none (another command holds its lock)"))
                    self.assertGreater(took_s, 0.9)
                    self.assertLess(took_s, 4)
                    self.assertIn("1 1 0 i1 c1 a end", sandbox.read("state/gate"))
                    release = threading.Timer(0.3, fcntl.flock, (lock, fcntl.LOCK_UN))
                    release.start()
                    report = nodes.query_own(stamped(1, 1))
                    release.join()
                self.assertEqual((report.reason, report.gate.pair),
                                 ("its process list shows none", asfc.Pair(1, 1)))

    def test_a_disk_that_is_really_full_is_noticed_by_every_shell(self):
        require("root", os.getuid() == 0)
        for shell in ("dash", "bash", "busybox"):
            sandbox = self.sandbox(shell)
            state = sandbox.path("state")
            os.mkdir(state)
            mount = ["mount", "-t", "tmpfs", "-o", "size=8k,mode=700", "none", state]
            require("mount", subprocess.call(mount) == 0)
            self.addCleanup(subprocess.call, ["umount", state])
            with contextlib.suppress(OSError), open(os.path.join(state, "filler"), "wb", 0) as file:
                while True:
                    file.write(b"x" * 512)
            report = sandbox.nodes.start("a", stamped(1, 1))
            self.assertEqual((report.state, report.gate), (asfc.UNKNOWN, None))
            self.assertIn("it can not write in", report.reason)

    def test_a_state_directory_on_a_network_file_system_is_refused(self):
        sandbox = self.sandbox()
        for kind, refused in (("nfs4", True), ("smb2", True), ("fuseblk", True), ("xfs", False),
                              ("ext2/ext3", False), ("overlayfs", False), ("tmpfs", False)):
            write_program(sandbox.path("bin", "stat"), "#!/bin/sh\necho {}\n".format(kind))
            report = sandbox.nodes.query(["a"], stamped(1, 0))["a"]
            self.assertEqual("network file system" in report.reason, refused, kind)
            ok, said = sandbox.nodes.test_connection(["a"])["a"]
            self.assertEqual((ok, "network file system" in said), (not refused, refused))


class StartTests(NodeTestCase):
    def test_asfcs_own_start_detaches_and_is_done_once(self):
        sandbox = self.sandbox()
        report = self.started(sandbox, stamped(1, 1))
        main = report.mains[0]
        self.assertEqual((report.state, report.intent, main.pid),
                         (asfc.RUNNING, None, main.session))
        again = sandbox.nodes.start("a", stamped(1, 2))
        self.assertEqual((again.state, again.done, again.mains), (
            asfc.RUNNING, "not started: a scheduler runs there already", (main,)))
        self.assertEqual(sandbox.scheduler.started(), [main.pid])

    def test_a_start_is_unknown_until_its_process_was_seen_or_a_stop_ended_it(self):
        sandbox = self.sandbox()
        sandbox.scheduler.behave()
        sandbox.configuration.airflow_scheduler_start_command = (
            "echo told; sleep 0.4; : {}; exit 3".format(sandbox.directory))
        report = sandbox.nodes.start("a", stamped(1, 1))
        self.assertEqual((report.state, report.intent.command_runs, report.intent.ended_s),
                         (asfc.UNKNOWN, True, None))
        self.assertIn("a start is under way, term 1.1", report.reason)
        self.assertEqual(sandbox.nodes.look(["a"])["a"].state, asfc.UNKNOWN)

        def ended():
            found = sandbox.nodes.query(["a"], stamped(1, 1))["a"]
            return found if not found.intent.command_runs else None
        report = wait_until(ended, 10, "the end of the start command")
        self.assertEqual((report.state, report.output), (asfc.UNKNOWN, "told"))
        self.assertLess(report.intent.ended_s, 0.5)
        time.sleep(0.1)
        later = sandbox.nodes.query(["a"], stamped(1, 1))["a"].intent
        self.assertGreater(later.ended_s, 0.05)
        self.assertGreater(later.age_s, report.intent.age_s)
        self.assertIn("an earlier start is still", sandbox.nodes.start("a", stamped(1, 2)).done)
        self.assertEqual(sandbox.nodes.stop("a", stamped(1, 3)).state, asfc.STOPPED)
        self.assertEqual(sandbox.nodes.query(["a"], stamped(1, 3))["a"].state, asfc.STOPPED)

    def test_a_stop_ends_a_start_command_with_all_its_processes(self):
        sandbox = self.sandbox()
        sandbox.configuration.airflow_scheduler_start_command = (
            "setsid sh -c 'sleep 100; : {0}' & sh -c 'sleep 99; : {0}'; airflow scheduler".format(
                sandbox.directory))
        sandbox.nodes.start("a", stamped(1, 1))
        wait_until(lambda: len(processes_with(sandbox.directory)) >= 3, 5,
                   "the start command's processes")
        self.assertEqual(sandbox.nodes.stop("a", stamped(1, 2)).state, asfc.STOPPED)
        self.assertEqual(processes_with(sandbox.directory), [])
        self.assertEqual(sandbox.scheduler.started(), [])

    def test_an_intent_of_the_boot_before_is_closed(self):
        sandbox = self.sandbox()
        sandbox.nodes.query(["a"], stamped(1, 0))
        sandbox.write("state/intent", "1 1 0 i1 {} 5 5 other-boot 100 - end\n".format(os.getpid()))
        self.assertEqual(sandbox.nodes.query(["a"], stamped(1, 0))["a"].state, asfc.STOPPED)
        self.assertFalse(os.path.exists(sandbox.path("state", "intent")))

    def test_a_process_that_got_the_number_of_an_old_one_is_never_signalled(self):
        sandbox = self.sandbox()
        sandbox.nodes.query(["a"], stamped(1, 0))
        decoy = subprocess.Popen(["sh", "-c", "sleep 100; : " + sandbox.directory],
                                 start_new_session=True)
        self.addCleanup(decoy.wait)
        self.addCleanup(os.killpg, decoy.pid, signal.SIGKILL)
        boot = boot_id()
        start = int(process_fields(decoy.pid)[19])
        sandbox.write("state/intent", "1 1 0 i1 {0} {1} {0} {2} 100 - end\n".format(
            decoy.pid, start - 1, boot))
        sandbox.write("state/main", "1 {2} {0}:{1}:{0}:1:0 end\n".format(
            decoy.pid, start + 1, boot))
        report = sandbox.nodes.stop("a", stamped(1, 1))
        self.assertEqual((report.state, report.done), (asfc.STOPPED, "there was nothing to stop"))
        self.assertIsNone(decoy.poll())

    def test_a_start_frozen_or_killed_anywhere_leaves_no_lock_and_no_second_scheduler(self):
        original = asfc.NODE_SCRIPT
        for point, number in (("launched", "STOP"), ("intent written", "KILL"),
                              ("intent written", "STOP"), ("last test passed", "KILL"),
                              ("last test passed", "STOP")):
            with self.subTest(point=point, signal=number):
                sandbox = self.sandbox()
                nodes = self.pointed(sandbox)
                request = asfc.NodeRequest("start", "n1", "a", stamped(1, 1), None)
                nodes.pointed["n1"] = (point, number, 1)
                began = time.monotonic()
                sandbox.world.run([nodes.command(request)])
                self.assertLess(time.monotonic() - began, 5)
                report = sandbox.nodes.query(["a"], stamped(2, 0))["a"]
                self.assertTrue(report.answered)
                self.assertEqual(bool(report.intent), point != "launched")
                self.assertEqual(sandbox.nodes.stop("a", stamped(2, 1)).state, asfc.STOPPED)
                self.assertEqual(sandbox.scheduler.started(), [])
                wait_until(lambda of=sandbox: not processes_with(of.directory), 3,
                           "nothing is left behind")
                asfc.NODE_SCRIPT = original

    def test_a_start_is_refused_once_the_promise_has_run_out(self):
        refused = "the promise of node a has run out: its controller has to renew it first"
        for shell in ("dash", "bash", "busybox"):
            sandbox = self.sandbox(shell)
            nodes = sandbox.nodes
            for move, (left_s, boot) in enumerate(((0, None), (-100, None), (1000, "other-boot"))):
                with self.subTest(shell=shell, left_s=left_s, boot=boot):
                    sandbox.promise(left_s, boot)
                    report = nodes.start("a", stamped(1, move))
                    self.assertEqual((report.state, report.refused, report.gate.pair), (
                        asfc.UNKNOWN, refused, asfc.Pair(1, move)))
                    for report in (nodes.query(["a"], stamped(1, move))["a"],
                                   nodes.stop("a", stamped(1, move))):
                        self.assertEqual((report.state, report.intent, report.refused),
                                         (asfc.STOPPED, None, ""))
            self.assertFalse(os.path.exists(sandbox.path("state", "start.out")), "not even begun")
            self.assertEqual(sandbox.scheduler.started(), [])
            sandbox.promise(100)
            self.started(sandbox, stamped(2, 0))
            sandbox.promise(0)
            self.assertIn("runs there already", nodes.start("a", stamped(2, 1)).done)
            wait_until(sandbox.scheduler.started, 10, "what the stand-in notes of its start")
            self.assertEqual(len(sandbox.scheduler.started()), 1)
        sandbox.keep("fence", "1 {} 1x end\n".format(boot_id()))
        nodes.stop("a", stamped(3, 0))
        report = nodes.start("a", stamped(3, 0))
        self.assertEqual((report.state, report.refused, report.done), (asfc.UNKNOWN, "", ""))
        self.assertIn("fence can not be read or is damaged", report.reason)

    def test_a_promise_that_runs_out_between_intent_and_launch_ends_the_start(self):
        for shell, terminal, damaged in (("dash", "", False), ("bash", "", False),
                                         ("busybox", "", False), ("dash", "1", False),
                                         ("dash", "", True)):
            with self.subTest(shell=shell, terminal=terminal, damaged=damaged):
                self.doCleanups()
                sandbox = self.sandbox(shell)
                sandbox.promise(100)
                nodes = self.pointed(sandbox)
                nodes.terminal = terminal
                request = asfc.NodeRequest("start", "n1", "a", stamped(1, 1), None)
                with self.frozen(nodes, sandbox, request, "intent written") as (_, reports):
                    self.assertTrue(nodes.look(["a"])["a"].intent)
                    sandbox.promise(0)
                    if damaged:
                        sandbox.keep("fence", "1 x")
                self.assertEqual("has run out" in reports[0].refused, not damaged, reports[0])
                self.assertEqual(reports[0].state, asfc.UNKNOWN)
                wait_until(lambda of=sandbox: not processes_with(of.directory), 3,
                           "nothing is left")
                report = nodes.query(["a"], stamped(1, 1))["a"]
                self.assertEqual((report.state, bool(report.intent)), (
                    asfc.UNKNOWN if damaged else asfc.STOPPED, damaged))
                self.assertEqual(sandbox.scheduler.started(), [])

    def test_a_fence_finds_script_and_start_command_by_their_names(self):
        for terminal in ("", "1"):
            sandbox = self.sandbox()
            nodes = self.pointed(sandbox)
            nodes.terminal = terminal
            request = asfc.NodeRequest("start", "n1", "a", stamped(1, 1), None)
            with self.frozen(nodes, sandbox, request, "last test passed") as (pid, _):
                words = read_file("/proc/{}/cmdline".format(pid)).split("\0")
                self.assertEqual(words[:2] + words[3:4], ["sh", "-c", "asfc-start@a"])
                if not terminal:
                    launcher = int(sandbox.read("state/intent").split()[4])
                    words = read_file("/proc/{}/cmdline".format(launcher)).split("\0")
                    self.assertEqual(words[3], "asfc-start@a")
                    self.assertEqual(marker_of(launcher), ["ASFC_NODE=a"])
                if terminal:   # it would end with the scheduler
                    os.kill(pid, signal.SIGKILL)

    def test_what_a_start_command_starts_has_the_nodes_name_and_what_else_runs_has_not(self):
        for command, terminal in (("", ""), ("airflow scheduler & wait", ""),
                                  ("airflow scheduler & sleep 0.3", "1")):
            with self.subTest(command=command, terminal=terminal):
                sandbox = self.sandbox()
                sandbox.world.variables["ASFC_NODE"] = "of-the-asker"
                sandbox.scheduler.behave(forks=1, task=True)
                configuration = sandbox.configuration
                configuration.airflow_scheduler_start_command = command
                nodes = PointedNodes(sandbox.world, configuration)
                nodes.terminal = terminal
                self.assertIn("launched", nodes.start("a", stamped(1, 1)).done)
                self.seen(sandbox, stamped(1, 1))
                wait_until(lambda of=sandbox: len(processes_with(of.bin)) >= 3, 5, "its children")
                for pid, arguments in processes_with(sandbox.bin):
                    self.assertEqual(marker_of(pid), ["ASFC_NODE=a"], arguments)
                note = "echo status ${{ASFC_NODE-none}} >>{}; exit 0".format(sandbox.path("notes"))
                configuration.airflow_scheduler_status_command = note
                configuration.airflow_scheduler_stop_command = note.replace("status", "stop")
                nodes.terminal, nodes.stop_wait_s = "", 1   # this stop command ends nothing
                nodes.query(["a"], stamped(1, 1))
                nodes.stop("a", stamped(1, 2))
                self.assertEqual(set(sandbox.read("notes").splitlines()),
                                 {"status none", "stop none"})

    def test_asfcs_own_start_takes_home_configuration_and_virtualenv_along(self):
        sandbox = self.sandbox()
        configuration, directory = sandbox.configuration, sandbox.directory
        sandbox.write("it's a venv/activate", "export VENV=entered\n")
        os.mkdir(sandbox.path("tools"))
        write_program(sandbox.path("tools/airflow"), "#!/bin/sh\nenv; echo arguments: $*\n")
        configuration.airflow_virtualenv = "~/it's a venv/activate"
        configuration.airflow_scheduler_log_file = "~/new logs/scheduler.logs"
        configuration.airflow_home = "/srv/air flow"
        for explicit, home in ((True, "/srv/air flow"), (False, directory + "/airflow")):
            configuration.airflow_home_is_explicit = explicit
            environment = {"PATH": sandbox.path("tools") + ":/usr/bin:/bin", "HOME": directory,
                           "AIRFLOW_CONFIG": "/etc/a b.cfg"}
            text = asfc.own_start_command(configuration, {"AIRFLOW_CONFIG": "/etc/a b.cfg"})
            self.assertEqual(subprocess.call(["sh", "-c", text], env=environment), 0)
            log = sandbox.read("new logs/scheduler.logs").splitlines()[-20:]
            for line in ("AIRFLOW_HOME=" + home, "AIRFLOW_CONFIG=/etc/a b.cfg", "VENV=entered",
                         "arguments: scheduler"):
                self.assertIn(line, log)

    def test_a_start_without_airflow_says_so(self):
        sandbox = self.sandbox()
        os.unlink(sandbox.path("bin", "airflow"))
        require("a machine without airflow", not find_program("airflow"))
        sandbox.nodes.start("a", stamped(1, 1))
        output = wait_until(lambda: sandbox.nodes.query(["a"], stamped(1, 1))["a"].output, 5,
                            "its output")
        self.assertIn("airflow: not found in", output)


class StopTests(NodeTestCase):
    def test_a_scheduler_that_ignores_sigterm_is_ended_with_its_tasks(self):
        sandbox = self.sandbox()
        sandbox.scheduler.behave(forks=3, helper=True, task=True, ignore_term=True)
        self.started(sandbox, stamped(1, 1))
        wait_until(lambda: len(processes_with(sandbox.directory)) == 6, 5, "its children")
        began = time.monotonic()
        report = sandbox.nodes.stop("a", stamped(1, 2))
        self.assertEqual((report.state, report.remnants), (asfc.STOPPED, ()))
        self.assertIn("(SIGKILL): 6 processes, 1 of them tasks, which have to run", report.done)
        self.assertGreater(time.monotonic() - began, 2)
        self.assertEqual(processes_with(sandbox.directory), [])

    def test_remnants_of_a_dead_scheduler_are_seen_and_stopped(self):
        sandbox = self.sandbox()
        sandbox.scheduler.behave(forks=3, helper=True)
        main = self.started(sandbox, stamped(1, 1)).mains[0]
        wait_until(lambda: len(processes_with(sandbox.directory)) == 5, 5, "its children")
        os.kill(main.pid, signal.SIGKILL)
        wait_until(lambda: main.pid not in dict(processes_with(sandbox.directory)), 5, "it is dead")
        report = sandbox.nodes.query(["a"], stamped(1, 1))["a"]
        self.assertEqual((report.state, len(report.remnants)), (asfc.STOPPED, 4))
        report = sandbox.nodes.stop("a", stamped(1, 2))
        self.assertEqual((report.state, report.remnants), (asfc.STOPPED, ()))
        self.assertEqual(processes_with(sandbox.directory), [])

    def test_one_fork_of_a_young_scheduler_that_was_killed_is_a_remnant(self):
        sandbox = self.sandbox()
        sandbox.scheduler.behave(forks=1)
        main = self.started(sandbox, stamped(1, 1)).mains[0]
        wait_until(lambda: len(processes_with(sandbox.directory)) == 2, 5, "its fork")
        os.kill(main.pid, signal.SIGKILL)
        wait_until(lambda: not process_lives(main.pid), 5, "it is dead")
        for _ in range(2):
            report = sandbox.nodes.query(["a"], stamped(1, 1))["a"]
            self.assertEqual((report.state, len(report.remnants)), (asfc.STOPPED, 1))
        self.assertEqual(sandbox.nodes.stop("a", stamped(1, 2)).remnants, ())
        self.assertEqual(processes_with(sandbox.directory), [])

    def test_nothing_is_stopped_when_the_scheduler_to_keep_has_ended(self):
        sandbox = self.sandbox()
        model = NodeModel(lambda: 0.0)
        main = self.started(sandbox, stamped(1, 1)).mains[0]
        model.answer(asfc.NodeRequest("start", "n", "a", stamped(1, 1), None))
        model.appear()
        model.mains[0] = main
        for ended in (main._replace(start=main.start - 1), main._replace(pid=2 ** 22 + 1)):
            request = asfc.NodeRequest("stop", "n", "a", stamped(1, 2), ended)
            for report in (sandbox.nodes.stop("a", stamped(1, 2), keep=ended),
                           sandbox.nodes._report("a", request, asfc.CommandResult(
                               0, model.answer(request), ""))):
                self.assertEqual((report.state, report.mains, report.done), (
                    asfc.RUNNING, (main,), "nothing was stopped: the scheduler to keep has ended"))
        self.assertTrue(process_lives(main.pid))

    def test_of_two_schedulers_one_is_kept(self):
        sandbox = self.sandbox()
        for _ in range(2):
            process = sandbox.scheduler.start()
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            time.sleep(0.05)
        mains = self.seen(sandbox, stamped(1, 0), 2).mains
        self.assertLess(mains[0].start, mains[1].start)
        report = sandbox.nodes.stop("a", stamped(1, 1), keep=mains[0])
        self.assertEqual((report.state, report.mains), (asfc.RUNNING, mains[:1]))

    def test_a_scheduler_that_nobody_here_started_survives_everything(self):
        sandbox, other = self.sandbox(), self.sandbox()
        decoy = other.scheduler.start()
        self.addCleanup(decoy.wait)
        self.addCleanup(decoy.kill)
        wait_until(other.scheduler.started, 5, "the decoy runs")
        self.started(sandbox, stamped(1, 1))
        self.assertEqual(sandbox.nodes.stop("a", stamped(1, 2)).state, asfc.STOPPED)
        self.assertIsNone(decoy.poll())

    def test_an_operators_stop_command_does_the_stopping_and_asfc_ends_the_remnants(self):
        sandbox = self.sandbox()
        configuration = sandbox.configuration
        sandbox.scheduler.behave(forks=2, helper=True)
        main = self.started(sandbox, stamped(1, 1)).mains[0]
        configuration.airflow_scheduler_stop_command = "echo can not; exit 5"
        report = sandbox.nodes.stop("a", stamped(1, 2))
        self.assertEqual((report.state, report.done), (
            asfc.RUNNING, "the stop command ended with status 5: can not"))
        configuration.airflow_scheduler_stop_command = "kill -9 {}".format(main.pid)
        report = sandbox.nodes.stop("a", stamped(1, 3))
        self.assertEqual((report.state, report.remnants), (asfc.STOPPED, ()))
        self.assertEqual(processes_with(sandbox.directory), [])

    def test_a_scheduler_that_a_stop_command_leaves_though_it_succeeds_is_ended_all_the_same(self):
        """It was started by hand, beside the unit; or it swallowed the one SIGTERM."""
        sandbox = self.sandbox()
        sandbox.scheduler.behave(ignore_term=True)
        main = self.started(sandbox, stamped(1, 1)).mains[0]
        wait_until(sandbox.scheduler.started, 10, "the scheduler ignores SIGTERM")
        sandbox.configuration.airflow_scheduler_stop_command = "kill -TERM {}".format(main.pid)
        report = sandbox.nodes.stop("a", stamped(1, 2))
        self.assertEqual((report.state, report.done), (
            asfc.STOPPED, "the stop command ended with status 0; asfc ended the scheduler that it "
            "left"))
        self.assertFalse(process_lives(main.pid))

    def test_a_stop_command_that_hangs_is_ended(self):
        sandbox = self.sandbox()
        sandbox.configuration.airflow_scheduler_stop_command = "sleep 60; : " + sandbox.directory
        sandbox.configuration.stop_timeout_s, sandbox.configuration.query_timeout = 5.0, 2.0
        report = sandbox.nodes.stop("a", stamped(1, 1))
        self.assertEqual(report.state, asfc.STOPPED)
        self.assertIn("the stop command ended with status 137", report.done)

    def test_a_command_for_a_users_own_manager_finds_it_where_no_login_has_said_so(self):
        for shell in ("dash", "bash", "busybox"):
            sandbox = self.sandbox(shell)
            command = "echo $XDG_RUNTIME_DIR >{}/said; : {}"
            for words, given, told in (
                    ("systemctl --user stop x", "", "/run/user/{}".format(os.getuid())),
                    ("systemctl --user stop x", "/else/where", "/else/where"),
                    ("systemctl stop x", "", "")):
                sandbox.world.variables["XDG_RUNTIME_DIR"] = given
                sandbox.configuration.airflow_scheduler_stop_command = command.format(
                    sandbox.directory, words)
                sandbox.nodes.stop("a", stamped(1, 1))
                self.assertEqual(sandbox.read("said").strip(), told, (shell, words, given))

    def test_the_status_command_is_believed_where_the_process_list_agrees(self):
        sandbox = self.sandbox()
        sandbox.started = False
        configuration = sandbox.configuration
        for running in (False, True):
            if running:
                configuration.airflow_scheduler_status_command = ""
                self.started(sandbox, stamped(1, 1))
            for status, state in ((0, asfc.RUNNING), (3, asfc.UNKNOWN if running else asfc.STOPPED),
                                  (1, asfc.UNKNOWN), (4, asfc.UNKNOWN)):
                with self.subTest(status=status, running=running):
                    configuration.airflow_scheduler_status_command = (
                        "echo so; exit {}".format(status))
                    report = sandbox.nodes.query(["a"], stamped(1, 1))["a"]
                    self.assertEqual(report.state, state)
                    if status == 3 and not running:   # as `systemctl is-active` says it
                        for said in ("activating", "deactivating"):
                            configuration.airflow_scheduler_status_command = (
                                "echo {}; exit 3".format(said))
                            report = sandbox.nodes.query(["a"], stamped(1, 1))["a"]
                            self.assertEqual((report.state, report.reason), (
                                asfc.UNKNOWN,
                                "its status command ended with status 3: " + said))
                            report = sandbox.nodes.start("a", stamped(1, 1))
                            self.assertIn("not started", report.done)
                    if status in (1, 4):
                        self.assertIn("status {}: so".format(status), report.reason)
                        report = sandbox.nodes.start("a", stamped(1, 1))
                        self.assertIn("not started", report.done)


class LoginShellTests(NodeTestCase):
    """ssh runs a command by the user's login shell: a stand-in for ssh does so too."""
    SSH = """
        #!/bin/sh
        for last; do :; done
        exec {} -c "$last"
        """

    def test_the_script_is_right_under_every_login_shell(self):
        name = "b:1_x-y.example.org"
        self.patch_script('tell node "$node"\n', 'tell node "$node"\ntell output "called $0"\n')
        sh, csh, fish = "x=said; echo $x", "set x = said; echo $x", "set x said; echo $x"
        for shell, text in (("dash", sh), ("bash", sh), ("busybox sh", sh), ("zsh", sh),
                            ("fish", fish), ("csh", csh), ("tcsh", csh)):
            with self.subTest(shell):
                require(shell, find_program(shell.split()[0]))
                sandbox = self.sandbox()
                sandbox.configuration.ssh_command = write_program(
                    sandbox.path("bin", "ssh"), self.SSH.format(shell))
                path = find_program(shell.split()[0])
                if shell != "busybox sh":
                    sandbox.world.variables["SHELL"] = path
                report = sandbox.nodes.query([name], stamped(1, 0))[name]
                self.assertEqual((report.state, report.reason, report.output), (
                    asfc.STOPPED, "its process list shows none", "called asfc-query@" + name))
                # Only that very shell understands its operator's command.
                sandbox.configuration.airflow_scheduler_start_command = text
                sandbox.nodes.start(name, stamped(1, 1))
                wait_until(lambda of=sandbox: of.nodes.query([name], stamped(1, 1))[name].output
                           == "called asfc-query@{}\nsaid".format(name), 5, "the command's output")

    def test_answers_are_found_among_noise(self):
        sandbox = self.sandbox()
        sandbox.configuration.ssh_command = write_program(sandbox.path("bin", "ssh"), """
            #!/bin/sh
            for last; do :; done
            printf 'Welcome\\r\\nasfc 12 end\\nasfc\\n'
            bash -c "$last" | sed 's/$/\\r/'
            echo logout
            """)
        self.assertEqual(sandbox.nodes.query(["b"], stamped(1, 0))["b"].state, asfc.STOPPED)

    def test_a_start_with_sudo_gets_a_terminal_and_what_it_leaves_survives(self):
        sandbox = self.sandbox()
        write_program(sandbox.path("bin", "sudo"), """
            #!/bin/sh
            tty -s </dev/tty || {{ echo 'sudo: sorry, you must have a tty to run sudo'; exit 1; }}
            exec "$@"
            """.format())
        sandbox.configuration.ssh_command = write_program(sandbox.path("bin", "ssh"), """
            #!{}
            import os, pty, sys
            if "-tt" not in sys.argv:
                os.execvp("sh", ["sh", "-c", sys.argv[-1]])
            pid, terminal = pty.fork()
            if not pid:
                os.execvp("sh", ["sh", "-c", sys.argv[-1]])
            while True:
                try:
                    data = os.read(terminal, 4096)
                except OSError:
                    break
                if not data:
                    break
                os.write(1, data)
            os.close(terminal)
            os.waitpid(pid, 0)
            """.format(sys.executable))
        sandbox.configuration.airflow_scheduler_start_command = (
            "sudo sh -c 'airflow scheduler & sleep 0.3; echo left it'")
        report = sandbox.nodes.start("b", stamped(1, 1))
        self.assertEqual((report.state, report.done),
                         (asfc.UNKNOWN, "the start command was launched"))
        self.assertTrue(report.intent.command_runs)
        time.sleep(0.2)    # long enough for a SIGHUP to come
        report = sandbox.nodes.query(["b"], stamped(1, 1))["b"]
        self.assertEqual((report.state, len(report.mains), report.intent), (asfc.RUNNING, 1, None))
        self.assertIn("left it", sandbox.read("state/start.out"))
        self.assertEqual(sandbox.nodes.stop("b", stamped(1, 2)).state, asfc.STOPPED)


class SshTests(unittest.TestCase):
    def nodes(self, results):
        class Canned(asfc.World):
            commands = []

            def run(self, commands):
                self.commands += commands
                return [results(command) for command in commands]
        configuration = NodeConfiguration("/d")
        return asfc.Nodes(Canned(), configuration), configuration

    def test_the_operators_ssh_options_come_first_and_the_command_is_one_word(self):
        nodes, configuration = self.nodes(lambda _: asfc.CommandResult(255, "", "", ""))
        configuration.ssh_command = "'/my ssh' -p 22"
        configuration.ssh_options = "-o ConnectTimeout=9"
        configuration.airflow_scheduler_stop_command = " sudo systemctl stop airflow-scheduler"
        nodes.query(["b"], stamped(1, 0))
        nodes.stop("b", stamped(1, 0))
        query, stop = [command.argv for command in nodes.world.commands]
        self.assertEqual(query[:5], ("/my ssh", "-p", "22", "-o", "ConnectTimeout=9"))
        self.assertEqual((query[-3:-1], stop[-3:-1]), (("-T", "b"), ("-tt", "b")))
        for option in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardX11=no"):
            self.assertEqual(query[query.index(option) - 1], "-o")
        for verb, argv in (("query", query), ("stop", stop)):
            self.assertLess(max(map(len, argv[-1].split(" "))), 500)
            self.assertNotIn("\n", argv[-1])
            self.assertIn(" 'asfc-{}@b' ".format(verb), argv[-1])
        self.assertEqual(nodes.world.commands[0].request.verb, "query")

    def test_failures_of_ssh_are_told_in_one_line_with_what_helps(self):
        for said, problem, expected in (
                ("Host key verification failed.", "", "run `ssh b` once"),
                ("No ED25519 host key is known for b and you have requested strict checking.", "",
                 "ssh b"),
                ("a@b: Permission denied (publickey).", "", "ssh-copy-id b"),
                ("ssh: connect to host b port 22: Connection refused", "", "does sshd run there"),
                ("ssh: connect to host b port 22: No route to host", "", "no route"),
                ("ssh: connect to host b port 22: Connection timed out", "", "no answer in time"),
                ("ssh: Could not resolve hostname b: Name or service not known", "",
                 "not known here"),
                ("", "ssh: No such file or directory", "ssh: No such file or directory"),
                ("", "no answer within 5 s", "no answer within 5 s"),
                ("sh: 1: base64: not found", "", "has no base64"),
                ("This account is not available.", "",
                 "exit status 1: This account is not available."),
                ("", "", "exit status 1")):
            result = asfc.CommandResult(None if problem else 1, "", said, problem)
            nodes, _ = self.nodes(lambda _, result=result: result)
            report = nodes.query(["b"], stamped(1, 0))["b"]
            self.assertEqual((report.state, report.answered), (asfc.UNKNOWN, False))
            self.assertIn(expected, report.reason)
            self.assertEqual(nodes.test_connection(["b"]), {"b": (False, report.reason)})

    def test_names_that_are_no_host_names_are_not_asked(self):
        nodes, _ = self.nodes(lambda _: self.fail("asked"))
        for name in ("-oProxyCommand=x", "a b", "", "a;b", "b-", "a\nb", "$(x)"):
            report = nodes.query([name], stamped(1, 0))[name]
            self.assertEqual((report.state, report.answered), (asfc.UNKNOWN, False))
            self.assertIn("is not a host name", report.reason)

    @staticmethod
    def answering(text):
        """A stand-in for all commands, whose answer is the text with the nonce at each {}."""
        return lambda command: asfc.CommandResult(
            0, text.replace("{}", command.request.nonce), "", "")

    def test_a_damaged_answer_is_unknown_and_never_an_exception(self):
        good = ["node b", "gate 1 0 i1 c1 b", "intent 1 0 i1 1 200 -",
                "main 5 500 1 5 0 airflow scheduler", "end"]
        cases = [(good, asfc.RUNNING), (good[:2] + good[4:], asfc.STOPPED),
                 (good[:4], asfc.UNKNOWN), (["node a"] + good[1:], asfc.UNKNOWN),
                 (good[1:], asfc.UNKNOWN)]
        for index, line in enumerate(good[:4]):
            words = line.split()
            for count in range(1, min(len(words), 7)):
                damaged = good[:index] + [" ".join(words[:count])] + good[index + 1:]
                cases.append((damaged, asfc.UNKNOWN))
        cases.append(([line.replace("1 0", "1 x") for line in good], asfc.UNKNOWN))
        for lines, state in cases:
            with self.subTest(str(lines)):
                nodes, _ = self.nodes(self.answering("".join(
                    "asfc {} " + line + "\n" for line in lines)))
                self.assertEqual(nodes.query(["b"], stamped(1, 0))["b"].state, state)

    def test_a_random_answer_never_raises(self):
        rng = random.Random(7)
        words = ["node", "b", "gate", "intent", "main", "1", "0", "-", "end", "status", "refused",
                 "unknown", "directory", "held", "\u0662", "99999999999999999999999", "x" * 50, ""]
        for _ in range(500):
            lines = [" ".join(rng.choice(words) for _ in range(rng.randint(0, 8)))
                     for _ in range(rng.randint(0, 6))]
            nodes, _ = self.nodes(self.answering("".join(
                "asfc {} " + line + "\n" for line in lines + ["node b", "end"])))
            self.assertIn(nodes.query(["b"], stamped(1, 0))["b"].state,
                          (asfc.UNKNOWN, asfc.STOPPED, asfc.RUNNING))

    def test_all_nodes_are_asked_at_the_same_time(self):
        sandbox = NodeSandbox()
        self.addCleanup(sandbox.close)
        sandbox.configuration.ssh_command = write_program(
            sandbox.path("bin", "ssh"), "#!/bin/sh\nsleep 1\n")
        names = ["n{}".format(i) for i in range(20)]
        began = time.monotonic()
        reports = sandbox.nodes.look(names + ["a"])
        self.assertLess(time.monotonic() - began, 3)
        self.assertEqual(list(reports), names + ["a"])
        self.assertEqual(reports["a"].state, asfc.STOPPED)
        self.assertEqual({reports[name].state for name in names}, {asfc.UNKNOWN})

    def test_what_a_node_lacks_is_named(self):
        sandbox = NodeSandbox()
        self.addCleanup(sandbox.close)
        only = sandbox.path("only")
        os.mkdir(only)
        for tool in ("sh", "ps", "awk", "id", "stat", "sync", "sleep", "tail", "tr", "rm", "mv",
                     "mkdir", "base64"):
            os.symlink(sandbox.path("bin", "ps") if tool == "ps" else find_program(tool),
                       os.path.join(only, tool))
        script = asfc.NODE_SCRIPT
        self.addCleanup(setattr, asfc, "NODE_SCRIPT", script)
        asfc.NODE_SCRIPT = script.replace(
            "PATH=${PATH:-/usr/bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "PATH=" + only)
        ok, said = sandbox.nodes.test_connection(["a"])["a"]
        self.assertEqual(ok, False)
        self.assertIn("has no mkfifo flock setsid", said)
        report = sandbox.nodes.start("a", stamped(1, 1))
        self.assertIn("has no mkfifo flock setsid", report.reason)
        self.assertEqual(sandbox.nodes.test_connection([]), {})


###############################################################################
# Fencing itself ##############################################################
###############################################################################


def local(pid, words, parent=1, session=None, marker="", uid=1000):
    return asfc.LocalProcess(pid, pid * 10, parent, pid if session is None else session, uid,
                             tuple(words.split()), marker)


class FenceTargetsTest(unittest.TestCase):
    SCHEDULER = "/venv/bin/python /venv/bin/airflow scheduler"

    def pids(self, *processes):
        return [[process.pid for process in kind]
                for kind in asfc.fence_targets(processes, 1000, "a")]

    def test_schedulers_are_recognised_by_their_words_as_on_a_node(self):
        for words, kind in SCHEDULER_WORDS:
            with self.subTest(words):
                self.assertEqual(asfc.scheduler_kind(words.split()), kind)

    def test_of_each_captured_tree_that_asfc_started_nothing_is_left_and_no_stranger_ended(self):
        for name, (processes, _, mains, _) in TREES.items():
            with self.subTest(name):
                own = [local(pid, args, parent, session, "a")
                       for pid, parent, _, session, state, args in processes if state != "Z"]
                found = self.pids(*own + [
                    local(pid, args, parent, session)
                    for pid, parent, _, session, _, args in tree(STRANGERS)])
                self.assertLessEqual(mains, set(found[1]))
                self.assertEqual(sorted(sum(found, [])), sorted(one.pid for one in own))

    def test_children_and_the_session_that_it_leads_go_with_a_scheduler(self):
        self.assertEqual(self.pids(
            local(10, self.SCHEDULER), local(11, "gunicorn: master", 10, 10),
            local(12, "airflow task runner", 11, 10), local(13, "bash task.sh", 12),
            local(20, "bash"), local(21, "airflow scheduler", 20, 20),
            local(30, "airflow scheduler -- X", 1, 30)),
            [[], [10, 21], [11, 12, 13, 30]])

    def test_a_shell_in_which_a_scheduler_was_started_by_hand_stays(self):
        self.assertEqual(self.pids(local(20, "bash"), local(21, self.SCHEDULER, 20, 20),
                                   local(22, "vim", 20, 20)), [[], [21], []])

    def test_starts_in_flight_are_found_by_name_and_mark_for_this_node_alone(self):
        self.assertEqual(self.pids(
            local(40, "sh -c eval asfc-start@a AAAA"), local(41, "sh -c eval asfc-query@a AAAA"),
            local(42, "sh -c eval asfc-start@b AAAA"), local(43, "sleep 60", marker="a"),
            local(44, "sleep 60", marker="b"),
            local(45, self.SCHEDULER, marker="a"), local(46, "x", 45, 46, marker="a")),
            [[40, 43], [45], [46]])

    def test_another_users_scheduler_is_not_ours_to_end(self):
        self.assertEqual(self.pids(local(10, self.SCHEDULER, uid=33)), [[], [], []])


class FenceBench:
    """A SelfFence on a clock and a process list that are set by hand."""

    def __init__(self, text=None):
        self.time, self.uptime, self.boot, self.text = 1000.0, 500.0, "boot", text
        self.list, self.sent, self.woken = [], [], []
        self.full_disk = False
        self.fence = asfc.SelfFence(self, settings(), 1000)

    def now(self):
        return self.time

    def boot_clock(self):
        return self.boot, self.uptime + self.time - 1000.0

    def read_text(self, path):
        return self.text

    def write_text(self, path, text, durable=True):
        if self.full_disk:
            raise OSError(28, "No space left on device")
        self.text = text

    def remove_file(self, path):
        self.text = None

    def wake(self, name):
        self.woken.append(name)

    def processes(self):
        return list(self.list)

    def signal_process(self, process, number):
        self.sent.append((process.pid, number))
        if number == signal.SIGKILL:
            self.list = [one for one in self.list if one.pid != process.pid]

    def promise(self):
        """A record with a promise is sent and confirmed now."""
        self.fence.about_to_promise(self.time)
        self.fence.promise_confirmed(self.time)

    def run_for(self, seconds):
        """Step as its loop does."""
        end = self.time + seconds
        while self.time < end:
            self.time = min(end, self.time + self.fence.step())
        self.fence.step()


class SelfFenceTest(unittest.TestCase):
    def setUp(self):
        self.bench = FenceBench()
        self.bench.list = [local(10, "airflow scheduler"), local(11, "worker", 10, 10),
                           local(12, "sh -c x asfc-start@a A")]

    def test_at_two_thirds_of_h_starts_are_killed_and_the_scheduler_is_asked_to_end(self):
        bench = self.bench
        bench.promise()
        bench.run_for(19.9)
        self.assertEqual(bench.sent, [])
        bench.run_for(0.2)
        self.assertEqual(bench.sent, [(12, signal.SIGKILL), (10, signal.SIGTERM)])
        self.assertEqual(list(bench.fence.sentences), [
            "fencing this node: its heartbeat is not confirmed for 20 s; a scheduler has 5 s to "
            "end, then it is ended with its tasks"])
        self.assertFalse(bench.fence.clean)
        self.assertFalse(bench.fence.may_write())
        bench.run_for(4.7)
        self.assertEqual(len(bench.sent), 2, "SIGTERM is sent once")
        bench.run_for(0.5)
        self.assertEqual(bench.sent[2:], [(10, signal.SIGKILL), (11, signal.SIGKILL)])
        self.assertLess(bench.time - 1000.0 + 0.5, settings().promise_s)
        bench.run_for(1)
        self.assertTrue(bench.fence.clean and bench.fence.may_write())

    def test_tasks_that_outlive_a_main_process_ended_by_sigterm_are_ended_after_the_grace(self):
        bench = self.bench
        task = [local(21, "airflow task runner: d t", 10, 10), local(22, "bash /tmp/t", 21)]
        bench.list = [local(10, "airflow scheduler")] + task
        bench.promise()
        bench.run_for(20.1)
        self.assertEqual(bench.sent, [(10, signal.SIGTERM)])
        bench.list = [task[0]._replace(parent=1), task[1]]   # nobody knows whose they are now
        bench.run_for(1)
        self.assertFalse(bench.fence.clean)
        bench.run_for(4.5)
        self.assertEqual(bench.sent[1:], [(21, signal.SIGKILL), (22, signal.SIGKILL)])
        self.assertTrue(bench.fence.clean)

    def test_what_comes_up_after_the_deadline_is_ended_too(self):
        bench = self.bench
        bench.promise()
        bench.run_for(30)
        bench.list = [local(50, "airflow scheduler")]
        bench.run_for(1.1)
        self.assertEqual(bench.list, [])

    def test_a_confirmed_write_counts_from_the_moment_before_it_was_sent(self):
        bench = self.bench
        bench.promise()
        bench.run_for(10)
        sent_at = bench.time
        bench.fence.about_to_promise(sent_at)
        self.assertEqual(bench.fence.deadline, 1020.0, "only a confirmed one moves the deadline")
        bench.run_for(3)
        bench.fence.promise_confirmed(sent_at)
        self.assertEqual(bench.fence.deadline, sent_at + 20)

    def test_a_later_deadline_that_was_inherited_yields_to_the_promise_that_is_sent(self):
        bench = FenceBench("1 boot 56000 end\n")
        self.assertEqual(bench.fence.deadline, 1060.0)
        bench.fence.about_to_promise(bench.time)
        self.assertEqual(bench.fence.deadline, 1020.0)

    def test_a_write_that_was_frozen_on_its_way_is_followed_by_one_try_not_by_the_fence(self):
        for first in (True, False):
            bench = FenceBench()
            bench.list = [local(10, "airflow scheduler")]
            if not first:
                bench.promise()
            sent_at = bench.time
            bench.run_for(5)
            bench.time += 100
            bench.fence.step()        # the fence's loop is the first to run again
            bench.fence.about_to_promise(sent_at)
            bench.fence.promise_confirmed(sent_at)
            bench.time += 1
            bench.fence.step()
            self.assertTrue(bench.fence.has_chance())
            bench.promise()
            bench.run_for(10)
            self.assertEqual(bench.sent, [])

    def test_a_promise_binds_from_when_it_is_first_sent_until_it_is_taken_back(self):
        bench = self.bench
        bench.run_for(100)
        bench.fence.about_to_promise(bench.time)
        self.assertEqual(bench.fence.deadline, bench.time + 20)
        bench.run_for(10)
        bench.fence.promise_withdrawn()
        bench.run_for(100)
        self.assertEqual((bench.sent, bench.text), ([], None))

    def test_once_begun_it_is_finished_though_a_late_reply_moves_the_deadline(self):
        bench = self.bench
        bench.promise()
        bench.run_for(20.5)
        bench.fence.promise_confirmed(1015.0)
        bench.run_for(6)
        self.assertEqual(bench.list, [])
        self.assertTrue(bench.fence.may_write())

    def test_a_controller_that_was_frozen_has_one_try_and_then_kills_at_once(self):
        bench = self.bench
        bench.promise()
        bench.run_for(5)
        bench.time += 100      # it did not run
        bench.fence.step()
        self.assertTrue(bench.fence.has_chance() and bench.fence.may_write())
        self.assertEqual(bench.woken, ["heartbeat"])
        bench.run_for(2.9)
        self.assertEqual(bench.sent, [])
        bench.run_for(0.2)
        self.assertEqual(bench.sent, [(12, signal.SIGKILL), (10, signal.SIGKILL),
                                      (11, signal.SIGKILL)])

    def test_in_its_try_only_the_time_counts_in_which_it_ran(self):
        bench = self.bench
        bench.promise()
        bench.time += 100
        bench.fence.step()
        for _ in range(2):
            bench.run_for(1.0)
            bench.time += 1.9      # stood still again
            bench.fence.step()
        bench.run_for(0.5)         # of 3 s it has had 2.4
        self.assertEqual(bench.sent, [])
        bench.run_for(0.5)
        self.assertEqual(bench.list, [])

    def test_the_try_succeeds_by_a_confirmed_write_and_ends_where_the_node_is_not_possible(self):
        for refused in (False, True):
            bench = FenceBench()
            bench.list = [local(10, "airflow scheduler")]
            bench.promise()
            bench.time += 100
            bench.fence.step()
            if refused:
                bench.fence.refuse_chance()
            else:
                bench.promise()
            bench.run_for(0.1)
            self.assertEqual(bench.list == [], refused)

    def test_a_controller_that_is_frozen_again_in_its_try_gets_another(self):
        self.bench.promise()
        for _ in range(2):
            self.bench.time += 100
            self.bench.fence.step()
            self.assertTrue(self.bench.fence.has_chance())
        self.assertEqual(self.bench.sent, [])

    def test_a_controller_that_stands_still_again_and_again_fences_all_the_same(self):
        for still_s in (5.0, 1.9, 0.5):
            self.setUp()
            bench = self.bench
            bench.promise()
            bench.time += 100
            while bench.list and bench.time < 1300:
                bench.time += bench.fence.step() + still_s
            self.assertLess(bench.time, 1100 + 30, "the tries have an end")

    def test_a_restarted_controller_inherits_the_deadline_of_this_boot(self):
        self.bench.promise()
        self.assertEqual(self.bench.text, "1 boot 52000 end\n")
        for text, deadline in ((self.bench.text, 1020.0), ("1 other 52000 end\n", None),
                               ("", None), (None, None), ("1 boot 52", 1000.0)):
            with self.subTest(text):
                self.assertEqual(FenceBench(text).fence.deadline, deadline)
        late = FenceBench("1 boot 40000 end\n")   # it has passed: one try
        late.list = [local(10, "airflow scheduler")]
        late.fence.step()
        self.assertTrue(late.fence.has_chance())
        late.run_for(3.1)
        self.assertEqual(late.sent, [(10, signal.SIGKILL)])

    def test_a_freeze_while_the_deadline_is_kept_or_inherited_never_makes_it_later(self):
        bench = self.bench
        read = bench.boot_clock

        def read_and_stand_still():
            found = read()
            bench.time += 15
            return found
        bench.boot_clock = read_and_stand_still
        bench.promise()            # until 1020, when the uptime is 520 s
        self.assertLessEqual(int(bench.text.split()[2]), 52000)
        bench.text = "1 boot 52000 end\n"
        self.assertLessEqual(asfc.SelfFence(bench, settings(), 1000).deadline, 1020.0)

    def test_main_processes_that_are_known_are_signalled_before_the_list_is_read(self):
        bench = self.bench
        bench.promise()
        bench.fence.known = (asfc.Process(10, 100, 1, 10, 1000, "airflow scheduler"),)
        stays = list(bench.list[:1])
        bench.processes = lambda: self.assertEqual(bench.sent, [(10, signal.SIGTERM)]) or stays
        bench.run_for(20.1)
        self.assertEqual(bench.sent, [(10, signal.SIGTERM)])
        bench.processes = lambda: self.assertIn((10, signal.SIGKILL), bench.sent) or []
        bench.time += settings().fence_grace_time
        bench.fence.step()
        self.assertEqual(bench.sent[1:], [(10, signal.SIGKILL)])

    def test_a_full_disk_does_not_stop_the_fence_and_is_told_until_it_has_room_again(self):
        bench = self.bench
        bench.full_disk = True
        bench.promise()
        self.assertRegex(bench.fence.problem, "deadline can't be written to .*: No space left")
        bench.run_for(30)
        self.assertEqual(bench.list, [])
        self.assertNotIn("No space left", " ".join(bench.fence.sentences))
        bench.full_disk = False
        bench.promise()
        self.assertEqual(bench.fence.problem, "")


###############################################################################
# Health evidence #############################################################
###############################################################################


def health_page(heartbeat="12:00:00", scheduler="healthy", database="healthy"):
    return json.dumps({"metadatabase": {"status": database}, "scheduler": {
        "status": scheduler, "latest_scheduler_heartbeat": heartbeat}})


class PageBench:
    """A world with a clock that is set by hand and pages that are too."""

    def __init__(self, urls=("http://h/health", "http://h/api/v2/monitor/health")):
        self.time, self.pages, self.asked = 1000.0, {}, []
        self.log = logging.getLogger("asfc-test-health")
        self.log.propagate = False
        self.lines = []
        self.log.handlers = [ListHandler(self.lines)]
        self.log.setLevel(logging.DEBUG)
        self.watch = asfc.HealthWatch(self, settings(health_urls=urls), self.log)

    def now(self):
        return self.time

    def http_get(self, url, timeout_s, verify_tls):
        self.asked.append(url)
        page = self.pages.get(url, (404, '{"error": "Moved in Airflow 3"}'))
        if isinstance(page, str):
            raise OSError(page)
        return page

    def after(self, seconds, page=None):
        if page is not None:
            self.pages["http://h/health"] = page
        self.time += seconds
        self.watch.step()
        return self.watch.sign()


class ListHandler(logging.Handler):
    """Keeps each logged line in a list."""

    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def emit(self, record):
        self.lines.append(record.getMessage())


class HealthTest(unittest.TestCase):
    def test_pages_that_prove_nothing_are_told_from_those_that_do(self):
        others = {"triggerer": {"status": None, "latest_triggerer_heartbeat": None},
                  "dag_processor": {"status": None, "latest_dag_processor_heartbeat": None}}
        newer = dict(others, **json.loads(health_page(scheduler="unhealthy")))
        down = json.loads(health_page(None, "unhealthy", "unhealthy"))
        down["triggerer"] = dict(others["triggerer"], status="unhealthy")
        cases = ((health_page(), "12:00:00"), (health_page(scheduler="unhealthy"), "12:00:00"),
                 (health_page(None, "unhealthy"), "never"),
                 (json.dumps(newer), "12:00:00"),                   # of 2 and 3
                 (json.dumps(down, indent=4), None),                # with HTTP 200, of 2 and 3
                 ('{"error":"Moved in Airflow 3. Please change config to check `/api`"}', None),
                 ("", None),                                        # the scheduler's own, HTTP 200
                 ("<!DOCTYPE HTML><html><p>Error code: 503</p></html>", None),
                 (health_page(database="unhealthy"), None), ("<html>", None),
                 ("[]", None), ("{}", None), ("null", None),
                 ('{"metadatabase": "healthy"}', None))
        for text, expected in cases:
            with self.subTest(text):
                self.assertEqual(asfc.read_health_page(text), expected)

    def test_an_unchanged_heartbeat_is_timed_only_while_the_page_can_be_read(self):
        bench = PageBench()
        bench.after(0, (200, health_page()))
        self.assertEqual(bench.after(20), asfc.HealthSign(True, "12:00:00", 20.0, "page"))
        self.assertFalse(bench.after(10, "connection refused").readable)
        self.assertFalse(bench.after(10, (200, health_page(database="unhealthy"))).readable)
        self.assertEqual(bench.after(10, (200, health_page())).unchanged_s, 0.0)
        self.assertEqual(bench.after(15).unchanged_s, 15.0)
        bench.time += 9
        self.assertEqual(bench.watch.sign().unchanged_s, 15.0, "no reading says more than this")
        self.assertEqual(bench.after(7).unchanged_s, 31.0)
        self.assertEqual(bench.after(5, (200, health_page("12:00:05"))).unchanged_s, 0.0)

    def test_a_heartbeat_is_not_timed_over_a_time_in_which_nobody_looked(self):
        bench = PageBench()
        bench.after(0, (200, health_page()))
        self.assertEqual(bench.after(600).unchanged_s, 0.0)
        self.assertEqual(bench.after(10).unchanged_s, 10.0)

    def test_evidence_that_is_too_old_is_none(self):
        bench = PageBench()
        bench.after(0, (200, health_page()))
        bench.time += 30.1
        self.assertEqual(bench.watch.sign(), asfc.NO_HEALTH_SIGN)

    def test_the_page_is_found_at_either_place_and_asked_there_first_from_then_on(self):
        bench = PageBench()
        bench.pages["http://h/api/v2/monitor/health"] = (200, health_page())
        bench.watch.step()
        bench.watch.step()
        self.assertEqual(bench.asked, [
            "http://h/health", "http://h/api/v2/monitor/health", "http://h/api/v2/monitor/health"])

    def test_a_certificate_that_cannot_be_verified_is_told_once_with_its_key(self):
        bench = PageBench(urls=("https://h/health",))
        bench.pages["https://h/health"] = "[SSL: CERTIFICATE_VERIFY_FAILED]"
        for _ in range(3):
            bench.watch.step()
        self.assertEqual(len(bench.lines), 1)
        self.assertIn("health_page_verify_tls", bench.lines[0])


def job(number, host, beat, state="running"):
    return asfc.SchedulerJob(number, host, state, "2026-11-22 " + beat)


class JobBench:
    """A world with a clock that is set by hand and a job table that is too."""
    NAMES = {"a": ["a.example.org"], "b": [], "c": ["clone"], "d": ["clone"]}

    def __init__(self, **changes):
        self.time, self.answer, self.lines = 1000.0, None, []
        self.log = logging.Logger("asfc-test-jobs")
        self.log.addHandler(ListHandler(self.lines))
        self.watch = asfc.JobWatch(self, settings(**changes), self, self.log)

    def now(self):
        return self.time

    def describe(self):
        return "the test's database"

    def scheduler_jobs(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def after(self, seconds, *answer):
        """Ask after a time; the answer is the rows of the table, or what else is given."""
        self.time += seconds
        self.answer = list(answer)
        if answer and not isinstance(answer[0], asfc.SchedulerJob):
            self.answer = answer[0]
        self.pause_s = self.watch.step()
        return self.watch.sign()

    def moving(self):
        return "".join(node for node in sorted(self.NAMES)
                       if (self.watch.moved_at(node, self.NAMES) or 0.0) > self.time - 30.0)


class JobWatchTest(unittest.TestCase):
    AWAY = asfc.MetadataError("the database is away")

    def test_a_row_that_is_first_seen_has_not_moved_and_counts_from_there(self):
        bench = JobBench()
        sign = bench.after(0, job(1, "a", "12:00:00"))
        self.assertEqual(sign, asfc.HealthSign(True, "2026-11-22 12:00:00", 0.0, "table"))
        self.assertEqual(bench.after(10, job(1, "a", "12:00:00")).unchanged_s, 10.0)
        sign = bench.after(10, job(2, "b", "12:00:15"), job(1, "a", "12:00:00"))
        self.assertEqual(sign, asfc.HealthSign(True, "2026-11-22 12:00:00", 0.0, "table"))
        self.assertEqual(bench.moving(), "")
        sign = bench.after(5, job(2, "b", "12:00:20"), job(1, "a", "12:00:00"))
        self.assertEqual((sign.heartbeat, sign.unchanged_s), ("2026-11-22 12:00:20", 0.0))
        self.assertEqual(bench.moving(), "b")
        self.assertEqual(bench.after(7, job(2, "b", "12:00:20")).unchanged_s, 7.0)

    def test_a_table_without_a_scheduler_is_read_too(self):
        bench = JobBench()
        self.assertEqual(bench.after(0), asfc.HealthSign(True, "never", 0.0, "table"))
        self.assertEqual(bench.after(31), asfc.NO_HEALTH_SIGN._replace(
            readable=True, heartbeat="never", source="table"), "nobody looked for 31 s")
        self.assertEqual(bench.after(10).unchanged_s, 10.0)
        self.assertEqual(bench.after(10, job(1, "a", "12:00:00")).heartbeat, "never")
        self.assertEqual(bench.after(10, job(1, "a", "12:00:05")).heartbeat, "2026-11-22 12:00:05")

    def test_a_wall_clock_that_jumps_changes_nothing(self):
        bench = JobBench()
        beats = ["12:00:00", "12:00:05", "11:00:10", "11:00:15", "23:00:20", "23:00:25"]
        for number, beat in enumerate(beats):
            sign = bench.after(10, job(1, "a", beat))
            self.assertEqual((sign.heartbeat, sign.unchanged_s), ("2026-11-22 " + beat, 0.0))
            self.assertEqual(bench.moving(), "a" if number else "")
        for seconds in (10, 20, 30, 40):
            self.assertEqual(bench.after(10, job(1, "a", beats[-1])).unchanged_s, seconds)
        self.assertEqual(bench.moving(), "", "a future heartbeat that stands is no life")

    def test_a_stale_row_beside_one_that_moves_is_no_life_of_its_host(self):
        bench = JobBench()
        stale = job(9, "b", "23:00:00")     # by a clock that was hours ahead
        for second in range(0, 60, 10):
            sign = bench.after(10, stale, job(10, "a", "12:00:{:02d}".format(second)))
        self.assertEqual((sign.heartbeat, sign.unchanged_s), ("2026-11-22 12:00:50", 0.0))
        self.assertEqual(bench.moving(), "a")

    def test_two_rows_of_one_host_are_two_schedulers_and_either_one_is_life(self):
        bench = JobBench()
        for second in range(0, 60, 10):
            sign = bench.after(10, job(2, "a", "12:00:{:02d}".format(second)),
                               job(1, "a", "11:59:00"))
        self.assertEqual((sign.unchanged_s, bench.moving()), (0.0, "a"))

    def test_a_movement_may_have_been_made_up_to_a_pause_before_it_was_seen(self):
        bench = JobBench()
        bench.after(0, job(1, "a", "12:00:00"))
        self.assertIsNone(bench.watch.moved_at("a", bench.NAMES))
        bench.after(10, job(1, "a", "12:00:05"))
        self.assertEqual(bench.watch.moved_at("a", bench.NAMES), bench.time - bench.pause_s)
        self.assertIsNone(bench.watch.moved_at("b", bench.NAMES))

    def test_what_changed_while_nobody_could_look_is_no_movement(self):
        for missed in (self.AWAY, None, 600.0):
            with self.subTest(missed):
                bench = JobBench()
                bench.after(0, job(1, "a", "12:00:00"))
                if missed == 600.0:
                    bench.time += missed
                else:
                    self.assertEqual(bench.after(10, missed), asfc.NO_HEALTH_SIGN)
                sign = bench.after(10, job(1, "a", "12:00:15"))
                self.assertEqual((sign.unchanged_s, bench.moving()), (0.0, ""))
                bench.after(10, job(1, "a", "12:00:20"))
                self.assertEqual(bench.moving(), "a")

    def test_the_last_heartbeat_of_a_scheduler_that_ended_in_order_is_no_life(self):
        bench = JobBench()
        bench.after(0, job(1, "a", "12:00:00"))
        sign = bench.after(10, job(1, "a", "12:00:07", state="success"))
        self.assertEqual((sign.heartbeat, bench.moving()), ("2026-11-22 12:00:00", ""))
        bench.after(10, job(1, "a", "12:00:07", "failed"))
        bench.after(10, job(1, "a", "12:00:12", "failed"))   # Airflow lets such a one go on
        self.assertEqual(bench.moving(), "a")

    def test_evidence_that_is_too_old_is_none(self):
        bench = JobBench()
        self.assertEqual(bench.watch.sign(), asfc.NO_HEALTH_SIGN)
        bench.after(0, job(1, "a", "12:00:00"))
        bench.time += 30.1
        self.assertEqual(bench.watch.sign(), asfc.NO_HEALTH_SIGN)

    def test_a_database_that_can_not_be_read_is_no_evidence_and_told_once(self):
        bench = JobBench()
        for number in range(5):
            error = asfc.MetadataError("away for the {}. time".format(number))
            self.assertEqual(bench.after(10, error), asfc.NO_HEALTH_SIGN)
            self.assertEqual(bench.pause_s, 10.0)
        self.assertEqual(bench.lines, ["the job table gives no evidence: away for the 0. time"])
        bench.after(10, job(1, "a", "12:00:00"))
        bench.after(10, job(1, "a", "12:00:05"))
        self.assertEqual(bench.lines[1:], ["the job table can be read: the test's database"])

    def test_a_database_is_lost_when_a_table_that_could_be_read_can_not_be_read(self):
        bench = JobBench()
        bench.after(10, self.AWAY)
        self.assertIsNone(bench.watch.failed_at, "it may never be readable from here")
        bench.after(10, job(1, "a", "12:00:00"))
        bench.after(10, None)
        self.assertIsNone(bench.watch.failed_at)
        bench.after(10, self.AWAY)
        bench.after(10, job(1, "a", "12:00:20"))
        self.assertEqual(bench.watch.failed_at, bench.time - 10)

    def test_where_there_is_no_such_table_it_is_asked_for_once_a_minute(self):
        bench = JobBench(poll_frequency=3.0)
        for _ in range(3):
            self.assertEqual(bench.after(60, None), asfc.NO_HEALTH_SIGN)
            self.assertEqual(bench.pause_s, 60.0)
        self.assertEqual(bench.lines, [
            "the job table gives no evidence: there is none at the test's database"])
        self.assertTrue(bench.after(60, job(1, "a", "12:00:00")).readable)
        self.assertEqual(bench.pause_s, 3.0)
        self.assertFalse(bench.after(3, None).readable, "it has vanished")
        self.assertEqual((bench.pause_s, len(bench.lines)), (60.0, 3))

    def test_it_asks_several_times_within_airflows_threshold(self):
        bench = JobBench(poll_frequency=60.0)
        bench.after(0)
        self.assertEqual(bench.pause_s, 10.0)
        bench.watch.ended = True
        self.assertIsNone(bench.watch.step())
        self.assertIsNone(asfc.JobWatch(bench, settings(), None, bench.log).step())

    def test_the_table_goes_before_the_page_where_it_can_be_read(self):
        table, page = (asfc.HealthSign(True, "x", 3.0, source) for source in ("table", "page"))
        none = asfc.NO_HEALTH_SIGN
        for signs, best in (((table, page), table), ((none, page), page), ((table, none), table),
                            ((none, none), none)):
            self.assertEqual(asfc.best_sign(*signs), best)

    def test_a_host_name_means_one_node_or_nobody(self):
        names = {"a": ["vm-a", "vm-a.example.org"], "b": ["B.Example.org."],
                 "10.0.0.3": ["web.x.y"], "10.0.0.4": ["web.x.z", "localhost"],
                 "e.one": ["clone", "e"], "f": ["clone"],
                 "fe80::5": []}
        means = {"a": "a", "A": "a", "vm-a": "a", "vm-a.example.org": "a", "vm-a.example.org.": "a",
                 "vm-a.other.org": "a", "a.any.where": "a", "b.example.org": "b", "b": "b",
                 "B": "b", "b.other.org": "b", "web.x.y": "10.0.0.3", "web.x.z": "10.0.0.4",
                 "web": None, "web.x.q": None, "10.0.0.3": "10.0.0.3", "10.0.0.5": None,
                 "10": None, "clone": None, "clone.x": None, "e.one": "e.one", "e": "e.one",
                 "e.two": "e.one", "f": "f", "fe80::5": "fe80::5", "vm": None, "": None, ".": None,
                 "localhost": None, "localhost.localdomain": None, "ip6-localhost": None,
                 "127.0.1.1": None, "::1": None, "zz": None}
        for host, node in means.items():
            with self.subTest(host):
                self.assertEqual(asfc.node_of_host(host, names), node)
        self.assertIsNone(asfc.node_of_host("x.two", {"n": ["x.one"]}), "of another domain")
        self.assertIsNone(asfc.node_of_host("localhost", {"localhost": []}))

    def test_a_host_that_can_not_be_mapped_is_life_but_vetoes_nothing(self):
        bench = JobBench()
        for host in ("clone", "localhost", "elsewhere", ""):
            bench.after(10, job(1, host, "12:00:00"))
            self.assertEqual(bench.after(10, job(1, host, "12:00:05")).unchanged_s, 0.0)
            self.assertEqual(bench.moving(), "")


###############################################################################
# Alerts ######################################################################
###############################################################################


class AlertsTest(unittest.TestCase):
    def setUp(self):
        self.sent, self.fail, self.lines, self.woken = [], 0, [], []
        self.log = logging.getLogger("asfc-test-alerts")
        self.log.propagate = False
        self.log.handlers = [ListHandler(self.lines)]
        self.log.setLevel(logging.DEBUG)

    # the door
    def wake(self, name):
        self.woken.append(name)

    def send_mail(self, smtp, recipients, alert):
        if self.fail:
            self.fail -= 1
            raise OSError("mail server down")
        self.sent.append(alert.subject)

    def alerts(self, **changes):
        return asfc.Alerts(self, settings(**changes), self.log)

    def test_posting_never_sends_it_only_wakes_the_loop(self):
        alerts = self.alerts()
        alerts.post("one", "text")
        self.assertEqual((self.sent, self.woken), ([], ["alerts"]))
        alerts.step()
        self.assertEqual(self.sent, ["one"])

    def test_a_mail_server_that_is_down_is_tried_again_a_few_times_and_later_mails_follow(self):
        alerts, self.fail = self.alerts(), 2
        alerts.post("one", "text")
        alerts.post("two", "text")
        self.assertEqual([alerts.step(), alerts.step(), alerts.step()], [30.0, 60.0, 3600.0])
        self.assertEqual(self.sent, ["one", "two"])

    def test_a_mail_that_never_goes_out_is_dropped_with_a_line(self):
        alerts, self.fail = self.alerts(), 5
        alerts.post("one", "text")
        for _ in range(5):
            alerts.step()
        self.assertEqual(self.sent, [])
        self.assertIn("is dropped after 5 tries: mail server down", self.lines[-1])

    def test_without_an_address_nothing_is_mailed_and_a_line_says_so(self):
        alerts = self.alerts(alert_to_email=())
        alerts.post("one", "text")
        alerts.step()
        self.assertEqual(self.sent, [])
        self.assertIn("alert_to_email is not set: one", self.lines[-1])


class EventCommandTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="asfc-test-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.told = os.path.join(self.directory, "told")
        self.lines = []
        self.log = logging.getLogger("asfc-test-events")
        self.log.propagate = False
        self.log.handlers = [ListHandler(self.lines)]

    def events(self, command, **changes):
        return asfc.EventCommand(asfc.World(), settings(on_event_command=command, **changes), "i1",
                                 self.log)

    @staticmethod
    def event(what, **fields):
        return asfc.HistoryEvent("noon", "a", 3, 7, what, **fields)

    def test_each_event_is_told_in_order_with_all_that_is_known_of_it(self):
        events = self.events("env | grep ^ASFC_ | grep -v 'COMMAND\\|PLAIN\\|SKIPS' | sort >> "
                             + self.told)
        events.post("start", self.event("start it; $(touch x)", why="dead", proof="none on 'b'"))
        events.post("running", self.event("it runs", without_scheduler_s=4.5))
        self.assertEqual(events.step(), 3600.0)
        expected = ("ASFC_CAUSE={}\nASFC_EVENT={}\nASFC_INSTANCE=i1\nASFC_MOVE=7\nASFC_NODE=a\n"
                    "ASFC_PROOF={}\nASFC_SEQUENCE={}\nASFC_TERM=3\nASFC_TEXT={}\nASFC_TIME=noon\n"
                    "ASFC_WITHOUT_SCHEDULER_S={}\n")
        self.assertEqual(read_file(self.told), expected.format(
            "dead", "start", "none on 'b'", 1, "start it; $(touch x)", "")
            + expected.format("", "running", "", 2, "it runs", 4.5))
        self.assertEqual((self.lines, events.failures), ([], 0))

    def test_one_that_fails_or_takes_too_long_is_told_and_the_next_one_follows(self):
        events = self.events("test $ASFC_SEQUENCE != 1 || {{ echo no mail >&2; exit 3; }}; "
                             "test $ASFC_SEQUENCE != 2 || sleep 60; "
                             "echo $ASFC_SEQUENCE >> {}".format(self.told), on_event_timeout=3.0)
        for what in ("one", "two", "three"):
            events.post("stop", self.event(what))
        events.step()
        self.assertEqual(read_file(self.told), "3\n")
        self.assertEqual(self.lines, [
            "on_event_command failed for event 1 (one): exit status 3 no mail",
            "on_event_command failed for event 2 (two): no answer within 3 s"])
        self.assertEqual(events.failures, 2)

    def test_when_too_many_wait_the_oldest_is_dropped_and_told_by_log_and_number(self):
        events = self.events("printf '%s ' $ASFC_SEQUENCE >> " + self.told)
        events.MOST_WAITING = 2
        for what in ("one", "two", "three"):
            events.post("stop", self.event(what))
        events.step()
        self.assertEqual(read_file(self.told), "2 3 ")
        self.assertEqual(self.lines, ["on_event_command is too slow, 2 events wait: number 1 (one) "
                                      "is dropped"])

    def test_what_waits_at_the_end_is_told_in_the_log_and_without_a_command_nothing_waits(self):
        events = self.events("touch " + self.told)
        events.post("stop", self.event("one"))
        events.ended = True
        self.assertIsNone(events.step())
        self.assertEqual(self.lines, ["on_event_command is not told of the last 1 events: asfc "
                                      "ends"])
        events = self.events("")
        events.post("stop", self.event("one"))
        events.ended = True
        self.assertEqual((events.step(), len(self.lines), events.counts["stop"]), (None, 1, 1))
        self.assertFalse(os.path.exists(self.told))

    def test_a_slow_command_delays_no_turn_and_hears_what_the_history_holds(self):
        def play(slow):
            cluster, told = VirtualCluster(6), []

            def run():
                for name in cluster.models:
                    cluster.start_controller(name)
                    world = cluster.worlds[name]

                    def listen(commands, run=world.run, name=name):
                        if "ASFC_EVENT" not in (commands[0].environment or {}):
                            return run(commands)
                        cluster.clock.wait(30 if slow else 0)
                        told.append((name, commands[0].environment))
                        return [asfc.CommandResult(0, "", "")]
                    world.run = listen
                cluster.clock.wait(100)
                cluster.kill_scheduler()
                cluster.clock.wait(500)
                return asfc.history_events(cluster.metadata.records)
            cluster.keys["on_event_command"] = "tell"
            history = cluster.clock.drive(run)
            turns = [line for line in cluster.lines if "on_event_command" not in line]
            return history, told, turns
        history, told, slow_lines = play(slow=True)
        self.assertEqual([event.what for event in history if event.node == "a"],
                         [environment["ASFC_TEXT"] for name, environment in told if name == "a"])
        self.assertGreater(len(told), 6)
        self.assertEqual([environment["ASFC_SEQUENCE"] for name, environment in told
                          if name == "a"], [str(n + 1) for n in range(len(told))])
        self.assertEqual(slow_lines, play(slow=False)[2])

    def test_the_table_of_events_is_what_the_code_tells(self):
        code = read_file(asfc.__file__)
        used = set(re.findall(r'(?:_|self\.|announcer\.|records\.|nodes\.)post\("(\w+)"', code))
        used |= set(re.findall(r'note_in_history\(.*?, (?:cluster|record), "(\w+)"', code))
        self.assertEqual(used, set(asfc.EVENTS))


###############################################################################
# Virtual time ################################################################
###############################################################################


class VirtualEnd(BaseException):
    """Ends a virtual thread, wherever it waits."""


class VirtualThread:
    """A thread that runs only while it holds the baton; `world` is the host it belongs to."""

    def __init__(self, clock, world, function, name):
        self.clock, self.world, self.function, self.name = clock, world, function, name
        self.baton = threading.Lock()
        self.baton.acquire()
        self.ticket = 0          # of its newest entry in the queue; older entries are void
        self.killed = self.done = False
        self.thread = threading.Thread(target=self.body, daemon=True)

    def body(self):
        self.baton.acquire()
        try:
            if not self.killed:
                self.function()
        except VirtualEnd:
            pass
        except Exception as error:     # told by the run that drives the clock
            self.clock.failures.append(error)
        self.done = True
        self.clock.pass_on()


class VirtualCall:
    """Something that happens at a time of its own, in no thread: it may not wait."""
    __slots__ = ("function", "ticket", "done")

    def __init__(self, function):
        self.function, self.ticket, self.done = function, 0, False


class VirtualClock:
    """Hands one baton from thread to thread in the order of their virtual times.

    Exactly one thread runs at any moment, and which one comes next depends on the times and on the
    order of the requests alone: so a run is the same to the byte whenever it is repeated.
    """

    def __init__(self):
        self.time = 1000.0
        self.watch = None        # called at each pass of the baton
        self.queue = []
        self.order = 0
        self.current = None
        self.threads = []
        self.failures = []

    def spawn(self, world, function, name):
        thread = VirtualThread(self, world, function, name)
        thread.thread.start()
        self.enter(thread, self.time)
        self.threads.append(thread)
        return thread

    def enter(self, thread, at):
        """Let the thread go on at this time; that replaces what it waited for."""
        self.order += 1
        thread.ticket = self.order
        heapq.heappush(self.queue, (at, self.order, thread))

    def call(self, at, function):
        """Have a function called at this time; it may not wait."""
        self.enter(VirtualCall(function), at)

    def next_thread(self):
        """The thread that goes on next; what is to be called before it is called here."""
        self.current = None
        while True:
            at, ticket, thread = heapq.heappop(self.queue)
            if ticket != thread.ticket or thread.done:
                continue
            self.time = max(self.time, at)
            if isinstance(thread, VirtualCall):
                self.make_call(thread)
                continue
            thaws_at = thread.world.frozen_until if thread.world else 0.0
            if thaws_at > self.time and not thread.killed:
                self.enter(thread, thaws_at)
                continue
            if self.watch:
                self.watch()
            return thread

    def make_call(self, call):
        call.done = True
        try:
            call.function()
        except Exception as error:
            self.failures.append(error)

    def pass_on(self):
        self.current = self.next_thread()
        self.current.baton.release()

    def wait(self, seconds):
        """The running thread waits, for ever when seconds is None, until `enter` lets it go on."""
        self.wait_until(None if seconds is None else self.time + max(0.0, seconds))

    def wait_until(self, at):
        me = self.current
        if at is not None:
            self.enter(me, at)
        following = self.current = self.next_thread()
        if following is not me:
            following.baton.release()
            me.baton.acquire()
        if me.killed:
            raise VirtualEnd()

    def kill(self, thread):
        if not thread.done and thread is not self.current:
            thread.killed = True
            self.enter(thread, self.time)

    def drive(self, function):
        """Run function as the first virtual thread, on the calling thread; then end all others."""
        self.current = VirtualThread(self, None, None, "driver")
        try:
            result = function()
        except KeyboardInterrupt:   # whoever holds the baton: the process is to end
            self.threads = []
            raise
        finally:
            while not all(thread.done for thread in self.threads):
                for thread in self.threads:
                    self.kill(thread)
                self.wait(0)
        if self.failures:
            raise self.failures[0]
        return result


class VirtualMutex:
    """A lock between the virtual threads of one host, first come first served."""

    def __init__(self, clock):
        self.clock, self.owner, self.waiting = clock, None, []

    def __enter__(self):
        while self.owner is not None:
            self.waiting.append(self.clock.current)
            self.clock.wait(None)
        self.owner = self.clock.current

    def __exit__(self, *_):
        self.owner = None
        if self.waiting:
            self.clock.enter(self.waiting.pop(0), self.clock.time)


class VirtualWorld:
    """The door to the world of one host of a VirtualCluster: nothing behind it is real."""

    def __init__(self, cluster, name):
        self.cluster, self.name, self.clock = cluster, name, cluster.clock
        self.threads, self.asleep, self.woken = {}, set(), set()
        self.stop_handler = None
        self.answers = None   # of the person at the terminal; None: there is no terminal
        self.frozen_until = 0.0
        self.hangup_handler = None
        self.notify_socket, self.watchdog_s, self.notified = "", 0.0, []

    def now(self):
        return self.clock.time

    def sleep(self, seconds):
        self.clock.wait(seconds)

    def ask(self, question):
        return None if self.answers is None else self.answers.pop(0)

    def user_name(self):
        return "ann"

    def pause(self, seconds):
        """Wait so long on the clock of this host."""
        self.clock.wait(seconds)

    def utc_text(self):
        return "{:.3f} s of virtual time".format(self.clock.time)

    def host_name(self):
        return self.name

    def environment(self):
        return {"HOME": "/home/airflow"}

    def random_id(self):
        return "{:016x}".format(self.cluster.random.getrandbits(64))

    def mutex(self):
        return VirtualMutex(self.clock)

    def run_loops(self, steps, awaited):
        for name, step in steps.items():
            body = functools.partial(self.loop, name, step)
            self.threads[name] = self.clock.spawn(self, body, name)
        self.joining = self.clock.current
        self.running = len(steps)
        while self.running:
            self.clock.wait(None)

    def loop(self, name, step):
        delay = step()
        while delay is not None:
            if name not in self.woken:
                self.asleep.add(name)
                self.pause(delay)
                self.asleep.discard(name)
            self.woken.discard(name)
            delay = step()
        self.running -= 1
        self.clock.enter(self.joining, self.clock.time)

    def wake(self, name):
        self.woken.add(name)
        if name in self.asleep:
            self.clock.enter(self.threads[name], self.clock.time)

    def on_stop_signal(self, handler):
        self.stop_handler = handler

    def on_hangup(self, handler):
        self.hangup_handler = handler

    def monotonic_us(self):
        return int(self.clock.time * 1e6)

    def notify(self, text):
        self.notified.append((round(self.clock.time, 3), text))
        return True

    def run(self, commands):
        return self.cluster.deliver(self.name, commands)

    def boot_clock(self):
        return "boot", self.clock.time

    def host_names(self):
        return (self.name,)

    def user_id(self, name):
        return 0

    def read_text(self, path):
        if path.endswith("airflow.cfg"):
            return self.airflow_cfg
        if path.startswith("/proc/"):
            return ""
        return self.model.fence_text if path.endswith("/fence") else None

    def write_text(self, path, text, durable=True):
        """Of all files only the fence deadline is written; the node's script reads it, too."""
        self.model.fence_text = text
        self.model.fence_deadline = int(text.split()[2]) / 100.0

    def remove_file(self, path):
        self.model.fence_text = self.model.fence_deadline = None

    @property
    def model(self):
        return self.cluster.models[self.name]

    def processes(self):
        return self.model.processes(self.name)

    def signal_process(self, process, number):
        self.model.signal(process, number)
        return True

    def send_mail(self, smtp, recipients, alert):
        self.cluster.mails.append("{:.3f} {}".format(self.clock.time, alert.subject))

    def http_get(self, url, timeout_s, verify_tls):
        self.clock.wait(0.02)
        return self.cluster.health_page()


class VirtualMetadata(asfc.MetadataService):
    """A metadata service in memory; each exchange takes a moment of virtual time."""

    def __init__(self, cluster):
        self.cluster, self.records = cluster, {}
        self.away = False

    def exchange(self, writes=()):
        self.cluster.clock.wait(0.004)
        if self.away:
            self.cluster.clock.wait(1.0)
            raise asfc.MetadataError("the virtual metadata service is away")
        exchange = self.apply(writes)
        self.cluster.clock.wait(0.004)
        return exchange

    def apply(self, writes):
        """Make the writes at this moment, and read all records."""
        won = tuple(self.write_one(write) for write in writes)
        return asfc.Exchange(won, dict(self.records))

    def write_one(self, write):
        found = self.records.get(write.name)
        if (found.version if found else None) != write.expected_version:
            return False
        self.records[write.name] = asfc.Record((write.expected_version or 0) + 1, write.value)
        return True

    def legacy_heartbeat(self):
        return None

    def describe(self):
        return "virtual metadata"


class VirtualJobTable:
    """Airflow's job table: each scheduler that lives and is not hung beats every 5 s there, by its
    own host's wall clock; its row appears some seconds after its process."""
    ROW_AFTER_S = 4.0

    def __init__(self, cluster):
        self.cluster, self.wall_s, self.rows, self.seen = cluster, {}, {}, {}
        self.away = False

    def describe(self):
        return "virtual database"

    def scheduler_jobs(self):
        self.cluster.clock.wait(0.01)
        if self.away:
            raise asfc.MetadataError("the virtual database is away")
        now = self.cluster.clock.time
        for name, model in self.cluster.models.items():
            for main in model.mains:
                began = self.seen.setdefault((name, main), now)
                if now >= began + self.ROW_AFTER_S and name not in self.cluster.hung:
                    text = "{:012.0f}".format(now // 5 * 5 + self.wall_s.get(name, 0.0))
                    number, _ = self.rows.get((name, main), (len(self.rows) + 1, ""))
                    self.rows[name, main] = number, text
        jobs = [asfc.SchedulerJob(number, name + ".example.org", "running", text)
                for (name, _), (number, text) in self.rows.items()]
        return sorted(jobs, key=lambda job: job.heartbeat, reverse=True)


class VirtualCluster:
    """Hosts a, b and c with a controller each, driven through virtual time by the controller's own
    code; the nodes are NodeModels, which are held against the real script in tests of their own."""
    START_S = 2.0   # of the scheduler itself
    base_url = ""
    watchdog_s = 0.0   # of the service manager that each controller has; 0: it has none

    def __init__(self, seed, names=("a", "b", "c"), **keys):
        self.random = random.Random(seed)
        self.clock = VirtualClock()
        self.metadata = VirtualMetadata(self)
        self.models = {name: NodeModel(lambda: self.clock.time) for name in names}
        for name, model in self.models.items():
            model.directory_id = "lock-" + name
        self.broken, self.cut, self.mails, self.lines = set(), set(), [], []
        self.hung, self.heartbeat, self.job_table = set(), "never", None
        self.starts = self.most_alive = 0
        self.worlds, self.controllers, self.runs = {}, {}, {}
        self.keys = dict({"scheduler_nodes_in_cluster": ", ".join(names),
                          "alert_to_email": "ops@example.org"}, **keys)

    def start_controller(self, name):
        """A new run of the controller of a node, as verb_start makes it."""
        world = self.worlds[name] = VirtualWorld(self, name)
        if self.watchdog_s:
            world.notify_socket, world.watchdog_s = "@virtual", self.watchdog_s
        self.configure(name)
        configuration = asfc.LiveConfiguration(
            lambda: asfc.Configuration.load(world, "/airflow.cfg", need_own_name=True))
        log = logging.Logger("virtual " + name, logging.INFO)
        log.addHandler(VirtualLog(self, name))
        self.controllers[name] = controller = asfc.FailoverController(
            world, configuration, self.metadata, asfc.Nodes(world, configuration), "lock-" + name,
            lambda: self.models[name].gate, log, jobs=self.job_table)
        self.runs[name] = self.clock.spawn(world, controller.run, "controller")

    def configure(self, name, **keys):
        """Write the configuration of a node, with these keys beside the cluster's."""
        keys = dict(self.keys, **keys)
        self.worlds[name].airflow_cfg = "\n".join(
            ["[webserver]", "base_url = " + self.base_url, "[scheduler_failover]"]
            + ["{} = {}".format(*item) for item in sorted(keys.items())])

    def kill_controller(self, name):
        for thread in list(self.worlds[name].threads.values()) + [self.runs[name]]:
            self.clock.kill(thread)

    def stop_controller(self, name):
        self.worlds[name].stop_handler("SIGTERM")

    def kill_scheduler(self, remnants=0):
        for model in self.models.values():
            if model.mains:
                model.die(remnants)

    def deliver(self, sender, commands):
        """The commands arrive, are answered one after the other, and the replies come back."""
        began = self.clock.time
        self.clock.wait(0.05)
        results = [self.answer(sender, command) for command in commands]
        limits = [command.timeout_s for command, result in zip(commands, results) if result.problem]
        self.clock.wait(max(limits) - (self.clock.time - began) if limits else 0.05)
        return results

    def answer(self, sender, command):
        request = command.request
        if request.node in self.cut and request.node != sender:
            return asfc.CommandResult(None, "", "", "no answer in time")
        model = self.models[request.node]
        text = model.answer(request)
        if request.verb == "start" and model.command:
            self.starts += 1
            become = functools.partial(self.become_scheduler, request.node, model.command)
            self.clock.spawn(None, become, "start")
        return asfc.CommandResult(0, text, "")

    def become_scheduler(self, name, command):
        """A start command either becomes a scheduler after a while, or fails."""
        self.clock.wait(self.START_S)
        model = self.models[name]
        if model.command is not command:
            return
        if name in self.broken:
            model.fail("airflow: broken")
            return
        model.appear()
        self.lose_database()
        alive = sum(len(model.mains) for model in self.models.values())
        self.most_alive = max(self.most_alive, alive)

    def lose_database(self, away=None):
        """Some seconds after Airflow 2 and 3 have lost their database, or could not reach it when
        they came up, the scheduler ends."""
        if away is not None:
            self.job_table.away = away

        def end():
            if self.job_table.away:
                self.kill_scheduler()
        if self.job_table and self.job_table.away:
            self.clock.call(self.clock.time + 4.0, end)

    def health_page(self):
        """Airflow's health page: a scheduler that lives and is not hung beats every 5 s."""
        if self.home() and self.home() not in self.hung:
            self.heartbeat = "{:.0f}".format(self.clock.time // 5 * 5)
        return 200, health_page(self.heartbeat)

    def home(self):
        """The nodes on which schedulers live."""
        return "".join(name for name in sorted(self.models) for _ in self.models[name].mains)

    def active(self):
        return "".join(name for name in sorted(self.controllers)
                       if not self.runs[name].done and self.controllers[name].lease.active)


class VirtualLog(logging.Handler):
    """Keeps a controller's lines with their virtual time."""

    def __init__(self, cluster, name):
        super().__init__()
        self.cluster, self.node = cluster, name

    def emit(self, record):
        self.cluster.lines.append("{:9.3f} {} {}".format(
            self.cluster.clock.time, self.node, record.getMessage()))


def an_hour(seed, seconds=4600):
    """An hour with a fault every few minutes. Returns the cluster and what held after each."""
    cluster = VirtualCluster(seed)
    seen = []

    def look(what, seconds):
        cluster.clock.wait(seconds)
        seen.append((what, cluster.home(), cluster.active()))

    def play():
        for name in cluster.models:
            cluster.start_controller(name)
        look("three start at once", 120)
        first = cluster.active()
        cluster.kill_scheduler(remnants=3)
        look("the scheduler dies and leaves remnants", 60)
        cluster.kill_controller(first)
        look("the active controller is killed", 60)
        cluster.start_controller(first)
        look("and started again, as a standby", 120)
        cluster.broken.add("a")
        cluster.kill_scheduler()
        look("the scheduler dies where none can be started", 120)
        cluster.broken.clear()
        cluster.stop_controller(cluster.active())
        look("the active controller is stopped", 60)
        cluster.cut.update("abc")
        cluster.kill_scheduler()
        look("the scheduler dies while no node can reach another", 120)
        cluster.cut.clear()
        look("the nodes can reach each other again", 60)
        cluster.metadata.away = True
        look("the metadata is away", 60)
        cluster.metadata.away = False
        look("the metadata is back", 120)
        look("a quiet rest of the hour", seconds - cluster.clock.time)

    cluster.clock.drive(play)
    return cluster, seen


class VirtualHourTest(unittest.TestCase):
    def test_the_controllers_go_through_an_hour_of_faults_in_seconds_and_never_run_two(self):
        began = time.process_time()   # what other processes take is not counted
        cluster, seen = an_hour(seed=1)
        self.assertLess(time.process_time() - began, 8, "an hour of virtual time passes in 8 s")
        homes = [(what, home, len(active)) for what, home, active in seen]
        self.assertEqual(cluster.most_alive, 1)
        for what, home, active in homes:
            with self.subTest(what):
                silent = what in ("the scheduler dies while no node can reach another",)
                self.assertLessEqual(active, 1)
                self.assertEqual(len(home), 0 if silent else 1, "\n".join(cluster.lines))
        self.assertEqual(homes[4][1], "b")
        self.assertEqual(seen[-1][2], seen[-3][2], "an outage of the metadata changes no role")
        self.assertEqual(cluster.clock.time, 4600.0)

    def test_what_came_back_at_the_last_moment_is_listed_again_though_metadata_fails_then(self):
        cluster = VirtualCluster(seed=3)
        metadata, write_one = cluster.metadata, cluster.metadata.write_one

        def thaw_just_before(write):
            if write.name == "cluster" and "a" not in asfc.ClusterRecord.from_text(
                    write.value).possible_nodes:
                found = metadata.records["node/a"]
                metadata.records["node/a"] = found._replace(version=found.version + 1)
                metadata.write_one = write_one
                cluster.clock.call(cluster.clock.time + 0.006, lambda: setattr(
                    metadata, "away", True))
            return write_one(write)

        def possible():
            return asfc.cluster_record(metadata.records).possible_nodes

        def play():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(120)
            self.assertEqual(cluster.home(), "a")
            cluster.kill_controller("a")   # or frozen, and thawed for the one write only
            cluster.cut.add("a")
            metadata.write_one = thaw_just_before
            while not metadata.away:
                cluster.clock.wait(0.002)
            self.assertNotIn("a", possible())
            cluster.clock.wait(9)          # so long that the record is not fresh any more
            metadata.away = False
            cluster.clock.wait(15)
            self.assertIn("a", possible())
            self.assertEqual((cluster.home(), cluster.starts), ("a", 1))
        cluster.clock.drive(play)

    def test_a_term_that_could_not_be_raised_for_a_while_is_raised_when_metadata_is_back(self):
        cluster = VirtualCluster(seed=3)
        metadata = cluster.metadata

        def fell_back():
            return any(controller.lease.active and controller.lease.fell_back
                       for controller in cluster.controllers.values())

        def play():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(120)
            backup = dict(metadata.records)
            cluster.clock.wait(30)
            metadata.records = backup
            while not fell_back():
                cluster.clock.wait(0.01)
            metadata.away = True
            cluster.clock.wait(15)
            metadata.away = False
            cluster.clock.wait(30)
            self.assertGreater(asfc.cluster_record(metadata.records).term, 1)
            self.assertEqual((fell_back(), cluster.home(), cluster.starts), (False, "a", 1))
        cluster.clock.drive(play)
        self.assertGreater("".join(cluster.lines).count("the term could not be raised"), 4)

    def test_a_scheduler_of_another_user_is_warned_of_once_and_left_alone(self):
        cluster = VirtualCluster(seed=3)
        strangers = [asfc.Process(900 + i, 5, 1, 900, 33, "airflow scheduler") for i in range(2)]

        def play():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.models["b"].foreign = strangers[:1]
            cluster.clock.wait(120)
            cluster.models["b"].foreign = strangers
            cluster.clock.wait(120)
            self.assertEqual(len(cluster.home()), 1)
        cluster.clock.drive(play)
        warned = [line for line in cluster.lines if "another user" in line]
        self.assertEqual(len(warned), 2, warned)
        for pid, line in zip((900, 901), warned):
            self.assertIn("runs on b (pid {}, uid 33); it is not counted and not stopped".format(
                pid), line)

    @staticmethod
    def cluster_with(source, **keys):
        """A cluster whose schedulers' heartbeats are told by the page or by the table."""
        cluster = VirtualCluster(3, **keys)
        if source == "page":
            cluster.base_url = "http://page"
        else:
            cluster.job_table = VirtualJobTable(cluster)
            cluster.job_table.wall_s["a"] = 1e6
        return cluster

    def test_a_healthy_scheduler_is_never_taken_for_hung_however_long_the_poll_is(self):
        for source, poll_s in itertools.product(("page", "table"), (10, 60)):
            cluster = self.cluster_with(source, poll_frequency=poll_s)

            def play(cluster=cluster):
                for name in cluster.models:
                    cluster.start_controller(name)
                cluster.clock.wait(200)
                if cluster.job_table:
                    cluster.job_table.wall_s["a"] -= 3600.0
                cluster.kill_controller(cluster.active())
                cluster.clock.wait(600)
            cluster.clock.drive(play)
            self.assertEqual((source, poll_s, cluster.starts, cluster.home()),
                             (source, poll_s, 1, "a"))

    def test_a_hung_scheduler_is_replaced_within_the_time_of_the_table(self):
        for source in ("page", "table"):
            cluster = self.cluster_with(source)

            def play(cluster=cluster):
                for name in cluster.models:
                    cluster.start_controller(name)
                cluster.clock.wait(300)
                hung = cluster.models["a"].mains[0]
                cluster.hung.add("a")
                began = cluster.clock.time
                while hung in cluster.models["a"].mains:
                    cluster.clock.wait(0.1)
                cluster.hung.clear()
                while not cluster.home():
                    cluster.clock.wait(0.1)
                took_s = cluster.clock.time - began
                cluster.clock.wait(300)
                return took_s
            took_s = cluster.clock.drive(play)
            # Airflow's threshold, one heartbeat, two looks at it, one poll; then stop and start.
            self.assertLess(took_s, 30 + 5 + 10 + 10 + 5 + cluster.START_S, source)
            self.assertEqual((cluster.starts, cluster.most_alive), (2, 1), source)
            self.assertTrue(any("it is hung" in line for line in cluster.lines))

    def test_a_scheduler_that_hangs_before_its_first_heartbeat_is_replaced_too(self):
        cluster = self.cluster_with("table")
        cluster.hung.add("a")

        def play():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(600)
        cluster.clock.drive(play)
        self.assertEqual((cluster.home(), cluster.most_alive), ("b", 1), cluster.lines[-20:])
        self.assertEqual(cluster.starts, 2, "it is not tried again where it hung at its birth")

    def outages(self, lengths, metadata_too, pause_s=90.0, **keys):
        """Outages of Airflow's database, with the metadata in it or elsewhere; after each one the
        scheduler has to run again, at home, within the time of the table."""
        cluster = self.cluster_with("table", **keys)
        metadata, record = cluster.metadata, None

        def play():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(120)
            for length_s in lengths:
                cluster.lose_database(True)
                metadata.away = metadata_too
                cluster.clock.wait(length_s)
                metadata.away = False
                cluster.lose_database(False)
                cluster.clock.wait(23 + 2 * cluster.START_S + 6)
                self.assertEqual(cluster.home(), "a", "\n".join(cluster.lines[-30:]))
                cluster.clock.wait(pause_s)
            return asfc.cluster_record(metadata.records)
        record = cluster.clock.drive(play)
        self.assertEqual((record.failed, cluster.most_alive), ((), 1))
        self.assertEqual(len(record.starts), 1, "the first start alone counts for the budget")
        return cluster

    def test_schedulers_that_end_because_the_database_blinks_are_held_against_no_node(self):
        cluster = self.outages([30.0] * 4 + [6.0, 200.0], metadata_too=True)
        self.assertEqual(cluster.starts, 7)
        lines = "\n".join(cluster.lines)
        self.assertIn("Airflow's database did not answer lately, so this start is not counted",
                      lines)
        self.assertNotIn("it is hung", lines)
        history = asfc.history_events(cluster.metadata.records)
        self.assertTrue([event for event in history if event.what.startswith(
            "the metadata service did not answer for 2")])

    def test_starts_that_fail_while_the_database_is_away_are_held_against_no_node(self):
        cluster = self.outages([30.0, 30.0, 300.0], metadata_too=False,
                               metadata_service_type="ZookeeperMetadataService")
        self.assertGreater(cluster.starts, 10)
        self.assertIn("Airflow's database did not answer then, so it is not held against the node",
                      "\n".join(cluster.lines))

    def test_metadata_that_is_away_explains_no_death_where_it_is_not_airflows_database(self):
        for kind, counted in (("ZookeeperMetadataService", 2), ("SQLMetadataService", 1)):
            cluster = self.cluster_with("table", metadata_service_type=kind)

            def play(cluster=cluster):
                for name in cluster.models:
                    cluster.start_controller(name)
                cluster.clock.wait(120)
                cluster.metadata.away = True
                cluster.clock.wait(8)
                cluster.kill_scheduler()
                cluster.metadata.away = False
                cluster.clock.wait(60)
                return asfc.cluster_record(cluster.metadata.records)
            self.assertEqual(len(cluster.clock.drive(play).starts), counted, kind)

    def test_a_database_that_is_frozen_is_no_hung_scheduler(self):
        """With `keep` nothing is touched, and log and history speak of the database."""
        cluster = self.cluster_with("table", on_metadata_loss="keep")

        def play():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(120)
            cluster.job_table.away = cluster.metadata.away = True
            cluster.hung.add("a")     # it lives, and can't write its heartbeat
            cluster.clock.wait(60)
            cluster.job_table.away = cluster.metadata.away = False
            cluster.clock.wait(3)
            cluster.hung.clear()
            cluster.clock.wait(120)
        cluster.clock.drive(play)
        self.assertEqual((cluster.home(), cluster.starts), ("a", 1))
        log = "\n".join(cluster.lines)
        for words in ("the metadata service failed: the virtual metadata service is away",
                      "the job table gives no evidence: the virtual database is away"):
            self.assertIn(words, log)
        history = [event.what for event in asfc.history_events(cluster.metadata.records)]
        self.assertIn("the metadata service did not answer for 6", "\n".join(history))
        for words in ("hung", "stop"):
            self.assertNotIn(words, log + "\n".join(history))

    def test_a_node_whose_controller_died_is_not_silent_while_it_answered_the_standbys(self):
        """Its record stands still for W; then it is busy for longer than two queries take."""
        cluster = VirtualCluster(5)

        def play():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(60)
            home = cluster.home()
            cluster.kill_controller(home)
            cluster.clock.wait(28)
            cluster.cut.add(home)
            cluster.clock.wait(22)
            cluster.cut.clear()
            cluster.clock.wait(60)
            return home
        home = cluster.clock.drive(play)
        self.assertEqual((cluster.home(), cluster.starts, cluster.most_alive), (home, 1, 1))

    def test_units_are_asked_about_before_anything_is_promised(self):
        cluster, seen = VirtualCluster(3), []
        cluster.models["a"].mains.append(asfc.Process(70, 7000, 1, 70, 0, VENV))
        self.addCleanup(setattr, asfc.SystemdWatch, "look", asfc.SystemdWatch.look)
        asfc.SystemdWatch.look = lambda watch, mains: seen.append(
            ([main.pid for main in mains], sorted(cluster.metadata.records)))

        def play():
            cluster.start_controller("a")
            cluster.clock.wait(20)
        cluster.clock.drive(play)
        self.assertEqual(seen[0], ([70], []))
        self.assertEqual(seen[-1][0], [70])

    def test_the_same_hour_twice_is_the_same_to_the_byte(self):
        runs = [an_hour(seed=7, seconds=1200) for _ in range(2)]   # the quiet rest is shorter
        texts = [repr((seen, cluster.lines, cluster.mails,
                       sorted(cluster.metadata.records.items()))) for cluster, seen in runs]
        self.assertEqual(texts[0], texts[1])
        self.assertGreater(len(runs[0][0].lines), 50)


###############################################################################
# Lease #######################################################################
###############################################################################


def settings(**changes):
    """What the controller reads of a configuration, with the defaults of protocol.md's Timing."""
    found = argparse.Namespace(
        node_name="a", scheduler_nodes_in_cluster=("a", "b", "c"), poll_frequency=10.0,
        heartbeat_timeout=30.0, heartbeat_interval_s=3.0, acting_window_s=20.0,
        retry_interval_s=1.0, metadata_limit_s=3.0, settle_s=5.0, query_timeout=5.0,
        scheduler_start_timeout=90.0, stop_timeout_s=26.0, scheduler_restart_budget=3,
        scheduler_restart_window=600.0, scheduler_restart_sleep_time=35.0, health_threshold_s=30.0,
        health_urls=(), health_page_verify_tls=True, retry_count_before_alerting=5,
        alert_to_email=("ops@example.org",), alert_email_subject="no scheduler", smtp=None,
        logging_dir="/var/log/asfc", logging_file_name="asfc.log", state_dir="~/.asfc",
        state_dir_here="/home/airflow/.asfc", on_metadata_loss="stop", fence_grace_time=5.0,
        fence_command="", fence_timeout=60.0, on_event_command="", on_event_timeout=30.0,
        promise_s=29.5, scheduler_user="", airflow_scheduler_start_command="",
        airflow_scheduler_stop_command="", reminder_interval=86400.0)
    for name, value in changes.items():
        setattr(found, name, value)
    return found


class LeaseBench:
    """Leases of several controllers over one store, on a clock that is set by hand."""
    LEGACY_PLACE = asfc.MetadataService.LEGACY_PLACE

    def __init__(self):
        self.time, self.ids = 1000.0, 0
        self.records, self.fail, self.late = {}, "", []
        self.legacy = None
        self.log = logging.getLogger("asfc-test-lease")
        self.log.addHandler(logging.NullHandler())
        self.log.propagate = False

    # the door
    def now(self):
        return self.time

    def utc_text(self):
        return "at {:g}".format(self.time)

    def random_id(self):
        self.ids += 1
        return "id{}".format(self.ids)

    def mutex(self):
        return threading.Lock()

    def wake(self, name):
        pass

    # the metadata service
    def exchange(self, writes=()):
        if self.fail == "before":
            raise asfc.MetadataError("away")
        won = tuple(self.apply(write) for write in writes)
        if self.fail == "after":
            raise asfc.MetadataError("the reply was lost")
        return asfc.Exchange(won, dict(self.records))

    def apply(self, write):
        found = self.records.get(write.name)
        if (found.version if found else None) != write.expected_version:
            return False
        self.records[write.name] = asfc.Record((write.expected_version or 0) + 1, write.value)
        return True

    def read_all(self):
        return self.exchange().records

    def legacy_heartbeat(self):
        return self.legacy

    # driving
    def lease(self, node, lock_id=None, gate=None, **changes):
        return asfc.Lease(self, settings(node_name=node, **changes), self,
                          lock_id or "lock-" + node, lambda: gate, self.log)

    def cluster(self):
        return asfc.ClusterRecord.from_text(self.records["cluster"].value)

    def put(self, record):
        found = self.records.get("cluster")
        self.records["cluster"] = asfc.Record((found.version if found else 0) + 1, record.to_text())


class LeaseTest(unittest.TestCase):
    def setUp(self):
        self.bench = LeaseBench()

    def active(self, node="a", **changes):
        lease = self.bench.lease(node, **changes)
        lease.beat()
        self.assertTrue(lease.active)
        return lease

    @staticmethod
    def look(standby):
        """So many looks at the lease that an outage lies far behind."""
        for _ in range(asfc.Lease.CALM_READS):
            standby.beat()

    def test_the_first_controller_makes_the_record_and_every_node_is_possible(self):
        self.active()
        record = self.bench.cluster()
        self.assertEqual((record.holder, record.term, record.possible_nodes, record.assigned),
                         ("a", 1, ("a", "b", "c"), False))

    def test_a_controller_that_makes_the_record_exceeds_what_its_own_gate_holds(self):
        lease = self.bench.lease("a", gate=asfc.Gate(asfc.Pair(7, 9), "x", "old-cluster", "a"))
        for seconds, expected in ((0, False), (29.9, False), (0.2, True)):
            self.bench.time += seconds
            lease.beat()
            self.assertEqual(lease.active, expected, "the last holder may still act")
        record = self.bench.cluster()
        self.assertEqual((record.cluster, record.term, record.move), ("old-cluster", 8, 9))

    def test_of_many_that_claim_at_once_one_wins(self):
        leases = [self.bench.lease(node) for node in "abcdefghij"]
        for lease in leases:
            lease._take_in({})          # all have seen that there is no record
        for lease in leases:
            lease._send_claim("test")
        self.assertEqual([lease.active for lease in leases].count(True), 1)
        self.assertEqual(self.bench.cluster().term, 1)

    def test_acting_ends_two_thirds_of_h_after_the_last_confirmed_write_was_sent(self):
        lease = self.active()
        self.bench.fail = "before"
        for seconds, expected in ((19.9, True), (0.2, False)):
            self.bench.time += seconds
            lease.beat()
            self.assertEqual(lease.may_act(), expected)

    def test_a_standby_claims_only_after_the_holders_own_h_without_a_change(self):
        self.active()
        standby = self.bench.lease("b", heartbeat_timeout=10.0)   # a promised 30
        standby.beat()
        for seconds, expected in ((15, False), (14.9, False), (0.1, True)):
            self.bench.time += seconds
            standby.beat()
            self.assertEqual(standby.active, expected)
        self.assertEqual(self.bench.cluster().term, 2)

    def test_a_heartbeat_that_moves_keeps_the_standby_away(self):
        holder, standby = self.active(), self.bench.lease("b")
        for _ in range(40):
            self.bench.time += 3
            holder.expect_work(10)
            holder.beat()
            standby.beat()
            self.assertFalse(standby.active)
        self.assertTrue(holder.may_act())

    def test_two_never_act_at_the_same_time_when_the_holder_is_frozen(self):
        holder, standby = self.active(), self.bench.lease("b")
        self.look(standby)
        self.bench.time += 30
        standby.beat()
        self.assertTrue(standby.may_act())
        self.assertFalse(holder.may_act())
        holder.beat()
        self.assertFalse(holder.active)
        self.assertEqual(self.bench.cluster().holder, "b")

    def test_a_lease_that_was_given_up_is_taken_at_once(self):
        holder, standby = self.active(), self.bench.lease("b")
        standby.beat()
        holder.leave()
        self.assertIsNone(holder.beat())
        standby.beat()
        self.assertTrue(standby.active)

    def test_a_cleared_record_is_taken_only_after_h_and_keeps_its_term(self):
        holder, standby = self.active(), self.bench.lease("b")
        standby.beat()
        self.bench.put(self.bench.cluster().emptied())
        holder.beat()
        self.assertFalse(holder.active)
        for seconds, expected in ((0, False), (29.9, False), (0.2, True)):
            self.bench.time += seconds
            standby.beat()
            self.assertEqual(standby.active, expected)
        self.assertEqual((self.bench.cluster().term, self.bench.cluster().possible_nodes),
                         (2, ("a", "b", "c")))

    def test_a_record_that_vanished_is_made_anew_only_after_h(self):
        self.active()
        standby = self.bench.lease("b")
        standby.beat()
        self.bench.records.clear()
        for seconds, expected in ((3, False), (29.9, False), (0.2, True)):
            self.bench.time += seconds
            standby.beat()
            self.assertEqual(standby.active, expected)

    def test_another_record_that_has_come_to_the_version_that_was_known_is_given_h(self):
        """After a restore and a takeover; the holder before was frozen all the time."""
        first = self.active("a")
        self.bench.time += 40
        found = self.bench.records["cluster"]
        record = self.bench.cluster()._replace(holder="b", instance="other", term=2)
        self.bench.records["cluster"] = found._replace(value=record.to_text())
        for seconds, expected in ((0, False), (29, False), (2, True)):
            self.bench.time += seconds
            self.look(first)
            self.assertEqual(first.active, expected)

    def test_a_record_that_was_restored_from_a_backup_is_taken_only_after_h(self):
        for name in ("a", ""):   # one that names this node, and one that nobody holds
            with self.subTest(holder=name):
                self.bench = LeaseBench()
                first = self.active("a")
                if not name:
                    first.release()
                backup = self.bench.records["cluster"]
                first.active = False
                self.bench.put(self.bench.cluster()._replace(holder="b", instance="other", term=2))
                first.beat()
                self.bench.records["cluster"] = backup
                first.beat()
                self.assertFalse(first.active, "b may still act, and the record can't tell of it")
                self.bench.time += 29
                self.look(first)
                self.assertFalse(first.active)
                self.bench.time += 2
                self.look(first)
                self.assertTrue(first.active)
                self.assertGreater(self.bench.cluster().term, 2)

    def test_who_gives_the_lease_up_acts_no_more_even_if_the_reply_is_lost(self):
        holder = self.active("a")
        holder.leave()
        self.assertFalse(holder.may_act())
        self.bench.fail = "after"
        holder.beat()
        self.assertFalse(holder.may_act())
        self.assertEqual(self.bench.cluster().holder, "")

    def test_a_restarted_controller_takes_its_own_lease_back_with_a_new_term(self):
        cases = (("a", "lock-a", True), ("a", "another-lock", False), ("b", "lock-a", False))
        for node, lock_id, expected in cases:
            self.bench.records.clear()
            self.active()
            again = self.bench.lease(node, lock_id)
            again.beat()
            self.assertEqual((again.active, self.bench.cluster().term), (expected, 1 + expected))

    def test_a_record_that_names_this_instance_makes_nobody_active(self):
        lease = self.bench.lease("a", lock_id="other")
        self.bench.put(asfc.ClusterRecord("c", 5, holder="a", instance=lease.instance, lock_id="x"))
        lease.beat()
        self.assertFalse(lease.active)

    def test_a_claim_whose_reply_was_lost_counts_from_before_it_was_sent(self):
        lease = self.bench.lease("a")
        self.bench.fail = "after"
        lease.beat()                  # the read fails: nothing is known
        self.bench.fail = ""
        lease._take_in({})
        self.bench.fail = "after"
        with self.assertRaises(asfc.MetadataError):
            lease._send_claim("test")
        self.assertFalse(lease.active)
        self.bench.fail = ""
        self.bench.time += 5
        lease._take_in(self.bench.read_all())
        self.assertTrue(lease.active)
        self.assertEqual(self.bench.cluster().term, 1)
        self.bench.fail = "before"
        self.bench.time += 15.1
        self.assertFalse(lease.may_act())

    def test_a_claim_that_arrives_after_it_was_looked_for_counts_from_when_it_was_first_sent(self):
        lease = self.bench.lease("a")
        lease._take_in({})
        self.bench.fail = "before"             # the first claim is under way for a while
        with self.assertRaises(asfc.MetadataError):
            lease._send_claim("test")
        first = lease._first_record()._replace(term=1, holder="a", instance=lease.instance)
        self.bench.fail = ""
        lease._take_in({})                     # it has not arrived yet
        self.bench.put(first)                  # now it has
        self.bench.time += 19
        lease._send_claim("again")             # loses against the first one
        self.assertTrue(lease.active)
        self.assertTrue(lease.may_act())
        self.bench.time += 1.1
        self.assertFalse(lease.may_act())

    def test_after_a_long_pause_the_record_is_read_before_it_is_written(self):
        for seconds, holder in ((19, "a"), (21, "b")):
            with self.subTest(seconds=seconds):
                self.setUp()
                lease = self.active()
                found = self.bench.records["cluster"]
                other = self.bench.cluster()._replace(term=7, holder="b", instance="b")
                # After a restore: the version is the one that it knows, the record is not.
                self.bench.records["cluster"] = found._replace(value=other.to_text())
                self.bench.time += seconds
                lease.beat()
                self.assertEqual((self.bench.cluster().holder, lease.active),
                                 (holder, holder == "a"))

    def test_a_renewal_whose_reply_was_lost_is_looked_for_before_the_next(self):
        lease = self.active()
        self.bench.fail = "after"
        self.bench.time += 3
        self.assertEqual(lease.beat(), 1.0)
        self.bench.fail = ""
        self.bench.time += 1
        lease.beat()
        self.assertTrue(lease.may_act())
        self.assertEqual(self.bench.records["cluster"].version, 3)

    def test_after_an_outage_the_holder_has_time_to_come_back_first(self):
        holder, standby = self.active(), self.bench.lease("b")
        standby.beat()
        holder.expect_work(100)
        self.bench.fail = "before"
        for _ in range(60):
            self.bench.time += 1
            holder.beat()
            standby.beat()
        self.bench.fail = ""
        standby.beat()
        self.assertFalse(standby.active)
        holder.beat()
        self.assertTrue(holder.may_act())
        self.assertEqual(self.bench.cluster().term, 1)

    def test_a_metadata_service_that_fails_now_and_then_does_not_keep_a_dead_holder(self):
        self.active()
        standby = self.bench.lease("b")
        for beat in range(40):
            self.bench.fail = "before" if beat % 3 == 2 else ""
            standby.beat()
            self.bench.time += 3
        self.assertTrue(standby.active)

    def test_a_main_loop_that_is_overdue_by_h_stops_the_heartbeat(self):
        lease = self.active()
        lease.expect_work(10)
        for seconds, moves in ((39, True), (2, False)):
            self.bench.time += seconds
            version = self.bench.records["cluster"].version
            lease.beat()
            self.assertEqual(self.bench.records["cluster"].version > version, moves)

    def test_a_command_never_carries_a_successors_pair(self):
        holder, standby = self.active(), self.bench.lease("b")
        decided_on = holder.record
        self.assertEqual(holder.stamp(decided_on).pair, asfc.Pair(1, 0))
        self.look(standby)
        self.bench.time += 30
        standby.beat()
        holder.beat()                  # the holder reads its successor's record
        self.assertEqual(holder.record.holder, "b")
        self.assertIsNone(holder.stamp(holder.record))
        self.assertEqual(holder.stamp(decided_on).pair, asfc.Pair(1, 0))

    def test_a_controller_with_another_state_directory_never_becomes_active(self):
        self.active().release()
        other = self.bench.lease("b", state_dir="/var/lib/asfc")
        other.beat()
        self.bench.time += 60
        other.beat()
        self.assertFalse(other.active)
        self.bench.put(self.bench.cluster().emptied())   # clear_metadata makes way for a new one
        other.beat()
        self.bench.time += 31
        other.beat()
        self.assertTrue(other.active)

    def test_a_newer_format_is_never_overwritten(self):
        self.bench.put(asfc.ClusterRecord("c"))
        text = self.bench.records["cluster"].value.replace('"format": 2', '"format": 3')
        self.bench.records["cluster"] = asfc.Record(3, text)
        lease = self.bench.lease("a")
        for _ in range(50):
            lease.beat()
            self.bench.time += 3
        self.assertFalse(lease.active)
        self.assertEqual(self.bench.records["cluster"], asfc.Record(3, text))

    def test_a_verbs_write_costs_the_holder_nothing(self):
        lease = self.active()
        self.bench.put(self.bench.cluster()._replace(starts=(asfc.StartMade("b", 1.0),)))
        lease.beat()
        self.assertTrue(lease.active)
        self.assertEqual(self.bench.cluster().starts, (asfc.StartMade("b", 1.0),))

    def test_an_update_is_made_again_on_what_a_verb_wrote_between(self):
        lease = self.active()
        self.bench.put(self.bench.cluster()._replace(heartbeat_at="by a verb"))
        self.assertTrue(lease.update(lambda record: record._replace(move=record.move + 1)))
        self.assertEqual(self.bench.cluster().move, 1)

    def test_the_old_controllers_heartbeat_must_stand_still_before_the_first_term(self):
        self.bench.legacy = "2026-01-01 00:00:00"
        lease = self.bench.lease("a")
        for seconds, expected in ((0, False), (24.9, False), (0.2, True)):
            self.bench.time += seconds
            lease.beat()
            self.assertEqual(lease.active, expected)

    def test_an_old_controller_whose_heartbeat_moves_ends_this_one(self):
        self.bench.legacy = "2026-01-01 00:00:00"
        lease = self.bench.lease("a")
        lease.beat()
        self.bench.legacy = "2026-01-01 00:00:10"
        with self.assertRaisesRegex(asfc.RefusedError, "Stop it on every node"):
            lease.beat()

    def test_an_own_lease_is_taken_back_without_watching_the_old_controller(self):
        self.active()
        self.bench.legacy = "2026-01-01 00:00:00"
        again = self.bench.lease("a")
        again.beat()
        self.assertTrue(again.active)


###############################################################################
# Node records and this node ##################################################
###############################################################################


class ControllerBench(LeaseBench):
    """Leases with their fence and node records, over one store, on a clock set by hand."""

    def __init__(self):
        super().__init__()
        self.files, self.sent, self.list, self.gone = {}, [], [], set()

    def boot_clock(self):
        return "boot", self.time

    def read_text(self, path):
        return self.files.get(path)

    def write_text(self, path, text, durable=True):
        self.files[path] = text

    def remove_file(self, path):
        self.files.pop(path, None)

    def host_names(self):
        return ("host",)

    def processes(self):
        return list(self.list)

    def signal_process(self, process, number):
        self.sent.append((process.pid, number))
        return process.pid not in self.gone

    def controller(self, node, no_promise="", state_dir_id=None, **changes):
        """A lease with records and fence; its fence's file is of its own."""
        changes.setdefault("state_dir_here", "/state-" + node)
        configuration = settings(node_name=node, **changes)
        lease = asfc.Lease(self, configuration, self, state_dir_id or "lock-" + node,
                           lambda: None, self.log)
        fence = asfc.SelfFence(self, configuration, 1000)
        lease.nodes = asfc.NodeRecords(self, configuration, lease.instance,
                                       state_dir_id or "lock-" + node, fence, no_promise, self.log)
        return lease

    def node(self, name):
        found = self.records.get("node/" + name)
        return asfc.NodeRecord.from_text(found.value) if found else None


class NodeRecordsTest(unittest.TestCase):
    def setUp(self):
        self.bench = ControllerBench()

    def test_each_controller_writes_its_own_record_with_its_promise_at_every_beat(self):
        a, b = self.bench.controller("a"), self.bench.controller("b", fence_grace_time=9.0,
                                                                 promise_s=33.5)
        for _ in range(3):
            a.beat(), b.beat()
            self.bench.time += 3
        self.assertEqual((self.bench.node("a").promise_s, self.bench.node("b").promise_s),
                         (29.5, 33.5))
        self.assertEqual(a.nodes.views["b"].record.instance, b.instance)
        self.assertEqual(self.bench.records["node/a"].version, self.bench.node("a").sequence + 1)
        self.assertEqual(a.nodes.fence.deadline, self.bench.time - 3 + 20)
        self.assertEqual(self.bench.files["/state-a/fence"].split()[1:],
                         ["boot", "{:.0f}".format(100 * a.nodes.fence.deadline), "end"])

    def test_a_damaged_record_is_no_evidence_and_stops_nobodys_heartbeat(self):
        a, b = self.bench.controller("a"), self.bench.controller("b")
        for _ in range(2):
            a.beat(), b.beat()
            self.bench.time += 3
        sound, version = json.loads(self.bench.records["node/b"].value), 100
        wrong = {"settings": (None, "x", [1], {"heartbeat_timeout": "x"}), "host_names": ([1], 5),
                 "promise_s": (0, -1.0, float("nan"), float("inf"), "x"), "state": ("asleep", 1),
                 "fenced": (5, [1]), "node": (None, 7), "version": (2,), "mains": (1, [[1]]),
                 "gate": (1, [[1], 2]), "format": (0, None)}
        for field, value in [(name, value) for name in wrong for value in wrong[name]]:
            with self.subTest(field, value=value):
                version += 1
                self.bench.records["node/b"] = asfc.Record(
                    version, json.dumps(dict(sound, **{field: value})))
                beats = self.bench.records[asfc.CLUSTER].version
                a.beat()
                self.assertEqual(self.bench.records[asfc.CLUSTER].version, beats + 1)
                view = a.nodes.views["b"]
                self.assertEqual((view.version, view.record.instance, view.record.promise_s),
                                 (version, "", None))

    def test_nothing_is_promised_while_paused_with_keep_or_without_the_means(self):
        cases = (({"on_metadata_loss": "keep"}, "keep"),
                 ({"no_promise": "no rights"}, "no rights"), ({}, ""))
        for node, (changes, words) in zip("abc", cases):
            lease = self.bench.controller(node, **changes)
            lease.beat()
            lease.beat()
            record = self.bench.node(node)
            self.assertEqual(record.promise_s is None, bool(words))
            self.assertIn(words, record.no_promise)
            self.assertEqual(lease.nodes.fence.deadline is None, bool(words))

    def test_a_pause_takes_the_promise_back_and_the_fence_goes_on_until_that_is_confirmed(self):
        lease = self.bench.controller("a")
        lease.beat()
        self.bench.put(self.bench.cluster()._replace(paused="by op"))
        self.bench.fail = "before"
        self.bench.time += 3
        lease.beat()
        self.assertIsNotNone(lease.nodes.fence.deadline)
        self.bench.fail = ""
        lease.beat()
        lease.beat()
        self.assertIsNone(self.bench.node("a").promise_s)
        self.assertIsNone(lease.nodes.fence.deadline)
        self.assertNotIn("/state-a/fence", self.bench.files)

    def test_an_orderly_end_takes_the_promise_back_first_however_long_that_takes(self):
        lease = self.bench.controller("a")
        lease.beat()
        lease.beat()
        lease.leave()
        self.bench.fail = "before"
        for _ in range(5):
            self.bench.time += 1
            self.assertEqual(lease.beat(), 1.0)
        self.bench.fail = ""
        self.assertIsNone(lease.beat())
        self.assertEqual((self.bench.node("a").promise_s, self.bench.cluster().holder), (None, ""))

    def test_an_end_without_metadata_comes_when_the_node_has_fenced_itself(self):
        lease = self.bench.controller("a")
        lease.beat()
        lease.beat()
        lease.leave()
        self.bench.fail = "before"
        self.bench.time += 25
        self.assertEqual(lease.beat(), 1.0)
        lease.nodes.fence.clean = True
        self.assertIsNone(lease.beat())

    def test_a_passed_deadline_is_dealt_with_before_the_record_is_written_again(self):
        lease = self.bench.controller("a")
        lease.beat()
        lease.beat()
        version = self.bench.records["node/a"].version
        self.bench.time += 21
        lease.expect_work(100)
        lease.beat()
        self.assertEqual(self.bench.records["node/a"].version, version)
        lease.nodes.fence.clean, lease.nodes.fence.clean_since = True, self.bench.time
        lease.beat()
        self.assertEqual(self.bench.records["node/a"].version, version)
        # Nor before the gate was raised to what was read since then.
        lease.nodes.raised_at = self.bench.time + 1
        lease.beat()
        self.assertEqual(self.bench.records["node/a"].version, version + 1)

    def test_a_thawed_controller_writes_only_where_its_node_is_still_possible(self):
        for possible, survives in ((("a",), True), (("b",), False), ((), True)):
            self.setUp()
            lease = self.bench.controller("a")
            lease.beat()
            lease.beat()
            lease.nodes.fence.step()
            self.bench.time += 100
            self.bench.put(self.bench.cluster()._replace(possible_nodes=possible))
            lease.nodes.fence.step()
            lease.expect_work(100)
            version = self.bench.records["node/a"].version
            lease.beat()
            self.assertEqual(self.bench.records["node/a"].version > version, survives)
            self.assertEqual(lease.nodes.fence.has_chance(), survives)

    def test_a_thawed_controller_looks_once_more_after_its_write(self):
        lease = self.bench.controller("a")
        lease.beat()
        lease.beat()
        lease.nodes.fence.step()
        self.bench.time += 100
        self.bench.put(self.bench.cluster()._replace(possible_nodes=("a", "b"), holder="b"))
        lease.nodes.fence.step()
        apply = self.bench.apply

        def shrink_just_before(write):
            if write.name == "node/a":
                self.bench.put(self.bench.cluster()._replace(possible_nodes=("b",)))
            return apply(write)
        self.bench.apply = shrink_just_before
        lease.beat()
        self.assertFalse(lease.nodes.fence.has_chance())
        self.assertLess(lease.nodes.fence.deadline, self.bench.time)

    def test_a_controller_that_is_frozen_before_its_write_counts_from_before_it_looked(self):
        for frozen_s, possible, killed, in_time in (
                (30, ("b",), True, False), (30, ("a", "b"), False, False),
                (10, ("a", "b"), False, True), (10, ("b",), False, True)):
            with self.subTest(frozen_s=frozen_s, possible=possible):
                self.setUp()
                bench, lease = self.bench, self.bench.controller("a")
                lease.beat(), lease.beat()
                bench.list = [local(10, "airflow scheduler")]
                fence, sent_at = lease.nodes.fence, bench.time + 3
                fence.step()
                bench.time = sent_at
                fence.step()
                may_write = fence.may_write

                def and_freeze(fence=fence, may_write=may_write, seconds=frozen_s, left=possible):
                    allowed = may_write()
                    fence.may_write = may_write
                    self.bench.time += seconds
                    self.bench.put(self.bench.cluster()._replace(
                        possible_nodes=left, holder="b", instance="b"))
                    return allowed
                fence.may_write = and_freeze
                lease.beat()
                fence.step()
                self.assertEqual(bench.sent, [(10, signal.SIGKILL)] if killed else [])
                if not killed:
                    self.assertEqual((fence.deadline, fence.has_chance()),
                                     (sent_at + 20, not in_time))

    def test_what_was_read_counts_as_read_once_it_is_there_to_be_seen(self):
        lease = self.bench.controller("a")
        lease.beat()
        answered, seen = lease.nodes.answered, []

        def look(*arguments):
            seen.append((lease.read_at, lease.record.heartbeat_at))
            answered(*arguments)
        lease.nodes.answered = look
        self.bench.time += 3
        lease.beat()
        self.assertEqual(seen, [(1000.0, "at 1000")])
        self.assertEqual((lease.read_at, lease.record.heartbeat_at), (1003.0, "at 1003"))

    def test_a_record_that_cannot_be_understood_is_a_sign_of_life_and_promises_nothing(self):
        lines = []
        log = ListHandler(lines)
        self.bench.log.addHandler(log)
        self.addCleanup(self.bench.log.removeHandler, log)
        a = self.bench.controller("a")
        self.bench.controller("b").beat()
        a.beat()
        self.assertEqual(a.nodes.views["b"].record.promise_s, 29.5)
        for version in (2, 3):
            self.bench.time += 3
            self.bench.records["node/b"] = asfc.Record(version, '{"format": 2}')
            a.beat()
            view = a.nodes.views["b"]
            self.assertEqual((view.version, view.changed_at, view.record.promise_s,
                              view.record.state, view.record.gate),
                             (version, self.bench.time, None, "unknown", None))
        self.assertEqual(lines.count("the record of b can't be understood on a: is asfc newer "
                                     "there?"), 1)

    def test_a_stuck_main_loop_stops_the_heartbeat_but_not_the_nodes_record(self):
        lease = self.bench.controller("a")
        lease.beat()
        lease.expect_work(10)
        self.bench.time += 41
        lease.nodes.fence.deadline = None
        versions = [self.bench.records[name].version for name in ("cluster", "node/a")]
        lease.beat()
        self.assertEqual([self.bench.records[name].version for name in ("cluster", "node/a")],
                         [versions[0], versions[1] + 1])

    def test_a_second_controller_of_the_same_name_is_refused_and_the_first_goes_on(self):
        first = self.bench.controller("a")
        first.beat()
        second = self.bench.controller("a", state_dir_id="other")
        second.beat()
        self.bench.time += 3
        first.beat()
        with self.assertRaisesRegex(asfc.RefusedError, "another controller calls itself a"):
            second.beat()
        self.bench.time += 3
        first.beat()
        self.assertEqual(self.bench.node("a").instance, first.instance)

    def test_a_node_with_a_new_state_directory_takes_its_name_over_after_h_of_silence(self):
        self.bench.controller("a").beat()
        self.bench.time += 5
        again = self.bench.controller("a", state_dir_id="new", state_dir_here="/new")
        for seconds, written in ((0, False), (3, False), (26.9, False), (0.2, True)):
            self.bench.time += seconds
            again.beat()
            self.assertEqual(self.bench.node("a").instance == again.instance, written)

    def test_settings_and_versions_that_differ_are_told_once(self):
        lines = []
        log = ListHandler(lines)
        self.bench.log.addHandler(log)
        self.addCleanup(self.bench.log.removeHandler, log)
        a = self.bench.controller("a")
        b = self.bench.controller("b", fence_grace_time=9.0)
        for _ in range(4):
            a.beat(), b.beat()
            self.bench.time += 3
        told = [line for line in lines if "fence_grace_time" in line]
        self.assertEqual(sorted(told), [
            "fence_grace_time is 5.0 on a and 9.0 on b: it should be the same on all nodes",
            "fence_grace_time is 9.0 on b and 5.0 on a: it should be the same on all nodes"])

    def test_a_record_that_fell_back_is_not_trusted_until_it_rises(self):
        a, b = self.bench.controller("a"), self.bench.controller("b")
        for _ in range(4):
            a.beat(), b.beat()
        a.beat()
        self.bench.records["node/b"] = self.bench.records["node/b"]._replace(version=1)
        a.beat()
        self.assertFalse(a.nodes.views["b"].trusted)
        b.beat(), b.beat(), a.beat()
        self.assertTrue(a.nodes.views["b"].trusted)

    def test_events_are_kept_in_order_and_bounded_and_outlive_an_outage(self):
        a, b = self.bench.controller("a"), self.bench.controller("b")
        event = asfc.HistoryEvent("now", "a", 1, 0, "first")
        a.beat(), b.beat()
        self.bench.fail = "after"
        a.nodes.post("running", event)
        a.beat()
        self.bench.fail = ""
        b.nodes.post("running", event._replace(what="second"))
        b.beat(), a.beat(), b.beat(), a.beat()
        self.bench.time += 15
        for number in range(300):
            a.nodes.post("running", event._replace(what=str(number)))
        a.beat()
        events = asfc.HistoryEvent.all_from_text(self.bench.records["history"].value)
        self.assertEqual(events[-1].what, "299")
        self.assertLess(len(self.bench.records["history"].value), 1.2 * asfc.HISTORY_SIZE)
        for number in range(20):
            a.nodes.post("running", event._replace(what="long", why=str(number) * 2000))
        a.beat()
        self.assertLess(len(self.bench.records["history"].value), 1.2 * asfc.HISTORY_SIZE)

    def test_a_history_that_can_not_be_written_stops_no_heartbeat(self):
        a = self.bench.controller("a")
        a.beat(), a.beat()
        exchange = self.bench.exchange

        def with_a_locked_row(writes=()):
            if any(write.name == "history" for write in writes):
                raise asfc.MetadataError("another process has kept it locked for too long")
            return exchange(writes)
        self.bench.exchange = with_a_locked_row
        a.nodes.post("running", asfc.HistoryEvent("now", "a", 1, 0, "an event"))
        a.expect_work(100)
        longest = 0.0
        for _ in range(60):
            self.bench.time += 1
            a.beat()
            longest = max(longest, a.renewal_age_s())
        self.assertTrue(a.active)
        self.assertLess(longest, 5)
        self.bench.exchange = exchange
        self.bench.time += 15
        a.beat()
        self.assertIn("an event", self.bench.records["history"].value)

    def test_the_active_ones_sentence_is_written_when_it_is_new_and_hurts_no_heartbeat(self):
        a, b = self.bench.controller("a"), self.bench.controller("b")
        a.beat(), b.beat()

        def said(sentence, term=1, since="noon", **unanswered):
            return asfc.StatusRecord.bounded("a", term, since, sentence, unanswered)

        def written():
            found = self.bench.records.get("status")
            return found and (found.version, asfc.StatusRecord.from_text(found.value).sentence)
        a.nodes.say(said("first"))
        for since in ("noon", "one", "two"):
            a.nodes.say(said("first", since=since))
            a.beat(), b.beat()
            self.assertEqual(written(), (1, "first"))
        for fail in ("before", "after"):
            a.nodes.say(said("second"))
            self.bench.fail = fail
            a.beat()
            self.bench.fail = ""
            a.beat()
            self.bench.time += 15
            a.beat()
            self.assertEqual(written(), (2, "second"))
        a.nodes.say(said("taken back"))
        a.nodes.say(None)
        a.beat()
        self.bench.records["status"] = asfc.Record(7, "{ what is this?")
        a.nodes.say(said("third", c="no answer"))
        self.assertTrue(a.active)
        a.beat()
        self.assertTrue(a.may_act())
        a.beat()
        self.assertEqual(written(), (8, "third"))
        del self.bench.records["status"]
        a.nodes.say(said("x" * 9999, **{"n{}".format(n): "y" * 9999 for n in range(99)}))
        a.beat(), a.beat()
        self.assertEqual(written()[0], 1)
        self.assertLess(len(self.bench.records["status"].value), 7000)
        for text in ("", "[]", "7", "null", '{"format": 1}', '{"format": 2}',
                     '{"format": 1, "node": "a", "term": "x", "since": "", "sentence": "", '
                     '"unanswered": {}}'):
            self.assertIsNone(asfc.StatusRecord.from_text(text))

    def test_restored_metadata_makes_every_node_possible_in_a_term_above_all(self):
        a, b = self.bench.controller("a"), self.bench.controller("b")
        a.beat(), b.beat(), a.beat()
        self.bench.put(self.bench.cluster()._replace(possible_nodes=("a",), assigned=True))
        a.beat()
        backup = dict(self.bench.records)
        self.assertTrue(a.update(lambda record: record._replace(
            move=4, possible_nodes=("b",), started=True)))
        self.bench.records = backup
        a.beat()
        self.assertTrue(a.active and a.fell_back)
        self.assertTrue(a.raise_term(asfc.Pair(5, 0)))
        record = self.bench.cluster()
        self.assertEqual((record.term, sorted(record.possible_nodes), record.assigned, a.fell_back),
                         (6, ["a", "b", "c"], False, False))
        a.beat()
        self.assertTrue(a.may_act())

    def test_a_claim_of_restored_metadata_exceeds_what_the_own_gate_holds(self):
        self.bench.put(asfc.ClusterRecord("c", 5, 2, holder="x", instance="x",
                                          possible_nodes=("x",), assigned=True))
        lease = self.bench.lease("b", gate=asfc.Gate(asfc.Pair(7, 1), "y", "c", "b"))
        for _ in range(12):
            lease.beat()
            self.bench.time += 3
        record = self.bench.cluster()
        self.assertEqual((record.holder, record.term, record.possible_nodes, record.assigned),
                         ("b", 8, ("x", "a", "b", "c"), False))


    def test_a_gate_that_hears_of_a_newer_pair_under_restored_metadata_is_given_h_from_then(self):
        self.bench.put(asfc.ClusterRecord("c", 5, 2, holder="x", instance="x",
                                          possible_nodes=("x",), assigned=True))
        gates = [asfc.Gate(asfc.Pair(5, 2), "x", "c", "b")]
        lease = self.bench.lease("b")
        lease._own_gate = lambda: gates[0]
        for seconds in range(0, 60, 3):
            lease.beat()
            if seconds == 21:   # somebody has claimed and sent, and that was restored away
                gates[0] = asfc.Gate(asfc.Pair(6, 1), "y", "c", "b")
            self.assertEqual(lease.active, seconds >= 24 + 30)
            self.bench.time += 3
        self.assertEqual(self.bench.cluster().term, 7)


class RecordsThatSpeakForTheirNodes(unittest.TestCase):
    def test_a_record_speaks_for_its_node_while_it_is_fresh_and_was_seen_to_change(self):
        bench = ControllerBench()
        b, a = bench.controller("b"), bench.controller("a")
        report = asfc.NodeReport("b", asfc.STOPPED, "none runs", answered=True)

        def write():
            b.nodes.report = report._replace(asked_at=bench.time)
            b.beat()

        def told():
            a.beat()
            life = asfc.SignsOfLife(bench, a._configuration, None, a, a.nodes, None)
            found = life.best_report(asfc.NodeReport("b", asfc.UNKNOWN, "no answer"),
                                     asfc.Stamp("c", asfc.Pair(1, 0), "i"))
            return (found.state, found.answered, found.by_record)
        silent, speaks = (asfc.UNKNOWN, False, False), (asfc.STOPPED, True, True)
        write(), write()
        self.assertEqual(told(), silent, "what is read first may be of last week")
        bench.time += 3
        write()
        self.assertEqual(told(), speaks)
        bench.time += 7     # i + c_m + r
        self.assertEqual(told(), speaks)
        bench.time += 0.1
        self.assertEqual(told(), silent, "it stands still")
        report = report._replace(state=asfc.UNKNOWN)
        write()
        self.assertEqual(told(), silent, "what it does not know it can't tell")


class OrdersTest(unittest.TestCase):
    """The record of what people want, and records that a later release has written."""

    def setUp(self):
        self.bench = ControllerBench()
        self.lease = self.bench.controller("a")
        for _ in range(3):
            self.beat()

    def beat(self):
        self.bench.time += 3
        self.lease.beat()

    def put(self, text):
        found = self.bench.records.get("orders")
        self.bench.records["orders"] = asfc.Record((found.version if found else 0) + 1, text)

    def stored(self):
        return asfc.Orders.of(self.bench.records)

    def test_what_a_later_release_adds_to_a_record_is_passed_over(self):
        def with_more(text, *path):
            fields = json.loads(text)
            place = functools.reduce(lambda found, key: found[key], path, fields)
            place["of_a_later_release"] = [1]
            return json.dumps(fields)
        cluster = asfc.ClusterRecord("id", 3, paused="by ann")
        node, event = asfc.NodeRecord("a", "x", 4), asfc.HistoryEvent("10:00", "a", 1, 2, "moved")
        orders = to_go("c", "ab")
        self.assertEqual(asfc.ClusterRecord.from_text(with_more(cluster.to_text())), cluster)
        self.assertEqual(asfc.NodeRecord.from_text(with_more(node.to_text())), node)
        self.assertEqual(asfc.HistoryEvent.all_from_text(with_more(
            asfc.history_text([event]), "events", 0)), [event])
        for path in ((), ("wish",), ("drained", 1)):
            self.put(with_more(orders.to_text(), *path))
            self.assertEqual(self.stored(), orders)

    def test_changes_are_written_with_the_heartbeat_once_and_beside_what_a_verb_writes(self):
        self.assertNotIn("orders", self.bench.records)
        self.lease.nodes.change_orders(lambda orders: orders._replace(reminded_s=7.0))
        self.assertEqual(self.lease.nodes.orders.reminded_s, 7.0, "at once to its own controller")
        self.put(to_go("c", "b").to_text())   # just before
        self.beat()
        self.beat()
        self.assertEqual(self.stored(), to_go("c", "b")._replace(reminded_s=7.0))
        version = self.bench.records["orders"].version
        self.bench.fail = "after"             # written, and the reply is lost
        self.lease.nodes.change_orders(lambda orders: orders.closed(
            to_go("c", outcome="done").wish))
        self.beat()
        self.bench.fail = ""
        self.beat()
        self.beat()
        self.assertEqual((self.stored().wish.outcome, self.bench.records["orders"].version),
                         ("done", version + 1))

    def test_only_the_wish_that_is_open_is_closed(self):
        closing = to_go("c", outcome="done").wish
        for orders in (to_go("b", id="w2"), to_go("c", outcome="cancelled"), drained("a")):
            self.assertEqual(orders.closed(closing), orders)
        self.assertEqual(to_go("c").closed(closing).wish, closing)

    def test_orders_of_another_format_are_told_once_and_left_alone(self):
        for text in (to_go("c").to_text().replace('"format": 1', '"format": 2'), "{", "[]"):
            with self.assertLogs(self.bench.log, "WARNING") as told:
                self.put(text)
                self.lease.nodes.change_orders(lambda orders: orders._replace(reminded_s=7.0))
                self.beat()
                self.beat()
            self.assertEqual(len(told.records), 1)
            self.assertEqual(self.bench.records["orders"].value, text)
            with self.assertRaises(asfc.MetadataError):
                self.stored()


class NodesBench:
    """Stands for Nodes in an OwnNode: it answers with the report that it was given."""

    def __init__(self, report):
        self.report, self.stamps = report, []

    def query_own(self, stamp):
        self.stamps.append(stamp)
        return self.report

    def look(self, names):
        return {name: self.report._replace(gate=None) for name in names}


class OwnNodeTest(unittest.TestCase):
    """The local guard: a scheduler on a node where none may run."""

    def setUp(self):
        self.bench = ControllerBench()
        self.lease = self.bench.controller("b")
        self.record = asfc.ClusterRecord(
            "cluster", 3, 5, holder="a", instance="me", possible_nodes=("a",), assigned=True,
            started=True)
        self.bench.put(self.record)
        self.nodes = NodesBench(report_of("b", "running"))
        self.own = asfc.OwnNode(self.bench, settings(node_name="b"), self.nodes, self.lease,
                                self.lease.nodes, self.bench.log)

    def rounds(self, count=1, moves=True):
        """So many times: the holder's heartbeat, this controller's read, its look at its node."""
        for _ in range(count):
            if moves:
                self.bench.put(self.record)
            self.bench.time += 3
            self.lease.beat()
            self.bench.time += 0.1
            self.own.step()

    def test_one_that_may_not_run_here_is_ended_after_it_was_listed_and_the_record_read(self):
        self.rounds()
        self.assertEqual(self.bench.sent, [])
        self.rounds()
        self.assertEqual(self.bench.sent, [(70, signal.SIGTERM)])
        self.rounds(2)
        self.assertEqual(self.bench.sent[-1], (70, signal.SIGKILL))
        self.assertEqual(self.nodes.stamps[0], asfc.Stamp("cluster", PAIR, "me"))

    def test_it_is_left_alone_where_anything_is_in_doubt(self):
        gate = asfc.Gate(asfc.Pair(3, 6), "me", "cluster", "b")
        running = report_of("b", "running")
        for what, record, report in (
                ("it is possible", {"possible_nodes": ("b", "a")}, running),
                ("no assignment exists", {"assigned": False}, running),
                ("paused", {"paused": "by op"}, running),
                ("the gate is ahead", {}, running._replace(gate=gate)),
                ("another cluster's gate", {}, running._replace(
                    gate=gate._replace(pair=PAIR, cluster="other"))),
                ("the lock was held", {}, running._replace(gate=None)),
                ("none runs", {}, report_of("b", "stopped"))):
            with self.subTest(what):
                self.setUp()
                self.record = self.record._replace(**record)
                self.nodes.report = report
                self.bench.put(self.record)
                self.rounds(4)
                self.assertEqual(self.bench.sent, [])

    def test_it_is_left_alone_when_nobody_has_reigned_for_h(self):
        self.rounds(2)
        sent = len(self.bench.sent)
        self.lease._calm_reads = -1000   # this one does not claim
        self.rounds(11, moves=False)
        del self.bench.sent[:]
        self.rounds(2, moves=False)
        self.assertEqual((sent, self.bench.sent), (1, []))

    def test_one_that_has_ended_since_it_was_listed_is_told_of_by_nobody(self):
        self.bench.gone.add(70)
        self.rounds(3)
        self.assertTrue(self.bench.sent)
        self.assertEqual(self.lease.nodes._events, [])
        self.bench.gone.clear()
        self.rounds()
        self.assertEqual([event.what for event in self.lease.nodes._events],
                         ["stopped the scheduler here, pid 70"])

    def test_a_deadline_that_cannot_be_written_is_told_once_and_is_not_history(self):
        lines = []
        log = ListHandler(lines)
        self.bench.log.addHandler(log)
        self.addCleanup(self.bench.log.removeHandler, log)
        for problem in ("the disk is full", "the disk is full", "", "the disk is full"):
            self.lease.nodes.fence.problem = problem
            self.own.step()
        self.assertEqual(lines.count("the disk is full"), 2)
        self.assertEqual(self.lease.nodes._events, [])

    def test_without_a_holder_the_gate_is_raised_all_the_same_for_nobody(self):
        self.record = self.record._replace(holder="", instance="")
        self.lease._stand_back_until = 1e9
        self.rounds(2)
        self.assertEqual(self.nodes.stamps, [asfc.Stamp("cluster", PAIR, "nobody"),
                                             asfc.Stamp("cluster", PAIR, "me")])


class RecordedSystemctl:
    """The door of a host on which systemd runs, with answers of systemctl in their usual form."""
    SSHD = "LoadState=loaded\nMainPID=400\nRestart=on-failure\nUnitFileState=enabled\n"

    def __init__(self):
        self.time, self.asked, self.files = 1000.0, [], {"/proc/1/comm": "systemd\n"}
        self.units = {"ssh": self.SSHD, "asfc": self.SSHD}

    def unit(self, name, restart="no", state="disabled", pid=0):
        self.units[name] = "LoadState=loaded\nMainPID={}\nRestart={}\nUnitFileState={}\n".format(
            pid, restart, state)

    def now(self):
        return self.time

    def user_id(self, name):
        return {"": 1000, "root": 0, "airflow": 50000, "me": 1000}.get(name)

    def environment(self):
        return {}

    def read_text(self, path):
        return self.files.get(path)

    def run(self, commands):
        (command,) = commands
        self.asked.append(" ".join(command.argv[:command.argv.index("-p")]))
        if "--user" in command.argv:
            assert command.environment == {"XDG_RUNTIME_DIR": "/run/user/1000"}
        name = command.argv[command.argv.index("show") + 1]
        found = self.units.get(name, "LoadState=not-found\nMainPID=0\nRestart=no\n")
        if isinstance(found, asfc.CommandResult):
            return [found]
        return [asfc.CommandResult(0, found, "")]


class PromisesThatCanBeKept(unittest.TestCase):
    def test_only_who_may_signal_the_scheduler_promises(self):
        for user, words in (("", ""), ("me", ""), ("airflow", "another user"),
                            ("nobody-here", "no user nobody-here")):
            why = asfc.why_no_promise(RecordedSystemctl(), settings(scheduler_user=user))
            self.assertEqual((bool(why), words in why), (bool(words), True), why)

    def test_the_unit_is_found_in_a_start_command(self):
        for command, unit in (
                ("systemctl start x", ("x",)), ("/usr/bin/systemctl restart a@b", ("a@b",)),
                ("sudo systemctl --no-block restart x.service", ("x",)),
                ("sudo -n systemctl reload-or-restart x", ("x",)),
                ("systemctl --user restart x", ("--user", "x")),
                ("XDG_RUNTIME_DIR=/run/user/7 systemctl start --user x", ("--user", "x")),
                ("sudo service x restart", ("x",)), ("airflow scheduler -D", ()),
                ("systemctl stop x", ()), ("service x stop", ()), ("my.service x start", ())):
            self.assertEqual(asfc.systemd_unit(command), unit)

    def test_a_unit_that_a_start_command_starts_must_neither_be_restarted_nor_enabled(self):
        no_bus = asfc.CommandResult(1, "", "Failed to connect to bus: No such file or directory")
        no_program = asfc.CommandResult(None, "", "", "systemctl: No such file or directory")
        for restart, state, words in (
                ("no", "disabled", ""), ("no", "static", ""), ("no", "linked", ""),
                ("always", "disabled", "Restart=always"), ("on-failure", "static", "on-failure"),
                ("no", "enabled", "is enabled"), ("no", "enabled-runtime", "is enabled"),
                (no_bus, "", "does not tell"), (no_program, "", "does not tell"),
                (None, "", "does not tell")):
            for user in ("", "--user "):
                with self.subTest((restart, state, user)):
                    world = RecordedSystemctl()
                    world.unit("x", restart, state)
                    if not isinstance(restart, str):
                        world.units["x"] = restart or "LoadState=not-found\nRestart=no\n"
                    watch = asfc.SystemdWatch(world, settings(
                        airflow_scheduler_start_command="systemctl {}restart x".format(user)))
                    watch.look([])
                    self.assertEqual((bool(watch.sentence), words in watch.sentence),
                                     (bool(words), True), watch.sentence)
                    self.assertEqual(world.asked, ["systemctl {}show x".format(user)])
                    if "enabled" in words:
                        self.assertIn("`systemctl {}disable x`".format(user), watch.sentence)
                    elif "on-" in words:
                        self.assertIn("`systemctl {}edit x`".format(user), watch.sentence)

    def test_a_unit_that_runs_the_scheduler_found_here_is_noticed_however_that_was_started(self):
        slices = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/{}\n"
        v1 = "3:pids:/\n1:name=systemd:/system.slice/{}\n"
        cases = (
            # the scheduler's control group, the main process of its unit, whether that runs it
            ("0::/system.slice/af.service\n", 60, True), (v1.format("af.service"), 60, True),
            (slices.format("af.service"), 60, True),
            ("0::/system.slice/af.service\n", 59, True),          # the shell of the shipped unit
            ("0::/system.slice/af.service\n", 58, False),         # it only started this one
            ("0::/system.slice/ssh.service\n", None, False),      # a login by ssh
            ("0::/system.slice/asfc.service\n", None, False),     # asfc's own start
            ("0::/user.slice/user-1000.slice/session-3.scope\n", None, False),
            (slices.format("tmux-spawn-1.scope"), None, False), ("0::/\n", None, False),
            (None, None, False))
        for group, pid, fights in cases:
            with self.subTest((group, pid)):
                world = RecordedSystemctl()
                world.unit("af", "always", "enabled", pid)
                world.files.update({"/proc/60/cgroup": group, "/proc/59/comm": "bash\n",
                                    "/proc/58/comm": "supervisord\n"})
                parent = 58 if pid == 58 else 59
                watch = asfc.SystemdWatch(world, settings())
                watch.look([local(60, VENV, parent)])
                self.assertEqual("has Restart=always" in watch.sentence, fights, watch.sentence)
                self.assertEqual("--user" in watch.sentence, fights and "user@" in group)
                world.files["/proc/1/comm"] = "tini\n"
                contained = asfc.SystemdWatch(world, settings())
                contained.look([local(60, VENV, parent)])
                self.assertEqual(contained.sentence, "", "no systemd of its own")

    def test_a_unit_is_asked_again_for_a_new_process_and_each_minute_and_not_between(self):
        world = RecordedSystemctl()
        world.unit("af", "always", pid=60)
        world.files["/proc/60/cgroup"] = world.files["/proc/61/cgroup"] = (
            "0::/system.slice/af.service\n")
        watch = asfc.SystemdWatch(world, settings())

        def asked(seconds, *pids):
            world.time, world.asked[:] = world.time + seconds, []
            watch.look([local(pid, VENV) for pid in pids])
            return bool(world.asked), bool(watch.sentence)
        self.assertEqual(asked(0), (False, False))
        self.assertEqual(asked(3, 60), (True, True))
        self.assertEqual(asked(3, 60), (False, True))
        self.assertEqual(asked(3), (False, True), "it died: the unit starts it again in 5 s")
        self.assertEqual(asked(60), (True, True))
        world.unit("af", "no", pid=60)
        self.assertEqual(asked(59, 60), (True, False), "an operator has changed the unit")
        world.unit("af", "always", pid=60)
        self.assertEqual(asked(59, 60), (False, False))
        self.assertEqual(asked(1, 60), (True, True))
        del world.files["/proc/61/cgroup"]
        self.assertEqual(asked(3, 61), (False, False), "asfc's own start, without a unit")
        self.assertEqual(asked(300, 61), (False, False))

    def test_a_unit_that_fights_asfc_is_told_and_takes_the_promise_back_before_it_is_made(self):
        bench, world = ControllerBench(), RecordedSystemctl()
        world.unit("af", "always", pid=60)
        bench.files.update(world.files)
        bench.files["/proc/60/cgroup"] = "0::/system.slice/af.service\n"
        bench.user_id, bench.environment, bench.run = (
            lambda name: 1000, world.environment, world.run)
        bench.list = [local(60, VENV)]
        lines = []
        handler = ListHandler(lines)
        bench.log.addHandler(handler)
        self.addCleanup(bench.log.removeHandler, handler)
        lease = bench.controller("a")
        main = asfc.Process(60, 600, 1, 60, 1000, VENV)
        own = asfc.OwnNode(bench, settings(), NodesBench(report_of("a", "running", mains=(main,))),
                           lease, lease.nodes, bench.log)
        own.begin()
        for _ in range(3):
            lease.beat()
            record = bench.node("a")
            self.assertTrue(record is None or record.promise_s is None)
            own.step()
        self.assertIn("its unit af has Restart=always", bench.node("a").no_promise)
        told = [line for line in lines if "this node promises nothing: its unit af" in line]
        self.assertEqual(len(told), 1)
        history = asfc.HistoryEvent.all_from_text(bench.records["history"].value)
        self.assertEqual([event.what[:20] for event in history], ["systemd fights asfc:"])
        world.unit("af", "no", pid=60)
        bench.time += 61
        own.step()
        lease.beat()
        self.assertEqual(bench.node("a").promise_s, 29.5)


class LiveConfigurations(unittest.TestCase):
    """What SIGHUP takes over, and what waits for a restart."""
    BEFORE = "scheduler_nodes_in_cluster = a, b\nstate_dir = /srv/asfc"

    def reloaded(self, text, before=""):
        world = FilesInMemory({CFG: own(self.BEFORE + "\n" + before),
                               "/proc/self/mountinfo": MOUNTS})
        live = asfc.LiveConfiguration(
            lambda: asfc.Configuration.load(world, need_own_name=True))
        if not isinstance(text, OSError):
            kept = [line for line in self.BEFORE.split("\n")
                    if line.partition(" =")[0] + " =" not in text]
            text = "[scheduler_failover]\n" + "\n".join(kept + [text])
        world.files[CFG] = text
        return live

    def test_a_key_is_taken_over_or_waits_for_a_restart_and_keeps_its_value(self):
        unit = "sudo systemctl restart "
        cases = (
            ("poll_frequency = 20", "", (["poll_frequency"], []), 20.0),
            ("on_metadata_loss = keep", "", (["on_metadata_loss"], []), "keep"),
            ("logging_level = DEBUG", "", (["logging_level"], []), "DEBUG"),
            ("alert_to_email = x@y.z", "", (["alert_to_email"], []), ("x@y.z",)),
            ("scheduler_nodes_in_cluster = a, c", "", (["scheduler_nodes_in_cluster"], []),
             ("a", "c")),
            ("heartbeat_timeout = 60", "", (["heartbeat_timeout"], ["heartbeat_timeout"]), 30.0),
            ("fence_grace_time = 9", "", (["fence_grace_time"], ["fence_grace_time"]), 5.0),
            ("scheduler_user = root", "", (["scheduler_user"], ["scheduler_user"]), ""),
            ("state_dir = /srv/other", "", (["state_dir", "state_dir_here"],
                                            ["state_dir", "state_dir_here"]), "/srv/asfc"),
            ("airflow_scheduler_start_command = /opt/start", "",
             (["airflow_scheduler_start_command"], []), "/opt/start"),
            ("airflow_scheduler_start_command = " + unit + "x", "",
             (["airflow_scheduler_start_command"], ["airflow_scheduler_start_command"]), ""),
            ("airflow_scheduler_start_command = " + unit + "x",
             "airflow_scheduler_start_command = systemctl start x",
             (["airflow_scheduler_start_command"], []), unit + "x"),
            ("node_name = n\nscheduler_nodes_in_cluster = n, b", "",
             (["scheduler_nodes_in_cluster", "node_name"],) * 2, "a"),
            ("node_name = b", "", (["node_name"], ["node_name"]), "a"),
            ("", "", ([], []), None))
        for text, before, expected, value in cases:
            with self.subTest(text):
                live = self.reloaded(text, before)
                self.assertEqual(live.reload()[:2], expected)
                if value is not None:
                    self.assertEqual(getattr(live, text.partition(" =")[0]), value)
                self.assertEqual(live.reload()[1], expected[1], "they still wait")

    def test_whatever_names_the_metadata_waits_for_a_restart(self):
        for option in asfc.OPTIONS:
            if option.name.startswith("metadata_") or "sqlite" in option.name:
                self.assertFalse(option.live, option.name)
        live = self.reloaded("\n[core]\nsql_alchemy_conn = sqlite:////srv/other.db")
        before = live.sql_alchemy_conn
        self.assertEqual(live.reload()[:2], (["sql_alchemy_conn"],) * 2)
        self.assertEqual(live.sql_alchemy_conn, before)

    def test_one_that_cannot_be_used_changes_nothing(self):
        for text in ("poll_frequency = soon\nquery_timeout = 3", OSError(13, "Permission denied"),
                     "scheduler_nodes_in_cluster = b, c"):
            live = self.reloaded(text)
            with self.assertRaises(asfc.ConfigurationError):
                live.reload()
            self.assertEqual((live.poll_frequency, live.query_timeout), (10.0, 5.0))

    def test_only_new_warnings_are_told(self):
        live = self.reloaded("old_key = 1\nnew_key = 2", "old_key = 1")
        lines = live.reload()[2]
        self.assertEqual((len(lines), "new_key" in lines[0]), (1, True), lines)
        self.assertEqual(live.reload()[2], [])


class ReloadTest(unittest.TestCase):
    """SIGHUP to controllers in virtual time."""

    def cluster(self, play, **keys):
        cluster = VirtualCluster(4, **keys)
        cluster.watchdog_s = 60.0

        def run():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(70)
            return play(cluster, cluster.active())
        return cluster.clock.drive(run)

    @staticmethod
    def reload(cluster, name, **keys):
        cluster.configure(name, **keys)
        cluster.worlds[name].hangup_handler()
        cluster.clock.wait(4)
        return "\n".join(text for _, text in cluster.worlds[name].notified
                         if text != "WATCHDOG=1")

    def test_the_lease_is_kept_and_a_shorter_poll_counts_at_once(self):
        def play(cluster, active):
            record = asfc.cluster_record(cluster.metadata.records)
            told = self.reload(cluster, active, poll_frequency=2, heartbeat_timeout=60)
            self.assertRegex(told, r"RELOADING=1\nMONOTONIC_USEC=\d+\nREADY=1\nSTATUS=no action: "
                                   r".*; restart asfc for: heartbeat_timeout$")
            cluster.kill_scheduler()
            cluster.clock.wait(4.5)
            self.assertTrue(cluster.starts == 2, "\n".join(cluster.lines))
            after = asfc.cluster_record(cluster.metadata.records)
            self.assertEqual((after.term, after.instance, after.heartbeat_timeout),
                             (record.term, record.instance, 30.0))
            self.assertEqual(cluster.controllers[active].lease._configuration.acting_window_s, 20.0)
        self.cluster(play)

    def test_a_broken_file_is_told_until_it_is_mended_and_the_old_one_counts(self):
        def play(cluster, active):
            told = self.reload(cluster, active, poll_frequency="often")
            self.assertRegex(told.split("\n")[-1], "^STATUS=no action: .*the new configuration "
                                                   "can't be used: .*poll_frequency = 'often'")
            self.assertRegex("\n".join(cluster.lines), "can't be used, the old one is kept: ")
            cluster.kill_scheduler()
            cluster.clock.wait(70)
            self.assertEqual((cluster.home(), cluster.active()), ("a", active))
            status = [text for _, text in cluster.worlds[active].notified if "STATUS" in text]
            self.assertIn("can't be used", status[-1])
            told = self.reload(cluster, active)
            self.assertRegex(told.split("\n")[-1], "^STATUS=no action: [^;]*$")
        self.cluster(play)

    def test_a_promise_is_taken_back_and_made_again_and_the_fence_goes_by_it(self):
        """Where a node is left after that, and where it fences itself, follows from its record."""
        def promise(cluster, name):
            return cluster.controllers[name].records.views[name].record.promise_s

        def play(cluster, active):
            fence = cluster.controllers[active].fence
            self.assertEqual((promise(cluster, active), fence.deadline is None), (29.5, False))
            cluster.metadata.away = True
            self.reload(cluster, active, on_metadata_loss="keep")
            self.assertIsNotNone(fence.deadline, "the others still count on it")
            cluster.metadata.away = False
            cluster.clock.wait(4)
            self.assertEqual((promise(cluster, active), fence.deadline), (None, None))
            cluster.metadata.away = True
            cluster.clock.wait(60)
            self.assertEqual(cluster.home(), "a", "it keeps its scheduler")
            cluster.metadata.away = False
            cluster.clock.wait(30)
            self.reload(cluster, active, on_metadata_loss="stop")
            self.assertEqual((promise(cluster, active), fence.deadline is None), (29.5, False))
            cluster.metadata.away = True
            cluster.clock.wait(30)
            self.assertEqual(cluster.home(), "", "it has fenced itself")
        self.cluster(play)


###############################################################################
# The service manager #########################################################
###############################################################################


class ServiceManagerTest(unittest.TestCase):
    def supervised(self, play):
        """Controllers on a, b and c with a watchdog of 60 s; what a's manager was told, at last."""
        cluster = VirtualCluster(5)
        cluster.watchdog_s = 60.0

        def run():
            for name in cluster.models:
                cluster.start_controller(name)
            play(cluster, cluster.worlds["a"])
        cluster.clock.drive(run)
        return cluster, cluster.worlds["a"].notified

    @staticmethod
    def texts(notified):
        return [text for _, text in notified]

    def test_it_is_told_that_the_controller_works_what_it_does_and_that_it_stops(self):
        def play(cluster, world):
            cluster.clock.wait(100)
            cluster.stop_controller("a")
            cluster.clock.wait(10)
            self.assertTrue(cluster.runs["a"].done)
        cluster, notified = self.supervised(play)
        texts = self.texts(notified)
        self.assertEqual(texts.count("READY=1"), 1)
        self.assertLess(notified[texts.index("READY=1")][0], 1002)
        self.assertIn("STATUS=no action: I am active, the scheduler runs on a", texts)
        self.assertIn(
            "STOPPING=1\nSTATUS=stopping (SIGTERM); the scheduler is left as it is", texts)
        gaps = [at for at, text in notified if text == "WATCHDOG=1"]
        self.assertTrue(all(after - before <= 15.1 for before, after in zip(gaps, gaps[1:])), gaps)
        self.assertEqual(cluster.home(), "a")

    def test_nothing_says_ready_before_the_first_heartbeat_has_come_to_an_end(self):
        def play(cluster, world):
            cluster.metadata.exchange = lambda writes=(): cluster.clock.wait(40)
            cluster.clock.wait(30)
        _, notified = self.supervised(play)
        self.assertNotIn("READY=1", self.texts(notified))

    def test_ready_is_told_though_the_metadata_is_away(self):
        cluster, notified = self.supervised(lambda cluster, world: (
            setattr(cluster.metadata, "away", True), cluster.clock.wait(30)))
        self.assertIn("READY=1", self.texts(notified))

    def test_a_turn_as_long_as_announced_feeds_the_watchdog_and_one_that_is_stuck_does_not(self):
        """A start through a terminal may take 90 s; nothing may take longer than it said."""
        for seconds, fed in ((85, True), (9999, False)):
            with self.subTest(seconds):
                def play(cluster, world, seconds=seconds):
                    def slow(commands, run=world.run):
                        if cluster.clock.current.name == "turn" \
                                and commands[0].request.verb == "start":
                            cluster.began = cluster.clock.time
                            cluster.clock.wait(seconds)
                        return run(commands)
                    world.run = slow
                    cluster.clock.wait(240)
                cluster, notified = self.supervised(play)
                announced_s = 90 + 5 + 2
                fed_at = [at - cluster.began for at, text in notified if text == "WATCHDOG=1"]
                late = [at for at in fed_at if at > announced_s]
                self.assertEqual(bool(late), fed, fed_at)
                self.assertTrue([at for at in fed_at if 60 < at <= announced_s], fed_at)

    def test_what_was_not_taken_is_sent_again_in_order_and_a_long_status_is_cut(self):
        class Deaf:
            notify_socket, watchdog_s, deaf, sent = "@x", 0.0, True, []

            def notify(self, text):
                if not self.deaf:
                    self.sent.append(text)
                return not self.deaf

            def wake(self, name):
                pass
        world = Deaf()
        manager = asfc.ServiceManager(world, None)
        manager.finished("turn")
        manager.finished("heartbeat")
        manager.tell("", "one\ntwo " + "x" * 5000)
        self.assertEqual((manager.step(), world.sent), (manager.RETRY_S, []))
        world.deaf = False
        self.assertEqual(manager.step(), 3600.0)
        self.assertEqual((world.sent[0], world.sent[1][:16]), ("READY=1", "STATUS=one two x"))
        self.assertLess(len(world.sent[1]), 1000)
        manager.ended = True
        self.assertIsNone(manager.step())


###############################################################################
# Status over HTTP ############################################################
###############################################################################


class StatusTest(unittest.TestCase):
    def cluster(self, play, seed=5):
        cluster = VirtualCluster(seed)

        def run():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(100)
            play(cluster, cluster.controllers["a"], cluster.controllers["b"])
        cluster.clock.drive(run)

    @staticmethod
    def states(controller):
        return tuple(asfc.status_page(controller, path)[0] for path in ("/health", "/active"))

    @staticmethod
    def metrics(controller):
        """The samples of a controller, by name and labels."""
        lines = asfc.metrics_text(controller).splitlines()
        return {name: float(value) for name, _, value in (
            line.rpartition(" ") for line in lines if not line.startswith("#"))}

    def test_health_and_active_tell_of_the_controller_in_all_its_states(self):
        def play(cluster, a, b):
            self.assertEqual((self.states(a), self.states(b)), ((200, 200), (200, 503)))
            page = json.loads(asfc.status_page(a, "/health")[2])
            self.assertEqual(page, {
                "node": "a", "healthy": True, "active": True, "term": 1,
                "active_scheduler_node": "a",
                "sentence": "no action: I am active, the scheduler runs on a"})
            self.assertEqual(asfc.status_page(a, "/other")[0], 404)
            cluster.metadata.away = True
            cluster.clock.wait(25)
            self.assertEqual(self.states(a), (200, 503), "it may not act any more")
            cluster.clock.wait(10)
            self.assertEqual((self.states(a), self.states(b)), ((503, 503), (503, 503)))
            cluster.metadata.away = False
            cluster.clock.wait(60)
            self.assertEqual(self.states(b), (200, 503))
            b.lease.expect_work(-0.1)
            self.assertEqual(self.states(b), (503, 503), "its main loop is late")
            a.stop("SIGTERM")
            self.assertEqual(self.states(a)[0], 503)
        self.cluster(play)

    def test_the_metrics_of_a_failover_and_a_restart(self):
        def play(cluster, a, b):
            before = self.metrics(a)
            for name, value in (
                    ('asfc_info{node="a",version="' + asfc.__version__ + '"}', 1),
                    ("asfc_active", 1), ("asfc_term", 1), ("asfc_scheduler_up", 1),
                    ('asfc_scheduler_running{node="a"}', 1),
                    ('asfc_scheduler_running{node="b"}', 0), ("asfc_failovers_total", 0),
                    ("asfc_scheduler_restarts_total", 0), ("asfc_paused", 0),
                    ('asfc_events_total{event="start"}', 1),
                    ('asfc_command_failures_total{command="query"}', 0)):
                self.assertEqual(before[name], value, name)
            self.assertLess(before["asfc_renewal_age_seconds"], 4)
            self.assertEqual(before["asfc_renewal_age_seconds"],
                             cluster.clock.time - a.lease._confirmed_at)
            self.assertLess(self.metrics(b)["asfc_renewal_age_seconds"], 7)
            self.assertEqual((self.metrics(b)["asfc_active"], self.metrics(b)["asfc_scheduler_up"]),
                             (0, 1))
            self.assertGreater(before["asfc_turn_duration_seconds_count"], 9)
            cluster.kill_scheduler()
            cluster.clock.wait(60)
            cluster.cut.add("c")
            cluster.broken.add("a")
            cluster.kill_scheduler()
            cluster.clock.wait(120)
            cluster.metadata.away = True
            cluster.clock.wait(10)
            after = self.metrics(a)
            self.assertEqual(
                (after["asfc_scheduler_restarts_total"], after["asfc_failovers_total"]), (2, 1))
            self.assertEqual(after['asfc_events_total{event="start_failed"}'], 1)
            self.assertGreater(after['asfc_command_failures_total{command="query"}'], 3)
            self.assertGreater(after["asfc_metadata_failures_total"], 1)
            self.assertGreater(after["asfc_renewal_age_seconds"], 9)
            self.assertNotIn('asfc_scheduler_running{node="b"}', after, "nobody said so lately")
            cluster.metadata.away = False
            cluster.kill_controller("b")
            cluster.kill_controller("c")
            cluster.start_controller("b")
            cluster.clock.wait(2)
            new = self.metrics(cluster.controllers["b"])
            self.assertEqual(new["asfc_term"], after["asfc_term"])
            self.assertNotIn('asfc_scheduler_running{node="c"}', new, "an old record says so")
        self.cluster(play)

    def test_labels_are_escaped_and_what_is_not_known_is_missing(self):
        def play(cluster, a, b):
            a.node_name, a.lease.record = 'x"\\\n', None
            text = asfc.metrics_text(a)
            self.assertIn('asfc_info{node="x\\"\\\\\\n",version=', text)
            self.assertNotRegex(text, "(?m)^asfc_(term|renewal_age_seconds) ")
        self.cluster(play)

    def test_a_port_that_is_taken_is_told_once_and_tried_again_and_a_new_one_is_taken_over(self):
        lines, settled = [], settings(status_http_address="127.0.0.1", status_http_port=0)
        log = logging.getLogger("asfc-test-status")
        log.propagate, log.handlers = False, [ListHandler(lines)]
        log.setLevel(logging.INFO)
        status = asfc.StatusServer(asfc.World(), settled, lambda path: (200, "text/plain", ""), log)
        status.LOOK_S = 0.01
        self.assertEqual(status.step(), 3600.0)
        taken = socket.socket()
        self.addCleanup(taken.close)
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        settled.status_http_port = taken.getsockname()[1]
        self.assertEqual((status.step(), status.step()), (status.RETRY_S,) * 2)
        self.assertEqual((len(lines), "Address already in use" in lines[0]), (1, True), lines)
        settled.status_http_port = free_port()
        self.assertEqual(status.step(), 0.0)
        client = socket.create_connection(("127.0.0.1", settled.status_http_port))
        self.addCleanup(client.close)
        wait_until(lambda: status.step() == status.PAUSE_S, 10, "the client is seen")
        before, settled.status_http_port = settled.status_http_port, free_port()
        self.assertEqual(status.step(), 0.0)
        self.assertEqual(client.recv(1), b"")
        with self.assertRaises(OSError):
            socket.create_connection(("127.0.0.1", before))
        client = socket.create_connection(("127.0.0.1", settled.status_http_port))
        self.addCleanup(client.close)
        status.ended = True
        self.assertIsNone(status.step())
        self.assertRaises(OSError, client.recv, 1)   # it was never accepted


###############################################################################
# Decision ####################################################################
###############################################################################


PAIR = asfc.Pair(3, 5)


def report_of(node, state, pair=PAIR, **fields):
    """A node's answer: `running`, `stopped`, `starting`, `silent` or `refused`."""
    heard = asfc.NodeReport(node, asfc.UNKNOWN, "", answered=True,
                            gate=asfc.Gate(pair, "me", "cluster", node))
    main = asfc.Process(70, 7000, 1, 70, 1000, "python airflow scheduler")
    found = {
        "running": heard._replace(state=asfc.RUNNING, reason="pid 70 runs", mains=(main,)),
        "stopped": heard._replace(state=asfc.STOPPED, reason="none runs"),
        "starting": heard._replace(reason="a start is under way",
                                   intent=asfc.Intent(pair, "me", True, 2.0, None)),
        "silent": asfc.NodeReport(node, asfc.UNKNOWN, "no answer within 5 s"),
        "refused": heard._replace(gate=None, reason="refused", refused="newer pair")}[state]
    return found._replace(**fields)


def observed(possible, states, now=5000.0, attempt=None, health=asfc.NO_HEALTH_SIGN, alive_s=500.0,
             cleaned=(), facts=None, fell_back=False, raises=0, orders=asfc.NO_ORDERS, **fields):
    record = asfc.ClusterRecord(
        cluster="cluster", term=3, move=5, holder="a", instance="me",
        possible_nodes=tuple(possible), assigned=True, started=True,
        clock_s=9000.0)._replace(**fields)
    reports = {node: state if isinstance(state, asfc.NodeReport) else report_of(node, state)
               for node, state in states.items()}
    for node in "abc":
        reports.setdefault(node, report_of(node, "stopped"))
    return asfc.Observation(now, record, "me", reports, attempt, health, alive_s,
                            frozenset(cleaned), facts or {}, fell_back, raises, orders=orders)


def in_words(decision):
    """The actions of a decision in short: `possible=ab new`, `start b`, `stop a`."""
    words = []
    for action in decision.actions:
        if isinstance(action, asfc.ChangeRecord):
            parts = sorted(action.fields)
            if "possible_nodes" in parts:
                parts = ["possible=" + "".join(action.fields["possible_nodes"])]
            words.append(" ".join(parts + ["new"] * action.new_move))
        elif isinstance(action, asfc.FenceNode):
            words.append("fence " + action.node)
        elif isinstance(action, asfc.RaiseTerm):
            words.append("raise above {}".format(action.above))
        elif isinstance(action, asfc.CloseWish):
            words.append(action.wish.outcome)
        else:
            verb = "start" if isinstance(action, asfc.StartScheduler) else "stop"
            words.append(verb + " " + action.node)
    return "; ".join(words)


FAILED_A = (asfc.FailedNode("a", 9050.0, 60.0, "died"),)
FAILED_ALL = FAILED_A + (asfc.FailedNode("b", 9020.0, 60.0, "died"),
                         asfc.FailedNode("c", 9030.0, 60.0, "died"))
REMNANT = asfc.Process(71, 7001, 1, 70, 1000, "airflow worker")
TWO = (asfc.Process(70, 7000, 1, 70, 1000, "one"), asfc.Process(90, 9000, 1, 90, 1000, "two"))
ENDED = asfc.Intent(asfc.Pair(3, 5), "me", False, 40.0, 6.0)
JUST_ENDED = ENDED._replace(ended_s=1.0)
LONG = asfc.Intent(asfc.Pair(3, 5), "me", True, 100.0, None)
# a's record has not changed for longer than W = 32.45 s, and two queries had no answer.
SILENT = asfc.NodeFacts(7, 29.5, 33.0, 33.0, 2, True)
VOUCHED = (asfc.Vouch("a", 7, "op confirmed that it is off"),)
STUCK = asfc.HealthSign(True, "12:00:00", 31.0)
SEEN = asfc.Attempt("a", asfc.Pair(3, 5), 4990.0, "", seen_at=4991.0)


def to_go(target, drained="", **fields):
    """Orders with an open wish for a node, and with drained nodes."""
    wish = asfc.Wish("w1", "switchover", target, "ann on b", "10:00", 9100.0)._replace(**fields)
    return asfc.Orders(tuple(asfc.Drain(node, "ann on b", "09:00", "disks") for node in drained),
                       wish)


def drained(nodes):
    return to_go("", nodes)._replace(wish=None)


def starts_at(*times):
    """Starts made on a at these times of the record's clock."""
    return tuple(asfc.StartMade("a", at) for at in times)


# Saved by `start --dry-run --save FILE` while node a had no power and its W was over.
SAVED_OBSERVATION = """\
{"format": 1, "observation": {"Observation": {"alive_s": 0.0, "attempt": null, "cleaned":
{"frozenset": []}, "facts": {"mapping": {"a": {"NodeFacts": {"asked_in_move": true,
"fence_failed": false, "job_moves": false, "promise_s": 29.5, "record_age_s": 70.03905,
"silent_s": 65.03124, "unanswered": 2, "version": 48}}, "b": {"NodeFacts": {"asked_in_move":
false, "fence_failed": false, "job_moves": false, "promise_s": null, "record_age_s": 70.03905,
"silent_s": -5.007811, "unanswered": 0, "version": 44}}, "c": {"NodeFacts": {"asked_in_move":
false, "fence_failed": false, "job_moves": false, "promise_s": null, "record_age_s": 70.03905,
"silent_s": -5.007811, "unanswered": 0, "version": 44}}}}, "fell_back": false, "health":
{"HealthSign": {"heartbeat": "", "readable": false, "source": "", "unchanged_s": 0.0}},
"instance": "4da4f9fc3c6da5d7", "now": 1210.1559999999986, "raises": 0, "record":
{"ClusterRecord": {"alive_at_s": 120.208, "assigned": true, "cleared": false, "clock_s":
199.13896, "cluster": "4a14876aeaff1a09", "failed": [], "heartbeat_at":
"1129.108 s of virtual time", "heartbeat_timeout": 30.0, "holder": "a", "instance":
"4da4f9fc3c6da5d7", "lock_id": "lock-a", "move": 1, "paused": "", "possible_nodes": ["a"],
"started": true, "starts": [{"StartMade": {"at_s": 0.2158945, "node": "a"}}], "state_dir":
"~/.asfc", "term": 1, "vouched": []}}, "reports": {"mapping": {"a": {"NodeReport": {"answered":
false, "asked_at": 1205.1559999999986, "by_record": false, "directory": "", "done": "", "foreign":
[], "gate": null, "intent": null, "mains": [], "node": "a", "output": "", "reason":
"no answer in time", "refused": "", "remnants": [], "state": "unknown"}}, "b": {"NodeReport":
{"answered": true, "asked_at": 1205.1559999999986, "by_record": false, "directory": "lock-b",
"done": "", "foreign": [], "gate": {"Gate": {"cluster": "4a14876aeaff1a09", "instance":
"4da4f9fc3c6da5d7", "node": "b", "pair": {"Pair": {"move": 1, "term": 1}}}}, "intent": null,
"mains": [], "node": "b", "output": "", "reason": "its process list shows none", "refused": "",
"remnants": [], "state": "stopped"}}, "c": {"NodeReport": {"answered": true, "asked_at":
1205.1559999999986, "by_record": false, "directory": "lock-c", "done": "", "foreign": [], "gate":
{"Gate": {"cluster": "4a14876aeaff1a09", "instance": "4da4f9fc3c6da5d7", "node": "c", "pair":
{"Pair": {"move": 1, "term": 1}}}}, "intent": null, "mains": [], "node": "c", "output": "",
"reason": "its process list shows none", "refused": "", "remnants": [], "state": "stopped"}}}}}}}
"""


class DecisionTest(unittest.TestCase):
    # name of the case: (observation, actions in words, a part of the sentence)
    CASES = {
        "all is well": (
            observed("a", {"a": "running"}), "", "no action: I am active, the scheduler runs on a"),
        "first start: nothing while one node is unknown": (
            observed("abc", {"c": "silent"}, assigned=False, started=False), "",
            "a scheduler may run on c"),
        "first start: all stopped, the first node is chosen": (
            observed("abc", {}, assigned=False, started=False), "possible=bca new",
            "moving the scheduler to a"),
        "first start: one runs and is adopted": (
            observed("abc", {"b": "running"}, assigned=False, started=False), "possible=acb new",
            "runs on b is the one"),
        "first start: of two the first in the list is adopted": (
            observed("abc", {"b": "running", "c": "running"}, assigned=False, started=False),
            "possible=acb new", "runs on b"),
        "one runs beside the adopted one": (
            observed("acb", {"b": "running", "c": "running"}), "stop c", "the scheduler runs on b"),
        "two on one host": (
            observed("a", {"a": report_of("a", "running", mains=TWO)}), "stop a", "2 schedulers"),
        "nodes that proved it leave the list": (
            observed("bca", {"a": "running", "c": "silent"}), "possible=ca", "only c, a"),
        "an unknown node stays possible": (
            observed("ca", {"a": "running", "c": "silent"}), "", "waiting for c: no answer"),
        "dead: started again in place with a new move": (
            observed("a", {}), "possible=a new; start a", "starting the scheduler on a, term 3"),
        "dead, and an impossible node is silent: started all the same": (
            observed("a", {"b": "silent"}), "possible=a new; start a", "starting"),
        "dead, and a possible node is silent: nothing": (
            observed("ba", {"b": "silent"}), "", "a scheduler may run on b"),
        "the active scheduler node is silent: nothing": (
            observed("a", {"a": "silent"}), "", "Bring a back"),
        "a refused answer proves nothing": (
            observed("a", {"a": "refused"}), "", "metadata here is older than what the nodes"),
        "an answer at an older pair proves nothing": (
            observed("a", {"a": report_of("a", "stopped", asfc.Pair(3, 4))}), "", "may run on a"),
        "a move: its last step shrinks the list and starts, by the move already taken": (
            observed("ab", {}, started=False), "possible=b; start b", "a: none runs; b: none runs"),
        "a move whose target does not answer takes another": (
            observed("ab", {"b": "silent"}, started=False), "", "a scheduler may run on b"),
        "a left node that runs before a start elsewhere stays": (
            observed("ab", {"a": "running", "b": "silent"}, started=False), "possible=ba new",
            "is the one"),
        "one is seen where none was expected": (
            observed("a", {"a": "running", "c": "running"}), "possible=ca new", "found on c"),
        "one runs elsewhere while the active scheduler node is silent": (
            observed("ca", {"a": "silent", "c": "running"}), "stop c", "does not answer"),
        "one runs elsewhere and the active scheduler node has none": (
            observed("ca", {"c": "running"}), "possible=ac new", "runs on c is the one"),
        "a start under way is waited for": (
            observed("a", {"a": "starting"}), "", "starting: a: a start is under way"),
        "a start command that just ended is waited for": (
            observed("a", {"a": report_of("a", "starting", intent=JUST_ENDED)}), "", "starting"),
        "a start that showed no process has failed": (
            observed("a", {"a": report_of("a", "starting", intent=ENDED)}), "stop a; failed",
            "no scheduler appeared within 6 s"),
        "a start that showed no process while the database was away": (
            observed("a", {"a": report_of("a", "starting", intent=ENDED)})._replace(
                database_away_s=45.0), "stop a", "Airflow's database did not answer then"),
        "a start that was left open on another node is ended, too": (
            observed("ba", {"a": "running", "b": report_of("b", "starting", intent=ENDED)}),
            "stop b; failed", "the start on b failed"),
        "a start command that runs too long has failed": (
            observed("a", {"a": report_of("a", "starting", intent=LONG)}), "stop a; failed",
            "has run for 100 s"),
        "a failed node is left for the next": (
            observed("a", {}, failed=FAILED_A), "possible=ab new",
            "moving the scheduler to b from a"),
        "a failed node is left for the next that answers": (
            observed("a", {"b": "silent"}, failed=FAILED_A), "possible=ac new", "to c from a"),
        "only failed nodes: the one whose time is over first": (
            observed("a", {}, failed=FAILED_ALL), "possible=ab new", "to b from a"),
        "only failed nodes: not sooner than a poll after the last start": (
            observed("a", {}, failed=FAILED_ALL, starts=(asfc.StartMade("c", 8995.0),)), "",
            "every node that answers has failed"),
        "the restart budget is used up": (
            observed("a", {}, starts=starts_at(8500.0, 8600.0, 8700.0)),
            "possible=ab new", "to b from a"),
        "starts before the window don't count": (
            observed("a", {}, starts=starts_at(8000.0, 8600.0, 8700.0)),
            "possible=a new; start a", "starting"),
        "died before it showed life: a failed start": (
            observed("a", {}, attempt=SEEN), "failed", "it died within 10 s of its start"),
        "a start that did not arrive is no failure": (
            observed("a", {}, attempt=SEEN._replace(seen_at=None)), "", "did not take place"),
        "died at its start while the database was away: not held against the node": (
            observed("a", {}, attempt=SEEN, starts=starts_at(8100.0, 8990.0))._replace(
                database_away_s=19.0), "starts", "it is not held against the node"),
        "died at a start that was not counted": (
            observed("a", {}, attempt=SEEN, starts=starts_at(8100.0, 8984.0))._replace(
                database_away_s=9.0), "starts", "it is not held against the node"),
        "died at its start, and the database was away before that": (
            observed("a", {}, attempt=SEEN)._replace(database_away_s=21.0), "failed", "it died"),
        "dead since the database was away: the start is not counted": (
            observed("a", {}, starts=starts_at(8500.0, 8600.0), alive_at_s=8960.0)._replace(
                database_away_s=49.0), "possible=a new; start a", "this start is not counted"),
        "dead, and the database was away long before": (
            observed("a", {}, alive_at_s=8960.0)._replace(database_away_s=51.0),
            "possible=a new; start a", "a: none runs"),
        "remnants are stopped before the next start": (
            observed("a", {"a": report_of("a", "stopped", remnants=(REMNANT,))}), "stop a",
            "remnants"),
        "remnants that can't be stopped hold nothing up": (
            observed("a", {"a": report_of("a", "stopped", remnants=(REMNANT,))}, cleaned="a"),
            "possible=a new; start a", "starting"),
        "hung: two signs": (
            observed("a", {"a": "running"}, health=STUCK), "stop a", "hung"),
        "hung since its birth: a failed start": (
            observed("a", {"a": "running"}, health=STUCK, attempt=SEEN), "stop a; failed", "hung"),
        "one sign is not hung: the page can't be read": (
            observed("a", {"a": "running"}, health=STUCK._replace(readable=False)), "",
            "no action"),
        "one sign is not hung: the heartbeat moved lately": (
            observed("a", {"a": "running"}, health=STUCK._replace(unchanged_s=29.0)), "",
            "no action"),
        "a young scheduler is not hung": (
            observed("a", {"a": "running"}, health=STUCK, alive_s=34.0), "", "no action"),
        "a slow start is not hung": (
            observed("a", {"a": "running"}, health=STUCK, attempt=SEEN, alive_s=89.0), "",
            "watching whether it lives on"),
        "hung before its first heartbeat": (
            observed("a", {"a": "running"}, health=STUCK, attempt=SEEN, alive_s=91.0),
            "stop a; failed", "hung"),
        "started, and not yet sure": (
            observed("a", {"a": "running"}, attempt=SEEN), "", "watching whether it lives on"),
        "silent for W: the move begins after one query without an answer": (
            observed("a", {"a": "silent"}, facts={"a": SILENT._replace(unanswered=1)}),
            "possible=ab new", "moving the scheduler to b from a: no answer within 5 s; silent"),
        "silent, and no other node answers": (
            observed("a", {"a": "silent", "b": "silent", "c": "silent"}, facts={"a": SILENT}), "",
            "waiting: no other node answers that a scheduler could be started on; a: no answer"),
        "silent, and not asked since the move began: the start waits": (
            observed("ab", {"a": "silent"}, facts={"a": SILENT._replace(asked_in_move=False)},
                     started=False), "", "waiting until a has been silent"),
        "silent, asked only once: the start waits": (
            observed("ab", {"a": "silent"}, facts={"a": SILENT._replace(unanswered=1)},
                     started=False), "", "waiting until a has been silent"),
        "silent for W, asked twice and in this move: started elsewhere": (
            observed("ab", {"a": "silent"}, facts={"a": SILENT}, started=False),
            "possible=b; start b", "silent for 33 s"),
        "silent for less than W": (
            observed("a", {"a": "silent"}, facts={"a": SILENT._replace(silent_s=32.4)}), "",
            "waiting until a"),
        "silent without a promise": (
            observed("a", {"a": "silent"}, facts={"a": SILENT._replace(promise_s=None)}), "",
            "it has made no promise"),
        "silent, but its scheduler's heartbeat moves in the job table": (
            observed("ab", {"a": "silent"}, facts={"a": SILENT._replace(job_moves=True)},
                     started=False), "", "heartbeat moves in Airflow's table"),
        "a node that is not needed any more leaves the list by its silence": (
            observed("ab", {"a": "silent", "b": "running"}, facts={"a": SILENT}),
            "possible=b", "only b can have a scheduler now: a: no answer"),
        "an answer that is not clear is no silence": (
            observed("ab", {"a": "refused"}, facts={"a": SILENT}, started=False), "",
            "a scheduler may run on a"),
        "a person's word that it is off": (
            observed("ab", {"a": "silent"}, facts={"a": SILENT._replace(promise_s=None)},
                     started=False, vouched=VOUCHED), "possible=b; start b", "confirmed that it"),
        "a person's word begins the move, too": (
            observed("a", {"a": "silent"}, facts={"a": SILENT._replace(promise_s=None)},
                     vouched=VOUCHED), "possible=ab new", "op confirmed"),
        "a word lapses when the node's record has changed": (
            observed("ab", {"a": "silent"}, facts={"a": asfc.NodeFacts(8)}, started=False,
                     vouched=VOUCHED), "", "a scheduler may run on a"),
        "a word lapses when the node answers": (
            observed("ab", {"a": report_of("a", "stopped", asfc.Pair(3, 4))}, started=False,
                     facts={"a": SILENT}, vouched=VOUCHED), "vouched", "a answers, so nobody's"),
        "only ssh is broken: its own record proves, and another node is taken": (
            observed("a", {"a": report_of("a", "stopped", by_record=True)}), "possible=ab new",
            "moving the scheduler to b from a"),
        "only ssh is broken, and it runs": (
            observed("a", {"a": report_of("a", "running", by_record=True)}), "", "no action"),
        "a node whose promise has run out takes no start": (
            observed("a", {}, facts={"a": asfc.NodeFacts(7, 29.5, 16.0, 1.0)}), "possible=ab new",
            "moving the scheduler to b"),
        "a node that promises is taken before one that does not": (
            observed("a", {}, failed=FAILED_A, facts={
                "b": asfc.NodeFacts(7), "c": asfc.NodeFacts(7, 29.5, 1.0)}), "possible=ac new",
            "moving the scheduler to c"),
        "paused": (
            observed("a", {}, paused="by op: upgrade"), "", "PAUSED (by op: upgrade)"),
        "a gate ahead of the metadata": (
            observed("a", {"b": report_of("b", "refused", gate=asfc.Gate(
                asfc.Pair(9, 2), "x", "cluster", "b"))}), "raise above 9.2", "b has heard of 9.2"),
        "an equal gate of another instance": (
            observed("a", {"b": report_of("b", "refused", gate=asfc.Gate(
                PAIR, "x", "cluster", "b"))}), "raise above 3.5", "restored from a backup"),
        "the metadata has fallen back": (
            observed("a", {}, fell_back=True), "raise above 3.5", "it has fallen back"),
        "a gate of another cluster": (
            observed("a", {"a": report_of("a", "refused", gate=asfc.Gate(
                asfc.Pair(9, 2), "x", "another", "a"))}), "", "may run on a"),
        "two databases raise for ever: at some time it is enough": (
            observed("a", {"a": report_of("a", "refused", gate=asfc.Gate(
                asfc.Pair(9, 2), "x", "cluster", "a"))}, raises=4), "", "share one database"),
        "an old failure is forgotten": (
            observed("a", {"a": "running"}, failed=FAILED_A), "failed", "no action"),
    }

    # the same, of what people want
    STEERED = {
        "a wish: the target is the last possible node first, and nothing is stopped yet": (
            observed("a", {"a": "running"}, orders=to_go("c")), "possible=ac new",
            "moving the scheduler to c from a: pid 70 runs (the switchover to c, asked for by ann"),
        "then the scheduler is stopped": (
            observed("ac", {"a": "running"}, orders=to_go("c"), started=False), "stop a",
            "stopping the scheduler on a for the switchover to c"),
        "then proof, and the start": (
            observed("ac", {}, orders=to_go("c"), started=False), "possible=c; start c",
            "starting the scheduler on c, term 3: a: none runs; c: none runs"),
        "the start is under way": (
            observed("c", {"c": "starting"}, orders=to_go("c")), "", "starting: c"),
        "it runs, and it is not clear yet whether it lives on": (
            observed("c", {"c": "running"}, orders=to_go("c"), attempt=SEEN._replace(node="c")), "",
            "watching whether it lives on"),
        "it has lived on": (
            observed("c", {"c": "running"}, orders=to_go("c"), attempt=SEEN._replace(
                node="c", seen_at=4960.0)), "done", "is done: the scheduler runs on c"),
        "a new active controller finds it running": (
            observed("c", {"c": "running"}, orders=to_go("c")), "done", "is done"),
        "a wish that is closed is nothing": (
            observed("a", {"a": "running"}, orders=to_go("c", outcome="failed")), "", "no action"),
        "closed half-way: what runs is the one again": (
            observed("ac", {"a": "running"}, orders=to_go("c", outcome="failed"), started=False),
            "possible=ca new", "runs on a is the one"),
        "its time is over": (
            observed("ac", {"a": "running"}, orders=to_go("c", until_s=8999.0), started=False),
            "failed", "not done in time"),
        "the start on the target failed": (
            observed("a", {}, orders=to_go("a"), failed=FAILED_A), "failed",
            "the start on a failed: died"),
        "paused": (
            observed("a", {"a": "running"}, orders=to_go("c"), paused="by op"), "refused",
            "PAUSED (by op)"),
        "the target does not answer": (
            observed("a", {"a": "running", "c": "silent"}, orders=to_go("c")), "refused",
            "is refused: c: no answer within 5 s"),
        "it fell silent when it was the last possible node": (
            observed("ac", {"a": "running", "c": "silent"}, orders=to_go("c"), started=False),
            "failed", "is failed: c: no answer"),
        "only its record answers": (
            observed("a", {"a": "running", "c": report_of("c", "stopped", by_record=True)},
                     orders=to_go("c")), "refused", "c: none runs"),
        "its answer is not of this move": (
            observed("ac", {"a": "running", "c": report_of("c", "stopped", asfc.Pair(3, 4))},
                     orders=to_go("c"), started=False), "failed", "c: none runs"),
        "its promise has run out": (
            observed("a", {"a": "running"}, orders=to_go("c"), facts={
                "c": asfc.NodeFacts(7, 29.5, 16.0, 1.0)}), "refused", "its promise has run out"),
        "it has failed": (
            observed("a", {"a": "running"}, orders=to_go("c"), failed=FAILED_ALL), "refused",
            "c has failed"),
        "it has failed, and is forced": (
            observed("a", {"a": "running"}, orders=to_go("c", forced=True), failed=FAILED_ALL),
            "possible=ac new", "moving the scheduler to c"),
        "it has failed, is assigned and not started, and is forced": (
            observed("ac", {"a": "running"}, orders=to_go("c", forced=True), failed=FAILED_ALL,
                     started=False), "possible=ac new", "moving the scheduler to c"),
        "it is drained": (
            observed("a", {"a": "running"}, orders=to_go("c", "c", forced=True)), "refused",
            "c is drained, by ann on b at 09:00: disks"),
        "it is not in the list": (
            observed("a", {"a": "running", "x": "stopped"}, orders=to_go("x")), "refused",
            "x is not in scheduler_nodes"),
        "where the scheduler runs is not known": (
            observed("abc", {"a": "running"}, orders=to_go("c"), assigned=False, started=False),
            "refused", "not known yet"),
        "it runs one, too: that is stopped first": (
            observed("ca", {"a": "running", "c": "running"}, orders=to_go("c")), "stop c",
            "the scheduler runs on a"),
        "its own scheduler is the one, when it was to be started": (
            observed("ac", {"a": "running", "c": "running"}, orders=to_go("c"), started=False),
            "possible=ac new", "runs on c is the one"),
        "what runs can't be stopped: only its record answers": (
            observed("a", {"a": report_of("a", "running", by_record=True)},
                     orders=to_go("c", forced=True)), "refused", "a: pid 70 runs"),
        "another possible node is unknown: nothing is stopped": (
            observed("ba", {"a": "running", "b": "silent"}, orders=to_go("c", forced=True)),
            "refused", "b: no answer"),
        "the scheduler's node is silent": (
            observed("a", {"a": "silent"}, orders=to_go("c")), "refused", "a: no answer"),
        "the scheduler's node is silent, and it is forced": (
            observed("a", {"a": "silent"}, orders=to_go("c", forced=True)), "possible=ac new",
            "moving the scheduler to c from a: no answer"),
        "forced, proof is waited for": (
            observed("ac", {"a": "silent"}, orders=to_go("c", forced=True), started=False,
                     facts={"a": SILENT._replace(silent_s=3.0)}), "", "waiting until a has been"),
        "forced, and proved": (
            observed("ac", {"a": "silent"}, orders=to_go("c", forced=True), started=False,
                     facts={"a": SILENT}), "possible=c; start c", "silent for 33 s"),
        "the scheduler has just died": (
            observed("a", {}, orders=to_go("c")), "possible=ac new", "moving the scheduler to c"),
        "dead on a drained node": (
            observed("a", {}, orders=drained("a")), "possible=ab new", "moving the scheduler to b"),
        "alive on a drained node": (
            observed("a", {"a": "running"}, orders=drained("a")), "", "no action"),
        "the next node is drained": (
            observed("a", {}, failed=FAILED_A, orders=drained("b")), "possible=ac new",
            "moving the scheduler to c"),
        "drained while it was to have the scheduler": (
            observed("ab", {}, started=False, orders=drained("b")), "possible=abc new",
            "moving the scheduler to c"),
        "all are drained": (
            observed("a", {}, orders=drained("abc")), "",
            "waiting: no node of scheduler_nodes_in_cluster answers that a scheduler could be "
            "started on; a is drained, by ann"),
        "a silent node, and all others are drained": (
            observed("a", {"a": "silent"}, facts={"a": SILENT}, orders=drained("bc")), "",
            "within 29.5 s (x 1.1) it has fenced itself; b is drained"),
    }

    def test_each_observation_leads_to_its_decision(self):
        for name, (seen, actions, words) in list(self.CASES.items()) + list(self.STEERED.items()):
            with self.subTest(name):
                decision = asfc.decide(seen, settings())
                self.assertEqual(in_words(decision), actions)
                self.assertIn(words, decision.sentence)

    def test_starts_that_the_database_is_to_blame_for_leave_the_budget_alone(self):
        for name, starts in (
                ("died at its start while the database was away: not held against the node", 1),
                ("died at a start that was not counted", 2),
                ("dead since the database was away: the start is not counted", 2),
                ("dead, and the database was away long before", 1)):
            decision = asfc.decide(self.CASES[name][0], settings())
            self.assertEqual(len(decision.actions[0].fields["starts"]), starts, name)

    def test_fence_command_goes_before_silence_and_silence_counts_when_it_has_failed(self):
        with_command = settings(fence_command="switch-off")
        for facts, actions in (
                (SILENT, "fence a"), (SILENT._replace(promise_s=None), "fence a"),
                (SILENT._replace(silent_s=29.9), ""), (SILENT._replace(unanswered=1), ""),
                (SILENT._replace(job_moves=True), ""),
                (SILENT._replace(fence_failed=True), "possible=b; start b"),
                (SILENT._replace(fence_failed=True, promise_s=None), "")):
            seen = observed("ab", {"a": "silent"}, facts={"a": facts}, started=False)
            with self.subTest(facts):
                self.assertEqual(in_words(asfc.decide(seen, with_command)), actions)
        seen = observed("a", {"a": "silent"}, facts={"a": SILENT._replace(unanswered=1)})
        self.assertEqual(in_words(asfc.decide(seen, with_command)), "", "one more query first")

    def test_a_word_does_not_count_again_when_the_node_answered_and_fell_silent(self):
        """No controller runs there, so its record is as old as when the word was given."""
        facts = {"a": SILENT._replace(promise_s=None)}
        seen = observed("a", {"a": "running"}, facts=facts, vouched=VOUCHED)
        for action in asfc.decide(seen, settings()).actions:
            seen = seen._replace(record=seen.record._replace(**action.fields))
        self.assertIn("no action", asfc.decide(seen, settings()).sentence)
        silent = seen._replace(reports=dict(seen.reports, a=report_of("a", "silent")))
        decision = asfc.decide(silent, settings())
        self.assertEqual((in_words(decision), decision.sentence[:35]),
                         ("", "waiting: a scheduler may run on a, "))

    def test_a_turn_is_due_when_a_silence_ends(self):
        for facts, again_s in ((SILENT._replace(silent_s=30.0), 2.45), (SILENT._replace(
                unanswered=1), 1.0), (SILENT._replace(silent_s=5.0), 10.0)):
            seen = observed("ab", {"a": "silent"}, facts={"a": facts}, started=False)
            self.assertAlmostEqual(asfc.decide(seen, settings()).again_s, again_s)

    def test_each_observation_is_saved_and_read_again_exactly(self):
        for name, (seen, _, _) in list(self.CASES.items()) + list(self.STEERED.items()):
            facts = {"a": asfc.NodeFacts(7, 29.5, 1 / 3, 2.25, 1, True), "b": asfc.NO_FACTS}
            for one in (seen, seen._replace(facts=facts, fell_back=True, cleaned=frozenset("ab"))):
                with self.subTest(name):
                    text = one.to_text()
                    again = asfc.Observation.from_text(text)
                    self.assertEqual(again, one)
                    for left, right in ((again.record, one.record), (again.facts, one.facts),
                                        (again.reports, one.reports), (again[4:7], one[4:7])):
                        self.assertEqual(repr(left), repr(right), "the kinds, too")
                    self.assertEqual((again.to_text(), "\n" in text), (text, False))
                    self.assertEqual(asfc.decide(again, settings()), asfc.decide(one, settings()))

    def test_an_observation_that_a_dry_run_saved_is_a_test_case(self):
        decision = asfc.decide(asfc.Observation.from_text(SAVED_OBSERVATION), settings())
        self.assertEqual(in_words(decision), "possible=ab new")
        self.assertIn("moving the scheduler to b from a: no answer in time; silent for 65 s, and "
                      "within 29.5 s (x 1.1) it has fenced itself", decision.sentence)

    def test_what_is_no_saved_observation_is_one_clear_error(self):
        good = DecisionTest.CASES["all is well"][0].to_text()
        cases = ("", "no JSON", "[]", "{}", "null", good[:-9],
                 good.replace('"format": 1', '"format": 2'),
                 good.replace('"instance"', '"instanze"'), good.replace('"NodeReport"', '"Popen"'),
                 '{"format": 1, "observation": {"Pair": {"term": 1, "move": 2}}}')
        for text in cases:
            with self.subTest(text[:60]), self.assertRaisesRegex(
                    asfc.ConfigurationError, "no observation that asfc saved|knows format 1"):
                asfc.Observation.from_text(text)

    def test_each_action_has_words_for_a_dry_run(self):
        pair, process = asfc.Pair(3, 5), REMNANT
        cases = (
            (asfc.ChangeRecord({"possible_nodes": ("b", "a"), "started": False}, new_move=True),
             "change the record: possible_nodes = b, a; started = False, in a new move"),
            (asfc.ChangeRecord({"failed": FAILED_A, "vouched": ()}),
             "change the record: failed = a; vouched = None"),
            (asfc.StartScheduler("a", "b: off"), "start the scheduler on a (b: off)"),
            (asfc.StopScheduler("a", "hung"), "stop the scheduler on a (hung)"),
            (asfc.StopScheduler("a", "two", process),
             "stop the scheduler on a, all but pid 71 (two)"),
            (asfc.FenceNode("a", "silent"), "run fence_command for a (silent)"),
            (asfc.RaiseTerm(pair), "take a term above 3.5"),
            (asfc.CloseWish(to_go("c", outcome="done").wish),
             "tell that the switchover to c, asked for by ann on b at 10:00 is done"))
        for action, words in cases:
            self.assertEqual(asfc.action_in_words(action), words)

    def test_a_daemon_that_does_not_appear_or_live_is_told_with_a_word_about_its_pid_file(self):
        for command, told in (("airflow scheduler -D", True), ("airflow scheduler --daemon", True),
                              (". /v/bin/activate; airflow scheduler -n 5 -D", True),
                              ("airflow scheduler", False), ("tmux -D x airflow scheduler", False)):
            configuration = settings(airflow_scheduler_start_command=command, settle_s=35.0)
            nothing = report_of("a", "starting", intent=ENDED._replace(ended_s=36.0))
            for seen, done in ((observed("a", {"a": nothing}), "stop a; failed"),
                               (observed("a", {}, attempt=SEEN), "failed")):
                decision = asfc.decide(seen, configuration)
                self.assertEqual(in_words(decision), done)
                self.assertEqual("airflow-scheduler.pid" in decision.sentence, told, command)

    def test_paused_nothing_is_done_and_a_start_is_not_judged_afterwards(self):
        for name, (seen, _, _) in self.CASES.items():
            paused = seen._replace(record=seen.record._replace(paused="by ann"))
            decision = asfc.decide(paused, settings())
            self.assertEqual((decision.actions, decision.healthy), ((), None), name)
            self.assertEqual(decision.attempt_over, "paused" if seen.attempt else "", name)
            self.assertIn("PAUSED (by ann)", decision.sentence)

    def test_a_start_has_worked_when_it_lived_long_enough_or_its_heartbeat_moved(self):
        moved = asfc.HealthSign(True, "12:00:05", 1.0)
        paged = SEEN._replace(heartbeat="12:00:00", source="page")
        cases = ((SEEN, asfc.NO_HEALTH_SIGN, ""),
                 (SEEN._replace(seen_at=4960.0), asfc.NO_HEALTH_SIGN, "worked"),
                 (SEEN._replace(heartbeat="12:00:00"), moved, "worked"),
                 (SEEN._replace(seen_at=4960.0, heartbeat="12:00:05"), moved, ""),
                 (paged, moved._replace(source="page"), "worked"),
                 (paged, moved._replace(source="table"), ""),
                 (paged._replace(seen_at=4960.0), moved._replace(source="table"), "worked"))
        for attempt, health, expected in cases:
            decision = asfc.decide(observed("a", {"a": "running"}, attempt=attempt, health=health),
                                   settings())
            self.assertEqual(decision.attempt_over, expected)

    def test_a_start_is_only_decided_when_every_possible_node_has_proved_that_none_runs(self):
        """Every combination of three nodes' answers and possible nodes."""
        states = ("running", "stopped", "starting", "silent", "refused")
        starts = 0
        for possible in ("a", "ab", "ba", "bca", "acb", "abc"):
            for assigned, started in ((False, False), (True, False), (True, True)):
                for answers in itertools.product(states, repeat=3):
                    seen = observed(possible, dict(zip("abc", answers)), assigned=assigned,
                                    started=started)
                    decision = asfc.decide(seen, settings())
                    for action in decision.actions:
                        if isinstance(action, asfc.StartScheduler):
                            starts += 1
                            self.assertTrue(all(map(seen.proven_stopped, possible)))
                            self.assertNotIn("running", answers)
                            self.assertEqual(decision.actions[0].fields["possible_nodes"],
                                             (action.node,))
        self.assertGreater(starts, 0)

    def test_with_a_wish_nothing_is_stopped_and_started_but_on_the_way_to_it(self):
        """Every combination of answers and possible nodes: no start on a drained node, and none
        without proof; what runs is stopped for a wish only where the target can have it."""
        states = ("running", "stopped", "starting", "silent")
        starts, stops, target, configuration = 0, 0, "c", settings()
        for possible, started, forced, nodes in itertools.product(
                ("a", "ac", "bac"), (True, False), (True, False), ("", "a", "c")):
            orders = to_go(target, nodes, forced=forced)
            for answers in itertools.product(states, repeat=3):
                seen = observed(possible, dict(zip("abc", answers)), started=started, orders=orders)
                for action in asfc.decide(seen, configuration).actions:
                    if isinstance(action, asfc.StartScheduler):
                        starts += 1
                        self.assertTrue(all(map(seen.proven_stopped, possible)))
                        self.assertNotIn(action.node, nodes)
                    elif isinstance(action, asfc.StopScheduler) and "for the" in action.why:
                        stops += 1
                        self.assertEqual((possible[-1], started), (target, False))
                        self.assertTrue(seen.says_stopped(target) and seen.answers(target))
                        self.assertNotIn(target, nodes)
        self.assertGreater(min(starts, stops), 0)

    def test_a_wish_that_begins_ends_the_watch_over_an_earlier_start(self):
        seen = observed("a", {"a": "running"}, orders=to_go("c"), attempt=SEEN)
        self.assertEqual(asfc.decide(seen, settings()).attempt_over, "moved")

    def test_a_round_in_which_schedulers_had_to_be_stopped_has_failed(self):
        for name in ("two on one host", "one runs beside the adopted one", "hung: two signs"):
            self.assertIs(asfc.decide(self.CASES[name][0], settings()).healthy, False, name)

    def test_a_large_restart_budget_can_run_out_too(self):
        starts = tuple(asfc.StartMade("a", 8900.0 + at) for at in range(24))
        large = settings(scheduler_restart_budget=25)
        decision = asfc.decide(observed("a", {}, starts=starts), large)
        self.assertEqual(len(decision.actions[0].fields["starts"]), 25)
        decision = asfc.decide(observed("a", {}, starts=starts + starts[:1]), large)
        self.assertEqual(in_words(decision), "possible=ab new")

    def test_the_back_off_of_a_failed_node_doubles_up_to_an_hour(self):
        record = asfc.ClusterRecord("cluster", clock_s=100.0)
        waits = []
        for _ in range(8):
            record = record._replace(failed=asfc.mark_failed(record, "a", "died"))
            waits.append(record.failed[0].wait_s)
        self.assertEqual(waits, [60, 120, 240, 480, 960, 1920, 3600, 3600])


###############################################################################
# The simulation ##############################################################
###############################################################################

# The real controllers of a few hosts, in virtual time, under schedules of faults drawn from a
# seed. A host has a clock of its own rate; what travels between hosts and to the metadata can be
# late, lost on its way or on its way back, or carried out after nobody waits for it any more;
# controllers, scripts and whole hosts can be frozen or killed between a check and what follows it.


class Violation(Exception):
    """A promise of asfc that was broken: which one, and how."""


class Call:
    """Something that was sent and whose result a thread waits for."""
    __slots__ = ("result", "thread", "lost")

    def __init__(self):
        self.result = self.thread = None

    def finish(self, clock, result):
        if self.result is None:
            self.result = result
            if self.thread:
                clock.enter(self.thread, clock.time)


class Trap:
    """Freezes (for so many seconds) or kills (None) whoever comes to a point."""

    def __init__(self, point, freeze_s=None):
        self.point, self.freeze_s = point, freeze_s


def always(value):
    return lambda *_, **__: value


class Script:
    """A request that a host carries out, step by step. A timer there kills it at its limit."""
    PIDS = 10000

    def __init__(self, host, request, limit_s, reply):
        self.host, self.request, self.limit_s, self.reply = host, request, limit_s, reply
        self.steps = host.model.handle(request)
        self.over = self.timed = False
        host.last_script += 1
        self.pid = self.PIDS + host.last_script
        self.parent = None
        host.scripts.append(self)
        self.go_on()

    def go_on(self):
        while not self.over:
            try:
                point = next(self.steps)
            except StopIteration as end:
                self.leave()
                self.host.simulation.note_answer(self.host, self.request, end.value)
                self.reply(end.value)
                return
            pause_s = self.host.pause_at(self, point)
            if pause_s and not self.over:
                self.wait(pause_s)
                return

    def wait(self, pause_s):
        self.host.call(pause_s, self.go_on)
        if not self.timed:
            self.timed = True
            self.host.call(self.limit_s, self.kill)

    def kill(self):
        if not self.over:
            self.leave()
            self.steps.close()

    def leave(self):
        self.over = True
        self.host.scripts.remove(self)

    def as_process(self):
        name = "asfc-{}@{}".format(self.request.verb, self.request.node)
        return asfc.LocalProcess(self.pid, 1, 1, self.pid, 0, ("sh", "-c", "eval", name), "")


class SimulatedNode(NodeModel):
    """A NodeModel that tells of each scheduler that comes or goes, and whose signals take time."""

    def __init__(self, host):
        self.host = host
        self.alive = ()
        self.pending = []        # starts whose command has ended, and whose process comes later
        self.strays = []         # start commands beside which another one was started
        self._mains = []
        super().__init__(host.now)

    @property
    def mains(self):
        return self._mains

    @mains.setter
    def mains(self, mains):
        self._mains = mains
        self.compare()

    def compare(self):
        """Tell the simulation which schedulers came and went since the last time."""
        alive = tuple(main[:2] for main in self._mains)
        if alive != self.alive:
            before, self.alive = self.alive, alive
            self.host.simulation.schedulers_changed(self.host, before, alive)

    def appear(self, detached=False):
        super().appear(detached)
        self.compare()

    def emerge(self):
        """A process that belongs to no start command of the model appears."""
        self.last_pid += 1
        self.mains = self.mains + [asfc.Process(self.last_pid, int(self.clock() * 100), 1,
                                                self.last_pid, 0, "airflow scheduler")]

    def die(self, remnants=0):
        super().die(remnants)
        self.host.simulation.count["deaths that left remnants"] += bool(remnants)
        self.compare()

    def power_cycle(self):
        self.pending, self.strays = [], []
        super().power_cycle()

    def processes(self, node):
        scripts = [script.as_process() for script in self.host.scripts]
        late = [asfc.LocalProcess(pid, 1, 1, pid, 0, ("sh", "-c", "later"), node)
                for pid in self.pending]
        return scripts + late + super().processes(node)

    def signal(self, process, number):
        """SIGTERM may be ignored; SIGKILL takes a moment."""
        host = self.host
        if process[:2] in self.alive:
            stubborn = host.stubborn and number == signal.SIGTERM
            host.simulation.count["SIGTERMs ignored"] += stubborn
            if not stubborn:
                host.call(host.simulation.random.uniform(0.0, 0.4), functools.partial(
                    super().signal, process, number))
            return
        for script in list(host.scripts):
            if script.pid == process.pid:
                script.kill()
        self.pending = [pid for pid in self.pending if pid != process.pid]
        if process.pid == self.COMMAND_PID:
            self.strays = []
        super().signal(process, number)

    def _stop(self, request, lines):
        """What a service manager starts later, as by `systemctl start --no-block`, is not seen."""
        if not request.keep:
            self.strays = []
        yield from super()._stop(request, lines)


class SimulatedHost:
    """A machine: its clock, its power, its node, and the controller that runs on it."""

    def __init__(self, simulation, name, rate):
        self.simulation, self.clock, self.name, self.rate = simulation, simulation.clock, name, rate
        self.boot, self.booted_at = 0, self.clock.time - simulation.random.uniform(100, 9000)
        self.on, self.suspended_until = True, 0.0
        self.unplugged = False            # as long as a person looks after that
        self.world = self.configuration = None
        self.traps, self.script_traps, self.scripts = [], [], []
        self.last_script = 0
        self.metadata = simulation.metadata
        self.starts_after_s = simulation.random.uniform(0, 3)
        self.last_command = self.settled = None   # start commands
        self.stubborn = self.broken = False
        self.no_promise = ""
        self.absent_since = self.clock.time    # its controller does not run; None: it does
        self.absences = []
        self.ended_in_order = False       # then it took its promise back, and is not missed
        self.lock_id = "lock-" + name
        self.model = SimulatedNode(self)
        self.model.directory_id = self.lock_id

    @property
    def is_other(self):
        """Whether it belongs to another cluster."""
        return self.metadata is not self.simulation.metadata

    def is_settled(self, command):
        """Whether a start command has become a scheduler, or has ended otherwise."""
        return command is self.settled

    def die(self, remnants):
        if self.model.alive:
            self.model.die(remnants)

    def now(self):
        return (self.clock.time - self.booted_at) * self.rate

    def true_time(self, local_s):
        return self.booted_at + local_s / self.rate

    def call(self, delay_s, function):
        """Have something happen on this host: later when it is suspended, never after its end."""
        boot = self.boot

        def happen():
            if self.boot != boot or not self.on:
                return
            if self.suspended_until > self.clock.time:
                self.clock.call(self.suspended_until, happen)
            else:
                function()
        self.clock.call(self.clock.time + delay_s, happen)

    def pause_at(self, script, point):
        """How long a script stays at a point of its work."""
        simulation = self.simulation
        for trap in self.script_traps:
            if trap.point == point:
                self.script_traps.remove(trap)
                return self.spring(trap, script, point)
        if point == "waiting":
            return 0.1
        if point == "sent on its way":
            simulation.start_accepted(self, script.request)
        if point == "start command killed" and self.model.mains:
            wait_s = simulation.stop_wait_s
            return 2 * wait_s if self.stubborn else simulation.random.uniform(0, wait_s)
        return simulation.random.choice(simulation.script_pauses)

    def spring(self, trap, script, point):
        simulation = self.simulation
        simulation.count["scripts frozen or killed"] += 1
        simulation.tell("the {} on {} is {} at '{}'".format(
            script.request.verb, self.name, "killed" if trap.freeze_s is None else
            "frozen for {:.1f} s".format(trap.freeze_s), point))
        if point == "sent on its way":
            simulation.start_accepted(self, script.request)
        if trap.freeze_s is None:
            script.kill()
        return trap.freeze_s

    # -- its controller's life

    def begins(self):
        self.ended_in_order = False
        if self.absent_since is not None:
            self.absences.append((self.absent_since, self.clock.time))
        self.absent_since = None

    def ends(self):
        if self.absent_since is None:
            self.absent_since = self.clock.time

    def was_absent_within(self, since, until):
        spans = self.absences + [(self.absent_since, math.inf)] * (self.absent_since is not None)
        return any(begin < until and end > since for begin, end in spans)


class SimulatedWorld(VirtualWorld):
    """The door of one run of a controller on a SimulatedHost."""

    def __init__(self, host):
        super().__init__(host.simulation, host.name)
        self.host, self.rate = host, host.rate
        self.controller = None
        self.dead = False
        self.stuck = self.deaf = False   # a command never returns; none can be run

    def now(self):
        host = self.host
        return (self.clock.time - host.booted_at) * self.rate

    def pause(self, seconds):
        self.clock.wait(max(1e-4, seconds) / self.rate)   # some time passes always

    def utc_text(self):
        self.reach("record made")    # after the look at the lease or at the promise
        return "{:.0f} by a clock that jumps".format(self.clock.time + self.cluster.wall_clock())

    def boot_clock(self):
        return "boot-{}".format(self.host.boot), self.now()

    def reach(self, *points):
        """A moment between a check and what follows it: a trap may stand there."""
        for trap in self.host.traps:
            if trap.point in points:
                self.host.traps.remove(trap)
                self.spring(trap)
                return

    def spring(self, trap):
        self.cluster.count["caught before " + trap.point] += 1
        if trap.freeze_s is None:
            self.cluster.kill_controller(self.name, "before " + trap.point)
            raise VirtualEnd()
        self.cluster.freeze_controller(self.name, trap.freeze_s, "before " + trap.point)
        self.clock.wait(0)

    def wait_for(self, calls, limit_s):
        """Wait until all calls have their results, at most so long; the rest have none."""
        clock, ends_at = self.clock, self.clock.time + limit_s / self.rate
        me = clock.current
        for call in calls:
            call.thread = me
        try:
            while clock.time < ends_at and any(call.result is None for call in calls):
                clock.wait_until(ends_at)
        finally:
            for call in calls:
                call.thread = None

    def run(self, commands):
        request = commands[0].request if commands else None
        verb = request.verb if request else "fence_command"
        if verb == "fence_command" and any("fence it" in word for word in commands[0].argv):
            raise AssertionError("fence_command stands in the process list")
        if request is None or not request.own:
            self.reach("send", "send " + verb)
        if self.deaf:
            self.clock.wait(0.1)
            return [asfc.CommandResult(None, "", "", "no more processes")] * len(commands)
        while self.stuck:
            self.clock.wait(1.0)
        calls = [self.cluster.send(self, command) for command in commands]
        self.wait_for(calls, max([command.timeout_s for command in commands] or [0]))
        for command, call in zip(commands, calls):
            self.cluster.note_silence(self.name, command.request,
                                      not (call.result and call.result.stdout))
        none = asfc.CommandResult(None, "", "", "no answer in time")
        return [call.result or none for call in calls]

    def read_text(self, path):
        return self.model.fence_text if path.endswith("/fence") else None

    def write_text(self, path, text, durable=True):
        self.reach("write file")
        if self.cluster.random.random() < self.cluster.disk_full:
            self.cluster.count["writes to a full disk"] += 1
            raise OSError(28, "No space left on device")
        self.model.fence_text = text
        self.model.fence_deadline = int(text.split()[2]) / 100.0 if text else None

    @property
    def model(self):
        return self.host.model

    def processes(self):
        return self.model.processes(self.name)

    def signal_process(self, process, number):
        self.reach("signal")
        self.cluster.note_signal(self.host, self.clock.current.name, process, number)
        self.model.signal(process, number)
        return True

    def http_get(self, url, timeout_s, verify_tls):
        self.clock.wait(0.05)
        if self.cluster.page_away:
            raise OSError("no answer")
        return self.cluster.health_page()

    def remove_file(self, path):
        self.reach("write file")
        self.model.fence_text = self.model.fence_deadline = None


class SimulatedClient(asfc.MetadataService):
    """A controller's way to the metadata."""

    def __init__(self, world, limit_s):
        self.world, self.limit_s = world, limit_s

    def exchange(self, writes=()):
        world = self.world
        if writes:
            world.reach("exchange", *("write " + write.name.partition("/")[0]
                                      for write in writes))
        call = world.host.metadata.send(world.host, writes)
        if writes:
            world.reach("reply")
        world.wait_for([call], self.limit_s)
        if call.result is None:
            raise asfc.MetadataError("no answer in time")
        if isinstance(call.result, str):
            raise asfc.MetadataError(call.result)
        return call.result

    def legacy_heartbeat(self):
        return None

    def describe(self):
        return "simulated metadata"


class SimulatedJobs:
    """Airflow's table of jobs: a scheduler that reaches the database moves its heartbeat."""

    def __init__(self, world):
        self.world = world

    def describe(self):
        return "simulated job table"

    def scheduler_jobs(self):
        world, simulation = self.world, self.world.cluster
        self.world.clock.wait(0.02)
        if simulation.page_away or not simulation.passes(world.name, SimulatedMetadata.NAME):
            raise asfc.MetadataError("no answer")
        return simulation.jobs()


class SimulatedMetadata(VirtualMetadata):
    """Records that are reached over links; what is sent may be applied long after."""
    NAME = "metadata"

    def __init__(self, cluster):
        super().__init__(cluster)
        self.read_only = False
        self.lost_share = 0.0
        self.delays = {}      # host: how long one way may take

    def send(self, host, writes):
        simulation, call = self.cluster, Call()
        clock = simulation.clock
        slow_s = self.delays.get(host.name, 0.0)
        if not simulation.passes(host.name, self.NAME) or self.away:
            if simulation.refuses:
                clock.call(clock.time + 0.01, lambda: call.finish(clock, "connection refused"))
            return call

        def arrive():
            if not self.away:
                result = self.answer(writes, host)
                clock.call(clock.time + self.way_s(slow_s), lambda: come_back(result))

        def come_back(result):
            if simulation.passes(self.NAME, host.name) \
                    and simulation.random.random() >= self.lost_share:
                call.finish(clock, result)
            elif writes:
                simulation.count["replies of the metadata lost"] += 1
        clock.call(clock.time + self.way_s(slow_s), arrive)
        return call

    def way_s(self, slow_s):
        return self.cluster.random.uniform(0.002, 0.02) if not slow_s \
            else self.cluster.random.random() ** 2 * slow_s

    def answer(self, writes, host):
        if self.read_only:
            self.cluster.count["exchanges with read-only metadata"] += 1
            return "the server is read-only"
        before = self.records.get(asfc.CLUSTER)
        exchange = self.apply(writes)
        if not host.is_other and any(
                won and write.name == asfc.CLUSTER for won, write in zip(exchange.won, writes)):
            self.cluster.cluster_written(host, before, self.records[asfc.CLUSTER])
        if self.cluster.tracing:
            self.tell(writes, exchange.won, host)
        return exchange

    def tell(self, writes, won, host):
        for write, has_won in zip(writes, won):
            if write.name.startswith(asfc.NODE_PREFIX) and has_won:
                record = asfc.NodeRecord.from_text(write.value)
                self.cluster.tell_change(write.name, "record {}: {} gate {}{}{}".format(
                    write.name, record.state, record.gate and record.gate.pair,
                    ", intent" if record.intent else "",
                    "" if record.promise_s else ", no promise"))
            elif write.name == asfc.CLUSTER and not has_won:
                self.cluster.tell("the write of {} to the record cluster loses".format(host.name))


class MetadataAtOnce(asfc.MetadataService):
    """The records as a verb changes them, in no time."""

    def __init__(self, metadata):
        self.metadata = metadata

    def exchange(self, writes=()):
        return self.metadata.apply(writes)


class SimulatedNodes(asfc.Nodes):
    """Sends requests as they are: what their command lines do is tested against the model."""

    def command(self, request):
        return asfc.Command(("virtual",), self._timeout_s(request.verb, False), request=request)


class Simulation(VirtualCluster):
    """One run from a seed: hosts, faults, healing; `violations` tells what was broken."""

    def __init__(self, seed, mix, tracing=False):
        self.seed, self.mix, self.tracing = seed, mix, tracing
        self.random = random.Random("{} {}".format(mix.name, seed))
        self.clock = VirtualClock()
        self.clock.watch = self.check_leases
        self.count, self.violations, self.lines = collections.Counter(), [], []
        self.metadata = SimulatedMetadata(self)
        self.cuts, self.refuses = collections.Counter(), False
        self.late_s = self.late_share = self.lost_share = 0.0
        self.routes = {}              # names that lead to another host than their own
        self.disk_full, self.page_away, self.hung, self.heartbeat = 0.0, False, set(), "never"
        self.script_pauses = (0, 0, 0, 0.02, 0.1)
        self.start_kinds = ("normal",)
        self.mails, self.told = [], {}
        self.hosts, self.worlds = {}, {}
        self.live = []                    # leases of controllers that run
        self.highest_start = asfc.Pair(0, 0)
        self.unanswered = collections.Counter()   # (asker, node): queries in a row
        self.left = {}                    # the same for the one that decided on a start last
        self.snapshot = None
        self.misled = {}                  # instances, and since when
        self.driver = None
        self.jump_s = self.late_starts = self.late_stops = 0.0
        self.tickets = {}
        self.overlap_since, self.overlap_s, self.born_at = None, 0.0, 0.0
        self.has_jobs, self.rows = False, {}
        self.peaceful = False             # nothing befalls the scheduler, so nothing may be done
        self.first_cluster = ""
        self.names = ("a", "b", "c")
        mix.prepare(self)

    # -- telling

    def tell(self, text):
        if self.tracing:
            self.lines.append("{:9.3f} {}".format(self.clock.time - 1000, text))

    def tell_change(self, key, text):
        if self.told.get(key) != text:
            self.told[key] = text
            self.tell(text)

    def broken(self, promise, text):
        if self.violations and self.violations[-1].endswith(text):
            return
        self.violations.append("{} at {:.3f}: {}".format(promise, self.clock.time - 1000, text))
        self.tell("***** {} IS BROKEN: {}".format(promise, text))
        if self.driver:
            self.clock.enter(self.driver, self.clock.time)

    # -- hosts and controllers

    def add_host(self, name, rate, fields):
        host = self.hosts[name] = SimulatedHost(self, name, rate)
        host.configuration = base_configuration()._replace(**fields)
        return host

    def later(self, seconds, function, *arguments):
        self.clock.call(self.clock.time + seconds, functools.partial(function, *arguments))

    def set_for(self, seconds, thing, name, value):
        """Give an attribute another value, and so many seconds later the one that it had at first.

        What is set anew meanwhile stays until its own end; the healing ends all.
        """
        self.tell("{} is {} for {} s".format(name, value, seconds))
        setattr(thing, name, value)
        ticket = self.tickets[id(thing), name] = object()

        def end():
            if self.tickets.get((id(thing), name)) is ticket:
                self.tell("{} is as before".format(name))
                setattr(thing, name, self.usual(thing, name))
        self.later(seconds, end)

    def usual(self, thing, name):
        return ("normal",) if name == "start_kinds" else type(getattr(thing, name))()

    def active_hosts(self):
        return [host.name for host in self.hosts.values()
                if host.world and host.world.controller.lease.active and not host.is_other]

    def start_controller(self, name):
        host = self.hosts[name]
        if not host.on or host.world is not None:
            return
        world = host.world = self.worlds[name] = SimulatedWorld(host)
        world.frozen_until = host.suspended_until
        configuration = host.configuration
        log = logging.Logger("simulated " + name, logging.INFO if self.tracing else logging.ERROR)
        log.addHandler(SimulationLog(self, name))
        client = SimulatedClient(world, configuration.metadata_limit_s)
        world.controller = asfc.FailoverController(
            world, configuration, client, SimulatedNodes(world, configuration), host.lock_id,
            lambda: host.model.gate, log, host.no_promise,
            SimulatedJobs(world) if self.has_jobs else None)
        if not host.is_other:
            self.live.append(world.controller.lease)
        host.begins()
        self.tell("the controller on {} starts (h {:.1f}, F {:.1f}, p {:.1f})".format(
            name, configuration.heartbeat_timeout, configuration.promise_s,
            configuration.poll_frequency))
        self.clock.spawn(world, functools.partial(self.run_controller, host, world), "controller")

    def run_controller(self, host, world):
        try:
            world.controller.run()
            self.tell("the controller on {} has ended in order".format(host.name))
            host.ended_in_order = True
        except asfc.AsfcError as error:
            self.count["controllers that ended by an error"] += 1
            self.tell("the controller on {} ends: {}".format(host.name, error))
            host.call(5.0, lambda: self.start_controller(host.name))
        self.bury(host, world)

    def bury(self, host, world):
        world.dead = True
        if host.world is world:
            host.world = None
            if not host.ended_in_order:
                host.ends()
        if world.controller.lease in self.live:
            self.live.remove(world.controller.lease)

    def kill_controller(self, name, why="at random"):
        host = self.hosts[name]
        world = host.world
        if world is None:
            return
        self.tell("the controller on {} is killed {}".format(name, why))
        self.count["controllers killed"] += 1
        for thread in self.clock.threads:
            if thread.world is world:
                self.clock.kill(thread)
        self.bury(host, world)

    def freeze_controller(self, name, seconds, why="at random"):
        host = self.hosts[name]
        if host.world is None:
            return
        self.tell("the controller on {} is frozen for {:.1f} s {}".format(name, seconds, why))
        self.count["controllers frozen"] += 1
        world, until = host.world, self.clock.time + seconds
        world.frozen_until = max(world.frozen_until, until)
        host.absences.append((self.clock.time, world.frozen_until))

    def stop_controller(self, name):
        world = self.hosts[name].world
        if world and world.stop_handler:
            self.tell("the controller on {} is asked to stop".format(name))
            self.count["controllers stopped"] += 1
            world.stop_handler("SIGTERM")

    def suspend(self, name, seconds):
        host = self.hosts[name]
        if not host.on:
            return
        self.tell("the host {} is suspended for {:.1f} s".format(name, seconds))
        host.suspended_until = max(host.suspended_until, self.clock.time + seconds)
        host.absences.append((self.clock.time, host.suspended_until))
        if host.world:
            host.world.frozen_until = max(host.world.frozen_until, host.suspended_until)

    def power_off(self, name, why="at random"):
        host = self.hosts[name]
        if not host.on:
            return
        self.tell("the host {} loses power {}".format(name, why))
        self.kill_controller(name, "with its host")
        host.on, host.suspended_until = False, 0.0
        for script in list(host.scripts):
            script.kill()
        host.model.power_cycle()

    def power_on(self, name):
        host = self.hosts[name]
        if host.on or host.unplugged:
            return
        self.tell("the host {} is switched on".format(name))
        host.on, host.boot, host.booted_at = True, host.boot + 1, self.clock.time - 5.0
        host.call(self.random.uniform(1, 5), lambda: self.start_controller(name))

    # -- the network

    def passes(self, origin, target):
        return not self.cuts[origin, target] and all(
            name not in self.hosts or self.hosts[name].on for name in (origin, target))

    def send(self, world, command):
        """A command sets out; what it asks may be carried out much later than anyone waits."""
        call, request = Call(), command.request
        if request is None:
            self.clock.call(self.clock.time + 0.5, lambda: self.run_fence(world, command, call))
        elif request.node == world.name:
            self.send_here(world, command, call)
        elif request.node in self.hosts:
            self.send_away(world, command, call)
        return call

    def send_here(self, world, command, call):
        def reply(text):
            call.finish(self.clock, asfc.CommandResult(0, text, ""))

        def begin():
            script = Script(world.host, command.request, command.timeout_s, reply)
            if not script.over:   # this host's own client kills it at its limit
                world.host.call(command.timeout_s, lambda: world.dead or script.kill())
        world.host.call(0.01, begin)

    def send_away(self, world, command, call):
        origin, request, clock = world.name, command.request, self.clock
        target = self.hosts[self.routes.get(request.node, request.node)]

        def reply(text):
            clock.call(clock.time + self.way_s(), lambda: come_back(text))

        def come_back(text):
            if self.random.random() < self.lost_share or not self.passes(target.name, origin):
                self.count["replies of nodes lost"] += 1
                return
            call.finish(clock, asfc.CommandResult(0, text, ""))

        def arrive():
            if not self.passes(origin, target.name):
                if self.refuses:
                    call.finish(clock, asfc.CommandResult(255, "", "connection refused"))
                return
            share = max(self.late_share, {"start": self.late_starts, "stop": self.late_stops}.get(
                request.verb, 0.0))
            late_s = self.random.uniform(0, self.late_s) if self.random.random() < share else 0.0
            if late_s > command.timeout_s:
                self.count[{"query": "late queries"}.get(
                    request.verb, "late {}s".format(request.verb))] += 1
            target.call(late_s, lambda: Script(target, request, command.timeout_s + 0.5, reply))
        clock.call(clock.time + self.way_s(), arrive)

    def way_s(self):
        return self.random.uniform(0.02, 0.08)

    def run_fence(self, world, command, call):
        name = command.environment["ASFC_NODE"]
        if self.random.random() < 0.3:
            call.finish(self.clock, asfc.CommandResult(1, "", "the power switch does not answer"))
            return
        self.count["hosts fenced by command"] += 1
        self.power_off(name, "by fence_command")
        back_s = self.random.uniform(2, 30)
        self.clock.call(self.clock.time + back_s, lambda: self.power_on(name))
        if self.random.random() < 0.8:
            call.finish(self.clock, asfc.CommandResult(0, "", ""))

    # -- starts and schedulers

    def start_accepted(self, host, request):
        """A node's last test was passed: the start command runs."""
        pair, model = request.stamp.pair, host.model
        command, before = model.command, host.last_command
        if command is None or command is before:
            return   # it was killed while the script stood there
        if before is not None and before.runs and not host.is_settled(before):
            model.strays.append(before)
        host.last_command = command
        self.count["accepted starts"] += 1
        self.tell("{} accepts the start of {} {}".format(
            host.name, request.stamp.instance[:4], pair))
        if not host.is_other and request.stamp.cluster != self.first_cluster:
            self.broken("P1", "{} accepts a start of another cluster".format(host.name))
        if host.is_other:
            return
        if pair < self.highest_start:
            self.broken("P1", "{} accepts a start of {}, after one of {} was accepted".format(
                host.name, pair, self.highest_start))
        self.highest_start = max(pair, self.highest_start)
        kind = "broken" if host.broken else self.random.choice(self.start_kinds)
        self.tell("that start is {}".format(kind))
        getattr(self, "start_is_" + kind)(host, command)

    def when_command(self, host, command, delay_s, function):
        def happen():
            if host.model.command is command:
                host.settled = command
                function()
            elif command in host.model.strays:
                host.model.strays.remove(command)
                if function == host.model.appear:
                    host.model.emerge()
        host.call(delay_s, happen)

    def start_is_normal(self, host, command):
        self.when_command(host, command, self.random.uniform(0.2, 2.0), host.model.appear)

    def start_is_slow(self, host, command):
        limit_s = host.configuration.scheduler_start_timeout
        self.count["slow start commands"] += 1
        self.count["start commands of up to 90 s"] += limit_s == 90.0
        self.when_command(host, command, self.random.uniform(1.0, 1.2 * limit_s),
                          host.model.appear)

    def start_is_broken(self, host, command):
        self.when_command(host, command, self.random.uniform(0.2, 3.0), host.model.fail)

    def start_is_crashing(self, host, command):
        def appear():
            host.model.appear()
            self.crash_later(host, host.model.alive[-1])
        self.when_command(host, command, self.random.uniform(0.2, 2.0), appear)

    def crash_later(self, host, key):
        def crash():
            if key in host.model.alive:
                host.die(self.random.choice((0, 0, 2)))
        host.call(self.random.uniform(0.2, 5.0), crash)

    def start_is_late(self, host, command):
        """The command returns, and the process appears later, within the settling time."""
        settle_s = host.configuration.settle_s
        if not host.configuration.airflow_scheduler_start_command:
            return self.start_is_normal(host, command)
        pid = 5000 + self.count["accepted starts"]

        def appear():
            if pid in host.model.pending:
                host.model.pending.remove(pid)
                self.count["processes that appeared late"] += 1
                host.model.appear()

        def leave():
            command.runs, host.model.command = False, None
            host.model.pending.append(pid)
            host.call(self.random.uniform(0.0, 0.8 * settle_s), appear)
        return self.when_command(host, command, self.random.uniform(0.1, 2.0), leave)

    def schedulers_changed(self, host, before, alive):
        for key in alive:
            if key not in before:
                self.count["schedulers started"] += 1
                self.tell("a scheduler runs on {}: pid {}".format(host.name, key[0]))
        for key in before:
            if key not in alive:
                self.tell("the scheduler {} on {} has ended".format(key[0], host.name))
                if self.peaceful:
                    self.broken("P6", "a healthy scheduler was ended on {}".format(host.name))
        self.measure_overlap()
        if len(alive) > len(before):
            self.born_at = self.clock.time
            self.check_schedulers(host)

    def overlap_so_far(self):
        return self.overlap_s + (
            0 if self.overlap_since is None else self.clock.time - self.overlap_since)

    def measure_overlap(self):
        """How long there were two or more, for declared double faults."""
        several = len(self.alive_on()) > 1
        if several and self.overlap_since is None:
            self.overlap_since = self.clock.time
        elif not several and self.overlap_since is not None:
            self.overlap_s += self.clock.time - self.overlap_since
            self.overlap_since = None

    def alive_on(self):
        """The hosts of our cluster on which schedulers live, one for each."""
        return [host for host in self.hosts.values() if not host.is_other
                for _ in host.model.alive]

    # -- the checks

    def check_leases(self):
        """P1: no two controllers may act at one moment. What is declared is told apart."""
        active = [lease for lease in self.live if lease.active]
        if len(active) > 1:
            acting = [lease for lease in active if lease.may_act()]
            if len(acting) > 1 and any(self.is_misled(lease) for lease in acting):
                self.count["declared double roles"] += 1
            elif len(acting) > 1:
                self.broken("P1", "two controllers may act: " + ", ".join(
                    lease.instance[:4] for lease in acting))

    def is_misled(self, lease):
        """Whether what was restored is to this controller what it has read or written last."""
        restored_at = self.misled.get(lease.instance)
        return restored_at is not None and self.clock.time < restored_at + 2 * max(
            host.configuration.heartbeat_timeout for host in self.hosts.values())

    def check_schedulers(self, newest):
        """P2: at most one scheduler is alive. What protocol.md declares is told apart."""
        alive = self.alive_on()
        if len(alive) < 2 or self.mix.is_double_fault:
            return
        declared = [host for host in alive if host is not newest and self.is_declared(host)]
        if len(declared) >= len(alive) - 1:
            self.count["declared overlaps"] += 1
            self.tell("an overlap that protocol.md declares as its limit")
            return
        self.broken("P2", "{} schedulers are alive, on {}".format(
            len(alive), ", ".join(host.name for host in alive)))

    def is_declared(self, host):
        """Whether the host could not fence itself in time, and gave no answer by ssh, either.

        Its controller did not run at some moment after its deadline, and two queries in a row of
        the one that has decided on the start had no answer.
        """
        deadline = host.model.fence_deadline
        return deadline is not None and self.left.get(host.name, 0) >= 2 \
            and host.was_absent_within(host.true_time(deadline), self.clock.time)

    def note_silence(self, asker, request, is_silent):
        if request and request.verb == "query":
            count = self.unanswered[asker, request.node] + 1 if is_silent else 0
            self.unanswered[asker, request.node] = count

    def note_signal(self, host, loop, process, number):
        if process[:2] in host.model.alive:
            self.count["signals by the " + loop] += 1
            if self.peaceful:
                self.broken("P6", "a healthy scheduler on {} is signalled".format(host.name))
            self.tell("{} sends signal {} to pid {} (its loop '{}')".format(
                host.name, int(number), process.pid, loop))

    def note_answer(self, host, request, text):
        if request.verb in ("start", "stop") and self.tracing:
            said = [line.partition(" ")[2].partition(" ")[2] for line in text.splitlines()
                    if " refused " in line or " done " in line]
            self.tell("{} on {} of {}: {}".format(
                request.verb, host.name, request.stamp.pair, "; ".join(said)))
        if request.stamp and not host.is_other and " refused " in text and self.first_cluster \
                and request.stamp.cluster != self.first_cluster:
            self.count["requests of another cluster refused"] += 1
        elif request.verb == "start" and " refused " in text:
            self.count["starts refused by the {}".format(
                "deadline" if "promise of node" in text else "gate")] += 1
        elif " refused " in text:
            self.count["queries refused by the gate"] += 1

    def cluster_written(self, host, before, after):
        record = asfc.ClusterRecord.from_text(after.value)
        old = asfc.ClusterRecord.from_text(before.value) if before else None
        if old is None:
            self.first_cluster = record.cluster
        if record.instance and (old is None or old.instance != record.instance):
            self.count["takeovers"] += 1
        if old and old.assigned and not record.assigned and not record.cleared:
            self.count["restores handled"] += 1
        if self.tracing:
            self.tell_change("cluster", "record cluster: {} holds {}, possible {}{}{}{}".format(
                record.holder or "nobody", record.pair, ",".join(record.possible_nodes),
                "" if record.assigned else " (not assigned)",
                " started" if record.started else "",
                ", PAUSED" if record.paused else ""))

    def note_decision(self, seen, configuration, decision):
        self.count["vetoes of the job table"] += any(
            facts.job_moves for facts in seen.facts.values())
        for action in decision.actions:
            if isinstance(action, asfc.CloseWish):
                self.count["wishes " + action.wish.outcome] += 1
            elif isinstance(action, asfc.StopScheduler) and seen.orders.open_wish:
                self.count["stops for a wish"] += "for the" in action.why
            if isinstance(action, asfc.StartScheduler):
                if seen.orders.drain_of(action.node):
                    self.broken("P6", "a start on {}, which is drained".format(action.node))
                asker = configuration.node_name
                self.left = {name: self.unanswered[asker, name] for name in self.hosts}
            if isinstance(action, asfc.StartScheduler) and "silent for" in action.proof:
                self.count["silences that proved"] += 1
            elif isinstance(action, asfc.StartScheduler) and "own controller says" in action.proof:
                self.count["records that proved"] += 1
            elif isinstance(action, asfc.RaiseTerm):
                self.count["terms raised"] += 1

    def wall_clock(self):
        return self.jump_s

    # -- the run

    def run(self):
        real_decide = asfc.decide

        def decide(seen, configuration):
            decision = real_decide(seen, configuration)
            self.note_decision(seen, configuration, decision)
            return decision
        with mock.patch.object(asfc, "decide", decide), remembered(asfc.NodeRecord), \
                remembered(asfc.ClusterRecord):
            try:
                self.clock.drive(self.play)
            except Exception:
                self.violations.append(traceback.format_exc())
        return self

    def play(self):
        self.driver = self.clock.current
        for name, host in self.hosts.items():
            self.later(host.starts_after_s, self.start_controller, name)
        self.wait(self.mix.WARM_UP_S)
        if not self.violations:
            self.mix.play(self)
        if not self.violations and self.mix.heals:
            self.heal()
            self.measure()

    def wait(self, seconds):
        """Let time pass; returns at once when a promise was broken."""
        ends_at = self.clock.time + seconds
        while self.clock.time < ends_at and not self.violations:
            self.clock.wait_until(ends_at)

    def heal(self):
        self.tell("everything heals")
        self.cuts.clear()
        self.tickets.clear()
        self.late_share = self.late_starts = self.late_stops = self.lost_share = 0.0
        self.disk_full = 0.0
        self.metadata.away = self.metadata.read_only = self.page_away = False
        self.metadata.delays, self.metadata.lost_share = {}, 0.0
        self.start_kinds = ("normal",)
        self.hung.clear()
        for name, host in self.hosts.items():
            host.traps, host.script_traps, host.broken = [], [], False
            host.suspended_until = min(host.suspended_until, self.clock.time)
            self.thaw(host)
            self.power_on(name)
            self.start_controller(name)
        self.resume()
        self.change_orders(lambda orders: orders._replace(drained=()))

    def thaw(self, host):
        if host.world and host.world.frozen_until > self.clock.time:
            host.world.frozen_until = 0.0
            host.absences = [(begin, min(end, self.clock.time)) for begin, end in host.absences]
            for thread in self.clock.threads:
                if thread.world is host.world and not thread.done:
                    self.thaw_thread(thread)

    def thaw_thread(self, thread):
        """One that waits for its host to thaw goes on now."""
        at = [entry[0] for entry in self.clock.queue if entry[1] == thread.ticket]
        if at:
            self.clock.enter(thread, self.clock.time)

    def resume(self):
        self.tell("a person resumes")
        host = self.hosts[self.names[0]]
        with contextlib.redirect_stdout(io.StringIO()):
            asfc.resume(SimulatedWorld(host), host.configuration, MetadataAtOnce(self.metadata))

    def pause(self):
        """What the verb writes; what it waits for after that is left out."""
        MetadataAtOnce(self.metadata).change_cluster(
            lambda records: asfc.ClusterRecord.from_text(records[asfc.CLUSTER].value)._replace(
                paused="a test") if asfc.CLUSTER in records else None)

    def change_orders(self, change):
        """What a verb writes into the orders; what it asks before and waits for is left out."""
        MetadataAtOnce(self.metadata).change_orders(
            lambda records: change(asfc.Orders.of(records)))

    def ask_for(self, target, forced=False):
        """A person wants the scheduler on that node."""
        found = self.metadata.records.get(asfc.CLUSTER)
        if found:
            record = asfc.ClusterRecord.from_text(found.value)
            wish = asfc.Wish("{:08x}".format(self.random.getrandbits(32)),
                             "failover" if forced else "switchover", target, "ann", "now",
                             record.clock_s + self.random.choice((10, 60, 200)), forced)
            self.tell("a person asks for {}".format(wish))
            self.change_orders(lambda orders: orders._replace(wish=wish))

    def health_page(self):
        """A scheduler that lives and does not hang beats every 2 s."""
        beating = any(main + (host.name,) not in self.hung
                      for host in self.alive_on() for main in host.model.alive)
        if beating:
            self.heartbeat = "{:.0f}".format(self.clock.time // 2 * 2)
        return 200, health_page(self.heartbeat)

    def jobs(self):
        """A row for each scheduler that ever ran; those that live and reach the database move."""
        for host in self.hosts.values():
            for main in host.model.alive:
                reaches = self.passes(host.name, SimulatedMetadata.NAME)
                if main + (host.name,) not in self.hung and reaches \
                        and host.suspended_until <= self.clock.time:
                    self.rows[host.name, main] = "{:.0f}".format(self.clock.time // 2 * 2)
        return [asfc.SchedulerJob(number, name, "running", heartbeat)
                for number, ((name, _), heartbeat) in enumerate(self.rows.items())]

    def bound_s(self):
        """P3: the longest that anything of the Timing table may take with these settings."""
        settings = [host.configuration for host in self.hosts.values() if not host.is_other]
        longest = max(max(one.heartbeat_timeout, asfc.silence_s(one.promise_s))
                      for one in settings)
        return 2 * longest + max(
            one.scheduler_start_timeout + one.settle_s + one.stop_timeout_s
            + 4 * one.poll_frequency for one in settings) + 15

    def measure(self):
        """P3: after the healing one scheduler runs, and keeps running."""
        healed_at, bound_s = self.clock.time, self.bound_s()
        while not self.violations and not self.is_settled(healed_at):
            if self.clock.time - healed_at > bound_s + 10:
                self.broken("P3", "no scheduler has settled {:.0f} s after the healing".format(
                    bound_s))
                return
            self.clock.wait(0.5)
        self.count["time to settle"] += int(self.clock.time - healed_at)

    def is_settled(self, healed_at):
        found = self.metadata.records.get(asfc.CLUSTER)
        active = [lease for lease in self.live if lease.active]
        alive = self.alive_on()
        if not found or len(active) != 1 or len(alive) != 1 or self.clock.time - healed_at < 8:
            return False
        record = asfc.ClusterRecord.from_text(found.value)
        return record.possible_nodes == (alive[0].name,) and record.started \
            and not asfc.Orders.of(self.metadata.records).open_wish


def remembered(record):
    """Have each text of a record read once: all controllers read the same ones, again and again."""
    return mock.patch.object(record, "from_text", staticmethod(
        functools.lru_cache(maxsize=64)(record.from_text)))


class SimulationLog(logging.Handler):
    """Keeps the controllers' lines; an error in asfc itself is a violation."""

    def __init__(self, simulation, node):
        super().__init__()
        self.simulation, self.node = simulation, node

    def emit(self, record):
        text = record.getMessage()
        self.simulation.tell("{}: {}".format(self.node, text))
        if "an error in asfc itself" in text:
            if record.exc_info:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info))
            self.simulation.broken("no step fails", text)


# -- what befalls it


FAULTS = {}


def fault(function):
    """Names a fault; it is called with the simulation, and sees to its own end."""
    FAULTS[function.__name__] = function
    return function


def pick(simulation):
    """A host that matters, more often than any: the active controller's, or the scheduler's."""
    choice = simulation.random.random()
    found = []
    if choice < 0.4:
        found = simulation.active_hosts()
    elif choice < 0.75:
        found = [host.name for host in simulation.alive_on()]
    return simulation.random.choice(found or simulation.names)


@fault
def kill(simulation):
    name = pick(simulation)
    simulation.kill_controller(name)
    simulation.later(simulation.random.choice((0.1, 3, 10, 30)), simulation.start_controller, name)


@fault
def kill_active(simulation):
    for name in simulation.active_hosts():
        simulation.kill_controller(name)
        simulation.later(simulation.random.choice((0.1, 3, 30)), simulation.start_controller, name)


@fault
def kill_active_slowly(simulation):
    """The active controller is killed while the metadata is slow: claims cross each other."""
    for name in simulation.names:
        simulation.metadata.delays[name] = 0.7
        simulation.later(25, simulation.metadata.delays.pop, name, None)
    kill_active(simulation)
    simulation.wait(14)


@fault
def freeze(simulation):
    simulation.freeze_controller(pick(simulation), simulation.random.choice((1, 4, 9, 15, 30)))


@fault
def freeze_active(simulation):
    for name in simulation.active_hosts():
        simulation.freeze_controller(name, simulation.random.choice((4, 9, 12, 15, 25)))


@fault
def stop(simulation):
    """A controller is stopped in order and started again."""
    name = pick(simulation)
    simulation.stop_controller(name)
    simulation.later(simulation.random.choice((3, 10, 30)), simulation.start_controller, name)


@fault
def upgrade(simulation):
    """A controller is started again with other settings."""
    name = pick(simulation)
    host = simulation.hosts[name]
    drawn = simulation.mix.draw_settings(simulation.random)
    fields = simulation.random.sample(sorted(drawn), 4)
    host.configuration = host.configuration._replace(**{name: drawn[name] for name in fields})
    simulation.count["upgrades"] += 1
    simulation.stop_controller(name)
    simulation.later(simulation.random.choice((2, 6)), simulation.kill_controller, name)
    simulation.later(simulation.random.choice((7, 15)), simulation.start_controller, name)


POINTS = ("send start", "send start", "send stop", "send query", "exchange", "write cluster",
          "signal", "write file", "write node", "reply", "record made")


@fault
def trap(simulation):
    """The next controller that comes to some point is caught there."""
    set_traps(simulation, simulation.random.choice(POINTS),
              simulation.random.choice((None, 2, 6, 12, 20, 40)))


@fault
def trap_before_start(simulation):
    set_traps(simulation, simulation.random.choice(("send start", "send start", "send stop")),
              simulation.random.choice((2, 6, 12, 20, 40)))
    scheduler_dies(simulation)


def set_traps(simulation, point, freeze_s):
    simulation.tell("a trap before '{}'".format(point))
    for host in simulation.hosts.values():
        host.traps.append(Trap(point, freeze_s))
        if freeze_s is None:
            simulation.later(8, simulation.start_controller, host.name)


@fault
def trap_after_write(simulation):
    """The active controller is frozen when its heartbeat is sent and not confirmed yet."""
    for name in simulation.active_hosts():
        simulation.hosts[name].traps.append(
            Trap("reply", simulation.random.choice((6, 10, 12, 15, 20))))


@fault
def restart_and_cut(simulation):
    """The host of the scheduler is cut off, and its controller is started again then."""
    for host in simulation.alive_on()[:1]:
        cut_off(simulation, host.name, "both", 40)
        simulation.later(0.5, simulation.kill_controller, host.name)
        simulation.later(2, simulation.start_controller, host.name)


@fault
def stop_and_cut(simulation):
    """The controller beside the scheduler is stopped in order when it can't write any more."""
    for host in simulation.alive_on()[:1]:
        cut_off(simulation, host.name, "both", 40)
        simulation.later(simulation.random.choice((0.0, 1, 4)), simulation.stop_controller,
                         host.name)


SCRIPT_POINTS = ("locked", "gate written", "launched", "intent written", "last test passed",
                 "sent on its way", "start command killed", "stopped")


@fault
def script_trap(simulation):
    """The next script that comes to some point is frozen or killed there."""
    point = simulation.random.choice(SCRIPT_POINTS)
    freeze_s = simulation.random.choice((None, 0.5, 1.5, 4, 10))
    for host in simulation.hosts.values():
        host.script_traps.append(Trap(point, freeze_s))


@fault
def suspend(simulation):
    simulation.suspend(pick(simulation), simulation.random.choice((1, 4, 8, 15)))


@fault
def power(simulation):
    name = pick(simulation)
    simulation.power_off(name)
    simulation.later(simulation.random.choice((5, 15, 40)), simulation.power_on, name)


class Person:
    """Looks whether a host is off, as `confirm_dead` does by a query."""

    def __init__(self, simulation):
        self.simulation = simulation

    def look(self, names):
        return {name: report_of(name, "stopped" if self.simulation.hosts[name].on else "silent")
                for name in names}


@fault
def off_and_confirmed(simulation):
    """A host loses power, a person vouches that it is off, and later it is switched on again."""
    name = pick(simulation)
    host = next(host for host in simulation.hosts.values() if host.name != name)
    simulation.power_off(name)
    simulation.later(simulation.random.choice((15, 40)), simulation.power_on, name)
    simulation.hosts[name].unplugged = True   # an earlier fault or fence_command may switch it on
    simulation.wait(simulation.random.choice((1, 6)))
    with contextlib.suppress(asfc.RefusedError), contextlib.redirect_stdout(io.StringIO()):
        asfc.confirm_dead(SimulatedWorld(host), host.configuration,
                          MetadataAtOnce(simulation.metadata), Person(simulation), name, True)
        simulation.count["words of a person"] += 1
        simulation.tell("a person has confirmed that {} is off".format(name))
    simulation.hosts[name].unplugged = False


@fault
def cut(simulation):
    """One host is cut off: from its peers, the metadata or both; one way or both."""
    cut_off(simulation, pick(simulation), simulation.random.choice(
        ("peers", "metadata", "both", "both")), simulation.random.choice((2, 6, 12, 25, 40)))


@fault
def cut_scheduler(simulation):
    """The scheduler's host is cut off from all, for long enough that the scheduler moves."""
    for host in simulation.alive_on()[:1] or [simulation.hosts[pick(simulation)]]:
        cut_off(simulation, host.name, "both", simulation.random.choice((14, 25, 40)))


def cut_off(simulation, name, what, seconds, way=None):
    rng = simulation.random
    peers = [other for other in simulation.hosts if other != name]
    others = {"peers": peers, "metadata": ["metadata"], "both": peers + ["metadata"]}[what]
    way = way or rng.choice(("both ways", "both ways", "out", "in"))
    pairs = [(name, other) for other in others if way != "in"]
    pairs += [(other, name) for other in others if way != "out"]
    simulation.refuses = rng.random() < 0.3
    text = "{} is cut off from {} ({})".format(name, what, way)
    simulation.count["links cut"] += 1
    simulation.count["links cut one way"] += way != "both ways"
    simulation.cuts.update(pairs)
    simulation.tell("{} for {} s".format(text, seconds))

    def heal():
        simulation.tell("no longer: " + text)
        simulation.cuts.subtract(pair for pair in pairs if simulation.cuts[pair])
    simulation.later(seconds, heal)


@fault
def scheduler_dies(simulation):
    for host in simulation.alive_on():
        simulation.tell("the scheduler on {} dies".format(host.name))
        host.call(0.0, functools.partial(host.die, simulation.random.choice((0, 0, 2))))


@fault
def scheduler_hangs(simulation):
    for host in simulation.alive_on():
        simulation.tell("the scheduler on {} hangs".format(host.name))
        simulation.hung.add(host.model.alive[0] + (host.name,))
        simulation.count["schedulers hung"] += 1


@fault
def starts_go_wrong(simulation):
    kinds = simulation.random.sample(("slow", "broken", "crashing", "late"), 2) + ["normal"]
    simulation.set_for(simulation.random.choice((5, 20)), simulation, "start_kinds", tuple(kinds))


@fault
def node_is_broken(simulation):
    host = simulation.hosts[pick(simulation)]
    simulation.set_for(simulation.random.choice((5, 20)), host, "broken", True)
    scheduler_dies(simulation)


@fault
def ssh_late(simulation):
    """Requests are accepted at once and carried out as much as a minute later."""
    seconds = simulation.random.choice((5, 15, 30))
    simulation.set_for(seconds, simulation, "late_share", simulation.random.choice((0.3, 0.7)))
    simulation.set_for(seconds, simulation, "late_s", simulation.random.choice((4, 15, 30, 60)))


@fault
def starts_late(simulation):
    """A start is queued in some sshd, and its host is cut off."""
    simulation.set_for(10, simulation, "late_starts", 0.8)
    simulation.set_for(10, simulation, "late_s", simulation.random.choice((10, 20, 40)))
    scheduler_dies(simulation)
    if simulation.random.random() < 0.5:
        simulation.later(simulation.random.uniform(0, 4), cut_scheduler, simulation)


@fault
def stops_late(simulation):
    """A start that fails is stopped, and that stop comes late."""
    simulation.set_for(20, simulation, "late_stops", 0.8)
    simulation.set_for(20, simulation, "late_s", simulation.random.choice((20, 40)))
    node_is_broken(simulation)


@fault
def cut_peers(simulation):
    """Only ssh is broken, for the scheduler's host: its record goes on telling of it."""
    for host in simulation.alive_on()[:1]:
        cut_off(simulation, host.name, "peers", simulation.random.choice((8, 20)), "both ways")
        simulation.later(simulation.random.uniform(0, 3), scheduler_dies, simulation)


@fault
def late_start_and_cut(simulation):
    """A start waits in the sshd of a host that is cut off, until another one has the scheduler."""
    simulation.set_for(5, simulation, "late_starts", 1.0)
    simulation.set_for(5, simulation, "late_s", 60)
    for host in simulation.alive_on()[:1]:
        scheduler_dies(simulation)
        simulation.later(simulation.random.uniform(3, 5), cut_off, simulation, host.name, "both",
                         40)


def hold(simulation, verb, name):
    """Have the next such command wait in a node's sshd.

    Returns the list of what waits, and what has it carried out.
    """
    held, send, released = [], simulation.send_away, []

    def send_away(world, command, call):
        request = command.request
        if not held and not released and (request.verb, request.node) == (verb, name):
            held.append(command)
        else:
            send(world, command, call)

    def release():
        released.append(True)
        host = simulation.hosts[name]
        for command in held:
            simulation.tell("the {} that waited on {} is carried out".format(verb, name))
            host.call(0.0, functools.partial(Script, host, command.request,
                                             command.timeout_s + 0.5, always(None)))
    simulation.send_away = send_away
    return held, release


@fault
def start_waits_in_a_cut(simulation):
    """A start waits in the sshd of a host that is cut off from all, and is carried out there."""
    Mix.part(simulation)
    for host in simulation.alive_on()[:1]:
        _, release = hold(simulation, "start", host.name)
        host.die(0)
        simulation.wait(4.5)
        cut_off(simulation, host.name, "both", 30, "both ways")
        simulation.later(simulation.random.uniform(12, 25), release)


@fault
def late_starts_only(simulation):
    """Starts wait in sshd for a while; most else goes through."""
    simulation.set_for(20, simulation, "late_starts", 0.8)
    simulation.set_for(20, simulation, "late_share", 0.2)
    simulation.set_for(20, simulation, "late_s", simulation.random.choice((5, 8)))
    scheduler_dies(simulation)


@fault
def dead_and_lost(simulation):
    """A node's controller is dead for good, and some answers of the node are lost."""
    for host in simulation.alive_on()[:1]:
        simulation.kill_controller(host.name)
        simulation.later(40, simulation.start_controller, host.name)
        simulation.later(10, simulation.set_for, 20, simulation, "lost_share", 0.3)


@fault
def slow_start_and_cut(simulation):
    """A host is cut off while its start command runs."""
    simulation.start_kinds = ("slow",)
    simulation.later(5, setattr, simulation, "start_kinds", ("normal",))
    for host in simulation.alive_on()[:1]:
        scheduler_dies(simulation)
        simulation.later(simulation.random.uniform(2, 5), cut_off, simulation, host.name, "both",
                         40)


@fault
def pause_and_cut(simulation):
    """The scheduler's host is cut off just when asfc is paused; then asfc is resumed."""
    for host in simulation.alive_on()[:1]:
        pause(simulation)
        simulation.later(simulation.random.uniform(0.2, 2), cut_off, simulation, host.name, "both",
                         40)


@fault
def clear_and_cut(simulation):
    for host in simulation.alive_on()[:1]:
        cut_off(simulation, host.name, "both", 40)
        simulation.later(simulation.random.uniform(0, 3), metadata_cleared, simulation)


@fault
def replies_lost(simulation):
    simulation.set_for(simulation.random.choice((3, 10, 20)), simulation, "lost_share",
                       simulation.random.choice((0.2, 0.6)))


@fault
def metadata_slow(simulation):
    rng, seconds = simulation.random, simulation.random.choice((3, 10, 20))
    slow_s = rng.choice((1.0, 3.0, 20.0))
    names = simulation.names if rng.random() < 0.4 else (pick(simulation),)
    simulation.tell("the metadata is slow for {} ({} s) for {} s".format(
        ",".join(names), slow_s, seconds))
    for name in names:
        simulation.metadata.delays[name] = slow_s
        simulation.later(seconds, simulation.metadata.delays.pop, name, None)


@fault
def metadata_away(simulation):
    simulation.set_for(simulation.random.choice((2, 6, 15)), simulation.metadata, "away", True)


@fault
def metadata_read_only(simulation):
    simulation.set_for(simulation.random.choice((2, 6, 15)), simulation.metadata, "read_only", True)


@fault
def metadata_replies_lost(simulation):
    simulation.set_for(simulation.random.choice((3, 10)), simulation.metadata, "lost_share",
                       simulation.random.choice((0.3, 0.8)))


@fault
def metadata_cleared(simulation):
    simulation.tell("the metadata is cleared")
    simulation.count["clears"] += 1
    MetadataAtOnce(simulation.metadata).clear()


@fault
def metadata_saved(simulation):
    simulation.tell("a backup of the metadata is made")
    simulation.snapshot = dict(simulation.metadata.records)


@fault
def metadata_restored(simulation):
    if simulation.snapshot:
        simulation.tell("the metadata is restored from the backup")
        simulation.count["restores"] += 1
        restored, now = simulation.snapshot.get(asfc.CLUSTER), simulation.metadata.records
        if restored and restored != now.get(asfc.CLUSTER):
            simulation.misled.update((lease.instance, simulation.clock.time)
                                     for lease in simulation.live
                                     if lease._version == restored.version)
        simulation.metadata.records = dict(simulation.snapshot)


@fault
def pause(simulation):
    """A person pauses asfc, and resumes it later."""
    simulation.tell("asfc is paused")
    simulation.count["pauses"] += 1
    simulation.pause()
    simulation.later(simulation.random.choice((2, 8, 20)), simulation.resume)


@fault
def switchover(simulation):
    """A person wants the scheduler on some node, sometimes by force."""
    simulation.count["switchovers"] += 1
    homes = [host.name for host in simulation.alive_on()]
    simulation.ask_for(simulation.random.choice(
        [name for name in simulation.names if name not in homes] or simulation.names),
        simulation.random.random() < 0.3)


@fault
def switchover_in_trouble(simulation):
    """At some step of a switchover the active controller is killed or frozen."""
    switchover(simulation)
    point = simulation.random.choice(("write cluster", "send query", "send stop", "send stop",
                                      "send start", "reply", "write orders"))
    freeze_s = simulation.random.choice((None, None, 6, 12, 20))
    simulation.later(simulation.random.choice((0, 1, 2)), set_traps_for_active, simulation, point,
                     freeze_s)


def set_traps_for_active(simulation, point, freeze_s):
    simulation.tell("a trap for the active controller before '{}'".format(point))
    for name in simulation.active_hosts():
        simulation.hosts[name].traps.append(Trap(point, freeze_s))
        if freeze_s is None:
            simulation.later(8, simulation.start_controller, name)


@fault
def drain(simulation):
    """A person drains a node, the scheduler's often, and has it undrained later."""
    name = pick(simulation)
    simulation.tell("{} is drained".format(name))
    simulation.count["drains"] += 1
    simulation.change_orders(lambda orders: orders.without_drain(name)._replace(
        drained=orders.drained + (asfc.Drain(name, "ann", "now"),)))
    if name in [host.name for host in simulation.alive_on()]:
        simulation.ask_for(simulation.random.choice(simulation.names))
    simulation.later(simulation.random.choice((8, 20, 40)), simulation.change_orders,
                     lambda orders: orders.without_drain(name))


@fault
def wall_clock_jumps(simulation):
    simulation.jump_s = simulation.random.uniform(-4000, 4000)
    simulation.count["wall clocks that jumped"] += 1
    simulation.count["wall clocks that jumped beside a job table"] += simulation.has_jobs


@fault
def disk_full(simulation):
    simulation.set_for(simulation.random.choice((5, 15)), simulation, "disk_full", 0.5)


@fault
def page_away(simulation):
    simulation.set_for(simulation.random.choice((5, 15)), simulation, "page_away", True)


# -- mixes of faults


class Mix:
    """What befalls the hosts of a run: which faults and how often, and what has to be exercised."""
    WARM_UP_S = 13.0
    heals = True               # at the end, and then P3 is measured
    is_double_fault = False    # an overlap is measured, and no violation

    def __init__(self, name, faults, counters="", faults_of_a_run=(3, 9), tail_s=(0, 20),
                 budget=3, **chances):
        self.name, self.faults = name, faults.split()
        self.counters = [counter.strip() for counter in counters.split(",") if counter.strip()]
        self.faults_of_a_run, self.tail_s, self.budget = faults_of_a_run, tail_s, budget
        self.chances = dict({"fence_command": 0.1, "keep": 0.05, "no_promise": 0.05, "page": 0.2,
                             "operator": 0.4, "odd_starts": 0.3, "stubborn": 0.2, "lists": 0.1,
                             "long_start": 0.05, "apart": 0.6, "jobs": 0.15}, **chances)

    def prepare(self, simulation):
        """Draw the hosts, their clocks and their settings."""
        rng = simulation.random
        simulation.names = self.draw_names(rng)
        common = self.draw_settings(rng)
        simulation.stop_wait_s = common["scheduler_stop_wait_time"]
        for name in simulation.names:
            fields = dict(common, node_name=name, scheduler_nodes_in_cluster=simulation.names)
            if self.chances.get("different_h"):
                fields.update(heartbeat_timeout=rng.choice((7.5, 15.0)))
            elif rng.random() < 0.25:
                fields.update(heartbeat_timeout=rng.uniform(7.5, 12.0),
                              fence_grace_time=rng.uniform(0.5, 3.0))
            if self.happens(rng, "lists"):
                fields["scheduler_nodes_in_cluster"] = self.other_list(rng, simulation.names, name)
            if self.happens(rng, "keep"):
                fields["on_metadata_loss"] = "keep"
            host = simulation.add_host(name, rng.uniform(0.96, 1.04), fields)
            host.stubborn = self.happens(rng, "stubborn")
            host.no_promise = "drawn so" if self.happens(rng, "no_promise") else ""
        simulation.has_jobs = self.happens(rng, "jobs")
        if self.happens(rng, "odd_starts"):
            simulation.start_kinds = ("normal", "slow", "broken", "crashing", "late")

    @staticmethod
    def draw_names(rng):
        return rng.choice((("a", "b", "c"),) * 4 + (("a", "b"), tuple("abcde")))

    @staticmethod
    def part(simulation):
        """Have another controller be active than the one beside the scheduler."""
        homes = [host.name for host in simulation.alive_on()]
        for name in simulation.active_hosts():
            if name in homes:
                simulation.stop_controller(name)
                simulation.later(4, simulation.start_controller, name)
        simulation.wait(7)

    def happens(self, rng, what):
        return rng.random() < self.chances[what]

    @staticmethod
    def other_list(rng, names, own_name):
        """The list in another order, one name missing perhaps."""
        names = rng.sample(names, len(names))
        gone = rng.choice(names)
        return tuple(name for name in names if name in (own_name,) or name != gone)

    def draw_settings(self, rng):
        page, long_start = self.happens(rng, "page"), self.happens(rng, "long_start")
        return {"heartbeat_timeout": rng.uniform(7.5, 10.0), "fence_grace_time": rng.uniform(.5, 2),
                "poll_frequency": rng.uniform(1.0, 4.0), "query_timeout": rng.uniform(1.0, 2.0),
                "scheduler_start_timeout": 90.0 if long_start else rng.choice((8.0, 12.0)),
                "scheduler_stop_wait_time": 1.0, "scheduler_restart_sleep_time": rng.uniform(3, 5),
                "scheduler_restart_window": 60.0, "scheduler_restart_budget": self.budget,
                "airflow_scheduler_start_command":
                    "start it" if self.happens(rng, "operator") else "",
                "health_urls": ("http://page/health",) if page else (), "health_threshold_s": 6.0,
                "fence_timeout": 3.0,
                "fence_command": "fence it" if self.happens(rng, "fence_command") else ""}

    def play(self, simulation):
        rng = simulation.random
        if self.happens(rng, "apart"):
            self.part(simulation)
        for _ in range(rng.randint(*self.faults_of_a_run)):
            FAULTS[rng.choice(self.faults)](simulation)
            simulation.wait(rng.choice((0.0, 0.3, 1, 3, 6, 10)))
            if simulation.violations:
                return
        simulation.wait(rng.uniform(*self.tail_s))


class PeacefulMix(Mix):
    """Nothing befalls the scheduler and its node: so nothing may be done to it (P6)."""

    def play(self, simulation):
        simulation.wait(3)
        simulation.peaceful = len(simulation.alive_on()) == 1
        simulation.count["healthy schedulers watched"] += simulation.peaceful
        super().play(simulation)


class TwoClusters(Mix):
    """Another cluster's controller has a node of ours in its list; the node belongs to us."""

    def prepare(self, simulation):
        super().prepare(simulation)
        simulation.other_metadata = SimulatedMetadata(simulation)
        fields = dict(self.draw_settings(simulation.random), node_name="x",
                      scheduler_nodes_in_cluster=("x", simulation.random.choice(simulation.names)))
        host = simulation.add_host("x", 1.0, fields)
        host.metadata, host.starts_after_s = simulation.other_metadata, 12.0


@functools.lru_cache()
def base_configuration():
    return configured("scheduler_nodes_in_cluster = a, b, c")


ALWAYS = "takeovers, accepted starts"
NOT_UNIFORM = {"metadata_restored", "off_and_confirmed", "start_waits_in_a_cut"}
MIXES = {mix.name: mix for mix in (
    Mix("uniform", " ".join(sorted(set(FAULTS) - NOT_UNIFORM)),
        ALWAYS + ", silences that proved, signals by the fence, late queries, clears, pauses, "
        "starts refused by the gate, links cut one way, upgrades, slow start commands, "
        "exchanges with read-only metadata, writes to a full disk, wall clocks that jumped"),
    Mix("freeze-before-send", "trap_before_start trap_before_start trap freeze_active kill_active "
        "cut_scheduler starts_go_wrong",
        ALWAYS + ", caught before send start, caught before send stop, starts refused by the gate"),
    Mix("late-ssh", "ssh_late ssh_late stops_late stops_late starts_late starts_late replies_lost "
        "scheduler_dies node_is_broken freeze_active kill_active cut",
        ALWAYS + ", late starts, late stops, starts refused by the gate, replies of nodes lost"),
    Mix("cut-and-move", "cut cut_scheduler cut_scheduler starts_late start_waits_in_a_cut "
        "start_waits_in_a_cut starts_go_wrong scheduler_dies metadata_away", ALWAYS +
        ", silences that proved, signals by the fence, "
        "starts refused by the deadline, links cut one way, SIGTERMs ignored, "
        "deaths that left remnants", fence_command=0.0),
    Mix("ssh-broken", "cut_peers cut_peers node_is_broken scheduler_dies kill_active replies_lost",
        ALWAYS + ", records that proved", (3, 7), (5, 20), budget=1, fence_command=0.0, apart=1.0),
    Mix("restore", "metadata_saved metadata_saved metadata_restored metadata_restored "
        "metadata_restored metadata_cleared kill_active freeze_active scheduler_dies "
        "node_is_broken cut upgrade",
        ALWAYS + ", restores, clears, restores handled, terms raised"),
    Mix("script-freeze", "script_trap script_trap script_trap scheduler_dies node_is_broken "
        "kill_active freeze_active starts_go_wrong cut_scheduler", ALWAYS +
        ", scripts frozen or killed"),
    Mix("restart-storm", "kill kill kill_active stop upgrade scheduler_dies cut power trap",
        ALWAYS + ", controllers killed, controllers stopped, upgrades, links cut one way"),
    Mix("pause", "pause pause scheduler_dies kill_active freeze_active cut cut_scheduler stop",
        ALWAYS + ", pauses"),
    Mix("starts", "starts_go_wrong node_is_broken scheduler_dies scheduler_hangs kill_active "
        "page_away script_trap freeze_active", ALWAYS + ", processes that appeared late, "
        "deaths that left remnants, schedulers hung, slow start commands", page=0.6,
        odd_starts=0.7, stubborn=0.4),
    Mix("metadata", "metadata_slow metadata_away metadata_read_only metadata_replies_lost "
        "metadata_replies_lost scheduler_dies cut kill_active trap wall_clock_jumps disk_full",
        ALWAYS + ", replies of the metadata lost, signals by the fence, wall clocks that jumped, "
        "exchanges with read-only metadata, writes to a full disk, links cut one way"),
    Mix("power", "power power suspend suspend scheduler_dies cut_scheduler node_is_broken "
        "starts_late off_and_confirmed off_and_confirmed", ALWAYS + ", hosts fenced by command, "
        "silences that proved, words of a person", fence_command=0.5, no_promise=0.2),
)}
MIXES["restart-and-cut"] = Mix(
    "restart-and-cut", "restart_and_cut restart_and_cut kill_active", ALWAYS, (1, 3),
    fence_command=0.0)
MIXES["stop-and-cut"] = Mix("stop-and-cut", "stop_and_cut stop_and_cut kill_active", ALWAYS,
                            (1, 3), fence_command=0.0)
MIXES["late-start-and-cut"] = Mix(
    "late-start-and-cut", "late_start_and_cut", ALWAYS + ", late starts,"
    "starts refused by the deadline", (1, 2), (20, 40), fence_command=0.0, apart=1.0)
MIXES["cut-alone"] = Mix("cut-alone", "cut_scheduler", ALWAYS + ", silences that proved, signals "
                         "by the fence", (1, 2), (20, 40), fence_command=0.0, apart=1.0)
MIXES["claim-race"] = Mix("claim-race", "kill_active_slowly", "takeovers, controllers killed",
                          (2, 4), (10, 20))
MIXES["slow-start-and-cut"] = Mix(
    "slow-start-and-cut", "slow_start_and_cut slow_start_and_cut cut_scheduler", ALWAYS + ", "
    "silences that proved, signals by the fence, start commands of up to 90 s, links cut one way",
    (1, 2), (40, 70),
    fence_command=0.0, apart=1.0, long_start=1.0)
MIXES["late-start-and-move"] = Mix(
    "late-start-and-move", "late_starts_only scheduler_dies", ALWAYS + ", late starts,"
    "starts refused by the gate", (3, 6), (10, 25), budget=1, fence_command=0.0, apart=1.0,
    odd_starts=0.0)
MIXES["lost-replies"] = Mix(
    "lost-replies", "dead_and_lost replies_lost", ALWAYS + ", replies of nodes lost", (1, 2),
    (25, 40), fence_command=0.0, apart=1.0)
MIXES["pause-and-cut"] = Mix("pause-and-cut", "pause_and_cut", ALWAYS + ", pauses", (1, 2),
                             (15, 30), fence_command=0.0, apart=1.0)
MIXES["clear-and-cut"] = Mix("clear-and-cut", "clear_and_cut", ALWAYS + ", clears", (1, 2),
                             (15, 30), fence_command=0.0, keep=1.0)
MIXES["freeze-after-write"] = Mix("freeze-after-write", "trap_after_write trap_after_write "
                                  "kill_active scheduler_dies", ALWAYS + ", caught before reply")
MIXES["different-h"] = Mix("different-h", "metadata_slow metadata_slow metadata_replies_lost "
                           "freeze_active cut", ALWAYS, different_h=True)
MIXES["switchover"] = Mix(
    "switchover", "switchover switchover_in_trouble switchover_in_trouble drain drain kill_active "
    "freeze_active scheduler_dies cut_scheduler pause node_is_broken stops_late", ALWAYS +
    ", wishes done, wishes refused, wishes failed, stops for a wish, drains", (3, 7), (10, 30))
MIXES["switchover-in-trouble"] = Mix(
    "switchover-in-trouble", "switchover_in_trouble", ALWAYS + ", wishes done, stops for a wish, "
    "caught before send stop, caught before send start, caught before write cluster", (1, 3),
    (20, 40), fence_command=0.0, apart=0.5, odd_starts=0.1)
MIXES["two-clusters"] = TwoClusters(
    "two-clusters", "kill_active freeze_active scheduler_dies cut cut_scheduler node_is_broken "
    "ssh_late", ALWAYS + ", requests of another cluster refused")
MIXES["peace"] = PeacefulMix(
    "peace", "kill kill_active freeze freeze_active stop upgrade trap wall_clock_jumps page_away",
    "takeovers, healthy schedulers watched, upgrades, wall clocks that jumped, "
    "wall clocks that jumped beside a job table", odd_starts=0.0, lists=0.0, page=0.3)


# -- scenes: one fault each, measured against its row of protocol.md's Timing


class Scene(Mix):
    """What is played is a function of the simulation, under settings without surprises."""
    heals = False

    def __init__(self, play, is_double_fault=False, **fields):
        super().__init__("scene", "", **dict.fromkeys((
            "fence_command", "keep", "no_promise", "page", "operator", "odd_starts", "stubborn",
            "lists", "long_start", "apart", "jobs"), 0.0))
        self.play, self.is_double_fault, self.fields = play, is_double_fault, fields

    def prepare(self, simulation):
        super().prepare(simulation)
        simulation.has_jobs = self.fields.get("has_jobs", False)
        if len(simulation.hosts) < 3:
            simulation.add_host("c", 1.0, simulation.hosts["a"].configuration._asdict())
            simulation.hosts["c"].configuration = simulation.hosts["c"].configuration._replace(
                node_name="c")


class Timing:
    """The letters of protocol.md's Timing for the settings of a simulation, the longest of each."""

    def __init__(self, simulation):
        settings = [host.configuration for host in simulation.hosts.values()]
        rate = min(host.rate for host in simulation.hosts.values())

        def longest(name):
            return max(getattr(one, name) for one in settings) / rate
        self.p, self.c = longest("poll_frequency"), longest("query_timeout")
        self.h, self.i = longest("heartbeat_timeout"), longest("heartbeat_interval_s")
        self.c_m, self.s = longest("metadata_limit_s"), 2.2
        self.W = asfc.silence_s(longest("promise_s"))
        self.stop = longest("stop_timeout_s")
        self.h_least = min(one.heartbeat_timeout for one in settings)


def away_from_active(simulation):
    """Has the active controller and the scheduler on two hosts; returns both."""
    Mix.part(simulation)
    simulation.wait(6)
    return simulation.active_hosts()[0], simulation.alive_on()[0]


def scheduler_again(simulation, began, bound_s, what):
    """Wait for a scheduler that was started after a fault; too late is a violation of P3."""
    while simulation.born_at <= began or not simulation.alive_on():
        simulation.wait(0.1)
        if simulation.violations:
            return
        if simulation.clock.time - began > bound_s:
            simulation.broken("P3", "{}: no scheduler runs {:.1f} s later".format(what, bound_s))
    simulation.count[what] += 1


def active_again(simulation, name, bound_s, what):
    """Wait for another active controller."""
    began, born_at = simulation.clock.time, simulation.born_at
    while not set(simulation.active_hosts()) - {name}:
        simulation.wait(0.1)
        if simulation.clock.time - began > bound_s:
            simulation.broken("P3", "{}: nobody is active {:.1f} s later".format(what, bound_s))
        if simulation.violations:
            return
    if simulation.born_at != born_at:
        simulation.broken("P6", what + ": the scheduler was started again")
    simulation.count[what] += 1


def scene_scheduler_dies(simulation):
    t = Timing(simulation)
    simulation.alive_on()[0].die(0)
    scheduler_again(simulation, simulation.clock.time, t.p + 2 * t.c + t.c_m + t.s,
                    "the scheduler dies")


def scene_power_off(simulation):
    """Of the scheduler's host, often with the active controller on it."""
    t = Timing(simulation)
    if simulation.random.random() < 0.5:
        away_from_active(simulation)
    simulation.power_off(simulation.alive_on()[0].name)
    scheduler_again(simulation, simulation.clock.time,
                    max(t.h, t.W) + t.i + 2 * t.c + 3 * t.c_m + t.s, "power off")


def scene_cut_off(simulation):
    t = Timing(simulation)
    if simulation.random.random() < 0.5:
        away_from_active(simulation)
    cut_off(simulation, simulation.alive_on()[0].name, "both", 500, "both ways")
    scheduler_again(simulation, simulation.clock.time,
                    max(t.h, t.W) + t.i + 2 * t.c + 3 * t.c_m + t.s, "cut off")


def scene_active_killed(simulation):
    t, (name,) = Timing(simulation), simulation.active_hosts()
    simulation.kill_controller(name)
    active_again(simulation, name, t.h + t.i + t.c_m, "the active controller is lost")


def scene_active_stopped(simulation):
    t, (name,) = Timing(simulation), simulation.active_hosts()
    simulation.stop_controller(name)
    active_again(simulation, name, t.i + t.c_m + t.c, "the active controller is stopped")


def scene_lost_in_a_restart(simulation):
    t, (name,) = Timing(simulation), simulation.active_hosts()
    simulation.hosts[name].traps.append(Trap(simulation.random.choice(
        ("send start", "write cluster"))))
    simulation.alive_on()[0].die(0)
    while simulation.hosts[name].world and not simulation.violations:
        simulation.wait(0.05)
    scheduler_again(simulation, simulation.clock.time,
                    t.h + t.i + t.p + 2 * t.c + 3 * t.c_m + t.s, "lost in a restart")


def scene_metadata_shortly_away(simulation):
    t = Timing(simulation)
    born_at = simulation.born_at
    simulation.set_for(t.h_least * 2 / 3 - t.i - t.c_m - 1.0, simulation.metadata, "away", True)
    simulation.wait(20)
    if simulation.born_at != born_at or not simulation.alive_on():
        simulation.broken("P6", "a short outage of the metadata has touched the scheduler")
    simulation.count["metadata shortly away"] += 1


def scene_metadata_long_away(simulation):
    t = Timing(simulation)
    simulation.metadata.away = True
    simulation.wait(2 * t.h)
    if simulation.alive_on():
        simulation.broken("P2", "the promise to fence was not kept")
    simulation.metadata.away = False
    scheduler_again(simulation, simulation.clock.time, t.p + 2 * t.c + t.c_m + t.s + t.i + 1,
                    "metadata long away")


def scene_main_loop_sticks(simulation):
    t, (name,) = Timing(simulation), simulation.active_hosts()
    simulation.hosts[name].world.stuck = True
    active_again(simulation, name, 2 * t.h + t.i + t.c_m + t.c + 2 + t.p,
                 "the main loop sticks")


def scene_nothing_can_be_run(simulation):
    t, (name,) = Timing(simulation), simulation.active_hosts()
    simulation.hosts[name].world.deaf = True
    active_again(simulation, name, t.h + t.p + t.i + 2 * t.c_m + t.c, "nothing can be run")


def scene_switchover(simulation):
    """The time without a scheduler is its stop and its start, and what it takes to ask."""
    t = Timing(simulation)
    active, home = away_from_active(simulation)
    ask_s = 4 * 0.08 + 3 * 0.1 + 0.1   # two questions on their way and back; scripts; the metadata
    target = simulation.random.choice([
        name for name in simulation.hosts[active].configuration.scheduler_nodes_in_cluster
        if name != home.name])
    simulation.ask_for(target)
    ends_at = simulation.clock.time + t.i + t.p + t.stop + 4 * t.c
    while home.model.alive and simulation.clock.time < ends_at:
        simulation.wait(0.01)
    scheduler_again(simulation, simulation.clock.time, t.s + ask_s, "a switchover")
    if [host.name for host in simulation.alive_on()] != [target]:
        simulation.broken("P6", "a switchover has led to another node")


SCENES = tuple(Scene(function) for name, function in sorted(globals().items())
               if name.startswith("scene_"))


def play_scene(seed, scene):
    return Simulation(seed, scene).run()


def guard_scene(simulation):
    """A scheduler that a person starts where none may run, while nobody active looks."""
    (name,) = simulation.active_hosts()
    simulation.kill_controller(name)
    home = simulation.alive_on()[0].name
    for host in simulation.hosts.values():
        if host.name not in (name, home):
            host.model.emerge()
            break
    simulation.wait(9)


def veto_scene(simulation):
    """The controller beside the scheduler is dead, and its peers can't reach the host."""
    _, host = away_from_active(simulation)
    simulation.kill_controller(host.name)
    cut_off(simulation, host.name, "peers", 60, "both ways")
    simulation.wait(40)


def misrouted_scene(simulation):
    """A node's name leads to the host of the scheduler: its address was given to two."""
    active, home = away_from_active(simulation)
    other = next(name for name in sorted(simulation.hosts) if name not in (active, home.name))
    simulation.routes[other], born_at = home.name, simulation.born_at
    simulation.wait(60)
    if simulation.born_at != born_at or not simulation.alive_on():
        simulation.broken("P6", "the scheduler was stopped under another node's name")


class SlowClockScene(Scene):
    """Clocks whose rates differ as far as they may, and a scheduler that uses up a long grace."""

    def prepare(self, simulation):
        super().prepare(simulation)
        for host in simulation.hosts.values():
            host.rate, host.stubborn = 0.951 if host.name == "a" else 1.045, True
            host.configuration = host.configuration._replace(fence_grace_time=100.0)


def slow_clock_scene(simulation):
    _, home = away_from_active(simulation)
    cut_off(simulation, home.name, "both", 500, "both ways")
    simulation.wait(160)


class DirectedScene(Scene):
    """Hosts a, b and c; a begins, so it is active and has the scheduler. Faults that hit a moment.

    Some of what is played are several faults at once: then it is shown what a protection is for,
    and the control shows that with it nothing happens even so.
    """
    @staticmethod
    def draw_names(rng):
        return "a", "b", "c"

    def prepare(self, simulation):
        super().prepare(simulation)
        for number, name in enumerate(simulation.names):
            simulation.hosts[name].starts_after_s = 2.0 * number
            simulation.hosts[name].configuration = simulation.hosts[name].configuration._replace(
                **self.fields)


def until(simulation, condition, limit_s=120.0):
    """Let time pass until something is so. That it never is, is an error of the scene."""
    ends_at = simulation.clock.time + limit_s
    while not condition() and not simulation.violations:
        if simulation.clock.time > ends_at:
            raise AssertionError("it does not come so far: " + condition.__qualname__)
        simulation.wait(0.02)


def version_of(simulation, name):
    return simulation.metadata.records[name].version


def started_elsewhere(simulation, host):
    return lambda: any(other is not host for other in simulation.alive_on())


def links(name, *others):
    return [pair for other in others for pair in ((name, other), (other, name))]


def late_start_scene(simulation, freezes):
    """A start waits in a node that is cut off until another one has the scheduler. Its controller
    reaches the metadata again before anybody reaches the node, and then the start is carried out.
    """
    _, home = away_from_active(simulation)
    held, release = hold(simulation, "start", home.name)
    home.die(0)
    until(simulation, lambda: held)
    simulation.cuts.update(links(home.name, "metadata", *simulation.names))
    if freezes:
        simulation.freeze_controller(home.name, 500)
    until(simulation, started_elsewhere(simulation, home))
    simulation.wait(1)
    version = version_of(simulation, "node/" + home.name)
    simulation.cuts.subtract(links(home.name, "metadata"))
    simulation.thaw(home)
    ends_at = simulation.clock.time + 3
    while version_of(simulation, "node/" + home.name) == version \
            and simulation.clock.time < ends_at:
        simulation.wait(0.01)
    simulation.wait(0.03)   # the reply, too
    release()
    simulation.wait(5)


def thaw_scene(simulation):
    """A controller is frozen, and its host cut off, until another node has the scheduler. When it
    goes on, only the metadata can be reached."""
    _, home = away_from_active(simulation)
    home.stubborn = True
    simulation.cuts.update(links(home.name, "metadata", *simulation.names))
    simulation.freeze_controller(home.name, 500)
    until(simulation, started_elsewhere(simulation, home))
    simulation.overlap_s, simulation.overlap_since = 0.0, simulation.clock.time
    simulation.cuts.subtract(links(home.name, "metadata"))
    simulation.thaw(home)
    simulation.wait(15)


def come_back_scene(simulation):
    """The same, and it goes on when the active controller has just found its silence to be long
    enough, and hangs for a second before it writes so."""
    active, home = away_from_active(simulation)
    note_decision, found = simulation.note_decision, []

    def note(seen, configuration, decision):
        note_decision(seen, configuration, decision)
        if any(isinstance(action, asfc.StartScheduler) for action in decision.actions):
            found.append(decision)
            simulation.hosts[active].traps.append(Trap("write cluster", 1.0))
            simulation.cuts.subtract(links(home.name, "metadata"))
            simulation.thaw(home)
    simulation.note_decision = note
    simulation.cuts.update(links(home.name, "metadata", *simulation.names))
    simulation.freeze_controller(home.name, 500)
    until(simulation, lambda: found)
    simulation.note_decision = note_decision
    simulation.wait(8)


def late_process_scene(simulation):
    """Start commands that return at once; the process appears some time later."""
    simulation.start_kinds = ("late",)
    for _ in range(3):
        home = simulation.alive_on()[0]
        home.die(0)
        until(simulation, simulation.alive_on)
        simulation.wait(8)


def late_stop_scene(simulation):
    """A stop waits in a node's sshd while the scheduler is started there again."""
    _, home = away_from_active(simulation)
    held, release = hold(simulation, "stop", home.name)
    home.die(2)
    until(simulation, lambda: held)
    until(simulation, simulation.alive_on)
    simulation.peaceful = True
    release()
    simulation.wait(5)


def equal_pair_scene(simulation):
    """A term is taken twice, for the metadata was restored and its second holder never heard of
    the first one; whose start for a third node comes late."""
    a, c = simulation.hosts["a"], simulation.hosts["c"]
    simulation.stop_controller("c")     # it takes its promise back: so it takes starts later, too
    simulation.wait(3)
    metadata_saved(simulation)
    simulation.power_off("b")
    simulation.kill_controller("a")
    simulation.start_controller("a")
    simulation.wait(3)
    held, release = hold(simulation, "start", "c")
    a.die(0)
    until(simulation, lambda: held)
    simulation.power_off("a")
    metadata_restored(simulation)
    simulation.cuts.update(links("b", "c"))   # until b, too, has made a move of that number
    simulation.power_on("b")
    until(simulation, simulation.alive_on)
    first = c.model.gate
    simulation.cuts.clear()
    until(simulation, lambda: c.model.gate != first)
    release()
    simulation.wait(5)


def trusting_scene(simulation):
    """A node has taken its promise back, and the metadata is restored from a time when it had
    made one; then the node can't be reached."""
    _, home = away_from_active(simulation)
    metadata_saved(simulation)
    simulation.wait(2)
    simulation.stop_controller(home.name)
    simulation.wait(4)
    metadata_restored(simulation)
    simulation.cuts.update(links(home.name, "metadata", *simulation.names))
    simulation.wait(60)


def same_version_scene(simulation):
    """A holder is frozen, the metadata restored, and the holder goes on when another one's record
    has come to have the version that it knows."""
    metadata_saved(simulation)
    simulation.wait(4)     # not longer: a main loop that is overdue by h makes it read, too
    host = simulation.hosts["a"]
    simulation.freeze_controller("a", 500)
    lease = host.world.controller.lease
    metadata_restored(simulation)
    until(simulation, lambda: version_of(simulation, "cluster") >= lease._version)
    simulation.thaw(host)
    simulation.wait(3)


def calm_scene(simulation):
    """The metadata is away for longer than h, and nobody counts on a promise: all is well."""
    (name,) = simulation.active_hosts()
    simulation.set_for(1.5 * Timing(simulation).h, simulation.metadata, "away", True)
    simulation.wait(1.5 * Timing(simulation).h + 12)
    if simulation.active_hosts() != [name]:
        simulation.broken("P6", "another controller is active without need")


def stranger_scene(simulation):
    """A person starts a second scheduler, on a node whose controller is dead."""
    away_from_active(simulation)
    name = next(name for name in simulation.names if name not in simulation.active_hosts()
                and not simulation.hosts[name].model.alive)
    simulation.kill_controller(name)
    simulation.wait(2)
    simulation.hosts[name].model.emerge()
    simulation.wait(30)


# -- nothing happens


class QuietMix(Scene):
    """The defaults, with ssh that takes 2 s and metadata that takes 1 s."""

    def prepare(self, simulation):
        simulation.names = ("a", "b", "c")
        simulation.stop_wait_s = 1.0
        simulation.way_s, simulation.metadata.way_s = lambda: 1.0, lambda slow_s: 0.5
        for number, name in enumerate(simulation.names):
            simulation.add_host(name, 0.98 + 0.02 * number, {
                "node_name": name, "scheduler_nodes_in_cluster": simulation.names})


class QuietSimulation(Simulation):
    """Counts what each controller sends."""

    def send(self, world, command):
        self.count["commands of " + world.name] += 1
        return super().send(world, command)

    def cluster_written(self, host, before, after):
        super().cluster_written(host, before, after)
        self.count["heartbeats"] += 1


def check_quiet_time(case, seconds):
    """No takeover, no restart, and the heartbeats and polls that there should be."""
    found = QuietSimulation(1, QuietMix(lambda simulation: simulation.wait(seconds))).run()
    case.assertEqual(found.violations, [])
    count = found.count
    case.assertEqual((count["takeovers"], count["accepted starts"], count["schedulers started"]),
                     (1, 1, 1))
    for words in ("signals by the fence", "signals by the node", "terms raised"):
        case.assertEqual((words, count[words]), (words, 0))
    case.assertAlmostEqual(count["heartbeats"] / (seconds / 3.0), 1, delta=0.05)
    own = seconds / 3.0     # looks at the own node
    polls = sorted(count["commands of " + name] - own for name in found.names)
    case.assertAlmostEqual(polls[-1] / (3 * seconds / 10.0), 1, delta=0.1)


# -- protections, switched off one by one


class Switched:
    """Patches that switch a protection off, for the time of a `with`."""

    def __init__(self, *patches):
        self.patches = patches   # (object, name, function of the original)

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        for owner, name, change in self.patches:
            original = owner.__dict__[name]
            self.stack.enter_context(mock.patch.object(owner, name, change(original)))

    def __exit__(self, *_):
        self.stack.close()


def without_versions(original):
    def write_one(self, write):
        found = self.records.get(write.name)
        self.records[write.name] = asfc.Record((found.version if found else 0) + 1, write.value)
        return True
    return write_one


def counted_from_the_reply(original):
    def write(self, record):
        won = original(self, record)
        if won:
            self._confirmed_at = self._world.now()
        return won
    return write


def sooner(original):
    """A standby that waits for a fifth of h."""
    def claim_reason(self):
        record = self.record
        if record:
            self.record = record._replace(heartbeat_timeout=record.heartbeat_timeout / 5)
        try:
            return original(self)
        finally:
            self.record = record
    return claim_reason


def cleared_at_once(original):
    """A standby that takes a cleared record as one that its holder gave up."""
    def claim_reason(self):
        return "it was cleared" if self.record and self.record.cleared else original(self)
    return claim_reason


def own_h(original):
    """A standby that waits for the h of its own configuration."""
    def claim_reason(self):
        record = self.record
        if record:
            self.record = record._replace(heartbeat_timeout=self._configuration.heartbeat_timeout)
        try:
            return original(self)
        finally:
            self.record = record
    return claim_reason


def gate_takes_all(original):
    def pass_gate(self, request, lines):
        stamp = request.stamp
        self.gate = asfc.Gate(stamp.pair, stamp.instance, stamp.cluster, request.node)
        lines.append(self._gate_line())
        yield "gate written"
    return pass_gate


def gate_without_cluster(original):
    def pass_gate(self, request, lines):
        if self.gate:
            self.gate = self.gate._replace(cluster=request.stamp.cluster)
            if request.stamp.pair == self.gate.pair:
                self.gate = self.gate._replace(instance=request.stamp.instance)
        return original(self, request, lines)
    return pass_gate


def gate_without_name(original):
    def pass_gate(self, request, lines):
        if self.gate:
            self.gate = self.gate._replace(node=request.node)
        return original(self, request, lines)
    return pass_gate


def launch_without_intent(original):
    def launch(self, request, lines):
        result = yield from original(self, request, lines)
        self.intent = None
        return result
    return launch


def start_in_the_same_turn(original):
    """The list is shrunk and the start sent on answers that came before the move's first write."""
    def move_to(seen, chosen, fields, *why):
        decision = original(seen, chosen, fields, *why)
        if not all(seen.proven_stopped(node) for node in seen.record.possible_nodes):
            return decision
        changed = dict(decision.actions[0].fields, possible_nodes=(chosen,), started=True)
        return decision._replace(actions=(asfc.ChangeRecord(changed, True),
                                          asfc.StartScheduler(chosen, "")))
    return move_to


def unknown_is_stopped(original):
    def proven_stopped(self, node):
        report = self.reports.get(node)
        return original(self, node) or bool(report and not report.answered)
    return proven_stopped


def record_alone_is_silent(original):
    """Silence of the record alone: what the node answers is not waited for."""
    def facts(self, node, pair):
        found = original(self, node, pair)
        return found._replace(silent_s=found.record_age_s, unanswered=2, asked_in_move=True)
    return facts


def fence_of_mains_only(original):
    return lambda *arguments: original(*arguments)._replace(starting=())


def never_frozen(original):
    def step(self):
        self._ran_at = self._world.now()
        return original(self)
    return step


def no_fence_while_paused(original):
    """A pause that ends the fence before its promise is taken back."""
    def step(self):
        record = self._world.controller.lease.record
        return 1.0 if record and record.paused else original(self)
    return step


def settled_at_once(original):
    def end_starts_that_failed(seen, configuration):
        """A start counts as failed as soon as its command has ended."""
        reports = {node: report._replace(intent=report.intent._replace(ended_s=1000.0))
                   if report.intent and not report.intent.command_runs else report
                   for node, report in seen.reports.items()}
        return original(seen._replace(reports=reports), configuration)
    return end_starts_that_failed


def start_in_place_without_a_move(original):
    def start_scheduler(seen, configuration):
        decision = original(seen, configuration)
        change, start = decision.actions
        return decision._replace(actions=(change._replace(new_move=False), start))
    return start_scheduler


def gate_without_instance(original):
    def pass_gate(self, request, lines):
        if self.gate and self.gate.pair == request.stamp.pair:
            self.gate = self.gate._replace(instance=request.stamp.instance)
        return original(self, request, lines)
    return pass_gate


def trusted_after_a_fall(original):
    return lambda *arguments: original(*arguments)._replace(trusted=True)


def gate_not_waited_for(original):
    def may_write(self):
        self.raised_at = math.inf
        return original(self)
    return may_write


class Protection:
    """A protection of protocol.md: how it is switched off, and what then finds a violation.

    `finds` is what the violation has to be; in a declared double fault an overlap of more than
    `overlap_s` seconds is one.
    """

    def __init__(self, name, switch, mix, finds="P[123]", first=0, seeds=40, overlap_s=None):
        self.name, self.switch, self.mix, self.finds = name, switch, mix, finds
        self.first, self.seeds, self.overlap_s = first, seeds, overlap_s

    def first_violation(self, switched_off, seeds=None):
        """Try seeds in turn; returns the first that fails and its violation, or None."""
        with self.switch if switched_off else contextlib.ExitStack():
            for seed in range(self.first, self.first + (seeds or self.seeds)):
                found = self.violation(seed)
                if found:
                    return seed, found
        return None

    def violation(self, seed):
        found = Simulation(seed, MIXES.get(self.mix, self.mix)).run()
        if self.overlap_s is not None and found.overlap_so_far() > self.overlap_s:
            return "overlap of {:.1f} s".format(found.overlap_so_far())
        return found.violations[0] if found.violations else ""


def blind_to_old_metadata():
    return Switched(
        (asfc.Lease, "_look_for_a_fall", lambda _: always(None)),
        (asfc.Lease, "_known_pair", lambda _: lambda self, record: record.pair),
        (asfc, "raise_term_above_what_nodes_heard", lambda _: always(None)))


PROTECTIONS = (
    Protection("conditional write",
               Switched((VirtualMetadata, "write_one", without_versions)), "claim-race"),
    Protection("acting window", Switched(
        (asfc.Lease, "may_act", lambda _: lambda self: self.active)), "freeze-before-send"),
    Protection("the lease counts from before the write was sent", Switched(
        (asfc.Lease, "_write", counted_from_the_reply)), "freeze-after-write"),
    Protection("a standby waits for h", Switched((asfc.Lease, "_claim_reason", sooner)),
               "metadata"),
    Protection("a cleared record is taken only after h", Switched(
        (asfc.Lease, "_claim_reason", cleared_at_once)), "restore"),
    Protection("the holder's h counts, not the standby's", Switched(
        (asfc.Lease, "_claim_reason", own_h)), "different-h", first=25),
    Protection("gate and deadline test", Switched(
        (NodeModel, "_pass_gate", gate_takes_all),
        (NodeModel, "_promise_holds", lambda _: always(True))), "late-start-and-cut"),
    Protection("intent", Switched((NodeModel, "_launch", launch_without_intent)), "starts"),
    Protection("proof before start", Switched(
        (asfc.Observation, "proven_stopped", unknown_is_stopped)), "cut-alone"),
    Protection("proof after the write", Switched(
        (asfc, "move_to", start_in_the_same_turn)), "late-start-and-move", first=7),
    Protection("silence lasts W", Switched(
        (asfc, "silence_s", lambda _: lambda promise_s: 0.3 * promise_s)), "cut-alone"),
    Protection("silence needs queries without an answer", Switched(
        (asfc.SignsOfLife, "facts", record_alone_is_silent),
        (asfc, "move_to", start_in_the_same_turn)), "lost-replies"),
    Protection("fence", Switched(
        (asfc.SelfFence, "_ask", lambda _: always(None)),
        (asfc, "fence_targets", lambda _: always(asfc.FenceTargets((), (), ())))), "cut-alone"),
    Protection("the fence ends starts in flight", Switched(
        (asfc, "fence_targets", fence_of_mains_only)), "slow-start-and-cut"),
    Protection("one try after a freeze", Switched((asfc.SelfFence, "step", never_frozen)),
               "peace", "P6"),
    Protection("the deadline is inherited", Switched(
        (asfc.SelfFence, "_inherit", lambda _: always(None))), "restart-and-cut"),
    Protection("an orderly stop takes the promise back first", Switched(
        (asfc.Lease, "_is_bound", lambda _: always(False))), "stop-and-cut"),
    Protection("a pause takes the promise back first", Switched(
        (asfc.SelfFence, "step", no_fence_while_paused)), "pause-and-cut"),
    Protection("old metadata raises the term", blind_to_old_metadata(), "restore", first=24),
    Protection("all nodes are possible after clear", Switched(
        (asfc.Lease, "all_nodes", lambda _: lambda self: (self._configuration.node_name,))),
        "clear-and-cut"),
    Protection("cluster id in the gate", Switched(
        (NodeModel, "_pass_gate", gate_without_cluster)), "two-clusters", "P1.*another cluster"),
    Protection("node name in the gate", Switched(
        (NodeModel, "_pass_gate", gate_without_name),
        (asfc.SignsOfLife, "_check_directory", lambda _: lambda self, report: report)),
        Scene(misrouted_scene), "P6"),
    Protection("no stamp of a successor", Switched(
        (asfc.Lease, "stamp", lambda _: lambda self, record: asfc.Stamp(
            record.cluster, record.pair, record.instance)),
        (asfc.Lease, "may_act", lambda _: always(True))), "freeze-before-send"),
    Protection("silence outlasts a slow clock", Switched(
        (asfc, "CLOCK_RATE_LIMIT", always(1.0))), SlowClockScene(slow_clock_scene)),
    Protection("release on an overdue main loop", Switched(
        (asfc.Lease, "expect_work", lambda _: always(None))), Scene(scene_main_loop_sticks), "P3"),
    Protection("standing back when nothing can be asked", Switched(
        (asfc.SignsOfLife, "is_cut_off", lambda _: always(False))),
        Scene(scene_nothing_can_be_run), "P3"),
    Protection("a passed deadline is dealt with before the next write", Switched(
        (asfc.SelfFence, "may_write", lambda _: always(True)),
        (asfc.NodeRecords, "_is_possible", lambda _: always(True))),
        DirectedScene(functools.partial(late_start_scene, freezes=True)), "P[12]"),
    Protection("the gate is raised before the next write", Switched(
        (asfc.NodeRecords, "_may_write", gate_not_waited_for)),
        DirectedScene(functools.partial(late_start_scene, freezes=False)), "P[12]"),
    Protection("the try is for a node that is still possible", Switched(
        (asfc.NodeRecords, "_is_possible", lambda _: always(True)),
        (asfc.Lease, "_is_possible_here", lambda _: always(True))),
        DirectedScene(thaw_scene, True), "overlap", overlap_s=5.0),
    Protection("a node that comes back at the last moment is possible again", Switched(
        (asfc.Actuator, "_has_come_back", lambda _: always(False))),
        DirectedScene(come_back_scene), "P2"),
    Protection("a late process has its time to appear", Switched(
        (asfc, "end_starts_that_failed", settled_at_once)),
        DirectedScene(late_process_scene, airflow_scheduler_start_command="start it"), "P[26]"),
    Protection("every start takes a new move", Switched(
        (asfc, "start_scheduler", start_in_place_without_a_move)),
        DirectedScene(late_stop_scene), "P6"),
    Protection("instance in the gate", Switched(
        (NodeModel, "_pass_gate", gate_without_instance)),
        DirectedScene(equal_pair_scene, scheduler_restart_budget=1), "P2"),
    Protection("a record speaks only while it is fresh", Switched(
        (asfc.SignsOfLife, "_is_fresh", lambda _: always(True))), Scene(scene_power_off), "P3"),
    Protection("a record whose version fell promises nothing", Switched(
        (asfc, "view_of", trusted_after_a_fall)), DirectedScene(trusting_scene), "P2"),
    Protection("a lease that ran out is read before it is written", Switched(
        (asfc.Lease, "_ran_out", lambda _: always(False))),
        DirectedScene(same_version_scene, on_metadata_loss="keep"), "P1"),
    Protection("the holder, too, is given time after an outage", Switched(
        (asfc.Lease, "CALM_READS", always(0))),
        DirectedScene(calm_scene, on_metadata_loss="keep"), "P6"),
    Protection("a scheduler that is seen makes its node possible", Switched(
        (asfc, "admit_schedulers_seen_elsewhere", lambda _: always(None))),
        DirectedScene(stranger_scene, True), "overlap", overlap_s=12.0),
    Protection("local guard", Switched((asfc.OwnNode, "_guard", lambda _: always(None))),
               Scene(guard_scene, True), "overlap", overlap_s=5.0),
    Protection("veto of the job table", Switched(
        (asfc.SignsOfLife, "_job_moves", lambda _: always(False))),
        Scene(veto_scene, True, has_jobs=True), "overlap", overlap_s=0.0),
)


def simulate(mix, seed, tracing=False):
    return Simulation(seed, MIXES[mix], tracing).run()


def simulate_quietly(mix_and_seed):
    """One seed: what was broken, and what was exercised."""
    mix, seed = mix_and_seed
    found = simulate(mix, seed)
    return mix, seed, found.violations, found.count


def simulate_all(runs):
    """Simulate (mix, seed) pairs in worker processes; yields the result of each."""
    fork, usable = multiprocessing.get_context("fork"), os.sched_getaffinity(0)
    processors = fork.SimpleQueue()
    for processor in usable:
        processors.put(processor)
    with fork.Pool(len(usable), begin_worker, (processors,)) as pool:
        yield from pool.imap(simulate_quietly, runs, chunksize=4)


def begin_worker(processors):
    """A worker ends at once when it is to, and keeps to one processor: its threads hand the baton
    to each other, and from one processor to the other that takes twice as long."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.sched_setaffinity(0, {processors.get()})


def seeds_of(first, number, mix=None):
    """Seeds with their mixes: the one that is named, or all in turn."""
    names = [mix] if mix else sorted(MIXES)
    return [(names[seed % len(names)], seed) for seed in range(first, first + number)]


class Tally:
    """What the seeds of each mix have exercised, and which of them failed."""

    def __init__(self):
        self.counts = collections.defaultdict(collections.Counter)
        self.failed = []

    def add(self, mix, seed, violations, counts):
        self.counts[mix].update(counts, seeds=1)
        if violations:
            self.failed.append((mix, seed, violations))

    def lacking(self):
        """The counters that belong to a mix and stayed at zero."""
        return ["{}: {}".format(mix, name) for mix, counts in sorted(self.counts.items())
                for name in MIXES[mix].counters if not counts[name]]

    def show(self):
        for mix, counts in sorted(self.counts.items()):
            print("{}: {}".format(mix, ", ".join(
                "{} {}".format(number, name) for name, number in sorted(counts.items()))))


def show_run(mix, seed):
    """The timeline of a seed, and how to see it again."""
    found = simulate(mix, seed, tracing=True)
    print("\n".join(found.lines))
    print("\n".join(found.violations) or "no promise was broken")
    print("replay: python3 test_asfc.py simulate --seeds 1 --from {} --mix {}\n".format(
        seed, mix), flush=True)


def simulate_verb(argv):
    """The command `simulate`: exit status 0 only when all promises held in all seeds."""
    parser = argparse.ArgumentParser(prog="test_asfc.py simulate")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--mix", choices=sorted(MIXES), help="of faults; all in turn if not given")
    parser.add_argument("--timeline", action="store_true", help="show it for each seed that holds")
    options = parser.parse_args(argv)
    tally, began = Tally(), time.monotonic()
    for result in simulate_all(seeds_of(options.first, options.seeds, options.mix)):
        tally.add(*result)
        if options.timeline or result[2] and len(tally.failed) <= 3:
            show_run(*result[:2])
    tally.show()
    for mix, seed, violations in tally.failed:
        print("FAILED: --mix {} --from {}: {}".format(mix, seed, violations[0]))
    lacking = tally.lacking() if options.seeds >= 40 * len(tally.counts) else []
    for name in lacking:
        print("NEVER EXERCISED: " + name)
    print("{} seeds in {:.0f} s, {} failed".format(
        options.seeds, time.monotonic() - began, len(tally.failed)))
    return 1 if tally.failed or lacking else 0


class Simulations(unittest.TestCase):
    """All seeds are fixed here, so a failure comes from a change of the code; `simulate` and the
    soak take others."""

    def test_no_promise_is_broken_and_each_mix_exercises_what_belongs_to_it(self):
        plain = bool(os.environ.get("ASFC_PLAIN"))
        tally, began = Tally(), time.monotonic()
        for result in simulate_all(seeds_of(0, len(MIXES) if plain else 1000)):
            tally.add(*result)
        self.assertEqual(tally.failed, [])
        if not plain:
            self.assertEqual(tally.lacking(), [])
            print("1000 seeds in {:.0f} s".format(time.monotonic() - began), file=sys.stderr)

    def test_after_one_fault_a_scheduler_runs_within_the_time_of_the_table(self):
        for scene in SCENES:
            for seed in range(1 if os.environ.get("ASFC_PLAIN") else 8):
                with self.subTest(scene.play.__name__, seed=seed):
                    self.assertEqual(play_scene(seed, scene).violations, [])

    def test_each_protection_is_needed(self):
        """In the plain tier an eighth of them: the eight versions of Python do all."""
        plain = bool(os.environ.get("ASFC_PLAIN"))
        for protection in PROTECTIONS[sys.version_info[1] % 8::8] if plain else PROTECTIONS:
            with self.subTest(protection.name):
                began = time.process_time()
                found = protection.first_violation(switched_off=True)
                self.assertIsNotNone(found, "no seed shows what it protects from")
                seed, violation = found
                self.assertRegex(violation, protection.finds)
                self.assertLess(time.process_time() - began, 5)
                self.assertIsNone(protection.first_violation(False, seed + 1 - protection.first),
                                  "the same seeds without the switch")

    def test_every_protection_that_the_code_names_has_its_mutation(self):
        named = re.search(r"\nThe protections\n(.*?)\n\n", asfc.__doc__, re.S).group(1)
        names = [name.strip() for name in " ".join(named.split()).rstrip(".").split(";")]
        self.assertEqual(sorted(names), sorted(one.name for one in PROTECTIONS))

    def test_a_seed_replays_to_the_byte(self):
        runs = [simulate("uniform", 5, tracing=True) for _ in range(2)]
        self.assertEqual(runs[0].lines, runs[1].lines)
        self.assertGreater(len(runs[0].lines), 50)
        quiet = simulate("uniform", 5)
        self.assertEqual((quiet.count, quiet.clock.time), (runs[0].count, runs[0].clock.time))

    def test_a_quiet_time_with_slow_ssh_and_slow_metadata_has_no_takeover_and_no_restart(self):
        check_quiet_time(self, 1200 if os.environ.get("ASFC_PLAIN") else 2 * 3600)


###############################################################################
# Real hosts: the harness #####################################################
###############################################################################
#
# Each host is a set of namespaces on this machine: processes, mounts, network, name. It has a disk
# of its own (/srv, with the home directory /srv/airflow), an sshd with keys of its own and a link
# into a router, where single ways can be cut. /mnt is the same directory on all hosts and outside.
# All of them end with this process, however that ends: the kernel kills what is in a host with its
# first process, and that one with its parent.

CLONE_NEWNET = 0x40000000


def processes_beside(pid):
    """The ids of all processes that live on the same host as this one."""
    def namespace(of):
        with contextlib.suppress(OSError):
            return os.readlink("/proc/{}/ns/pid".format(of))
    mine = namespace(pid)
    return [int(other) for other in os.listdir("/proc")
            if other.isdigit() and mine and namespace(other) == mine]


class Keeper:
    """A process that holds namespaces open, and dies with the tests."""

    def __init__(self, *unshare):
        self.process = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", "unshare") + unshare, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Network(Keeper):
    """A network of its own in which processes and sockets of the tests can live."""

    def __init__(self):
        super().__init__("--net", "sh", "-c", "echo ready; exec sleep infinity")
        self.process.stdout.readline()
        self.pid = self.process.pid
        self._calls = queue.Queue()
        self._thread = None

    def configure(self, lines):
        """Give the network some lines of ip(8)."""
        subprocess.run(["nsenter", "-t", str(self.pid), "-n", "ip", "-batch", "-"], check=True,
                       input="\n".join(lines) + "\n", universal_newlines=True)

    def call(self, function, *arguments, **named):
        """Call a function inside: sockets that it makes and processes that it starts live there."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
        reply = queue.Queue()
        self._calls.put((function, arguments, named, reply))
        value, error = reply.get()
        if error:
            raise error
        return value

    def _serve(self):
        library = ctypes.CDLL(None, use_errno=True)
        with open("/proc/{}/ns/net".format(self.pid)) as namespace:
            failed = library.setns(namespace.fileno(), CLONE_NEWNET)
        while True:
            function, arguments, named, reply = self._calls.get()
            try:
                if failed:
                    raise OSError("can't enter the network namespace")
                reply.put((function(*arguments, **named), None))
            except BaseException as error:  # it belongs to the caller, whatever it is
                reply.put((None, error))


class HostProcess:
    """A process on a host, with its id as this machine's root sees it."""

    def __init__(self, entrance, host, output):
        self._entrance = entrance  # nsenter: it waits for the process and passes its status on
        self.host = host
        self.output_path = output
        self.pid = wait_until(lambda: children_of(entrance.pid)
                              or entrance.poll() is not None and [-1],
                              10, "a process on " + host.name)[0]

    def alive(self):
        return self.pid > 0 and process_lives(self.pid)

    def status(self):
        """The exit status, or None while it lives."""
        return self._entrance.poll()

    def wait(self, timeout_s):
        """Its exit status; fails after the time limit, with what it had said."""
        return wait_until(lambda: (self.status() is not None and [self.status()]), timeout_s,
                          lambda: "the end of the process, which said:\n" + self.output())[0]

    def send(self, number):
        os.kill(self.pid, number)

    def kill(self):
        """SIGKILL, and wait until the kernel is done with it. A frozen process dies, too."""
        if self.alive():
            self.send(signal.SIGKILL)
        wait_until(lambda: not self.alive(), 10, "the death of a process")
        self.forget()

    def forget(self):
        """End what waits for the process; it may stand still as the process did."""
        self._entrance.kill()
        self._entrance.wait()

    def freeze(self, children=False):
        """SIGSTOP; with its children too, as when the whole machine stands still."""
        for pid in [self.pid] + (descendants_of(self.pid) if children else []):
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: process_fields(self.pid)[0] == "T", 5, "a process standing still")

    def thaw(self):
        for pid in [self._entrance.pid] + descendants_of(self.pid) + [self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def output(self):
        return read_file(self.output_path)


class Host:
    """One machine of a cluster. It is booted by `power_on`, after `Cluster` has made its disk."""
    HOME = "/srv/airflow"
    PATH = HOME + "/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    BOOT = textwrap.dedent("""\
        set -eu
        name=$1 address=$2 disk=$3 shared=$4 programs=$5
        read pid rest < /proc/self/stat  # of the /proc outside: the id that the tests know
        mount --make-rprivate /
        mount -t proc proc /proc
        mount --bind "$disk/boot_id" /proc/sys/kernel/random/boot_id
        for file in passwd shadow hosts; do mount --bind "$disk/etc/$file" "/etc/$file"; done
        mount --bind "$shared" /mnt
        mount --bind "$disk" /srv
        mount -t tmpfs tmpfs /run
        [ -z "$programs" ] || { mkdir -p /srv/programs; mount --bind "$programs" /srv/programs; }
        mount -t tmpfs tmpfs /tmp
        [ -z "$programs" ] || { mkdir -p "$programs"; mount --bind /srv/programs "$programs"; }
        mkdir -m 755 /run/sshd
        hostname "$name"
        echo "$pid"
        read link_is_there
        ip -batch - <<END
        link set lo up
        address add $address/24 dev eth0
        link set eth0 up
        route add default via ${address%.*}.1
        END
        /usr/sbin/sshd -D -e -f /srv/etc/sshd_config >> /srv/sshd.log 2>&1 < /dev/null &
        echo up
        """)
    # The first process of a host reaps orphans; when the tests are gone, it goes too.
    FIRST_PROCESS = "while read rest; do :; done\n"
    SSHD = textwrap.dedent("""\
        Port 22
        HostKey /srv/etc/host_key
        PidFile /run/sshd.pid
        UsePAM no
        UseDNS no
        StrictModes no
        PermitRootLogin prohibit-password
        AuthorizedKeysFile /srv/airflow/.ssh/authorized_keys
        MaxStartups 200
        KexAlgorithms curve25519-sha256
        PrintMotd no
        LogLevel VERBOSE
        SetEnv PATH={path}
        """)

    def __init__(self, cluster, name, number):
        self.cluster = cluster
        self.name = name
        self.address = "10.99.{}.2".format(number)
        self.disk = os.path.join(cluster.directory, "disks", name)
        self.home = os.path.join(self.disk, "airflow")
        self.keeper = None
        self.init = None
        self.processes = []

    def path(self, *parts):
        """Where a file of the home directory stands on this machine."""
        return os.path.join(self.home, *parts)

    def write(self, path, text, mode=0o600):
        """Write a file of the home directory, with its directories."""
        place = self.path(path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        write_file(place, text)
        os.chmod(place, mode)

    def read(self, path):
        """The text of a file of the home directory; nothing where there is none."""
        try:
            return read_file(self.path(path))
        except OSError:
            return ""

    def remove(self, path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(path))

    def make_disk(self, names):
        """Everything that outlives a power-off: users, names, keys, the stand-in scheduler."""
        shutil.rmtree(self.disk, ignore_errors=True)
        for directory in ("etc", "airflow/bin", "airflow/.ssh", "airflow/airflow/logs", "output"):
            os.makedirs(os.path.join(self.disk, directory), mode=0o700)
        self.set_login_shell("/bin/bash")
        for file, text in (("shadow", "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n"),
                           ("hosts", "127.0.0.1 localhost\n" + names),
                           ("sshd_config", self.SSHD.format(path=self.PATH))):
            write_file(os.path.join(self.disk, "etc", file), text)
        key = os.path.join(self.disk, "etc", "host_key")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        self.public_key = " ".join(read_file(key + ".pub").split()[:2])
        self.write("bin/airflow", STAND_IN_SCHEDULER.replace("PYTHON", HOST_PYTHON), 0o755)
        shutil.copy(asfc.__file__, self.path("asfc.py"))

    def set_login_shell(self, shell):
        """The shell that sshd runs commands by, from the next login on."""
        with open("/etc/passwd") as file:
            others = [line for line in file if not line.startswith("root:")]
        write_file(os.path.join(self.disk, "etc", "passwd"),  # the file is bound: written in place
                   "root:x:0:0:root:{}:{}\n".format(self.HOME, shell) + "".join(others))

    def power_on(self):
        """Boot, and wait until its sshd answers."""
        self.begin_boot()
        self.finish_boot()

    def begin_boot(self):
        write_file(os.path.join(self.disk, "boot_id"), str(uuid.uuid4()) + "\n")
        self.keeper = Keeper(
            "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net",
            "bash", os.path.join(self.cluster.directory, "boot"), self.name, self.address,
            self.disk, self.cluster.shared, self.cluster.programs)

    def finish_boot(self):
        """Connect the host to the router, once its namespaces are there, and wait for its sshd."""
        answer = self.keeper.process.stdout.readline()
        if not answer.strip().isdigit():
            raise AssertionError("host {}: {}{}".format(
                self.name, answer, self.keeper.process.stdout.read()))
        self.init = int(answer)
        self.cluster.connect(self.name, self.address, self.init)
        self.keeper.process.stdin.write("the link is there\n")
        self.keeper.process.stdin.flush()
        answer = self.keeper.process.stdout.readline()
        if answer != "up\n":
            raise AssertionError("host {}: {}".format(self.name, answer))
        wait_until(self.sshd_accepts, 10, "the sshd of " + self.name)

    def power_off(self):
        """End everything on it at once. The others get no answer from it any more."""
        if self.init:
            self.cluster.disconnect(self.name)
            os.kill(self.init, signal.SIGKILL)
            self.init = None
        if self.keeper:
            self.keeper.end()
            self.keeper = None
        for process in self.processes:
            process.forget()
        self.processes = []

    def enter(self, argv, environment=None):
        """The command line that runs argv on this host, in a session of its own."""
        named = dict({"HOME": self.HOME, "PATH": self.PATH, "USER": "root", "LOGNAME": "root",
                      "LANG": "C.UTF-8"}, **(environment or {}))
        return (["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "setsid",
                 "env", "-i", "-C", self.HOME]
                + ["{}={}".format(*item) for item in named.items()] + list(argv))

    def run(self, argv, timeout_s=30, input=None, environment=None):
        """Run a command on this host and wait for it; returns a CompletedProcess with texts."""
        return subprocess.run(self.enter(argv, environment), input=input or "", timeout=timeout_s,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True)

    def start_process(self, argv, environment=None):
        """Start a command on this host and return a HostProcess; its output goes to a file."""
        handle, path = tempfile.mkstemp(dir=os.path.join(self.disk, "output"), suffix=".txt")
        with open(handle, "w") as output:
            entrance = subprocess.Popen(
                self.enter(argv, environment), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True)
        process = HostProcess(entrance, self, path)
        self.processes.append(process)
        return process

    def start_sshd(self):
        """Start an sshd where it was killed, and wait until it answers."""
        self.start_process(["/usr/sbin/sshd", "-D", "-e", "-f", "/srv/etc/sshd_config"])
        wait_until(self.sshd_accepts, 10, "the sshd of " + self.name)

    def sshd(self):
        """The ids of this host's sshd that listens, and of those that serve connections."""
        inside = read_file("/proc/{}/root/run/sshd.pid".format(self.init)).strip()
        for pid in processes_beside(self.init):
            with contextlib.suppress(OSError):
                status = read_file("/proc/{}/status".format(pid))
                if re.search(r"^NSpid:.*\t{}$".format(inside), status, re.MULTILINE):
                    return [pid] + descendants_of(pid)
        raise AssertionError("no sshd on " + self.name)

    def sshd_accepts(self):
        """Whether its sshd answers with its banner."""
        return self.cluster.router.call(banner_of, self.address).startswith(b"SSH-")


def banner_of(address):
    """The first bytes that a server says on port 22, or none."""
    try:
        with socket.create_connection((address, 22), timeout=2) as connection:
            return connection.recv(64)
    except OSError:
        return b""


HOST_PYTHON = os.path.realpath(os.path.join(
    getattr(sys, "base_prefix", sys.prefix), "bin", "python{}.{}".format(*sys.version_info[:2])))

# A scheduler as the process list shows Airflow's: a main process, and a fork of it with the same
# words that outlives it when it is killed. The main process alone holds a connection to the watch
# of the tests; the kernel closes it when that process dies, however it does.
STAND_IN_SCHEDULER = """\
#!PYTHON
import os, signal, socket, sys, time

if sys.argv[1:2] != ["scheduler"]:
    sys.exit("airflow: this stand-in knows only: airflow scheduler")
home = os.path.expanduser("~")
if os.path.exists(home + "/start_is_slow"):
    time.sleep(float(open(home + "/start_is_slow").read()))
watch = socket.socket(socket.AF_UNIX)
watch.connect("/mnt/watch")
watch.sendall(os.uname()[1].encode() + b"\\n")
if os.path.exists(home + "/scheduler_is_broken"):
    sys.exit("airflow.exceptions.AirflowException: this scheduler is broken")
signal.signal(signal.SIGTERM, signal.SIG_DFL)
twin = os.fork()
if twin == 0:
    watch.close()
    while True:
        time.sleep(3600)

def leave(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)   # it may be asked more than once
    os.kill(twin, signal.SIGTERM)
    os.waitpid(twin, 0)
    os._exit(0)

signal.signal(signal.SIGTERM, leave)
print("scheduler of", os.uname()[1], "runs", flush=True)
if os.path.exists(home + "/scheduler_crashes_after"):
    time.sleep(float(open(home + "/scheduler_crashes_after").read()))
    os._exit(1)  # its twin is left behind
while True:
    time.sleep(3600)
"""


class Life:
    """The life of one scheduler: its host, its id, and when it began and ended, on clock()."""

    def __init__(self, host, pid, began):
        self.host, self.pid, self.began, self.ended = host, pid, began, None

    def __repr__(self):
        return "{} {} from {:.2f} to {}".format(
            self.host, self.pid, self.began, self.ended and "{:.2f}".format(self.ended))


class SchedulerWatch:
    """Learns of every scheduler on every host, from its start to its death, frozen or not.

    A life begins when its process was started, by the kernel's account, and ends when the kernel
    closes its connection. That is noticed a little late: `LATE` seconds at most here, on a machine
    that is busy.
    """
    LATE = 0.25

    def __init__(self, directory):
        self.lives = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(os.path.join(directory, "watch"))
        self._server.listen(100)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, None)
        self._bell, self._bell_rope = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self):
        self._bell_rope.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def _serve(self):
        while True:
            ready = [key for key, _ in self._selector.select()]
            for key in sorted(ready, key=lambda key: key.data is None):  # deaths before births
                if key.fileobj is self._bell:
                    return
                if key.data is None:
                    self._admit(self._server.accept()[0])
                elif not key.fileobj.recv(100):
                    key.data.ended = clock()
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()

    def _admit(self, connection):
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = int.from_bytes(credentials[:4], sys.byteorder)
        connection.settimeout(2)
        try:
            host = connection.recv(100).decode().strip()
        except OSError:
            host = "?"
        life = Life(host, pid, process_began(pid) or clock())
        self.lives.append(life)
        self._selector.register(connection, selectors.EVENT_READ, life)

    def alive(self):
        """The schedulers that live now."""
        return [life for life in self.lives if life.ended is None]

    def overlaps(self, since=0.0):
        """The times, as (from, to), when more than one scheduler lived; `LATE` or less is none."""
        return [(began, ended) for began, ended, count in self._spans(since)
                if count > 1 and ended - began > self.LATE]

    def gaps(self, since=0.0):
        """The times, as (from, to), when no scheduler lived."""
        return [(began, ended) for began, ended, count in self._spans(since) if count == 0]

    def _spans(self, since):
        """The time from `since` to now in pieces (from, to, how many lived), merged where equal."""
        now = clock()
        lives = [(max(since, life.began), life.ended or now) for life in self.lives]
        lives = [(began, ended) for began, ended in lives if ended > began]
        if not lives and not since:
            return []
        borders = sorted({time_s for life in lives for time_s in life}
                         | {now, since or min(began for began, _ in lives)})
        spans = []
        for began, ended in zip(borders, borders[1:]):
            count = sum(1 for life in lives if life[0] <= began and life[1] >= ended)
            if spans and min(spans[-1][2], 2) == min(count, 2):
                spans[-1] = (spans[-1][0], ended, count)
            else:
                spans.append((began, ended, count))
        return spans

    def wait_for_one(self, timeout_s, host=None, not_pid=None):
        """Wait until exactly one scheduler lives, on the host if one is named; returns its Life."""
        def one():
            alive = self.alive()
            fits = len(alive) == 1 and host in (None, alive[0].host) and alive[0].pid != not_pid
            return alive[0] if fits else None
        return wait_until(one, timeout_s, lambda: "one scheduler{}; there are: {}".format(
            " on " + host if host else "", self.lives))


class Cluster:
    """Hosts, a router between them, and a network `db` for the servers that the hosts use."""
    HOST = Host
    SERVERS = "10.99.200.2"
    programs = ""   # a directory that the hosts have at the same place, wherever it is

    def __init__(self, names=("a", "b", "c")):
        require("root", os.geteuid() == 0)
        for program in ("unshare", "nsenter", "setpriv", "ip", "ssh", "ssh-keygen",
                        "/usr/sbin/sshd"):
            require(program, find_program(program))
        self.directory = tempfile.mkdtemp(prefix="asfc-cluster-")
        self.shared = os.path.join(self.directory, "shared")
        os.mkdir(self.shared)
        self.watch = None
        self.networks = []
        self.hosts = collections.OrderedDict(
            (name, self.HOST(self, name, number)) for number, name in enumerate(names, 1))
        self.addresses = {name: host.address for name, host in self.hosts.items()}
        self._cuts = []
        self._cleanups = []
        atexit.register(self.close)
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name):
        return self.hosts[name]

    def __iter__(self):
        return iter(self.hosts.values())

    def _build(self):
        self.watch = self.make_watch()
        self.router = self._network()
        self.router.configure(["link set lo up"])
        # /proc/sys/net shows the network of the thread that looks.
        self.router.call(write_file, "/proc/sys/net/ipv4/ip_forward", "1")
        self.servers = self.network_at("db", self.SERVERS)
        key = os.path.join(self.directory, "client_key")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        write_file(os.path.join(self.directory, "boot"), self.HOST.BOOT + self.HOST.FIRST_PROCESS)
        self.fresh()

    def make_watch(self):
        return SchedulerWatch(self.shared)

    def fresh(self):
        """Boot all hosts, with nothing on their disks but what belongs to a new host."""
        self.power_off()
        self._make_disks()
        self.watch.lives.clear()
        for host in self:
            host.begin_boot()
        for host in self:
            host.finish_boot()

    def power_off(self):
        """End everything on all hosts."""
        for host in self:
            host.power_off()
        wait_until(lambda: not self.watch.alive(), 10, "the end of all schedulers")

    def network_at(self, name, address):
        """A network for servers, with a link of this name to the router."""
        network = self._network()
        self.connect(name, address, network.pid)
        network.configure(["link set lo up", "address add {}/24 dev eth0".format(address),
                           "link set eth0 up", "route add default via {}.1".format(
                               address.rpartition(".")[0])])
        self.addresses[name] = address
        return network

    def _network(self):
        self.networks.append(Network())
        return self.networks[-1]

    def _make_disks(self):
        key = os.path.join(self.directory, "client_key")
        names = "".join("{} {}\n".format(host.address, host.name) for host in self)
        for host in self:
            host.make_disk(names + self.SERVERS + " db mail web\n")
        known = "".join("{},{} {}\n".format(host.name, host.address, host.public_key)
                        for host in self)
        for host in self:
            host.write(".ssh/known_hosts", known)
            for source, name in ((key, "id_ed25519"), (key + ".pub", "authorized_keys")):
                shutil.copy(source, host.path(".ssh", name))

    def connect(self, name, address, pid):
        """Make the link between the router and the namespaces of a process, where it is eth0."""
        net = address.rpartition(".")[0]
        self.router.configure([
            "link add to-{0} type veth peer name eth0 netns {1}".format(name, pid),
            "address add {}.1/24 dev to-{}".format(net, name),
            "link set to-{} up".format(name),
            # When the host goes, and the link with it, what is sent to it gets no answer at all.
            "route replace blackhole {}.0/24 metric 9999".format(net)])

    def disconnect(self, name):
        self.router.configure(["link del to-" + name])

    # -- faults of the network

    def cut(self, first, second, how="silent", one_way=False):
        """Drop what `first` sends to `second`, and the other way too unless `one_way`.

        `how` is "silent", or "icmp": answered as unreachable. A name is a host's, or a network's.
        """
        addresses = [self.addresses[name] for name in (first, second)]
        for source, target in [addresses, addresses[::-1]][:1 if one_way else 2]:
            self._cuts.append("from {} to {} {} priority 100".format(
                source, target, {"silent": "blackhole", "icmp": "unreachable"}[how]))
            self.router.configure(["rule add " + self._cuts[-1]])

    def heal(self):
        """Take all cuts back."""
        cuts, self._cuts = self._cuts, []
        if cuts:
            self.router.configure(["rule del " + cut for cut in cuts])

    # -- the end

    def on_close(self, function, *arguments):
        """Have something done at the end, before the hosts and networks go."""
        self._cleanups.append((function, arguments))

    def close(self):
        """End all hosts, networks and servers and remove their disks. Does no harm twice."""
        atexit.unregister(self.close)
        while self._cleanups:
            function, arguments = self._cleanups.pop()
            with contextlib.suppress(Exception):  # the rest has to go, too
                function(*arguments)
        if self.watch:
            self.power_off()
        for network in self.networks:
            network.end()
        self.networks = []
        if self.watch:
            self.watch.close()
            self.watch = None
        shutil.rmtree(self.directory, ignore_errors=True)


###############################################################################
# Real hosts: the harness itself ##############################################
###############################################################################


class TheHarness(unittest.TestCase):
    """What the tests on real hosts rely on."""

    def setUp(self):
        self.cluster = Cluster(("a", "b"))
        self.addCleanup(self.cluster.close)

    def test_a_scheduler_counts_as_alive_until_it_is_dead_and_not_while_it_only_stands_still(self):
        watch = self.cluster.watch
        first = self.cluster["a"].start_process(["airflow", "scheduler"])
        self.assertEqual(watch.wait_for_one(10, "a").pid, first.pid)
        first.freeze()
        second = self.cluster["b"].start_process(["airflow", "scheduler"])
        wait_until(lambda: len(watch.alive()) == 2, 10, "a second scheduler")
        time.sleep(watch.LATE)
        first.kill()
        wait_until(lambda: watch.lives[0].ended, 10, "the death of the first")
        self.assertEqual(len(watch.overlaps()), 1)
        self.assertEqual(watch.gaps(), [])
        second.send(signal.SIGTERM)
        self.assertEqual(second.wait(10), 0)
        wait_until(watch.gaps, 10, "the time without a scheduler")
        self.assertEqual(watch.alive(), [])

    def test_a_cut_link_is_silent_or_answered_and_a_host_without_power_is_silent(self):
        a, b = self.cluster
        ask = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=1", "b", "hostname"]
        self.assertEqual(a.run(ask).stdout, "b\n")
        for first, second, how, words in (
                ("a", "b", "silent", "timed out"), ("b", "a", "silent", "timed out"),
                ("a", "b", "icmp", "unreachable"), ("b", "a", "icmp", "timed out")):
            self.cluster.cut(first, second, how, one_way=True)
            self.assertIn(words, a.run(ask).stderr)
            self.cluster.heal()
            self.assertEqual(a.run(ask).stdout, "b\n")
        boot = b.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout
        b.power_off()
        self.assertIn("timed out", a.run(ask).stderr)
        b.power_on()
        self.assertEqual(a.run(ask).stdout, "b\n")
        self.assertNotEqual(b.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout, boot)

    def test_the_hosts_end_with_the_tests_however_those_end(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            program = subprocess.Popen(
                [sys.executable, "-c", "import time, test_asfc\n"
                 "test_asfc.end_in_order_on_sigterm()\n"
                 "cluster = test_asfc.Cluster(('a',))\n"
                 "cluster['a'].start_process(['sleep', '1000'])\n"
                 "print(cluster['a'].init, cluster.directory, flush=True)\ntime.sleep(1000)"],
                cwd=HERE, stdout=subprocess.PIPE, universal_newlines=True)
            self.addCleanup(program.communicate)
            self.addCleanup(program.kill)
            init, directory = program.stdout.readline().split()
            self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
            processes = processes_beside(init)
            self.assertGreaterEqual(len(processes), 3)  # the first, sshd, sleep
            program.send_signal(number)
            program.wait()
            for process in processes:
                wait_until(lambda of=process: not process_lives(of), 10, "the end of the host")
            self.assertEqual(os.path.exists(directory), number == signal.SIGKILL)


###############################################################################
# Real hosts: controllers on them #############################################
###############################################################################

SETTINGS = collections.OrderedDict((
    ("scheduler_nodes_in_cluster", "a, b, c"),
    ("poll_frequency", "2"),
    ("heartbeat_timeout", "10"),
    ("scheduler_restart_sleep_time", "3"),
    ("scheduler_stop_wait_time", "2"),
    ("logging_level", "DEBUG")))

# The numbers of protocol.md for SETTINGS, in seconds.
POLL_S, HEARTBEAT_TIMEOUT_S, INTERVAL_S, RETRY_S, QUERY_S, METADATA_S = 2, 10, 1, 1, 5, 1
# The tests learn of a change by asking the database, through a client that has to be started beside
# all else that runs on two cores.
MEASURED_LATE_S = 0.6


def serve_on(cluster, kind):
    """A database server that all hosts of a cluster reach; it ends with the cluster."""
    server = kind(address=Cluster.SERVERS, remote_hosts=(kind.HOSTS_OF_A_CLUSTER,))
    cluster.on_close(server.remove)
    cluster.servers.call(server.start)
    return server


class ClusterBench:
    """What a test does with controllers on hosts: it has a cluster, the url of the metadata, and
    by node the controllers that it has started."""

    def configure(self, host, url=None, **settings):
        """Write a host's airflow.cfg: SETTINGS with changes; None leaves a key out."""
        keys = collections.OrderedDict(SETTINGS, **settings)
        scheme, _, nodes = (url or self.url).partition("://")
        if scheme == "zookeeper":
            keys = collections.OrderedDict(dict(
                {"metadata_service_type": "ZookeeperMetadataService",
                 "metadata_service_zookeeper_nodes": nodes}, **keys))
            url = "sqlite:////mnt/airflow.db"   # where the job table may be
        sections = keys.pop("sections", "")
        text = "[core]\nsql_alchemy_conn = {}\n\n{}\n[scheduler_failover]\n{}".format(
            (url or self.url).replace("%", "%%"), sections,
            "".join("{} = {}\n".format(*item) for item in keys.items() if item[1] is not None))
        host.write("airflow/airflow.cfg", text)

    def start_controller(self, name, environment=None):
        """`asfc.py start` on a host."""
        controller = self.cluster[name].start_process(
            [HOST_PYTHON, Host.HOME + "/asfc.py", "start"], environment)
        self.controllers[name] = controller
        return controller

    def start_cluster(self, scheduler_on="a", active="a", **settings):
        """Controllers on all hosts, the given one active; returns the Life of the one scheduler."""
        for host in self.cluster:
            self.configure(host, **settings)
        self.start_controller(active)
        self.wait_for_active(active, 15)
        for host in self.cluster:
            if host.name != active:
                self.start_controller(host.name)
        scheduler = self.cluster.watch.wait_for_one(30, scheduler_on)
        self.wait_for_quiet(active, scheduler_on)
        return scheduler

    def wait_for(self, what, condition, timeout_s):
        """Wait until the condition is true and return its value; an exception is not yet true."""
        def tried():
            with contextlib.suppress(asfc.MetadataError, AttributeError):
                return condition()
        return wait_until(tried, timeout_s, what)

    def records(self):
        """All records, as asfc reads them."""
        return self.cluster.servers.call(service_for(self.url).read_all)

    def cluster_record(self):
        """The record `cluster`, or None."""
        found = self.records().get("cluster")
        return asfc.ClusterRecord.from_text(found.value) if found else None

    def wait_for_active(self, names, timeout_s):
        """Wait until one of the named controllers is active; returns the record and when."""
        def active():
            record = self.cluster_record()
            return (record, clock()) if record and record.holder in tuple(names) else None
        return self.wait_for("one of {} is active".format(", ".join(names)), active, timeout_s)

    def wait_for_words(self, name, words, timeout_s, after=0):
        """Wait until a controller's output holds the words; returns the output up to their end."""
        def found():
            text = self.controllers[name].output()
            place = text.find(words, after)
            return text[:place + len(words)] if place >= 0 else None
        return wait_until(found, timeout_s, "the controller on {} says {!r}".format(name, words))

    def wait_for_quiet(self, active, scheduler_on, timeout_s=30, after=0):
        """Wait until the active controller says that there is nothing to do."""
        words = "no action: I am active, the scheduler runs on {}\n".format(scheduler_on)
        return self.wait_for_words(active, words, timeout_s, after)

    def story(self, lines=40):
        """What happened: the schedulers' lives, and what the controllers said at last."""
        told = ["schedulers: {}".format(self.cluster.watch and self.cluster.watch.lives)]
        for name, controller in sorted(self.controllers.items()):
            with contextlib.suppress(OSError):
                said = controller.output().splitlines()
                told += ["-- {}:".format(name)] + [
                    line for line in said[:-8] if " DEBUG " not in line][-lines:] + said[-8:]
        return "\n".join(told)


class ClusterTest(ClusterBench, unittest.TestCase):
    """Controllers on hosts of their own, which are new for each test."""
    NAMES = ("a", "b", "c")
    CLUSTER = Cluster

    @classmethod
    def setUpClass(cls):
        require("a MariaDB server", MariaDbServer.present())
        cls.cluster = cls.CLUSTER(cls.NAMES)
        cls.databases = itertools.count(1)
        try:
            cls.server = serve_on(cls.cluster, MariaDbServer)
        except BaseException:
            cls.cluster.close()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.cluster.close()

    def setUp(self):
        self.cluster.fresh()
        self.addCleanup(self.cluster.power_off)
        self.addCleanup(self.cluster.heal)
        self.url = self.server.create_database("airflow_{}".format(next(self.databases)))
        self.controllers = {}

    def run(self, result=None):
        """As ever; when the test failed, what the controllers said is told as well."""
        result = self.defaultTestResult() if result is None else result
        failed = len(result.failures) + len(result.errors)
        super().run(result)
        if len(result.failures) + len(result.errors) > failed and self.__dict__.get("controllers"):
            print("\n{}\n{}".format(self.id(), self.story()), file=sys.stderr)
        return result

    def assert_one_scheduler_since(self, life):
        """The scheduler is still the very same process, and no other ran since it began."""
        self.assertEqual(self.cluster.watch.alive(), [life])
        self.assert_never_two()

    def assert_never_two(self):
        self.assertEqual(self.cluster.watch.overlaps(), [], self.cluster.watch.lives)


class OneSchedulerIsKeptRunning(ClusterTest):
    """Three hosts with sshd, MariaDB, a poll of 2 s, a heartbeat timeout of 10 s. What the table
    of faults does and measures as well, is left to it."""

    def test_a_killed_scheduler_runs_again_within_a_poll_and_a_second(self):
        scheduler = self.start_cluster(scheduler_restart_budget="10")
        for _ in range(3):
            os.kill(scheduler.pid, signal.SIGKILL)
            killed_at, said = clock(), len(self.controllers["a"].output())
            again = self.cluster.watch.wait_for_one(15, "a", not_pid=scheduler.pid)
            self.assertLess(again.began - killed_at, POLL_S + 1)
            scheduler = again
            self.wait_for_quiet("a", "a", 15, said)
        self.assert_never_two()
        twins = self.cluster["a"].run(["pgrep", "-fc", "bin/airflow scheduler"]).stdout.strip()
        self.assertEqual(twins, "2", "a scheduler and its twin, and nothing of the dead ones")

    def test_a_standby_is_active_soon_after_the_active_controller_was_killed(self):
        scheduler = self.start_cluster()
        self.controllers["a"].kill()
        killed_at = clock()
        record, seen_at = self.wait_for_active("bc", 20)
        self.assertLess(seen_at - killed_at,
                        HEARTBEAT_TIMEOUT_S + INTERVAL_S + METADATA_S + MEASURED_LATE_S)
        self.wait_for_quiet(record.holder, "a", 10)
        self.assert_one_scheduler_since(scheduler)

    def test_a_standby_is_active_soon_after_the_active_controller_was_frozen(self):
        scheduler = self.start_cluster()
        self.controllers["a"].freeze(children=True)
        frozen_at = clock()
        record, seen_at = self.wait_for_active("bc", 20)
        self.assertLess(seen_at - frozen_at,
                        HEARTBEAT_TIMEOUT_S + INTERVAL_S + METADATA_S + MEASURED_LATE_S)
        self.controllers["a"].thaw()
        self.wait_for_words("a", "standby: {} is active in term {}".format(
            record.holder, record.term), 10)
        self.wait_for_quiet(record.holder, "a", 10)
        self.assertEqual(self.cluster_record().instance, record.instance)
        self.assert_one_scheduler_since(scheduler)

    def test_a_standby_is_active_at_once_after_the_active_controller_was_stopped(self):
        scheduler = self.start_cluster()
        self.controllers["a"].send(signal.SIGTERM)
        stopped_at = clock()
        record, seen_at = self.wait_for_active("bc", 10)
        self.assertLess(seen_at - stopped_at, INTERVAL_S + METADATA_S + MEASURED_LATE_S)
        self.assertEqual(self.controllers["a"].wait(5), 0)
        self.wait_for_quiet(record.holder, "a", 10)
        self.assert_one_scheduler_since(scheduler)

    def test_a_controller_that_starts_again_on_its_host_takes_its_own_lease_back_at_once(self):
        scheduler = self.start_cluster()
        self.controllers["a"].kill()
        started_at = clock()
        self.start_controller("a")
        self.wait_for("a in its second term", lambda: self.cluster_record().term == 2, 10)
        self.assertLess(clock() - started_at, HEARTBEAT_TIMEOUT_S / 2)
        self.assertEqual(self.cluster_record().holder, "a")
        self.wait_for_quiet("a", "a", 10)
        self.assert_one_scheduler_since(scheduler)

    def be_without_database(self, seconds):
        """Stop the database for a time."""
        self.cluster.servers.call(self.server.stop)
        down_until = clock() + seconds
        try:
            wait_until(lambda: clock() > down_until, seconds + 5, "an outage of the database")
        finally:
            self.cluster.servers.call(self.server.start)

    def test_a_short_outage_of_the_database_touches_nothing(self):
        scheduler = self.start_cluster()
        self.be_without_database(0)   # stopping and starting it takes its time
        holder = self.cluster_record().holder
        self.wait_for("heartbeats again", functools.partial(
            self.has_moved, self.records()["cluster"].version, 3), 10)
        self.assertEqual((self.cluster_record().holder, self.cluster_record().term), (holder, 1))
        self.assert_one_scheduler_since(scheduler)

    def test_with_keep_the_scheduler_outlives_an_outage_of_the_database(self):
        scheduler = self.start_cluster(on_metadata_loss="keep")
        self.be_without_database(20)
        self.wait_for("heartbeats again", functools.partial(
            self.has_moved, self.records()["cluster"].version, 3), 10)
        self.assertEqual([one.alive() for one in self.controllers.values()], [True] * 3)
        self.assert_one_scheduler_since(scheduler)

    def has_moved(self, version, by):
        """Whether the record's version has risen."""
        return self.records()["cluster"].version >= version + by

    def test_a_healthy_scheduler_that_ran_before_is_adopted_untouched(self):
        running = self.cluster["c"].start_process(["airflow", "scheduler"])
        scheduler = self.cluster.watch.wait_for_one(10, "c")
        self.assertEqual(self.start_cluster(scheduler_on="c"), scheduler)
        self.wait_for_quiet("a", "c", 10)
        self.assertEqual(self.cluster_record().active_scheduler_node, "c")
        self.assertTrue(running.alive())
        self.assert_one_scheduler_since(scheduler)

    def test_a_node_whose_sshd_hangs_delays_neither_turns_nor_heartbeats(self):
        scheduler = self.start_cluster()
        frozen = self.cluster["c"].sshd()
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        self.addCleanup(lambda: [os.kill(pid, signal.SIGCONT) for pid in frozen])
        beats = self.times_of_heartbeats(for_s=4 * QUERY_S)
        gaps = [after - before for before, after in zip(beats, beats[1:])]
        self.assertLess(max(gaps), INTERVAL_S + RETRY_S + MEASURED_LATE_S / 2)
        turns = self.times_of_turns("a")
        self.assertGreaterEqual(len(turns), 3)
        for before, after in zip(turns, turns[1:]):
            self.assertLess(after - before, max(POLL_S, QUERY_S) + 0.5)
        self.assertRegex(self.controllers["a"].output(), r"c: unknown, .*no answer")
        os.kill(scheduler.pid, signal.SIGKILL)
        killed_at = clock()
        again = self.cluster.watch.wait_for_one(40, "a", not_pid=scheduler.pid)
        self.assertLess(again.began - killed_at, POLL_S + 3 * QUERY_S + METADATA_S)
        self.assert_never_two()

    def times_of_heartbeats(self, for_s):
        """When the version of the record changed, on clock(), for a time."""
        times, version, end = [], None, clock() + for_s
        while clock() < end:
            now = self.records()["cluster"].version
            if now != version:
                times.append(clock())
                version = now
            time.sleep(0.02)
        return times[1:]

    def times_of_turns(self, name):
        """When a controller's last turns had the answers of all nodes, in seconds, from its log."""
        times = [line.split()[1] for line in self.controllers[name].output().splitlines()
                 if "asked all nodes" in line and "c: unknown" in line]
        return [sum(float(part) * factor for part, factor in
                    zip(text.replace(",", ".").split(":"), (3600, 60, 1))) for text in times]


class TheClusterAtAGlance(ClusterTest):
    def verb(self, host, *words):
        """Run a verb on a host; returns its exit status, stdout and stderr."""
        done = self.cluster[host].run((HOST_PYTHON, Host.HOME + "/asfc.py") + words)
        self.assertNotIn("Traceback", done.stderr)
        return done.returncode, done.stdout, done.stderr

    def test_status_tells_by_its_exit_status_how_the_cluster_is(self):
        scheduler = self.start_cluster()
        for host in "abc":
            status, out, _ = self.verb(host, "status")
            self.assertEqual((status, out.splitlines()[0]),
                             (0, "OK: the scheduler runs on a, a is active"), out)
        self.assertIn("says:        no action: I am active, the scheduler runs on a\n", out)
        self.controllers["c"].kill()
        self.wait_for("c is silent", lambda: self.verb("b", "status")[0] == 1, 15)
        status, out, _ = self.verb("b", "status")
        self.assertRegex(out, "^WARNING: c: its controller is silent")
        self.assertRegex(out, "\na +active +1[.]1 +running .*\nb +standby .*\nc +silent ")
        self.assert_one_scheduler_since(scheduler)
        for name in "ba":
            self.controllers[name].send(signal.SIGTERM)
            self.assertEqual(self.controllers[name].wait(10), 0)
        status, out, _ = self.verb("c", "status")
        self.assertRegex(out, "^CRITICAL: no controller is active; no scheduler is known to run")
        self.assertEqual(status, 2)
        self.cluster.cut("b", "db")
        status, out, err = self.verb("b", "status")
        self.assertEqual((status, out, len(err.splitlines())), (3, "", 1), err)
        self.assertRegex(err, "^UNKNOWN: .* at 10.99.200.2:")

    def test_check_finds_what_is_broken_on_and_between_other_hosts_and_changes_nothing(self):
        for host in self.cluster:
            self.configure(host)
        status, out, _ = self.verb("a", "check")
        self.assertEqual((status, "0 problems" in out), (0, True), out)
        self.cluster["b"].write(".ssh/known_hosts", "".join(
            line + "\n" for line in self.cluster["b"].read(".ssh/known_hosts").splitlines()
            if not line.startswith("c,")))
        os.unlink(self.cluster["c"].path("bin/airflow"))
        stranger = self.cluster["b"].start_process(
            ["python3", "-c", "import subprocess; subprocess.call(['airflow', 'scheduler'])"])
        self.cluster.watch.wait_for_one(10, "b")
        status, out, _ = self.verb("a", "check", "--json")
        found = {(one["level"], one["where"], one["text"][:40])
                 for one in json.loads(out)["findings"]}
        for one in (("PROBLEM", "b", "from there c can't be asked: ssh doesn't"),
                    ("PROBLEM", "c", "asfc's own start would fail there: airfl"),
                    ("WARNING", "b", "the scheduler that runs there, pid ")):
            self.assertTrue(any(one[:2] == other[:2] and other[2].startswith(one[2])
                                for other in found), (one, out))
        self.assertEqual((status, json.loads(out)["problems"]), (1, 2), out)
        self.assertIn("subprocess.call", out)
        self.assertEqual([os.path.exists(host.path(".asfc")) for host in self.cluster], [False] * 3)
        self.assertEqual(self.records(), {})
        stranger.kill()


class Switchovers(ClusterTest):
    """Moves on purpose."""
    OWN_S = 0.5    # what the stand-in takes to stop and to start

    def steer(self, host, *words):
        """A verb on a host, in the background; `result` waits for it."""
        return self.cluster[host].start_process(
            [HOST_PYTHON, "asfc.py"] + list(words) + ["--json"])

    def result(self, process, status=0):
        self.assertEqual(process.wait(90), status, process.output())
        said = process.output()   # a refusal is said in words, too
        return json.loads(said[said.index("{"):said.rindex("}") + 1])

    def check_move(self, process, before, host):
        """It has led from a scheduler to one on the host, and tells how long there was none."""
        result = self.result(process)
        after = self.cluster.watch.wait_for_one(5, host)
        gap_s = after.began - before.ended
        self.assertEqual((result["outcome"], result["target"]), ("done", host))
        self.assert_never_two()
        return after, gap_s, result["without_scheduler_s"]

    def test_a_switchover_costs_a_stop_a_start_and_a_second_and_a_drain_is_one(self):
        scheduler = self.start_cluster()
        scheduler, gap_s, told_s = self.check_move(
            self.steer("c", "switchover", "--to", "b"), scheduler, "b")
        scheduler, drain_gap_s, _ = self.check_move(self.steer("a", "drain", "b"), scheduler, "c")
        print("switchovers: {:.2f} s and {:.2f} s without a scheduler; the first was {:.1f} s as "
              "asfc tells".format(gap_s, drain_gap_s, told_s), file=sys.stderr)
        self.assertLess(min(gap_s, drain_gap_s), self.OWN_S + 1)
        self.assertGreater(told_s, gap_s - 0.1)
        refusals = [("b is drained, by root on a at ", "b")]
        self.controllers["a"].send(signal.SIGTERM)
        self.wait_for_active("bc", 10)
        self.cluster["a"].power_off()
        refusals += [("a does not answer: ssh: ", "a")]
        for words, target in refusals:
            refused = self.result(self.steer("b", "switchover", "--to", target), 75)
            self.assertIn(words, refused["why"])
        self.assertEqual(self.cluster["b"].run(
            [HOST_PYTHON, "asfc.py", "pause"]).returncode, 0)
        refused = self.result(self.steer("b", "failover", "--to", "b", "--yes"), 75)
        self.assertIn("asfc is paused, by root on b", refused["why"])
        self.assert_one_scheduler_since(scheduler)

    def test_a_failover_from_a_node_without_power_waits_for_the_proof_and_no_longer(self):
        scheduler = self.start_cluster()
        self.controllers["a"].send(signal.SIGTERM)
        self.controllers["a"].wait(20)
        active = self.wait_for_active("bc", 15)[0].holder
        self.start_controller("a")
        self.wait_for_words("a", "standby: {} is active".format(active), 20)
        self.wait_for("the promise of a", lambda: asfc.node_records(
            self.records())["a"][1].promise_s, 10)
        self.cluster["a"].power_off()
        _, gap_s, told_s = self.check_move(
            self.steer("c", "failover", "--to", "c", "--yes"), scheduler, "c")
        print("failover from a node without power: {:.1f} s without a scheduler, {:.1f} s as asfc "
              "tells".format(gap_s, told_s), file=sys.stderr)
        self.assertLess(gap_s, LOST_NODE_S)
        started = [event for event in asfc.history_events(self.records())
                   if event.what == "starting the scheduler on c"]
        self.assertRegex(started[-1].proof, "a: .*silent for")

    def test_the_active_controller_killed_at_a_step_of_it_leaves_one_that_completes_it(self):
        """It is killed just after it has said what it does; either it or a standby goes on."""
        scheduler, active = self.start_cluster(scheduler_restart_budget="10"), "a"
        for words, target in (("moving the scheduler to b", "b"), ("stopping the scheduler", "c"),
                              ("starting the scheduler on b", "b")):
            with self.subTest(words):
                said = len(self.controllers[active].output())
                asked = self.steer("c", "switchover", "--to", target)
                self.wait_for_words(active, words, 20, said)
                self.controllers[active].kill()
                if target == "c":      # once a standby takes over
                    active = self.wait_for_active("bc", 20)[0].holder
                else:
                    self.start_controller(active)
                scheduler, _, _ = self.check_move(asked, scheduler, target)


class AnUpgradeNodeByNode(ClusterTest):
    """The release before and this one, side by side."""
    BEFORE = "a280831"     # it knows no orders, and no status

    @classmethod
    def older_release(cls):
        """The program as it was; without the project's history, the same with another number."""
        shown = subprocess.run(
            ["git", "show", cls.BEFORE + ":asfc.py"], cwd=os.path.dirname(__file__) or ".",
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
        if shown.returncode:
            print("no older commit is here: another number has to do", file=sys.stderr)
        text = read_file(asfc.__file__) if shown.returncode else shown.stdout
        return re.sub("(?m)^__version__ = .*", '__version__ = "1.9.9"', text)

    def upgrade(self, name):
        """Stop a controller and start that of this release; returns which one is active then."""
        active = self.cluster_record().holder
        self.controllers[name].send(signal.SIGTERM)
        self.assertEqual(self.controllers[name].wait(20), 0)
        if name == active:
            active = self.wait_for_active([other for other in "abc" if other != name],
                                          15)[0].holder
        self.cluster[name].write("asfc.py", read_file(asfc.__file__))
        self.start_controller(name)
        self.wait_for_words(name, "standby: {} is active".format(active), 20)
        self.wait_for("the record of {} is of this release".format(name), lambda: (
            asfc.node_records(self.records())[name][1].version == asfc.__version__), 10)
        self.wait_for_quiet(active, "a")
        return active

    def test_restarts_no_scheduler_and_loses_nothing(self):
        older = self.older_release()
        for host in self.cluster:
            host.write("asfc.py", older)
        scheduler = self.start_cluster()
        cluster, before = self.cluster_record(), asfc.history_events(self.records())
        # The active one first, whatever the README advises: so each release follows the other.
        actives = [self.upgrade("a")]
        actives.append(self.upgrade(actives[0]))
        actives.append(self.upgrade("bc".replace(actives[0], "")))
        self.assert_one_scheduler_since(scheduler)
        record, after = self.cluster_record(), asfc.history_events(self.records())
        self.assertEqual(record.cluster, cluster.cluster)
        self.assertEqual(after[:len(before)], before)
        self.assertEqual({event.what for event in after[len(before):]} - {
            "active failover node", "the scheduler runs on a"}, set())
        self.assertIn("asfc is version {} on a and 1.9.9 on b".format(asfc.__version__),
                      self.controllers["a"].output())
        moved = self.cluster["c"].run([HOST_PYTHON, "asfc.py", "switchover", "--to", "b"])
        self.assertEqual(moved.returncode, 0, moved.stdout + moved.stderr)
        self.cluster.watch.wait_for_one(5, "b")
        self.assert_never_two()
        print("releases side by side: active were a, {}".format(", ".join(actives)),
              file=sys.stderr)


class BootedHost(Host):
    """A host whose first process is systemd, with a tree of control groups of its own."""
    FIRST_PROCESS = textwrap.dedent("""\
        tree=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
        mkdir "$tree/asfc-$pid"
        echo 0 > "$tree/asfc-$pid/cgroup.procs"
        export container=asfc
        exec unshare --cgroup sh -c '
            uname -n > /run/hostname
            mount --bind /run/hostname /etc/hostname
            umount --recursive /sys/fs/cgroup
            mount -t cgroup2 cgroup2 /sys/fs/cgroup
            for place in /etc/systemd/system /lib/systemd/system-generators /var/lib/systemd; do
                mount -t tmpfs tmpfs $place
            done
            printf "[Unit]\\nDefaultDependencies=no\\n" > /etc/systemd/system/tests.target
            exec /lib/systemd/systemd --unit=tests.target --log-target=null --show-status=no'
        """)

    @staticmethod
    def control_groups():
        """Where control groups can be made for systemd; nothing where they can't."""
        for line in read_file("/proc/self/mounts").splitlines():
            _, tree, kind = line.split()[:3]
            probe = os.path.join(tree, "asfc-probe-{}".format(os.getpid()))
            with contextlib.suppress(OSError):
                if kind == "cgroup2":
                    os.mkdir(probe)
                    os.rmdir(probe)
                    return tree
        return ""

    def finish_boot(self):
        super().finish_boot()
        wait_until(lambda: not self.run(["systemctl", "is-active", "tests.target"]).returncode, 20,
                   "systemd on " + self.name)

    def power_off(self):
        groups = os.path.join(self.control_groups(), "asfc-{}".format(self.init))
        super().power_off()
        for directory, _, _ in os.walk(groups, topdown=False):
            wait_until(functools.partial(self.remove_group, directory), 10, "the end of a group")

    @staticmethod
    def remove_group(directory):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
            return True

    def add_unit(self, name, text):
        """Write a unit, or a drop-in, and have systemd read it."""
        done = self.run([
            "sh", "-c", "mkdir -p $(dirname $0) && cat > $0 && systemctl daemon-reload",
            "/etc/systemd/system/" + name], input=text)
        assert done.returncode == 0, done.stderr

    def add_users_unit(self, name, text):
        """Write a unit of root's own manager, which is started if need be; that reads it."""
        self.write(".config/systemd/user/" + name, text)
        if not os.path.exists("/proc/{}/root/run/user/0/systemd/private".format(self.init)):
            self.write(".config/systemd/user/tests.target", "[Unit]\nDefaultDependencies=no\n")
            self.add_unit("user@0.service", textwrap.dedent("""\
                [Service]
                Type=notify
                Delegate=yes
                Environment=XDG_RUNTIME_DIR=/run/user/0 HOME={}
                ExecStartPre=mkdir -p -m 700 /run/user/0
                ExecStart=/lib/systemd/systemd --user --unit=tests.target --log-target=null
                """).format(self.HOME))
            self.systemctl("start", "user@0")
        self.systemctl("--user", "daemon-reload")

    def systemctl(self, *words):
        """Run systemctl to its end; returns what it said, or fails."""
        done = self.run(("systemctl",) + words, timeout_s=60,
                        environment={"XDG_RUNTIME_DIR": "/run/user/0"})
        assert done.returncode == 0, "systemctl {}: {}{}".format(
            " ".join(words), done.stderr, self.run(["systemctl", "status", words[-1]]).stdout)
        return done.stdout

    def shown(self, unit, key):
        return self.systemctl("show", "--value", "-p", key, unit).strip()


class BootedCluster(Cluster):
    HOST = BootedHost


class UnderSystemd(ClusterTest):
    """asfc by its unit, as it is shipped, and a scheduler by one like Airflow's own, with sudo."""
    NAMES, CLUSTER = ("a", "b"), BootedCluster
    SCHEDULER = textwrap.dedent("""\
        [Service]
        Environment=HOME={0} PATH={1}
        ExecStart={0}/bin/airflow scheduler
        Restart=always
        RestartSec=5s
        """).format(Host.HOME, Host.PATH)
    LOG = "airflow/asfc.log"

    @classmethod
    def setUpClass(cls):
        require("root", os.geteuid() == 0)
        require("systemd", os.path.exists("/lib/systemd/systemd"))
        require("sudo", shutil.which("sudo"))
        super().setUpClass()

    def install(self, host):
        """As the README says it for two nodes, but as root, and with its log in a file."""
        self.configure(
            host, scheduler_nodes_in_cluster="a, b",
            airflow_scheduler_start_command="sudo systemctl restart airflow-scheduler",
            airflow_scheduler_stop_command="sudo systemctl stop airflow-scheduler")
        unit = read_file(os.path.join(os.path.dirname(os.path.abspath(__file__)), "asfc.service"))
        for old, new in (("User=airflow\nGroup=airflow\n", ""),
                         ("/usr/bin/python3", HOST_PYTHON), ("/opt/asfc", Host.HOME),
                         ("ProtectControlGroups=yes\n", "")):
            self.assertIn(old, unit)
            unit = unit.replace(old, new)
        host.add_unit("asfc.service", unit)
        host.add_unit("asfc.service.d/tests.conf", textwrap.dedent("""\
            [Service]
            Environment=HOME={0} PATH={1} LANG=C.UTF-8
            StandardOutput=append:{0}/{2}
            StandardError=append:{0}/{2}
            WatchdogSec=2s
            RestartSec=1s
            """).format(Host.HOME, Host.PATH, self.LOG))
        host.add_unit("airflow-scheduler.service", self.SCHEDULER)

    def wait_for_log(self, host, words, timeout_s=20, after=0):
        return wait_until(lambda: words in host.read(self.LOG)[after:], timeout_s, lambda: (
            "{} says {!r}; it said: {}".format(host.name, words, host.read(self.LOG)[-3000:])))

    def main_pid(self, host, unit):
        return int(host.shown(unit, "MainPID"))

    def test_the_shipped_unit_keeps_a_scheduler_of_a_unit_running_and_is_kept_running(self):
        a, b = self.cluster
        for host in (a, b):
            self.install(host)
        a.systemctl("start", "asfc")      # it returns when the controller works
        self.assertEqual(a.shown("asfc", "ActiveState"), "active")
        self.wait_for_log(a, "active in term 1")
        b.systemctl("start", "asfc")
        self.cluster.watch.wait_for_one(30, "a")
        self.wait_for_log(a, "this node promises nothing: its unit airflow-scheduler has "
                             "Restart=always: systemd brings the scheduler back")
        checked = b.run([HOST_PYTHON, "asfc.py", "check"])
        self.assertEqual(checked.returncode, 1, checked.stdout + checked.stderr)
        for node in "ab":
            self.assertRegex(checked.stdout,
                             node + ": +the unit airflow-scheduler has Restart=always")
        for host in (a, b):
            host.add_unit("airflow-scheduler.service.d/asfc.conf", "[Service]\nRestart=no\n")
            host.systemctl("restart", "asfc")
        self.wait_for("the promise of both nodes", lambda: all(
            record.promise_s for _, record in asfc.node_records(self.records()).values()), 40)
        scheduler = self.cluster.watch.wait_for_one(10, "a")

        self.check_restart_of_the_scheduler(a, scheduler)
        self.check_the_watchdog(next(
            host for host in (a, b) if host.name == self.cluster_record().holder))
        moved = b.run([HOST_PYTHON, "asfc.py", "switchover", "--to", "b"])
        self.assertEqual(moved.returncode, 0, moved.stdout + moved.stderr)
        scheduler = self.cluster.watch.wait_for_one(5, "b")
        self.assertEqual(a.run(["systemctl", "is-active", "airflow-scheduler"]).returncode, 3)
        self.assertGreater(self.main_pid(b, "airflow-scheduler"), 0)

        said = len(b.read(self.LOG))
        self.configure(b, scheduler_nodes_in_cluster="a, b", poll_frequency="3",
                       airflow_scheduler_start_command="sudo systemctl restart airflow-scheduler",
                       airflow_scheduler_stop_command="sudo systemctl stop airflow-scheduler")
        b.systemctl("reload", "asfc")
        self.wait_for_log(b, "poll_frequency", after=said)
        for host in (a, b):
            host.systemctl("stop", "asfc")
            self.assertEqual(host.shown("asfc", "Result"), "success")
        self.assert_one_scheduler_since(scheduler)

    def check_restart_of_the_scheduler(self, host, scheduler):
        """One that is killed runs again in its unit, and what it left is gone."""
        pid = self.main_pid(host, "airflow-scheduler")
        host.run(["kill", "-KILL", str(pid)])
        after = self.cluster.watch.wait_for_one(DEAD_S, host.name, scheduler.pid)
        self.assertNotIn(self.main_pid(host, "airflow-scheduler"), (0, pid))
        self.assertLess(after.began - scheduler.ended, DEAD_S)

    def check_the_watchdog(self, host):
        """A controller that stands still is ended by systemd and started again, it alone."""
        scheduler, restarts = self.cluster.watch.alive()[0], int(host.shown("asfc", "NRestarts"))
        host.run(["kill", "-STOP", str(self.main_pid(host, "asfc"))])
        wait_until(lambda: int(host.shown("asfc", "NRestarts")) > restarts, 60,
                   "systemd's restart of it")
        wait_until(lambda: host.shown("asfc", "ActiveState") == "active", 60, "it works again")
        self.assert_one_scheduler_since(scheduler)


class UnderAUsersManager(ClusterTest):
    """A scheduler in a unit of a user's own manager; no environment says where that is."""
    NAMES, CLUSTER = ("a", "b"), BootedCluster

    @classmethod
    def setUpClass(cls):
        require("systemd", os.path.exists("/lib/systemd/systemd"))
        super().setUpClass()

    def setUp(self):
        super().setUp()
        for host in self.cluster:
            host.add_users_unit("airflow-scheduler.service", UnderSystemd.SCHEDULER)
            self.configure(
                host, scheduler_nodes_in_cluster="a, b",
                airflow_scheduler_start_command="systemctl --user restart airflow-scheduler",
                airflow_scheduler_stop_command="systemctl --user stop airflow-scheduler")

    def main_pid(self, host):
        return int(host.systemctl("--user", "show", "--value", "-p", "MainPID",
                                  "airflow-scheduler"))

    def test_it_is_started_and_moved_by_it_and_restart_is_noticed(self):
        a, b = self.cluster
        self.start_controller("a")
        self.wait_for_active("a", 15)
        self.start_controller("b")
        self.wait_for_words(
            "a", "its unit airflow-scheduler has Restart=always: systemd brings the scheduler back "
            "when asfc has ended it. Give it a drop-in with Restart=no (`systemctl --user edit "
            "airflow-scheduler`)", 30)
        checked = b.run([HOST_PYTHON, "asfc.py", "check"])
        self.assertRegex(checked.stdout, "a: +the unit airflow-scheduler has Restart=always")
        for host in (a, b):
            host.add_users_unit("airflow-scheduler.service.d/asfc.conf", "[Service]\nRestart=no\n")
            self.controllers[host.name].send(signal.SIGTERM)
            self.controllers[host.name].wait(20)
            self.start_controller(host.name)
        self.wait_for("the promise of both nodes", lambda: all(
            record.promise_s for _, record in asfc.node_records(self.records()).values()), 40)

        scheduler, pid = self.cluster.watch.wait_for_one(30, "a"), self.main_pid(a)
        a.run(["kill", "-KILL", str(pid)])
        self.cluster.watch.wait_for_one(DEAD_S, "a", scheduler.pid)
        self.assertNotIn(self.main_pid(a), (0, pid))
        moved = b.run([HOST_PYTHON, "asfc.py", "switchover", "--to", "b"])
        self.assertEqual(moved.returncode, 0, moved.stdout + moved.stderr)
        self.cluster.watch.wait_for_one(5, "b")
        self.assertEqual(self.main_pid(a), 0)
        self.assertGreater(self.main_pid(b), 0)
        self.assert_never_two()


if os.geteuid() == 0 and not BootedHost.control_groups():
    del UnderAUsersManager
    del UnderSystemd    # no systemd can be booted here


class TenControllersAtOnce(ClusterTest):
    """Ten controllers with node names of their own on one host, released at the same instant."""
    NAMES = ("a",)
    NODES = tuple("n{}".format(number) for number in range(10))
    # Loads asfc, then waits for the common start: what is left between the ten is the database.
    RELEASED = ("import os, sys, time\n"
                "sys.path.insert(0, '/srv/airflow')\n"
                "import asfc\n"
                "open('/mnt/ready-' + sys.argv[2], 'w').close()\n"
                "while not os.path.exists('/mnt/go'):\n"
                "    time.sleep(0.001)\n"
                "sys.exit(asfc.main(['start', '--config', sys.argv[1]]))\n")

    def configure_nodes(self):
        host = self.cluster["a"]
        # No node answers: it is the lease that is looked at here, and no scheduler is started.
        host.write("bin/no-ssh", "#!/bin/sh\nexit 255\n", 0o755)
        for node in self.NODES:
            self.configure(
                host, scheduler_nodes_in_cluster=", ".join(self.NODES), node_name=node,
                state_dir="~/state-" + node, logging_dir="~/logs-" + node, ssh_command="no-ssh")
            os.rename(host.path("airflow/airflow.cfg"), host.path(node + ".cfg"))

    def release(self):
        """Start the ten; they begin when all of them are ready."""
        for node in self.NODES:
            self.controllers[node] = self.cluster["a"].start_process(
                [HOST_PYTHON, "-c", self.RELEASED, node + ".cfg", node])
        shared = self.cluster.shared
        wait_until(lambda: len([name for name in os.listdir(shared) if name.startswith("ready-")])
                   == len(self.NODES), 30, "ten controllers that are ready")
        write_file(os.path.join(shared, "go"), "")
        self.addCleanup(lambda: [os.unlink(os.path.join(shared, name))
                                 for name in os.listdir(shared) if name != "watch"])

    def assert_one_wins(self):
        """One won term in the record and in the logs; nine name its holder; all live."""
        self.configure_nodes()
        self.release()
        first, active_at = self.wait_for_active(self.NODES, 15)
        until = active_at + TAKEOVER_S   # a standby that heard of no heartbeat would be active
        wait_until(lambda: clock() > until, 30, "the time of a takeover")
        holder, record = first.holder, self.cluster_record()
        self.assertEqual((record.term, record.holder), (1, holder))
        for node, controller in self.controllers.items():
            words = "standby: {} is active in term 1".format(holder)
            said = controller.output()
            self.assertTrue(controller.alive(), said)
            self.assertEqual(("active in term 1: " in said, words in said),
                             (node == holder, node != holder), said)
            self.assertNotIn("Traceback", said)

    def test_one_of_ten_wins_on_mariadb(self):
        self.assert_one_wins()

    def test_one_of_ten_wins_on_postgresql(self):
        require("a PostgreSQL server", PostgreSqlServer.present())
        server = serve_on(self.cluster, PostgreSqlServer)
        self.addCleanup(server.stop)
        self.url = server.create_database("airflow")
        self.assert_one_wins()

    def test_one_of_ten_wins_on_sqlite(self):
        self.url = "sqlite:////srv/airflow/airflow.db"
        self.assert_one_wins()

    def records(self):
        if self.url.startswith("sqlite"):
            self.url = "sqlite:///" + self.cluster["a"].path("airflow.db")
        return super().records()


class TwoDatabaseFiles(ClusterTest):
    """Airflow's default, a SQLite file, on each of two hosts: they know nothing of each other."""
    NAMES = ("a", "b")
    URL = "sqlite:////srv/airflow/airflow/airflow.db"

    def start_both(self, wait_for_first):
        for host in self.cluster:
            self.configure(host, url=self.URL, scheduler_nodes_in_cluster="a, b")
        self.start_controller("a")
        if wait_for_first:
            self.cluster.watch.wait_for_one(30)
        self.start_controller("b")

    def assert_refused(self, words, for_s):
        """For a time never two schedulers; one of the controllers says clearly what is wrong."""
        wait_until(lambda: any(re.search(words, controller.output())
                               for controller in self.controllers.values()),
                   20, lambda: "a clear message:\n" + self.story())
        until = clock() + for_s
        wait_until(lambda: clock() > until, for_s + 5, "a while")
        self.assert_never_two()

    def test_the_second_cluster_is_refused_while_the_first_runs_its_scheduler(self):
        # The second takes the cluster and a term to exceed from its own node's gate, so it is the
        # first that hears of something newer.
        self.start_both(wait_for_first=True)
        self.assert_refused("share one database", 3 * POLL_S)
        self.assertEqual(len(self.cluster.watch.lives), 1)

    def test_two_that_start_at_once_never_run_two_schedulers(self):
        self.start_both(wait_for_first=False)
        self.assert_refused("share one database|belongs to cluster", 5 * POLL_S)


class BesideTheOldController(ClusterTest):
    """The table of the controller that asfc replaces, with its heartbeat moving or not."""
    NAMES = ("a",)
    HEARTBEAT = "UPDATE scheduler_failover_controller_metadata SET value = NOW(6)"

    def setUp(self):
        super().setUp()
        self.database = self.url.rpartition("/")[2]
        self.server.sql(
            "CREATE TABLE scheduler_failover_controller_metadata (`key` VARCHAR(100) PRIMARY KEY, "
            "value TEXT); INSERT INTO scheduler_failover_controller_metadata VALUES "
            "('failover_heartbeat', NOW(6)), ('active_failover_node', 'a'), "
            "('active_scheduler_node', 'a');", self.database)
        self.configure(self.cluster["a"], scheduler_nodes_in_cluster="a")

    def test_its_heartbeat_moves_so_asfc_ends_and_says_what_to_stop(self):
        controller = self.start_controller("a")
        beats = 0
        while controller.status() is None and beats < 60:
            self.server.sql(self.HEARTBEAT, self.database)
            beats += 1
            with contextlib.suppress(AssertionError):
                controller.wait(0.5)
        self.assertEqual(controller.status(), asfc.RefusedError.exit_status)
        self.assertIn("scheduler_failover_controller still runs", controller.output())
        self.assertNotIn("Traceback", controller.output())
        self.assertIsNone(self.cluster_record())
        self.assertEqual(self.cluster.watch.lives, [])

    def test_its_heartbeat_stands_still_so_asfc_starts_after_two_polls_and_five_seconds(self):
        began = clock()
        self.start_controller("a")
        self.cluster.watch.wait_for_one(40, "a")
        self.assertGreaterEqual(clock() - began, 2 * POLL_S + 5)


class MailServer:
    """An SMTP server of the tests, in one of their networks; keeps what it was given."""

    def __init__(self, network, address):
        self.mails = []
        network.call(self._listen, address)

    def _listen(self, address):
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, 0))
        self._socket.listen(10)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self):
        while True:
            try:
                connection = self._socket.accept()[0]
            except OSError:
                return
            with connection, connection.makefile("rwb") as file, contextlib.suppress(OSError):
                connection.settimeout(10)
                self._talk(file)

    def _talk(self, file):
        def say(text):
            file.write(text.encode() + b"\r\n")
            file.flush()
        mail = {"recipients": []}
        say("220 mail ready")
        for line in iter(file.readline, b""):
            words = line.decode("utf-8", "replace").strip()
            verb = words[:4].upper()
            if verb == "DATA":
                say("354 go on")
                lines = iter(file.readline, b".\r\n")
                mail["message"] = email.message_from_bytes(b"".join(lines))
                self.mails.append(mail)
                mail = {"recipients": []}
            elif verb == "MAIL":
                mail["sender"] = words
            elif verb == "RCPT":
                mail["recipients"].append(words[8:].strip("<> ").split(">")[0])
            say("221 bye" if verb == "QUIT" else "250 well")
            if verb == "QUIT":
                return


class AlertsByMail(ClusterTest):
    """A real mail server hears of it when no scheduler can be started, and when one runs again."""
    NAMES = ("a",)

    def setUp(self):
        super().setUp()
        self.mail_server = MailServer(self.cluster.servers, Cluster.SERVERS)
        self.addCleanup(self.mail_server.close)
        self.settings = {
            "scheduler_nodes_in_cluster": "a", "retry_count_before_alerting": "3",
            "alert_to_email": "night@example.com, day@example.com",
            "alert_email_subject": "No scheduler!",
            "sections": "[smtp]\nsmtp_host = mail\nsmtp_port = {}\nsmtp_starttls = False\n"
                    "smtp_mail_from = asfc@example.com\n".format(self.mail_server.port)}

    def subjects(self):
        return [mail["message"]["Subject"] for mail in self.mail_server.mails]

    def test_one_alert_after_the_failed_rounds_and_one_on_recovery(self):
        host = self.cluster["a"]
        host.write("scheduler_is_broken", "")
        self.configure(host, **self.settings)
        self.start_controller("a")
        wait_until(lambda: "No scheduler!" in self.subjects(), 90, "an alert")
        mail = self.mail_server.mails[self.subjects().index("No scheduler!")]
        self.assertEqual(mail["recipients"], ["night@example.com", "day@example.com"])
        text = mail["message"].get_payload(decode=True).decode("utf-8")
        for words in ("after 3 rounds", "Nodes: a", "this scheduler is broken", "What asfc does"):
            self.assertIn(words, text)
        self.assertNotIn(self.server.PASSWORD, text)
        host.remove("scheduler_is_broken")
        self.cluster.watch.wait_for_one(90, "a")
        wait_until(lambda: any("runs again on a" in subject for subject in self.subjects()), 60,
                   "the mail of the recovery")
        until = clock() + 2 * POLL_S
        wait_until(lambda: clock() > until, 10, "two polls more")
        self.assertEqual(len(self.subjects()), 2, self.subjects())

    def test_the_test_mail_arrives(self):
        self.configure(self.cluster["a"], **self.settings)
        done = self.cluster["a"].run([HOST_PYTHON, "asfc.py", "send_test_email"])
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        wait_until(self.subjects, 5, "the mail")
        self.assertIn("This is a TEST ALERT",
                      self.mail_server.mails[0]["message"].get_payload(decode=True).decode())

    def test_a_mail_server_that_is_down_delays_nothing(self):
        self.mail_server.close()
        self.configure(self.cluster["a"], **self.settings)
        self.cluster["a"].write("scheduler_is_broken", "")
        self.start_controller("a")
        self.wait_for_words("a", "could not be mailed", 90)
        self.cluster["a"].remove("scheduler_is_broken")
        self.cluster.watch.wait_for_one(90, "a")


class TheOriginalsCommands(ClusterTest):
    """The texts of the original's init, and those it recommends, under several login shells."""
    SHELLS = {"a": "/bin/bash", "b": "/bin/dash", "c": "/usr/bin/zsh"}
    START = ("export AIRFLOW_HOME=~/airflow;{};"
             "nohup airflow scheduler >> ~/airflow/logs/scheduler.logs &")
    STOP = ("for pid in `ps -ef | grep \"airflow scheduler\" | awk '{print $2}'` "
            "\\; do kill -9 $pid \\; done")
    ACTIVATE = "source " + Host.HOME + "/venv/bin/activate"
    # What the unit of a scheduler does; each call is written down, and whether it had a terminal.
    SYSTEMCTL = textwrap.dedent("""\
        #!/bin/sh
        (: < /dev/tty) 2> /dev/null && terminal=with || terminal=without
        echo "$1 $2 $terminal a terminal" >> ~/systemctl.log
        main=/run/$2.pid
        case $1 in stop|restart)
            [ ! -e $main ] || while kill $(cat $main); do sleep 0.05; done 2> /dev/null
            rm -f $main ;;
        esac
        case $1 in start|restart)
            setsid airflow scheduler > /dev/null 2>&1 < /dev/null & echo $! > $main ;;
        esac
        """)

    def setUp(self):
        super().setUp()
        for name, shell in self.SHELLS.items():
            require(shell, os.path.exists(shell))
            self.cluster[name].set_login_shell(shell)

    def assert_commands_work(self, start, stop, by_hand=("airflow", "scheduler"), **settings):
        """A start on each of the three hosts, in turn, and a stop on each."""
        scheduler = self.start_cluster(airflow_scheduler_start_command=start,
                                       airflow_scheduler_stop_command=stop,
                                       scheduler_restart_budget="1", poll_frequency="1", **settings)
        self.assert_duplicate_is_stopped(("b", "c"), scheduler, by_hand)
        for host, following in (("a", "b"), ("b", "c")):
            self.crash(scheduler)  # with a budget of 1 that is a reason to move
            scheduler = self.cluster.watch.wait_for_one(60, following)
            self.wait_for_quiet("a", following)
            self.assert_nothing_is_left_on(host)
        self.assert_duplicate_is_stopped(("a",), scheduler, by_hand)

    def crash(self, scheduler):
        """Its twin, with the same words, outlives it."""
        os.kill(scheduler.pid, signal.SIGKILL)

    def assert_nothing_is_left_on(self, host):
        """The twin that outlived its killed scheduler was stopped before the scheduler moved."""
        found = self.cluster[host].run(["pgrep", "-fa", "bin/airflow scheduler"])
        self.assertEqual(found.stdout, "")

    def assert_duplicate_is_stopped(self, hosts, scheduler, by_hand):
        for host in hosts:
            self.cluster[host].start_process(by_hand)
            wait_until(lambda: len(self.cluster.watch.alive()) == 2, 10, "a second scheduler")
            wait_until(lambda: self.cluster.watch.alive() == [scheduler], 30,
                       lambda: "the end of one of {}".format(self.cluster.watch.alive()))

    def use_virtualenv(self):
        """Airflow is in a virtual environment alone, so only its activation finds it."""
        for host in self.cluster:
            os.makedirs(host.path("venv/bin"))
            os.rename(host.path("bin/airflow"), host.path("venv/bin/airflow"))
            host.write("venv/bin/activate", "export PATH={}/venv/bin:$PATH\n".format(Host.HOME))
        return ("env", "PATH=/usr/bin:/bin", Host.HOME + "/venv/bin/airflow", "scheduler")

    def test_the_texts_of_its_init_without_a_virtualenv(self):
        self.assert_commands_work(self.START.replace("{}", ""), self.STOP)

    def test_the_texts_of_its_init_with_a_virtualenv(self):
        by_hand = self.use_virtualenv()
        self.assert_commands_work(self.START.replace("{}", self.ACTIVATE), self.STOP,
                                  by_hand)

    def test_the_texts_of_its_documentation_with_double_braces(self):
        self.assert_commands_work(self.START, self.STOP.replace("{print $2}", "{{print $2}}"))

    def test_the_texts_of_its_documentation_with_a_virtualenv(self):
        by_hand = self.use_virtualenv()
        self.assert_commands_work(self.START.replace("{}", self.ACTIVATE),
                                  self.STOP.replace("{print $2}", "{{print $2}}"), by_hand)

    def crash_as_a_unit(self, scheduler):
        """systemd ends all processes of a unit when its main process has died."""
        for pid in [scheduler.pid] + descendants_of(scheduler.pid):
            os.kill(pid, signal.SIGKILL)

    def test_the_recommended_texts_with_systemctl(self):
        self.crash = self.crash_as_a_unit
        for host in self.cluster:
            host.write("bin/systemctl", self.SYSTEMCTL, 0o755)
            host.write("bin/sudo", '#!/bin/sh\nexec "$@"\n', 0o755)
        self.assert_commands_work("sudo systemctl restart airflow-scheduler",
                                  "sudo systemctl stop airflow-scheduler",
                                  ("systemctl", "start", "airflow-scheduler"))
        for name in "bc":
            self.assertIn("restart airflow-scheduler with a terminal",
                          self.cluster[name].read("systemctl.log"))


# An ssh that keeps the first start for the node that ~/hold names until ~/release is there, and
# then delivers it, also when nobody waits for it any more. All else goes through.
SLOW_SSH = """\
#!PYTHON
import base64, os, re, subprocess, sys, time

home = os.path.expanduser("~/")
command = sys.argv[1:]
words = re.search("asfc-[a-z]+@[^ ]+ (.*)", command[-1]).group(1).split()
script = base64.b64decode("".join(words)).decode()
sent = dict(re.findall(r"(?m)^(verb|node|term|move)='?([^'\\n]*)", script))
hold = open(home + "hold").read() if os.path.exists(home + "hold") else None
if sent["verb"] != "start" or sent["node"] != hold or os.path.exists(home + "held"):
    os.execvp("ssh", ["ssh"] + command)
with open(home + "held", "w") as file:
    file.write(sent["term"] + "." + sent["move"])
courier = os.fork()
if courier:
    os.waitpid(courier, 0)
    sys.exit(255)
os.setsid()
while not os.path.exists(home + "release"):
    time.sleep(0.02)
answer = subprocess.run(["ssh"] + command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
with open(home + "answer.new", "wb") as file:
    file.write(answer)
os.rename(home + "answer.new", home + "answer")
"""


def switch_protections_off(host):
    """The nodes' script then takes every pair for a new one, and every promise for a good one."""
    text = host.read("asfc.py")
    for protection, instead in UNPROTECTED:
        if text.count(protection) != 1:
            raise AssertionError("the script has not one {!r}".format(protection))
        text = text.replace(protection, instead)
    host.write("asfc.py", text)


UNPROTECTED = [
    ("\npass_gate\nload_intent\n",
     '\ngate="$term $move $instance $cluster $node"\nstore gate "$gate"\n'
     'tell gate "$gate"\nload_intent\n'),
    ('    [ "$2" = "$boot" ] && [ "$now" -lt "$3" ]\n', "    :\n")]


class StartsThatArriveLate(ClusterTest):
    """A start for b that is on its way while the scheduler was moved to c, in the same term. That
    it comes from a frozen controller, whose successor moves, is a row of the table of faults."""

    def begin(self):
        """Controllers everywhere, a active. Its scheduler dies, and the start for the next node,
        b, is kept back.
        """
        for host in self.cluster:
            host.write("bin/slow-ssh", SLOW_SSH.replace("PYTHON", HOST_PYTHON), 0o755)
            self.configure(host, scheduler_nodes_in_cluster="b, c, a", ssh_command="slow-ssh",
                           query_timeout="2", poll_frequency="1", heartbeat_timeout="8",
                           scheduler_restart_budget="1")
        self.start_controller("a")
        self.wait_for_active("a", 15)
        self.start_controller("b")
        self.start_controller("c")
        self.wait_for_quiet("a", "a", 30)
        for name in "bc":
            self.wait_for_words(name, "standby: a is active", 10)
        self.cluster["a"].write("hold", "b")
        os.kill(self.cluster.watch.wait_for_one(5, "a").pid, signal.SIGKILL)
        wait_until(lambda: self.cluster["a"].read("held"), 40, "a start for b on its way")

    def deliver(self):
        """The start arrives; returns what b's script answers."""
        self.cluster["a"].write("release", "")
        return wait_until(lambda: self.cluster["a"].read("answer"), 20, "the answer of b")

    def assert_refused(self):
        """b refuses the late start, and tells which newer one it has heard of."""
        scheduler = self.cluster.watch.wait_for_one(5, "c")
        answer = self.deliver()
        gate = self.cluster["b"].read(".asfc/gate").split()
        late = self.cluster["a"].read("held")
        self.assertIn("node b has heard of the newer {}.{}".format(*gate[1:3]), answer)
        self.assertLess([int(part) for part in late.split(".")], [int(part) for part in gate[1:3]])
        self.assertIn("start on b, move " + late, self.controllers["a"].output())
        self.assertIn("start on c, move {}.".format(self.cluster_record().term),
                      self.controllers["a"].output())
        until = clock() + 2 * POLL_S
        wait_until(lambda: clock() > until, 10, "two polls more")
        self.assert_one_scheduler_since(scheduler)

    def assert_two_schedulers(self):
        """What the gate is for: without it the late start makes a second scheduler."""
        self.cluster.watch.wait_for_one(5, "c")
        self.controllers["b"].freeze()   # it would soon stop what it must not have
        self.assertIn("the start command was launched", self.deliver())
        wait_until(self.cluster.watch.overlaps, 10, "two schedulers at the same time")

    def move_on_in_the_same_term(self):
        """The sender gives the start up and moves the scheduler itself."""
        self.begin()
        self.wait_for_quiet("a", "c", 60)

    def test_a_start_that_arrives_after_a_move_in_the_same_term_is_refused(self):
        self.move_on_in_the_same_term()
        self.assertEqual(self.cluster_record().term, 1)
        self.assert_refused()

    def test_without_the_gate_a_late_start_of_the_same_term_makes_a_second_scheduler(self):
        for host in self.cluster:
            switch_protections_off(host)
        self.move_on_in_the_same_term()
        self.assert_two_schedulers()


###############################################################################
# Real hosts: faults ##########################################################
###############################################################################
#
# A table of faults. Each is done to a quiet cluster of three hosts and undone; then it is measured
# how long two schedulers lived, how long none did, how often the active role changed hands, and
# whether every controller that the fault spared is still the same process. Clusters work side by
# side, for most of the time is spent waiting. `python3 test_asfc.py soak hosts` does all of them
# five times.

FENCE_GRACE_S, FENCE_TICK_S, KILL_S = 5, 1, 0.5
# What a node promises (F), and the silence after which the others may rely on it (W).
PROMISE_S = HEARTBEAT_TIMEOUT_S * 2 / 3 + METADATA_S + FENCE_TICK_S + FENCE_GRACE_S + KILL_S
SILENCE_S = 1.1 * PROMISE_S
# The start of the stand-in through ssh, with all that runs beside it on two cores.
START_S = 2.0
# The bounds of protocol.md's table for SETTINGS: one scheduler runs again within ...
DEAD_S = POLL_S + 2 * QUERY_S + METADATA_S + START_S
LOST_NODE_S = (max(HEARTBEAT_TIMEOUT_S, SILENCE_S) + INTERVAL_S + 2 * QUERY_S + 3 * METADATA_S
               + START_S)
LOST_IN_RESTART_S = (HEARTBEAT_TIMEOUT_S + INTERVAL_S + POLL_S + 2 * QUERY_S + 3 * METADATA_S
                     + START_S)
TAKEOVER_S = HEARTBEAT_TIMEOUT_S + INTERVAL_S + METADATA_S + MEASURED_LATE_S
# So long the metadata may be away and nothing happens.
SHORT_OUTAGE_S = HEARTBEAT_TIMEOUT_S * 2 / 3 - INTERVAL_S - METADATA_S - RETRY_S
# A fault under which nothing may happen lasts until everybody's patience has run out.
LONG_S = SILENCE_S + INTERVAL_S + RETRY_S
SECOND_BY_HAND_S = POLL_S + QUERY_S   # one that was started by hand lives until the first turn


class Fault:
    """One row of the table: what is done, and what must hold.

    `do` is called with the bench. The fault then lasts for `for_s`, and until what must follow has
    followed; then all that was broken is mended. `bound_s` is the longest time without a scheduler,
    0 when it never stops. `roles` is how often the active role changes hands, one number or the
    numbers that are allowed; `lives` how many schedulers begin (None: any number). `overlap_s` is
    how long two schedulers may live, `control` that they must: there the harness is tested.
    `together` has the active controller on the scheduler's node, or not, or lets it be (None).
    """

    def __init__(self, name, do, bound_s=0.0, roles=0, lives="as bound_s says", for_s=0.0,
                 together=None, overlap_s=0.0, control=False, mend_first=False, **settings):
        self.name, self.do, self.bound_s, self.for_s = name, do, bound_s, for_s
        self.roles = roles if isinstance(roles, tuple) else (roles,)
        self.lives = lives if lives != "as bound_s says" else int(bound_s > 0)
        self.together, self.overlap_s, self.control = together, overlap_s, control
        self.mend_first, self.settings = mend_first, settings
        self.bench = None      # the kind of bench, where it is not the table's own


class Outcome:
    """What a fault has led to; `problems` are sentences, none when all held."""
    HEADER = "{:<71} {:>8} {:>9} {:>6} {:>6} {:>6}".format(
        "fault", "overlap", "downtime", "bound", "roles", "alive")

    def __init__(self, fault, overlap_s=0.0, downtime_s=0.0, bound_s=0.0, roles=0, alive=0,
                 problems=(), story=""):
        self.fault, self.overlap_s, self.downtime_s = fault, overlap_s, downtime_s
        self.bound_s, self.roles, self.alive = bound_s, roles, alive
        self.problems, self.story = list(problems), story

    def __str__(self):
        return "{:<71} {:8.1f} {:9.1f} {:6.1f} {:6d} {:6d}{}".format(
            self.fault.name, self.overlap_s, self.downtime_s, self.bound_s, self.roles, self.alive,
            "  FAILED" if self.problems else "")


class FaultBench(ClusterBench):
    """Three hosts with controllers, on which faults are done one after the other."""
    CLUSTER, SERVER = Cluster, MariaDbServer
    SETTINGS = {"scheduler_restart_budget": "1000", "ssh_command": "held-ssh"}
    SHORT_LIFE_S = 0.7   # one that ends sooner was no scheduler that ran
    HELD_FILES = ("hold", "held", "release", "answer")
    BREAKING_FILES = ("scheduler_is_broken", "scheduler_crashes_after")
    OWN_SETTINGS = ("without_protections", "job_table")   # the others are asfc's
    DATABASE = ("db",)   # the networks in which it is
    AT_ONCE = 4          # so many benches at a time
    ONE_SERVER = threading.Lock()   # at a time makes its data directory

    def __init__(self):
        self.cluster = self.CLUSTER()
        self.controllers = {}
        self.settings = None   # of the cluster as it runs; None: boot it anew
        self._databases = itertools.count(1)
        self._ever = []        # (node, process) of all controllers since the boot
        self._begin()
        try:
            with self.ONE_SERVER:
                self.server = self.serve()
        except BaseException:
            self.close()
            raise

    def serve(self):
        return serve_on(self.cluster, self.SERVER)

    def close(self):
        self.cluster.close()

    def wait_for(self, what, condition, timeout_s):
        """As ever, but asked more seldom: what is measured here needs the cores, too."""
        def tried():
            time.sleep(0.1)
            with contextlib.suppress(asfc.MetadataError, AttributeError):
                return condition()
        return wait_until(tried, timeout_s, what)

    # -- one fault

    def run(self, fault):
        """Do a fault to a quiet cluster; returns the Outcome."""
        problems, story = [], ""
        try:
            self.fault = fault
            self._prepare(fault)
            self.look_around()
            fault.do(self)
            self.let_pass(self.began + fault.for_s - clock())
            if not fault.mend_first:
                self._wait_for_effects(fault)
            self.mend()
            self._wait_for_effects(fault)
            self.wait_for_calm()
            problems = self._problems(fault)
        except Exception as error:
            expected = isinstance(error, (AssertionError, asfc.AsfcError))
            problems = [str(error) if expected else traceback.format_exc()]
        if problems:
            story, self.settings = self.story(), None   # the next fault gets new hosts
        return Outcome(fault, self.overlap_s(), self.downtime_s(), self.bound_s,
                       self.role_changes(), self.alive(), problems, story)

    def _prepare(self, fault):
        self._begin()
        wanted = dict(self.SETTINGS, **fault.settings)
        if self.settings != wanted:
            self.boot(wanted)
        record = self.cluster_record()
        node = record.active_scheduler_node
        if fault.together is not None and (record.holder == node) != fault.together:
            self.make_active(node if fault.together else
                             next(name for name in self.cluster.hosts if name != node))

    def _begin(self):
        """Nothing has happened yet."""
        self.active = self.node = self.third = ""
        self.scheduler, self.bound_s = None, 0.0
        self.hung, self.hung_at = None, 0.0   # a scheduler that does its work no more, since when
        self.lost = set()      # nodes whose controllers a fault ends
        self._undo = []
        self._said = {id(one): len(one.output()) for _, one in self._ever}
        self._kept = dict(self.controllers)
        self._lives_before = list(self.cluster.watch.lives)
        self.began = self.counted_from = clock()

    def _beat_for_schedulers(self):
        """Write into Airflow's job table what those schedulers would that don't stand still."""
        url = self.url
        while self.url == url and self.cluster.watch:
            beats = ["REPLACE INTO job (id, job_type, state, hostname, latest_heartbeat) VALUES "
                     "({}, 'SchedulerJob', 'running', '{}', NOW(6));".format(number, life.host)
                     for number, life in enumerate(self.cluster.watch.lives, 1)
                     if life.ended is None and (process_fields(life.pid) or "T")[0] != "T"]
            with contextlib.suppress(AssertionError):
                self.sql("".join(beats))
            time.sleep(JOB_HEARTBEAT_S)

    def look_around(self):
        """Who is who; from now on is measured."""
        self._begin()
        self.bound_s = self.fault.bound_s
        record = self.cluster_record()
        self.active, self.node = record.holder, record.active_scheduler_node
        self.third = next(name for name in self.cluster.hosts
                          if name not in (self.active, self.node))
        self.scheduler = self.cluster.watch.wait_for_one(5, self.node)

    def boot(self, settings):
        """New hosts and new metadata; all controllers begin at the same time."""
        self.settings = None
        self.cluster.heal()
        self.cluster.fresh()
        for name in os.listdir(self.cluster.shared):
            if name != "watch":
                os.unlink(os.path.join(self.cluster.shared, name))
        self.url = self.server.create_database("airflow_{}".format(next(self._databases)))
        self.controllers, self._ever = {}, []
        for host in self.cluster:
            host.write("bin/held-ssh", HELD_SSH, 0o755)
            host.write("bin/slow-ssh", SLOW_SSH.replace("PYTHON", HOST_PYTHON), 0o755)
            self.configure(host, **{key: value for key, value in settings.items()
                                    if key not in self.OWN_SETTINGS})
            if settings.get("without_protections"):
                switch_protections_off(host)
        self._begin()
        self.settings = settings
        if settings.get("job_table"):
            self.sql(JOB_TABLE.format("", "TIMESTAMP(6) NULL", ""))
            threading.Thread(target=self._beat_for_schedulers, daemon=True).start()
        self.start_controllers()
        self.wait_for_calm()

    def _wait_for_effects(self, fault):
        """A new scheduler, if one must begin, and a new active controller, if one must."""
        if fault.lives:
            wait_until(lambda: len(self.new_lives()) >= fault.lives
                       and len(self.cluster.watch.alive()) == 1, self.bound_s + 15,
                       lambda: "one new scheduler: {}".format(self.cluster.watch.lives))
        if 0 not in fault.roles:
            self.wait_for("another active controller",
                          lambda: self.cluster_record().holder not in ("", self.active), 60)

    def new_lives(self):
        return [life for life in self.cluster.watch.lives if life not in self._lives_before
                and (life.ended or clock()) - life.began > self.SHORT_LIFE_S]

    def mend(self):
        """Undo what the fault did, and start what it ended, as an init system would."""
        for undo in reversed(self._undo):
            undo()
        self._undo = []
        self.cluster.heal()
        for host in self.cluster:
            if host.init is None:
                host.power_on()
            for file in self.HELD_FILES + self.BREAKING_FILES:
                host.remove(file)
        self.start_controllers()

    def wait_for_calm(self, timeout_s=45):
        """Wait until all are content: the active one sees its one scheduler on the only possible
        node, the others stand by in its term and, where they do so, promise to fence their node.
        """
        before = {name: len(one.output()) for name, one in self.controllers.items()}

        def content():
            said = {name: one.output()[before[name]:] for name, one in self.controllers.items()}
            alive = self.cluster.watch.alive()
            if len(alive) != 1:
                return None
            words = "no action: I am active, the scheduler runs on {}\n".format(alive[0].host)
            if not any(words in text for text in said.values()):
                return None
            records = self.records()
            record = asfc.ClusterRecord.from_text(records["cluster"].value)
            standby = "standby: {} is active in term {}\n".format(record.holder, record.term)
            return (record.possible_nodes == (alive[0].host,) and words in said[record.holder]
                    and all(standby in text for name, text in said.items() if name != record.holder)
                    and self.promises_are_made(records))
        self.wait_for("a quiet cluster", content, timeout_s)

    def promises_are_made(self, records):
        """Whether every node's record promises, unless the settings say that none does."""
        keeps = (self.settings or {}).get("on_metadata_loss") == "keep"
        found = [json.loads(records["node/" + name].value) for name in self.cluster.hosts
                 if "node/" + name in records]
        if not hasattr(asfc, "NodeRecord"):
            return True
        return len(found) == len(self.cluster.hosts) and all(
            (record["promise_s"] is None) == keeps for record in found)

    # -- what is measured

    def overlap_s(self):
        """How long more than one scheduler lived, frozen ones included."""
        return sum(ended - began for began, ended in self.cluster.watch.overlaps(self.began))

    def downtime_s(self):
        """The longest time without a scheduler, from when it counts."""
        now, end, longest = clock(), self.counted_from, 0.0
        for life in sorted(self.cluster.watch.lives, key=lambda life: life.began):
            ended = self.hung_at if life is self.hung else life.ended or now
            if ended - life.began > self.SHORT_LIFE_S:
                longest = max(longest, life.began - end)
                end = max(end, ended)
        return max(longest, now - end if now - end > 0.05 else 0.0)

    def role_changes(self):
        """How often the active role changed hands, by what the controllers said."""
        claims = []
        for name, one in self._ever:
            text = one.output()[self._said.get(id(one), 0):]
            claims += [(int(term), name)
                       for term in re.findall(r"\] active in term (\d+): ", text)]
        holders = [self.active] * bool(self.active) + [name for _, name in sorted(claims)]
        return sum(1 for one, other in zip(holders, holders[1:]) if one != other)

    def alive(self):
        return sum(1 for one in self.controllers.values() if one.alive())

    def _problems(self, fault):
        """What did not hold, in sentences."""
        watch, problems = self.cluster.watch, []
        overlap_s, downtime_s, roles = self.overlap_s(), self.downtime_s(), self.role_changes()
        if fault.control and not overlap_s:
            problems.append("the harness saw no two schedulers, though there were two")
        if not fault.control and overlap_s > fault.overlap_s:
            problems.append("two schedulers for {:.1f} s: {}".format(overlap_s, watch.lives))
        if downtime_s > self.bound_s:
            problems.append("{:.1f} s without a scheduler, allowed are {:.1f}: {}".format(
                downtime_s, self.bound_s, watch.lives))
        if self.bound_s and fault.lives == 1:
            again_s = self.new_lives()[0].began - self.counted_from
            if again_s > self.bound_s:
                problems.append("a scheduler ran again after {:.1f} s, allowed are {:.1f}: {}"
                                .format(again_s, self.bound_s, watch.lives))
        if roles not in fault.roles:
            problems.append("the active role changed hands {} times, not {}".format(
                roles, " or ".join(map(str, fault.roles))))
        if fault.lives is not None and len(self.new_lives()) != fault.lives:
            problems.append("{} schedulers began, not {}: {}".format(
                len(self.new_lives()), fault.lives, watch.lives))
        if fault.lives == 0 and self.scheduler.ended:
            problems.append("the scheduler was ended needlessly: {}".format(watch.lives))
        for name, one in sorted(self.controllers.items()):
            if not one.alive():
                problems.append("the controller on {} has ended: {}".format(name, one.output()))
            elif name not in self.lost and one is not self._kept.get(name):
                problems.append("the controller on {} is another process".format(name))
        for name, one in self._ever:
            if "Traceback" in one.output()[self._said.get(id(one), 0):]:
                problems.append("the controller on {} tells of an error of its own".format(name))
        return problems

    # -- what faults are made of

    def let_pass(self, seconds):
        """Time passes; nothing is waited for."""
        if seconds > 0:
            time.sleep(seconds)

    def start_controller(self, name, environment=None):
        controller = super().start_controller(name, environment)
        self._ever.append((name, controller))
        return controller

    def start_controllers(self):
        """Start those that don't run, at the same time."""
        for name in self.cluster.hosts:
            if name not in self.controllers or not self.controllers[name].alive():
                self.start_controller(name)

    def stop_controllers(self, *names):
        """Ask them to end, and wait for it."""
        self.lost.update(names)
        for name in names:
            self.controllers[name].send(signal.SIGTERM)
        for name in names:
            status = self.controllers[name].wait(30)
            if status:
                raise AssertionError("the controller on {} ended with status {}".format(
                    name, status))

    def make_active(self, wanted):
        """Have the wanted controller take the lease over."""
        active = self.cluster_record().holder
        others = [name for name in self.cluster.hosts if name not in (wanted, active)]
        self.stop_controllers(*others)
        self.stop_controllers(active)
        self.wait_for_active((wanted,), 20)
        self.start_controllers()
        self.wait_for_calm()

    def kill_controllers(self, *names):
        self.lost.update(names)
        for name in names:
            self.controllers[name].send(signal.SIGKILL)
        for name in names:
            self.controllers[name].kill()

    def kill_scheduler(self):
        os.kill(self.scheduler.pid, signal.SIGKILL)
        wait_until(lambda: self.scheduler.ended, 5, "the death of the scheduler")

    def on_mend(self, function):
        self._undo.append(function)

    def sql(self, text):
        self.server.sql(text, self.url.rpartition("/")[2])

    def freeze(self, pids):
        """SIGSTOP, until the fault is mended."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):   # it had served its connection
                os.kill(pid, signal.SIGSTOP)
                self.on_mend(functools.partial(let_go, pid))

    def freeze_controllers(self, *names):
        for name in names:
            self.controllers[name].freeze()
            self.on_mend(self.controllers[name].thaw)

    def power_off(self, *names):
        self.lost.update(names)
        for name in names:
            self.cluster[name].power_off()

    def kill_sshd(self, *names):
        for name in names:
            for pid in self.cluster[name].sshd():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.on_mend(self.cluster[name].start_sshd)

    def cut(self, name, targets, how, way):
        """Cut a host's links to the database, its peers or both; `way` is both, out or in."""
        others = list(self.DATABASE) if targets in ("database", "both") else []
        if targets in ("peers", "both"):
            others += [other for other in self.cluster.hosts if other != name]
        for other in others:
            first, second = (other, name) if way == "in" else (name, other)
            self.cluster.cut(first, second, how, one_way=way != "both")

    def break_database(self, how, for_s, meanwhile=lambda: None):
        """Take the metadata away for a time. The time without a scheduler counts from its return;
        nothing at all may happen when it was short."""
        call = self.cluster.servers.call
        do, undo = self.ways_to_break()[how]
        began = clock()
        self.on_mend(functools.partial(call, undo))
        call(do)
        meanwhile()
        self.let_pass(began + for_s - clock())
        self._undo.pop()()
        if clock() - began < SHORT_OUTAGE_S:
            self.bound_s = 0.0
        else:
            self.counted_from = clock()

    def ways_to_break(self):
        server = self.server
        return {"stop": (server.stop, server.start), "kill": (server.kill, server.start),
                "freeze": (server.freeze, server.thaw),
                "read-only": (functools.partial(server.set_read_only, True),
                              functools.partial(server.set_read_only, False))}

    def backup(self):
        self.sql("CREATE TABLE backup AS SELECT * FROM asfc_metadata")

    def restore(self):
        self.sql("BEGIN; DELETE FROM asfc_metadata; INSERT INTO asfc_metadata "
                 "SELECT * FROM backup; COMMIT; DROP TABLE backup")

    def start_by_hand(self, name):
        return self.cluster[name].start_process(["airflow", "scheduler"])

    def upgrade(self, name, version, kill=False):
        """Another version of asfc.py on a host, and a restart of its controller."""
        host = self.cluster[name]
        text = host.read("asfc.py")
        host.write("asfc.py", re.sub(r'(?m)^__version__ = .*', '__version__ = "{}"'.format(version),
                                     text))
        if kill:
            self.kill_controllers(name)
        else:
            self.stop_controllers(name)
            if name == self.active:   # else it might be the first to take what it has given up
                self.wait_for_active([host for host in self.controllers if host != name], 15)
        self.start_controller(name)
        self.wait_for_words(name, "asfc {} starts on {}".format(version, name), 15)


class ZookeeperFaultBench(FaultBench):
    """The same with an ensemble of ZooKeeper in the database's place, each server in a network of
    its own. The job table is in a file of SQLite that all hosts see."""
    OWN_SETTINGS = FaultBench.OWN_SETTINGS + ("one_server",)
    DATABASE = ("zk1", "zk2", "zk3")
    AT_ONCE = 1          # with three JVMs each

    def serve(self):
        addresses = ["10.99.{}.2".format(number) for number in (201, 202, 203)]
        networks = [self.cluster.network_at(name, address)
                    for name, address in zip(self.DATABASE, addresses)]
        server = ZooKeeperEnsemble(networks, addresses)
        self.cluster.on_close(server.remove)
        return server.start()

    def configure(self, host, url=None, **settings):
        self.follower = None
        if (self.wanted or {}).get("one_server"):
            self.follower = self.server.follower()
            url = "zookeeper://{}/{}".format(self.follower.name(), self.url.rpartition("/")[2])
        super().configure(host, url, **settings)

    def boot(self, settings):
        self.wanted = settings
        super().boot(settings)

    def sql(self, text):
        with contextlib.closing(sqlite3.connect(
                os.path.join(self.cluster.shared, "airflow.db"), isolation_level=None)) as base:
            base.create_function("NOW", 1, lambda digits: repr(time.time()))
            base.executescript(text)

    def by_hand(self, do):
        """Call a function with the znodes of a server, and the paths of asfc's."""
        def work(server):
            with server.client() as znodes:
                path = "/{}/asfc".format(self.url.rpartition("/")[2])
                do(znodes, [path] + [path + "/" + name for name in znodes.children(path)])
        server = self.server.leader()
        self.server.call(server, work, server)

    def set_read_only(self, on):
        """As far as asfc is concerned: everybody may read, and change what may be done."""
        self.by_hand(lambda znodes, paths: [znodes.permit(path, 17 if on else 31)
                                            for path in paths])

    def ways_to_break(self):
        server = self.server

        def start():
            server.start()
        return {"stop": (server.stop, start), "kill": (server.kill, start),
                "freeze": (server.freeze, server.thaw),
                "read-only": (functools.partial(self.set_read_only, True),
                              functools.partial(self.set_read_only, False))}

    def backup(self):
        for server in self.server.servers:
            server.backup()

    def restore(self):
        """The data is replaced while all servers are down, which may take too long for some."""
        began = clock()
        self.server.kill()
        for server in self.server.servers:
            server.bring_back()
        self.server.start()
        if clock() - began >= SHORT_OUTAGE_S:
            # Whoever does not hold the lease by the old record waits for h first.
            self.bound_s, self.counted_from = HEARTBEAT_TIMEOUT_S + DEAD_S, clock()

    # -- what happens to one of the servers

    def lose_leader(self, how):
        leader = self.server.leader()
        if how == "killed":
            leader.kill()
            self.on_mend(lambda: self.server.start(leader))
        elif how == "frozen":
            leader.freeze()
            self.on_mend(leader.thaw)
        else:
            name = self.DATABASE[leader.number - 1]
            for other in list(self.cluster.addresses):
                if other != name:
                    self.cluster.cut(name, other)

    def longest_without_heartbeat_s(self):
        """Of the active controller, since the fault began, by its log."""
        text = self.controllers[self.active].output()[self._said[id(
            self.controllers[self.active])]:]
        beats = [time.mktime(time.strptime(day, "%Y-%m-%d %H:%M:%S")) + int(ms) / 1000
                 for day, ms in re.findall(r"(?m)^(\S+ \S+),(\d+) .* heartbeat confirmed", text)]
        return max(after - before for before, after in zip(beats, beats[1:]))


def let_go(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


# Cheap while nothing is to be held.
HELD_SSH = """\
#!/bin/sh
[ -e ~/hold ] || exec ssh "$@"
exec ~/bin/slow-ssh "$@"
"""


# -- faults that take several steps


def an_old_start_arrives(bench):
    """The active controller is frozen between its last check and its send, and let go, and what it
    sends arrives, when another one has started the scheduler elsewhere."""
    host, node = bench.cluster[bench.active], bench.cluster[bench.node]
    host.write("hold", bench.node)
    node.write("scheduler_is_broken", "")
    bench.kill_scheduler()
    late = wait_until(lambda: host.read("held"), 20, "a start on its way")
    frozen = bench.controllers[bench.active]
    frozen.freeze()
    bench.wait_for_active([name for name in bench.cluster.hosts if name != bench.active],
                          TAKEOVER_S + 5)
    wait_for_another_node(bench, 60)
    node.remove("scheduler_is_broken")
    if bench.settings.get("without_protections"):
        bench.freeze_controllers(bench.node)   # it would soon stop what it must not have
    frozen.thaw()
    host.write("release", "")
    answer = wait_until(lambda: host.read("answer"), 20, "the answer to the old start")
    bench.let_pass(2 * POLL_S)
    refused = re.search(r"has heard of the newer|promise", answer)
    if bool(refused) == bool(bench.settings.get("without_protections")):
        raise AssertionError("the start {} on {} was answered: {}".format(late, bench.node, answer))


def all_begin_at_once(bench):
    """On new hosts, with new metadata."""
    bench.boot(bench.settings)
    bench.lost, bench.bound_s = set(bench.cluster.hosts), bench.fault.bound_s


def all_begin_again_at_once(bench):
    bench.kill_controllers(*bench.cluster.hosts)
    bench.start_controllers()


def second_scheduler(role):
    """One that is started by hand ends; the first one stays."""
    def do(bench):
        second = bench.start_by_hand(getattr(bench, role))
        wait_until(lambda: not second.alive(), 15, "the end of the second scheduler")
        if bench.scheduler.ended:
            raise AssertionError("the first one was ended: {}".format(bench.cluster.watch.lives))
    return do


def two_without_controllers(bench):
    """Nobody is there to stop the second one: the harness has to see both."""
    bench.stop_controllers(*bench.cluster.hosts)
    second = bench.start_by_hand(bench.third)
    wait_until(lambda: len(bench.cluster.watch.alive()) == 2, 10, "two schedulers")
    bench.let_pass(1)
    second.kill()


def hang(bench):
    """A scheduler that stands still for good: its heartbeat in the job table shows that."""
    bench.let_pass(bench.scheduler.began + 2 * JOB_THRESHOLD_S - clock())  # it is no new one
    bench.freeze([bench.scheduler.pid])
    bench.hung, bench.hung_at = bench.scheduler, clock()
    bench.counted_from = bench.hung_at


def cut_off_with_a_dead_controller(bench):
    """Two faults: nobody could end the scheduler there, but the job table tells that it lives."""
    bench.kill_controllers(bench.node)
    bench.cut(bench.node, "peers", "silent", "both")


def crash_at_start(bench):
    bench.cluster[bench.node].write("scheduler_is_broken", "")
    bench.kill_scheduler()
    wait_for_another_node(bench, 2 * DEAD_S + 15)


def crash_again_and_again(bench):
    bench.cluster[bench.node].write("scheduler_crashes_after", "4")
    bench.kill_scheduler()
    wait_for_another_node(bench, 4 * (bench.bound_s + 4))


def wait_for_another_node(bench, timeout_s):
    """Wait until the scheduler has lived for a while where its start is not broken."""
    def elsewhere():
        alive = bench.cluster.watch.alive()
        return alive and alive[0].host != bench.node and clock() - alive[0].began > 2
    wait_until(elsewhere, timeout_s, lambda: "a scheduler elsewhere: {}".format(
        bench.cluster.watch.lives))


def clock_an_hour_off(role):
    """First its controller gets a clock that the test can set; then that is an hour ahead, then an
    hour behind. Its clocks that nobody sets go on. At last it is as it was: a scheduler that it
    starts would have that clock too, and now and then dies of it (EINVAL from a sleep)."""
    def do(bench):
        name = getattr(bench, role)
        host = bench.cluster[name]

        def restart(environment=None):
            bench.kill_controllers(name)
            bench.start_controller(name, environment)
            bench.wait_for_calm()
        host.write("clock", "+0")
        restart({
            "LD_PRELOAD": FAKETIME, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1",
            "FAKETIME_TIMESTAMP_FILE": host.HOME + "/clock"})
        for offset in ("+3600", "-3600"):
            host.write("clock", offset)
            bench.let_pass(HEARTBEAT_TIMEOUT_S)
        shown = bench.controllers[name].output().splitlines()[-1][:19]
        off_s = time.mktime(time.strptime(shown, "%Y-%m-%d %H:%M:%S")) - time.time()
        if abs(off_s + 3600) > 60:
            raise AssertionError("its log's clock is {:.0f} s off, not an hour".format(off_s))
        restart()
    return do


def lose_leader(how):
    """The lease is renewed within the acting window, and no node is taken for silent."""
    def do(bench):
        bench.lose_leader(how)
        bench.let_pass(LONG_S)
        longest_s = bench.longest_without_heartbeat_s()
        print("the leader {}: heartbeats at most {:.1f} s apart".format(how, longest_s),
              file=sys.stderr)
        if longest_s > HEARTBEAT_TIMEOUT_S * 2 / 3:
            raise AssertionError("{:.1f} s without a heartbeat".format(longest_s))
        nobody_was_silent(bench)
    return do


def nobody_was_silent(bench):
    for name, one in bench.controllers.items():
        if re.search("is silent|fencing this node", one.output()[bench._said[id(one)]:]):
            raise AssertionError("the controller on {} took a node for silent".format(name))


def active_controller_dies_beside_two_servers(bench):
    """The ensemble has lost its leader before, and found another one; where two servers took long
    for that, the metadata was away and its return counts."""
    began = clock()
    bench.lose_leader("killed")
    bench.server.wait_for_all()
    if clock() - began < SHORT_OUTAGE_S:
        bench.bound_s = 0.0
    else:
        bench.counted_from = clock()
    bench.let_pass(HEARTBEAT_TIMEOUT_S)
    bench.wait_for_calm()
    began = clock()
    bench.kill_controllers(bench.active)
    _, when = bench.wait_for_active([name for name in bench.cluster.hosts if name != bench.active],
                                    TAKEOVER_S + 5)
    if when - began > TAKEOVER_S:
        raise AssertionError("a takeover after {:.1f} s, allowed are {:.1f}".format(
            when - began, TAKEOVER_S))


def follower_lags(bench):
    """All controllers have it as their only server."""
    for frozen_s in (0.7, 1.5, 0.7, 3.0, 0.7, 1.5):
        bench.follower.freeze()
        bench.let_pass(frozen_s)
        bench.follower.thaw()
        bench.server.wait_for_all()
        bench.let_pass(2 * INTERVAL_S)
    nobody_was_silent(bench)


def upgrade_one_by_one(bench):
    """Those on standby first, and the active one last: so the role changes hands once."""
    for name in sorted(bench.cluster.hosts, key=lambda name: name == bench.active):
        bench.upgrade(name, "2.9.0")
        bench.wait_for_calm()


def upgrade_while_a_node_is_off(bench):
    bench.power_off(bench.node)
    bench.upgrade(bench.third, "2.9.1")
    bench.wait_for_words(bench.third, "standby: {} is active".format(bench.active), 10)
    bench.upgrade(bench.active, "2.9.1")
    bench.counted_from = clock()   # the new active controller waits for the silence from now on

def restart_while_the_database_is_down(bench):
    def restart():
        for name in bench.cluster.hosts:
            bench.upgrade(name, "2.9.2", kill=True)
    bench.break_database("stop", 14, restart)


def restart_on_a_node_that_is_cut_off(from_s, to_s):
    """Its controller dies and comes back, and goes on with the deadline that it finds."""
    def do(bench):
        bench.cut(bench.node, "both", "silent", "both")
        bench.let_pass(from_s)
        bench.kill_controllers(bench.node)
        bench.let_pass(to_s - from_s)
        bench.start_controllers()
    return do


def clear_metadata(bench):
    done = bench.cluster[bench.third].run([HOST_PYTHON, "asfc.py", "clear_metadata", "--force"])
    if done.returncode or "The metadata is cleared." not in done.stdout:
        raise AssertionError("clear_metadata: {}{}".format(done.stdout, done.stderr))


def metadata_from_before_a_move(bench):
    bench.backup()
    move(bench)
    bench.look_around()
    bench.restore()


def metadata_from_before_a_takeover_and_a_move(bench):
    """The record then names an instance that is dead, whose host may take its own lease back."""
    bench.backup()
    bench.kill_controllers(bench.active)
    bench.wait_for("another active controller", lambda: (
        bench.cluster_record().holder != bench.active), TAKEOVER_S + 5)
    bench.start_controllers()
    bench.wait_for_calm()
    move(bench)
    bench.look_around()
    bench.restore()


def move(bench):
    """Have the scheduler run on another node."""
    crash_at_start(bench)
    bench.wait_for_calm()
    bench.cluster[bench.node].remove("scheduler_is_broken")


def fence_by_command(bench):
    """A node that promises nothing is cut off, with its scheduler: only the command can end it."""
    for host in bench.cluster:
        host.write("bin/fence", FENCE_COMMAND, 0o755)
    stop = threading.Event()
    fencer = threading.Thread(target=serve_fence_command, args=(bench, stop), daemon=True)
    fencer.start()
    bench.on_mend(fencer.join)
    bench.on_mend(stop.set)
    bench.cut(bench.node, "both", "silent", "both")


# It asks for the power of a node to be switched off, and waits until that is done.
FENCE_COMMAND = """\
#!/bin/sh
echo "$ASFC_NODE" > "/mnt/fence-$ASFC_NODE"
while [ ! -e "/mnt/fenced-$ASFC_NODE" ]; do sleep 0.1; done
"""


def serve_fence_command(bench, stop):
    """Stands for the power switches: what the hosts ask for through /mnt is done."""
    while not stop.wait(0.05):
        for name in bench.cluster.hosts:
            done = os.path.join(bench.cluster.shared, "fenced-" + name)
            if os.path.exists(os.path.join(bench.cluster.shared, "fence-" + name)) \
                    and not os.path.exists(done):
                bench.power_off(name)
                write_file(done, "")


def confirm_dead(bench):
    """Without a promise nothing is started elsewhere, until a person vouches for the node."""
    bench.power_off(bench.node)
    bench.let_pass(LONG_S)
    if bench.new_lives():
        raise AssertionError("a scheduler was started without a proof")
    done = bench.cluster[bench.third].run(
        [HOST_PYTHON, "asfc.py", "confirm_dead", bench.node, "--yes"])
    if done.returncode:
        raise AssertionError("confirm_dead: {}{}".format(done.stdout, done.stderr))
    bench.counted_from = clock()


# -- the table

FAKETIME = "".join(glob.glob("/usr/lib/*/faketime/libfaketime.so.1"))
DEFAULT_TIMES = {"poll_frequency": None, "heartbeat_timeout": None}
# Airflow's threshold for WITH_JOB_TABLE, and how often the stand-ins write a heartbeat there.
JOB_THRESHOLD_S, JOB_HEARTBEAT_S = 6, 0.5
WITH_JOB_TABLE = {"job_table": True, "sections":
                  "[scheduler]\nscheduler_health_check_threshold = {}\n".format(JOB_THRESHOLD_S)}
STOP_S = 2 * int(SETTINGS["scheduler_stop_wait_time"]) + 1
HUNG_S = JOB_THRESHOLD_S + JOB_HEARTBEAT_S + POLL_S + QUERY_S + STOP_S + START_S
# max(h, W) + i + 2c + 3 c_m + s
DEFAULT_LOST_NODE_S = 55 + START_S


def frozen_controller(role):
    return lambda bench: bench.freeze_controllers(getattr(bench, role))


def process_faults():
    for role, who in (("active", "the active controller"), ("third", "a controller on standby"),
                      ("node", "the controller of the scheduler's node")):
        yield Fault("SIGKILL of {}".format(who),
                    lambda bench, role=role: bench.kill_controllers(getattr(bench, role)),
                    roles=int(role == "active"), together=False,
                    for_s={"active": 0, "third": HEARTBEAT_TIMEOUT_S, "node": LONG_S}[role])
        yield Fault("SIGSTOP of {} for 3 s".format(who), frozen_controller(role), for_s=3,
                    together=False)
        yield Fault("SIGSTOP of {} until a silence would be over".format(who),
                    frozen_controller(role), roles=int(role == "active"), together=False,
                    for_s=HEARTBEAT_TIMEOUT_S if role == "third" else LONG_S)
    yield Fault("SIGSTOP of the active controller, the scheduler's node's own",
                frozen_controller("active"), roles=1, together=True, for_s=LONG_S)
    yield Fault("SIGSTOP of all controllers until a silence would be over", lambda bench: (
        bench.freeze_controllers(*bench.cluster.hosts)), roles=(0, 1), for_s=LONG_S)
    yield Fault("SIGKILL of the scheduler", FaultBench.kill_scheduler, DEAD_S)
    yield Fault("SIGSTOP of the scheduler for 3 s",
                lambda bench: bench.freeze([bench.scheduler.pid]), for_s=3)
    yield Fault("SIGSTOP of the scheduler for 15 s",
                lambda bench: bench.freeze([bench.scheduler.pid]), for_s=15)
    yield Fault("SIGSTOP of the sshd of the scheduler's node", lambda bench: (
        bench.freeze(bench.cluster[bench.node].sshd())), together=False, for_s=LONG_S)
    yield Fault("SIGSTOP of all sshds", lambda bench: [
        bench.freeze(host.sshd()) for host in bench.cluster], for_s=LONG_S)
    yield Fault("SIGKILL of the sshd of the scheduler's node",
                lambda bench: bench.kill_sshd(bench.node), together=False,
                for_s=HEARTBEAT_TIMEOUT_S)
    yield Fault("SIGKILL of all sshds", lambda bench: bench.kill_sshd(*bench.cluster.hosts),
                for_s=HEARTBEAT_TIMEOUT_S)
    yield Fault("the active controller is frozen between its last check and its send",
                an_old_start_arrives, LOST_IN_RESTART_S + DEAD_S, roles=1, lives=None,
                together=False)


def power_faults():
    yield Fault("power-off of a node on standby",
                lambda bench: bench.power_off(bench.third), for_s=HEARTBEAT_TIMEOUT_S)
    yield Fault("power-off of the active controller's node", lambda bench: (
        bench.power_off(bench.active)), roles=1, together=False, for_s=LONG_S)
    yield Fault("power-off of the scheduler's node",
                lambda bench: bench.power_off(bench.node), LOST_NODE_S, together=False)
    yield Fault("power-off of the scheduler's node, back after 4 s",
                lambda bench: bench.power_off(bench.node), LOST_NODE_S, together=False, for_s=4,
                mend_first=True)
    yield Fault("power-off of the scheduler's node and the active controller's",
                lambda bench: bench.power_off(bench.node), LOST_NODE_S, roles=1, together=True)
    yield Fault("the same with the default times", lambda bench: bench.power_off(bench.node),
                DEFAULT_LOST_NODE_S, roles=1, together=True, **DEFAULT_TIMES)


def link_faults(every=False):
    """Which host is cut off from what, in which way. The scheduler is replaced where its node has
    no metadata; the active role where its controller has none."""
    for who, together in (("the scheduler's node", False), ("the active controller's node", False),
                          ("the scheduler's node, the active one", True)):
        for targets, how, way in itertools.product(
                ("database", "peers", "both"), ("silent", "icmp"), ("both", "out", "in")):
            if not every and not is_cut_of_the_full_tier(together, targets, how, way):
                continue
            role = "active" if who.startswith("the active") else "node"
            lost = targets != "peers"
            moves, changes = lost and role == "node", lost and (role == "active" or together)
            yield Fault(
                "cut of {} from {}, {}, {}".format(
                    who, {"database": "the database", "peers": "its peers", "both": "all"}[targets],
                    {"both": "both ways", "out": "out", "in": "in"}[way], how),
                lambda bench, role=role, targets=targets, how=how, way=way: bench.cut(
                    getattr(bench, role), targets, how, way),
                LOST_NODE_S if moves else 0.0, roles=int(changes), together=together,
                for_s=0.0 if moves or changes else LONG_S)


def restarts_of_cut_off_controllers():
    deadline_s = HEARTBEAT_TIMEOUT_S * 2 / 3
    for words, from_s, to_s in (("before its deadline", deadline_s / 3, deadline_s / 3),
                                ("over its deadline", deadline_s * 2 / 3, deadline_s + 2)):
        yield Fault("cut of the scheduler's node from all, its controller restarted " + words,
                    restart_on_a_node_that_is_cut_off(from_s, to_s), LOST_NODE_S, together=False)


def is_cut_of_the_full_tier(together, targets, how, way):
    if together:
        return (how, way) == ("silent", "both")
    return way == "both" or (targets, how) == ("both", "silent") \
        or (targets, how, way) == ("database", "icmp", "in")


def metadata_faults():
    away = {"roles": 0, "lives": 1, "mend_first": True}
    for words, how in (("is stopped", "stop"), ("stands still", "freeze"),
                       ("is read-only", "read-only")):
        roles = (0, 1) if how == "read-only" else 0
        yield Fault("the database {} for 20 s".format(words), lambda bench, how=how: (
            bench.break_database(how, 20)), DEAD_S, **dict(away, roles=roles))
    for words, how in (("stands still", "freeze"), ("is read-only", "read-only")):
        yield Fault("the database {} for 2 s".format(words), lambda bench, how=how: (
            bench.break_database(how, 2)), for_s=INTERVAL_S * 4)
    yield Fault("the database is restarted", lambda bench: bench.break_database("stop", 0),
                DEAD_S, lives=None, for_s=INTERVAL_S * 4)
    yield Fault("the database crashes and is restarted",
                lambda bench: bench.break_database("kill", 0), DEAD_S, lives=None,
                for_s=INTERVAL_S * 4)
    yield Fault("controllers restarted one by one while the database is stopped",
                restart_while_the_database_is_down, DEAD_S, roles=(0, 1), lives=1, mend_first=True)
    yield Fault("the metadata is cleared by the verb", clear_metadata, roles=(0, 1),
                for_s=HEARTBEAT_TIMEOUT_S + 2 * INTERVAL_S)
    yield Fault("the metadata is restored from before a move", metadata_from_before_a_move,
                for_s=HEARTBEAT_TIMEOUT_S)
    yield Fault("the metadata is restored from before a takeover and a move",
                metadata_from_before_a_takeover_and_a_move, roles=(0, 1),
                for_s=HEARTBEAT_TIMEOUT_S + 2 * INTERVAL_S)


def other_faults():
    for role, who in (("active", "the active controller's host"), ("node", "the scheduler's node")):
        yield Fault("the wall clock of {} is an hour off".format(who), clock_an_hour_off(role),
                    together=False)
    yield Fault("all controllers begin at once on new hosts", all_begin_at_once, DEAD_S, roles=0)
    yield Fault("all controllers are killed and begin again at once", all_begin_again_at_once,
                roles=(0, 1), for_s=HEARTBEAT_TIMEOUT_S)
    yield Fault("a second scheduler is started by hand on the same host", second_scheduler("node"),
                lives=None, overlap_s=SECOND_BY_HAND_S)
    yield Fault("a second scheduler is started by hand on another host", second_scheduler("third"),
                lives=None, overlap_s=SECOND_BY_HAND_S)
    yield Fault("a scheduler that crashes at start on its node", crash_at_start, 2 * DEAD_S,
                lives=None)
    yield Fault("a scheduler that crashes again and again, 4 s after its start",
                crash_again_and_again, DEAD_S, lives=None, scheduler_restart_budget="3")
    yield Fault("the scheduler hangs, as the job table shows", hang, HUNG_S, **WITH_JOB_TABLE)
    yield Fault("controller killed and its node cut from its peers, the job table moves",
                cut_off_with_a_dead_controller, for_s=LONG_S, together=False, **WITH_JOB_TABLE)
    yield Fault("controllers are upgraded one by one", upgrade_one_by_one, roles=1)
    yield Fault("controllers are upgraded one by one while the scheduler's node is off",
                upgrade_while_a_node_is_off, LOST_NODE_S, roles=1, together=False)
    yield Fault("a node without a promise is cut off and ended by fence_command", fence_by_command,
                LOST_NODE_S, together=False, on_metadata_loss="keep",
                fence_command="~/bin/fence")
    yield Fault("a node without a promise is powered off and confirmed dead", confirm_dead, DEAD_S,
                together=False, on_metadata_loss="keep")


def control_faults():
    yield Fault("control: two schedulers on purpose, no controllers", two_without_controllers,
                roles=(0, 1), lives=1, control=True)
    yield Fault("control: an old start arrives, gate and deadline test off", an_old_start_arrives,
                LOST_IN_RESTART_S + DEAD_S, roles=(0, 1, 2), lives=None, together=False,
                control=True, without_protections=True)


def ensemble_faults(every):
    for how in ("killed", "frozen", "cut off"):
        yield Fault("the leader of the ensemble is {}".format(how), lose_leader(how))
    if every:   # the election among two takes ZooKeeper longer than a heartbeat may, at times
        yield Fault("the active controller is killed, the ensemble's leader before",
                    active_controller_dies_beside_two_servers, DEAD_S, roles=1, lives=None,
                    together=False)
    yield Fault("a follower lags that is the only server of all", follower_lags, one_server=True)


def zookeeper_faults(every=False):
    """The table with an ensemble of ZooKeeper: all of it, or what the full tier does."""
    chosen = ("SIGKILL of the active controller", "power-off of the scheduler's node and the "
              "active controller's", "the metadata is restored from before a move")
    table = [fault for fault in all_faults(every) if every or fault.name in chosen]
    for fault in table + list(ensemble_faults(every)):
        fault.name, fault.bench = "ZooKeeper: " + fault.name, ZookeeperFaultBench
        if "restored" in fault.name:   # the servers are away meanwhile
            fault.lives, fault.roles = None, (0, 1)
        yield fault


def all_faults(every_cut=False):
    """The table. Those that take longest come first: so the clusters are done at the same time."""
    faults = list(itertools.chain(
        process_faults(), power_faults(), link_faults(every_cut), restarts_of_cut_off_controllers(),
        metadata_faults(), other_faults(), control_faults()))
    return sorted(faults, key=lambda fault: (
        not fault.settings, str(fault.settings), fault.together is None, bool(fault.together)))


class FaultRun:
    """Faults done on several clusters side by side."""

    def __init__(self, faults, told=None, bench=FaultBench, clusters=4):
        self._waiting = collections.deque(faults)
        self._bench = bench
        self._outcomes = {fault.name: None for fault in faults}
        self._done = threading.Condition()
        self._told = told or (lambda outcome: None)
        self._kinds = collections.Counter()   # of the benches that are there
        self._threads = [threading.Thread(target=self._work, daemon=True)
                         for _ in range(min(clusters, len(faults)))]
        for thread in self._threads:
            thread.start()

    def _work(self):
        bench, kind = None, None
        while True:
            before, (kind, fault) = kind, self._next(kind)
            if not fault:
                break
            try:
                if bench and kind is not before:
                    bench.close()
                    bench = None
                bench = bench or kind()
                outcome = bench.run(fault)
            except BaseException:
                outcome = Outcome(fault, problems=[traceback.format_exc()])
            with self._done:
                self._outcomes[fault.name] = outcome
                self._told(outcome)
                self._done.notify_all()
        if bench:
            bench.close()

    def _next(self, kind):
        """The next fault for one that has a bench of this kind, with the kind that it needs; None
        when all that wait for benches of which there are enough."""
        with self._done:
            self._kinds[kind] -= 1
            for fault in self._waiting:
                wanted = fault.bench or self._bench
                if self._kinds[wanted] < wanted.AT_ONCE:
                    self._waiting.remove(fault)
                    self._kinds[wanted] += 1
                    return wanted, fault
        return None, None

    def outcome(self, name):
        """Wait for what became of a fault."""
        with self._done:
            self._done.wait_for(lambda: self._outcomes[name])
            return self._outcomes[name]

    def end(self):
        """Let the faults that are being done come to their end, and do no more."""
        self._waiting.clear()
        for thread in self._threads:
            thread.join()

    def table(self):
        return "\n".join([Outcome.HEADER] + [str(outcome) for outcome in self._outcomes.values()
                                             if outcome])


class FaultTests(unittest.TestCase):
    """One test for each row of a table. The faults of the tests that were asked for are done on
    clusters of three hosts side by side; each test waits for its own."""
    BENCH, CLUSTERS = FaultBench, 4

    def __init_subclass__(cls):
        cls.chosen, cls.faults = [], collections.OrderedDict()

    def __init__(self, name):
        super().__init__(name)
        self.chosen.append(name)

    @classmethod
    def add(cls, faults):
        """Make a test of each row."""
        for fault in faults:
            name = "test_" + re.sub(r"\W+", "_", fault.name)
            cls.faults[name] = fault
            setattr(cls, name, lambda self, fault=fault: self.assert_holds(fault))

    @classmethod
    def setUpClass(cls):
        require("root", os.geteuid() == 0)
        require("a {}".format(cls.BENCH.SERVER.__name__), cls.BENCH.SERVER.present())
        chosen = [fault for name, fault in cls.faults.items() if name in cls.chosen]
        cls.running = FaultRun(chosen, bench=cls.BENCH, clusters=cls.CLUSTERS)

    @classmethod
    def tearDownClass(cls):
        cls.running.end()
        print("\n" + cls.running.table(), file=sys.stderr)

    def assert_holds(self, fault):
        outcome = self.running.outcome(fault.name)
        if outcome.problems:
            self.fail("{}: {}\n{}".format(fault.name, "; ".join(outcome.problems), outcome.story))


class FaultsOnRealHosts(FaultTests):
    """The table, on stand-ins for the scheduler."""

    @classmethod
    def setUpClass(cls):
        require("libfaketime", FAKETIME)
        require("a ZooKeeper", ZooKeeperServer.present())
        super().setUpClass()


FaultsOnRealHosts.add(list(zookeeper_faults()) + all_faults())


def soak_faults(table=all_faults, rounds=5):
    """`soak hosts`: the whole table, with every kind of cut, so many times."""
    end_in_order_on_sigterm()
    failed = 0
    for number in range(1, rounds + 1):
        print("round {}\n{}".format(number, Outcome.HEADER), flush=True)
        def tell(outcome):
            print(outcome, *outcome.problems, sep="\n    ", flush=True)
            if outcome.problems:
                print(textwrap.indent(outcome.story, "    "), flush=True)
        faults = list(table(True))
        running = FaultRun(faults, tell)
        failed += sum(1 for fault in faults if running.outcome(fault.name).problems)
        running.end()
    print("{} faults failed".format(failed))
    return 1 if failed else 0


class NoNeedlessFailover(ClusterTest):
    """The default times, load on all cores, an ssh that takes 2 s, a database that takes 1 s."""
    FOR_S = 60
    POLL_S, INTERVAL_S = 10, 3
    SLOW = '#!/bin/sh\n[ "$1" = --version ] || sleep {}\nexec {} "$@"\n'

    def test_nothing_is_taken_over_or_restarted_and_no_heartbeat_or_poll_is_left_out(self):
        for host in self.cluster:
            host.write("bin/ssh-of-2-s", self.SLOW.format(2, find_program("ssh")), 0o755)
            for client in ("mysql", "mariadb"):
                host.write("bin/" + client, self.SLOW.format(1, find_program(client)), 0o755)
        scheduler = self.start_cluster(poll_frequency=None, heartbeat_timeout=None,
                                       ssh_command="ssh-of-2-s")
        for _ in range(os.cpu_count()):
            self.cluster["c"].start_process(["sh", "-c", "while :; do :; done"])
        before = self.cluster_record(), self.records()["cluster"].version, clock()
        said = {name: len(one.output()) for name, one in self.controllers.items()}
        until = clock() + self.FOR_S
        wait_until(lambda: time.sleep(0.5) or clock() > until, self.FOR_S + 60, "the time is over")
        record, version, for_s = self.cluster_record(), self.records()["cluster"].version, \
            clock() - before[2]
        self.assertEqual((record.pair, record.instance), (before[0].pair, before[0].instance))
        self.assert_one_scheduler_since(scheduler)
        self.assertTrue(all(one.alive() for one in self.controllers.values()))
        self.assert_about(version - before[1], for_s / self.INTERVAL_S, "heartbeats")
        polls = self.controllers["a"].output()[said["a"]:].count("asked all nodes")
        self.assert_about(polls, for_s / self.POLL_S, "polls")
        for name, one in self.controllers.items():
            self.assertNotIn(" WARNING ", one.output()[said[name]:])

    def assert_about(self, number, expected, what):
        """As many as there should be, but for one at each end and one in a hundred."""
        self.assertLess(abs(number - expected), 1.5 + expected / 100,
                        "{} {}, not {:.1f}".format(number, what, expected))


def soak_quiet():
    """`soak quiet`: half an hour without a needless failover."""
    end_in_order_on_sigterm()
    NoNeedlessFailover.FOR_S = 1800
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(NoNeedlessFailover)
    return 0 if unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful() else 1


###############################################################################
# Real Airflow ################################################################
###############################################################################
#
# Real schedulers of Airflow 1.10, 2 or 3 on the hosts, with LocalExecutor and a metastore on a real
# server. `tox -e airflow110`, `airflow2` and `airflow3` install Airflow and name its programs in
# ASFC_AIRFLOW; elsewhere nothing of this is run. Each task writes a journal of its own life, so
# what Airflow did is known without asking Airflow.

AIRFLOW_BIN = os.environ.get("ASFC_AIRFLOW", "")


def airflow_version():
    """The release of the Airflow whose programs ASFC_AIRFLOW names, as numbers."""
    pattern = os.path.join(os.path.dirname(AIRFLOW_BIN),
                           "lib/python3*/site-packages/apache_airflow-*.dist-info")
    found = [re.search(r"apache_airflow-([0-9.]+)\.dist", path) for path in glob.glob(pattern)]
    require("Airflow in ASFC_AIRFLOW", found)
    return tuple(map(int, found[0].group(1).split(".")))


# Two DAGs for all versions: one whose short task runs again and again, one whose task is under way
# until it is let go.
AIRFLOW_DAGS = """\
import datetime
import airflow
try:
    from airflow.sdk import DAG
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:
    from airflow import DAG
    try:
        from airflow.operators.bash import BashOperator
    except ImportError:
        from airflow.operators.bash_operator import BashOperator

for name, every_s in (("short", 10), ("long", 5)):
    schedule = "schedule_interval" if airflow.__version__ < "2" else "schedule"
    dag = globals()[name] = DAG(
        name, start_date=datetime.datetime(2020, 1, 1), catchup=False, max_active_runs=1,
        default_args={"retries": 50, "retry_delay": datetime.timedelta(seconds=1)},
        **{schedule: datetime.timedelta(seconds=every_s)})
    BashOperator(task_id="task", dag=dag, bash_command=(
        "PYTHON -S -E /mnt/task.py " + name + " '{{ dag_run.run_id }}' {{ ti.try_number }}"))
"""

# A line at its begin, four a second, one at its end: one that is killed just says no more.
AIRFLOW_TASK = """\
import os, sys, time

dag, run, attempt = sys.argv[1:]
journal = os.open("/mnt/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
me = "{} {}".format(os.uname()[1], os.urandom(8).hex())

def note(word):
    line = "{:.2f} {} {} {} {} {}\\n".format(time.clock_gettime(7), me, dag, run, attempt, word)
    os.write(journal, line.encode())

note("begin")
end = time.monotonic() + 1
while time.monotonic() < end or dag == "long" and not os.path.exists("/mnt/let_go"):
    time.sleep(0.25)
    note("lives")
note("end")
"""


class Execution:
    """One execution of a task instance by its own account; times on clock()."""

    def __init__(self, host, dag, run, attempt, began):
        self.host, self.dag, self.run, self.attempt = host, dag, run, int(attempt)
        self.began = self.last = began
        self.ended = False

    def __repr__(self):
        return "{} {} try {} on {} from {:.2f} to {:.2f}{}".format(
            self.dag, self.run, self.attempt, self.host, self.began, self.last,
            "" if self.ended else " (no end)")


def read_journal(path):
    """All executions, in the order in which they began."""
    found = collections.OrderedDict()
    with contextlib.suppress(FileNotFoundError):
        for line in read_file(path).splitlines():
            time_s, host, key, dag, run, attempt, word = line.split()
            one = found.setdefault(key, Execution(host, dag, run, attempt, float(time_s)))
            one.last, one.ended = float(time_s), word == "end"
    return list(found.values())


class AirflowWatch(SchedulerWatch):
    """Learns of real schedulers from the hosts' process lists, some ten times a second.

    A life is that of a main process: one that was executed as `airflow scheduler`. What it forks
    may have the very same words, also when it is left behind, but shares its stack's address. A
    life ends when its process was last seen: so what is seen of two is no matter of delays.
    """
    LATE = 0.0
    EVERY_S = 0.1

    def __init__(self, hosts):
        self.lives = []
        self._hosts = hosts
        self._images = set()   # (host, address of the stack) of all Lives
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self):
        self._closed.set()
        self._thread.join()

    def _serve(self):
        seen_at = clock()
        while not self._closed.wait(self.EVERY_S):
            before, seen_at = seen_at, clock()
            self._look()
            for life in self.alive():
                if not process_lives(life.pid) or process_began(life.pid) != life.began:
                    life.ended = max(before, life.began)

    def _look(self):
        hosts = {host_namespace(host.init): host.name for host in self._hosts() if host.init}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            host = hosts.get(host_namespace(entry))
            if host and is_scheduler(command_words(entry)):
                fields = process_fields(entry)
                image = (host, fields[25]) if fields and fields[0] not in "ZX" else None
                if image and image not in self._images:
                    self._images.add(image)
                    self.lives.append(Life(host, int(entry), process_began(entry) or clock()))


def host_namespace(pid):
    """What processes of one host have in common; None when it is gone."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/{}/ns/pid".format(pid))
    return None


def command_words(pid):
    """The words of a process's command line, also where a title has taken their place."""
    with contextlib.suppress(OSError):
        return re.split(r"[\0\s]+", read_file("/proc/{}/cmdline".format(pid)))
    return []


def is_scheduler(words):
    """Whether these are the words of a scheduler's main process (or of a fork of it)."""
    if words and os.path.basename(words[0]).startswith("python"):
        words = words[1:]
    return (len(words) > 1 and os.path.basename(words[0]) == "airflow"
            and words[1] == "scheduler" and words[2:3] not in (["-"], ["--"]))


def airflow_processes(host):
    """What Airflow runs on a host: pids and command lines, the tasks' own processes with them."""
    found = [(pid, " ".join(command_words(pid))) for pid in processes_beside(host.init)]
    return [(pid, words) for pid, words in found if re.search(
        r"^(\[ready\] )?gunicorn|^airflow |^\S*python\S* {}/|/mnt/task.py".format(
            re.escape(AIRFLOW_BIN)), words)]


class AirflowCluster(Cluster):
    """Hosts on which Airflow is installed."""

    def _build(self):
        self.programs = os.path.dirname(AIRFLOW_BIN)
        super()._build()

    def make_watch(self):
        return AirflowWatch(self.hosts.values)


class AirflowBench(FaultBench):
    """Real schedulers under controllers on three hosts, on which faults are done."""
    CLUSTER = AirflowCluster
    SETTINGS = {"scheduler_restart_budget": "1000",
                "heartbeat_timeout": None, "scheduler_restart_sleep_time": None,
                "airflow_virtualenv": os.path.join(AIRFLOW_BIN, "activate")}
    # Shorter than Airflow's own defaults, for a fault is over when the DAGs go on.
    AIRFLOW = """\
        [core]
        executor = LocalExecutor
        parallelism = 2
        load_examples = False
        dags_are_paused_at_creation = False
        execution_api_server_url = http://web:8080/execution/
        {core}
        [database]
        {database}
        [scheduler]
        min_file_process_interval = 5
        parsing_processes = 1
        max_threads = 1
        orphaned_tasks_check_interval = 10
        scheduler_zombie_task_threshold = 40
        local_task_job_heartbeat_sec = 5
        task_instance_heartbeat_timeout = 40
        task_instance_heartbeat_sec = 5
        [api]
        secret_key = the same on all hosts
        [workers]
        execution_api_timeout = 60
        [api_auth]
        jwt_secret = the same on all hosts, long enough for a signature by SHA-512 to be safe.
        [webserver]
        secret_key = the same on all hosts
        [scheduler_failover]
        {own}"""
    version = airflow_version() if AIRFLOW_BIN else (0, 0)
    SERVER = PostgreSqlServer if version >= (3,) else MariaDbServer

    def __init__(self):
        self.judged_from, self._deaths = 0.0, []   # of schedulers before that boot
        self.logs = []   # of what runs beside the hosts
        super().__init__()
        try:
            self._make_metastore()
        except BaseException:
            self.close()
            raise

    def _make_metastore(self):
        """Airflow's database, and what Airflow 3 needs beside the scheduler."""
        self.server.create_database("airflow")
        self.url = self.server.url_for("airflow", {MariaDbServer: "+pymysql",
                                                   PostgreSqlServer: "+psycopg2"}[self.SERVER])
        self.home = os.path.join(self.cluster.directory, "airflow")
        os.makedirs(os.path.join(self.home, "dags"))
        write_file(os.path.join(self.home, "airflow.cfg"), self.airflow_cfg({}))
        write_file(os.path.join(self.home, "dags", "dags.py"), self.dags())
        write_file(os.path.join(self.cluster.shared, "task.py"), AIRFLOW_TASK)
        made = self.beside("initdb" if self.version < (2,) else "db migrate")
        if made.process.wait(600):
            raise AssertionError("no metastore:\n" + read_file(made.log)[-3000:])
        if self.version >= (3,):
            self.beside("dag-processor", for_ever=True)
            serves = self.beside("api-server", for_ever=True)
            wait_until(lambda: "startup complete" in read_file(serves.log), 600,
                       lambda: "the API server serves: " + read_file(serves.log)[-3000:])

    def beside(self, words, for_ever=False):
        """Run `airflow ...` in the servers' network, again and again if it is to be for ever."""
        log = os.path.join(self.home, words.replace(" ", "-") + ".log")
        write_file(log, "")
        command = "export AIRFLOW_HOME={0}; cd {0}; exec >>{1} 2>&1; . {2}/activate; airflow {3}"
        command = command.format(self.home, log, AIRFLOW_BIN, words)
        if for_ever:
            command += "; while sleep 1; do airflow {}; done".format(words)
        keeper = self.cluster.servers.call(
            Keeper, "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", command)
        self.cluster.on_close(keeper.end)
        keeper.log = log
        self.logs.append(log)
        return keeper

    def dags(self):
        return AIRFLOW_DAGS.replace("PYTHON", HOST_PYTHON)

    def airflow_cfg(self, settings):
        """airflow.cfg of a host, with the settings of asfc."""
        connection = "sql_alchemy_conn = " + self.url.replace("%", "%%")
        keys = collections.OrderedDict(SETTINGS, **settings)
        own = "".join("{} = {}\n".format(*item) for item in keys.items() if item[1] is not None)
        old = self.version < (2,)
        return textwrap.dedent(self.AIRFLOW).format(
            core=connection if old else "", database="" if old else connection,
            own=own)

    def configure(self, host, url=None, **settings):
        host.write("airflow/airflow.cfg", self.airflow_cfg(settings))

    def boot(self, settings):
        """New hosts and new metadata of asfc's, Airflow's own is kept; or just other settings."""
        if self.settings:
            self.stop_controllers(*self.cluster.hosts)
        else:
            self._renew_hosts()
        self.settings = None
        for host in self.cluster:
            self.configure(host, **settings)
        self._begin()
        self.settings = settings
        self.start_controllers()
        self.wait_for_calm()

    def _renew_hosts(self):
        self.cluster.heal()
        self._deaths += [life.ended or clock() for life in self.cluster.watch.lives]
        self.cluster.fresh()
        self.judged_from = clock()
        self.server.sql("DROP TABLE IF EXISTS asfc_metadata;", "airflow")
        self.controllers, self._ever = {}, []
        for host in self.cluster:
            host.remove("bin/airflow")
            host.write("airflow/dags/dags.py", self.dags())

    def run_asfc(self, *arguments):
        """What a verb of asfc says on a host, in order."""
        done = self.cluster["a"].run([HOST_PYTHON, Host.HOME + "/asfc.py"] + list(arguments))
        if done.returncode:
            raise AssertionError("asfc.py {}: {}".format(arguments, done.stderr))
        return done.stdout

    def restart_controllers(self, meanwhile=lambda: None, **changes):
        """Stop all, start them with the settings of the fault and these changes to them."""
        self.stop_controllers(*self.cluster.hosts)
        for host in self.cluster:
            self.configure(host, **dict(self.settings, **changes))
        meanwhile()
        self.start_controllers()

    def start_by_hand(self, name):
        return self.cluster[name].start_process(
            ["bash", "-c", ". {}/activate && exec airflow scheduler".format(AIRFLOW_BIN)])

    def deaths(self):
        """When schedulers died, since the beginning."""
        return self._deaths + [one.ended for one in self.cluster.watch.lives if one.ended]

    def said(self, controller):
        """How much a controller had said when the fault began."""
        return self._said.get(id(controller), 0)

    def hang(self):
        """SIGSTOP of the scheduler, once it is no new one."""
        self.let_pass(self.scheduler.began + 36 - clock())
        hang(self)

    # -- what Airflow does

    def executions(self):
        return read_journal(os.path.join(self.cluster.shared, "journal"))

    def wait_for_calm(self, timeout_s=240):
        """As ever, and the DAGs go on under the scheduler that runs now."""
        super().wait_for_calm(timeout_s)
        since = self.cluster.watch.alive()[0].began
        wait_until(lambda: self.a_run_succeeded(since), timeout_s,
                   lambda: "a run of the short DAG: " + self.unfinished())
        self.wait_for_task()

    def a_run_succeeded(self, since):
        time.sleep(0.2)
        done = [one.run for one in self.executions()
                if one.dag == "short" and one.ended and one.began > since]
        return any("success" in self.rows("state", run, "short") for run in done[:3])

    def log_of(self, execution):
        """What Airflow has written down about that run on its host."""
        day = re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", execution.run).group(0)
        told = ""
        for path in glob.glob(self.cluster[execution.host].path("**", "*.log"), recursive=True):
            text = "".join(line for line in read_file(path).splitlines(True)
                           if day in path or day in line)
            told += "\n{}:\n{}".format(path, text[-4000:]) if text else ""
        return told

    def unfinished(self):
        """What Airflow has not brought to an end, and the last words of what runs beside it."""
        return "\n".join(
            [self.sql("SELECT * FROM dag_run WHERE state <> 'success';"),
             self.sql("SELECT dag_id, state, try_number, hostname, queued_dttm, start_date FROM "
                      "task_instance WHERE state IS NULL OR state <> 'success';")]
            + [read_file(log)[-1000:] for log in self.logs])

    def wait_for_task(self, timeout_s=240):
        """Wait until the long task is under way below the scheduler; returns its Execution."""
        def under_way():
            time.sleep(0.2)
            alive = self.cluster.watch.alive()
            return next((one for one in self.executions() if one.dag == "long" and not one.ended
                         and clock() - one.last < 1 and one.host == alive[0].host
                         and one.began > alive[0].began), None)
        return wait_until(under_way, timeout_s, lambda: "a long task under way: {}".format(
            self.executions()[-4:]))

    def let_long_task_end(self):
        """Have the long task end well, and wait until Airflow knows it, and for the next one."""
        let_go = os.path.join(self.cluster.shared, "let_go")
        run = self.wait_for_task().run
        write_file(let_go, "")
        try:
            wait_until(lambda: time.sleep(0.3) or "success" in self.rows("state", run), 240,
                       lambda: "the success of {}: {}".format(run, self.rows("*", run)))
        finally:
            os.unlink(let_go)
        self.wait_for_task()

    def rows(self, columns, run=None, dag="long"):
        """Airflow's rows of all runs, or of one, as texts."""
        where = " WHERE dag_id = '{}' AND run_id = '{}'".format(dag, run) if run else ""
        return self.sql("SELECT {} FROM dag_run{};".format(columns, where)).replace(
            "|", "\t").splitlines()

    def sql(self, text):
        return self.server.sql(text, "airflow")

    # -- what must hold

    def _problems(self, fault):
        problems = super()._problems(fault) + self.remnants()
        if fault.overlap_s:   # two that were started by hand: Airflow 1.10 may run a task twice
            self.judged_from = clock()
        return problems + self.misdeeds()

    def remnants(self):
        """What Airflow has left on hosts beside the scheduler that runs, and what that started."""
        problems = []
        for host in self.cluster:
            mains = [life.began for life in self.cluster.watch.alive() if life.host == host.name]
            for pid, words in airflow_processes(host):
                began = process_began(pid)
                if process_lives(pid) and not any(began >= main for main in mains):
                    problems.append("left behind on {}: {} {}".format(host.name, pid, words))
        return problems

    def misdeeds(self):
        """Two executions of one task instance at a time, below two schedulers; one that outlives
        its own until the next begins. (After a frozen database Airflow 3 may begin a task anew
        before it has ended the one whose heartbeats it missed, all below one scheduler.)"""
        problems, before, lives = [], {}, list(self.cluster.watch.lives)
        for one in self.executions():
            if one.began < self.judged_from:
                continue
            owner = next((life for life in lives if life.host == one.host
                          and life.began < one.began < (life.ended or clock())), None)
            other, other_owner = before.get((one.dag, one.run), (None, None))
            before[one.dag, one.run] = one, owner
            if other and other.last > one.began and (owner is None or owner is not other_owner):
                problems.append("at the same time: {} and {}".format(other, one))
            late = [life for life in lives
                    if owner and owner.ended and owner.ended < life.began < one.last]
            if late:
                problems.append("{} though a scheduler began: {}".format(one, late[0]))
        return problems


class AirflowOnPostgreSqlBench(AirflowBench):
    """The same with the other database: what its client does to a daemon differs."""
    SERVER = PostgreSqlServer


def one_controller_after_the_other(bench):
    """The active one is stopped, the next one killed, then all are upgraded, one by one."""
    active = bench.active
    bench.stop_controllers(active)
    second = bench.wait_for_active([name for name in bench.cluster.hosts if name != active], 30)[0]
    bench.start_controllers()
    bench.wait_for_calm()
    bench.kill_controllers(second.holder)
    bench.wait_for_active([name for name in bench.cluster.hosts if name != second.holder], 60)
    bench.start_controllers()
    bench.wait_for_calm()
    bench.active = bench.cluster_record().holder
    upgrade_one_by_one(bench)


def stop_with_a_task_under_way(bench):
    """Nobody knows of the first scheduler any more, and a second one stands before it in the list:
    that one is kept, and asfc stops the first, which waits for its task."""
    names = sorted(bench.cluster.hosts, key=lambda name: name == bench.node)

    def meanwhile():
        bench.run_asfc("clear_metadata")
        bench.start_by_hand(names[0])
        wait_until(lambda: len(bench.cluster.watch.alive()) == 2, 30, "a second scheduler")
    bench.restart_controllers(meanwhile, scheduler_nodes_in_cluster=", ".join(names))
    wait_until(lambda: bench.scheduler.ended, 120, "the end of the first")


def freeze_database(bench):
    """It hangs with its connections open, as a hung scheduler would seem; it is not one."""
    before = bench.run_asfc("history")
    bench.break_database("freeze", 60)
    bench.wait_for_calm()
    told = wait_until(   # it comes with the next heartbeat
        lambda: [text for text in [bench.run_asfc("history")[len(before):]]
                 if "the metadata service did not answer for" in text], 30,
        lambda: "the database in the history: " + bench.run_asfc("history"))[0]
    for one in bench.controllers.values():
        told += one.output()[bench.said(one):]
    if "hung" in told or "starting the scheduler" in told:
        raise AssertionError("a hung database is no hung scheduler: " + told)
    if "the metadata service failed" not in told:
        raise AssertionError("nothing is said of the database: " + told)


def kill_daemon(bench):
    """By its start command it is a daemon, and one whose processes are all killed at once leaves
    its pid file: beside that 1.10 starts no other, so the next node has to have it. (A child that
    is asked to end would remove the file.)"""
    bench.kill_scheduler()   # it was started before there was that command
    bench.wait_for_calm()
    daemon = bench.cluster.watch.alive()[0]
    host = bench.cluster[daemon.host]
    if not host.read("airflow/airflow-scheduler.pid"):
        raise AssertionError("it has no pid file: {}".format(bench.cluster.watch.lives))
    for pid in [daemon.pid] + [pid for pid, _ in airflow_processes(host)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    bench.wait_for_calm()
    told = "".join(one.output()[bench.said(one):] for one in bench.controllers.values())
    moved = bench.cluster.watch.alive()[0].host != daemon.host
    because = "with -D a stale airflow-scheduler.pid" in told
    if not moved == because == (bench.version < (2,)):
        raise AssertionError("1.10 is moved, with the file as the reason, 2 and 3 stay: " + told)


def daemon_hangs_at_birth(bench):
    """Its start command returns with status 0 and its process lives, but it never does any work and
    is deaf to SIGTERM. That is found by its heartbeat; then a person takes the command away."""
    bench.restart_controllers(airflow_scheduler_start_command=daemon_command(pool=True))
    bench.kill_scheduler()

    def told():
        return "".join(one.output()[bench.said(one):] for one in bench.controllers.values())
    wait_until(lambda: time.sleep(0.5) or re.search(
        r"\(SIGKILL\): [1-9]", told().partition("it is hung: pid ")[2]), 150,
        lambda: "a daemon that is found hung and ended by SIGKILL: " + told())
    bench.restart_controllers()


def daemon_command(pool):
    """With a pool, a daemon keeps a connection that was opened before it was one: by that 1.10 on
    MariaDB ends at its first commit, and 2 on PostgreSQL hangs from the beginning."""
    return (". {0}/activate && AIRFLOW__CORE__SQL_ALCHEMY_POOL_ENABLED={1} "
            "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_ENABLED={1} airflow scheduler -D".format(
                AIRFLOW_BIN, pool))


ANY_ROLES = tuple(range(100))   # how often the active role changes hands is no matter


def airflow_faults():
    """What is done to real schedulers; each time a task is under way."""
    slow_s = 15   # of a machine with two cores, where much is started at the same time
    metadata_s, threshold_s, lost_node_s = 3, 30, 55   # by the default times
    dead_s = POLL_S + 2 * QUERY_S + metadata_s + START_S + slow_s
    yield Fault("SIGKILL of the scheduler", AirflowBench.kill_scheduler, dead_s)
    yield Fault("SIGSTOP of the scheduler", AirflowBench.hang,
                threshold_s + 5 + POLL_S + QUERY_S + STOP_S + START_S + slow_s)
    yield Fault("power-off of the scheduler's node", lambda bench: bench.power_off(bench.node),
                lost_node_s + START_S + slow_s, roles=(0, 1))
    yield Fault("the database is down for 30 s", lambda bench: bench.break_database("stop", 30),
                dead_s, roles=ANY_ROLES, lives=None)
    yield Fault("change, restart and upgrade of all controllers", one_controller_after_the_other,
                roles=ANY_ROLES)
    yield Fault("stop of the scheduler with a task under way", stop_with_a_task_under_way, 120,
                roles=ANY_ROLES, overlap_s=600)
    yield Fault("the database is frozen for 60 s, on_metadata_loss = keep", freeze_database,
                roles=ANY_ROLES, on_metadata_loss="keep")
    yield Fault("SIGKILL of a scheduler that is a daemon", kill_daemon, 180, lives=None,
                airflow_scheduler_start_command=daemon_command(pool=False))
    if AirflowBench.version[0] == 2:
        fault = Fault("a daemon that hangs at birth", daemon_hangs_at_birth, 180, roles=ANY_ROLES,
                      lives=None, scheduler_start_timeout="40")
        fault.bench = AirflowOnPostgreSqlBench
        yield fault


# -- the soak


def soaking(name, do, **fields):
    """A fault of the soak: how long it takes is not measured there, nor what it leads to."""
    return Fault(name, do, bound_s=600, roles=ANY_ROLES, lives=None, **fields)


def random_airflow_fault(chance):
    """One of the faults of the soak, and how long it lasts."""
    seconds = chance.uniform(1, 25)
    role = chance.choice(["active", "node", "third"])
    how, way = chance.choice(["silent", "icmp"]), chance.choice(["both", "out", "in"])
    targets = chance.choice(["database", "peers", "both"])
    broken = chance.choice(["stop", "kill", "freeze"])

    def who(bench):
        return getattr(bench, role)
    return chance.choice([
        soaking("SIGKILL of the scheduler", AirflowBench.kill_scheduler),
        soaking("SIGSTOP of the scheduler", lambda bench: bench.freeze([bench.scheduler.pid]),
                for_s=3 * seconds),
        soaking("power-off of {}".format(role), lambda bench: bench.power_off(who(bench)),
                for_s=2 * seconds),
        soaking("SIGKILL of the controller of {}".format(role),
                lambda bench: bench.kill_controllers(who(bench)), for_s=seconds),
        soaking("SIGSTOP of the controller of {}".format(role),
                lambda bench: bench.freeze_controllers(who(bench)), for_s=seconds),
        soaking("orderly stop of the controller of {}".format(role),
                lambda bench: bench.stop_controllers(who(bench)), for_s=seconds),
        soaking("{} cut off from {}, {} {}".format(role, targets, how, way),
                lambda bench: bench.cut(who(bench), targets, how, way), for_s=2 * seconds),
        soaking("{} of the database for {:.0f} s".format(broken, seconds),
                lambda bench: bench.break_database(broken, seconds))])


class AirflowSoak:
    """Random faults on real schedulers; in the end Airflow's rows must agree with the journal."""
    FOR_S = 900
    LAUNCH_S = 10   # of a task by Airflow, before its own account begins

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.bench = AirflowBench()
        self.faults = []   # (name, from, to) of what was done
        self.failed = 0

    def run(self):
        print(Outcome.HEADER, flush=True)
        until = clock() + self.FOR_S
        while clock() < until:
            fault, began = random_airflow_fault(self.chance), clock()
            outcome = self.bench.run(fault)
            self.faults.append((fault.name, began, clock()))
            self.failed += bool(outcome.problems)
            print(outcome, *(outcome.problems + [outcome.story] * bool(outcome.problems)),
                  sep="\n    ", flush=True)
            if not outcome.problems:
                self.bench.let_long_task_end()
        problems = self.bench.misdeeds() + self.needless_tries() + self.lost_runs()
        print(*problems, sep="\n")
        print("{} executions of tasks, {} faults, {} of them failed, {} problems".format(
            len(self.bench.executions()), len(self.faults), self.failed, len(problems)))
        return 1 if self.failed or problems else 0

    def needless_tries(self):
        """Executions of what was executed before, with neither a scheduler's death nor an outage of
        the database since the first was launched."""
        problems, before = [], {}
        outages = [began for name, began, _ in self.faults if "database" in name]
        for one in self.bench.executions():
            other, before[one.dag, one.run] = before.get((one.dag, one.run)), one
            if other and not any(other.began - self.LAUNCH_S < time_s < one.began
                                 for time_s in outages + self.bench.deaths()):
                problems.append("without need: {} after {}, below {}, beside {}{}".format(
                    one, other, self.bench.cluster.watch.lives,
                    [fault for fault in self.faults if fault[2] > other.began - 60
                     and fault[1] < one.began], self.bench.log_of(other)))
        return problems

    def lost_runs(self):
        """Runs that Airflow knows and that did not come to their end, in its view or their own."""
        ended = {(one.dag, one.run) for one in self.bench.executions() if one.ended}
        rows = [row.split() for row in self.bench.rows("dag_id, run_id, state")]
        lost = [row for row in rows if row[2] != "running" and
                (row[2] != "success" or tuple(row[:2]) not in ended)]
        unknown = ended - {tuple(row[:2]) for row in rows}
        return ["lost: {}".format(row) for row in lost + sorted(unknown)] + (
            [] if rows else ["Airflow knows no run"])


def soak_airflow():
    """`soak airflow`: as `tox -e airflow2 -- soak airflow` runs it, 15 minutes."""
    require("Airflow in ASFC_AIRFLOW", AIRFLOW_BIN)
    end_in_order_on_sigterm()
    seed = int(time.time())
    print("Airflow", AirflowBench.version, "seed", seed)
    soak = AirflowSoak(seed)
    try:
        return soak.run()
    finally:
        soak.bench.close()


class RealAirflow(FaultTests):
    """One test for each row of the table, on one cluster, in this order."""
    BENCH, CLUSTERS = AirflowBench, 1

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        print("tested by Airflow", ".".join(map(str, AirflowBench.version)), flush=True)


if AIRFLOW_BIN:
    RealAirflow.add(airflow_faults())


###############################################################################
# The systemd unit ############################################################
###############################################################################


class TheUnit(unittest.TestCase):
    """asfc.service, as systemd reads it."""

    def setUp(self):
        self.text = read_file(os.path.join(HERE, "asfc.service"))
        self.keys = dict(re.findall(r"^(\w+)=(.*)$", self.text, re.MULTILINE))

    def test_it_keeps_asfc_running_and_never_ends_a_scheduler(self):
        for key, value in (("Restart", "always"), ("RestartPreventExitStatus", "78"),
                           ("KillMode", "process"), ("OOMPolicy", "continue"),
                           ("TasksMax", "infinity"), ("User", "airflow"), ("Group", "airflow"),
                           ("Type", "notify"), ("ExecReload", "/bin/kill -HUP $MAINPID")):
            self.assertEqual(self.keys[key], value, key)
        # Metadata that is slow at each of the tries of a write, beside what a turn announces.
        self.assertGreater(int(self.keys["WatchdogSec"].rstrip("s")) * 3 / 4,
                           2 * asfc.Lease.TRIES * 3 + 3 + asfc.Lease.SLACK_S)
        self.assertEqual(str(asfc.ConfigurationError.exit_status), "78")
        # The fence time with the default settings, and the limit of a stop.
        self.assertGreater(int(self.keys["TimeoutStopSec"].rstrip("s")), 29.5 + 60)

    def test_nothing_in_it_takes_sudo_from_a_command(self):
        implying = ("NoNewPrivileges|Restrict|SystemCall|PrivateDevices|ProtectKernel|ProtectClock|"
                    "ProtectHostname|MemoryDeny|LockPersonality|DynamicUser|CapabilityBoundingSet")
        self.assertEqual([key for key in self.keys if re.match(implying, key)], [])

    def test_systemd_finds_no_fault_in_it(self):
        require("systemd-analyze", find_program("systemd-analyze"))
        with tempfile.TemporaryDirectory() as directory:
            unit = os.path.join(directory, "asfc.service")
            write_file(unit, self.text.replace("/usr/bin/python3", sys.executable))
            done = subprocess.run(["systemd-analyze", "verify", unit], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, universal_newlines=True)
        self.assertEqual((done.returncode, done.stdout), (0, ""))


###############################################################################
# The demo ####################################################################
###############################################################################


class DemoRun:
    """The demo, as a child process, and two schedulers that it has to leave alone."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="asfc-test-")
        self.output = tempfile.TemporaryFile("w+")
        self.decoys = [SchedulerStandIn(self.directory).start() for _ in range(2)]
        self.demo = subprocess.Popen(
            [sys.executable, asfc.__file__, "demo"], stdout=self.output, stderr=subprocess.STDOUT,
            env=dict(os.environ, TMPDIR=self.directory))
        atexit.register(self.close)

    def end(self):
        """Wait for the end of the demo; returns its status and what it said."""
        status = self.demo.wait()
        self.output.seek(0)
        return status, self.output.read()

    def close(self):
        atexit.unregister(self.close)
        self.demo.terminate()   # it then cleans up; without effect when it is over
        self.demo.wait()
        for one in self.decoys:
            one.kill()
            one.wait()
        self.output.close()
        shutil.rmtree(self.directory)


class DemoTest(unittest.TestCase):
    def test_it_plays_to_its_end_leaves_nothing_behind_and_touches_no_other_scheduler(self):
        running = DemoRun()
        self.addCleanup(running.close)
        status, said = running.end()
        self.assertEqual(status, 0, said)
        self.assertIn("one scheduler ran all the time it could", said)
        self.assertRegex(said, "the switchover to b, .* is done: the scheduler runs on b; .* s w")
        self.assertRegex(said, "starting the scheduler on a, .*: b: .*silent for 1. s, and within")
        self.assertEqual([one.poll() for one in running.decoys], [None, None])
        self.assertEqual(sorted(os.listdir(running.directory)), ["airflow", "schedulers.log"])
        self.assertEqual(processes_with(os.path.join(running.directory, "asfc-demo")), [])

    def test_where_there_is_no_scheduler_to_be_killed_it_does_not_kill_itself(self):
        done = subprocess.run(
            [sys.executable, "-c", "import asfc; print(asfc.Demo('no such').kill_scheduler('a'))"],
            cwd=HERE, stdout=subprocess.PIPE, universal_newlines=True, start_new_session=True)
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stdout, "no scheduler runs on a, .*\nFalse\n$")


###############################################################################
# The command line ############################################################
###############################################################################


class WorstCaseTest(unittest.TestCase):
    def texts(self, **changes):
        return [str(case) for case in asfc.worst_cases(settings(**changes))]

    def test_the_defaults_give_the_times_of_the_protocol(self):
        gone = "its node is powered off or cut off, with the active controller or without: "
        self.assertEqual(self.texts(), [
            "the scheduler dies: 23 s + s",
            "the scheduler hangs: 50 s + its stop + s",
            gone + "55 s + s",
            "the active controller is lost, and a new one is active: 36 s",
            "the active controller is lost in the middle of a restart: 62 s + s",
            "the active controller's main loop alone sticks: all this longer by: 30 s",
            "the active controller is stopped in order, and a new one is active: 6 s",
            "nothing happens while the metadata is away for less than: 13 s",
            "the metadata is away for longer: after its return: 23 s + s"])
        self.assertIn(gone + "not before it answers or a person uses confirm_dead",
                      self.texts(on_metadata_loss="keep"))
        self.assertIn(gone + "112 s + s", self.texts(on_metadata_loss="keep", fence_command="off"))
        self.assertIn(gone + "112 s + s", self.texts(fence_command="off"))
        self.assertIn(gone + "57 s + s", self.texts(fence_command="off", fence_timeout=5.0))

    def test_they_follow_the_configuration(self):
        quick = self.texts(poll_frequency=2.0, heartbeat_timeout=10.0, heartbeat_interval_s=1.0,
                           metadata_limit_s=1.0, acting_window_s=20 / 3, query_timeout=2.0,
                           promise_s=14.17)
        self.assertEqual(quick[0], "the scheduler dies: 7 s + s")
        self.assertIn("without: 24 s + s", quick[2])
        self.assertIn("is away for less than: 3 s", quick[7])


class OperatorTest(unittest.TestCase):
    """What a person says to a cluster, in virtual time and with the real controllers."""

    def drive(self, play, **keys):
        """Play on a cluster whose scheduler runs on a; returns the cluster and what was printed."""
        cluster = VirtualCluster(5, **keys)

        def whole():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(120)
            self.assertEqual((cluster.home(), cluster.active()), ("a", "a"))
            play(cluster)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            cluster.clock.drive(whole)
        self.assertLessEqual(cluster.most_alive, 1)
        return cluster, said.getvalue()

    @staticmethod
    def power_off(cluster, name):
        cluster.kill_controller(name)
        cluster.cut.add(name)
        cluster.models[name].mains = []

    @staticmethod
    def confirm(cluster, node, answers=None, is_sure=True):
        world = cluster.worlds["b"]
        world.answers = answers
        configuration = asfc.Configuration.load(world, "/airflow.cfg")
        asfc.confirm_dead(world, configuration, cluster.metadata,
                          asfc.Nodes(world, configuration), node, is_sure)

    @staticmethod
    def say(cluster, verb, *words):
        world = cluster.worlds["b"]
        return verb(world, asfc.Configuration.load(world, "/airflow.cfg"), cluster.metadata, *words)

    @staticmethod
    def record(cluster):
        return asfc.cluster_record(cluster.metadata.records)

    @staticmethod
    def events(cluster):
        return [event.what for event in asfc.history_events(cluster.metadata.records)]

    def test_a_node_that_promised_nothing_is_left_once_a_person_confirmed_that_it_is_off(self):
        def play(cluster):
            self.power_off(cluster, "a")
            cluster.clock.wait(300)
            self.assertEqual(cluster.home(), "")
            self.assertIn("asfc.py confirm_dead a", "\n".join(cluster.lines))
            active = cluster.active()
            self.confirm(cluster, "a", ["yes", "a"], is_sure=False)
            self.assertEqual(self.record(cluster).vouched[0][:2], (
                "a", cluster.metadata.records["node/a"].version))
            cluster.clock.wait(30)
            self.assertEqual((cluster.home(), cluster.active()), ("b", active))
        cluster, said = self.drive(play, on_metadata_loss="keep")
        self.assertEqual(self.record(cluster).possible_nodes, ("b",))
        self.assertIn("a was confirmed to be off", self.events(cluster))
        self.assertRegex(said, "a: ann on b confirmed at .* that it is powered off")
        proofs = [event.proof for event in asfc.history_events(cluster.metadata.records)]
        self.assertTrue(any("ann on b confirmed" in proof for proof in proofs), proofs)

    def test_a_word_against_the_evidence_or_without_a_clear_yes_is_refused(self):
        def play(cluster):
            before = self.record(cluster).vouched
            refused = functools.partial(self.assertRaisesRegex, asfc.RefusedError)
            with refused("c is not a possible node [(]those are: a[)]"):
                self.confirm(cluster, "c")
            with refused("a answers, so it is not off: running, pid"):
                self.confirm(cluster, "a")
            cluster.cut.add("a")      # its controller lives
            with refused("a is not off: its controller writes its record"):
                self.confirm(cluster, "a")
            self.power_off(cluster, "a")
            with refused("no terminal to ask on .* use --yes"):
                self.confirm(cluster, "a", None, is_sure=False)
            for answers in (["no"], [""], ["yes", "b"], ["yes", ""]):
                with refused("nothing was written"):
                    self.confirm(cluster, "a", answers, is_sure=False)
            self.assertEqual(self.record(cluster).vouched, before)
        # A look that ends sooner than a heartbeat comes: its controller's record is waited for.
        cluster, _ = self.drive(play, on_metadata_loss="keep", query_timeout=0.5)
        self.assertNotIn("a was confirmed to be off", self.events(cluster))

    def test_a_record_that_changes_while_the_person_thinks_is_a_sign_of_life(self):
        def play(cluster):
            self.power_off(cluster, "a")
            cluster.kill_controller("b")
            cluster.kill_controller("c")
            ask = cluster.worlds["b"].ask

            def slow(question):
                if "Type" in question:
                    cluster.start_controller("a")
                    cluster.clock.wait(30)
                return ask(question)
            cluster.worlds["b"].ask = slow
            with self.assertRaisesRegex(asfc.RefusedError, "writes its record"):
                self.confirm(cluster, "a", ["yes", "a"], is_sure=False)
        self.drive(play, on_metadata_loss="keep")

    def test_the_watch_lasts_as_long_as_the_longest_heartbeat_of_all(self):
        record = asfc.NodeRecord("b", "x", settings={"heartbeat_timeout": 100.0})
        records = {"cluster": asfc.Record(1, asfc.ClusterRecord("id").to_text())}
        self.assertEqual(asfc.watch_s(settings(heartbeat_timeout=20.0), records), 3 + 3 + 1)
        records["node/b"] = asfc.Record(1, record.to_text())
        self.assertEqual(asfc.watch_s(settings(), records), 10 + 3 + 1)

    def test_paused_nothing_is_started_stopped_or_fenced_until_resumed(self):
        def play(cluster):
            began = cluster.clock.time
            self.assertEqual(self.say(cluster, asfc.pause, "new disks"), 0)
            self.assertLess(cluster.clock.time - began, 10)
            for _, record in asfc.node_records(cluster.metadata.records).values():
                self.assertEqual((record.promise_s, record.no_promise), (None, "asfc is paused"))
            self.assertEqual(self.say(cluster, asfc.pause, "again"), 0)
            cluster.metadata.away = True
            cluster.clock.wait(90)
            cluster.metadata.away = False
            self.assertEqual(cluster.home(), "a", "nobody fences itself")
            cluster.kill_scheduler()
            cluster.models["c"].appear()       # the operator's own
            cluster.clock.wait(300)
            self.assertEqual((cluster.home(), cluster.starts), ("c", 1))
            self.assertEqual(len(cluster.active()), 1)
            paused = self.record(cluster)
            self.assertRegex(paused.paused, "^by ann on b at .*: new disks$")
            self.say(cluster, asfc.resume)
            record = self.record(cluster)
            self.assertEqual((record.paused, record.possible_nodes, record.pair > paused.pair),
                             ("", ("b", "c", "a"), True))
            cluster.clock.wait(60)
            self.assertEqual((cluster.home(), cluster.starts), ("c", 1), "it is adopted")
            self.say(cluster, asfc.resume)
            for _, record in asfc.node_records(cluster.metadata.records).values():
                self.assertEqual(record.promise_s, 29.5)
        cluster, said = self.drive(play)
        self.assertEqual(self.record(cluster).possible_nodes, ("c",))
        for words in ("asfc is paused: it starts", "is taken back by: ",
                      "asfc is paused already, by ann on b",
                      "asfc works again. Possible nodes: b, c, a", "asfc is not paused"):
            self.assertIn(words, said)
        self.assertEqual([what for what in self.events(cluster) if what in ("paused", "resumed")],
                         ["paused", "resumed"])

    def test_after_a_pause_what_runs_elsewhere_is_adopted_though_the_assigned_node_is_off(self):
        def play(cluster):
            self.say(cluster, asfc.pause, "a new host")
            self.power_off(cluster, "a")
            cluster.models["c"].appear()
            self.say(cluster, asfc.resume)
            cluster.clock.wait(120)
            self.assertEqual((cluster.home(), cluster.starts), ("c", 1))
        cluster, _ = self.drive(play)
        self.assertEqual(self.record(cluster).active_scheduler_node, "c")

    def test_the_metadata_tells_what_the_active_one_says_and_the_history_why(self):
        def said(cluster):
            found = cluster.metadata.records["status"]
            return found.version, asfc.StatusRecord.from_text(found.value)

        def play(cluster):
            version, status = said(cluster)
            self.assertEqual(status[:2] + status[3:], (
                "a", 1, "no action: I am active, the scheduler runs on a", {}))
            cluster.clock.wait(60)
            self.assertEqual(said(cluster)[0], version, "a quiet controller writes none")
            cluster.cut.add("c")
            cluster.clock.wait(20)
            self.assertEqual(said(cluster)[1].unanswered, {"c": "no answer in time"})
            cluster.cut.clear()
            cluster.broken.add("a")
            cluster.kill_scheduler()
            cluster.clock.wait(120)
            self.assertEqual(cluster.home(), "b")
            self.power_off(cluster, "b")
            cluster.clock.wait(120)
            self.assertEqual((cluster.home(), cluster.active()), ("c", "a"))
            cluster.stop_controller("a")
            cluster.clock.wait(60)
            self.assertEqual((cluster.active(), said(cluster)[1].node), ("c", "c"))
        cluster, _ = self.drive(play)
        events = asfc.history_events(cluster.metadata.records)
        told = ["{}: {} | {} | {}".format(event.node, event.what, event.why, event.proof)
                for event in events]
        for pattern in (
                "a: active failover node . there was no record . ",
                "a: moving the scheduler to a . a is the first that takes it, in the order a, b, c",
                "a: starting the scheduler on a . a was chosen for it; start 1 of at most 3 there "
                "within 600 s . b: its process list shows none",
                "a: the scheduler runs on a .  . pid ",
                "a: the scheduler is not seen to run any more . a: its process list shows none . ",
                "a: starting the scheduler on a . none runs where it ran; start 2 of at most 3 ",
                "a: moving the scheduler to b from a: .* . a: failed: no scheduler appeared .*; b",
                "a: the scheduler is not seen to run any more . b: no answer in time",
                "a: waiting until b has been silent for long enough, .* .  . ",
                "a: moving the scheduler to c from b: .*silent .* . c is the first that takes it",
                "a: gives the lease up . its controller is stopped: SIGTERM . ",
                "c: active failover node . nobody held it . "):
            self.assertRegex("\n".join(told), "(?m)^" + pattern)
        self.assertEqual(len(set(told)), len(told))
        times = [(event.node, event.without_scheduler_s) for event in events
                 if event.what.startswith("the scheduler runs on")]
        self.assertEqual([node for node, _ in times], ["a", "a", "a", "c"])
        self.assertEqual([seconds is None for _, seconds in times], [True, False, False, True])
        starts = [event for event in events if event.what.startswith("starting")]
        self.assertEqual(len(starts), cluster.starts)

    def test_a_pause_does_not_wait_for_a_controller_that_is_gone(self):
        def play(cluster):
            cluster.kill_controller("c")
            began = cluster.clock.time
            self.assertEqual(self.say(cluster, asfc.pause, ""), 0)
            self.assertLess(cluster.clock.time - began, 10)
        _, said = self.drive(play)
        self.assertIn("c has not taken back its promise, and its controller does not write", said)

    def test_a_pause_tells_after_h_of_a_promise_that_is_not_taken_back(self):
        bench = LeaseBench()
        bench.records["cluster"] = asfc.Record(1, asfc.ClusterRecord("id", 1).to_text())
        metadata = VirtualMetadata(bench)
        metadata.records, bench.clock = bench.records, argparse.Namespace(wait=lambda seconds: None)

        def sleep(seconds):   # and a controller that writes on and on
            bench.time += seconds
            record = asfc.NodeRecord("c", "x", int(bench.time), promise_s=29.5)
            bench.records["node/c"] = asfc.Record(int(bench.time), record.to_text())
        bench.sleep, bench.user_name, bench.host_name = sleep, lambda: "ann", lambda: "b"
        sleep(1)
        with contextlib.redirect_stderr(io.StringIO()) as told, \
                contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(asfc.pause(bench, settings(), metadata, ""), 1)
        self.assertIn("not taken back yet: the promise of c", told.getvalue())
        self.assertEqual(int(bench.time) - 1001, 31)

    def test_a_pause_before_the_first_start_is_refused(self):
        cluster = VirtualCluster(5)
        world = cluster.worlds["b"] = VirtualWorld(cluster, "b")
        world.airflow_cfg = "[scheduler_failover]\nscheduler_nodes_in_cluster = a, b\n"

        def play():
            with self.assertRaisesRegex(asfc.RefusedError, "nothing to pause"):
                self.say(cluster, asfc.pause, "")
            with contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(self.say(cluster, asfc.resume), 0)
            self.assertEqual(cluster.metadata.records, {})
        cluster.clock.drive(play)

    def test_a_verb_goes_on_when_heartbeats_come_between_and_gives_up_in_words(self):
        bench = LeaseBench()
        bench.put(asfc.ClusterRecord("id", 1))
        metadata = VirtualMetadata(bench)
        metadata.records, bench.clock = bench.records, argparse.Namespace(wait=lambda seconds: None)

        def change(heartbeats, records):
            if heartbeats:
                bench.put(self.record(argparse.Namespace(metadata=bench))._replace(
                    heartbeat_at="beat {}".format(heartbeats.pop())))
            return asfc.cluster_record(records)._replace(paused="by ann")
        written = metadata.change_cluster(functools.partial(change, [1, 2, 3]))
        self.assertEqual((written.paused, written.heartbeat_at), ("by ann", "beat 1"))
        with self.assertRaisesRegex(asfc.MetadataError, "faster ten times"):
            metadata.change_cluster(functools.partial(change, list(range(99))))


class SteeringTest(unittest.TestCase):
    """Switchover, failover and drain, in virtual time and with the real controllers."""

    drive = OperatorTest.drive

    @staticmethod
    def steering(cluster, quiet=False):
        world = cluster.worlds["b"]
        configuration = asfc.Configuration.load(world, "/airflow.cfg")
        return asfc.Steering(world, configuration, cluster.metadata,
                             asfc.Nodes(world, configuration), quiet)

    @staticmethod
    def record(cluster):
        return asfc.cluster_record(cluster.metadata.records)

    @staticmethod
    def orders(cluster):
        return asfc.Orders.of(cluster.metadata.records)

    def test_a_switchover_tells_its_steps_and_how_long_there_was_no_scheduler(self):
        def play(cluster):
            began = cluster.clock.time
            self.assertEqual(asfc.switchover(self.steering(cluster), "c"), 0)
            self.assertLess(cluster.clock.time - began, 60)
            self.assertEqual((cluster.home(), cluster.starts), ("c", 2))
            cluster.clock.wait(60)
            self.assertEqual((cluster.home(), cluster.starts), ("c", 2), "and stays there")
        cluster, said = self.drive(play)
        self.assertEqual(self.record(cluster).possible_nodes, ("c",))
        without_s = self.orders(cluster).wish.without_scheduler_s
        self.assertTrue(2.0 <= without_s < 4.0, without_s)
        for words in (
                "the switchover to c, asked for by ann on b at ",
                "virtual time: written down for the active controller\n",
                "moving the scheduler to c from a: pid ", "stopped the scheduler on a",
                "starting the scheduler on c", "proof: a: its process list shows none; c: its",
                "is done: the scheduler runs on c; {:.1f} s without a scheduler".format(without_s)):
            self.assertIn(words, said)
        self.assertEqual([mail.partition(" ")[2] for mail in cluster.mails],
                         ["asfc: the scheduler has moved to c"])

    def test_without_a_name_the_next_node_is_taken_that_can_have_it(self):
        def play(cluster):
            cluster.kill_controller("b")   # it promises nothing any more
            cluster.start_controller("b")
            self.assertEqual(asfc.switchover(self.steering(cluster), None), 0)
            self.assertEqual(cluster.home(), "b")
            cluster.kill_controller("c")
            self.assertEqual(asfc.switchover(self.steering(cluster), None), 0)
            self.assertEqual(cluster.home(), "a")
        self.drive(play)

    def test_what_can_not_be_is_refused_at_once_with_its_reason(self):
        def play(cluster):
            def refused(words, target="c", seconds=8):
                began = cluster.clock.time
                with self.assertRaisesRegex(asfc.RefusedError, words):
                    asfc.switchover(self.steering(cluster), target)
                self.assertLess(cluster.clock.time - began, seconds)
            refused("x is not in scheduler_nodes_in_cluster [(]a, b, c[)]", "x")
            refused("a is the active scheduler node already", "a")
            cluster.cut.add("c")
            refused("c does not answer: no answer in time", seconds=14)
            cluster.cut.clear()
            cluster.kill_controller("c")
            refused("the controller on c does not write its record")
            refused("c is drained, by ann on b at .*: disks") if asfc.drain(
                cluster.worlds["b"], self.steering(cluster), "c", "disks") == 0 else self.fail()
            asfc.undrain(self.steering(cluster), "c")
            with self.assertRaisesRegex(asfc.RefusedError, "b does.* c does not answer"):
                cluster.cut.update("ac")
                cluster.kill_controller("b")
                asfc.switchover(self.steering(cluster), None)
            cluster.cut.clear()
            asfc.pause(cluster.worlds["b"], settings(), cluster.metadata, "new disks")
            refused("asfc is paused, by ann on b at .*: new disks: resume first")
            asfc.resume(cluster.worlds["b"], settings(), cluster.metadata)
            cluster.start_controller("c")
            cluster.stop_controller("a")
            cluster.clock.wait(0.5)
            cluster.kill_controller("b")
            cluster.kill_controller("c")
            cluster.clock.wait(5)
            refused("no controller is active")
            self.assertEqual((cluster.home(), cluster.starts), ("a", 1))
            self.assertIsNone(self.orders(cluster).wish)
        self.drive(play)

    def test_a_frozen_active_controller_and_a_second_wish_are_refused(self):
        def play(cluster):
            cluster.kill_controller("a")
            with self.assertRaisesRegex(asfc.RefusedError, "on a, does not write its heartbeat"):
                asfc.switchover(self.steering(cluster), "c")
            steering, record = self.steering(cluster), self.record(cluster)
            steering.ask(steering.wish("c", record, 60))
            with self.assertRaisesRegex(asfc.RefusedError, "switchover to c, .* is under way"):
                asfc.switchover(self.steering(cluster), "b")
            steering.cancel(self.orders(cluster).wish, "over")
            self.assertEqual(self.orders(cluster).wish[-3:], ("cancelled", "over", None))
            steering.ask(steering.wish("c", record, -1))   # of one who was killed, long ago
            steering.ask(steering.wish("b", record, 60))
            steering.cancel(self.orders(cluster).wish, "over")
        self.drive(play)

    def test_a_failover_leaves_a_node_without_power_as_soon_as_that_is_proved(self):
        def play(cluster):
            OperatorTest.power_off(cluster, "a")
            while self.record(cluster).holder == "a":
                cluster.clock.wait(1)
            began = cluster.clock.time
            asfc.drain(cluster.worlds["b"], self.steering(cluster), "c")
            asked = functools.partial(asfc.failover, cluster.worlds["b"], self.steering(cluster))
            for answers, words in ((None, "no terminal to ask on"), (["no"], "not confirmed")):
                cluster.worlds["b"].answers = answers
                with self.assertRaisesRegex(asfc.RefusedError, words):
                    asked("c", False)
            cluster.worlds["b"].answers = ["yes"]
            self.assertEqual(asked("c", False), 0)
            self.assertLess(cluster.clock.time - began, 90)
            self.assertEqual((cluster.home(), self.orders(cluster).drained), ("c", ()))
        _, said = self.drive(play)
        self.assertRegex(said, "proof: a: .*silent for 3. s, and within 29.5 s")

    def test_a_switchover_from_a_silent_node_is_refused_by_the_controller(self):
        def play(cluster):
            cluster.cut.add("a")
            cluster.stop_controller("a")
            cluster.clock.wait(8)
            self.assertEqual(asfc.switchover(self.steering(cluster), "c"), 75)
            cluster.cut.clear()
            self.assertEqual((cluster.home(), cluster.starts), ("a", 1))
        _, said = self.drive(play)
        self.assertRegex(said, "is refused: a scheduler may run where none can be stopped now: a: ")

    def test_a_start_that_fails_on_the_target_ends_where_one_can_be_started(self):
        def play(cluster):
            cluster.broken.add("c")
            self.assertEqual(asfc.switchover(self.steering(cluster), "c"), 1)
            cluster.clock.wait(60)
            self.assertEqual(cluster.home(), "a")
        _, said = self.drive(play)
        self.assertRegex(said, "is failed: the start on c failed: .* start command ended")

    def test_the_active_controller_lost_at_any_step_leaves_a_move_that_is_done_or_undone(self):
        """It is killed when the wish is written, or just after one of its sentences."""
        for words in ("the switchover", "moving the", "stopping the scheduler", "starting the",
                      "watching whether"):
            def play(cluster, words=words):
                steering = self.steering(cluster)
                steering.ask(steering.wish("c", self.record(cluster), 200))
                said = len(cluster.lines)
                while not any(words in line for line in cluster.lines[said:]):
                    cluster.clock.wait(0.05)
                    if words == "the switchover":
                        break
                cluster.kill_controller("a")
                steering.follow(self.orders(cluster).wish, 200)
                cluster.clock.wait(60)
                self.assertEqual((cluster.home(), cluster.starts), ("c", 2), words)
                self.assertEqual(self.orders(cluster).wish.outcome, "done", words)
            with self.subTest(words):
                self.drive(play, heartbeat_timeout=10)

    def test_when_nobody_does_it_or_ctrl_c_comes_it_is_cancelled(self):
        def play(cluster):
            sleep, world = cluster.worlds["b"].sleep, cluster.worlds["b"]
            steering = self.steering(cluster)
            cluster.controllers["a"].records.change_orders = lambda change: None
            with mock.patch.object(asfc, "carry_out_the_wish", lambda *_: None):   # an older asfc
                self.assertEqual(asfc.switchover(steering, "c", 60), 1)
                self.assertIn("nobody has done it in time", self.orders(cluster).wish.why)

                def interrupted(seconds):
                    if self.orders(cluster).open_wish:
                        raise KeyboardInterrupt
                    sleep(seconds)
                world.sleep = interrupted
                with self.assertRaises(KeyboardInterrupt), \
                        contextlib.redirect_stderr(io.StringIO()) as told:
                    asfc.switchover(steering, "c", 60)
            self.assertIn("asfc: cancelled", told.getvalue())
            self.assertIn("cancelled by ann on b", self.orders(cluster).wish.why)
            cluster.clock.wait(60)
            self.assertEqual((cluster.home(), cluster.starts), ("a", 1))
        self.drive(play)

    def test_metadata_that_is_away_for_a_while_ends_no_wait(self):
        def play(cluster):
            cluster.clock.call(cluster.clock.time + 5, lambda: setattr(
                cluster.metadata, "away", True))
            cluster.clock.call(cluster.clock.time + 13, lambda: setattr(
                cluster.metadata, "away", False))
            self.assertEqual(asfc.switchover(self.steering(cluster), "c"), 0)
        _, said = self.drive(play)
        self.assertEqual(said.count("the virtual metadata service is away; trying again"), 1)

    def test_a_drained_node_gives_its_scheduler_away_and_gets_none_until_it_is_undrained(self):
        def play(cluster):
            def drain(node, *words):
                return asfc.drain(cluster.worlds["b"], self.steering(cluster), node, *words)
            with self.assertRaisesRegex(asfc.RefusedError, "x is no node of this cluster"):
                drain("x")
            self.assertEqual(drain("c", "new disks"), 0)
            self.assertEqual(drain("a"), 0)
            self.assertEqual((cluster.home(), cluster.starts), ("b", 2))
            self.assertEqual(drain("b"), 1)
            cluster.clock.wait(60)
            self.assertEqual((cluster.home(), cluster.starts), ("b", 2), "it stays")
            cluster.kill_scheduler()
            cluster.clock.wait(60)
            self.assertEqual((cluster.home(), cluster.starts), ("", 2), "none may have it")
            self.assertEqual(asfc.undrain(self.steering(cluster), "c"), 0)
            self.assertEqual(asfc.undrain(self.steering(cluster), "c"), 0)
            cluster.clock.wait(60)
            self.assertEqual((cluster.home(), cluster.starts), ("c", 3))
        cluster, said = self.drive(play)
        for words in ("c is drained: no scheduler is started there until `undrain`.",
                      "asked for by ann on b, to drain a at ",
                      "b is drained, but the scheduler stays there for now: c is drained, by ann "
                      "on b at ", ": new disks; a is drained, by", "c may have the scheduler "
                      "again.", "c is not drained.\n"):
            self.assertIn(words, said)
        self.assertEqual([drain.node for drain in self.orders(cluster).drained], ["a", "b"])
        self.assertIn("c was undrained", OperatorTest.events(cluster))

    def test_a_drain_while_asfc_is_paused_moves_nothing(self):
        def play(cluster):
            asfc.pause(cluster.worlds["b"], settings(), cluster.metadata, "new disks")
            self.assertEqual(asfc.drain(cluster.worlds["b"], self.steering(cluster), "a"), 1)
            self.assertEqual((cluster.home(), cluster.starts), ("a", 1))
        _, said = self.drive(play)
        self.assertIn("the scheduler stays there for now: asfc is paused, by ann", said)

    def test_a_pause_that_comes_between_closes_the_wish(self):
        def play(cluster):
            steering = self.steering(cluster)
            steering.ask(steering.wish("c", self.record(cluster), 60))
            asfc.pause(cluster.worlds["b"], settings(), cluster.metadata, "")
            cluster.clock.wait(5)
            self.assertEqual(self.orders(cluster).wish[-3:], ("refused", "asfc is paused", None))
        self.drive(play)

    def test_each_verb_has_an_object_for_scripts(self):
        def play(cluster):
            steer = functools.partial(self.steering, cluster, True)
            world, said = cluster.worlds["b"], {}
            for name, play, status in (
                    ("switchover", lambda: asfc.switchover(steer(), "c", None, True), 0),
                    ("failover", lambda: asfc.failover(world, steer(), "b", True, None, True), 0),
                    ("drain", lambda: asfc.drain(world, steer(), "c", "", None, True), 0),
                    ("moved", lambda: asfc.drain(world, steer(), "b", "", None, True), 0),
                    ("stays", lambda: asfc.drain(world, steer(), "a", "", None, True), 1),
                    ("undrain", lambda: asfc.undrain(steer(), "c", True), 0)):
                with contextlib.redirect_stdout(io.StringIO()) as text:
                    self.assertEqual(play(), status, name)
                said[name] = json.loads(text.getvalue())
            found = said["switchover"]
            self.assertEqual([found[key] for key in ("verb", "origin", "target", "outcome")],
                             ["switchover", "a", "c", "done"])
            self.assertTrue(2.0 <= found["without_scheduler_s"] < 4.0)
            self.assertIn("stopped the scheduler on a", [one["what"] for one in found["events"]])
            self.assertEqual([(said[name]["outcome"], said[name]["target"], said[name]["node"])
                              for name in ("drain", "moved", "stays")],
                             [("done", "", "c"), ("done", "a", "b"), ("refused", "", "a")])
            self.assertEqual(said["failover"]["forced"], True)
            self.assertEqual(said["undrain"], {"verb": "undrain", "node": "c", "changed": True})
        self.drive(play)

    def test_a_mail_reminds_of_a_pause_or_a_drain_again_and_again_whoever_is_active(self):
        def play(cluster):
            asfc.drain(cluster.worlds["b"], self.steering(cluster), "c", "new disks")
            cluster.clock.wait(100)
            self.assertEqual(cluster.mails, [])
            cluster.kill_controller(cluster.active())
            cluster.clock.wait(120)
            self.assertEqual(len(cluster.mails), 2, cluster.mails)   # one of the takeover
            asfc.pause(cluster.worlds["b"], settings(), cluster.metadata, "")
            asfc.undrain(self.steering(cluster), "c")
            cluster.clock.wait(220)
            asfc.resume(cluster.worlds["b"], settings(), cluster.metadata)
            cluster.clock.wait(300)
            self.assertIsNone(self.orders(cluster).reminded_s)
        cluster, _ = self.drive(play, reminder_interval=180)
        self.assertEqual([mail.partition(" ")[2] for mail in cluster.mails][1:], [
            "asfc: a reminder, drained: c", "asfc: a reminder, asfc is paused"])

    def test_with_an_interval_of_0_nothing_reminds(self):
        def play(cluster):
            asfc.drain(cluster.worlds["b"], self.steering(cluster), "c")
            cluster.clock.wait(60)
        cluster, _ = self.drive(play, reminder_interval=0)
        self.assertEqual(cluster.mails, [])


class StatusBench:
    """The door to the world for `status`: three controllers write on, each by a wall clock of its
    own, while time is set by hand; the reader's is off by `off_s`."""
    AT = 1700000000
    CONFIGURATION = None

    def __init__(self):
        self.time, self.reads, self.off_s = 1000.0, 0, 0.0
        self.clocks = {"a": 0.0, "b": 0.0, "c": 0.0}   # by how much a controller's is off
        self.died_at = {}
        self.away = False
        self.environ = {}
        self.cluster = asfc.ClusterRecord(
            "id", 3, 4, holder="a", instance="ia", heartbeat_timeout=30.0, clock_s=500.0,
            possible_nodes=("a",), assigned=True, started=True, alive_at_s=495.0)
        gate = asfc.Gate(asfc.Pair(3, 4), "ia", "id", "a")
        self.nodes = {name: asfc.NodeRecord(
            name, "i" + name, 7, gate, "running" if name == "a" else "stopped", "its process list "
            "shows none", (asfc.Process(7, 1, 1, 7, 0, ""),) if name == "a" else (),
            promise_s=29.5, version=asfc.__version__) for name in "abc"}
        self.more = {}   # other records
        self.configuration = StatusBench.CONFIGURATION = StatusBench.CONFIGURATION or configured(
            "scheduler_nodes_in_cluster = a, b, c")

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds

    def environment(self):
        return self.environ

    def text_of(self, off_s, at=None):
        seconds = self.AT + (self.time if at is None else at) + off_s
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))

    def utc_text(self):
        return self.text_of(self.off_s)

    def written(self, name):
        """When a controller last wrote, and as which version: every 3 s, until it died."""
        writes = int(min(self.time, self.died_at.get(name, self.time)) // 3)
        return 3 * writes, writes

    def read_all(self):
        self.reads += 1
        if self.away:
            raise asfc.MetadataError("the database is away")
        found = dict(self.more)
        for name, record in self.nodes.items():
            at, version = self.written(name)
            record = record._replace(written_at=self.text_of(self.clocks[name], at))
            found["node/" + name] = asfc.Record(version, record.to_text())
        if self.cluster:
            holder = self.cluster.holder or "a"
            at, version = self.written("cluster" if "cluster" in self.died_at else holder)
            cluster = self.cluster._replace(heartbeat_at=self.text_of(self.clocks[holder], at))
            found["cluster"] = asfc.Record(version, cluster.to_text())
        return found

    def judge(self, beats=None):
        beats = beats or self.beats()
        beats.read()
        return asfc.judge_status(beats, self.configuration)

    def beats(self):
        return asfc.Beats(self, self.configuration, self)

    def node(self, name, **fields):
        self.nodes[name] = self.nodes[name]._replace(**fields)

    def change(self, **fields):
        self.cluster = self.cluster._replace(**fields)

    def says(self, node="a", term=3, sentence="no action", **unanswered):
        self.more["status"] = asfc.Record(1, asfc.StatusRecord(
            node, term, self.text_of(0), sentence, unanswered).to_text())


class ClusterStatusTest(unittest.TestCase):
    SILENT = "[abc]: its controller is silent, its last record is .* old: "
    # What is done to a healthy cluster, the level, and what the problems are.
    CASES = {
        "healthy": (lambda bench: None, asfc.FINE, ()),
        "a standby is dead": (
            lambda bench: bench.died_at.update(c=900.0), asfc.DEGRADED, (SILENT,)),
        "the scheduler's node is dead, and the active one has seen it lately": (
            lambda bench: (bench.died_at.update(b=900.0), bench.change(possible_nodes=("b",)),
                           bench.node("a", state="stopped", mains=()), bench.says()),
            asfc.DEGRADED, (SILENT,)),
        "the same, and the active one says that it waits": (
            lambda bench: (bench.died_at.update(b=900.0), bench.change(possible_nodes=("b",)),
                           bench.node("a", state="stopped", mains=()),
                           bench.says(sentence="waiting: a scheduler may run on b")),
            asfc.DOWN, ("no scheduler is known to run", SILENT)),
        "a standby is dead that the active one still reaches by ssh": (
            lambda bench: (bench.died_at.update(c=900.0), bench.says()), asfc.DEGRADED, (SILENT,)),
        "all standbys are dead": (
            lambda bench: bench.died_at.update(b=900.0, c=900.0), asfc.DEGRADED,
            ("no node is on standby", SILENT, SILENT)),
        "the active one is dead, its scheduler lives on or not": (
            lambda bench: bench.died_at.update(a=900.0), asfc.DOWN,
            ("a was active and sends no heartbeat", "no scheduler is known to run", SILENT)),
        "the heartbeat alone has stopped": (
            lambda bench: bench.died_at.update(cluster=900.0), asfc.DOWN,
            ("a was active and sends no heartbeat", "a: it holds the lease and sends no")),
        "nobody is active": (
            lambda bench: bench.change(holder=""), asfc.DOWN, ("no controller is active",)),
        "nobody ever was": (
            lambda bench: setattr(bench, "cluster", None), asfc.DOWN,
            ("no controller has ever been active",)),
        "the controller of the scheduler's node is dead, the active one sees the scheduler": (
            lambda bench: (bench.change(holder="b"), bench.died_at.update(a=900.0)),
            asfc.DEGRADED, (SILENT,)),
        "the scheduler's node is dead": (
            lambda bench: (bench.change(holder="b", alive_at_s=430.0),
                           bench.died_at.update(a=900.0)),
            asfc.DOWN, ("no scheduler is known to run", SILENT)),
        "no scheduler runs": (
            lambda bench: bench.node("a", state="stopped", mains=()), asfc.DOWN,
            ("no scheduler is known to run",)),
        "it is being started": (
            lambda bench: bench.node("a", state="unknown", mains=(), intent=True), asfc.DOWN,
            ("the scheduler is only being started on a",)),
        "two run": (
            lambda bench: bench.node("b", state="running"), asfc.DOWN,
            ("schedulers run on a and b",)),
        "two run on one node": (
            lambda bench: bench.node("a", mains=bench.nodes["a"].mains * 2), asfc.DEGRADED,
            ("a: 2 schedulers run here: pids 7, 7",)),
        "a standby does not answer the active one": (
            lambda bench: bench.says(c="ssh: no answer in time"), asfc.DEGRADED,
            ("c: the active controller gets no clear answer: ssh: no answer in time",)),
        "a standby did not answer in a reign that is over": (
            lambda bench: bench.says("b", 2, c="ssh: no answer in time"), asfc.FINE, ()),
        "a node promises nothing": (
            lambda bench: bench.node("b", promise_s=None, no_promise="it may not"), asfc.DEGRADED,
            ("b: it promises nothing, so its silence would prove nothing: it may not",)),
        "paused, so nobody promises anything": (
            lambda bench: (bench.change(paused="by ann: disks"), [
                bench.node(name, promise_s=None, no_promise="asfc is paused") for name in "abc"]),
            asfc.DEGRADED, ("asfc is paused by ann: disks",)),
        "a controller was stopped in order": (
            lambda bench: (bench.node("c", promise_s=None, no_promise=asfc.STOPPED_IN_ORDER),
                           bench.died_at.update(c=900.0)),
            asfc.DEGRADED, ("c: its controller was stopped at .*: start it again",)),
        "a node never had a controller": (
            lambda bench: bench.nodes.pop("c"), asfc.DEGRADED, ("c: no controller has ever run",)),
        "a record is of a newer version": (
            lambda bench: (bench.nodes.pop("c"), bench.more.update(
                {"node/c": asfc.Record(1, '{"format": 9}')})), asfc.DEGRADED,
            ("c: its controller is silent, its last record is >7 s old",))}
    # These need no second look.
    AT_ONCE = ("healthy", "nobody is active", "nobody ever was",
               "a controller was stopped in order", "no scheduler runs", "it is being started",
               "a node never had a controller", "paused, so nobody promises anything",
               "a node promises nothing")

    def test_a_drained_node_is_told_and_a_damaged_record_of_orders_is_none(self):
        drain = asfc.Drain("b", "eve@a", "noon", "a new kernel")
        wish = asfc.Wish("1", "switchover", "b", "eve@a", "noon", 5.0)
        text = asfc.Orders((drain,), wish).to_text()
        records = {"orders": asfc.Record(1, text)}
        self.assertEqual(asfc.drain_remarks("b", records),
                         ["drained, by eve@a at noon: a new kernel"])
        self.assertEqual(asfc.drain_remarks("a", records), [])
        for damaged in ("[]", text.replace("5.0", '"x"'),
                        text.replace('"format": 1', '"format": 9')):
            records = {"orders": asfc.Record(2, damaged)}
            self.assertRaises(asfc.MetadataError, asfc.Orders.of, records)
            self.assertEqual(asfc.drain_remarks("b", records), [])

    def test_the_level_and_what_is_wrong(self):
        for name, (change, level, problems) in self.CASES.items():
            for off in ({}, {"a": 3600.0}, {"b": -3600.0, "c": 3600.0}, {"reader": 3600.0}):
                with self.subTest(name, off=off):
                    bench = StatusBench()
                    bench.clocks.update({node: by for node, by in off.items() if node in "abc"})
                    bench.off_s = off.get("reader", 0.0)
                    change(bench)
                    status = bench.judge()
                    told = [text for _, text in status.problems]
                    self.assertEqual((status.level, len(told)), (level, len(problems)), told)
                    for text, pattern in zip(told, problems):
                        self.assertRegex(text, "^" + pattern)
                    self.assertLess(bench.time, 1000 + 3 + 3 + 1 + 2)
                    if name in self.AT_ONCE and not off:
                        self.assertEqual(bench.reads, 1)

    def test_a_dead_controller_whose_clock_makes_it_look_fresh_is_found_by_the_next_look(self):
        """Its clock was ahead by just the time for which it is dead. A watch goes on looking."""
        bench = StatusBench()
        bench.clocks["c"], bench.died_at["c"] = 100.0, 900.0
        beats = bench.beats()
        self.assertEqual(bench.judge(beats=beats).level, asfc.FINE)
        bench.time += 20
        self.assertEqual(bench.judge(beats=beats).level, asfc.DEGRADED)
        bench.died_at.clear()
        bench.time += 2
        self.assertEqual(bench.judge(beats=beats).level, asfc.FINE)

    def test_a_watch_needs_no_second_look_for_what_it_has_seen_before(self):
        bench = StatusBench()
        bench.off_s, bench.died_at["c"] = -500.0, 900.0
        beats = bench.beats()
        for reads in (8, 1, 1):
            before = bench.reads
            self.assertEqual(bench.judge(beats=beats).level, asfc.DEGRADED)
            self.assertLessEqual(bench.reads - before, reads)
            bench.time += 2

    def test_two_records_that_tell_of_a_scheduler_are_read_again_before_that_is_believed(self):
        bench = StatusBench()
        bench.node("b", state="running")
        look = bench.read_all

        def moved():
            if bench.reads:
                bench.node("a", state="stopped", mains=())
            return look()
        bench.read_all = moved
        bench.change(possible_nodes=("b",))
        self.assertEqual(bench.judge().level, asfc.FINE)

    def remarks(self, bench, node="b"):
        return next(one.remarks for one in bench.judge().nodes if one.node == node)

    def test_remarks_tell_what_else_matters_of_a_node(self):
        bench = StatusBench()
        self.assertEqual(self.remarks(bench), ())
        by = "ann on c confirmed that it is powered off"
        bench.change(possible_nodes=("b", "a"), vouched=(asfc.Vouch("b", 1, by),),
                     failed=(asfc.FailedNode("b", 540.0, 60.0, "it died"),
                             asfc.FailedNode("a", 540.0, 60.0, "of another node"),
                             asfc.FailedNode("b", 499.0, 60.0, "long ago")))
        bench.node("b", version="1.9", fenced="12:00 UTC: cut off", state="unknown",
                   reason="no ps there")
        bench.clocks["b"] = -7200.0
        self.assertEqual(self.remarks(bench), (
            "its scheduler: no ps there", "passed over for 40 s more: it died", by,
            "a scheduler may still be alive or start here: the opposite is not proved yet",
            "fenced itself last at 12:00 UTC", "its clock and this host's differ by 2 h",
            "asfc is version {} on this host and 1.9 on b".format(asfc.__version__)))
        bench = StatusBench()
        bench.configuration = bench.configuration._replace(node_name="b")
        bench.node("b", version="1.9", settings={"heartbeat_timeout": 40.0, "poll_frequency": 10.0})
        self.assertEqual(self.remarks(bench), (
            "its controller has not taken over what is new in airflow.cfg: heartbeat_timeout. "
            "Reload it (SIGHUP); its log says what needs a restart",
            "its controller is version 1.9 still, and {} stands here: restart it".format(
                asfc.__version__)))
        bench = StatusBench()
        bench.nodes["d"] = bench.nodes["c"]._replace(node="d")
        bench.clocks["d"] = 0.0
        self.assertEqual(self.remarks(bench, "d"),
                         ("it is not in scheduler_nodes_in_cluster of this host",))
        bench.died_at["d"] = 900.0
        self.assertEqual([one.node for one in bench.judge().nodes], ["a", "b", "c"])

    def test_since_when_the_scheduler_runs_is_what_its_first_sight_since_the_last_start_tells(self):
        def event(number, what):
            return asfc.HistoryEvent("at {}".format(number), "x", 1, 1, what)
        for whats, since in (
                ([], ""), (["the scheduler runs on a"], "at 0"),
                (["the scheduler runs on a", "starting the scheduler on a",
                  "the scheduler runs on a", "active failover node", "the scheduler runs on a",
                  "paused"], "at 2"),
                (["the scheduler runs on a", "the scheduler runs on b",
                  "the scheduler runs on a"], "at 2"),
                (["the scheduler runs on a", "the scheduler is not seen to run any more",
                  "the scheduler runs on a"], "at 2"),
                (["the scheduler runs on a", "moving the scheduler to b",
                  "starting the scheduler on b", "moving the scheduler to a",
                  "starting the scheduler on a"], ""),
                (["the scheduler runs on b"], "")):
            events = [event(*numbered) for numbered in enumerate(whats)]
            self.assertEqual(asfc.running_since("a", events), since, whats)

    def test_the_text_has_80_columns_whatever_the_names_are(self):
        bench = StatusBench()
        name = "airflow-scheduler-01.eu-west.internal.example.org"
        bench.nodes[name] = bench.nodes.pop("c")._replace(
            node=name, gate=asfc.Gate(asfc.Pair(1234, 567), "x", "id", name))
        bench.clocks[name] = 0.0
        bench.change(possible_nodes=("b", name), paused="by ann: " + "new disks and " * 20)
        bench.says(sentence="waiting: " + "a long reason, " * 30)
        bench.more["history"] = asfc.Record(1, asfc.history_text([asfc.HistoryEvent(
            bench.text_of(0), "a", 3, 4, "starting the scheduler on a", "a reason " * 30,
            "a proof " * 30, 7.21)]))
        bench.change(failed=(asfc.FailedNode("b", 540.0, 60.0, "a long story " * 20),))
        lines = asfc.status_lines(bench.judge(), False)
        self.assertLessEqual(max(map(len, lines)), 80)
        self.assertEqual(lines[lines.index(name) + 1].split(),
                         ["standby", "1234.567", "stopped", "1", "s", "29.5", "s",
                          asfc.__version__])
        text = "\n".join(lines)
        for words in ("WARNING: asfc is paused by ann: new disks", "says:        waiting: a long",
                      "possible: b, " + name, "why: a reason", "proof: a proof",
                      "time: 7.2 s without a scheduler", "  - the scheduler dies: 23 s + s",
                      "since 2023-11-14 22:30:00 UTC"):
            self.assertIn(words, text)
        self.assertNotIn("\x1b", text)
        self.assertIn("\x1b[33m", "\n".join(asfc.status_lines(bench.judge(), True)))


class CheckupTest(unittest.TestCase):
    """What `check` makes of a node's answers, which are written here as the script writes them."""

    def configure(self, section="", **more):
        return configured("scheduler_nodes_in_cluster = a, b, c\nalert_to_email = me@example.org\n"
                          + section, **more)

    def checkup(self, lines=None, looks=None, section="", records=None, read_s=0.1, look_s=0.2):
        """A checkup on a: by node what the script answers, None for no answer, likewise a look."""
        answers = {"check": lines or {}, "look": looks or {}}
        self.asked = []

        def run(commands):
            results = []
            for command in commands:
                request = command.request
                self.asked.append((request.verb, request.node, command))
                told = answers[request.verb].get(request.node, [])
                if told is None or isinstance(told, str):
                    results.append(asfc.CommandResult(None if told is None else 255, "", told or "",
                                                      "" if told else "no answer in time"))
                    continue
                if not any(line.startswith("host ") for line in told):
                    told = ["host " + request.node] + told
                told = ["node " + request.node] + told + ["end"]
                results.append(asfc.CommandResult(0, "".join(
                    "asfc {} {}\n".format(request.nonce, line) for line in told), "", "", look_s))
            return results
        configuration = self.configure(section)
        world = FilesInMemory({})
        world.run = run
        bench = LeaseBench()
        metadata = VirtualMetadata(bench)
        bench.clock = argparse.Namespace(
            wait=lambda seconds: setattr(bench, "time", bench.time + read_s / 2))
        world.now = bench.now
        metadata.records = records or {}
        metadata.check = lambda: "Virtual 1.0"
        checkup = asfc.Checkup(world, configuration, metadata, asfc.Nodes(world, configuration))
        checkup.run()
        return checkup

    def found(self, *arguments, **named):
        return ["{} {}: {}".format(*one[:3]) for one in self.checkup(*arguments, **named).findings]

    def test_nothing_is_found_where_all_is_well_and_the_times_tell_of_their_margin(self):
        checkup = self.checkup({"b": ["peer c well", "peer a well", "unit airflow-scheduler "
                                      "LoadState=not-found Restart=no UnitFileState="]})
        self.assertEqual(checkup.findings, [])
        self.assertEqual([(one.what, round(one.seconds, 2), one.limit_s)
                          for one in checkup.timings], [
            ("metadata operation", 0.1, 3.0), ("query of a", 0.2, 5.0), ("query of b", 0.2, 5.0),
            ("query of c", 0.2, 5.0), ("1.1 x (2/3 h + m)", 25.3, 30.0),
            ("2 x (i + m + 1 s)", 14.0, 20.0)])
        lines = asfc.checkup_lines(checkup)
        self.assertLessEqual(max(map(len, lines)), 80)
        self.assertIn("2 x (i + m + 1 s)         14.00 s  20.00 s    6.00 s  2/3 h", lines)
        self.assertEqual(lines[-1], "0 problems, 0 warnings")
        self.assertEqual({verb for verb, _, _ in self.asked}, {"look", "check"})

    def test_each_node_that_answers_is_told_to_ask_the_others(self):
        self.checkup(looks={"c": None})
        asked = {node: asfc.base64.b64decode(re.search("asfc-check@[abc]'? (.*)", " ".join(
            command.argv)).group(1).replace(" ", "").replace("'", "")).decode()
                 for verb, node, command in self.asked if verb == "check"}
        self.assertEqual(sorted(asked), ["a", "b"])
        self.assertIn("\npeers=''\n", asked["a"])
        self.assertIn("\npeers='c a'\n", asked["b"])
        self.assertIn("StrictHostKeyChecking=yes", asked["b"])
        self.assertNotIn("airflow.db", asked["b"])

    CASES = (
        ({"looks": {"c": None}}, ["PROBLEM c: no answer in time"]),
        ({"looks": {"c": ["lacks its PATH has no flock"]}}, [
            "PROBLEM c: its PATH has no flock"]),
        ({"lines": {"b": None}}, ["PROBLEM b: it did not answer the script of `check` within 17"]),
        ({"lines": {"b": ["peer c 255 root@c: Permission denied (publickey)."]}}, [
            "PROBLEM b: from there c can't be asked: ssh: permission denied: as the user that runs "
            "asfc, run `ssh-copy-id c`"]),
        ({"lines": {"b": ["peer c 124 "]}}, ["PROBLEM b: from there c can't be asked: no answer"]),
        ({"lines": {"b": ["airflow airflow: not found in /bin"]}}, [
            "PROBLEM b: asfc's own start would fail there: airflow: not found in /bin"]),
        ({"lines": {"b": ["unwritable logging_dir /root/x"]}}, [
            "PROBLEM b: logging_dir: /root/x can't be made or written there"]),
        ({"lines": {"b": ["secrets 644"]}}, [
            "WARNING b: airflow.cfg holds passwords, and everybody there can read it .mode 644"]),
        ({"lines": {"b": ["missing client mysql mariadb"]}}, [
            "PROBLEM b: client: there is no mysql mariadb on the PATH"]),
        ({"lines": {"b": ["denied airflow_scheduler_stop_command sudo: a password is required"]}},
         ["PROBLEM b: airflow_scheduler_stop_command: sudo does not allow it there without"]),
        ({"looks": {"b": ["directory x"], "c": ["directory x"]}}, [
            "PROBLEM c: its state directory is the one of b, too"]),
        ({"lines": {"c": ["host b"]}}, ["PROBLEM c: it is the same host as b"]),
        ({"lines": {"c": ["peer a what is this?"]}}, ["PROBLEM c: its answer is damaged"]),
        ({"look_s": 2.6}, ["WARNING timing: a query of {} took 2.60 s, more than half of its "
                            "limit, 5 s".format(node) for node in "abc"]),
        ({"read_s": 1.6}, ["WARNING timing: a metadata operation took 1.60 s"]),
        ({"records": {"cluster": asfc.Record(1, '{"format": 9}')}}, [
            "PROBLEM metadata: the record 'cluster' has format 9"]),
        ({"records": {"node/b": asfc.Record(1, asfc.NodeRecord(
            "b", "x", version="1.0", state_dir_id="y", state_dir="~/.asfc", no_promise="no rights",
            settings={"poll_frequency": 60.0}).to_text())}}, [
                "PROBLEM b: its state directory, as a login by ssh finds it, is not its own",
                "WARNING b: asfc is version {} on a and 1.0 on b".format(asfc.__version__),
                "WARNING b: poll_frequency is 10.0 on a and 60.0 on b",
                "WARNING b: it promises nothing: no rights"]),
        ({"section": "poll_frequenzy = 3"}, ["WARNING configuration: .*did you mean poll_freq"]),
        ({"looks": {"b": ["foreign 7 1 1 7 1234 airflow scheduler"]}}, [
            "WARNING b: a scheduler of another user .uid 1234. runs there, pid 7"]))

    def test_what_is_wrong_is_found_and_nothing_else(self):
        for arguments, patterns in self.CASES:
            with self.subTest(arguments):
                found = self.found(**arguments)
                self.assertEqual(len(found), len(patterns), found)
                for text, pattern in zip(found, patterns):
                    self.assertRegex(text, "^" + pattern)

    def test_commands_that_can_not_work_are_told_from_their_texts(self):
        start, stop = "sudo systemctl restart airflow-scheduler", \
            "sudo systemctl stop airflow-scheduler"
        for texts, words in (
                (("", ""), ""), ((start, stop), ""), ((start, ""), "same unit"),
                (("", stop), ""), (("sudo service x start", "sudo service x stop"), ""),
                ((start, stop.replace("airflow-", "x-")), "same unit"),
                (("sudo -u airflow airflow scheduler", ""), "stays in the foreground"),
                (("sudo -u airflow airflow scheduler -D", ""), ""),
                (("sudo -u airflow nohup airflow scheduler > /dev/null 2>&1 &", ""), ""),
                (("~/bin/start-scheduler", "~/bin/stop-scheduler"), "")):
            configuration = self.configure(
                "airflow_scheduler_start_command = {}\nairflow_scheduler_stop_command = {}".format(
                    *texts))
            found = "\n".join(one.text for one in asfc.judge_commands(configuration))
            self.assertEqual(bool(found), bool(words), (texts, found))
            self.assertIn(words, found)
        self.assertEqual([one.where for one in asfc.judge_commands(configured())],
                         ["alert_to_email"])
        for text, program, words in (
                (start, "systemctl", "systemctl restart airflow-scheduler"),
                ("sudo -n -u airflow /opt/x", "/opt/x", "-n -u airflow /opt/x"),
                ("nohup airflow scheduler &", "nohup", ""), ("", "", ""),
                ("sudo x; y", "", ""), ("export A=1; airflow scheduler", "", ""),
                ("A=1 x", "", "")):
            self.assertEqual((asfc.first_program(text), asfc.sudo_words(text)), (program, words))

    def test_a_unit_that_fights_asfc_is_found(self):
        for own, line, words in (
                ("sched", "sched LoadState=loaded Restart=no UnitFileState=disabled", ""),
                ("sched", "sched LoadState=loaded Restart=always UnitFileState=disabled",
                 "Restart=always"),
                ("sched", "sched LoadState=loaded Restart=no UnitFileState=enabled-runtime",
                 "enabled"),
                ("sched", "sched LoadState=not-found Restart=no UnitFileState=", "there is none"),
                ("", "airflow-scheduler LoadState=not-found Restart=no UnitFileState=", ""),
                ("", "airflow-scheduler LoadState=loaded Restart=always UnitFileState=disabled",
                 ""),
                ("", "airflow-scheduler LoadState=loaded Restart=always UnitFileState=enabled",
                 "is enabled"),
                ("", "runs LoadState=loaded Restart=always UnitFileState=disabled",
                 "the unit runs has Restart=always"),
                ("sched", "runs LoadState=loaded Restart=no UnitFileState=disabled", "")):
            found = asfc.judge_unit("b", line, own, line.startswith("runs"))
            self.assertEqual([one.level for one in found], ["PROBLEM"] * bool(words), line)
            self.assertIn(words, "".join(one.text for one in found))

    def test_the_script_tells_of_units_and_parents_as_they_are_judged(self):
        """With a /proc and a systemctl that are made up, for no test can have a systemd."""
        directory = tempfile.mkdtemp(prefix="asfc-test-")
        self.addCleanup(shutil.rmtree, directory)
        for path, content in (
                ("1/comm", "systemd\n"), ("7/stat", "7 (air (x) flow) S 6 7 7\n"),
                ("7/cgroup", "12:cpu:/x\n1:name=systemd:/system.slice/other.service\n0::/y\n"),
                ("6/cmdline", "/bin/sh\0-c\0airflow\n scheduler\0"), ("8/stat", "8 (a) S 1 8 8\n"),
                ("8/cgroup", "0::/user.slice/user@7.service/app.slice/mine.service\n"),
                ("1/cmdline", "/sbin/init\0"), ("9/stat", "9 (a) S 1 9 9\n"),
                ("9/cgroup", "0::/system.slice/cron.service\n")):
            os.makedirs(os.path.dirname(os.path.join(directory, path)), exist_ok=True)
            write_file(os.path.join(directory, path), content)
        write_program(os.path.join(directory, "systemctl"), textwrap.dedent("""\
            #!/bin/sh
            case "$*" in
            "show sched "*) pid=0;; "show other "*) pid=6;; "show --user mine "*) pid=8;;
            "show cron "*) pid=5;; *) exit 1;;
            esac
            printf 'LoadState=loaded\\nMainPID=%s\\nRestart=no\\nUnitFileState=\\n' "$pid"
            """))
        script = asfc.check_script({
            "nonce": "n", "unit": "sched", "pids": "7 8 9 10", "state_dir": directory + "/x/y",
            "logging_dir": directory + "/systemctl/z", "own_log": "/", "cfg": "", "clients": "",
            "ssh_program": "", "programs": "x=sh y=no/such", "sudo_start": "", "sudo_stop": "",
            "probe": "", "peers": "a b c d e", "peer_limit": "5",
            "ssh": "sh -c 'case $0 in c) echo no >&2; exit 3;; esac; echo asfc-check'"})
        done = subprocess.run(["sh", "-c", script.replace("/proc/", directory + "/").replace(
            directory + "/sys/", "/proc/sys/")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True, env={"PATH": directory + ":" + os.environ["PATH"]})
        shown = " LoadState=loaded MainPID={} Restart=no UnitFileState= ".format
        lines = [line.strip() for line in done.stdout.splitlines()]
        self.assertEqual(sorted(lines[1:-1]), sorted("asfc n " + line.strip() for line in (
            "unit sched" + shown(0), "runs other" + shown(6), "runs mine" + shown(8),
            "missing y no/such", "unwritable logging_dir " + directory + "/systemctl/z",
            "process 7 6 /system.slice/other.service /bin/sh -c airflow  scheduler",
            "process 8 1 /user.slice/user@7.service/app.slice/mine.service /sbin/init",
            "process 9 1 /system.slice/cron.service /sbin/init",
            "peer a well", "peer b well", "peer c 3 no", "peer d well", "peer e well")), done)
        self.assertEqual((lines[-1], done.stderr), ("asfc n end", ""))

    def test_a_scheduler_that_somebody_else_has_started_is_told_with_its_parent_or_unit(self):
        own = "airflow_scheduler_start_command = sudo systemctl restart sched"
        session = "/user.slice/user-1000.slice/session-7.scope"
        for section, line, words in (
                ("", "7 1 / init", ""), ("", "7 1 {} /sbin/init".format(session), ""),
                ("", "7 1 /system.slice/asfc.service /usr/lib/systemd/systemd", ""),
                ("", "7 1 /system.slice/ssh.service systemd", ""),
                ("", "7 1 /user.slice/user-7.slice/user@7.service/app.slice/x.scope systemd", ""),
                ("", "7 6 {} bash -c airflow scheduler".format(session), ""),
                ("", "7 1 /system.slice/airflow-scheduler.service /sbin/init",
                 "unit airflow-scheduler.service"),
                (own, "7 1 /system.slice/sched.service /sbin/init", ""),
                (own, "7 1 /system.slice/other.service /sbin/init", "unit other.service"),
                ("", "7 6 {} -bash".format(session), "parent is pid 6, -bash"),
                ("", "7 6 / /usr/bin/python3 /usr/bin/supervisord -n", "supervisord"),
                ("", "7 6 /system.slice/cron.service /bin/sh -c airflow scheduler",
                 "unit cron.service")):
            found = asfc.judge_parent("b", line, self.configure(section), section and "sched")
            self.assertEqual(bool(found), bool(words), line)
            self.assertIn(words, "".join(one.text for one in found))


class DryRunTest(unittest.TestCase):
    def dry_run(self, cluster):
        world = VirtualWorld(cluster, "b")
        world.airflow_cfg = "[scheduler_failover]\nscheduler_nodes_in_cluster = a, b, c\n"
        configuration = asfc.Configuration.load(world, "/airflow.cfg")
        log = logging.Logger("dry run", logging.INFO)
        log.addHandler(VirtualLog(cluster, "dry"))
        return asfc.DryRun(world, configuration, cluster.metadata,
                           asfc.Nodes(world, configuration), log)

    def test_it_decides_what_the_active_controller_decides_and_changes_nothing(self):
        cluster = VirtualCluster(4)
        sentences = []

        def compare(run, seconds):
            for _ in range(int(seconds) // 10):
                run.turn()
                cluster.clock.wait(10)
            active = cluster.controllers[cluster.active()[0]]
            sentences.append((active.announcer.sentence, run._told[0]))

        def play():
            run = self.dry_run(cluster)
            run.turn()
            self.assertEqual(cluster.metadata.records, {})
            self.assertEqual([model.gate for model in cluster.models.values()], [None] * 3)
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(60)
            versions = self.versions(cluster)
            gates = [model.gate for model in cluster.models.values()]
            compare(run, 60)
            self.assertEqual([model.gate for model in cluster.models.values()], gates)
            self.assertEqual(self.versions(cluster), versions)
            cluster.cut.add("c")
            cluster.kill_controller("c")
            self.say_paused(cluster, "by ann")
            compare(run, 30)
            self.say_paused(cluster, "")
            compare(run, 60)
        cluster.clock.drive(play)
        for real, dry in sentences:
            self.assertEqual(dry, real)
        self.assertIn("PAUSED (by ann)", sentences[1][0])
        told = [line for line in cluster.lines if " dry dry run: " in line]
        self.assertIn("moving the scheduler to a", told[0])
        self.assertIn("would change the record: assigned = True; possible_nodes = b, c, a; "
                      "started = False, in a new move", told[1])

    @staticmethod
    def versions(cluster):
        """What controllers don't write at each heartbeat."""
        record = asfc.cluster_record(cluster.metadata.records)
        return record.pair, record.possible_nodes, sorted(cluster.metadata.records)

    @staticmethod
    def say_paused(cluster, words):
        cluster.metadata.change_cluster(
            lambda records: asfc.cluster_record(records)._replace(paused=words))

    def test_it_follows_a_silence_to_its_end_and_keeps_the_observation(self):
        cluster = VirtualCluster(4)

        def play():
            for name in cluster.models:
                cluster.start_controller(name)
            cluster.clock.wait(120)
            run = self.dry_run(cluster)
            run.turn()
            for name in "bc":
                cluster.stop_controller(name)
            cluster.clock.wait(10)
            OperatorTest.power_off(cluster, "a")
            for _ in range(5):
                cluster.clock.wait(10)
                run.turn()
            return run._told, run.observe()
        told, seen = cluster.clock.drive(play)
        self.assertIn("moving the scheduler to ", told[0])
        self.assertIn("silent for", told[0])
        self.assertEqual(asfc.Observation.from_text(seen.to_text()), seen)

    def test_the_active_controller_logs_an_observation_only_with_a_new_sentence(self):
        cluster = VirtualCluster(4)

        def play():
            for name in cluster.models:
                cluster.start_controller(name)
                cluster.controllers[name]._log.setLevel(logging.DEBUG)
            cluster.clock.wait(300)
        cluster.clock.drive(play)
        found = [line.partition("observation: ")[2] for line in cluster.lines
                 if " a observation: " in line]
        sentences = [asfc.decide(asfc.Observation.from_text(text), settings()).sentence
                     for text in found]
        self.assertGreater(len(sentences), 3)
        self.assertEqual([one for one, _ in itertools.groupby(sentences)], sentences)
        self.assertIn("no action", sentences[-1])



class CommandLineTest(unittest.TestCase):
    """The verbs as child processes, on a configuration with one node and a SQLite file."""

    @classmethod
    def setUpClass(cls):
        """Compile asfc.py once: if each child did, that would be most of what it does."""
        directory = tempfile.mkdtemp(prefix="asfc-test-")
        cls.program = py_compile.compile(asfc.__file__, os.path.join(directory, "asfc.pyc"))

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(os.path.dirname(cls.program))

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="asfc-test-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = os.path.join(self.directory, "airflow.cfg")
        self.bin = os.path.join(self.directory, "bin")
        os.mkdir(self.bin)
        write_ps(os.path.join(self.bin, "ps"), self.directory)
        self.environment = {name: text for name, text in os.environ.items()
                            if not name.startswith("AIRFLOW")}
        self.environment.update(HOME=self.directory, PATH=self.bin + ":" + os.environ["PATH"])
        self.configure()

    def configure(self, **keys):
        keys = dict({"scheduler_nodes_in_cluster": "here", "node_name": "here",
                     "poll_frequency": 1, "heartbeat_timeout": 8}, **keys)
        write_file(self.path, "[core]\nsql_alchemy_conn = sqlite:///{}/airflow.db\n".format(
            self.directory) + own("\n".join("{} = {}".format(*item) for item in keys.items())))

    def run_asfc(self, *words):
        child = subprocess.Popen([sys.executable, self.program] + list(words),
                                 env=self.environment, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, universal_newlines=True)
        out, err = child.communicate()
        self.assertNotIn("Traceback", err)
        return child.returncode, out, err

    def verb(self, *words):
        return self.run_asfc(*(words + ("--config", self.path)))

    def metadata(self):
        return asfc.metadata_service(asfc.World(), asfc.Configuration.load(asfc.World(), self.path))

    def start(self):
        log = open(os.path.join(self.directory, "stderr"), "a+")
        self.addCleanup(log.close)
        child = subprocess.Popen([sys.executable, self.program, "start", "--config", self.path],
                                 env=self.environment, stderr=log)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.addCleanup(end_processes_with, self.directory)
        return child

    def log(self):
        return read_file(os.path.join(self.directory, "stderr"))

    def test_the_verbs_that_need_no_cluster(self):
        self.assertEqual(self.run_asfc("version")[:2], (
            0, "Scheduler Failover Controller Version: {}\n".format(asfc.__version__)))
        self.assertEqual(self.run_asfc("get_current_host")[:2],
                         (0, "current host: {}\n".format(socket.gethostname())))

    def test_options_stand_before_or_after_the_verb(self):
        for words in (("--config", self.path, "metadata"), ("metadata", "--config", self.path),
                      ("-venv", "/v/bin/activate", "metadata", "--config", self.path),
                      ("--venv=/v/bin/activate", "--config", self.path, "metadata")):
            self.assertEqual(self.run_asfc(*words)[0], 0, words)

    def test_a_wrong_command_line_ends_with_status_2_and_the_usage(self):
        for words in ((), ("no_such_verb",), ("metadata", "--no-such-option"), ("start", "extra")):
            status, out, err = self.run_asfc(*words)
            self.assertEqual((status, out), (2, ""), words)
            self.assertIn("usage: asfc.py", err)

    def test_a_verb_that_moves_the_scheduler_is_told_where_and_for_how_long(self):
        for words in (["failover"], ["drain"], ["switchover", "--timeout", "0"],
                      ["switchover", "--timeout", "soon"], ["switchover", "c"]):
            self.assertEqual(self.verb(*words)[0], 2, words)

    def test_where_nothing_was_ever_started_nothing_can_be_moved(self):
        for words, why in ((("switchover", "--json"), "it is not known yet where"),
                           (("failover", "--to", "here", "--yes"), "it is not known yet where"),
                           (("drain", "elsewhere"), "elsewhere is no node of this cluster")):
            status, said, told = self.verb(*words)
            self.assertEqual((status, len(told.splitlines())), (75, 1), told)
            self.assertIn("asfc: " + why, told)
            if "--json" in words:
                self.assertEqual(json.loads(said)["outcome"], "refused")

    def test_every_verb_has_help_that_says_more_than_its_name(self):
        for verb in asfc.VERBS:
            said = io.StringIO()
            with contextlib.redirect_stdout(said), self.assertRaises(SystemExit) as ended:
                asfc.main([verb, "--help"])
            self.assertEqual(ended.exception.code, 0)
            self.assertIn("exit statuses:", said.getvalue())
            self.assertGreater(len(said.getvalue().splitlines()), 12)

    def test_metadata_before_the_first_start_says_none(self):
        status, out, _ = self.verb("metadata")
        self.assertEqual(status, 0)
        for label in ("active_failover_node", "active_scheduler_node", "last_failover_heartbeat"):
            self.assertIn("\n{}: None\n".format(label), out)
        self.assertRegex(out, r"\ncurrent_timestamp: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n")
        self.assertIsNone(json.loads(self.verb("metadata", "--json")[1])["active_failover_node"])
        self.assertFalse(os.path.exists(os.path.join(self.directory, "airflow.db")))

    def test_metadata_of_a_cluster_in_words_and_as_json(self):
        record = asfc.ClusterRecord(
            "id", 3, 7, holder="a", instance="x", heartbeat_at="then", clock_s=100.0,
            possible_nodes=("b", "a"), assigned=True, started=True,
            starts=(asfc.StartMade("a", 40.0),),
            failed=(asfc.FailedNode("b", 130.0, 60.0, "died"),))
        self.metadata().write("cluster", record.to_text(), None)
        out = self.verb("metadata")[1]
        for line in ("active_failover_node: a", "active_scheduler_node: a", "term: 3",
                     "last_failover_heartbeat: then", "possible_nodes: b, a", "starts: a 60 s ago",
                     "failed_node: b, died; passed over for 30 s more"):
            self.assertIn("\n" + line + "\n", out)
        fields = json.loads(self.verb("metadata", "--json")[1])
        self.assertEqual((fields["active_scheduler_node"], fields["cluster"]["term"]), ("a", 3))

    def test_clear_metadata_is_refused_while_a_controller_is_active_unless_forced(self):
        self.assertEqual(self.verb("clear_metadata")[:2], (0, "There was no metadata.\n"))
        record = asfc.ClusterRecord("id", 3, 7, holder="a", instance="x", heartbeat_timeout=44.0,
                                    possible_nodes=("a",))
        self.metadata().write("cluster", record.to_text(), None)
        status, _, err = self.verb("clear_metadata")
        self.assertEqual(status, 75)
        self.assertIn("a is active in term 3", err)
        self.assertEqual(self.verb("clear_metadata", "--force")[:2],
                         (0, "The metadata is cleared.\n"))
        found = self.metadata().read_all()["cluster"]
        cleared = asfc.ClusterRecord.from_text(found.value)
        self.assertEqual((cleared.term, cleared.move, cleared.cluster, cleared.heartbeat_timeout,
                          cleared.possible_nodes, cleared.holder, found.version),
                         (3, 7, "id", 44.0, (), "", 2))

    def test_is_scheduler_running_tells_by_words_and_status(self):
        status, out, _ = self.verb("is_scheduler_running")
        self.assertEqual(status, 1, out)
        self.assertIn("Testing to see if scheduler is running on host 'here': False", out)
        scheduler = SchedulerStandIn(self.bin)
        for expected in (0, 4):  # with one of them, then with two
            child = scheduler.start()
            self.addCleanup(child.wait)
            self.addCleanup(child.kill)
            status, out, _ = self.verb("is_scheduler_running")
            self.assertEqual(status, expected, out)
            self.assertIn("'here': True", out)
        self.configure(ssh_command="/bin/false", scheduler_nodes_in_cluster="far")
        status, out, _ = self.verb("is_scheduler_running")
        self.assertEqual((status, "'far': Unknown" in out), (3, True), out)

    def test_test_connection_tests_nodes_and_metadata(self):
        status, out, _ = self.verb("test_connection")
        self.assertEqual(status, 0, out)
        self.assertIn("Testing Connection for host 'here': Connection Succeeded", out)
        self.assertIn("read and conditional write succeeded", out)
        self.configure(scheduler_nodes_in_cluster="here, far", ssh_command="/bin/false")
        self.assertEqual(self.verb("test_connection")[0], 1)

    def test_init_appends_the_section_once(self):
        write_file(self.path, "[core]\ndags_folder = /dags\n")
        self.assertEqual(self.verb("init")[0], 0)
        text = read_file(self.path)
        self.assertEqual(text.count("[scheduler_failover]"), 1)
        status, out, _ = self.verb("init")
        self.assertEqual((status, "already" in out), (0, True))
        self.assertEqual(read_file(self.path), text)

    def test_a_test_mail_without_an_address_or_a_server_is_one_clear_line(self):
        status, _, err = self.verb("send_test_email")
        self.assertEqual((status, "alert_to_email" in err), (78, True))
        self.configure(alert_to_email="ops@example.org")
        self.environment["AIRFLOW__SMTP__SMTP_PORT"] = "1"
        status, _, err = self.verb("send_test_email")
        self.assertEqual((status, len(err.splitlines())), (1, 1), err)

    def page(self, port, path="/health", method="GET"):
        """The status and the text of a page of the controller; (0, "") where none answers."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def test_the_status_of_a_real_controller_over_http_can_be_switched_on_and_off(self):
        port = free_port()
        SchedulerStandIn(self.bin)
        child = self.start()
        wait_until(lambda: "watching whether it lives on" in self.log(), 20, self.log)
        self.configure(status_http_port=port)
        child.send_signal(signal.SIGHUP)
        wait_until(lambda: self.page(port)[0] == 200, 20, self.log)
        self.assertEqual([self.page(port, path, method)[0] for path, method in (
            ("/active", "GET"), ("/active?x", "HEAD"), ("/metrics", "GET"), ("/", "GET"))],
            [200, 200, 200, 404])
        for line in ('asfc_scheduler_running{node="here"} 1.0', "asfc_scheduler_up 1.0",
                     "asfc_active 1.0", "asfc_term 1.0", 'asfc_events_total{event="start"} 1.0'):
            wait_until(lambda line=line: line + "\n" in self.page(port, "/metrics")[1], 20, line)
        promtool = find_program("promtool")
        if promtool or not os.environ.get("ASFC_PLAIN"):
            require("promtool", promtool)
            done = subprocess.run([promtool, "check", "metrics"], stdout=subprocess.PIPE,
                                  input=self.page(port, "/metrics")[1].encode(),
                                  stderr=subprocess.STDOUT)
            self.assertEqual((done.returncode, done.stdout), (0, b""))
        self.configure()
        child.send_signal(signal.SIGHUP)
        wait_until(lambda: self.page(port)[0] == 0, 20, self.log)
        child.terminate()
        self.assertEqual(child.wait(), 0)

    def test_a_thousand_slow_clients_change_nothing_in_the_turns_timing(self):
        require("half a minute", True)
        port = free_port()
        SchedulerStandIn(self.bin)
        self.configure(status_http_port=port, scheduler_restart_sleep_time=1)
        child = self.start()
        wait_until(lambda: "no action: I am active" in self.log(), 60, self.log)
        quiet = self.timing(child.pid, port, 8)
        with SlowClients(self, port, 1000) as clients:
            wait_until(lambda: clients.open >= 1000, 30, lambda: clients.open)
            busy = self.timing(child.pid, port, 8)
            self.assertGreater(clients.dropped, 1000, "they did come to the server")
        print("a turn took {:.3f} s, and {:.3f} s with 1,000 slow clients; turns a second {:.2f} "
              "and {:.2f}; CPU {:.0%} and {:.0%}; a health page {:.2f} s".format(
                  quiet[0], busy[0], quiet[1], busy[1], quiet[2], busy[2], busy[3]),
              file=sys.stderr)
        self.assertLess(busy[0], 1.5 * quiet[0] + 0.1)
        self.assertGreater(busy[1], 0.8 * quiet[1])
        self.assertLess(busy[2], quiet[2] + 0.3)
        self.assertLess(busy[3], 3)
        self.assertNotIn("lost", self.log())

    def timing(self, pid, port, seconds):
        """A turn's mean duration, turns in a second, CPU, and how long a health page takes."""
        def look():
            text = self.page(port, "/metrics")[1]
            took_s, turns = (float(re.search(r"duration_seconds_{} (\S+)".format(what),
                                             text).group(1)) for what in ("sum", "count"))
            fields = process_fields(pid)
            return took_s, turns, clock(), (int(fields[11]) + int(fields[12])) / 100.0
        before = look()
        time.sleep(seconds)
        after = look()
        took_s, turns, passed_s, cpu_s = (new - old for new, old in zip(after, before))
        asked_at = clock()
        self.assertEqual(self.page(port)[0], 200)
        return took_s / turns, turns / passed_s, cpu_s / passed_s, clock() - asked_at

    def test_a_second_controller_on_one_state_directory_is_refused(self):
        first = self.start()
        wait_until(lambda: "active in term 1" in self.log(), 20, self.log)
        status, _, err = self.verb("start")
        self.assertEqual(status, 75)
        self.assertIn("another controller runs with the state directory", err)
        self.assertIsNone(first.poll())

    def supervised(self, limit_s):
        """The socket of a service manager that the next controller finds in its environment."""
        path = "@asfc-test-" + uuid.uuid4().hex
        self.environment.update(NOTIFY_SOCKET=path, WATCHDOG_USEC=str(int(limit_s * 1e6)))
        return NotifySocket(self, path)

    def test_the_manager_of_a_real_controller_learns_all_and_hears_nothing_of_a_stopped_one(self):
        stand_in, manager = SchedulerStandIn(self.bin), self.supervised(0.8)
        child = self.start()
        wait_until(lambda: "READY=1" in manager.lines(), 20, manager.texts)
        wait_until(stand_in.started, 20, self.log)
        for pid in [stand_in.started()[-1]]:
            self.assertNotRegex(read_file("/proc/{}/environ".format(pid)), "NOTIFY|WATCHDOG_")
        wait_until(lambda: "STATUS=started on here" in "".join(manager.texts()), 20, manager.texts)
        term = asfc.cluster_record(self.metadata().read_all()).term
        for key, expected in (("5", "changed: poll_frequency"), ("never", "the old one is kept")):
            del manager.told[:]
            self.configure(poll_frequency=key)
            child.send_signal(signal.SIGHUP)
            wait_until(lambda: "READY=1" in manager.lines(), 20, manager.texts)
            self.assertRegex("\n".join(manager.texts()),
                             r"RELOADING=1\nMONOTONIC_USEC=\d+\n(WATCHDOG=1\n)*READY=1\nSTATUS=")
            self.assertIn(expected, self.log())
        self.configure()
        self.assertEqual(asfc.cluster_record(self.metadata().read_all()).term, term)
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        manager.texts()
        before = len(manager.told)
        time.sleep(1)    # five of its feeds
        self.assertEqual(manager.texts()[before:], [])
        child.send_signal(signal.SIGCONT)
        wait_until(lambda: "WATCHDOG=1" in manager.texts()[before:], 20, manager.texts)
        child.terminate()
        self.assertEqual(child.wait(), 0)
        self.assertIn("STOPPING=1\nSTATUS=stopping (SIGTERM)", "\n".join(manager.texts()))

    def test_a_real_controller_that_is_stuck_in_its_main_loop_stops_feeding_the_watchdog(self):
        require("half a minute", True)
        self.configure(query_timeout="0.5")
        manager, stuck = self.supervised(1.0), os.path.join(self.directory, "stuck")
        program = (
            "import sys; sys.path.insert(0, {!r})\n"
            "import asfc, os, time\n"
            "decide = asfc.decide\n"
            "def slow(*arguments):\n"
            "    while os.path.exists({!r}):\n"
            "        time.sleep(0.1)\n"
            "    return decide(*arguments)\n"
            "asfc.decide = slow\n"
            "sys.exit(asfc.main())\n").format(HERE, stuck)
        with open(os.path.join(self.directory, "stderr"), "a+") as log:
            child = subprocess.Popen([sys.executable, "-c", program, "start", "--config",
                                      self.path], env=self.environment, stderr=log)
        self.addCleanup(end_processes_with, self.directory)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        wait_until(lambda: "active in term 1" in self.log(), 20, self.log)
        write_file(stuck, "")
        at = [time.monotonic()]

        def is_silent():
            if "WATCHDOG=1" in manager.texts():
                at[0] = time.monotonic()
                del manager.told[:]
            return time.monotonic() - at[0] > 3
        wait_until(is_silent, 30, self.log)
        self.assertTrue(process_lives(child.pid))
        os.remove(stuck)
        wait_until(lambda: "WATCHDOG=1" in manager.texts(), 20, self.log)
        child.terminate()
        self.assertEqual(child.wait(), 0)

    def test_a_controller_starts_a_scheduler_ends_in_order_and_leaves_it(self):
        SchedulerStandIn(self.bin)
        child = self.start()
        wait_until(lambda: "the start command was launched" in self.log(), 20, self.log)
        wait_until(lambda: SchedulerStandIn(self.bin).started(), 20, self.log)
        pid = SchedulerStandIn(self.bin).started()[-1]
        child.terminate()
        self.assertEqual(child.wait(), 0)
        self.assertIn("stopping (SIGTERM); the scheduler is left as it is", self.log())
        self.assertIn("gave the lease up", self.log())
        self.assertTrue(process_lives(pid))
        fields = json.loads(self.verb("metadata", "--json")[1])
        self.assertIsNone(fields["active_failover_node"])
        self.assertEqual(fields["active_scheduler_node"], "here")
        again = self.start()
        wait_until(lambda: "no action: I am active, the scheduler runs on here" in self.log(), 20,
                   self.log)
        self.assertTrue(process_lives(pid))
        self.assertEqual(len(SchedulerStandIn(self.bin).started()), 1)
        self.assertIsNone(again.poll())

    def test_a_controller_that_is_killed_takes_its_own_lease_back_at_once(self):
        SchedulerStandIn(self.bin)
        first = self.start()
        wait_until(lambda: "active in term 1" in self.log(), 20, self.log)
        first.kill()
        first.wait()
        began = time.monotonic()
        self.start()
        wait_until(lambda: "active in term 2: it was this node's own" in self.log(), 20, self.log)
        self.assertLess(time.monotonic() - began, 6)   # and not after the timeout of 8 s

    def test_an_error_of_the_configuration_ends_start_with_status_78_and_no_traceback(self):
        self.configure(node_name="elsewhere")
        status, _, err = self.verb("start")
        self.assertEqual(status, 78)
        self.assertIn("get_current_host", err)


    def test_the_history_in_words_as_json_and_its_end_only(self):
        self.assertEqual(self.verb("history")[:2], (0, "No event has been written down.\n"))
        self.assertEqual(json.loads(self.verb("history", "--json")[1]), [])
        events = [
            asfc.HistoryEvent("2026-11-22 20:54:51 UTC", "node-a", 3, 4,
                              "starting the scheduler on node-b", proof="node-a: none runs"),
            asfc.HistoryEvent("2026-11-22 20:54:58 UTC", "node-a", 3, 5,
                              "the scheduler runs on node-b", "because", "", 7.26)]
        self.metadata().write("history", asfc.history_text(events), None)
        status, out, _ = self.verb("history")
        self.assertEqual((status, [line.strip() for line in out.splitlines()]), (0, [
            "2026-11-22 20:54:51 UTC  3.4    node-a  starting the scheduler on node-b",
            "proof: node-a: none runs",
            "2026-11-22 20:54:58 UTC  3.5    node-a  the scheduler runs on node-b",
            "why: because", "time: 7.3 s without a scheduler"]))
        self.assertEqual(len(self.verb("history", "--last", "1")[1].splitlines()), 3)
        self.assertEqual(self.verb("history", "--last", "0")[1], "")
        self.assertEqual(self.verb("history", "--last", "-1")[0], 2)
        told = json.loads(self.verb("history", "--json", "--last", "1")[1])
        self.assertEqual((told[0]["what"], told[0]["without_scheduler_s"], told[0]["move"]),
                         ("the scheduler runs on node-b", 7.26, 5))

    def test_the_history_keeps_its_last_events(self):
        metadata = self.metadata()
        for number in range(5):
            metadata.add_to_history(asfc.HistoryEvent("at", "here", 1, number, "event"))
        events = [asfc.HistoryEvent("at", "here", 1, number, "e") for number in range(400)]
        self.assertEqual([event.move for event in asfc.history_events(metadata.read_all())],
                         [0, 1, 2, 3, 4])
        kept = [event.move for event in asfc.HistoryEvent.all_from_text(asfc.history_text(events))]
        self.assertEqual(kept, list(range(400 - len(kept), 400)))
        self.assertLessEqual(len(kept), asfc.HISTORY_LENGTH)

    def test_metadata_tells_of_nodes_vouches_a_pause_differences_and_the_longest_times(self):
        by = "ann on b confirmed at 12:00 that it is powered off"
        record = asfc.ClusterRecord(
            "id", 3, 7, possible_nodes=("b", "here"), assigned=True, paused="by ann: disks",
            vouched=(asfc.Vouch("b", 1, by), asfc.Vouch("c", None, by)))
        settings_of_b = dict(asfc.common_settings(asfc.Configuration.load(asfc.World(), self.path)),
                             poll_frequency=60.0)
        nodes = {
            "b": asfc.NodeRecord("b", "x", state="running", reason="pid 7", promise_s=29.5,
                                 version=asfc.__version__, written_at="noon",
                                 settings=settings_of_b, fenced="at 11:00: fenced"),
            "c": asfc.NodeRecord("c", "y", state="stopped", reason="none", version="1.9",
                                 no_promise="asfc is paused", written_at="one")}
        metadata = self.metadata()
        metadata.write("cluster", record.to_text(), None)
        for name, one in nodes.items():
            metadata.write("node/" + name, one.to_text(), None)
        metadata.add_to_history(asfc.HistoryEvent("at", "here", 1, 2, "event"))
        status, out, _ = self.verb("metadata")
        self.assertEqual(status, 0)
        for line in (
                "paused: by ann: disks", "vouched: b, " + by,
                "vouched: c, " + by + "; lapsed, for its record has changed",
                "node b: running, pid 7; fences itself within F = 29.5 s, so W = 32.45 s of "
                "silence are proof; asfc {}; written at noon; last fenced: at 11:00: fenced"
                .format(asfc.__version__),
                "node c: stopped, none; promises nothing: asfc is paused; asfc 1.9; written at one",
                "differs: asfc is version {} on this host and 1.9 on c".format(asfc.__version__),
                "differs: poll_frequency is 1.0 on this host and 60.0 on b: it should be the same "
                "on all nodes", "  the scheduler dies: 12 s + s"):
            self.assertIn("\n" + line + "\n", out)
        fields = json.loads(self.verb("metadata", "--json")[1])
        self.assertEqual((fields["nodes"]["b"]["promise_s"], fields["nodes"]["b"]["record_version"],
                          fields["nodes"]["c"]["promise_s"], fields["history"][0]["what"],
                          fields["cluster"]["vouched"][0]["by"], len(fields["differences"]),
                          fields["worst_cases"][0]["seconds"]),
                         (29.5, 1, None, "event", by, 2, 11.8))

    def test_status_has_the_exit_statuses_of_monitoring_plugins(self):
        status, out, err = self.verb("status")
        self.assertEqual((status, err), (2, ""))
        self.assertEqual(out.splitlines()[0], "CRITICAL: no controller has ever been active; no "
                                              "scheduler is known to run")
        now = asfc.World().utc_text()
        self.metadata().write("cluster", asfc.ClusterRecord(
            "id", 1, 2, holder="here", heartbeat_at=now, possible_nodes=("here",),
            assigned=True).to_text(), None)
        record = asfc.NodeRecord("here", "i", state="running", reason="pid 7", promise_s=29.5,
                                 version=asfc.__version__, written_at=now)
        self.metadata().write("node/here", record.to_text(), None)
        status, out, err = self.verb("status")
        self.assertEqual((status, err, out.splitlines()[0], "\x1b" in out),
                         (0, "", "OK: the scheduler runs on here, here is active", False))
        fields = json.loads(self.verb("status", "--json")[1])
        self.assertEqual((fields["state"], fields["exit_status"], fields["problems"],
                          fields["nodes"][0]["role"], fields["active_failover_node"]),
                         ("OK", 0, [], "active", "here"))
        self.metadata().write("node/here", record._replace(
            promise_s=None, no_promise="it may not").to_text(), 1)
        self.assertEqual(self.verb("status")[0], 1)
        self.metadata().write("cluster", '{"format": 9}', 1)
        status, out, err = self.verb("status")
        self.assertEqual((status, out, len(err.splitlines()), "UNKNOWN: " in err),
                         (3, "", 1, True))
        status, out, err = self.verb("status", "--json")
        self.assertEqual((status, json.loads(out)["state"]), (3, "UNKNOWN"))
        self.configure(poll_frequency="often")
        self.assertEqual(self.verb("status")[0], 3)

    def test_status_watches_until_ctrl_c_and_has_colours_on_a_terminal_alone(self):
        for words in (("--watch", "0"), ("--watch", "often")):
            self.assertEqual(self.verb("status", *words)[0], 2)
        for more, colours in (({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False),
                              ({"TERM": "xterm", "NO_COLOR": "1"}, False)):
            master, slave = os.openpty()
            self.addCleanup(os.close, master)
            child = subprocess.Popen(
                [sys.executable, self.program, "status", "--watch", "0.2", "--config", self.path],
                env=dict(self.environment, **more), stdout=slave, stderr=slave)
            self.addCleanup(child.wait)
            self.addCleanup(child.kill)
            os.close(slave)
            text = ""
            while text.count("CRITICAL: ") < 2:
                text += os.read(master, 4096).decode()
            child.send_signal(signal.SIGINT)
            self.assertEqual(child.wait(30), 2)
            self.assertEqual("\x1b[31m" in text, colours, more)

    def test_check_runs_its_script_and_changes_nothing(self):
        self.configure(alert_to_email="me@example.org", state_dir=self.directory + "/state",
                       logging_dir=self.directory + "/no/logs")
        os.chmod(self.path, 0o600)
        bare = dict(self.environment, PATH=self.bin + ":/usr/bin:/bin")
        self.environment = bare
        self.metadata().write("cluster", asfc.ClusterRecord("id", 1).to_text(), None)
        before = sorted(os.walk(self.directory)), self.metadata().read_all()
        status, out, err = self.verb("check")
        self.assertEqual((status, err), (1, ""), out)
        self.assertIn("PROBLEM  here: asfc's own start would fail there: airflow: not found in",
                      " ".join(out.split()).replace("PROBLEM", "PROBLEM "))
        self.assertEqual((sorted(os.walk(self.directory)), self.metadata().read_all()), before)
        SchedulerStandIn(self.bin)
        status, out, err = self.verb("check")
        self.assertEqual((status, out.splitlines()[-1]), (0, "0 problems, 0 warnings"), out)
        os.chmod(self.path, 0o644)
        with open(self.path, "a") as file:
            file.write("smtp_password = hush\n")
        write_file(self.directory + "/file", "")
        self.configure(alert_to_email="me@example.org", logging_dir=self.directory + "/file/logs",
                       smtp_password="hush", airflow_scheduler_start_command="no-such-program")
        status, out, _ = self.verb("check", "--json")
        fields = json.loads(out)
        self.assertNotIn("hush", out)
        self.assertEqual((status, fields["problems"]), (1, 2), out)
        texts = "\n".join(one["text"] for one in fields["findings"])
        self.assertIn("airflow_scheduler_start_command: there is no no-such-program", texts)
        self.assertIn("airflow.cfg holds passwords", texts)
        self.assertEqual([one["what"] for one in fields["timings"]][:2],
                         ["metadata operation", "query of here"])
        self.configure(node_name="elsewhere")
        self.assertEqual(self.verb("check")[0], 78)

    def at_a_terminal(self, answers, *words):
        """Run a verb with a terminal as its stdin, and answer its questions."""
        master, slave = os.openpty()
        try:
            child = subprocess.Popen(
                [sys.executable, self.program] + list(words) + ["--config", self.path],
                env=self.environment, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                universal_newlines=True)
            os.write(master, "".join(answer + "\n" for answer in answers).encode())
            out, err = child.communicate()
        finally:
            os.close(master)
            os.close(slave)
        self.assertNotIn("Traceback", err)
        return child.returncode, out, err

    def test_confirm_dead_asks_twice_on_the_terminal_and_writes_a_vouch(self):
        self.configure(scheduler_nodes_in_cluster="here, far", ssh_command="/bin/false",
                       heartbeat_timeout="7.5")
        metadata = self.metadata()
        metadata.write("cluster", asfc.ClusterRecord(
            "id", 3, 7, heartbeat_timeout=7.5, possible_nodes=("far", "here"),
            assigned=True).to_text(), None)
        status, _, err = self.verb("confirm_dead", "here")
        self.assertEqual((status, len(err.splitlines())), (75, 1), err)
        self.assertIn("here answers, so it is not off", err)
        child = subprocess.run([sys.executable, self.program, "confirm_dead", "far", "--config",
                                self.path], env=self.environment, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual((child.returncode, b"no terminal" in child.stderr), (75, True))
        status, _, err = self.at_a_terminal(["yes", "here"], "confirm_dead", "far")
        self.assertEqual((status, "nothing was written" in err), (75, True), err)
        self.assertEqual(asfc.cluster_record(metadata.read_all()).vouched, ())
        status, out, err = self.at_a_terminal(["yes", "far"], "confirm_dead", "far")
        self.assertEqual((status, err), (0, ""))
        self.assertIn("Is far powered off, for certain? [yes/no] ", out)
        self.assertIn("far does not answer", out)
        record = asfc.cluster_record(metadata.read_all())
        self.assertEqual(record.vouched[0][:2], ("far", None))
        self.assertEqual(self.verb("confirm_dead", "far", "--yes")[0], 0)
        again = asfc.cluster_record(metadata.read_all())
        self.assertEqual(len(again.vouched), 1)
        self.assertEqual(again._replace(vouched=record.vouched), record)

    def test_a_pause_stops_a_real_controller_from_starting_and_resume_lets_it(self):
        stand_in, heard = SchedulerStandIn(self.bin), os.path.join(self.directory, "heard")
        self.configure(on_event_command="echo $ASFC_TEXT >> {}; test $ASFC_EVENT != resumed".format(
            heard))
        self.start()
        wait_until(lambda: "watching whether it lives on" in self.log(), 20, self.log)
        status, out, _ = self.verb("pause", "--reason", "new disks")
        self.assertEqual(status, 0, out)
        self.assertRegex(out, "asfc is paused: it starts, stops and fences nothing")
        self.assertRegex(self.verb("metadata")[1], "\npaused: by .* on .* at .* UTC: new disks\n")
        os.kill(stand_in.started()[-1], signal.SIGKILL)
        wait_until(lambda: "a scheduler runs on no node that is known" in self.log(), 20, self.log)
        self.assertEqual(len(stand_in.started()), 1)
        status, _, err = self.verb("resume")
        self.assertEqual((status, err), (0, "asfc: on_event_command failed: exit status 1\n"))
        wait_until(lambda: len(stand_in.started()) == 2, 20, self.log)
        events = [event.what for event in asfc.history_events(self.metadata().read_all())]
        wait_until(lambda: set(events) <= set(read_file(heard).split("\n")), 20, self.log)
        self.assertEqual((events[0], "paused" in events), ("active failover node", True))
        told = self.verb("history")[1]
        for words in ("paused", "why: by ", "resumed", "starting the scheduler on here", "proof: "):
            self.assertIn(words, told)

    def test_a_dry_run_does_nothing_and_what_it_saves_is_replayed(self):
        saved = os.path.join(self.directory, "saved.json")
        log = open(os.path.join(self.directory, "stderr"), "a+")
        self.addCleanup(log.close)
        child = subprocess.Popen(
            [sys.executable, self.program, "start", "--dry-run", "--save", saved, "--config",
             self.path], env=self.environment, stderr=log)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        wait_until(lambda: os.path.exists(saved), 20, self.log)
        child.terminate()
        self.assertEqual(child.wait(), 0, self.log())
        self.assertIn("dry run: moving the scheduler to here\n", self.log())
        self.assertIn("dry run: would change the record: assigned = True; possible_nodes = here; "
                      "started = False, in a new move\n", self.log())
        self.assertEqual(sorted(os.listdir(self.directory)),
                         ["airflow.cfg", "bin", "saved.json", "stderr"])
        status, out, _ = self.verb("replay", saved)
        self.assertEqual((status, out.splitlines()[0]), (0, "moving the scheduler to here"))
        self.assertIn("would change the record: ", out)

    def test_a_file_that_is_no_observation_is_one_clear_line_and_status_78(self):
        saved = os.path.join(self.directory, "saved.json")
        good = DecisionTest.CASES["dead: started again in place with a new move"][0].to_text()
        cases = (None, "", "{}", good[:-9], good.replace('"possible_nodes": ["a"]',
                                                         '"possible_nodes": 7'))
        for text in cases:
            if text is not None:
                write_file(saved, text)
            status, out, err = self.verb("replay", saved)
            self.assertEqual((status, out, len(err.splitlines())), (78, "", 1), err)
            self.assertIn(saved, err)
        self.assertEqual(self.verb("start", "--save", saved)[0], 2)


class ReadmeTest(unittest.TestCase):
    def test_the_table_of_metrics_is_the_codes(self):
        self.assertIn(asfc.metrics_table_markdown(), read_file(os.path.join(HERE, "README.md")))

    def test_the_table_of_events_is_the_codes(self):
        self.assertIn(asfc.events_table_markdown(), read_file(os.path.join(HERE, "README.md")))

    def test_it_names_the_keys_that_wait_for_a_restart(self):
        text = read_file(os.path.join(HERE, "README.md"))
        told = text.partition("These keys wait for a restart:")[2].partition("\n\n")[0]
        expected = {option.name for option in asfc.OPTIONS if not option.live}
        self.assertEqual(set(re.findall("`([a-z_]+)`", told)), expected | {"sql_alchemy_conn"})

    def test_the_table_of_keys_is_the_codes(self):
        text = read_file(os.path.join(HERE, "README.md"))
        table = text.partition("<!-- options -->\n")[2].partition("<!-- /options -->")[0]
        self.assertEqual(table.strip(), asfc.options_table_markdown().strip())

    def test_every_verb_and_exit_status_is_there(self):
        text = read_file(os.path.join(HERE, "README.md"))
        for verb in asfc.VERBS:
            self.assertIn("`{}".format(verb), text)
        for status in (0, 1, 2, 3, 4, 69, 75, 78):
            self.assertRegex(text, r"\| *`?{}`? *\|".format(status))


###############################################################################
# Benchmarks ##################################################################
###############################################################################

BARE = "import argparse, configparser, logging, subprocess, json"


class Bench:
    """`python3 test_asfc.py bench`: each figure with its bound; ratios within one run only."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="asfc-bench-")
        self.failed = 0

    def run(self):
        try:
            bare = [sys.executable, "-c", BARE]
            self.write_configuration("a", nodes="a")
            self.show("version / bare interpreter with five modules",
                      self.ratio(self.asfc("version"), bare), 2.0)
            self.show("metadata on SQLite / the same interpreter",
                      self.ratio(self.asfc("metadata"), bare), 3.0)
            self.show("resident memory of a standby (MB)", self.standby_memory(), 32.0)
            self.show("is_scheduler_running, 20 nodes, ssh waits 1 s (s)", self.twenty_nodes(), 1.5)
            self.show("CPU of a heartbeat on MariaDB / bare client's select 1",
                      self.heartbeat_ratio(), 1.5)
            self.show("two writes and a read of ZooKeeper on loopback (ms)",
                      self.zookeeper_ms(), 10.0)
        finally:
            shutil.rmtree(self.directory)
        return 1 if self.failed else 0

    def show(self, what, value, bound):
        if value is None:
            print("{:<62} skipped: no such server here".format(what))
            return
        well = value <= bound
        self.failed += not well
        print("{:<62} {:6.2f}  bound {:5.2f}  {}".format(what, value, bound,
                                                         "ok" if well else "TOO MUCH"), flush=True)

    def asfc(self, verb):
        return [sys.executable, asfc.__file__, verb, "--config",
                os.path.join(self.directory, "airflow.cfg")]

    def write_configuration(self, name, nodes, **keys):
        keys = dict({"scheduler_nodes_in_cluster": nodes, "node_name": name,
                     "logging_dir": self.directory, "state_dir": self.directory + "/state"}, **keys)
        write_file(os.path.join(self.directory, "airflow.cfg"), (
            "[database]\nsql_alchemy_conn = sqlite:///{}/metadata.db\n".format(self.directory)
            + own("\n".join("{} = {}".format(*item) for item in keys.items()))))

    @staticmethod
    def seconds(argv):
        began = time.monotonic()
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - began

    def ratio(self, argv, bare, rounds=15):
        """The median ratio of pairs that were run one right after the other."""
        self.seconds(argv), self.seconds(bare)
        ratios = sorted(self.seconds(argv) / self.seconds(bare) for _ in range(rounds))
        return ratios[rounds // 2]

    def standby_memory(self):
        """A standby beside a holder that promised an hour."""
        record = asfc.ClusterRecord("bench", 1, holder="b", instance="x", heartbeat_timeout=3600.0,
                                    possible_nodes=("a", "b"))
        self.write_configuration("a", nodes="a, b", poll_frequency="1", heartbeat_timeout="8")
        with open(os.path.join(self.directory, "log"), "w") as log:
            service = asfc.metadata_service(asfc.World(), asfc.Configuration.load(
                asfc.World(), os.path.join(self.directory, "airflow.cfg")))
            service.write("cluster", record.to_text(), None)
            child = subprocess.Popen(self.asfc("start"), stderr=log)
        try:
            wait_until(lambda: "standby: b is active" in read_file(log.name), 20, "a standby runs")
            time.sleep(5)  # some heartbeats, so that what they import is counted
            status = read_file("/proc/{}/status".format(child.pid))
            return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024.0
        finally:
            child.kill()
            child.wait()

    def twenty_nodes(self):
        ssh = write_program(os.path.join(self.directory, "slow-ssh"),
                            "#!/bin/sh\nsleep 1\nexit 255\n")
        self.write_configuration("x", nodes=", ".join("n{}".format(n) for n in range(20)),
                                 ssh_command=ssh)
        times = []
        for _ in range(3):
            began = time.monotonic()
            subprocess.run(self.asfc("is_scheduler_running"), stdout=subprocess.DEVNULL)
            times.append(time.monotonic() - began)
        return sorted(times)[1]

    def heartbeat_ratio(self, rounds=40):
        """CPU seconds of a heartbeat, this process and its children, against the bare client's."""
        if not MariaDbServer.present():
            return None
        server = MariaDbServer()
        try:
            server.start()
            server.create_database("bench")
            path = os.path.join(self.directory, "airflow.cfg")
            self.write_configuration("a", nodes="a")
            os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = url = server.url_for("bench")
            world = asfc.World()
            configuration = asfc.Configuration.load(world, path)
            lease = asfc.Lease(world, configuration, asfc.metadata_service(world, configuration),
                               "lock", lambda: None, logging.Logger("bench"))
            lease.beat()
            assert lease.active, "the bench holds the lease"
            found = asfc.read_database_url(url)
            client = [find_program("mysql", "mariadb"), "--no-defaults", "-h", found.host, "-P",
                      found.port, "-u", found.user, "-e", "select 1", found.database]
            environment = dict(os.environ, MYSQL_PWD=found.password)
            bare = functools.partial(subprocess.call, client, env=environment,
                                     stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
            pairs = [(self.cpu_s(lease.beat), self.cpu_s(bare)) for _ in range(rounds)]
            assert lease.active, "each heartbeat was confirmed"
            return sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs)
        finally:
            os.environ.pop("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", None)
            server.remove()

    @staticmethod
    def zookeeper_ms(rounds=200):
        """The median time of an exchange as a controller makes it with each heartbeat."""
        if not ZooKeeperServer.present():
            return None
        server = ZooKeeperServer().start()
        try:
            service = service_for(server.create_database("bench"))
            names = ("cluster", "node/a", "node/b", "node/c")
            service.exchange([asfc.Write(name, "x" * 1000, None) for name in names])
            times = []
            for version in range(1, rounds + 1):
                writes = [asfc.Write(name, "y" * 1000, version) for name in names[:2]]
                began = time.monotonic()
                assert service.exchange(writes).won == (True, True)
                times.append(1000 * (time.monotonic() - began))
            return sorted(times)[rounds // 2]
        finally:
            server.remove()

    @staticmethod
    def cpu_s(function):
        """CPU seconds that a call takes, its children's included."""
        def used():
            both = (resource.getrusage(resource.RUSAGE_SELF),
                    resource.getrusage(resource.RUSAGE_CHILDREN))
            return sum(one.ru_utime + one.ru_stime for one in both)
        before = used()
        function()
        return used() - before


def soak_simulation():
    """Seeds that no test has seen, 20,000 over all mixes; a failing one is to be replayed."""
    first = 1000000 + 100000 * (int(time.time()) % 1000)
    return simulate_verb(["--seeds", "20000", "--from", str(first)])


def soak_quiet_week():
    check_quiet_time(unittest.TestCase(), 7 * 86400)
    print("a simulated week: no takeover, no restart")
    return 0


SOAKS = {"nodes": functools.partial(soak_node_model, 10000), "hosts": soak_faults,
         "airflow": soak_airflow, "quiet": soak_quiet, "simulation": soak_simulation,
         "quiet-week": soak_quiet_week,
         "zookeeper-fuzz": soak_zookeeper_fuzz,
         "hosts-zookeeper": functools.partial(soak_faults, zookeeper_faults, 1)}


class InterruptedTests(unittest.TestResult):
    """A result that knows the test under way, for unittest leaves an interrupted one as it is."""
    current = None

    def startTest(self, test):
        super().startTest(test)
        InterruptedTests.current = test

    @classmethod
    def clean_up(cls):
        if cls.current:
            cls.current.doCleanups()
            type(cls.current).tearDownClass()


class ResultThatTells(InterruptedTests, unittest.TextTestResult):
    """Tells at the end what was skipped, and for want of what."""

    def printErrors(self):
        super().printErrors()
        reasons = collections.Counter(reason for _, reason in self.skipped)
        for reason, count in sorted(reasons.items()):
            self.stream.writeln("skipped {:3d}: {}".format(count, reason))


class TestElsewhere(str):
    """The name of a test that another process has run."""

    def shortDescription(self):
        return None


class SideBySide:
    """All tests of this file, in processes side by side, for most of them mostly wait.

    Run as a suite is. The simulations, which need every processor, are alone at first. Then come
    the lanes, each a process that takes the next class whenever it has done one. The tests on real
    hosts, which have times to keep, are done one class after another by the first lane.
    """
    LANES = 3
    ALONE = ("Simulations",)
    LONGEST = ("DemoTest", "CommandLineTest", "VirtualHourTest")

    @staticmethod
    def cases():
        """All classes of tests, in the order of this file."""
        return [case for case in vars(sys.modules["__main__"]).values()
                if isinstance(case, type) and issubclass(case, unittest.TestCase)
                and unittest.defaultTestLoader.getTestCaseNames(case)]

    def __call__(self, result):
        names = [case.__name__ for case in self.cases()]
        on_hosts = [case.__name__ for case in self.cases()
                    if issubclass(case, (ClusterTest, FaultTests, TheHarness))]
        others = self.LONGEST + tuple(
            name for name in names if name not in on_hosts + list(self.ALONE + self.LONGEST))
        alone, hosts, rest = (
            self.queue([names.index(name) for name in some])
            for some in (self.ALONE, on_hosts, others))
        ended = self.run([[alone]], result)
        ended += self.run([[hosts, rest]] + [[rest]] * (self.LANES - 1), result)
        lost = sorted(set(names) - set(ended))
        if lost:
            result.errors.append((TestElsewhere("classes of tests that were not run"),
                                  "\n".join(lost)))
        if "UnderSystemd" not in names:
            print("no systemd can be booted here: nothing was run under it", file=sys.stderr)

    @staticmethod
    def queue(numbers):
        """A pipe that holds the numbers, each of which one of its readers gets."""
        reader, writer = os.pipe()
        os.write(writer, bytes(numbers))
        os.close(writer)
        return reader

    def run(self, lanes, result):
        """Run lanes side by side, each with its queues in their order, to the end of all; returns
        the names of the classes that they have done."""
        running, ended = [], []
        try:
            for queues in lanes:
                report = tempfile.TemporaryFile("w+")
                numbers = [report.fileno()] + queues
                options = sys.warnoptions or ["default"]
                # Not in the terminal's group: a Ctrl-C is passed on to them, and once.
                running.append((report, subprocess.Popen(
                    [sys.executable] + ["-W" + option for option in options] + [__file__, "lane"]
                    + [str(number) for number in numbers],
                    stdin=subprocess.DEVNULL, pass_fds=numbers, start_new_session=True)))
            for report, lane in running:
                ended += self.add(result, lane.wait(), report)
            return ended
        finally:
            for _, lane in running:
                lane.terminate()
            for report, lane in running:
                lane.wait()
                report.close()

    @staticmethod
    def add(result, status, report):
        """Add what a lane reports to the result of all; returns the names of the classes it did."""
        report.seek(0)
        case, ended = "", []
        for line in report:
            case, found = json.loads(line)
            if found:
                ended.append(case)
                result.testsRun += found.pop("testsRun")
                for kind, tests in found.items():
                    getattr(result, kind).extend(
                        (TestElsewhere(name), text) for name, text in tests)
        if status:
            result.errors.append((TestElsewhere("a lane of the tests"), (
                "the process ended with status {}, at {}\n".format(status, case or "its start"))))
        return ended


def run_lane(report, *queues):
    """Run the classes of tests whose numbers the queues hold; report each at its begin and end."""
    parent, cases = os.getppid(), SideBySide.cases()
    with os.fdopen(report, "w") as report:
        def tell(case, found):
            report.write(json.dumps([case.__name__, found]) + "\n")
            report.flush()
        for queue in queues:
            while os.getppid() == parent:
                number = os.read(queue, 1)
                if not number:
                    break
                case = cases[ord(number)]
                tell(case, None)
                result, began = InterruptedTests(), time.monotonic()
                unittest.defaultTestLoader.loadTestsFromTestCase(case)(result)
                tell(case, dict(
                    {kind: [(str(test), text) for test, text in getattr(result, kind)]
                     for kind in ("failures", "errors", "skipped")}, testsRun=result.testsRun))
                print("{:7.1f} s {:4d} tests of {}{}".format(
                    time.monotonic() - began, result.testsRun, case.__name__,
                    "" if result.wasSuccessful() else ": FAILED"), file=sys.stderr, flush=True)
    return 0


def end_in_order_on_sigterm():
    """Have SIGTERM end the tests as Ctrl-C does, so that what they started is cleaned up."""
    def interrupt(number, frame):
        raise KeyboardInterrupt   # unittest takes any other exception for a test's own failure
    signal.signal(signal.SIGTERM, interrupt)


def let_children_hear_signals():
    """Have what the tests start hear SIGHUP and SIGINT, also where the tests themselves ignore them
    (under nohup, in the background of a shell): a handler is not inherited, to ignore is."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda received, frame: None)


def main():
    let_children_hear_signals()
    if sys.argv[1:2] == ["bench"]:
        return Bench().run()
    if sys.argv[1:2] == ["simulate"]:
        return simulate_verb(sys.argv[2:])
    if sys.argv[1:2] == ["soak"]:
        names = sorted(SOAKS)
        if len(sys.argv) != 3 or sys.argv[2] not in SOAKS:
            print("usage: python3 test_asfc.py soak NAME, one of: " + ", ".join(names),
                  file=sys.stderr)
            return 2
        return SOAKS[sys.argv[2]]()
    end_in_order_on_sigterm()
    runner = unittest.TextTestRunner(resultclass=ResultThatTells)
    try:
        if sys.argv[1:2] == ["lane"]:
            return run_lane(*map(int, sys.argv[2:]))
        if len(sys.argv) > 1:
            unittest.main(testRunner=runner)
        return 0 if runner.run(SideBySide()).wasSuccessful() else 1
    except KeyboardInterrupt:
        InterruptedTests.clean_up()
        return 130


if __name__ == "__main__":
    sys.exit(main())

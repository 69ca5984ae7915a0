#!/usr/bin/env python3
"""Stands in for mesos-master, mesos-agent and marathon on test nodes, by the name it is called by.

Real are ZooKeeper, in which masters and schedulers elect who leads, and the addresses, ports and
paths that the steps of a node ask. A command line that the real programs would not take ends it.
There are no tasks."""

from __future__ import annotations

import http.server
import json
import os
import pathlib
import re
import socket
import struct
import sys
import threading
import time
import urllib.parse
import urllib.request
import uuid

NAME = pathlib.Path(sys.argv[0]).name
ADDRESS = re.compile(r'[0-9]+(\.[0-9]+){3}')
ZK = re.compile(r'zk://([0-9.:,]+)/([a-z]+)')
#: Flags of each program that must be there, and those that may be.
FLAGS = {
    'mesos-master': ({'zk', 'quorum', 'work_dir', 'ip', 'hostname', 'cluster'}, set()),
    'mesos-agent': (
        {
            'master',
            'ip',
            'hostname',
            'work_dir',
            'containerizers',
            'executor_registration_timeout',
            'attributes',
        },
        {'isolation', 'image_providers', 'executor_environment_variables'},
    ),
    'marathon': ({'master', 'zk', 'hostname', 'http_port'}, set()),
}
#: After so long without a word from an agent it is not counted.
AGENT_TIMEOUT_S = 4


def read_flags() -> dict[str, str]:
    """The flags of the command line: --name=value, or for marathon --name value. Ends the program
    on any other."""
    words = sys.argv[1:]
    if NAME == 'marathon':
        words = [f'{name}={value}' for name, value in zip(words[::2], words[1::2], strict=True)]
    flags = dict(word.removeprefix('--').split('=', 1) for word in words if word.startswith('--'))
    needed, more = FLAGS[NAME]
    wrong = set(flags) ^ needed ^ (set(flags) & more)
    if wrong or len(flags) != len(words):
        sys.exit(
            f'{NAME}: these flags are wrong or missing: {", ".join(sorted(wrong))} in '
            f'{sys.argv[1:]}'
        )
    for name, value in flags.items():
        if not value or (name in ('ip', 'hostname') and not ADDRESS.fullmatch(value)):
            sys.exit(f'{NAME}: --{name} is {value!r}')
    return flags


class ZooKeeper:
    """As much of ZooKeeper's protocol as it takes to elect somebody: one session, with the first
    that answers."""

    def __init__(self, url: str) -> None:
        found = ZK.fullmatch(url)
        if not found:
            sys.exit(f'{NAME}: {url!r} is no URL of ZooKeeper')
        self.servers, self.folder = found[1].split(','), f'/{found[2]}'
        self._lock = threading.Lock()
        for server in self.servers:
            host, port = server.split(':')
            try:
                self._socket = socket.create_connection((host, int(port)), timeout=10)
                self._send(struct.pack('>iqiqi16s?', 0, 0, 6000, 0, 16, bytes(16), False))
                self._receive()
                break
            except OSError as e:
                print(f'{server}: {e}', flush=True)
        else:
            sys.exit(f'{NAME}: no ZooKeeper answers at {url}')

    def _send(self, data: bytes) -> None:
        self._socket.sendall(struct.pack('>i', len(data)) + data)

    def _receive(self) -> bytes:
        data = b''
        wanted = 4
        while len(data) < wanted:
            if not (more := self._socket.recv(wanted - len(data))):
                raise OSError('the server has closed the session')
            data += more
            if len(data) == 4:
                wanted = 4 + struct.unpack('>i', data)[0]
        return data[4:]

    def _ask(self, number: int, payload: bytes = b'', xid: int = 1) -> bytes | None:
        """The answer to a request; None for an error, such as a node that is there, or is not."""
        with self._lock:
            self._send(struct.pack('>ii', xid, number) + payload)
            answer = self._receive()
        return answer[16:] if struct.unpack('>i', answer[12:16]) == (0,) else None

    def create(self, path: str, data: str, flags: int) -> str | None:
        """Make a node: flags 0 to stay, 3 until this session ends and with a number. Returns its
        path."""
        anyone = struct.pack('>ii', 1, 31) + text('world') + text('anyone')
        made = self._ask(1, text(path) + text(data) + anyone + struct.pack('>i', flags))
        return made[4:].decode() if made else None

    def leader(self) -> str | None:
        """What stands in the node with the lowest number, which is whose session came first of
        those that live."""
        answer = self._ask(8, text(self.folder) + b'\0')
        if answer is None:
            return None
        names, at = [], 4
        for _ in range(struct.unpack('>i', answer[:4])[0]):
            [length] = struct.unpack('>i', answer[at : at + 4])
            names.append(answer[at + 4 : at + 4 + length].decode())
            at += 4 + length
        if not names:
            return None
        data = self._ask(4, text(f'{self.folder}/{min(names)}') + b'\0')
        return data[4 : 4 + struct.unpack('>i', data[:4])[0]].decode() if data else None

    def run_for_leader(self, address: str) -> None:
        """Be one of those who may lead, as long as this process lives."""
        self.create(self.folder, '', 0)
        if self.create(f'{self.folder}/info_', address, 3) is None:
            sys.exit(f'{NAME}: ZooKeeper does not take it')

    def stay(self) -> None:
        """Keep the session. Ends the program when that is lost, as the real ones do."""
        try:
            while self._ask(11, xid=-2) is not None:
                time.sleep(1)
        except OSError as e:
            print(f'the session with ZooKeeper is lost: {e}', flush=True)
        os._exit(1)


def text(value: str) -> bytes:
    """A string as ZooKeeper writes it."""
    return struct.pack('>i', len(value.encode())) + value.encode()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what `answer` gives: a status, and JSON or where to go."""

    def do_GET(self) -> None:
        """Ask."""
        url = urllib.parse.urlsplit(self.path)
        self.reply(*PROGRAM.answer(url.path, dict(urllib.parse.parse_qsl(url.query)), None))

    def do_POST(self) -> None:
        """Tell: agents register."""
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.reply(*PROGRAM.answer(self.path, {}, body))

    def reply(self, status: int, body: object) -> None:
        """Send it."""
        data = b'' if status == 307 else json.dumps(body, separators=(',', ':')).encode()
        self.send_response(status)
        if status == 307:
            self.send_header('Location', f'//{body}{self.path}')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Master:
    """mesos-master: who leads counts agents, the others send everybody there."""

    def __init__(self, flags: dict[str, str]) -> None:
        self.address = f'{flags["ip"]}:5050'
        self.zookeeper = ZooKeeper(flags['zk'])
        if int(flags['quorum']) != len(self.zookeeper.servers) // 2 + 1:
            sys.exit(f'{NAME}: a quorum of {flags["quorum"]} of {len(self.zookeeper.servers)}')
        self.agents: dict[str, tuple[float, dict[str, object]]] = {}
        self.own = uuid.uuid4()
        self.zookeeper.run_for_leader(self.address)

    def answer(
        self, path: str, query: dict[str, str], body: dict[str, object] | None
    ) -> tuple[int, object]:
        """What mesos-master 1.11 would say."""
        if path == '/version':
            return 200, {'build_date': '', 'version': '1.11.0'}
        leader = self.zookeeper.leader()
        if leader != self.address:
            return (307, leader) if leader else (503, {})
        if body is not None:
            name = str(body.get('id') or f'{self.own}-S{len(self.agents)}')
            self.agents[name] = time.monotonic(), {**body, 'id': name, 'active': True}
            return 200, {'id': name}
        if path != '/master/slaves':
            return 404, {}
        known = [
            agent
            for name, (seen, agent) in self.agents.items()
            if time.monotonic() - seen < AGENT_TIMEOUT_S and query.get('slave_id', name) == name
        ]
        return 200, {'slaves': known, 'recovered_slaves': []}


class Agent:
    """mesos-agent: registers with whoever leads, and goes on doing so."""

    def __init__(self, flags: dict[str, str]) -> None:
        self.address = f'{flags["ip"]}:5051'
        self.zookeeper = ZooKeeper(flags['master'])
        if (
            flags['containerizers'] != 'docker,mesos'
            or not pathlib.Path(flags['work_dir']).is_dir()
        ):
            sys.exit(f'{NAME}: {flags}')
        if environment := flags.get('executor_environment_variables'):
            json.loads(pathlib.Path(environment.removeprefix('file://')).read_text())
        self.about = {
            'hostname': flags['hostname'],
            'pid': f'slave(1)@{self.address}',
            'attributes': dict(pair.split(':', 1) for pair in flags['attributes'].split(';')),
        }
        self.id = ''
        threading.Thread(target=self.register, daemon=True).start()

    def register(self) -> None:
        """Tell the leading master of this agent, again and again."""
        while True:
            try:
                request = urllib.request.Request(
                    f'http://{self.zookeeper.leader()}/register',
                    json.dumps({**self.about, 'id': self.id}).encode(),
                )
                with urllib.request.urlopen(request, timeout=5) as answer:
                    self.id = json.load(answer)['id']
            except (OSError, ValueError) as e:
                print(f'the leading master has not taken this agent: {e}', flush=True)
            time.sleep(1)

    def answer(
        self, path: str, query: dict[str, str], body: dict[str, object] | None
    ) -> tuple[int, object]:
        """What mesos-agent says of itself."""
        return (
            (200, {'version': '1.11.0', 'id': self.id, **self.about, 'frameworks': []})
            if path == '/state'
            else (404, {})
        )


class Marathon:
    """marathon: knows who of its kind leads."""

    def __init__(self, flags: dict[str, str]) -> None:
        self.address = f'{flags["hostname"]}:{flags["http_port"]}'
        if os.environ.get('LIBPROCESS_IP') != flags['hostname'] or not os.environ.get(
            'LIBPROCESS_PORT'
        ):
            sys.exit(f'{NAME}: mesos-master could not call it back')
        if ZooKeeper(flags['master']).leader() is None:
            sys.exit(f'{NAME}: there is no leading mesos-master')
        self.zookeeper = ZooKeeper(flags['zk'])
        self.zookeeper.run_for_leader(self.address)

    def answer(
        self, path: str, query: dict[str, str], body: dict[str, object] | None
    ) -> tuple[int, object]:
        """What Marathon 1.11 says to anybody."""
        leader = self.zookeeper.leader()
        if path != '/v2/leader' or leader is None:
            return 404, {'message': 'There is no leader'}
        return 200, {'leader': leader}


class Server(http.server.ThreadingHTTPServer):
    """Starts again at once."""

    allow_reuse_address = True
    daemon_threads = True


PROGRAM = {'mesos-master': Master, 'mesos-agent': Agent, 'marathon': Marathon}[NAME](read_flags())
HOST, PORT = PROGRAM.address.split(':')
threading.Thread(target=PROGRAM.zookeeper.stay, daemon=True).start()
Server((HOST, int(PORT)), Handler).serve_forever()

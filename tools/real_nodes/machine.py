"""What the demo stands on: the machine, the test cloud of testcloud/, and the watcher that boots a
node for each of its servers. Standard library only.

What runs already is used and left alone. What is started here is recorded first (`made`), so that
`stop` and `remove` end just that."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from made import Made
from processes import Failed, is_taken
from terminal import Terminal, say

ROOT = Path(__file__).resolve().parents[2]
CLOUD, NODES = ROOT / 'testcloud' / 'cloud', ROOT / 'testcloud' / 'nodes'
CLOUD_HOME = Path(os.environ.get('CLOUD_HOME', '/opt/testcloud'))
NODES_HOME = Path(os.environ.get('NODES_HOME', '/opt/testnodes'))
LAYER = NODES_HOME / 'overlay' / 'kubernetes'
#: What the names of this demo's clusters begin with, and so those of its servers.
PREFIX = 'demo-'
KEYSTONE_PORT = 5000
#: Where Debian has what is needed: a command and its package.
COMMANDS = {
    'curl': 'curl',
    'ip': 'iproute2',
    'iptables': 'iptables',
    'mmdebstrap': 'mmdebstrap',
    'systemd-nspawn': 'systemd-container',
    'sysctl': 'procps',
    'unshare': 'util-linux',
}
#: Only where no database or broker listens: its port, command and package.
SERVERS = {3306: ('mariadbd', 'mariadb-server'), 5672: ('rabbitmq-server', 'rabbitmq-server')}
#: Of a control plane and four nodes. Seen: 4.1 GiB for the services, 45 MiB for a node of Swarm,
#: 470 for a control plane of Kubernetes.
MEMORY_GIB, DISK_GIB = 6, 6
#: What keeps Debian's packages from starting servers while they are installed.
NO_SERVERS = Path('/usr/sbin/policy-rc.d')


def check(engine: str) -> None:
    """Raise Failed with all that this machine lacks, in one text."""
    lacks = []
    if os.geteuid() != 0:
        lacks.append('it must run as root, because it boots nodes: sudo tools/demo --nodes')
    release = read_release()
    if not shutil.which('apt-get') or release.get('ID') != 'debian':
        name = release.get('PRETTY_NAME', 'unknown')
        lacks.append(
            f'it installs packages of Debian 12 or 13, and this is {name}: use a container'
        )
    if not is_cloud_up():
        free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
        with suppress(OSError, AttributeError, IndexError, ValueError):
            text = Path('/proc/meminfo').read_text()
            free = int(re.findall(r'^MemAvailable: *(\d+) kB', text, re.MULTILINE)[0]) << 10
        if free < MEMORY_GIB << 30:
            lacks.append(f'{MEMORY_GIB} GiB of free memory are needed, {free >> 30} are there')
        disk = shutil.disk_usage(find_parent(CLOUD_HOME)).free
        if disk < DISK_GIB << 30:
            lacks.append(f'{DISK_GIB} GiB are needed for {CLOUD_HOME}, {disk >> 30} are free')
    if engine == 'kubernetes' and not LAYER.exists():
        disk = shutil.disk_usage(find_parent(NODES_HOME)).free
        if disk < (DISK_GIB + 4) << 30:
            lacks.append(f'building Kubernetes needs {DISK_GIB + 4} GiB at {NODES_HOME}')
    if lacks:
        raise Failed('The demo with real nodes cannot run here: ' + '; '.join(lacks) + '.')


def read_release() -> dict[str, str]:
    """What /etc/os-release says."""
    with suppress(OSError):
        lines = Path('/etc/os-release').read_text().splitlines()
        return {k: v.strip('"') for k, _, v in (line.partition('=') for line in lines)}
    return {}


def find_parent(path: Path) -> Path:
    """The nearest folder above that exists."""
    while not path.exists():
        path = path.parent
    return path


def is_cloud_up() -> bool:
    """Whether the test cloud of CLOUD_HOME runs."""
    return (CLOUD_HOME / 'clouds.yaml').exists() and is_taken(KEYSTONE_PORT)


def find_watcher() -> tuple[int, list[str]] | None:
    """The process id and the command line of the watcher of NODES_HOME, if it runs."""
    with suppress(OSError, ValueError):
        pid = int((NODES_HOME / 'run' / 'noded.pid').read_text())
        words = Path(f'/proc/{pid}/cmdline').read_bytes().decode().split('\0')
        if any(word.endswith('noded.py') for word in words):
            return pid, words
    return None


def takes_names(words: list[str], name: str) -> bool:
    """Whether a watcher with this command line boots nodes for servers of this name."""
    if '--match' not in words:
        return True
    return re.search(words[words.index('--match') + 1], name) is not None


def list_missing_packages() -> list[str]:
    """Debian packages that have to be installed."""
    missing = [package for command, package in COMMANDS.items() if not shutil.which(command)]
    for port, (command, package) in SERVERS.items():
        if not is_taken(port) and not shutil.which(command):
            missing.append(package)
    # Debian has the half of `venv` that makes environments in a package of its own.
    with suppress(ImportError):
        import ensurepip  # noqa: F401

        return missing
    return [*missing, 'python3-venv']


@contextmanager
def no_servers_start() -> Iterator[None]:
    """While packages are installed their servers are not started: the test cloud starts its own."""
    if NO_SERVERS.exists():
        yield
        return
    NO_SERVERS.write_text('#!/bin/sh\nexit 101\n')
    NO_SERVERS.chmod(0o755)
    try:
        yield
    finally:
        NO_SERVERS.unlink()


def list_packages() -> set[str]:
    """The packages that are installed."""
    done = subprocess.run(
        ['dpkg-query', '-W', '-f', '${Package}\n'], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def install_packages(terminal: Terminal, made: Made) -> None:
    """Install the missing Debian packages, all at once, as only one may hold apt's lock. Raises
    Failed."""
    missing = list_missing_packages()
    if not missing:
        return
    say(f'machine: installing {" ".join(missing)}')
    before = list_packages()
    command = 'apt-get install -y -qq --no-install-recommends ' + ' '.join(missing)
    with no_servers_start():
        line = f'export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && {command}'
        code, text = terminal.ask(line, timeout_s=1200)
    for name in sorted(list_packages() - before):
        made.add('package', name)
    if code:
        end = '\n'.join(text.strip().splitlines()[-10:])
        raise Failed(f'{command} ended with {code}. Make it work, then go on.\n{end}')


# ---- the cloud and the nodes


def bring_up(terminal: Terminal, made: Made, engine: str) -> None:
    """Bring up the cloud and build the node image beside it, then start the watcher. Raises
    Failed."""
    with ThreadPoolExecutor() as pool:
        image = pool.submit(build_image, terminal, made)
        bring_up_cloud(terminal, made)
        image.result()
    bring_up_watcher(terminal, made)
    if engine == 'kubernetes':
        build_layer(terminal, made)


def bring_up_cloud(terminal: Terminal, made: Made) -> None:
    """Use the test cloud that runs, or start one. Raises Failed."""
    if is_cloud_up():
        kept = '' if made.names('cloud') else ' and will be left running'
        say(f'cloud: the test cloud of {CLOUD_HOME} runs already{kept}')
        return
    if is_taken(KEYSTONE_PORT):
        raise Failed(
            f'Port {KEYSTONE_PORT} is taken, and not by a test cloud of {CLOUD_HOME}. Stop what '
            'listens there, or name the folder of that cloud with CLOUD_HOME.'
        )
    if not CLOUD_HOME.exists():
        made.add('cloud home', str(CLOUD_HOME))
    made.add('cloud', str(CLOUD_HOME))
    say(f'cloud: testcloud/cloud/up, into {CLOUD_HOME}')
    terminal.stream([CLOUD / 'up'], what='The test cloud did not come up', prefix='cloud: ')


def build_image(terminal: Terminal, made: Made) -> None:
    """Build the image of nodes once. Raises Failed."""
    if (NODES_HOME / 'image' / 'rootfs').exists():
        return
    if not NODES_HOME.exists():
        made.add('nodes home', str(NODES_HOME))
    made.add('image', str(NODES_HOME / 'image'))
    say('nodes: testcloud/nodes/build-image (Debian 12 with Docker, from its own packages)')
    build = [NODES / 'build-image']
    terminal.stream(build, what='The image of nodes was not built', prefix='nodes: ')


def bring_up_watcher(terminal: Terminal, made: Made) -> None:
    """Use the watcher that runs, or start one for this demo's servers. Raises Failed."""
    found = find_watcher()
    if not found:
        made.add('watcher', str(NODES_HOME))
        argv = [NODES / 'up', '--match', f'^{PREFIX}']
        terminal.stream(argv, what='The watcher of nodes did not start', prefix='nodes: ')
        return
    pid, words = found
    if not takes_names(words, PREFIX):
        raise Failed(
            f'The watcher of nodes (pid {pid}) boots none for servers whose names begin with '
            f"{PREFIX}. Start it so that it does: testcloud/nodes/down, then "
            f"testcloud/nodes/up --match '^{PREFIX}'"
        )
    say(f'nodes: the watcher of {NODES_HOME} runs already, pid {pid}')


def build_layer(terminal: Terminal, made: Made) -> None:
    """Build Debian's Kubernetes and lay it over the nodes that need it, once. Raises Failed."""
    if not LAYER.exists():
        made.add('layer', str(LAYER))
        cache = NODES_HOME / 'kubernetes'
        say("kubernetes: building it of Debian's sources, once: 4 to 13 minutes on two cores")
        kubernetes = NODES / 'kubernetes'
        terminal.stream(
            [kubernetes / 'build-kubernetes', cache],
            what='Kubernetes was not built',
            prefix='kubernetes: ',
        )
        # build-k8s-layer puts it in its place as the last step, so that a half-made one is none.
        terminal.stream(
            [kubernetes / 'build-k8s-layer', NODES_HOME / 'image' / 'rootfs', cache, LAYER],
            what='The layer of Kubernetes was not built',
            prefix='kubernetes: ',
        )
    rule = LAYER.with_suffix('.match')
    if not rule.exists():
        # Without it Swarm's nodes would get the layer, too, which masks Docker.
        rule.write_text('kubeadm|kubelet\n')
    say(f'kubernetes: {(LAYER / "opt/k8s/VERSION").read_text().strip()} is in {LAYER}')


def stop(terminal: Terminal, made: Made) -> None:
    """Stop what this demo has started, and keep it for a quick next run. Raises Failed."""
    if made.names('watcher'):
        terminal.stream([NODES / 'down'], what='The nodes were not stopped', prefix='nodes: ')
    if made.names('cloud'):
        terminal.stream([CLOUD / 'down'], what='The cloud was not stopped', prefix='cloud: ')


def remove(terminal: Terminal, made: Made) -> None:
    """Remove what this demo has made of cloud and nodes, after `stop`. Raises Failed."""
    for home in made.names('cloud home'):
        purge = [CLOUD / 'down', '--purge']
        terminal.stream(purge, what=f'{home} was not removed', prefix='cloud: ')
    for layer in map(Path, made.names('layer')):
        for path in layer.parent.glob(f'{layer.name}*'):
            remove_tree(path)
        remove_tree(NODES_HOME / 'kubernetes')
    for home in [*made.names('image'), *made.names('nodes home')]:
        remove_tree(Path(home))
    for kind in ('watcher', 'cloud', 'cloud home', 'layer', 'image', 'nodes home'):
        for name in made.names(kind):
            made.remove(kind, name)
            if kind not in ('watcher', 'cloud'):
                say(f'removed {name}')
    packages = made.names('package')
    if packages:
        say(f'Debian packages that were installed stay: apt-get purge {" ".join(packages)}')


def remove_tree(path: Path) -> None:
    """Remove a file or a folder, and nothing that is mounted there."""
    subprocess.run(['rm', '-rf', '--one-file-system', str(path)], check=True)

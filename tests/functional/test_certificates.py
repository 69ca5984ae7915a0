"""Certificates on a real cloud: the stock client gets into a cluster, a member and a reader get a
kubeconfig, and what they read while the broker, or the conductor, is away.

OS_CLOUD names the cloud; `service.py` and `cloud.py` say what else is needed. What the client
writes is read by kubectl, where NODES_HOME has one or it is on the path. Nobody answers at the
cluster's address: the nodes are played."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509
from functional import service as services
from functional.cloud import ON_A_CLOUD, Cluster, Forwarder, Project, Sandbox, Say, ask
from functional.service import Service, poll, start_service
from keystoneauth1 import session as ksa_session
from keystoneauth1.identity import v3

from magnum_lite import certs

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD

#: Seconds that a request may wait for a conductor, and in which a 503 comes of a broker that
#: refuses.
SIGN_S, AT_ONCE_S = 4, 3


@dataclass
class Signing:
    """A cluster, and what its service reaches the broker through."""

    cluster: Cluster
    broker: Forwarder

    @property
    def service(self) -> Service:
        """The service that has the cluster."""
        return self.cluster.service

    def post(
        self, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str]]:
        """Send a POST as the user of the project."""
        return self.service.request(
            'POST', path, body, headers=headers or self.cluster.project.headers
        )

    def sign(self) -> tuple[int, Any, float]:
        """Have a request signed: status, body, seconds."""
        csr = certs.make_request(common_name='admin', organization='system:masters').certificate
        begun = time.monotonic()
        status, body = self.post(
            '/v1/certificates', {'cluster_uuid': self.cluster.uuid, 'csr': csr}
        )
        return status, body, time.monotonic() - begun


@pytest.fixture(scope='module')
def signing(
    sandbox: Sandbox, running: list[Service], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Signing]:
    """A complete cluster of one master, in a project of its own."""
    broker = sa.make_url(services.RABBITMQ)
    forwarder = Forwarder(broker.host or '', broker.port or 5672)
    with contextlib.ExitStack() as undo:
        through = sa.make_url(undo.enter_context(services.own_vhost())).set(
            host='127.0.0.1', port=forwarder.port
        )
        service = start_service(
            sandbox.cloud_name,
            tmp_path_factory.mktemp('service'),
            extra={'certificates': {'sign_timeout': SIGN_S}},
            transport_url=through.render_as_string(hide_password=False),
        )
        undo.callback(service.stop)
        running.append(service)
        undo.callback(running.remove, service)
        project = undo.enter_context(sandbox.project())
        cluster = ask(service, project, name='fn-certs', node_count=0)
        cluster.play_nodes()
        cluster.wait('CREATE_COMPLETE')
        yield Signing(cluster, forwarder)
        forwarder.up()
        cluster.delete()
        cluster.wait('GONE')
        status, _ = service.request(
            'GET', f'/v1/certificates/{cluster.uuid}', headers=project.headers
        )
        assert status == 404
        assert not service.rows('SELECT id FROM cluster_keys')
        assert [o['kind'] for o in cluster.operations if o['kind'] != 'kubeconfig'] == [
            'create',
            'delete',
        ]
        forwarder.down()


def headers_of(project: Project, role: str) -> dict[str, str]:
    """A token of the user in the project with this role alone."""
    cloud = project.cloud
    made = cloud.identity.create_application_credential(
        user=cloud.current_user_id, name=f'{role}-{time.monotonic_ns()}', roles=[{'name': role}]
    )
    session = ksa_session.Session(
        auth=v3.ApplicationCredential(
            auth_url=cloud.config.get_auth_args()['auth_url'],
            application_credential_id=made.id,
            application_credential_secret=made.secret,
        )
    )
    return {'X-Auth-Token': str(session.get_token())}


def kubectl() -> str | None:
    """Where there is one."""
    layer = pathlib.Path(os.environ.get('NODES_HOME', '')) / 'overlay/kubernetes/usr/bin/kubectl'
    return str(layer) if layer.is_file() else shutil.which('kubectl')


def view(path: pathlib.Path) -> str:
    """What kubectl reads in a file."""
    if kubectl() is None:
        pytest.skip('no kubectl')
    done = subprocess.run(
        [
            str(kubectl()),
            'config',
            'view',
            '--kubeconfig',
            str(path),
            '--minify',
            '-o',
            'jsonpath={.clusters[0].cluster.server} {.contexts[0].name}',
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def verify(folder: pathlib.Path, ca: str, pem: str) -> None:
    """Have openssl verify a client certificate."""
    (folder / 'the-ca.pem').write_text(ca)
    (folder / 'the-leaf.pem').write_text(pem)
    done = subprocess.run(
        [
            'openssl',
            'verify',
            '-x509_strict',
            '-purpose',
            'sslclient',
            '-CAfile',
            'the-ca.pem',
            'the-leaf.pem',
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stock_client_shows_signs_and_writes_a_kubeconfig(
    sandbox: Sandbox, signing: Signing, tmp_path: pathlib.Path, say: Say
) -> None:
    cluster = signing.cluster
    keys = (
        '-newkey',
        'rsa:4096',
        '-sha512',
        '-noenc',
        '-keyout',
        'terraform.key',
    )  # as Terraform asks
    subprocess.run(
        [
            'openssl',
            'req',
            '-new',
            *keys,
            '-out',
            'terraform.csr',
            '-subj',
            '/O=system:masters/OU=terraform/CN=admin',
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    with sandbox.client_entry(cluster.project, f'{signing.service.url}/v1') as entry:

        def coe(*words: str) -> str:
            environ = {**os.environ, 'OS_CLOUD': entry, 'SHELL': '/bin/bash'}
            done = subprocess.run(
                ['openstack', 'coe', *words],
                env=environ,
                capture_output=True,
                text=True,
                check=False,
                cwd=tmp_path,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        ca = coe('ca', 'show', 'fn-certs')
        signed = coe('ca', 'sign', 'fn-certs', 'terraform.csr')
        exported = coe('cluster', 'config', 'fn-certs', '--dir', str(tmp_path), '--output-certs')
        rotated = coe('credential', 'rotate', 'fn-certs')  # which fails with status 0

    assert 'gives its clusters no credentials for the cloud' in rotated
    verify(tmp_path, ca, signed)
    verify(tmp_path, (tmp_path / 'ca.pem').read_text(), (tmp_path / 'cert.pem').read_text())
    assert exported.strip() == f'export KUBECONFIG={tmp_path}/config'
    assert view(tmp_path / 'config') == f'{cluster.get()["api_address"]} default'
    say(f'openstack coe cluster config: kubectl reads {view(tmp_path / "config")}')


@pytest.mark.parametrize(
    ('role', 'group'), [('member', 'magnum-lite:admin'), ('reader', 'magnum-lite:view')]
)
def test_every_role_gets_a_kubeconfig_of_its_group(
    signing: Signing, tmp_path: pathlib.Path, role: str, group: str
) -> None:
    headers = headers_of(signing.cluster.project, role)

    status, body = signing.post(f'/v1/clusters/{signing.cluster.uuid}/kubeconfig', headers=headers)

    assert status == 201, body
    assert body['group'] == group
    path = tmp_path / 'kubeconfig'
    path.write_text(body['kubeconfig'])
    assert view(path) == f'{signing.cluster.get()["api_address"]} fn-certs'
    [issued] = [o for o in signing.cluster.operations if body['serial'] in (o['text'] or '')]
    assert (issued['kind'], issued['outcome']) == ('kubeconfig', 'complete') and group in issued[
        'text'
    ]
    conductor = signing.service.conductors[0].text
    assert body['serial'] in conductor and 'PRIVATE KEY' not in conductor
    assert 'PRIVATE KEY' not in (signing.service.api.text if signing.service.api else '')


def test_a_reader_has_nothing_signed(signing: Signing) -> None:
    headers = headers_of(signing.cluster.project, 'reader')

    status, body = signing.post(
        '/v1/certificates', {'cluster_uuid': signing.cluster.uuid, 'csr': 'x'}, headers
    )

    assert (status, 'certificate:create' in body['faultstring']) == (403, True)


def test_nobody_signs_while_the_broker_or_the_conductor_is_away(signing: Signing, say: Say) -> None:
    def until_signed() -> None:
        poll(lambda: signing.sign()[0] == 201, 60, 'a certificate is signed again')

    status, body, took_s = signing.sign()
    assert status == 201, body
    x509.load_pem_x509_certificate(body['pem'].encode())
    say(f'signed in {took_s:.2f} s')

    for what, break_it in (('down', signing.broker.down), ('hanging', signing.broker.hang)):
        break_it()
        status, body, took_s = signing.sign()
        say(f'broker {what}: {status} after {took_s:.2f} s: {body["errors"][0]["title"]}')
        assert status == 503 and took_s < (AT_ONCE_S if what == 'down' else SIGN_S + AT_ONCE_S)
        signing.broker.up()
        begun = time.monotonic()
        until_signed()
        say(f'broker back: signed {time.monotonic() - begun:.1f} s later')

    signing.service.freeze_conductor()
    status, body, took_s = signing.sign()
    say(f'conductor standing still: {status} after {took_s:.2f} s: {body["errors"][0]["title"]}')
    assert status == 503 and took_s < SIGN_S + AT_ONCE_S
    signing.service.kill_conductor()
    status, body, took_s = signing.sign()
    assert status == 503 and took_s < SIGN_S + AT_ONCE_S
    signing.service.start_conductor()
    until_signed()

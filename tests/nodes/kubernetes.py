"""What tests of Kubernetes on real nodes use: kubectl of the nodes' layer, as an administrator, and
a Deployment."""

from __future__ import annotations

import base64
import datetime
import json
import pathlib
import subprocess
from typing import Any

import pytest
from functional.service import Service
from nodes.booted import KUBERNETES

from magnum_lite import certs


@pytest.fixture(scope='module')
def version() -> str:
    """The version of Kubernetes that the layer holds."""
    return (KUBERNETES / 'opt/k8s/VERSION').read_text().strip()


@pytest.fixture(scope='module')
def kubeconfig(
    service: Service, cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """An administrator's kubeconfig, signed by the cluster's authority as its key store holds
    it."""
    path = tmp_path_factory.mktemp('admin') / 'kubeconfig'
    write_kubeconfig(service, cluster, path)
    return path


def fields_of(version: str, **labels: str) -> dict[str, Any]:
    """Fields of a cluster template. There is no registry: images, Kubernetes and the pod network
    lie in the nodes."""
    return {
        'coe': 'kubernetes',
        'labels': {
            'kube_tag': version,
            'network_manifest_url': 'file:///opt/k8s/podnet.yaml',
            'flannel_network_cidr': '10.244.0.0/16',
            **labels,
        },
    }


def write_kubeconfig(
    service: Service, cluster: dict[str, Any], path: pathlib.Path, rotation: int = 0
) -> None:
    """Write an administrator's kubeconfig as it is right in a phase of the exchange of authorities;
    all at once."""
    ca = service.pair(cluster['uuid'], 'ca', rotation)
    admin = certs.issue_client(
        ca, common_name='admin', organization='system:masters', life=datetime.timedelta(hours=1)
    )
    new = path.with_suffix('.new')
    new.touch(0o600)
    new.write_text(
        json.dumps(
            {
                'apiVersion': 'v1',
                'kind': 'Config',
                'current-context': 'c',
                'clusters': [
                    {
                        'name': 'c',
                        'cluster': {
                            'server': cluster['api_address'],
                            'certificate-authority-data': _b64(ca.trusted),
                        },
                    }
                ],
                'users': [
                    {
                        'name': 'u',
                        'user': {
                            'client-certificate-data': _b64(admin.certificate),
                            'client-key-data': _b64(admin.private_key),
                        },
                    }
                ],
                'contexts': [{'name': 'c', 'context': {'cluster': 'c', 'user': 'u'}}],
            }
        )
    )
    new.replace(path)


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def run(kubeconfig: pathlib.Path, *words: str, stdin: str | None = None) -> str:
    """What kubectl prints. Raises AssertionError with its words if it fails."""
    done = subprocess.run(
        [
            str(KUBERNETES / 'usr/bin/kubectl'),
            '--kubeconfig',
            str(kubeconfig),
            '--request-timeout=20s',
            *words,
        ],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def kubectl(kubeconfig: pathlib.Path, *words: str) -> Any:
    """What kubectl answers, as JSON. Raises AssertionError with its words if it fails."""
    return json.loads(run(kubeconfig, *words, '-o', 'json'))


def ready(kubeconfig: pathlib.Path) -> dict[str, str]:
    """Name -> status of the condition Ready of each node that the API knows."""
    return {
        node['metadata']['name']: next(
            c['status'] for c in node['status']['conditions'] if c['type'] == 'Ready'
        )
        for node in kubectl(kubeconfig, 'get', 'nodes')['items']
    }


def deploy(kubeconfig: pathlib.Path, replicas: int) -> None:
    """Ask for a Deployment `web` of which a node has one pod at most."""
    labels = {'app': 'web'}
    apart = {
        'requiredDuringSchedulingIgnoredDuringExecution': [
            {'labelSelector': {'matchLabels': labels}, 'topologyKey': 'kubernetes.io/hostname'}
        ]
    }
    container = {
        'name': 'web',
        'image': 'docker.io/library/busybox:local',
        'command': ['sleep', '9999'],
    }
    run(
        kubeconfig,
        'apply',
        '-f',
        '-',
        stdin=json.dumps(
            {
                'apiVersion': 'apps/v1',
                'kind': 'Deployment',
                'metadata': {'name': 'web'},
                'spec': {
                    'replicas': replicas,
                    'selector': {'matchLabels': labels},
                    'template': {
                        'metadata': {'labels': labels},
                        'spec': {
                            'containers': [container],
                            'affinity': {'podAntiAffinity': apart},
                            'terminationGracePeriodSeconds': 0,
                        },
                    },
                },
            }
        ),
    )


def where_it_runs(kubeconfig: pathlib.Path) -> list[str]:
    """The nodes on which a pod of the Deployment is ready."""
    return sorted(
        pod['spec']['nodeName']
        for pod in kubectl(kubeconfig, 'get', 'pods', '-l', 'app=web')['items']
        if any(
            c['type'] == 'Ready' and c['status'] == 'True'
            for c in pod['status'].get('conditions', ())
        )
    )

"""Handlers of /v1/certificates and /v1/credentials, and of /v1/clusters/{ident}/kubeconfig.

Called by `app` through the route table. The public part of a cluster's authorities is read from the
database. A certificate is requested here and signed by a conductor (`Services.signer`), because no
API process can read the key of an authority. Every member of the project may have one signed, not
only the user who made the cluster."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Any, NoReturn

from magnum_lite import certs, db, drivers, errors, keystore, models, schema, states
from magnum_lite.api import changes, clusters, nodegroups, request
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import CERTIFICATE, KUBECONFIG

PLURAL = 'certificates'
#: The schema of an answer, in which unknown attributes are left out.
SHOWN = schema.describe_row(CERTIFICATE) | {
    'title': 'CertificateShown',
    'required': ['cluster_uuid', 'pem', 'links'],
}


@dataclass(frozen=True)
class _Certificate:
    """What an answer shows of a certificate; None is left out."""

    cluster_uuid: str
    pem: str
    csr: str | None = None
    ca_cert_type: str | None = None


def get(req: Request) -> dict[str, Any]:
    """Show the certificate of an authority of a cluster: while it is exchanged, the old and the new
    one."""
    cluster, authorities = db.get_certificates(req.services.db, req.scope, req.path['ident'])
    driver = nodegroups.get_driver(req, cluster)
    purpose = driver.signing.get_purpose(req.path.get('type', req.query.get('ca_cert_type')))
    return _build_body(
        req, _Certificate(cluster.uuid, _get_authority(cluster, driver, authorities, purpose))
    )


def create(req: Request) -> dict[str, Any]:
    """Have a request for a client certificate signed. Life and usages are the service's choice, the
    subject is not."""
    values = CERTIFICATE.parse(req.body, req.version)
    try:
        cluster, authorities = db.get_certificates(
            req.services.db, req.scope, values['cluster_uuid']
        )
    except errors.NotFound as e:
        # As in Magnum: the address is right, the body is not.
        raise errors.Invalid(str(e)) from e
    driver = nodegroups.get_driver(req, cluster)
    purpose = driver.signing.get_purpose(values['ca_cert_type'])
    _get_authority(cluster, driver, authorities, purpose)
    try:
        certs.read_request(values['csr'], takes_ed25519=driver.signing.takes_ed25519)
    except certs.InvalidRequest as e:
        raise errors.Invalid(f'{e}.') from e
    issued = _sign_request(
        req,
        cluster,
        purpose,
        values['csr'],
        datetime.timedelta(days=req.services.conf.certificates.term_of_validity),
    )
    return _build_body(
        req, _Certificate(cluster.uuid, issued['pem'], values['csr'], values['ca_cert_type'])
    )


def rotate(req: Request) -> Answer:
    """Ask for all authorities of a cluster to be exchanged for new ones.

    That replaces every member three times: so that all trust the new authorities beside the old
    ones; so that the new ones sign; so that the old ones are forgotten. The cluster works
    meanwhile. An exchange that has failed or was stopped goes on where it was, with this or with
    any other change. Raises Invalid where the cluster cannot do it."""
    if req.body is not None:
        raise errors.Invalid(
            'The exchange of authorities takes no body. Send the request without one.'
        )

    def change(cluster: models.Cluster) -> None:
        request.raise_problems(nodegroups.get_driver(req, cluster).check_rotation(cluster))
        if cluster.rotation_phase and states.is_busy(cluster.status):
            raise errors.Conflict(
                f'The authorities of cluster {cluster.uuid} are being exchanged already: this is '
                f'phase {cluster.rotation_phase} of {models.ROTATION_PHASES}. '
                'Wait until it is done.'
            )
        if cluster.rotation_phase:
            return
        cluster.rotation_phase = 1
        for group in cluster.nodegroups:
            if group.status != states.DELETE_IN_PROGRESS:
                nodegroups.check_alive(group)
                group.rollout += 1
                nodegroups.mark_busy(group)

    return changes.request_change(
        req, req.path['ident'], 'rotate', change, answer=clusters.build_answer
    )


def rotate_credentials(req: Request) -> NoReturn:
    """Exchange what a cluster logs in to the cloud with. Those that have it keep it as long as they
    live."""
    cluster, stored = db.get_certificates(req.services.db, req.scope, req.path['ident'])
    if keystore.CLOUD_USER in stored:
        raise errors.Invalid(
            f'Cluster {cluster.uuid} has a user of its own in the cloud, whose password is not '
            'rotated: it ends with the cluster. Make a new cluster instead.'
        )
    raise errors.Invalid(
        f'Driver {cluster.driver} gives its clusters no credentials for the cloud, so cluster '
        f'{cluster.uuid} has none to rotate.'
    )


def create_kubeconfig(req: Request) -> Answer:
    """Give the caller access to a cluster for some hours, in the group that goes with the caller's
    role.

    The answer has `kubeconfig`, the text of the file, and says whose certificate is in it, and
    until when. The key pair is made here, so that no private key goes through the broker; it is
    stored nowhere. That a certificate was issued is written down as an operation, before it is
    handed out."""
    cluster, authorities = db.get_certificates(req.services.db, req.scope, req.path['ident'])
    driver = nodegroups.get_driver(req, cluster)
    access = _get_access(cluster, driver)
    authority = _get_authority(cluster, driver, authorities, access.authority)
    groups = [group for rule, group in access.groups.items() if req.is_allowed(rule)]
    if not groups:
        raise errors.Forbidden(f'No group of cluster {cluster.uuid} goes with your roles.')
    # The driver lists the group with the most rights first.
    group = groups[0]
    pair = certs.make_request(common_name=req.caller.user_id, organization=group)
    issued = _sign_request(
        req,
        cluster,
        access.authority,
        pair.certificate,
        datetime.timedelta(hours=req.services.conf.certificates.kubeconfig_hours),
    )
    text = driver.render_access(
        cluster,
        authority=authority,
        user=req.caller.user_id,
        certificate=issued['pem'],
        private_key=pair.private_key,
    )
    operation = req.new_operation('kubeconfig')
    db.record_finished(
        req.services.db,
        cluster,
        operation,
        f'Certificate {issued["serial"]} for user {req.caller.user_id} in '
        f'group {group}, valid until {issued["until"]}',
    )
    issue = _Issue(
        text,
        cluster.uuid,
        req.caller.user_id,
        group,
        issued['serial'],
        datetime.datetime.fromisoformat(issued['until']),
    )
    return Answer(
        KUBECONFIG.show(issue, req.version), req.locate(operation) | {'Cache-Control': 'no-store'}
    )


@dataclass(frozen=True)
class _Issue:
    """An issued kubeconfig. Its text holds a private key, so it is kept out of `repr`."""

    kubeconfig: str = field(repr=False)
    cluster_uuid: str
    user: str
    group: str
    serial: str
    expires_at: datetime.datetime


def _get_access(cluster: models.Cluster, driver: drivers.Driver) -> drivers.Access:
    """How users access a cluster. Raises Invalid where they never can, Conflict if not yet."""
    if driver.access is None:
        raise errors.Invalid(
            f'Driver {driver.name} of cluster {cluster.uuid} has no kubeconfig to give.'
        )
    if cluster.template.tls_disabled:
        raise errors.Invalid(f'Cluster {cluster.uuid} is without TLS, so it knows no certificates.')
    if not cluster.api_address:
        raise errors.Conflict(
            f'Cluster {cluster.uuid} is {cluster.status} and has no API address yet. Try again '
            'when it is there.'
        )
    return driver.access


def _get_authority(
    cluster: models.Cluster, driver: drivers.Driver, authorities: dict[str, str], purpose: str
) -> str:
    """The certificates of an authority. Raises Invalid where the driver has no such authority,
    Conflict where the cluster does not have it yet."""
    if purpose not in driver.keys:
        raise errors.Invalid(f'Driver {driver.name} of cluster {cluster.uuid} has no certificates.')
    if purpose not in authorities:
        raise errors.Conflict(
            f'Cluster {cluster.uuid} is {cluster.status} and has no certificates yet. Try again '
            'when it is there.'
        )
    return authorities[purpose]


def _sign_request(
    req: Request, cluster: models.Cluster, purpose: str, csr: str, life: datetime.timedelta
) -> dict[str, Any]:
    return req.services.signer.sign_certificate(
        cluster_uuid=cluster.uuid,
        project_id=cluster.project_id,
        purpose=purpose,
        csr=csr,
        life_s=int(life.total_seconds()),
        user_id=req.caller.user_id,
        request_id=req.caller.request_id,
    )


def _build_body(req: Request, shown: _Certificate) -> dict[str, Any]:
    values = CERTIFICATE.show(shown, req.version)
    body = {name: value for name, value in values.items() if value is not None}
    return body | {'links': req.build_links(PLURAL, shown.cluster_uuid)}

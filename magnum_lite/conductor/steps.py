"""The steps around a cluster's stacks: the role on its project, its keys, its user in the cloud,
and the load balancers that its engine has created.

`reconcile` calls them in order, each time that it visits the cluster. A step does one thing outside
and records that it did, or finds that it was done. The conductor may die between the call and the
record; the next one then repeats the step. So whatever is created outside is named after the
cluster's uuid and is looked for before it is created. The lease is renewed before each call to the
cloud (see `Task.renew_lease`).

A step that has to wait raises `errors.Retry`, one that cannot succeed `errors.Failed`. What a step
asks of Heat is in `stacks`.
"""

from __future__ import annotations

import contextlib
import datetime
import secrets

import sqlalchemy as sa
from oslo_log import log

from magnum_lite import certs, clients, db, errors, keystore, models
from magnum_lite.conductor.task import Task

LOG = log.getLogger(__name__)


def ensure_project_role(task: Task) -> None:
    """Give the service its role on the project, before anything is asked of Heat for this cluster.

    A role that is lost later is granted again by `watch.check_stacks`, after calls have failed.
    """
    if task.cluster.stack_id is not None or task.as_admin:
        return
    task.renew_lease()
    try:
        task.services.cloud.grant_roles(task.cluster.project_id)
    except clients.Rejected as e:
        raise errors.Failed(
            'INTERNAL',
            f'The service may not give itself a role on the project. {e}. An operator '
            'has to make the service user an admin, or to grant the roles and to empty [identity] '
            'project_roles.',
        ) from e


def ensure_keys(task: Task) -> None:
    """Create the authorities and key pairs of the driver that are missing, in one transaction.

    While authorities are rotated, each has its successor beside it. A bare key pair has none.
    """
    cluster = task.cluster
    if cluster.stack_id is not None and not cluster.rotation_phase:
        return
    existing = {(key.purpose, key.is_next) for key in db.list_keys(task.services.db, cluster.uuid)}
    life = datetime.timedelta(days=task.services.conf.certificates.ca_days)
    pairs = {}
    for purpose, spec in task.driver.keys.items():
        is_rotated = cluster.rotation_phase and spec.kind == 'ca'
        for is_next in (False, True) if is_rotated else (False,):
            if (purpose, is_next) in existing:
                continue
            if spec.kind == 'ca':
                pair = certs.make_ca(spec.common_name, life=life, algorithm=spec.algorithm)
            else:
                pair = certs.make_keypair(algorithm=spec.algorithm)
            pairs[purpose, is_next] = pair
    if pairs:
        with task.transaction() as session:
            task.services.keystore.store_pairs(session, cluster.uuid, pairs)


def ensure_cluster_user(task: Task) -> None:
    """Create the cluster's user in the cloud, with roles on its project, if the driver wants one.

    Its password is stored first and never changes, so a repeated create means the same user. Its id
    is stored, as the key's certificate, when it has its roles."""
    services = task.services
    cluster = task.cluster
    with task.fail_on_driver_error():
        if not task.driver.wants_cloud_user(services.conf, cluster):
            return
    if _find_cloud_user(task) is None:
        # The ending satisfies rules that ask for each kind of character.
        password = certs.Pair('', f'{secrets.token_urlsafe(32)}-aA1')
        with task.transaction() as session:
            services.keystore.store_pair(session, cluster.uuid, keystore.CLOUD_USER, password)
    row = _find_cloud_user(task)
    if row is None or row.certificate:
        return
    task.renew_lease()
    try:
        user_id = services.cloud.make_user(cluster.uuid, services.keystore.decrypt(row).private_key)
        services.cloud.grant_user(user_id, cluster.project_id)
    except clients.Rejected as e:
        raise errors.Failed(
            'INTERNAL',
            f'The service may not make a user for this cluster. {e}. An operator has to '
            'give it the role admin on the domain that [trust] names.',
        ) from e
    try:
        with task.transaction() as session:
            session.execute(
                sa.update(models.Key).where(models.Key.id == row.id).values(certificate=user_id)
            )
    except errors.LeaseLost:
        # If the cluster was deleted while this conductor was suspended, no row names the user.
        if _find_cloud_user(task) is None:
            services.cloud.remove_user(cluster.uuid, user_id)
        raise


def ensure_no_cluster_user(task: Task) -> None:
    """Remove the cluster's user from the cloud.

    The first step of a delete: from here on nothing inside the cluster gets a token."""
    row = _find_cloud_user(task)
    if row is not None:
        task.renew_lease()
        task.services.cloud.remove_user(task.cluster.uuid, row.certificate)
        with task.transaction() as session:
            session.execute(sa.delete(models.Key).where(models.Key.id == row.id))


def _find_cloud_user(task: Task) -> models.Key | None:
    """Return the row of the cluster's user, not decrypted: a delete must not need the key store."""
    for key in db.list_keys(task.services.db, task.cluster.uuid):
        if key.purpose == keystore.CLOUD_USER:
            return key
    return None


def ensure_no_load_balancers(task: Task) -> None:
    """Delete the load balancers that the engine has created for services inside the cluster, before
    the network that they use.

    Raises Retry while there are any. Without a role at Octavia nothing can be done here: when Heat
    then cannot delete the network, the diagnosis names what uses it."""
    cluster = task.cluster
    cloud = task.services.cloud
    text = task.driver.find_load_balancer_text(cluster)
    if text is None or cluster.stack_id is None or cluster.sent_generation == cluster.generation:
        return
    task.renew_lease()
    try:
        balancers = cloud.list_load_balancers(cluster.project_id, text, as_admin=task.as_admin)
        for balancer in balancers:
            # Conflict: Octavia is working on it. It is deleted at a later visit.
            with contextlib.suppress(clients.Conflict):
                cloud.delete_load_balancer(cluster.project_id, balancer.id, as_admin=task.as_admin)
            LOG.info(
                'Cluster %s: load balancer %s (%s) was made inside the cluster and is being '
                'deleted',
                cluster.uuid,
                balancer.id,
                balancer.name,
            )
    except clients.Rejected as e:
        LOG.warning(
            'Cluster %s: load balancers made inside the cluster cannot be looked for: %s',
            cluster.uuid,
            e,
        )
        return
    if balancers and task.is_overdue():
        names = ', '.join(f'{b.name} ({b.id}, {b.status})' for b in balancers)
        raise errors.Failed(
            'LOADBALANCER',
            f'Load balancers that were made inside the cluster do not go: {names}. '
            'Delete them, then the cluster again.',
        )
    if balancers:
        raise task.make_retry()


def ensure_project_left(task: Task) -> None:
    """Revoke the service's role on a project when its last cluster is deleted.

    If another cluster is requested at this moment, its first calls are rejected; its conductor
    grants the role again."""
    # Cleared before the check: of the last two clusters, deleted at once, each would otherwise be
    # the other's reason to keep the role.
    task.update(stack_id=None)
    if not db.has_other_clusters(task.services.db, task.cluster.project_id, task.cluster.uuid):
        with contextlib.suppress(clients.Rejected):
            task.services.cloud.revoke_roles(task.cluster.project_id)

"""Handlers of /v1/clusters/{ident}/actions: resize and upgrade."""

from __future__ import annotations

from typing import Any

from sqlalchemy import orm

from magnum_lite import db, drivers, errors, members, models
from magnum_lite.api import clusters, nodegroups, preflight, request, versions
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import RESIZE, UPGRADE


def resize(req: Request) -> Answer:
    """Ask for another number of nodes. With the same number, those of `nodes_to_remove` are
    replaced."""
    values = RESIZE.parse(req.body)
    count = values['node_count']
    if count == 0:
        nodegroups.check_zero(req)

    def change(cluster: models.Cluster) -> None:
        group = nodegroups.workers(cluster, values['nodegroup'])
        nodegroups.check_bounds(group, count)
        nodegroups.resize(req, cluster, group, count, values['nodes_to_remove'])

    return req.ask(req.path['ident'], 'resize', change)


def upgrade(req: Request) -> Answer:
    """Ask for the nodes of a nodegroup to be replaced by such of another template's image and
    labels.

    The template's labels are laid over those that there are. With the workers that came with the
    cluster, the cluster itself gets the template, and first its masters are replaced, one by one
    whatever `max_batch_size` says; a further nodegroup follows afterwards. Where masters cannot be
    replaced only the workers are, and the engine's version must stay what it is: no engine allows
    nodes that are newer than their masters."""
    if req.version < versions.UPGRADE:
        raise errors.Invalid(f'The upgrade of a cluster needs version 1.{versions.UPGRADE}.')
    values = UPGRADE.parse(req.body)
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    template = _template(req, cluster, values['cluster_template'])
    group = nodegroups.workers(cluster, values['nodegroup'])
    driver = _driver(req, cluster, template)
    labels = {**cluster.labels, **group.labels, **template.labels}
    request.refuse(driver.check_labels(labels, req.conf))
    found = preflight.look(
        req.services.cloud,
        req.caller,
        preflight.Names(
            image=template.image_id, flavor=group.flavor_id, needs_disk=preflight.needs_disk(labels)
        ),
    )

    def change(cluster: models.Cluster) -> None:
        _upgrade(req, cluster, driver, template, values)

    return req.ask(
        cluster.uuid,
        'upgrade',
        change,
        answer=lambda cluster: Answer({'uuid': cluster.uuid}, request.warnings(found.skipped)),
    )


def _template(req: Request, cluster: models.Cluster, ident: str) -> models.ClusterTemplate:
    """The template that a cluster is to follow: one that the caller may use, or its own."""
    if ident in (cluster.template.uuid, cluster.template.name):
        return cluster.template
    template = db.get_template(req.services.db, req.scope, ident)
    clusters.check_hidden(req, template)
    return template


def _driver(
    req: Request, cluster: models.Cluster, template: models.ClusterTemplate
) -> drivers.Driver:
    """The cluster's driver, if the template is for it. Raises Invalid if it is not."""
    for name in ('coe', 'server_type'):
        theirs, ours = getattr(template, name), getattr(cluster.template, name)
        if theirs != ours:
            raise errors.Invalid(
                f'Cluster {cluster.uuid} has {name} {ours}, and template {template.uuid} is for '
                f'{theirs}. Make a new cluster with it.'
            )
    if template.driver not in (None, cluster.driver):
        raise errors.Invalid(
            f'Cluster {cluster.uuid} was made by driver {cluster.driver}, and template '
            f'{template.uuid} is for {template.driver}. Make a new cluster with it.'
        )
    return drivers.find(
        req.conf,
        server_type=template.server_type,
        os_distro=template.cluster_distro,
        coe=template.coe,
        name=cluster.driver,
    )


def _upgrade(
    req: Request,
    cluster: models.Cluster,
    driver: drivers.Driver,
    template: models.ClusterTemplate,
    values: dict[str, Any],
) -> None:
    """Write on the locked rows that the nodes of this nodegroup are outdated."""
    group = nodegroups.workers(cluster, values['nodegroup'])
    nodegroups.check_alive(group)
    if group.is_default:
        masters = _check_engine(req, cluster, driver, template)
        cluster.cluster_template_id, cluster.labels = (
            template.uuid,
            {**cluster.labels, **template.labels},
        )
        orm.attributes.set_committed_value(
            cluster, 'template', template
        )  # for the driver; it is stored already
        request.refuse(driver.check_cluster(req.conf, cluster))
        for master in masters:
            _outdate(master, template)
    elif template.uuid != cluster.cluster_template_id:
        raise errors.Conflict(
            f'Nodegroup {group.name} can only follow the template of its cluster. Upgrade the '
            'workers that came with the cluster first.'
        )
    elif (asked := driver.engine_version(req.conf, {**group.labels, **template.labels})) != (
        there := driver.engine_version(req.conf, cluster.labels)
    ):
        raise errors.Conflict(
            f'Nodegroup {group.name} would have version {asked}, and its cluster {cluster.uuid} '
            f'has {there}. Upgrade the cluster first.'
        )
    group.batch_size = values['max_batch_size']
    _outdate(group, template)
    if not group.is_default:
        request.refuse(driver.check_cluster(req.conf, cluster, group))


def _outdate(group: models.NodeGroup, template: models.ClusterTemplate) -> None:
    """Want the nodes of a nodegroup replaced by such of a template."""
    group.image_id, group.labels = template.image_id, {**group.labels, **template.labels}
    group.rollout += 1
    nodegroups.start(group)


def _check_engine(
    req: Request, cluster: models.Cluster, driver: drivers.Driver, template: models.ClusterTemplate
) -> list[models.NodeGroup]:
    """The nodegroups of masters to be replaced, none if this cluster cannot do that.

    Raises Conflict for a version that the engine does not allow next, or that the masters could not
    follow to."""
    masters = [group for group in cluster.nodegroups if group.role == 'master']
    labels = {**cluster.labels, **template.labels}
    there, asked = (driver.engine_version(req.conf, found) for found in (cluster.labels, labels))
    fixed = driver.replaceable(cluster, 'master')
    if there != asked:
        if problems := driver.check_upgrade(req.conf, cluster.labels, labels):
            raise errors.Conflict(
                f'Cluster {cluster.uuid} has version {there}, and template {template.uuid} asks '
                f'for {asked}. {". ".join(problems)}.'
            )
        if fixed:
            raise errors.Conflict(
                f'{fixed} Nodes cannot be newer than their masters, and template {template.uuid} '
                f'asks for version {asked} instead of {there}. Make a new cluster with it, or use '
                f'a template with version {there}.'
            )
        if members.has_outdated_masters(cluster):
            raise errors.Conflict(
                f'The masters of cluster {cluster.uuid} are not all of version {there} yet. Wait '
                'until its last upgrade is done, or, if that has failed, upgrade it to its own '
                'template again.'
            )
    return [] if fixed else masters

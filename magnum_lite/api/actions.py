"""Handlers of /v1/clusters/{ident}/actions: resize and upgrade.

Called by `app` through the route table. Write only through `changes`, look into the cloud only
through `preflight`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import orm

from magnum_lite import db, drivers, errors, members
from magnum_lite.api import changes, clusters, nodegroups, preflight, request, versions
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import RESIZE, UPGRADE
from magnum_lite.models import Cluster, ClusterTemplate, NodeGroup


def resize(req: Request) -> Answer:
    """Ask for another number of nodes. With the same number, those of `nodes_to_remove` are
    replaced."""
    values = RESIZE.parse(req.body, req.version)
    count = values['node_count']
    if count == 0:
        nodegroups.check_zero(req)

    def change(cluster: Cluster) -> None:
        group = nodegroups.get_workers(cluster, values['nodegroup'])
        nodegroups.check_bounds(group, count)
        nodegroups.resize(req, cluster, group, count, values['nodes_to_remove'])

    return changes.request_change(req, req.path['ident'], 'resize', change)


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
    values = UPGRADE.parse(req.body, req.version)
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    template = _get_template(req, cluster, values['cluster_template'])
    group = nodegroups.get_workers(cluster, values['nodegroup'])
    driver = _find_driver(req, cluster, template)
    labels = {**cluster.labels, **group.labels, **template.labels}
    request.raise_problems(driver.check_labels(labels, req.services.conf))
    found = preflight.look_up(
        req.services.cloud,
        req.caller,
        preflight.Names(
            image=template.image_id, flavor=group.flavor_id, needs_disk=preflight.needs_disk(labels)
        ),
    )

    def change(cluster: Cluster) -> None:
        _apply_upgrade(req, cluster, driver, template, values)

    def answer(cluster: Cluster, _: None) -> Answer:
        return Answer({'uuid': cluster.uuid}, request.build_warning(found.skipped))

    return changes.request_change(req, cluster.uuid, 'upgrade', change, answer=answer)


def _get_template(req: Request, cluster: Cluster, ident: str) -> ClusterTemplate:
    """The template to upgrade to: one that the caller may use, or the cluster's own."""
    if ident in (cluster.template.uuid, cluster.template.name):
        return cluster.template
    template = db.get_template(req.services.db, req.scope, ident)
    clusters.check_hidden(req, template)
    return template


def _find_driver(req: Request, cluster: Cluster, template: ClusterTemplate) -> drivers.Driver:
    """The cluster's driver. Raises Invalid if the template is for another one."""
    for name in ('coe', 'server_type'):
        current = getattr(cluster.template, name)
        new = getattr(template, name)
        if new != current:
            raise errors.Invalid(
                f'Cluster {cluster.uuid} has {name} {current}, and template {template.uuid} is for '
                f'{new}. Make a new cluster with it.'
            )
    resolve = req.services.drivers.resolve_name
    if template.driver and resolve(template.driver) != resolve(cluster.driver):
        raise errors.Invalid(
            f'Cluster {cluster.uuid} was made by driver {cluster.driver}, and template '
            f'{template.uuid} is for {template.driver}. Make a new cluster with it.'
        )
    return req.services.drivers.find(
        server_type=template.server_type,
        os_distro=template.cluster_distro,
        coe=template.coe,
        name=cluster.driver,
    )


def _apply_upgrade(
    req: Request,
    cluster: Cluster,
    driver: drivers.Driver,
    template: ClusterTemplate,
    values: dict[str, Any],
) -> None:
    """Write on the locked rows which nodes the upgrade replaces. Raises Conflict, Invalid."""
    group = nodegroups.get_workers(cluster, values['nodegroup'])
    nodegroups.check_alive(group)
    group.batch_size = values['max_batch_size']
    if not group.is_default:
        _check_follows(req, cluster, group, driver, template)
        _outdate_group(group, template)
        request.raise_problems(driver.check_cluster(req.services.conf, cluster, group))
        return
    masters = _list_replaceable_masters(req, cluster, driver, template)
    cluster.cluster_template_id = template.uuid
    cluster.labels = {**cluster.labels, **template.labels}
    # The driver reads it. Set as loaded, because the template is stored already.
    orm.attributes.set_committed_value(cluster, 'template', template)
    request.raise_problems(driver.check_cluster(req.services.conf, cluster))
    for outdated in (*masters, group):
        _outdate_group(outdated, template)


def _check_follows(
    req: Request,
    cluster: Cluster,
    group: NodeGroup,
    driver: drivers.Driver,
    template: ClusterTemplate,
) -> None:
    """Raise Conflict unless the template gives a further nodegroup what its cluster has already."""
    if template.uuid != cluster.cluster_template_id:
        raise errors.Conflict(
            f'Nodegroup {group.name} can only follow the template of its cluster. Upgrade the '
            'workers that came with the cluster first.'
        )
    current = driver.find_engine_version(req.services.conf, cluster.labels)
    new = driver.find_engine_version(req.services.conf, {**group.labels, **template.labels})
    if new != current:
        raise errors.Conflict(
            f'Nodegroup {group.name} would have version {new}, and its cluster {cluster.uuid} '
            f'has {current}. Upgrade the cluster first.'
        )


def _outdate_group(group: NodeGroup, template: ClusterTemplate) -> None:
    """Have the nodes of a nodegroup replaced by nodes of this template."""
    group.image_id = template.image_id
    group.labels = {**group.labels, **template.labels}
    group.rollout += 1
    nodegroups.mark_busy(group)


def _list_replaceable_masters(
    req: Request, cluster: Cluster, driver: drivers.Driver, template: ClusterTemplate
) -> list[NodeGroup]:
    """The nodegroups of masters that the upgrade replaces; none where masters cannot be replaced.

    Raises Conflict for a version to which the engine cannot go from here, or the masters cannot."""
    labels = {**cluster.labels, **template.labels}
    current = driver.find_engine_version(req.services.conf, cluster.labels)
    new = driver.find_engine_version(req.services.conf, labels)
    obstacle = driver.explain_irreplaceable(cluster, 'master')
    if current != new:
        if problems := driver.check_upgrade(req.services.conf, cluster.labels, labels):
            raise errors.Conflict(
                f'Cluster {cluster.uuid} has version {current}, and template {template.uuid} asks '
                f'for {new}. {". ".join(problems)}.'
            )
        if obstacle:
            raise errors.Conflict(
                f'{obstacle} Nodes cannot be newer than their masters, and template '
                f'{template.uuid} asks for version {new} instead of {current}. Make a new cluster '
                f'with it, or use a template with version {current}.'
            )
        if members.has_outdated_masters(cluster):
            raise errors.Conflict(
                f'The masters of cluster {cluster.uuid} are not all of version {current} yet. Wait '
                'until its last upgrade is done, or, if that has failed, upgrade it to its own '
                'template again.'
            )
    if obstacle:
        return []
    return [group for group in cluster.nodegroups if group.role == 'master']

"""Handlers of /v1/clusters/{ident}/nodegroups, and what changes a nodegroup wherever it is asked
for."""

from __future__ import annotations

import re
import uuid as uuidlib
from collections.abc import Sequence
from typing import Any

from oslo_utils import uuidutils
from sqlalchemy import orm

from magnum_lite import db, drivers, errors, members, models, states
from magnum_lite.api import etags, patch, preflight, request, versions
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import NODEGROUP

PLURAL = 'nodegroups'
#: What a patch may change. The first two only bound what others ask for.
BOUNDS = ('min_node_count', 'max_node_count')
PATCHABLE = (*BOUNDS, 'node_labels', 'node_taints')
NO_ZERO = f'node_count must be at least 1 before version 1.{versions.ZERO_NODES}.'

#: How engines spell labels and taints of nodes; a node whose are spelled otherwise does not start.
_WORD = r'[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?'
LABEL_KEY = re.compile(rf'([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_WORD}')
LABEL_VALUE = re.compile(rf'({_WORD})?')


def _path(cluster_uuid: str) -> str:
    return f'clusters/{cluster_uuid}/{PLURAL}'


def show(req: Request, cluster: models.Cluster, group: models.NodeGroup) -> dict[str, Any]:
    """The body of one nodegroup."""
    orm.attributes.set_committed_value(
        group, 'cluster', cluster
    )  # its labels are told apart from the cluster's
    return NODEGROUP.show(group, req.version) | {
        'links': req.links(_path(cluster.uuid), group.uuid)
    }


def index(req: Request) -> dict[str, Any]:
    """List the nodegroups of a cluster, short, or those with a role."""
    scope, page = req.listing(models.NodeGroup)
    rows = db.list_nodegroups(
        req.services.db, scope, req.path['ident'], page, req.query.get('role')
    )
    path = _path(rows[0].cluster_id) if rows else ''
    return req.collection(NODEGROUP, PLURAL, rows, page, brief=True, path=path, items=path)


def get(req: Request) -> Answer:
    """Show one nodegroup. `ETag` stands for what is wanted of it, not for how it is."""
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    return _tagged(req, cluster, find(cluster, req.path['group']))


def _tagged(req: Request, cluster: models.Cluster, group: models.NodeGroup) -> Answer:
    return Answer(show(req, cluster, group), {'ETag': etags.of_group(group)})


def create(req: Request) -> Answer:
    """Ask for a further nodegroup."""
    values = NODEGROUP.parse(req.body)
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    driver = driver_of(req, cluster)
    own_image = values['image_id'] is not None
    check(req, cluster, driver, values)
    found = preflight.look(
        req.services.cloud,
        req.caller,
        preflight.Names(
            image=values['image_id'],
            flavor=values['flavor_id'],
            needs_disk=preflight.needs_disk({**cluster.labels, **values['labels']}),
        ),
    )
    template = cluster.template
    distros = [o for s, o, c in driver.provides if (s, c) == (template.server_type, template.coe)]
    if own_image and found.image and found.image.os_distro not in distros:
        raise errors.Invalid(
            f'Driver {driver.name} of cluster {cluster.uuid} makes no nodes from image '
            f'{values["image_id"]}, whose os_distro is {found.image.os_distro}. It makes them from '
            f'{" or ".join(", ".join(distros).rsplit(", ", 1))}.'
        )
    made: list[models.NodeGroup] = []

    def change(cluster: models.Cluster) -> None:
        made[:] = [add(req, cluster, driver, values)]

    return req.ask(
        cluster.uuid,
        'nodegroup_create',
        change,
        answer=lambda cluster: Answer(show(req, cluster, made[0]), request.warnings(found.skipped)),
    )


def _labels(cluster: models.Cluster, given: dict[str, str] | None, merge: bool) -> dict[str, str]:
    return given if given and not merge else {**cluster.labels, **(given or {})}


def check(
    req: Request, cluster: models.Cluster, driver: drivers.Driver, values: dict[str, Any]
) -> None:
    """Fill in what a further nodegroup has from its cluster. Raises Invalid, or Conflict, for what
    cannot be."""
    if 'nodegroup_stack' not in driver.manifest:
        raise errors.Invalid(
            f'Driver {driver.name} makes no nodegroups but those that come with a cluster.'
        )
    if values['role'] == 'master':
        raise errors.Invalid('A further nodegroup cannot have the role master.')
    _check_consistent(values, driver.check_node_labels(values['node_labels']))
    values['labels'] = _labels(cluster, values['labels'], values.pop('merge_labels'))
    values['flavor_id'] = values['flavor_id'] or cluster.flavor_id
    values['image_id'] = values['image_id'] or cluster.template.image_id
    request.refuse(driver.check_labels(values['labels'], req.conf))


def add(
    req: Request, cluster: models.Cluster, driver: drivers.Driver, values: dict[str, Any]
) -> models.NodeGroup:
    """The rows of a further nodegroup and its nodes. Raises Conflict, or Invalid for limits that it
    would run into."""
    # MariaDB takes names for the same that differ by spaces at the end.
    if any(group.name.rstrip(' ') == values['name'].rstrip(' ') for group in cluster.nodegroups):
        raise errors.Conflict(
            f'Cluster {cluster.uuid} has a nodegroup with the name {values["name"]} already.'
        )
    group = models.NodeGroup(
        uuid=uuidutils.generate_uuid(),
        project_id=cluster.project_id,
        is_default=False,
        next_number=0,
        rollout=1,
        status=states.CREATE_IN_PROGRESS,
        nodes=[],
        **values,
    )
    cluster.nodegroups.append(group)
    request.refuse(
        driver.check_cluster(req.conf, cluster, group)
    )  # before there are rows: it may be any number
    members.add(cluster, group, group.node_count)
    return group


def update(req: Request) -> Answer:
    """Change the bounds of a nodegroup, which is done at once, or what its nodes are labelled
    with."""
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    group = find(cluster, req.path['group'])
    changed = patch.changes(NODEGROUP, patch.document(NODEGROUP, group), req.body, PATCHABLE)
    if not changed:
        req.check(etags.of_group(group))
        return _tagged(req, cluster, group)
    group_uuid = group.uuid

    def tag(cluster: models.Cluster) -> str:
        return etags.of_group(find(cluster, group_uuid))

    def answer(cluster: models.Cluster) -> Answer:
        return _tagged(req, cluster, find(cluster, group_uuid))

    def change(cluster: models.Cluster) -> None:
        group = find(cluster, group_uuid)
        check_alive(group)
        if group.role == 'master' and not changed.keys() <= set(BOUNDS):
            raise errors.Conflict(
                f'Nodegroup {group.name} holds the masters, whose labels and taints stay as they '
                'are.'
            )
        for name, value in changed.items():
            setattr(group, name, value)
        _check_consistent(
            {name: getattr(group, name) for name in (*PATCHABLE, 'node_count')},
            driver_of(req, cluster).check_node_labels(changed['node_labels'])
            if 'node_labels' in changed
            else [],
        )
        group.updated_at = models.utcnow()
        if not changed.keys() <= set(BOUNDS):
            request.refuse(driver_of(req, cluster).check_cluster(req.conf, cluster, group))
            start(group)

    if changed.keys() <= set(BOUNDS):
        return answer(
            db.edit_cluster(req.services.db, req.scope, cluster.uuid, change, guard=req.guard(tag))
        )
    return req.ask(cluster.uuid, 'nodegroup_update', change, answer=answer, tag=tag)


def delete(req: Request) -> Answer:
    """Ask for a nodegroup to be deleted. Asking again while it is being deleted is no second
    operation."""
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    group = find(cluster, req.path['group'])
    if group.is_default:
        raise errors.Invalid(
            f'Nodegroup {group.name} came with cluster {cluster.uuid} and goes with it only.'
        )
    if group.status == states.DELETE_IN_PROGRESS:
        req.check(etags.of_group(group))
        return Answer(None)
    group_uuid = group.uuid

    def change(cluster: models.Cluster) -> None:
        group = find(cluster, group_uuid)
        group.status, group.updated_at = states.DELETE_IN_PROGRESS, models.utcnow()
        members.mark_unwanted(group.nodes)

    return req.ask(
        cluster.uuid,
        'nodegroup_delete',
        change,
        answer=lambda _: Answer(None),
        tag=lambda cluster: etags.of_group(find(cluster, group_uuid)),
    )


def find(cluster: models.Cluster, ident: str) -> models.NodeGroup:
    """A nodegroup of a cluster by uuid, number in the database, or name (api.md 0.2). Raises
    NotFound."""
    wanted = str(uuidlib.UUID(ident)) if uuidutils.is_uuid_like(ident) else ident
    for of in (lambda group: group.uuid, lambda group: str(group.id), lambda group: group.name):
        for group in cluster.nodegroups:
            if of(group) == wanted:
                return group
    raise errors.NotFound(f'Nodegroup {ident} could not be found in cluster {cluster.uuid}.')


def workers(cluster: models.Cluster, ident: str | None = None) -> models.NodeGroup:
    """That nodegroup, or the workers that came with the cluster. Raises NotFound, Invalid for
    masters."""
    group = (
        find(cluster, ident)
        if ident is not None
        else next(
            group for group in cluster.nodegroups if group.is_default and group.role != 'master'
        )
    )
    if group.role == 'master':
        raise errors.Invalid(
            f'Nodegroup {group.name} holds the masters, whose number and image stay as they are.'
        )
    return group


def driver_of(req: Request, cluster: models.Cluster) -> drivers.Driver:
    """The driver that a cluster was made with. Raises Conflict if the operator has taken it
    away."""
    driver = req.services.drivers.get(cluster.driver)
    if driver is None:
        raise errors.Conflict(
            f'Driver {cluster.driver} of cluster {cluster.uuid} is not installed any more. '
            'Ask an operator.'
        )
    return driver


def start(group: models.NodeGroup) -> None:
    """Note that there is work on a nodegroup. One that is being made goes on being made."""
    group.status = states.TRANSITIONS['update'].get(group.status, group.status)
    group.updated_at = models.utcnow()


def resize(
    req: Request,
    cluster: models.Cluster,
    group: models.NodeGroup,
    count: int,
    remove: Sequence[str] = (),
) -> None:
    """Want so many nodes, and not those of `remove`. Raises Invalid for more than the driver can
    do."""
    check_alive(group)
    grows, group.node_count = count > group.node_count, count
    if grows:  # a cluster beyond a limit that came later may still shrink
        request.refuse(driver_of(req, cluster).check_cluster(req.conf, cluster, group))
    members.resize(cluster, group, count, remove)
    start(group)


def check_zero(req: Request) -> None:
    """Raise Invalid for a request of no nodes in a version that does not know that."""
    if req.version < versions.ZERO_NODES:
        raise errors.Invalid(NO_ZERO)


def check_alive(group: models.NodeGroup) -> None:
    """Raise Conflict for a nodegroup that is being deleted."""
    if group.status in (states.DELETE_IN_PROGRESS, states.DELETE_FAILED):
        raise errors.Conflict(f'Nodegroup {group.name} is {group.status}, which allows no change.')


def check_bounds(group: models.NodeGroup, count: int) -> None:
    """Raise Invalid for a number of nodes that the nodegroup's bounds do not allow."""
    most = group.max_node_count
    if count < group.min_node_count or (most is not None and count > most):
        raise errors.Invalid(
            f'Nodegroup {group.name} may have from {group.min_node_count} to '
            f'{"any number of" if most is None else most} nodes, not {count}.'
        )


def _check_consistent(values: dict[str, Any], problems: list[str]) -> None:
    """Raise Conflict, as Magnum does, for counts that contradict each other and for ill spelled
    labels and taints.

    And for what the driver finds wrong with them, which `problems` are.
    """
    least, count, most = values['min_node_count'], values['node_count'], values['max_node_count']
    if not least <= count <= (count if most is None else most):
        problems.append(
            f'node_count {count} must lie between min_node_count {least} and max_node_count {most}'
        )
    for key, value in values['node_labels'].items():
        if not LABEL_KEY.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
            problems.append(
                f'A node cannot have the label {key!r:.80} with the value {value!r:.80}'
            )
    taints = values['node_taints']
    for taint in taints:
        if not LABEL_KEY.fullmatch(taint['key']) or not LABEL_VALUE.fullmatch(
            taint.get('value') or ''
        ):
            problems.append(
                f'A node cannot have the taint {taint["key"]!r:.80}={taint.get("value")!r:.80}'
            )
    if len({(taint['key'], taint['effect']) for taint in taints}) < len(taints):
        problems.append('A taint with the same key and effect is given more than once')
    if problems:
        raise errors.Conflict('. '.join(problems[:20]) + '.')

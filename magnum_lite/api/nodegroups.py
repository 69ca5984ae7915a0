"""Handlers of /v1/clusters/{ident}/nodegroups, and the rules for a change of any nodegroup.

Called by `app` through the route table. `clusters`, `actions`, `certificates` and `offline` use the
functions below the handlers. Writes only through `db` and `changes`, looks into the cloud only
through `preflight`."""

from __future__ import annotations

import functools
import re
import uuid as uuidlib
from collections.abc import Sequence
from typing import Any

from oslo_utils import uuidutils
from sqlalchemy import orm

from magnum_lite import db, drivers, errors, members, models, states
from magnum_lite.api import changes, etags, paging, patch, preflight, request, versions
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import NODEGROUP
from magnum_lite.models import Cluster, NodeGroup
from magnum_lite.schema import Values

PLURAL = 'nodegroups'
#: Attributes of which a change is no operation: they only bound later requests.
BOUNDS = ('min_node_count', 'max_node_count')
#: Attributes that a patch may change.
PATCHABLE = (*BOUNDS, 'node_labels', 'node_taints')
NO_ZERO = f'node_count must be at least 1 before version 1.{versions.ZERO_NODES}.'

#: The syntax of labels and taints in engines. A node with any other does not start.
_WORD = r'[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?'
LABEL_KEY = re.compile(rf'([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_WORD}')
LABEL_VALUE = re.compile(rf'({_WORD})?')


def _build_path(cluster_uuid: str) -> str:
    return f'clusters/{cluster_uuid}/{PLURAL}'


def show(req: Request, cluster: Cluster, group: NodeGroup) -> Values:
    """The body of one nodegroup."""
    # The fields compare its labels with those of the cluster.
    orm.attributes.set_committed_value(group, 'cluster', cluster)
    links = req.build_links(_build_path(cluster.uuid), group.uuid)
    return NODEGROUP.show(group, req.version) | {'links': links}


def index(req: Request) -> dict[str, Any]:
    """List the nodegroups of a cluster, short, or those with a role."""
    scope, page = paging.read_page(req, NodeGroup, NODEGROUP)
    rows = db.list_nodegroups(
        req.services.db, scope, req.path['ident'], page, req.query.get('role')
    )
    path = _build_path(rows[0].cluster_id) if rows else ''
    return paging.build_listing(
        req, NODEGROUP, PLURAL, rows, page, brief=True, path=path, items=path
    )


def get(req: Request) -> Answer:
    """Show one nodegroup. `ETag` stands for what is wanted of it, not for how it is."""
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    return _build_answer(req, cluster, get_group(cluster, req.path['group']))


def _build_answer(req: Request, cluster: Cluster, group: NodeGroup) -> Answer:
    return Answer(show(req, cluster, group), {'ETag': etags.of_group(group)})


def create(req: Request) -> Answer:
    """Ask for a further nodegroup."""
    values = NODEGROUP.parse(req.body, req.version)
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    driver = get_driver(req, cluster)
    has_own_image = values['image_id'] is not None
    complete_values(req, cluster, driver, values)
    found = preflight.look_up(
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
    if has_own_image and found.image and found.image.os_distro not in distros:
        raise errors.Invalid(
            f'Driver {driver.name} of cluster {cluster.uuid} makes no nodes from image '
            f'{values["image_id"]}, whose os_distro is {found.image.os_distro}. It makes them from '
            f'{" or ".join(", ".join(distros).rsplit(", ", 1))}.'
        )

    def change(cluster: Cluster) -> NodeGroup:
        return add_group(req, cluster, driver, values)

    def answer(cluster: Cluster, group: NodeGroup) -> Answer:
        return Answer(show(req, cluster, group), request.build_warning(found.skipped))

    return changes.request_change(req, cluster.uuid, 'nodegroup_create', change, answer=answer)


def _merge_labels(cluster: Cluster, given: dict[str, str] | None, merge: bool) -> dict[str, str]:
    """The labels of a further nodegroup."""
    if given and not merge:
        return given
    return {**cluster.labels, **(given or {})}


def complete_values(req: Request, cluster: Cluster, driver: drivers.Driver, values: Values) -> None:
    """Fill in what a further nodegroup takes from its cluster, and check it.

    Raises Invalid, and Conflict for bad counts, labels and taints of nodes."""
    if 'nodegroup_stack' not in driver.manifest:
        raise errors.Invalid(
            f'Driver {driver.name} makes no nodegroups but those that come with a cluster.'
        )
    if values['role'] == 'master':
        raise errors.Invalid('A further nodegroup cannot have the role master.')
    _check_consistent(values, driver.check_node_labels(values['node_labels']))
    values['labels'] = _merge_labels(cluster, values['labels'], values.pop('merge_labels'))
    values['flavor_id'] = values['flavor_id'] or cluster.flavor_id
    values['image_id'] = values['image_id'] or cluster.template.image_id
    request.raise_problems(driver.check_labels(values['labels'], req.services.conf))


def add_group(req: Request, cluster: Cluster, driver: drivers.Driver, values: Values) -> NodeGroup:
    """Add the rows of a further nodegroup and its nodes. Raises Conflict for a name that is taken,
    Invalid for limits that it would exceed."""
    # MariaDB treats names as equal that differ only by spaces at the end.
    if any(group.name.rstrip(' ') == values['name'].rstrip(' ') for group in cluster.nodegroups):
        raise errors.Conflict(
            f'Cluster {cluster.uuid} has a nodegroup with the name {values["name"]} already.'
        )
    group = NodeGroup(
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
    # Before there are rows of nodes, because until then the count may be any number.
    request.raise_problems(driver.check_cluster(req.services.conf, cluster, group))
    members.add(cluster, group, group.node_count)
    return group


def update(req: Request) -> Answer:
    """Change the bounds of a nodegroup, which is done at once, or what its nodes are labelled
    with."""
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    group = get_group(cluster, req.path['group'])
    document = patch.read_document(NODEGROUP, group, req.version)
    changed = patch.read_changes(NODEGROUP, document, req.body, req.version, PATCHABLE)
    if not changed:
        changes.check_tag(req, etags.of_group(group))
        return _build_answer(req, cluster, group)
    group_uuid = group.uuid
    is_operation = not changed.keys() <= set(BOUNDS)

    def tag(cluster: Cluster) -> str:
        return etags.of_group(get_group(cluster, group_uuid))

    def change(cluster: Cluster) -> NodeGroup:
        group = get_group(cluster, group_uuid)
        _apply_changes(req, cluster, group, changed)
        if is_operation:
            request.raise_problems(
                get_driver(req, cluster).check_cluster(req.services.conf, cluster, group)
            )
            mark_busy(group)
        return group

    answer = functools.partial(_build_answer, req)
    if is_operation:
        return changes.request_change(
            req, cluster.uuid, 'nodegroup_update', change, answer=answer, tag=tag
        )
    cluster = db.edit_cluster(
        req.services.db,
        req.scope,
        cluster.uuid,
        change,
        guard=changes.make_guard(req, tag),
    )
    return answer(cluster, get_group(cluster, group_uuid))


def _apply_changes(req: Request, cluster: Cluster, group: NodeGroup, changed: Values) -> None:
    """Write the attributes that a patch changes. Raises Conflict for what cannot be."""
    check_alive(group)
    if group.role == 'master' and not changed.keys() <= set(BOUNDS):
        raise errors.Conflict(
            f'Nodegroup {group.name} holds the masters, whose labels and taints stay as they are.'
        )
    for name, value in changed.items():
        setattr(group, name, value)
    problems = []
    if 'node_labels' in changed:
        problems = get_driver(req, cluster).check_node_labels(changed['node_labels'])
    values = {name: getattr(group, name) for name in (*PATCHABLE, 'node_count')}
    _check_consistent(values, problems)
    group.updated_at = models.utcnow()


def delete(req: Request) -> Answer:
    """Ask for a nodegroup to be deleted. Asking again while it is being deleted is no second
    operation."""
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    group = get_group(cluster, req.path['group'])
    if group.is_default:
        raise errors.Invalid(
            f'Nodegroup {group.name} came with cluster {cluster.uuid} and goes with it only.'
        )
    if group.status == states.DELETE_IN_PROGRESS:
        changes.check_tag(req, etags.of_group(group))
        return Answer(None)
    group_uuid = group.uuid

    def change(cluster: Cluster) -> None:
        group = get_group(cluster, group_uuid)
        group.status = states.DELETE_IN_PROGRESS
        group.updated_at = models.utcnow()
        members.mark_unwanted(group.nodes)

    return changes.request_change(
        req,
        cluster.uuid,
        'nodegroup_delete',
        change,
        answer=lambda *_: Answer(None),
        tag=lambda cluster: etags.of_group(get_group(cluster, group_uuid)),
    )


def get_group(cluster: Cluster, ident: str) -> NodeGroup:
    """A nodegroup of a cluster by uuid, number in the database, or name. Raises NotFound.

    The order is Magnum's (doc/contributor/wire-contract.md)."""
    key = str(uuidlib.UUID(ident)) if uuidutils.is_uuid_like(ident) else ident
    for attribute in ('uuid', 'id', 'name'):
        for group in cluster.nodegroups:
            if str(getattr(group, attribute)) == key:
                return group
    raise errors.NotFound(f'Nodegroup {ident} could not be found in cluster {cluster.uuid}.')


def get_workers(cluster: Cluster, ident: str | None = None) -> NodeGroup:
    """The nodegroup `ident`, default the workers that came with the cluster.

    Raises NotFound, and Invalid for masters."""
    if ident is None:
        return next(
            group for group in cluster.nodegroups if group.is_default and group.role != 'master'
        )
    group = get_group(cluster, ident)
    if group.role == 'master':
        raise errors.Invalid(
            f'Nodegroup {group.name} holds the masters, whose number and image stay as they are.'
        )
    return group


def get_driver(req: Request, cluster: Cluster) -> drivers.Driver:
    """The driver of a cluster. Raises Conflict if it is no longer installed."""
    driver = req.services.drivers.get(cluster.driver)
    if driver is None:
        raise errors.Conflict(
            f'Driver {cluster.driver} of cluster {cluster.uuid} is not installed any more. '
            'Ask an operator.'
        )
    return driver


def mark_busy(group: NodeGroup) -> None:
    """Set the status that has conductors work on a nodegroup. One in creation stays in it."""
    group.status = states.TRANSITIONS['update'].get(group.status, group.status)
    group.updated_at = models.utcnow()


def resize(
    req: Request,
    cluster: Cluster,
    group: NodeGroup,
    count: int,
    remove: Sequence[str] = (),
) -> None:
    """Set the wanted number of nodes, and mark those of `remove` as unwanted.

    Raises Invalid for more nodes than the driver can make, Conflict for a nodegroup in deletion."""
    check_alive(group)
    grows = count > group.node_count
    group.node_count = count
    # Only growth is checked: a cluster above a limit that was introduced later may still shrink.
    if grows:
        request.raise_problems(
            get_driver(req, cluster).check_cluster(req.services.conf, cluster, group)
        )
    members.resize(cluster, group, count, remove)
    mark_busy(group)


def check_zero(req: Request) -> None:
    """Raise Invalid for a request for zero nodes in a version that does not allow it."""
    if req.version < versions.ZERO_NODES:
        raise errors.Invalid(NO_ZERO)


def check_alive(group: NodeGroup) -> None:
    """Raise Conflict for a nodegroup that is being deleted."""
    if group.status in (states.DELETE_IN_PROGRESS, states.DELETE_FAILED):
        raise errors.Conflict(f'Nodegroup {group.name} is {group.status}, which allows no change.')


def check_bounds(group: NodeGroup, count: int) -> None:
    """Raise Invalid for a number of nodes that the nodegroup's bounds do not allow."""
    maximum = group.max_node_count
    if count < group.min_node_count or (maximum is not None and count > maximum):
        raise errors.Invalid(
            f'Nodegroup {group.name} may have from {group.min_node_count} to '
            f'{"any number of" if maximum is None else maximum} nodes, not {count}.'
        )


def _check_consistent(values: Values, problems: list[str]) -> None:
    """Check counts, labels and taints of nodes. Raises Conflict, as Magnum does.

    `problems` are those that the driver has found."""
    minimum = values['min_node_count']
    count = values['node_count']
    maximum = values['max_node_count']
    if count < minimum or (maximum is not None and count > maximum):
        problems.append(
            f'node_count {count} must lie between min_node_count {minimum} and '
            f'max_node_count {maximum}'
        )
    for key, value in values['node_labels'].items():
        if not _is_label(key, value):
            problems.append(
                f'A node cannot have the label {key!r:.80} with the value {value!r:.80}'
            )
    taints = values['node_taints']
    for taint in taints:
        if not _is_label(taint['key'], taint.get('value') or ''):
            problems.append(
                f'A node cannot have the taint {taint["key"]!r:.80}={taint.get("value")!r:.80}'
            )
    if len({(taint['key'], taint['effect']) for taint in taints}) < len(taints):
        problems.append('A taint with the same key and effect is given more than once')
    if problems:
        raise errors.Conflict('. '.join(problems[:20]) + '.')


def _is_label(key: str, value: str) -> bool:
    return bool(LABEL_KEY.fullmatch(key) and LABEL_VALUE.fullmatch(value))

"""Handlers of /v1/clusters, and the rows of a new cluster.

Called by `app` through the route table; `offline` and `actions` use the parts that need no request
to be served. Writes only through `db` and `changes`, looks into the cloud only through
`preflight`."""

from __future__ import annotations

from typing import Any

from oslo_utils import uuidutils
from sqlalchemy import orm

from magnum_lite import db, drivers, errors, members, states
from magnum_lite.api import changes, etags, nodegroups, paging, patch, preflight, request, versions
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import CLUSTER, CLUSTER_NOTES
from magnum_lite.models import Cluster, ClusterTemplate, NodeGroup
from magnum_lite.schema import Values

PLURAL = 'clusters'
#: Names of the nodegroups that come with a cluster.
MASTERS = 'default-master'
WORKERS = 'default-worker'
#: Attributes that a cluster takes from its template where the request does not give them.
INHERITED = (
    'docker_volume_size',
    'flavor_id',
    'master_flavor_id',
    'fixed_network',
    'fixed_subnet',
    'floating_ip_enabled',
    'master_lb_enabled',
)
#: Attributes that a patch may change.
PATCHABLE = ('node_count', 'health_status', 'health_status_reason', *CLUSTER_NOTES)


def index(req: Request) -> dict[str, Any]:
    """List clusters, short."""
    scope, page = paging.read_page(req, Cluster, CLUSTER)
    rows = db.list_clusters_brief(req.services.db, scope, page)
    return paging.build_listing(req, CLUSTER, PLURAL, rows, page, brief=True)


def detail(req: Request) -> dict[str, Any]:
    """List clusters with all attributes."""
    scope, page = paging.read_page(req, Cluster, CLUSTER)
    rows = db.list_clusters(req.services.db, scope, page)
    path = f'{PLURAL}/detail'
    return paging.build_listing(req, CLUSTER, PLURAL, rows, page, brief=False, path=path)


def get(req: Request) -> Answer:
    """Show one cluster; a failed one with the reasons of its nodegroups.

    `ETag` stands for what is wanted of it: a status or a health that changes leaves it, and each
    change that somebody asks for changes it."""
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    body: dict[str, Any] = CLUSTER.show(cluster, req.version)
    body['links'] = req.build_links(PLURAL, cluster.uuid)
    if states.is_failed(cluster.status):
        body['faults'] = {
            group.name: group.status_reason or ''
            for group in cluster.nodegroups
            if states.is_failed(group.status)
        }
    return Answer(body, {'ETag': etags.of_cluster(cluster)})


def delete(req: Request) -> Answer:
    """Ask for a cluster to be deleted, whatever state it is in. `force` gives up on what blocks
    that."""
    force = req.read_flag('force')
    if force:
        req.authorize('cluster:force_delete')
    new = req.new_operation('delete')
    cluster, operation = db.request_delete(
        req.services.db,
        req.scope,
        req.path['ident'],
        new,
        force=force,
        guard=changes.make_guard(req, etags.of_cluster),
    )
    if operation is new:
        changes.announce(req, cluster, new)
    else:
        # A delete runs already: it was announced, and only needs another look.
        req.services.nudger.nudge(cluster.uuid)
    return Answer(None, req.locate(operation) if operation else {})


def update(req: Request) -> Answer:
    """Change the number of workers or the description, or say how the engine is. Only the first is
    an operation.

    `rollback` is taken and does nothing: what fails is left as it is, and the next change goes on
    from there."""
    if 'rollback' in req.query and req.version < versions.ROLLBACK:
        raise errors.Invalid("Unknown argument: 'rollback'.")
    req.read_flag('rollback')
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    document = patch.read_document(CLUSTER, cluster, req.version)
    changed = patch.read_changes(CLUSTER, document, req.body, req.version, PATCHABLE)
    count = changed.pop('node_count', None)
    if count == 0:
        nodegroups.check_zero(req)
    if not changed.keys().isdisjoint(('health_status', 'health_status_reason')):
        req.authorize('cluster:update_health_status')

    if count is None:
        return build_answer(_edit_cluster(req, cluster, changed))

    def change(cluster: Cluster) -> None:
        _set_attributes(cluster, changed)
        group = nodegroups.get_workers(cluster)
        nodegroups.check_bounds(group, count)
        nodegroups.resize(req, cluster, group, count)

    return changes.request_change(req, cluster.uuid, 'resize', change, answer=build_answer)


def _edit_cluster(req: Request, cluster: Cluster, changed: Values) -> Cluster:
    """Change what needs no operation: notes and health. Returns the cluster."""
    guard = changes.make_guard(req, etags.of_cluster)
    if not changed.keys().isdisjoint(CLUSTER_NOTES):
        # `updated_at` stays: conductors measure from it how long the last operation has run.
        return db.edit_cluster(
            req.services.db,
            req.scope,
            cluster.uuid,
            lambda cluster: _set_attributes(cluster, changed),
            guard=guard,
        )
    if changed:
        db.set_health(
            req.services.db,
            req.scope,
            cluster.uuid,
            status=changed.get('health_status', cluster.health_status),
            reason=changed.get('health_status_reason', cluster.health_status_reason),
            guard=guard,
        )
    else:
        changes.check_tag(req, etags.of_cluster(cluster))
    return cluster


def _set_attributes(cluster: Cluster, changed: Values) -> None:
    for name, value in changed.items():
        setattr(cluster, name, value)


def build_answer(cluster: Cluster, _: object = None) -> Answer:
    """The answer to most changes: uuid and tag. For `changes.request_change`, hence the second
    parameter."""
    return Answer({'uuid': cluster.uuid}, {'ETag': etags.of_cluster(cluster)})


def create(req: Request) -> Answer:
    """Store a new cluster and have a conductor told. The 202 means that it is stored, not that it
    works."""
    values = CLUSTER.parse(req.body, req.version)
    template = _get_template(req, values['cluster_template_id'])
    driver = complete_values(req, template, values)
    found = preflight.look_up(
        req.services.cloud,
        req.caller,
        preflight.Names(
            image=template.image_id,
            flavor=values['flavor_id'],
            master_flavor=values['master_flavor_id'],
            external_network=template.external_network_id,
            fixed_network=values['fixed_network'],
            fixed_subnet=values['fixed_subnet'],
            keypair=values['keypair'],
            needs_disk=preflight.needs_disk(values['labels']),
        ),
    )
    cluster = make_cluster(req, template, driver, found.public_key, values)
    operation = req.new_operation('create')
    answer = Answer(
        {'uuid': cluster.uuid}, req.locate(operation) | request.build_warning(found.skipped)
    )
    db.create_cluster(
        req.services.db,
        cluster,
        operation,
        default_quota=req.services.conf.quotas.max_clusters_per_project,
        receipt=changes.make_receipt(req, lambda _: answer),
    )
    changes.announce(req, cluster, operation)
    return answer


def complete_values(req: Request, template: ClusterTemplate, values: Values) -> drivers.Driver:
    """Fill in what a new cluster takes from its template, and check it. Returns its driver.

    Raises Invalid with all problems."""
    driver = req.services.drivers.find(
        server_type=template.server_type,
        os_distro=template.cluster_distro,
        coe=template.coe,
        name=template.driver,
    )
    for name in INHERITED:
        if values[name] is None:
            values[name] = getattr(template, name)
    values['keypair'] = values['keypair'] or template.keypair_id
    # A null is kept.
    if 'create_timeout' not in req.body:
        values['create_timeout'] = req.services.conf.cluster_heat.create_timeout
    values['labels'] = _merge_labels(template, values['labels'], values.pop('merge_labels'))
    request.raise_problems(
        _list_problems(req, template, values)
        + driver.check_labels(values['labels'], req.services.conf)
    )
    return driver


def make_cluster(
    req: Request,
    template: ClusterTemplate,
    driver: drivers.Driver,
    public_key: str | None,
    values: Values,
) -> Cluster:
    """The rows of a new cluster with its nodes. Raises Invalid for limits that it would exceed."""
    cluster = _make_rows(req, template, driver.name, public_key, values)
    request.raise_problems(driver.check_cluster(req.services.conf, cluster))
    # After the check, because until then the counts may be any number.
    for group in cluster.nodegroups:
        members.add(cluster, group, group.node_count)
    return cluster


def _get_template(req: Request, ident: str) -> ClusterTemplate:
    """The template that a request names. Raises NotFound from version 1.10 on, before that Invalid;
    Forbidden for a hidden one."""
    try:
        template = db.get_template(req.services.db, req.scope, ident)
    except errors.NotFound as e:
        if req.version >= versions.ZERO_NODES:
            raise
        raise errors.Invalid(str(e)) from e
    check_hidden(req, template)
    return template


def check_hidden(req: Request, template: ClusterTemplate) -> None:
    """Raise Forbidden for a template that only an admin may use."""
    if template.hidden and not req.caller.is_admin:
        raise errors.Forbidden(
            f'Cluster template {template.uuid} is hidden: no new clusters are made with it.'
        )


def _merge_labels(
    template: ClusterTemplate, given: dict[str, str] | None, merge: bool
) -> dict[str, str]:
    """The labels of a new cluster (doc/contributor/wire-contract.md)."""
    if not given:
        return dict(template.labels)
    if merge:
        return {**template.labels, **given}
    return given


def _list_problems(req: Request, template: ClusterTemplate, values: Values) -> list[str]:
    """The problems of a new cluster that the field types cannot express."""
    problems: list[str] = []
    preflight.check_docker_volume(
        template.docker_storage_driver, values['docker_volume_size'], problems
    )
    if values['master_count'] % 2 == 0:
        problems.append(f'master_count must be odd, not {values["master_count"]}.')
    if values['master_count'] > 1 and not values['master_lb_enabled']:
        problems.append('master_count must be 1 when master_lb_enabled is false.')
    if values['node_count'] == 0 and req.version < versions.ZERO_NODES:
        problems.append(nodegroups.NO_ZERO)
    for flavor in ('flavor_id', 'master_flavor_id'):
        if values[flavor] is None:
            problems.append(f'Neither the request nor the template has a {flavor}.')
    return problems


def _make_rows(
    req: Request,
    template: ClusterTemplate,
    driver: str,
    public_key: str | None,
    values: Values,
) -> Cluster:
    """The rows of a new cluster and its two nodegroups, as yet without nodes."""
    uuid = uuidutils.generate_uuid()
    master_count = values.pop('master_count')
    node_count = values.pop('node_count')
    values['name'] = values['name'] or request.make_name('cluster')
    values['cluster_template_id'] = template.uuid
    cluster = Cluster(
        uuid=uuid,
        project_id=req.caller.project_id,
        user_id=req.caller.user_id,
        driver=driver,
        public_key=public_key,
        status=states.CREATE_IN_PROGRESS,
        generation=1,
        nodegroups=[],
        **values,
    )
    # The driver reads it. Set as loaded, because the template is stored already.
    orm.attributes.set_committed_value(cluster, 'template', template)
    for name, role, flavor, count in (
        (MASTERS, 'master', values['master_flavor_id'], master_count),
        (WORKERS, 'worker', values['flavor_id'], node_count),
    ):
        cluster.nodegroups.append(
            NodeGroup(
                uuid=uuidutils.generate_uuid(),
                project_id=cluster.project_id,
                name=name,
                role=role,
                is_default=True,
                flavor_id=flavor,
                image_id=template.image_id,
                docker_volume_size=values['docker_volume_size'],
                labels=values['labels'],
                node_count=count,
                next_number=0,
                status=cluster.status,
                nodes=[],
            )
        )
    return cluster

"""Handlers of /v1/clusters."""

from __future__ import annotations

from typing import Any

from oslo_utils import uuidutils
from sqlalchemy import orm

from magnum_lite import db, drivers, errors, members, models, states
from magnum_lite.api import etags, nodegroups, patch, preflight, request, versions
from magnum_lite.api.request import Answer, Request
from magnum_lite.api.resources import CLUSTER

PLURAL = 'clusters'
MASTERS, WORKERS = 'default-master', 'default-worker'
#: What a cluster takes from its template when the request does not say.
INHERITED = (
    'docker_volume_size',
    'flavor_id',
    'master_flavor_id',
    'fixed_network',
    'fixed_subnet',
    'floating_ip_enabled',
    'master_lb_enabled',
)
PATCHABLE = ('node_count', 'health_status', 'health_status_reason')


def index(req: Request) -> dict[str, Any]:
    """List clusters, short."""
    scope, page = req.listing(models.Cluster)
    rows = db.list_clusters_brief(req.services.db, scope, page)
    return req.collection(CLUSTER, PLURAL, rows, page, brief=True)


def detail(req: Request) -> dict[str, Any]:
    """List clusters with all attributes."""
    scope, page = req.listing(models.Cluster)
    rows = db.list_clusters(req.services.db, scope, page)
    return req.collection(CLUSTER, PLURAL, rows, page, brief=False, path=f'{PLURAL}/detail')


def get(req: Request) -> Answer:
    """Show one cluster; a failed one with the reasons of its nodegroups.

    `ETag` stands for what is wanted of it: a status or a health that changes leaves it, and each
    change that somebody asks for changes it."""
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    body: dict[str, Any] = CLUSTER.show(cluster, req.version) | {
        'links': req.links(PLURAL, cluster.uuid)
    }
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
    if force := req.flag('force'):
        req.authorize('cluster:force_delete')
    mine = req.operation('delete')
    cluster, operation = db.request_delete(
        req.services.db,
        req.scope,
        req.path['ident'],
        mine,
        force=force,
        guard=req.guard(etags.of_cluster),
    )
    if operation is mine:
        return Answer(None, req.asked(cluster, mine))
    req.services.nudger.nudge(cluster.uuid)
    return Answer(None, req.location(operation) if operation else {})


def update(req: Request) -> Answer:
    """Change the number of workers, or say how the engine is. The latter is no operation.

    `rollback` is taken and does nothing: what fails is left as it is, and the next change goes on
    from there."""
    if 'rollback' in req.query and req.version < versions.ROLLBACK:
        raise errors.Invalid("Unknown argument: 'rollback'.")
    req.flag('rollback')
    cluster = db.get_cluster(req.services.db, req.scope, req.path['ident'])
    changed = patch.changes(CLUSTER, patch.document(CLUSTER, cluster), req.body, PATCHABLE)
    count = changed.pop('node_count', None)
    if count == 0:
        nodegroups.check_zero(req)
    if changed:
        req.authorize('cluster:update_health_status')
    health = {
        'health_status': cluster.health_status,
        'health_status_reason': cluster.health_status_reason,
    } | changed

    def change(cluster: models.Cluster) -> None:
        cluster.health_status, cluster.health_status_reason = health.values()
        group = nodegroups.workers(cluster)
        nodegroups.check_bounds(group, count)
        nodegroups.resize(req, cluster, group, count)

    if count is not None:
        return req.ask(cluster.uuid, 'resize', change, answer=tagged)
    if changed:
        status, reason = health.values()
        db.set_health(
            req.services.db,
            req.scope,
            cluster.uuid,
            status=status,
            reason=reason,
            guard=req.guard(etags.of_cluster),
        )
    else:
        req.check(etags.of_cluster(cluster))
    return tagged(cluster)


def tagged(cluster: models.Cluster) -> Answer:
    """The answer to most changes."""
    return Answer({'uuid': cluster.uuid}, {'ETag': etags.of_cluster(cluster)})


def create(req: Request) -> Answer:
    """Store a new cluster and have a conductor told. The 202 means that it is stored, not that it
    works."""
    values = CLUSTER.parse(req.body)
    template = _template(req, values['cluster_template_id'])
    driver = checked(req, template, values)
    found = preflight.look(
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
    cluster = made(req, template, driver, found.public_key, values)
    operation = req.operation('create')
    answer = Answer(
        {'uuid': cluster.uuid}, req.location(operation) | request.warnings(found.skipped)
    )
    db.create_cluster(
        req.services.db,
        cluster,
        operation,
        default_quota=req.conf.quotas.max_clusters_per_project,
        receipt=req.receipt(lambda _: answer),
    )
    req.asked(cluster, operation)
    return answer


def checked(
    req: Request, template: models.ClusterTemplate, values: dict[str, Any]
) -> drivers.Driver:
    """Fill in what a new cluster has from its template, and find its driver. Raises Invalid for
    what cannot be."""
    driver = drivers.find(
        req.conf,
        server_type=template.server_type,
        os_distro=template.cluster_distro,
        coe=template.coe,
        name=template.driver,
    )
    for name in INHERITED:
        if values[name] is None:
            values[name] = getattr(template, name)
    values['keypair'] = values['keypair'] or template.keypair_id
    if 'create_timeout' not in req.body:  # a null is kept
        values['create_timeout'] = req.conf.cluster_heat.create_timeout
    values['labels'] = _labels(template, values['labels'], values.pop('merge_labels'))
    request.refuse(
        _problems(req, template, values) + driver.check_labels(values['labels'], req.conf)
    )
    return driver


def made(
    req: Request,
    template: models.ClusterTemplate,
    driver: drivers.Driver,
    public_key: str | None,
    values: dict[str, Any],
) -> models.Cluster:
    """The rows of a new cluster with its nodes. Raises Invalid for limits that it would run
    into."""
    cluster = _cluster(req, template, driver.name, public_key, values)
    request.refuse(driver.check_cluster(req.conf, cluster))
    for group in cluster.nodegroups:  # only now: the counts may have been any number
        members.add(cluster, group, group.node_count)
    return cluster


def _template(req: Request, ident: str) -> models.ClusterTemplate:
    """The template that a request names: 400 where there is none, 404 from 1.10 on. Hidden ones are
    for admins."""
    try:
        template = db.get_template(req.services.db, req.scope, ident)
    except errors.NotFound as e:
        if req.version >= versions.ZERO_NODES:
            raise
        raise errors.Invalid(str(e)) from e
    check_hidden(req, template)
    return template


def check_hidden(req: Request, template: models.ClusterTemplate) -> None:
    """Raise Forbidden for a template that only an admin may use."""
    if template.hidden and not req.caller.is_admin:
        raise errors.Forbidden(
            f'Cluster template {template.uuid} is hidden: no new clusters are made with it.'
        )


def _labels(
    template: models.ClusterTemplate, given: dict[str, str] | None, merge: bool
) -> dict[str, str]:
    """The labels of a new cluster (api.md 6.3)."""
    if not given:
        return dict(template.labels)
    return {**template.labels, **given} if merge else given


def _problems(req: Request, template: models.ClusterTemplate, values: dict[str, Any]) -> list[str]:
    """What the types of the fields cannot say about a new cluster."""
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


def _cluster(
    req: Request,
    template: models.ClusterTemplate,
    driver: str,
    public_key: str | None,
    values: dict[str, Any],
) -> models.Cluster:
    """The rows of a new cluster: itself and its two nodegroups, as yet without nodes."""
    uuid = uuidutils.generate_uuid()
    masters, workers = values.pop('master_count'), values.pop('node_count')
    values |= {
        'name': values['name'] or request.random_name('cluster'),
        'cluster_template_id': template.uuid,
    }
    cluster = models.Cluster(
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
    orm.attributes.set_committed_value(
        cluster, 'template', template
    )  # for the driver; it is stored already
    for name, role, flavor, count in (
        (MASTERS, 'master', values['master_flavor_id'], masters),
        (WORKERS, 'worker', values['flavor_id'], workers),
    ):
        cluster.nodegroups.append(
            models.NodeGroup(
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

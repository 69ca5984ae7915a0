"""Who may do what: oslo.policy rules in code, under the names that operators of Magnum know.

Whose things a caller may touch is not decided here but in the queries (`db.Scope`). A rule says
which role it takes."""

from __future__ import annotations

from oslo_config import cfg
from oslo_policy import policy

ADMIN = 'context_is_admin'
MEMBER, READER = 'project_member', 'project_reader'

BASE = [
    policy.RuleDefault(
        ADMIN, 'role:admin', description='Who sees and changes what belongs to other projects.'
    ),
    policy.RuleDefault(
        MEMBER, f'role:member or rule:{ADMIN}', description='Who changes things of a project.'
    ),
    policy.RuleDefault(
        READER, f'role:reader or rule:{MEMBER}', description='Who sees things of a project.'
    ),
]


def _rule(
    name: str, who: str, description: str, method: str, path: str
) -> policy.DocumentedRuleDefault:
    return policy.DocumentedRuleDefault(
        name, f'rule:{who}', description, [{'path': path, 'method': method}]
    )


OPERATIONS = [
    _rule(
        'clustertemplate:create',
        MEMBER,
        'Create a cluster template.',
        'POST',
        '/v1/clustertemplates',
    ),
    _rule(
        'clustertemplate:get',
        READER,
        'Show a cluster template.',
        'GET',
        '/v1/clustertemplates/{ident}',
    ),
    _rule(
        'clustertemplate:get_all', READER, 'List cluster templates.', 'GET', '/v1/clustertemplates'
    ),
    _rule(
        'clustertemplate:detail',
        READER,
        'List cluster templates.',
        'GET',
        '/v1/clustertemplates/detail',
    ),
    _rule(
        'clustertemplate:delete',
        MEMBER,
        'Delete a cluster template.',
        'DELETE',
        '/v1/clustertemplates/{ident}',
    ),
    _rule(
        'clustertemplate:publish',
        ADMIN,
        'Make a cluster template public or hidden.',
        'POST',
        '/v1/clustertemplates',
    ),
    _rule('cluster:create', MEMBER, 'Create a cluster.', 'POST', '/v1/clusters'),
    _rule('cluster:get', READER, 'Show a cluster.', 'GET', '/v1/clusters/{ident}'),
    _rule('cluster:get_all', READER, 'List clusters.', 'GET', '/v1/clusters'),
    _rule(
        'cluster:detail', READER, 'List clusters with all attributes.', 'GET', '/v1/clusters/detail'
    ),
    _rule('cluster:update', MEMBER, 'Change a cluster.', 'PATCH', '/v1/clusters/{ident}'),
    _rule(
        'cluster:update_health_status',
        MEMBER,
        'Say how the engine of a cluster is.',
        'PATCH',
        '/v1/clusters/{ident}',
    ),
    _rule('cluster:delete', MEMBER, 'Delete a cluster.', 'DELETE', '/v1/clusters/{ident}'),
    _rule(
        'cluster:force_delete',
        ADMIN,
        'Delete a cluster whatever it leaves behind in the cloud.',
        'DELETE',
        '/v1/clusters/{ident}?force=true',
    ),
    _rule(
        'cluster:resize', MEMBER, 'Resize a cluster.', 'POST', '/v1/clusters/{ident}/actions/resize'
    ),
    _rule(
        'cluster:upgrade',
        MEMBER,
        'Upgrade a cluster.',
        'POST',
        '/v1/clusters/{ident}/actions/upgrade',
    ),
    _rule(
        'nodegroup:get',
        READER,
        'Show a nodegroup.',
        'GET',
        '/v1/clusters/{ident}/nodegroups/{group}',
    ),
    _rule(
        'nodegroup:get_all', READER, 'List nodegroups.', 'GET', '/v1/clusters/{ident}/nodegroups'
    ),
    _rule(
        'nodegroup:create', MEMBER, 'Create a nodegroup.', 'POST', '/v1/clusters/{ident}/nodegroups'
    ),
    _rule(
        'nodegroup:update',
        MEMBER,
        'Change a nodegroup.',
        'PATCH',
        '/v1/clusters/{ident}/nodegroups/{group}',
    ),
    _rule(
        'nodegroup:delete',
        MEMBER,
        'Delete a nodegroup.',
        'DELETE',
        '/v1/clusters/{ident}/nodegroups/{group}',
    ),
    _rule('node:get_all', READER, 'List nodes.', 'GET', '/v1/clusters/{ident}/nodes'),
    _rule('operation:get', READER, 'Show an operation.', 'GET', '/v1/operations/{ident}'),
    _rule(
        'operation:get_all',
        READER,
        'List operations of a cluster.',
        'GET',
        '/v1/clusters/{ident}/operations',
    ),
    _rule('operation:cancel', MEMBER, 'Stop an operation.', 'DELETE', '/v1/operations/{ident}'),
    _rule(
        'certificate:rotate_ca',
        MEMBER,
        'Exchange the authorities of a cluster.',
        'PATCH',
        '/v1/certificates/{ident}',
    ),
    _rule(
        'certificate:get',
        READER,
        'Show a certificate of a cluster.',
        'GET',
        '/v1/certificates/{ident}',
    ),
    _rule(
        'certificate:create',
        MEMBER,
        'Have a certificate signed, in the name of anybody.',
        'POST',
        '/v1/certificates',
    ),
    _rule(
        'credential:rotate',
        MEMBER,
        'Exchange the credentials of a cluster.',
        'PATCH',
        '/v1/credentials/{ident}',
    ),
    _rule(
        'cluster:kubeconfig',
        READER,
        'Get a kubeconfig that is valid for hours. The group in it goes by '
        'project_member and project_reader.',
        'POST',
        '/v1/clusters/{ident}/kubeconfig',
    ),
    _rule(
        'clustertemplate:update',
        MEMBER,
        'Change a cluster template.',
        'PATCH',
        '/v1/clustertemplates/{ident}',
    ),
    _rule(
        'quota:get',
        READER,
        'Show the quota of a project.',
        'GET',
        '/v1/quotas/{project_id}/{resource}',
    ),
    _rule('quota:get_all', ADMIN, 'List quotas.', 'GET', '/v1/quotas'),
    _rule('quota:create', ADMIN, 'Set the quota of a project.', 'POST', '/v1/quotas'),
    _rule(
        'quota:update',
        ADMIN,
        'Change the quota of a project.',
        'PATCH',
        '/v1/quotas/{project_id}/{resource}',
    ),
    _rule(
        'quota:delete',
        ADMIN,
        'Put a project back to the default quota.',
        'DELETE',
        '/v1/quotas/{project_id}/{resource}',
    ),
    _rule('stats:get_all', READER, 'Count clusters and nodes.', 'GET', '/v1/stats'),
    _rule('magnum-service:get_all', ADMIN, 'List conductors.', 'GET', '/v1/mservices'),
    _rule(
        'federation:create',
        MEMBER,
        'Create a federation; there are none.',
        'POST',
        '/v1/federations',
    ),
    _rule(
        'federation:get',
        READER,
        'Show a federation; there are none.',
        'GET',
        '/v1/federations/{ident}',
    ),
    _rule(
        'federation:get_all', READER, 'List federations; there are none.', 'GET', '/v1/federations'
    ),
    _rule(
        'federation:detail',
        READER,
        'List federations; there are none.',
        'GET',
        '/v1/federations/detail',
    ),
    _rule(
        'federation:update',
        MEMBER,
        'Change a federation; there are none.',
        'PATCH',
        '/v1/federations/{ident}',
    ),
    _rule(
        'federation:delete',
        MEMBER,
        'Delete a federation; there are none.',
        'DELETE',
        '/v1/federations/{ident}',
    ),
]


#: Rule -> the rule by which an admin does the same to what belongs to other projects. Without it,
#: the admin is one of its own project. An admin may also do what has none here, such as a resize,
#: to other projects.
ALL_PROJECTS = {
    f'{noun}:{verb}': f'{noun}:{"get_one" if verb == "get" else verb}_all_projects'
    for noun, verbs in (
        ('clustertemplate', ('get', 'get_all', 'detail', 'update', 'delete')),
        ('cluster', ('get', 'get_all', 'detail', 'update', 'delete', 'upgrade')),
        ('nodegroup', ('get', 'get_all')),
    )
    for verb in verbs
}
BEYOND = [
    _rule(
        ALL_PROJECTS[rule.name],
        ADMIN,
        f'{rule.description.rstrip(".")} of any project.',
        rule.operations[0]['method'],
        rule.operations[0]['path'],
    )
    for rule in OPERATIONS
    if rule.name in ALL_PROJECTS
]


def list_rules() -> list[policy.RuleDefault]:
    """For oslopolicy-sample-generator."""
    return [*BASE, *OPERATIONS, *BEYOND]


def enforcer(conf: cfg.ConfigOpts) -> policy.Enforcer:
    """The rules above, with what the operator's policy file says in their place."""
    made = policy.Enforcer(conf)
    made.register_defaults(list_rules())
    return made

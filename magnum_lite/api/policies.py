"""Which role may do what: oslo.policy rules in code, under the names that Magnum has.

`app` and handlers check rules through `make_enforcer`; oslopolicy-sample-generator lists them. A
rule decides by the caller's role only. To which project a row belongs is decided in the queries
(`db.Scope`). Descriptions are part of the sample file that operators read."""

from __future__ import annotations

import difflib
import pathlib
import re
from typing import Any

from oslo_config import cfg
from oslo_log import log
from oslo_policy import policy

from magnum_lite import outage

LOG = log.getLogger(__name__)

_FILE = outage.Outage('Reading the policy file', 'The last good rules stay. Mend the file')
#: What oslo.policy raises for a file that it cannot read, or that is no map of names to rules.
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, cfg.Error)

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


def _document_rule(
    name: str, who: str, description: str, method: str, path: str
) -> policy.DocumentedRuleDefault:
    return policy.DocumentedRuleDefault(
        name, f'rule:{who}', description, [{'path': path, 'method': method}]
    )


OPERATIONS = [
    _document_rule(
        'clustertemplate:create',
        MEMBER,
        'Create a cluster template.',
        'POST',
        '/v1/clustertemplates',
    ),
    _document_rule(
        'clustertemplate:get',
        READER,
        'Show a cluster template.',
        'GET',
        '/v1/clustertemplates/{ident}',
    ),
    _document_rule(
        'clustertemplate:get_all', READER, 'List cluster templates.', 'GET', '/v1/clustertemplates'
    ),
    _document_rule(
        'clustertemplate:detail',
        READER,
        'List cluster templates.',
        'GET',
        '/v1/clustertemplates/detail',
    ),
    _document_rule(
        'clustertemplate:delete',
        MEMBER,
        'Delete a cluster template.',
        'DELETE',
        '/v1/clustertemplates/{ident}',
    ),
    _document_rule(
        'clustertemplate:publish',
        ADMIN,
        'Make a cluster template public or hidden.',
        'POST',
        '/v1/clustertemplates',
    ),
    _document_rule('cluster:create', MEMBER, 'Create a cluster.', 'POST', '/v1/clusters'),
    _document_rule('cluster:get', READER, 'Show a cluster.', 'GET', '/v1/clusters/{ident}'),
    _document_rule('cluster:get_all', READER, 'List clusters.', 'GET', '/v1/clusters'),
    _document_rule(
        'cluster:detail', READER, 'List clusters with all attributes.', 'GET', '/v1/clusters/detail'
    ),
    _document_rule('cluster:update', MEMBER, 'Change a cluster.', 'PATCH', '/v1/clusters/{ident}'),
    _document_rule(
        'cluster:update_health_status',
        MEMBER,
        'Say how the engine of a cluster is.',
        'PATCH',
        '/v1/clusters/{ident}',
    ),
    _document_rule('cluster:delete', MEMBER, 'Delete a cluster.', 'DELETE', '/v1/clusters/{ident}'),
    _document_rule(
        'cluster:force_delete',
        ADMIN,
        'Delete a cluster whatever it leaves behind in the cloud.',
        'DELETE',
        '/v1/clusters/{ident}?force=true',
    ),
    _document_rule(
        'cluster:resize', MEMBER, 'Resize a cluster.', 'POST', '/v1/clusters/{ident}/actions/resize'
    ),
    _document_rule(
        'cluster:upgrade',
        MEMBER,
        'Upgrade a cluster.',
        'POST',
        '/v1/clusters/{ident}/actions/upgrade',
    ),
    _document_rule(
        'nodegroup:get',
        READER,
        'Show a nodegroup.',
        'GET',
        '/v1/clusters/{ident}/nodegroups/{group}',
    ),
    _document_rule(
        'nodegroup:get_all', READER, 'List nodegroups.', 'GET', '/v1/clusters/{ident}/nodegroups'
    ),
    _document_rule(
        'nodegroup:create', MEMBER, 'Create a nodegroup.', 'POST', '/v1/clusters/{ident}/nodegroups'
    ),
    _document_rule(
        'nodegroup:update',
        MEMBER,
        'Change a nodegroup.',
        'PATCH',
        '/v1/clusters/{ident}/nodegroups/{group}',
    ),
    _document_rule(
        'nodegroup:delete',
        MEMBER,
        'Delete a nodegroup.',
        'DELETE',
        '/v1/clusters/{ident}/nodegroups/{group}',
    ),
    _document_rule('node:get_all', READER, 'List nodes.', 'GET', '/v1/clusters/{ident}/nodes'),
    _document_rule('operation:get', READER, 'Show an operation.', 'GET', '/v1/operations/{ident}'),
    _document_rule(
        'operation:get_all',
        READER,
        'List operations of a cluster.',
        'GET',
        '/v1/clusters/{ident}/operations',
    ),
    _document_rule(
        'operation:cancel', MEMBER, 'Stop an operation.', 'DELETE', '/v1/operations/{ident}'
    ),
    _document_rule(
        'certificate:rotate_ca',
        MEMBER,
        'Exchange the authorities of a cluster.',
        'PATCH',
        '/v1/certificates/{ident}',
    ),
    _document_rule(
        'certificate:get',
        READER,
        'Show a certificate of a cluster.',
        'GET',
        '/v1/certificates/{ident}',
    ),
    _document_rule(
        'certificate:create',
        MEMBER,
        'Have a certificate signed, in the name of anybody.',
        'POST',
        '/v1/certificates',
    ),
    _document_rule(
        'credential:rotate',
        MEMBER,
        'Exchange the credentials of a cluster.',
        'PATCH',
        '/v1/credentials/{ident}',
    ),
    _document_rule(
        'cluster:kubeconfig',
        READER,
        'Get a kubeconfig that is valid for hours. The group in it goes by '
        'project_member and project_reader.',
        'POST',
        '/v1/clusters/{ident}/kubeconfig',
    ),
    _document_rule(
        'clustertemplate:update',
        MEMBER,
        'Change a cluster template.',
        'PATCH',
        '/v1/clustertemplates/{ident}',
    ),
    _document_rule(
        'quota:get',
        READER,
        'Show the quota of a project.',
        'GET',
        '/v1/quotas/{project_id}/{resource}',
    ),
    _document_rule('quota:get_all', ADMIN, 'List quotas.', 'GET', '/v1/quotas'),
    _document_rule('quota:create', ADMIN, 'Set the quota of a project.', 'POST', '/v1/quotas'),
    _document_rule(
        'quota:update',
        ADMIN,
        'Change the quota of a project.',
        'PATCH',
        '/v1/quotas/{project_id}/{resource}',
    ),
    _document_rule(
        'quota:delete',
        ADMIN,
        'Put a project back to the default quota.',
        'DELETE',
        '/v1/quotas/{project_id}/{resource}',
    ),
    _document_rule('stats:get_all', READER, 'Count clusters and nodes.', 'GET', '/v1/stats'),
    _document_rule('magnum-service:get_all', ADMIN, 'List conductors.', 'GET', '/v1/mservices'),
    _document_rule(
        'federation:create',
        MEMBER,
        'Create a federation; there are none.',
        'POST',
        '/v1/federations',
    ),
    _document_rule(
        'federation:get',
        READER,
        'Show a federation; there are none.',
        'GET',
        '/v1/federations/{ident}',
    ),
    _document_rule(
        'federation:get_all', READER, 'List federations; there are none.', 'GET', '/v1/federations'
    ),
    _document_rule(
        'federation:detail',
        READER,
        'List federations; there are none.',
        'GET',
        '/v1/federations/detail',
    ),
    _document_rule(
        'federation:update',
        MEMBER,
        'Change a federation; there are none.',
        'PATCH',
        '/v1/federations/{ident}',
    ),
    _document_rule(
        'federation:delete',
        MEMBER,
        'Delete a federation; there are none.',
        'DELETE',
        '/v1/federations/{ident}',
    ),
]


#: Rule -> the rule that lets an admin do the same to rows of other projects. An admin whom the
#: second rule refuses is limited to the own project. For a rule that is not listed here, such as
#: that of a resize, an admin always reaches all projects.
ALL_PROJECTS = {
    f'{noun}:{verb}': f'{noun}:{"get_one" if verb == "get" else verb}_all_projects'
    for noun, verbs in (
        ('clustertemplate', ('get', 'get_all', 'detail', 'update', 'delete')),
        ('cluster', ('get', 'get_all', 'detail', 'update', 'delete', 'upgrade')),
        ('nodegroup', ('get', 'get_all')),
    )
    for verb in verbs
}
ALL_PROJECTS_RULES = [
    _document_rule(
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
    """All rules. An entry point, for oslopolicy-sample-generator."""
    return [*BASE, *OPERATIONS, *ALL_PROJECTS_RULES]


class PolicyFileError(cfg.Error):
    """The policy file of the operator cannot be used. The text names the file."""


class Enforcer(policy.Enforcer):
    """oslo.policy's enforcer, with the last good rules while the operator's file is broken.

    oslo.policy reads the file again when it has changed, in the middle of a request. Its own
    enforcer raises there, so each request would be answered with 500 until the file is mended.
    `problem` says what is wrong with the file that is there now, None if nothing is."""

    problem: str | None = None

    def load_rules(self, force_reload: bool = False) -> None:
        """Read the file if it has changed. Raises PolicyFileError if there are no rules yet."""
        last_good = self.rules
        try:
            # oslo.policy takes a file that has gone for an empty one, which may open much.
            if self.policy_path:
                pathlib.Path(self.policy_path).stat()
            super().load_rules(force_reload or self.problem is not None)
        except UNREADABLE as e:
            self.problem = f'The policy file {self.policy_path or self.policy_file}: {e}'
            if not last_good:
                raise PolicyFileError(self.problem) from e
            self.rules = last_good
            _FILE.record_failure(self.problem)

    def set_rules(self, *args: Any, **kwargs: Any) -> None:
        """Take rules that could be read. oslo.policy calls this for each file."""
        super().set_rules(*args, **kwargs)
        self.problem = None
        _FILE.record_success()

    def check_file(self) -> None:
        """Raise PolicyFileError while the file that is there cannot be used."""
        self.load_rules()
        if self.problem is not None:
            raise PolicyFileError(self.problem)


def make_enforcer(conf: cfg.ConfigOpts) -> Enforcer:
    """Make an enforcer of these rules, which the operator's policy file may override.

    Warns of names in the file that mean nothing: with a forgotten letter an action keeps the rule
    that was to be replaced. Raises PolicyFileError for a file that is named and is not there, or
    cannot be read."""
    enforcer = Enforcer(conf)
    enforcer.register_defaults(list_rules())
    enforcer.load_rules()
    place = conf.get_location('policy_file', 'oslo_policy')
    if place is not None and place.location.is_user_controlled and not enforcer.policy_path:
        raise PolicyFileError(
            f'[oslo_policy] policy_file names {conf.oslo_policy.policy_file}, which is not there'
        )
    for name in list_unknown_names(enforcer):
        similar = difflib.get_close_matches(name, enforcer.registered_rules, 1)
        hint = f' Did you mean {similar[0]}?' if similar else ''
        LOG.warning('The policy file has a rule %s, which nothing asks for.%s', name, hint)
    return enforcer


def list_unknown_names(enforcer: policy.Enforcer) -> list[str]:
    """List the rules of the policy file that are neither ours nor part of another rule there."""
    texts = [rule.check_str for rule in enforcer.file_rules.values()]
    used = set(re.findall(r'rule:([^\s()]+)', ' '.join(map(str, texts))))
    return sorted(enforcer.file_rules.keys() - enforcer.registered_rules.keys() - used)

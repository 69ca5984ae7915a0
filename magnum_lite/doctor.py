"""`magnum-lite doctor`: find things in the cloud or the key store without a row, and rows without
a stack; mend them on request.

`cli` makes an `Audit` and hands it to `run`. The audit reads the cloud, the database and the key
store. It changes them only through `Finding.mend`, in the same ways as a conductor does.

Two rules make mending safe. First, the cloud is listed before the rows are read. A row is older
than its stack, so a stack of that list that has no row by then will never get one. Second, only
what this database's history (`operations`) knows counts as ours. A stack with our tag that it does
not know may belong to another installation on the same cloud: it is reported, and deleted only if
an operator agrees to that one."""

from __future__ import annotations

import contextlib
import datetime
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from oslo_config import cfg
from oslo_db import exception as db_exc
from oslo_utils import uuidutils

from magnum_lite import clients, db, errors, keystore, models, states

#: A stack may be this young without a row: the conductor that created it may be about to delete it.
YOUNG = datetime.timedelta(minutes=10)
#: A live conductor takes over an abandoned cluster long before this.
OVERDUE = datetime.timedelta(minutes=5)
#: A live conductor reports six times within this.
SILENT = datetime.timedelta(minutes=3)
#: A conductor that was silent for this long is not coming back.
FORGETTABLE = datetime.timedelta(days=1)
#: If more clusters than this, and more than half of all, have lost their stacks, the doctor is
#: looking at the wrong Heat.
FEW = 2


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. `text` is a sentence without its dot.

    `remedy` says what to do. `mend` does it, and raises CloudError, HttpError or DBError if that
    fails; None: it cannot be done from here. `is_ours`: no other installation can own it."""

    text: str
    remedy: str
    mend: Callable[[], None] | None = None
    is_ours: bool = True


@dataclass(frozen=True)
class Claimant:
    """The cluster or nodegroup whose uuid a stack is named after.

    `stack_id` is the stack in its row. `is_busy`: a conductor may be about to write that id."""

    what: str
    stack_id: str | None
    is_busy: bool


@dataclass(frozen=True)
class Project:
    """A project as Keystone and Heat show it. `state` as in `clients.Cloud.get_project_state`."""

    state: str
    stacks: dict[str, clients.Stack]


class Audit:
    """One audit of an installation. Use an object once."""

    def __init__(self, conf: cfg.ConfigOpts, database: db.Database, cloud: clients.Cloud) -> None:
        self._conf = conf
        self._db = database
        self._cloud = cloud
        #: Ids of the projects on which the service user has its roles.
        self._granted: set[str] = set()
        #: The projects that could be read, by id.
        self._projects: dict[str, Project] = {}
        #: Ids of the clusters' users in the cloud, by the cluster uuids that they are named after.
        self._users: dict[str, str] = {}
        self._rows: db.Inventory
        #: By the uuid of a cluster or nodegroup.
        self._claimants: dict[str, Claimant] = {}
        #: Uuids of clusters and nodegroups that have another stack than the one in their row.
        self._doubtful: set[str] = set()

    def find_all(self) -> Iterator[Finding]:
        """Yield the findings one by one: each can be mended before the next is looked for."""
        yield from self._read_projects()
        try:
            self._users = self._cloud.list_cluster_users()
        except clients.CloudError as e:
            yield Finding(f'Users of clusters could not be looked for: {e}', 'Run this again.')
        # Only now, after the cloud: see the module's docstring.
        self._rows = db.take_inventory(self._db)
        for cluster in self._rows.clusters:
            is_busy = states.is_busy(cluster.status)
            self._claimants[cluster.uuid] = Claimant(
                f'cluster {cluster.uuid}', cluster.stack_id, is_busy
            )
            for group in cluster.nodegroups:
                self._claimants[group.uuid] = Claimant(
                    f'nodegroup {group.uuid} of cluster {cluster.uuid}', group.stack_id, is_busy
                )
        yield from self._check_stacks()
        yield from self._check_roles()
        yield from self._check_users()
        yield from self._check_rows()
        yield from self._check_revisions()
        yield from self._check_due_times()
        yield from self._check_keys()
        yield from self._check_services()

    # -- the cloud

    def _read_projects(self) -> Iterator[Finding]:
        try:
            self._granted = set(self._cloud.list_projects_with_role())
        except clients.CloudError as e:
            yield Finding(
                f'Projects without clusters could not be looked for: {e}', 'Run this again.'
            )
        for project_id in sorted(self._granted | set(db.list_projects(self._db))):
            try:
                state = self._cloud.get_project_state(project_id)
                stacks = self._open_stacks(project_id, state).list_ours()
            except clients.CloudError as e:
                yield Finding(
                    f'Project {project_id} could not be looked at: {e}', 'Run this again.'
                )
                continue
            self._projects[project_id] = Project(state, {stack.id: stack for stack in stacks})
            if state != 'enabled':
                yield Finding(
                    f'Project {project_id} is {state}',
                    'Delete its clusters, which is all that can be done with them, or enable it.',
                )

    def _open_stacks(self, project_id: str, state: str) -> clients.Stacks:
        return self._cloud.stacks(project_id, as_admin=state != 'enabled')

    def _is_in_history(self, stack: clients.Stack) -> bool:
        return not self._rows.known_clusters.isdisjoint((stack.name[-36:], *stack.tags))

    def _is_ours(self, stack: clients.Stack) -> bool:
        """Whether this program made the stack. A user's stack may be named after a uuid, too."""
        return clients.TAG in stack.tags or self._is_in_history(stack)

    def _check_stacks(self) -> Iterator[Finding]:
        """Find stacks that no row names."""
        named = {claimant.stack_id for claimant in self._claimants.values()}
        for project_id, project in self._projects.items():
            for stack in project.stacks.values():
                if stack.id in named or not self._is_ours(stack):
                    continue
                claimant = self._claimants.get(stack.name[-36:])
                if claimant is None:
                    yield self._report_orphan(project_id, stack, None)
                # Otherwise a conductor may be about to write the id of the stack into the row.
                elif not claimant.is_busy and claimant.stack_id is not None:
                    yield self._report_orphan(project_id, stack, claimant)

    def _report_orphan(
        self, project_id: str, stack: clients.Stack, claimant: Claimant | None
    ) -> Finding:
        text = f'Stack {stack.name} ({stack.id}) of project {project_id}'
        if claimant is None:
            text += ' belongs to no cluster'
        elif claimant.stack_id in self._projects[project_id].stacks:
            text += f' is a second one of {claimant.what}'
        else:
            self._doubtful.add(stack.name[-36:])
            return Finding(
                f'{text} bears the uuid of {claimant.what}, whose own stack {claimant.stack_id} is '
                'not there',
                'Find out which of the two is right before you delete anything.',
            )
        if stack.status == 'DELETE_IN_PROGRESS':
            return Finding(f'{text}, and is being deleted', 'Run this again when it is gone.')
        if stack.created_at is not None and models.utcnow() - stack.created_at < YOUNG:
            return Finding(
                f'{text}, but it is only just being made', 'Run this again in ten minutes.'
            )
        is_ours = self._is_in_history(stack)
        if not is_ours:
            text += (
                ', and no such cluster was ever asked for here: it may be of another installation '
                'on this cloud'
            )
        delete = functools.partial(self._delete_stack, project_id, stack.id)
        return Finding(text, 'Delete the stack', delete, is_ours)

    def _delete_stack(self, project_id: str, stack_id: str) -> None:
        if db.has_stack(self._db, stack_id):
            raise errors.Conflict('It has been given to a cluster meanwhile.')
        with contextlib.suppress(clients.NotFound):
            self._open_stacks(project_id, self._projects[project_id].state).delete(stack_id)

    def _check_roles(self) -> Iterator[Finding]:
        used = {cluster.project_id for cluster in self._rows.clusters}
        for project_id in sorted((self._granted - used) & set(self._projects)):
            text = (
                f'The service has its roles on project {project_id}, in which there is no cluster'
            )
            left = sum(map(self._is_ours, self._projects[project_id].stacks.values()))
            if left:
                yield Finding(
                    f'{text}, but there are stacks: {left}', 'Run this again when they are gone.'
                )
                continue
            is_ours = project_id in self._rows.known_projects
            if not is_ours:
                text += ' nor ever was: somebody else may have granted them'
            revoke = functools.partial(self._revoke_roles, project_id)
            yield Finding(text, 'Take the roles back', revoke, is_ours)

    def _revoke_roles(self, project_id: str) -> None:
        if db.has_other_clusters(self._db, project_id, ''):
            raise errors.Conflict('A cluster was asked for there meanwhile.')
        self._cloud.revoke_roles(project_id)

    def _check_users(self) -> Iterator[Finding]:
        for uuid in sorted(set(self._users) - {cluster.uuid for cluster in self._rows.clusters}):
            text = (
                f'User {self._users[uuid]} can log in to the cloud for cluster {uuid}, which is '
                'not there'
            )
            is_ours = uuid in self._rows.known_clusters
            if not is_ours:
                text += (
                    ' nor was ever asked for here: it may be of another installation on this cloud'
                )
            remove = functools.partial(self._cloud.remove_user, uuid, self._users[uuid])
            yield Finding(text, 'Delete the user', remove, is_ours)

    # -- the rows

    def _check_rows(self) -> Iterator[Finding]:
        """Find clusters and nodegroups at rest whose stack Heat does not know."""
        checked = 0
        lost: list[Finding] = []
        for project_id in self._projects:
            clusters = [
                cluster
                for cluster in self._rows.clusters
                if cluster.project_id == project_id
                and cluster.stack_id
                and cluster.uuid not in self._doubtful
                and not states.is_busy(cluster.status)
            ]
            try:
                missing = self._find_missing_stacks(project_id, clusters)
            except clients.CloudError as e:
                yield Finding(
                    f'The stacks of project {project_id} could not be looked at: {e}',
                    'Run this again.',
                )
                continue
            checked += len(clusters)
            for cluster in clusters:
                if cluster.stack_id in missing:
                    lost.append(self._report_lost_cluster(cluster))
                    continue
                for group in cluster.nodegroups:
                    if group.stack_id in missing and group.uuid not in self._doubtful:
                        yield Finding(
                            f'Nodegroup {group.uuid} of cluster {group.cluster_id} in project '
                            f'{project_id} has a stack that Heat does not know, {group.stack_id}',
                            'Delete the nodegroup.',
                        )
        if len(lost) > FEW and len(lost) * 2 > checked:
            yield Finding(
                f'Heat knows the stacks of only {checked - len(lost)} of {checked} clusters',
                'See whether region_name and auth_url in [keystone_auth] are those of the '
                'conductors. Until then these clusters are only named.',
            )
            lost = [Finding(finding.text, 'See above.') for finding in lost]
        yield from lost

    def _find_missing_stacks(self, project_id: str, clusters: list[models.Cluster]) -> set[str]:
        """Return the ids of these clusters' stacks that Heat does not know.

        Ids that are not in the list of stacks are looked up again: the rows are newer than it."""
        project = self._projects[project_id]
        ids = {cluster.stack_id for cluster in clusters}
        ids.update(group.stack_id for cluster in clusters for group in cluster.nodegroups)
        unlisted = {stack_id for stack_id in ids if stack_id and stack_id not in project.stacks}
        if not unlisted:
            return set()
        return unlisted - set(self._open_stacks(project_id, project.state).list_by_ids(unlisted))

    def _report_lost_cluster(self, cluster: models.Cluster) -> Finding:
        def delete_cluster() -> None:
            if cluster.stack_id not in self._find_missing_stacks(cluster.project_id, [cluster]):
                raise errors.Conflict('Heat knows the stack again.')
            db.request_delete(
                self._db,
                db.Scope('', all_projects=True),
                cluster.uuid,
                models.Operation(uuid=uuidutils.generate_uuid(), user_id='doctor', kind='delete'),
            )

        return Finding(
            f'Cluster {cluster.uuid} of project {cluster.project_id} is {cluster.status} and has '
            f'a stack that Heat does not know, {cluster.stack_id}',
            'Ask for the deletion of the cluster',
            delete_cluster,
        )

    def _check_revisions(self) -> Iterator[Finding]:
        """Find stacks of clusters at rest whose revision is not the stored one.

        Older stacks have no revision. The rows are newer than the list of stacks, so a cluster that
        has just changed is left out. So is one that failed: its text may never have been sent."""
        for cluster in self._rows.clusters:
            if self._rows.clock - (cluster.updated_at or cluster.created_at) < OVERDUE:
                continue
            if states.is_busy(cluster.status) or cluster.status not in states.TRANSITIONS['update']:
                continue
            project = self._projects.get(cluster.project_id)
            if project is None:
                continue
            for row in cluster.owners:
                # The default nodegroups are in the stack of the cluster.
                is_done = all(
                    group.status.endswith('_COMPLETE')
                    for group in cluster.nodegroups
                    if group is row or (group.is_default and row is cluster)
                )
                stack = project.stacks.get(row.stack_id or '')
                if stack is not None and is_done and stack.revision not in (0, row.revision):
                    yield Finding(
                        f'Stack {stack.name} ({stack.id}) of cluster {cluster.uuid} in project '
                        f'{cluster.project_id} has text number {stack.revision} and should have '
                        f'{row.revision}',
                        'Have a conductor put it right',
                        functools.partial(db.make_due, self._db, cluster.uuid),
                    )

    def _check_due_times(self) -> Iterator[Finding]:
        """Find clusters that no conductor will reconcile, or that have waited for one too long."""
        for cluster in self._rows.clusters:
            text = f'Cluster {cluster.uuid} of project {cluster.project_id} is {cluster.status}'
            due = cluster.leased_until or cluster.check_at
            if due is None and states.is_busy(cluster.status):
                yield Finding(
                    f'{text}, and nobody will look at it',
                    'Have a conductor look at it',
                    functools.partial(db.make_due, self._db, cluster.uuid),
                )
            elif due is not None and due < self._rows.clock - OVERDUE:
                yield Finding(
                    f'{text}, and has waited for a conductor since {due:%Y-%m-%d %H:%M:%S} UTC',
                    'Start a conductor, or see in the log of one why it does not get to it.',
                )

    def _check_keys(self) -> Iterator[Finding]:
        """Find keys without a cluster, and keys that the key file does not decrypt."""
        for key in self._rows.stray_keys:
            yield Finding(
                f'The key {key.purpose} is of cluster {key.cluster_id}, which is not there',
                'Delete the key',
                functools.partial(db.delete_row, self._db, key),
            )
        if not self._rows.keys:
            return
        try:
            store = keystore.KeyStore(self._conf)
        except keystore.KeyStoreError as e:
            yield Finding(
                f'The keys of clusters could not be tried: {str(e).partition(". ")[0]}',
                'Run this on the host of a conductor, and as its user.',
            )
            return
        for key in self._rows.keys:
            try:
                store.decrypt(key)
            except keystore.KeyStoreError as e:
                text, _, remedy = str(e).partition('. ')
                yield Finding(
                    text.rstrip('.'),
                    remedy or 'Restore the row from a backup, or delete the cluster.',
                )

    def _check_services(self) -> Iterator[Finding]:
        for service in self._rows.services:
            silence = models.utcnow() - (service.last_seen_up or service.created_at)
            text = (
                f'{service.binary} on {service.host} has not reported for '
                f'{silence.total_seconds() / 60:.0f} minutes'
            )
            if silence > FORGETTABLE:
                yield Finding(
                    text, 'Forget it', functools.partial(db.delete_row, self._db, service)
                )
            elif silence > SILENT:
                yield Finding(text, 'Start it, if it should run there.')


def run(
    audit: Audit, *, confirm: Callable[[Finding], bool] | None, say: Callable[[str], None] = print
) -> int:
    """Print every finding, and mend those for which `confirm` is true; None: mend nothing.

    Returns the exit status: 0 if there were no findings or all were mended."""
    found = mended = 0
    for finding in audit.find_all():
        found += 1
        hint = '' if finding.mend is None else ' (--fix does).'
        say(f'{finding.text}. {finding.remedy}{hint}')
        if finding.mend is None or confirm is None or not confirm(finding):
            continue
        try:
            finding.mend()
        except (clients.CloudError, errors.HttpError, db_exc.DBError) as e:
            say(f'  Not done: {e}')
        else:
            mended += 1
            say('  Done.')
    say(f'Found: {found}. Mended: {mended}.' if found else 'Nothing was found.')
    return int(found > mended)

"""`magnum-lite doctor`: what is in the cloud and in the key store without a row, and rows without
their stack.

It finds, says, and mends what it is told to, by the ways that a conductor goes. Two things keep an
operator safe. The cloud is listed before the rows are read: a row is older than its stack, so what
has no row then will not get one. And only what the history of this database (`operations`)
remembers counts as ours. A stack with our tag that it does not remember may be of another
installation: it is named, and deleted only by somebody who was asked about it."""

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

#: A stack may be this young without a row: whoever made it may be about to remove it.
YOUNG = datetime.timedelta(minutes=10)
#: A conductor that is alive takes work over long before this.
OVERDUE = datetime.timedelta(minutes=5)
#: A conductor that is alive reports six times within this; one that was silent for so long as the
#: other is gone.
SILENT, FORGETTABLE = datetime.timedelta(minutes=3), datetime.timedelta(days=1)
#: More clusters than this without their stacks, and more than half of all: then it is us who look
#: in the wrong place.
FEW = 2


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. `text` is a sentence without its dot.

    `remedy` says what to do; `mend` does it and raises CloudError, HttpError or DBError if it could
    not. `is_ours`: it cannot be of another installation on this cloud."""

    text: str
    remedy: str
    mend: Callable[[], None] | None = None
    is_ours: bool = True


@dataclass(frozen=True)
class Owner:
    """Whose uuid a stack bears: a cluster or a nodegroup. `is_busy`: a conductor may be about to
    note the stack."""

    what: str
    stack_id: str | None
    is_busy: bool


@dataclass(frozen=True)
class Project:
    """What the cloud said of a project."""

    state: str
    stacks: dict[str, clients.Stack]


class Audit:
    """One look at everything."""

    def __init__(self, conf: cfg.ConfigOpts, database: db.Database, cloud: clients.Cloud) -> None:
        self._conf, self._db, self._cloud = conf, database, cloud
        self._granted: set[str] = set()
        self._projects: dict[str, Project] = {}
        #: Users of clusters in the cloud: ids by the uuids that they are named after.
        self._users: dict[str, str] = {}
        self._rows: db.Inventory
        self._owners: dict[str, Owner] = {}
        #: Uuids of clusters and nodegroups that have another stack than the one in their row.
        self._doubtful: set[str] = set()

    def findings(self) -> Iterator[Finding]:
        """Everything that is wrong, one after the other, so that each can be mended before the next
        is looked for."""
        yield from self._look_at_projects()
        try:
            self._users = self._cloud.cluster_users()
        except clients.CloudError as e:
            yield Finding(f'Users of clusters could not be looked for: {e}', 'Run this again.')
        self._rows = db.take_inventory(self._db)
        for cluster in self._rows.clusters:
            busy = states.is_busy(cluster.status)
            self._owners[cluster.uuid] = Owner(f'cluster {cluster.uuid}', cluster.stack_id, busy)
            for group in cluster.nodegroups:
                self._owners[group.uuid] = Owner(
                    f'nodegroup {group.uuid} of cluster {cluster.uuid}', group.stack_id, busy
                )
        yield from self._stacks()
        yield from self._roles()
        yield from self._users_without_a_cluster()
        yield from self._rows_without_stack()
        yield from self._other_texts()
        yield from self._stuck()
        yield from self._keys()
        yield from self._services()

    # -- the cloud

    def _look_at_projects(self) -> Iterator[Finding]:
        try:
            self._granted = set(self._cloud.projects_with_role())
        except clients.CloudError as e:
            yield Finding(
                f'Projects without clusters could not be looked for: {e}', 'Run this again.'
            )
        for project_id in sorted(self._granted | set(db.list_projects(self._db))):
            try:
                state = self._cloud.project_state(project_id)
                listed = self._in(project_id, state).list_ours()
            except clients.CloudError as e:
                yield Finding(
                    f'Project {project_id} could not be looked at: {e}', 'Run this again.'
                )
                continue
            self._projects[project_id] = Project(state, {stack.id: stack for stack in listed})
            if state != 'enabled':
                yield Finding(
                    f'Project {project_id} is {state}',
                    'Delete its clusters, which is all that can be done with them, or enable it.',
                )

    def _in(self, project_id: str, state: str) -> clients.Stacks:
        return self._cloud.stacks(project_id, as_admin=state != 'enabled')

    def _is_remembered(self, stack: clients.Stack) -> bool:
        return not self._rows.known_clusters.isdisjoint((stack.name[-36:], *stack.tags))

    def _is_ours(self, stack: clients.Stack) -> bool:
        """Whether it is a stack of this program at all. A user's own may be named after some uuid,
        too."""
        return clients.TAG in stack.tags or self._is_remembered(stack)

    def _stacks(self) -> Iterator[Finding]:
        rightful = {owner.stack_id for owner in self._owners.values()}
        for project_id, project in self._projects.items():
            for stack in project.stacks.values():
                owner = (
                    self._owners.get(stack.name[-36:])
                    if uuidutils.is_uuid_like(stack.name[-36:])
                    else None
                )
                is_awaited = owner is not None and (owner.is_busy or owner.stack_id is None)
                if stack.id not in rightful and not is_awaited and self._is_ours(stack):
                    yield self._orphan(project_id, stack, owner)

    def _orphan(self, project_id: str, stack: clients.Stack, owner: Owner | None) -> Finding:
        what = f'Stack {stack.name} ({stack.id}) of project {project_id}'
        if owner is not None and owner.stack_id not in self._projects[project_id].stacks:
            self._doubtful.add(stack.name[-36:])
            return Finding(
                f'{what} bears the uuid of {owner.what}, whose own stack {owner.stack_id} is not '
                'there',
                'Find out which of the two is right before you delete anything.',
            )
        said = (
            f'{what} belongs to no cluster'
            if owner is None
            else f'{what} is a second one of {owner.what}'
        )
        if stack.status == 'DELETE_IN_PROGRESS':
            return Finding(f'{said}, and is being deleted', 'Run this again when it is gone.')
        if stack.created_at is not None and models.utcnow() - stack.created_at < YOUNG:
            return Finding(
                f'{said}, but it is only just being made', 'Run this again in ten minutes.'
            )
        if self._is_remembered(stack):
            return Finding(said, 'Delete the stack', lambda: self._delete(project_id, stack.id))
        return Finding(
            f'{said}, and no such cluster was ever asked for here: it may be of another '
            'installation on this cloud',
            'Delete the stack',
            lambda: self._delete(project_id, stack.id),
            is_ours=False,
        )

    def _delete(self, project_id: str, stack_id: str) -> None:
        if db.has_stack(self._db, stack_id):
            raise errors.Conflict('It has been given to a cluster meanwhile.')
        with contextlib.suppress(clients.NotFound):
            self._in(project_id, self._projects[project_id].state).delete(stack_id)

    def _roles(self) -> Iterator[Finding]:
        used = {cluster.project_id for cluster in self._rows.clusters}
        for project_id in sorted((self._granted - used) & set(self._projects)):
            said = (
                f'The service has its roles on project {project_id}, in which there is no cluster'
            )
            left = sum(map(self._is_ours, self._projects[project_id].stacks.values()))
            if left:
                yield Finding(
                    f'{said}, but there are stacks: {left}', 'Run this again when they are gone.'
                )
            else:
                is_ours = project_id in self._rows.known_projects
                yield Finding(
                    said
                    if is_ours
                    else f'{said} nor ever was: somebody else may have granted them',
                    'Take the roles back',
                    functools.partial(self._revoke, project_id),
                    is_ours,
                )

    def _revoke(self, project_id: str) -> None:
        if db.has_other_clusters(self._db, project_id, ''):
            raise errors.Conflict('A cluster was asked for there meanwhile.')
        self._cloud.revoke_roles(project_id)

    def _users_without_a_cluster(self) -> Iterator[Finding]:
        for uuid in sorted(set(self._users) - {cluster.uuid for cluster in self._rows.clusters}):
            said = (
                f'User {self._users[uuid]} can log in to the cloud for cluster {uuid}, which is '
                'not there'
            )
            is_ours = uuid in self._rows.known_clusters
            yield Finding(
                said
                if is_ours
                else f'{said} nor was ever asked for here: it may be of another installation '
                'on this cloud',
                'Delete the user',
                functools.partial(self._cloud.remove_user, uuid, self._users[uuid]),
                is_ours,
            )

    # -- the rows

    def _rows_without_stack(self) -> Iterator[Finding]:
        checked = 0
        lost: list[Finding] = []
        for project_id in self._projects:
            clusters = [
                c
                for c in self._rows.clusters
                if c.project_id == project_id
                and c.stack_id
                and c.uuid not in self._doubtful
                and not states.is_busy(c.status)
            ]
            try:
                gone = self._gone(project_id, clusters)
            except clients.CloudError as e:
                yield Finding(
                    f'The stacks of project {project_id} could not be looked at: {e}',
                    'Run this again.',
                )
                continue
            checked += len(clusters)
            lost += [self._without(cluster) for cluster in clusters if cluster.stack_id in gone]
            groups = [g for c in clusters if c.stack_id not in gone for g in c.nodegroups]
            for group in (g for g in groups if g.stack_id in gone and g.uuid not in self._doubtful):
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

    def _gone(self, project_id: str, clusters: list[models.Cluster]) -> set[str]:
        """Which stacks of these clusters Heat does not have. It is asked again: the rows are newer
        than the list."""
        project = self._projects[project_id]
        known = {
            stack_id
            for cluster in clusters
            for stack_id in (cluster.stack_id, *(group.stack_id for group in cluster.nodegroups))
            if stack_id
        }
        ids = known - set(project.stacks)
        return ids - set(self._in(project_id, project.state).look(ids)) if ids else set()

    def _without(self, cluster: models.Cluster) -> Finding:
        def mend() -> None:
            if cluster.stack_id not in self._gone(cluster.project_id, [cluster]):
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
            mend,
        )

    def _other_texts(self) -> Iterator[Finding]:
        """Stacks of clusters at rest that were last sent another text than the stored one. Older
        ones bear no number.

        Rows are newer than the list of stacks, so a cluster that has just changed is left out; as
        is what has failed, whose text may never have been sent."""
        for cluster in self._rows.clusters:
            young = self._rows.clock - (cluster.updated_at or cluster.created_at) < OVERDUE
            if (
                young
                or states.is_busy(cluster.status)
                or cluster.status not in states.TRANSITIONS['update']
            ):
                continue
            listed = (
                self._projects[cluster.project_id].stacks
                if cluster.project_id in self._projects
                else {}
            )
            for row in cluster.owners:
                stack = listed.get(row.stack_id or '')
                done = all(
                    group.status.endswith('_COMPLETE')
                    for group in cluster.nodegroups
                    if group is row or (group.is_default and row is cluster)
                )
                if stack is not None and done and stack.revision not in (0, row.revision):
                    yield Finding(
                        f'Stack {stack.name} ({stack.id}) of cluster {cluster.uuid} in project '
                        f'{cluster.project_id} has text number {stack.revision} and should have '
                        f'{row.revision}',
                        'Have a conductor put it right',
                        functools.partial(db.make_due, self._db, cluster.uuid),
                    )

    def _stuck(self) -> Iterator[Finding]:
        for cluster in self._rows.clusters:
            what = f'Cluster {cluster.uuid} of project {cluster.project_id} is {cluster.status}'
            due = cluster.leased_until or cluster.check_at
            if due is None and states.is_busy(cluster.status):
                yield Finding(
                    f'{what}, and nobody will look at it',
                    'Have a conductor look at it',
                    functools.partial(db.make_due, self._db, cluster.uuid),
                )
            elif due is not None and due < self._rows.clock - OVERDUE:
                yield Finding(
                    f'{what}, and has waited for a conductor since {due:%Y-%m-%d %H:%M:%S} UTC',
                    'Start a conductor, or see in the log of one why it does not get to it.',
                )

    def _keys(self) -> Iterator[Finding]:
        for key in self._rows.stray_keys:
            yield Finding(
                f'The key {key.purpose} is of cluster {key.cluster_id}, which is not there',
                'Delete the key',
                functools.partial(db.forget, self._db, key),
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
                store.open(key)
            except keystore.KeyStoreError as e:
                text, _, remedy = str(e).partition('. ')
                yield Finding(
                    text.rstrip('.'),
                    remedy or 'Restore the row from a backup, or delete the cluster.',
                )

    def _services(self) -> Iterator[Finding]:
        for service in self._rows.services:
            silent = models.utcnow() - (service.last_seen_up or service.created_at)
            said = (
                f'{service.binary} on {service.host} has not reported for '
                f'{silent.total_seconds() / 60:.0f} minutes'
            )
            if silent > FORGETTABLE:
                yield Finding(said, 'Forget it', functools.partial(db.forget, self._db, service))
            elif silent > SILENT:
                yield Finding(said, 'Start it, if it should run there.')


def run(
    audit: Audit, *, answer: Callable[[Finding], bool] | None, say: Callable[[str], None] = print
) -> int:
    """Print every finding and mend those for which `answer` is true; None: mend nothing.

    Returns the exit status: 0 if nothing was found or all was mended.
    """
    found = mended = 0
    for finding in audit.findings():
        found += 1
        say(f'{finding.text}. {finding.remedy}{"" if finding.mend is None else " (--fix does)."}')
        if finding.mend is None or answer is None or not answer(finding):
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

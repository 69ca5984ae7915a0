"""The doctor: each thing that it finds, what it does about it when told to, and what it leaves
alone."""

from __future__ import annotations

import contextlib
import datetime
import pathlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import fakes
import pytest
import sqlalchemy as sa
from conftest import Api, history_of

from magnum_lite import certs, clients, db, doctor, keystore, models
from magnum_lite.conductor.task import Services

OTHER = '5d7e1b5c-0000-4000-8000-0000000000ff'


class Doctor:
    """Runs the doctor and keeps what it said."""

    def __init__(self, conductor_services: Services) -> None:
        self.conductor_services = conductor_services
        self.said: list[str] = []
        self.asked: list[str] = []

    def __call__(
        self, *, fix: bool = False, yes: Callable[[doctor.Finding], bool] = lambda f: f.is_ours
    ) -> int:
        def answer(finding: doctor.Finding) -> bool:
            self.asked.append(finding.text)
            return yes(finding)

        self.said = []
        self.asked = []
        return doctor.run(
            doctor.Audit(
                self.conductor_services.conf,
                self.conductor_services.db,
                self.conductor_services.cloud,
            ),
            confirm=answer if fix else None,
            say=self.said.append,
        )


@pytest.fixture
def examine(conductor_services: Services) -> Doctor:
    return Doctor(conductor_services)


@pytest.fixture
def set_columns(database: db.Database) -> Callable[..., None]:
    def write(model: type[models.Base], **columns: Any) -> None:
        with database.write() as session:
            session.execute(sa.update(model).values(**columns))

    return write


def add_stack(
    cloud: fakes.FakeCloud,
    name: str,
    *,
    project: str = 'p1',
    tags: tuple[str, ...] = (clients.TAG,),
) -> fakes.FakeStack:
    stack = fakes.FakeStack(
        f'id-of-{name}', name, '', {}, {}, 60, status='CREATE_COMPLETE', tags=tags
    )
    cloud.stacks_by_project.setdefault(project, {})[stack.id] = stack
    return stack


@pytest.fixture
def complete(
    cloud: fakes.FakeCloud, cluster: str, set_columns: Callable[..., None]
) -> fakes.FakeStack:
    """The cluster's stack, in a world in which all is well."""
    cloud.granted.add('p1')
    stack = add_stack(cloud, f'c1-{cluster}', tags=(clients.TAG, cluster, 'rev-1'))
    set_columns(models.Cluster, stack_id=stack.id, status='CREATE_COMPLETE', check_at=None)
    set_columns(models.NodeGroup, stack_id=stack.id, status='CREATE_COMPLETE')
    return stack


def destroy(database: db.Database) -> None:
    with database.write() as session:
        session.execute(sa.delete(models.Cluster))


def test_nothing_is_found_where_all_is_well(examine: Doctor, complete: fakes.FakeStack) -> None:
    assert examine(fix=True) == 0
    assert examine.said == ['Nothing was found.']


def test_cluster_that_is_being_made_is_no_finding(
    examine: Doctor, cloud: fakes.FakeCloud, cluster: str
) -> None:
    cloud.granted.add('p1')
    add_stack(cloud, f'c1-{cluster}')

    assert examine(fix=True) == 0


def test_stack_without_a_row_is_deleted(
    examine: Doctor, database: db.Database, complete: fakes.FakeStack, cluster: str
) -> None:
    destroy(database)

    assert examine() == 1
    assert examine.said[0] == (
        f'Stack c1-{cluster} ({complete.id}) of project p1 belongs to no cluster. '
        'Delete the stack (--fix does).'
    )
    assert complete.status == 'CREATE_COMPLETE'

    assert examine(fix=True) == 1, 'the role is left until the stack is gone'
    assert complete.status == 'DELETE_IN_PROGRESS'

    assert examine(fix=True) == 1
    assert examine.asked == []
    assert 'is being deleted. Run this again when it is gone.' in examine.said[0]


def test_stack_with_another_text_than_the_stored_one_is_put_right(
    examine: Doctor,
    complete: fakes.FakeStack,
    cluster: str,
    database: db.Database,
    set_columns: Callable[..., None],
) -> None:
    """Sent by a conductor that had slept, and was killed before it could say so."""
    complete.tags = (clients.TAG, cluster, 'rev-7')
    set_columns(models.Cluster, revision=1, updated_at=models.utcnow())
    assert examine() == 0, 'it may have changed since the stacks were listed'

    set_columns(models.Cluster, updated_at=models.utcnow() - doctor.OVERDUE)
    assert examine(fix=True) == 0
    assert examine.said[0] == (
        f'Stack c1-{cluster} ({complete.id}) of cluster {cluster} in project p1 has text number '
        '7 and should have 1. Have a conductor put it right (--fix does).'
    )
    assert min(db.get_due_in_s(database)) <= 0

    set_columns(models.Cluster, status='UPDATE_FAILED', check_at=None)
    set_columns(models.NodeGroup, status='UPDATE_FAILED')
    assert examine() == 0, 'Heat may have refused the text'


def test_role_without_a_cluster_is_taken_back_when_the_stacks_are_gone(
    examine: Doctor, database: db.Database, cloud: fakes.FakeCloud, complete: fakes.FakeStack
) -> None:
    destroy(database)
    cloud.stacks_by_project.clear()

    assert examine(fix=True) == 0
    assert examine.asked == [
        'The service has its roles on project p1, in which there is no cluster'
    ]
    assert cloud.granted == set()
    assert examine() == 0


def test_user_of_a_cluster_that_is_gone_is_deleted_and_a_strange_one_only_named(
    examine: Doctor,
    database: db.Database,
    cloud: fakes.FakeCloud,
    complete: fakes.FakeStack,
    cluster: str,
) -> None:
    ours, strange = cloud.make_user(cluster, 'secret'), cloud.make_user(OTHER, 'secret')

    assert examine(fix=True) == 1
    assert examine.said[0] == (
        f'User {strange} can log in to the cloud for cluster {OTHER}, which is not there nor was '
        'ever asked for here: it may be of another installation on this cloud. Delete the user '
        '(--fix does).'
    )
    assert set(cloud.cluster_logins) == {cluster, OTHER}

    destroy(database)
    examine(fix=True)
    assert (
        f'User {ours} can log in to the cloud for cluster {cluster}, which is not there'
        in examine.asked
    )
    assert set(cloud.cluster_logins) == {OTHER}


def test_what_may_be_anothers_is_left_alone(
    examine: Doctor, cloud: fakes.FakeCloud, complete: fakes.FakeStack
) -> None:
    cloud.granted.add('p2')
    foreign = [
        add_stack(cloud, f'theirs-{OTHER}'),
        add_stack(cloud, f'theirs-{OTHER}', project='p2'),
    ]

    assert examine(fix=True) == 1
    assert [stack.status for stack in foreign] == ['CREATE_COMPLETE', 'CREATE_COMPLETE']
    assert cloud.granted == {'p1', 'p2'}
    assert (
        'it may be of another installation on this cloud. Delete the stack (--fix does).'
        in examine.said[0]
    )

    assert examine(fix=True, yes=lambda finding: True) == 1
    assert [stack.status for stack in foreign] == ['DELETE_IN_PROGRESS', 'DELETE_IN_PROGRESS']


def test_stack_of_a_user_that_is_named_after_a_uuid_is_not_ours(
    examine: Doctor, cloud: fakes.FakeCloud, complete: fakes.FakeStack
) -> None:
    add_stack(cloud, f'mine-{OTHER}', tags=())

    assert examine(fix=True, yes=lambda finding: True) == 0


def test_untagged_stack_of_a_cluster_that_once_was_is_ours(
    examine: Doctor, database: db.Database, complete: fakes.FakeStack
) -> None:
    complete.tags = ()
    destroy(database)

    examine(fix=True)

    assert complete.status == 'DELETE_IN_PROGRESS'


def test_second_stack_of_a_cluster_is_deleted_and_the_first_stays(
    examine: Doctor, cloud: fakes.FakeCloud, cluster: str, complete: fakes.FakeStack
) -> None:
    second = add_stack(cloud, f'older-{cluster}')

    assert examine(fix=True) == 0
    assert f'is a second one of cluster {cluster}' in examine.said[0]
    assert (complete.status, second.status) == ('CREATE_COMPLETE', 'DELETE_IN_PROGRESS')


def test_second_stack_is_not_touched_while_the_first_is_not_there(
    examine: Doctor,
    cloud: fakes.FakeCloud,
    cluster: str,
    complete: fakes.FakeStack,
    set_columns: Callable[..., None],
) -> None:
    set_columns(models.Cluster, stack_id='elsewhere')
    set_columns(models.NodeGroup, stack_id='elsewhere')

    assert examine(fix=True, yes=lambda finding: True) == 1
    assert examine.asked == []
    assert 'Find out which of the two is right' in examine.said[0]
    assert complete.status == 'CREATE_COMPLETE'


def test_stack_of_a_nodegroup_that_is_gone_is_deleted(
    examine: Doctor, cloud: fakes.FakeCloud, cluster: str, complete: fakes.FakeStack
) -> None:
    stray = add_stack(cloud, f'c1-{OTHER}', tags=(clients.TAG, cluster, 'rev-2'))

    assert examine(fix=True) == 0
    assert stray.status == 'DELETE_IN_PROGRESS'


def test_young_stack_is_only_named(
    examine: Doctor,
    database: db.Database,
    complete: fakes.FakeStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    destroy(database)
    seen = complete.seen()
    young = clients.Stack(seen.id, seen.name, seen.status, '', 1, seen.tags, models.utcnow())
    monkeypatch.setattr(complete, 'seen', lambda: young, raising=False)

    assert examine(fix=True) == 1
    assert 'Run this again in ten minutes' in examine.said[0]
    assert complete.status == 'CREATE_COMPLETE'


def test_stack_that_a_cluster_took_meanwhile_stays(
    examine: Doctor,
    database: db.Database,
    cluster: str,
    cloud: fakes.FakeCloud,
    complete: fakes.FakeStack,
    set_columns: Callable[..., None],
) -> None:
    second = add_stack(cloud, f'older-{cluster}')

    def hesitate(finding: doctor.Finding) -> bool:
        set_columns(models.Cluster, stack_id=second.id)
        return True

    assert examine(fix=True, yes=hesitate) == 1
    assert '  Not done: It has been given to a cluster meanwhile.' in examine.said
    assert second.status == 'CREATE_COMPLETE'


def test_row_without_its_stack_is_asked_to_be_deleted(
    examine: Doctor,
    database: db.Database,
    cloud: fakes.FakeCloud,
    cluster: str,
    complete: fakes.FakeStack,
) -> None:
    cloud.stacks_by_project.clear()

    assert examine(fix=True) == 0
    assert examine.asked == [
        f'Cluster {cluster} of project p1 is CREATE_COMPLETE and has a stack that Heat does not '
        f'know, {complete.id}'
    ]
    row = db.get_cluster(database, db.Scope('p1'), cluster)
    assert row.status == 'DELETE_IN_PROGRESS' and row.check_at is not None
    operation = history_of(database, cluster)[-1]
    assert (operation.kind, operation.user_id) == ('delete', 'doctor')
    assert examine() == 0


def test_looking_in_the_wrong_heat_mends_nothing(
    examine: Doctor,
    api: Api,
    database: db.Database,
    cloud: fakes.FakeCloud,
    template: dict[str, Any],
    complete: fakes.FakeStack,
    set_columns: Callable[..., None],
) -> None:
    for name in ('c2', 'c3'):
        api('POST', '/v1/clusters', {'name': name, 'cluster_template_id': template['uuid']})
    set_columns(models.Cluster, stack_id=complete.id, status='CREATE_COMPLETE', check_at=None)
    cloud.stacks_by_project.clear()

    assert examine(fix=True, yes=lambda finding: True) == 1
    assert examine.asked == []
    assert 'Heat knows the stacks of only 0 of 3 clusters' in examine.said[0]


def test_nodegroup_without_its_stack_is_named(
    examine: Doctor, complete: fakes.FakeStack, database: db.Database, cluster: str
) -> None:
    with database.write() as session:
        session.execute(
            sa.update(models.NodeGroup)
            .where(models.NodeGroup.role == 'worker')
            .values(stack_id='lost')
        )

    assert examine(fix=True) == 1
    assert (
        f'of cluster {cluster} in project p1 has a stack that Heat does not know, lost'
        in examine.said[0]
    )


def test_row_that_nobody_will_look_at_is_made_due(
    examine: Doctor,
    database: db.Database,
    cluster: str,
    cloud: fakes.FakeCloud,
    set_columns: Callable[..., None],
) -> None:
    cloud.granted.add('p1')
    set_columns(models.Cluster, check_at=None)

    assert examine(fix=True) == 0
    assert examine.asked == [
        f'Cluster {cluster} of project p1 is CREATE_IN_PROGRESS, and nobody will look at it'
    ]
    assert db.get_cluster(database, db.Scope('p1'), cluster).check_at is not None
    assert examine() == 0


@pytest.mark.parametrize(
    'columns',
    [
        {'leased_by': 'dead', 'leased_until': datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)},
        {'check_at': datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)},
    ],
)
def test_row_that_waits_for_a_conductor_is_named(
    examine: Doctor,
    cluster: str,
    cloud: fakes.FakeCloud,
    set_columns: Callable[..., None],
    columns: dict[str, Any],
) -> None:
    cloud.granted.add('p1')
    set_columns(models.Cluster, **columns)

    assert examine(fix=True) == 1
    assert examine.said[0].endswith(
        'has waited for a conductor since 2020-01-02 00:00:00 UTC. Start a conductor, or '
        'see in the log of one why it does not get to it.'
    )


def put_key(conductor_services: Services, cluster_uuid: str) -> None:
    with conductor_services.db.write() as session:
        conductor_services.keystore.store_pair(
            session, cluster_uuid, 'ca', certs.Pair('certificate', 'private')
        )


def test_key_that_does_not_open_is_named(
    examine: Doctor, conductor_services: Services, cluster: str, complete: fakes.FakeStack
) -> None:
    put_key(conductor_services, cluster)
    assert examine() == 0

    pathlib.Path(conductor_services.conf.keystore.key_file).write_text(keystore.generate_key())

    assert examine(fix=True) == 1
    assert examine.said[0] == (
        f'The key ca of cluster {cluster} does not open with any key of [keystore] key_file. '
        'Put the key it was made with back into that file.'
    )
    pathlib.Path(conductor_services.conf.keystore.key_file).unlink()
    assert examine(fix=True) == 1
    assert 'Run this on the host of a conductor' in examine.said[0]


def test_key_without_a_cluster_is_deleted(
    examine: Doctor, conductor_services: Services, complete: fakes.FakeStack
) -> None:
    with contextlib.closing(
        sqlite3.connect(str(conductor_services.db.engine.url.database))
    ) as connection:  # no foreign keys
        connection.execute(
            'INSERT INTO cluster_keys (cluster_id, purpose, is_next, certificate, private_key, '
            "backend, created_at) VALUES (?, 'ca', 0, '', '', 'database', '2020-01-02 "
            "00:00:00.000000')",
            (OTHER,),
        )
        connection.commit()

    assert examine(fix=True) == 0
    assert examine.asked == [f'The key ca is of cluster {OTHER}, which is not there']
    assert examine() == 0


def test_silent_service_is_named_and_an_old_one_forgotten(
    examine: Doctor, database: db.Database
) -> None:
    db.report_service(database, 'alive', 'magnum-conductor')
    with database.write() as session:
        for host, age in (('late', 240), ('old', 90000)):
            session.add(
                models.Service(
                    host=host,
                    binary='magnum-conductor',
                    last_seen_up=models.utcnow() - datetime.timedelta(seconds=age),
                )
            )

    assert examine(fix=True) == 1
    assert examine.said == [
        'magnum-conductor on late has not reported for 4 minutes. Start it, if it should run '
        'there.',
        'magnum-conductor on old has not reported for 1500 minutes. Forget it (--fix does).',
        '  Done.',
        'Found: 2. Mended: 1.',
    ]


@pytest.mark.parametrize('state', ['disabled', 'gone'])
def test_project_that_is_closed_is_named_and_looked_into(
    examine: Doctor, cloud: fakes.FakeCloud, cluster: str, complete: fakes.FakeStack, state: str
) -> None:
    cloud.project_states['p1'] = state
    stray = add_stack(cloud, f'c1-{OTHER}', tags=(clients.TAG, cluster))

    assert examine(fix=True) == 1
    assert examine.said[0].startswith(f'Project p1 is {state}. Delete its clusters')
    assert stray.status == 'DELETE_IN_PROGRESS'


def test_cloud_that_is_away_is_said_and_the_rest_is_done(
    examine: Doctor, cloud: fakes.FakeCloud, cluster: str, set_columns: Callable[..., None]
) -> None:
    set_columns(models.Cluster, check_at=None)

    def away(call: str, when: str) -> None:
        raise clients.Unreachable(f'{call}: refused')

    cloud.hook = away

    assert examine(fix=True) == 1
    assert examine.said[:2] == [
        'Projects without clusters could not be looked for: list_projects_with_role: refused. '
        'Run this again.',
        'Project p1 could not be looked at: get_project_state: refused. Run this again.',
    ]
    assert examine.said[-1] == 'Found: 4. Mended: 1.'


def test_mending_that_fails_is_said(
    examine: Doctor, database: db.Database, cloud: fakes.FakeCloud, complete: fakes.FakeStack
) -> None:
    destroy(database)

    def away(call: str, when: str) -> None:
        if call == 'delete':
            raise clients.Unreachable('delete: refused')

    cloud.hook = away

    assert examine(fix=True) == 1
    assert '  Not done: delete: refused' in examine.said


def test_inventory_is_the_same_on_every_database(any_database: db.Database) -> None:
    db.report_service(any_database, 'h', 'magnum-conductor')

    rows = db.take_inventory(any_database)

    assert abs((rows.clock - models.utcnow()).total_seconds()) < 5
    assert [s.host for s in rows.services] == ['h']
    assert (list(rows.clusters), rows.known_clusters, db.list_projects(any_database)) == (
        [],
        frozenset(),
        [],
    )


def test_without_a_terminal_nothing_is_changed(tmp_path: pathlib.Path) -> None:
    conf = tmp_path / 'magnum-lite.conf'
    conf.write_text(
        f'[DEFAULT]\nstate_path = {tmp_path}\n[keystone_auth]\nauth_type = password\nusername = u\n'
        'password = p\nproject_name = p\nauth_url = http://127.0.0.1:1/v3\n'
    )
    run = "import sys; from magnum_lite import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, '-W', 'ignore', '-c', run, '--config-file', str(conf)]
    subprocess.run([*command, 'db', 'upgrade'], check=True, timeout=60)

    done = subprocess.run(
        [*command, 'doctor', '--fix'],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 1
    assert done.stdout.startswith('There is no terminal to ask at, so nothing is changed.')
    assert 'Projects without clusters could not be looked for' in done.stdout

"""The doctor on a real cloud: an orphan stack, an orphan role and a row without its stack are found
and mended.

The cloud is shared: what others have there is found as well, and must stay as it is.
"""

from __future__ import annotations

import subprocess
import sys
import uuid

import pytest
import sqlalchemy as sa
from functional.cloud import ON_A_CLOUD, STACK_S, Project, Sandbox, Start
from functional.service import Service, poll
from sqlalchemy import orm

from magnum_lite import models

pytest_plugins = ('functional.fixtures',)
pytestmark = ON_A_CLOUD
STACK = {
    'heat_template_version': '2018-08-31',
    'resources': {'r': {'type': 'OS::Heat::RandomString'}},
}
#: Runs the command with stacks counting as old at once.
AGED = (
    'import datetime, sys; from magnum_lite import cli, doctor; doctor.YOUNG = '
    'datetime.timedelta(0); sys.exit(cli.main(sys.argv[1:]))'
)


@pytest.fixture
def service(lone: Start) -> Service:
    """An API, and as yet no conductor."""
    return lone()


def examine(
    service: Service, projects: list[Project], *options: str, aged: bool = True
) -> list[str]:
    """What the doctor says of our projects."""
    code = (
        AGED
        if aged
        else 'import sys; from magnum_lite import cli; sys.exit(cli.main(sys.argv[1:]))'
    )
    done = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            '-c',
            code,
            '--config-file',
            str(service.conf_file),
            'doctor',
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    print(done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    assert lines and lines[-1].startswith(('Found: ', 'Nothing')), done.stderr
    assert (done.returncode == 0) == (
        lines[-1] == 'Nothing was found.' or lines[-1].split()[1] == lines[-1].split()[-1]
    ), lines
    return [
        f'{line} {after.strip()}'.strip() if after.startswith('  ') else line
        for line, after in zip(lines, [*lines[1:], ''], strict=True)
        if any(p.id in line for p in projects)
    ]


def grant(sandbox: Sandbox, project: Project) -> None:
    role = sandbox.admin.identity.find_role('member', ignore_missing=False)
    sandbox.admin.identity.put(
        f'/projects/{project.id}/users/{sandbox.service_user_id}/roles/{role.id}', raise_exc=True
    )


def remember(service: Service, cluster_uuid: str, project: Project) -> None:
    """Write into the history that there was a cluster."""
    with orm.Session(service.engine) as session, session.begin():
        session.add(
            models.Operation(
                uuid=str(uuid.uuid4()),
                cluster_id=cluster_uuid,
                project_id=project.id,
                user_id='u',
                kind='create',
                generation=1,
                outcome='complete',
            )
        )


def add_row(service: Service, project: Project) -> str:
    """Store a cluster whose stack Heat has never heard of, and return its uuid."""
    made, template = str(uuid.uuid4()), str(uuid.uuid4())
    whose = {'project_id': project.id, 'user_id': 'u', 'labels': {}}
    with orm.Session(service.engine) as session, session.begin():
        session.add(
            models.ClusterTemplate(
                uuid=template,
                name='doctor',
                coe='kubernetes',
                server_type='vm',
                cluster_distro='ubuntu',
                image_id='ubuntu',
                **whose,
            )
        )
        session.flush()
        session.add(
            models.Cluster(
                uuid=made,
                name='doctor-lost',
                cluster_template_id=template,
                driver='k8s_cloud_init',
                status='CREATE_COMPLETE',
                stack_id=str(uuid.uuid4()),
                stack_text={'template': '', 'files': {}},
                floating_ip_enabled=False,
                master_lb_enabled=False,
                **whose,
            )
        )
    return made


def test_orphans_and_lost_rows_are_found_and_mended(sandbox: Sandbox, service: Service) -> None:
    with sandbox.project() as full, sandbox.project() as empty, sandbox.project() as foreign:
        projects = [full, empty, foreign]
        for project in projects:
            grant(sandbox, project)
        orphan = str(uuid.uuid4())
        remember(service, orphan, empty)
        lost = add_row(service, full)
        stack = empty.cloud.orchestration.create_stack(
            name=f'doctor-{orphan}', template=STACK, tags=f'magnum-lite,{orphan},rev-1', wait=False
        )
        theirs = foreign.cloud.orchestration.create_stack(
            name=f'doctor-{uuid.uuid4()}', template=STACK, tags='magnum-lite', wait=False
        )

        said = examine(service, projects, aged=False)
        assert sum('it is only just being made' in line for line in said) == 2, said

        said = examine(service, projects, '--fix')
        assert any(
            f'({stack.id})' in line and 'Delete the stack (--fix does)' in line for line in said
        ), said
        assert any(lost in line and 'that Heat does not know' in line for line in said), said
        assert not any('Done.' in line for line in said), said

        said = examine(service, projects, '--fix', '--yes')
        assert sorted(line.split()[0] for line in said if 'Done.' in line) == [
            'Cluster',
            'Stack',
        ], said
        assert any(theirs.id in line and 'Left alone' in line for line in said), said
        poll(lambda: not empty.stacks(), STACK_S, 'the orphan goes', every_s=1)

        said = examine(service, projects, '--fix', '--yes')
        assert any(f'roles on project {empty.id}' in line and 'Done.' in line for line in said), (
            said
        )

        service.start_conductor()
        poll(
            lambda: not service.rows('SELECT id FROM clusters'),
            STACK_S,
            'the lost cluster goes',
            every_s=1,
        )
        poll(lambda: not examine(service, [full, empty]), 60, 'nothing of ours is left', every_s=1)
        assert [s.id for s in foreign.stacks()] == [theirs.id]
        assert 'roles of the service' not in empty.leftovers()
        with service.engine.connect() as connection:
            history = connection.execute(
                sa.select(models.Operation.kind, models.Operation.outcome).where(
                    models.Operation.cluster_id == lost
                )
            ).all()
        assert [tuple(row) for row in history] == [('delete', 'complete')]

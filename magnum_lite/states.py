"""The statuses of a cluster and the one table of how it gets from one to the next. Pure: no
database, no clock.

`db.move` is the only writer of a status and follows this table; the tests walk every pair. Health
is not a status. Resize, upgrade, rotation and changes of nodegroups are all `update`."""

from __future__ import annotations

CREATE_IN_PROGRESS = 'CREATE_IN_PROGRESS'
CREATE_COMPLETE = 'CREATE_COMPLETE'
CREATE_FAILED = 'CREATE_FAILED'
UPDATE_IN_PROGRESS = 'UPDATE_IN_PROGRESS'
UPDATE_COMPLETE = 'UPDATE_COMPLETE'
UPDATE_FAILED = 'UPDATE_FAILED'
DELETE_IN_PROGRESS = 'DELETE_IN_PROGRESS'
DELETE_COMPLETE = 'DELETE_COMPLETE'
DELETE_FAILED = 'DELETE_FAILED'

#: Every status that we set.
STATUSES = (
    CREATE_IN_PROGRESS,
    CREATE_COMPLETE,
    CREATE_FAILED,
    UPDATE_IN_PROGRESS,
    UPDATE_COMPLETE,
    UPDATE_FAILED,
    DELETE_IN_PROGRESS,
    DELETE_COMPLETE,
    DELETE_FAILED,
)
#: Names that Magnum also had and that clients may still know; nothing here ever sets them.
FOREIGN_STATUSES = (
    'RESUME_COMPLETE',
    'RESUME_FAILED',
    'RESTORE_COMPLETE',
    'ROLLBACK_IN_PROGRESS',
    'ROLLBACK_COMPLETE',
    'ROLLBACK_FAILED',
    'SNAPSHOT_COMPLETE',
    'CHECK_COMPLETE',
    'ADOPT_COMPLETE',
)

#: event -> {status it may leave: status it enters}
TRANSITIONS: dict[str, dict[str, str]] = {
    # Asked for by a caller. An update is taken while one runs (it is applied next), and after a
    # failed create nothing but a delete makes sense.
    'update': {
        status: UPDATE_IN_PROGRESS
        for status in (CREATE_COMPLETE, UPDATE_COMPLETE, UPDATE_FAILED, UPDATE_IN_PROGRESS)
    },
    'delete': {status: DELETE_IN_PROGRESS for status in STATUSES if status != DELETE_COMPLETE},
    # Found out by a conductor.
    'done': {
        CREATE_IN_PROGRESS: CREATE_COMPLETE,
        UPDATE_IN_PROGRESS: UPDATE_COMPLETE,
        DELETE_IN_PROGRESS: DELETE_COMPLETE,
    },
    'fail': {
        CREATE_IN_PROGRESS: CREATE_FAILED,
        UPDATE_IN_PROGRESS: UPDATE_FAILED,
        DELETE_IN_PROGRESS: DELETE_FAILED,
    },
}

#: What a caller can do instead whose change is refused in this status.
ADVICE = {
    CREATE_IN_PROGRESS: 'Wait until it is CREATE_COMPLETE.',
    CREATE_FAILED: 'Delete it and create it anew.',
    DELETE_FAILED: 'Delete it again.',
}


def is_busy(status: str) -> bool:
    """Whether a change is under way."""
    return status.endswith('_IN_PROGRESS')


def again(status: str) -> str:
    """The status of what has failed and is tried again."""
    return status.replace('_FAILED', '_IN_PROGRESS')


def is_failed(status: str) -> bool:
    """Whether the last change of the cluster failed."""
    return status.endswith('_FAILED')

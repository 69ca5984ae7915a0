"""The statuses of a cluster, and the one table of its transitions.

`db.move` follows the table and is the only writer of a cluster's status; the API and the conductor
read the names and the predicates. Nodegroups and nodes use the same names, without the table. Pure:
no database, no clock. Health is not a status. Resize, upgrade, rotation and changes of nodegroups
are all the event `update`. The tests walk every pair of status and event."""

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

#: Every status that this service sets.
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
#: Statuses of Magnum that clients may still know. This service never sets them.
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

#: event -> {status before: status after}
TRANSITIONS: dict[str, dict[str, str]] = {
    # Requested by a caller. An update is accepted while another one runs, and is applied after it.
    # After a failed create only a delete makes sense.
    'update': {
        status: UPDATE_IN_PROGRESS
        for status in (CREATE_COMPLETE, UPDATE_COMPLETE, UPDATE_FAILED, UPDATE_IN_PROGRESS)
    },
    'delete': {status: DELETE_IN_PROGRESS for status in STATUSES if status != DELETE_COMPLETE},
    # Observed by a conductor.
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

#: What a caller can do instead when an update is refused in this status.
ADVICE = {
    CREATE_IN_PROGRESS: 'Wait until it is CREATE_COMPLETE.',
    CREATE_FAILED: 'Delete it and create it anew.',
    DELETE_FAILED: 'Delete it again.',
}


def is_busy(status: str) -> bool:
    """Whether a change is in progress."""
    return status.endswith('_IN_PROGRESS')


def is_failed(status: str) -> bool:
    """Whether the last change failed."""
    return status.endswith('_FAILED')


def to_in_progress(status: str) -> str:
    """Return the status of a failed change that is tried again: *_FAILED as *_IN_PROGRESS."""
    return status.replace('_FAILED', '_IN_PROGRESS')

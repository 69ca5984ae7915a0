"""The methods of a conductor that the API calls through the broker: the nudge, and the signing of
client certificates.

`service` runs an `Endpoint` in a thread of its own. It reads the database and the key store, and
writes neither. All other work is started by the rows that the conductor finds due.
"""

from __future__ import annotations

import datetime
import threading
from typing import Any

import oslo_messaging
from oslo_db import exception as db_exc
from oslo_log import log

from magnum_lite import certs, db, errors, keystore
from magnum_lite.conductor.task import Services

LOG = log.getLogger(__name__)


class Endpoint:
    """The methods that `rpc` may call on a conductor."""

    target = oslo_messaging.Target(version='1.1')

    def __init__(self, wake: threading.Event, services: Services) -> None:
        self._wake = wake
        self._services = services

    @oslo_messaging.expose
    def nudge(self, context: Any, uuid: str) -> None:
        """Wake the conductor: a cluster has become due. The database tells which one."""
        self._wake.set()

    @oslo_messaging.expose
    def sign_certificate(
        self,
        context: Any,
        *,
        cluster_uuid: str,
        project_id: str,
        purpose: str,
        csr: str,
        life_s: int,
        user_id: str,
        request_id: str,
    ) -> dict[str, Any]:
        """Sign a request for a client certificate by an authority of a cluster of that project.

        Returns `pem`, `serial`, `subject` and `until` (ISO 8601), or `code` (HTTP status) and
        `text` of an error. Raises nothing. `life_s` is in seconds; `user_id`, the user who made the
        request, and `request_id` are for the log."""
        try:
            issued = sign(
                self._services,
                db.Scope(project_id),
                cluster_uuid,
                purpose,
                csr,
                life=datetime.timedelta(seconds=life_s),
            )
        except errors.HttpError as e:
            return {'code': e.code, 'text': str(e)}
        except db_exc.DBError as e:
            LOG.warning(
                'Cluster %s: nothing is signed, as the database cannot be used: %s', cluster_uuid, e
            )
            return {'code': 503, 'text': 'The database does not answer. Try again later.'}
        except keystore.KeyStoreError as e:
            LOG.error('Cluster %s: nothing can be signed. %s', cluster_uuid, e)
        except Exception:
            LOG.exception(
                'Cluster %s: signing for user %s failed (%s)', cluster_uuid, user_id, request_id
            )
        else:
            LOG.info(
                'Cluster %s: authority %s has signed %s for %r until %s, as user %s has asked (%s)',
                cluster_uuid,
                purpose,
                issued.serial,
                issued.subject,
                issued.until,
                user_id,
                request_id,
            )
            return {
                'pem': issued.pem,
                'serial': issued.serial,
                'subject': issued.subject,
                'until': issued.until.isoformat(),
            }
        return {
            'code': 503,
            'text': f'Nothing can be signed for cluster {cluster_uuid} now. An operator has to '
            f'look into the log of the conductor, for the request id {request_id}.',
        }


def sign(
    services: Services,
    scope: db.Scope,
    cluster_uuid: str,
    purpose: str,
    csr: str,
    *,
    life: datetime.timedelta,
) -> certs.Issued:
    """Sign a request by an authority of a cluster.

    Raises NotFound for the cluster, Conflict if it has no such authority that signs, Invalid for
    the request, and KeyStoreError."""
    cluster = db.get_cluster(services.db, scope, cluster_uuid)
    driver = services.drivers.get(cluster.driver)
    pairs = services.keystore.load_pairs(services.db, cluster)
    if driver is None or purpose not in driver.signing.purposes or purpose not in pairs:
        raise errors.Conflict(f'Cluster {cluster_uuid} has no authority {purpose} that signs.')
    try:
        return certs.sign_request(
            pairs[purpose], csr, life=life, takes_ed25519=driver.signing.takes_ed25519
        )
    except certs.InvalidRequest as e:
        raise errors.Invalid(f'{e}.') from e

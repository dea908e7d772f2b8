"""The minimal Redis permissions of each kind of program, as ACL rules, and which of them a user lacks.

It is not part of the face of ``operations``, because it loads Celery's result backends.
"""

from bridge.operations.acl.bus import ROLES, Role
from bridge.operations.acl.celery import BrokerKeys, broker_grants
from bridge.operations.acl.plan import Part, Place, parts_of, queues_of
from bridge.operations.acl.rules import MIN_VERSION, rules_of, version_of
from bridge.operations.acl.verify import missing_grants, missing_permissions, user_of

__all__ = [
    "MIN_VERSION",
    "ROLES",
    "BrokerKeys",
    "Part",
    "Place",
    "Role",
    "broker_grants",
    "missing_grants",
    "missing_permissions",
    "parts_of",
    "queues_of",
    "rules_of",
    "user_of",
    "version_of",
]

"""Groups of tests that run in one process, because they share servers or another costly fixture.

The mark ``xdist_group`` of pytest-xdist 3.8 has no effect with pytest 9.2, whose node ids cannot be changed.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

#: Files of tests/system whose tests share no server, although those of other files in the folder do.
_SEPARATE = {"test_compose_variants", "test_failover"}


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # untyped
    """Sends the tests of one group to one process, and large groups first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """Return the group of a test; the node id itself for a test that can run in any process."""
    path, _, test = nodeid.partition("::")
    file = PurePosixPath(path).stem
    match PurePosixPath(path).parent.name:
        case "matrix":  # by site, which all parametrized tests have as their only parameter
            return f"site {test.partition('[')[2]}" if "[" in test else file
        case "rabbitmq":  # two nodes: one that tests damage, and one that they do not
            return f"rabbitmq {file in ('test_faults', 'test_workers')}"
        case "browser":
            return "browser"
        case "deploy" | "package" | "topologies" if file not in _SEPARATE:
            return file
    return file if file in ("test_architecture", "test_bad_input", "test_error_replies") else nodeid

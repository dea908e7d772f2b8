"""The error replies of Redis and Valkey, by the word that they begin with, as of Redis 6.2 to 8 and Valkey 8.

Left out are those of commands that the bridge does not send, such as BUSYKEY, IOERR, NOTBUSY and UNKILLABLE, and those
that lead to another server of a cluster, ASK and MOVED.
"""

from __future__ import annotations

#: Errors that may end without intervention.
HEALING = (
    ("BUSY", "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."),
    ("CLUSTERDOWN", "CLUSTERDOWN The cluster is down"),
    ("ERR", "ERR max number of clients reached"),
    ("LOADING", "LOADING Redis is loading the dataset in memory"),
    ("MASTERDOWN", "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
    ("MISCONF", "MISCONF Errors writing to the AOF file: No space left on device"),
    ("NOREPLICAS", "NOREPLICAS Not enough good replicas to write."),
    ("NOSCRIPT", "NOSCRIPT No matching script. Please use EVAL."),
    ("OOM", "OOM command not allowed when used memory > 'maxmemory'."),
    ("READONLY", "READONLY You can't write against a read only replica."),
    ("TRYAGAIN", "TRYAGAIN Multiple keys request during rehashing of slot"),
    ("UNBLOCKED", "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"),
)
#: Errors that need an operator, or a change of the program.
PERMANENT = (
    ("CROSSSLOT", "CROSSSLOT Keys in request don't hash to the same slot"),
    ("DENIED", "DENIED Redis is running in protected mode because protected mode is enabled"),
    ("ERR", "ERR unknown command 'XAUTOCLAIM', with args beginning with: "),
    ("EXECABORT", "EXECABORT Transaction discarded because of previous errors."),
    ("NOAUTH", "NOAUTH Authentication required."),
    ("NOPERM", "NOPERM this user has no permissions to run the 'xadd' command"),
    ("NOPROTO", "NOPROTO unsupported protocol version"),
    ("WRONGPASS", "WRONGPASS invalid username-password pair or user is disabled."),
    ("WRONGTYPE", "WRONGTYPE Operation against a key holding the wrong kind of value"),
)

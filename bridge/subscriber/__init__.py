"""Events into tasks: four loops in the threads of a worker, or of ``bus subscribe``.

============  =======================================================================================================
intake        broadcasts, and events found by their keys after a gap, into the journal
dispatch      journal entries into task messages
maintenance   one leader per group: claims entries of dead consumers, trims, sends lost messages again
monitoring    presence, health checks and metrics
============  =======================================================================================================

Any number of subscribers share the work of a group. One that crashes leaves entries that it has read and not
acknowledged; another claims them after ``claim_idle_s``.
"""

from bridge.subscriber.checks import Finding, check_clock, check_settings, refused_handlers, server_of
from bridge.subscriber.subscriber import Subscriber

__all__ = ["Finding", "Subscriber", "check_clock", "check_settings", "refused_handlers", "server_of"]

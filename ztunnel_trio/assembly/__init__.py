"""What the process is made of: every object, built from the configuration before anything runs.

`app` opens the nurseries around `Parts`. A module here builds one subsystem and is the only place where
that subsystem meets the functions of its neighbours.
"""

from ztunnel_trio.assembly.build import build
from ztunnel_trio.assembly.parts import Parts
from ztunnel_trio.assembly.proxies import make_workload_proxies

__all__ = ["Parts", "build", "make_workload_proxies"]

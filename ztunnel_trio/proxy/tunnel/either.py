"""A tunnel of either role."""

from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.server import ServerTunnel

Tunnel = ClientTunnel | ServerTunnel

"""Socket options, ioctls and flags of Linux that Python's standard library lacks (linux/include/uapi)."""

from typing import Final

# asm-generic/socket.h
SO_MARK: Final = 36

# linux/in.h, level SOL_IP
SOL_IP: Final = 0
IP_FREEBIND: Final = 15
IP_TRANSPARENT: Final = 19
IP_BIND_ADDRESS_NO_PORT: Final = 24

# linux/in6.h, level SOL_IPV6
SOL_IPV6: Final = 41
IPV6_TRANSPARENT: Final = 75
IPV6_FREEBIND: Final = 78

# linux/netfilter_ipv4.h (a `struct sockaddr_in`), linux/netfilter_ipv6/ip6_tables.h (a `struct sockaddr_in6`)
SO_ORIGINAL_DST: Final = 80
IP6T_SO_ORIGINAL_DST: Final = 80
SOCKADDR_IN_SIZE: Final = 16
SOCKADDR_IN6_SIZE: Final = 28

# linux/sched.h
CLONE_NEWNET: Final = 0x40000000

# linux/nsfs.h: _IO(0xb7, 0x3), answers with a namespace's CLONE_ flag
NS_GET_NSTYPE: Final = 0xB703

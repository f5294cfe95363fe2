"""HBONE connections and their streams.

```
    ClientTunnel   ServerTunnel       roles: ask and wait for answers; one task a request
          \\           /
           Connection                 its life: a table of states, keepalive, one `end(how)`
          /          \
      Streams ------- Link            TunnelStream <-> events of `wire.http2`;  bytes <-> transport, engine
         |
    TunnelStream                      one CONNECT, an end for `net.relay`
```

Everything is composition, and each knows only what is below it: a link no streams, a stream only
`Streams`, nobody outside this package the HTTP/2 connection. Lifetimes are Trio's: a role's `run` is the
owner's one task a tunnel (and, at the server, one a request); leaving it closes everything. Bytes are the
engine's.
"""

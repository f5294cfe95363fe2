"""Sans-io protocols: bytes <-> events; no clock, no sockets."""

"""Against a real SPIRE server and agent: `nox -s spire` builds them and names them in SPIRE_BIN."""

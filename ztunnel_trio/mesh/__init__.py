"""The mesh as istiod told it, in memory."""

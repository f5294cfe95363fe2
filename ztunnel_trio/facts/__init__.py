"""Names and numbers other people chose, each with its source."""

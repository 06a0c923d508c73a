"""A scoreboard of DIMSE behaviour: the same probe, a client written from the standard, against several nodes."""

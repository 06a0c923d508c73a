"""Saved indexes of vectors ("bases"): made by a worker, mapped by every process, extended in memory by what came since."""

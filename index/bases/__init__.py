"""Saved indexes of vectors ("bases"): made by a worker, mapped by every process, which adds what came since."""

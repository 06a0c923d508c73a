"""Readers and writers of stored projections: one module an encoding, all yielding the same `scan.Scan`."""

"""Readers of scans that are no DICOM: one module a format, all yielding the same `raw_scan.RawScan`."""

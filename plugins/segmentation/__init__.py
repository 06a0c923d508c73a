"""Segmenters, and the DICOM SEG objects that they write."""

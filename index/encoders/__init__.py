"""Encoders: from the pixels of an instance to the vectors by which similar cases are found."""

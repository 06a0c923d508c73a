"""De-identification (PS3.15 Annex E): the Basic Profile with options, replacements by a secret key.

`index.deidentification.deidentifier.Deidentifier` is the door; the tables beside it are generated from the standard.
"""

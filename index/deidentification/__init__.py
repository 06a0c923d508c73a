"""De-identification (PS3.15 Annex E): the Basic Application Level Confidentiality Profile with options, keyed, by data set.

`index.deidentification.deidentifier.Deidentifier` is the door; the tables beside it are generated from the standard.
"""

"""The network edge: DIMSE services (PS3.4, PS3.7) over associations (PS3.8)."""

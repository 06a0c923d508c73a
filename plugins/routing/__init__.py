"""Routing: what is stored is sent on to other application entities, by rules, until they have it."""

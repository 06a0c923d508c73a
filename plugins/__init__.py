"""Work done on what is stored: the hooks, the worker that calls them, and the built-in plug-ins."""

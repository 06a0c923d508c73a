"""Work done on what is stored: the hooks, the worker that calls them, and the built-in plug-ins.

The contract
    `hookspecs` (what a plug-in is asked), `node` (what it sees: `Series`, `Task`, `Work`, `CannotProceed`), `publish`
    (what it makes). Taught in ``docs/plugins.md``; packages of others use the same, and nothing else is open to those
    that are built in.
The machinery
    `found` (which there are), `manager` (loads and asks them), `worker` (does the jobs), `watch` (ends what hangs),
    `aftermath` and `troubles` (what the next process has to know of that), `missing` (asks for what came before).
The built-in plug-ins
    `reconstruction`, `segmentation`, `materials`, `measurement`, `embedding`, `indexing`, `asked`, `scrubber`.
"""

"""The worker side: it makes the cloud match the rows of the database.

`reconcile` is where to begin reading. `service` is the process and decides when a cluster is looked
at; `task`, `steps`, `stacks` and `diagnose` do the work; `endpoint` and `health` stand beside it.
"""

"""The worker side: it makes the world match the rows. `reconcile` is where to begin reading."""

"""The REST API: Magnum's v1 contract.

`routes` is the table of its operations, `app.dispatch` serves every request, and one module for
each noun holds the handlers. It writes rows through `db` and nudges the conductors, which do the
work."""

"""The REST API: Magnum's v1 contract. `routes` is its map, `app.dispatch` what every request goes
through."""

"""Must-have statements, and the server that judges whether an answer makes them."""

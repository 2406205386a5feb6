"""The page, its API, and the server around them."""

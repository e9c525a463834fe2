"""One module per runtime; each is imported only when a variant of that runtime is loaded."""

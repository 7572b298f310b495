"""One module per peer: how it is set up, what is asked of it, how it is removed."""

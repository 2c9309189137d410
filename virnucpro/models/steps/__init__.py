"""The steps of a layer around its attention: one protocol, one module an implementation, one function that chooses."""

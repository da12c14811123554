"""Runs under way, and the deaths of their processes: what is to be said of them."""

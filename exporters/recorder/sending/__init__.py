"""What waits in the history, on its way to the backend."""

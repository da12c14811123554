"""One module per library that is watched; `_base` is the patch table they share."""

"""What journals say, written into the history: runs, stages, spans, totals."""

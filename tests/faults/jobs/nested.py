"""Killed within a span of the user's own that has children already."""

from story import last, note_open, own, stage, wait

with stage("load"), own("chunk"):
    note_open("chunk")
    with own("row"):
        pass
    with stage("store") as counts:
        counts.records(out=2)
    last()
    wait()

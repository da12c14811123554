"""Three children of os.fork() in the middle of a stage; each has a stage of its own."""

import os

from story import last, own, stage

with stage("load") as counts:
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            with stage("child") as mine:
                mine.records(out=number + 1)
                with own("step"):
                    pass
            os._exit(0)
        children.append(child)
    print([os.waitpid(child, 0)[1] for child in children])
    counts.records(out=10)
last()

"""A multiprocessing pool of one start method, used as everybody does, in a stage."""

import multiprocessing
import sys

from story import last, own, stage


def work(number: int) -> int:
    with stage("work") as counts:
        counts.records(out=number)
        with own("step"):
            pass
    return number


if __name__ == "__main__":
    with stage("load"), multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print(sum(pool.map(work, range(1, 6), chunksize=1)))
    last()

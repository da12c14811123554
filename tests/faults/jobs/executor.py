"""A process pool whose worker is killed in the middle of its stage; the job carries on."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from story import last, own, stage


def work(number: int) -> int:
    with stage("work") as counts:
        counts.records(out=number)
        with own("step"):
            pass
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    return number


if __name__ == "__main__":
    with stage("load"), ProcessPoolExecutor(1) as pool:
        print([pool.submit(work, number).result() for number in (1, 2)])
        try:
            pool.submit(work, 4).result()
        except BrokenProcessPool:
            print("broken")
    with stage("report") as counts:
        counts.records(out=1)
    last()

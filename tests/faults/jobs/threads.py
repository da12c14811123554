"""A thread pool within a stage, and a plain thread without one."""

import threading
from concurrent.futures import ThreadPoolExecutor

from story import last, own, stage


def work(number: int) -> int:
    with stage("work") as counts:
        counts.records(out=number)
        with own("step"):
            pass
    return number


with stage("load"), ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(work, range(1, 9))))
thread = threading.Thread(target=work, args=(1,))
thread.start()
thread.join()
last()

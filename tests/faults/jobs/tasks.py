"""Stages in asyncio tasks that take turns."""

import asyncio

from story import last, own, stage


async def work(number: int) -> int:
    with stage("work") as counts:
        await asyncio.sleep(0.001 * number)
        counts.records(out=number)
        with own("step"):
            await asyncio.sleep(0)
    return number


async def main() -> None:
    with stage("load"):
        print(sum(await asyncio.gather(*(work(number) for number in range(1, 6)))))


asyncio.run(main())
last()

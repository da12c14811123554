"""Real pandas: read, join, fold, write; then the end, or a wait in the middle of a stage.

The stock SDK's environment has no pandas, and nothing there would look at it.
"""

import sys

from story import HERE, last, stage, wait

try:
    import pandas as pd
except ImportError:
    pd = None

rows, names = HERE / "rows.csv", HERE / "names.csv"
rows.write_text("id,size\n" + "".join(f"{n % 3},{n}\n" for n in range(100)))
names.write_text("id,name\n0,a\n1,b\n")

with stage("extract"):
    if pd:
        table, known = pd.read_csv(rows), pd.read_csv(names)
with stage("transform"):
    if pd:
        table = table.merge(known, on="id", how="left")
        for _ in range(3):
            table.fillna({"name": "?"})
with stage("load"):
    if pd:
        table.dropna().to_csv(HERE / "out.csv")
    last()
    if sys.argv[1] == "wait":
        wait()
print("written")
last()

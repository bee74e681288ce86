"""What importing drojko costs on top of torch and scikit-learn."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator

from harness import Check, Context, numbers, script

TITLE = "Import"
ABOUT = """
Fresh processes that have imported torch and scikit-learn (`sklearn.base`, `sklearn.callback`); wall
time of the statement on top, median of the runs after one that is not counted (it writes the
bytecode). `loaded` lists top-level packages beyond the standard library that this import added,
`heavy` those among them, or compiler stacks within torch, that must not be.
"""
COLUMNS = ("milliseconds", "seconds", "runs", "loaded", "heavy", "target")
LIMIT = 0.3
STATEMENTS = {
    "import drojko": "import drojko",
    "the estimators": "from drojko import DROClassifier, DRORegressor",
    "every public name": "import drojko; [getattr(drojko, name) for name in drojko.__all__]",
}
CODE = """
import json, sys, time
import torch, sklearn, sklearn.base, sklearn.callback
before = set(sys.modules)
cpu, start = time.process_time(), time.perf_counter()
exec(sys.argv[1])
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
added = set(sys.modules) - before
tops = {name.split(".")[0] for name in added} - {name.split(".")[0] for name in before}
tops -= set(sys.stdlib_module_names) | {"drojko"}
heavy = ["matplotlib", "cvxpy", "click", "sympy", "zuko", "skops", "ot"]
heavy += ["torch._dynamo", "torch._inductor"]
bad = sorted({h for h in heavy for name in added if name == h or name.startswith(h + ".")})
print(json.dumps([seconds, cpu, sorted(t for t in tops if not t.startswith("_")), bad]))
"""


def cases(smoke: bool):
    for name, statement in STATEMENTS.items():
        if not smoke or name == "the estimators":
            yield name, _case(statement)


def _case(statement: str):
    def case(context: Context) -> Iterator[dict]:
        runs = 1 if context.smoke else 5
        script(CODE, statement)  # compiles to bytecode, as an installation does
        found = [json.loads(script(CODE, statement)) for _ in range(runs)]
        seconds = statistics.median(item[0] for item in found)
        cpu = statistics.median(item[1] for item in found)
        loaded, heavy = found[0][2], found[0][3]
        yield {
            "method": statement,
            "seconds": cpu,
            "wall": seconds,
            "peak MiB": None,  # other processes do the work
            "milliseconds": 1e3 * seconds,
            "runs": runs,
            "loaded": ", ".join(loaded) or "none",
            "heavy": ", ".join(heavy) or "none",
            "target": f"<= {1e3 * LIMIT:g} ms, heavy: none",
            "met": seconds <= LIMIT and not heavy,
        }

    return case


def summary(rows: list[dict]) -> list[Check]:
    times = numbers(rows, "milliseconds")
    most = max(times, default=float("nan"))
    heavy = {str(row.get("heavy")) for row in rows}
    return [
        Check("import on top of torch and scikit-learn <= 0.3 s", f"{most:.0f} ms", most <= 300.0),
        Check("no heavy module beyond theirs", "; ".join(sorted(heavy)), heavy == {"none"}),
    ]

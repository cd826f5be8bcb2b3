#!/usr/bin/env python3
"""Runs the experiments of docs/results.md and writes the page from what they measured.

    tools/results/run.py --list                  # every row: its command, and whether it has been run
    tools/results/run.py                         # run what is missing, then write docs/results.md
    tools/results/run.py --only losses/mse       # a table, or a row of one: run what is missing, print it, leave the page
    tools/results/run.py --write                 # only write the page from the runs that are there

A row is a few runs of `dtk train`, one for each seed, which pretrain a backbone and evaluate it beside others
(`eval.json` in the run folder). Runs that are complete are not repeated. Needs Python 3.11 and the program:
`cargo build --release`.
"""

import argparse
import json
import math
import pathlib
import shlex
import subprocess
import sys
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAN = pathlib.Path(__file__).with_name("plan.toml")
PAGE = ROOT / "docs" / "results.md"


class Row:
    """One line of a table: the same commands for several seeds."""

    def __init__(self, plan, table, arm):
        self.table, self.arm = table, arm
        self.name = f"{table['id']}/{arm['id']}"
        # Rows that another table has already measured are taken from there.
        self.source = arm.get("same_as", self.name)
        self.seeds = table.get("seeds", plan["seeds"])
        self.sets = table.get("set", []) + arm.get("set", [])
        self.recipe = arm.get("recipe", table["recipe"])

    def folder(self, runs, seed):
        return runs / self.source / f"seed{seed}"

    def command(self, dtk, runs, seed):
        sets = [*self.sets, f"seed={seed}", f"eval.first_seed={seed}", "run.pictures=0"]
        out = self.folder(runs, seed).relative_to(ROOT)
        recipe = f"tools/results/{self.recipe}" if self.recipe.endswith(".toml") else self.recipe
        options = [x for s in sets for x in ("--set", s)]
        return [dtk, "train", "--recipe", recipe, *options, "--device", "cpu", "--resume", "auto", "--out", str(out)]

    def results(self, runs):
        """What is there: for every seed the rows of eval.json."""
        found = {}
        for seed in self.seeds:
            path = self.folder(runs, seed) / "eval.json"
            if path.is_file():
                found[seed] = json.loads(path.read_text())["rows"]
        return found


def call(command, log):
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("w") as out:
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    seconds = time.monotonic() - start
    if done.returncode:
        tail = "".join(log.read_text().splitlines(keepends=True)[-15:])
        print(f"failed ({done.returncode}): {shlex.join(command)}\n{tail}", file=sys.stderr)
    return done.returncode == 0, seconds


def prepare(plan, dtk, wanted):
    """Trains the teachers that wanted rows need. Returns the names of those that cannot be had, with the reason."""
    missing = {}
    for teacher in plan["teachers"]:
        if teacher["id"] not in wanted or (ROOT / teacher["file"]).is_file():
            continue
        command = [dtk if word == "dtk" else word for word in shlex.split(teacher["command"])]
        print(f"teacher {teacher['id']}: {teacher['command']}", flush=True)
        ok, seconds = call(command, ROOT / f"runs/results/teacher_{teacher['id']}.log")
        if not ok:
            missing[teacher["id"]] = "its training failed"
        else:
            print(f"  {seconds:.0f} s", flush=True)
    return missing


def rows_of(plan):
    return [Row(plan, table, arm) for table in plan["tables"] for arm in table["arms"]]


def selected(rows, only):
    if not only:
        return rows
    keep = [r for r in rows if any(r.name == o or r.table["id"] == o for o in only)]
    if not keep:
        sys.exit(f"no row is called {', '.join(only)}; see --list")
    return keep


def percent(values):
    """Mean and sample standard deviation of shares, in percent."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return f"{100 * mean:.1f}"
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return f"{100 * mean:.1f} ± {100 * std:.1f}"


def cell(results, backbone, column):
    values = []
    for rows in results.values():
        for row in rows:
            key = (row["protocol"], row["metric"], row["labels"], row["backbone"])
            if key == (column["protocol"], column["metric"], column["labels"], backbone):
                values.extend(row["values"])
    return percent(values) if values else "not run"


def write(plan, rows, runs):
    lines = [plan["introduction"].strip(), ""]
    absent = []
    for table in plan["tables"]:
        mine = [r for r in rows if r.table is table]
        if not all(r.results(runs) for r in mine):
            absent.append(table["title"])
            continue
        columns = table["columns"]
        lines += [f"## {table['title']}", "", table["text"].strip(), ""]
        lines.append("| " + " | ".join([table["head"], *(c["title"] for c in columns), "seeds"]) + " |")
        lines.append("|---" * (len(columns) + 2) + "|")
        for row in mine:
            results = row.results(runs)
            backbone = row.arm.get("backbone", "pretrained")
            cells = [cell(results, backbone, c) for c in columns]
            lines.append("| " + " | ".join([row.arm["title"], *cells, str(len(results))]) + " |")
        if table.get("finding"):
            lines += ["", table["finding"].strip()]
        lines += ["", "<details><summary>Commands</summary>", "", "```sh"]
        done = set()
        for row in mine:
            if row.source == row.name and row.arm.get("backbone", "pretrained") == "pretrained":
                command = shlex.join(row.command("dtk", runs, row.seeds[0]))
                if command not in done:
                    lines += [f"# {row.arm['title']}; seeds {', '.join(map(str, row.seeds))}", command]
                    done.add(command)
        lines += ["```", "", "</details>", ""]
    lines.append(plan["closing"].strip())
    if absent:
        lines += ["", "Planned in `tools/results/plan.toml` and not run completely yet: " + "; ".join(absent) + "."]
    PAGE.write_text("\n".join(lines) + "\n")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="TABLE[/ROW]", help="run only this; may be repeated")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    parser.add_argument("--write", action="store_true", help="only write the page")
    parser.add_argument("--dtk", default="target/release/dtk", help="the program (default: %(default)s)")
    args = parser.parse_args()

    plan = tomllib.loads(PLAN.read_text())
    runs = ROOT / "runs" / "results"
    rows = rows_of(plan)
    if args.list:
        for row in selected(rows, args.only):
            done = len(row.results(runs))
            print(f"{row.name}: {done} of {len(row.seeds)} seeds\n  {shlex.join(row.command(args.dtk, runs, row.seeds[0]))}")
        return
    failed = False
    if not args.write:
        todo = [r for r in selected(rows, args.only) if r.source == r.name and r.arm.get("backbone", "pretrained") == "pretrained"]
        missing = prepare(plan, args.dtk, {r.table.get("teacher") for r in todo})
        # Seed by seed, so that an interrupted evening leaves every row with as many seeds as any other.
        for seed in sorted({s for r in todo for s in r.seeds}):
            for row in todo:
                if seed not in row.seeds or seed in row.results(runs):
                    continue
                if row.table.get("teacher") in missing:
                    print(f"skipped {row.name}: {missing[row.table['teacher']]}")
                    failed = True
                    continue
                command = row.command(args.dtk, runs, seed)
                ok, seconds = call(command, row.folder(runs, seed).with_suffix(".log"))
                failed |= not ok
                print(f"{row.name} seed {seed}: {'done' if ok else 'FAILED'} in {seconds:.0f} s", flush=True)
    if args.only:
        for row in selected(rows, args.only):
            results, backbone = row.results(runs), row.arm.get("backbone", "pretrained")
            cells = [f"{c['title']}: {cell(results, backbone, c)}" for c in row.table["columns"]]
            print(f"{row.name}, {len(results)} seeds: " + ", ".join(cells))
    else:
        write(plan, rows, runs)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

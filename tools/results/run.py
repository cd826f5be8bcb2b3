#!/usr/bin/env python3
"""Runs the experiments of docs/results.md and writes the page from what they measured.

    tools/results/run.py --list                  # every row: its command, and whether it has been run
    tools/results/run.py                         # run what is missing, then write docs/results.md
    tools/results/run.py --only losses/mse       # a table, or a row of one: run what is missing, print it, leave the page
    tools/results/run.py --jobs 2                # two runs at a time, each with half of the processor's threads
    tools/results/run.py --check                 # whether dtk understands every recipe; runs nothing
    tools/results/run.py --write                 # only write the page: tables that have runs here anew, others as they are

A row is a few runs of `dtk train`, one for each seed, which pretrain a backbone and evaluate it beside others
(`eval.json` in the run folder), or of `dtk eval`, which compares another backbone with these. Runs that are complete are not repeated. Needs Python 3.11 and the program:
`cargo build --release`.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import shlex
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor

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
        # Which of the backbones that a run has measured this row shows.
        self.backbone = arm.get("backbone", "pretrained")
        self.own = "same_as" not in arm

    def folder(self, runs, seed):
        return runs / self.source / f"seed{seed}"

    def command(self, dtk, runs, seed):
        if later := self.arm.get("eval"):
            # `dtk eval` of a backbone that another row has pretrained.
            at = {"runs": runs.relative_to(ROOT), "seed": seed, "out": self.folder(runs, seed).relative_to(ROOT)}
            run = str(at["runs"] / self.arm["of"] / f"seed{seed}")
            words = [word.format(**at) for word in shlex.split(later)]
            return [dtk, "eval", *words, "--backbone", run, "--device", "cpu", "--out", f"{at['out']}/eval.json"]
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


def call(command, log, jobs):
    """Runs a command with its share of the processor's threads, on which its numbers do not depend."""
    # `dtk eval` writes its report into a folder that is there: that of the log, without its ending.
    log.with_suffix("").mkdir(parents=True, exist_ok=True)
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    start = time.monotonic()
    with log.open("w") as out:
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment)
    seconds = time.monotonic() - start
    if done.returncode:
        tail = "".join(log.read_text().splitlines(keepends=True)[-15:])
        print(f"failed ({done.returncode}): {shlex.join(command)}\n{tail}", file=sys.stderr)
    return done.returncode == 0, seconds


def prepare(plan, dtk, tables):
    """Fetches the images and trains the teachers of some tables. Returns what cannot be had, with the reason."""
    missing = {}
    for kind in ("data", "teacher"):
        for thing in plan["data" if kind == "data" else "teachers"]:
            users = [t for t in tables if t.get(kind) == thing["id"]]
            if not users or (ROOT / thing["file"]).exists() or any(t.get("data") in missing for t in users):
                continue
            command = [dtk if word == "dtk" else word for word in shlex.split(thing["command"])]
            print(f"{kind} {thing['id']}: {thing['command']}", flush=True)
            ok, seconds = call(command, ROOT / f"runs/results/{kind}_{thing['id']}.log", jobs=1)
            if ok:
                print(f"  {seconds:.0f} s", flush=True)
            else:
                missing[thing["id"]] = f"{kind} {thing['id']} cannot be had"
    return missing


def run_all(plan, dtk, todo, runs, jobs):
    """Runs what is missing of some rows. Returns whether all went well."""
    # Seed by seed, so that an interrupted evening leaves every row with as many seeds as any other.
    left = [(s, r) for s in sorted({s for r in todo for s in r.seeds}) for r in todo if s in r.seeds and s not in r.results(runs)]
    missing = prepare(plan, dtk, [r.table for _, r in left])

    def run(job):
        seed, row = job
        reason = missing.get(row.table.get("data")) or missing.get(row.table.get("teacher"))
        if reason:
            print(f"skipped {row.name}: {reason}")
            return False
        ok, seconds = call(row.command(dtk, runs, seed), row.folder(runs, seed).with_suffix(".log"), jobs)
        print(f"{row.name} seed {seed}: {'done' if ok else 'FAILED'} in {seconds:.0f} s", flush=True)
        return ok

    with ThreadPoolExecutor(jobs) as pool:
        # Those that look at another row's backbones come when these are there.
        phase = lambda job: job[1].arm.get("phase", 0)
        phases = itertools.groupby(sorted(left, key=phase), phase)
        return all([ok for _, jobs_of in phases for ok in list(pool.map(run, jobs_of))])


def check(command):
    """Whether dtk understands a command of `dtk train` without running it."""
    if command[1] != "train":
        return True
    done = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    print(done.stderr or f"understood: {shlex.join(command)}")
    return done.returncode == 0


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


def sections():
    """The sections of the page as it is, by title."""
    text = PAGE.read_text() if PAGE.is_file() else ""
    parts = text.split("\n## ")[1:]
    return {part.partition("\n")[0]: f"## {part}" for part in parts}


def write(plan, rows, runs):
    """Writes the page. Tables whose runs are not all in this checkout are left as they are."""
    lines = [plan["introduction"].strip(), ""]
    absent, before = [], sections()
    for table in plan["tables"]:
        mine = [r for r in rows if r.table is table]
        # What has been measured elsewhere stays until all of it has been measured here.
        if table["title"] in before and not all(len(r.results(runs)) == len(r.seeds) for r in mine):
            lines += [before[table["title"]].strip(), ""]
            continue
        if not all(r.results(runs) for r in mine):
            absent.append(table["title"])
            continue
        columns = table["columns"]
        lines += [f"## {table['title']}", "", table["text"].strip(), ""]
        lines.append("| " + " | ".join([table["head"], *(c["title"] for c in columns), "seeds"]) + " |")
        lines.append("|---" * (len(columns) + 2) + "|")
        for row in mine:
            results = row.results(runs)
            cells = [cell(results, row.backbone, c) for c in columns]
            lines.append("| " + " | ".join([row.arm["title"], *cells, str(len(results))]) + " |")
        if table.get("finding"):
            lines += ["", table["finding"].strip()]
        lines += ["", "<details><summary>Commands</summary>", "", "```sh"]
        for kind, things in (("data", plan["data"]), ("teacher", plan["teachers"])):
            lines += [f"# {kind}\n{t['command']}" for t in things if t["id"] == table.get(kind)]
        done = set()
        for row in mine:
            if row.own:
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
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="run so many at a time (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="let dtk read every recipe, and run nothing")
    parser.add_argument("--write", action="store_true", help="only write the page")
    parser.add_argument("--dtk", default="target/release/dtk", help="the program (default: %(default)s)")
    args = parser.parse_args()

    plan = tomllib.loads(PLAN.read_text())
    runs = ROOT / "runs" / "results"
    rows = rows_of(plan)
    if args.list:
        for row in selected(rows, args.only):
            how = shlex.join(row.command(args.dtk, runs, row.seeds[0])) if row.own else f"the runs of {row.source}"
            print(f"{row.name}: {len(row.results(runs))} of {len(row.seeds)} seeds\n  {how}")
        return
    if args.check:
        sys.exit(0 if all([check(row.command(args.dtk, runs, row.seeds[0])) for row in selected(rows, args.only) if row.own]) else 1)
    ok = True
    if not args.write:
        todo = [r for r in selected(rows, args.only) if r.own]
        ok = run_all(plan, args.dtk, todo, runs, args.jobs)
    if args.only:
        for row in selected(rows, args.only):
            results = row.results(runs)
            cells = [f"{c['title']}: {cell(results, row.backbone, c)}" for c in row.table["columns"]]
            print(f"{row.name}, {len(results)} seeds: " + ", ".join(cells))
    else:
        write(plan, rows, runs)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()

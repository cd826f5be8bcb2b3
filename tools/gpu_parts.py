#!/usr/bin/env python3
"""Turns what the tools of a GPU machine print into parts of a file of measurements (docs/formats.md).

    gpu_parts.py clocks SAMPLES.csv OUT.json      nvidia-smi --query-gpu=driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu
    gpu_parts.py slowest RESULTS.json [N]         labels of the N convolutions that take the most of the teacher's time
    gpu_parts.py profile NCU.csv LABEL OUT.json   ncu --csv --page details
    gpu_parts.py launches RESULTS.json LABEL      how many kernels the phase of a step with this name launches
    gpu_parts.py kernels NCU.csv LABEL OUT.json   ncu --csv --page details --print-units base, with the metrics of TOTALS: the kernels
                                                  that take the most time in all their launches
    gpu_parts.py --selftest
"""

import csv
import io
import json
import statistics
import sys

# What is kept of a profile: (section, metric) as Nsight Compute names them.
METRICS = [
    ("GPU Speed Of Light Throughput", "Duration"),
    ("GPU Speed Of Light Throughput", "Compute (SM) Throughput"),
    ("GPU Speed Of Light Throughput", "Memory Throughput"),
    ("GPU Speed Of Light Throughput", "DRAM Throughput"),
    ("GPU Speed Of Light Throughput", "L2 Cache Throughput"),
    ("GPU Speed Of Light Throughput", "SM Frequency"),
    ("Compute Workload Analysis", "Executed Ipc Active"),
    ("Memory Workload Analysis", "L2 Hit Rate"),
    ("Memory Workload Analysis", "Mem Busy"),
    ("Launch Statistics", "Registers Per Thread"),
    ("Launch Statistics", "Grid Size"),
    ("Launch Statistics", "Block Size"),
    ("Launch Statistics", "Waves Per SM"),
    ("Occupancy", "Achieved Occupancy"),
]


# What is kept of every launch of a step: time, bytes from and to memory, warps at work.
TOTALS = ["gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "sm__warps_active.avg.pct_of_peak_sustained_active"]


def write(path, **fields):
    with open(path, "w") as f:
        json.dump({"format": "dtk-bench", "version": 1, **fields}, f)


def number(text):
    """The number at the beginning of a cell such as `1,024.5` or `350.20 W`; None if there is none."""
    try:
        return float(text.replace(",", "").split()[0])
    except (ValueError, IndexError):
        return None


def clocks(text):
    """Lowest, median and highest of nvidia-smi's samples; None without a whole sample."""
    rows = [[c.strip() for c in line.split(", ")] for line in text.splitlines()]
    rows = [r for r in rows if len(r) == 5 and None not in map(number, r[1:])]
    if not rows:
        return None
    column = lambda i: [number(r[i]) for r in rows]
    spread = lambda v: [min(v), statistics.median(v), max(v)]
    names = ["sm_mhz", "memory_mhz", "power_w", "temperature_c"]
    return {"driver": rows[0][0], **{name: spread(column(i + 1)) for i, name in enumerate(names)}}


def slowest(results, n):
    """Labels of the timed convolutions with the largest median x count, one batch (the largest)."""
    rows = [r for r in results.get("rows", []) if r["suite"] == "conv" and r["ms"]]
    batch = max((r["convolution"]["n"] for r in rows), default=0)
    rows = [r for r in rows if r["convolution"]["n"] == batch]
    rows.sort(key=lambda r: -statistics.median(r["ms"]) * r["count"])
    return [r["case"] for r in rows[:n]]


def profiles(text, label):
    """The kernels of a details page, one entry each."""
    found = {}
    for row in table(text):
        value = number(row.get("Metric Value") or "")
        if (row.get("Section Name"), row.get("Metric Name")) not in METRICS or value is None:
            continue
        kernel = row["Kernel Name"].split("(")[0]
        entry = found.setdefault(row["ID"], {"case": label, "kernel": kernel, "metrics": []})
        entry["metrics"].append([row["Metric Name"], row.get("Metric Unit") or "", value])
    return list(found.values())


def launches(results, label):
    """Kernels of the first phase with this name; None if no step was timed."""
    rows = (r for r in results.get("rows", []) if r["suite"] == "step" and r["ms"] and r["case"].endswith(label))
    return next((r["launches"] for r in rows if r.get("launches")), None)


def table(text):
    """The rows of a details page. Lines of the program and of ncu itself stand around the table."""
    lines = text.splitlines()
    first = next((i for i, l in enumerate(lines) if l.startswith('"ID"')), len(lines))
    return csv.DictReader(io.StringIO("\n".join(l for l in lines[first:] if l.startswith('"'))))


def kernels(text, label, n):
    """The n kernels that take the most time, all launches together."""
    seen = {}
    for row in table(text):
        value = number(row.get("Metric Value") or "")
        if row.get("Metric Name") in TOTALS and value is not None:
            launch = seen.setdefault((row["Kernel Name"].split("(")[0], row["ID"]), {})
            launch[row["Metric Name"]] = value
    sums, whole = {}, 0.0
    for (kernel, _), launch in seen.items():
        ns, read, written, warps = (launch.get(m, 0.0) for m in TOTALS)
        entry = sums.setdefault(kernel, [0, 0.0, 0.0, 0.0])
        for i, v in enumerate([1, ns, read + written, ns * warps]):
            entry[i] += v
        whole += ns
    found = []
    for kernel, (count, ns, moved, warps) in sorted(sums.items(), key=lambda e: -e[1][1])[:n]:
        if ns > 0:
            shown = [["Launches", "", count], ["Duration of all", "ms", round(ns / 1e6, 4)]]
            shown += [["Share of all kernels", "%", round(100 * ns / whole, 2)], ["DRAM traffic", "GB/s", round(moved / ns, 1)]]
            shown.append(["Warps active", "%", round(warps / ns, 1)])
            found.append({"case": label, "kernel": kernel, "metrics": shown})
    return found


def selftest():
    smi = "580.1, 345 MHz, 2619 MHz, 110.5 W, 40\n580.1, 1980 MHz, 2619 MHz, 690.0 W, 55\n580.1, [N/A], 1, 1, 1\ncut"
    got = clocks(smi)
    assert got["sm_mhz"] == [345, 1162.5, 1980] and got["temperature_c"][2] == 55 and got["driver"] == "580.1", got
    assert clocks("") is None and clocks("no device") is None
    row = lambda n, case, ms, count: {"suite": "conv", "convolution": {"n": n}, "case": case, "ms": ms, "count": count}
    rows = [row(8, "small", [9.0], 9), row(64, "a", [1.0, 3.0], 4), row(64, "b", [3.0], 1), row(64, "c", [], 9)]
    rows.append({"suite": "ops", "case": "d", "ms": [99.0]})
    assert slowest({"rows": rows}, 3) == ["a", "b"] and slowest({"rows": rows}, 1) == ["a"] and slowest({}, 3) == []
    page = '==PROF== x\n"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"\n'
    page += '"0","conv2d_fwd(Params)","GPU Speed Of Light Throughput","Duration","us","1,234.5"\n'
    page += '"0","conv2d_fwd(Params)","Occupancy","Something","",""\n"1","other","Occupancy","Achieved Occupancy","%","49.1"\n'
    got = profiles(page, "L")
    assert got[0] == {"case": "L", "kernel": "conv2d_fwd", "metrics": [["Duration", "us", 1234.5]]}, got
    assert len(got) == 2 and got[1]["metrics"][0][2] == 49.1
    assert profiles("nothing", "L") == []
    steps = [{"suite": "step", "case": "r, 2 images: " + c, "ms": ms, "launches": 9} for c, ms in (("teacher", [1.0]), ("whole step", []))]
    assert launches({"rows": steps}, "teacher") == 9 and launches({"rows": steps}, "whole step") is None
    page = '==PROF== x\n"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
    for i, (kernel, ns) in enumerate([("relu_fwd", 1000), ("conv2d_fwd", 3000), ("relu_fwd", 4000)]):
        for name, value in zip(TOTALS, (ns, 2 * ns, ns, 50)):
            page += f'"{i}","{kernel}(Params)","{name}","","{value:,}"\n'
    got = kernels(page + "==PROF== done", "L", 1)
    want = [["Launches", "", 2], ["Duration of all", "ms", 0.005], ["Share of all kernels", "%", 62.5]]
    want += [["DRAM traffic", "GB/s", 3.0], ["Warps active", "%", 50.0]]
    assert got == [{"case": "L", "kernel": "relu_fwd", "metrics": want}], got
    assert kernels("nothing", "L", 3) == []
    print("selftest: ok")


def main():
    match sys.argv[1:]:
        case ["--selftest"]:
            selftest()
        case ["clocks", samples, out]:
            with open(samples) as f:
                found = clocks(f.read())
            if found is None:
                return "no whole sample of nvidia-smi"
            write(out, clocks=found)
        case ["slowest", results, *n]:
            with open(results) as f:
                print("\n".join(slowest(json.load(f), int(n[0]) if n else 3)))
        case ["launches", results, label]:
            with open(results) as f:
                found = launches(json.load(f), label)
            if found is None:
                return f"no {label} was timed"
            print(found)
        case ["kernels", page, label, out]:
            with open(page) as f:
                found = kernels(f.read(), label, 12)
            if not found:
                return "no kernel in the profile"
            write(out, profiles=found)
        case ["profile", page, label, out]:
            with open(page) as f:
                found = profiles(f.read(), label)
            if not found:
                return "no kernel in the profile"
            write(out, profiles=found)
        case _:
            return __doc__
    return None


if __name__ == "__main__":
    sys.exit(main())

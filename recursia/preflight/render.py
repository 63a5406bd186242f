"""Preflight reports as text."""

from collections.abc import Sequence

from recursia.preflight.report import Report

_KINDS = ("parameters", "optimizer", "arguments", "temporaries", "output", "code")
MAX_ROWS = 12  # collectives of a table; the others are summed


def in_short(report: Report) -> str:
    """Returns a report in one line."""
    need, have = (gigabytes(report[f"{name}bytes_per_chip"]) for name in ("", "hbm_"))
    if not report["fits"]:
        return f"does not fit: needs {need} of {have} per chip"
    slow, fast = (report[f"{name}tokens_per_second"] for name in ("serial_", ""))
    return f"fits in {need} of {have} per chip, {slow / 1e6:.3g} to {fast / 1e6:.3g} M tokens/s"


def full(name: str, report: Report) -> str:
    """Returns a report as text, with its collectives and its roofline."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    lines = [f"{name} on {report['topology']}, {report['chips']} chips, mesh {mesh or '1'}"]
    lines += [in_short(report)]
    if report.get("memory"):
        parts = (f"{kind} {gigabytes(report['memory'][kind])}" for kind in _KINDS)
        lines += ["  " + ", ".join(parts)]
    for each in report.get("advice", ()):
        lines += [f"  needs less: {each['overrides']}"]
    if report["fits"]:
        lines += ["", *_moved(report), "", *_speed(report)]
    if "decode" in report:
        lines += ["", _decoded(report)]
    return "\n".join(lines)


def _moved(report: Report) -> list[str]:
    rows = report["collectives"]
    lines = ["collective           axes         of      MB each   a step    MB sent  ms"]
    for row in rows[:MAX_ROWS]:
        times = f"{row['executions']}{'' if row['is_certain'] else '+'}"
        sent = row["sent_bytes"] * row["executions"]
        lines += [
            f"{row['kind']:<20} {','.join(row['axes']):<12} {row['group_size']:<5} "
            f"{row['bytes'] / 1e6:>9.4g}  {times:>7}  {sent / 1e6:>9.4g}  "
            f"{1e3 * row['seconds'] * row['executions']:.3g}"
        ]
    if rest := rows[MAX_ROWS:]:
        sent = sum(row["sent_bytes"] * row["executions"] for row in rest)
        lines += [f"and {len(rest)} more, {sent / 1e6:.4g} MB sent"]
    for row in report.get("exchanges", ()):
        lines += [
            f"fragment {row['fragment']} of replicas, once in {row['every_steps']} steps: "
            f"{row['sent_bytes'] / 1e6:.4g} MB sent, {1e3 * row['seconds']:.3g} ms"
        ]
    return lines


def _speed(report: Report) -> list[str]:
    line, chip = report["roofline"], report["chip"]
    milli = {name: f"{1e3 * line[name]:.3g} ms" for name in ("compute", "memory", "network")}
    ends = [(report[f"{n}utilisation"], report[f"{n}hours"]) for n in ("", "serial_")]
    return [
        f"{report['flops_per_step']:.3e} FLOPs a step, {report['executed_flops_per_step']:.3e} "
        "with rematerialisation",
        f"compute {milli['compute']} at {chip['flops'] / 1e12:.4g} TFLOP/s, memory "
        f"{milli['memory']} at {chip['hbm_bandwidth'] / 1e12:.3g} TB/s, network "
        f"{milli['network']}; bound by {line['bound']}",
        f"utilisation {ends[1][0]:.0%} if nothing overlaps, {ends[0][0]:.0%} at the roofline",
        f"{report['num_steps']} steps, {report['tokens'] / 1e9:.4g} G tokens: "
        f"{ends[0][1]:.3g} to {ends[1][1]:.3g} hours. Nothing was timed.",
    ]


def _decoded(report: Report) -> str:
    decode, have = report["decode"], gigabytes(report["hbm_bytes_per_chip"])
    need = gigabytes(decode["bytes_per_chip"])
    if not decode["fits"]:
        return f"decoding on one chip does not fit: needs {need} of {have}"
    return (
        f"decoding on one chip fits in {need} of {have}, at best "
        f"{1e3 * decode['seconds_per_token']:.3g} ms a token"
    )


def table(reports: Sequence[Report]) -> str:
    """Returns the reports of a search as a table, with the overrides to type for each."""
    lines = ["   M tokens/s        GB  overrides"]
    for each in reports:
        rate = "does not fit"
        if each["fits"]:
            slow, fast = (each[f"{name}tokens_per_second"] / 1e6 for name in ("serial_", ""))
            rate = f"{slow:.3g} to {fast:.3g}"
        need = each["bytes_per_chip"] / 1e9
        lines += [f"{rate:>14}  {need:>7.1f}  {each['overrides'] or 'without changes'}"]
    return "\n".join(lines)


def gigabytes(count: int) -> str:
    """Returns a number of bytes in GB, as text."""
    return f"{count / 1e9:.2f} GB"

"""A report as one page: kernels × architectures × properties, then what each proof assumes and why
any is not proved."""

from __future__ import annotations

from html import escape

from .model import KernelReport, PropertyReport, Report, Verdict
from .report import place

_COLOURS = {
    Verdict.PROVED: "#1a7f37",
    Verdict.TESTED: "#0969da",
    Verdict.NOT_APPLICABLE: "#8c959f",
    Verdict.WAIVED: "#8250df",
    Verdict.UNKNOWN: "#9a6700",
    Verdict.ALARM: "#bc4c00",
    Verdict.REFUTED: "#cf222e",
    Verdict.ERROR: "#cf222e",
}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem;
  overflow-x: auto; padding: 0 1rem; color: #1f2328; background: #fff }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #d1d9e0 }
th { font-weight: 600; border-bottom-width: 2px }
td code { white-space: nowrap }
td.n { text-align: right; font-variant-numeric: tabular-nums }
b { font-weight: 600 } code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
section { border-left: 3px solid #d1d9e0; padding: .1rem 1rem; margin: 1rem 0 }
small, .quiet { color: #59636e } ul { padding-left: 1.2rem; margin: .3rem 0 }
"""


def to_html(report: Report) -> str:
    """A self-contained page without scripts."""
    names = list(dict.fromkeys(n for k in report.kernels for n in k.properties))
    counts = {v: sum(k.verdict is v for k in report.kernels) for v in Verdict}
    summary = ", ".join(f"{_coloured(v, f'{n} {v.value}')}" for v, n in counts.items() if n)
    head = "".join(f"<th>{escape(n)}</th>" for n in names)
    rows = "\n".join(_row(k, names) for k in report.kernels)
    details = "\n".join(filter(None, (_details(k) for k in report.kernels)))
    tools = ", ".join(f"{escape(n)} {escape(v)}" for n, v in report.tools.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>tileproof verify</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>tileproof verify</h1>
<p>{summary or "nothing to prove"}</p>
<table><tr><th>kernel</th><th>arch</th><th>route</th><th>verdict</th>{head}
<th>seconds</th><th>solver steps</th></tr>
{rows}</table>
{details}
<p><small>{tools}. Solver steps are Z3's resource count.</small></p>
</body></html>
"""


def _coloured(verdict: Verdict, text: str) -> str:
    return f'<b style="color:{_COLOURS[verdict]}">{escape(text)}</b>'


def _row(kernel: KernelReport, names: list[str]) -> str:
    cells = "".join(f"<td>{_cell(kernel.properties.get(n))}</td>" for n in names)
    seconds = f"{kernel.seconds + kernel.lower_seconds:.2f}{' cached' if kernel.reused else ''}"
    steps = sum(p.rlimit for p in kernel.properties.values())
    verdict = _coloured(kernel.verdict, kernel.verdict.value)
    name = f"<code>{escape(kernel.kernel)}</code>"
    if _is_open(kernel):
        name = f'<a href="#{_anchor(kernel)}">{name}</a>'
    numbers = f'<td class="n">{seconds}</td><td class="n">{steps:,}</td>'
    return (
        f"<tr><td>{name}</td><td>{escape(kernel.arch)}</td><td>{kernel.route}</td>"
        f"<td>{verdict}</td>{cells}{numbers}</tr>"
    )


def _cell(p: PropertyReport | None) -> str:
    if p is None:
        return ""
    if p.verdict is Verdict.PROVED:
        return f"{_coloured(p.verdict, '✓')} <small>{p.proved}</small>"
    if p.verdict is Verdict.NOT_APPLICABLE:
        return '<span class="quiet">–</span>'
    shown = _coloured(p.verdict, p.verdict.value)
    return f"{shown} <small>waived</small>" if p.waived else shown


def _is_open(kernel: KernelReport) -> bool:
    return not kernel.verdict.passed or bool(kernel.notes or kernel.assumptions)


def _anchor(kernel: KernelReport) -> str:
    return escape(f"{kernel.kernel}-{kernel.arch}-{kernel.route}", quote=True)


def _details(kernel: KernelReport) -> str:
    if not _is_open(kernel):
        return ""
    where = f" <small>{escape(kernel.file)}:{kernel.line}</small>" if kernel.file else ""
    parts = [f'<section id="{_anchor(kernel)}"><h3>{escape(kernel.kernel)} {escape(kernel.arch)}']
    parts.append(f"{where}</h3>")
    if kernel.error:
        parts.append(f"<p>{escape(kernel.error)}</p>")
    for name, p in kernel.properties.items():
        if not p.verdict.passed:
            parts.append(_open(name, p))
    for note in kernel.notes:
        parts.append(f"<p><small>{escape(note)}</small></p>")
    if kernel.assumptions:
        assumed = "".join(f"<li>{escape(a)}</li>" for a in kernel.assumptions)
        parts.append(f"<details><summary>assumes</summary><ul>{assumed}</ul></details>")
    return "\n".join([*parts, "</section>"])


def _open(name: str, p: PropertyReport) -> str:
    head = f"<p>{escape(name)}: {_coloured(p.verdict, p.verdict.value)} "
    head += f"({p.proved} of {p.obligations} obligations proved)</p>"
    items = [f"waived: {escape(p.waived)}"] if p.waived else []
    for e in p.counterexamples:
        sizes = ", ".join(f"{k}={v}" for k, v in e.sizes.items()) or "any size"
        text = f"{escape(e.message)} at <b>{escape(sizes)}</b>"
        for step in e.steps or (e,):
            said = f": {step.message}" if e.steps else ""
            text += (
                f"<br><small>{escape(place(step) + said)}</small> <code>{escape(step.site)}</code>"
            )
        if e.reproduced:
            text += f"<br><small>{escape(e.reproduced)}</small>"
        items.append(text)
    shown = {e.message for e in p.counterexamples}
    items += [escape(r) for r in p.reasons if not any(r.startswith(m) for m in shown)]
    return head + "<ul>" + "".join(f"<li>{i}</li>" for i in items) + "</ul>"

"""The look of the report: one style sheet, light and dark by the reader's system."""

from __future__ import annotations

from studio.training.report.chart import COLOURS, STYLE

_LEGEND = "".join(f".legend .c{index}::before{{background:{colour}}}" for index, colour in enumerate(COLOURS))

PAGE_STYLE = (
    """
:root{--paper:#f5f6fa;--card:#fff;--ink:#1d2433;--muted:#667085;--line:#e3e7ef;--accent:#4f6df5;--warn:#fff4e5;--warnink:#8a4b08}
@media(prefers-color-scheme:dark){:root{--paper:#12151c;--card:#1b202b;--ink:#e8ebf2;--muted:#98a2b3;--line:#2c3342;
--accent:#8ea2ff;--warn:#3a2a12;--warnink:#ffcf8f}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:40px 20px 80px;display:grid;gap:20px}
header{padding:0 4px}
h1{font-size:40px;line-height:1.1;letter-spacing:-.02em;margin:6px 0}
h2{font-size:17px;margin:0 0 12px;letter-spacing:-.005em}
.subtitle{color:var(--muted);margin:0 0 18px;font-size:17px}
.status{display:inline-block;margin:0;padding:2px 11px;border-radius:99px;background:var(--accent);color:#fff;
font-size:13px;font-weight:600}
.status.running{background:#e8743b}.status.stopped{background:#98a2b3}
.strip{display:flex;flex-wrap:wrap;gap:10px 30px;margin:0}.strip dt{font-size:12px;color:var(--muted)}
.strip dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:20px;min-width:0}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:20px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:20px}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(112px,1fr));gap:10px}
.pictures.large{grid-template-columns:repeat(auto-fill,minmax(140px,1fr))}
figure{margin:0}figure img,.samples img{width:100%;display:block;border-radius:9px;background:var(--line);image-rendering:auto}
figcaption{font-size:12px;color:var(--muted);margin-top:5px;line-height:1.35}
figure.held img{outline:2px dashed var(--accent);outline-offset:2px}
.choice p{margin:0 0 8px;max-width:80ch}.warning{background:var(--warn);color:var(--warnink);padding:10px 14px;border-radius:9px}
.note,.what{color:var(--muted);font-size:14px;margin:8px 0 0}
.choice .note{margin:2px 0}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:8px 0 0;font-size:13px;color:var(--muted)}
.legend span::before{content:"";display:inline-block;width:18px;height:3px;border-radius:2px;margin-right:7px;
vertical-align:middle}
.chart{width:100%;height:auto;display:block}
.scroll{overflow-x:auto;margin-top:12px}
.samples{border-collapse:separate;border-spacing:8px;width:100%;table-layout:fixed;min-width:640px}
.samples thead th:first-child{width:92px}
.samples th{font-size:12px;font-weight:500;color:var(--muted);text-align:left;vertical-align:bottom;line-height:1.35}
.samples tbody th{vertical-align:middle}
.samples tr.chosen img{outline:3px solid var(--accent);outline-offset:1px}.samples b{display:block;color:var(--accent)}
pre{background:var(--paper);border:1px solid var(--line);border-radius:9px;padding:14px;overflow-x:auto;font-size:13.5px;margin:0}
code{font-size:13.5px}ul{margin:12px 0 0;padding-left:20px}
details summary{cursor:pointer;font-weight:600}.settings{border-collapse:collapse;width:100%;margin-top:12px;font-size:14px}
.settings td{border-top:1px solid var(--line);padding:5px 12px 5px 0;vertical-align:top;overflow-wrap:anywhere}
"""
    + _LEGEND
    + STYLE
)

"""A batch's page: one HTML file with its pictures in it, filters, and a view of one at a time; nothing from the network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from studio.training.report.style import PAGE_STYLE

THUMBNAIL = 256
_MAX_INLINE_BYTES = 40_000

EXTRA_STYLE = """
.filters{display:flex;flex-wrap:wrap;gap:12px}.filters label{font-size:12px;color:var(--muted);display:grid;gap:3px}
.filters select,.filters input{font:inherit;padding:5px 9px;border-radius:8px;border:1px solid var(--line);
background:var(--card);color:var(--ink);max-width:300px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px;margin-top:16px}
.grid button{all:unset;cursor:pointer;display:block;border-radius:9px}.grid button:focus-visible{outline:3px solid var(--accent)}
.grid img{width:100%;display:block;border-radius:9px;image-rendering:pixelated;background:var(--line)}
dialog{border:0;border-radius:14px;background:var(--card);color:var(--ink);max-width:94vw;max-height:94vh;padding:18px}
dialog::backdrop{background:#0009}dialog img{display:block;max-width:86vw;max-height:70vh;min-width:min(384px,80vw);
image-rendering:pixelated;margin:0 auto}dialog p{margin:8px 0 0;max-width:86vw;overflow-wrap:anywhere}
dialog nav{display:flex;gap:8px;margin-top:10px}dialog nav button{font:inherit;padding:5px 14px;border-radius:8px;
border:1px solid var(--line);background:var(--paper);color:var(--ink);cursor:pointer}
"""

# All words reach the page as text, never as markup.
SCRIPT = """
const data=JSON.parse(document.getElementById('data').textContent),grid=document.querySelector('.grid');
const bar=document.querySelector('.filters'),view=document.querySelector('dialog'),counted=document.getElementById('count');
const chosen={};let words='',shown=[],at=0;
function option(select,text,value){const o=document.createElement('option');o.textContent=text;o.value=value;select.append(o)}
for(const axis of data.axes){const values=[...new Set(data.cells.map(c=>c.axes[axis]).filter(v=>v!==undefined))];
 if(values.length<2)continue;const label=document.createElement('label');label.textContent=axis;
 const select=document.createElement('select');option(select,'all','');values.forEach(v=>option(select,v,v));
 select.onchange=()=>{chosen[axis]=select.value;draw()};label.append(select);bar.append(label)}
{const label=document.createElement('label');label.textContent='words';const input=document.createElement('input');
 input.type='search';input.oninput=()=>{words=input.value.toLowerCase();draw()};label.append(input);bar.append(label)}
if(data.cells.some(c=>c.score!==null)){const label=document.createElement('label');label.textContent='order';
 const select=document.createElement('select');option(select,'as asked','');option(select,'best first','best');
 option(select,'worst first','worst');select.onchange=()=>{chosen.__order=select.value;draw()};
 label.append(select);bar.append(label)}
function draw(){shown=data.cells.filter(c=>Object.entries(chosen).every(([k,v])=>k==='__order'||!v||c.axes[k]===v)
  &&(!words||(c.title+' '+c.adapters+' '+c.seed).toLowerCase().includes(words)));
 if(chosen.__order)shown=[...shown].sort((a,b)=>(chosen.__order==='best'?-1:1)*((a.score??0)-(b.score??0)));
 counted.textContent=shown.length+' of '+data.cells.length;grid.replaceChildren(...shown.map((c,i)=>{
 const figure=document.createElement('figure'),button=document.createElement('button'),image=document.createElement('img');
 image.src=c.image;image.alt=c.title;image.loading='lazy';button.append(image);button.onclick=()=>open(i);
 const caption=document.createElement('figcaption');
 caption.textContent=Object.entries(c.axes).map(([k,v])=>k+' '+v).join(', ')||c.title;
 if(c.score!==null)caption.textContent+=' · '+c.score.toFixed(2);figure.append(button,caption);return figure}))}
function open(i){at=(i+shown.length)%shown.length;const c=shown[at],image=view.querySelector('img');
 image.onerror=()=>{image.onerror=null;image.src=c.image};image.src=c.file;image.alt=c.title;
 view.querySelector('p').textContent=c.title+' · seed '+c.seed+(c.adapters?' · '+c.adapters:'')
  +Object.entries(c.axes).map(([k,v])=>' · '+k+' '+v).join('');if(!view.open)view.showModal()}
document.getElementById('back').onclick=()=>open(at-1);document.getElementById('next').onclick=()=>open(at+1);
document.getElementById('close').onclick=()=>view.close();
view.addEventListener('keydown',e=>{if(e.key==='ArrowLeft')open(at-1);if(e.key==='ArrowRight')open(at+1)});
draw();
"""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture on the page."""

    file: Path
    title: str
    seed: int
    axes: Mapping[str, str]
    adapters: str
    score: float | None


def batch_page(
    name: str,
    cells: Sequence[Cell],
    axes: Sequence[str],
    *,
    total: int,
    sheets: Sequence[str],
    failures: Sequence[tuple[str, str]],
    trainings: Sequence[tuple[str, str]],
) -> str:
    """The page as HTML.

    Args:
        total: requests in all. sheets: names of the contact sheets. failures: place and sentence. trainings: title and file.
    """
    seen = dict.fromkeys(key for cell in cells for key in cell.axes)
    keys = [key for key in axes if key in seen] + [key for key in seen if key not in axes]
    data = {"axes": keys, "cells": [_values(cell) for cell in cells]}
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    links = "".join(f'<a href="{escape(sheet)}">{escape(sheet)}</a> ' for sheet in sheets)
    body = (
        f"<header><h1>{escape(name)}</h1><p class='subtitle'>{len(cells) + len(trainings)} of {total} done. {links}</p></header>"
        f"{_failed(failures)}{_trained(trainings)}"
        "<section class='card'><div class='filters'></div><p class='note' id='count'></p><div class='grid'></div></section>"
        "<dialog><img alt=''><p></p><nav><button id='back'>previous</button><button id='next'>next</button>"
        "<button id='close'>close</button></nav></dialog>"
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{escape(name)}</title><style>{PAGE_STYLE}{EXTRA_STYLE}</style></head><body><main>{body}</main>"
        f"<script type='application/json' id='data'>{text}</script><script>{SCRIPT}</script></body></html>\n"
    )


def _values(cell: Cell) -> dict[str, Any]:
    return {
        "file": cell.file.name,
        "image": inline_image(cell.file),
        "title": cell.title,
        "seed": cell.seed,
        "axes": dict(cell.axes),
        "adapters": cell.adapters,
        "score": cell.score,
    }


def inline_image(path: Path) -> str:
    """A picture as a data URL: itself if it is small, else a thumbnail."""
    data = path.read_bytes()
    if len(data) <= _MAX_INLINE_BYTES:
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _failed(failures: Sequence[tuple[str, str]]) -> str:
    if not failures:
        return ""
    rows = "".join(f"<li><b>{escape(where)}</b>: {escape(sentence)}</li>" for where, sentence in failures)
    return f"<section class='card'><h2>{len(failures)} failed</h2><ul>{rows}</ul></section>"


def _trained(trainings: Sequence[tuple[str, str]]) -> str:
    if not trainings:
        return ""
    rows = "".join(
        f"<li>{escape(title)}: <a href='{escape(Path(file).parent.as_posix())}/index.html'>{escape(file)}</a></li>"
        for title, file in trainings
    )
    return f"<section class='card'><h2>Trained</h2><ul>{rows}</ul></section>"

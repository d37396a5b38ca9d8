"""The page's looks: one accent colour, two themes, one column on a phone, ink that prints."""

from __future__ import annotations

__all__ = ["ACCENT", "HUES", "STYLE"]

ACCENT = (64, 130, 246)  # where a picture needs the colour as numbers; it serves both themes

HUES = 10  # of lines that share a chart: the classes hue0, hue1, ...

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fff; --card: #f5f7fa; --ink: #14181f; --soft: #5b6472; --line: #dfe3e9;
  --accent: 47 111 237; --on-accent: #fff; --other: #8a94a3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1116; --card: #181d25; --ink: #e7eaef; --soft: #9aa4b2; --line: #2b323c;
    --accent: 106 158 255; --on-accent: #08101f; --other: #77818f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 40px 24px 64px; max-width: 1080px;
  background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans KR",
    "Apple SD Gothic Neo", "Malgun Gothic", sans-serif;
}
h1 {
  margin: 0; font-size: 30px; line-height: 1.2; letter-spacing: -.02em; overflow-wrap: anywhere;
}
h2 { margin: 0 0 14px; font-size: 19px; letter-spacing: -.01em; }
h3 { margin: 0 0 6px; font-size: 14px; overflow-wrap: anywhere; }
p { margin: 0 0 12px; max-width: 72ch; }
section { margin-top: 48px; }
.soft, figcaption, nav { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 16px; font-size: 14px; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: 4px; }
a:hover { color: rgb(var(--accent)); }
figure { margin: 0; break-inside: avoid; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 16px; margin-bottom: 4px; font-size: 13px; }
figcaption > b { color: var(--ink); font-size: 14px; }

.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin-top: 28px;
}
.card { padding: 14px; background: var(--card); border-radius: 10px; }
.card b {
  display: block; font-size: 20px; line-height: 1.3; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums;
}
.card span { display: block; font-size: 13px; color: var(--soft); }
.verdict {
  margin-bottom: 28px; padding: 14px 18px; max-width: none; background: var(--card);
  border-left: 4px solid rgb(var(--accent)); border-radius: 4px 10px 10px 4px; font-size: 16px;
}
.verdict.below { margin: 12px 0 0; }
.after { margin-top: 12px; }
.apart { margin-top: 28px; }
.legends { display: flex; flex-wrap: wrap; gap: 4px 20px; max-width: none; font-size: 13px; }
.name { white-space: nowrap; }
.pair {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 28px 32px; align-items: start;
}
.stack { display: grid; gap: 28px; }
.pair > *, .stack > * { min-width: 0; }
.pair > .rest:nth-child(odd) { grid-column: 1 / -1; }

.legend { display: inline-flex; align-items: center; gap: 6px; }
.key { width: 16px; height: 3px; border-radius: 2px; background: var(--other); }
.key.main { background: rgb(var(--accent)); }
.key[class*=hue] { background: var(--hue); }
.key.broken {
  background: repeating-linear-gradient(90deg, var(--hue) 0 6px, transparent 6px 10px);
}
.key.dotted {
  background: repeating-linear-gradient(90deg, var(--hue) 0 3px, transparent 3px 6px);
}
.key.dashed {
  height: 2px; background: repeating-linear-gradient(90deg, var(--ink) 0 4px, transparent 4px 6px);
}
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
.grid { stroke: var(--line); }
.best { stroke: var(--soft); stroke-dasharray: 3 3; }
.hue0 { --hue: #868e96; } .hue1 { --hue: #b98a00; } .hue2 { --hue: #2f6fed; }
.hue3 { --hue: #e8590c; } .hue4 { --hue: #c2255c; } .hue5 { --hue: #2b9348; }
.hue6 { --hue: #8e44ec; } .hue7 { --hue: #0c9aa8; } .hue8 { --hue: #a05a2c; }
.hue9 { --hue: var(--ink); }
.line path {
  fill: none; stroke: var(--hue, var(--other)); stroke-width: 2; stroke-linejoin: round;
}
.line circle { fill: var(--hue, var(--other)); stroke: var(--page); }
.line.main path { stroke: rgb(var(--accent)); }
.line.main circle { fill: rgb(var(--accent)); }
.line[class*=hue] path { stroke-width: 1.6; }
.line.broken path { stroke-dasharray: 7 3; }
.line.dotted path { stroke-dasharray: 2 3; }
.line[class*=hue]:hover path { stroke-width: 4; }
.dots circle { opacity: 0; }
.few circle, .dots circle:hover { opacity: 1; }
.bar { fill: rgb(var(--accent) / .75); }
.count { fill: var(--other); }
.ideal { stroke: var(--ink); stroke-dasharray: 5 4; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
.wide { width: 100%; }
th { font-weight: 600; text-align: left; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
td, th { padding: 6px 16px 6px 0; border-bottom: 1px solid var(--line); }
td:last-child, th:last-child { padding-right: 0; }
tr { break-inside: avoid; }
.number { text-align: right; white-space: nowrap; }
.text { min-width: 5.5em; overflow-wrap: anywhere; }
.share { min-width: 60px; white-space: nowrap; }
.share i {
  display: block; height: 4px; margin-top: 3px; border-radius: 2px; background: var(--line);
}
.share i i { margin: 0; background: rgb(var(--accent)); }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--soft); }

.confusion { border-collapse: separate; border-spacing: 2px; font-size: 13px; }
.confusion td, .confusion th { padding: 4px 6px; border: 0; }
.confusion td {
  min-width: 38px; height: 30px; text-align: center; border-radius: 4px; background: var(--card);
}
.confusion td.strong { color: var(--on-accent); font-weight: 600; }
.confusion thead td { background: none; }
.confusion thead th { text-align: center; }
.confusion thead span {
  display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg);
  max-height: 130px; overflow: hidden; text-overflow: ellipsis;
}
.confusion tbody th {
  position: sticky; left: 0; max-width: 150px; overflow: hidden; text-overflow: ellipsis;
  text-align: right; color: var(--soft); font-weight: 500; background: var(--page);
}
.heat { display: block; width: 100%; max-width: 640px; border: 1px solid var(--line); }

.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
.gallery figure { background: var(--card); border-radius: 10px; overflow: hidden; }
.gallery img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.gallery figcaption { display: block; margin: 0; padding: 10px 12px 12px; line-height: 1.45; }
.gallery b { color: var(--ink); overflow-wrap: anywhere; }
.gallery small { display: block; margin-top: 4px; overflow-wrap: anywhere; }
.sharp { image-rendering: pixelated; }
.sheet { width: 100%; image-rendering: pixelated; }
.sample {
  display: grid; grid-template-columns: 120px 1fr; gap: 4px 12px; align-items: center;
  margin-bottom: 8px; break-inside: avoid;
}
.sample h3 { margin: 0; font-weight: 500; }
.sample div { display: flex; flex-wrap: wrap; gap: 6px; }
.sample img { display: block; width: 56px; height: 56px; object-fit: contain; border-radius: 4px; }

.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
  gap: 0 32px; margin: 0; font-size: 14px;
}
.facts div {
  display: flex; justify-content: space-between; gap: 16px; padding: 6px 0;
  border-bottom: 1px solid var(--line); break-inside: avoid;
}
.facts dt { color: var(--soft); white-space: nowrap; }
.facts dd {
  margin: 0; text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums;
}
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: nowrap; }
pre code { font: inherit; }
pre {
  margin: 20px 0 0; padding: 14px 16px; background: var(--card); border-radius: 10px;
  font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
footer { margin-top: 56px; font-size: 13px; color: var(--soft); }

@media (max-width: 600px) {
  body { padding: 24px 16px 48px; }
  h1 { font-size: 25px; }
  section { margin-top: 36px; }
  .cards, .gallery { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .sample { grid-template-columns: 1fr; margin-bottom: 14px; }
  td, th { padding-right: 10px; }
}
@media print {
  :root { color-scheme: light; }
  body { padding: 0; max-width: none; font-size: 12px; }
  nav { display: none; }
  .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

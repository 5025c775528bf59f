"""The look of report pages: one style sheet, light or dark as the reader's system is."""

STYLE = """
:root {
  color-scheme: light dark; --paper: #fafaf8; --card: #fff; --ink: #202226; --faint: #666b73; --line: #e2e2de;
  --warn: #fff3dc; --warn-ink: #7a4a00; --bad: #b3361b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --card: #1d2024; --ink: #e8e8e4; --faint: #9aa0a8; --line: #33373d;
    --warn: #3a2d12; --warn-ink: #f2cf8f; --bad: #ff8a6b;
  }
  img.plot { filter: invert(.88) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 28px 24px 64px; max-width: 1240px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 12px; }
h3 { font-size: 15px; margin: 0 0 8px; overflow-wrap: anywhere; }
p { margin: 6px 0 12px; }
code, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code, .mono { font-size: .87em; overflow-wrap: anywhere; }
.faint { color: var(--faint); }
h3 .faint { font-weight: 400; }
.bad { color: var(--bad); font-weight: 600; }
.text { unicode-bidi: isolate; overflow-wrap: anywhere; }
.banner {
  background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: 10px 14px; margin: 14px 0;
}
.tiles { display: grid; gap: 12px; margin: 18px 0; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 12px 16px; color: var(--faint); font-size: 13.5px; }
.tile b { display: block; font-size: 25px; font-weight: 650; line-height: 1.3; color: var(--ink); }
.card { padding: 14px 16px; margin: 0 0 14px; }
.two { display: grid; gap: 14px; align-items: start; }
.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
.two .card { margin: 0; min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 5px 18px 5px 0; }
th, td { border-bottom: 1px solid var(--line); }
tr:last-child > td { border-bottom: 0; }
th { font-weight: 600; color: var(--faint); font-size: 13px; white-space: nowrap; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.masks td, .masks th { padding: 3px 12px 3px 0; font-size: 13.5px; }
.masks code, .whole code { white-space: nowrap; }
table.narrow { width: auto; }
.dense td { padding: 3px 14px 3px 0; font-size: 13.5px; white-space: nowrap; }
.dense th { padding-right: 14px; }
.narrow td, .narrow th { padding-right: 34px; }
img { display: block; max-width: 100%; }
img.plot { width: 100%; max-width: 640px; margin: 8px auto 0; }
img.plot.wide { max-width: none; }
pre { font-size: 13px; margin: 10px 0 0; overflow-x: auto; }
summary { cursor: pointer; color: var(--faint); }
.image { display: grid; gap: 18px; align-items: start; }
.beside { grid-template-columns: minmax(0, 2fr) minmax(320px, 1fr); }
.below .lists { display: grid; gap: 0 28px; align-items: start; }
.below .lists { grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.image > * { min-width: 0; }
.shots { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 8px; }
figure { margin: 0; }
figure img { width: 100%; border-radius: 6px; }
figcaption { font-size: 12.5px; color: var(--faint); margin-top: 2px; }
.chip {
  display: inline-block; min-width: 22px; padding: 0 5px; border-radius: 4px; color: #000; text-align: center;
  font-size: 12.5px; font-weight: 600;
}
.key { display: inline-block; width: 12px; height: 12px; border-radius: 3px; vertical-align: -1px; }
.key { margin: 0 4px 0 12px; }
.problem { padding: 18px; border: 1px dashed var(--line); border-radius: 6px; color: var(--bad); }
.problem { overflow-wrap: anywhere; }
@media (max-width: 900px) { .beside { grid-template-columns: minmax(0, 1fr); } }
"""

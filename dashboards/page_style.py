"""The style sheet of the live page: light, dark or as the system has it, from 390 pixels up; it loads nothing."""

from __future__ import annotations

_LIGHT = (
    "--page: #f4f6f8; --card: #fff; --ink: #1c2126; --soft: #505c68; --line: #d5dce3; --link: #00588f; --on: #e3eef6; "
    "--bad: #b23c00; --warn: #8a5a00; --good: #00664b; color-scheme: light;"
)
_DARK = (
    "--page: #14171a; --card: #1c2024; --ink: #e6e9ec; --soft: #a5b0bb; --line: #343c45; --link: #7cc4f2; "
    "--on: #23323e; --bad: #ff9a66; --warn: #f0b541; --good: #4fd0a5; color-scheme: dark;"
)

STYLE = (
    f"""
:root {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {_DARK} }} }}
:root[data-theme=dark] {{ {_DARK} }}
"""
    + """
:root {
  --Dash-Fill-Inverse-Strong: var(--card); --Dash-Text-Strong: var(--ink); --Dash-Text-Primary: var(--ink);
  --Dash-Text-Weak: var(--soft); --Dash-Stroke-Strong: var(--soft); --Dash-Stroke-Weak: var(--line);
  --Dash-Fill-Interactive-Strong: var(--link);
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
.skip { position: absolute; left: -9999px; }
.skip:focus { left: 8px; top: 8px; background: var(--card); padding: 8px 14px; z-index: 9; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 3px; }
header.top { background: var(--card); border-bottom: 1px solid var(--line); }
.row { display: flex; flex-wrap: wrap; gap: 6px 18px; align-items: center; }
.inner { max-width: 1480px; margin: 0 auto; padding: 8px clamp(10px, 2vw, 28px); }
.spread { justify-content: space-between; }
h1 { font-size: 20px; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 2px 0 8px; overflow-wrap: anywhere; }
h3 { font-size: 15px; margin: 0 0 8px; }
p { margin: 0 0 4px; max-width: 110ch; overflow-wrap: anywhere; }
.soft, figcaption, .hint { color: var(--soft); }
.hint, figcaption { font-size: 13px; }
.bad { color: var(--bad); } .good { color: var(--good); }
nav ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 4px; }
nav a, a.toggle { display: inline-block; padding: 4px 10px; border-radius: 6px; text-decoration: none; }
nav a:hover, a.toggle:hover { background: var(--on); }
nav a[aria-current=page], a.toggle.on { background: var(--on); font-weight: 600; color: var(--ink); }
nav a[aria-current=page] { box-shadow: inset 0 -3px 0 var(--link); border-radius: 6px 6px 0 0; }
a.toggle { border: 1px solid var(--line); padding: 3px 10px; }
a.toggle.on::before { content: "\\2713\\00a0"; }
details.menu { display: none; }
main { max-width: 1480px; margin: 0 auto; padding: 14px clamp(10px, 2vw, 28px) 40px; }
.message { border-left: 4px solid #E69F00; padding: 2px 10px; margin: 8px 0; overflow-wrap: anywhere; }
.message.bad { border-color: #D55E00; }
.message:empty { display: none; }
.bar { border: 1px solid var(--line); border-left: 4px solid #0072B2; background: var(--card); padding: 6px 12px; }
.bar { border-radius: 6px; margin: 6px 0 12px; }
.bar:empty { display: none; }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px; }
.card { min-width: 0; overflow: hidden; margin: 0 0 14px; } .cards > .card { margin: 0; }
.wide { grid-column: 1 / -1; }
@media (min-width: 960px) { .double { grid-column: span 2; } }
.controls { display: flex; flex-wrap: wrap; gap: 10px 18px; align-items: flex-end; margin: 0 0 12px; }
.controls label, fieldset label, .field label { display: block; font-size: 13px; color: var(--soft); }
.group { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; }
.group > span { font-size: 13px; color: var(--soft); margin-right: 4px; }
fieldset { border: 1px solid var(--line); border-radius: 6px; padding: 6px 10px; margin: 0; min-width: 0; }
legend { font-size: 13px; color: var(--soft); padding: 0 4px; }
fieldset .row { gap: 6px; }
.controls .slot input { width: 220px; } .controls fieldset .slot input { width: 104px; }
.sliders span { font-size: 13px; color: var(--soft); } .sliders .slot { display: block; }
select, textarea, input, button {
  font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--soft); border-radius: 6px;
  padding: 5px 8px; max-width: 100%;
}
input[type=range] { padding: 0; border: 0; width: 220px; accent-color: #0072B2; }
button { cursor: pointer; background: var(--on); }
button:hover { border-color: var(--link); }
button:disabled { opacity: 0.6; cursor: default; }
.sliders { display: flex; flex-wrap: wrap; gap: 4px 24px; }
.sliders output { color: var(--ink); font-weight: 600; }
figure { margin: 0; }
.scroll { overflow-x: auto; } .long { max-height: 640px; overflow: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; font-size: 14px; }
th, td { padding: 4px 18px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); background: var(--card); position: sticky; top: 0; }
td.number, th.number { text-align: right; }
td.words { white-space: normal; min-width: 220px; overflow-wrap: anywhere; }
caption { text-align: left; color: var(--soft); font-size: 13px; padding-bottom: 6px; }
th a { text-decoration: none; color: var(--link); }
progress { appearance: none; width: 110px; height: 10px; vertical-align: middle; border: 1px solid var(--soft); }
progress { border-radius: 5px; overflow: hidden; background: none; }
progress::-webkit-progress-bar { background: none; } progress::-webkit-progress-value { background: #0072B2; }
progress::-moz-progress-bar { background: #0072B2; }
pre { margin: 0; font: 13px/1.45 ui-monospace, monospace; white-space: pre; overflow: auto; max-height: 480px; }
code { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
.field { margin: 0 0 10px; } .field textarea, .field input { width: min(100%, 560px); }
.badge { display: inline-block; border: 1px solid var(--line); border-radius: 10px; padding: 0 8px; font-size: 13px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.js-plotly-plot .main-svg text:not(.heatmap-label, .heatmap-label *) { fill: var(--ink) !important; }
.js-plotly-plot .hoverlayer text { fill: #1c2126 !important; }
.js-plotly-plot .hoverlayer .hovertext path { fill: #fff !important; stroke: #586470 !important; }
.broad { min-width: 760px; }
.row > div > label { margin-right: 6px; } .row > * { min-width: 0; max-width: 100%; }
.top select { max-width: min(100%, 260px); } .controls select { max-width: 260px; }
@media (max-width: 760px) {
  nav.across { display: none; }
  details.menu { display: block; width: 100%; }
  details.menu summary { cursor: pointer; padding: 4px 0; font-weight: 600; }
  details.menu ul { flex-direction: column; }
  .card { padding: 10px; }
  dl { grid-template-columns: minmax(90px, 34%) 1fr; }
  .sliders > div, .sliders input { width: 100%; }
}
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
"""
)

"""How the report looks: system fonts, dark on white, or light on dark where that is preferred."""

from r1jax.plots import BLUE, GREEN, ORANGE

# Of the curves: Okabe and Ito's, on white and on black.
LIGHT = (BLUE, ORANGE, GREEN, "#b5628f", "#3a92c4", "#a87600")
DARK = ("#56b4e9", "#f08a4b", "#2fc49b", "#e59bc4", "#9fb8ff", "#e6c229")


def _series(colours: tuple[str, ...]) -> str:
    return " ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours))


CSS = f"""
:root {{
  color-scheme: light dark;
  --ink: #1a1a1a; --soft: #595959; --paper: #fff; --line: #d9d9d9; --shade: #f5f6f8;
  --model: {BLUE}; --examples: {ORANGE}; --score: {GREEN};
  --model-fill: #eaf3fa; --examples-fill: #fdf0e8; --score-fill: #e8f6f1;
  --right: #00694d; --wrong: #a84400;
  {_series(LIGHT)}
}}
@media screen and (prefers-color-scheme: dark) {{
  :root {{
    --ink: #e8e8e8; --soft: #a9adb3; --paper: #16181c; --line: #3d4148; --shade: #1f2227;
    --model: #56b4e9; --examples: #f08a4b; --score: #2fc49b;
    --model-fill: #17293a; --examples-fill: #38251a; --score-fill: #15322a;
    --right: #2fc49b; --wrong: #f08a4b;
    {_series(DARK)}
  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; padding: 20px 24px 60px; max-width: 1264px; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
}}
h1 {{ font-size: 26px; margin: 0 0 10px; overflow-wrap: anywhere; }}
h2 {{ font-size: 20px; margin: 38px 0 12px; padding-top: 10px; border-top: 2px solid var(--line); }}
h3 {{ font-size: 15px; margin: 18px 0 4px; overflow-wrap: anywhere; }}
h4 {{ font-size: 13px; font-weight: normal; margin: 0 0 6px; overflow-wrap: anywhere; }}
small, .note {{ color: var(--soft); font-size: 13px; font-weight: normal; }}
.note {{ margin: 4px 0 10px; }}
code, pre {{
  font-family: ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace;
}}
code {{ font-size: 12px; white-space: nowrap; }}
pre {{
  font-size: 12px; padding: 10px; background: var(--shade); overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere;
}}
header dl {{ display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 0; }}
dt {{ color: var(--soft); font-size: 12px; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
.missing {{
  margin: 14px 0 0; padding: 8px 12px; border-left: 4px solid var(--examples);
  background: var(--shade);
}}
.wide {{ overflow-x: auto; }}
.legend {{
  display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 6px 0; padding: 0; list-style: none;
  font-size: 13px;
}}
.legend span {{ display: inline-block; vertical-align: middle; margin-right: 6px; }}
{" ".join(f".c{i} {{ --c: var(--c{i}); }}" for i in range(len(LIGHT)))}
.legend .line {{ width: 18px; border-top: 2.5px solid var(--c); }}
.legend .dots {{ width: 9px; height: 9px; border: 2px solid var(--c); border-radius: 50%; }}
.swatch {{ width: 16px; height: 11px; border: 1.5px solid var(--soft); border-radius: 3px; }}
.swatch.model {{ background: var(--model-fill); border-color: var(--model); }}
.swatch.examples {{ background: var(--examples-fill); border-color: var(--examples); }}
.swatch.score {{ background: var(--score-fill); border-color: var(--score); }}
.stroke {{ width: 22px; border-top: 2px solid var(--model); }}
.stroke.data {{ border-top: 2px dashed var(--examples); }}

.diagram {{ display: block; }}
.diagram text, .chart text {{ fill: var(--ink); }}
.box rect {{ fill: var(--shade); stroke: var(--soft); stroke-width: 1.5; }}
.box.model rect {{ fill: var(--model-fill); stroke: var(--model); }}
.box.examples rect {{ fill: var(--examples-fill); stroke: var(--examples); }}
.box.score rect {{ fill: var(--score-fill); stroke: var(--score); }}
.box.unfinished rect {{ fill: var(--paper); stroke-dasharray: 5 4; }}
.box .name {{ font-size: 13px; font-weight: 600; }}
.box .kind {{ font-size: 11px; }}
.edge {{ fill: none; stroke-width: 1.7; stroke-linejoin: round; }}
.edge.weights {{ stroke: var(--model); }}
.edge.data {{ stroke: var(--examples); stroke-dasharray: 5 4; }}
.head.weights {{ fill: var(--model); }}
.head.data {{ fill: var(--examples); }}

table {{ border-collapse: collapse; font-size: 14px; margin: 0 0 18px; }}
caption {{ text-align: left; font-weight: 600; padding: 6px 0; }}
th, td {{
  text-align: left; vertical-align: top; padding: 5px 12px 5px 0;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums;
}}
thead th {{ font-size: 12.5px; vertical-align: bottom; border-bottom: 2px solid var(--soft); }}
th {{ font-weight: 600; }}
tbody th {{ position: sticky; left: 0; background: var(--paper); }}
tbody th small {{ display: block; }}
.values td {{ white-space: nowrap; }}
.none {{ color: var(--soft); }}
.spark {{ display: block; margin-top: 2px; }}
.spark .scale {{ stroke: var(--line); stroke-width: 1; }}
.spark .interval {{ stroke: var(--model); stroke-width: 3; opacity: 0.45; }}
.spark circle {{ fill: var(--model); }}
.origin {{ font-size: 12.5px; }}
.origin td {{ max-width: 250px; overflow-wrap: break-word; }}
.origin td:nth-last-child(-n + 2) {{ white-space: nowrap; }}
.origin code {{ display: block; }}
.origin dl {{ margin: 0; min-width: 180px; }}
.origin dl div {{ display: flex; justify-content: space-between; gap: 10px; }}
.origin dd {{ white-space: nowrap; }}

.charts {{
  display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 18px 24px;
}}
figure {{ margin: 0; break-inside: avoid; }}
figure h3 {{ margin: 0; }}
.chart {{ display: block; width: 100%; height: auto; }}
.chart text {{ font-size: 12px; }}
.chart .y, .chart .unit {{ text-anchor: end; }}
.chart .x {{ text-anchor: middle; }}
.chart .y, .chart .x, .chart .unit {{ fill: var(--soft); }}
.chart .stage {{ font-weight: 600; }}
.chart line {{ stroke: var(--line); stroke-width: 0.8; }}
.chart .border {{ stroke: var(--soft); }}
.chart .curve {{ fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }}
.chart .dot {{ fill: var(--paper); stroke: var(--c); stroke-width: 1.8; }}
.chart .band {{ fill: var(--c); opacity: 0.18; }}

.responses {{
  display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 12px;
  align-items: start;
}}
.response {{
  border: 1px solid var(--line); border-radius: 5px; padding: 8px 10px; min-width: 0;
  break-inside: avoid;
}}
.reasoning, .final {{
  font-size: 13px; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
}}
.reasoning {{
  border-left: 3px solid var(--line); padding-left: 8px; margin-bottom: 6px; color: var(--soft);
}}
.verdict {{ font-weight: 600; color: var(--wrong); }}
.verdict.True {{ color: var(--right); }}
summary {{ cursor: pointer; font-size: 13px; color: var(--soft); }}
details > .reasoning, details > .final {{ margin-top: 4px; }}
@media (max-width: 520px) {{
  body {{ padding: 14px 12px 40px; }}
  .charts {{ grid-template-columns: 1fr; }}
}}
@media print {{
  body {{ max-width: none; padding: 0; font-size: 11px; }}
  .wide {{ overflow: visible; }}
  .diagram {{ width: 100%; height: auto; }}
  h2, h3 {{ break-after: avoid; }}
}}
"""

"""The page's style sheet as text, for light and dark, phone and paper. It loads no font and no image."""

_LIGHT = """--ink:#1d2328; --soft:#5d6770; --faint:#69737c; --line:#e2e6ea; --paper:#fff; --wash:#f6f7f9;
  --before:#a9b3bd; --after:#0b6b8f; --good:#1a7340; --bad:#b3261e; --mark:#ffe9a8; --mark-line:#d9a400;"""

CSS = """
:root { color-scheme:light dark; --ink:light-dark(#1d2328,#e4e8ec); --soft:light-dark(#5d6770,#a4aeb7);
  --faint:light-dark(#69737c,#8f99a2); --line:light-dark(#e2e6ea,#333b43); --paper:light-dark(#fff,#14181c);
  --wash:light-dark(#f6f7f9,#1c2126); --before:light-dark(#a9b3bd,#66717c); --after:light-dark(#0b6b8f,#4fb3d9);
  --good:light-dark(#1a7340,#5cc48d); --bad:light-dark(#b3261e,#f28b82); --mark:light-dark(#ffe9a8,#574712);
  --mark-line:light-dark(#d9a400,#b08a1c); }
@supports not (color:light-dark(red,red)) { :root { %LIGHT% } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:60rem; margin:0 auto; padding:2.5rem 1.25rem 4rem; }
.top { display:flex; justify-content:space-between; align-items:flex-start; gap:1rem; } .top button { flex:none; }
h1 { font-size:1.7rem; line-height:1.2; margin:0 0 .4rem; letter-spacing:-.01em; overflow-wrap:anywhere; }
h2 { font-size:1.1rem; margin:3rem 0 .8rem; padding-top:1rem; border-top:1px solid var(--line); }
h3,.side { font-size:.85rem; font-weight:600; margin:0 0 .3rem; color:var(--soft); }
p { max-width:44rem; margin:.4rem 0; }
.soft { color:var(--soft); } .small { font-size:.85rem; }
a { color:var(--after); } a,button,select,input,summary { border-radius:3px; }
:focus-visible { outline:2px solid var(--after); outline-offset:2px; }
nav { display:flex; flex-wrap:wrap; gap:.3rem 1.1rem; margin:1.4rem 0 0; font-size:.9rem; }
nav a { text-decoration:none; padding:.2rem 0; } nav a:hover { text-decoration:underline; }
.news { background:var(--wash); border:1px solid var(--line); border-radius:6px; padding:.7rem .9rem; margin:.8rem 0; }
.news p { margin:.1rem 0; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr)); gap:.8rem; margin:1.6rem 0 0; }
.tile { border:1px solid var(--line); border-radius:6px; padding:.8rem .9rem; }
.tile b { display:block; font-size:1.45rem; font-weight:600; font-variant-numeric:tabular-nums; line-height:1.3; }
.tile .was { display:block; color:var(--faint); font-weight:400; font-size:.95rem; }
.tile > span { color:var(--soft); font-size:.85rem; }
.term { appearance:none; font:inherit; color:inherit; text-align:inherit; background:none; border:0; padding:0;
  cursor:help; text-decoration:underline dotted var(--faint); text-underline-offset:3px; }
[data-def] { cursor:help; -webkit-tap-highlight-color:transparent; }
@media (hover:none) { [data-def],.term { cursor:pointer; } }
#tip { position:fixed; z-index:9; left:0; top:0; width:max-content; max-width:min(24rem,calc(100vw - 1rem));
  background:var(--ink); color:var(--paper); padding:.55rem .75rem; border-radius:6px; font-size:.85rem;
  line-height:1.45; box-shadow:0 3px 14px #0005; overflow-wrap:anywhere; }
#tip b { display:block; } #tip[hidden] { display:none; }
.scroll { overflow-x:auto; -webkit-overflow-scrolling:touch; }
table { border-collapse:collapse; width:100%; font-size:.88rem; font-variant-numeric:tabular-nums; }
th,td { text-align:right; padding:.3rem .55rem; border-bottom:1px solid var(--line); white-space:nowrap;
  vertical-align:top; font-weight:400; }
tr > :first-child { text-align:left; padding-left:0; position:sticky; left:0; background:var(--paper); }
thead th { font-weight:600; } thead > tr > * { border-bottom:1px solid var(--faint); }
tr.section th { padding-top:1.1rem; color:var(--soft); font-weight:600; font-size:.8rem; }
td .was,td .arrow { color:var(--faint); } td .range { display:block; color:var(--faint); font-size:.75rem; }
tbody tr:hover td { background:var(--wash); }
.charts { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr)); gap:1.4rem 1.6rem; }
.charts.wide { grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr)); }
.charts:not(.wide) > div { display:flex; flex-direction:column; justify-content:space-between; }
.ends { font-weight:400; color:var(--faint); white-space:nowrap; font-variant-numeric:tabular-nums; }
svg { width:100%; height:auto; display:block; font:11px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif; }
svg .grid { stroke:var(--line); } svg .line { fill:none; stroke:var(--after); stroke-width:1.6; stroke-linejoin:round; }
svg .dot { fill:var(--after); } svg .tick { fill:var(--faint); } svg .name { fill:var(--ink); font-size:12px; }
svg .value { font-size:12px; fill:var(--ink); } svg .before-text { fill:var(--soft); }
svg rect.before { fill:var(--before); } svg rect.after { fill:var(--after); }
svg .thread { fill:none; stroke-width:1.6; } svg .thread.before { stroke:var(--before); }
svg .thread.after { stroke:var(--after); } svg .thread.never { stroke:var(--good); stroke-dasharray:4 3; }
.along { overflow-x:auto; margin:.3rem 0 1.4rem; }
.scroll + h3 { margin-top:1.4rem; } .along svg { min-width:34rem; }
svg .hit { fill:transparent; }
svg .before .spot { fill:var(--before); } svg .after .spot { fill:var(--after); }
svg .never .spot { fill:var(--good); } .key .n { background:var(--good); }
svg .mark { stroke:var(--soft); stroke-dasharray:3 3; }
.key { display:flex; flex-wrap:wrap; gap:.2rem 1.1rem; }
.key i { display:inline-block; width:.8em; height:.8em; border-radius:2px; margin-right:.35em; vertical-align:-.05em; }
.key .b { background:var(--before); } .key .a { background:var(--after); }
.filters { display:flex; flex-wrap:wrap; gap:.6rem; align-items:end; margin:.8rem 0; }
.filters[hidden] { display:none; }
.filters label { display:flex; flex-direction:column; font-size:.8rem; color:var(--soft); flex:1 1 9rem; min-width:0; }
select,input,button:not(.term) { font:inherit; font-size:.9rem; color:var(--ink); background:var(--paper);
  border:1px solid var(--line); border-radius:5px; padding:.35rem .55rem; min-width:0; max-width:100%;
  min-height:2.3rem; }
button:not(.term) { cursor:pointer; }
.passage { border:1px solid var(--line); border-radius:6px; padding:.8rem .95rem; margin:.8rem 0;
  content-visibility:auto; contain-intrinsic-size:auto 14rem; }
.passage[hidden] { display:none; }
.passage header { display:flex; flex-wrap:wrap; gap:.2rem .9rem; font-size:.8rem; color:var(--soft);
  margin-bottom:.5rem; overflow-wrap:anywhere; }
.passage header b { color:var(--ink); font-weight:600; }
.state.still,.state.secret,.state.part,.state.new { color:var(--bad); } .state.gone { color:var(--good); }
.texts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(15rem,100%),1fr)); gap:.8rem 1.2rem; }
.side span { font-weight:400; margin-left:.5em; color:var(--faint); white-space:nowrap; }
.text,dd { unicode-bidi:plaintext; }
.sign { border:1px dotted var(--soft); border-radius:3px; font-size:.85em; padding:0 .15em; }
.text { white-space:pre-wrap; overflow-wrap:anywhere;
  font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; }
.prompt { color:var(--soft); margin-bottom:.7rem; }
mark.secret { border-bottom:2px dotted var(--bad); background:none; }
mark { background:var(--mark); color:inherit; border-bottom:2px solid var(--mark-line); }
.cut { color:var(--faint); font-style:italic; }
.none { color:var(--faint); font-style:italic; }
details { margin:.6rem 0; } summary { cursor:pointer; color:var(--soft); padding:.15rem 0; }
dl { display:grid; grid-template-columns:minmax(9rem,16rem) 1fr; gap:.15rem 1rem; font-size:.85rem; margin:.6rem 0; }
dt { color:var(--soft); overflow-wrap:anywhere; } dd { margin:0; overflow-wrap:anywhere; }
.note { color:var(--faint); margin-left:.6em; }
@media (max-width:36rem) { main { padding:1.4rem .9rem 3rem; } h1 { font-size:1.35rem; }
  .tiles { grid-template-columns:1fr 1fr; gap:.6rem; } .tile { padding:.6rem .7rem; } .tile b { font-size:1.15rem; }
  tr > :first-child { white-space:normal; min-width:7.5rem; max-width:7.5rem; }
  tr.section > :first-child { max-width:none; position:static; }
  select,input,button:not(.term) { padding:.5rem .6rem; font-size:1rem; min-height:2.75rem; }
  th .term { padding:.2rem 0; } td .was { display:block; } thead th { white-space:normal; }
  th,td { padding:.3rem .35rem; }
  .passage { contain-intrinsic-size:auto 27rem; } dl { grid-template-columns:1fr; } dt { margin-top:.4rem; } }
@media print { :root { color-scheme:light !important; }
  * { -webkit-print-color-adjust:exact; print-color-adjust:exact; }
  body { font-size:10.5pt; } main { max-width:none; padding:0; } nav,.filters,#tip,#theme { display:none; }
  .scroll { overflow:visible; } table { font-size:.72rem; } tr > :first-child { position:static; }
  th,td { padding:.2rem .3rem; white-space:normal; } td .was { white-space:nowrap; } .term { text-decoration:none; }
  .charts { grid-template-columns:1fr 1fr; }
  .passage,.tile,.charts > div,tr { break-inside:avoid; } .passage { content-visibility:visible; }
  details::details-content { content-visibility:visible; height:auto; } summary { list-style:none; font-weight:600; }
  h2,h3 { break-after:avoid; } }
""".replace("%LIGHT%", _LIGHT)

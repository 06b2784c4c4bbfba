"""The style sheet of a trace's page, as text. It loads no font and no image."""

CSS = """
:root { color-scheme:light dark; --ink:#1d2328; --soft:#57616a; --faint:#69737c; --line:#e2e6ea; --paper:#fff;
  --wash:#f5f7f9; --accent:#0b6b8f; --plus:11 107 143; --minus:194 87 26; --used:#fff3cf; --before:#a9b3bd; }
@media (prefers-color-scheme:dark) { :root { --ink:#e4e8ec; --soft:#a4aeb7; --faint:#7c868f; --line:#333b43;
  --paper:#14181c; --wash:#1c2126; --accent:#5cbbe0; --plus:58 160 205; --minus:226 122 62; --used:#453b17;
  --before:#66717c; } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:72rem; margin:0 auto; padding:2rem 1.25rem 3rem; }
h1 { font-size:1.6rem; line-height:1.2; margin:0 0 .4rem; letter-spacing:-.01em; }
h2 { font-size:.95rem; margin:0 0 .5rem; } p { margin:.4rem 0; max-width:48rem; }
.soft { color:var(--soft); } .small { font-size:.85rem; }
:focus-visible { outline:2px solid var(--accent); outline-offset:1px; }
button,select,input { font:inherit; color:inherit; }
.rows { display:flex; flex-wrap:wrap; gap:.5rem; margin:1.2rem 0 .8rem; }
.rows button { border:1px solid var(--line); border-radius:6px; background:var(--paper); padding:.3rem .75rem;
  cursor:pointer; text-align:left; }
.rows button span { color:var(--soft); font-size:.85rem; margin-left:.45rem; }
.rows button[aria-pressed=true] { border-color:var(--accent); box-shadow:inset 0 0 0 1px var(--accent); }
.text { border:1px solid var(--line); border-radius:8px; padding:.9rem 1rem .7rem; }
.prompt { color:var(--soft); white-space:pre-wrap; overflow-wrap:anywhere; max-width:none; margin:0 0 .35rem;
  font:.86rem/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; }
.sign { border:1px dotted var(--ink); border-radius:3px; font:.8em ui-monospace,monospace; padding:0 .15em; }
dd { unicode-bidi:plaintext; }
.prompt b { font:600 .72rem system-ui,sans-serif; color:var(--soft); margin-right:.6em; }
.strip { font:.95rem/1.3 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; line-height:2.05; }
.strip span { white-space:pre-wrap; overflow-wrap:anywhere; cursor:pointer; padding:.22em .06em; margin-right:1px;
  border-radius:3px; border:solid transparent; border-width:3px 0; background-clip:padding-box;
  -webkit-box-decoration-break:clone; box-decoration-break:clone; }
.strip .plus { background-color:rgb(var(--plus) / var(--a)); }
.strip .minus { background-color:rgb(var(--minus) / var(--a)); }
.strip .above { border-top-color:var(--ink); } .strip .below { border-bottom-color:var(--ink); }
.strip .written,.legend .written { border:1px dotted var(--ink); color:var(--soft); font-style:italic; }
.legend .written { border-radius:3px; padding:0 .2em; }
.strip .written,.legend .written,.bars .written {
  background:repeating-linear-gradient(135deg,rgb(128 138 148 / .35) 0 2px,transparent 2px 6px); }
.strip .used { outline:2px dashed var(--faint); outline-offset:-1px; }
.strip [aria-selected=true] { outline:2px solid var(--ink); outline-offset:-1px; }
.strip [aria-selected=true]:focus-visible { outline:3px solid var(--accent); }
.bars { display:flex; height:3.6rem; margin:.7rem 0 .1rem; align-items:stretch; gap:1px;
  border-bottom:1px solid var(--line); border-top:1px solid var(--line); }
.bars div { flex:1 1 0; max-width:1.6rem; position:relative; cursor:pointer; min-width:1px; }
.bars i { position:absolute; left:0; right:0; border-radius:1px; }
.bars .plus { background:rgb(var(--plus)); } .bars .minus { background:rgb(var(--minus)); }
.bars .on { background:var(--line); }
.legend { display:flex; flex-wrap:wrap; gap:.3rem 1.2rem; align-items:center; margin-top:.5rem; font-size:.85rem; }
select { background:var(--paper); border:1px solid var(--line); border-radius:5px; padding:.15rem .35rem;
  max-width:14rem; }
.scale { display:inline-flex; gap:.45rem; align-items:center; font-variant-numeric:tabular-nums; }
.scale i { width:6rem; height:.7rem; border-radius:3px; border:1px solid var(--line);
  background:linear-gradient(90deg,rgb(var(--minus) / .62),transparent,rgb(var(--plus) / .62)); }
.scale.one i { background:linear-gradient(90deg,transparent,rgb(var(--plus) / .62)); }
.time { display:grid; grid-template-columns:auto minmax(0,1fr); gap:.1rem 1rem; align-items:start;
  padding:.9rem 0 .6rem; position:sticky; top:0; background:var(--paper); z-index:2;
  border-bottom:1px solid var(--line); margin-bottom:1rem; }
.time label { font-weight:600; font-size:.95rem; } .time p { grid-column:1 / -1; margin:.1rem 0 0; max-width:none;
  color:var(--soft); min-height:1.3em; }
.slide { max-width:40rem; } .slide input { width:100%; margin:0; accent-color:var(--accent); cursor:pointer; }
.stops { display:flex; justify-content:space-between; font-size:.75rem; color:var(--faint); padding:0 .15rem; }
.stops b { font-weight:400; } .stops .on { color:var(--ink); font-weight:600; }
.panel { display:grid; grid-template-columns:minmax(0,26rem) minmax(0,1fr); gap:1rem 2rem; align-items:start; }
.list h3 { font-size:.8rem; font-weight:600; color:var(--soft); margin:1rem 0 .25rem; }
.list h3:first-child { margin-top:0; }
.list button { display:grid; grid-template-columns:minmax(0,1fr) auto 6.6rem; gap:.7rem; width:100%; text-align:left;
  border:0; border-radius:4px; background:none; padding:.16rem .4rem; cursor:pointer; font-size:.9rem;
  align-items:baseline; }
.list button i { font-style:normal; color:var(--faint); font-size:.85rem; white-space:nowrap; }
.list button b { font-weight:600; text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
.list .used { background:var(--used); } .list .on { background:var(--wash); box-shadow:inset 3px 0 0 var(--accent); }
.list .cut b { color:rgb(var(--minus)); }
.side { position:sticky; top:7rem; }
.card { border:1px solid var(--line); border-radius:8px; padding:.85rem 1rem; background:var(--wash);
  min-height:12.5rem; }
.card h2 i { font-style:normal; color:var(--soft); font-weight:400; margin-left:.5em; }
.card p { margin:.3rem 0; font-size:.9rem; }
.card .formula { font:.92rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; overflow-wrap:anywhere;
  padding-left:1.6em; text-indent:-1.6em; margin:.15rem 0; }
.card .result { font-weight:700; } .card .code { color:var(--faint); font-size:.8rem; margin-bottom:0;
  font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; overflow-wrap:anywhere; }
.alternatives { margin-top:1.2rem; }
.alternatives table { border-collapse:collapse; width:100%; font-size:.85rem; font-variant-numeric:tabular-nums; }
.alternatives th { text-align:left; font-weight:400; color:var(--faint); font-size:.78rem; padding:0 .5rem .2rem 0; }
.alternatives td { padding:.14rem .5rem .14rem 0; vertical-align:middle; }
.alternatives td:first-child { font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; overflow-wrap:anywhere;
  max-width:11rem; }
.alternatives .drawn td:first-child { font-weight:700; }
.alternatives td:nth-child(2) { width:50%; } .alternatives td:nth-child(n+3),.alternatives th:nth-child(n+3) {
  text-align:right; width:4.4rem; white-space:nowrap; }
.alternatives .state td:nth-child(2),.alternatives .state th:nth-child(2) { width:3rem; text-align:right; }
.alternatives .state td:nth-child(3) { width:30%; }
.alternatives .state .true td:first-child { text-decoration:underline; text-underline-offset:3px; }
.alternatives .state .drawn { background:var(--wash); }
.alternatives button { border:0; background:none; padding:0; cursor:pointer; font:inherit; color:var(--accent); }
.alternatives u { display:block; height:.42rem; border-radius:1px; min-width:1px; background:var(--before); }
.alternatives u + u { background:var(--accent); margin-top:1px; }
.keys { margin-top:1.6rem; }
pre { overflow-x:auto; font-size:.8rem; }
details { margin:.6rem 0; } summary { cursor:pointer; color:var(--soft); }
dl { display:grid; grid-template-columns:minmax(9rem,auto) 1fr; gap:.15rem 1rem; font-size:.85rem; margin:.6rem 0; }
dt { color:var(--soft); } dd { margin:0; overflow-wrap:anywhere; }
@media (max-width:50rem) { main { padding:1.2rem .8rem 2rem; } h1 { font-size:1.3rem; }
  .panel { display:flex; flex-direction:column; align-items:stretch; } .side { display:contents; }
  .alternatives { order:-1; margin:0; } .time { padding:.6rem 0 .4rem; } .time p { font-size:.78rem; }
  .card { position:sticky; bottom:0; min-height:0; max-height:46vh; overflow:auto; padding:.6rem .8rem;
    box-shadow:0 -6px 16px rgb(0 0 0 / .12); }
  .stops span { display:none; } .list button { padding:.34rem .4rem; } .strip { font-size:1rem; }
  dl { grid-template-columns:1fr; } }
@media print { .time,.legend,.keys { display:none; } .side { position:static; } }
"""

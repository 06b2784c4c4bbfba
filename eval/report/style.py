"""The page's style sheet and its one script, as text: no font, image or script is loaded from anywhere."""

CSS = """
:root { --ink:#1d2328; --soft:#5d6770; --faint:#8a949d; --line:#e2e6ea; --paper:#fff; --wash:#f6f7f9;
  --before:#a9b3bd; --after:#0b6b8f; --good:#1a7f4b; --mark:#ffe9a8; --mark-line:#d9a400; }
@media (prefers-color-scheme: dark) { :root { --ink:#e4e8ec; --soft:#a4aeb7; --faint:#7c868f; --line:#333b43;
  --paper:#14181c;
  --wash:#1c2126; --before:#66717c; --after:#4fb3d9; --good:#5cc48d; --mark:#574712; --mark-line:#b08a1c; } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:60rem; margin:0 auto; padding:2.5rem 1.25rem 4rem; }
h1 { font-size:1.7rem; line-height:1.2; margin:0 0 .4rem; letter-spacing:-.01em; }
h2 { font-size:1.1rem; margin:3rem 0 .8rem; padding-top:1rem; border-top:1px solid var(--line); }
h3 { font-size:.85rem; font-weight:600; margin:0 0 .3rem; color:var(--soft); }
p { max-width:44rem; margin:.4rem 0; }
.soft { color:var(--soft); } .small { font-size:.85rem; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(12.5rem,1fr)); gap:.8rem; margin:1.6rem 0 0; }
.tile { border:1px solid var(--line); border-radius:6px; padding:.8rem .9rem; }
.tile b { display:block; font-size:1.45rem; font-weight:600; font-variant-numeric:tabular-nums; white-space:nowrap; }
.tile .was { color:var(--faint); font-weight:400; font-size:1.1rem; }
.tile span { color:var(--soft); font-size:.85rem; }
.scroll { overflow-x:auto; -webkit-overflow-scrolling:touch; }
table { border-collapse:collapse; width:100%; font-size:.88rem; font-variant-numeric:tabular-nums; }
th,td { text-align:right; padding:.3rem .55rem; border-bottom:1px solid var(--line); white-space:nowrap;
  vertical-align:top; }
th:first-child,td:first-child { text-align:left; padding-left:0; position:sticky; left:0; background:var(--paper); }
thead th { font-weight:600; border-bottom:1px solid var(--faint); }
tr.section td { padding-top:1.1rem; color:var(--soft); font-weight:600; font-size:.8rem; }
td .was,td .arrow { color:var(--faint); } td .range { display:block; color:var(--faint); font-size:.75rem; }
[title] { text-decoration:none; } td[title],th[title] { cursor:help; }
td:first-child[title] { border-bottom:1px solid var(--line); text-decoration:underline dotted var(--faint);
  text-underline-offset:3px; }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(17rem,1fr)); gap:1.4rem 1.6rem; }
svg { width:100%; height:auto; display:block; font:11px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif; }
svg .grid { stroke:var(--line); } svg .line { fill:none; stroke:var(--after); stroke-width:1.6; stroke-linejoin:round; }
svg .dot { fill:var(--after); } svg .tick { fill:var(--faint); } svg .name { fill:var(--ink); font-size:12px; }
svg .value { font-size:12px; fill:var(--ink); } svg .before-text { fill:var(--soft); }
svg rect.before { fill:var(--before); } svg rect.after { fill:var(--after); }
svg .mark { stroke:var(--soft); stroke-dasharray:3 3; }
.key i { display:inline-block; width:.8em; height:.8em; border-radius:2px;
  margin:0 .35em 0 .9em; vertical-align:-.05em; }
.key i:first-child { margin-left:0; } .key .b { background:var(--before); } .key .a { background:var(--after); }
.filters { display:flex; flex-wrap:wrap; gap:.6rem; align-items:center; margin:.8rem 0; }
select,input { font:inherit; font-size:.9rem; color:inherit; background:var(--paper); border:1px solid var(--line);
  border-radius:5px; padding:.3rem .5rem; }
input { flex:1 1 10rem; min-width:8rem; }
.passage { border:1px solid var(--line); border-radius:6px; padding:.8rem .95rem; margin:.8rem 0;
  content-visibility:auto; contain-intrinsic-size:auto 14rem; }
.passage[hidden] { display:none; }
.passage header { display:flex; flex-wrap:wrap; gap:.2rem .9rem; font-size:.8rem;
  color:var(--soft); margin-bottom:.5rem; }
.passage header b { color:var(--ink); font-weight:600; }
.texts { display:grid; grid-template-columns:repeat(auto-fit,minmax(15rem,1fr)); gap:.8rem 1.2rem; }
.text { white-space:pre-wrap; overflow-wrap:anywhere;
  font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; }
.prompt { color:var(--soft); margin-bottom:.7rem; }
mark { background:var(--mark); color:inherit; border-bottom:2px solid var(--mark-line); }
.none { color:var(--faint); font-style:italic; }
details { margin:.6rem 0; } summary { cursor:pointer; color:var(--soft); }
dl { display:grid; grid-template-columns:minmax(9rem,auto) 1fr; gap:.15rem 1rem; font-size:.85rem; margin:.6rem 0; }
dt { color:var(--soft); overflow-wrap:anywhere; } dd { margin:0; overflow-wrap:anywhere; }
@media (max-width:36rem) { main { padding:1.4rem .9rem 3rem; } h1 { font-size:1.35rem; }
  .tiles { grid-template-columns:1fr 1fr; gap:.6rem; } .tile { padding:.6rem .7rem; } .tile b { font-size:1.15rem; }
  .tile .was { font-size:.9rem; } tr > :first-child { white-space:normal; min-width:7.5rem; max-width:7.5rem; }
  dl { grid-template-columns:1fr; } dt { margin-top:.4rem; } }
@media print { :root { --ink:#000; --soft:#444; --faint:#777; --line:#ccc; --paper:#fff; --before:#bbb; --after:#0b6b8f;
    --mark:#fff1c2; --mark-line:#b58900; }
  * { -webkit-print-color-adjust:exact; print-color-adjust:exact; }
  body { font-size:10.5pt; } main { max-width:none; padding:0; } .filters { display:none; }
  .passage,.tile,.charts > div,tr { break-inside:avoid; } .passage { content-visibility:visible; }
  h2,h3 { break-after:avoid; } }
"""

SCRIPT = """
(function () {
  var list = document.getElementById("passages"); if (!list) return;
  var cards = Array.prototype.slice.call(list.children);
  var group = document.getElementById("group"), state = document.getElementById("state");
  var words = document.getElementById("words"), count = document.getElementById("count");
  function apply() {
    var wanted = words.value.toLowerCase(), shown = 0;
    cards.forEach(function (card) {
      var fits = (!group.value || card.dataset.group === group.value)
        && (!state.value || card.dataset.state === state.value)
        && (!wanted || card.textContent.toLowerCase().indexOf(wanted) >= 0);
      card.hidden = !fits; if (fits) shown += 1;
    });
    count.textContent = shown + " of " + cards.length + " passages";
  }
  [group, state].forEach(function (field) { field.addEventListener("change", apply); });
  words.addEventListener("input", apply); apply();
})();
"""

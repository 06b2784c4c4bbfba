"""The script of a trace's page, as text. It shows numbers and puts them into formulas. It computes none."""

SCRIPT = r"""
(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("data").textContent);
  var byKey = {}; data.quantities.forEach(function (q) { byKey[q.key] = q; });
  var place = {};
  data.keys.token.forEach(function (key, i) { place[key] = ["token", i]; });
  data.keys.update.forEach(function (key, i) { place[key] = ["update", i]; });
  // row, token, moment and key are what was chosen. hoverToken and hoverKey are what the mouse points at.
  var state = { row: 0, token: 0, moment: 0, key: null, colour: data.colours[0], hoverToken: null, hoverKey: null };

  function $(id) { return document.getElementById(id); }
  function make(tag, className, text) {
    var element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function row() { return data.rows[state.row]; }
  function current() { return state.hoverToken === null ? state.token : state.hoverToken; }
  // A place is what stands in the strip: a token of a response, or a state of a text. A state has several tokens:
  // the actions that were drawn there.
  function places() { return row().states.length ? row().states : row().tokens; }
  function placeOf(t) { return row().states.length ? row().tokens[t].state : t; }
  function tokenAt(i) { // the token to show of a place: the chosen one, or the first
    if (!row().states.length) return i;
    return placeOf(state.token) === i ? state.token : row().states[i].first;
  }
  function visits() { return row().tokens[row().action].u.length; }
  function visit(t) { // what the chosen minibatch did with token t; null before and after the update
    var i = state.moment - 1;
    return i >= 0 && i < visits() ? row().tokens[t].u[i] || null : null;
  }
  function now() { return visit(row().action); } // the chosen minibatch, as an action of this response sees it
  function nextAction(t) { // the place of the next token that the policy chose; -1 if there is none
    var tokens = row().tokens;
    for (var i = t + 1; i < tokens.length; i++) if (!tokens[i].written) return i;
    return -1;
  }
  function entry(key, t, kind) { // kind "n": the number inside a formula; "s": the text of a result
    var where = place[key];
    if (!where) return null;
    var holder = where[0] === "token" ? row().tokens[t] : visit(t);
    return holder && !row().tokens[t].written ? holder[kind][where[1]] : null;
  }
  function number(name, t) {
    if (name in data.numbers) return data.numbers[name];
    if (name in row().numbers) return row().numbers[name];
    var after = nextAction(t);
    if (name === "is_last") return Number(after < 0);
    if (name.indexOf("next_") === 0) return after < 0 ? 0 : entry(name.slice(5), after, "n");
    return entry(name, t, "n");
  }
  function typeset(text) {
    return text.replace(/\*\*2/g, "\u00b2").replace(/\*/g, "\u00d7").replace(/-/g, "\u2212").replace(/>=/g, "\u2265");
  }
  function substituted(q, t) {
    return typeset(q.formula.replace(/\{(\w+)\}/g, function (_, name, at) {
      var x = number(name, t), isFirst = at === 0 || /(\(|, )$/.test(q.formula.slice(0, at));
      return x === null ? "?" : x < 0 && !isFirst ? "(" + x + ")" : String(x);
    }));
  }
  function isShown(q) {
    if (q.section === "policy" || q.section === "value") return now() !== null;
    return q.section !== "after" || state.moment === visits() + 1;
  }

  // ---- what does not change with the token

  function drawRows() {
    var box = $("rows"); box.textContent = "";
    data.rows.forEach(function (r, i) {
      var button = make("button", "", r.title); button.type = "button";
      button.appendChild(make("span", "", r.note));
      button.setAttribute("aria-pressed", String(i === state.row));
      button.addEventListener("click", function () {
        state.row = i; state.token = row().first; state.hoverToken = null; drawRow(); $("rows").children[i].focus();
      });
      box.appendChild(button);
    });
    $("prompt").textContent = "";
    $("prompt").append(make("b", "", "prompt"), make("bdi", "", row().prompt.join("")));
  }
  function drawRow() {
    state.moment = Math.min(state.moment, visits() + 1);
    state.token = Math.min(state.token, row().tokens.length - 1);
    drawRows();
    var strip = $("strip"), bars = $("bars"); strip.textContent = ""; bars.textContent = "";
    places().forEach(function (token, t) {
      // A line may break before the space that begins a token, but not between that space and its word.
      var chip = make("span", "", token.text.replace(/^ /, "\u00a0"));
      if (token.text[0] === " ") strip.appendChild(make("wbr"));
      chip.setAttribute("role", "option"); chip.id = "t" + t;
      var kind = row().states.length ? "state " : "token ";
      chip.setAttribute("aria-label", kind + t + (token.written ? ", written by the environment: " : ": ") +
        token.text);
      chip.addEventListener("click", function () { choose(tokenAt(t)); chip.focus(); });
      chip.addEventListener("mouseenter", function () { state.hoverToken = tokenAt(t); drawToken(); });
      strip.appendChild(chip);
      if (token.text.indexOf("\u23ce") >= 0) strip.appendChild(make("br"));
      var bar = make("div"); bar.appendChild(make("i"));
      bar.addEventListener("click", function () { choose(tokenAt(t)); });
      bar.addEventListener("mouseenter", function () { state.hoverToken = tokenAt(t); drawToken(); });
      bars.appendChild(bar);
    });
    drawStops(); drawMoment();
  }
  function drawStops() {
    var names = ["drawn"], tokens = row().tokens;
    tokens[row().action].u.forEach(function (u) { names.push(data.minibatches[u.m].epoch); });
    names.push("after");
    $("moment").max = names.length - 1; $("moment").value = state.moment;
    var stops = $("stops"); stops.textContent = "";
    names.forEach(function (name, i) {
      var stop = make("b", i === state.moment ? "on" : "");
      if (typeof name === "number" && names.length <= 8) stop.appendChild(make("span", "", "epoch "));
      stop.append(String(name)); stops.appendChild(stop);
    });
  }

  // ---- what changes with the moment

  function drawMoment() {
    var inside = now(), text = "Before the update: the responses are drawn, scored and judged.";
    if (inside) text = data.minibatches[inside.m].text;
    else if (state.moment) {
      text = "After the update.";
      if (visits() < data.epochs)
        text += " It ended early: this response was in " + visits() + " of " + data.epochs + " epochs.";
    }
    $("when").textContent = text;
    $("moment").setAttribute("aria-valuetext", text);
    drawStops(); drawColours(); drawList(); drawToken();
  }
  function drawColours() {
    var select = $("colour"); select.textContent = "";
    var offered = data.colours.filter(function (key) { return isShown(byKey[key]); });
    if (offered.indexOf(state.colour) < 0) state.colour = offered[0];
    offered.forEach(function (key) {
      var option = make("option", "", byKey[key].label); option.value = key;
      option.selected = key === state.colour; select.appendChild(option);
    });
    var middle = state.colour === "ratio" || state.colour === "heat" ? 1 : 0;
    var values = places().map(function (token, t) {
      return token.written ? 0 : (entry(state.colour, tokenAt(t), "n") || 0) - middle;
    });
    var most = Math.max.apply(null, values.map(Math.abs)) || 1;
    var isOneSided = data.shares.indexOf(state.colour) >= 0;
    if (isOneSided) most = 1;
    $("low").textContent = isOneSided ? "0" : typeset(String(+(middle - most).toPrecision(3)));
    $("high").textContent = typeset(String(+(middle + most).toPrecision(3)));
    document.querySelector(".scale").classList.toggle("one", isOneSided);
    places().forEach(function (token, t) {
      var chip = $("t" + t), share = values[t] / most, here = row().states.length ? null : visit(t);
      var sign = share < 0 ? "minus" : "plus";
      if (token.written) { chip.className = "written"; $("bars").children[t].className = "written"; return; }
      chip.className = sign + (here && here.side ? " " + here.side : "");
      chip.style.setProperty("--a", (0.62 * Math.abs(share)).toFixed(3));
      var bar = $("bars").children[t].firstChild; bar.className = sign;
      var height = (isOneSided ? 100 : 50) * Math.abs(share);
      bar.style.height = height + "%";
      bar.style.bottom = isOneSided ? "0" : share < 0 ? (50 - height) + "%" : "50%";
    });
  }
  function drawList() {
    var list = $("list"), section = ""; list.textContent = "";
    var focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : null;
    data.quantities.filter(isShown).forEach(function (q) {
      if (q.section !== section) { section = q.section; list.appendChild(make("h3", "", data.sections[section])); }
      var button = make("button"); button.type = "button"; button.dataset.key = q.key;
      button.append(make("span", "", q.label), make("i", "", q.symbol), make("b"));
      button.addEventListener("mouseenter", function () { state.hoverKey = q.key; drawCard(); });
      button.addEventListener("focus", function () { state.hoverKey = null; state.key = q.key; drawCard(); });
      button.addEventListener("click", function () { state.key = q.key; drawCard(); });
      list.appendChild(button);
      if (q.key === focused) button.focus();
    });
    if (!state.key || !isShown(byKey[state.key])) state.key = byKey.td_error ? "td_error" : "advantage";
  }

  // ---- what changes with the token

  function drawToken() {
    var t = current(), token = row().tokens[t], place = placeOf(t), chosen = placeOf(state.token);
    places().forEach(function (_, i) {
      var chip = $("t" + i);
      chip.setAttribute("aria-selected", String(i === place)); chip.tabIndex = i === chosen ? 0 : -1;
      $("bars").children[i].classList.toggle("on", i === place);
    });
    Array.prototype.forEach.call(document.querySelectorAll("#list button"), function (button) {
      var value = entry(button.dataset.key, t, "s");
      button.lastChild.textContent = value === null ? "\u2013" : typeset(value);
      var isGate = button.dataset.key === "gate" || button.dataset.key === "value_gate";
      button.classList.toggle("cut", isGate && entry(button.dataset.key, t, "n") === 0);
    });
    if (row().states.length) drawState(place, t);
    else $("token").textContent = "Token " + t + ", id " + token.id +
      (token.written ? ": written by the environment" : ": what could have stood here");
    if (!row().states.length) drawAlternatives(token);
    drawCard();
  }
  function drawState(place, t) { // what was drawn at a state, and what else is likely there
    var here = row().states[place], box = $("alternatives"), table = make("table", "state"), head = make("tr");
    $("token").textContent = "State " + place + ", where \u201c" + here.text + "\u201d stands: what was drawn";
    box.textContent = "";
    ["token", "times", "", "before", "after", "reward", "advantage"].forEach(function (name) {
      head.appendChild(make("th", "", name));
    });
    table.appendChild(head);
    here.a.forEach(function (a) {
      var line = make("tr", (a[3] ? "true" : "") + (a[5] === t ? " drawn" : "")), name = make("td"), bars = make("td");
      var label = a[0] + (a[3] ? " \u2190 true" : "");
      if (a[5] < 0) name.textContent = label;
      else {
        var button = make("button", "", label); button.type = "button"; button.dataset.action = a[5];
        button.setAttribute("aria-pressed", String(a[5] === t));
        button.addEventListener("click", function () {
          choose(a[5]); box.querySelector("[data-action='" + a[5] + "']").focus();
        });
        name.appendChild(button);
      }
      [a[1], a[2]].forEach(function (p) {
        var bar = make("u"); bar.style.width = (100 * p).toFixed(2) + "%"; bars.appendChild(bar);
      });
      line.append(name, make("td", "", String(a[4])), bars);
      [percent(a[1]), percent(a[2]), typeset(a[6]), typeset(a[7])].forEach(function (text) {
        line.appendChild(make("td", "", text));
      });
      table.appendChild(line);
    });
    box.appendChild(table);
    var rest = here.rest ? here.rest + " more draws of tokens that are not listed. " : "";
    box.appendChild(make("p", "soft small", rest + "Before and after: the probability of the token as it is drawn, " +
      "with heat. Choose a token that was drawn to see its numbers."));
  }
  function drawAlternatives(token) {
    var box = $("alternatives"), table = make("table"), head = make("tr"); box.textContent = "";
    if (token.written) {
      box.appendChild(make("p", "soft small", "Nobody chose here. The model reads this token and does not learn it."));
      return;
    }
    ["token", "", "before", "after"].forEach(function (name) { head.appendChild(make("th", "", name)); });
    table.appendChild(head);
    token.a.forEach(function (a) {
      var line = make("tr", a[3] ? "drawn" : ""), bars = make("td");
      [a[1], a[2]].forEach(function (p) {
        var bar = make("u"); bar.style.width = (100 * p).toFixed(2) + "%"; bars.appendChild(bar);
      });
      line.append(make("td", "", a[0] + (a[3] ? " \u2190 drawn" : "")), bars,
        make("td", "", percent(a[1])), make("td", "", percent(a[2])));
      table.appendChild(line);
    });
    box.appendChild(table);
  }
  function percent(p) { return (100 * p).toFixed(p < 0.001 ? 4 : 2) + " %"; }
  function drawCard() {
    var q = byKey[state.hoverKey || state.key], t = current(), card = $("card");
    var value = entry(q.key, t, "s"), result = value === null ? "\u2013" : typeset(value);
    var title = make("h2", "", q.label);
    title.appendChild(make("i", "", q.symbol)); card.textContent = ""; card.dataset.key = q.key;
    card.append(title, make("p", "", q.says));
    if (q.formula) {
      card.append(make("p", "formula symbols", q.symbol + " = " + q.typeset));
      if (!row().tokens[t].written) card.append(make("p", "formula numbers", "= " + substituted(q, t)));
      card.append(make("p", "formula result", "= " + result));
    } else card.append(make("p", "formula result", q.symbol + " = " + result));
    card.append(make("p", "code", q.code));
    var usesNext = q.names.some(function (name) { return name.indexOf("next_") === 0; });
    var after = row().tokens[t].written ? -1 : nextAction(t);
    places().forEach(function (_, i) { $("t" + i).classList.toggle("used", usesNext && i === after); });
    Array.prototype.forEach.call(document.querySelectorAll("#list button"), function (button) {
      button.classList.toggle("used", q.names.indexOf(button.dataset.key) >= 0);
      button.classList.toggle("on", button.dataset.key === q.key);
    });
  }

  // ---- what the reader does

  function choose(t) {
    state.token = Math.max(0, Math.min(t, row().tokens.length - 1)); state.hoverToken = null; drawToken();
  }
  function choosePlace(i) { choose(tokenAt(Math.max(0, Math.min(i, places().length - 1)))); }
  function unhover() { if (state.hoverToken !== null) { state.hoverToken = null; drawToken(); } }
  $("strip").addEventListener("mouseleave", unhover);
  $("bars").addEventListener("mouseleave", unhover);
  $("list").addEventListener("mouseleave", function () { state.hoverKey = null; drawCard(); });
  $("strip").addEventListener("keydown", function (event) {
    var last = places().length - 1, way = { ArrowDown: 1, ArrowUp: -1 }[event.key], at = placeOf(state.token);
    var to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (way) { event.preventDefault(); step(way); }
    if (to === undefined) return;
    event.preventDefault(); choosePlace(to); $("t" + placeOf(state.token)).focus();
  });
  $("list").addEventListener("keydown", function (event) {
    var buttons = Array.prototype.slice.call(document.querySelectorAll("#list button"));
    var way = { ArrowDown: 1, ArrowUp: -1 }[event.key], turn = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (turn) { event.preventDefault(); choosePlace(placeOf(state.token) + turn); }
    if (!way) return;
    event.preventDefault();
    var next = buttons[buttons.indexOf(document.activeElement) + way]; if (next) next.focus();
  });
  function step(way) { // to the next quantity, while the focus stays on the tokens
    var keys = data.quantities.filter(isShown).map(function (q) { return q.key; });
    var i = keys.indexOf(state.key) + way;
    if (i >= 0 && i < keys.length) { state.key = keys[i]; state.hoverKey = null; drawCard(); }
  }
  $("moment").addEventListener("input", function () { state.moment = Number($("moment").value); drawMoment(); });
  $("colour").addEventListener("change", function () { state.colour = $("colour").value; drawColours(); });

  $("app").hidden = false;
  state.token = row().first;
  drawRow();
})();
"""

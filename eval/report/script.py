"""The page's only script, as text: definitions on pointing, focus and touch; filters; order; light and dark; print.

It makes no request and evaluates no text. Everything that it shows is inserted as text, never as HTML.
"""

DEFINITIONS = """
(() => {
  const tip = document.getElementById("tip");
  let owner = null, pinned = false, timer = 0;
  const find = (event) => event.target instanceof Element ? event.target.closest("[data-def]") : null;
  function place() {
    if (!owner) return;
    const box = (owner.querySelector(".term") || owner).getBoundingClientRect(), gap = 8;
    const most = document.documentElement.clientWidth - tip.offsetWidth - gap;
    const above = box.top - tip.offsetHeight - gap;
    tip.style.left = Math.max(gap, Math.min(box.left, most)) + "px";
    tip.style.top = (above >= gap ? above : box.bottom + gap) + "px";
  }
  function hide() {
    clearTimeout(timer); pinned = false; tip.hidden = true;
    if (owner) owner.removeAttribute("aria-describedby");
    owner = null;
  }
  function show(element) {
    const text = document.getElementById("def-" + element.dataset.def);
    if (!text) return;
    hide(); owner = element;
    const of = element.dataset.of;
    tip.firstElementChild.textContent = text.dataset.label + (of ? ", " + of : "");
    tip.lastElementChild.textContent = text.textContent;
    tip.hidden = false; owner.setAttribute("aria-describedby", "tip"); place();
  }
  document.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "mouse" || pinned) return;
    const element = find(event);
    if (tip.contains(event.target)) clearTimeout(timer);
    else if (element) { if (element !== owner) show(element); else clearTimeout(timer); }
    else if (owner && owner !== document.activeElement) { clearTimeout(timer); timer = setTimeout(hide, 200); }
  });
  document.addEventListener("click", (event) => {
    const element = find(event);
    if (tip.contains(event.target)) return;
    if (!element || (pinned && element === owner)) { hide(); return; }
    show(element); pinned = true;
  });
  document.addEventListener("pointerdown", (event) => {
    if (pinned && !find(event) && !tip.contains(event.target)) hide();
  });
  document.addEventListener("focusin", (event) => {
    const element = find(event);
    if (element) show(element); else hide();
  });
  document.addEventListener("focusout", () => { if (!pinned) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", place, { passive: true, capture: true });
  addEventListener("resize", place);
})();
"""

PASSAGES = """
(() => {
  const list = document.getElementById("passages");
  if (!list) return;
  const form = document.getElementById("filters"), count = document.getElementById("count");
  const [group, state, sort, words] = ["group", "state", "sort", "words"].map((id) => document.getElementById(id));
  const cards = Array.from(list.children), texts = new Map();
  const flat = (text) => text.toLowerCase().replace(/\\s+/g, " ");
  function textOf(card) {
    if (!texts.has(card)) {
      const parts = [card.querySelector("b"), ...card.querySelectorAll(".text")];
      texts.set(card, flat(parts.map((part) => part.textContent).join("\\n")));
    }
    return texts.get(card);
  }
  const chosen = (select) => select.options[select.selectedIndex].text;
  function filter() {
    const wanted = flat(words.value).trim(), states = state.value.split(" ");
    let shown = 0;
    for (const card of cards) {
      const fits = (!group.value || card.dataset.group === group.value)
        && (!state.value || states.includes(card.dataset.state))
        && (!wanted || textOf(card).includes(wanted));
      card.hidden = !fits;
      shown += fits;
    }
    const only = [group, state].filter((select) => select.value).map(chosen);
    if (wanted) only.push("with \\u201c" + words.value.trim() + "\\u201d");
    count.textContent = shown + " of " + cards.length + " passages" + (only.length ? "; only: " + only.join(", ") : "");
  }
  function order() {
    const [key, sign] = sort.value.split(" ");
    const value = (card) => key in card.dataset ? Number(card.dataset[key]) * sign : Infinity;
    list.append(...(sort.value ? cards.slice().sort((a, b) => value(a) - value(b)) : cards));
  }
  form.hidden = false;
  for (const field of [group, state]) field.addEventListener("change", filter);
  words.addEventListener("input", filter);
  sort.addEventListener("change", order);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { filter(); order(); }));
  filter();
  if (sort.value) order();
})();
"""

PAGE = """
(() => {
  const theme = document.getElementById("theme"), root = document.documentElement;
  const isDark = () => (root.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : ""))
    === "dark";
  const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false; name();
  theme.addEventListener("click", () => { root.style.colorScheme = isDark() ? "light" : "dark"; name(); });
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = Array.from(document.querySelectorAll("details:not([open])"));
    for (const part of folded) part.open = true;
  });
  addEventListener("afterprint", () => { for (const part of folded) part.open = false; });
})();
"""

SCRIPT = DEFINITIONS + PASSAGES + PAGE

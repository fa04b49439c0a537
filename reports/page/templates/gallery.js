"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const block = $("gallery-data");
  if (!block || !$("gallery-body")) return;
  if (typeof DecompressionStream === "undefined" || typeof IntersectionObserver === "undefined") {
    $("gallery-old").hidden = false;
    return;
  }
  const data = JSON.parse(block.textContent);
  block.remove(); // the text of all maps is kept once

  const { STEPS, unpackMap, unpackMask, countArt, paintRamp } = overlay;
  const BATCH = 24, CARD_PX = 448, LARGE_PX = 1024;
  overlay.setColours(data.colours);

  const pictures = new Map();
  const pictureOf = (image) => {
    if (!pictures.has(image)) {
      const picture = new Image();
      picture.src = data.sources[image.source];
      pictures.set(image, Promise.all([picture.decode().then(() => picture), unpackMask(data.masks[image.mask], image.size),
        image.ignored === null ? null : unpackMask(data.masks[image.ignored], image.size)]));
    }
    return pictures.get(image);
  };
  const artOf = async (card) => {
    const [[picture, mask, ignored], bins] = await Promise.all([pictureOf(card.image), unpackMap(data.maps[card.map], card.image.size)]);
    return { picture, mask, ignored, bins, ...countArt(bins, mask, ignored) };
  };

  // ---- cards --------------------------------------------------------------------------------------------------
  data.lines.forEach((line) => { line.pair = `${line.train} → ${line.eval}`; });
  const cards = data.cards.map(([line, image, map, predicted]) => {
    const card = { line: data.lines[line], image: data.images[image], map, predicted, art: null, ready: null, node: null };
    card.rank = [image, line];
    card.kind = card.line.classes[card.image.label];
    card.verdict = predicted === null ? "none" : predicted === card.image.label ? "right" : "wrong";
    return card;
  });
  const state = { tau: 500, whose: "half", mode: "heat", opacity: 0.6, truth: true, count: BATCH, off: new Set() };
  let matched = [], shown = [], large = -1, frame = 0;

  const tauOf = (card) => (state.whose === "val" || state.whose === "oracle" ? card.line.tau[state.whose] : state.tau);
  const diceAt = ({ hits, called }, tau) => (2 * hits[tau]) / (called[tau] + hits[0]);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const quality = (card) => {
    const tau = tauOf(card);
    if (tau === null) return "no threshold: no validation masks";
    if (!card.art) return "Dice …";
    if (!card.art.called[0]) return "nothing annotated";
    if (!card.art.hits[0]) return `no region; ${percent(card.art.called[tau] / card.art.called[0])} called`;
    return `Dice ${percent(diceAt(card.art, tau))}`;
  };
  const verdictText = (card) =>
    ({ right: "classified right", wrong: `wrong: classified ${card.line.classes[card.predicted]}`, none: "classifies nothing" })[card.verdict];
  const MARKS = { right: "✓", wrong: "✗", none: "–" };
  const MAPS = { pred: "of the predicted class", true: "of the true class", positive: "of the positive class" };

  const element = (tag, name, ...inside) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    node.append(...inside); // strings become text, never markup
    return node;
  };
  const verdictNodes = (card) => {
    const mark = element("span", `g-mark ${card.verdict}`, MARKS[card.verdict]);
    mark.setAttribute("aria-hidden", "true");
    return [mark, " ", verdictText(card)];
  };
  const stamp = (card) => (card.line.synthetic ? [element("span", "stamp", "SYNTHETIC DATA")] : []);
  const severalProtocols = new Set(data.lines.map((line) => line.protocol)).size > 1;
  const whereText = ({ line }) =>
    [line.pair, ...[line.backbone, line.selection].filter((t) => t !== "-"), ...(severalProtocols ? [line.protocol] : []),
      ...(line.map === "positive" ? ["positive class"] : [])].join(" · ");
  const build = (card) => {
    const tile = element("button", "g-tile", element("canvas"));
    tile.type = "button";
    tile.setAttribute("aria-label", `Enlarge ${card.line.method} on ${card.image.id}, ${card.kind}, ${verdictText(card)}, ${whereText(card)}`);
    tile.addEventListener("click", () => openLarge(matched.indexOf(card)));
    const [dice, tau] = [element("b"), element("span", "g-tau-text")];
    const text = element("div", "g-text", element("p", "g-name", card.line.method), element("p", "g-score", dice, tau),
      element("p", "g-verdict", ...verdictNodes(card)), element("p", "g-id", `${card.image.id} · ${card.kind}`),
      element("p", "g-where", whereText(card)), ...stamp(card));
    card.node = element("li", "g-card", tile, text);
    Object.assign(card, { tile, canvas: tile.firstChild, dice, tauText: tau });
    card.node.card = card;
  };

  // ---- drawing ------------------------------------------------------------------------------------------------
  const paint = (canvas, card, target, map = true) =>
    overlay.paint(canvas, { ...card.art, size: card.image.size }, { ...state, tau: tauOf(card), map, truth: state.truth || !map }, target);
  const tell = (card) => {
    const tau = tauOf(card);
    card.dice.textContent = quality(card);
    card.tauText.textContent = tau === null ? "" : ` at ${(tau / STEPS).toFixed(3)}`;
  };
  const redraw = () => {
    frame = 0;
    for (const card of shown) {
      if (card.dirty && card.visible && card.art) {
        card.dirty = false;
        paint(card.canvas, card, CARD_PX);
      }
    }
    if (large >= 0 && matched[large].art) paintLarge(matched[large]);
  };
  const schedule = () => { frame ||= requestAnimationFrame(redraw); };
  const refresh = () => {
    for (const card of shown) {
      card.dirty = true;
      tell(card);
    }
    schedule();
  };
  const ensure = (card) => {
    card.ready ??= artOf(card).then((art) => {
      card.art = art;
      card.dirty = true;
      if (card.node) tell(card);
      schedule();
    });
    return card.ready;
  };
  const observer = new IntersectionObserver((entries) => {
    for (const { target: { card }, isIntersecting } of entries) {
      card.visible = isIntersecting;
      if (isIntersecting) ensure(card);
    }
    schedule();
  }, { rootMargin: "400px" });

  // ---- filters ------------------------------------------------------------------------------------------------
  const FILTERS = {
    protocol: (c) => c.line.protocol, pair: (c) => c.line.pair, image: (c) => `${c.image.set} · ${c.image.id}`,
    class: (c) => c.kind, verdict: (c) => c.verdict, backbone: (c) => c.line.backbone, selection: (c) => c.line.selection,
  };
  const WORDS = { right: "right", wrong: "wrong", none: "classifies nothing" };
  const select = Object.fromEntries([...document.querySelectorAll("#gallery [data-filter]")].map((s) => [s.dataset.filter, s]));
  const passes = (card, names) => names.every((name) => {
    const wanted = select[name].value, value = FILTERS[name](card);
    if (wanted === "") return true;
    return name === "selection" && wanted === "own" ? card.line.own : value === wanted || value === "-";
  });
  const fill = (name, among, first) => {
    const values = [...new Set(among.map(FILTERS[name]))].filter((v) => v !== "-");
    const options = [...first, ...values.map((v) => [v, WORDS[v] ?? v])];
    select[name].replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    select[name].parentElement.hidden = values.length < 2;
  };
  const fillImages = () => fill("image", cards.filter((c) => passes(c, ["protocol", "pair", "class"])), [["", "all"]]);
  const fillAll = () => {
    const lines = [...new Set(cards.map((c) => c.line))];
    fill("protocol", cards, []); // numbers of two protocols are never to be compared, so there is no "all"
    for (const name of ["pair", "class", "verdict", "backbone"]) fill(name, cards, [["", "all"]]);
    fill("selection", cards, [["own", "the protocol's own"], ["", "all"]]);
    const home = lines.find((l) => l.train === l.eval) ?? lines[0];
    if (!select.pair.parentElement.hidden) select.pair.value = home.pair;
    select.order.replaceChildren(new Option("image by image", "image"), new Option("method by method", "method"));
    select.order.parentElement.hidden = false;
    fillImages();
  };
  const methods = [...new Set(cards.map((c) => c.line.method))];
  const boxes = methods.map((name) => {
    const box = element("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      state.off[box.checked ? "delete" : "add"](name);
      filter();
    });
    $("gallery-methods").append(element("label", "", box, " ", name));
    return box;
  });
  const setMethods = (on) => {
    boxes.forEach((box) => { box.checked = on; });
    state.off = new Set(on ? [] : methods);
  };
  const filter = () => {
    state.count = BATCH;
    const order = select.order.value === "method" ? [1, 0] : [0, 1];
    matched = cards.filter((c) => !state.off.has(c.line.method) && passes(c, Object.keys(FILTERS)));
    matched.sort((a, b) => a.rank[order[0]] - b.rank[order[0]] || a.rank[order[1]] - b.rank[order[1]]);
    render();
  };
  const render = () => {
    const before = new Set(shown);
    shown = matched.slice(0, state.count);
    for (const card of shown) {
      if (!card.node) build(card);
      if (!before.delete(card)) observer.observe(card.node);
    }
    for (const card of before) { // give back the memory of maps that are out of sight
      observer.unobserve(card.node);
      Object.assign(card, { art: null, ready: null, visible: false });
    }
    $("gallery-cards").replaceChildren(...shown.map((card) => card.node));
    $("gallery-count").textContent = matched.length ? `${shown.length} of ${matched.length} cards` : "No card fits these filters.";
    $("gallery-reset").hidden = matched.length > 0;
    const rest = matched.length - shown.length;
    $("gallery-more").hidden = !rest;
    $("gallery-more").textContent = `Show ${Math.min(BATCH, rest)} more`;
    refresh();
  };

  // ---- large view ---------------------------------------------------------------------------------------------
  const dialog = $("gallery-large"), [plain, overlaid] = dialog.querySelectorAll("figure canvas");
  const curve = (card) => {
    const canvas = dialog.querySelector(".g-curve"), pen = canvas.getContext("2d"), look = getComputedStyle(dialog);
    const ink = (name) => look.getPropertyValue(name), [left, right, top, bottom] = [64, 626, 14, 214];
    const px = (tau) => left + ((right - left) * tau) / STEPS, py = (dice) => bottom - (bottom - top) * dice;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    canvas.hidden = !card.art.hits[0];
    const stroke = (points, style, width, dash = []) => {
      pen.beginPath();
      points.forEach(([x, y], k) => pen[k ? "lineTo" : "moveTo"](x, y));
      pen.setLineDash(dash);
      Object.assign(pen, { strokeStyle: style, lineWidth: width });
      pen.stroke();
    };
    Object.assign(pen, { font: "22px system-ui, sans-serif", fillStyle: ink("--soft"), textAlign: "right", textBaseline: "middle" });
    for (const level of [0, 0.5, 1]) {
      stroke([[left, py(level)], [right, py(level)]], ink("--line"), 1);
      pen.fillText(100 * level, left - 10, py(level));
    }
    Object.assign(pen, { textAlign: "center", textBaseline: "top" });
    for (const tau of [0, 0.5, 1]) pen.fillText(tau, px(tau * STEPS), bottom + 10);
    stroke(Array.from({ length: STEPS + 1 }, (_, k) => [px(k), py(diceAt(card.art, k))]), ink("--accent"), 3);
    const tau = tauOf(card);
    if (tau !== null) stroke([[px(tau), top], [px(tau), bottom]], ink("--ink"), 2, [6, 5]);
  };
  const CAPTIONS = {
    heat: "heat map, 0 to 1; orange: score at the threshold", region: "blue: hits; orange: false alarms",
    outline: "orange: score at the threshold",
  };
  const paintLarge = (card) => {
    paint(plain, card, LARGE_PX, false);
    paint(overlaid, card, LARGE_PX);
    curve(card);
    const tau = tauOf(card);
    dialog.querySelector(".g-caption").textContent = CAPTIONS[state.mode] + (state.truth ? "; white: the mask" : "");
    dialog.querySelector(".g-dice").textContent = quality(card) + (tau === null ? "" : ` at threshold ${(tau / STEPS).toFixed(3)}`);
  };
  const factsOf = ({ line, image, kind }) => ({
    Image: `${image.id} (${line.eval})`, Class: kind, Map: MAPS[line.map] ?? "of no class", "Trained on": line.train,
    Backbone: line.backbone, Checkpoint: line.selection, Protocol: line.protocol, Run: line.run,
    tau_val: line.tau.val === null ? "none" : (line.tau.val / STEPS).toFixed(3),
    "oracle †": line.tau.oracle === null ? "none" : (line.tau.oracle / STEPS).toFixed(3),
  });
  const showLarge = (index) => {
    large = index;
    const card = matched[index];
    $("gallery-large-title").replaceChildren(`${card.line.method} · ${card.image.id} `, ...stamp(card));
    dialog.querySelector(".g-verdict").replaceChildren(...verdictNodes(card));
    dialog.querySelector(".g-dice").textContent = "";
    dialog.querySelector("dl").replaceChildren(...Object.entries(factsOf(card)).filter(([, text]) => text !== "-")
      .map(([name, text]) => element("div", "", element("dt", "", name), element("dd", "", text))));
    for (const button of dialog.querySelectorAll("[data-step]")) button.disabled = !matched[index + Number(button.dataset.step)];
    ensure(card);
    schedule();
  };
  const openLarge = (index) => {
    showLarge(index);
    dialog.showModal();
  };
  const step = (by) => { if (matched[large + by]) showLarge(large + by); };
  for (const button of dialog.querySelectorAll("[data-step]")) button.addEventListener("click", () => step(Number(button.dataset.step)));
  dialog.querySelector(".g-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    const card = matched[large];
    large = -1;
    if (!shown.includes(card)) {
      state.count = BATCH * Math.ceil((matched.indexOf(card) + 1) / BATCH);
      render();
    }
    card.tile.focus();
  });
  const arrow = (event) => ({ ArrowLeft: -1, ArrowRight: 1 })[event.target.matches("input, select") ? "" : event.key];
  dialog.addEventListener("keydown", (event) => {
    if (arrow(event)) step(arrow(event));
  });
  $("gallery-cards").addEventListener("keydown", (event) => {
    const next = arrow(event) && shown[shown.findIndex((c) => c.tile === event.target) + arrow(event)];
    if (!next) return;
    event.preventDefault();
    next.tile.focus();
  });

  // ---- controls -----------------------------------------------------------------------------------------------
  const sliders = [...document.querySelectorAll(".g-tau")], wordings = [...document.querySelectorAll(".g-value")];
  const buttons = [...document.querySelectorAll("#gallery [data-whose]")];
  const LABELS = { val: "tau_val", oracle: "oracle †" };
  const setTau = (whose, tau = state.tau) => {
    Object.assign(state, { whose, tau });
    for (const slider of sliders) {
      slider.value = tau / STEPS;
      slider.setAttribute("aria-valuetext", LABELS[whose] ? `each method's ${LABELS[whose]}` : (tau / STEPS).toFixed(3));
    }
    for (const wording of wordings) wording.textContent = LABELS[whose] ?? (tau / STEPS).toFixed(3);
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.whose === whose && (whose !== "half" || tau === 500));
    refresh();
  };
  for (const slider of sliders) slider.addEventListener("input", () => setTau("common", Math.round(slider.value * STEPS)));
  for (const button of buttons) button.addEventListener("click", () => setTau(button.dataset.whose, button.dataset.whose === "half" ? 500 : state.tau));
  const setMode = (mode) => {
    state.mode = mode;
    for (const key of document.querySelectorAll("#gallery .g-legend [data-for]")) {
      const on = key.dataset.for.split(" ");
      key.hidden = !(on.includes(mode) || (on.includes("truth") && state.truth));
    }
    refresh();
  };
  for (const radio of document.querySelectorAll("#gallery [name=gallery-mode]")) {
    radio.addEventListener("change", () => setMode(radio.value));
  }
  $("gallery-opacity").addEventListener("input", (event) => { state.opacity = Number(event.target.value); refresh(); });
  $("gallery-truth").addEventListener("change", (event) => { state.truth = event.target.checked; setMode(state.mode); });
  for (const [name, node] of Object.entries(select)) {
    node.addEventListener("change", () => {
      if (["protocol", "pair", "class"].includes(name)) fillImages();
      filter();
    });
  }
  $("gallery-all").addEventListener("click", () => { setMethods(true); filter(); });
  $("gallery-none").addEventListener("click", () => { setMethods(false); filter(); });
  $("gallery-more").addEventListener("click", () => { state.count += BATCH; render(); });
  $("gallery-reset").addEventListener("click", () => {
    setMethods(true);
    fillAll();
    filter();
    select.order.focus();
  });

  paintRamp($("gallery-scale"));
  $("gallery-body").hidden = false;
  fillAll();
  filter();
  setMode("heat");
  setTau(data.lines.some((line) => line.tau.val !== null) ? "val" : "half");
})();

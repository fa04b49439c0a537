"use strict";
// Packed maps and masks to pixels: what gallery.js draws with. Formats as in gallery.py.
const overlay = (() => {
  const STEPS = 1000;
  const colour = (r, g, b) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // as a canvas holds it in memory
  const DARK = colour(0, 0, 0), TRUTH = colour(255, 255, 255), CUT = colour(255, 122, 0);
  const HIT = colour(0, 114, 178), FALSE = colour(213, 94, 0);
  const viridis = new Uint32Array(256), heat = new Uint32Array(STEPS + 1);
  const setColours = (hex) => {
    viridis.forEach((_, k) => {
      const [r, g, b] = [0, 2, 4].map((c) => parseInt(hex.slice(6 * k + c, 6 * k + c + 2), 16));
      viridis[k] = colour(r, g, b);
    });
    // Every score bin has the colour that matplotlib gives its middle.
    heat.forEach((_, k) => { heat[k] = viridis[Math.min(255, Math.floor(((k + 0.5) / STEPS) * 256))]; });
  };

  // ---- unpacking ----------------------------------------------------------------------------------------------
  const inflate = async (text) => {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const unpackMap = async (text, size) => {
    const raw = await inflate(text), count = size * size, bins = new Int16Array(count);
    for (let i = 0, x = 0; i < count; i++, x = x + 1 === size ? 0 : x + 1) {
      const folded = raw[i] | (raw[count + i] << 8);
      const left = x ? bins[i - 1] : 0, up = i < size ? 0 : bins[i - size], corner = x && i >= size ? bins[i - size - 1] : 0;
      bins[i] = left + up - corner + (folded & 1 ? -(folded + 1) / 2 : folded / 2);
    }
    return bins;
  };
  const unpackMask = async (text, size) => {
    const raw = await inflate(text);
    return new Uint8Array(size * size).map((_, i) => (raw[i >> 3] >> (7 - (i & 7))) & 1);
  };
  const countArt = (bins, mask, ignored) => { // ignored: pixels that count nowhere, or null
    const hits = new Float64Array(STEPS + 2), called = new Float64Array(STEPS + 2); // pixels of a score >= bin
    for (let i = 0; i < bins.length; i++) {
      if (ignored && ignored[i]) continue;
      called[bins[i]] += 1;
      hits[bins[i]] += mask[i];
    }
    for (let k = STEPS; k >= 0; k--) {
      called[k] += called[k + 1];
      hits[k] += hits[k + 1];
    }
    return { hits, called };
  };
  const atLeast = (bins, tau) => { // a plain loop: Uint8Array.from would take longer than all the drawing
    const called = new Uint8Array(bins.length);
    for (let i = 0; i < bins.length; i++) called[i] = bins[i] >= tau;
    return called;
  };

  // ---- drawing ------------------------------------------------------------------------------------------------
  const sheets = new Map(); // scratch canvases by side
  const sheet = (side, use) => {
    const name = `${use} ${side}`;
    if (!sheets.has(name)) {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = side;
      const pen = canvas.getContext("2d"), image = pen.createImageData(side, side);
      sheets.set(name, { canvas, pen, image, side, pixels: new Uint32Array(image.data.buffer) });
    }
    const found = sheets.get(name);
    found.pixels.fill(0);
    return found;
  };
  const trace = ({ pixels, side }, size, inside, paint) => {
    // The border of a region: a coloured line inside it and a dark one outside, so that it shows on any picture.
    const f = side / size, wide = Math.round(2 + side / 500);
    const box = (x0, y0, x1, y1, c) => {
      for (let y = Math.max(0, y0); y < Math.min(side, y1); y++) pixels.fill(c, y * side + Math.max(0, x0), y * side + Math.min(side, x1));
    };
    for (const [near, far, c] of [[0, wide, DARK], [wide, 0, paint]]) {
      for (let i = 0; i < inside.length; i++) {
        if (!inside[i]) continue;
        const x = i % size, y = (i - x) / size, left = x * f, top = y * f, right = left + f, bottom = top + f;
        if (x > 0 && !inside[i - 1]) box(left - far, top, left + near, bottom, c);
        if (x + 1 < size && !inside[i + 1]) box(right - near, top, right + far, bottom, c);
        if (y > 0 && !inside[i - size]) box(left, top - far, right, top + near, c);
        if (y + 1 < size && !inside[i + size]) box(left, bottom - near, right, bottom + far, c);
      }
    }
  };
  const fillLayer = (pen, { bins, mask, ignored, size }, { mode, opacity }, called, side) => {
    const layer = sheet(size, "fill");
    if (mode === "heat") bins.forEach((bin, i) => { layer.pixels[i] = heat[bin]; });
    else if (called) called.forEach((is, i) => { if (is && !(ignored && ignored[i])) layer.pixels[i] = mask[i] ? HIT : FALSE; });
    layer.pen.putImageData(layer.image, 0, 0);
    pen.globalAlpha = opacity;
    pen.imageSmoothingEnabled = false; // pixels are what is scored
    pen.drawImage(layer.canvas, 0, 0, side, side);
    pen.globalAlpha = 1;
    pen.imageSmoothingEnabled = true;
  };
  // Draws an image with its map over it. art: as unpacked; look: mode, opacity, tau (a bin, or null for none), whether
  // the map and the outline of the mask are drawn; target: the side in px to come near to, in whole multiples.
  const paint = (canvas, art, look, target) => {
    const { size } = art, side = size * Math.max(1, Math.round(target / size));
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const pen = canvas.getContext("2d");
    pen.drawImage(art.picture, 0, 0, side, side);
    const called = look.tau === null ? null : atLeast(art.bins, look.tau);
    if (look.map && look.mode !== "outline") fillLayer(pen, art, look, called, side);
    const lines = sheet(side, "lines");
    if (look.map && called && look.mode !== "region") trace(lines, size, called, CUT);
    if (look.truth) trace(lines, size, art.mask, TRUTH);
    lines.pen.putImageData(lines.image, 0, 0);
    pen.drawImage(lines.canvas, 0, 0);
  };
  const paintRamp = (canvas) => {
    const ramp = sheet(256, "ramp");
    ramp.pixels.set(viridis);
    canvas.getContext("2d").putImageData(ramp.image, 0, 0);
  };

  return { STEPS, setColours, unpackMap, unpackMask, countArt, paint, paintRamp };
})();

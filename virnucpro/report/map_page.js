"use strict";
// The map: points are drawn by regl-scatterplot; the data are JSON, gzipped and in base64, in the element #data.
(() => {
  const $ = (id) => document.getElementById(id);
  const RAMP = ["#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154"]; // viridis, light first
  const NAMED = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#7f3c8d", "#80ba5a", "#a5aa99",
    "#8c564b", "#17becf", "#bcbd22", "#e7298a", "#1b4f72", "#b15928", "#6a3d9a", "#fb9a99", "#b2df8a", "#cab2d6"];
  const OTHERS = "#bdbdbd";
  const WHILE_MOVED = 6000; // points that are drawn while the map moves, where drawing is slow
  const SLOW = 50; // milliseconds from one frame to the next
  const number = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toLocaleString("en"));

  async function unpack() {
    const bytes = Uint8Array.from(atob($("data").textContent.trim()), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  }

  function mix(colours, share) {
    const at = share * (colours.length - 1), low = Math.min(Math.floor(at), colours.length - 2);
    const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
    return "#" + [0, 1, 2].map((i) => Math.round(part(colours[low], i) + (at - low) * (part(colours[low + 1], i) - part(colours[low], i)))
      .toString(16).padStart(2, "0")).join("");
  }
  const SHADES = Array.from({ length: 64 }, (_, i) => mix(RAMP, i / 63));

  // For each point a number from 0 on: the place of its colour among the colours.
  function encode(column) {
    if (column.kind === "category") {
      const counts = column.levels.map(() => 0);
      for (const code of column.codes) if (code >= 0) counts[code]++;
      const last = Math.min(column.levels.length, NAMED.length);
      return { codes: column.codes.map((code) => (code < 0 || code >= NAMED.length ? last : code)), counts, last,
        colours: [...NAMED.slice(0, last), OTHERS] };
    }
    const known = column.values.filter((value) => value !== null);
    const low = known.reduce((a, b) => Math.min(a, b), Infinity), high = known.reduce((a, b) => Math.max(a, b), -Infinity);
    const isLog = low > 0 && high / low > 20;
    const scale = (value) => (isLog ? Math.log(value) : value);
    const span = scale(high) - scale(low) || 1;
    return { low, high, isLog, colours: [...SHADES, OTHERS],
      codes: column.values.map((value) => (value === null ? 64 : Math.round(63 * (scale(value) - scale(low)) / span))) };
  }

  function legend(map, column, coded) {
    $("by").textContent = column.name;
    $("legend").replaceChildren();
    if (column.kind === "number") {
      const bar = document.createElement("div"), ends = document.createElement("div");
      bar.id = "bar"; ends.id = "ends";
      bar.style.background = `linear-gradient(to right, ${RAMP.join(",")})`;
      for (const end of [coded.low, coded.high]) ends.append(Object.assign(document.createElement("span"), { textContent: number(end) }));
      $("legend").append(bar, ends);
      if (coded.isLog) $("legend").append("logarithmic");
      return;
    }
    const others = coded.codes.reduce((sum, code) => sum + (code === coded.last), 0);
    const entries = column.levels.slice(0, coded.last).map((level, code) => [level, coded.counts[code], code]);
    if (others) entries.push([column.levels.length > coded.last ? "others" : "none", others, coded.last]);
    for (const [level, count, code] of entries) {
      const button = document.createElement("button"), dot = document.createElement("i");
      button.type = "button";
      dot.style.background = coded.colours[code];
      button.append(dot, ...[level, count.toLocaleString("en")].map((text) => Object.assign(document.createElement("span"), { textContent: text })));
      button.setAttribute("aria-pressed", "false");
      button.onclick = () => {
        const isOn = button.getAttribute("aria-pressed") === "true";
        for (const each of $("legend").querySelectorAll("button")) each.setAttribute("aria-pressed", "false");
        button.setAttribute("aria-pressed", String(!isOn));
        map.chosen = isOn ? null : coded.codes.flatMap((own, point) => (own === code ? [point] : []));
        sift(map);
      };
      $("legend").append(button);
    }
  }

  // Those that are chosen in the legend, or all; while the map moves, some of them, and half as fine.
  function sift(map, isThin = false) {
    map.isThin = isThin;
    const all = map.chosen ?? (isThin ? Array.from(map.data.ids, (_, point) => point) : null);
    map.fit();
    const step = isThin ? Math.ceil(all.length / WHILE_MOVED) : 1;
    if (all === null) map.plot.unfilter();
    else map.plot.filter(step > 1 ? all.filter((_, i) => i % step === 0) : all);
  }

  // Without a GPU, a drawing of many points takes a tenth of a second or two: then less is drawn until the map rests.
  function thinWhileMoved(map) {
    let slow = 0, rest = 0, isTimed = false;
    const time = () => requestAnimationFrame((start) => requestAnimationFrame((end) => {
      slow = end - start > SLOW ? slow + 1 : 0;
      isTimed = false;
    }));
    map.plot.subscribe("view", () => {
      $("tip").hidden = true;
      if (!isTimed) { isTimed = true; time(); }
      if (!map.isThin && slow > 2 && (map.chosen ?? map.data.ids).length > WHILE_MOVED) sift(map, true);
      clearTimeout(rest);
      rest = setTimeout(() => { if (map.isThin) sift(map); slow = 0; }, 500);
    });
  }

  function facts(data, point) {
    const said = [["id", data.ids[point]]];
    if (data.descriptions?.[point]) said.push(["description", data.descriptions[point]]);
    for (const column of data.columns) {
      const value = column.kind === "category" ? column.levels[column.codes[point]] : column.values[point];
      if (value !== undefined && value !== null) said.push([column.name, typeof value === "number" ? number(value) : value]);
    }
    if (data.repeats?.[point]) said.push(["same sequence", `${number(data.repeats[point])} more`]);
    return said;
  }

  function show(map, point) {
    map.shown = point;
    $("hint").hidden = point !== null;
    $("facts").replaceChildren();
    for (const [name, value] of point === null ? [] : facts(map.data, point)) {
      $("facts").append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value }));
    }
  }

  function hover(map, point) {
    if (point === null) { $("tip").hidden = true; return; }
    const [x, y] = map.plot.getScreenPosition(point);
    const said = facts(map.data, point);
    $("tip").textContent = said.slice(0, 3).map(([name, value]) => (name === "id" ? value : `${name}: ${value}`)).join(" · ");
    $("tip").hidden = false;
    const width = $("plot").clientWidth, own = $("tip").offsetWidth;
    $("tip").style.left = `${Math.max(0, Math.min(x + 12, width - own - 4))}px`;
    $("tip").style.top = `${Math.max(0, y + 12)}px`;
    show(map, point);
  }

  function find(map, text) {
    const wanted = text.trim().toLowerCase(), { ids, descriptions } = map.data, found = [];
    if (wanted) {
      for (let point = 0; point < ids.length; point++) {
        if (ids[point].toLowerCase().includes(wanted) || descriptions?.[point].toLowerCase().includes(wanted)) found.push(point);
      }
      found.sort((a, b) => (ids[b].toLowerCase() === wanted) - (ids[a].toLowerCase() === wanted));
    }
    map.found = found;
    $("found").hidden = !wanted;
    $("found").replaceChildren(Object.assign(document.createElement("h2"), { textContent: `${number(found.length)} found` }));
    for (const point of found.slice(0, 30)) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: ids[point] });
      button.onclick = () => go(map, point);
      $("found").append(button);
    }
  }

  function go(map, point) {
    show(map, point);
    map.isMoved = true;
    map.plot.select([point], { preventEvent: true });
    const near = map.nearest(point, 40);
    return map.plot.zoomToPoints(near, { padding: 0.3, transition: false });
  }

  async function main() {
    const data = await unpack(), n = data.ids.length;
    const map = (window.virnucproMap = { data, shown: null, found: [], chosen: null, isThin: false, isMoved: false, isDrawn: false });
    document.title = `virnucpro: map of ${data.name}`;
    $("title").textContent = `${data.name} `;
    $("title").append(Object.assign(document.createElement("small"), { textContent: data.shown }));
    $("warning").textContent = data.warning;
    $("warning").hidden = !data.warning;
    for (const name of Object.keys(data.layouts)) $("layout").add(new Option(name, name));
    data.columns.forEach((column, i) => $("colour").add(new Option(column.name, i)));
    // What is drawn is smooth already and copied at once: a buffer of several samples a pixel, which is kept, would cost a third of the time.
    const canvas = document.createElement("canvas");
    canvas.getContext("webgl", { antialias: false, preserveDrawingBuffer: false });
    const renderer = createScatterplot.createRenderer({ canvas });
    const size = () => ({ width: $("plot").clientWidth, height: $("plot").clientHeight });
    renderer.resize(size().width, size().height);
    // All of the square in which the points are: as high as the canvas, or in a higher one as wide.
    const away = () => Math.max(1, size().height / size().width);
    const options = {
      renderer, ...size(), canvas: $("canvas"), backgroundColor: "#ffffff", opacity: n > 5000 ? 0.7 : 0.9, pointSize: n > 20000 ? 3 : n > 2000 ? 4 : n > 300 ? 7 : 10,
      pointColorHover: "#D55E00", pointColorActive: "#D55E00", pointOutlineWidth: 2, pointSizeSelected: 4, showReticle: false,
      cameraDistance: away(),
    };
    map.plot = createScatterplot.default(options);
    map.layout = () => data.layouts[$("layout").value];
    map.nearest = (point, count) => {
      const { x, y } = map.layout(), away = (i) => (x[i] - x[point]) ** 2 + (y[i] - y[point]) ** 2;
      return Array.from(x, (_, i) => i).sort((a, b) => away(a) - away(b)).slice(0, Math.min(count, n));
    };
    map.draw = async () => {
      const { x, y, about } = map.layout(), column = data.columns[$("colour").value], coded = encode(column);
      map.coded = coded;
      map.chosen = null;
      map.isThin = false;
      $("about").textContent = about;
      map.plot.set({ colorBy: "valueA", pointColor: coded.colours });
      await map.plot.draw({ x: x.map((v) => v / 32767.5 - 1), y: y.map((v) => v / 32767.5 - 1), valueA: coded.codes }, { zDataType: "categorical" });
      legend(map, column, coded);
      map.isDrawn = true;
    };
    map.plot.subscribe("pointover", (point) => hover(map, point));
    map.plot.subscribe("pointout", () => hover(map, null));
    map.plot.subscribe("select", ({ points }) => show(map, points[0] ?? null));
    thinWhileMoved(map);
    map.fit = () => {
      const share = map.isThin ? 0.5 : 1, width = size().width * share, height = size().height * share;
      renderer.resize(width, height);
      map.plot.set({ width, height, pointSize: options.pointSize * share });
      options.cameraDistance = away(); // what reset() goes back to
      if (!map.isMoved) map.plot.reset();
    };
    window.addEventListener("resize", () => requestAnimationFrame(map.fit));
    $("layout").onchange = map.draw;
    $("colour").onchange = map.draw;
    $("search").oninput = () => find(map, $("search").value);
    $("search").onkeydown = (event) => { if (event.key === "Enter" && map.found.length) go(map, map.found[0]); };
    for (const kind of ["wheel", "mousedown", "touchstart"]) $("canvas").addEventListener(kind, () => { map.isMoved = true; }, { passive: true });
    $("whole").onclick = () => { map.isMoved = false; map.plot.reset(); };
    await map.draw();
  }

  if (!document.createElement("canvas").getContext("webgl")) {
    $("hint").textContent = "This browser shows no WebGL, which the map is drawn with; plots/map.svg is a picture of it.";
  } else {
    main().catch((error) => { $("hint").textContent = `The map could not be drawn: ${error.message}`; throw error; });
  }
})();

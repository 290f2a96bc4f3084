"use strict";
(() => {
  const COLOURS = {
    light: {
      paper: "#fbfaf7", panel: "#ffffff", ink: "#22262b", muted: "#666d76", rule: "#e3e0d9",
      accent: "#2c5f8f", bar: "#2c5f8f", second: "#b9542f",
      sequential: ["#f5f2ea", "#d3dde4", "#a3bfd4", "#6c9abd", "#3a719f", "#1b4a75", "#0c2a48"],
      diverging: ["#7d2f14", "#b9542f", "#dd9f84", "#f5f2ea", "#93b4cd", "#3a719f", "#0c2a48"],
    },
    dark: {
      paper: "#15171a", panel: "#1b1e22", ink: "#e7e5e0", muted: "#9ba2ab", rule: "#30353b",
      accent: "#86b6e2", bar: "#45759f", second: "#f0a883",
      sequential: ["#1d2126", "#22364a", "#2a5071", "#3a739e", "#5c9bc9", "#93c3e6", "#dcedfa"],
      diverging: ["#f4b99e", "#d9835c", "#7d4932", "#1d2126", "#2f5c82", "#5c9bc9", "#dcedfa"],
    },
  };
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const preference = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme || (preference.matches ? "dark" : "light");

  // "@name" stands for a colour of the theme, or a scale of colours.
  function coloured(value, colours) {
    if (typeof value === "string" && value[0] === "@") {
      const colour = colours[value.slice(1)];
      return Array.isArray(colour) ? colour.map((c, k) => [k / (colour.length - 1), c]) : colour;
    }
    if (Array.isArray(value)) return value.map((v) => coloured(v, colours));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, colours)]));
    }
    return value;
  }

  function layoutOf(figure, place, colours) {
    const narrow = place.clientWidth < 520;
    const axis = {
      gridcolor: colours.rule, zerolinecolor: colours.rule, linecolor: colours.rule, tickcolor: colours.rule,
      tickfont: { color: colours.muted, size: narrow ? 10 : 12 }, automargin: true, fixedrange: narrow,
    };
    const title = (own) => own && own.title ? { title: { ...own.title, font: { size: 12, color: colours.muted }, standoff: 8 } } : {};
    const own = coloured(figure.layout, colours);
    const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: colours.ink };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font,
      margin: { l: 8, r: 8, t: 34, b: 8 }, autosize: true, showlegend: false,
      hoverlabel: { bgcolor: colours.panel, bordercolor: colours.muted, font: { ...font, size: 13 }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.muted, activecolor: colours.accent },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: colours.muted }, itemclick: false, itemdoubleclick: false },
      dragmode: narrow || matchMedia("(pointer: coarse)").matches ? false : "zoom",
      ...own,
      xaxis: { ...axis, ...own.xaxis, ...title(own.xaxis) },
      yaxis: { ...axis, ...own.yaxis, ...title(own.yaxis) },
    };
  }

  function dataOf(figure, place, colours) {
    const narrow = place.clientWidth < 520;
    return coloured(figure.data, colours).map((trace) => {
      if (!trace.colorbar) return trace;
      const font = { color: colours.muted, size: narrow ? 10 : 12 };
      const bar = { ...trace.colorbar, tickfont: font, title: { ...trace.colorbar.title, font } };
      return narrow
        ? { ...trace, colorbar: { ...bar, orientation: "h", y: -0.02, yanchor: "top", title: { ...bar.title, side: "top" } } }
        : { ...trace, colorbar: bar };
    });
  }

  // One after the other: Plotly leaves parts of a figure behind that is drawn anew before it is finished.
  let drawing = Promise.resolve();
  const draw = () => (drawing = drawing.then(drawAll));

  function drawAll() {
    const colours = COLOURS[theme()];
    button.textContent = theme() === "dark" ? "Light" : "Dark";
    const options = {
      responsive: true, displaylogo: false,
      modeBarButtons: [["zoom2d", "resetScale2d", "toImage"]],
    };
    return Promise.all(Object.entries(figures).map(([id, figure]) => {
      const place = document.getElementById(id);
      return Plotly.newPlot(place, dataOf(figure, place, colours), layoutOf(figure, place, colours), options);
    }));
  }

  const remember = (value) => { try { localStorage.setItem("ntk-report-theme", value); } catch { /* of a file */ } };
  try {
    const stored = localStorage.getItem("ntk-report-theme");
    if (stored === "light" || stored === "dark") root.dataset.theme = stored;
  } catch { /* of a file */ }

  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    remember(root.dataset.theme);
    draw();
  });
  preference.addEventListener("change", draw);
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; draw(); });
  addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; draw(); });
  let width = innerWidth;
  addEventListener("resize", () => {
    if ((innerWidth < 560) !== (width < 560)) draw();
    width = innerWidth;
  });

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.body.appendChild(Object.assign(document.createElement("textarea"), { value: text }));
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }
  function cellsOf(table) {
    return [...table.querySelectorAll("tr")].map((row) => [...row.cells].map((cell) => cell.textContent));
  }

  // The matrix of a heat map, with its labels.
  function matrixOf(trace) {
    const bytes = Uint8Array.from(atob(trace.z.bdata), (c) => c.charCodeAt(0));
    const values = new Float32Array(bytes.buffer), n = trace.x.length;
    return [["", ...trace.x], ...trace.y.map((label, k) => [label, ...values.subarray(k * n, (k + 1) * n)])];
  }

  document.querySelectorAll("button.copy").forEach((one) => one.addEventListener("click", async () => {
    const text = one.textContent, id = one.dataset.figure;
    const rows = id ? matrixOf(figures[id].data[0]) : cellsOf(one.parentElement);
    await copy(rows.map((row) => row.join("\t")).join("\n"));
    one.textContent = "Copied";
    setTimeout(() => { one.textContent = text; }, 1500);
  }));

  draw().then(() => { root.dataset.drawn = "yes"; });
})();

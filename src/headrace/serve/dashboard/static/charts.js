// Draws the numbers that stand in a figure, and again when they or its width change.
"use strict";

const COLOURS = ["#2f7fc4", "#d9822b", "#3a9d5d", "#b5509c", "#8a7a2f", "#c4473a", "#5b6ee1"];
const FEW = 40; // points of a line that are seen one by one
const plots = new Map();

function renewChart(figure, text) {
  if (figure.dataset.drawn === text) return;
  draw(figure, text);
}

function draw(figure, text) {
  figure.dataset.drawn = text;
  const values = JSON.parse(text);
  const box = figure.querySelector(".plot");
  const names = values.series.map((one) => one.name);
  const data = [values.x, ...values.series.map((one) => one.y)];
  const known = plots.get(figure);
  if (!values.x.length || !names.length) {
    known?.plot.destroy();
    plots.delete(figure);
    box.textContent = "nothing yet";
    return;
  }
  if (known && known.names.join() === names.join()) {
    known.plot.setData(data);
    return;
  }
  known?.plot.destroy();
  box.textContent = "";
  plots.set(figure, { names, plot: new uPlot(options(figure, box, values), data, box) });
}

function options(figure, box, values) {
  const style = getComputedStyle(figure); // its border has the colour of lines, resolved
  const grid = { stroke: style.borderTopColor, width: 1 };
  const axis = { stroke: style.color, font: "11px system-ui, sans-serif", grid, ticks: { show: false } };
  const show = (_, value) => (value === null || value === undefined ? "–" : number(value) + values.unit);
  return {
    width: box.clientWidth,
    height: figure.classList.contains("tall") ? 280 : 170,
    tzDate: (second) => uPlot.tzDate(new Date(second * 1000), "Etc/UTC"),
    scales: {
      // A single moment has a minute on either side, not years.
      x: { range: (_, first, last) => (first === last ? [first - 60, last + 60] : [first, last]) },
      y: { range: (_, low, high) => [Math.min(0, low ?? 0), (high ?? 0) <= 0 ? 1 : high * 1.05] },
    },
    axes: [{ ...axis, values: (_, seconds, __, ___, step) => seconds.map((at, i) => moment(at, step, i === 0)) }, { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => number(tick) + values.unit) }],
    series: [
      { label: "UTC", value: (_, at) => (at === null ? "–" : moment(at, 1, true)) },
      ...values.series.map((one, i) => ({
        label: one.name,
        stroke: COLOURS[i % COLOURS.length],
        width: 1.5,
        spanGaps: true,
        points: { show: one.y.filter((value) => value !== null).length < FEW },
        value: show,
      })),
    ],
  };
}

// A moment in UTC; with its day where that is new.
function moment(second, step, isFirst) {
  const date = new Date(second * 1000);
  if (Number.isNaN(date.getTime())) return String(second); // beyond the years that dates have
  const [day, time] = date.toISOString().split("T");
  if (step >= 86_400) return day;
  const clock = step < 60 ? time.slice(0, 8) : time.slice(0, 5);
  return isFirst || clock.startsWith("00:00") ? `${clock}\n${day}` : clock;
}

function number(value) {
  return value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 10 ? 2 : 0 });
}

function drawAll() {
  for (const figure of document.querySelectorAll(".chart")) {
    draw(figure, figure.querySelector("script").textContent);
  }
}

const sized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const known = plots.get(target.closest(".chart"));
    if (known && target.clientWidth !== known.plot.width) {
      known.plot.setSize({ width: target.clientWidth, height: known.plot.height });
    }
  }
});

drawAll();
for (const box of document.querySelectorAll(".plot")) sized.observe(box);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const { plot } of plots.values()) plot.destroy();
  plots.clear();
  drawAll();
});

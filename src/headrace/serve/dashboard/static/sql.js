// The box where one writes SQL: runs it, shows rows, remembers what was run, saves answers.
"use strict";

const KEPT = 50;
const ROWS = 1000;
const PLACE = `headrace-sql-${location.host}`;
const box = document.getElementById("statement");
const answer = document.getElementById("answer");

async function post(format, limit) {
  const asked = await fetch(`/v1/sql?format=${format}&timeout=30${limit ? `&limit=${limit}` : ""}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ sql: box.value }),
  });
  if (!asked.ok) {
    const { error } = await asked.json();
    throw new Error(`${error.message}. ${error.hint}`);
  }
  return asked;
}

async function run() {
  const started = performance.now();
  answer.textContent = "running …";
  try {
    const asked = await post("json", ROWS);
    const { rows } = await asked.json();
    const took = Math.round(performance.now() - started);
    show(rows, asked.headers.get("x-headrace-truncated") === "true", took);
    remember(box.value);
  } catch (error) {
    answer.replaceChildren(element("p", error.message, "fault"));
  }
}

function show(rows, isMore, took) {
  const first = isMore ? `the first ${rows.length.toLocaleString("en")} rows` : `${rows.length.toLocaleString("en")} ${rows.length === 1 ? "row" : "rows"}`;
  const told = element("p", `${first}, ${took} ms`, "quiet");
  if (!rows.length) return answer.replaceChildren(told);
  const names = Object.keys(rows[0]);
  const isNumber = names.map((name) => rows.every((row) => row[name] === null || typeof row[name] === "number"));
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  names.forEach((name, i) => head.append(element("th", name, isNumber[i] ? "number" : "")));
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    names.forEach((name, i) => {
      const value = row[name];
      const text = value === null ? "null" : typeof value === "object" ? JSON.stringify(value) : String(value);
      line.append(element("td", text, value === null ? "none" : isNumber[i] ? "number" : ""));
    });
  }
  const wide = element("div", "", "wide");
  wide.tabIndex = 0;
  wide.append(table);
  return answer.replaceChildren(told, wide);
}

async function save(format) {
  try {
    const file = await (await post(format)).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `answer.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    answer.replaceChildren(element("p", error.message, "fault"));
  }
}

function element(name, text, class_) {
  const made = document.createElement(name);
  made.textContent = text;
  if (class_) made.className = class_;
  return made;
}

// --- history

function history() {
  try {
    return JSON.parse(localStorage.getItem(PLACE)) ?? [];
  } catch {
    return [];
  }
}

function remember(statement) {
  const others = history().filter((one) => one !== statement);
  localStorage.setItem(PLACE, JSON.stringify([statement, ...others].slice(0, KEPT)));
  list();
}

function list() {
  const items = history().map((statement) => {
    const button = element("button", statement, "plain");
    button.type = "button";
    button.addEventListener("click", () => {
      box.value = statement;
      box.focus();
    });
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  document.getElementById("history").replaceChildren(...items);
}

document.getElementById("sql").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
});
document.getElementById("format").addEventListener("change", (event) => {
  if (event.target.value) save(event.target.value);
  event.target.value = "";
});
document.getElementById("forget").addEventListener("click", () => {
  localStorage.removeItem(PLACE);
  list();
});
document.addEventListener("click", (event) => {
  const name = event.target.dataset?.insert;
  if (!name) return;
  event.preventDefault();
  const quoted = /^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
  box.setRangeText(quoted, box.selectionStart, box.selectionEnd, "end");
  box.focus();
});
list();

// What the pages do: each button asks a path of /v1, says what came of it, and renews the page.
"use strict";

function say(text, isFault) {
  const said = document.getElementById("said");
  said.textContent = text;
  said.classList.toggle("fault", Boolean(isFault));
}

async function ask(method, path, body) {
  const headers = body === undefined ? {} : { "content-type": "application/json" };
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const told = await answer.json();
  if (!answer.ok) throw new Error(`${told.error.message}. ${told.error.hint}`);
  return told;
}

async function act(button, work) {
  button.disabled = true;
  try {
    say(await work());
  } catch (error) {
    say(error.message, true);
  }
  button.disabled = false;
  count();
  document.dispatchEvent(new Event("acted"));
}

// --- dead letters

function chosen() {
  return [...document.querySelectorAll("input[name=letter]:checked, input[name=letter][type=hidden]")];
}

function count() {
  const n = chosen().length;
  const told = document.getElementById("chosen");
  if (!told) return;
  told.textContent = n ? `${n} chosen` : "none chosen";
  for (const button of document.querySelectorAll("[data-letters]")) button.disabled = !n;
  const all = document.querySelector("[data-all]");
  if (all) all.checked = n > 0 && n === document.querySelectorAll("input[name=letter]").length;
}

function letters(button) {
  const ids = chosen().map((box) => box.value);
  const what = button.dataset.letters;
  const body = what === "discard" ? { ids, why: document.getElementById("why").value } : { ids };
  return act(button, async () => {
    const told = await ask("POST", `/v1/dead-letters/${what}`, body);
    for (const box of chosen()) box.checked = false;
    const done = Object.values(told)[0].length;
    return `${done} ${done === 1 ? "letter" : "letters"} ${what}${what === "replay" ? "ed" : "ed"}`;
  });
}

// --- sources

function source(button) {
  const { source: what, name } = button.dataset;
  const path = `/v1/sources/${encodeURIComponent(name)}`;
  if (what === "remove" && !confirm(`Remove ${name}? What it collected stays.`)) return undefined;
  return act(button, async () => {
    if (what === "remove") await ask("DELETE", path);
    else await ask("POST", `${path}/${what}`);
    return `${name}: ${what}${what.endsWith("e") ? "d" : "ed"}`;
  });
}

function add(form) {
  const values = {};
  for (const field of form.querySelectorAll("fieldset:not([disabled]) [data-option]")) {
    if (field.value !== "") values[field.dataset.option] = typed(field);
  }
  const { name, kind, topic } = form.elements;
  const body = { name: name.value, kind: kind.value, topic: topic.value, options: values };
  return act(form.querySelector("button"), async () => {
    await ask("POST", "/v1/sources", body);
    form.reset();
    showKind(form);
    return `${body.name} added`;
  });
}

function typed(field) {
  const types = field.dataset.type;
  if (types.includes("bool")) return field.value === "true";
  const isNumber = types.includes("int") || types.includes("float");
  return isNumber && field.value.trim() !== "" && !Number.isNaN(Number(field.value)) ? Number(field.value) : field.value;
}

function showKind(form) {
  for (const set of form.querySelectorAll("[data-kind]")) {
    set.hidden = set.disabled = set.dataset.kind !== form.elements.kind.value;
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.letters) letters(button);
  if (button?.dataset.source) source(button);
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-all]")) {
    for (const box of document.querySelectorAll("input[name=letter]")) box.checked = event.target.checked;
  }
  const form = event.target.closest("#add-source");
  if (form && event.target.name === "kind") showKind(form);
  count();
});

document.addEventListener("submit", (event) => {
  if (event.target.id !== "add-source") return;
  event.preventDefault();
  add(event.target);
});

document.addEventListener("renewed", count);
count();

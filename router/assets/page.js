// The page: lists what is served, sends one request, and follows it until it is done.
// It asks only paths beside its own, and puts text into the page as text, never as HTML.

import { curl, pretty, python } from "./snippets.js";

const REFRESH_MS = 2000;
const WAIT_S = 20;
const SHOWN_HEADERS = ["Route", "Path", "Variant", "Deadline-Met", "Predicted-Ms", "Queued-Ms", "Retry-After"];

const $ = (id) => document.getElementById(id);
const base = new URL(".", document.baseURI).href.replace(/\/$/, "");
const state = { key: "", document: null, model: null, queued: null };

function make(tag, text = "", attributes = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const ask = (path, options = {}) => {
  const headers = { ...options.headers };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  return fetch(`${base}/${path}`, { ...options, headers, redirect: "error" });
};

const ms = (value) => (value === undefined ? "–" : value < 1 ? `${(value * 1000).toFixed(0)} µs`
  : value < 10000 ? `${value.toPrecision(3)} ms` : `${(value / 1000).toFixed(1)} s`);
const bytes = (size) => (size < 1e6 ? `${(size / 1e3).toFixed(1)} kB` : `${(size / 1e6).toFixed(1)} MB`);

function pairs(list, entries) {
  list.replaceChildren(...entries.map(([name, value]) => {
    const pair = document.createElement("div");
    pair.append(make("dt", name), make("dd", String(value)));
    return pair;
  }));
}

function trouble(text) {
  $("trouble").hidden = !text;
  $("trouble").textContent = text;
}

async function load() {
  trouble("");
  try {
    const reply = await ask("openapi.json");
    const told = await reply.json();
    if (!reply.ok) {
      $("server").textContent = reply.status === 401 ? "an API key is needed" : "not available";
      trouble(told.detail);
      if (reply.status === 401) $("key").focus();
      return;
    }
    state.document = told;
  } catch (error) {
    $("server").textContent = "not reached";
    trouble(`The server does not answer: ${error.message}`);
    return;
  }
  $("version").textContent = state.document.info.version;
  const names = Object.keys(state.document["x-models"]);
  $("models").replaceChildren(...names.map((name) => {
    const button = make("button", name, { type: "button" });
    button.addEventListener("click", () => choose(name));
    return button;
  }));
  if (!$("budget").value) $("budget").value = state.document["x-limits"].default_budget_ms;
  if (names.length) choose(names.includes(state.model) ? state.model : names[0]);
  else trouble("This key may use no model.");
}

const facts = () => state.document["x-models"][state.model];
const form = (tensor) => `${tensor.name} ${tensor.datatype} [${tensor.shape.map((n) => (n < 0 ? "n" : n)).join(", ")}]`;

function choose(name) {
  state.model = name;
  for (const button of $("models").children) {
    button.setAttribute("aria-pressed", String(button.textContent === name));
  }
  const about = facts();
  $("signature").textContent =
    `Takes ${about.inputs.map(form).join(", ")}; gives ${about.outputs.map(form).join(", ")}.`;
  const chosen = $("variant").value;
  const names = Object.keys(about.variants);
  $("variant").replaceChildren(make("option", "the router's choice", { value: "" }),
    ...names.map((variant) => make("option", variant, { value: variant })));
  $("variant").value = names.includes(chosen) ? chosen : "";
  $("variants").replaceChildren(...names.map((variant) => variantRow(variant, about)));
  example();
  refresh();
}

function variantRow(name, about) {
  const one = about.variants[name];
  const places = [about.online.includes(name) ? "online" : "", about.batch === name ? "queue" : ""];
  const head = make("th", name, { scope: "row" });
  head.append(make("small", [one.runtime, ...places.filter(Boolean)].join(", ")));
  const quality = make("td", (one.quality[one.metric] ?? 0).toFixed(3));
  quality.append(make("small", one.metric));
  head.append(make("small", bytes(one.size_bytes)));
  const first = one.latency[0];
  const time = make("td", ms(first?.median_ms));
  time.append(make("small", `p99 ${ms(first?.p99_ms)}`));
  const row = document.createElement("tr");
  row.append(head, quality, time, make("td", "–", { "data-now": name }));
  return row;
}

function example() {
  const operation = state.document.paths[`/v2/models/${state.model}/infer`].post;
  $("body").value = pretty(operation.requestBody.content["application/json"].examples.row.value);
  snippets();
}

async function refresh() {
  if (!state.model || document.hidden) return;
  const model = state.model;
  try {
    const [ready, reply] = await Promise.all([ask("v2/health/ready"), ask(`v2/models/${model}/stats`)]);
    $("server").textContent = ready.ok ? "ready" : "not ready yet";
    if (!reply.ok || model !== state.model) return;
    showLoad(await reply.json());
  } catch {
    $("server").textContent = "not reached";
  }
}

function showLoad({ online, queue }) {
  const entries = [];
  if (online) {
    const rows = Object.values(online.batches).reduce((sum, one) => sum + one.rows, 0);
    entries.push(["online: work ahead", ms(total(online.busy_ms) + total(online.waiting_ms))]);
    entries.push(["online: rows so far", rows]);
    for (const cell of $("variants").querySelectorAll("[data-now]")) {
      cell.textContent = ms(online.predicted_ms[cell.dataset.now]);
    }
  }
  if (queue) {
    entries.push(["queue: jobs waiting", queue.waiting_jobs], ["queue: rows waiting", queue.waiting_rows]);
    entries.push(["queue: jobs running", queue.leased_jobs], ["queue: done so far", queue.totals.done ?? 0]);
  }
  pairs($("load"), entries);
}

const total = (value) => (typeof value === "number" ? value
  : value && typeof value === "object" ? Object.values(value).reduce((sum, one) => sum + total(one), 0) : 0);

function request() {
  const variant = $("variant").value;
  const headers = { "Content-Type": "application/json", "Latency-Budget-Ms": $("budget").value };
  if ($("async").checked) headers.Prefer = "respond-async";
  const path = `v2/models/${state.model}${variant ? `/versions/${variant}` : ""}/infer`;
  return { path, headers, body: $("body").value, variant };
}

function snippets() {
  if (!state.model) return;
  const { path, headers, body, variant } = request();
  const secured = Boolean(state.document.components.securitySchemes);
  const about = { base, url: `${base}/${path}`, headers, body, variant, secured, model: state.model };
  $("curl").textContent = curl(about);
  $("python").textContent = python({ ...about, budget: $("budget").value, async: $("async").checked });
}

async function send(event) {
  event.preventDefault();
  if (!state.model) return;
  const { path, headers, body } = request();
  const began = performance.now();
  busy(true);
  say("sent, waiting for the answer…");
  pairs($("facts"), []);
  $("result").textContent = "";
  try {
    let reply = await ask(path, { method: "POST", headers, body });
    while (reply.status === 202) {
      const told = await reply.json();
      state.queued = told.id;
      $("cancel").hidden = false;
      say(`queued as ${told.id} (${told.state}), following it…`);
      describe(reply, began, told);
      reply = await ask(`v2/requests/${encodeURIComponent(told.id)}?wait=${WAIT_S}`);
    }
    const text = await reply.text();
    let told = text;
    try {
      told = JSON.parse(text);
    } catch { /* shown as it is */ }
    describe(reply, began, told);
    if (reply.ok) say(`${reply.status}: answered`, "good");
    else say(`${reply.status}: ${told.title ?? reply.statusText}. ${told.detail ?? ""}`, "bad");
  } catch (error) {
    say(`No answer: ${error.message}`, "bad");
  } finally {
    state.queued = null;
    $("cancel").hidden = true;
    busy(false);
    refresh();
  }
}

function busy(yes) {
  $("send").disabled = yes;
  $("answer").setAttribute("aria-busy", String(yes));
}

function say(text, kind = "") {
  $("answer").hidden = false;
  $("status").textContent = text;
  $("status").className = kind;
}

function describe(reply, began, told) {
  const entries = [["Status", reply.status], ["Here, in all", ms(performance.now() - began)]];
  for (const name of SHOWN_HEADERS) {
    const value = reply.headers.get(name);
    if (value !== null) entries.push([name, value]);
  }
  pairs($("facts"), entries);
  $("result").textContent = typeof told === "string" ? told : pretty(told);
}

async function cancel() {
  if (!state.queued) return;
  try {
    await ask(`v2/requests/${encodeURIComponent(state.queued)}`, { method: "DELETE" });
  } catch (error) {
    say(`Not cancelled: ${error.message}`, "bad");
  }
}

async function copy(button) {
  const source = $(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    $("copied").textContent = `${button.dataset.copy} copied`;
  } catch {
    getSelection().selectAllChildren(source);
    $("copied").textContent = "selected: copy it with the keyboard";
  }
}

$("form").addEventListener("submit", send);
$("form").addEventListener("input", snippets);
$("reset").addEventListener("click", () => state.model && example());
$("cancel").addEventListener("click", cancel);
$("body").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  load();
});
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, REFRESH_MS);
load();

// The page: a question, its answer as it comes, two weights to drag. What is asked stays in this browser (localStorage);
// nothing is fetched but from the service that sent this file. Text from the model is only ever set as text.

import { events, parts } from "./stream.js";
import { NAMES, WORDS, preferred, say } from "./words.js";

const SETTINGS = "mindmerger.settings";
const HISTORY = "mindmerger.history";
const KEY = "mindmerger.key";
const KEPT = 100;
const PATIENCE = 250; // ms that a dragged weight rests before the question is asked anew
const EXAMPLES = [
  ["es", "¿Cuánto es 15 + 27?"],
  ["sw", "Maria ana vitabu 12. Anapata 5. Ana vitabu vingapi?"],
  ["hi", "15 और 27 का योग क्या है?"],
  ["ar", "لدى سامي 12 كتابًا واشترى 5 كتب أخرى. كم كتابًا لديه؟"],
  ["bn", "রিনার ১২টি আপেল আছে। সে আরও ৫টি পায়। তার কয়টি আপেল আছে?"],
];

const $ = (id) => document.getElementById(id);
const read = (name, fallback, store = localStorage) => {
  try {
    return JSON.parse(store.getItem(name)) ?? fallback;
  } catch {
    return fallback; // storage is off, or holds what somebody else wrote
  }
};
const write = (name, value, store = localStorage) => {
  try {
    store.setItem(name, JSON.stringify(value));
  } catch {
    // storage is off or full: the page works without it
  }
};

const settings = { language: preferred(navigator.languages ?? []), theme: "auto", ...read(SETTINGS, {}) };
let about = null; // what the service says of its model
let model = null;
let weights = { encoder: null, llm: null }; // null: the model's own
let running = null; // AbortController of the answer that is coming
let asked = ""; // the question that the weights are for
let timer = 0;

const word = (key, figures) => say(settings.language, key, figures);

// ------------------------------------------------------------------------------------------------- appearance

function show_words() {
  document.documentElement.lang = settings.language;
  for (const one of document.querySelectorAll("[data-word]")) one.textContent = word(one.dataset.word);
  for (const one of document.querySelectorAll("[data-label]")) one.setAttribute("aria-label", word(one.dataset.label));
  show_languages();
  show_weights();
  show_history();
}

function show_theme() {
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
}

function language_name(code) {
  if (code === "unknown") return word("unknown");
  try {
    return new Intl.DisplayNames([settings.language], { type: "language" }).of(code) ?? code;
  } catch {
    return code;
  }
}

function show_languages() {
  const select = $("language");
  const before = select.value;
  select.replaceChildren(new Option(word("language_auto"), ""));
  for (const code of about?.gate ? about.languages : []) select.add(new Option(language_name(code), code));
  select.value = before;
  $("language-row").hidden = !about?.gate;
}

const number = (value, digits = 2) =>
  new Intl.NumberFormat(settings.language, { maximumFractionDigits: digits, useGrouping: false }).format(value);

function show_weights(used = {}) {
  for (const name of ["encoder", "llm"]) {
    const own = weights[name] === null;
    const slider = $(name);
    const value = used[name] ?? weights[name];
    if (own && value !== null && value !== undefined) slider.value = String(value);
    const shown = own ? Number(slider.value) : weights[name];
    const left_out = used[name] === 0;
    const text = left_out ? `${number(0)}: ${word("left_out")}` : word(own ? "own" : "set", { weight: number(shown) });
    $(`${name}-value`).textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }
  $("release").disabled = weights.encoder === null && weights.llm === null;
}

function show_detected(distribution) {
  const box = $("detected");
  box.replaceChildren();
  if (!distribution) {
    box.append(paragraph(about && !about.gate ? word("no_gate") : "", "hint"));
    return;
  }
  box.append(paragraph(word("detected"), "hint"));
  for (const [code, share] of Object.entries(distribution).slice(0, 3)) {
    const row = document.createElement("div");
    row.className = "share";
    const name = document.createElement("span");
    name.textContent = language_name(code);
    const meter = document.createElement("meter");
    meter.value = share;
    meter.setAttribute("aria-label", language_name(code));
    const figure = document.createElement("span");
    figure.textContent = new Intl.NumberFormat(settings.language, { style: "percent" }).format(share);
    row.append(name, meter, figure);
    box.append(row);
  }
}

function paragraph(text, kind) {
  const found = document.createElement("p");
  found.className = kind;
  found.textContent = text;
  return found;
}

function show_text(reasoning) {
  const nodes = parts(reasoning).map((part) => {
    if ("text" in part) return document.createTextNode(part.text);
    const step = document.createElement("span");
    step.className = "step";
    step.textContent = part.value === null ? part.step : `${part.step} = ${part.value}`;
    return step;
  });
  $("text").replaceChildren(...nodes);
}

function show_error(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

// ---------------------------------------------------------------------------------------------------- history

function show_history() {
  const entries = read(HISTORY, []).filter((one) => typeof one?.question === "string");
  const items = entries.map((entry, index) => {
    const item = document.createElement("li");
    const open = document.createElement("button");
    open.type = "button";
    open.className = "open";
    open.dir = "auto";
    open.textContent = entry.answer ? `${entry.question} → ${entry.answer}` : entry.question;
    open.addEventListener("click", () => reopen(entry));
    const forget = document.createElement("button");
    forget.type = "button";
    forget.textContent = "×";
    forget.setAttribute("aria-label", word("forget_one", { question: entry.question.slice(0, 60) }));
    forget.addEventListener("click", () => {
      write(HISTORY, read(HISTORY, []).filter((_one, place) => place !== index));
      show_history();
      $("history-title").focus();
    });
    item.append(open, forget);
    return item;
  });
  $("history").replaceChildren(...items);
  $("forget").hidden = !items.length;
}

function remember(entry) {
  const others = read(HISTORY, []).filter((one) => one?.question !== entry.question);
  write(HISTORY, [entry, ...others].slice(0, KEPT));
  show_history();
}

function reopen(entry) {
  stop();
  asked = entry.question;
  $("question").value = entry.question;
  weights = { encoder: entry.weights?.encoder ?? null, llm: entry.weights?.llm ?? null };
  $("result").hidden = false;
  $("asked").textContent = entry.question;
  show_error("");
  show_detected(entry.language);
  show_weights(entry.used);
  show_text(String(entry.text ?? ""));
  show_final(entry.answer ?? null, entry.whole !== false);
  $("figures").textContent = "";
  $("question").focus();
}

// ------------------------------------------------------------------------------------------------------ asking

function headers() {
  const key = $("key").value || read(KEY, "", sessionStorage);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function body(question) {
  const extension = {};
  if (weights.encoder !== null) extension.encoder_weight = weights.encoder;
  if (weights.llm !== null) extension.llm_weight = weights.llm;
  if ($("language").value) extension.language = $("language").value;
  const messages = [{ role: "user", content: question }];
  return { model, stream: true, stream_options: { include_usage: true }, messages, mindmerger: extension };
}

function show_final(answer, whole) {
  $("final").hidden = !whole;
  $("number").textContent = answer ?? word("none");
}

function busy(is) {
  $("result").setAttribute("aria-busy", String(is));
  $("stop").disabled = !is;
}

function stop() {
  clearTimeout(timer);
  running?.abort();
}

async function ask(question) {
  stop();
  const mine = (running = new AbortController());
  asked = question;
  busy(true);
  show_error("");
  $("result").hidden = false;
  $("asked").textContent = question;
  $("final").hidden = true;
  $("figures").textContent = "";
  show_text("");
  $("status").textContent = word("waiting");
  try {
    await answer(question, mine.signal);
  } catch (error) {
    if (running === mine) failed(error, mine.signal.aborted);
  } finally {
    if (running === mine) {
      running = null;
      busy(false);
    }
  }
}

async function answer(question, signal) {
  const response = await request("/v1/chat/completions", { method: "POST", body: JSON.stringify(body(question)), signal });
  let text = "";
  let last = null;
  for await (const event of events(response.body.getReader())) {
    if (signal.aborted) throw signal.reason;
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    const extension = event.mindmerger;
    if (!choice) {
      show_figures(event.usage.completion_tokens, last);
      continue;
    }
    if (extension && !choice.finish_reason) {
      $("status").textContent = word("answering");
      show_detected(extension.language);
      show_weights({ encoder: extension.encoder_weight, llm: extension.llm_weight });
    }
    if (choice.delta.content) show_text((text += choice.delta.content));
    if (choice.finish_reason) finished(question, text, (last = extension));
  }
}

/** A response that is one; waits and asks again where the service says when. */
async function request(path, options = {}) {
  for (;;) {
    const response = await fetch(path, { ...options, headers: headers(), cache: "no-store", credentials: "omit" });
    if (response.ok) return response;
    const problem = (await response.json().catch(() => null))?.error;
    if (response.status === 429) {
      const seconds = Number(response.headers.get("Retry-After")) || 1;
      $("status").textContent = word("busy", { seconds: number(seconds) });
      await new Promise((resolve, reject) => {
        setTimeout(resolve, seconds * 1000);
        options.signal?.addEventListener("abort", () => reject(options.signal.reason), { once: true });
      });
      continue;
    }
    if (response.status === 401) {
      $("key-row").hidden = false;
      $("key").focus();
      throw new Error(word("need_key"));
    }
    throw new Error(problem?.message ?? `${response.status}`);
  }
}

function finished(question, text, extension) {
  const used = { encoder: extension.encoder_weight, llm: extension.llm_weight };
  show_detected(extension.language);
  show_weights(used);
  show_final(extension.answer, true);
  $("status").textContent = word("done", { answer: extension.answer ?? word("none") });
  remember({ question, text, answer: extension.answer, language: extension.language, weights: { ...weights }, used });
}

function show_figures(tokens, { finish_reason, timings }) {
  const seconds = number(timings.total_ms / 1000);
  const sentences = [word("figures", { tokens, seconds, speed: number(timings.tokens_per_second ?? 0, 0) })];
  if (finish_reason === "length") sentences.push(word("cut", { tokens }));
  $("figures").textContent = sentences.join(" ");
}

function failed(error, aborted) {
  $("status").textContent = aborted ? word("stopped") : "";
  if (aborted) return;
  const sentence = error instanceof TypeError ? word("lost") : error.message === "cut" ? word("cut_off") : error.message;
  show_error(sentence);
}

// ------------------------------------------------------------------------------------------------------- events

function weigh(name) {
  weights[name] = Number($(name).value);
  show_weights();
  clearTimeout(timer);
  if (asked) timer = setTimeout(() => ask(asked), PATIENCE);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (question) ask(question);
});
$("question").addEventListener("keydown", (event) => {
  // Enter in the middle of composing a character (Hindi, Chinese, …) belongs to the keyboard
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) stop();
});
$("stop").addEventListener("click", () => {
  stop();
  $("question").focus();
});
for (const name of ["encoder", "llm"]) $(name).addEventListener("input", () => weigh(name));
$("release").addEventListener("click", () => {
  weights = { encoder: null, llm: null };
  for (const name of ["encoder", "llm"]) $(name).value = "1";
  show_weights();
  if (asked) ask(asked);
});
$("language").addEventListener("change", () => asked && ask(asked));
$("key").addEventListener("change", () => {
  write(KEY, $("key").value, sessionStorage);
  start();
});
$("forget").addEventListener("click", () => {
  write(HISTORY, []);
  show_history();
  $("question").focus();
});
for (const [name, element] of [["language", $("interface")], ["theme", $("theme")]]) {
  element.addEventListener("change", () => {
    settings[name] = element.value;
    write(SETTINGS, settings);
    show_theme();
    show_words();
  });
}

async function start() {
  try {
    const listed = await (await request("/v1/models")).json();
    model = listed.data[0].id;
    about = listed.data[0].mindmerger;
    $("model").textContent = `${model}: ${about.encoder} + ${about.llm}`;
    show_error("");
    show_languages();
  } catch (error) {
    failed(error, false);
  }
}

if (!(settings.language in WORDS)) settings.language = "en";
for (const [code, name] of Object.entries(NAMES)) $("interface").add(new Option(name, code));
$("interface").value = settings.language;
$("theme").value = settings.theme;
for (const [code, question] of EXAMPLES) {
  const button = document.createElement("button");
  button.type = "button";
  button.lang = code;
  button.dir = "auto";
  button.textContent = question;
  button.addEventListener("click", () => {
    $("question").value = question;
    ask(question);
  });
  $("examples").append(button);
}
show_theme();
show_words();
start();

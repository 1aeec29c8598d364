// The page: images, a question, its answer. Everything is asked of the server that the page comes from.
"use strict";

const at = (id) => document.getElementById(id);
const viewer = new Viewer();
const state = { token: sessionStorage.getItem("token") || "", images: [], shown: null, running: null, volumes: new Map() };

class Failure extends Error {
  constructor(status, error) {
    super([error.where, error.what].filter(Boolean).join(": ") + (error.remedy ? ` (${error.remedy})` : ""));
    this.status = status;
  }
}

async function request(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(state.token ? { Authorization: `Bearer ${state.token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, { what: "the server does not answer", remedy: "is it running?" });
  }
  if (!response.ok) {
    const body = await response.json().catch(() => ({ error: { what: `status ${response.status}` } }));
    throw new Failure(response.status, body.error);
  }
  return response;
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function button(text, label, action) {
  const made = element("button", text, { type: "button", "aria-label": label });
  made.addEventListener("click", action);
  return made;
}

function say(text) { at("status").textContent = text; }

function fail(error) {
  at("error").hidden = !error;
  at("error").textContent = error ? error.message : "";
  if (error) say("");
}

// ---- start -------------------------------------------------------------------------------------------------------------

async function start() {
  try {
    const model = await (await request("/api/model")).json();
    at("token-form").hidden = true;
    at("workplace").hidden = false;
    at("title").textContent = model.title;
    for (const [name, text] of Object.entries(model.samples)) at("sample").append(element("option", text, { value: name }));
    showScope(model);
    document.body.dataset.state = "ready";
  } catch (error) {
    at("token-form").hidden = false;
    at("token-note").textContent = error.status === 401 ? (state.token ? "This token is wrong." : "") : error.message;
    document.body.dataset.state = "token";
    at("token").focus();
  }
}

function showScope(model) {
  at("example").append(element("option", "choose one", { value: "" }));
  for (const [task, questions] of Object.entries(model.examples)) {
    const group = element("optgroup", "", { label: task });
    for (const question of questions) group.append(element("option", question, { value: question }));
    at("example").append(group);
  }
  if (!model.scope) {
    at("scope").textContent = "The scope of this version is not recorded: it answers every question, also those that it was not trained for.";
    return;
  }
  const names = { tasks: "tasks", anatomies: "anatomies", sequences: "sequences", structure_names: "structures", finding_names: "findings" };
  const parts = Object.entries(names).filter(([key]) => model.scope[key].length).map(([key, name]) => `${name}: ${model.scope[key].join(", ")}`);
  at("scope").textContent = `What can be asked. ${parts.join("; ")}. Other questions are refused.`;
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = at("token").value;
  sessionStorage.setItem("token", state.token);
  start();
});

// ---- images ------------------------------------------------------------------------------------------------------------

async function upload(files) {
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name);
  await receive(`reading ${files.length} file${files.length === 1 ? "" : "s"}`, "/api/images", { method: "POST", body: form });
}

async function receive(doing, path, options) {
  fail(null);
  say(`${doing} ...`);
  try {
    const answer = await (await request(path, options)).json();
    state.images.push(...answer.images);
    listImages();
    await show(answer.images[0]);
    const left = answer.left_out.length ? ` Left out: ${answer.left_out.join("; ")}.` : "";
    say(`${answer.images.length} image${answer.images.length === 1 ? "" : "s"} read.${left}`);
  } catch (error) {
    fail(error);
  }
}

function listImages() {
  const rows = state.images.map((image, index) => {
    const row = element("li", "");
    row.className = image === state.shown ? "shown" : "";
    const name = `image ${index + 1}`;
    row.append(element("span", `${name}: ${image.description}`));
    row.append(button("Show", `show ${name}`, () => show(image)), button("Remove", `remove ${name}`, () => remove(image)));
    return row;
  });
  at("images").replaceChildren(...rows);
  at("ask").disabled = state.running !== null || !state.images.length;
}

async function remove(image) {
  state.images = state.images.filter((other) => other !== image);
  state.volumes.delete(image.id);
  if (state.shown === image) {
    state.shown = null;
    at("viewer-section").hidden = true;
    if (state.images.length) await show(state.images[0]);
  }
  listImages();
  request(`/api/images/${image.id}`, { method: "DELETE" }).catch(fail);
  at("choose-files").focus();
}

async function volumeOf(image) {
  if (!state.volumes.has(image.id)) state.volumes.set(image.id, await (await request(`/api/images/${image.id}/view.nii`)).blob());
  return state.volumes.get(image.id);
}

async function show(image, layers = [], reconstruction = null) {
  state.shown = image;
  at("viewer-section").hidden = false;
  const middle = Math.floor(image.shape[0] / 2);
  at("slice").max = image.shape[0] - 1;
  at("slice").value = middle;
  at("slice-number").value = `${middle + 1} of ${image.shape[0]}`;
  at("input-canvas").setAttribute("aria-label", image.description);
  at("input-caption").textContent = image.description;
  at("opacity-control").hidden = !layers.length && !reconstruction;
  at("opacity-label").textContent = reconstruction ? "input to reconstruction" : "overlay";
  at("opacity").value = reconstruction ? 100 : 50;
  listImages();
  try {
    const base = { blob: await volumeOf(image), name: "image.nii", colormap: "gray", opacity: 1 };
    await viewer.show(image, [base, ...layers], reconstruction);
  } catch (error) {
    fail(error);
  }
}

at("choose-files").addEventListener("click", () => at("files").click());
at("choose-folder").addEventListener("click", () => at("folder").click());
for (const id of ["files", "folder"]) {
  at(id).addEventListener("change", () => {
    if (at(id).files.length) upload([...at(id).files]);
    at(id).value = "";
  });
}
at("use-sample").addEventListener("click", () => receive("generating the sample", `/api/samples/${at("sample").value}`, { method: "POST" }));
at("slice").addEventListener("input", () => {
  const slice = Number(at("slice").value);
  at("slice-number").value = `${slice + 1} of ${state.shown.shape[0]}`;
  viewer.go(slice);
});
at("view").addEventListener("change", () => viewer.arrange());
at("opacity").addEventListener("input", () => viewer.setOpacity(Number(at("opacity").value) / 100));

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const entries = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!entries.length) return found;
    for (const one of entries) found.push(...(await filesOf(one)));
  }
}

for (const kind of ["dragenter", "dragover"]) {
  at("drop").addEventListener(kind, (event) => { event.preventDefault(); at("drop").classList.add("over"); });
}
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", async (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  const plain = [...event.dataTransfer.files];
  const files = entries.length ? (await Promise.all(entries.map(filesOf))).flat() : plain;
  if (files.length) upload(files);
});

// ---- question and answer -----------------------------------------------------------------------------------------------

at("example").addEventListener("change", () => { if (at("example").value) at("instruction").value = at("example").value; });
at("instruction").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); at("question-form").requestSubmit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && state.running) cancel(); });
at("cancel").addEventListener("click", cancel);

function cancel() { if (state.running) state.running.abort(); }

at("question-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (state.running || !state.images.length) return;
  state.running = new AbortController();
  const asked = { images: [...state.images], instruction: at("instruction").value };
  begin(asked);
  try {
    const body = JSON.stringify({ images: asked.images.map((image) => image.id), instruction: asked.instruction });
    const headers = { "Content-Type": "application/json" };
    const response = await request("/api/answers", { method: "POST", headers, body, signal: state.running.signal });
    for await (const event of lines(response)) await handle(event, asked);
  } catch (error) {
    if (error.name === "AbortError") { at("answer").dataset.state = "cancelled"; say("Cancelled."); } else fail(error);
    if (at("answer").dataset.state !== "done") at("answer").hidden = true;
  } finally {
    state.running = null;
    at("cancel").disabled = true;
    at("progress").hidden = true;
    at("ask").disabled = !state.images.length;
  }
});

function begin(asked) {
  fail(null);
  at("ask").disabled = true;
  at("cancel").disabled = false;
  at("progress").hidden = false;
  at("progress").removeAttribute("value");
  at("answer").hidden = false;
  at("answer").dataset.state = "running";
  at("asked").textContent = asked.images.length > 1 ? `${asked.instruction} (a study of ${asked.images.length} images)` : asked.instruction;
  for (const id of ["warning", "probability", "fields", "boxes", "without-dicom"]) at(id).hidden = true;
  at("answer-text").textContent = "";
  at("downloads").replaceChildren();
  say("waiting ...");
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
  if (rest) yield JSON.parse(rest);
}

async function handle(event, asked) {
  if (event.event === "progress") {
    const waiting = event.total ? `waiting: ${event.total} before this one` : "waiting";
    say(event.phase === "waiting" ? waiting : `${event.phase} ${event.done} of ${event.total}`);
    if (event.phase !== "waiting" && event.total) at("progress").value = event.done / event.total;
  } else if (event.event === "text") {
    at("answer-text").textContent += event.text;
  } else if (event.event === "error") {
    throw new Failure(event.status, event.error);
  } else if (event.event === "answer") {
    await finish(event, asked);
  }
}

async function finish(answer, asked) {
  at("answer-text").textContent = answer.text;
  at("warning").hidden = !answer.warning;
  at("warning").textContent = answer.warning ? `Warning: ${answer.warning}.` : "";
  at("probability").hidden = answer.probability === null;
  if (answer.probability !== null) {
    at("meter").value = answer.probability;
    at("probability-text").textContent = `probability of yes: ${(100 * answer.probability).toFixed(0)} %`;
    at("statement").textContent = answer.statement;
  }
  const fields = Object.entries(answer.fields);
  at("fields").hidden = !fields.length;
  at("fields").tBodies[0].replaceChildren(...fields.map(([name, text]) => row([["th", name, { scope: "row" }], ["td", text]])));
  listBoxes(answer.boxes);
  at("downloads").replaceChildren(...answer.files.map((name) => button(name, `download ${name}`, () => download(answer.id, name))));
  at("without-dicom").hidden = !answer.without_dicom;
  at("without-dicom").textContent = answer.without_dicom;
  const image = asked.images[answer.image];
  if (state.images.includes(image)) await showAnswer(answer, image);
  at("answer").dataset.state = "done";
  at("answer").dataset.task = answer.task;
  say(`Done: ${answer.task}.`);
  at("answer-heading").focus();
}

async function showAnswer(answer, image) {
  const file = async (name) => (await request(`/api/answers/${answer.id}/${name}`)).blob();
  const layers = [];
  if (answer.files.includes("mask.nii")) {
    layers.push({ blob: await file("mask.nii"), name: "mask.nii", colormap: "red", opacity: 0.5, range: [0, 1] });
  }
  if (answer.files.includes("boxes.nii")) {
    layers.push({ blob: await file("boxes.nii"), name: "boxes.nii", colormap: "warm", opacity: 0.5, range: [0, 1] });
  }
  await show(image, layers, answer.files.includes("image.nii") ? await file("image.nii") : null);
}

function row(cells) {
  const made = element("tr", "");
  made.append(...cells.map(([tag, text, attributes]) => element(tag, text, attributes)));
  return made;
}

function listBoxes(boxes) {
  at("boxes").hidden = !boxes.length;
  const rows = boxes.map((box, index) => {
    const made = row([["td", box.label], ["td", String(box.slice_index + 1)], ["td", `${box.row0} to ${box.row1}`], ["td", `${box.col0} to ${box.col1}`]]);
    const cell = element("td", "");
    cell.append(button("Go to", `go to box ${index + 1}, slice ${box.slice_index + 1}`, () => {
      at("slice").value = box.slice_index;
      at("slice").dispatchEvent(new Event("input"));
    }));
    made.append(cell);
    return made;
  });
  at("boxes").tBodies[0].replaceChildren(...rows);
}

async function download(answer, name) {
  try {
    const url = URL.createObjectURL(await (await request(`/api/answers/${answer}/${name}`)).blob());
    element("a", "", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    say(`${name} is downloaded.`);
  } catch (error) {
    fail(error);
  }
}

start();

// The page: its controls and what they do. docs/serve.md says what it is for.

import { ServerError, hasKey, keepKey, listModels, readProof } from "./api.js";
import { openCamera, prepareCamera } from "./camera.js";
import { $, element } from "./elements.js";
import { withKey } from "./key.js";
import { fileOf, openPicture } from "./picture.js";
import { proofOf } from "./proof.js";
import { Entry, Talk, answerInto } from "./talk.js";

const SUGGESTIONS = ["What is this?", "What kind of thing is this?", "Describe the picture."];
const LONG_CONTEXT = 2048; // from here on earlier questions are remembered unless one says otherwise

let models = [];
let picture = null;
let talk = new Talk();
let shown = null; // the picture that the newest question is about
let going = null; // what aborts the answer that comes

const model = () => models[$("model").selectedIndex];
const describe = ({ id, vision, language }) => `${id}: ${vision} + ${language.split(",")[0]}`;

// The models, and the key

async function start() {
  try {
    models = await withKey(listModels);
  } catch (error) {
    $("model").replaceChildren(element("option", {}, "none"));
    showKeyButton();
    $("problem").textContent = wordsOf(error);
    return;
  }
  $("model").replaceChildren(...models.map((each) => element("option", {}, describe(each))));
  $("model").disabled = $("show-proof").disabled = false;
  $("remember").checked = model().context_length >= LONG_CONTEXT;
  showModel();
  showKeyButton();
  focusQuestion();
}

function showModel() {
  const { runtime, vision, language, context_length: context, tokens_per_picture: tokens } = model();
  const facts = [["runtime", runtime], ["vision", vision], ["language", language], ["context", `${context.toLocaleString("en")} tokens`], ["a picture", `${tokens} tokens`]];
  $("about-model").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function showKeyButton() {
  $("forget-key").hidden = !hasKey() && models.length > 0;
  $("forget-key").textContent = hasKey() ? "Forget key" : "Try again";
}

// The picture

async function take(opening) {
  try {
    show(await opening);
  } catch (error) {
    $("about-picture").textContent = error.message;
  }
}

function show(next) {
  picture = next;
  talk = new Talk(); // about another picture
  $("preview").hidden = $("remove").hidden = next === null;
  $("empty").hidden = $("example").hidden = next !== null;
  $("drop").classList.toggle("has", next !== null);
  if (next) $("preview").src = next.url;
  else $("preview").removeAttribute("src");
  $("preview").alt = next ? next.name : "";
  $("about-picture").textContent = next ? next.note : "";
  if (next) focusQuestion();
}

// Questions

async function ask(question) {
  const request = { model: model().id };
  if ($("max-tokens").value) request.max_tokens = Number($("max-tokens").value);
  if ($("temperature").value) request.temperature = Number($("temperature").value);
  const [remember, about, spoken] = [$("remember").checked, picture, talk];
  const entry = new Entry(question, about === shown ? null : about, models.length > 1 ? describe(model()) : "");
  shown = about;
  begin();
  try {
    const messages = () => spoken.messages(question, about, remember);
    await withKey(() => answerInto(entry, request, messages, about, going.signal));
    spoken.turns.push({ question, answer: entry.text.data });
    entry.end();
  } catch (error) {
    const isStopped = error.name === "AbortError";
    if (isStopped) entry.note("Stopped.");
    else if (!$("question").value) $("question").value = question; // nothing is lost
    if (isStopped && entry.text.data) spoken.turns.push({ question, answer: entry.text.data });
    entry.end(isStopped ? "" : wordsOf(error));
  } finally {
    finish();
  }
}

function focusQuestion() {
  if (!matchMedia("(pointer: coarse)").matches) $("question").focus({ preventScroll: true }); // nor open a phone's keyboard
}

function begin() {
  going = new AbortController();
  const hadFocus = document.activeElement === $("send");
  $("question").value = "";
  $("suggestions").hidden = $("intro").hidden = true;
  $("send").hidden = true;
  $("stop").hidden = $("clear").hidden = false;
  if (hadFocus) $("stop").focus();
  say("Answering.");
}

function finish() {
  going = null;
  const hadFocus = document.activeElement === $("stop") || document.activeElement === document.body;
  $("send").hidden = false;
  $("stop").hidden = true;
  if (hadFocus) focusQuestion();
  say("");
}

const wordsOf = (error) => (error instanceof ServerError ? error.words : `${error.message}`);

function say(words) {
  $("said").textContent = words;
}

async function showProof() {
  $("proof-title").textContent = `Proof of ${model().id}`;
  $("proof-content").replaceChildren(element("p", {}, "Reading ..."));
  $("proof").showModal();
  try {
    $("proof-content").replaceChildren(...proofOf(await withKey(() => readProof(model().id))));
  } catch (error) {
    $("proof-content").replaceChildren(element("p", { class: "problem", role: "alert" }, wordsOf(error)));
  }
}

// What happens on what

for (const text of SUGGESTIONS) {
  const button = element("button", { type: "button" }, text);
  button.addEventListener("click", () => models.length && !going && ask(text));
  $("suggestions").append(button);
}
const on = (id, event, act) => $(id).addEventListener(event, act);

on("ask", "submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (question && models.length && !going) ask(question);
});
on("question", "keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) going?.abort();
});
$("options").addEventListener("invalid", () => ($("options").open = true), true); // else nobody sees what is wrong
on("stop", "click", () => going?.abort());
on("clear", "click", () => {
  going?.abort();
  talk = new Talk();
  $("log").replaceChildren();
  $("clear").hidden = true;
  shown = null;
  $("suggestions").hidden = $("intro").hidden = false;
  focusQuestion();
});
on("model", "change", showModel);
on("show-proof", "click", showProof);
on("forget-key", "click", () => {
  keepKey("");
  location.reload();
});

on("choose", "click", () => $("file").click());
on("photograph", "click", openCamera);
prepareCamera(take);
on("example", "click", () => take(fetch("page/example.webp").then(async (got) => openPicture(await got.blob(), "a bouquet (Fluent Emoji, Microsoft, MIT)"))));
on("remove", "click", () => {
  show(null);
  $("choose").focus();
});
for (const id of ["file", "shot"]) {
  on(id, "change", () => {
    if ($(id).files[0]) take(openPicture($(id).files[0]));
    $(id).value = "";
  });
}
document.addEventListener("paste", (event) => {
  const file = fileOf(event.clipboardData);
  if (!file) return; // a text, for the question
  event.preventDefault();
  take(openPicture(file, "pasted picture"));
});
const isText = (event) => event.target === $("question") && !event.dataTransfer.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (isText(event)) return;
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  if (isText(event)) return;
  event.preventDefault();
  $("drop").classList.remove("over");
  const file = fileOf(event.dataTransfer);
  if (file) take(openPicture(file));
});

start();

// Requests to this server, and what its errors mean in words.

const STORED = "tinyllava-edge key"; // of sessionStorage: this tab, until it is closed
let key = read();

function read() {
  try {
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return ""; // where the browser keeps nothing, it is kept in memory
  }
}

/** Keep a key, or forget it where it is "". */
export function keepKey(text) {
  key = text;
  try {
    if (text) sessionStorage.setItem(STORED, text);
    else sessionStorage.removeItem(STORED);
  } catch { /* in memory only */ }
}

export const hasKey = () => key !== "";

/** What the server, or the way to it, said instead of an answer. */
export class ServerError extends Error {
  constructor(status, told = {}) {
    super(told.message ?? `The server said ${status}, without a reason.`);
    Object.assign(this, { status, code: told.code ?? "" });
  }

  /** One or two sentences for people. */
  get words() {
    const told = sentence(this.message);
    if (this.status === 0) return "The server does not answer. Does it still run? Your question is kept: ask again.";
    if (this.status === 429) return `The server is busy: ${this.message} Your question is kept.`;
    if (this.status === 413) return `That is more than the server takes at once. ${told} Take a smaller picture.`;
    if (this.code === "context_length_exceeded") {
      return `That does not fit into the model's context. ${told} Ask for fewer tokens, shorten the question, or clear the conversation.`;
    }
    if (this.code === "wrong_origin" || this.code === "wrong_host") {
      return `${told} Its owner can allow this address: --host-name, --allow-origin.`;
    }
    return told;
  }
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(0);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ServerError(response.status, body.error);
}

/** The models that the server has loaded. */
export const listModels = async () => (await (await call("v1/models")).json()).data;

/** What is proven of one of them. */
export const readProof = async (name) => (await call(`v1/models/${encodeURIComponent(name)}/proof`)).json();

/** The chunks of a streamed answer, as they come. Aborting `signal` ends the answer on the server, too. */
export async function* streamAnswer(request, signal) {
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await call("v1/chat/completions", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ServerError(0);
    });
    if (done) throw new ServerError(502, { message: "the answer broke off." });
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a comment, which keeps the connection open
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new ServerError(502, chunk.error);
      yield chunk;
    }
  }
}

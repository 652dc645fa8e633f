// The conversation: what is asked of the server, and what of it stands on the page.

import { streamAnswer } from "./api.js";
import { $, element } from "./elements.js";
import { timesOf } from "./timings.js";

/** Questions and answers about one picture, oldest first. */
export class Talk {
  turns = [];

  /** The messages of a question; earlier ones go with it where they are to be remembered. */
  async messages(question, picture, remember) {
    const parts = picture ? [await picture.part()] : [];
    const turns = remember ? this.turns : [];
    const asked = [...turns, { question }].map((turn, index) => {
      const text = { type: "text", text: turn.question };
      const user = { role: "user", content: index === 0 ? [...parts, text] : [text] };
      return "answer" in turn ? [user, { role: "assistant", content: turn.answer }] : [user];
    });
    return asked.flat();
  }
}

/** A question in the log, and the answer that grows below it. */
export class Entry {
  /** `picture` is the one that no question before was about, or null. */
  constructor(question, picture, model) {
    const thumbnail = picture ? [element("img", { src: picture.url, alt: `about ${picture.name}:` })] : [];
    this.answer = element("p", { class: "answer going" });
    this.text = document.createTextNode(""); // what a model says is this node's data, and never HTML
    this.answer.append(this.text);
    this.item = element("div", { class: "entry" }, element("div", { class: "question" }, ...thumbnail, element("span", {}, question)), this.answer);
    if (model) this.item.append(element("p", { class: "small" }, model));
    $("log").append(this.item);
    $("log").setAttribute("aria-busy", "true"); // read out as a whole, once it is whole
    this.show();
  }

  /** Show a chunk of the answer. */
  add(chunk) {
    const isInView = this.item.getBoundingClientRect().bottom < innerHeight + 40; // and not scrolled away from
    this.text.data += chunk.choices[0]?.delta.content ?? "";
    if (chunk.choices[0]?.finish_reason === "length") this.note("Cut at the limit of tokens.");
    if (chunk.timings) this.item.append(timesOf(chunk.timings, chunk.usage));
    if (isInView) this.show();
  }

  show() {
    this.item.scrollIntoView({ block: "nearest" });
  }

  note(text) {
    this.item.append(element("p", { class: "small" }, text));
  }

  /** Nothing more comes; `problem` says why there is no answer. */
  end(problem = "") {
    this.answer.classList.remove("going");
    if (!this.text.data) {
      if (problem) this.answer.remove();
      else this.answer.append(element("span", { class: "small" }, "(an empty answer)"));
    }
    if (problem) this.item.append(element("p", { class: "problem", role: "alert" }, problem));
    $("log").setAttribute("aria-busy", "false");
    this.show();
  }
}

/** Ask, and show what comes; a picture that the server has forgotten is sent again. */
export async function answerInto(entry, request, messages, picture, signal) {
  for (let again = false; ; again = true) {
    try {
      for await (const chunk of streamAnswer({ ...request, messages: await messages() }, signal)) {
        if (picture && chunk.image_ids?.length) picture.id = chunk.image_ids[0];
        entry.add(chunk);
      }
      return;
    } catch (error) {
      if (error.code !== "image_not_found" || again) throw error;
      picture.id = null;
    }
  }
}

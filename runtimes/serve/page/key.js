// The API key, asked for where the server wants one.

import { hasKey, keepKey } from "./api.js";
import { $ } from "./elements.js";

/** Do it; where the server wants a key, ask for one and do it again. */
export async function withKey(act) {
  for (let problem = ""; ; problem = "That is not a key of this server.") {
    try {
      return await act();
    } catch (error) {
      if (error.status !== 401 || !(await askKey(hasKey() ? problem : ""))) throw error;
    }
  }
}

function askKey(problem) {
  $("key-problem").textContent = problem;
  $("key-text").value = "";
  $("key").returnValue = "";
  $("key").showModal();
  return new Promise((resolve) => {
    $("key").addEventListener("close", () => {
      const given = $("key").returnValue === "given" ? $("key-text").value.trim() : "";
      $("key-text").value = "";
      if (given) keepKey(given);
      resolve(given !== "");
    }, { once: true });
  });
}
